"""From a path to what can be said of it: to be signed, or to be compared with what was signed.

Owns the reading of whole models, files and folders alike. For signing, each file's own digest and
its leaves' are made of the same bytes, read once. For verifying with a statement, only the leaves
are hashed, on all cores; without one, whole files.

Owns too the rule by which changed leaves name tensors: no innocent one is named. A large tensor has
leaves of its own; small ones share a leaf with their neighbours and with what lies between, so that
their own signed digests decide. Offsets are the signed ones: nothing of the damaged file is parsed.
"""

import bisect
import contextlib
import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from keras_modelsec._core.gathered_file import GatheredFile
from keras_modelsec._storage import files
from keras_modelsec._storage.seekable_readers import MemoryFile
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents import hashing
from keras_modelsec.integrity.contents.hashing import Cut, Progress
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord, read_tensor_layout
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest, check_file_name
from keras_modelsec.integrity.statements.model_statement import FileRecord, ModelStatement

# Where a copy of the bytes that are hashed goes: a place on a disk, or memory of the signed length.
Copy: TypeAlias = "Path | memoryview | None"
_SMALL_BYTES = 8 << 20  # smaller files are hashed side by side, larger ones in pieces
_MAX_WORKERS = 8
MOST_FILES = 500_000  # entries of a folder; more than the largest statement can name


@dataclass(frozen=True)
class Description:
    """What is signed of a model's files."""

    files: Mapping[str, FileRecord]
    tensors: tuple[TensorRecord, ...]


@dataclass(frozen=True)
class Comparison:
    """What was found where a signed model should be.

    Attributes:
        manifest: Names and whole-file digests of what is there; for a file that was not read, since
            its name or length is not a signed one, words that are no digest.
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


def list_model(path: Path, skip: Container[str] = ()) -> dict[str, Path]:
    """The files of a model by their names in a signature: "." for a single file.

    Args:
        path: An absolute path.
        skip: Names inside a folder to leave out, whatever is there.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link, special file or impossible name is met.
    """
    if files.kind_of(path) == "file":
        return {SINGLE_FILE: path}
    names = sorted(check_file_name(n) for n in files.list_folder(path, skip, MOST_FILES))
    return {name: path / name for name in names}


def describe_for_signing(
    path: Path,
    *,
    skip: Container[str] = (),
    progress: Progress = None,
) -> Description:
    """Hashes a model to be signed.

    Args:
        path: An absolute path.
        skip: Names inside the folder to leave out: the signature files themselves.
        progress: Called with bytes done and bytes in all.

    Raises:
        SignatureError: If a file changes while it is read.
    """
    places = list_model(path, skip)
    report = _Total(places, progress)
    described = [_describe_file(p, n, report.part()) for n, p in places.items()]
    return Description(
        {record[0]: record[1] for record in described},
        tuple(tensor for record in described for tensor in record[2]),
    )


def _describe_file(
    path: Path, name: str, progress: Progress
) -> tuple[str, FileRecord, tuple[TensorRecord, ...]]:
    with files.open_regular(path) as file:
        before = os.fstat(file.fileno())
        record, tensors = _describe_bytes(file, before.st_size, path, name, progress=progress)
        after = os.fstat(file.fileno())
    if _state(before) != _state(after) or _is_replaced(path, before):
        raise _changed(path)
    return name, record, tensors


def _describe_bytes(
    file: BinaryIO, size: int, path: Path, name: str, **options: Any
) -> tuple[FileRecord, tuple[TensorRecord, ...]]:
    layout = read_tensor_layout(path, file)
    cuts = hashing.leaf_cuts(size, [(t.offset, t.nbytes) for t in layout if t.offset is not None])
    whole, leaves = hashing.hash_whole_and_leaves(file, cuts, **options)
    tensors = tuple(_digest_tensors(layout, name, file, cuts, leaves))
    return FileRecord(size, whole, b"".join(leaves)), tensors


def describe_while_writing(image: GatheredFile, path: Path) -> Description:
    """Writes a model that is in memory to a new file at `path`; what it hashes is what it writes.

    Raises:
        OSError: If it cannot be written.
    """
    with open(path, "xb", buffering=0) as file:
        record, tensors = _describe_bytes(image, image.size, path, SINGLE_FILE, copy_to=file)
    return Description({SINGLE_FILE: record}, tensors)


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
    skip: Container[str] = (),
    copy_to: Copy = None,
    progress: Progress = None,
) -> Comparison:
    """Hashes a model that is to be compared with what was signed.

    Args:
        path: An absolute path of a file or folder.
        statement: If given, files are compared with its leaves, and those that agree have its
            whole-file digests. Files that it does not name, and files of another length, can
            neither agree nor be good: they are not read, whatever they hold and however long.
        skip: Names inside the folder to leave out: the signature files themselves.
        copy_to: If given, a path where a copy of exactly the bytes that were hashed is made: a
            file for a file, a folder (made here) for a folder. Nothing may be there. Or, for a
            single file with a statement, memory of the signed length, into which it is read.
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
            with _opened(copy, places[name]) as file:
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


