"""A file in memory that keeps large pieces by reference instead of copying them."""

import bisect
import io
from collections.abc import Iterator
from typing import Any

_LARGE_BYTES = 64 << 10


class GatheredFile(io.RawIOBase):
    """A seekable file to write to, for a writer that goes back only to what it wrote in one piece.

    So `zipfile` does, when it fills in a member's size. Pieces of 64 KiB and more are not copied;
    they must not change until they have been read by `parts`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._starts: list[int] = []
        self._parts: list[Any] = []
        self._position = 0
        self._size = 0

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position; not past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if not 0 <= base + offset <= self._size:
            raise io.UnsupportedOperation("seek outside of what was written")
        self._position = base + offset
        return self._position

    def write(self, data: Any) -> int:
        """Appends a piece, or overwrites bytes inside one small piece."""
        view = memoryview(data).cast("B")
        if self._position == self._size:
            self._starts.append(self._size)
            self._parts.append(view if len(view) >= _LARGE_BYTES else bytearray(view))
            self._size += len(view)
        else:
            index = bisect.bisect_right(self._starts, self._position) - 1
            part, offset = self._parts[index], self._position - self._starts[index]
            if not isinstance(part, bytearray) or offset + len(view) > len(part):
                raise io.UnsupportedOperation("overwrite more than one small piece")
            part[offset : offset + len(view)] = view
        self._position += len(view)
        return len(view)

    def parts(self) -> Iterator[Any]:
        """The pieces in their order."""
        yield from self._parts
