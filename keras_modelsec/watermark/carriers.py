"""Owns which weights of a model can carry a mark, and which regularizers keep one."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.checks import shown
from keras_modelsec._core.keras_kernels import effective_kernels
from keras_modelsec.errors import WatermarkError
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
class Reading:
    """A kernel as the model computes with it, to be read.

    Attributes:
        variable: The weight that holds it, or most of it.
        value: Its values: unpacked, scaled and with its adapter, if it has any of that.
    """

    variable: keras.Variable
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Carrier:
    """A kernel that can be marked.

    Attributes:
        layer: The layer that owns it.
        variable: The kernel.
        attribute: Name of the layer's attribute that holds the kernel's regularizer.
        index: How many kernels of the same shape `readings` gives before it.
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
    _check_built(model)
    found = [v for v in model.weights if can_carry(v.shape) and _is_numeric(v)]
    if not found:
        raise _none_large_enough(model)
    return found


def readings(model: keras.Model) -> list[Reading]:
    """All kernels of a model that could carry a mark, as the model computes with them.

    A free change of how a kernel is stored must not hide it: packed and quantized kernels are read
    as the numbers they stand for, and a LoRA adapter is added to the kernel that it adapts.

    Raises:
        WatermarkError: If the model has no weights yet, or none is large enough.
    """
    _check_built(model)
    effective: dict[int, np.ndarray] = {}
    parts: set[int] = set()
    for layer in internals.flatten_layers(model):
        for kernel in effective_kernels(layer):
            effective.setdefault(id(kernel.variable), kernel.value)
            parts |= {id(part) for part in kernel.parts}
    found = []
    for variable in model.weights:
        if id(variable) in effective:
            value = effective[id(variable)]
        elif id(variable) in parts or not can_carry(variable.shape) or not _is_numeric(variable):
            continue
        else:
            value = keras.ops.convert_to_numpy(variable)
        if can_carry(value.shape):
            found.append(Reading(variable, value))
    if not found:
        raise _none_large_enough(model)
    return found


def _check_built(model: Any) -> None:
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


def _none_large_enough(model: keras.Model) -> WatermarkError:
    return WatermarkError(
        f"A carrier must have {_SIZE_RULE}. Received: {model.name!r}, whose largest weight "
        f"has {max(math.prod(v.shape) for v in model.weights)}. Use wider layers."
    )


def _is_numeric(variable: keras.Variable) -> bool:
    return "float" in variable.dtype or "int" in variable.dtype


def layer_variables(
    model: keras.Model, layers: Sequence[Any] | None
) -> tuple[list[keras.Layer], set[int]]:
    """The layers meant by `layers` (names or layers; None for all), and the ids of their weights.

    Raises:
        WatermarkError: If a name or a layer is not part of the model.
        TypeError: If `layers` is no such thing at all.
    """
    known = internals.flatten_layers(model)
    if layers is None:
        return known, {id(v) for v in model.weights}
    chosen: list[keras.Layer] = []
    for wanted in _as_list(layers):
        matches = [layer for layer in known if layer is wanted or layer.name == wanted]
        if not matches:
            wanted = wanted.name if isinstance(wanted, keras.Layer) else wanted
            names = ", ".join(repr(layer.name) for layer in known if layer.weights)
            raise WatermarkError(
                f"`layers` must name layers of the model. Received: {shown(wanted)}. The model "
                f"{model.name!r} has {names}."
            )
        chosen += [sub for match in matches for sub in internals.flatten_layers(match)]
    return chosen, {id(v) for layer in chosen for v in layer.weights}


def _as_list(layers: Any) -> list[Any]:
    if isinstance(layers, (str, keras.Layer)):
        return [layers]
    if isinstance(layers, (bytes, bytearray)) or not isinstance(layers, Iterable):
        raise TypeError(
            "`layers` must be names of layers, or layers, in a list. Received: "
            f"layers={shown(layers)}. Leave it out to take all layers."
        )
    return list(layers)


def trainable_carriers(model: keras.Model, layers: Sequence[Any] | None) -> list[Carrier]:
    """The kernels to mark: of all trainable layers, or of the layers named.

    Raises:
        WatermarkError: If a named layer has no kernel that can carry a mark, or none is left.
    """
    read = readings(model)  # what verification counts: no adapters, no parts of quantized kernels
    chosen, _ = layer_variables(model, layers)
    found: dict[int, Carrier] = {}
    for layer in chosen:
        for variable, attribute in _kernels(layer):
            same = [r.variable for r in read if r.value.shape == tuple(variable.shape)]
            index = next((i for i, v in enumerate(same) if v is variable), None)
            if index is not None and "float" in variable.dtype:
                found.setdefault(id(variable), Carrier(layer, variable, attribute, index))
    carriers = [c for c in found.values() if layers is not None or c.variable.trainable]
    if layers is not None:
        _check_each_carries(model, layers, {id(c.variable) for c in carriers})
    if not carriers:
        raise WatermarkError(
            f"A carrier must be a trainable floating-point kernel with {_SIZE_RULE}. Received: "
            f"{model.name!r}, which has none. Unfreeze layers, or name frozen ones in `layers`. "
            "Mark before you quantize layers or call enable_lora on them."
        )
    return carriers


def _check_each_carries(model: keras.Model, layers: Sequence[Any], carriers: set[int]) -> None:
    for wanted in _as_list(layers):
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
