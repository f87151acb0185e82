"""Whom a reader of signatures trusts, and with what: the answer `verify` asks for each key.

Owns the questions; where the answers come from is elsewhere: key files in key_loading.py.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from keras_modelsec.integrity.envelope import Envelope
from keras_modelsec.integrity.errors import UntrustedKeyError
from keras_modelsec.integrity.key_loading import TrustedKeys, load_trusted_keys
from keras_modelsec.integrity.signing_key import VerifyingKey


class Trust:
    """Trusted keys, fixed for one verification.

    Args:
        keys: The keys by their hints.
    """

    threshold: int = 1
    requires_statement: bool = False

    def __init__(self, keys: Mapping[str, VerifyingKey]):
        self._keys = MappingProxyType(dict(keys))

    def key_of(self, envelope: Envelope) -> VerifyingKey:
        """The trusted key that must have made the signature of a Sigstore bundle.

        Raises:
            UntrustedKeyError: If no trusted key is named.
        """
        key = self.find(envelope.hint)
        if key is None:
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({self.key_names()}). Received: one "
                f"by key {envelope.hint[:16]}... If that is the owner's, add it to `trusted_keys`."
            )
        return key

    @property
    def reads_openssf(self) -> bool:
        """Whether any trusted key can have made an OpenSSF signature, which is ECDSA."""
        return any(key.algorithm.startswith("ecdsa") for key in self._keys.values())

    def find(self, hint: str) -> VerifyingKey | None:
        """The trusted key with this hint, or None if it is unknown.

        Raises:
            UntrustedKeyError: If the key is known and must not be used: revoked, or outside its
                validity.
        """
        return self._keys.get(hint)

    def check_model(self, name: str, version: int | None, digests: Collection[str]) -> None:
        """Returns if a model may be used whose signature has been verified.

        Args:
            name: The name it was signed under.
            version: The signed version, or None if there is none (`NAME.sig` alone).
            digests: Hex SHA-256 of its files, and of the statement's subject.

        Raises:
            RolledBackError: If the version is below the lowest accepted one, or unknown.
            RevokedModelError: If a digest is revoked.
        """

    def key_names(self) -> str:
        """The trusted keys by the beginnings of their hints, for messages."""
        return ", ".join(f"{hint[:16]}..." for hint in self._keys)


def load_trust(source: TrustedKeys) -> Trust:
    """What `source` trusts.

    Args:
        source: Path of a PEM public key, PEM text or bytes, a `cryptography` public key, a
            `VerifyingKey`, or a list of these. At least one.

    Raises:
        KeyFormatError: If a key cannot be used.
        ValueError: If there is none.
        OSError: If a file cannot be read.
    """
    return Trust(load_trusted_keys(source))
