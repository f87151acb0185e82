"""The claim that matters in court: p holds for any weights made without the key."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark import derivation, spreading
from keras_modelsec.watermark.detection import (
    detect,
    log10_bound,
    log10_charge,
    normalise,
    tensor_digest,
)
from keras_modelsec.watermark.keys import SecretKey

KEYS = 2000
_rng = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _same_draws_in_every_run(monkeypatch):
    """For each test alone, whatever ran before it in this process."""
    monkeypatch.setitem(globals(), "_rng", np.random.default_rng(7))


def random_key():
    """As good as a generated one, and the same in every run: none fails by chance."""
    return _rng.bytes(32)


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
    secret = SecretKey(random_key())
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
    reports = [detect(weights, SecretKey(random_key()), **options) for _ in range(keys)]
    return 10.0 ** np.array([report.log10_p for report in reports])


def _assert_super_uniform(p_values):
    for alpha in (0.5, 0.2, 0.1, 0.05, 0.01, 0.001):
        # 1e-6: of a million seeds, a few would fail by chance.
        limit = stats.binom.isf(1e-6, len(p_values), alpha)
        assert np.sum(p_values <= alpha) <= limit, f"P(p <= {alpha}) is too large"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_p_is_valid_for_any_innocent_weights(structure):
    weights = [STRUCTURES[structure]((20, 27))]
    _assert_super_uniform(_p_values(weights))


def test_p_is_valid_where_copies_cancel_but_for_denormal_differences():
    # In float64 the squares of these differences round to nothing, and z would have no bound.
    tiny = np.full(2047, 1.1e-162)
    tiny[0] = 1.7e-162
    big = np.ones(2049)
    weights = [np.append(big, tiny).reshape(2, -1), np.append(-big, tiny).reshape(2, -1)]
    _assert_super_uniform(_p_values(weights, 200, indices=1))


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
        secret = SecretKey(random_key())
        best.append(min(detect(weights, secret, allowed=s).log10_p for s in subsets))
    _assert_super_uniform(10.0 ** np.array(best))


SMALL = [(16, 32), (32, 16), (8, 64), (2, 256), (3, 180), (4, 4, 32)]


def _many_shapes():
    return [_rng.normal(size=shape) for shape in SMALL * 3]


def _negatives():
    kernel = _rng.normal(size=(16, 32))
    return [kernel, -kernel, kernel, -kernel]


def _cancelling():
    kernel, rest = _rng.normal(size=(16, 32)), _rng.normal(size=(16, 32))
    return [kernel, -kernel + 1e-9 * rest, kernel + 1e-15 * rest, -kernel]


def _correlated():
    common = _rng.normal(size=(16, 32))
    return [common + 0.3 * _rng.normal(size=(16, 32)) for _ in range(6)]


def _one_kernel_in_many_shapes():
    kernel = _rng.normal(size=1024)
    shapes = [(32, 32), (16, 64), (64, 16), (8, 128), (4, 4, 64), (1, 1024), (1024, 1)]
    return [kernel.reshape(shape) for shape in shapes]


def _diluted():
    return [np.zeros((16, 32))] * 30 + [_rng.normal(size=(16, 32)) for _ in range(2)]


def _unequal_sizes():
    return [_rng.normal(size=(16, 32)) for _ in range(12)] + [_rng.normal(size=(64, 100))]


def _marks_of_another_key():
    secret = SecretKey(random_key())
    return [derivation.signs(secret, (16, 32), i).reshape(16, 32) * 1.0 for i in range(8)]


def _copies():
    kernels = [_rng.normal(size=(16, 32)) for _ in range(3)]
    return [sign * kernel for kernel in kernels for sign in (1, 3, -1, 0.5)]


def _planted_and_denormal():
    kernels = [_rng.normal(size=(16, 32)) for _ in range(4)]
    kernels[0][:8] = np.nan
    kernels[1] *= 5e-324
    kernels[2][::3] = np.inf
    return kernels


ARRANGED = [
    _many_shapes,
    _negatives,
    _cancelling,
    _correlated,
    _one_kernel_in_many_shapes,
    _diluted,
    _unequal_sizes,
    _marks_of_another_key,
    _planted_and_denormal,
    _copies,
]


@pytest.mark.parametrize("arrange", ARRANGED, ids=lambda f: f.__name__.strip("_"))
def test_p_is_valid_for_innocents_that_an_adversary_arranged(arrange):
    _assert_super_uniform(_p_values(arrange(), 200))


def test_the_search_without_its_price_would_not_be_valid():
    # The control for the tests around it: the best reading of one tensor, not charged.
    weights = _many_shapes()
    reports = [detect(weights, SecretKey(random_key())) for _ in range(100)]
    best = [max(abs(layer.z) for layer in report.layers) for report in reports]
    uncharged = np.array([log10_bound(z, 0.0) for z in best])
    with pytest.raises(AssertionError, match="too large"):
        _assert_super_uniform(10.0**uncharged)


@pytest.mark.long
@pytest.mark.parametrize("arrange", ARRANGED, ids=lambda f: f.__name__.strip("_"))
def test_p_is_valid_for_thousands_of_readings_of_arranged_innocents(arrange):
    _assert_super_uniform(_p_values(arrange(), 4000))


def test_p_is_valid_for_innocents_of_random_make():
    kinds = list(STRUCTURES.values())
    p_values = []
    for _ in range(1000):
        shapes = [SMALL[i] for i in _rng.integers(0, 3, _rng.integers(1, 7))]
        weights = [kinds[_rng.integers(len(kinds))]((s[0], s[1])) for s in shapes]
        p_values.append(10.0 ** detect(weights, SecretKey(random_key())).log10_p)
    _assert_super_uniform(np.array(p_values))


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
    reports = [detect(weights, SecretKey(random_key())) for _ in range(KEYS)]
    z = np.array([report.layers[0].z for report in reports])
    assert abs(z.mean()) < 5 / math.sqrt(KEYS)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * KEYS)
    errors = np.mean(
        [r.bit_error_rate if not r.layers[0].negated else 1 - r.bit_error_rate for r in reports]
    )
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
    assert log10_bound(-5.0, 0.0) == 0
    assert log10_bound(0.0, 0.0) == 0
    assert log10_bound(1.0, 6.0) == 0
    assert log10_bound(10.0, 0.0) == pytest.approx(-50 / math.log(10))
    assert log10_bound(10.0, 2.0) == pytest.approx(-50 / math.log(10) + 2)


def _readings(sequences):
    """Every choice of tensors, and for each a sequence and a sign; at least one tensor."""
    ways = [[None, *itertools.product(range(count), (1, -1))] for count in sequences]
    return [choice for choice in itertools.product(*ways) if any(choice)]


def _exhaustive(weights, secret, sequences):
    """The z and the charge, by the definition, of every reading."""
    results = []
    for choice in _readings(sequences):
        totals, taken = {}, []
        for tensor, way, count in zip(weights, choice, sequences, strict=True):
            if way is not None:
                carrier = (tensor.shape, way[0])
                totals[carrier] = totals.get(carrier, 0) + way[1] * normalise(tensor)
                taken.append(count)
        dot = sum(derivation.signs(secret, *c) @ total for c, total in totals.items())
        z = dot / math.sqrt(sum(t @ t for t in totals.values()))
        results.append((z, log10_charge(len(weights), taken)))
    return results


@pytest.mark.parametrize("sequences", [[1], [2, 2], [1, 2, 2], [3, 1, 3, 3], [1, 1, 1, 1, 1]])
def test_charges_of_all_readings_add_up_to_one(sequences):
    # The weighted Bonferroni inequality: this sum times alpha bounds P(p <= alpha).
    taken = [
        [count for count, way in zip(sequences, choice, strict=True) if way]
        for choice in _readings(sequences)
    ]
    total = sum(10 ** -log10_charge(len(sequences), counts) for counts in taken)
    assert total == pytest.approx(1)


def test_report_is_the_best_reading_there_is_and_is_charged_as_such(key):
    weights = [_rng.normal(size=shape) for shape in [(20, 30), (20, 30), (25, 30)]]
    secret = SecretKey(key)
    for tensor, index in zip(weights, (1, 0, 0), strict=True):
        signs = derivation.signs(secret, tensor.shape, index)
        tensor += 0.3 * signs.reshape(tensor.shape)
    report = detect(weights, secret)
    every = _exhaustive(weights, secret, [2, 2, 1])
    assert report.log10_p == pytest.approx(min(log10_bound(*reading) for reading in every))
    assert report.z == pytest.approx(max(z for z, _ in every))
    assert report.log10_tests == pytest.approx(math.log10(3 * 1 * 4 * 4 * 2))
    assert [layer.index for layer in report.layers] == [1, 0, 0]
    assert all(layer.used for layer in report.layers)


def test_only_marked_layer_is_used_and_found_among_many(key):
    weights = [_rng.normal(size=(40, 50 + i)) for i in range(10)]
    signs = derivation.signs(SecretKey(key), (40, 53), 0).reshape(40, 53)
    weights[3] = weights[3] + 0.4 * signs
    report = detect(weights, SecretKey(key))
    assert report.is_evidence
    assert report.log10_tests == pytest.approx(math.log10(10 * 10 * 2))
    assert [layer.used for layer in report.layers] == [i == 3 for i in range(10)]
    assert report.layers[3].z == max(layer.z for layer in report.layers)


def _marked_and(key, extra):
    secret = SecretKey(key)
    marked = [
        _rng.normal(size=(40, 50)) + 0.5 * derivation.signs(secret, (40, 50), i).reshape(40, 50)
        for i in range(3)
    ]
    return detect(marked, secret), detect([*extra[::2], *marked, *extra[1::2]], secret)


@pytest.mark.parametrize("make", [np.zeros, np.ones, lambda shape: _rng.normal(size=shape)])
@pytest.mark.parametrize("shape", [(40, 50), (16, 32), (2, 5000)])
def test_added_tensors_do_not_starve_the_mark(key, make, shape):
    before, after = _marked_and(key, [make(shape) for _ in range(200)])
    assert before.log10_p < -180
    # n, C(n, 3), and J of three tensors, each 203 at most.
    assert after.log10_p < before.log10_p + 3 * math.log10(203) + 9


def test_added_tensors_that_fit_by_luck_do_not_crowd_out_a_worn_mark(key):
    secret = SecretKey(key)
    signs = derivation.signs(secret, (200, 200), 0).reshape(200, 200)
    worn = _rng.normal(size=(200, 200)) + 0.1 * signs  # z = 20, a mean correlation of .1
    noise = [_rng.normal(size=(16, 32)) for _ in range(600)]  # the best of 600: above .1 each
    report = detect([*noise, worn], secret)
    assert np.mean([abs(fit.z) / math.sqrt(512) > 0.1 for fit in report.layers[:-1]]) > 0.9
    assert report.log10_p < -60
    assert report.layers[-1].used


@pytest.mark.parametrize(
    "copy",
    [
        lambda kernel: kernel,
        lambda kernel: -kernel * _rng.lognormal(),
        lambda kernel: kernel + 0.05 * _rng.normal(size=kernel.shape),
    ],
    ids=["exact", "scaled_and_negated", "noisy"],
)
def test_copies_of_small_marked_kernels_do_not_starve_the_mark(key, copy):
    secret = SecretKey(key)
    shape = (24, 24)
    marked = [
        _rng.normal(size=shape) + 0.45 * derivation.signs(secret, shape, i).reshape(shape)
        for i in range(8)  # z of about 10 each: none is evidence alone
    ]
    before = detect(marked, secret)
    after = detect([w for kernel in marked for w in [kernel, *map(copy, [kernel] * 20)]], secret)
    assert before.log10_p < -120
    # n, C(n, 8), and J of eight tensors, each 168 in place of 8.
    price = math.log10(168 / 8 * math.comb(168, 8)) + 8 * math.log10(168 / 8)
    assert after.log10_p < before.log10_p + price + 10


def test_zero_tensors_cost_nothing_where_their_shape_is_another(key):
    before, after = _marked_and(key, [np.zeros((16, 32))] * 200)
    assert after.log10_p == pytest.approx(before.log10_p)


def test_a_negated_kernel_is_read_as_its_negative(key):
    secret = SecretKey(key)
    marked = [
        _rng.normal(size=(40, 50)) + 0.5 * derivation.signs(secret, (40, 50), i).reshape(40, 50)
        for i in range(3)
    ]
    before = detect(marked, secret)
    after = detect([marked[0], -marked[1], -4 * marked[2]], secret)
    assert after.log10_p == pytest.approx(before.log10_p)
    assert after.bit_error_rate == before.bit_error_rate
    assert [layer.negated for layer in after.layers] == [False, True, True]
    assert "as its negative" in str(after)


def test_thousands_of_tensors_of_one_shape_are_read_and_shown(key):
    secret = SecretKey(key)
    weights = _rng.normal(size=(2500, 16, 32))
    weights[7] += derivation.signs(secret, (16, 32), 1234).reshape(16, 32)
    report = detect(list(weights), secret)
    assert report.is_evidence
    assert report.layers[7].used
    assert report.layers[7].index == 1234
    assert repr(report)
    assert str(report)


def test_report_names_the_tensors_it_read(key):
    weights = [_rng.normal(size=(16, 32)).astype("float32") for _ in range(2)]
    layers = detect(weights, SecretKey(key)).layers
    header = b"float32|16x32|"
    assert layers[0].digest == hashlib.sha256(header + weights[0].tobytes()).hexdigest()
    assert layers[0].digest != layers[1].digest
    big_endian = detect([weights[0].astype(">f4"), weights[1][:, ::-1]], SecretKey(key)).layers
    assert big_endian[0].digest == layers[0].digest
    assert big_endian[1].digest == tensor_digest(weights[1][:, ::-1].copy())


def test_names_from_a_file_reach_the_terminal_escaped(key):
    name = "\x1b[2Jkernel\nlog10 p -999" + "x" * 500
    text = str(detect([np.ones((16, 32))], SecretKey(key), names=[name]))
    assert "\x1b" not in text
    assert "\\x1b[2Jkernel\\nlog10 p -999" in text
    assert max(map(len, text.splitlines())) < 300


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
@pytest.mark.parametrize("planted", [1, 30, 1200])
def test_planted_values_that_are_not_finite_hide_nothing_else(key, bad, planted):
    secret = SecretKey(key)
    marked = [
        _rng.normal(size=(30, 40)) + 0.5 * derivation.signs(secret, (30, 40), i).reshape(30, 40)
        for i in range(2)
    ]
    before = detect(marked, secret)
    marked[1].flat[:planted] = bad
    after = detect(marked, secret)
    assert after.is_evidence
    assert after.z > 0.65 * before.z
    assert [layer.not_finite for layer in after.layers] == [0, planted]
    assert f"{planted} not finite, read as 0" in str(after)


def test_weights_that_are_not_finite_have_no_scale(key):
    with pytest.raises(WatermarkError, match=r"must be finite.*'dense/kernel'"):
        normalise(np.array([1.0, np.nan]), "dense/kernel")


def test_fewer_allowed_layers_do_not_make_the_correction_smaller(key):
    weights = [_rng.normal(size=(20, 30 + i)) for i in range(4)]
    signs = derivation.signs(SecretKey(key), (20, 31), 0).reshape(20, 31)
    weights[1] = weights[1] + 0.8 * signs

    def charge(**options):
        report = detect(weights, SecretKey(key), **options)
        assert [layer.used for layer in report.layers] == [False, True, False, False]
        return 10**report.log10_tests

    assert charge() == pytest.approx(4 * 4 * 2)
    assert charge(allowed=[1]) == pytest.approx(4 * 4 * 2)
    assert charge(indices=3) == pytest.approx(4 * 4 * 2 * 3)
    assert charge(tried=10) == pytest.approx(10 * 4 * 4 * 2)


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
    assert f"about 1e{int(math.log10(25) + 25 * math.log10(2 * 25))}" in str(many)
