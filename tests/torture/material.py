"""Keys, certificates and model files to damage; the same in every run as far as they can be.

Owns no claim. ECDSA signatures are deterministic (RFC 6979), so that a case's damage falls on the
same bytes when it is replayed; salts and dates differ from run to run, lengths do not.
"""

import datetime
import io
import json
import random
import zipfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keras_modelsec.trust import ExternalSigner
from tests.torture.genuine import CONFIG

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
PASSWORD = b"correct horse"
_DETERMINISTIC = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def raw_key(number):
    return ec.derive_private_key(1_000_003 * number, ec.SECP256R1())


def signer(number):
    key = raw_key(number)
    return ExternalSigner(key.public_key(), lambda data: key.sign(data, _DETERMINISTIC))


OWNER, ATTACKER, ROOT, CERTIFIED = (signer(number) for number in range(1, 5))
CO_SIGNER = ed25519.Ed25519PrivateKey.from_private_bytes(b"c" * 32)


def private_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def random_bytes(size, seed=0):
    return random.Random(seed).randbytes(size)


def weights_file(seed=0):
    """A small HDF5 file with Keras's layout and tensors of a few sizes."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for layer, shape in (("dense", (64, 80)), ("dense_1", (80, 3))):
            group = opened.create_group(f"layers/{layer}/vars")
            group.create_dataset("0", data=rng.normal(size=shape).astype("float32"))
            group.create_dataset("1", data=rng.normal(size=shape[1:]).astype("float32"))
            group.attrs["name"] = layer
            group["1"].attrs["dtype"] = "float32"
    return file.getvalue()


def keras_file(seed=0):
    """An archive as Keras makes it; its configuration is not one of a real model."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        parts = {
            "metadata.json": json.dumps({"keras_version": "3.15.1", "seed": seed}),
            "config.json": CONFIG.replace(b'"Lambda"', b'"Dense"'),
            "model.weights.h5": weights_file(seed),
        }
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data)
    return file.getvalue()


def folder_files(seed=0):
    """What a SavedModel folder looks like."""
    return {
        "saved_model.pb": random_bytes(9_000, seed + 1),
        "fingerprint.pb": random_bytes(60, seed + 2),
        "variables/variables.index": random_bytes(300, seed + 3),
        "variables/variables.data-00000-of-00001": random_bytes(20_000, seed + 4),
        "assets/vocabulary.txt": b"one\ntwo\n",
    }


MODEL_FILES = {
    "model.keras": keras_file,
    "model.weights.h5": weights_file,
    "model.bin": lambda seed=0: random_bytes(5_000, seed),
}


def certificates():
    """A chain (DER, the signer's first, without the root) and the root's PEM."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    def issue(name, number, issuer, issuer_number, authority):
        usage = dict.fromkeys(USAGES, False)
        usage["key_cert_sign" if authority else "digital_signature"] = True
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(raw_key(number).public_key())
            .serial_number(1 << 100 | number)
            .not_valid_before(now - day)
            .not_valid_after(now + 300 * day)
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(x509.KeyUsage(**usage), True)
        )
        if not authority:
            code_signing = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
            builder = builder.add_extension(code_signing, False)
        return builder.sign(raw_key(issuer_number), hashes.SHA256(), ecdsa_deterministic=True)

    root = issue("Torture Root", 10, "Torture Root", 10, True)
    middle = issue("Torture Authority", 11, "Torture Root", 10, True)
    leaf = issue("Torture Signer", 4, "Torture Authority", 11, False)
    chain = tuple(item.public_bytes(serialization.Encoding.DER) for item in (leaf, middle))
    return chain, root.public_bytes(serialization.Encoding.PEM)
