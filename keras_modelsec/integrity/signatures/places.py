"""Where the files lie that belong to a model: its signature, its statement, and pending ones.

Owns the names. `NAME.sig` and `NAME.modelsec.json` lie beside the model unless the user puts the
signature elsewhere; the statement is then beside the signature.
"""

from dataclasses import dataclass
from pathlib import Path

from keras_modelsec.integrity.signatures.model_statement import STATEMENT_SUFFIX

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

    def names_inside(self, model: Path) -> tuple[str, ...]:
        """Their names inside the model's folder; empty if they lie elsewhere."""
        return tuple(
            place.relative_to(model).as_posix()
            for place in (self.signature, self.statement)
            if model in place.parents
        )


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
