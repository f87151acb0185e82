"""How fast `ms.sign` and `ms.verify` are, against one-stream SHA-256 and model_signing's own API.

All are measured in the same run, in turns, so that the ratios do not depend on the machine's mood.
`hashlib_memory` hashes bytes in memory, which is the fastest one stream can be; `hashlib_file`
reads the file. `two_streams` hashes two halves in memory at once: what two cores can do. Signing
makes two digests of every byte, of which the OpenSSF format's is serial: 1.0 is its limit.

    python benchmarks/signing.py --mib 1024 --repeats 7

Prints JSON: medians in seconds, MB/s, and `ratio`, the median over the rounds of hashlib_memory's
time over ours (1.0: as fast; the aim is at least 1.7).
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

from model_signing import signing, verifying

import keras_modelsec as ms

MIB = 1 << 20


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def write_random_file(path: Path, mib: int) -> None:
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def read_and_hash(path: Path) -> None:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")


def two_streams(data: bytes) -> None:
    view, half = memoryview(data), len(data) // 2
    threads = [
        threading.Thread(target=hashlib.sha256, args=(part,)) for part in (view[:half], view[half:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def theirs(path: Path, private: Path, public: Path) -> dict[str, Callable[[], Any]]:
    """model_signing's API at its defaults, which are SHA-256 too."""
    signer = signing.Config().use_elliptic_key_signer(private_key=private)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    place = path.with_name("theirs.sig")
    return {
        "model_signing_sign": lambda: signer.sign(path, place),
        "model_signing_verify": lambda: verifier.verify(path, place),
    }


def measure(path: Path, private: Path, public: Path, repeats: int) -> dict[str, list[float]]:
    data = path.read_bytes()
    actions = {
        "hashlib_memory": lambda: hashlib.sha256(data),
        "sign": lambda: ms.sign(path, private),
        "verify": lambda: ms.verify(path, public),
        "hashlib_file": lambda: read_and_hash(path),
        "two_streams": lambda: two_streams(data),
        **theirs(path, private, public),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            times[name].append(timed(action))
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def report(times: dict[str, list[float]], mib: int) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "mib": mib,
        "repeats": len(times["sign"]),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "mb_per_second": {name: round(mib * MIB / v / 1e6) for name, v in medians.items()},
        "ratio": {
            name: round(statistics.median(map(truediv, times["hashlib_memory"], times[name])), 3)
            for name in times
            if name != "hashlib_memory"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.bin")
        write_random_file(path, options.mib)
        keys = ms.generate_keys(Path(folder, "owner.pem"))
        times = measure(path, keys.private_path, keys.public_path, options.repeats)
    print(json.dumps(report(times, options.mib), indent=2))


if __name__ == "__main__":
    main()
