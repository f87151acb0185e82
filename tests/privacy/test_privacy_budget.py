"""The callback: figures in the logs, the stop before the budget, and what it claims."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError, PrivacyBudgetExceeded
from keras_modelsec.privacy.accounting import epsilon
from keras_modelsec.privacy.ledger import EVERY_BATCH, ONE_PASS, SPANNING, Run


def _fit(model, data, budget, **options):
    options = {"batch_size": 4, "verbose": 0, **options}
    return model.fit(*data, callbacks=[budget], **options)


def test_epsilon_stands_in_the_logs_of_each_epoch(private_model, tiny_data):
    budget = ms.PrivacyBudget(delta=1e-3)
    history = _fit(private_model(), tiny_data, budget, epochs=3)
    expected = [epsilon((Run(1.0, 4.0, 3.0, e + 1.0, 1.0, ONE_PASS),), 1e-3) for e in range(3)]
    assert history.history["privacy_epsilon"] == pytest.approx(expected)


def test_poisson_figure_is_smaller_and_says_what_it_assumes(private_model, tiny_data):
    budget = ms.PrivacyBudget(delta=1e-3, sampling_probability=4 / 12)
    history = _fit(private_model(), tiny_data, budget)
    run = Run(1.0, 4.0, 3.0, 1.0, 1.0, ONE_PASS)
    figure = history.history["privacy_epsilon"][0]
    assert figure == pytest.approx(epsilon((run._replace(sampling_probability=1 / 3),), 1e-3))
    statement = budget.statement()
    assert "Assumes Poisson sampling" in statement
    assert f"{epsilon((run,), 1e-3):.4g}" in statement
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
    affordable = Run(2.0, 4.0, 7.0, 1.0, 1.0, sampling_probability=1 / 3)
    limit = epsilon((affordable,), 1e-3, "rdp") + 1e-6
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
    affordable = Run(2.0, 4.0, 5.0, 1.0, 1.0, sampling_probability=1 / 3)
    limit = epsilon((affordable,), 1e-3, "rdp") + 1e-6
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


@pytest.mark.parametrize("probability", [None, 0.5])
def test_epochs_that_share_a_release_are_refused(private_model, tiny_data, probability):
    model = private_model(gradient_accumulation_steps=2)
    with pytest.raises(NotPrivateError, match="multiple of `gradient_accumulation_steps`"):
        _fit(model, tiny_data, ms.PrivacyBudget(1e-3, sampling_probability=probability))


def test_sample_of_accumulated_batches_ends_where_the_data_start_over(private_model, tiny_data):
    """An example in a batch from before and in one after it has twice its influence."""
    model = private_model(gradient_accumulation_steps=2)
    budget = ms.PrivacyBudget(1e-3, sampling_probability=0.5)
    _fit(model, tiny_data, budget, batch_size=3)
    assert "parts of one sample" in budget.statement()
    model.train_on_batch(*tiny_data)
    _fit(model, tiny_data, budget, batch_size=3)
    runs = [(r.pass_examples, r.sampling_probability) for r in model.optimizer.runs()]
    assert runs == [(ONE_PASS, 0.5), (SPANNING, 0.0)]


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
    pessimistic = epsilon((Run(1.0, 4.0, releases, 1.0, 1.0),), 1e-3)
    assert history.history["privacy_epsilon"][0] == pytest.approx(pessimistic)
    assert "give `dataset_size`" in budget.statement()


@pytest.mark.parametrize("passes", [1, 3])
def test_training_stops_before_a_pass_that_it_cannot_afford(private_model, tiny_data, passes):
    limit = epsilon((Run(4.0, 4.0, 3.0, passes, 1.0, ONE_PASS),), 1e-3) + 1e-6
    model = private_model(noise_multiplier=4.0)
    history = _fit(model, tiny_data, ms.PrivacyBudget(1e-3, max_epsilon=limit), epochs=9)
    assert model.optimizer.release_count == 3 * passes
    assert history.history["privacy_epsilon"][-1] == pytest.approx(limit, abs=1e-5)
    with pytest.raises(PrivacyBudgetExceeded, match="is spent"):
        _fit(model, tiny_data, ms.PrivacyBudget(1e-3, max_epsilon=limit))


def test_training_that_may_just_finish_says_nothing_of_a_stop(private_model, tiny_data, capsys):
    limit = epsilon((Run(4.0, 4.0, 3.0, 2.0, 1.0, ONE_PASS),), 1e-3) + 1e-6
    _fit(
        private_model(noise_multiplier=4.0),
        tiny_data,
        ms.PrivacyBudget(1e-3, max_epsilon=limit),
        epochs=2,
    )
    assert "stops" not in capsys.readouterr().out


def _repeated(data, dataset_size):
    pipeline = tf.data.Dataset.from_tensor_slices(data).shuffle(12).repeat().batch(5)
    options = {"x": pipeline, "steps_per_epoch": 3, "shuffle": False, "verbose": 0}
    return options, ms.PrivacyBudget(1e-3, dataset_size=dataset_size)


def test_data_that_repeat_before_they_are_batched_are_refused_without_their_size(
    private_model, tiny_data
):
    model = private_model()
    before = model.get_weights()
    options, budget = _repeated(tiny_data, None)
    for callbacks in ([], [budget]):
        with pytest.raises(NotPrivateError, match="and no `dataset_size`"):
            model.fit(**options, callbacks=callbacks)
    mixed = tf.data.Dataset.from_tensor_slices(tiny_data).repeat().shuffle(30).batch(5)
    with pytest.raises(NotPrivateError, match="mixes the repetitions"):
        model.fit(**options | {"x": mixed}, callbacks=[ms.PrivacyBudget(1e-3, dataset_size=12)])
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_batch_across_two_passes_counts_as_holding_an_example_twice(private_model, tiny_data):
    model = private_model(noise_multiplier=8.0)
    options, budget = _repeated(tiny_data, 12)
    model.fit(**options, epochs=2, callbacks=[budget])
    # 30 examples: three passes were begun, and batches of 5 do not end with passes of 12.
    assert model.optimizer.runs()[0].squared_influence() == 3 * 2
    assert "of 12 examples in a row" in budget.statement()


def test_nothing_said_later_makes_cheaper_what_was_spent(private_model, tiny_data):
    model = private_model(noise_multiplier=5.0)
    _fit(model, tiny_data, first := ms.PrivacyBudget(delta=1e-3), epochs=6)
    before = first.epsilon
    for later in (
        {"sampling_probability": 1e-6},
        {"dataset_size": 10**6},
        {"max_epsilon": 500.0},
        {"sampling_probability": 1e-6, "accountant": "rdp"},
    ):
        budget = ms.PrivacyBudget(delta=1e-3, **later)
        budget.set_model(model)
        assert budget.epsilon >= before
        _fit(model, tiny_data, budget)
        assert first.epsilon >= before
        assert budget.epsilon >= before
        before = first.epsilon


def test_callbacks_that_claim_different_sampling_claim_the_least(private_model, tiny_data):
    model = private_model()
    budgets = [ms.PrivacyBudget(1e-3, sampling_probability=1e-3), ms.PrivacyBudget(1e-3)]
    model.fit(*tiny_data, batch_size=4, callbacks=budgets, verbose=0)
    assert [run.sampling_probability for run in model.optimizer.runs()] == [0.0]


def test_sampling_claimed_for_one_fit_holds_for_no_other_step(private_model, tiny_data):
    model = private_model()
    _fit(model, tiny_data, ms.PrivacyBudget(1e-3, sampling_probability=0.1))
    model.fit(*tiny_data, batch_size=4, verbose=0)
    model.train_on_batch(*tiny_data)
    model.train_step(tuple(map(tf.constant, tiny_data)))
    runs = [(r.releases, r.sampling_probability, r.pass_examples) for r in model.optimizer.runs()]
    assert runs == [(3.0, 0.1, ONE_PASS), (3.0, 0.0, ONE_PASS), (2.0, 0.0, EVERY_BATCH)]


def test_steps_of_a_custom_loop_claim_nothing_and_spoil_what_the_run_claimed(
    private_model, tiny_data
):
    model = private_model()
    step = tf.function(model.train_step)

    class Meddler(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            step(tuple(map(tf.constant, tiny_data)))

    budget = ms.PrivacyBudget(1e-3, sampling_probability=0.1)
    model.fit(*tiny_data, batch_size=4, callbacks=[budget, Meddler()], verbose=0)
    assert [
        (r.releases, r.pass_examples, r.sampling_probability) for r in model.optimizer.runs()
    ] == [(6.0, EVERY_BATCH, 0.0)]


def test_optimizer_that_is_exchanged_without_compiling_takes_over_what_was_spent(
    private_model, tiny_data
):
    model = private_model(noise_multiplier=4.0)
    _fit(model, tiny_data, budget := ms.PrivacyBudget(1e-3), epochs=3)
    before = budget.epsilon
    model.optimizer = ms.DPOptimizer("sgd", 1.0, 4.0)
    assert budget.epsilon == before
    _fit(model, tiny_data, budget)
    assert budget.epsilon > before


def test_step_that_was_traced_with_an_earlier_optimizer_goes_on_being_charged(
    private_model, tiny_data
):
    model = private_model(noise_multiplier=4.0)
    step = tf.function(model.train_step)
    data = tuple(map(tf.constant, tiny_data))
    step(data)
    model.compile(ms.DPOptimizer("sgd", 1.0, 8.0), model.loss)
    budget = ms.PrivacyBudget(1e-3)
    budget.set_model(model)
    before = budget.epsilon
    step(data)
    assert budget.epsilon > before
    assert sum(run.releases * run.runs for run in model.optimizer.runs()) == 2
    assert budget.epsilon == budget.epsilon  # read twice, charged once


def test_plan_follows_what_is_found_after_it_was_made(private_model, tiny_data):
    """The second callback takes back what the first one claimed of the sampling."""
    model = private_model()
    budgets = [
        ms.PrivacyBudget(1e-3, max_epsilon=4.0, sampling_probability=1e-4),
        ms.PrivacyBudget(1e-3, sampling_probability=0.5),
    ]
    model.fit(*tiny_data, batch_size=4, epochs=20, callbacks=budgets, verbose=0)
    assert 0 < budgets[0].epsilon <= 4.0


def test_data_a_callback_trains_on_by_itself_are_not_taken_for_those_of_fit(
    private_model, tiny_data
):
    model = private_model()

    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            batches = tf.data.Dataset.from_tensor_slices(tiny_data).batch(4).repeat()
            iterator = iter(batches)
            for _ in range(5):
                model.train_function(iterator)

    model.fit(*tiny_data, batch_size=4, callbacks=[Meddler()], verbose=0)
    assert [(r.releases, r.pass_examples) for r in model.optimizer.runs()] == [
        (3.0, ONE_PASS),
        (5.0, EVERY_BATCH),
    ]


def test_batches_that_may_hold_an_example_twice_do_not_wait_for_other_data(
    private_model, tiny_data
):
    model = private_model(gradient_accumulation_steps=2)
    options, _ = _repeated(tiny_data, 12)
    model.fit(**options, callbacks=[_Telling(12)])  # three batches: one waits
    with pytest.raises(NotPrivateError, match="wait for their release"):
        model.fit(*tiny_data, batch_size=4, verbose=0)


class _Telling(keras.callbacks.Callback):
    """Says the size of the data, and nothing else."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def on_train_begin(self, logs=None):
        self.model.optimizer.ledger.tell(None, self.size)


