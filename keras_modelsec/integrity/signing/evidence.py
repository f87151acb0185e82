"""What trusted keys say of a model: signature and statement read, verified, and accepted or not.

Owns which of the two files must be there and agree, and the one rule by which what was signed is
wanted (name, lowest version, revocation). Whom to trust is in trust.py; comparing a model with what
was signed is in verifying.py.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, pre_authentication_encoding
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError, UntrustedKeyError
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest
from keras_modelsec.integrity.statements.model_statement import (
    ModelStatement,
    most_statement_bytes,
    read_signed_statement,
)
from keras_modelsec.integrity.statements.openssf_statement import root_digest
from keras_modelsec.integrity.statements.places import Places

ATTEMPTS = 8  # to read a model that is being replaced, faster than it can be read, by its owner


@dataclass(frozen=True)
class Evidence:
    """What trusted keys say of a model, in one signature, one statement, or both.

    Attributes:
        manifest: File names and their whole digests.
        statement: Our own statement, or None if there is only an OpenSSF signature.
        signers: Hints of the trusted keys that have signed it, each with who that is, for people.
        ignored: What the reader said not to look at and was there: names of files not signed.
    """

    manifest: Manifest
    statement: ModelStatement | None
    signers: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


def check_accepted(evidence: Evidence, trust: Trust, expected_name: str | None = None) -> Evidence:
    """Returns the evidence if the trust store, if there is one, is content with it."""
    said = evidence.statement
    if said is None and trust.requires_statement:
        raise SignatureError(
            "A statement (NAME.modelsec.json) must be there where several signatures are asked "
            "for (`threshold`, or a trust store's) or a lowest version. Received: an OpenSSF "
            "signature alone, which has neither. Sign the model with keras_modelsec."
        )
    name, version = (said.model, said.version) if said else (None, None)
    check_claim(evidence.manifest, name, version, trust, expected_name)
    return evidence


def check_claim(
    manifest: Manifest,
    name: str | None,
    version: int | None,
    trust: Trust,
    expected_name: str | None = None,
) -> None:
    """Refuses what trusted keys signed of a model if it is not wanted: the one rule for everybody.

    Args:
        manifest: The signed files.
        name: The signed name, or None if the signature has none.
        version: The signed version, or None if the signature has none.
        trust: Whose store may have revoked it, or ask for a later version.
        expected_name: The name it must have been signed under, or None for any.

    Raises:
        RolledBackError, RevokedModelError: If the store refuses it.
        SignatureError: If it has another name.
    """
    if expected_name is not None:
        _check_name(name, expected_name)
    digests = manifest.digests
    root = root_digest(digests[file] for file in sorted(digests))
    trust.check_model(name or manifest.model_name, version, {root, *digests.values()})


def _check_name(name: str | None, expected: str) -> None:
    if name != expected:
        found = "no statement, which alone has a name" if name is None else repr(name)
        raise SignatureError(
            f"A model must have been signed under the name that is expected ({expected!r}). "
            f"Received: {found}. Sign it with `name=`, or load the right file."
        )


def believed(
    path: Path, trust: Trust, signature: Path | None, expected_name: str | None = None
) -> list[Evidence]:
    """What trusted keys say of the model at `path`; several items if a pending one is there.

    For those who compare a model in their own way; `check_model` compares it whole.

    Args:
        path: An absolute path.
        trust: Whom to believe.
        signature: Where the signature is, or None for beside the model.
        expected_name: The name it must have been signed under, or None for any.

    Returns:
        At least one item that the trust store, if there is one, is content with.

    Raises:
        SignatureError: As `verify` raises it.
    """
    places = Places.of(path, signature)
    own = places.names_inside(path, openssf=trust.reads_openssf)
    for _ in range(ATTEMPTS):
        found = read_evidence(places, trust, own, pending_of=path if signature is None else None)
        if found:
            return _accepted(found, trust, expected_name)
    raise SignatureError(
        f"Signature and statement must speak of the same bytes. Received: "
        f"{str(places.signature)!r} and {str(places.statement)!r}, which do not. "
        "One of them is older than the other: remove it, or sign the model again."
    )


def _accepted(found: Sequence[Evidence], trust: Trust, expected_name: str | None) -> list[Evidence]:
    accepted, reasons = [], []
    for item in found:
        try:
            accepted.append(check_accepted(item, trust, expected_name))
        except SignatureError as error:
            reasons.append(error)
    if not accepted:
        raise reasons[0]
    return accepted


def read_evidence(
    places: Places, trust: Trust, skip: Sequence[str], *, pending_of: Path | None
) -> list[Evidence]:
    """What trusted keys say, by the files in place first, then by pending ones.

    Files in place must be good; pending ones are evidence only if they are. A statement counts only
    together with a signature on the same bytes, as far as there is a signature; who trusts Ed25519
    or ML-DSA keys alone, which make no OpenSSF signature, is not asked about one beside it.

    Args:
        places: Where they are.
        trust: Whom to believe.
        skip: Names inside the model's folder to leave out.
        pending_of: The model's path if pending ones count. A statement that is longer than one on
            this model can be is not read: in a shared folder anybody may have put it there.

    Returns:
        At least one item, or none if signature and statement disagree.
    """
    trust = with_certified_keys([places, *([places.pending] if pending_of else [])], trust)
    # Pending ones before the others, since they are renamed to them.
    next_signature, next_statement = (
        _read_pending(places, trust, skip, pending_of) if pending_of else (None, None)
    )
    said = _read_statement(places.statement, trust) if _exists(places.statement) else None
    signed = None
    if _exists(places.signature) and (trust.reads_openssf or said is None):
        signed = _read_signature(places.signature, trust, skip)
    signatures = [item for item in (signed, next_signature) if item]
    statements = [item for item in (said, next_statement) if item]
    if not signatures and not statements:
        raise SignatureError(
            f"A model must come with its signature. Received: no file at "
            f"{str(places.signature)!r} nor {str(places.statement)!r}. Sign the model, or say "
            "where its signature is with `signature_path`."
        )
    if not signatures:
        return statements
    if not statements:
        return signatures
    found = [
        replace(item, manifest=signature.manifest, signers=_joined(item, signature))
        for signature in signatures
        for item in statements
        if agree(signature.manifest, item.manifest)
    ]
    if said is None and signed is not None:
        found.append(signed)
    return found


def _joined(*items: Evidence) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys(signer for item in items for signer in item.signers))


def _read_statement(place: Path, trust: Trust, limit: int = MAX_ENVELOPE_BYTES) -> Evidence:
    said, hints = read_signed_statement(place, trust, limit=limit)
    return Evidence(said.manifest, said, tuple((hint, trust.describe(hint)) for hint in hints))


def with_certified_keys(places: Iterable[Places], trust: Trust) -> Trust:
    """The same trust with the keys whose certificates come with the signatures.

    A statement names its signers by hint only; the certificates are in the signature beside it.
    Why certificates are refused is remembered, for the message.
    """
    for place in places:
        with contextlib.suppress(SignatureError, OSError):
            data = files.read_limited(place.signature, MAX_SIGNATURE_BYTES)
            trust = with_certificates_of(data, trust)
    return trust


def with_certificates_of(signature: bytes, trust: Trust) -> Trust:
    """As `with_certified_keys`, of a signature's bytes.

    Raises:
        SignatureError: If they are no signature.
    """
    envelope = Envelope.from_bytes(signature)
    if not envelope.certificates:
        return trust
    try:
        return trust.including(trust.certified(envelope.certificates))
    except UntrustedKeyError as error:
        return trust.refusing(error)


def _exists(place: Path) -> bool:
    return os.path.lexists(place)


def _read_pending(
    places: Places, trust: Trust, skip: Sequence[str], model: Path
) -> tuple[Evidence | None, Evidence | None]:
    signature, said = None, None
    with contextlib.suppress(SignatureError, OSError):
        if _exists(places.pending.statement):
            most = most_statement_bytes(files.lengths(model))
            said = _read_statement(places.pending.statement, trust, most)
    with contextlib.suppress(SignatureError, OSError):
        signature = _read_signature(places.pending.signature, trust, skip)
    return signature, said


def read_signature(place: Path, trust: Trust, own_names: Sequence[str] = ()) -> Manifest:
    """What the signature file at `place` says, once a trusted key's signature on it is verified.

    Args:
        place: The file.
        trust: Whom it may be by.
        own_names: Names of signature and statement, if they lie inside the signed folder.

    Raises:
        SignatureError: If it is malformed or forged; UntrustedKeyError if no trusted key made it.
        OSError: If it cannot be read.
    """
    return _read_signature(place, trust, own_names).manifest


def _read_signature(place: Path, trust: Trust, own_names: Sequence[str]) -> Evidence:
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
        key = trust.key_of(envelope.hint, envelope.certificates)
        key.check(envelope.signature, pre_authentication_encoding(envelope.payload))
        manifest = openssf_statement.from_bytes(envelope.payload, own_names=own_names)
        return Evidence(manifest, None, ((key.hint, trust.describe(key.hint)),))
    except SignatureError as error:
        error.args = (f"{str(place)!r}: {error}",)
        raise


def normalise(expected: Manifest, actual: Manifest) -> Manifest:
    """A single file may be signed under its base name too (the specification's section 6.1)."""
    if actual.is_single_file and tuple(expected.digests) == (actual.model_name,):
        return Manifest(expected.model_name, {SINGLE_FILE: expected.digests[actual.model_name]})
    return expected


def agree(expected: Manifest, actual: Manifest) -> bool:
    """Whether two manifests speak of the same bytes."""
    return normalise(expected, actual).digests == actual.digests
