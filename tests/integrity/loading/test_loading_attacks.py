"""Whoever writes to a model while it is loaded changes nothing that is loaded."""

import contextlib
import gc
import os
import shutil
import threading
import weakref

import h5py
import keras
import numpy as np
import pytest

from keras_modelsec._core import keras_saving
from keras_modelsec._storage.seekable_readers import MemoryFile
from keras_modelsec.errors import SignatureError, TamperedModelError, UnsafeModelError
from keras_modelsec.integrity import load_verified_model, load_verified_weights, sign
from keras_modelsec.integrity.contents import hashing
from keras_modelsec.integrity.loading import verified_copy, verified_loading

ROWS = 700  # a kernel of 1.4 MB: several leaves and batches, and a tensor that is not copied


def make_model(value, dtype=None):
    layers = [
        keras.layers.Dense(500, dtype=dtype, name="wide"),
        keras.layers.Dense(2, dtype=dtype, name="last"),
    ]
    model = keras.Sequential([keras.Input((ROWS,), name="input"), *layers], name="model")
    model.set_weights([np.full(w.shape, value, w.dtype) for w in model.get_weights()])
    return model


def all_are(model, value):
    return all(bool(np.all(np.asarray(w) == value)) for w in model.get_weights())


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    make_model(1.0).save(folder / "good.keras")
    make_model(666.0).save(folder / "evil.keras")
    return folder


@pytest.fixture
def saved(tmp_path, key, originals):
    path = tmp_path / "model.keras"
    shutil.copy(originals / "good.keras", path)
    sign(path, key)
    return path


@pytest.fixture
def unread(monkeypatch):
    """Fails if Keras is given anything."""

    def read(*_args, **_options):
        raise RuntimeError("read")

    monkeypatch.setattr(keras_saving, "read_archive", read)
    monkeypatch.setattr(keras_saving, "read_weights", read)


def test_byte_changed_at_any_place_is_refused_before_anything_is_parsed(saved, public, unread):
    data = saved.read_bytes()
    places = {0, 30, 150, 1500, len(data) - 1, len(data) - 60, *range(2000, len(data), 40_009)}
    with pytest.raises(UnsafeModelError, match="RuntimeError: read"):
        load_verified_model(saved, public)
    for place in sorted(places):
        with open(saved, "r+b") as file:
            file.seek(place)
            file.write(bytes([data[place] ^ 1]))
        with pytest.raises(TamperedModelError):
            load_verified_model(saved, public)
        with open(saved, "r+b") as file:
            file.seek(place)
            file.write(data[place : place + 1])
    with pytest.raises(UnsafeModelError, match="RuntimeError: read"):  # all is as it was
        load_verified_model(saved, public)


def test_changed_tensor_is_named_from_the_memory_it_was_read_into(saved, public, unread):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1  # the large kernel
    saved.write_bytes(data)
    with pytest.raises(TamperedModelError) as caught:
        load_verified_model(saved, public)
    assert caught.value.tensors == ("layers/dense/vars/0",)


def at_each_step(monkeypatch, name, action):
    """Runs `action` before each call of a function of the hashing module."""
    original, lock = getattr(hashing, name), threading.Lock()

    def first(*args, **options):
        with lock:
            action()
        return original(*args, **options)

    monkeypatch.setattr(hashing, name, first)


@pytest.mark.parametrize("by_rename", [True, False])
def test_file_changed_after_each_piece_was_read_is_the_signed_one_or_refused(
    saved, public, originals, monkeypatch, by_rename
):
    """What is hashed is the memory, and what is used is that memory."""
    evil = originals / "evil.keras"

    def change():
        if by_rename:
            shutil.copy(evil, saved.with_name("new"))
            os.replace(saved.with_name("new"), saved)
        else:
            shutil.copy(evil, saved)

    at_each_step(monkeypatch, "_split", change)
    if by_rename:  # what was opened stays what it was
        assert all_are(load_verified_model(saved, public), 1.0)
    else:  # unless both pieces were read before the first was changed
        with contextlib.suppress(SignatureError):
            assert all_are(load_verified_model(saved, public), 1.0)
    assert all_are(keras.models.load_model(saved), 666.0)


def test_file_cut_off_while_it_is_read_is_refused(saved, public, monkeypatch, unread):
    monkeypatch.setattr(hashing, "_MAX_WORKERS", 1)  # two could read both pieces at once
    at_each_step(monkeypatch, "_split", lambda: os.truncate(saved, 100))
    with pytest.raises(SignatureError, match=r"became shorter|not what was signed|must not change"):
        load_verified_model(saved, public)


def test_byte_changed_between_hash_and_use_changes_nothing(saved, public, originals, monkeypatch):
    read = keras_saving.read_archive

    def change_first(*args, **options):
        shutil.copy(originals / "evil.keras", saved)
        return read(*args, **options)

    monkeypatch.setattr(keras_saving, "read_archive", change_first)
    assert all_are(load_verified_model(saved, public), 1.0)
    assert all_are(keras.models.load_model(saved), 666.0)


