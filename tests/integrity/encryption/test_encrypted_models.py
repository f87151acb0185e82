import builtins
import io
import os
import pickle
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._core import keras_saving
from keras_modelsec.integrity.encryption import encrypted_models
from keras_modelsec.integrity.encryption.encrypted_models import (
    load_encrypted,
    load_encrypted_weights,
    save_encrypted,
    write_encrypted,
)
from keras_modelsec.integrity.encryption.encryption_keys import EncryptionPrivateKey
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase, locks_for
from keras_modelsec.integrity.errors import (
    CodeInModelError,
    DecryptionError,
    KeyFormatError,
    SignatureError,
    TamperedModelError,
    UnsafeModelError,
    UntrustedKeyError,
)
from keras_modelsec.integrity.keys import passphrase
from keras_modelsec.integrity.signatures.signing import sign

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
KEY = bytes(range(32))
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 32)
    monkeypatch.setattr(passphrase, "ITERATIONS", 1)


@pytest.fixture(scope="module")
def private():
    return EncryptionPrivateKey.generate()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(5, 8)).astype("float32")


@pytest.fixture(scope="module")
def model(x):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(64, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile("adam", "mse")
    model.fit(x, np.ones((5, 3)), verbose=0)
    return model


@pytest.fixture
def saved(model, tmp_path):
    return save_encrypted(model, tmp_path / "model.keras.enc", KEY)


def same(model, other, x):
    np.testing.assert_array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_model_comes_back_whole_and_predicts_the_same(saved, model, x):
    loaded = load_encrypted(saved, KEY)
    same(loaded, model, x)
    assert loaded.loss == "mse"
    assert loaded.optimizer.iterations == 1
    assert not load_encrypted(saved, KEY, compile=False).compiled
    assert names(saved.parent) == ["model.keras.enc"]


def test_each_recipient_opens_the_same_model(model, x, private, tmp_path):
    path = tmp_path / "model.keras.enc"
    save_encrypted(model, path, [private.public_key, Passphrase("correct horse"), KEY])
    for key in (private, Passphrase("correct horse"), KEY):
        same(load_encrypted(path, key), model, x)
    for key in (EncryptionPrivateKey.generate(), Passphrase("battery"), bytes(32)):
        with pytest.raises(DecryptionError, match="Nothing was decrypted"):
            load_encrypted(path, key)


def test_weights_come_back_from_both_kinds_of_files(model, x, tmp_path):
    for name in ("model.weights.h5.enc", "model.keras.enc"):
        save_encrypted(model, tmp_path / name, KEY)
        other = keras.models.clone_model(model)
        load_encrypted_weights(other, tmp_path / name, KEY)
        same(other, model, x)


def test_what_is_inside_is_an_ordinary_keras_file(saved, model, x):
    same(keras.models.load_model(decrypt_file(saved, KEY)), model, x)
    path = saved.parent / "other.weights.h5.enc"
    save_encrypted(model, path, KEY)
    other = keras.models.clone_model(model)
    other.load_weights(decrypt_file(path, KEY))
    same(other, model, x)


def test_file_that_was_encrypted_afterwards_loads_too(model, x, tmp_path):
    model.save(tmp_path / "model.keras")
    same(load_encrypted(encrypt_file(tmp_path / "model.keras", KEY), KEY), model, x)


def test_subclassed_and_secured_models_come_back(x, tmp_path):
    @keras.saving.register_keras_serializable("test_encrypted_models")
    class Net(ms.AdversarialMixin, keras.Model):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.dense = keras.layers.Dense(units)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    model = Net(4)
    model(x)
    same(load_encrypted(save_encrypted(model, tmp_path / "a.keras.enc", KEY), KEY), model, x)

    inputs = keras.Input((8,))
    secure = ms.SecureModel(inputs, keras.layers.Dense(2)(inputs))
    path = save_encrypted(secure, tmp_path / "b.keras.enc", KEY)
    loaded = load_encrypted(path, KEY)
    assert isinstance(loaded, ms.SecureModel)
    same(loaded, secure, x)


@LINUX
def test_vocabulary_comes_back_and_is_never_on_a_disk(tmp_path, monkeypatch):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["alpha-secret-word", "beta"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    opened = record_opens(monkeypatch)
    path = save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    loaded = load_encrypted(path, KEY)
    assert loaded.layers[0].get_vocabulary() == lookup.get_vocabulary()
    assert any(place.startswith("/dev/shm/") for place in opened)
    assert all(place.startswith(("/dev/shm/", str(tmp_path))) for place in opened)
    assert not list(Path("/dev/shm").glob("keras-modelsec-*"))
    assert b"alpha-secret-word" not in path.read_bytes()


def test_vocabulary_without_a_file_system_in_memory_is_refused(tmp_path, monkeypatch):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["alpha"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    monkeypatch.setattr(encrypted_models, "_MEMORY_FOLDER", str(tmp_path))
    with pytest.raises(UnsafeModelError, match="vocabular"):
        save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    assert names(tmp_path) == []


def record_opens(monkeypatch):
    """The places of all files that Python opens for writing from now on."""
    places, real_open, real_os_open = [], builtins.open, os.open

    def open_(file, mode="r", *args, **kwargs):
        if isinstance(file, (str, os.PathLike)) and set(mode) & set("wax+"):
            places.append(os.path.abspath(file))
        return real_open(file, mode, *args, **kwargs)

    def os_open(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            places.append(os.path.abspath(path))
        return real_os_open(path, flags, *args, **kwargs)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", open_)
    monkeypatch.setattr(os, "open", os_open)
    return places


@LINUX
def test_no_plaintext_is_on_any_disk_at_any_time(model, tmp_path, monkeypatch):
    """Every file this process writes, however it is opened, is looked into at every system call."""
    kernel = np.asarray(model.get_layer("hidden").kernel).tobytes()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    needles = (kernel[:64], kernel[-64:], b"hidden", b"model.weights.h5")

    def no_plaintext():
        for path in tmp_path.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert not any(needle in data for needle in needles), path
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            deleted_or_memfd = "(deleted)" in target or "memfd" in target
            assert not deleted_or_memfd or before.get(descriptor.name) == target, target

    before = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            before[descriptor.name] = os.readlink(descriptor)
        except OSError:
            continue
    checks = [0]
    real = io.BytesIO.write

    def watch(_, event, function):
        if event == "call" and checks[0] % 200 == 0:
            sys.setprofile(None)
            no_plaintext()
            sys.setprofile(lambda *args: watch(*args))
        checks[0] += event == "call"

    for name in ("model.keras.enc", "model.weights.h5.enc"):
        sys.setprofile(lambda *args: watch(*args))
        try:
            save_encrypted(model, tmp_path / name, KEY)
            if name.startswith("model.keras"):
                load_encrypted(tmp_path / name, KEY)
            else:
                load_encrypted_weights(model, tmp_path / name, KEY)
        finally:
            sys.setprofile(None)
        no_plaintext()
    assert real is io.BytesIO.write
    assert checks[0] > 2000
    assert names(temporary) == []


def test_that_search_would_find_plaintext(model, tmp_path):
    kernel = np.asarray(model.get_layer("hidden").kernel).tobytes()
    model.save(tmp_path / "model.keras")
    assert kernel[:64] in (tmp_path / "model.keras").read_bytes()


def test_nothing_is_parsed_before_the_last_byte_has_authenticated(saved, monkeypatch):
    parsed = []

    def parser(*args, **kwargs):
        parsed.append(args)
        raise ZeroDivisionError

    for module, name in (
        (encrypted_models, "check_archive"),
        (encrypted_models, "read_members"),
        (encrypted_models, "check_hdf5"),
        (keras_saving, "read_archive"),
    ):
        monkeypatch.setattr(module, name, parser)
    data = saved.read_bytes()
    for position in (0, 50, 120, len(data) // 2, len(data) - 1):
        altered = bytearray(data)
        altered[position] ^= 1
        saved.write_bytes(bytes(altered))
        with pytest.raises(DecryptionError):
            load_encrypted(saved, KEY)
    saved.write_bytes(data[:-1])
    with pytest.raises(DecryptionError):
        load_encrypted(saved, KEY)
    assert parsed == []
    saved.write_bytes(data)
    with pytest.raises(ZeroDivisionError):
        load_encrypted(saved, KEY)
    assert len(parsed) == 1


def test_file_that_changes_while_keras_reads_it_is_refused(saved, monkeypatch):
    """The rest of the load goes on as it may; what comes out is this error, and no model."""
    read, data = keras_saving.read_archive, saved.read_bytes()

    def change_first(*args, **kwargs):
        saved.write_bytes(data[:200] + bytes(len(data) - 200))
        args[1]._file._cache.clear()
        return read(*args, **kwargs)

    monkeypatch.setattr(keras_saving, "read_archive", change_first)
    with pytest.raises(DecryptionError, match="must not change while it is read"):
        load_encrypted(saved, KEY)


def test_signature_over_the_encrypted_file_is_required_when_asked(saved, model, x, key, other_key):
    with pytest.raises(SignatureError, match="must come with its signature"):
        load_encrypted(saved, KEY, trusted_keys=key.verifying_key)
    sign(saved, key)
    same(load_encrypted(saved, KEY, trusted_keys=key.verifying_key), model, x)
    with pytest.raises(UntrustedKeyError):
        load_encrypted(saved, KEY, trusted_keys=other_key.verifying_key)


def test_another_genuine_encryption_by_a_recipient_is_not_the_signed_one(saved, model, x, key):
    sign(saved, key)
    save_encrypted(model, saved, KEY)
    same(load_encrypted(saved, KEY), model, x)
    with pytest.raises(TamperedModelError):
        load_encrypted(saved, KEY, trusted_keys=key.verifying_key)
    with pytest.raises(TamperedModelError):
        load_encrypted_weights(model, saved, KEY, trusted_keys=key.verifying_key)


def test_code_in_the_model_is_refused_unless_it_is_allowed(tmp_path, x):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Lambda(lambda x: x * 2)])
    path = save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    with pytest.raises(CodeInModelError, match="Lambda"):
        load_encrypted(path, KEY)
    same(load_encrypted(path, KEY, allow=("Lambda",)), model, x)


@pytest.fixture
def unsafe_mode():
    from keras.src.saving import serialization_lib

    yield keras.config.enable_unsafe_deserialization()
    serialization_lib.global_state.set_global_attribute("safe_mode_saving", None)


@pytest.mark.usefixtures("unsafe_mode")
def test_unsafe_deserialization_is_refused_while_it_is_on(saved, model):
    with pytest.raises(UnsafeModelError, match="must be off"):
        load_encrypted(saved, KEY)
    with pytest.raises(UnsafeModelError, match="must be off"):
        load_encrypted_weights(model, saved, KEY)


@pytest.mark.parametrize(
    "name", ["model.keras", "model.enc", "model.h5.enc", "model.keras.encrypted"]
)
def test_other_endings_are_refused(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.keras\.enc or \.weights\.h5\.enc"):
        save_encrypted(model, tmp_path / name, KEY)
    with pytest.raises(ValueError, match=r"must end in \.keras\.enc"):
        load_encrypted(tmp_path / name, KEY)
    assert names(tmp_path) == []


def test_weights_file_that_is_no_such_file_is_refused_by_name(tmp_path, model):
    (tmp_path / "x.weights.h5").write_bytes(b"no HDF5")
    path = encrypt_file(tmp_path / "x.weights.h5", KEY)
    with pytest.raises(UnsafeModelError, match=r"x\.weights\.h5\.enc"):
        load_encrypted_weights(model, path, KEY)
    (tmp_path / "x.keras").write_bytes(b"no archive")
    with pytest.raises(UnsafeModelError, match=r"x\.keras\.enc"):
        load_encrypted(encrypt_file(tmp_path / "x.keras", KEY), KEY)


def test_failed_save_leaves_what_was_there(saved, model, monkeypatch):
    resource = pytest.importorskip("resource")
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_encrypted(model, saved, KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert names(saved.parent) == ["model.keras.enc"]


def test_write_encrypted_writes_a_new_file_at_once(model, x, private, tmp_path):
    path, locks = tmp_path / "model.keras.enc", locks_for(private.public_key)
    write_encrypted(model, path, locks)
    same(load_encrypted(path, private), model, x)
    with pytest.raises(FileExistsError):
        write_encrypted(model, path, locks)


def test_no_secret_is_shown(saved, private, tmp_path):
    path = tmp_path / "a.key"
    path.write_bytes(private.to_pem(b"pass word"))
    for call in (
        lambda: load_encrypted(saved, Passphrase("correct horse")),
        lambda: load_encrypted(saved, path, password="correct horse"),
        lambda: load_encrypted(saved, "correct horse"),
        lambda: load_encrypted(saved, b"correct horse"),
    ):
        with pytest.raises((SignatureError, KeyFormatError, OSError)) as caught:
            call()
        error = caught.value
        while error is not None:
            assert "correct" not in str(error)
            error = error.__cause__ or error.__context__
    with pytest.raises(TypeError):
        pickle.dumps(private)
