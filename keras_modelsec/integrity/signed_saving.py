"""Replaces a model and its signature so that a crash at any instant leaves one good pair.

Two renames cannot be one atomic step, so the order carries the guarantee (docs/adr/0012):

1. model and signature are written and synced in a private staging folder beside the target;
2. the signature becomes `NAME.sig.next`: the old pair is still whole;
3. the model becomes `NAME`: it now pairs with `NAME.sig.next`, which `verify` also accepts;
4. `NAME.sig.next` becomes `NAME.sig`.

A kill after step 2 or 3 is settled by the next writer, or stays as it is and verifies.
"""

import contextlib
import errno
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keras_modelsec.integrity import files, statement
from keras_modelsec.integrity.envelope import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec.integrity.errors import CheckpointError, SignatureError
from keras_modelsec.integrity.manifest import SINGLE_FILE, describe
from keras_modelsec.integrity.signing import SIGNATURE_SUFFIX, make_signature, signature_path_of
from keras_modelsec.integrity.signing_key import SigningKey
from keras_modelsec.integrity.verifying import PENDING_SUFFIX

# Elsewhere than on POSIX: no locks, so one writer a folder, and no clearing up after a kill.
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_STAGING_PREFIX = ".modelsec-saving-"


def save_signed(write: Callable[[str], None], target: Path, key: SigningKey) -> None:
    """Has `write` make a file, signs it, and puts both in place of what was there.

    Args:
        write: `write(path)` writes the model to a path that has the target's file name.
        target: An absolute path; its folder must exist.
        key: Who signs.

    Raises:
        CheckpointError: If the disk is full, the folder read-only, and so on. What was at `target`
            is unchanged, and no temporary file is left.
    """
    try:
        with staging_folder(target.parent) as folder:
            staged = folder / target.name
            write(str(staged))
            files.sync_file(staged)
            signature = make_signature(describe(staged), key)
            staged_signature = folder / (target.name + SIGNATURE_SUFFIX)
            staged_signature.write_bytes(signature)
            files.sync_file(staged_signature)
            with _locked(target.parent):
                _settle(target)
                _put_in_place(staged, staged_signature, target)
    except IsADirectoryError:
        raise
    except OSError as error:
        raise _checkpoint_error(target, error) from error


def _put_in_place(staged: Path, staged_signature: Path, target: Path) -> None:
    signature = signature_path_of(target)
    pending = _pending(target)
    os.replace(staged_signature, pending)
    try:
        files.sync_folder(target.parent)
        os.replace(staged, target)
    except BaseException:
        with contextlib.suppress(OSError):
            pending.unlink()
        raise
    files.sync_folder(target.parent)
    os.replace(pending, signature)
    files.sync_folder(target.parent)


def _pending(target: Path) -> Path:
    signature = signature_path_of(target)
    return signature.with_name(signature.name + PENDING_SUFFIX)


def _settle(target: Path) -> None:
    """Ends what a killed writer began: its signature takes its place if its model is there."""
    pending = _pending(target)
    if not os.path.lexists(pending):
        return
    if _is_signed_by(pending, target):
        os.replace(pending, signature_path_of(target))
    else:
        pending.unlink()
    files.sync_folder(target.parent)


def _is_signed_by(pending: Path, target: Path) -> bool:
    """Whether the digests agree; whose signature it is, is for `verify` to judge, not here."""
    try:
        envelope = Envelope.from_bytes(files.read_limited(pending, MAX_SIGNATURE_BYTES))
        signed = statement.from_bytes(envelope.payload).digests
        return signed == {SINGLE_FILE: files.hash_file(target)}
    except (SignatureError, FileNotFoundError):
        return False


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files in the making: same file system, readable by us alone.

    It is locked while in use, so that another writer can tell it from what a killed one left.
    """
    with _locked(folder):
        _clear(folder)
        path = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
        lock = _try_lock(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def recover(folder: Path) -> None:
    """Settles and clears whatever killed writers left in `folder`.

    Raises:
        CheckpointError: If `folder` is not a writable folder.
    """
    try:
        with _locked(folder):
            _clear(folder)
            for pending in sorted(folder.glob(f"*{SIGNATURE_SUFFIX}{PENDING_SUFFIX}")):
                name = pending.name.removesuffix(SIGNATURE_SUFFIX + PENDING_SUFFIX)
                if name:
                    _settle(folder / name)
        check_writable(folder)
    except CheckpointError:
        raise
    except OSError as error:
        raise _checkpoint_error(folder, error) from error


def check_writable(folder: Path) -> None:
    """Raises `CheckpointError` unless a file can be made in `folder`, which is tried."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
    except OSError as error:
        raise CheckpointError(
            error.errno or errno.EIO,
            f"The folder for checkpoints must be writable. Received: {str(folder)!r} "
            f"({error.strerror}). Choose another `filepath` or change its permissions",
        ) from error


def _checkpoint_error(target: Path, error: OSError) -> CheckpointError:
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    message = (
        f"A signed checkpoint could not be written to {str(target)!r}: {reason}. What was there "
        "before is unchanged. Make room or choose another `filepath`"
    )
    return CheckpointError(error.errno or errno.EIO, message)


def _clear(folder: Path) -> None:
    """Removes staging folders whose makers are gone; the caller holds the folder's lock."""
    for path in folder.glob(f"{_STAGING_PREFIX}*"):
        lock = _try_lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Locks a folder until the descriptor is closed or we die; None if somebody else has it."""
    if _fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:  # a link or a file of that name: not ours
        return None
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other writers in `folder`; without locks (some network disks) it goes ahead."""
    if _fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _fcntl.flock(descriptor, _fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
