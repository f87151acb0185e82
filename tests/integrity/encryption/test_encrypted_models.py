import builtins
import functools
import io
import json
import os
import pickle
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._core import keras_saving
from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.trust import ANYBODY
from keras_modelsec.errors import (
    CodeInModelError,
    DecryptionError,
    KeyFormatError,
    SignatureError,
    TamperedModelError,
    UnsafeModelError,
    UntrustedKeyError,
)
from keras_modelsec.integrity.contents import keras_archive
from keras_modelsec.integrity.encryption import encrypted_models
from keras_modelsec.integrity.encryption.encrypted_models import (
    hold_encrypted,
    load_encrypted,
    load_encrypted_weights,
    save_encrypted,
)
from keras_modelsec.integrity.encryption.encryption_keys import EncryptionPrivateKey
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase, locks_for
from keras_modelsec.integrity.signing.signing import sign

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
KEY = bytes(range(32))
load_anybodys = functools.partial(load_encrypted, trusted_keys=ANYBODY)
load_anybodys_weights = functools.partial(load_encrypted_weights, trusted_keys=ANYBODY)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(key_wrapping, "MEMORY_KIB", 32)
    monkeypatch.setattr(key_wrapping, "ITERATIONS", 1)


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
    loaded = load_anybodys(saved, KEY)
    same(loaded, model, x)
    assert loaded.loss == "mse"
    assert loaded.optimizer.iterations == 1
    assert not load_anybodys(saved, KEY, compile=False).compiled
    assert names(saved.parent) == ["model.keras.enc"]


def test_each_recipient_opens_the_same_model(model, x, private, tmp_path):
    path = tmp_path / "model.keras.enc"
    save_encrypted(model, path, [private.public_key, Passphrase("correct horse"), KEY])
    for key in (private, Passphrase("correct horse"), KEY):
        same(load_anybodys(path, key), model, x)
    for key in (EncryptionPrivateKey.generate(), Passphrase("battery"), bytes(32)):
        with pytest.raises(DecryptionError, match="Nothing was decrypted"):
            load_anybodys(path, key)


def test_weights_come_back_from_both_kinds_of_files(model, x, tmp_path):
    for name in ("model.weights.h5.enc", "model.keras.enc"):
        save_encrypted(model, tmp_path / name, KEY)
        other = keras.models.clone_model(model)
        load_anybodys_weights(other, tmp_path / name, KEY)
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
    same(load_anybodys(encrypt_file(tmp_path / "model.keras", KEY), KEY), model, x)


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
    same(load_anybodys(save_encrypted(model, tmp_path / "a.keras.enc", KEY), KEY), model, x)

    inputs = keras.Input((8,))
    secure = ms.SecureModel(inputs, keras.layers.Dense(2)(inputs))
    path = save_encrypted(secure, tmp_path / "b.keras.enc", KEY)
    loaded = load_anybodys(path, KEY)
    assert isinstance(loaded, ms.SecureModel)
    same(loaded, secure, x)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs files in memory")
