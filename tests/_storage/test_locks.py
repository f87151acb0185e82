"""Strangers who may read a model cannot keep its owner from saving and repairing it."""

import os
import threading

import pytest

from keras_modelsec._storage import locks
from keras_modelsec._storage.locks import lock_place, locked
from keras_modelsec.errors import CheckpointError, LockedError
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.integrity.signing.signed_saving import recover, save_signed
from keras_modelsec.trust import TrustStore

fcntl = pytest.importorskip("fcntl", reason="there are no locks here")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)


@pytest.fixture
def held():
    """Holds a lock on whatever can be read, as any reader can."""
    descriptors = []

    def hold(path):
        descriptors.append(os.open(path, os.O_RDONLY))
        fcntl.flock(descriptors[-1], fcntl.LOCK_EX)

    yield hold
    for descriptor in descriptors:
        os.close(descriptor)


def finishes(call):
    """Whether `call` ends; it may wait for nobody."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(600)
    return not thread.is_alive()


def test_a_readers_lock_on_the_folder_stops_no_saving(tmp_path, key, public, held):
    held(tmp_path)
    target = tmp_path / "model.bin"
    assert finishes(lambda: save_signed(lambda p: open(p, "w").close(), target, [key]))
    verify(target, public)
    assert finishes(lambda: recover(tmp_path))


def test_a_readers_lock_on_model_or_parity_stops_no_repair(tmp_path, key, public, held):
    pytest.importorskip("pyeclib", reason="parity needs the `repair` extra")
    target = tmp_path / "model.bin"
    target.write_bytes(bytes(range(256)) * 64)
    sign(target, key)
    parity = write_parity(target, key).parity
    for place in (target, parity, tmp_path):
        held(place)
    with open(target, "r+b") as file:
        file.write(b"damage")
    assert finishes(lambda: repair(target, public))
    verify(target, public)


def test_a_readers_lock_on_a_trust_store_stops_no_change(tmp_path, key, held):
    place = tmp_path / "trust.json"
    store = TrustStore()
    store.save(place, key)
    for name in (place, tmp_path):
        held(name)
    assert finishes(lambda: store.save(place, key))
    assert TrustStore.load(place, key.verifying_key).version == 2


def test_who_waits_too_long_gets_a_named_error(tmp_path, key):
    again = locked(tmp_path)
    with locked(tmp_path), pytest.raises(LockedError, match="held by another process"), again:
        pass
    with locked(tmp_path), pytest.raises(CheckpointError, match="held by another process"):
        recover(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_is_inside_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 600)
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert most == [1] * 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["open to others", "link", "fifo", "folder"])
def test_a_strangers_file_in_the_locks_place_is_refused_at_once(tmp_path, kind):
    place = lock_place(tmp_path)
    if kind == "open to others":
        place.write_bytes(b"")
        place.chmod(0o666)
    elif kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(LockedError, match="which is"), locked(tmp_path):
        pass
    assert os.path.lexists(place)
    assert not (tmp_path / "elsewhere").exists()


def test_another_file_of_ours_linked_to_the_locks_name_is_no_lock(tmp_path):
    """Who may link it there knows a process that holds it, perhaps for days."""
    other = tmp_path / "other"
    other.touch(0o600)
    other.chmod(0o600)
    place = lock_place(tmp_path)
    os.link(other, place)
    with pytest.raises(LockedError, match="another name too"), locked(tmp_path):
        pass
    assert other.exists()


def test_where_no_lock_can_be_made_work_goes_on(tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError

    monkeypatch.setattr(locks.os, "open", deny)
    with locked(tmp_path):
        pass
