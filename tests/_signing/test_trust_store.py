"""The store as its user, its reader and its forger meet it."""

import base64
import datetime
import json
import multiprocessing
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_modelsec as ms
from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.store_signatures import PAYLOAD_TYPE
from keras_modelsec._signing.trust import load_trust
from keras_modelsec._signing.trust_store_contents import TrustStoreContents
from keras_modelsec._storage.locks import locked
from keras_modelsec.errors import (
    ConcurrentChangeError,
    KeyFormatError,
    RolledBackError,
    SignatureError,
    UntrustedKeyError,
)
from keras_modelsec.trust import SigningKey, TrustStore

UTC = datetime.UTC
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = datetime.timedelta(days=1)


def new_key():
    return SigningKey(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def root():
    return SigningKey(ed25519.Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def new_root():
    return SigningKey(ed25519.Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def filled(key, other_key):
    """A store with something in every field."""
    store = TrustStore()
    store.add(
        key.verifying_key,
        name="release \N{SNOWMAN}",
        comment="laptop",
        not_before=NOON - DAY,
        not_after=NOON + 4000 * DAY,
    )
    store.add(other_key.verifying_key)
    store.revoke(new_key().verifying_key, reason="lost", time=NOON)
    store.revoke(digest="ab" * 32, reason="backdoor", time=NOON)
    store.set_lowest_version("classifier", 7)
    store.set_lowest_version("*", 2)
    store.set_expiry(NOON + 4000 * DAY)
    return store


@pytest.fixture
def saved(tmp_path, filled, root):
    path = tmp_path / "trust.json"
    store = TrustStore()
    for name, value in vars(filled.contents()).items():
        setattr(store, name, value)
    store.save(path, root)
    return SimpleNamespace(path=path, store=store)


def write(path, payload, *signers):
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    path.write_bytes(DsseEnvelope.sign(payload, signers, PAYLOAD_TYPE).to_bytes())


def payload_of(path):
    return json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))


def test_saved_store_is_read_back_whole(saved, filled, root):
    loaded = TrustStore.load(saved.path, root.verifying_key)
    assert loaded.version == 1
    assert loaded.created is not None
    for name in ("threshold", "expires", "revoked_keys", "revoked_digests", "lowest_versions"):
        assert getattr(loaded, name) == getattr(filled, name), name
    assert list(loaded.roots) == [root.verifying_key.hint]
    for hint, entry in filled.keys.items():
        found = loaded.keys[hint]
        assert found.key.pem == entry.key.pem
        assert (found.name, found.comment) == (entry.name, entry.comment)
        assert (found.not_before, found.not_after) == (entry.not_before, entry.not_after)


def test_version_counts_the_saves(tmp_path, root):
    store, path = TrustStore(), tmp_path / "trust.json"
    for expected in (1, 2, 3):
        store.save(path, root)
        assert store.version == TrustStore.load(path, root.verifying_key).version == expected


# Attacks on the file


def test_every_changed_field_of_the_payload_breaks_the_signature(saved, root, json_tools):
    envelope = json.loads(saved.path.read_bytes())
    payload = payload_of(saved.path)
    paths = [path for path in json_tools.nodes(payload) if path]
    assert len(paths) > 30
    for path in paths:
        changed = json_tools.deleted(payload, path)
        envelope["payload"] = base64.b64encode(json.dumps(changed).encode()).decode()
        saved.path.write_text(json.dumps(envelope))
        with pytest.raises(SignatureError):
            TrustStore.load(saved.path, root.verifying_key)


@pytest.mark.parametrize("new", [None, True, -1, 0, 1.5, 10**20, "", "x", "\ud800", [], {}, [[]]])
def test_every_field_of_another_type_is_refused_even_if_the_root_signed_it(
    saved, root, json_tools, new
):
    payload = payload_of(saved.path)
    free = {"name", "comment", "reason"}
    for path in json_tools.nodes(payload):
        old = json_tools.at(payload, path)
        if type(old) is type(new) and (new in ([], {}) or (path and path[-1] in free)):
            continue
        if path and path[-1] in ("not_before", "not_after", "expires") and new is None:
            continue
        write(saved.path, json_tools.replaced(payload, path, new), root)
        with pytest.raises(SignatureError):
            TrustStore.load(saved.path, root.verifying_key)


def test_every_missing_or_unknown_field_is_refused_even_if_the_root_signed_it(
    saved, root, json_tools
):
    payload = payload_of(saved.path)
    for path in json_tools.nodes(payload):
        value = json_tools.at(payload, path)
        if isinstance(value, dict) and path != ("lowest_versions",):
            write(saved.path, json_tools.replaced(payload, path, {**value, "x": 1}), root)
            with pytest.raises(SignatureError, match="exactly the fields"):
                TrustStore.load(saved.path, root.verifying_key)
            for name in value:
                write(saved.path, json_tools.deleted(payload, (*path, name)), root)
                with pytest.raises(SignatureError, match="exactly the fields"):
                    TrustStore.load(saved.path, root.verifying_key)


def other_hint(payload):
    payload["keys"][0]["hint"] = payload["keys"][1]["hint"]


def two_keys_with_one_hint(payload):
    payload["keys"][1]["hint"] = payload["keys"][0]["hint"]


def key_twice(payload):
    payload["keys"].append(payload["keys"][0])


def root_twice(payload):
    payload["roots"] *= 2


def no_root(payload):
    payload["roots"] = []


def respelled(payload):
    lines = payload["keys"][0]["pem"].split("\n")
    payload["keys"][0]["pem"] = "\n".join([lines[0], "".join(lines[1:-2]), *lines[-2:]])


def path_for_a_key(payload):
    payload["keys"][0]["pem"] = "/etc/passwd"


def private_key(payload):
    payload["keys"][0]["pem"] = payload["keys"][0]["pem"].replace("PUBLIC", "PRIVATE")


def backwards(payload):
    payload["keys"][0].update(not_before="2026-06-01T12:00:00Z", not_after="2026-06-01T11:59:59Z")


def sloppy_time(payload):
    payload["created"] = "2026-6-1T12:00:00Z"


def revoked_root(payload):
    payload["revoked_keys"][0]["hint"] = payload["_root"]


def revoked_twice(payload):
    payload["revoked_digests"] *= 2


def key_revoked_twice(payload):
    payload["revoked_keys"] *= 2


def text_before_the_key(payload):
    payload["keys"][0]["pem"] = "note\n" + payload["keys"][0]["pem"]


def upper_case(payload):
    payload["revoked_digests"][0]["sha256"] = "AB" * 32


def other_type(payload):
    payload["_type"] = "https://keras_modelsec/trust-store/v2"


@pytest.mark.parametrize(
    "change",
    [
        other_hint,
        two_keys_with_one_hint,
        key_twice,
        root_twice,
        no_root,
        respelled,
        path_for_a_key,
        private_key,
        backwards,
        sloppy_time,
        revoked_root,
        revoked_twice,
        key_revoked_twice,
        text_before_the_key,
        upper_case,
        other_type,
    ],
)
def test_contradictions_are_refused_even_if_the_root_signed_them(saved, root, change):
    payload = {**payload_of(saved.path), "_root": root.verifying_key.hint}
    change(payload)
    del payload["_root"]
    write(saved.path, payload, root)
    with pytest.raises(SignatureError):
        TrustStore.load(saved.path, root.verifying_key)


def test_more_root_signatures_than_roots_are_refused_by_name(saved, root):
    payload = {**payload_of(saved.path), "root_threshold": 2}
    write(saved.path, payload, root)
    with pytest.raises(SignatureError, match="at most the number of roots"):
        TrustStore.load(saved.path, root.verifying_key)


def test_two_entries_for_one_json_key_are_refused(saved, root):
    payload = json.dumps(payload_of(saved.path)).replace(
        '"threshold": 1', '"threshold": 2, "threshold": 1'
    )
    write(saved.path, payload.encode(), root)
    with pytest.raises(SignatureError, match="not repeat a key"):
        TrustStore.load(saved.path, root.verifying_key)


def test_store_signed_by_a_stranger_is_refused_whatever_it_names_as_roots(saved, root, new_root):
    payload = payload_of(saved.path)
    write(saved.path, payload, new_root)
    with pytest.raises(UntrustedKeyError, match="must be signed by 1 of `root_keys`"):
        TrustStore.load(saved.path, root.verifying_key)
    payload["roots"] = [new_root.verifying_key.pem.decode()]
    write(saved.path, payload, new_root)
    with pytest.raises(UntrustedKeyError):
        TrustStore.load(saved.path, root.verifying_key)


def test_keyid_of_the_root_with_anothers_signature_is_refused(saved, root, new_root):
    write(saved.path, payload_of(saved.path), new_root)
    envelope = json.loads(saved.path.read_bytes())
    envelope["signatures"][0]["keyid"] = root.verifying_key.hint
    saved.path.write_text(json.dumps(envelope))
    with pytest.raises(SignatureError, match="does not verify"):
        TrustStore.load(saved.path, root.verifying_key)


def test_a_models_statement_is_no_store_and_a_store_no_statement(tmp_path, key, root):
    (tmp_path / "m.bin").write_bytes(b"weights")
    ms.sign(tmp_path / "m.bin", key)
    statement = tmp_path / "m.bin.modelsec.json"
    with pytest.raises(SignatureError, match="payloadType"):
        TrustStore.load(statement, key.verifying_key)
    store = TrustStore()
    store.add(key.verifying_key)
    statement.unlink()
    store.save(statement, key)
    with pytest.raises(SignatureError, match="payloadType"):
        ms.verify(tmp_path / "m.bin", key.verifying_key)
    # the same bytes with the other type's name are not signed
    envelope = json.loads(statement.read_bytes())
    envelope["payloadType"] = "application/vnd.in-toto+json"
    statement.write_text(json.dumps(envelope))
    with pytest.raises(SignatureError, match="does not verify"):
        ms.verify(tmp_path / "m.bin", key.verifying_key)


def test_link_missing_file_and_junk_are_named_errors(tmp_path, saved, root):
    link = tmp_path / "link.json"
    link.symlink_to(saved.path)
    with pytest.raises(SignatureError, match="symbolic link"):
        TrustStore.load(link, root.verifying_key)
    with pytest.raises(FileNotFoundError):
        TrustStore.load(tmp_path / "gone.json", root.verifying_key)
    for junk in (b"", b"{}", b"[" * 100_000, b"\xff", b"null"):
        saved.path.write_bytes(junk)
        with pytest.raises(SignatureError, match=r"trust\.json"):
            TrustStore.load(saved.path, root.verifying_key)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_parser_raises_nothing_but_signature_error(data):
    with pytest.raises(SignatureError):
        TrustStoreContents.from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_field_replaced_by_any_json_is_refused_or_read(filled, root, json_tools, data):
    contents = filled.contents()
    contents.version, contents.created = 1, NOON
    contents.roots = {root.verifying_key.hint: root.verifying_key}
    payload = json.loads(contents.to_bytes())
    path = data.draw(st.sampled_from([p for p in json_tools.nodes(payload) if p]))
    changed = json_tools.replaced(payload, path, data.draw(json_values))
    try:
        again = TrustStoreContents.from_bytes(json.dumps(changed).encode())
    except SignatureError:
        return
    assert json.loads(again.to_bytes()) == changed  # read as it was written, or not at all


# Rollback and rotation


def test_older_version_of_the_store_is_refused(tmp_path, root):
    store, path = TrustStore(), tmp_path / "trust.json"
    store.save(path, root)
    old = path.read_bytes()
    store.save(path, root)
    seen = TrustStore.load(path, root.verifying_key, minimum_store_version=2)
    path.write_bytes(old)
    assert TrustStore.load(path, root.verifying_key).version == 1
    with pytest.raises(RolledBackError, match=r"at least version 2.*version 1"):
        TrustStore.load(path, root.verifying_key, minimum_store_version=2)
    with pytest.raises(RolledBackError):
        TrustStore.load(path, seen)


def test_expired_store_is_refused_when_loaded_and_when_used(tmp_path, root, key):
    store, path = TrustStore(), tmp_path / "trust.json"
    store.add(key.verifying_key)
    store.set_expiry(NOON)
    store.save(path, root)
    loaded = TrustStore.load(path, root.verifying_key, at=NOON)
    with pytest.raises(RolledBackError, match="expired"):
        TrustStore.load(path, root.verifying_key, at=NOON + datetime.timedelta(seconds=1))
    hint = key.verifying_key.hint
    assert load_trust(loaded, at=NOON).find(hint)
    with pytest.raises(RolledBackError, match="expired"):
        load_trust(loaded, at=NOON + DAY).find(hint)


def test_rotation_is_signed_by_old_and_new_and_followed(tmp_path, root, new_root):
    store, path = TrustStore(), tmp_path / "trust.json"
    store.save(path, root)
    reader = TrustStore.load(path, root.verifying_key)
    with pytest.raises(ValueError, match="1 of the last saved version's roots"):
        store.save(path, new_root, roots=new_root.verifying_key)
    with pytest.raises(ValueError, match="1 of its own roots"):
        store.save(path, root, roots=new_root.verifying_key)
    store.save(path, [root, new_root], roots=new_root.verifying_key)
    assert TrustStore.load(path, root.verifying_key).version == 2  # pinned the old key
    assert TrustStore.load(path, new_root.verifying_key).version == 2  # pinned the new one
    reader = TrustStore.load(path, reader)
    store.save(path, new_root)
    assert TrustStore.load(path, reader).version == 3  # followed
    with pytest.raises(UntrustedKeyError, match="rotated"):
        TrustStore.load(path, root.verifying_key)  # not followed


def test_old_root_cannot_sign_after_the_rotation(tmp_path, root, new_root):
    store, path = TrustStore(), tmp_path / "trust.json"
    store.save(path, root)
    store.save(path, [root, new_root], roots=new_root.verifying_key)
    reader = TrustStore.load(path, root.verifying_key)
    with pytest.raises(ValueError, match="must hold 1 of its own roots"):
        store.save(path, root)
    payload = {**payload_of(path), "version": 3, "roots": [root.verifying_key.pem.decode()]}
    write(path, payload, root)
    with pytest.raises(UntrustedKeyError):
        TrustStore.load(path, reader)


def test_store_that_its_own_roots_did_not_sign_is_refused(saved, root, new_root):
    payload = {**payload_of(saved.path), "roots": [new_root.verifying_key.pem.decode()]}
    write(saved.path, payload, root)
    with pytest.raises(UntrustedKeyError, match="the roots it names"):
        TrustStore.load(saved.path, root.verifying_key)


def test_root_threshold_counts_different_keys(tmp_path, root, new_root):
    store, path = TrustStore(), tmp_path / "trust.json"
    both = [root.verifying_key, new_root.verifying_key]
    with pytest.raises(ValueError, match="must hold 2 of its own roots"):
        store.save(path, root, roots=both, root_threshold=2)
    with pytest.raises(ValueError, match="different keys"):
        store.save(path, [root, root, new_root], roots=both, root_threshold=2)
    store.save(path, [root, new_root], roots=both, root_threshold=2)
    assert TrustStore.load(path, both, root_threshold=2).root_threshold == 2
    payload = payload_of(path)
    write(path, payload, root)
    with pytest.raises(UntrustedKeyError, match="must be signed by 2"):
        TrustStore.load(path, both, root_threshold=2)
    with pytest.raises(UntrustedKeyError, match="must be signed by 2 of the roots it names"):
        TrustStore.load(path, both)
    envelope = json.loads(path.read_bytes())
    envelope["signatures"] *= 2
    path.write_text(json.dumps(envelope))
    with pytest.raises(SignatureError, match="each key once"):
        TrustStore.load(path, both, root_threshold=2)


def test_root_is_not_revoked_while_it_is_one(tmp_path, root, new_root):
    store, path = TrustStore(), tmp_path / "trust.json"
    store.save(path, root)
    with pytest.raises(ValueError, match="must leave the roots"):
        store.revoke(root.verifying_key)
    store.save(path, [root, new_root], roots=new_root.verifying_key)
    store.revoke(root.verifying_key, reason="stolen")
    store.save(path, new_root)
    assert TrustStore.load(path, new_root.verifying_key).version == 3


# Two writers


def test_second_writer_is_told_and_loses_nothing(tmp_path, root, key, other_key):
    path = tmp_path / "trust.json"
    TrustStore().save(path, root)
    first = TrustStore.load(path, root.verifying_key)
    second = TrustStore.load(path, root.verifying_key)
    first.add(key.verifying_key)
    second.add(other_key.verifying_key)
    first.save(path, root)
    with pytest.raises(ConcurrentChangeError, match="somebody saved since"):
        second.save(path, root)
    assert list(TrustStore.load(path, root.verifying_key).keys) == [key.verifying_key.hint]


def test_existing_file_is_not_replaced_by_a_new_store(tmp_path, root, new_root):
    path = tmp_path / "trust.json"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        TrustStore().save(path, root)
    assert path.read_bytes() == b"precious"
    TrustStore().save(path, root, overwrite=True)
    store = TrustStore.load(path, root.verifying_key)
    store.save(path, new_root, roots=new_root.verifying_key, overwrite=True)
    assert TrustStore.load(path, new_root.verifying_key).version == 2


def test_writer_waits_for_the_lock_of_another(tmp_path, root):
    pytest.importorskip("fcntl")
    path = tmp_path / "trust.json"
    store = TrustStore()
    store.save(path, root)
    with locked(tmp_path, path.name):
        writer = threading.Thread(target=store.save, args=(path, root))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert TrustStore.load(path, root.verifying_key).version == 1
    writer.join(600)
    assert TrustStore.load(path, root.verifying_key).version == 2


def add_one(path, pem, root_pem):
    from keras_modelsec.errors import ConcurrentChangeError
    from keras_modelsec.trust import TrustStore, load_signing_key

    root = load_signing_key(root_pem)
    while True:
        store = TrustStore.load(path, root.verifying_key)
        store.add(pem)
        try:
            store.save(path, root)
            return
        except ConcurrentChangeError:
            continue


def test_writers_in_parallel_lose_no_entry(tmp_path):
    root_pem, _ = ms.generate_keys(tmp_path / "root.pem", algorithm="ed25519")
    root = ms.trust.load_signing_key(root_pem)
    path = tmp_path / "trust.json"
    TrustStore().save(path, root)
    pems = [new_key().verifying_key.pem for _ in range(4)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_one, args=(path, pem, root_pem)) for pem in pems]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
        assert writer.exitcode == 0
    store = TrustStore.load(path, root.verifying_key, minimum_store_version=5)
    assert {entry.key.pem for entry in store.keys.values()} == set(pems)


