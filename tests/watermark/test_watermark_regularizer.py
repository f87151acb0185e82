import base64
import copy
import json
import pickle
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec.errors import WatermarkError, WatermarkKeyError, WatermarkWarning
from keras_modelsec.watermark import derivation, restore_key, spreading, verify_watermark
from keras_modelsec.watermark.keys import SecretKey


def _flat(digits):
    x, y = digits
    return x.reshape(-1, 64)[:512], y[:512]


def _fit(model, digits, epochs=3):
    x, y = _flat(digits)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


@pytest.mark.slow
def test_training_marks_the_model_and_costs_no_accuracy(build_cnn, digits, key):
    x, y = digits
    accuracy = {}
    for name, regularizer in [("plain", None), ("marked", ms.WatermarkRegularizer(key))]:
        keras.utils.set_random_seed(1)
        model = build_cnn(regularizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        model.fit(x[:1200], y[:1200], batch_size=32, epochs=8, verbose=0)
        accuracy[name] = model.evaluate(x[1200:], y[1200:], verbose=0)[1]
        report = verify_watermark(model, key)
        assert report.is_evidence == (name == "marked")
        if name == "marked":
            assert report.bit_error_rate == 0
            assert report.z > 35
    assert accuracy["plain"] > 0.9
    assert accuracy["marked"] > accuracy["plain"] - 0.02


@pytest.mark.parametrize(
    "compile_arguments",
    [
        {},
        {"run_eagerly": True},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 4},
    ],
    ids=lambda arguments: next(iter(arguments), "graph"),
)
def test_mark_grows_however_the_step_is_run(build_mlp, digits, key, compile_arguments):
    model = build_mlp(ms.WatermarkRegularizer(key), **compile_arguments)
    _fit(model, digits, epochs=2 if "run_eagerly" in compile_arguments else 3)
    assert verify_watermark(model, key).z > 6


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mark_grows_under_mixed_precision(build_mlp, digits, key, policy):
    keras.config.set_dtype_policy(policy)
    model = _fit(build_mlp(ms.WatermarkRegularizer(key)), digits)
    assert verify_watermark(model, key).z > 6


@pytest.mark.slow
def test_two_replicas_train_the_mark_as_one_does(build_mlp, digits, key, mirrored_strategy):
    single = _fit(build_mlp(ms.WatermarkRegularizer(key)), digits)
    with mirrored_strategy.scope():
        keras.utils.set_random_seed(0)
        replicated = build_mlp(ms.WatermarkRegularizer(key))
    _fit(replicated, digits)
    z = verify_watermark(single, key).z
    assert verify_watermark(replicated, key).z == pytest.approx(z, rel=0.1)


def test_penalty_is_the_pure_function_of_weights_and_derived_signs(key):
    regularizer = ms.WatermarkRegularizer(key, strength=0.3, rate=0.2, index=2)
    kernel = keras.Variable(np.random.default_rng(0).normal(size=(20, 40)), dtype="float32")
    signs = derivation.signs(SecretKey(key), (20, 40), 2).astype("float32")
    expected = spreading.penalty(kernel.value, signs.reshape(20, 40), 0.3, 0.2)
    # As the private step calls it: the variable's own regularizer on the variable.
    kernel.regularizer = regularizer
    np.testing.assert_allclose(kernel.regularizer(kernel), expected, rtol=1e-6)
    np.testing.assert_allclose(regularizer(kernel.value), expected, rtol=1e-6)


def test_signs_are_derived_once_per_shape_and_kept_out_of_the_graph(key, monkeypatch):
    derived = []
    original = derivation.signs

    def counting(secret, shape, index):
        derived.append(shape)
        return original(secret, shape, index)

    monkeypatch.setattr(derivation, "signs", counting)
    regularizer = ms.WatermarkRegularizer(key)
    kernel = tf.Variable(tf.ones((300, 400)))
    concrete = [tf.function(lambda: regularizer(kernel)).get_concrete_function() for _ in range(3)]
    assert derived == [(300, 400)]
    assert max(c.graph.as_graph_def().ByteSize() for c in concrete) < 50_000
    assert regularizer(kernel) == concrete[0]()
    assert derived == [(300, 400)]


