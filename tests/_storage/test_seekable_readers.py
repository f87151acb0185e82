import io
import os

import pytest

from keras_modelsec._storage.seekable_readers import MemoryFile, fits_memory

DATA = bytes(range(200))


def test_reads_as_a_file_in_memory_does():
    ours, theirs = MemoryFile(memoryview(DATA)), io.BytesIO(DATA)
    for offset, whence, count in [(0, 0, 7), (3, 1, 50), (-10, 2, 20), (500, 0, 3), (0, 0, -1)]:
        assert ours.seek(offset, whence) == theirs.seek(offset, whence) == ours.tell()
        assert ours.read(count) == theirs.read(count)
        assert ours.tell() == theirs.tell()
    with pytest.raises(ValueError, match="must not be negative"):
        ours.seek(-1)


def test_bytes_are_not_copied():
    memory = bytearray(DATA)
    file = MemoryFile(memoryview(memory))
    memory[0] = 99
    assert file.read(1) == b"c"


def test_half_of_the_memory_fits_and_all_of_it_does_not():
    assert fits_memory(1 << 20)
    if hasattr(os, "sysconf"):
        assert not fits_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
