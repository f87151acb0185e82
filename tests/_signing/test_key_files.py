import copy
import pickle

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from keras_modelsec._signing import algorithms, key_files, key_wrapping
from keras_modelsec._signing.key_files import load_signing_key, load_trusted_keys
from keras_modelsec.errors import KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.encryption.encryption_keys import generate_encryption_keys
from keras_modelsec.trust import EnvironmentVariable, SigningKey, generate_keys


def private_pem(key, form=serialization.PrivateFormat.PKCS8, encryption=None):
    encryption = encryption or serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


def public_pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def mldsa():
    """Not there before `cryptography` 48."""
    return pytest.importorskip(
        "cryptography.hazmat.primitives.asymmetric.mldsa",
        reason="ML-DSA needs cryptography >= 48",
    )


@pytest.fixture(scope="module")
def raw_key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def foreign_keys():
    return {
        "RSA": rsa.generate_private_key(65537, 2048),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "secp224r1": ec.generate_private_key(ec.SECP224R1()),
        "brainpoolP256r1": ec.generate_private_key(ec.BrainpoolP256R1()),
    }


def test_private_key_is_taken_as_path_text_bytes_or_object(tmp_path, raw_key):
    pem = private_pem(raw_key)
    path = tmp_path / "key.pem"
    path.write_bytes(pem)
    hints = {
        load_signing_key(source).verifying_key.hint
        for source in (path, str(path), pem, pem.decode(), raw_key, SigningKey(raw_key))
    }
    assert len(hints) == 1


def test_public_keys_are_taken_one_by_one_or_as_a_list(tmp_path, raw_key):
    pem = public_pem(raw_key)
    path = tmp_path / "key.pub"
    path.write_bytes(pem)
    second = ec.generate_private_key(ec.SECP384R1()).public_key()
    sources = (path, str(path), pem, pem.decode(), raw_key.public_key())
    assert len({tuple(load_trusted_keys(source)) for source in sources}) == 1
    assert len(load_trusted_keys([path, pem, second])) == 2


def test_older_forms_of_the_private_key_are_read(raw_key):
    form = serialization.PrivateFormat.TraditionalOpenSSL
    assert load_signing_key(private_pem(raw_key, form))
    encrypted = private_pem(raw_key, form, serialization.BestAvailableEncryption(b"p"))
    assert load_signing_key(encrypted, "p")
    # `openssl ecparam -genkey` puts the curve's name in front
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert load_signing_key(parameters + private_pem(raw_key, form))


@pytest.mark.parametrize(
    "name", ["RSA", "Ed448", "MLDSA44", "secp256k1", "secp224r1", "brainpoolP256r1"]
)
def test_other_kinds_and_curves_are_refused(foreign_keys, name):
    key = mldsa().MLDSA44PrivateKey.generate() if name == "MLDSA44" else foreign_keys[name]
    with pytest.raises(KeyFormatError, match=f"(?i)must be .*{name}.*generate_keys"):
        load_signing_key(key)
    with pytest.raises(KeyFormatError, match=f"(?i)must be .*{name}.*generate_keys"):
        load_trusted_keys(key.public_key())
    with pytest.raises(KeyFormatError, match=f"(?i)must be .*{name}.*generate_keys"):
        load_signing_key(private_pem(key))
    with pytest.raises(KeyFormatError, match=f"(?i)must be .*{name}.*generate_keys"):
        load_trusted_keys(public_pem(key))


def test_public_key_in_place_of_a_private_one(raw_key):
    with pytest.raises(KeyFormatError, match=r"`signing_key` must be a private key.*other file"):
        load_signing_key(public_pem(raw_key))


@pytest.mark.parametrize("password", [None, b"secret"])
def test_key_for_encryption_in_place_of_one_for_signing(tmp_path, password):
    pair = generate_encryption_keys(tmp_path / "k.key", password=password)
    with pytest.raises(KeyFormatError, match=r"a key for encryption, which does not sign"):
        load_signing_key(pair.private_path)


def test_private_key_in_place_of_a_public_one(raw_key):
    with pytest.raises(KeyFormatError, match=r"`trusted_keys` must be public keys.*must not hold"):
        load_trusted_keys(private_pem(raw_key))


def test_certificate_and_openssh_keys_are_refused_by_name(raw_key):
    certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(KeyFormatError, match="CERTIFICATE"):
        load_trusted_keys(certificate)
    with pytest.raises(KeyFormatError, match="OpenSSH"):
        load_signing_key(private_pem(raw_key, serialization.PrivateFormat.OpenSSH))


