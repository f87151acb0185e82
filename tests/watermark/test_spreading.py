import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.watermark import spreading
from keras_modelsec.watermark.derivation import BITS


def _signs(count, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), count)


def _reference_shortfall(weights, signs, strength):
    """Bit by bit, in float64."""
    weights = weights.astype(np.float64)
    residue = weights.copy()
    correlations = []
    for bit in range(BITS):
        members = np.arange(bit, weights.size, BITS)
        correlation = np.mean(signs[members] * weights[members])
        residue[members] -= correlation * signs[members]
        correlations.append(correlation)
    scale = np.sqrt(np.mean(residue**2))
    return np.maximum(0, strength * scale - np.array(correlations))


@pytest.mark.parametrize("count", [127 * 5, 640, 1000])
def test_shortfall_is_that_of_a_bit_by_bit_reference(count):
    weights = np.random.default_rng(1).normal(size=count).astype("float32")
    signs = _signs(count)
    got = spreading.shortfall(weights, signs.astype("float32"), 0.4)
    np.testing.assert_allclose(got, _reference_shortfall(weights, signs, 0.4), atol=1e-5)


def test_sum_per_bit_adds_every_127th_value():
    values = np.random.default_rng(0).normal(size=700).astype("float32")
    expected = [values[bit::BITS].sum() for bit in range(BITS)]
    np.testing.assert_allclose(spreading.sum_per_bit(values), expected, atol=1e-5)


def test_penalty_gradient_pulls_each_weight_towards_its_sign_by_the_shortfall():
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(1).normal(size=1000), "float32")
    signs = _signs(1000)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = spreading.penalty(weights, signs.astype("float32"), 0.4, rate=0.25)
    shortfall = _reference_shortfall(weights.numpy(), signs, 0.4)
    expected = -0.25 * np.resize(shortfall, 1000) * signs
    np.testing.assert_allclose(tape.gradient(value, weights), expected, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(512, 3000),
    strength=st.floats(0.01, 4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**16),
)
def test_embedded_weights_hold_every_bit_with_its_margin(count, strength, scale, seed):
    weights = (np.random.default_rng(seed).normal(size=count) * scale).astype("float32")
    signs = _signs(count, seed)
    marked = spreading.embed(weights, signs, strength)
    assert marked.dtype == np.float32
    assert _reference_shortfall(marked, signs, strength).max() <= 1e-4 * scale * (1 + strength)
    # Nearest: only bits that fell short were moved, and along their signs alone.
    before = _reference_shortfall(weights, signs, strength)
    expected = weights + signs * np.resize(before, count)
    np.testing.assert_allclose(marked, expected, atol=1e-4 * scale * (1 + strength))


def test_penalty_is_zero_once_the_mark_is_there():
    weights = np.random.default_rng(0).normal(size=(40, 50)).astype("float32")
    signs = _signs(2000)
    before = spreading.penalty(weights.reshape(-1), signs.astype("float32"), 0.5, 1.0)
    marked = spreading.embed(weights, signs, 0.5)
    after = spreading.penalty(marked.reshape(-1), signs.astype("float32"), 0.5, 1.0)
    assert float(after) < 1e-8 < 1 < float(before)


def test_all_zero_weights_give_a_zero_penalty_and_a_finite_gradient():
    import tensorflow as tf

    weights = tf.zeros(600)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = spreading.penalty(weights, _signs(600).astype("float32"), 0.5, 1.0)
    assert float(value) == 0
    assert np.isfinite(tape.gradient(value, weights)).all()


def test_default_strength_falls_with_size_and_aims_at_a_z_of_40():
    assert spreading.default_strength(512) == 0.5
    assert spreading.default_strength(100352) == pytest.approx(40 / np.sqrt(100352))


def test_only_kernels_of_512_weights_and_two_axes_carry():
    assert spreading.can_carry((16, 32))
    assert not spreading.can_carry((73, 7))
    assert not spreading.can_carry((4096,))
    assert keras.ops.shape(spreading.weights_per_bit(512))[0] == BITS
    assert spreading.weights_per_bit(513).sum() == 513
