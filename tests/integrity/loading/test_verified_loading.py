import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from contextlib import nullcontext

import keras
import numpy as np
import pytest

from keras_modelsec._core import keras_internals, keras_saving
from keras_modelsec._storage.seekable_readers import MemoryFile
from keras_modelsec.errors import (
    CodeInModelError,
    SignatureError,
    TamperedModelError,
    UnsafeModelError,
    UnsafePathError,
)
from keras_modelsec.integrity import load_verified_model, load_verified_weights, sign, verify
from keras_modelsec.integrity.contents import keras_archive
from keras_modelsec.integrity.loading import verified_copy, verified_loading


def make_model(value):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    model.compile("sgd", "mse")
    model.set_weights([np.full(w.shape, value, "float32") for w in model.get_weights()])
    return model


def value_of(model):
    return float(model.get_weights()[0].ravel()[0])


@pytest.fixture
def saved(tmp_path, key):
    path = tmp_path / "model.keras"
    make_model(1.0).save(path)
    sign(path, key)
    return path


def rewrite(path, edit):
    """Rewrites an archive: `edit(members)` changes the list of (name, bytes)."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    edit(members)
    doubled = len({name for name, _ in members}) < len(members)
    warned = pytest.warns(UserWarning, match="Duplicate") if doubled else nullcontext()
    with warned, zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_verified_model_is_loaded_compiled_with_its_weights(saved, public):
    model = load_verified_model(saved, [public])
    assert value_of(model) == 1.0
    assert model.compiled
    assert not load_verified_model(saved, public, compile=False).compiled


def test_nothing_is_left_behind(saved, public, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    load_verified_model(saved, public)
    with open(saved, "ab") as file:
        file.write(b"x")
    with pytest.raises(TamperedModelError):
        load_verified_model(saved, public)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_tampered_model_is_not_parsed(saved, public, monkeypatch):
    def parsed(*_args, **_kwargs):
        raise RuntimeError("parsed")

    monkeypatch.setattr(keras_archive, "read_members", parsed)
    monkeypatch.setattr(keras_saving, "read_archive", parsed)
    monkeypatch.setattr(keras.models, "load_model", parsed)
    with pytest.raises(RuntimeError, match="parsed"):
        load_verified_model(saved, public)
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    with pytest.raises(TamperedModelError):
        load_verified_model(saved, public)


@pytest.mark.parametrize("in_memory", [True, False])
def test_model_swapped_after_verification_is_not_loaded(
    saved, public, tmp_path, monkeypatch, in_memory
):
    evil = tmp_path / "evil.keras"
    make_model(666.0).save(evil)
    check = keras_archive.check_archive
    seen = []

    def swap_then_check(file, permissions):
        shutil.copy(evil, saved)  # in place, and then by rename
        os.replace(evil, saved)
        seen.append(file)
        return check(file, permissions)

    monkeypatch.setattr(keras_archive, "check_archive", swap_then_check)
    monkeypatch.setattr(verified_copy, "fits_memory", lambda _: in_memory)
    assert value_of(load_verified_model(saved, public)) == 1.0
    assert value_of(keras.models.load_model(saved)) == 666.0  # the swap took place
    assert isinstance(seen[0], MemoryFile) == in_memory


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_model_swapped_all_the_time_is_the_signed_one_or_refused(
    saved, public, tmp_path, in_place, in_memory, monkeypatch
):
    good, evil = tmp_path / "good", tmp_path / "evil.keras"
    shutil.copy(saved, good)
    make_model(666.0).save(evil)
    stop = threading.Event()

    def attack():
        while not stop.is_set():
            for source in (evil, good):
                if in_place:
                    shutil.copyfile(source, saved)
                else:
                    shutil.copyfile(source, tmp_path / "new")
                    os.replace(tmp_path / "new", saved)

    def bytes_of_copy(file, *_, **__):  # Keras itself is slow and not what races here
        return file.read()

    monkeypatch.setattr(verified_loading, "load_archive", bytes_of_copy)
    monkeypatch.setattr(verified_copy, "fits_memory", lambda _: in_memory)
    thread = threading.Thread(target=attack)
    thread.start()
    refused = loaded = 0
    try:
        for count in range(30_000):  # more where a busy machine lets one thread run for long
            if count >= 300 and refused and (in_place or loaded):
                break
            try:
                data = load_verified_model(saved, public)
            except SignatureError:
                refused += 1
            else:
                loaded += 1
                assert data == good.read_bytes()
    finally:
        stop.set()
        thread.join()
    assert refused > 0
    assert in_place or loaded > 0


def test_classes_of_this_package_load_after_importing_it_alone(tmp_path, key):
    import keras_modelsec as ms

    inputs = keras.Input((4,))
    path = tmp_path / "secure.keras"
    ms.SecureModel(inputs, keras.layers.Dense(2)(inputs)).save(path)
    sign(path, key)
    (tmp_path / "key.pub").write_bytes(key.verifying_key.pem)
    script = (
        "import keras_modelsec as ms; "
        f"print(type(ms.load_verified_model({str(path)!r}, {str(tmp_path / 'key.pub')!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False
    )
    assert "SecureFunctional" in done.stdout, done.stderr


def test_lambda_layer_is_refused_though_signed(tmp_path, key, public):
    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    sign(path, key)
    verify(path, public)
    with pytest.raises(ValueError, match=r"(?i)lambda"):
        load_verified_model(path, public)


@pytest.mark.filterwarnings("ignore")
def test_legacy_file_loads_and_its_lambda_is_refused(tmp_path, key, public):
    plain, unsafe = tmp_path / "plain.h5", tmp_path / "lambda.h5"
    make_model(2.0).save(plain)
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]).save(unsafe)
    sign(plain, key)
    sign(unsafe, key)
    assert value_of(load_verified_model(plain, public, compile=False)) == 2.0
    with pytest.raises(ValueError, match=r"(?i)lambda"):
        load_verified_model(unsafe, public)


@pytest.fixture
def unsafe_mode():
    from keras.src.saving import serialization_lib

    yield keras.config.enable_unsafe_deserialization()
    serialization_lib.global_state.set_global_attribute("safe_mode_saving", None)


def test_unsafe_deserialization_is_seen():
    assert not keras_internals.is_unsafe_deserialization_enabled()


def test_loading_is_refused_while_unsafe_deserialization_is_on(saved, public, unsafe_mode):
    assert keras_internals.is_unsafe_deserialization_enabled()
    with pytest.raises(UnsafeModelError, match=r"Unsafe deserialization must be off"):
        load_verified_model(saved, public)
    with pytest.raises(UnsafeModelError, match=r"Unsafe deserialization must be off"):
        load_verified_weights(make_model(0.0), saved, public)


EVIL_CONFIG = json.dumps({"class_name": "Evil"}).encode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.append(("config.json", EVIL_CONFIG)), "each member once"),
        (lambda m: m.append(("model.weights.h5", b"")), "each member once"),
        (lambda m: m.append(("model.weights.npz", b"")), "no member that Keras does not write"),
        (lambda m: m.append(("payload.pkl", b"x")), "no member that Keras does not write"),
        (lambda m: m.append(("assets", b"x")), "no member that Keras does not write"),
        (lambda m: m.append(("../escape", b"x")), "no member name that leads outside"),
        (lambda m: m.append(("assets/../../escape", b"x")), "no member name that leads outside"),
        (lambda m: m.append(("/etc/passwd", b"x")), "no member name that leads outside"),
        (lambda m: m.append(("assets\\..\\escape", b"x")), "no member name that leads outside"),
        (lambda m: m.append(("assets/C:x", b"x")), "no member name that leads outside"),
        (lambda m: m.pop(0), r"hold config\.json, metadata\.json"),
        (lambda m: m.clear(), r"hold config\.json, metadata\.json"),
        (lambda m: m.append(("config.json/x", b"")), "a folder of another"),
    ],
)
def test_archive_that_keras_did_not_write_is_refused_though_signed(
    saved, key, public, edit, message
):
    rewrite(saved, edit)
    sign(saved, key)
    with pytest.raises(UnsafeModelError, match=message):
        load_verified_model(saved, public)


def test_links_bombs_and_encrypted_members_are_refused(saved, key, public):
    def add(info, data, **options):
        copy = saved.with_name("copy.keras")
        shutil.copy(saved, copy)
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr(info, data, **options)
        sign(copy, key)
        with pytest.raises(UnsafeModelError) as caught:
            load_verified_model(copy, public)
        return str(caught.value)

    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "symbolic link" in add(link, b"/etc/passwd")
    bomb = zipfile.ZipInfo("assets/bomb")
    assert "uncompressed" in add(bomb, bytes(8 << 20), compress_type=zipfile.ZIP_DEFLATED)


def test_archive_with_assets_loads(tmp_path, key, public):
    path = tmp_path / "text.keras"
    layer = keras.layers.StringLookup()
    layer.adapt(np.array(["b", "a", "a"]))
    keras.Sequential([keras.Input((1,), dtype="string"), layer]).save(path)
    with zipfile.ZipFile(path) as archive:
        assert any(name.startswith("assets/") for name in archive.namelist())
    sign(path, key)
    assert load_verified_model(path, public).layers[0].get_vocabulary() == ["[UNK]", "a", "b"]


@pytest.mark.parametrize("data", [b"", b"PK", b"junk" * 100])
def test_signed_junk_is_a_named_error(tmp_path, key, public, data):
    path = tmp_path / "junk.keras"
    path.write_bytes(data)
    sign(path, key)
    with pytest.raises(UnsafeModelError, match=r"must be a ZIP archive|must be whole"):
        load_verified_model(path, public)


def test_other_kinds_of_path_are_named(tmp_path, public, saved):
    (tmp_path / "model.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"must be a folder or a file that ends in \.keras"):
        load_verified_model(tmp_path / "model.txt", public)
    with pytest.raises(FileNotFoundError):
        load_verified_model(tmp_path / "gone.keras", public)
    (tmp_path / "link.keras").symlink_to(saved)
    with pytest.raises(UnsafePathError):
        load_verified_model(tmp_path / "link.keras", public, signature_path=f"{saved}.sig")
    with pytest.raises(TypeError, match=r"`compile` must be True or False"):
        load_verified_model(saved, public, compile="yes")


def test_verified_weights_are_loaded_and_tampered_ones_are_not(tmp_path, key, public, saved):
    weights = tmp_path / "model.weights.h5"
    make_model(3.0).save_weights(weights)
    sign(weights, key)
    model = make_model(0.0)
    load_verified_weights(model, weights, public)
    assert value_of(model) == 3.0
    load_verified_weights(model, saved, public)
    assert value_of(model) == 1.0
    make_model(666.0).save_weights(weights)
    with pytest.raises(TamperedModelError):
        load_verified_weights(model, weights, public)
    assert value_of(model) == 1.0


@pytest.mark.parametrize("in_memory", [True, False])
def test_copy_is_hashed_as_it_is_written(saved, public, monkeypatch, in_memory):
    # The digest must be of the bytes in the copy, not of another reading of the original.
    copies = []
    original = verified_loading.load_archive

    def remember(copy, *args, **options):
        copies.append(copy.read())
        return original(copy, *args, **options)

    monkeypatch.setattr(verified_loading, "load_archive", remember)
    monkeypatch.setattr(verified_copy, "fits_memory", lambda _: in_memory)
    load_verified_model(saved, public)
    assert copies == [saved.read_bytes()]


@pytest.fixture
def lambda_file(tmp_path, key):
    path = tmp_path / "lambda.keras"
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    keras.Sequential([keras.Input((2,)), inner]).save(path)
    sign(path, key)
    return path


def test_allowed_lambda_loads_and_safe_mode_is_on_afterwards(lambda_file, public):
    with pytest.raises(CodeInModelError, match=r"Lambda.*allow=\(.Lambda.,\)") as caught:
        load_verified_model(lambda_file, public)
    assert caught.value.parts == ("Lambda",)
    with pytest.raises(CodeInModelError):
        load_verified_model(lambda_file, public, allow=("TFSMLayer",))
    model = load_verified_model(lambda_file, public, allow=("Lambda",))
    np.testing.assert_array_equal(model(np.ones((1, 2))), [[2, 2]])
    assert not keras_internals.is_unsafe_deserialization_enabled()
    with pytest.raises(ValueError, match=r"(?i)lambda"):
        keras.models.load_model(lambda_file)


def test_safe_mode_is_on_if_no_code_is_there_whatever_is_allowed(saved, public, monkeypatch):
    seen = []
    monkeypatch.setattr(keras_saving, "read_archive", lambda *_, **options: seen.append(options))
    load_verified_model(saved, public, allow=("Lambda", "TFSMLayer"))
    assert seen[0]["safe_mode"] is True


@pytest.mark.filterwarnings("ignore")
def test_allowed_lambda_in_a_legacy_file_loads(tmp_path, key, public):
    path = tmp_path / "lambda.h5"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    sign(path, key)
    model = load_verified_model(path, public, allow=("Lambda",))
    np.testing.assert_array_equal(model(np.ones((1, 2))), [[2, 2]])


def test_arguments_are_checked_before_the_file_is_read(saved, public):
    with pytest.raises(ValueError, match=r"`allow` must name parts among"):
        load_verified_model(saved, public, allow=("Everything",))
    with pytest.raises(TypeError, match=r"`allow` must be a tuple"):
        load_verified_model(saved, public, allow="Lambda")


def test_weights_load_from_a_file_whose_code_is_not_read(lambda_file, public):
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    load_verified_weights(keras.Sequential([keras.Input((2,)), inner]), lambda_file, public)


def test_own_layer_loads_once_it_is_named(tmp_path, key, public):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((2,)), Twice()]).save(path)
    sign(path, key)
    with pytest.raises(UnsafeModelError, match=r"`custom_objects`"):
        load_verified_model(path, public)
    model = load_verified_model(path, public, custom_objects={"Twice": Twice})
    np.testing.assert_array_equal(model(np.ones((1, 2))), [[2, 2]])


@pytest.fixture
def program(tmp_path, key):
    path = tmp_path / "program"
    make_model(2.0).export(path, verbose=False)
    sign(path, key)
    return path


def test_saved_model_loads_only_if_programs_are_allowed(program, public):
    with pytest.raises(CodeInModelError, match=r"SavedModel is a program"):
        load_verified_model(program, public)
    model = load_verified_model(program, public, allow=("TFSMLayer",))
    assert isinstance(model, keras.Model)
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(model.predict(x, verbose=0), make_model(2.0)(x))
    with pytest.raises(ValueError, match=r"endpoint"):
        load_verified_model(program, public, allow=("TFSMLayer",), call_endpoint="none")


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index", "added"])
def test_changed_saved_model_is_refused(program, public, name):
    with open(program / name, "ab") as file:
        file.write(b"x")
    with pytest.raises(TamperedModelError, match=name):
        load_verified_model(program, public, allow=("TFSMLayer",))


def test_unpacked_keras_model_loads_and_is_checked(tmp_path, key, public):
    path = tmp_path / "unpacked"
    make_model(4.0).save(path, zipped=False)
    sign(path, key)
    assert value_of(load_verified_model(path, public)) == 4.0
    (path / "extra.pkl").write_bytes(b"x")
    sign(path, key)
    with pytest.raises(UnsafeModelError, match=r"no member that Keras does not write"):
        load_verified_model(path, public)
    (path / "extra.pkl").unlink()
    config = json.loads((path / "config.json").read_bytes())
    config["config"]["layers"].append({"module": "os", "class_name": "system", "config": {}})
    (path / "config.json").write_text(json.dumps(config))
    sign(path, key)
    with pytest.raises(UnsafeModelError, match=r"os\.system"):
        load_verified_model(path, public)


def test_sharded_weights_load_and_their_map_names_shards_only(tmp_path, key, public):
    folder = tmp_path / "shards"
    folder.mkdir()
    place = folder / "model.weights.json"
    make_model(5.0).save_weights(place, max_shard_size=5e-8)
    assert len(list(folder.glob("*.weights.h5"))) > 1
    sign(folder, key)
    model = make_model(0.0)
    load_verified_weights(model, folder, public)
    assert value_of(model) == 5.0
    good = json.loads(place.read_bytes())
    for name in ("../other.weights.h5", "/etc/passwd", "model.weights.json", 7, None, []):
        weight_map = {**good["weight_map"], "/layers/dense/vars": name}
        place.write_text(json.dumps({**good, "weight_map": weight_map}))
        sign(folder, key)
        with pytest.raises(UnsafeModelError, match=r"map of shards"):
            load_verified_weights(model, folder, public)
    place.write_text(json.dumps(good))
    shutil.copy(place, folder / "second.weights.json")
    sign(folder, key)
    with pytest.raises(UnsafeModelError, match=r"must hold one"):
        load_verified_weights(model, folder, public)


def test_folders_of_other_kinds_are_named(tmp_path, key, public):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data").write_bytes(b"x")
    sign(folder, key)
    for load in (load_verified_model, lambda *a: load_verified_weights(make_model(0.0), *a)):
        with pytest.raises(ValueError, match=r"use `verified_copy`"):
            load(folder, public)


def test_damaged_configurations_load_or_are_refused_by_name(saved, key, public, json_tools):
    generator = random.Random(0)
    with zipfile.ZipFile(saved) as archive:
        config = json.loads(archive.read("config.json"))
    places = [path for path in json_tools.nodes(config) if len(path) > 1]
    refused = 0
    for case in range(120):
        place = generator.choice(places)
        new = generator.choice([None, -1, 0, 2, True, "x", [], {}, [None], {"class_name": "x"}])
        edited = json.dumps(json_tools.replaced(config, place, new)).encode()
        rewrite(
            saved, lambda members, edited=edited: members.__setitem__(1, ("config.json", edited))
        )
        sign(saved, key)
        try:
            assert isinstance(load_verified_model(saved, public), keras.Model), (case, place, new)
        except ValueError:  # UnsafeModelError is one
            refused += 1
    assert 30 < refused < 120


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), OSError("h5")])
def test_all_failures_of_keras_have_a_name(saved, public, monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(keras_saving, "read_archive", fail)
    with pytest.raises(UnsafeModelError, match=type(error).__name__) as caught:
        load_verified_model(saved, public)
    assert caught.value.__cause__ is error
