import hashlib
import json

import pytest

import keras_modelsec as ms
from keras_modelsec.cli.main import main
from keras_modelsec.errors import RevokedModelError, RolledBackError
from keras_modelsec.trust import TrustStore


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner", "other", "root", "new"):
        ms.generate_keys(f"{name}.pem")
    (tmp_path / "model.bin").write_bytes(b"weights")
    ms.sign("model.bin", "owner.pem")
    return tmp_path


def trust(*arguments, code=0):
    assert main(["trust", *map(str, arguments)]) == code


def load(**options):
    return TrustStore.load("trust.json", "root.pub", **options)


def test_add_require_revoke_and_what_verify_makes_of_it(folder, capsys):
    trust("add", "trust.json", "owner.pub", "--root", "root.pem", "--name", "release")
    ms.verify("model.bin", load())
    assert load().keys[ms.trust.load_signing_key("owner.pem").verifying_key.hint].name
    trust("require", "trust.json", "model.bin", "1", "--root", "root.pem")
    ms.verify("model.bin", load())
    trust("require", "trust.json", "model.bin", "2", "--root", "root.pem")
    with pytest.raises(RolledBackError):
        ms.verify("model.bin", load())
    trust("revoke", "trust.json", "--model", "model.bin", "--root", "root.pem", "--reason", "bad")
    with pytest.raises(RevokedModelError, match="bad"):
        ms.verify("model.bin", load())
    trust("revoke", "trust.json", "--key", "owner.pub", "--root", "root.pem", "--reason", "lost")
    with pytest.raises(ms.SignatureError, match="lost"):
        ms.verify("model.bin", load(minimum_store_version=5))
    assert "version 5" in capsys.readouterr().out


def test_folder_is_revoked_by_what_its_statement_says(folder):
    (folder / "model").mkdir()
    for name in ("a", "b"):
        (folder / "model" / name).write_bytes(name.encode())
    ms.sign("model", "owner.pem")
    trust("add", "trust.json", "owner.pub", "--root", "root.pem")
    ms.verify("model", load())
    trust("revoke", "trust.json", "--model", "model", "--root", "root.pem")
    with pytest.raises(RevokedModelError):
        ms.verify("model", load())


