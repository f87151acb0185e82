import errno
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.errors import SignatureError, TamperedModelError, UnsafePathError
from keras_modelsec.integrity import sign, verified_copy

STATUS = Path("/proc/self/status")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def test_file_is_copied_for_this_user_alone_and_deleted(signed_file, public, temporary):
    with verified_copy(signed_file.path, public) as copy:
        assert copy.read_bytes() == signed_file.path.read_bytes()
        assert copy.name == signed_file.path.name
        assert temporary in copy.parents
        assert stat.S_IMODE(copy.stat().st_mode) == 0o400
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_folder_is_copied_without_its_signature_and_deleted(signed_folder, public, temporary):
    names = {p.relative_to(signed_folder.path) for p in signed_folder.path.rglob("*")}
    with verified_copy(signed_folder.path, public) as copy:
        assert {p.relative_to(copy) for p in copy.rglob("*")} == names
        for path in (copy, *copy.rglob("*")):
            mode = 0o500 if path.is_dir() else 0o400
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert (copy / "variables" / "data").read_bytes() == b"weights"
    assert list(temporary.iterdir()) == []


def test_original_swapped_in_the_block_changes_nothing(signed_folder, public):
    with verified_copy(signed_folder.path, public) as copy:
        (signed_folder.path / "saved_model.pb").write_bytes(b"evil")
        assert (copy / "saved_model.pb").read_bytes() == b"graph"
    with (
        pytest.raises(TamperedModelError, match=r"saved_model\.pb"),
        verified_copy(signed_folder.path, public),
    ):
        pytest.fail("a tampered folder was yielded")


def test_nothing_is_left_after_a_refusal_or_an_error(signed_folder, public, temporary):
    with pytest.raises(ZeroDivisionError), verified_copy(signed_folder.path, public):
        raise ZeroDivisionError
    (signed_folder.path / "added").write_bytes(b"x")
    with pytest.raises(TamperedModelError), verified_copy(signed_folder.path, public):
        pass
    assert list(temporary.iterdir()) == []


def test_links_are_refused(signed_folder, signed_file, public):
    link = signed_file.path.with_name("link")
    link.symlink_to(signed_file.path)
    with (
        pytest.raises(UnsafePathError),
        verified_copy(link, public, signature_path=signed_file.signature),
    ):
        pass
    (signed_folder.path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafePathError), verified_copy(signed_folder.path, public):
        pass


def test_unsigned_is_refused(tmp_path, public):
    (tmp_path / "model").write_bytes(b"x")
    with pytest.raises(SignatureError), verified_copy(tmp_path / "model", public):
        pass
    with pytest.raises(FileNotFoundError), verified_copy(tmp_path / "gone", public):
        pass


def test_missing_room_is_said_before_any_work(signed_file, public, temporary, monkeypatch):
    room = []

    def usage(folder):
        room.append(folder)
        return shutil._ntuple_diskusage(1 << 40, (1 << 40) - (1 << 29), 1 << 29)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with open(signed_file.path, "r+b") as file:
        file.truncate(1 << 30)  # sparse, and not read
    with pytest.raises(OSError, match=r"TMPDIR") as caught, verified_copy(signed_file.path, public):
        pass
    assert caught.value.errno == errno.ENOSPC
    assert [temporary in Path(folder).parents for folder in room] == [True]
    assert list(temporary.iterdir()) == []


def test_tf_train_checkpoint_is_restored_from_the_copy(tmp_path, key, public):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    expected = model.get_weights()
    folder = tmp_path / "checkpoint"
    tf.train.Checkpoint(model=model).save(str(folder / "ckpt"))
    sign(folder, key)
    model.set_weights([np.zeros_like(w) for w in expected])
    with verified_copy(folder, public) as copy:
        checkpoint = tf.train.latest_checkpoint(copy)
        tf.train.Checkpoint(model=model).restore(checkpoint).assert_existing_objects_matched()
    for old, new in zip(expected, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path, key):
    path = tmp_path / "big.bin"
    with open(path, "wb") as file:
        file.truncate(256 << 20)
    sign(path, key)
    (tmp_path / "key.pub").write_bytes(key.verifying_key.pem)
    script = f"""
import keras_modelsec as ms
with ms.verified_copy({str(path)!r}, {str(tmp_path / "key.pub")!r}) as copy:
    assert copy.stat().st_size == 256 << 20
print(open({str(STATUS)!r}).read())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 128 << 10  # KiB


def test_keras_is_not_needed():
    script = (
        "import sys, keras_modelsec as ms; ms.verified_copy; "
        "print({'keras', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_progress_is_reported_to_the_end(signed_folder, public):
    seen = []
    with verified_copy(signed_folder.path, public, progress=lambda *step: seen.append(step)):
        total = sum(p.stat().st_size for p in signed_folder.path.rglob("*") if p.is_file())
    assert seen[-1] == (total, total)
