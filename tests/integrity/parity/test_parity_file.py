"""The format: golden files read without our code, and every tampered field refused."""

import base64
import contextlib
import hashlib
import itertools
import json
import shutil
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.trust import Trust
from keras_modelsec.errors import SignatureError, UntrustedKeyError
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.integrity.parity.erasure_code import Geometry, choose_geometry
from keras_modelsec.integrity.parity.parity_file import MAGIC, ParityFile
from keras_modelsec.integrity.parity.parity_statement import ParityStatement

GOLDEN = Path(__file__).parents[2] / "golden" / "integrity"
MODELS = ["parity.bin", "parity-folder"]


# golden files


def times(a, b):
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


INVERSE = {a: b for a in range(1, 256) for b in range(1, 256) if times(a, b) == 1}


def read_format(data):
    """Reads a whole parity file by docs/parity-format.md, with nothing of the package."""
    magic = b"\x89modelsec-parity"
    assert data[:16] == magic
    length = int.from_bytes(data[16:24], "little")
    envelope = data[24 : 24 + length]
    statement = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    said = statement["predicate"]
    total = sum(file["size"] for file in said["files"])
    blocks = -(-total // said["block_size"])
    parity = said["parity"] * said["stripes"]
    record = (magic + length.to_bytes(8, "little") + envelope).ljust(said["record_bytes"], b"\0")
    size = (blocks + parity) * 44 + said["signature_bytes"] + said["statement_bytes"]
    padded = -(-size // 4096) * 4096
    lengths = [len(record), padded, len(record), parity * said["block_size"], padded, len(record)]
    ends = list(itertools.accumulate(lengths))
    assert ends[-1] == len(data)
    parts = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    assert parts[0] == parts[2] == parts[5] == record
    assert parts[1] == parts[4]
    return statement, parts[1], size, parts[3]


def entry(block):
    return hashlib.sha256(block).digest() + block[:8] + zlib.adler32(block).to_bytes(4, "little")


def bytes_of(model, files):
    return b"".join((model if f["name"] == "." else model / f["name"]).read_bytes() for f in files)


@pytest.mark.parametrize("name", MODELS)
def test_golden_parity_is_as_the_format_says(name):
    statement, annex, size, parity = read_format((GOLDEN / f"{name}.parity").read_bytes())
    said = statement["predicate"]
    data = bytes_of(GOLDEN / name, said["files"])
    step, stripes, columns = said["block_size"], said["stripes"], said["data"]
    blocks = [data[i : i + step].ljust(step, b"\0") for i in range(0, len(data), step)]
    parity_blocks = [parity[i : i + step] for i in range(0, len(parity), step)]
    entries = b"".join(map(entry, blocks + parity_blocks))
    evidence = b"".join((GOLDEN / f"{name}{suffix}").read_bytes() for suffix in (".sig",))
    assert annex[: len(entries) + len(evidence)] == entries + evidence
    assert annex[size:] == bytes(len(annex) - size)
    pages = b"".join(entry(annex[i : i + 4096]) for i in range(0, len(annex), 4096))
    assert base64.b64decode(said["pages"]) == pages
    zero = bytes(step)
    for row, stripe in itertools.product(range(said["parity"]), range(stripes)):
        for place in (0, 1, 2047, step - 1):
            expected = 0
            for column in range(columns):
                index = column * stripes + stripe
                block = blocks[index] if index < len(blocks) else zero
                expected ^= times(INVERSE[(columns + row) ^ column], block[place])
            assert parity_blocks[row * stripes + stripe][place] == expected


@pytest.mark.parametrize("name", MODELS)
def test_golden_parity_repairs_for_ever(tmp_path, name):
    for path in GOLDEN.glob(f"{name}*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    model = tmp_path / name
    victim = model / "variables" / "data" if model.is_dir() else model
    good = victim.read_bytes()
    victim.write_bytes(b"\0" + good)
    (tmp_path / f"{name}.sig").write_bytes(b"")
    repair(model, GOLDEN / "parity.pub")
    assert victim.read_bytes() == good
    verify(model, GOLDEN / "parity.pub")


def regenerate(scratch: Path) -> None:
    """Writes the golden files anew; only for a deliberate change of format."""
    import random

    from keras_modelsec.trust import generate_keys

    pair = generate_keys(scratch / "parity.pem", GOLDEN / "parity.pub")
    (GOLDEN / "parity.bin").write_bytes(random.Random(1).randbytes(21_001))
    (GOLDEN / "parity-folder" / "variables").mkdir(parents=True)
    for place, size in (("saved_model.pb", 300), ("variables/data", 12_000), ("empty", 0)):
        (GOLDEN / "parity-folder" / place).write_bytes(random.Random(size).randbytes(size))
    for name in MODELS:
        sign(GOLDEN / name, pair.private_path)
        write_parity(GOLDEN / name, pair.private_path, redundancy=0.3)


# tampering


@pytest.fixture
def model(tmp_path, key):
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(256)) * 40)
    sign(path, key)
    write_parity(path, key)
    return path


def trust_of(key):
    return Trust({key.verifying_key.hint: key.verifying_key})


def payload_of(model, key):
    parity = ParityFile(model.with_name("model.bin.parity"), trust_of(key))
    parity.close()
    return json.loads(DsseEnvelope.from_bytes(parity.envelope).payload)


def replace_records(parity, envelope):
    """All three records with another envelope; the rest stays."""
    data = bytearray(parity.read_bytes())
    place = data.find(MAGIC)
    while place >= 0:
        end = place + 4096
        data[place:end] = (MAGIC + len(envelope).to_bytes(8, "little") + envelope).ljust(
            4096, b"\0"
        )
        place = data.find(MAGIC, end)
    parity.write_bytes(data)


def test_every_tampered_field_is_refused(model, key, public, json_tools):
    parity = model.with_name("model.bin.parity")
    whole = parity.read_bytes()
    statement = payload_of(model, key)
    signatures = DsseEnvelope.from_bytes(
        whole[24 : 24 + int.from_bytes(whole[16:24], "little")]
    ).signatures
    model.write_bytes(b"x" + model.read_bytes()[1:])
    damaged = model.read_bytes()
    count = 0
    for path in json_tools.nodes(statement):
        for value in ("other", 7, None, [], {}):
            changed = json_tools.replaced(statement, path, value)
            if changed == statement:
                continue
            forged = DsseEnvelope(
                json.dumps(changed).encode(), "application/vnd.in-toto+json", signatures
            )
            replace_records(parity, forged.to_bytes())
            with pytest.raises(SignatureError, match=r"does not verify|must be"):
                repair(model, public)
            count += 1
    assert count > 100
    assert model.read_bytes() == damaged


def test_every_malformed_field_is_refused_even_when_signed(model, key, json_tools):
    """Whoever can sign can state any digest; what does not make sense is refused all the same."""
    statement = payload_of(model, key)
    ParityStatement.from_bytes(json.dumps(statement).encode())
    sensible = {
        ("version", 3),
        ("version", None),
        ("parity", 3),
        ("signature_bytes", 3),
        ("statement_bytes", 3),
    }
    sensible.add(("name", "other"))  # of a file; the subject's must be the model's
    count = 0
    for path in json_tools.nodes(statement):
        values = [[], {}, -1, 0.5, "\ud800", True, 2**70]
        values += [v for v in (3, "other", None) if (path[-1:] + (v,)) not in sensible]
        bad = [json_tools.replaced(statement, path, value) for value in values]
        if path and isinstance(path[-1], str):
            bad.append(json_tools.deleted(statement, path))
        if isinstance(json_tools.at(statement, path), dict):
            bad.append(json_tools.replaced(statement, (*path, "extra"), 1))
        for changed in bad:
            if changed == statement:
                continue
            with pytest.raises(SignatureError):
                ParityStatement.from_bytes(json.dumps(changed).encode())
            count += 1
    assert count > 200


def test_attackers_record_before_the_owners_changes_nothing(model, key, other_key, public):
    parity = model.with_name("model.bin.parity")
    good = model.read_bytes()
    whole = parity.read_bytes()
    forged = DsseEnvelope.sign(json.dumps(payload_of(model, key)).encode(), [other_key]).to_bytes()
    record = (MAGIC + len(forged).to_bytes(8, "little") + forged).ljust(4096, b"\0")
    parity.write_bytes(record + whole)
    model.write_bytes(b"x" + good[1:])
    repair(model, public)
    assert model.read_bytes() == good
    assert parity.read_bytes() == whole
    replace_records(parity, forged)
    with pytest.raises(UntrustedKeyError):
        repair(model, public)


def test_statement_is_read_out_of_three_damaged_copies(model, key, public):
    parity = model.with_name("model.bin.parity")
    whole = parity.read_bytes()
    data, place = bytearray(whole), -1
    for copy in range(3):
        place = data.index(MAGIC, place + 1)
        data[place + 300 + copy] ^= 0xFF
    parity.write_bytes(data)
    assert repair(model, public).damaged_parity == 3
    assert parity.read_bytes() == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=600)), max_size=8), st.booleans()
)
def test_no_parity_file_makes_it_fail_with_another_error(tmp_path_factory, key, edits, keep):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    path.write_bytes(bytes(range(256)) * 40)
    data = bytearray(write_parity(path, key).parity.read_bytes()) if keep else bytearray()
    for at, value in edits:
        at %= len(data) + 1
        data[at : at + len(value) // 2] = value
    path.with_name("model.bin.parity").write_bytes(data)
    with contextlib.suppress(SignatureError):
        repair(path, key.verifying_key)
    assert path.read_bytes() == bytes(range(256)) * 40


# geometry


@given(st.integers(0, 1 << 44), st.floats(0.001, 1))
def test_chosen_geometry_is_one_that_is_read(total, redundancy):
    geometry = choose_geometry(total, redundancy)
    assert geometry.is_consistent
    assert geometry.blocks <= 16384
    if total:
        assert geometry.parity >= redundancy * geometry.data - 1e-6
        assert geometry.parity <= redundancy * geometry.data + 1


def test_more_than_the_largest_blocks_hold_is_refused():
    with pytest.raises(ValueError, match=r"at most 17592186044416 bytes"):
        choose_geometry((1 << 44) + 1, 0.05)


@pytest.mark.parametrize(
    "numbers",
    [
        (10_000, 4095, 1, 3, 1),
        (10_000, 6144, 1, 2, 1),
        (10_000, 2048, 1, 5, 1),
        (10_000, 1 << 31, 1, 1, 1),
        (10_000, 4096, 1, 2, 1),
        (10_000, 4096, 1, 4, 1),
        (10_000, 4096, 0, 3, 1),
        (10_000, 4096, 1, 3, 0),
        (10_000, 4096, 1, 3, 253),
        (0, 4096, 1, 0, 0),
        (16385 * 4096, 4096, 164, 100, 5),
    ],
)
def test_impossible_geometry_is_found_out(numbers):
    assert not Geometry(*numbers).is_consistent
