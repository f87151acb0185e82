"""Encrypts a private key for storage, in PEM: Argon2id in a block of our own, or PKCS#8 with PBES2.

Owns both forms and, for PKCS#8, the strength of the key derivation, because `cryptography`'s own
`BestAvailableEncryption` stops at 2,048 rounds of PBKDF2. What is written as PKCS#8 is standard
(RFC 8018, RFC 5958) and is read by `cryptography`, OpenSSL and everything built on them; the other
form is read by this package alone (docs/adr/0013 says why it is the default).
"""

import base64
import binascii
import os
import re

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from keras_modelsec.integrity.errors import KeyFormatError
from keras_modelsec.integrity.keys import passphrase

_WRAPPED_LABEL = b"MODELSEC ENCRYPTED PRIVATE KEY"
_PKCS8_LABEL = b"ENCRYPTED PRIVATE KEY"
_WRAPPED = re.compile(
    rb"\s*-----BEGIN %b-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END %b-----\s*"
    % (_WRAPPED_LABEL, _WRAPPED_LABEL)
)
_PURPOSE = b"keras_modelsec private key"

KDF_ROUNDS = 1_000_000  # PBKDF2-HMAC-SHA-512; OWASP 2023 asks for 210,000
_SALT_BYTES = 16
_AES_BLOCK_BITS = 128

# Object identifiers in DER.
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA512 = bytes.fromhex("06082a864886f70d020b")
_AES256_CBC = bytes.fromhex("060960864801650304012a")
_NULL = b"\x05\x00"


def wrap(der: bytes, password: bytes) -> bytes:
    """Encrypts a private key under a password: Argon2id (64 MiB, 3 passes), then AES-256-GCM.

    Args:
        der: The key as PKCS#8 `PrivateKeyInfo` in DER.
        password: Not empty.

    Returns:
        `-----BEGIN MODELSEC ENCRYPTED PRIVATE KEY-----` PEM around what `passphrase.wrap` returns.

    Raises:
        KeyFormatError: If OpenSSL here has no Argon2id.
    """
    return _pem(passphrase.wrap(der, password, purpose=_PURPOSE), _WRAPPED_LABEL)


def unwrap(pem: bytes, password: bytes) -> bytes:
    """The PKCS#8 DER that `wrap` encrypted.

    Raises:
        WrongPasswordError: If the password is another, or the file was altered.
        KeyFormatError: If it is no such PEM, or asks for an absurd cost.
    """
    found = _WRAPPED.fullmatch(pem)
    try:
        blob = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        blob = b""
    if not blob:
        raise KeyFormatError(
            f"An encrypted key must be base64 between its {_WRAPPED_LABEL.decode()} lines. "
            "Received: something else. The file was damaged."
        )
    return passphrase.unwrap(blob, password, purpose=_PURPOSE)


def is_wrapped(pem: bytes) -> bool:
    """Whether `pem` is in the form that `wrap` writes."""
    return b"-----BEGIN " + _WRAPPED_LABEL in pem


def encrypt_pkcs8(der: bytes, password: bytes) -> bytes:
    """Encrypts a private key under a password.

    PBKDF2-HMAC-SHA-512, 1,000,000 rounds, 16 bytes of salt, AES-256-CBC. The password is what an
    attacker who has the file must guess: the rounds slow each guess to about half a second of a
    CPU, and cannot save a word from a dictionary. The encryption hides the key and does not
    authenticate it.

    Args:
        der: The key as PKCS#8 `PrivateKeyInfo` in DER.
        password: Not empty.

    Returns:
        `-----BEGIN ENCRYPTED PRIVATE KEY-----` PEM.

    Reference: RFC 8018 (PKCS#5 v2.1), sections 5.2 and 6.2.
    """
    salt, initial_vector = os.urandom(_SALT_BYTES), os.urandom(_AES_BLOCK_BITS // 8)
    key = PBKDF2HMAC(hashes.SHA512(), 32, salt, KDF_ROUNDS).derive(password)
    padder = padding.PKCS7(_AES_BLOCK_BITS).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(initial_vector)).encryptor()
    padded = padder.update(der) + padder.finalize()
    ciphertext = encryptor.update(padded) + encryptor.finalize()

    derivation = _sequence(_octets(salt), _integer(KDF_ROUNDS), _sequence(_HMAC_SHA512, _NULL))
    scheme = _sequence(_AES256_CBC, _octets(initial_vector))
    parameters = _sequence(_sequence(_PBKDF2, derivation), scheme)
    return _pem(_sequence(_sequence(_PBES2, parameters), _octets(ciphertext)), _PKCS8_LABEL)


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(content: bytes) -> bytes:
    return _tagged(0x04, content)


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _pem(der: bytes, label: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN %b-----" % label, *lines, b"-----END %b-----" % label, b""])
