"""The outer layers of a signature file: a Sigstore bundle v0.3 around one DSSE envelope.

Owns the bytes of `NAME.sig`; what exactly is signed is in dsse.py. Knows nothing of what the
payload says.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_modelsec._signing import strict_json as strict
from keras_modelsec._signing.dsse import IN_TOTO, pre_authentication_encoding
from keras_modelsec._signing.keys import SigningKey, check_makes_openssf

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_SIGNATURE_BYTES = 16 << 20  # some 70,000 files; the bytes are untrusted when they are parsed
MOST_CERTIFICATES = 8
_MOST_CERTIFICATE_CHARACTERS = 64 << 10  # ML-DSA's have some 10,000; names and extensions cost time
_MAX_VALUES = 64  # a bundle has 13: what could use up the memory is not parsed at all


@dataclass(frozen=True)
class Envelope:
    """One payload with one signature, and which key made it: by its hint, or by certificates.

    Args:
        hint: Hex SHA-256 of the signer's public key in PEM; "" if there are certificates.
        payload: The signed bytes, not to be parsed before the signature is verified.
        signature: DER-encoded ECDSA signature over `pre_authentication_encoding(payload)`.
        certificates: X.509 certificates in DER, the signer's first, each certified by the next;
            or none.
    """

    hint: str
    payload: bytes
    signature: bytes
    certificates: tuple[bytes, ...] = ()

    @classmethod
    def sign(
        cls, payload: bytes, key: SigningKey, certificates: Sequence[bytes] = ()
    ) -> "Envelope":
        """Signs `payload`.

        Args:
            payload: Any bytes.
            key: An ECDSA key.
            certificates: What `load_certificate_chain` returned for the key, or none.

        Raises:
            KeyFormatError: If the key is of another algorithm.
            ValueError: If there are more than 8 certificates.
        """
        check_makes_openssf(key)
        if len(certificates) > MOST_CERTIFICATES:
            raise ValueError(
                f"A signature must have at most {MOST_CERTIFICATES} certificates. "
                f"Received: {len(certificates)}. Leave out the root."
            )
        hint = "" if certificates else key.verifying_key.hint
        signature = key.sign(pre_authentication_encoding(payload))
        return cls(hint, payload, signature, tuple(certificates))

    def to_bytes(self) -> bytes:
        """The signature file's contents."""
        bundle = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**self._signer(), "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode("ascii"),
                "payloadType": IN_TOTO,
                "signatures": [
                    {"sig": base64.b64encode(self.signature).decode("ascii"), "keyid": ""}
                ],
            },
        }
        return json.dumps(bundle, separators=(",", ":")).encode("ascii")

    def _signer(self) -> dict[str, Any]:
        if not self.certificates:
            return {"publicKey": {"hint": self.hint}}
        chain = [{"rawBytes": base64.b64encode(der).decode("ascii")} for der in self.certificates]
        return {"x509CertificateChain": {"certificates": chain}}

    @classmethod
    def from_bytes(cls, data: bytes) -> "Envelope":
        """Reads a signature file strictly; nothing in it is trusted yet.

        Raises:
            SignatureError: If it is no bundle of this version with exactly one signature, and one
                key hint or a chain of 1 to 8 certificates.
        """
        values = sum(data.count(mark) for mark in (b"[", b"{", b","))
        if values > _MAX_VALUES:
            strict.refuse("The signature file", f"hold at most {_MAX_VALUES} values", values)
        bundle = strict.check_object(
            strict.parse(data, "The signature file"),
            "The signature file",
            ("mediaType", "verificationMaterial", "dsseEnvelope"),
        )
        strict.check_equal(bundle["mediaType"], "`mediaType`", MEDIA_TYPE)
        hint, certificates = _read_signer(bundle["verificationMaterial"])
        return cls(hint, *_read_envelope(bundle["dsseEnvelope"]), certificates)


def _read_signer(value: object) -> tuple[str, tuple[bytes, ...]]:
    what, chain = "`verificationMaterial`", "x509CertificateChain"
    kind = chain if isinstance(value, dict) and chain in value else "publicKey"
    material = strict.check_object(value, what, (kind, "tlogEntries"))
    strict.check_equal(material["tlogEntries"], "`tlogEntries`", [])
    if kind == chain:
        return "", _read_chain(material[chain])
    key = strict.check_object(material["publicKey"], "`publicKey`", ("hint",))
    return strict.check_sha256(key["hint"], "The key hint"), ()


def _read_chain(value: object) -> tuple[bytes, ...]:
    chain = strict.check_object(value, "`x509CertificateChain`", ("certificates",))["certificates"]
    if not isinstance(chain, list) or not 1 <= len(chain) <= MOST_CERTIFICATES:
        strict.refuse("`certificates`", f"be a list of 1 to {MOST_CERTIFICATES} items", chain)
    entries = [strict.check_object(item, "A certificate", ("rawBytes",)) for item in chain]
    for entry in entries:
        text = strict.check_string(entry["rawBytes"], "`rawBytes`")
        if len(text) > _MOST_CERTIFICATE_CHARACTERS:
            rule = f"have at most {_MOST_CERTIFICATE_CHARACTERS} characters"
            strict.refuse("`rawBytes`", rule, len(text))
    return tuple(strict.decode_base64(entry["rawBytes"], "`rawBytes`") for entry in entries)


def _read_envelope(value: object) -> tuple[bytes, bytes]:
    fields = ("payload", "payloadType", "signatures")
    envelope = strict.check_object(value, "`dsseEnvelope`", fields)
    strict.check_equal(envelope["payloadType"], "`payloadType`", IN_TOTO)
    entry = strict.check_object(
        strict.check_single(envelope["signatures"], "`signatures`"),
        "`signatures`",
        ("sig", "keyid"),
    )
    strict.check_equal(entry["keyid"], "`keyid`", "")
    payload = strict.decode_base64(envelope["payload"], "`payload`")
    return payload, strict.decode_base64(entry["sig"], "`sig`")
