"""Makes parity: one pass over a model's bytes, hashing and encoding side by side.

Owns the order in which bytes are read and the tables of entries; knows nothing of the parity file
around them.
"""

import hashlib
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.parity.erasure_code import ALIGNMENT, ErasureCode, Geometry
from keras_modelsec.integrity.parity.parity_statement import ENTRY_BYTES, block_entry

_BATCH_BYTES = 8 << 20
_HASHERS = 2


class EntryTable:
    """Entries of blocks whose bytes arrive in pieces, each block's own in their order.

    Args:
        count: Number of blocks.
        size: Bytes a block.
    """

    def __init__(self, count: int, size: int):
        self._size = size
        self._data = bytearray(count * ENTRY_BYTES)
        self._begun: dict[int, tuple[hashlib._Hash, bytes, int]] = {}

    def feed(self, position: int, view: memoryview) -> None:
        """Takes the bytes at `position` of all blocks; what lies behind the last one is nothing."""
        size, end = self._size, len(self._data) // ENTRY_BYTES * self._size
        view = view[: max(0, end - position)]
        while view:
            index, start = divmod(position, size)
            piece = view[: size - start]
            if len(piece) == size:
                self._put(index, block_entry(piece))
            else:
                self._feed_part(index, start, piece)
            view, position = view[len(piece) :], position + len(piece)

    def _feed_part(self, index: int, start: int, piece: memoryview) -> None:
        hasher, head, checksum = self._begun.pop(index, (hashlib.sha256(), b"", 1))
        hasher.update(piece)
        head = head or bytes(piece[:8])
        checksum = zlib.adler32(piece, checksum)
        if start + len(piece) == self._size:
            self._put(index, hasher.digest() + head + checksum.to_bytes(4, "little"))
        else:
            self._begun[index] = (hasher, head, checksum)

    def _put(self, index: int, entry: bytes) -> None:
        self._data[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES] = entry

    def to_bytes(self) -> bytes:
        """All entries, joined."""
        return bytes(self._data)


def slice_length(geometry: Geometry) -> int:
    """How much of each column is worked on at a time: some blocks, or a part of a large one."""
    room = max(ALIGNMENT, _BATCH_BYTES // geometry.data)
    if geometry.block_size <= room:
        return room // geometry.block_size * geometry.block_size
    return 1 << (room.bit_length() - 1)


def encode(
    stream: ByteStream,
    geometry: Geometry,
    write: Callable[[int, memoryview], None],
    progress: Progress = None,
) -> tuple[bytes, bytes]:
    """Encodes a model.

    Args:
        stream: The model's bytes.
        geometry: How they are cut.
        write: `write(position, data)` stores a piece of parity at its position in all of it.
        progress: Called with bytes done and bytes in all.

    Returns:
        The entries of the data blocks and of the parity blocks.
    """
    data = EntryTable(geometry.blocks, geometry.block_size)
    parity = EntryTable(geometry.parity_total, geometry.block_size)
    column = geometry.stripes * geometry.block_size
    if column:
        code = ErasureCode(geometry.data, geometry.parity)
    with ThreadPoolExecutor(_HASHERS) as pool:
        waiting: list[Future[None]] = []
        step = slice_length(geometry) if column else 1
        buffer = bytearray(geometry.data * min(step, column))
        for start in range(0, column, step):
            length = min(step, column - start)
            columns = _gather(stream, geometry, start, length, buffer)
            while waiting:  # in the order of the bytes, and no more than one piece ahead
                waiting.pop().result()
            for part in range(_HASHERS):
                chosen = range(part, geometry.data, _HASHERS)
                waiting.append(
                    pool.submit(_feed_columns, data, columns, column, start, length, chosen)
                )
            for row, piece in enumerate(code.encode(columns)):
                parity.feed(row * column + start, piece)
                write(row * column + start, piece)
            if progress:
                progress(min(geometry.total, (start + length) * geometry.data), geometry.total)
        for future in waiting:
            future.result()
    return data.to_bytes(), parity.to_bytes()


def _gather(
    stream: ByteStream, geometry: Geometry, start: int, length: int, buffer: bytearray
) -> bytes:
    """The same piece of every column, one after another; `buffer` is used again and again."""
    column = geometry.stripes * geometry.block_size
    view = memoryview(buffer)[: geometry.data * length]
    for index in range(geometry.data):
        place = index * column + start
        piece = view[index * length : (index + 1) * length]
        stream.read_into(piece, place)
    return bytes(view)


def _feed_columns(
    table: EntryTable, columns: bytes, column: int, start: int, length: int, chosen: range
) -> None:
    view = memoryview(columns)
    for index in chosen:
        table.feed(index * column + start, view[index * length : (index + 1) * length])
