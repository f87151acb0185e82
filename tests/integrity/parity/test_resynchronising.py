"""Blocks are found wherever they lie, in any data, in bounded time."""

import hashlib
import itertools
import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.integrity.parity.resynchronising import SignedBlocks, bytes_to_search, locate

SIZE = 4096


def signed(data):
    blocks = [data[i : i + SIZE].ljust(SIZE, b"\0") for i in range(0, len(data), SIZE)]
    return SignedBlocks(
        SIZE,
        [hashlib.sha256(block).digest() for block in blocks],
        np.array([int.from_bytes(block[:8], "little") for block in blocks], np.uint64),
        np.array([zlib.adler32(block) for block in blocks], np.uint32),
    )


class CountingStream(ByteStream):
    bytes_read = 0

    def read(self, offset, length):
        self.bytes_read += length
        return super().read(offset, length)


@pytest.fixture
def find(tmp_path):
    """The numbers of the blocks of `good` that are found in `found`; each is checked."""

    def run(good, found):
        path = tmp_path / "found"
        path.write_bytes(found)
        blocks = signed(good)
        with ByteStream([(path, len(found))]) as stream:
            places = locate(stream, blocks)
            for digest, place in places.items():
                assert hashlib.sha256(stream.read(place, SIZE)).digest() == digest
        return {i for i, digest in enumerate(blocks.digests) if digest in places}

    return run


def weights(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype("float32").tobytes()


DATA = {
    "random": random.Random(0).randbytes(100 * SIZE),
    "weights": weights(100 * SIZE // 4),
    "ternary": np.random.default_rng(0).integers(-1, 2, 25 * SIZE).astype("float32").tobytes(),
    "text": b"".join(b'{"layer_%d": %d},' % (i % 7, i) for i in range(20000)),
    "zeros first": b"".join(bytes(SIZE - 100) + random.Random(i).randbytes(100) for i in range(60)),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("at", [0, 1, SIZE - 1, SIZE, 20 * SIZE + 77])
def test_one_inserted_or_removed_byte_costs_one_block(find, kind, at):
    good = DATA[kind]
    every = set(range(-(-len(good) // SIZE)))
    tail = {max(every)} if len(good) % SIZE else set()
    assert every - find(good, good[:at] + b"\xa5" + good[at:]) <= {at // SIZE} | tail
    assert every - find(good, good[:at] + good[at + 1 :]) <= {at // SIZE} | tail


@pytest.mark.parametrize("kind", DATA)
def test_ranges_in_another_order_are_found(find, kind):
    good = DATA[kind]
    cuts = [0, 7 * SIZE + 5, 20 * SIZE + 500, 41 * SIZE, len(good)]
    a, b, c, d = (good[i:j] for i, j in itertools.pairwise(cuts))
    lost = set(range(-(-len(good) // SIZE))) - find(good, c + b"between" + b + d + a)
    assert lost <= {7, 20, 41, len(good) // SIZE}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20 * SIZE), st.integers(0, 9000), st.booleans())))
def test_blocks_that_no_edit_touched_are_found(tmp_path_factory, edits):
    good, touched = DATA["random"], set()
    found = good
    for region, (start, length, insert) in reversed(list(enumerate(edits[:4]))):
        at = region * 25 * SIZE + start
        if insert:
            touched.add(at // SIZE)
            found = found[:at] + random.Random(at).randbytes(length) + found[at:]
        else:
            touched |= set(range(at // SIZE, (at + length) // SIZE + 1))
            found = found[:at] + found[at + length :]
    path = tmp_path_factory.mktemp("found") / "found"
    path.write_bytes(found)
    blocks = signed(good)
    with ByteStream([(path, len(found))]) as stream:
        places = locate(stream, blocks)
    assert {i for i, digest in enumerate(blocks.digests) if digest not in places} <= touched


def test_nothing_is_found_in_other_data(find):
    assert find(DATA["random"], random.Random(1).randbytes(300_000)) == set()
    assert find(DATA["ternary"], weights(100_000)) == set()


def test_repeated_blocks_are_all_found_from_one(find):
    good = bytes(20 * SIZE) + DATA["random"][: 3 * SIZE] + bytes(20 * SIZE)
    assert find(good, b"x" + good) == set(range(43))


def test_data_whose_checksum_agrees_everywhere_costs_bounded_time(tmp_path):
    """The same head and Adler-32 at each position, never the digest: four bytes were moved."""
    block = bytearray(b"\x55" * SIZE)
    for place, change in ((100, 1), (200, -1), (300, -1), (400, 1)):
        block[place] += change
    hostile = b"\x55" * (8 << 20)
    assert zlib.adler32(block) == zlib.adler32(hostile[:SIZE])
    path = tmp_path / "found"
    path.write_bytes(hostile)
    with CountingStream([(path, len(hostile))]) as stream:
        assert locate(stream, signed(bytes(block))) == {}
        assert stream.bytes_read < 8 * len(hostile) + (128 << 20)


LENGTHS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1 << 40), max_size=6)


@given(found=LENGTHS, signed=LENGTHS)
def test_what_is_searched_is_bounded_by_what_is_signed(found, signed):
    searched = bytes_to_search(found, signed)
    assert list(searched) == list(found)
    assert all(0 <= searched[name] <= found[name] for name in found)
    assert sum(searched.values()) <= 3 * sum(signed.values()) + (64 << 20)
    for name in found.keys() & signed.keys():
        assert searched[name] >= min(found[name], 2 * signed[name])
    lone = {name: size for name, size in signed.items() if size}
    moved = {f"{name}.bak": size for name, size in lone.items()}
    assert bytes_to_search(moved, lone) == moved
