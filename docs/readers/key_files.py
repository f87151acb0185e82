"""Opens the private keys that keras_modelsec writes, by docs/key-format.md alone.

python docs/readers/key_files.py owner.pem PASSWORD    prints the key as PKCS#8, NOT encrypted
"""

import base64
import hashlib
import hmac
import re
import struct
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from signed import RefusedError, require

SIGNING = "MODELSEC ENCRYPTED PRIVATE KEY"
ENCRYPTION = "MODELSEC ENCRYPTION PRIVATE KEY"
WRAPPED_ENCRYPTION = "MODELSEC WRAPPED ENCRYPTION PRIVATE KEY"


def unwrap(blob, password, purpose):
    """The secret inside, if the password is right and nothing was altered."""
    header, commitment, sealed = blob[:28], blob[28:60], blob[60:]
    require(len(sealed) >= 16, "not a wrapped secret")
    magic, lanes, passes, reserved, memory, salt = struct.unpack("<5sBBBI16s", header)
    require((magic, reserved) == (b"MSPW\x01", 0), "not a wrapped secret of version 1")
    bounded = 1 <= lanes <= 16 and 1 <= passes <= 16 and 8 * lanes <= memory <= 262_144
    require(bounded and passes * memory <= 786_432, "it asks for more work than is allowed")
    kdf = Argon2id(salt=salt, length=64, iterations=passes, lanes=lanes, memory_cost=memory)
    derived = kdf.derive(password.encode())
    require(hmac.compare_digest(derived[32:], commitment), "another password, or altered")
    bound = len(purpose).to_bytes(4, "little") + purpose + header
    try:
        return AESGCM(derived[:32]).decrypt(bytes(12), sealed, bound)
    except InvalidTag:
        raise RefusedError("altered, or made for another purpose") from None


def blocks(pem):
    """The label of a PEM file, and its bytes."""
    found = re.fullmatch(r"\s*-----BEGIN ([A-Z ]+)-----\s([\w+/=\s]+)-----END \1-----\s*", pem)
    require(found, "not a PEM file")
    return found[1], base64.b64decode("".join(found[2].split()), validate=True)


def signing_key(pem, password):
    """The private key in a file of `ms.generate_keys(password=...)`, as `cryptography` has it."""
    label, blob = blocks(pem)
    require(label == SIGNING, f"a {label}")
    der = unwrap(blob, password, b"keras_modelsec private key")
    return serialization.load_der_private_key(der, None)


def encryption_seed(pem, password=None):
    """The 32 bytes of a private key of `ms.encryption.generate_encryption_keys`."""
    label, data = blocks(pem)
    if label == WRAPPED_ENCRYPTION and password is not None:
        data = unwrap(data, password, b"keras_modelsec encryption private key")
    else:
        require(label == ENCRYPTION, f"a {label}, or no password")
    checked = hashlib.sha256(data[:-8]).digest()[:8] == data[-8:]
    require(data[:5] == b"MSEK\x01" and checked, "the key was damaged")
    return data[5:-8]


if __name__ == "__main__":
    key = signing_key(Path(sys.argv[1]).read_text(), sys.argv[2])
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    print(key.private_bytes(serialization.Encoding.PEM, *form).decode())
