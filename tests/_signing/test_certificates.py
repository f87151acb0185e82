"""Chains good and bad, and both ways against the reference implementation's own command."""

import base64
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_modelsec as ms
from keras_modelsec._signing.keys import hint_of
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec._signing.trust import load_trust
from keras_modelsec.errors import KeyFormatError, SignatureError, UntrustedKeyError
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.manifest import Manifest
from keras_modelsec.trust import SigningKey, TrustedRoots, TrustStore, load_certificate_chain

GOLDEN = Path(__file__).parents[1] / "golden" / "integrity"
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
CODE_SIGNING, SERVER_AUTH = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH
ANY_USAGE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
USAGES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]
DEFAULT = object()


def named(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def usage(*names):
    return x509.KeyUsage(**{name: name in names for name in USAGES})


class Issued:
    """A certificate with its private key."""

    def __init__(
        self,
        name,
        by=None,
        *,
        ca=True,
        path_length=None,
        constraints=DEFAULT,
        key_usage=DEFAULT,
        extended=DEFAULT,
        first=NOON - DAY,
        last=NOON + DAY,
        key=None,
        issuer_name=None,
        signing_key=None,
        algorithm=DEFAULT,
        extra=(),
    ):
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        signing_key = signing_key or (by.key if by else self.key)
        issuer = issuer_name or (by.certificate.subject if by else named(name))
        if constraints is DEFAULT:
            constraints = x509.BasicConstraints(ca, path_length)
        if key_usage is DEFAULT:
            key_usage = usage("key_cert_sign") if ca else usage("digital_signature")
        if extended is DEFAULT:
            extended = None if ca else [CODE_SIGNING]
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
        )
        parts = [(constraints, True), (key_usage, True)]
        parts += [(x509.ExtendedKeyUsage(extended) if extended else None, False), *extra]
        for part, critical in parts:
            if part is not None:
                builder = builder.add_extension(part, critical)
        if algorithm is DEFAULT:
            plain = isinstance(signing_key, ed25519.Ed25519PrivateKey)
            algorithm = None if plain else hashes.SHA256()
        self.certificate = builder.sign(signing_key, algorithm)

    @property
    def der(self):
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def root():
    return Issued("Root")


@pytest.fixture(scope="module")
def middle(root):
    return Issued("Middle", root)


@pytest.fixture(scope="module")
def leaf(middle):
    return Issued("Leaf", middle, ca=False)


def check(roots, *chain, at=NOON, **options):
    return TrustedRoots([r.certificate for r in roots], **options).verify(
        [item.der for item in chain], at
    )


def refused(message, roots, *chain, at=NOON, **options):
    with pytest.raises(UntrustedKeyError, match=message):
        check(roots, *chain, at=at, **options)


def test_chain_is_good_with_and_without_its_root(root, middle, leaf):
    for chain in ([leaf, middle], [leaf, middle, root]):
        certified = check([root], *chain)
        assert certified.key.hint == hint_of(leaf.key.public_key())
        assert certified.subject == "CN=Leaf"
        assert certified.hints == tuple(
            hint_of(item.key.public_key()) for item in (leaf, middle, root)
        )
    direct = Issued("Direct", root, ca=False)
    assert check([root], direct).subject == "CN=Direct"
    assert check([middle], leaf).subject == "CN=Leaf"  # any authority can be what is trusted


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p384", "p521", "rsa", "ed25519"],
)
def test_authorities_may_have_keys_of_other_kinds(key):
    root = Issued("Root", key=key)
    assert check([root], Issued("Leaf", root, ca=False)).subject == "CN=Leaf"


def test_everything_must_be_valid_now_the_root_too(root, middle, leaf):
    second = datetime.timedelta(seconds=1)
    for at in (NOON - DAY, NOON + DAY):
        assert check([root], leaf, middle, at=at)
    for at in (NOON - DAY - second, NOON + DAY + second):
        refused("must be valid on", [root], leaf, middle, at=at)
    short = {"first": NOON - 3 * DAY, "last": NOON - 2 * DAY}
    old_root = Issued("Root", **short)
    refused("valid on", [old_root], Issued("Leaf", old_root, ca=False))
    old_middle = Issued("Middle", root, **short)
    refused("valid on", [root], Issued("Leaf", old_middle, ca=False), old_middle)
    refused("valid on", [root], Issued("Leaf", root, ca=False, **short))
    refused("valid on", [root], Issued("Leaf", root, ca=False, first=NOON + DAY / 2))


