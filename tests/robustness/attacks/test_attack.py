import gc
import re
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_modelsec.robustness.attacks import FGSM, PGD, RandomNoise, SeveralOutputsWarning

X = np.random.default_rng(0).random((21, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 21)


class Counting(keras.Model):
    """Counts how often Python runs its `call`: once for each trace."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return self.dense(x)


def losses(model, x, y):
    logits = np.asarray(model(x), dtype="float64")
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]


@settings(deadline=None, max_examples=25)
@given(
    arrays(np.float32, (4, 6), elements=st.floats(0, 1, width=32)),
    st.sampled_from(["linf", "l2"]),
    # Between 0 and this a step may be lost to rounding, which is warned of.
    st.just(0.0) | st.floats(2**-10, 2, width=32),
)
def test_one_step_on_a_linear_model_never_lowers_the_loss(linear, x, norm, epsilon):
    y = np.array([0, 1, 2, 0])
    found = linear["attacks"][norm]
    found.epsilon = epsilon
    adversarial = found(linear["model"], x, y)
    before, after = losses(linear["model"], x, y), losses(linear["model"], adversarial, y)
    assert (after >= before - 1e-5).all()
    delta = adversarial.astype("float64") - x
    size = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
    assert (size <= epsilon + 1e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.fixture(scope="module")
def linear():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    return {"model": model, "attacks": {norm: FGSM(0.1, norm=norm) for norm in ("linf", "l2")}}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_does_not_depend_on_the_batch(small_model, norm):
    model = small_model()
    attack = PGD(0.3, norm=norm, steps=4, random_start=False)
    whole = attack(model, X, Y)
    np.testing.assert_allclose(attack(model, X, Y, batch_size=4), whole, atol=1e-6)
    np.testing.assert_allclose(attack(model, X[5:6], Y[5:6]), whole[5:6], atol=1e-6)


def test_more_restarts_fool_at_least_as_often_and_keep_the_worst(small_model):
    model = small_model()
    y = np.asarray(model(X)).argmax(1)
    rights, values = [], []
    for restarts in (1, 8):
        attack = RandomNoise(0.25, restarts=restarts, seed=3)
        found = attack(model, X, y)
        rights.append(np.asarray(model(found)).argmax(1) == y)
        values.append(losses(model, found, y))
    # The first of the eight draws is the single one, so no example may get better.
    assert (rights[1] <= rights[0]).all()
    assert rights[1].sum() < rights[0].sum()
    both = rights[0] & rights[1]
    assert (values[1] >= values[0] - 1e-6)[both].all()


def test_misclassified_restart_is_kept_over_one_of_higher_loss():
    """Cross-entropy alone would keep the wrong one: it may be higher without a wrong prediction."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    # At 0 all three logits are nearly equal and class 0 wins; at 1 class 1 wins narrowly.
    model.set_weights([np.array([[1.5, 1.6, -9.0]]), np.array([0.02, 0.0, 0.0])])
    at_zero, at_one = losses(model, np.array([[0.0], [1.0]]), np.array([0, 0]))
    assert at_zero > at_one
    attack = RandomNoise(0.5, restarts=30, seed=1)
    found = attack(model, np.full((4, 1), 0.5, "float32"), np.zeros(4, "int64"))
    assert (np.asarray(model(found)).argmax(1) == 1).all()


def test_targeted_attack_reaches_the_class_it_is_given(blobs, linear_model):
    model = linear_model(scale=20)
    goal = (blobs.y + 1) % 4
    found = PGD(0.4, steps=10, targeted=True)(model, blobs.x, goal)
    assert (np.asarray(model(found)).argmax(1) == goal).mean() > 0.95


def test_epsilon_changes_without_a_new_trace():
    model = Counting()
    attack = FGSM(0.1)
    attack(model, X, Y)
    traced = model.calls
    attack.epsilon = 0.3
    found = attack(model, X, Y)
    assert model.calls == traced
    assert abs(np.abs(found - X).max() - 0.3) < 1e-6


def test_any_number_of_examples_needs_one_trace():
    model = Counting()
    attack = PGD(0.1, steps=3)
    attack(model, X, Y, batch_size=4)
    traced = model.calls
    attack(model, X, Y)
    attack(model, X[:7], Y[:7], batch_size=5)
    assert model.calls == traced


def test_weights_changed_by_training_are_seen(small_model):
    model = small_model()
    attack = FGSM(0.1)
    before = attack(model, X, Y)
    model.set_weights([-w for w in model.get_weights()])
    assert not np.array_equal(attack(model, X, Y), before)


def test_new_loss_after_compile_is_seen():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    attack = FGSM(0.1)
    rows = np.tile([0.5, 0.5, 0.0], (len(Y), 1))  # name no class, so that the loss is followed
    model.compile(loss=lambda y, p: keras.ops.sum(p, axis=-1))
    up = attack(model, X, rows)
    model.compile(loss=lambda y, p: -keras.ops.sum(p, axis=-1))
    down = attack(model, X, rows)
    np.testing.assert_allclose(np.sign(up - X)[:, 0], -np.sign(down - X)[:, 0])


def test_changed_setting_is_seen(small_model):
    model = small_model()
    attack = PGD(0.3, steps=1, step_size=0.01, random_start=False)
    attack(model, X, Y)
    attack.steps = 3
    assert np.abs(attack(model, X, Y) - X).max() > 0.02


def test_attack_keeps_no_model_alive(small_model):
    model = small_model()
    attack = PGD(0.1, steps=2)
    attack(model, X, Y)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_long_loop_equals_the_short_one_repeated(small_model):
    model = small_model()
    long = PGD(0.5, steps=130, step_size=0.001, random_start=False)(model, X, Y)
    short, point = PGD(0.5, steps=65, step_size=0.001, random_start=False), X
    for _ in range(2):
        point = short(model, point, Y)
    np.testing.assert_allclose(long, point, atol=1e-5)


def test_model_and_its_metrics_are_left_as_they_were():
    inputs = keras.Input((6,))
    normal = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    hidden = keras.layers.Dropout(0.5)(normal)
    outputs = [keras.layers.Dense(3, name=name)(hidden) for name in ("a", "b")]
    model = keras.Model(inputs, outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", [crossentropy, crossentropy])
    model.fit(X, [Y, Y], verbose=0)
    before = [v.numpy() for v in model.variables + model.metrics_variables]
    PGD(0.1, steps=3).run(model, X, [Y, Y])
    after = [v.numpy() for v in model.variables + model.metrics_variables]
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)


def test_half_precision_keeps_more_gradients_than_a_mean_loss():
    """Summing the loss matters: a mean over the batch underflows in float16."""
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((32,))
    hidden = keras.layers.Dense(32, activation="tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="zeros")(hidden))
    kernel = np.random.default_rng(0).normal(0, 2e-5, (32, 3))
    model.layers[-1].set_weights([kernel, np.zeros(3)])
    x = np.random.default_rng(0).random((512, 32)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 512)
    found = FGSM(0.1, bounds=None)(model, x, y, batch_size=512)
    points = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(points)
        mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, model(points))
    lost = (tape.gradient(mean, points).numpy() == 0).mean()
    assert lost > 0.2
    assert (found == x).mean() < 0.02


def test_uncompiled_softmax_and_logit_models_agree(small_model):
    model = small_model()
    twin = small_model("softmax")
    twin.set_weights(model.get_weights())
    attack = PGD(0.2, steps=3, random_start=False)
    np.testing.assert_allclose(attack(twin, X, Y), attack(model, X, Y), atol=1e-5)
    rows = keras.utils.to_categorical(Y, 3)
    np.testing.assert_allclose(attack(model, X, rows), attack(model, X, Y), atol=1e-5)


def test_rows_that_do_not_sum_to_one_are_refused_without_a_loss(small_model):
    with pytest.raises(ValueError, match=r"rows that sum to 1.*binary_crossentropy"):
        FGSM(0.1)(small_model(), X, np.ones((21, 3), "float32"))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("where", ["first", "last"])
def test_class_numbers_that_a_compiled_model_does_not_have_are_refused(where, outputs):
    """Before the model has trained, so that its loss has not been built either."""
    inputs = keras.Input((6,))
    heads = [keras.layers.Dense(3, activation="softmax")(inputs) for _ in range(outputs)]
    model = keras.Model(inputs, heads if outputs > 1 else heads[0])
    model.compile(loss=["sparse_categorical_crossentropy"] * outputs)
    x, y = np.tile(X, (3, 1)), np.zeros(63, "int64")
    y[0 if where == "first" else -1] = 3
    with pytest.raises(ValueError, match=r"class numbers from 0 to 2.*from 0 to 3"):
        FGSM(0.1)(model, x, [y] * outputs if outputs > 1 else y)


def test_regression_without_a_loss_is_refused():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match=r"0 and 1.*one output unit.*regression"):
        FGSM(0.1)(model, X, X[:, 0])


