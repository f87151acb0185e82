import io
import os
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_modelsec._core.gathered_file import GatheredFile
from keras_modelsec.integrity.contents.zip_checks import read_members


def test_archive_is_the_one_that_zipfile_writes_to_any_seekable_file():
    large = os.urandom(200_000)

    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in (("a", b""), ("b", b"small"), ("c", large), ("d", large[:70_000])):
                archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data)

    gathered, plain = GatheredFile(), io.BytesIO()
    write(gathered)
    write(plain)
    data = b"".join(gathered.parts())
    assert data == plain.getvalue()
    assert [member.name for member in read_members(gathered)] == ["a", "b", "c", "d"]


def test_large_pieces_are_not_copied():
    file, large = GatheredFile(), bytearray(100_000)
    file.write(memoryview(large))
    large[0] = 7
    (part,) = file.parts()
    assert part[0] == 7


def test_what_it_cannot_do_is_refused():
    file = GatheredFile()
    file.write(b"abc")
    file.write(bytes(100_000))
    for place in (1, 100_002):
        file.seek(place)
        with pytest.raises(io.UnsupportedOperation, match="by reference"):
            file.write(b"xyz")
    with pytest.raises(io.UnsupportedOperation, match="cut off"):
        file.truncate(10)
    assert file.size == 100_003


_places = st.integers(0, 300_000)


@given(
    st.lists(st.tuples(_places, st.sampled_from([0, 1, 5, 4096, 9000, 64 << 10, 150_000]))),
    st.tuples(_places, _places),
)
def test_bytes_are_those_of_any_file_written_in_the_same_way(writes, read):
    gathered, plain = GatheredFile(), io.BytesIO()
    for count, (place, length) in enumerate(writes):
        gathered.seek(place)
        try:
            gathered.write(bytes([count % 251 + 1]) * length)
        except io.UnsupportedOperation:
            continue
        plain.seek(place)
        plain.write(bytes([count % 251 + 1]) * length)
    gathered.truncate(max(gathered.size, plain.seek(0, io.SEEK_END)))
    plain.truncate(gathered.size)
    plain.seek(0, io.SEEK_END)
    plain.write(bytes(gathered.size - plain.tell()))
    assert b"".join(gathered.parts()) == plain.getvalue()
    for file in (gathered, plain):
        file.seek(read[0])
    assert gathered.read(read[1]) == plain.read(read[1])
    assert gathered.tell() == plain.tell()
    assert gathered.seek(0, io.SEEK_END) == gathered.size
