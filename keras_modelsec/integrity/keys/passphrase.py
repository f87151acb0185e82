"""Wraps a small secret under a passphrase: Argon2id, then AES-256-GCM.

Owns the bytes of a wrapped secret, the cost of guessing, and the bounds on what a stored cost may
ask of the reader. Asks nobody for a passphrase (`secrets.py` does) and writes no file.
"""

import hmac
import os
import struct

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keras_modelsec.integrity.errors import KeyFormatError, WrongPasswordError

# RFC 9106's choice for where memory is scarce: 0.18 s on the 2-core machine it was tried on.
MEMORY_KIB, ITERATIONS, LANES = 64 << 10, 3, 4

# What a file may ask for: at most 4 times the memory and some seconds.
_MOST_MEMORY_KIB, _MOST_ITERATIONS, _MOST_LANES = 256 << 10, 16, 16
_MOST_SECRET_BYTES = 64 << 10

_MAGIC = b"MSPW"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBBI16s")  # magic, version, lanes, iterations, 0, memory in KiB, salt
_COMMITMENT_BYTES = 32
_TAG_BYTES = 16
_NONCE = bytes(12)  # each key encrypts once: the salt is new each time
LEAST_BYTES = _HEADER.size + _COMMITMENT_BYTES + _TAG_BYTES


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
        KeyFormatError: If it is no such blob, asks for more than 256 MiB or 16 passes, or OpenSSL
            here has no Argon2id.
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
    return header


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
