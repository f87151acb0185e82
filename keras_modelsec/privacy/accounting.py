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
_BOUND_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


@dataclass(frozen=True)
class PoissonSampling:
    """Each example joins each release's batch independently with this probability.

    Attributes:
        probability: In (0, 1], for a release of `batch_size` examples.
        batch_size: The examples per release that the probability was given for.
    """

    probability: float
    batch_size: float

    def epsilon(self, runs: Sequence[Run], delta: float, accountant: str) -> float:
        """What the runs cost, by numerical composition of subsampled Gaussians."""
        events = [self._event(run) for run in runs]
        if accountant == "pld" and _grid_points(runs, events) > _MAX_GRID_POINTS:
            warnings.warn(
                "The PLD accountant would need more memory than is reasonable for this little "
                "noise; the RDP accountant, whose epsilon is valid but larger, is used instead.",
                stacklevel=3,
            )
            accountant = "rdp"
        accounting = pld.PLDAccountant() if accountant == "pld" else rdp.RdpAccountant()
        return float(_compose(accounting, events).get_epsilon(delta))

    def _event(self, run: Run) -> dp_accounting.DpEvent:
        scaled = min(1.0, self.probability * run.batch_size / self.batch_size)
        probability = max(run.sampling_probability, scaled)
        one = dp_accounting.PoissonSampledDpEvent(
            probability, dp_accounting.GaussianDpEvent(run.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(one, int(run.releases * run.runs))


@dataclass(frozen=True)
class Passes:
    """Each example enters exactly one batch of every pass over the data; no amplification.

    Attributes:
        steps: Batches in a pass, as `fit` counts them, for runs that do not say it, or None.
        batch_size: The batch size `steps` was counted with.
        examples: Examples in a pass, or None. With neither, every release is taken to hold the
            example, once for each batch accumulated in it.
    """

    steps: int | None
    batch_size: float
    examples: int | None = None

    def is_known(self, run: Run) -> bool:
        """Whether the length of this run's passes is known."""
        known = run.steps > 0 or self.steps is not None or self.examples is not None
        return known and run.steps >= 0

    def epsilon(self, runs: Sequence[Run], delta: float, accountant: str) -> float:
        """What the runs cost: Gaussians compose to one Gaussian exactly, whatever the accountant.

        Reference: Dong et al., "Gaussian Differential Privacy", arXiv:1905.02383; Balle and Wang,
        arXiv:1805.06530 (the analytic Gaussian mechanism).
        """
        squared = sum(self._squared_influence(run) / run.noise_multiplier**2 for run in runs)
        return _gaussian_epsilon(squared**-0.5, delta)

    def _squared_influence(self, run: Run) -> float:
        """One example's squared influence on all releases of these runs, over the squared clip.

        An example that is in a release k times moves it by k clipping norms. Where a release never
        spans two passes k is 1; else the sum of k^2 is at most the largest k times the sum of k.
        """
        micro_batches = int(run.micro_batches)
        if not self.is_known(run):
            return run.releases * run.runs * micro_batches**2
        batches = self._batches(run)
        passes = math.ceil(run.releases * micro_batches / batches)
        aligned = micro_batches == 1 or (
            batches % micro_batches == 0 and batches == (run.steps or self.steps)
        )
        most = 1 if aligned else min(micro_batches, math.ceil(micro_batches / batches) + 1)
        return min(passes * most, run.releases * micro_batches**2) * run.runs

    def _batches(self, run: Run) -> int:
        """Batches in a pass of this run, rounded down where it is not certain."""
        batch_size = run.batch_size / run.micro_batches
        steps = int(run.steps) or (self.steps if batch_size == self.batch_size else None)
        batch_size = run.largest_batch or batch_size
        if steps:
            most = math.inf if self.examples is None else math.ceil(self.examples / batch_size)
            if steps <= most:
                return steps
        fewest = self.examples
        if fewest is None:
            fewest = int(((self.steps or 1) - 1) * self.batch_size) + 1
        return max(1, int(fewest // batch_size))


Sampling = PoissonSampling | Passes


def _gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one Gaussian mechanism, by inverting dp_accounting's analytic delta.

    dp_accounting has the inverse itself only since 0.6, and tensorflow-privacy needs 0.4.3.
    """
    loss = pld.privacy_loss_mechanism.GaussianPrivacyLoss(standard_deviation=noise_multiplier)

    def suffices(candidate: float) -> bool:
        return loss.get_delta_for_epsilon([candidate])[0] <= delta

    low, high = 0.0, 1.0
    if suffices(low):
        return low
    while not suffices(high):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


@functools.lru_cache(maxsize=256)
def epsilon(
    runs: tuple[Run, ...], sampling: Sampling, delta: float, accountant: str = "pld"
) -> float:
    """The epsilon spent by `runs` at `delta`, for adding, removing or blanking out one example.

    Args:
        runs: What was released.
        sampling: How examples entered the batches.
        delta: In (0, 1).
        accountant: "pld" (tight) or "rdp", for sampled batches. PLD falls back to RDP, with a
            warning, where its grid would exhaust the memory.

    Returns:
        Epsilon >= 0; 0 if nothing was released, infinity without noise.
    """
    runs = tuple(run for run in runs if run.releases > 0)
    if not runs:
        return 0.0
    if any(run.noise_multiplier == 0 for run in runs):
        return math.inf
    return sampling.epsilon(runs, delta, accountant)


def _compose(accounting: Any, events: Sequence[dp_accounting.DpEvent]) -> Any:
    for event in events:
        accounting.compose(event)
    return accounting


def _grid_points(runs: Sequence[Run], events: Sequence[dp_accounting.DpEvent]) -> float:
    """A bound on the grid that the composed privacy loss covers.

    A Gaussian's loss spreads over about 1/(2 sigma^2) + 9/sigma; a composition's over about twice
    the RDP epsilon at a tiny delta.
    """
    single = max(0.5 / s**2 + 9 / s for s in (run.noise_multiplier for run in runs))
    composed = 2 * _compose(rdp.RdpAccountant(_BOUND_ORDERS), events).get_epsilon(1e-12)
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
