"""Lets one process of this user at a time write somewhere, without letting strangers hold it up.

Owns the lock files. A lock on a model, its parity or its folder could be taken by anybody who may
read them, and be held for ever; these are files that this user alone can open.
"""

import contextlib
import errno
import hashlib
import importlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_modelsec._storage.files import SAFE_FLAGS
from keras_modelsec.errors import LockedError

# Elsewhere than on POSIX there are no such locks: one writer at a time is assumed.
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

LOCK_PREFIX = ".modelsec-lock-"
WAIT_SECONDS = 600.0  # longer than a repair of some gigabytes takes
_PAUSE_SECONDS = 0.02


@contextlib.contextmanager
def locked(folder: Path, what: str = "", *, wait: float | None = None) -> Iterator[None]:
    """Waits until no other process of this user is inside, and keeps the others out.

    Where no file can be made (a read-only folder) or there are no locks (some network disks), it
    goes ahead.

    Args:
        folder: Where; a file for the lock is made in it, and removed at the end.
        what: What in it, a file's name say: whoever locks something else is not kept out.
        wait: How many seconds at most. Defaults to ten minutes.

    Raises:
        LockedError: If somebody is inside all that time, or the file is not this user's alone.
    """
    place = lock_place(folder, what)
    descriptor = None if _fcntl is None else _acquire(place, wait)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(place)
            os.close(descriptor)


def lock_place(folder: Path, what: str = "") -> Path:
    """Where the lock of this user on `what` in `folder` is."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    digest = hashlib.sha256(os.fsencode(what)).hexdigest()[:16]
    return folder / f"{LOCK_PREFIX}{user}-{digest}"


def take(descriptor: int) -> None:
    """Locks an open file or folder until it is closed or we die.

    Raises:
        BlockingIOError: If somebody else has it.
        OSError: If the file system has no locks.
    """
    _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)


def _acquire(place: Path, wait: float | None) -> int | None:
    end = time.monotonic() + (WAIT_SECONDS if wait is None else wait)
    while True:
        try:
            descriptor = _open(place)
        except (PermissionError, FileNotFoundError):
            return None
        except OSError as error:
            if error.errno == errno.EROFS:
                return None
            raise
        done = False
        try:
            take(descriptor)
            if _is_in_place(descriptor, place):  # who was inside before us has removed it
                done = True
                return descriptor
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks
            with contextlib.suppress(OSError):
                os.unlink(place)
            return None
        finally:
            if not done:
                os.close(descriptor)
        if time.monotonic() > end:
            raise _refusal(place, "held by another process")
        time.sleep(_PAUSE_SECONDS)


def _open(place: Path) -> int:
    """The lock's file, which nobody else can have opened."""
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | SAFE_FLAGS, 0o600)
    except PermissionError:
        owner = _owner_of(place)
        if owner is not None:
            raise _strangers(place, owner) from None
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _refusal(place, "no regular file") from None
        raise
    found = os.fstat(descriptor)
    refusal = None
    if found.st_uid != os.geteuid():
        refusal = _strangers(place, found.st_uid)
    elif not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
        refusal = _refusal(place, "one that others may open")
    elif found.st_nlink > 1:  # another file of ours, which somebody linked to this name
        refusal = _refusal(place, "a file that has another name too")
    if refusal is not None:
        os.close(descriptor)
        raise refusal
    return descriptor


def _owner_of(place: Path) -> int | None:
    try:
        return os.lstat(place).st_uid
    except OSError:
        return None


def _strangers(place: Path, owner: int) -> LockedError:
    return LockedError(
        errno.EPERM,
        f"A lock file must be this user's own. Received: {str(place)!r}, which is user {owner}'s, "
        "who could hold it forever. Have it removed by its owner or root, or use a folder of your "
        "own",
    )


def _is_in_place(descriptor: int, place: Path) -> bool:
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _refusal(place: Path, what: str) -> LockedError:
    return LockedError(
        errno.EWOULDBLOCK,
        f"One process at a time may write here, with a lock file of its own user's. Received: "
        f"{str(place)!r}, which is {what}. Wait until it has finished, or, if nothing is running, "
        "remove that file",
    )
