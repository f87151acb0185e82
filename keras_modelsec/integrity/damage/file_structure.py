"""What a file that nobody vouches for says of itself: the parts of its archive, and its tensors.

Owns the safe reading of damaged and hostile model files to report on them. Only files that are
built as Keras builds them are looked into, by zip_checks.py and hdf5_checks.py; nothing is loaded.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import UnsafeModelError
from keras_modelsec.integrity.loaders.zip_checks import Member, Section, read_members
from keras_modelsec.integrity.signatures.tensor_layout import TensorRecord, read_tensor_layout

WEIGHTS = "model.weights.h5"
DIRECTORY = "the archive's directory"
_HDF5_ENDINGS = (".h5", ".hdf5")
_SMALL_BYTES = 64 << 20  # of parts whose check sums are looked at


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
    from keras_modelsec.integrity.loaders.hdf5_checks import (
        check_hdf5,  # h5py, which is slow to import
    )

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


def wrong_check_sums(path: Path, members: tuple[Member, ...]) -> list[str]:
    """The small members whose bytes do not have the archive's own CRC-32.

    Accidents show so; whoever changes a file on purpose corrects the check sum.
    """
    with files.open_regular(path) as file:
        return [
            member.name
            for member in members
            if member.size <= _SMALL_BYTES
            and member.name != WEIGHTS
            and zlib.crc32(Section(file, member).read(member.size)) != member.crc
        ]


def member_digests(path: Path, members: tuple[Member, ...]) -> dict[str, str]:
    """Hex SHA-256 of each member but the weights, which are compared tensor by tensor."""
    with files.open_regular(path) as file:
        return {member.name: _digest(file, member) for member in members if member.name != WEIGHTS}


def _digest(file: BinaryIO, member: Member) -> str:
    digest, section = hashlib.sha256(), Section(file, member)
    while chunk := section.read(files.CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
