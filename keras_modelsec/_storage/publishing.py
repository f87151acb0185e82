"""Files that appear whole or not at all: synced, renamed, and their folder synced.

Owns the one writer of files that replace others (`published`), and how one name takes another's
place. Where a file is while it is written is for staging.py.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from keras_modelsec._storage.files import SAFE_FLAGS, kind_of, list_folder, stranger_at
from keras_modelsec._storage.staging import staging_folder


def sync_file(path: Path) -> None:
    """Waits until the bytes of `path` are on the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Waits until a file, or all files and names of a folder, are on the disk."""
    if kind_of(path) == "file":
        sync_file(path)
        return
    for name in list_folder(path):
        sync_file(path / name)
    for folder, _, _ in os.walk(path):
        sync_folder(Path(folder))


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder over what is at `target`, in one step where the system can.

    A folder cannot be renamed over one that holds files; on Linux the two are exchanged at once,
    elsewhere there is a moment in which nothing is at `target`. What was there is where `source`
    was.
    """
    if not (source.is_dir() and target.is_dir()):
        os.replace(source, target)
    elif not _exchange(source, target):
        aside = source.with_name(source.name + ".old")
        os.replace(target, aside)
        os.replace(source, target)
        os.replace(aside, source)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once (`renameat2` of Linux); False if it cannot be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk (nothing to do where POSIX is absent)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: Path) -> None:
    """Fails before long work, and not after it, if no file can be written at `path`.

    Raises:
        OSError: If the folder is missing or not writable, a folder is at `path`, or, in a shared
            folder, another user's file.
        UnsafePathError: If a symbolic link or special file is there.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of a file to be written must exist. Received: {str(path)!r}. "
            f"Create {str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The folder of a file to be written must be writable. Received: {str(path)!r}. "
            "Choose a folder that is."
        )
    if os.path.lexists(path) and kind_of(path) != "file":
        raise IsADirectoryError(
            f"A file can only be written where no folder is. Received: {str(path)!r}, a folder."
        )
    stranger = stranger_at(path)
    if stranger is not None:
        raise PermissionError(
            "A file must be new or this user's own where others may write too. Received: "
            f"{str(path)!r}, which user {stranger} put there. Choose a folder of your own."
        )


@contextlib.contextmanager
def published(
    target: Path, *, mode: int | None = None, overwrite: bool = True
) -> Iterator[BinaryIO]:
    """A file to write to, which is put at `target` when all went well, and vanishes otherwise.

    It is written in a private folder beside the target; what a kill leaves of that, the next writer
    in the folder clears.

    Args:
        target: An absolute path; its folder must exist.
        mode: The permissions, whatever the process's umask; None for those of any new file.
        overwrite: Whether an existing file is replaced.

    Raises:
        FileExistsError: If `overwrite` is False and the file exists; decided by the file system, so
            two writers cannot both succeed.
        OSError: If it cannot be written.
    """
    with staging_folder(target.parent) as folder:
        staged = folder / target.name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_FLAGS
        descriptor = os.open(staged, flags, 0o666 if mode is None else 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if overwrite:
            os.replace(staged, target)
        else:
            _move_new(staged, target)
    sync_folder(target.parent)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, overwrite: bool = True) -> None:
    """Writes a file that is there whole or not at all; arguments and errors as for `published`."""
    with published(path, mode=mode, overwrite=overwrite) as file:
        file.write(data)


def _move_new(staged: Path, target: Path) -> None:
    try:
        os.link(staged, target)  # fails if `target` exists, where a rename would replace it
    except FileExistsError:
        raise already_there(target) from None
    except OSError:  # a file system without hard links
        try:
            open(target, "xb").close()
        except FileExistsError:
            raise already_there(target) from None
        os.replace(staged, target)


def already_there(target: Path) -> FileExistsError:
    """The error for a file that is not to be overwritten."""
    return FileExistsError(
        errno.EEXIST,
        "The file to be written must not exist yet; name another, or pass overwrite=True (on the "
        "command line, --force) to replace it",
        str(target),
    )
