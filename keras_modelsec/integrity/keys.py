"""Makes key pairs for signing, and writes them with the care a private key needs."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec._core.checks import check_boolean, check_choice
from keras_modelsec.integrity import files
from keras_modelsec.integrity.pem_encryption import encrypt_pkcs8
from keras_modelsec.integrity.secrets import Password, resolve_password
from keras_modelsec.integrity.signing_key import CURVES, VerifyingKey


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
    curve: str = "p256",
    password: Password = None,
    overwrite: bool = False,
) -> KeyPair:
    """Makes an ECDSA key pair and writes it as two PEM files.

    The private key is PKCS#8, readable by its owner alone (mode 0600 where the system has modes).
    With a password it is encrypted: PBKDF2-HMAC-SHA-512 of 1,000,000 rounds, AES-256-CBC. Without
    one, whoever can read the file can sign in your name.

    Args:
        private_path: Where the private key goes, e.g. "owner.pem". Its folder must exist.
        public_path: Where the public key goes. Defaults to `private_path` with the ending ".pub".
        curve: "p256" (default), "p384" or "p521".
        password: str, bytes, a callable that returns one of them, or None for no encryption.
        overwrite: Whether existing files are replaced. A replaced private key is gone for good.

    Returns:
        The two paths.

    Raises:
        ValueError: If an argument is out of range or both paths are the same.
        FileExistsError: If a file is there and `overwrite` is False; nothing is written then.
        OSError: If a folder is missing or not writable, or a file cannot be written.

    Example:
    ```python
    ms.generate_keys("owner.pem", curve="p384", password=getpass.getpass)
    ```
    """
    curve = check_choice("curve", curve, CURVES)
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
    key = ec.generate_private_key(CURVES[curve])
    pem = _private_pem(key, resolve_password(password))
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


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f"A key file must not exist yet. Received: {str(path)!r}, which does. "
        "Choose another name, or pass overwrite=True to lose the old key."
    )


def _private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None) -> bytes:
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    if password is None:
        return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
    return encrypt_pkcs8(key.private_bytes(serialization.Encoding.DER, pkcs8, plain), password)
