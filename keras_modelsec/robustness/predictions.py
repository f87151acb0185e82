"""From a model's outputs to predicted classes, and from labels to true ones."""

import weakref
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks.model_functions import ModelFunctions, form, tensors


class Predictor:
    """Runs models on arrays in inference mode, compiled once for each model."""

    def __init__(self) -> None:
        self._functions = ModelFunctions()

    def classes(self, model: keras.Model, x: Any, *, batch_size: int) -> np.ndarray:
        """The predicted class of each example, (examples,) of integers.

        Raises:
            ValueError: If the model does not predict one class for each example.
        """
        key = form(x), bool(model.run_eagerly)
        function = self._functions.get(model, key, lambda: _compile(model, x))
        count = len(keras.tree.flatten(x)[0])
        outputs = [
            _single(function(tensors(x, slice(start, start + batch_size))))
            for start in range(0, count, batch_size)
        ]
        return _to_classes(np.concatenate(outputs), _threshold(model))


def true_classes(y: Any) -> np.ndarray:
    """Class numbers from class numbers, a column of them, or one-hot rows.

    Raises:
        ValueError: If `y` holds anything else.
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return labels.argmax(axis=-1)
    if labels.ndim != 1 or (labels != np.round(labels)).any():
        raise ValueError(
            "`y` must hold one class for each example: class numbers or one-hot rows. Received: "
            f"shape {labels.shape}, dtype {labels.dtype}. Models with several labels per example "
            "have no single accuracy; attack them with `attack(model, x, y)` and compare yourself."
        )
    return labels.astype("int64")


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


def _threshold(model: keras.Model) -> float:
    """Where a single output unit changes from class 0 to class 1: a probability or a logit."""
    loss = keras.tree.flatten(internals.user_loss(model))
    from_logits = loss and internals.loss_function(loss[0])[1].get("from_logits", False)
    return 0.0 if from_logits else 0.5
