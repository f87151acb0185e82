"""Finds signed blocks wherever they lie, after bytes were inserted, removed or moved.

Owns the search. SHA-256 decides; two weaker marks of a block say where to look, at every position
of a run of bytes at once: its first eight bytes, and its Adler-32 (RFC 1950), which at all
positions follows from two prefix sums (the idea of rsync). Where a block is found the next ones are
tried right behind it; only where that fails is the search done position by position.

Reference: A. Tridgell and P. Mackerras, "The rsync algorithm", ANU TR-CS-96-05.
"""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_modelsec._storage.byte_stream import ByteStream

_MODULUS = np.uint64(65521)
_FILTER_BITS = 20
_FEW = 30  # that many checksums of a piece cost as much as the prefix sums of the piece
_LONGEST_STEP = 1 << 20
# Data can be made whose checksum agrees everywhere and whose digest nowhere. That many times its
# length is hashed in vain, then the search ends with what it has found.
_VAIN_HASHING = 4
_VAIN_BYTES = 64 << 20
_INSERTED_BYTES = 64 << 20


def most_explained(signed: int) -> int:
    """How far a file is looked through for its `signed` bytes, however long it has become.

    A stranger can make a sparse file as long as he likes at no cost. Twice the bytes and 64 MiB
    hold what insertions and a repetition leave of it.
    """
    return 2 * signed + _INSERTED_BYTES


def bytes_to_search(found: Mapping[str, int], signed: Mapping[str, int]) -> dict[str, int]:
    """How many bytes of each file are looked through: all that the signed bytes explain.

    Args:
        found: The lengths of the files that are there, in the order of the search.
        signed: The lengths of the signed ones.

    Returns:
        For each of `found`: a signed file counts with twice its signed length, another one whole or
        not at all; all together with at most three times the signed bytes and 64 MiB.
    """
    spare, others = _INSERTED_BYTES, sum(signed.values())
    result = {}
    for name, size in found.items():
        if name in signed:
            own = 2 * signed[name]
            result[name] = min(size, own + spare)
            spare -= max(0, result[name] - own)
        else:
            result[name] = size if size <= others + spare else 0
            others -= result[name]
            spare, others = spare + min(0, others), max(0, others)
    return result


@dataclass(frozen=True)
class SignedBlocks:
    """What is signed of blocks of one size, in their order.

    Args:
        size: Bytes a block.
        digests: The raw SHA-256 of each.
        heads: The first eight bytes of each, an array of uint64 (little-endian).
        checksums: The Adler-32 of each, an array of uint32.
    """

    size: int
    digests: Sequence[bytes]
    heads: np.ndarray
    checksums: np.ndarray


class _Search:
    def __init__(self, stream: ByteStream, blocks: SignedBlocks):
        self.stream = stream
        self.blocks = blocks
        self.found: dict[bytes, int] = {}
        self.wanted: dict[bytes, list[int]] = {}
        for index, digest in enumerate(blocks.digests):
            self.wanted.setdefault(digest, []).append(index)
        self.is_open = np.ones(len(blocks.digests), bool)
        digests = blocks.digests
        self.next = dict(itertools.pairwise(digests))  # one of them, if repeated
        self.previous = {after: before for before, after in itertools.pairwise(digests)}
        self.marks = self._open_marks()
        self.vain = 0
        self.most_vain = _VAIN_HASHING * stream.size + _VAIN_BYTES

    def _open_marks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Heads and checksums of the blocks not found yet, and a filter of the heads."""
        heads = np.unique(self.blocks.heads[self.is_open])
        present = np.zeros(1 << _FILTER_BITS, bool)
        present[_hashed(heads)] = True
        return heads, np.unique(self.blocks.checksums[self.is_open]), present

    def refresh(self) -> None:
        """Looks for found blocks no more."""
        self.marks = self._open_marks()

    @property
    def is_over(self) -> bool:
        """Whether all is found, or enough was tried in vain."""
        return len(self.found) == len(self.wanted) or self.vain > self.most_vain

    def matches(self, offset: int) -> bytes | None:
        """The digest of the block at `offset`, if it is a signed one that was not found yet."""
        data = self.stream.read(offset, self.blocks.size)
        digest = hashlib.sha256(data).digest()
        if digest in self.wanted and digest not in self.found:
            self.found[digest] = offset
            self.is_open[self.wanted[digest]] = False
            return digest
        self.vain += len(data)
        return None

    def follow(self, digest: bytes, offset: int) -> int:
        """Takes the blocks before and behind one found at `offset`; returns the last one's."""
        size = self.blocks.size
        before, place = self.previous.get(digest), offset - size
        while before is not None and before not in self.found and place >= 0:
            if self.matches(place) is None:
                break
            before, place = self.previous.get(before), place - size
        after, place = self.next.get(digest), offset + size
        while after is not None and after not in self.found and place < self.stream.size:
            if self.matches(place) != after:
                break
            after, place = self.next.get(after), place + size
        return place - size


