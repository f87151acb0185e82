"""Who may write to the folder around it cannot have us sign his file, nor delete what is not ours.

Attacks run for real: folders are renamed and planted while a save runs, by this user where names
are what counts, and by another user in a process of its own where rights are.
"""

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._storage import staging
from keras_modelsec._storage.staging import (
    MARKER,
    StagingFolder,
    check_closed_to_others,
    staging_folder,
)
from keras_modelsec.errors import CheckpointError, TamperedModelError
from keras_modelsec.integrity import verify
from keras_modelsec.integrity.parity import repaired_files
from keras_modelsec.integrity.signing.signed_saving import recover, save_signed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are opened and renamed")
ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user: run as root"
)
PREFIX = ".modelsec-saving-"
STRANGER = 54321


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def staging_folders(folder):
    return sorted(folder.glob(".modelsec-*"))


def plant(folder, name="model.keras", data=b"evil"):
    """What an attacker does: our folder goes aside, his takes its name."""
    (ours,) = staging_folders(folder)
    ours.rename(folder / "aside")
    ours.mkdir()
    (ours / name).write_bytes(data)
    return ours


def test_planted_file_is_not_signed(folder, key, public):
    target, planted = folder / "model.keras", []

    def write(path):
        with open(path, "wb") as file:
            file.write(b"good")
        planted.append(plant(folder))

    save_signed(write, target, [key])
    verify(target, public)
    assert target.read_bytes() == b"good"
    assert (planted[0] / "model.keras").read_bytes() == b"evil"  # and nothing of his is deleted
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["aside", "model.keras", "model.keras.modelsec.json", "model.keras.sig", planted[0].name]
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="else by path: open folders refused")
def test_folder_renamed_before_the_model_is_written_is_written_to_all_the_same(folder, key, public):
    target = folder / "model.keras"

    def write(path):
        plant(folder)
        with open(path, "wb") as file:
            file.write(b"good")

    save_signed(write, target, [key])
    verify(target, public)
    assert target.read_bytes() == b"good"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["m.keras", "m.weights.h5", "m.keras.enc", "export", "backup"])
