"""Gradients of weights, of intermediate values and of inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Tensor = Any
Nested = Any


def value_and_gradients(
    fn: Callable[[], tuple[Tensor, Any]],
    variables: Sequence[keras.Variable] | Callable[[], Sequence[keras.Variable]],
    *,
    inputs: Sequence[Tensor] = (),
) -> tuple[Any, list[Tensor | None]]:
    """Runs `fn() -> (loss, aux)` once and differentiates the loss.

    Args:
        fn: What to run.
        variables: With respect to what; a function is called after `fn`, which may be what builds
            the model and makes its variables.
        inputs: Tensors that `fn` uses, with respect to which the loss is differentiated as well.

    Returns:
        `aux`, and one gradient per variable (None where the loss does not depend on it), then one
        for each of `inputs` (zeros there).
    """
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss, aux = fn()
    found = variables() if callable(variables) else variables
    gradients = tape.gradient(loss, [*(v.value for v in found), *inputs])
    own = len(gradients) - len(inputs)
    of_inputs = [
        tf.zeros_like(x) if g is None else tf.convert_to_tensor(g)
        for x, g in zip(inputs, gradients[own:], strict=True)
    ]
    return aux, [*gradients[:own], *of_inputs]


def gradients_of_watched(
    fn: Callable[[Callable[[Tensor], int]], tuple[Tensor, Any]],
) -> tuple[Any, list[Tensor | None]]:
    """Differentiates a loss with respect to intermediate values, in one backward pass.

    Args:
        fn: `fn(watch) -> (loss, aux)`. It calls `watch(tensor)` on each intermediate value whose
            gradient is wanted, before it uses that value further; `watch` returns the place of
            that gradient in the result.

    Returns:
        `aux`, and one gradient per watched tensor in the order of the calls (None where the loss
        does not depend on it). Variables are not watched, so no weight gradient is computed.
    """
    watched: list[Tensor] = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def watch(tensor: Tensor) -> int:
            tape.watch(tensor)
            watched.append(tensor)
            return len(watched) - 1

        loss, aux = fn(watch)
    gradients = tape.gradient(loss, watched)
    return aux, [
        tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients
    ]


def differentiable(
    fn: Callable[[Callable[[Tensor], int]], Any],
) -> tuple[Any, Callable[[Tensor], list[Tensor | None]]]:
    """As `gradients_of_watched`, for several losses of one forward pass.

    Args:
        fn: `fn(watch) -> aux`.

    Returns:
        `aux`, and a function from a loss to its gradients, one for each watched tensor.
    """
    watched: list[Tensor] = []
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

        def watch(tensor: Tensor) -> int:
            tape.watch(tensor)
            watched.append(tensor)
            return len(watched) - 1

        aux = fn(watch)

    def gradients(loss: Tensor) -> list[Tensor | None]:
        found = tape.gradient(loss, watched)
        return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in found]

    return aux, gradients


def input_gradients(fn: Callable[[Nested], Tensor], inputs: Nested) -> tuple[Tensor, Nested]:
    """What `fn(inputs)` gives, and the gradient of its sum in the structure of `inputs`."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        values = fn(inputs)
        # Summed, not averaged: in float16 a mean pushes gradients below the smallest number.
        total = tf.reduce_sum(values)
    return values, tape.gradient(total, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def map_examples(
    fn: Callable[[Nested], Nested],
    elements: Nested,
    *,
    one_by_one: Sequence[Sequence[int]] | None = None,
) -> Nested:
    """Applies `fn` to each slice along axis 0, vectorised where the operations allow it.

    Args:
        fn: From the slices to a list of tensors.
        elements: Tensors of one length.
        one_by_one: The shapes of what `fn` returns, in float32, for operations that are wrong or
            missing when they are vectorised: it then runs for one slice after the other.
    """
    if one_by_one is None:
        return tf.vectorized_map(fn, elements)
    signature = [tf.TensorSpec(shape, tf.float32) for shape in one_by_one]
    return tf.map_fn(fn, elements, fn_output_signature=signature)
