"""A key, data and small models for the watermark tests."""

import keras
import pytest
from sklearn.datasets import load_digits

KEY = bytes.fromhex("8d1f3e5a90b7c2446ea1d95b3c7f02e85512aa9e0c64f7d3b18826ef49d07b3c")
OTHER_KEY = bytes.fromhex("f07a5be1c94423d8860d1e6fb2935ca7704be82d15c9f63a9edd4108375fa2b6")


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def other_key():
    return OTHER_KEY


@pytest.fixture(scope="session")
def digits():
    data = load_digits()
    return (data.images / 16).astype("float32")[..., None], data.target.astype("int32")


@pytest.fixture
def build_cnn():
    """A model with three carriers, (3, 3, 16, 32), (512, 64) and (64, 10), and a small kernel."""

    def build(regularizer=None):
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.Conv2D(
                    32, 3, padding="same", activation="relu", kernel_regularizer=regularizer
                ),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(64, activation="relu", kernel_regularizer=regularizer),
                layers.Dense(10, kernel_regularizer=regularizer),
            ]
        )

    return build


@pytest.fixture
def build_mlp():
    """A model with the carriers (64, 32) once and (32, 32) twice."""

    def build(regularizer=None, compiled=True, **compile_arguments):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((64,)),
                layers.Dense(32, activation="relu", kernel_regularizer=regularizer),
                layers.Dense(32, activation="relu", kernel_regularizer=regularizer),
                layers.Dense(32, activation="relu", kernel_regularizer=regularizer),
                layers.Dense(10),
            ]
        )
        if compiled:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.Adam(3e-3), loss, **compile_arguments)
        return model

    return build
