"""Our own statement: what it holds, and that no field of it can be changed unseen."""

import base64
import datetime
import json
import os

import keras
import pytest

from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError, TamperedModelError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.contents.hashing import LEAF_BYTES, leaf_digests, tree_digest
from keras_modelsec.integrity.signing.signing import state_parity
from keras_modelsec.integrity.statements.model_statement import (
    ModelStatement,
    ParityRecord,
    read_statement,
    statement_path_of,
)
from keras_modelsec.integrity.statements.places import Places
from tests.integrity.signing.test_tampering import mutations


@pytest.fixture
def trust(public):
    return Trust({public.hint: public})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model whose kernels are large enough for leaves of their own."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(1200, name="large")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="small")(hidden))
    model.compile("adam", "mse")
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def said(tmp_path, saved, key, trust):
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    sign(path, key, provenance={"dataset_sha256": "0" * 64})
    return read_statement(statement_path_of(path), trust)


def test_fields_say_what_was_signed(said, saved):
    assert (said.model, said.version) == ("model.keras", 1)
    age = datetime.datetime.now(datetime.UTC) - said.created
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    data = saved.read_bytes()
    record = said.files["."]
    assert record.size == len(data)
    cuts = said.cuts(".")
    pieces = [leaf_digests(data[offset : offset + length])[0] for offset, length in cuts]
    assert record.leaf_list() == pieces


def test_tensors_are_those_of_the_file_with_their_digests(said, saved):
    model = keras.models.load_model(saved, compile=False)
    kernel = model.get_layer("large").kernel
    found = {tensor.path: tensor for tensor in said.tensors}
    tensor = found["layers/dense/vars/0"]
    assert (tensor.shape, tensor.dtype) == ((64, 1200), "float32")
    assert tensor.nbytes == 64 * 1200 * 4 > LEAF_BYTES
    data = kernel.numpy().astype("<f4").tobytes()
    assert tensor.digest == tree_digest(leaf_digests(data))
    assert saved.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes] == data
    assert len(found) == len(said.tensors) >= 4


def test_leaves_begin_and_end_with_large_tensors(said):
    kernel = next(tensor for tensor in said.tensors if tensor.path == "layers/dense/vars/0")
    starts = {offset for offset, _ in said.cuts(".")}
    assert {kernel.offset, kernel.offset + LEAF_BYTES, kernel.offset + kernel.nbytes} <= starts


def test_provenance_is_what_was_given_and_what_the_file_says(said):
    provenance = said.provenance
    assert provenance["dataset_sha256"] == "0" * 64
    assert provenance["packages"]["keras"] == keras.__version__
    assert provenance["model"]["class_name"] == "Functional"
    assert provenance["compile"]["loss"] == "mse"


def test_version_grows_and_a_name_of_its_own_is_given_again(tmp_path, key, other_key, trust):
    path = tmp_path / "m.bin"
    path.write_bytes(b"1")
    place = statement_path_of(path)
    sign(path, key, name="classifier")
    path.write_bytes(b"2")
    sign(path, key, name="classifier")
    said = read_statement(place, trust)
    assert (said.model, said.version) == ("classifier", 2)
    sign(path, key, name="classifier", version=7)
    assert read_statement(place, trust).version == 7
    sign(path, other_key, version=9)
    with pytest.raises(ValueError, match="`version` must be given"):
        sign(path, key)  # what another key stated is not continued, nor begun again
    sign(path, key, version=8)
    said = read_statement(place, trust)
    assert (said.model, said.version) == ("m.bin", 8)


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "1"])
def test_version_must_be_a_positive_integer(signed_file, key, version):
    with pytest.raises((TypeError, ValueError), match="`version`"):
        sign(signed_file.path, key, version=version)


@pytest.mark.parametrize("provenance", [3, {1: 2}, {"x": b"bytes"}, {"x": {1, 2}}, [1]])
def test_provenance_that_is_no_json_is_refused(signed_file, key, provenance):
    with pytest.raises(TypeError, match="`provenance`"):
        sign(signed_file.path, key, version=2, provenance=provenance)


def test_round_trip(said):
    assert ModelStatement.from_bytes(said.to_bytes()) == said


def test_statement_alone_vouches_and_names_what_changed(stated_folder, public):
    verify(stated_folder.path, public)
    (stated_folder.path / "variables" / "data").write_bytes(b"Weights")
    (stated_folder.path / "new").write_bytes(b"")
    (stated_folder.path / "saved_model.pb").unlink()
    with pytest.raises(TamperedModelError) as caught:
        verify(stated_folder.path, public)
    assert [file.name for file in caught.value.changed] == ["variables/data"]
    assert (caught.value.added, caught.value.missing) == (("new",), ("saved_model.pb",))


