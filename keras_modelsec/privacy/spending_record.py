"""What was spent on a model's weights, kept beside them where the optimizer cannot keep it."""

import weakref
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import keras_saving
from keras_modelsec.errors import NotPrivateError
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.ledger import Run


class SpendingRecord(keras_saving.SavedBeside):
    """Saves and loads a model's spending with its weights, whatever it is compiled with.

    The optimizer holds the ledger while it is a `DPOptimizer`, and this then only writes a copy.
    A model that is compiled with another optimizer, or loaded without one, keeps here what it spent
    until it is compiled with a `DPOptimizer` again.

    Args:
        model: The model; not kept alive.
    """

    def __init__(self, model: keras.Model):
        self._model = weakref.ref(model)
        self._last_private: DPOptimizer | None = None
        # A step traced with one of these goes on using it; not kept alive for that.
        self._retired: list[weakref.ref[DPOptimizer]] = []
        self._carried: list[Run] = []
        # What loads without `DPMixin.load_weights` does not say whether all weights are replaced.
        self._adds, self._is_loading = True, False
        self._earlier: tuple[list[Run], list[Run]] = ([], [])

    def runs(self) -> list[Run]:
        """All that was released of these weights."""
        return self._carried + (self._last_private.runs() if self._last_private else [])

    def hand_over(self, optimizer: DPOptimizer) -> None:
        """Moves what was spent into the ledger of the optimizer that trains from now on.

        Also what optimizers before it spent since then, in a step that was traced with them.
        """
        last = self._last_private
        if last is not None and last is not optimizer:
            self._retired.append(weakref.ref(last))
        for reference in self._retired:
            earlier = reference()
            if earlier is not None and earlier.runs():
                optimizer.inherit_spending(earlier)
        self._retired = [r for r in self._retired if r() not in (None, optimizer)]
        if self._carried:
            optimizer.ledger.add(self._carried)
        self._last_private, self._carried = optimizer, []

    def begin_loading(self, *, is_partial: bool) -> None:
        """Called before weights are loaded.

        Args:
            is_partial: Whether some weights may stay as they are: what they cost is kept then, and
                what the file says is added.
        """
        self._adds, self._is_loading = is_partial, True
        self._earlier = (self.runs(), self._carried)
        if self._last_private is not None:
            self._last_private.adds_loaded_spending = is_partial
            self._last_private.has_loaded_spending = False

    def end_loading(self, *, has_failed: bool) -> None:
        """Called afterwards; what failed half way left some weights as they were."""
        runs, carried = self._earlier
        optimizer = self._last_private
        if has_failed and not self._adds:
            if self._carried is not carried:
                self._carried = self._carried + carried
            elif optimizer is not None and optimizer.has_loaded_spending:
                optimizer.ledger.add(runs)
        self._adds, self._is_loading, self._earlier = True, False, ([], [])
        if optimizer is not None:
            optimizer.adds_loaded_spending = True
            optimizer.has_loaded_spending = False

    def save_own_variables(self, store: Any) -> None:
        """Writes the runs, one a row; nothing where nothing was spent."""
        runs = self.runs()
        if runs:
            store["0"] = np.array(runs, "float64")

    def load_own_variables(self, store: Any) -> None:
        """Takes what the file says was spent, unless the optimizer took it already.

        Raises:
            NotPrivateError: If the rows are not what this version writes.
        """
        if "0" not in store.keys():  # noqa: SIM118
            return
        runs = _read(np.asarray(store["0"]))
        optimizer = getattr(self._model(), "optimizer", None)
        if not isinstance(optimizer, DPOptimizer):
            self._carried = runs + (self._carried if self._adds else [])
        elif not optimizer.has_loaded_spending:
            optimizer.ledger.add(runs)
        elif not self._is_loading:
            optimizer.has_loaded_spending = False  # the next file may skip the optimizer


def _read(rows: Any) -> list[Run]:
    fits = rows.ndim == 2 and rows.shape[1] == len(Run._fields)
    if not fits or not np.all(np.isfinite(rows)):
        raise NotPrivateError(
            f"What a file says was spent must be rows of {len(Run._fields)} finite "
            f"numbers. Received: an array of shape {rows.shape}. Load the file with the version "
            "of keras_modelsec that wrote it."
        )
    return [Run(*map(float, row)) for row in rows]
