"""Files of keys, with a password and without, for signing and for encryption."""

import base64

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.key_files import load_verifying_key
from keras_modelsec.encryption import EncryptionPrivateKey, EncryptionPublicKey
from keras_modelsec.errors import KeyFormatError
from keras_modelsec.trust import load_signing_key
from tests.torture import material
from tests.torture.damage import damage
from tests.torture.subjects.base import ACCEPTED, Subject, UnsoundError

OTHER_KEY = "another key (nothing promised)"


class KeyFile(Subject):
    """A private key under a password: the very key, or refused.

    Beyond the tests: the PEM itself, its frame and its base64, and pieces of an unencrypted key;
    they alter bytes of what is wrapped.
    """

    format, operation, cases = "key file: Argon2id PEM", "load_signing_key", 300
    allowed = KeyFormatError
    password = material.PASSWORD

    def make(self):
        key_wrapping.MEMORY_KIB, key_wrapping.ITERATIONS, key_wrapping.LANES = 64, 1, 1
        self.write("key.pem", self.pem())

    def pem(self):
        from cryptography.hazmat.primitives import serialization as io_

        der = material.raw_key(1).private_bytes(
            io_.Encoding.DER, io_.PrivateFormat.PKCS8, io_.NoEncryption()
        )
        return key_wrapping.wrap_pem(der, material.PASSWORD)

    def damage(self, rng):
        good = self.good["key.pem"]
        if rng.random() < 0.5:
            damaged, what = damage(rng, good, self.other())
        else:
            lines = good.split(b"\n")
            body, what = damage(rng, base64.b64decode(b"".join(lines[1:-2])), bytes(64))
            text = base64.b64encode(body)
            text = b"\n".join(text[i : i + 64] for i in range(0, len(text), 64))
            damaged, what = b"\n".join([lines[0], text, *lines[-2:]]), f"decoded: {what}"
        self.write("key.pem", damaged)
        return what

    def other(self):
        return material.private_pem(material.raw_key(2))

    def operate(self):
        return load_signing_key(self.folder / "key.pem", self.password)

    def check_accepted(self, result):
        if result.verifying_key.hint != material.OWNER.verifying_key.hint:
            raise UnsoundError("another key came out of an authenticated file")


class PlainKeyFile(KeyFile):
    """PEM without a password: nothing in it says that it was damaged.

    Beyond the tests: damaged DER, as far as OpenSSL reads it; a key that comes out must sign what
    it verifies. They cut, and read junk.
    """

    format, cases, password = "key file: plain PEM", 500, None

    def pem(self):
        return material.private_pem(material.raw_key(1))

    def other(self):
        return material.private_pem(material.CO_SIGNER)

    def check_accepted(self, result):
        result.verifying_key.check(result.sign(b"x"), b"x")
        same = result.verifying_key.hint == material.OWNER.verifying_key.hint
        return ACCEPTED if same else OTHER_KEY


class PlainEdKeyFile(PlainKeyFile):
    """Beyond the tests: the same for a kind of key whose every 32 bytes are one."""

    format, cases = "key file: plain PEM, Ed25519", 300

    def pem(self):
        return material.private_pem(material.CO_SIGNER)

    def check_accepted(self, result):
        result.verifying_key.check(result.sign(b"x"), b"x")
        return OTHER_KEY


class Pkcs8KeyFile(PlainKeyFile):
    """PKCS#8 under a password, which authenticates nothing.

    Beyond the tests: damage to cipher, derivation and padding; they state chosen costs and read
    whole files.
    """

    format, cases, password = "key file: PKCS#8 under a password", 120, material.PASSWORD

    def pem(self):
        rounds = key_wrapping.KDF_ROUNDS
        key_wrapping.KDF_ROUNDS = 1000
        try:
            der = base64.b64decode(b"".join(super().pem().split(b"\n")[1:-2]))
            return key_wrapping.encrypt_pkcs8(der, material.PASSWORD)
        finally:
            key_wrapping.KDF_ROUNDS = rounds


class PublicKeyFile(PlainKeyFile):
    """Beyond the tests: damaged DER, so points that are on no curve; they cut, and read junk."""

    format, operation = "key file: public PEM", "load_verifying_key"

    def pem(self):
        return material.OWNER.verifying_key.pem

    def other(self):
        return material.ATTACKER.verifying_key.pem

    def operate(self):
        return load_verifying_key(self.folder / "key.pem")

    def check_accepted(self, result):
        same = result.hint == material.OWNER.verifying_key.hint
        return ACCEPTED if same else OTHER_KEY


class EncryptionKeyFile(KeyFile):
    """Beyond the tests: cut, moved and foreign pieces; they alter single characters."""

    format, operation, cases = "encryption key: public PEM", "EncryptionPublicKey", 300

    def pem(self):
        self.key = EncryptionPrivateKey(bytes(range(32)))
        return self.key.public_key.pem

    def other(self):
        return EncryptionPrivateKey(bytes(32)).public_key.pem

    def operate(self):
        return EncryptionPublicKey.from_pem((self.folder / "key.pem").read_bytes())

    def check_accepted(self, result):
        theirs = (EncryptionPrivateKey(bytes(32)).public_key.raw, self.key.public_key.raw)
        if result.raw not in theirs:
            raise UnsoundError("another key came out of a checked file")


class EncryptionPrivateFile(EncryptionKeyFile):
    """Beyond the tests: the wrapped key in PEM, with pieces of the same key wrapped again; they
    read chosen wrong ones.
    """

    format, operation, cases = "encryption key: private PEM", "EncryptionPrivateKey", 300

    def pem(self):
        self.key = EncryptionPrivateKey(bytes(range(32)))
        return self.key.to_pem(material.PASSWORD)

    def other(self):
        return self.key.to_pem(material.PASSWORD)

    def operate(self):
        pem = (self.folder / "key.pem").read_bytes()
        return EncryptionPrivateKey.from_pem(pem, material.PASSWORD).public_key
