import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_modelsec.robustness.attacks.objective import Objective
from keras_modelsec.robustness.attacks.one_class import infer_kind

LOGITS = np.random.default_rng(0).normal(0, 3, (20, 5)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 5, 20)


def compiled(loss, **arguments):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss=loss, **arguments)
    return model


def score_and_gradient(objective, y, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        score = objective(y, logits)
        total = tf.reduce_sum(score.loss)
    return score, tape.gradient(total, logits).numpy()


def crossentropy_gradient(y, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(y, logits))
    return tape.gradient(total, logits).numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("one_hot", [False, True])
def test_gradient_is_parallel_to_that_of_the_crossentropy(one_hot):
    rows = keras.utils.to_categorical(LABELS, 5)
    loss = (
        keras.losses.CategoricalCrossentropy(from_logits=True)
        if one_hot
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    y = rows if one_hot else LABELS
    score, gradient = score_and_gradient(Objective(compiled(loss)), y, LOGITS)
    np.testing.assert_allclose(
        unit(gradient), unit(crossentropy_gradient(rows, LOGITS)), rtol=1e-3, atol=1e-4
    )
    expected = tf.nn.softmax_cross_entropy_with_logits(rows, LOGITS).numpy()
    np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(score.fooled, LOGITS.argmax(1) != LABELS)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("ending", ["distribution", "smoothed", "signs"])
def test_labels_that_name_one_class_are_attacked_as_that_class(ending, smoothing):
    """As they are scored: the optimum of a smoothed loss is not where the prediction changes."""
    rows = keras.utils.to_categorical(LABELS, 5)
    soft = {
        "distribution": tf.nn.softmax(3 * rows + LOGITS / 10).numpy(),
        "smoothed": rows * 0.6 + 0.08,
        "signs": 2 * rows - 1,
    }[ending]
    losses = [
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing),
        keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing),
        "categorical_hinge",
        "squared_hinge",
        "mse",
        lambda y, p: ops.sum(ops.softmax(p) * y, axis=-1),
    ]
    expected = tf.nn.softmax_cross_entropy_with_logits(rows, LOGITS).numpy()
    for loss in losses:
        score, gradient = score_and_gradient(Objective(compiled(loss)), soft, LOGITS)
        np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            unit(gradient), unit(crossentropy_gradient(rows, LOGITS)), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_array_equal(score.fooled, LOGITS.argmax(1) != LABELS)


def test_class_numbers_are_attacked_as_such_whatever_the_loss():
    loss = lambda y, p: -ops.sum(ops.softmax(p), axis=-1)  # noqa: E731
    for y in (LABELS, LABELS[:, None]):
        score, _ = score_and_gradient(Objective(compiled(loss)), y, LOGITS)
        expected = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, LOGITS).numpy()
        np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4, atol=1e-6)


def test_probabilities_without_one_largest_entry_use_their_crossentropy():
    soft = np.tile(np.array([0.5, 0.5, 0, 0, 0], "float32"), (20, 1))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    score, gradient = score_and_gradient(Objective(compiled(loss)), soft, LOGITS)
    expected = tf.nn.softmax_cross_entropy_with_logits(soft, LOGITS).numpy()
    np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4)
    np.testing.assert_allclose(
        unit(gradient), unit(crossentropy_gradient(soft, LOGITS)), rtol=1e-3, atol=1e-4
    )


def test_several_labels_are_attacked_by_their_own_loss():
    several = np.random.default_rng(2).integers(0, 2, (20, 5)).astype("float32")
    several[0] = [1, 1, 0, 0, 0]
    score, _ = score_and_gradient(
        Objective(compiled(keras.losses.BinaryCrossentropy(from_logits=True))), several, LOGITS
    )
    expected = tf.nn.sigmoid_cross_entropy_with_logits(several, LOGITS).numpy().mean(1)
    np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4)
    assert not np.asarray(score.fooled).any()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_gradient_does_not_vanish_where_that_of_the_crossentropy_does(scale):
    confident = np.eye(5, dtype="float32")[LABELS] * np.float32(scale)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    score, gradient = score_and_gradient(Objective(compiled(loss)), LABELS, confident)
    assert np.isfinite(score.loss).all()
    assert (np.abs(gradient).max(axis=1) > 0.1).all()
    if scale > 1.0:
        plain = crossentropy_gradient(keras.utils.to_categorical(LABELS, 5), confident)
        assert (plain == 0).all()


