"""What an attack maximises: the model's own loss, taken on logits wherever there are any.

The cross-entropy of a saturated softmax has a gradient of exactly zero, and an attack that follows
it stands still: the model looks robust and is not. Here each example's objective is the *logarithm*
of its cross-entropy, computed from the logit margin

    m = logsumexp(z_j, j != y) - z_y,        cross-entropy = softplus(m),

whose gradient is that of the cross-entropy times a positive number, so that sign and l2-normalised
steps go the same way, and which neither under- nor overflows however large the logits are.

What is attacked is what is scored: wherever the labels name one class per example, y is that class,
whatever the loss the model was trained with and however smooth its labels.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import losses, one_class
from keras_modelsec.robustness.attacks.fooled import fooled
from keras_modelsec.robustness.attacks.logits import TermFacts, logits_of

Tensor = Any


@dataclass(frozen=True)
class Score:
    """How far an attack got on each example.

    Attributes:
        loss: (batch,) float32. Grows with the model's loss on that example.
        fooled: (batch,) bool. Whether the prediction differs from the label; False throughout for
            models without one class prediction per example.
        named: (batch,) bool. Whether there is such a prediction, and a label to compare it with.
    """

    loss: Tensor
    fooled: Tensor
    named: Tensor


class Objective:
    """Scores each example of a batch; independent of the other examples and of sample weights.

    Where the labels name one class per example, it is the cross-entropy of that class, on the
    scores behind the output: those Keras remembers, those found in the graph (see `scores`), the
    output itself, or the clipped logarithm of probabilities as the last resort. Labels may be
    smoothed, in `y` or in the loss, and the loss may be any. Several labels with a cross-entropy
    are attacked by it, on logits likewise; anything else by the compiled loss as it is. Several
    losses are added with their `loss_weights`, so that one output may hide how weak another is. The
    sign of a weight does not count where there are classes, nor do weights that are all zero.
    Without a compiled loss, the cross-entropy that fits the shapes of labels and outputs is used.

    Args:
        model: The attacked model.
        facts: What is known of each loss. Default None: whether labels name one class is then
            decided for each batch as a whole.
        shapes: The shape of each output, the batch open, for where a trace loses it. Default None:
            such an output is then refused.

    Attributes:
        masked: After a call or a trace: whether some output saturates, or consists of
            probabilities, and the scores behind it were not found.
        followed: After a call or a trace of a model with several outputs: the name of each loss
            that is followed, and its weight. Empty for one output.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        facts: list[TermFacts] | None = None,
        shapes: list[tuple[int | None, ...]] | None = None,
    ):
        self._shapes = shapes
        self._terms = internals.LossTerms(model) if internals.compiled_loss(model) else None
        self._facts = facts
        self.masked = False
        self.followed: tuple[tuple[str, float], ...] = ()

    def terms(self, y: Any, outputs: Any) -> list[internals.LossTerm]:
        """The losses that make up the objective, with the labels and outputs each compares."""
        return _inferred_terms(y, outputs) if self._terms is None else self._terms(y, outputs)

    def __call__(self, y: Any, outputs: Any) -> Score:
        """The score of each example, for labels `y` and the model's `outputs`.

        Raises:
            ValueError: If the trace does not show how many classes there are, and nothing else
                does.
        """
        terms = self.terms(y, _with_known_classes(outputs, self._shapes))
        facts: Sequence[TermFacts | None] = self._facts or [None] * len(terms)
        followed = _followed(terms)
        if len(keras.tree.flatten(outputs)) > 1:
            self.followed = tuple((term.name, term.weight) for term in followed if term.weight)
        parts = [self._part(t, f) for t, f in zip(followed, facts, strict=True) if t.weight]
        loss = losses.total(parts)
        if len(parts) == 1 and parts[0].fooled is not None:
            named = ops.broadcast_to(parts[0].named, ops.shape(parts[0].fooled))
            return Score(loss, parts[0].fooled, named)
        neither = ops.zeros_like(loss, dtype="bool")
        return Score(loss, neither, neither)

    def logits(self, y: Any, outputs: Any) -> tuple[Tensor, Tensor]:
        """(batch, classes) logits and (batch,) class numbers, where examples have one class each.

        Of one output unit, the logits are 0 and its own.

        Raises:
            ValueError: If there are several outputs, or labels that do not name one class.
        """
        terms = self.terms(y, _with_known_classes(outputs, self._shapes))
        facts = self._facts[0] if self._facts else None
        term = terms[0]
        named = one_class.name_one_class(term.y_true, term.y_pred)
        named = facts.one_class if facts is not None else named is not False
        if len(terms) != 1 or not named or len(keras.tree.flatten(outputs)) != 1:
            raise ValueError(
                "The model must predict one class for each example, with one output, for this "
                f"attack. Received: {len(keras.tree.flatten(outputs))} outputs, labels of shape "
                f"{tuple(term.y_true.shape)}. Wrap the output to attack in a model of its own."
            )
        values, masked = logits_of(term, one_class.classification_kind(term), facts)
        self.masked = self.masked or masked
        if not one_class.has_one_unit(term.y_pred):
            return values, one_class.class_numbers(term.y_true, values.shape[-1])
        unit = ops.reshape(values, (-1, 1))
        number = ops.reshape(one_class.zero_or_one(term.y_true), (-1,))
        return ops.concatenate([ops.zeros_like(unit), unit], axis=1), ops.cast(number, "int32")

    def _part(self, term: internals.LossTerm, facts: TermFacts | None) -> losses.Part:
        kind = one_class.classification_kind(term)
        named = one_class.name_one_class(term.y_true, term.y_pred)
        if facts is not None:
            named = facts.one_class
        if kind is None and named is False:
            return losses.Part(None, losses.own_losses(term), None, term.weight)
        logits, masked = logits_of(term, kind, facts)
        self.masked = self.masked or masked
        if kind in ("sparse", "categorical"):
            ignored = internals.loss_function(term.loss)[1].get("ignore_class")
            of_each = losses.categorical(term.y_true, logits, kind == "sparse", ignored)
            return losses.Part(losses.flat(of_each), None, fooled(term, True, facts), term.weight)
        is_fooled = None if named is False else fooled(term, named, facts)
        if kind == "binary" and (named is False or one_class.has_one_unit(term.y_pred)):
            y = one_class.zero_or_one(term.y_true) if named is True else term.y_true
            of_each = losses.binary(y, logits)
            return losses.Part(losses.flat(of_each), None, is_fooled, term.weight, named=named)
        hard = losses.hard_log_losses(term, logits)
        if named is True:
            return losses.Part(hard[:, None], None, is_fooled, term.weight, named=named)
        if kind == "binary":
            soft = losses.mean_of_logs(losses.flat(losses.binary(term.y_true, logits)))
            log_losses = ops.where(named, hard, soft)[:, None]
            return losses.Part(log_losses, None, is_fooled, term.weight, named=named)
        own = losses.own_losses(term)
        values = ops.where(named, ops.exp(hard), own)
        alone = ops.where(named, hard, own)
        return losses.Part(None, values, is_fooled, term.weight, alone, named)