def test_no_planted_file_is_signed_while_a_thread_renames_and_plants(tmp_path, kind):
    ms.generate_keys(tmp_path / "owner.pem", tmp_path / "owner.pub")
    folder, stop, planted = tmp_path / "open", threading.Event(), []
    folder.mkdir()
    options = {"save_weights_only": "weights" in kind}
    if kind.endswith(".enc"):
        options["encrypt_to"] = bytes(range(32))
    if kind == "backup":
        target = folder / "latest.weights.h5"
        saving = ms.SignedBackupAndRestore(
            folder, tmp_path / "owner.pem", save_freq=1, delete_checkpoint=False
        )
    else:
        target = folder / kind
        saving = ms.SignOnSave(target, tmp_path / "owner.pem", save_freq=1, **options)

    def attack():
        while not stop.is_set():
            for ours in set(folder.glob(PREFIX + "*")) - set(planted):
                try:
                    ours.rename(tmp_path / f"aside{len(planted)}")
                    ours.mkdir()
                    evil = ours / target.name
                    if kind == "export":
                        evil.mkdir()
                        evil = evil / "saved_model.pb"
                    evil.write_bytes(b"evil")
                    planted.append(ours)
                except OSError:
                    continue

    class Check(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if target.exists() and len(planted) > 3:
                try:
                    verify(target, tmp_path / "owner.pub")
                except TamperedModelError:
                    return
                found = target / "saved_model.pb" if target.is_dir() else target
                seen.append(found.read_bytes())

    seen = []
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    thread = threading.Thread(target=attack)
    thread.start()
    try:
        x, y = np.ones((12, 4), "float32"), np.ones((12, 1), "float32")
        for _ in range(300):  # on a busy machine the other thread comes late
            # Exchanged before it was opened, the folder is refused: that is as good.
            with contextlib.suppress(CheckpointError):
                model.fit(x, y, batch_size=1, verbose=0, callbacks=[saving, Check()])
                if seen and len(planted) > 3:
                    break
    finally:
        stop.set()
        thread.join()
    verify(target, tmp_path / "owner.pub")
    assert len(planted) > 3
    assert seen
    assert all(data != b"evil" for data in seen)
    assert all(ours.exists() for ours in planted)


def test_folder_exchanged_before_it_was_opened_is_refused(folder, key, monkeypatch):
    make = os.mkdir
    (folder / "precious").mkdir()
    (folder / "precious" / "file").write_bytes(b"x")

    def exchanged(place, mode):
        make(place, mode)
        os.rename(place, f"{place}-aside")
        os.rename(folder / "precious", place)

    monkeypatch.setattr(staging.os, "mkdir", exchanged)
    with pytest.raises(CheckpointError, match="must be the one just made"):
        save_signed(lambda path: None, folder / "model.keras", [key])
    (place,) = (p for p in staging_folders(folder) if not p.name.endswith("-aside"))
    assert (place / "file").read_bytes() == b"x"


@ROOT
def test_strangers_empty_folder_is_not_taken_for_ours(folder, key, monkeypatch):
    make = os.mkdir

    def exchanged(place, mode):
        make(place, mode)
        os.rename(place, f"{place}-aside")
        make(place, mode)
        os.chown(place, STRANGER, STRANGER)

    monkeypatch.setattr(staging.os, "mkdir", exchanged)
    with pytest.raises(CheckpointError, match="must be the one just made"):
        save_signed(lambda path: None, folder / "model.keras", [key])
    assert not list(folder.rglob(MARKER))


ATTACK = """
set -e
ours=$(echo "$1"/.modelsec-saving-*)
mv "$ours" "$1/aside"
mkdir "$ours"
printf evil > "$ours/model.keras"
"""


def attack_as_stranger(folder):
    command = ["/bin/sh", "-c", ATTACK, "sh", str(folder)]
    return subprocess.run(
        command, user=STRANGER, group=STRANGER, extra_groups=[], check=False, cwd="/"
    ).returncode


@pytest.fixture
def shared():
    """A folder that strangers can reach, which pytest's own are not."""
    place = tempfile.mkdtemp(dir="/tmp")
    os.chmod(place, 0o755)
    yield place
    shutil.rmtree(place)


@ROOT
def test_another_user_is_kept_out_by_refusal_or_by_the_sticky_bit(shared, key, public):
    folder, codes = Path(shared, "open"), []
    folder.mkdir()
    target = folder / "model.keras"

    def write(path):
        with open(path, "wb") as file:
            file.write(b"good")
        codes.append(attack_as_stranger(folder))

    folder.chmod(0o777)
    with pytest.raises(CheckpointError, match=r"closed to others' writing.*everybody.*chmod"):
        save_signed(write, target, [key])
    assert list(folder.iterdir()) == []
    folder.chmod(0o1777)
    save_signed(write, target, [key])
    verify(target, public)
    assert target.read_bytes() == b"good"
    assert codes[0] != 0  # and he could not rename it
    folder.chmod(0o755)
    os.chown(folder, STRANGER, STRANGER)  # a container's root in a user's folder, say
    save_signed(write, target, [key])
    assert codes[1] == 0  # he could, and gained nothing
    verify(target, public)
    assert target.read_bytes() == b"good"


@pytest.mark.parametrize(
    ("mode", "refused"),
    [(0o755, ""), (0o700, ""), (0o1777, ""), (0o777, "everybody"), (0o757, "everybody")],
)
def test_folder_is_refused_if_everybody_may_write_there(folder, mode, refused):
    folder.chmod(mode)
    if not refused:
        check_closed_to_others(folder)
        return
    with pytest.raises(CheckpointError, match=refused):
        check_closed_to_others(folder)


@ROOT
def test_folder_is_refused_if_a_shared_group_may_write_there(folder):
    folder.chmod(0o775)
    os.chown(folder, 0, STRANGER)
    with pytest.raises(CheckpointError, match=f"group {STRANGER} may write"):
        check_closed_to_others(folder)
    folder.chmod(0o1775)
    check_closed_to_others(folder)


PRIVATE_GROUP = """
import os, pathlib, pwd, grp, sys
from keras_modelsec.errors import CheckpointError
from keras_modelsec._storage.staging import check_closed_to_others
folder = pathlib.Path(sys.argv[1])
os.chmod(folder, 0o775)
accounts = [(u.pw_name, u.pw_uid, u.pw_gid) for u in pwd.getpwall()]
for name, uid, gid in accounts:
    try:
        members = grp.getgrgid(gid).gr_mem
    except KeyError:
        continue
    alone = [u for u in accounts if u[2] == gid] == [(name, uid, gid)] and set(members) <= {name}
    os.chown(folder, uid, gid)
    os.seteuid(uid)
    try:
        check_closed_to_others(folder)
        allowed = True
    except CheckpointError:
        allowed = False
    os.seteuid(0)
    assert allowed == alone, (name, allowed, alone)
    print(allowed)
"""


@ROOT
def test_folder_of_a_private_group_is_allowed_to_each_account_of_this_system(shared):
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE_GROUP, shared], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="ACLs are set by os.setxattr")
def test_folder_is_refused_if_its_acl_lets_somebody_write(folder):
    entries = [(1, 7, -1), (2, 7, STRANGER), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no ACLs on this file system ({error})")
    assert folder.stat().st_mode & stat.S_IWGRP
    with pytest.raises(CheckpointError, match="ACL"):
        check_closed_to_others(folder)


@ROOT
def test_folder_of_another_user_is_refused_to_all_but_root(folder, monkeypatch):
    os.chown(folder, STRANGER, STRANGER)
    folder.chmod(0o1777)
    check_closed_to_others(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(CheckpointError, match=f"its owner, user {STRANGER},"):
        check_closed_to_others(folder)


def test_callback_refuses_an_open_folder_when_it_is_made_and_when_training_begins(tmp_path):
    ms.generate_keys(tmp_path / "owner.pem", tmp_path / "owner.pub")
    folder = tmp_path / "open"
    folder.mkdir()
    saving = ms.SignOnSave(folder / "m.keras", tmp_path / "owner.pem")
    folder.chmod(0o777)
    with pytest.raises(CheckpointError, match="closed to others"):
        saving.on_train_begin()
    with pytest.raises(CheckpointError, match="closed to others"):
        ms.SignOnSave(folder / "m.keras", tmp_path / "owner.pem")
    backup = ms.SignedBackupAndRestore(folder, tmp_path / "owner.pem")
    with pytest.raises(CheckpointError, match="closed to others"):
        backup.on_train_begin()


def foreign(folder, kind):
    """A folder of somebody's that was renamed to a name of ours; its file is precious."""
    place = folder / f"{PREFIX}x1y2z3"
    place.mkdir(mode=0o700)
    (place / "precious").write_bytes(b"x")
    mark = f"keras_modelsec staging folder {place.stat().st_ino}\n"
    if kind == "marker of another folder":
        with staging_folder(folder) as ours:
            shutil.copy(ours / MARKER, place / MARKER)
    elif kind == "marker that is a link":
        (folder / "mark").write_text(mark)
        (place / MARKER).symlink_to(folder / "mark")
    elif kind == "marker that is linked twice":
        (folder / "mark").write_text(mark)
        os.link(folder / "mark", place / MARKER)
    elif kind == "marker others may write":
        (place / MARKER).write_text(mark)
        (place / MARKER).chmod(0o666)
    elif kind == "folder others may write":
        (place / MARKER).write_text(mark)
        place.chmod(0o777)
    elif kind == "marker that is a pipe":
        os.mkfifo(place / MARKER)
    elif kind == "another user's":
        (place / MARKER).write_text(mark)
        (place / MARKER).chmod(0o600)
        os.chown(place, STRANGER, STRANGER)
    elif kind == "another user's marker":
        (place / MARKER).write_text(mark)
        (place / MARKER).chmod(0o600)
        os.chown(place / MARKER, STRANGER, STRANGER)
    return place


@pytest.mark.parametrize(
    "kind",
    [
        "no marker",
        "marker of another folder",
        "marker that is a link",
        "marker that is linked twice",
        "marker others may write",
        "folder others may write",
        "marker that is a pipe",
        pytest.param("another user's", marks=ROOT),
        pytest.param("another user's marker", marks=ROOT),
    ],
)
def test_folder_that_was_renamed_to_our_name_is_left_alone(folder, key, kind):
    place = foreign(folder, kind)
    recover(folder)
    save_signed(lambda path: open(path, "wb").close(), folder / "model.keras", [key])
    assert (place / "precious").read_bytes() == b"x"


@pytest.mark.parametrize("marked", [True, "half", False])
def test_folder_of_a_killed_process_is_cleared(folder, marked):
    left = StagingFolder.make(folder, PREFIX)
    if marked == "half":  # killed before the marker's text was written
        (left.path / MARKER).write_bytes(b"")
    elif marked:
        (left.path / "half").write_bytes(b"x")
        (left.path / "sub").mkdir()
    else:  # killed before it was marked
        (left.path / MARKER).unlink()
    recover(folder)
    assert staging_folders(folder)  # it is locked: alive
    left.close()
    recover(folder)
    assert staging_folders(folder) == []


def test_folder_of_a_repair_is_left_alone_if_it_is_none(tmp_path, key, public):
    model = tmp_path / "model.bin"
    model.write_bytes(np.random.default_rng(0).bytes(50_000))
    good = model.read_bytes()
    ms.sign(model, key)
    ms.write_parity(model, key, redundancy=0.3)
    with open(model, "r+b") as file:
        file.write(b"damaged")
    place = tmp_path / (repaired_files._prefix_of(model) + "abc")
    place.mkdir(mode=0o700)
    (place / "precious").write_bytes(b"x")
    left = StagingFolder.make(tmp_path, repaired_files._prefix_of(model))
    left.close()
    ms.repair(model, public)
    assert model.read_bytes() == good
    assert staging_folders(tmp_path) == [place]
    assert (place / "precious").read_bytes() == b"x"


def test_backup_deletes_its_own_files_and_no_others(tmp_path):
    ms.generate_keys(tmp_path / "owner.pem", tmp_path / "owner.pub")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    (tmp_path / "bk").mkdir()
    (tmp_path / "bk" / "precious").write_bytes(b"x")
    callback = ms.SignedBackupAndRestore(tmp_path / "bk", tmp_path / "owner.pem")
    model.fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0, callbacks=[callback])
    assert [path.name for path in (tmp_path / "bk").iterdir()] == ["precious"]
    (tmp_path / "bk" / "precious").unlink()
    model.fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0, callbacks=[callback])
    assert not (tmp_path / "bk").exists()


