"""The claim that matters in court: p holds for any weights made without the key."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_modelsec.watermark import WatermarkError, derivation, generate_key, spreading
from keras_modelsec.watermark.detection import detect, log10_bound, normalise
from keras_modelsec.watermark.keys import SecretKey

KEYS = 2000
_rng = np.random.default_rng(7)


def _sparse(shape):
    weights = np.zeros(shape)
    weights.flat[::97] = 1.0
    return weights


def _low_rank(shape):
    return np.outer(_rng.normal(size=shape[0]), _rng.normal(size=shape[1]))


def _giant(shape):
    weights = _rng.normal(size=shape)
    weights[0, 0] = 1e30
    return weights


def _other_mark(shape):
    secret = SecretKey(generate_key())
    return derivation.signs(secret, shape, 0).reshape(shape).astype(float)


STRUCTURES = {
    "gaussian": lambda shape: _rng.normal(size=shape),
    "one_weight": lambda shape: np.eye(1, shape[0] * shape[1]).reshape(shape),
    "constant": np.ones,
    "sparse": _sparse,
    "low_rank": _low_rank,
    "heavy_tail": lambda shape: _rng.standard_cauchy(size=shape),
    "giant": _giant,
    "another_key's_mark": _other_mark,
    "int8": lambda shape: _rng.integers(-127, 128, shape).astype(np.int8),
}


def _p_values(weights, keys=KEYS, **options):
    reports = [detect(weights, SecretKey(generate_key()), **options) for _ in range(keys)]
    return 10.0 ** np.array([report.log10_p for report in reports])


def _assert_super_uniform(p_values):
    for alpha in (0.5, 0.2, 0.1, 0.05, 0.01, 0.001):
        # 1e-6: this test may fail by chance once in some hundred thousand runs.
        limit = stats.binom.isf(1e-6, len(p_values), alpha)
        assert np.sum(p_values <= alpha) <= limit, f"P(p <= {alpha}) is too large"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_p_is_valid_for_any_innocent_weights(structure):
    weights = [STRUCTURES[structure]((20, 27))]
    _assert_super_uniform(_p_values(weights))


def test_p_is_valid_though_the_search_picks_layers_and_sequences():
    shapes = [(20, 27), (20, 27), (20, 27), (30, 20), (10, 60)]
    _assert_super_uniform(_p_values([_rng.normal(size=shape) for shape in shapes], 800))


def test_p_is_valid_for_one_kernel_repeated():
    kernel = _rng.normal(size=(20, 27))
    _assert_super_uniform(_p_values([kernel] * 3, 800))


def test_p_is_valid_though_an_attacker_picks_layers_after_the_fact():
    weights = [_rng.normal(size=(20, 26 + i)) for i in range(4)]
    subsets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n)]
    best = []
    for _ in range(150):
        secret = SecretKey(generate_key())
        best.append(min(detect(weights, secret, allowed=s).log10_p for s in subsets))
    _assert_super_uniform(10.0 ** np.array(best))


@pytest.mark.parametrize(("declared", "valid"), [(60, True), (1, False)])
def test_trying_keys_is_paid_for_when_declared_and_shows_when_not(declared, valid):
    # The second case is the control: it shows that the check above can fail.
    weights = [_rng.normal(size=(20, 27))]
    best = np.array([_p_values(weights, 60, tried=declared).min() for _ in range(60)])
    if valid:
        _assert_super_uniform(best)
    else:
        with pytest.raises(AssertionError, match="too large"):
            _assert_super_uniform(best)


def test_z_is_standard_and_bits_are_coin_flips_under_a_random_key():
    weights = [_rng.normal(size=(25, 40))]
    reports = [detect(weights, SecretKey(generate_key())) for _ in range(KEYS)]
    z = np.array([report.layers[0].z for report in reports])
    assert abs(z.mean()) < 5 / math.sqrt(KEYS)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * KEYS)
    errors = np.mean([report.bit_error_rate for report in reports])
    assert abs(errors - 0.5) < 5 * 0.5 / math.sqrt(KEYS * 127)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_hoeffding_bound_holds_for_every_sign_vector_of_a_small_kernel(seed):
    values = np.random.default_rng(seed).exponential(size=10) ** 3
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    z = np.sort(signs @ values / np.linalg.norm(values))[::-1]
    tail = np.arange(1, 1025) / 1024
    # Equal z's share the largest rank among them.
    for value in np.unique(z[z > 1e-9]):
        assert tail[z >= value - 1e-12].max() <= 10 ** log10_bound(value - 1e-12, 1) + 1e-9


def test_bound_is_capped_and_multiplied_by_the_tests():
    assert log10_bound(-5.0, 1) == 0
    assert log10_bound(0.0, 1) == 0
    assert log10_bound(1.0, 10**6) == 0
    assert log10_bound(10.0, 1) == pytest.approx(-50 / math.log(10))
    assert log10_bound(10.0, 100) == pytest.approx(-50 / math.log(10) + 2)
    assert log10_bound(1e4, 48**480) == pytest.approx(-5e7 / math.log(10) + 480 * math.log10(48))


def _exhaustive(weights, secret, sequences):
    """All z's, by the definition, of every choice of tensors and sequences."""
    results = []
    for choice in itertools.product(*[[None, *range(count)] for count in sequences]):
        totals = {}
        for tensor, index in zip(weights, choice, strict=True):
            if index is not None:
                carrier = (tensor.shape, index)
                totals[carrier] = totals.get(carrier, 0) + normalise(tensor)
        if totals:
            dot = sum(derivation.signs(secret, *c) @ total for c, total in totals.items())
            results.append(dot / math.sqrt(sum(t @ t for t in totals.values())))
    return results


