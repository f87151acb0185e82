"""Resuming from a signed backup, and from nothing else."""

import keras
import numpy as np
import pytest

from keras_modelsec.errors import SignatureError, TamperedModelError
from keras_modelsec.integrity import SignedBackupAndRestore, sign, verify
from keras_modelsec.integrity.callbacks import signed_backup
from keras_modelsec.integrity.signing.versions import own_statement

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def make_model():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


class Epochs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(epoch)


def fit(model, *callbacks, epochs=4, **options):
    options = {"shuffle": False, "batch_size": 8, "verbose": 0, **options}
    model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)
    return model


@pytest.fixture
def interrupted(tmp_path, key):
    """The folder of a run that stopped after two epochs."""
    folder = tmp_path / "backup"
    backup = SignedBackupAndRestore(folder, key)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), backup, Interrupt(2))
    return folder


def test_resumed_run_equals_one_without_a_break_and_removes_the_backup(interrupted, key):
    epochs = Epochs()
    resumed = fit(make_model(), SignedBackupAndRestore(interrupted, key), epochs)
    assert epochs.seen == [2, 3]
    whole = fit(make_model())
    np.testing.assert_array_equal(resumed.get_weights()[0], whole.get_weights()[0])
    assert not interrupted.exists()


def test_backup_is_that_of_keras_and_signed(interrupted, key, public, tmp_path):
    verify(interrupted / "latest.weights.h5", public)
    plain = tmp_path / "plain"
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), keras.callbacks.BackupAndRestore(plain), Interrupt(2))
    ours, theirs = make_model(), make_model()
    ours.load_weights(interrupted / "latest.weights.h5")
    theirs.load_weights(plain / "latest.weights.h5")
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_edited_backup_is_refused_before_a_weight_changes(interrupted, key):
    path = interrupted / "latest.weights.h5"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    model = make_model()
    before = model.get_weights()
    with pytest.raises(TamperedModelError):
        fit(model, SignedBackupAndRestore(interrupted, key))
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_backup_by_another_key_or_by_none_is_refused(interrupted, key, other_key):
    with pytest.raises(SignatureError, match="trusted key"):
        fit(make_model(), SignedBackupAndRestore(interrupted, other_key))
    for path in interrupted.iterdir():
        if path.suffix in (".sig", ".json"):
            path.unlink()
    with pytest.raises(SignatureError, match="must come with its statement"):
        fit(make_model(), SignedBackupAndRestore(interrupted, key))


def test_weights_signed_for_another_purpose_are_no_backup(interrupted, key):
    sign(interrupted / "latest.weights.h5", key)
    with pytest.raises(SignatureError, match="must name the epoch"):
        fit(make_model(), SignedBackupAndRestore(interrupted, key))


def test_saves_every_n_batches_and_keeps_what_is_to_be_kept(tmp_path, key, public):
    folder = tmp_path / "backup"
    backup = SignedBackupAndRestore(folder, key, save_freq=3, delete_checkpoint=False)
    model = make_model()
    fit(model, backup, epochs=3)  # 12 batches: the last save is at the end
    verify(folder / "latest.weights.h5", public)
    saved = make_model()
    saved.load_weights(folder / "latest.weights.h5")
    np.testing.assert_array_equal(saved.get_weights()[0], model.get_weights()[0])


def test_epoch_that_was_interrupted_begins_again(tmp_path, key):
    class StopInBatch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    folder, epochs = tmp_path / "backup", Epochs()
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), SignedBackupAndRestore(folder, key, save_freq=2), StopInBatch())
    fit(make_model(), SignedBackupAndRestore(folder, key), epochs)
    assert epochs.seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"save_freq": 0}, ValueError), ({"save_freq": "batch"}, TypeError)],
)
def test_impossible_arguments_are_named(tmp_path, key, options, error):
    with pytest.raises(error, match="save_freq"):
        SignedBackupAndRestore(tmp_path, key, **options)


def test_unbuilt_model_is_named(interrupted, key):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="must be built"):
        fit(model, SignedBackupAndRestore(interrupted, key))


def test_backup_without_its_statement_is_refused_before_a_weight_changes(interrupted, key):
    (interrupted / "latest.weights.h5.modelsec.json").unlink()
    model = make_model()
    before = model.get_weights()[0]
    with pytest.raises(SignatureError, match="must come with its statement"):
        fit(model, SignedBackupAndRestore(interrupted, key))
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_epoch_is_that_of_the_statement_on_the_weights(interrupted, key, monkeypatch):
    """Who may write to the folder exchanges the statement for an older one as soon as it is read"""
    place = interrupted / "latest.weights.h5.modelsec.json"
    newest = place.read_bytes()
    older = interrupted.parent / "older"
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), SignedBackupAndRestore(older, key), Interrupt(1))
    place.write_bytes((older / place.name).read_bytes())  # epoch 1, of other weights
    (interrupted / "latest.weights.h5.sig").unlink()
    load = signed_backup.load_verified_weights

    def exchange_and_load(*args, **options):
        place.write_bytes(newest)
        load(*args, **options)

    monkeypatch.setattr(signed_backup, "load_verified_weights", exchange_and_load)
    with pytest.raises(TamperedModelError):
        fit(make_model(), SignedBackupAndRestore(interrupted, key))


def test_planted_statement_chooses_neither_name_nor_version_of_a_backup(tmp_path, key, public):
    release, folder = tmp_path / "prod.keras", tmp_path / "backup"
    make_model().save(release)
    sign(release, key, version=57)
    folder.mkdir()
    place = folder / "latest.weights.h5.modelsec.json"
    place.write_bytes((tmp_path / "prod.keras.modelsec.json").read_bytes())
    fit(make_model(), SignedBackupAndRestore(folder, key, delete_checkpoint=False), epochs=2)
    said = own_statement(place, key)
    assert (said.model, said.version) == ("latest.weights.h5", 2)
    with pytest.raises(SignatureError, match="prod"):
        verify(folder / "latest.weights.h5", public, expected_name="prod.keras")
