"""Reads the kernels that a layer computes with, where it stores them in another form.

Beside keras_internals.py, of what Keras keeps private: how its layers hold quantized kernels
(packed integers, scales, zero points, groups) and low-rank adapters (LoRA). Arithmetic is NumPy's,
so that planted values (an index out of range, NaN as a scale) spoil only the kernel they belong to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

# What a layer calls a kernel -> the attribute that holds it, or its integers if it is quantized.
_STORED = {
    "kernel": "_kernel",
    "embeddings": "_embeddings",
    "reverse_embeddings": "reverse_embeddings",
}
_INTEGER_MODES = ("int8", "int4")


@dataclass(frozen=True)
class EffectiveKernel:
    """A kernel as its layer computes with it.

    Attributes:
        variable: The stored kernel, or what stands for it.
        parts: All variables that it is computed from, `variable` first.
        value: float32, in the shape it had before it was quantized.
    """

    variable: keras.Variable
    parts: tuple[keras.Variable, ...]
    value: np.ndarray


def effective_kernels(layer: keras.Layer) -> Iterator[EffectiveKernel]:
    """The kernels of a layer that are not stored as they are used; none for an ordinary layer.

    For Dense, EinsumDense, convolutions and embeddings of Keras, quantized in any mode that Keras
    has, with an adapter or without.
    """
    for name in _STORED:
        stored = _stored(layer, name)
        if not isinstance(stored, keras.Variable):
            continue
        quantization = _quantization(layer, name)
        adapter = _adapter(layer, name)
        parts = (stored, *quantization.values(), *adapter)
        if len(parts) > 1:
            value = _float_kernel(layer, name, stored, quantization)
            yield EffectiveKernel(stored, parts, _with_adapter(layer, value, adapter))


def _is_calibrated(layer: keras.Layer) -> bool:
    """Whether the layer computes with what GPTQ or AWQ made, not with the kernel of before."""
    mode = getattr(layer, "quantization_mode", None)
    return mode in ("gptq", "awq") and bool(getattr(layer, f"is_{mode}_calibrated", False))


def _stored(layer: keras.Layer, name: str) -> Any:
    if name == "kernel" and _is_calibrated(layer):
        return layer.quantized_kernel
    return getattr(layer, _STORED[name], None)


def _quantization(layer: keras.Layer, name: str) -> dict[str, keras.Variable]:
    """Scale, zero point and group indices of a quantized kernel, under these names."""
    calibrated = name == "kernel" and _is_calibrated(layer)
    if not calibrated and getattr(layer, "quantization_mode", None) not in _INTEGER_MODES:
        return {}
    places = {"scale": f"{name}_scale", "zero": f"{name}_zero"}
    if calibrated or hasattr(layer, places["zero"]):
        places["g_idx"] = "g_idx"
    if calibrated:
        places["awq_scales"] = "awq_scales"
    found = {role: getattr(layer, place, None) for role, place in places.items()}
    return {role: v for role, v in found.items() if isinstance(v, keras.Variable)}


def _adapter(layer: keras.Layer, name: str) -> tuple[keras.Variable, ...]:
    if not getattr(layer, "lora_enabled", False):
        return ()
    factors = (getattr(layer, f"lora_{name}_{side}", None) for side in "ab")
    return tuple(v for v in factors if isinstance(v, keras.Variable))


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value)).astype(np.float32)


def _float_kernel(
    layer: keras.Layer, name: str, stored: keras.Variable, quantization: dict[str, keras.Variable]
) -> np.ndarray:
    if not quantization:
        return _numpy(stored)
    integers = _unpacked(layer, name, stored)
    numbers = {role: _numpy(variable) for role, variable in quantization.items()}
    with np.errstate(all="ignore"):
        if name == "kernel" and _is_calibrated(layer):
            return _calibrated(layer, integers, numbers)
        if name == "embeddings":
            return _scaled(integers.T, {k: v.T for k, v in numbers.items()}).T
        if not hasattr(layer, "equation"):
            return _scaled(integers, numbers)
        if hasattr(layer, "_int4_unpacked_column_size"):  # flat: (rows, columns)
            flat = integers.reshape(-1, layer._int4_unpacked_column_size)
            return _scaled(flat, numbers).reshape(integers.shape)
        return integers / _numpy(layer._adjust_scale_for_dequant(quantization["scale"]))


def _unpacked(layer: keras.Layer, name: str, stored: keras.Variable) -> np.ndarray:
    """The integers, one an entry, in the shape of the kernel.

    The layer's own property unpacks, in whatever order this version of Keras packs; it is asked on
    a view of the layer that has no adapter, which it would add before the scale.
    """
    if name == "reverse_embeddings":
        if layer.quantization_mode != "int4":
            return _numpy(stored)
        return _numpy(keras.quantizers.unpack_int4(stored, layer.output_dim, axis=0))
    view = object.__new__(type(layer))
    vars(view).update(vars(layer))
    vars(view)["lora_enabled"] = False
    return _numpy(getattr(view, name))


def _scaled(integers: np.ndarray, numbers: dict[str, np.ndarray]) -> np.ndarray:
    """From (rows, columns): a divisor for each column, or a factor and zero for a group of rows."""
    if "g_idx" not in numbers:
        return integers / numbers["scale"]
    return _grouped(integers, numbers)


def _grouped(integers: np.ndarray, numbers: dict[str, np.ndarray]) -> np.ndarray:
    scale = numbers["scale"]
    groups = np.clip(np.nan_to_num(numbers["g_idx"]), 0, len(scale) - 1).astype(int)
    return (integers - numbers["zero"][groups]) * scale[groups]


def _calibrated(
    layer: keras.Layer, integers: np.ndarray, numbers: dict[str, np.ndarray]
) -> np.ndarray:
    # Stored (columns, rows), with a scale and a zero for each (column, group of rows).
    kernel = _grouped(integers.T, {k: v.T for k, v in numbers.items()})
    if "awq_scales" in numbers:
        kernel = kernel / numbers["awq_scales"][:, None]
    return kernel.reshape(getattr(layer, "original_kernel_shape", kernel.shape))


def _with_adapter(
    layer: keras.Layer, kernel: np.ndarray, adapter: tuple[keras.Variable, ...]
) -> np.ndarray:
    if len(adapter) < 2:
        return kernel
    with np.errstate(all="ignore"):
        update = np.matmul(_numpy(adapter[0]), _numpy(adapter[1]))
        return kernel + np.float32(layer.lora_alpha / layer.lora_rank) * update
