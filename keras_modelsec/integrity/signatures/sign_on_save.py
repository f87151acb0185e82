"""The callback that signs every checkpoint it writes."""

import contextlib
import errno
import math
import numbers
import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import provenance as model_notes
from keras_modelsec._core.checks import check_boolean, check_integer
from keras_modelsec.integrity import files
from keras_modelsec.integrity.encryption.encrypted_models import write_encrypted
from keras_modelsec.integrity.encryption.file_encryption import ENCRYPTED_SUFFIX
from keras_modelsec.integrity.encryption.key_slots import EncryptionKeys, locks_for
from keras_modelsec.integrity.errors import CheckpointError
from keras_modelsec.integrity.keys.key_loading import PrivateKeySource, load_signing_key
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signatures.model_statement import STATEMENT_SUFFIX
from keras_modelsec.integrity.signatures.signed_saving import (
    Release,
    begin_signed_save,
    check_writable,
    recover,
)
from keras_modelsec.integrity.signatures.signing import own_statement


class SignOnSave(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` that signs every file it writes.

    Beside each model "NAME" it writes "NAME.sig" in the OpenSSF format and the statement
    "NAME.modelsec.json", which names every tensor, a version that grows with each save, package
    versions, compile and training configuration, and what this package's other callbacks noted:
    privacy epsilon, accuracy under attack, the watermark key's commitment.

    The model is written where `fit` stands, so that it is the state of that moment; it is synced,
    hashed and signed on another thread while training continues, unless `background=False`. All are
    written to a private folder beside the target and renamed into place in an order that leaves a
    set that verifies whenever the process is killed: the old one until the new one is complete.
    Training that fails leaves the last signed checkpoint whole and no temporary files. When `fit`
    returns, all is in place; an error on the other thread stops training at the next batch.

    With a path that has no ending, the model is exported (`model.export`, a SavedModel folder). For
    what `keras.callbacks.BackupAndRestore` writes there is `ms.SignedBackupAndRestore`.

    The key is read when the callback is made. It stays in this process's memory while the callback
    lives, and is in no config, repr, copy on disk or pickle (pickling raises). A signature says
    that this process wrote the file, and nothing about the data or code that trained the model.

    Args:
        filepath: As in `ModelCheckpoint`, ending in ".keras", ".weights.h5" or ".h5", or a
            folder's name to export to; may hold fields such as "{epoch:02d}-{val_loss:.2f}". A
            local path. With `encrypt_to`, ending in ".keras.enc" or ".weights.h5.enc".
        signing_key: As in `ms.sign`.
        password: What the key is encrypted with: str, bytes, or a callable that returns one of them
            (`ms.integrity.EnvironmentVariable("NAME")`). Default None.
        co_signing_keys: Further keys for the statement, as in `ms.sign`.
        name: What the model is called in the statement. Defaults to the last part of `filepath`.
        version: The first version, an integer >= 1, counted up with each save. Defaults to one more
            than the highest that this key has stated of that name in the folder.
        provenance: JSON object added to each statement, e.g. `{"dataset_sha256": ...}`. It is
            published with the model: no secrets.
        encrypt_to: Whom the file is encrypted to, as `key` in `ms.save_encrypted`; the plaintext is
            never on disk. The signature is on the encrypted file; the statement beside it is not
            encrypted, and says how the model was trained. Load the file with
            `ms.load_encrypted(path, key, trusted_keys=...)`. Default None: not encrypted.
        background: Whether training continues while a checkpoint is hashed and signed. With False
            it waits, for callbacks that read the file in the same epoch. Default True.
        **kwargs: Everything else `ModelCheckpoint` takes: `monitor`, `verbose`, `save_best_only`,
            `save_weights_only`, `mode`, `save_freq`, `initial_value_threshold`.

    Raises:
        KeyFormatError: If the key cannot be used; WrongPasswordError if the password is the reason.
        ValueError: If `filepath` is a URL, has another ending than its options ask for, or its
            fields are malformed.
        CheckpointError: An OSError: if the folder cannot be written to (when the callback is made
            and when training begins), or a save fails.

    Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[ms.SignOnSave("best.keras", "owner.pem")])
    model = ms.load_verified_model("best.keras", "owner.pub")
    ```
    """

    def __init__(
        self,
        filepath: "str | os.PathLike[str]",
        signing_key: PrivateKeySource,
        *,
        password: Password = None,
        co_signing_keys: Iterable[PrivateKeySource] = (),
        name: str | None = None,
        version: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        encrypt_to: "EncryptionKeys | None" = None,
        background: bool = True,
        **kwargs: Any,
    ):
        path = _check_template(filepath)
        self._writer = _writer_for(path, encrypt_to)
        # `ModelCheckpoint` knows two endings and insists on one of them.
        weights_only = bool(kwargs.get("save_weights_only"))
        super().__init__(_path_for_keras(path, weights_only, encrypt_to is not None), **kwargs)
        self.filepath = path
        check_integer("version", version, minimum=1, optional=True)
        self._background = check_boolean("background", background)
        self._keys = [
            load_signing_key(signing_key, password),
            *map(load_signing_key, co_signing_keys),
        ]
        self._name = name or Path(path).name
        self._version = version
        self._provenance = dict(provenance or {})
        self._folder = _fixed_folder(self.filepath)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._progress: dict[str, Any] = {}
        _check_reachable(self._folder)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the folder, checks that it is writable, and settles what a killed run left."""
        super().on_train_begin(logs)
        self._wait()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            check_writable(self._folder)
            raise
        recover(self._folder)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        if self._pending is not None and self._pending.done():
            self._wait()
        self._progress["batch"] = batch
        with self._signed_saves(logs):
            super().on_train_batch_end(batch, logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`."""
        self._progress = {"epoch": epoch}
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        with self._signed_saves(logs):
            super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Waits until the last checkpoint is in place."""
        super().on_train_end(logs)
        self._wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    @contextlib.contextmanager
    def _signed_saves(self, logs: Mapping[str, Any] | None) -> Iterator[None]:
        """Within it, `self.model.save` and `save_weights` sign.

        `ModelCheckpoint` decides when and where to save; all it is given is another model to call.
        """
        model = self.model

        def save(filepath: str, **kwargs: Any) -> None:
            self._save(model, filepath, logs, kwargs)

        self.set_model(_SigningModel(model, save))
        try:
            yield
        finally:
            self.set_model(model)

    def _save(
        self,
        model: keras.Model,
        filepath: str,
        logs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        self._wait()  # one at a time, in their order
        target = files.absolute_path(filepath)
        weights_only, writer = self.save_weights_only, self._writer
        finish = begin_signed_save(
            lambda path: writer(model, path, weights_only, options),
            target,
            self._keys,
            Release(self._name, self._next_version(target), self._facts(model, logs)),
        )
        if not self._background:
            finish()
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "modelsec-sign")
        self._pending = self._pool.submit(finish)

    def _wait(self) -> None:
        """Until the checkpoint in the making is in place; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _next_version(self, target: Path) -> int:
        if self._version is None:
            places = target.parent.glob(f"*{STATEMENT_SUFFIX}")
            found = [own_statement(place, self._keys[0]) for place in sorted(places)]
            versions = [item.version for item in found if item and item.model == self._name]
            self._version = max(versions, default=0) + 1
        version, self._version = self._version, self._version + 1
        return version

    def _facts(self, model: keras.Model, logs: Mapping[str, Any] | None) -> dict[str, Any]:
        facts = {
            "training": {
                **self._progress,
                "params": _scalars(self.params or {}),
                "logs": _scalars(logs or {}),
            },
            **model_notes.notes(model),
        }
        return facts | self._provenance


class _SigningModel:
    """A model to all who ask, except that what it saves is signed."""

    def __init__(self, model: keras.Model, save: Callable[..., None]):
        self._model = model
        self.save = save
        self.save_weights = save

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and texts among `values`, as JSON has them."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, numbers.Integral):
            result[name] = int(value)
        elif isinstance(value, numbers.Real) and math.isfinite(value):
            result[name] = float(value)
        elif isinstance(value, (numbers.Real, str)):
            result[name] = str(value)
    return result


# How a model is written: the model, the path, whether weights alone, and Keras's own options.
_Writer = Callable[[keras.Model, str, bool, Mapping[str, Any]], None]


def _write_file(
    model: keras.Model, path: str, weights_only: bool, options: Mapping[str, Any]
) -> None:
    if weights_only:
        model.save_weights(path, **options)
    else:
        model.save(path, **options)


def _write_export(
    model: keras.Model, path: str, weights_only: bool, options: Mapping[str, Any]
) -> None:
    model.export(path, verbose=False)


def _writer_for(path: str, encrypt_to: "EncryptionKeys | None") -> _Writer:
    if encrypt_to is not None:
        locks = locks_for(encrypt_to)
        return lambda model, place, weights_only, options: write_encrypted(model, place, locks)
    return _write_export if _has_no_ending(path) else _write_file


def _has_no_ending(path: str) -> bool:
    """Whether the last part of the path has no dot outside of its fields."""
    literals = [text for text, *_ in string.Formatter().parse(Path(path).name)]
    return "." not in "".join(literals)


def _path_for_keras(path: str, weights_only: bool, encrypted: bool) -> str:
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
    if not _has_no_ending(path):
        return path
    if weights_only:
        raise ValueError(
            "`filepath` must end in '.weights.h5' with save_weights_only=True. "
            f"Received: filepath={path!r}. An export holds the whole model."
        )
    return path + ".keras"


def _check_template(filepath: Any) -> str:
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


def _fixed_folder(filepath: str) -> Path:
    """The innermost folder of the path whose name does not depend on epoch or metrics."""
    folder = files.absolute_path(filepath).parent
    while "{" in str(folder):
        folder = folder.parent
    return folder


def _check_reachable(folder: Path) -> None:
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
