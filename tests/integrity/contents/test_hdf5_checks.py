import contextlib
import io
import struct
import subprocess
import sys
import time

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.errors import UnsafeModelError
from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5


def written(write):
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        write(opened)
    return file.getvalue()


def refused(data, match, *, legacy=False):
    with pytest.raises(UnsafeModelError, match=match):
        check_hdf5(io.BytesIO(data), legacy=legacy)


@pytest.fixture(scope="module")
def model():
    made = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2, dtype="bfloat16"),
        ]
    )
    made.compile("adam", "mse")
    made.fit(np.zeros((4, 4)), np.zeros((4, 2)), verbose=0)
    return made


@pytest.mark.filterwarnings("ignore")
def test_what_keras_writes_is_accepted(model, tmp_path):
    for name in ("a.weights.h5", "a.h5"):
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
        with open(tmp_path / name, "rb") as file:
            texts = check_hdf5(file, legacy="weights" not in name)
        assert ("model_config" in texts) == ("weights" not in name)


def test_tensors_of_all_kinds_keras_stores_are_accepted():
    def write(file):
        kinds = ("float16", "float32", "float64", "int8", "uint8", "int64", "uint32", "bool")
        for dtype in (*kinds, "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
            file[f"a/{np.dtype(dtype).name}"] = np.ones((2, 3), dtype)
        file["scalar"] = np.float32(1)
        file["empty"] = np.zeros((0, 5), "float32")

    assert check_hdf5(io.BytesIO(written(write))) == {}


def _reference_dtype(file):
    file["a"] = np.ones(3)
    file.create_dataset("b", (1,), dtype=h5py.ref_dtype)[0] = file["a"].ref


def _region(file):
    file["a"] = np.ones(3)
    file.create_dataset("b", (1,), dtype=h5py.regionref_dtype)[0] = file["a"].regionref[:2]


def _virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("a", layout)


def _named_type(file):
    file["type"] = np.dtype("f4")


def _dataset_of_named_type(file):
    file["type"] = np.dtype("f4")
    file.create_dataset("a", (3,), dtype=file["type"])[:] = 1
    del file["type"]


def _hard_link(file):
    file["a"] = np.ones(3)
    file["b"] = file["a"]


def _cycle(file):
    file.create_group("a")["b"] = file["/"]


def _list_of_lists(file):
    value = np.empty(1, object)
    value[0] = np.ones(2, "i4")
    file.attrs.create("x", value, dtype=h5py.vlen_dtype("i4"))


def _deep(file):
    group = file
    for _ in range(300):
        group = group.create_group("a")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda f: f.update({"a": h5py.ExternalLink("/etc/passwd", "/")}), "no soft, external"),
        (lambda f: f.update({"a": h5py.SoftLink("/b")}), "no soft, external"),
        (lambda f: f.create_group("x").update({"a": h5py.SoftLink("/x")}), "no soft, external"),
        (_virtual, "none in other files"),
        (
            lambda f: f.create_dataset("a", (3,), "u1", external=[("/etc/passwd", 0, 3)]),
            "none in other files",
        ),
        (lambda f: f.create_dataset("a", (9,), "f4", chunks=(3,)), "one uncompressed piece"),
        (lambda f: f.create_dataset("a", data=np.ones(9), compression="gzip"), "one uncompressed"),
        (lambda f: f.create_dataset("a", (1 << 40,), "f4"), "all values of its tensors"),
        (lambda f: f.create_dataset("a", (1 << 33, 1 << 33), "f4", fillvalue=1), "all values|read"),
        (lambda f: f.create_dataset("a", data=h5py.Empty("f4")), "tensors with values"),
        (_reference_dtype, "numbers only"),
        (_region, "numbers only"),
        (lambda f: f.create_dataset("a", (1,), h5py.vlen_dtype("f4")), "numbers only"),
        (lambda f: f.create_dataset("a", data="text"), "numbers only"),
        (lambda f: f.create_dataset("a", data=np.bytes_("text")), "numbers only"),
        (lambda f: f.create_dataset("a", (1,), [("x", "f4"), ("y", "i4")]), "numbers only"),
        (_named_type, "groups and tensors only"),
        (_dataset_of_named_type, "no named types"),
        (_hard_link, "each object once"),
        (_cycle, "each object once"),
        (lambda f: f.attrs.create("x", f.ref, dtype=h5py.ref_dtype), "numbers and texts only"),
        (_list_of_lists, "numbers and texts only"),
        (lambda f: f.attrs.create("x", ["a", "b"]), "no lists of texts"),
        (_deep, "nested at most"),
    ],
)
def test_what_keras_never_writes_is_refused(write, match):
    refused(written(write), match)


