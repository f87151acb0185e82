"""What is fuzzed: each parser, and which error classes may come of it.

Whatever else comes out of a target is a finding. Beyond the tests, of every target: inputs that
coverage leads ever deeper into the parser; each says what else ("they" are the tests).
"""

import contextlib
import datetime
import io
import os
import tempfile
import zipfile
from pathlib import Path

from tests.torture.genuine import GOLDEN

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
    """Beyond the tests: a bundle that is accepted reads the same once it is written again."""
    from keras_modelsec._signing.sigstore_bundle import Envelope
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = Envelope.from_bytes(data)
        if Envelope.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("an envelope does not survive being written and read")

    return target, SignatureError


def openssf_statement():
    """Beyond the tests: values close to those of every genuine statement; they put a few far ones
    into each field.
    """
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.statements import openssf_statement

    return lambda data: openssf_statement.from_bytes(data), SignatureError


def dsse_envelope():
    """Beyond the tests: an envelope that is accepted reads the same once it is written again."""
    from keras_modelsec._signing.dsse import DsseEnvelope
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = DsseEnvelope.from_bytes(data)
        if DsseEnvelope.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("an envelope does not survive being written and read")

    return target, SignatureError


def model_statement():
    """Beyond the tests: a statement that is accepted reads the same once it is written again; they
    show this of genuine ones.
    """
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.statements.model_statement import ModelStatement

    def target(data):
        read = ModelStatement.from_bytes(data)
        if ModelStatement.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("a statement does not survive being written and read")

    return target, SignatureError


def private_key():
    """Beyond the tests: what OpenSSL makes of damaged keys of each kind (`InternalError` was found
    here).
    """
    from keras_modelsec.errors import KeyFormatError
    from keras_modelsec.trust import load_signing_key

    return lambda data: load_signing_key(data), KeyFormatError


def public_key():
    """Beyond the tests: damaged keys of each kind; they read chosen junk and cuts."""
    from keras_modelsec._signing.key_files import load_verifying_key
    from keras_modelsec.errors import KeyFormatError

    return lambda data: load_verifying_key(data).hint, KeyFormatError


def wrapped_secret():
    """Beyond the tests: bytes close to a genuine header; they draw all but its first five."""
    from keras_modelsec._signing.key_wrapping import check_blob
    from keras_modelsec.errors import KeyFormatError

    return check_blob, KeyFormatError


def encryption_key():
    """Beyond the tests: frames, base64 and check sum at once; they alter single characters."""
    from keras_modelsec.encryption import EncryptionPrivateKey, EncryptionPublicKey
    from keras_modelsec.errors import KeyFormatError

    def target(data):
        parser = EncryptionPrivateKey if b"PRIVATE" in data else EncryptionPublicKey
        parser.from_pem(data)

    return target, KeyFormatError


def encryption_header():
    """Beyond the tests: a header that is accepted has one spelling, whatever the bytes; they alter
    one at a time.
    """
    from keras_modelsec.errors import DecryptionError
    from keras_modelsec.integrity.encryption.encryption_format import parse_header

    def target(data):
        if not data.startswith(parse_header(data).to_bytes()):
            raise RuntimeError("one header has two spellings")

    return target, DecryptionError


def encrypted_file():
    """Beyond the tests: lengths and headers that contradict the chunks behind them."""
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
    """Beyond the tests: numbers that contradict one another (a record of gigabytes was found)."""
    from keras_modelsec.errors import SignatureError
    from keras_modelsec.integrity.parity.parity_statement import ParityStatement

    def target(data):
        read = ParityStatement.from_bytes(data)
        if ParityStatement.from_bytes(read.to_bytes()) != read:
            raise RuntimeError("a statement does not survive being written and read")

    return target, SignatureError


def parity_file():
    """Beyond the tests: what only the owner's signature keeps from the reader: every signature is
    good here.
    """
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
    """Beyond the tests: a store that is accepted is written in one way; they edit one field with
    drawn JSON.
    """
    from keras_modelsec._signing.trust_store_contents import TrustStoreContents
    from keras_modelsec.errors import SignatureError

    def target(data):
        read = TrustStoreContents.from_bytes(data)
        text = read.to_bytes()
        if TrustStoreContents.from_bytes(text).to_bytes() != text:
            raise RuntimeError("a trust store does not survive being written and read")

    return target, SignatureError


def certificate_chain():
    """Beyond the tests: two and three certificates damaged at once; they flip single bits."""
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
    """Beyond the tests: damaged roots (a name that `cryptography` reads only when it is asked for
    was found here).
    """
    from keras_modelsec.errors import KeyFormatError
    from keras_modelsec.trust import TrustedRoots

    return lambda data: TrustedRoots(data), KeyFormatError


def zip_archive():
    """Beyond the tests: headers that agree with one another and not with `zipfile`; they change up
    to four bytes.
    """
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
    """Beyond the tests: structures that the HDF5 library itself stumbles over, in time and memory;
    they change up to four bytes to a few values.
    """
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.hdf5_checks import check_hdf5

    def target(data):
        check_hdf5(io.BytesIO(data[1:]), legacy=bool(data[:1] > b"\x7f"))

    return target, UnsafeModelError


def keras_archive():
    """Beyond the tests: archive, configuration and weights damaged in one input; they damage each
    alone.
    """
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.keras_archive import Permissions, check_archive

    return lambda data: check_archive(io.BytesIO(data), Permissions()), UnsafeModelError


def configuration():
    """Beyond the tests: edits of a real configuration, layers with code among them; they draw JSON
    of a few words.
    """
    from keras_modelsec.errors import UnsafeModelError
    from keras_modelsec.integrity.contents.config_checks import check_config

    def target(data):
        for legacy in (False, True):
            with contextlib.suppress(UnsafeModelError):
                check_config(data, legacy=legacy)

    return target, UnsafeModelError


def tensor_layout():
    """Beyond the tests: that nothing is raised, for what nobody has signed yet; they cut and craft
    files.
    """
    from keras_modelsec.integrity.contents.tensor_layout import read_tensor_layout

    return at_path(read_tensor_layout, ".keras"), ()


def tensor_layout_hdf5():
    """Beyond the tests: the same for HDF5 that is in no archive."""
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
