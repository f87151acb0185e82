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
from typing import Any, BinaryIO

import keras

from keras_modelsec._core import keras_guard, keras_saving
from keras_modelsec._core.checks import check_boolean
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.trust import (
    ANYBODY,
    Anybody,
    Threshold,
    Trust,
    TrustedKeys,
    check_threshold,
    load_trust,
)
from keras_modelsec._storage import files, publishing
from keras_modelsec.errors import UnsafeModelError
from keras_modelsec.integrity.contents.config_checks import check_allow
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.contents.keras_archive import (
    Permissions,
    check_weights,
    load_archive,
)
from keras_modelsec.integrity.encryption.encrypted_stream import (
    DecryptedReader,
    EncryptedFile,
    EncryptingWriter,
)
from keras_modelsec.integrity.encryption.file_encryption import ENCRYPTED_SUFFIX
from keras_modelsec.integrity.encryption.key_slots import (
    EncryptionKeys,
    Lock,
    Opener,
    locks_for,
    openers_for,
)
from keras_modelsec.integrity.signing.describing import Comparison
from keras_modelsec.integrity.signing.verifying import check_model
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest

_MODEL = ".keras" + ENCRYPTED_SUFFIX
_WEIGHTS = ".weights.h5" + ENCRYPTED_SUFFIX
_MEMORY_FOLDER = "/dev/shm"


def save_encrypted(model: keras.Model, path: "str | os.PathLike[str]", key: EncryptionKeys) -> Path:
    """Saves a model, or its weights, encrypted; nothing of it is on a disk in plaintext.

    What Keras would write to a file is encrypted in memory, with AES-256-GCM in chunks of 1 MiB
    under a new key, which is wrapped for each of `key`. The file appears at `path` whole or not at
    all, and replaces what is there. Weights on the CPU are not copied for it. Memory can be
    swapped to a disk by the system; encrypt the swap space, or have none. Vocabularies of layers
    pass through a folder of this user's alone in /dev/shm, which is in memory; a process that is
    killed with SIGKILL meanwhile leaves it there (`keras-modelsec-*`) until it is deleted.

    The size of the model and how many keys open it stay visible. Encryption does not say who saved
    a model: anybody can encrypt for a public key. Sign the file too, with `sign`, and load it with
    `load_encrypted(..., trusted_keys=...)`.

    Args:
        model: A built model.
        path: Ends in ".keras.enc" (the whole model) or ".weights.h5.enc" (its weights).
        key: For whom: the path of a public key (`ms.encryption.generate_encryption_keys`), or its
            PEM; an `ms.encryption.Passphrase`; a key of 32 bytes, or a callable that gives it (as
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
    ms.encryption.generate_encryption_keys("alice.key", "alice.pub")
    ms.save_encrypted(model, "model.keras.enc", "alice.pub")
    ms.sign("model.keras.enc", "owner.pem")
    model = ms.load_encrypted("model.keras.enc", "alice.key", trusted_keys="owner.pub")
    ```
    """
    target = files.absolute_path(path)
    _check_ending(target, (_MODEL, _WEIGHTS))
    publishing.check_target(target)
    write = _hold(model, target.name, locks_for(key))
    with publishing.published(target) as file:
        write(file)
    return target


def hold_encrypted(model: keras.Model, path: Path, locks: Sequence[Lock]) -> Callable[[], None]:
    """Keeps a model as it is now; returns what writes it to a new file, once, in any thread."""
    _check_ending(path, (_MODEL, _WEIGHTS))
    write = _hold(model, path.name, locks)

    def later() -> None:
        with open(path, "xb", buffering=0) as file:
            write(file)

    return later