SCRYPT = bytes.fromhex("06092b06010401da47040b")


def encrypted(kdf, *numbers):
    """PKCS#8 that asks for a derivation; of OpenSSL's form, with a ciphertext that is none."""
    salt, rest = key_wrapping._octets(b"s" * 16), ()
    if kdf != SCRYPT:
        rest = (key_wrapping._sequence(key_wrapping._HMAC_SHA512, key_wrapping._NULL),)
    numbers = [key_wrapping._integer(number) for number in numbers]
    cipher = (key_wrapping._AES256_CBC, key_wrapping._octets(b"i" * 16))
    derivation = (kdf, key_wrapping._sequence(salt, *numbers, *rest))
    scheme = [key_wrapping._sequence(*part) for part in (derivation, cipher)]
    algorithm = (key_wrapping._PBES2, key_wrapping._sequence(*scheme))
    body = (key_wrapping._sequence(*algorithm), key_wrapping._octets(b"c" * 64))
    return key_wrapping._pem(key_wrapping._sequence(*body), b"ENCRYPTED PRIVATE KEY")


@pytest.fixture
def decryptions(monkeypatch):
    """What is handed to the library, which does whatever work it is asked for."""
    calls = []
    real = key_files.serialization.load_pem_private_key
    monkeypatch.setattr(
        key_files.serialization,
        "load_pem_private_key",
        lambda *given: calls.append(1) or real(*given),
    )
    return calls


@pytest.mark.parametrize(
    "pem",
    [
        encrypted(key_wrapping._PBKDF2, 4_000_001),
        encrypted(key_wrapping._PBKDF2, 1 << 62, 32),
        encrypted(SCRYPT, 1 << 21, 8, 1),
        encrypted(SCRYPT, 1 << 14, 8, 500),
        encrypted(SCRYPT, 2, 1 << 21, 1),
        encrypted(SCRYPT, 2, 1, 1 << 24),
        encrypted(key_wrapping._PBKDF2, 1000).replace(b"KEY-----\n", b"KEY-----\nA: b\n\n", 1),
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ],
)
def test_absurd_cost_of_an_encrypted_key_is_refused_before_any_work(pem, decryptions):
    with pytest.raises(KeyFormatError, match="encrypted private key must"):
        load_signing_key(pem, "word")
    assert not decryptions


def test_keys_that_other_programs_encrypted_are_tried(raw_key, decryptions):
    form = serialization.BestAvailableEncryption(b"word")
    assert load_signing_key(private_pem(raw_key, encryption=form), "word")
    usual = encrypted(key_wrapping._PBKDF2, 2048), encrypted(SCRYPT, 1 << 14, 8, 1)
    for pem in usual:
        with pytest.raises(WrongPasswordError):
            load_signing_key(pem, "word")
    assert len(decryptions) == 3


@pytest.mark.parametrize("cut", [1, 30, 60, 120, -2, -30])
def test_truncated_key_is_a_named_error(raw_key, cut):
    with pytest.raises(KeyFormatError):
        load_signing_key(private_pem(raw_key)[:cut])
    with pytest.raises(KeyFormatError):
        load_trusted_keys(public_pem(raw_key)[:cut])


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x00" * 100, b"-----BEGIN PUBLIC KEY-----"])
def test_junk_is_a_named_error(junk):
    with pytest.raises(KeyFormatError):
        load_signing_key(junk)
    with pytest.raises(KeyFormatError):
        load_trusted_keys(junk)


def test_two_keys_in_one_file_are_refused(raw_key):
    with pytest.raises(KeyFormatError, match=r"exactly one key.*2 parts"):
        load_trusted_keys(public_pem(raw_key) * 2)


def test_password_for_a_key_that_has_none_is_refused(raw_key):
    with pytest.raises(WrongPasswordError, match=r"must be None.*not encrypted"):
        load_signing_key(private_pem(raw_key), "p")


def test_empty_list_of_trusted_keys_is_refused():
    with pytest.raises(ValueError, match="at least one public key"):
        load_trusted_keys([])


@pytest.mark.parametrize("source", [None, 3, {}, object()])
def test_other_types_are_refused(source):
    with pytest.raises(KeyFormatError):
        load_trusted_keys(source)
    with pytest.raises(KeyFormatError):
        load_signing_key(source)


