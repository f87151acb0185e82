"""Files of the persisted formats, kept as they were written: they must verify for ever.

Made once by `regenerate` below with throw-away keys; the only private key kept is the test-only one
that shows that an encrypted key file stays readable.
"""

import shutil
from pathlib import Path

import pytest

from keras_modelsec._signing.key_files import load_signing_key
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.trust import generate_keys

GOLDEN = Path(__file__).parents[2] / "golden" / "integrity"
CURVES = ["p256", "p384", "p521"]
MODELS = {"model.bin": "model.bin", "folder": "folder/variables/data"}


@pytest.mark.parametrize("writer", ["keras-modelsec", "model-signing-1.1.1"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("model", list(MODELS))
def test_golden_signature_verifies_and_an_edited_byte_does_not(tmp_path, model, curve, writer):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    folder = tmp_path / "golden"
    signature = folder / f"{model}.{curve}.{writer}.sig"
    verify(folder / model, folder / f"{curve}.pub", signature_path=signature)
    victim = folder / MODELS[model]
    victim.write_bytes(b"?" + victim.read_bytes()[1:])
    with pytest.raises(SignatureError, match="is not what was signed"):
        verify(folder / model, folder / f"{curve}.pub", signature_path=signature)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("TEST-ONLY-encrypted-p256.pem", "ecdsa-p256"),
        ("TEST-ONLY-argon2id-p256.pem", "ecdsa-p256"),
        ("TEST-ONLY-argon2id-ed25519.pem", "ed25519"),
        ("TEST-ONLY-argon2id-ml-dsa-65.pem", "ml-dsa-65"),
    ],
)
def test_golden_encrypted_key_is_readable(name, algorithm):
    key = load_signing_key(GOLDEN / name, "test-only")
    assert key.algorithm == algorithm
    key.verifying_key.check(key.sign(b"data"), b"data")


def regenerate(scratch: Path) -> None:
    """Writes the golden files anew; only for a deliberate change of format."""
    from model_signing import signing as reference

    (GOLDEN / "folder" / "variables").mkdir(parents=True)
    (GOLDEN / "model.bin").write_bytes(b"\x00golden model\xff")
    (GOLDEN / "folder" / "saved_model.pb").write_bytes(b"\x00graph")
    (GOLDEN / "folder" / "variables" / "data").write_bytes(b"\x00weights\xff")
    for curve in CURVES:
        private, _ = generate_keys(
            scratch / f"{curve}.pem", GOLDEN / f"{curve}.pub", algorithm=curve
        )
        for model in MODELS:
            name = f"{model}.{curve}"
            sign(GOLDEN / model, private, signature_path=GOLDEN / f"{name}.keras-modelsec.sig")
            signer = reference.Config().use_elliptic_key_signer(private_key=private)
            signer.sign(GOLDEN / model, GOLDEN / f"{name}.model-signing-1.1.1.sig")
    public, password = scratch / "unused.pub", "test-only"
    pkcs8 = GOLDEN / "TEST-ONLY-encrypted-p256.pem"
    generate_keys(pkcs8, public, password=password, wrapping="pkcs8")
    for name in ("p256", "ed25519", "ml-dsa-65"):
        wrapped = GOLDEN / f"TEST-ONLY-argon2id-{name}.pem"
        generate_keys(wrapped, public, algorithm=name, password=password, overwrite=True)
