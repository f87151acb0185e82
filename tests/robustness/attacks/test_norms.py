import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from keras.random import SeedGenerator

from keras_modelsec.robustness.attacks.norms import get_norm

# Smaller numbers are denormal in float32, and zero to a processor that flushes them.
SMALLEST = 2.0**-126

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
        np.testing.assert_allclose(
            np.asarray(new)[inside], np.asarray(old)[inside], rtol=1e-5, atol=SMALLEST
        )


@pytest.mark.parametrize("name", ["linf", "l2"])
@settings(deadline=None, max_examples=40)
@given(BATCH)
def test_direction_has_norm_one_and_maximises_the_linear_gain(name, gradient):
    norm = get_norm(name)
    direction = norm.direction([ops.convert_to_tensor(gradient)])
    nonzero = np.abs(gradient).reshape(3, -1).max(1) >= SMALLEST
    np.testing.assert_allclose(size(name, direction)[nonzero], 1.0, rtol=1e-4)
    assert (size(name, direction)[~nonzero] == 0).all()
    gain = (np.asarray(direction[0]) * gradient).reshape(3, -1).sum(1)
    # By Hoelder, the most a perturbation of norm 1 can gain is the dual norm of the gradient.
    flat = gradient.reshape(3, -1).astype("float64")
    best = np.abs(flat).sum(1) if name == "linf" else np.sqrt((flat**2).sum(1))
    np.testing.assert_allclose(gain, best, rtol=1e-4, atol=1e-30)


def tensor(values, dtype):
    """Converted by NumPy, since TensorFlow's casts flush."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return ops.convert_to_tensor(np.asarray(values, "float64").astype(kind))


def directions(name, gradient):
    """Eagerly and in a graph, as float64."""
    direction = get_norm(name).direction
    for function in (direction, tf.function(direction)):
        yield np.asarray(function([gradient])[0]).astype("float64")


# One number, and enough for a processor's vector instructions, which flush where others do not.
@pytest.mark.parametrize("size", [1, 4, 37])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", ["linf", "l2"])
def test_denormal_gradient_counts_as_zero_on_every_processor(name, dtype, size):
    for value in (1.5e-45, -1e-40, SMALLEST * 0.99):
        gradient = tensor(np.full((1, size), value), dtype)
        for found in directions(name, gradient):
            np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_xla_gives_the_same_directions(name):
    gradient = np.array([[1.5e-45] * 4, [0.0] * 4, [SMALLEST] * 4, [1e-40, 3.0, 0.0, 0.0]])
    compiled = tf.function(get_norm(name).direction, jit_compile=True)
    found = np.asarray(compiled([tensor(gradient, "float32")])[0])
    one = 1.0 if name == "linf" else 0.5
    np.testing.assert_allclose(found, [[0] * 4, [0] * 4, [one] * 4, [0, 1, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 37])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", ["linf", "l2"])
def test_smallest_normal_gradient_has_a_direction_and_denormals_beside_it_none(name, dtype, size):
    gradient = np.full((1, size), SMALLEST)
    gradient[0, size // 2] = -SMALLEST * 2
    expected = np.sign(gradient) if name == "linf" else gradient / np.linalg.norm(gradient)
    for found in directions(name, tensor(gradient, dtype)):
        np.testing.assert_allclose(found, expected, rtol=0.01)
    for found in directions(name, tensor([[1.0, 1e-40]], "float32")):
        np.testing.assert_array_equal(found, [[1.0, 0.0]])


@pytest.mark.parametrize("value", [2.0**-24, 2.0**-15, 2.0**15])
@pytest.mark.parametrize("name", ["linf", "l2"])
def test_denormals_of_float16_are_gradients_like_others(name, value):
    """Half of what a float16 model's gradients hold is that small, and no processor flushes it."""
    gradient = tensor([[value, 0.0, -value, 0.0]], "float16")
    expected = np.array([[1.0, 0.0, -1.0, 0.0]]) / (1 if name == "linf" else np.sqrt(2))
    for found in directions(name, gradient):
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["linf", "l2"])
def test_zero_gradient_gives_zero_in_every_precision(name, dtype):
    for found in directions(name, ops.zeros((2, 9), dtype)):
        np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-13, 1e25])
def test_l2_projection_survives_perturbations_whose_squares_do_not(scale):
    delta = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], "float32") * np.float32(scale)
    (found,) = get_norm("l2").project([ops.convert_to_tensor(delta)], np.float32(scale))
    expected = np.array([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]) * scale
    np.testing.assert_allclose(np.asarray(found, "float64"), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-45, 1e-40, SMALLEST, 1e-20, 1e-7, 0.5])
@pytest.mark.parametrize("name", ["linf", "l2"])
def test_ball_of_every_radius_holds_its_starts_and_its_projections(name, epsilon, dtype):
    """Of a radius too small for a number of that precision only the centre is left."""
    norm, like = get_norm(name), [ops.ones((3, 5), dtype)]
    starts = [ops.cast(s, "float64") for s in norm.random_start(like, epsilon, SeedGenerator(0))]
    projected = [ops.cast(p, "float64") for p in norm.project(like, epsilon)]
    # The numbers of bfloat16 are 1/128 apart, the smallest of float16 6e-8.
    limit = epsilon * 1.01 + (1e-7 if dtype == "float16" else SMALLEST)
    assert (size(name, starts) <= limit).all()
    assert (size(name, projected) <= limit).all()


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
