"""Tells whether a file can have changed since it was signed, by what nobody but root can set.

Owns the rule by which `sign(reuse_unchanged=True)` skips a file. A file's times of modification can
be set to anything by its owner (`utime`); its time of change (ctime) is set by the kernel alone, at
every write, rename, link and change of the other times. The rule, all of which must hold:

- device, inode, size, mtime and ctime are those of the signing, to the nanosecond; they are stored
  as one digest inside the signed statement, so that they cannot be edited either;
- the file system is one that is known to keep ctime so, also for writes through a memory mapping:
  ext2 to ext4, xfs, f2fs; for any other there is no fingerprint, and the file is hashed;
- when the file was signed its pages were first written out (fsync), so that a mapping that was open
  then must tell the kernel before it writes again;
- its ctime was older then than the clock's granularity, so that a write just after it gets another;
- when it was signed, and still, the file is the signer's own, nobody else may write to it, and
  nobody had it open for writing (a read lease shows it). For ext4 and xfs can exchange the blocks
  of two files that somebody has open for writing, and leave both ctimes alone.

It does not protect from root, from other programs of the signer's own user, from a changed system
clock that only root can set, or from writes to the raw disk.
"""

import contextlib
import hashlib
import importlib
import os
import signal
import time
from typing import Any, BinaryIO

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs"})
_MOUNTS = "/proc/self/mountinfo"
_MARGIN_NS = 100_000_000  # ctime moves in ticks of at most 10 ms


def fingerprint(file: BinaryIO) -> str | None:
    """The digest of what the file system says of an open file, or None if that is not enough.

    Args:
        file: A regular file, open for reading.

    Returns:
        A hex SHA-256, or None: not on a known file system, changed a moment ago, or others can
        write to it.
    """
    descriptor = file.fileno()
    if _file_system(os.fstat(descriptor).st_dev) not in _FILE_SYSTEMS or not _is_ours(descriptor):
        return None
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    found = os.fstat(descriptor)
    if time.time_ns() - found.st_ctime_ns < _MARGIN_NS:
        return None
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256(repr(parts).encode("ascii")).hexdigest()


def _is_ours(descriptor: int) -> bool:
    """Whether nobody but this user and root has the file open for writing, or can come to have.

    The kernel grants a read lease only while nobody has; who opens the file after that needs
    permissions that only a change of ctime gives.
    """
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:  # an ACL's mask shows there too
        return False
    try:
        # Were the lease broken in this moment: a signal that does nothing, not SIGIO, which kills.
        _fcntl.fcntl(descriptor, _fcntl.F_SETSIG, signal.SIGURG)
        _fcntl.fcntl(descriptor, _fcntl.F_SETLEASE, _fcntl.F_RDLCK)
        _fcntl.fcntl(descriptor, _fcntl.F_SETLEASE, _fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _file_system(device: int) -> str | None:
    """The type of the mounted file system with this device number; Linux only."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            kinds = {
                line.split(" - ", 1)[1].split(" ", 1)[0]
                for line in mounts
                if " - " in line and line.split(" ", 3)[2] == number
            }
    except OSError:
        return None
    return kinds.pop() if len(kinds) == 1 else None
