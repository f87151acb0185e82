import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.defenses import AdversarialTraining
from keras_modelsec.robustness import AdversarialMixin
from keras_modelsec.robustness.attacks import (
    FGSM,
    PGD,
    GradientAttack,
    RandomNoise,
    SeveralOutputsWarning,
)

X = np.random.default_rng(0).random((24, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 24)
LOSS = "sparse_categorical_crossentropy"


class Recording:
    """Mixed into a model class: keeps what the step trained on."""

    def compute_gradients(self, batch):
        self.trained_on.append(batch.x)
        return super().compute_gradients(batch)


def new_class(*extra):
    """A class for each model: Keras rewrites the bases of one that makes a functional model."""
    return type("Net", (*extra, AdversarialMixin, keras.Model), {})


def functional(cls=None):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    return (cls or new_class())(inputs, keras.layers.Dense(3, activation="softmax")(hidden))


def subclassed(cls=None):
    class Net(cls or new_class()):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(8, activation="relu")
            self.drop = keras.layers.Dropout(0.5)
            self.head = keras.layers.Dense(3, activation="softmax")

        def call(self, x, training=False):
            return self.head(self.drop(self.hidden(x), training=training))

    return Net()


def recorded(adversarial, *, batches=1, optimizer="sgd", x=X, y=Y, sample_weight=None):
    """The inputs that eager training steps used, one array for each batch."""
    keras.utils.set_random_seed(2)
    model = functional(new_class(Recording))
    model.trained_on = []
    model.compile(optimizer, LOSS, adversarial=adversarial, run_eagerly=True)
    size = len(x) // batches
    model.fit(
        x, y, sample_weight=sample_weight, batch_size=size, shuffle=False, epochs=1, verbose=0
    )
    return [np.asarray(batch) for batch in model.trained_on]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"steps_per_execution": 2},
        {"run_eagerly": True},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"optimizer": keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)},
    ],
    ids=lambda arguments: next(iter(arguments), "plain"),
)
def test_functional_model_trains(arguments):
    model = functional()
    before = model.get_weights()
    arguments = {"optimizer": "sgd", "loss": LOSS, **arguments}
    model.compile(adversarial=PGD(0.1, steps=2), **arguments)
    history = model.fit(X, Y, batch_size=10, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_subclassed_model_that_is_not_built_trains():
    model = subclassed()
    model.compile("sgd", LOSS, adversarial=AdversarialTraining(PGD(0.1, steps=2), warmup_steps=1))
    model.fit(X, Y, batch_size=10, epochs=1, verbose=0)
    assert model.built
    assert np.isfinite(model.get_weights()[0]).all()


def test_sequential_layers_train():
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
    model = new_class()(plain.inputs[0], plain.outputs[0])
    before = plain.get_weights()[0].copy()
    model.compile("sgd", LOSS, adversarial=FGSM(0.1))
    model.fit(X, Y, verbose=0)
    assert (plain.get_weights()[0] != before).any()


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_inputs_and_outputs_train_and_loss_metrics_are_those_of_the_step(structure):
    def build(cls):
        a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
        hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()([a, b]))
        p = keras.layers.Dense(3, activation="softmax", name="p")(hidden)
        q = keras.layers.Dense(1, name="q")(hidden)
        if structure == "dict":
            return cls({"a": a, "b": b}, {"p": p, "q": q})
        return cls([a, b], [p, q])

    x = {"a": X, "b": X} if structure == "dict" else [X, X]
    y = {"p": Y, "q": X[:, :1]} if structure == "dict" else [Y, X[:, :1]]
    losses = {"p": LOSS, "q": "mse"} if structure == "dict" else [LOSS, "mse"]
    histories = []
    # With radius zero the step is the ordinary one: equal metrics show that the attack's own calls
    # of the losses left no trace in them.
    for cls, arguments in ((keras.Model, {}), (new_class(), {"adversarial": PGD(0.0, steps=2)})):
        keras.utils.set_random_seed(3)
        model = build(cls)
        model.compile("sgd", losses, **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SeveralOutputsWarning)
            run = model.fit(x, y, batch_size=12, epochs=2, verbose=0, shuffle=False)
        histories.append(run.history)
    assert histories[0].keys() == histories[1].keys()
    assert len(histories[0]) == 3
    for key, values in histories[0].items():
        np.testing.assert_allclose(histories[1][key], values, rtol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(precision):
    keras.config.set_dtype_policy(precision)
    model = functional()
    model.compile("sgd", LOSS, adversarial=AdversarialTraining(PGD(0.1, steps=2), warmup_steps=1))
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
def test_replicas_of_a_strategy_train_with_noise_of_their_own(mirrored_strategy):
    with mirrored_strategy.scope():
        model = functional()
        attack = RandomNoise(0.3)
        training = AdversarialTraining(PGD(0.1, steps=2), warmup_steps=1, clean_ratio=0.25)
        model.compile("sgd", LOSS, adversarial=training)
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    with mirrored_strategy.scope():
        state = attack.new_state(model)
    same = tf.constant(X[:4])

    @tf.function
    def both():
        return mirrored_strategy.run(lambda: attack.perturb(model, same, tf.constant(Y[:4]), state))

    first, second = (np.asarray(v) for v in both().values)
    assert not np.array_equal(first, second)
    assert not np.array_equal(np.asarray(both().values[0]), first)


def test_compiled_steps_draw_fresh_noise():
    model = functional()
    model.compile("sgd", LOSS)
    attack = RandomNoise(0.3)
    state = attack.new_state(model)
    step = tf.function(lambda x, y: attack.perturb(model, x, y, state))
    draws = [np.asarray(step(tf.constant(X), tf.constant(Y))) for _ in range(3)]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[1], draws[2])


