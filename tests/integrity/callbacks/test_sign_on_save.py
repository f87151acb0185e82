import concurrent.futures
import copy
import json
import os
import pickle
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

import keras_modelsec as ms
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import publishing
from keras_modelsec._storage.staging import StagingFolder
from keras_modelsec.errors import (
    CheckpointError,
    KeyFormatError,
    TamperedModelError,
    UnsafePathError,
    WrongPasswordError,
)
from keras_modelsec.integrity import SignOnSave, load_verified_model, load_verified_weights, verify
from keras_modelsec.integrity.callbacks import sign_on_save
from keras_modelsec.integrity.signing.describing import describe_for_signing
from keras_modelsec.integrity.statements.model_statement import read_statement
from keras_modelsec.integrity.statements.places import Places
from keras_modelsec.trust import EnvironmentVariable, generate_keys
from keras_modelsec.watermark.keys import SecretKey

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X @ np.ones((4, 1), "float32")


def make_model(**compile_arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **compile_arguments)
    return model


def fit(callback, *, model=None, epochs=2, **arguments):
    model = model or make_model()
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[callback], **arguments)
    return model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def pem(key):
    return key._key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "weights_only"), [("m.keras", False), ("m.weights.h5", True), ("m.h5", False)]
)
def test_every_kind_of_file_is_signed(tmp_path, pem, public, name, weights_only):
    model = fit(SignOnSave(tmp_path / name, pem, save_weights_only=weights_only))
    verify(tmp_path / name, public)
    assert names(tmp_path) == [name, name + ".modelsec.json", name + ".sig"]
    if weights_only:
        loaded = make_model()
        load_verified_weights(loaded, tmp_path / name, public)
    else:
        loaded = load_verified_model(tmp_path / name, public, compile=False)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_fields_of_the_name_are_filled_and_each_file_is_signed(tmp_path, pem, public):
    path = tmp_path / "run" / "{epoch:02d}-{val_loss:.2f}.keras"
    fit(SignOnSave(path, pem), epochs=3, validation_data=(X, Y))
    models = sorted((tmp_path / "run").glob("*.keras"))
    assert [p.name[:3] for p in models] == ["01-", "02-", "03-"]
    assert len(names(tmp_path / "run")) == 9
    for model in models:
        verify(model, public)


def test_fields_may_name_the_folder(tmp_path, pem, public):
    fit(SignOnSave(tmp_path / "run" / "{epoch}" / "m.keras", pem))
    assert names(tmp_path / "run") == ["1", "2"]
    verify(tmp_path / "run" / "2" / "m.keras", public)


def test_saves_every_n_batches(tmp_path, pem, public):
    fit(SignOnSave(tmp_path / "{epoch}-{batch}.keras", pem, save_freq=3), epochs=3)
    models = sorted(tmp_path.glob("*.keras"))
    assert [p.name for p in models] == ["1-3.keras", "2-2.keras", "3-1.keras", "3-4.keras"]
    for model in models:
        verify(model, public)


def test_same_files_at_the_same_times_as_model_checkpoint(tmp_path, pem):
    class Saves(keras.callbacks.Callback):
        def __init__(self, folder):
            super().__init__()
            self.folder, self.seen = folder, []

        def on_epoch_end(self, epoch, logs=None):
            files = [p for p in self.folder.iterdir() if p.suffix not in (".sig", ".json")]
            self.seen.append(sorted((p.name, p.stat().st_ino) for p in files))

    def run(folder, callback):
        folder.mkdir(exist_ok=True)
        saves = Saves(folder)
        losses = [1.0, 3.0, 0.5, 0.5]

        class Scripted(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs["val_loss"] = losses[epoch]

        model = make_model()
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[Scripted(), callback, saves])
        changed = [a != b for a, b in zip(saves.seen, saves.seen[1:], strict=False)]
        return changed, [[n for n, _ in s] for s in saves.seen]

    options = {"save_best_only": True, "monitor": "val_loss"}
    (tmp_path / "ours").mkdir()
    path = tmp_path / "ours" / "m.keras"
    changed, seen = run(tmp_path / "ours", SignOnSave(path, pem, background=False, **options))
    (tmp_path / "theirs").mkdir()
    theirs = keras.callbacks.ModelCheckpoint(tmp_path / "theirs" / "m.keras", **options)
    _, expected = run(tmp_path / "theirs", theirs)
    assert seen == expected
    assert changed == [False, True, False]


