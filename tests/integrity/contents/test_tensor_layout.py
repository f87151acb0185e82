"""Paths, places and digests of tensors: in files and in memory the same."""

import importlib.util
import os
import threading
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_modelsec.integrity import locate_tampering, sign, verify, write_parity
from keras_modelsec.integrity.contents.hashing import leaf_digests, tree_digest
from keras_modelsec.integrity.contents.tensor_layout import (
    model_tensors,
    read_tensor_layout,
    tensor_bytes,
)
from keras_modelsec.integrity.damage.inspecting import inspect_model
from keras_modelsec.integrity.damage.model_difference import compare_models
from keras_modelsec.integrity.signing.describing import describe_for_signing
from tests.integrity.signing.test_costs import peak_of


def live(model):
    return {path: tree_digest(leaf_digests(tensor_bytes(v))) for path, v in model_tensors(model)}


def stored(path):
    tensors = describe_for_signing(path).tensors
    data = path.read_bytes()
    for tensor in tensors:
        if tensor.offset is not None:
            piece = data[tensor.offset : tensor.offset + tensor.nbytes]
            assert tensor.digest == tree_digest(leaf_digests(piece))
    return {tensor.path: tensor.digest for tensor in tensors}


def functional():
    inputs = keras.Input((8,))
    shared = keras.layers.Dense(8, name="shared")
    hidden = shared(shared(inputs))
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(0.5)(hidden)
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)], name="inner")
    return keras.Model(inputs, inner(hidden))


def recurrent():
    inputs = keras.Input((5, 3))
    hidden = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(inputs)
    hidden = keras.layers.MultiHeadAttention(2, 4)(hidden, hidden)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(hidden))


def bfloat16():
    dense = keras.layers.Dense(20, dtype="bfloat16")
    return keras.Sequential([keras.Input((8,), dtype="bfloat16"), dense])


def quantized():
    model = keras.Sequential([keras.layers.Dense(20)])
    model.build((None, 8))
    model.layers[0].quantize("int8")
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4)
        self.blocks = [keras.layers.Dense(4), keras.layers.Dense(2)]
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    return model


@pytest.mark.filterwarnings("ignore:.*input_shape:UserWarning")
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("make", [functional, recurrent, bfloat16, quantized, subclassed])
def test_live_model_and_its_file_have_the_same_paths_and_digests(tmp_path, make, ending):
    model = make()
    path = tmp_path / f"m{ending}"
    if ending == ".keras":
        model.compile("adam", "mse")
        model.save(path)
    else:
        model.save_weights(path)
    assert live(model) == stored(path)
    assert len(live(model)) >= 2


def test_smallest_change_of_one_weight_changes_exactly_its_digest(tmp_path):
    model = functional()
    before = live(model)
    kernel = model.layers[-1].layers[0].kernel
    kernel.assign(kernel + 1e-6 * keras.ops.one_hot(0, 8)[:, None] * keras.ops.one_hot(1, 4))
    after = live(model)
    changed = {path for path in before if before[path] != after[path]}
    assert len(changed) == 1
    assert changed.pop().endswith("layers/dense/vars/0")


def test_same_model_saved_twice_has_other_bytes_and_the_same_digests(tmp_path):
    model = functional()
    model.save(tmp_path / "a.keras")
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as old,
        zipfile.ZipFile(tmp_path / "b.keras", "w") as new,
    ):
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    assert (tmp_path / "a.keras").read_bytes() != (tmp_path / "b.keras").read_bytes()
    assert stored(tmp_path / "a.keras") == stored(tmp_path / "b.keras")


def test_a_compressed_archive_is_signed_without_its_tensors(tmp_path):
    functional().save(tmp_path / "a.keras")
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as old,
        zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read_tensor_layout(tmp_path / "b.keras") == ()
    assert describe_for_signing(tmp_path / "b.keras").files.keys() == {"."}


def test_big_endian_tensors_are_digested_without_a_place(tmp_path):
    values = np.arange(100_000, dtype="float32")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["plain"], file["big_endian"] = values, values.astype(">f4")
        file["empty"] = np.zeros((0, 3), "float32")
    found = stored(tmp_path / "c.h5")
    assert found["big_endian"] == found["plain"]
    assert set(found) == {"plain", "big_endian", "empty"}
    places = {t.path: t.offset for t in read_tensor_layout(tmp_path / "c.h5")}
    assert places["big_endian"] is places["empty"] is None


