"""The keys of the OpenSSF format: ECDSA on three curves, each with the hash that belongs to it.

Owns signing and verifying of bytes, and the hint that names a key. How a key is read from a file is
in key_loading.py.
"""

import hashlib
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec.integrity.errors import KeyFormatError, SignatureError

CURVES: dict[str, ec.EllipticCurve] = {
    "p256": ec.SECP256R1(),
    "p384": ec.SECP384R1(),
    "p521": ec.SECP521R1(),
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


class VerifyingKey:
    """A public key that signatures may be trusted to.

    Args:
        public_key: An ECDSA public key on P-256, P-384 or P-521.

    Raises:
        KeyFormatError: If it is on another curve.
    """

    def __init__(self, public_key: ec.EllipticCurvePublicKey):
        self.curve = public_key.curve.name
        if self.curve not in _HASHES:
            raise KeyFormatError(
                f"A key must be on one of the curves {', '.join(CURVES)}. "
                f"Received: a key on {self.curve}. Make one with keras_modelsec.generate_keys."
            )
        self._key = public_key

    @property
    def pem(self) -> bytes:
        """The key as PEM SubjectPublicKeyInfo, with its last newline."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def hint(self) -> str:
        """What a signature file names the key by: hex SHA-256 of its PEM."""
        return hashlib.sha256(self.pem).hexdigest()

    def check(self, signature: bytes, data: bytes) -> None:
        """Returns if `signature` is this key's over `data`.

        Raises:
            SignatureError: If it is not, or is no DER-encoded ECDSA signature.
        """
        try:
            self._key.verify(signature, data, ec.ECDSA(_HASHES[self.curve]))
        except InvalidSignature:
            raise SignatureError(
                "The signature must be the trusted key's over the signed statement. Received: one "
                f"that does not verify under key {self.hint[:16]}... Signature file, or its "
                "statement, was altered or forged."
            ) from None

    def __repr__(self) -> str:
        return f"VerifyingKey({self.curve}, {self.hint[:16]}...)"


class SigningKey:
    """A private key that signs, and gives itself away nowhere: not in repr, copies or pickles.

    Args:
        private_key: An ECDSA private key on P-256, P-384 or P-521.

    Raises:
        KeyFormatError: If it is on another curve.
    """

    def __init__(self, private_key: ec.EllipticCurvePrivateKey):
        self.verifying_key = VerifyingKey(private_key.public_key())
        self._key = private_key

    def sign(self, data: bytes) -> bytes:
        """A DER-encoded ECDSA signature over `data`."""
        return self._key.sign(data, ec.ECDSA(_HASHES[self.verifying_key.curve]))

    def __repr__(self) -> str:
        return f"SigningKey({self.verifying_key!r})"

    def __copy__(self) -> "SigningKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "SigningKey":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A private key must not be pickled. Received: a request to pickle a SigningKey. "
            "Load the key in the process that signs."
        )