def test_regression_with_its_loss_is_attacked():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(loss="mse")
    found = FGSM(0.1)(model, X, X[:, 0])
    before = (np.asarray(model(X))[:, 0] - X[:, 0]) ** 2
    after = (np.asarray(model(found))[:, 0] - X[:, 0]) ** 2
    assert (after >= before - 1e-6).all()
    assert after.mean() > before.mean()


def test_restarts_without_a_random_start_are_refused():
    with pytest.raises(ValueError, match=r"`restarts` must be 1 without a random start"):
        PGD(0.1, random_start=False, restarts=2)


def test_run_eagerly_model_is_attacked_eagerly_with_the_same_result(small_model):
    model = small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    attack = PGD(0.2, steps=3, random_start=False)
    model.compile(loss=loss)
    compiled = attack(model, X, Y)
    model.compile(loss=loss, run_eagerly=True)
    np.testing.assert_allclose(attack(model, X, Y), compiled, atol=1e-6)


def test_xla_gives_the_same_result(small_model):
    model = small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    attack = PGD(0.2, steps=3, random_start=False)
    model.compile(loss=loss, jit_compile=False)
    plain = attack(model, X, Y)
    model.compile(loss=loss, jit_compile=True)
    np.testing.assert_allclose(attack(model, X, Y), plain, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_model_with_several_outputs_is_attacked_with_a_warning_that_names_them(compiled):
    inputs = keras.Input((6,))
    outputs = [keras.layers.Dense(3, name=name)(inputs) for name in ("kind", "colour")]
    model = keras.Model(inputs, outputs)
    names = "'output_0' (weight 1), 'output_1' (weight 1)"
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss={"kind": loss, "colour": loss}, loss_weights={"kind": 1, "colour": 0.5})
        names = "'kind' (weight 1), 'colour' (weight 0.5)"
    result = FGSM(0.1).run(model, X, [Y, Y])
    assert len(result.followed) == 2
    with pytest.warns(SeveralOutputsWarning, match=re.escape(names)):
        FGSM(0.1)(model, X, [Y, Y])
    assert RandomNoise(0.1).run(model, X, [Y, Y]).followed == ()


def test_output_without_a_loss_is_not_named_as_attacked():
    inputs = keras.Input((6,))
    outputs = {name: keras.layers.Dense(3, name=name)(inputs) for name in ("kind", "colour")}
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss={"kind": loss, "colour": None})
    assert FGSM(0.1).run(model, X, {"kind": Y, "colour": Y}).followed == (("kind", 1.0),)
