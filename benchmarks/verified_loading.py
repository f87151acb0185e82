"""What `ms.load_verified_model` costs beside `keras.models.load_model` and one pass of SHA-256.

All in the same run, in turns. The model is one Dense layer of the size asked for.

    python benchmarks/verified_loading.py --mib 1024 --repeats 5

Prints JSON: median seconds, and `ratio`, the median over the rounds of verified loading over the
sum of plain loading and one-stream hashlib SHA-256 of the same file (the aim is at most 0.8).
"""

import argparse
import gc
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_modelsec as ms

UNITS = 4096


def timed(action: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def save_model(path: Path, mib: int) -> None:
    rows = mib * (1 << 20) // (4 * UNITS)
    model = keras.Sequential([keras.Input((rows,)), keras.layers.Dense(UNITS)])
    model.save(path)


def hash_file(path: Path) -> None:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")


def measure(path: Path, public: Path, repeats: int) -> dict[str, list[float]]:
    actions = {
        "load_model": lambda: keras.models.load_model(path, compile=False),
        "sha256": lambda: hash_file(path),
        "load_verified_model": lambda: ms.load_verified_model(path, public, compile=False),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            times[name].append(timed(action))
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        save_model(path, options.mib)
        keys = ms.generate_keys(Path(folder, "owner.pem"))
        ms.sign(path, keys.private_path)
        times = measure(path, keys.public_path, options.repeats)
    rounds = zip(times["load_verified_model"], times["load_model"], times["sha256"], strict=True)
    report = {
        "mib": options.mib,
        "repeats": options.repeats,
        "seconds": {name: round(statistics.median(v), 3) for name, v in times.items()},
        "ratio": round(statistics.median(ours / (load + sha) for ours, load, sha in rounds), 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
