"""Defences written with the hooks: TRADES and free training, against loops written by hand.

Without noise and with fixed seeds a step is deterministic, so each must give the weights of its
loop, plain and private, and not merely run.
"""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec.defenses import Defense
from keras_modelsec.errors import NotPrivateError, UnsupportedModelError

layers = keras.layers
GENERATOR = np.random.default_rng(5)
X = GENERATOR.uniform(0.1, 0.9, (12, 8)).astype("float32")
Y = GENERATOR.integers(0, 3, 12)
WEIGHT = np.array([1, 0, 2, 1, 0.5, 0, 1, 1, 2, 0, 1, 1], "float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CLIP, RATE = 0.3, 0.5


@keras.saving.register_keras_serializable("tests_defenses")
class TRADES(Defense):
    """Cross-entropy on clean inputs plus `beta` times the divergence of attacked ones.

    Reference: Zhang et al., 2019, arXiv:1901.08573 (equation 5, algorithm 1), with the L2 ball,
    whose steps do not jump with the last digit of a gradient as signs do.
    """

    def __init__(self, epsilon=0.3, steps=2, beta=6.0, seed=7):
        self.epsilon, self.steps, self.beta, self.seed = epsilon, steps, beta, seed

    def new_state(self, model):
        return keras.random.SeedGenerator(self.seed)

    def prepare(self, model, batch, state):
        clean = ops.softmax(model(batch.x, training=False))
        moved = 0.05 * keras.random.normal(ops.shape(batch.x), seed=state)
        for _ in range(self.steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moved)
                distance = _divergence(clean, model(batch.x + moved, training=False))
            gradient = tape.gradient(distance, moved)
            moved = moved + 0.75 * self.epsilon * gradient / _length(gradient)
            moved = moved * ops.minimum(1.0, self.epsilon / _length(moved))
        attacked = ops.stop_gradient(ops.clip(batch.x + moved, 0.0, 1.0))
        return batch.replace(aux={**batch.aux, "attacked": attacked})

    def loss(self, model, batch, y_pred, state):
        others = model(batch.aux["attacked"], training=True)
        divergence = _divergence(ops.softmax(y_pred), others)
        return model.example_losses(batch, y_pred) + self.beta * divergence

    def get_config(self):
        config = {"epsilon": self.epsilon, "steps": self.steps}
        return {**config, "beta": self.beta, "seed": self.seed}


def _length(rows):
    return ops.norm(rows, axis=1, keepdims=True)


def _divergence(p, logits):
    return ops.sum(p * (ops.log(p) - ops.log_softmax(logits)), axis=-1)


@keras.saving.register_keras_serializable("tests_defenses")
class FreeTraining(Defense):
    """Replays each batch and moves the perturbation by the gradient that the update had anyway.

    Reference: Shafahi et al., 2019, arXiv:1904.12843 (algorithm 1).
    """

    wants_input_gradients = True

    def __init__(self, epsilon=0.1, updates_per_batch=3, batch_size=4):
        self.epsilon, self.batch_size = epsilon, batch_size
        self.updates_per_batch = updates_per_batch

    def new_state(self, model):
        shape = (self.batch_size, *model.input_shape[1:])
        return keras.Variable("zeros", shape, trainable=False, name="perturbation")

    def prepare(self, model, batch, state):
        return batch.replace(x=batch.x + state[: ops.shape(batch.x)[0]])

    def after_update(self, model, batch, extra, state):
        count = ops.shape(batch.x)[0]
        moved = state[:count] + self.epsilon * ops.sign(extra.input_gradients)
        kept = state[count:]
        moved = ops.clip(moved, -self.epsilon, self.epsilon)
        state.assign(ops.concatenate([moved, kept], axis=0))

    def get_config(self):
        config = {"epsilon": self.epsilon, "batch_size": self.batch_size}
        return {**config, "updates_per_batch": self.updates_per_batch}


def _layers():
    return [
        layers.Dense(
            6,
            activation="tanh",
            kernel_initializer=keras.initializers.GlorotUniform(1),
            kernel_regularizer=keras.regularizers.L2(0.01),
        ),
        layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(2)),
    ]


def _functional(base=ms.SecureModel):
    inputs = x = keras.Input((8,))
    for layer in _layers():
        x = layer(x)
    return base(inputs, x)


def _compile(model, defense, *, private=False, loss=LOSS, noise_multiplier=0.0, **options):
    optimizer = keras.optimizers.SGD(RATE)
    if private:
        optimizer = ms.DPOptimizer(optimizer, CLIP, noise_multiplier)
    model.compile(optimizer, loss, adversarial=defense, **options)
    return model