def test_all_that_is_parsed_is_one_memory_however_often_it_is_read(
    saved, public, originals, monkeypatch
):
    read, seen = keras_saving.read_archive, []

    def read_twice(config, weights, *args, **options):
        for source in ("good", "evil"):
            shutil.copy(originals / f"{source}.keras", saved)
            with h5py.File(weights, "r") as opened:
                seen.append(opened["layers/dense/vars/0"][()].tobytes())
        assert isinstance(weights, MemoryFile)
        return read(config, weights, *args, **options)

    monkeypatch.setattr(keras_saving, "read_archive", read_twice)
    assert all_are(load_verified_model(saved, public), 1.0)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("in_memory", [True, False])
def test_copy_of_other_bytes_than_those_accepted_is_refused(
    tmp_path, key, public, originals, monkeypatch, in_memory
):
    """Signatures of three models: one in place, one pending, and one that comes when it is read."""
    path, aside = tmp_path / "model.keras", tmp_path / "aside"
    aside.mkdir()
    endings = (".sig", ".modelsec.json")

    def put(value, folder, suffix=""):
        make_model(value).save(path)
        sign(path, key, name="model", version=3)
        for ending in endings:
            os.replace(f"{path}{ending}", folder / f"model.keras{ending}{suffix}")

    put(1.0, aside)
    third = path.read_bytes()
    put(2.0, tmp_path, ".next")
    put(3.0, tmp_path)
    path.write_bytes(third)
    compare, calls = verified_copy.compare, []

    def compare_and_exchange(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            shutil.copy(originals / "evil.keras", path)
        found = compare(*args, **options)
        if len(calls) == 2:
            for ending in endings:
                os.replace(aside / f"model.keras{ending}", f"{path}{ending}")
        return found

    monkeypatch.setattr(verified_copy, "compare", compare_and_exchange)
    monkeypatch.setattr(verified_copy, "fits_memory", lambda _: in_memory)
    with pytest.raises(SignatureError, match="must not change while it is copied"):
        load_verified_model(path, public)
    assert len(calls) == 2


def test_folder_that_comes_where_a_file_was_is_not_loaded_as_it(
    saved, tmp_path, key, public, monkeypatch
):
    folder = tmp_path / "other" / "model.keras"
    folder.parent.mkdir()
    make_model(5.0).save(folder.with_name("x"), zipped=False)
    os.rename(folder.with_name("x"), folder)
    sign(folder, key)
    compare = verified_copy.compare

    def exchange_first(path, *args, **options):
        if path.is_file():
            path.unlink()
            for ending in ("", ".sig", ".modelsec.json"):
                os.rename(f"{folder}{ending}", f"{path}{ending}")
        return compare(path, *args, **options)

    monkeypatch.setattr(verified_copy, "compare", exchange_first)
    with pytest.raises((SignatureError, UnsafeModelError)):
        load_verified_model(saved, public)
    assert saved.is_dir()


@pytest.mark.parametrize("fails", [False, True])
def test_memory_of_the_file_is_free_after_loading(saved, public, monkeypatch, fails):
    memory_for, held = verified_copy._memory_for, []

    def remember(guide):
        memory = memory_for(guide)
        held.append(weakref.ref(memory.obj))
        return memory

    monkeypatch.setattr(verified_copy, "_memory_for", remember)
    if fails:
        os.truncate(saved, 100)
        with pytest.raises(TamperedModelError):
            load_verified_model(saved, public)
    else:
        model = load_verified_model(saved, public)
        assert all_are(model, 1.0)
    gc.collect()
    assert held
    assert all(reference() is None for reference in held)


def test_weights_that_are_refused_leave_the_model_as_it_was(saved, tmp_path, key, public):
    path = tmp_path / "model.weights.h5"
    make_model(3.0).save_weights(path)
    sign(path, key)
    model = make_model(0.0)
    load_verified_weights(model, path, public)
    assert all_are(model, 3.0)
    for place in (path, saved):
        data = bytearray(place.read_bytes())
        data[-3000] ^= 1
        place.write_bytes(data)
        with pytest.raises(TamperedModelError):
            load_verified_weights(model, place, public)
    assert all_are(model, 3.0)


def test_signature_alone_takes_a_private_copy_and_a_statement_none(saved, public, monkeypatch):
    seen, load = [], verified_loading.load_archive

    def remember(file, *args, **options):
        seen.append(type(file))
        return load(file, *args, **options)

    monkeypatch.setattr(verified_loading, "load_archive", remember)
    load_verified_model(saved, public)
    saved.with_name("model.keras.modelsec.json").unlink()
    assert all_are(load_verified_model(saved, public), 1.0)
    assert seen[0] is MemoryFile
    assert seen[1] is not MemoryFile


def test_sparse_file_is_refused_and_takes_no_memory(saved, public, monkeypatch):
    asked = []
    monkeypatch.setattr(verified_copy, "fits_memory", lambda size: not asked.append(size))
    size = saved.stat().st_size
    os.truncate(saved, 1 << 43)
    with pytest.raises(TamperedModelError):
        load_verified_model(saved, public)
    assert set(asked) == {size}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int8"])
def test_numbers_of_all_kinds_are_those_that_keras_loads(tmp_path, key, public, dtype):
    path = tmp_path / "model.keras"
    model = make_model(1.0, None if dtype == "int8" else dtype)
    model.set_weights(
        [np.random.default_rng(0).normal(size=w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    if dtype == "int8":
        for layer in model.layers:
            layer.quantize("int8")
    model.save(path)
    sign(path, key)
    theirs = keras.models.load_model(path).variables
    ours = load_verified_model(path, public).variables
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one.value), np.asarray(other.value))