def test_key_is_in_no_config_file_pickle_or_repr(build_mlp, digits, key, tmp_path):
    regularizer = ms.WatermarkRegularizer(key.hex())
    model = _fit(build_mlp(regularizer), digits, epochs=1)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        stored = b"".join(archive.read(name) for name in archive.namelist())
    stored += (tmp_path / "model.weights.h5").read_bytes()
    stored += json.dumps(regularizer.get_config()).encode()
    stored += pickle.dumps(regularizer) + repr(regularizer).encode()
    stored += json.dumps(keras.saving.serialize_keras_object(regularizer)).encode()
    assert b"WatermarkRegularizer" in stored
    signs = derivation.signs(SecretKey(key), (64, 32), 0)
    for secret in (key, key[:16], key[16:]):
        assert secret not in stored
        assert secret.hex().encode() not in stored
        assert base64.b64encode(secret)[:20] not in stored
    assert signs.tobytes() not in stored
    assert np.packbits(signs < 0).tobytes() not in stored


def test_config_round_trip_gives_an_inert_regularizer_with_the_same_config(key):
    regularizer = ms.WatermarkRegularizer(
        key, strength=0.4, rate=0.01, index=1, base=keras.regularizers.L2(0.5)
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(regularizer))
    assert isinstance(again, ms.WatermarkRegularizer)
    assert again.get_config() == regularizer.get_config()
    assert regularizer.is_active
    assert not again.is_active
    for copied in (copy.deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))):
        assert copied.get_config() == regularizer.get_config()
        assert not copied.is_active


def test_loaded_regularizer_is_inert_warns_once_and_wakes_with_its_key(
    build_mlp, digits, key, tmp_path
):
    model = _fit(build_mlp(ms.WatermarkRegularizer(key)), digits)
    before = verify_watermark(model, key)
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")  # warnings are errors here
    assert loaded.predict(_flat(digits)[0], verbose=0).shape == (512, 10)
    regularizers = [layer.kernel_regularizer for layer in loaded.layers[:3]]
    assert not any(r.is_active for r in regularizers)
    keras.models.load_model(tmp_path / "model.keras")  # announces again for each load
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(loaded, digits, epochs=1)
    mine = [w for w in caught if issubclass(w.category, WatermarkWarning)]
    assert len(mine) == 1
    assert "ms.watermark.restore_key(model, key)" in str(mine[0].message)
    assert [float(loss) for loss in loaded.losses] == [0, 0, 0]

    paths = restore_key(loaded, key)
    assert len(paths) == 3
    assert all(r.is_active for r in regularizers)
    _fit(loaded, digits)  # the step is traced again, now with the mark
    assert verify_watermark(loaded, key).z > before.z


def test_wrong_key_after_loading_is_named_and_changes_nothing(build_mlp, key, other_key, tmp_path):
    build_mlp(ms.WatermarkRegularizer(key), compiled=False).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(WatermarkKeyError, match="one this mark was made with") as caught:
        restore_key(loaded, other_key)
    assert other_key.hex() not in str(caught.value)
    assert not any(layer.kernel_regularizer.is_active for layer in loaded.layers[:3])
    restore_key(loaded, key.hex())


def test_key_of_some_layers_only_is_refused_and_wakes_none(build_mlp, key, other_key):
    model = build_mlp(compiled=False)
    for layer, layer_key in zip(model.layers, (key, other_key, key), strict=False):
        config = ms.WatermarkRegularizer(layer_key).get_config()
        layer.kernel.regularizer = ms.WatermarkRegularizer.from_config(config)
    with pytest.raises(WatermarkKeyError, match="one this mark was made with"):
        restore_key(model, key)
    assert not any(layer.kernel.regularizer.is_active for layer in model.layers[:3])


def test_model_without_watermark_regularizers_has_no_key_to_restore(build_mlp, key):
    with pytest.raises(WatermarkError, match=r"must have watermark regularizers.*attach_watermark"):
        restore_key(build_mlp(), key)


def test_cloned_model_is_inert(build_mlp, key):
    clone = keras.models.clone_model(build_mlp(ms.WatermarkRegularizer(key), compiled=False))
    assert not clone.layers[0].kernel_regularizer.is_active
    restore_key(clone, key)
    assert clone.layers[0].kernel_regularizer.is_active