def test_path_of_a_store_in_place_of_a_key_says_what_to_do(saved):
    with pytest.raises(KeyFormatError, match=r"JSON in .*trust\.json.*TrustStore\.load"):
        load_trust(saved.path)


# The format


GOLDEN = Path(__file__).parents[1] / "golden" / "integrity"


def test_golden_stores_are_read_for_ever(tmp_path):
    root = GOLDEN / "trust-root.pub"
    first = TrustStore.load(GOLDEN / "trust.v1.json", root, at=NOON)
    assert (first.version, first.threshold, first.root_threshold) == (1, 2, 1)
    assert {entry.key.algorithm for entry in first.keys.values()} == {
        "ecdsa-p256",
        "ecdsa-p384",
        "ed25519",
        "ml-dsa-65",
    }
    assert [entry.reason for entry in first.revoked_keys.values()] == ["laptop \N{SNOWMAN}"]
    assert [entry.reason for entry in first.revoked_digests.values()] == ["backdoor"]
    assert first.lowest_versions == {"*": 2, "classifier": 7}
    second = TrustStore.load(GOLDEN / "trust.v2-rotated.json", first, at=NOON)
    assert (second.version, len(second.roots), second.root_threshold) == (2, 2, 2)
    contents = TrustStoreContents.from_bytes(
        json.dumps(payload_of(GOLDEN / "trust.v1.json")).encode()
    )
    assert json.loads(contents.to_bytes()) == payload_of(GOLDEN / "trust.v1.json")
    text = (GOLDEN / "trust.v1.json").read_text()
    (tmp_path / "trust.json").write_text(text.replace('"sig":"', '"sig":"A', 1))
    with pytest.raises(SignatureError):
        TrustStore.load(tmp_path / "trust.json", root, at=NOON)