def test_seeded_attack_gives_the_same_training_twice():
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        model = functional()
        model.compile("sgd", LOSS, adversarial=PGD(0.1, steps=2, seed=9))
        model.fit(X, Y, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for left, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_batch_is_replaced_by_examples_in_the_ball_that_raise_the_loss():
    (batch,) = recorded(FGSM(0.1))
    assert np.abs(batch - X).max() <= 0.1 + 1e-6
    assert (np.abs(batch - X).max(axis=1) > 0.05).all()


@pytest.mark.parametrize(("ratio", "clean"), [(0.0, 0), (0.3, 7), (0.5, 12), (0.99, 23)])
def test_clean_share_of_the_batch_stays_as_it_is(ratio, clean):
    (batch,) = recorded(AdversarialTraining(FGSM(0.1), clean_ratio=ratio))
    unchanged = (batch == X).all(axis=1)
    np.testing.assert_array_equal(unchanged, np.arange(24) < clean)


def test_only_the_attacked_share_is_paid_for(monkeypatch):
    sizes = []
    search = GradientAttack.search

    def spy(self, target, state):
        sizes.append(int(target.batch))
        return search(self, target, state)

    monkeypatch.setattr(GradientAttack, "search", spy)
    recorded(AdversarialTraining(FGSM(0.1), clean_ratio=0.5))
    assert sizes == [12]


def test_warm_up_counts_optimizer_updates():
    batches = recorded(AdversarialTraining(FGSM(0.1), warmup_steps=2), batches=4)
    changed = [not np.array_equal(batch, X[6 * i : 6 * i + 6]) for i, batch in enumerate(batches)]
    assert changed == [False, False, True, True]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"steps_per_execution": 4}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
)
def test_warm_up_ends_inside_a_compiled_loop(arguments):
    """Two clean steps and then adversarial ones: the weights part from clean training's then."""

    def weights(adversarial, epochs):
        keras.utils.set_random_seed(4)
        model = functional()
        model.compile("sgd", LOSS, adversarial=adversarial, **arguments)
        model.fit(X, Y, batch_size=12, epochs=epochs, shuffle=False, verbose=0)
        return model.get_weights()

    training = AdversarialTraining(FGSM(0.3), warmup_steps=2)
    for left, right in zip(weights(None, 1), weights(training, 1), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    later = zip(weights(None, 2), weights(training, 2), strict=True)
    assert max(np.abs(left - right).max() for left, right in later) > 1e-4


def test_sample_weight_of_zero_does_not_weaken_the_attack():
    (batch,) = recorded(FGSM(0.1), sample_weight=np.zeros(24))
    (expected,) = recorded(FGSM(0.1))
    np.testing.assert_array_equal(batch, expected)
    assert (np.abs(batch - X).max(axis=1) > 0.05).all()


def test_epsilon_schedule_reaches_a_compiled_step_without_a_new_trace():
    attack = FGSM(0.0)
    model = subclassed()
    model.compile("sgd", LOSS, adversarial=attack)
    seen = []

    class Schedule(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            attack.epsilon = 0.4 * epoch
            state = model._adversarial_state.attack
            seen.append(float(state.epsilon.numpy()))

    model.fit(X, Y, epochs=1, verbose=0, callbacks=[Schedule()])
    traces = model.train_function
    model.fit(X, Y, epochs=3, initial_epoch=1, verbose=0, callbacks=[Schedule()])
    assert model.train_function is traces
    np.testing.assert_allclose(seen, [0.0, 0.4, 0.8])


def test_attack_leaves_batch_normalization_statistics_to_the_one_training_pass():
    def moments(adversarial):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((6,))
        normal = keras.layers.BatchNormalization(momentum=0.5)
        model = new_class()(inputs, keras.layers.Dense(3, activation="softmax")(normal(inputs)))
        model.compile("sgd", LOSS, adversarial=adversarial)
        model.fit(X, Y, batch_size=24, shuffle=False, verbose=0)
        return normal.moving_mean.numpy(), normal.moving_variance.numpy()

    # Radius zero: the batch is the clean one, so one update must give what clean training gives.
    for left, right in zip(moments(None), moments(PGD(0.0, steps=5)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_attack_leaves_the_dropout_stream_alone():
    def weights(adversarial):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((6,))
        dropped = keras.layers.Dropout(0.5, seed=1)(inputs)
        model = new_class()(inputs, keras.layers.Dense(3, activation="softmax")(dropped))
        model.compile("sgd", LOSS, adversarial=adversarial)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    for left, right in zip(weights(None), weights(PGD(0.0, steps=3)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_with_it_makes_a_model_harder_to_fool(blobs):
    """The point of it all: PGD accuracy, on clusters that clean training separates narrowly."""
    generator = np.random.default_rng(5)
    y = generator.integers(0, 2, 256)
    robust = 0.5 + 0.25 * (2 * y[:, None] - 1) + generator.normal(0, 0.14, (256, 1))
    frail = 0.5 + 0.03 * (2 * y[:, None] - 1) + generator.normal(0, 0.005, (256, 20))
    x = np.clip(np.concatenate([robust, frail], axis=1), 0, 1).astype("float32")

    def robust_accuracy(adversarial):
        keras.utils.set_random_seed(4)
        inputs = keras.Input((21,))
        model = new_class()(inputs, keras.layers.Dense(2, activation="softmax")(inputs))
        model.compile(keras.optimizers.Adam(0.05), LOSS, adversarial=adversarial)
        model.fit(x, y, batch_size=64, epochs=15, verbose=0)
        found = PGD(0.08, steps=10)(model, x, y)
        return float((np.asarray(model(found)).argmax(1) == y).mean())

    plain, secured = robust_accuracy(None), robust_accuracy(PGD(0.08, steps=3))
    assert plain < 0.6
    assert secured > 0.8


@pytest.mark.parametrize("bad", ["nan", "bounds"])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_unusable_training_data_stops_before_the_first_update(bad, run_eagerly):
    x = X.copy()
    x[3, 2] = np.nan if bad == "nan" else 7.0
    model = functional()
    before = model.get_weights()
    model.compile("sgd", LOSS, adversarial=FGSM(0.1), run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match=r"^Training inputs must be finite .* Rescale the data"):
        model.fit(x, Y, batch_size=24, verbose=0)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


ROWS = np.eye(3, dtype="float32")[Y]
NUMBERS = "from 0 to 2, as the model has 3 outputs. Received numbers from "


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (LOSS, Y + 7, NUMBERS + "7 to 9"),
        (LOSS, Y - 5, NUMBERS + "-5 to -3"),
        (LOSS, Y + 0.5, "whole class numbers. Received: 2.5"),
        (LOSS, np.where(Y > 0, np.nan, 1.0), "whole class numbers. Received: nan"),
        (LOSS, ROWS, "class numbers.*Received: rows of 3"),
        ("categorical_crossentropy", Y, r"rows of 3 numbers.*Received: shape \(.*,\)"),
        ("categorical_crossentropy", ROWS[:, :2], r"rows of 3 numbers.*Received: shape \(.*, 2\)"),
    ],
    ids=["above", "below", "fraction", "nan", "rows", "numbers", "narrow"],
)
def test_labels_that_do_not_fit_stop_before_the_first_update(loss, labels, message):
    model = functional()
    before = model.get_weights()
    model.compile("sgd", loss, adversarial=FGSM(0.1))
    with pytest.raises(ValueError, match=message):
        model.fit(X, labels, batch_size=24, verbose=0)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])


@pytest.mark.parametrize("arguments", [{"clean_ratio": 0.9}, {"warmup_steps": 5}], ids=str)
def test_labels_of_examples_that_stay_clean_are_checked_too(arguments):
    model = functional()
    model.compile("sgd", LOSS, adversarial=AdversarialTraining(FGSM(0.1), **arguments))
    y = np.where(np.arange(24) == 0, 3, Y)
    with pytest.raises(ValueError, match=NUMBERS + "0 to 3"):
        model.fit(X, y, batch_size=24, shuffle=False, verbose=0)


@pytest.mark.parametrize("build", [functional, subclassed])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_labels_are_checked_however_the_model_is_made_and_run(build, run_eagerly):
    model = build()
    model.compile("sgd", LOSS, adversarial=FGSM(0.1), run_eagerly=run_eagerly)
    model.fit(X, Y, batch_size=24, verbose=0)
    with pytest.raises(ValueError, match=NUMBERS):
        model.train_on_batch(X, Y + 7)


def test_third_class_of_one_unit_is_refused_and_rows_of_padding_are_not():
    inputs = keras.Input((6,))
    model = new_class()(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    model.compile("sgd", "binary_crossentropy", adversarial=FGSM(0.1))
    with pytest.raises(ValueError, match=r"must hold 0 and 1.*from 0 to 2"):
        model.fit(X, Y, batch_size=24, verbose=0)
    model = functional()
    model.compile("sgd", "categorical_crossentropy", adversarial=FGSM(0.1))
    model.fit(X, np.where(np.arange(len(Y))[:, None] < 3, 0.0, ROWS), verbose=0)


def test_error_of_the_users_own_check_stays_what_it_is():
    class Checked(keras.layers.Layer):
        def call(self, x):
            tf.debugging.assert_less(x, 0.0, message="of the user")
            return x

    inputs = keras.Input((6,))
    model = new_class()(inputs, keras.layers.Dense(3)(Checked()(inputs)))
    model.compile("sgd", LOSS, adversarial=RandomNoise(0.1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="of the user"):
        model.fit(X, Y, verbose=0)


def test_missing_labels_are_refused():
    model = functional()
    model.compile("sgd", LOSS, adversarial=FGSM(0.1))
    with pytest.raises(ValueError, match="Adversarial training needs labels"):
        model.fit(X, verbose=0)


@pytest.mark.parametrize("value", ["pgd", 0.1, PGD])
def test_anything_but_training_or_attack_is_refused_by_compile(value):
    with pytest.raises(TypeError, match=r"`adversarial` must be an AdversarialTraining, an attack"):
        functional().compile("sgd", LOSS, adversarial=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clean_ratio": 1.0}, r"`clean_ratio` must be a finite number >= 0 and < 1.*1\.0"),
        ({"clean_ratio": -0.1}, r"`clean_ratio` must be"),
        ({"warmup_steps": -1}, r"`warmup_steps` must be an integer >= 0.*-1"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdversarialTraining(FGSM(0.1), **arguments)


def test_attack_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"`attack` must be a gradient attack.*'pgd'"):
        AdversarialTraining("pgd")


@pytest.mark.parametrize("wrap", [AdversarialTraining, lambda attack: attack])
def test_targeted_attack_is_refused_because_it_would_make_examples_easier(wrap):
    with pytest.raises(ValueError, match=r"must be untargeted.*pgd_linf.*targeted=True"):
        functional().compile("sgd", LOSS, adversarial=wrap(PGD(0.1, targeted=True)))


def test_attack_made_targeted_afterwards_is_refused_too():
    attack = PGD(0.1, steps=1)
    model = functional()
    model.compile("sgd", LOSS, adversarial=attack)
    attack.targeted = True
    with pytest.raises(ValueError, match="must be untargeted"):
        model.fit(X, Y, verbose=0)