def test_statement_names_the_noise_of_every_phase(private_model, tiny_data):
    model = private_model(noise_multiplier=4.0)
    _fit(model, tiny_data, budget := ms.PrivacyBudget(1e-3))
    model.compile(ms.DPOptimizer("sgd", 1.0, 1.5), model.loss)
    _fit(model, tiny_data, budget)
    assert "noise multiplier 1.5 and 4" in budget.statement()
    assert "fixed seed: NOT private" in budget.statement()  # of the first phase


def test_epochs_of_a_later_fit_do_not_stretch_the_earlier_ones(private_model, tiny_data):
    model = private_model(noise_multiplier=5.0)
    budget = ms.PrivacyBudget(delta=1e-3)
    _fit(model, tiny_data, budget, batch_size=12, epochs=6)  # one step an epoch
    before = budget.epsilon
    model.fit(*tiny_data, batch_size=3, verbose=0)  # four, and nobody watches
    _fit(model, tiny_data, budget, batch_size=2)
    assert budget.epsilon == pytest.approx(epsilon((Run(5.0, 1, 1, 8.0, 1, ONE_PASS),), 1e-3))
    assert budget.epsilon > before


def test_accumulation_left_over_from_another_fit_counts_twice(private_model, tiny_data):
    model = private_model(gradient_accumulation_steps=2)
    model.fit(*tiny_data, batch_size=4, epochs=1, verbose=0)  # three batches: one is left over
    model.fit(*tiny_data, batch_size=4, epochs=1, verbose=0)
    runs = [(r.releases, r.pass_examples) for r in model.optimizer.runs()]
    assert runs == [(1.0, ONE_PASS), (2.0, SPANNING)]


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


