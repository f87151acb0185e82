import base64
import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization

from keras_modelsec.integrity import (
    EnvironmentVariable,
    WrongPasswordError,
    generate_keys,
    pem_encryption,
)
from keras_modelsec.integrity.key_loading import load_signing_key, load_trusted_keys


@pytest.mark.parametrize(
    ("curve", "name"), [("p256", "secp256r1"), ("p384", "secp384r1"), ("p521", "secp521r1")]
)
def test_pair_signs_and_verifies_on_each_curve(tmp_path, curve, name):
    private, public = generate_keys(tmp_path / "owner.pem", curve=curve)
    key = load_signing_key(private)
    trusted = load_trusted_keys(public)
    assert public == tmp_path / "owner.pub"
    assert key.verifying_key.curve == name
    trusted[key.verifying_key.hint].check(key.sign(b"data"), b"data")


def test_private_key_is_readable_by_its_owner_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        private, public = generate_keys(tmp_path / "owner.pem")
    finally:
        os.umask(old)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["owner.pem", "owner.pub"]


@pytest.mark.parametrize("existing", ["owner.pem", "owner.pub"])
def test_existing_file_is_not_overwritten_and_nothing_is_written(tmp_path, existing):
    (tmp_path / existing).write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"must not exist yet.*overwrite=True"):
        generate_keys(tmp_path / "owner.pem")
    assert [p.name for p in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_bytes() == b"precious"


def test_overwrite_replaces_both_files(tmp_path):
    first = generate_keys(tmp_path / "owner.pem").public_path.read_bytes()
    second = generate_keys(tmp_path / "owner.pem", overwrite=True).public_path.read_bytes()
    assert first != second
    assert load_signing_key(tmp_path / "owner.pem").verifying_key.pem == second


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(pem_encryption, "KDF_ROUNDS", 1000)


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("password", ["geheim \N{SNOWMAN}", b"\x00\xff", lambda: "from a callable"])
def test_password_encrypts_the_key(tmp_path, password):
    private, _ = generate_keys(tmp_path / "owner.pem", password=password)
    assert private.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert load_signing_key(private, password).sign(b"data")
    with pytest.raises(WrongPasswordError, match="must be given"):
        load_signing_key(private)
    with pytest.raises(WrongPasswordError, match="encrypted with"):
        load_signing_key(private, "wrong")


def test_key_derivation_is_a_million_rounds_of_sha512(tmp_path):
    private, _ = generate_keys(tmp_path / "owner.pem", password="p")
    der = base64.b64decode(b"".join(private.read_bytes().splitlines()[1:-1]))
    assert pem_encryption.KDF_ROUNDS == 1_000_000
    assert b"\x02\x03\x0f\x42\x40" in der  # INTEGER 1,000,000
    assert bytes.fromhex("2a864886f70d020b") in der  # hmacWithSHA512
    assert bytes.fromhex("60864801650304012a") in der  # aes256-CBC


@pytest.mark.usefixtures("few_rounds")
def test_same_password_twice_gives_other_salts(tmp_path):
    first, _ = generate_keys(tmp_path / "a.pem", password="p")
    second, _ = generate_keys(tmp_path / "b.pem", password="p")
    assert first.read_bytes()[:200] != second.read_bytes()[:200]


@pytest.mark.usefixtures("few_rounds")
def test_every_length_of_key_survives_encryption(tmp_path):
    for curve in ("p256", "p384", "p521"):
        private, public = generate_keys(tmp_path / f"{curve}.pem", curve=curve, password="p")
        key = serialization.load_pem_private_key(private.read_bytes(), b"p")
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert pem == public.read_bytes()


def test_password_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OWNER_PASSWORD", "geheim")
    password = EnvironmentVariable("OWNER_PASSWORD")
    private, _ = generate_keys(tmp_path / "owner.pem", password=password)
    assert load_signing_key(private, "geheim")
    assert "geheim" not in repr(password)
    monkeypatch.delenv("OWNER_PASSWORD")
    with pytest.raises(ValueError, match=r"OWNER_PASSWORD must hold a password.*Export"):
        load_signing_key(private, password)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"curve": "secp256k1"}, ValueError, "`curve` must be one of 'p256', 'p384', 'p521'"),
        ({"overwrite": 1}, TypeError, "`overwrite` must be True or False"),
        ({"password": ""}, ValueError, "`password` must not be empty"),
        ({"password": 7}, TypeError, "`password` must be str, bytes"),
        ({"public_path": "owner.pem"}, ValueError, "`public_path` must differ"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        generate_keys("owner.pem", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_an_os_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        generate_keys(tmp_path / "nowhere" / "owner.pem")


def test_unwritable_public_key_leaves_no_half_pair(tmp_path):
    with pytest.raises(FileNotFoundError):
        generate_keys(tmp_path / "owner.pem", tmp_path / "nowhere" / "owner.pub")
    assert list(tmp_path.iterdir()) == []
