"""Several files read as one run of bytes, at any place.

Owns the step from a position in the run to a position in a file. What is missing reads as zeros.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from keras_modelsec._storage import files

_MOST_OPEN = 32


class ByteStream:
    """Files one after another; each is opened when it is needed, without following links.

    For use by one thread; others take a `copy`. A context manager that closes the files.

    Args:
        parts: Path (None if there is no file) and length in bytes of each. Where a file is shorter
            than that the rest reads as zeros; where it is longer the rest is never read.
    """

    def __init__(self, parts: Iterable[tuple[Path | None, int]]):
        self._parts = [part for part in parts if part[1]]
        self._starts = []
        self.size = 0
        for _, length in self._parts:
            self._starts.append(self.size)
            self.size += length
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def copy(self) -> "ByteStream":
        """The same files, opened anew."""
        return ByteStream(self._parts)

    def read(self, offset: int, length: int) -> bytearray:
        """`length` bytes from `offset`, zeros from the end on."""
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return data

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes from `offset` on, and zeros where there are none."""
        end = offset
        for path, start, low, high in self._overlaps(offset, offset + len(view)):
            part, end = view[low - offset : high - offset], high
            if path is None:
                part[:] = bytes(len(part))
            else:
                self._read_part(path, low - start, part)
        rest = view[end - offset :]
        rest[:] = bytes(len(rest))

    def _overlaps(self, begin: int, end: int) -> Iterator[tuple[Path | None, int, int, int]]:
        index = max(0, bisect.bisect_right(self._starts, begin) - 1)
        while index < len(self._parts) and self._starts[index] < end:
            path, length = self._parts[index]
            start = self._starts[index]
            low, high = max(begin, start), min(end, start + length)
            if low < high:
                yield path, start, low, high
            index += 1

    def _read_part(self, path: Path, offset: int, view: memoryview) -> None:
        file = self._opened(path)
        file.seek(offset)
        done = files.fill(view, file)
        view[done:] = bytes(len(view) - done)

    def _opened(self, path: Path) -> BinaryIO:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = files.open_regular(path)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        return self._open[path]

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def __enter__(self) -> "ByteStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
