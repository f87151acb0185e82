"""In a folder as /tmp is, where another user may have taken our names before we came to write."""

import os

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._storage import files
from keras_modelsec._storage.locks import lock_place, locked
from keras_modelsec.encryption import Passphrase, encrypt_file
from keras_modelsec.errors import CheckpointError, LockedError, UnsafePathError
from keras_modelsec.integrity import SignOnSave, sign, verify, write_parity
from keras_modelsec.integrity.signing.signed_saving import recover, save_signed
from keras_modelsec.trust import TrustStore

STRANGER = 12345
pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user: run as root"
)
BYTES = b"what the stranger wrote" * 400


@pytest.fixture
def shared(tmp_path):
    """Root's, everybody's to write, with the sticky bit."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def plant(shared):
    """Puts another user's file there."""

    def put(name, data=BYTES):
        path = shared / name
        path.write_bytes(data)
        path.chmod(0o666)
        os.chown(path, STRANGER, STRANGER)
        return path

    return put


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def trained(shared, callback):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0, callbacks=[callback])


@pytest.mark.parametrize("ending", ["", ".sig", ".modelsec.json"])
def test_sign_on_save_ends_where_a_stranger_has_the_targets_name(shared, plant, key, ending):
    plant(f"m.keras{ending}")
    before = contents(shared)
    with pytest.raises(CheckpointError, match=f"user {STRANGER} put there"):
        trained(shared, SignOnSave(shared / "m.keras", key, name="m", version=1))
    assert contents(shared) == before


def test_a_strangers_folder_in_the_targets_place_is_not_kept(shared, key):
    target = shared / "m"
    target.mkdir()
    (target / "evil").write_bytes(BYTES)
    os.chown(target, STRANGER, STRANGER)
    with pytest.raises(CheckpointError, match=f"user {STRANGER} put there"):
        save_signed(os.mkdir, target, [key])
    with pytest.raises(UnsafePathError, match=f"user {STRANGER} put there"):
        sign(target, key)
    assert [path.name for path in shared.iterdir()] == ["m"]


def test_sign_signs_no_strangers_bytes(shared, plant, key):
    model = plant("m.bin")
    with pytest.raises(UnsafePathError, match=f"user {STRANGER} put there"):
        sign(model, key)
    assert contents(shared) == {"m.bin": BYTES}


@pytest.mark.parametrize("ending", [".sig", ".modelsec.json"])
def test_sign_replaces_no_strangers_file_and_writes_nothing_beside_it(shared, plant, key, ending):
    model = shared / "m.bin"
    model.write_bytes(b"ours")
    plant(f"m.bin{ending}")
    before = contents(shared)
    with pytest.raises(PermissionError, match=f"user {STRANGER} put there"):
        sign(model, key, version=1)
    assert contents(shared) == before


def test_what_is_ours_is_signed_there_as_anywhere(shared, key, public):
    model = shared / "m.bin"
    model.write_bytes(b"ours")
    for _ in range(2):
        sign(model, key)
    save_signed(lambda path: open(path, "wb").close(), model, [key])
    verify(model, public)


def test_protect_takes_no_strangers_model_and_replaces_no_strangers_parity(shared, plant, key):
    pytest.importorskip("pyeclib", reason="parity needs the `repair` extra")
    with pytest.raises(UnsafePathError, match=f"user {STRANGER} put there"):
        write_parity(plant("theirs.bin"), key)
    (shared / "ours.bin").write_bytes(b"ours" * 1000)
    plant("ours.bin.parity")
    before = contents(shared)
    with pytest.raises(PermissionError, match=f"user {STRANGER} put there"):
        write_parity(shared / "ours.bin", key)
    assert contents(shared) == before


def test_encryption_takes_no_strangers_file_and_replaces_none(shared, plant):
    secret = Passphrase("word")
    with pytest.raises(UnsafePathError, match=f"user {STRANGER} put there"):
        encrypt_file(plant("theirs"), secret)
    (shared / "ours").write_bytes(b"ours")
    plant("ours.enc")
    plant("m.keras.enc")
    before = contents(shared)
    with pytest.raises(PermissionError, match=f"user {STRANGER} put there"):
        encrypt_file(shared / "ours", secret, overwrite=True)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(PermissionError, match=f"user {STRANGER} put there"):
        ms.save_encrypted(model, shared / "m.keras.enc", secret)
    assert contents(shared) == before


def test_a_strangers_counter_and_trust_store_are_not_written_over(shared, plant, key):
    model = shared / "m.bin"
    model.write_bytes(b"ours")
    with pytest.raises(UnsafePathError, match=f"user {STRANGER} put there"):
        sign(model, key, version=plant("versions.json", b"{}"))
    place = plant("trust.json")
    with pytest.raises(PermissionError, match=f"user {STRANGER} put there"):
        TrustStore().save(place, key)


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_strangers_lock_is_named_with_its_owner_and_not_waited_for(shared, key, mode):
    target = shared / "m.bin"
    for what in ("", "m.bin.parity"):
        place = lock_place(shared, what)
        place.write_bytes(b"")
        place.chmod(mode)
        os.chown(place, STRANGER, STRANGER)
        with pytest.raises(LockedError, match=rf"lock-.*user {STRANGER}'s"), locked(shared, what):
            pass
        assert place.stat().st_uid == STRANGER
    with pytest.raises(CheckpointError, match=rf"lock-.*user {STRANGER}'s"):
        save_signed(lambda path: open(path, "wb").close(), target, [key])
    assert not target.exists()


def test_what_a_killed_save_left_is_not_compared_with_a_strangers_model(shared, plant, key):
    target = shared / "m.keras"
    save_signed(lambda path: open(path, "wb").close(), target, [key])
    for ending in (".sig", ".modelsec.json"):
        os.replace(f"{target}{ending}", f"{target}{ending}.next")
    target.unlink()
    plant("m.keras", b"")
    os.truncate(target, 1 << 42)
    with pytest.raises((CheckpointError, UnsafePathError), match=f"user {STRANGER} put there"):
        recover(shared)


def test_strangers_statements_and_signatures_are_not_read_for_a_version(
    shared, plant, key, monkeypatch
):
    planted = {plant(f"other{ending}") for ending in (".modelsec.json", ".sig")}
    opened, real = [], files.open_regular
    monkeypatch.setattr(
        files, "open_regular", lambda path, **options: opened.append(path) or real(path, **options)
    )
    trained(shared, SignOnSave(shared / "m.keras", key, name="m"))
    assert opened
    assert not planted & set(opened)
    verify(shared / "m.keras", key.verifying_key)
