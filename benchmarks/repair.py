"""How fast parity is made and damage repaired, beside one SHA-256 pass over the same bytes.

Prints JSON. Scenarios: five bad blocks in every stripe (all parity is used, in one burst), one bit,
and one byte inserted at the front (everything is shifted; the file is written anew and synced, so
the disk's own speed, which is printed too, is the limit). Medians of the runs.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec._signing.keys import SigningKey
from keras_modelsec.integrity.parity.protecting import write_parity
from keras_modelsec.integrity.parity.repairing import repair

_PIECE = 16 << 20


def write_random(path, size):
    with open(path, "wb") as file:
        for start in range(0, size, _PIECE):
            file.write(os.urandom(min(_PIECE, size - start)))
        file.flush()
        os.fsync(file.fileno())


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def hash_once(path):
    with open(path, "rb", buffering=0) as file:
        hashlib.file_digest(file, "sha256")


def write_and_sync(path, size):
    data = bytes(_PIECE)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // _PIECE):
            file.write(data)
        os.fsync(file.fileno())
    path.unlink()


def overwrite(path, start, length):
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(os.urandom(length))


def insert_at_front(path):
    shifted = path.with_name("shifted")
    with open(path, "rb") as source, open(shifted, "wb") as target:
        target.write(b"!")
        while piece := source.read(_PIECE):
            target.write(piece)
    os.replace(shifted, path)


def run(path, key, size, redundancy):
    public = key.verifying_key
    seconds = {"sha256": timed(lambda: hash_once(path))[0]}
    seconds["protect"], parity = timed(lambda: write_parity(path, key, redundancy=redundancy))
    seconds["nothing_damaged"] = timed(lambda: repair(path, public))[0]
    overwrite(path, size // 3, int(size * redundancy * 0.99))
    seconds["burst_of_all_parity"], report = timed(lambda: repair(path, public))
    overwrite(path, size // 2, 1)
    seconds["one_byte"] = timed(lambda: repair(path, public))[0]
    insert_at_front(path)
    seconds["one_byte_inserted"] = timed(lambda: repair(path, public))[0]
    seconds["write_and_sync_alone"] = timed(lambda: write_and_sync(path.with_name("x"), size))[0]
    return seconds, parity.stat().st_size, report.decoded_blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--redundancy", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size = options.megabytes << 20
    key = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "model.bin"
        write_random(path, size)
        runs = [run(path, key, size, options.redundancy) for _ in range(options.repeats)]
    medians = {name: statistics.median(item[0][name] for item in runs) for name in runs[0][0]}
    print(
        json.dumps(
            {
                "bytes": size,
                "redundancy": options.redundancy,
                "parity_file_share": round(runs[0][1] / size, 4),
                "decoded_blocks": runs[0][2],
                "megabytes_per_second": {n: round(size / t / 1e6) for n, t in medians.items()},
                "seconds": {n: round(t, 3) for n, t in medians.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