def test_binary_gradient_does_not_vanish_and_loss_is_the_crossentropy():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    logits = np.array([[-2000.0], [-2.0], [0.5], [2000.0]], "float32")
    y = np.array([0, 1, 1, 1])
    score, gradient = score_and_gradient(Objective(model), y, logits)
    assert (np.abs(gradient) > 0.1).all()
    np.testing.assert_array_equal(np.sign(gradient[:, 0]), [1, -1, -1, -1])
    np.testing.assert_array_equal(score.fooled, [False, True, False, False])
    np.testing.assert_allclose(np.exp(score.loss[1:3]), np.log1p(np.exp([2.0, -0.5])), rtol=1e-5)


def test_outputs_are_weighted_as_compiled():
    inputs = keras.Input((5,))
    outputs = {
        "a": keras.layers.Identity(name="a")(inputs),
        "b": keras.layers.Identity(name="b")(inputs),
    }
    model = keras.Model(inputs, outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss={"a": crossentropy, "b": "mse"}, loss_weights={"a": 2.0, "b": 0.5})
    target = np.zeros((20, 5), "float32")
    score = Objective(model)({"a": LABELS, "b": target}, model(LOGITS))
    expected = 2.0 * tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, LOGITS).numpy()
    expected = expected + 0.5 * (LOGITS**2).mean(axis=1)
    np.testing.assert_allclose(score.loss, expected, rtol=1e-4)


def test_positions_of_a_segmentation_are_averaged_and_ignored_ones_left_out():
    logits = LOGITS.reshape(2, 10, 5)
    labels = LABELS.reshape(2, 10).copy()
    labels[:, 7:] = 255
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    score, gradient = score_and_gradient(Objective(compiled(loss)), labels, logits)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:, :7], logits[:, :7]).numpy()
    np.testing.assert_allclose(np.exp(score.loss), each.sum(axis=1) / 10, rtol=1e-4)
    assert (gradient[:, 7:] == 0).all()
    assert np.isfinite(gradient).all()


def test_examples_do_not_influence_each_other():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    objective = Objective(compiled(loss))
    whole, whole_gradient = score_and_gradient(objective, LABELS, LOGITS)
    alone, alone_gradient = score_and_gradient(objective, LABELS[3:4], LOGITS[3:4])
    np.testing.assert_allclose(whole.loss[3:4], alone.loss, rtol=1e-6)
    np.testing.assert_allclose(whole_gradient[3:4], alone_gradient, rtol=1e-6)


def test_label_smoothing_is_left_out():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    rows = keras.utils.to_categorical(LABELS, 5)
    score = Objective(compiled(loss))(rows, ops.convert_to_tensor(LOGITS))
    expected = tf.nn.softmax_cross_entropy_with_logits(rows, LOGITS).numpy()
    np.testing.assert_allclose(np.exp(score.loss), expected, rtol=1e-4, atol=1e-6)


def test_loss_given_by_name_of_no_crossentropy_is_used_as_it_is():
    target = np.zeros((20, 5), "float32")
    score = Objective(compiled("mae"))(target, ops.convert_to_tensor(LOGITS))
    np.testing.assert_allclose(score.loss, np.abs(LOGITS).mean(axis=1), rtol=1e-5)
    assert not np.asarray(score.fooled).any()


@pytest.mark.parametrize(
    ("labels", "dtype", "outputs", "kind"),
    [
        ((7,), "int64", (7, 3), "sparse"),
        ((7, 1), "uint8", (7, 3), "sparse"),
        ((7, 3), "float32", (7, 3), "categorical"),
        ((7,), "float32", (7, 1), "binary"),
        ((7, 1), "int32", (7,), "binary"),
        ((7, 4, 4), "int32", (7, 4, 4, 3), "sparse"),
    ],
)
def test_kind_is_inferred_from_shapes(labels, dtype, outputs, kind):
    assert infer_kind(np.zeros(labels, dtype), np.zeros(outputs, "float32")) == kind


def test_labels_that_fit_nothing_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"shape \(7, 2\).*outputs of shape \(7, 3\).*Compile"):
        infer_kind(np.zeros((7, 2), "float32"), np.zeros((7, 3), "float32"))
