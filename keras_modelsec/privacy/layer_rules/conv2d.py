"""The rule for `keras.layers.Conv2D`."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec.privacy.layer_rules.dense import LinearRule
from keras_modelsec.privacy.layer_rules.rule import UnitCall, register_layer_rule

Tensor = Any


class Conv2DRule(LinearRule):
    """Conv2D as a matrix product over its patches, any stride, padding and dilation.

    The patches come from a convolution with an identity kernel, which is several times faster on a
    CPU than the dedicated patch extraction, and exact for finite values.
    """

    def supports(self, layer: keras.Layer) -> bool:
        """All but grouped convolutions, whose kernel is not one matrix."""
        return super().supports(layer) and layer.groups == 1

    def positions(self, layer: keras.Layer, call: UnitCall) -> tuple[Tensor, Tensor]:
        """Each output pixel is a position; its patch is the row of inputs."""
        gradients = call.output_gradients[0]
        patches = _patches(ops.cast(call.first_input, "float32"), layer)
        if layer.data_format == "channels_first":
            patches = ops.transpose(patches, (0, 2, 3, 1))
            gradients = ops.transpose(gradients, (0, 2, 3, 1))
        return _pixels_as_positions(patches), _pixels_as_positions(gradients)


def _patches(images: Tensor, layer: keras.Layer) -> Tensor:
    """`(batch, h, w, c) -> (batch, h', w', kh * kw * c)`, in the kernel's own order."""
    height, width = layer.kernel_size
    channels = images.shape[-1 if layer.data_format == "channels_last" else 1]
    size = height * width * channels
    if size == channels and tuple(layer.strides) == (1, 1):
        return images
    identity = np.eye(size, dtype="float32").reshape(height, width, channels, size)
    return ops.conv(
        images,
        ops.convert_to_tensor(identity),
        strides=list(layer.strides),
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _pixels_as_positions(values: Tensor) -> Tensor:
    """`(batch, h, w, features) -> (batch, h * w, features)`."""
    shape = values.shape
    pixels = -1 if None in shape[1:3] else math.prod(shape[1:3])
    return ops.reshape(values, (ops.shape(values)[0], pixels, shape[-1]))


register_layer_rule(keras.layers.Conv2D, Conv2DRule())
