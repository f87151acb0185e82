"""Do labels fit a model's outputs, and are those outputs probabilities?"""

from typing import Any

import keras
import numpy as np

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks.objective import classification_kind

# How far the probabilities of an example may sum from 1, in any precision.
_SUM_TOLERANCE = 1e-2


def look_like_probabilities(outputs: Any) -> bool:
    """Whether all outputs lie in [0, 1] and, where there are several per example, sum to 1."""
    for leaf in keras.tree.flatten(outputs):
        values = np.asarray(keras.ops.convert_to_numpy(leaf), dtype="float32")
        if not ((values >= 0).all() and (values <= 1).all()):
            return False
        if values.ndim > 1 and values.shape[-1] > 1:
            sums = values.sum(axis=-1)
            if not np.allclose(sums, 1.0, atol=_SUM_TOLERANCE):
                return False
    return True


def check_labels(terms: list[internals.LossTerm]) -> None:
    """Refuses labels that a cross-entropy would turn into nonsense without a word.

    Raises:
        ValueError: For class numbers the output does not have, and, on a model compiled without a
            loss, for rows that are not one-hot and binary labels other than 0 and 1.
    """
    for term in terms:
        kind = classification_kind(term)
        labels = np.asarray(term.y_true)
        if kind == "sparse":
            _check_class_numbers(labels, term)
        elif term.loss is None and kind == "categorical":
            if not np.allclose(labels.sum(axis=-1), 1.0, atol=_SUM_TOLERANCE):
                raise ValueError(
                    "`y` must hold rows that sum to 1. Received a row that sums to "
                    f"{_furthest(labels.sum(axis=-1), 1.0):g}. For several labels per example, "
                    "compile the model with 'binary_crossentropy'."
                )
        elif term.loss is None and kind == "binary" and not np.isin(labels, (0, 1)).all():
            raise ValueError(
                "`y` must hold 0 and 1 for a model with one output unit and no compiled loss. "
                f"Received: {labels[~np.isin(labels, (0, 1))][0]!r}. For regression, compile the "
                "model with its loss."
            )


def _check_class_numbers(labels: np.ndarray, term: internals.LossTerm) -> None:
    ignored = internals.loss_function(term.loss)[1].get("ignore_class")
    if ignored is not None:
        labels = labels[labels != ignored]
    classes = int(term.y_pred.shape[-1])
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"`y` must hold class numbers from 0 to {classes - 1}, as the model has {classes} "
            f"outputs. Received numbers from {labels.min()} to {labels.max()}."
        )


def _furthest(values: np.ndarray, target: float) -> float:
    return float(values.flat[np.abs(values - target).argmax()])