def test_time_defaults_to_now_and_needs_a_zone(root, leaf, middle):
    now = datetime.datetime.now(datetime.UTC)
    span = {"first": now - DAY, "last": now + DAY}
    fresh = Issued("Root", **span)
    assert check([fresh], Issued("Leaf", fresh, ca=False, **span), at=None)
    past = {"first": now - 2 * DAY, "last": now - DAY}
    refused("valid on", [fresh], Issued("Leaf", fresh, ca=False, **past), at=None)
    with pytest.raises(ValueError, match="time zone"):
        check([root], leaf, middle, at=datetime.datetime(2026, 6, 1))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("not be an authority's", {"constraints": x509.BasicConstraints(True, None)}),
        ("key usage must be digitalSignature.*states another, or none", {"key_usage": None}),
        ("key usage must be digitalSignature", {"key_usage": usage("key_agreement")}),
        ("key usage must be", {"key_usage": usage("digital_signature", "key_cert_sign")}),
        ("extended key usage must be codeSigning.*, or none", {"extended": None}),
        ("extended key usage must be codeSigning", {"extended": [SERVER_AUTH]}),
        ("extended key usage must be codeSigning", {"extended": [ANY_USAGE]}),
        ("algorithms", {"key": rsa.generate_private_key(65537, 2048)}),
        ("must be made with an ECDSA key", {"key": ed25519.Ed25519PrivateKey.generate()}),
        ("one of secp256r1", {"key": ec.generate_private_key(ec.SECP256K1())}),
        (
            "unknown critical part",
            {
                "extra": [
                    (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
                ]
            },
        ),
        ("unknown critical part", {"extra": [(x509.PrecertPoison(), True)]}),
    ],
)
def test_signers_certificate_must_be_for_signing_code(root, message, options):
    refused(message, [root], Issued("Leaf", root, ca=False, **options))


def test_unknown_parts_that_are_not_critical_and_a_plain_signer_are_fine(root):
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert check([root], Issued("Leaf", root, ca=False, extra=[(unknown, False)]))
    assert check([root], Issued("Leaf", root, ca=False, constraints=None))
    usages = [CODE_SIGNING, SERVER_AUTH]
    assert check([root], Issued("Leaf", root, ca=False, extended=usages))


CONSTRAINTS = x509.NameConstraints([x509.DNSName("example.org")], None)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("basicConstraints CA", {"constraints": None}),
        ("basicConstraints CA", {"constraints": x509.BasicConstraints(False, None)}),
        ("key usage must be keyCertSign.*states another, or none", {"key_usage": None}),
        ("key usage must be keyCertSign", {"key_usage": usage("digital_signature", "crl_sign")}),
        ("must allow codeSigning", {"extended": [SERVER_AUTH]}),
        ("name constraints", {"extra": [(CONSTRAINTS, True)]}),
        ("name constraints", {"extra": [(CONSTRAINTS, False)]}),
        ("2048 bits", {"key": rsa.generate_private_key(65537, 1024)}),
        ("one of secp256r1", {"key": ec.generate_private_key(ec.SECP224R1())}),
    ],
)
def test_who_certifies_must_be_an_authority(root, message, options):
    bad = Issued("Middle", root, **options)
    refused(message, [root], Issued("Leaf", bad, ca=False), bad)


@pytest.mark.parametrize("options", [{"constraints": None}, {"key_usage": None}, {"ca": False}])
def test_root_that_is_no_authority_is_refused_at_once(options):
    with pytest.raises(KeyFormatError, match="`roots` must be certificate authorities"):
        TrustedRoots(Issued("Root", **options).certificate)


def test_leaf_that_certifies_is_no_authority(root, leaf, middle):
    refused("basicConstraints CA", [root], Issued("Evil", leaf, ca=False), leaf, middle)


