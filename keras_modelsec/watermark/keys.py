"""Owns watermark keys: making, checking and deriving from them. The only file that sees key bytes.

What is derived for which purpose stands in `derivation.py`; here is only how.
"""

import itertools
import secrets
import string
from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keras_modelsec.errors import WatermarkKeyError

MIN_KEY_BYTES = 16
GENERATED_KEY_BYTES = 32
_REMEDY = (
    "Make one with ms.watermark.generate_key(), keep it secret, and pass the bytes or their "
    "`.hex()`."
)
_PRINTABLE = frozenset(string.printable.encode())


def generate_key() -> bytes:
    """A new watermark key: 32 bytes from the operating system's generator.

    Use one key per model: a key that marks several models of the same shapes gives them the same
    chips, and averaging the models would then uncover the mark. Keep it secret until a dispute; to
    be able to show that the claim is older than a rival's, have the `key_commitment` of a
    `WatermarkReport` timestamped by somebody else before the model is released.

    Returns:
        The key as bytes; `key.hex()` is the form to write down, and is accepted everywhere.

    Example:
    ```python
    key = ms.watermark.generate_key()
    regularizer = ms.WatermarkRegularizer(key)
    ```
    """
    return secrets.token_bytes(GENERATED_KEY_BYTES)


def _parse_key(key: Any) -> bytes:
    if key is None:
        raise WatermarkKeyError(f"A watermark key is needed. Received: key=None. {_REMEDY}")
    if isinstance(key, str):
        try:
            key = bytes.fromhex(key)
        except ValueError:
            raise WatermarkKeyError(
                "`key` must be hexadecimal digits when it is a string. Received: a string of "
                f"{len(key)} characters that is not. {_REMEDY}"
            ) from None
    if not isinstance(key, (bytes, bytearray)):
        raise WatermarkKeyError(
            f"`key` must be bytes or a hexadecimal string. Received: {type(key).__name__}. "
            f"{_REMEDY}"
        )
    return bytes(key)


def _check_strength(material: bytes) -> None:
    if len(material) < MIN_KEY_BYTES:
        raise WatermarkKeyError(
            f"`key` must be at least {MIN_KEY_BYTES} bytes long. Received: {len(material)} bytes. "
            f"{_REMEDY}"
        )
    # A random 16-byte key meets one of these with a chance below 1e-6.
    steps = {(b - a) % 256 for a, b in itertools.pairwise(material)}
    if len(set(material)) < MIN_KEY_BYTES // 2 or len(steps) < MIN_KEY_BYTES // 4:
        raise WatermarkKeyError(
            "`key` must be random. Received: bytes that repeat or count, which can be guessed. "
            f"{_REMEDY}"
        )
    if _PRINTABLE.issuperset(material):
        raise WatermarkKeyError(
            "`key` must be random. Received: bytes that are all printable text, like a passphrase "
            f"or a hexadecimal key that was encoded (pass that as `str`). {_REMEDY}"
        )


class SecretKey:
    """A checked watermark key that cannot be printed, pickled or copied into a file by accident.

    Args:
        key: At least 16 random bytes, or their hexadecimal form as `str`; 32 are recommended.
            A `SecretKey` is taken as it is.

    Raises:
        WatermarkKeyError: If the key is missing, of another type, too short, or guessable.
    """

    __slots__ = ("_material",)

    def __init__(self, key: Any):
        if isinstance(key, SecretKey):
            self._material: bytes = key._material
            return
        material = _parse_key(key)
        _check_strength(material)
        self._material = material

    @property
    def commitment(self) -> str:
        """64 hexadecimal digits that bind to the key and do not tell it.

        Published before a dispute, in a signed statement say, they show who had which key when.
        """
        return self.derive("keras_modelsec/watermark/commitment/v1").hex()

    def derive(self, info: str, length: int = 32) -> bytes:
        """`length` bytes for the purpose `info`: HKDF-SHA256 (RFC 5869) with an empty salt."""
        return HKDF(hashes.SHA256(), length, salt=None, info=info.encode()).derive(self._material)

    def keystream(self, info: str, length: int) -> bytes:
        """`length` pseudorandom bytes: AES-256-CTR from a zero counter, under `derive(info)`."""
        cipher = Cipher(algorithms.AES256(self.derive(info)), modes.CTR(bytes(16)))
        return cipher.encryptor().update(bytes(length))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "A watermark key must not be pickled or copied. Received: a SecretKey. Pass the key "
            "again where it is needed."
        )

    def __repr__(self) -> str:
        return "SecretKey(...)"
