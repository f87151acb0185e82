"""What a DP optimizer has released, as numbers that are saved and restored with it.

Owns the file format of the spent budget; `accounting.py` turns it into epsilon.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend

_ROWS = 32

# What is known of the batches of a run (`Run.pass_examples`), where it is not a number of examples.
EVERY_BATCH = 0
SPANNING = -1
ONE_PASS = -2
SEVERAL = -3


class Run(NamedTuple):
    """Releases of equal kind, each charged as it was made.

    Attributes:
        noise_multiplier: Noise standard deviation over the clipping norm.
        batch_size: Examples per release by which it was divided, accumulated batches together.
        releases: Noisy releases in one run: what was released until Keras started the data over.
        runs: How many such runs there were.
        micro_batches: Batches per release.
        pass_examples: How often an example can be in the batches. `ONE_PASS`: in one of all. n > 0:
            among any n that come one after another, counted from the first, once. `EVERY_BATCH`:
            once in each. `SPANNING`: the same, of a run that began with batches of an earlier one.
            `SEVERAL`: such a run whose earlier batches may hold it more often; any number of times.
        sampling_probability: Of an example to be in a release, if the batches were said to be
            Poisson samples when they were used; 0 if not.
        largest_batch: The most examples that a batch really had; 0 if not known.
        examples: How many there were in all batches of one run; 0 if not known.
        fixed_seed: 1 if the noise came from a seed that somebody knows, else 0.
    """

    noise_multiplier: float
    batch_size: float
    releases: float
    runs: float
    micro_batches: float
    pass_examples: float = EVERY_BATCH
    sampling_probability: float = 0.0
    largest_batch: float = 0.0
    examples: float = 0.0
    fixed_seed: float = 0.0

    def most_in_a_release(self) -> int:
        """How many times a release can hold one example."""
        batches = int(self.micro_batches)
        if self.pass_examples == ONE_PASS:
            return 1
        if self.pass_examples == SEVERAL:
            return max(batches, int(batches * self.largest_batch))
        if self.pass_examples <= 0:
            return batches
        size, length = int(batches * self.largest_batch), int(self.pass_examples)
        are_full = self.examples == self.releases * size
        if length % size == 0 and are_full:
            return 1
        # So many passes can meet in as many examples in a row as a release has.
        return min(self._passes(), 1 if size == 1 else (size - 2) // length + 2)

    def _passes(self) -> int:
        """How many times a run began its `pass_examples` examples."""
        return int(-(-self.examples // self.pass_examples))

    def after(self, releases: int, batch_size: int | None) -> "Run":
        """This run with so many more releases.

        Args:
            releases: How many.
            batch_size: Examples in each of their batches; None if not known, which is taken for as
                many as could matter.
        """
        size = self.largest_batch or batch_size or max(self.pass_examples, 1.0)
        more = releases * self.micro_batches * size
        if not (self.largest_batch or batch_size):
            more += 1  # so that no batch counts as ending with a pass
        return self._replace(
            releases=self.releases + releases, largest_batch=size, examples=self.examples + more
        )

    def squared_influence(self) -> float:
        """One example's squared influence on all of these releases, over the squared clip.

        An example that is in a release k times moves it by k clipping norms; the sum of k^2 is at
        most the largest k times the sum of k.
        """
        most = self.most_in_a_release()
        worst = self.releases * most**2
        if self.pass_examples == ONE_PASS:
            return self.runs
        if self.pass_examples > 0:
            return min(self._passes() * most, worst) * self.runs
        return worst * self.runs


_ENDLESS = 2**48  # examples: more than any training sees, and far from overflowing

# What the first version of the file had: columns in a row, and variables.
_OLD_COLUMNS = 8
_OLD_VARIABLES = 7


class Ledger:
    """The optimizer variables that hold the spending.

    A run says how often its batches hold an example only for the steps that `fit` makes, between
    one start of the data and the next; for a step made in any other way nothing is claimed.

    Attributes:
        releases: Noisy releases under the current optimizer; counted inside of the step.
        batch_size: The divisor per batch, over all replicas; 0 before the first batch.
    """

    def __init__(self, add_variable: Callable[..., keras.Variable], *, has_fixed_seed: bool):
        scalar = {"shape": (), "dtype": "int64", "aggregation": "only_first_replica"}
        array = {"dtype": "float64", "aggregation": "only_first_replica"}
        self.releases = add_variable(name="releases", **scalar)
        self.batch_size = add_variable(name="expected_batch_size", **scalar)
        self._run_start = add_variable(name="run_start", **scalar)
        self._rows = add_variable(name="spent", shape=(_ROWS, len(Run._fields)), **array)
        self._pass_examples = add_variable(name="pass_examples", **scalar)
        self._largest_batch = add_variable(name="largest_batch", **scalar)
        # What the open run was made with: whoever loads the state may have set something else.
        self._kind = add_variable(name="noise_micro_batches_sampling_seed", shape=(4,), **array)
        self._examples = add_variable(name="examples", **scalar)
        self._has_fixed_seed = has_fixed_seed
        self.is_within_fit = False
        self._told: list[tuple[float, int]] = []

    @property
    def _state(self) -> list[keras.Variable]:
        """The variables in the order in which they were made, which is the order in a file."""
        return [
            self.releases,
            self.batch_size,
            self._run_start,
            self._rows,
            self._pass_examples,
            self._largest_batch,
            self._kind,
            self._examples,
        ]

    def is_unspent(self, saved: Sequence[Any]) -> bool:
        """Whether a saved state, which begins with a ledger, spent nothing.

        False also where the ledger cannot be found in it.
        """
        saved = saved[: len(self._state)]
        return self._fits(saved) and not any(np.any(value) for value in saved[:4])

    def add_saved(self, saved: Sequence[Any]) -> bool:
        """Adds what a saved state spent, which begins with a ledger; False if there is none."""
        saved = saved[: len(self._state)]
        if not self._fits(saved):
            return False
        scratch = functools.partial(keras.Variable, "zeros", trainable=False)
        other = Ledger(scratch, has_fixed_seed=False)
        for variable, value in zip(other._state, saved, strict=True):
            variable.assign(value)
        # Each release noted its noise; one that did not had none that is known of.
        other.close_run(noise_multiplier=0.0, micro_batches=1)
        self.inherit(other)
        return True

    def _fits(self, saved: Sequence[Any]) -> bool:
        return [np.shape(value) for value in saved] == [tuple(v.shape) for v in self._state]

    @staticmethod
    def upgrade(saved: Sequence[Any]) -> list[Any]:
        """A saved state, which begins with a ledger, in today's form if of the first version.

        That version trusted `fit` to say how long a pass was, which need not have been true: how
        often its batches held an example is taken as unknown.
        """
        old, rest = saved[:_OLD_VARIABLES], saved[_OLD_VARIABLES:]
        if len(old) < _OLD_VARIABLES or np.shape(old[3]) != (_ROWS, _OLD_COLUMNS):
            return list(saved)
        *counters, rows, steps, largest, kind = map(np.asarray, old)
        wide = np.zeros((_ROWS, len(Run._fields)))
        wide[:, :_OLD_COLUMNS] = rows
        column = Run._fields.index("pass_examples")
        wide[:, column] = np.minimum(wide[:, column], EVERY_BATCH)
        kind = np.append(kind, 0.0)
        return [*counters, wide, np.minimum(steps, EVERY_BATCH), largest, kind, np.array(0), *rest]

    def tell(self, sampling_probability: float | None, dataset_size: int | None) -> None:
        """Notes what a callback says of the data of the `fit` that is beginning.

        What one callback does not claim is not claimed for the others either.
        """
        self._told.append((sampling_probability or 0.0, dataset_size or 0))

    def forget_told(self) -> None:
        """What was told held for the `fit` that ends or begins, and for no other step."""
        self._told = []

    def may_hold_several(self) -> bool:
        """Whether a batch of the open run may hold an example more than once."""
        known = int(np.asarray(self._pass_examples))
        return known > 0 or known == SEVERAL

    def told_sampling_probability(self) -> float:
        """As told, 0 if not by every callback."""
        return _if_all([probability for probability, _ in self._told], max)

    def told_dataset_size(self) -> int:
        """As told, 0 if not by every callback."""
        return int(_if_all([size for _, size in self._told], min))

    @contextlib.contextmanager
    def within_fit(self) -> Iterator[None]:
        """Steps that are traced or run within it belong to the run that was opened for them."""
        self.is_within_fit = True
        try:
            yield
        finally:
            self.is_within_fit = False

    def record_batch(self, divisor: Any, examples: Any) -> None:
        """Inside a step: fixes the divisor if it is not yet, and notes the size of a batch."""
        self.batch_size.assign(ops.where(self.batch_size > 0, self.batch_size.value, divisor))
        self._largest_batch.assign(ops.maximum(self._largest_batch.value, examples))
        self._examples.assign_add(examples)
        if not self.is_within_fit:
            self._claim_nothing()

    def _claim_nothing(self) -> None:
        """Inside a step that `fit` did not make: what was said of the open run does not hold.

        Where a batch may hold an example more than once, that bound stays, and the run counts as
        endless passes, since every release can then hold the example that often.
        """
        known = self._pass_examples.value
        self._examples.assign_add(ops.where(known > 0, _ENDLESS, 0))
        self._pass_examples.assign(ops.where(ops.equal(known, ONE_PASS), EVERY_BATCH, known))
        self._kind.assign(self._kind.value * np.array([1.0, 1.0, 0.0, 1.0]))

    def record_release(
        self, noise_multiplier: float, micro_batches: int, after: Sequence[Any] = ()
    ) -> None:
        """Inside a step: one more release, of this kind, once the tensors `after` are there."""
        self.releases.assign_add(backend.after(ops.ones((), "int64"), *after))
        values = (noise_multiplier, micro_batches, self._kind.value[2], self._has_fixed_seed)
        self._kind.assign(ops.stack([ops.cast(value, "float64") for value in values]))

    def open_run(self, pass_examples: int = EVERY_BATCH, sampling_probability: float = 0.0) -> None:
        """Says what holds for the run to come (see `Run`); without arguments, nothing."""
        self._pass_examples.assign(pass_examples)
        self._largest_batch.assign(0)
        self._examples.assign(0)
        self._kind.assign(np.array([0.0, 0.0, sampling_probability, 0.0]))

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
        """Moves the closed runs of another ledger into this one."""
        self.add(previous._closed())
        previous._write([])

    def add(self, runs: Sequence[Run]) -> None:
        """Adds runs that are closed."""
        self._write(merge_runs([*runs, *self._closed()]))

    def _closed(self) -> list[Run]:
        return [Run(*map(float, row)) for row in np.asarray(self._rows) if row[2] > 0]

    def _current(self, noise_multiplier: float, micro_batches: int) -> Run:
        releases = int(np.asarray(self.releases)) - int(np.asarray(self._run_start))
        noise, micro, probability, fixed_seed = map(float, np.asarray(self._kind))
        if releases > 0 and micro > 0:
            noise_multiplier, micro_batches = noise, int(micro)
        return Run(
            noise_multiplier,
            self.nominal_batch_size() * micro_batches,
            float(releases),
            1.0,
            float(micro_batches),
            float(np.asarray(self._pass_examples)),
            probability,
            float(np.asarray(self._largest_batch)),
            float(np.asarray(self._examples)),
            fixed_seed,
        )

    def _write(self, runs: Iterable[Run]) -> None:
        rows = np.zeros((_ROWS, len(Run._fields)))
        for index, run in enumerate(runs):
            rows[index] = run
        self._rows.assign(rows)


def _if_all(values: list[Any], choose: Callable[[list[Any]], Any]) -> Any:
    return choose(values) if values and all(values) else 0


def merge_runs(runs: Iterable[Run], limit: int = _ROWS) -> list[Run]:
    """Adds up runs that differ only in number; never forgets a release.

    Past `limit` rows, passes of different lengths are written as passes of their mean length, which
    cost the same. Where that is not enough, runs of the same kind are counted as if each release
    held the example as often as it could, which can only overstate what was spent.

    Raises:
        RuntimeError: If there are more than `limit` combinations of noise and batch size.
    """
    merged = _add_up(runs)
    for simplify in (_as_mean_passes, _as_single_releases):
        if len(merged) > limit:
            merged = simplify(merged)
    if len(merged) > limit:
        raise RuntimeError(
            f"At most {limit} combinations of noise multiplier and batch size can be accounted "
            "for. Train on with one of the earlier settings."
        )
    return merged


def _add_up(runs: Iterable[Run]) -> list[Run]:
    totals: dict[Run, Run] = {}
    for run in runs:
        key = run._replace(runs=0)
        before = totals.get(key)
        totals[key] = run if before is None else run._replace(runs=before.runs + run.runs)
    return list(totals.values())


def _as_mean_passes(runs: Iterable[Run]) -> list[Run]:
    totals: dict[Run, tuple[float, float]] = {}
    rest = []
    for run in runs:
        if run.pass_examples != ONE_PASS:
            rest.append(run)
            continue
        key = run._replace(releases=0, runs=0, largest_batch=0, examples=0)
        releases, count = totals.get(key, (0.0, 0.0))
        totals[key] = releases + run.releases * run.runs, count + run.runs
    means = [
        key._replace(releases=releases / count, runs=count)
        for key, (releases, count) in totals.items()
    ]
    return means + rest


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _as_single_releases(runs: Iterable[Run]) -> list[Run]:
    return _add_up(
        run._replace(
            releases=1.0,
            runs=float(round(run.releases * run.runs)),
            micro_batches=float(_next_power_of_two(run.most_in_a_release())),  # few kinds
            pass_examples=EVERY_BATCH,
            largest_batch=0.0,
            examples=0.0,
        )
        for run in runs
    )
