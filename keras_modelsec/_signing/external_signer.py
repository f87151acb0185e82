"""A signing key whose private half stays in a key service or hardware module."""

from collections.abc import Callable

from keras_modelsec._signing.key_files import PublicKeySource, load_verifying_key
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec.errors import KeyFormatError, SignatureError


class ExternalSigner(SigningKey):
    """Signs through a function that asks a KMS, HSM or smart card.

    Every signature it returns is verified with the public key before it is used, so that a wrong
    key, a wrong hash or a faulty device is noticed by the signer and not by the users. The service
    sees the bytes that are signed, not the model.

    Args:
        public_key: The key users will trust: path of a PEM file, PEM, a `cryptography` public key,
            or a `VerifyingKey`.
        sign: `sign(data: bytes) -> bytes` returns the signature over `data`, which it must hash
            itself: ECDSA in DER, with SHA-256 for P-256, SHA-384 for P-384 and SHA-512 for P-521;
            Ed25519 and ML-DSA-65 as raw bytes.

    Raises:
        KeyFormatError: If the public key cannot be used.
        TypeError: If `sign` is no function.

    Example:
    ```python
    client = ms.trust.load_signing_key("owner.pem")  # stands for the key service's client
    ms.sign("model.keras", ms.trust.ExternalSigner("owner.pub", client.sign))
    ```
    """

    def __init__(self, public_key: PublicKeySource, sign: Callable[[bytes], bytes]):
        if not callable(sign):
            raise TypeError(
                "`sign` must be a function that takes the data and returns its signature. "
                f"Received: {type(sign).__name__}."
            )
        self.verifying_key = load_verifying_key(public_key, "public_key")
        self._sign = sign

    def sign(self, data: bytes) -> bytes:
        """The service's signature over `data`, verified.

        Raises:
            KeyFormatError: If what the service returned is not this key's signature.
        """
        signature = self._sign(data)
        if not isinstance(signature, (bytes, bytearray, memoryview)):
            raise KeyFormatError(
                "`sign` must return the signature as bytes. "
                f"Received: {type(signature).__name__}. Decode what the service returned."
            )
        signature = bytes(signature)
        try:
            self.verifying_key.check(signature, data)
        except SignatureError:
            raise KeyFormatError(
                "`sign` must return the signature that belongs to `public_key`. Received: "
                f"{len(signature)} bytes that do not verify under {self.verifying_key!r}. Check "
                "which key and hash the service used, and that an ECDSA signature is DER-encoded "
                "(not the two numbers joined)."
            ) from None
        return signature
