"""The demo: what it shows is so, a second run works, and wrong options are refused at once."""

import json
import signal
import stat

import keras
import numpy as np
import pytest

import keras_modelsec as ms

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
def test_quickstart_shows_what_each_part_does(run_example, tmp_path):
    output = tmp_path / "output"
    done = run_example("quickstart", "--output", output, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = json.loads((tmp_path / "r.json").read_text())
    assert results == json.loads((output / "results.json").read_text())
    assert set(results) == {"plain", "secured", "tampered"}
    check_models(results["plain"], results["secured"])
    assert results["tampered"]["refused"]
    assert results["tampered"]["error"] == "TamperedModelError"
    check_files(output)
    check_second_run(run_example, output)


def check_models(plain, secured):
    assert plain["clean_accuracy"] > 0.9
    assert secured["clean_accuracy"] > 0.8
    attacks = {"random_noise_linf", "fgsm_linf", "pgd_linf", "pgd_l2"}
    assert set(plain["robust_accuracy"]) == set(secured["robust_accuracy"]) == attacks
    for name in ("fgsm_linf", "pgd_linf"):
        assert secured["robust_accuracy"][name] > plain["robust_accuracy"][name] + 0.1
    assert plain["privacy_epsilon"] is None
    assert 0 < secured["privacy_epsilon"] <= 4.5
    assert secured["privacy_delta"] == 1e-5
    assert "no amplification by sampling is claimed" in secured["privacy_statement"]
    assert secured["watermark_log10_p"] < -30
    for not_marked in (
        plain["watermark_log10_p"],
        plain["watermark_log10_p_wrong_key"],
        secured["watermark_log10_p_wrong_key"],
    ):
        assert -6 < not_marked <= 0
    assert plain["signature"] is None
    assert secured["signature"] == "valid"


def check_files(output):
    assert (output / "quickstart.png").read_bytes().startswith(PNG)
    for run in ("plain", "secured"):
        assert list((output / "logs" / run).glob("events.out.tfevents.*"))
    ms.verify(output / "secured.keras", output / "keys" / "owner.pub")
    with pytest.raises(ms.TamperedModelError):
        ms.verify(output / "tampered" / "secured.keras", output / "keys" / "owner.pub")
    deployed = keras.models.load_model(output / "deployed.keras")
    assert type(deployed).__module__.startswith("keras.")
    key = (output / "keys" / "watermark.key").read_text()
    assert ms.verify_watermark(deployed, key).is_evidence


def check_second_run(run_example, output):
    keys = {path: path.read_bytes() for path in (output / "keys").iterdir()}
    done = run_example("quickstart", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert keys == {path: path.read_bytes() for path in (output / "keys").iterdir()}
    assert len(list((output / "logs" / "secured").glob("events.out.tfevents.*"))) == 1


def mnist_shaped(**changes):
    arrays = {
        "x_train": np.zeros((4, 28, 28), "uint8"),
        "y_train": np.zeros(4, "uint8"),
        "x_test": np.zeros((4, 28, 28), "uint8"),
        "y_test": np.zeros(4, "uint8"),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.zeros((4, 8, 8), "uint8")}, r"shape (4, 8, 8)"),
        ({"x_test": np.zeros((4, 28, 28))}, "type float64"),
        ({"y_train": np.zeros(3, "uint8")}, "shape (3,)"),
        ({"y_train": np.full(4, 10)}, "from 10 to 10"),
        ({"y_train": np.array(["0", "1", "2", "3"])}, "integers of shape"),
        ({"x_train": np.zeros((0, 28, 28), "uint8"), "y_train": np.zeros(0, int)}, "(0, 28, 28)"),
    ],
)
def test_wrong_data_is_refused_before_anything_is_done(run_example, tmp_path, changes, message):
    np.savez(tmp_path / "data.npz", **mnist_shaped(**changes))
    output = tmp_path / "output"
    done = run_example("quickstart", "--data", tmp_path / "data.npz", "--output", output)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "DataError" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


@pytest.mark.parametrize("content", [None, b"no archive", b"", b"PK\x03\x04 cut off"])
def test_data_that_cannot_be_read_is_refused(run_example, tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    done = run_example("quickstart", "--data", path, "--output", tmp_path / "output")
    assert done.returncode == 2
    assert "DataError: The data must be an .npz file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_place_that_cannot_be_written_is_refused(run_example, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    done = run_example("quickstart", option, tmp_path / "file" / "below")
    assert done.returncode == 2
    assert f"{option} must be" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_output_that_others_may_write_to_is_refused_before_training(run_example, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output").chmod(0o777)
    done = run_example("quickstart", "--output", tmp_path / "output")
    assert done.returncode == 2
    assert "must be closed to others' writing" in done.stderr
    assert "chmod" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Training" not in done.stdout


@pytest.mark.slow
def test_half_a_key_pair_is_refused_and_kept(run_example, tmp_path):
    keys = tmp_path / "output" / "keys"
    keys.mkdir(parents=True)
    (keys / "owner.pem").write_text("somebody's key")
    done = run_example("quickstart", "--output", tmp_path / "output")
    assert done.returncode == 2
    assert "FileExistsError" in done.stderr
    assert "Traceback" not in done.stderr
    assert (keys / "owner.pem").read_text() == "somebody's key"


@pytest.mark.slow
def test_interrupted_run_ends_without_a_traceback_and_leaves_a_signed_model(
    start_example, tmp_path
):
    output = tmp_path / "output"
    signature = output / "secured.keras.sig"
    # With 002, usual on some systems, a group might write to what is made; it is closed to others.
    with start_example("quickstart", "--output", output, umask=0o002) as process:
        for _ in process.stdout:  # a line for each epoch, at the latest
            if signature.exists():
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=1800)
    assert signature.exists(), out
    assert process.returncode in (-signal.SIGINT, 130)
    assert err.strip() == "Interrupted. A model that was signed before is still whole and verifies."
    ms.verify(output / "secured.keras", output / "keys" / "owner.pub")
    assert not [path for path in output.iterdir() if path.name.startswith((".", "tmp"))]
    assert stat.S_IMODE(output.stat().st_mode) == 0o755
