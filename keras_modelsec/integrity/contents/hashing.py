"""Digests of pieces: the leaves of files and tensors, computed on all cores, each byte read once.

Owns where a file is cut into leaves and how leaves are hashed. One digest over a whole file can
only be computed in order, on one core; leaves can be checked side by side, say which part of a file
was changed, and, since a file is cut where its tensors begin and end, which tensor.
"""

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeAlias, TypeVar

from keras_modelsec._storage.write_behind import descriptor_of
from keras_modelsec.errors import SignatureError

# Measured on two cores: leaves of 64 KiB reach 1.68 of one stream's speed, 256 KiB 1.72, 1 MiB
# 1.82, for a table a quarter as long each time.
LEAF_BYTES = 256 << 10
SEGMENT_BYTES = 16 << 10  # smaller tensors are not worth leaves of their own
DIGEST_BYTES = 32
_BATCH_BYTES = 1 << 20  # fits a core's cache
_MAX_WORKERS = 8

Progress: TypeAlias = Callable[[int, int], None] | None
Cut: TypeAlias = tuple[int, int]  # offset and length of a leaf
_Result = TypeVar("_Result")


def leaf_digests(data: "bytes | bytearray | memoryview") -> list[bytes]:
    """The raw SHA-256 of each 256 KiB of `data` from its start; the last leaf may be shorter."""
    view = memoryview(data).cast("B")
    return [_digest(view[i : i + LEAF_BYTES]) for i in range(0, len(view), LEAF_BYTES)]


def tree_digest(leaves: Iterable[bytes]) -> str:
    """The digest of a tensor: hex SHA-256 over its joined leaf digests."""
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def leaf_cuts(size: int, tensor_ranges: Iterable[Cut] = ()) -> list[Cut]:
    """Where a file is cut into leaves: at tensors of at least 16 KiB, and every 256 KiB from there.

    Args:
        size: The file's length in bytes, >= 0.
        tensor_ranges: Offset and length in bytes of the tensors in it.

    Returns:
        Offset and length of each leaf; they follow one another and cover the file.

    Raises:
        SignatureError: If a range leads outside of the file.
    """
    points = {0, size}
    for offset, length in tensor_ranges:
        if offset < 0 or length < 0 or offset + length > size:
            raise SignatureError(
                f"A tensor must lie inside its file. Received: {length} bytes at {offset} of a "
                f"file of {size} bytes."
            )
        if length >= SEGMENT_BYTES:
            points |= {offset, offset + length}
    starts = sorted(points)
    return [
        (offset, min(LEAF_BYTES, end - offset))
        for start, end in itertools.pairwise(starts)
        for offset in range(start, end, LEAF_BYTES)
    ]


def _digest(view: memoryview) -> bytes:
    return hashlib.sha256(view).digest()


def _batches(cuts: Sequence[Cut]) -> Iterator[list[Cut]]:
    """Neighbouring leaves that are read together."""
    batch: list[Cut] = []
    total = 0
    for cut in cuts:
        if batch and total + cut[1] > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(cut)
        total += cut[1]
    if batch:
        yield batch


