"""Compares one file with what was signed of it: which tensors, which chunks, and what else.

Owns the step from where the signed bytes are (leaf_alignment.py) to what that means. The file is
untrusted and never parsed, but for hints on what bytes outside of tensors belong to. Of a reference
only those bytes are believed whose digest is the signed one, whatever path or model they come from.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Cut, Progress, leaf_digests, tree_digest
from keras_modelsec.integrity.contents.tensor_layout import (
    TensorRecord,
    model_tensors,
    tensor_bytes,
)
from keras_modelsec.integrity.contents.zip_checks import Member
from keras_modelsec.integrity.damage.inspecting import (
    part_ranges,
    read_local_members,
    wrong_check_sums,
)
from keras_modelsec.integrity.damage.leaf_alignment import Alignment, align
from keras_modelsec.integrity.damage.tamper_report import (
    ChunkDamage,
    FileDamage,
    Shift,
    TensorDamage,
    ValueChanges,
    value_changes,
)
from keras_modelsec.integrity.signing.describing import compare
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE
from keras_modelsec.integrity.statements.model_statement import ModelStatement
from keras_modelsec.integrity.statements.places import Places


class GoodValues(Protocol):
    """Where the signed bytes of tensors come from."""

    def of(self, record: TensorRecord) -> "bytes | memoryview | None":
        """The signed bytes of a tensor, or None if they are not to be had."""

    def place(self, name: str) -> Path | None:
        """The good copy of a signed file, or None if there is none."""


class NoValues:
    """There is no reference."""

    def of(self, record: TensorRecord) -> None:
        """None."""

    def place(self, name: str) -> None:
        """None."""


class FileValues:
    """Reads tensors of a signed file or folder where the statement says they lie.

    Each tensor's bytes are compared with its signed digest when they are read.

    Args:
        path: An absolute path.
        statement: What was signed.
    """

    def __init__(self, path: Path, statement: ModelStatement):
        self._path = path
        self._statement = statement

    def check(self) -> None:
        """Hashes the whole copy.

        Raises:
            SignatureError: If it is not what was signed, to the byte.
            OSError: If it cannot be read.
        """
        found = compare(self._path, self._statement, skip=_own_names(self._path))
        if found.manifest.digests != self._statement.manifest.digests:
            raise SignatureError(
                "`reference` must be a good copy of what was signed, to the byte. Received: "
                f"{str(self._path)!r}, which is none. Pass another copy, or no reference."
            )

    def of(self, record: TensorRecord) -> bytes | None:
        """The signed bytes of a tensor."""
        if record.offset is None:
            return None
        try:
            with files.open_regular(self.place(record.file)) as file:
                data = files.read_at(file, record.offset, record.nbytes)
        except OSError:
            return None
        return data if tree_digest(leaf_digests(data)) == record.digest else None

    def place(self, name: str) -> Path:
        """The copy's file."""
        return self._path if name == SINGLE_FILE else self._path / name


class ModelValues:
    """The weights of a model in memory, as far as they have the signed digests.

    Args:
        model: A Keras model.
    """

    def __init__(self, model: Any):
        self._tensors = dict(model_tensors(model))

    def of(self, record: TensorRecord) -> memoryview | None:
        """The signed bytes of a tensor."""
        if record.path not in self._tensors:
            return None
        data = tensor_bytes(self._tensors[record.path])
        return data if tree_digest(leaf_digests(data)) == record.digest else None

    def place(self, name: str) -> None:
        """None: there is no file."""


def _own_names(path: Path) -> tuple[str, ...]:
    return Places.of(path).names_inside(path)


_SAVED_AGAIN = (
    "Most of it is other bytes: it may be another model, or have been saved again. `modelsec diff` "
    "compares two files by the names of tensors."
)
_COMPARED_BYTES = 16 << 20  # of one part, read at once
_Part = tuple[int, int, str]


@dataclass(frozen=True)
class Findings:
    """What is wrong with one file.

    Attributes:
        file: The damage in bytes.
        tensors: The tensors that were changed.
        undecided: The tensors of which it cannot be told.
    """

    file: FileDamage
    tensors: tuple[TensorDamage, ...]
    undecided: tuple[str, ...]


def examine(
    path: Path, name: str, statement: ModelStatement, good: GoodValues, progress: Progress = None
) -> Findings | None:
    """Compares the file at `path` with the signed file `name`.

    Returns:
        None if it is the signed one.

    Raises:
        SignatureError: If it becomes shorter meanwhile, or is no regular file.
        OSError: If it cannot be read.
    """
    with files.open_regular(path) as file:
        alignment = align(file, statement, name, progress)
        if alignment.is_clean:
            return None
        changed = [record for record, shift in alignment.tensors if shift is None]
        damage = _file_damage(file, path, name, statement, alignment, good, changed)
        tensors = tuple(_tensor_damage(file, record, alignment, good) for record in changed)
    undecided = [t.path for t in statement.tensors_of(name) if t.offset is None]
    return Findings(damage, tensors, tuple(undecided))


