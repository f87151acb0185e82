"""The stream, with chunks of 256 bytes so that every boundary can be tried."""

import contextlib
import io
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_modelsec.errors import DecryptionError
from keras_modelsec.integrity.encryption import encrypted_stream
from keras_modelsec.integrity.encryption.encrypted_stream import (
    DecryptedReader,
    EncryptedFile,
    EncryptingWriter,
)
from keras_modelsec.integrity.encryption.key_slots import locks_for, openers_for

KEY = bytes(range(32))
CHUNK, SEALED = 256, 272
HEADER = 12 + 4 + 64 + 32


class Trickling(io.BytesIO):
    """A file that takes and gives a little at a time, as the system may."""

    def write(self, data):
        return super().write(memoryview(data)[:100])

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:100])


def encrypt(plain, *, key=KEY, pieces=None, file=None):
    file = file or io.BytesIO()
    writer = EncryptingWriter(file, locks_for(key), chunk_bytes=CHUNK)
    for piece in pieces if pieces is not None else [plain]:
        assert writer.write(piece) == len(piece)
    writer.finish()
    return file.getvalue()


@contextlib.contextmanager
def opened(path, data):
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as file:
        yield file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stream") / "file.enc"


def decrypt(place, data, key=KEY):
    with opened(place, data) as file:
        encrypted = EncryptedFile(file, openers_for(key), "file.enc")
        return b"".join(bytes(chunk) for chunk in encrypted.chunks())


def is_refused(place, data):
    """Refused, and refused before the reader for Keras exists."""
    with pytest.raises(DecryptionError):
        decrypt(place, data)
    with opened(place, data) as file, pytest.raises(DecryptionError):
        DecryptedReader(EncryptedFile(file, openers_for(KEY), "file.enc"))


def chunks_of(data):
    body = data[HEADER:]
    return [body[start : start + SEALED] for start in range(0, len(body), SEALED)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=6))
@example([])
@example([bytes(256)])
@example([bytes(255), bytes(1), bytes(256)])
@example([bytes(512)])
@example([bytes(513), b"", bytes(255)])
def test_what_is_written_in_any_pieces_comes_back(place, pieces):
    plain = b"".join(pieces)
    data = encrypt(plain, pieces=pieces)
    assert decrypt(place, data) == plain
    chunk_count = max(1, -(-len(plain) // CHUNK))
    assert len(data) == HEADER + len(plain) + 16 * chunk_count


def test_files_that_take_and_give_little_at_a_time(place):
    plain = os.urandom(1000)
    data = encrypt(plain, file=Trickling())
    with opened(place, data) as file:
        trickling = Trickling(file.read())
        trickling.fileno = file.fileno
        encrypted = EncryptedFile(trickling, openers_for(KEY), "file.enc")
        assert b"".join(bytes(chunk) for chunk in encrypted.chunks()) == plain


@pytest.mark.parametrize("size", [0, 1, 256, 700])
def test_every_altered_byte_is_refused(place, size):
    data = encrypt(os.urandom(size))
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        with pytest.raises(DecryptionError):
            decrypt(place, bytes(altered))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 700])
def test_every_cut_is_refused(place, size):
    data = encrypt(os.urandom(size))
    for length in range(len(data)):
        with pytest.raises(DecryptionError):
            decrypt(place, data[:length])


@pytest.mark.parametrize("size", [0, 256, 700])
@pytest.mark.parametrize("added", [1, 15, 16, 17, SEALED])
def test_added_bytes_are_refused(place, size, added):
    is_refused(place, encrypt(os.urandom(size)) + os.urandom(added))


def test_chunks_in_any_other_order_or_number_are_refused(place):
    data = encrypt(os.urandom(4 * CHUNK))
    head, (a, b, c, d) = data[:HEADER], chunks_of(data)
    assert decrypt(place, head + a + b + c + d)
    for other in (
        [b, a, c, d],
        [a, c, b, d],
        [d, b, c, a],
        [a, b, d],
        [a, b, c],
        [b, c, d],
        [d],
        [a],
        [],
        [a, a, b, c, d],
        [a, b, c, d, d],
        [a, b, c, c],
    ):
        is_refused(place, head + b"".join(other))


def test_chunk_of_another_file_is_refused_although_the_key_is_the_same(place):
    plain = os.urandom(3 * CHUNK)
    first, second = encrypt(plain), encrypt(plain)
    mixed = chunks_of(first)
    mixed[1] = chunks_of(second)[1]
    is_refused(place, first[:HEADER] + b"".join(mixed))
    is_refused(place, second[:HEADER] + first[HEADER:])


def test_slot_of_another_file_is_refused_although_it_opens(place):
    first, second = encrypt(b"first"), encrypt(b"second")
    is_refused(place, second[: HEADER - 32] + first[HEADER - 32 :])


def test_what_one_of_two_recipients_cannot_see_is_still_bound(place):
    """Who opens his own slot notices that somebody else's was altered or taken away."""
    data = encrypt(b"x" * 600, key=[KEY, bytes(32)])
    assert decrypt(place, data) == decrypt(place, data, bytes(32)) == b"x" * 600
    altered = bytearray(data)
    altered[12 + 68 + 20] ^= 1  # in the second slot
    with pytest.raises(DecryptionError, match="header it was made with"):
        decrypt(place, bytes(altered))
    shorter = bytearray(data[: 12 + 68] + data[12 + 2 * 68 :])
    shorter[10] = 1
    with pytest.raises(DecryptionError, match="header it was made with"):
        decrypt(place, bytes(shorter))


