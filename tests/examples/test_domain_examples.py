"""Each domain's example runs, says what it promises, and says nothing on standard error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_adversarial_training_example_hardens_the_model(run_example, tmp_path):
    done = run_example("adversarial_training", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = re.findall(r"^(plain|hardened) +(clean|pgd_linf) +(\d\.\d+)", done.stdout, re.M)
    accuracy = {(model, attack): float(value) for model, attack, value in found}
    assert accuracy["hardened", "clean"] > 0.85
    assert accuracy["hardened", "pgd_linf"] > accuracy["plain", "pgd_linf"] + 0.1
    assert re.search(r"hardened-\d\d-0\.\d\d\.keras", " ".join(p.name for p in tmp_path.iterdir()))


def test_private_training_example_stops_in_time_and_remembers(run_example):
    done = run_example("private_training")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    spent = float(re.search(r"^\(([\d.]+), 1e-05\)-differential privacy", done.stdout, re.M)[1])
    assert 3.5 < spent <= 4.0
    accuracy = float(re.findall(r"val_accuracy: ([\d.]+)", done.stdout)[-1])
    assert accuracy > 0.8
    assert f"of which {spent:.4g} is spent" in done.stdout


def test_signing_example_refuses_strangers_and_changes(run_example, tmp_path):
    done = run_example("signing", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "With another key: UntrustedKeyError" in done.stdout
    assert "With one bit flipped: TamperedModelError" in done.stdout


def test_watermark_example_reads_the_mark_from_a_stolen_model(run_example):
    done = run_example("watermark")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = {
        what.strip(): (float(log10_p), evidence == "True")
        for what, log10_p, evidence in re.findall(
            r"^(.{24}) accuracy .*log10 p +(-?[\d.]+), .*evidence: (\w+)$", done.stdout, re.M
        )
    }
    assert lines["before marking"][0] > -6
    assert lines["... read with other key"][0] > -6
    assert not lines["before marking"][1]
    for what in ("marked", "trained on with the mark", "stolen, fine-tuned", "stolen, half pruned"):
        assert lines[what][1], what


def test_industrial_example_finds_and_repairs_every_damage(run_example, tmp_path):
    done = run_example("industrial_integrity", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("refused:   TamperedModelError") == 5
    assert done.stdout.count("repaired:") == 5
    located = re.findall(r"located:.*\n((?:changed '.*\n)+)", done.stdout)
    assert len(located) == 5
    assert located[0].startswith("changed 'layers/dense/vars/0'")
    before, after = re.findall(r"^accuracy:  ([\d.]+)", done.stdout, re.M)
    assert float(after) > float(before)
    assert "refused:   RolledBackError" in done.stdout
    assert "plaintext in the file: False" in done.stdout
    assert "decrypted weights are the same: True" in done.stdout


def test_wrong_options_of_an_example_are_refused(run_example, tmp_path):
    done = run_example("watermark", "--strenght", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: watermark.py [-h]")
    assert done.stdout == ""


@pytest.mark.parametrize("wrong", ["in the way", "used before"])
def test_folder_that_cannot_be_used_is_refused_in_a_line(run_example, tmp_path, wrong):
    (tmp_path / "owner.pem").write_text("of an earlier run")
    folder = tmp_path / "owner.pem" if wrong == "in the way" else tmp_path
    done = run_example("signing", folder)
    assert done.returncode == 2
    assert re.fullmatch(r"signing\.py: \w+Error: .*owner\.pem.*\n", done.stderr)
    assert (tmp_path / "owner.pem").read_text() == "of an earlier run"


STARTED = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import command_line

def main(folder):
    print(oct(folder.stat().st_mode & 0o777), flush=True)
    raise KeyboardInterrupt

os.umask(0o002)
command_line.run(main)
"""


def test_example_makes_its_folder_and_ends_by_ctrl_c_without_a_traceback(tmp_path):
    folder, examples = tmp_path / "new" / "run", Path(__file__).parents[2] / "examples"
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(examples), str(folder)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0o755\n", "Interrupted.\n", 130)
