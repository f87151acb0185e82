"""The only file that touches what Keras keeps private; a Keras upgrade that breaks us breaks here.

Each function says which attribute it reads and has a test of its own.
"""

from typing import Any

import keras
from keras.src.models.functional import Functional


def is_functional(model: keras.Model) -> bool:
    """Whether `model` was built from inputs and outputs and runs that graph."""
    return isinstance(model, Functional) and type(model).call is Functional.call


def are_functional_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `Model(*args, **kwargs)` asks for the functional form (`inputs`, `outputs`)."""
    return (
        len(args) == 2
        or (len(args) == 1 and "outputs" in kwargs)
        or ("inputs" in kwargs and "outputs" in kwargs)
    )


def graph_ends(model: keras.Model) -> tuple[Any, Any]:
    """The symbolic inputs and outputs in the structure the user gave (`Function._inputs_struct`).

    For a functional or a built Sequential model.
    """
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model._inputs_struct, model._outputs_struct


def flatten_layers(layer: keras.Layer, *, include_self: bool = True) -> list[keras.Layer]:
    """All layers below `layer`, nested models included, each once (`Layer._flatten_layers`)."""
    return list(layer._flatten_layers(include_self=include_self, recursive=True))


def direct_sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that `layer` holds itself (`Layer._flatten_layers`, one level)."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def direct_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The trainable weights `layer` owns itself, without its sublayers' (`_trainable_variables`).

    A variable may be listed there and be frozen (LoRA freezes the kernel), hence the filter.
    """
    if not layer.trainable:
        return []
    return [v for v in layer._trainable_variables if v.trainable]


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The total training loss, with or without a `training` argument (`Trainer._compute_loss`)."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def compiled_loss(model: keras.Model) -> Any:
    """What `compile(loss=...)` made, or None (`Trainer._compile_loss`)."""
    return model._compile_loss


def track_loss(model: keras.Model, loss: Any, x: Any) -> None:
    """Feeds the "loss" metric as `keras.Model.train_step` does (`Trainer._loss_tracker`)."""
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    batch_size = keras.ops.shape(first)[0]
    model._loss_tracker.update_state(
        unscale_loss_for_distribution(loss), sample_weight=batch_size
    )


def unscale_loss_for_distribution(loss: Any) -> Any:
    """Undoes the division by the number of replicas that Keras's losses carry."""
    from keras_modelsec._core import backend

    replicas = backend.replica_count()
    return loss * keras.ops.cast(replicas, loss.dtype) if replicas > 1 else loss


def call_for_training(model: keras.Model, x: Any) -> Any:
    """The training-mode forward pass (`Layer._call_has_training_arg`)."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def call_for_inference(model: keras.Model, x: Any) -> Any:
    """The inference-mode forward pass (`Layer._call_has_training_arg`)."""
    return model(x, training=False) if model._call_has_training_arg else model(x)
