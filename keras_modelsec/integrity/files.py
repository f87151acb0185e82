"""Files as the integrity domain sees them: opened without surprises, hashed once, replaced whole.

Owns every `open` of a model or signature. Symbolic links and special files are refused when they
are opened, not by a check beforehand, so that there is no moment in between.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from keras_modelsec.integrity.errors import SignatureError, UnsafePathError

# Tried: one thread with this block runs at 0.86 to 0.90 of hashlib on bytes in memory, whatever
# else the machine does; reading ahead on a second thread at 0.95 if a core is idle, else at 0.75.
CHUNK_BYTES = 1 << 20
_MIN_CHUNK_BYTES = 1 << 12
_READ_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # a FIFO must not block us
    _READ_FLAGS |= getattr(os, _flag, 0)


def absolute_path(path: "str | os.PathLike[str]") -> Path:
    """`path` made absolute with its links unresolved, its trailing separators and dots removed."""
    try:
        return Path(os.path.abspath(os.fspath(path)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`path` must be a str or os.PathLike. Received: {type(path).__name__}."
        ) from error


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for unbuffered reading; the last part of the path may be no link."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK is what BSD says to O_NOFOLLOW
            raise _unsafe(path, "a symbolic link") from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise _unsafe(path, "a special file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _is_link(path):
            raise _unsafe(path, "not a regular file")
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _is_link(path: Path) -> bool:
    return not hasattr(os, "O_NOFOLLOW") and path.is_symlink()


def _unsafe(path: Path, kind: str) -> UnsafePathError:
    return UnsafePathError(
        f"Models and signatures must be regular files and folders. Received: {str(path)!r}, which "
        f"is {kind}. A link can be pointed elsewhere after verification: use the file itself."
    )


def read_limited(path: Path, limit: int) -> bytes:
    """Reads a small regular file whole; more than `limit` bytes are refused, not read."""
    with open_regular(path) as file:
        chunks, total = [], 0
        while chunk := file.read(min(CHUNK_BYTES, limit + 1 - total)):
            chunks.append(chunk)
            total += len(chunk)
            if total > limit:
                raise SignatureError(
                    f"A signature file must have at most {limit} bytes. "
                    f"Received: {str(path)!r}, which has more."
                )
    return b"".join(chunks)


def hash_file(path: Path, copy_to: BinaryIO | None = None) -> str:
    """The hex SHA-256 of a file, read once.

    Args:
        path: A regular file.
        copy_to: If given, receives exactly the bytes that were hashed.

    Raises:
        UnsafePathError: If `path` is no regular file.
        SignatureError: If the file changed while it was read.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        digest = _hash_open_file(file, copy_to)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SignatureError(
            f"A file must not change while it is hashed. Received: {str(path)!r}, which was "
            "written to meanwhile. Try again when its writer has finished."
        )
    return digest


def _hash_open_file(file: Any, copy_to: BinaryIO | None) -> str:
    hasher = hashlib.sha256()
    size = os.fstat(file.fileno()).st_size + 1
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(size, _MIN_CHUNK_BYTES))))
    while count := file.readinto(buffer):
        hasher.update(buffer[:count])
        if copy_to is not None:
            copy_to.write(buffer[:count])
    return hasher.hexdigest()


def list_folder(folder: Path) -> list[str]:
    """The names of all files below `folder`, as POSIX paths relative to it, unsorted.

    Raises:
        UnsafePathError: At the first symbolic link or special file.
    """
    names: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name + "/")
                elif entry.is_file(follow_symlinks=False):
                    names.append(name)
                else:
                    kind = "a symbolic link" if entry.is_symlink() else "a special file"
                    raise _unsafe(folder / name, kind)
    return names


def kind_of(path: Path) -> str:
    """Returns "file" or "folder"; links and special files are refused.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If it is neither a regular file nor a folder.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            errno.ENOENT, "`path` must be a file or folder that exists", str(path)
        ) from None
    except ValueError:  # an embedded NUL
        raise _unsafe(path, "no possible path") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    raise _unsafe(path, "a symbolic link" if stat.S_ISLNK(mode) else "a special file")


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
        OSError: If the folder is missing or not writable, or a folder is at `path`.
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


@contextlib.contextmanager
def _temporary_beside(path: Path, data: bytes, mode: int) -> Iterator[str]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, overwrite: bool = True) -> None:
    """Writes a file that is there whole or not at all: temporary, fsync, rename, fsync the folder.

    Args:
        path: The target; its folder must exist.
        data: The contents.
        mode: The permissions, whatever the process's umask.
        overwrite: Whether an existing file is replaced.

    Raises:
        FileExistsError: If `overwrite` is False and the file exists; decided by the file system, so
            two writers cannot both succeed.
    """
    with _temporary_beside(path, data, mode) as temporary:
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_new(temporary, path)
    sync_folder(path.parent)


def _move_new(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails if `path` exists, where a rename would replace it
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, "The file exists already and is not overwritten", str(path)
        ) from None
    except OSError:  # a file system without hard links
        with open(path, "xb"):
            pass
        os.replace(temporary, path)
