"""Coverage-guided fuzzing (atheris) of every parser that reads untrusted bytes.

    python -m tests.fuzz                            # all targets, a minute each, two at a time
    python -m tests.fuzz --seconds 300 zip_archive hdf5_file
    python -m tests.fuzz --replay FILE zip_archive  # one input again, e.g. a finding

Owns the runs; targets.py says what is called and which error classes may come of it. Whatever else
comes out is a finding, and so is an input that takes over 20 seconds or 2 GiB; 5 GiB where the HDF5
library reads texts, since it makes room for what a text's length claims, up to 4 GiB, before it
finds that the file has less. Needs the `fuzz` extra.
"""

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import BY_NAME, READ_HDF5, READ_JSON
from tests.torture import damage

ROOT = Path(__file__).parents[2]
SLOWEST_SECONDS = 20
MOST_MEMORY_MB = 2048
MOST_MEMORY_MB_HDF5 = 5120


def mutate_json(data, max_size, seed):
    """Half of the time an edit of one JSON value, else what libFuzzer would do."""
    import atheris

    rng = random.Random(seed)
    if rng.random() < 0.5:
        try:
            value, _ = damage.edit_json(rng, json.loads(data))
            return damage.spell(rng, value)[:max_size]
        except (ValueError, RecursionError):
            pass
    return atheris.Mutate(data, max_size)


def run_here(name, arguments):
    """Fuzzes one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["keras_modelsec"]):
        target, allowed = BY_NAME[name]()

    def test_one_input(data):
        with contextlib.suppress(allowed):
            target(data)

    mutator = {"custom_mutator": mutate_json} if name in READ_JSON else {}
    atheris.Setup([sys.argv[0], *arguments], test_one_input, **mutator)
    atheris.Fuzz()


def run_target(name, seconds, corpus, findings):
    """Fuzzes one target in a process of its own; returns what came of it."""
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(seeds(name)):
        (folder / f"seed-{index}").write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--here", name, "--"]
    command += [
        str(folder),
        f"-max_total_time={seconds}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY_MB_HDF5 if name in READ_HDF5 else MOST_MEMORY_MB}",
        "-malloc_limit_mb=6000",
        f"-artifact_prefix={findings}/{name}-",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "target": name,
        "executions": int(executed[1]) if executed else 0,
        "edges": int(covered[-1]) if covered else 0,
        "inputs kept": sum(1 for _ in folder.iterdir()),
        "seconds": round(time.perf_counter() - start, 1),
        "finding": None if done.returncode == 0 else _shown(done),
    }


def _shown(done):
    """The traceback, which atheris writes to the standard output, and where the input is."""
    ours = ("Traceback", "  File", "    ", "ERROR", "==", "artifact_prefix", "Base64")
    lines = [line for line in done.stderr.splitlines() if line.startswith(ours)]
    return "\n".join([*done.stdout[-3000:].splitlines(), *lines[-25:]])


def report(results):
    lines = [f"{'target':<22}{'executions':>12}{'edges':>8}{'kept':>7}{'seconds':>9}  finding"]
    lines += [
        f"{item['target']:<22}{item['executions']:>12,}{item['edges']:>8}"
        f"{item['inputs kept']:>7}{item['seconds']:>9}  {'YES' if item['finding'] else '-'}"
        for item in results
    ]
    lines += [f"\n== {r['target']}\n{r['finding']}" for r in results if r["finding"]]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(BY_NAME))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default 2)")
    parser.add_argument("--corpus", type=Path, help="keeps the inputs found for the next run")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="an input to run the target on, once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(BY_NAME))
    if unknown:
        parser.error(f"targets are {', '.join(BY_NAME)}; received {', '.join(unknown)}")
    names = options.targets or list(BY_NAME)
    if options.replay:
        for name in names:
            target, allowed = BY_NAME[name]()
            try:
                target(options.replay.read_bytes())
                print(f"{name}: accepted")
            except allowed as error:
                print(f"{name}: {type(error).__name__}: {error}")
        return 0
    options.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        with ThreadPoolExecutor(options.jobs) as pool:
            findings = options.findings.resolve()
            work = [
                pool.submit(run_target, n, options.seconds, corpus.resolve(), findings)
                for n in names
            ]
            results = [item.result() for item in work]
    print(json.dumps(results, indent=1) if options.json else report(results))
    return int(any(item["finding"] for item in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2], sys.argv[4:])
    sys.exit(main())
