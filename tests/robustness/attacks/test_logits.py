"""A saturated softmax must not make a model look robust."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_modelsec.robustness.attacks import FGSM, GradientVanishedWarning

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


def probabilities_without_a_trace(blobs, scale):
    """The mean of two equal softmaxes: probabilities whose logits nobody can recover."""
    inputs = keras.Input((64,))
    dense = layers.Dense(4, activation="softmax")
    output = dense(inputs)
    model = keras.Model(inputs, layers.Average()([output, output]))
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
    model = probabilities_without_a_trace(blobs, SCALE)
    with pytest.warns(GradientVanishedWarning, match=r"zero for 96 of 96 examples.*return logits"):
        attack()(model, blobs.x, blobs.y)


def test_logarithm_of_probabilities_works_until_they_underflow(blobs):
    """Keras's own loss clips at 1e-7 and is blind here; the attack on 1e-30 is not."""
    scale = 25.0
    model = probabilities_without_a_trace(blobs, scale)
    smallest = np.sort(np.asarray(model(blobs.x)), axis=1)[:, 2]
    assert np.median(smallest) < 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientVanishedWarning)
        adversarial = attack()(model, blobs.x, blobs.y)
    assert accuracy(model, adversarial, blobs.y) < 0.05


def test_training_step_attacks_the_logits_of_a_saturated_softmax(blobs, linear_model):
    """Inside `fit` too: the perturbation is there although the softmax is saturated."""
    model = linear_model("softmax", scale=SCALE)
    model.compile("sgd", "sparse_categorical_crossentropy")
    step = attack()
    state = step.new_state()
    perturbed = tf.function(lambda x, y: step.perturb(model, x, y, state))(
        tf.constant(blobs.x), tf.constant(blobs.y)
    )
    assert accuracy(model, perturbed, blobs.y) < 0.05
