"""Decrypts NAME.enc, by docs/encryption-format.md alone.

python docs/readers/encryption.py MODEL.enc OUTPUT PRIVATE_KEY_FILE [PASSWORD]
"""

import hashlib
import hmac
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from key_files import encryption_seed, unwrap
from signed import RefusedError, require

NAME = b"keras_modelsec encrypted file v1"
LENGTHS = {1: 64, 2: 108, 3: 1168}


def decrypt(data, *, key=None, passphrase=None, seed=None):
    """The plaintext, by a key of 32 bytes, a passphrase, or a private key's seed."""
    known = data[:9] == b"MSENC\r\n\x1a\x01" and data[11:12] == b"\0" and 8 <= data[9] <= 24
    require(known, "not an encrypted file of version 1")
    chunk, at, slots = 1 << data[9], 12, []
    for _ in range(data[10]):
        kind, length = data[at], int.from_bytes(data[at + 2 : at + 4], "little")
        require(LENGTHS.get(kind) == length and not data[at + 1], "an unknown kind of key slot")
        slots.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    info = NAME + hashlib.sha256(data[:at]).digest()
    for kind, body in slots:
        data_key = _open_slot(kind, body, key, passphrase, seed)
        if data_key:
            derived = HKDF(hashes.SHA256(), 71, None, info).derive(data_key)
            require(hmac.compare_digest(derived[39:], data[at : at + 32]), "an altered header")
            return _chunks(AESGCM(derived[:32]), derived[32:39], data[at + 32 :], chunk + 16)
    raise RefusedError("no slot opens with what was given")


def _open_slot(kind, body, key, passphrase, seed):
    try:
        if kind == 1 and key is not None:
            wrapping = HKDF(hashes.SHA256(), 32, body[:16], NAME + b" raw key slot").derive(key)
            return AESGCM(wrapping).decrypt(bytes(12), body[16:], body[:16])
        if kind == 2 and passphrase is not None:
            return unwrap(body, passphrase, NAME)
        return _open_hpke(body, seed) if kind == 3 and seed is not None else None
    except (InvalidTag, RefusedError):
        return None


def _open_hpke(body, seed):
    from cryptography.hazmat.primitives import hpke  # cryptography >= 50
    from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

    expanded = hashlib.shake_256(seed).digest(96)
    first = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    second = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    return suite.decrypt(body, hpke.MLKEM768X25519PrivateKey(first, second), NAME)


def _chunks(cipher, prefix, body, length):
    plain, starts = [], range(0, max(len(body), 1), length)
    try:
        for number, start in enumerate(starts):
            nonce = prefix + number.to_bytes(4, "big") + bytes([start == starts[-1]])
            plain.append(cipher.decrypt(nonce, body[start : start + length], None))
    except (InvalidTag, ValueError):
        raise RefusedError("a chunk was altered, moved or is missing") from None
    return b"".join(plain)


if __name__ == "__main__":
    source, output, pem, *password = sys.argv[1:]
    seed = encryption_seed(Path(pem).read_text(), *password)
    Path(output).write_bytes(decrypt(Path(source).read_bytes(), seed=seed))
