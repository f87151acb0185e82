"""Envelopes with several signatures: how many count, and which harm."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec._signing.dsse import DsseEnvelope, pre_authentication_encoding
from keras_modelsec._signing.trust import Trust
from keras_modelsec.errors import SignatureError, UntrustedKeyError
from keras_modelsec.trust import SigningKey

PAYLOAD = b'{"a": 1}'


def trust(*keys, threshold=1):
    result = Trust({key.verifying_key.hint: key.verifying_key for key in keys})
    result.threshold = threshold
    return result


@pytest.fixture(scope="module")
def third_key():
    return SigningKey(ec.generate_private_key(ec.SECP384R1()))


def test_encoding_is_that_of_the_specification():
    # The example of DSSE's protocol.md.
    encoded = pre_authentication_encoding(b"hello world", "http://example.com/HelloWorld")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_round_trip_and_payload_of_one_trusted_signature(key, other_key):
    data = DsseEnvelope.sign(PAYLOAD, [key]).to_bytes()
    assert DsseEnvelope.from_bytes(data).verified_payload(trust(key)) == PAYLOAD
    with pytest.raises(UntrustedKeyError, match="0 count"):
        DsseEnvelope.from_bytes(data).verified_payload(trust(other_key))


def test_payload_type_is_signed_and_the_only_one_read(key):
    envelope = DsseEnvelope.sign(PAYLOAD, [key], "application/x")
    with pytest.raises(SignatureError, match="payloadType"):
        DsseEnvelope.from_bytes(envelope.to_bytes())
    moved = DsseEnvelope(PAYLOAD, "application/vnd.in-toto+json", envelope.signatures)
    with pytest.raises(SignatureError, match="altered or forged"):
        moved.verified_payload(trust(key))


def test_unknown_signatures_do_not_count_and_do_no_harm(key, other_key, third_key):
    envelope = DsseEnvelope.sign(PAYLOAD, [other_key, key, third_key])
    assert envelope.verified_payload(trust(key)) == PAYLOAD
    assert envelope.verified_payload(trust(key, third_key, threshold=2)) == PAYLOAD
    with pytest.raises(UntrustedKeyError, match="by 2 of the trusted keys"):
        envelope.verified_payload(trust(key, threshold=2))


def test_forged_signature_under_a_trusted_hint_is_refused_beside_a_good_one(key, other_key):
    good = DsseEnvelope.sign(PAYLOAD, [key]).signatures[0]
    forged = (other_key.verifying_key.hint, key.sign(b"else"))
    envelope = DsseEnvelope(PAYLOAD, "application/vnd.in-toto+json", (good, forged))
    assert envelope.verified_payload(trust(key)) == PAYLOAD
    with pytest.raises(SignatureError, match="altered or forged"):
        envelope.verified_payload(trust(key, other_key))


def test_one_key_counts_once(key):
    with pytest.raises(ValueError, match="different keys"):
        DsseEnvelope.sign(PAYLOAD, [key, key])
    data = json.loads(DsseEnvelope.sign(PAYLOAD, [key]).to_bytes())
    data["signatures"] *= 2
    with pytest.raises(SignatureError, match="name each key once"):
        DsseEnvelope.from_bytes(json.dumps(data).encode())


def test_threshold_below_one_still_asks_for_one(key, other_key):
    envelope = DsseEnvelope.sign(PAYLOAD, [key])
    with pytest.raises(UntrustedKeyError):
        envelope.verified_payload(trust(other_key, threshold=0))


@pytest.mark.parametrize("count", [0, 17])
def test_number_of_signatures_is_bounded(key, count):
    data = json.loads(DsseEnvelope.sign(PAYLOAD, [key]).to_bytes())
    data["signatures"] = [{"keyid": f"{n:064x}", "sig": "AA=="} for n in range(count)]
    with pytest.raises(SignatureError, match="1 to 16"):
        DsseEnvelope.from_bytes(json.dumps(data).encode())


def test_envelope_with_many_values_is_not_parsed(key):
    with pytest.raises(SignatureError, match="at most 136 values"):
        DsseEnvelope.from_bytes(b"[" * 1000)
