"""Which class the labels of an example name, and which cross-entropy labels of a form call for."""

from typing import Any

import keras
from keras import ops

from keras_modelsec._core import keras_internals as internals

Tensor = Any

# How far the entries of a row may be from the numbers they stand for, in any precision.
_TOLERANCE = 1e-3
# How far a row of probabilities may sum from 1.
_SUM_TOLERANCE = 1e-2

_KIND_BY_FUNCTION = {
    keras.losses.sparse_categorical_crossentropy: "sparse",
    keras.losses.categorical_crossentropy: "categorical",
    keras.losses.binary_crossentropy: "binary",
}


def rows_name_one_class(rows: Tensor) -> Tensor:
    """(batch, ...) bool: whether each row of (batch, ..., classes) stands for its largest entry.

    True for one-hot rows (0 and 1, or -1 and 1), also with their labels smoothed, and for
    probabilities with one largest entry. False for rows with several labels, or with none.
    """
    rows = ops.cast(rows, "float32")
    high, low = ops.max(rows, axis=-1, keepdims=True), ops.min(rows, axis=-1, keepdims=True)
    chosen = rows > high - _TOLERANCE
    single = ops.equal(ops.sum(ops.cast(chosen, "int32"), axis=-1), 1)
    rest = ops.max(ops.where(chosen, low, rows), axis=-1, keepdims=True)
    middle = ops.abs(high + low)
    # Smoothing moves 0 and 1 towards 1/2, -1 and 1 towards 0: their sum stays what it was.
    paired = ops.logical_or(middle < _TOLERANCE, ops.abs(middle - 1.0) < _TOLERANCE)
    two_values = ops.logical_and(rest < low + _TOLERANCE, paired)
    total = ops.sum(rows, axis=-1, keepdims=True)
    probabilities = ops.logical_and(low >= -_TOLERANCE, ops.abs(total - 1.0) < _SUM_TOLERANCE)
    return ops.logical_and(single, ops.logical_or(two_values, probabilities)[..., 0])


def are_rows_for(y: Tensor, output: Tensor) -> bool:
    """Whether labels and outputs are both (batch, classes) with several classes."""
    return len(y.shape) == 2 and len(output.shape) == 2 and 1 < y.shape[1] == output.shape[1]


def are_numbers_for(y: Tensor, output: Tensor) -> bool:
    """Whether labels are numbers, (batch,) or (batch, 1), for outputs (batch, several classes).

    Class numbers are often floats: Keras's losses take them, and tables hold nothing else.
    """
    dtype = keras.backend.standardize_dtype(y.dtype)
    column = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)
    numbers = "int" in dtype or "float" in dtype
    return numbers and column and len(output.shape) == 2 and output.shape[1] > 1


def has_one_unit(output: Tensor) -> bool:
    """Whether the output is one number for each example: (batch,) or (batch, 1)."""
    return len(output.shape) == 1 or (len(output.shape) == 2 and output.shape[1] == 1)


def are_signs(y: Tensor) -> Tensor:
    """Scalar bool: whether all labels are -1 or 1, and one is -1."""
    y = ops.cast(y, "float32")
    return ops.logical_and(ops.all(ops.equal(ops.abs(y), 1.0)), ops.any(y < 0.0))


def name_one_class(y: Tensor, output: Tensor) -> Tensor | bool:
    """Whether the labels of each example of the batch name one of the classes of `output`.

    A scalar bool tensor, or False where the shapes alone say no.
    """
    if are_rows_for(y, output):
        return ops.all(rows_name_one_class(y))
    if are_numbers_for(y, output):
        inside = ops.logical_and(y >= 0, y < output.shape[1])
        whole = ops.equal(y, ops.round(y)) if "float" in str(y.dtype) else inside
        return ops.all(ops.logical_and(inside, whole))
    if has_one_unit(output) and has_one_unit(y):
        values = ops.cast(y, "float32")
        binary = ops.logical_or(ops.equal(values, 0.0), ops.equal(values, 1.0))
        return ops.logical_or(ops.all(binary), are_signs(y))
    return False


def unit_threshold(loss: Any, *, probabilities: bool, signs: bool) -> float:
    """Above which value a single output unit means class 1.

    Args:
        loss: The loss the model was compiled with, or None.
        probabilities: For a model without a loss: whether its outputs lie in [0, 1].
        signs: Whether the labels are -1 and 1.
    """
    if loss is None:
        return 0.5 if probabilities else 0.0
    function, arguments = internals.loss_function(loss)
    around_zero = (function or loss) in (keras.losses.hinge, keras.losses.squared_hinge)
    return 0.0 if signs or around_zero or arguments.get("from_logits", False) else 0.5


def zero_or_one(y: Tensor) -> Tensor:
    """Labels of one unit as 0 and 1, where they may be -1 and 1."""
    y = ops.cast(y, "float32")
    return ops.where(are_signs(y), ops.cast(y > 0, "float32"), y)


def class_numbers(y: Tensor, classes: int) -> Tensor:
    """(batch,) class numbers of labels that name one class each; in range whatever they hold."""
    if len(y.shape) == 2 and y.shape[1] == classes:
        return ops.cast(ops.argmax(y, axis=-1), "int32")
    return ops.clip(ops.cast(ops.reshape(y, (-1,)), "int32"), 0, classes - 1)


def infer_kind(y: Any, output: Any) -> str:
    """The cross-entropy that labels and outputs of these shapes call for.

    Returns:
        "sparse" (class numbers), "categorical" (one-hot rows) or "binary" (one logit).

    Raises:
        ValueError: If none does.
    """
    y_rank, rank = len(y.shape), len(output.shape)
    integer = "int" in keras.backend.standardize_dtype(y.dtype)
    classes = output.shape[-1] if rank > 1 else 1
    if classes == 1:
        return "binary"
    if integer and (y_rank == rank - 1 or (y_rank == rank and y.shape[-1] == 1)):
        return "sparse"
    if y_rank == rank and y.shape[-1] == classes:
        return "categorical"
    raise ValueError(
        "`y` must hold class numbers or one-hot rows that fit the outputs of a model compiled "
        f"without a loss. Received: y of shape {tuple(y.shape)} and dtype "
        f"{keras.backend.standardize_dtype(y.dtype)} for outputs of shape {tuple(output.shape)}. "
        "Compile the model with the loss to attack, or give integer class numbers."
    )


def classification_kind(term: internals.LossTerm) -> str | None:
    """Which cross-entropy the model was trained with; None for another loss."""
    if term.loss is None:
        return infer_kind(term.y_true, term.y_pred)
    return _KIND_BY_FUNCTION.get(internals.loss_function(term.loss)[0])
