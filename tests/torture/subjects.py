"""What is damaged and what must come of it, one class for each format and way of damaging it.

Owns the verdicts. A case either refuses, with an error class that the subject allows, or gives
exactly what it gave before the damage. Anything else is a failure: another error, another result, a
refusal that changed a file or left one behind.
"""

import base64
import hashlib
import json
import os
import shutil

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.dsse import DsseEnvelope, pre_authentication_encoding
from keras_modelsec._signing.key_files import load_verifying_key
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec._signing.store_signatures import PAYLOAD_TYPE as STORE_TYPE
from keras_modelsec.encryption import (
    EncryptionPrivateKey,
    EncryptionPublicKey,
    Passphrase,
    decrypt_file,
    encrypt_file,
)
from keras_modelsec.errors import DecryptionError, KeyFormatError, SignatureError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.encryption.encrypted_stream import EncryptingWriter
from keras_modelsec.integrity.encryption.key_slots import locks_for
from keras_modelsec.integrity.statements.manifest import Manifest
from keras_modelsec.integrity.statements.openssf_statement import to_bytes as statement_bytes
from keras_modelsec.trust import TrustedRoots, TrustStore, load_signing_key
from tests.torture import material
from tests.torture.damage import damage, edit_json, spell

ACCEPTED = "accepted, the same"
OTHER_KEY = "another key (nothing promised)"
_LONGEST_MESSAGE = 20_000


class UnsoundError(Exception):
    """The operation did what it must not do."""


class Subject:
    """One format with one operation; `damage` edits files in `self.folder`."""

    format = operation = ""
    cases = 500
    allowed = SignatureError
    needs_keras = False

    def __init__(self, folder):
        self.folder = folder
        self.make()
        self.good = self.read()

    def make(self):
        """Puts the genuine files into the folder."""

    def damage(self, rng):
        """Damages them; returns a description."""

    def operate(self):
        """What must refuse or give the same."""

    def check_accepted(self, result):
        """Raises unless acceptance was right; may return another verdict than `ACCEPTED`."""

    def check_refused(self, before):
        """Raises unless the refusal left everything alone."""
        if self.read() != before:
            raise UnsoundError("a refused operation changed files")

    def run(self, rng):
        """One case: what was done, and the verdict."""
        self.restore()
        what = self.damage(rng)
        before = self.read()
        try:
            result = self.operate()
        except self.allowed as error:
            message = str(error)
            message.encode("utf-8")
            if not message or len(message) > _LONGEST_MESSAGE:
                raise UnsoundError(f"a message of {len(message)} characters") from error
            self.check_refused(before)
            return what, type(error).__name__
        return what, self.check_accepted(result) or ACCEPTED

    def read(self):
        """All files below the folder by name, and where links point."""
        found = {}
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(place, name)
                key = os.path.relpath(path, self.folder)
                if os.path.islink(path):
                    found[key] = os.readlink(path)
                else:
                    with open(path, "rb") as file:
                        found[key] = file.read()
        return found

    def restore(self):
        found = self.read()
        if found == self.good:
            return
        for name in found.keys() - self.good.keys():
            os.unlink(self.folder / name)
        for name, data in self.good.items():
            if found.get(name) != data:
                path = self.folder / name
                if path.is_symlink():
                    path.unlink()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def write(self, name, data):
        (self.folder / name).write_bytes(data)


# Models.


class ModelFile(Subject):
    """A signed file; signature, statement or both beside it."""

    operation = "verify"
    cases = 700
    name = ""

    def make(self):
        self.other = material.MODEL_FILES[self.name](1)
        self.write(self.name, material.MODEL_FILES[self.name](0))
        sign(self.folder / self.name, material.OWNER)

    def damage(self, rng):
        keep = rng.choice(["both", "sig", "modelsec.json"])
        for ending in ("sig", "modelsec.json"):
            if keep not in ("both", ending):
                (self.folder / f"{self.name}.{ending}").unlink()
        damaged, what = damage(rng, self.good[self.name], self.other)
        self.write(self.name, damaged)
        return f"{what} ({keep})"

    def operate(self):
        verify(self.folder / self.name, material.OWNER.verifying_key)

    def check_accepted(self, result):
        if (self.folder / self.name).read_bytes() != self.good[self.name]:
            raise UnsoundError("other bytes were accepted")


