"""What is read of files that anybody may have made."""

import os

import pytest

from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError, UnsafePathError


class CountingFile:
    """A file that notes how many bytes were asked of it, and had."""

    def __init__(self, file):
        self._file = file
        self.sizes = []

    def read(self, size):
        data = self._file.read(size)
        self.sizes.append(len(data))
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def opened(monkeypatch):
    made, open_regular = [], files.open_regular

    def counting(path):
        made.append(CountingFile(open_regular(path)))
        return made[-1]

    monkeypatch.setattr(files, "open_regular", counting)
    return made


def test_file_above_the_limit_is_refused_and_not_read(tmp_path, opened):
    path = tmp_path / "m.sig"
    with open(path, "wb") as file:
        file.truncate((1 << 20) + 1)  # sparse: it costs nothing
    with pytest.raises(SignatureError, match="at most 1048576 bytes"):
        files.read_limited(path, 1 << 20)
    assert sum(opened[0].sizes) == 0


def test_file_that_grows_is_read_to_one_byte_above_the_limit(tmp_path, opened, monkeypatch):
    path = tmp_path / "m.sig"
    path.write_bytes(bytes(5 << 20))
    fstat = files.os.fstat

    class Small:
        st_size, st_mode = 0, 0o100644

    monkeypatch.setattr(files.os, "fstat", lambda fd: Small if opened else fstat(fd))
    with pytest.raises(SignatureError, match="which has more"):
        files.read_limited(path, 3 << 20)
    assert sum(opened[0].sizes) == (3 << 20) + 1
    assert len(opened[0].sizes) <= 4


@pytest.mark.parametrize("size", [0, 1, 100])
def test_file_up_to_the_limit_is_read_whole(tmp_path, size):
    path = tmp_path / "m.sig"
    path.write_bytes(b"x" * size)
    assert files.read_limited(path, 100) == b"x" * size


class Dripping:
    """A file that gives three bytes at most at a time, as an unbuffered one may."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def seek(self, offset):
        self._at = offset

    def readinto(self, view):
        part = self._data[self._at : self._at + min(3, len(view))]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (4, 6), (4, 5), (10, 3), (8, 100), (0, 0)])
def test_read_at_gives_all_there_is_however_little_comes_at_a_time(offset, length):
    data = bytes(range(10))
    assert files.read_at(Dripping(data), offset, length) == data[offset : offset + length]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are refused by a flag")
@pytest.mark.parametrize("writable", [False, True])
def test_neither_link_nor_pipe_is_opened(tmp_path, writable):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(UnsafePathError):
            files.open_regular(tmp_path / name, writable=writable)
