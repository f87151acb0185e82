"""How much the values of a tensor changed: how many, by how much at most, and in all.

Owns the reading of a tensor's stored bytes as numbers. Values are compared by their bits, so that a
NaN that became another NaN counts.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_BLOCK = 1 << 20  # values converted at once
_PLAIN = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "bool"}
    | {"uint8", "uint16", "uint32", "uint64"}
)
_OF_ML_DTYPES = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


@dataclass(frozen=True)
class ValueChanges:
    """The difference of two tensors of one shape and dtype.

    Attributes:
        values: How many values the tensor has.
        changed: How many of them differ in their bits.
        max_abs: The largest absolute difference, of those that are finite.
        l2: The Euclidean norm of the differences, of those that are finite.
        relative: `l2` in proportion to the norm of the good values; None if that is zero.
        non_finite: How many of the changed values are, or were, NaN or infinite, or differ by more
            than a float can say.
    """

    values: int
    changed: int
    max_abs: float
    l2: float
    relative: float | None
    non_finite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        share = "" if self.relative is None else f", relative {self.relative:.3g}"
        strange = f", {self.non_finite} not finite" if self.non_finite else ""
        return (
            f"{self.changed} of {self.values} values, max abs {self.max_abs:.3g}, "
            f"L2 {self.l2:.3g}{share}{strange}"
        )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def value_changes(before: Any, after: Any, dtype: str) -> ValueChanges | None:
    """Compares the stored bytes of two tensors.

    Args:
        before: The good bytes, C order, little-endian, as many as `after`.
        after: The bytes to judge.
        dtype: What they are, e.g. "bfloat16". Packed 4-bit integers are stored, and counted, as
            the "int8" that holds two of them.

    Returns:
        None if they cannot be read as numbers, or are not equally many.
    """
    kind = _numpy_type(dtype)
    if kind is None or len(before) != len(after) or len(before) % kind.itemsize:
        return None
    one, other = np.frombuffer(before, kind), np.frombuffer(after, kind)
    totals = _Totals()
    for start in range(0, one.size, _BLOCK):
        totals.add(one[start : start + _BLOCK], other[start : start + _BLOCK])
    relative = totals.l2 / totals.norm if totals.norm else None
    return ValueChanges(
        one.size, totals.changed, totals.max_abs, totals.l2, relative, totals.non_finite
    )


def _numpy_type(name: str) -> Any:
    if name in _PLAIN:
        return np.dtype("uint8" if name == "bool" else name).newbyteorder("<")
    if name in _OF_ML_DTYPES:
        import ml_dtypes  # comes with Keras

        return np.dtype(getattr(ml_dtypes, name))
    return None


class _Totals:
    """Sums over the blocks of two tensors."""

    def __init__(self) -> None:
        self.changed = self.non_finite = 0
        self.max_abs = self.l2 = self.norm = 0.0

    def add(self, one: Any, other: Any) -> None:
        """Adds one block."""
        bits = f"u{one.dtype.itemsize}"
        places = np.flatnonzero(one.view(bits) != other.view(bits))
        with np.errstate(all="ignore"):
            self.norm = math.hypot(self.norm, _norm(_floats(one)))
            difference = _difference(one[places], other[places])
        finite = difference[np.isfinite(difference)]
        self.changed += places.size
        self.non_finite += places.size - finite.size
        self.max_abs = max(self.max_abs, float(finite.max(initial=0.0)))
        self.l2 = math.hypot(self.l2, _norm(finite))


def _floats(values: Any) -> Any:
    floats = values.astype(np.float64)
    return floats[np.isfinite(floats)]


def _difference(one: Any, other: Any) -> Any:
    """Absolute differences as float64; of integers without rounding or overflow before that."""
    if one.dtype.kind in "iu":
        unsigned = np.dtype(f"<u{one.dtype.itemsize}")
        larger = np.where(one > other, one, other).view(unsigned)
        smaller = np.where(one > other, other, one).view(unsigned)
        return (larger - smaller).astype(np.float64)
    return np.abs(one.astype(np.float64) - other.astype(np.float64))


def _norm(values: Any) -> float:
    """Without overflow of the squares."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * float(np.sqrt(np.sum((values / largest) ** 2))) if largest else 0.0
