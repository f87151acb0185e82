"""An attack that has nothing to follow says so, from any start; honest models stay unaccused."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_modelsec.robustness import RobustnessMonitor
from keras_modelsec.robustness.attacks import (
    FGSM,
    PGD,
    GradientVanishedWarning,
    RandomNoise,
    Threat,
)

ATTACKS = {
    "fgsm": FGSM(0.2),
    "fgsm_random_start": FGSM(0.2, random_start=True),
    "pgd": PGD(0.2, steps=3),
    "pgd_loop": PGD(0.2, steps=12),
    "pgd_restarts": PGD(0.2, steps=3, restarts=3),
    "pgd_l2": PGD(0.8, norm="l2", steps=3),
    "pgd_without_random_start": PGD(0.2, steps=3, random_start=False),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


def on_top_of(model, before=None, after=None):
    """The model with something before its inputs or behind its outputs."""
    inputs = keras.Input((64,))
    outputs = model(inputs if before is None else before(inputs))
    return keras.Model(inputs, outputs if after is None else after(outputs))


@pytest.mark.parametrize("eager", [False, True])
def test_input_rounded_away_is_reported_for_every_example(attack, eager, blobs, linear_model):
    model = on_top_of(linear_model(), before=lambda x: ops.round(x * 4) / 4)
    model.compile(loss=None, run_eagerly=eager)
    with pytest.warns(GradientVanishedWarning, match="zero for 96 of 96 examples"):
        found = attack(model, blobs.x, blobs.y)
    if attack.random_start:
        assert not np.array_equal(found, blobs.x)
    assert attack.run(model, blobs.x, blobs.y, batch_size=50).still.all()


def test_only_the_examples_without_a_gradient_are_counted(attack, blobs, linear_model):
    """Examples of the first kind pass a threshold that the gradient does not."""
    inputs = keras.Input((64,))
    dark = ops.cast(ops.mean(inputs, axis=1, keepdims=True) < 0.5, "float32")
    seen = dark * ops.stop_gradient(inputs) + (1.0 - dark) * inputs
    model = keras.Model(inputs, linear_model()(seen))
    x = blobs.x.copy()
    x[:30], x[30:] = x[:30] * 0.2, 1.0 - x[30:] * 0.2
    still = attack.run(model, x, blobs.y).still
    np.testing.assert_array_equal(still, np.arange(96) < 30)


def test_example_with_a_gradient_at_one_step_alone_is_not_counted(blobs, linear_model):
    """Only on a grid of clean points there is a gradient, and the first step leaves it."""
    clean = np.round(blobs.x * 64) / 64

    def gradient_on_the_grid(x):
        on_grid = ops.all(ops.equal(x * 64, ops.round(x * 64)), axis=1, keepdims=True)
        on_grid = ops.cast(on_grid, "float32")
        return on_grid * x + (1.0 - on_grid) * ops.stop_gradient(x)

    model = on_top_of(linear_model(), before=gradient_on_the_grid)
    attack = PGD(0.2, steps=3, step_size=0.01, random_start=False)
    assert not attack.run(model, clean, blobs.y).still.any()
    assert PGD(0.2, steps=3).run(model, clean, blobs.y).still.all()


def test_not_a_number_is_no_gradient(attack, blobs, linear_model):
    model = on_top_of(linear_model(), after=lambda z: z + ops.sqrt(0.0 * ops.abs(z)))
    assert attack.run(model, blobs.x, blobs.y).still.all()


def norm_at_zero(x):
    """Nothing but the first features in a root whose gradient at zero is no number."""
    first = x[:, :8] + ops.sqrt(ops.square(0.0 * x[:, :8]))
    return ops.concatenate([first, x[:, 8:]], axis=1)


@pytest.mark.parametrize("attack", [FGSM(0.2), PGD(0.2, steps=3)])
def test_gradient_that_is_no_number_for_some_features_is_reported(attack, blobs, linear_model):
    """Those features stay where they are, and the model looks more robust than it is."""
    model = on_top_of(linear_model(), before=norm_at_zero)
    with pytest.warns(GradientVanishedWarning, match="not finite for features"):
        assert not np.array_equal(attack(model, blobs.x, blobs.y), blobs.x)
    assert attack.run(model, blobs.x, blobs.y).still.all()


def test_feature_that_may_not_change_needs_no_gradient(blobs, linear_model):
    model = on_top_of(linear_model(), before=norm_at_zero)
    threat = Threat("linf", 0.2, mask=np.arange(64) >= 8)
    result = PGD(threat=threat, steps=3).run(model, blobs.x, blobs.y)
    assert not result.still.any()
    assert result.fooled.any()


def test_gradient_of_an_output_that_never_changes_leads_nowhere(blobs, linear_model):
    """A straight-through layer: it has a gradient, and one input for all that is near."""

    def rounded(x):
        return x + ops.stop_gradient(ops.round(x) - x)

    model = on_top_of(linear_model(scale=50.0), before=lambda x: rounded(x * 0.25))
    with pytest.warns(GradientVanishedWarning, match="loss never changed"):
        PGD(0.05, steps=5)(model, blobs.x, blobs.y)


def test_monitor_logs_the_share_that_was_not_attacked(blobs, linear_model):
    model = on_top_of(linear_model(), before=lambda x: ops.round(x * 4) / 4)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    monitor = RobustnessMonitor(blobs.x, blobs.y, [PGD(0.1, steps=2), RandomNoise(0.1)])
    with pytest.warns(GradientVanishedWarning, match="96 of 96"):
        history = model.fit(blobs.x, blobs.y, verbose=0, callbacks=[monitor]).history
    assert history["not_attacked_pgd_linf"] == [1.0]
    assert "not_attacked_random_noise_linf" not in history
    assert monitor.results["pgd_linf"].not_attacked == 96


def corner():
    """Every feature at its bound, with the gradient pointing out: nothing may move."""
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    model.set_weights([np.tile([1.0, -1.0], (64, 1)), np.zeros(2)])
    return model, np.zeros((5, 64), "float32"), np.zeros(5, "int64") + 1


def test_point_that_may_not_move_is_no_vanished_gradient():
    model, x, y = corner()
    attack = PGD(0.1, steps=3, random_start=False, targeted=True)
    result = attack.run(model, x, y)
    np.testing.assert_array_equal(result.x, x)
    assert not result.still.any()


@pytest.mark.parametrize("scale", [1.0, 50.0, 5000.0])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_honest_model_is_not_accused(attack, scale, activation, blobs, linear_model):
    model = linear_model(activation, scale=scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, blobs.x, blobs.y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_zero_and_attacks_without_steps_count_nothing(norm, blobs, linear_model):
    model = on_top_of(linear_model(), before=ops.round)
    for attack in (PGD(0.0, norm=norm, steps=2), RandomNoise(0.1, norm=norm)):
        assert not attack.run(model, blobs.x, blobs.y).still.any()
