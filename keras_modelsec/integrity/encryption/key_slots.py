"""What a file may be encrypted for and opened with: keys, passphrases, recipients.

Owns the step from what the user passes as `key` to what wraps and unwraps a data key. No message
repeats a text that was passed, because it may be a passphrase in the wrong place.
"""

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.secrets import Password, resolve_password
from keras_modelsec.errors import DecryptionError, KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.encryption import encryption_format
from keras_modelsec.integrity.encryption.encryption_format import MOST_PASSPHRASES, MOST_SLOTS, Slot
from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPrivateKey,
    EncryptionPublicKey,
)

_RAW_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE = bytes(12)  # the key is derived from a new salt each time
_RAW_INFO = b"keras_modelsec encrypted file v1 raw key slot"
_PASSPHRASE_PURPOSE = b"keras_modelsec encrypted file v1"
_MOST_PEM_BYTES = 64 << 10
_PATH_ENDINGS = (".pub", ".key", ".pem")


class Lock(Protocol):
    """Something a file can be encrypted for."""

    def seal(self, data_key: bytes) -> Slot:
        """Wraps the data key."""


class Opener(Protocol):
    """Something a file can be opened with."""

    kind: int

    def open(self, body: bytes) -> bytes | None:
        """The data key in the slot, or None if this does not open it."""


class Passphrase:
    """Says that a secret is a passphrase to encrypt with, and not a key or the path of one.

    Every guess costs an attacker about 0.2 s of a processor core and 64 MiB (Argon2id); a phrase of
    five random words withstands that, a word with a digit does not.

    Args:
        source: str, bytes, or a callable that returns one of them when it is needed, such as
            `getpass.getpass` or `ms.trust.EnvironmentVariable("NAME")`.

    Raises:
        TypeError: If it is anything else.
        ValueError: If it is empty.

    Example:
    ```python
    ms.save_encrypted(model, "model.keras.enc", ms.encryption.Passphrase(getpass.getpass))
    ```
    """

    kind = encryption_format.PASSPHRASE

    def __init__(self, source: Password):
        if source is None or not (callable(source) or resolve_password(source)):
            raise TypeError(
                "A passphrase must be str, bytes, or a callable that returns one of them. "
                "Received: None."
            )
        self._source = source

    def asked(self) -> "Passphrase":
        """The same with its source asked now, and not again for each slot or file."""
        return Passphrase(self._bytes())

    def _bytes(self) -> bytes:
        value = resolve_password(self._source)
        if value is None:
            raise ValueError("A passphrase must not be empty. Received: None.")
        return value

    def seal(self, data_key: bytes) -> Slot:
        """Wraps a data key."""
        body = key_wrapping.wrap(data_key, self._bytes(), purpose=_PASSPHRASE_PURPOSE)
        return Slot(encryption_format.PASSPHRASE, body)

    def open(self, body: bytes) -> bytes | None:
        """The data key in a slot, or None if the passphrase is another."""
        _cost_of(body)
        try:
            return key_wrapping.unwrap(body, self._bytes(), purpose=_PASSPHRASE_PURPOSE)
        except WrongPasswordError:
            return None

    def __repr__(self) -> str:
        return "Passphrase(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A passphrase must not be pickled. Received: a request to pickle a Passphrase. "
            "Make it in the process that needs it."
        )


class _RawKey:
    """32 random bytes that the user keeps, in a key management system perhaps."""

    kind = encryption_format.RAW_KEY

    def __init__(self, key: bytes):
        self._key = key

    def seal(self, data_key: bytes) -> Slot:
        salt = os.urandom(_SALT_BYTES)
        return Slot(self.kind, salt + self._cipher(salt).encrypt(_NONCE, data_key, salt))

    def open(self, body: bytes) -> bytes | None:
        salt, sealed = body[:_SALT_BYTES], body[_SALT_BYTES:]
        try:
            return self._cipher(salt).decrypt(_NONCE, sealed, salt)
        except InvalidTag:
            return None

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(HKDF(hashes.SHA256(), 32, salt, _RAW_INFO).derive(self._key))


_Single: TypeAlias = (
    "Passphrase | str | os.PathLike[str] | bytes | Callable[[], str | bytes] "
    "| EncryptionPublicKey | EncryptionPrivateKey"
)
EncryptionKeys: TypeAlias = "_Single | Iterable[_Single]"


def locks_for(key: EncryptionKeys) -> tuple[Lock, ...]:
    """What to encrypt a file for.

    Args:
        key: A public key (path, PEM or `EncryptionPublicKey`), a `Passphrase`, a key of 32 bytes or
            a callable that gives it, as bytes or in base64; or a list of these, each of which then
            opens the file alone.

    Raises:
        KeyFormatError: If one cannot be used.
        ValueError: If there are none, more than 64, or more than 4 passphrases.
    """
    locks = tuple(_resolve(item, _lock_from_pem) for item in _listed(key))
    for lock in locks:
        if isinstance(lock, EncryptionPrivateKey):
            _refuse("be public keys where a file is encrypted", "a private key", "Pass `.pub`.")
    if not 1 <= len(locks) <= MOST_SLOTS:
        raise ValueError(f"`key` must name 1 to {MOST_SLOTS} keys. Received: {len(locks)}.")
    if sum(isinstance(lock, Passphrase) for lock in locks) > MOST_PASSPHRASES:
        raise ValueError(f"`key` must hold at most {MOST_PASSPHRASES} passphrases. Received: more.")
    return locks


