"""The rule for every layer that has none: its own gradient, example by example."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy.layer_rules.linear import masked
from keras_modelsec.privacy.layer_rules.rule import (
    LayerRule,
    PerExample,
    UnitCall,
    floating_leaves,
)

Tensor = Any


class FallbackRule(LayerRule):
    """Differentiates one layer alone from its saved inputs, once per example, vectorised.

    Exact for any layer that treats the examples of a batch independently and draws no random
    numbers. It holds one gradient of this layer per example in memory, never of the whole model.
    """

    def supports(self, layer: keras.Layer) -> bool:
        """Every layer; the model checks refuse those it would be wrong for."""
        return True

    def per_example(
        self,
        layer: keras.Layer,
        variables: Sequence[keras.Variable],
        calls: Sequence[UnitCall],
    ) -> PerExample:
        """Per-example gradients of the layer, summed over its calls."""
        gradients = [_call_gradients(layer, variables, call) for call in calls]
        totals = [sum(per_call[1:], start=per_call[0]) for per_call in zip(*gradients, strict=True)]
        norms = sum(
            ops.sum(ops.square(total), axis=tuple(range(1, len(total.shape)))) for total in totals
        )

        def weighted_sums(weights: Tensor, keep: Tensor | None) -> list[Tensor]:
            return [ops.tensordot(weights, masked(total, keep), axes=1) for total in totals]

        return PerExample(norms, weighted_sums)


def _call_gradients(
    layer: keras.Layer, variables: Sequence[keras.Variable], call: UnitCall
) -> list[Tensor]:
    """One `(batch, *variable.shape)` float32 tensor per variable."""
    batched, rebuild = _split_batched((call.args, call.kwargs), call.output_gradients[0])

    def one_example(slices: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        leaves, cotangents = slices

        def inner_product() -> tuple[Tensor, None]:
            args, kwargs = rebuild([leaf[None] for leaf in leaves])
            outputs = floating_leaves(_call_without_updates(layer, args, kwargs))
            products = [
                ops.sum(ops.cast(output, "float32") * cotangent[None])
                for output, cotangent in zip(outputs, cotangents, strict=True)
            ]
            return sum(products), None

        _, gradients = backend.value_and_gradients(inner_product, variables)
        return [
            ops.zeros(variable.shape, "float32")
            if gradient is None
            else ops.cast(ops.convert_to_tensor(gradient), "float32")
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    try:
        return backend.map_examples(
            one_example,
            (batched, call.output_gradients),
            one_by_one=[v.shape for v in variables] if _has_grouped_convolution(layer) else None,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"Layer {layer.name!r} ({type(layer).__name__}) must be one that TensorFlow can "
            f"differentiate for many examples at once. Received: {error}. Write what it does with "
            "other operations (`ops.while_loop` in the place of `ops.scan`)."
        ) from error


def _call_without_updates(layer: keras.Layer, args: Any, kwargs: Any) -> Any:
    """Calls a layer again, which must not make its updates again.

    Raises:
        UnsupportedModelError: If it updates variables of its own.
    """
    with keras.StatelessScope() as scope:
        outputs, hidden = backend.with_variable_updates(lambda: layer(*args, **kwargs))
    # Random layers are refused elsewhere, by what they give.
    updated = [v.path for v in layer.variables if scope.get_current_value(v) is not None]
    updated = [path for path in updated if "seed_generator" not in path] + hidden
    if updated:
        raise UnsupportedModelError(
            f"Layer {layer.name!r} ({type(layer).__name__}), which is called again for each "
            f"example's gradient, must not update variables in its call. Received: {updated}, "
            "which would be updated several times in a step. Constrain or normalise the weights "
            "with `kernel_constraint` instead (keras.constraints.UnitNorm), or freeze the layer."
        )
    return outputs


def _has_grouped_convolution(layer: keras.Layer) -> bool:
    """Whether there is a convolution in groups, for whose kernel's gradient TensorFlow needs XLA.

    Keras compiles it so, which vectorising undoes; on processors for which TensorFlow has no
    oneDNN, the operation that is left then fails.
    """
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return any(
        isinstance(inner, kinds) and inner.groups > 1 for inner in internals.flatten_layers(layer)
    )


def _split_batched(arguments: Any, output: Tensor) -> tuple[list[Tensor], Any]:
    """The tensors that carry the batch axis, and a function that puts slices of them back.

    A tensor whose first axis is known while the batch is not (a table of positions, an attention
    mask without a batch axis) is passed whole to each example.
    """
    leaves = keras.tree.flatten(arguments)
    is_batched = [
        ops.is_tensor(leaf)
        and len(leaf.shape) > 0
        and backend.may_be_batch_axis(leaf.shape[0], ops.shape(output)[0])
        for leaf in leaves
    ]

    def rebuild(slices: list[Tensor]) -> Any:
        remaining = iter(slices)
        merged = [
            next(remaining) if batched else leaf
            for leaf, batched in zip(leaves, is_batched, strict=True)
        ]
        return keras.tree.pack_sequence_as(arguments, merged)

    chosen = [leaf for leaf, batched in zip(leaves, is_batched, strict=True) if batched]
    for leaf in chosen:
        backend.assert_equal(
            ops.shape(leaf)[0], ops.shape(output)[0], "The first axis of an argument is no batch."
        )
    return chosen, rebuild
