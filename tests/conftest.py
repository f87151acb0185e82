"""Shared set-up: the backend, two logical CPU devices (for distribution strategies), one seed."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

# Only possible before TensorFlow touches its devices, hence here and not in a fixture.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_configure(config):
    """Lets TensorFlow 2.21 pass that is not quite ready for numpy 2; all else is an error."""
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    )


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Each test starts from the same seed, the default precision and no leftover names."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session(free_memory=False)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def mirrored_strategy():
    """Two replicas on two logical CPU devices.

    One for the whole session: a second one in a process numbers its collective operations from the
    start again, and TensorFlow then finds their shapes to differ from the first one's.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
