"""What a trust store says, and its bytes: keys, revocations, lowest versions, and who may sign it.

Owns the fields of the payload (docs/trust-store-format.md lists them), how strictly they are read,
and the rules that follow from them. The signatures around it and the file are in trust_store.py.
"""

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec._signing import strict_json as strict
from keras_modelsec._signing.key_files import load_verifying_key
from keras_modelsec._signing.keys import VerifyingKey
from keras_modelsec.errors import (
    KeyFormatError,
    RevokedModelError,
    RolledBackError,
    UntrustedKeyError,
)

TYPE = "https://keras_modelsec/trust-store/v1"
EVERY_MODEL = "*"
_FIELDS = (
    "_type",
    "version",
    "created",
    "expires",
    "threshold",
    "roots",
    "root_threshold",
    "keys",
    "revoked_keys",
    "revoked_digests",
    "lowest_versions",
)
_KEY_FIELDS = ("hint", "pem", "name", "comment", "not_before", "not_after")


@dataclass(frozen=True)
class StoredKey:
    """One trusted key.

    Attributes:
        key: The key.
        name: Whose it is; free text.
        comment: Free text.
        not_before: When it begins to be trusted, in UTC, or None for always.
        not_after: The last moment it is trusted, in UTC, or None for ever.
    """

    key: VerifyingKey
    name: str = ""
    comment: str = ""
    not_before: datetime.datetime | None = None
    not_after: datetime.datetime | None = None

    def check_validity(self, at: datetime.datetime) -> None:
        """Refuses the key outside its validity; the ends belong to it."""
        early = self.not_before is not None and at < self.not_before
        if early or (self.not_after is not None and at > self.not_after):
            whose = f" ({printable(self.name)})" if self.name else ""
            span = f"from {write_time(self.not_before)} to {write_time(self.not_after)}"
            raise UntrustedKeyError(
                f"A key must be within its validity. Received: key {self.key.hint[:16]}..."
                f"{whose}, valid {span}, at {write_time(at)}. "
                f"It is {'not trusted yet' if early else 'trusted no more'}: use another key."
            )


@dataclass(frozen=True)
class Revocation:
    """That a key or digest is not to be trusted any more, why, and since when that is known."""

    reason: str
    time: datetime.datetime

    @property
    def shown_reason(self) -> str:
        """The reason for messages."""
        return printable(self.reason) or "no reason given"


