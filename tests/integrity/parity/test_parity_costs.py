"""What a stranger's parity file can make a reader do before a signature is checked: little."""

import contextlib
import tracemalloc

import pytest

from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec._storage.files import next_stored
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import write_parity
from keras_modelsec.integrity.parity.parity_file import MAGIC, ParityFile


def heads(starts, end):
    """A sparse parity file whose heads all claim to reach `end`."""
    return [(start, MAGIC + (end - start - 24).to_bytes(8, "little")) for start in starts]


def test_overlapping_heads_in_a_sparse_file_take_no_memory(tmp_path, public):
    path, size = tmp_path / "m.parity", 80 << 20
    with open(path, "wb") as file:
        file.truncate(size)
        for start, head in heads(range(0, 4096, 256), size):
            file.seek(start)
            file.write(head + b'{"payload":"')
    tracemalloc.start()
    with pytest.raises(SignatureError):
        ParityFile(path, Trust({public.hint: public}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.fixture
def read(monkeypatch):
    """How many bytes were read at a time."""
    lengths, real = [], ByteStream.read

    def counting(self, offset, length):
        lengths.append(length)
        return real(self, offset, length)

    monkeypatch.setattr(ByteStream, "read", counting)
    return lengths


def is_refused(path, public):
    with pytest.raises(SignatureError):
        ParityFile(path, Trust({public.hint: public}))


def test_overlapping_heads_are_read_in_proportion_to_the_file(tmp_path, public, read):
    path, size = tmp_path / "m.parity", 2 << 20
    data = bytearray(b"x" * size)
    for start, head in heads(range(0, 4096, 256), size):
        data[start : start + len(head)] = head
    path.write_bytes(data)
    is_refused(path, public)
    assert sum(read) < 12 * size


def test_what_a_sparse_file_does_not_store_is_not_read(tmp_path, public, read):
    """A stranger makes forty gigabytes in no time, and with heads wherever they are looked for."""
    path, size, place = tmp_path / "m.parity", 40 << 30, 512 << 20
    with open(path, "wb") as file:
        file.truncate(size)
        if next_stored(file, 0) is not None:
            pytest.skip("this file system does not tell what it stores")
        for start, head in heads((0, place, size - place), size):
            file.seek(start)
            file.write(head + b'{"payload":"')
    is_refused(path, public)
    assert sum(read) < 16 << 20  # and not the first and the last 640 MiB


def test_a_record_behind_what_is_not_stored_is_found(tmp_path, key, public):
    pytest.importorskip("pyeclib", reason="parity needs the `repair` extra")
    (tmp_path / "m.bin").write_bytes(bytes(range(256)) * 64)
    parity = write_parity(tmp_path / "m.bin", key).parity.read_bytes()
    path = tmp_path / "moved.parity"
    with open(path, "wb") as file:
        file.truncate(3 << 30)
        for place in (100_000_001, (3 << 30) - 5 - len(parity)):
            file.seek(place)
            file.write(parity)
    with contextlib.closing(ParityFile(path, Trust({public.hint: public}))) as found:
        assert found.statement.model == "m.bin"


def test_one_forged_envelope_at_a_time_is_in_memory(tmp_path, public):
    length = 8 << 20
    entry = f'{{"keyid":"{public.hint}","sig":"AAAA"}}'
    tail = f'","payloadType":"application/vnd.in-toto+json","signatures":[{entry}]}}'.encode()
    body = b'{"payload":"' + b"QUJD" * (length // 4) + tail
    peaks = []
    for count in (1, 4):
        path = tmp_path / f"{count}.parity"
        path.write_bytes((MAGIC + len(body).to_bytes(8, "little") + body) * count)
        tracemalloc.start()
        is_refused(path, public)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
