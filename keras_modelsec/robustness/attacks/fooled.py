"""What counts as fooled: the output itself, which is what is scored, names another class."""

from typing import Any

from keras import ops

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import one_class
from keras_modelsec.robustness.attacks.logits import TermFacts

Tensor = Any


def fooled(
    term: internals.LossTerm, named: Tensor | bool, facts: TermFacts | None
) -> Tensor | None:
    """(batch,) bool: whether the output itself, which is what is scored, names another class."""
    output = ops.cast(term.y_pred, "float32")
    if one_class.has_one_unit(output):
        y = one_class.zero_or_one(term.y_true) if named is not False else term.y_true
        low = one_class.unit_threshold(
            term.loss, probabilities=facts is not None and facts.probabilities, signs=False
        )
        signs = one_class.are_signs(term.y_true)
        threshold = ops.where(signs, 0.0, low)
        chosen = ops.reshape(output, (-1,)) > threshold
        return ops.not_equal(chosen, ops.reshape(ops.cast(y, "float32"), (-1,)) > 0.5)
    if len(output.shape) != 2:
        return None
    wrong = ops.not_equal(
        ops.cast(ops.argmax(output, axis=-1), "int32"),
        one_class.class_numbers(term.y_true, output.shape[1]),
    )
    return wrong if named is True else ops.logical_and(named, wrong)
