"""A file in memory that keeps large pieces by reference instead of copying them."""

import bisect
import io
from collections.abc import Callable, Iterator
from typing import Any

_LARGE_BYTES = 64 << 10
_PAGE_BYTES = 4 << 10
_PIECE_BYTES = 1 << 20


def _large(piece: memoryview) -> memoryview | None:
    return piece if len(piece) >= _LARGE_BYTES else None


class GatheredFile(io.BytesIO):
    """A file to write to anywhere, which costs what lies between its large pieces.

    What is kept by reference must not change while the file lives, and cannot be written over. It
    is a BytesIO for who asks, as Keras does; its bytes are had by `read`, `readinto` and `parts`.

    Args:
        keep: Given a piece that is written, the memory to refer to instead; None to copy it. By
            default pieces of 64 KiB and more are kept as they are.
    """

    def __init__(self, keep: Callable[[memoryview], memoryview | None] = _large) -> None:
        super().__init__()
        self._keep = keep
        self._starts: list[int] = []  # of the pieces that are kept, in their order
        self._kept: list[memoryview] = []
        self._pages: dict[int, bytearray] = {}  # all else
        self._position = 0
        self._size = 0

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return self._size

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position, which may be past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Makes it longer; what is new reads as zeros.

        Raises:
            io.UnsupportedOperation: If that cuts something off.
        """
        new = self._position if size is None else size
        if new < self._size:
            raise io.UnsupportedOperation("cut off what was written")
        self._size = new
        return new

    def write(self, data: Any) -> int:
        """Writes a piece.

        Raises:
            io.UnsupportedOperation: If it overlaps one that is kept by reference.
        """
        view = memoryview(data).cast("B")
        start, end = self._position, self._position + len(view)
        index = bisect.bisect_left(self._starts, end)
        if index and len(view) and self._starts[index - 1] + len(self._kept[index - 1]) > start:
            raise io.UnsupportedOperation("overwrite what is kept by reference")
        kept = self._keep(view)
        if kept is not None:
            self._starts.insert(index, start)
            self._kept.insert(index, kept)
        else:
            for at, page, begin, length in _pages(start, end):
                place = self._pages.setdefault(page, bytearray(_PAGE_BYTES))
                place[begin : begin + length] = view[at - start : at - start + length]
        self._position, self._size = end, max(self._size, end)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` from the position on, as far as the file goes."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        done = 0
        for piece in self._pieces(self._position, self._position + len(view)):
            view[done : done + len(piece)] = piece
            done += len(piece)
        self._position += done
        return done

    def read(self, size: int | None = -1) -> bytes:
        """The bytes from the position on."""
        left = max(0, self._size - self._position)
        data = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(data)
        return bytes(data)

    def parts(self) -> Iterator[Any]:
        """All its bytes in their order, a piece at a time."""
        yield from self._pieces(0, self._size)

    def _pieces(self, start: int, end: int) -> Iterator[Any]:
        for index in range(max(0, bisect.bisect_right(self._starts, start) - 1), len(self._starts)):
            first, kept = self._starts[index], self._kept[index]
            if first >= end:
                break
            yield from self._paged(start, first)
            low, high = max(start, first), min(end, first + len(kept))
            if low < high:
                yield kept[low - first : high - first]
                start = high
        yield from self._paged(start, end)

    def _paged(self, start: int, end: int) -> Iterator[bytearray]:
        """What was copied, and zeros where nothing was written."""
        for low in range(start, end, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, end - low))
            for at, page, begin, length in _pages(low, low + len(piece)):
                if page in self._pages:
                    found = self._pages[page][begin : begin + length]
                    piece[at - low : at - low + length] = found
            yield piece


def _pages(start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """A range by pages: where each part begins, its page, where in the page, and its length."""
    while start < end:
        page, begin = divmod(start, _PAGE_BYTES)
        length = min(_PAGE_BYTES - begin, end - start)
        yield start, page, begin, length
        start += length
