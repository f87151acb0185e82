from pathlib import Path

import keras
import numpy as np
import pytest

from keras_modelsec.defenses import AdversarialTraining
from keras_modelsec.robustness import AdversarialMixin
from keras_modelsec.robustness.attacks import FGSM, PGD

X = np.random.default_rng(0).random((24, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 24)
LOSS = "sparse_categorical_crossentropy"


@keras.saving.register_keras_serializable("test_adversarial_mixin")
class Net(AdversarialMixin, keras.Model):
    pass


@keras.saving.register_keras_serializable("test_adversarial_mixin")
class Own(AdversarialMixin, keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.dense(x)


def functional():
    inputs = keras.Input((6,))
    return Net(inputs, keras.layers.Dense(3, activation="softmax")(inputs))


@pytest.mark.parametrize(("make", "precision"), [(functional, "mixed_float16"), (Own, "float32")])
def test_argument_and_optimizer_survive_saving(make, precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    training = AdversarialTraining(
        PGD(0.1, norm="l2", steps=2, bounds=(-1, 1)), clean_ratio=0.25, warmup_steps=3
    )
    model = make()
    model.compile("adam", LOSS, metrics=["accuracy"], adversarial=training)
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.adversarial.get_config() == training.get_config()
    assert int(loaded.optimizer.iterations.numpy()) == 3
    left, right = loaded.optimizer.variables, model.optimizer.variables
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    loaded.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="saved with Keras 3.15, whose layers no earlier Keras reads",
)
def test_file_of_the_first_version_still_loads_and_trains():
    golden = Path(__file__).parents[1] / "golden" / "robustness" / "adversarial_training_v1.keras"
    loaded = keras.saving.load_model(golden)
    attack = PGD(0.1, norm="l2", steps=2, bounds=(-1, 1), seed=3)
    expected = AdversarialTraining(attack, clean_ratio=0.25, warmup_steps=1)
    assert loaded.adversarial.get_config() == expected.get_config()
    loaded.fit(X[:, :3], Y % 2, verbose=0)


def test_file_of_a_model_without_it_says_nothing_about_it(tmp_path):
    model = functional()
    model.compile("adam", LOSS)
    model.fit(X, Y, verbose=0)
    assert "adversarial" not in model.get_compile_config()
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").adversarial is None


def test_uncompiled_model_has_no_compile_config():
    assert functional().get_compile_config() == {}


def test_compiling_again_without_it_ends_adversarial_training():
    model = functional()
    model.compile("adam", LOSS, adversarial=FGSM(0.1))
    assert isinstance(model.adversarial, AdversarialTraining)
    model.compile("adam", LOSS)
    assert model.adversarial is None


def test_weights_and_their_file_are_those_of_a_plain_model(tmp_path):
    model = functional()
    model.compile("adam", LOSS, adversarial=AdversarialTraining(PGD(0.1, steps=2)))
    model.fit(X, Y, verbose=0)
    inputs = keras.Input((6,))
    plain = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    assert len(model.weights) == len(plain.weights)
    assert len(model.variables) == len(plain.variables)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")
    for left, right in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_positional_arguments_of_compile_still_work():
    model = functional()
    model.compile("adam", LOSS, None, ["accuracy"], adversarial=FGSM(0.1))
    model.fit(X, Y, verbose=0)
    assert "accuracy" in model.history.history


def test_refused_argument_leaves_the_model_as_it_was():
    model = functional()
    model.compile("adam", LOSS, adversarial=FGSM(0.1))
    before = model.optimizer
    with pytest.raises(TypeError):
        model.compile("sgd", LOSS, adversarial="fgsm")
    assert model.optimizer is before
    assert model.adversarial.attack.name == "fgsm_linf"
