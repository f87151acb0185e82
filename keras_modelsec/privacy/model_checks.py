"""What a model must not do if one example's influence on a step is to stay bounded.

Each refusal names the layer and what to use instead. What cannot be seen from the outside (a custom
layer or loss that mixes the examples of a batch) is probed in `independence.py`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch
from keras_modelsec._core.train_step import TrainStepOwner
from keras_modelsec.errors import NotPerExampleError, UnsupportedModelError

_MEANS = ("sum_over_batch_size", "mean")
_RATES = ("dropout", "recurrent_dropout", "dropout_rate", "rate")


def check_model(model: keras.Model) -> None:
    """Refuses a model that breaks the guarantee, by what can be seen before any data.

    Raises:
        UnsupportedModelError: With the name of the layer and the remedy.
    """
    if internals.overrides_compute_loss(model):
        raise UnsupportedModelError(
            "A model trained privately must take its loss from `compile(loss=...)`. Received: "
            f"{type(model).__name__}.compute_loss, whose per-example parts are not known."
        )
    for layer in internals.flatten_layers(model):
        _check_layer(layer)


_HOOKS = [name for name in vars(TrainStepOwner) if not name.startswith("_")]


def has_own_hooks(model: keras.Model) -> bool:
    """Whether code outside of this package fills a hook of the train step, or is asked by one."""
    packages = ("keras.", "keras_modelsec.")
    own = [base for base in type(model).__mro__ if not base.__module__.startswith(packages)]
    secured: Any = model
    asked = [type(part) for part in secured.asked_by_hooks()]
    return any(name in vars(part) for part in (model, *own) for name in _HOOKS) or any(
        not kind.__module__.startswith(packages) for kind in asked
    )


def _check_layer(layer: keras.Layer) -> None:
    kind = f"{layer.name!r} ({type(layer).__name__})"
    if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
        raise UnsupportedModelError(
            f"Layer {kind} mixes the examples of a batch, so one example's influence cannot be "
            "bounded. Use keras.layers.GroupNormalization or LayerNormalization, or freeze the "
            "layer with `layer.trainable = False`."
        )
    if layer.activity_regularizer is not None:
        raise UnsupportedModelError(
            f"Layer {kind} has an activity regularizer, a loss on the data that is not clipped. "
            "Remove `activity_regularizer`; weight regularizers are welcome."
        )
    if getattr(layer, "stateful", False) and isinstance(layer, keras.layers.RNN):
        raise UnsupportedModelError(
            f"Layer {kind} is stateful: it carries examples from one batch into the next. "
            "Use stateful=False."
        )


def check_recomputable(layer: keras.Layer) -> None:
    """Refuses a layer that must be recomputed per example but draws random numbers inside."""
    rates = [
        f"{sublayer.name}.{rate}={getattr(sublayer, rate)}"
        for sublayer in internals.flatten_layers(layer)
        for rate in _RATES
        if isinstance(getattr(sublayer, rate, None), float) and getattr(sublayer, rate) > 0
    ]
    if rates:
        raise UnsupportedModelError(
            f"Layer {layer.name!r} ({type(layer).__name__}) draws random numbers inside "
            f"({', '.join(rates)}), so its per-example gradients cannot be recomputed. Set the "
            "rate to 0 and put a keras.layers.Dropout before or after the layer."
        )


def check_forward_pass(model: keras.Model, y_pred: Any) -> None:
    """Refuses what only a forward pass shows: losses added inside, masks on the outputs."""
    for layer in internals.flatten_layers(model):
        if internals.added_losses(layer):
            raise UnsupportedModelError(
                f"Layer {layer.name!r} ({type(layer).__name__}) calls `add_loss`, a loss on the "
                "data that is not clipped per example. Pass the loss to `compile(loss=...)`."
            )
    if any(internals.has_mask(leaf) for leaf in keras.tree.flatten(y_pred)):
        raise UnsupportedModelError(
            "The model's output carries a mask, by whose count Keras divides the loss of the whole "
            "batch, which mixes examples. Pass `sample_weight` instead of a mask."
        )


@contextlib.contextmanager
def checked_losses(
    model: keras.Model, y: Any, y_pred: Any, batch: Any, note: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """While open, refuses losses that are not one value (or row of values) per example.

    Args:
        model: The compiled model.
        y: Targets.
        y_pred: Predictions.
        batch: The number of examples, a scalar tensor.
        note: Called with the values of each loss, if given.

    Raises:
        UnsupportedModelError: For a reduction that mixes examples, or a loss without a batch axis.
    """
    losses = internals.single_losses(model, y, y_pred)
    reductions = {loss.reduction for loss in losses}
    if not (reductions <= set(_MEANS) or reductions == {"sum"}):
        raise UnsupportedModelError(
            "Losses of a model trained privately must all use reduction "
            f"'sum_over_batch_size', or all 'sum'. Received: {sorted(map(str, reductions))}."
        )
    for loss in losses:
        loss.__dict__["call"] = _checked_call(loss, batch, note)
    try:
        yield
    finally:
        for loss in losses:
            loss.__dict__.pop("call", None)


def checked_values(model: keras.Model, batch: Batch, y_pred: Any, size: Any) -> Any:
    """The model's `training_loss`, which must be one value an example: (batch,) in float32.

    Raises:
        UnsupportedModelError: If it is not, with the name of the defence or class it comes from.
    """
    trained: Any = model
    rule = (
        "A model trained privately must have one value per example for its loss, of shape (batch,)"
    )
    remedy = "Leave the values of the examples apart; they are clipped one by one."
    try:
        values = ops.convert_to_tensor(trained.training_loss(batch, y_pred))
    except NotPerExampleError as error:
        raise UnsupportedModelError(f"{rule}. Received, by the loss: {error}") from error
    if len(values.shape) != 1 or not backend.may_be_batch_axis(values.shape[0], size):
        raise UnsupportedModelError(
            f"{rule}. Received: values of shape {tuple(values.shape)} from the loss of "
            f"{trained.name_of_hooks()}. {remedy}"
        )
    backend.assert_equal(ops.shape(values)[0], size, f"{rule}. {remedy}")
    return ops.cast(values, "float32")


def _checked_call(
    loss: keras.losses.Loss, batch: Any, note: Callable[[Any], None] | None
) -> Callable[..., Any]:
    original = loss.call

    def call(y_true: Any, y_pred: Any) -> Any:
        values = original(y_true, y_pred)
        rule = f"Loss {loss.name!r} must return one value per example"
        remedy = "Return the values before they are averaged; Keras averages them."
        if len(values.shape) == 0:
            raise UnsupportedModelError(f"{rule}. Received: a scalar for the whole batch. {remedy}")
        if not backend.may_be_batch_axis(values.shape[0], batch):
            raise UnsupportedModelError(
                f"{rule}, the batch as the first axis. Received: values of shape "
                f"{tuple(values.shape)}. {remedy}"
            )
        if None in values.shape[1:] and None not in (*y_true.shape[1:], *y_pred.shape[1:]):
            raise UnsupportedModelError(
                f"{rule}. Received: values of every example against every other, from targets of "
                f"shape {tuple(y_true.shape)} and predictions of shape {tuple(y_pred.shape)}. "
                "Give both the same shape."
            )
        if isinstance(loss, keras.losses.Circle):
            raise UnsupportedModelError(
                f"{rule}, of that example alone. Received: keras.losses.Circle, which compares "
                "every example with every other. Use a loss that takes each example for itself."
            )
        if internals.has_mask(values):
            raise UnsupportedModelError(
                f"{rule}. Received: values with a mask (`ignore_class`), by whose count Keras "
                "divides the loss of the whole batch, which mixes examples. Pass `sample_weight` "
                "0 where the loss is to be ignored, and a valid class there."
            )
        backend.assert_equal(ops.shape(values)[0], batch, f"{rule}. {remedy}")
        if note is not None:
            note(values)
        return values

    return call
