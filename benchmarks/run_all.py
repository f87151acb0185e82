"""Runs every benchmark of this folder, one after the other, and prints one JSON document.

Each is a script that prints JSON when run without arguments; it stands here under its file's name,
beside what it ran on. Say on which machine, since only ratios travel.

    python benchmarks/run_all.py [NAME ...] [--json PATH]
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path != pathlib.Path(__file__))
LIBRARIES = ("keras", "tensorflow", "numpy", "cryptography", "dp-accounting")


def processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def run(name: str) -> Any:
    """What a benchmark printed, or what went wrong under the key "error"."""
    script = str(FOLDER / f"{name}.py")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.0f} s, exit code {done.returncode}", file=sys.stderr)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:], "exit_code": done.returncode}
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        return {"error": f"no JSON: {error}"}
    return result[name] if list(result) == [name] else result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--json", type=pathlib.Path, help="also write the document here")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {' '.join(sorted(unknown))}; there are: {' '.join(NAMES)}")
    results = {name: run(name) for name in arguments.names or NAMES}
    text = json.dumps({"environment": environment(), **results}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if any("error" in result for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
