"""Encrypts and decrypts files of any size, in constant memory, whole or not at all."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

from keras_modelsec._core.checks import check_boolean
from keras_modelsec._signing.secrets import Password
from keras_modelsec._storage import files, publishing
from keras_modelsec._storage.write_behind import WriteBehind
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.encryption import encryption_format
from keras_modelsec.integrity.encryption.encrypted_stream import EncryptedFile, EncryptingWriter
from keras_modelsec.integrity.encryption.key_slots import EncryptionKeys, locks_for, openers_for

ENCRYPTED_SUFFIX = ".enc"
_READ_BYTES = encryption_format.CHUNK_BYTES


def encrypt_file(
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    output: "str | os.PathLike[str] | None" = None,
    *,
    overwrite: bool = False,
    progress: Progress = None,
) -> Path:
    """Encrypts a file of any size, in constant memory.

    AES-256-GCM in chunks of 1 MiB under a new key, which is wrapped for each of `key`. A change,
    cut, extension, exchange or repetition of any part is found when it is decrypted. The file's
    name, its size to the byte, and how many keys open it stay visible; whose keys they are does
    not.

    The original stays where it is; deleting it does not erase it from a disk. To encrypt a model
    that was never on a disk, use `save_encrypted`. Encryption does not say who wrote a file:
    anybody can encrypt for a public key. Sign the encrypted file too, with `sign`.

    Args:
        path: A regular file.
        key: For whom: the path of a public key, or its PEM; a `Passphrase`; a key of 32 bytes, or a
            callable that gives it (as bytes, or as text in base64); or a list of up to 64 of these.
        output: Where the encrypted file goes. Defaults to `path` with ".enc" added.
        overwrite: Whether an existing `output` is replaced. Default False.
        progress: Called as `progress(bytes_done, bytes_total)`.

    Returns:
        The path of the encrypted file, which is there whole or not at all.

    Raises:
        KeyFormatError: If a key cannot be used.
        FileExistsError: If `output` exists and `overwrite` is False.
        UnsafePathError: If `path` is a symbolic link or special file, or, in a shared folder such
            as /tmp, another user's file.
        OSError: If a file cannot be read or written; nothing is left of the attempt then.

    Example:
    ```python
    ms.encryption.encrypt_file("model.keras", ms.encryption.Passphrase(getpass.getpass))
    ```
    """
    source = files.absolute_path(path)
    target = files.absolute_path(output) if output else _with_suffix(source)
    _check_places(source, target, overwrite)
    files.check_no_strangers(source)
    locks = locks_for(key)
    with (
        files.open_regular(source) as plain,
        publishing.published(target, overwrite=overwrite) as file,
    ):
        total = os.fstat(plain.fileno()).st_size
        buffer, done = memoryview(bytearray(_READ_BYTES)), 0
        with EncryptingWriter(file, locks) as writer:
            while count := plain.readinto(buffer):  # type: ignore[attr-defined]
                writer.write(buffer[:count])
                done += count
                if progress is not None:
                    progress(done, max(total, done))
            writer.finish()
    return target


def decrypt_file(
    path: "str | os.PathLike[str]",
    key: EncryptionKeys,
    output: "str | os.PathLike[str] | None" = None,
    *,
    password: Password = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Path:
    """Decrypts a file of any size, in constant memory; the result appears when all is authentic.

    The plaintext is then on the disk, because that is what was asked for: in a private folder
    beside `output` while it is written, and at `output`, with mode 0600, when the last byte has
    authenticated. If one does not, nothing is left (a killed process leaves its private folder,
    which the next one in that folder clears). To load a model without that, use `load_encrypted`.

    Args:
        path: An encrypted file.
        key: The path of a private key, or its PEM; a `Passphrase`; a key of 32 bytes, or a callable
            that gives it; or a list of these, which are tried in order.
        output: Where the plaintext goes. Defaults to `path` without its ".enc".
        password: What the private key is wrapped under: str, bytes or a callable. Default None.
        overwrite: Whether an existing `output` is replaced. Default False.
        progress: Called as `progress(bytes_done, bytes_total)`.

    Returns:
        The path of the decrypted file.

    Raises:
        DecryptionError: A SignatureError: if the file was altered or cut, or no key opens it.
        KeyFormatError: If a key cannot be used; WrongPasswordError if its password is the reason.
        ValueError: If `output` is not given and `path` does not end in ".enc".
        FileExistsError: If `output` exists and `overwrite` is False.
        UnsafePathError: If `path` is a symbolic link or special file.
        OSError: If a file cannot be read or written; nothing is left of the attempt then.

    Example:
    ```python
    ms.encryption.decrypt_file("model.keras.enc", "alice.key", "copy.keras")
    ```
    """
    source = files.absolute_path(path)
    target = files.absolute_path(output) if output else _without_suffix(source)
    _check_places(source, target, overwrite)
    openers = openers_for(key, password)
    with files.open_regular(source) as encrypted:
        opened = EncryptedFile(encrypted, openers, str(source))
        with publishing.published(target, mode=0o600, overwrite=overwrite) as file:
            _decrypt_to(file, opened, progress)
    return target


def _decrypt_to(file: BinaryIO, opened: EncryptedFile, progress: Progress) -> None:
    out, done = WriteBehind(file, opened.chunk_bytes), 0
    buffers: list[memoryview] = []

    def next_buffer() -> memoryview:
        buffers[:] = [out.buffer()]
        return buffers[0]

    try:
        for plain in opened.chunks(buffer=next_buffer):
            out.put(buffers[0], len(plain))
            done += len(plain)
            if progress is not None:
                progress(done, opened.size)
        out.drain()
    finally:
        out.close()


def _check_places(source: Path, target: Path, overwrite: bool) -> None:
    if files.kind_of(source) != "file":
        raise IsADirectoryError(
            errno.EISDIR,
            "`path` must be a file; pack a folder into an archive first. Received: a folder",
            str(source),
        )
    if source == target:
        raise ValueError(f"`output` must differ from `path`. Received: {str(target)!r} for both.")
    if not check_boolean("overwrite", overwrite) and os.path.lexists(target):
        raise publishing.already_there(target)
    publishing.check_target(target)


def _with_suffix(source: Path) -> Path:
    return source.with_name(source.name + ENCRYPTED_SUFFIX)


def _without_suffix(source: Path) -> Path:
    name = source.name.removesuffix(ENCRYPTED_SUFFIX)
    if name in ("", source.name):
        raise ValueError(
            f"`output` must be given unless `path` ends in {ENCRYPTED_SUFFIX}. "
            f"Received: {str(source)!r}."
        )
    return source.with_name(name)
