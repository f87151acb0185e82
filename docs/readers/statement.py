"""Reads NAME.modelsec.json and checks the model beside it, by docs/statement-format.md alone.

python docs/readers/statement.py MODEL PUBLIC_KEY...
"""

import base64
import hashlib
import itertools
import sys
from pathlib import Path

from signed import digest, open_envelope, require

LEAF, LEAST_TENSOR = 262_144, 16_384


def read(model, pems, threshold=1):
    """The statement about a file or folder, after every byte of it was checked."""
    model = Path(model)
    envelope = model.with_name(f"{model.name}.modelsec.json").read_bytes()
    statement = open_envelope(envelope, "application/vnd.in-toto+json", pems, threshold)
    kind = "https://keras_modelsec/statement/v1"
    require(statement.get("predicateType") == kind, "not a statement about a model")
    said, files = statement["predicate"], _files(model)
    require(files.keys() == {file["name"] for file in said["files"]}, "a file is added or missing")
    for file in said["files"]:
        content = files[file["name"]].read_bytes()
        tensors = [tensor for tensor in said["tensors"] if tensor["file"] == file["name"]]
        _check_file(file, content, tensors)
    whole = b"".join(
        bytes.fromhex(f["sha256"]) for f in sorted(said["files"], key=lambda f: f["name"])
    )
    require(statement["subject"][0]["digest"]["sha256"] == digest(whole), "not the subject")
    return statement


def _files(model):
    inside = [path for path in model.rglob("*") if path.is_symlink() or not path.is_dir()]
    require(not any(p.is_symlink() for p in [model, *inside]), "a link may lead anywhere")
    return {p.relative_to(model).as_posix(): p for p in inside} if model.is_dir() else {".": model}


def _check_file(file, content, tensors):
    name, size = file["name"], file["size"]
    require(len(content) == size, f"{name}: another length")
    require(digest(content) == file["sha256"], f"{name}: not the signed bytes")
    placed = [t for t in tensors if t["offset"] is not None]
    cuts = {0, size}
    for tensor in placed:
        if tensor["nbytes"] >= LEAST_TENSOR:
            cuts |= {tensor["offset"], tensor["offset"] + tensor["nbytes"]}
    edges = sorted(cuts)
    leaves = b"".join(_leaves(content[a:b]) for a, b in itertools.pairwise(edges))
    require(leaves == base64.b64decode(file["leaves"]), f"{name}: not the signed leaves")
    for tensor in placed:
        data = content[tensor["offset"] : tensor["offset"] + tensor["nbytes"]]
        require(digest(_leaves(data)) == tensor["sha256"], f"{tensor['path']}: not as signed")


def _leaves(data):
    pieces = range(0, len(data), LEAF)
    return b"".join(hashlib.sha256(data[start : start + LEAF]).digest() for start in pieces)


if __name__ == "__main__":
    said = read(sys.argv[1], [Path(key).read_bytes() for key in sys.argv[2:]])["predicate"]
    print(
        f"{said['model']}, version {said['version']}, signed {said['created']}: every byte is there"
    )
