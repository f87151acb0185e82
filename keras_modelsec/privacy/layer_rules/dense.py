"""The rule for `keras.layers.Dense`."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_modelsec.privacy.layer_rules.linear import (
    bias_squared_norms_and_sums,
    linear_squared_norms_and_sums,
)
from keras_modelsec.privacy.layer_rules.rule import (
    LayerRule,
    PerExample,
    UnitCall,
    register_layer_rule,
)

Tensor = Any


class LinearRule(LayerRule):
    """What Dense and Conv2D share: a kernel, an optional bias, an activation split off.

    A subclass says how one call becomes positions of K inputs and P output gradients.
    """

    splits_activation = True

    def supports(self, layer: keras.Layer) -> bool:
        """Whether kernel and bias are plain weights, and all there are.

        Not so in a quantized layer, with a low-rank adapter, or with an activation that has weights
        of its own (PReLU).
        """
        plain = not layer.lora_enabled and layer.quantization_mode is None
        return plain and not getattr(layer.activation, "weights", [])

    def positions(self, layer: keras.Layer, call: UnitCall) -> tuple[Tensor, Tensor]:
        """`(batch, T, K)` inputs and `(batch, T, P)` gradients, or the same without T."""
        raise NotImplementedError

    def per_example(
        self,
        layer: keras.Layer,
        variables: Sequence[keras.Variable],
        calls: Sequence[UnitCall],
    ) -> PerExample:
        """Kernel and bias together; a shared layer's calls are further positions."""
        pairs = [self.positions(layer, call) for call in calls]
        if len(pairs) > 1:
            inputs = ops.concatenate([_with_positions(pair[0]) for pair in pairs], axis=1)
            gradients = ops.concatenate([_with_positions(pair[1]) for pair in pairs], axis=1)
        else:
            inputs, gradients = pairs[0]
        norms, sums = [], []
        for variable in variables:
            if variable is layer.bias:
                norm, weighted = bias_squared_norms_and_sums(gradients)
            else:
                norm, weighted = linear_squared_norms_and_sums(inputs, gradients)
            norms.append(norm)
            sums.append((weighted, variable.shape))

        def weighted_sums(weights: Tensor, keep: Tensor | None) -> list[Tensor]:
            return [ops.reshape(weighted(weights, keep), shape) for weighted, shape in sums]

        return PerExample(sum(norms), weighted_sums)


def _with_positions(values: Tensor) -> Tensor:
    return values if len(values.shape) == 3 else values[:, None, :]


class DenseRule(LinearRule):
    """Dense on vectors or on any number of position axes, exact, no gradient formed twice."""

    def positions(self, layer: keras.Layer, call: UnitCall) -> tuple[Tensor, Tensor]:
        """All axes between batch and features are positions."""
        return _flat_positions(call.first_input), _flat_positions(call.output_gradients[0])


def _flat_positions(values: Tensor) -> Tensor:
    """`(batch, d1, .., dn, features) -> (batch, d1 * .. * dn, features)`, in float32."""
    values = ops.cast(values, "float32")
    shape = values.shape
    if len(shape) <= 3:
        return values
    middle = -1 if None in shape[1:-1] else math.prod(shape[1:-1])
    return ops.reshape(values, (ops.shape(values)[0], middle, shape[-1]))


register_layer_rule(keras.layers.Dense, DenseRule())
