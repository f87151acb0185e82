"""How a model's bytes are laid out for parity: blocks, stripes and columns.

Owns the arithmetic, and nothing that touches a file. A model's files, one after another in the
order of their names, are one run of bytes, cut into blocks of equal size (the last one filled up
with zeros). Block `i` is in stripe `i % stripes` and column `i // stripes`: neighbours are in
different stripes, so that damage in one place is spread over all of them.
"""

import math
from dataclasses import dataclass

from keras_modelsec.integrity.parity.erasure_code import ALIGNMENT, MOST_COLUMNS

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