def test_list_shows_everything_as_text_and_json(folder, capsys):
    digest = hashlib.sha256(b"x").hexdigest()
    trust("add", "trust.json", "owner.pub", "--root", "root.pem", "--name", "A\nB\x1b[2J")
    times = ("--not-before", "2026-01-01", "--not-after", "2040-01-31T12:00+02:00")
    trust("add", "trust.json", "other.pub", "--root", "root.pem", *times, "--threshold", "2")
    trust("require", "trust.json", "*", "3", "--root", "root.pem", "--expires", "2039-12-31")
    trust("revoke", "trust.json", "--digest", digest, "--root", "root.pem", "--reason", "why")
    capsys.readouterr()
    trust("list", "trust.json", "--root", "root.pub")
    text = capsys.readouterr().out
    for part in (digest, "why", "*  3", "from 2026-01-01T00:00:00Z", "until 2040-01-31T10:00:00Z"):
        assert part in text
    assert "expires: 2039-12-31T00:00:00Z" in text
    assert "signatures by 2" in text
    assert "A\\nB\\x1b[2J" in text  # nothing in a name steers the terminal
    for arguments in (["trust", "list", "--json"], ["trust", "--json", "list"]):
        assert main([*arguments, "trust.json", "--root", "root.pub"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["ok"] is True
        assert shown["version"] == 4
        assert shown["lowest_versions"] == {"*": 3}


def test_rotation_by_command(folder, capsys):
    trust("add", "trust.json", "owner.pub", "--root", "root.pem")
    trust("rotate", "trust.json", "new.pub", "--root", "root.pem", code=2)
    assert "Sign with the old root and the new one" in capsys.readouterr().err
    trust("rotate", "trust.json", "new.pub", "--root", "root.pem", "--root", "new.pem")
    trust("require", "trust.json", "m", "1", "--root", "root.pem", code=2)
    trust("require", "trust.json", "m", "1", "--root", "new.pem")
    trust("list", "trust.json", "--root", "new.pub")
    capsys.readouterr()
    trust("list", "trust.json", "--root", "root.pub", code=1)


def test_forged_old_and_missing_stores_give_their_exit_codes(folder, capsys):
    trust("list", "trust.json", "--root", "root.pub", code=2)
    trust("add", "trust.json", "owner.pub", "--root", "root.pem")
    trust("list", "trust.json", "--root", "other.pub", code=1)
    trust("list", "trust.json", "--root", "root.pub", "--minimum-store-version", "2", code=1)
    text = (folder / "trust.json").read_text()
    (folder / "trust.json").write_text(text.replace("sig", "gis"))
    trust("list", "trust.json", "--root", "root.pub", code=1)
    trust("add", "trust.json", "other.pub", "--root", "root.pem", code=2)
    assert (folder / "trust.json").read_text() == text.replace("sig", "gis")


def test_expired_store_is_renewed_by_its_root(folder, capsys):
    trust("add", "trust.json", "owner.pub", "--root", "root.pem", "--expires", "2020-01-01")
    trust("list", "trust.json", "--root", "root.pub", code=1)
    trust("add", "trust.json", "other.pub", "--root", "root.pem", "--expires", "2090-01-01")
    trust("list", "trust.json", "--root", "root.pub")


def test_root_key_with_a_password(folder, monkeypatch):
    monkeypatch.setenv("ROOT_PASSWORD", "geheim")
    ms.generate_keys("root.pem", password="geheim", overwrite=True)
    arguments = ("--root", "root.pem", "--password-env", "ROOT_PASSWORD")
    trust("add", "trust.json", "owner.pub", *arguments)
    assert load().version == 1
    trust("add", "trust.json", "other.pub", "--root", "root.pem", code=2)


def test_several_roots_of_which_one_has_a_password(folder, monkeypatch):
    monkeypatch.setenv("ROOT_PASSWORD", "geheim")
    ms.generate_keys("new.pem", password="geheim", overwrite=True)
    trust("add", "trust.json", "owner.pub", "--root", "root.pem")
    both = ("--root", "root.pem", "--root", "new.pem", "--password-env", "ROOT_PASSWORD")
    trust("rotate", "trust.json", "new.pub", *both)
    trust("list", "trust.json", "--root", "new.pub")


def test_older_store_put_back_is_not_built_upon(folder):
    trust("add", "trust.json", "owner.pub", "--root", "root.pem")
    old = (folder / "trust.json").read_bytes()
    trust("revoke", "trust.json", "--key", "owner.pub", "--root", "root.pem")
    (folder / "trust.json").write_bytes(old)
    seen = ("--root", "root.pem", "--minimum-store-version", "2")
    trust("add", "trust.json", "other.pub", *seen, code=2)
    (folder / "trust.json").unlink()
    trust("add", "trust.json", "other.pub", *seen, code=2)
    assert not (folder / "trust.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("add",),
        ("add", "trust.json", "owner.pub"),
        ("add", "trust.json", "owner.pub", "--root", "root.pem", "--not-after", "tomorrow"),
        ("revoke", "trust.json", "--root", "root.pem"),
        ("revoke", "trust.json", "--root", "root.pem", "--key", "a", "--digest", "b"),
        ("require", "trust.json", "m", "--root", "root.pem"),
        ("require", "trust.json", "m", "x", "--root", "root.pem"),
        ("list", "trust.json"),
    ],
)
def test_malformed_command_lines_give_exit_code_2(folder, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["trust", *arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "gone/trust.json", "owner.pub"),
        ("add", "trust.json", "gone.pub"),
        ("add", "trust.json", "owner.pem"),
        ("add", "trust.json", "owner.pub", "--threshold", "0"),
        ("revoke", "trust.json", "--key", "owner.pub"),
        ("revoke", "trust.json", "--digest", "xyz"),
        ("revoke", "trust.json", "--model", "gone.bin"),
        ("require", "trust.json", "m", "0"),
    ],
)
def test_wrong_values_give_exit_code_2_and_write_nothing(folder, arguments, capsys):
    trust(*arguments, "--root", "root.pem", code=2)
    assert capsys.readouterr().err.startswith("modelsec: ")
    assert not (folder / "trust.json").exists()
