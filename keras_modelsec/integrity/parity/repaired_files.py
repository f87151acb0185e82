"""How restored blocks get into files: in their place, or into a new file that is renamed.

Owns every write of a repair, to a model's files and to a damaged parity file. A crash at any
instant leaves each file with at least the good blocks it had:

- a file whose good blocks are in their places has only its bad blocks overwritten;
- any other file is written whole into a folder beside the model, synced and checked, and renamed
  only when all such files are there. What a killed repair leaves in that folder is looked through
  by the next one, since another file's only copy of a block may have been replaced by then.
"""

import bisect
import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_modelsec._storage import files, publishing, staging
from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.parity.blocks import Restorer
from keras_modelsec.integrity.parity.parity_file import ParityFile
from keras_modelsec.integrity.parity.parity_statement import Annex
from keras_modelsec.integrity.parity.protecting import write_blocks, write_digests

_PREFIX = ".modelsec-repairing-"


@dataclass(frozen=True)
class Target:
    """A file that is to be restored.

    Attributes:
        name: Its signed name.
        path: Where it is or is to be.
        start: Where it begins in the model's bytes.
        size: Its signed length.
        sha256: Its signed SHA-256, in hex.
        found: What the file system said of it when it was looked at; None if it was not there.
    """

    name: str
    path: Path
    start: int
    size: int
    sha256: str
    found: os.stat_result | None

    def blocks(self, block_size: int) -> range:
        """The blocks that have bytes of it."""
        stop = -(-(self.start + self.size) // block_size) if self.size else 0
        return range(self.start // block_size if self.size else 0, stop)


class Leftovers:
    """What killed repairs of the same model left beside it; removed when this one succeeds.

    Args:
        model: An absolute path.
    """

    def __init__(self, model: Path):
        self._prefix = _prefix_of(model)
        self._parent = model.parent
        self._folders: list[staging.StagingFolder] = []
        self.parts: list[tuple[Path | None, int]] = []

    def __enter__(self) -> "Leftovers":
        with os.scandir(self._parent) as entries:
            for entry in entries:
                if entry.name.startswith(self._prefix):
                    folder = staging.StagingFolder.left_behind(Path(entry.path))
                    if folder is not None:
                        self._folders.append(folder)
        for folder in self._folders:
            for place in sorted(folder.path.iterdir()):
                found = os.lstat(place)
                if stat.S_ISREG(found.st_mode) and place.name != staging.MARKER:
                    self.parts.append((place, found.st_size))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for folder in self._folders:
            if kind is None:
                folder.remove()
            else:
                folder.close()


def _prefix_of(model: Path) -> str:
    return f"{_PREFIX}{hashlib.sha256(os.fsencode(model.name)).hexdigest()[:16]}-"


def write_targets(
    model: Path,
    targets: Sequence[Target],
    restorer: Restorer,
    good: np.ndarray,
    progress: Progress = None,
) -> int:
    """Restores files.

    Args:
        model: The model's absolute path.
        targets: The files, in the order of the model's bytes.
        restorer: Gives the blocks; all of them.
        good: Which blocks are in their place.
        progress: Called with bytes done and bytes in all.

    Returns:
        How many bytes were written.

    Raises:
        SignatureError: If a file changes meanwhile.
        OSError: If a file cannot be written.
    """
    moved = bool((restorer.moved >= 0).any())
    patched = [t for t in targets if t.found and not moved and os.access(t.path, os.W_OK)]
    patched_names = {target.name for target in patched}
    staged = [target for target in targets if target.name not in patched_names]
    with contextlib.ExitStack() as stack:
        places = {target.name: target.path for target in patched}
        if staged:
            made = staging.made(model.parent, _prefix_of(model))
            folder = stack.enter_context(made).path
            places |= {target.name: folder / f"{i:06d}" for i, target in enumerate(staged)}
        writer = _Writer(targets, places, restorer, good, {t.name for t in staged})
        for target in patched:
            _check_unchanged(target)
        written = writer.write(patched, staged)
        _check_written(targets, places, progress)
        for target in staged:
            _put_in_place(places[target.name], target)
    return written


class _Writer:
    """Sends the bytes of a block to the files it spans."""

    def __init__(
        self,
        targets: Sequence[Target],
        places: dict[str, Path],
        restorer: Restorer,
        good: np.ndarray,
        whole: set[str],
    ):
        self._targets = targets
        self._starts = [target.start for target in targets]
        self._places = places
        self._restorer = restorer
        self._good = good
        self._whole = whole
        self._size = restorer.geometry.block_size
        self._written = 0

    def write(self, patched: Sequence[Target], staged: Sequence[Target]) -> int:
        for target in staged:
            place = self._places[target.name]
            with open(place, "xb") as file:
                file.truncate(target.size)
            mode = stat.S_IMODE(target.found.st_mode) if target.found else 0o644
            os.chmod(place, mode | stat.S_IWUSR)
        for target in patched:
            _set_size(target, grow=True)
        decoded = set()
        for index, data in self._restorer.decoded():
            self._deliver(index, data, self._spanned(index))
            decoded.add(index)
        for target in self._targets:
            for index in target.blocks(self._size):
                if index not in decoded and (target.name in self._whole or not self._good[index]):
                    self._deliver(index, memoryview(self._restorer.read(index)), [target])
        for target in patched:
            _set_size(target, grow=False)
        for place in self._places.values():
            publishing.sync_file(place)
        return self._written

    def _spanned(self, index: int) -> list[Target]:
        begin, end = index * self._size, (index + 1) * self._size
        first = max(0, bisect.bisect_right(self._starts, begin) - 1)
        found = []
        for target in self._targets[first:]:
            if target.start >= end:
                break
            if target.start + target.size > begin:
                found.append(target)
        return found

    def _deliver(self, index: int, data: memoryview, targets: Sequence[Target]) -> None:
        begin = index * self._size
        for target in targets:
            low = max(begin, target.start)
            high = min(begin + self._size, target.start + target.size)
            if low < high:
                place = self._places[target.name]
                _write_at(place, low - target.start, data[low - begin : high - begin])
                self._written += high - low


def _write_at(path: Path, offset: int, data: memoryview) -> None:
    with files.open_regular(path, writable=True) as file:
        file.seek(offset)
        while data:
            data = data[file.write(data) or 0 :]


def _set_size(target: Target, *, grow: bool) -> None:
    """Cuts what is too long, at the end; lengthens what is too short, at the start."""
    found = target.found
    if found is not None and (found.st_size < target.size if grow else found.st_size > target.size):
        with files.open_regular(target.path, writable=True) as file:
            file.truncate(target.size)


def _check_unchanged(target: Target) -> None:
    before = target.found
    after = os.lstat(target.path) if os.path.lexists(target.path) else None
    identities = [item and files.identity(item) for item in (before, after)]
    if identities[0] != identities[1]:
        raise _changed(target.path)


def _changed(path: Path) -> SignatureError:
    return SignatureError(
        f"A model must not change while it is repaired. Received: {str(path)!r}, which was "
        "written to meanwhile. Try again when its writer has finished."
    )


def _check_written(targets: Sequence[Target], places: dict[str, Path], progress: Progress) -> None:
    total, done = sum(target.size for target in targets), 0
    for target in targets:
        if files.hash_file(places[target.name]) != target.sha256:
            raise _changed(target.path)
        done += target.size
        if progress:
            progress(done, total)


def _put_in_place(staged: Path, target: Target) -> None:
    if target.found:
        os.chmod(staged, stat.S_IMODE(target.found.st_mode))
    target.path.parent.mkdir(parents=True, exist_ok=True)
    _check_unchanged(target)
    os.replace(staged, target.path)
    publishing.sync_folder(target.path.parent)


def restore_parity(
    parity: ParityFile,
    annex: Annex,
    parts: Sequence[tuple[Path | None, int]],
    progress: Progress = None,
) -> bool:
    """Writes the parity file anew, byte for byte as it was signed.

    Args:
        parity: The damaged one.
        annex: Its annex.
        parts: The files of the model, which are whole, and their lengths.
        progress: Called with bytes done and bytes in all.

    Returns:
        Whether it was done: not if the files cannot be read or written, or do not give the signed
        parity, since the model's own repair has succeeded and is not to fail because of that.
    """
    path = parity.path
    try:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        with publishing.published(path, mode=mode) as file, ByteStream(parts) as stream:
            tables = write_blocks(file, parity.statement, stream, progress)
            write_digests(file, parity.statement, parity.envelope, annex.to_bytes())
            if tables != (annex.blocks, annex.parity):
                raise OSError("other parity than the signed")  # which publishes nothing
    except OSError:
        return False
    return True
