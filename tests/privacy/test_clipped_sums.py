"""Sums that have no noise yet reach no file, and are not half remembered."""

import copy
import io
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.privacy.clipped_sums import ClippedSums


@pytest.fixture
def half_done(private_model, tiny_data):
    """A model that summed one batch of four, which no release holds."""
    x, y = tiny_data
    model = private_model("adam", noise_multiplier=2.0, gradient_accumulation_steps=4)
    model.fit(x[:4], y[:4], batch_size=4, verbose=0)
    return model


def _sums(model):
    sums = [np.asarray(total) for total in model.optimizer._sums._totals]
    assert all(np.any(total) for total in sums)
    return sums


def _hdf5_values(file):
    found = []
    with h5py.File(file) as opened:
        opened.visititems(
            lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None
        )
    return [value for value in found if isinstance(value, np.ndarray) and value.dtype.kind == "f"]


def _keras_values(data):
    with zipfile.ZipFile(data) as archive:
        return _hdf5_values(io.BytesIO(archive.read("model.weights.h5")))


def _checkpoint_values(prefix):
    names = [name for name, _ in tf.train.list_variables(str(prefix)) if "OBJECT" not in name]
    return [tf.train.load_variable(str(prefix), name) for name in names]


def _saved(model, folder):
    model.save(folder / "m.keras")
    return _keras_values(folder / "m.keras")


def _weights(model, folder):
    model.save_weights(folder / "m.weights.h5")
    return _hdf5_values(folder / "m.weights.h5")


def _sharded(model, folder):
    model.save_weights(folder / "m.weights.json", max_shard_size=0.001)
    return [v for path in folder.glob("*.h5") for v in _hdf5_values(path)]


def _legacy(model, folder):
    model.save(folder / "m.h5")
    return _hdf5_values(folder / "m.h5")


def _pickled(model, folder):
    return _keras_values(io.BytesIO(pickle.dumps(model)))


def _checkpoint_of_the_optimizer(model, folder):
    return _checkpoint_values(tf.train.Checkpoint(optimizer=model.optimizer).save(folder / "c"))


def _checkpoint_of_the_model(model, folder):
    return _checkpoint_values(tf.train.Checkpoint(model=model).save(folder / "c"))


def _saved_model(model, folder):
    tf.saved_model.save(model, str(folder / "s"))
    return _checkpoint_values(folder / "s" / "variables" / "variables")


def _export(model, folder):
    model.export(folder / "e", verbose=False)
    return _checkpoint_values(folder / "e" / "variables" / "variables")


def _listed(model, folder):
    return [np.asarray(v) for v in (*model.optimizer.variables, *model.variables)]


def _state_tree(model, folder):
    return [np.asarray(v) for v in keras.tree.flatten(model.get_state_tree())]


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.parametrize(
    "written",
    [
        _saved,
        _weights,
        _sharded,
        _legacy,
        _pickled,
        _checkpoint_of_the_optimizer,
        _checkpoint_of_the_model,
        _saved_model,
        _export,
        _listed,
        _state_tree,
    ],
)
def test_sums_without_noise_are_written_nowhere(tmp_path, half_done, written):
    values = written(half_done, tmp_path)
    kernels = [v for v in values if v.shape == (4, 5)]
    assert kernels, "the weights themselves must be found, or the test looks in the wrong place"
    for total in _sums(half_done):
        same_shape = [v for v in values if np.shape(v) == total.shape]
        assert not any(np.allclose(v, total, rtol=1e-3) for v in same_shape)


def test_a_checkpoint_within_an_epoch_holds_no_sums(tmp_path, private_model, tiny_data):
    class Kept(keras.callbacks.Callback):
        sums = ()

        def on_train_batch_end(self, batch, logs=None):
            self.sums = (*self.sums, _sums(self.model))

    model, kept = private_model("sgd", gradient_accumulation_steps=4), Kept()
    path = str(tmp_path / "{batch}.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq=1)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=1, delete_checkpoint=False)
    model.fit(*tiny_data, batch_size=4, callbacks=[kept, checkpoint, backup], verbose=0)
    files = [_keras_values(path) for path in tmp_path.glob("*.keras")]
    files.append(_hdf5_values(tmp_path / "b" / "latest.weights.h5"))
    assert len(files) == 4
    for total in (total for sums in kept.sums for total in sums):
        values = [v for file in files for v in file if v.shape == total.shape]
        assert values
        assert not any(np.allclose(v, total, rtol=1e-3) for v in values)


def test_what_was_summed_is_lost_with_saving_and_the_next_release_is_whole(
    tmp_path, half_done, tiny_data
):
    x, y = tiny_data
    half_done.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    copied = copy.deepcopy(half_done)
    for again in (loaded, copied):
        assert not again.optimizer._sums.are_pending
        again.fit(x[:12], y[:12], batch_size=4, verbose=0)  # three batches: none is left over
        assert again.optimizer.release_count == 0
        again.fit(x[:4], y[:4], batch_size=4, verbose=0)
        assert again.optimizer.release_count == 1


def test_loading_drops_the_sums_of_the_weights_before(tmp_path, half_done, tiny_data):
    x, y = tiny_data
    half_done.save_weights(tmp_path / "m.weights.h5")
    half_done.load_weights(tmp_path / "m.weights.h5")
    assert not half_done.optimizer._sums.are_pending
    assert not any(np.any(total) for total in half_done.optimizer._sums._totals)
    # Nothing is left over from another `fit`, so no example can be in a release twice.
    half_done.fit(x, y, batch_size=3, verbose=0)
    assert [(r.releases, r.most_in_a_release()) for r in half_done.optimizer.runs()] == [(1.0, 1)]


def test_files_that_hold_sums_of_earlier_versions_load_without_them(
    private_model, half_done, tiny_data
):
    """They stood between the ledger and the inner optimizer's state."""
    half_done.fit(*tiny_data, batch_size=4, verbose=0)
    store = {}
    half_done.optimizer.save_own_variables(store)
    values = list(store.values())
    inner = len(half_done.optimizer.inner_optimizer.variables)
    old = [*values[:-inner], *_old_sums(half_done), *values[-inner:]]
    again = private_model("adam", noise_multiplier=2.0, gradient_accumulation_steps=4)
    again.optimizer.build(again.trainable_variables)
    again.optimizer.load_own_variables({str(i): value for i, value in enumerate(old)})
    assert again.optimizer.runs() == half_done.optimizer.runs()
    for left, right in zip(again.optimizer.variables[-inner:], values[-inner:], strict=True):
        np.testing.assert_array_equal(left, right)
    assert not again.optimizer._sums.are_pending


def _old_sums(model):
    return [np.ones(v.shape, "float32") for v in model.trainable_variables]


def test_sums_of_narrow_weights_keep_one_examples_influence_bounded():
    """In bfloat16, 256 + 0.5 would be 256: rounded, an example counts for 0 or for 2."""
    weight = keras.Variable(np.zeros(1), dtype="bfloat16")
    sums, released = ClippedSums([weight], 3), []
    for part in (256.0, 0.5, 0.5):
        sums.add([tf.constant([part])], [0], lambda totals: released.append(float(totals[0][0])))
    assert released == [257.0]
