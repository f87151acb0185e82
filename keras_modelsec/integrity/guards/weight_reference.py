"""What live weights are compared with: signed digests, or what was seen first; and the values.

Values for restoring come from bytes whose digest is the trusted one: whatever path they were read
from, they are the signed bytes or they are refused. No file is parsed here.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Protocol

import keras

from keras_modelsec._core import backend
from keras_modelsec._signing.trust import Threshold, load_trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError, TamperedWeightsError
from keras_modelsec.integrity.contents.hashing import LEAF_BYTES, leaf_digests, tree_digest
from keras_modelsec.integrity.guards.weight_scanner import live_leaves
from keras_modelsec.integrity.signing.evidence import believed
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE
from keras_modelsec.integrity.statements.model_statement import statement_path_of

# Signed, and absent from a model that was loaded without.
_NOT_WEIGHTS = ("optimizer/", "_spent_privacy/")


class Reference(Protocol):
    """Where trusted digests and values of weights come from."""

    def check_names(self, constant: Collection[str], live: Collection[str]) -> None:
        """Raises `TamperedWeightsError` if weights were added to the model or are missing."""

    def expected(self, name: str, variable: keras.Variable) -> tuple[list[list[bytes]], bool]:
        """The leaf digests a weight must have, for each replica's copy.

        Also whether it was compared with them just now.
        """

    def value(self, name: str) -> bytes:
        """The trusted bytes of a weight."""

    def forget(self, names: Iterable[str] | None = None) -> None:
        """Forgets what was seen of these weights, or of all; never what was signed."""


class SeenWeights:
    """Trusts each weight as it is when it is first seen.

    Args:
        keeps_values: Whether to copy the values, for restoring.
    """

    def __init__(self, keeps_values: bool):
        self._keeps_values = keeps_values
        self._leaves: dict[str, list[list[bytes]]] = {}
        self._values: dict[str, bytes] = {}

    def check_names(self, constant: Collection[str], live: Collection[str]) -> None:
        """Nothing to check: names that are new are trusted from now on."""

    def expected(self, name: str, variable: keras.Variable) -> tuple[list[list[bytes]], bool]:
        """What was seen the first time, which may be now."""
        if name in self._leaves:
            return self._leaves[name], False
        if self._keeps_values:
            memory = backend.memory_of(backend.variable_contents(variable)[0])
            self._values[name] = bytes(memory)
        self._leaves[name] = live_leaves(variable)
        return self._leaves[name], True

    def value(self, name: str) -> bytes:
        """The copy made when the weight was first seen."""
        value = self._values[name]
        if leaf_digests(value) != self._leaves[name][0]:
            raise _damaged(name, "the copy in memory was changed too")
        return value

    def forget(self, names: Iterable[str] | None = None) -> None:
        """The next look at these weights is the first."""
        for name in list(self._leaves) if names is None else names:
            self._leaves.pop(name, None)
            self._values.pop(name, None)


class SignedWeights:
    """Trusts what the statement beside a signed model says of its tensors.

    Args:
        path: The signed model; its statement lies beside it.
        trusted_keys: Whose signature counts.
        expected_name: The name it must have been signed under, or None for any.
        threshold: How many of the keys must have signed, or "all", as for `verify`.

    Raises:
        SignatureError: If the statement is missing, malformed, forged, or names no tensors.
    """

    def __init__(
        self,
        path: "str | os.PathLike[str]",
        trusted_keys: Any,
        expected_name: str | None = None,
        threshold: Threshold = 1,
    ):
        self._path = files.absolute_path(path)
        place = statement_path_of(self._path)
        trust = load_trust(trusted_keys, threshold=threshold)
        if not os.path.lexists(place):
            raise _unstated(f"no file at {str(place)!r}")
        found = believed(self._path, trust, None, expected_name)
        statement = next((item.statement for item in found if item.statement), None)
        if statement is None:
            raise _unstated(f"{str(place)!r}, which is not accepted")
        self._records = {tensor.path: tensor for tensor in statement.tensors}
        self._leaves: dict[str, list[bytes]] = {}
        if len(self._records) != len(statement.tensors) or not self._records:
            raise SignatureError(
                "The statement on a model must name each of its tensors once. Received: "
                f"{str(place)!r}, which names {len(statement.tensors)} by {len(self._records)} "
                "paths. Use a signed .keras or .weights.h5 file as the reference."
            )

    def check_names(self, constant: Collection[str], live: Collection[str]) -> None:
        """The model must have the signed weights and no others."""
        added = sorted(set(constant) - set(self._records))
        missing = sorted(
            name for name in set(self._records) - set(live) if not name.startswith(_NOT_WEIGHTS)
        )
        if added or missing:
            raise TamperedWeightsError(
                f"The model must have exactly the weights that were signed with {self._path.name!r}"
                ". Load the model from that file.",
                tensors=(),
                added=added,
                missing=missing,
            )

    def expected(self, name: str, variable: keras.Variable) -> tuple[list[list[bytes]], bool]:
        """Digests from the live weight if they are the signed ones, else from the signed file."""
        copies = len(backend.variable_contents(variable))
        if name in self._leaves:
            return [self._leaves[name]] * copies, False
        self._check_kind(name, variable)
        live = live_leaves(variable)
        if any(tree_digest(leaves) != self._records[name].digest for leaves in live):
            # Not the signed values: find out what the leaves should have been.
            return [self._leaves_of_file(name)] * copies, False
        self._leaves[name] = live[0]
        return live, True

    def _check_kind(self, name: str, variable: keras.Variable) -> None:
        record = self._records[name]
        memory = backend.memory_of(backend.variable_contents(variable)[0])
        if tuple(variable.shape) != record.shape or len(memory) != record.nbytes:
            raise TamperedWeightsError(
                "A live weight must have the signed shape and dtype: signed "
                f"{record.dtype}{list(record.shape)}. Received: "
                f"{variable.dtype}{list(variable.shape)}. Load the model from {self._path.name!r}.",
                tensors=[name],
            )

    def _leaves_of_file(self, name: str) -> list[bytes]:
        try:
            self._leaves[name] = leaf_digests(self.value(name))
        except (SignatureError, OSError):
            # Digests that nothing has: the weight stays reported as changed.
            return [b""] * -(-self._records[name].nbytes // LEAF_BYTES)
        return self._leaves[name]

    def value(self, name: str) -> bytes:
        """The signed bytes, read where the statement says they are and compared with its digest."""
        record = self._records[name]
        if record.offset is None:
            raise _damaged(name, "its bytes do not lie in one piece in the signed file")
        path = self._path if record.file == SINGLE_FILE else Path(self._path, record.file)
        try:
            with files.open_regular(path) as file:
                file.seek(record.offset)
                data = files.read_up_to(file, record.nbytes)
        except OSError as error:
            raise _damaged(name, f"{str(path)!r} cannot be read ({error.strerror})") from error
        if tree_digest(leaf_digests(data)) != record.digest:
            raise _damaged(name, f"{str(path)!r} no longer holds what was signed")
        return data

    def forget(self, names: Iterable[str] | None = None) -> None:
        """Signed digests are never forgotten."""


def _unstated(received: str) -> SignatureError:
    return SignatureError(
        "Live weights are compared with the statement beside a signed model. "
        f"Received: {received}. Sign the model with ms.sign."
    )


def _damaged(name: str, reason: str) -> TamperedWeightsError:
    return TamperedWeightsError(
        f"A changed weight could not be restored: {reason}. Stop using the model, and load a "
        "verified one.",
        tensors=[name],
    )
