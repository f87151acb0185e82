"""A `BackupAndRestore` whose backups are signed, and verified before they are read."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.checks import check_boolean, check_integer
from keras_modelsec._core.interrupts import Interrupts
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.key_files import PrivateKeySource, load_signing_key
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.loading.verified_loading import load_verified_weights
from keras_modelsec.integrity.signing.signed_saving import Release, recover, save_signed
from keras_modelsec.integrity.statements.model_statement import ModelStatement
from keras_modelsec.integrity.statements.places import Places

_FACTS = "backup"


class SignedBackupAndRestore(keras.callbacks.Callback):
    """Saves the training's state as `BackupAndRestore` does, signed; resumes from nothing else.

    A run resumes from whatever lies in the backup folder: who can write there chooses the weights.
    Here the weights are signed with the owner's key as `SignOnSave` signs, and a run resumes only
    from weights, and an epoch, that this key signed: the epoch is part of the signed statement. A
    kill at any instant leaves a backup that verifies. As with `BackupAndRestore`, a run that was
    interrupted within an epoch begins that epoch again, with the weights of the last save.

    A backup is signed under the name of its weights file, "latest.weights.h5", whatever lies in the
    folder: it is no release of a model, and none by that name should be.

    It cannot tell an older signed backup of the same run from the newest one: who can write to the
    folder can set the training back. The key stays in memory while the callback lives.

    Args:
        backup_dir: A local folder of its own, as in `BackupAndRestore`.
        signing_key: As in `ms.sign`.
        password: What the key is encrypted with. Default None.
        co_signing_keys: Further keys for the statement, as in `ms.sign`.
        save_freq: "epoch" (default), or a number of batches >= 1.
        delete_checkpoint: Whether the backup is removed when training has finished, and the folder
            if nothing else is in it. Default True.

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
        self._interrupts = Interrupts()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Resumes from the signed backup, if there is one."""
        self.backup_dir.mkdir(0o755, parents=True, exist_ok=True)
        recover(self.backup_dir)
        if self._weights.exists():
            self._resume()
        self._interrupts.begin()

    def _resume(self) -> None:
        model = self.model
        if not model.built:
            raise ValueError(
                "A model must be built before its backup can be loaded. Received: "
                f"{model.name!r}, which is not. Call it on a batch, or `model.build(...)`."
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        place = Places.of(self._weights).statement
        keys = {key.verifying_key.hint: key.verifying_key for key in self._keys}
        trust = Trust(keys, every=True)  # a co-signature that was taken off would not be missed
        data, epoch = _read_backup(place, trust)
        # The weights must be what this very statement is on: by now another may lie in its place.
        with tempfile.TemporaryDirectory(prefix="keras-modelsec-") as folder:
            copy = Places.of(Path(folder, self._weights.name))
            copy.statement.write_bytes(data)
            load_verified_weights(model, self._weights, trust, signature_path=copy.signature)
        internals.set_initial_epoch(model, epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts batches anew."""
        self._interrupts.check()
        self._epoch, self._last_batch = epoch, -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if `save_freq` batches have passed; an execution may hold several."""
        self._interrupts.check()
        if self.save_freq == "epoch":
            return
        self._batches += batch - self._last_batch
        self._last_batch = batch
        if self._batches >= int(self.save_freq):
            self._batches = 0
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if `save_freq` is "epoch"."""
        self._interrupts.check()
        self._epoch = epoch + 1
        if self.save_freq == "epoch":
            self._save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Removes the backup, unless it is to be kept."""
        self._interrupts.end()
        if not self.delete_checkpoint:
            return
        places = Places.of(self._weights)
        for place in (self._weights, places.signature, places.statement):
            place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what else is in there is not ours to delete
            self.backup_dir.rmdir()

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
