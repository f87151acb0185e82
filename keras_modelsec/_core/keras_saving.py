"""Saves and loads Keras files through file objects alone, so that nothing touches a disk.

Beside keras_internals.py, the only file that touches what Keras keeps private: the parts of
`saving_lib` between a model and its bytes. Each function says which it calls and has a test of its
own, which compares it with what `model.save` and `load_model` do.
"""

import contextlib
import functools
import io
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable

from keras_modelsec._core import backend
from keras_modelsec._core.gathered_file import GatheredFile

_LARGE_BYTES = 64 << 10
_VIEWED_BYTES = 1 << 20


class SavedBeside(KerasSaveable):
    """Base of an object that a model saves beside its weights, if it is an attribute of the model.

    `save_own_variables` and `load_own_variables` are called as a layer's are. Its group in the file
    has the attribute's name; a model without that attribute loads the file as if it were not there.
    """

    def _obj_type(self) -> str:
        return "Loss"  # one of the kinds that Keras's walk knows

    def __dir__(self) -> list[str]:
        """Nothing: Keras's walk (`saving_lib._walk_saveable`) would save and load what it finds."""
        return []


# Makes the file of what was held, in any thread. Its tensors are kept by reference.
Held = Callable[[], GatheredFile]


def hold_archive(model: keras.Model, assets_folder: Callable[[], str]) -> Held:
    """What `model.save` would write now, to be written later; nothing touches a disk but assets.

    Keras's own walk asks layers, optimizer and configuration for what they save, here and now. Of
    variables a reference is kept to what they hold (`backend.array_now`), of arrays a copy. Should
    a layer ask more of the file than to take values, the bytes are made here and now.

    `saving_lib.save_model` does the same for file objects, but puts assets, and weights it thinks
    too large, into temporary files (`_serialize_model_as_json`, `_save_state`, `H5IOStore`).

    Args:
        model: The model.
        assets_folder: Makes an empty folder for files that layers write; called only if some do.
            It must last until all is written.
    """
    config, metadata = saving_lib._serialize_model_as_json(model)
    assets = _Assets(assets_folder)
    weights = _hold_hdf5(model, assets)

    def write() -> GatheredFile:
        image = weights()
        file = GatheredFile()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("metadata.json", metadata.encode())
            archive.writestr("config.json", config.encode())
            member = zipfile.ZipInfo("model.weights.h5")
            member.file_size = image.size
            with archive.open(member, "w") as target:
                for part in image.parts():
                    target.write(part)
            for path, name in assets.files():
                archive.write(path, f"assets/{name}")
        return file

    return write


def hold_weights(model: keras.Model) -> Held:
    """As `hold_archive`, of what `model.save_weights` writes (`_save_state`, `H5IOStore`)."""
    return _hold_hdf5(model, None)


def _hold_hdf5(model: keras.Model, assets: "_Assets | None") -> Held:
    """Of the weights file."""
    notes = _Notes(backend.array_now)
    try:
        with _state_by_reference(getattr(model, "optimizer", None)):
            _walk(model, notes, assets)
    except Exception:  # of a layer that needs a real file, or that cannot be saved: then it says so
        image = GatheredFile(lambda piece: None)
        store = saving_lib.H5IOStore(image, mode="w")
        _walk(model, store, assets)
        store.close()
        return lambda: image
    return lambda: _image(notes.entries)


def _walk(model: keras.Model, store: Any, assets: "_Assets | None") -> None:
    saving_lib._save_state(model, store, assets, inner_path="", visited_saveables=set())


class _Notes(saving_lib.H5IOStore):
    """Takes the place of the HDF5 file in Keras's walk; each entry is its path, metadata, values.

    Args:
        keep: What is noted in place of a value.
    """

    def __init__(self, keep: Callable[[Any], Any]) -> None:
        self.mode = "w"
        self.entries: list[tuple[str, Any, dict[str, Any]]] = []
        self._keep = keep

    def make(self, path: str, metadata: Any = None) -> "_Notes":
        self._h5_entry_group: dict[str, Any] = {}  # which H5IOStore itself has for an empty one
        self.entries.append((path, metadata, self._h5_entry_group))
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self._h5_entry_group[key] = self._keep(value)

    def __getitem__(self, key: str) -> Any:
        return self._h5_entry_group[key]

    def __bool__(self) -> bool:
        return True


