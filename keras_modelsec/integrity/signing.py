"""Signs a model file or folder in the OpenSSF Model Signing format."""

import os
from pathlib import Path

from keras_modelsec.integrity import files, statement
from keras_modelsec.integrity.envelope import (
    MAX_SIGNATURE_BYTES,
    Envelope,
    pre_authentication_encoding,
)
from keras_modelsec.integrity.key_loading import PrivateKeySource, load_signing_key
from keras_modelsec.integrity.manifest import Manifest, check_file_name, describe
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signing_key import SigningKey

SIGNATURE_SUFFIX = ".sig"


def signature_path_of(path: Path) -> Path:
    """Where the signature of `path` lies unless the user says otherwise: beside it."""
    if not path.name:
        raise ValueError(
            "`path` must be a file or folder that has a name. Received: the root folder. "
            "Sign a folder inside it, or give `signature_path`."
        )
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def name_inside(signature_path: Path, model_path: Path) -> str | None:
    """The signature's name inside the model's folder, or None if it lies elsewhere."""
    if model_path not in signature_path.parents:
        return None
    return signature_path.relative_to(model_path).as_posix()


def make_signature(manifest: Manifest, key: SigningKey, *, ignored: str | None = None) -> bytes:
    """The signature file's bytes for a manifest.

    Args:
        manifest: What is signed.
        key: Who signs.
        ignored: The signature's own name, if it is to lie inside the signed folder.

    Raises:
        ValueError: If the model has no file, or so many that the signature grows past what
            `verify` reads.
    """
    if not manifest.digests:
        raise ValueError(
            "`path` must hold at least one file. Received: an empty folder. "
            "Save the model there first."
        )
    payload = statement.to_bytes(manifest, ignore_paths=[ignored] if ignored else [])
    signature = key.sign(pre_authentication_encoding(payload))
    data = Envelope(key.verifying_key.hint, payload, signature).to_bytes()
    if len(data) > MAX_SIGNATURE_BYTES:
        raise ValueError(
            f"A signature file must have at most {MAX_SIGNATURE_BYTES} bytes. Received: a folder "
            f"of {len(manifest.digests)} files, whose signature has {len(data)}. Sign an archive."
        )
    return data


def sign(
    path: "str | os.PathLike[str]",
    signing_key: PrivateKeySource,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    password: Password = None,
) -> Path:
    """Signs a model file, or all files below a folder, and writes the signature beside it.

    The signature is a Sigstore bundle v0.3 with an in-toto statement that holds each file's SHA-256
    (OpenSSF Model Signing v1.0); `verify`, and the `model_signing` command, check it. It is written
    atomically: readers see the old one or the new one.

    It says that the holder of the key signed these bytes, not that they are good: a signed model
    can still be a bad or a malicious one, and a folder's empty subfolders, permissions and times
    are not covered.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        signing_key: Path of a PEM private key, PEM text or bytes, or a `cryptography` key object:
            ECDSA on P-256, P-384 or P-521.
        signature_path: Where to write. Defaults to `path` with ".sig" added. Inside the signed
            folder, the signature file is left out of what is signed.
        password: What the key is encrypted with: str, bytes or a callable. Default None.

    Returns:
        The path of the signature.

    Raises:
        KeyFormatError: If the key cannot be used; WrongPasswordError if the password is the reason.
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link or special file is met.
        ValueError: If the folder is empty or has too many files.
        OSError: If a file cannot be read or the signature not written.

    Example:
    ```python
    model.save("model.keras")
    ms.sign("model.keras", "owner.pem")  # writes model.keras.sig
    ```

    Reference: https://github.com/ossf/model-signing-spec
    """
    key = load_signing_key(signing_key, password)
    model_path = files.absolute_path(path)
    target = (
        files.absolute_path(signature_path) if signature_path else signature_path_of(model_path)
    )
    if target == model_path:
        raise ValueError(
            "`signature_path` must differ from `path`. Received: "
            f"{str(target)!r} for both. The signature would replace the model."
        )
    own_name = name_inside(target, model_path)
    if own_name:
        check_file_name(own_name)
    files.check_target(target)
    manifest = describe(model_path, skip=[own_name] if own_name else [])
    files.write_atomically(target, make_signature(manifest, key, ignored=own_name))
    return target
