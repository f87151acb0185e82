"""How two model files or folders differ: tensors, values, configuration, files.

Owns the comparison of two models nobody need vouch for. Neither is loaded; files that are not built
as Keras builds them are compared byte by byte. That two models do not differ here says that Keras
would load the same weights and configuration from both, not that either is genuine.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_modelsec._storage import files
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.contents.zip_checks import Section
from keras_modelsec.integrity.damage.inspecting import (
    FileStructure,
    member_digests,
    read_structure,
)
from keras_modelsec.integrity.damage.tamper_report import ValueChanges, value_changes
from keras_modelsec.integrity.signing.describing import list_model, range_digest

_MAX_TEXT_BYTES = 64 << 20
_MAX_DEPTH = 200
_MAX_VALUES_BYTES = 1 << 30  # of a tensor whose values are compared; a sparse file costs nothing
_MAX_CHANGES = 1000  # of one configuration
_ABSENT = "nothing"


@dataclass(frozen=True)
class TensorChange:
    """One tensor that differs.

    Attributes:
        path: Its name, with the file's name and a colon before it in a folder.
        kind: "changed", "only in A" or "only in B".
        one: Its type and shape in the first model; "" if it is not there.
        other: The same of the second.
        changes: By how much the values differ, if they can be compared.
    """

    path: str
    kind: str
    one: str
    other: str
    changes: ValueChanges | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        changes = self.changes.to_dict() if self.changes else None
        return {**asdict(self), "changes": changes}


@dataclass(frozen=True)
class TextChange:
    """One place where two configurations differ.

    Attributes:
        part: The file or part of the archive, e.g. "config.json".
        place: Where in it, e.g. "config.layers[1].config.units".
        one: The first one's value as JSON, or "nothing".
        other: The second one's.
    """

    part: str
    place: str
    one: str
    other: str


@dataclass(frozen=True)
class ModelDifference:
    """The differences of two models.

    Attributes:
        tensors: Those that differ.
        same_tensors: How many do not.
        texts: Differences of configurations.
        parts: Parts and files that differ and cannot be looked into.
        only_in_one: Files and parts that only the first model has.
        only_in_other: Those that only the second has.
        notes: What could not be compared, and why.
    """

    tensors: Sequence[TensorChange] = ()
    same_tensors: int = 0
    texts: Sequence[TextChange] = ()
    parts: Sequence[str] = ()
    only_in_one: Sequence[str] = ()
    only_in_other: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        lists = (self.tensors, self.texts, self.parts, self.only_in_one, self.only_in_other)
        return not any(lists)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tensors": [tensor.to_dict() for tensor in self.tensors]}


def compare_models(one: Path, other: Path) -> ModelDifference:
    """The differences of two files, or of two folders.

    Args:
        one: An absolute path.
        other: An absolute path of the same kind.

    Raises:
        ValueError: If one is a file and the other a folder.
        UnsafePathError: If a symbolic link or special file is met.
        OSError: If a file cannot be read.
    """
    if files.kind_of(one) != files.kind_of(other):
        raise ValueError(
            "Both models must be files, or both folders. Received: "
            f"a {files.kind_of(one)} and a {files.kind_of(other)}."
        )
    first, second = list_model(one), list_model(other)
    difference = _Difference()
    for name in sorted(first.keys() & second.keys()):
        difference.add_files(name if name != "." else "", first[name], second[name])
    difference.only_in_one += sorted(first.keys() - second.keys())
    difference.only_in_other += sorted(second.keys() - first.keys())
    return difference.result()


class _Difference:
    """Differences as they are found."""

    def __init__(self) -> None:
        self.only_in_one: list[str] = []
        self.only_in_other: list[str] = []
        self._tensors: list[TensorChange] = []
        self._same = 0
        self._texts: list[TextChange] = []
        self._parts: list[str] = []
        self._notes: list[str] = []

    def result(self) -> ModelDifference:
        return ModelDifference(
            self._tensors,
            self._same,
            self._texts,
            self._parts,
            self.only_in_one,
            self.only_in_other,
            self._notes,
        )

    def add_files(self, name: str, one: Path, other: Path) -> None:
        """Compares two files; `name` is "" for models of one file."""
        first, second = read_structure(one), read_structure(other)
        for path, structure in ((one, first), (other, second)):
            if structure.refusal:
                self._notes.append(f"{str(path)!r} was not looked into: {structure.refusal[:300]}")
        if first.tensors is None or second.tensors is None:
            if files.hash_file(one) != files.hash_file(other):
                self._add_opaque(name, one, other)
            return
        self._add_tensors(f"{name}:" if name else "", (one, first.tensors), (other, second.tensors))
        self._add_members((one, first), (other, second), f"{name}:" if name else "")
        for part in sorted(first.texts.keys() | second.texts.keys()):
            texts = (structure.texts.get(part) for structure in (first, second))
            self._add_texts(part, *texts)
        for path in (one, other):
            damaged = _damaged_member(path)
            if damaged is not None:
                self._parts.append(f"{name}:{damaged}" if name else damaged)

    def _add_opaque(self, name: str, one: Path, other: Path) -> None:
        is_text = name.endswith(".json")
        if is_text and max(p.stat().st_size for p in (one, other)) <= _MAX_TEXT_BYTES:
            self._add_texts(name, one.read_bytes(), other.read_bytes())
        else:
            self._parts.append(name or "the file")

    def _add_tensors(
        self,
        prefix: str,
        one: tuple[Path, Mapping[str, TensorRecord]],
        other: tuple[Path, Mapping[str, TensorRecord]],
    ) -> None:
        for path in sorted(one[1].keys() | other[1].keys()):
            first, second = one[1].get(path), other[1].get(path)
            if first is None or second is None:
                kind = "only in A" if first else "only in B"
                change = TensorChange(prefix + path, kind, _form(first), _form(second))
            else:
                found = _changed(prefix + path, (one[0], first), (other[0], second))
                if found is None:
                    self._same += 1
                    continue
                change = found
            self._tensors.append(change)

    def _add_members(
        self, one: tuple[Path, FileStructure], other: tuple[Path, FileStructure], prefix: str
    ) -> None:
        digests = [member_digests(path, structure.members) for path, structure in (one, other)]
        if not all(structure.members for _, structure in (one, other)):
            return  # weights alone, which have no configuration to compare
        self.only_in_one += [prefix + n for n in sorted(digests[0].keys() - digests[1].keys())]
        self.only_in_other += [prefix + n for n in sorted(digests[1].keys() - digests[0].keys())]
        for name in sorted(digests[0].keys() & digests[1].keys()):
            if digests[0][name] == digests[1][name]:
                continue
            if name.endswith(".json"):
                texts = (_member(path, structure, name) for path, structure in (one, other))
                self._add_texts(prefix + name, *texts)
            else:
                self._parts.append(prefix + name)

    def _add_texts(self, part: str, *texts: "bytes | str | None") -> None:
        try:
            values = [_Absent if text is None else json.loads(text) for text in texts]
            changes = list(_json_changes(part, "", values[0], values[1], 0))
        except (ValueError, RecursionError):
            self._parts.append(part)
            return
        self._texts += changes[:_MAX_CHANGES]
        if len(changes) > _MAX_CHANGES:
            self._notes.append(f"{part}: {len(changes) - _MAX_CHANGES} more differences")


def _damaged_member(path: Path) -> str | None:
    """The first member of an archive whose bytes do not fit their checksum.

    Damage where no value lies would not be seen otherwise.
    """
    if path.suffix != ".keras":
        return None
    with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return archive.testzip()


def _changed(
    path: str, one: tuple[Path, TensorRecord], other: tuple[Path, TensorRecord]
) -> TensorChange | None:
    forms = _form(one[1]), _form(other[1])
    if forms[0] != forms[1]:
        return TensorChange(path, "changed", *forms)
    if _digest(*one) == _digest(*other):
        return None
    before, after = _bytes_of(*one), _bytes_of(*other)
    comparable = before is not None and after is not None
    changes = value_changes(before, after, one[1].dtype) if comparable else None
    return TensorChange(path, "changed", *forms, changes)


def _digest(path: Path, record: TensorRecord) -> str | None:
    if record.offset is None:
        return record.digest
    with files.open_regular(path) as file:
        return range_digest(file, record.offset, record.nbytes)


def _bytes_of(path: Path, record: TensorRecord) -> bytes | None:
    if record.offset is None or record.nbytes > _MAX_VALUES_BYTES:
        return None
    return _read(path, record.offset, record.nbytes)


def _member(path: Path, structure: FileStructure, name: str) -> bytes:
    member = next(member for member in structure.members if member.name == name)
    with files.open_regular(path) as file:
        return Section(file, member).read(min(member.size, _MAX_TEXT_BYTES))


def _read(path: Path, offset: int, length: int) -> bytes:
    with files.open_regular(path) as file:
        return files.read_at(file, offset, length)


def _form(record: TensorRecord | None) -> str:
    return f"{record.dtype} {record.shape}" if record else ""


def _json_changes(part: str, place: str, one: Any, other: Any, depth: int) -> Iterator[TextChange]:
    """The places where two JSON values differ, as deep as both have the same kind of value."""
    if depth < _MAX_DEPTH and isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            inside = f"{place}.{key}" if place else key
            values = [value.get(key, _Absent) for value in (one, other)]
            yield from _json_changes(part, inside, values[0], values[1], depth + 1)
    elif depth < _MAX_DEPTH and isinstance(one, list) and isinstance(other, list):
        for index in range(max(len(one), len(other))):
            values = [v[index] if index < len(v) else _Absent for v in (one, other)]
            yield from _json_changes(part, f"{place}[{index}]", values[0], values[1], depth + 1)
    elif not _same(one, other):
        yield TextChange(part, place, _shown(one), _shown(other))


class _Absent:
    """Stands for what one of two has not."""


def _same(one: Any, other: Any) -> bool:
    if _Absent in (one, other):
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _shown(value: Any) -> str:
    return _ABSENT if value is _Absent else json.dumps(value)[:200]
