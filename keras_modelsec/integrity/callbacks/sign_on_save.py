"""The callback that signs every checkpoint it writes."""

import contextlib
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import keras_saving
from keras_modelsec._core import provenance as model_notes
from keras_modelsec._core.checks import check_boolean
from keras_modelsec._core.interrupts import Interrupts
from keras_modelsec._signing.key_files import PrivateKeySource, load_signing_key
from keras_modelsec._signing.secrets import Password
from keras_modelsec._storage import files
from keras_modelsec.integrity.callbacks.checkpoint_paths import (
    check_reachable,
    check_template,
    fixed_folder,
    has_no_ending,
    path_for_keras,
)
from keras_modelsec.integrity.encryption.encrypted_models import hold_encrypted
from keras_modelsec.integrity.encryption.key_slots import EncryptionKeys, locks_for
from keras_modelsec.integrity.signing.describing import describe_while_writing
from keras_modelsec.integrity.signing.signed_saving import (
    Later,
    Release,
    begin_signed_save,
    check_writable,
    recover,
)
from keras_modelsec.integrity.signing.versions import (
    VersionSource,
    check_version,
    next_version,
    own_lone_signatures,
    stated_name,
)
from keras_modelsec.integrity.statements.model_statement import STATEMENT_SUFFIX
from keras_modelsec.integrity.statements.places import PENDING_SUFFIX


