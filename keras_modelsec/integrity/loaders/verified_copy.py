"""A private copy of a file or folder whose bytes have been verified, for any loader to read.

Owns the step from a path that others may write to, to one that they may not. The copy is made while
the bytes are hashed, from the same buffers; the digest of what was written is what the signature is
checked against. Whoever changes the original, before, during or after, changes nothing that is
loaded. Keras is not needed here.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_modelsec.integrity import files
from keras_modelsec.integrity.keys.key_loading import TrustedKeys
from keras_modelsec.integrity.keys.trust import Trust, load_trust
from keras_modelsec.integrity.signatures.describing import Comparison, compare, list_model
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.verifying import check_model

_SPARE_BYTES = 1 << 20  # names, folders and blocks that are not full


@contextlib.contextmanager
def verified_copy(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
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
    trust = load_trust(trusted_keys)
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
) -> Iterator[Path]:
    """Yields a verified copy of `path` under the name `name`; see `verified_copy`.

    The folder around the copy stays writable: Keras unpacks weights there that are larger than half
    the free memory.
    """
    needed = sum(os.lstat(place).st_size for place in list_model(path).values())
    with tempfile.TemporaryDirectory(prefix="keras-modelsec-") as folder:  # made with mode 0700
        check_room(Path(folder), needed)
        copy = Path(folder, name)

        def copy_and_compare(guide: ModelStatement | None, skip: Sequence[str]) -> Comparison:
            _remove(copy)  # of an attempt during which the model was replaced
            return compare(path, guide, skip=skip, copy_to=copy, progress=progress)

        try:
            check_model(path, trust, copy_and_compare, signature, expected_name)
            _set_modes(copy, 0o400, 0o500)
            yield copy
        finally:
            _remove(copy)


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
