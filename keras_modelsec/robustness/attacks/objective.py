"""What an attack maximises: the model's own loss, taken on logits wherever there are any.

The cross-entropy of a saturated softmax has a gradient of exactly zero, and an attack that follows
it stands still: the model looks robust and is not. Here each example's objective is the *logarithm*
of its cross-entropy, computed from the logit margin

    m = logsumexp(z_j, j != y) - z_y,        cross-entropy = softplus(m),

whose gradient is that of the cross-entropy times a positive number, so that sign and l2-normalised
steps go the same way, and which neither under- nor overflows however large the logits are.
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals

Tensor = Any

# Smallest probability whose logarithm is taken; float32 ends at 1.2e-38.
_SMALLEST = 1e-37
# Below this margin softplus(m) = exp(m) to float32 accuracy.
_EXPONENTIAL_BELOW = -15.0
# A one-hot row may miss 1 by a rounding error and still name its class alone.
_ONE_HOT_TOLERANCE = 1e-6

_KIND_BY_FUNCTION = {
    keras.losses.sparse_categorical_crossentropy: "sparse",
    keras.losses.categorical_crossentropy: "categorical",
    keras.losses.binary_crossentropy: "binary",
}


@dataclass(frozen=True)
class Score:
    """How far an attack got on each example.

    Attributes:
        loss: (batch,) float32. Grows with the model's loss on that example.
        fooled: (batch,) bool. Whether the prediction differs from the label; False throughout for
            models without one class prediction per example.
    """

    loss: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class _Part:
    """One output's loss: the logarithm of a positive one, or any other as it is."""

    log_losses: Tensor | None  # (batch, positions)
    losses: Tensor | None  # (batch,)
    fooled: Tensor | None  # (batch,)
    weight: float


class Objective:
    """Scores each example of a batch; independent of the other examples and of sample weights.

    With a cross-entropy (by Keras's own classes or names), the loss is taken on the logits: those
    Keras remembers on the output, those found behind casts and reshapes, the output itself under
    `from_logits=True`, or the clipped logarithm of the probabilities as the last resort. Label
    smoothing is left out. Any other loss is used as it is, except on an output that comes straight
    from a softmax, where the cross-entropy takes its place for the same reason. Several losses are
    added with their `loss_weights`. Without a compiled loss, the cross-entropy that fits the shapes
    of labels and outputs is used.

    Args:
        model: The attacked model.
        probabilities: For a model without a compiled loss: whether its outputs are probabilities,
            where the graph does not show it. Default False: they are logits.
    """

    def __init__(self, model: keras.Model, *, probabilities: bool = False):
        self._terms = internals.LossTerms(model) if internals.compiled_loss(model) else None
        self._probabilities = probabilities

    def terms(self, y: Any, outputs: Any) -> list[internals.LossTerm]:
        """The losses that make up the objective, with the labels and outputs each compares."""
        return _inferred_terms(y, outputs) if self._terms is None else self._terms(y, outputs)

    def __call__(self, y: Any, outputs: Any) -> Score:
        """The score of each example, for labels `y` and the model's `outputs`."""
        parts = [self._part(term) for term in self.terms(y, outputs) if term.weight]
        loss = _total(parts)
        if len(parts) == 1 and parts[0].fooled is not None:
            return Score(loss, parts[0].fooled)
        return Score(loss, ops.zeros_like(loss, dtype="bool"))

    def _part(self, term: internals.LossTerm) -> _Part:
        kind = classification_kind(term)
        if kind is None:
            return _Part(None, _own_losses(term), None, term.weight)
        _, arguments = internals.loss_function(term.loss)
        from_logits = arguments.get("from_logits", False)
        if term.loss is None:
            from_logits = not self._probabilities
        logits = _logits(term.y_pred, kind, from_logits)
        if kind == "binary":
            log_losses, fooled = _binary(term.y_true, logits)
        else:
            ignored = arguments.get("ignore_class")
            log_losses, fooled = _categorical(term.y_true, logits, kind == "sparse", ignored)
        # (batch, ...) -> (batch, positions)
        log_losses = ops.reshape(log_losses, (ops.shape(log_losses)[0], -1))
        return _Part(log_losses, None, fooled, term.weight)


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


def _inferred_terms(y: Any, outputs: Any) -> list[internals.LossTerm]:
    labels, predictions = keras.tree.flatten(y), keras.tree.flatten(outputs)
    if len(labels) != len(predictions):
        raise ValueError(
            "`y` must have one array for each output of the model. Received: "
            f"{len(labels)} for {len(predictions)} outputs. Compile the model with its losses if "
            "only some outputs have labels."
        )
    return [
        internals.LossTerm(None, 1.0, label, prediction)
        for label, prediction in zip(labels, predictions, strict=True)
    ]