class _RandomReader:
    """Reads at any place of one open file, from several threads."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._descriptor = descriptor_of(file) if hasattr(os, "preadv") else None
        self._lock = threading.Lock()

    def __call__(self, view: memoryview, offset: int) -> None:
        """Fills `view`; a file that ends before was cut short while it was read."""
        done = 0
        while done < len(view):
            count = self._read_some(view[done:], offset + done)
            if not count:
                raise SignatureError(
                    "A file must not change while it is hashed. Received: one that became "
                    "shorter. Try again when its writer has finished."
                )
            done += count

    def _read_some(self, view: memoryview, offset: int) -> int:
        if self._descriptor is not None:
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view) or 0  # type: ignore[attr-defined]


class _RandomWriter:
    """Writes at any place of one open file, from several threads."""

    def __init__(self, file: BinaryIO | None):
        self._file = file
        self._lock = threading.Lock()

    def __call__(self, view: memoryview, offset: int) -> None:
        done = 0
        while self._file is not None and done < len(view):
            if hasattr(os, "pwrite"):
                done += os.pwrite(self._file.fileno(), view[done:], offset + done)
                continue
            with self._lock:
                self._file.seek(offset + done)
                done += self._file.write(view[done:])


def _split(view: memoryview, batch: list[Cut]) -> list[bytes]:
    start = batch[0][0]
    return [_digest(view[offset - start : offset - start + length]) for offset, length in batch]


def _submit(
    pool: ThreadPoolExecutor, function: Callable[..., _Result], *args: Any
) -> "Future[_Result]":
    """As `pool.submit`; while the interpreter exits, which starts no more threads, it is done here.

    A checkpoint that is being signed on another thread then is still finished.
    """
    try:
        return pool.submit(function, *args)
    except RuntimeError:
        done: Future[_Result] = Future()
        done.set_result(function(*args))
        return done


def hash_leaves(
    file: BinaryIO,
    cuts: Sequence[Cut],
    *,
    copy_to: BinaryIO | memoryview | None = None,
    progress: Progress = None,
) -> list[bytes]:
    """Hashes a file's leaves on all cores, each byte read once.

    Args:
        file: An unbuffered file open for reading, or a `MemoryFile`.
        cuts: From `leaf_cuts` with the file's size.
        copy_to: If given, a file open for writing that receives exactly the bytes hashed; or memory
            of the file's size, into which it is read: what is hashed is then what lies there.
        progress: Called with bytes done and bytes in all.

    Returns:
        The raw digests, in the order of `cuts`.

    Raises:
        SignatureError: If the file is shorter than `cuts` says.
    """
    batches = list(_batches(cuts))
    workers = max(1, min(_MAX_WORKERS, os.cpu_count() or 1, len(batches)))
    memory = copy_to if isinstance(copy_to, memoryview) else None
    read = _RandomReader(file)
    write = _RandomWriter(None if isinstance(copy_to, memoryview) else copy_to)
    results: list[list[bytes]] = [[] for _ in batches]
    done = [0] * workers
    total = sum(length for _, length in cuts)
    stopped = threading.Event()

    def work(worker: int) -> None:
        longest = max((sum(n for _, n in b) for b in batches), default=0)
        buffer = memoryview(bytearray(longest if memory is None else 0))
        for index in range(worker, len(batches), workers):
            if stopped.is_set():
                return
            batch = batches[index]
            start, end = batch[0][0], sum(batch[-1])
            view = buffer[: end - start] if memory is None else memory[start:end]
            read(view, start)
            results[index] = _split(view, batch)
            write(view, start)
            done[worker] += len(view)
            if worker == 0 and progress:
                progress(sum(done), total)

    with ThreadPoolExecutor(workers) as pool:
        others = [_submit(pool, work, worker) for worker in range(1, workers)]
        try:
            work(0)  # in this thread, so that Ctrl-C and `progress` arrive here
            for other in others:
                other.result()
        finally:
            stopped.set()
    return [digest for batch in results for digest in batch]


def hash_whole_and_leaves(
    file: BinaryIO,
    cuts: Sequence[Cut],
    *,
    copy_to: BinaryIO | None = None,
    progress: Progress = None,
) -> tuple[str, list[bytes]]:
    """The hex SHA-256 of a whole file and its leaves, of the same bytes, each read once.

    The whole file's digest is computed here and the leaves' on a second core.

    Args:
        file: An unbuffered file open for reading, or one in memory.
        cuts: From `leaf_cuts` with the file's size.
        copy_to: If given, a file open for writing that receives exactly the bytes hashed.
        progress: Called with bytes done and bytes in all.

    Raises:
        SignatureError: If the file is shorter than `cuts` says.
    """
    whole, leaves = hashlib.sha256(), []
    batches = list(_batches(cuts))
    read, write = _RandomReader(file), _RandomWriter(copy_to)
    total, size = sum(n for _, n in cuts), max((sum(n for _, n in b) for b in batches), default=0)
    buffers = [memoryview(bytearray(size)) for _ in range(min(3, len(batches)))]
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[list[bytes]]] = []
        for index, batch in enumerate(batches):
            if len(waiting) == len(buffers):
                leaves += waiting.pop(0).result()  # its buffer is free again
            end = batch[-1][0] + batch[-1][1]
            view = buffers[index % len(buffers)][: end - batch[0][0]]
            read(view, batch[0][0])
            waiting.append(_submit(pool, _split, view, batch))
            whole.update(view)
            write(view, batch[0][0])
            if progress:
                progress(end, total)
        for future in waiting:
            leaves += future.result()
    return whole.hexdigest(), leaves