def _endless(tiny_data, batch_size):
    return tf.data.Dataset.from_tensor_slices(tiny_data).repeat().batch(batch_size)


def test_first_batch_is_planned_for_as_large_as_the_data_say(private_model, tiny_data):
    limit = epsilon((Run(1.0, 4.0, 1.0, 1.0, 1.0, ONE_PASS),), 1e-3) * 1.01
    model = private_model()
    budget = ms.PrivacyBudget(1e-3, limit, dataset_size=12)
    options = {"steps_per_epoch": 3, "shuffle": False, "verbose": 0, "callbacks": [budget]}
    model.fit(_endless(tiny_data, 4), epochs=2, **options)
    assert model.optimizer.release_count == 3
    assert budget.epsilon <= limit


def test_batches_larger_than_the_earlier_ones_are_planned_for(private_model, tiny_data):
    model = private_model()
    model.fit(*tiny_data, batch_size=4, verbose=0)
    spent = epsilon((Run(1.0, 4.0, 3.0, 2.0, 1.0, ONE_PASS),), 1e-3)
    budget = ms.PrivacyBudget(1e-3, spent * 1.01, dataset_size=12)
    with pytest.raises(PrivacyBudgetExceeded):
        model.fit(
            _endless(tiny_data, 30),
            steps_per_epoch=1,
            shuffle=False,
            verbose=0,
            callbacks=[budget],
        )


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_step_that_got_no_batch_is_not_counted(private_model, tiny_data):
    x, y = tiny_data
    data = tf.data.Dataset.from_generator(
        lambda: ((x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int64)),
    )
    model = private_model()
    budget = ms.PrivacyBudget(1e-3)
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[budget])
    assert model.optimizer.release_count == 6
    assert budget.epsilon == pytest.approx(epsilon((Run(1.0, 4.0, 6.0, 1.0, 1.0),), 1e-3))
