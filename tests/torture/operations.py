"""All that writes, what was there before it, and what must hold whether it succeeds or not.

Each says what it covers beyond the tests ("they") when the faults of disk.py meet it.
"""

import tempfile
from pathlib import Path

from keras_modelsec.encryption import decrypt_file, encrypt_file, generate_encryption_keys
from keras_modelsec.errors import ConcurrentChangeError, SignatureError
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.trust import TrustStore, generate_keys
from tests.torture import material

KEY = bytes(range(32))
SIZE = 300_000


def model_in(folder, name="model.bin"):
    path = folder / name
    path.write_bytes(material.random_bytes(SIZE))
    return path


class Operation:
    """Something that writes; `prepare` makes what was there before, `check` is what must hold."""

    errors = OSError

    def prepare(self, folder):
        self.model = model_in(folder)
        sign(self.model, material.OWNER)

    def run(self, folder):
        raise NotImplementedError

    def check(self, folder):
        """What must hold whether the operation succeeded or not."""
        verify(self.model, material.OWNER.verifying_key)

    def check_done(self, folder):
        """What must hold too if it succeeded."""


class Sign(Operation):
    """Beyond the tests: a statement of 20 kB that fails at each length, over an older one; they
    fail one write.
    """

    def run(self, folder):
        sign(self.model, material.OWNER, provenance={"note": "x" * 20_000})


class SaveSigned(Operation):
    """What SignOnSave does, with bytes in place of a model.

    Beyond the tests: each length at which a disk is full, over an older pair that must still
    verify; they fill it once.
    """

    def run(self, folder):
        from keras_modelsec.integrity.signing.signed_saving import save_signed

        data = material.random_bytes(SIZE, 1)
        save_signed(lambda path: Path(path).write_bytes(data), self.model, [material.OWNER])


class SaveSignedFolder(Operation):
    """Beyond the tests: a folder, in the middle of any of its files; they fill the disk under a
    single file.
    """

    def prepare(self, folder):
        self.model = folder / "served"
        self.write(self.model, 0)
        sign(self.model, material.OWNER)

    def write(self, place, seed):
        for name, data in material.folder_files(seed).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)

    def run(self, folder):
        from keras_modelsec.integrity.signing.signed_saving import save_signed

        save_signed(lambda path: self.write(Path(path), 7), self.model, [material.OWNER])


class Protect(Operation):
    """Beyond the tests: each length, and two that protect at once; they fill the disk at one,
    alone.
    """

    def run(self, folder):
        write_parity(self.model, material.OWNER, redundancy=0.2)

    def check_done(self, folder):
        repair(self.model, material.OWNER.verifying_key)


class Repair(Operation):
    """Bytes inserted, so that the file is written anew.

    Beyond the tests: each length, and that what is left can still be repaired.
    """

    errors = (OSError, SignatureError)
    insert = True

    def prepare(self, folder):
        super().prepare(folder)
        write_parity(self.model, material.OWNER, redundancy=0.2)
        good = self.model.read_bytes()
        middle = b"x" if self.insert else b""
        cut = 1000 if self.insert else 1100
        self.model.write_bytes(good[:1000] + middle + b"y" * (cut - 1000) + good[cut:])
        self.damaged, self.good = self.model.read_bytes(), good

    def run(self, folder):
        repair(self.model, material.OWNER.verifying_key)

    def check(self, folder):
        """Repairable still, whatever happened."""
        if self.model.read_bytes() not in (self.damaged, self.good):
            raise AssertionError("the model is neither as it was nor repaired")

    def check_done(self, folder):
        verify(self.model, material.OWNER.verifying_key)


class RepairInPlace(Repair):
    """Beyond the tests: a disk without any room, which damage in place does not need."""

    insert = False


class Encrypt(Operation):
    """Beyond the tests: each length over an older encrypted file, which must still open; they write
    new ones.
    """

    def prepare(self, folder):
        super().prepare(folder)
        encrypt_file(self.model, KEY, folder / "old.enc")

    def run(self, folder):
        encrypt_file(self.model, KEY, folder / "old.enc", overwrite=True)

    def check(self, folder):
        super().check(folder)
        with tempfile.TemporaryDirectory() as elsewhere:
            plain = decrypt_file(folder / "old.enc", KEY, Path(elsewhere) / "plain")
            if plain.read_bytes() != material.random_bytes(SIZE):
                raise AssertionError("the encrypted file that was there is lost")


class Decrypt(Operation):
    """Beyond the tests: each length over an older result, which is kept or replaced whole; they
    write new ones.
    """

    def prepare(self, folder):
        super().prepare(folder)
        encrypt_file(self.model, KEY, folder / "model.enc")
        (folder / "plain").write_bytes(b"old")

    def run(self, folder):
        decrypt_file(folder / "model.enc", KEY, folder / "plain", overwrite=True)

    def check(self, folder):
        super().check(folder)
        if (folder / "plain").read_bytes() not in (b"old", material.random_bytes(SIZE)):
            raise AssertionError("half a plaintext was released")


class StoreSave(Operation):
    """Beyond the tests: full disks and read-only folders; they save beside other writers only."""

    errors = (OSError, ConcurrentChangeError)

    def prepare(self, folder):
        self.path = folder / "trust.json"
        self.store = TrustStore()
        self.store.add(material.OWNER.verifying_key)
        self.store.save(self.path, material.ROOT)

    def run(self, folder):
        store = TrustStore.load(self.path, material.ROOT.verifying_key)
        store.add(material.ATTACKER.verifying_key, comment="x" * 200_000)
        store.save(self.path, material.ROOT)

    def check(self, folder):
        TrustStore.load(self.path, material.ROOT.verifying_key)


class NewKeys(Operation):
    """Half a pair is never left.

    Beyond the tests: full disks, at each half of the pair; they make one half unwritable.
    """

    def prepare(self, folder):
        pass

    def run(self, folder):
        generate_keys(folder / "new.pem")

    def check(self, folder):
        found = {path.name for path in folder.iterdir()}
        if found not in (set(), {"new.pem", "new.pub"}):
            raise AssertionError(f"half a pair: {sorted(found)}")


class NewEncryptionKeys(NewKeys):
    """Beyond the tests: both faults, for the other kind of pair; they keep files that exist."""

    def run(self, folder):
        generate_encryption_keys(folder / "new.pem")


OPERATIONS = (
    Sign,
    SaveSigned,
    SaveSignedFolder,
    Protect,
    Repair,
    RepairInPlace,
    Encrypt,
    Decrypt,
    StoreSave,
    NewKeys,
    NewEncryptionKeys,
)

# A pair of keys is made once: two processes that make the same one are promised nothing.
ONE_WRITER = (NewKeys, NewEncryptionKeys)
