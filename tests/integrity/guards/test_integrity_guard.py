"""The callback in real runs: who is caught, who is left alone, what is restored."""

import ctypes
import datetime

import keras
import numpy as np
import pytest
from keras import layers

import keras_modelsec as ms
from keras_modelsec._core import backend
from keras_modelsec.errors import (
    SignatureError,
    TamperedModelError,
    TamperedWeightsError,
    UntrustedKeyError,
)
from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard
from keras_modelsec.integrity.signing.signing import sign

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = np.zeros((64, 2), "float32")
ALWAYS = {"overhead": 0.99, "every_steps": 1}  # every leaf and, as near as may be, every gap


def make_model(**compile_options):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(300, name="frozen", trainable=False),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5),
            layers.Dense(2, name="trained"),
        ]
    )
    model.compile("adam", "mse", **compile_options)
    return model


class At(keras.callbacks.Callback):
    """Calls `act(model)` at one of Keras's hooks: once, or from then on each time."""

    def __init__(self, hook, act, when=1, *, again=False):
        super().__init__()
        self.seen = 0

        def call(*_, **__):
            self.seen += 1
            if self.seen == when + 1 or (again and self.seen > when):
                act(self.model)

        setattr(self, hook, call)


def nudge(name, index=0):
    """Changes one value of a layer's weight by a little, through Keras."""

    def act(model):
        variable = model.get_layer(name).weights[index]
        value = keras.ops.convert_to_numpy(variable).copy()
        value.reshape(-1)[-1] += 1e-6
        variable.assign(value)

    return act


def flip_bit(name, dtype=None):
    """Flips one bit of a weight where it lies in memory, past Keras and TensorFlow."""

    def act(model):
        weights = model.get_layer(name).weights
        variable = next(v for v in weights if dtype in (None, v.dtype))
        (content,) = backend.variable_contents(variable)
        memory = np.frombuffer(backend.memory_of(content), np.uint8)
        ctypes.c_uint8.from_address(memory.ctypes.data + memory.size - 1).value ^= 1

    return act


def kernel(model, name):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel).copy()


def run(kind, model, *callbacks, **options):
    options = {"batch_size": 8, "verbose": 0, "callbacks": list(callbacks), **options}
    if kind == "fit":
        return model.fit(X, Y, **options)
    if kind == "evaluate":
        return model.evaluate(X, Y, **options)
    return model.predict(X, **options)


def load(path):
    model = keras.models.load_model(path, compile=False)
    model.compile("adam", "mse")
    return model


PREFIX = {"fit": "train", "evaluate": "test", "predict": "predict"}


@pytest.fixture
def signed(tmp_path, key):
    model = make_model()
    path = tmp_path / "model.keras"
    model.save(path)
    sign(path, key)
    return model, path


@pytest.mark.parametrize("kind", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("change", [nudge("frozen"), flip_bit("frozen")], ids=["assign", "flip"])
def test_a_changed_frozen_weight_stops_the_run_in_that_step_and_is_named(kind, change):
    model = make_model()
    culprit = At(f"on_{PREFIX[kind]}_batch_end", change)
    guard = IntegrityGuard(**ALWAYS)
    with pytest.raises(TamperedWeightsError, match=r"'layers/dense/vars/0'") as caught:
        run(kind, model, culprit, guard)
    assert caught.value.tensors == ("layers/dense/vars/0",)
    assert isinstance(caught.value, TamperedModelError)
    assert culprit.seen == 2
    assert guard.violations == 1


@pytest.mark.parametrize("kind", ["fit", "evaluate", "predict"])
def test_the_end_of_a_short_run_is_checked_whatever_the_pace(kind):
    culprit = At(f"on_{PREFIX[kind]}_batch_end", nudge("frozen"), when=7)
    with pytest.raises(TamperedWeightsError):
        run(kind, make_model(), culprit, IntegrityGuard(overhead=0.0))
    assert culprit.seen == 8
    run(kind, make_model(), IntegrityGuard(overhead=0.0, check_ends=False))


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
@pytest.mark.parametrize("name", ["norm", "trained"])
def test_outside_of_fit_every_weight_must_be_constant(kind, name):
    culprit = At(f"on_{PREFIX[kind]}_batch_end", nudge(name, -1))
    with pytest.raises(TamperedWeightsError):
        run(kind, make_model(), culprit, IntegrityGuard(**ALWAYS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 4},
    ],
)
def test_an_honest_training_with_validation_passes(options):
    model, guard = make_model(**options), IntegrityGuard(watch_optimizer=True, **ALWAYS)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9.0)
    history = run("fit", model, plateau, guard, epochs=3, validation_split=0.25).history
    assert guard.violations == 0
    assert guard.gaps >= 4
    assert history["integrity_violations"] == [0, 0, 0]
    assert history["integrity_checks"] == sorted(history["integrity_checks"])
    assert history["integrity_checks"][0] >= 1
    age = datetime.datetime.now(datetime.UTC) - guard.last_full_check
    assert age < datetime.timedelta(minutes=1)


