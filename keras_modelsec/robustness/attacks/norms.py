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

# The smallest normal number of float32 and bfloat16. Whether what is smaller is a number or zero
# differs between processors, and between the first and the last numbers of one tensor on one
# processor, since not all instructions flush it.
_SMALLEST = 2.0**-126


class Norm(ABC):
    """One l_p ball: where to start in it, which way is steepest, how to get back into it."""

    name: str

    @abstractmethod
    def random_start(
        self, like: Tensors, epsilon: Tensor, seed: Any, free: Tensors | None = None
    ) -> Tensors:
        """One perturbation per example, drawn uniformly from the ball of radius `epsilon`.

        `free`: 1 for the features of one example that may change and 0 for the others, for each
        tensor; None for all.
        """

    @abstractmethod
    def length(self, deltas: Tensors) -> Tensor:
        """(batch,) float32: the norm of each example's perturbation."""

    @abstractmethod
    def direction(self, gradients: Tensors) -> Tensors:
        """The perturbation of norm 1 along which a linear function of that gradient grows most.

        A zero gradient gives zero. Entries below 2**-126, about 1.2e-38, count as zero: they are
        denormal in float32, and some processors flush them; so all find the same direction. The
        denormal numbers of float16, from 6e-8 on, are kept.
        """

    @abstractmethod
    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """The point of the ball of radius `epsilon` nearest to each example's perturbation.

        What is shorter than 2**-126 counts as zero here too, and is left to the processor.
        """


class Linf(Norm):
    """Every feature moves by at most epsilon."""

    name = "linf"

    def random_start(
        self, like: Tensors, epsilon: Tensor, seed: Any, free: Tensors | None = None
    ) -> Tensors:
        """Each feature for itself, uniform in [-epsilon, epsilon]."""
        starts = [
            _cast_like(epsilon, leaf)
            * keras.random.uniform(ops.shape(leaf), -1.0, 1.0, dtype=leaf.dtype, seed=seed)
            for leaf in like
        ]
        return _only(starts, free)

    def length(self, deltas: Tensors) -> Tensor:
        """The largest change of a feature."""
        return _per_example_max(deltas)

    def direction(self, gradients: Tensors) -> Tensors:
        """The sign of the gradient."""
        return [ops.sign(_without_denormals(gradient)) for gradient in gradients]

    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """Clips each feature."""
        return [
            ops.clip(delta, -_cast_like(epsilon, delta), _cast_like(epsilon, delta))
            for delta in deltas
        ]


class L2(Norm):
    """The Euclidean length of an example's perturbation is at most epsilon."""

    name = "l2"

    def random_start(
        self, like: Tensors, epsilon: Tensor, seed: Any, free: Tensors | None = None
    ) -> Tensors:
        """Uniform in the Euclidean ball, not only on its surface."""
        normals = [
            keras.random.normal(ops.shape(leaf), dtype=leaf.dtype, seed=seed) for leaf in like
        ]
        normals = _only(normals, free)
        if free is None:
            size = sum(_features_of(leaf) for leaf in like)
        else:
            size = sum(
                ops.sum(ops.cast(ops.broadcast_to(ones, ops.shape(leaf)[1:]), "float32"))
                for ones, leaf in zip(free, like, strict=True)
            )
        # A uniform direction, and a radius whose distribution function is (r / epsilon) ** size.
        batch = ops.shape(like[0])[0]
        uniform = keras.random.uniform((batch,), dtype="float32", seed=seed)
        radius = ops.cast(epsilon, "float32") * ops.power(uniform, 1.0 / size)
        scale = radius / _one_for_zero(_lengths(normals))
        return [normal * _per_example(scale, normal) for normal in normals]

    def length(self, deltas: Tensors) -> Tensor:
        """The Euclidean length."""
        return _lengths(deltas)

    def direction(self, gradients: Tensors) -> Tensors:
        """The gradient divided by its length."""
        _, scaled = _scaled([_without_denormals(gradient) for gradient in gradients])
        lengths = _one_for_zero(_plain_lengths(scaled))
        return [gradient / _per_example(lengths, gradient) for gradient in scaled]

    def project(self, deltas: Tensors, epsilon: Tensor) -> Tensors:
        """Shortens what is too long."""
        lengths = _one_for_zero(_lengths(deltas))
        scale = ops.minimum(1.0, ops.cast(epsilon, "float32") / lengths)
        return [delta * _per_example(scale, delta) for delta in deltas]


_NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2())}


def get_norm(name: str) -> Norm:
    """The norm of that name: "linf" or "l2"."""
    meant = _meant_by(name)
    remedy = None if meant is None else f"Write norm={meant!r}."
    return _NORMS[checks.check_choice("norm", name, tuple(_NORMS), remedy)]


def _meant_by(name: Any) -> str | None:
    """Which norm another spelling means: numpy.inf, 2, "L2", "Linf"."""
    words = {"inf": "linf", "l_inf": "linf", "2": "l2", "2.0": "l2", "l_2": "l2"}
    spelled = str(name).lower()
    meant = words.get(spelled, spelled)
    return meant if meant in _NORMS and meant != name else None


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


def _without_denormals(tensor: Tensor) -> Tensor:
    # In float16 the bound is zero and keeps everything: its denormals are not flushed.
    return ops.where(ops.abs(tensor) >= _SMALLEST, tensor, ops.zeros_like(tensor))


def _one_for_zero(values: Tensor) -> Tensor:
    return ops.where(values >= _SMALLEST, values, ops.ones_like(values))


def _lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean length of each example over all tensors, in float32."""
    largest, scaled = _scaled(tensors)
    return largest * _plain_lengths(scaled)


def _scaled(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensors]:
    """Each example's largest entry, or one, and the entries divided by it.

    The squares of these neither underflow nor overflow.
    """
    largest = _one_for_zero(_per_example_max(tensors))
    return largest, [tensor / _per_example(largest, tensor) for tensor in tensors]


def _plain_lengths(tensors: Sequence[Tensor]) -> Tensor:
    squares = [
        ops.sum(ops.square(ops.cast(tensor, "float32")), axis=_feature_axes(tensor))
        for tensor in tensors
    ]
    return ops.sqrt(sum(squares))


def _per_example_max(tensors: Sequence[Tensor]) -> Tensor:
    largest = [
        ops.max(ops.abs(ops.cast(tensor, "float32")), axis=_feature_axes(tensor))
        for tensor in tensors
    ]
    total = largest[0]
    for other in largest[1:]:
        total = ops.maximum(total, other)
    return total


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ...), in the dtype of `like`."""
    shape = [-1] + [1] * (len(like.shape) - 1)
    return ops.cast(ops.reshape(values, shape), like.dtype)


def _only(tensors: Tensors, free: Tensors | None) -> Tensors:
    if free is None:
        return tensors
    return [tensor * ones for tensor, ones in zip(tensors, free, strict=True)]
