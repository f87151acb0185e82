"""From a path to what can be said of it: to be signed, or to be compared with what was signed.

Owns the reading of whole models, files and folders alike. For signing, each file's own digest and
its leaves' are made of the same bytes, read once. For verifying with a statement, only the leaves
are hashed, on all cores; without one, whole files.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.signatures import hashing
from keras_modelsec.integrity.signatures.fingerprints import fingerprint
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.manifest import SINGLE_FILE, Manifest, check_file_name
from keras_modelsec.integrity.signatures.model_statement import FileRecord, ModelStatement
from keras_modelsec.integrity.signatures.tensor_damage import changed_tensors, range_digest
from keras_modelsec.integrity.signatures.tensor_layout import TensorRecord, read_tensor_layout

_SMALL_BYTES = 8 << 20  # smaller files are hashed side by side, larger ones in pieces
_MAX_WORKERS = 8


@dataclass(frozen=True)
class Description:
    """What is signed of a model's files."""

    files: Mapping[str, FileRecord]
    tensors: tuple[TensorRecord, ...]


@dataclass(frozen=True)
class Comparison:
    """What was found where a signed model should be.

    Attributes:
        manifest: Names and whole-file digests of what is there.
        bad_leaves: By file name, the positions (in `ModelStatement.cuts`) of leaves that are not
            the signed ones; only for files of the signed length.
        bad_tensors: By file name, the paths of the tensors that these leaves changed.
    """

    manifest: Manifest
    bad_leaves: Mapping[str, tuple[int, ...]]
    bad_tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def tensor_names(self) -> tuple[str, ...]:
        """The changed tensors for a message: with their file's name if there are several files."""
        return tuple(
            path if name == SINGLE_FILE else f"{name}:{path}"
            for name in sorted(self.bad_tensors)
            for path in self.bad_tensors[name]
        )


def list_model(path: Path, skip: Iterable[str] = ()) -> dict[str, Path]:
    """The files of a model by their names in a signature: "." for a single file.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link, special file or impossible name is met.
    """
    if files.kind_of(path) == "file":
        return {SINGLE_FILE: path}
    skipped = frozenset(skip)
    names = sorted(check_file_name(n) for n in files.list_folder(path) if n not in skipped)
    return {name: path / name for name in names}


def describe_for_signing(
    path: Path,
    *,
    skip: Iterable[str] = (),
    known: ModelStatement | None = None,
    progress: Progress = None,
) -> Description:
    """Hashes a model to be signed.

    Args:
        path: An absolute path.
        skip: Names inside the folder to leave out: the signature files themselves.
        known: An earlier, verified statement on the model whose digests are taken over for files
            that cannot have changed since (fingerprints.py); None to hash everything.
        progress: Called with bytes done and bytes in all.

    Raises:
        SignatureError: If a file changes while it is read.
    """
    places = list_model(path, skip)
    report = _Total(places, progress)
    described = [_describe_file(p, n, known, report.part()) for n, p in places.items()]
    return Description(
        {record[0]: record[1] for record in described},
        tuple(tensor for record in described for tensor in record[2]),
    )


def _describe_file(
    path: Path, name: str, known: ModelStatement | None, progress: Progress
) -> tuple[str, FileRecord, tuple[TensorRecord, ...]]:
    with files.open_regular(path) as file:
        mark = fingerprint(file)
        if known and mark and name in known.files and known.files[name].fingerprint == mark:
            kept = tuple(tensor for tensor in known.tensors if tensor.file == name)
            return name, known.files[name], kept
        before = os.fstat(file.fileno())
        layout = read_tensor_layout(path, file)
        ranges = [(t.offset, t.nbytes) for t in layout if t.offset is not None]
        cuts = hashing.leaf_cuts(before.st_size, ranges)
        whole, leaves = hashing.hash_whole_and_leaves(file, cuts, progress=progress)
        tensors = tuple(_digest_tensors(layout, name, file, cuts, leaves))
        after = os.fstat(file.fileno())
    if _state(before) != _state(after) or _is_replaced(path, before):
        raise _changed(path)
    return name, FileRecord(before.st_size, whole, b"".join(leaves), mark), tensors


