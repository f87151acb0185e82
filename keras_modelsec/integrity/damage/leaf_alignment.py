"""Where the signed bytes of a file lie now, also after bytes were inserted or removed.

Owns the search for shifts. A leaf is found if its signed digest is that of the bytes at its signed
place, or as many bytes further as the file grew, or at a shift that a search near a run of lost
leaves brings up. Which shift holds where is then the explanation with the fewest lost leaves and
changes of shift (the Viterbi algorithm), so that a leaf of zeros, which is found at many places,
does not count as moved.
"""

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from keras_modelsec.integrity.contents import hashing
from keras_modelsec.integrity.contents.hashing import Cut, Progress
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.signing.describing import (
    PlacedTensor,
    is_intact,
    placed_tensors,
)
from keras_modelsec.integrity.statements.model_statement import ModelStatement

_CHANGE = 1.5  # a change of shift explains more than one lost leaf, or it is none
_SHORTEST_RUN = 3  # of lost leaves: shorter ones cannot pay for two changes of shift
_SMALLEST_PROBE = 64  # bytes; fewer may be anywhere by chance
_MOST_SHIFT = 4096
_PROBE_BYTES = 256 << 20  # hashed for one probe
_MOST_PROBES = 4


@dataclass(frozen=True)
class Alignment:
    """Where the leaves and tensors of one signed file are.

    Attributes:
        cuts: Offset and length of each leaf in the signed file.
        growth: By how many bytes the file is longer than the signed one.
        size: Its length now.
        shifts: For each leaf, how many bytes further it lies; None if it is not there.
        tensors: The tensors that have a signed place, each with its shift; None if it is changed.
    """

    cuts: tuple[Cut, ...]
    growth: int
    size: int
    shifts: tuple[int | None, ...]
    tensors: tuple[tuple[TensorRecord, int | None], ...]

    @property
    def is_clean(self) -> bool:
        """Whether the file is the signed one."""
        return not self.growth and not any(shift != 0 for shift in self.shifts)

    @property
    def lost(self) -> tuple[int, ...]:
        """The positions of leaves that are not there."""
        return tuple(i for i, shift in enumerate(self.shifts) if shift is None)

    def shift_before(self, offset: int) -> int:
        """The shift of the nearest found leaf that begins before a byte of the signed file."""
        starts = [start for start, _ in self.cuts]
        leaves = reversed(self.shifts[: bisect.bisect_left(starts, offset)])
        return next((shift for shift in leaves if shift is not None), 0)

    def moves(self) -> Iterator[tuple[int, int, int]]:
        """Where bytes were put in or taken out.

        Yields:
            After which and before which byte of the signed file, and how many: below zero if they
            were taken out.
        """
        leaves = zip(self.cuts, self.shifts, strict=True)
        anchors = [(*cut, shift) for cut, shift in leaves if shift is not None]
        anchors += [(t.offset or 0, t.nbytes, s) for t, s in self.tensors if s is not None]
        end, current = 0, 0
        for offset, length, shift in sorted(anchors):
            if shift != current:
                yield end, max(end, offset), shift - current
            end, current = max(end, offset + length), shift
        if current != self.growth:
            yield end, sum(self.cuts[-1]) if self.cuts else 0, self.growth - current


def align(
    file: BinaryIO, statement: ModelStatement, name: str, progress: Progress = None
) -> Alignment:
    """Finds the leaves and tensors of a signed file in what is there instead.

    Args:
        file: An unbuffered file open for reading; untrusted, and never parsed.
        statement: What was signed.
        name: The file's name in it.
        progress: Called with bytes done and bytes in all, in the first pass.

    Raises:
        SignatureError: If the file becomes shorter meanwhile.
    """
    search = _Search(file, statement, name, progress)
    shifts = search.best()  # all in their places, in a good file
    tensors = placed_tensors(statement, name, search.cuts)
    return Alignment(
        tuple(search.cuts),
        search.growth,
        search.size,
        tuple(shifts),
        tuple(_settle(search, tensors, shifts)),
    )


