"""Where the files lie that belong to a model: its signature, its statement, and pending ones.

Owns the names. `NAME.sig` and `NAME.modelsec.json` lie beside the model unless the user puts the
signature elsewhere; the statement is then beside the signature.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.statements.manifest import check_file_name
from keras_modelsec.integrity.statements.model_statement import STATEMENT_SUFFIX

SIGNATURE_SUFFIX = ".sig"
PENDING_SUFFIX = ".next"


@dataclass(frozen=True)
class Places:
    """The files that vouch for one model.

    Attributes:
        signature: The OpenSSF signature.
        statement: Our own statement.
    """

    signature: Path
    statement: Path

    @classmethod
    def of(cls, model: Path, signature: Path | None = None) -> "Places":
        """The places for a model, beside it or where the user put the signature.

        Args:
            model: An absolute path.
            signature: An absolute path, or None for beside the model.
        """
        signature = signature or signature_path_of(model)
        name = signature.name.removesuffix(SIGNATURE_SUFFIX)
        return cls(signature, signature.with_name(name + STATEMENT_SUFFIX))

    @property
    def pending(self) -> "Places":
        """Where `SignOnSave` puts new ones before it replaces the model."""
        return Places(_pending(self.signature), _pending(self.statement))

    def names_inside(self, model: Path, *, openssf: bool = True) -> tuple[str, ...]:
        """Their names inside the model's folder; empty if they lie elsewhere.

        Args:
            model: The model's path.
            openssf: Whether the OpenSSF signature is one of them: not if nobody looks at it, for
                then it is a file like others, whose bytes nothing vouches for.
        """
        places = (self.signature, self.statement) if openssf else (self.statement,)
        return tuple(
            place.relative_to(model).as_posix() for place in places if model in place.parents
        )


@dataclass(frozen=True)
class LeftOut:
    """Names inside a model's folder that are no part of it, for `name in left_out`.

    Attributes:
        own: Of signature and statement.
        ignored: Files or folders that the caller has said not to look at.
        signed: Names that are looked at though they are ignored, since they are signed.
    """

    own: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    signed: frozenset[str] = frozenset()

    def __contains__(self, name: object) -> bool:
        return name in self.own or (name not in self.signed and self.ignores(str(name)))

    def ignores(self, name: str) -> bool:
        """Whether a name, or a folder it is in, is ignored."""
        return any(name == path or name.startswith(path + "/") for path in self.ignored)


def check_ignored(ignore: "str | Iterable[str]") -> tuple[str, ...]:
    """Paths inside a model's folder as they are written into a signature, each once, sorted.

    Raises:
        TypeError: If one is no text.
        ValueError: If one is absolute, leads outside, or is the folder itself.
    """
    paths = [ignore] if isinstance(ignore, str) else list(ignore)
    for path in paths:
        if not isinstance(path, str):
            raise TypeError(f"`ignore` must be a list of texts. Received: {type(path).__name__}.")
    names = {path.removesuffix("/") for path in paths}
    for name in names:
        try:
            check_file_name(name)
        except SignatureError:
            raise ValueError(
                "`ignore` must name files or folders inside the model's folder, with '/' and "
                f"without '.' and '..', such as '.git'. Received: {name!r}."
            ) from None
    return tuple(sorted(names))


def signature_path_of(path: Path) -> Path:
    """Where the signature of `path` lies unless the user says otherwise: beside it."""
    if not path.name:
        raise ValueError(
            "`path` must be a file or folder that has a name. Received: the root folder. "
            "Sign a folder inside it, or give `signature_path`."
        )
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def _pending(place: Path) -> Path:
    return place.with_name(place.name + PENDING_SUFFIX)
