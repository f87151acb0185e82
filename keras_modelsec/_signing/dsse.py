"""DSSE envelopes in JSON with one signature or several: the outer layer of our own statements.

Owns the bytes of the envelope, what exactly is signed, and how many trusted signatures are enough.
Knows nothing of what the payload says, which is not parsed before its signatures are verified.
Specification: https://github.com/secure-systems-lab/dsse.
"""

import base64
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keras_modelsec._signing import strict_json as strict
from keras_modelsec._signing.keys import SigningKey, VerifyingKey
from keras_modelsec.errors import UntrustedKeyError

IN_TOTO = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 256 << 20  # the leaf digests of a model of some terabytes
_MAX_SIGNATURES = 16
_MAX_VALUES = 8 + 8 * _MAX_SIGNATURES  # what could use up the memory is not parsed at all


def pre_authentication_encoding(payload: bytes, payload_type: str = IN_TOTO) -> bytes:
    """What is signed: payload and payload type with their lengths (DSSE v1.0, PAE)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class Signers(Protocol):
    """Whoever says which keys count, and how many of them are enough: `Trust`."""

    def find(self, hint: str) -> VerifyingKey | None:
        """The trusted key with this hint, or None if it is unknown."""

    def check_signers(
        self, good: Collection[str], named: Sequence[str], reasons: Sequence[str] = ()
    ) -> None:
        """Returns if the keys that have signed are enough."""


@dataclass(frozen=True)
class DsseEnvelope:
    """A payload with the signatures on it; nothing in it is trusted until `verified_payload`.

    Args:
        payload: The signed bytes.
        payload_type: What kind of bytes they are; signed with them.
        signatures: Key hint (hex SHA-256 of the public key in PEM) and raw signature, one or more.
    """

    payload: bytes
    payload_type: str
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def sign(
        cls, payload: bytes, keys: Sequence[SigningKey], payload_type: str = IN_TOTO
    ) -> "DsseEnvelope":
        """Signs `payload` with each key.

        Raises:
            ValueError: If there is no key, a key twice, or more than 16.
        """
        hints = [key.verifying_key.hint for key in keys]
        if not 1 <= len(set(hints)) == len(hints) <= _MAX_SIGNATURES:
            raise ValueError(
                f"A statement must be signed by 1 to {_MAX_SIGNATURES} different keys. "
                f"Received: {len(hints)} keys, {len(set(hints))} of them different."
            )
        data = pre_authentication_encoding(payload, payload_type)
        pairs = zip(hints, (key.sign(data) for key in keys), strict=True)
        return cls(payload, payload_type, tuple(pairs))

    def to_bytes(self) -> bytes:
        """The envelope as JSON."""
        envelope = {
            "payload": base64.b64encode(self.payload).decode("ascii"),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": hint, "sig": base64.b64encode(signature).decode("ascii")}
                for hint, signature in self.signatures
            ],
        }
        return json.dumps(envelope, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(
        cls, data: bytes, *, payload_type: str = IN_TOTO, what: str = "The statement file"
    ) -> "DsseEnvelope":
        """Reads an envelope strictly.

        Args:
            data: Untrusted bytes.
            payload_type: The only type accepted.
            what: What the bytes are, for messages.

        Raises:
            SignatureError: If it is no envelope of this type with 1 to 16 signatures by different
                keys.
        """
        values = sum(data.count(mark) for mark in (b"[", b"{", b","))
        if values > _MAX_VALUES:
            strict.refuse(what, f"hold at most {_MAX_VALUES} values", values)
        envelope = strict.check_object(
            strict.parse(data, what), what, ("payload", "payloadType", "signatures")
        )
        strict.check_equal(envelope["payloadType"], "`payloadType`", payload_type)
        payload = strict.decode_base64(envelope["payload"], "`payload`")
        return cls(payload, payload_type, _read_signatures(envelope["signatures"]))

    def verified_payload(self, trust: Signers) -> bytes:
        """The payload, if enough trusted keys have signed it; see `check`."""
        self.check(trust)
        return self.payload

    def check(self, trust: Signers) -> tuple[str, ...]:
        """The hints of the trusted keys that have signed the payload, if they are enough.

        Signatures of unknown or revoked keys do not count and do no harm; one that names a trusted
        key and is not that key's is a forgery and refused, whatever the others are.

        Raises:
            UntrustedKeyError: If they are not (`Trust.check_signers`).
            SignatureError: If a signature does not verify.
        """
        data = pre_authentication_encoding(self.payload, self.payload_type)
        good: list[str] = []
        reasons: list[str] = []
        for hint, signature in self.signatures:
            try:
                key = trust.find(hint)
            except UntrustedKeyError as error:
                reasons.append(str(error))
                continue
            if key is not None:
                key.check(signature, data)
                good.append(hint)
        trust.check_signers(good, [hint for hint, _ in self.signatures], reasons)
        return tuple(good)


def _read_signatures(value: Any) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_SIGNATURES:
        strict.refuse("`signatures`", f"be a list of 1 to {_MAX_SIGNATURES} items", value)
    pairs = []
    for item in value:
        entry = strict.check_object(item, "A signature", ("keyid", "sig"))
        hint = strict.check_sha256(entry["keyid"], "`keyid`")
        pairs.append((hint, strict.decode_base64(entry["sig"], "`sig`")))
    if len({hint for hint, _ in pairs}) != len(pairs):
        strict.refuse("`signatures`", "name each key once", [hint for hint, _ in pairs])
    return tuple(pairs)
