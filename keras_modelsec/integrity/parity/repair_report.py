"""What a repair found and did."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RepairReport:
    """The outcome of `repair`, which succeeded: the model's files are the signed ones.

    Attributes:
        path: The model.
        changed: Names of files that were there with other bytes, and are restored.
        missing: Names of files that were not there, and are restored.
        added: Names of files that are not part of the signed model; they are left alone, and while
            they are there the model does not verify.
        blocks: How many blocks the model has, and `block_size` bytes each of them.
        block_size: See `blocks`.
        damaged_blocks: How many were not in their place.
        moved_blocks: How many of these were found elsewhere.
        decoded_blocks: How many of these were computed from parity; the rest were copies of others.
        restored_bytes: Bytes written into the model's files.
        signatures: Names of signature and statement files that were put back.
        damaged_parity: How many parts (pages, statements, parity blocks) of the parity file were
            damaged, for all that was seen.
        parity_rewritten: Whether the parity file was made whole again.
    """

    path: Path
    changed: Sequence[str] = ()
    missing: Sequence[str] = ()
    added: Sequence[str] = ()
    blocks: int = 0
    block_size: int = 0
    damaged_blocks: int = 0
    moved_blocks: int = 0
    decoded_blocks: int = 0
    restored_bytes: int = 0
    signatures: Sequence[str] = ()
    damaged_parity: int = 0
    parity_rewritten: bool = False

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was as it was signed, so that no file was touched."""
        return not (self.changed or self.missing or self.signatures or self.damaged_parity)

    def __str__(self) -> str:
        if self.nothing_to_do:
            return f"{str(self.path)!r}: nothing to repair." + self._added()
        parts = []
        if self.changed or self.missing:
            names = [*self.changed, *self.missing]
            parts.append(
                f"restored {len(names)} file(s) ({_listing(names)}): {self.damaged_blocks} of "
                f"{self.blocks} blocks were damaged, {self.decoded_blocks} computed from parity, "
                f"{self.moved_blocks} found elsewhere"
            )
        if self.signatures:
            parts.append(f"put back {_listing(list(self.signatures))}")
        if self.damaged_parity:
            state = "made whole again" if self.parity_rewritten else "left as it is"
            parts.append(f"{self.damaged_parity} damaged parts of the parity file {state}")
        return f"{str(self.path)!r}: {'; '.join(parts)}." + self._added()

    def _added(self) -> str:
        if not self.added:
            return ""
        return f" Not part of the model, and left alone: {_listing(list(self.added))}."


def _listing(names: list[str], most: int = 10) -> str:
    more = len(names) - most
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {more} more" if more > 0 else "")
