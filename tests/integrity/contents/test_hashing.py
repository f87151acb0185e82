"""Leaves cover a file without gap or overlap, and every way of hashing gives the same digests."""

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents import hashing
from keras_modelsec.integrity.contents.hashing import (
    LEAF_BYTES,
    SEGMENT_BYTES,
    hash_leaves,
    hash_whole_and_leaves,
    leaf_cuts,
    leaf_digests,
    tree_digest,
)

SIZES = [0, 1, SEGMENT_BYTES, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 5 * LEAF_BYTES + 17]


def content(size):
    return hashlib.shake_128(b"content").digest(size)


@st.composite
def layouts(draw):
    size = draw(st.integers(0, 6 * LEAF_BYTES))
    ranges = draw(
        st.lists(
            st.tuples(st.integers(0, size), st.integers(0, 3 * LEAF_BYTES)).map(
                lambda pair: (pair[0], min(pair[1], size - pair[0]))
            ),
            max_size=6,
        )
    )
    return size, ranges


@given(layout=layouts())
def test_cuts_follow_one_another_and_begin_where_tensors_do(layout):
    size, ranges = layout
    cuts = leaf_cuts(size, ranges)
    assert sum(length for _, length in cuts) == size
    end = 0
    for offset, length in cuts:
        assert offset == end
        assert 0 < length <= LEAF_BYTES
        end = offset + length
    starts = {offset for offset, _ in cuts} | {size}
    for offset, length in ranges:
        if length >= SEGMENT_BYTES:
            assert {offset, offset + length} <= starts


def test_file_without_tensors_is_cut_every_256_kib():
    assert leaf_cuts(2 * LEAF_BYTES + 1) == [
        (0, LEAF_BYTES),
        (LEAF_BYTES, LEAF_BYTES),
        (2 * LEAF_BYTES, 1),
    ]


@pytest.mark.parametrize("outside", [(-1, 2), (5, 6), (11, 0), (2, -1)])
def test_tensor_outside_of_its_file_is_refused(outside):
    with pytest.raises(SignatureError, match="inside its file"):
        leaf_cuts(10, [outside])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tensors", [[], [(7, 3 * SEGMENT_BYTES)]])
def test_all_ways_of_hashing_agree_with_hashlib(tmp_path, size, tensors):
    data = content(size)
    tensors = [pair for pair in tensors if sum(pair) <= size]
    path = tmp_path / "file"
    path.write_bytes(data)
    cuts = leaf_cuts(size, tensors)
    expected = [hashlib.sha256(data[o : o + n]).digest() for o, n in cuts]
    with files.open_regular(path) as file:
        assert hash_leaves(file, cuts) == expected
        assert hash_whole_and_leaves(file, cuts) == (hashlib.sha256(data).hexdigest(), expected)
    if not tensors:
        assert leaf_digests(data) == expected


def test_copy_is_what_was_hashed(tmp_path):
    data = content(9 * LEAF_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    with files.open_regular(tmp_path / "file") as file, open(tmp_path / "copy", "wb") as copy:
        hash_leaves(file, leaf_cuts(len(data)), copy_to=copy)
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("function", [hash_leaves, hash_whole_and_leaves])
def test_progress_grows_to_the_end_and_a_shortened_file_is_refused(tmp_path, function):
    data = content(9 * LEAF_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    seen = []
    with files.open_regular(tmp_path / "file") as file:
        function(file, leaf_cuts(len(data)), progress=lambda *pair: seen.append(pair))
        assert seen == sorted(seen)
        assert {total for _, total in seen} == {len(data)}
        with pytest.raises(SignatureError, match="became shorter"):
            function(file, leaf_cuts(len(data) + 1))


def test_reading_without_preadv_gives_the_same(tmp_path, monkeypatch):
    data = content(6 * LEAF_BYTES)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.delattr(hashing.os, "preadv")
    monkeypatch.delattr(hashing.os, "pwrite")
    with files.open_regular(tmp_path / "file") as file, open(tmp_path / "copy", "wb") as copy:
        assert hash_leaves(file, leaf_cuts(len(data)), copy_to=copy) == leaf_digests(data)
    assert (tmp_path / "copy").read_bytes() == data


@settings(max_examples=30)
@given(size=st.integers(0, 3 * LEAF_BYTES), at=st.floats(0, 1, exclude_max=True))
def test_tree_digest_changes_with_every_byte(size, at):
    data = bytearray(content(size))
    before = tree_digest(leaf_digests(data))
    if size:
        data[int(at * size)] ^= 1
        assert tree_digest(leaf_digests(data)) != before


def test_hashing_on_another_thread_is_finished_while_the_interpreter_exits(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"x" * (3 << 20))
    program = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from keras_modelsec.integrity.contents.hashing import (
    hash_leaves, hash_whole_and_leaves, leaf_cuts
)

def work():
    time.sleep(0.5)
    with open(sys.argv[1], "rb", buffering=0) as file:
        cuts = leaf_cuts(3 << 20)
        whole, leaves = hash_whole_and_leaves(file, cuts)
        print(leaves == hash_leaves(file, cuts), flush=True)

ThreadPoolExecutor(1).submit(work)
"""
    command = [sys.executable, "-c", program, str(path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"
