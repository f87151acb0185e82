"""The balls an attack stays in. A norm answers three questions; the attack loop asks them.

All work on a list of tensors, the attacked inputs of one model: an example's perturbation is the
concatenation of what is done to each of its inputs, and the norm is that of the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import checks

Tensor = Any
Tensors = list[Any]

# Below this a norm is that of a zero vector (foolbox uses the same).
_TINY = 1e-12


class Norm(ABC):
    """One l_p ball: where to start in it, which way is steepest, how to get back into it."""

    name: str

    @abstractmethod
    def random_start(self, like: Tensors, epsilon: Tensor, seed: Any) -> Tensors:
        """One perturbation per example, drawn uniformly from the ball of radius `epsilon`."""

    @abstractmethod
    def direction(self, gradients: Tensors) -> Tensors:
        """The perturbation of norm 1 along which a linear function of that gradient grows most.

        A zero gradient gives zero.
        """

    @abstractmethod
    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """The point of the ball of radius `epsilon` nearest to each example's perturbation."""


class Linf(Norm):
    """Every feature moves by at most epsilon."""

    name = "linf"

    def random_start(self, like: Tensors, epsilon: Tensor, seed: Any) -> Tensors:
        """Each feature for itself, uniform in [-epsilon, epsilon]."""
        return [
            _cast_like(epsilon, leaf)
            * keras.random.uniform(ops.shape(leaf), -1.0, 1.0, dtype=leaf.dtype, seed=seed)
            for leaf in like
        ]

    def direction(self, gradients: Tensors) -> Tensors:
        """The sign of the gradient."""
        return [ops.sign(gradient) for gradient in gradients]

    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """Clips each feature."""
        return [
            ops.clip(delta, -_cast_like(epsilon, delta), _cast_like(epsilon, delta))
            for delta in deltas
        ]


class L2(Norm):
    """The Euclidean length of an example's perturbation is at most epsilon."""

    name = "l2"

    def random_start(self, like: Tensors, epsilon: Tensor, seed: Any) -> Tensors:
        """Uniform in the Euclidean ball, not only on its surface."""
        normals = [
            keras.random.normal(ops.shape(leaf), dtype=leaf.dtype, seed=seed) for leaf in like
        ]
        size = sum(_features_of(leaf) for leaf in like)
        # A uniform direction, and a radius whose distribution function is (r / epsilon) ** size.
        batch = ops.shape(like[0])[0]
        uniform = keras.random.uniform((batch,), dtype="float32", seed=seed)
        radius = ops.cast(epsilon, "float32") * ops.power(uniform, 1.0 / size)
        scale = radius / _lengths(normals)
        return [normal * _per_example(scale, normal) for normal in normals]

    def direction(self, gradients: Tensors) -> Tensors:
        """The gradient divided by its length."""
        # Divided by the largest entry first, so that the squares neither under- nor overflow.
        largest = _per_example_max(gradients)
        scaled = [gradient / _per_example(largest, gradient) for gradient in gradients]
        lengths = _lengths(scaled)
        return [gradient / _per_example(lengths, gradient) for gradient in scaled]

    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """Shortens what is too long."""
        scale = ops.minimum(1.0, ops.cast(epsilon, "float32") / _lengths(deltas))
        return [delta * _per_example(scale, delta) for delta in deltas]


_NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2())}


def get_norm(name: str) -> Norm:
    """The norm of that name: "linf" or "l2"."""
    return _NORMS[checks.check_choice("norm", name, tuple(_NORMS))]


def _cast_like(value: Tensor, like: Tensor) -> Tensor:
    return ops.cast(value, like.dtype)


def _feature_axes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(1, len(tensor.shape)))


def _features_of(tensor: Tensor) -> Tensor:
    """How many numbers one example holds; shapes may be known only when the function runs."""
    count: Tensor = 1.0
    for length in ops.shape(tensor)[1:]:
        count = count * ops.cast(length, "float32")
    return count


def _lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean length of each example over all tensors, in float32, at least `_TINY`."""
    squares = [
        ops.sum(ops.square(ops.cast(tensor, "float32")), axis=_feature_axes(tensor))
        for tensor in tensors
    ]
    return ops.maximum(ops.sqrt(sum(squares)), _TINY)


def _per_example_max(tensors: Sequence[Tensor]) -> Tensor:
    largest = [
        ops.max(ops.abs(ops.cast(tensor, "float32")), axis=_feature_axes(tensor))
        for tensor in tensors
    ]
    total = largest[0]
    for other in largest[1:]:
        total = ops.maximum(total, other)
    return ops.where(ops.equal(total, 0.0), ops.ones_like(total), total)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ...), in the dtype of `like`."""
    shape = [-1] + [1] * (len(like.shape) - 1)
    return ops.cast(ops.reshape(values, shape), like.dtype)
