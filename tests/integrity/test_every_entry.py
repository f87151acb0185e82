"""Every public entry that takes trusted keys asks the same questions of what vouches for a model.

A new entry belongs into `ENTRIES`; `test_no_entry_is_missing_here` finds it.
"""

import contextlib
import datetime
import hashlib
import inspect
import shutil
from types import SimpleNamespace

import keras
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import keras_modelsec as ms
from keras_modelsec import integrity
from keras_modelsec.errors import (
    RevokedModelError,
    RolledBackError,
    SignatureError,
    UntrustedKeyError,
)
from keras_modelsec.integrity.statements.openssf_statement import root_digest
from keras_modelsec.trust import SigningKey, TrustedRoots, TrustStore

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
NAME = "model.keras"


def certificate(name, key, by=None, *, last=NOW + DAY):
    """A certificate for `key`; an authority's own one without `by`, else for signing code."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (by.certificate.subject, by.key) if by else (subject, key)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        + ("crl_sign", "encipher_only", "decipher_only"),
        False,
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 30 * DAY)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=by is not None, key_cert_sign=by is None, **usage),
            critical=True,
        )
    )
    if by:
        built = built.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
        )
    return SimpleNamespace(key=key, certificate=built.sign(signer, hashes.SHA256()))


@pytest.fixture(scope="module")
def authority():
    return certificate("Root", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def owner_key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def owner(owner_key):
    return SigningKey(owner_key)


@pytest.fixture(scope="module")
def co_signer():
    return SigningKey(ed25519.Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def material(tmp_path_factory, authority, owner, owner_key, co_signer):
    """Models of version 1, signed once: by a key, with a certificate, by two keys."""
    folder = tmp_path_factory.mktemp("material")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    secret = bytes(range(32))
    chain = [certificate("Signer", owner_key, authority).certificate]
    for kind, options in (
        ("key", {}),
        ("chain", {"certificate_chain": chain}),
        ("two", {"co_signing_keys": [co_signer]}),
        ("two_and_chain", {"co_signing_keys": [co_signer], "certificate_chain": chain}),
    ):
        place = folder / kind
        place.mkdir()
        model.save(place / NAME)
        ms.save_encrypted(model, place / f"{NAME}.enc", secret)
        ms.sign(place / NAME, owner, name="wanted", **options)
        ms.sign(place / f"{NAME}.enc", owner, name="wanted", **options)
        also = {"co_signing_keys": options["co_signing_keys"]} if "two" in kind else {}
        if "chain" in kind:
            also["trusted_keys"] = TrustedRoots(authority.certificate)
        ms.write_parity(place / NAME, owner, redundancy=0.5, **also)
    return SimpleNamespace(folder=folder, model=model, secret=secret)


class Case:
    """A copy of one kind of signed model, and the entries on it."""

    def __init__(self, material, tmp_path, kind):
        self.folder = tmp_path / kind
        shutil.copytree(material.folder / kind, self.folder)
        self.model, self.secret = material.model, material.secret
        self.path = self.folder / NAME

    def digests(self):
        return [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (self.path, self.folder / f"{NAME}.enc")
        ]


def copied(case, trusted, **options):
    with ms.verified_copy(case.path, trusted, **options):
        pass


def encrypted(case, trusted, **options):
    return ms.load_encrypted(
        case.folder / f"{NAME}.enc", case.secret, trusted_keys=trusted, **options
    )


def encrypted_weights(case, trusted, **options):
    path = case.folder / f"{NAME}.enc"
    ms.load_encrypted_weights(case.model, path, case.secret, trusted_keys=trusted, **options)


def located_in_memory(case, trusted, **options):
    return ms.locate_tampering(case.model, trusted, reference=case.path, **options)


ENTRIES = {
    "verify": lambda case, trusted, **o: ms.verify(case.path, trusted, **o),
    "load_verified_model": lambda case, trusted, **o: ms.load_verified_model(
        case.path, trusted, **o
    ),
    "load_verified_weights": lambda case, trusted, **o: ms.load_verified_weights(
        case.model, case.path, trusted, **o
    ),
    "verified_copy": copied,
    "repair": lambda case, trusted, **o: ms.repair(case.path, trusted, **o),
    "locate_tampering": lambda case, trusted, **o: ms.locate_tampering(case.path, trusted, **o),
    "locate_tampering in memory": located_in_memory,
    "IntegrityGuard": lambda case, trusted, **o: ms.IntegrityGuard(case.path, trusted, **o),
    "load_encrypted": encrypted,
    "load_encrypted_weights": encrypted_weights,
}
every_entry = pytest.mark.parametrize("entry", list(ENTRIES))


def takes_name(entry):
    return "expected_name" in inspect.signature(getattr(ms, entry.split()[0])).parameters


def use(entry, case, trusted, **options):
    return ENTRIES[entry](case, trusted, **options)


def test_no_entry_is_missing_here():
    found = set()
    for module in (ms, integrity, ms.encryption, ms.guards):
        for name in module.__all__:
            with contextlib.suppress(TypeError, ValueError):
                if "trusted_keys" in inspect.signature(getattr(module, name)).parameters:
                    found.add(name)
    found.remove("write_parity")  # which signs: tests/integrity/parity/test_protecting.py
    assert found == {entry.split()[0] for entry in ENTRIES}


def store_of(*keys, **options):
    store = TrustStore(**options)
    for key in keys:
        store.add(key.verifying_key)
    return store


WAYS = {
    "keys": ("key", lambda owner, authority: [owner.verifying_key]),
    "store": ("key", lambda owner, authority: store_of(owner)),
    "roots": ("chain", lambda owner, authority: TrustedRoots(authority.certificate)),
}
every_way = pytest.mark.parametrize("way", list(WAYS))


@every_way
@every_entry
def test_good_model_is_accepted_whoever_says_who_is_trusted(
    material, tmp_path, owner, authority, entry, way
):
    kind, trusted = WAYS[way]
    case = Case(material, tmp_path, kind)
    name = {"expected_name": "wanted"} if takes_name(entry) else {}
    use(entry, case, trusted(owner, authority), **name)


@every_way
@every_entry
def test_revoked_model_and_too_old_a_version_are_refused(
    material, tmp_path, owner, authority, entry, way
):
    kind, trusted = WAYS[way]
    case = Case(material, tmp_path, kind)
    trusted = trusted(owner, authority)
    store = trusted if way == "store" else TrustStore()
    everybody = store if way == "store" else [*([trusted] if way == "roots" else trusted), store]
    use(entry, case, everybody)
    store.set_lowest_version("wanted", 2)
    with pytest.raises(RolledBackError):
        use(entry, case, everybody)
    for digests in (case.digests(), [root_digest([digest]) for digest in case.digests()]):
        store = store_of(owner)
        for digest in digests:
            store.revoke(digest=digest)
        everybody = [store] if way == "store" else [*everybody[:-1], store]
        with pytest.raises(RevokedModelError):
            use(entry, case, everybody)


@every_way
@every_entry
def test_revoked_key_and_foreign_key_are_refused(material, tmp_path, owner, authority, entry, way):
    kind, trusted = WAYS[way]
    case = Case(material, tmp_path, kind)
    trusted = trusted(owner, authority)
    store = trusted if way == "store" else TrustStore()
    store.revoke(owner.verifying_key, reason="stolen")
    everybody = store if way == "store" else [*([trusted] if way == "roots" else trusted), store]
    with pytest.raises(UntrustedKeyError, match="stolen"):
        use(entry, case, everybody)
    stranger = certificate("Root", ec.generate_private_key(ec.SECP256R1()))
    key = SigningKey(stranger.key)
    for other in ([key.verifying_key], store_of(key), TrustedRoots(stranger.certificate)):
        with pytest.raises(UntrustedKeyError):
            use(entry, case, other)


@every_entry
def test_expired_key_store_or_certificate_is_refused_and_named(
    material, tmp_path, owner, authority, entry
):
    case = Case(material, tmp_path, "key")
    store = TrustStore()
    store.add(owner.verifying_key, not_after=NOW - DAY)
    with pytest.raises(UntrustedKeyError, match="trusted no more"):
        use(entry, case, store)
    store = store_of(owner)
    store.set_expiry(NOW - DAY)
    with pytest.raises(RolledBackError, match="expired"):
        use(entry, case, store)
    chain = Case(material, tmp_path, "chain")
    late = certificate("Root", authority.key, last=NOW - DAY).certificate
    with pytest.raises(UntrustedKeyError, match="must be valid on") as caught:
        use(entry, chain, TrustedRoots(late))
    assert "add it" not in str(caught.value)
    with pytest.raises(
        UntrustedKeyError, match=r"must be CN=Other\. Received: CN=Signer"
    ) as caught:
        use(entry, chain, TrustedRoots(authority.certificate, subject="CN=Other"))
    assert "add it" not in str(caught.value)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if takes_name(entry)])
def test_model_of_another_name_is_refused(material, tmp_path, owner, authority, entry):
    for way, (kind, trusted) in WAYS.items():
        case = Case(material, tmp_path / way, kind)
        with pytest.raises(SignatureError, match=r"expected \('other'\)\. Received: 'wanted'"):
            use(entry, case, trusted(owner, authority), expected_name="other")


@every_entry
def test_signature_that_is_taken_off_is_missed(material, tmp_path, owner, co_signer, entry):
    both = [owner.verifying_key, co_signer.verifying_key]
    good = Case(material, tmp_path, "two")
    stripped = Case(material, tmp_path, "key")
    for threshold in (2, "all"):
        use(entry, good, both, threshold=threshold)
        with pytest.raises(UntrustedKeyError, match="of the trusted keys"):
            use(entry, stripped, both, threshold=threshold)
    use(entry, stripped, both)
    for place in good.folder.glob("*.modelsec.json"):
        place.unlink()  # the OpenSSF signature has one signer
    if entry != "repair":  # which puts the statement back
        with pytest.raises(SignatureError):
            use(entry, good, both, threshold="all")


@every_entry
def test_threshold_that_cannot_be_met_is_a_usage_error(
    material, tmp_path, owner, co_signer, authority, entry
):
    case = Case(material, tmp_path, "two_and_chain")
    same = [owner.verifying_key, owner.verifying_key]
    roots = TrustedRoots(authority.certificate)
    for trusted, threshold in (
        (same, 2),
        ([owner.verifying_key, co_signer.verifying_key], 3),
        ([roots], 2),
        ([roots, roots], "all"),
        (store_of(owner), "all"),
        (same, 0),
        (same, "each"),
    ):
        with pytest.raises(ValueError, match="`threshold` must be") as caught:
            use(entry, case, trusted, threshold=threshold)
        assert not isinstance(caught.value, SignatureError)
    use(entry, Case(material, tmp_path, "key"), same, threshold="all")
    use(entry, case, [roots, co_signer.verifying_key], threshold="all")
    use(entry, case, [roots, co_signer.verifying_key], threshold=2)
    # The key under the certificate is one of the list: that is one signer, not two.
    with pytest.raises(UntrustedKeyError):
        use(entry, case, [roots, owner.verifying_key], threshold="all")
    with pytest.raises(UntrustedKeyError):
        use(entry, case, [roots, owner.verifying_key], threshold=2)
