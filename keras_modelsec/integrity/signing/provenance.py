"""What a statement says of where a model comes from, beside what its signer adds.

Owns the facts that can be read off the environment and a .keras file. They are the signer's word:
nothing here is proved by being signed.
"""

import importlib.metadata
import json
import math
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_modelsec._signing import strict_json
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError

_PACKAGES = ("keras-modelsec", "keras", "tensorflow", "numpy")
_MAX_CONFIG_BYTES = 16 << 20
_MAX_PROVENANCE_BYTES = 16 << 20
_MAX_VALUES = 1 << 20


def collect(path: Path, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The provenance of a model about to be signed.

    Args:
        path: The model; of a .keras file, class, name, date and compile configuration are read.
        extra: What the signer adds, e.g. `{"dataset_sha256": ...}`; replaces what is found under
            the same name.

    Raises:
        TypeError: If `extra` is no mapping of strings to what JSON can hold.
        ValueError: If it is larger than 16 MiB.
    """
    found = {"packages": packages(), **(_from_archive(path) if path.suffix == ".keras" else {})}
    return found | _check(extra or {})


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that make a model."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _from_archive(path: Path) -> dict[str, Any]:
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            metadata = _member(archive, "metadata.json")
            config = _member(archive, "config.json")
        inner = config.get("config")
        facts: dict[str, Any] = {
            "model": {
                "class_name": config.get("class_name"),
                "name": inner.get("name") if isinstance(inner, dict) else None,
                "keras_version": metadata.get("keras_version"),
                "date_saved": metadata.get("date_saved"),
            }
        }
        compiled = config.get("compile_config")
        found: dict[str, Any] = _finite(facts | ({"compile": compiled} if compiled else {}))
        return found
    except Exception:  # whatever zipfile and json raise for what is no Keras archive: then there
        return {}  # is nothing to say about it, and it can be signed all the same


def _member(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    with archive.open(name) as member:
        data = member.read(_MAX_CONFIG_BYTES)
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > _MAX_VALUES:
        raise ValueError(name)  # it would take far more memory than it has bytes
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(name)
    return value


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities, which strict JSON has no form for, as text.

    Raises RecursionError if it is nested too deep.
    """
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _check(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
        raise TypeError(
            "`provenance` must be a mapping of names to JSON values. "
            f"Received: {type(extra).__name__}."
        )
    try:
        data = json.dumps(_finite(dict(extra)), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"`provenance` must hold only what JSON can. Received: {error}. "
            "Pass numbers, texts, lists and dicts."
        ) from None
    if len(data) > _MAX_PROVENANCE_BYTES:
        raise ValueError(
            f"`provenance` must have at most {_MAX_PROVENANCE_BYTES} bytes as JSON. "
            f"Received: {len(data)}. Pass a digest of what is large."
        )
    try:
        value: dict[str, Any] = strict_json.parse(data, "`provenance`")
    except SignatureError as error:
        raise TypeError(str(error)) from None
    return value
