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
- its ctime was older then than the clock's granularity, so that a write just after it gets another.

It does not protect from root, from a changed system clock that only root can set, or from writes to
the raw disk.
"""

import contextlib
import hashlib
import os
import time
from typing import BinaryIO

_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs"})
_MOUNTS = "/proc/self/mountinfo"
_MARGIN_NS = 100_000_000  # ctime moves in ticks of at most 10 ms


def fingerprint(file: BinaryIO) -> str | None:
    """The digest of what the file system says of an open file, or None if that is not enough.

    Args:
        file: A regular file, open for reading.

    Returns:
        A hex SHA-256, or None: not on a known file system, or changed a moment ago.
    """
    descriptor = file.fileno()
    if _file_system(os.fstat(descriptor).st_dev) not in _FILE_SYSTEMS:
        return None
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    found = os.fstat(descriptor)
    if time.time_ns() - found.st_ctime_ns < _MARGIN_NS:
        return None
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256(repr(parts).encode("ascii")).hexdigest()


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
