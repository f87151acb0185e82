import copy
import pickle

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from keras_modelsec._signing.key_files import load_signing_key
from keras_modelsec.errors import KeyFormatError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.trust import ExternalSigner, generate_keys


@pytest.fixture(scope="module")
def raw():
    return ec.generate_private_key(ec.SECP256R1())


class Device:
    """A key service: signs, and never gives its key away."""

    def __init__(self, raw):
        self._raw = raw
        self.calls = 0

    def sign(self, data):
        self.calls += 1
        return self._raw.sign(data, ec.ECDSA(hashes.SHA256()))


def test_model_is_signed_by_a_key_that_never_leaves_the_device(tmp_path, raw):
    (tmp_path / "model.bin").write_bytes(b"weights")
    device = Device(raw)
    sign(tmp_path / "model.bin", ExternalSigner(raw.public_key(), device.sign))
    assert device.calls >= 1
    verify(tmp_path / "model.bin", raw.public_key())


@pytest.mark.parametrize("algorithm", ["p256", "p384", "p521", "ed25519", "ml-dsa-65"])
def test_every_algorithm_can_sign_outside(tmp_path, algorithm):
    private, public = generate_keys(tmp_path / "owner.pem", algorithm=algorithm)
    inside = load_signing_key(private)
    signer = ExternalSigner(public, inside.sign)
    assert signer.algorithm == inside.algorithm
    signer.verifying_key.check(signer.sign(b"data"), b"data")
    assert load_signing_key(signer) is signer


def other_key(raw, data):
    return ec.generate_private_key(ec.SECP256R1()).sign(data, ec.ECDSA(hashes.SHA256()))


def other_hash(raw, data):
    return raw.sign(data, ec.ECDSA(hashes.SHA384()))


def numbers_joined(raw, data):
    r, s = utils.decode_dss_signature(raw.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def other_data(raw, data):
    return raw.sign(data + b"!", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("fault", [other_key, other_hash, numbers_joined, other_data])
def test_signature_that_is_not_the_keys_is_never_used(tmp_path, raw, fault):
    (tmp_path / "model.bin").write_bytes(b"weights")
    signer = ExternalSigner(raw.public_key(), lambda data: fault(raw, data))
    with pytest.raises(KeyFormatError, match=r"`sign` must return .*DER-encoded"):
        sign(tmp_path / "model.bin", signer)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.parametrize("value", [None, "text", 3])
def test_signature_of_another_type_is_named(raw, value):
    with pytest.raises(KeyFormatError, match="must return the signature as bytes"):
        ExternalSigner(raw.public_key(), lambda data: value).sign(b"data")


def test_empty_and_long_signatures_are_refused(raw):
    for value in (b"", b"\x00" * 100_000):
        with pytest.raises(KeyFormatError, match="do not verify"):
            ExternalSigner(raw.public_key(), lambda data, value=value: value).sign(b"data")


def test_arguments_are_checked(raw):
    with pytest.raises(TypeError, match="`sign` must be a function"):
        ExternalSigner(raw.public_key(), b"signature")
    with pytest.raises(KeyFormatError, match="`public_key` must be"):
        ExternalSigner(raw, Device(raw).sign)


def test_it_is_not_pickled_and_shows_only_its_public_half(raw):
    signer = ExternalSigner(raw.public_key(), Device(raw).sign)
    assert repr(signer).startswith("ExternalSigner(VerifyingKey(ecdsa-p256, ")
    assert copy.deepcopy(signer) is signer
    with pytest.raises(TypeError, match="must not be pickled"):
        pickle.dumps(signer)
