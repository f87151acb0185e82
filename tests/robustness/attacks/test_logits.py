"""A saturated softmax must not make a model look robust."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_modelsec.robustness import AdversarialMixin, RobustnessMonitor
from keras_modelsec.robustness.attacks import (
    FGSM,
    PGD,
    GradientVanishedWarning,
    MaskedModelWarning,
)
from keras_modelsec.robustness.attacks.scores import find_scores

EPSILON = 0.25
# At this scale every clean probability is 0 or 1 to float32, and the gradient of any loss on
# probabilities is exactly zero.
SCALE = 2000.0


def accuracy(model, x, y):
    return float((np.asarray(model(x)).argmax(-1) == y).mean())


def attack():
    return FGSM(EPSILON)


@keras.saving.register_keras_serializable("test_logits")
class OwnHead(keras.Model):
    """A subclassed model that calls a softmax of its own."""

    def __init__(self, head):
        super().__init__()
        self.dense = layers.Dense(4)
        self.head = head

    def call(self, x):
        return self.head(self.dense(x))


def ending(name):
    """A model whose only weights are those of one Dense(4), ending in a softmax in some way."""
    inputs = keras.Input((64,))
    if name == "dense":
        return keras.Model(inputs, layers.Dense(4, activation="softmax")(inputs))
    if name == "activation":
        return keras.Model(inputs, layers.Activation("softmax")(layers.Dense(4)(inputs)))
    if name == "softmax_layer":
        return keras.Model(inputs, layers.Softmax()(layers.Dense(4)(inputs)))
    if name == "sequential":
        return keras.Sequential([inputs, layers.Dense(4, activation="softmax")])
    if name == "nested":
        inner = keras.Sequential([keras.Input((64,)), layers.Dense(4, activation="softmax")])
        return keras.Model(inputs, layers.Dropout(0.5)(inner(layers.Dropout(0.5)(inputs))))
    if name == "operation":
        return keras.Model(inputs, ops.softmax(layers.Dense(4)(inputs)))
    if name == "reshaped":
        return keras.Model(inputs, layers.Reshape((4,))(ending("one_position")(inputs)))
    if name == "one_position":
        column = layers.Reshape((1, 64))(inputs)
        return keras.Model(inputs, layers.Dense(4, activation="softmax")(column))
    if name == "cast":
        half = layers.Dense(4, activation="softmax")(inputs)
        return keras.Model(inputs, ops.cast(ops.cast(half, "float16"), "float32"))
    head = {"subclassed_keras": ops.softmax, "subclassed_tf": tf.nn.softmax}[name]
    return OwnHead(head)


ENDINGS = [
    "dense",
    "activation",
    "softmax_layer",
    "sequential",
    "nested",
    "operation",
    "reshaped",
    "cast",
    "subclassed_keras",
    "subclassed_tf",
]


@pytest.mark.parametrize("name", ENDINGS)
def test_softmax_model_falls_like_the_same_model_without_it(name, blobs, linear_model):
    logits = linear_model(scale=SCALE)
    reference = accuracy(logits, attack()(logits, blobs.x, blobs.y), blobs.y)
    model = ending(name)
    model(blobs.x[:1])
    model.set_weights(logits.get_weights())
    assert accuracy(model, blobs.x, blobs.y) == 1.0
    adversarial = attack()(model, blobs.x, blobs.y)
    assert accuracy(model, adversarial, blobs.y) == reference
    assert reference < 0.05


@pytest.mark.parametrize("name", ["dense", "subclassed_tf", "reshaped"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "crossentropy"])
def test_compiled_softmax_model_falls_too(name, loss, blobs, linear_model):
    logits = linear_model(scale=SCALE)
    model = ending(name)
    model(blobs.x[:1])
    model.set_weights(logits.get_weights())
    model.compile(loss=loss)
    assert accuracy(model, attack()(model, blobs.x, blobs.y), blobs.y) < 0.05


def test_squared_error_on_a_softmax_falls_too(blobs, linear_model):
    model = linear_model("softmax", scale=SCALE)
    model.compile(loss="mse")
    rows = keras.utils.to_categorical(blobs.y, 4)
    assert accuracy(model, attack()(model, blobs.x, rows), blobs.y) < 0.05


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_softmax_in_half_precision_falls_too(precision, blobs, linear_model):
    keras.config.set_dtype_policy(precision)
    model = linear_model("softmax", scale=SCALE / 10)
    model.compile(loss="sparse_categorical_crossentropy")
    adversarial = attack()(model, blobs.x, blobs.y)
    assert accuracy(model, adversarial, blobs.y) < 0.05


def test_saturated_sigmoid_falls_like_its_logit(blobs):
    two = blobs.y < 2
    x, y = blobs.x[two], blobs.y[two]
    kernel = SCALE * (blobs.kernel[:, 1] - blobs.kernel[:, 0])
    bias = SCALE * (blobs.bias[1] - blobs.bias[0])
    model = keras.Sequential([keras.Input((64,)), layers.Dense(1, activation="sigmoid")])
    model.set_weights([kernel[:, None], np.array([bias])])

    def right(points):
        return float(((np.asarray(model(points))[:, 0] > 0.5) == y).mean())

    assert right(x) == 1.0
    assert right(attack()(model, x, y)) < 0.05
    model.compile(loss="binary_crossentropy")
    assert right(attack()(model, x, y)) < 0.05


def own_softmax(z):
    powers = ops.exp(z - ops.max(z, axis=-1, keepdims=True))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


# From logits to an output that saturates and has its largest entry where the logits have theirs.
BEHIND = {
    "rescaled": lambda z: layers.Rescaling(300.0)(ops.softmax(z)),
    "shifted": lambda z: layers.Rescaling(2.0, -1.0)(ops.softmax(z)),
    "clipped": lambda z: ops.clip(ops.softmax(z), 1e-7, 1 - 1e-7),
    "rounded": lambda z: ops.round(ops.softmax(z) * 100.0) / 100.0,
    "without_gradient": lambda z: ops.stop_gradient(ops.softmax(z)),
    "mean": lambda z: layers.Average()([ops.softmax(z), ops.softmax(1.5 * z)]),
    "mean_over_axis": lambda z: ops.mean(ops.stack([ops.softmax(z), ops.softmax(2.0 * z)]), axis=0),
    "weighted": lambda z: 0.3 * ops.softmax(z) + 0.7 * ops.softmax(1.5 * z),
    "product": lambda z: ops.softmax(z) * ops.softmax(0.5 * z) + 1e-9,
    "taken": lambda z: ops.take(ops.softmax(z), np.arange(4), axis=-1),
    "joined": lambda z: ops.concatenate([ops.softmax(z)[:, :1], ops.softmax(z)[:, 1:]], axis=-1),
    "split_and_joined": lambda z: ops.concatenate(ops.split(ops.softmax(z), 2, axis=-1), axis=-1),
    "of_its_own": own_softmax,
    "tanh": ops.tanh,
    "sigmoids": ops.sigmoid,
    "log_softmax": ops.log_softmax,
    "softmax_of_tanh": lambda z: ops.softmax(10.0 * ops.tanh(z)),
}


def behind(name, blobs, scale=SCALE):
    """The nearest-prototype classifier behind one of the outputs above."""
    inputs = keras.Input((64,))
    dense = layers.Dense(4)
    model = keras.Model(inputs, BEHIND[name](dense(inputs)))
    # Centred, so that the logits of wrong classes lie below zero and those of the right one above.
    kernel, bias = blobs.kernel, blobs.bias
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    dense.set_weights([scale * kernel, scale * (bias - bias.mean())])
    return model


@pytest.mark.parametrize("name", BEHIND)
def test_scores_are_found_behind_what_keeps_their_order(name, blobs, linear_model):
    logits = linear_model(scale=SCALE)
    attack = PGD(EPSILON, steps=2, seed=0)
    reference = accuracy(logits, attack(logits, blobs.x, blobs.y), blobs.y)
    assert reference < 0.05
    model = behind(name, blobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attack(model, blobs.x, blobs.y)
    # What is behind a flat output is compared on the logits: ties of the output fall to class 0.
    assert accuracy(logits, found, blobs.y) <= reference + 0.05


def hiding_factor(name, z):
    """Outputs behind which nobody finds the scores."""
    if name == "function":
        return tf.function(tf.nn.softmax, autograph=False)(z)
    if name == "sigmoids":
        return (ops.sigmoid(z) + ops.sigmoid(0.5 * z)) / 2.0
    return (ops.tanh(z) + ops.tanh(0.5 * z)) / 2.0


class Hiding(AdversarialMixin, keras.Model):
    """A subclassed model whose saturated output shows no logits."""

    def __init__(self, name, blobs):
        super().__init__()
        self.dense = layers.Dense(4)
        self.way = name
        self(blobs.x[:1])
        self.dense.set_weights([20.0 * blobs.kernel, 20.0 * blobs.bias])

    def call(self, x):
        z = self.dense(x)
        if self.way == "eager":
            return tf.nn.softmax(z)
        if self.way == "eager_rescaled":
            return 300.0 * tf.nn.softmax(z)
        return hiding_factor(self.way, z)


WAYS = ["eager", "eager_rescaled", "function", "tanhs", "sigmoids"]


@pytest.mark.filterwarnings("ignore:The gradient was zero")
@pytest.mark.parametrize("way", WAYS)
def test_model_whose_scores_are_not_found_is_reported_as_masked(way, blobs):
    """Although its gradient has not vanished everywhere, on every path."""
    model = Hiding(way, blobs)
    eager = way.startswith("eager")
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", run_eagerly=eager)
    for attack in (FGSM(0.05), PGD(0.05, steps=2)):
        with pytest.warns(MaskedModelWarning, match="did not find.*return logits"):
            attack(model, blobs.x, blobs.y)
        assert attack.run(model, blobs.x, blobs.y).masked
    monitor = RobustnessMonitor(blobs.x, blobs.y, PGD(0.05, steps=2))
    with pytest.warns(MaskedModelWarning):
        history = model.fit(blobs.x, blobs.y, verbose=0, callbacks=[monitor]).history
    assert history["masked_pgd_linf"] == [1.0]
    assert monitor.results["pgd_linf"].masked


@pytest.mark.filterwarnings("ignore:The gradient was zero")
@pytest.mark.parametrize("way", ["eager", "function", "tanhs"])
def test_adversarial_training_on_a_masked_model_warns(way, blobs):
    model = Hiding(way, blobs)
    loss = "sparse_categorical_crossentropy"
    model.compile("sgd", loss, run_eagerly=way == "eager", adversarial=FGSM(0.05))
    with pytest.warns(MaskedModelWarning):
        model.fit(blobs.x, blobs.y, verbose=0)


def test_eager_model_that_ends_in_a_softmax_of_keras_is_not_accused(blobs, linear_model):
    model = linear_model("softmax", scale=50.0)
    model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack()(model, blobs.x, blobs.y)


def test_honest_scores_with_attention_and_gates_are_not_accused(blobs):
    """A softmax or sigmoid within a model hides nothing."""
    inputs = keras.Input((64,))
    gate = layers.Dense(2, activation="softmax")(inputs)
    experts = ops.stack([layers.Dense(4)(inputs) for _ in range(2)], axis=1)
    mixed = ops.sum(gate[:, :, None] * experts, axis=1)
    swish = ops.silu(layers.Dense(4)(layers.Dense(8, activation="tanh")(inputs)))
    for output in (mixed, swish, mixed + ops.tanh(swish)):
        model = keras.Model(inputs, output)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            PGD(0.1, steps=2)(model, blobs.x, blobs.y)


def test_loss_with_a_softmax_of_its_own_does_not_hide_the_logits(blobs, linear_model):
    def loss(y, z):
        chosen = ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), 4)
        return -ops.log(ops.sum(ops.softmax(z) * chosen, axis=-1) + 1e-7)

    model = linear_model(scale=SCALE)
    model.compile(loss=loss)
    assert accuracy(model, PGD(EPSILON, steps=2)(model, blobs.x, blobs.y), blobs.y) < 0.05


@pytest.mark.parametrize(
    "loss", ["categorical_hinge", "squared_hinge", "mse", "binary_crossentropy", "poisson"]
)
@pytest.mark.parametrize("activation", ["linear", "tanh", "sigmoid"])
def test_model_falls_whatever_loss_it_was_trained_with(loss, activation, blobs, linear_model):
    model = linear_model(activation, scale=SCALE / 20)
    reference = linear_model(scale=SCALE / 20)
    expected = attack()(reference, blobs.x, blobs.y)
    rows = keras.utils.to_categorical(blobs.y, 4)
    model.compile(loss=loss)
    found = attack()(model, blobs.x, 2 * rows - 1 if activation == "tanh" else rows)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "signs", "activation"),
    [
        ("hinge", True, "tanh"),
        ("squared_hinge", False, "linear"),
        ("mse", False, "sigmoid"),
        ("binary_focal_crossentropy", False, "sigmoid"),
        (None, False, "linear"),
        ("binary_crossentropy", False, "linear"),  # a wrong flag: it should be from_logits=True
    ],
)
def test_one_unit_is_attacked_and_scored_alike(loss, signs, activation, blobs):
    two = blobs.y < 2
    x, y = blobs.x[two], blobs.y[two]
    shift = 0.5 if (loss, activation) == ("binary_crossentropy", "linear") else 0.0
    kernel = 50 * (blobs.kernel[:, 1] - blobs.kernel[:, 0])
    bias = 50 * (blobs.bias[1] - blobs.bias[0]) + shift
    model = keras.Sequential([keras.Input((64,)), layers.Dense(1, activation=activation)])
    model.set_weights([kernel[:, None], np.array([bias])])
    if loss is not None:
        model.compile("sgd", loss)
    results = RobustnessMonitor(x, 2 * y - 1 if signs else y, FGSM(0.4)).evaluate(model)
    assert results["clean"].accuracy == 1.0
    assert results["fgsm_linf"].accuracy == 0.0


def probabilities_without_a_trace(blobs, scale, then=tf.identity):
    """Probabilities whose logits nobody can recover, within a function of its own."""
    inputs = keras.Input((64,))
    dense = layers.Dense(4)
    hidden = tf.function(lambda z: then(tf.nn.softmax(z)))

    class Hidden(layers.Layer):
        def call(self, z):
            return hidden(z)

    model = keras.Model(inputs, Hidden()(dense(inputs)))
    dense.set_weights([scale * blobs.kernel, scale * blobs.bias])
    return model


def test_the_naive_attack_on_probabilities_would_have_called_the_model_robust(blobs):
    """Shows that the tests above test something, by the loss that Keras itself would take."""
    model = probabilities_without_a_trace(blobs, SCALE)
    points = tf.constant(blobs.x)
    with tf.GradientTape() as tape:
        tape.watch(points)
        loss = keras.losses.sparse_categorical_crossentropy(blobs.y, model(points))
        total = tf.reduce_sum(loss)
    gradient = tape.gradient(total, points).numpy()
    assert (gradient == 0).all()
    assert accuracy(model, np.clip(blobs.x + EPSILON * np.sign(gradient), 0, 1), blobs.y) == 1.0


def test_vanished_gradient_without_logits_is_reported(blobs):
    # Rounded, as some processors compute 1 - 6e-8 where others say 1, which leaves a gradient.
    model = probabilities_without_a_trace(blobs, SCALE, then=tf.round)
    with (
        pytest.warns(GradientVanishedWarning, match=r"zero for 96 of 96 examples.*return logits"),
        pytest.warns(MaskedModelWarning, match="did not find"),
    ):
        attack()(model, blobs.x, blobs.y)


def test_logarithm_of_probabilities_works_until_they_underflow(blobs):
    """Keras's own loss clips at 1e-7 and is blind here; the attack on 1e-30 is not."""
    scale = 25.0
    model = probabilities_without_a_trace(blobs, scale)
    smallest = np.sort(np.asarray(model(blobs.x)), axis=1)[:, 2]
    assert np.median(smallest) < 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientVanishedWarning)
        warnings.simplefilter("ignore", MaskedModelWarning)
        adversarial = attack()(model, blobs.x, blobs.y)
    assert accuracy(model, adversarial, blobs.y) < 0.05


