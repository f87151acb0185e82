"""Encrypts a private key for storage: PKCS#8 with PBES2, in PEM.

Owns the key derivation and its strength, because `cryptography`'s own `BestAvailableEncryption`
stops at 2,048 rounds of PBKDF2. What is written here is standard (RFC 8018, RFC 5958) and is read
by `cryptography`, OpenSSL and everything built on them.
"""

import base64
import os

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

KDF_ROUNDS = 1_000_000  # PBKDF2-HMAC-SHA-512; OWASP 2023 asks for 210,000
_SALT_BYTES = 16
_AES_BLOCK_BITS = 128

# Object identifiers in DER.
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA512 = bytes.fromhex("06082a864886f70d020b")
_AES256_CBC = bytes.fromhex("060960864801650304012a")
_NULL = b"\x05\x00"


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
    return _pem(_sequence(_sequence(_PBES2, parameters), _octets(ciphertext)))


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


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    label = b"ENCRYPTED PRIVATE KEY-----"
    return b"\n".join([b"-----BEGIN " + label, *lines, b"-----END " + label, b""])