@dataclass
class TrustStoreContents:
    """The fields of a trust store.

    Attributes:
        version: Counts the saved states; 0 before the first `save`.
        created: When this version was saved, or None.
        expires: The last moment a loaded store is good for, or None for ever.
        threshold: How many different trusted keys must have signed a model's statement.
        roots: Keys that may sign this store and the next version of it, by hint.
        root_threshold: How many of them must have.
        keys: Trusted keys by hint.
        revoked_keys: Revocations by key hint; each stands even if the key is added again.
        revoked_digests: Revocations by hex SHA-256 of a file, or of a folder's statement.
        lowest_versions: Lowest accepted version by model name; "*" holds for all models.
    """

    version: int = 0
    created: datetime.datetime | None = None
    expires: datetime.datetime | None = None
    threshold: int = 1
    roots: dict[str, VerifyingKey] = field(default_factory=dict)
    root_threshold: int = 1
    keys: dict[str, StoredKey] = field(default_factory=dict)
    revoked_keys: dict[str, Revocation] = field(default_factory=dict)
    revoked_digests: dict[str, Revocation] = field(default_factory=dict)
    lowest_versions: dict[str, int] = field(default_factory=dict)

    def contents(self) -> "TrustStoreContents":
        """A copy that does not follow later changes."""
        result = TrustStoreContents()
        for name in TrustStoreContents.__dataclass_fields__:
            value = getattr(self, name)
            setattr(result, name, dict(value) if isinstance(value, dict) else value)
        return result

    def check_fresh(self, at: datetime.datetime) -> None:
        """Refuses a store that is past its last moment: a newer one may revoke what it trusts."""
        if self.expires is not None and at > self.expires:
            raise RolledBackError(
                f"A trust store must not have expired. Received: version {self.version}, good "
                f"until {write_time(self.expires)}, at {write_time(at)}. Get the newer version."
            )

    def find(self, hint: str, at: datetime.datetime) -> VerifyingKey | None:
        """The key with this hint, or None if the store does not hold it.

        Raises:
            UntrustedKeyError: If it is revoked, or outside its validity.
        """
        self.check_not_revoked(hint)
        entry = self.keys.get(hint)
        if entry is None:
            return None
        entry.check_validity(at)
        return entry.key

    def check_not_revoked(self, hint: str) -> None:
        """Refuses a revoked key, whether or not the store holds it."""
        found = self.revoked_keys.get(hint)
        if found is not None:
            raise UntrustedKeyError(
                f"A key must not be revoked. Received: key {hint[:16]}..., revoked on "
                f"{write_time(found.time)} ({found.shown_reason}). What it signed "
                "before counts no more either: sign again with another key."
            )

    def check_model(self, name: str, version: int | None, digests: Collection[str]) -> None:
        """Refuses a model that is revoked, or older than the lowest accepted version.

        Raises:
            RevokedModelError, RolledBackError: So.
        """
        for digest in digests:
            found = self.revoked_digests.get(digest)
            if found is not None:
                raise RevokedModelError(
                    f"A model must not be revoked. Received: {name!r} with sha256 {digest}, "
                    f"revoked on {write_time(found.time)} ({found.shown_reason}). "
                    "Use another version of it."
                )
        lowest = max(self.lowest_versions.get(n, 0) for n in (name, EVERY_MODEL))
        if lowest and (version is None or version < lowest):
            received = "one without a signed version" if version is None else f"version {version}"
            raise RolledBackError(
                f"A model {name!r} must have at least version {lowest}. Received: {received}. It "
                "is older than what the trust store requires: get the newer one, and its statement."
            )

    def to_bytes(self) -> bytes:
        """The payload to be signed."""
        payload = {
            "_type": TYPE,
            "version": self.version,
            "created": None if self.created is None else write_time(self.created),
            "expires": None if self.expires is None else write_time(self.expires),
            "threshold": self.threshold,
            "roots": [self.roots[hint].pem.decode("ascii") for hint in sorted(self.roots)],
            "root_threshold": self.root_threshold,
            "keys": [_key_entry(hint, self.keys[hint]) for hint in sorted(self.keys)],
            "revoked_keys": _revocations(self.revoked_keys, "hint"),
            "revoked_digests": _revocations(self.revoked_digests, "sha256"),
            "lowest_versions": dict(sorted(self.lowest_versions.items())),
        }
        return json.dumps(payload, separators=(",", ":"), allow_nan=False).encode("ascii")

    @classmethod
    def from_bytes(cls, payload: bytes) -> "TrustStoreContents":
        """Reads a payload whose signature has been verified.

        Raises:
            SignatureError: If a field is missing, unknown, of another type, or contradicts another.
        """
        what = "The trust store"
        value = strict.check_object(strict.parse(payload, what), what, _FIELDS)
        strict.check_equal(value["_type"], "`_type`", TYPE)
        result = cls(
            version=strict.check_integer(value["version"], "`version`", 1),
            created=strict.check_time(value["created"], "`created`"),
            expires=_optional_time(value["expires"], "`expires`"),
            threshold=strict.check_integer(value["threshold"], "`threshold`", 1),
            roots=_by_hint(
                [_key(pem, "A root") for pem in strict.check_list(value["roots"], "`roots`")]
            ),
            root_threshold=strict.check_integer(value["root_threshold"], "`root_threshold`", 1),
            keys=_read_keys(value["keys"]),
            revoked_keys=_read_revocations(value["revoked_keys"], "`revoked_keys`", "hint"),
            revoked_digests=_read_revocations(
                value["revoked_digests"], "`revoked_digests`", "sha256"
            ),
            lowest_versions=_read_versions(value["lowest_versions"]),
        )
        if not 1 <= result.root_threshold <= len(result.roots):
            rule = f"be at most the number of roots ({len(result.roots)})"
            strict.refuse("`root_threshold`", rule, result.root_threshold)
        if result.roots.keys() & result.revoked_keys.keys():
            strict.refuse("`roots`", "hold no revoked key", sorted(result.roots))
        return result


