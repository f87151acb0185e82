"""A plain export has the same outputs and weights, and names nothing of this package."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_modelsec as ms

layers = keras.layers


def _secured():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, activation="relu", kernel_regularizer="l2")(inputs)
    nested_inputs = keras.Input((4, 4, 8))
    nested = ms.SecureModel(nested_inputs, layers.Conv2D(4, 3)(nested_inputs), name="nested")
    x = layers.Flatten()(layers.Dropout(0.5)(nested(x)))
    model = ms.SecureModel(inputs, layers.Dense(3, activation="softmax")(x), name="whole")
    model.compile(
        ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.0),
        "sparse_categorical_crossentropy",
        adversarial=ms.attacks.FGSM(epsilon=0.1),
    )
    return model


def _images(count=4):
    return np.random.default_rng(0).uniform(size=(count, 6, 6, 1)).astype("float32")


def _archive_text(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json").decode()


def test_export_computes_the_same_with_a_copy_of_the_weights():
    model = _secured()
    plain = ms.export_plain(model)
    np.testing.assert_array_equal(plain.predict(_images()), model.predict(_images()))
    plain.set_weights([weight * 0 for weight in plain.get_weights()])
    assert np.any(model.get_weights()[0])


def test_exported_file_names_nothing_of_this_package(tmp_path):
    model = _secured()
    model.fit(_images(), np.array([0, 1, 2, 0]), verbose=0)
    ms.export_plain(model).save(tmp_path / "plain.keras")
    text = _archive_text(tmp_path / "plain.keras")
    assert "keras_modelsec" not in text
    assert json.loads(text)["class_name"] == "Functional"
    assert '"L2"' in text


def test_watermark_stays_in_the_weights_and_leaves_the_config(tmp_path):
    inputs = keras.Input((40,))
    hidden = layers.Dense(60, activation="relu")(inputs)
    model = ms.SecureModel(inputs, layers.Dense(3)(hidden))
    key = ms.watermark.generate_key()
    ms.attach_watermark(model, key)
    plain = ms.export_plain(model)
    plain.save(tmp_path / "plain.keras")
    assert "keras_modelsec" not in _archive_text(tmp_path / "plain.keras")
    assert ms.verify_watermark(plain, key).log10_p < -3


@pytest.mark.slow
def test_exported_file_loads_where_this_package_is_not_installed(tmp_path):
    ms.export_plain(_secured()).save(tmp_path / "plain.keras")
    code = (
        "import sys; sys.modules['keras_modelsec'] = None; import keras; "
        f"print(keras.models.load_model({str(tmp_path / 'plain.keras')!r}).count_params())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == _secured().count_params()


def test_sequential_stays_sequential():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    plain = ms.export_plain(model)
    assert type(plain) is keras.Sequential
    np.testing.assert_array_equal(plain.get_weights()[0], model.get_weights()[0])


class _Net(ms.AdversarialMixin, ms.DPMixin, keras.Model):
    def __init__(self, own_weight=False):
        super().__init__()
        self.hidden = layers.Dense(5, activation="relu")
        self.head = layers.Dense(2)
        self.scale = self.add_weight(shape=(), initializer="ones") if own_weight else None

    def call(self, x):
        outputs = self.head(self.hidden(x["a"]) + x["b"])
        return outputs if self.scale is None else outputs * self.scale


def test_subclassed_model_becomes_functional():
    x = {"a": np.ones((2, 3), "float32"), "b": np.ones((2, 5), "float32")}
    model = _Net()
    model(x)
    plain = ms.export_plain(model)
    np.testing.assert_allclose(plain(x), model(x))
    assert not isinstance(plain, ms.DPMixin)


def test_subclassed_model_with_weights_of_its_own_is_refused():
    model = _Net(own_weight=True)
    model({"a": np.ones((2, 3)), "b": np.ones((2, 5))})
    with pytest.raises(ValueError, match=r"model\.export"):
        ms.export_plain(model)


def test_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="must be built"):
        ms.export_plain(_Net())


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"keras\.Model"):
        ms.export_plain("model.keras")
