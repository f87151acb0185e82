"""Noise, divisor, refusals and memory of the DP optimizer."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec._core.batch import Batch
from keras_modelsec.errors import NotPrivateError
from keras_modelsec.privacy.clipping import ClippedGradients, seal

layers = keras.layers
WIDTH = 4000  # noise values per measurement: a standard deviation within about 1 %


def _noise_model(optimizer, width=WIDTH):
    """A model whose data gradient is exactly zero, so that an SGD step shows only the noise."""
    inputs = keras.Input((1,))
    model = ms.SecureModel(inputs, layers.Dense(width, use_bias=False)(inputs))
    model.compile(optimizer, "mse")
    return model


def _step_noise(model, batch_size, steps=1, width=WIDTH):
    before = model.get_weights()[0].copy()
    zeros = np.zeros((batch_size * steps, 1), "float32")
    model.fit(zeros, np.zeros((len(zeros), width)), batch_size=batch_size, verbose=0)
    return model.get_weights()[0] - before


def _optimizer(inner=None, **options):
    options = {"l2_norm_clip": 0.5, "noise_multiplier": 2.0, **options}
    return ms.DPOptimizer(inner or keras.optimizers.SGD(1.0), **options)


def test_noise_has_the_promised_standard_deviation():
    noise = _step_noise(_noise_model(_optimizer()), batch_size=4)
    assert np.std(noise) == pytest.approx(2.0 * 0.5 / 4, rel=0.06)
    assert abs(np.mean(noise)) < 0.02


def test_accumulation_adds_noise_once_and_divides_by_all_examples():
    model = _noise_model(_optimizer(gradient_accumulation_steps=4))
    assert np.all(_step_noise(model, batch_size=2, steps=3) == 0)
    noise = _step_noise(model, batch_size=2, steps=1)
    assert np.std(noise) == pytest.approx(2.0 * 0.5 / 8, rel=0.06)
    assert model.optimizer.release_count == 1


def test_accumulated_steps_equal_one_step_on_the_joined_batch(private_model, tiny_data):
    x, y = tiny_data
    weights = []
    for steps, batch_size in ((None, 12), (3, 4)):
        keras.utils.set_random_seed(0)
        model = private_model(
            keras.optimizers.SGD(0.5), noise_multiplier=0.0, gradient_accumulation_steps=steps
        )
        # Two releases: what the first one summed must not enter the second.
        model.fit(x, y, batch_size=batch_size, shuffle=False, epochs=2, verbose=0)
        weights.append(model.get_weights())
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_two_replicas_together_add_the_noise_of_one(mirrored_strategy):
    with mirrored_strategy.scope():
        model = _noise_model(_optimizer())
    noise = _step_noise(model, batch_size=4)
    assert np.std(noise) == pytest.approx(2.0 * 0.5 / 4, rel=0.06)
    assert model.optimizer.batch_size == 4


def test_two_replicas_train_as_one_does_without_noise(mirrored_strategy, tiny_data):
    x, y = tiny_data
    weights = []
    for strategy in (None, mirrored_strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else tf.device(None):
            inputs = keras.Input((4,))
            model = ms.SecureModel(
                inputs, layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
            )
            model.compile(
                ms.DPOptimizer(keras.optimizers.SGD(0.5), l2_norm_clip=0.3, noise_multiplier=0.0),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        history = model.fit(x, y, batch_size=6, shuffle=False, verbose=0)
        weights.append([*model.get_weights(), np.array(history.history["loss"])])
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_accumulation_over_replicas_is_refused(mirrored_strategy):
    with mirrored_strategy.scope():
        model = _noise_model(_optimizer(gradient_accumulation_steps=2), width=3)
    with pytest.raises(NotPrivateError, match="several replicas"):
        _step_noise(model, batch_size=4, width=3)


def test_noise_differs_in_every_step_and_in_every_run():
    draws = []
    for _ in range(2):
        model = _noise_model(_optimizer(), width=50)
        draws += [_step_noise(model, batch_size=2, width=50) for _ in range(2)]
    flat = np.concatenate([draw.ravel() for draw in draws])
    assert len(np.unique(flat)) == len(flat)


def test_noise_ignores_the_global_seed_but_obeys_its_own():
    draws = {None: [], 7: []}
    for seed, found in draws.items():
        for _ in range(2):
            keras.utils.set_random_seed(0)
            found.append(_step_noise(_noise_model(_optimizer(seed=seed), width=20), 2, width=20))
    assert not np.array_equal(*draws[None])
    np.testing.assert_array_equal(*draws[7])


def test_divisor_is_the_expected_batch_size_also_for_a_short_last_batch(private_model, tiny_data):
    x, y = tiny_data
    updates = []
    for expected in (None, 8, 24):
        keras.utils.set_random_seed(0)
        model = private_model(
            keras.optimizers.SGD(1.0), noise_multiplier=0.0, expected_batch_size=expected
        )
        before = model.get_weights()
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)  # batches of 8 and 4
        updates.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    for automatic, given in zip(updates[0], updates[1], strict=True):
        np.testing.assert_allclose(automatic, given)
    assert np.linalg.norm(updates[2][0]) < 0.5 * np.linalg.norm(updates[1][0])


def test_weight_penalties_are_neither_clipped_nor_divided(tiny_data):
    inputs = keras.Input((4,))
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.25))
    model = ms.SecureModel(inputs, dense(inputs))
    model.compile(
        ms.DPOptimizer(keras.optimizers.SGD(1.0), l2_norm_clip=1e-6, noise_multiplier=0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = model.get_weights()[0]
    x, y = tiny_data
    model.fit(x, y, batch_size=12, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], before * (1 - 2 * 0.25), atol=1e-5)


def _trains_no_weight(model, data, match):
    before = model.get_weights()
    with pytest.raises(NotPrivateError, match=match):
        model.fit(*data, verbose=0)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_plain_model_never_trains_without_privacy(tiny_data):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile(_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    _trains_no_weight(model, tiny_data, r"ms\.DPMixin")


def test_custom_loop_is_refused():
    optimizer = _optimizer()
    variable = keras.Variable(np.zeros(3, "float32"))
    with pytest.raises(NotPrivateError, match="clipped per example"):
        optimizer.apply_gradients([(tf.ones(3), variable)])


def test_gradients_clipped_to_another_bound_are_refused():
    optimizer = _optimizer()
    variable = keras.Variable(np.zeros(3, "float32"))
    gradients = ClippedGradients([tf.ones(3)], [None], tf.constant(1), l2_norm_clip=99.0)
    with pytest.raises(NotPrivateError):
        optimizer.apply(seal(gradients, optimizer), [variable])


def _changed(name, value):
    def change(step, batch):
        y_pred, gradients, extra = step(batch)
        object.__setattr__(gradients, name, value(gradients, batch))
        return y_pred, gradients, extra

    return change


def _scaled(step, batch):
    y_pred, gradients, extra = step(batch)
    gradients.sums = [100 * total for total in gradients.sums]
    return y_pred, gradients, extra


def _made_anew(step, batch):
    y_pred, gradients, extra = step(batch)
    sums = [100 * total for total in gradients.sums]
    return y_pred, ClippedGradients(sums, [None, None], 1, gradients.l2_norm_clip), extra


def _first_of_two(step, batch):
    first = step(batch)
    step(batch)
    return first


def _applied_before(step, batch):
    y_pred, gradients, extra = step(batch)
    optimizer = step.__self__.optimizer
    optimizer.apply(gradients, step.__self__.trainable_variables)
    return y_pred, gradients, extra


def _to_another_optimizer(step, batch):
    y_pred, gradients, extra = step(batch)
    model = step.__self__
    model.optimizer.inner_optimizer.apply(gradients, model.trainable_variables)
    return y_pred, gradients, extra


# What the noise would not cover: more than one clipped norm of each example, or none of it clipped.
TAMPERING = {
    "scaled": _scaled,
    "made_anew": _made_anew,
    "behind_its_back": _changed("sums", lambda g, batch: tuple(100 * total for total in g.sums)),
    "data_as_penalties": _changed("penalties", lambda g, batch: (ops.mean(batch.x, 0), None)),
    "first_of_two": _first_of_two,
    "applied_before": _applied_before,
    "to_another_optimizer": _to_another_optimizer,
}


@pytest.mark.parametrize("name", TAMPERING)
def test_hook_that_changes_what_the_private_step_returned_is_refused(name, tiny_data):
    class Tampering(ms.SecureModel):
        def compute_gradients(self, batch):
            return TAMPERING[name](super().compute_gradients, batch)

    inputs = keras.Input((4,))
    model = Tampering(inputs, layers.Dense(3)(inputs))
    model.compile(_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    _trains_no_weight(model, tiny_data, r"as it is|clipped per example")


class AppliesMore(ms.DPOptimizer):
    def apply(self, grads, trainable_variables=None):
        for variable, total in zip(trainable_variables, grads.sums, strict=True):
            variable.assign_add(1000.0 * total)
        super().apply(grads, trainable_variables)


class MakesItsOwnFunction(ms.SecureModel):
    def make_train_function(self, force=False):
        function = super().make_train_function(force)
        self.train_function = lambda iterator: function(iterator)
        return self.train_function


def _around(model):
    step = model.train_step
    model.train_step = lambda data: step(data)


def _with_apply_of_its_own(model):
    apply = model.optimizer.apply
    model.optimizer.apply = lambda *args, **kwargs: apply(*args, **kwargs)


@pytest.mark.parametrize(
    ("build", "optimizer", "change", "match"),
    [
        (ms.SecureModel, AppliesMore, lambda model: None, "AppliesMore"),
        (MakesItsOwnFunction, ms.DPOptimizer, lambda model: None, "make_train_function"),
        (ms.SecureModel, ms.DPOptimizer, _around, "train_step"),
        (ms.SecureModel, ms.DPOptimizer, _with_apply_of_its_own, "apply"),
    ],
    ids=["optimizer", "train function", "train step", "apply"],
)
def test_code_around_the_private_step_is_refused(tiny_data, build, optimizer, change, match):
    inputs = keras.Input((4,))
    model = build(inputs, layers.Dense(3)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer("sgd", 0.5, 1.0), loss)
    change(model)
    _trains_no_weight(model, tiny_data, f"(?s)of its own.*{match}")


def test_gradients_of_the_private_step_are_applied_once_by_its_own_optimizer():
    optimizer, other = _optimizer(), _optimizer()
    variable = keras.Variable(np.zeros(3, "float32"))
    sealed = seal(ClippedGradients([tf.ones(3)], [None], tf.constant(1), 0.5), optimizer)
    with pytest.raises(NotPrivateError, match="not in this step"):
        other.apply(sealed, [variable])
    sealed = seal(sealed, optimizer)
    optimizer.apply(sealed, [variable])
    with pytest.raises(NotPrivateError, match="not in this step"):
        optimizer.apply(sealed, [variable])
    assert optimizer.release_count == 1


def test_gradients_of_a_step_that_was_not_finished_are_refused(private_model, tiny_data):
    model = private_model()
    sealed = seal(ClippedGradients([tf.ones(3)], [None], tf.constant(1), 1.0), model.optimizer)
    model.begin_step(Batch(*map(tf.constant, tiny_data)))
    with pytest.raises(NotPrivateError, match="not in this step"):
        model.optimizer.apply(sealed, model.trainable_variables)


def test_learning_rate_reaches_the_inner_optimizer():
    optimizer = _optimizer()
    optimizer.learning_rate = 0.125
    assert float(optimizer.inner_optimizer.learning_rate) == 0.125


def test_config_round_trip_keeps_all_but_the_seed():
    optimizer = _optimizer(
        keras.optimizers.Adam(0.01), expected_batch_size=32, gradient_accumulation_steps=2, seed=5
    )
    text = json.dumps(keras.saving.serialize_keras_object(optimizer))
    assert "seed" not in text
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert again.get_config() == optimizer.get_config()
    assert not again.has_fixed_seed


def test_saved_model_remembers_what_it_spent_and_trains_on(tmp_path, private_model, tiny_data):
    model = private_model("adam")
    model.fit(*tiny_data, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ms.SecureModel)
    assert loaded.optimizer.runs() == model.optimizer.runs()
    assert loaded.optimizer.release_count == 6
    loaded.fit(*tiny_data, batch_size=4, verbose=0)
    assert loaded.optimizer.release_count == 9


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer 'adam'")
def test_model_saved_before_its_first_step_loads(tmp_path, private_model, tiny_data):
    model = private_model("adam")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(*tiny_data, batch_size=4, verbose=0)
    assert loaded.optimizer.release_count == 3


def test_state_that_does_not_fit_raises_instead_of_forgetting(private_model, tiny_data):
    model = private_model("sgd")
    model.fit(*tiny_data, verbose=0)
    with pytest.raises(NotPrivateError, match="must fit"):
        model.optimizer.load_own_variables({"0": np.zeros(())})


def test_compiling_again_keeps_what_was_spent(private_model, tiny_data):
    model = private_model("sgd", noise_multiplier=1.5)
    model.fit(*tiny_data, batch_size=4, verbose=0)
    model.compile(_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*tiny_data, batch_size=6, verbose=0)
    assert [(r.noise_multiplier, r.batch_size, r.releases) for r in model.optimizer.runs()] == [
        (1.5, 4, 3),
        (2.0, 6, 2),
    ]


def test_compiling_without_privacy_in_between_keeps_what_was_spent(private_model, tiny_data):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = private_model("sgd", noise_multiplier=1.5)
    model.fit(*tiny_data, batch_size=4, verbose=0)
    model.compile("sgd", loss)
    model.compile(_optimizer(), loss)
    assert [(r.noise_multiplier, r.releases) for r in model.optimizer.runs()] == [(1.5, 3)]


def test_loaded_weights_keep_the_noise_they_were_trained_with(tmp_path, private_model, tiny_data):
    model = private_model("sgd", noise_multiplier=0.5)
    model.fit(*tiny_data, batch_size=4, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other = private_model("sgd", noise_multiplier=50.0)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    other.fit(*tiny_data, batch_size=4, verbose=0)
    assert [(r.noise_multiplier, r.releases) for r in other.optimizer.runs()] == [
        (0.5, 3),
        (50.0, 3),
    ]


@pytest.mark.parametrize(
    "name", ["l2_norm_clip", "noise_multiplier", "expected_batch_size", "micro_batches"]
)
def test_what_a_step_was_traced_with_cannot_be_changed(name):
    with pytest.raises(AttributeError, match="with a new DPOptimizer"):
        setattr(_optimizer(), name, 7)


def test_noise_is_never_left_out():
    optimizer = _optimizer()
    variable = keras.Variable(np.zeros(3, "float32"))
    optimizer.build([variable])
    optimizer._noise = None
    gradients = seal(ClippedGradients([tf.ones(3)], [None], tf.constant(1), 0.5), optimizer)
    with pytest.raises(NotPrivateError, match="must be built"):
        optimizer.apply(gradients, [variable])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2_norm_clip": 0.0}, r"`l2_norm_clip` must be a finite number > 0"),
        ({"l2_norm_clip": float("nan")}, "l2_norm_clip"),
        ({"noise_multiplier": -1.0}, r"`noise_multiplier` must be a finite number >= 0"),
        ({"expected_batch_size": 0}, "expected_batch_size"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
        ({"inner": keras.optimizers.SGD(gradient_accumulation_steps=2)}, "Pass grad.* to DPOpt"),
        ({"inner": keras.optimizers.SGD(loss_scale_factor=8.0)}, "loss_scale_factor"),
        ({"inner": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())}, "must not wrap"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _optimizer(options.pop("inner", None), **options)


def test_inner_optimizer_of_a_wrong_type_is_named():
    with pytest.raises((TypeError, ValueError), match="optimizer"):
        ms.DPOptimizer(3, l2_norm_clip=1.0, noise_multiplier=1.0)
