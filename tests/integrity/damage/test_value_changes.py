"""Counts and sizes of differences, against plain arithmetic and at the edges of each type."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_modelsec.integrity.damage.tamper_report import value_changes


def compare(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return value_changes(one.tobytes(), other.tobytes(), one.dtype.name)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_floats(dtype):
    one = np.array([0, 3, 4, 1], dtype)
    other = np.array([0, 3.5, 4, -1], dtype)
    found = compare(one, other)
    assert (found.values, found.changed, found.max_abs, found.non_finite) == (4, 2, 2.0, 0)
    assert found.l2 == pytest.approx(4.25**0.5)
    assert found.relative == pytest.approx((4.25 / 26) ** 0.5)


@given(st.data())
def test_integers_of_every_width_do_not_overflow(data):
    name = data.draw(st.sampled_from(["int8", "uint8", "int32", "int64", "uint64"]))
    limits = np.iinfo(name)
    one, other = (data.draw(st.integers(int(limits.min), int(limits.max))) for _ in range(2))
    found = compare(np.array([one], name), np.array([other], name))
    assert found.changed == (one != other)
    assert found.max_abs == pytest.approx(abs(one - other))


def test_nan_infinity_and_negative_zero_are_compared_by_their_bits():
    one = np.array([np.nan, np.nan, 1.0, 0.0, np.inf], "float32")
    other = np.array([np.nan, 1.0, np.inf, -0.0, np.inf], "float32")
    found = compare(one, other)
    assert (found.changed, found.non_finite, found.max_abs) == (3, 2, 0.0)


def test_differences_larger_than_a_float_leave_valid_json():
    found = compare(np.array([1e308, 1e308, 1e308]), np.array([-1e308, 0, 0]))
    assert found.non_finite == 1
    assert "Infinity" not in json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_changed_and_nothing_there():
    same = compare(np.ones(3, "float32"), np.ones(3, "float32"))
    assert (same.changed, same.max_abs, same.l2) == (0, 0.0, 0.0)
    assert compare(np.zeros(2, "float32"), np.ones(2, "float32")).relative is None
    assert compare(np.zeros(0, "float32"), np.zeros(0, "float32")).values == 0


@pytest.mark.parametrize(
    ("one", "other", "dtype"),
    [(b"1234", b"12345678", "float32"), (b"123", b"123", "float32"), (b"1234", b"1234", "strange")],
)
def test_what_cannot_be_read_as_numbers_is_not_compared(one, other, dtype):
    assert value_changes(one, other, dtype) is None


def test_large_tensors_are_added_up_over_blocks():
    one = np.zeros((1 << 20) + 5, "int8")
    other = one.copy()
    other[[0, 1 << 19, -1]] = 3, 4, 12
    found = compare(one, other)
    assert (found.changed, found.max_abs, found.l2) == (3, 12.0, 13.0)