def test_path_length_counts_the_authorities_below(root, middle):
    none = Issued("None", root, path_length=0)
    assert check([root], Issued("Leaf", none, ca=False), none)
    below = Issued("Below", none)
    leaf = Issued("Leaf", below, ca=False)
    refused("path length 0 and 1 below", [root], leaf, below, none)
    one = Issued("One", path_length=1)
    first = Issued("First", one)
    second = Issued("Second", first)
    assert check([one], Issued("Leaf", first, ca=False), first)
    refused("path length 1 and 2", [one], Issued("Leaf", second, ca=False), second, first)
    usages = [CODE_SIGNING]
    limited = Issued("Limited", root, extended=usages)
    assert check([root], Issued("Leaf", limited, ca=False), limited)


def test_self_signed_signer_is_nobody(root):
    own = Issued("Leaf", ca=False)
    refused("lead to a trusted root", [root], own)
    refused("issued and signed by the next", [root], own, root)


def test_trusted_root_signs_no_model_itself(root):
    refused("not be an authority's", [root], root)


def test_root_of_the_same_name_with_another_key_is_nobody(root, middle):
    double = Issued("Root")
    forged = Issued("Leaf", double, ca=False)
    refused("lead to a trusted root", [root], forged)
    refused("lead to a trusted root", [root], forged, double)
    refused("issued and signed by the next", [root], forged, root)
    assert check([double, root], Issued("Leaf", root, ca=False))  # both names are tried


def test_names_must_chain_even_if_the_signature_does(root):
    other = Issued("Leaf", root, ca=False, issuer_name=named("Somebody"))
    refused("lead to a trusted root", [root], other)
    refused("issued and signed by the next", [root], other, root)


def test_signature_by_another_key_is_refused(root, middle):
    stranger = ec.generate_private_key(ec.SECP256R1())
    forged = Issued("Leaf", middle, ca=False, signing_key=stranger)
    refused("issued and signed by the next", [root], forged, middle)


def test_order_and_number_are_exact(root, middle, leaf):
    extra = Issued("Extra", root)
    refused("lead to a trusted root", [root], middle, leaf)
    refused("each certificate once", [root], leaf, root, middle)
    refused("each certificate once", [root], leaf, middle, root, extra)
    refused("issued and signed by the next", [root], leaf, middle, extra)
    refused("issued and signed by the next", [root], leaf, extra, middle)
    refused("lead to a trusted root", [root], leaf)
    refused("each certificate once|signed by the next", [root], leaf, middle, middle)
    refused("1 to 8", [root])
    refused("1 to 8", [root], *[leaf] * 9)
    refused("lead to a trusted root", [middle], leaf, middle, root)  # superfluous above the trusted


def test_weak_hashes_are_refused_where_a_signature_counts(root):
    refused("signed with SHA-256", [root], Issued("L", root, ca=False, algorithm=hashes.SHA224()))
    authority = Issued("RSA", key=rsa.generate_private_key(65537, 2048))
    good = Issued("Leaf", authority, ca=False)
    # `cryptography` makes no SHA-1 signature on a certificate: name it, and sign by hand
    sha256, sha1 = (bytes.fromhex(f"06092a864886f70d0101{end}") for end in ("0b", "05"))
    unsigned = good.certificate.tbs_certificate_bytes.replace(sha256, sha1)
    signature = authority.key.sign(unsigned, padding.PKCS1v15(), hashes.SHA1())
    der = good.der.replace(sha256, sha1).replace(good.certificate.signature, signature)
    refused("SHA-256|lead to a trusted root", [authority], SimpleNamespace(der=der))
    assert check([authority], good)


def test_certificates_of_any_length_are_not_parsed(root, leaf):
    long = [leaf.der, bytes(48 << 10) + b"x"]
    data = Envelope("", b"payload", b"signature", tuple(long)).to_bytes()
    with pytest.raises(SignatureError, match="at most 65536 characters"):
        Envelope.from_bytes(data)


