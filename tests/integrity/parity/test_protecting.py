"""When parity may be made, and what it comes with."""

import dataclasses
import os

import pytest

from keras_modelsec.integrity import (
    SignatureError,
    TamperedModelError,
    TrustStore,
    generate_keys,
    load_signing_key,
    protect,
    repair,
    sign,
    verify,
)
from keras_modelsec.integrity.keys.trust import load_trust
from keras_modelsec.integrity.parity.parity_file import ParityFile, header_digest
from keras_modelsec.integrity.parity.parity_geometry import Geometry
from keras_modelsec.integrity.signatures.model_statement import read_statement, statement_path_of

GOOD = os.urandom(300_000)


@pytest.fixture
def model(tmp_path, key):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    sign(path, key)
    return path


def test_damaged_model_is_not_protected(model, key):
    model.write_bytes(b"x" + GOOD[1:])
    for kept in (".sig", ".modelsec.json", ""):
        with pytest.raises(TamperedModelError, match="is not what was signed"):
            protect(model, key)
        assert not model.with_name("model.bin.parity").exists()
        if kept == ".sig":
            model.with_name("model.bin.modelsec.json").unlink()
        elif kept == ".modelsec.json":
            sign(model, key)
            model.write_bytes(GOOD)
            model.with_name("model.bin.sig").unlink()
    assert sorted(os.listdir(model.parent)) == ["model.bin", "model.bin.modelsec.json"]


def test_malformed_signature_is_refused(model, key):
    model.with_name("model.bin.sig").write_bytes(b"{}")
    with pytest.raises(SignatureError):
        protect(model, key)


def test_unsigned_model_can_be_protected(tmp_path, key, public):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    assert protect(path, key) == tmp_path / "model.bin.parity"
    path.write_bytes(b"x" + GOOD)
    repair(path, public)
    assert path.read_bytes() == GOOD


def test_statement_names_the_parity_and_keeps_all_else(model, key, public):
    trust = load_trust(public)
    before = read_statement(statement_path_of(model), trust)
    parity = protect(model, key)
    after = read_statement(statement_path_of(model), trust)
    (named,) = after.parity
    assert (named.name, named.size) == ("model.bin.parity", parity.stat().st_size)
    file = ParityFile(parity, trust)
    file.close()
    assert named.sha256 == header_digest(file.envelope)
    assert dataclasses.replace(after, parity=()) == before
    verify(model, public)


def test_statement_by_other_signers_is_kept_as_it_is(model, key, public, other_key):
    sign(model, key, co_signing_keys=[other_key])
    before = statement_path_of(model).read_bytes()
    protect(model, key)
    assert statement_path_of(model).read_bytes() == before
    model.write_bytes(b"x" + GOOD)
    repair(model, public)
    verify(model, public)


def test_threshold_of_two_keys_is_asked_of_parity_too(model, key, other_key):
    two = TrustStore(threshold=2)
    two.add(key.verifying_key)
    two.add(other_key.verifying_key)
    protect(model, key)
    parity = model.with_name("model.bin.parity")
    with pytest.raises(SignatureError, match="signed by 2 of the trusted keys"):
        ParityFile(parity, load_trust(two))
    protect(model, key, co_signing_keys=[other_key])
    ParityFile(parity, load_trust(two)).close()


@pytest.mark.parametrize("algorithm", ["p521", "ed25519", "ml-dsa-65"])
def test_every_kind_of_key_protects(tmp_path, algorithm):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    pair = generate_keys(tmp_path / "k.pem", tmp_path / "k.pub", algorithm=algorithm)
    key = load_signing_key(pair.private_path)
    sign(path, key)
    protect(path, key)
    path.write_bytes(GOOD[:-1])
    repair(path, pair.public_path)
    verify(path, pair.public_path)


@pytest.mark.parametrize("redundancy", [0, -0.1, 1.01, float("nan"), "5 %", True])
def test_impossible_redundancy_is_refused(model, key, redundancy):
    with pytest.raises((ValueError, TypeError), match="`redundancy` must be"):
        protect(model, key, redundancy=redundancy)


@pytest.mark.parametrize(("redundancy", "parity"), [(0.001, 1), (0.05, 4), (0.5, 37), (1, 74)])
def test_redundancy_is_the_share_of_parity(model, key, public, redundancy, parity):
    file = ParityFile(protect(model, key, redundancy=redundancy), load_trust(public))
    file.close()
    assert file.statement.geometry == Geometry(300_000, 4096, 1, 74, parity)


def test_parity_inside_the_model_or_over_its_files_is_refused(tmp_path, model, key):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"a")
    for path, target in (
        ("folder", "folder/parity"),
        ("model.bin", "model.bin"),
        ("model.bin", "model.bin.sig"),
        ("model.bin", "model.bin.modelsec.json"),
    ):
        with pytest.raises(ValueError, match="`parity_path` must lie outside"):
            protect(tmp_path / path, key, parity_path=tmp_path / target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least one file"):
        protect(tmp_path / "empty", key)


def test_full_disk_keeps_the_older_parity(model, key, public):
    resource = pytest.importorskip("resource")
    parity = protect(model, key)
    before = parity.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            protect(model, key, redundancy=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert parity.read_bytes() == before
    assert len(os.listdir(model.parent)) == 4


def test_model_that_changes_meanwhile_is_refused(model, key):
    def meddle(done, total):
        with open(model, "r+b") as file:
            file.write(b"changed")

    with pytest.raises(SignatureError):
        protect(model, key, progress=meddle)
    assert not model.with_name("model.bin.parity").exists()


def test_progress_reaches_the_end(model, key):
    seen = []
    protect(model, key, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300_000, 300_000)


def test_no_parity_is_made_that_repair_would_refuse(tmp_path, key):
    model = tmp_path / os.fsdecode(b"mod\xff.bin")
    try:
        model.write_bytes(b"bytes" * 1000)
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    with pytest.raises(ValueError, match="must be valid Unicode"):
        protect(model, key)
    assert list(tmp_path.iterdir()) == [model]