def test_bytes_before_the_file_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["a"] = np.ones(3)
    with open(path, "r+b") as file:
        file.write(b"MZ")
    refused(path.read_bytes(), "begin with its own header")


def test_two_tensors_on_the_same_bytes_are_refused():
    # A hundred tensors that share one megabyte would be a hundred when they are read.
    def write(file):
        file["a"], file["b"] = np.full(5, 1.0), np.full(5, 2.0)

    data = written(write)
    with h5py.File(io.BytesIO(data)) as file:
        first, second = (file[name].id.get_offset() for name in "ab")
    shared = data.replace(struct.pack("<QQ", second, 40), struct.pack("<QQ", first, 40))
    assert shared != data
    refused(shared, "bytes of its own")
    outside = data.replace(struct.pack("<QQ", second, 40), struct.pack("<QQ", len(data) - 8, 40))
    refused(outside, "bytes of its own|readable as HDF5")


def test_texts_that_grow_when_they_are_read_are_refused():
    def write(file):
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["x" * (i + 1) for i in range(4000)]
        file.attrs["model_config"] = "c" * (4 << 20)

    # Four thousand names of which each points at the longest text of the file: 16 GiB in memory.
    refused(written(write), "stay as long as they are stored", legacy=True)


def test_texts_at_tensors_are_counted(monkeypatch):
    monkeypatch.setattr("keras_modelsec.integrity.contents.hdf5_checks._MAX_TEXT_BYTES", -300_000)

    def write(file):
        file["a"] = np.ones(1)
        file["a"].attrs["dtype"] = "x" * 3000

    refused(written(write), "stay as long as they are stored")


def test_many_objects_are_refused_in_time(monkeypatch):
    monkeypatch.setattr("keras_modelsec.integrity.contents.hdf5_checks._MAX_OBJECTS", 50)
    refused(written(lambda f: [f.create_group(str(i)) for i in range(60)]), "at most 50 objects")
    refused(written(lambda f: f.attrs.update({str(i): i for i in range(60)})), "50 attributes")
    heaps = np.frombuffer(b"GCOL" * 1000, "u1")

    def write(file):
        file.attrs["layer_names"] = ["a", "b"]
        file["a"] = heaps

    refused(written(write), "50 heap entries", legacy=True)


HANGS = """
import io, sys
from pathlib import Path
from keras_modelsec.errors import UnsafeModelError
from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5
from keras_modelsec.integrity.contents.tensor_layout import read_tensor_layout

path = Path(sys.argv[1])
try:
    check_hdf5(io.BytesIO(path.read_bytes()), legacy=True)
except UnsafeModelError as error:
    print(error)
print(read_tensor_layout(path))
"""


@pytest.mark.parametrize("name", ["model_config", "backend"])
@pytest.mark.parametrize(
    "entry",
    [(0, 0), (0, 8), (0, 256), (0, 1 << 20), (2, (1 << 64) - 16), (2, (1 << 64) - 23)],
    ids=str,
)
def test_heap_over_which_the_library_loops_for_ever_is_refused(tmp_path, name, entry):
    """In a process of its own: the library's loop heeds no signal."""

    def write(file):
        file["a"] = np.ones(3)
        file["a"].attrs["dtype"] = "float64"
        file.attrs[name] = "x" * 40

    data = bytearray(written(write))
    heap = data.index(b"GCOL")
    at = heap + 16 + 16 + 8  # behind the first text: "float64" in 8 bytes
    struct.pack_into("<H6xQ", data, at, *entry)
    (tmp_path / "model.h5").write_bytes(data)
    command = [sys.executable, "-c", HANGS, str(tmp_path / "model.h5")]
    done = subprocess.run(command, capture_output=True, timeout=1800)
    assert b"entries follow one another" in done.stdout, done
    assert done.stdout.endswith(b"\n()\n"), done  # it can be signed all the same, as other bytes


def test_configuration_that_is_no_text_is_refused():
    refused(written(lambda f: f.attrs.update({"model_config": 7})), "as a text", legacy=True)
    refused(written(lambda f: f.attrs.update({"model_config": ["a"]})), "as a text", legacy=True)
    latin = np.bytes_(b"\xff{}")
    refused(written(lambda f: f.attrs.update({"model_config": latin})), "readable", legacy=True)


GOOD = written(lambda f: (f.update({"a/vars/0": np.ones(50)}), f["a"].attrs.update({"name": "a"})))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_accepted_or_refused_by_name(data):
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
    started = time.thread_time()
    with contextlib.suppress(UnsafeModelError):
        check_hdf5(io.BytesIO(bytes(damaged)), legacy=data.draw(st.booleans()))
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x89HDF\r\n\x1a\n", GOOD[:100], GOOD[:-1]])
def test_other_bytes_are_refused_by_name(junk):
    refused(junk, "readable as HDF5")
