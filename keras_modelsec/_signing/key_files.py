"""Key files: makes pairs, and reads keys from a path, PEM, an object or a callable.

Owns the care a private key's file needs, and the messages about unusable keys. No message ever
repeats key material, nor a text that may be key material.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

from cryptography.hazmat.primitives import serialization

from keras_modelsec._core.checks import check_boolean, check_choice
from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.algorithms import (
    ALGORITHMS,
    is_mldsa,
    kind_of_key,
    mldsa_is_missing,
)
from keras_modelsec._signing.keys import (
    PrivateKey,
    PublicKey,
    SigningKey,
    VerifyingKey,
)
from keras_modelsec._signing.secrets import Password, resolve_password
from keras_modelsec._storage import files, publishing
from keras_modelsec.errors import KeyFormatError, WrongPasswordError

PrivateKeySource: TypeAlias = (
    "str | os.PathLike[str] | bytes | PrivateKey | SigningKey | Callable[[], Any]"
)
PublicKeySource: TypeAlias = "str | os.PathLike[str] | bytes | PublicKey | VerifyingKey"

WRAPPINGS = ("argon2id", "pkcs8")
_MAX_KEY_BYTES = 64 << 10
_MAYBE_KEY = re.compile(r"[A-Za-z0-9+/=\s]{100,}")  # bare base64: never shown in a message
_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_PRIVATE, _PUBLIC = "signing_key", "trusted_keys"
_REMEDY = "Make a pair with keras_modelsec.generate_keys or `modelsec keygen`."


class KeyPair(NamedTuple):
    """Where a pair was written.

    Attributes:
        private_path: The signing key; keep it secret.
        public_path: The key others trust; give it to them by a way an attacker cannot change.
    """

    private_path: Path
    public_path: Path


def generate_keys(
    private_path: "str | os.PathLike[str]",
    public_path: "str | os.PathLike[str] | None" = None,
    *,
    algorithm: str = "p256",
    password: Password = None,
    wrapping: str = "argon2id",
    overwrite: bool = False,
) -> KeyPair:
    """Makes a key pair and writes it as two PEM files.

    The private key is PKCS#8, readable by its owner alone (mode 0600 where the system has modes).
    With a password it is encrypted: Argon2id (64 MiB, 3 passes) and AES-256-GCM, in a form that
    this package alone reads; or, with `wrapping="pkcs8"`, PBKDF2-HMAC-SHA-512 of 1,000,000 rounds
    and AES-256-CBC, which OpenSSL and other signing tools read. Without a password, whoever can
    read the file can sign in your name.

    ECDSA keys sign both `NAME.sig` and `NAME.modelsec.json`; Ed25519 and ML-DSA-65 keys can only
    co-sign the second. ML-DSA-65 is the one that a quantum computer is not known to break.

    Args:
        private_path: Where the private key goes, e.g. "owner.pem". Its folder must exist.
        public_path: Where the public key goes. Defaults to `private_path` with the ending ".pub".
        algorithm: "p256" (default), "p384" or "p521" (ECDSA), "ed25519" or "ml-dsa-65".
        password: str, bytes, a callable that returns one of them, or None for no encryption.
        wrapping: How the password protects the key: "argon2id" (default) or "pkcs8".
        overwrite: Whether existing files are replaced. A replaced private key is gone for good.

    Returns:
        The two paths.

    Raises:
        ValueError: If an argument is out of range or both paths are the same.
        KeyFormatError: If the installed `cryptography` has no ML-DSA, or no Argon2id.
        FileExistsError: If a file is there and `overwrite` is False; nothing is written then.
        OSError: If a folder is missing or not writable, or a file cannot be written.

    Example:
    ```python
    ms.generate_keys("owner.pem", algorithm="p384", password=getpass.getpass)
    ```
    """
    algorithm = check_choice("algorithm", algorithm, ALGORITHMS)
    wrapping = check_choice("wrapping", wrapping, WRAPPINGS)
    overwrite = check_boolean("overwrite", overwrite)
    pair = new_pair(private_path, public_path, overwrite)
    key = ALGORITHMS[algorithm].generate()
    pem = _private_pem(key, resolve_password(password), wrapping)
    write_pair(pair, pem, VerifyingKey(key.public_key()).pem, overwrite)
    return pair


def new_pair(
    private_path: "str | os.PathLike[str]",
    public_path: "str | os.PathLike[str] | None",
    overwrite: bool,
) -> KeyPair:
    """Where a pair of any kind is to be written, once it is sure that it can be.

    Raises:
        ValueError, FileExistsError, OSError: As for `generate_keys`.
    """
    private = files.absolute_path(private_path)
    public = files.absolute_path(public_path) if public_path else private.with_suffix(".pub")
    if private == public:
        raise ValueError(
            "`public_path` must differ from `private_path`. Received: "
            f"{str(public)!r} for both. Name the public key's file."
        )
    for path in (private, public):
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(
                f"A key file must not exist yet. Received: {str(path)!r}, which does. Choose "
                "another name, or pass overwrite=True (on the command line, --force) to lose the "
                "old key and what it opens."
            )
        publishing.check_target(path)
    return KeyPair(private, public)


def write_pair(pair: KeyPair, private_pem: bytes, public_pem: bytes, overwrite: bool) -> None:
    """Writes both files, the private one readable by its owner alone; or none, if both are new."""
    publishing.write_atomically(pair.private_path, private_pem, mode=0o600, overwrite=overwrite)
    try:
        publishing.write_atomically(pair.public_path, public_pem, mode=0o644, overwrite=overwrite)
    except BaseException:
        if not overwrite:
            with contextlib.suppress(OSError):
                pair.private_path.unlink()  # half a pair would block the next attempt
        raise


def _private_pem(key: Any, password: bytes | None, wrapping: str) -> bytes:
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    if password is None:
        pem: bytes = key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
        return pem
    der = key.private_bytes(serialization.Encoding.DER, pkcs8, plain)
    if wrapping == "argon2id":
        return key_wrapping.wrap_pem(der, password)
    return key_wrapping.encrypt_pkcs8(der, password)


def load_signing_key(source: PrivateKeySource, password: Password = None) -> SigningKey:
    """Reads a private key.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` private key, a `SigningKey`
            (`ExternalSigner` is one), or a callable that returns PEM or a key:
            `EnvironmentVariable(name)` for a variable that holds PEM, or a function that asks a
            secret store. What a callable returns is never taken for a path.
        password: What the key is encrypted with: str, bytes, or a callable that returns it.

    Raises:
        KeyFormatError: If it is no PEM private key of a known algorithm (ECDSA on P-256, P-384 or
            P-521, Ed25519, ML-DSA-65).
        WrongPasswordError: If the password is wrong, missing, or given for a key that has none.
        FileNotFoundError, PermissionError: If the file cannot be read.

    Example:
    ```python
    key = ms.trust.load_signing_key("owner.pem")
    ms.sign("model.keras", key)  # reads no key file, asks for no password
    ```
    """
    if callable(source):
        source = _call(source)
    if isinstance(source, SigningKey):
        return source
    if _is_private_key(source):
        return SigningKey(source)
    pem, origin = read_pem(source, _PRIVATE)
    label = _key_label(pem, _PRIVATE, origin)
    if not label.endswith("PRIVATE KEY"):
        _refuse(_PRIVATE, "a private key", origin, f"a {label}", "Pass the other file of the pair.")
    if label == "OPENSSH PRIVATE KEY":
        _refuse(_PRIVATE, "a PKCS#8 or SEC1 key", origin, "a key in OpenSSH's own format", _REMEDY)
    key = _decrypt(pem, resolve_password(password), origin)
    _check_kind(key, _PRIVATE, origin)
    return SigningKey(key)


def load_trusted_keys(
    source: "PublicKeySource | Iterable[PublicKeySource]",
) -> dict[str, VerifyingKey]:
    """Reads the public keys that a signature may be made with.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` public key, a
            `VerifyingKey`, or a list of these. At least one.

    Returns:
        The keys by their hints.

    Raises:
        KeyFormatError: If one is no PEM public key of a known algorithm.
        ValueError: If there is none.
        FileNotFoundError, PermissionError: If a file cannot be read.
    """
    keys = [load_verifying_key(item) for item in as_list(source)]
    if not keys:
        raise ValueError(
            "`trusted_keys` must name at least one public key. Received: an empty list. "
            "Trusting nobody verifies nothing."
        )
    return {key.hint: key for key in keys}


def as_list(source: Any, argument: str = _PUBLIC) -> list[Any]:
    """`source` if it is a list, tuple or set, as a list; otherwise a list of it alone."""
    if isinstance(source, (list, tuple, set, frozenset)):
        return list(source)
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes, os.PathLike)):
        _refuse(argument, "a public key or a list of them", "", type(source).__name__, _REMEDY)
    return [source]


def load_verifying_key(source: PublicKeySource, argument: str = _PUBLIC) -> VerifyingKey:
    """Reads one public key.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` public key, or a
            `VerifyingKey`.
        argument: What the user calls it, for messages.

    Raises:
        KeyFormatError: If it is no PEM public key of a known algorithm.
        FileNotFoundError, PermissionError: If the file cannot be read.
    """
    if isinstance(source, VerifyingKey):
        return source
    if _is_public_key(source):
        return VerifyingKey(source)
    pem, origin = read_pem(source, argument)
    if pem.lstrip()[:1] == b"{":
        remedy = "Load a trust store with keras_modelsec.TrustStore.load(path, root_keys)."
        _refuse(argument, "PEM public keys", origin, "JSON", remedy)
    label = _key_label(pem, argument, origin)
    if label.endswith("PRIVATE KEY"):
        remedy = "Pass the public key: who only verifies must not hold the private one."
        _refuse(argument, "public keys", origin, "a private key", remedy)
    if label == "CERTIFICATE":
        remedy = "Wrap root certificates as keras_modelsec.trust.TrustedRoots."
        _refuse(argument, "PEM public keys", origin, "a CERTIFICATE", remedy)
    if label != "PUBLIC KEY":
        _refuse(argument, "PEM public keys (SubjectPublicKeyInfo)", origin, f"a {label}", _REMEDY)
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception:  # a parser of untrusted bytes: InternalError and others for odd DER
        _refuse_undecodable(pem, argument, "PEM public keys", origin)
    _check_kind(key, argument, origin)
    return VerifyingKey(key)


def _call(source: Callable[[], Any]) -> Any:
    value = source()
    if isinstance(value, str) and "-----BEGIN" not in value:
        origin = f" from {type(source).__name__}"
        _refuse(
            _PRIVATE, "PEM when it comes from a callable", origin, "a text that is none", _REMEDY
        )
    if not isinstance(value, (str, bytes, SigningKey)) and not _is_private_key(value):
        rule = "a callable that returns PEM or a private key"
        _refuse(_PRIVATE, rule, "", f"one that returned {type(value).__name__}", _REMEDY)
    return value


def _is_private_key(value: Any) -> bool:
    return hasattr(value, "private_bytes") and hasattr(value, "public_key")


def _is_public_key(value: Any) -> bool:
    return hasattr(value, "public_bytes") and hasattr(value, "verify")


def _check_kind(key: Any, argument: str, origin: str) -> None:
    if not any(algorithm.owns(key) for algorithm in ALGORITHMS.values()):
        rule = f"of one of the algorithms {', '.join(ALGORITHMS)}"
        _refuse(argument, rule, origin, f"a key of {kind_of_key(key)}", _REMEDY)


def _decrypt(pem: bytes, password: bytes | None, origin: str) -> Any:
    own = key_wrapping.is_wrapped_pem(pem)
    encrypted = own or b"-----BEGIN ENCRYPTED" in pem or b"Proc-Type: 4,ENCRYPTED" in pem
    if encrypted and password is None:
        raise WrongPasswordError(
            f"`password` must be given for an encrypted key. Received: password=None{origin}. Pass "
            "the password, a callable, or keras_modelsec.trust.EnvironmentVariable(name); on "
            "the command line, one of the --password options."
        )
    if password is not None and not encrypted:
        raise WrongPasswordError(
            f"`password` must be None for a key that is not encrypted. Received: one{origin}. "
            "Check that this is the intended key file."
        )
    encoded = pem
    try:
        if own and password is not None:
            encoded = key_wrapping.unwrap_pem(pem, password)
            return serialization.load_der_private_key(encoded, None)
        if b"-----BEGIN ENCRYPTED" in pem:
            key_wrapping.check_cost_of_pkcs8(pem)
        return serialization.load_pem_private_key(encoded, password)
    except WrongPasswordError:
        pass
    except KeyFormatError as error:
        error.args = (f"{error}{origin}",)
        raise
    except Exception:  # as for public keys
        if not encrypted or own:
            _refuse_undecodable(encoded, _PRIVATE, "a PEM private key", origin)
    raise WrongPasswordError(
        f"`password` must be the one the key was encrypted with. Received: another{origin}, "
        "or the key file is damaged."
    )


def _refuse_undecodable(data: bytes, argument: str, rule: str, origin: str) -> NoReturn:
    if is_mldsa(data):
        raise mldsa_is_missing()
    received = "PEM that does not decode"
    if b"ENCRYPTION PRIVATE KEY" in data:
        received = "a key for encryption, which does not sign,"
    _refuse(argument, rule, origin, received, _REMEDY)


def read_pem(source: Any, argument: str, what: str = "") -> tuple[bytes, str]:
    """The bytes of a small file or text, and where they come from, for messages.

    Args:
        source: A path, or PEM as text or bytes.
        argument: What the user calls it.
        what: What it should hold if not a key, for messages.

    Raises:
        KeyFormatError: If it is nothing of the kind.
        FileNotFoundError, PermissionError: If the file cannot be read.
    """
    if isinstance(source, str) and "-----BEGIN" in source:
        source = source.encode("utf-8", "replace")
    if isinstance(source, bytes):
        return source, ""
    remedy = "" if what else f" {_REMEDY}"
    if not isinstance(source, (str, os.PathLike)):
        rule = f"a path, PEM, or a {what or 'key'} object"
        _refuse(argument, rule, "", type(source).__name__, remedy.strip())
    shown = "a text" if _MAYBE_KEY.fullmatch(os.fspath(source)) else repr(os.fspath(source))
    try:
        with open(source, "rb") as file:  # a link is fine: deployment tools mount keys through them
            return file.read(_MAX_KEY_BYTES + 1), f" in {shown}"
    except (OSError, ValueError) as error:
        kind = type(error) if isinstance(error, OSError) else KeyFormatError
        reason = getattr(error, "strerror", None) or "no possible path"
        raise kind(
            f"`{argument}` must be PEM or the path of a file that can be read. "
            f"Received: {shown} ({reason}).{remedy}"
        ) from None


def _key_label(pem: bytes, argument: str, origin: str) -> str:
    labels = [label.decode("ascii") for label in _PEM_LABEL.findall(pem)]
    labels = [label for label in labels if label != "EC PARAMETERS"]
    if len(pem) > _MAX_KEY_BYTES or len(labels) != 1:
        found = "no PEM" if not labels else f"PEM with {len(labels)} parts"
        _refuse(argument, "PEM with exactly one key", origin, found, _REMEDY)
    return labels[0]


def _refuse(argument: str, rule: str, origin: str, received: str, remedy: str) -> NoReturn:
    raise KeyFormatError(f"`{argument}` must be {rule}. Received: {received}{origin}. {remedy}")