class KerasFile(ModelFile):
    format, name = ".keras", "model.keras"


class WeightsFile(ModelFile):
    format, name = ".weights.h5", "model.weights.h5"


class AnyFile(ModelFile):
    format, name = "other file", "model.bin"


class Folder(Subject):
    """A signed SavedModel-like folder."""

    format, operation, cases = "folder", "verify", 1200

    def make(self):
        for seed, place in enumerate(("model", "another")):
            for name, data in material.folder_files(10 * seed).items():
                path = self.folder / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        sign(self.folder / "model", material.OWNER)

    def damage(self, rng):
        names = sorted(material.folder_files())
        name, second = rng.sample(names, 2)
        path, other = self.folder / "model" / name, self.folder / "model" / second
        how = rng.choice(["bytes"] * 5 + ["swap", "remove", "add", "rename", "link", "foreign"])
        if how == "bytes":
            damaged, kinds = damage(rng, path.read_bytes(), other.read_bytes())
            path.write_bytes(damaged)
            how = kinds
        elif how == "swap":
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)
        elif how == "remove":
            path.unlink()
        elif how == "add":
            place = rng.choice(["x", ".git", "variables/x", "model.sig", "x.sig", "assets/.hidden"])
            (self.folder / "model" / place).write_bytes(rng.randbytes(9))
        elif how == "rename":
            path.rename(path.with_name(rng.choice([path.name.upper(), "x", path.name + " "])))
        elif how == "link":
            data = path.read_bytes()
            path.unlink()
            (self.folder / "elsewhere").write_bytes(data)
            path.symlink_to(self.folder / "elsewhere")
        else:
            path.write_bytes((self.folder / "another" / name).read_bytes())
        return f"{how}: {name}"

    def operate(self):
        verify(self.folder / "model", material.OWNER.verifying_key)

    def check_accepted(self, result):
        found = {k: v for k, v in self.read().items() if k.startswith("model/")}
        if found != {k: v for k, v in self.good.items() if k.startswith("model/")}:
            raise UnsoundError("another folder was accepted")


class Located(ModelFile):
    """The report on a damaged file: clean exactly if the bytes are the signed ones."""

    operation, cases = "locate_tampering", 300

    def operate(self):
        from keras_modelsec.integrity import locate_tampering

        return locate_tampering(self.folder / self.name, material.OWNER.verifying_key)

    def check_accepted(self, result):
        same = (self.folder / self.name).read_bytes() == self.good[self.name]
        if result.is_clean != same:
            raise UnsoundError(f"clean is {result.is_clean}: {result}")
        if self.read().keys() - self.good.keys():
            raise UnsoundError("a report left files behind")
        json.dumps(result.to_dict())
        return ACCEPTED if same else f"reported, {'with' if result.tensors else 'no'} tensors"


class LocatedKeras(Located):
    format, name, cases = ".keras", "model.keras", 400


class LocatedWeights(Located):
    format, name = ".weights.h5", "model.weights.h5"


class LocatedOther(Located):
    format, name, cases = "other file", "model.bin", 150


class LocatedFolder(Folder):
    operation, cases = "locate_tampering", 300

    def operate(self):
        from keras_modelsec.integrity import locate_tampering

        return locate_tampering(self.folder / "model", material.OWNER.verifying_key)

    def check_accepted(self, result):
        found = {k: v for k, v in self.read().items() if k.startswith("model/")}
        same = found == {k: v for k, v in self.good.items() if k.startswith("model/")}
        if result.is_clean != same:
            raise UnsoundError(f"clean is {result.is_clean}: {result}")
        json.dumps(result.to_dict())
        return ACCEPTED if same else "reported"