def test_vocabulary_comes_back_and_is_never_on_a_disk(tmp_path, monkeypatch):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["alpha-secret-word", "beta"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    opened = record_opens(monkeypatch)
    path = save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    loaded = load_anybodys(path, KEY)
    assert loaded.layers[0].get_vocabulary() == lookup.get_vocabulary()
    in_memory = {
        Path(place).relative_to("/dev/shm").parts[0]
        for place in opened
        if place.startswith("/dev/shm/")
    }
    assert in_memory
    assert all(place.startswith(("/dev/shm/", str(tmp_path))) for place in opened)
    assert not in_memory & set(os.listdir("/dev/shm"))
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
            places.append(os.path.realpath(file))  # a staging folder is reached by its descriptor
        return real_open(file, mode, *args, **kwargs)

    def os_open(path, flags, *args, dir_fd=None, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            folder = "" if dir_fd is None else f"/proc/self/fd/{dir_fd}"
            places.append(os.path.realpath(os.path.join(folder, path)))
        return real_os_open(path, flags, *args, dir_fd=dir_fd, **kwargs)

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
            deleted_or_memfd &= descriptor.is_file()  # and not the staging folder's own
            assert not deleted_or_memfd or before.get(descriptor.name) == target, target

    before = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            before[descriptor.name] = os.readlink(descriptor)
        except OSError:
            continue
    checks = [0]
    real = io.BytesIO.write

    def watch(_, event, function):  # Python does not profile while this runs
        if event == "call" and checks[0] % 200 == 0:
            no_plaintext()
        checks[0] += event == "call"

    for name in ("model.keras.enc", "model.weights.h5.enc"):
        sys.setprofile(watch)
        try:
            save_encrypted(model, tmp_path / name, KEY)
            if name.startswith("model.keras"):
                load_anybodys(tmp_path / name, KEY)
            else:
                load_anybodys_weights(model, tmp_path / name, KEY)
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
        (keras_archive, "check_archive"),
        (keras_archive, "read_members"),
        (keras_archive, "check_hdf5"),
        (keras_saving, "read_archive"),
    ):
        monkeypatch.setattr(module, name, parser)
    data = saved.read_bytes()
    for position in (0, 50, 120, len(data) // 2, len(data) - 1):
        altered = bytearray(data)
        altered[position] ^= 1
        saved.write_bytes(bytes(altered))
        with pytest.raises(DecryptionError):
            load_anybodys(saved, KEY)
    saved.write_bytes(data[:-1])
    with pytest.raises(DecryptionError):
        load_anybodys(saved, KEY)
    assert parsed == []
    saved.write_bytes(data)
    with pytest.raises(ZeroDivisionError):
        load_anybodys(saved, KEY)
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
        load_anybodys(saved, KEY)


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
    same(load_anybodys(saved, KEY), model, x)
    with pytest.raises(TamperedModelError):
        load_encrypted(saved, KEY, trusted_keys=key.verifying_key)
    with pytest.raises(TamperedModelError):
        load_encrypted_weights(model, saved, KEY, trusted_keys=key.verifying_key)


def test_code_in_the_model_is_refused_unless_it_is_allowed(tmp_path, x):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Lambda(lambda x: x * 2)])
    path = save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    with pytest.raises(CodeInModelError, match="Lambda"):
        load_anybodys(path, KEY)
    same(load_anybodys(path, KEY, allow=("Lambda",)), model, x)


def test_who_must_have_signed_is_said_or_waived_by_name(saved, model, x):
    """A file encrypted for a public key may be anybody's: that is never assumed to be wanted."""
    with pytest.raises(ValueError, match=r"must say who must have signed.*ANYBODY"):
        load_encrypted(saved, KEY)
    with pytest.raises(ValueError, match=r"must say who must have signed.*ANYBODY"):
        load_encrypted_weights(model, saved, KEY)
    with pytest.raises(ValueError, match="`expected_name` and `threshold` must be given with"):
        load_encrypted(saved, KEY, trusted_keys=ANYBODY, expected_name="model")
    same(load_encrypted(saved, KEY, trusted_keys=ms.trust.ANYBODY), model, x)
    assert pickle.loads(pickle.dumps(ANYBODY)) is ANYBODY
    with pytest.raises(KeyFormatError, match="trusted_keys"):
        ms.verify(saved, ANYBODY)  # it is no key: verification trusts somebody


def test_the_name_that_is_expected_must_have_been_signed(saved, model, x, key):
    sign(saved, key, name="classifier")
    trusted = {"trusted_keys": key.verifying_key}
    same(load_encrypted(saved, KEY, expected_name="classifier", **trusted), model, x)
    load_encrypted_weights(model, saved, KEY, expected_name="classifier", **trusted)
    for load in (load_encrypted, functools.partial(load_encrypted_weights, model)):
        with pytest.raises(SignatureError, match="under the name that is expected"):
            load(saved, KEY, expected_name="another", **trusted)


