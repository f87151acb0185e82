import json
import sys

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_modelsec as ms
from keras_modelsec.errors import CodeInModelError, UnsafeModelError
from keras_modelsec.integrity.contents.config_checks import (
    ALLOWABLE,
    check_allow,
    check_config,
    parse_json,
)

NAMESPACES = (
    keras.constraints,
    keras.dtype_policies,
    keras.initializers,
    keras.layers,
    keras.losses,
    keras.metrics,
    keras.optimizers,
    keras.optimizers.schedules,
    keras.quantizers,
    keras.regularizers,
)
NOT_IN_CONFIGURATIONS = {"InputSpec"}
CLASSES = sorted(
    {
        (namespace.__name__.removeprefix("keras.api."), name)
        for namespace in NAMESPACES
        for name, value in vars(namespace).items()
        if isinstance(value, type) and name not in NOT_IN_CONFIGURATIONS
    }
)

# What the constructors that need arguments take, tried in this order.
ARGUMENTS = (
    {},
    {"units": 2},
    {"filters": 2, "kernel_size": 2},
    {"kernel_size": 2},
    {"pool_size": 2},
    {"output_size": 2},
    {"rate": 0.1},
    {"stddev": 0.1},
    {"factor": 0.1},
    {"target_shape": (2,)},
    {"height": 2, "width": 2},
    {"height_factor": 0.1, "width_factor": 0.1},
    {"height_factor": 0.1},
    {"input_dim": 2, "output_dim": 2},
    {"num_bins": 2},
    {"num_tokens": 2},
    {"scale": 2.0},
    {"n": 2},
    {"dims": (1,)},
    {"axes": 1},
    {"activation": "relu"},
    {"equation": "ab,bc->ac", "output_shape": 3},
    {"num_heads": 2, "key_dim": 2},
    {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 2},
    {"layer": keras.layers.Dense(2)},
    {"layer": keras.layers.GRU(2)},
    {"cell": keras.layers.GRUCell(2)},
    {"cells": [keras.layers.GRUCell(2)]},
    {"layers": [keras.layers.Rescaling(1.0)]},
    {"shape": (2,)},
    {"value_range": (0, 1)},
    {"factor": 4},
    {"bin_boundaries": [0.0, 1.0]},
    {"inner_optimizer": keras.optimizers.SGD()},
    {"num_classes": 2},
    {"num_classes": 2, "target_class_ids": [0]},
    {"recall": 0.5},
    {"precision": 0.5},
    {"sensitivity": 0.5},
    {"specificity": 0.5},
    {"fn": keras.losses.mean_squared_error},
    {"initial_learning_rate": 0.1, "decay_steps": 2},
    {"initial_learning_rate": 0.1, "first_decay_steps": 2},
    {"initial_learning_rate": 0.1, "decay_steps": 2, "decay_rate": 0.5},
    {"boundaries": [1], "values": [0.1, 0.2]},
    {"max_number": 2},
    {"mode": "int8"},
)
ABSTRACT = {
    *("Layer", "Wrapper", "Loss", "Metric", "Optimizer", "Regularizer", "Quantizer", "Constraint"),
    *("Initializer", "LearningRateSchedule", "QuantizationConfig", "RNN", "DTypePolicyMap"),
    *("AWQConfig", "GPTQConfig", "AWQDTypePolicy", "GPTQDTypePolicy", "Int4DTypePolicy"),
    *("QuantizedDTypePolicy", "QuantizedFloat8DTypePolicy", "OptimizerMap", "MultiOptimizer"),
    *("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"),
}


def build(cls):
    for arguments in ARGUMENTS:
        try:
            return cls(**arguments)
        except Exception:
            continue
    return None


@pytest.mark.filterwarnings("ignore")
def test_all_that_keras_has_is_accepted():
    unbuilt = set()
    for module, name in CLASSES:
        built = build(getattr(sys.modules[module], name, None) or getattr(keras, name))
        if built is None or name in ABSTRACT:
            unbuilt.add(name)
            continue
        config = keras.saving.serialize_keras_object(built)
        assert check_config(json.dumps(config)) == frozenset(), name
        config.pop("module", None)
        config.pop("registered_name", None)
        assert check_config(json.dumps(config), legacy=True) == frozenset(), name
    assert unbuilt <= ABSTRACT


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish", "log_softmax", "softmax"])
def test_functions_of_keras_are_accepted(activation):
    function = getattr(keras.activations, activation)
    found = keras.saving.serialize_keras_object(function)
    check_config(json.dumps({"a": found}))
    check_config(json.dumps({"a": {**found, "module": "keras.activations"}}))
    check_config(json.dumps({"a": {**found, "module": "keras.ops.image", "config": "resize"}}))


