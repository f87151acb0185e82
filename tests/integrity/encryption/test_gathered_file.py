import io
import os
import zipfile

import pytest

from keras_modelsec.integrity.encryption.gathered_file import GatheredFile
from keras_modelsec.integrity.loaders.zip_checks import read_members


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
    assert [member.name for member in read_members(io.BytesIO(data))] == ["a", "b", "c", "d"]


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
    file.seek(1)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"xyz")
    file.seek(10)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    with pytest.raises(io.UnsupportedOperation):
        file.seek(1, io.SEEK_END)
    assert file.tell() == 10
