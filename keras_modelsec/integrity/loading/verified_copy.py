"""A private copy of a file or folder whose bytes have been verified, for any loader to read.

Owns the step from a path that others may write to, to a place where they may not: a file of our own
or memory. The copy is made while the bytes are hashed, from the same buffers; the digest of what
was copied is what the signature is checked against. Whoever changes the original, before, during or
after, changes nothing that is loaded. Keras is not needed here.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from keras_modelsec._signing.trust import Threshold, Trust, TrustedKeys, load_trust
from keras_modelsec._storage import files
from keras_modelsec._storage.seekable_readers import MemoryFile, fits_memory
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.signing.describing import Comparison, Copy, compare, list_model
from keras_modelsec.integrity.signing.evidence import agree
from keras_modelsec.integrity.signing.verifying import check_model
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest
from keras_modelsec.integrity.statements.model_statement import ModelStatement

_SPARE_BYTES = 1 << 20  # names, folders and blocks that are not full
_ALIGNMENT = 16  # of numbers; numpy's memory begins so


@contextlib.contextmanager
def verified_copy(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    progress: Progress = None,
) -> Iterator[Path]:
    """Yields the path of a private, read-only copy of exactly the bytes that a trusted key signed.

    For files and folders that `load_verified_model` does not load itself: a `tf.train` checkpoint,
    a SavedModel for `tf.saved_model.load`, tokenizer files, data. `verify` and then reading
    the path again would leave a moment in which the path can be given other contents; here what is
    read is what was verified.

    The copy lies in a new folder of mode 0700 among the system's temporary files (`TMPDIR`) and is
    deleted at the end of the block, so whatever reads it must have read it by then. Memory use
    does not grow with the file; free space for one copy is checked before any work. Where `/tmp` is
    in memory, let `TMPDIR` name a folder on a disk for models larger than half the memory.

    The contents are not looked at: if the owner of a trusted key signed something harmful, the
    loader meets it. It does not protect from an attacker who already runs as this user or as
    root.

    Args:
        path: A signed file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: As in `verify`.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added.
        expected_name: As in `verify`.
        threshold: As in `verify`.
        progress: Called with bytes done and bytes in all while the copy is made.

    Yields:
        The path of the copy, under the original's own name. Files are of mode 0400.

    Raises:
        SignatureError: As `verify` raises it, with its subclasses.
        OSError: If there is no room for the copy, or a file cannot be read.
        FileNotFoundError: If there is nothing at `path`.

    Example:
    ```python
    with ms.verified_copy("best.weights.h5", "owner.pub") as copy:
        model.load_weights(copy)
    ```
    """
    model_path = files.absolute_path(path)
    signature = files.absolute_path(signature_path) if signature_path else None
    trust = load_trust(trusted_keys, threshold=threshold)
    with private_copy(
        model_path, trust, signature, model_path.name, progress, expected_name
    ) as copy:
        yield copy


@contextlib.contextmanager
def private_copy(
    path: Path,
    trust: Trust,
    signature: Path | None,
    name: str,
    progress: Progress = None,
    expected_name: str | None = None,
    *,
    in_memory: bool = False,
) -> Iterator[Any]:
    """Yields a verified copy of `path` under the name `name`; see `verified_copy`.

    The folder around the copy stays writable: Keras unpacks weights there that are larger than half
    the free memory.

    Args:
        path: The original, an absolute path.
        trust: Whom the signatures may be by.
        signature: An absolute path, or None for beside the model.
        name: What the copy is called.
        progress: Called with bytes done and bytes in all.
        expected_name: As in `verify`.
        in_memory: Whether the copy of a file with a statement may be a `MemoryFile` instead of a
            path; it is, if it takes at most half of the memory there is.
    """
    files.kind_of(path)
    with tempfile.TemporaryDirectory(prefix="keras-modelsec-") as folder:  # made with mode 0700
        place = Path(folder, name)
        made: list[tuple[Copy, Manifest]] = []

        def copy_and_compare(guide: ModelStatement | None, skip: Container[str]) -> Comparison:
            made.clear()
            _remove(place)  # of an attempt during which the model was replaced
            copy: Copy = _memory_for(guide) if in_memory else None
            if copy is None:
                check_room(Path(folder), _needed(path, guide, skip))
                copy = place
            found = compare(path, guide, skip=skip, copy_to=copy, progress=progress)
            made.append((copy, found.manifest))
            return found

        try:
            accepted = check_model(path, trust, copy_and_compare, signature, expected_name)
            copy, held = made[0]
            _check_held(path, accepted.manifest, held)
            _set_modes(place, 0o400, 0o500)
            yield MemoryFile(copy) if isinstance(copy, memoryview) else copy
        finally:
            _remove(place)


def _memory_for(guide: ModelStatement | None) -> memoryview | None:
    """Memory for the file that a statement is about; None without one, or where it is too large."""
    record = guide.files.get(SINGLE_FILE) if guide else None
    if guide is None or record is None or not fits_memory(record.size):
        return None
    import numpy as np  # takes memory in large pages, which are ready in a third of the time

    first = next((t.offset for t in guide.tensors if t.offset is not None), 0)
    before = -first % _ALIGNMENT
    return np.empty(before + record.size, np.uint8).data[before:]


def _check_held(path: Path, accepted: Manifest, held: Manifest) -> None:
    """Refuses a copy of other bytes than those accepted.

    A model may be read more than once, while it is replaced, and an earlier reading be what is
    accepted.
    """
    if not agree(accepted, held):
        raise SignatureError(
            f"A model must not change while it is copied. Received: {str(path)!r}, which was "
            "replaced meanwhile. Try again when its writer has finished."
        )


def _needed(path: Path, guide: ModelStatement | None, skip: Container[str]) -> int:
    """What is going to be copied, in bytes: with a statement, only what has a signed length."""
    if guide is not None:
        return sum(record.size for record in guide.files.values())
    return sum(os.lstat(place).st_size for place in list_model(path, skip).values())


def check_room(folder: Path, needed: int) -> None:
    """Fails before long work, and not in the middle of it, if a copy does not fit.

    Raises:
        OSError: With `errno.ENOSPC`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise OSError(
            errno.ENOSPC,
            "There must be room for one copy of the model among the temporary files. "
            f"Received: {free} bytes free in {tempfile.gettempdir()!r}, {needed} needed. "
            "Set the environment variable TMPDIR to a folder on a larger disk",
        )


def _set_modes(path: Path, file_mode: int, folder_mode: int) -> None:
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            os.chmod(path, file_mode)
        return
    os.chmod(path, 0o700)
    for entry in list(os.scandir(path)):
        _set_modes(Path(entry.path), file_mode, folder_mode)
    os.chmod(path, folder_mode)


def _remove(copy: Path) -> None:
    _set_modes(copy, 0o600, 0o700)
    if copy.is_dir():
        shutil.rmtree(copy)
    else:
        copy.unlink(missing_ok=True)
