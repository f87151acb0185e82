import json
import os
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from keras_modelsec.errors import (
    KeyFormatError,
    RolledBackError,
    SignatureError,
    TamperedModelError,
    UnsafePathError,
    UntrustedKeyError,
)
from keras_modelsec.integrity import (
    locate_tampering,
    repair,
    sign,
    verified_copy,
    verify,
    write_parity,
)
from keras_modelsec.trust import SigningKey, TrustStore

POSIX = pytest.mark.skipif(os.name != "posix", reason="links and FIFOs")


def test_edited_byte_fails_verification_and_is_named(signed_file, public):
    data = bytearray(signed_file.path.read_bytes())
    data[100] ^= 1
    signed_file.path.write_bytes(data)
    with pytest.raises(
        TamperedModelError, match=r"model\.bin.*Changed: the file .*expected.*actual"
    ) as e:
        verify(signed_file.path, public)
    (changed,) = e.value.changed
    assert changed.name == "."
    assert changed.expected != changed.actual
    assert changed.expected in str(e.value)
    assert changed.actual in str(e.value)


@pytest.mark.parametrize("size", [0, 1, 1023])
def test_truncated_file_fails_verification(signed_file, public, size):
    os.truncate(signed_file.path, size)
    with pytest.raises(TamperedModelError):
        verify(signed_file.path, public)


def test_appended_bytes_fail_verification(signed_file, public):
    with open(signed_file.path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(TamperedModelError):
        verify(signed_file.path, public)


def test_every_difference_of_a_folder_is_named(signed_folder, public):
    (signed_folder.path / "saved_model.pb").write_bytes(b"another graph")
    (signed_folder.path / "variables.index").unlink()
    (signed_folder.path / "variables" / "extra").write_bytes(b"")
    with pytest.raises(TamperedModelError) as caught:
        verify(signed_folder.path, public)
    assert [file.name for file in caught.value.changed] == ["saved_model.pb"]
    assert caught.value.added == ("variables/extra",)
    assert caught.value.missing == ("variables.index",)
    for name in ("saved_model.pb", "variables/extra", "variables.index"):
        assert name in str(caught.value)


def test_swapped_files_fail_verification(signed_folder, public):
    a, b = signed_folder.path / "saved_model.pb", signed_folder.path / "variables.index"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    with pytest.raises(TamperedModelError) as caught:
        verify(signed_folder.path, public)
    assert len(caught.value.changed) == 2


@pytest.mark.parametrize("name", [".git/config", ".gitignore", ".hidden", "model.sig"])
def test_added_file_fails_verification_whatever_its_name(signed_folder, public, name):
    path = signed_folder.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(TamperedModelError, match="Added"):
        verify(signed_folder.path, public)


def test_file_added_under_a_signed_ignored_path_fails_verification(signed_folder, public, forger):
    statement = forger.statement(signed_folder.signature)
    statement["predicate"]["serialization"]["ignore_paths"] = [".git", ".gitignore"]
    forger.write_statement(signed_folder.signature, statement)
    verify(signed_folder.path, public)
    (signed_folder.path / ".git").mkdir()
    (signed_folder.path / ".git" / "config").write_bytes(b"payload")
    with pytest.raises(TamperedModelError, match=r"Added: '\.git/config'"):
        verify(signed_folder.path, public)


def test_signature_for_another_file_fails(tmp_path, signed_file, key, public):
    other = tmp_path / "other.bin"
    other.write_bytes(b"other")
    shutil.copy(signed_file.signature, tmp_path / "other.bin.sig")
    with pytest.raises(TamperedModelError):
        verify(other, public)


def test_signature_of_a_folder_is_not_one_of_a_file_and_the_other_way(
    signed_file, signed_folder, public
):
    with pytest.raises(SignatureError, match=r"must be for what it is used on.*is a folder"):
        verify(signed_folder.path, public, signature_path=signed_file.signature)
    with pytest.raises(SignatureError, match=r"must be for what it is used on.*is a file"):
        verify(signed_file.path, public, signature_path=signed_folder.signature)


def test_renamed_model_still_verifies(signed_file, public):
    renamed = signed_file.path.rename(signed_file.path.with_name("renamed.bin"))
    verify(renamed, public, signature_path=signed_file.signature)


def test_single_file_may_be_signed_under_its_base_name_as_the_specification_says(
    signed_file, public, forger
):
    statement = forger.statement(signed_file.signature)
    statement["predicate"]["resources"][0]["name"] = "model.bin"
    forger.write_statement(signed_file.signature, statement)
    verify(signed_file.path, public)
    statement["predicate"]["resources"][0]["name"] = "other.bin"
    forger.write_statement(signed_file.signature, statement)
    with pytest.raises(SignatureError, match="must be for what it is used on"):
        verify(signed_file.path, public)


def test_wrong_key_is_an_untrusted_key(signed_file, other_key):
    with pytest.raises(UntrustedKeyError, match="must be made with a trusted key"):
        verify(signed_file.path, other_key.verifying_key)


def test_any_trusted_key_will_do(signed_file, key, other_key):
    verify(signed_file.path, [other_key.verifying_key, key.verifying_key])


def test_forged_signature_under_a_trusted_hint_fails(
    signed_file, public, other_key, forger, sign_openssf
):
    bundle = forger.bundle(signed_file.signature)
    sign_openssf(signed_file.path, other_key)
    forged = forger.bundle(signed_file.signature)
    forged["verificationMaterial"] = bundle["verificationMaterial"]
    signed_file.signature.write_text(json.dumps(forged))
    with pytest.raises(SignatureError, match="altered or forged"):
        verify(signed_file.path, public)


def test_payload_of_an_untrusted_key_is_never_parsed(signed_file, other_key, forger, monkeypatch):
    def parsed(*_args, **_kwargs):
        raise RuntimeError("parsed")

    monkeypatch.setattr("keras_modelsec.integrity.statements.openssf_statement.from_bytes", parsed)
    with pytest.raises(UntrustedKeyError):
        verify(signed_file.path, other_key.verifying_key)


def test_signature_by_one_curve_does_not_verify_under_another(signed_file, public, forger):
    large = SigningKey(ec.generate_private_key(ec.SECP521R1()))
    with pytest.raises(SignatureError, match="altered or forged"):
        public.check(large.sign(b"data"), b"data")


def test_missing_signature_is_a_signature_error(signed_file, public):
    signed_file.signature.unlink()
    with pytest.raises(SignatureError, match="must come with its signature"):
        verify(signed_file.path, public)


def test_missing_model_is_named(signed_file, public):
    signed_file.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        verify(signed_file.path, public)


@POSIX
def test_symbolic_links_are_refused_everywhere(tmp_path, signed_file, signed_folder, public):
    real = tmp_path / "real.sig"
    signed_file.signature.rename(real)
    signed_file.signature.symlink_to(real)
    with pytest.raises(UnsafePathError, match="symbolic link"):
        verify(signed_file.path, public)
    link = tmp_path / "link.bin"
    link.symlink_to(signed_file.path)
    with pytest.raises(UnsafePathError, match="symbolic link"):
        verify(link, public, signature_path=real)
    data = signed_folder.path / "variables" / "data"
    data.rename(tmp_path / "data")
    data.symlink_to(tmp_path / "data")
    with pytest.raises(UnsafePathError, match="symbolic link"):
        verify(signed_folder.path, public)


@POSIX
def test_special_files_neither_verify_nor_hang(tmp_path, signed_file, public):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UnsafePathError):
        verify(fifo, public, signature_path=signed_file.signature)
    with pytest.raises(UnsafePathError):
        verify(signed_file.path, public, signature_path=fifo)
    with pytest.raises(UnsafePathError):
        verify(signed_file.path, public, signature_path=tmp_path)


