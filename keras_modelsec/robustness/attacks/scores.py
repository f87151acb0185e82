"""Back from a model's output to the scores behind it, which do not saturate.

A model predicts the class of its largest output. Whatever rises with each class's score alike
(softmax, sigmoid, tanh, scaling, clipping, rounding) leaves that class what it is and can hide the
gradient; here it is followed back through the graph that is being recorded. Where probabilities of
several origins meet (a mean of softmaxes, a concatenation), their logarithm is computed anew from
the logits; of a mean of saturated ones, something near the mean of their logarithms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks.logarithms import (
    DEEPEST,
    PASSING,
    Logarithm,
    is_float,
)

Tensor = Any

# Bounded, or flat in places: what came before cannot be told from them everywhere.
_SQUASHING = {"Softmax", "Sigmoid", "Tanh", "Softsign", "Atan", "Erf", "Round", "Rint", "Floor"}
_SQUASHING |= {"Ceil", "Relu6", "ClipByValue"}
_RISING = _SQUASHING | {"LogSoftmax", "Softplus", "Elu", "Selu", "Relu", "Exp", "Expm1", "Log"}
_RISING |= {"Log1p", "Sqrt"}
# Bounded if all that goes in is.
_COMBINING = {"AddV2", "Sub", "Mul", "RealDiv", "AddN", "Sum", "Mean", "Prod", "Max", "Min", "Neg"}
_COMBINING |= {"Maximum", "Minimum", "Square", "Sqrt", "Pow", "Exp", "SelectV2"}
_FIXED = {"Const", "ReadVariableOp", "Shape", "Size", "Rank"}


@dataclass(frozen=True)
class Scores:
    """What an attack follows in place of an output.

    Attributes:
        values: In the shape of the output, float32, with its largest entry where the output has
            its own; None if nothing better than the output was found.
        hidden: Whether the graph shows that the output saturates and the scores behind it were not
            found, or not exactly.
    """

    values: Tensor | None
    hidden: bool


def find_scores(output: Tensor) -> Scores:
    """The scores behind an output whose last axis counts the classes, or that is one unit."""
    source = internals.logits_of(output)
    stripped = _strip(output if source is None else source)
    logarithms = Logarithm()
    logarithm = logarithms.of(stripped)
    if logarithm is not None:
        hidden = logarithms.uses_sigmoid and not _is_sigmoid_and_rest(stripped)
        return Scores(_like(logarithm, output), hidden)
    if saturates(stripped):
        return Scores(None, True)
    if stripped is output:
        return Scores(None, False)
    return Scores(_like(stripped, output), False)


def _is_sigmoid_and_rest(tensor: Tensor) -> bool:
    """Whether two classes are s and 1 - s of one sigmoid, whose logarithms differ by its logit."""
    pair = [backend.made_by(source) for source in backend.moved_by(tensor) or []]
    if len(pair) != 2 or tensor.shape[-1] != 2 or {kind for kind, _ in pair} != {"Sigmoid", "Sub"}:
        return False
    logit = next(sources[0] for kind, sources in pair if kind == "Sigmoid")
    one, taken = next(sources for kind, sources in pair if kind == "Sub")
    of_rest = backend.made_by(taken)[1]
    constant = backend.constant_in(one)
    return constant is not None and bool(of_rest) and of_rest[0] is logit and (constant == 1).all()


def _like(values: Tensor, output: Tensor) -> Tensor:
    return ops.reshape(ops.cast(values, "float32"), ops.shape(output))


def _strip(tensor: Tensor) -> Tensor:
    """Undoes what rises with every class's score alike."""
    for _ in range(DEEPEST):
        before = _before(tensor)
        if before is None:
            return tensor
        tensor = before
    return tensor


