import io
import json

import pytest

from keras_modelsec._signing import key_wrapping
from keras_modelsec.cli import passwords
from keras_modelsec.cli.main import main

PLAIN = b"the weights" * 1000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(key_wrapping, "MEMORY_KIB", 32)
    monkeypatch.setattr(key_wrapping, "ITERATIONS", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(PLAIN)
    (tmp_path / "phrase").write_bytes(b"correct horse\n")
    return tmp_path


def run(capsys, *arguments):
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.needs_cryptography(50)
def test_recipient_decrypts_what_was_encrypted_for_him(folder, capsys):
    assert run(capsys, "keygen", "--encryption", "alice.key")[0] == 0
    assert run(capsys, "keygen", "--encryption", "bob.key", "--password-file", "phrase")[0] == 0
    code, out, err = run(
        capsys, "encrypt", "model.bin", "--recipient", "alice.pub", "--recipient", "bob.pub"
    )
    assert (code, err) == (0, "")
    assert out == f"Encrypted model.bin: {folder / 'model.bin.enc'}\n"
    assert run(capsys, "decrypt", "model.bin.enc", "--key", "alice.key", "--output", "a")[0] == 0
    code, _, _ = run(
        capsys, "decrypt", "model.bin.enc", "--key", "bob.key", "--password-file", "phrase",
        "--output", "b",
    )  # fmt: skip
    assert code == 0
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes() == PLAIN


def test_passphrase_by_file_variable_and_prompt(folder, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("PHRASE", "correct horse")
    asked = []
    monkeypatch.setattr(
        passwords.getpass, "getpass", lambda prompt: asked.append(prompt) or "correct horse"
    )
    monkeypatch.setattr(passwords.sys, "stdin", io.StringIO())
    assert run(capsys, "encrypt", "model.bin", "--passphrase")[0] == 2  # no terminal to ask at
    monkeypatch.setattr(passwords.sys, "stdin", Terminal())
    assert run(capsys, "encrypt", "model.bin", "--passphrase")[0] == 0
    assert asked == ["Passphrase: ", "Again: "]
    for way in (("--passphrase",), ("--passphrase-env", "PHRASE"), ("--passphrase-file", "phrase")):
        arguments = ("decrypt", "model.bin.enc", *way, "--output", "back", "--force")
        assert run(capsys, *arguments)[0] == 0
        assert (folder / "back").read_bytes() == PLAIN
    assert asked == ["Passphrase: ", "Again: ", "Passphrase: "]


@pytest.mark.needs_cryptography(50)
def test_altered_file_and_wrong_key_give_exit_code_1_and_no_output(folder, capsys):
    run(capsys, "keygen", "--encryption", "other.key")
    run(capsys, "encrypt", "model.bin", "--passphrase-file", "phrase")
    code, out, err = run(capsys, "decrypt", "model.bin.enc", "--key", "other.key", "--output", "b")
    assert (code, out) == (1, "")
    assert "DecryptionError" in err
    data = bytearray((folder / "model.bin.enc").read_bytes())
    data[-1] ^= 1
    (folder / "model.bin.enc").write_bytes(bytes(data))
    code, out, _ = run(
        capsys, "decrypt", "model.bin.enc", "--passphrase-file", "phrase", "--output", "b", "--json"
    )
    assert code == 1
    assert json.loads(out)["error"] == "DecryptionError"
    assert not (folder / "b").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("encrypt", "model.bin"),
        ("encrypt", "model.bin", "--recipient", "nobody.pub"),
        ("encrypt", "nothing", "--passphrase-file", "phrase"),
        ("decrypt", "model.bin"),
        ("decrypt", "model.bin", "--passphrase-file", "phrase"),
        ("decrypt", "model.bin.enc", "--password-file", "phrase"),
        ("keygen", "--encryption", "x.key", "--wrapping", "pkcs8"),
    ],
)
def test_wrong_usage_gives_exit_code_2(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("modelsec: ")


def test_existing_output_is_kept_without_force(folder, capsys):
    run(capsys, "encrypt", "model.bin", "--passphrase-file", "phrase")
    assert run(capsys, "encrypt", "model.bin", "--passphrase-file", "phrase")[0] == 2
    before = (folder / "model.bin.enc").read_bytes()
    assert run(capsys, "encrypt", "model.bin", "--passphrase-file", "phrase", "--force")[0] == 0
    assert (folder / "model.bin.enc").read_bytes() != before


def test_json_says_where_the_output_is(folder, capsys):
    code, out, err = run(capsys, "encrypt", "model.bin", "--passphrase-file", "phrase", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "ok": True,
        "path": "model.bin",
        "output": str(folder / "model.bin.enc"),
    }