def openers_for(key: EncryptionKeys, password: Password = None) -> tuple[Opener, ...]:
    """What to try to open a file with.

    Args:
        key: A private key (path, PEM or `EncryptionPrivateKey`), a `Passphrase`, a key of 32 bytes
            or a callable that gives it; or a list of these.
        password: What private keys are wrapped under.

    Raises:
        KeyFormatError: If one cannot be used; WrongPasswordError if its password is the reason.
        ValueError: If there are none.
    """
    secret = resolve_password(password)

    def from_pem(pem: bytes) -> Any:
        return EncryptionPrivateKey.from_pem(pem, secret)

    openers = tuple(_resolve(item, from_pem) for item in _listed(key))
    if not openers:
        raise ValueError("`key` must name at least one key. Received: an empty list.")
    for opener in openers:
        if isinstance(opener, EncryptionPublicKey):
            _refuse("be private keys where a file is opened", "a public key", "It only encrypts.")
    return openers


def open_slots(slots: Sequence[Slot], openers: Sequence[Opener]) -> bytes:
    """The data key of a file.

    Raises:
        DecryptionError: If none of the openers opens one of the slots, or there are passphrases
            among them and the slots for these ask for too much work in all.
    """
    if any(opener.kind == encryption_format.PASSPHRASE for opener in openers):
        _check_cost(slots)
    for opener in openers:
        for slot in slots:
            if slot.kind == opener.kind:
                data_key = opener.open(slot.body)
                if data_key is not None and len(data_key) == encryption_format.DATA_KEY_BYTES:
                    return data_key
    raise DecryptionError(
        "The key must be one the file was encrypted for. Received: another, and the file opens "
        f"with {describe_slots(slots)}; or its header was altered. Nothing was decrypted."
    )


def _check_cost(slots: Sequence[Slot]) -> None:
    """Bounds what all slots together cost, before any is tried: four that are written here."""
    bodies = [slot.body for slot in slots if slot.kind == encryption_format.PASSPHRASE]
    cost = sum(map(_cost_of, bodies))
    if cost > key_wrapping.MOST_COST:
        raise DecryptionError(
            f"An encrypted file's passphrases must cost at most {key_wrapping.MOST_COST} KiB of "
            f"memory times passes in all. Received: {len(bodies)} that cost {cost}. The file was "
            "made to keep its reader busy, or by another program: open it with a key."
        )


def _cost_of(body: bytes) -> int:
    try:
        return key_wrapping.cost_of(body)
    except KeyFormatError as error:
        raise DecryptionError(f"An encrypted file's key slot is malformed: {error}") from None


def describe_slots(slots: Sequence[Slot]) -> str:
    """How a file can be opened, in words; the file does not say whose keys they are."""
    names = {
        encryption_format.RAW_KEY: "32-byte keys",
        encryption_format.PASSPHRASE: "passphrases",
        encryption_format.RECIPIENT: "private keys",
    }
    counts = {name: sum(slot.kind == kind for slot in slots) for kind, name in names.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _listed(key: Any) -> list[Any]:
    if isinstance(key, (list, tuple, set, frozenset)):
        return list(key)
    return [key]


def _resolve(item: Any, from_pem: Callable[[bytes], Any]) -> Any:
    if isinstance(item, Passphrase):
        return item.asked()
    if isinstance(item, (EncryptionPublicKey, EncryptionPrivateKey)):
        return item
    if isinstance(item, (bytes, bytearray)):
        data = bytes(item)
        return from_pem(data) if b"-----BEGIN" in data else _raw_key(data)
    if isinstance(item, (str, os.PathLike)):
        return from_pem(_read(item))
    if callable(item):
        value = item()
        return _raw_key(_from_base64(value) if isinstance(value, str) else value)
    return _refuse("be a path, PEM, 32 bytes, a Passphrase or a callable", type(item).__name__)


def _lock_from_pem(pem: bytes) -> EncryptionPublicKey:
    return EncryptionPublicKey.from_pem(pem)


def _raw_key(value: Any) -> _RawKey:
    if not isinstance(value, (bytes, bytearray)):
        _refuse("give bytes or base64 if they are callables", type(value).__name__)
    if len(value) != _RAW_KEY_BYTES:
        _refuse("have 32 bytes if they are raw", f"{len(value)}", "Use os.urandom(32).")
    return _RawKey(bytes(value))


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        _refuse("be in base64 if they are text", "another text", "Or is it a Passphrase(...)?")


def _read(source: "str | os.PathLike[str]") -> bytes:
    if isinstance(source, str) and "-----BEGIN" in source:
        return source.encode("utf-8", "replace")
    try:
        with open(source, "rb") as file:  # a link is fine: deployment tools mount keys through them
            return file.read(_MOST_PEM_BYTES + 1)
    except (OSError, ValueError) as error:
        kind = type(error) if isinstance(error, OSError) else KeyFormatError
        reason = getattr(error, "strerror", None) or "no possible path"
    # Raised out here, since the first error, which has the text, would be kept as the context.
    shown = os.fspath(source)
    is_path = isinstance(source, os.PathLike) or shown.endswith(_PATH_ENDINGS)
    raise kind(
        f"`key` must be the path of a key file that can be read, if it is text. Received: "
        f"{repr(shown) if is_path else 'a text'} ({reason}). For a passphrase, pass "
        "keras_modelsec.encryption.Passphrase(...)."
    )


def _refuse(rule: str, received: str, remedy: str = "") -> NoReturn:
    remedy = remedy or "For a passphrase, pass keras_modelsec.encryption.Passphrase(...)."
    raise KeyFormatError(f"Keys for encryption must {rule}. Received: {received}. {remedy}")
