"""Which version a model is signed as: stated, or counted on from what is known; never from nothing.

Owns the rule, and the counter file. A reader's lowest version (`TrustStore.set_lowest_version`) is
of use only while versions grow, so a count is never begun again where something else was counted.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from keras_modelsec._core.checks import check_integer
from keras_modelsec._signing.dsse import (
    MAX_ENVELOPE_BYTES,
    DsseEnvelope,
    pre_authentication_encoding,
)
from keras_modelsec._signing.keys import SigningKey, VerifyingKey
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec._signing.strict_json import LARGEST_INTEGER
from keras_modelsec._signing.trust import Trust
from keras_modelsec._signing.trust_store import TrustStore
from keras_modelsec._signing.trust_store_contents import EVERY_MODEL
from keras_modelsec._storage import files, locks, publishing
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.statements.model_statement import (
    STATEMENT_SUFFIX,
    STRANGERS_STATEMENT_BYTES,
    ModelStatement,
    read_statement,
)
from keras_modelsec.integrity.statements.places import PENDING_SUFFIX, SIGNATURE_SUFFIX, Places

VersionSource: TypeAlias = "int | TrustStore | str | os.PathLike[str] | None"
_MAX_COUNTER_BYTES = 1 << 20


def check_version(version: VersionSource) -> "int | TrustStore | Path | None":
    """`version` as `sign` takes it, checked; the path of a counter file made absolute.

    Raises:
        TypeError, ValueError: If it is of another type, below 1, or no counter file.
        FileNotFoundError: If there is no such counter file.
    """
    is_number = isinstance(version, str) and version.strip().isdecimal()  # "7": a mistake, no path
    if isinstance(version, (str, os.PathLike)) and not is_number:
        place = files.absolute_path(version)
        _read_counter(place)
        files.check_no_strangers(place)  # who could count anew
        return place
    if version is None or isinstance(version, TrustStore):
        return version
    return check_integer("version", version, minimum=1)


def own_statement(place: Path, *keys: SigningKey) -> ModelStatement | None:
    """The statement at `place` if one of `keys` signed it; None if there is none such."""
    return _stated_by(place, [key.verifying_key for key in keys])


def _stated_by(place: Path, keys: Iterable[VerifyingKey]) -> ModelStatement | None:
    """What is read once, however many keys may have signed it."""
    try:
        trust = Trust({key.hint: key for key in keys})
        return read_statement(place, trust, limit=_most_bytes(place))
    except (SignatureError, OSError):
        return None


def _most_bytes(place: Path) -> int:
    """How long a statement may be: a stranger may have put a pending one into a shared folder."""
    return MAX_ENVELOPE_BYTES if _is_in_force(place) else STRANGERS_STATEMENT_BYTES


def stated_places(places: Places) -> list[Path]:
    """Where statements on a model may be, in place and pending, for `next_version`.

    Where there is none, but a signature: that. Somebody took the statement, and its version, away.
    """
    stated = [places.statement, places.pending.statement]  # of a writer that was killed
    if any(os.path.lexists(place) and _is_in_force(place) for place in stated):
        return stated
    return [*stated, places.signature, places.pending.signature]


def own_lone_signatures(folder: Path, keys: Sequence[SigningKey]) -> list[Path]:
    """The signatures in a folder that one of `keys` made and whose statements are gone."""
    return [
        place
        for place in sorted(folder.glob(f"*{SIGNATURE_SUFFIX}"))
        if files.stranger_at(place) is None
        and not os.path.lexists(place.with_suffix(STATEMENT_SUFFIX))
        and _is_by(place, keys)
    ]


def _is_by(place: Path, keys: Sequence[SigningKey]) -> bool:
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
    except (SignatureError, OSError):
        return False
    signed = pre_authentication_encoding(envelope.payload)
    for key in keys:
        with contextlib.suppress(SignatureError):
            key.verifying_key.check(envelope.signature, signed)
            return True
    return False


def next_version(
    source: "int | TrustStore | Path | None",
    name: str,
    places: Iterable[Path],
    keys: Sequence[SigningKey],
) -> int:
    """The version to sign as.

    Args:
        source: From `check_version`.
        name: The model's name.
        places: Where statements are that this one replaces or follows.
        keys: Whose statements are counted on from.

    Raises:
        ValueError: If one of `places` holds a statement that neither `keys` nor a key of the store
            signed, and nothing says the version, or that statement claims one as high.
    """
    if isinstance(source, int):
        return source
    own, others = [0], []
    for place in places:
        said = own_statement(place, *keys)
        if said is not None:
            own.append(said.version)
        elif os.path.lexists(place):
            others.append(place)
    if isinstance(source, TrustStore):
        known = [_known_version(source, place) for place in others]
        own += [version for version in known if version]
        others = [place for place, version in zip(others, known, strict=True) if not version]
    others = [place for place in others if _is_in_force(place)]
    if isinstance(source, TrustStore):
        own += [source.lowest_versions.get(model, 0) for model in (name, EVERY_MODEL)]
        return _above_others(1 + max(own), others)
    if isinstance(source, Path):
        return _count(source, name, max(own), others)
    if others:
        raise _unknown(others[0])
    return 1 + max(own)


def _is_in_force(place: Path) -> bool:
    """Not so is a pending file that another user made, as anybody can in a shared folder."""
    return not place.name.endswith(PENDING_SUFFIX) or files.is_own(place)


def _above_others(number: int, others: Iterable[Path]) -> int:
    """`number`, unless a statement by a key that nobody vouches for claims to be as high."""
    for place in others:
        said = _unverified(place)
        if said is not None and said.version >= number:
            raise _unknown(place)
    return number


def stated_name(place: Path) -> str | None:
    """The model's name in a statement, whoever signed it; None if it cannot be read."""
    said = _unverified(place)
    return None if said is None else said.model


