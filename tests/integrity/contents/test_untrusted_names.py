"""Names out of a model file, signed or not, reach no terminal raw by way of an error."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import UnsafeModelError

EVIL = "e\x1b[2J\x07\u202e"


def refused(path, key, load):
    ms.sign(path, key)
    with pytest.raises(UnsafeModelError) as caught:
        load(path, key.verifying_key)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("field", ["class_name", "module"])
def test_name_of_a_class(tmp_path, key, field):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save(tmp_path / "good.keras")
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(tmp_path / "good.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                config[field] = EVIL
                data = json.dumps(config).encode()
            new.writestr(name, data)
    assert "\\x1b[2J" in refused(path, key, ms.load_verified_model)


def test_name_of_a_tensor(tmp_path, key):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        file.create_dataset(EVIL, data=np.array(["text"], dtype=h5py.string_dtype()))
    text = refused(path, key, lambda *given: ms.load_verified_weights(model, *given))
    assert "\\x1b[2J" in text
