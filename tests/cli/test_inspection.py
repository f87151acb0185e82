"""`modelsec inspect`, `diff` and `locate`, as a shell calls them."""

import base64
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_modelsec.cli.main import main

KERNEL = "layers/dense_1/vars/0"


def build(units=4):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((50,)), keras.layers.Dense(200), keras.layers.Dense(units)], name="net"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """a.keras signed, b.keras with one other value, c.keras of another shape."""
    folder = tmp_path_factory.mktemp("models")
    model = build()
    model.save(folder / "a.keras")
    kernel = model.layers[-1].kernel
    value = keras.ops.convert_to_numpy(kernel).copy()
    value[3, 1] += 0.5
    kernel.assign(value)
    model.save(folder / "b.keras")
    model.save_weights(folder / "b.weights.h5")
    build(units=5).save(folder / "c.keras")
    assert main(["keygen", str(folder / "o.pem")]) == 0
    assert main(["keygen", str(folder / "other.pem")]) == 0
    assert main(["sign", str(folder / "a.keras"), "--key", str(folder / "o.pem")]) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return tmp_path


def run(capsys, *arguments):
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


def run_json(capsys, *arguments):
    code, out, _ = run(capsys, *arguments, "--json")
    return code, json.loads(out, parse_constant=pytest.fail)


def damage(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x80
    path.write_bytes(data)


def offset_of(capsys, path):
    _, found = run_json(capsys, "inspect", "a.keras")
    return next(t["offset"] for t in found["tensors"] if t["path"] == path)


def test_inspect_without_a_key_shows_everything_and_says_it_is_not_verified(folder, capsys):
    code, out, _ = run(capsys, "inspect", "a.keras")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == lines[-1] == "NOT VERIFIED: a.keras"
    assert "VERIFIED" not in out.replace("NOT VERIFIED", "")
    assert "version 1" in out
    assert "not checked" in out
    assert any(KERNEL in line and "float32" in line and "200x4" in line for line in lines)
    code, found = run_json(capsys, "inspect", "a.keras")
    assert (code, found["verified"], found["version"]) == (0, False, 1)
    assert [s["algorithm"] for s in found["signers"]] == ["ecdsa", "ecdsa"]
    assert len(found["tensors"]) == 4
    assert found["provenance"]["packages"]["keras"] == keras.__version__


def test_inspect_with_the_key_verifies(folder, capsys):
    code, out, _ = run(capsys, "inspect", "a.keras", "--key", "o.pub")
    assert code == 0
    assert out.startswith("VERIFIED: a.keras\n")
    assert "NOT" not in out
    assert out.count("trusted key\n") == 2
    code, found = run_json(capsys, "inspect", "a.keras", "--key", "o.pub")
    assert (code, found["ok"], found["verdict"]) == (0, True, "VERIFIED")


def test_inspect_shows_a_damaged_model_and_fails(folder, capsys):
    damage(folder / "a.keras", offset_of(capsys, KERNEL))
    code, out, _ = run(capsys, "inspect", "a.keras", "--key", "o.pub")
    assert code == 1
    assert out.splitlines()[-1] == "NOT VERIFIED: a.keras"
    assert KERNEL in out.splitlines()[1]
    assert run(capsys, "inspect", "a.keras", "--key", "other.pub")[0] == 1


def test_inspect_of_an_unsigned_model_lists_its_tensors(folder, capsys):
    code, out, _ = run(capsys, "inspect", "b.keras")
    assert code == 0
    assert out.splitlines()[0] == "NOT SIGNED: b.keras"
    assert KERNEL in out
    assert run(capsys, "inspect", "b.keras", "--key", "o.pub")[0] == 1
    assert run(capsys, "inspect", "gone.keras")[0] == 2


def test_inspect_of_hostile_signature_files_names_the_problem(folder, capsys):
    (folder / "a.keras.sig").write_bytes(b"junk")
    (folder / "a.keras.modelsec.json").write_bytes(b"[" * 100_000)
    code, out, _ = run(capsys, "inspect", "a.keras")
    assert code == 0
    assert "NOT VERIFIED" in out
    assert "a.keras.modelsec.json" in out
    assert run(capsys, "inspect", "a.keras", "--key", "o.pub")[0] == 1


def rewrite_statement(folder, change):
    """A statement that nobody signed."""
    place = folder / "a.keras.modelsec.json"
    envelope = json.loads(place.read_bytes())
    said = json.loads(base64.b64decode(envelope["payload"]))
    change(said)
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    place.write_text(json.dumps(envelope))


def test_unverified_text_cannot_steer_the_terminal(folder, capsys):
    def change(said):
        said["predicate"]["model"] = said["subject"][0]["name"] = "\x1b[2J\rVERIFIED: a.keras\n"
        said["predicate"]["tensors"][0]["path"] = "a\x1b[31m\u202e"
        said["predicate"]["provenance"] = {"\x1b]0;": "\x1b"}

    rewrite_statement(folder, change)
    code, out, _ = run(capsys, "inspect", "a.keras")
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in out)
    assert not any(line.startswith("VERIFIED") for line in out.splitlines())
    code, out, _ = run(capsys, "inspect", "a.keras", "--key", "o.pub")
    assert code == 1
    assert not any(line.startswith("VERIFIED") for line in out.splitlines())


