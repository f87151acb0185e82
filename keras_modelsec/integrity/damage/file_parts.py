"""What the bytes of a model file outside of its tensors belong to, as far as it can be told.

Owns the words for these parts. The walk over an archive goes from one member's own header to the
next, so that a damaged directory at the end does no harm. It may be wrong for hostile files: what
it says is a hint for people and decides nothing.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from keras_modelsec.integrity.loaders.zip_checks import Member, Section
from keras_modelsec.integrity.signatures.hashing import Cut

WEIGHTS = "model.weights.h5"
HDF5_STRUCTURE, ZIP_HEADERS = "HDF5 structure", "ZIP headers"
HDF5_CONTENTS = "HDF5 contents"  # where no tensor has a place of its own
_HDF5_ENDINGS = (".h5", ".hdf5")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_MEMBERS = 1000
_MAX_CHECKED_BYTES = 16 << 20
_LONGEST_NAME = 200
_UNKNOWN_CRC = -1


def read_local_members(file: BinaryIO) -> tuple[Member, ...]:
    """The members of an archive by the headers before them, until one is not where it should be.

    Args:
        file: A seekable file open for reading. Untrusted.
    """
    size, position = file.seek(0, os.SEEK_END), 0
    members: list[Member] = []
    while len(members) < _MAX_MEMBERS:
        file.seek(position)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            break
        fields = _LOCAL.unpack(header)
        crc = _UNKNOWN_CRC if fields[3] else fields[6]  # that of what is compressed is another's
        packed, name_length, extra_length = fields[7], fields[9], fields[10]
        name = file.read(min(name_length, _LONGEST_NAME)).decode("utf-8", "replace")
        start = position + _LOCAL.size + name_length + extra_length
        members.append(Member(name, start, min(packed, max(0, size - start)), crc))
        position = start + packed
    return tuple(members)


def wrong_check_sums(file: BinaryIO, members: Iterable[Member]) -> list[str]:
    """The small members whose bytes do not have the archive's own CRC-32.

    Accidents show so; whoever changes a file on purpose corrects the check sum.
    """
    return [
        member.name
        for member in members
        if member.size <= _MAX_CHECKED_BYTES
        and member.name != WEIGHTS
        and member.crc != _UNKNOWN_CRC
        and zlib.crc32(Section(file, member).read(member.size)) != member.crc
    ]


def part_ranges(
    name: str, size: int, tensors: Iterable[Cut], members: Sequence[Member]
) -> list[tuple[int, int, str]]:
    """Which bytes of a file lie outside of its tensors, and what they belong to.

    Args:
        name: The file's name, whose ending says what it is.
        size: Its length in bytes.
        tensors: Offset and length of the tensors.
        members: Of an archive; none for other files.

    Returns:
        Start, end and name of each part, in order. Nothing for a file that is neither .keras nor
        HDF5.
    """
    placed = list(tensors)
    structure = HDF5_STRUCTURE if placed else HDF5_CONTENTS
    if name.endswith(_HDF5_ENDINGS):
        inside = [(0, size, structure)]
    elif name.endswith(".keras"):
        inside = _archive_ranges(size, members, structure)
    else:
        return []
    found = []
    for start, end in _gaps(size, placed):
        for low, high, part in inside:
            if low < end and start < high:
                found.append((max(low, start), min(high, end), part))
    return found


def _archive_ranges(
    size: int, members: Sequence[Member], structure: str
) -> list[tuple[int, int, str]]:
    if not members:
        return [(0, size, "ZIP or HDF5 structure, or configuration")]
    ranges, position = [], 0
    for member in members:
        part = f"{structure} in {WEIGHTS}" if member.name == WEIGHTS else member.name
        end = min(size, member.offset + member.size)
        ranges += [(position, member.offset, ZIP_HEADERS), (member.offset, end, part)]
        position = end
    ranges.append((position, size, ZIP_HEADERS))
    return [item for item in ranges if item[0] < item[1]]


def _gaps(size: int, ranges: Iterable[Cut]) -> list[tuple[int, int]]:
    """What of a file of `size` bytes lies in none of the ranges."""
    gaps, position = [], 0
    for offset, length in sorted(ranges):
        if offset > position:
            gaps.append((position, offset))
        position = max(position, offset + length)
    if position < size:
        gaps.append((position, size))
    return gaps
