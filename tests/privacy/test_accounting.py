"""Epsilon against dp_accounting called directly, and what each sampling claims."""

import bisect
import itertools
import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.privacy.accounting import affordable_releases, epsilon
from keras_modelsec.privacy.ledger import EVERY_BATCH, ONE_PASS, SPANNING, Run

MNIST = Run(
    noise_multiplier=1.1,
    batch_size=256,
    releases=60 * 234,
    runs=1,
    micro_batches=1,
    sampling_probability=256 / 60000,
)


def _direct(accountant, event, count, delta=1e-5):
    return accountant.compose(event, count).get_epsilon(delta)


@pytest.mark.parametrize(
    ("name", "accountant"), [("rdp", rdp.RdpAccountant), ("pld", pld.PLDAccountant)]
)
def test_poisson_epsilon_equals_dp_accounting(name, accountant):
    event = dp_accounting.PoissonSampledDpEvent(256 / 60000, dp_accounting.GaussianDpEvent(1.1))
    expected = _direct(accountant(), event, 60 * 234)
    assert epsilon((MNIST,), 1e-5, name) == pytest.approx(expected, rel=1e-9)


def test_curves_that_were_added_give_what_the_rdp_accountant_gives_to_the_last_bit():
    runs = [MNIST._replace(releases=n, sampling_probability=q) for n, q in ((7, 0.3), (40, 0.01))]
    runs.append(Run(6.0, 32, 10, 3, 1, pass_examples=ONE_PASS))
    for some in (runs[:1], runs[:2], runs, runs[::-1]):
        accountant = rdp.RdpAccountant()
        for q, n in [(r.sampling_probability, r.releases) for r in some]:
            if q:
                noise = dp_accounting.GaussianDpEvent(1.1)
                accountant.compose(dp_accounting.PoissonSampledDpEvent(q, noise), n)
        if any(not run.sampling_probability for run in some):
            accountant.compose(dp_accounting.GaussianDpEvent((3 / 6.0**2) ** -0.5))
        assert epsilon(some, 1e-5, "rdp") == accountant.get_epsilon(1e-5)


@pytest.mark.parametrize(("name", "known"), [("rdp", 2.597), ("pld", 2.382)])
def test_epsilon_of_the_mnist_tutorial_is_the_known_one(name, known):
    assert epsilon((MNIST,), 1e-5, name) == pytest.approx(known, abs=5e-3)


def test_passes_cost_one_gaussian_each():
    run = Run(6.0, 32, 10, 3, 1, pass_examples=ONE_PASS)
    expected = _direct(pld.PLDAccountant(), dp_accounting.GaussianDpEvent(6.0), 3)
    assert epsilon((run,), 1e-5) == pytest.approx(expected, rel=1e-3)
    upper = _direct(rdp.RdpAccountant(), dp_accounting.GaussianDpEvent(6.0), 3)
    assert epsilon((run,), 1e-5, "rdp") < upper


@pytest.mark.parametrize(
    ("run", "influence"),
    [
        # A pass that was begun counts whole, however short it was cut.
        (Run(1.0, 30, 4, 3, 1, pass_examples=ONE_PASS), 3),
        (Run(1.0, 30, 1, 3, 1, pass_examples=ONE_PASS), 3),
        # Nothing known: every batch holds the example.
        (Run(1.0, 30, 10, 1, 1, pass_examples=EVERY_BATCH), 10),
        (Run(1.0, 60, 10, 1, 2, pass_examples=EVERY_BATCH), 10 * 4),
        (Run(1.0, 60, 10, 1, 2, pass_examples=SPANNING), 10 * 4),
        # 100 examples over and over, batches of 25: none spans two passes.
        (Run(1.0, 25, 4, 1, 1, 100, largest_batch=25, examples=100), 1),
        (Run(1.0, 25, 5, 1, 1, 100, largest_batch=25, examples=125), 2),
        (Run(1.0, 50, 4, 1, 2, 100, largest_batch=25, examples=200), 2),
        # Batches of 30: the fourth holds the end of one pass and the beginning of the next.
        (Run(1.0, 30, 3, 1, 1, 100, largest_batch=30, examples=90), 1),
        (Run(1.0, 30, 4, 1, 1, 100, largest_batch=30, examples=120), 2 * 2),
        (Run(1.0, 30, 12, 1, 1, 100, largest_batch=30, examples=360), 4 * 2),
        (Run(1.0, 30, 12, 3, 1, 100, largest_batch=30, examples=360), 4 * 2 * 3),
        # A short batch shifts all that follow.
        (Run(1.0, 25, 8, 1, 1, 100, largest_batch=25, examples=199), 2 * 2),
        # Batches larger than the data hold an example several times.
        (Run(1.0, 25, 1, 1, 1, 10, largest_batch=25, examples=25), 3 * 3),
        (Run(1.0, 25, 4, 1, 1, 10, largest_batch=25, examples=100), 10 * 4),
    ],
)
def test_influence_of_one_example_is_never_undercounted(run, influence, gaussian_epsilon):
    assert run.squared_influence() == influence
    assert epsilon((run,), 1e-5) == pytest.approx(gaussian_epsilon(influence, 1e-5))


