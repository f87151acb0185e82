"""Random damage never verifies, and never raises anything but a SignatureError."""

import contextlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.model_statement import ModelStatement, statement_path_of
from keras_modelsec.trust import SigningKey

SETTINGS = settings(max_examples=300, deadline=None)

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "delete", "move"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damage(data, changes):
    data = bytearray(data)
    for kind, place, piece in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data[at] ^= piece[0] or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at : at + len(piece)]
        elif kind == "move":
            taken = data[at : at + len(piece)]
            del data[at : at + len(piece)]
            data[:0] = taken
    return bytes(data)


@pytest.fixture(scope="module", params=["NAME.sig", "NAME.modelsec.json"])
def pair(tmp_path_factory, request):
    """A model with one of the two files that can vouch for it."""
    key = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    path = tmp_path_factory.mktemp("fuzz") / "model.bin"
    path.write_bytes(bytes(range(256)) * 2)
    signature, said = sign(path, key).signature, statement_path_of(path)
    if request.param == "NAME.sig":
        said.unlink()
    else:
        signature.unlink()
        signature = said
    return path, path.read_bytes(), signature, signature.read_bytes(), key.verifying_key


@SETTINGS
@given(changes=edits)
def test_damaged_model_never_verifies(pair, changes):
    path, original, signature, signature_bytes, public = pair
    signature.write_bytes(signature_bytes)
    damaged = damage(original, changes)
    path.write_bytes(damaged)
    if damaged == original:
        verify(path, public)
    else:
        with pytest.raises(SignatureError):
            verify(path, public)


@SETTINGS
@given(changes=edits)
@example(changes=[("insert", 0.0, b" ")])  # white space between tokens: the same JSON
def test_damaged_signature_never_verifies(pair, changes):
    path, original, signature, signature_bytes, public = pair
    path.write_bytes(original)
    damaged = damage(signature_bytes, changes)
    signature.write_bytes(damaged)
    with contextlib.suppress(ValueError):
        if json.loads(damaged) == json.loads(signature_bytes):
            verify(path, public)
            return
    with pytest.raises(SignatureError):
        verify(path, public)


def test_every_single_bit_of_the_signature_file_counts(pair):
    path, original, signature, signature_bytes, public = pair
    path.write_bytes(original)
    for bit in range(0, 8 * len(signature_bytes), 7):  # 7 and 8 are coprime: every position
        damaged = bytearray(signature_bytes)
        damaged[bit // 8] ^= 1 << bit % 8
        signature.write_bytes(damaged)
        with pytest.raises(SignatureError):
            verify(path, public)
    signature.write_bytes(signature_bytes)
    verify(path, public)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)


@SETTINGS
@given(data=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_parsers_of_untrusted_bytes_raise_nothing_but_signature_error(data):
    for parse in (
        Envelope.from_bytes,
        openssf_statement.from_bytes,
        DsseEnvelope.from_bytes,
        ModelStatement.from_bytes,
    ):
        with pytest.raises(SignatureError):
            parse(data)
