"""The tensors in a model's files: where their bytes lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a file."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None
    nbytes: int
    digest: str = ""
    file: str = "."


def read_tensor_layout(path: Path) -> tuple[TensorRecord, ...]:
    """The tensors in a file, their digests not yet made."""
    return ()