def test_verbose_names_the_real_file(tmp_path, pem, capsys):
    fit(SignOnSave(tmp_path / "m.keras", pem, verbose=1), epochs=1)
    output = capsys.readouterr().out
    assert f"saving model to {tmp_path / 'm.keras'}" in output
    assert "modelsec-saving" not in output


def test_training_is_that_of_model_checkpoint(tmp_path, pem):
    ours = fit(SignOnSave(tmp_path / "a.keras", pem, save_freq=1))
    theirs = fit(keras.callbacks.ModelCheckpoint(tmp_path / "b.keras", save_freq=1))
    np.testing.assert_array_equal(ours.get_weights()[0], theirs.get_weights()[0])


def test_model_of_the_callback_is_the_model_itself_outside_of_saving(tmp_path, pem):
    callback = SignOnSave(tmp_path / "m.keras", pem)
    model = fit(callback)
    assert callback.model is model


def test_encrypted_key_with_its_password_from_the_environment(tmp_path, monkeypatch):
    private, public = generate_keys(tmp_path / "owner.pem", password="geheim")
    monkeypatch.setenv("OWNER_PASSWORD", "geheim")
    password = EnvironmentVariable("OWNER_PASSWORD")
    callback = SignOnSave(tmp_path / "m.keras", private, password=password)
    monkeypatch.delenv("OWNER_PASSWORD")  # needed when the callback is made, not later
    private.unlink()
    fit(callback)
    verify(tmp_path / "m.keras", public)


def test_key_is_in_no_repr_attribute_or_pickle(tmp_path, pem):
    callback = SignOnSave(tmp_path / "m.keras", pem, password=None)
    secret = "".join(pem.decode().splitlines()[1:-1])
    shown = repr(callback) + repr(vars(callback))
    assert secret[10:40] not in shown
    assert "PRIVATE KEY" not in shown
    with pytest.raises(TypeError, match="must not be pickled"):
        pickle.dumps(callback)
    fit(copy.deepcopy(callback))  # what tuners do with callbacks
    assert (tmp_path / "m.keras.sig").exists()


def test_key_reaches_no_file(tmp_path, pem, key):
    fit(SignOnSave(tmp_path / "m.keras", pem))
    secret = key._key.private_numbers().private_value.to_bytes(32, "big")
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()
        assert b"PRIVATE" not in path.read_bytes()


