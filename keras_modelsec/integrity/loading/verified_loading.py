"""Loads models whose bytes have been verified: those very bytes, with no second read of the path.

Owns which checks stand between a verified copy (verified_copy.py), in memory or in a folder of our
own, and Keras. A signature says who
made a file, not that it is harmless; so a signed file too must be nothing but what Keras writes,
and carry no code that the caller has not allowed.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import keras_saving
from keras_modelsec._core.checks import check_boolean
from keras_modelsec._core.keras_guard import (
    by_keras,
    refuse_unsafe_mode,
    safe_mode_for,
)
from keras_modelsec._signing.trust import Threshold, Trust, TrustedKeys, load_trust
from keras_modelsec._storage import files
from keras_modelsec._storage.seekable_readers import MemoryFile
from keras_modelsec.errors import CodeInModelError
from keras_modelsec.integrity.contents.config_checks import check_allow
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.contents.keras_archive import (
    Permissions,
    check_folder,
    check_legacy,
    check_shards,
    check_weights,
    load_archive,
)
from keras_modelsec.integrity.loading.verified_copy import private_copy

_MODEL_ENDINGS = (".keras", ".h5", ".hdf5")
_READ_IN_MEMORY = (".keras", ".weights.h5")  # Keras reads no legacy file but by its path
_WEIGHT_ENDINGS = (".weights.h5", ".keras", ".h5", ".hdf5")


def load_verified_model(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    allow: Collection[str] = (),
    call_endpoint: str = "serve",
    progress: Progress = None,
) -> keras.Model:
    """Loads a model, from exactly the bytes that a trusted key signed.

    Nothing of the file is parsed before its signature and digest are verified. Then, before Keras
    reads it, a file that does anything but hold a model is refused, whoever signed it: archives
    and HDF5 files of another make than Keras's own, tensors that lie in other files or grow when
    read, and configurations that name anything but Keras's building blocks, registered classes and
    `custom_objects`. The parts of Keras that run code or read files are refused at any depth unless
    they are named in `allow`.

    A SavedModel is a program, which can read and write files when it runs. It is loaded only with
    `allow=("TFSMLayer",)`, as a `keras.Sequential` around one `keras.layers.TFSMLayer`, which can
    predict and be trained further, and must be loaded again from its signed folder, not saved.

    A ".keras" file with a statement is read once, into memory, where its digests are made and from
    where Keras loads it: as much memory as plain loading takes. Other kinds, and files of more than
    half of the available memory, need free space for a copy where the system keeps temporary files
    (`TMPDIR`), which is deleted when the model is loaded. It does not protect from an attacker who
    already runs as this user or as root, nor from errors in the HDF5 library itself, nor from a
    configuration of layers too large for the memory, nor does it judge the code that `allow` and
    `custom_objects` let in.

    Args:
        path: A ".keras" file, a legacy ".h5" whole-model file, a folder that
            `model.save(path, zipped=False)` wrote, or a SavedModel folder of `model.export`.
        trusted_keys: As in `verify`.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added.
        expected_name: The name it must have been signed under, as in `verify`. Default None: any.
        threshold: As in `verify`: how many of `trusted_keys` must have signed, or "all". Default 1.
        custom_objects: As in `keras.models.load_model`. This package's classes need no mention.
        compile: Whether to compile the model as it was saved. Default True.
        allow: Which code-carrying parts the model may have, if you trust the code as you trust the
            key: among "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", and
            "StringLookup", "IntegerLookup", "TextVectorization" with a vocabulary that names a
            file. Default: none. Keras's safe mode is off only if such a part is there, all that
            are there are named, and only while this file is loaded.
        call_endpoint: Which function of a SavedModel to call. Default "serve", what `model.export`
            writes.
        progress: Called with bytes done and bytes in all while the file is verified.

    Returns:
        The model.

    Raises:
        SignatureError: As `verify` raises it, with its subclasses; nothing has been loaded then.
        CodeInModelError: An UnsafeModelError: the model has code-carrying parts not in `allow`;
            they are in its attribute `parts`.
        UnsafeModelError: If the file is not as Keras writes it, or unsafe deserialization is
            enabled in Keras, which would override the safe mode.
        ValueError: If `path` is not of a kind that can be loaded, or Keras refuses its contents.
        FileNotFoundError: If there is nothing at `path`.
        OSError: If there is no room for the copy.

    Example:
    ```python
    model = ms.load_verified_model("checkpoints/10.keras", trusted_keys=["owner.pub"])
    ```

    Reference: docs/keras-cves.md, for the published attacks on Keras's loading and what of this
    stops each.
    """
    check_boolean("compile", compile)
    permissions = Permissions(check_allow(allow), dict(custom_objects or {}))
    trust = load_trust(trusted_keys, threshold=threshold)
    source = _verified(path, trust, signature_path, _MODEL_ENDINGS, progress, expected_name)
    with source as (copy, shown), contextlib.ExitStack() as stack:
        if _holds(copy, ".keras"):
            folder = functools.partial(_temporary_folder, stack)
            file = stack.enter_context(_opened(copy))
            return load_archive(file, shown, permissions, folder, compile=compile)
        if (copy / "saved_model.pb").is_file():
            return _load_saved_model(copy, shown, permissions, call_endpoint)
        if copy.is_file():
            found = check_legacy(copy, shown, permissions)
        elif (copy / "config.json").is_file():
            found = check_folder(copy, shown, permissions)
        else:
            raise _unknown_folder(shown, "a SavedModel or a model saved with zipped=False")
        return by_keras(
            shown,
            lambda: keras.models.load_model(
                str(copy),
                custom_objects=custom_objects,
                compile=compile,
                safe_mode=safe_mode_for(found),
            ),
        )


def load_verified_weights(
    model: keras.Model,
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    progress: Progress = None,
) -> None:
    """Loads a model's weights, from exactly the bytes that a trusted key signed.

    The same checks of archives and HDF5 files as in `load_verified_model` come before Keras reads
    them. A configuration in the file is not read, so that it does not matter what it names.

    Args:
        model: A built model of the same architecture. It is untouched if verification fails.
        path: A ".weights.h5", ".keras" or legacy ".h5" file, or a signed folder with the
            ".weights.json" and the shards that `model.save_weights(..., max_shard_size=)` wrote.
            For a `tf.train` checkpoint, give `verified_copy`'s path to `tf.train.Checkpoint`;
            for an Orbax checkpoint, to `model.load_weights`.
        trusted_keys: As in `verify`.
        signature_path: Where the signature is. Defaults to `path` with ".sig" added.
        expected_name: The name it must have been signed under, as in `verify`. Default None: any.
        threshold: As in `verify`: how many of `trusted_keys` must have signed, or "all". Default 1.
        progress: Called with bytes done and bytes in all while the file is verified.

    Raises:
        SignatureError: As `verify` raises it, with its subclasses.
        UnsafeModelError: As `load_verified_model` raises it.
        ValueError: If `path` is not of a kind that can be loaded, or the weights do not fit.
        FileNotFoundError: If there is nothing at `path`.
        OSError: If there is no room for the copy.

    Example:
    ```python
    ms.load_verified_weights(model, "best.weights.h5", "owner.pub")
    ```
    """
    trust = load_trust(trusted_keys, threshold=threshold)
    source = _verified(path, trust, signature_path, _WEIGHT_ENDINGS, progress, expected_name)
    with source as (copy, shown):
        if _holds(copy, ".keras", ".weights.h5"):
            with _opened(copy) as file:
                weights = check_weights(file, shown)
                by_keras(shown, lambda: keras_saving.read_weights(model, weights))
            return
        if copy.is_file():
            check_legacy(copy, shown, Permissions(weights_only=True))
        elif any(copy.glob("*.weights.json")):
            copy = check_shards(copy, shown)
        else:
            raise _unknown_folder(shown, "one with a .weights.json file and its shards")
        by_keras(shown, lambda: model.load_weights(str(copy)))


@contextlib.contextmanager
def _verified(
    path: Any,
    trust: Trust,
    signature_path: Any,
    endings: tuple[str, ...],
    progress: Progress,
    expected_name: str | None,
) -> Iterator[tuple[Any, Path]]:
    """Yields a verified copy, a path or a `MemoryFile`, and the original's path for messages."""
    shown = files.absolute_path(path)
    name = "model"
    if files.kind_of(shown) == "file":
        name += _check_ending(shown, endings)
    refuse_unsafe_mode()
    signature = files.absolute_path(signature_path) if signature_path else None
    in_memory = name.endswith(_READ_IN_MEMORY)
    source = private_copy(
        shown, trust, signature, name, progress, expected_name, in_memory=in_memory
    )
    with source as copy:
        yield copy, shown