def external(file, other):
    file.create_dataset("x", (6,), "f4", external=[(str(other), 0, 24)])


def external_link(file, other):
    file["x"] = h5py.ExternalLink(str(other), "x")


def virtual(file, other):
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "x", (6,))
    file.create_virtual_dataset("x", layout)


def growing(file, _):
    file.create_dataset("x", (1 << 28,), "f8", chunks=(1 << 20,), compression="gzip")


def chunked(file, _):
    file.create_dataset("x", data=np.zeros(6, "f4"), chunks=(2,))


def looping(file, _):
    file["x"] = file["/"]


HOSTILE = [external, external_link, virtual, growing, chunked, looping]


def hostile_file(folder, make, ending, other):
    """An HDF5 file, alone or in an archive as Keras writes it, with something in it that bites."""
    weights = folder / "made.h5"
    with h5py.File(weights, "w") as file:
        make(file, other)
    path = folder / f"m{ending}"
    if ending == ".keras":
        functional().save(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, weights.read_bytes() if name.endswith(".h5") else data)
        weights.unlink()
    else:
        weights.rename(path)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are of POSIX")
@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_hdf5_is_signed_by_its_own_bytes_alone(tmp_path, make, ending, key, public):
    """A FIFO would be waited for, and what lies in another file be read: neither is."""
    other = tmp_path / "fifo"
    os.mkfifo(other)
    path = hostile_file(tmp_path, make, ending, other)
    done = []

    def use():
        sign(path, key)
        verify(path, public)
        done.append(inspect_model(path))
        done.append(locate_tampering(path, public))
        done.append(compare_models(path, path))
        if importlib.util.find_spec("pyeclib"):
            write_parity(path, key)

    thread = threading.Thread(target=use, daemon=True)
    peak = peak_of(lambda: (thread.start(), thread.join(600)))
    assert not thread.is_alive()
    assert len(done) == 3
    assert read_tensor_layout(path) == ()
    assert peak < 256 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are of POSIX")
@pytest.mark.parametrize("make", HOSTILE[:4])
def test_hostile_hdf5_that_nobody_signed_is_not_read_for_people_either(tmp_path, make):
    other = tmp_path / "fifo"
    os.mkfifo(other)
    path = hostile_file(tmp_path, make, ".h5", other)
    done = []
    thread = threading.Thread(
        target=lambda: done.extend([inspect_model(path), compare_models(path, path)]), daemon=True
    )
    thread.start()
    thread.join(600)
    assert len(done) == 2
    assert done[0].tensors == ()


def test_signing_parses_no_configuration_that_is_a_million_values(tmp_path, key):
    path = tmp_path / "m.keras"
    functional().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            bomb = b'{"config":[' + b",".join([b"{}"] * 3_000_000) + b"]}"
            archive.writestr(name, bomb if name == "config.json" else data)
    assert peak_of(lambda: sign(path, key)) < 64 << 20


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5", "m.bin"])
@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04junk", b"\x89HDF\r\n\x1a\njunk"])
def test_file_that_is_not_what_its_name_says_has_no_tensors(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert read_tensor_layout(tmp_path / name) == ()


def test_every_cut_of_a_file_is_read_or_has_no_tensors(tmp_path):
    model = functional()
    model.save(tmp_path / "a.keras")
    data = (tmp_path / "a.keras").read_bytes()
    for length in range(0, len(data), 997):
        (tmp_path / "cut.keras").write_bytes(data[:length])
        assert isinstance(read_tensor_layout(tmp_path / "cut.keras"), tuple)


def test_kinds_on_which_h5py_may_crash_are_not_read(tmp_path):
    """A fuzzer had h5py end the process: on the value of an attribute that is a list of lists."""
    path = tmp_path / "odd.weights.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(3)
        value = np.empty((), object)
        value[()] = np.ones(2, "i4")
        file["a"].attrs.create("dtype", value, dtype=h5py.vlen_dtype("i4"))
    assert read_tensor_layout(path) == ()
    with h5py.File(path, "a") as file:
        file.create_dataset("b", (1,), dtype=h5py.vlen_dtype("i4"))[0] = np.ones(2, "i4")
    assert read_tensor_layout(path) == ()
