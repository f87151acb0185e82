"""When parity may be made, and what it comes with."""

import dataclasses
import os

import pytest

from keras_modelsec._signing.trust import load_trust
from keras_modelsec.errors import (
    RolledBackError,
    SignatureError,
    TamperedModelError,
    UntrustedKeyError,
)
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.integrity.parity.erasure_code import Geometry
from keras_modelsec.integrity.parity.parity_file import ParityFile, header_digest
from keras_modelsec.integrity.statements.model_statement import read_statement, statement_path_of
from keras_modelsec.trust import TrustStore, generate_keys, load_signing_key

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
            write_parity(model, key)
        assert not model.with_name("model.bin.parity").exists()
        if kept == ".sig":
            model.with_name("model.bin.modelsec.json").unlink()
        elif kept == ".modelsec.json":
            sign(model, key, version=2)
            model.write_bytes(GOOD)
            model.with_name("model.bin.sig").unlink()
    assert sorted(os.listdir(model.parent)) == ["model.bin", "model.bin.modelsec.json"]


def test_malformed_signature_is_refused(model, key):
    model.with_name("model.bin.sig").write_bytes(b"{}")
    with pytest.raises(SignatureError):
        write_parity(model, key)


def test_unsigned_model_can_be_protected(tmp_path, key, public):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    assert write_parity(path, key).parity == tmp_path / "model.bin.parity"
    path.write_bytes(b"x" + GOOD)
    repair(path, public)
    assert path.read_bytes() == GOOD


@pytest.mark.parametrize("kept", ["both", ".sig", ".modelsec.json"])
def test_what_a_stranger_signed_is_protected_for_who_trusts_him(model, other_key, public, kept):
    for ending in (".sig", ".modelsec.json"):
        if kept not in ("both", ending):
            model.with_name(f"model.bin{ending}").unlink()
    with pytest.raises(UntrustedKeyError, match="which others signed"):
        write_parity(model, other_key)
    with pytest.raises(UntrustedKeyError, match="which others signed"):
        write_parity(model, other_key, trusted_keys=other_key.verifying_key)
    assert not model.with_name("model.bin.parity").exists()
    write_parity(model, other_key, trusted_keys=[public])
    model.write_bytes(b"x" + GOOD)
    repair(model, [public, other_key.verifying_key])
    assert model.read_bytes() == GOOD


def test_parity_of_a_mixture_of_two_signers_is_refused(model, key, other_key):
    statement = statement_path_of(model)
    own = statement.read_bytes()
    sign(model, other_key, version=1, name="model.bin")  # both files are now the other's
    statement.write_bytes(own)
    with pytest.raises(UntrustedKeyError, match="which others signed"):
        write_parity(model, key)


def test_model_that_the_trust_store_refuses_is_not_protected(model, key, public):
    store = TrustStore()
    store.add(public)
    write_parity(model, key, trusted_keys=store)
    store.set_lowest_version("model.bin", 2)
    with pytest.raises(RolledBackError):
        write_parity(model, key, trusted_keys=store)


def test_unsigned_model_is_refused_where_a_signer_is_asked_for(tmp_path, key, public):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    with pytest.raises(SignatureError, match="must come with its signature"):
        write_parity(path, key, trusted_keys=public)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("redundancy", [0.01, 0.05, 1])
@pytest.mark.parametrize("at", [0, 1, 4095, 12_345, "end"])
def test_as_long_a_burst_as_the_report_says_is_restored(tmp_path, key, public, redundancy, at):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD * 2)
    sign(path, key, name="m", version=3)
    report = write_parity(path, key, redundancy=redundancy)
    assert (report.name, report.version, report.path) == ("m", 3, path)
    assert report.signers == (public.hint,)
    assert report.rests_on == (f"key {public.hint[:16]}...",)
    assert report.size == report.parity.stat().st_size
    assert f"Any {report.longest_burst} bytes" in str(report)
    assert 600_000 >= report.longest_burst > 600_000 * redundancy * 0.8 - 4096
    last = 600_000 - report.longest_burst
    begin = last if at == "end" else min(at, last)
    burst = bytes(b ^ 0xFF for b in (GOOD * 2)[begin : begin + report.longest_burst])
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(burst)
    repair(path, public)
    assert path.read_bytes() == GOOD * 2


def test_report_says_where_parity_rests_on_its_own_signer_alone(tmp_path, key, public):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    report = write_parity(path, key)
    assert report.rests_on == ()
    assert (report.name, report.version) == ("model.bin", None)
    assert "not signed itself" in str(report)