@pytest.mark.parametrize(
    ("path", "signing_key", "arguments", "error", "message"),
    [
        ("m.txt", None, {}, ValueError, "must end in"),
        ("m.keras", b"junk", {}, KeyFormatError, "`signing_key` must be PEM"),
        ("m.keras", "gone.pem", {}, FileNotFoundError, "gone.pem"),
        ("m.keras", None, {"password": "p"}, WrongPasswordError, "must be None"),
        ("gs://bucket/m.keras", None, {}, ValueError, "must be a local path"),
        ("{epoch.keras", None, {}, ValueError, "valid format string"),
        (b"m.keras", None, {}, TypeError, "`filepath` must be"),
        ("m.keras", None, {"save_weights_only": True}, ValueError, r"\.weights\.h5"),
        ("m.weights.h5", None, {}, ValueError, "Pass save_weights_only=True"),
        ("m.keras", None, {"save_freq": "never"}, ValueError, "save_freq"),
        ("m.keras", None, {"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_wrong_arguments_fail_before_training(
    tmp_path, monkeypatch, pem, path, signing_key, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        SignOnSave(path, pem if signing_key is None else signing_key, **arguments)
    assert names(tmp_path) == []


def test_unwritable_folder_fails_before_training(tmp_path, pem):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"folder for checkpoints.*no writable folder"):
        SignOnSave(tmp_path / "file" / "sub" / "m.keras", pem)
    with pytest.raises(CheckpointError, match=r"folder for checkpoints must be writable"):
        SignOnSave(tmp_path / "file" / "m.keras", pem)
    with pytest.raises(CheckpointError, match=r"folder for checkpoints"):
        SignOnSave("/proc/m.keras", pem)


def test_folder_that_became_unwritable_fails_when_training_begins(tmp_path, pem):
    callback = SignOnSave(tmp_path / "run" / "m.keras", pem)
    (tmp_path / "run").write_bytes(b"now a file")
    model = make_model()
    before = model.get_weights()[0].copy()
    with pytest.raises(CheckpointError, match=r"folder for checkpoints"):
        fit(callback, model=model)
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_failing_training_leaves_the_last_signed_checkpoint_whole(tmp_path, pem, public):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.params["epochs"] == 2 and self.epoch == 1:
                raise RuntimeError("out of memory")

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    model = make_model()
    callbacks = [SignOnSave(tmp_path / "m.keras", pem), Fails()]
    with pytest.raises(RuntimeError, match="out of memory"):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    callbacks[0].on_train_end()  # `fit` that failed has not waited for the other thread
    verify(tmp_path / "m.keras", public)
    assert names(tmp_path) == ["m.keras", "m.keras.modelsec.json", "m.keras.sig"]


@pytest.mark.parametrize(("name", "weights_only"), [("m.keras", False), ("m.weights.h5", True)])
def test_full_disk_is_clear_and_leaves_the_last_signed_checkpoint_whole(
    tmp_path, pem, public, name, weights_only
):
    resource = pytest.importorskip("resource")
    callback = SignOnSave(tmp_path / name, pem, save_weights_only=weights_only)
    fit(callback)
    before = (tmp_path / name).read_bytes()
    large = keras.Sequential([keras.Input((4,)), keras.layers.Dense(200_000)])
    large.build()
    callback.set_model(large)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        callback.on_epoch_end(0, {})
        with pytest.raises(CheckpointError, match=r"could not be written.*Make room"):
            callback.on_train_end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / name).read_bytes() == before
    verify(tmp_path / name, public)
    assert names(tmp_path) == [name, name + ".modelsec.json", name + ".sig"]


def test_target_that_is_a_folder_is_named(tmp_path, pem):
    (tmp_path / "m.keras").mkdir()
    with pytest.raises(OSError, match="non-directory filepath"):
        fit(SignOnSave(tmp_path / "m.keras", pem))
    assert names(tmp_path) == ["m.keras"]


def test_leftovers_of_a_killed_run_are_settled_when_training_begins(tmp_path, pem, public):
    path = tmp_path / "m.keras"
    fit(SignOnSave(path, pem))
    (tmp_path / "m.keras.sig").rename(tmp_path / "m.keras.sig.next")
    left = StagingFolder.make(tmp_path, ".modelsec-saving-")
    (left.path / "m.keras").write_bytes(b"half")
    left.close()
    callback = SignOnSave(path, pem)
    callback.set_model(make_model())
    callback.on_train_begin()
    assert names(tmp_path) == ["m.keras", "m.keras.modelsec.json", "m.keras.sig"]
    verify(path, public, signature_path=tmp_path / "m.keras.sig")


def test_edited_checkpoint_is_not_loaded(tmp_path, pem, public):
    path = tmp_path / "m.keras"
    fit(SignOnSave(path, pem))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(TamperedModelError):
        load_verified_model(path, public)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_checkpoint_replaces_a_link_instead_of_writing_through_it(tmp_path, pem, public):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "m.keras").symlink_to(precious)
    with pytest.raises(UnsafePathError):
        verify(tmp_path / "m.keras", public)
    fit(SignOnSave(tmp_path / "m.keras", pem))
    assert precious.read_bytes() == b"precious"
    verify(tmp_path / "m.keras", public)


TRAIN = """
import os, sys, numpy as np, keras
import keras_modelsec as ms
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(2000), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.zeros((8, 64)), np.zeros((8, 1))
class Started(keras.callbacks.Callback):
    told = False
    def on_epoch_end(self, epoch, logs=None):
        if not self.told and os.path.exists(sys.argv[1]):
            self.told = True
            print("started", flush=True)
model.fit(x, y, epochs=10**6, verbose=0,
    callbacks=[ms.SignOnSave(sys.argv[1], sys.argv[2]), Started()])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_fit_leaves_a_checkpoint_that_loads(tmp_path, pem, public):
    (tmp_path / "run").mkdir()
    (tmp_path / "key.pem").write_bytes(pem)
    path = tmp_path / "run" / "m.keras"
    for delay in (0.013, 0.371):
        command = [sys.executable, "-W", "ignore", "-c", TRAIN, str(path), tmp_path / "key.pem"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout.readline() == "started\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert load_verified_model(path, public).count_params() == 64 * 2000 + 2000 + 2001


def stated(path, public):
    return read_statement(Places.of(path).statement, Trust({public.hint: public}))


def test_export_is_a_signed_folder_and_replaces_the_one_before(tmp_path, pem, public):
    path = tmp_path / "served"
    seen = set()

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                verify(path, public)
                seen.add((path / "fingerprint.pb").stat().st_ino)

    callbacks = [SignOnSave(path, pem, background=False), Look()]
    make_model().fit(X, Y, epochs=3, verbose=0, callbacks=callbacks)
    verify(path, public)
    assert len(seen) == 2
    assert names(tmp_path) == ["served", "served.modelsec.json", "served.sig"]
    assert stated(path, public).version == 3
    next(path.rglob("variables.data*")).write_bytes(b"else")
    with pytest.raises(TamperedModelError):
        verify(path, public)


def test_ending_that_is_none_of_keras_is_refused(tmp_path, pem):
    with pytest.raises(ValueError, match="filepath"):
        SignOnSave(tmp_path / "m.txt", pem)
    with pytest.raises(ValueError, match="weights"):
        SignOnSave(tmp_path / "export", pem, save_weights_only=True)
    SignOnSave(tmp_path / "{epoch:02d}-{val_loss:.2f}", pem)


def test_version_counts_up_within_and_across_runs(tmp_path, pem, public):
    path = tmp_path / "{epoch}.keras"
    fit(SignOnSave(path, pem, name="net"), epochs=2)
    fit(SignOnSave(path, pem, name="net"), epochs=3)
    said = [stated(tmp_path / f"{n}.keras", public) for n in (1, 2, 3)]
    assert [item.version for item in said] == [3, 4, 5]
    assert {item.model for item in said} == {"net"}
    fit(SignOnSave(path, pem, version=40), epochs=1)
    assert stated(tmp_path / "1.keras", public).version == 40


def test_statement_says_how_the_model_was_trained(tmp_path, pem, public):
    key = ms.watermark.generate_key()
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(256)(inputs)
    model = ms.SecureModel(inputs, keras.layers.Dense(1)(keras.layers.Dense(16)(hidden)))
    ms.attach_watermark(model, key)
    optimizer = ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, "mse")
    callbacks = [
        ms.PrivacyBudget(delta=1e-5),
        ms.WatermarkMonitor(key),
        SignOnSave(tmp_path / "m.keras", pem, provenance={"dataset_sha256": "0" * 64}),
    ]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    facts = stated(tmp_path / "m.keras", public).provenance
    assert facts["dataset_sha256"] == "0" * 64
    assert facts["training"]["epoch"] == 1
    assert facts["training"]["params"]["epochs"] == 2
    assert facts["training"]["logs"]["loss"] > 0
    assert facts["privacy"]["epsilon"] == pytest.approx(callbacks[0].epsilon)
    assert "differential privacy" in facts["privacy"]["statement"]
    assert facts["watermark"]["commitment"] == SecretKey(key).commitment
    assert key.hex() not in json.dumps(dict(facts))


def test_error_on_the_other_thread_stops_training_at_the_next_batch(tmp_path, pem, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    batches = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches.append(batch)
            if saving._pending is not None:
                concurrent.futures.wait([saving._pending], 1800)  # as long as a busy machine takes

    monkeypatch.setattr("keras_modelsec._storage.publishing.sync_tree", full)
    saving = SignOnSave(tmp_path / "m.keras", pem, save_freq=2)
    callbacks = [saving, Count()]
    with pytest.raises(CheckpointError, match="could not be written"):
        make_model().fit(X, Y, batch_size=2, epochs=5, verbose=0, callbacks=callbacks)
    assert len(batches) <= 3
    assert names(tmp_path) == []


def test_training_goes_on_while_a_checkpoint_is_signed(tmp_path, pem, public, monkeypatch):
    original, began, went_on = publishing.sync_tree, threading.Event(), threading.Event()

    def slow(path):
        began.set()
        assert went_on.wait(1800)
        original(path)

    class GoesOn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 12:
                assert began.wait(1800)
                assert not (tmp_path / "m.keras").exists()
                went_on.set()

    monkeypatch.setattr(publishing, "sync_tree", slow)
    callbacks = [SignOnSave(tmp_path / "m.keras", pem, save_freq=10), GoesOn()]
    make_model().fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=callbacks)
    assert went_on.is_set()
    verify(tmp_path / "m.keras", public)  # all is in place when fit returns


@pytest.mark.parametrize("name", ["m.keras.enc", "m.weights.h5.enc"])
def test_encrypted_checkpoint_is_signed_and_no_plaintext_is_written(
    tmp_path, pem, public, name, monkeypatch
):
    key = os.urandom(32)
    seen = []
    monkeypatch.setattr(publishing, "sync_tree", lambda path: seen.append(path.read_bytes()))
    weights_only = name.endswith(".weights.h5.enc")
    callback = SignOnSave(tmp_path / name, pem, encrypt_to=key, save_weights_only=weights_only)
    model = fit(callback)
    assert key.hex() not in repr(vars(callback))
    verify(tmp_path / name, public)
    kernel = model.get_weights()[0]
    assert len(seen) == 2
    assert all(kernel.tobytes() not in data for data in seen)
    if weights_only:
        loaded = make_model()
        ms.encryption.load_encrypted_weights(loaded, tmp_path / name, key, trusted_keys=public)
    else:
        loaded = ms.load_encrypted(tmp_path / name, key, trusted_keys=public, compile=False)
    np.testing.assert_array_equal(loaded.get_weights()[0], kernel)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TamperedModelError):
        verify(tmp_path / name, public)


def test_ending_and_encrypt_to_must_agree(tmp_path, pem):
    with pytest.raises(ValueError, match=r"must end in '\.enc'"):
        SignOnSave(tmp_path / "m.keras", pem, encrypt_to=bytes(range(32)))
    with pytest.raises(ValueError, match="for whom"):
        SignOnSave(tmp_path / "m.keras.enc", pem)


class Gate:
    """Holds the other thread back before it writes, until training has gone on."""

    def __init__(self, monkeypatch):
        self.opened, original = threading.Event(), sign_on_save.describe_while_writing

        def late(image, path):
            assert self.opened.wait(1800)
            self.opened.clear()
            return original(image, path)

        monkeypatch.setattr(sign_on_save, "describe_while_writing", late)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["{epoch}.keras", "{epoch}.weights.h5"])
def test_file_holds_the_moment_of_the_save_though_it_is_written_later(
    tmp_path, pem, public, name, monkeypatch
):
    gate, moments = Gate(monkeypatch), []

    class Moments(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 10:
                gate.opened.set()

        def on_epoch_end(self, epoch, logs=None):
            moments.append([v.numpy() for v in (*model.weights, *model.optimizer.variables)])

        def on_train_end(self, logs=None):
            gate.opened.set()

    model = make_model()
    model.compile("adam", "mse", jit_compile=True)
    weights_only = "weights" in name
    callbacks = [Moments(), SignOnSave(tmp_path / name, pem, save_weights_only=weights_only)]
    model.fit(X, Y, batch_size=2, epochs=3, verbose=0, callbacks=callbacks)
    assert len({moment[0].tobytes() for moment in moments}) == 3
    for epoch, moment in enumerate(moments, 1):
        path = tmp_path / name.format(epoch=epoch)
        if weights_only:
            loaded = make_model()
            loaded.compile("adam", "mse")
            loaded.optimizer.build(loaded.trainable_variables)
            load_verified_weights(loaded, path, public)
        else:
            loaded = load_verified_model(path, public)
        found = (*loaded.weights, *loaded.optimizer.variables)
        for ours, theirs in zip(found, moment, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_second_save_waits_for_the_first_and_both_are_in_their_order(
    tmp_path, pem, public, monkeypatch
):
    gate = Gate(monkeypatch)
    callback = SignOnSave(tmp_path / "m.keras", pem)
    model = make_model()
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    model.set_weights([np.full((4, 1), 2.0), np.zeros(1)])
    assert not (tmp_path / "m.keras").exists()
    threading.Timer(0.05, gate.opened.set).start()
    callback.on_epoch_end(1, {})  # not before the first is in place
    assert stated(tmp_path / "m.keras", public).version == 1
    gate.opened.set()
    callback.on_train_end()
    assert stated(tmp_path / "m.keras", public).version == 2
    loaded = load_verified_model(tmp_path / "m.keras", public)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end", "on_train_end"])
def test_error_of_the_other_thread_is_raised_at_the_next_epoch_or_the_end(
    tmp_path, pem, hook, monkeypatch
):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sign_on_save, "describe_while_writing", full)
    callback = SignOnSave(tmp_path / "m.keras", pem)
    callback.set_model(make_model())
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    callback._pool.shutdown()
    arguments = () if hook == "on_train_end" else (1,)
    with pytest.raises(CheckpointError, match="No space left"):
        getattr(callback, hook)(*arguments)
    assert names(tmp_path) == []


def test_interrupted_training_still_completes_the_checkpoint_it_began(
    tmp_path, pem, public, monkeypatch
):
    gate = Gate(monkeypatch)

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    callback, model = SignOnSave(tmp_path / "m.keras", pem), make_model()
    callbacks = [callback, Interrupts()]
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    expected = model.get_weights()[0]
    model.set_weights([np.zeros((4, 1)), np.zeros(1)])
    gate.opened.set()
    callback.on_train_end()
    loaded = load_verified_model(tmp_path / "m.keras", public)
    np.testing.assert_array_equal(loaded.get_weights()[0], expected)
    assert names(tmp_path) == ["m.keras", "m.keras.modelsec.json", "m.keras.sig"]


def test_save_of_ones_own_is_called_and_training_waits_for_it(tmp_path, pem, public):
    threads = []

    class OwnSave(keras.Sequential):
        def save(self, filepath, **options):
            threads.append(threading.current_thread())
            super().save(filepath, **options)

    model = OwnSave([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    fit(SignOnSave(tmp_path / "m.keras", pem), model=model)
    assert threads == [threading.main_thread()] * 2
    verify(tmp_path / "m.keras", public)


def test_files_of_layers_are_those_of_the_moment(tmp_path, pem, public, monkeypatch):
    gate = Gate(monkeypatch)
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    callback = SignOnSave(tmp_path / "m.keras", pem)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    lookup.set_vocabulary(["c", "d", "e"])
    gate.opened.set()
    callback.on_train_end()
    loaded = load_verified_model(tmp_path / "m.keras", public)
    assert loaded.layers[0].get_vocabulary() == ["[UNK]", "a", "b"]
    assert names(tmp_path) == ["m.keras", "m.keras.modelsec.json", "m.keras.sig"]


def test_statement_made_while_writing_is_the_one_of_the_file(tmp_path, pem, public):
    inputs = keras.Input((200,))
    model = keras.Model(inputs, keras.layers.Dense(300, dtype="mixed_bfloat16")(inputs))
    model.compile("adam", "mse")
    for name, weights_only in (("m.keras", False), ("m.weights.h5", True)):
        callback = SignOnSave(tmp_path / name, pem, save_weights_only=weights_only)
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_end(0, {})
        callback.on_train_end()
        said, found = stated(tmp_path / name, public), describe_for_signing(tmp_path / name)
        assert dict(said.files) == dict(found.files)
        assert said.tensors == found.tensors
        assert len(said.tensors) >= 4


@pytest.mark.parametrize("kind", ["m.keras", "served"])
def test_interrupt_just_after_the_model_was_put_in_place_leaves_what_verifies(
    tmp_path, pem, public, kind, monkeypatch
):
    original, raised = publishing.replace, []

    def interrupted(source, target):
        original(source, target)
        if not raised:
            raised.append(KeyboardInterrupt())
            raise raised[0]

    callback = SignOnSave(tmp_path / kind, pem, background=False)
    model = fit(callback, epochs=1)
    before = sorted(path.stat().st_ino for path in tmp_path.iterdir())
    monkeypatch.setattr(publishing, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(callback, model=model, epochs=1)
    assert sorted(path.stat().st_ino for path in tmp_path.iterdir()) != before
    verify(tmp_path / kind, public)
    callback.on_train_begin()
    callback.on_train_end()
    assert names(tmp_path) == [kind, f"{kind}.modelsec.json", f"{kind}.sig"]
    verify(tmp_path / kind, public)
