"""Sees who writes to trained weights between the end of one training step and the next begin."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_modelsec._core import backend


class Change(NamedTuple):
    """A weight that was written to, and what it held at the end of the step."""

    name: str
    variable: keras.Variable
    before: Any


class GapWatch:
    """Holds on to the contents of variables, without copying them, and compares.

    As long as a content is held, every assignment goes to other memory, so comparing addresses is
    enough to see that there was none. Before the next step the contents must be let go, or that
    step would copy each weight. Bits that flip in the memory itself change both and are not seen.
    """

    def __init__(self) -> None:
        self._held: list[tuple[str, keras.Variable, list[Any]]] = []

    @property
    def is_armed(self) -> bool:
        """Whether contents are held."""
        return bool(self._held)

    def arm(self, variables: Mapping[str, keras.Variable]) -> None:
        """Takes hold of what the variables are now."""
        self._held = [(n, v, backend.variable_contents(v)) for n, v in variables.items()]

    def release(self) -> None:
        """Lets go, for a step to change the variables."""
        self._held = []

    def changes(self) -> list[Change]:
        """What was written to, with other values, since `arm`."""
        found = []
        for name, variable, before in self._held:
            now = backend.variable_contents(variable)
            pairs = list(zip(before, now, strict=True))
            if not all(_is_same(old, new) for old, new in pairs):
                found.append(Change(name, variable, before[0]))
        return found


def _is_same(before: Any, now: Any) -> bool:
    if backend.is_same_memory(before, now):
        return True
    left, right = (np.frombuffer(backend.memory_of(tensor), np.uint8) for tensor in (before, now))
    return np.array_equal(left, right)