def _fit(model, **options):
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, **options)


def _batches(sample_weight):
    for start in [0, 4, 8] * 2:
        rows = slice(start, start + 4)
        yield X[rows], Y[rows], None if sample_weight is None else sample_weight[rows]


def _update(model, losses_of, *, private, examples):
    """One step of gradient descent on the mean of `losses_of(i)`, clipped each if private."""
    weights = [v.value for v in model.trainable_variables]
    total = [np.zeros(w.shape) for w in weights]
    for i in range(examples):
        with tf.GradientTape() as tape:
            loss = losses_of(i)
        gradients = [np.asarray(g) for g in tape.gradient(loss, weights)]
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        factor = min(1.0, CLIP / norm) if private else 1.0
        total = [t + factor * g for t, g in zip(total, gradients, strict=True)]
    for weight, update in zip(weights, total, strict=True):
        penalty = 0.02 * weight.numpy() if weight is weights[0] else 0.0  # of L2(0.01)
        weight.assign(weight - RATE * (update / examples + penalty))


def _divergence_by_hand(p, logits):
    return tf.reduce_sum(p * tf.math.log(p / tf.nn.softmax(logits)), axis=1)


def _trades_by_hand(*, private, sample_weight=None):
    """Every example alone, with NumPy and a tape; only the random start is drawn as a batch."""
    model, seeds = _functional(keras.Model), keras.random.SeedGenerator(7)
    for x, y, weight in _batches(sample_weight):
        noise = np.asarray(keras.random.normal(x.shape, seed=seeds))
        attacked = []
        for i in range(len(x)):
            p = tf.nn.softmax(model(x[i : i + 1]))
            delta = 0.05 * noise[i : i + 1]
            for _ in range(2):
                delta = tf.constant(delta)
                with tf.GradientTape() as tape:
                    tape.watch(delta)
                    distance = _divergence_by_hand(p, model(x[i : i + 1] + delta))
                gradient = np.asarray(tape.gradient(distance, delta))
                delta = delta.numpy() + 0.75 * 0.3 * gradient / np.linalg.norm(gradient)
                delta *= min(1.0, 0.3 / np.linalg.norm(delta))
            attacked.append(np.clip(x[i : i + 1] + delta, 0, 1))

        def losses_of(i, x=x, y=y, weight=weight, attacked=attacked):
            logits, others = model(x[i : i + 1]), model(attacked[i])
            own = tf.nn.sparse_softmax_cross_entropy_with_logits(y[i : i + 1], logits)
            divergence = _divergence_by_hand(tf.nn.softmax(logits), others)
            return (1.0 if weight is None else weight[i]) * own + 6.0 * divergence

        _update(model, losses_of, private=private, examples=len(x))
    return model.get_weights()


def _free_by_hand():
    model, perturbation = _functional(keras.Model), np.zeros((4, 8), "float32")
    for x, y, _ in _batches(None):
        for _ in range(3):
            moved = tf.constant(x + perturbation)
            with tf.GradientTape() as tape:
                tape.watch(moved)
                loss = LOSS(y, model(moved))
            direction = np.sign(tape.gradient(loss, moved))

            def losses_of(i, moved=moved, y=y):
                return LOSS(y[i : i + 1], model(moved[i : i + 1]))

            _update(model, losses_of, private=False, examples=len(x))
            perturbation = np.clip(perturbation + 0.1 * direction, -0.1, 0.1)
    return model.get_weights(), perturbation


def _assert_equal(weights, expected, atol=2e-5):
    for actual, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=atol)


@pytest.fixture(scope="module")
def by_hand():
    return {private: _trades_by_hand(private=private) for private in (False, True)}


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"steps_per_execution": 3}])
def test_trades_gives_the_weights_of_a_loop_by_hand(private, options, by_hand):
    model = _compile(_functional(), TRADES(), private=private, **options)
    _fit(model)
    _assert_equal(model.get_weights(), by_hand[private])
    if private:
        assert model.optimizer.release_count == 6


@pytest.mark.parametrize("private", [False, True])
def test_rows_of_weight_zero_have_no_label_and_still_a_divergence(private):
    model = _compile(_functional(), TRADES(), private=private)
    _fit(model, sample_weight=WEIGHT)
    _assert_equal(model.get_weights(), _trades_by_hand(private=private, sample_weight=WEIGHT))
    other = _compile(_functional(), TRADES(), private=private)
    other.fit(
        X,
        np.where(WEIGHT > 0, Y, 0),  # another label for the rows of weight 0
        sample_weight=WEIGHT,
        **{"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0},
    )
    _assert_equal(other.get_weights(), model.get_weights(), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"steps_per_execution": 3}])
