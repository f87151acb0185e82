"""The callback: figures in the logs, the stop before the budget, and what it claims."""

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.privacy import NotPrivateError, PrivacyBudgetExceeded
from keras_modelsec.privacy.accounting import Passes, PoissonSampling, epsilon
from keras_modelsec.privacy.ledger import Run


def _fit(model, data, budget, **options):
    options = {"batch_size": 4, "verbose": 0, **options}
    return model.fit(*data, callbacks=[budget], **options)


def test_epsilon_stands_in_the_logs_of_each_epoch(private_model, tiny_data):
    budget = ms.PrivacyBudget(delta=1e-3)
    history = _fit(private_model(), tiny_data, budget, epochs=3)
    expected = [
        epsilon((Run(1.0, 4.0, 3.0 * (e + 1), 1.0, 1.0),), Passes(3, 4.0), 1e-3) for e in range(3)
    ]
    assert history.history["privacy_epsilon"] == pytest.approx(expected)


def test_poisson_figure_is_smaller_and_says_what_it_assumes(private_model, tiny_data):
    budget = ms.PrivacyBudget(delta=1e-3, sampling_probability=4 / 12)
    history = _fit(private_model(), tiny_data, budget)
    run = Run(1.0, 4.0, 3.0, 1.0, 1.0)
    figure = history.history["privacy_epsilon"][0]
    assert figure == pytest.approx(epsilon((run,), PoissonSampling(1 / 3, 4.0), 1e-3))
    statement = budget.statement()
    assert "Assumes Poisson sampling" in statement
    assert f"{epsilon((run,), Passes(3, 4.0), 1e-3):.4g}" in statement
    assert "fixed seed: NOT private" in statement


def test_figure_for_shuffled_epochs_claims_no_amplification(private_model, tiny_data):
    budget = ms.PrivacyBudget(delta=1e-3)
    _fit(private_model(seed=None), tiny_data, budget)
    assert "no amplification by sampling is claimed" in budget.statement()
    assert "NOT private" not in budget.statement()


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_training_stops_before_the_step_that_would_exceed(
    private_model, tiny_data, steps_per_execution
):
    model = private_model(
        noise_multiplier=2.0, compile_options={"steps_per_execution": steps_per_execution}
    )
    sampling = PoissonSampling(1 / 3, 4.0)
    limit = epsilon((Run(2.0, 4.0, 7.0, 1.0, 1.0),), sampling, 1e-3, "rdp") + 1e-6
    budget = ms.PrivacyBudget(
        delta=1e-3, max_epsilon=limit, sampling_probability=1 / 3, accountant="rdp"
    )
    history = _fit(model, tiny_data, budget, epochs=50)
    assert model.optimizer.release_count == (7 if steps_per_execution == 1 else 6)
    assert max(history.history["privacy_epsilon"]) <= limit
    assert len(history.history["loss"]) < 50


def test_second_fit_and_loaded_model_go_on_with_what_is_left(tmp_path, private_model, tiny_data):
    model = private_model(noise_multiplier=2.0)
    options = {"delta": 1e-3, "sampling_probability": 1 / 3, "accountant": "rdp"}
    sampling = PoissonSampling(1 / 3, 4.0)
    limit = epsilon((Run(2.0, 4.0, 5.0, 1.0, 1.0),), sampling, 1e-3, "rdp") + 1e-6
    _fit(model, tiny_data, ms.PrivacyBudget(**options, max_epsilon=limit))
    assert model.optimizer.release_count == 3
    model.save(tmp_path / "model.keras")
    for resumed in (model, keras.models.load_model(tmp_path / "model.keras")):
        budget = ms.PrivacyBudget(**options, max_epsilon=limit)
        _fit(resumed, tiny_data, budget, epochs=9)
        assert resumed.optimizer.release_count == 5
        with pytest.raises(PrivacyBudgetExceeded, match="is spent"):
            _fit(resumed, tiny_data, budget)
        assert resumed.optimizer.release_count == 5