def _known_version(store: TrustStore, place: Path) -> int | None:
    """What is stated by a key that the store holds; a revoked or expired one has counted too."""
    said = _stated_by(place, [entry.key for entry in store.keys.values()])
    return None if said is None else said.version


def _count(counter: Path, name: str, before: int, others: Sequence[Path]) -> int:
    """Takes the next number; it is used up, whatever becomes of the signature."""
    with locks.locked(counter.parent, counter.name):
        numbers = _read_counter(counter)
        if name not in numbers and others:
            raise _unknown(others[0])
        number = _above_others(1 + max(before, numbers.get(name, 0)), others)
        if number > LARGEST_INTEGER:
            raise ValueError(
                f"A counter must hold versions below 2**53. Received: {str(counter)!r}, where that "
                f"of {name!r} would become {number}. Restore it."
            )
        numbers[name] = number
        data = json.dumps(numbers, indent=1, sort_keys=True).encode("ascii")
        publishing.write_atomically(counter, data + b"\n")
    return numbers[name]


def _read_counter(place: Path) -> dict[str, int]:
    what = "A counter must be a file with a JSON object of names and their last versions"
    try:
        numbers: Any = json.loads(files.read_limited(place, _MAX_COUNTER_BYTES))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{what}. Received: {str(place)!r}, which is not there: a new one would begin again at "
            "1. Get it, or, if nothing was ever signed, make it: a file that holds {}"
        ) from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON
        numbers = None
    if not isinstance(numbers, dict) or not all(
        type(value) is int and value >= 1 for value in numbers.values()
    ):
        raise ValueError(f"{what}. Received: {str(place)!r}, which is none. Restore it.")
    return numbers


def _unverified(place: Path) -> ModelStatement | None:
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(place, _most_bytes(place)))
        return ModelStatement.from_unverified(envelope.payload)
    except (SignatureError, OSError):
        return None


def _unknown(place: Path) -> ValueError:
    said = _unverified(place)
    claim = "cannot be read"
    if place.name.removesuffix(PENDING_SUFFIX).endswith(SIGNATURE_SUFFIX):
        claim = "lies there without its statement, which had the version"
    if said is not None:
        claim = f"says {said.model!r}, version {said.version}, and was signed by another key"
    return ValueError(
        "`version` must be given where another key's statement would be replaced or followed, or "
        "one is gone: a count that begins again below it would undo rollback protection. Received: "
        f"no integer, and {str(place)!r}, which {claim}. State a higher version, name a TrustStore "
        "that holds the earlier key or a counter file that is above it, or sign with the earlier "
        "key too."
    )