def test_claimed_size_of_petabytes_is_refused_without_filling_the_memory(folder, capsys):
    def change(said):
        said["predicate"]["files"][0]["size"] = 1 << 52

    rewrite_statement(folder, change)
    code, out, _ = run(capsys, "inspect", "a.keras")
    assert code == 0
    assert "`leaves` must have" in out


def test_diff_names_the_tensor_and_by_how_much(folder, capsys):
    code, out, err = run(capsys, "diff", "a.keras", "b.keras")
    assert (code, err) == (1, "")
    assert "1 differ, 3 are the same" in out
    assert "1 of 800 values, max abs 0.5, L2 0.5" in out
    code, found = run_json(capsys, "diff", "a.keras", "b.keras")
    (tensor,) = found["tensors"]
    assert (code, tensor["path"], tensor["changes"]["changed"]) == (1, KERNEL, 1)
    assert tensor["changes"]["max_abs"] == pytest.approx(0.5)


def test_diff_of_shapes_and_configuration(folder, capsys):
    code, found = run_json(capsys, "diff", "a.keras", "c.keras")
    assert code == 1
    changed = {t["path"]: (t["one"], t["other"]) for t in found["tensors"]}
    assert changed[KERNEL] == ("float32 (200, 4)", "float32 (200, 5)")
    units = [c for c in found["texts"] if c["place"].endswith("layers[2].config.units")]
    assert [(c["part"], c["one"], c["other"]) for c in units] == [("config.json", "4", "5")]


def test_diff_of_the_same_weights_in_two_kinds_of_file_is_empty(folder, capsys):
    assert run(capsys, "diff", "b.keras", "b.weights.h5")[0] == 0
    assert run(capsys, "diff", "a.keras", "a.keras")[0] == 0


def test_diff_with_a_key_verifies_both(folder, capsys):
    assert run(capsys, "diff", "a.keras", "a.keras", "--key", "o.pub")[0] == 0
    code, _, err = run(capsys, "diff", "a.keras", "b.keras", "--key", "o.pub")
    assert code == 1
    assert "SignatureError" in err


def test_diff_of_folders_and_of_what_cannot_be_compared(folder, capsys):
    for name in ("one", "two"):
        (folder / name).mkdir()
        shutil.copy(folder / "a.keras", folder / name / "m.keras")
        (folder / name / "same.bin").write_bytes(b"same")
    assert run(capsys, "diff", "one", "two")[0] == 0
    (folder / "two" / "same.bin").write_bytes(b"Same")
    (folder / "two" / "new.json").write_text("{}")
    (folder / "one" / "old.txt").write_text("")
    shutil.copy(folder / "b.keras", folder / "two" / "m.keras")
    code, found = run_json(capsys, "diff", "one", "two")
    assert code == 1
    assert [t["path"] for t in found["tensors"]] == [f"m.keras:{KERNEL}"]
    assert (found["parts"], found["only_in_one"]) == (["same.bin"], ["old.txt"])
    assert found["only_in_other"] == ["new.json"]
    assert run(capsys, "diff", "one", "a.keras")[0] == 2
    assert run(capsys, "diff", "gone", "a.keras")[0] == 2


@pytest.mark.parametrize("where", [0, 4000, -40])
def test_diff_of_a_damaged_file_is_a_difference_and_no_crash(folder, capsys, where):
    shutil.copy(folder / "a.keras", folder / "d.keras")
    damage(folder / "d.keras", where % (folder / "a.keras").stat().st_size)
    code, out, _ = run(capsys, "diff", "a.keras", "d.keras")
    assert code == 1
    assert out.startswith("different")


def test_diff_counts_values_that_became_nan(folder, capsys):
    model = keras.models.load_model(folder / "a.keras")
    bias = model.layers[-1].bias
    bias.assign(np.array([0, np.nan, np.inf, 1], "float32"))
    model.save(folder / "n.keras")
    _, found = run_json(capsys, "diff", "a.keras", "n.keras")
    (tensor,) = found["tensors"]
    assert (tensor["changes"]["changed"], tensor["changes"]["non_finite"]) == (3, 2)
    assert tensor["changes"]["max_abs"] == 1.0


def test_locate_names_the_tensor_and_by_how_much(folder, capsys):
    assert run(capsys, "locate", "a.keras", "--key", "o.pub")[0] == 0
    offset = offset_of(capsys, KERNEL)
    shutil.copy(folder / "a.keras", folder / "good.keras")
    damage(folder / "a.keras", offset + 3)
    code, out, _ = run(capsys, "locate", "a.keras", "--key", "o.pub")
    assert code == 1
    assert KERNEL in out
    arguments = ("locate", "a.keras", "--key", "o.pub", "--reference", "good.keras")
    code, found = run_json(capsys, *arguments)
    assert (code, found["ok"], found["is_clean"]) == (1, False, False)
    assert [(t["path"], t["changes"]["changed"]) for t in found["tensors"]] == [(KERNEL, 1)]
    assert run(capsys, "locate", "a.keras", "--key", "other.pub")[0] == 1
    assert run(capsys, "locate", "a.keras")[0] == 2
    assert run(capsys, "locate", "gone.keras", "--key", "o.pub")[0] == 2


def test_inspect_imports_neither_keras_nor_tensorflow(folder):
    code = (
        "import sys; from keras_modelsec.cli.main import main; "
        "main(['inspect', 'a.keras', '--key', 'o.pub']); main(['diff', 'a.keras', 'b.keras']); "
        "main(['locate', 'a.keras', '--key', 'o.pub']); "
        "sys.exit(any(m in sys.modules for m in ('keras', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