@contextlib.contextmanager
def _state_by_reference(optimizer: Any) -> Iterator[None]:
    """Has Keras's optimizers give the variables they save, of which they would give copies.

    A model's optimizer, and those inside of it, as mixed precision has them.
    """
    found = []
    while isinstance(optimizer, keras.optimizers.Optimizer) and optimizer not in found:
        if type(optimizer).save_own_variables is keras.optimizers.Optimizer.save_own_variables:
            found.append(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    for each in found:
        vars(each)["save_own_variables"] = functools.partial(_save_variables, each)
    try:
        yield
    finally:
        for each in found:
            del vars(each)["save_own_variables"]


def _save_variables(optimizer: Any, store: Any) -> None:
    for index, variable in enumerate(optimizer.variables):
        store[str(index)] = variable


def _image(entries: Iterable[tuple[str, Any, dict[str, Any]]]) -> GatheredFile:
    """The HDF5 file of what was noted, its arrays kept by reference."""
    lent: list[Any] = [None]
    image = GatheredFile(lambda piece: _part_of(lent[0], piece))
    store = _StoreOfArrays(image, mode="w")
    store.lent = lent
    for path, metadata, values in entries:
        entry = store.make(path, metadata=metadata)
        for key, value in values.items():
            entry[key] = value
    store.close()
    return image


class _StoreOfArrays(saving_lib.H5IOStore):
    """Keras's store without its copy of each array (`H5IOStore.__setitem__`)."""

    lent: list[Any]

    def __setitem__(self, key: str, value: Any) -> None:
        if not self._h5_entry_initialized:
            self._create_h5_group(self._h5_entry_path)
        self.lent[0] = value
        if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
            dataset = self._h5_entry_group.create_dataset(key, data=value)
            dataset.attrs["dtype"] = "bfloat16"
        else:
            self._h5_entry_group[key] = value


def _part_of(array: Any, piece: memoryview) -> memoryview | None:
    """The part of an array that HDF5 hands on, of which it gives an address and nothing to hold."""
    if len(piece) < _LARGE_BYTES or array is None or not array.flags.c_contiguous:
        return None
    offset = np.frombuffer(piece, np.uint8).ctypes.data - array.ctypes.data
    if not 0 <= offset <= array.nbytes - len(piece):
        return None
    return np.ndarray((array.nbytes,), np.uint8, buffer=array)[offset : offset + len(piece)].data


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
        weights: model.weights.h5 as a seekable file. If it has `memory`, a memoryview of all its
            bytes, large tensors are taken from there and not copied first.
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
    memory = getattr(weights, "memory", None)
    source = _AsBytesIO(weights)
    store = saving_lib.H5IOStore(source, mode="r") if memory is None else _Views(source, memory)
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


class _Views(saving_lib.H5IOStore):
    """Gives large tensors of a file in memory as they lie there, not copied (`__getitem__`).

    Only what h5py itself would copy byte for byte: numbers in one piece, of this machine's order.
    """

    def __init__(self, file: io.BytesIO, memory: memoryview):
        super().__init__(file, mode="r")
        self._memory = memory

    def __getitem__(self, key: str) -> Any:
        found = self._h5_entry_group.get(key)
        if isinstance(found, h5py.Dataset) and found.nbytes >= _VIEWED_BYTES:
            plist, kind = found.id.get_create_plist(), found.dtype
            plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_external_count()
            offset = found.id.get_offset()
            if plain and offset is not None and kind.isnative and kind.kind in "fiu":
                view = np.frombuffer(self._memory, kind, found.size, offset).reshape(found.shape)
                if view.flags.aligned:
                    return view
        return super().__getitem__(key)


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
    notes = _Notes(lambda value: value)
    _walk(model, notes, None)
    return [
        (f"{path}/vars/{key}" if path else f"vars/{key}", value)
        for path, _, values in notes.entries
        for key, value in values.items()
    ]
