"""No name out of a file or a folder steers the terminal, in text or in JSON."""

import datetime
import json
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keras_modelsec.cli.main import main
from keras_modelsec.integrity import sign
from keras_modelsec.trust import SigningKey, TrustStore

EVIL = "e\x1b[2J\u202e\x9b1m"
FORBIDDEN = ("\x1b", "\x9b", "\u202e", "\r", "\udc80")
POSIX = pytest.mark.skipif(os.name != "posix", reason="such names of files")


def run(capsys, *arguments):
    """Exit code and what was printed; nothing in it steers a terminal, and JSON is JSON."""
    code = main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert not any(char in output.out + output.err for char in FORBIDDEN)
    assert main([*map(str, arguments), "--json"]) in (code, 2)  # a key is not made twice
    printed = capsys.readouterr()
    assert printed.err == ""
    json.loads(printed.out, parse_constant=pytest.fail).keys()
    printed.out.encode("ascii")
    assert r"\udc80" not in printed.out.replace(r"\\udc80", "")  # no lone surrogate
    return code, output.out + output.err


@pytest.fixture
def keys(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "o.pem"]) == 0
    assert main(["keygen", "other.pem"]) == 0
    capsys.readouterr()


@POSIX
def test_names_of_files_and_models(keys, tmp_path, capsys):
    names = [EVIL, "line\nVerified x", os.fsdecode(b"raw\x80")]
    folder = tmp_path / f"m{EVIL}"
    folder.mkdir()
    (folder / names[0]).write_bytes(b"weights")
    (folder / names[1]).write_bytes(b"weights")
    main(["sign", str(folder), "--key", "o.pem", "--name", f"n{EVIL}\n"])
    capsys.readouterr()
    code, text = run(capsys, "verify", folder, "--key", "o.pub")
    assert code == 0
    assert text.count("\nVerified") == 0
    assert run(capsys, "inspect", folder, "--key", "o.pub")[0] == 0
    assert run(capsys, "protect", folder, "--key", "o.pem", "--redundancy", 1)[0] == 0
    (folder / names[0]).write_bytes(b"weightS")
    (folder / f"added{EVIL}").write_bytes(b"x")
    for command in ("verify", "locate", "inspect", "repair"):
        assert run(capsys, command, folder, "--key", "o.pub")[0] == 1
    assert run(capsys, "verify", folder, "--key", "o.pub", "--name", EVIL)[0] == 1
    assert run(capsys, "diff", folder, folder)[0] == 0
    (folder / names[2]).write_bytes(b"x")
    for command in ("verify", "locate", "inspect", "repair", "sign"):
        key = "o.pem" if command == "sign" else "o.pub"
        assert run(capsys, command, folder, "--key", key)[0] in (1, 2)
    gone = tmp_path / os.fsdecode(b"gone\x80\x1b")
    for command in ("verify", "locate", "inspect", "repair"):
        assert run(capsys, command, gone, "--key", "o.pub")[0] == 2
    assert run(capsys, "verify", folder, "--key", gone)[0] == 2


@POSIX
def test_arguments_that_a_shell_filled_in(keys, capsys):
    for arguments in (["verify", EVIL, EVIL], [EVIL], ["verify", "x", f"--{EVIL}"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert not any(char in capsys.readouterr().err for char in FORBIDDEN)


def test_names_and_reasons_of_a_trust_store(keys, tmp_path, capsys):
    root = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "root.pub").write_bytes(root.verifying_key.pem)
    (tmp_path / "m").write_bytes(b"weights")
    sign(tmp_path / "m", "o.pem")
    trusted = ("--trust-store", "t.json", "--root", "root.pub")

    def save(**options):
        store = TrustStore()
        store.add("o.pub", name=f"owner{EVIL}\n", comment=EVIL, **options)
        return store

    save().save("t.json", root)
    code, text = run(capsys, "verify", "m", *trusted)
    assert code == 0
    assert "(ownere\\x1b" in text
    assert run(capsys, "trust", "list", "t.json", "--root", "root.pub")[0] == 0
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    save(not_after=past).save("t.json", root, overwrite=True)
    assert run(capsys, "verify", "m", *trusted)[0] == 1
    store = save()
    store.revoke("o.pub", reason=f"because{EVIL}")
    store.save("t.json", root, overwrite=True)
    assert run(capsys, "verify", "m", *trusted)[0] == 1


def certificate(name, key, *, by=None, issuer=None):
    """A certificate with any name in it."""
    subject, now = _name(name), datetime.datetime.now(datetime.UTC)
    usages = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usages += ("crl_sign", "encipher_only", "decipher_only")
    usage = x509.KeyUsage(
        digital_signature=by is not None, key_cert_sign=by is None, **dict.fromkeys(usages, False)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_name(issuer) if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    if by:
        code_signing = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        builder = builder.add_extension(code_signing, critical=False)
    return builder.sign(by or key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def test_subjects_and_issuers_of_certificates(keys, tmp_path, capsys):
    root, leaf, stranger = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    names = (f"Root{EVIL}\n", f"Leaf{EVIL}\n")
    (tmp_path / "root.pem").write_bytes(certificate(names[0], root))
    (tmp_path / "other-root.pem").write_bytes(certificate(names[0], stranger))
    chain = certificate(names[1], leaf, by=root, issuer=names[0])
    (tmp_path / "m").write_bytes(b"weights")
    sign(tmp_path / "m", SigningKey(leaf), certificate_chain=chain)
    code, text = run(capsys, "verify", "m", "--root-certificate", "root.pem")
    assert code == 0
    assert "certificate of CN=Leafe\\x1b" in text
    for options in (
        ("--root-certificate", "other-root.pem"),
        ("--root-certificate", "root.pem", "--subject", "CN=Me"),
        ("--key", "other.pub"),
    ):
        for command in ("verify", "locate", "inspect"):
            code, text = run(capsys, command, "m", *options)
            assert code == 1
            assert "add it to" not in text


@POSIX
@pytest.mark.parametrize("command", ["sign", "protect", "encrypt", "decrypt", "keygen"])
def test_path_forges_no_line_of_a_success_message(keys, tmp_path, capsys, monkeypatch, command):
    path = tmp_path / "x\nFORGED ok.bin"
    path.write_bytes(b"weights")
    monkeypatch.setenv("MODELSEC_TEST_PASSWORD", "correct horse battery staple")
    secret = ["--passphrase-env", "MODELSEC_TEST_PASSWORD"]
    if command == "decrypt":
        assert main(["encrypt", str(path), *secret]) == 0
        path.unlink()
        path = tmp_path / "x\nFORGED ok.bin.enc"
        capsys.readouterr()
    given = {
        "sign": [path, "--key", "o.pem"],
        "protect": [path, "--key", "o.pem", "--redundancy", 1],
        "encrypt": [path, *secret],
        "decrypt": [path, *secret],
        "keygen": [tmp_path / "k\nFORGED ok.pem"],
    }[command]
    assert main([command, *map(str, given)]) == 0
    text = capsys.readouterr().out
    assert "\nFORGED" not in text
    assert r"\nFORGED ok" in text


def test_provenance_nested_too_deep_is_named(keys, tmp_path, capsys):
    model, deep = tmp_path / "m.bin", tmp_path / "deep.json"
    model.write_bytes(b"weights")
    deep.write_text("[" * 200_000)
    given = ["sign", str(model), "--key", "o.pem", "--provenance", str(deep)]
    assert main(given) == 2
    assert "--provenance must name a file with a JSON object" in capsys.readouterr().err
    assert main([*given, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
