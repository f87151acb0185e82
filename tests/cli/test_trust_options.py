"""What the command line can ask for, its exit codes and its words."""

import json
import shutil

import pytest

from keras_modelsec.cli.main import main

READERS = [("verify", "m"), ("locate", "m"), ("inspect", "m"), ("repair", "m"), ("diff", "m", "m")]
every_reader = pytest.mark.parametrize("command", READERS, ids=[r[0] for r in READERS])


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    output = capsys.readouterr()
    return code, output.out + output.err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "m").write_bytes(bytes(20_000))
        for name in ("o", "root", "root2"):
            assert main(["keygen", f"{name}.pem"]) == 0
        assert main(["keygen", "e.pem", "--algorithm", "ed25519"]) == 0
        add = ["trust", "add", "t.json", "o.pub", "--root", "root.pem"]
        assert main(add) == 0
        shutil.copy("t.json", "old.json")
        assert main(["trust", "revoke", *add[2:3], "--key", "o.pub", *add[4:]]) == 0
        signing = ["m", "--key", "o.pem", "--co-key", "e.pem"]
        assert main(["sign", *signing]) == 0
        assert main(["protect", *signing, "--redundancy", "1"]) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return tmp_path


@every_reader
def test_old_trust_store_put_back_is_refused_if_its_lowest_version_is_stated(
    folder, capsys, command
):
    trusted = ("--root", "root.pub", "--trust-store")
    assert run(capsys, *command, *trusted, "t.json")[0] == 1  # the key is revoked
    shutil.copy("old.json", "t.json")  # what an attacker does
    assert run(capsys, *command, *trusted, "t.json")[0] == 0
    code, text = run(capsys, *command, *trusted, "t.json", "--minimum-store-version", 2)
    assert code == 1
    assert "RolledBackError" in text
    assert run(capsys, *command, *trusted, "t.json", "--minimum-store-version", 1)[0] == 0


@every_reader
@pytest.mark.parametrize("option", ["--minimum-store-version", "--root-threshold"])
def test_options_of_a_store_need_a_store(folder, capsys, command, option):
    code, text = run(capsys, *command, "--key", "o.pub", option, 2)
    assert code == 2
    assert "must be given with --trust-store" in text


@every_reader
def test_several_roots_can_be_asked_for(folder, capsys, command):
    shutil.copy("old.json", "t.json")
    trusted = ("--trust-store", "t.json", "--root", "root.pub", "--root", "root2.pub")
    assert run(capsys, *command, *trusted)[0] == 0
    assert run(capsys, *command, *trusted, "--root-threshold", 2)[0] == 1
    code, text = run(capsys, *command, *trusted, "--root-threshold", 3)
    assert code == 2
    assert "--root-threshold must be at most" in text


@every_reader
@pytest.mark.parametrize("threshold", ["2", "all"])
def test_co_signature_that_was_taken_off_is_missed(folder, capsys, command, threshold):
    trusted = ("--key", "o.pub", "--key", "e.pub", "--threshold", threshold)
    assert run(capsys, *command, *trusted)[0] == 0
    assert main(["sign", "m", "--key", "o.pem"]) == 0
    main(["protect", "m", "--key", "o.pem", "--redundancy", "1"])
    assert run(capsys, *command, *trusted[:4])[0] == 0
    assert run(capsys, *command, *trusted)[0] == 1


@pytest.mark.parametrize("threshold", ["0", "-1", "some", "1.5", ""])
def test_threshold_that_means_nothing_is_wrong_usage(folder, capsys, threshold):
    with pytest.raises(SystemExit) as caught:
        main(["verify", "m", "--key", "o.pub", f"--threshold={threshold}"])
    assert caught.value.code == 2
    code, text = run(capsys, "verify", "m", "--key", "o.pub", "--threshold", 2)
    assert code == 2
    assert "--threshold must be at most the number of different trusted keys (1" in text


@every_reader
def test_name_is_asked_for_by_every_reader(folder, capsys, command):
    assert run(capsys, *command, "--key", "o.pub", "--name", "m")[0] == 0
    assert run(capsys, *command, "--key", "o.pub", "--name", "other")[0] == 1


