"""The derivation is a file format: a mark made today is read with every later release."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_modelsec.watermark import derivation
from keras_modelsec.watermark.keys import SecretKey

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "watermark" / "derivation_v1.json").read_text()
)


def _packed(signs):
    return np.packbits(signs < 0).tobytes().hex()


def test_scheme_is_the_golden_one():
    assert GOLDEN["scheme"] == derivation.SCHEME
    assert GOLDEN["bits"] == derivation.BITS


def test_message_and_key_id_are_the_golden_ones():
    secret = SecretKey(GOLDEN["key"])
    assert derivation.key_id(secret) == GOLDEN["key_id"]
    assert _packed(derivation.message(secret)) == GOLDEN["message"]


@pytest.mark.parametrize("chips", GOLDEN["chips"], ids=lambda c: f"{c['shape']}-{c['index']}")
def test_chips_are_the_golden_ones(chips):
    secret = SecretKey(GOLDEN["key"])
    assert _packed(derivation.chips(secret, chips["shape"], chips["index"])) == chips["packed"]


def test_signs_are_chip_times_message_bit(key):
    secret = SecretKey(key)
    signs = derivation.signs(secret, (20, 30), 0)
    chips = derivation.chips(secret, (20, 30), 0)
    message = derivation.message(secret)
    assert signs.dtype == np.int8
    assert all(signs[i] == chips[i] * message[i % 127] for i in range(600))


def test_key_shape_and_index_each_change_the_chips(key, other_key):
    chips = [
        derivation.chips(SecretKey(k), shape, index)
        for k, shape, index in [
            (key, (64, 100), 0),
            (other_key, (64, 100), 0),
            (key, (64, 100), 1),
            (key, (100, 64), 0),
            (key, (10, 64, 10), 0),
        ]
    ]
    correlations = np.corrcoef(np.stack(chips))
    off_diagonal = correlations[~np.eye(len(chips), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(6400)


def test_chips_are_fair(key):
    chips = derivation.chips(SecretKey(key), (1000, 100), 0)
    assert set(np.unique(chips)) == {-1, 1}
    assert abs(chips.sum()) < 4 * np.sqrt(chips.size)
