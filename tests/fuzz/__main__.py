"""Coverage-guided fuzzing (atheris) of every parser that reads untrusted bytes.

    python -m tests.fuzz                      # all targets, a minute each, two at a time
    python -m tests.fuzz --seconds 300 zip hdf5
    python -m tests.fuzz --replay FILE zip    # one input again, e.g. a finding

Owns the targets: what is called, and which error classes it may raise. Whatever else comes out of
it is a finding, and so is an input that takes over 20 seconds or 2 GiB; 5 GiB where the HDF5
library reads texts, since it makes room for what a text's length claims, up to 4 GiB, before it
finds that the file has less. Needs the `fuzz` extra.
"""

import argparse
import base64
import contextlib
import datetime
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture import damage
from tests.torture.genuine import CONFIG, GOLDEN

ROOT = Path(__file__).parents[2]
SLOWEST_SECONDS = 20
MOST_MEMORY_MB = 2048
MOST_MEMORY_MB_HDF5 = 5120
MEMORY_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Believing:
    """A key that accepts every signature, so that the fuzzer gets behind it."""

    def check(self, signature, data):
        pass


def believing_trust():
    from keras_modelsec._signing.trust import Trust

    class Everybody(Trust):
        def find(self, hint):
            return Believing()

    return Everybody({})


def at_path(parse, ending):
    """A target for a parser that reads a file by its path."""
    folder = tempfile.TemporaryDirectory(dir=MEMORY_FOLDER)
    path = Path(folder.name) / f"input{ending}"

    def target(data, keep=folder):
        path.write_bytes(data)
        parse(path)

    return target


# One function a target: imports what it needs, and returns (callable, allowed error classes).


def openssf_bundle():
    from keras_modelsec._signing.sigstore_bundle import Envelope
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = Envelope.from_bytes(data)
        if Envelope.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("an envelope does not survive being written and read")

    return target, SignatureError


def openssf_statement():
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.statements import openssf_statement

    return lambda data: openssf_statement.from_bytes(data), SignatureError


def dsse_envelope():
    from keras_modelsec._signing.dsse import DsseEnvelope
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = DsseEnvelope.from_bytes(data)
        if DsseEnvelope.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("an envelope does not survive being written and read")

    return target, SignatureError


def model_statement():
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.statements.model_statement import ModelStatement

    def target(data):
        read = ModelStatement.from_bytes(data)
        if ModelStatement.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("a statement does not survive being written and read")

    return target, SignatureError


def private_key():
    from keras_modelsec.errors import KeyFormatError
    from keras_modelsec.trust import load_signing_key

    return lambda data: load_signing_key(data), KeyFormatError


def public_key():
    from keras_modelsec._signing.key_files import load_verifying_key
    from keras_modelsec.errors import KeyFormatError

    return lambda data: load_verifying_key(data).hint, KeyFormatError


def wrapped_secret():
    from keras_modelsec._signing.key_wrapping import check_blob
    from keras_modelsec.errors import KeyFormatError

    return check_blob, KeyFormatError


def encryption_key():
    from keras_modelsec.encryption import EncryptionPrivateKey, EncryptionPublicKey
    from keras_modelsec.errors import KeyFormatError

    def target(data):
        parser = EncryptionPrivateKey if b"PRIVATE" in data else EncryptionPublicKey
        parser.from_pem(data)

    return target, KeyFormatError


def encryption_header():
    from keras_modelsec.errors import DecryptionError
    from keras_modelsec.integrity.encryption.encryption_format import parse_header

    def target(data):
        if not data.startswith(parse_header(data).to_bytes()):
            raise RuntimeError("one header has two spellings")

    return target, DecryptionError


def encrypted_file():
    from keras_modelsec.errors import DecryptionError
    from keras_modelsec.integrity.encryption.encrypted_stream import EncryptedFile
    from keras_modelsec.integrity.encryption.key_slots import openers_for

    openers = openers_for(bytes(range(32)))

    def parse(path):
        with open(path, "rb", buffering=0) as file:
            for _ in EncryptedFile(file, openers, "input").chunks():
                pass

    return at_path(parse, ".enc"), DecryptionError


