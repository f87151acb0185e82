import json

import pytest

from keras_modelsec.cli.main import main
from keras_modelsec.trust import load_signing_key


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASSWORD", "geheim")


@pytest.mark.parametrize(
    "algorithm",
    [
        *("p256", "p384", "p521", "ed25519"),
        pytest.param("ml-dsa-65", marks=pytest.mark.needs_cryptography(48)),
    ],
)
def test_each_algorithm_can_be_made(capsys, algorithm):
    assert main(["keygen", "owner.pem", "--algorithm", algorithm, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["algorithm"] == algorithm
    assert load_signing_key("owner.pem").algorithm.endswith(algorithm)


@pytest.mark.parametrize(
    ("wrapping", "first"), [("argon2id", b"MODELSEC "), ("pkcs8", b"ENCRYPTED")]
)
def test_password_wraps_the_key_as_asked(wrapping, first):
    arguments = ["keygen", "owner.pem", "--password-env", "PASSWORD", "--wrapping", wrapping]
    assert main(arguments) == 0
    with open("owner.pem", "rb") as file:
        assert file.read().startswith(b"-----BEGIN " + first)
    assert load_signing_key("owner.pem", "geheim")
