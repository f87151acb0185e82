"""Owns which weights of a model can carry a mark, and which regularizers keep one."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.watermark.errors import WatermarkError
from keras_modelsec.watermark.spreading import MIN_CARRIER_WEIGHTS, can_carry

# A layer's weight, and the attributes from which its config takes the weight's regularizer.
_KERNELS = {
    "kernel": ("kernel_regularizer", "depthwise_regularizer"),
    "depthwise_kernel": ("depthwise_regularizer",),
    "pointwise_kernel": ("pointwise_regularizer",),
    "recurrent_kernel": ("recurrent_regularizer",),
    "embeddings": ("embeddings_regularizer",),
}
_SIZE_RULE = f"two or more axes and at least {MIN_CARRIER_WEIGHTS} weights"


@dataclasses.dataclass(frozen=True)
class Carrier:
    """A kernel that can be marked.

    Attributes:
        layer: The layer that owns it.
        variable: The kernel.
        attribute: Name of the layer's attribute that holds the kernel's regularizer.
        index: How many weights of the same shape come before it in the model.
    """

    layer: keras.Layer
    variable: keras.Variable
    attribute: str
    index: int


def readable_variables(model: keras.Model) -> list[keras.Variable]:
    """All weights of a model that could carry a mark, in the model's order, frozen ones included.

    Raises:
        WatermarkError: If the model has no weights yet, or none is large enough.
    """
    if not isinstance(model, keras.Model):
        raise WatermarkError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}. Load a file with "
            "keras.models.load_model first."
        )
    if not model.built or not model.weights:
        raise WatermarkError(
            f"`model` must be built. Received: {model.name!r}, which has no weights yet. Call "
            "model.build(input_shape), or the model on one batch, first."
        )
    found = [v for v in model.weights if can_carry(v.shape) and _is_numeric(v)]
    if not found:
        raise WatermarkError(
            f"A carrier must have {_SIZE_RULE}. Received: {model.name!r}, whose largest weight "
            f"has {max(math.prod(v.shape) for v in model.weights)}. Use wider layers."
        )
    return found


def _is_numeric(variable: keras.Variable) -> bool:
    return "float" in variable.dtype or variable.dtype == "int8"


def layer_variables(
    model: keras.Model, layers: Sequence[Any] | None
) -> tuple[list[keras.Layer], set[int]]:
    """The layers meant by `layers` (names or layers; None for all), and the ids of their weights.

    Raises:
        WatermarkError: If a name or a layer is not part of the model.
    """
    known = internals.flatten_layers(model)
    if layers is None:
        return known, {id(v) for v in model.weights}
    if isinstance(layers, (str, keras.Layer)):
        layers = [layers]
    chosen: list[keras.Layer] = []
    for wanted in layers:
        matches = [layer for layer in known if layer is wanted or layer.name == wanted]
        if not matches:
            shown = wanted if isinstance(wanted, str) else getattr(wanted, "name", wanted)
            names = ", ".join(repr(layer.name) for layer in known if layer.weights)
            raise WatermarkError(
                f"`layers` must name layers of the model. Received: {shown!r}. The model "
                f"{model.name!r} has {names}."
            )
        chosen += [sub for match in matches for sub in internals.flatten_layers(match)]
    return chosen, {id(v) for layer in chosen for v in layer.weights}


def trainable_carriers(model: keras.Model, layers: Sequence[Any] | None) -> list[Carrier]:
    """The kernels to mark: of all trainable layers, or of the layers named.

    Raises:
        WatermarkError: If a named layer has no kernel that can carry a mark, or none is left.
    """
    readable = readable_variables(model)
    chosen, _ = layer_variables(model, layers)
    found: dict[int, Carrier] = {}
    for layer in chosen:
        for variable, attribute in _kernels(layer):
            if any(variable is v for v in readable) and "float" in variable.dtype:
                same = [v for v in readable if tuple(v.shape) == tuple(variable.shape)]
                index = next(i for i, v in enumerate(same) if v is variable)
                found.setdefault(id(variable), Carrier(layer, variable, attribute, index))
    carriers = [c for c in found.values() if layers is not None or c.variable.trainable]
    if layers is not None:
        _check_each_carries(model, layers, {id(c.variable) for c in carriers})
    if not carriers:
        raise WatermarkError(
            f"A carrier must be a trainable floating-point kernel with {_SIZE_RULE}. Received: "
            f"{model.name!r}, which has none. Unfreeze layers, or name frozen ones in `layers`."
        )
    return carriers


def _check_each_carries(model: keras.Model, layers: Sequence[Any], carriers: set[int]) -> None:
    for wanted in [layers] if isinstance(layers, (str, keras.Layer)) else layers:
        _, ids = layer_variables(model, [wanted])
        if not ids & carriers:
            name = wanted if isinstance(wanted, str) else wanted.name
            layer_sizes = [math.prod(v.shape) for v in model.weights if id(v) in ids]
            raise WatermarkError(
                f"A carrier must be a floating-point kernel with {_SIZE_RULE}. Received: layer "
                f"{name!r}, whose largest weight has {max(layer_sizes, default=0)}. Leave it out "
                "of `layers`, or make the layer larger."
            )


def _kernels(layer: keras.Layer) -> Iterator[tuple[keras.Variable, str]]:
    for name, attributes in _KERNELS.items():
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            for attribute in attributes:
                if hasattr(layer, attribute):
                    yield variable, attribute


def refresh_compiled_steps(model: keras.Model) -> None:
    """Has Keras trace its steps again, which still hold the penalties of before."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    if getattr(model, "test_function", None) is not None:
        model.make_test_function(force=True)