def test_training_step_attacks_the_logits_of_a_saturated_softmax(blobs, linear_model):
    """Inside `fit` too: the perturbation is there although the softmax is saturated."""
    model = linear_model("softmax", scale=SCALE)
    model.compile("sgd", "sparse_categorical_crossentropy")
    step = attack()
    state = step.new_state(model)
    perturbed = tf.function(lambda x, y: step.perturb(model, x, y, state))(
        tf.constant(blobs.x), tf.constant(blobs.y)
    )
    assert accuracy(model, perturbed, blobs.y) < 0.05


@pytest.mark.parametrize("weight", [-1.0, 0.0, -0.01])
def test_weight_of_the_loss_neither_turns_nor_ends_the_attack_on_a_class(
    weight, blobs, linear_model
):
    expected = attack()(linear_model(), blobs.x, blobs.y)
    model = linear_model("softmax")
    model.compile("sgd", "sparse_categorical_crossentropy", loss_weights=[weight])
    np.testing.assert_array_equal(attack()(model, blobs.x, blobs.y), expected)
    rows = keras.utils.to_categorical(blobs.y, 4)
    model.compile("sgd", "mse", loss_weights=weight)
    np.testing.assert_array_equal(attack()(model, blobs.x, rows), expected)


def ensemble(ways, blobs, scale):
    """Three members that err in their own ways, joined."""
    generator = np.random.default_rng(3)
    inputs = keras.Input((64,))
    dense = [layers.Dense(4) for _ in range(3)]
    logits = [layer(inputs) for layer in dense]
    for layer in dense:
        kernel = blobs.kernel + generator.normal(0, 0.3, (64, 4))
        # Its boundaries go through the middle between the prototypes, as those of the blobs do.
        bias = -0.5 * np.sum(kernel * blobs.kernel, axis=0)
        layer.set_weights([scale * kernel, scale * bias])
    return keras.Model(inputs, JOINTS[ways](logits))