def test_subject_limits_who_counts(root):
    others = x509.SubjectAlternativeName(
        [
            x509.RFC822Name("release@example.org"),
            x509.DNSName("build.example.org"),
            x509.UniformResourceIdentifier("https://example.org/release"),
        ]
    )
    leaf = Issued("Leaf", root, ca=False, extra=[(others, True)])
    for subject in (
        "CN=Leaf",
        "email:release@example.org",
        "dns:build.example.org",
        "uri:https://example.org/release",
        ["CN=Other", "CN=Leaf"],
    ):
        assert check([root], leaf, subject=subject)
    for subject in (
        "CN=Lea",
        "CN=leaf",
        "CN=Leaf,O=X",
        "dns:example.org",
        "email:build.example.org",
    ):
        refused("The signer must be", [root], leaf, subject=subject)
    tricky = Issued("Evil,CN=Leaf", root, ca=False)
    refused("The signer must be", [root], tricky, subject="CN=Evil,CN=Leaf")
    posing = x509.SubjectAlternativeName([x509.DNSName("CN=Leaf")])
    poser = Issued("Evil", root, ca=False, extra=[(posing, False)])
    refused("The signer must be", [root], poser, subject="CN=Leaf")
    for bad in ([], "", "Leaf", [3], ["CN=Leaf", ""]):
        with pytest.raises(ValueError, match="`subject` must"):
            TrustedRoots(root.certificate, subject=bad)


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.integers(0, 1))
def test_no_single_changed_bit_of_a_chain_is_accepted(root, middle, leaf, place, bit, which):
    chain = [bytearray(leaf.der), bytearray(middle.der)]
    at = int(place * len(chain[which]))
    chain[which][at] ^= 1 << bit
    with pytest.raises(UntrustedKeyError):
        TrustedRoots(root.certificate).verify([bytes(der) for der in chain], NOON)


@pytest.mark.parametrize("which", [0, 1])
def test_no_byte_outside_of_what_is_signed_can_change(root, middle, leaf, which):
    item, roots = (leaf, middle)[which], TrustedRoots(root.certificate)
    signed = item.certificate.tbs_certificate_bytes
    start = item.der.index(signed)
    places = [*range(start), *range(start + len(signed), len(item.der))]
    for place in places:
        for bit in range(8):
            chain = [bytearray(leaf.der), bytearray(middle.der)]
            chain[which][place] ^= 1 << bit
            with pytest.raises(UntrustedKeyError):
                roots.verify([bytes(der) for der in chain], NOON)


@settings(max_examples=200, deadline=None)
@given(chain=st.lists(st.binary(max_size=200), max_size=10))
def test_junk_in_place_of_certificates_is_an_untrusted_key(root, chain):
    with pytest.raises(UntrustedKeyError):
        TrustedRoots(root.certificate).verify(chain, NOON)


# In signatures


@pytest.fixture
def current(tmp_path):
    """Files of an authority whose certificates are valid now."""
    now = datetime.datetime.now(datetime.UTC)
    span = {"first": now - DAY, "last": now + DAY}
    root = Issued("Root", **span)
    middle = Issued("Middle", root, **span)
    leaf = Issued("Leaf", middle, ca=False, **span)
    for name, item in (("root", root), ("middle", middle), ("leaf", leaf)):
        (tmp_path / f"{name}.pem").write_bytes(item.pem)
    (tmp_path / "chain.pem").write_bytes(leaf.pem + middle.pem)
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key = leaf.key.private_bytes(serialization.Encoding.PEM, *form)
    (tmp_path / "key.pem").write_bytes(key)
    model = tmp_path / "model"
    model.write_bytes(b"\x00weights")
    return tmp_path, leaf


def sign_with_chain(folder, leaf, chain="chain.pem"):
    """What `sign` does with certificates."""
    key = SigningKey(leaf.key)
    manifest = Manifest("model", {".": _sha256(folder / "model")})
    certificates = load_certificate_chain(folder / chain, key)
    envelope = Envelope.sign(openssf_statement.to_bytes(manifest), key, certificates)
    (folder / "model.sig").write_bytes(envelope.to_bytes())


