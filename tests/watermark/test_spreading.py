import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.watermark import spreading
from keras_modelsec.watermark.derivation import BITS, run_length

SHAPES = [(5, 127), (20, 50), (40, 32), (600, 16), (3, 3, 8, 9)]


def _case(shape, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    weights = (generator.normal(size=shape) * scale).astype("float32")
    return weights, generator.choice(np.array([-1, 1], np.int8), shape)


def _members(shape, bit):
    return np.flatnonzero(np.arange(np.prod(shape)) // run_length(shape) % BITS == bit)


def _reference_shortfall(weights, signs, strength):
    """Bit by bit, in float64."""
    flat, signs = weights.astype(np.float64).reshape(-1), signs.reshape(-1)
    residue = flat.copy()
    correlations = []
    for bit in range(BITS):
        members = _members(weights.shape, bit)
        correlation = np.mean(signs[members] * flat[members])
        residue[members] -= correlation * signs[members]
        correlations.append(correlation)
    scale = np.sqrt(np.mean(residue**2))
    return np.maximum(0, strength * scale - np.array(correlations))


@pytest.mark.parametrize("shape", SHAPES)
def test_shortfall_is_that_of_a_bit_by_bit_reference(shape):
    weights, signs = _case(shape)
    got = spreading.shortfall(weights, signs.astype("float32"), 0.4)
    np.testing.assert_allclose(got, _reference_shortfall(weights, signs, 0.4), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_weight_counts_for_the_bit_of_its_run(shape):
    values, _ = _case(shape)
    members = [_members(shape, bit) for bit in range(BITS)]
    expected = [values.reshape(-1)[m].sum() for m in members]
    np.testing.assert_allclose(spreading.sum_per_bit(values, shape), expected, atol=1e-4)
    np.testing.assert_array_equal(spreading.weights_per_bit(shape), [len(m) for m in members])
    per_bit = np.arange(BITS)
    given = spreading.spread(per_bit, shape).reshape(-1)
    assert all((given[m] == bit).all() for bit, m in enumerate(members))


@pytest.mark.parametrize("shape", SHAPES)
def test_penalty_gradient_pulls_each_weight_towards_its_sign_by_the_shortfall(shape):
    weights, signs = _case(shape)
    tensor = tf.constant(weights)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = spreading.penalty(tensor, signs.astype("float32"), 0.4, rate=0.25)
    pull = 0.25 * spreading.spread(_reference_shortfall(weights, signs, 0.4), shape)
    np.testing.assert_allclose(tape.gradient(value, tensor), -pull * signs, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from(SHAPES),
    strength=st.floats(0.01, 4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**16),
)
def test_embedded_weights_hold_every_bit_with_its_margin(shape, strength, scale, seed):
    weights, signs = _case(shape, seed, scale)
    marked = spreading.embed(weights, signs, strength)
    assert marked.dtype == np.float32
    tolerance = 1e-4 * scale * (1 + strength)
    assert _reference_shortfall(marked, signs, strength).max() <= tolerance
    # Nearest: only bits that fell short were moved, and along their signs alone.
    before = _reference_shortfall(weights, signs, strength)
    expected = weights + signs * spreading.spread(before, shape)
    np.testing.assert_allclose(marked, expected, atol=tolerance)


def test_penalty_is_zero_once_the_mark_is_there():
    weights, signs = _case((40, 50))
    before = spreading.penalty(weights, signs.astype("float32"), 0.5, 1.0)
    marked = spreading.embed(weights, signs, 0.5)
    after = spreading.penalty(marked, signs.astype("float32"), 0.5, 1.0)
    assert float(after) < 1e-8 < 1 < float(before)


def test_all_zero_weights_give_a_zero_penalty_and_a_finite_gradient():
    weights = tf.zeros((20, 30))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = spreading.penalty(weights, tf.ones((20, 30)), 0.5, 1.0)
    assert float(value) == 0
    assert np.isfinite(tape.gradient(value, weights)).all()


def test_default_strength_falls_with_size_and_aims_at_a_z_of_40():
    assert spreading.default_strength(512) == 0.5
    assert spreading.default_strength(100352) == pytest.approx(40 / np.sqrt(100352))


def test_only_kernels_of_512_weights_and_two_axes_carry():
    assert spreading.can_carry((16, 32))
    assert not spreading.can_carry((73, 7))
    assert not spreading.can_carry((4096,))
