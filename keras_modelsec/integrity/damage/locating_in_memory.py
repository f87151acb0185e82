"""Compares a Keras model in memory with the signed digests of the file it should be equal to.

Owns what counts as a difference there. The file's own bytes are only used for the size of the
difference, and only if they are the signed ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import leaf_digests, tree_digest
from keras_modelsec.integrity.contents.tensor_layout import (
    TensorRecord,
    model_tensors,
    tensor_bytes,
)
from keras_modelsec.integrity.damage.file_damage import FileValues, damaged
from keras_modelsec.integrity.damage.tamper_report import (
    TamperReport,
    TensorDamage,
    shown_type,
    value_changes,
)
from keras_modelsec.integrity.statements.model_statement import ModelStatement

# Signed, and absent from a model that was loaded without.
_NOT_WEIGHTS = ("optimizer/", "_spent_privacy/")


def check_model_type(argument: str, value: Any) -> None:
    """Raises TypeError if `value` is no Keras model."""
    if not isinstance(value, keras.Model):
        raise TypeError(
            f"`{argument}` must be a path or a Keras model. Received: {type(value).__name__}."
        )


def check_arguments(model: Any, reference: Any) -> Path:
    """The absolute path of the signed file that a model is to be compared with."""
    check_model_type("path_or_model", model)
    if reference is None:
        raise ValueError(
            "`reference` must be the path of the signed model, for a model in memory. Received: "
            "reference=None. Pass the file the model was loaded from."
        )
    path = files.absolute_path(reference)
    files.kind_of(path)
    return path


def compare_model(model: Any, path: Path, statement: ModelStatement | None) -> TamperReport:
    """The report on a model.

    Args:
        model: A Keras model with its weights.
        path: The signed file.
        statement: What was signed; None if there is only an OpenSSF signature.

    Raises:
        SignatureError: If the statement does not name tensors, each once.
        ValueError: If it names them as no Keras model does.
    """
    records = _records(path, statement)
    live = dict(model_tensors(model))
    if live and not live.keys() & records.keys():
        raise ValueError(
            "`reference` must name tensors as Keras's .keras and .weights.h5 files do. Received: "
            f"{str(path)!r}, which names none of the model's, e.g. {next(iter(live))!r}."
        )
    values = FileValues(path, statement) if statement else None
    tensors = [_compare(records[name], live[name], values) for name in records if name in live]
    tensors += [
        damaged(record, "missing")
        for name, record in records.items()
        if name not in live and not name.startswith(_NOT_WEIGHTS)
    ]
    tensors += [_added(name, live[name]) for name in live if name not in records]
    return TamperReport(
        subject=model.name,
        model=statement.model if statement else path.name,
        version=statement.version if statement else None,
        tensors=tuple(tensor for tensor in tensors if tensor),
    )


def _records(path: Path, statement: ModelStatement | None) -> Mapping[str, TensorRecord]:
    tensors = statement.tensors if statement else ()
    records = {tensor.path: tensor for tensor in tensors}
    if not records or len(records) != len(tensors):
        raise SignatureError(
            "The statement on `reference` must name each of its tensors once. Received: "
            f"{len(tensors)} tensors of {len(records)} names, for {str(path)!r}. Sign a .keras or "
            ".weights.h5 file with ms.sign."
        )
    return records


def _compare(record: TensorRecord, value: Any, values: FileValues | None) -> TensorDamage | None:
    data = tensor_bytes(value)
    shape, dtype = _kind(value)
    same_kind = shape == record.shape and len(data) == record.nbytes
    if same_kind and tree_digest(leaf_digests(data)) == record.digest:
        return None
    if not same_kind:
        return damaged(record, "changed", found=shown_type(dtype, shape))
    before = values.of(record) if values else None
    changes = value_changes(before, data, record.dtype) if before is not None else None
    return damaged(record, "changed", changes=changes)


def _added(name: str, value: Any) -> TensorDamage:
    shape, dtype = _kind(value)
    return TensorDamage(name, ".", "added", shape, dtype)


def _kind(value: Any) -> tuple[tuple[int, ...], str]:
    dtype = getattr(value, "dtype", "")
    return tuple(getattr(value, "shape", ())), str(getattr(dtype, "name", dtype))