def test_functional_models_of_ops_and_feature_spaces_are_accepted():
    inputs = keras.Input((4, 4))
    x = keras.ops.where(inputs > 0, keras.ops.abs(inputs) + 1, 0.0)
    x = keras.ops.einsum("bij,bjk->bik", x, x)[:, :2]
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(1, 2, 0.5)))
    check_config(json.dumps(keras.saving.serialize_keras_object(model)))
    space = keras.utils.FeatureSpace(
        {"a": keras.utils.FeatureSpace.integer_categorical(num_oov_indices=1), "b": "float"},
        crosses=[keras.utils.FeatureSpace.cross(("a", "b"), 4)],
    )
    check_config(json.dumps(keras.saving.serialize_keras_object(space)))


def test_classes_of_this_package_are_accepted():
    inputs = keras.Input((64,))
    mark = ms.WatermarkRegularizer(ms.watermark.generate_key())
    hidden = keras.layers.Dense(64, kernel_regularizer=mark)(inputs)
    model = ms.SecureModel(inputs, keras.layers.Dense(2)(hidden))
    model.compile(
        optimizer=ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.1),
        loss="mse",
        adversarial=ms.AdversarialTraining(ms.attacks.PGD(epsilon=0.1, steps=2)),
    )
    config = json.dumps(keras.saving.serialize_keras_object(model))
    assert "keras_modelsec>" in config
    check_config(config)


class Own(keras.layers.Layer):
    pass


def own(x):
    return x


def test_own_classes_are_accepted_once_they_are_named():
    node = keras.saving.serialize_keras_object(Own())
    function = keras.saving.serialize_keras_object(own)
    for config in ({"x": node}, {"x": function}):
        with pytest.raises(UnsafeModelError, match="`custom_objects`"):
            check_config(json.dumps(config))
        check_config(json.dumps(config), custom_objects={"Own": Own, "own": own})
        check_config(json.dumps(config), custom_objects={"Own": Own, "some>own": own})
        with keras.saving.custom_object_scope({"Own": Own, "own": own}):
            check_config(json.dumps(config))


def node(module, name, config=None, **more):
    return {"module": module, "class_name": name, "config": config or {}, **more}