# Signatures and statements.


class Voucher(Subject):
    """`NAME.sig` or `NAME.modelsec.json` alone beside a file; the file is as it was signed."""

    operation = "verify"
    cases = 800
    ending = ""

    def make(self):
        for seed, name in enumerate(("model.weights.h5", "other.weights.h5")):
            self.write(name, material.weights_file(seed))
            sign(self.folder / name, material.OWNER, co_signing_keys=[material.CO_SIGNER])
        for name in ("model.weights.h5", "other.weights.h5"):
            for ending in ("sig", "modelsec.json"):
                if ending != self.ending:
                    (self.folder / f"{name}.{ending}").unlink()
        self.voucher = f"model.weights.h5.{self.ending}"
        self.other = (self.folder / f"other.weights.h5.{self.ending}").read_bytes()

    @property
    def envelope(self):
        return json.loads(self.good[self.voucher])

    def inner(self, envelope):
        return envelope.get("dsseEnvelope", envelope)

    @property
    def payload(self):
        return base64.b64decode(self.inner(self.envelope)["payload"])

    def operate(self):
        verify(self.folder / "model.weights.h5", material.OWNER.verifying_key)

    def check_accepted(self, result):
        """The envelope must hold the owner's signature over the genuine payload."""
        found = self.inner(json.loads((self.folder / self.voucher).read_bytes()))
        genuine = self.inner(self.envelope)
        if found["payload"] != genuine["payload"]:
            raise UnsoundError("another payload was accepted")
        if genuine["signatures"][0] not in found["signatures"]:
            raise UnsoundError("another signature was accepted")


class VoucherBytes(Voucher):
    def damage(self, rng):
        damaged, what = damage(rng, self.good[self.voucher], self.other)
        self.write(self.voucher, damaged)
        return what


class VoucherField(Voucher):
    """A field of the envelope."""

    def damage(self, rng):
        edited, what = edit_json(rng, self.envelope)
        self.write(self.voucher, spell(rng, edited))
        return what


class VoucherPayload(Voucher):
    """A field of what is signed: under the old signature, or signed again by an attacker."""

    hows = ("old signature", "attacker's key", "attacker's key, owner's hint")

    def edit(self, rng):
        payload, what = edit_json(rng, json.loads(self.payload))
        for _ in range(rng.choice([0, 0, 1])):
            payload, again = edit_json(rng, payload)
            what += f"; {again}"
        return spell(rng, payload), what

    def damage(self, rng):
        payload, what = self.edit(rng)
        how = rng.choice(self.hows)
        self.write(self.voucher, self.signed(payload, how))
        return f"{what} ({how})"


class SignaturePayload(VoucherPayload):
    def signed(self, payload, how):
        envelope = Envelope.from_bytes(self.good[self.voucher])
        if how == "old signature":
            return Envelope(envelope.hint, payload, envelope.signature).to_bytes()
        key = material.OWNER if how == "owner's key" else material.ATTACKER
        hint = key.verifying_key.hint if how == "attacker's key" else envelope.hint
        signature = key.sign(pre_authentication_encoding(payload))
        return Envelope(hint, payload, signature).to_bytes()


class StatementPayload(VoucherPayload):
    def signed(self, payload, how):
        envelope = DsseEnvelope.from_bytes(self.good[self.voucher])
        pairs = envelope.signatures
        if how != "old signature":
            key = material.OWNER if how == "owner's key" else material.ATTACKER
            hint = key.verifying_key.hint if how == "attacker's key" else pairs[0][0]
            made = DsseEnvelope.sign(payload, [key]).signatures[0][1]
            pairs = ((hint, made),)
        return DsseEnvelope(payload, envelope.payload_type, pairs).to_bytes()


