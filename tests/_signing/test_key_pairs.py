import base64
import os
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.key_files import load_signing_key, load_trusted_keys
from keras_modelsec.errors import KeyFormatError, WrongPasswordError
from keras_modelsec.trust import EnvironmentVariable, generate_keys

ALGORITHMS = {
    "p256": "ecdsa-p256",
    "p384": "ecdsa-p384",
    "p521": "ecdsa-p521",
    "ed25519": "ed25519",
    "ml-dsa-65": "ml-dsa-65",
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pair_signs_and_verifies_with_each_algorithm(tmp_path, algorithm):
    private, public = generate_keys(tmp_path / "owner.pem", algorithm=algorithm)
    key = load_signing_key(private)
    trusted = load_trusted_keys(public)
    assert public == tmp_path / "owner.pub"
    assert key.algorithm == trusted[key.verifying_key.hint].algorithm == ALGORITHMS[algorithm]
    trusted[key.verifying_key.hint].check(key.sign(b"data"), b"data")


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_curve_is_chosen_by_the_algorithm(tmp_path, curve):
    private, _ = generate_keys(tmp_path / "owner.pem", algorithm=curve)
    assert load_signing_key(private).algorithm == f"ecdsa-{curve}"


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
    monkeypatch.setattr(key_wrapping, "KDF_ROUNDS", 1000)


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("password", ["geheim \N{SNOWMAN}", b"\x00\xff", lambda: "from a callable"])
@pytest.mark.parametrize("wrapping", ["argon2id", "pkcs8"])
def test_password_encrypts_the_key(tmp_path, wrapping, password):
    private, _ = generate_keys(tmp_path / "owner.pem", password=password, wrapping=wrapping)
    kind = b"MODELSEC ENCRYPTED" if wrapping == "argon2id" else b"ENCRYPTED"
    assert private.read_bytes().startswith(b"-----BEGIN %b PRIVATE KEY-----\n" % kind)
    assert load_signing_key(private, password).sign(b"data")
    with pytest.raises(WrongPasswordError, match="must be given"):
        load_signing_key(private)
    with pytest.raises(WrongPasswordError, match="encrypted with"):
        load_signing_key(private, "wrong")


def test_key_derivation_of_pkcs8_is_a_million_rounds_of_sha512(tmp_path):
    private, _ = generate_keys(tmp_path / "owner.pem", password="p", wrapping="pkcs8")
    der = base64.b64decode(b"".join(private.read_bytes().splitlines()[1:-1]))
    assert key_wrapping.KDF_ROUNDS == 1_000_000
    assert b"\x02\x03\x0f\x42\x40" in der  # INTEGER 1,000,000
    assert bytes.fromhex("2a864886f70d020b") in der  # hmacWithSHA512
    assert bytes.fromhex("60864801650304012a") in der  # aes256-CBC


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("wrapping", ["argon2id", "pkcs8"])
def test_same_password_twice_gives_other_salts(tmp_path, wrapping):
    first, _ = generate_keys(tmp_path / "a.pem", password="p", wrapping=wrapping)
    second, _ = generate_keys(tmp_path / "b.pem", password="p", wrapping=wrapping)
    assert first.read_bytes()[:200] != second.read_bytes()[:200]


@pytest.mark.usefixtures("few_rounds")
def test_every_length_of_key_survives_encryption(tmp_path):
    for name in ALGORITHMS:
        private, public = generate_keys(
            tmp_path / f"{name}.pem", algorithm=name, password="p", wrapping="pkcs8"
        )
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
    with pytest.raises(ValueError, match=r"OWNER_PASSWORD must hold a secret.*Export"):
        load_signing_key(private, password)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"algorithm": "rsa"}, ValueError, "`algorithm` must be one of 'p256', .*'ml-dsa-65'"),
        ({"algorithm": ""}, ValueError, "`algorithm` must be one of 'p256'"),
        ({"wrapping": "scrypt"}, ValueError, "`wrapping` must be one of 'argon2id', 'pkcs8'"),
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


def test_argon2id_wrapping_hides_the_key_and_notices_every_altered_byte(tmp_path):
    private, public = generate_keys(tmp_path / "owner.pem", password="p")
    pem = private.read_bytes()
    head, *body, tail, _ = pem.split(b"\n")
    blob = base64.b64decode(b"".join(body))
    assert load_signing_key(pem, "p").verifying_key.pem == public.read_bytes()
    with pytest.raises(KeyFormatError):
        load_signing_key(pem.replace(b"MODELSEC ", b""), "p")
    for at in [*range(0, 12), 20, 30, len(blob) // 2, len(blob) - 1]:
        altered = bytearray(blob)
        altered[at] ^= 0x80
        text = b"\n".join([head, base64.b64encode(altered), tail, b""])
        with pytest.raises(KeyFormatError):
            load_signing_key(text, "p")


@pytest.mark.parametrize(
    "change",
    [
        lambda pem: pem[:60],
        lambda pem: pem.replace(b"-----END", b"-----end"),
        lambda pem: pem.replace(b"\n", b"\n!", 2),
        lambda pem: pem.replace(b"-----END MODELSEC ", b"-----END "),
        lambda pem: pem.replace(b"KEY-----\n", b"KEY-----\n\n-----END", 1),
        lambda pem: pem + pem,
        lambda pem: b"note\n" + pem,
        lambda pem: pem + b"note\n",
        lambda pem: (
            b"-----BEGIN MODELSEC ENCRYPTED PRIVATE KEY-----\n"
            b"-----END MODELSEC ENCRYPTED PRIVATE KEY-----\n"
        ),
    ],
)
def test_malformed_wrapped_key_is_a_named_error(tmp_path, change):
    private, _ = generate_keys(tmp_path / "owner.pem", password="p")
    with pytest.raises(KeyFormatError):
        load_signing_key(change(private.read_bytes()), "p")


def test_windows_line_ends_are_read(tmp_path):
    private, _ = generate_keys(tmp_path / "owner.pem", password="p")
    assert load_signing_key(private.read_bytes().replace(b"\n", b"\r\n"), "p")


def test_openssl_reads_the_pkcs8_wrapping(tmp_path):
    private, _ = generate_keys(tmp_path / "owner.pem", password="p", wrapping="pkcs8")
    command = ["openssl", "pkey", "-in", str(private), "-passin", "pass:p", "-pubout"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == (tmp_path / "owner.pub").read_bytes()
