"""The rule of a layer, and the registry that finds it.

A rule turns what one backward pass saved of a layer (its inputs, and the gradient at its output)
into per-example squared gradient norms, and afterwards into the weighted sum of the per-example
gradients. It never sees the loss or another layer.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

Tensor = Any


class UnitCall(NamedTuple):
    """One call of a layer in the forward pass.

    Attributes:
        args: Positional arguments of `layer.call`; tensors have the batch as their first axis.
        kwargs: Keyword arguments of `layer.call`.
        output_gradients: The gradient of the summed per-example losses at each floating-point
            output of the layer (before its activation, if `LayerRule.splits_activation`), float32.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_gradients: list[Tensor]

    @property
    def first_input(self) -> Tensor:
        """The first argument of `layer.call`, however it was passed."""
        return self.args[0] if self.args else self.kwargs["inputs"]


class PerExample(NamedTuple):
    """What a rule knows of the per-example gradients of one layer.

    Attributes:
        squared_norms: float32 tensor of shape `(batch,)`: the squared L2 norm of each example's
            gradient with respect to all trainable weights of the layer together.
        weighted_sums: `weighted_sums(weights, keep)` returns, per trainable weight of the layer,
            the sum over the batch of `weights[i]` times the gradient of example i, as float32.
            `weights` has shape `(batch,)`; `keep` is None, or a boolean `(batch,)` that is False
            for examples whose values are not finite and must not be touched, not even times zero.
    """

    squared_norms: Tensor
    weighted_sums: Callable[[Tensor, Tensor | None], list[Tensor]]


class LayerRule(abc.ABC):
    """Per-example gradients of one kind of layer from one backward pass.

    Reference: Bu et al., "Differentially Private Optimization on Large Model at Small Cost",
    arXiv:2210.00038 (book-keeping).

    Attributes:
        splits_activation: Whether the layer's `call` is run with `layer.activation` set to None and
            the activation applied afterwards, so that the gradient is taken before it.
    """

    splits_activation: bool = False

    @abc.abstractmethod
    def supports(self, layer: keras.Layer) -> bool:
        """Whether the rule is exact for `layer` as it is configured now."""

    @abc.abstractmethod
    def per_example(
        self,
        layer: keras.Layer,
        variables: Sequence[keras.Variable],
        calls: Sequence[UnitCall],
    ) -> PerExample:
        """Norms and weighted sums for the trainable `variables` of `layer` over all its calls."""


def floating_leaves(structure: Any) -> list[Tensor]:
    """The floating-point tensors of a nested structure, flat."""
    return [
        leaf
        for leaf in keras.tree.flatten(structure)
        if keras.ops.is_tensor(leaf)
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype))
    ]


_RULES: dict[type, LayerRule] = {}


def register_layer_rule(layer_class: type[keras.Layer], rule: LayerRule) -> None:
    """Uses `rule` for layers of exactly `layer_class`.

    A subclass may change what `call` computes, so it does not inherit the rule: register it too.
    A layer with sublayers of its own becomes one unit when its class is registered.

    Args:
        layer_class: A subclass of `keras.Layer`.
        rule: A `LayerRule`; `ms.privacy.FallbackRule()` makes the layer one unit.

    Raises:
        TypeError: If `layer_class` is no layer class, or `rule` no `LayerRule`.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.Layer)):
        raise TypeError(f"`layer_class` must be a keras.Layer class. Received: {layer_class!r}.")
    if not isinstance(rule, LayerRule):
        raise TypeError(f"`rule` must be a LayerRule instance. Received: {rule!r}.")
    _RULES[layer_class] = rule


def is_registered(layer: keras.Layer) -> bool:
    """Whether a rule was registered for exactly this layer's class."""
    return type(layer) in _RULES


def find_rule(layer: keras.Layer, fallback: LayerRule) -> LayerRule:
    """The registered rule if it is exact for `layer`, else `fallback`."""
    rule = _RULES.get(type(layer))
    return rule if rule is not None and rule.supports(layer) else fallback
