"""What `locate_tampering` found, as objects, as text, and as JSON.

Owns the words of the report, and how much a tensor's values changed: its stored bytes are read as
numbers and compared by their bits, so that a NaN that became another NaN counts. How damage is
found is in locating.py.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_modelsec._core.printable import printable

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


_LISTED = 20
_LISTED_CHUNKS = 5


@dataclass(frozen=True)
class TensorDamage:
    """One tensor that is not as it was signed.

    Attributes:
        path: What it is called in the file, e.g. "layers/dense/vars/0".
        file: The file it is in, "." for a single one; "" for a model in memory.
        kind: "changed": other bytes, in part or in all. "missing": its file, or in memory itself,
            is not there any more. "added": in memory and not signed.
        shape: As signed; as found if it was added.
        dtype: As signed; as found if it was added.
        offset: Where its bytes begin in the signed file; None in memory.
        nbytes: How many it has.
        found: Shape and type found, if they are other ones, e.g. "float32 (8, 3)"; else "".
        changes: How much its values changed; None without a reference, or if they cannot be
            compared.
    """

    path: str
    file: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None = None
    nbytes: int = 0
    found: str = ""
    changes: ValueChanges | None = None

    def __str__(self) -> str:
        place = f"{self.path!r} in {self.file!r}" if self.file not in ("", ".") else repr(self.path)
        other = f", found as {printable(self.found)}" if self.found else ""
        how = f": {self.changes}" if self.changes else ""
        return f"{self.kind} {place} ({shown_type(self.dtype, self.shape)}{other}){how}"


@dataclass(frozen=True)
class ChunkDamage:
    """One leaf of a signed file whose bytes are not the signed ones, or are not there.

    Attributes:
        offset: Where it begins in the signed file, in bytes.
        length: Its length in bytes.
        tensors: The changed tensors that have bytes in it.
        parts: What else has bytes in it, outside of tensors, and may have been changed: members of
            an archive, "HDF5 structure", "ZIP headers".
    """

    offset: int
    length: int
    tensors: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shift:
    """Bytes that were put in or taken out; all behind them moved and is otherwise as signed.

    Attributes:
        after: They begin at this byte of the signed file, or behind it,
        before: and at this one at the latest.
        count: How many more there are; below zero if there are fewer.
    """

    after: int
    before: int
    count: int

    def __str__(self) -> str:
        verb = "inserted" if self.count > 0 else "removed"
        noun = "byte" if abs(self.count) == 1 else "bytes"
        return f"{abs(self.count)} {noun} {verb} between {self.after} and {self.before}"


@dataclass(frozen=True)
class FileDamage:
    """One file that is not as it was signed.

    Attributes:
        name: Its name in the signature; "." for a single file.
        signed_size: In bytes; None if only an OpenSSF signature vouches for it.
        found_size: In bytes.
        chunks: Where it was changed, by the places of the signed file.
        shifts: Where bytes were inserted or removed.
        moved_tensors: The tensors whose bytes are intact and lie elsewhere for that reason. A
            loader that goes by their old places reads other bytes.
        changed_parts: Parts outside of tensors that were changed for certain.
        suspected_parts: Parts that share changed chunks with changed tensors or with each other,
            so that it cannot be told which of them were changed.
        note: What could not be told, or "".
    """

    name: str
    signed_size: int | None
    found_size: int
    chunks: tuple[ChunkDamage, ...] = ()
    shifts: tuple[Shift, ...] = ()
    moved_tensors: tuple[str, ...] = ()
    changed_parts: tuple[str, ...] = ()
    suspected_parts: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return "\n  ".join([f"changed file {self.name!r}{self._size()}", *self._details()])

    def _size(self) -> str:
        signed, found = self.signed_size, self.found_size
        if signed is None or signed == found:
            return f" ({found} bytes)"
        return f" ({found} bytes, signed with {signed})"

    def _details(self) -> Iterator[str]:
        ranges = _merged(self.chunks)
        if ranges:
            shown = ", ".join(f"{start}-{stop}" for start, stop in ranges[:_LISTED_CHUNKS])
            yield f"{_count(self.chunks, 'chunk')} at bytes {shown}{_more(ranges, _LISTED_CHUNKS)}"
        for shift in self.shifts[:_LISTED_CHUNKS]:
            yield str(shift)
        if self.moved_tensors:
            yield f"moved by that and otherwise intact: {_count(self.moved_tensors, 'tensor')}"
        if self.changed_parts:
            yield f"changed outside of tensors: {_names(self.changed_parts)}"
        if self.suspected_parts:
            yield f"perhaps changed too: {_names(self.suspected_parts)}"
        if self.note:
            yield f"note: {printable(self.note)}"


@dataclass(frozen=True)
class TamperReport:
    """Where a model differs from what was signed; `print` shows it, `to_dict` gives JSON.

    It has no truth value: ask `is_clean`.

    Attributes:
        subject: The path, or the name of the model in memory.
        model: The name under which the model was signed.
        version: The signed version; None without a statement.
        tensors: The damaged tensors.
        files: The changed files; none for a model in memory.
        added: Names of files that are not signed.
        missing: Names of signed files that are not there.
        undecided: Tensors that have no signed place, since they are compressed or in pieces, in
            changed files: whether they were changed cannot be told.
        names_tensors: Whether there is a statement, and so a signed list of tensors. If not, only
            files can be named.
        notes: What the report could not tell.
    """

    subject: str
    model: str
    version: int | None = None
    tensors: Sequence[TensorDamage] = ()
    files: Sequence[FileDamage] = ()
    added: Sequence[str] = ()
    missing: Sequence[str] = ()
    undecided: Sequence[str] = ()
    names_tensors: bool = True
    notes: Sequence[str] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was changed, added or removed."""
        return not (self.tensors or self.files or self.added or self.missing)

    def __bool__(self) -> bool:
        raise TypeError(
            "A TamperReport must be asked by name: report.is_clean. Received: a test of its truth, "
            "which could be read as either answer."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        result: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        result["tensors"] = [tensor_entry(tensor) for tensor in self.tensors]
        result["files"] = [dataclasses.asdict(file) for file in self.files]
        result["is_clean"] = self.is_clean
        return plain(result)

    def __str__(self) -> str:
        lines = [f"{self.subject!r}: {self._verdict()}"]
        lines += [str(tensor) for tensor in self.tensors[:_LISTED]]
        if more := _more(self.tensors, _LISTED):
            lines.append(f"{more.strip()} tensors")
        if self.undecided:
            lines.append(f"cannot be told of {_names(self.undecided)}")
        lines += [str(file) for file in self.files[:_LISTED]]
        lines += [f"added file {name!r}" for name in self.added[:_LISTED]]
        lines += [f"missing file {name!r}" for name in self.missing[:_LISTED]]
        hidden = [names for names in (self.files, self.added, self.missing) if len(names) > _LISTED]
        if hidden:
            lines.append(f"and {sum(len(names) - _LISTED for names in hidden)} more files")
        return "\n".join([*lines, *(f"note: {printable(note)}" for note in self.notes)])

    def _verdict(self) -> str:
        if self.is_clean:
            return "nothing changed since it was signed."
        return (
            f"not as it was signed. {_count(self.tensors, 'tensor')} damaged; "
            f"{_count(self.files, 'file')} changed, {len(self.added)} added, "
            f"{len(self.missing)} missing."
        )


def shown_type(dtype: str, shape: Sequence[int]) -> str:
    """A tensor's type and shape in one word: "float32[3, 4]"."""
    return f"{printable(dtype)}[{', '.join(map(str, shape))}]"


def _merged(chunks: Sequence[ChunkDamage]) -> list[tuple[int, int]]:
    """Neighbouring chunks as one range each: start, end."""
    ranges: list[tuple[int, int]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
        if ranges and ranges[-1][1] == chunk.offset:
            ranges[-1] = (ranges[-1][0], chunk.offset + chunk.length)
        else:
            ranges.append((chunk.offset, chunk.offset + chunk.length))
    return ranges


def _more(items: Sequence[Any], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_LISTED]) + _more(names, _LISTED)


def tensor_entry(tensor: TensorDamage) -> dict[str, Any]:
    """A tensor's fields for JSON."""
    changes = tensor.changes.to_dict() if tensor.changes else None
    return {**dataclasses.asdict(tensor), "changes": changes}


def plain(value: Any) -> Any:
    """`value` with lists for tuples and dicts for mappings, for JSON."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
