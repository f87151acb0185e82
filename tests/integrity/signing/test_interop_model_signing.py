"""Both ways against the reference implementation, by its own command."""

import base64
import json
import subprocess
import sys

import pytest

from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.trust import generate_keys

CURVES = ["p256", "p384", "p521"]


def model_signing(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    return done.returncode, done.stdout + done.stderr


def make(tmp_path, kind):
    path = tmp_path / "model"
    if kind == "file":
        path.write_bytes(b"\x00weights\xff" * 1000)
    else:
        (path / "sub" / "deep").mkdir(parents=True)
        for name in ("z", "sub/a", "sub.b", "sub/deep/\N{GREEK SMALL LETTER ALPHA} b", "empty"):
            (path / name).write_bytes(name.encode() if name != "empty" else b"")
    return path


def damage(path):
    victim = path if path.is_file() else path / "sub" / "a"
    victim.write_bytes(b"!" + victim.read_bytes()[1:])


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("curve", CURVES)
def test_model_signing_accepts_ours(tmp_path, curve, kind):
    private, public = generate_keys(tmp_path / "owner.pem", algorithm=curve)
    model = make(tmp_path, kind)
    signature = sign(model, private).signature
    verify_key = ("verify", "key", model, "--signature", signature, "--public_key", public)
    code, output = model_signing(*verify_key)
    assert code == 0, output
    assert "succeeded" in output
    damage(model)
    code, output = model_signing(*verify_key)
    assert code == 1
    assert "mismatch" in output


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("curve", CURVES)
def test_ours_accepts_model_signings(tmp_path, curve, kind):
    private, public = generate_keys(tmp_path / "owner.pem", algorithm=curve)
    model = make(tmp_path, kind)
    signature = tmp_path / "model.sig"
    code, output = model_signing(
        "sign", "key", model, "--private_key", private, "--signature", signature
    )
    assert code == 0, output
    verify(model, public)
    damage(model)
    with pytest.raises(SignatureError, match="is not what was signed"):
        verify(model, public)


def test_signature_inside_the_folder_both_ways(tmp_path):
    private, public = generate_keys(tmp_path / "owner.pem")
    model = make(tmp_path, "folder")
    inside = model / "model.sig"
    sign(model, private, signature_path=inside)
    code, output = model_signing(
        "verify", "key", model, "--signature", inside, "--public_key", public
    )
    assert code == 0, output
    (model / "model.modelsec.json").unlink()  # their signature would cover it as a part
    code, output = model_signing(
        "sign", "key", model, "--private_key", private, "--signature", inside
    )
    assert code == 0, output
    verify(model, public, signature_path=inside)


def test_what_model_signing_lets_pass_is_refused_here(tmp_path):
    private, public = generate_keys(tmp_path / "owner.pem")
    model = make(tmp_path, "folder")
    signature = tmp_path / "model.sig"
    model_signing("sign", "key", model, "--private_key", private, "--signature", signature)
    verify_key = ("verify", "key", model, "--signature", signature, "--public_key", public)
    (model / ".git").mkdir()
    (model / ".git" / "hook").write_bytes(b"payload")
    assert model_signing(*verify_key)[0] == 0
    with pytest.raises(SignatureError, match=r"Added: '\.git/hook'"):
        verify(model, public)
    (model / ".git" / "hook").unlink()
    bundle = json.loads(signature.read_bytes())
    junk = base64.b64encode(b"junk").decode()
    bundle["dsseEnvelope"]["signatures"].append({"sig": junk, "keyid": ""})
    signature.write_text(json.dumps(bundle))
    assert model_signing(*verify_key)[0] == 0
    with pytest.raises(SignatureError, match="exactly one item"):
        verify(model, public)