def _copy_place(copy_to: Copy, name: str) -> Copy:
    if copy_to is None or name == SINGLE_FILE:
        return copy_to
    if isinstance(copy_to, memoryview):
        return None  # a folder where the signed file was: read, and refused
    place = copy_to / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _compare_file(
    path: Path,
    name: str,
    statement: ModelStatement | None,
    copy: Copy,
    progress: Progress,
) -> tuple[str, tuple[int, ...]]:
    if statement is None:
        return _hash_whole(path, copy), ()
    record = statement.files.get(name)
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if record is None or size != record.size:
            return unread(size, record.size if record else None), ()
        cuts = statement.cuts(name)
        found = _hash_with_copy(file, cuts, copy, progress)
    signed = record.leaf_list()
    bad = tuple(i for i, pair in enumerate(zip(found, signed, strict=True)) if pair[0] != pair[1])
    if not bad:
        return record.sha256, ()
    if isinstance(copy, memoryview):  # for the message
        digest = hashlib.sha256(copy).hexdigest()
    else:
        digest = files.hash_file(copy or path)
    if digest == record.sha256:
        raise _changed(path)
    return digest, bad


def unread(size: int, signed: int | None) -> str:
    """What stands for the digest of a file that need not be read to see that it is another."""
    expected = "none of that name signed" if signed is None else f"not the {signed} signed"
    return f"unread: {size} bytes, {expected}"


def _opened(copy: Copy, path: Path) -> Any:
    """What was hashed, to be looked at again: the copy, if there is one."""
    return MemoryFile(copy) if isinstance(copy, memoryview) else files.open_regular(copy or path)


def _hash_with_copy(
    file: BinaryIO, cuts: list[hashing.Cut], copy: Copy, progress: Progress
) -> list[bytes]:
    with open(copy, "xb") if isinstance(copy, Path) else contextlib.nullcontext(copy) as target:
        return hashing.hash_leaves(file, cuts, copy_to=target, progress=progress)


def _hash_whole(path: Path, copy: Copy) -> str:
    if isinstance(copy, memoryview):
        raise TypeError("Memory takes a copy only of a file with a statement. Received: none.")
    with open(copy, "xb") if copy else contextlib.nullcontext() as target:
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


@dataclass(frozen=True)
class PlacedTensor:
    """A signed tensor that lies in one piece, and the leaves it touches.

    Attributes:
        record: What was signed of it.
        offset: Where its bytes begin.
        leaves: The positions, in `ModelStatement.cuts`, of the leaves that hold bytes of it.
        has_own_leaves: Whether these leaves hold nothing else.
    """

    record: TensorRecord
    offset: int
    leaves: range
    has_own_leaves: bool


def placed_tensors(
    statement: ModelStatement, name: str, cuts: Sequence[Cut]
) -> tuple[PlacedTensor, ...]:
    """The tensors of a file that have bytes at a signed place, in the order of these places."""
    starts = [offset for offset, _ in cuts]
    found = []
    for record in statement.tensors_of(name):
        if record.offset is None or not record.nbytes:
            continue
        end = record.offset + record.nbytes
        first = bisect.bisect_right(starts, record.offset) - 1
        leaves = range(first, bisect.bisect_left(starts, end))
        last = cuts[leaves[-1]]
        own = cuts[first][0] == record.offset and sum(last) == end
        found.append(PlacedTensor(record, record.offset, leaves, own))
    return tuple(sorted(found, key=lambda tensor: tensor.offset))


def changed_tensors(
    statement: ModelStatement, name: str, bad: Iterable[int], file: BinaryIO
) -> tuple[str, ...]:
    """The paths of the tensors that were changed in a file of the signed length.

    Args:
        statement: What was signed.
        name: The file's name in it.
        bad: The positions of leaves that are not the signed ones.
        file: The file, open for reading without a buffer; only bytes of bad leaves' tensors that
            share a leaf with others are read.
    """
    ordered = sorted(bad)
    tensors = placed_tensors(statement, name, statement.cuts(name))
    return tuple(
        tensor.record.path
        for tensor in tensors
        if touches(ordered, tensor.leaves)
        and (tensor.has_own_leaves or not is_intact(file, tensor.record, tensor.offset))
    )


def touches(ordered: Sequence[int], leaves: range) -> bool:
    """Whether one of the positions in `ordered`, which rise, is in `leaves`."""
    index = bisect.bisect_left(ordered, leaves.start)
    return index < len(ordered) and ordered[index] < leaves.stop


def is_intact(file: BinaryIO, record: TensorRecord, offset: int) -> bool:
    """Whether the signed bytes of a tensor are at `offset` of a file, which may be too short."""
    if offset < 0 or offset + record.nbytes > file.seek(0, 2):
        return False
    return range_digest(file, offset, record.nbytes) == record.digest


def range_digest(file: BinaryIO, offset: int, length: int) -> str:
    """The digest that a tensor has whose bytes are `length` from `offset` on."""
    cuts = [(offset + start, size) for start, size in hashing.leaf_cuts(length)]
    return hashing.tree_digest(hashing.hash_leaves(file, cuts))