JOINTS = {
    "average": lambda z: layers.Average()([layers.Softmax()(each) for each in z]),
    "stack": lambda z: ops.mean(ops.stack([ops.softmax(each) for each in z]), axis=0),
    "positions": lambda z: ops.mean(ops.softmax(ops.stack(z, axis=1)), axis=1),
    "weighted": lambda z: 0.5 * ops.softmax(z[0]) + 0.3 * ops.softmax(z[1]) + ops.softmax(z[2]) / 5,
    "logits": lambda z: z[0] + z[1] + z[2],
}


@pytest.mark.parametrize("ways", ["average", "stack", "positions", "weighted"])
def test_mean_of_saturated_members_falls_like_that_of_soft_ones(ways, blobs):
    """The member nearest to its boundary must not keep the others from being attacked."""
    soft, hard = ensemble(ways, blobs, 1.0), ensemble(ways, blobs, SCALE)
    pgd = PGD(0.12, steps=20, random_start=False)
    reference = accuracy(hard, pgd.run(soft, blobs.x, blobs.y).x, blobs.y)
    result = pgd.run(hard, blobs.x, blobs.y)
    assert not result.masked
    assert accuracy(hard, result.x, blobs.y) <= reference + 0.03


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_two_classes_from_one_sigmoid_are_not_accused(scale, blobs, linear_model):
    inputs = keras.Input((64,))
    dense = layers.Dense(1)
    positive = ops.sigmoid(dense(inputs))
    model = keras.Model(inputs, ops.concatenate([1 - positive, positive], axis=-1))
    kernel = blobs.kernel[:, 1] - blobs.kernel[:, 0]
    bias = blobs.bias[1] - blobs.bias[0]
    dense.set_weights([scale * kernel[:, None], scale * np.array([bias])])
    x, y = blobs.x[blobs.y < 2], blobs.y[blobs.y < 2]
    model.compile("sgd", "sparse_categorical_crossentropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = FGSM(0.4)(model, x, y)
    assert accuracy(model, x, y) == 1.0
    assert accuracy(model, found, y) == 0.0


class Ensemble(AdversarialMixin, keras.Model):
    """Joins two heads by a given function; Keras knows nothing of the shape that comes out."""

    def __init__(self, join):
        super().__init__()
        self.heads = [layers.Dense(4), layers.Dense(4)]
        self.join = join

    def call(self, x):
        return self.join([head(x) for head in self.heads])


def median_of_softmaxes(heads):
    return ops.median(ops.stack([ops.softmax(head) for head in heads]), axis=0)


# Each loses the number of classes, or even of axes, while TensorFlow traces it.
SHAPELESS = {
    "median": lambda heads: ops.median(ops.stack(heads), axis=0),
    "quantile": lambda heads: ops.quantile(ops.stack(heads), 0.5, axis=0),
    "python": lambda heads: tf.numpy_function(lambda a: a, [heads[0]], "float32") + heads[1],
}


def ensemble_of(blobs, join, scale=1.0):
    model = Ensemble(join)
    model(blobs.x[:1])
    model.set_weights([scale * blobs.kernel, scale * blobs.bias] * 2)
    return model


@pytest.mark.parametrize("name", SHAPELESS)
def test_model_whose_trace_loses_the_shape_is_attacked(name, blobs):
    model = ensemble_of(blobs, SHAPELESS[name])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert accuracy(model, attack()(model, blobs.x, blobs.y), blobs.y) < 0.3


@pytest.mark.parametrize("loss", [None, "sparse_categorical_crossentropy"])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_median_of_softmaxes_is_reported_as_masked(loss, run_eagerly, blobs):
    model = ensemble_of(blobs, median_of_softmaxes, SCALE)
    model.compile(loss=loss, run_eagerly=run_eagerly)
    assert attack().run(model, blobs.x, blobs.y).masked


# Of the third, not even Keras finds the loss.
@pytest.mark.parametrize("name", ["median", "quantile"])
def test_training_on_a_model_whose_trace_loses_the_shape_is_refused(name, blobs):
    model = ensemble_of(blobs, SHAPELESS[name])
    model.compile("sgd", "mse", adversarial=attack())
    rows = keras.utils.to_categorical(blobs.y, 4)
    with pytest.raises(ValueError, match=r"must show how many classes.*keras\.ops\.reshape"):
        model.fit(blobs.x, rows, batch_size=20, verbose=0)
    model = ensemble_of(blobs, lambda heads: ops.reshape(SHAPELESS[name](heads), (-1, 4)))
    model.compile("sgd", "mse", adversarial=attack())
    model.fit(blobs.x, rows, batch_size=20, verbose=0)


def _sums_of_products(heads, count):
    value = ops.softmax(heads[0])
    for _ in range(count):
        value = (value + value * value) * 0.5
    return value


def _doubled(heads, count):
    value = ops.softmax(heads[0])
    for _ in range(count):
        value = value + value
    return value


def _times_a_positive(heads, count):
    value = ops.max(ops.softmax(heads[0]), axis=-1, keepdims=True)
    for _ in range(count):
        value = value + value * value * 0.1
    return ops.softmax(heads[0]) * value


# A value that is used twice at each step has 2 ** 30 ways back. Traced alone: TensorFlow takes as
# long to optimise the second.
@pytest.mark.parametrize("chain", [_sums_of_products, _doubled, _times_a_positive])
def test_each_step_of_a_long_chain_is_looked_at_once(chain):
    found = []

    def trace(x):
        found.append(find_scores(chain([x], 30)))
        return x

    tf.function(trace, autograph=False).get_concrete_function(tf.TensorSpec((2, 4)))
    assert found[0].values is not None
    assert not found[0].hidden


def test_long_chain_is_attacked_as_the_scores_behind_it(blobs):
    plain = attack().run(ensemble_of(blobs, lambda heads: heads[0]), blobs.x, blobs.y)
    chain = ensemble_of(blobs, lambda heads: _sums_of_products(heads, 20))
    result = attack().run(chain, blobs.x, blobs.y)
    assert not result.masked
    np.testing.assert_array_equal(result.fooled, plain.fooled)


def test_chain_that_is_longer_than_anybody_looks_is_reported(blobs):
    model = ensemble_of(blobs, lambda heads: _sums_of_products(heads, 80))
    assert attack().run(model, blobs.x[:4], blobs.y[:4]).masked
