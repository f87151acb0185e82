"""Replaces a model and what vouches for it so that a crash at any instant leaves a good set.

Several renames cannot be one atomic step, so the order carries the guarantee (docs/adr/0012):

1. model, signature and statement are written and synced in a private staging folder beside the
   target;
2. the statement becomes `NAME.modelsec.json.next`, the signature `NAME.sig.next`: the old set is
   still whole;
3. the model becomes `NAME`: it now goes with the pending files, which `verify` also accepts;
4. the pending files take their places.

A kill in between is settled by the next writer, or stays as it is and verifies.
"""

import contextlib
import errno
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import CheckpointError, SignatureError
from keras_modelsec.integrity.keys.signing_key import SigningKey
from keras_modelsec.integrity.signatures import statement
from keras_modelsec.integrity.signatures.describing import compare, describe_for_signing
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.envelope import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec.integrity.signatures.model_statement import STATEMENT_SUFFIX, ModelStatement
from keras_modelsec.integrity.signatures.places import PENDING_SUFFIX, SIGNATURE_SUFFIX, Places
from keras_modelsec.integrity.signatures.provenance import collect
from keras_modelsec.integrity.signatures.signing import (
    make_signature,
    make_statement,
    own_statement,
    state,
)

# Elsewhere than on POSIX: no locks, so one writer a folder, and no clearing up after a kill.
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_STAGING_PREFIX = ".modelsec-saving-"


@dataclass(frozen=True)
class Release:
    """What is stated of a model beside its bytes.

    Attributes:
        name: What it is called; None for its file name.
        version: Integer >= 1; None for one more than that of the statement it replaces.
        provenance: Where it comes from, as in `sign`.
    """

    name: str | None = None
    version: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_signed(
    write: Callable[[str], None],
    target: Path,
    keys: Sequence[SigningKey],
    release: Release | None = None,
) -> None:
    """Has `write` make a file or folder, signs it, and puts all in place of what was there.

    Args:
        write: `write(path)` writes the model to a path that has the target's file name.
        target: An absolute path; its folder must exist.
        keys: Who signs; the first makes the OpenSSF signature if it can.
        release: What else is stated.

    Raises:
        CheckpointError: If the disk is full, the folder read-only, and so on. What was at `target`
            is unchanged, and no temporary file is left.
    """
    begin_signed_save(write, target, keys, release)()


def begin_signed_save(
    write: Callable[[str], None],
    target: Path,
    keys: Sequence[SigningKey],
    release: Release | None = None,
) -> Callable[[], None]:
    """The first half of `save_signed`: the model is written, under a name nobody reads.

    Returns:
        The second half, to be called once, in any thread: it syncs, hashes, signs and renames.

    Raises:
        CheckpointError: As `save_signed`; the second half raises it too.
    """
    with contextlib.ExitStack() as stack:
        with _named_errors(target):
            folder = stack.enter_context(staging_folder(target.parent))
            staged = folder / target.name
            write(str(staged))
            if target.is_dir() and not staged.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        rest = stack.pop_all()

    def finish() -> None:
        with rest, _named_errors(target):
            files.sync_tree(staged)
            places = Places.of(target)
            vouchers = _write_vouchers(staged, places, keys, release or Release())
            with _locked(target.parent):
                _settle(target)
                _put_in_place(staged, vouchers, target)

    return finish


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, CheckpointError):
        raise
    except OSError as error:
        raise _checkpoint_error(target, error) from error


def _write_vouchers(
    staged: Path, places: Places, keys: Sequence[SigningKey], release: Release
) -> dict[Path, Path]:
    """Writes signature and statement beside the staged model; where each is by where it goes."""
    earlier = own_statement(places.statement, keys[0])
    said = state(
        describe_for_signing(staged),
        name=release.name or (earlier.model if earlier else staged.name),
        version=release.version or (earlier.version + 1 if earlier else 1),
        provenance=collect(staged, release.provenance),
    )
    data = {places.statement: make_statement(said, keys)}
    if keys[0].verifying_key.makes_openssf:
        data[places.signature] = make_signature(said.manifest, keys[0])
    vouchers = {place: staged.parent / place.name for place in data}
    for place, path in vouchers.items():
        path.write_bytes(data[place])
        files.sync_file(path)
    return vouchers


def _put_in_place(staged: Path, vouchers: Mapping[Path, Path], target: Path) -> None:
    pending = {place: _pending(place) for place in vouchers}
    signature = Places.of(target).signature
    old = staged.parent / signature.name if signature not in vouchers else None
    try:
        for place, path in vouchers.items():
            os.replace(path, pending[place])
        if old is not None:  # of a key that made one; the statement beside it still vouches
            with contextlib.suppress(FileNotFoundError):
                os.replace(signature, old)
        files.sync_folder(target.parent)
        files.replace(staged, target)
    except BaseException:
        if old is not None and os.path.lexists(old):
            os.replace(old, signature)
        for path in pending.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    files.sync_folder(target.parent)
    for place in reversed(pending):
        os.replace(pending[place], place)
    files.sync_folder(target.parent)


def _pending(place: Path) -> Path:
    return place.with_name(place.name + PENDING_SUFFIX)


def _settle(target: Path) -> None:
    """Ends what a killed writer began: its files take their places if its model is there."""
    places = Places.of(target)
    pairs = [
        (places.pending.signature, places.signature, _signed_digests),
        (places.pending.statement, places.statement, _stated_digests),
    ]
    pairs = [pair for pair in pairs if os.path.lexists(pair[0])]
    if not pairs:
        return
    found = dict(compare(target, None).manifest.digests) if os.path.lexists(target) else None
    for pending, place, read in pairs:
        if found is not None and read(pending) == found:
            os.replace(pending, place)
        else:
            pending.unlink()
    files.sync_folder(target.parent)


# Whose signatures these are is for `verify` to judge, not here.


def _signed_digests(pending: Path) -> Mapping[str, str] | None:
    try:
        envelope = Envelope.from_bytes(files.read_limited(pending, MAX_SIGNATURE_BYTES))
        return dict(statement.from_bytes(envelope.payload).digests)
    except (SignatureError, FileNotFoundError):
        return None


def _stated_digests(pending: Path) -> Mapping[str, str] | None:
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(pending, MAX_ENVELOPE_BYTES))
        return dict(ModelStatement.from_bytes(envelope.payload).manifest.digests)
    except (SignatureError, FileNotFoundError):
        return None


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
            for name in _names_of_pending(folder):
                _settle(folder / name)
        check_writable(folder)
    except CheckpointError:
        raise
    except OSError as error:
        raise _checkpoint_error(folder, error) from error


def _names_of_pending(folder: Path) -> list[str]:
    """The models in `folder` for which there are pending files."""
    endings = [f"{suffix}{PENDING_SUFFIX}" for suffix in (SIGNATURE_SUFFIX, STATEMENT_SUFFIX)]
    names = {
        path.name.removesuffix(ending) for ending in endings for path in folder.glob(f"*{ending}")
    }
    return sorted(names - {""})


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
