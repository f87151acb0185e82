"""A threat says what may change, and refuses what it could not mean."""

import keras
import numpy as np
import pytest

from keras_modelsec.robustness.attacks import FGSM, PGD, Threat

X = np.random.default_rng(0).random((6, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 6)


def two_inputs():
    image, sound = keras.Input((4,), name="image"), keras.Input((4,), name="sound")
    joined = keras.layers.Concatenate()([image, sound])
    return keras.Model({"image": image, "sound": sound}, keras.layers.Dense(3)(joined))


@pytest.mark.parametrize("inputs", ["sound", ["sound"]])
def test_only_named_inputs_change(inputs):
    found = FGSM(threat=Threat("linf", 0.1, inputs=inputs))(
        two_inputs(), {"image": X, "sound": X}, Y
    )
    np.testing.assert_array_equal(found["image"], X)
    assert (found["sound"] != X).any()


def test_each_input_has_a_scale_of_its_own():
    threat = Threat("linf", 0.1, bounds=None, scale=[2.0, 0.5])
    found = FGSM(threat=threat)(two_inputs(), {"image": X, "sound": X}, Y)
    np.testing.assert_allclose(np.abs(found["image"] - X).max(), 0.2, rtol=1e-5)
    np.testing.assert_allclose(np.abs(found["sound"] - X).max(), 0.05, rtol=1e-5)


def test_random_starts_of_a_masked_l2_ball_fill_the_dimensions_that_are_left():
    """In one dimension the distance is uniform; in 400 it would be all but epsilon."""
    x = np.full((300, 400), 0.5, "float32")
    mask = np.arange(400) == 7
    threat = Threat("l2", 0.2, mask=mask)
    ball = threat.ball([keras.ops.convert_to_tensor(x)], keras.ops.convert_to_tensor(0.2))
    points = np.asarray(ball.random_start(keras.random.SeedGenerator(3))[0])
    distance = np.abs(points - x)[:, 7]
    assert (points[:, ~mask] == x[:, ~mask]).all()
    assert distance.max() <= 0.2 + 1e-6
    assert 0.07 < distance.mean() < 0.13


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": [0.5]}, ValueError, "`mask` must hold 0 and 1.*0.5"),
        ({"mask": np.array([0, 2])}, ValueError, "`mask` must hold 0 and 1.*2"),
        ({"mask": np.array(["a"])}, TypeError, "`mask` must be an array of 0 and 1"),
        ({"scale": 0.0}, ValueError, "`scale` must hold finite numbers above 0.*0"),
        ({"scale": np.array([1.0, np.nan])}, ValueError, "`scale` must hold finite.*nan"),
        ({"inputs": []}, ValueError, "`inputs` must be names"),
        ({"inputs": ["a", "a"]}, ValueError, "`inputs` must be names.*each once"),
        ({"epsilon": -1}, ValueError, "`epsilon` must be a finite number >= 0"),
        ({"bounds": (1, 0)}, ValueError, "`bounds` must be a pair"),
    ],
)
def test_bad_threat_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Threat(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": np.ones(3)}, ValueError, r"`mask` must broadcast to one example.*\(3,\)"),
        ({"mask": [None]}, ValueError, "`mask` must have one entry for each attacked input.*1"),
        ({"inputs": "smell"}, ValueError, "`inputs` must name inputs of the model.*'smell'"),
        ({"inputs": "number"}, TypeError, "floating-point numbers.*'number' of int"),
    ],
)
def test_threat_that_does_not_fit_the_inputs_is_refused(arguments, error, message):
    x = {"image": X, "sound": X, "number": Y}
    with pytest.raises(error, match=message):
        Threat("linf", 0.1, **arguments).attacked(x)


def test_threat_and_its_short_forms_are_not_given_together():
    with pytest.raises(ValueError, match="`threat` holds `epsilon` and `bounds` already"):
        PGD(0.1, bounds=None, threat=Threat("linf", 0.2))
    with pytest.raises(TypeError, match=r"`epsilon` must be a finite number.*None"):
        PGD(threat=Threat("linf"))
    with pytest.raises(TypeError, match=r"must be a keras_modelsec\.attacks\.Threat"):
        PGD(threat=0.1)


def test_config_of_before_threats_still_loads():
    """As files hold it: see the golden and adversarially compiled models of earlier versions."""
    config = {
        "module": "keras_modelsec.robustness.attacks.pgd",
        "class_name": "PGD",
        "config": {
            **{"epsilon": 0.1, "norm": "l2", "steps": 3, "step_size": None, "restarts": 1},
            **{"random_start": True, "targeted": False, "bounds": [0.0, 1.0], "name": "pgd_l2"},
            "seed": 4,
        },
        "registered_name": "keras_modelsec>PGD",
    }
    attack = keras.saving.deserialize_keras_object(config)
    expected = {**config["config"], "bounds": (0.0, 1.0)}
    assert attack.get_config() == expected
