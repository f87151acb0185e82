"""The `modelsec` command on odd terminals, when it is stopped, and when it is misread."""

import json
import os
import signal
import subprocess
import sys

import pytest

from keras_modelsec.cli.main import main
from keras_modelsec.cli.model_tables import difference_text, tensor_lines
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.damage.model_difference import ModelDifference, TensorChange

COMMAND = [sys.executable, "-m", "keras_modelsec.cli.main"]


@pytest.fixture
def signed(tmp_path):
    """A signed file whose name has a letter beyond ASCII, and its public key."""
    path = tmp_path / "mod\xe8le.bin"
    path.write_bytes(b"weights")
    (tmp_path / "provenance.json").write_text('{"owner": "Zo\xeb"}', encoding="utf-8")
    assert main(["keygen", str(tmp_path / "o.pem")]) == 0
    given = ["--key", str(tmp_path / "o.pem"), "--provenance", str(tmp_path / "provenance.json")]
    assert main(["sign", str(path), *given]) == 0
    return path, tmp_path / "o.pub"


@pytest.mark.parametrize("command", ["verify", "inspect", "locate"])
def test_a_terminal_without_the_letters_of_a_name_gets_escapes_and_the_right_exit_code(
    signed, command
):
    path, key = signed
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    run = [*COMMAND, command, str(path), "--key", str(key)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mod\\xe8le.bin" in done.stdout

    path.write_bytes(b"others!")
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mod\\xe8le.bin" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_with_the_letters_gets_them(signed, capsys):
    path, key = signed
    capsys.readouterr()
    assert main(["inspect", str(path), "--key", str(key)]) == 0
    assert 'owner     "Zo\xeb"' in capsys.readouterr().out


# Writes no more once it has begun: on a busy machine it might be ready before the signal comes.
STOPPED = """
import signal, sys, time
from keras_modelsec.cli.main import main
from keras_modelsec.integrity.encryption import file_encryption

class Writer(file_encryption.EncryptingWriter):
    def write(self, data):
        super().write(data)
        print("has begun", flush=True)
        while True:
            time.sleep(0.001)

file_encryption.EncryptingWriter = Writer
sys.exit(main())
"""


@pytest.mark.needs_cryptography(50)
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals here")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_that_is_stopped_leaves_no_half_made_file(tmp_path, name):
    (tmp_path / "big.bin").write_bytes(bytes(8 << 20))
    main(["keygen", str(tmp_path / "k.key"), "--encryption"])
    before = set(os.listdir(tmp_path))
    run = [*COMMAND, "encrypt", str(tmp_path / "big.bin"), "--recipient", str(tmp_path / "k.pub")]
    # A shell that runs tests in the background has them ignore Ctrl-C.
    reset = f"import signal; signal.signal(signal.{name}, signal.SIG_DFL)\n"
    if name == "SIGINT":
        reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with subprocess.Popen(
        [sys.executable, "-c", reset + STOPPED, *run[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "has begun\n"
            assert set(os.listdir(tmp_path)) > before
            process.send_signal(getattr(signal, name))
            _, errors = process.communicate(timeout=1800)
        finally:
            process.kill()
    assert process.returncode == 2
    assert errors == "modelsec: KeyboardInterrupt: interrupted\n"
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[1]"])
def test_provenance_that_is_no_json_object_is_named_with_its_option(signed, capsys, content):
    path, key = signed
    (path.parent / "bad.json").write_bytes(content)
    given = ["--key", str(key.with_suffix(".pem")), "--provenance", str(path.parent / "bad.json")]
    assert main(["sign", str(path), *given, "--json"]) == 2
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["error"] == "ValueError"
    assert said["message"].startswith("--provenance must name a file with a JSON object. Received:")
    assert "bad.json" in said["message"]


@pytest.mark.needs_cryptography(50)
def test_refusals_to_overwrite_name_the_option_of_the_command_line(signed, tmp_path, capsys):
    path, key = signed
    main(["keygen", str(tmp_path / "c.key"), "--encryption"])
    encrypt = ["encrypt", str(path), "--recipient", str(tmp_path / "c.pub")]
    assert main(encrypt) == 0
    keygen = ["keygen", str(key.with_suffix(".pem"))]
    for again in (encrypt, keygen, ["keygen", str(tmp_path / "c.key"), "--encryption"]):
        capsys.readouterr()
        assert main(again) == 2
        assert "--force" in capsys.readouterr().err
        assert main([*again, "--force"]) == 0


def test_tensors_are_listed_in_the_order_people_count_in():
    paths = [f"layers/dense_{number}/vars/0" for number in (1, 10, 2)]
    records = [TensorRecord(path, (2,), "float32", 0, 8, "") for path in paths]
    shown = [line.split()[0] for line in tensor_lines(records)[1:]]
    assert shown == [paths[0], paths[2], paths[1]]
    changes = tuple(TensorChange(path, "only in A", "float32 (2,)", "") for path in paths)
    lines = difference_text(
        ModelDifference(tensors=changes, same_tensors=0), "a", "b", verified=False
    ).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [paths[0], paths[2], paths[1]]


def test_provenance_that_is_cut_says_so(signed, capsys):
    path, key = signed
    (path.parent / "long.json").write_text(json.dumps({"notes": "n" * 600}))
    given = ["--key", str(key.with_suffix(".pem")), "--provenance", str(path.parent / "long.json")]
    assert main(["sign", str(path), *given]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path), "--key", str(key)]) == 0
    assert "nnn... (--json has it all)" in capsys.readouterr().out


def test_signing_tells_which_version_it_stated(signed, tmp_path, capsys):
    """Another key begins at 1 again, which nobody should learn from a refusal."""
    path, key = signed
    given = ["sign", str(path), "--key", str(key.with_suffix(".pem"))]
    capsys.readouterr()
    assert main(given) == 0
    said = capsys.readouterr().out
    assert f"as version 2 of '{path.name}', by " in said
    assert f": {path}.sig and {path}.modelsec.json\n" in said
    main(["keygen", str(tmp_path / "e.pem"), "--algorithm", "ed25519"])
    apart = tmp_path / "apart"
    apart.mkdir()
    for options, version in (([], 1), (["--model-version", "9"], 9)):
        capsys.readouterr()
        command = ["sign", str(path), "--key", str(tmp_path / "e.pem"), "--json", *options]
        assert main([*command, "--signature", str(apart / "m.sig")]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["model"], said["version"]) == (path.name, version)
        assert said["statement"] == said["signature"]
        assert os.listdir(apart) == [os.path.basename(said["statement"])]