def _holds(copy: Any, *endings: str) -> bool:
    """Whether a verified copy is a file of that kind, in memory or on a disk."""
    return isinstance(copy, MemoryFile) or (copy.name.endswith(endings) and copy.is_file())


def _opened(copy: Any) -> Any:
    return copy if isinstance(copy, MemoryFile) else files.open_regular(copy)


def _temporary_folder(stack: contextlib.ExitStack) -> str:
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="keras-modelsec-"))


def _check_ending(path: Path, endings: tuple[str, ...]) -> str:
    ending = next(
        (ending for ending in (".weights.h5", *endings) if path.name.endswith(ending)), ""
    )
    if not path.name.endswith(endings):
        raise ValueError(
            f"`path` must be a folder or a file that ends in {' or '.join(endings)}. "
            f"Received: {str(path)!r}. For other files, use `verified_copy`, whose copy any "
            "loader can read."
        )
    return ending


def _unknown_folder(shown: Path, kinds: str) -> ValueError:
    return ValueError(
        f"A folder to load must be {kinds}. Received: {str(shown)!r}, which is not. For other "
        "folders (tf.train or Orbax checkpoints), use `verified_copy`, whose copy any loader can "
        "read."
    )


def _load_saved_model(
    copy: Path, shown: Path, permissions: Permissions, call_endpoint: str
) -> keras.Model:
    if "TFSMLayer" not in permissions.allow:
        raise CodeInModelError(
            "A SavedModel is a program that can read and write files, and is loaded only if that "
            f'is allowed. Received: {str(shown)!r}. If you trust it, pass allow=("TFSMLayer",).',
            ["TFSMLayer"],
        )
    layer = by_keras(shown, lambda: keras.layers.TFSMLayer(str(copy), call_endpoint=call_endpoint))
    return keras.Sequential([layer])
