"""What makes a chain of X.509 certificates good for signing code.

Owns the rules, which are those of RFC 5280, section 6.1, made stricter where a signature file need
not be lenient: the chain is in order and holds nothing superfluous, every certificate must say what
it is for, and what is not understood is refused. Written out, because `cryptography`'s own verifier
knows TLS servers and clients only.
"""

import datetime
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from keras_modelsec._core.printable import printable
from keras_modelsec._signing.keys import VerifyingKey, check_makes_openssf, hint_of
from keras_modelsec._signing.sigstore_bundle import MOST_CERTIFICATES
from keras_modelsec.errors import KeyFormatError, UntrustedKeyError

_LEAST_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_OTHERS = ", whose certificate states another, or none"

# Critical extensions that are looked at below. Name constraints are refused even if not critical.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


class Certified(NamedTuple):
    """What a good chain says.

    Attributes:
        key: The signer's key.
        subject: The signer's name, as RFC 4514 text.
        hints: Of every key on the way from the signer to the root, for revocation.
    """

    key: VerifyingKey
    subject: str
    hints: tuple[str, ...]


def verify(
    chain: Sequence[bytes],
    roots: Sequence[x509.Certificate],
    subjects: frozenset[str] | None,
    at: datetime.datetime | None,
) -> Certified:
    """The signer of a chain that leads to one of the roots.

    Args:
        chain: Certificates in DER, the signer's first; untrusted.
        roots: Authorities that are trusted.
        subjects: The only signers that count, or None for all.
        at: When everything must be valid, with a time zone; None for now.

    Raises:
        UntrustedKeyError: If a rule is broken; says which.
    """
    at = check_time(at)
    try:
        path = _path_to_root([_load(der) for der in chain], roots)
        _check_path(path, at)
        key = VerifyingKey(path[0].public_key())
        check_makes_openssf(key)
        _check_subject(path[0], subjects)
        hints = tuple(hint_of(certificate.public_key()) for certificate in path)
        return Certified(key, path[0].subject.rfc4514_string(), hints)
    except (UntrustedKeyError, MemoryError):
        raise
    except Exception as error:  # the parser of untrusted bytes may raise what it likes
        detail = printable(str(error)[:200])
        raise UntrustedKeyError(
            f"A certificate chain must be readable. Received: {type(error).__name__}: {detail}."
        ) from None


def check_for_signing(
    certificates: Sequence[x509.Certificate], key: VerifyingKey
) -> tuple[bytes, ...]:
    """The chain in DER, if a reader who trusts its upper end would accept it now.

    Raises:
        KeyFormatError: If not; says why.
    """
    first = certificates[0]
    if hint_of(first.public_key()) != key.hint:
        raise KeyFormatError(
            "The first of `certificates` must be for the signing key. Received: one for key "
            f"{hint_of(first.public_key())[:16]}..., with signing key {key.hint[:16]}... "
            "Pass the signer's own certificate first."
        )
    try:
        _check_path(certificates, check_time(None))
    except UntrustedKeyError as error:
        raise KeyFormatError(f"`certificates` must be good for signing. {error}") from None
    return tuple(item.public_bytes(serialization.Encoding.DER) for item in certificates)


def check_is_authority(root: x509.Certificate) -> None:
    """Refuses a trusted root that could never certify anybody, however long it is valid.

    Raises:
        KeyFormatError: If it is no authority's.
    """
    try:
        _check_authority(root, 0)
        _check_extensions(root)
    except (UntrustedKeyError, ValueError) as error:
        raise KeyFormatError(f"`roots` must be certificate authorities. {error}") from None


def check_time(at: datetime.datetime | None) -> datetime.datetime:
    """`at` in UTC, or now.

    Raises:
        ValueError: If it has no time zone.
    """
    if at is None:
        return datetime.datetime.now(datetime.UTC)
    if at.tzinfo is None:
        raise ValueError(f"`at` must have a time zone. Received: {at!r}. Use datetime.UTC.")
    return at.astimezone(datetime.UTC)


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    if not der.endswith(b"\0" + certificate.signature):  # a count of unused bits, which are none
        _refuse("A certificate", "be in canonical DER", _name(certificate))
    return certificate


