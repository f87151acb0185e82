"""Logarithms of probabilities, computed anew from the logits that went into them.

Walks the recorded graph back from a tensor to softmaxes, sigmoids and exponentials. Each tensor is
looked at once: a value that is used twice at each of many steps has as many ways back as the power
of two says.
"""

import functools
from typing import Any

import numpy as np
from keras import ops

from keras_modelsec._core import backend

Tensor = Any
_Weighted = dict[int, tuple[Tensor, float]]

PASSING = {"Identity", "Cast", "EnsureShape", "CheckNumerics", "StopGradient", "PreventGradient"}
PASSING |= {"IdentityN", "Reshape", "Squeeze", "ExpandDims", "PlaceholderWithDefault"}
# Deeper than any output's end that can be written by hand.
DEEPEST = 64
# Members of a mean whose logarithms differ by no more are followed by the logarithm of their sum.
_CLOSE = 5.0


def is_float(tensor: Tensor) -> bool:
    """Whether it holds numbers that a gradient can be followed through."""
    return "float" in str(getattr(tensor.dtype, "name", tensor.dtype))


class Logarithm:
    """The logarithm of a tensor made of softmaxes, sigmoids and exponentials, from what went in."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor | None] = {}
        self._exact: dict[int, Tensor | None] = {}
        self._origins: dict[int, set[int]] = {}
        # Where several are near 1, their logarithms hardly tell them apart.
        self.uses_sigmoid = False

    def of(self, tensor: Tensor, depth: int = 0) -> Tensor | None:
        """None where it cannot be computed so."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = None if depth > DEEPEST else self._compute(tensor, depth)
        return self._known[id(tensor)]

    def _compute(self, tensor: Tensor, depth: int) -> Tensor | None:
        kind, sources = backend.made_by(tensor)
        rule = getattr(self, f"_of_{kind.lower()}", None)
        self.uses_sigmoid = self.uses_sigmoid or kind == "Sigmoid"
        if kind in ("Softmax", "Sigmoid", "Exp"):
            source = ops.cast(sources[0], "float32")
            if kind == "Exp":
                return source
            return ops.log_softmax(source) if kind == "Softmax" else ops.log_sigmoid(source)
        if rule is not None:
            return rule(tensor, sources, depth + 1)
        moved = backend.moved_by(tensor) if kind not in PASSING else sources[:1]
        if moved is None or not all(is_float(source) for source in moved):
            return None
        logarithms = [self.of(source, depth + 1) for source in moved]
        if any(logarithm is None for logarithm in logarithms):
            return None
        return backend.move_again(tensor, logarithms)

    def _factor(self, tensor: Tensor, depth: int) -> Tensor | None:
        """The logarithm of a factor, which may be a positive constant."""
        constant = backend.constant_in(tensor)
        if constant is None:
            return self.of(tensor, depth)
        if not (np.asarray(constant) > 0).all():
            return None
        return ops.convert_to_tensor(np.log(np.asarray(constant, "float32")))

    def _of_mul(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        left, right = (self._factor(source, depth) for source in sources)
        return None if left is None or right is None else left + right

    def _of_realdiv(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        left, right = (self._factor(source, depth) for source in sources)
        return None if left is None or right is None else left - right

    def _of_addv2(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        # A constant beside probabilities is what keeps them from zero, and what hides them.
        terms = [source for source in sources if backend.constant_in(source) is None]
        if len(terms) == 1:
            return self.of(terms[0], depth)
        return self._of_addn(tensor, terms, depth)

    def _of_addn(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        terms = _addends(sources)
        origins = [self._origins_of(term) for term, _ in terms]
        apart = len(set().union(*origins)) == sum(map(len, origins))
        if not apart or not all(origins):
            return self._exact_sum(sources, depth)
        logarithms = [self.of(term, depth) for term, _ in terms]
        if any(logarithm is None for logarithm in logarithms):
            return None
        weights = np.array([weight for _, weight in terms], "float32")
        shape = (-1,) + (1,) * len(tensor.shape)
        stacked = ops.stack([ops.broadcast_to(each, ops.shape(tensor)) for each in logarithms])
        return _of_members(stacked, weights.reshape(shape), (0,), False)

    def _origins_of(self, tensor: Tensor) -> set[int]:
        if id(tensor) not in self._origins:
            self._origins[id(tensor)] = _distributions(tensor)
        return self._origins[id(tensor)]

    def _exact_sum(self, sources: list[Tensor], depth: int) -> Tensor | None:
        """The logarithm of a sum, and of the sums in it: none is followed as a mean of members."""
        logarithms = [self._exactly(source, depth + 1) for source in sources]
        if any(logarithm is None for logarithm in logarithms):
            return None
        return functools.reduce(ops.logaddexp, logarithms)

    def _exactly(self, tensor: Tensor, depth: int) -> Tensor | None:
        if id(tensor) not in self._exact:
            self._exact[id(tensor)] = self._compute_exactly(tensor, depth)
        return self._exact[id(tensor)]

    def _compute_exactly(self, tensor: Tensor, depth: int) -> Tensor | None:
        source, factor = _apart_from_weights(tensor)
        kind, sources = backend.made_by(source)
        if depth > DEEPEST or (source is tensor and kind not in ("AddV2", "AddN")):
            return self.of(tensor, depth)
        if source is not tensor:
            logarithm = self._exactly(source, depth + 1)
            return None if logarithm is None else logarithm + factor
        terms = [each for each in sources if backend.constant_in(each) is None]
        return self._exact_sum(terms, depth) if terms else None

    def _of_sub(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        constant, (kind, inputs) = backend.constant_in(sources[0]), backend.made_by(sources[1])
        if constant is None or kind != "Sigmoid" or not (np.asarray(constant) == 1).all():
            return None
        return ops.log_sigmoid(-ops.cast(inputs[0], "float32"))

    def _of_sum(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        constant = backend.constant_in(sources[1])
        members, weights = _apart_from_weights(sources[0])
        logarithm = self.of(members, depth)
        if logarithm is None or constant is None:
            return None
        rank = len(sources[0].shape)
        axes = tuple(int(axis) % rank for axis in np.ravel(constant))
        keepdims = len(tensor.shape) == rank
        if _are_members(members, axes) and len(logarithm.shape) == rank:
            return _of_members(logarithm, weights, axes, keepdims)
        return ops.logsumexp(logarithm + weights, axis=axes, keepdims=keepdims)

    # For the largest class, a mean is its sum; the number of terms is the same for all.
    _of_mean = _of_sum

    def _of_maximum(self, tensor: Tensor, sources: list[Tensor], depth: int) -> Tensor | None:
        # A bound hides what is beyond it.
        terms = [source for source in sources if backend.constant_in(source) is None]
        return self.of(terms[0], depth) if len(terms) == 1 else None

    _of_minimum = _of_maximum


def _of_members(values: Tensor, weights: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """What to follow of a mean of distributions, whose logarithms lie along `axes`.

    Where all are saturated, the logarithm of the sum has the gradient of one member alone, that
    which is nearest to its own boundary, and the others would stay as they are. The more their
    logarithms lie apart, the more this turns into the weighted mean of logarithms, which has the
    gradients of all; where they are close, it is the logarithm of the sum.
    """
    known = ops.stop_gradient(values)
    spread = ops.max(known, axis=axes) - ops.min(known, axis=axes)
    if len(spread.shape) > 1:
        spread = ops.max(spread, axis=-1, keepdims=True)
    heat = ops.maximum(spread / _CLOSE, 1.0)
    whole = ops.expand_dims(heat, axes)
    mixed = ops.logsumexp(values / whole + weights, axis=axes, keepdims=keepdims)
    return mixed * (whole if keepdims else heat)


def _apart_from_weights(tensor: Tensor) -> tuple[Tensor, Any]:
    """A tensor without its positive constant factor, and the logarithm of that."""
    kind, sources = backend.made_by(tensor)
    if kind in ("Mul", "RealDiv"):
        for source, other in (sources, sources[::-1])[: 2 if kind == "Mul" else 1]:
            constant = backend.constant_in(other)
            same = constant is not None and len(source.shape) == len(tensor.shape)
            if same and (np.asarray(constant) > 0).all():
                logarithm = np.log(np.asarray(constant, "float32"))
                return source, logarithm if kind == "Mul" else -logarithm
    return tensor, np.float32(0.0)


def _addends(sources: list[Tensor]) -> list[tuple[Tensor, float]]:
    """What is added up to the sum of `sources`, each once, with the logarithm of its weight."""
    known: dict[int, _Weighted] = {}
    return list(_added([_addends_of(source, known, 0) for source in sources], 0.0).values())


def _addends_of(tensor: Tensor, known: dict[int, _Weighted], depth: int) -> _Weighted:
    if id(tensor) not in known:
        known[id(tensor)] = _find_addends(tensor, known, depth)
    return known[id(tensor)]


def _find_addends(tensor: Tensor, known: dict[int, _Weighted], depth: int) -> _Weighted:
    source, factor = _apart_from_weights(tensor)
    kind, sources = backend.made_by(source)
    is_sum = source is not tensor or kind in ("AddV2", "AddN")
    if np.size(factor) != 1 or not is_sum or depth > DEEPEST:
        return {id(tensor): (tensor, 0.0)}
    terms = [each for each in sources if backend.constant_in(each) is None]
    parts = [source] if source is not tensor else terms
    found = [_addends_of(part, known, depth + 1) for part in parts]
    return _added(found, float(np.ravel(factor)[0]))


def _added(parts: list[_Weighted], weight: float) -> _Weighted:
    """The sum of sums: what is in several is in it once, with the sum of its weights."""
    result: _Weighted = {}
    for key, (tensor, own) in (item for part in parts for item in part.items()):
        earlier = result[key][1] if key in result else -np.inf
        result[key] = (tensor, float(np.logaddexp(earlier, own + weight)))
    return result


def _distributions(tensor: Tensor) -> set[int]:
    """Which softmaxes, or quotients like them, a tensor is made of."""
    found: set[int] = set()
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        kind, sources = backend.made_by(each)
        divided = kind == "RealDiv" and backend.constant_in(sources[1]) is None
        if kind == "Softmax" or divided:
            found.add(id(each))
        elif kind in PASSING or kind in ("Sum", "Mean"):
            waiting += sources[:1]
        elif kind in ("AddV2", "AddN", "Mul", "RealDiv"):
            waiting += sources
        else:
            waiting += backend.moved_by(each) or []
    return found


def _are_members(tensor: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether a sum over these axes adds distributions, not the classes of one."""
    kind, _ = backend.made_by(tensor)
    if kind == "Softmax":
        return len(tensor.shape) - 1 not in axes
    if kind == "Mul":
        return False
    return len(_distributions(tensor)) > 1