def write_time(time: datetime.datetime | None) -> str:
    """The time as it is stored, or a word for None."""
    return "any time" if time is None else strict.write_time(time)


def check_stored_time(
    name: str, value: datetime.datetime | None, *, optional: bool = True
) -> datetime.datetime | None:
    """`value` in UTC and whole seconds, as it can be stored.

    Raises:
        TypeError: If it is no datetime.
        ValueError: If it has no time zone.
    """
    if value is None and optional:
        return None
    if not isinstance(value, datetime.datetime):
        raise TypeError(
            f"`{name}` must be a datetime with a time zone. Received: {type(value).__name__}."
        )
    if value.tzinfo is None:
        raise ValueError(f"`{name}` must have a time zone. Received: {value!r}. Use datetime.UTC.")
    return value.astimezone(datetime.UTC).replace(microsecond=0)


def _key_entry(hint: str, entry: StoredKey) -> dict[str, Any]:
    return {
        "hint": hint,
        "pem": entry.key.pem.decode("ascii"),
        "name": entry.name,
        "comment": entry.comment,
        "not_before": None if entry.not_before is None else write_time(entry.not_before),
        "not_after": None if entry.not_after is None else write_time(entry.not_after),
    }


def _revocations(items: Mapping[str, Revocation], name: str) -> list[dict[str, str]]:
    return [
        {name: text, "reason": items[text].reason, "time": write_time(items[text].time)}
        for text in sorted(items)
    ]


def _read_keys(value: Any) -> dict[str, StoredKey]:
    result: dict[str, StoredKey] = {}
    for item in strict.check_list(value, "`keys`"):
        entry = strict.check_object(item, "A key", _KEY_FIELDS)
        key = _key(entry["pem"], "A key's `pem`")
        strict.check_equal(entry["hint"], "A key's `hint`", key.hint)
        if key.hint in result:
            strict.refuse("`keys`", "hold each key once", key.hint)
        name = strict.check_string(entry["name"], "A key's `name`")
        comment = strict.check_string(entry["comment"], "A key's `comment`")
        first = _optional_time(entry["not_before"], "`not_before`")
        last = _optional_time(entry["not_after"], "`not_after`")
        result[key.hint] = StoredKey(key, name, comment, first, last)
        if first is not None and last is not None and first > last:
            strict.refuse("A key's `not_after`", "not be before `not_before`", entry["not_after"])
    return result


def _read_revocations(value: Any, what: str, name: str) -> dict[str, Revocation]:
    result: dict[str, Revocation] = {}
    for item in strict.check_list(value, what):
        entry = strict.check_object(item, what, (name, "reason", "time"))
        text = strict.check_sha256(entry[name], f"{what}: `{name}`")
        if text in result:
            strict.refuse(what, "hold each once", text)
        reason = strict.check_string(entry["reason"], "`reason`")
        result[text] = Revocation(reason, strict.check_time(entry["time"], "`time`"))
    return result


def _read_versions(value: Any) -> dict[str, int]:
    return {
        strict.check_string(name, "A model's name"): strict.check_integer(
            version, "A lowest version", 1
        )
        for name, version in strict.check_mapping(value, "`lowest_versions`").items()
    }


def _by_hint(keys: Sequence[VerifyingKey]) -> dict[str, VerifyingKey]:
    result = {key.hint: key for key in keys}
    if len(result) != len(keys):
        strict.refuse("`roots`", "hold each key once", len(keys))
    return result


def _key(value: Any, what: str) -> VerifyingKey:
    """A key whose PEM is spelled the one way this package spells it, so that it has one hint."""
    text = strict.check_string(value, what)
    try:
        key = load_verifying_key(text.encode("ascii"), "pem")
    except (KeyFormatError, UnicodeEncodeError) as error:
        strict.refuse(what, "be a public key in PEM", error)
    if key.pem != text.encode("ascii"):
        strict.refuse(what, "be canonical PEM", text)
    return key


def _optional_time(value: Any, what: str) -> datetime.datetime | None:
    return None if value is None else strict.check_time(value, what)
