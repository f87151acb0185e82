"""Files for reading at any place that are none on a disk; and whether there is room in memory."""

import io
from pathlib import Path
from typing import Any

_UNKNOWN_BYTES = 1 << 30  # what Keras assumes where it cannot ask


class SeekableReader(io.RawIOBase):
    """A file for reading whose bytes are had by their places; a subclass says which.

    Args:
        size: The number of its bytes.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self._position = 0

    def read_at(self, place: int, view: memoryview) -> int:
        """Fills `view`, which ends where the file does at most, from `place` on; how many bytes."""
        raise NotImplementedError

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position, which may be past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"A position must not be negative. Received: {base + offset}.")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` from the position, all of it unless the file ends before."""
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        count = self.read_at(self._position, view)
        self._position += count
        return count


class MemoryFile(SeekableReader):
    """Bytes in memory, which are not copied.

    Args:
        memory: The bytes, in one piece.
    """

    def __init__(self, memory: memoryview):
        super().__init__(len(memory))
        self.memory = memory

    def read_at(self, place: int, view: memoryview) -> int:
        """Fills `view` from `place` on."""
        view[:] = self.memory[place : place + len(view)]
        return len(view)


def fits_memory(size: int) -> bool:
    """Whether `size` bytes are at most half of the memory there is: what Keras reads whole too."""
    available = _UNKNOWN_BYTES
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    except (OSError, ValueError):  # no Linux
        pass
    return size <= available // 2
