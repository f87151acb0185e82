"""Key pairs for encryption: whom a file is encrypted for.

Owns the hybrid key encapsulation (X-Wing: ML-KEM-768 with X25519, inside HPKE) and the two files of
a pair. They are other keys than those that sign; one key must not do both.
"""

import base64
import contextlib
import hashlib
import os
import re
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm

from keras_modelsec._core.checks import check_boolean
from keras_modelsec._signing.key_files import KeyPair, new_pair, write_pair
from keras_modelsec._signing.key_wrapping import unwrap, wrap
from keras_modelsec._signing.secrets import Password, resolve_password
from keras_modelsec.errors import KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.encryption import encryption_format
from keras_modelsec.integrity.encryption.encryption_format import Slot

_INFO = b"keras_modelsec encrypted file v1"
_PURPOSE = b"keras_modelsec encryption private key"
_ML_KEM_BYTES = 1184
_PUBLIC_BYTES = _ML_KEM_BYTES + 32
_SEED_BYTES = 32

_PUBLIC = "MODELSEC ENCRYPTION PUBLIC KEY"
_PRIVATE = "MODELSEC ENCRYPTION PRIVATE KEY"
_WRAPPED = "MODELSEC WRAPPED ENCRYPTION PRIVATE KEY"
_MAGIC = b"MSEK\x01"
_CHECK_BYTES = 8  # a public key with a flipped bit would encrypt for nobody
_MOST_PEM_BYTES = 64 << 10
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END \1-----\s*")


class EncryptionPublicKey:
    """Whom to encrypt for. It is no secret, and opens nothing.

    Args:
        raw: The X-Wing encapsulation key: ML-KEM-768's (1,184 bytes), then X25519's (32).

    Raises:
        KeyFormatError: If it is none, or `cryptography` is too old for it.
    """

    def __init__(self, raw: bytes):
        if len(raw) != _PUBLIC_BYTES:
            _refuse(f"have {_PUBLIC_BYTES} bytes", f"{len(raw)}")
        self._raw = bytes(raw)
        with _supported():
            from cryptography.hazmat.primitives import hpke
            from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

            self._key = hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(self._raw[:_ML_KEM_BYTES]),
                x25519.X25519PublicKey.from_public_bytes(self._raw[_ML_KEM_BYTES:]),
            )

    @property
    def raw(self) -> bytes:
        """The key as X-Wing defines it."""
        return self._raw

    @property
    def fingerprint(self) -> str:
        """What to compare over another channel: hex SHA-256 of `raw`."""
        return hashlib.sha256(self._raw).hexdigest()

    @property
    def pem(self) -> bytes:
        """The key as text for a file."""
        return _to_pem(_PUBLIC, _with_check(self._raw))

    @classmethod
    def from_pem(cls, pem: bytes) -> "EncryptionPublicKey":
        """Reads what `pem` gives.

        Raises:
            KeyFormatError: If it is something else, or damaged.
        """
        label, data = _from_pem(pem)
        if label in (_PRIVATE, _WRAPPED):
            _refuse("be the public one", "a private key", "Who encrypts needs no private key.")
        if label != _PUBLIC:
            _refuse(f"be a {_PUBLIC}", f"a {label}", "Keys for signing do not encrypt.")
        return cls(_checked(data))

    def seal(self, data_key: bytes) -> Slot:
        """Wraps a data key so that only the private key's holder gets it (HPKE, RFC 9180)."""
        return Slot(encryption_format.RECIPIENT, _suite().encrypt(data_key, self._key, _INFO))

    def __repr__(self) -> str:
        return f"EncryptionPublicKey({self.fingerprint[:16]}...)"