@given(
    length=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    micro_batches=st.integers(1, 3),
    releases=st.integers(1, 9),
    short=st.integers(0, 3),
)
@settings(deadline=None)
def test_influence_bounds_what_a_repeated_shuffle_can_do(
    length, batch_size, micro_batches, releases, short
):
    """Against the worst order of each pass, tried for every example that ends one."""
    sizes = [batch_size] * (releases * micro_batches)
    sizes[0] = max(1, batch_size - short)
    bounds = [sum(sizes[:i]) for i in range(0, len(sizes) + 1, micro_batches)]
    passes = -(-bounds[-1] // length)
    run = Run(
        1.0, 1, releases, 1, micro_batches, length, largest_batch=batch_size, examples=bounds[-1]
    )
    best = 0
    # The example is last in one pass and first in the next, or stays where it is.
    for choice in itertools.product((0, length - 1), repeat=min(passes, 9)):
        held = [0] * releases
        for number, place in enumerate(choice):
            position = number * length + place
            if position < bounds[-1]:
                held[bisect.bisect_right(bounds, position) - 1] += 1
        best = max(best, sum(k * k for k in held))
    assert run.squared_influence() >= best


def test_sampled_and_other_runs_compose_and_each_is_charged_as_it_was_made():
    sampled, passed = MNIST._replace(releases=100), Run(4.0, 32, 10, 2, 1, ONE_PASS)
    event = dp_accounting.PoissonSampledDpEvent(256 / 60000, dp_accounting.GaussianDpEvent(1.1))
    accountant = rdp.RdpAccountant().compose(event, 100)
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 2)
    both = epsilon((sampled, passed), 1e-5, "rdp")
    assert both == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert both == epsilon((passed, sampled), 1e-5, "rdp")


def test_nothing_released_costs_nothing_and_no_noise_costs_everything():
    assert epsilon((), 1e-5) == 0
    assert epsilon((MNIST._replace(noise_multiplier=0.0),), 1e-5) == math.inf


def test_pld_falls_back_to_rdp_where_it_would_exhaust_the_memory():
    run = Run(0.02, 256, 100, 1, 1, sampling_probability=256 / 60000)
    with pytest.warns(UserWarning, match="RDP accountant"):
        value = epsilon((run,), 1e-5)
    assert value == pytest.approx(epsilon((run,), 1e-5, "rdp"))


def test_affordable_releases_is_the_last_number_that_fits():
    kind = MNIST._replace(releases=0)
    fitting = affordable_releases((), kind, 1e-5, 1.0, wanted=5000, accountant="rdp")
    at = [epsilon((MNIST._replace(releases=n),), 1e-5, "rdp") for n in (fitting, fitting + 1)]
    assert at[0] <= 1.0 < at[1]


def test_affordable_releases_counts_what_was_spent_before():
    kind = MNIST._replace(releases=0)
    options = {"wanted": 5000, "accountant": "rdp"}
    fresh = affordable_releases((), kind, 1e-5, 1.0, **options)
    rest = affordable_releases((MNIST._replace(releases=400),), kind, 1e-5, 1.0, **options)
    assert rest == fresh - 400
