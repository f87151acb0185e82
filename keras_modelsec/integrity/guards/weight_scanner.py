"""Compares weights that must be constant with known digests, a few leaves at a time, in rounds.

Owns the rounds, and how much time and how many bytes a guard may and must spend in a step.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import keras

from keras_modelsec._core import backend
from keras_modelsec.integrity.contents.hashing import LEAF_BYTES, leaf_digests

_FIRST_GUESS = 4e-4  # seconds for a leaf, until one has been measured
_MEMORY = 0.9  # how much of the estimate the next leaf leaves in place


def live_leaves(variable: keras.Variable) -> list[list[bytes]]:
    """The leaf digests of each replica's copy of `variable`."""
    contents = backend.variable_contents(variable)
    return [leaf_digests(backend.memory_of(content)) for content in contents]


@dataclass(frozen=True, eq=False)
class Constant:
    """A weight and the digests of the leaves that each replica's copy of it must have.

    Copies may differ: Keras lets each replica keep `BatchNormalization` statistics of its own.
    """

    name: str
    variable: keras.Variable
    leaves: list[list[bytes]]

    @property
    def leaf_count(self) -> int:
        """How many leaves each copy has."""
        return len(self.leaves[0])

    @property
    def nbytes(self) -> int:
        """How many bytes are compared, those of all replicas' copies."""
        copies = backend.variable_contents(self.variable)
        return sum(len(backend.memory_of(copy)) for copy in copies)

    def changed_leaves(self, start: int, stop: int) -> tuple[int, bool]:
        """How many bytes were read of these leaves, and whether any is not what it must be."""
        done, changed = 0, False
        copies = backend.variable_contents(self.variable)
        for content, leaves in zip(copies, self.leaves, strict=True):
            view = backend.memory_of(content)[start * LEAF_BYTES : stop * LEAF_BYTES]
            changed |= leaf_digests(view) != leaves[start:stop]
            done += len(view)
        return done, changed


class WeightScanner:
    """Goes round the leaves of constant weights; knows where it stopped.

    Each variable is read anew in each call, so what was assigned in between is seen.

    Args:
        constants: What to compare.
    """

    def __init__(self, constants: Mapping[str, Constant]):
        self.constants = dict(constants)
        self.rounds = 0
        self.leaf_seconds = _FIRST_GUESS
        self.nbytes = sum(constant.nbytes for constant in constants.values())
        self._jobs = [(c, i) for c in constants.values() for i in range(c.leaf_count)]
        self._next = 0

    def scan(self, seconds: float, nbytes: float) -> tuple[set[str], int]:
        """Compares leaves while time is left for another one, or `nbytes` are not reached yet.

        Never more than once round.

        Returns:
            The names of weights that are not what they must be, and the number of bytes compared.
        """
        begin = time.perf_counter()
        changed: set[str] = set()
        total = 0
        for _ in range(len(self._jobs)):
            left = seconds - (time.perf_counter() - begin)
            if left < self.leaf_seconds and total >= nbytes:
                break
            count, bad_name = self._compare_next()
            total += count
            changed |= bad_name
        return changed, total

    def scan_all(self, names: Iterable[str]) -> set[str]:
        """Compares weights at once; the names of those that are not what they must be."""
        found = set()
        for name in names:
            constant = self.constants[name]
            if constant.changed_leaves(0, constant.leaf_count)[1]:
                found.add(name)
        return found

    def _compare_next(self) -> tuple[int, set[str]]:
        begin = time.perf_counter()
        constant, index = self._jobs[self._next]
        count, changed = constant.changed_leaves(index, index + 1)
        self._next = (self._next + 1) % len(self._jobs)
        self.rounds += self._next == 0
        spent = time.perf_counter() - begin
        self.leaf_seconds = _MEMORY * self.leaf_seconds + (1 - _MEMORY) * spent
        return count, {constant.name} if changed else set()


class Pace:
    """Gives a share of the running time away in small pieces, and remembers what is owed.

    Where both leaves are compared and gaps are watched, each gets half of the share.

    Args:
        overhead: The share of running time that may be spent, >= 0.
        every_steps: All bytes must be looked at within that many steps, or None.
        every_seconds: The same in seconds, or None.
    """

    def __init__(self, overhead: float, every_steps: int | None, every_seconds: float | None):
        self._overhead = overhead
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._credit = 0.0
        self._gap_credit = 0.0
        self._owed = 0.0
        self._mark: float | None = None
        self._elapsed = 0.0

    def pause(self) -> None:
        """Time that passes until the next `end_step` is nobody's."""
        self._mark = None

    def begin_step(self, now: float) -> None:
        """A step has ended at `now`, in seconds, and the guard's own work begins."""
        self._elapsed = 0.0 if self._mark is None else now - self._mark

    def for_leaves(
        self, steps: int, total: int, least: float, *, shared: bool
    ) -> tuple[float, float]:
        """What may be spent on leaves after this step.

        Args:
            steps: How many steps were run since the last call.
            total: How many bytes there are in all.
            least: What one leaf costs, in seconds.
            shared: Whether gaps are watched too.

        Returns:
            Seconds that may be spent, and bytes that must be looked at even if it takes longer. No
            step is given more than twice its own share, or one leaf.
        """
        share = self._share(shared)
        self._credit = min(self._credit + share, max(10 * share, 4 * least))
        if self._every_steps:
            self._owed += total * steps / self._every_steps
        if self._every_seconds:
            self._owed += total * self._elapsed / self._every_seconds
        self._owed = min(self._owed, total)
        return min(self._credit, max(2 * share, least)), self._owed

    def allows_gap(self, seconds: float, *, shared: bool) -> bool:
        """Whether enough was saved up to watch the gap that begins, which costs `seconds`."""
        self._gap_credit = min(self._gap_credit + self._share(shared), 2 * seconds)
        return self._gap_credit >= seconds

    def spent_on_leaves(self, seconds: float, nbytes: int) -> None:
        """Books what was done."""
        self._credit -= seconds
        self._owed = max(0.0, self._owed - nbytes)

    def spent_on_gap(self, seconds: float) -> None:
        """Books what was done."""
        self._gap_credit -= seconds

    def end_step(self, now: float) -> None:
        """The time of the next step begins to count."""
        self._mark = now

    def _share(self, shared: bool) -> float:
        return self._overhead * self._elapsed * (0.5 if shared else 1.0)