class EncryptionPrivateKey:
    """What opens the files that were encrypted for its public key; in no repr, copy or pickle.

    Args:
        seed: The X-Wing decapsulation key: 32 random bytes.

    Raises:
        KeyFormatError: If it is none, or `cryptography` is too old for it.

    Reference: draft-connolly-cfrg-xwing-kem-10, section 5.2 (key generation from the seed).
    """

    kind = encryption_format.RECIPIENT

    def __init__(self, seed: bytes):
        if len(seed) != _SEED_BYTES:
            _refuse(f"have {_SEED_BYTES} bytes", f"{len(seed)}")
        self._seed = bytes(seed)
        expanded = hashlib.shake_256(self._seed).digest(96)
        with _supported():
            from cryptography.hazmat.primitives import hpke
            from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

            first = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
            second = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
            self._key = hpke.MLKEM768X25519PrivateKey(first, second)
        self.public_key = EncryptionPublicKey(
            first.public_key().public_bytes_raw() + second.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> "EncryptionPrivateKey":
        """A new key."""
        return cls(os.urandom(_SEED_BYTES))

    def to_pem(self, password: bytes | None = None) -> bytes:
        """The key as text for a file, wrapped under the password if there is one."""
        data = _with_check(self._seed)
        if password is None:
            return _to_pem(_PRIVATE, data)
        return _to_pem(_WRAPPED, wrap(data, password, purpose=_PURPOSE))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> "EncryptionPrivateKey":
        """Reads what `to_pem` gives.

        Raises:
            KeyFormatError: If it is something else, or damaged.
            WrongPasswordError: If the password is wrong, missing, or given where there is none.
        """
        label, data = _from_pem(pem)
        if label == _PUBLIC:
            _refuse("be the private one", "a public key", "A public key only encrypts.")
        if label not in (_PRIVATE, _WRAPPED):
            _refuse(f"be a {_PRIVATE}", f"a {label}", "Keys for signing do not decrypt.")
        if (label == _WRAPPED) != (password is not None):
            given = "one for a key that is not encrypted" if password else "none"
            raise WrongPasswordError(
                "`password` must be given for an encrypted private key, and for no other. "
                f"Received: {given}. Pass the password, a callable or "
                "keras_modelsec.trust.EnvironmentVariable(name)."
            )
        if password is not None:
            data = unwrap(data, password, purpose=_PURPOSE)
        return cls(_checked(data))

    def open(self, body: bytes) -> bytes | None:
        """The data key in a slot, or None if the slot is another recipient's or was altered."""
        try:
            return _suite().decrypt(body, self._key, _INFO)
        except (InvalidTag, ValueError):
            return None

    def __repr__(self) -> str:
        return f"EncryptionPrivateKey({self.public_key!r})"

    def __copy__(self) -> "EncryptionPrivateKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "EncryptionPrivateKey":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A private key must not be pickled. Received: a request to pickle an "
            "EncryptionPrivateKey. Load the key in the process that decrypts."
        )


def generate_encryption_keys(
    private_path: "str | os.PathLike[str]",
    public_path: "str | os.PathLike[str] | None" = None,
    *,
    password: Password = None,
    overwrite: bool = False,
) -> KeyPair:
    """Makes a key pair for encryption and writes it as two files.

    Files are encrypted for the public key, which is no secret, and opened with the private one. The
    pair is a hybrid of ML-KEM-768 and X25519 (X-Wing): files recorded today stay closed as long as
    one of the two holds, also against a quantum computer. Whoever loses the private key, or its
    password, loses what was encrypted for it: encrypt for a second key that is kept elsewhere.

    Args:
        private_path: Where the private key goes (mode 0600), e.g. "alice.key". Its folder must
            exist.
        public_path: Where the public key goes. Defaults to `private_path` with the ending ".pub".
        password: str, bytes or a callable; the private key is then wrapped with Argon2id and
            AES-256-GCM. None (default): whoever can read the file can decrypt.
        overwrite: Whether existing files are replaced. A replaced private key is gone for good.

    Returns:
        The two paths.

    Raises:
        ValueError: If both paths are the same.
        FileExistsError: If a file is there and `overwrite` is False; nothing is written then.
        KeyFormatError: If `cryptography` here has no ML-KEM.
        OSError: If a folder is missing or not writable.

    Example:
    ```python
    ms.encryption.generate_encryption_keys("alice.key", "alice.pub")
    ms.save_encrypted(model, "model.keras.enc", "alice.pub")
    ```

    Reference: draft-connolly-cfrg-xwing-kem; RFC 9180 (HPKE).
    """
    check_boolean("overwrite", overwrite)
    pair = new_pair(private_path, public_path, overwrite)
    key = EncryptionPrivateKey.generate()
    write_pair(pair, key.to_pem(resolve_password(password)), key.public_key.pem, overwrite)
    return pair


def _suite() -> Any:
    from cryptography.hazmat.primitives import hpke

    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@contextlib.contextmanager
def _supported() -> Any:
    try:
        yield
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        raise KeyFormatError(
            "Encrypting for public keys needs ML-KEM and HPKE in `cryptography`. Received: a "
            "version without them. Install cryptography >= 50 from the package index, or use a "
            "passphrase or a 32-byte key."
        ) from None
    except ValueError:
        _refuse("be a key", "bytes that are none")


def _with_check(data: bytes) -> bytes:
    body = _MAGIC + data
    return body + hashlib.sha256(body).digest()[:_CHECK_BYTES]


def _checked(data: bytes) -> bytes:
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check or body[: len(_MAGIC)] != _MAGIC:
        _refuse("be whole", "one whose checksum does not agree")
    return body[len(_MAGIC) :]


def _to_pem(label: str, data: bytes) -> bytes:
    text = base64.b64encode(data).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _from_pem(pem: bytes) -> tuple[str, bytes]:
    match = _PEM.fullmatch(pem.strip()) if len(pem) <= _MOST_PEM_BYTES else None
    if match is None:
        _refuse("be PEM with one key", "something else")
    try:
        data = base64.b64decode(re.sub(rb"[\r\n]", b"", match[2]), validate=True)
    except ValueError:
        _refuse("be PEM with one key", "PEM that does not decode")
    return match[1].decode("ascii"), data


def _refuse(rule: str, received: str, remedy: str = "") -> NoReturn:
    remedy = remedy or "Make a pair with keras_modelsec.encryption.generate_encryption_keys."
    raise KeyFormatError(f"A key for encryption must {rule}. Received: {received}. {remedy}")
