"""Folders for files in the making: this user's alone, reached by descriptor, known by a marker.

Owns how such a folder is made, used, told from any other, and removed. Who may write to the folder
around it can rename it, and put another in its place, while a model is written and signed. So:

- what is made is opened at once, and must be this user's, empty, and closed to others' writing;
- from then on it is reached by its descriptor (`/proc/self/fd/N`; on systems without that, by its
  path, and then no folder above may be open to others), so that a rename leads nowhere;
- it holds a marker that names its inode. A folder is only cleared if it has its own marker and is
  this user's; whatever else has come to bear its name is left alone.
"""

import contextlib
import errno
import importlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_modelsec._storage import locks
from keras_modelsec._storage.files import SAFE_FLAGS
from keras_modelsec.errors import CheckpointError

# Elsewhere than on POSIX: no locks, so one writer a folder, and no clearing up after a kill.
_grp: Any = importlib.import_module("grp") if os.name == "posix" else None
_pwd: Any = importlib.import_module("pwd") if os.name == "posix" else None

MARKER = ".modelsec-staging"
PREFIX = ".modelsec-saving-"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | SAFE_FLAGS


class StagingFolder:
    """A folder that was made here, or left by a killed process of this user's.

    Args:
        place: Where it is, or will be, made.
        descriptor: Of the folder, open and locked; None until it is made, and where folders cannot
            be opened.

    Attributes:
        path: How to reach it, whatever it is called by now.
    """

    def __init__(self, place: Path, descriptor: int | None = None):
        self._place = place
        self._descriptor = descriptor
        self._is_marked = descriptor is not None
        self._may_be_there = descriptor is not None
        self.path = place if descriptor is None else _anchor(descriptor) or place

    @classmethod
    def make(cls, parent: Path, prefix: str, *, for_signing: bool = False) -> "StagingFolder":
        """A new folder in `parent`, on the same file system.

        Args:
            parent: Where.
            prefix: How its name begins.
            for_signing: Whether others' permission to write to it is refused. It has none, but
                for file systems that keep no permissions.

        Raises:
            CheckpointError: If another folder was put in its place meanwhile.
            OSError: If it cannot be made.
        """
        folder = cls(_new_place(parent, prefix))
        try:
            folder._make(for_signing)
        except BaseException:
            folder.remove()
            raise
        return folder

    def _make(self, for_signing: bool) -> None:
        """Notes each step before or as it is done: Ctrl-C may come between any two of them."""
        self._may_be_there = True
        try:
            os.mkdir(self._place, 0o700)
        except OSError:
            self._may_be_there = False
            raise
        if os.name != "posix":
            self._is_marked = True
            return
        self._descriptor = os.open(self._place, _FOLDER_FLAGS)
        try:
            _mark(self._descriptor, self._place, for_signing)
        except CheckpointError:  # it is not what we made
            self.close()
            self._may_be_there = False
            raise
        self._is_marked = True
        _lock(self._descriptor)
        self.path = _anchor(self._descriptor) or self._place

    @classmethod
    def left_behind(cls, place: Path) -> "StagingFolder | None":
        """What a killed process left at `place`; None if it is alive, or the folder is not ours."""
        if os.name != "posix":
            return None
        try:
            descriptor = os.open(place, _FOLDER_FLAGS)
        except OSError:  # a link or a file of that name
            return None
        if (
            _is_ours(os.fstat(descriptor))
            and _lock(descriptor)
            and (_has_marker(descriptor) or _is_unmarked(descriptor))
        ):
            return cls(place, descriptor)
        os.close(descriptor)
        return None

    def remove(self) -> None:
        """Empties the folder, and removes it if it still is where it was made."""
        try:
            self._remove()
        except BaseException:  # Ctrl-C; what it found done is not done again
            self._remove()
            raise

    def _remove(self) -> None:
        if not self._may_be_there:
            return
        if os.name != "posix":
            shutil.rmtree(self._place, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            if self._descriptor is None:  # it was never opened, or is done with
                os.rmdir(self._place)
                return
            if self._is_marked:
                _empty(self._descriptor)
            elif _has_marker(self._descriptor):
                os.unlink(MARKER, dir_fd=self._descriptor)
            if _is_same(self._place, self._descriptor):
                os.rmdir(self._place)  # which fails unless it is empty
        self.close()

    def close(self) -> None:
        """Lets the folder be as it is; it is no longer locked."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def made(parent: Path, prefix: str, *, for_signing: bool = False) -> Iterator[StagingFolder]:
    """A `StagingFolder` that is removed in the end; arguments as for `StagingFolder.make`."""
    folder = StagingFolder(_new_place(parent, prefix))
    try:
        folder._make(for_signing)
        yield folder
    finally:
        folder.remove()


@contextlib.contextmanager
def staging_folder(folder: Path, *, for_signing: bool = False) -> Iterator[Path]:
    """A folder inside `folder` for files in the making: same file system, readable by us alone.

    It is locked while in use, so that another writer can tell it from what a killed one left, which
    is cleared first. The path leads to it whatever it is renamed to.

    Args:
        folder: Where.
        for_signing: Whether `folder` is refused if others may write to it.

    Raises:
        CheckpointError: If it is refused, or another folder was put in the new one's place.
        OSError: If it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with locked_for_writing(folder):
            clear(folder)
            if for_signing:
                check_closed_to_others(folder)
            staged = stack.enter_context(made(folder, PREFIX, for_signing=for_signing))
        yield staged.path


@contextlib.contextmanager
def locked_for_writing(folder: Path) -> Iterator[None]:
    """Waits for other writers in `folder`; without locks (some network disks) it goes ahead."""
    os.stat(folder)
    with locks.locked(folder):
        yield


def clear(folder: Path) -> None:
    """Removes staging folders whose makers are gone; the caller holds the folder's lock."""
    for path in folder.glob(f"{PREFIX}*"):
        left = StagingFolder.left_behind(path)
        if left is not None:
            left.remove()


def check_closed_to_others(folder: Path) -> None:
    """Refuses a folder in which others can rename and replace what the owner's key signs.

    A folder with the sticky bit (as /tmp has) is good: others cannot rename there what is not
    theirs. So is one that only a private group may write to: the user's own, with no other member,
    as systems with a umask of 002 have it. Root may use a folder of another user's. Lists of
    access rights (ACLs) are seen on Linux if they are POSIX ones.

    Raises:
        CheckpointError: If others may write to it.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        anchored = _anchor(descriptor) is not None
    finally:
        os.close(descriptor)
    for place in [folder] if anchored else [folder, *folder.parents]:
        who = _who_else_writes(place, anchored)
        if who is not None:
            raise CheckpointError(
                errno.EPERM,
                "A folder in which models are signed must be closed to others' writing. Received: "
                f"{str(place)!r}, to which {who} may write, who could put their model in place of "
                "yours. Take that right away (`chmod go-w`), set the sticky bit (`chmod +t`), or "
                "choose a folder of your own inside it",
            )


def _who_else_writes(folder: Path, anchored: bool) -> str | None:
    found = os.stat(folder)
    if found.st_uid not in (0, os.geteuid()) and (os.geteuid() != 0 or not anchored):
        return f"its owner, user {found.st_uid},"
    if found.st_mode & stat.S_ISVTX or not found.st_mode & _OTHERS_WRITE:
        return None
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    if _has_acl(folder):
        return "somebody named in its ACL"
    return None if _is_private(found.st_gid) else f"group {found.st_gid}"


def _has_acl(folder: Path) -> bool:
    try:
        return bool(os.getxattr(folder, "system.posix_acl_access"))
    except (AttributeError, OSError):
        return False


def _is_private(group: int) -> bool:
    """Whether a group is this user's own, and nobody else is in it."""
    try:
        user, members = _pwd.getpwuid(os.geteuid()), _grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    return (
        user.pw_gid == group
        and set(members) <= {user.pw_name}
        and all(o.pw_uid == user.pw_uid for o in _pwd.getpwall() if o.pw_gid == group)
    )


def _new_place(parent: Path, prefix: str) -> Path:
    """A name that nobody can foresee; drawn first, so that what is half made can be found again."""
    return parent / f"{prefix}{secrets.token_hex(8)}"


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE


def _is_same(place: Path, other: "int | str") -> bool:
    try:
        return os.path.samestat(os.lstat(place), os.stat(other))
    except OSError:
        return False


def _anchor(descriptor: int) -> Path | None:
    """A path to an open folder that no rename changes; None where the system has none."""
    path = Path(f"/proc/self/fd/{descriptor}")
    try:
        same = os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return None
    return path if same else None


def _exchanged(place: Path) -> CheckpointError:
    return CheckpointError(
        errno.EPERM,
        f"A folder for files in the making must be the one just made. Received: {str(place)!r}, "
        "which is another by now, or open to others' writing. Somebody who may write to the folder "
        "around it renamed it: choose a folder of your own",
    )


def _lock(descriptor: int) -> bool:
    """Locks a folder until the descriptor is closed or we die; False if somebody else has it."""
    try:
        locks.take(descriptor)
    except OSError:
        return False
    return True


def _text_of_mark(descriptor: int) -> bytes:
    return f"keras_modelsec staging folder {os.fstat(descriptor).st_ino}\n".encode("ascii")


def _mark(descriptor: int, place: Path, for_signing: bool) -> None:
    """Marks a folder as made here, if it is: empty, and of the owner that a file of ours gets."""
    found = os.fstat(descriptor)
    if os.listdir(descriptor) or (for_signing and found.st_mode & _OTHERS_WRITE):
        raise _exchanged(place)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        marker = os.open(MARKER, flags, 0o600, dir_fd=descriptor)
        with os.fdopen(marker, "wb") as file:
            file.write(_text_of_mark(descriptor))
            ours = os.fstat(file.fileno()).st_uid == found.st_uid
        if not ours:
            raise _exchanged(place)
    except FileExistsError:  # somebody put it there since we looked
        raise
    except BaseException:  # a full disk, Ctrl-C
        with contextlib.suppress(OSError):
            os.unlink(MARKER, dir_fd=descriptor)
        raise


def _has_marker(descriptor: int) -> bool:
    """Whether the folder holds the marker that was made for it, by this user."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
    try:
        with os.fdopen(os.open(MARKER, flags, dir_fd=descriptor), "rb", buffering=0) as file:
            found, mark = os.fstat(file.fileno()), _text_of_mark(descriptor)
            regular = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and _is_ours(found)
            return regular and file.read(len(mark) + 1) == mark
    except OSError:
        return False


def _is_unmarked(descriptor: int) -> bool:
    """Whether a folder lost its maker before it was marked: empty, or with an empty marker."""
    names = os.listdir(descriptor)
    if names != [MARKER]:
        return not names
    found = os.stat(MARKER, dir_fd=descriptor, follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and not found.st_size


def _empty(descriptor: int) -> None:
    """Removes what is in a folder; its marker last, so that a kill in between leaves it known."""
    for name in sorted(os.listdir(descriptor), key=lambda name: name == MARKER):
        kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind):
            shutil.rmtree(name, ignore_errors=True, dir_fd=descriptor)
        else:
            os.unlink(name, dir_fd=descriptor)