def test_a_guard_changes_no_bit_of_a_training():
    results = []
    for callbacks in ([], [IntegrityGuard(watch_optimizer=True, **ALWAYS)]):
        keras.utils.set_random_seed(3)
        model = make_model()
        run("fit", model, *callbacks, epochs=2, shuffle=False)
        results.append([w.tobytes() for w in model.get_weights()])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("hook", "name"),
    [("on_epoch_begin", "norm"), ("on_test_begin", "trained"), ("on_test_batch_end", "norm")],
)
def test_who_writes_to_trained_weights_between_epochs_is_found(name, hook):
    guard = IntegrityGuard()
    with pytest.raises(TamperedWeightsError, match="between two"):
        run("fit", make_model(), At(hook, nudge(name, -1)), guard, epochs=3, validation_split=0.25)


def test_who_writes_to_trained_weights_between_steps_is_found():
    # Which gaps are looked at rests on time, but for those where an epoch ends: writing in each is
    # found in any case.
    culprit = At("on_train_batch_begin", nudge("trained"), when=9, again=True)
    with pytest.raises(TamperedWeightsError, match=r"layers/dense_1/vars/0"):
        run("fit", make_model(), culprit, IntegrityGuard(**ALWAYS), epochs=3)
    run("fit", make_model(), culprit, IntegrityGuard(watch_training=False), epochs=3)


def test_who_writes_to_the_optimizer_is_found_if_asked():
    def act(model):
        model.optimizer.variables[-1].assign_add(np.ones((2,), "float32"))

    guard = IntegrityGuard(watch_optimizer=True)
    with pytest.raises(TamperedWeightsError, match="optimizer/"):
        run("fit", make_model(), At("on_epoch_begin", act), guard, epochs=3)
    run("fit", make_model(), At("on_epoch_begin", act), IntegrityGuard(), epochs=3)


@pytest.mark.parametrize(
    ("kind", "change"),
    [("fit", nudge("frozen")), ("predict", flip_bit("frozen"))],
    ids=["fit-assign", "predict-flip"],
)
def test_restoring_brings_back_the_signed_values(signed, public, kind, change):
    model, path = signed
    before = kernel(model, "frozen")
    guard = IntegrityGuard(path, public, on_mismatch="restore", **ALWAYS)
    culprit = At(f"on_{PREFIX[kind]}_batch_end", change)
    with pytest.warns(RuntimeWarning, match=r"'layers/dense/vars/0'. Restored"):
        run(kind, model, culprit, guard)
    np.testing.assert_array_equal(kernel(model, "frozen"), before)
    assert guard.violations == 1


def test_restoring_without_a_file_brings_back_the_first_values():
    model = make_model()
    before, guard = kernel(model, "frozen"), IntegrityGuard(on_mismatch="restore")
    guard.check(model)
    flip_bit("frozen")(model)
    with pytest.warns(RuntimeWarning, match="Restored"):
        guard.check()
    np.testing.assert_array_equal(kernel(model, "frozen"), before)


def test_restoring_trained_weights_brings_back_what_the_last_step_left():
    model, kept = make_model(), []
    remember = At("on_epoch_end", lambda m: kept.append(kernel(m, "trained")), when=0)
    culprit = At("on_epoch_end", nudge("trained"), when=0)
    after = At("on_train_batch_begin", lambda m: kept.append(kernel(m, "trained")), when=8)
    guard = IntegrityGuard(overhead=0.99, on_mismatch="restore")
    with pytest.warns(RuntimeWarning, match="Restored"):
        run("fit", model, guard, remember, culprit, after, epochs=2)
    np.testing.assert_array_equal(kept[0], kept[1])


def test_a_callable_is_told_and_the_run_goes_on():
    errors, model = [], make_model()
    guard = IntegrityGuard(on_mismatch=errors.append, **ALWAYS)
    run("predict", model, At("on_predict_batch_end", nudge("frozen"), when=6), guard)
    assert {error.tensors for error in errors} == {("layers/dense/vars/0",)}
    assert guard.violations == len(errors) >= 2


def test_a_model_that_is_not_the_signed_one_is_refused_at_the_beginning(signed, public):
    model, path = signed
    for kind in ("fit", "evaluate", "predict"):
        run(kind, load(path), IntegrityGuard(path, public))
    nudge("frozen")(model)
    culprit = At("on_predict_batch_begin", lambda model: None)
    with pytest.raises(TamperedWeightsError, match=r"'layers/dense/vars/0'"):
        run("predict", model, culprit, IntegrityGuard(path, public))
    assert culprit.seen == 0
    run("fit", load(path), IntegrityGuard(path, public))