def load_encrypted(
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    *,
    password: Password = None,
    trusted_keys: "TrustedKeys | Anybody | None" = None,
    threshold: Threshold = 1,
    expected_name: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    allow: Collection[str] = (),
    progress: Progress = None,
) -> keras.Model:
    """Loads an encrypted model, which is decrypted into memory only.

    The whole file is authenticated before a byte of it is parsed, then checked as
    `load_verified_model` checks files, then read, each chunk decrypted when it is needed: this
    takes the model's own memory and some MiB, also for models larger than half of it. A file that
    changes meanwhile is refused.

    Encryption says for whom a file is, not from whom: for a public key anybody can encrypt, for a
    passphrase anybody who knows it. So the encrypted file must carry its owner's signature
    (`ms.sign("model.keras.enc", "owner.pem")`), by one of `trusted_keys`; to load what anybody may
    have made, say `trusted_keys=ms.trust.ANYBODY`.

    Args:
        path: A file that ends in ".keras.enc", made by `save_encrypted` or `encrypt_file`.
        key: The path of a private key, or its PEM; an `ms.encryption.Passphrase`; a key of 32
            bytes, or a callable that gives it; or a list of these, which are tried in order.
        password: What the private key is wrapped under: str, bytes or a callable. Default None.
        trusted_keys: As in `verify`: who must have signed the encrypted file; or
            `ms.trust.ANYBODY`. One of them must be said: there is no default.
        threshold: As in `verify`: how many of `trusted_keys` must have, or "all". Default 1.
        expected_name: The name it must have been signed under, as in `verify`. Default None: any.
        custom_objects: As in `keras.models.load_model`. This package's classes need no mention.
        compile: Whether to compile the model as it was saved. Default True.
        allow: Code-carrying parts the model may have, as in `load_verified_model`. Default: none.
        progress: Called as `progress(bytes_done, bytes_total)` while the file is authenticated.

    Returns:
        The model.

    Raises:
        DecryptionError: A SignatureError: if the file was altered or cut, or no key opens it.
        SignatureError: As `verify` raises it.
        KeyFormatError: If a key cannot be used; WrongPasswordError if its password is the reason.
        UnsafeModelError: As `load_verified_model` raises it.
        ValueError: If `trusted_keys` is not given, `path` has another ending, or Keras refuses the
            contents.
        OSError: If the file cannot be read.

    Example:
    ```python
    model = ms.load_encrypted("model.keras.enc", "alice.key", trusted_keys="owner.pub")
    ```
    """
    check_boolean("compile", compile)
    permissions = Permissions(check_allow(allow), dict(custom_objects or {}))
    trust = _trust(trusted_keys, threshold, expected_name)
    source = _opened(path, (_MODEL,), key, password, trust, expected_name, progress)
    with source as (reader, shown), contextlib.ExitStack() as stack:
        return load_archive(
            reader,
            shown,
            permissions,
            functools.partial(_folder_in_memory, stack),
            compile=compile,
            failure=lambda: reader.failure,
        )


def load_encrypted_weights(
    model: keras.Model,
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    *,
    password: Password = None,
    trusted_keys: "TrustedKeys | Anybody | None" = None,
    threshold: Threshold = 1,
    expected_name: str | None = None,
    progress: Progress = None,
) -> None:
    """Loads a model's weights from an encrypted file, which is decrypted into memory only.

    Args:
        model: A built model of the same architecture. It is untouched if decryption fails.
        path: A file that ends in ".weights.h5.enc" or ".keras.enc".
        key: As in `load_encrypted`.
        password: As in `load_encrypted`.
        trusted_keys: As in `load_encrypted`.
        threshold: As in `load_encrypted`.
        expected_name: As in `load_encrypted`.
        progress: As in `load_encrypted`.

    Raises:
        DecryptionError: A SignatureError: if the file was altered or cut, or no key opens it.
        SignatureError, KeyFormatError, UnsafeModelError, OSError: As `load_encrypted` raises them.
        ValueError: If `trusted_keys` is not given, `path` has another ending, or the weights do
            not fit.

    Example:
    ```python
    ms.save_encrypted(model, "best.weights.h5.enc", "alice.pub")
    ms.load_encrypted_weights(
        model, "best.weights.h5.enc", "alice.key", trusted_keys=ms.trust.ANYBODY
    )
    ```
    """
    endings = (_WEIGHTS, _MODEL)
    trust = _trust(trusted_keys, threshold, expected_name)
    source = _opened(path, endings, key, password, trust, expected_name, progress)
    with source as (reader, shown):
        weights = check_weights(reader, shown)
        keras_guard.by_keras(
            shown, lambda: keras_saving.read_weights(model, weights), lambda: reader.failure
        )


