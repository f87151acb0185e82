"""Noise for private training."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Tensor = Any
Nested = Any


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
        with tf.init_scope():
            if seed is None:
                self._generator = tf.random.Generator.from_non_deterministic_state()
            else:
                self._generator = tf.random.Generator.from_seed(seed)

    @property
    def state(self) -> Any:
        """The variable from which the next noise is drawn; who knows it knows the noise."""
        return self._generator.state

    def normal(self, shape: Sequence[int] | Tensor, stddev: Tensor | float) -> Tensor:
        """Independent float32 draws from N(0, stddev^2)."""
        return self._generator.normal(shape, dtype=tf.float32) * stddev