class SignOnSave(keras.callbacks.ModelCheckpoint):
    """`keras.callbacks.ModelCheckpoint` that signs every file it writes.

    Beside each model "NAME" it writes "NAME.sig" in the OpenSSF format and the statement
    "NAME.modelsec.json", which names every tensor, a version that grows with each save, package
    versions, compile and training configuration, and what this package's other callbacks noted:
    privacy epsilon, accuracy under attack, the watermark key's commitment.

    The file holds the model of the moment `fit` stands at. Layers, optimizer and configuration are
    asked then for what they save, and references to the values of variables are kept; another
    thread writes, hashes and signs them while training continues, unless `background=False`. Where
    training assigns to a variable meanwhile, TensorFlow gives it new memory: until all is written
    that takes up to the size of weights and optimizer state once more. Values on another device
    than the CPU are copied to the host at once. Training waits for the writing itself where only
    the model can write: a ".h5" file, an export, a class with a `save` of its own, or a layer whose
    `save_own_variables` needs a real HDF5 file. A save waits until the one before is in place.

    All is written to a private folder beside the target and renamed into place in an order that
    leaves a set that verifies whenever the process is killed: the old one until the new one is
    complete. Training that fails leaves the last signed checkpoint whole and no temporary files.
    When `fit` returns, all is in place; an error on the other thread stops training at the next
    batch or epoch. Ctrl-C stops training too, and what was begun is still completed; one that a
    library swallows is raised again at the next batch.

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
            (`ms.trust.EnvironmentVariable("NAME")`). Default None.
        co_signing_keys: Further keys for the statement, as in `ms.sign`.
        name: What the model is called in the statement. Defaults to the last part of `filepath`.
        version: The first version, counted up with each save: an integer >= 1, or a `TrustStore` or
            the path of a counter file, as in `ms.sign`. Defaults to one more than the highest that
            these keys have stated of that name in the folder; 1 if there is none. A fresh checkout
            knows no earlier version: give one of the three there.
        provenance: JSON object added to each statement, e.g. `{"dataset_sha256": ...}`. It is
            published with the model: no secrets.
        encrypt_to: Whom the file is encrypted to, as `key` in `ms.save_encrypted`; the plaintext is
            never on disk. The signature is on the encrypted file; the statement beside it is not
            encrypted, and says how the model was trained. Load the file with
            `ms.load_encrypted(path, key, trusted_keys=...)`. Default None: not encrypted.
        background: Whether training continues while a checkpoint is written and signed. With
            False it waits, for callbacks that read the file in the same epoch. Default True.
        **kwargs: Everything else `ModelCheckpoint` takes: `monitor`, `verbose`, `save_best_only`,
            `save_weights_only`, `mode`, `save_freq`, `initial_value_threshold`.

    Raises:
        KeyFormatError: If the key cannot be used; WrongPasswordError if the password is the reason.
        ValueError: If `filepath` is a URL, has another ending than its options ask for, or its
            fields are malformed; when training begins, if `version` is None and another key has
            signed the same name in the folder.
        CheckpointError: An OSError: if the folder cannot be written to (when the callback is made
            and when training begins), or others than root may write to it: it needs
            mode 0755 or less, a group that is this user's alone, or the sticky bit; or a save
            fails.

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
        version: VersionSource = None,
        provenance: Mapping[str, Any] | None = None,
        encrypt_to: "EncryptionKeys | None" = None,
        background: bool = True,
        **kwargs: Any,
    ):
        path = check_template(filepath)
        self._hold = _holder_for(path, encrypt_to)
        # `ModelCheckpoint` knows two endings and insists on one of them.
        weights_only = bool(kwargs.get("save_weights_only"))
        super().__init__(path_for_keras(path, weights_only, encrypt_to is not None), **kwargs)
        self.filepath = path
        self._background = check_boolean("background", background)
        self._keys = [
            load_signing_key(signing_key, password),
            *map(load_signing_key, co_signing_keys),
        ]
        self._name = name or Path(path).name
        self._source = check_version(version)
        self._version: int | None = None
        self._provenance = dict(provenance or {})
        self._folder = fixed_folder(self.filepath)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._progress: dict[str, Any] = {}
        self._interrupts = Interrupts()
        check_reachable(self._folder)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the folder, checks that it is writable, and settles what a killed run left."""
        super().on_train_begin(logs)
        self._wait()
        try:
            self._folder.mkdir(0o755, parents=True, exist_ok=True)
        except OSError:
            check_writable(self._folder)
            raise
        recover(self._folder)
        is_fixed = self._folder == files.absolute_path(self.filepath).parent
        if is_fixed and self._source is None and self._version is None:
            self._version = self._first_version(self._folder)
        self._interrupts.begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        self._heed()
        self._progress["batch"] = batch
        with self._signed_saves(logs):
            super().on_train_batch_end(batch, logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`."""
        self._heed()
        self._progress = {"epoch": epoch}
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """As `ModelCheckpoint`; what it saves is signed."""
        self._heed()
        with self._signed_saves(logs):
            super().on_epoch_end(epoch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Obeys a Ctrl-C that was swallowed."""
        self._heed()

    on_test_end = on_test_begin

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Waits until the last checkpoint is in place."""
        super().on_train_end(logs)
        self._wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._interrupts.end()

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
        weights_only, hold = self.save_weights_only, self._hold
        finish = begin_signed_save(
            lambda path: hold(model, path, weights_only, options),
            target,
            self._keys,
            Release(self._name, self._next_version(target.parent), self._facts(model, logs)),
        )
        if not self._background:
            finish()
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "modelsec-sign")
        self._pending = self._pool.submit(finish)

    def _heed(self) -> None:
        """Obeys a Ctrl-C that was swallowed, and raises what went wrong on the other thread."""
        self._interrupts.check()
        if self._pending is not None and self._pending.done():
            self._wait()

    def _wait(self) -> None:
        """Until the checkpoint in the making is in place; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _next_version(self, folder: Path) -> int:
        version = self._version
        if version is None or isinstance(self._source, Path):
            version = self._first_version(folder)
        self._version = version + 1
        return version

    def _first_version(self, folder: Path) -> int:
        endings = (STATEMENT_SUFFIX, STATEMENT_SUFFIX + PENDING_SUFFIX)
        places = sorted(
            place
            for ending in endings
            for place in folder.glob(f"*{ending}")
            if files.stranger_at(place) is None  # of any length, and in any number
        )
        # What cannot be read may have been on this name; `next_version` says what follows from it.
        of_name = [place for place in places if stated_name(place) in (self._name, None)]
        lone = own_lone_signatures(folder, self._keys)
        return next_version(self._source, self._name, [*of_name, *lone], self._keys)

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


# How a model is kept or written: it, the path, whether weights alone, and Keras's own options.
_Hold = Callable[[keras.Model, str, bool, Mapping[str, Any]], Later | None]


def _hold_file(
    model: keras.Model, path: str, weights_only: bool, options: Mapping[str, Any]
) -> Later | None:
    """Keeps a model for writing later; if only its own `save` can write it, that is done now."""
    save, kerass, ending = model.save, keras.Model.save, ".keras"
    if weights_only:
        save, kerass, ending = model.save_weights, keras.Model.save_weights, ".weights.h5"
    if getattr(save, "__func__", None) is not kerass or not (model.built and path.endswith(ending)):
        save(path, **options)
        return None
    if weights_only:
        held = keras_saving.hold_weights(model)
    else:
        held = keras_saving.hold_archive(model, lambda: tempfile.mkdtemp(dir=Path(path).parent))
    return lambda: describe_while_writing(held(), Path(path))


def _holder_for(path: str, encrypt_to: "EncryptionKeys | None") -> _Hold:
    if encrypt_to is not None:
        locks = locks_for(encrypt_to)
        return lambda model, place, weights_only, options: hold_encrypted(model, Path(place), locks)
    if has_no_ending(path):
        return lambda model, place, weights_only, options: model.export(place, verbose=False)
    return _hold_file