def locate(
    stream: ByteStream,
    blocks: SignedBlocks,
    progress: Callable[[int], None] | None = None,
) -> dict[bytes, int]:
    """Where signed blocks lie in `stream`.

    Args:
        stream: Untrusted bytes; from its end on it reads as zeros.
        blocks: What to look for.
        progress: Called with the position reached.

    Returns:
        The position of each block that was found, by its SHA-256.
    """
    search = _Search(stream, blocks)
    if not blocks.digests:
        return {}
    first = 2 * blocks.size
    offset, step = 0, first
    while offset < stream.size and not search.is_over:
        reached = _search_step(search, offset, step)
        if reached is None:
            offset, step = offset + step, min(2 * step, max(_LONGEST_STEP, first))
        else:
            offset, step = reached + 1, first
            search.refresh()
        if progress:
            progress(min(offset, stream.size))
    return search.found


def _search_step(search: _Search, offset: int, step: int) -> int | None:
    """Tries `step` positions; None, or the position of the last block in a row that was found."""
    for position in _candidates(search, offset, step):
        digest = search.matches(position)
        if digest is not None:
            return search.follow(digest, position)
        if search.is_over:
            break
    return None


def _candidates(search: _Search, offset: int, step: int) -> Iterator[int]:
    """The positions where head and checksum are those of a block still wanted."""
    size = search.blocks.size
    heads, checksums, present = search.marks
    data = search.stream.read(offset, step + size)
    places = _with_head(data, step, heads, present)
    if len(places) * size <= _FEW * len(data):
        view = memoryview(data)
        sums = np.array([zlib.adler32(view[p : p + size]) for p in places.tolist()], np.uint32)
    else:
        sums = _checksums(np.frombuffer(data, np.uint8), places, size)
    for place in places[np.isin(sums, checksums)].tolist():
        yield offset + place


def _with_head(data: bytearray, step: int, heads: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The positions below `step` where one of `heads` stands, in order."""
    found = []
    for shift in range(8):
        count = (step - shift + 7) // 8
        values = np.frombuffer(data, "<u8", count, shift)
        places = np.flatnonzero(present[_hashed(values)])
        found.append(places[np.isin(values[places], heads)] * 8 + shift)
    return np.sort(np.concatenate(found))


def _hashed(values: np.ndarray) -> np.ndarray:
    """Multiplicative hashing (D. Knuth, The Art of Computer Programming 3, 6.4)."""
    return (values * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _FILTER_BITS)


def _checksums(data: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """The Adler-32 of the `size` bytes at each place."""
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data, dtype=np.uint64, out=sums[1:])
    double = np.cumsum(sums, dtype=np.uint64)
    low = (sums[places + size] - sums[places] + np.uint64(1)) % _MODULUS
    high = double[places + size] - double[places] - np.uint64(size) * sums[places]
    high = (high + np.uint64(size)) % _MODULUS
    return (high << np.uint64(16) | low).astype(np.uint32)
