"""Statements kept as they were written: they must verify for ever, under each kind of key.

Made once by `regenerate` below with throw-away keys. The envelopes are taken apart by hand here,
with nothing of the package but its keys, so that code and description cannot change together
unseen.
"""

import base64
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_modelsec._signing.key_files import load_trusted_keys
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.trust import generate_keys

GOLDEN = Path(__file__).parents[2] / "golden" / "integrity" / "statement"
KINDS = ["p256", "ed25519", "ml-dsa-65"]
CO_SIGNED = "p256"  # and by the other two
NAMES = [f"{kind}.weights.h5" for kind in KINDS]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "golden")


@pytest.mark.parametrize("kind", KINDS)
def test_golden_statement_verifies_and_an_edited_byte_does_not(folder, kind):
    model = folder / f"{kind}.weights.h5"
    verify(model, folder / f"{kind}.pub")
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(SignatureError, match="is not what was signed"):
        verify(model, folder / f"{kind}.pub")


@pytest.mark.parametrize("kind", KINDS)
def test_statement_is_what_the_description_says(kind):
    model = (GOLDEN / f"{kind}.weights.h5").read_bytes()
    envelope = json.loads((GOLDEN / f"{kind}.weights.h5.modelsec.json").read_bytes())
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    signers = KINDS if kind == CO_SIGNED else [kind]
    for signer, signature in zip(signers, envelope["signatures"], strict=True):
        pem = (GOLDEN / f"{signer}.pub").read_bytes()
        assert signature["keyid"] == hashlib.sha256(pem).hexdigest()
        (key,) = load_trusted_keys(pem).values()
        key.check(base64.b64decode(signature["sig"]), signed)
    predicate = json.loads(payload)["predicate"]
    (record,) = predicate["files"]
    assert record["size"] == len(model)
    assert record["sha256"] == hashlib.sha256(model).hexdigest()
    cuts = {0, len(model)}
    for tensor in predicate["tensors"]:
        start, end = tensor["offset"], tensor["offset"] + tensor["nbytes"]
        if tensor["nbytes"] >= 16384:
            cuts |= {start, end}
        leaves = [
            hashlib.sha256(model[i : min(i + 262144, end)]).digest()
            for i in range(start, end, 262144)
        ]
        assert tensor["sha256"] == hashlib.sha256(b"".join(leaves)).hexdigest()
    edges = sorted(cuts)
    leaves = [
        hashlib.sha256(model[i : min(i + 262144, end)]).digest()
        for start, end in itertools.pairwise(edges)
        for i in range(start, end, 262144)
    ]
    assert base64.b64decode(record["leaves"]) == b"".join(leaves)
    assert len(leaves) > 3


def regenerate(scratch: Path) -> None:
    """Writes the golden files anew; only for a deliberate change of format."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    keys = {}
    for kind in KINDS:
        pair = generate_keys(scratch / f"{kind}.pem", GOLDEN / f"{kind}.pub", algorithm=kind)
        keys[kind] = pair.private_path
    for kind in KINDS:
        path = GOLDEN / f"{kind}.weights.h5"
        with h5py.File(path, "w") as file:
            small = np.arange(10, dtype="float32")
            file["layers/dense/vars/0"] = np.zeros((70_000,), "float32")
            file["layers/dense/vars/1"] = small
        others = [keys[other] for other in KINDS if other != kind] if kind == CO_SIGNED else []
        sign(path, keys[kind], co_signing_keys=others, name="golden", version=3)
