import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec.errors import DecryptionError
from keras_modelsec.integrity.encryption import encryption_format as format_
from keras_modelsec.integrity.encryption.encryption_format import Header, Slot, parse_header

slots = st.sampled_from(list(format_.SLOT_BYTES.items())).flatmap(
    lambda kind: st.binary(min_size=kind[1], max_size=kind[1]).map(lambda body: Slot(kind[0], body))
)


def header(*kinds, chunk_bytes=1 << 20):
    bodies = [Slot(kind, os.urandom(format_.SLOT_BYTES[kind])) for kind in kinds]
    return Header(chunk_bytes, tuple(bodies), os.urandom(32))


@settings(max_examples=50, deadline=None)
@given(st.lists(slots, min_size=1, max_size=4), st.integers(8, 24), st.binary(max_size=50))
def test_header_comes_back_whatever_follows_it(items, power, rest):
    original = Header(1 << power, tuple(items), bytes(range(32)))
    assert parse_header(original.to_bytes() + rest) == original


@pytest.mark.parametrize("kind", list(format_.SLOT_BYTES))
def test_header_that_is_cut_anywhere_is_refused(kind):
    data = header(kind).to_bytes()
    for length in range(len(data)):
        with pytest.raises(DecryptionError):
            parse_header(data[:length])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    for start in (b"", format_.MAGIC, format_.MAGIC + b"\x01\x14\x01\x00"):
        try:
            parsed = parse_header(start + data)
        except DecryptionError:
            continue
        assert (start + data).startswith(parsed.to_bytes())


def test_every_parsed_header_has_one_encoding():
    data = header(1, 2, 3).to_bytes()
    for position in range(len(data) - 32):
        for mask in (1, 0x80, 0xFF):
            altered = bytearray(data)
            altered[position] ^= mask
            try:
                parsed = parse_header(bytes(altered))
            except DecryptionError:
                continue
            assert bytes(altered).startswith(parsed.to_bytes())


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 0, "begin as an encrypted file does"),
        (8, 2, "version 1"),
        (9, 7, "chunks of 256 bytes to 16 MiB"),
        (9, 25, "chunks of 256 bytes to 16 MiB"),
        (10, 0, "1 to 64 key slots"),
        (10, 65, "1 to 64 key slots"),
        (11, 1, "chunks"),
        (12, 9, "known kinds"),
        (13, 1, "known kinds"),
        (14, 1, "known kinds"),
    ],
)
def test_field_out_of_range_is_refused(position, value, message):
    altered = bytearray(header(1).to_bytes())
    altered[position] = value
    with pytest.raises(DecryptionError, match=message):
        parse_header(bytes(altered))


def test_many_passphrases_are_refused_before_one_is_tried():
    parse_header(header(2, 2, 2, 2).to_bytes())
    with pytest.raises(DecryptionError, match="at most 4 passphrases"):
        parse_header(header(2, 2, 2, 2, 2).to_bytes())


def test_largest_header_fits_what_is_read():
    data = header(*[3] * 64).to_bytes()
    assert len(data) == format_.MOST_HEADER_BYTES
    assert len(parse_header(data).slots) == 64
