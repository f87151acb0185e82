"""The tensors of a model: where their bytes lie in its file, and what they are called there.

Owns the tensor table of a statement, for files and for models in memory. A tensor has one path in
both: the one Keras gives it in a .keras or .weights.h5 file, such as "layers/dense_2/vars/0". h5py
is imported when a file is read, Keras when a model is, so that the command line starts fast.
"""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from keras_modelsec.integrity import files
from keras_modelsec.integrity.signatures import hashing

_HDF5_ENDINGS = (".h5", ".hdf5")
_WEIGHTS = "model.weights.h5"
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, ..., lengths of name and extra field
_MAX_TENSORS = 1_000_000


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a signed file.

    Attributes:
        path: What it is called in the file.
        shape: Its shape; empty for a scalar.
        dtype: "float32", "bfloat16" and so on.
        offset: Where its bytes begin in the file, or None if they do not lie there in one piece,
            as in a compressed archive.
        nbytes: Their number.
        digest: Hex `hashing.tree_digest` of its bytes: C order, little-endian.
        file: The name of the file in the signature.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None
    nbytes: int
    digest: str = ""
    file: str = "."


def read_tensor_layout(path: Path, opened: BinaryIO | None = None) -> tuple[TensorRecord, ...]:
    """The tensors in a file, in the order of their paths, their digests not yet made.

    Those that do not lie in one piece are read and digested here.

    Args:
        path: Any file. Only ".keras", ".h5" and ".hdf5" files are looked into.
        opened: The file itself, if it is open for reading: then the path is not opened again, which
            may lead to another file by now.

    Returns:
        Nothing for a file of another kind, or one that cannot be read as what its name says: it can
        be signed all the same, whole.
    """
    try:
        source = contextlib.nullcontext(opened) if opened else files.open_regular(path)
        with source as file:
            if path.suffix == ".keras":
                return _read_archive(file)
            if path.suffix in _HDF5_ENDINGS:
                return _read_hdf5(file, 0)
    except Exception:  # whatever zipfile and h5py raise on damaged files; see above
        return ()
    return ()


def _read_archive(file: BinaryIO) -> tuple[TensorRecord, ...]:
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(_WEIGHTS)
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(info) as member:
                return _read_hdf5(member, None)
        file.seek(info.header_offset)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        with archive.open(info) as member:
            return _read_hdf5(member, start)


def _read_hdf5(file: Any, start: int | None) -> tuple[TensorRecord, ...]:
    """The tensors of an HDF5 file that begins at `start` of the signed one, or nowhere in it."""
    import h5py

    from keras_modelsec.integrity.loaders.hdf5_checks import check_heaps

    found: dict[str, TensorRecord] = {}
    checked = False

    def visit(name: str, item: Any) -> None:
        nonlocal checked
        if isinstance(item, h5py.Dataset) and len(found) < _MAX_TENSORS:
            if not checked and (_has_name(item) or item.dtype.kind == "O"):
                check_heaps(file)  # before a text is read
                checked = True
            found[name] = _record(name, item, start)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return tuple(found[name] for name in sorted(found))


def _record(name: str, dataset: Any, start: int | None) -> TensorRecord:
    dtype = str(dataset.attrs["dtype"] if _has_name(dataset) else dataset.dtype.name)
    nbytes = int(dataset.size) * dataset.dtype.itemsize
    inside = dataset.id.get_offset()  # None if it is chunked, compressed or empty
    little = dataset.dtype.byteorder in "<=|" and dataset.dtype.kind not in "OSU"
    if start is not None and inside is not None and little:
        return TensorRecord(name, tuple(dataset.shape), dtype, start + inside, nbytes)
    digest = hashing.tree_digest(hashing.leaf_digests(_contents(dataset)))
    return TensorRecord(name, tuple(dataset.shape or ()), dtype, None, nbytes, digest)


def _has_name(dataset: Any) -> bool:
    """Whether Keras's own name of the type is there, as a text: h5py may crash on other kinds."""
    import h5py

    if "dtype" not in dataset.attrs:
        return False
    attribute = dataset.attrs.get_id("dtype")
    return attribute.shape == () and attribute.get_type().get_class() == h5py.h5t.STRING


def _contents(dataset: Any) -> bytes:
    import h5py

    if dataset.shape is None:  # an empty dataspace
        return b""
    if dataset.dtype.kind == "O" and not h5py.check_string_dtype(dataset.dtype):
        raise ValueError("values of a kind that Keras does not write, and h5py may crash on")
    values = dataset[()]
    if dataset.dtype.kind in "OSU":
        return repr(values.tolist() if hasattr(values, "tolist") else values).encode()
    data: bytes = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return data


def model_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """What a Keras model would write into its file: paths, and variables or arrays.

    Optimizer state and seed generators are among them, metrics are not.
    """
    from keras_modelsec._core import keras_saving

    yield from keras_saving.saved_state(model)


def tensor_bytes(value: Any) -> memoryview:
    """The bytes Keras would store for a variable or array: C order, little-endian."""
    import keras
    import numpy as np

    array: Any = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    with contextlib.suppress(ValueError, TypeError):
        return memoryview(array.reshape(-1).view(np.uint8))
    return memoryview(array.tobytes())
