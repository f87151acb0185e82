"""Private keys and other small secrets under a password: Argon2id in a form of our own, or PKCS#8.

Owns the bytes of both, the cost of guessing, and the bounds on what a stored cost may ask of the
reader. For PKCS#8 it also owns the PBES2 parameters, since `cryptography`'s own
`BestAvailableEncryption` stops at 2,048 rounds of PBKDF2; what is written so is standard (RFC 8018,
RFC 5958) and read by everything built on OpenSSL, while the other form is read by this package
alone (docs/adr/0013 says why it is the default). Asks nobody for a password (secrets.py does) and
writes no file.
"""

import base64
import binascii
import hmac
import math
import os
import re
import struct

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from keras_modelsec.errors import KeyFormatError, WrongPasswordError

# RFC 9106's choice for where memory is scarce: 0.18 s on the 2-core machine it was tried on.
MEMORY_KIB, ITERATIONS, LANES = 64 << 10, 3, 4

# What a file may ask for: 4 times the memory, or 4 times the passes, and 4 times the time.
_MOST_MEMORY_KIB, _MOST_ITERATIONS, _MOST_LANES = 256 << 10, 16, 16
MOST_COST = 4 * (64 << 10) * 3  # of memory in KiB times passes; it was 21 times, so 4 s a slot
_MOST_SECRET_BYTES = 64 << 10

_MAGIC = b"MSPW"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBBI16s")  # magic, version, lanes, iterations, 0, memory in KiB, salt
_COMMITMENT_BYTES = 32
_TAG_BYTES = 16
_NONCE = bytes(12)  # each key encrypts once: the salt is new each time
LEAST_BYTES = _HEADER.size + _COMMITMENT_BYTES + _TAG_BYTES

_WRAPPED_LABEL = b"MODELSEC ENCRYPTED PRIVATE KEY"
_PKCS8_LABEL = b"ENCRYPTED PRIVATE KEY"
_WRAPPED = re.compile(
    rb"\s*-----BEGIN %b-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END %b-----\s*"
    % (_WRAPPED_LABEL, _WRAPPED_LABEL)
)
_PURPOSE = b"keras_modelsec private key"

KDF_ROUNDS = 1_000_000  # PBKDF2-HMAC-SHA-512; OWASP 2023 asks for 210,000
_MOST_ROUNDS = 4 * KDF_ROUNDS
_MOST_SCRYPT_MEMORY = 256 << 20  # bytes, as for Argon2id; four times as many are written to
_SALT_BYTES = 16
_AES_BLOCK_BITS = 128

# Object identifiers in DER.
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA512 = bytes.fromhex("06082a864886f70d020b")
_AES256_CBC = bytes.fromhex("060960864801650304012a")
_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_NULL = b"\x05\x00"
_PKCS8 = re.compile(
    rb"-----BEGIN %b-----\s+([A-Za-z0-9+/=\s]+)-----END %b-----" % (_PKCS8_LABEL, _PKCS8_LABEL)
)


def wrap(secret: bytes, password: bytes, *, purpose: bytes) -> bytes:
    """Encrypts a secret under a passphrase.

    Argon2id (64 MiB, 3 passes, 4 lanes, 16 bytes of new salt) gives 64 bytes: a key for AES-256-GCM
    and a commitment that is stored, so that one blob cannot open under two passphrases. The cost
    slows each guess to about 0.2 s and cannot save a word from a dictionary.

    Args:
        secret: What to keep, at most 64 KiB, such as a private key.
        password: Not empty.
        purpose: What the secret is for; `unwrap` must be told the same.

    Returns:
        `magic, parameters, salt (28 bytes) | commitment (32) | ciphertext | tag (16)`.

    Raises:
        KeyFormatError: If OpenSSL here has no Argon2id.
        ValueError: If the secret is too long, or the password or purpose empty.

    Reference: RFC 9106 (Argon2); Len, Grubbs and Ristenpart, Partitioning Oracle Attacks, 2021.
    """
    if len(secret) > _MOST_SECRET_BYTES:
        raise ValueError(
            f"A wrapped secret must have at most {_MOST_SECRET_BYTES} bytes. "
            f"Received: {len(secret)}. Encrypt it as a file."
        )
    _check_arguments(password, purpose)
    salt = os.urandom(16)
    header = _HEADER.pack(_MAGIC, _VERSION, LANES, ITERATIONS, 0, MEMORY_KIB, salt)
    key, commitment = _derive(header, password)
    return header + commitment + AESGCM(key).encrypt(_NONCE, secret, _bound(purpose, header))


