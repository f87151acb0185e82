"""From what was released to epsilon; the only file that imports dp_accounting.

Two ways an example may enter the batches are known, and the figure says which one it assumes:
Poisson sampling (each example joins each batch independently), whose amplification makes epsilon
smaller, and passes over the data (what `fit` does), in which each example enters one batch a pass
and nothing is claimed from the shuffling.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dp_accounting
from dp_accounting import pld, rdp

from keras_modelsec.privacy.ledger import Run

ACCOUNTANTS = ("pld", "rdp")

# A privacy loss distribution on a grid of this many points takes about a gigabyte to compose.
_MAX_GRID_POINTS = 4e6
_GRID_STEP = 1e-4  # dp_accounting's default discretisation of the privacy loss


@dataclass(frozen=True)
class PoissonSampling:
    """Each example joins each release's batch independently with this probability.

    Attributes:
        probability: In (0, 1], for a release of `batch_size` examples.
        batch_size: The examples per release that the probability was given for.
    """

    probability: float
    batch_size: float

    def event(self, run: Run) -> dp_accounting.DpEvent:
        """What one run of the ledger costs."""
        probability = min(1.0, self.probability * run.batch_size / self.batch_size)
        one = dp_accounting.PoissonSampledDpEvent(
            probability, dp_accounting.GaussianDpEvent(run.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(one, int(run.releases * run.runs))


@dataclass(frozen=True)
class Passes:
    """Each example enters exactly one batch of every pass over the data; no amplification.

    Attributes:
        steps: Batches in a pass, as `fit` counts them, or None.
        batch_size: The batch size `steps` was counted with.
        examples: Examples in a pass, or None. With neither, every release is taken to hold the
            example, once for each batch accumulated in it.
    """

    steps: int | None
    batch_size: float
    examples: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the length of a pass is known."""
        return self.steps is not None or self.examples is not None

    def event(self, run: Run) -> dp_accounting.DpEvent:
        """What one run of the ledger costs."""
        if self.is_known:
            noise = run.noise_multiplier
            releases_per_pass = max(1, self._batches(run) // int(run.micro_batches))
            participations = math.ceil(run.releases / releases_per_pass)
        else:
            noise = run.noise_multiplier / run.micro_batches
            participations = int(run.releases)
        one = dp_accounting.GaussianDpEvent(noise)
        return dp_accounting.SelfComposedDpEvent(one, int(participations * run.runs))

    def _batches(self, run: Run) -> int:
        """Batches in a pass of this run, rounded down where it is not certain."""
        batch_size = run.batch_size / run.micro_batches
        if self.examples is None:
            if self.steps is not None and batch_size == self.batch_size:
                return self.steps
            fewest = (self.steps - 1) * self.batch_size + 1 if self.steps else 1
            return max(1, int(fewest // batch_size))
        if (
            self.steps is not None
            and batch_size == self.batch_size
            and self.steps <= math.ceil(self.examples / batch_size)
        ):
            return self.steps
        return max(1, int(self.examples // batch_size))


Sampling = PoissonSampling | Passes


@functools.lru_cache(maxsize=256)
def epsilon(
    runs: tuple[Run, ...], sampling: Sampling, delta: float, accountant: str = "pld"
) -> float:
    """The epsilon spent by `runs` at `delta`, for adding, removing or blanking out one example.

    Args:
        runs: What was released.
        sampling: How examples entered the batches.
        delta: In (0, 1).
        accountant: "pld" (tight) or "rdp". PLD falls back to RDP, with a warning, where its grid
            would exhaust the memory.

    Returns:
        Epsilon >= 0; 0 if nothing was released, infinity without noise.
    """
    runs = tuple(run for run in runs if run.releases > 0)
    if not runs:
        return 0.0
    if any(run.noise_multiplier == 0 for run in runs):
        return math.inf
    events = [sampling.event(run) for run in runs]
    if accountant == "pld" and _grid_points(runs, events) > _MAX_GRID_POINTS:
        warnings.warn(
            "The PLD accountant would need more memory than is reasonable for this little noise; "
            "the RDP accountant, whose epsilon is valid but larger, is used instead.",
            stacklevel=2,
        )
        accountant = "rdp"
    return float(_compose(events, accountant).get_epsilon(delta))


def _compose(events: Sequence[dp_accounting.DpEvent], accountant: str) -> Any:
    composed = pld.PLDAccountant() if accountant == "pld" else rdp.RdpAccountant()
    for event in events:
        composed.compose(event)
    return composed


def _grid_points(runs: Sequence[Run], events: Sequence[dp_accounting.DpEvent]) -> float:
    """A bound on the grid that the composed privacy loss covers.

    A Gaussian's loss spreads over about 1/(2 sigma^2) + 9/sigma; a composition's over about twice
    the RDP epsilon at a tiny delta.
    """
    single = max(0.5 / s**2 + 9 / s for s in (run.noise_multiplier for run in runs))
    composed = 2 * _compose(events, "rdp").get_epsilon(1e-12)
    return 2 * max(single, composed) / _GRID_STEP


def affordable_releases(
    runs: tuple[Run, ...],
    current: Run,
    sampling: Sampling,
    delta: float,
    max_epsilon: float,
    *,
    wanted: int,
    accountant: str = "pld",
) -> int:
    """How many releases of the kind `current`, up to `wanted`, stay within `max_epsilon`.

    Args:
        runs: What was released before.
        current: The kind of release to come; its own count is ignored.
        sampling: How examples enter the batches.
        delta: In (0, 1).
        max_epsilon: The budget.
        wanted: How many are wanted at most.
        accountant: "pld" or "rdp".
    """

    def fits(releases: int) -> bool:
        planned = (*runs, current._replace(releases=float(releases), runs=1.0))
        return epsilon(planned, sampling, delta, accountant) <= max_epsilon

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
