"""Epsilon against dp_accounting called directly, and what each sampling claims."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from keras_modelsec.privacy.accounting import (
    Passes,
    PoissonSampling,
    affordable_releases,
    epsilon,
)
from keras_modelsec.privacy.ledger import Run

MNIST = Run(noise_multiplier=1.1, batch_size=256, releases=60 * 234, runs=1, micro_batches=1)
POISSON = PoissonSampling(256 / 60000, 256)


def _direct(accountant, event, count, delta=1e-5):
    return accountant.compose(event, count).get_epsilon(delta)


@pytest.mark.parametrize(
    ("name", "accountant"), [("rdp", rdp.RdpAccountant), ("pld", pld.PLDAccountant)]
)
def test_poisson_epsilon_equals_dp_accounting(name, accountant):
    event = dp_accounting.PoissonSampledDpEvent(256 / 60000, dp_accounting.GaussianDpEvent(1.1))
    expected = _direct(accountant(), event, 60 * 234)
    assert epsilon((MNIST,), POISSON, 1e-5, name) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "known"), [("rdp", 2.597), ("pld", 2.382)])
def test_epsilon_of_the_mnist_tutorial_is_the_known_one(name, known):
    assert epsilon((MNIST,), POISSON, 1e-5, name) == pytest.approx(known, abs=5e-3)


def test_passes_cost_one_gaussian_each():
    run = Run(noise_multiplier=6.0, batch_size=32, releases=30, runs=1, micro_batches=1)
    expected = _direct(pld.PLDAccountant(), dp_accounting.GaussianDpEvent(6.0), 3)
    assert epsilon((run,), Passes(10, 32), 1e-5) == pytest.approx(expected, rel=1e-3)
    upper = _direct(rdp.RdpAccountant(), dp_accounting.GaussianDpEvent(6.0), 3)
    assert epsilon((run,), Passes(10, 32), 1e-5, "rdp") < upper


def test_a_started_pass_counts_whole_and_each_run_starts_anew():
    one = Run(1.0, 32, 10, 1, 1)
    sampling = Passes(10, 32)
    assert epsilon((one._replace(releases=11),), sampling, 1e-5) == epsilon(
        (one._replace(runs=2),), sampling, 1e-5
    )
    assert epsilon((one._replace(releases=5, runs=2),), sampling, 1e-5) > epsilon(
        (one,), sampling, 1e-5
    )


def _gaussians(noise_multiplier, count, delta=1e-5):
    return dp_accounting.get_epsilon_gaussian(noise_multiplier / count**0.5, delta)


def test_without_the_length_of_a_pass_every_step_counts():
    run = Run(1.0, 32, 10, 1, 1)
    assert epsilon((run,), Passes(None, 32), 1e-5) == pytest.approx(_gaussians(1.0, 10))
    accumulated = run._replace(micro_batches=2)
    assert epsilon((accumulated,), Passes(None, 16), 1e-5) == pytest.approx(_gaussians(0.5, 10))


@pytest.mark.parametrize(
    ("passes", "run", "participations"),
    [
        # 100 examples, batches of 30: fit counts 4, or 3 with drop_remainder.
        (Passes(4, 30, examples=100), Run(1.0, 30, 12, 1, 1), 3),
        (Passes(3, 30, examples=100), Run(1.0, 30, 12, 1, 1), 4),
        (Passes(None, 30, examples=100), Run(1.0, 30, 12, 1, 1), 4),
        # A steps_per_epoch beyond the data: the data is passed more often than that.
        (Passes(12, 30, examples=100), Run(1.0, 30, 12, 1, 1), 4),
        # Earlier batches of another size: at least (4 - 1) * 30 + 1 examples are known.
        (Passes(4, 30), Run(1.0, 10, 18, 1, 1), 2),
        (Passes(4, 30), Run(1.0, 60, 4, 1, 2), 2),
        # A run knows its own passes better than the one that came after it.
        (Passes(10, 30), Run(1.0, 30, 10, 1, 1, steps=1), 10),
        # Batches larger than the divisor make a pass shorter.
        (Passes(None, 30, examples=100), Run(1.0, 30, 2, 1, 1, largest_batch=100), 2),
        # Releases of two batches that straddle passes of three hold an example up to twice.
        (Passes(3, 30), Run(1.0, 60, 3, 1, 2), 2 * 2),
        # A release that began in another fit may hold an example in each of its batches.
        (Passes(3, 30), Run(1.0, 60, 1, 1, 2, steps=-1), 4),
    ],
)
def test_participations_are_never_undercounted(passes, run, participations):
    assert epsilon((run,), passes, 1e-5) == pytest.approx(_gaussians(1.0, participations))


def test_a_smaller_sampling_probability_later_does_not_cheapen_what_was_spent():
    earlier = MNIST._replace(releases=100, sampling_probability=0.5)
    told = epsilon((earlier,), PoissonSampling(0.5, 256), 1e-5, "rdp")
    assert epsilon((earlier,), POISSON, 1e-5, "rdp") == told


def test_nothing_released_costs_nothing_and_no_noise_costs_everything():
    assert epsilon((), POISSON, 1e-5) == 0
    assert epsilon((MNIST._replace(noise_multiplier=0.0),), POISSON, 1e-5) == math.inf


def test_pld_falls_back_to_rdp_where_it_would_exhaust_the_memory():
    run = Run(0.02, 256, 100, 1, 1)
    with pytest.warns(UserWarning, match="RDP accountant"):
        value = epsilon((run,), POISSON, 1e-5)
    assert value == pytest.approx(epsilon((run,), POISSON, 1e-5, "rdp"))


def test_affordable_releases_is_the_last_number_that_fits():
    kind = MNIST._replace(releases=0)
    fitting = affordable_releases((), kind, POISSON, 1e-5, 1.0, wanted=5000, accountant="rdp")
    at = [
        epsilon((MNIST._replace(releases=n),), POISSON, 1e-5, "rdp") for n in (fitting, fitting + 1)
    ]
    assert at[0] <= 1.0 < at[1]


def test_affordable_releases_counts_what_was_spent_before():
    kind = MNIST._replace(releases=0)
    options = {"wanted": 5000, "accountant": "rdp"}
    fresh = affordable_releases((), kind, POISSON, 1e-5, 1.0, **options)
    rest = affordable_releases((MNIST._replace(releases=400),), kind, POISSON, 1e-5, 1.0, **options)
    assert rest == fresh - 400