def test_missing_key_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`signing_key` must be PEM or.*gone\.pem"):
        load_signing_key(tmp_path / "gone.pem")


def test_key_text_without_its_frame_is_not_repeated_in_the_message(raw_key):
    body = "".join(private_pem(raw_key).decode().splitlines()[1:-1])
    with pytest.raises((OSError, KeyFormatError)) as caught:
        load_signing_key(body)
    assert body[:20] not in str(caught.value)


def test_signing_key_shows_and_pickles_nothing(raw_key):
    key = SigningKey(raw_key)
    secret = raw_key.private_numbers().private_value
    assert str(secret) not in repr(key)
    assert f"{secret:x}" not in repr(key)
    with pytest.raises(TypeError, match="must not be pickled"):
        pickle.dumps(key)
    assert copy.deepcopy(key) is key


@pytest.mark.parametrize("name", ["ed25519", "ml-dsa-65"])
def test_other_algorithms_are_taken_in_every_form(tmp_path, name):
    raw = algorithms.ALGORITHMS[name].generate()
    (tmp_path / "key.pem").write_bytes(private_pem(raw))
    (tmp_path / "key.pub").write_bytes(public_pem(raw))
    keys = [load_signing_key(s) for s in (raw, private_pem(raw), tmp_path / "key.pem")]
    trusted = load_trusted_keys([raw.public_key(), public_pem(raw), tmp_path / "key.pub"])
    assert {key.verifying_key.hint for key in keys} == set(trusted)
    assert {key.algorithm for key in keys} == {name}
    trusted[keys[0].verifying_key.hint].check(keys[1].sign(b"data"), b"data")


def test_private_key_comes_from_a_callable(raw_key):
    pem = private_pem(raw_key)
    hint = SigningKey(raw_key).verifying_key.hint
    for value in (pem, pem.decode(), raw_key, SigningKey(raw_key)):
        assert load_signing_key(lambda value=value: value).verifying_key.hint == hint


def test_private_key_comes_from_an_environment_variable_with_its_password(tmp_path, monkeypatch):
    private, _ = generate_keys(tmp_path / "owner.pem", password="geheim")
    monkeypatch.setenv("OWNER_KEY", private.read_text())
    monkeypatch.setenv("OWNER_PASSWORD", "geheim")
    source = EnvironmentVariable("OWNER_KEY")
    assert load_signing_key(source, EnvironmentVariable("OWNER_PASSWORD")).sign(b"data")
    monkeypatch.delenv("OWNER_KEY")
    with pytest.raises(ValueError, match="OWNER_KEY must hold"):
        load_signing_key(source, "geheim")


@pytest.mark.parametrize("value", ["owner.pem", "geheim", "/etc/passwd", None, 3, object()])
def test_what_a_callable_returns_is_no_path_and_is_not_repeated(value):
    with pytest.raises(KeyFormatError) as caught:
        load_signing_key(lambda: value)
    assert str(value) not in str(caught.value) or value is None


@pytest.mark.parametrize("module", [None, algorithms.mldsa])
def test_without_mldsa_the_error_names_the_versions_needed(tmp_path, monkeypatch, module):
    """Stands for cryptography < 48; `None` is what an ImportError leaves."""
    from cryptography.hazmat.backends.openssl import backend

    raw = algorithms.ALGORITHMS["ml-dsa-65"].generate()
    private, public = generate_keys(tmp_path / "k.pem", algorithm="ml-dsa-65", password="p")

    def unsupported(*arguments, **options):
        raise ValueError("unsupported algorithm")

    monkeypatch.setattr(algorithms, "mldsa", module)
    monkeypatch.setattr(type(backend), "mldsa_supported", lambda self: False)
    monkeypatch.setattr(serialization, "load_pem_private_key", unsupported)
    monkeypatch.setattr(serialization, "load_pem_public_key", unsupported)
    monkeypatch.setattr(serialization, "load_der_private_key", unsupported)
    for load in (
        lambda: load_signing_key(private_pem(raw)),
        lambda: load_trusted_keys(public),
        lambda: load_signing_key(private, "p"),
    ):
        with pytest.raises(KeyFormatError, match=r"cryptography >= 48 .*OpenSSL >= 3\.5.*Received"):
            load()
    with pytest.raises(KeyFormatError, match="cryptography >= 48"):
        algorithms.ALGORITHMS["ml-dsa-65"].generate()
