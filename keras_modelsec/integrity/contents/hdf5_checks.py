"""The HDF5 files that Keras writes, and no others: plain tensors in their own file.

Owns the reading of an untrusted HDF5 file's structure. Keras writes groups, contiguous tensors of
numbers and a few short texts. HDF5 can do much more: read other files, grow when read, run
filter plugins, refer to itself. All of that is refused before a value is read.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5t

from keras_modelsec._core.printable import printable
from keras_modelsec.errors import UnsafeModelError

_NUMBERS = (h5t.INTEGER, h5t.FLOAT, h5t.OPAQUE, h5t.ENUM)  # opaque: bfloat16; enum: bool
_MAX_OBJECTS = 200_000  # and as many attributes, and entries of heaps
_MAX_DEPTH = 256
_MAX_TEXT_BYTES = 64 << 20
_MAX_READ_BYTES = 1 << 30  # of one attribute
_HEAP, _HEAP_VERSION = b"GCOL", b"\x01"
_HEAP_ENTRY = struct.Struct("<H6xQ")  # index (0: free room), references, length
_BLOCK = 1 << 20
_CONFIGURATIONS = ("model_config", "training_config")


def check_hdf5(file: BinaryIO, *, legacy: bool = False) -> dict[str, str]:
    """Refuses an HDF5 file that holds anything but what Keras writes.

    Args:
        file: A seekable file open for reading.
        legacy: Whether it may be a whole model in the legacy format, whose root carries the
            configuration as text.

    Returns:
        For a legacy file, the texts at its root: "model_config" and "training_config", those
        that there are. Else nothing.

    Raises:
        UnsafeModelError: If it is no HDF5 file, or has soft, external or user-defined links, two
            links to one object, virtual or external data sets, filters, chunks, data sets whose
            values are not all in the file, references, named types, or texts that would grow when
            they are read.
    """
    try:
        with h5py.File(file, "r") as opened:
            return _Walk(opened, file, legacy).run()
    except UnsafeModelError:
        raise
    except Exception as error:  # h5py raises a dozen kinds for what the library finds damaged
        _refuse("be readable as HDF5", f"{type(error).__name__}: {error}")


def check_heaps(file: BinaryIO) -> None:
    """Refuses an HDF5 file over whose texts the HDF5 library would loop for ever.

    Args:
        file: A seekable file open for reading.

    Raises:
        UnsafeModelError: If a heap of it is damaged so. What else it is does not matter.
    """
    _Walk(None, file, False).check_heaps()


class _Walk:
    """One visit to all objects of a file."""

    def __init__(self, opened: Any, file: BinaryIO, legacy: bool):
        self._opened = opened
        self._file = file
        self._legacy = legacy
        self._size = file.seek(0, 2)
        self._ranges: list[tuple[int, int]] = []  # of tensors in the file: offset, length
        self._texts_left = self._size + _MAX_TEXT_BYTES
        self._heaps_checked = False
        self._lists = 0  # the most texts that one attribute has
        self._left = dict.fromkeys(("objects", "attributes", "heap entries"), _MAX_OBJECTS)

    def run(self) -> dict[str, str]:
        if self._opened.userblock_size:
            _refuse("begin with its own header", f"a user block of {self._opened.userblock_size}")
        for path, item in self._objects():
            if isinstance(item, h5d.DatasetID):
                self._check_dataset(path, item)
            elif not isinstance(item, h5g.GroupID):
                _refuse("hold groups and tensors only", f"a named type at {path!r}")
            self._check_attributes(path, item)
        self._check_ranges()
        if self._lists and self._lists * self._largest_text() > _MAX_READ_BYTES:
            _refuse("have lists of texts that stay as long as they are stored", self._lists)
        return self._read_configurations() if self._legacy else {}

    def _objects(self) -> Iterator[tuple[str, Any]]:
        """All objects, each with a path; links of all kinds but the plain one are refused."""
        root = h5o.open(self._opened.id, b"/")
        waiting, seen = [("", root, 0)], {h5o.get_info(root).addr}
        while waiting:
            path, item, depth = waiting.pop()
            yield path or "/", item
            if not isinstance(item, h5g.GroupID):
                continue
            for name in item:
                place = f"{path}/{name.decode('utf-8', 'backslashreplace')}"
                if item.links.get_info(name).type != h5l.TYPE_HARD:
                    _refuse("hold no soft, external or user-defined link", place)
                child = h5o.open(item, name)
                info = h5o.get_info(child)
                if info.rc != 1 or info.addr in seen:
                    _refuse("name each object once", place)
                seen.add(info.addr)
                self._count("objects")
                if depth >= _MAX_DEPTH:
                    _refuse(f"be nested at most {_MAX_DEPTH} deep", place)
                waiting.append((place, child, depth + 1))

    def _check_dataset(self, path: str, dataset: Any) -> None:
        plist = dataset.get_create_plist()
        if plist.get_external_count() or plist.get_layout() == h5d.VIRTUAL:
            _refuse("hold its tensors itself, with none in other files", path)
        if plist.get_layout() != h5d.CONTIGUOUS or plist.get_nfilters():
            _refuse("hold its tensors in one uncompressed piece each, as Keras does", path)
        _check_type(path, dataset.get_type())
        if dataset.get_space().get_simple_extent_type() == h5s.NULL:
            _refuse("hold tensors with values", path)
        nbytes = math.prod(dataset.shape) * dataset.get_type().get_size()
        if dataset.get_storage_size() != nbytes:
            _refuse("hold all values of its tensors", f"{path}, of {nbytes} bytes")
        if nbytes:
            self._ranges.append((dataset.get_offset(), nbytes))

    def _check_ranges(self) -> None:
        """Every tensor lies in the file, and no two on the same bytes."""
        end = 0
        for offset, nbytes in sorted(self._ranges):
            if offset < end or offset + nbytes > self._size:
                _refuse("hold each tensor's values on bytes of its own", f"{nbytes} at {offset}")
            end = offset + nbytes

    def _check_attributes(self, path: str, item: Any) -> None:
        for index in range(h5py.h5a.get_num_attrs(item)):
            self._count("attributes")
            attribute = h5py.h5a.open(item, index=index)
            kind = attribute.get_type()
            name = f"{path}, attribute {attribute.name.decode('utf-8', 'backslashreplace')!r}"
            if kind.committed() or kind.get_class() not in (*_NUMBERS, h5t.STRING):
                _refuse("have attributes of numbers and texts only", name)
            if isinstance(kind, h5t.TypeStringID) and kind.is_variable_str():
                if self._legacy or isinstance(item, h5d.DatasetID):
                    self.check_heaps()  # Keras reads no others: the groups' names it only writes
                self._check_texts(name, item, attribute)

    def _check_texts(self, name: str, item: Any, attribute: Any) -> None:
        if attribute.shape:
            if not self._legacy:
                _refuse("have no lists of texts", name)
            self._lists = max(self._lists, math.prod(attribute.shape))
        elif isinstance(item, h5d.DatasetID):  # Keras reads these, one for each tensor
            text = h5py.Dataset(item).attrs[attribute.name]
            self._texts_left -= len(text)
            if self._texts_left < 0:
                _refuse("have texts that stay as long as they are stored", name)

    def check_heaps(self) -> None:
        """Refuses heaps over which the HDF5 library (1.14.6) would loop for ever, once.

        It steps from entry to entry by lengths it does not check: a free one that does not reach
        to the heap's end, or a text whose length wraps around, lets it stay where it is.
        """
        if self._heaps_checked:
            return
        self._heaps_checked = True
        for heap in self._heaps():
            self._count("heap entries")
            self._file.seek(heap + len(_HEAP))
            if self._file.read(1) != _HEAP_VERSION:  # other bytes that look so
                continue
            for length, room in self._heap_entries(heap):
                if length != room if room is not None else length >= 1 << 63:
                    _refuse("have heaps whose entries follow one another", f"one at {heap}")

    def _largest_text(self) -> int:
        """The length of the longest entry in the file's heaps, where texts are."""
        longest = 0
        for heap in self._heaps():
            self._count("heap entries")
            texts = [length for length, room in self._heap_entries(heap) if room is None]
            longest = max(longest, *texts, 0)
        return longest

    def _heaps(self) -> Iterator[int]:
        """Where collections of texts begin, and perhaps other bytes that look so."""
        position, tail = 0, b""
        while True:
            self._file.seek(position)
            block = self._file.read(_BLOCK)
            if not block:
                return
            data, at = tail + block, -1
            found = _holds_heap(data)
            while found and (at := data.find(_HEAP, at + 1)) >= 0:
                yield position - len(tail) + at
            position += len(block)
            tail = data[-len(_HEAP) + 1 :]

    def _heap_entries(self, heap: int) -> Iterator[tuple[int, int | None]]:
        """The length of each entry of the collection at `heap`; for free room, the bytes left."""
        self._file.seek(heap + 8)
        stop = heap + int.from_bytes(self._file.read(8), "little")
        at = heap + _HEAP_ENTRY.size
        while at + _HEAP_ENTRY.size <= min(self._size, stop):
            self._file.seek(at)
            index, length = _HEAP_ENTRY.unpack(self._file.read(_HEAP_ENTRY.size))
            yield length, None if index else stop - at
            if not index:
                return
            self._count("heap entries")
            at += _HEAP_ENTRY.size + -(-length // 8) * 8

    def _read_configurations(self) -> dict[str, str]:
        texts = {}
        for name in _CONFIGURATIONS:
            if name in self._opened.attrs:
                value = self._opened.attrs[name]
                text = value.decode("utf-8") if isinstance(value, bytes) else value
                if not isinstance(text, str) or len(text) > _MAX_TEXT_BYTES:
                    _refuse("have its configuration as a text", name)
                texts[name] = text
        return texts

    def _count(self, what: str) -> None:
        self._left[what] -= 1
        if self._left[what] < 0:
            _refuse(f"hold at most {_MAX_OBJECTS} {what}", "more")


def _holds_heap(data: bytes) -> bool:
    """Whether the magic bytes are in `data`; three times as fast as `bytes.find`."""
    magic = np.frombuffer(_HEAP, "<u4")[0]
    return any(
        bool((np.frombuffer(data, "<u4", max(0, len(data) - shift) // 4, shift) == magic).any())
        for shift in range(min(4, len(data)))
    )


def _check_type(path: str, kind: Any) -> None:
    if kind.committed():
        _refuse("hold no named types", path)
    if kind.get_class() == h5t.COMPOUND:
        is_number = kind.dtype.kind == "c"
    else:
        is_number = kind.get_class() in _NUMBERS
    if not is_number or kind.detect_class(h5t.REFERENCE) or kind.detect_class(h5t.VLEN):
        _refuse("hold tensors of numbers only", path)


def _refuse(rule: str, value: object) -> NoReturn:
    text = printable(str(value)[:300])
    raise UnsafeModelError(
        f"An HDF5 file of weights must {rule}. Received: {text}. "
        "Save the model again with Keras, and sign that."
    )
