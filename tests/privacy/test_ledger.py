"""The ledger adds up without forgetting."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.privacy.accounting import epsilon
from keras_modelsec.privacy.ledger import EVERY_BATCH, ONE_PASS, SPANNING, Run, merge_runs

GOLDEN = Path(__file__).parents[1] / "golden" / "privacy"

runs = st.builds(
    Run,
    noise_multiplier=st.sampled_from([0.8, 1.3]),
    batch_size=st.just(8.0),
    releases=st.integers(1, 40).map(float),
    runs=st.integers(1, 3).map(float),
    micro_batches=st.sampled_from([1.0, 2.0]),
    pass_examples=st.sampled_from(
        [float(EVERY_BATCH), float(SPANNING), float(ONE_PASS), 30.0, 70.0]
    ),
    sampling_probability=st.sampled_from([0.0, 0.0, 0.01]),
    largest_batch=st.sampled_from([5.0, 32.0]),
    examples=st.integers(1, 3000).map(float),
    fixed_seed=st.just(0.0),  # hypothesis would draw any number for what is left out
)


@given(st.lists(runs, max_size=60))
@settings(deadline=None, max_examples=60)
def test_merging_keeps_every_release(items):
    merged = merge_runs(items)
    assert len(merged) <= 32
    kept = sum(r.releases * r.runs for r in merged)
    assert kept == pytest.approx(sum(r.releases * r.runs for r in items))


@given(st.lists(runs, min_size=1, max_size=40))
@settings(deadline=None, max_examples=30)
def test_merging_never_lowers_epsilon(items):
    exact = epsilon(items, 1e-5, "rdp")
    assert epsilon(merge_runs(items), 1e-5, "rdp") >= exact - 1e-9
    assert epsilon(merge_runs(items, limit=24), 1e-5, "rdp") >= exact - 1e-9


def test_passes_of_many_lengths_cost_what_they_cost_apart():
    items = [Run(2.0, 8.0, float(n), 1.0, 1.0, ONE_PASS, examples=8.0 * n) for n in range(1, 90)]
    merged = merge_runs(items)
    assert len(merged) == 1
    assert epsilon(merged, 1e-5) == pytest.approx(epsilon(items, 1e-5), rel=1e-12)


def test_noise_of_a_known_seed_is_not_merged_with_other_noise():
    run = Run(2.0, 8.0, 1.0, 1.0, 1.0)
    assert merge_runs([run, run._replace(fixed_seed=1.0), run]) == [
        run._replace(runs=2.0),
        run._replace(fixed_seed=1.0),
    ]


def test_too_many_settings_raise_instead_of_forgetting():
    with pytest.raises(RuntimeError, match="At most 4"):
        merge_runs([Run(1.0 + i, 8.0, 1.0, 1.0, 1.0) for i in range(5)], limit=4)


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="saved with Keras 3.15, whose layers no earlier Keras reads",
)
@pytest.mark.parametrize("name", ["dp_optimizer_v1", "dp_optimizer_v1_accumulating"])
def test_file_of_the_first_version_loads_and_counts_as_if_nothing_were_known(name):
    """It was trained on 4 batches with steps_per_epoch=1000, which its rows take for a pass."""
    model = keras.models.load_model(GOLDEN / f"{name}.keras")
    micro_batches = model.optimizer.micro_batches or 1
    spent = model.optimizer.runs()
    assert sum(run.releases * run.runs for run in spent) == 15 // micro_batches
    assert {run.pass_examples for run in spent} <= {EVERY_BATCH, SPANNING}
    assert all(run.noise_multiplier == 4.0 for run in spent)
    influence = sum(run.squared_influence() for run in spent)
    assert influence == (15 // micro_batches) * micro_batches**2
    assert model.optimizer.inner_optimizer.momentum == 0.9
    model.fit(np.zeros((4, 4), "float32"), np.zeros(4), batch_size=4, verbose=0)
    assert model.optimizer.runs()[:1] == spent[:1]
