import contextlib
import io
import os
import stat
import struct
import warnings
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.errors import UnsafeModelError
from keras_modelsec.integrity.contents.zip_checks import Member, Section, read_members

NAMES = ("metadata.json", "config.json", "model.weights.h5", "assets/layers/größe/words.txt")


def archive(*members, **options):
    """An archive of (name or ZipInfo, bytes) as Python's zipfile, and so Keras, writes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of duplicates
        with zipfile.ZipFile(file, "w", **options) as opened:
            for name, data in members:
                opened.writestr(name, data)
    return file.getvalue()


GOOD = archive(*((name, name.encode() * 3) for name in NAMES))


def read(data):
    return read_members(io.BytesIO(data))


def refused(data, match):
    with pytest.raises(UnsafeModelError, match=match):
        read(data)


def test_members_are_found_where_zipfile_finds_them():
    members = read(GOOD)
    with zipfile.ZipFile(io.BytesIO(GOOD)) as opened:
        infos = opened.infolist()
        assert [m.name for m in members] == [i.filename for i in infos] == list(NAMES)
        for member, info in zip(members, infos, strict=True):
            assert (member.size, member.crc) == (info.file_size, info.CRC)
            data = GOOD[member.offset : member.offset + member.size]
            assert data == opened.read(info) == Section(io.BytesIO(GOOD), member).read()


def test_headers_for_members_over_four_gigabytes_are_read():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in NAMES[:3]:
            with opened.open(name, "w", force_zip64=True) as member:
                member.write(name.encode())
    assert [m.name for m in read(file.getvalue())] == list(NAMES[:3])


def test_directory_with_64_bit_numbers_is_read():
    start = GOOD.index(b"PK\x01\x02")
    entry = zipfile.ZipFile(io.BytesIO(archive(("a", b"abc")))).infolist()[0]
    small = archive(("a", b"abc"))
    start = small.index(b"PK\x01\x02")
    head = small[start : start + 46]
    head = head[:20] + b"\xff" * 8 + struct.pack("<HH", 1, 28) + head[32:42] + b"\xff" * 4
    extra = struct.pack("<HH3Q", 1, 24, entry.file_size, entry.compress_size, entry.header_offset)
    directory = head + b"a" + extra
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    data = small[:start] + directory + end64 + locator + end
    assert zipfile.ZipFile(io.BytesIO(data)).read("a") == b"abc"
    assert read(data) == (Member("a", 31, 3, entry.CRC),)
    disagreeing = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory) - 1, start, 0)
    refused(data[:-22] + disagreeing, "the same in both of its end records")
    moved = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    refused(data[:-42] + moved + end, "ZIP64 records where they belong")


@pytest.mark.slow
def test_a_member_over_two_gigabytes_is_found(tmp_path):
    path = tmp_path / "big.keras"
    zeros = bytes(64 << 20)
    with zipfile.ZipFile(path, "w") as opened:
        with opened.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(33):
                member.write(zeros)
        opened.writestr("after", b"after")
    with open(path, "rb") as file:
        big, after = read_members(file)
        assert big.size == 33 * len(zeros)
        assert Section(file, after).read() == b"after"


def changed(offset, new, data=GOOD):
    return data[:offset] + new + data[offset + len(new) :]


CENTRAL = GOOD.index(b"PK\x01\x02")
LOCAL2 = GOOD.index(b"PK\x03\x04", 1)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"", "be a ZIP archive", id="empty"),
        pytest.param(b"PK\x05\x06" * 10, "be a ZIP archive", id="junk"),
        pytest.param(GOOD[:-1], "be a ZIP archive", id="cut"),
        pytest.param(b"MZ" + GOOD, "where it says, and nothing before", id="prepended"),
        pytest.param(GOOD + b"x", "be a ZIP archive", id="appended"),
        pytest.param(changed(len(GOOD) - 2, b"\1\0") + b"!", "no comment", id="comment"),
        pytest.param(changed(len(GOOD) - 18, b"\1"), "in one part", id="many disks"),
        pytest.param(changed(CENTRAL + 8, b"\1\0"), "no encrypted", id="encrypted"),
        pytest.param(changed(CENTRAL + 8, b"\x08\0"), "streamed", id="streamed"),
        pytest.param(changed(CENTRAL + 10, b"\x08"), "uncompressed", id="says deflated"),
        pytest.param(changed(CENTRAL + 24, b"\xf0"), "uncompressed", id="other size"),
        pytest.param(changed(30, b"Metadata"), "same of a member in both", id="local name"),
        pytest.param(changed(8, b"\x08"), "same of a member in both", id="local method"),
        pytest.param(changed(14, b"\0\0\0\0"), "same of a member's size", id="local check sum"),
        pytest.param(changed(22, b"\1"), "same of a member's size", id="local size"),
        pytest.param(changed(CENTRAL + 42, b"\1"), "one after the other", id="moved"),
        pytest.param(
            GOOD[:LOCAL2] + b"x" + GOOD[LOCAL2:], "where it says, and nothing", id="inserted"
        ),
        pytest.param(archive(("a", b"")).replace(b"a", b"\0"), "plain", id="NUL"),
    ],
)
def test_other_makes_are_refused(data, match):
    refused(data, match)


def test_bytes_between_members_are_refused():
    end = struct.Struct("<4s4H2LH")
    fields = list(end.unpack(GOOD[-22:]))
    fields[6] += 1
    data = GOOD[:LOCAL2] + b"x" + GOOD[LOCAL2:-22] + end.pack(*fields)
    refused(data, "both places")
    second = CENTRAL + 46 + len(NAMES[0])  # the entry that says where the second member is
    moved = changed(second + 1 + 42, struct.pack("<L", LOCAL2 + 1), data)
    with contextlib.suppress(zipfile.BadZipFile):  # as some versions say; others do not see it
        assert zipfile.ZipFile(io.BytesIO(moved)).read(NAMES[1])
    refused(moved, "one after the other")
    before_directory = GOOD[:CENTRAL] + b"x" + GOOD[CENTRAL:-22] + end.pack(*fields)
    with contextlib.suppress(zipfile.BadZipFile):
        assert zipfile.ZipFile(io.BytesIO(before_directory)).testzip() is None
    refused(before_directory, "nothing but its members")


def test_overlapping_members_are_refused():
    # David Fifield's bomb: many entries of the directory share one member's bytes.
    one = archive(("a", bytes(1000)))
    start = one.index(b"PK\x01\x02")
    entry = one[start:-22]
    directory = entry + entry.replace(b"a", b"b")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    refused(one[:start] + directory + end, "one after the other")


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../x", "a\\..\\x", "C:x", "a//b", "./a", "a/.", "..", "a. ", "a./b", "a/"],
)
def test_names_that_lead_outside_are_refused(name):
    refused(archive((name, b"x")), "leads outside|no symbolic link or folder")


@pytest.mark.parametrize(
    "name", ["a\u202egnp.exe", "a\nb", "e\u0301", "a\u200bb", "\ufeffa", "a\x7f"]
)
def test_names_that_look_like_others_are_refused(name):
    refused(archive((name, b"x")), "plain member names")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("a", "a"), "each member once"),
        (("config.json", "CONFIG.json"), "each member once"),
        (("config.json", "\uff43onfig.json"), "each member once"),  # full width
        (("assets/a", "assets/a/b"), "folder of another"),
        (("assets/a/b", "assets/a"), "folder of another"),
    ],
)
def test_two_names_for_one_file_are_refused(names, match):
    refused(archive(*((name, b"x") for name in names)), match)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_are_refused(kind):
    info = zipfile.ZipInfo("assets/x")
    info.external_attr = (kind | 0o777) << 16
    refused(archive((info, b"/etc/passwd")), "no symbolic link or folder")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_and_so_every_bomb_is_refused(method):
    bomb = archive(("config.json", bytes(10 << 20)), compression=method)
    assert len(bomb) < 100_000
    refused(bomb, "uncompressed")


def test_extra_fields_are_refused():
    info = zipfile.ZipInfo("a")
    info.extra = struct.pack("<HH4s", 0xCAFE, 4, b"evil")
    refused(archive((info, b"x")), "no extra fields")


def test_member_for_a_later_version_of_zip_is_refused_as_zipfile_does():
    damaged = bytearray(GOOD)
    damaged[GOOD.index(b"PK\x01\x02") + 6] = 64
    with pytest.raises(NotImplementedError):
        zipfile.ZipFile(io.BytesIO(damaged))
    refused(bytes(damaged), "version 4.5 of ZIP")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_archives_are_read_as_zipfile_reads_them_or_refused(data):
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged)
    try:
        members = read(damaged)
    except UnsafeModelError:
        return
    with zipfile.ZipFile(io.BytesIO(damaged)) as opened:
        assert opened.namelist() == [m.name for m in members]
        for info, member in zip(opened.infolist(), members, strict=True):
            try:
                found = opened.read(info)
            except zipfile.BadZipFile:  # its check sum, which is compared when it is read
                continue
            assert found == damaged[member.offset : member.offset + member.size]


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_by_name(junk):
    refused(junk, "must")
    refused(os.urandom(8) + junk + GOOD[-22:], "must")


def test_section_is_a_file_of_its_own():
    section = Section(io.BytesIO(b"..hello.."), Member("x", 2, 5, 0))
    assert section.read() == b"hello"
    assert section.seek(-4, io.SEEK_END) == 1
    assert section.read(2) == b"el"
    assert section.seek(1, io.SEEK_CUR) == 4
    assert section.read(10) == b"o"
    assert section.seek(100) == 100
    assert section.read(1) == b""
