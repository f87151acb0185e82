"""Writes a file on a second thread, while the first one prepares what comes next.

Owns the buffers that go back and forth. Large files are synced to the disk as they are written, so
that the last sync has little left to do.
"""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

_BUFFERS = 4
_WRITTEN_AT_ONCE = 4 << 20  # a small file needs no thread
_SYNC_BYTES = 128 << 20


class WriteBehind:
    """Takes filled buffers and writes them in their order.

    Args:
        file: Where they go: an unbuffered file, or anything with `write`.
        buffer_bytes: The length of a buffer.
    """

    def __init__(self, file: BinaryIO, buffer_bytes: int):
        self._file = file
        self._buffer_bytes = buffer_bytes
        self._free: list[memoryview] = []
        self._busy: deque[tuple[Future[None], memoryview]] = deque()
        self._made = 0
        self._taken = 0
        self._unsynced = 0
        self._descriptor = descriptor_of(file)
        self._thread: ThreadPoolExecutor | None = None

    def buffer(self) -> memoryview:
        """A buffer to fill; waits for one to be written if need be.

        Raises:
            OSError: If something handed over earlier could not be written.
        """
        if not self._free and self._made < _BUFFERS:
            self._made += 1
            return memoryview(bytearray(self._buffer_bytes))
        if not self._free:
            self._finish_one()
        return self._free.pop()

    def put(self, buffer: memoryview, count: int) -> None:
        """Hands over a buffer, of which the first `count` bytes are to be written."""
        self._taken += count
        if self._taken <= _WRITTEN_AT_ONCE:
            self._write(buffer[:count])
            self._free.append(buffer)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="keras-modelsec-write")
        self._busy.append((self._thread.submit(self._write, buffer[:count]), buffer))

    def drain(self) -> None:
        """Waits until all is written.

        Raises:
            OSError: If something could not be written.
        """
        while self._busy:
            self._finish_one()

    def close(self) -> None:
        """Ends the thread; what it has not begun to write is not written."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None
        self._busy.clear()

    def _finish_one(self) -> None:
        written, buffer = self._busy.popleft()
        written.result()
        self._free.append(buffer)

    def _write(self, data: memoryview) -> None:
        self._unsynced += len(data)
        write_all(self._file, data)
        if self._unsynced >= _SYNC_BYTES and self._descriptor is not None:
            os.fsync(self._descriptor)
            self._unsynced = 0


def descriptor_of(file: Any) -> int | None:
    """The descriptor of an open file; None for one in memory."""
    try:
        return int(file.fileno())
    except (AttributeError, OSError):
        return None


def write_all(file: Any, data: memoryview) -> None:
    """Writes all of `data` to an unbuffered file, which may take less at a time."""
    while len(data):
        data = data[file.write(data) :]