def _hold(model: keras.Model, name: str, locks: Sequence[Lock]) -> Callable[[BinaryIO], None]:
    with contextlib.ExitStack() as stack:
        if name.endswith(_WEIGHTS):
            held = keras_saving.hold_weights(model)
        else:
            held = keras_saving.hold_archive(model, functools.partial(_folder_in_memory, stack))
        rest = stack.pop_all()

    def write(file: BinaryIO) -> None:
        with rest, EncryptingWriter(file, locks) as writer:
            for part in held().parts():
                writer.write(part)
            writer.finish()

    return write


def _trust(
    trusted_keys: "TrustedKeys | Anybody | None", threshold: Threshold, expected_name: str | None
) -> Trust | None:
    """Encryption says for whom a file is and not from whom; that must be said, or waived."""
    if trusted_keys is None:
        raise ValueError(
            "`trusted_keys` must say who must have signed the encrypted file. Received: None. "
            "Encryption alone does not say who made it: pass the owner's public key, or "
            "keras_modelsec.trust.ANYBODY to load it whoever made it."
        )
    if not isinstance(trusted_keys, Anybody):
        return load_trust(trusted_keys, threshold=threshold)
    if expected_name is not None or check_threshold(threshold) != 1:
        raise ValueError(
            "`expected_name` and `threshold` must be given with `trusted_keys`, which alone vouch "
            f"for a name. Received: expected_name={expected_name!r}, threshold={threshold!r}, "
            f"trusted_keys={ANYBODY!r}."
        )
    return None


@contextlib.contextmanager
def _opened(
    path: Any,
    endings: tuple[str, ...],
    key: EncryptionKeys,
    password: Password,
    trust: Trust | None,
    expected_name: str | None,
    progress: Progress,
) -> Iterator[tuple[Any, Path]]:
    """Yields the plaintext as a file, of which every byte has authenticated, and the path."""
    shown = files.absolute_path(path)
    _check_ending(shown, endings)
    keras_guard.refuse_unsafe_mode()
    openers = openers_for(key, password)
    with contextlib.ExitStack() as stack:
        if trust is None:
            reader = _authenticate(shown, openers, stack, None, progress)
        else:
            reader = _verify_and_authenticate(shown, openers, stack, trust, expected_name, progress)
        yield reader, shown


def _authenticate(
    path: Path,
    openers: Sequence[Opener],
    stack: contextlib.ExitStack,
    on_bytes: Callable[[Any], Any] | None,
    progress: Progress,
) -> DecryptedReader:
    file = stack.enter_context(files.open_regular(path))
    encrypted = EncryptedFile(file, openers, str(path))
    return DecryptedReader(encrypted, on_bytes=on_bytes, progress=progress)


def _verify_and_authenticate(
    path: Path,
    openers: Sequence[Opener],
    stack: contextlib.ExitStack,
    trust: Trust,
    expected_name: str | None,
    progress: Progress,
) -> DecryptedReader:
    """As `_authenticate`, of bytes that are also the signed ones."""
    readers: list[DecryptedReader] = []

    def read_model(*_: Any) -> Comparison:
        digest = hashlib.sha256()
        readers.append(_authenticate(path, openers, stack, digest.update, progress))
        return Comparison(Manifest(path.name, {SINGLE_FILE: digest.hexdigest()}), {})

    check_model(path, trust, read_model, None, expected_name)
    return readers[-1]


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
