"""Keys that sign and keys that verify, whatever their algorithm.

Owns the hint that names a key, and that a private key gives itself away nowhere. The mathematics is
chosen in algorithms.py; how a key is read from a file is in key_files.py.
"""

import hashlib
from typing import Any, NoReturn, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from keras_modelsec._signing.algorithms import CURVES, ECDSA, algorithm_of
from keras_modelsec.errors import KeyFormatError, SignatureError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | Any
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | Any


def hint_of(public_key: Any) -> str:
    """What names a key of any kind: hex SHA-256 of its PEM SubjectPublicKeyInfo."""
    return hashlib.sha256(_pem_of(public_key)).hexdigest()


def _pem_of(public_key: Any) -> bytes:
    pem: bytes = public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


class VerifyingKey:
    """A public key that signatures may be trusted to.

    Args:
        public_key: A `cryptography` public key: ECDSA on P-256, P-384 or P-521, Ed25519, or
            ML-DSA-65.

    Raises:
        KeyFormatError: If it is of another algorithm or on another curve.
    """

    def __init__(self, public_key: PublicKey):
        self._algorithm = algorithm_of(public_key)
        self._key = public_key

    @property
    def algorithm(self) -> str:
        """Its name: "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519" or "ml-dsa-65"."""
        return self._algorithm.name

    @property
    def makes_openssf(self) -> bool:
        """Whether OpenSSF Model Signing's format (`NAME.sig`) knows the algorithm: ECDSA alone."""
        return isinstance(self._algorithm, ECDSA)

    @property
    def pem(self) -> bytes:
        """The key as PEM SubjectPublicKeyInfo, with its last newline."""
        return _pem_of(self._key)

    @property
    def hint(self) -> str:
        """What a signature file names the key by: hex SHA-256 of its PEM."""
        return hint_of(self._key)

    def check(self, signature: bytes, data: bytes) -> None:
        """Returns if `signature` is this key's over `data`.

        Raises:
            SignatureError: If it is not, or is no signature of the key's algorithm.
        """
        try:
            self._algorithm.check(self._key, signature, data)
        except (InvalidSignature, ValueError):
            raise SignatureError(
                "The signature must be the trusted key's over the signed statement "
                f"({self._algorithm.signature_kind}). Received: one that does not verify under "
                f"key {self.hint[:16]}... Signature file, or its statement, was altered or forged."
            ) from None

    def __repr__(self) -> str:
        return f"VerifyingKey({self.algorithm}, {self.hint[:16]}...)"


class SigningKey:
    """A private key that signs, and gives itself away nowhere: not in repr, copies or pickles.

    Args:
        private_key: A `cryptography` private key: ECDSA on P-256, P-384 or P-521, Ed25519, or
            ML-DSA-65.

    Raises:
        KeyFormatError: If it is of another algorithm or on another curve.
    """

    def __init__(self, private_key: PrivateKey):
        self._algorithm = algorithm_of(private_key)
        self._key = private_key
        self.verifying_key = VerifyingKey(private_key.public_key())

    @property
    def algorithm(self) -> str:
        """Its name: "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519" or "ml-dsa-65"."""
        return self.verifying_key.algorithm

    def sign(self, data: bytes) -> bytes:
        """The key's signature over `data`: DER for ECDSA, raw bytes otherwise."""
        return self._algorithm.sign(self._key, data)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.verifying_key!r})"

    def __copy__(self) -> "SigningKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "SigningKey":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A private key must not be pickled. Received: a request to pickle a SigningKey. "
            "Load the key in the process that signs."
        )


def check_makes_openssf(key: VerifyingKey | SigningKey) -> None:
    """Refuses a key that cannot make `NAME.sig`.

    Raises:
        KeyFormatError: If it is not ECDSA.
    """
    verifying_key = key.verifying_key if isinstance(key, SigningKey) else key
    if not verifying_key.makes_openssf:
        raise KeyFormatError(
            "An OpenSSF signature (NAME.sig) must be made with an ECDSA key. Received: a key of "
            f"{verifying_key.algorithm}. Sign with an ECDSA key ({', '.join(CURVES)}), and let "
            "this one co-sign the statement (NAME.modelsec.json)."
        )
