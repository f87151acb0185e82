"""A problem with a known answer: classes around prototypes, and the linear model for them."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def blobs():
    """Four classes of 8x8 images around prototypes; the linear model below gets all right."""
    generator = np.random.default_rng(0)
    prototypes = generator.uniform(0.2, 0.8, (4, 64)).astype("float32")
    y = generator.integers(0, 4, 96)
    x = prototypes[y] + generator.uniform(-0.15, 0.15, (96, 64)).astype("float32")
    kernel = prototypes.T
    bias = -0.5 * (prototypes**2).sum(axis=1)
    return SimpleNamespace(x=np.clip(x, 0, 1), y=y, kernel=kernel, bias=bias, classes=4)


@pytest.fixture
def linear_model(blobs):
    """Makes the nearest-prototype classifier, with logits multiplied by `scale`."""

    def make(activation=None, scale=1.0):
        inputs = keras.Input((64,))
        dense = keras.layers.Dense(4, activation=activation)
        model = keras.Model(inputs, dense(inputs))
        dense.set_weights([scale * blobs.kernel, scale * blobs.bias])
        return model

    return make


@pytest.fixture
def small_model():
    """A small untrained ReLU network for 6 features and 3 classes, with logits."""

    def make(activation=None, model_class=keras.Model):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(16, activation="relu")(inputs)
        return model_class(inputs, keras.layers.Dense(3, activation=activation)(hidden))

    return make


def accuracy(model, x, y):
    """Computed apart from the package."""
    return float((np.asarray(model(x)).argmax(-1) == y).mean())