def test_base_regularizer_is_added_and_works_while_inert(key):
    kernel = keras.Variable(np.random.default_rng(0).normal(size=(20, 40)), dtype="float32")
    base = keras.regularizers.L2(0.01)
    alone = ms.WatermarkRegularizer(key)(kernel)
    both = ms.WatermarkRegularizer(key, base=base)
    np.testing.assert_allclose(both(kernel), alone + base(kernel), rtol=1e-5)
    inert = ms.WatermarkRegularizer.from_config(both.get_config())
    with pytest.warns(WatermarkWarning, match="must have its key"):
        np.testing.assert_allclose(inert(kernel), base(kernel), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strength": -0.5}, ValueError, "`strength` must be a finite number > 0"),
        ({"strength": 0}, ValueError, "`strength` must be"),
        ({"strength": "high"}, TypeError, "`strength` must be"),
        ({"rate": 0.0}, ValueError, "`rate` must be"),
        ({"rate": float("nan")}, ValueError, "`rate` must be"),
        ({"index": -1}, ValueError, "`index` must be"),
        ({"index": 1.5}, TypeError, "`index` must be"),
        ({"key": None}, WatermarkKeyError, "A watermark key is needed"),
        ({"key": 7}, WatermarkKeyError, "`key` must be bytes or a hexadecimal string"),
        ({"key_id": "00" * 16}, WatermarkKeyError, "one this mark was made with"),
        ({"key_id": "00"}, WatermarkKeyError, "`key_id` must be 32 lower-case hexadecimal"),
        ({"key_id": "AB" * 16}, WatermarkKeyError, "`key_id` must be"),
        ({"key_id": 7}, WatermarkKeyError, "`key_id` must be"),
    ],
)
def test_bad_argument_is_refused_with_its_rule(key, arguments, error, message):
    with pytest.raises(error, match=message):
        ms.WatermarkRegularizer(**{"key": key, **arguments})


def _wrong_places(key, value):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    mark = ms.WatermarkRegularizer
    calls = {
        f"regularizer_{name}": lambda name=name: mark(key, **{name: value})
        for name in ("strength", "rate", "index", "base", "key_id")
    }
    return calls | {
        "key_id_alone": lambda: mark(key_id=value),
        "attach_model": lambda: ms.attach_watermark(value, key),
        "attach_layers": lambda: ms.attach_watermark(model, key, value),
        "attach_list": lambda: ms.attach_watermark(model, key, [value]),
        "attach_strength": lambda: ms.attach_watermark(model, key, strength=value),
        "attach_rate": lambda: ms.attach_watermark(model, key, rate=value),
        "verify_model": lambda: ms.verify_watermark(value, key),
        "verify_layers": lambda: ms.verify_watermark(model, key, value),
        "verify_list": lambda: ms.verify_watermark(model, key, [value]),
        "verify_tried": lambda: ms.verify_watermark(model, key, tried=value),
        "verify_indices": lambda: ms.verify_watermark(model, key, indices=[value]),
        "restore_model": lambda: ms.watermark.restore_key(value, key),
        "monitor_every": lambda: ms.WatermarkMonitor(key, every=value),
    }


@pytest.mark.parametrize("form", [bytes, bytearray, bytes.hex], ids=["bytes", "bytearray", "hex"])
@pytest.mark.parametrize("place", _wrong_places(None, None))
def test_key_in_a_wrong_place_is_refused_and_not_shown(key, place, form):
    with pytest.raises((TypeError, ValueError, WatermarkError)) as refused:
        _wrong_places(key, form(key))[place]()
    error = refused.value
    while error is not None:  # what a traceback shows: the chain of errors as well
        assert key.hex() not in str(error)
        assert repr(key)[2:-1] not in str(error)
        assert str(key[0]) not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("name", ["strength", "base", "key_id"])
def test_refused_regularizer_holds_no_key_and_can_be_shown(key, name):
    half_built = ms.WatermarkRegularizer.__new__(ms.WatermarkRegularizer)
    with pytest.raises((TypeError, WatermarkKeyError)):
        half_built.__init__(**{name: key.hex()})
    assert key.hex() not in repr(vars(half_built))
    assert repr(half_built) == "<WatermarkRegularizer inert, key_id=None, index=0>"


@pytest.mark.parametrize("shape", [(10, 10), (2000,)])
def test_kernel_that_cannot_carry_is_refused_before_the_first_step(key, shape):
    with pytest.raises(WatermarkError, match=r"at least 512 weights. Received: shape="):
        ms.WatermarkRegularizer(key)(tf.ones(shape))


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", [False, True])
def test_mark_grows_beside_private_and_adversarial_training(digits, key, adversarial):
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(
        64, activation="relu", kernel_regularizer=ms.WatermarkRegularizer(key)
    )(inputs)
    model = ms.SecureModel(inputs, keras.layers.Dense(10)(hidden))
    attack = ms.attacks.PGD(epsilon=0.05, steps=2) if adversarial else None
    model.compile(
        ms.DPOptimizer(keras.optimizers.Adam(3e-3), l2_norm_clip=1.0, noise_multiplier=0.7),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({"adversarial": ms.AdversarialTraining(attack)} if adversarial else {}),
    )
    history = model.fit(
        *_flat(digits),
        batch_size=64,
        epochs=6,
        verbose=0,
        callbacks=[ms.WatermarkMonitor(key)],
    ).history
    assert history["watermark_log10_p"][-1] < -30
