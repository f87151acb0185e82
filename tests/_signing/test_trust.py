"""What keys, certificates and a store decide together: the answers `verify` gets."""

import datetime
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import keras_modelsec as ms
from keras_modelsec._signing.certificate_rules import Certified
from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.trust import Trust, load_trust
from keras_modelsec.errors import (
    RevokedModelError,
    RolledBackError,
    SignatureError,
    UntrustedKeyError,
)
from keras_modelsec.trust import SigningKey, TrustStore

UTC = datetime.UTC
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = datetime.timedelta(days=1)


def new_key():
    return SigningKey(ec.generate_private_key(ec.SECP256R1()))


def test_model_verifies_by_a_store_until_its_key_is_revoked(tmp_path, key):
    (tmp_path / "m.bin").write_bytes(b"weights")
    ms.sign(tmp_path / "m.bin", key)
    store = ms.TrustStore()
    with pytest.raises(ValueError, match="at least one public key"):
        ms.verify(tmp_path / "m.bin", store)
    store.add(key.verifying_key)
    ms.verify(tmp_path / "m.bin", store)
    ms.verify(tmp_path / "m.bin", [store, new_key().verifying_key])
    store.revoke(key.verifying_key, reason="laptop stolen")
    with pytest.raises(UntrustedKeyError, match="laptop stolen"):
        ms.verify(tmp_path / "m.bin", store)
    with pytest.raises(UntrustedKeyError, match="laptop stolen"):
        ms.verify(tmp_path / "m.bin", [key.verifying_key, store])  # the store overrules the list


