"""Per-example clipping by book-keeping: one forward pass, one backward pass, a sum.

Reference: Abadi et al., "Deep Learning with Differential Privacy", arXiv:1607.00133 (clipping);
Bu et al., arXiv:2210.00038 (book-keeping).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch
from keras_modelsec.errors import NotPrivateError, UnsupportedModelError
from keras_modelsec.privacy.capture import Unit, capturing, find_units
from keras_modelsec.privacy.layer_rules import UnitCall
from keras_modelsec.privacy.layer_rules.rule import PerExample
from keras_modelsec.privacy.model_checks import (
    check_forward_pass,
    check_model,
    checked_losses,
    checked_values,
)

Tensor = Any

# Per-example losses are summed, not averaged, so float16 gradients already are batch-size times
# larger than Keras's; this fixed factor lifts them further. It must not adapt to the data.
_FLOAT16_LOSS_SCALE = 2.0**7


# What the private step of this thread (each replica has its own) computed last.
_SEALED = threading.local()


class ClippedGradients:
    """Sums of clipped per-example gradients: the only gradients a `DPOptimizer` accepts.

    They cannot be changed, and an optimizer takes them as the private step made them, once.

    Attributes:
        sums: One float32 tensor per trainable weight, without noise, not divided. Replacing or
            removing one example's contribution changes all of them together by at most
            `l2_norm_clip` in L2 norm (up to float32 rounding).
        penalties: The gradient of the weight penalties for each weight, or None; independent of
            the data.
        batch_size: The number of examples on this replica, a scalar tensor.
        l2_norm_clip: The bound the sums were made with.
    """

    __slots__ = ("batch_size", "l2_norm_clip", "penalties", "sums")

    sums: tuple[Tensor | None, ...]
    penalties: tuple[Tensor | None, ...]
    batch_size: Tensor
    l2_norm_clip: float

    def __init__(
        self,
        sums: Sequence[Tensor | None],
        penalties: Sequence[Tensor | None],
        batch_size: Tensor,
        l2_norm_clip: float,
    ):
        values = (batch_size, l2_norm_clip, tuple(penalties), tuple(sums))
        for name, value in zip(ClippedGradients.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses every change."""
        raise NotPrivateError(_as_they_are(f"a change of `{name}`"))

    def __len__(self) -> int:
        """Refuses every other optimizer, each of which asks first how many gradients there are."""
        raise NotPrivateError(_as_they_are("another optimizer, or code that takes them for a list"))


def seal(gradients: ClippedGradients, owner: Any) -> ClippedGradients:
    """Makes these the gradients that the next update takes, in the place of any before.

    Args:
        gradients: From the private step.
        owner: What is to take them: the optimizer, or an observer of the step.
    """
    # What is applied is a copy, since the object itself goes through the hands of hooks.
    _SEALED.held = (owner, gradients, ClippedGradients(*_parts(gradients)))
    return gradients


def unseal(gradients: Any, owner: Any) -> ClippedGradients:
    """What `seal` was given for this owner, if `gradients` is that object, unchanged; only once.

    Raises:
        NotPrivateError: For anything else, whatever it holds: noise covers only what was clipped.
    """
    to, handed, kept = _SEALED.__dict__.pop("held", (None, None, None))
    if kept is None or to is not owner or gradients is not handed:
        raise NotPrivateError(_as_they_are("gradients that it did not return, or not in this step"))
    for given, own in zip(_parts(handed)[:2], _parts(kept)[:2], strict=True):
        if len(given) != len(own) or any(a is not b for a, b in zip(given, own, strict=True)):
            raise NotPrivateError(_as_they_are("what it returned, changed"))
    return kept


def forget_sealed() -> None:
    """Lets no update take what a step that was not finished has left."""
    _SEALED.__dict__.clear()


def _parts(gradients: ClippedGradients) -> tuple[Any, ...]:
    return gradients.sums, gradients.penalties, gradients.batch_size, gradients.l2_norm_clip


