"""What goes through file objects is what Keras's own paths give."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_modelsec._core import keras_saving

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")


def no_assets():
    raise AssertionError("no layer of this model has files")


def contents(file):
    """All that an HDF5 file says; its bytes depend on how h5py was given the file."""
    found = {}

    def visit(name, item):
        value = item[()].tobytes() if isinstance(item, h5py.Dataset) else None
        found[name] = value, dict(item.attrs)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return found


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="relu", dtype="mixed_bfloat16")(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    model.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)
    return model


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_archive_holds_what_model_save_writes(model, tmp_path):
    model.save(tmp_path / "model.keras")
    theirs = members((tmp_path / "model.keras").read_bytes())
    file = io.BytesIO()
    keras_saving.write_archive(model, file, no_assets)
    ours = members(file.getvalue())
    assert list(ours) == list(theirs)
    assert json.loads(ours["config.json"]) == json.loads(theirs["config.json"])
    assert ours["model.weights.h5"] == theirs["model.weights.h5"]
    assert set(json.loads(ours["metadata.json"])) == set(json.loads(theirs["metadata.json"]))


def test_keras_loads_what_was_written(model, tmp_path):
    with open(tmp_path / "model.keras", "wb") as file:
        keras_saving.write_archive(model, file, no_assets)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, 6))
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_what_model_save_wrote_is_read(model, tmp_path):
    model.save(tmp_path / "model.keras")
    parts = members((tmp_path / "model.keras").read_bytes())
    loaded = keras_saving.read_archive(
        parts["config.json"].decode(), io.BytesIO(parts["model.weights.h5"]), None
    )
    assert loaded.optimizer.iterations == 1
    for ours, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_those_of_save_weights(model, tmp_path):
    model.save_weights(tmp_path / "a.weights.h5")
    file = io.BytesIO()
    keras_saving.write_weights(model, file)
    assert contents(file) == contents(tmp_path / "a.weights.h5")
    clone = keras.models.clone_model(model)
    clone.compile("adam", "mse")
    keras_saving.read_weights(clone, io.BytesIO(file.getvalue()))
    for ours, theirs in zip(clone.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_do_not_fit_raise_as_in_keras(model):
    file = io.BytesIO()
    keras_saving.write_weights(model, file)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match="could not be loaded"):
        keras_saving.read_weights(other, file)
    with pytest.raises(ValueError, match="must be built"):
        keras_saving.read_weights(keras.Sequential([keras.layers.Dense(7)]), file)


def test_layers_with_files_keep_them(tmp_path):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["alpha", "beta", "beta"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    folder = tmp_path / "assets"
    folder.mkdir()
    file = io.BytesIO()
    keras_saving.write_archive(model, file, lambda: str(folder))
    parts = members(file.getvalue())
    model.save(tmp_path / "model.keras")
    theirs = members((tmp_path / "model.keras").read_bytes())
    assert list(parts) == list(theirs)
    loaded = keras_saving.read_archive(
        parts["config.json"].decode(), io.BytesIO(parts["model.weights.h5"]), str(folder)
    )
    assert loaded.layers[0].get_vocabulary() == lookup.get_vocabulary()
