"""Each private format is read by docs/readers/, without this package, from files that it wrote.

Beside them stand tampered files, which a reader must refuse: one that takes anything reads nothing.
"""

import ast
import datetime
import functools
import importlib
import json
import os
import random
import runpy
import shutil
import sys
from pathlib import Path

import keras
import pytest
from cryptography.hazmat.primitives import serialization

import keras_modelsec as ms

READERS = Path(__file__).parents[2] / "docs" / "readers"
MOST_LINES = 80
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _readers_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(READERS))
    yield
    for path in READERS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def refuses(function, *arguments, **options):
    error = importlib.import_module("signed").RefusedError
    with pytest.raises(error):
        function(*arguments, **options)


@pytest.mark.parametrize("path", sorted(READERS.glob("*.py")), ids=lambda path: path.stem)
def test_reader_is_short_and_needs_python_and_cryptography_alone(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MOST_LINES
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    siblings = {other.stem for other in READERS.glob("*.py")}
    assert imported <= set(sys.stdlib_module_names) | siblings | {"cryptography"}


# statements


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Keras model and a folder, each signed by two keys."""
    folder = tmp_path_factory.mktemp("signed")
    ms.generate_keys(folder / "owner.pem")
    ms.generate_keys(folder / "second.pem", algorithm="ed25519")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1100), keras.layers.Dense(8)])
    model.save(folder / "model.keras")
    exported = folder / "exported"
    (exported / "variables").mkdir(parents=True)
    for name, size in (("saved_model.pb", 300), ("variables/data", 600_000), ("empty", 0)):
        (exported / name).write_bytes(random.Random(size).randbytes(size))
    for name in ("model.keras", "exported"):
        co_signers = [folder / "second.pem"]
        ms.sign(folder / name, folder / "owner.pem", co_signing_keys=co_signers, version=3)
    return folder


@pytest.fixture
def signed(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "signed")


def keys_in(folder, *names):
    return [(folder / f"{name}.pub").read_bytes() for name in names]


@pytest.mark.parametrize("name", ["model.keras", "exported"])
def test_statement_is_read_and_holds_for_every_byte(signed, name):
    reader = importlib.import_module("statement")
    model, keys = signed / name, keys_in(signed, "owner", "second")
    said = reader.read(model, keys, threshold=2)["predicate"]
    assert (said["model"], said["version"]) == (name, 3)
    assert len(said["tensors"]) == (4 if name == "model.keras" else 0)
    for path in [p for p in [model, *model.rglob("*")] if p.is_file()]:
        good = path.read_bytes()
        path.write_bytes(good + b"x")
        refuses(reader.read, model, keys)
        for at in random.Random(0).sample(range(len(good)), min(20, len(good))):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            refuses(reader.read, model, keys)
        path.write_bytes(good)
    reader.read(model, keys)


def test_statement_of_a_stranger_or_with_another_file_beside_is_refused(signed):
    reader = importlib.import_module("statement")
    ms.generate_keys(signed / "stranger.pem")
    refuses(reader.read, signed / "model.keras", keys_in(signed, "stranger"))
    refuses(reader.read, signed / "model.keras", keys_in(signed, "owner", "stranger"), threshold=2)
    (signed / "exported" / "added").write_bytes(b"")
    refuses(reader.read, signed / "exported", keys_in(signed, "owner"))


def test_edited_statement_is_refused(signed):
    reader = importlib.import_module("statement")
    model = signed / "model.keras"
    place = signed / "model.keras.modelsec.json"
    good = place.read_bytes()
    for at in random.Random(0).sample(range(len(good)), 60):
        place.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refuses(reader.read, model, keys_in(signed, "owner", "second"), threshold=2)
    envelope = json.loads(good)
    envelope["signatures"].reverse()
    place.write_bytes(json.dumps(envelope).encode())
    reader.read(model, keys_in(signed, "owner", "second"), threshold=2)


# trust stores


@pytest.fixture
def store(signed):
    """A store of two roots that trusts two keys, revokes one and wants version 3."""
    ms.generate_keys(signed / "root.pem")
    ms.generate_keys(signed / "root2.pem", algorithm="ed25519")
    store = ms.TrustStore()
    store.add(signed / "owner.pub")
    store.add(signed / "second.pub")
    store.revoke(signed / "second.pub", reason="lost")
    store.set_lowest_version("model.keras", 3)
    store.save(signed / "trust.json", [signed / "root.pem", signed / "root2.pem"])
    return signed / "trust.json"


def test_trust_store_is_read_and_decides_as_the_package_does(signed, store):
    reader = importlib.import_module("trust_store")
    statement = importlib.import_module("statement")
    contents = reader.read(store.read_bytes(), keys_in(signed, "root", "root2"), root_threshold=2)
    (pem,) = reader.trusted(contents).values()
    assert pem.encode() == (signed / "owner.pub").read_bytes()
    said = statement.read(signed / "model.keras", [pem.encode()])
    assert reader.accepts(contents, said, reader.trusted(contents))
    assert not reader.accepts(contents, said, [])
    ms.sign(signed / "model.keras", signed / "owner.pem", version=2)
    old = statement.read(signed / "model.keras", [pem.encode()])
    assert not reader.accepts(contents, old, reader.trusted(contents))
    with pytest.raises(ms.SignatureError):
        ms.verify(signed / "model.keras", ms.TrustStore.load(store, signed / "root.pub"))


def test_tampered_expired_or_old_trust_store_is_refused(signed, store):
    reader = importlib.import_module("trust_store")
    good, roots = store.read_bytes(), keys_in(signed, "root", "root2")
    reader.read(good, roots)
    refuses(reader.read, good, keys_in(signed, "owner"))
    refuses(reader.read, good, roots, lowest_version=2)
    for at in random.Random(0).sample(range(len(good)), 60):
        edited = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        refuses(reader.read, edited, roots, root_threshold=2)
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    again = ms.TrustStore.load(store, signed / "root.pub")
    again.set_expiry(soon)
    again.save(store, [signed / "root.pem", signed / "root2.pem"])
    reader.read(store.read_bytes(), roots)
    late = soon + datetime.timedelta(days=1)
    refuses(reader.read, store.read_bytes(), roots, now=late)


# keys at rest


@pytest.mark.parametrize(
    "algorithm",
    ["p256", "ed25519", pytest.param("ml-dsa-65", marks=pytest.mark.needs_cryptography(48))],
)
def test_wrapped_signing_key_is_opened(tmp_path, algorithm):
    reader = importlib.import_module("key_files")
    private, public = ms.generate_keys(tmp_path / "k.pem", algorithm=algorithm, password=PASSWORD)
    key = reader.signing_key(private.read_text(), PASSWORD)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    assert key.public_key().public_bytes(serialization.Encoding.PEM, form) == public.read_bytes()


def test_wrapped_key_with_another_password_or_an_edited_byte_is_refused(tmp_path):
    reader = importlib.import_module("key_files")
    private, _ = ms.generate_keys(tmp_path / "k.pem", password=PASSWORD)
    refuses(reader.signing_key, private.read_text(), "another")
    lines = private.read_text().splitlines(keepends=True)
    middle = lines[3]
    lines[3] = ("A" if middle[5] != "A" else "B").join([middle[:5], middle[6:]])
    refuses(reader.signing_key, "".join(lines), PASSWORD)


# encrypted files


@pytest.fixture
def encrypted(tmp_path):
    """A file of several chunks, for a raw key and a passphrase."""
    plain = random.Random(0).randbytes((2 << 20) + 5)
    (tmp_path / "model.bin").write_bytes(plain)
    keys = [bytes(range(32)), ms.encryption.Passphrase(PASSWORD)]
    return plain, ms.encrypt_file(tmp_path / "model.bin", keys).read_bytes()


def test_encrypted_file_is_read_by_key_and_by_passphrase(encrypted):
    reader = importlib.import_module("encryption")
    plain, data = encrypted
    assert reader.decrypt(data, key=bytes(range(32))) == plain
    assert reader.decrypt(data, passphrase=PASSWORD) == plain
    refuses(reader.decrypt, data, key=bytes(32))
    refuses(reader.decrypt, data, passphrase="another")
    refuses(reader.decrypt, data)


def test_tampered_encrypted_file_is_refused(encrypted):
    reader = importlib.import_module("encryption")
    decrypt = functools.partial(reader.decrypt, key=bytes(range(32)))
    _, data = encrypted
    begin, chunk = data.index(b"MSPW") + 108 + 32, (1 << 20) + 16
    moved = data[begin + chunk : begin + 2 * chunk] + data[begin : begin + chunk]
    assert len(data) == begin + 2 * chunk + 5 + 16
    refuses(decrypt, data[:begin] + moved + data[begin + 2 * chunk :])
    refuses(decrypt, data[: begin + 2 * chunk])
    refuses(decrypt, data[:begin])
    places = [*range(begin), *random.Random(0).sample(range(begin, len(data)), 20)]
    for at in places:
        refuses(decrypt, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.needs_cryptography(50)
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_encrypted_model_is_read_with_a_private_key(tmp_path, password):
    private, public = ms.encryption.generate_encryption_keys(tmp_path / "k.key", password=password)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    path = ms.save_encrypted(model, tmp_path / "model.keras.enc", public)
    reader = importlib.import_module("encryption")
    seed = reader.encryption_seed(private.read_text(), password)
    (tmp_path / "back.keras").write_bytes(reader.decrypt(path.read_bytes(), seed=seed))
    back = keras.models.load_model(tmp_path / "back.keras")
    assert (back.layers[0].kernel.numpy() == model.layers[0].kernel.numpy()).all()
    refuses(reader.decrypt, path.read_bytes(), seed=bytes(32))
    altered = private.read_text().replace("MODELSEC", "MODELSEK")
    refuses(reader.encryption_seed, altered, password)


# parity


@pytest.fixture
def damaged(signed):
    """The names, the signed contents and damaged ones, and the parity file, of a folder."""
    ms.write_parity(signed / "exported", signed / "owner.pem", redundancy=0.1)
    paths = [path for path in (signed / "exported").rglob("*") if path.is_file()]
    good = {p.relative_to(signed / "exported").as_posix(): p.read_bytes() for p in paths}
    bad = {name: bytearray(content) for name, content in good.items()}
    bad["variables/data"][100_000:135_000] = bytes(35_000)
    bad["variables/data"][400_000] ^= 1
    bad["saved_model.pb"] = bad["saved_model.pb"][:10]
    return good, {n: bytes(b) for n, b in bad.items()}, (signed / "exported.parity").read_bytes()


def test_damaged_model_is_restored_from_its_parity_file(signed, damaged):
    reader = importlib.import_module("parity")
    good, bad, parity = damaged
    keys = keys_in(signed, "owner")
    assert reader.restore(good, parity, keys) == good
    assert reader.restore(bad, parity, keys) == good
    refuses(reader.restore, {}, parity, keys)
    refuses(reader.restore, bad, parity, keys_in(signed, "second"))


def test_tampered_parity_file_restores_nothing_but_the_signed_bytes(signed, damaged):
    reader = importlib.import_module("parity")
    good, bad, parity = damaged
    keys = keys_in(signed, "owner")
    refused, chosen = 0, random.Random(0)
    for at in [*chosen.sample(range(16, 2000), 20), *chosen.sample(range(len(parity)), 20)]:
        edited = parity[:at] + bytes([parity[at] ^ 1]) + parity[at + 1 :]
        try:
            assert reader.restore(bad, edited, keys) == good
        except importlib.import_module("signed").RefusedError:
            refused += 1
    assert refused > 10


# their commands


def test_each_reader_is_a_command_too(signed, store, tmp_path, monkeypatch, capsys):
    ms.write_parity(signed / "model.keras", signed / "owner.pem")
    good = (signed / "model.keras").read_bytes()
    (signed / "wrapped").mkdir()
    private, _ = ms.generate_keys(signed / "wrapped" / "k.pem", password=PASSWORD)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(os.fspath, arguments)])
        runpy.run_path(str(READERS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    assert "version 3" in run("statement", signed / "model.keras", signed / "owner.pub")
    assert "version 1" in run("trust_store", store, signed / "root.pub")
    assert "BEGIN PRIVATE KEY" in run("key_files", private, PASSWORD)
    (signed / "model.keras").write_bytes(good[:5000] + b"damage" + good[5006:])
    run("parity", signed / "model.keras", tmp_path / "back", signed / "owner.pub")
    assert (tmp_path / "back" / "model.keras").read_bytes() == good