def test_free_training_gives_the_weights_of_a_loop_by_hand(options):
    model = _compile(_functional(), FreeTraining(), **options)
    _fit(model)
    weights, perturbation = _free_by_hand()
    _assert_equal(model.get_weights(), weights)
    np.testing.assert_allclose(model._adversarial_state.numpy(), perturbation, atol=1e-6)
    assert int(model.optimizer.iterations.numpy()) == 18


def test_free_training_is_refused_with_privacy_before_anything_is_released():
    model = _compile(_functional(), FreeTraining(), private=True, noise_multiplier=1.0)
    before = model.get_weights()
    with pytest.raises(NotPrivateError, match="updates_per_batch=3 from the defence FreeTraining"):
        _fit(model)
    _assert_equal(model.get_weights(), before, atol=0)
    assert model.optimizer.runs() == []


@pytest.mark.parametrize("defense", [TRADES(beta=2.0), FreeTraining(epsilon=0.2)])
def test_defense_survives_saving(defense, tmp_path):
    model = _compile(_functional(), defense)
    _fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.adversarial) is type(defense)
    assert loaded.adversarial.get_config() == defense.get_config()
    _fit(loaded, epochs=1)


def test_state_of_a_defense_is_no_weight_of_the_model(tmp_path):
    model = _compile(_functional(), FreeTraining())
    plain = _functional(keras.Model)
    assert len(model.variables) == len(plain.variables)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")


# --- what private training refuses of a defence ---


class OfTheBatch(Defense):
    def loss(self, model, batch, y_pred, state):
        return ops.mean(model.example_losses(batch, y_pred))


class Spread(Defense):
    """A value for each example, in which the others have a part."""

    def loss(self, model, batch, y_pred, state):
        values = model.example_losses(batch, y_pred)
        return values + ops.stop_gradient(ops.max(values))


class WeaklySpread(Defense):
    def loss(self, model, batch, y_pred, state):
        values = model.example_losses(batch, y_pred)
        return values + 1e-7 * ops.mean(ops.square(y_pred))


class CentredAside(Defense):
    def prepare(self, model, batch, state):
        return batch.replace(aux={"aside": batch.x - ops.mean(batch.x, axis=0)})


class Remembering(Defense):
    def new_state(self, model):
        return keras.Variable("zeros", (8,), trainable=False, name="remembered")

    def after_update(self, model, batch, extra, state):
        state.assign(ops.mean(batch.x, axis=0))


class RememberingLater(Remembering):
    def new_state(self, model):
        return super().new_state(model), keras.Variable("zeros", (), trainable=False)

    def after_update(self, model, batch, extra, state):
        mean, count = state
        count.assign_add(1.0)
        mean.assign(ops.where(count > 100, ops.mean(batch.x, axis=0), mean))


class Peeking(Defense):
    wants_input_gradients = True


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (OfTheBatch(), r"shape \(\) from the loss of the defence OfTheBatch"),
        (Spread(), "by the loss"),
        (WeaklySpread(), "by the loss"),
        (CentredAside(), "a hook before the forward pass"),
        (Remembering(), "remembered.*updates from the examples"),
        (RememberingLater(), "remembered.*updates from the examples"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Defense) else "",
)
def test_defense_that_breaks_privacy_is_refused(defense, message):
    model = _compile(_functional(), defense, private=True, noise_multiplier=1.0)
    with pytest.raises(UnsupportedModelError, match=message):
        _fit(model)
    assert model.optimizer.runs() == []


def test_input_gradients_are_refused_with_privacy():
    model = _compile(_functional(), Peeking(), private=True, noise_multiplier=1.0)
    with pytest.raises(NotPrivateError, match="wants_input_gradients=True from the defence Peek"):
        _fit(model)


class Averaging(Defense):
    """A moving average of the weights, which no data enter but by the noisy steps."""

    def new_state(self, model):
        return [keras.Variable(v, trainable=False) for v in model.trainable_variables]

    def after_update(self, model, batch, extra, state):
        for average, weight in zip(state, model.trainable_variables, strict=True):
            average.assign(0.5 * average + 0.5 * weight)


class Weighing(Defense):
    """Twice the loss for some of the examples."""

    def new_state(self, model):
        return keras.Variable([2.0, 1.0], trainable=False)

    def loss(self, model, batch, y_pred, state):
        weights = ops.where(batch.x[:, 0] > 0.5, state[0], state[1])
        return weights * model.example_losses(batch, y_pred)


