"""Labels that do not fit the outputs are refused by rule, value and remedy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_modelsec.robustness import RobustnessMonitor
from keras_modelsec.robustness.attacks import FGSM, DeepFool


@pytest.mark.parametrize(
    "loss", ["categorical_crossentropy", "categorical_focal_crossentropy", "kl_divergence"]
)
def test_rows_that_name_no_class_are_refused(loss, blobs, linear_model):
    """Their loss is 0 everywhere, so that the model would look perfectly robust."""
    model = linear_model("softmax")
    model.compile("sgd", loss)
    rows = keras.utils.to_categorical(blobs.y, 4)
    FGSM(0.1).run(model, blobs.x, rows)
    rows[5] = 0.0
    with pytest.raises(ValueError, match="1 rows that hold zeros only"):
        FGSM(0.1).run(model, blobs.x, rows)
    with pytest.raises(ValueError, match="one class for each example"):
        RobustnessMonitor(blobs.x, rows, FGSM(0.1))


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        ("binary_crossentropy", (1, 2)),
        ("binary_crossentropy", (0, 2)),
        ("binary_focal_crossentropy", (1, 2)),
        ("hinge", (1, 2)),
        ("squared_hinge", (-1, 2)),
    ],
)
def test_labels_of_one_unit_are_zero_and_one(loss, values, blobs):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", loss)
    y = np.where(blobs.y < 2, *values)
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        FGSM(0.1).run(model, blobs.x, y)
    with pytest.raises(ValueError, match="must hold the classes 0 and 1"):
        RobustnessMonitor(blobs.x, y, FGSM(0.1)).evaluate(model)


def test_monitor_refuses_a_third_class_of_one_unit_whatever_the_loss(blobs):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must hold the classes 0 and 1"):
        RobustnessMonitor(blobs.x, 1 + (blobs.y < 2), FGSM(0.1)).evaluate(model)
    FGSM(0.1).run(model, blobs.x, 2.5 * blobs.y)  # regression


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("sparse_categorical_crossentropy", "rows", "must hold class numbers.*rows of 4"),
        ("sparse_categorical_crossentropy", "halves", "whole class numbers. Received: 0.5"),
        ("categorical_crossentropy", "numbers", "rows of 4 numbers"),
        ("categorical_crossentropy", "wide", r"rows of 4 numbers.*\(.*, 5\)"),
    ],
)
def test_labels_in_another_form_than_the_loss_takes_are_refused(
    loss, labels, message, blobs, linear_model
):
    y = {
        "rows": keras.utils.to_categorical(blobs.y, 4),
        "wide": keras.utils.to_categorical(blobs.y, 5),
        "numbers": blobs.y,
        "halves": np.full(96, 0.5, "float32"),
    }[labels]
    model = linear_model("softmax")
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=message):
        FGSM(0.1).run(model, blobs.x, y)


@keras.saving.register_keras_serializable("test_labels")
class Focal(keras.losses.Loss):
    """As many write it: class numbers in any form, probabilities clipped."""

    def call(self, y_true, y_pred):
        """One value an example."""
        chosen = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), 4)
        p = ops.sum(chosen * ops.clip(y_pred, 1e-7, 1.0 - 1e-7), axis=-1)
        return -((1.0 - p) ** 2) * ops.log(p)


@pytest.mark.parametrize("attack", [FGSM(0.2), DeepFool(0.2)])
def test_class_numbers_may_be_floats_whatever_the_loss(attack, blobs, linear_model):
    """What Keras trains with: a loss of one's own is given labels in floating point."""
    model = linear_model("softmax", scale=1000.0)
    model.compile("sgd", Focal())
    expected = attack.run(model, blobs.x, blobs.y)
    found = attack.run(model, blobs.x, blobs.y.astype("float32"))
    assert expected.fooled.mean() > 0.5
    np.testing.assert_array_equal(found.fooled, expected.fooled)
    np.testing.assert_array_equal(found.x, expected.x)


def test_quantities_beside_rows_of_outputs_are_no_class_numbers(blobs, linear_model):
    """Several quantiles of one number, say."""
    model = linear_model()
    model.compile("sgd", lambda y, q: ops.mean(ops.maximum(0.3 * (y - q), 0.7 * (q - y)), axis=-1))
    result = FGSM(0.2).run(model, blobs.x, blobs.y[:, None] + 0.5)
    assert not result.fooled.any()
    assert not np.array_equal(result.x, blobs.x)