def test_without_proc_the_path_serves_and_no_folder_above_may_be_open(
    folder, key, public, monkeypatch
):
    monkeypatch.setattr(staging, "_anchor", lambda descriptor: None)
    target = folder / "model.keras"
    save_signed(lambda path: open(path, "wb").close(), target, [key])
    verify(target, public)
    folder.parent.chmod(0o777)
    with pytest.raises(CheckpointError, match="closed to others"):
        save_signed(lambda path: open(path, "wb").close(), target, [key])


def test_full_disk_leaves_no_folder_behind(tmp_path):
    """The marker is the first thing that is written."""
    code = """
import resource, signal, sys
from pathlib import Path
from keras_modelsec._storage import staging
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    staging.StagingFolder.make(Path(sys.argv[1]), ".modelsec-saving-")
except OSError as error:
    print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "OSError\n"
    assert list(tmp_path.iterdir()) == []


def _interrupted_at_line(number, parent):
    """The function of staging.py whose line Ctrl-C came at, as its `number`-th; None at the end."""
    left, where = [number], []

    def trace(frame, event, _):
        if frame.f_code.co_filename != staging.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                where.append(frame.f_code.co_name)
                raise KeyboardInterrupt
        return trace

    def use():
        with staging.made(parent, PREFIX) as made:
            (made.path / "half").write_bytes(b"x")

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        use()
    except KeyboardInterrupt:
        return where[0]
    finally:
        sys.settrace(before)
    return None


def _as_if_killed(parent):
    """Closes what an interrupted call has left open, as the end of its process does."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(parent)):
                os.close(int(descriptor))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks which files are open")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # an interrupted `with` closes by refcount
def test_interrupt_at_any_line_leaves_no_folder_or_one_that_the_next_process_clears(folder):
    seen = []
    while (function := _interrupted_at_line(len(seen) + 1, folder)) is not None:
        seen.append(function)
        if staging_folders(folder):
            assert function in ("made", "remove"), "before it began to clear up"
            _as_if_killed(folder)
            recover(folder)
        assert staging_folders(folder) == [], seen
    assert len(seen) > 40


def test_interrupt_while_a_folder_is_made_leaves_none(folder, monkeypatch):
    for step in ("_mark", "_lock", "_anchor", "_text_of_mark"):

        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(staging, step, stop)
            with pytest.raises(KeyboardInterrupt), staging.made(folder, PREFIX):
                pass
        assert staging_folders(folder) == [], step