def _before(tensor: Tensor) -> Tensor | None:
    kind, sources = backend.made_by(tensor)
    if kind in PASSING or kind in _RISING:
        source = sources[0]
        return source if is_float(source) and _has_axis_of(tensor, source) else None
    if kind not in ("AddV2", "Sub", "Mul", "RealDiv", "Maximum", "Minimum"):
        return None
    if _keeps_order(kind, tensor, sources[0], sources[1]):
        return sources[0]
    if kind not in ("Sub", "RealDiv") and _keeps_order(kind, tensor, sources[1], sources[0]):
        return sources[1]
    return None


def _keeps_order(kind: str, tensor: Tensor, source: Tensor, other: Tensor) -> bool:
    """Whether `kind` with `other` does the same rising thing to each class of `source`."""
    if not _has_axis_of(tensor, source) or len(source.shape) != len(tensor.shape):
        return False
    constant = backend.constant_in(other)
    alike = constant is not None and (np.asarray(constant) == np.ravel(constant)[:1]).all()
    if constant is None and len(source.shape) > 1 and source.shape[-1] != 1:
        # One number for all classes of an example, such as their maximum.
        alike = len(other.shape) == len(source.shape) and other.shape[-1] == 1
    if kind in ("Mul", "RealDiv"):
        return alike and _is_positive(other)
    return alike


def _is_positive(tensor: Tensor, known: dict[int, bool] | None = None, depth: int = 0) -> bool:
    known = {} if known is None else known
    if id(tensor) not in known:
        known[id(tensor)] = _find_whether_positive(tensor, known, depth)
    return known[id(tensor)]


def _find_whether_positive(tensor: Tensor, known: dict[int, bool], depth: int) -> bool:
    constant = backend.constant_in(tensor)
    if constant is not None:
        return bool((np.asarray(constant) > 0).all())
    kind, sources = backend.made_by(tensor)
    if kind in ("Exp", "Softmax", "Sigmoid", "Softplus"):
        return True
    if depth > DEEPEST:
        return False
    if kind in ("Sum", "Mean", "Max", "Min") or kind in PASSING:
        return _is_positive(sources[0], known, depth + 1)
    if kind == "Maximum":
        return any(_is_positive(source, known, depth + 1) for source in sources)
    return kind in ("AddV2", "Mul", "RealDiv") and all(
        _is_positive(source, known, depth + 1) for source in sources
    )


def _has_axis_of(tensor: Tensor, source: Tensor) -> bool:
    """Whether the last axis of `source` still counts the classes."""
    if tensor.shape.rank is None or source.shape.rank is None:
        return False
    ends = [shape[-1] if len(shape) > 1 else 1 for shape in (tensor.shape, source.shape)]
    return ends[0] is not None and ends[0] == ends[1]


def saturates(tensor: Tensor) -> bool:
    """Whether all that the tensor is made of went through something that saturates or rounds."""
    return _saturates(tensor, {}, 0) is True


def _saturates(tensor: Tensor, known: dict[int, bool | None], depth: int) -> bool | None:
    """As `saturates`; None for what does not depend on the data: weights, constants, shapes."""
    if id(tensor) not in known:
        known[id(tensor)] = _find_whether_saturates(tensor, known, depth)
    return known[id(tensor)]


def _find_whether_saturates(
    tensor: Tensor, known: dict[int, bool | None], depth: int
) -> bool | None:
    kind, sources = backend.made_by(tensor)
    if kind in _FIXED:
        return None
    if kind in _SQUASHING:
        return True
    if depth > DEEPEST:  # nobody looked further, so nobody says that it does not
        return True
    moved = backend.moved_by(tensor)
    if moved is None and (kind in _RISING or kind in PASSING):
        moved = sources[:1]
    if moved is None and kind in _COMBINING:
        moved = sources[1:] if kind == "SelectV2" else sources
    if moved is None:
        return False
    states = [_saturates(source, known, depth + 1) for source in moved]
    of_data = [state for state in states if state is not None]
    return all(of_data) if of_data else None
