import base64
import copy
import hashlib
import os
import pickle
import stat

import pytest

from keras_modelsec._signing import key_wrapping
from keras_modelsec.errors import KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.encryption import encryption_keys
from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPrivateKey,
    EncryptionPublicKey,
    generate_encryption_keys,
)


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(key_wrapping, "MEMORY_KIB", 32)
    monkeypatch.setattr(key_wrapping, "ITERATIONS", 1)


@pytest.fixture(scope="module")
def key():
    return EncryptionPrivateKey.generate()


def test_key_generation_agrees_with_the_draft():
    """First test vector of draft-connolly-cfrg-xwing-kem-10, appendix C."""
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    public = EncryptionPrivateKey(seed).public_key.raw
    assert public.hex().startswith(
        "e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5"
    )
    assert public.hex().endswith("859edb06eff389b27dce59844570216223593d4ba32d9abac8cd049040ef6534")
    assert hashlib.sha256(public).hexdigest() == (
        "2e816deebcd76c5c80d0cd2d174478871658e8e2ff42bc9d4a6e486372e856bb"
    )


def test_only_the_private_key_opens_what_its_public_key_sealed(key):
    slot = key.public_key.seal(b"k" * 32)
    assert len(slot.body) == 1168
    assert key.open(slot.body) == b"k" * 32
    assert EncryptionPrivateKey.generate().open(slot.body) is None
    for position in range(0, len(slot.body), 37):
        altered = bytearray(slot.body)
        altered[position] ^= 1
        assert key.open(bytes(altered)) is None
    assert key.open(b"") is None


def test_pair_of_files_comes_back(tmp_path):
    private, public = generate_encryption_keys(tmp_path / "alice.key")
    assert public.name == "alice.pub"
    key = EncryptionPrivateKey.from_pem(private.read_bytes())
    assert EncryptionPublicKey.from_pem(public.read_bytes()).raw == key.public_key.raw
    if os.name == "posix":
        assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_private_key_is_wrapped_under_a_password(tmp_path):
    private, public = generate_encryption_keys(tmp_path / "a.key", password="correct horse")
    pem = private.read_bytes()
    assert b"WRAPPED" in pem
    key = EncryptionPrivateKey.from_pem(pem, b"correct horse")
    assert EncryptionPublicKey.from_pem(public.read_bytes()).raw == key.public_key.raw
    with pytest.raises(WrongPasswordError):
        EncryptionPrivateKey.from_pem(pem, b"wrong")
    with pytest.raises(WrongPasswordError, match="Received: none"):
        EncryptionPrivateKey.from_pem(pem)
    with pytest.raises(WrongPasswordError, match="not encrypted"):
        EncryptionPrivateKey.from_pem(key.to_pem(), b"correct horse")


def test_existing_files_are_kept_unless_asked(tmp_path):
    private, public = generate_encryption_keys(tmp_path / "a.key")
    before = private.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        generate_encryption_keys(private)
    private.unlink()
    with pytest.raises(FileExistsError):
        generate_encryption_keys(private)
    assert not private.exists()
    generate_encryption_keys(private, public, overwrite=True)
    assert private.read_bytes() != before
    with pytest.raises(ValueError, match="must differ"):
        generate_encryption_keys(private, private)


def test_every_altered_character_of_a_public_key_is_refused(key):
    """ML-KEM accepts most damaged keys, and would encrypt for nobody."""
    pem = key.public_key.pem
    body = pem.index(b"\n") + 1
    for position in range(body, len(pem) - 60, 11):
        altered = bytearray(pem)
        altered[position] = ord("A") if altered[position] != ord("A") else ord("B")
        with pytest.raises(KeyFormatError):
            EncryptionPublicKey.from_pem(bytes(altered))


def in_pem(text):
    label = "MODELSEC ENCRYPTION PUBLIC KEY"
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        in_pem("A"),
        in_pem("AAAA"),
        b"x" * 100_000,
    ],
)
def test_other_bytes_are_refused_by_name(pem):
    for read in (EncryptionPublicKey.from_pem, EncryptionPrivateKey.from_pem):
        with pytest.raises(KeyFormatError):
            read(pem)


def test_the_wrong_one_of_the_pair_is_named(key):
    with pytest.raises(KeyFormatError, match=r"must be the public one. Received: a private key"):
        EncryptionPublicKey.from_pem(key.to_pem())
    with pytest.raises(KeyFormatError, match=r"must be the private one. Received: a public key"):
        EncryptionPrivateKey.from_pem(key.public_key.pem)


def test_private_key_shows_itself_nowhere(key):
    seed = key._seed
    shown = repr(key) + str(key) + repr(vars(key.public_key))
    assert seed.hex() not in shown
    assert base64.b64encode(seed).decode() not in shown
    assert copy.deepcopy(key) is key
    with pytest.raises(TypeError, match="must not be pickled"):
        pickle.dumps(key)


def test_missing_ml_kem_is_said_clearly(monkeypatch):
    """As with cryptography 44, which has no hpke module; it is not here to try."""
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hpke", None)
    monkeypatch.delattr("cryptography.hazmat.primitives.hpke", raising=False)
    with pytest.raises(KeyFormatError, match="cryptography >= 50"):
        EncryptionPrivateKey.generate()


@pytest.mark.usefixtures("cheap")
def test_wrapped_key_cannot_be_taken_for_another_kind_of_secret(key):
    blob = key_wrapping.wrap(encryption_keys._with_check(key._seed), b"word", purpose=b"other")
    pem = encryption_keys._to_pem(encryption_keys._WRAPPED, blob)
    with pytest.raises(WrongPasswordError):
        EncryptionPrivateKey.from_pem(pem, b"word")
