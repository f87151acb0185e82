"""Encrypted files, kept as they were written: they must open for ever, as the format's page says.

Made once by `regenerate` below with throw-away keys. `independent` reads them by the page alone,
with another implementation of HKDF and none of the package's code.
"""

import hashlib
import hmac
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keras_modelsec.errors import DecryptionError
from keras_modelsec.integrity.encryption.encrypted_stream import EncryptingWriter
from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPrivateKey,
    EncryptionPublicKey,
)
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase, locks_for

GOLDEN = Path(__file__).parents[2] / "golden" / "integrity" / "encrypted"
RAW_KEY = bytes(range(32))
PHRASE = "test-only passphrase"
PLAIN = {"one-chunk": b"\x00golden model\xff", "several-chunks": bytes(range(256)) * 3 + b"end"}
PRIVATE, WRAPPED = "TEST-ONLY-x-wing.key", "TEST-ONLY-x-wing-wrapped.key"


def keys():
    return {
        "raw key": (RAW_KEY, None),
        "passphrase": (Passphrase(PHRASE), None),
        "recipient": (GOLDEN / PRIVATE, None),
        "wrapped recipient": (GOLDEN / WRAPPED, PHRASE),
    }


@pytest.mark.parametrize("key", list(keys()))
@pytest.mark.parametrize("name", list(PLAIN))
def test_golden_file_opens_and_an_edited_byte_does_not(tmp_path, name, key):
    source, password = keys()[key]
    path = shutil.copy(GOLDEN / f"{name}.enc", tmp_path)
    back = decrypt_file(path, source, password=password)
    assert back.read_bytes() == PLAIN[name]
    data = bytearray(Path(path).read_bytes())
    data[-20] ^= 1
    Path(path).write_bytes(bytes(data))
    with pytest.raises(DecryptionError):
        decrypt_file(path, source, password=password, overwrite=True)


@pytest.mark.parametrize("by_passphrase", [False, True])
@pytest.mark.parametrize("name", list(PLAIN))
def test_the_page_describes_the_format(name, by_passphrase):
    data = (GOLDEN / f"{name}.enc").read_bytes()
    assert independent(data, by_passphrase=by_passphrase) == PLAIN[name]


def test_golden_keys_are_a_pair():
    private = EncryptionPrivateKey.from_pem((GOLDEN / PRIVATE).read_bytes())
    wrapped = EncryptionPrivateKey.from_pem((GOLDEN / WRAPPED).read_bytes(), PHRASE.encode())
    public = EncryptionPublicKey.from_pem((GOLDEN / "x-wing.pub").read_bytes())
    assert private.public_key.raw == wrapped.public_key.raw == public.raw


def hkdf(secret, salt, info, length):
    """RFC 5869 with SHA-256."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output, counter = output + block, counter + 1
    return output[:length]


def independent(data, *, by_passphrase):
    """Decrypts by docs/encryption-format.md, with its labels and numbers written out."""
    assert data[:9] == b"MSENC\r\n\x1a\x01"
    chunk_bytes, count, at, bodies = 1 << data[9], data[10], 12, {}
    for _ in range(count):
        kind, length = data[at], int.from_bytes(data[at + 2 : at + 4], "little")
        bodies[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    if by_passphrase:
        body = bodies[2]
        lanes, iterations = body[5], body[6]
        memory = int.from_bytes(body[8:12], "little")
        derivation = Argon2id(
            salt=body[12:28], length=64, iterations=iterations, lanes=lanes, memory_cost=memory
        )
        derived = derivation.derive(b"test-only passphrase")
        assert derived[32:] == body[28:60]
        purpose = b"keras_modelsec encrypted file v1"
        bound = len(purpose).to_bytes(4, "little") + purpose + body[:28]
        data_key = AESGCM(derived[:32]).decrypt(bytes(12), body[60:], bound)
    else:
        salt = bodies[1][:16]
        label = b"keras_modelsec encrypted file v1 raw key slot"
        wrapping = hkdf(bytes(range(32)), salt, label, 32)
        data_key = AESGCM(wrapping).decrypt(bytes(12), bodies[1][16:], salt)
    info = b"keras_modelsec encrypted file v1" + hashlib.sha256(data[:at]).digest()
    derived = hkdf(data_key, b"", info, 71)
    assert derived[39:] == data[at : at + 32]
    cipher, prefix, body = AESGCM(derived[:32]), derived[32:39], data[at + 32 :]
    chunks = [body[i : i + chunk_bytes + 16] for i in range(0, len(body), chunk_bytes + 16)]
    return b"".join(
        cipher.decrypt(prefix + i.to_bytes(4, "big") + bytes([i == len(chunks) - 1]), chunk, None)
        for i, chunk in enumerate(chunks)
    )


def regenerate() -> None:
    """Writes the golden files anew; only for a deliberate change of format."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    private = EncryptionPrivateKey.generate()
    (GOLDEN / PRIVATE).write_bytes(private.to_pem())
    (GOLDEN / WRAPPED).write_bytes(private.to_pem(PHRASE.encode()))
    (GOLDEN / "x-wing.pub").write_bytes(private.public_key.pem)
    locks = locks_for([RAW_KEY, Passphrase(PHRASE), private.public_key])
    for name, plain in PLAIN.items():
        place = GOLDEN / f"{name}.enc"
        with open(place, "wb") as file, EncryptingWriter(file, locks, chunk_bytes=256) as writer:
            writer.write(plain)
            writer.finish()
