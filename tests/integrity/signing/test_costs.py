"""What a stranger can make a reader do before a signature is checked: little, and in proportion."""

import base64
import datetime
import json
import os
import tracemalloc

import pytest

from keras_modelsec._signing import strict_json
from keras_modelsec.errors import SignatureError, TamperedModelError, UnsafePathError
from keras_modelsec.integrity import repair, sign, verified_copy, verify, write_parity
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.damage.inspecting import inspect_model
from keras_modelsec.integrity.signing import versions
from keras_modelsec.integrity.signing.describing import list_model
from keras_modelsec.integrity.signing.signed_saving import recover
from keras_modelsec.integrity.signing.versions import own_statement
from keras_modelsec.integrity.statements.model_statement import (
    FileRecord,
    ModelStatement,
    statement_path_of,
)

HUGE = 40 << 30  # of a sparse file, which takes no room


def sparse(path, size=HUGE):
    with open(path, "wb") as file:
        file.truncate(size)


def peak_of(call):
    """The most memory in bytes that Python held at once during `call`."""
    tracemalloc.start()
    try:
        call()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def statement_on(files, tensors):
    records = {f"{i:06}": FileRecord(0, "0" * 64, b"") for i in range(files)}
    return ModelStatement(
        "m",
        1,
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        records,
        tuple(
            TensorRecord(f"t{i}", (), "int8", None, 0, "0" * 64, f"{i % files:06}")
            for i in range(tensors)
        ),
    )


