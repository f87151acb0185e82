"""The code against its definition, computed independently, and against its promise."""

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.integrity.parity.erasure_code import ErasureCode

LENGTH = 4096


def times(a, b):
    """Multiplication in GF(2**8) with polynomial 0x11D, bit by bit."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a):
    return next(b for b in range(1, 256) if times(a, b) == 1)


def columns(count, seed=0):
    data = random.Random(seed).randbytes(count * LENGTH)
    return [data[i * LENGTH : (i + 1) * LENGTH] for i in range(count)]


@pytest.mark.parametrize(("data", "parity"), [(1, 1), (3, 2), (100, 5), (100, 100), (155, 100)])
def test_parity_is_what_the_format_defines(data, parity):
    given_columns = columns(data)
    encoded = ErasureCode(data, parity).encode(b"".join(given_columns))
    assert len(encoded) == parity
    for row in {0, parity - 1}:
        for position in (0, 1, LENGTH - 1):
            expected = 0
            for j, column in enumerate(given_columns):
                expected ^= times(inverse((data + row) ^ j), column[position])
            assert encoded[row][position] == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_columns_come_back_from_as_many_parity_columns(draws):
    data = draws.draw(st.integers(1, 100), "data")
    parity = draws.draw(st.integers(1, 12), "parity")
    most = min(data, parity)
    lost = sorted(draws.draw(st.sets(st.integers(0, data - 1), min_size=1, max_size=most)))
    size = len(lost)
    rows = draws.draw(st.permutations(range(parity)))[:size]
    good = columns(data, seed=data)
    code = ErasureCode(data, parity)
    encoded = code.encode(b"".join(good))
    damaged = b"".join(bytes(LENGTH) if i in lost else column for i, column in enumerate(good))
    restored = code.restore(damaged, lost, {row: encoded[row] for row in rows})
    assert [column.tobytes() for column in restored] == [good[i] for i in lost]


def test_restored_column_depends_on_the_parity_it_is_made_of():
    good = columns(4)
    code = ErasureCode(4, 2)
    encoded = code.encode(b"".join(good))
    wrong = np.frombuffer(encoded[0], np.uint8).copy()
    wrong[7] ^= 1
    damaged = bytes(LENGTH) + b"".join(good[1:])
    (restored,) = code.restore(damaged, [0], {0: wrong.data})
    assert restored.tobytes() != good[0]


def test_too_little_parity_is_refused():
    with pytest.raises(ValueError, match=r"a column for each lost one\. Received: 1 for 2"):
        ErasureCode(4, 2).restore(bytes(4 * LENGTH), [0, 1], {1: bytes(LENGTH)})


@pytest.mark.parametrize("size", [0, 1, 4 * LENGTH - 1, 5 * LENGTH])
def test_columns_of_no_even_length_are_refused(size):
    with pytest.raises(ValueError, match=rf"4 times 4096 bytes\. Received: {size}"):
        ErasureCode(4, 2).encode(bytes(size))


def test_missing_package_is_an_import_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-modelsec\[repair\]'"):
        ErasureCode(4, 2)