def classification_kind(term: internals.LossTerm) -> str | None:
    """Which cross-entropy is attacked for this loss, or None to attack the loss itself."""
    if term.loss is None:
        return infer_kind(term.y_true, term.y_pred)
    kind = _KIND_BY_FUNCTION.get(internals.loss_function(term.loss)[0])
    if kind is None and backend.is_softmax(term.y_pred) and term.y_pred.shape[-1] != 1:
        try:
            kind = infer_kind(term.y_true, term.y_pred)
        except ValueError:
            return None
    return kind


def _logits(output: Tensor, kind: str, from_logits: bool) -> Tensor:
    recovered = internals.logits_of(output)
    if recovered is None:
        recovered = backend.undo_activation(output)
    if recovered is not None:
        return ops.cast(recovered, "float32")
    output = ops.cast(output, "float32")
    if from_logits:
        return output
    if kind == "binary":
        return _clipped_log(output) - _clipped_log(1.0 - output)
    return _clipped_log(output)


def _clipped_log(values: Tensor) -> Tensor:
    return ops.log(ops.maximum(values, _SMALLEST))


def _log_softplus(margins: Tensor) -> Tensor:
    # The inner maximum keeps the branch that is not taken finite, or its gradient would be NaN.
    near = ops.log(ops.softplus(ops.maximum(margins, _EXPONENTIAL_BELOW)))
    return ops.where(margins < _EXPONENTIAL_BELOW, margins, near)


def _binary(y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    y = ops.cast(y, "float32")
    if len(y.shape) < len(logits.shape):
        y = ops.expand_dims(y, -1)
    elif len(y.shape) > len(logits.shape):
        logits = ops.expand_dims(logits, -1)
    hard = ops.logical_or(ops.equal(y, 0.0), ops.equal(y, 1.0))
    margins = (1.0 - 2.0 * y) * logits
    soft = _clipped_log(ops.softplus(logits) - y * logits)
    log_losses = ops.where(hard, _log_softplus(margins), soft)
    one_unit = len(margins.shape) == 1 or (len(margins.shape) == 2 and margins.shape[-1] == 1)
    return log_losses, ops.reshape(margins > 0, (-1,)) if one_unit else None


def _categorical(
    y: Tensor, logits: Tensor, sparse: bool, ignored: int | None
) -> tuple[Tensor, Tensor | None]:
    classes = logits.shape[-1]
    valid = None
    if sparse:
        if len(y.shape) == len(logits.shape):
            y = ops.squeeze(y, axis=-1)
        y = ops.cast(y, "int32")
        if ignored is not None:
            valid = ops.not_equal(y, ignored)
            y = ops.where(valid, y, 0)
        labels = y
    else:
        targets = ops.cast(y, "float32")
        labels = ops.argmax(targets, axis=-1)
    chosen = ops.one_hot(labels, classes, dtype="bool")
    label_logits = ops.sum(ops.where(chosen, logits, 0.0), axis=-1)
    others = ops.where(chosen, -float("inf"), logits)
    log_losses = _log_softplus(ops.logsumexp(others, axis=-1) - label_logits)
    if not sparse:
        soft = ops.logsumexp(logits, axis=-1) - ops.sum(targets * logits, axis=-1)
        hard = ops.max(targets, axis=-1) > 1.0 - _ONE_HOT_TOLERANCE
        log_losses = ops.where(hard, log_losses, _clipped_log(soft))
    if valid is not None:
        log_losses = ops.where(valid, log_losses, -float("inf"))
    fooled = ops.max(others, axis=-1) > label_logits
    return log_losses, fooled if len(fooled.shape) == 1 else None


def _own_losses(term: internals.LossTerm) -> Tensor:
    dtype = term.loss.dtype
    losses = term.loss.call(
        ops.convert_to_tensor(term.y_true, dtype=dtype),
        ops.convert_to_tensor(term.y_pred, dtype=dtype),
    )
    losses = ops.cast(losses, "float32")
    if len(losses.shape) > 1:
        losses = ops.mean(losses, axis=tuple(range(1, len(losses.shape))))
    if len(losses.shape) == 0:
        losses = ops.broadcast_to(losses, (ops.shape(term.y_pred)[0],))
    return losses


def _total(parts: list[_Part]) -> Tensor:
    """(batch,): the logarithm of the weighted sum, or the sum itself where one may be negative."""
    if all(part.log_losses is not None and part.weight > 0 for part in parts):
        logs = [
            part.log_losses
            + ops.log(part.weight)
            - ops.log(ops.cast(ops.shape(part.log_losses)[1], "float32"))
            for part in parts
        ]
        together = ops.concatenate(logs, axis=1)
        if together.shape[1] == 1:
            return together[:, 0]
        return ops.logsumexp(together, axis=1)
    return sum(
        part.weight
        * (part.losses if part.losses is not None else ops.mean(ops.exp(part.log_losses), axis=1))
        for part in parts
    )
