"""A model that is attacked or watched between two trainings trains on as if it had not been."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.robustness import AdversarialMixin, RobustnessMonitor
from keras_modelsec.robustness.attacks import PGD

X = np.random.default_rng(0).random((16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)


class Restless(keras.layers.Layer):
    """Keeps or draws something in every call, in inference mode too."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.3, seed=3)
        self.normalization = keras.layers.BatchNormalization()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        x = self.normalization(self.dropout(x, training=True), training=True)
        x = x + keras.random.normal(keras.ops.shape(x), stddev=0.1)  # from Keras's global seeds
        return x * (1.0 + 0.01 * self.calls) + tf.random.normal(tf.shape(x), stddev=0.01)


class Batches(keras.utils.PyDataset):
    """Shuffled by Keras with Python's own generator."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def weights_after_training(run_eagerly, between, callbacks=()):
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((4,)), Restless(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=run_eagerly)
    model.fit(X, Y, batch_size=8, verbose=0)
    between(model)
    model.fit(Batches(), epochs=2, shuffle=True, verbose=0, callbacks=list(callbacks))
    return model.get_weights()


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_training_is_the_same_with_and_without_an_attack_in_between(run_eagerly):
    reference = weights_after_training(run_eagerly, lambda model: None)

    def attack(model):
        PGD(0.1, steps=2)(model, X, Y)
        PGD(0.1, steps=1, seed=1, restarts=2)(model, X, Y)

    assert same(weights_after_training(run_eagerly, attack), reference)
    # The control: running the model by itself does change what comes after.
    assert not same(weights_after_training(run_eagerly, lambda model: model(X)), reference)


def test_training_is_the_same_with_and_without_a_monitor():
    monitor = RobustnessMonitor(X, Y, [PGD(0.1, steps=2)])
    watched = weights_after_training(False, lambda model: None, [monitor])
    assert same(watched, weights_after_training(False, lambda model: None))


def test_attack_and_adversarial_compile_draw_nothing_from_the_generators_of_others():
    class Net(AdversarialMixin, keras.Model):
        pass

    inputs = keras.Input((4,))
    model = Net(inputs, keras.layers.Dense(3)(inputs))
    before = random.getstate(), np.random.get_state()[1].tolist()
    PGD(0.1, steps=1)(model, X, Y)
    model.compile("sgd", "mse", adversarial=PGD(0.1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_attacks_without_a_seed_differ_on_one_model_and_follow_the_seed_of_the_program():
    def runs():
        keras.utils.set_random_seed(7)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        return [PGD(0.1, steps=1)(model, X, Y) for _ in range(2)]

    first, again = runs(), runs()
    assert not np.array_equal(*first)
    np.testing.assert_array_equal(first, again)
