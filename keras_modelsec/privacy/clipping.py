"""Per-example clipping by book-keeping: one forward pass, one backward pass, a sum.

Reference: Abadi et al., "Deep Learning with Differential Privacy", arXiv:1607.00133 (clipping);
Bu et al., arXiv:2210.00038 (book-keeping).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.privacy.capture import Unit, capturing, find_units
from keras_modelsec.privacy.errors import UnsupportedModelError
from keras_modelsec.privacy.layer_rules import UnitCall
from keras_modelsec.privacy.layer_rules.rule import PerExample
from keras_modelsec.privacy.model_checks import (
    check_forward_pass,
    check_model,
    checked_losses,
)

Tensor = Any

# Per-example losses are summed, not averaged, so float16 gradients already are batch-size times
# larger than Keras's; this fixed factor lifts them further. It must not adapt to the data.
_FLOAT16_LOSS_SCALE = 2.0**7


class ClippedGradients(Sequence[Any]):
    """Sums of clipped per-example gradients: the only gradients a `DPOptimizer` accepts.

    Attributes:
        sums: One float32 tensor per trainable weight, without noise, not divided. Replacing or
            removing one example's contribution changes all of them together by at most
            `l2_norm_clip` in L2 norm (up to float32 rounding).
        penalties: The gradient of the weight penalties for each weight, or None; independent of
            the data.
        batch_size: The number of examples on this replica, a scalar tensor.
        l2_norm_clip: The bound the sums were made with.
    """

    def __init__(
        self,
        sums: list[Tensor | None],
        penalties: list[Tensor | None],
        batch_size: Tensor,
        l2_norm_clip: float,
    ):
        self.sums = sums
        self.penalties = penalties
        self.batch_size = batch_size
        self.l2_norm_clip = l2_norm_clip

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, index: Any) -> Any:
        return self.sums[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sums)


def clipped_gradients(
    model: keras.Model, x: Any, y: Any, sample_weight: Any, l2_norm_clip: float
) -> tuple[Any, ClippedGradients]:
    """Forward pass, loss, and the sum of per-example gradients, each clipped to `l2_norm_clip`.

    Per-example gradients cover all trainable weights together. An example whose gradient is not
    finite counts as zero: skipping the whole step instead would tell of that example.

    Args:
        model: A compiled model that passes `check_model`.
        x: Inputs, any structure of tensors with the batch as first axis.
        y: Targets.
        sample_weight: Weights of the examples' losses, applied before clipping, or None.
        l2_norm_clip: The bound, in units of the per-example loss gradient, > 0.

    Returns:
        The predictions, and the `ClippedGradients`.

    Raises:
        UnsupportedModelError: If the model or its loss could break the bound.
    """
    check_model(model)
    units = find_units(model)
    x, y, sample_weight = backend.forget_batch_size((x, y, sample_weight))
    batch = ops.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]
    scale = _FLOAT16_LOSS_SCALE if _computes_in_float16(model) else 1.0

    def forward(watch: Any) -> tuple[Tensor, Any]:
        with capturing(units, watch, batch):
            y_pred = internals.call_for_training(model, x)
        check_forward_pass(model, y_pred)
        with checked_losses(model, y, y_pred, batch) as averaged:
            loss = internals.compiled_loss(model)(y, y_pred, sample_weight)
        internals.track_loss(model, _with_penalties(model, loss), x)
        if averaged():
            loss = internals.unscale_loss_for_distribution(loss) * ops.cast(batch, loss.dtype)
        return loss * scale, y_pred

    y_pred, gradients = backend.gradients_of_watched(forward)
    per_example = per_example_gradients(units, gradients, scale)
    sums = _clipped_sums(per_example, l2_norm_clip, batch)
    by_variable = {
        id(variable): total
        for (unit, _), totals in zip(per_example, sums, strict=True)
        for variable, total in zip(unit.variables, totals, strict=True)
    }
    ordered = [by_variable.get(id(v)) for v in model.trainable_variables]
    return y_pred, ClippedGradients(ordered, _penalties(model), batch, l2_norm_clip)


def _computes_in_float16(model: keras.Model) -> bool:
    return any(layer.compute_dtype == "float16" for layer in internals.flatten_layers(model))


def per_example_gradients(
    units: list[Unit], gradients: list[Tensor | None], scale: float = 1.0
) -> list[tuple[Unit, PerExample]]:
    """Hands each unit its output gradients; units without influence on the loss are left out."""
    result = []
    for unit in units:
        calls = []
        for saved in unit.calls:
            received = [gradients[place] for place in saved.watched_as]
            if any(gradient is not None for gradient in received):
                filled = [
                    ops.zeros_like(output, dtype="float32")
                    if gradient is None
                    else ops.cast(gradient, "float32") / scale
                    for output, gradient in zip(saved.outputs, received, strict=True)
                ]
                calls.append(UnitCall(saved.args, saved.kwargs, filled))
        if calls:
            result.append((unit, unit.rule.per_example(unit.layer, unit.variables, calls)))
    if not result:
        raise UnsupportedModelError(
            "The loss of a model trained privately must depend on a weight. Received: a model in "
            "which no gradient reaches a trainable layer."
        )
    return result


def _clipped_sums(
    per_example: list[tuple[Unit, PerExample]], l2_norm_clip: float, batch: Tensor
) -> list[list[Tensor]]:
    # Stacked, not added: adding would broadcast the norms of a layer that has fewer or more rows.
    norms_of_layers = [ops.zeros((batch,)), *(parts.squared_norms for _, parts in per_example)]
    squared = ops.sum(ops.stack(norms_of_layers), axis=0)
    finite = ops.isfinite(squared)
    norms = ops.sqrt(ops.where(finite, squared, ops.zeros_like(squared)))
    weights = ops.where(
        finite, l2_norm_clip / ops.maximum(norms, l2_norm_clip), ops.zeros_like(norms)
    )

    def sums(keep: Tensor | None) -> list[list[Tensor]]:
        return [parts.weighted_sums(weights, keep) for _, parts in per_example]

    # Masking costs a pass over everything saved, and nearly every batch is finite.
    return ops.cond(ops.all(finite), lambda: sums(None), lambda: sums(finite))


def _with_penalties(model: keras.Model, loss: Tensor) -> Tensor:
    """The loss that the progress bar shows: weight penalties included, as in `keras.Model`."""
    for penalty in internals.weight_penalties(model):
        loss = loss + ops.cast(penalty, loss.dtype)
    return loss


def _penalties(model: keras.Model) -> list[Tensor | None]:
    """The gradient of L2, watermark and other weight penalties: no example enters it."""
    variables = model.trainable_variables
    regularized = [v for v in variables if v.regularizer is not None]
    if not regularized:
        return [None] * len(variables)
    _, gradients = backend.value_and_gradients(
        lambda: (sum(v.regularizer(v) for v in regularized), None), regularized
    )
    by_variable = {id(v): g for v, g in zip(regularized, gradients, strict=True)}
    return [by_variable.get(id(v)) for v in variables]
