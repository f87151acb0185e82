"""How fast files are encrypted and decrypted, against copying them and against the disk alone.

All are measured in the same run, in turns, and all end with an fsync, so that the ratios do not
depend on the machine's mood. `disk_write` writes as many bytes from memory; `copy` reads the file
and writes it again; `encrypt_memory` encrypts without any file.

    python benchmarks/encryption.py --mib 1024 --repeats 5

Prints JSON: medians in seconds and MB/s, and `ratio`, the medians over the rounds of the times of
`disk_write` and `copy` over ours (1.0: as fast as that; the aim is 1,000 MB/s or 1.0). With
`--model`, also a Keras model of that size: `save_encrypted` against `model.save` and an fsync, and
`load_encrypted` against `load_model`.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

import keras_modelsec as ms
from keras_modelsec.integrity.encryption.encrypted_stream import EncryptingWriter
from keras_modelsec.integrity.encryption.key_slots import locks_for

MIB = 1 << 20
KEY = bytes(32)


class Nowhere(io.RawIOBase):
    """A file that takes everything and keeps nothing."""

    def write(self, data: Any) -> int:
        """Takes all of it."""
        return len(data)


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def write_file(path: Path, block: bytes, mib: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    buffer = memoryview(bytearray(MIB))
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(buffer[:count])
        os.fsync(writer.fileno())


def encrypt_memory(block: bytes, mib: int) -> None:
    with EncryptingWriter(Nowhere(), locks_for(KEY)) as writer:
        for _ in range(mib):
            writer.write(block)
        writer.finish()


def file_actions(folder: Path, mib: int) -> dict[str, Callable[[], float]]:
    plain, encrypted, other = folder / "model.bin", folder / "model.bin.enc", folder / "other"
    block = os.urandom(MIB)
    write_file(plain, block, mib)

    def fresh(action: Callable[[], Any]) -> Callable[[], float]:
        """Every action makes a new file; removing and settling the last is no part of its time."""

        def run() -> float:
            other.unlink(missing_ok=True)
            os.sync()
            return timed(action)

        return run

    ms.encrypt_file(plain, KEY, encrypted)
    return {
        "disk_write": fresh(lambda: write_file(other, block, mib)),
        "copy": fresh(lambda: copy_file(plain, other)),
        "encrypt": fresh(lambda: ms.encrypt_file(plain, KEY, other)),
        "decrypt": fresh(lambda: ms.decrypt_file(encrypted, KEY, other)),
        "encrypt_memory": lambda: timed(lambda: encrypt_memory(block, mib)),
    }


def model_actions(folder: Path, mib: int) -> dict[str, Callable[[], float]]:
    import keras
    import numpy as np

    units = 2048
    layers = [keras.layers.Dense(units) for _ in range(max(1, mib * MIB // (4 * units**2)))]
    model = keras.Sequential([keras.Input((units,)), *layers])
    for layer in layers:  # zeros would be written as nothing at all
        layer.kernel.assign(np.random.default_rng(0).normal(size=(units, units)))
    plain, encrypted = folder / "model.keras", folder / "model.keras.enc"

    def save() -> None:
        model.save(plain)
        with open(plain, "rb+") as file:
            os.fsync(file.fileno())

    def timed_on_new(action: Callable[[], Any], path: Path) -> float:
        path.unlink(missing_ok=True)
        return timed(action)

    def save_encrypted() -> None:
        ms.save_encrypted(model, encrypted, KEY)

    return {
        "model_save": lambda: timed_on_new(save, plain),
        "save_encrypted": lambda: timed_on_new(save_encrypted, encrypted),
        "load_model": lambda: timed(lambda: keras.models.load_model(plain)),
        "load_encrypted": lambda: timed(
            lambda: ms.load_encrypted(encrypted, KEY, trusted_keys=ms.trust.ANYBODY)
        ),
    }


def measure(actions: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            times[name].append(action())
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def ratio(times: dict[str, list[float]], base: str, name: str) -> float:
    return round(statistics.median(map(truediv, times[base], times[name])), 3)


def report(times: dict[str, list[float]], mib: int) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{base}_over_{name}": ratio(times, base, name)
        for base, name in (
            ("disk_write", "encrypt"),
            ("disk_write", "decrypt"),
            ("copy", "encrypt"),
            ("copy", "decrypt"),
            ("model_save", "save_encrypted"),
            ("load_model", "load_encrypted"),
        )
        if base in times
    }
    return {
        "mib": mib,
        "repeats": len(next(iter(times.values()))),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "mb_per_second": {name: round(mib * MIB / v / 1e6) for name, v in medians.items()},
        "ratio": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", action="store_true", help="measure a Keras model too")
    parser.add_argument("--folder", help="where to write; default: where temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measure(file_actions(Path(folder), options.mib), options.repeats)
        if options.model:
            times |= measure(model_actions(Path(folder), options.mib), options.repeats)
    print(json.dumps(report(times, options.mib), indent=2))


if __name__ == "__main__":
    main()
