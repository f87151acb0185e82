"""The rule for `keras.layers.Conv2D`."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec.privacy.layer_rules.dense import LinearRule
from keras_modelsec.privacy.layer_rules.rule import UnitCall, register_layer_rule

Tensor = Any


# Above this, copying runs of channels is cheaper than multiplying by an identity kernel, whose work
# grows with the square of the patch (both measured on a CPU; the crossing is flat).
_GATHER_FROM = 256


class Conv2DRule(LinearRule):
    """Conv2D as a matrix product over its patches, any stride, padding and dilation.

    The patches come from a gather of whole pixels, or for few channels from a convolution with an
    identity kernel; both are several times faster on a CPU than the dedicated patch extraction.
    """

    def supports(self, layer: keras.Layer) -> bool:
        """All but grouped convolutions, whose kernel is not one matrix."""
        return super().supports(layer) and layer.groups == 1

    def positions(self, layer: keras.Layer, call: UnitCall) -> tuple[Tensor, Tensor]:
        """Each output pixel is a position; its patch is the row of inputs."""
        images = ops.cast(call.first_input, "float32")
        gradients = call.output_gradients[0]
        if layer.data_format == "channels_first":
            images = ops.transpose(images, (0, 2, 3, 1))
            gradients = ops.transpose(gradients, (0, 2, 3, 1))
        pixels = -1 if None in gradients.shape[1:3] else math.prod(gradients.shape[1:3])
        gradients = ops.reshape(gradients, (-1, pixels, layer.filters))
        return _patches(images, layer), gradients


def _patches(images: Tensor, layer: keras.Layer) -> Tensor:
    """`(batch, h, w, c) -> (batch, h' * w', kh * kw * c)`, in the order of the kernel's axes."""
    _, height, width, channels = images.shape
    size = math.prod(layer.kernel_size) * channels
    if size * channels >= _GATHER_FROM and height is not None and width is not None:
        return _gathered_patches(images, layer)
    identity = np.eye(size, dtype="float32").reshape(*layer.kernel_size, channels, size)
    patches = ops.conv(
        images,
        ops.convert_to_tensor(identity),
        strides=list(layer.strides),
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    pixels = -1 if None in patches.shape[1:3] else math.prod(patches.shape[1:3])
    return ops.reshape(patches, (ops.shape(images)[0], pixels, size))


def _gathered_patches(images: Tensor, layer: keras.Layer) -> Tensor:
    _, height, width, channels = images.shape
    axes = [
        _window(extent, *options, padding=layer.padding)
        for extent, *options in zip(
            (height, width), layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
        )
    ]
    (pad_h, rows), (pad_w, columns) = axes
    if any((*pad_h, *pad_w)):
        images = ops.pad(images, ((0, 0), pad_h, pad_w, (0, 0)))
    padded_width = width + sum(pad_w)
    # (h', 1, kh, 1) and (1, w', 1, kw) -> (h', w', kh, kw)
    pixels = rows[:, None, :, None] * padded_width + columns[None, :, None, :]
    flat = ops.reshape(images, (-1, (height + sum(pad_h)) * padded_width, channels))
    patches = ops.take(flat, pixels.reshape(-1), axis=1)
    size = math.prod(layer.kernel_size) * channels
    return ops.reshape(patches, (-1, rows.shape[0] * columns.shape[0], size))


def _window(
    extent: int, kernel: int, stride: int, dilation: int, *, padding: str
) -> tuple[tuple[int, int], np.ndarray]:
    """Padding before and after, and the `(outputs, kernel)` positions along one axis."""
    reach = (kernel - 1) * dilation + 1
    if padding == "same":
        outputs = math.ceil(extent / stride)
        total = max(0, (outputs - 1) * stride + reach - extent)
        pads = (total // 2, total - total // 2)
    else:
        outputs = (extent - reach) // stride + 1
        pads = (0, 0)
    starts = np.arange(outputs)[:, None] * stride
    return pads, (starts + np.arange(kernel)[None, :] * dilation).astype("int32")


register_layer_rule(keras.layers.Conv2D, Conv2DRule())