def test_tests_counts_every_choice_and_the_report_is_one_of_them(key):
    weights = [_rng.normal(size=shape) for shape in [(20, 30), (20, 30), (25, 30)]]
    secret = SecretKey(key)
    for tensor, index in zip(weights, (1, 0, 0), strict=True):
        signs = derivation.signs(secret, tensor.shape, index)
        tensor += 0.3 * signs.reshape(tensor.shape)
    report = detect(weights, secret)
    every = _exhaustive(weights, secret, [2, 2, 1])
    assert report.tests == len(every) == 17
    assert report.z == pytest.approx(max(every))
    assert report.log10_p == pytest.approx(-(report.z**2) / 2 / math.log(10) + math.log10(17))
    assert [layer.index for layer in report.layers] == [1, 0, 0]
    assert all(layer.used for layer in report.layers)


def test_only_marked_layer_is_used_and_found_among_many(key):
    weights = [_rng.normal(size=(40, 50 + i)) for i in range(10)]
    signs = derivation.signs(SecretKey(key), (40, 53), 0).reshape(40, 53)
    weights[3] = weights[3] + 0.4 * signs
    report = detect(weights, SecretKey(key))
    assert report.is_evidence
    assert report.tests == 2**10 - 1
    assert report.layers[3].used
    assert report.layers[3].z == max(layer.z for layer in report.layers)


def test_shared_sequence_is_read_at_full_strength(key):
    signs = derivation.signs(SecretKey(key), (30, 40), 0).reshape(30, 40)
    weights = [_rng.normal(size=(30, 40)) + 0.3 * signs for _ in range(3)]
    report = detect(weights, SecretKey(key))
    expected = 0.3 * math.sqrt(3 * 1200 / (1 + 0.3**2))
    assert report.z == pytest.approx(expected, abs=5)


def test_one_planted_giant_weight_does_not_hide_the_mark(key):
    secret = SecretKey(key)
    weights = spreading.embed(
        _rng.normal(size=(40, 50)), derivation.signs(secret, (40, 50), 0).reshape(40, 50), 0.5
    )
    before = detect([weights], secret)
    weights[7, 9] = 1e30
    after = detect([weights], secret)
    assert after.z > before.z - 1
    assert before.is_evidence
    assert after.is_evidence


def test_reading_does_not_depend_on_the_unit_of_the_weights(key):
    weights = _rng.normal(size=(30, 40))
    z = [detect([weights * unit], SecretKey(key)).z for unit in (1.0, 1e-300, 1e300, 2.5)]
    np.testing.assert_allclose(z, z[0])


def test_all_zero_weights_say_nothing(key):
    report = detect([np.zeros((30, 40))], SecretKey(key))
    assert (report.z, report.log10_p, report.bit_error_rate) == (0.0, 0.0, 1.0)
    assert not report.is_evidence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(key, bad):
    weights = np.ones((30, 40))
    weights[3, 4] = bad
    with pytest.raises(WatermarkError, match=r"must be finite.*'dense/kernel'"):
        detect([weights], SecretKey(key), names=["dense/kernel"])


def test_fewer_allowed_layers_do_not_make_the_correction_smaller(key):
    weights = [_rng.normal(size=(20, 30 + i)) for i in range(4)]
    assert detect(weights, SecretKey(key), allowed=[1]).tests == 15
    assert detect(weights, SecretKey(key)).tests == 15
    assert detect(weights, SecretKey(key), indices=3).tests == 4**4 - 1
    assert detect(weights, SecretKey(key), tried=10).tests == 150


def test_report_is_readable_by_its_owner(key):
    signs = derivation.signs(SecretKey(key), (30, 40), 0).reshape(30, 40)
    report = detect([signs * 1.0], SecretKey(key), names=["dense/kernel"])
    text = str(report)
    assert "the mark of this key is there" in text
    assert "bit error rate  0.000 (0 of 127 bits)" in text
    assert "dense/kernel (30x40)" in text
    assert key.hex() not in text
    assert "no evidence" in str(detect([np.ones((30, 40))], SecretKey(key)))
    many = detect([np.ones((16, 32))] * 25, SecretKey(key))
    assert f"about 1e{int(25 * math.log10(26))}" in str(many)
