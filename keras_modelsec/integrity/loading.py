"""Loads models whose bytes have been verified: those very bytes, with no second read of the path.

The file is copied into a folder of this process's user alone while it is hashed; the digest of what
was written is what the signature is checked against, and the copy is what Keras reads. Whoever
changes the original, before, during or after, changes nothing that is loaded.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import keras_internals
from keras_modelsec._core.checks import check_boolean
from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import UnsafeModelError
from keras_modelsec.integrity.keras_archive import check_archive
from keras_modelsec.integrity.key_loading import TrustedKeys, load_trusted_keys
from keras_modelsec.integrity.manifest import SINGLE_FILE, Manifest
from keras_modelsec.integrity.verifying import check_model

_MODEL_ENDINGS = (".keras", ".h5", ".hdf5")
_WEIGHT_ENDINGS = (".weights.h5", ".keras")


def load_verified_model(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
) -> keras.Model:
    """Loads a model, from exactly the bytes that a trusted key signed.

    Nothing of the file is parsed before its signature and digest are verified. Keras's safe mode is
    on and cannot be turned off here: a model with a Lambda layer or other pickled code is refused.

    Needs free space for one copy of the file where the system keeps temporary files (`TMPDIR`). The
    copy is deleted when the model is loaded. It does not protect from an attacker who already runs
    as this user or as root, nor from a malicious owner of a trusted key.

    Args:
        path: A ".keras" file, or a legacy ".h5" whole-model file.
        trusted_keys: Path of a PEM public key, PEM text or bytes, a `cryptography` key object, or a
            list of these.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added.
        custom_objects: As in `keras.models.load_model`. This package's classes need no mention.
        compile: Whether to compile the model as it was saved. Default True.

    Returns:
        The model.

    Raises:
        SignatureError: As `verify` raises it, with its subclasses; nothing has been loaded then.
        UnsafeModelError: If unsafe deserialization is enabled in Keras, which would override the
            safe mode, or the archive holds members that Keras does not write.
        ValueError: If `path` is not of a kind that can be loaded, or Keras refuses its contents.
        FileNotFoundError: If there is nothing at `path`.

    Example:
    ```python
    model = ms.load_verified_model("checkpoints/10.keras", trusted_keys=["owner.pub"])
    ```
    """
    check_boolean("compile", compile)
    model_path = _check_ending(path, _MODEL_ENDINGS)
    keys = load_trusted_keys(trusted_keys)
    with _verified_copy(model_path, keys, signature_path) as copy:
        return keras.models.load_model(
            copy, custom_objects=custom_objects, compile=compile, safe_mode=True
        )


def load_verified_weights(
    model: keras.Model,
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
) -> None:
    """Loads a model's weights, from exactly the bytes that a trusted key signed.

    Args:
        model: A built model of the same architecture. It is untouched if verification fails.
        path: A ".weights.h5" or ".keras" file.
        trusted_keys: As in `load_verified_model`.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added.

    Raises:
        SignatureError: As `verify` raises it, with its subclasses.
        UnsafeModelError: As `load_verified_model` raises it.
        ValueError: If `path` is not of a kind that can be loaded, or the weights do not fit.

    Example:
    ```python
    ms.load_verified_weights(model, "best.weights.h5", "owner.pub")
    ```
    """
    weights_path = _check_ending(path, _WEIGHT_ENDINGS)
    keys = load_trusted_keys(trusted_keys)
    with _verified_copy(weights_path, keys, signature_path) as copy:
        model.load_weights(copy)


def _check_ending(path: Any, endings: tuple[str, ...]) -> Path:
    absolute = files.absolute_path(path)
    if files.kind_of(absolute) != "file" or not absolute.name.endswith(endings):
        raise ValueError(
            f"`path` must be a file that ends in {' or '.join(endings)}. "
            f"Received: {str(absolute)!r}. Of other files and folders, `verify` checks the "
            "signature, and the caller must see that they do not change before they are loaded."
        )
    return absolute


def _refuse_unsafe_mode() -> None:
    if keras_internals.is_unsafe_deserialization_enabled():
        raise UnsafeModelError(
            "Unsafe deserialization must be off while a model is loaded. Received: it is enabled "
            "(keras.config.enable_unsafe_deserialization or SafeModeScope(False)), and would "
            "override safe_mode=True. Do not enable it in a process that loads models."
        )


@contextlib.contextmanager
def _verified_copy(path: Path, keys: Any, signature_path: Any) -> Iterator[str]:
    """Yields the path of a private copy of `path` whose bytes have been verified."""
    _refuse_unsafe_mode()
    signature = files.absolute_path(signature_path) if signature_path else None
    with tempfile.TemporaryDirectory(prefix="keras-modelsec-") as folder:  # made with mode 0700
        copy = Path(folder, "model" + _ending(path))

        def copy_and_hash(_: str | None) -> Manifest:
            copy.unlink(missing_ok=True)  # of an attempt during which the model was replaced
            with open(copy, "xb") as file:
                digest = files.hash_file(path, copy_to=file)
            return Manifest(path.name, {SINGLE_FILE: digest})

        check_model(path, keys, copy_and_hash, signature)
        if copy.suffix == ".keras":
            check_archive(copy, path)
        yield str(copy)


def _ending(path: Path) -> str:
    return ".weights.h5" if path.name.endswith(".weights.h5") else path.suffix
