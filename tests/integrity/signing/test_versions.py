"""A version is stated or counted on; it never begins again where something was signed."""

import json
import os
import threading

import keras
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import keras_modelsec as ms
from keras_modelsec.cli.main import main
from keras_modelsec.errors import RolledBackError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.signing import signing
from keras_modelsec.integrity.signing.versions import own_statement, stated_name
from keras_modelsec.trust import load_signing_key


@pytest.fixture
def new_key():
    return load_signing_key(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def counter(tmp_path):
    path = tmp_path / "versions.json"
    path.write_text("{}")
    return path


def version(model, key):
    return own_statement(model.with_name(model.name + ".modelsec.json"), key).version


def test_first_signing_is_version_1_and_the_same_key_counts_on(model, key):
    for expected in (1, 2, 3):
        sign(model, key)
        assert version(model, key) == expected


def test_new_key_alone_is_refused_and_leaves_what_is_there(model, key, public, new_key):
    sign(model, key, version=7)
    with pytest.raises(ValueError, match=r"`version` must be given.*'m\.bin', version 7.*State a"):
        sign(model, new_key)
    verify(model, public)
    assert version(model, key) == 7
    sign(model, new_key, version=8)
    assert version(model, new_key) == 8


@pytest.mark.parametrize("signer", ["own", "other"])
def test_signature_whose_statement_was_deleted_does_not_begin_again(
    model, key, new_key, counter, signer
):
    sign(model, key if signer == "own" else new_key, version=7)
    statement = model.with_name("m.bin.modelsec.json")
    signature = model.with_name("m.bin.sig").read_bytes()
    statement.unlink()
    for source in (None, counter):
        with pytest.raises(ValueError, match=r"m\.bin\.sig', which lies there without its statem"):
            sign(model, key, version=source)
    assert model.with_name("m.bin.sig").read_bytes() == signature
    assert not statement.exists()
    store = ms.TrustStore()
    store.add(key.verifying_key)
    store.set_lowest_version("m.bin", 7)
    sign(model, key, version=store)
    assert version(model, key) == 8
    statement.unlink()
    sign(model, key, version=9)
    assert version(model, key) == 9
    statement.unlink()
    counter.write_text('{"m.bin": 9}')
    sign(model, key, version=counter)
    assert version(model, key) == 10


def test_pending_statement_says_the_version_where_the_other_is_gone(model, key):
    sign(model, key, version=7)
    statement = model.with_name("m.bin.modelsec.json")
    statement.rename(f"{statement}.next")
    sign(model, key)
    assert version(model, key) == 8


def test_pending_signature_whose_statement_was_deleted_does_not_begin_again(model, key):
    sign(model, key, version=7)
    model.with_name("m.bin.modelsec.json").unlink()
    model.with_name("m.bin.sig").rename(model.with_name("m.bin.sig.next"))
    with pytest.raises(ValueError, match=r"m\.bin\.sig\.next', which lies there without its stat"):
        sign(model, key)
    sign(model, key, version=8)
    assert version(model, key) == 8


def test_statement_is_written_before_the_signature(model, key, monkeypatch):
    """So that what a killed first signing leaves can be signed again without a word."""
    real, written = signing.publishing.write_atomically, []

    def write(path, data):
        written.append(path.name)
        if len(written) == 2:
            raise OSError("killed")
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(signing.publishing, "write_atomically", write)
        with pytest.raises(OSError, match="killed"):
            sign(model, key)
    assert written == ["m.bin.modelsec.json", "m.bin.sig"]
    sign(model, key)
    assert version(model, key) == 2


def test_callback_counts_on_from_no_own_signature_alone(tmp_path, key, new_key):
    for name, signer in (("base.bin", new_key), ("ck.keras", key)):
        (tmp_path / name).write_bytes(b"weights")
        sign(tmp_path / name, signer, version=4)
        (tmp_path / f"{name}.modelsec.json").unlink()
    callback = ms.SignOnSave(tmp_path / "ck.keras", key, name="m")
    with pytest.raises(ValueError, match=r"ck\.keras\.sig', which lies there without"):
        callback._next_version(tmp_path)
    (tmp_path / "ck.keras.sig").unlink()  # that of a base model is another's
    assert callback._next_version(tmp_path) == 1


def test_rotation_with_both_keys_counts_on(model, key, new_key):
    sign(model, key, version=7)
    sign(model, new_key, co_signing_keys=[key])
    assert version(model, new_key) == 8
    sign(model, new_key)
    assert version(model, new_key) == 9


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_statement_that_cannot_be_read_is_no_reason_to_begin_again(model, key, data):
    sign(model, key, version=7)
    (model.parent / "m.bin.modelsec.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"`version` must be given.*cannot be read"):
        sign(model, key)


def test_fresh_checkout_counts_on_from_the_trust_store(model, key, public, new_key):
    store = ms.TrustStore()
    store.add(public)
    store.add(new_key.verifying_key)
    store.set_lowest_version("m.bin", 7)
    store.set_lowest_version("*", 9)
    sign(model, new_key, version=store)
    assert version(model, new_key) == 10
    verify(model, store, expected_name="m.bin")


def test_trust_store_vouches_for_the_key_before_a_rotation_and_for_no_strangers(
    model, key, public, new_key
):
    store = ms.TrustStore()
    store.add(public)
    store.set_lowest_version("m.bin", 3)
    sign(model, key, version=7)
    sign(model, new_key, version=store)
    assert version(model, new_key) == 8
    stranger = load_signing_key(ed25519.Ed25519PrivateKey.generate())
    sign(model, stranger, version=3)
    sign(model, new_key, version=store)
    assert version(model, new_key) == 4
    sign(model, stranger, version=1000)
    with pytest.raises(ValueError, match=r"`version` must be given.*version 1000"):
        sign(model, new_key, version=store)
    sign(model, new_key, version=5)
    assert version(model, new_key) == 5


def test_key_that_was_revoked_at_a_rotation_has_counted(model, key, public, new_key):
    sign(model, key, version=9)
    store = ms.TrustStore()
    store.add(public)
    store.add(new_key.verifying_key)
    store.revoke(public)
    sign(model, new_key, version=store)
    assert version(model, new_key) == 10


def test_store_that_lacks_the_earlier_key_does_not_begin_below_it(model, key, new_key):
    sign(model, key, version=9)
    store = ms.TrustStore()
    store.add(new_key.verifying_key)
    with pytest.raises(ValueError, match=r"`version` must be given.*version 9"):
        sign(model, new_key, version=store)
    assert version(model, key) == 9


def test_counter_below_another_keys_version_is_refused_and_not_counted_up(
    model, key, new_key, counter
):
    sign(model, key, version=9)
    counter.write_text('{"m.bin": 2}')
    with pytest.raises(ValueError, match=r"`version` must be given.*version 9"):
        sign(model, new_key, version=counter)
    assert json.loads(counter.read_text()) == {"m.bin": 2}
    counter.write_text('{"m.bin": 9}')
    sign(model, new_key, version=counter)
    assert version(model, new_key) == 10


def test_pending_statement_of_a_killed_writer_has_counted(model, key, new_key):
    sign(model, key, version=12)
    place = model.with_name("m.bin.modelsec.json")
    pending = model.with_name("m.bin.modelsec.json.next")
    place.replace(pending)
    with pytest.raises(ValueError, match=r"`version` must be given.*version 12"):
        sign(model, new_key)
    sign(model, key)
    assert version(model, key) == 13


def test_pending_statement_counts_for_saving_too(tmp_path, key):
    path = tmp_path / "m.keras"
    path.write_bytes(b"earlier")
    sign(path, key, version=12)
    os.replace(f"{path}.modelsec.json", tmp_path / "other.modelsec.json.next")
    os.unlink(f"{path}.sig")
    callback = ms.SignOnSave(path, key)
    assert callback._first_version(tmp_path) == 13


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_pending_statement_that_another_user_planted_stops_nobody(tmp_path, model, key, new_key):
    sign(model, new_key, version=12)
    pending = model.with_name("m.bin.modelsec.json.next")
    model.with_name("m.bin.modelsec.json").replace(pending)
    os.link(pending, tmp_path / "second")  # of whoever else holds it
    model.with_name("m.bin.sig").unlink()
    sign(model, key)
    assert version(model, key) == 1


def test_fresh_checkout_with_a_new_key_counts_on_from_the_counter(model, key, new_key, counter):
    for signer, expected in ((key, 1), (key, 2), (new_key, 3)):
        sign(model, signer, version=counter)
        assert version(model, signer) == expected
        for path in model.parent.glob("m.bin.*"):  # what is not in the repository
            path.unlink()
    assert json.loads(counter.read_text()) == {"m.bin": 3}
    sign(model, new_key, name="other", version=str(counter))
    assert json.loads(counter.read_text()) == {"m.bin": 3, "other": 1}


def test_counter_is_not_below_what_the_key_stated_and_not_begun_on_anothers(
    model, key, new_key, counter
):
    sign(model, key, version=7)
    with pytest.raises(ValueError, match="`version` must be given"):
        sign(model, new_key, version=counter)
    sign(model, key, version=counter)
    assert version(model, key) == 8
    assert json.loads(counter.read_text()) == {"m.bin": 8}


def test_counter_at_its_end_is_refused_and_left_as_it_is(model, key, counter):
    text = json.dumps({"m.bin": 2**53})
    counter.write_text(text)
    with pytest.raises(ValueError, match=r"below 2\*\*53.*'m\.bin' would become"):
        sign(model, key, version=counter)
    assert counter.read_text() == text


def test_counter_that_is_missing_is_no_beginning(model, key, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"begin again at 1.*holds \{\}"):
        sign(model, key, version=tmp_path / "gone.json")
    assert not (tmp_path / "gone.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"m": 0}', '{"m": "1"}', '{"m": true}', "{]"])
def test_file_that_is_no_counter_is_refused(model, key, counter, text):
    counter.write_text(text)
    with pytest.raises(ValueError, match=r"which is none\. Restore it"):
        sign(model, key, version=counter)
    assert counter.read_text() == text


def test_two_signers_at_once_take_two_numbers(tmp_path, key, counter):
    models = [tmp_path / f"m{i}.bin" for i in range(8)]
    for path in models:
        path.write_bytes(b"weights")
    threads = [
        threading.Thread(target=sign, args=(path, key), kwargs={"name": "m", "version": counter})
        for path in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(version(path, key) for path in models) == list(range(1, 9))


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, b"versions.json", [1]])
def test_other_versions_are_refused(model, key, wrong):
    with pytest.raises((TypeError, ValueError), match="version"):
        sign(model, key, version=wrong)
    assert not (model.parent / "m.bin.sig").exists()


def train(callback):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.compile("sgd", "mse")
    network.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0, callbacks=[callback])


def test_saving_with_a_new_key_is_refused_before_training(tmp_path, key, new_key):
    target = tmp_path / "run" / "m.keras"
    train(ms.SignOnSave(target, key))
    assert version(target, key) == 2
    with pytest.raises(ValueError, match=r"`version` must be given.*version 2"):
        ms.SignOnSave(target, new_key).on_train_begin()
    train(ms.SignOnSave(target, new_key, co_signing_keys=[key]))
    assert version(target, new_key) == 4
    train(ms.SignOnSave(target, key, version=9))
    assert version(target, key) == 10


def test_saving_under_a_new_name_is_a_first_release(tmp_path, key, new_key):
    train(ms.SignOnSave(tmp_path / "a.keras", key))
    train(ms.SignOnSave(tmp_path / "b.keras", new_key))
    assert version(tmp_path / "b.keras", new_key) == 2


def test_name_with_fields_is_counted_over_the_folder(tmp_path, key, new_key):
    train(ms.SignOnSave(tmp_path / "{epoch}.keras", key, name="net"))
    with pytest.raises(ValueError, match="`version` must be given"):
        train(ms.SignOnSave(tmp_path / "{epoch}-new.keras", new_key, name="net"))
    assert stated_name(tmp_path / "2.keras.modelsec.json") == "net"


def test_saving_counts_on_from_store_and_counter(tmp_path, key, counter):
    store = ms.TrustStore()
    store.set_lowest_version("net", 5)
    train(ms.SignOnSave(tmp_path / "a.keras", key, name="net", version=store))
    assert version(tmp_path / "a.keras", key) == 7
    train(ms.SignOnSave(tmp_path / "b.keras", key, name="net", version=counter))
    assert version(tmp_path / "b.keras", key) == 9
    assert json.loads(counter.read_text()) == {"net": 9}


def test_command_line_counts_and_refuses(tmp_path, model, counter, capsys):
    for name in ("old", "new"):
        ms.generate_keys(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub")
    old, new = (str(tmp_path / f"{name}.pem") for name in ("old", "new"))
    assert main(["sign", str(model), "--key", old, "--model-version", "7"]) == 0
    assert main(["sign", str(model), "--key", new]) == 2
    assert "version 7" in capsys.readouterr().err
    assert main(["sign", str(model), "--key", old, "--version-counter", str(counter)]) == 0
    assert "version 8" in capsys.readouterr().out
    os.unlink(f"{model}.modelsec.json")
    assert main(["sign", str(model), "--key", new, "--version-counter", str(counter)]) == 0
    assert "version 9" in capsys.readouterr().out


def test_rotation_keeps_rollback_protection(model, key, public, new_key):
    store = ms.TrustStore()
    store.add(public)
    store.add(new_key.verifying_key)
    sign(model, key, version=7)
    store.set_lowest_version("m.bin", 7)
    sign(model, new_key, version=store)
    verify(model, store, expected_name="m.bin")
    store.set_lowest_version("m.bin", version(model, new_key))
    sign(model, key, version=7)
    with pytest.raises(RolledBackError):
        verify(model, store, expected_name="m.bin")
