"""What a DP optimizer has released, as numbers that are saved and restored with it.

Owns the file format of the spent budget; `accounting.py` turns it into epsilon.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

_ROWS = 32


class Run(NamedTuple):
    """Releases of equal kind.

    Attributes:
        noise_multiplier: Noise standard deviation over the clipping norm.
        batch_size: Examples per release, accumulated batches together.
        releases: Noisy releases in one run (one call of `fit`).
        runs: How many runs of this length there were; each may have started the data over.
        micro_batches: Batches per release.
        steps: Batches in a pass over the data, as this run's `fit` counted them; 0 if that is not
            known, and -1 if a release may hold one example once for each of its batches.
        sampling_probability: Of an example to be in a release, as the caller said; 0 if not said.
        largest_batch: The most examples that a batch really had; 0 if not known.
    """

    noise_multiplier: float
    batch_size: float
    releases: float
    runs: float
    micro_batches: float
    steps: float = 0.0
    sampling_probability: float = 0.0
    largest_batch: float = 0.0


class Ledger:
    """The optimizer variables that hold the spending.

    Attributes:
        releases: Noisy releases under the current optimizer; counted inside of the step.
        batch_size: The divisor per batch, over all replicas; 0 before the first batch.
    """

    def __init__(self, add_variable: Callable[..., keras.Variable]):
        scalar = {"shape": (), "dtype": "int64", "aggregation": "only_first_replica"}
        self.releases = add_variable(name="releases", **scalar)
        self.batch_size = add_variable(name="expected_batch_size", **scalar)
        self._run_start = add_variable(name="run_start", **scalar)
        self._rows = add_variable(
            name="spent",
            shape=(_ROWS, len(Run._fields)),
            dtype="float64",
            aggregation="only_first_replica",
        )
        self._steps = add_variable(name="steps_per_pass", **scalar)
        self._largest_batch = add_variable(name="largest_batch", **scalar)
        # What the open run was made with: whoever loads the state may have set something else.
        self._kind = add_variable(
            name="noise_multiplier_micro_batches_and_sampling_probability",
            shape=(3,),
            dtype="float64",
            aggregation="only_first_replica",
        )

    def is_unspent(self, store: Any, first: int) -> bool:
        """Whether an optimizer's saved state, in which the ledger starts at `first`, spent nothing.

        False also where the ledger cannot be found in it.
        """
        ledger = (self.releases, self.batch_size, self._run_start, self._rows)
        saved = [store[str(i)] for i in range(first, first + 4) if str(i) in store.keys()]  # noqa: SIM118
        return [np.shape(value) for value in saved] == [tuple(v.shape) for v in ledger] and not any(
            np.any(value) for value in saved
        )

    def record_batch(self, divisor: Any, examples: Any) -> None:
        """Inside a step: fixes the divisor if it is not yet, and notes the size of a batch."""
        self.batch_size.assign(ops.where(self.batch_size > 0, self.batch_size.value, divisor))
        self._largest_batch.assign(ops.maximum(self._largest_batch.value, examples))

    def record_release(self, noise_multiplier: float, micro_batches: int) -> None:
        """Inside a step: one more release, of this kind."""
        self.releases.assign_add(1)
        kind = ops.stack(
            [
                ops.convert_to_tensor(noise_multiplier, "float64"),
                ops.convert_to_tensor(micro_batches, "float64"),
                self._kind.value[2],
            ]
        )
        self._kind.assign(kind)

    def open_run(self, steps: int) -> None:
        """Says how many batches the passes of the run to come have (see `Run.steps`)."""
        self._steps.assign(steps)
        self._largest_batch.assign(0)
        self._kind.assign(np.zeros(3))

    def assume_sampling(self, probability: float) -> None:
        """Notes how the open run's batches are said to be drawn."""
        kind = np.array(self._kind)
        kind[2] = max(kind[2], probability)
        self._kind.assign(kind)

    def nominal_batch_size(self) -> float:
        """Examples per batch: as recorded, else as in the last closed run, else 1."""
        recorded = int(np.asarray(self.batch_size))
        closed = self._closed()
        if recorded or not closed:
            return float(recorded or 1)
        return closed[-1].batch_size / closed[-1].micro_batches

    def runs(
        self, noise_multiplier: float, micro_batches: int, *, with_current: bool = False
    ) -> list[Run]:
        """Closed runs, then the current one if it released anything or is asked for."""
        current = self._current(noise_multiplier, micro_batches)
        return self._closed() + ([current] if with_current or current.releases > 0 else [])

    def close_run(self, noise_multiplier: float, micro_batches: int) -> None:
        """Moves the current run into the rows."""
        current = self._current(noise_multiplier, micro_batches)
        if current.releases > 0:
            self._write(merge_runs([*self._closed(), current]))
            self._run_start.assign(self.releases.value)

    def inherit(self, previous: "Ledger") -> None:
        """Adds the closed runs of another ledger."""
        self._write(merge_runs(previous._closed() + self._closed()))

    def _closed(self) -> list[Run]:
        return [Run(*map(float, row)) for row in np.asarray(self._rows) if row[2] > 0]

    def _current(self, noise_multiplier: float, micro_batches: int) -> Run:
        releases = int(np.asarray(self.releases)) - int(np.asarray(self._run_start))
        *kind, probability = map(float, np.asarray(self._kind))
        if releases > 0 and kind[1] > 0:
            noise_multiplier, micro_batches = kind[0], int(kind[1])
        return Run(
            noise_multiplier,
            self.nominal_batch_size() * micro_batches,
            float(releases),
            1.0,
            float(micro_batches),
            float(np.asarray(self._steps)),
            probability,
            float(np.asarray(self._largest_batch)),
        )

    def _write(self, runs: Iterable[Run]) -> None:
        rows = np.zeros((_ROWS, len(Run._fields)))
        for index, run in enumerate(runs):
            rows[index] = run
        self._rows.assign(rows)


def merge_runs(runs: Iterable[Run], limit: int = _ROWS) -> list[Run]:
    """Adds up runs that differ only in number; never forgets a release.

    Past `limit` rows, runs of the same kind are counted as if each release were a run of its own,
    which can only overstate what was spent.

    Raises:
        RuntimeError: If there are more than `limit` combinations of noise and batch size.
    """
    merged = _add_up(runs, lambda run: run)
    if len(merged) > limit:
        merged = _add_up(
            merged,
            lambda run: run._replace(
                releases=1.0,
                runs=run.releases * run.runs,
                steps=0.0 if run.micro_batches == 1 else -1.0,
                largest_batch=0.0,
            ),
        )
    if len(merged) > limit:
        raise RuntimeError(
            f"At most {limit} combinations of noise multiplier and batch size can be accounted "
            "for. Train on with one of the earlier settings."
        )
    return merged


def _add_up(runs: Iterable[Run], change: Callable[[Run], Run]) -> list[Run]:
    totals: dict[Any, Run] = {}
    for run in map(change, runs):
        key = run._replace(runs=0)
        before = totals.get(key)
        totals[key] = run if before is None else run._replace(runs=before.runs + run.runs)
    return list(totals.values())
