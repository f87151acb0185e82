"""The paths that `SignOnSave` is given: what they may end in, and whether they can be written."""

import errno
import os
import string
from pathlib import Path
from typing import Any

from keras_modelsec._storage import files
from keras_modelsec.errors import CheckpointError
from keras_modelsec.integrity.encryption.file_encryption import ENCRYPTED_SUFFIX
from keras_modelsec.integrity.signing.signed_saving import check_writable


def has_no_ending(path: str) -> bool:
    """Whether the last part of the path has no dot outside of its fields."""
    literals = [text for text, *_ in string.Formatter().parse(Path(path).name)]
    return "." not in "".join(literals)


def path_for_keras(path: str, weights_only: bool, encrypted: bool) -> str:
    """A path with an ending that `ModelCheckpoint` accepts if ours is acceptable."""
    if encrypted:
        if not path.endswith(ENCRYPTED_SUFFIX):
            raise ValueError(
                f"`filepath` must end in {ENCRYPTED_SUFFIX!r} with `encrypt_to`. "
                f"Received: filepath={path!r}. Name it like 'model.keras{ENCRYPTED_SUFFIX}'."
            )
        return path.removesuffix(ENCRYPTED_SUFFIX)
    if path.endswith(ENCRYPTED_SUFFIX):
        raise ValueError(
            "`encrypt_to` must say for whom a file is encrypted. Received: "
            f"filepath={path!r} and encrypt_to=None. Name a public key, or another ending."
        )
    if path.endswith(".weights.h5") and not weights_only:
        raise ValueError(
            "`filepath` must not end in '.weights.h5' unless save_weights_only=True. Received: "
            f"filepath={path!r}. Pass save_weights_only=True, or name the model like 'model.keras'."
        )
    if not has_no_ending(path):
        return path
    if weights_only:
        raise ValueError(
            "`filepath` must end in '.weights.h5' with save_weights_only=True. "
            f"Received: filepath={path!r}. An export holds the whole model."
        )
    return path + ".keras"


def check_template(filepath: Any) -> str:
    """A local path whose fields can be filled."""
    if not isinstance(filepath, (str, os.PathLike)) or not isinstance(os.fspath(filepath), str):
        raise TypeError(
            f"`filepath` must be a str or os.PathLike. Received: {type(filepath).__name__}."
        )
    path = os.fspath(filepath)
    if "://" in path:
        raise ValueError(
            f"`filepath` must be a local path. Received: filepath={path!r}. "
            "Sign locally, and upload the model with its signature."
        )
    try:
        list(string.Formatter().parse(path))
    except ValueError as error:
        raise ValueError(
            f"`filepath` must be a valid format string. Received: filepath={path!r} ({error})."
        ) from None
    return path


def fixed_folder(filepath: str) -> Path:
    """The innermost folder of the path whose name does not depend on epoch or metrics."""
    folder = files.absolute_path(filepath).parent
    while "{" in str(folder):
        folder = folder.parent
    return folder


def check_reachable(folder: Path) -> None:
    """Raises CheckpointError unless the folder is writable, or can be made."""
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if existing == folder:
        check_writable(folder)
    elif not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(
            errno.EACCES,
            f"The folder for checkpoints must be one that can be made. Received: {str(folder)!r}, "
            f"and {str(existing)!r} is no writable folder. Choose another `filepath`",
        )
