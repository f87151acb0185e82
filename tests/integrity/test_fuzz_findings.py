"""Inputs that `make fuzz` and `make torture` found: each was once not refused by name."""

import json

import pytest

from keras_modelsec._signing.trust import load_trust
from keras_modelsec.errors import KeyFormatError, SignatureError
from keras_modelsec.integrity import write_parity
from keras_modelsec.integrity.parity.parity_file import ParityFile
from keras_modelsec.integrity.parity.parity_statement import ParityStatement
from keras_modelsec.integrity.statements.model_statement import ModelStatement, read_statement
from keras_modelsec.trust import TrustedRoots, load_signing_key


def pem(label, body):
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


def test_private_key_that_openssl_itself_stumbles_over_is_a_key_format_error():
    # cryptography raises InternalError: an Ed25519 key that says it is Ed448
    body = "MC4CAQAwBQYDK2VxBCIEIOfLG43MTFOwJezkmbDyVlnVMAGkxr/t3nSedGAOrx7S"
    with pytest.raises(KeyFormatError, match="does not decode"):
        load_signing_key(pem("PRIVATE KEY", body))


def test_root_certificate_whose_name_cannot_be_read_is_a_key_format_error():
    # cryptography parses names when they are asked for, and raises TypeError at a BIT STRING
    body = (
        "MIIBTzCB96ADAgECAhRFG952UC7krKfBmYVCCpf07OHZfzAKBggqhkjOPQQDAjAWMRQwEgYDVQQDDAtHb2xkZW4g"
        "Um9vdDAeFw0yNTA2MDExMjAwMDBaFw0zNjA1MjkxMjAwMDBaMBYxFDASBgNVBAMDC0dvbGRlbiBSb290MFkwEwYH"
        "KoZIzj0CAQYIKoZIzj0DAQcDQgAEL5/Rh4fbOkkeimcxpZzPT0du80UecPuDb1QYPXGgSmsfHPkjiBpuqXK1K0mk"
        "nIKxbtYEG9EdK/JQKFs95aml4KMjMCEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAgQwCgYIKoZIzj0E"
        "AwIDRwAwRAIgB59XWheE861F40ujV9s1C3U2JipvN/NOCYKzxggW1yICIFVHWlg16qGtSSQ9vF2VUbNseXMZdu6U"
        "lbxpoDLp0FRl"
    )
    with pytest.raises(KeyFormatError, match="does not decode"):
        TrustedRoots(pem("CERTIFICATE", body))


@pytest.mark.parametrize("empty", [None, "", [], {}, 0, False])
def test_fingerprint_that_is_there_must_be_one(stated_file, public, empty):
    said = read_statement(stated_file.signature, load_trust(public))
    value = json.loads(said.to_bytes())
    value["predicate"]["files"][0]["fingerprint"] = empty
    with pytest.raises(SignatureError, match="`fingerprint` must be 64 lower-case hex"):
        ModelStatement.from_bytes(json.dumps(value).encode())


def test_parity_with_a_record_of_gigabytes_is_refused_before_it_is_made_room_for(stated_file, key):
    parity = ParityFile(write_parity(stated_file.path, key).parity, load_trust(key.verifying_key))
    parity.close()
    value = json.loads(parity.statement.to_bytes())
    value["predicate"]["record_bytes"] = 1 << 32
    with pytest.raises(SignatureError, match="`record_bytes` must be a multiple of 4096 and at"):
        ParityStatement.from_bytes(json.dumps(value).encode())