def _tensor_damage(
    file: BinaryIO, record: TensorRecord, alignment: Alignment, good: GoodValues
) -> TensorDamage:
    offset = record.offset or 0
    place = max(0, offset + alignment.shift_before(offset))
    left = max(0, min(record.nbytes, alignment.size - place))
    found = "" if left == record.nbytes else f"{left} of {record.nbytes} bytes"
    before = good.of(record)
    changes = None
    if before is not None and left == record.nbytes:
        changes = value_changes(before, files.read_at(file, place, left), record.dtype)
    return damaged(record, "changed", found=found, changes=changes)


def damaged(
    record: TensorRecord, kind: str, *, found: str = "", changes: ValueChanges | None = None
) -> TensorDamage:
    """The entry of a report for a signed tensor of a file."""
    return TensorDamage(
        path=record.path,
        file=record.file,
        kind=kind,
        shape=record.shape,
        dtype=record.dtype,
        offset=record.offset,
        nbytes=record.nbytes,
        found=found,
        changes=changes,
    )


def _file_damage(
    file: BinaryIO,
    path: Path,
    name: str,
    statement: ModelStatement,
    alignment: Alignment,
    good: GoodValues,
    changed: Sequence[TensorRecord],
) -> FileDamage:
    shifts = tuple(Shift(*move) for move in alignment.moves())
    parts, note = _parts(file, path, name, statement, good, moved=bool(shifts))
    chunks = tuple(_chunks(alignment, changed, parts))
    if len(chunks) > 1 and 2 * len(chunks) > len(alignment.cuts):
        note = " ".join([note, _SAVED_AGAIN]).strip()
    certain = _changed_parts(file, name, alignment, good, parts, chunks, moved=bool(shifts))
    suspected = {part for chunk in chunks for part in chunk.parts} - set(certain)
    if good.place(name) is not None and not shifts:
        suspected = set()  # they were compared
    return FileDamage(
        name=name,
        signed_size=statement.files[name].size,
        found_size=alignment.size,
        chunks=chunks,
        shifts=shifts,
        moved_tensors=tuple(record.path for record, shift in alignment.tensors if shift),
        changed_parts=certain,
        suspected_parts=tuple(sorted(suspected)),
        note=note,
    )


def _parts(
    file: BinaryIO,
    path: Path,
    name: str,
    statement: ModelStatement,
    good: GoodValues,
    *,
    moved: bool,
) -> tuple[list[_Part], str]:
    """What lies outside of tensors in the signed file, and what could not be told."""
    tensors = [
        (record.offset, record.nbytes)
        for record in statement.tensors_of(name)
        if record.offset is not None
    ]
    members: tuple[Member, ...] = ()
    note = ""
    place = good.place(name)
    if path.suffix == ".keras":
        if place is not None:
            with files.open_regular(place) as copy:
                members = read_local_members(copy)
        elif not moved:
            members = read_local_members(file)
        if not members and not (moved and place is None):
            note = "The archive's headers are damaged, so its members cannot be told apart."
    return part_ranges(path.name, statement.files[name].size, tensors, members), note


def _chunks(
    alignment: Alignment, changed: Sequence[TensorRecord], parts: Sequence[_Part]
) -> list[ChunkDamage]:
    lost = [alignment.cuts[index] for index in alignment.lost]
    tensors = _names_in(
        lost, [(t.offset or 0, (t.offset or 0) + t.nbytes, t.path) for t in changed]
    )
    others = _names_in(lost, parts)
    return [
        ChunkDamage(*cut, _unique(tensors[index]), _unique(others[index]))
        for index, cut in enumerate(lost)
    ]


def _names_in(lost: Sequence[Cut], ranges: Iterable[_Part]) -> list[list[str]]:
    """For each leaf, the names of the ranges that have bytes in it."""
    starts = [offset for offset, _ in lost]
    ends = [offset + length for offset, length in lost]
    names: list[list[str]] = [[] for _ in lost]
    for start, end, name in ranges:
        for index in range(bisect.bisect_right(ends, start), bisect.bisect_left(starts, end)):
            names[index].append(name)
    return names


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _changed_parts(
    file: BinaryIO,
    name: str,
    alignment: Alignment,
    good: GoodValues,
    parts: Sequence[_Part],
    chunks: Sequence[ChunkDamage],
    *,
    moved: bool,
) -> tuple[str, ...]:
    """The parts that were changed for certain."""
    if moved:
        return ()
    place = good.place(name)
    if place is not None:
        with files.open_regular(place) as copy:
            touched = {part for chunk in chunks for part in chunk.parts}
            return _unique(
                part
                for start, end, part in parts
                if part in touched and not _same(file, copy, start, end)
            )
    only = {chunk.parts[0] for chunk in chunks if len(chunk.parts) == 1 and not chunk.tensors}
    named = {part for chunk in chunks for part in chunk.parts}
    wrong = set(wrong_check_sums(file, read_local_members(file))) if named else set()
    return tuple(sorted(only | (wrong & named)))


def _same(one: BinaryIO, other: BinaryIO, start: int, end: int) -> bool:
    for offset in range(start, end, _COMPARED_BYTES):
        length = min(_COMPARED_BYTES, end - offset)
        if files.read_at(one, offset, length) != files.read_at(other, offset, length):
            return False
    return True
