"""Saves and loads encrypted models, whose plaintext is in memory only and never on a disk.

Owns the step between a model and its encrypted file. What Keras would write is encrypted as it is
produced; what it would read is decrypted as it asks for it, after every byte has authenticated.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import keras

from keras_modelsec._core import keras_internals, keras_saving
from keras_modelsec._core.checks import check_boolean
from keras_modelsec.integrity import files
from keras_modelsec.integrity.encryption.encrypted_stream import (
    DecryptedReader,
    EncryptedFile,
    EncryptingWriter,
)
from keras_modelsec.integrity.encryption.file_encryption import ENCRYPTED_SUFFIX, Progress, new_file
from keras_modelsec.integrity.encryption.gathered_file import GatheredFile
from keras_modelsec.integrity.encryption.key_slots import (
    EncryptionKeys,
    Lock,
    Opener,
    locks_for,
    openers_for,
)
from keras_modelsec.integrity.errors import UnsafeModelError
from keras_modelsec.integrity.keys.key_loading import TrustedKeys
from keras_modelsec.integrity.keys.trust import load_trust
from keras_modelsec.integrity.loaders.config_checks import check_allow
from keras_modelsec.integrity.loaders.hdf5_checks import check_hdf5
from keras_modelsec.integrity.loaders.keras_archive import Permissions, check_archive
from keras_modelsec.integrity.loaders.zip_checks import Member, Section, read_members
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signatures.describing import Comparison
from keras_modelsec.integrity.signatures.manifest import SINGLE_FILE, Manifest
from keras_modelsec.integrity.signatures.verifying import check_model

_MODEL = ".keras" + ENCRYPTED_SUFFIX
_WEIGHTS = ".weights.h5" + ENCRYPTED_SUFFIX
_ASSETS = "assets/"
_MEMORY_FOLDER = "/dev/shm"
_Result = TypeVar("_Result")


def save_encrypted(model: keras.Model, path: "str | os.PathLike[str]", key: EncryptionKeys) -> Path:
    """Saves a model, or its weights, encrypted; nothing of it is on a disk in plaintext.

    What Keras would write to a file is encrypted in memory, with AES-256-GCM in chunks of 1 MiB
    under a new key, which is wrapped for each of `key`. The file appears at `path` whole or not at
    all, and replaces what is there. It needs memory for one copy of the weights. Memory can be
    swapped to a disk by the system; encrypt the swap space, or have none.

    The size of the model and how many keys open it stay visible. Encryption does not say who saved
    a model: anybody can encrypt for a public key. Sign the file too, with `sign`, and load it with
    `load_encrypted(..., trusted_keys=...)`.

    Args:
        model: A built model.
        path: Ends in ".keras.enc" (the whole model) or ".weights.h5.enc" (its weights).
        key: For whom: the path of a public key (`ms.integrity.generate_encryption_keys`), or its
            PEM; an `ms.integrity.Passphrase`; a key of 32 bytes, or a callable that gives it (as
            bytes, or as text in base64); or a list of up to 64 of these.

    Returns:
        The absolute path.

    Raises:
        KeyFormatError: If a key cannot be used.
        ValueError: If `path` has another ending.
        UnsafeModelError: If layers have files of their own (vocabularies) and the system has no
            file system in memory to take them (only Linux has).
        OSError: If the file cannot be written; what was there is unchanged then.

    Example:
    ```python
    ms.integrity.generate_encryption_keys("alice.key", "alice.pub")
    ms.save_encrypted(model, "model.keras.enc", "alice.pub")
    model = ms.load_encrypted("model.keras.enc", "alice.key")
    ```
    """
    target = files.absolute_path(path)
    _check_ending(target, (_MODEL, _WEIGHTS))
    files.check_target(target)
    locks = locks_for(key)
    with new_file(target, overwrite=True) as file:
        _write(model, target.name, file, locks)
    return target


def write_encrypted(
    model: keras.Model, path: "str | os.PathLike[str]", locks: Sequence[Lock]
) -> None:
    """Writes an encrypted model to a new file, for who sees to the rest: sync, rename, signature.

    Args:
        model: A built model.
        path: Ends as for `save_encrypted`; nothing may be there.
        locks: From `locks_for`.
    """
    place = files.absolute_path(path)
    _check_ending(place, (_MODEL, _WEIGHTS))
    with open(place, "xb", buffering=0) as file:
        _write(model, place.name, file, locks)


def load_encrypted(
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    *,
    password: Password = None,
    trusted_keys: "TrustedKeys | None" = None,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    allow: Collection[str] = (),
    progress: Progress | None = None,
) -> keras.Model:
    """Loads an encrypted model, which is decrypted into memory only.

    The whole file is authenticated before a byte of it is parsed, then checked as
    `load_verified_model` checks files, then read, each chunk decrypted when it is needed: this
    takes the model's own memory and some MiB, also for models larger than half of it. A file that
    changes meanwhile is refused.

    Without `trusted_keys`, what is loaded is what somebody encrypted for this key, whoever it was:
    for a public key that can be anybody, for a passphrase anybody who knows it. With them, the
    encrypted file must carry its owner's signature (`ms.sign("model.keras.enc", "owner.pem")`).

    Args:
        path: A file that ends in ".keras.enc", made by `save_encrypted` or `encrypt_file`.
        key: The path of a private key, or its PEM; an `ms.integrity.Passphrase`; a key of 32 bytes,
            or a callable that gives it; or a list of these, which are tried in order.
        password: What the private key is wrapped under: str, bytes or a callable. Default None.
        trusted_keys: As in `verify`: who must have signed the encrypted file. Default: nobody.
        custom_objects: As in `keras.models.load_model`. This package's classes need no mention.
        compile: Whether to compile the model as it was saved. Default True.
        allow: Code-carrying parts the model may have, as in `load_verified_model`. Default: none.
        progress: Called as `progress(bytes_done, bytes_total)` while the file is authenticated.

    Returns:
        The model.

    Raises:
        DecryptionError: A SignatureError: if the file was altered or cut, or no key opens it.
        SignatureError: As `verify` raises it, if `trusted_keys` are given.
        KeyFormatError: If a key cannot be used; WrongPasswordError if its password is the reason.
        UnsafeModelError: As `load_verified_model` raises it.
        ValueError: If `path` has another ending, or Keras refuses the contents.
        OSError: If the file cannot be read.

    Example:
    ```python
    model = ms.load_encrypted("model.keras.enc", "alice.key", trusted_keys="owner.pub")
    ```
    """
    check_boolean("compile", compile)
    permissions = Permissions(check_allow(allow), dict(custom_objects or {}))
    with _opened(path, (_MODEL,), key, password, trusted_keys, progress) as (reader, shown):
        found = _named(shown, lambda: check_archive(reader, permissions))
        members = {member.name: member for member in read_members(reader)}
        config = _read(reader, members["config.json"]).decode("utf-8")
        with contextlib.ExitStack() as stack:
            folder = _unpack_assets(reader, members.values(), stack)
            return _by_keras(
                reader,
                shown,
                lambda: keras_saving.read_archive(
                    config,
                    Section(reader, members["model.weights.h5"]),
                    folder,
                    custom_objects=custom_objects,
                    compile=compile,
                    safe_mode=not found,
                ),
            )


def load_encrypted_weights(
    model: keras.Model,
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    *,
    password: Password = None,
    trusted_keys: "TrustedKeys | None" = None,
    progress: Progress | None = None,
) -> None:
    """Loads a model's weights from an encrypted file, which is decrypted into memory only.

    Args:
        model: A built model of the same architecture. It is untouched if decryption fails.
        path: A file that ends in ".weights.h5.enc" or ".keras.enc".
        key: As in `load_encrypted`.
        password: As in `load_encrypted`.
        trusted_keys: As in `load_encrypted`.
        progress: As in `load_encrypted`.

    Raises:
        DecryptionError: A SignatureError: if the file was altered or cut, or no key opens it.
        SignatureError, KeyFormatError, UnsafeModelError, OSError: As `load_encrypted` raises them.
        ValueError: If `path` has another ending, or the weights do not fit.

    Example:
    ```python
    ms.save_encrypted(model, "best.weights.h5.enc", "alice.pub")
    ms.load_encrypted_weights(model, "best.weights.h5.enc", "alice.key")
    ```
    """
    endings = (_WEIGHTS, _MODEL)
    with _opened(path, endings, key, password, trusted_keys, progress) as (reader, shown):
        weights: Any = reader
        if shown.name.endswith(_MODEL):
            _named(shown, lambda: check_archive(reader, Permissions(weights_only=True)))
            members = {member.name: member for member in read_members(reader)}
            weights = Section(reader, members["model.weights.h5"])
        else:
            _named(shown, lambda: check_hdf5(reader))
        _by_keras(reader, shown, lambda: keras_saving.read_weights(model, weights))


def _write(model: keras.Model, name: str, file: BinaryIO, locks: Sequence[Lock]) -> None:
    with EncryptingWriter(file, locks) as writer, contextlib.ExitStack() as stack:
        if name.endswith(_WEIGHTS):
            keras_saving.write_weights(model, writer)
        else:
            archive = GatheredFile()
            keras_saving.write_archive(model, archive, functools.partial(_folder_in_memory, stack))
            for part in archive.parts():
                writer.write(part)
        writer.finish()


@contextlib.contextmanager
def _opened(
    path: Any,
    endings: tuple[str, ...],
    key: EncryptionKeys,
    password: Password,
    trusted_keys: "TrustedKeys | None",
    progress: Progress | None,
) -> Iterator[tuple[Any, Path]]:
    """Yields the plaintext as a file, of which every byte has authenticated, and the path."""
    shown = files.absolute_path(path)
    _check_ending(shown, endings)
    _refuse_unsafe_mode()
    openers = openers_for(key, password)
    with contextlib.ExitStack() as stack:
        if trusted_keys is None:
            reader = _authenticate(shown, openers, stack, None, progress)
        else:
            reader = _verify_and_authenticate(shown, openers, stack, trusted_keys, progress)
        yield reader, shown


def _authenticate(
    path: Path,
    openers: Sequence[Opener],
    stack: contextlib.ExitStack,
    on_bytes: Callable[[Any], Any] | None,
    progress: Progress | None,
) -> DecryptedReader:
    file = stack.enter_context(files.open_regular(path))
    encrypted = EncryptedFile(file, openers, str(path))
    return DecryptedReader(encrypted, on_bytes=on_bytes, progress=progress)


def _verify_and_authenticate(
    path: Path,
    openers: Sequence[Opener],
    stack: contextlib.ExitStack,
    trusted_keys: TrustedKeys,
    progress: Progress | None,
) -> DecryptedReader:
    """As `_authenticate`, of bytes that are also the signed ones."""
    readers: list[DecryptedReader] = []

    def read_model(*_: Any) -> Comparison:
        digest = hashlib.sha256()
        readers.append(_authenticate(path, openers, stack, digest.update, progress))
        return Comparison(Manifest(path.name, {SINGLE_FILE: digest.hexdigest()}), {})

    check_model(path, load_trust(trusted_keys), read_model, None)
    return readers[-1]


def _read(reader: BinaryIO, member: Member) -> bytes:
    return bytes(Section(reader, member).read(member.size))


def _unpack_assets(
    reader: BinaryIO, members: Collection[Member], stack: contextlib.ExitStack
) -> str | None:
    """A folder in memory with the files of layers, or None if there are none."""
    assets = [member for member in members if member.name.startswith(_ASSETS)]
    if not assets:
        return None
    folder = _folder_in_memory(stack)
    for member in assets:  # `read_members` has seen to it that no name leads outside
        place = Path(folder, member.name.removeprefix(_ASSETS))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_read(reader, member))
    return folder


def _folder_in_memory(stack: contextlib.ExitStack) -> str:
    """An empty folder of this user alone on a file system that has no disk behind it."""
    if not _is_memory(_MEMORY_FOLDER):
        raise UnsafeModelError(
            "Layers with files of their own (vocabularies) can be encrypted only where a file "
            f"system in memory takes these files. Received: a system without tmpfs at "
            f"{_MEMORY_FOLDER!r}. Give the vocabulary as an argument of the layer, or save with "
            "Keras to an encrypted disk, and use encrypt_file."
        )
    folder = tempfile.TemporaryDirectory(prefix="keras-modelsec-", dir=_MEMORY_FOLDER)
    return stack.enter_context(folder)


def _is_memory(folder: str) -> bool:
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    kinds = [line.split()[2] for line in lines if line.split()[1:2] == [folder]]
    return bool(kinds) and kinds[-1] == "tmpfs" and os.access(folder, os.W_OK)


def _check_ending(path: Path, endings: tuple[str, ...]) -> None:
    if not path.name.endswith(endings):
        raise ValueError(
            f"`path` must end in {' or '.join(endings)}. Received: {str(path)!r}. "
            "Other files are encrypted by encrypt_file, and decrypted by decrypt_file."
        )


def _refuse_unsafe_mode() -> None:
    if keras_internals.is_unsafe_deserialization_enabled():
        raise UnsafeModelError(
            "Unsafe deserialization must be off while a model is loaded. Received: it is enabled "
            "(keras.config.enable_unsafe_deserialization or SafeModeScope(False)), and would "
            "override safe_mode=True. Do not enable it in a process that loads models."
        )


def _named(shown: Path, check: Callable[[], _Result]) -> _Result:
    try:
        return check()
    except UnsafeModelError as error:
        error.args = (f"{str(shown)!r}: {error}",)
        raise


def _by_keras(reader: DecryptedReader, shown: Path, load: Callable[[], _Result]) -> _Result:
    """What Keras loads; its own refusals as they are, all other failures under one name."""
    try:
        result = load()
    except (ValueError, TypeError, NotImplementedError, ImportError):
        if reader.failure is None:
            raise
    except Exception as error:
        if reader.failure is None:
            raise UnsafeModelError(
                f"A model must be one that Keras can load. Received: {str(shown)!r}, on which it "
                f"failed with {type(error).__name__}: {str(error)[:500]}"
            ) from error
    if reader.failure is not None:
        raise reader.failure
    return result
