"""Saves and loads Keras files through file objects alone, so that nothing touches a disk.

Beside keras_internals.py, the only file that touches what Keras keeps private: the parts of
`saving_lib` between a model and its bytes. Each function says which it calls and has a test of its
own, which compares it with what `model.save` and `load_model` do.
"""

import io
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.saving import saving_lib


def write_archive(model: keras.Model, file: Any, assets_folder: Callable[[], str]) -> None:
    """Writes a .keras archive to a seekable file, as `model.save` does, and nothing to any disk.

    `saving_lib.save_model` does the same for file objects, but puts assets, and weights it thinks
    too large, into temporary files (`_serialize_model_as_json`, `_save_state`, `H5IOStore`).

    Args:
        model: The model.
        file: Where the archive goes. Large members are given to its `write` as views.
        assets_folder: Makes an empty folder for files that layers write; called only if some do.
    """
    config, metadata = saving_lib._serialize_model_as_json(model)
    assets = _Assets(assets_folder)
    weights = _hdf5_image(model, assets)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", metadata.encode())
        archive.writestr("config.json", config.encode())
        archive.writestr("model.weights.h5", weights.getbuffer())
        for path, name in assets.files():
            archive.write(path, f"assets/{name}")


def write_weights(model: keras.Model, file: Any) -> None:
    """Writes what `model.save_weights` writes, to a file object (`_save_state`, `H5IOStore`)."""
    file.write(_hdf5_image(model, None).getbuffer())


def _hdf5_image(model: keras.Model, assets: "_Assets | None") -> io.BytesIO:
    image = io.BytesIO()
    store = saving_lib.H5IOStore(image, mode="w")
    saving_lib._save_state(model, store, assets, inner_path="", visited_saveables=set())
    store.close()
    return image


def read_archive(
    config: str,
    weights: Any,
    assets_folder: str | None,
    *,
    custom_objects: Any = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """The model in a .keras archive whose members are given one by one; see `write_archive`.

    `saving_lib.load_model` does the same for file objects, but extracts the archive to the disk
    (`_model_from_config`, `_load_state`, `H5IOStore`, `_raise_loading_failure`).

    Args:
        config: The text of config.json.
        weights: model.weights.h5 as a seekable file.
        assets_folder: A folder that holds what is below assets/, or None if there is nothing.
        custom_objects: As in `keras.models.load_model`.
        compile: As there.
        safe_mode: As there.
    """
    model = saving_lib._model_from_config(config, custom_objects, compile, safe_mode)
    assets = None if assets_folder is None else _Assets(lambda: assets_folder)
    _load_state(model, weights, assets)
    return model


def read_weights(model: keras.Model, weights: Any) -> None:
    """Loads what `model.load_weights` loads, from a seekable HDF5 file (`_load_state`)."""
    if not model.built:
        raise ValueError("`model` must be built. Received: one that is not. Call it on data once.")
    _load_state(model, weights, None)


def _load_state(model: keras.Model, weights: Any, assets: "_Assets | None") -> None:
    failed: set[int] = set()
    messages: dict[int, Any] = {}
    store = saving_lib.H5IOStore(_AsBytesIO(weights), mode="r")
    try:
        saving_lib._load_state(
            model,
            store,
            assets,
            inner_path="",
            visited_saveables=set(),
            failed_saveables=failed,
            error_msgs=messages,
        )
    finally:
        store.close()
    if failed:
        saving_lib._raise_loading_failure(messages)


class _AsBytesIO(io.BytesIO):
    """Any seekable file, for `H5IOStore`, which takes no other file object than this."""

    def __init__(self, file: Any):
        super().__init__()
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._file.read(-1 if size is None else size))

    def readinto(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))


class _Assets(saving_lib.DiskIOStore):
    """Where layers write and read files of their own (`DiskIOStore`, without its disk)."""

    def __init__(self, folder: Callable[[], str]):
        self._make_folder = folder
        self._folder: str | None = None

    @property
    def working_dir(self) -> str:
        if self._folder is None:
            self._folder = self._make_folder()
        return self._folder

    def files(self) -> Iterator[tuple[str, str]]:
        """The files there are: where each is, and its name inside the folder."""
        if self._folder is not None:
            for path in sorted(pathlib.Path(self._folder).rglob("*")):
                if path.is_file():
                    yield str(path), path.relative_to(self._folder).as_posix()


def saved_state(model: keras.Model) -> list[tuple[str, Any]]:
    """What `model.save` writes into its weights file: paths there, and variables or arrays.

    Runs Keras's own walk (`saving_lib._save_state`) with a store that notes and writes nothing.
    """
    noted: list[tuple[str, Any]] = []

    class Notes(saving_lib.H5IOStore):
        """Takes the place of the HDF5 file."""

        def __init__(self) -> None:
            self._place = ""

        def make(self, path: str, metadata: Any = None) -> "Notes":
            self._place = f"{path}/vars" if path else "vars"
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            noted.append((f"{self._place}/{key}", value))

        def __bool__(self) -> bool:
            return True

    saving_lib._save_state(model, Notes(), None, inner_path="", visited_saveables=set())
    return noted
