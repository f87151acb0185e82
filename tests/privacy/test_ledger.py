"""The ledger adds up without forgetting."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.privacy.accounting import Passes, PoissonSampling, epsilon
from keras_modelsec.privacy.ledger import Run, merge_runs

runs = st.builds(
    Run,
    noise_multiplier=st.sampled_from([0.8, 1.3]),
    batch_size=st.sampled_from([8.0, 32.0]),
    releases=st.integers(1, 40).map(float),
    runs=st.integers(1, 3).map(float),
    micro_batches=st.just(1.0),
    steps=st.sampled_from([0.0, 3.0, 7.0]),
    sampling_probability=st.just(0.0),
    largest_batch=st.sampled_from([0.0, 32.0]),
)


@given(st.lists(runs, max_size=60))
@settings(deadline=None, max_examples=60)
def test_merging_keeps_every_release(items):
    merged = merge_runs(items)
    assert len(merged) <= 32
    assert sum(r.releases * r.runs for r in merged) == sum(r.releases * r.runs for r in items)


@given(st.lists(runs, min_size=1, max_size=6))
@settings(deadline=None, max_examples=15)
def test_merging_never_lowers_epsilon(items):
    for sampling in (Passes(steps=5, batch_size=8.0), PoissonSampling(0.01, 8.0)):
        exact = epsilon(tuple(items), sampling, 1e-5, "rdp")
        assert epsilon(tuple(merge_runs(items)), sampling, 1e-5, "rdp") >= exact - 1e-9
        assert epsilon(tuple(merge_runs(items, limit=4)), sampling, 1e-5, "rdp") >= exact - 1e-9


def test_too_many_settings_raise_instead_of_forgetting():
    with pytest.raises(RuntimeError, match="At most 4"):
        merge_runs([Run(1.0 + i, 8.0, 1.0, 1.0, 1.0) for i in range(5)], limit=4)
