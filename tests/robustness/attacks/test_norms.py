import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from keras.random import SeedGenerator

from keras_modelsec.robustness.attacks.norms import get_norm

VALUES = st.floats(-100, 100, width=32)
BATCH = arrays(np.float32, (3, 2, 2), elements=VALUES)


def size(name, deltas):
    flat = np.concatenate([np.asarray(d).reshape(len(d), -1) for d in deltas], axis=1)
    flat = flat.astype("float64")
    return np.abs(flat).max(1) if name == "linf" else np.sqrt((flat**2).sum(1))


@pytest.mark.parametrize("name", ["linf", "l2"])
@settings(deadline=None, max_examples=40)
@given(BATCH, arrays(np.float32, (3, 5), elements=VALUES), st.floats(0, 50, width=32))
def test_projection_ends_in_the_ball_and_leaves_what_is_inside(name, first, second, epsilon):
    deltas = [ops.convert_to_tensor(first), ops.convert_to_tensor(second)]
    before = size(name, deltas)
    projected = get_norm(name).project(deltas, epsilon)
    assert (size(name, projected) <= epsilon * (1 + 1e-5) + 1e-6).all()
    for old, new in zip(deltas, projected, strict=True):
        inside = before <= epsilon * (1 - 1e-5)
        np.testing.assert_allclose(np.asarray(new)[inside], np.asarray(old)[inside], rtol=1e-5)


@pytest.mark.parametrize("name", ["linf", "l2"])
@settings(deadline=None, max_examples=40)
@given(BATCH)
def test_direction_has_norm_one_and_maximises_the_linear_gain(name, gradient):
    norm = get_norm(name)
    direction = norm.direction([ops.convert_to_tensor(gradient)])
    nonzero = np.abs(gradient).reshape(3, -1).max(1) > 0
    np.testing.assert_allclose(size(name, direction)[nonzero], 1.0, rtol=1e-4)
    assert (size(name, direction)[~nonzero] == 0).all()
    gain = (np.asarray(direction[0]) * gradient).reshape(3, -1).sum(1)
    # By Hoelder, the most a perturbation of norm 1 can gain is the dual norm of the gradient.
    flat = gradient.reshape(3, -1).astype("float64")
    best = np.abs(flat).sum(1) if name == "linf" else np.sqrt((flat**2).sum(1))
    np.testing.assert_allclose(gain, best, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_l2_direction_survives_gradients_whose_squares_do_not(scale):
    gradient = np.array([[3.0, 4.0]], "float32") * np.float32(scale)
    direction = get_norm("l2").direction([ops.convert_to_tensor(gradient)])
    np.testing.assert_allclose(np.asarray(direction[0]), [[0.6, 0.8]], rtol=1e-5)


def test_l2_start_is_uniform_in_the_ball():
    deltas = get_norm("l2").random_start([ops.zeros((4000, 2))], 2.0, SeedGenerator(0))
    radii = size("l2", deltas)
    assert radii.max() <= 2.0 * (1 + 1e-6)
    # Half of a disc's area lies within 1 / sqrt(2) of its radius.
    assert abs((radii < 2.0 / np.sqrt(2)).mean() - 0.5) < 0.03


def test_linf_start_is_uniform_in_the_cube():
    (delta,) = get_norm("linf").random_start([ops.zeros((4000, 2))], 2.0, SeedGenerator(0))
    values = np.asarray(delta)
    assert np.abs(values).max() <= 2.0
    assert abs(values.mean()) < 0.06
    assert abs(values.std() - 2 / np.sqrt(3)) < 0.03


def test_unknown_norm_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"`norm` must be one of 'linf', 'l2'.*'l1'"):
        get_norm("l1")