def test_trusted_keys_are_checked_first(signed_file):
    with pytest.raises(ValueError, match="at least one public key"):
        verify(signed_file.path, [])
    with pytest.raises(KeyFormatError):
        verify(signed_file.path, b"no key")


def test_signature_file_of_any_size_is_refused_without_reading_it_all(signed_file, public):
    os.truncate(signed_file.signature, 1 << 40)  # sparse: a terabyte of zeros
    with pytest.raises(SignatureError, match="must have at most"):
        verify(signed_file.path, public)


def test_file_that_changes_while_it_is_hashed_is_refused(signed_file, public, monkeypatch):
    from keras_modelsec._storage import files

    original = files._hash_open_file

    def change_after(file, copy_to):
        digest = original(file, copy_to)
        with open(signed_file.path, "ab") as writer:
            writer.write(b"more")
        return digest

    monkeypatch.setattr(files, "_hash_open_file", change_after)
    with pytest.raises(SignatureError, match="must not change while it is hashed"):
        verify(signed_file.path, public)


def test_pending_signature_counts_only_beside_the_default_place(
    signed_file, public, tmp_path, key, sign_openssf
):
    pending = signed_file.signature.with_name("model.bin.sig.next")
    new = tmp_path / "new.bin"
    new.write_bytes(b"new bytes")
    new_signature = sign_openssf(new, key)
    new_signature.rename(pending)
    new.rename(signed_file.path)  # the state between SignOnSave's two renames
    verify(signed_file.path, public)
    with pytest.raises(TamperedModelError):
        verify(signed_file.path, public, signature_path=signed_file.signature)


