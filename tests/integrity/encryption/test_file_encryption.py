import os
import stat
import subprocess
import sys
import tracemalloc

import pytest

from keras_modelsec._storage.publishing import write_atomically
from keras_modelsec._storage.staging import MARKER
from keras_modelsec.errors import DecryptionError, UnsafePathError
from keras_modelsec.integrity.encryption.encryption_keys import generate_encryption_keys
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
from keras_modelsec.integrity.signing.signing import sign
from keras_modelsec.integrity.signing.verifying import verify

KEY = bytes(range(32))
MIB = 1 << 20


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(2 * MIB + 17))
    return path


@pytest.fixture
def encrypted(plain):
    return encrypt_file(plain, KEY)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_file_comes_back(tmp_path, size):
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(size))
    encrypted = encrypt_file(path, KEY)
    assert encrypted == tmp_path / "model.bin.enc"
    assert encrypted.stat().st_size == 112 + size + 16 * max(1, -(-size // MIB))
    back = decrypt_file(encrypted, KEY, tmp_path / "back.bin")
    assert back.read_bytes() == path.read_bytes()
    assert names(tmp_path) == ["back.bin", "model.bin", "model.bin.enc"]


def test_recipient_with_a_wrapped_key_opens_it(plain, tmp_path):
    private, public = generate_encryption_keys(tmp_path / "a.key", password="correct horse")
    encrypted = encrypt_file(plain, public)
    back = decrypt_file(encrypted, private, tmp_path / "back", password="correct horse")
    assert back.read_bytes() == plain.read_bytes()


def test_existing_outputs_are_kept_unless_asked(plain, encrypted, tmp_path):
    before = encrypted.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        encrypt_file(plain, KEY)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        decrypt_file(encrypted, KEY)
    assert encrypted.read_bytes() == before
    encrypt_file(plain, KEY, overwrite=True)
    assert encrypted.read_bytes() != before
    plain.write_bytes(b"other")
    decrypt_file(encrypted, KEY, overwrite=True)
    assert len(plain.read_bytes()) == 2 * MIB + 17


def test_output_that_appears_meanwhile_is_kept(encrypted, tmp_path):
    target = tmp_path / "back.bin"
    with pytest.raises(FileExistsError):
        decrypt_file(encrypted, KEY, target, progress=lambda *_: target.write_bytes(b"precious"))
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("position", [0, 60, 111, 112, MIB, -1])
def test_altered_file_leaves_nothing(encrypted, tmp_path, position):
    data = bytearray(encrypted.read_bytes())
    data[position] ^= 1
    encrypted.write_bytes(bytes(data))
    with pytest.raises(DecryptionError, match=r"model\.bin\.enc"):
        decrypt_file(encrypted, KEY, tmp_path / "back.bin")
    assert names(tmp_path) == ["model.bin", "model.bin.enc"]


def test_altered_file_does_not_replace_an_older_result(encrypted, tmp_path):
    target = tmp_path / "back.bin"
    target.write_bytes(b"older")
    encrypted.write_bytes(encrypted.read_bytes()[:-1])
    with pytest.raises(DecryptionError):
        decrypt_file(encrypted, KEY, target, overwrite=True)
    assert target.read_bytes() == b"older"


@pytest.mark.skipif(os.name != "posix", reason="needs modes")
def test_result_is_private_from_its_first_byte_and_hidden_until_its_last(encrypted, tmp_path):
    target, seen = tmp_path / "back.bin", []

    def look(*_):
        assert not target.exists()
        (folder,) = tmp_path.glob(".modelsec-saving-*")
        assert {file.name for file in folder.iterdir()} == {target.name, MARKER}
        mode = stat.S_IMODE(folder.stat().st_mode)
        seen.extend((mode, stat.S_IMODE(file.stat().st_mode)) for file in folder.iterdir())

    decrypt_file(encrypted, KEY, target, progress=look)
    assert set(seen) == {(0o700, 0o600)}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_progress_ends_at_the_total(plain, tmp_path):
    told = []
    encrypted = encrypt_file(plain, KEY, progress=lambda *pair: told.append(pair))
    size = plain.stat().st_size
    assert told == [(MIB, size), (2 * MIB, size), (size, size)]
    told.clear()
    decrypt_file(encrypted, KEY, tmp_path / "b", progress=lambda *pair: told.append(pair))
    assert told == [(MIB, size), (2 * MIB, size), (size, size)]


def test_full_disk_leaves_nothing_and_is_an_os_error(plain, encrypted, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            encrypt_file(plain, KEY, tmp_path / "other.enc")
        with pytest.raises(OSError, match="too large"):
            decrypt_file(encrypted, KEY, tmp_path / "back.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["model.bin", "model.bin.enc"]


def test_folder_that_cannot_be_written_to_is_an_os_error(plain, tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere
        folder.rmdir()
        with pytest.raises(FileNotFoundError, match="must exist"):
            encrypt_file(plain, KEY, folder / "x.enc")
    else:
        with pytest.raises(PermissionError):
            encrypt_file(plain, KEY, folder / "x.enc")


def test_links_folders_and_odd_names_are_refused(plain, encrypted, tmp_path):
    link = tmp_path / "link.enc"
    link.symlink_to(encrypted)
    with pytest.raises(UnsafePathError):
        decrypt_file(link, KEY, tmp_path / "x")
    with pytest.raises(UnsafePathError):
        encrypt_file(plain, KEY, link, overwrite=True)
    with pytest.raises(OSError, match="must be a file"):
        encrypt_file(tmp_path, KEY, tmp_path.parent / "x.enc")
    with pytest.raises(ValueError, match="must be given unless"):
        decrypt_file(plain, KEY)
    with pytest.raises(ValueError, match="must differ"):
        encrypt_file(plain, KEY, plain)
    with pytest.raises(FileNotFoundError):
        encrypt_file(tmp_path / "nothing", KEY)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    tracemalloc.start()
    try:
        encrypted = encrypt_file(path, KEY)
        decrypt_file(encrypted, KEY, overwrite=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


def test_signature_of_the_encrypted_file_is_an_ordinary_one(encrypted, key, public):
    sign(encrypted, key)
    verify(encrypted, public)


def test_file_system_without_hard_links(encrypted, tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    back = decrypt_file(encrypted, KEY, tmp_path / "back.bin")
    assert back.stat().st_size == 2 * MIB + 17
    with pytest.raises(FileExistsError):
        write_atomically(back, b"another", overwrite=False)
    assert back.stat().st_size == 2 * MIB + 17


def test_encrypting_files_imports_neither_keras_nor_tensorflow():
    code = (
        "import sys, keras_modelsec as ms; ms.encryption.encrypt_file, ms.encryption.decrypt_file;"
        "assert not {'keras', 'tensorflow', 'h5py'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
