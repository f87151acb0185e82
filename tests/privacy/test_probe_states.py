"""The probe beyond the first step: other weights, later steps, and the update itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec._core.keras_internals import has_own_schedule
from keras_modelsec.defenses import Defense
from keras_modelsec.errors import UnsupportedModelError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(8, 3)).astype("float32")
Y = GENERATOR.normal(size=(8, 1)).astype("float32")


def _compiled(hidden=None, *, build=ms.SecureModel, head=None, inner="sgd", steps=None, **options):
    inputs = keras.Input((3,))
    x = inputs if hidden is None else hidden(inputs)
    head = head or keras.layers.Dense(1, kernel_initializer="zeros", name="dense")
    model = build(inputs, head(x))
    optimizer = ms.DPOptimizer(inner, 1.0, 1.0, gradient_accumulation_steps=steps)
    model.compile(optimizer, "mse", **options)
    return model


def _refused(model, match):
    before = model.get_weights()
    with pytest.raises(UnsupportedModelError, match=match):
        model.fit(X, Y, verbose=0)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


# --- nil at the weights that training starts with ---


class MeanPrediction(Defense):
    def loss(self, model, batch, y_pred, state):
        return model.example_losses(batch, y_pred) + 10 * ops.square(ops.mean(y_pred))


class KeepsPredictions(Defense):
    def new_state(self, model):
        return keras.Variable("zeros", (1,), trainable=False)

    def after_update(self, model, batch, extra, state):
        state.assign(ops.mean(model(batch.x), axis=0))


class Gated(keras.layers.Layer):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def build(self, shape):
        self.gamma = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        return x + self.gate(self.gamma) * ops.stop_gradient(ops.mean(x, axis=0))


class UsedOutside(keras.layers.Layer):
    """Uses a kernel of another layer, where the gradient that it gets by that is not seen."""

    def __init__(self, other):
        super().__init__()
        self.others = [other]  # built by then

    def call(self, x):
        return ops.matmul(x, self.others[0].kernel)


@pytest.mark.parametrize(
    ("defense", "match"), [(MeanPrediction, "by the loss"), (KeepsPredictions, "updates from")]
)
def test_what_a_head_of_zeros_hides_is_refused(defense, match):
    _refused(_compiled(adversarial=defense()), match)


@pytest.mark.parametrize("gate", [ops.relu, lambda v: ops.relu(-v), ops.square])
def test_what_a_scale_of_zero_hides_is_refused(gate):
    _refused(_compiled(Gated(gate), head=keras.layers.Dense(1)), "independently")


def test_weight_used_outside_of_its_layer_before_a_head_of_zeros_is_refused():
    def hidden(inputs):
        first = keras.layers.Dense(3, name="first")
        x = first(inputs)
        return UsedOutside(first)(x)

    _refused(_compiled(hidden), "add up")


def test_metric_that_keeps_what_a_head_of_zeros_hides_is_refused():
    class Keeps(ms.SecureModel):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.get_layer("dense").bias.assign(ops.mean(y_pred, axis=0))
            return {}

    _refused(_compiled(build=Keeps), "updates from")


def test_weights_moved_by_the_probe_are_put_back_exactly_after_an_error(monkeypatch):
    seed = keras.random.SeedGenerator(3)

    class Draws(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = seed

        def call(self, x):
            return x + 1e-30 * keras.random.normal(ops.shape(x), seed=self.seed)

    model = _compiled(Draws(), adversarial=MeanPrediction(), head=keras.layers.Dense(1, "tanh"))
    model.layers[-1].kernel.assign(ops.zeros_like(model.layers[-1].kernel))
    before = np.asarray(seed.state)
    _refused(model, "by the loss")
    np.testing.assert_array_equal(seed.state, before)


def test_model_that_runs_at_its_own_weights_alone_is_refused():
    class Demands(Gated):
        def call(self, x):
            tf.debugging.assert_equal(self.gamma, 0.0)
            return x + self.gamma

    _refused(_compiled(Demands(None)), "weights moved a little")


# --- at certain steps ---


class AtSteps(Defense):
    """Centres the batches of certain steps, counted by itself or by the optimizer."""

    def __init__(self, acts, *, counts=True):
        self.acts, self.counts = acts, counts

    def new_state(self, model):
        return keras.Variable(0, dtype="int32", trainable=False) if self.counts else None

    def prepare(self, model, batch, state):
        step = ops.cast(state if self.counts else model.optimizer.iterations, "int64")
        if self.counts:
            state.assign_add(1)
        centred = batch.x - ops.mean(batch.x, axis=0)
        return batch.replace(x=ops.where(self.acts(step), centred, batch.x))


def _at_each(period):
    return lambda step: ops.logical_and(step > 0, ops.equal(step % period, 0))


@pytest.mark.parametrize(
    "defense",
    [
        AtSteps(lambda step: ops.equal((step + 1) % 10, 0)),
        AtSteps(_at_each(7), counts=False),
        AtSteps(_at_each(500), counts=False),
    ],
    ids=["tenth", "seventh_iteration", "five_hundredth_iteration"],
)
def test_coupling_at_every_few_steps_is_refused(defense):
    _refused(_compiled(adversarial=defense), "a hook before the forward pass")


@pytest.mark.parametrize("acts", [lambda n: n > 8, lambda n: ops.equal(n % 10, 0)])
def test_metric_that_keeps_data_at_later_calls_is_refused(acts):
    class Late(ms.SecureModel):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.seen.assign_add(1.0)
            bias = self.get_layer("dense").bias
            bias.assign(ops.where(acts(self.seen), ops.mean(x), bias))
            return super().compute_metrics(x, y, y_pred, sample_weight)

    model = _compiled(build=Late)
    model.seen = model.add_weight(shape=(), initializer="ones", trainable=False)
    model.compile(ms.DPOptimizer("sgd", 1.0, 1.0), "mse")
    _refused(model, "updates from")


# --- in the update ---

KEPT = {}


class Keeps(keras.layers.Layer):
    def call(self, x):
        KEPT["x"] = x
        return x


def _of_kept(weight):
    kept = KEPT["x"]
    is_data = tf.is_tensor(kept) and not isinstance(kept, keras.KerasTensor)
    return ops.reshape(ops.mean(kept, axis=0), (3, 1)) if is_data else 0.0 * weight


class OfRegularizer(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return ops.sum(weight * _of_kept(weight))


class Weakly(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return ops.sum(weight * (1e3 + 0.05 * _of_kept(weight)))


class OfConstraint(keras.constraints.Constraint):
    def __call__(self, weight):
        return _of_kept(weight) + 0.0 * weight


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel_regularizer": OfRegularizer()}, "a regularizer of a weight"),
        ({"kernel_regularizer": Weakly()}, "a regularizer of a weight"),
        ({"kernel_constraint": OfConstraint()}, "the constraint of the weight"),
    ],
)
def test_what_the_update_takes_from_the_data_is_refused(options, match):
    _refused(_compiled(Keeps(), head=keras.layers.Dense(1, **options)), match)


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, of):
        self.of = of

    def __call__(self, step):
        return 0.01 + ops.cast(self.of(), "float32")


def test_learning_rate_from_the_data_is_refused():
    rate = Rate(lambda: ops.mean(_of_kept(ops.zeros((3, 1)))))
    _refused(_compiled(Keeps(), inner=keras.optimizers.SGD(rate)), "the schedule of the learn")


def test_only_schedules_that_are_not_those_of_keras_are_looked_at():
    decay = keras.optimizers.schedules.CosineDecay(0.1, 10)
    rates = (0.1, decay, Rate(lambda: 1.0), lambda: 0.5)
    found = [has_own_schedule(keras.optimizers.SGD(rate)) for rate in rates]
    assert found == [False, False, True, True]


def test_learning_rate_from_a_metric_is_refused():
    model = _compiled()
    rate = keras.optimizers.SGD(Rate(lambda: model.metrics[0].result()))
    model.compile(ms.DPOptimizer(rate, 1.0, 1.0), "mse")
    _refused(model, "must not use its metrics")


class Copies(Defense):
    def __init__(self, secret):
        self.secret = secret

    def new_state(self, model):
        return keras.Variable("zeros", (3, 1), trainable=False)

    def after_update(self, model, batch, extra, state):
        state.assign(state + 0.0 * ops.cast(ops.sum(self.secret(model.optimizer)), "float32"))


@pytest.mark.parametrize(
    "secret",
    [lambda o: o._sums._totals[0], lambda o: o._noise._generator.state],
    ids=["sums_without_noise", "state_of_the_noise"],
)
def test_hook_that_reads_what_only_the_optimizer_may_know_is_refused(secret):
    _refused(_compiled(adversarial=Copies(secret), steps=4), "belong to the DPOptimizer alone")


def test_data_printed_to_a_file_are_refused(tmp_path):
    def printing(x):
        tf.print(x, output_stream=f"file://{tmp_path}/data")
        return x

    _refused(_compiled(keras.layers.Lambda(printing)), "PrintV2")


# --- what must not be refused ---


def test_penalties_constraints_schedules_and_zeros_train():
    head = keras.layers.Dense(
        1,
        kernel_initializer="zeros",
        kernel_regularizer="l2",
        kernel_constraint=keras.constraints.UnitNorm(),
        bias_constraint="non_neg",
    )
    inner = keras.optimizers.SGD(Rate(lambda: inner.iterations))
    _compiled(Gated(ops.zeros_like), head=head, inner=inner).fit(X, Y, verbose=0)