class _Search:
    """The places of leaves in one file.

    Attributes:
        matches: By shift, the positions of the leaves that are found there.
    """

    def __init__(self, file: BinaryIO, statement: ModelStatement, name: str, progress: Progress):
        self.file = file
        self.cuts = statement.cuts(name)
        self.signed = statement.files[name].leaf_list()
        self.size = os.fstat(file.fileno()).st_size
        self.growth = self.size - statement.files[name].size
        self.matches = {0: self._found(0, 0, progress)}
        lost = set(range(len(self.cuts))) - self.matches[0]
        self.first = min(lost, default=len(self.cuts))  # all before it are in their places
        if lost and self.growth:
            self._add(self.growth)
        self._search_runs()

    def _found(self, shift: int, start: int, progress: Progress = None) -> set[int]:
        """The leaves from position `start` on that are found `shift` bytes further."""
        possible = [
            index
            for index in range(start, len(self.cuts))
            if self.cuts[index][0] + shift >= 0 and sum(self.cuts[index]) + shift <= self.size
        ]
        moved = [(self.cuts[index][0] + shift, self.cuts[index][1]) for index in possible]
        digests = hashing.hash_leaves(self.file, moved, progress=progress)
        pairs = zip(possible, digests, strict=True)
        return {index for index, digest in pairs if digest == self.signed[index]}

    def _add(self, shift: int) -> None:
        if shift not in self.matches:
            self.matches[shift] = self._found(shift, self.first)

    def _search_runs(self) -> None:
        """Looks for further shifts where several leaves in a row are lost."""
        probes = 0
        for run in self._runs():
            if any(set(run) & found for found in self.matches.values()):
                continue  # found with an earlier run's shift
            if len(run) < _SHORTEST_RUN or probes == _MOST_PROBES:
                continue
            probes += 1
            shift = self._probe(run)
            if shift is not None:
                self._add(shift)

    def _runs(self) -> list[list[int]]:
        found = set().union(*self.matches.values())
        indexes = range(self.first, len(self.cuts))
        groups = itertools.groupby(indexes, key=found.__contains__)
        return [list(group) for was_found, group in groups if not was_found]

    def _probe(self, run: Sequence[int]) -> int | None:
        """The shift of the smallest leaf inside a run, if it is found near its place."""
        inner = [i for i in run[1:-1] if self.cuts[i][1] >= _SMALLEST_PROBE]
        if not inner:
            return None
        index = min(inner, key=lambda i: self.cuts[i][1])
        offset, length = self.cuts[index]
        most = min(_MOST_SHIFT, _PROBE_BYTES // (2 * length))
        start, end = max(0, offset - most), min(self.size, offset + length + most)
        self.file.seek(start)
        window = memoryview(self.file.read(max(0, end - start)))
        for place in range(len(window) - length + 1):
            if hashlib.sha256(window[place : place + length]).digest() == self.signed[index]:
                return start + place - offset
        return None

    def best(self) -> list[int | None]:
        """The shift of each leaf in the cheapest explanation; None if it is lost."""
        states = sorted(self.matches, key=abs)
        costs = {state: 0.0 if state == 0 else _CHANGE for state in states}
        steps: list[dict[int, int]] = []
        for index in range(self.first, len(self.cuts)):
            cheapest = min(states, key=lambda state: costs[state])
            origin = {
                state: cheapest if costs[cheapest] + _CHANGE < costs[state] else state
                for state in states
            }
            costs = {
                state: min(costs[state], costs[cheapest] + _CHANGE)
                + (index not in self.matches[state])
                for state in states
            }
            steps.append(origin)
        state = min(states, key=lambda state: costs[state])
        result: list[int | None] = []
        for index in range(len(self.cuts) - 1, self.first - 1, -1):
            result.append(state if index in self.matches[state] else None)
            state = steps[index - self.first][state]
        return [0] * self.first + result[::-1]


def _settle(
    search: _Search, tensors: Sequence[PlacedTensor], shifts: Sequence[int | None]
) -> Iterator[tuple[TensorRecord, int | None]]:
    """Each tensor with its shift."""
    befores, afters = _neighbours(shifts, search.growth)

    def key(tensor: PlacedTensor) -> tuple[bool, int, int]:
        around = {shifts[index] for index in tensor.leaves}
        if len(around) == 1 and None not in around:
            shift = shifts[tensor.leaves[0]] or 0
            return True, shift, shift
        return False, befores[tensor.leaves[0]], afters[tensor.leaves[-1]]

    for (is_found, before, after), group in itertools.groupby(tensors, key):
        members = list(group)
        if is_found:
            yield from ((tensor.record, before) for tensor in members)
        else:
            yield from _split(search, members, before, after)


def _neighbours(shifts: Sequence[int | None], growth: int) -> tuple[list[int], list[int]]:
    """For each leaf, the shift of the nearest found one up to it, and of the one from it on."""
    befores, afters, before, after = [], [], 0, growth
    for shift in shifts:
        before = before if shift is None else shift
        befores.append(before)
    for shift in reversed(shifts):
        after = after if shift is None else shift
        afters.append(after)
    return befores, afters[::-1]


def _split(
    search: _Search, tensors: Sequence[PlacedTensor], before: int, after: int
) -> Iterator[tuple[TensorRecord, int | None]]:
    """Tensors among lost leaves: the first so many at one shift, the others at the next one.

    Wherever most are intact; the others are changed.
    """
    early = [_is_at(search, tensor, before) for tensor in tensors]
    late = early if before == after else [_is_at(search, tensor, after) for tensor in tensors]
    gains = (int(one) - int(other) for one, other in zip(early, late, strict=True))
    scores = list(itertools.accumulate(gains, initial=0))
    split = scores.index(max(scores))
    for index, tensor in enumerate(tensors):
        shift, intact = (before, early) if index < split else (after, late)
        yield tensor.record, shift if intact[index] else None


def _is_at(search: _Search, tensor: PlacedTensor, shift: int) -> bool:
    if tensor.has_own_leaves:
        return all(index in search.matches.get(shift, ()) for index in tensor.leaves)
    return is_intact(search.file, tensor.record, tensor.offset + shift)