def regenerate(scratch):
    """Writes the golden files anew; only for a deliberate change of format."""
    pairs = {
        name: ms.generate_keys(scratch / f"{name}.pem", algorithm=name, overwrite=True)
        for name in ("p256", "p384", "ed25519", "ml-dsa-65", "p521")
    }
    root = SigningKey(ed25519.Ed25519PrivateKey.generate())
    second, third = new_key(), SigningKey(ed25519.Ed25519PrivateKey.generate())
    (GOLDEN / "trust-root.pub").write_bytes(root.verifying_key.pem)
    store = TrustStore(threshold=2)
    for name in ("p256", "p384", "ed25519", "ml-dsa-65"):
        store.add(pairs[name].public_path, name=name, comment="golden", not_before=NOON - DAY)
    store.revoke(pairs["p521"].public_path, reason="laptop \N{SNOWMAN}", time=NOON)
    store.revoke(digest="ab" * 32, reason="backdoor", time=NOON)
    store.set_lowest_version("classifier", 7)
    store.set_lowest_version("*", 2)
    store.set_expiry(NOON + 36500 * DAY)
    store.save(GOLDEN / "trust.v1.json", root, overwrite=True)
    roots = [second.verifying_key, third.verifying_key]
    rotated = GOLDEN / "trust.v2-rotated.json"
    rotated.unlink(missing_ok=True)
    store.save(rotated, [root, second, third], roots=roots, root_threshold=2)


