"""Parity: damaged itself, forged, and used on damaged models; and what must never be protected."""

import base64
import json

from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.trust import load_trust
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.integrity.parity.parity_file import ParityFile, record
from tests.torture import material
from tests.torture.damage import damage, edit_json, spell
from tests.torture.subjects.base import Subject, UnsoundError

MODEL = "model.bin"
PARITY = f"{MODEL}.parity"


class Parity(Subject):
    """A little damage in the model, more in its parity file: the signed bytes or a refusal.

    Beyond the tests: parity reordered, cut, spliced with that of another model of the same owner,
    where the model is damaged too; they flip bytes of it.
    """

    format, operation, cases = "NAME.parity: bytes", "repair", 500
    size = 60_000

    def make(self):
        for seed, name in enumerate((MODEL, "other.bin")):
            self.write(name, material.random_bytes(self.size, seed))
            sign(self.folder / name, material.OWNER)
            write_parity(self.folder / name, material.OWNER, redundancy=0.2)
        parity = ParityFile(self.folder / PARITY, load_trust(material.OWNER.verifying_key))
        self.layout, self.statement = parity.layout, parity.statement
        self.envelope = DsseEnvelope.from_bytes(parity.envelope)
        parity.close()

    def hurt_model(self, rng):
        data = bytearray(self.good[MODEL])
        how = rng.choice(["nothing", "bit", "block", "insert", "cut"])
        if how == "bit":
            data[rng.randrange(len(data))] ^= 1
        elif how == "block":
            start = rng.randrange(len(data))
            data[start : start + 3000] = rng.randbytes(3000)
            del data[self.size :]
        elif how == "insert":
            place = rng.randrange(len(data))
            data[place:place] = b"x"
        elif how == "cut":
            del data[-2000:]
        self.write(MODEL, data)
        return how

    def damage(self, rng):
        what = self.hurt_model(rng)
        damaged, how = damage(rng, self.good[PARITY], self.good["other.bin.parity"])
        self.write(PARITY, damaged)
        return f"model: {what}; parity: {how}"

    def operate(self):
        repair(self.folder / MODEL, material.OWNER.verifying_key)

    def check_accepted(self, result):
        if (self.folder / MODEL).read_bytes() != self.good[MODEL]:
            raise UnsoundError("repair made other bytes than the signed ones")
        verify(self.folder / MODEL, material.OWNER.verifying_key)

    def check_refused(self, before):
        """A refused repair leaves the model alone; nothing may lie about."""
        found = self.read()
        if found[MODEL] != before[MODEL]:
            raise UnsoundError("a refused repair changed the model")
        if found.keys() != before.keys():
            raise UnsoundError(f"litter: {sorted(found.keys() - before.keys())}")


class ParitySigned(Parity):
    """A field of the parity file's statement, in all three copies.

    Beyond the tests: values close to the genuine ones, signed again by an attacker who may name
    the owner, where the model is damaged too.
    """

    format, cases = "NAME.parity: signed fields", 400
    hows = ("old signature", "attacker's key", "attacker's key, owner's hint")

    def damage(self, rng):
        what = self.hurt_model(rng)
        how = rng.choice(self.hows)
        edited, field = edit_json(rng, json.loads(self.envelope.payload))
        envelope = self.signed(spell(rng, edited), how)
        data = bytearray(self.good[PARITY])
        place = record(envelope, max(self.statement.record_bytes, len(envelope) + 24))
        for start in self.layout.records:
            data[start : start + len(place)] = place
        self.write(PARITY, data)
        return f"model: {what}; {field} ({how})"

    def signed(self, payload, how):
        pairs = self.envelope.signatures
        if how != "old signature":
            key = material.OWNER if how == "owner's key" else material.ATTACKER
            made = DsseEnvelope.sign(payload, [key]).signatures[0]
            pairs = (made if how == "attacker's key" else (pairs[0][0], made[1]),)
        return DsseEnvelope(payload, self.envelope.payload_type, pairs).to_bytes()


