"""From leaves that are not the signed ones to the tensors whose bytes were changed.

Owns the rule that no innocent tensor is named. A large tensor has leaves of its own; small ones
share a leaf with their neighbours and with what lies between, so their own signed digests decide.
Offsets are the signed ones: nothing of the damaged file is parsed.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from keras_modelsec.integrity.signatures import hashing
from keras_modelsec.integrity.signatures.hashing import Cut
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.tensor_layout import TensorRecord


@dataclass(frozen=True)
class PlacedTensor:
    """A signed tensor that lies in one piece, and the leaves it touches.

    Attributes:
        record: What was signed of it.
        offset: Where its bytes begin.
        leaves: The positions, in `ModelStatement.cuts`, of the leaves that hold bytes of it.
        has_own_leaves: Whether these leaves hold nothing else.
    """

    record: TensorRecord
    offset: int
    leaves: range
    has_own_leaves: bool


def placed_tensors(
    statement: ModelStatement, name: str, cuts: Sequence[Cut]
) -> tuple[PlacedTensor, ...]:
    """The tensors of a file that have bytes at a signed place, in the order of these places."""
    starts = [offset for offset, _ in cuts]
    found = []
    for record in statement.tensors:
        if record.file != name or record.offset is None or not record.nbytes:
            continue
        end = record.offset + record.nbytes
        first = bisect.bisect_right(starts, record.offset) - 1
        leaves = range(first, bisect.bisect_left(starts, end))
        last = cuts[leaves[-1]]
        own = cuts[first][0] == record.offset and sum(last) == end
        found.append(PlacedTensor(record, record.offset, leaves, own))
    return tuple(sorted(found, key=lambda tensor: tensor.offset))


def changed_tensors(
    statement: ModelStatement, name: str, bad: Iterable[int], file: BinaryIO
) -> tuple[str, ...]:
    """The paths of the tensors that were changed in a file of the signed length.

    Args:
        statement: What was signed.
        name: The file's name in it.
        bad: The positions of leaves that are not the signed ones.
        file: The file, open for reading without a buffer; only bytes of bad leaves' tensors that
            share a leaf with others are read.
    """
    ordered = sorted(bad)
    tensors = placed_tensors(statement, name, statement.cuts(name))
    return tuple(
        tensor.record.path
        for tensor in tensors
        if touches(ordered, tensor.leaves)
        and (tensor.has_own_leaves or not is_intact(file, tensor.record, tensor.offset))
    )


def touches(ordered: Sequence[int], leaves: range) -> bool:
    """Whether one of the positions in `ordered`, which rise, is in `leaves`."""
    index = bisect.bisect_left(ordered, leaves.start)
    return index < len(ordered) and ordered[index] < leaves.stop


def is_intact(file: BinaryIO, record: TensorRecord, offset: int) -> bool:
    """Whether the signed bytes of a tensor are at `offset` of a file, which may be too short."""
    if offset < 0 or offset + record.nbytes > file.seek(0, 2):
        return False
    return range_digest(file, offset, record.nbytes) == record.digest


def range_digest(file: BinaryIO, offset: int, length: int) -> str:
    """The digest that a tensor has whose bytes are `length` from `offset` on."""
    cuts = [(offset + start, size) for start, size in hashing.leaf_cuts(length)]
    return hashing.tree_digest(hashing.hash_leaves(file, cuts))
