"""The signature algorithms: ECDSA on three curves, Ed25519 and ML-DSA-65.

Owns which `cryptography` key belongs to which algorithm, and how each signs, verifies and is made.
A further algorithm is a further subclass in `ALGORITHMS`. Keys as the user meets them are in
keys.py.
"""

import base64
import binascii
from abc import ABC, abstractmethod
from typing import Any

from cryptography import __version__ as cryptography_version
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from keras_modelsec.errors import KeyFormatError

try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # before 47
    mldsa = None  # type: ignore[assignment]

_MLDSA65 = bytes.fromhex("0609608648016503040312")  # object identifier 2.16.840.1.101.3.4.3.18


class Algorithm(ABC):
    """One way to sign.

    Attributes:
        name: What it is called in `VerifyingKey.algorithm` and messages.
        signature_kind: What its signatures are, for messages.
    """

    name: str
    signature_kind: str

    @abstractmethod
    def owns(self, key: Any) -> bool:
        """Whether a `cryptography` key, public or private, is of this algorithm."""

    @abstractmethod
    def generate(self) -> Any:
        """A new private key."""

    def sign(self, key: Any, data: bytes) -> bytes:
        """The signature over `data`."""
        signature: bytes = key.sign(data)
        return signature

    def check(self, key: Any, signature: bytes, data: bytes) -> None:
        """Returns, or raises `InvalidSignature` or `ValueError`."""
        key.verify(signature, data)


class ECDSA(Algorithm):
    """ECDSA, each curve with the hash that OpenSSF Model Signing gives it."""

    signature_kind = "DER-encoded ECDSA"

    def __init__(self, name: str, curve: ec.EllipticCurve, hash_algorithm: hashes.HashAlgorithm):
        self.name = name
        self.curve = curve
        self._scheme = ec.ECDSA(hash_algorithm)

    def owns(self, key: Any) -> bool:
        """Whether `key` is on this curve."""
        kinds = (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)
        return isinstance(key, kinds) and key.curve.name == self.curve.name

    def generate(self) -> ec.EllipticCurvePrivateKey:
        """A new private key."""
        return ec.generate_private_key(self.curve)

    def sign(self, key: Any, data: bytes) -> bytes:
        """A DER-encoded signature over `data`."""
        signature: bytes = key.sign(data, self._scheme)
        return signature

    def check(self, key: Any, signature: bytes, data: bytes) -> None:
        """Returns, or raises `InvalidSignature`."""
        key.verify(signature, data, self._scheme)


class Ed25519(Algorithm):
    """Ed25519 (RFC 8032)."""

    name = "ed25519"
    signature_kind = "64 bytes of Ed25519"

    def owns(self, key: Any) -> bool:
        """Whether `key` is an Ed25519 key."""
        return isinstance(key, (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey))

    def generate(self) -> ed25519.Ed25519PrivateKey:
        """A new private key."""
        return ed25519.Ed25519PrivateKey.generate()


class MLDSA65(Algorithm):
    """ML-DSA-65 (FIPS 204), pure, with an empty context; meant to withstand quantum computers."""

    name = "ml-dsa-65"
    signature_kind = "3,309 bytes of ML-DSA-65"

    def owns(self, key: Any) -> bool:
        """Whether `key` is an ML-DSA-65 key."""
        return mldsa is not None and isinstance(
            key, (mldsa.MLDSA65PublicKey, mldsa.MLDSA65PrivateKey)
        )

    def generate(self) -> Any:
        """A new private key.

        Raises:
            KeyFormatError: If `cryptography` here has no ML-DSA.
        """
        try:
            if mldsa is not None:
                return mldsa.MLDSA65PrivateKey.generate()
        except UnsupportedAlgorithm:
            pass
        raise mldsa_is_missing()


# By the name that `generate_keys(algorithm=...)` and the command line take.
ALGORITHMS: dict[str, Algorithm] = {
    "p256": ECDSA("ecdsa-p256", ec.SECP256R1(), hashes.SHA256()),
    "p384": ECDSA("ecdsa-p384", ec.SECP384R1(), hashes.SHA384()),
    "p521": ECDSA("ecdsa-p521", ec.SECP521R1(), hashes.SHA512()),
    "ed25519": Ed25519(),
    "ml-dsa-65": MLDSA65(),
}
CURVES = tuple(name for name, algorithm in ALGORITHMS.items() if isinstance(algorithm, ECDSA))


def algorithm_of(key: Any) -> Algorithm:
    """The algorithm of a `cryptography` key.

    Raises:
        KeyFormatError: If it is of none of these.
    """
    for algorithm in ALGORITHMS.values():
        if algorithm.owns(key):
            return algorithm
    raise KeyFormatError(
        f"A key must be of one of the algorithms {', '.join(ALGORITHMS)}. "
        f"Received: a key of {kind_of_key(key)}. Make one with keras_modelsec.generate_keys."
    )


def kind_of_key(key: Any) -> str:
    """What a key of any kind is called, for messages."""
    curve = getattr(key, "curve", None)
    if isinstance(curve, ec.EllipticCurve):
        return f"ECDSA on {curve.name}"
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")


def is_mldsa(data: bytes) -> bool:
    """Whether PEM or DER that could not be decoded holds an ML-DSA key."""
    body = b"".join(line for line in data.splitlines() if not line.startswith(b"-----"))
    try:
        return _MLDSA65 in (data if data[:1] == b"\x30" else base64.b64decode(body))[:64]
    except binascii.Error:
        return False


def mldsa_is_missing() -> KeyFormatError:
    """The error for ML-DSA where it is not to be had."""
    return KeyFormatError(
        "ML-DSA keys need cryptography >= 48 built with OpenSSL >= 3.5. Received: cryptography "
        f"{cryptography_version} with {backend.openssl_version_text()}. Install a newer wheel, or "
        "use an ECDSA or Ed25519 key."
    )
