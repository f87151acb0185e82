"""Verifies a model against its signature and statement, more strictly than other tools do.

Owns which files vouch for a model and when they are enough. How a model's bytes are read is in
describing.py, whom to trust in trust.py.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.keys.key_loading import TrustedKeys
from keras_modelsec.integrity.keys.trust import Trust, load_trust
from keras_modelsec.integrity.signatures import statement
from keras_modelsec.integrity.signatures.describing import Comparison, compare
from keras_modelsec.integrity.signatures.envelope import (
    MAX_SIGNATURE_BYTES,
    Envelope,
    pre_authentication_encoding,
)
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.manifest import SINGLE_FILE, Manifest, difference
from keras_modelsec.integrity.signatures.model_statement import ModelStatement, read_statement
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.statement import root_digest

_ATTEMPTS = 8  # to read a model that is being replaced, faster than it can be read, by its owner

# How a model is read: given the statement to compare with, if there is one, and the names inside a
# folder to leave out. It may be called more than once.
ReadModel: TypeAlias = Callable[[ModelStatement | None, Sequence[str]], Comparison]


@dataclass(frozen=True)
class Evidence:
    """What trusted keys say of a model, in one signature, one statement, or both.

    Attributes:
        manifest: File names and their whole digests.
        statement: Our own statement, or None if there is only an OpenSSF signature.
    """

    manifest: Manifest
    statement: ModelStatement | None


def verify(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    progress: Progress = None,
) -> None:
    """Returns None if the model is exactly what a trusted key signed; raises otherwise.

    In this order: `NAME.sig` and `NAME.modelsec.json`, as far as they are there, are parsed
    strictly, their key hints must name trusted keys, the signatures must be those keys', only then
    is what they say parsed; both must speak of the same bytes; and every file must be there with
    the signed bytes and no other file beside them. One of the two files is enough, unless a
    `TrustStore` asks for versions or several signatures, which only the statement has. If no
    trusted key is ECDSA, `NAME.sig`, which none of them can have made, is not looked at.

    The answer holds for the bytes that were read. What is at `path` a moment later may be something
    else: to load a model, use `load_verified_model`, which loads what it verified. That the model
    is the newest one the owner signed is shown only with a `TrustStore` that names the lowest
    version.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: Path of a PEM public key, PEM text or bytes, a `cryptography` key object, a
            list of these, or a `TrustStore`.
        signature_path: Where the signature is; the statement is beside it. Defaults to `path` with
            ".sig" added; pending ones ("NAME.sig.next"), left when `SignOnSave` was killed between
            its renames, then count too if they verify.
        expected_name: The name it must have been signed under (`sign(name=...)`), or None for any.
            Without it, another model of the same owner in the model's place verifies, and a lowest
            version is looked up by the name that was signed.
        progress: Called with bytes done and bytes in all.

    Raises:
        SignatureError: If the signature is missing, malformed, of an unsupported kind or forged, or
            a symbolic link or special file is met.
        UntrustedKeyError: A SignatureError: signed by a key that is not trusted, or no more.
        RolledBackError, RevokedModelError: A SignatureError: a `TrustStore` refuses this model.
        TamperedModelError: A SignatureError: the signature is genuine, the files are not; says
            which file was changed, added or is missing, and which tensors.
        KeyFormatError: If a trusted key cannot be used.
        ValueError: If `trusted_keys` is empty.
        FileNotFoundError: If there is nothing at `path`.
        OSError: If a file cannot be read.

    Example:
    ```python
    ms.verify("model.keras", "owner.pub")
    ```
    """
    trust = load_trust(trusted_keys)
    model_path = files.absolute_path(path)
    files.kind_of(model_path)

    def read_model(guide: ModelStatement | None, skip: Sequence[str]) -> Comparison:
        return compare(model_path, guide, skip=skip, progress=progress)

    explicit = files.absolute_path(signature_path) if signature_path else None
    check_model(model_path, trust, read_model, explicit, expected_name)


def check_model(
    model_path: Path,
    trust: Trust,
    read_model: ReadModel,
    signature_path: Path | None,
    expected_name: str | None = None,
) -> Evidence:
    """Compares what `read_model` finds with what was signed.

    The model is read once, or again while its signature changes under the reader's eyes.

    Args:
        model_path: An absolute path, for the places of signature and statement and the messages.
        trust: Whom the signatures may be by.
        read_model: Reads the model.
        signature_path: An absolute path, or None for the place beside the model.
        expected_name: The name it must have been signed under, or None for any.

    Returns:
        What the trusted keys say of it.

    Raises:
        SignatureError: As `verify` does.
    """
    places = Places.of(model_path, signature_path)
    skip = places.names_inside(model_path)
    for _ in range(_ATTEMPTS):
        # A live SignOnSave may be renaming its files: while we read them, or while we hash.
        expected = read_evidence(places, trust, skip, pending=signature_path is None)
        if not expected:
            continue
        found = read_model(expected[0].statement, skip)
        again = read_evidence(places, trust, skip, pending=signature_path is None)
        agreeing = [item for item in (*expected, *again) if _agree(item.manifest, found.manifest)]
        if agreeing:
            return _first_accepted(agreeing, trust, expected_name)
        if again == expected:
            break
    if not expected:
        raise SignatureError(
            f"Signature and statement must speak of the same bytes. Received: "
            f"{str(places.signature)!r} and {str(places.statement)!r}, which do not. "
            "One of them is older than the other: sign the model again."
        )
    signed = expected[0].manifest
    _check_same_kind(signed, found.manifest, model_path)
    normal = _normalise(signed, found.manifest)
    raise difference(normal, found.manifest, model_path, found.tensor_names())


def _first_accepted(
    agreeing: Sequence[Evidence], trust: Trust, expected_name: str | None
) -> Evidence:
    """The first evidence that is accepted: one in place may be older than one that is pending."""
    refusal: SignatureError | None = None
    for item in agreeing:
        try:
            return check_accepted(item, trust, expected_name)
        except SignatureError as error:
            refusal = refusal or error
    raise refusal or SignatureError("A model must come with evidence. Received: none.")


def check_accepted(evidence: Evidence, trust: Trust, expected_name: str | None = None) -> Evidence:
    """Returns the evidence if the trust store, if there is one, is content with it."""
    if expected_name is not None:
        _check_name(evidence.statement, expected_name)
    said = evidence.statement
    if said is None and trust.requires_statement:
        raise SignatureError(
            "The trust store must be shown a statement (NAME.modelsec.json), since it asks for a "
            "lowest version or several signatures. Received: an OpenSSF signature alone, which "
            "has neither. Sign the model with keras_modelsec."
        )
    digests = evidence.manifest.digests
    root = root_digest(digests[name] for name in sorted(digests))
    name, version = (said.model, said.version) if said else (evidence.manifest.model_name, None)
    trust.check_model(name, version, {root, *digests.values()})
    return evidence


def _check_name(said: ModelStatement | None, expected: str) -> None:
    if said is None or said.model != expected:
        found = "no statement, which alone has a name" if said is None else repr(said.model)
        raise SignatureError(
            f"A model must have been signed under the name that is expected ({expected!r}). "
            f"Received: {found}. Sign it with `name=`, or load the right file."
        )


def read_evidence(
    places: Places, trust: Trust, skip: Sequence[str], *, pending: bool
) -> list[Evidence]:
    """What trusted keys say, by the files in place first, then by pending ones.

    Files in place must be good; pending ones are evidence only if they are. A statement counts only
    together with a signature on the same bytes, as far as there is a signature; who trusts Ed25519
    or ML-DSA keys alone, which make no OpenSSF signature, is not asked about one beside it.

    Returns:
        At least one item, or none if signature and statement disagree.
    """
    trust = _with_certified_keys(places, trust)
    # Pending ones before the others, since they are renamed to them.
    next_signature, next_statement = _read_pending(places, trust, skip) if pending else (None, None)
    said = read_statement(places.statement, trust) if _exists(places.statement) else None
    signed = None
    if _exists(places.signature) and (trust.reads_openssf or said is None):
        signed = read_signature(places.signature, trust, skip)
    signatures = [item for item in (signed, next_signature) if item]
    statements = [item for item in (said, next_statement) if item]
    if not signatures and not statements:
        raise SignatureError(
            f"A model must come with its signature. Received: no file at "
            f"{str(places.signature)!r} nor {str(places.statement)!r}. Sign the model, or say "
            "where its signature is with `signature_path`."
        )
    if not signatures:
        found = [Evidence(item.manifest, item) for item in statements]
    elif not statements:
        found = [Evidence(item, None) for item in signatures]
    else:
        found = [
            Evidence(signature, item)
            for signature in signatures
            for item in statements
            if _agree(signature, item.manifest)
        ]
        if said is None and signed is not None:
            found.append(Evidence(signed, None))
    return found


def _with_certified_keys(places: Places, trust: Trust) -> Trust:
    """The same trust with the keys whose certificates come with the signatures.

    A statement names its signers by hint only; the certificates are in the signature beside it.
    """
    for place in (places.signature, places.pending.signature):
        with contextlib.suppress(SignatureError, OSError):
            envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
            if envelope.certificates:
                trust = trust.including(trust.key_of(envelope))
    return trust


def _exists(place: Path) -> bool:
    return os.path.lexists(place)


def _read_pending(
    places: Places, trust: Trust, skip: Sequence[str]
) -> tuple[Manifest | None, ModelStatement | None]:
    signature, said = None, None
    with contextlib.suppress(SignatureError, OSError):
        said = read_statement(places.pending.statement, trust)
    with contextlib.suppress(SignatureError, OSError):
        signature = read_signature(places.pending.signature, trust, skip)
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
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
        key = trust.key_of(envelope)
        key.check(envelope.signature, pre_authentication_encoding(envelope.payload))
        return statement.from_bytes(envelope.payload, own_names=own_names)
    except SignatureError as error:
        error.args = (f"{str(place)!r}: {error}",)
        raise


def _normalise(expected: Manifest, actual: Manifest) -> Manifest:
    """A single file may be signed under its base name too (the specification's section 6.1)."""
    if actual.is_single_file and tuple(expected.digests) == (actual.model_name,):
        return Manifest(expected.model_name, {SINGLE_FILE: expected.digests[actual.model_name]})
    return expected


def _agree(expected: Manifest, actual: Manifest) -> bool:
    return _normalise(expected, actual).digests == actual.digests


def _check_same_kind(expected: Manifest, actual: Manifest, path: Path) -> None:
    if _normalise(expected, actual).is_single_file != actual.is_single_file:
        found = "a file" if actual.is_single_file else "a folder"
        names = ", ".join(repr(name) for name in sorted(expected.digests)[:5])
        raise SignatureError(
            f"A signature must be for what it is used on. Received: one for {names} (of "
            f"{expected.model_name!r}), with {str(path)!r}, which is {found}. "
            "Use the signature that was made for it."
        )
