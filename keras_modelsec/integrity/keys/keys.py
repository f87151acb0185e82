"""Makes key pairs for signing, and writes them with the care a private key needs."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization

from keras_modelsec._core.checks import check_boolean, check_choice
from keras_modelsec.integrity import files
from keras_modelsec.integrity.keys.algorithms import ALGORITHMS, CURVES
from keras_modelsec.integrity.keys.pem_encryption import encrypt_pkcs8, wrap
from keras_modelsec.integrity.keys.signing_key import VerifyingKey
from keras_modelsec.integrity.secrets import Password, resolve_password

WRAPPINGS = ("argon2id", "pkcs8")


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
    algorithm: str | None = None,
    curve: str | None = None,
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
        curve: The older name of `algorithm`, for the first three.
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
    algorithm = _check_algorithm(algorithm, curve)
    wrapping = check_choice("wrapping", wrapping, WRAPPINGS)
    overwrite = check_boolean("overwrite", overwrite)
    private = files.absolute_path(private_path)
    public = files.absolute_path(public_path) if public_path else private.with_suffix(".pub")
    if private == public:
        raise ValueError(
            "`public_path` must differ from `private_path`. Received: "
            f"{str(public)!r} for both. Name the public key's file."
        )
    for path in (private, public):
        if not overwrite and os.path.lexists(path):
            raise _exists(path)
        files.check_target(path)
    key = ALGORITHMS[algorithm].generate()
    pem = _private_pem(key, resolve_password(password), wrapping)
    files.write_atomically(private, pem, mode=0o600, overwrite=overwrite)
    try:
        pem = VerifyingKey(key.public_key()).pem
        files.write_atomically(public, pem, mode=0o644, overwrite=overwrite)
    except BaseException:
        if not overwrite:
            with contextlib.suppress(OSError):
                private.unlink()  # half a pair is of no use and would block the next attempt
        raise
    return KeyPair(private, public)


def _check_algorithm(algorithm: str | None, curve: str | None) -> str:
    if curve is None:
        return str(
            check_choice("algorithm", "p256" if algorithm is None else algorithm, ALGORITHMS)
        )
    if algorithm is not None:
        raise ValueError(
            "`curve` must be left out when `algorithm` is given. "
            f"Received: curve={curve!r}, algorithm={algorithm!r}. `curve` is its older name."
        )
    return str(check_choice("curve", curve, CURVES))


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f"A key file must not exist yet. Received: {str(path)!r}, which does. "
        "Choose another name, or pass overwrite=True (on the command line, --force) to lose the "
        "old key."
    )


def _private_pem(key: Any, password: bytes | None, wrapping: str) -> bytes:
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    if password is None:
        pem: bytes = key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
        return pem
    der = key.private_bytes(serialization.Encoding.DER, pkcs8, plain)
    return wrap(der, password) if wrapping == "argon2id" else encrypt_pkcs8(der, password)
