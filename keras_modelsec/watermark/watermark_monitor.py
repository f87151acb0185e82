"""Owns `WatermarkMonitor`, which watches the mark while a model trains."""

from typing import Any

import keras

from keras_modelsec._core.keras_averages import replaces_weights
from keras_modelsec._core.monitor import Monitor
from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark import derivation
from keras_modelsec.watermark.carriers import Reading, readings
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.verification import verify_watermark
from keras_modelsec.watermark.watermark_regularizer import WatermarkRegularizer
from keras_modelsec.watermark.watermark_report import WatermarkReport


class WatermarkMonitor(Monitor):
    """Publishes the strength of the owner's mark in `logs`, and refuses to watch nothing.

    At the end of an epoch it puts `watermark_z` and `watermark_log10_p` into `logs`, as
    `ms.verify_watermark` reads them; epochs that `every` skips repeat the last figures. Callbacks
    after it in the list see them.

    Before the first step it raises unless the model has an active `ms.WatermarkRegularizer` of
    this key on a weight that trains, or its weights carry the key's mark already (to watch how the
    mark fares without). Where the optimizer replaces the weights by their averages in the end
    (`use_ema`), `report` is read again from those.

    Args:
        key: The key, as bytes or hexadecimal string. It is held in memory only.
        every: Read the mark in the first epoch and every so many epochs, >= 1, default 1.

    Attributes:
        report: The latest `WatermarkReport`, or None.

    Raises:
        WatermarkError: From `fit`, before training, if there is no mark to watch, a regularizer is
            inert or of another key, or its `index` is one that verification does not try.
        WatermarkKeyError: If the key is missing, weak or malformed.

    Example:
    ```python
    ms.attach_watermark(model, key)
    model.fit(x, y, epochs=3, callbacks=[ms.WatermarkMonitor(key)])
    ```

    Limits: reading costs a pass over the weights per epoch, and more where many kernels share one
    shape. The figures say nothing about attacks that have not happened yet.
    """

    section = "watermark"

    def __init__(self, key: Any, every: int = 1):
        super().__init__(every)
        self.report: WatermarkReport | None = None
        self._secret = SecretKey(key)

    def begin(self) -> None:
        """Refuses a model without a mark of this key."""
        self.report = None
        read = readings(self.model)
        marked = [r for r in read if isinstance(r.variable.regularizer, WatermarkRegularizer)]
        for reading in marked:
            self._check_active(reading.variable)
            _check_index(reading, read)
        kept = any(reading.variable.trainable for reading in marked)  # Keras penalises no others
        if not kept and not verify_watermark(self.model, self._secret).is_evidence:
            raise WatermarkError(
                "WatermarkMonitor needs a model that carries or keeps a mark of its key. "
                f"Received: {self.model.name!r}, which does neither. Call "
                "ms.attach_watermark(model, key), or build layers with "
                "kernel_regularizer=ms.WatermarkRegularizer(key), and do not freeze them."
            )

    def measure(self, step: int) -> None:
        """Reads the mark, as `ms.verify_watermark` does, into `report`."""
        self.report = verify_watermark(self.model, self._secret)

    def scalars(self) -> dict[str, float]:
        """`watermark_z` and `watermark_log10_p` as they were read last."""
        if self.report is None:
            return {}
        return {"watermark_z": self.report.z, "watermark_log10_p": self.report.log10_p}

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Reads the mark once more where Keras has just replaced the weights."""
        super().on_train_end(logs)
        if self.report is not None and replaces_weights(self.model):
            self.measure(0)

    def facts(self) -> dict[str, Any]:
        """What a signed checkpoint states of the mark; the key cannot be told from it."""
        facts: dict[str, Any] = {"commitment": self._secret.commitment}
        if self.report is not None:
            facts |= {"z": self.report.z, "log10_p": self.report.log10_p}
        return facts

    def _check_active(self, variable: keras.Variable) -> None:
        regularizer = variable.regularizer
        if regularizer.key_id != derivation.key_id(self._secret):
            raise WatermarkError(
                f"WatermarkMonitor needs the key that the model is marked with. Received: a key "
                f"other than that of {variable.path!r}, key_id {regularizer.key_id}. Give both the "
                "same key."
            )
        if not regularizer.is_active:
            raise WatermarkError(
                "A watermark must be kept while the model trains. Received: an inert regularizer "
                f"on {variable.path!r}, as after loading. Call ms.watermark.restore_key(model, key)"
                " before fit."
            )


def _check_index(reading: Reading, read: list[Reading]) -> None:
    same = sum(other.value.shape == reading.value.shape for other in read)
    if reading.variable.regularizer.index >= same:
        raise WatermarkError(
            f"`index` must be below the number of kernels of its shape in the model, {same} for "
            f"{reading.value.shape}. Received: index={reading.variable.regularizer.index} on "
            f"{reading.variable.path!r}. Number the kernels of one shape 0, 1, 2, ..."
        )
