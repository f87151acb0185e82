"""kill -9 at random moments of SignOnSave, protect and repair, counted.

    python -m tests.torture.kills            # 270 kills, some minutes
    python -m tests.torture.kills --sample   # 14

After each kill, what is on the disk must verify (SignOnSave, protect) or be repairable to the
signed bytes (repair); after the next run, nothing may lie about. The same folder is used on and on,
so that each writer begins with what the killed one left.

Beyond the tests: `BEYOND` says it of each kind. They kill `save_signed`, `repair`, `write_parity`
at each step that touches the disk, `save_signed` at thirty random moments, and a fit twice
(test_signed_saving.py, test_repair_crashes.py, test_sign_on_save.py).
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture import material, runner, writer

# Kills by kind: (full, sample). Those with Keras take seconds each: the process must start.
COUNTS = {
    "SignOnSave, .keras, in the background": (28, 2),
    "SignOnSave, .keras": (24, 0),
    "SignOnSave, .weights.h5, in the background": (24, 0),
    "SignOnSave, export folder, in the background": (18, 0),
    "SignOnSave, export folder": (16, 1),
    "protect": (40, 3),
    "repair in place": (40, 3),
    "repair with a move": (40, 3),
    "repair of a folder": (40, 2),
}
BEYOND = {
    "SignOnSave, .keras, in the background": "killed while training goes on, and again and again",
    "SignOnSave, .keras": "training that waits for the save",
    "SignOnSave, .weights.h5, in the background": "weights alone, written another way",
    "SignOnSave, export folder, in the background": "a folder of many files, exported meanwhile",
    "SignOnSave, export folder": "a folder of many files, in the middle of any",
    "protect": "between system calls too, over parity of another size",
    "repair in place": "between system calls too, and damaged anew before each repair",
    "repair with a move": "between system calls too, with a byte inserted anywhere",
    "repair of a folder": "between system calls too, with a file gone or of another length",
}
START_SECONDS = 180
# A save takes some 30 ms, an export a second: each kill falls into one of the first few.
LONGEST_WAIT = {"export": 3.0, "": 0.4}


def kill_once(folder, kind, rng):
    """One writer, killed; returns the seconds it wrote for."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "tests.torture.writer", kind, str(folder)]
    with open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=runner.ROOT,
            env=environment,
        )
        try:
            if process.stdout.readline() != "started\n":
                process.wait(START_SECONDS)
                raise AssertionError((folder / "stderr").read_text()[-2000:])
            wait = rng.uniform(0, LONGEST_WAIT["export" if "export" in kind else ""])
            time.sleep(wait)
            if process.poll() is not None:
                raise AssertionError((folder / "stderr").read_text()[-2000:])
        finally:
            process.kill()
            process.communicate()
    return wait


def check_verifies(folder, kind):
    """The last good model and signature; for some, that the model loads too."""
    from keras_modelsec.integrity import verify

    name = writer.CHECKPOINTS[kind][0] if kind in writer.CHECKPOINTS else "model"
    verify(folder / "live" / name, (folder / "key.pub").read_bytes())
    return name


def check_loads(folder, kind):
    from keras_modelsec.integrity import load_verified_model, verified_copy

    place, public = folder / "live" / writer.CHECKPOINTS[kind][0], folder / "key.pub"
    if place.suffix == ".keras":
        model = load_verified_model(place, public)
        assert model.count_params() == 40 * 1000 + 1000 + 1000 + 1
    elif place.is_dir():
        load_verified_model(place, public, allow=("TFSMLayer",))
    else:
        with verified_copy(place, public) as copy:
            assert copy.stat().st_size > 160_000


def check_no_litter(folder, kind):
    """The next run settles what the killed one left: nothing but model and vouchers is there."""
    from keras_modelsec.integrity import repair, verify, write_parity
    from keras_modelsec.integrity.signing.signed_saving import recover

    live = folder / "live"
    if kind in writer.CHECKPOINTS:
        recover(live)
        name = writer.CHECKPOINTS[kind][0]
        expected = {name, f"{name}.sig", f"{name}.modelsec.json"}
    else:
        if kind == "protect":
            write_parity(live / "model", (folder / "key.pem").read_bytes(), redundancy=0.3)
        repair(live / "model", (folder / "key.pub").read_bytes())
        expected = {"model", "model.sig", "model.modelsec.json", "model.parity"}
        name = "model"
    found = set(os.listdir(live))
    assert found == expected, f"litter: {sorted(found ^ expected)}"
    verify(live / name, folder / "key.pub", signature_path=live / f"{name}.sig")


def check_repaired(folder, kind):
    from keras_modelsec.integrity import repair, verify

    model = folder / "live" / "model"
    repair(model, (folder / "key.pub").read_bytes())
    verify(model, (folder / "key.pub").read_bytes())
    if kind == "repair of a folder":
        found = {path.name: path.read_bytes() for path in model.iterdir()}
        assert found == writer.pieces(), "other bytes than the signed ones"
    else:
        good = random.Random(0).randbytes(writer.PIECE_BYTES)
        assert model.read_bytes() == good, "other bytes than the signed ones"


def run_kind(kind, count, seed, loads):
    """All kills of one kind, one after the other in one folder."""
    rng = random.Random(f"{seed}/{kind}")
    row = {"kind": kind, "kills": 0, "loaded": 0, "failures": []}
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        folder = Path(scratch)
        (folder / "live").mkdir()
        key = material.raw_key(1)
        (folder / "key.pem").write_bytes(material.private_pem(key))
        (folder / "key.pub").write_bytes(material.OWNER.verifying_key.pem)
        if kind in writer.PARITY:
            writer.prepare(folder, kind)
        for number in range(count):
            wait = None
            try:
                wait = kill_once(folder, kind, rng)
                row["kills"] += 1
                if kind in writer.CHECKPOINTS or kind == "protect":
                    check_verifies(folder, kind)
                if kind.startswith("repair"):
                    check_repaired(folder, kind)
                if kind in writer.CHECKPOINTS and (number < loads or number % 8 == 0):
                    check_loads(folder, kind)
                    row["loaded"] += 1
                if number % 3 == 2 or number == count - 1:  # else the next writer finds it
                    check_no_litter(folder, kind)
            except Exception as error:
                text = f"kill {number} after {wait} s: {type(error).__name__}: {error}"
                row["failures"].append(text[:2000])
    return row


def run(sample=False, seed=1, jobs=2, only=None):
    start = time.perf_counter()
    chosen = {
        kind: counts
        for kind, counts in COUNTS.items()
        if counts[sample] and (not only or kind in only)
    }
    with ThreadPoolExecutor(jobs) as pool:
        work = [
            pool.submit(run_kind, kind, counts[sample], seed, 0 if sample else 2)
            for kind, counts in chosen.items()
        ]
        rows = [item.result() for item in work]
    return {
        "seed": seed,
        "kills": sum(row["kills"] for row in rows),
        "failed": sum(len(row["failures"]) for row in rows),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }


def table(report):
    lines = [f"{'killed while writing':<48}{'kills':>6}{'loaded':>8}  failures"]
    lines += [
        f"{row['kind']:<48}{row['kills']:>6}{row['loaded']:>8}  {len(row['failures']) or '-'}"
        for row in report["rows"]
    ]
    lines.append(f"{report['kills']} kills, {report['failed']} failed, {report['seconds']} s")
    lines += [f"FAILED {row['kind']}: {text}" for row in report["rows"] for text in row["failures"]]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=COUNTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(options.sample, options.seed, options.jobs, options.only)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return int(report["failed"] > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
