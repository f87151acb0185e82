"""The two-file replacement: killed at every step, at random, and by errors."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from keras_modelsec._storage.staging import staging_folder
from keras_modelsec.errors import CheckpointError, TamperedModelError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.signing import signed_saving
from keras_modelsec.integrity.signing.signed_saving import recover, save_signed
from keras_modelsec.trust import load_signing_key

WHOLE = ["model.keras", "model.keras.modelsec.json", "model.keras.sig"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="kill -9 and locks")

# Saves a model of random size over and over; the CRASH_AT-th step that touches the disk kills it.
WRITER = """
import os, random, sys
from keras_modelsec._signing.key_files import load_signing_key
from keras_modelsec.integrity.signing.signed_saving import save_signed
from pathlib import Path

target, key = Path(sys.argv[1]), load_signing_key(sys.argv[2])
crash_at, count = int(sys.argv[3]), 0

def crashing(function):
    def step(*args, **kwargs):
        global count
        count += 1
        if count == crash_at:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return step

if crash_at:
    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, crashing(getattr(os, name)))

def write(path):
    with open(path, "wb") as file:
        file.write(os.urandom(random.randrange(1, 1 << 21)))

print("started", flush=True)
for _ in range(1 if crash_at else 10**9):
    save_signed(write, target, [key])
