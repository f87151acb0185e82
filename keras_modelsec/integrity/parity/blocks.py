"""Blocks of a damaged model: which are good, where others lie, and those that parity gives back.

Owns what a restored block's bytes are. Every block it hands out was checked against its signed
digest. Where the bytes are written is in repaired_files.py.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.parity.erasure_code import ErasureCode, Geometry
from keras_modelsec.integrity.parity.parity_encoding import slice_length

_SCAN_BYTES = 1 << 20
_WORKERS = 2


def good_blocks(
    stream: ByteStream, geometry: Geometry, digests: Sequence[bytes], progress: Progress = None
) -> np.ndarray:
    """Which blocks are in their place: an array of bool.

    Args:
        stream: The model's files with their signed lengths.
        geometry: How they are cut.
        digests: The signed SHA-256 of each block.
        progress: Called with bytes done and bytes in all.
    """
    size = geometry.block_size
    good = np.zeros(len(digests), bool)
    batch = max(1, _SCAN_BYTES // size)

    def work(worker: int, own: ByteStream) -> None:
        with own:
            for first in range(worker * batch, len(digests), _WORKERS * batch):
                last = min(first + batch, len(digests))
                view = memoryview(own.read(first * size, (last - first) * size))
                for index in range(first, last):
                    start = (index - first) * size
                    digest = hashlib.sha256(view[start : start + size]).digest()
                    good[index] = digest == digests[index]
                if worker == 0 and progress:
                    progress(min(last * size, geometry.total), geometry.total)

    with ThreadPoolExecutor(_WORKERS - 1) as pool:
        others = [pool.submit(work, worker, stream.copy()) for worker in range(1, _WORKERS)]
        work(0, stream.copy())
        for other in others:
            other.result()
    return good


class Restorer:
    """Gives every block of a model, from where it lies or from parity.

    Args:
        geometry: How the model is cut.
        digests: The signed SHA-256 of each block.
        good: Which blocks are in their place.
        in_place: The model's files with their signed lengths.
        parity: Reads a whole parity block by its number.
        parity_places: The numbers of the good ones.
    """

    def __init__(
        self,
        geometry: Geometry,
        digests: Sequence[bytes],
        good: np.ndarray,
        in_place: ByteStream,
        parity: Callable[[int], bytearray],
        parity_places: Mapping[int, int],
    ):
        self.geometry = geometry
        self._digests = digests
        self._in_place = in_place
        self._parity = parity
        self._parity_places = parity_places
        self._found: ByteStream | None = None
        self._buffer = bytearray()
        self.sources = np.full(len(digests), -1, np.int64)  # position in the model's own bytes
        self.moved = np.full(len(digests), -1, np.int64)  # or position in `_found`
        self.sources[good] = np.flatnonzero(good) * geometry.block_size
        self._copy_equal_blocks()

    def _copy_equal_blocks(self) -> None:
        """A lost block whose bytes another one has, of zeros often, is not lost."""
        places = {
            self._digests[index]: int(self.sources[index])
            for index in np.flatnonzero(self.sources >= 0).tolist()
        }
        for index in np.flatnonzero(self.sources < 0).tolist():
            self.sources[index] = places.get(self._digests[index], -1)

    def take_moved(self, stream: ByteStream, places: Mapping[bytes, int]) -> None:
        """Lets blocks that were found in other places stand in for lost ones.

        Args:
            stream: What they were found in.
            places: Positions by digest.
        """
        self._found = stream
        for index in np.flatnonzero(self.sources < 0).tolist():
            self.moved[index] = places.get(self._digests[index], -1)

    @property
    def to_decode(self) -> np.ndarray:
        """The blocks that only parity can give."""
        return np.flatnonzero((self.sources < 0) & (self.moved < 0))

    def lost_stripes(self) -> list[int]:
        """Stripes that have more lost blocks than good parity."""
        stripes = self.geometry.stripes
        lost = np.bincount(self.to_decode % max(1, stripes), minlength=stripes)
        parity = np.zeros(stripes, int)
        for index in self._parity_places:
            parity[index % stripes] += 1
        return [int(stripe) for stripe in np.flatnonzero(lost > parity)]

    def read(self, index: int) -> bytearray:
        """A block that need not be decoded."""
        data = bytearray(self.geometry.block_size)
        self._read_into(index, 0, memoryview(data))
        return data

    def _read_into(self, index: int, start: int, view: memoryview) -> None:
        if self.sources[index] >= 0:
            self._in_place.read_into(view, int(self.sources[index]) + start)
        elif self._found is not None and self.moved[index] >= 0:
            self._found.read_into(view, int(self.moved[index]) + start)

    def decoded(self) -> Iterator[tuple[int, memoryview]]:
        """Each block of `to_decode` with its bytes, which have the signed digest.

        Raises:
            SignatureError: If the files changed since they were looked at.
        """
        lost: dict[int, list[int]] = {}
        for index in self.to_decode.tolist():
            column, stripe = divmod(index, self.geometry.stripes)
            lost.setdefault(stripe, []).append(column)
        if not lost:
            return
        code = ErasureCode(self.geometry.data, self.geometry.parity)
        groups = list(self._groups(lost))
        with ThreadPoolExecutor(1) as pool:  # reads ahead; nobody else uses the streams meanwhile
            gathered = self._read_ahead(pool, groups)
            for first, count, columns, rows in groups:
                pieces = self._decode_group(code, gathered, first, count, columns, rows)
                for column, piece in zip(columns, pieces, strict=True):
                    yield from self._checked(column * self.geometry.stripes + first, piece)

    def _slices(self, count: int) -> list[tuple[int, int]]:
        """Start and length of what is decoded at a time of `count` blocks of each column."""
        whole = count * self.geometry.block_size
        step = min(whole, slice_length(self.geometry))
        return [(start, min(step, whole - start)) for start in range(0, whole, step)]

    def _read_ahead(
        self, pool: ThreadPoolExecutor, groups: Sequence[tuple[int, int, list[int], list[int]]]
    ) -> Iterator[bytes]:
        """The gathered columns of every slice of every group, read while the last is decoded."""
        waiting = None
        for first, count, _, _ in groups:
            for start, length in self._slices(count):
                following = pool.submit(self._gather, first, start, length)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
        if waiting is not None:
            yield waiting.result()

    def _groups(
        self, lost: Mapping[int, list[int]]
    ) -> Iterator[tuple[int, int, list[int], list[int]]]:
        """Neighbouring stripes that lost the same columns: first, count, columns, parity rows."""
        most = max(1, slice_length(self.geometry) // self.geometry.block_size)
        group: list[int] = []
        for stripe in [*sorted(lost), None]:
            fits = group and (
                stripe == group[-1] + 1
                and len(group) < most
                and lost[stripe] == lost[group[0]]
                and self._rows(stripe) == self._rows(group[0])
            )
            if group and not fits:
                first = group[0]
                rows = self._rows(first)[: len(lost[first])]
                yield first, len(group), lost[first], rows
                group = []
            if stripe is not None:
                group.append(stripe)

    def _rows(self, stripe: int) -> list[int]:
        rows, stripes = range(self.geometry.parity), self.geometry.stripes
        return [row for row in rows if row * stripes + stripe in self._parity_places]

    def _decode_group(
        self,
        code: ErasureCode,
        gathered: Iterator[bytes],
        first: int,
        count: int,
        columns: list[int],
        rows: list[int],
    ) -> list[np.ndarray]:
        geometry = self.geometry
        whole = count * geometry.block_size
        parity = {
            row: b"".join(
                self._parity(row * geometry.stripes + stripe)
                for stripe in range(first, first + count)
            )
            for row in rows
        }
        result = [np.empty(whole, np.uint8) for _ in columns]
        for start, length in self._slices(count):
            data = next(gathered)
            part = {row: memoryview(parity[row])[start : start + length] for row in rows}
            for target, piece in zip(result, code.restore(data, columns, part), strict=True):
                target[start : start + length] = piece
        return result

    def _gather(self, first: int, start: int, length: int) -> bytes:
        """A piece of every column from stripe `first` on; lost blocks are zeros."""
        geometry = self.geometry
        if len(self._buffer) < geometry.data * length:
            self._buffer = bytearray(geometry.data * length)  # allocated once, not for each piece
        view = memoryview(self._buffer)[: geometry.data * length]
        for column in range(geometry.data):
            place = (column * geometry.stripes + first) * geometry.block_size + start
            self._gather_run(place, view[column * length : (column + 1) * length])
        return bytes(view)

    def _gather_run(self, place: int, view: memoryview) -> None:
        size = self.geometry.block_size
        first = place // size
        last = min(-(-(place + len(view)) // size), self.geometry.blocks)
        run = self.sources[first:last]
        if len(run) and np.array_equal(run, np.arange(first, last) * size):
            self._in_place.read_into(view, place)
            return
        view[:] = bytes(len(view))
        for index in range(first, last):
            low = max(place, index * size)
            high = min(place + len(view), (index + 1) * size)
            self._read_into(index, low - index * size, view[low - place : high - place])

    def _checked(self, first: int, data: np.ndarray) -> Iterator[tuple[int, memoryview]]:
        size = self.geometry.block_size
        for index, start in zip(itertools.count(first), range(0, len(data), size), strict=False):
            block = data[start : start + size].data
            if hashlib.sha256(block).digest() != self._digests[index]:
                raise SignatureError(
                    "A model must not change while it is repaired. Received: one whose block "
                    f"{index} does not come out as it was signed. Try again when its writer has "
                    "finished."
                )
            yield index, block
