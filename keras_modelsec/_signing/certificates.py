"""X.509 certificates as the user gives them: roots to trust, and the chain a signer shows.

Owns reading certificates from paths and PEM. What makes a chain good is in certificate_rules.py,
which is imported only when there is one.
"""

import datetime
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from keras_modelsec._core.printable import printable
from keras_modelsec._signing.key_files import as_list, read_pem
from keras_modelsec._signing.keys import SigningKey, check_makes_openssf
from keras_modelsec.errors import KeyFormatError

if TYPE_CHECKING:
    from cryptography import x509

    from keras_modelsec._signing.certificate_rules import Certified

CertificateSource: TypeAlias = "str | os.PathLike[str] | bytes | x509.Certificate"
Certificates: TypeAlias = "CertificateSource | Sequence[CertificateSource]"

_SUBJECT_KINDS = ("email:", "dns:", "uri:")


class TrustedRoots:
    """Certificate authorities whose code-signing certificates are trusted.

    Usable wherever `trusted_keys` is, alone or in a list with keys. A signature then counts if it
    comes with its certificate chain, and the chain leads to one of these roots: every certificate
    valid now (the root too) and signed by the next, in order and none to spare; the signer's for
    `digitalSignature` and `codeSigning` and no authority; the others authorities with
    `keyCertSign`, within their path lengths; no SHA-1, no critical extension that is not
    understood, no name constraints.

    Whom an authority certifies is its own decision: without `subject`, everyone who has a
    code-signing certificate from it is trusted. Revocation lists (CRL, OCSP) are not asked; revoke
    a signer's or an authority's key in a `TrustStore`. Signatures carry no trusted time, so models
    must be signed anew before the certificate expires; and the clock of the machine is believed.

    Args:
        roots: Path of a PEM file with one or more certificates, PEM text or bytes, a `cryptography`
            certificate, or a list of these.
        subject: The only signers that count, or None (default) for all: RFC 4514 text such as
            "CN=Release,O=Example", or an alternative name such as "email:release@example.org",
            "dns:build.example.org" or "uri:https://example.org/release"; or a list of these.

    Raises:
        KeyFormatError: If there is no certificate, or one is no authority's.
        ValueError: If `subject` is an empty list or text.
        OSError: If a file cannot be read.

    Example:
    ```python
    roots = ms.trust.TrustedRoots("company-root.pem", subject="CN=Release")
    ms.verify("model.keras", roots)
    ```

    Reference: RFC 5280, section 6.1.
    """

    def __init__(self, roots: Certificates, *, subject: "str | Sequence[str] | None" = None):
        from keras_modelsec._signing import certificate_rules

        self.subject = subject
        self._subjects = None if subject is None else frozenset(_check_subjects(subject))
        self._roots = read_certificates(roots, "roots")
        for root in self._roots:
            certificate_rules.check_is_authority(root)

    def verify(self, chain: Sequence[bytes], at: datetime.datetime | None = None) -> "Certified":
        """The signer of a chain that leads to one of the roots.

        Args:
            chain: Certificates in DER, the signer's first.
            at: When it must be valid, with a time zone. Defaults to now.

        Raises:
            UntrustedKeyError: If it does not; says why.
        """
        from keras_modelsec._signing import certificate_rules

        return certificate_rules.verify(chain, self._roots, self._subjects, at)

    def __repr__(self) -> str:
        names = ", ".join(printable(root.subject.rfc4514_string()) for root in self._roots)
        return f"TrustedRoots({names}, subject={self.subject!r})"


def load_certificate_chain(source: Certificates, signing_key: SigningKey) -> tuple[bytes, ...]:
    """The certificates to put into a signature beside the key that makes it.

    Args:
        source: Path of a PEM file, PEM text or bytes, a `cryptography` certificate, or a list of
            these: the signer's certificate first, then who certified whom, upwards; the root may
            be left out.
        signing_key: The key the first certificate is for.

    Returns:
        The certificates in DER, for `Envelope.sign`.

    Raises:
        KeyFormatError: If the first is for another key or not for code signing, one is out of
            order, superfluous or not valid now, or the key is not ECDSA.
        OSError: If a file cannot be read.
    """
    from keras_modelsec._signing import certificate_rules

    check_makes_openssf(signing_key)
    certificates = read_certificates(source, "certificates")
    return certificate_rules.check_for_signing(certificates, signing_key.verifying_key)


def read_certificates(source: Certificates, argument: str) -> "list[x509.Certificate]":
    """The certificates in `source`, in its order; at least one."""
    from cryptography import x509

    certificates: list[x509.Certificate] = []
    for item in as_list(source, argument):
        if isinstance(item, x509.Certificate):
            certificates.append(item)
            continue
        pem, origin = read_pem(item, argument, "CERTIFICATE")
        try:
            found = x509.load_pem_x509_certificates(pem)
            for certificate in found:  # names and extensions are parsed only when they are asked
                _ = (certificate.subject, certificate.issuer, certificate.extensions)
            certificates += found
        except Exception:  # a parser of untrusted bytes: ValueError, TypeError and others
            _refuse(argument, f"PEM that does not decode{origin}")
    if not certificates:
        _refuse(argument, "none")
    return certificates


def _refuse(argument: str, received: str) -> Any:
    raise KeyFormatError(
        f"`{argument}` must be at least one certificate in PEM. Received: {received}. "
        "Pass the file the certificate authority gave you."
    )


def _check_subjects(subject: "str | Sequence[str]") -> list[str]:
    subjects = [subject] if isinstance(subject, str) else list(subject)
    for text in subjects:
        known = isinstance(text, str) and ("=" in text or text.startswith(_SUBJECT_KINDS))
        if not known:
            raise ValueError(
                "`subject` must be text like 'CN=Release,O=Example', 'email:release@example.org', "
                f"'dns:build.example.org' or 'uri:https://example.org'. Received: {text!r}."
            )
    if not subjects:
        raise ValueError("`subject` must name at least one signer, or be None. Received: [].")
    return subjects
