"""Verifies a model against its signature, more strictly than the format's own tool does."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from keras_modelsec.integrity import files, statement
from keras_modelsec.integrity.envelope import (
    MAX_SIGNATURE_BYTES,
    Envelope,
    pre_authentication_encoding,
)
from keras_modelsec.integrity.errors import SignatureError, UntrustedKeyError
from keras_modelsec.integrity.key_loading import TrustedKeys, load_trusted_keys
from keras_modelsec.integrity.manifest import SINGLE_FILE, Manifest, describe, difference
from keras_modelsec.integrity.signing import name_inside, signature_path_of
from keras_modelsec.integrity.signing_key import VerifyingKey

PENDING_SUFFIX = ".next"
_ATTEMPTS = 8  # to read a model that is being replaced, faster than it can be read, by its owner


def verify(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
) -> None:
    """Returns None if the model is exactly what a trusted key signed; raises otherwise.

    In this order: the signature file is parsed strictly, its key hint must name a trusted key, the
    signature must be that key's, only then is the signed statement parsed, and every file must be
    there with the signed SHA-256 and no other file beside them.

    The answer holds for the bytes that were read. What is at `path` a moment later may be something
    else: to load a model, use `load_verified_model`, which loads what it verified. Nor does it show
    that the model is the newest one the owner signed.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: Path of a PEM public key, PEM text or bytes, a `cryptography` key object, or a
            list of these.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added; a pending
            `path.sig.next`, left when `SignOnSave` was killed between its two renames, then
            counts too if it verifies.

    Raises:
        SignatureError: If the signature is missing, malformed, of an unsupported kind or forged, or
            a symbolic link or special file is met.
        UntrustedKeyError: A SignatureError: signed by a key that is not trusted.
        TamperedModelError: A SignatureError: the signature is genuine, the files are not; says
            which file was changed, added or is missing.
        KeyFormatError: If a trusted key cannot be used.
        ValueError: If `trusted_keys` is empty.
        FileNotFoundError: If there is nothing at `path`.
        OSError: If a file cannot be read.

    Example:
    ```python
    ms.verify("model.keras", "owner.pub")
    ```
    """
    keys = load_trusted_keys(trusted_keys)
    model_path = files.absolute_path(path)
    kind = files.kind_of(model_path)

    def read_model(skip: str | None) -> Manifest:
        return describe(model_path, skip=[skip] if skip and kind == "folder" else [])

    explicit = files.absolute_path(signature_path) if signature_path else None
    check_model(model_path, keys, read_model, explicit)


def check_model(
    model_path: Path,
    keys: Mapping[str, VerifyingKey],
    read_model: Callable[[str | None], Manifest],
    signature_path: Path | None,
) -> None:
    """Compares what `read_model` finds with what was signed.

    The model is read once, or again while its signature changes under the reader's eyes.

    Args:
        model_path: An absolute path, for the signature's place and the messages.
        keys: Trusted keys by hint.
        read_model: `read_model(skip) -> Manifest` hashes the model, leaving out the signature
            file if it lies inside; it may be called more than once.
        signature_path: An absolute path, or None for the place beside the model.

    Raises:
        SignatureError: As `verify` does.
    """
    place = signature_path or signature_path_of(model_path)
    own_name = name_inside(place, model_path)
    places = (place,) if signature_path else (place, place.with_name(place.name + PENDING_SUFFIX))
    for _ in range(_ATTEMPTS):
        expected = _read_signed(places, keys, own_name)
        actual = read_model(own_name)
        if any(_agree(item, actual) for item in expected):
            return
        # A live SignOnSave may have renamed both files while we hashed, or have done so again.
        again = _read_signed(places, keys, own_name)
        if any(_agree(item, actual) for item in again):
            return
        if again == expected:
            break
    _check_same_kind(expected[0], actual, model_path)
    raise difference(_normalise(expected[0], actual), actual, model_path)


def _read_signed(
    places: tuple[Path, ...], keys: Mapping[str, VerifyingKey], own_name: str | None
) -> list[Manifest]:
    """What trusted keys signed: by the signature in place, and by a pending one if there is one.

    A signature in place must be good; a pending one is evidence only if it is.
    """
    pending = _read_pending(places[1:], keys, own_name)  # before the other: it is renamed to it
    if not os.path.lexists(places[0]):
        if pending:
            return pending
        raise SignatureError(
            f"A model must come with its signature. Received: no file at {str(places[0])!r}. "
            "Sign the model, or say where its signature is with `signature_path`."
        )
    return [read_signature(places[0], keys, own_name), *pending]


def _read_pending(
    places: tuple[Path, ...], keys: Mapping[str, VerifyingKey], own_name: str | None
) -> list[Manifest]:
    manifests = []
    for place in places:
        try:
            manifests.append(read_signature(place, keys, own_name))
        except (SignatureError, OSError):
            continue
    return manifests


def read_signature(
    place: Path, keys: Mapping[str, VerifyingKey], own_name: str | None = None
) -> Manifest:
    """What the signature file at `place` says, once a trusted key's signature on it is verified.

    Raises:
        SignatureError: If it is malformed or forged; UntrustedKeyError if no trusted key made it.
        OSError: If it cannot be read.
    """
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
        key = keys.get(envelope.hint)
        if key is None:
            trusted = ", ".join(f"{hint[:16]}..." for hint in keys)
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({trusted}). Received: one by key "
                f"{envelope.hint[:16]}... If that is the owner's, add it to `trusted_keys`."
            )
        key.check(envelope.signature, pre_authentication_encoding(envelope.payload))
        return statement.from_bytes(envelope.payload, signature_name=own_name)
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
