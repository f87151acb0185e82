"""Genuine inputs to begin with, from the golden files or made here."""

import base64
import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

from tests.fuzz.targets import believing_trust
from tests.torture.genuine import CONFIG, GOLDEN


def _payload(path):
    envelope = json.loads(path.read_bytes())
    return base64.b64decode(envelope.get("dsseEnvelope", envelope)["payload"])


def seeds(name):
    """Genuine inputs, from the golden files."""
    own = {
        "openssf_bundle": lambda: [p.read_bytes() for p in GOLDEN.rglob("*.sig")],
        "openssf_statement": lambda: [_payload(p) for p in GOLDEN.rglob("*.sig")],
        "dsse_envelope": lambda: [p.read_bytes() for p in GOLDEN.rglob("*.modelsec.json")],
        "model_statement": lambda: [_payload(p) for p in GOLDEN.rglob("*.modelsec.json")],
        "private_key": lambda: [*_pem_files(), *_plain_keys()],
        "public_key": _pem_files,
        "wrapped_secret": _wrapped,
        "encryption_key": _pem_files,
        "encryption_header": _encrypted,
        "encrypted_file": lambda: [*_encrypted(), *_encrypted_small()],
        "parity_statement": lambda: _parity()[1:],
        "parity_file": lambda: _parity()[:1],
        "trust_store": lambda: [_payload(p) for p in GOLDEN.glob("trust.v*.json")],
        "certificate_chain": _chains,
        "root_certificates": lambda: [(GOLDEN / "certificate-root.pem").read_bytes()],
        "zip_archive": _archives,
        "hdf5_file": lambda: [mark + data for mark in (b"\0", b"\xff") for data in _hdf5()],
        "keras_archive": _archives,
        "configuration": lambda: [CONFIG],
        "tensor_layout": _archives,
        "tensor_layout_hdf5": _hdf5,
    }
    return own[name]()


def _pem_files():
    paths = [*GOLDEN.rglob("*.pem"), *GOLDEN.rglob("*.pub"), *GOLDEN.rglob("*.key")]
    return [path.read_bytes() for path in paths]


def _plain_keys():
    from cryptography.hazmat.primitives import serialization as io_
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    keys = [
        ec.derive_private_key(7, ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32),
    ]
    formats = (io_.PrivateFormat.PKCS8, io_.PrivateFormat.TraditionalOpenSSL)
    return [
        key.private_bytes(io_.Encoding.PEM, kind, io_.NoEncryption())
        for key, kind in [(keys[0], formats[0]), (keys[0], formats[1]), (keys[1], formats[0])]
    ]


def _wrapped():
    found = [re.search(rb"-----\n(.*)\n-----END", data, re.S) for data in _pem_files()]
    blobs = [base64.b64decode(match[1]) for match in found if match]
    return [blob for blob in blobs if blob.startswith(b"MSPW")]


def _encrypted():
    return [path.read_bytes() for path in GOLDEN.rglob("*.enc")]


def _encrypted_small():
    from keras_modelsec.integrity.encryption.encrypted_stream import EncryptingWriter
    from keras_modelsec.integrity.encryption.key_slots import locks_for

    file = io.BytesIO()
    with EncryptingWriter(file, locks_for(bytes(range(32))), chunk_bytes=256) as writer:
        writer.write(bytes(1000))
        writer.finish()
    return [file.getvalue()]


def _parity():
    from keras_modelsec.integrity import sign, write_parity
    from keras_modelsec.integrity.parity.parity_file import ParityFile

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.bin"
        model.write_bytes(bytes(range(256)) * 48)
        key = _plain_keys()[0]
        sign(model, key)
        path = write_parity(model, key, redundancy=0.3).parity
        parity = ParityFile(path, believing_trust())
        parity.close()
        return [path.read_bytes(), parity.statement.to_bytes()]


def _chains():
    result = []
    for path in GOLDEN.glob("*.certificate.*.sig"):
        material = json.loads(path.read_bytes())["verificationMaterial"]
        chain = [
            base64.b64decode(item["rawBytes"])
            for item in material["x509CertificateChain"]["certificates"]
        ]
        padded = [der + bytes(-len(der) % 4) for der in chain]
        lengths = [len(der) // 4 for der in padded[:-1]]
        if len(chain) <= 3 and all(length < 256 for length in lengths):
            result.append(bytes((lengths + [0, 0])[:2]) + b"".join(chain))
    return result or [bytes(64)]


def _hdf5():
    return [*(path.read_bytes() for path in GOLDEN.rglob("*.weights.h5")), _with_texts()]


def _with_texts(*, legacy=True):
    """An HDF5 file with texts in heaps; legacy ones list their layers."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["layers/dense/vars/0"] = [1.0, 2.0]
        opened["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
        opened["layers/dense/vars"].attrs["name"] = "dense"
        opened.attrs["model_config"] = CONFIG.decode()
        if legacy:
            opened.attrs["layer_names"] = ["a", "b"]
    return file.getvalue()


def _archives():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", CONFIG.replace(b'"Lambda"', b'"Dense"'))
        archive.writestr("model.weights.h5", _with_texts(legacy=False))
    return [file.getvalue()]
