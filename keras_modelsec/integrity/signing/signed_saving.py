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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_modelsec._core.interrupts import held_back
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec._storage import files, publishing
from keras_modelsec._storage.staging import (
    PREFIX,
    check_closed_to_others,
    clear,
    locked_for_writing,
    made,
    staging_folder,
)
from keras_modelsec.errors import CheckpointError, LockedError, SignatureError
from keras_modelsec.integrity.signing.describing import Description, compare, describe_for_signing
from keras_modelsec.integrity.signing.provenance import collect
from keras_modelsec.integrity.signing.signing import make_signature, make_statement, state
from keras_modelsec.integrity.signing.versions import own_statement
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.model_statement import STATEMENT_SUFFIX, ModelStatement
from keras_modelsec.integrity.statements.places import PENDING_SUFFIX, SIGNATURE_SUFFIX, Places


@dataclass(frozen=True)
class Release:
    """What is stated of a model beside its bytes.

    Attributes:
        name: What it is called; None for its file name.
        version: Integer >= 1; None, for backups alone, whose versions nobody compares, for one more
            than that of the statement it replaces, if that is on the same name.
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

    def now(path: str) -> None:
        write(path)

    begin_signed_save(now, target, keys, release)()


# What writes the model in the second half; it says what it wrote if it hashed that meanwhile.
Later = Callable[[], Description | None]


def begin_signed_save(
    write: Callable[[str], Later | None],
    target: Path,
    keys: Sequence[SigningKey],
    release: Release | None = None,
) -> Callable[[], None]:
    """The first half of `save_signed`: the model is written, under a name nobody reads, or held.

    Args:
        write: As in `save_signed`; or it keeps the model as it is now, and returns what writes it.
        target: As in `save_signed`.
        keys: As in `save_signed`.
        release: As in `save_signed`.

    Returns:
        The second half, to be called once, in any thread: it syncs, hashes, signs and renames.

    Raises:
        CheckpointError: As `save_signed`; the second half raises it too.
    """
    with contextlib.ExitStack() as stack:
        with _named_errors(target):
            _check_no_strangers(target)
            folder = stack.enter_context(staging_folder(target.parent, for_signing=True))
            staged = folder / target.name
            with held_back():  # HDF5 and Keras lose a Ctrl-C between them
                later = write(str(staged))
            if target.is_dir() and not staged.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        rest = stack.pop_all()

    def finish() -> None:
        with rest, _named_errors(target):
            with held_back():
                written = later() if later else None
            publishing.sync_tree(staged)
            places = Places.of(target)
            vouchers = _write_vouchers(staged, written, places, keys, release or Release())
            with locked_for_writing(target.parent):
                _settle(target)
                _put_in_place(staged, vouchers, target)

    return finish


def _check_no_strangers(target: Path) -> None:
    """Refuses, before anything is written, a name that another user has taken in a shared folder.

    Once our files are in place nobody but us and root can rename or replace them there.
    """
    places = Places.of(target)
    for place in (target, places.signature, places.statement):
        stranger = files.stranger_at(place)
        if stranger is not None:
            raise CheckpointError(
                errno.EPERM,
                "A signed checkpoint must be new or this user's own where others may write too. "
                f"Received: {str(place)!r}, which user {stranger} put there. Choose a folder of "
                "your own",
            )


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, CheckpointError):
        raise
    except OSError as error:
        raise _checkpoint_error(target, error) from error


def _write_vouchers(
    staged: Path,
    written: Description | None,
    places: Places,
    keys: Sequence[SigningKey],
    release: Release,
) -> dict[Path, Path]:
    """Writes signature and statement beside the staged model; where each is by where it goes."""
    name = release.name or staged.name  # never what a file says that anybody may have put there
    earlier = own_statement(places.statement, *keys)
    before = earlier.version if earlier and earlier.model == name else 0
    said = state(
        written or describe_for_signing(staged),
        name=name,
        version=release.version or before + 1,
        provenance=collect(staged, release.provenance),
    )
    data = {places.statement: make_statement(said, keys)}
    if keys[0].verifying_key.makes_openssf:
        data[places.signature] = make_signature(said.manifest, keys[0])
    vouchers = {place: staged.parent / place.name for place in data}
    for place, path in vouchers.items():
        path.write_bytes(data[place])
        publishing.sync_file(path)
    return vouchers


def _put_in_place(staged: Path, vouchers: Mapping[Path, Path], target: Path) -> None:
    pending = {place: _pending(place) for place in vouchers}
    signature = Places.of(target).signature
    old = staged.parent / signature.name if signature not in vouchers else None
    new = os.stat(staged)
    try:
        for place, path in vouchers.items():
            os.replace(path, pending[place])
        if old is not None:  # of a key that made one; the statement beside it still vouches
            with contextlib.suppress(FileNotFoundError):
                os.replace(signature, old)
        publishing.sync_folder(target.parent)
        publishing.replace(staged, target)
    except BaseException:
        if os.path.lexists(target) and os.path.samestat(os.lstat(target), new):
            raise  # Ctrl-C came just after the rename: the pending files are the new model's
        if old is not None and os.path.lexists(old):
            os.replace(old, signature)
        for path in reversed(pending.values()):  # no signature is ever without its statement
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    publishing.sync_folder(target.parent)
    for place in reversed(pending):
        os.replace(pending[place], place)
    publishing.sync_folder(target.parent)


def _pending(place: Path) -> Path:
    return place.with_name(place.name + PENDING_SUFFIX)


def _settle(target: Path) -> None:
    """Ends what a killed writer began: its files take their places if its model is there.

    What others may create in a folder with the sticky bit is left as it is: it says nothing of what
    we wrote, may be impossible to remove, and must not replace what is good.
    """
    places = Places.of(target)
    pairs = [
        (places.pending.signature, places.signature, _signed_digests),
        (places.pending.statement, places.statement, _stated_digests),
    ]
    pairs = [pair for pair in pairs if files.is_own(pair[0])]
    if not pairs:
        return
    files.check_no_strangers(target)  # who could make it as long as the disk, and have us read it
    found = dict(compare(target, None).manifest.digests) if os.path.lexists(target) else None
    for pending, place, read in pairs:
        said = None
        with contextlib.suppress(SignatureError, FileNotFoundError):
            said = dict(read(pending))
        if found is not None and said == found:
            os.replace(pending, place)
        else:
            pending.unlink()
    publishing.sync_folder(target.parent)


# Whose signatures these are is for `verify` to judge, not here: this user wrote the files.


def _signed_digests(pending: Path) -> Mapping[str, str]:
    envelope = Envelope.from_bytes(files.read_limited(pending, MAX_SIGNATURE_BYTES))
    return openssf_statement.from_bytes(envelope.payload).digests


def _stated_digests(pending: Path) -> Mapping[str, str]:
    envelope = DsseEnvelope.from_bytes(files.read_limited(pending, MAX_ENVELOPE_BYTES))
    return ModelStatement.from_unverified(envelope.payload).manifest.digests


def recover(folder: Path) -> None:
    """Settles and clears whatever killed writers left in `folder`.

    Raises:
        CheckpointError: If `folder` is not a writable folder.
    """
    with _named_errors(folder):
        with locked_for_writing(folder):
            clear(folder)
            for name in _names_of_pending(folder):
                _settle(folder / name)
        check_writable(folder)


def _names_of_pending(folder: Path) -> list[str]:
    """The models in `folder` for which there are pending files of this user."""
    endings = [f"{suffix}{PENDING_SUFFIX}" for suffix in (SIGNATURE_SUFFIX, STATEMENT_SUFFIX)]
    names = {
        path.name.removesuffix(ending)
        for ending in endings
        for path in folder.glob(f"*{ending}")
        if files.is_own(path)
    }
    return sorted(names - {""})


def check_writable(folder: Path) -> None:
    """Raises `CheckpointError` unless we can make a file in `folder`, and nobody else can."""
    try:
        with made(folder, PREFIX):
            check_closed_to_others(folder)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            error.errno or errno.EIO,
            f"The folder for checkpoints must be writable. Received: {str(folder)!r} "
            f"({error.strerror}). Choose another `filepath` or change its permissions",
        ) from error


def _checkpoint_error(target: Path, error: OSError) -> CheckpointError:
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    if isinstance(error, LockedError):
        reason = str(error.strerror)
    message = (
        f"A signed checkpoint could not be written to {str(target)!r}: {reason}. What was there "
        "before is unchanged. Make room or choose another `filepath`"
    )
    return CheckpointError(error.errno or errno.EIO, message)