def unwrap(blob: bytes, password: bytes, *, purpose: bytes) -> bytes:
    """The secret that `wrap` encrypted.

    Args:
        blob: What `wrap` returned; untrusted, its parameters are bounded before they are used.
        password: The passphrase.
        purpose: The same as when it was wrapped.

    Raises:
        WrongPasswordError: If the password or purpose is another, or the blob was altered.
        KeyFormatError: If it is no such blob, asks for more than 256 MiB, 16 passes or four times
            the cost of `wrap`, or OpenSSL here has no Argon2id.
    """
    _check_arguments(password, purpose)
    header = check_blob(blob)
    key, commitment = _derive(header, password)
    rest = memoryview(blob)[_HEADER.size :]
    if hmac.compare_digest(commitment, bytes(rest[:_COMMITMENT_BYTES])):
        try:
            sealed = bytes(rest[_COMMITMENT_BYTES:])
            return AESGCM(key).decrypt(_NONCE, sealed, _bound(purpose, header))
        except InvalidTag:
            pass
    raise WrongPasswordError(
        "The password must be the one that was set. Received: another, or what it protects was "
        "altered or made for another purpose."
    )


def check_blob(blob: bytes) -> bytes:
    """Returns the header of a wrapped secret, or refuses it before any work is done.

    Raises:
        KeyFormatError: If it is no blob of this version, or its cost is out of bounds.
    """
    if not LEAST_BYTES <= len(blob) <= LEAST_BYTES + _MOST_SECRET_BYTES:
        _refuse(f"have {LEAST_BYTES} to {LEAST_BYTES + _MOST_SECRET_BYTES} bytes", len(blob))
    header = bytes(blob[: _HEADER.size])
    magic, version, lanes, iterations, reserved, memory_kib, _ = _HEADER.unpack(header)
    if (magic, version, reserved) != (_MAGIC, _VERSION, 0):
        _refuse("begin with 'MSPW' and version 1", header[:8].hex())
    if not 1 <= lanes <= _MOST_LANES:
        _refuse(f"ask for 1 to {_MOST_LANES} lanes", lanes)
    if not 1 <= iterations <= _MOST_ITERATIONS:
        _refuse(f"ask for 1 to {_MOST_ITERATIONS} passes", iterations)
    if not 8 * lanes <= memory_kib <= _MOST_MEMORY_KIB:
        _refuse(f"ask for {8 * lanes} to {_MOST_MEMORY_KIB} KiB of memory", memory_kib)
    if memory_kib * iterations > MOST_COST:
        rule = f"ask for at most {MOST_COST} KiB of memory times passes"
        _refuse(rule, f"{memory_kib} KiB and {iterations} passes")
    return header


def cost_of(blob: bytes) -> int:
    """What opening a wrapped secret costs: memory in KiB times passes.

    Raises:
        KeyFormatError: As `check_blob`.
    """
    _, _, _, iterations, _, memory_kib, _ = _HEADER.unpack(check_blob(blob))
    return int(memory_kib * iterations)


def _check_arguments(password: bytes, purpose: bytes) -> None:
    if not password or not purpose:
        raise ValueError(
            "`password` and `purpose` must not be empty. "
            f"Received: an empty {'password' if not password else 'purpose'}."
        )