print("finished", count, flush=True)
"""


@pytest.fixture
def key_file(tmp_path, key):
    path = tmp_path / "key.pem"
    path.write_bytes(
        key._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def start_writer(target, key_file, crash_at=0):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target), str(key_file), str(crash_at)],
        stdout=subprocess.PIPE,
        text=True,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def writes(data):
    def write(path):
        with open(path, "wb") as file:
            file.write(data)

    return write


@pytest.fixture
def target(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "model.keras"


def test_signature_of_a_failed_save_is_removed_before_its_statement(target, key, monkeypatch):
    save_signed(writes(b"old"), target, [key])
    removed, unlink = [], Path.unlink

    def note(path, **options):
        removed.append(path.name)
        unlink(path, **options)

    def fail(*_):
        raise OSError("full")

    monkeypatch.setattr(Path, "unlink", note)
    monkeypatch.setattr(signed_saving.publishing, "replace", fail)
    with pytest.raises(OSError, match="full"):
        save_signed(writes(b"new"), target, [key])
    pending = [name for name in removed if name.endswith(".next")]
    assert pending == [f"{target.name}.sig.next", f"{target.name}.modelsec.json.next"]
    assert target.read_bytes() == b"old"


def test_pair_is_written_and_replaced_without_litter(target, key, public):
    for data in (b"first", b"second"):
        save_signed(writes(data), target, [key])
        verify(target, public)
        assert target.read_bytes() == data
        assert names(target.parent) == WHOLE


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("state", ["nothing", "pair", "interrupted"])
def test_kill_at_every_step_leaves_a_pair_that_verifies(target, key, public, key_file, state):
    crashes = 0
    for crash_at in range(1, 60):
        for path in target.parent.iterdir():
            if path.is_file():
                path.unlink()
        if state != "nothing":
            save_signed(writes(b"old"), target, [key])
        if state == "interrupted":  # a writer was killed between its two renames before
            vouchers = [Path(f"{target}.sig"), Path(f"{target}.modelsec.json")]
            older = [path.read_bytes() for path in vouchers]
            save_signed(writes(b"newer"), target, [key])
            for path, data in zip(vouchers, older, strict=True):
                os.replace(path, f"{path}.next")
                path.write_bytes(data)
        writer = start_writer(target, key_file, crash_at)
        output = writer.communicate(timeout=1800)[0]
        if writer.returncode == 0:
            assert "finished" in output
            break
        assert writer.returncode == -signal.SIGKILL
        crashes += 1
        if target.exists():
            verify(target, public)
        else:
            assert state == "nothing"
        before = target.read_bytes() if target.exists() else None
        recover(target.parent)
        assert names(target.parent) == (WHOLE if before else [])
        if before:
            assert target.read_bytes() == before
            verify(target, public, signature_path=f"{target}.sig")
    assert crashes >= 8


def _wait_for_another(target):
    before = target.stat().st_ino
    deadline = time.monotonic() + 600
    while target.stat().st_ino == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@POSIX
@pytest.mark.slow
def test_kill_at_random_moments_never_loses_the_last_signed_checkpoint(
    target, key, public, key_file
):
    save_signed(writes(b"old"), target, [key])
    rng = random.Random(7)
    replaced = set()
    span = 0.0  # as long as two saves take, on a busy machine too
    for trial in range(30):
        writer = start_writer(target, key_file)
        assert writer.stdout.readline() == "started\n"
        begin = time.monotonic()
        if trial % 5 == 0:  # lets some be replaced, and sees how busy the machine is by now
            for _ in range(2):
                _wait_for_another(target)
            span = time.monotonic() - begin
        else:
            time.sleep(rng.uniform(0, span))
        writer.kill()
        writer.communicate()
        verify(target, public)
        replaced.add(target.read_bytes()[:16])
    assert len(replaced) > 3
    recover(target.parent)
    assert names(target.parent) == WHOLE
    verify(target, public, signature_path=f"{target}.sig")


@POSIX
def test_reader_beside_a_live_writer_never_sees_a_broken_pair(target, key, public, key_file):
    save_signed(writes(b"old"), target, [key])
    writer = start_writer(target, key_file)
    try:
        assert writer.stdout.readline() == "started\n"
        seen, deadline = set(), time.monotonic() + 600
        while len(seen) < 20 and time.monotonic() < deadline:
            verify(target, public)
            seen.add(target.stat().st_mtime_ns)
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) == 20


@POSIX
def test_two_writers_at_once_leave_one_pair(target, key, public, key_file):
    writers = [start_writer(target, key_file) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "started\n"
        time.sleep(1)
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    verify(target, public)
    recover(target.parent)
    assert names(target.parent) == WHOLE


def test_failed_write_leaves_the_old_pair_and_no_litter(target, key, public):
    save_signed(writes(b"old"), target, [key])

    def fails(path):
        writes(b"half")(path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_signed(fails, target, [key])
    verify(target, public)
    assert target.read_bytes() == b"old"
    assert names(target.parent) == WHOLE


def test_full_disk_is_a_checkpoint_error_and_leaves_the_old_pair(target, key, public):
    resource = pytest.importorskip("resource")
    save_signed(writes(b"old"), target, [key])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(CheckpointError, match=r"model\.keras.*unchanged\. Make room"):
            save_signed(writes(bytes(2 << 20)), target, [key])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    verify(target, public)
    assert target.read_bytes() == b"old"
    assert names(target.parent) == WHOLE


@pytest.mark.parametrize("step", range(1, 6))
def test_error_at_each_rename_leaves_a_pair_that_verifies(target, key, public, monkeypatch, step):
    save_signed(writes(b"old"), target, [key])
    replace, count = os.replace, 0

    def fails(*args):
        nonlocal count
        count += 1
        if count == step:
            raise PermissionError(13, "Permission denied")
        return replace(*args)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CheckpointError, match=r"Permission denied"):
        save_signed(writes(b"new"), target, [key])
    monkeypatch.undo()
    verify(target, public)
    assert target.read_bytes() == (b"new" if step > 3 else b"old")
    recover(target.parent)
    assert names(target.parent) == WHOLE


def test_target_that_is_a_folder_stays_one(target, key):
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        save_signed(writes(b"new"), target, [key])
    assert names(target.parent) == ["model.keras"]


@POSIX
def test_folder_of_a_live_writer_is_not_cleared(target):
    with staging_folder(target.parent) as live:
        (live / "half").write_bytes(b"x")
        recover(target.parent)
        assert (live / "half").exists()
    assert names(target.parent) == []


@POSIX
def test_link_named_like_a_staging_folder_is_left_alone(target, key, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    link = target.parent / ".modelsec-saving-link"
    link.symlink_to(tmp_path / "precious")
    save_signed(writes(b"new"), target, [key])
    recover(target.parent)
    assert (tmp_path / "precious" / "file").exists()
    assert link.is_symlink()


def test_pending_signature_of_another_model_is_removed_and_never_takes_its_place(
    target, key, public, tmp_path
):
    save_signed(writes(b"old"), target, [key])
    (tmp_path / "other").write_bytes(b"other")
    sign(tmp_path / "other", key)
    os.replace(tmp_path / "other.sig", f"{target}.sig.next")
    os.replace(tmp_path / "other.modelsec.json", f"{target}.modelsec.json.next")
    recover(target.parent)
    verify(target, public)
    assert names(target.parent) == WHOLE


def test_unsigned_model_is_replaced_by_a_signed_one(target, key, public):
    target.write_bytes(b"unsigned")
    save_signed(writes(b"signed"), target, [key])
    verify(target, public)
    target.write_bytes(b"unsigned")
    with pytest.raises(TamperedModelError):
        verify(target, public)


def test_failed_save_keeps_an_earlier_keys_signature(tmp_path, key, public, monkeypatch):
    target = tmp_path / "model.keras"
    target.write_bytes(b"good")
    sign(target, key)
    (tmp_path / WHOLE[1]).unlink()  # as another tool signs: NAME.sig is all there is
    newer = load_signing_key(ed25519.Ed25519PrivateKey.generate())

    def write(path):
        Path(path).write_bytes(b"new")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("sync_file", "replace"):  # while signing; when all else is in place
        with monkeypatch.context() as patch:
            patch.setattr(signed_saving.publishing, name, fail)
            with pytest.raises(CheckpointError):
                save_signed(write, target, [newer])
        verify(target, public)
        assert sorted(p.name for p in tmp_path.iterdir()) == [WHOLE[0], WHOLE[2]]
    save_signed(write, target, [newer])
    verify(target, [public, newer.verifying_key])
    assert sorted(p.name for p in tmp_path.iterdir()) == WHOLE[:2]


STRANGER = 12345
AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user: run as root"
)


def plant(target, signer):
    """Makes pending files on the bytes of `target`, as a killed writer with `signer` leaves."""
    place = target.with_name("elsewhere") / target.name
    place.parent.mkdir()
    place.write_bytes(target.read_bytes())
    sign(place, signer)
    pending = []
    for suffix in (".sig", ".modelsec.json"):
        pending.append(target.with_name(f"{target.name}{suffix}.next"))
        os.replace(f"{place}{suffix}", pending[-1])
    return pending


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "how", [pytest.param("owner", marks=[POSIX, AS_ROOT]), pytest.param("link", marks=POSIX)]
)
def test_pending_files_of_others_do_not_replace_what_is_good(
    target, key, other_key, public, how, tmp_path
):
    save_signed(lambda path: Path(path).write_bytes(b"model"), target, [key])
    pending = plant(target, other_key)
    for path in pending:
        if how == "owner":
            os.chown(path, STRANGER, STRANGER)
        else:
            os.link(path, tmp_path / f"second-{path.name}")
    before = contents(target.parent)
    recover(target.parent)
    assert contents(target.parent) == before
    save_signed(lambda path: Path(path).write_bytes(b"model"), target, [key])
    verify(target, public)


@POSIX
@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_pending_name_that_is_no_file_blocks_no_save(target, key, public, kind):
    place = target.with_name("x.sig.next")
    {"link": lambda path: path.symlink_to("gone"), "folder": Path.mkdir, "fifo": os.mkfifo}[kind](
        place
    )
    recover(target.parent)
    save_signed(lambda path: Path(path).write_bytes(b"model"), target, [key])
    verify(target, public)
    assert os.path.lexists(place)
