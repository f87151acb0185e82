"""The repair matrix: kind of damage by amount, and the share of trials that were restored.

Prints JSON; with --table a Markdown table. Every trial damages a copy of one protected file at
random places. A trial that is not restored must be refused with the file as it was; anything else
(another error, other bytes) is counted as `wrong` and must be 0.
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import repair, sign, write_parity
from keras_modelsec.trust import SigningKey


def flip(data, amount, rng):
    for _ in range(amount):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def burst(data, share, rng):
    length = int(len(data) * share)
    start = rng.randrange(len(data) - length + 1)
    data[start : start + length] = rng.randbytes(length)


def cut(data, share, rng):
    del data[len(data) - int(len(data) * share) :]


def cut_front(data, share, rng):
    del data[: int(len(data) * share)]


def insert(data, amount, rng):
    for _ in range(amount):
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(1)


def remove(data, amount, rng):
    for _ in range(amount):
        del data[rng.randrange(len(data))]


def insert_range(data, share, rng):
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(int(len(data) * share))


def remove_range(data, share, rng):
    length = int(len(data) * share)
    start = rng.randrange(len(data) - length + 1)
    del data[start : start + length]


def shuffle(data, pieces, rng):
    cuts = sorted(rng.sample(range(1, len(data)), pieces - 1))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    rng.shuffle(parts)
    data[:] = b"".join(parts)


def everything(data, amount, rng):
    for _ in range(amount):
        flip(data, 1, rng)
        insert(data, 1, rng)
        remove(data, 1, rng)
    shuffle(data, amount + 1, rng)


COUNTS = [1, 5, 20, 60, 100, 150, 250]
SHARES = [0.001, 0.01, 0.03, 0.045, 0.055, 0.1]
KINDS = {
    "bits flipped": (flip, COUNTS),
    "single bytes inserted": (insert, COUNTS),
    "single bytes removed": (remove, COUNTS),
    "pieces in another order": (shuffle, [2, 5, 20, 60, 100, 150, 250]),
    "flips, insertions, removals and moves, of each": (everything, [1, 5, 10, 20, 40, 60, 100]),
    "burst, share of the file": (burst, SHARES),
    "end cut off, share": (cut, SHARES),
    "front cut off, share": (cut_front, SHARES),
    "range removed, share": (remove_range, SHARES),
    "range inserted, share": (insert_range, [*SHARES, 1.0]),
    "bits flipped in model and parity file, of each": (flip, COUNTS),
}


def run_trial(path, key, good, kind, amount, rng):
    damage, parity = KINDS[kind][0], path.with_name(path.name + ".parity")
    data = bytearray(good["model"])
    damage(data, amount, rng)
    path.write_bytes(data)
    other = bytearray(good["parity"])
    if "parity" in kind:
        damage(other, amount, rng)
    parity.write_bytes(other)
    try:
        repair(path, key.verifying_key)
    except SignatureError:
        return "refused" if path.read_bytes() == data else "wrong"
    whole = path.read_bytes() == good["model"] and parity.read_bytes() == good["parity"]
    return "restored" if whole else "wrong"


def measure(megabytes, redundancy, trials, seed=0):
    key, rng = SigningKey(ec.generate_private_key(ec.SECP256R1())), random.Random(seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        path.write_bytes(os.urandom(int(megabytes * (1 << 20))))
        sign(path, key)
        parity = write_parity(path, key, redundancy=redundancy).parity
        good = {"model": path.read_bytes(), "parity": parity.read_bytes()}
        for kind, (_, amounts) in KINDS.items():
            for amount in amounts:
                results = [run_trial(path, key, good, kind, amount, rng) for _ in range(trials)]
                rows.append(
                    {
                        "kind": kind,
                        "amount": amount,
                        "restored": results.count("restored") / trials,
                        "wrong": results.count("wrong"),
                    }
                )
    return rows, len(good["parity"]) / len(good["model"])


def table(rows):
    lines = ["| damage | " + "share of trials restored, by amount |", "| --- | --- |"]
    for kind in KINDS:
        cells = [f"{row['amount']:g}: {row['restored']:.0%}" for row in rows if row["kind"] == kind]
        lines.append(f"| {kind} | {', '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=52)
    parser.add_argument("--redundancy", type=float, default=0.05)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="print a table instead of JSON")
    options = parser.parse_args()
    rows, share = measure(options.megabytes, options.redundancy, options.trials)
    if options.table:
        print(table(rows))
        return
    print(
        json.dumps(
            {
                "megabytes": options.megabytes,
                "redundancy": options.redundancy,
                "parity_file_share": round(share, 4),
                "trials": options.trials,
                "wrong": sum(row["wrong"] for row in rows),
                "rows": rows,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
