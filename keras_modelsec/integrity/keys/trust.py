"""Whom a reader of signatures trusts, and with what: the answers `verify` asks for.

Owns the questions, and how keys, certificate roots and a trust store answer them together. Key
files are read in key_loading.py, certificates in certificates.py, stores in trust_store.py.
"""

import datetime
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from keras_modelsec.integrity.errors import UntrustedKeyError
from keras_modelsec.integrity.keys.certificates import TrustedRoots
from keras_modelsec.integrity.keys.key_loading import TrustedKeys, as_list, load_trusted_keys
from keras_modelsec.integrity.keys.signing_key import VerifyingKey
from keras_modelsec.integrity.keys.trust_store_contents import TrustStoreContents
from keras_modelsec.integrity.signatures.envelope import Envelope


class Trust:
    """Trusted keys, certificate roots and the rules of a trust store.

    Args:
        keys: Keys by their hints, trusted without end.
        roots: Certificate authorities.
        store: A trust store's contents, or None.
        threshold: How many different trusted keys must have signed a statement, if the store does
            not ask for more.
        at: When keys and certificates must be valid, with a time zone; None for whenever the
            question is asked.
    """

    def __init__(
        self,
        keys: Mapping[str, VerifyingKey],
        *,
        roots: Sequence[TrustedRoots] = (),
        store: TrustStoreContents | None = None,
        threshold: int = 1,
        at: datetime.datetime | None = None,
    ):
        self._keys = MappingProxyType(dict(keys))
        self._roots = tuple(roots)
        self._store = store
        self._at = at
        self.threshold = max(threshold, store.threshold if store else 1)

    @property
    def requires_statement(self) -> bool:
        """Whether `NAME.sig` alone is not enough: a version or a second signature is asked for."""
        return self.threshold > 1 or bool(self._store and self._store.lowest_versions)

    def key_of(self, envelope: Envelope) -> VerifyingKey:
        """The trusted key that must have made the signature of a Sigstore bundle.

        Raises:
            UntrustedKeyError: If the key or certificate chain named is not trusted, is revoked, not
                valid now, or not ECDSA; says which.
        """
        if envelope.certificates:
            return self._certified(envelope.certificates)
        key = self.find(envelope.hint)
        if key is None:
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({self.key_names()}). Received: one "
                f"by key {envelope.hint[:16]}... If that is the owner's, add it to `trusted_keys`."
            )
        if not key.makes_openssf:
            raise UntrustedKeyError(
                "An OpenSSF signature must be made with an ECDSA key. Received: one that names "
                f"{key!r}. Such a key signs statements (NAME.modelsec.json) only."
            )
        return key

    @property
    def reads_openssf(self) -> bool:
        """Whether anybody trusted can have made an OpenSSF signature, which is ECDSA.

        Certificates may. Of a trust store, revoked keys count too: their signatures are refused.
        """
        stored = self._store.keys.values() if self._store else ()
        keys = [*self._keys.values(), *(entry.key for entry in stored)]
        return bool(self._roots) or any(key.makes_openssf for key in keys)

    def find(self, hint: str) -> VerifyingKey | None:
        """The trusted key with this hint, or None if it is unknown.

        Raises:
            UntrustedKeyError: If the key is known and must not be used: revoked, or outside its
                validity; or if the trust store has expired.
        """
        if self._store is not None:
            now = self._at or datetime.datetime.now(datetime.UTC)
            self._store.check_fresh(now)
            key = self._store.find(hint, now)
            if key is not None:
                return key
        return self._keys.get(hint)

    def including(self, key: VerifyingKey) -> "Trust":
        """The same trust with one more key: one that certificates have vouched for.

        The statement beside a signature names keys by hint only; this lets the key that `key_of`
        found by its certificates sign it too.
        """
        keys = {**self._keys, key.hint: key}
        return Trust(
            keys, roots=self._roots, store=self._store, threshold=self.threshold, at=self._at
        )

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
        if self._store is not None:
            self._store.check_model(name, version, digests)

    def key_names(self) -> str:
        """The trusted keys by the beginnings of their hints, and roots by name, for messages."""
        hints = [*self._keys, *(self._store.keys if self._store else ())]
        return ", ".join([*(f"{hint[:16]}..." for hint in hints), *map(repr, self._roots)])

    def _certified(self, chain: Sequence[bytes]) -> VerifyingKey:
        if not self._roots:
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({self.key_names()}). Received: one "
                "with a certificate chain. If the authority is to be trusted, add its root "
                "certificate to `trusted_keys` as keras_modelsec.integrity.TrustedRoots."
            )
        reasons: list[UntrustedKeyError] = []
        for roots in self._roots:
            try:
                certified = roots.verify(chain, self._at)
            except UntrustedKeyError as error:
                reasons.append(error)
                continue
            for hint in certified.hints if self._store else ():
                self.find(hint)  # raises if it is revoked
            return certified.key
        raise reasons[0]


def load_trust(source: "TrustedKeys | Trust", *, at: datetime.datetime | None = None) -> Trust:
    """What `source` trusts.

    Args:
        source: Path of a PEM public key, PEM text or bytes, a `cryptography` public key, a
            `VerifyingKey`, a `TrustedRoots`, a `TrustStore`, or a list of these. At least one key,
            at most one store. The rules of a store (revocations, lowest versions, threshold) hold
            for the other keys of the list too. A `Trust` is returned as it is.
        at: When keys and certificates must be valid, with a time zone. Defaults to the moment of
            each question.

    Raises:
        KeyFormatError: If a key cannot be used.
        ValueError: If there is nothing to trust, or two stores.
        OSError: If a file cannot be read.
    """
    if isinstance(source, Trust):
        return source
    items: list[Any] = as_list(source)
    roots = [item for item in items if isinstance(item, TrustedRoots)]
    stores = [item for item in items if isinstance(item, TrustStoreContents)]
    if len(stores) > 1:
        raise ValueError(
            f"`trusted_keys` must hold at most one trust store. Received: {len(stores)}. "
            "Their rules could contradict each other: make one of them."
        )
    store = stores[0].contents() if stores else None
    plain = [i for i in items if not isinstance(i, (TrustedRoots, TrustStoreContents))]
    anything = roots or (store and store.keys)
    keys = {} if anything and not plain else load_trusted_keys(plain)
    return Trust(keys, roots=roots, store=store, at=at)