def test_pending_signature_must_be_trusted_and_does_not_excuse_a_bad_one(
    signed_file, public, other_key, sign_openssf
):
    pending = signed_file.signature.with_name("model.bin.sig.next")
    good = signed_file.signature.read_bytes()
    signed_file.path.write_bytes(b"evil")
    evil = signed_file.path.with_name("evil.bin")
    evil.write_bytes(b"evil")
    sign_openssf(evil, other_key).rename(pending)
    with pytest.raises(TamperedModelError):
        verify(signed_file.path, public)
    signed_file.path.write_bytes(bytes(range(256)) * 4)
    pending.write_bytes(good)
    signed_file.signature.write_bytes(b"junk")
    with pytest.raises(SignatureError, match="must be JSON"):
        verify(signed_file.path, public)
    pending.write_bytes(b"junk")
    signed_file.signature.write_bytes(good)
    verify(signed_file.path, public)


def test_another_model_of_the_same_owner_is_not_the_one_that_was_asked_for(tmp_path, key, public):
    old, asked = tmp_path / "old.bin", tmp_path / "asked.bin"
    old.write_bytes(b"an old model, under another name")
    asked.write_bytes(b"the new one")
    sign(old, key, name="b")
    sign(asked, key, name="a", version=5)
    store = TrustStore()
    store.add(public)
    store.set_lowest_version("a", 5)
    verify(asked, store, expected_name="a")
    for suffix in ("", ".sig", ".modelsec.json"):
        os.replace(f"{old}{suffix}", f"{asked}{suffix}")
    verify(asked, store)  # nobody said which model was meant
    with pytest.raises(SignatureError, match="under the name that is expected"):
        verify(asked, store, expected_name="a")
    with (
        pytest.raises(SignatureError, match="under the name that is expected"),
        verified_copy(asked, public, expected_name="a"),
    ):
        pass
    os.unlink(f"{asked}.modelsec.json")
    with pytest.raises(SignatureError, match="no statement"):
        verify(asked, public, expected_name="a")


def test_pending_statement_counts_where_the_one_in_place_is_too_old(signed_file, key, public):
    """A model signed again, version 2, killed before the statement took its place."""
    store = TrustStore()
    store.add(public)
    sign(signed_file.path, key, name="m", version=1)
    place = signed_file.path.with_name("model.bin.modelsec.json")
    older = place.read_bytes()
    sign(signed_file.path, key, name="m", version=2)
    os.replace(place, f"{place}.next")
    place.write_bytes(older)
    store.set_lowest_version("m", 2)
    verify(signed_file.path, store)
    store.set_lowest_version("m", 3)
    with pytest.raises(RolledBackError):
        verify(signed_file.path, store)


@pytest.fixture
def ed25519_key():
    return SigningKey(ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed_inside(tmp_path, ed25519_key):
    """A folder whose statement, by an Ed25519 key alone, lies inside it."""
    path = tmp_path / "inside"
    path.mkdir()
    (path / "w").write_bytes(b"weights")
    sign(path, ed25519_key, signature_path=path / "m.sig")
    return path


def test_signature_that_nobody_looks_at_is_a_file_like_others(signed_inside, ed25519_key, key):
    """With Ed25519 alone trusted, what is called m.sig was read by nobody, and passed."""
    public, inside = ed25519_key.verifying_key, signed_inside / "m.sig"
    verify(signed_inside, public, signature_path=inside)
    inside.write_bytes(b"anything")
    for check in (verify, _copied, _located):
        with pytest.raises(TamperedModelError, match=r"Added: 'm\.sig'"):
            check(signed_inside, public, signature_path=inside)
    with pytest.raises(SignatureError):  # who trusts an ECDSA key does look at it
        verify(signed_inside, [public, key.verifying_key], signature_path=inside)


def test_genuine_signature_inside_is_added_too_for_who_cannot_check_it(
    signed_inside, ed25519_key, key
):
    inside = signed_inside / "m.sig"
    sign(signed_inside, key, signature_path=inside, co_signing_keys=[ed25519_key])
    both = [ed25519_key.verifying_key, key.verifying_key]
    verify(signed_inside, both, signature_path=inside)
    with pytest.raises(TamperedModelError, match=r"Added: 'm\.sig'"):
        verify(signed_inside, both[0], signature_path=inside)


def _copied(*arguments, **options):
    with verified_copy(*arguments, **options):
        pass


def _located(*arguments, **options):
    report = locate_tampering(*arguments, **options)
    if not report.is_clean:
        raise TamperedModelError("found", added=report.added)


def test_repair_reports_a_signature_that_nobody_looks_at(signed_inside, ed25519_key):
    inside = signed_inside / "m.sig"
    write_parity(signed_inside, ed25519_key, redundancy=1, signature_path=inside)
    inside.write_bytes(b"anything")
    report = repair(signed_inside, ed25519_key.verifying_key, signature_path=inside)
    assert report.added == ("m.sig",)