def parity_statement():
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.parity.parity_statement import ParityStatement

    def target(data):
        read = ParityStatement.from_bytes(data)
        if ParityStatement.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("a statement does not survive being written and read")

    return target, SignatureError


def parity_file():
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.parity.parity_file import ParityFile

    def parse(path):
        parity = ParityFile(path, believing_trust())
        try:
            annex = parity.read_annex()
            parity.damaged_parts(parity.find_parity(annex))
        finally:
            parity.close()

    return at_path(parse, ".parity"), SignatureError


def trust_store():
    from keras_modelsec._signing.trust_store_contents import TrustStoreContents
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = TrustStoreContents.from_bytes(data)
        text = read.to_bytes()
        if TrustStoreContents.from_bytes(text).to_bytes() != text:
            raise RuntimeError("a trust store does not survive being written and read")

    return target, SignatureError


def certificate_chain():
    from keras_modelsec.errors import UntrustedKeyError
    from keras_modelsec.trust import TrustedRoots

    roots = TrustedRoots(GOLDEN / "certificate-root.pem")
    noon = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)

    def target(data):
        lengths, rest, chain = data[:2], data[2:], []
        for length in lengths:
            chain.append(rest[: 4 * length])
            rest = rest[4 * length :]
        roots.verify([der for der in (*chain, rest) if der], noon)

    return target, UntrustedKeyError


def root_certificates():
    from keras_modelsec.errors import KeyFormatError
    from keras_modelsec.trust import TrustedRoots

    return lambda data: TrustedRoots(data), KeyFormatError


