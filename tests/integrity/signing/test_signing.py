import json
import os
import sys

import pytest

from keras_modelsec._signing import sigstore_bundle as envelope_module
from keras_modelsec.errors import KeyFormatError, UnsafePathError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.statements.model_statement import statement_path_of

POSIX = pytest.mark.skipif(os.name != "posix", reason="links and FIFOs")


def test_signature_lies_beside_the_model(tmp_path, key, public):
    model = tmp_path / "model.keras"
    model.write_bytes(b"bytes")
    report = sign(model, key)
    assert report.signature == tmp_path / "model.keras.sig"
    assert report.statement == tmp_path / "model.keras.modelsec.json"
    assert report.written == (report.signature, report.statement)
    assert (report.path, report.name, report.version) == (model, "model.keras", 1)
    assert report.signers == (key.verifying_key.hint,)
    assert verify(model, public) is None
    names = ["model.keras", "model.keras.modelsec.json", "model.keras.sig"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_signature_has_exactly_the_fields_of_the_format(signed_file, forger, key):
    bundle = forger.bundle(signed_file.signature)
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["verificationMaterial"] == {
        "publicKey": {"hint": key.verifying_key.hint},
        "tlogEntries": [],
    }
    statement = forger.statement(signed_file.signature)
    assert list(statement) == ["_type", "subject", "predicateType", "predicate"]
    assert statement["subject"][0]["name"] == "model.bin"
    assert statement["predicate"]["serialization"] == {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
    }
    assert [r["name"] for r in statement["predicate"]["resources"]] == ["."]


def test_folder_lists_resources_by_code_point(signed_folder, forger):
    resources = forger.statement(signed_folder.signature)["predicate"]["resources"]
    assert [r["name"] for r in resources] == ["saved_model.pb", "variables.index", "variables/data"]


def test_signature_inside_the_folder_is_left_out(signed_folder, key, public, forger):
    inside = signed_folder.path / "model.sig"
    sign(signed_folder.path, key, version=2, signature_path=inside)
    verify(signed_folder.path, public, signature_path=inside)
    sign(
        signed_folder.path, key, version=2, signature_path=inside
    )  # the old one is not part of the new
    verify(signed_folder.path, public, signature_path=inside)
    serialization = forger.statement(inside)["predicate"]["serialization"]
    assert serialization["ignore_paths"] == ["model.modelsec.json", "model.sig"]


def test_relative_paths_and_trailing_separators(tmp_path, monkeypatch, key, public):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")
    monkeypatch.chdir(tmp_path / "model")
    assert sign(".", key).signature == tmp_path / "model.sig"
    assert sign("../model/", key).signature == tmp_path / "model.sig"
    verify("../model/", public)


def test_empty_file_can_be_signed(tmp_path, key, public):
    (tmp_path / "empty").write_bytes(b"")
    sign(tmp_path / "empty", key)
    verify(tmp_path / "empty", public)


def test_file_larger_than_the_buffers(tmp_path, key, public):
    model = tmp_path / "large"
    model.write_bytes(os.urandom((5 << 20) + 17))
    sign(model, key)
    verify(model, public)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(ValueError, match="is not what was signed"):
        verify(model, public)


def test_empty_folder_is_refused(tmp_path, key):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="at least one file"):
        sign(tmp_path / "model", key)


@POSIX
def test_symbolic_links_and_special_files_are_refused(tmp_path, key):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(UnsafePathError, match="symbolic link"):
        sign(tmp_path / "link", key)
    (tmp_path / "model" / "b").symlink_to("a")
    with pytest.raises(UnsafePathError, match=r"model/b.*symbolic link"):
        sign(tmp_path / "model", key)
    (tmp_path / "model" / "b").unlink()
    os.mkfifo(tmp_path / "model" / "b")
    with pytest.raises(UnsafePathError, match="special file"):
        sign(tmp_path / "model", key)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsafePathError, match="special file"):
        sign(tmp_path / "fifo", key)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse or change these names")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"back\\slash"])
def test_names_that_other_systems_read_otherwise_are_refused(tmp_path, key, name):
    (tmp_path / "model").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"model", name), "wb"):
        pass
    with pytest.raises(UnsafePathError, match="relative POSIX path"):
        sign(tmp_path / "model", key)


