"""Whom a reader of signatures trusts, and with what: the answers `verify` asks for.

Owns the questions, and how keys, certificate roots and a trust store answer them together. Key
files are read in key_files.py, certificates in certificates.py, stores in trust_store.py.
"""

import copy
import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from keras_modelsec._core.checks import check_integer
from keras_modelsec._core.printable import printable
from keras_modelsec._signing.certificates import TrustedRoots
from keras_modelsec._signing.key_files import PublicKeySource, as_list, load_trusted_keys
from keras_modelsec._signing.keys import VerifyingKey
from keras_modelsec._signing.trust_store_contents import TrustStoreContents
from keras_modelsec.errors import UntrustedKeyError

if TYPE_CHECKING:
    from keras_modelsec._signing.certificate_rules import Certified

TrustSource: TypeAlias = "PublicKeySource | TrustedRoots | TrustStoreContents"
TrustedKeys: TypeAlias = "TrustSource | Iterable[TrustSource]"
EVERY: Literal["all"] = "all"
Threshold: TypeAlias = int | Literal["all"]


class Trust:
    """Trusted keys, certificate roots and the rules of a trust store.

    Args:
        keys: Keys by their hints, trusted without end.
        roots: Certificate authorities.
        store: A trust store's contents, or None.
        threshold: How many different trusted keys must have signed a statement, if the store does
            not ask for more. All that certificates vouch for count as one: an authority that
            certifies a signer twice makes him no two signers.
        every: Whether each of the keys must have, and a key that the roots vouch for.
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
        every: bool = False,
        at: datetime.datetime | None = None,
    ):
        self._keys = MappingProxyType(dict(keys))
        self._roots = tuple(roots)
        self._store = store
        self._at = at
        self._every = every
        self._certified: dict[str, Certified] = {}
        self._refusals: tuple[str, ...] = ()
        self.threshold = max(threshold, store.threshold if store else 1)
        if every:
            self.threshold = max(self.threshold, len(self._keys) + bool(self._roots))

    @property
    def requires_statement(self) -> bool:
        """Whether `NAME.sig` alone is not enough: a version or a second signature is asked for."""
        return self.threshold > 1 or bool(self._store and self._store.lowest_versions)

    def key_of(self, hint: str, certificates: Sequence[bytes]) -> VerifyingKey:
        """The trusted key that must have made the signature of a Sigstore bundle.

        Args:
            hint: Of the key, as the bundle names it.
            certificates: The chain that the bundle has in its place, in DER; or none.

        Raises:
            UntrustedKeyError: If the key or certificate chain named is not trusted, is revoked, not
                valid now, or not ECDSA; says which.
        """
        if certificates:
            return self.certified(certificates).key
        key = self.find(hint)
        if key is None:
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({self.key_names()}). Received: one "
                f"by key {hint[:16]}... If that is the owner's, add it to `trusted_keys`."
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
        certified = self._certified.get(hint)
        return self._keys.get(hint) or (certified.key if certified else None)

    def including(self, certified: "Certified") -> "Trust":
        """The same trust with one more key: one that certificates have vouched for.

        The statement beside a signature names keys by hint only; this lets the key that `certified`
        found by its certificates sign it too.
        """
        result = copy.copy(self)
        result._certified = {**self._certified, certified.key.hint: certified}
        return result

    def refusing(self, reason: UntrustedKeyError) -> "Trust":
        """The same trust, which remembers why certificates were refused, for its messages."""
        result = copy.copy(self)
        result._refusals = (*self._refusals, str(reason))
        return result

    def check_signers(
        self, good: Collection[str], named: Sequence[str], reasons: Sequence[str] = ()
    ) -> None:
        """Returns if the keys that have signed a statement are enough.

        Args:
            good: Hints of keys that `find` gave and whose signatures are verified.
            named: Hints of all that claim to have signed, for the message.
            reasons: Why some of them do not count.

        Raises:
            UntrustedKeyError: If there are too few, or one that must be there is not.
        """
        own = set(self._keys) | set(self._store.keys if self._store else ())
        by_certificate = set(good) - own
        count = len(own & set(good)) + bool(by_certificate)
        missing = sorted(set(self._keys) - set(good)) if self._every else []
        if self._every and self._roots and not by_certificate:
            missing.append("one with a trusted certificate")
        if count >= max(1, self.threshold) and not missing:
            return
        why = [*self._refusals, *reasons]
        if self._refusals and not count:  # the certificate is what is wrong, not the statement
            raise UntrustedKeyError(
                f"{' '.join(why)} The statement has no other signature that counts "
                f"({self.key_names()})."
            )
        raise UntrustedKeyError(
            f"A statement must be signed by {self._needed()} ({self.key_names()}). Received: "
            f"signatures by {', '.join(f'{hint[:16]}...' for hint in named)}, of which {count} "
            f"count{_without(missing)}. {' '.join(why) or _TOO_FEW[bool(count)]}"
        )

    def _needed(self) -> str:
        return f"{'each' if self._every else self.threshold} of the trusted keys"

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

    def describe(self, hint: str) -> str:
        """Whose key it is, as far as the store or a certificate says; for people."""
        entry = self._store.keys.get(hint) if self._store else None
        certified = self._certified.get(hint)
        name = entry.name if entry else ""
        if certified is not None:
            name = f"certificate of {certified.subject}"
        return f"key {hint[:16]}..." + (f" ({printable(name)})" if name else "")

    @property
    def store_version(self) -> int | None:
        """The version of the trust store, or None if there is none."""
        return self._store.version if self._store else None

    def key_names(self) -> str:
        """The trusted keys by the beginnings of their hints, and roots by name, for messages."""
        hints = [*self._keys, *(self._store.keys if self._store else ())]
        return ", ".join([*(f"{hint[:16]}..." for hint in hints), *map(repr, self._roots)])

    def certified(self, chain: Sequence[bytes]) -> "Certified":
        """The signer that a certificate chain vouches for.

        Raises:
            UntrustedKeyError: If no root is trusted, the chain leads to none, or a key of it is
                revoked; says why.
        """
        if not self._roots:
            raise UntrustedKeyError(
                f"A signature must be made with a trusted key ({self.key_names()}). Received: one "
                "with a certificate chain. If the authority is to be trusted, add its root "
                "certificate to `trusted_keys` as keras_modelsec.trust.TrustedRoots."
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
            return certified
        raise UntrustedKeyError(" ".join(dict.fromkeys(map(str, reasons))))


_TOO_FEW = {
    False: "If a key is the owner's, add it to `trusted_keys`.",
    True: "Ask for a statement that they all have signed, or lower `threshold`.",
}


def _without(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    names = [f"{hint[:16]}..." if len(hint) == 64 else hint for hint in missing]
    return f", without {', '.join(names)}"


def check_threshold(threshold: Any) -> Threshold:
    """Returns `threshold` if it is an integer >= 1 or "all".

    Raises:
        TypeError, ValueError: If it is neither.
    """
    if isinstance(threshold, str):
        if threshold != EVERY:
            raise ValueError(
                f'`threshold` must be an integer >= 1, or "all". Received: {threshold!r}.'
            )
        return EVERY
    return int(check_integer("threshold", threshold, minimum=1))


def load_trust(
    source: "TrustedKeys | Trust",
    *,
    threshold: Threshold = 1,
    at: datetime.datetime | None = None,
) -> Trust:
    """What `source` trusts.

    Args:
        source: Path of a PEM public key, PEM text or bytes, a `cryptography` public key, a
            `VerifyingKey`, a `TrustedRoots`, a `TrustStore`, or a list of these. At least one key,
            at most one store. The rules of a store (revocations, lowest versions, threshold) hold
            for the other keys of the list too. A `Trust` is returned as it is.
        threshold: How many different keys of `source` must have signed, >= 1, or "all": each of
            them. A store's own threshold holds too.
        at: When keys and certificates must be valid, with a time zone. Defaults to the moment of
            each question.

    Raises:
        KeyFormatError: If a key cannot be used.
        ValueError: If there is nothing to trust, two stores, or a threshold that can never be met
            or means nothing ("all" with a store, which states its own).
        OSError: If a file cannot be read.
    """
    needed = check_threshold(threshold)
    if isinstance(source, Trust):
        if needed != 1:
            raise ValueError(f"`threshold` must be that of the Trust. Received: {threshold!r}.")
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
    if isinstance(needed, str):
        _check_every(roots, store)
        return Trust(keys, roots=roots, every=True, at=at)
    most = len({*keys, *(store.keys if store else ())}) + bool(roots)
    if needed > most:
        raise ValueError(
            f"`threshold` must be at most the number of different trusted keys ({most}; all "
            f"certificates count as one). Received: {needed}. Nothing could verify."
        )
    return Trust(keys, roots=roots, store=store, threshold=needed, at=at)


def _check_every(roots: Sequence[TrustedRoots], store: TrustStoreContents | None) -> None:
    if store is not None:
        raise ValueError(
            '`threshold` must be a number where there is a trust store. Received: "all". A store '
            "states itself how many of its keys must sign: TrustStore(threshold=)."
        )
    if len(roots) > 1:
        raise ValueError(
            '`threshold` must be a number where there are several TrustedRoots. Received: "all", '
            f"with {len(roots)}. A signature has one certificate chain: pass the certificates as "
            "one TrustedRoots."
        )


class Anybody:
    """The type of `ANYBODY`."""

    def __repr__(self) -> str:
        return "keras_modelsec.trust.ANYBODY"

    def __reduce__(self) -> str:
        return "ANYBODY"  # there is one, also when it was pickled


ANYBODY = Anybody()
"""For `load_encrypted(trusted_keys=...)`: load it, whoever made it; no signature is looked at."""