def test_safe_mode_is_as_in_loading_of_files(tmp_path, monkeypatch):
    """Parts that Keras's safe mode does not know leave it on; those that it does switch it off."""
    seen = []
    read = keras_saving.read_archive
    monkeypatch.setattr(
        keras_saving, "read_archive", lambda *a, **k: seen.append(k["safe_mode"]) or read(*a, **k)
    )
    monkeypatch.setattr(keras_archive, "check_archive", lambda *_: frozenset({"JaxLayer"}))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = save_encrypted(model, tmp_path / "model.keras.enc", KEY)
    load_anybodys(path, KEY)
    monkeypatch.setattr(keras_archive, "check_archive", lambda *_: frozenset({"Lambda"}))
    load_anybodys(path, KEY)
    assert seen == [True, False]


def test_an_odd_configuration_fails_by_the_same_name_encrypted_or_not(tmp_path, key):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = tmp_path / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["config"]["no_such_argument"] = 1
    config["config"]["layers"][1]["config"]["units"] = [None]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, json.dumps(config).encode() if name == "config.json" else data)
    sign(path, key)
    encrypted = encrypt_file(path, KEY)
    kinds = []
    for load in (
        lambda: ms.load_verified_model(path, key.verifying_key),
        lambda: load_anybodys(encrypted, KEY),
    ):
        with pytest.raises((ValueError, UnsafeModelError)) as caught:  # and never TypeError
            load()
        kinds.append(type(caught.value))
    assert kinds[0] is kinds[1]


@pytest.fixture
def unsafe_mode():
    from keras.src.saving import serialization_lib

    yield keras.config.enable_unsafe_deserialization()
    serialization_lib.global_state.set_global_attribute("safe_mode_saving", None)


@pytest.mark.usefixtures("unsafe_mode")
def test_unsafe_deserialization_is_refused_while_it_is_on(saved, model):
    with pytest.raises(UnsafeModelError, match="must be off"):
        load_anybodys(saved, KEY)
    with pytest.raises(UnsafeModelError, match="must be off"):
        load_anybodys_weights(model, saved, KEY)


@pytest.mark.parametrize(
    "name", ["model.keras", "model.enc", "model.h5.enc", "model.keras.encrypted"]
)
def test_other_endings_are_refused(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.keras\.enc or \.weights\.h5\.enc"):
        save_encrypted(model, tmp_path / name, KEY)
    with pytest.raises(ValueError, match=r"must end in \.keras\.enc"):
        load_anybodys(tmp_path / name, KEY)
    assert names(tmp_path) == []


def test_weights_file_that_is_no_such_file_is_refused_by_name(tmp_path, model):
    (tmp_path / "x.weights.h5").write_bytes(b"no HDF5")
    path = encrypt_file(tmp_path / "x.weights.h5", KEY)
    with pytest.raises(UnsafeModelError, match=r"x\.weights\.h5\.enc"):
        load_anybodys_weights(model, path, KEY)
    (tmp_path / "x.keras").write_bytes(b"no archive")
    with pytest.raises(UnsafeModelError, match=r"x\.keras\.enc"):
        load_anybodys(encrypt_file(tmp_path / "x.keras", KEY), KEY)


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


def test_hold_encrypted_writes_a_new_file_when_it_is_called(model, x, private, tmp_path):
    path, locks = tmp_path / "model.keras.enc", locks_for(private.public_key)
    hold_encrypted(model, path, locks)()
    same(load_anybodys(path, private), model, x)
    with pytest.raises(FileExistsError):
        hold_encrypted(model, path, locks)()


def test_no_secret_is_shown(saved, private, tmp_path):
    path = tmp_path / "a.key"
    path.write_bytes(private.to_pem(b"pass word"))
    for call in (
        lambda: load_anybodys(saved, Passphrase("correct horse")),
        lambda: load_anybodys(saved, path, password="correct horse"),
        lambda: load_anybodys(saved, "correct horse"),
        lambda: load_anybodys(saved, b"correct horse"),
    ):
        with pytest.raises((SignatureError, KeyFormatError, OSError)) as caught:
            call()
        error = caught.value
        while error is not None:
            assert "correct" not in str(error)
            error = error.__cause__ or error.__context__
    with pytest.raises(TypeError):
        pickle.dumps(private)