def _state(found: os.stat_result) -> tuple[int, int, int]:
    """What a write changes: ctime too, for anybody who may write can set mtime back."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns if os.name == "posix" else 0


def _is_replaced(path: Path, opened: os.stat_result) -> bool:
    found = os.stat(path)
    return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino)


def _changed(path: Path) -> SignatureError:
    return SignatureError(
        f"A file must not change while it is hashed. Received: {str(path)!r}, which was "
        "written to meanwhile. Try again when its writer has finished."
    )


def _digest_tensors(
    layout: Iterable[TensorRecord],
    name: str,
    file: BinaryIO,
    cuts: list[hashing.Cut],
    leaves: list[bytes],
) -> Iterator[TensorRecord]:
    """The tensors with their digests: from the file's leaves where these are theirs too."""
    at = {offset: index for index, (offset, _) in enumerate(cuts)}
    for tensor in layout:
        digest = tensor.digest
        if tensor.offset is not None:
            own = hashing.leaf_cuts(tensor.nbytes)
            first = at.get(tensor.offset, len(cuts))
            shared = [(o - tensor.offset, n) for o, n in cuts[first : first + len(own)]]
            if own and shared == own:
                digest = hashing.tree_digest(leaves[first : first + len(own)])
            else:
                digest = range_digest(file, tensor.offset, tensor.nbytes)
        yield replace(tensor, digest=digest, file=name)


def compare(
    path: Path,
    statement: ModelStatement | None,
    *,
    skip: Iterable[str] = (),
    copy_to: Path | None = None,
    progress: Progress = None,
) -> Comparison:
    """Hashes a model that is to be compared with what was signed.

    Args:
        path: An absolute path of a file or folder.
        statement: If given, files are compared with its leaves, and those that agree have its
            whole-file digests.
        skip: Names inside the folder to leave out: the signature files themselves.
        copy_to: If given, a path where a copy of exactly the bytes that were hashed is made: a
            file for a file, a folder (made here) for a folder. Nothing may be there.
        progress: Called with bytes done and bytes in all.
    """
    places = list_model(path, skip)
    report = _Total(places, progress)
    bad: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, tuple[str, ...]] = {}

    def one(name: str, part: Progress) -> str:
        copy = _copy_place(copy_to, name)
        digest, leaves = _compare_file(places[name], name, statement, copy, part)
        if leaves and statement is not None:
            bad[name] = leaves
            with files.open_regular(copy or places[name]) as file:
                tensors[name] = changed_tensors(statement, name, leaves, file)
        return digest

    digests = _in_parallel(one, places, report)
    return Comparison(Manifest(path.name, digests), bad, tensors)


def _in_parallel(
    one: Callable[[str, Progress], str], places: Mapping[str, Path], report: "_Total"
) -> dict[str, str]:
    """`one(name)` for every file: small ones side by side, large ones alone with all cores."""
    parts = {name: report.part() for name in places}
    small = [name for name in places if report.sizes[name] <= _SMALL_BYTES]
    large = [name for name in places if report.sizes[name] > _SMALL_BYTES]
    digests = {name: one(name, parts[name]) for name in large}
    with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: one(name, None), small)
        for name, digest in zip(small, found, strict=True):
            digests[name] = digest
            parts[name](report.sizes[name], report.sizes[name])
    return {name: digests[name] for name in places}


def _copy_place(copy_to: Path | None, name: str) -> Path | None:
    if copy_to is None or name == SINGLE_FILE:
        return copy_to
    place = copy_to / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _compare_file(
    path: Path,
    name: str,
    statement: ModelStatement | None,
    copy: Path | None,
    progress: Progress,
) -> tuple[str, tuple[int, ...]]:
    record = statement.files.get(name) if statement else None
    with files.open_regular(path) as file:
        if record is None or statement is None or os.fstat(file.fileno()).st_size != record.size:
            return _hash_whole(path, copy), ()
        cuts = statement.cuts(name)
        found = _hash_with_copy(file, cuts, copy, progress)
    signed = record.leaf_list()
    bad = tuple(i for i, pair in enumerate(zip(found, signed, strict=True)) if pair[0] != pair[1])
    if not bad:
        return record.sha256, ()
    digest = files.hash_file(copy or path)  # for the message
    if digest == record.sha256:
        raise _changed(path)
    return digest, bad


def _hash_with_copy(
    file: BinaryIO, cuts: list[hashing.Cut], copy: Path | None, progress: Progress
) -> list[bytes]:
    if copy is None:
        return hashing.hash_leaves(file, cuts, progress=progress)
    with open(copy, "xb") as target:
        return hashing.hash_leaves(file, cuts, copy_to=target, progress=progress)


def _hash_whole(path: Path, copy: Path | None) -> str:
    if copy is None:
        return files.hash_file(path)
    with open(copy, "xb") as target:
        return files.hash_file(path, copy_to=target)


class _Total:
    """One progress over several files, each of which reports its own."""

    def __init__(self, places: Mapping[str, Path], progress: Progress):
        self.sizes = {name: os.lstat(path).st_size for name, path in places.items()}
        self._progress = progress
        self._all = sum(self.sizes.values())
        self._done: list[int] = []

    def part(self) -> Callable[[int, int], None]:
        """The callback of the next file."""
        index = len(self._done)
        self._done.append(0)

        def report(done: int, _: int) -> None:
            self._done[index] = done
            if self._progress:
                self._progress(sum(self._done), self._all)

        return report
