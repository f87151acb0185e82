"""Reads signing keys and trusted keys from what the user has: a path, PEM, or a key object.

Owns the messages about unusable keys. No message ever repeats key material, nor a text that may be
key material.
"""

import os
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec.integrity.errors import KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.secrets import Password, resolve_password
from keras_modelsec.integrity.signing_key import SigningKey, VerifyingKey

PrivateKeySource: TypeAlias = (
    "str | os.PathLike[str] | bytes | ec.EllipticCurvePrivateKey | SigningKey"
)
PublicKeySource: TypeAlias = (
    "str | os.PathLike[str] | bytes | ec.EllipticCurvePublicKey | VerifyingKey"
)
TrustedKeys: TypeAlias = "PublicKeySource | Iterable[PublicKeySource]"

_MAX_KEY_BYTES = 64 << 10
_MAYBE_KEY = re.compile(r"[A-Za-z0-9+/=\s]{100,}")  # bare base64: never shown in a message
_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PRIVATE, _PUBLIC = "signing_key", "trusted_keys"
_REMEDY = "Make a pair with keras_modelsec.generate_keys or `modelsec keygen`."


def load_signing_key(source: PrivateKeySource, password: Password = None) -> SigningKey:
    """Reads a private key.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` elliptic-curve private key,
            or a `SigningKey`.
        password: What the key is encrypted with: str, bytes, or a callable that returns it.

    Raises:
        KeyFormatError: If it is no PEM ECDSA private key on P-256, P-384 or P-521.
        WrongPasswordError: If the password is wrong, missing, or given for a key that has none.
        FileNotFoundError, PermissionError: If the file cannot be read.
    """
    if isinstance(source, SigningKey):
        return source
    if isinstance(source, ec.EllipticCurvePrivateKey):
        return SigningKey(source)
    pem, origin = _read_pem(source, _PRIVATE)
    label = _key_label(pem, _PRIVATE, origin)
    if not label.endswith("PRIVATE KEY"):
        _refuse(_PRIVATE, "a private key", origin, f"a {label}", "Pass the other file of the pair.")
    if label == "OPENSSH PRIVATE KEY":
        _refuse(_PRIVATE, "a PKCS#8 or SEC1 key", origin, "a key in OpenSSH's own format", _REMEDY)
    key = _decrypt(pem, resolve_password(password), origin)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        _refuse(_PRIVATE, "an ECDSA key", origin, f"a {_kind(key)} key", _REMEDY)
    return SigningKey(key)


def load_trusted_keys(source: TrustedKeys) -> dict[str, VerifyingKey]:
    """Reads the public keys that a signature may be made with.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` elliptic-curve public key, a
            `VerifyingKey`, or a list of these. At least one.

    Returns:
        The keys by their hints.

    Raises:
        KeyFormatError: If one is no PEM ECDSA public key on P-256, P-384 or P-521.
        ValueError: If there is none.
        FileNotFoundError, PermissionError: If a file cannot be read.
    """
    single = isinstance(source, (str, os.PathLike, bytes, ec.EllipticCurvePublicKey, VerifyingKey))
    if not single and not isinstance(source, (list, tuple, set, frozenset)):
        _refuse(_PUBLIC, "a public key or a list of them", "", type(source).__name__, _REMEDY)
    sources: Any = [source] if single else source
    keys = [_load_verifying_key(item) for item in sources]
    if not keys:
        raise ValueError(
            "`trusted_keys` must name at least one public key. Received: an empty list. "
            "Trusting nobody verifies nothing."
        )
    return {key.hint: key for key in keys}


def _load_verifying_key(source: Any) -> VerifyingKey:
    if isinstance(source, VerifyingKey):
        return source
    if isinstance(source, ec.EllipticCurvePublicKey):
        return VerifyingKey(source)
    pem, origin = _read_pem(source, _PUBLIC)
    label = _key_label(pem, _PUBLIC, origin)
    if label.endswith("PRIVATE KEY"):
        remedy = "Pass the public key: who only verifies must not hold the private one."
        _refuse(_PUBLIC, "public keys", origin, "a private key", remedy)
    if label != "PUBLIC KEY":
        _refuse(_PUBLIC, "PEM public keys (SubjectPublicKeyInfo)", origin, f"a {label}", _REMEDY)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        _refuse(_PUBLIC, "PEM public keys", origin, "PEM that does not decode", _REMEDY)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        _refuse(_PUBLIC, "ECDSA keys", origin, f"a {_kind(key)} key", _REMEDY)
    return VerifyingKey(key)


def _decrypt(pem: bytes, password: bytes | None, origin: str) -> Any:
    encrypted = b"-----BEGIN ENCRYPTED" in pem or b"Proc-Type: 4,ENCRYPTED" in pem
    if encrypted and password is None:
        raise WrongPasswordError(
            f"`password` must be given for an encrypted key. Received: password=None{origin}. Pass "
            "the password, a callable, or keras_modelsec.integrity.EnvironmentVariable(name); on "
            "the command line, one of the --password options."
        )
    if password is not None and not encrypted:
        raise WrongPasswordError(
            f"`password` must be None for a key that is not encrypted. Received: one{origin}. "
            "Check that this is the intended key file."
        )
    try:
        return serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if not encrypted:
            _refuse(_PRIVATE, "a PEM private key", origin, "PEM that does not decode", _REMEDY)
    raise WrongPasswordError(
        f"`password` must be the one the key was encrypted with. Received: another{origin}, "
        "or the key file is damaged."
    )


def _read_pem(source: Any, argument: str) -> tuple[bytes, str]:
    if isinstance(source, str) and "-----BEGIN" in source:
        source = source.encode("utf-8", "replace")
    if isinstance(source, bytes):
        return source, ""
    if not isinstance(source, (str, os.PathLike)):
        rule = "a path, PEM, or an elliptic-curve key object"
        _refuse(argument, rule, "", type(source).__name__, _REMEDY)
    shown = "a text" if _MAYBE_KEY.fullmatch(os.fspath(source)) else repr(os.fspath(source))
    try:
        with open(source, "rb") as file:  # a link is fine: deployment tools mount keys through them
            return file.read(_MAX_KEY_BYTES + 1), f" in {shown}"
    except (OSError, ValueError) as error:
        kind = type(error) if isinstance(error, OSError) else KeyFormatError
        reason = getattr(error, "strerror", None) or "no possible path"
        raise kind(
            f"`{argument}` must be PEM or the path of a file that can be read. "
            f"Received: {shown} ({reason}). {_REMEDY}"
        ) from None


def _key_label(pem: bytes, argument: str, origin: str) -> str:
    labels = [label.decode("ascii") for label in _PEM_LABEL.findall(pem)]
    labels = [label for label in labels if label != "EC PARAMETERS"]
    if len(pem) > _MAX_KEY_BYTES or len(labels) != 1:
        found = "no PEM" if not labels else f"PEM with {len(labels)} parts"
        _refuse(argument, "PEM with exactly one key", origin, found, _REMEDY)
    return labels[0]


def _kind(key: Any) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")


def _refuse(argument: str, rule: str, origin: str, received: str, remedy: str) -> NoReturn:
    raise KeyFormatError(f"`{argument}` must be {rule}. Received: {received}{origin}. {remedy}")