def test_key_counts_within_its_validity_and_not_outside(key):
    store = TrustStore()
    second = datetime.timedelta(seconds=1)
    hint = store.add(key.verifying_key, not_before=NOON, not_after=NOON + DAY)
    for at in (NOON, NOON + DAY):
        assert load_trust(store, at=at).find(hint)
    with pytest.raises(UntrustedKeyError, match="not trusted yet"):
        load_trust(store, at=NOON - second).find(hint)
    with pytest.raises(UntrustedKeyError, match="trusted no more"):
        load_trust(store, at=NOON + DAY + second).find(hint)
    store.add(key.verifying_key, not_after=datetime.datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(UntrustedKeyError, match="trusted no more"):
        load_trust(store).find(hint)  # now is later


def test_unknown_key_is_none_and_threshold_counts_different_keys(key, other_key):
    store = TrustStore(threshold=2)
    store.add(key.verifying_key)
    store.add(key.verifying_key, name="the same again")
    store.add(other_key.verifying_key)
    trust = load_trust(store)
    assert trust.find("0" * 64) is None
    assert trust.requires_statement
    one = DsseEnvelope.sign(b"payload", [key])
    twice = DsseEnvelope(one.payload, one.payload_type, one.signatures * 2)
    with pytest.raises(UntrustedKeyError, match="by 2 of the trusted keys"):
        one.verified_payload(trust)
    with pytest.raises(SignatureError, match="each key once"):
        DsseEnvelope.from_bytes(twice.to_bytes())
    stranger = DsseEnvelope.sign(b"payload", [key, new_key()])
    with pytest.raises(UntrustedKeyError, match="1 count"):
        stranger.verified_payload(trust)
    both = DsseEnvelope.sign(b"payload", [key, other_key])
    assert both.verified_payload(trust) == b"payload"
    store.revoke(other_key.verifying_key)
    with pytest.raises(UntrustedKeyError, match="1 count"):
        both.verified_payload(load_trust(store))


def test_trust_does_not_follow_later_changes_of_the_store(key):
    store = TrustStore()
    hint = store.add(key.verifying_key)
    trust = load_trust(store)
    store.revoke(hint)
    assert trust.find(hint)
    with pytest.raises(UntrustedKeyError):
        load_trust(store).find(hint)


@pytest.mark.parametrize(
    ("name", "version", "accepted"),
    [
        ("classifier", 7, True),
        ("classifier", 6, False),
        ("classifier", None, False),
        ("other", 2, True),
        ("other", 1, False),
        ("other", None, False),
    ],
)
def test_lowest_version_holds_by_name_and_for_all(key, name, version, accepted):
    store = TrustStore()
    store.add(key.verifying_key)
    store.set_lowest_version("classifier", 7)
    store.set_lowest_version("*", 2)
    trust = load_trust(store)
    assert trust.requires_statement
    if accepted:
        trust.check_model(name, version, ())
    else:
        with pytest.raises(RolledBackError, match=name):
            trust.check_model(name, version, ())


def test_rolled_back_model_is_refused_in_full(tmp_path, key):
    (tmp_path / "m.bin").write_bytes(b"weights")
    ms.sign(tmp_path / "m.bin", key)  # version 1
    store = TrustStore()
    store.add(key.verifying_key)
    store.set_lowest_version("m.bin", 1)
    ms.verify(tmp_path / "m.bin", store)
    store.set_lowest_version("m.bin", 2)
    with pytest.raises(RolledBackError):
        ms.verify(tmp_path / "m.bin", store)
    (tmp_path / "m.bin.modelsec.json").unlink()  # what an attacker would try
    with pytest.raises(SignatureError):
        ms.verify(tmp_path / "m.bin", store)


def test_revoked_bytes_are_refused_in_full(tmp_path, key):
    (tmp_path / "m.bin").write_bytes(b"weights")
    ms.sign(tmp_path / "m.bin", key)
    store = TrustStore()
    store.add(key.verifying_key)
    store.revoke(digest=hashlib.sha256(b"weights").hexdigest(), reason="backdoor")
    with pytest.raises(RevokedModelError, match="backdoor"):
        ms.verify(tmp_path / "m.bin", store)
    for name in ("m.bin.modelsec.json", "m.bin.sig"):
        (tmp_path / name).unlink()
        with pytest.raises(SignatureError):
            ms.verify(tmp_path / "m.bin", store)


def test_trust_of_plain_keys_asks_for_no_statement(key):
    trust = load_trust(key.verifying_key)
    assert (trust.threshold, trust.requires_statement) == (1, False)
    trust.check_model("any", None, ["ab" * 32])
    assert load_trust(trust) is trust
    assert isinstance(trust, Trust)


def test_each_signature_of_a_statement_is_asked_for_at_its_time(tmp_path, key):
    (tmp_path / "m.bin").write_bytes(b"weights")
    ms.sign(tmp_path / "m.bin", key)
    store = TrustStore()
    store.add(key.verifying_key, not_before=NOON, not_after=NOON + DAY)
    ms.verify(tmp_path / "m.bin", load_trust(store, at=NOON))
    for at in (NOON - DAY, NOON + 2 * DAY):
        with pytest.raises(UntrustedKeyError, match="must be within its validity"):
            ms.verify(tmp_path / "m.bin", load_trust(store, at=at))
    (tmp_path / "m.bin.modelsec.json").unlink()  # NAME.sig is asked the same
    with pytest.raises(UntrustedKeyError, match="must be within its validity"):
        ms.verify(tmp_path / "m.bin", load_trust(store, at=NOON - DAY))


def test_two_signers_are_demanded_and_ml_dsa_can_be_one(tmp_path, key):
    (tmp_path / "m.bin").write_bytes(b"weights")
    private, public = ms.generate_keys(tmp_path / "pq.pem", algorithm="ml-dsa-65")
    store = TrustStore(threshold=2)
    store.add(key.verifying_key)
    store.add(public)
    ms.sign(tmp_path / "m.bin", key)
    with pytest.raises(UntrustedKeyError, match="by 2 of the trusted keys"):
        ms.verify(tmp_path / "m.bin", store)
    ms.sign(tmp_path / "m.bin", key, co_signing_keys=[private])
    ms.verify(tmp_path / "m.bin", store)
    (tmp_path / "m.bin.modelsec.json").unlink()  # one signature is left
    with pytest.raises(SignatureError):
        ms.verify(tmp_path / "m.bin", store)


def test_included_key_is_trusted_unless_it_is_revoked(key, other_key):
    store = TrustStore()
    store.add(key.verifying_key)
    hint = other_key.verifying_key.hint
    trust = load_trust(store)
    assert trust.find(hint) is None
    assert trust.including(Certified(other_key.verifying_key, "CN=x", ())).find(hint)
    assert trust.find(hint) is None
    store.revoke(hint)
    with pytest.raises(UntrustedKeyError, match="revoked"):
        load_trust(store).including(Certified(other_key.verifying_key, "CN=x", ())).find(hint)


def test_openssf_signatures_are_read_only_by_who_can_trust_one(tmp_path, key):
    _, public = ms.generate_keys(tmp_path / "e.pem", algorithm="ed25519")
    store = TrustStore()
    store.add(public)
    assert not load_trust(store).reads_openssf
    assert not load_trust(public).reads_openssf
    assert load_trust([store, key.verifying_key]).reads_openssf
    store.add(key.verifying_key)
    assert load_trust(store).reads_openssf
    store.revoke(key.verifying_key)
    assert load_trust(store).reads_openssf


def test_all_keys_that_an_authority_certifies_count_as_one(key, other_key):
    """Who is certified twice by one authority is not two signers."""
    mine = new_key()
    trust = Trust({mine.verifying_key.hint: mine.verifying_key}, threshold=2)
    for certified in (key, other_key):
        trust = trust.including(Certified(certified.verifying_key, "CN=x", ()))
    twice = DsseEnvelope.sign(b"payload", [key, other_key])
    with pytest.raises(UntrustedKeyError, match="of which 1 count"):
        twice.verified_payload(trust)
    assert DsseEnvelope.sign(b"payload", [key, mine]).verified_payload(trust) == b"payload"


def test_threshold_holds_beside_that_of_a_store(key, other_key):
    store = TrustStore(threshold=2)
    third = new_key()
    for trusted in (key, other_key, third):
        store.add(trusted.verifying_key)
    assert load_trust(store, threshold=1).threshold == 2
    assert load_trust(store, threshold=3).threshold == 3
    two = DsseEnvelope.sign(b"payload", [key, other_key])
    two.verified_payload(load_trust(store))
    with pytest.raises(UntrustedKeyError, match="by 3 of the trusted keys"):
        two.verified_payload(load_trust(store, threshold=3))
    with pytest.raises(ValueError, match=r"different trusted keys \(3;"):
        load_trust(store, threshold=4)
    store.revoke(third.verifying_key)  # somebody's decision, not the reader's mistake
    with pytest.raises(UntrustedKeyError):
        two.verified_payload(load_trust(store, threshold=3))


def test_each_of_the_keys_is_asked_for_by_name(key, other_key):
    both = [key.verifying_key, other_key.verifying_key]
    trust = load_trust(both, threshold="all")
    missing = other_key.verifying_key.hint[:16]
    with pytest.raises(UntrustedKeyError, match=f"by each of .* without {missing}"):
        DsseEnvelope.sign(b"payload", [key, new_key()]).verified_payload(trust)
    with pytest.raises(ValueError, match="must be that of the Trust"):
        load_trust(trust, threshold=2)