class ParityNonsense(ParitySigned):
    """Only the owner can sign parity that contradicts itself, such as a length its blocks have not.

    That is refused when the file's digest is seen not to come out, after blocks were written in
    their places: what is held here is that nothing else is ever called repaired.

    Beyond the tests: a repair with what still parses; they show which values do not.
    """

    format, hows = "NAME.parity: signed fields, by the owner", ("owner's key",)

    def check_refused(self, before):
        found = self.read()
        if found.keys() != before.keys():
            raise UnsoundError(f"litter: {sorted(found.keys() ^ before.keys())}")


class ParityVouchers(Parity):
    """Signature and statement damaged too: repair puts them back, and nothing older or forged.

    Beyond the tests: both edited field by field and byte by byte; they put back what is gone or
    damaged in one way.
    """

    format, cases = "NAME.parity: signature and statement damaged", 300

    def damage(self, rng):
        what = self.hurt_model(rng)
        name = rng.choice([f"{MODEL}.sig", f"{MODEL}.modelsec.json"])
        how = rng.choice(["bytes", "field", "gone"])
        if how == "bytes":
            data, how = damage(rng, self.good[name], self.good[name.replace("model.", "other.", 1)])
        elif how == "field":
            envelope = json.loads(self.good[name])
            holder = envelope.get("dsseEnvelope", envelope)
            payload, how = edit_json(rng, json.loads(base64.b64decode(holder["payload"])))
            holder["payload"] = base64.b64encode(spell(rng, payload)).decode()
            data = spell(rng, envelope)
        else:
            data = None
        if data is None:
            (self.folder / name).unlink()
        else:
            self.write(name, data)
        return f"model: {what}; {name}: {how}"


class ParityOfFolder(Parity):
    """A folder whose files are damaged, swapped, gone.

    Beyond the tests: files damaged at random, or the parity; they make each of a list of damages.
    """

    format, cases = "NAME.parity: of a folder", 200

    def make(self):
        for name, data in material.folder_files().items():
            path = self.folder / MODEL / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        sign(self.folder / MODEL, material.OWNER)
        write_parity(self.folder / MODEL, material.OWNER, redundancy=0.3)

    def damage(self, rng):
        one, two = rng.sample(sorted(material.folder_files()), 2)
        first, second = self.folder / MODEL / one, self.folder / MODEL / two
        how = rng.choice(["bytes", "swap", "gone", "parity"])
        if how == "bytes":
            data, how = damage(rng, first.read_bytes(), second.read_bytes())
            first.write_bytes(data)
        elif how == "swap":
            kept = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(kept)
        elif how == "gone":
            first.unlink()
        else:
            data, how = damage(rng, self.good[PARITY], bytes(100))
            self.write(PARITY, data)
        return f"{one}: {how}"

    def model_in(self, files):
        return {name: data for name, data in files.items() if name.startswith(f"{MODEL}/")}

    def check_accepted(self, result):
        if self.model_in(self.read()) != self.model_in(self.good):
            raise UnsoundError("repair made another folder than the signed one")
        verify(self.folder / MODEL, material.OWNER.verifying_key)

    def check_refused(self, before):
        if self.read() != before:
            raise UnsoundError("a refused repair changed files")


class Protect(Subject):
    """A damaged model is not protected: its damage would be.

    Beyond the tests: every kind of damage; they change the first byte.
    """

    format, operation, cases = "damaged model", "protect", 150
    allowed = SignatureError

    def make(self):
        self.write(MODEL, material.random_bytes(30_000))
        sign(self.folder / MODEL, material.OWNER)

    def damage(self, rng):
        data, what = damage(rng, self.good[MODEL], bytes(5000))
        self.write(MODEL, data)
        return what

    def operate(self):
        write_parity(self.folder / MODEL, material.OWNER, redundancy=0.1)

    def check_accepted(self, result):
        if (self.folder / MODEL).read_bytes() != self.good[MODEL]:
            raise UnsoundError("damage was protected")
