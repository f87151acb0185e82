"""When a file is taken to be unchanged: never after any write, whatever its times say."""

import mmap
import os
import shutil
import time

import pytest

from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.files import open_regular
from keras_modelsec.integrity.signatures import fingerprints
from keras_modelsec.integrity.signatures.describing import hashing
from keras_modelsec.integrity.signatures.fingerprints import fingerprint


def mark(path):
    with open_regular(path) as file:
        return fingerprint(file)


@pytest.fixture
def settled(tmp_path):
    """A file whose last change is old enough to be told from the next."""
    path = tmp_path / "shard"
    path.write_bytes(b"weights" * 10_000)
    time.sleep(0.12)
    if mark(path) is None:
        pytest.skip("the temporary folder's file system is not one that fingerprints trust")
    return path


def test_fingerprint_stays_while_nothing_changes(settled):
    before = mark(settled)
    settled.read_bytes()
    assert mark(settled) == before


def write(path):
    path.write_bytes(b"Weights" * 10_000)


def write_in_place(path):
    with open(path, "r+b") as file:
        file.write(b"W")


def write_through_a_mapping(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0:1] = b"W"


def replace(path):
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


@pytest.mark.parametrize("change", [write, write_in_place, write_through_a_mapping, replace])
def test_change_with_forged_times_changes_the_fingerprint(settled, change):
    before, times = mark(settled), settled.stat()
    change(settled)
    os.utime(settled, ns=(times.st_atime_ns, times.st_mtime_ns))
    time.sleep(0.12)
    assert settled.stat().st_mtime_ns == times.st_mtime_ns
    assert settled.stat().st_size == times.st_size
    assert mark(settled) not in (None, before)


def test_write_through_a_mapping_that_was_open_and_dirty_when_it_was_signed(settled):
    with open(settled, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0:1] = b"1"  # the page is dirty: without the fsync a further write goes unnoticed
        time.sleep(0.12)
        before = mark(settled)
        mapping[0:1] = b"2"
        time.sleep(0.12)
        assert before is None or mark(settled) != before


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_file_that_others_may_write_to_has_none(settled, mode):
    settled.chmod(mode)
    time.sleep(0.12)
    assert mark(settled) is None
    settled.chmod(0o644)
    time.sleep(0.12)
    assert mark(settled) is not None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_file_of_another_user_has_none(settled):
    os.chown(settled, 12345, -1)
    time.sleep(0.12)
    assert mark(settled) is None


def test_file_that_somebody_has_open_for_writing_has_none(settled):
    # Who has may exchange its blocks with another file's by EXT4_IOC_MOVE_EXT: ctime stays.
    with open(settled, "r+b") as file:
        assert mark(settled) is None
        mapping = mmap.mmap(file.fileno(), 0)
    assert mark(settled) is None  # through the mapping, too
    mapping.close()
    assert mark(settled) is not None


def test_file_changed_a_moment_ago_has_none(tmp_path):
    path = tmp_path / "fresh"
    path.write_bytes(b"x")
    assert mark(path) is None


def test_unknown_file_system_has_none(settled, monkeypatch):
    monkeypatch.setattr(fingerprints, "_MOUNTS", os.devnull)
    assert mark(settled) is None
    monkeypatch.setattr(fingerprints, "_MOUNTS", str(settled.with_name("gone")))
    assert mark(settled) is None


@pytest.fixture
def shards(tmp_path, key, settled):
    folder = tmp_path / "model"
    folder.mkdir()
    for number in range(4):
        (folder / f"shard-{number}").write_bytes(bytes([number]) * 100_000)
    time.sleep(0.12)
    sign(folder, key)
    return folder


@pytest.fixture
def hashed(monkeypatch):
    """The number of files hashed so far."""
    counted = []
    original = hashing.hash_whole_and_leaves

    def counting(*args, **kwargs):
        counted.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(hashing, "hash_whole_and_leaves", counting)
    return counted


def test_only_changed_files_are_hashed_when_signed_again(shards, key, public, hashed):
    write_in_place(shards / "shard-2")
    sign(shards, key, reuse_unchanged=True)
    assert len(hashed) == 1
    verify(shards, public)


def test_everything_is_hashed_by_default_and_under_another_key(shards, key, other_key, hashed):
    sign(shards, key)
    assert len(hashed) == 4
    sign(shards, other_key, reuse_unchanged=True)  # an earlier statement by somebody else
    assert len(hashed) == 8


def test_forged_mtime_does_not_hide_a_change(shards, key, public, hashed):
    victim = shards / "shard-1"
    times = victim.stat()
    write_in_place(victim)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    sign(shards, key, reuse_unchanged=True)
    assert len(hashed) == 1
    verify(shards, public)


def test_edited_fingerprint_is_not_believed(shards, key, hashed, forger):
    """Who edits the statement on disk breaks its signature: all is hashed."""
    place = shards.with_name("model.modelsec.json")
    said = forger.own_statement(place)
    said["predicate"]["files"][0]["fingerprint"] = "0" * 64
    import base64
    import json

    envelope = json.loads(place.read_bytes())
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    place.write_text(json.dumps(envelope))
    sign(shards, key, reuse_unchanged=True)
    assert len(hashed) == 4


def test_swapped_shards_are_hashed(shards, key, public, hashed):
    a, b = shards / "shard-0", shards / "shard-1"
    a.rename(shards / "x")
    b.rename(a)
    (shards / "x").rename(b)
    sign(shards, key, reuse_unchanged=True)
    assert len(hashed) == 2
    verify(shards, public)