def test_a_weights_file_is_a_reference_too(tmp_path, key, public):
    model, path = make_model(), tmp_path / "model.weights.h5"
    model.save_weights(path)
    sign(path, key)
    guard = IntegrityGuard(path, public)
    run("predict", model, guard)
    nudge("trained")(model)
    with pytest.raises(TamperedWeightsError):
        run("predict", model, guard)


def test_another_architecture_than_the_signed_one_is_refused(signed, public):
    guard = IntegrityGuard(signed[1], public)
    bigger = keras.Sequential([*make_model().layers, layers.Dense(2)])
    bigger.build((None, 6))
    with pytest.raises(TamperedWeightsError, match=r"Added: 'layers/dense_2/vars/0'"):
        guard.check(bigger)
    smaller = keras.Sequential(make_model().layers[:2])
    smaller.build((None, 6))
    with pytest.raises(TamperedWeightsError, match=r"Missing: 'layers/dense_1/vars/0'"):
        guard.check(smaller)
    other = keras.Sequential(
        [layers.Dense(299), layers.BatchNormalization(), layers.Dropout(0), layers.Dense(2)]
    )
    other.build((None, 6))
    with pytest.raises(TamperedWeightsError, match=r"signed float32\[6, 300\]"):
        guard.check(other)


def test_a_damaged_file_is_never_restored_from(signed, public):
    model, path = signed
    guard = IntegrityGuard(path, public, on_mismatch="restore")
    guard.check(model)
    data = bytearray(path.read_bytes())
    place = data.index(kernel(model, "frozen").tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    nudge("frozen")(model)
    now = kernel(model, "frozen")
    with pytest.raises(TamperedWeightsError, match="no longer holds what was signed"):
        guard.check()
    np.testing.assert_array_equal(kernel(model, "frozen"), now)
    path.unlink()
    with pytest.raises(TamperedWeightsError, match="cannot be read"):
        guard.check()


def test_a_statement_that_is_missing_forged_or_by_another_key_is_refused(signed, other_key, public):
    _, path = signed
    with pytest.raises(UntrustedKeyError):
        IntegrityGuard(path, other_key.verifying_key)
    place = path.with_name(path.name + ".modelsec.json")
    place.write_bytes(place.read_bytes().replace(b'"payload":"', b'"payload":"AAAA', 1))
    with pytest.raises(SignatureError):
        IntegrityGuard(path, public)
    place.unlink()
    with pytest.raises(SignatureError, match=r"no file at .*Sign the model"):
        IntegrityGuard(path, public)


def test_the_first_look_is_kept_from_run_to_run_until_reset():
    model, guard = make_model(), IntegrityGuard(check_ends=True)
    run("evaluate", model, guard)
    run("fit", model, guard)
    run("evaluate", model, guard)
    nudge("trained")(model)
    with pytest.raises(TamperedWeightsError, match=r"IntegrityGuard\.reset"):
        run("predict", model, guard)
    guard.reset()
    run("predict", model, guard)
    run("predict", make_model(), guard)  # another model


def test_a_broken_off_training_leaves_the_guard_usable():
    model, guard = make_model(), IntegrityGuard(overhead=0.99)

    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("fit", model, At("on_train_batch_end", fail, when=3), guard)
    with pytest.raises(TamperedWeightsError):
        run("evaluate", model, At("on_test_batch_end", nudge("trained")), guard)


def test_a_variable_that_was_replaced_by_another_is_found():
    model, guard = make_model(), IntegrityGuard()
    guard.check(model)
    layer = model.get_layer("frozen")
    layer._tracker.unlock()
    twin = keras.Variable(kernel(model, "frozen") + 1, name="kernel")
    layer._untrack_variable(layer.kernel)
    bias = layer.bias
    layer._untrack_variable(bias)
    layer._kernel = twin
    layer._track_variable(bias)
    with pytest.raises(TamperedWeightsError, match=r"layers/dense/vars/0"):
        guard.check()


class Counting(layers.Layer):
    """Counts its calls in a variable, as layers of users do."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


def test_what_changes_by_design_must_be_named_unless_keras_changes_it():
    def model():
        return keras.Sequential([keras.Input((6,)), Counting(name="mine"), layers.Dense(2)])

    with pytest.raises(
        TamperedWeightsError, match=r"name it in `changing`.*layers/counting/vars/0"
    ):
        run("predict", model(), IntegrityGuard())
    run("predict", model(), IntegrityGuard(changing=["layers/counting/*"]))
    named = model()
    run("predict", named, IntegrityGuard(changing=[named.get_layer("mine")]))


def test_keras_layers_that_keep_state_are_known():
    model = keras.Sequential(
        [
            keras.Input((3, 2), batch_size=8),
            layers.SpectralNormalization(layers.Dense(4, trainable=False)),
            layers.GaussianNoise(0.1),
            layers.LSTM(3, stateful=True),
            layers.BatchNormalization(),
        ]
    )
    model.compile("sgd", "mse")
    x, y = np.ones((64, 3, 2), "float32"), np.zeros((64, 3), "float32")
    guard = IntegrityGuard(**ALWAYS)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[guard])
    model.evaluate(x, y, batch_size=8, verbose=0, callbacks=[guard])
    model.predict(x, batch_size=8, verbose=0, callbacks=[guard])
    assert guard.violations == 0


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_kernels_are_compared_in_fit_too(mode):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, name="q"), layers.Dense(2, name="trained")]
    )
    model.get_layer("q").quantize(mode)
    model.compile("sgd", "mse")
    guard = IntegrityGuard(**ALWAYS)
    run("fit", model, guard)
    with pytest.raises(TamperedWeightsError, match=r"layers/dense/vars/0"):
        run("fit", model, At("on_train_batch_end", flip_bit("q", "int8")), guard)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_other_precisions_work(policy):
    keras.config.set_dtype_policy(policy)
    model, guard = make_model(), IntegrityGuard(on_mismatch="restore", **ALWAYS)
    run("fit", model, guard, epochs=2)
    before = kernel(model, "frozen")
    guard.check()
    flip_bit("frozen")(model)
    with pytest.warns(RuntimeWarning, match="Restored"):
        guard.check()
    assert kernel(model, "frozen").tobytes() == before.tobytes()


def test_nested_models_and_shared_layers():
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared, layers.Dense(6, name="in")])
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(shared(inner(inner(inputs)))))
    guard = IntegrityGuard()
    guard.check(model)
    model.compile("sgd", "mse")
    run("predict", model, guard)
    nudge("in")(inner)
    with pytest.raises(TamperedWeightsError, match=r"sequential"):
        run("predict", model, guard)


class Late(keras.Model):
    """Knows its weights when it is called."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, name="late")

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("kind", ["fit", "evaluate", "predict"])
def test_a_model_that_is_not_built_yet_is_guarded_from_its_first_step(kind):
    model = Late()
    model.compile("sgd", "mse")
    guard = IntegrityGuard(**ALWAYS)
    hook = "on_epoch_end" if kind == "fit" else f"on_{PREFIX[kind]}_batch_end"
    culprit = At(hook, lambda m: m.dense.kernel.assign_add(np.ones((6, 2))))
    options = {"epochs": 4} if kind == "fit" else {}
    with pytest.raises(TamperedWeightsError):
        run(kind, model, culprit, guard, **options)


def test_every_replica_is_compared(mirrored_strategy):
    with mirrored_strategy.scope():
        model = make_model()
    guard = IntegrityGuard(**ALWAYS)
    run("fit", model, guard, epochs=2)
    guard.check(model)
    contents = backend.variable_contents(model.get_layer("frozen").kernel)
    assert len(contents) == 2
    memory = np.frombuffer(backend.memory_of(contents[1]), np.uint8)
    ctypes.c_uint8.from_address(memory.ctypes.data).value ^= 1
    with pytest.raises(TamperedWeightsError):
        guard.check()


def test_sparse_updates_of_embeddings_are_no_tampering():
    model = keras.Sequential([keras.Input((3,)), layers.Embedding(50, 4), layers.Flatten()])
    model.compile("sgd", "mse")
    x, y = np.ones((64, 3)), np.zeros((64, 12))
    guard = IntegrityGuard(overhead=0.99)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[guard])
    assert guard.gaps > 2
    assert guard.violations == 0


def test_activation_violations_are_published_with_the_others():
    model = make_model()
    guarded = ms.guard_activations(model, X / 10, margin=0.0)
    guarded.compile("sgd", "mse")
    history = guarded.fit(
        X, Y, validation_data=(X, Y), epochs=2, verbose=0, callbacks=[IntegrityGuard()]
    ).history
    counts = history["activation_violations"]
    assert 0 < counts[0] < counts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "model.keras"}, "`trusted_keys` must be given"),
        ({"trusted_keys": "owner.pub"}, "`trusted_keys` must be given"),
        ({"on_mismatch": "ignore"}, "'raise', 'restore' or a callable.*'ignore'"),
        ({"overhead": 1.0}, "`overhead` must be"),
        ({"every_steps": 0}, "`every_steps` must be"),
        ({"every_seconds": 0.0}, "`every_seconds` must be"),
        ({"changing": "layers/*"}, "`changing` must be a list"),
        ({"check_ends": 1}, "`check_ends` must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        IntegrityGuard(**options)
    with pytest.raises(ValueError, match="must be a built model"):
        IntegrityGuard().check(Late())