def _with_known_classes(outputs: Any, shapes: list[tuple[int | None, ...]] | None) -> Any:
    """The outputs, with the shapes that an operation such as `keras.ops.median` has lost."""
    leaves = keras.tree.flatten(outputs)
    for index, leaf in enumerate(leaves):
        shape = backend.static_shape(leaf)
        if shape is not None and (len(shape) < 2 or shape[-1] is not None):
            continue
        if shapes is None:
            raise ValueError(
                "The model must show how many classes it has while a training step is traced. "
                f"Received: an output of shape {shape}, whose shape some operation in the model "
                "loses (keras.ops.median and quantile do). End the model with "
                "keras.ops.reshape(outputs, (-1, classes))."
            )
        leaves[index] = backend.with_shape(leaf, shapes[index])
    return keras.tree.pack_sequence_as(outputs, leaves)


def _followed(terms: list[internals.LossTerm]) -> list[internals.LossTerm]:
    """The losses with the weights to follow them with.

    A weight below zero would turn the attack on a class around, and a weight of zero for all
    leaves nothing to follow, though the classes are scored all the same.
    """
    if not any(term.weight for term in terms):
        return [dataclasses.replace(term, weight=1.0) for term in terms]
    return [
        dataclasses.replace(term, weight=abs(term.weight)) if _scores_classes(term) else term
        for term in terms
    ]


def _scores_classes(term: internals.LossTerm) -> bool:
    named = one_class.name_one_class(term.y_true, term.y_pred)
    return named is not False or one_class.classification_kind(term) is not None


def _inferred_terms(y: Any, outputs: Any) -> list[internals.LossTerm]:
    labels, predictions = keras.tree.flatten(y), keras.tree.flatten(outputs)
    if len(labels) != len(predictions):
        raise ValueError(
            "`y` must have one array for each output of the model. Received: "
            f"{len(labels)} for {len(predictions)} outputs. Compile the model with its losses if "
            "only some outputs have labels."
        )
    return [
        internals.LossTerm(None, 1.0, label, prediction, f"output_{index}")
        for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True))
    ]
