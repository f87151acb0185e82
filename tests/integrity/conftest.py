import base64
import json
from types import SimpleNamespace

import pytest

from keras_modelsec._signing.dsse import DsseEnvelope, pre_authentication_encoding
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec.integrity.signing.signing import sign
from keras_modelsec.integrity.statements.model_statement import statement_path_of


def sign_openssf(path, key, **options):
    """Signs in the OpenSSF format alone, as other tools do."""
    signature = sign(path, key, version=1, **options).signature
    statement_path_of(signature.with_suffix("")).unlink()
    return signature


@pytest.fixture(name="sign_openssf", scope="session")
def sign_openssf_fixture():
    return sign_openssf


@pytest.fixture
def signed_file(tmp_path, key):
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(256)) * 4)
    return SimpleNamespace(path=path, signature=sign_openssf(path, key))


@pytest.fixture
def stated_file(tmp_path, key):
    """A file with a statement alone."""
    path = tmp_path / "stated.bin"
    path.write_bytes(bytes(range(256)) * 4)
    sign(path, key).signature.unlink()
    return SimpleNamespace(path=path, signature=statement_path_of(path))


@pytest.fixture
def stated_folder(signed_folder, key):
    """A folder with a statement alone."""
    sign(signed_folder.path, key, version=1).signature.unlink()
    return SimpleNamespace(path=signed_folder.path, signature=statement_path_of(signed_folder.path))


@pytest.fixture
def signed_folder(tmp_path, key):
    path = tmp_path / "model"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "data").write_bytes(b"weights")
    (path / "variables.index").write_bytes(b"index")
    return SimpleNamespace(path=path, signature=sign_openssf(path, key))


class Forger:
    """Rewrites a signature file; with `key` it can also sign what it wrote."""

    def __init__(self, key):
        self._key = key

    def bundle(self, place):
        return json.loads(place.read_bytes())

    def statement(self, place):
        return json.loads(base64.b64decode(self.bundle(place)["dsseEnvelope"]["payload"]))

    def write_payload(self, place, payload):
        signature = self._key.sign(pre_authentication_encoding(payload))
        envelope = Envelope(self._key.verifying_key.hint, payload, signature)
        place.write_bytes(envelope.to_bytes())

    def write_statement(self, place, statement):
        self.write_payload(place, json.dumps(statement).encode())

    def own_statement(self, place):
        """What a NAME.modelsec.json says."""
        return json.loads(base64.b64decode(json.loads(place.read_bytes())["payload"]))

    def write_own_payload(self, place, payload):
        place.write_bytes(DsseEnvelope.sign(payload, [self._key]).to_bytes())

    def write_own_statement(self, place, statement):
        self.write_own_payload(place, json.dumps(statement).encode())


@pytest.fixture
def forger(key):
    return Forger(key)
