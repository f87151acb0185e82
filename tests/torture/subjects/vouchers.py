"""Signatures, statements and certificate chains, beside a model that is as it was signed."""

import base64
import hashlib
import json

from keras_modelsec._signing.dsse import DsseEnvelope, pre_authentication_encoding
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.statements.manifest import Manifest
from keras_modelsec.integrity.statements.openssf_statement import to_bytes as statement_bytes
from keras_modelsec.trust import TrustedRoots
from tests.torture import material
from tests.torture.damage import damage, edit_json, spell
from tests.torture.subjects.base import Subject, UnsoundError


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
    """Beyond the tests: pieces of the same owner's signature on another model, and blocks moved;
    they flip bits and draw small edits.
    """

    format, ending = "NAME.sig: bytes", "sig"


class SignatureField(VoucherField):
    """Beyond the tests: values close to the genuine one (a letter, a number one off, other base64
    of nearly the same bytes), spelled in odd ways; they put a few far ones into each field.
    """

    format, ending = "NAME.sig: fields of the bundle", "sig"


class SignatureSigned(SignaturePayload):
    """Beyond the tests: an edited statement that an attacker signed again, under his own hint or
    the owner's; they forge the signature or edit the fields.
    """

    format, ending, cases = "NAME.sig: signed fields", "sig", 1000


class SignatureNonsense(OwnersNonsense, SignaturePayload):
    """Beyond the tests: values close to sensible ones, in two fields at a time; what is accepted
    must still speak of this file's bytes.
    """

    format, ending = "NAME.sig: signed fields, by the owner", "sig"


class StatementBytes(VoucherBytes):
    """Beyond the tests: pieces of another statement of the same owner, and blocks moved; they flip
    bits and draw small edits.
    """

    format, ending = "NAME.modelsec.json: bytes", "modelsec.json"


class StatementField(VoucherField):
    """Beyond the tests: values close to the genuine ones; one of two signatures edited or gone."""

    format, ending = "NAME.modelsec.json: fields of the envelope", "modelsec.json"


class StatementSigned(StatementPayload):
    """Beyond the tests: an edited statement that an attacker signed again, under his own hint or
    the owner's, and two fields edited at a time.
    """

    format, ending, cases = "NAME.modelsec.json: signed fields", "modelsec.json", 1200


class StatementNonsense(OwnersNonsense, StatementPayload):
    """Beyond the tests: values close to sensible ones, in lengths, places and digests of tensors
    and leaves; what is accepted must still speak of this file's bytes.
    """

    format, ending = "NAME.modelsec.json: signed fields, by the owner", "modelsec.json"
    cases = 1200


class CertificateChain(Subject):
    """A signature whose certificates lead to a trusted root.

    Beyond the tests: certificates cut, spliced with one another, doubled; they flip single bits,
    and put junk in place of certificates.
    """

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
