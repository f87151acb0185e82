"""The compiled loss of each example, and the total that Keras would make of such values."""

from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import NotPerExampleError

Tensor = Any

_MEANS = ("sum_over_batch_size", "mean")


def example_losses(model: keras.Model, y: Any, y_pred: Any, sample_weight: Any) -> Tensor:
    """What `compile(loss=...)` gives for each example: (batch,), all weights included.

    Their mean over the batch, of losses with reduction "sum" their sum, is what the compiled loss
    is on one replica. Feeds the metric of each output's loss.

    Raises:
        NotPerExampleError: If a loss is not made of one value an example, or the model has a
            `compute_loss` of its own, or no compiled loss.
    """
    if internals.compiled_loss(model) is None or internals.overrides_compute_loss(model):
        has = "loss=None" if internals.compiled_loss(model) is None else "its own `compute_loss`"
        raise NotPerExampleError(
            "The loss of each example must come from `compile(loss=...)`. Received: "
            f"{type(model).__name__} with {has}."
        )
    reductions = {loss.reduction for loss in internals.single_losses(model, y, y_pred)}
    if not (reductions <= set(_MEANS) or reductions == {"sum"}):
        raise NotPerExampleError(
            "Losses must all use reduction 'sum_over_batch_size', or all 'sum', to have a value "
            f"for each example. Received: {sorted(map(str, reductions))}."
        )
    return internals.run_losses(model, y, y_pred, sample_weight, _by_example)


def _by_example(loss: keras.losses.Loss, metric: Any) -> Any:
    def values_of(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        reduction, loss.reduction = loss.reduction, None
        try:
            values = loss(y_true, y_pred, sample_weight)
        finally:
            loss.reduction = reduction
        _check(loss, y_pred, values)
        reduce = ops.sum if reduction == "sum" else ops.mean
        if len(values.shape) > 1:
            values = reduce(values, axis=tuple(range(1, len(values.shape))))
        if metric:
            metric.update_state(reduce(values), sample_weight=y_pred.shape[0])
        return values

    return values_of


def _check(loss: keras.losses.Loss, y_pred: Any, values: Tensor) -> None:
    rule = f"Loss {loss.name!r} must return one value per example"
    if len(values.shape) == 0:
        raise NotPerExampleError(
            f"{rule}. Received: a scalar for the whole batch, averaged by the loss itself. Return "
            "the values before they are averaged; Keras averages them."
        )
    if internals.has_mask(y_pred) or internals.has_mask(values):
        raise NotPerExampleError(
            f"{rule}. Received: values with a mask, by whose count Keras divides the loss of the "
            "whole batch. Pass `sample_weight` 0 where the loss is to be ignored."
        )


def total_loss(model: keras.Model, values: Any) -> Tensor:
    """The training loss that `values` stand for, `add_loss` and penalties included: a scalar.

    Args:
        model: A compiled model.
        values: One value an example (batch,), or a scalar for the batch of this replica.

    Raises:
        ValueError: If the values have another shape, or the model has a `compute_loss` of its own,
            which knows nothing of them.
    """
    if internals.overrides_compute_loss(model):
        raise ValueError(
            "The loss can be changed by `training_loss` (as a defence does) or by `compute_loss`, "
            f"not by both. Received: {type(model).__name__}, which has both."
        )
    values = ops.cast(ops.convert_to_tensor(values), keras.config.floatx())
    if len(values.shape) > 1:
        raise ValueError(
            "`training_loss` must return one value an example, of shape (batch,), or a scalar. "
            f"Received: shape {tuple(values.shape)}. Average over the other axes."
        )
    total = ops.sum(values)
    if len(values.shape) == 0 or not internals.sums_losses(model):
        count = ops.cast(ops.size(values), total.dtype)
        total = ops.divide_no_nan(total, count) / backend.replica_count()
    return internals.with_added_losses(model, total)
