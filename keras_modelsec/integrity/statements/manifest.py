"""What a model is, for a signature: the names of its files and the digest of each.

Owns names, digests, and the comparison of two of them. Knows nothing of files and signatures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from keras_modelsec.errors import ChangedFile, TamperedModelError, UnsafePathError

SINGLE_FILE = "."


@dataclass(frozen=True)
class Manifest:
    """An immutable description of a signed model.

    Args:
        model_name: The last part of the path it had; for information, never compared.
        digests: Hex SHA-256 by file name. Names are POSIX paths relative to the folder; a single
            file has the name ".".
        ignored: Paths that the signer left out, as the signature says. It hides nothing: only what
            the reader ignores is not looked at.
    """

    model_name: str
    digests: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", MappingProxyType(dict(self.digests)))

    @property
    def is_single_file(self) -> bool:
        """Whether a file was signed and not a folder."""
        return tuple(self.digests) == (SINGLE_FILE,)


def check_file_name(name: str) -> str:
    """Returns `name` if it can stand in a signature: relative, normalised, valid Unicode.

    Names out of a signature are only ever compared with names found on disk, never opened; this
    keeps out those that another tool might resolve to somewhere else.
    """
    parts = name.split("/")
    try:
        encodable = bool(name.encode("utf-8"))
    except UnicodeEncodeError:
        encodable = False
    if not encodable or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts):
        raise UnsafePathError(
            "A signed file name must be a relative POSIX path in Unicode, without '.', '..', empty "
            f"parts or backslashes. Received: {name!r}. Rename the file."
        )
    return name


def difference(
    expected: Manifest, actual: Manifest, path: Path, tensors: Sequence[str] = ()
) -> TamperedModelError:
    """The error that names each file in which the two differ.

    Args:
        expected: What was signed.
        actual: What was found.
        path: Where it was found, for the message.
        tensors: The names of changed tensors, as far as they are known.
    """
    signed, found = expected.digests, actual.digests
    return TamperedModelError(
        f"{str(path)!r} is not what was signed.{_hint(expected, actual)}",
        changed=[
            ChangedFile(name, signed[name], found[name])
            for name in sorted(signed.keys() & found.keys())
            if signed[name] != found[name]
        ],
        added=sorted(found.keys() - signed.keys()),
        missing=sorted(signed.keys() - found.keys()),
        tensors=tensors,
    )


def _hint(expected: Manifest, actual: Manifest) -> str:
    added = actual.digests.keys() - expected.digests.keys()
    paths = [
        path
        for path in expected.ignored
        if any(name == path or name.startswith(path + "/") for name in added)
    ]
    if not paths:
        return ""
    return (
        f" The signer left out {', '.join(map(repr, paths))}: if nothing that loads the model "
        "reads that, say so with `ignore`."
    )
