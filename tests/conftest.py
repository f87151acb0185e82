"""Shared set-up: the backend, two logical CPU devices (for distribution strategies), one seed."""

import copy
import gc
import hashlib
import os
import re
from types import SimpleNamespace

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cryptography
import keras
import pytest
import tensorflow as tf
from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec._signing.keys import SigningKey

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # `make test-interop` does without
    pass
else:
    # How long an example takes says how busy the machine is, and nothing about the code. With `CI`
    # set hypothesis does the same by itself, and draws the same examples in every run.
    settings.register_profile(
        "busy machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("busy machine")

# Only possible before TensorFlow touches its devices, hence here and not in a fixture.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_configure(config):
    """Lets two warnings pass; all else is an error. What is made is open to its owner's writing."""
    for tolerated in (
        "__array__ implementation doesn't accept:DeprecationWarning",  # TensorFlow 2.21, numpy 2
        "The database setting is not configured",  # hypothesis: in a checkout that is read-only
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{tolerated}")
    # With 002, usual where each user has a group of his own, folders would be refused elsewhere.
    os.umask(0o022)


def pytest_collection_finish(session):
    """Leaves what is imported by now out of each later collection: a tenth of the whole time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _skip_before_cryptography(version):
    if int(cryptography.__version__.split(".")[0]) < version:
        pytest.skip(f"needs cryptography >= {version}, here is {cryptography.__version__}")


def _skip_if_cryptography_is_too_old(error):
    """Skips where the package itself says that it needs a newer `cryptography` than this one.

    With the version that it asks for, or a later one, the same error is a failure.
    """
    needed = re.search(r"(?:needs?|Install) cryptography >= (\d+)", str(error))
    if needed:
        _skip_before_cryptography(int(needed[1]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """Skips by the mark, and where a fixture cannot be had."""
    for mark in item.iter_markers("needs_cryptography"):
        _skip_before_cryptography(*mark.args)
    try:
        return (yield)
    except ValueError as error:
        _skip_if_cryptography_is_too_old(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skips where the test cannot be had; an error on the command line needs the mark instead."""
    try:
        return (yield)
    except ValueError as error:
        _skip_if_cryptography_is_too_old(error)
        raise


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


@pytest.fixture(scope="session")
def key():
    """A key that signs models, stores and whatever else."""
    return SigningKey(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="session")
def other_key():
    """Another."""
    return SigningKey(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def public(key):
    """Who `key` is to those who only verify."""
    return key.verifying_key


def nodes(value, path=()):
    """Every path into a JSON value, containers included."""
    yield path
    if isinstance(value, (dict, list)):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(child, (*path, name))


def replaced(value, path, new):
    """A copy of a JSON value with another value at `path`."""
    if not path:
        return new
    result = copy.deepcopy(value)
    parent = result
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = new
    return result


def deleted(value, path):
    result = copy.deepcopy(value)
    parent = result
    for name in path[:-1]:
        parent = parent[name]
    del parent[path[-1]]
    return result


def at(value, path):
    for name in path:
        value = value[name]
    return value


def fix_root(statement):
    """Makes the subject's digest agree with the resources, as a forger with the key would."""
    digests = b"".join(bytes.fromhex(r["digest"]) for r in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()
    return statement


@pytest.fixture(scope="session")
def json_tools():
    return SimpleNamespace(
        nodes=nodes, replaced=replaced, deleted=deleted, at=at, fix_root=fix_root
    )