def zip_archive():
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.zip_checks import read_members

    def target(data):
        members = read_members(io.BytesIO(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # both must see the same archive
            seen = [(item.filename, item.file_size) for item in archive.infolist()]
        if seen != [(member.name, member.size) for member in members]:
            raise RuntimeError("zipfile reads another archive")

    return target, UnsafeModelError


def hdf5_file():
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5

    def target(data):
        check_hdf5(io.BytesIO(data[1:]), legacy=bool(data[:1] > b"\x7f"))

    return target, UnsafeModelError


def keras_archive():
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.keras_archive import Permissions, check_archive

    return lambda data: check_archive(io.BytesIO(data), Permissions()), UnsafeModelError


def configuration():
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.config_checks import check_config

    def target(data):
        for legacy in (False, True):
            with contextlib.suppress(UnsafeModelError):
                check_config(data, legacy=legacy)

    return target, UnsafeModelError


def tensor_layout():
    from keras_modelsec.integrity.contents.tensor_layout import read_tensor_layout

    return at_path(read_tensor_layout, ".keras"), ()


def tensor_layout_hdf5():
    from keras_modelsec.integrity.contents.tensor_layout import read_tensor_layout

    return at_path(read_tensor_layout, ".weights.h5"), ()


TARGETS = (
    openssf_bundle,
    openssf_statement,
    dsse_envelope,
    model_statement,
    private_key,
    public_key,
    wrapped_secret,
    encryption_key,
    encryption_header,
    encrypted_file,
    parity_statement,
    parity_file,
    trust_store,
    certificate_chain,
    root_certificates,
    zip_archive,
    hdf5_file,
    keras_archive,
    configuration,
    tensor_layout,
    tensor_layout_hdf5,
)
BY_NAME = {target.__name__: target for target in TARGETS}
READ_JSON = {
    "openssf_bundle",
    "openssf_statement",
    "dsse_envelope",
    "model_statement",
    "parity_statement",
    "trust_store",
    "configuration",
}

READ_HDF5 = {"hdf5_file", "keras_archive", "tensor_layout", "tensor_layout_hdf5"}


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


def _with_texts():
    """An HDF5 file with texts in heaps, as legacy models have them."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["layers/dense/vars/0"] = [1.0, 2.0]
        opened["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
        opened["layers/dense/vars"].attrs["name"] = "dense"
        opened.attrs["model_config"] = CONFIG.decode()
        opened.attrs["layer_names"] = ["a", "b"]
    return file.getvalue()


def _archives():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", CONFIG.replace(b'"Lambda"', b'"Dense"'))
        archive.writestr("model.weights.h5", _with_texts())
    return [file.getvalue()]


def mutate_json(data, max_size, seed):
    """Half of the time an edit of one JSON value, else what libFuzzer would do."""
    import atheris

    rng = random.Random(seed)
    if rng.random() < 0.5:
        try:
            value, _ = damage.edit_json(rng, json.loads(data))
            return damage.spell(rng, value)[:max_size]
        except (ValueError, RecursionError):
            pass
    return atheris.Mutate(data, max_size)


def run_here(name, arguments):
    """Fuzzes one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["keras_modelsec.integrity"]):
        target, allowed = BY_NAME[name]()

    def test_one_input(data):
        with contextlib.suppress(allowed):
            target(data)

    mutator = {"custom_mutator": mutate_json} if name in READ_JSON else {}
    atheris.Setup([sys.argv[0], *arguments], test_one_input, **mutator)
    atheris.Fuzz()


def run_target(name, seconds, corpus, findings):
    """Fuzzes one target in a process of its own; returns what came of it."""
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(seeds(name)):
        (folder / f"seed-{index}").write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--here", name, "--"]
    command += [
        str(folder),
        f"-max_total_time={seconds}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY_MB_HDF5 if name in READ_HDF5 else MOST_MEMORY_MB}",
        "-malloc_limit_mb=6000",
        f"-artifact_prefix={findings}/{name}-",
        "-max_len=65536",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "target": name,
        "executions": int(executed[1]) if executed else 0,
        "edges": int(covered[-1]) if covered else 0,
        "inputs kept": sum(1 for _ in folder.iterdir()),
        "seconds": round(time.perf_counter() - start, 1),
        "finding": None if done.returncode == 0 else _shown(done),
    }


def _shown(done):
    """The traceback, which atheris writes to the standard output, and where the input is."""
    ours = ("Traceback", "  File", "    ", "ERROR", "==", "artifact_prefix", "Base64")
    lines = [line for line in done.stderr.splitlines() if line.startswith(ours)]
    return "\n".join([*done.stdout[-3000:].splitlines(), *lines[-25:]])


def report(results):
    lines = [f"{'target':<22}{'executions':>12}{'edges':>8}{'kept':>7}{'seconds':>9}  finding"]
    lines += [
        f"{item['target']:<22}{item['executions']:>12,}{item['edges']:>8}"
        f"{item['inputs kept']:>7}{item['seconds']:>9}  {'YES' if item['finding'] else '-'}"
        for item in results
    ]
    lines += [f"\n== {r['target']}\n{r['finding']}" for r in results if r["finding"]]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(BY_NAME))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default 2)")
    parser.add_argument("--corpus", type=Path, help="keeps the inputs found for the next run")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, help="an input to run the target on, once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(BY_NAME))
    if unknown:
        parser.error(f"targets are {', '.join(BY_NAME)}; received {', '.join(unknown)}")
    names = options.targets or list(BY_NAME)
    if options.replay:
        for name in names:
            target, allowed = BY_NAME[name]()
            try:
                target(options.replay.read_bytes())
                print(f"{name}: accepted")
            except allowed as error:
                print(f"{name}: {type(error).__name__}: {error}")
        return 0
    options.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        with ThreadPoolExecutor(options.jobs) as pool:
            findings = options.findings.resolve()
            work = [
                pool.submit(run_target, n, options.seconds, corpus.resolve(), findings)
                for n in names
            ]
            results = [item.result() for item in work]
    print(json.dumps(results, indent=1) if options.json else report(results))
    return int(any(item["finding"] for item in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2], sys.argv[4:])
    sys.exit(main())
