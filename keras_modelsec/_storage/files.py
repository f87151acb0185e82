"""Files that anybody may have made: opened without surprises, read exactly, hashed once.

Owns every `open` of a model or signature. Symbolic links and special files are refused when they
are opened, not by a check beforehand, so that there is no moment in between.
"""

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Container
from pathlib import Path
from typing import Any, BinaryIO

from keras_modelsec.errors import SignatureError, UnsafePathError

# Tried: one thread with this block runs at 0.86 to 0.90 of hashlib on bytes in memory, whatever
# else the machine does; reading ahead on a second thread at 0.95 if a core is idle, else at 0.75.
CHUNK_BYTES = 1 << 20
_MIN_CHUNK_BYTES = 1 << 12
SAFE_FLAGS = 0
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # a FIFO must not block us
    SAFE_FLAGS |= getattr(os, _flag, 0)


def absolute_path(path: "str | os.PathLike[str]") -> Path:
    """`path` made absolute with its links unresolved, its trailing separators and dots removed."""
    try:
        return Path(os.path.abspath(os.fspath(path)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`path` must be a str or os.PathLike. Received: {type(path).__name__}."
        ) from error


def open_regular(path: Path, *, writable: bool = False) -> BinaryIO:
    """Opens a regular file, unbuffered; the last part of the path may be no link.

    Args:
        path: The file, which must exist.
        writable: Whether it is also to be written to, in its place.

    Raises:
        UnsafePathError: If it is a link or a special file.
        OSError: If it cannot be opened.
    """
    try:
        descriptor = os.open(path, SAFE_FLAGS | (os.O_RDWR if writable else os.O_RDONLY))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK is what BSD says to O_NOFOLLOW
            raise _unsafe(path, "a symbolic link") from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise _unsafe(path, "a special file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _is_link(path):
            raise _unsafe(path, "not a regular file")
        return os.fdopen(descriptor, "r+b" if writable else "rb", buffering=0)
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


def is_own(path: Path) -> bool:
    """Whether a regular file is at `path` that this user made: no link, and with no other name."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return mine and stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def identity(found: os.stat_result) -> tuple[int, ...]:
    """What tells a file that was written to, or exchanged, from the one that was looked at."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def fill(view: memoryview, file: Any) -> int:
    """Reads from a file's position until `view` is full or the file ends; how many bytes."""
    done = 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    return done


def read_at(file: Any, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer if it ends before."""
    file.seek(offset)
    return read_up_to(file, length)


def read_up_to(file: Any, length: int) -> bytes:
    """`length` bytes from a file's position on; fewer if it ends before."""
    data = bytearray(length)
    del data[fill(memoryview(data), file) :]
    return bytes(data)


def stranger_at(path: Path) -> int | None:
    """The other user (not root) who owns what is at `path`, in a folder that users share (/tmp).

    Where others may create files and the sticky bit is set, a name may have been taken before we
    came to write there; what is ours nobody else can rename or replace.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        found, folder = os.lstat(path), os.stat(path.parent).st_mode
    except OSError:
        return None
    is_shared = folder & stat.S_ISVTX and folder & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid if is_shared and found.st_uid not in (0, os.geteuid()) else None


def check_no_strangers(path: Path) -> None:
    """Refuses what another user put into a shared folder, where our own is expected.

    Raises:
        UnsafePathError: If it is theirs.
    """
    stranger = stranger_at(path)
    if stranger is not None:
        raise UnsafePathError(
            "What is taken from a folder that others may write to must be this user's own. "
            f"Received: {str(path)!r}, which user {stranger} put there and can change. If these "
            "are the right bytes, copy them into a folder of your own first."
        )


def next_stored(file: BinaryIO, offset: int) -> int | None:
    """Where, from `offset` on, the next bytes are that take room on the disk; None if nowhere.

    What lies between reads as zeros. Where the system or the disk does not tell, all is stored.
    """
    if not hasattr(os, "SEEK_DATA"):
        return offset
    try:
        return os.lseek(file.fileno(), offset, os.SEEK_DATA)
    except OSError as error:
        return None if error.errno == errno.ENXIO else offset


def read_limited(path: Path, limit: int) -> bytes:
    """Reads a small regular file whole; more than `limit` bytes are refused, not read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:  # a sparse file costs who made it nothing
            raise _too_large(path, limit)
        data = file.read(size + 1)  # at once: what is put together takes the memory twice
        if len(data) <= size:
            return data
        data += file.read(limit + 1 - len(data))  # it grew
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def _too_large(path: Path, limit: int) -> SignatureError:
    return SignatureError(
        f"A signature file must have at most {limit} bytes. "
        f"Received: {str(path)!r}, which has more."
    )


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


def list_folder(folder: Path, skip: Container[str] = (), most: int = 1_000_000) -> list[str]:
    """The names of all files below `folder`, as POSIX paths relative to it, unsorted.

    Args:
        folder: The folder.
        skip: Names to leave out, whatever is there.
        most: How many files and folders there may be in all.

    Raises:
        UnsafePathError: At the first symbolic link or special file, or when there are more.
    """
    names: list[str] = []
    waiting = [""]
    left = most
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                left -= 1
                if left < 0:
                    raise UnsafePathError(
                        f"A model's folder must hold at most {most} files and folders. Received: "
                        f"{str(folder)!r}, which holds more. Put the model into one file, or away "
                        "from what does not belong to it."
                    )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name + "/")
                elif name in skip:
                    continue
                elif entry.is_file(follow_symlinks=False):
                    names.append(name)
                else:
                    kind = "a symbolic link" if entry.is_symlink() else "a special file"
                    raise _unsafe(folder / name, kind)
    return names


def lengths(path: Path, most: int = 500_000) -> list[int]:
    """The lengths of the file at `path`, or of those below it, up to `most`, whatever they are.

    Raises:
        OSError: If there is nothing.
    """
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return [os.lstat(path).st_size]
    names = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [os.lstat(name).st_size for name in itertools.islice(names, most)]


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
