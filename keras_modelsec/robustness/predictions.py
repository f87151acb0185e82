"""From a model's outputs to predicted classes, and from labels to true ones."""

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.undisturbed import undisturbed
from keras_modelsec.robustness.attacks import one_class
from keras_modelsec.robustness.attacks.model_functions import ModelFunctions, form, tensors


class Predictor:
    """Runs models on arrays in inference mode, compiled once for each model."""

    def __init__(self) -> None:
        self._functions = ModelFunctions()

    def classes(
        self,
        model: keras.Model,
        x: Any,
        *,
        batch_size: int,
        signs: bool = False,
        labels: np.ndarray | None = None,
    ) -> np.ndarray:
        """The predicted class of each example, (examples,) of integers.

        Args:
            model: The model to run.
            x: Its inputs.
            batch_size: How many examples are run together.
            signs: Whether the labels of a model with one output unit are -1 and 1.
            labels: The true classes, where they are to be checked against the outputs.

        Raises:
            ValueError: If the model does not predict one class for each example, or has one output
                unit and `labels` are not 0 and 1.
        """
        key = form(x), bool(model.run_eagerly)
        count = len(keras.tree.flatten(x)[0])
        with undisturbed(model):
            function = self._functions.get(model, key, lambda: _compile(model, x))
            outputs = [
                _single(function(tensors(x, slice(start, start + batch_size))))
                for start in range(0, count, batch_size)
            ]
        together = np.concatenate(outputs)
        if labels is not None and one_class.has_one_unit(together):
            _check_binary(labels)
        return _to_classes(together, _threshold(model, together, signs))


def true_classes(y: Any) -> np.ndarray:
    """Class numbers from class numbers, a column of them, or one-hot rows.

    Rows may hold -1 and 1 in place of 0 and 1, smoothed labels or probabilities; -1 and 1 are the
    classes 0 and 1 of a model with one output unit.

    Raises:
        ValueError: If `y` holds anything else, such as rows with several labels or with none.
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        unclear = ~ops.convert_to_numpy(one_class.rows_name_one_class(labels))
        if unclear.any():
            raise _no_single_class(labels, f", with the row {labels[unclear][0]}")
        return labels.argmax(axis=-1)
    if labels.ndim != 1 or (labels != np.round(labels)).any():
        raise _no_single_class(labels)
    if one_class.are_signs(labels):
        return (labels > 0).astype("int64")
    return labels.astype("int64")


def _no_single_class(labels: np.ndarray, what: str = "") -> ValueError:
    return ValueError(
        "`y` must hold one class for each example: class numbers or one-hot rows. Received: "
        f"shape {labels.shape}, dtype {labels.dtype}{what}. Models with several labels per example "
        "have no single accuracy; attack them with `attack(model, x, y)` and compare yourself."
    )


def _compile(model: keras.Model, x: Any) -> Any:
    examples = tensors(x, slice(0, 1))
    if not model.built:
        internals.call_for_inference(model, examples)
    reference = weakref.ref(model)

    def function(x: Any) -> Any:
        return internals.call_for_inference(reference(), x)

    if model.run_eagerly:
        return function
    return backend.compile_for_batches(function, [examples], jit_compile=model.jit_compile)


def _single(outputs: Any) -> np.ndarray:
    leaves = keras.tree.flatten(outputs)
    shape = tuple(leaves[0].shape)
    if len(leaves) != 1 or len(shape) > 2:
        raise ValueError(
            "The model must have one output with one prediction for each example, of shape "
            f"(examples, classes). Received: {len(leaves)} outputs, the first of shape {shape}. "
            "Wrap the output to watch in a model of its own: keras.Model(inputs, output)."
        )
    return np.asarray(keras.ops.convert_to_numpy(leaves[0]), dtype="float32")


def _to_classes(outputs: np.ndarray, threshold: float) -> np.ndarray:
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(axis=-1)
    return (outputs.reshape(-1) > threshold).astype("int64")


def _check_binary(labels: np.ndarray) -> None:
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            "`y` must hold the classes 0 and 1 (or -1 and 1) for a model with one output unit. "
            f"Received classes from {labels.min()} to {labels.max()}."
        )


def _threshold(model: keras.Model, outputs: np.ndarray, signs: bool) -> float:
    """Where a single output unit changes from class 0 to class 1: a probability or a logit."""
    losses = keras.tree.flatten(internals.user_loss(model))
    loss = losses[0] if losses else None
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    probabilities = bool(((outputs >= 0) & (outputs <= 1)).all())
    return one_class.unit_threshold(loss, probabilities=probabilities, signs=signs)
