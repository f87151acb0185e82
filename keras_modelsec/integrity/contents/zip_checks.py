"""The ZIP archives that Keras writes, and no others: every byte accounted for.

Owns the reading of an untrusted archive's structure. Keras stores its members one after the other,
uncompressed, with nothing before, between or after them. An archive of any other make can be read
in two ways by two tools, or grow when it is read; so it is refused, with the rule it breaks.
"""

import io
import struct
import unicodedata
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from keras_modelsec._storage.files import fill, read_at
from keras_modelsec._storage.seekable_readers import SeekableReader
from keras_modelsec.errors import UnsafeModelError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_IN_ZIP64 = 0xFFFFFFFF  # the value is in the ZIP64 field
_MANY = 0xFFFF
_MAX_DIRECTORY_BYTES = 64 << 20
_UTF8 = 0x800
_NEWEST = 45  # the version of ZIP that has its 64-bit sizes, tenths; the last that Keras needs
_REGULAR_FILE, _TYPE_BITS, _DOS_FOLDER = 0o100000, 0o170000, 0x10


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    Args:
        name: Its name, checked to lead nowhere else.
        offset: Where its bytes begin in the archive.
        size: How many there are.
        crc: Their CRC-32 as the archive has it; not compared here.
    """

    name: str
    offset: int
    size: int
    crc: int


def read_members(file: BinaryIO) -> tuple[Member, ...]:
    """The members of an archive as Keras writes it, in their order in the file.

    Args:
        file: A seekable file open for reading.

    Raises:
        UnsafeModelError: If it is no such archive: compressed, encrypted, duplicate, overlapping or
            linked members, names that lead outside, a comment, bytes that belong to no member, or
            two places that say different things.
    """
    size = file.seek(0, io.SEEK_END)
    directory, directory_offset, count = _read_directory(file, size)
    members, position, at = [], 0, 0
    for _ in range(count):
        entry, at = _read_entry(directory, at)
        if entry.header_offset != position:
            _refuse("hold its members one after the other, with no bytes between", entry.name)
        member = _read_local(file, entry)
        members.append(member)
        position = member.offset + member.size
    if at != len(directory) or position != directory_offset:
        _refuse("hold nothing but its members and their directory", "other bytes")
    _check_together([member.name for member in members])
    return tuple(members)


@dataclass(frozen=True)
class _Entry:
    """What the central directory says of a member."""

    name: str
    raw_name: bytes
    flags: int
    crc: int
    size: int
    header_offset: int


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    data = read_at(file, offset, count)
    if len(data) != count:
        _refuse("be whole", "one that ends too early")
    return data


def _read_directory(file: BinaryIO, size: int) -> tuple[bytes, int, int]:
    """The central directory, where it begins, and how many members it lists."""
    if size < _END.size:
        _refuse("be a ZIP archive", f"{size} bytes")
    end = _END.unpack(_read_at(file, size - _END.size, _END.size))
    magic, disk, start_disk, here, count, length, offset, comment = end
    if magic != b"PK\x05\x06" or comment:
        _refuse("be a ZIP archive that ends with its directory, with no comment", magic)
    directory_end = size - _END.size
    big = _read_end64(file, directory_end, (here, count, length, offset))
    if big:
        count, length, offset = big
        here = count
        directory_end -= _LOCATOR64.size + _END64.size
    if disk or start_disk or here != count:
        _refuse("be in one part", f"part {disk} of several")
    if offset + length != directory_end or length > _MAX_DIRECTORY_BYTES:
        _refuse("have its directory where it says, and nothing before", f"{length} at {offset}")
    return _read_at(file, offset, length), offset, count


def _read_end64(
    file: BinaryIO, end: int, short: tuple[int, int, int, int]
) -> tuple[int, int, int] | None:
    """The same from the ZIP64 records, if there are any; they must agree with the short one."""
    start = end - _LOCATOR64.size - _END64.size
    if start < 0 or _read_at(file, end - _LOCATOR64.size, 4) != b"PK\x06\x07":
        return None
    _, disk, place, disks = _LOCATOR64.unpack(
        _read_at(file, end - _LOCATOR64.size, _LOCATOR64.size)
    )
    record = _END64.unpack(_read_at(file, start, _END64.size))
    magic, length, _, _, this_disk, start_disk, here, count, size, offset = record
    if (magic, length, disk, disks, place) != (b"PK\x06\x06", _END64.size - 12, 0, 1, start):
        _refuse("have its ZIP64 records where they belong", place)
    expected = (min(count, _MANY), min(count, _MANY), min(size, _IN_ZIP64), min(offset, _IN_ZIP64))
    if this_disk or start_disk or here != count or short != expected:
        _refuse("say the same in both of its end records", short)
    return count, size, offset


def _read_entry(directory: bytes, at: int) -> tuple[_Entry, int]:
    """The entry of the central directory at `at`, and where the next one begins."""
    if at + _CENTRAL.size > len(directory):
        _refuse("list every member in its directory", "a directory that is too short")
    fields = _CENTRAL.unpack_from(directory, at)
    magic, _, version, flags, method, _, _, crc, packed, size = fields[:10]
    name_length, extra_length, comment, disk, _, attributes, offset = fields[10:]
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_length
    end = extra_at + extra_length
    raw_name = directory[name_at:extra_at]
    if magic != b"PK\x01\x02" or end > len(directory) or comment or disk:
        _refuse("have a directory of plain entries, with no comments", raw_name)
    values = _resolve64([size, packed, offset], directory[extra_at:end], raw_name)
    size, packed, offset = values
    name = _decode_name(raw_name, flags)
    if method or size != packed:
        _refuse("hold its members uncompressed, as Keras writes them", name)
    if version > _NEWEST:
        _refuse(f"need version {_NEWEST / 10} of ZIP at most", name)
    if flags & ~_UTF8:
        _refuse("hold no encrypted or streamed member", name)
    kind = (attributes >> 16) & _TYPE_BITS
    if kind not in (0, _REGULAR_FILE) or attributes & _DOS_FOLDER:
        _refuse("hold regular files, and no symbolic link or folder", name)
    return _Entry(name, raw_name, flags, crc, size, offset), end


def _resolve64(values: list[int], extra: bytes, name: object) -> list[int]:
    """Replaces the values that are in the ZIP64 field, the only extra field there may be."""
    missing = [index for index, value in enumerate(values) if value == _IN_ZIP64]
    expected = struct.pack("<HH", 1, 8 * len(missing)) if missing else b""
    if extra[:4] != expected or len(extra) != len(expected) + 8 * len(missing):
        _refuse("have no extra fields but those for sizes over 4 GiB", name)
    for index, value in zip(missing, struct.unpack(f"<{len(missing)}Q", extra[4:]), strict=True):
        values[index] = value
    return values


def _read_local(file: BinaryIO, entry: _Entry) -> Member:
    """Checks that the header before a member's bytes says what the directory says."""
    fields = _LOCAL.unpack(_read_at(file, entry.header_offset, _LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    name_at = entry.header_offset + _LOCAL.size
    if magic != b"PK\x03\x04" or name_length != len(entry.raw_name):
        _refuse("say the same of a member in both places", entry.name)
    name = _read_at(file, name_at, name_length)
    extra = _read_at(file, name_at + name_length, extra_length)
    if name != entry.raw_name or flags != entry.flags or method:
        _refuse("say the same of a member in both places", entry.name)
    size, packed = _resolve64([size, packed], extra, entry.name)
    if (size, packed, crc) != (entry.size, entry.size, entry.crc):
        _refuse("say the same of a member's size in both places", entry.name)
    return Member(entry.name, name_at + name_length + extra_length, size, crc)


def _decode_name(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        _refuse("have member names in ASCII or marked UTF-8", raw)
    parts = name.split("/")
    outside = "\\" in name or ":" in name or {"", ".", ".."} & set(parts)
    if outside or any(part[-1] in " ." for part in parts):
        _refuse("have no member name that leads outside", name)
    if not name.isprintable() or unicodedata.normalize("NFC", name) != name:
        _refuse("have plain member names", name)
    return name


def _check_together(names: list[str]) -> None:
    """No two names may be one file, or one of them the other's folder, on any file system."""
    seen = set()
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        if folded in seen:
            _refuse("hold each member once", name)
        seen.add(folded)
    for name in seen:
        while "/" in name:
            name = name.rpartition("/")[0]
            if name in seen:
                _refuse("have no member that is a folder of another", name)


def _refuse(rule: str, value: object) -> NoReturn:
    raise UnsafeModelError(
        f"A .keras file must {rule}. Received: {str(value)[:200]!r}. "
        "Save the model again with Keras, and sign that."
    )


class Section(SeekableReader):
    """A member's bytes as a read-only file of its own, inside the archive's.

    Args:
        file: The archive, seekable. Nothing else may move its position meanwhile.
        member: The member.
    """

    def __init__(self, file: BinaryIO, member: Member):
        super().__init__(member.size)
        self._file = file
        self._offset = member.offset

    def read_at(self, place: int, view: memoryview) -> int:
        """Fills `view` from `place` on, as far as the archive goes."""
        self._file.seek(self._offset + place)
        return fill(view, self._file)
