"""What a call of `write_parity` wrote, and what it is good for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ParityReport:
    """The outcome of `write_parity`, which succeeded.

    Attributes:
        path: The model.
        parity: The parity file.
        size: Its length in bytes.
        name: What the model is called in its statement, or else its file's name.
        version: Its version there; None if it has no statement.
        signers: Hex SHA-256 of the public key (as PEM) of each key that signed the parity.
        rests_on: Who signed the model, as far as that was verified; empty if nobody did, so that
            parity rests on `signers` alone.
        blocks: How many blocks the model has, and `block_size` bytes each of them.
        block_size: See `blocks`.
        groups: How many groups of blocks there are, each with its own parity; neighbours are in
            different ones.
        lost_per_group: How many blocks of each group may be damaged or gone.
    """

    path: Path
    parity: Path
    size: int
    name: str
    version: int | None
    signers: Sequence[str]
    rests_on: Sequence[str]
    blocks: int
    block_size: int
    groups: int
    lost_per_group: int

    @property
    def longest_burst(self) -> int:
        """How many bytes in a row may be overwritten or cut off, anywhere: at least so many."""
        blocks = min(self.blocks, self.groups * self.lost_per_group)
        return max(0, (blocks - 1) * self.block_size + 1) if blocks else 0

    def __str__(self) -> str:
        signed = f"signed by {'; '.join(self.rests_on)}" if self.rests_on else "not signed itself"
        return (
            f"Protected {str(self.path)!r}, {signed}: {self.parity} ({self.size} bytes). Any "
            f"{self.longest_burst} bytes in a row can be restored, or {self.lost_per_group} blocks "
            f"of {self.block_size} bytes in each of {self.groups} groups."
        )