def test_statement_names_the_parity_and_keeps_all_else(model, key, public):
    trust = load_trust(public)
    before = read_statement(statement_path_of(model), trust)
    parity = write_parity(model, key).parity
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
    write_parity(model, key)
    assert statement_path_of(model).read_bytes() == before
    model.write_bytes(b"x" + GOOD)
    repair(model, public)
    verify(model, public)


def test_threshold_of_two_keys_is_asked_of_parity_too(model, key, other_key):
    two = TrustStore(threshold=2)
    two.add(key.verifying_key)
    two.add(other_key.verifying_key)
    write_parity(model, key)
    parity = model.with_name("model.bin.parity")
    with pytest.raises(SignatureError, match="signed by 2 of the trusted keys"):
        ParityFile(parity, load_trust(two))
    write_parity(model, key, co_signing_keys=[other_key])
    ParityFile(parity, load_trust(two)).close()


@pytest.mark.parametrize("algorithm", ["p521", "ed25519", "ml-dsa-65"])
def test_every_kind_of_key_protects(tmp_path, algorithm):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    pair = generate_keys(tmp_path / "k.pem", tmp_path / "k.pub", algorithm=algorithm)
    key = load_signing_key(pair.private_path)
    sign(path, key)
    write_parity(path, key)
    path.write_bytes(GOOD[:-1])
    repair(path, pair.public_path)
    verify(path, pair.public_path)


@pytest.mark.parametrize("redundancy", [0, -0.1, 1.01, float("nan"), "5 %", True])
def test_impossible_redundancy_is_refused(model, key, redundancy):
    with pytest.raises((ValueError, TypeError), match="`redundancy` must be"):
        write_parity(model, key, redundancy=redundancy)


@pytest.mark.parametrize(("redundancy", "parity"), [(0.001, 1), (0.05, 4), (0.5, 37), (1, 74)])
def test_redundancy_is_the_share_of_parity(model, key, public, redundancy, parity):
    file = ParityFile(write_parity(model, key, redundancy=redundancy).parity, load_trust(public))
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
            write_parity(tmp_path / path, key, parity_path=tmp_path / target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least one file"):
        write_parity(tmp_path / "empty", key)


def test_full_disk_keeps_the_older_parity(model, key, public):
    resource = pytest.importorskip("resource")
    parity = write_parity(model, key).parity
    before = parity.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_parity(model, key, redundancy=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert parity.read_bytes() == before
    assert len(os.listdir(model.parent)) == 4


def test_model_that_changes_meanwhile_is_refused(model, key):
    def meddle(done, total):
        with open(model, "r+b") as file:
            file.write(b"changed")

    with pytest.raises(SignatureError):
        write_parity(model, key, progress=meddle)
    assert not model.with_name("model.bin.parity").exists()


def test_progress_reaches_the_end(model, key):
    seen = []
    write_parity(model, key, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300_000, 300_000)


def test_no_parity_is_made_that_repair_would_refuse(tmp_path, key):
    model = tmp_path / os.fsdecode(b"mod\xff.bin")
    try:
        model.write_bytes(b"bytes" * 1000)
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    with pytest.raises(ValueError, match="must be valid Unicode"):
        write_parity(model, key)
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("junk", [False, True])
def test_signature_that_no_key_could_have_made_is_not_put_under_the_signers_name(
    tmp_path, other_key, junk
):
    """Beside an Ed25519 statement anybody may put a `.sig`, which `verify` does not look at."""
    pair = generate_keys(tmp_path / "k.pem", tmp_path / "k.pub", algorithm="ed25519")
    path, strange = tmp_path / "model.bin", tmp_path / "copy.bin"
    for place, signer in ((path, pair.private_path), (strange, other_key)):
        place.write_bytes(GOOD)
        sign(place, signer)
    theirs = b"x" * 2000 if junk else strange.with_name("copy.bin.sig").read_bytes()
    signature = path.with_name("model.bin.sig")
    signature.write_bytes(theirs)
    verify(path, pair.public_path)
    write_parity(path, pair.private_path)
    assert theirs not in path.with_name("model.bin.parity").read_bytes()
    signature.unlink()
    statement_path_of(path).unlink()
    path.write_bytes(GOOD[:1000] + b"damage" + GOOD[1006:])
    repair(path, pair.public_path)
    assert path.read_bytes() == GOOD
    assert not signature.exists()
    verify(path, pair.public_path)
