import json
import os
import subprocess
import sys

import pytest

from keras_modelsec._signing.key_files import load_trusted_keys
from keras_modelsec.cli import passwords
from keras_modelsec.cli.main import main
from keras_modelsec.integrity import verify


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def signed(folder, capsys):
    assert main(["keygen", "owner.pem"]) == 0
    assert main(["sign", "model.bin", "--key", "owner.pem"]) == 0
    capsys.readouterr()
    return folder


def run(capsys, *arguments):
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_keygen_sign_verify(folder, capsys):
    code, out, _ = run(capsys, "keygen", "owner.pem", "trusted.pub", "--algorithm", "p384")
    assert code == 0
    assert "owner.pem" in out
    assert "trusted.pub" in out
    assert "PRIVATE KEY" not in out
    code, out, _ = run(capsys, "sign", "model.bin", "--key", "owner.pem", "--signature", "s.sig")
    assert code == 0
    assert "s.sig" in out
    arguments = ("verify", "model.bin", "--key", "trusted.pub", "--signature", "s.sig")
    code, out, err = run(capsys, *arguments)
    assert (code, out.splitlines()[0], err) == (0, "Verified model.bin", "")


def test_tampered_model_gives_exit_code_1_and_names_the_file(signed, capsys):
    (signed / "model.bin").write_bytes(b"Weights")
    code, out, err = run(capsys, "verify", "model.bin", "--key", "owner.pub")
    assert (code, out) == (1, "")
    assert "model.bin" in err
    assert "TamperedModelError" in err
    assert "expected sha256" in err


@pytest.mark.parametrize("signature", [None, b"junk"])
def test_missing_or_malformed_signature_gives_exit_code_1(signed, capsys, signature):
    (signed / "model.bin.sig").unlink()
    if signature is None:
        (signed / "model.bin.modelsec.json").unlink()
    else:
        (signed / "model.bin.sig").write_bytes(signature)
    code, _, err = run(capsys, "verify", "model.bin", "--key", "owner.pub")
    assert code == 1
    assert "model.bin.sig" in err


def test_untrusted_key_gives_exit_code_1(signed, capsys):
    main(["keygen", "other.pem"])
    assert run(capsys, "verify", "model.bin", "--key", "other.pub")[0] == 1
    both = ("verify", "model.bin", "--key", "other.pub", "--key", "owner.pub")
    assert run(capsys, *both)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("verify", "gone.bin", "--key", "owner.pub"), "gone.bin"),
        (("verify", "model.bin", "--key", "gone.pub"), "gone.pub"),
        (("verify", "model.bin", "--key", "owner.pem"), "owner.pem"),
        (("sign", "gone.bin", "--key", "owner.pem"), "gone.bin"),
        (("sign", "model.bin", "--key", "owner.pub"), "owner.pub"),
        (("sign", "model.bin", "--key", "owner.pem", "--signature", "no/x"), "no"),
        (("sign", "link", "--key", "owner.pem"), "link"),
        (("keygen", "owner.pem"), "owner.pem"),
        (("keygen", "no/owner.pem"), "no/owner.pem"),
        (("keygen", "new.pem", "--password-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
        (("keygen", "new.pem", "--password-file", "gone.txt"), "gone.txt"),
        (("sign", "model.bin", "--key", "owner.pem", "--password-file", "model.bin"), "password"),
    ],
)
def test_wrong_usage_and_unreadable_files_give_exit_code_2_and_name_the_file(
    signed, capsys, arguments, named
):
    (signed / "link").symlink_to("model.bin")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("modelsec: ")
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("verify",), ("sign", "x"), ("keygen",), ("unknown",)]
    + [("keygen", "x", "--algorithm", "p192"), ("keygen", "x", "--password=geheim")],
)
def test_malformed_command_lines_give_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: modelsec" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Somebody must be trusted"),
        (("--trust-store", "trust.json"), "must be given together"),
        (("--root", "owner.pub"), "must be given together"),
        (("--key", "owner.pub", "--subject", "CN=x"), "with --root-certificate"),
    ],
)
def test_incomplete_trust_is_wrong_usage(signed, capsys, options, message):
    code, _, err = run(capsys, "verify", "model.bin", *options)
    assert code == 2
    assert message in err


def test_trust_store_on_the_command_line_refuses_an_older_model(signed, capsys):
    store = ("trust.json", "--root", "root.pem")
    trusted = ("--trust-store", "trust.json", "--root", "root.pub")
    assert main(["keygen", "root.pem"]) == 0
    assert main(["trust", "add", "trust.json", "owner.pub", *store[1:]]) == 0
    assert run(capsys, "verify", "model.bin", *trusted)[0] == 0
    assert main(["trust", "require", "trust.json", "model.bin", "2", *store[1:]]) == 0
    code, _, err = run(capsys, "verify", "model.bin", *trusted)
    assert code == 1
    assert "RolledBackError" in err
    assert main(["sign", "model.bin", "--key", "owner.pem"]) == 0  # version 2
    assert run(capsys, "verify", "model.bin", *trusted)[0] == 0
    assert (
        run(capsys, "verify", "model.bin", "--trust-store", "trust.json", "--root", "owner.pub")[0]
        == 1
    )