def test_two_data_keys_cannot_share_a_file(place):
    """Key commitment: a slot that gives another data key does not open the file at all."""
    (lock,) = locks_for(bytes(32))
    data = encrypt(b"x", key=[KEY, bytes(32)])
    other = lock.seal(os.urandom(32)).body
    start = 12 + 68 + 4
    with pytest.raises(DecryptionError, match="header it was made with"):
        decrypt(place, data[:start] + other + data[start + 64 :], bytes(32))


def test_empty_last_chunk_after_others_is_refused_although_it_authenticates(place):
    """One plaintext has one way to be cut into chunks, also for who has the key."""
    file = io.BytesIO()
    with EncryptingWriter(file, locks_for(KEY), chunk_bytes=CHUNK) as writer:
        writer._seal(memoryview(bytes(CHUNK)), last=False)
        writer.finish()
    assert len(file.getvalue()) == HEADER + SEALED + 16
    is_refused(place, file.getvalue())


def test_unfinished_stream_is_refused(place):
    file = io.BytesIO()
    EncryptingWriter(file, locks_for(KEY), chunk_bytes=CHUNK).write(bytes(1000))
    is_refused(place, file.getvalue())


def test_wrong_key_is_refused_and_the_message_says_what_opens_it(place):
    with pytest.raises(DecryptionError, match=r"opens with 1 32-byte keys.*Nothing was decrypted"):
        decrypt(place, encrypt(b"x"), bytes(32))


def test_nonces_never_repeat_and_end_with_the_last_flag(place):
    data = encrypt(bytes(3 * CHUNK))
    with opened(place, data) as file:
        keys = EncryptedFile(file, openers_for(KEY), "file.enc")._keys
    nonces = [keys.nonce(index, last) for index in (0, 1, 2**32 - 1) for last in (False, True)]
    assert len(set(nonces)) == 6
    assert {nonce[-1] for nonce in nonces} == {0, 1}
    assert all(len(nonce) == 12 for nonce in nonces)


def test_too_many_chunks_are_refused(monkeypatch):
    monkeypatch.setattr(encrypted_stream, "MOST_CHUNKS", 2)
    with pytest.raises(ValueError, match="at most 2 chunks"):
        encrypt(bytes(3 * CHUNK))


def test_older_cryptography_without_the_into_methods_gives_the_same(place, monkeypatch):
    plain = os.urandom(1000)
    data = encrypt(plain)

    class Older:
        def __init__(self, key):
            real = encrypted_stream_aesgcm(key)
            self.encrypt, self.decrypt = real.encrypt, real.decrypt

    encrypted_stream_aesgcm = encrypted_stream.AESGCM
    monkeypatch.setattr(encrypted_stream, "AESGCM", Older)
    assert decrypt(place, data) == plain
    by_older = encrypt(plain)
    assert decrypt(place, by_older) == plain
    monkeypatch.undo()
    assert decrypt(place, by_older) == plain


@pytest.fixture
def reader(place):
    plain = os.urandom(20 * CHUNK + 5)
    with opened(place, encrypt(plain)) as file:
        yield DecryptedReader(EncryptedFile(file, openers_for(KEY), "file.enc")), plain, file


@settings(max_examples=100, deadline=None)
@given(reads=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 1500)), max_size=10))
def test_reader_agrees_with_the_plaintext_at_any_place(place, reads):
    plain = os.urandom(1500)
    with opened(place, encrypt(plain)) as file:
        reader = DecryptedReader(EncryptedFile(file, openers_for(KEY), "file.enc"))
        for position, count in reads:
            reader.seek(position)
            assert reader.read(count) == plain[position : position + count]


def test_reader_is_a_seekable_file(reader):
    reader, plain, _ = reader
    assert reader.seek(-5, os.SEEK_END) == len(plain) - 5
    assert reader.read() == plain[-5:]
    assert reader.tell() == len(plain)
    assert reader.seek(-1, os.SEEK_CUR) == len(plain) - 1
    with pytest.raises(ValueError, match="negative"):
        reader.seek(-1)
    assert not hasattr(reader, "name")  # Keras would write beside a file that has one


def test_chunk_that_changes_after_it_authenticated_is_refused_even_if_it_is_valid(place):
    """By somebody who has the file's key, as a recipient has."""
    original = encrypt(b"a" * 3 * CHUNK)
    with opened(place, original) as file:
        encrypted = EncryptedFile(file, openers_for(KEY), "file.enc")
        reader = DecryptedReader(encrypted)
        forged = encrypted._keys.cipher.encrypt(encrypted._keys.nonce(1, False), b"b" * CHUNK, None)
        file.seek(HEADER + SEALED)
        file.write(forged)
        assert bytes(encrypted.chunk(1, lambda _: None)) == b"b" * CHUNK  # it is valid
        assert reader.read(CHUNK) == b"a" * CHUNK
        with pytest.raises(DecryptionError, match="must not change while it is read"):
            reader.read(CHUNK)
        assert isinstance(reader.failure, DecryptionError)


def test_file_that_grows_or_shrinks_while_it_is_read_is_refused(place):
    for change in (lambda f: f.truncate(HEADER + 10), lambda f: os.pwrite(f.fileno(), b"x", 10**4)):
        with opened(place, encrypt(bytes(3 * CHUNK))) as file:
            encrypted = EncryptedFile(file, openers_for(KEY), "file.enc")
            change(file)
            with pytest.raises(DecryptionError, match=r"shorter|added"):
                DecryptedReader(encrypted)


def test_progress_and_the_encrypted_bytes_are_told_in_order(place):
    data = encrypt(bytes(700))
    seen, told = [], []
    with opened(place, data) as file:
        encrypted = EncryptedFile(file, openers_for(KEY), "file.enc")
        DecryptedReader(
            encrypted,
            on_bytes=lambda part: seen.append(bytes(part)),
            progress=lambda *pair: told.append(pair),
        )
    assert b"".join(seen) == data
    assert told == [(256, 700), (512, 700), (700, 700)]