def _derive(header: bytes, password: bytes) -> tuple[bytes, bytes]:
    _, _, lanes, iterations, _, memory_kib, salt = _HEADER.unpack(header)
    try:
        derivation = Argon2id(
            salt=salt,
            length=32 + _COMMITMENT_BYTES,
            iterations=iterations,
            lanes=lanes,
            memory_cost=memory_kib,
        )
        derived = derivation.derive(password)
    except UnsupportedAlgorithm:
        raise KeyFormatError(
            "Passphrases need Argon2id, which `cryptography` has with OpenSSL 3.2 or later. "
            f"Received: {backend.openssl_version_text()}. Install a wheel of cryptography >= 44 "
            "from the package index, or use a key instead of a passphrase."
        ) from None
    return derived[:32], derived[32:]


def _bound(purpose: bytes, header: bytes) -> bytes:
    return struct.pack("<I", len(purpose)) + purpose + header


def _refuse(rule: str, value: object) -> None:
    raise KeyFormatError(
        f"A secret wrapped under a passphrase must {rule}. Received: {value}. "
        "It was damaged, or was not made by this package."
    )


def wrap_pem(der: bytes, password: bytes) -> bytes:
    """Encrypts a private key under a password: Argon2id (64 MiB, 3 passes), then AES-256-GCM.

    Args:
        der: The key as PKCS#8 `PrivateKeyInfo` in DER.
        password: Not empty.

    Returns:
        `-----BEGIN MODELSEC ENCRYPTED PRIVATE KEY-----` PEM around what `wrap` returns.

    Raises:
        KeyFormatError: If OpenSSL here has no Argon2id.
    """
    return _pem(wrap(der, password, purpose=_PURPOSE), _WRAPPED_LABEL)


def unwrap_pem(pem: bytes, password: bytes) -> bytes:
    """The PKCS#8 DER that `wrap_pem` encrypted.

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
    return unwrap(blob, password, purpose=_PURPOSE)


def is_wrapped_pem(pem: bytes) -> bool:
    """Whether `pem` is in the form that `wrap_pem` writes."""
    return b"-----BEGIN " + _WRAPPED_LABEL in pem


def check_cost_of_pkcs8(pem: bytes) -> None:
    """Refuses an encrypted PKCS#8 key that asks for absurd work, before any of it is done.

    Raises:
        KeyFormatError: If it asks for more than 4,000,000 rounds (PBKDF2, and what came before it),
            or more than 256 MiB or four times as many bytes written (scrypt); or cannot be read.
    """
    found = _PKCS8.search(pem)
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True) if found else b""
        numbers = _integers(der)
    except (binascii.Error, IndexError):
        der, numbers = b"", []
    if not numbers:
        raise KeyFormatError(
            "An encrypted private key must be PKCS#8 with a password-based encryption. Received: "
            "something else. The file was damaged."
        )
    memory, written = 128 * math.prod(numbers[:2]), 128 * math.prod(numbers[:3])
    by_scrypt = _SCRYPT in der
    if max(numbers) > _MOST_ROUNDS or (
        by_scrypt and (memory > _MOST_SCRYPT_MEMORY or written > 4 * _MOST_SCRYPT_MEMORY)
    ):
        raise KeyFormatError(
            f"An encrypted private key must ask for at most {_MOST_ROUNDS} rounds, or scrypt with "
            f"{_MOST_SCRYPT_MEMORY >> 20} MiB. Received: {numbers[:3]}. Encrypt it again, with "
            "fewer, where you trust it."
        )


def _integers(der: bytes) -> list[int]:
    """The integers in DER outside of octet strings; what nests is read in a row.

    Raises:
        IndexError: If it is no DER with short tags.
    """
    numbers, place = [], 0
    while place < len(der):
        tag, size, place = der[place], der[place + 1], place + 2
        if size >= 0x80:
            size, place = (
                int.from_bytes(der[place : place + size - 0x80], "big"),
                place + size - 0x80,
            )
        if tag & 0x1F == 0x1F or place + size > len(der):
            raise IndexError
        if tag == 0x02:
            numbers.append(int.from_bytes(der[place : place + size], "big"))
        place += 0 if tag & 0x20 else size
    return numbers


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
