"""Trust stores: damaged, signed by others, and signed as nonsense by their root."""

import base64
import json
import os

from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.store_signatures import PAYLOAD_TYPE as STORE_TYPE
from keras_modelsec.trust import TrustStore
from tests.torture import material
from tests.torture.damage import damage, edit_json, spell
from tests.torture.subjects.base import Subject, UnsoundError


class Store(Subject):
    """Beyond the tests: a whole saved store, also spliced with its own genuine version before; they
    read junk, and stores signed by others.
    """

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
    """Beyond the tests: the fields of the envelope; they edit those of what is signed."""

    format, hows = "trust store: fields of the envelope", ("field",)


class StoreSigned(Store):
    """Beyond the tests: values close to the genuine ones, signed again by an attacker who names the
    root.
    """

    format, cases = "trust store: signed fields", 800
    hows = ("old signature", "attacker's key", "attacker's key, root's hint")


class StoreNonsense(Store):
    """Beyond the tests: values close to sensible ones, signed by the root and loaded from a file;
    they parse drawn JSON that nobody signed.
    """

    format, hows = "trust store: signed fields, by the root", ("root's key",)

    def check_accepted(self, result):
        signed = json.loads((self.folder / "trust.json").read_bytes())["payload"]
        if json.loads(result.to_bytes()) != json.loads(base64.b64decode(signed)):
            raise UnsoundError("the store reads otherwise than it was signed")
