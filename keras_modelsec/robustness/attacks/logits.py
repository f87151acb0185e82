"""The logits that an attack follows: those behind an output, or the best that stands for them."""

from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import one_class
from keras_modelsec.robustness.attacks.scores import find_scores

Tensor = Any

# Smallest probability whose logarithm is taken; float32 ends at 1.2e-38.
_SMALLEST = 1e-37
# How far the probabilities of an example may sum from 1, in any precision.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class TermFacts:
    """What is known of one loss before the attack, from all labels and a few outputs.

    Attributes:
        one_class: Whether the labels of each example name one class.
        probabilities: Whether the outputs look like probabilities.
        saturates: Whether a trace of the model shows that this output saturates.
    """

    one_class: bool
    probabilities: bool
    saturates: bool = False


def logits_of(
    term: internals.LossTerm, kind: str | None, facts: TermFacts | None
) -> tuple[Tensor, bool]:
    """What stands for the logits of one output, and whether that is masked.

    Args:
        term: The loss that the output goes into.
        kind: Which cross-entropy that is, if any.
        facts: What is known of it from all labels and a few outputs, or None.

    Returns:
        Logits in the shape of the output, float32, and whether the output saturates, or consists of
        probabilities, and the scores behind it were not found.
    """
    found = find_scores(term.y_pred)
    if found.values is not None:
        return found.values, found.hidden
    from_logits = internals.loss_function(term.loss)[1].get("from_logits", False)
    crossentropy = kind is not None and not from_logits
    if facts is None:
        probabilities = crossentropy and term.loss is not None
    else:
        # A linear unit may lie in [0, 1] by chance; what a loss takes for one does not.
        one_unit = one_class.has_one_unit(term.y_pred)
        probabilities = facts.probabilities and (crossentropy or not one_unit)
        probabilities = probabilities or facts.saturates
    masked = found.hidden or probabilities
    output = ops.cast(term.y_pred, "float32")
    if kind == "binary" or one_class.has_one_unit(output):
        return (output if from_logits else _inverse_sigmoid(output)), masked
    normalized = crossentropy and term.loss is not None
    return _logarithm_of_distributions(output, normalized), masked


def _inverse_sigmoid(output: Tensor) -> Tensor:
    """The logit of what lies in [0, 1]; anything else is no probability and stays as it is."""
    inside = ops.logical_and(output >= 0.0, output <= 1.0)
    return ops.where(inside, clipped_log(output) - clipped_log(1.0 - output), output)


def _logarithm_of_distributions(output: Tensor, normalized: bool) -> Tensor:
    """The logarithm of each row of probabilities; other rows are scores and stay as they are.

    `normalized`: whether the loss divides each row by its sum, so that any positive row will do.
    """
    positive = ops.all(output >= 0.0, axis=-1, keepdims=True)
    sums = ops.abs(ops.sum(output, axis=-1, keepdims=True) - 1.0) < _SUM_TOLERANCE
    rows = positive if normalized else ops.logical_and(positive, sums)
    return ops.where(rows, clipped_log(output), output)


def clipped_log(values: Tensor) -> Tensor:
    """The logarithm, of nothing smaller than the smallest float32."""
    return ops.log(ops.maximum(values, _SMALLEST))
