"""The only file of the package that imports TensorFlow."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Tensor = Any
Nested = Any


def value_and_gradients(
    fn: Callable[[], tuple[Tensor, Any]], variables: Sequence[keras.Variable]
) -> tuple[Any, list[Tensor | None]]:
    """Runs `fn() -> (loss, aux)` once and differentiates the loss.

    Returns:
        `aux`, and one gradient per variable (None where the loss does not depend on it).
    """
    with tf.GradientTape() as tape:
        loss, aux = fn()
    return aux, tape.gradient(loss, [v.value for v in variables])


def gradients_of_watched(
    fn: Callable[[Callable[[Tensor], None]], tuple[Tensor, Any]],
) -> tuple[Any, list[Tensor | None]]:
    """Differentiates a loss with respect to intermediate values, in one backward pass.

    Args:
        fn: `fn(watch) -> (loss, aux)`. It calls `watch(tensor)` on each intermediate value whose
            gradient is wanted, before it uses that value further.

    Returns:
        `aux`, and one gradient per watched tensor in the order of the calls (None where the loss
        does not depend on it). Variables are not watched, so no weight gradient is computed.
    """
    watched: list[Tensor] = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def watch(tensor: Tensor) -> None:
            tape.watch(tensor)
            watched.append(tensor)

        loss, aux = fn(watch)
    return aux, tape.gradient(loss, watched)


def input_gradients(fn: Callable[[Nested], Tensor], inputs: Nested) -> Nested:
    """The gradient of the scalar `fn(inputs)` with respect to `inputs`, in their structure."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        value = fn(inputs)
    return tape.gradient(value, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def map_examples(fn: Callable[[Nested], Nested], elements: Nested) -> Nested:
    """Applies `fn` to each slice along axis 0, vectorised where the operations allow it."""
    return tf.vectorized_map(fn, elements)


def compile_function(fn: Callable[..., Any], *, jit_compile: bool = False) -> Callable[..., Any]:
    """Compiles `fn`; shapes that change are generalised instead of compiled again each time."""
    return tf.function(fn, reduce_retracing=True, autograph=False, jit_compile=jit_compile)


def replica_count() -> int:
    """How many replicas run the current step in parallel; 1 outside of a distribution strategy."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def assert_equal(left: Tensor, right: Tensor, message: str) -> None:
    """Raises, now or when the compiled step runs, unless the two tensors are equal."""
    tf.debugging.assert_equal(left, right, message=message)


class NoiseSource:
    """Gaussian noise that never repeats.

    The generator starts from the operating system's entropy unless a seed is given, keeps its state
    in a variable (a literal seed would be folded into a constant and the noise would repeat), and
    gives each replica a stream of its own when it is made inside the strategy's scope. The state is
    not tracked by Keras, so it reaches no file.

    Args:
        seed: An integer for reproducible tests, or None for the operating system's entropy.
    """

    def __init__(self, seed: int | None = None):
        if seed is None:
            self._generator = tf.random.Generator.from_non_deterministic_state()
        else:
            self._generator = tf.random.Generator.from_seed(seed)

    def normal(self, shape: Sequence[int] | Tensor, stddev: Tensor | float) -> Tensor:
        """Independent float32 draws from N(0, stddev^2)."""
        return self._generator.normal(shape, dtype=tf.float32) * stddev