def test_training_that_cannot_afford_one_step_does_not_begin(private_model, tiny_data):
    model = private_model()
    before = model.get_weights()
    with pytest.raises(PrivacyBudgetExceeded, match=r"max_epsilon=0\.01"):
        _fit(model, tiny_data, ms.PrivacyBudget(delta=1e-3, max_epsilon=0.01))
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_budget_without_noise_does_not_begin(private_model, tiny_data):
    with pytest.raises(PrivacyBudgetExceeded):
        _fit(
            private_model(noise_multiplier=0.0),
            tiny_data,
            ms.PrivacyBudget(delta=1e-3, max_epsilon=8.0),
        )


def test_without_noise_epsilon_is_infinite(private_model, tiny_data):
    history = _fit(private_model(noise_multiplier=0.0), tiny_data, ms.PrivacyBudget(delta=1e-3))
    assert history.history["privacy_epsilon"] == [float("inf")]


def test_model_without_dp_optimizer_is_refused(tiny_data):
    inputs = keras.Input((4,))
    model = ms.SecureModel(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(NotPrivateError, match=r"ms\.DPOptimizer"):
        model.fit(tiny_data[0], callbacks=[ms.PrivacyBudget(delta=1e-3)], verbose=0)


def test_epochs_that_share_a_release_are_refused(private_model, tiny_data):
    model = private_model(gradient_accumulation_steps=2)
    with pytest.raises(NotPrivateError, match="multiple of `gradient_accumulation_steps`"):
        _fit(model, tiny_data, ms.PrivacyBudget(delta=1e-3))


def test_unknown_length_of_an_epoch_counts_against_the_figure(private_model, tiny_data):
    def batches():
        for start in range(0, 12, 4):
            yield tuple(part[start : start + 4] for part in tiny_data)

    budget = ms.PrivacyBudget(delta=1e-3)
    model = private_model()
    with pytest.warns(UserWarning, match="ran out of data"):
        history = model.fit(batches(), verbose=0, shuffle=False, callbacks=[budget])
    releases = float(model.optimizer.release_count)
    assert releases >= 3
    pessimistic = epsilon((Run(1.0, 4.0, releases, 1.0, 1.0),), Passes(None, 4.0), 1e-3)
    assert history.history["privacy_epsilon"][0] == pytest.approx(pessimistic)
    assert "give `dataset_size`" in budget.statement()


def test_epochs_of_a_later_fit_do_not_stretch_the_earlier_ones(private_model, tiny_data):
    model = private_model(noise_multiplier=5.0)
    budget = ms.PrivacyBudget(delta=1e-3)
    _fit(model, tiny_data, budget, batch_size=12, epochs=6)  # one step an epoch
    before = budget.epsilon
    model.fit(*tiny_data, batch_size=3, verbose=0)  # four, and nobody watches
    _fit(model, tiny_data, budget, batch_size=2)
    passes = epsilon((Run(5.0, 12.0, 8.0, 1.0, 1.0),), Passes(1, 12.0), 1e-3)
    assert budget.epsilon == pytest.approx(passes)
    assert budget.epsilon > before


def test_accumulation_left_over_from_another_fit_counts_twice(private_model, tiny_data):
    model = private_model(gradient_accumulation_steps=2)
    model.fit(*tiny_data, batch_size=4, epochs=1, verbose=0)  # three batches: one is left over
    model.fit(*tiny_data, batch_size=4, epochs=1, verbose=0)
    assert [(r.releases, r.steps) for r in model.optimizer.runs()] == [(1.0, 3.0), (2.0, -1.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "`delta` must be a finite number > 0 and < 1"),
        ({"delta": 1e-5, "max_epsilon": -1.0}, "`max_epsilon` must be a finite number > 0"),
        ({"delta": 1e-5, "sampling_probability": 1.5}, "sampling_probability"),
        ({"delta": 1e-5, "dataset_size": 0}, "dataset_size"),
        ({"delta": 1e-5, "sampling_probability": 0.1, "dataset_size": 9}, "not both"),
        ({"delta": 1e-5, "accountant": "gdp"}, "one of 'pld', 'rdp'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ms.PrivacyBudget(**options)
