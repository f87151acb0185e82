"""A Reed-Solomon code: how bytes are laid out for it, parity of columns, lost columns from parity.

Owns the arithmetic, and nothing that touches a file. A model's files, one after another in the
order of their names, are one run of bytes, cut into blocks of equal size (the last one filled up
with zeros). Block `i` is in stripe `i % stripes` and column `i // stripes`: neighbours are in
different stripes, so that damage in one place is spread over all of them.

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
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


MOST_BLOCKS = 16384  # for a model of up to 64 MiB blocks of 4 KiB, for one of 1 GiB of 64 KiB
MOST_DATA_COLUMNS = 100
LARGEST_BLOCK = 1 << 30


@dataclass(frozen=True)
class Geometry:
    """Where each block belongs.

    Attributes:
        total: Bytes in all.
        block_size: Bytes a block; a power of two >= 4096.
        stripes: Number of stripes: groups of blocks with parity of their own.
        data: Data columns: blocks a stripe.
        parity: Parity blocks a stripe: how many of a stripe's blocks may be lost.
    """

    total: int
    block_size: int
    stripes: int
    data: int
    parity: int

    @property
    def blocks(self) -> int:
        """The number of data blocks."""
        return -(-self.total // self.block_size)

    @property
    def parity_total(self) -> int:
        """The number of parity blocks; block `p * stripes + s` is parity `p` of stripe `s`."""
        return self.parity * self.stripes

    @property
    def is_consistent(self) -> bool:
        """Whether the numbers are ones that `choose_geometry` could have chosen, or as good."""
        size = self.block_size
        if not (ALIGNMENT <= size <= LARGEST_BLOCK and size & (size - 1) == 0):
            return False
        if not self.total:
            return self.stripes == self.data == self.parity == 0
        return (
            self.blocks <= MOST_BLOCKS
            and self.stripes >= 1
            and self.parity >= 1
            and self.data + self.parity <= MOST_COLUMNS
            and (self.data - 1) * self.stripes < self.blocks <= self.data * self.stripes
        )


def choose_geometry(total: int, redundancy: float) -> Geometry:
    """The geometry for a model.

    Args:
        total: Bytes in all, >= 0.
        redundancy: Parity in proportion to data, above 0 and at most 1.

    Raises:
        ValueError: If there are more bytes than the largest blocks hold, 16 TiB.
    """
    if total > MOST_BLOCKS * LARGEST_BLOCK:
        raise ValueError(
            f"A model must have at most {MOST_BLOCKS * LARGEST_BLOCK} bytes to be protected. "
            f"Received: {total}. Protect its parts."
        )
    size = ALIGNMENT
    while -(-total // size) > MOST_BLOCKS:
        size *= 2
    blocks = -(-total // size)
    if not blocks:
        return Geometry(0, size, 0, 0, 0)
    stripes = -(-blocks // MOST_DATA_COLUMNS)
    data = -(-blocks // stripes)
    return Geometry(total, size, stripes, data, max(1, math.ceil(round(redundancy * data, 9))))
