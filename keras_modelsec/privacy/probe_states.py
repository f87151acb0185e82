"""The states in which the probe looks at a step: as it is, with other weights, and later.

A coupling may be nil at the weights that training starts with (before a head of zeros), begin after
a while, or act at certain steps only. So weights are moved a little, both ways, and counters, and
scalars that others may set to them, are set far ahead and to where common periods end.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import backend

# Steps ahead at which counters are set: a coupling may begin after a while.
_AHEAD = (1, 1_000, 1_000_000)

# What counters are set to: multiples of all periods up to 16, and of 20, 25, 32, 50, 64, 100, 128,
# 256, 500, 1000 and 10000; float32 holds them exactly. And one less, for what counts from 1.
_ENDS_OF_PERIODS = tuple(end - less for end in (720_720, 160_000) for less in (1, 0))

# As much as does not change what a network computes beyond recognition: relative to the deviation
# of initial kernels, and for weights with one axis (biases, scales) or none as it is.
_MOVED, _MOVED_VECTORS = 0.3, 0.1


def counters(
    step: backend.TracedFunction, before: Sequence[Any], after: Sequence[Any]
) -> list[int]:
    """The places of what counts steps: scalars, and variables that a step changes.

    Args:
        step: The traced step.
        before: The state that it began with.
        after: The state that it left behind.
    """
    return [
        place
        for place, value in enumerate(before)
        if "seed_generator" not in step.name_of(place)
        and (len(value.shape) == 0 or not backend.is_equal_content(value, after[place]))
    ]


def ahead(before: Sequence[Any], after: Sequence[Any], places: list[int]) -> Iterator[list[Any]]:
    """States in which the counters in these places went on by some steps."""
    for steps in _AHEAD if places else ():
        later = list(before)
        for place in places:
            start, step = np.asarray(before[place]), np.asarray(after[place])
            change = step.astype("float64") - start.astype("float64")
            value = start + steps * np.where(change == 0, 1.0, change)
            later[place] = np.asarray(value).astype(start.dtype)
        yield later


def at_ends_of_periods(state: Sequence[Any], places: list[int]) -> Iterator[list[Any]]:
    """The state with the counters where common periods end; what is no number stays."""
    found = {place: np.asarray(state[place]) for place in places}
    numbers = {p: v for p, v in found.items() if v.size == 1 and v.dtype.kind not in "bOSU"}
    for end in _ENDS_OF_PERIODS if numbers else ():
        later = list(state)
        for place, value in numbers.items():
            later[place] = np.full(value.shape, end).astype(value.dtype)
        yield later


def with_other_weights(
    step: backend.TracedFunction, weights: Sequence[keras.Variable], state: Sequence[Any]
) -> Iterator[list[Any]]:
    """The state with each of these weights moved a little, and with each moved the other way."""
    places = sorted(step.places_of(weights))
    moves = {place: _move(np.asarray(state[place], "float64"), place) for place in places}
    for sign in (1.0, -1.0) if moves else ():
        moved = list(state)
        for place, move in moves.items():
            moved[place] = np.asarray(state[place], "float64") + sign * move
        yield moved


def _move(weight: np.ndarray, number: int) -> np.ndarray:
    deviation = _MOVED_VECTORS
    if weight.ndim > 1:
        deviation = _MOVED / max(math.prod(weight.shape[:-1]), 1) ** 0.5
    # A generator of its own, so that no one else's numbers change, and the same in each run.
    return np.random.default_rng(number).normal(0.0, deviation, weight.shape)