class CountedFile(str):
    """A file name that counts how often it is compared with another."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedFile.compared += 1
        return str.__eq__(self, other)


def test_a_statement_is_read_in_steps_of_files_plus_tensors():
    said = statement_on(300, 300)
    counted = [
        TensorRecord(t.path, t.shape, t.dtype, t.offset, t.nbytes, t.digest, CountedFile(t.file))
        for t in said.tensors
    ]
    CountedFile.compared = 0
    slow = ModelStatement(said.model, 1, said.created, said.files, tuple(counted))
    for name in slow.files:
        slow.cuts(name)
    assert CountedFile.compared < 10 * (300 + 300)  # and not 300 times 300


def envelope_around(payload):
    """A statement file that nobody trusted has signed."""
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": "0" * 64, "sig": "AAAA"}],
        }
    ).encode()


def nested_values(count):
    return b"[" + b",".join([b"{}"] * count) + b"]"


def test_inspecting_parses_no_statement_of_millions_of_values(tmp_path):
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    data = envelope_around(nested_values(4_000_000))
    statement_path_of(model).write_bytes(data)
    found = []
    peak = peak_of(lambda: found.append(inspect_model(model)))
    assert "values" in found[0].problems[0]
    assert peak < 8 * len(data)


def test_recovery_parses_no_pending_statement_of_millions_of_values(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    data = envelope_around(nested_values(4_000_000))
    pending = tmp_path / "model.bin.modelsec.json.next"
    pending.write_bytes(data)
    assert peak_of(lambda: recover(tmp_path)) < 8 * len(data)
    assert not pending.exists()


LONG = 20 << 20  # bytes: longer than a statement on a small model can be


@pytest.fixture
def long_pending(stated_file, public):
    """A pending statement that anybody can put beside a model, in a trusted key's name."""
    statement = stated_file.path.with_name("stated.bin.modelsec.json")
    pending = statement.with_name(statement.name + ".next")
    entry = json.dumps({"keyid": public.hint, "sig": "AAAA"})
    tail = f'","payloadType":"application/vnd.in-toto+json","signatures":[{entry}]}}'
    pending.write_text('{"payload":"' + "QUJD" * (LONG // 4) + tail)
    return pending


def foreign(monkeypatch, place):
    """Makes a file another user's to all who ask."""
    real = versions.files.is_own
    monkeypatch.setattr(versions.files, "is_own", lambda path: path != place and real(path))


def test_a_pending_statement_longer_than_the_model_explains_is_not_read(
    stated_file, public, long_pending
):
    assert peak_of(lambda: verify(stated_file.path, public)) < LONG // 2
    stated_file.path.write_bytes(b"another")

    def attempt():
        with pytest.raises(TamperedModelError):
            verify(stated_file.path, public)

    assert peak_of(attempt) < LONG // 2


def test_a_strangers_long_pending_statement_is_not_read_to_find_a_version(
    stated_file, key, long_pending, monkeypatch
):
    foreign(monkeypatch, long_pending)
    assert peak_of(lambda: sign(stated_file.path, key)) < LONG // 2
    assert own_statement(stated_file.signature, key).version == 2


def test_a_long_pending_statement_is_not_read_to_repair(stated_file, key, public, long_pending):
    pytest.importorskip("pyeclib", reason="parity needs the `repair` extra")
    data = stated_file.path.read_bytes()
    write_parity(stated_file.path, key)
    stated_file.path.write_bytes(b"x" + data)
    assert peak_of(lambda: repair(stated_file.path, public)) < LONG // 2
    assert stated_file.path.read_bytes() == data


def test_a_pending_statement_of_the_length_the_model_explains_counts(tmp_path, key, public):
    model = tmp_path / "model"
    model.mkdir()
    for index in range(3000):
        (model / f"{'n' * 200}{index}").touch()
    sign(model, key).signature.unlink()
    statement = tmp_path / "model.modelsec.json"
    statement.rename(f"{statement}.next")
    verify(model, public)


def test_an_unknown_keys_statement_of_millions_of_values_is_not_parsed(tmp_path, key):
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    data = envelope_around(nested_values(4_000_000))
    statement_path_of(model).write_bytes(data)

    def attempt():
        with pytest.raises(ValueError, match="cannot be read"):
            sign(model, key)

    assert peak_of(attempt) < 8 * len(data)


@pytest.mark.parametrize("ending", [".sig", ".modelsec.json"])
def test_a_sparse_file_in_the_place_of_a_signature_is_not_decoded(
    tmp_path, key, public, ending, signed_file
):
    signed_file.signature.unlink()
    place = signed_file.path.with_name(signed_file.path.name + ending)
    limit = (16 << 20) if ending == ".sig" else (256 << 20)
    sparse(place, limit)

    def attempt():
        with pytest.raises(SignatureError):
            verify(signed_file.path, public)

    assert peak_of(attempt) < 1.5 * limit


def test_base64_has_one_spelling_and_is_decoded_in_little_memory():
    for good in ("", "AA==", "AAA=", "AAAA", "AAAAAA=="):
        assert strict_json.decode_base64(good, "x") == base64.b64decode(good)
    for bad in ("AB==", "AAB=", "AA", "AA==AA==", "AA=A", "A===", "AAAA====", "AAAA\n", "A A="):
        with pytest.raises(SignatureError):
            strict_json.decode_base64(bad, "x")
    text = base64.b64encode(bytes(8 << 20)).decode()
    assert peak_of(lambda: strict_json.decode_base64(text, "x")) < 2.2 * len(text)


def test_a_file_of_another_length_is_refused_unread(tmp_path, key, public):
    model = tmp_path / "model.bin"
    model.write_bytes(bytes(1 << 20))
    sign(model, key)
    sparse(model)
    with pytest.raises(TamperedModelError) as caught:
        verify(model, public)
    assert f"unread: {HUGE} bytes, not the {1 << 20} signed" in str(caught.value)
    assert caught.value.changed[0].actual.startswith("unread")
    with pytest.raises(TamperedModelError), verified_copy(model, public):
        pass


def test_a_file_of_another_length_is_not_protected(tmp_path, key):
    pytest.importorskip("pyeclib", reason="parity needs the `repair` extra")
    model = tmp_path / "model.bin"
    model.write_bytes(bytes(1 << 20))
    sign(model, key)
    sparse(model)
    with pytest.raises(TamperedModelError, match="unread"):
        write_parity(model, key)


def test_files_that_nobody_signed_are_refused_unread(tmp_path, key, public):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    sign(folder, key)
    sparse(folder / "added")
    with pytest.raises(TamperedModelError) as caught:
        verify(folder, public)
    assert caught.value.added == ("added",)
    with pytest.raises(TamperedModelError), verified_copy(folder, public):
        pass


def test_a_pending_model_of_another_length_still_verifies(tmp_path, key, public):
    model = tmp_path / "model.bin"
    model.write_bytes(b"the new one, which is longer")
    sign(model, key)
    for ending in (".sig", ".modelsec.json"):
        place = tmp_path / f"model.bin{ending}"
        place.rename(f"{place}.next")
    new = model.read_bytes()
    model.write_bytes(b"old")
    sign(model, key)
    model.write_bytes(new)  # killed between the model's rename and that of its signature
    verify(model, public)
    with verified_copy(model, public) as copy:
        assert copy.read_bytes() == new


def test_a_folder_of_too_many_files_is_refused_before_it_is_read(tmp_path, monkeypatch):
    from keras_modelsec.integrity.signing import describing

    for index in range(12):
        (tmp_path / f"{index}").mkdir()
    monkeypatch.setattr(describing, "MOST_FILES", 10)
    with pytest.raises(UnsafePathError, match="at most 10 files and folders"):
        list_model(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are of POSIX")
@pytest.mark.parametrize("place", ["model.bin", "model.bin.sig", "model.bin.modelsec.json"])
def test_fifos_and_loops_of_links_are_refused_and_never_waited_for(tmp_path, key, public, place):
    model = tmp_path / "model.bin"
    for make in (os.mkfifo, lambda path: os.symlink(path, path)):
        model.unlink(missing_ok=True)
        model.write_bytes(b"weights")
        sign(model, key, version=1)
        (tmp_path / place).unlink()
        make(tmp_path / place)
        with pytest.raises(UnsafePathError):
            verify(model, public)
        with pytest.raises(UnsafePathError), verified_copy(model, public):
            pass
        (tmp_path / place).unlink()
