"""A Reed-Solomon code: parity of equally long columns of bytes, and lost columns from parity.

Owns `pyeclib` (the `repair` extra), of which nothing but `encode` is used. Decoding is done here:
parity is linear, so encoding with zeros for the lost columns and adding the stored parity leaves a
small system of equations in the lost ones. That way no fragment header, which `pyeclib` would
believe, ever comes out of a file.

The code is systematic over GF(2**8) with polynomial 0x11D; parity row `p` is the sum over the data
columns `j` of `column[j] / ((data + p) XOR j)`, a Cauchy matrix, of which every square part can be
inverted: any `data` of the `data + parity` columns give back all.

Reference: J. Blomer and others, "An XOR-based erasure-resilient coding scheme", ICSI TR-95-048.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_COLUMNS = 255
ALIGNMENT = 4096  # columns of such a length are encoded without padding
_POLYNOMIAL = 0x11D
_BACKEND = "isa_l_rs_cauchy"


class ErasureCode:
    """Parity for `data` columns, of which as many may be lost as there are parity columns.

    Args:
        data: Number of data columns, >= 1.
        parity: Number of parity columns, >= 1; 255 columns in all at most.

    Raises:
        ImportError: If `pyeclib` is not installed.
    """

    def __init__(self, data: int, parity: int):
        self.data = data
        self.parity = parity
        self._driver = _driver_class()(k=data, m=parity, ec_type=_BACKEND)

    def encode(self, columns: bytes) -> list[memoryview]:
        """The parity columns of `data` columns of equal length, which follow one another.

        Args:
            columns: A multiple of `data` times 4096 bytes.
        """
        length, rest = divmod(len(columns), self.data * ALIGNMENT)
        length *= ALIGNMENT
        if rest or not length:
            raise ValueError(
                f"`columns` must have a multiple of {self.data} times {ALIGNMENT} bytes. "
                f"Received: {len(columns)}."
            )
        fragments = self._driver.encode(columns)[self.data :]
        return [memoryview(fragment)[-length:] for fragment in fragments]

    def restore(
        self, columns: bytes, lost: Sequence[int], parity: "Mapping[int, bytes | memoryview]"
    ) -> list[np.ndarray]:
        """The lost columns.

        Args:
            columns: All data columns, one after another, with zeros in place of the lost ones.
            lost: Which columns are lost.
            parity: Good parity columns by their numbers; as many as columns are lost.

        Returns:
            Arrays of uint8, in the order of `lost`.
        """
        rows = list(parity)[: len(lost)]
        if len(rows) < len(lost):
            raise ValueError(
                f"`parity` must hold a column for each lost one. Received: {len(rows)} for "
                f"{len(lost)}."
            )
        encoded = self.encode(columns)
        differences = [_array(encoded[row]) ^ _array(parity[row]) for row in rows]
        matrix = [[_inverse((self.data + row) ^ column) for column in lost] for row in rows]
        return [_combine(line, differences) for line in _inverted(matrix)]


def check_available() -> None:
    """Raises ImportError if `pyeclib` is not installed."""
    _driver_class()


def _driver_class() -> Any:
    try:
        from pyeclib.ec_iface import ECDriver
    except ImportError as error:
        raise ImportError(
            "Parity needs the package pyeclib, which is not installed. "
            "Install it with: pip install 'keras-modelsec[repair]'"
        ) from error
    return ECDriver


def _array(data: "bytes | memoryview") -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@functools.cache
def _tables() -> tuple[list[int], list[int]]:
    """Powers of the field's generator 2, twice in a row, and logarithms."""
    powers, logarithms, value = [0] * 510, [0] * 256, 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logarithms[value] = exponent
        value = value << 1 ^ (_POLYNOMIAL if value & 0x80 else 0)
    return powers, logarithms


def _multiply(a: int, b: int) -> int:
    powers, logarithms = _tables()
    return powers[logarithms[a] + logarithms[b]] if a and b else 0


def _inverse(a: int) -> int:
    powers, logarithms = _tables()
    return powers[255 - logarithms[a]]


@functools.cache
def _multiples(factor: int) -> np.ndarray:
    return np.array([_multiply(factor, value) for value in range(256)], np.uint8)


def _inverted(matrix: list[list[int]]) -> list[list[int]]:
    """The inverse over GF(2**8), by Gauss and Jordan; the matrix has one."""
    size = len(matrix)
    rows = [line + [int(i == j) for j in range(size)] for i, line in enumerate(matrix)]
    for i in range(size):
        pivot = next(r for r in range(i, size) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        factor = _inverse(rows[i][i])
        rows[i] = [_multiply(factor, value) for value in rows[i]]
        for r in range(size):
            if r != i and rows[r][i]:
                scale = rows[r][i]
                pairs = zip(rows[r], rows[i], strict=True)
                rows[r] = [value ^ _multiply(scale, other) for value, other in pairs]
    return [line[size:] for line in rows]


def _combine(factors: Sequence[int], columns: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(columns[0])
    for factor, column in zip(factors, columns, strict=True):
        if factor:
            np.bitwise_xor(total, _multiples(factor)[column], out=total)
    return total