@pytest.mark.parametrize("private", [False, True])
def test_loss_of_a_defense_is_the_same_on_two_replicas(private, mirrored_strategy):
    results = []
    for make_scope in (mirrored_strategy.scope, lambda: keras.name_scope("one")):
        with make_scope():
            model = _compile(_functional(), Weighing(), private=private)
        history = _fit(model, epochs=1).history
        results.append([*model.get_weights(), np.array(history["loss"])])
    _assert_equal(*results)


def test_summed_losses_stay_sums_and_metrics_of_outputs_are_fed():
    def fitted(defense, private):
        inputs = keras.Input((8,))
        hidden = layers.Dense(6, kernel_initializer=keras.initializers.GlorotUniform(1))(inputs)
        a = layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(2), name="a")
        b = layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(3), name="b")
        model = ms.SecureModel(inputs, {"a": a(hidden), "b": b(hidden)})
        losses = {
            "a": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
            "b": keras.losses.MeanSquaredError(reduction="sum"),
        }
        _compile(model, defense, private=private, loss=losses, loss_weights={"a": 0.1, "b": 0.02})
        y = {"a": Y, "b": X[:, :1]}
        history = model.fit(X, y, batch_size=12, verbose=0).history  # one step
        return model.get_weights(), np.array([history[k][0] for k in ("loss", "a_loss", "b_loss")])

    expected, metrics = fitted(None, False)
    for defense, private in ((OwnValues(), False), (OwnValues(), True), (None, True)):
        weights, fed = fitted(defense, private)
        np.testing.assert_allclose(fed, metrics, rtol=1e-5)
        if not private:
            _assert_equal(weights, expected)


class OwnValues(Defense):
    """Changes nothing, by example."""

    def loss(self, model, batch, y_pred, state):
        return 1.0 * model.example_losses(batch, y_pred)


def test_defense_and_own_compute_loss_are_refused_together():
    class Net(ms.SecureModel):
        def __init__(self):
            super().__init__()
            self.steps = _layers()

        def call(self, x):
            return self.steps[1](self.steps[0](x))

        def compute_loss(self, *args, **kwargs):
            return 2.0 * super().compute_loss(*args, **kwargs)

    with pytest.raises(ValueError, match="`compute_loss`"):
        _fit(_compile(Net(), OwnValues()))
    _fit(_compile(Net(), Peeking()))  # changes no loss


def test_loss_hook_of_a_class_and_of_a_defense_compose():
    class Net(ms.SecureModel):
        def __init__(self):
            super().__init__()
            self.steps = _layers()

        def call(self, x):
            return self.steps[1](self.steps[0](x))

        def training_loss(self, batch, y_pred):
            return 0.5 * super().training_loss(batch, y_pred)

    plain = _compile(_functional(), None)
    _fit(plain)
    doubled = _compile(Net(), Doubled())
    _fit(doubled)
    _assert_equal(doubled.get_weights(), plain.get_weights())


class Doubled(Defense):
    def loss(self, model, batch, y_pred, state):
        return 2.0 * model.example_losses(batch, y_pred)


@pytest.mark.parametrize("private", [False, True])
def test_example_of_the_docstring_trains(private):
    example = re.search(r"```python\n(.*?)```", inspect.getdoc(Defense), re.DOTALL)[1]
    names = {"keras": keras, "ms": ms, "model": _functional()}
    exec(compile(example, "Defense", "exec"), names)
    assert names["model"].adversarial.strength == 0.5
    defense = names["LogitPairing"](ms.attacks.FGSM(0.1))
    model = _compile(_functional(), defense, private=private)
    history = _fit(model).history["loss"]
    assert history[1] < history[0]


@pytest.mark.parametrize("count", [0, 1.5])
def test_number_of_updates_must_be_an_integer_of_at_least_one(count):
    with pytest.raises((ValueError, TypeError), match="updates_per_batch"):
        _compile(_functional(), FreeTraining(updates_per_batch=count))


@pytest.mark.parametrize("private", [False, True])
def test_average_of_the_weights_is_an_after_update(private):
    model = _compile(_functional(), Averaging(), private=private, run_eagerly=True)
    averages = [model.get_weights()]

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            averages.append(
                [(a + w) / 2 for a, w in zip(averages[-1], model.get_weights(), strict=True)]
            )

    _fit(model, callbacks=[Watch()])
    _assert_equal([np.asarray(v) for v in model._adversarial_state], averages[-1], atol=1e-6)
