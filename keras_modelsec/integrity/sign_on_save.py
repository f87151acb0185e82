"""The callback that signs every checkpoint it writes."""

import contextlib
import errno
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import CheckpointError
from keras_modelsec.integrity.key_loading import PrivateKeySource, load_signing_key
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signed_saving import check_writable, recover, save_signed
from keras_modelsec.integrity.signing_key import SigningKey


class SignOnSave(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` that signs every file it writes, as `NAME.sig` beside it.

    Model and signature are written to a private folder beside the target, synced to the disk, and
    renamed into place in an order that leaves a pair that verifies whenever the process is killed:
    the old pair until the new one is complete. Training that fails leaves the last signed
    checkpoint whole and no temporary files.

    The key is read when the callback is made. It stays in this process's memory while the callback
    lives, and is in no config, repr, copy on disk or pickle (pickling raises). A signature says
    that this process wrote the file, and nothing about the data or code that trained the model.

    Args:
        filepath: As in `ModelCheckpoint`, ending in ".keras", ".weights.h5" or ".h5"; may hold
            fields such as "{epoch:02d}-{val_loss:.2f}". A local path.
        signing_key: Path of a PEM private key, PEM text or bytes, or a `cryptography` key object:
            ECDSA on P-256, P-384 or P-521.
        password: What the key is encrypted with: str, bytes, or a callable that returns one of them
            (`ms.integrity.EnvironmentVariable("NAME")`). Default None.
        **kwargs: Everything else `ModelCheckpoint` takes: `monitor`, `verbose`, `save_best_only`,
            `save_weights_only`, `mode`, `save_freq`, `initial_value_threshold`.

    Raises:
        KeyFormatError: If the key cannot be used; WrongPasswordError if the password is the reason.
        ValueError: If `filepath` has another ending, is a URL, or its fields are malformed.
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
        **kwargs: Any,
    ):
        super().__init__(_check_template(filepath), **kwargs)
        self._key = load_signing_key(signing_key, password)
        self._folder = _fixed_folder(self.filepath)
        _check_reachable(self._folder)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the folder, checks that it is writable, and settles what a killed run left."""
        super().on_train_begin(logs)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            check_writable(self._folder)
            raise
        recover(self._folder)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        with self._signed_saves():
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        with self._signed_saves():
            super().on_epoch_end(epoch, logs)

    @contextlib.contextmanager
    def _signed_saves(self) -> Iterator[None]:
        """Within it, `self.model.save` and `save_weights` sign.

        `ModelCheckpoint` decides when and where to save; all it is given is another model to call.
        """
        model = self.model
        self.set_model(_SigningModel(model, self._key))
        try:
            yield
        finally:
            self.set_model(model)


class _SigningModel:
    """A model to all who ask, except that what it saves is signed."""

    def __init__(self, model: keras.Model, key: SigningKey):
        self._model = model
        self._key = key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def save(self, filepath: str, **kwargs: Any) -> None:
        target = files.absolute_path(filepath)
        save_signed(lambda path: self._model.save(path, **kwargs), target, [self._key])

    def save_weights(self, filepath: str, **kwargs: Any) -> None:
        target = files.absolute_path(filepath)
        save_signed(lambda path: self._model.save_weights(path, **kwargs), target, [self._key])


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
