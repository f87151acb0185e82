"""The outer layers of a signature file: a Sigstore bundle v0.3 around one DSSE envelope.

Owns the bytes of `NAME.sig` and what exactly is signed (DSSE's pre-authentication encoding). Knows
nothing of what the payload says.
"""

import base64
import json
from dataclasses import dataclass

from keras_modelsec.integrity import strict_json as strict

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIGNATURE_BYTES = 16 << 20  # some 70,000 files; the bytes are untrusted when they are parsed
_MAX_VALUES = 64  # a bundle has 13: what could use up the memory is not parsed at all


@dataclass(frozen=True)
class Envelope:
    """One payload with one signature, and the hint which key made it.

    Args:
        hint: Hex SHA-256 of the signer's public key in PEM.
        payload: The signed bytes, not to be parsed before the signature is verified.
        signature: DER-encoded ECDSA signature over `pre_authentication_encoding(payload)`.
    """

    hint: str
    payload: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """The signature file's contents."""
        bundle = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode("ascii"),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [
                    {"sig": base64.b64encode(self.signature).decode("ascii"), "keyid": ""}
                ],
            },
        }
        return json.dumps(bundle, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Envelope":
        """Reads a signature file strictly; nothing in it is trusted yet.

        Raises:
            SignatureError: If it is no bundle of this version with exactly one key hint and one
                signature.
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
        return cls(
            _read_hint(bundle["verificationMaterial"]), *_read_envelope(bundle["dsseEnvelope"])
        )


def _read_hint(value: object) -> str:
    material = strict.check_object(value, "`verificationMaterial`", ("publicKey", "tlogEntries"))
    strict.check_equal(material["tlogEntries"], "`tlogEntries`", [])
    key = strict.check_object(material["publicKey"], "`publicKey`", ("hint",))
    return strict.check_sha256(key["hint"], "The key hint")


def _read_envelope(value: object) -> tuple[bytes, bytes]:
    fields = ("payload", "payloadType", "signatures")
    envelope = strict.check_object(value, "`dsseEnvelope`", fields)
    strict.check_equal(envelope["payloadType"], "`payloadType`", PAYLOAD_TYPE)
    entry = strict.check_object(
        strict.check_single(envelope["signatures"], "`signatures`"),
        "`signatures`",
        ("sig", "keyid"),
    )
    strict.check_equal(entry["keyid"], "`keyid`", "")
    payload = strict.decode_base64(envelope["payload"], "`payload`")
    return payload, strict.decode_base64(entry["sig"], "`sig`")


def pre_authentication_encoding(payload: bytes) -> bytes:
    """What is signed: payload and payload type with their lengths (DSSE v1.0, PAE)."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
