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


@pytest.mark.parametrize("carrier", GOLDEN["carriers"], ids=lambda c: f"{c['shape']}-{c['index']}")
def test_chips_and_signs_are_the_golden_ones(carrier):
    secret, shape, index = SecretKey(GOLDEN["key"]), carrier["shape"], carrier["index"]
    assert _packed(derivation.chips(secret, shape, index)) == carrier["chips"]
    assert _packed(derivation.signs(secret, shape, index)) == carrier["signs"]
    assert derivation.run_length(shape) == carrier["run_length"]


@pytest.mark.parametrize("shape", [(20, 30), (40, 32), (600, 8)])
def test_signs_are_chip_times_the_message_bit_of_the_run(key, shape):
    secret, length = SecretKey(key), derivation.run_length(shape)
    signs = derivation.signs(secret, shape, 0)
    chips = derivation.chips(secret, shape, 0)
    message = derivation.message(secret)
    assert signs.dtype == np.int8
    assert all(signs[i] == chips[i] * message[i // length % 127] for i in range(signs.size))


@pytest.mark.parametrize(
    ("shape", "length"),
    [((784, 128), 128), ((256, 1024), 512), ((64, 10), 1), ((512, 100), 4), ((3, 3, 64, 96), 32)],
)
def test_run_is_a_power_of_two_within_a_row_and_leaves_512_runs(shape, length):
    assert derivation.run_length(shape) == length


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