@pytest.mark.parametrize("kind", ["stated_file", "stated_folder"])
def test_every_changed_field_of_the_envelope_fails(kind, request, public, json_tools):
    signed = request.getfixturevalue(kind)
    count = 0
    for what, text in mutations(json.loads(signed.signature.read_bytes()), json_tools):
        signed.signature.write_text(text, encoding="utf-8")
        with pytest.raises(SignatureError) as caught:
            verify(signed.path, public)
        assert str(caught.value), what
        count += 1
    assert count > 100


def test_every_changed_field_fails_under_the_old_signature(stated_folder, public, json_tools):
    envelope = json.loads(stated_folder.signature.read_bytes())
    value = json.loads(base64.b64decode(envelope["payload"]))
    for _, text in mutations(value, json_tools):
        payload = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
        stated_folder.signature.write_text(json.dumps({**envelope, "payload": payload}))
        with pytest.raises(SignatureError):
            verify(stated_folder.path, public)


FREE = {  # fields whose value another statement by the owner may well have
    ("predicate", "version"),
    ("predicate", "created"),
}


def test_every_malformed_field_fails_even_if_the_owner_signed_it(
    stated_folder, public, forger, json_tools
):
    value = forger.own_statement(stated_folder.signature)
    value["predicate"]["provenance"] = {}  # anything may stand there
    for (path, new), text in mutations(value, json_tools):
        if path[:2] == ("predicate", "provenance") and path[2:] + (new,) != ("removed",):
            continue
        if path in FREE and type(new) is int:
            continue
        payload = text.encode("utf-8", "surrogatepass")
        forger.write_own_payload(stated_folder.signature, payload)
        with pytest.raises(SignatureError):
            verify(stated_folder.path, public)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1 << 40},
        {"offset": -1},
        {"file": "other"},
        {"nbytes": 1 << 54},
        {"shape": [-1]},
        {"shape": [True]},
        {"sha256": "0"},
    ],
)
def test_impossible_tensor_is_refused(tmp_path, saved, key, public, forger, change):
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    sign(path, key).signature.unlink()
    place = statement_path_of(path)
    value = forger.own_statement(place)
    value["predicate"]["tensors"][0] |= change
    forger.write_own_statement(place, value)
    with pytest.raises(SignatureError):
        verify(path, public)


def test_signature_and_statement_must_speak_of_the_same_bytes(signed_file, key, public):
    older = signed_file.signature.read_bytes()
    signed_file.path.write_bytes(b"newer")
    sign(signed_file.path, key, version=2)
    verify(signed_file.path, public)
    signed_file.signature.write_bytes(older)
    with pytest.raises(SignatureError, match="must speak of the same bytes"):
        verify(signed_file.path, public)


def test_bad_statement_is_not_excused_by_a_good_signature(signed_file, key, other_key, public):
    sign(signed_file.path, key, version=2)
    place = statement_path_of(signed_file.path)
    good = place.read_bytes()
    place.write_bytes(good.replace(b"sig", b"gis"))
    with pytest.raises(SignatureError):
        verify(signed_file.path, public)
    place.write_bytes(good)
    verify(signed_file.path, public)
    sign(signed_file.path.rename(signed_file.path.with_name("o")), other_key)
    place.write_bytes(statement_path_of(signed_file.path.with_name("o")).read_bytes())
    signed_file.path.with_name("o").rename(signed_file.path)
    with pytest.raises(SignatureError, match="signed by 1 of the trusted keys"):
        verify(signed_file.path, public)


def test_parity_is_named_kept_for_the_same_bytes_and_dropped_with_them(tmp_path, key, trust):
    path = tmp_path / "m.bin"
    path.write_bytes(b"1")
    places = Places.of(files.absolute_path(path))
    record = ParityRecord("m.bin.parity", 3, "0" * 64)
    assert not state_parity(places, key, record)
    sign(path, key)
    assert state_parity(places, key, record)
    assert state_parity(places, key, record)
    assert read_statement(places.statement, trust).parity == (record,)
    sign(path, key)
    assert read_statement(places.statement, trust).parity == (record,)
    path.write_bytes(b"2")
    sign(path, key)
    assert read_statement(places.statement, trust).parity == ()


def test_statement_of_an_earlier_version_with_a_fingerprint_is_read_and_not_written_again(
    stated_file, key, public, forger
):
    value = forger.own_statement(stated_file.signature)
    value["predicate"]["files"][0]["fingerprint"] = "5" * 64
    forger.write_own_payload(stated_file.signature, json.dumps(value).encode())
    verify(stated_file.path, public)
    sign(stated_file.path, key)
    assert "fingerprint" not in forger.own_statement(stated_file.signature)["predicate"]["files"][0]


def test_signing_waits_for_no_file_but_its_own_to_reach_the_disk(signed_folder, key, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    sign(signed_folder.path, key, version=2)
    assert synced
    assert not {path.stat().st_ino for path in signed_folder.path.rglob("*")} & set(synced)
