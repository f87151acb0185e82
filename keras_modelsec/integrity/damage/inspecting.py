"""What comes with a model, told without believing it: signers, version, files, tensors, provenance.

Owns the reading of signature, statement and file structure for people who want to see them before
they know whom to trust, and the words for what lies outside of tensors. Nothing here is verified;
the caller says so, or verifies. Files that are built as Keras builds them are looked into by
zip_checks.py and hdf5_checks.py; nothing is loaded. The walk over any other archive goes from one
member's own header to the next, so that a damaged directory at the end does no harm: what it says
may be wrong for hostile files, is a hint for people, and decides nothing.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError, UnsafeModelError
from keras_modelsec.integrity.contents.hashing import Cut
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord, read_tensor_layout
from keras_modelsec.integrity.contents.zip_checks import Member, Section, read_members
from keras_modelsec.integrity.signing.describing import list_model
from keras_modelsec.integrity.statements.model_statement import ModelStatement
from keras_modelsec.integrity.statements.places import LeftOut, Places

WEIGHTS = "model.weights.h5"
DIRECTORY = "the archive's directory"
_HDF5_ENDINGS = (".h5", ".hdf5")
HDF5_STRUCTURE, ZIP_HEADERS = "HDF5 structure", "ZIP headers"
HDF5_CONTENTS = "HDF5 contents"  # where no tensor has a place of its own
_MAX_CHECKED_BYTES = 16 << 20
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_MEMBERS = 1000
_LONGEST_NAME = 200
_UNKNOWN_CRC = -1


@dataclass(frozen=True)
class FileStructure:
    """The parts of one file.

    Attributes:
        tensors: By their paths; None if the file is not built as Keras builds it.
        members: The members of a .keras archive; none for other files.
        texts: The configuration texts of a legacy whole-model HDF5 file.
        refusal: Why there are no tensors; "" if there are, or the file is of another kind.
    """

    tensors: Mapping[str, TensorRecord] | None = None
    members: tuple[Member, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""

    def parts_between(self, start: int, stop: int) -> list[str]:
        """The members of the archive that have bytes from `start` to before `stop`."""
        found = [m.name for m in self.members if m.offset < stop and start < m.offset + m.size]
        if self.members and stop > max(m.offset + m.size for m in self.members):
            found.append(DIRECTORY)
        return found


def read_structure(path: Path) -> FileStructure:
    """Reads a .keras or HDF5 file's structure; of other files there is nothing to say.

    Raises:
        UnsafePathError: If `path` is no regular file.
        OSError: If it cannot be read.
    """
    if path.suffix != ".keras" and path.suffix not in _HDF5_ENDINGS:
        return FileStructure()
    # h5py, which is slow to import
    from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5

    members: tuple[Member, ...] = ()
    texts: Mapping[str, str] = {}
    try:
        with files.open_regular(path) as file:
            if path.suffix == ".keras":
                members = read_members(file)
                check_hdf5(Section(file, _weights_of(members)))  # type: ignore[arg-type]
            else:
                texts = check_hdf5(file, legacy=not path.name.endswith(".weights.h5"))
    except UnsafeModelError as error:
        return FileStructure(members=members, refusal=str(error))
    tensors = {tensor.path: tensor for tensor in read_tensor_layout(path)}
    return FileStructure(tensors, members, texts)


def _weights_of(members: tuple[Member, ...]) -> Member:
    for member in members:
        if member.name == WEIGHTS:
            return member
    raise UnsafeModelError(f"A .keras file must hold {WEIGHTS}. Received: one without.")


def member_digests(path: Path, members: tuple[Member, ...]) -> dict[str, str]:
    """Hex SHA-256 of each member but the weights, which are compared tensor by tensor."""
    with files.open_regular(path) as file:
        return {member.name: _digest(file, member) for member in members if member.name != WEIGHTS}


def _digest(file: BinaryIO, member: Member) -> str:
    digest, section = hashlib.sha256(), Section(file, member)
    while chunk := section.read(files.CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


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


_LENGTHS = {64: "ed25519", 3309: "ml-dsa-65"}  # of signatures; those of ECDSA are DER


@dataclass(frozen=True)
class Signer:
    """Who is said to have signed, in which file.

    Attributes:
        file: The name of the signature or statement file.
        algorithm: By the kind of signature: "ecdsa", "ed25519", "ml-dsa-65" or "unknown".
        hint: Hex SHA-256 of the public key; "" if there are certificates instead.
    """

    file: str
    algorithm: str
    hint: str


@dataclass(frozen=True)
class Inspection:
    """What is there.

    Attributes:
        signers: One entry for each signature; none for an unsigned model.
        statement: What the statement says, unverified; None if there is none that can be read.
        sizes: By file name, the length in bytes of what is there.
        tensors: As the statement says, or if there is none as the files themselves do.
        problems: What is there and cannot be read.
    """

    signers: tuple[Signer, ...]
    statement: ModelStatement | None
    sizes: dict[str, int]
    tensors: tuple[TensorRecord, ...]
    problems: tuple[str, ...]


def inspect_model(
    path: Path, signature: Path | None = None, ignored: tuple[str, ...] = ()
) -> Inspection:
    """Reads what comes with a model; verifies nothing.

    Args:
        path: An absolute path of a file or folder.
        signature: Where its signature is, or None for beside it.
        ignored: Paths inside a folder, from `check_ignored`, that are not listed.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link or special file is met.
        OSError: If a file cannot be read.
    """
    places = Places.of(path, signature)
    found = list_model(path, LeftOut(places.names_inside(path), ignored))
    problems: list[str] = []
    signers = _openssf_signers(places.signature, problems)
    more, statement = _read_statement(places.statement, problems)
    if statement:
        tensors = statement.tensors
    else:
        tensors = tuple(
            TensorRecord(t.path, t.shape, t.dtype, t.offset, t.nbytes, t.digest, name)
            for name, place in found.items()
            for t in (read_structure(place).tensors or {}).values()
        )
    sizes = {name: place.stat().st_size for name, place in found.items()}
    return Inspection((*signers, *more), statement, sizes, tensors, tuple(problems))


def _openssf_signers(place: Path, problems: list[str]) -> tuple[Signer, ...]:
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
    except FileNotFoundError:
        return ()
    except SignatureError as error:
        problems.append(f"{place.name}: {error}")
        return ()
    return (Signer(place.name, "ecdsa", envelope.hint),)


def _read_statement(
    place: Path, problems: list[str]
) -> tuple[tuple[Signer, ...], ModelStatement | None]:
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(place, MAX_ENVELOPE_BYTES))
        statement = ModelStatement.from_unverified(envelope.payload)
    except FileNotFoundError:
        return (), None
    except SignatureError as error:
        problems.append(f"{place.name}: {error}")
        return (), None
    signers = (Signer(place.name, _algorithm(sig), hint) for hint, sig in envelope.signatures)
    return tuple(signers), statement


def _algorithm(signature: bytes) -> str:
    is_der = signature[:1] == b"\x30" and len(signature) not in _LENGTHS
    return _LENGTHS.get(len(signature), "ecdsa" if is_der else "unknown")