def _sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_signing(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    return done.returncode, done.stdout + done.stderr


def test_model_signing_accepts_our_certificate_signature(current):
    folder, leaf = current
    sign_with_chain(folder, leaf)
    command = ("verify", "certificate", folder / "model", "--signature", folder / "model.sig")
    command += ("--certificate_chain", folder / "root.pem")
    code, output = model_signing(*command)
    assert code == 0, output
    (folder / "model").write_bytes(b"\x00Weights")
    code, output = model_signing(*command)
    assert code == 1
    assert "mismatch" in output


@pytest.mark.parametrize("with_root", [False, True])
def test_ours_accepts_model_signings_certificate_signature(current, with_root):
    folder, _ = current
    command = ["sign", "certificate", folder / "model", "--signature", folder / "model.sig"]
    command += ["--private_key", folder / "key.pem"]
    command += ["--signing_certificate", folder / "leaf.pem"]
    command += ["--certificate_chain", folder / "middle.pem"]
    command += ["--certificate_chain", folder / "root.pem"] if with_root else []
    code, output = model_signing(*command)
    assert code == 0, output
    roots = TrustedRoots(folder / "root.pem", subject="CN=Leaf")
    ms.verify(folder / "model", roots)
    (folder / "model").write_bytes(b"\x00Weights")
    with pytest.raises(SignatureError, match="is not what was signed"):
        ms.verify(folder / "model", roots)


def test_sign_puts_the_chain_into_the_signature_and_the_statement_counts_with_it(current):
    folder, leaf = current
    place = folder / "model.sig"
    ms.sign(folder / "model", leaf.key, certificate_chain=folder / "chain.pem")
    roots = TrustedRoots(folder / "root.pem")
    ms.verify(folder / "model", roots)
    command = ("verify", "certificate", folder / "model", "--signature", place)
    code, output = model_signing(*command, "--certificate_chain", folder / "root.pem")
    assert code == 0, output
    (folder / "model.modelsec.json").rename(folder / "kept")
    place.rename(folder / "kept.sig")
    ms.sign(folder / "model", Issued("Stranger", ca=False).key)
    place.unlink()
    (folder / "kept.sig").rename(place)
    with pytest.raises(UntrustedKeyError):  # a good signature beside a stranger's statement
        ms.verify(folder / "model", roots)
    (folder / "kept").replace(folder / "model.modelsec.json")
    ms.verify(folder / "model", roots)
    place.unlink()  # the statement alone names its signer by hint, which nobody vouches for
    with pytest.raises(UntrustedKeyError):
        ms.verify(folder / "model", roots)


def test_expired_chain_passes_in_model_signing_and_is_refused_here(tmp_path):
    root = Issued("Root", first=NOON - 9 * DAY, last=NOON)
    leaf = Issued("Leaf", root, ca=False, first=NOON - 9 * DAY, last=NOON)
    (tmp_path / "model").write_bytes(b"weights")
    (tmp_path / "root.pem").write_bytes(root.pem)
    key = SigningKey(leaf.key)
    manifest = Manifest("model", {".": _sha256(tmp_path / "model")})
    envelope = Envelope.sign(openssf_statement.to_bytes(manifest), key, [leaf.der])
    signature = tmp_path / "model.sig"
    signature.write_bytes(envelope.to_bytes())
    chain = ("--certificate_chain", tmp_path / "root.pem")
    command = ("verify", "certificate", tmp_path / "model", "--signature", signature, *chain)
    assert model_signing(*command)[0] == 0
    with pytest.raises(UntrustedKeyError, match="must be valid on"):
        ms.verify(tmp_path / "model", TrustedRoots(tmp_path / "root.pem"))
    trust = load_trust(TrustedRoots(tmp_path / "root.pem"), at=NOON)
    ms.verify(tmp_path / "model", trust)


def test_certificates_count_only_for_who_trusts_their_root(current, key):
    folder, leaf = current
    sign_with_chain(folder, leaf)
    roots = TrustedRoots([(folder / "root.pem").read_bytes(), folder / "middle.pem"])
    ms.verify(folder / "model", TrustedRoots(folder / "root.pem"))
    ms.verify(folder / "model", [key.verifying_key, TrustedRoots(Issued("X").certificate), roots])
    with pytest.raises(UntrustedKeyError, match="TrustedRoots"):
        ms.verify(folder / "model", key.verifying_key)
    with pytest.raises(UntrustedKeyError, match="TrustedRoots"):
        ms.verify(folder / "model", leaf.key.public_key())
    with pytest.raises(UntrustedKeyError, match="lead to a trusted root"):
        ms.verify(folder / "model", TrustedRoots(Issued("Other").certificate))
    with pytest.raises(UntrustedKeyError, match="be CN=Boss"):
        ms.verify(folder / "model", TrustedRoots(folder / "root.pem", subject="CN=Boss"))


@pytest.mark.parametrize("name", ["leaf", "middle", "root"])
def test_key_revoked_anywhere_on_the_way_ends_it(current, name, key):
    folder, leaf = current
    sign_with_chain(folder, leaf)
    roots = TrustedRoots(folder / "root.pem")
    store = TrustStore()
    store.add(key.verifying_key)
    ms.verify(folder / "model", [store, roots])
    pem = (folder / f"{name}.pem").read_bytes()
    store.revoke(hint_of(x509.load_pem_x509_certificate(pem).public_key()), reason="stolen")
    with pytest.raises(UntrustedKeyError, match="stolen"):
        ms.verify(folder / "model", [store, roots])


def test_another_keys_signature_under_a_good_chain_is_refused(current, key):
    folder, leaf = current
    sign_with_chain(folder, leaf)
    good = Envelope.from_bytes((folder / "model.sig").read_bytes())
    forged = Envelope.sign(good.payload, key, good.certificates)
    (folder / "model.sig").write_bytes(forged.to_bytes())
    with pytest.raises(SignatureError, match="does not verify"):
        ms.verify(folder / "model", TrustedRoots(folder / "root.pem"))


def test_every_changed_field_of_the_certificate_bundle_is_refused(current, json_tools):
    folder, leaf = current
    sign_with_chain(folder, leaf)
    signature, roots = folder / "model.sig", TrustedRoots(folder / "root.pem")
    bundle = json.loads(signature.read_bytes())
    for path in json_tools.nodes(bundle):
        changes = [json_tools.replaced(bundle, path, new) for new in (None, 1, "", "x", [], {})]
        changes += [json_tools.deleted(bundle, path)] if path else []
        for changed in changes:
            if changed == bundle:
                continue
            signature.write_text(json.dumps(changed))
            with pytest.raises(SignatureError):
                ms.verify(folder / "model", roots)
    material = bundle["verificationMaterial"]
    both = {**material, "publicKey": {"hint": "0" * 64}}
    signature.write_text(json.dumps({**bundle, "verificationMaterial": both}))
    with pytest.raises(SignatureError, match="exactly the fields"):
        ms.verify(folder / "model", roots)
    item = {"rawBytes": base64.b64encode(leaf.der).decode()}
    for count in (0, 9):
        chain = {"certificates": [item] * count}
        material = {"x509CertificateChain": chain, "tlogEntries": []}
        with pytest.raises(SignatureError, match="list of 1 to 8 items"):
            Envelope.from_bytes(json.dumps({**bundle, "verificationMaterial": material}).encode())


def test_chain_that_no_reader_would_accept_is_refused_when_signing(current, key):
    folder, leaf = current
    own = SigningKey(leaf.key)
    assert len(load_certificate_chain([folder / "leaf.pem", folder / "middle.pem"], own)) == 2
    cases = [
        (folder / "middle.pem", own, "must be for the signing key"),
        (folder / "chain.pem", key, "must be for the signing key"),
        ([folder / "leaf.pem", folder / "root.pem"], own, "signed by the next"),
        (Issued("Leaf", ca=False, key=leaf.key).certificate, own, "valid on"),
        (folder / "key.pem", own, "does not decode|at least one certificate"),
        (b"junk", own, "at least one certificate"),
        ([], own, "at least one certificate"),
        (folder / "chain.pem", SigningKey(ed25519.Ed25519PrivateKey.generate()), "ECDSA"),
    ]
    for source, signing_key, message in cases:
        with pytest.raises(KeyFormatError, match=message):
            load_certificate_chain(source, signing_key)
    with pytest.raises(FileNotFoundError, match=r"gone\.pem"):
        load_certificate_chain(folder / "gone.pem", own)
    with pytest.raises(ValueError, match="at most 8"):
        Envelope.sign(b"payload", own, [leaf.der] * 9)


def test_openssf_signature_needs_an_ecdsa_key(tmp_path):
    raw = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(
        KeyFormatError, match=r"NAME\.sig\) must be made with an ECDSA key.*co-sign"
    ):
        Envelope.sign(b"payload", SigningKey(raw))
    (tmp_path / "model").write_bytes(b"weights")
    manifest = Manifest("model", {".": _sha256(tmp_path / "model")})
    payload = openssf_statement.to_bytes(manifest)
    hint = hint_of(raw.public_key())
    from keras_modelsec._signing.dsse import pre_authentication_encoding

    forged = Envelope(hint, payload, raw.sign(pre_authentication_encoding(payload)))
    (tmp_path / "model.sig").write_bytes(forged.to_bytes())
    with pytest.raises(UntrustedKeyError, match="must be made with an ECDSA key"):
        ms.verify(tmp_path / "model", raw.public_key())


def test_golden_certificate_signatures_are_read_for_ever(tmp_path):
    shutil.copy(GOLDEN / "model.bin", tmp_path)
    for writer in ("keras-modelsec", "model-signing-1.1.1"):
        signature = GOLDEN / f"model.bin.certificate.{writer}.sig"
        trust = load_trust(TrustedRoots(GOLDEN / "certificate-root.pem"), at=NOON)
        ms.verify(tmp_path / "model.bin", trust, signature_path=signature)
        (tmp_path / "other.bin").write_bytes(b"\x00golden modeL\xff")
        with pytest.raises(SignatureError, match="is not what was signed"):
            ms.verify(tmp_path / "other.bin", trust, signature_path=signature)


def regenerate(scratch: Path) -> None:
    """Writes the golden files anew; only for a deliberate change of format."""
    root = Issued("Golden Root", first=NOON - 365 * DAY, last=NOON + 3650 * DAY)
    leaf = Issued("Release", root, ca=False, first=NOON - 365 * DAY, last=NOON + 3650 * DAY)
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (scratch / "key.pem").write_bytes(leaf.key.private_bytes(serialization.Encoding.PEM, *form))
    (scratch / "leaf.pem").write_bytes(leaf.pem)
    (GOLDEN / "certificate-root.pem").write_bytes(root.pem)
    key = SigningKey(leaf.key)
    manifest = Manifest("model.bin", {".": _sha256(GOLDEN / "model.bin")})
    chain = load_certificate_chain(scratch / "leaf.pem", key)
    envelope = Envelope.sign(openssf_statement.to_bytes(manifest), key, chain)
    (GOLDEN / "model.bin.certificate.keras-modelsec.sig").write_bytes(envelope.to_bytes())
    command = ["sign", "certificate", GOLDEN / "model.bin", "--private_key", scratch / "key.pem"]
    command += ["--signing_certificate", scratch / "leaf.pem"]
    command += ["--certificate_chain", GOLDEN / "certificate-root.pem"]
    command += ["--signature", GOLDEN / "model.bin.certificate.model-signing-1.1.1.sig"]
    model_signing(*command)


def test_signed_with_a_chain_both_files_are_trusted_by_its_root_alone(current):
    folder, _ = current
    model, roots = folder / "model", TrustedRoots(folder / "root.pem")
    ms.sign(model, folder / "key.pem", certificate_chain=folder / "chain.pem")
    ms.verify(model, roots)
    assert (folder / "model.modelsec.json").exists()
    (folder / "model.sig").unlink()  # the certificates were in it
    with pytest.raises(UntrustedKeyError):
        ms.verify(model, roots)


def test_statement_by_another_key_is_not_trusted_beside_certificates(current, other_key):
    folder, _ = current
    model, roots = folder / "model", TrustedRoots(folder / "root.pem")
    ms.sign(model, other_key)
    forged = (folder / "model.modelsec.json").read_bytes()
    ms.sign(model, folder / "key.pem", certificate_chain=folder / "chain.pem", version=2)
    (folder / "model.modelsec.json").write_bytes(forged)
    with pytest.raises(UntrustedKeyError):
        ms.verify(model, roots)


def test_chain_for_another_key_is_refused_when_signing(current, other_key):
    folder, _ = current
    with pytest.raises(KeyFormatError):
        ms.sign(folder / "model", other_key, certificate_chain=folder / "chain.pem")