def test_success_says_what_was_checked_and_what_was_not(folder, capsys):
    shutil.copy("old.json", "t.json")
    code, text = run(capsys, "verify", "m", "--key", "o.pub")
    assert code == 0
    for part in (
        "Verified m\n",
        "model 'm', version 1",
        "signed by key ",
        "every byte of the file",
    ):
        assert part in text
    assert "not checked: whether this is the model you mean (--name); whether it is the n" in text
    trusted = ("--trust-store", "t.json", "--root", "root.pub", "--name", "m")
    code, text = run(capsys, "verify", "m", *trusted)
    assert "trust store: version 1" in text
    assert "not checked" not in text
    said = json.loads(run(capsys, "verify", "m", *trusted, "--json")[1])
    assert (said["version"], said["store_version"], len(said["signers"])) == (1, 1, 1)


def test_ignored_paths_are_stated(folder, capsys):
    (folder / "f" / ".git").mkdir(parents=True)
    (folder / "f" / "w").write_bytes(b"w")
    (folder / "f" / ".git" / "x").write_bytes(b"x")
    assert run(capsys, "sign", "f", "--key", "o.pem", "--ignore", ".git")[0] == 0
    code, text = run(capsys, "verify", "f", "--key", "o.pub", "--ignore", ".git", "--ignore", "no")
    assert code == 0
    assert "not looked at: .git\n" in text
    code, text = run(capsys, "verify", "f", "--key", "o.pub")
    assert code == 1
    assert "say so with --ignore" in text
    assert run(capsys, "verify", "f", "--key", "o.pub", "--ignore", "../m")[0] == 2
    for command in ("locate", "inspect"):
        assert run(capsys, command, "f", "--key", "o.pub", "--ignore", ".git")[0] == 0
        assert run(capsys, command, "f", "--key", "o.pub")[0] == 1


@pytest.mark.parametrize("command", ["verify", "locate", "inspect"])
def test_missing_model_is_damage_if_its_signature_is_there_and_wrong_usage_if_not(
    folder, capsys, command
):
    (folder / "m").unlink()
    assert run(capsys, command, "m", "--key", "o.pub")[0] == 1
    assert run(capsys, command, "typo", "--key", "o.pub")[0] == 2
    assert run(capsys, command, "m", "--key", "no.pub")[0] == 2
    assert run(capsys, "sign", "m", "--key", "o.pem")[0] == 2


def test_protecting_a_tampered_model_is_not_verified(folder, capsys):
    (folder / "m").write_bytes(bytes(19_999) + b"x")
    code, text = run(capsys, "protect", "m", "--key", "o.pem")
    assert code == 1
    assert "TamperedModelError" in text
    assert run(capsys, "protect", "m", "--key", "no.pem")[0] == 2


@every_reader
def test_json_before_and_after_the_command(folder, capsys, command):
    after = run(capsys, *command, "--key", "o.pub", "--json")
    before = run(capsys, "--json", *command, "--key", "o.pub")
    assert before == after
    assert json.loads(before[1])["ok"] is True
    trust = ("trust", "list", "old.json", "--root", "root.pub")
    results = {run(capsys, *trust[:i], "--json", *trust[i:])[1] for i in (0, 1, 2, 5)}
    assert len(results) == 1
    assert json.loads(results.pop())["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("verify", "m", "--key", "e.pub", "--signature", "none.sig"), "--signature"),
        (("verify", "m", "--key", "root.pub"), "--key"),
        (("verify", "m", "--key", "o.pem"), "--key"),
        (("verify", "m", "--root-certificate", "o.pub"), "--root-certificate"),
        (("repair", "typo", "--key", "o.pub"), "--parity"),
        (("verify", "m", "--key", "t.json"), "--trust-store and --root"),
        (("sign", "m", "--key", "o.pub"), "--key"),
        (("sign", "m", "--key", "o.pem", "--certificate-chain", "o.pub"), "--certificate-chain"),
    ],
)
def test_messages_speak_of_options(folder, capsys, arguments, option):
    code, text = run(capsys, *arguments)
    assert code in (1, 2)
    assert option in text
    for word in ("trusted_keys", "_path`", "signing_key", "`roots`", "`certificates`", "keras_mod"):
        assert word not in text
