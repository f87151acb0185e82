"""The attack loop gives the same points however many of its turns are in one loop body."""

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._core import backend


@pytest.fixture
def digits_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu")]
        + [keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    generator = np.random.default_rng(0)
    return model, generator.random((9, 8, 8, 1), "float32"), generator.integers(0, 10, 9)


@pytest.mark.parametrize("steps", [11, 12, 15])
@pytest.mark.parametrize("settings", [{"norm": "linf"}, {"norm": "l2"}, {"restarts": 3}])
def test_two_turns_a_body_give_what_one_turn_gives(digits_model, steps, settings, monkeypatch):
    def attack():
        return ms.attacks.PGD(0.1, steps=steps, seed=3, **settings)(*digits_model)

    two = attack()
    repeat = backend.repeat
    monkeypatch.setattr(backend, "repeat", lambda *a, turns_a_body=1: repeat(*a))
    one = attack()
    np.testing.assert_array_equal(two, one)
    assert not np.array_equal(two, digits_model[1])


@pytest.mark.parametrize("steps", [20, 21])
def test_a_long_attack_is_not_compiled_again_for_another_batch(digits_model, steps):
    model, x, y = digits_model
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs

    counted = keras.Sequential([keras.Input((8, 8, 1)), Counted(), model])
    attack = ms.attacks.PGD(0.1, steps=steps, seed=3)
    attack(counted, x, y, batch_size=4)
    first = len(traces)
    attack(counted, x, y, batch_size=3)
    attack(counted, x[:2], y[:2])
    assert len(traces) == first
