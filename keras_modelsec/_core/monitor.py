"""What all monitors share: how often they measure, and where their figures go."""

import os
from typing import Any

import keras

from keras_modelsec._core import backend, provenance
from keras_modelsec._core.checks import check_integer


class Monitor(keras.callbacks.Callback):
    """Measures a model at the end of epochs and puts the figures into `logs`.

    A monitor says with `measure` how it measures and with `scalars` what it found; this class says
    when, repeats the last figures in between so that file names and other callbacks find them,
    tells signed checkpoints through `provenance`, and keeps TensorBoard's file.

    Args:
        every: Measure in the first epoch of a `fit` and every so many epochs, int >= 1.
        log_dir: Folder for TensorBoard, made if need be. Default None: nothing is written.

    Attributes:
        section: Under which name a signed checkpoint states what `facts` returns.

    Raises:
        OSError: If `log_dir` cannot be made or written to.
    """

    section: str

    def __init__(self, every: int, *, log_dir: str | os.PathLike[str] | None = None):
        super().__init__()
        self.every = check_integer("every", every, minimum=1)
        self.log_dir = None if log_dir is None else _check_folder(log_dir)
        self._log: backend.SummaryLog | None = None

    def begin(self) -> None:
        """Forgets what an earlier `fit` measured, and refuses a model that cannot be measured."""
        raise NotImplementedError

    def measure(self, step: int) -> None:
        """Measures `self.model`; `step` is the epoch, from 0."""
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """What was measured last, by the names it has in `logs`; empty before the first time."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a signed checkpoint states of what was measured; never a secret."""
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses what cannot be measured before anything is trained."""
        provenance.note(self.model, self.section, self.facts)
        self.begin()
        if self.log_dir is not None:
            self._log = backend.SummaryLog(self.log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures if this epoch's turn has come, and adds the figures to `logs`."""
        if not self.scalars() or (epoch + 1) % self.every == 0:
            self.measure(epoch)
        if logs is not None:
            logs.update(self.scalars())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes TensorBoard's file."""
        if self._log is not None:
            self._log.close()
            self._log = None


def _check_folder(log_dir: str | os.PathLike[str]) -> str:
    path = os.fspath(log_dir)
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        raise type(error)(
            f"`log_dir` must be a folder that can be made. Received: {path!r} ({error.strerror})."
        ) from error
    if not writable:
        raise PermissionError(
            f"`log_dir` must be writable. Received: {path!r}. Choose another folder."
        )
    return path
