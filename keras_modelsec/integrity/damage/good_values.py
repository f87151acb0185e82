"""The values that tensors should have, from a good copy that is proved good by the signed digests.

Owns which bytes of a reference are believed: those whose digest is the signed one, whatever path or
model they come from.
"""

from pathlib import Path
from typing import Any, BinaryIO, Protocol

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.signatures.describing import compare
from keras_modelsec.integrity.signatures.hashing import leaf_digests, tree_digest
from keras_modelsec.integrity.signatures.manifest import SINGLE_FILE
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.tensor_layout import (
    TensorRecord,
    model_tensors,
    tensor_bytes,
)


class GoodValues(Protocol):
    """Where the signed bytes of tensors come from."""

    def of(self, record: TensorRecord) -> "bytes | memoryview | None":
        """The signed bytes of a tensor, or None if they are not to be had."""

    def place(self, name: str) -> Path | None:
        """The good copy of a signed file, or None if there is none."""


class NoValues:
    """There is no reference."""

    def of(self, record: TensorRecord) -> None:
        """None."""

    def place(self, name: str) -> None:
        """None."""


class FileValues:
    """Reads tensors of a signed file or folder where the statement says they lie.

    Each tensor's bytes are compared with its signed digest when they are read.

    Args:
        path: An absolute path.
        statement: What was signed.
    """

    def __init__(self, path: Path, statement: ModelStatement):
        self._path = path
        self._statement = statement

    def check(self) -> None:
        """Hashes the whole copy.

        Raises:
            SignatureError: If it is not what was signed, to the byte.
            OSError: If it cannot be read.
        """
        found = compare(self._path, self._statement, skip=_own_names(self._path))
        if found.manifest.digests != self._statement.manifest.digests:
            raise SignatureError(
                "`reference` must be a good copy of what was signed, to the byte. Received: "
                f"{str(self._path)!r}, which is none. Pass another copy, or no reference."
            )

    def of(self, record: TensorRecord) -> bytes | None:
        """The signed bytes of a tensor."""
        if record.offset is None:
            return None
        try:
            with files.open_regular(self.place(record.file)) as file:
                data = read_at(file, record.offset, record.nbytes)
        except OSError:
            return None
        return data if tree_digest(leaf_digests(data)) == record.digest else None

    def place(self, name: str) -> Path:
        """The copy's file."""
        return self._path if name == SINGLE_FILE else self._path / name


class ModelValues:
    """The weights of a model in memory, as far as they have the signed digests.

    Args:
        model: A Keras model.
    """

    def __init__(self, model: Any):
        self._tensors = dict(model_tensors(model))

    def of(self, record: TensorRecord) -> memoryview | None:
        """The signed bytes of a tensor."""
        if record.path not in self._tensors:
            return None
        data = tensor_bytes(self._tensors[record.path])
        return data if tree_digest(leaf_digests(data)) == record.digest else None

    def place(self, name: str) -> None:
        """None: there is no file."""


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer if it ends before."""
    file.seek(offset)
    data = bytearray()
    while len(data) < length and (more := file.read(length - len(data))):
        data += more
    return bytes(data)


def _own_names(path: Path) -> tuple[str, ...]:
    return Places.of(path).names_inside(path)
