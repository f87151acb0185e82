import struct

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.key_wrapping import check_blob, unwrap, wrap
from keras_modelsec.errors import KeyFormatError, WrongPasswordError

PURPOSE = b"test"


@pytest.fixture
def cheap(monkeypatch):
    """Real Argon2id, with so little memory that many cases fit into a second."""
    monkeypatch.setattr(key_wrapping, "MEMORY_KIB", 32)
    monkeypatch.setattr(key_wrapping, "ITERATIONS", 1)


def with_cost(blob, *, lanes=4, iterations=3, memory=65536):
    return blob[:5] + struct.pack("<BBBI", lanes, iterations, 0, memory) + blob[12:]


def test_wrapped_secret_comes_back_at_the_default_cost():
    blob = wrap(b"secret", b"correct horse", purpose=PURPOSE)
    assert struct.unpack("<4sBBBBI", blob[:12]) == (b"MSPW", 1, 4, 3, 0, 64 << 10)
    assert b"secret" not in blob
    assert unwrap(blob, b"correct horse", purpose=PURPOSE) == b"secret"


@pytest.mark.usefixtures("cheap")
def test_wrong_password_and_wrong_purpose_are_refused():
    blob = wrap(b"secret", b"right", purpose=PURPOSE)
    with pytest.raises(WrongPasswordError, match="Received: another"):
        unwrap(blob, b"wrong", purpose=PURPOSE)
    with pytest.raises(WrongPasswordError, match="another purpose"):
        unwrap(blob, b"right", purpose=b"other")
    with pytest.raises(ValueError, match="empty password"):
        unwrap(blob, b"", purpose=PURPOSE)
    with pytest.raises(ValueError, match="empty purpose"):
        wrap(b"secret", b"right", purpose=b"")


@pytest.mark.usefixtures("cheap")
def test_every_altered_byte_is_refused():
    blob = wrap(b"secret", b"right", purpose=PURPOSE)
    for position in range(len(blob)):
        for mask in (1, 128):
            altered = bytearray(blob)
            altered[position] ^= mask
            with pytest.raises(KeyFormatError):
                unwrap(bytes(altered), b"right", purpose=PURPOSE)


@pytest.mark.usefixtures("cheap")
def test_two_wraps_of_one_secret_share_nothing():
    first, second = (wrap(b"secret", b"right", purpose=PURPOSE) for _ in range(2))
    assert first[12:28] != second[12:28]
    assert first[28:] != second[28:]


@pytest.mark.parametrize(
    "cost",
    [
        {"memory": 1 << 30},
        {"memory": (256 << 10) + 1},
        {"memory": 31},
        {"iterations": 17},
        {"iterations": 13},
        {"memory": 256 << 10, "iterations": 4},
        {"iterations": 0},
        {"lanes": 0},
        {"lanes": 17},
    ],
)
@pytest.mark.usefixtures("cheap")
def test_cost_out_of_bounds_is_refused_before_any_work(cost, monkeypatch):
    blob = with_cost(wrap(b"secret", b"right", purpose=PURPOSE), **cost)
    monkeypatch.setattr(key_wrapping, "Argon2id", None)
    with pytest.raises(KeyFormatError, match="must ask for"):
        unwrap(blob, b"right", purpose=PURPOSE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(KeyFormatError):
        check_blob(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_after_a_good_beginning_are_refused_or_have_a_bounded_cost(data):
    try:
        header = check_blob(b"MSPW\x01" + data)
    except KeyFormatError:
        return
    _, _, lanes, iterations, _, memory = struct.unpack("<4sBBBBI", header[:12])
    assert lanes <= 16
    assert iterations <= 16
    assert memory <= 256 << 10
    assert memory * iterations <= 4 * 3 * (64 << 10)  # four times what is written


def test_secret_of_too_many_bytes_is_refused():
    with pytest.raises(ValueError, match="65536"):
        wrap(bytes((64 << 10) + 1), b"right", purpose=PURPOSE)


def test_missing_argon2_is_said_clearly(monkeypatch):
    def unsupported(**_):  # what cryptography raises with OpenSSL < 3.2, which is not here to try
        raise UnsupportedAlgorithm("no Argon2id")

    monkeypatch.setattr(key_wrapping, "Argon2id", unsupported)
    with pytest.raises(KeyFormatError, match=r"OpenSSL 3\.2.*use a key instead"):
        wrap(b"secret", b"right", purpose=PURPOSE)


@pytest.mark.usefixtures("cheap")
def test_messages_hold_no_secret():
    blob = wrap(b"the secret", b"the password", purpose=PURPOSE)
    with pytest.raises(WrongPasswordError) as error:
        unwrap(blob, b"a wrong word", purpose=PURPOSE)
    for word in ("the secret", "the password", "a wrong word"):
        assert word not in str(error.value)