# Arguments


def test_wrong_arguments_are_named(tmp_path, key, root):
    store = TrustStore()
    hint = store.add(key.verifying_key)
    cases = [
        (lambda: TrustStore(threshold=0), ValueError, "`threshold`"),
        (lambda: store.add(key), KeyFormatError, "`key`"),
        (lambda: store.add(hint), FileNotFoundError, "`key`"),
        (lambda: store.add(key.verifying_key, name=3), TypeError, "`name`"),
        (lambda: store.add(key.verifying_key, name="\ud800"), ValueError, "Unicode"),
        (lambda: store.add(key.verifying_key, not_after="2026"), TypeError, "`not_after`"),
        (
            lambda: store.add(key.verifying_key, not_after=datetime.datetime(2026, 1, 1)),
            ValueError,
            "time zone",
        ),
        (
            lambda: store.add(key.verifying_key, not_before=NOON, not_after=NOON - DAY),
            ValueError,
            "`not_after` must not be before",
        ),
        (lambda: store.revoke(), ValueError, "a key or a digest"),
        (lambda: store.revoke(hint, digest="ab" * 32), ValueError, "both"),
        (lambda: store.revoke(digest="AB" * 32), ValueError, "lower-case"),
        (lambda: store.set_lowest_version("", 1), ValueError, "model's name"),
        (lambda: store.set_lowest_version("m", 0), ValueError, "`version`"),
        (lambda: store.save(tmp_path / "no" / "t", root), FileNotFoundError, "no"),
        (lambda: TrustStore.load(tmp_path, TrustStore()), ValueError, "without a version"),
        (lambda: load_trust([store, TrustStore()]), ValueError, "at most one trust store"),
    ]
    for act, error, message in cases:
        with pytest.raises(error, match=message):
            act()
    store.revoke(hint)
    with pytest.raises(ValueError, match="revocation is for good"):
        store.add(key.verifying_key)
    store.set_lowest_version("m", 5)
    with pytest.raises(ValueError, match="never fall"):
        store.set_lowest_version("m", 4)


def test_more_signatures_than_keys_is_refused_when_saved(tmp_path, key, root):
    store = TrustStore(threshold=2)
    store.add(key.verifying_key)
    with pytest.raises(ValueError, match="as many keys as must sign"):
        store.save(tmp_path / "trust.json", root)


def test_store_shows_no_secret_and_names_its_state(saved):
    assert repr(saved.store) == "TrustStore(version=1, 2 keys, threshold=1, 1 revoked)"
    assert "PRIVATE" not in saved.path.read_text()