def test_nothing_is_hashed_when_the_target_cannot_be_written(signed_file, key, monkeypatch):
    def hashed(*_args, **_kwargs):
        raise RuntimeError("hashed")

    monkeypatch.setattr("keras_modelsec.integrity.signing.signing.describe_for_signing", hashed)
    with pytest.raises(FileNotFoundError, match=r"must exist.*x\.sig"):
        sign(
            signed_file.path,
            key,
            version=2,
            signature_path=signed_file.path.parent / "no" / "x.sig",
        )
    with pytest.raises(IsADirectoryError, match="where no folder is"):
        sign(signed_file.path, key, version=2, signature_path=signed_file.path.parent)
    with pytest.raises(KeyFormatError):
        sign(signed_file.path, b"no key")


def test_signature_must_not_replace_the_model(signed_file, key):
    with pytest.raises(ValueError, match="`signature_path` must differ"):
        sign(signed_file.path, key, version=2, signature_path=signed_file.path)


def test_signature_that_verify_would_not_read_is_not_written(signed_folder, key, monkeypatch):
    monkeypatch.setattr("keras_modelsec.integrity.signing.signing.MAX_SIGNATURE_BYTES", 100)
    before = signed_folder.signature.read_bytes()
    with pytest.raises(ValueError, match="at most 100 bytes"):
        sign(signed_folder.path, key, version=2)
    assert signed_folder.signature.read_bytes() == before


def test_failed_write_leaves_the_old_signature_and_no_litter(signed_file, key, monkeypatch):
    before = signed_file.signature.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        sign(signed_file.path, key, version=2)
    assert signed_file.signature.read_bytes() == before
    assert len(list(signed_file.path.parent.iterdir())) == 2  # the model and NAME.sig


def test_missing_model_is_named(tmp_path, key):
    with pytest.raises(FileNotFoundError, match="gone"):
        sign(tmp_path / "gone", key)
    with pytest.raises(TypeError, match="`path` must be"):
        sign(3, key)


def test_encoding_of_what_is_signed_is_that_of_dsse():
    # The example in DSSE's own protocol document has another payload type, of the same form.
    encoded = envelope_module.pre_authentication_encoding(b"hello world")
    assert encoded == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


def test_signature_is_compact_ascii_json(signed_folder):
    data = signed_folder.signature.read_bytes()
    assert json.dumps(json.loads(data), separators=(",", ":")).encode() == data


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"version": 2**53 + 1}, r"`version` must be an integer from 1 to 2\*\*53"),
        ({"name": "a\udcffb"}, "`model` must be valid Unicode"),
        ({"name": 5}, "`model` must be a string"),
    ],
)
def test_nothing_is_signed_that_would_not_verify(tmp_path, key, public, option, message):
    model = tmp_path / "model.bin"
    model.write_bytes(b"bytes")
    sign(model, key)
    with pytest.raises(ValueError, match=message):
        sign(model, key, **option)
    verify(model, public)  # by what was there


@POSIX
def test_model_whose_name_is_no_unicode_needs_another_name(tmp_path, key):
    model = tmp_path / os.fsdecode(b"mod\xff.bin")
    try:
        model.write_bytes(b"bytes")
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    with pytest.raises(ValueError, match="must be valid Unicode"):
        sign(model, key)
    assert list(tmp_path.iterdir()) == [model]


def test_planted_statement_does_not_choose_what_a_model_is_called(tmp_path, key, public):
    release, toy = tmp_path / "prod.bin", tmp_path / "toy.bin"
    for path in (release, toy):
        path.write_bytes(path.name.encode())
    sign(release, key, version=57)
    planted = statement_path_of(toy)
    planted.write_bytes(statement_path_of(release).read_bytes())
    with pytest.raises(ValueError, match=r"`name=` must be given.*'prod\.bin'.*or 'toy\.bin'"):
        sign(toy, key)
    assert planted.read_bytes() == statement_path_of(release).read_bytes()
    sign(toy, key, name="toy.bin")
    verify(toy, public, expected_name="toy.bin")
    sign(toy, key)
    verify(toy, public, expected_name="toy.bin")


def test_model_with_a_name_of_its_own_is_signed_again_under_a_stated_name(tmp_path, key, public):
    path = tmp_path / "m.bin"
    path.write_bytes(b"weights")
    sign(path, key, name="classifier")
    with pytest.raises(ValueError, match="Give 'classifier' if"):
        sign(path, key)
    sign(path, key, name="classifier")
    verify(path, public, expected_name="classifier")