def _path_to_root(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The chain with a root at its end."""
    if not 1 <= len(chain) <= MOST_CERTIFICATES:
        _refuse("A certificate chain", f"have 1 to {MOST_CERTIFICATES} certificates", len(chain))
    if chain[-1] in roots:
        return list(chain)
    for root in roots:
        if _issued(chain[-1], root):
            return [*chain, root]
    trusted = ", ".join(_name(root) for root in roots)
    received = f"one that ends with {_name(chain[-1])}, issued by {_text(chain[-1].issuer)}"
    return _refuse("A certificate chain", f"lead to a trusted root ({trusted})", received)


def _check_path(path: Sequence[x509.Certificate], at: datetime.datetime) -> None:
    """Refuses a path, signer first, in which anything is wrong but that its end is not trusted."""
    if len(path) > MOST_CERTIFICATES + 1:
        _refuse("A certificate chain", f"have at most {MOST_CERTIFICATES}", len(path))
    if len({_der(certificate) for certificate in path}) != len(path):
        _refuse("A certificate chain", "hold each certificate once", "one twice")
    _check_signer(path[0])
    for depth, certificate in enumerate(path):
        _check_validity(certificate, at)
        _check_extensions(certificate)
        _check_strength(certificate, signed=depth + 1 < len(path))
        if depth:
            _check_authority(certificate, depth - 1)
    for lower, upper in itertools.pairwise(path):
        if not _issued(lower, upper):
            received = f"{_name(lower)}, issued by {_text(lower.issuer)}, before {_name(upper)}"
            _refuse("Each certificate", "be issued and signed by the next one", received)


def _check_validity(certificate: x509.Certificate, at: datetime.datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= at <= last:
        received = f"{_name(certificate)}, valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        _refuse("A certificate", f"be valid on {at:%Y-%m-%d %H:%M:%S} UTC", received)


def _check_signer(certificate: x509.Certificate) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        _refuse("The signer's certificate", "not be an authority's", _name(certificate))
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        _refuse("The signer's key usage", "be digitalSignature", _name(certificate) + _OTHERS)
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    if extended is None or ExtendedKeyUsageOID.CODE_SIGNING not in extended:
        _refuse("The signer's extended key usage", "be codeSigning", _name(certificate) + _OTHERS)


def _check_authority(certificate: x509.Certificate, below: int) -> None:
    """Refuses what may not certify, or not with `below` authorities between it and the signer."""
    name = _name(certificate)
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        _refuse("A certificate that certifies", "be an authority's (basicConstraints CA)", name)
    if constraints.path_length is not None and below > constraints.path_length:
        received = f"{name}, with path length {constraints.path_length} and {below} below it"
        _refuse("An authority", "keep to its path length", received)
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        _refuse("An authority's key usage", "be keyCertSign", name + _OTHERS)
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    allowed = (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if extended is not None and not any(usage in extended for usage in allowed):
        _refuse("An authority's extended key usage", "allow codeSigning", name)


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        oid = extension.oid
        if oid == ExtensionOID.NAME_CONSTRAINTS or (extension.critical and oid not in _UNDERSTOOD):
            received = f"{_name(certificate)}, with {oid.dotted_string}"
            _refuse("A certificate", "have no name constraints or unknown critical part", received)


def _check_strength(certificate: x509.Certificate, *, signed: bool) -> None:
    """Refuses weak keys, and weak hashes where the signature counts (a root's own does not)."""
    key = certificate.public_key()
    weak = isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS
    if weak or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES):
        rule = f"have {_LEAST_RSA_BITS} bits of RSA, or one of {', '.join(_CURVES)}, or more"
        _refuse("A certificate's key", rule, _name(certificate))
    try:
        used = certificate.signature_hash_algorithm  # None: Ed25519 and its like hash themselves
    except UnsupportedAlgorithm:
        _refuse("A certificate", "be signed by a known algorithm", _name(certificate))
    if signed and used is not None and not isinstance(used, _GOOD_HASHES):
        _refuse("A certificate", "be signed with SHA-256, -384 or -512", f"{used.name}")


def _issued(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _check_subject(certificate: x509.Certificate, subjects: frozenset[str] | None) -> None:
    if subjects is None:
        return
    names = {certificate.subject.rfc4514_string()}
    others = _extension(certificate, x509.SubjectAlternativeName)
    if others is not None:
        names |= {f"email:{name}" for name in others.get_values_for_type(x509.RFC822Name)}
        names |= {f"dns:{name}" for name in others.get_values_for_type(x509.DNSName)}
        names |= {f"uri:{n}" for n in others.get_values_for_type(x509.UniformResourceIdentifier)}
    if not names & subjects:
        _refuse("The signer", f"be {' or '.join(sorted(subjects))}", ", ".join(sorted(names)))


def _extension(certificate: x509.Certificate, kind: Any) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _name(certificate: x509.Certificate) -> str:
    return _text(certificate.subject)


def _text(name: x509.Name) -> str:
    text = name.rfc4514_string() or "a nameless certificate"
    return printable(text[:120])


def _refuse(what: str, rule: str, received: object) -> NoReturn:
    shown = printable(str(received)[:400])
    raise UntrustedKeyError(f"{what} must {printable(rule)}. Received: {shown}.")
