"""From what was released to epsilon; the only file that imports dp_accounting.

Each run is charged as it was made. One whose batches were said to be Poisson samples is a
subsampled Gaussian. Of any other, nothing is claimed from the order of the data: an example that is
in k of its releases once costs what k Gaussians cost.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import dp_accounting
from dp_accounting import pld, rdp

from keras_modelsec.privacy.ledger import Run

ACCOUNTANTS = ("pld", "rdp")

# A privacy loss distribution on a grid of this many points takes about a gigabyte to compose.
_MAX_GRID_POINTS = 4e6
_GRID_STEP = 1e-4  # dp_accounting's default discretisation of the privacy loss
_BOUND_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)

Part = tuple[dp_accounting.DpEvent, int]  # a release, and how many of it there were


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


def epsilon(runs: Sequence[Run], delta: float, accountant: str = "pld") -> float:
    """The epsilon spent by `runs` at `delta`, for blanking out one example.

    Of Poisson-sampled runs alone, it is the same for adding or removing one.

    Args:
        runs: What was released.
        delta: In (0, 1).
        accountant: "pld" (tight) or "rdp", for sampled batches; the rest composes exactly. PLD
            falls back to RDP, with a warning, where its grid would exhaust the memory.

    Returns:
        Epsilon >= 0; 0 if nothing was released, infinity without noise.
    """
    runs = [run for run in runs if run.releases > 0]
    if any(run.noise_multiplier == 0 for run in runs):
        return math.inf
    sampled = tuple(run for run in runs if run.sampling_probability > 0)
    influence = math.fsum(
        run.squared_influence() / run.noise_multiplier**2
        for run in runs
        if run.sampling_probability == 0
    )
    return _composed(sampled, influence, delta, accountant)


@functools.lru_cache(maxsize=256)
def _composed(sampled: tuple[Run, ...], influence: float, delta: float, accountant: str) -> float:
    """Of sampled runs, and of Gaussians whose squared influence over variance adds up to a number.

    Gaussians compose to one Gaussian exactly, whatever the accountant.

    Reference: Dong et al., "Gaussian Differential Privacy", arXiv:1905.02383; Balle and Wang,
    arXiv:1805.06530 (the analytic Gaussian mechanism).
    """
    if not sampled:
        return _gaussian_epsilon(influence**-0.5, delta) if influence else 0.0
    parts = [_sampled_release(run) for run in sampled]
    noises = [run.noise_multiplier for run in sampled]
    if influence:
        parts.append((dp_accounting.GaussianDpEvent(influence**-0.5), 1))
        noises.append(influence**-0.5)
    if accountant == "pld" and _grid_points(noises, parts) > _MAX_GRID_POINTS:
        warnings.warn(
            "The PLD accountant would need more memory than is reasonable for this little "
            "noise; the RDP accountant, whose epsilon is valid but larger, is used instead.",
            stacklevel=3,
        )
        accountant = "rdp"
    if accountant == "rdp":
        return _rdp_epsilon(parts, delta)
    accounting = pld.PLDAccountant()
    for release, count in parts:
        accounting.compose(release, count)
    return float(accounting.get_epsilon(delta))


def _sampled_release(run: Run) -> Part:
    release = dp_accounting.PoissonSampledDpEvent(
        run.sampling_probability, dp_accounting.GaussianDpEvent(run.noise_multiplier)
    )
    return release, round(run.releases * run.runs)


@functools.lru_cache(maxsize=64)
def _rdp_of(release: dp_accounting.DpEvent, orders: tuple[float, ...] | None) -> Any:
    """The accountant of one release, which takes dp_accounting some 0.2 s if it is sampled."""
    return rdp.RdpAccountant(orders).compose(release)


def _rdp_epsilon(
    parts: Sequence[Part], delta: float, orders: tuple[float, ...] | None = None
) -> float:
    """What `rdp.RdpAccountant` gives for them: there each release's curve is simply added."""
    ones = [(_rdp_of(release, orders), count) for release, count in parts]
    total = sum(count * accounting.rdp for accounting, count in ones)
    return float(rdp.compute_epsilon(ones[0][0].orders, total, delta)[0])


def _grid_points(noises: Sequence[float], parts: Sequence[Part]) -> float:
    """A bound on the grid that the composed privacy loss covers.

    A Gaussian's loss spreads over about 1/(2 sigma^2) + 9/sigma; a composition's over about twice
    the RDP epsilon at a tiny delta.
    """
    single = max(0.5 / s**2 + 9 / s for s in noises)
    composed = 2 * _rdp_epsilon(parts, 1e-12, _BOUND_ORDERS)
    return 2 * max(single, composed) / _GRID_STEP


def affordable_releases(
    runs: Sequence[Run],
    current: Run,
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
        delta: In (0, 1).
        max_epsilon: The budget.
        wanted: How many are wanted at most.
        accountant: "pld" or "rdp".
    """

    def fits(releases: int) -> bool:
        planned = (*runs, current._replace(releases=float(releases), runs=1.0))
        return epsilon(planned, delta, accountant) <= max_epsilon

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