LAMBDA = node("keras.layers", "Lambda", {"function": {"class_name": "__lambda__", "config": {}}})


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (LAMBDA, "Lambda"),
        ({"class_name": "__lambda__", "config": {"value": "..."}}, "Lambda"),
        (node("keras.src.layers.core.lambda_layer", "Lambda"), "Lambda"),
        (node(None, "Lambda"), "Lambda"),
        (node("keras.layers", "TFSMLayer", {"filepath": "/x"}), "TFSMLayer"),
        (node("keras.src.export.tfsm_layer", "TFSMLayer"), "TFSMLayer"),
        (node("keras.layers", "TorchModuleWrapper", {"module": "gASV"}), "TorchModuleWrapper"),
        (node("keras.layers", "JaxLayer"), "JaxLayer"),
        (node("keras.layers", "FlaxLayer"), "FlaxLayer"),
        (node("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}), "StringLookup"),
        (node("keras.layers", "IntegerLookup", {"vocabulary": "http://x"}), "IntegerLookup"),
        (node("keras.layers", "TextVectorization", {"vocabulary": "x"}), "TextVectorization"),
        (node("keras.src.layers", "IndexLookup", {"vocabulary": "x"}), "IndexLookup"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_found_at_any_depth_and_allowed_by_name_only(part, found, legacy):
    wrapped = [
        part,
        node("keras.layers", "TimeDistributed", {"layer": part}),
        node("keras", "Sequential", {"layers": [node("keras", "Sequential", {"layers": [part]})]}),
        node("keras", "Sequential", compile_config={"loss": {"a": [part]}, "metrics": None}),
        node("keras.layers", "Dense", {"activation": part}),
        node("keras.layers", "Dense", build_config={"x": part}),
        {"anything": {"goes": [[part]]}},
    ]
    for config in wrapped:
        text = json.dumps(config)
        with pytest.raises(CodeInModelError) as caught:
            check_config(text, legacy=legacy)
        assert caught.value.parts == (found,)
        assert f"allow=('{found}',)" in str(caught.value)
        if found in ALLOWABLE:
            assert check_config(text, allow=[found], legacy=legacy) == {found}
        others = ALLOWABLE - {found}
        with pytest.raises(CodeInModelError):
            check_config(text, allow=others, legacy=legacy)


def test_vocabularies_that_are_lists_are_data():
    for name in ("StringLookup", "IntegerLookup", "TextVectorization"):
        check_config(json.dumps(node("keras.layers", name, {"vocabulary": ["a", "b"]})))


@pytest.mark.parametrize(
    "part",
    [
        node("os", "system"),
        node("subprocess", "Popen", {"args": ["id"]}),
        node("builtins", "eval"),
        node("keras", "src"),
        node("keras.utils", "get_file"),
        node("keras.utils", "Sequence"),
        node("keras.callbacks", "LambdaCallback"),
        node("keras.callbacks", "BackupAndRestore"),
        node("keras.layers", "deserialize"),
        node("keras.models", "load_model"),
        node("keras.saving", "load_model"),
        node("keras.applications", "ResNet50"),
        node("keras.src.utils.python_utils", "func_load"),
        node("keras.src.saving.saving_lib_test", "MyDense"),
        node("keras.src.no.such.module", "Dense"),
        node("keras_hub.models", "Backbone"),
        node("kerasx.layers", "Dense"),
        node("keras.layers.core", "Dense2"),
        node("keras.layers", "__class__"),
        node("keras.layers", "Dense", registered_name="Custom>Unknown") | {"module": "evil"},
        node(None, "Unknown"),
        node(7, "Dense"),
        {"class_name": ["Dense"], "config": {}},
        {"class_name": "__typespec__", "config": [], "spec_name": "x", "module": "tensorflow"},
        {"class_name": "function", "config": "system", "module": "os"},
        {"class_name": "function", "config": "get_file", "module": "keras.utils"},
        {"class_name": "function", "config": "load_model", "module": "keras.saving"},
        {"class_name": "function", "config": "deserialize", "module": "keras.losses"},
        {"class_name": "function", "config": "get_file", "module": "builtins"},
        {"class_name": "function", "config": "eval", "module": "builtins"},
        {"class_name": "function", "config": ["relu"], "module": "keras.activations"},
        {
            "class_name": "function",
            "config": "enable_unsafe_deserialization",
            "module": "keras.config",
        },
    ],
)
def test_what_is_no_part_of_a_model_cannot_be_allowed(part):
    for legacy in (False, True):
        with pytest.raises(UnsafeModelError, match="must"):
            check_config(json.dumps({"x": [part]}), allow=ALLOWABLE, legacy=legacy)
    assert "keras.src.saving.saving_lib_test" not in sys.modules  # nothing was imported for it


def test_registered_names_do_not_hide_code():
    # Keras takes `class_name` from the module if `registered_name` is not registered, and legacy
    # loading never looks at the registered name.
    hidden = {**LAMBDA, "registered_name": None}
    with pytest.raises(CodeInModelError):
        check_config(json.dumps(hidden), custom_objects={"Lambda": Own})
    legacy = {"class_name": "TFSMLayer", "config": {}, "registered_name": "Own"}
    called = {"class_name": "deserialize", "config": {}, "registered_name": "Own"}
    for is_legacy in (False, True):  # `Sequential` reads a layer without a module as legacy
        with pytest.raises(CodeInModelError):
            check_config(json.dumps(legacy), custom_objects={"Own": Own}, legacy=is_legacy)
        with pytest.raises(UnsafeModelError):
            check_config(json.dumps(called), custom_objects={"Own": Own}, legacy=is_legacy)


def test_subclass_of_a_code_carrying_layer_carries_code():
    class Own2(keras.layers.TFSMLayer):
        pass

    config = json.dumps(node("own", "Own2", registered_name="Own2"))
    with pytest.raises(CodeInModelError):
        check_config(config, custom_objects={"Own2": Own2})


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "be JSON in UTF-8"),
        (b"\xff\xfe{\0}\0", "be JSON in UTF-8"),
        ("{}".encode("utf-16"), "be JSON in UTF-8"),
        (b"\xef\xbb\xbf{}", "be JSON in UTF-8"),
        (b"[]", "be a JSON object"),
        (b'{"a": 1, "a": 2}', "not repeat a key"),
        (b'{"x": {"class_name": "Dense", "class_name": "Lambda"}}', "not repeat a key"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "be JSON in UTF-8"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested at most"),
        (b'{"a": ' + b"9" * 5000 + b"}", "be JSON in UTF-8"),
    ],
)
def test_json_of_two_readings_or_none_is_refused(data, match):
    with pytest.raises(UnsafeModelError, match=match):
        check_config(data)


def test_large_configurations_are_refused(monkeypatch):
    monkeypatch.setattr("keras_modelsec.integrity.contents.config_checks.MAX_CONFIG_BYTES", 10)
    with pytest.raises(UnsafeModelError, match="have at most"):
        parse_json(b'{"a": "' + b"x" * 10 + b'"}', "It")


def test_numbers_that_json_does_not_have_are_read_as_keras_writes_them():
    check_config(json.dumps(node("keras.layers", "Masking", {"mask_value": float("nan")})))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["class_name", "config", "module", "registered_name", "vocabulary", "x"]
            ),
            inner
            | st.sampled_from(
                ["Dense", "keras.layers", "function", "Lambda", "keras", "__lambda__", "builtins"]
            ),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_json_is_accepted_or_refused_by_name(value, legacy):
    try:
        found = check_config(json.dumps({"model": value}), legacy=legacy)
    except UnsafeModelError:
        return
    assert found == frozenset()


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_by_name(junk):
    try:
        check_config(junk)
    except UnsafeModelError:
        return
    assert isinstance(json.loads(junk), dict)


@pytest.mark.parametrize("allow", ["Lambda", 7, None])
def test_allow_is_a_collection_of_names(allow):
    with pytest.raises(TypeError, match=r"`allow` must be a tuple of names"):
        check_allow(allow)


def test_allow_names_known_parts():
    assert check_allow(["Lambda"]) == {"Lambda"}
    with pytest.raises(ValueError, match=r"`allow` must name parts among .* Received: 'Dense'"):
        check_allow(("Dense",))
