"""`TrustStore`: which keys are trusted, since when and until when, and what is not any more.

Owns the file: its signatures, the rule by which roots rotate, and that two writers do not lose each
other's entries. Its fields are in trust_store_contents.py and docs/trust-store-format.md.
"""

import datetime
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_modelsec._core.checks import check_boolean, check_integer
from keras_modelsec._signing.key_files import (
    PrivateKeySource,
    PublicKeySource,
    as_list,
    load_signing_key,
    load_trusted_keys,
    load_verifying_key,
)
from keras_modelsec._signing.keys import SigningKey, VerifyingKey
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.store_signatures import (
    MAX_STORE_BYTES,
    check_signers,
    read_signed,
    sign_store,
)
from keras_modelsec._signing.trust_store_contents import (
    EVERY_MODEL,
    Revocation,
    StoredKey,
    TrustStoreContents,
    check_stored_time,
)
from keras_modelsec._storage import files, locks, publishing
from keras_modelsec.errors import (
    ConcurrentChangeError,
    RolledBackError,
    SignatureError,
)

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class TrustStore(TrustStoreContents):
    """Trusted keys with their validity, revocations, and the lowest version accepted of a model.

    Usable wherever `trusted_keys` is. It lives in one JSON file that is itself signed, by root
    keys that are used for nothing else and that readers hold.

    A revoked key counts no more, for what it signed before either: signatures carry no trusted
    time. A lowest version, or a threshold above 1, needs the statement (`NAME.modelsec.json`):
    `NAME.sig` alone says no version and has one signature.

    It cannot stop who serves an old store to a reader that keeps no state: pass
    `minimum_store_version`, or the store loaded before, and let stores expire. A store made in
    memory is trusted as it stands; a loaded one always has been verified.

    Args:
        threshold: How many different trusted keys must have signed a model's statement, >= 1.
            Default 1.

    Example:
    ```python
    store = ms.TrustStore()
    store.add("owner.pub", name="release team")
    store.set_lowest_version("classifier", 7)
    store.save("trust.json", "root.pem")
    store = ms.TrustStore.load("trust.json", "root.pub", minimum_store_version=1)
    ```
    """

    def __init__(self, *, threshold: int = 1):
        super().__init__(threshold=check_integer("threshold", threshold, minimum=1))
        self._saved_digest: str | None = None
        self._saved_roots: tuple[dict[str, VerifyingKey], int] = ({}, 1)

    def add(
        self,
        key: PublicKeySource,
        *,
        name: str = "",
        comment: str = "",
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> str:
        """Trusts a key; one that is there already gets the new name, comment and validity.

        Args:
            key: Path of a PEM public key, PEM, a `cryptography` public key, or a `VerifyingKey`.
            name: Whose it is; free text for people.
            comment: Free text.
            not_before: When it begins to be trusted, with a time zone. Default None: always was.
            not_after: The last moment it is trusted. Default None: for ever.

        Returns:
            The key's hint.

        Raises:
            KeyFormatError: If the key cannot be used.
            ValueError: If it is revoked, or its validity is empty.
        """
        trusted = load_verifying_key(key, "key")
        first = check_stored_time("not_before", not_before)
        last = check_stored_time("not_after", not_after)
        if first is not None and last is not None and first > last:
            raise ValueError(
                f"`not_after` must not be before `not_before`. Received: {last} and {first}."
            )
        if trusted.hint in self.revoked_keys:
            raise ValueError(
                f"A key must not be added after it was revoked. Received: {trusted!r}. A "
                "revocation is for good: make a new key."
            )
        entry = StoredKey(trusted, _text("name", name), _text("comment", comment), first, last)
        self.keys[trusted.hint] = entry
        return trusted.hint

    def revoke(
        self,
        key: "PublicKeySource | None" = None,
        *,
        digest: str | None = None,
        reason: str = "",
        time: datetime.datetime | None = None,
    ) -> None:
        """Ends the trust in a key, or in a model's bytes, for good and whenever they were signed.

        Args:
            key: A public key as for `add`, or its hint (64 hex digits). An authority's or signer's
                of a certificate chain too.
            digest: Hex SHA-256 of a file, or of a folder's statement (`modelsec inspect` shows it).
            reason: Free text that the error will show.
            time: When it was revoked; information only. Defaults to now.

        Raises:
            KeyFormatError: If the key cannot be used.
            ValueError: If not exactly one of `key` and `digest` is given, or the key is a root.
        """
        if (key is None) == (digest is None):
            raise ValueError(
                "`revoke` must be given a key or a digest, and not both. "
                f"Received: {'neither' if key is None else 'both'}."
            )
        when = check_stored_time("time", time or _now(), optional=False)
        entry = Revocation(_text("reason", reason), when or _now())
        if digest is not None:
            self.revoked_digests.setdefault(_check_hex("digest", digest), entry)
            return
        is_hint = isinstance(key, str) and _SHA256_HEX.fullmatch(key)
        hint = str(key) if is_hint else load_verifying_key(key, "key").hint
        if hint in self.roots:
            raise ValueError(
                f"A root key must leave the roots before it is revoked. Received: {hint[:16]}... "
                "Save with other `roots` first."
            )
        self.revoked_keys.setdefault(hint, entry)

    def set_lowest_version(self, model: str, version: int) -> None:
        """Refuses older versions of a model from now on.

        Args:
            model: The name it is signed under, or "*" for every model; both hold then. A reader
                must say which model is meant (`verify(expected_name=)`): an old model that was
                signed under another name is no older version of this one.
            version: The lowest accepted version, >= 1.

        Raises:
            ValueError: If it is below the one set before: that would allow what was refused.
        """
        version = check_integer("version", version, minimum=1)
        before = self.lowest_versions.get(_text("model", model), 0)
        if not model or version < before:
            raise ValueError(
                "A lowest version must have a model's name and never fall. Received: "
                f"{model!r}, version {version} after {before}. "
                f"Use the model's signed name, or {EVERY_MODEL!r}."
            )
        self.lowest_versions[model] = version

    def set_threshold(self, threshold: int) -> None:
        """Asks for signatures by this many different trusted keys on a model's statement, >= 1."""
        self.threshold = check_integer("threshold", threshold, minimum=1)

    def set_expiry(self, expires: datetime.datetime | None) -> None:
        """Says until when the saved store is good (None: for ever); readers then need a new one."""
        self.expires = check_stored_time("expires", expires)

    def save(
        self,
        path: "str | os.PathLike[str]",
        root_keys: "PrivateKeySource | Iterable[PrivateKeySource]",
        *,
        password: Password = None,
        roots: "PublicKeySource | Iterable[PublicKeySource] | None" = None,
        root_threshold: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Signs the next version of the store and replaces the file, whole or not at all.

        The rule of rotation, as in The Update Framework: version n+1 must be signed by
        `root_threshold` of the roots that version n names, and by as many of those it names itself
        as it asks for. To rotate, save once with old and new keys and `roots=` the new ones;
        further signers do no harm, so keep the old key signing until no reader holds it.

        Args:
            path: Where, e.g. "trust.json". Its folder must exist.
            root_keys: Private keys as for `sign`, or a list of them.
            password: Of each of `root_keys` that is not loaded yet.
            roots: Public keys that may sign from the next version on. Defaults to what they were;
                at first, to those of `root_keys`.
            root_threshold: How many of `roots` must sign. Defaults to what it was; at first 1.
            overwrite: Whether to replace a file this store was not loaded from, and the rule of
                rotation with it: a new beginning, that readers follow only if they trust one of
                `root_keys`.

        Returns:
            The absolute path.

        Raises:
            ConcurrentChangeError: If somebody saved in the meantime: load, change and save again.
            FileExistsError: If a file is there that this store was not loaded from.
            ValueError: If too few roots sign, or more keys must sign a model than are trusted.
            KeyFormatError: If a key cannot be used.
            OSError: If the file cannot be written.
        """
        overwrite = check_boolean("overwrite", overwrite)
        target = files.absolute_path(path)
        signers = [load_signing_key(key, password) for key in as_list(root_keys, "root_keys")]
        following = self._next_version(signers, roots, root_threshold)
        check_signers(signers, following.roots, following.root_threshold, "its own")
        if not overwrite:
            check_signers(signers, *self._saved_roots, "the last saved version's")
        data = sign_store(following, signers)
        publishing.check_target(target)
        with locks.locked(target.parent, target.name):
            if not overwrite:
                self._check_unchanged(target)
            publishing.write_atomically(target, data)
        self._take(following, data)
        return target

    @classmethod
    def load(
        cls,
        path: "str | os.PathLike[str]",
        root_keys: "PublicKeySource | Iterable[PublicKeySource] | TrustStore",
        *,
        minimum_store_version: int = 1,
        root_threshold: int = 1,
        at: datetime.datetime | None = None,
    ) -> "TrustStore":
        """Reads a store, if root keys you hold have signed it and it keeps its own rule.

        Args:
            path: The file; no symbolic link.
            root_keys: Public keys that may have signed it; or the `TrustStore` loaded before, whose
                roots and version then decide: this follows a rotation and refuses to go back.
            minimum_store_version: The lowest version accepted: what you saw last. Default 1.
            root_threshold: How many of `root_keys` must have signed. Default 1.
            at: When it must not have expired, with a time zone. Defaults to now.

        Raises:
            UntrustedKeyError: If too few root keys signed.
            RolledBackError: If its version is too low, or it has expired.
            SignatureError: If it is malformed or forged. The base class of both.
            OSError: If it cannot be read.
        """
        lowest = check_integer("minimum_store_version", minimum_store_version, minimum=1)
        needed = check_integer("root_threshold", root_threshold, minimum=1)
        if isinstance(root_keys, TrustStore):
            if not root_keys.version:
                raise ValueError(
                    "`root_keys` must be public keys or a store that was loaded or saved. "
                    "Received: a TrustStore without a version."
                )
            trusted, before = root_keys._saved_roots
            needed, lowest = max(needed, before), max(lowest, root_keys.version)
        else:
            trusted = load_trusted_keys(root_keys)
            if needed > len(trusted):
                raise ValueError(
                    "`root_threshold` must be at most the number of different root keys "
                    f"({len(trusted)}). Received: {needed}. No store could be loaded."
                )
        place = files.absolute_path(path)
        data = files.read_limited(place, MAX_STORE_BYTES)
        try:
            contents = read_signed(data, trusted, needed)
            if contents.version < lowest:
                raise RolledBackError(
                    f"A trust store must have at least version {lowest}. Received: version "
                    f"{contents.version}, an older one. Get the newer one."
                )
            contents.check_fresh(check_stored_time("at", at) or _now())
        except SignatureError as error:
            error.args = (f"{str(place)!r}: {error}",)
            raise
        store = cls()
        store._take(contents, data)
        return store

    def _next_version(
        self, signers: list[SigningKey], roots: Any, root_threshold: int | None
    ) -> TrustStoreContents:
        following = self.contents()
        if roots is not None:
            following.roots = load_trusted_keys(roots)
        elif not following.roots:
            following.roots = {key.verifying_key.hint: key.verifying_key for key in signers}
        if root_threshold is not None:
            minimum = check_integer("root_threshold", root_threshold, minimum=1)
            following.root_threshold = minimum
        usable = set(following.keys) - set(following.revoked_keys)
        if usable and following.threshold > len(usable):
            raise ValueError(
                f"A trust store must hold as many keys as must sign ({following.threshold}). "
                f"Received: {len(usable)} that are not revoked. Add keys, or lower the threshold."
            )
        following.version += 1
        following.created = _now()
        return following

    def _check_unchanged(self, target: Path) -> None:
        if not os.path.lexists(target):
            return
        if self._saved_digest is None:
            raise FileExistsError(
                f"A new trust store must not replace a file. Received: {str(target)!r}, which "
                "exists. Load it and change it, or pass overwrite=True to begin anew."
            )
        found = hashlib.sha256(files.read_limited(target, MAX_STORE_BYTES)).hexdigest()
        if found != self._saved_digest:
            raise ConcurrentChangeError(
                "A trust store must be as it was when it was loaded. Received: "
                f"{str(target)!r}, which somebody saved since. Load it, change it and save again."
            )

    def _take(self, contents: TrustStoreContents, data: bytes) -> None:
        for name, value in vars(contents.contents()).items():
            setattr(self, name, value)
        self._saved_digest = hashlib.sha256(data).hexdigest()
        self._saved_roots = dict(contents.roots), contents.root_threshold

    def __repr__(self) -> str:
        return (
            f"TrustStore(version={self.version}, {len(self.keys)} keys, threshold="
            f"{self.threshold}, {len(self.revoked_keys)} revoked)"
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a str. Received: {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` must be valid Unicode. Received: {value!r}.") from None
    return value


def _check_hex(name: str, value: str) -> str:
    if not isinstance(value, str) or not _SHA256_HEX.fullmatch(value):
        raise ValueError(
            f"`{name}` must be 64 lower-case hexadecimal digits, a SHA-256. Received: {value!r}."
        )
    return value
