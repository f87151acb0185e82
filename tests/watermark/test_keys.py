import copy
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keras_modelsec.errors import WatermarkError, WatermarkKeyError
from keras_modelsec.watermark import generate_key
from keras_modelsec.watermark.keys import SecretKey


def test_generated_keys_are_accepted_and_differ():
    keys = [generate_key() for _ in range(100)]
    assert len(set(keys)) == 100
    assert all(len(key) == 32 for key in keys)
    for key in keys:
        SecretKey(key)


def test_bytes_and_hexadecimal_are_the_same_key(key):
    assert SecretKey(key).derive("x") == SecretKey(key.hex()).derive("x")
    assert SecretKey(bytearray(key)).derive("x") == SecretKey(key.hex().upper()).derive("x")


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (None, "is needed"),
        (12345678901234567890, "bytes or a hexadecimal string"),
        (np.arange(32), "bytes or a hexadecimal string"),
        ("my secret passphrase, long enough", "hexadecimal digits"),
        (b"\x9a\x01\x77", "at least 16 bytes"),
        ("9a0177", "at least 16 bytes"),
        (bytes(32), "must be random"),
        (b"\x81\x92" * 16, "must be random"),
        (bytes(range(100, 132)), "must be random"),
        (b"correct horse battery staple", "printable text"),
        (b"8d1f3e5a90b7c2446ea1d95b3c7f02e8", "printable text"),
    ],
)
def test_unusable_key_is_refused_with_rule_and_remedy_and_not_shown(key, rule):
    with pytest.raises(WatermarkKeyError, match=rule) as caught:
        SecretKey(key)
    message = str(caught.value)
    assert "generate_key()" in message
    assert isinstance(caught.value, WatermarkError)
    if isinstance(key, bytes):
        assert key.hex() not in message
        assert repr(key) not in message
    elif isinstance(key, str):
        assert key not in message


def test_random_keys_of_the_least_length_are_not_mistaken_for_weak_ones():
    generator = np.random.default_rng(0)
    for _ in range(2000):
        SecretKey(generator.bytes(16))


def test_secret_cannot_be_pickled_copied_or_printed(key):
    secret = SecretKey(key)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="must not be pickled"):
            leak(secret)
    assert key.hex() not in repr(secret) + str(secret)


def test_derivation_is_hkdf_with_an_empty_salt(key):
    extract = HMAC(bytes(32), hashes.SHA256())
    extract.update(key)
    expected = HKDFExpand(hashes.SHA256(), 48, b"purpose").derive(extract.finalize())
    assert SecretKey(key).derive("purpose", 48) == expected


def test_purposes_are_separated(key):
    secret = SecretKey(key)
    assert secret.derive("a") != secret.derive("b")
    assert secret.keystream("a", 64) != secret.keystream("b", 64)
