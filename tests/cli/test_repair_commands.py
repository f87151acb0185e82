import json
import random
import sys

import pytest

from keras_modelsec.cli.main import main
from keras_modelsec.integrity import verify

GOOD = random.Random(0).randbytes(512_000)


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(GOOD)
    assert main(["keygen", "owner.pem"]) == 0
    assert main(["sign", "model.bin", "--key", "owner.pem"]) == 0
    assert main(["protect", "model.bin", "--key", "owner.pem"]) == 0
    assert "model.bin.parity" in capsys.readouterr().out
    return tmp_path


def run(capsys, *arguments):
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_repair_restores_and_says_what_it_did(folder, capsys):
    (folder / "model.bin").write_bytes(GOOD[:1000] + b"inserted" + GOOD[1000:-7])
    code, out, _ = run(capsys, "repair", "model.bin", "--key", "owner.pub", "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["changed"]) == (0, True, ["."])
    assert result["moved_blocks"] + result["decoded_blocks"] <= result["damaged_blocks"]
    assert (folder / "model.bin").read_bytes() == GOOD
    verify("model.bin", "owner.pub")
    code, out, _ = run(capsys, "repair", "model.bin", "--key", "owner.pub")
    assert (code, "nothing to repair" in out) == (0, True)


def test_unrepairable_model_gives_exit_code_1_and_what_is_lost(folder, capsys):
    bad = bytes(len(GOOD))
    (folder / "model.bin").write_bytes(bad)
    code, out, err = run(capsys, "repair", "model.bin", "--key", "owner.pub")
    assert (code, out) == (1, "")
    assert "UnrepairableError" in err
    assert f"'.' bytes 0 to {len(GOOD)}" in err
    assert (folder / "model.bin").read_bytes() == bad


def test_added_file_gives_exit_code_1(folder, capsys):
    (folder / "many").mkdir()
    (folder / "many" / "a").write_bytes(b"a")
    assert main(["protect", "many", "--key", "owner.pem", "--redundancy", "1"]) == 0
    (folder / "many" / "b").write_bytes(b"b")
    capsys.readouterr()
    code, out, _ = run(capsys, "repair", "many", "--key", "owner.pub")
    assert code == 1
    assert "left alone: 'b'" in out


def test_other_places_for_parity_and_signature(folder, capsys):
    (folder / "model.bin.sig").rename("s.sig")
    (folder / "model.bin.modelsec.json").unlink()
    options = ("--parity", "p.parity", "--signature", "s.sig")
    assert run(capsys, "protect", "model.bin", "--key", "owner.pem", *options)[0] == 0
    (folder / "model.bin.parity").unlink()
    (folder / "model.bin").write_bytes(GOOD[:-1])
    assert run(capsys, "repair", "model.bin", "--key", "owner.pub", *options)[0] == 0
    assert (folder / "model.bin").read_bytes() == GOOD


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("protect", "model.bin", "--key", "owner.pem", "--redundancy", "0"), "redundancy"),
        (("protect", "model.bin", "--key", "owner.pem", "--redundancy", "1.1"), "redundancy"),
        (("protect", "model.bin", "--key", "owner.pem", "--parity", "model.bin"), "--parity"),
        (("protect", "gone.bin", "--key", "owner.pem"), "gone.bin"),
        (("repair", "model.bin", "--key", "owner.pub", "--parity", "gone"), "gone"),
    ],
)
def test_wrong_use_gives_exit_code_2_and_changes_nothing(folder, capsys, arguments, named):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_extra_gives_exit_code_2_and_how_to_install_it(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    code, _, err = run(capsys, "protect", "model.bin", "--key", "owner.pem")
    assert code == 2
    assert "pip install 'keras-modelsec[repair]'" in err
    (folder / "model.bin").write_bytes(b"x" + GOOD[1:])
    assert run(capsys, "repair", "model.bin", "--key", "owner.pub")[0] == 2
    assert (folder / "model.bin").read_bytes() == b"x" + GOOD[1:]