def test_json_output_of_each_command(folder, capsys):
    code, out, _ = run(capsys, "keygen", "owner.pem", "--json")
    assert code == 0
    assert json.loads(out)["public"] == str(folder / "owner.pub")
    code, out, _ = run(capsys, "sign", "model.bin", "--key", "owner.pem", "--json")
    expected = {
        "ok": True,
        "path": "model.bin",
        "signature": str(folder / "model.bin.sig"),
        "statement": str(folder / "model.bin.modelsec.json"),
        "model": "model.bin",
        "version": 1,
    }
    (signer,) = (said := json.loads(out)).pop("signers")
    assert signer == load_trusted_keys("owner.pub").popitem()[0]
    assert said == expected
    code, out, _ = run(capsys, "verify", "model.bin", "--key", "owner.pub", "--json")
    said = json.loads(out)
    assert {name: said[name] for name in ("ok", "path", "model", "version", "files")} == {
        "ok": True,
        "path": "model.bin",
        "model": "model.bin",
        "version": 1,
        "files": 1,
    }
    (folder / "model.bin").write_bytes(b"x")
    code, out, err = run(capsys, "verify", "model.bin", "--key", "owner.pub", "--json")
    report = json.loads(out)
    assert (code, err) == (1, "")
    assert (report["ok"], report["error"]) == (False, "TamperedModelError")
    assert [file["name"] for file in report["changed"]] == ["."]
    assert (report["added"], report["missing"]) == ([], [])
    code, out, _ = run(capsys, "verify", "gone", "--key", "owner.pub", "--json")
    assert code == 2
    assert json.loads(out)["error"] == "FileNotFoundError"


@pytest.mark.parametrize("source", ["env", "file"])
def test_password_from_environment_and_file(folder, capsys, monkeypatch, source):
    monkeypatch.setenv("OWNER_PASSWORD", "geheim")
    (folder / "password.txt").write_bytes(b"geheim\n")
    option = {"env": ("--password-env", "OWNER_PASSWORD"), "file": ("--password-file",)}[source]
    option += ("password.txt",) if source == "file" else ()
    assert run(capsys, "keygen", "owner.pem", *option)[0] == 0
    assert b"ENCRYPTED" in (folder / "owner.pem").read_bytes()
    code, _, err = run(capsys, "sign", "model.bin", "--key", "owner.pem")
    assert code == 2
    assert "--password" in err
    code, out, err = run(capsys, "sign", "model.bin", "--key", "owner.pem", *option)
    assert code == 0
    assert "geheim" not in out + err
    verify(folder / "model.bin", folder / "owner.pub")


def test_password_by_prompt_is_asked_twice_when_a_key_is_made(folder, capsys, monkeypatch):
    answers = iter(["geheim", "geheim", "geheim", "one", "two"])
    monkeypatch.setattr(passwords.getpass, "getpass", lambda _: next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert run(capsys, "keygen", "owner.pem", "--password")[0] == 0
    assert run(capsys, "sign", "model.bin", "--key", "owner.pem", "--password")[0] == 0
    code, _, err = run(capsys, "keygen", "new.pem", "--password")
    assert code == 2
    assert "must be the same" in err
    assert not (folder / "new.pem").exists()


def test_prompt_without_a_terminal_does_not_hang(signed, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, _, err = run(capsys, "sign", "model.bin", "--key", "owner.pem", "--password")
    assert code == 2
    assert "needs a terminal" in err


def test_force_replaces_keys(signed, capsys):
    before = (signed / "owner.pem").read_bytes()
    assert run(capsys, "keygen", "owner.pem", "--force")[0] == 0
    assert (signed / "owner.pem").read_bytes() != before


def test_folder_and_signature_of_the_reference_implementation(signed, capsys):
    (signed / "model").mkdir()
    (signed / "model" / "a").write_bytes(b"a")
    assert run(capsys, "sign", "model", "--key", "owner.pem")[0] == 0
    (signed / "model" / "b").write_bytes(b"b")
    code, _, err = run(capsys, "verify", "model", "--key", "owner.pub")
    assert code == 1
    assert "Added: 'b'" in err


def test_command_runs_as_a_program_with_its_exit_code(signed):
    def program(*arguments):
        command = [sys.executable, "-m", "keras_modelsec.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = program("verify", "model.bin", "--key", "owner.pub")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Verified model.bin\n")
    os.truncate("model.bin", 1)
    assert program("verify", "model.bin", "--key", "owner.pub").returncode == 1
    assert "modelsec 0." in program("--version").stdout
    assert "PATH" in program("verify", "--help").stdout


def test_reader_that_stops_early_gets_no_traceback_and_the_exit_code_stays(signed):
    arguments = [sys.executable, "-m", "keras_modelsec.cli.main"]
    for command, code in ((["verify", "model.bin"], 0), (["locate", "model.bin"], 1)):
        if code:
            (signed / "model.bin").write_bytes(b"Weights")
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run(
                [*arguments, *command, "--key", "owner.pub"],
                stdout=write,
                stderr=subprocess.PIPE,
                check=False,
            )
        finally:
            os.close(write)
        assert (done.returncode, done.stderr) == (code, b"")
