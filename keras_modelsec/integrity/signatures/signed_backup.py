"""A `BackupAndRestore` whose backups are signed, and verified before they are read."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.checks import check_boolean, check_integer
from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.keys.key_loading import PrivateKeySource, load_signing_key
from keras_modelsec.integrity.keys.trust import Trust
from keras_modelsec.integrity.loaders.loading import load_verified_weights
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.signed_saving import Release, recover, save_signed

_FACTS = "backup"


class SignedBackupAndRestore(keras.callbacks.Callback):
    """Saves the training's state as `BackupAndRestore` does, signed; resumes from nothing else.

    A run resumes from whatever lies in the backup folder: who can write there chooses the weights.
    Here the weights are signed with the owner's key as `SignOnSave` signs, and a run resumes only
    from weights, and an epoch, that this key signed: the epoch is part of the signed statement. A
    kill at any instant leaves a backup that verifies. As with `BackupAndRestore`, a run that was
    interrupted within an epoch begins that epoch again, with the weights of the last save.

    It cannot tell an older signed backup of the same run from the newest one: who can write to the
    folder can set the training back. The key stays in memory while the callback lives.

    Args:
        backup_dir: A local folder of its own, as in `BackupAndRestore`.
        signing_key: As in `ms.sign`.
        password: What the key is encrypted with. Default None.
        co_signing_keys: Further keys for the statement, as in `ms.sign`.
        save_freq: "epoch" (default), or a number of batches >= 1.
        delete_checkpoint: Whether the folder is removed when training has finished. Default True.

    Raises:
        KeyFormatError: If the key cannot be used; WrongPasswordError if the password is the reason.
        ValueError: If an argument is out of range.
        SignatureError: From `fit`, before training: if the backup was not signed by this key.
        CheckpointError: An OSError, from `fit`: if the folder cannot be written to.

    Example:
    ```python
    callbacks = [ms.SignedBackupAndRestore("backup", "owner.pem")]
    model.fit(x, y, epochs=3, callbacks=callbacks)
    ```
    """

    def __init__(
        self,
        backup_dir: "str | os.PathLike[str]",
        signing_key: PrivateKeySource,
        *,
        password: Password = None,
        co_signing_keys: Iterable[PrivateKeySource] = (),
        save_freq: int | str = "epoch",
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        if save_freq != "epoch":
            check_integer("save_freq", save_freq, minimum=1)
        self.backup_dir = files.absolute_path(backup_dir)
        self.save_freq = save_freq
        self.delete_checkpoint = check_boolean("delete_checkpoint", delete_checkpoint)
        self._keys = [
            load_signing_key(signing_key, password),
            *map(load_signing_key, co_signing_keys),
        ]
        self._weights = self.backup_dir / "latest.weights.h5"
        self._epoch = 0
        self._last_batch = -1
        self._batches = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Resumes from the signed backup, if there is one."""
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        recover(self.backup_dir)
        if not self._weights.exists():
            return
        model, key = self.model, self._keys[0].verifying_key
        if not model.built:
            raise ValueError(
                "A model must be built before its backup can be loaded. Received: "
                f"{model.name!r}, which is not. Call it on a batch, or `model.build(...)`."
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        place = Places.of(self._weights).statement
        data, epoch = _read_backup(place, Trust({key.hint: key}))
        # The weights must be what this very statement is on: by now another may lie in its place.
        with tempfile.TemporaryDirectory(prefix="keras-modelsec-") as folder:
            copy = Places.of(Path(folder, self._weights.name))
            copy.statement.write_bytes(data)
            load_verified_weights(model, self._weights, key, signature_path=copy.signature)
        internals.set_initial_epoch(model, epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts batches anew."""
        self._epoch, self._last_batch = epoch, -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if `save_freq` batches have passed; an execution may hold several."""
        if self.save_freq == "epoch":
            return
        self._batches += batch - self._last_batch
        self._last_batch = batch
        if self._batches >= int(self.save_freq):
            self._batches = 0
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if `save_freq` is "epoch"."""
        self._epoch = epoch + 1
        if self.save_freq == "epoch":
            self._save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Removes the backup, unless it is to be kept."""
        if self.delete_checkpoint:
            shutil.rmtree(self.backup_dir)

    def _save(self) -> None:
        facts = {_FACTS: {"epoch": self._epoch}}
        save_signed(
            lambda path: self.model.save_weights(path, overwrite=True),
            self._weights,
            self._keys,
            Release(provenance=facts),
        )


def _read_backup(place: Path, trust: Trust) -> tuple[bytes, int]:
    """The statement on the weights, and the epoch to go on with, which it names."""
    try:
        data = files.read_limited(place, MAX_ENVELOPE_BYTES)
        said = ModelStatement.from_bytes(DsseEnvelope.from_bytes(data).verified_payload(trust))
    except FileNotFoundError:
        raise SignatureError(
            f"A backup must come with its statement. Received: no file at {str(place)!r}. "
            "Put it back, or choose another `backup_dir`."
        ) from None
    except SignatureError as error:
        error.args = (f"{str(place)!r}: {error}",)
        raise
    facts = said.provenance.get(_FACTS, {})
    if not isinstance(facts, dict) or type(facts.get("epoch")) is not int:
        raise SignatureError(
            "A backup's statement must name the epoch. Received: "
            f"{str(place)!r}, which does not. It was not written by SignedBackupAndRestore: "
            "choose another `backup_dir`."
        )
    return data, int(facts["epoch"])