class OwnersNonsense:
    """Nonsense that the owner signed must not be read leniently, nor crash the reader."""

    hows = ("owner's key",)

    def check_accepted(self, result):
        digest = hashlib.sha256(self.good["model.weights.h5"]).hexdigest()
        payload = self.inner(json.loads((self.folder / self.voucher).read_bytes()))["payload"]
        predicate = json.loads(base64.b64decode(payload))["predicate"]
        entries = predicate.get("resources") or predicate["files"]
        if [entry.get("digest") or entry["sha256"] for entry in entries] != [digest]:
            raise UnsoundError("a statement on other bytes was accepted")


class SignatureBytes(VoucherBytes):
    format, ending = "NAME.sig: bytes", "sig"


class SignatureField(VoucherField):
    format, ending = "NAME.sig: fields of the bundle", "sig"


class SignatureSigned(SignaturePayload):
    format, ending, cases = "NAME.sig: signed fields", "sig", 1000


class SignatureNonsense(OwnersNonsense, SignaturePayload):
    format, ending = "NAME.sig: signed fields, by the owner", "sig"


class StatementBytes(VoucherBytes):
    format, ending = "NAME.modelsec.json: bytes", "modelsec.json"


class StatementField(VoucherField):
    format, ending = "NAME.modelsec.json: fields of the envelope", "modelsec.json"


class StatementSigned(StatementPayload):
    format, ending, cases = "NAME.modelsec.json: signed fields", "modelsec.json", 1200


class StatementNonsense(OwnersNonsense, StatementPayload):
    format, ending = "NAME.modelsec.json: signed fields, by the owner", "modelsec.json"
    cases = 1200


class CertificateChain(Subject):
    """A signature whose certificates lead to a trusted root."""

    format, operation, cases = "certificate chain", "verify", 800

    def make(self):
        self.chain, root = material.certificates()
        self.roots = TrustedRoots(root)
        data = material.random_bytes(2_000)
        self.write("model.bin", data)
        manifest = Manifest("model.bin", {".": hashlib.sha256(data).hexdigest()})
        envelope = Envelope.sign(statement_bytes(manifest), material.CERTIFIED, self.chain)
        self.write("model.bin.sig", envelope.to_bytes())

    def damage(self, rng):
        chain = list(self.chain)
        how = rng.choice(["bytes"] * 6 + ["drop", "twice", "order", "field"])
        if how == "bytes":
            place = rng.randrange(len(chain))
            chain[place], how = damage(rng, chain[place], chain[1 - place])
        elif how == "drop":
            del chain[rng.randrange(len(chain))]
        elif how == "twice":
            chain.insert(rng.randrange(3), rng.choice(chain))
        elif how == "order":
            chain.reverse()
        bundle = json.loads(self.good["model.bin.sig"])
        entries = [{"rawBytes": base64.b64encode(der).decode()} for der in chain]
        bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] = entries
        if how == "field":
            bundle, how = edit_json(rng, bundle)
        self.write("model.bin.sig", spell(rng, bundle))
        return how

    def operate(self):
        verify(self.folder / "model.bin", self.roots)

    def check_accepted(self, result):
        if json.loads((self.folder / "model.bin.sig").read_bytes()) != json.loads(
            self.good["model.bin.sig"]
        ):
            raise UnsoundError("another chain was accepted")


# Trust stores.


