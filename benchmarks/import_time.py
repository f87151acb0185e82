"""What `import keras_modelsec` adds to `import keras`, each import in a fresh process, as JSON.

`added_ms` is the time of `import keras_modelsec` after `import keras`. `both_over_keras` compares
whole start-ups, with the package imported after Keras and before it (when it waits for Keras to
come); the variants take turns, so that whatever else the machine does falls on all. Medians.

    python benchmarks/import_time.py [--rounds 7]
"""

import argparse
import json
import statistics
import subprocess
import sys

REACH_MS = 50
VARIANTS = {
    "keras": ["keras"],
    "keras_then_modelsec": ["keras", "keras_modelsec"],
    "modelsec_then_keras": ["keras_modelsec", "keras"],
    "modelsec": ["keras_modelsec"],
}
CHILD = """
import importlib, json, sys, time
seconds = []
for name in sys.argv[1:]:
    start = time.perf_counter()
    importlib.import_module(name)
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


def import_seconds(modules: list[str]) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *modules], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def report(seconds: dict[str, list[list[float]]]) -> dict:
    total = {name: statistics.median(map(sum, runs)) for name, runs in seconds.items()}
    added = statistics.median(last for _, last in seconds["keras_then_modelsec"])
    return {
        "reach_ms": REACH_MS,
        "rounds": len(seconds["keras"]),
        "added_ms": round(1e3 * added, 2),
        "both_over_keras": {
            name: round(total[name] / total["keras"], 3)
            for name in ("keras_then_modelsec", "modelsec_then_keras")
        },
        "ms": {name: round(1e3 * value, 1) for name, value in total.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for turn in range(rounds + 1):
        for name, modules in VARIANTS.items():
            measured = import_seconds(modules)
            if turn:  # the first turn fills the disk cache and writes bytecode
                seconds[name].append(measured)
    print(json.dumps(report(seconds), indent=2))


if __name__ == "__main__":
    main()
