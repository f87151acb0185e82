"""The tensors of a model: where their bytes lie in its file, and what they are called there.

Owns the tensor table of a statement, for files and for models in memory. A tensor has one path in
both: the one Keras gives it in a .keras or .weights.h5 file, such as "layers/dense_2/vars/0". h5py
is imported when a file is read, Keras when a model is, so that the command line starts fast.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from keras_modelsec._storage import files
from keras_modelsec.integrity.contents import hashing

_HDF5_ENDINGS = (".h5", ".hdf5")
_WEIGHTS = "model.weights.h5"
_MAX_TENSORS = 1_000_000


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a signed file.

    Attributes:
        path: What it is called in the file.
        shape: Its shape; empty for a scalar.
        dtype: "float32", "bfloat16" and so on.
        offset: Where its bytes begin in the file, or None if they do not lie there as they are
            digested (big-endian), or are none.
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

    Only a file that Keras could be given to load is looked into: it passes the same checks first.

    Args:
        path: Any file. Only ".keras", ".h5" and ".hdf5" files are looked into.
        opened: The file itself, if it is open for reading: then the path is not opened again, which
            may lead to another file by now.

    Returns:
        Nothing for a file of another kind, or one that is not as Keras writes it (compressed,
        chunked, with values in other files, damaged): it can be signed all the same, whole.
    """
    try:
        source = contextlib.nullcontext(opened) if opened else files.open_regular(path)
        with source as file:
            if path.suffix == ".keras":
                return _read_archive(file)
            if path.suffix in _HDF5_ENDINGS:
                return _read_hdf5(file, 0, legacy=not path.name.endswith(".weights.h5"))
    except Exception:  # UnsafeModelError, and whatever h5py raises on damaged files; see above
        return ()
    return ()


def _read_archive(file: BinaryIO) -> tuple[TensorRecord, ...]:
    from keras_modelsec.integrity.contents.zip_checks import Section, read_members

    for member in read_members(file):
        if member.name == _WEIGHTS:
            return _read_hdf5(Section(file, member), member.offset, legacy=False)
    return ()


def _read_hdf5(file: Any, start: int, *, legacy: bool) -> tuple[TensorRecord, ...]:
    """The tensors of an HDF5 file that begins at `start` of the signed one."""
    import h5py

    from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5

    # As before loading: nothing lies in other files, grows or waits when it is read, and every
    # tensor has its bytes in one piece of this file.
    check_hdf5(file, legacy=legacy)
    found: dict[str, TensorRecord] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(found) < _MAX_TENSORS:
            found[name] = _record(name, item, file, start)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return tuple(found[name] for name in sorted(found))


def _record(name: str, dataset: Any, file: Any, start: int) -> TensorRecord:
    dtype = str(dataset.attrs["dtype"] if _has_name(dataset) else dataset.dtype.name)
    shape, nbytes = tuple(dataset.shape), int(dataset.size) * dataset.dtype.itemsize
    inside = dataset.id.get_offset()  # None if it is empty
    if inside is not None and dataset.dtype.byteorder in "<=|":
        return TensorRecord(name, shape, dtype, start + inside, nbytes)
    leaves = _swapped_leaves(file, inside or 0, nbytes, dataset.dtype)
    return TensorRecord(name, shape, dtype, None, nbytes, hashing.tree_digest(leaves))


def _has_name(dataset: Any) -> bool:
    """Whether Keras's own name of the type is there, as a text: h5py may crash on other kinds."""
    import h5py

    if "dtype" not in dataset.attrs:
        return False
    attribute = dataset.attrs.get_id("dtype")
    return attribute.shape == () and attribute.get_type().get_class() == h5py.h5t.STRING


def _swapped_leaves(file: Any, start: int, nbytes: int, kind: Any) -> Iterator[bytes]:
    """The leaf digests of big-endian values as they are little-endian, a leaf at a time."""
    import numpy as np

    for offset in range(0, nbytes, hashing.LEAF_BYTES):
        file.seek(start + offset)
        piece = file.read(min(hashing.LEAF_BYTES, nbytes - offset))
        values = np.frombuffer(piece, kind).astype(kind.newbyteorder("<"))
        yield from hashing.leaf_digests(values.tobytes())


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