class Store(Subject):
    operation, format = "TrustStore.load", "trust store: bytes"
    cases = 600
    hows = ("bytes",)

    def make(self):
        store = TrustStore()
        for number in range(5, 8):
            key = material.signer(number).verifying_key
            store.add(key, name=f"key {number}", comment="of the \u00fcbung")
        store.revoke(material.signer(7).verifying_key, reason="lost")
        store.revoke(digest="a" * 64, reason="bad")
        store.set_lowest_version("classifier", 7)
        store.save(self.folder / "trust.json", material.ROOT)
        first = (self.folder / "trust.json").read_bytes()
        store.set_lowest_version("*", 2)
        store.save(self.folder / "trust.json", material.ROOT)
        self.other = first
        for name in os.listdir(self.folder):
            if name.endswith(".lock"):
                os.unlink(self.folder / name)

    def damage(self, rng):
        good, how = self.good["trust.json"], rng.choice(self.hows)
        envelope = json.loads(good)
        if how == "bytes":
            damaged, what = damage(rng, good, self.other)
        elif how == "field":
            edited, what = edit_json(rng, envelope)
            damaged = spell(rng, edited)
        else:
            edited, what = edit_json(rng, json.loads(base64.b64decode(envelope["payload"])))
            damaged = self.signed(spell(rng, edited), how)
        self.write("trust.json", damaged)
        return f"{what} ({how})"

    def signed(self, payload, how):
        old = DsseEnvelope.from_bytes(self.good["trust.json"], payload_type=STORE_TYPE)
        pairs = old.signatures
        if how != "old signature":
            key = material.ROOT if how == "root's key" else material.ATTACKER
            made = DsseEnvelope.sign(payload, [key], STORE_TYPE).signatures[0]
            pairs = (made if how == "attacker's key" else (pairs[0][0], made[1]),)
        return DsseEnvelope(payload, STORE_TYPE, pairs).to_bytes()

    def operate(self):
        return TrustStore.load(
            self.folder / "trust.json", material.ROOT.verifying_key, minimum_store_version=2
        )

    def check_accepted(self, result):
        if result.to_bytes() != base64.b64decode(json.loads(self.good["trust.json"])["payload"]):
            raise UnsoundError("another trust store was accepted")


class StoreField(Store):
    format, hows = "trust store: fields of the envelope", ("field",)


class StoreSigned(Store):
    format, cases = "trust store: signed fields", 800
    hows = ("old signature", "attacker's key", "attacker's key, root's hint")


class StoreNonsense(Store):
    format, hows = "trust store: signed fields, by the root", ("root's key",)

    def check_accepted(self, result):
        signed = json.loads((self.folder / "trust.json").read_bytes())["payload"]
        if json.loads(result.to_bytes()) != json.loads(base64.b64decode(signed)):
            raise UnsoundError("the store reads otherwise than it was signed")


# Encrypted files.


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
    format, cases, key = "encrypted file: raw key", 1000, bytes(range(32))


class EncryptedByRecipient(Encrypted):
    format, cases = "encrypted file: public key", 300

    def make(self):
        private = EncryptionPrivateKey(bytes(range(32)))
        self.key, self.opener = private.public_key, private
        super().make()


class EncryptedByPassphrase(Encrypted):
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
    """As `encrypt_file` writes it, with chunks of 1 MiB."""

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


# Key files.


class KeyFile(Subject):
    """A private key under a password: the very key, or refused."""

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
    """PEM without a password: nothing in it says that it was damaged."""

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
    format, cases = "key file: plain PEM, Ed25519", 300

    def pem(self):
        return material.private_pem(material.CO_SIGNER)

    def check_accepted(self, result):
        result.verifying_key.check(result.sign(b"x"), b"x")
        return OTHER_KEY


class Pkcs8KeyFile(PlainKeyFile):
    """PKCS#8 under a password, which authenticates nothing."""

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
    format, operation, cases = "encryption key: private PEM", "EncryptionPrivateKey", 300

    def pem(self):
        self.key = EncryptionPrivateKey(bytes(range(32)))
        return self.key.to_pem(material.PASSWORD)

    def other(self):
        return self.key.to_pem(material.PASSWORD)

    def operate(self):
        pem = (self.folder / "key.pem").read_bytes()
        return EncryptionPrivateKey.from_pem(pem, material.PASSWORD).public_key


def all_subjects():
    """The subjects by their class names, in the order of the report."""
    from tests.torture import keras_subjects, repair_subjects

    found = {}
    for module in (globals(), vars(repair_subjects), vars(keras_subjects)):
        for name, value in module.items():
            if isinstance(value, type) and issubclass(value, Subject) and value.format:
                found.setdefault(name, value)
    return found


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
