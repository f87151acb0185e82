"""What a file or folder that Keras loads may hold: what Keras writes, and nothing else.

Owns the list of a saved model's parts, and has each read strictly before Keras sees it. Keras reads
the last of two members of one name and ignores the ones it does not know, so that two tools can see
two models in one file; such files are refused too.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from keras_modelsec._storage import files
from keras_modelsec._storage.seekable_readers import MemoryFile
from keras_modelsec.errors import UnsafeModelError
from keras_modelsec.integrity.contents.config_checks import (
    MAX_CONFIG_BYTES,
    check_config,
    parse_json,
)
from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5
from keras_modelsec.integrity.contents.zip_checks import Member, Section, read_members

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_REQUIRED = frozenset({_CONFIG, _METADATA, _WEIGHTS})
_ASSETS = "assets/"
_SHARD_MAP = ".weights.json"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Permissions:
    """What the caller lets a configuration name.

    Args:
        allow: Code-carrying parts, among `config_checks.ALLOWABLE`.
        custom_objects: The user's classes and functions by name.
        weights_only: Whether the configuration is not going to be read at all.
    """

    allow: Collection[str] = ()
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    weights_only: bool = False

    def check(self, config: "bytes | str", *, legacy: bool = False) -> frozenset[str]:
        """The code-carrying parts of a configuration, all of them allowed."""
        if self.weights_only:
            return frozenset()
        return check_config(
            config, allow=self.allow, custom_objects=self.custom_objects, legacy=legacy
        )


def check_legacy(path: Path, shown: Path, permissions: Permissions) -> frozenset[str]:
    """Refuses a legacy HDF5 file that is not as Keras writes it.

    Args:
        path: The file to read.
        shown: The path for the message.
        permissions: What its configuration may name.

    Returns:
        The code-carrying parts it has, all of them allowed.

    Raises:
        UnsafeModelError: As `read_members`, `check_hdf5` and `check_config` raise it.
    """

    def check() -> frozenset[str]:
        texts = check_hdf5(file, legacy=True).values()
        return frozenset().union(*(permissions.check(text, legacy=True) for text in texts))

    with files.open_regular(path) as file:
        return _naming(shown, check)


def check_archive(file: BinaryIO, permissions: Permissions) -> frozenset[str]:
    """Refuses an open .keras archive that is not as Keras writes it; see `check_legacy`."""
    members = {member.name: member for member in read_members(file)}
    _check_names(members)
    parse_json(_read_small(file, members[_METADATA]), "metadata.json")
    found = permissions.check(_read_small(file, members[_CONFIG]))
    check_hdf5(Section(file, members[_WEIGHTS]))  # type: ignore[arg-type]
    return found


def load_archive(
    file: Any,
    shown: Path,
    permissions: Permissions,
    assets_folder: Callable[[], str],
    *,
    compile: bool,
    failure: Callable[[], Exception | None] = lambda: None,
) -> Any:
    """The model in a .keras archive that nobody else can write to, once it has been checked.

    Args:
        file: The archive, open for reading.
        shown: The path for messages.
        permissions: What its configuration may name.
        assets_folder: Makes an empty folder for the files of layers; called only if there are some.
        compile: As in `keras.models.load_model`.
        failure: As in `keras_guard.by_keras`.

    Raises:
        UnsafeModelError: As `check_legacy` raises it.
    """
    from keras_modelsec._core import keras_guard, keras_saving

    found = _naming(shown, lambda: check_archive(file, permissions))
    members = {member.name: member for member in read_members(file)}
    config = _read_small(file, members[_CONFIG]).decode("utf-8")
    return keras_guard.by_keras(
        shown,
        lambda: keras_saving.read_archive(
            config,
            _part(file, members[_WEIGHTS]),
            _unpack_assets(file, members.values(), assets_folder),
            custom_objects=permissions.custom_objects,
            compile=compile,
            safe_mode=keras_guard.safe_mode_for(found),
        ),
        failure,
    )


def check_weights(file: Any, shown: Path) -> Any:
    """The weights, an HDF5 file, in an open .keras or .weights.h5 file; see `load_archive`."""

    def check() -> Any:
        if not shown.name.removesuffix(".enc").endswith(".keras"):
            check_hdf5(file)
            return file
        check_archive(file, Permissions(weights_only=True))
        members = {member.name: member for member in read_members(file)}
        return _part(file, members[_WEIGHTS])

    return _naming(shown, check)


def _part(file: Any, member: Member) -> Any:
    """A member as a file of its own; of a file in memory, the same memory."""
    if isinstance(file, MemoryFile):
        return MemoryFile(file.memory[member.offset : member.offset + member.size])
    return Section(file, member)


def _unpack_assets(
    file: BinaryIO, members: Collection[Member], make_folder: Callable[[], str]
) -> str | None:
    """A folder with the files of layers, or None if there are none."""
    assets = [member for member in members if member.name.startswith(_ASSETS)]
    if not assets:
        return None
    folder = make_folder()
    for member in assets:  # `read_members` has seen to it that no name leads outside
        place = Path(folder, member.name.removeprefix(_ASSETS))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_read_whole(file, member))
    return folder


def check_folder(folder: Path, shown: Path, permissions: Permissions) -> frozenset[str]:
    """Refuses a folder that is not as `model.save(..., zipped=False)` writes it.

    Args:
        folder: The folder to read.
        shown: The path for the message.
        permissions: What its configuration may name.
    """

    def check() -> frozenset[str]:
        _check_names(files.list_folder(folder))
        parse_json(_read_file(folder / _METADATA), "metadata.json")
        found = permissions.check(_read_file(folder / _CONFIG))
        with files.open_regular(folder / _WEIGHTS) as file:
            check_hdf5(file)
        return found

    return _naming(shown, check)


def check_shards(folder: Path, shown: Path) -> Path:
    """Refuses a folder of sharded weights that is not as `save_weights(max_shard_size=)` writes it.

    Args:
        folder: A folder with one NAME.weights.json and its shards.
        shown: The path for the message.

    Returns:
        The path of the map of the shards, for `model.load_weights`.
    """

    def check() -> Path:
        names = [name for name in files.list_folder(folder) if "/" not in name]
        maps = [name for name in names if name.endswith(_SHARD_MAP)]
        if len(maps) != 1:
            raise UnsafeModelError(
                f"A folder of sharded weights must hold one {_SHARD_MAP} file. Received: {maps}."
            )
        first = f"{maps[0].removesuffix(_SHARD_MAP)}_00000.weights.h5"  # what Keras opens first
        shards = {first, *_shards_in(parse_json(_read_file(folder / maps[0]), maps[0]))}
        missing = sorted(shards - set(names))
        if missing or not all(name.endswith(".weights.h5") for name in shards):
            raise UnsafeModelError(
                "A map of shards must name .weights.h5 files beside it. "
                f"Received: {missing or sorted(shards)}."
            )
        for name in sorted(shards):
            with files.open_regular(folder / name) as file:
                check_hdf5(file)
        return folder / maps[0]

    return _naming(shown, check)


def _shards_in(shard_map: Mapping[str, Any]) -> list[str]:
    weight_map = shard_map.get("weight_map")
    lists = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    names = [name for entry in lists for name in (entry if isinstance(entry, list) else [entry])]
    strings = [name for name in names if isinstance(name, str)]
    if len(strings) != len(names) or [] in lists:
        raise UnsafeModelError(
            'A map of shards must have a "weight_map" from variables to file names. '
            f"Received: {str(shard_map)[:200]}."
        )
    return strings


def _check_names(names: Collection[str]) -> None:
    unknown = [n for n in names if n not in _REQUIRED and not n.startswith(_ASSETS)]
    if unknown:
        raise UnsafeModelError(
            "A .keras model must hold no member that Keras does not write. "
            f"Received: {unknown[:5]}. Save the model again with Keras, and sign that."
        )
    missing = sorted(_REQUIRED - set(names))
    if missing:
        raise UnsafeModelError(
            f"A .keras model must hold {', '.join(sorted(_REQUIRED))}. Received: no {missing}."
        )


def _read_small(file: BinaryIO, member: Member) -> bytes:
    _check_small(member.name, member.size)
    return _read_whole(file, member)


def _read_whole(file: BinaryIO, member: Member) -> bytes:
    data = Section(file, member).read(member.size)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise UnsafeModelError(
            f"A .keras file's members must have their own check sums. Received: {member.name!r}."
        )
    return data


def _read_file(path: Path) -> bytes:
    _check_small(path.name, path.stat().st_size)
    return path.read_bytes()


def _check_small(name: str, size: int) -> None:
    if size > MAX_CONFIG_BYTES:
        raise UnsafeModelError(
            f"A model's {name} must have at most {MAX_CONFIG_BYTES >> 20} MiB. "
            f"Received: {size} bytes."
        )


def _naming(shown: Path, check: Callable[[], _Result]) -> _Result:
    """Puts the path before the message of what `check` refuses."""
    try:
        return check()
    except UnsafeModelError as error:
        error.args = (f"{str(shown)!r}: {error}",)
        raise
