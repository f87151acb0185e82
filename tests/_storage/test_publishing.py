"""A published file is there whole or not at all, whoever else writes and whenever it fails."""

import os
import stat
import threading

import pytest

from keras_modelsec._storage.publishing import published, write_atomically
from keras_modelsec._storage.staging import PREFIX, StagingFolder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_seen_before_all_is_written_and_nothing_else_after(tmp_path):
    target = tmp_path / "m.json"
    with published(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        file.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert names(tmp_path) == ["m.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_writer_that_fails_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "m.json"
    target.write_bytes(b"old")

    def fail():
        with published(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["m.json"]


def test_permissions_are_those_asked_for_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "public", b"x", mode=0o644)
        with published(tmp_path / "usual"):
            pass
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"public": 0o644, "usual": 0o600}


def test_secret_is_never_readable_by_others(tmp_path):
    seen = []
    with published(tmp_path / "owner.pem", mode=0o600) as file:
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    seen.append(stat.S_IMODE((tmp_path / "owner.pem").stat().st_mode))
    assert seen == [0o600, 0o600]


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_of_a_new_file_one_succeeds(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    target, done, refused = tmp_path / "owner.pem", [], []

    def write(number):
        try:
            write_atomically(target, b"%d" % number, overwrite=False)
            done.append(b"%d" % number)
        except FileExistsError:
            refused.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert len(refused) == 5
    assert target.read_bytes() == done[0]
    assert names(tmp_path) == ["owner.pem"]


@pytest.mark.skipif(os.name != "posix", reason="left folders are told apart by locks")
def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    left = StagingFolder.make(tmp_path, PREFIX)
    (left.path / "m.json").write_bytes(b"half")
    left.close()
    write_atomically(tmp_path / "m.json", b"whole")
    assert names(tmp_path) == ["m.json"]
