"""Losses as an attack follows them: logarithms of cross-entropies, which never vanish.

Also how those of several outputs and positions are added up.
"""

from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import one_class
from keras_modelsec.robustness.attacks.logits import clipped_log

Tensor = Any

# Below this margin softplus(m) = exp(m) to float32 accuracy.
_EXPONENTIAL_BELOW = -15.0


@dataclass(frozen=True)
class Part:
    """One output's loss: the logarithm of a positive one, or any other as it is.

    Attributes:
        log_losses: (batch, positions), or None.
        losses: (batch,), where there are no logarithms.
        fooled: (batch,) bool, or None without one class per example.
        weight: Its weight among several.
        alone: (batch,). What stands for `losses` where they are the only ones, if not they.
        named: Scalar bool, or as one: whether the labels name one class each.
    """

    log_losses: Tensor | None
    losses: Tensor | None
    fooled: Tensor | None
    weight: float
    alone: Tensor | None = None
    named: Tensor | bool = True


def flat(log_losses: Tensor) -> Tensor:
    """Form (batch, ...) -> (batch, positions)."""
    return ops.reshape(log_losses, (ops.shape(log_losses)[0], -1))


def mean_of_logs(log_losses: Tensor) -> Tensor:
    """(batch,): the logarithm of the mean over the positions."""
    count = ops.cast(ops.shape(log_losses)[1], "float32")
    return ops.logsumexp(log_losses, axis=1) - ops.log(count)


def hard_log_losses(term: internals.LossTerm, logits: Tensor) -> Tensor:
    """(batch,): the cross-entropy of the one class that each example has, as a logarithm."""
    if one_class.has_one_unit(term.y_pred):
        y = ops.reshape(one_class.zero_or_one(term.y_true), (-1,))
        return binary(y, ops.reshape(logits, (-1,)))
    numbers = one_class.class_numbers(term.y_true, logits.shape[-1])
    return categorical(numbers, logits, True, None)


def _log_softplus(margins: Tensor) -> Tensor:
    # The inner maximum keeps the branch that is not taken finite, or its gradient would be NaN.
    near = ops.log(ops.softplus(ops.maximum(margins, _EXPONENTIAL_BELOW)))
    return ops.where(margins < _EXPONENTIAL_BELOW, margins, near)


def binary(y: Tensor, logits: Tensor) -> Tensor:
    """The logarithm of the binary cross-entropy, for each unit."""
    y = ops.cast(y, "float32")
    if len(y.shape) < len(logits.shape):
        y = ops.expand_dims(y, -1)
    elif len(y.shape) > len(logits.shape):
        logits = ops.expand_dims(logits, -1)
    hard = ops.logical_or(ops.equal(y, 0.0), ops.equal(y, 1.0))
    soft = clipped_log(ops.softplus(logits) - y * logits)
    return ops.where(hard, _log_softplus((1.0 - 2.0 * y) * logits), soft)


def categorical(y: Tensor, logits: Tensor, sparse: bool, ignored: int | None) -> Tensor:
    """The logarithm of the cross-entropy; minus infinity for the class that is ignored."""
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
        hard = one_class.rows_name_one_class(targets)
        log_losses = ops.where(hard, log_losses, clipped_log(soft))
    return log_losses if valid is None else ops.where(valid, log_losses, -float("inf"))


def own_losses(term: internals.LossTerm) -> Tensor:
    """(batch,): the compiled loss of each example as it is."""
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


def total(parts: list[Part]) -> Tensor:
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
    if len(parts) == 1 and parts[0].alone is not None:
        return parts[0].weight * parts[0].alone
    return sum(
        part.weight
        * (part.losses if part.losses is not None else ops.mean(ops.exp(part.log_losses), axis=1))
        for part in parts
    )
