"""Clipped sums that wait for their noise, where nothing that saves can find them."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any


class ClippedSums:
    """What batches of one release summed so far: exact values, from which examples can be read.

    Keras and TensorFlow save each variable that they find on an optimizer. They look into lists and
    into objects of their own, not into this one, so the sums reach no file, checkpoint, pickle or
    list of variables. With the model they are lost, and their examples enter no release.

    The sums are float32 whatever the weights are: rounded to fewer digits, one example could move a
    large sum by more than its clipped norm.

    Args:
        variables: The weights whose gradients are summed.
        batches: How many batches make a release.
    """

    def __init__(self, variables: Sequence[keras.Variable], batches: int):
        self._batches = batches
        self._totals = [_zeros(variable.shape, "float32") for variable in variables]
        self._count = _zeros((), "int64")

    @property
    def secrets(self) -> list[keras.Variable]:
        """The sums, without noise, and how many batches they are of."""
        return [*self._totals, self._count]

    @property
    def are_pending(self) -> bool:
        """Whether a batch was added that is in no release yet."""
        return int(np.asarray(self._count)) > 0

    def forget(self) -> None:
        """Drops what was summed."""
        for variable in self.secrets:
            variable.assign(ops.zeros_like(variable))

    def add(
        self, totals: Sequence[Tensor], indices: Sequence[int], release: Callable[..., None]
    ) -> None:
        """Adds a batch; after the last one of a release hands the sums to `release` and empties.

        Args:
            totals: The clipped sums of the batch.
            indices: Which of the weights they belong to.
            release: Called with the sums of all batches, in the order of `totals`.
        """
        stores = [self._totals[index] for index in indices]
        for store, total in zip(stores, totals, strict=True):
            store.assign_add(ops.cast(total, "float32"))
        self._count.assign_add(1)

        def finish() -> None:
            release([ops.convert_to_tensor(store) for store in stores])
            self.forget()

        ops.cond(ops.greater_equal(self._count.value, self._batches), finish, lambda: None)


def without_saved_sums(
    values: list[Any], first: int, variables: Sequence[keras.Variable]
) -> list[Any]:
    """Leaves out the clipped sums of `variables`, which earlier versions saved from `first` on."""
    behind = first + len(variables)
    shapes = [tuple(np.shape(value)) for value in values[first:behind]]
    if shapes == [tuple(v.shape) for v in variables]:
        return values[:first] + values[behind:]
    return values


def _zeros(shape: Sequence[int], dtype: str) -> keras.Variable:
    return keras.Variable(
        "zeros", shape, dtype, trainable=False, autocast=False, aggregation="only_first_replica"
    )
