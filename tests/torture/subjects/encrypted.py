"""Encrypted files: the plaintext, or no file at all."""

from keras_modelsec._signing import key_wrapping
from keras_modelsec.encryption import EncryptionPrivateKey, Passphrase, decrypt_file, encrypt_file
from keras_modelsec.errors import DecryptionError
from keras_modelsec.integrity.encryption.encrypted_stream import EncryptingWriter
from keras_modelsec.integrity.encryption.key_slots import locks_for
from tests.torture import material
from tests.torture.damage import damage
from tests.torture.subjects.base import Subject, UnsoundError


class Encrypted(Subject):
    """Decryption gives the plaintext, or no file at all."""

    operation, allowed = "decrypt_file", DecryptionError
    key = opener = None
    chunk = 256

    def make(self):
        self.plain = material.random_bytes(2_000)
        self.encrypt("file.enc", self.plain)
        self.other = material.random_bytes(2_000, 1)
        self.encrypt("other.enc", self.other)

    def encrypt(self, name, data):
        locks = locks_for(self.key)
        with (
            open(self.folder / name, "wb", buffering=0) as file,
            EncryptingWriter(file, locks, chunk_bytes=self.chunk) as writer,
        ):
            writer.write(data)
            writer.finish()

    def damage(self, rng):
        good, other = self.good["file.enc"], self.good["other.enc"]
        if rng.random() < 0.4:  # whole chunks
            damaged, what = self._damage_chunks(rng, good, other)
        elif rng.random() < 0.3:  # in the header
            head, what = damage(rng, good[:200], other[:200])
            damaged = head + good[200:]
        else:
            damaged, what = damage(rng, good, other)
        self.write("file.enc", damaged)
        return what

    def _damage_chunks(self, rng, good, other):
        size = self.chunk + 16
        body = len(good) - (2_000 + 16 * -(-2_000 // self.chunk))
        mine, theirs = (
            [data[i : i + size] for i in range(body, len(data), size)] for data in (good, other)
        )
        one, two = rng.sample(range(len(mine)), 2)
        how = rng.choice(["swap", "drop", "repeat", "cut", "foreign", "shuffle"])
        if how == "swap":
            mine[one], mine[two] = mine[two], mine[one]
        elif how == "drop":
            del mine[one]
        elif how == "repeat":
            mine.insert(two, mine[one])
        elif how == "cut":
            del mine[max(1, one) :]
        elif how == "foreign":
            mine[one] = theirs[one]
        else:
            rng.shuffle(mine)
        return good[:body] + b"".join(mine), f"chunks: {how}"

    def operate(self):
        return decrypt_file(
            self.folder / "file.enc", self.opener or self.key, self.folder / "out", overwrite=True
        )

    def check_accepted(self, result):
        whole = (self.folder / "file.enc").read_bytes()
        exchanged = whole == self.good.get("other.enc")  # a genuine file: no name is in it
        if result.read_bytes() != (self.other if exchanged else self.plain):
            raise UnsoundError("another plaintext was released")


class EncryptedByKey(Encrypted):
    """Beyond the tests: several kinds of damage at once, and whole chunks of another file under the
    same key, down to the file that must not be there; they alter single bytes, cuts and orders.
    """

    format, cases, key = "encrypted file: raw key", 1000, bytes(range(32))


class EncryptedByRecipient(Encrypted):
    """Beyond the tests: a slot whose key is sealed for a recipient; they alter files under a raw
    key.
    """

    format, cases = "encrypted file: public key", 300

    def make(self):
        private = EncryptionPrivateKey(bytes(range(32)))
        self.key, self.opener = private.public_key, private
        super().make()


class EncryptedByPassphrase(Encrypted):
    """Beyond the tests: a slot whose damage asks for other derivations; they set chosen costs."""

    format, cases = "encrypted file: passphrase", 200

    def make(self):
        key_wrapping.MEMORY_KIB, key_wrapping.ITERATIONS, key_wrapping.LANES = (
            64,
            1,
            1,
        )  # fast, and legal
        self.key = Passphrase(material.PASSWORD)
        super().make()


class EncryptedLarge(Encrypted):
    """As `encrypt_file` writes it, with chunks of 1 MiB.

    Beyond the tests: the 1 MiB chunks that `encrypt_file` writes, damaged at random; they alter a
    few chosen bytes of such a file.
    """

    format, cases, key = "encrypted file: 3 MiB", 60, bytes(range(32))

    def make(self):
        self.plain = material.random_bytes(3 << 20)
        self.write("plain", self.plain)
        encrypt_file(self.folder / "plain", self.key, self.folder / "file.enc")
        (self.folder / "plain").unlink()

    def damage(self, rng):
        damaged, what = damage(rng, self.good["file.enc"], b"")
        self.write("file.enc", damaged)
        return what
