"""The models and data on which tensorflow-privacy and this package are compared.

Where tensorflow-privacy is not installed (everywhere but in `make test-interop`), nothing here is
collected; `make test-interop` itself then fails, since it has no test to run.
"""

import importlib.util
import sys

import keras
import numpy as np
import pytest

# Its own top-level import fails on Keras 3; its submodules work when told to skip that.
sys.skip_tf_privacy_import = True

collect_ignore_glob = [] if importlib.util.find_spec("tensorflow_privacy") else ["test_*.py"]

CLASSES = 4


def _mlp():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((12,)), layers.Dense(16, activation="relu"), layers.Dense(CLASSES)]
    )


def _cnn():
    """The CNN of tensorflow-privacy's MNIST tutorial, for smaller images."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((20, 20, 1)),
            layers.Conv2D(16, 8, strides=2, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 1),
            layers.Conv2D(32, 4, strides=2, padding="valid", activation="relu"),
            layers.MaxPooling2D(2, 1),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )


class Case:
    """A model with a batch of data, and its per-example losses for tensorflow-privacy."""

    def __init__(self, model, examples=9):
        generator = np.random.default_rng(3)
        self.model = model
        # Examples of very different size, so that some gradients are clipped and some are not.
        scale = np.geomspace(0.05, 3, examples).reshape(-1, *[1] * len(model.input_shape[1:]))
        shape = (examples, *model.input_shape[1:])
        self.x = (scale * generator.normal(size=shape)).astype("float32")
        self.y = generator.integers(0, CLASSES, examples)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    @property
    def variables(self):
        return [v.value for v in self.model.trainable_variables]

    def losses(self, examples=slice(None)):
        """One loss for each example, not reduced."""
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
        return loss(self.y[examples], self.model(self.x[examples], training=True))


@pytest.fixture
def mlp():
    return Case(_mlp())


@pytest.fixture(params=[_mlp, _cnn], ids=["mlp", "cnn"])
def case(request):
    return Case(request.param())
