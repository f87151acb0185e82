"""Restores a model that was damaged in place from NAME.parity, by docs/parity-format.md alone.

    python docs/readers/parity.py MODEL OUTPUT_FOLDER PUBLIC_KEY...

It wants the first record and annex whole, and looks for no blocks that moved.
"""

import base64
import hashlib
import io
import math
import sys
import zlib
from pathlib import Path

from galois import LOG, add, cauchy_undone
from signed import digest, open_envelope, require

PAGE, ENTRY = 4096, 44


def restore(contents, parity, pems):
    """The signed bytes of each file by name, from what is left of them and the parity file."""
    envelope = parity[24 : 24 + int.from_bytes(parity[16:24], "little")]
    statement = open_envelope(envelope, "application/vnd.in-toto+json", pems)
    kind = "https://keras_modelsec/parity/v1"
    require(statement.get("predicateType") == kind, "not about parity")
    said, files = statement["predicate"], statement["predicate"]["files"]
    at, step, stripes, data = (said[n] for n in ("record_bytes", "block_size", "stripes", "data"))
    stream = b"".join(contents.get(f["name"], b"")[: f["size"]].ljust(f["size"]) for f in files)
    blocks = [stream[i : i + step].ljust(step, b"\0") for i in range(0, len(stream), step)]
    count, extra = len(blocks), said["parity"] * stripes
    size = (count + extra) * ENTRY + said["signature_bytes"] + said["statement_bytes"]
    annex = parity[at : at + math.ceil(size / PAGE) * PAGE]
    pages = b"".join(_entry(annex[i : i + PAGE]) for i in range(0, len(annex), PAGE))
    require(pages == base64.b64decode(said["pages"]), "the annex was altered")
    start = 2 * at + len(annex)
    blocks += [parity[start + i * step :][:step] for i in range(extra)]
    good = [_entry(block) == annex[i * ENTRY :][:ENTRY] for i, block in enumerate(blocks)]
    for s in range(stripes):
        column = {j: j * stripes + s for j in range(data) if j * stripes + s < count}
        lost = [j for j, block in column.items() if not good[block]]
        rows = [p for p in range(said["parity"]) if good[count + p * stripes + s]][: len(lost)]
        require(len(rows) == len(lost), "more is lost than the parity can give back")
        xs, sums = [data + p for p in rows], [blocks[count + p * stripes + s] for p in rows]
        for j in column.keys() - set(lost):
            known = blocks[column[j]]
            sums = [add(total, known, -LOG[x ^ j]) for x, total in zip(xs, sums, strict=True)]
        for j in lost:
            block = bytes(step)
            for x, total in zip(xs, sums, strict=True):
                block = add(block, total, cauchy_undone(xs, lost, x, j))
            blocks[column[j]] = block
    stream = io.BytesIO(b"".join(blocks[:count]))
    back = {file["name"]: stream.read(file["size"]) for file in files}
    require(all(digest(back[f["name"]]) == f["sha256"] for f in files), "not the signed bytes")
    return back


def _entry(data):
    return hashlib.sha256(data).digest() + data[:8] + zlib.adler32(data).to_bytes(4, "little")


if __name__ == "__main__":
    model, output, *keys = (Path(argument) for argument in sys.argv[1:])
    inside = {p.relative_to(model).as_posix(): p for p in model.rglob("*") if p.is_file()}
    contents = {name: p.read_bytes() for name, p in (inside or {".": model}).items()}
    parity = model.with_name(f"{model.name}.parity").read_bytes()
    for name, data in restore(contents, parity, [key.read_bytes() for key in keys]).items():
        place = output / (model.name if name == "." else name)
        require(output.resolve() in place.resolve().parents, "a name that leads outside")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