def _as_they_are(received: str) -> str:
    return (
        "What the private step (`super().compute_gradients(batch)`) returns must reach the "
        "DPOptimizer as it is, in the same step and once: the noise covers nothing else. Received: "
        f"{received}. Change the batch before it is clipped (`prepare_batch`), or the loss of each "
        "example (`training_loss`, `sample_weight`)."
    )


def clipped_gradients(
    model: keras.Model, batch: Batch, l2_norm_clip: float
) -> tuple[Any, ClippedGradients]:
    """Forward pass, loss, and the sum of per-example gradients, each clipped to `l2_norm_clip`.

    Per-example gradients cover all trainable weights together. An example whose gradient is not
    finite counts as zero: skipping the whole step instead would tell of that example.

    Args:
        model: A compiled model that passes `check_model`. Its `training_loss` is what is clipped.
        batch: Tensors with the examples as first axis. Sample weights are applied before clipping.
        l2_norm_clip: The bound, in units of the per-example loss gradient, > 0.

    Returns:
        The predictions, and the `ClippedGradients`.

    Raises:
        UnsupportedModelError: If the model or its loss could break the bound.
    """
    check_model(model)
    units = find_units(model)
    hidden = backend.forget_batch_size((batch.x, batch.y, batch.sample_weight, batch.aux))
    batch = Batch(*hidden)
    size = batch_size_of(batch.x)
    scale = loss_scale(model)

    def forward(watch: Any) -> tuple[Tensor, Any]:
        with capturing(units, watch, size):
            y_pred = predictions(model, batch)
            values, loss = losses(model, batch, y_pred, size)
        internals.track_loss(model, _with_penalties(model, loss), batch.x)
        return ops.sum(values) * scale, y_pred

    y_pred, gradients = backend.gradients_of_watched(forward)
    per_example = per_example_gradients(units, gradients, scale)
    sums = _clipped_sums(per_example, l2_norm_clip, size)
    by_variable = {
        id(variable): total
        for (unit, _), totals in zip(per_example, sums, strict=True)
        for variable, total in zip(unit.variables, totals, strict=True)
    }
    # A weight that is listed twice must not get two draws of noise for one sum.
    ordered = [by_variable.pop(id(v), None) for v in model.trainable_variables]
    return y_pred, ClippedGradients(ordered, penalties(model), size, l2_norm_clip)


def batch_size_of(x: Any) -> Tensor:
    """The number of examples in a structure of inputs, a scalar tensor."""
    return ops.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]


def loss_scale(model: keras.Model) -> float:
    """The fixed factor by which the loss is lifted before the backward pass."""
    layers = internals.flatten_layers(model)
    is_float16 = any(layer.compute_dtype == "float16" for layer in layers)
    return _FLOAT16_LOSS_SCALE if is_float16 else 1.0


def predictions(model: keras.Model, batch: Batch) -> Any:
    """The training-mode forward pass; to be run within `capturing`."""
    y_pred = internals.call_for_training(model, batch.x)
    check_forward_pass(model, y_pred)
    return y_pred


def losses(
    model: keras.Model,
    batch: Batch,
    y_pred: Any,
    size: Tensor,
    note: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The training loss; to be run within `capturing`, since a defence may call the model again.

    Args:
        model: The model.
        batch: What is trained on.
        y_pred: What `predictions` returned.
        size: The number of examples, a scalar tensor.
        note: Called with the values of each compiled loss, if given.

    Returns:
        The loss of each example (batch,) in float32, and the loss as Keras reports it, without
        penalties.
    """
    with checked_losses(model, batch.y, y_pred, size, note):
        values = checked_values(model, batch, y_pred, size)
    check_forward_pass(model, y_pred)
    total = ops.sum(values)
    if internals.sums_losses(model):
        return values, total
    mean = ops.divide_no_nan(total, ops.cast(size, total.dtype))
    return values, mean / backend.replica_count()


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


def penalties(model: keras.Model) -> list[Tensor | None]:
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
