"""The bytes of a parity file: where its parts lie, and how they are found again when it is damaged.

Owns the layout (docs/parity-format.md): the signed statement three times, the annex (the table of
digests) twice, the parity blocks once. What a part says is in parity_statement.py.

    record | annex | record | parity blocks | annex | record
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.parity.parity_statement import (
    PAGE_BYTES,
    Annex,
    ParityStatement,
    entry_digests,
    signed_blocks,
)
from keras_modelsec.integrity.parity.resynchronising import locate, most_explained

PARITY_SUFFIX = ".parity"
MAGIC = b"\x89modelsec-parity"  # 16 bytes
_HEAD_BYTES = len(MAGIC) + 8
_MOST_RECORDS = 16
_MOST_READS = 8  # how often all records together may fill the file; three good ones never do
_SEARCH_BYTES = 1 << 20
# Nobody vouches for a file's length: it is searched for records so far from either end, which is
# more than the longest two records and the annex between them take.
_SEARCHED_BYTES = 640 << 20
_MANY = 0.2
_MOST_DIFFERENCES = 10  # bytes in which two damaged copies of a page may differ


def parity_path_of(path: Path) -> Path:
    """Where the parity of `path` lies unless the user says otherwise: beside it."""
    return path.with_name(path.name + PARITY_SUFFIX)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a parity file begin, in bytes."""

    records: tuple[int, int, int]
    annexes: tuple[int, int]
    parity: int
    size: int

    @classmethod
    def of(cls, statement: ParityStatement) -> "Layout":
        """The layout that a statement describes."""
        record, geometry = statement.record_bytes, statement.geometry
        annex = -(-statement.annex_bytes // PAGE_BYTES) * PAGE_BYTES
        parity = record + annex + record
        behind = parity + geometry.parity_total * geometry.block_size
        last = behind + annex
        return cls((0, record + annex, last), (record, behind), parity, last + record)


def record(envelope: bytes, length: int) -> bytes:
    """The place of a statement: magic, the envelope's length, the envelope, zeros.

    Raises:
        ValueError: If the envelope is too long for the place.
    """
    data = MAGIC + len(envelope).to_bytes(8, "little") + envelope
    if len(data) > length:
        raise ValueError(f"A record must have at most {length} bytes. Received: {len(data)}.")
    return data.ljust(length, b"\0")


def record_length(envelope_bytes: int) -> int:
    """How long the place of an envelope must be."""
    return -(-(_HEAD_BYTES + envelope_bytes) // PAGE_BYTES) * PAGE_BYTES


def header_digest(envelope: bytes) -> str:
    """What a model's statement names a parity file by: hex SHA-256 of its signed envelope."""
    return hashlib.sha256(envelope).hexdigest()


class ParityFile:
    """A parity file whose statement is verified; the rest is checked when it is read.

    Args:
        path: An absolute path.
        trust: Who may have signed it.

    Raises:
        SignatureError: If no copy of the statement is whole and signed by trusted keys.
        OSError: If the file cannot be read.
    """

    def __init__(self, path: Path, trust: Trust):
        self.path = path
        self.envelope, self.statement = _read_statement(path, trust)
        self.layout = Layout.of(self.statement)
        with files.open_regular(path) as file:
            self._size = file.seek(0, 2)
        # What lies beyond is not looked at, however long the file is.
        self.stream = ByteStream([(path, min(self._size, most_explained(self.layout.size)))])

    def read_annex(self) -> Annex:
        """The annex, page by page from whichever copy of a page is whole, wherever it lies.

        Raises:
            SignatureError: If a page is lost in both copies.
        """
        pages = self.statement.pages
        digests = entry_digests(pages)
        found: dict[bytes, bytes] = {}
        for start, (index, digest) in itertools.product(self.layout.annexes, enumerate(digests)):
            if digest not in found:
                page = bytes(self.stream.read(start + index * PAGE_BYTES, PAGE_BYTES))
                if hashlib.sha256(page).digest() == digest:
                    found[digest] = page
        if len(found) < len(set(digests)):
            places = locate(self.stream, signed_blocks(pages, PAGE_BYTES))
            for digest, place in places.items():
                found[digest] = bytes(self.stream.read(place, PAGE_BYTES))
        for index, digest in enumerate(digests):
            mixed = None if digest in found else self._mix_copies(index, digest)
            if mixed is not None:
                found[digest] = mixed
        lost = [index for index, digest in enumerate(digests) if digest not in found]
        if lost:
            raise SignatureError(
                "A parity file must have each page of its table of digests in at least one of two "
                f"copies. Received: {str(self.path)!r}, where {len(lost)} of {len(digests)} pages "
                "are lost. Nothing can be repaired with it."
            )
        data = b"".join(found[digest] for digest in digests)
        return self.statement.split_annex(data[: self.statement.annex_bytes])

    def _mix_copies(self, index: int, digest: bytes) -> bytes | None:
        """A page out of two damaged copies, where they differ in few bytes."""
        a, b = (self.stream.read(s + index * PAGE_BYTES, PAGE_BYTES) for s in self.layout.annexes)
        places = [i for i in range(PAGE_BYTES) if a[i] != b[i]]
        if len(places) <= _MOST_DIFFERENCES:
            for values in itertools.product(*((a[i], b[i]) for i in places)):
                for place, value in zip(places, values, strict=True):
                    a[place] = value
                if hashlib.sha256(a).digest() == digest:
                    return bytes(a)
        return None

    def find_parity(self, annex: Annex) -> dict[int, int]:
        """The position of each parity block that is whole, by its number.

        They are looked for at their places and, if many are not there or the file's length is
        another, everywhere.
        """
        size = self.statement.geometry.block_size
        digests = entry_digests(annex.parity)
        places: dict[int, int] = {}
        for index, digest in enumerate(digests):
            place = self.layout.parity + index * size
            if hashlib.sha256(self.stream.read(place, size)).digest() == digest:
                places[index] = place
        lost = len(digests) - len(places)
        if lost and (self._size != self.layout.size or lost > _MANY * len(digests)):
            found = locate(self.stream, signed_blocks(annex.parity, size))
            for index, digest in enumerate(digests):
                if digest in found:
                    places.setdefault(index, found[digest])
        return places

    def damaged_parts(self, places: Mapping[int, int]) -> int:
        """How many parts are not as they were written.

        Args:
            places: From `find_parity`.
        """
        own = record(self.envelope, self.statement.record_bytes)
        geometry, layout = self.statement.geometry, self.layout
        records = sum(self.stream.read(start, len(own)) != own for start in layout.records)
        pages = sum(
            hashlib.sha256(self.stream.read(start + i * PAGE_BYTES, PAGE_BYTES)).digest() != digest
            for start in layout.annexes
            for i, digest in enumerate(entry_digests(self.statement.pages))
        )
        blocks = sum(
            places.get(i) != layout.parity + i * geometry.block_size
            for i in range(geometry.parity_total)
        )
        return records + pages + blocks + (self._size > layout.size)

    def read_parity(self, places: Mapping[int, int], index: int) -> bytearray:
        """A parity block that was found to be good."""
        return self.stream.read(places[index], self.statement.geometry.block_size)

    def close(self) -> None:
        """Closes the file."""
        self.stream.close()


def _read_statement(path: Path, trust: Trust) -> tuple[bytes, ParityStatement]:
    first_error: SignatureError | None = None
    for envelope in _candidates(path):
        try:
            return envelope, _verified(envelope, trust)
        except SignatureError as error:
            first_error = first_error or error.with_traceback(None)
            error.__context__ = None
        del envelope  # as the two above, it would be in memory beside the next, which is as long
    if first_error is None:
        raise SignatureError(
            "A parity file must hold a signed statement. Received: "
            f"{str(path)!r}, where none is found. Make it with `write_parity`, while the model is "
            "good."
        )
    first_error.args = (f"{str(path)!r}: {first_error}",)
    raise first_error


def _verified(envelope: bytes, trust: Trust) -> ParityStatement:
    signed = DsseEnvelope.from_bytes(envelope, what="The parity file's statement")
    return ParityStatement.from_bytes(signed.verified_payload(trust))


def _candidates(path: Path) -> Iterator[bytes]:
    """The statement's copies as they are, then what most of them agree on byte by byte."""
    with files.open_regular(path) as file, ByteStream([(path, file.seek(0, 2))]) as stream:
        reader = _CandidateReader(stream)
        copies = list(_find_copies(stream, file))
        threes = (
            three for three in itertools.combinations(copies, 3) if len({n for _, n in three}) == 1
        )
        for places in (*((copy,) for copy in copies), *itertools.islice(threes, _MOST_RECORDS)):
            candidate = reader.read([start for start, _ in places], places[0][1])
            if candidate is not None:
                yield candidate
            del candidate


def _find_copies(stream: ByteStream, file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where there may be copies of the statement: start and length."""
    for start in itertools.islice(_find_magic(stream, file), _MOST_RECORDS):
        head = stream.read(start + len(MAGIC), _HEAD_BYTES - len(MAGIC))
        length = int.from_bytes(head, "little")
        if length <= min(MAX_ENVELOPE_BYTES, stream.size - start - _HEAD_BYTES):
            yield start + _HEAD_BYTES, length


class _CandidateReader:
    """Reads what may be a statement in pieces, and no further than it may be one.

    Nobody vouches for a head: it may claim what it likes, overlap others, and lie in a sparse file
    that takes no room. JSON has no zero byte, so the first one ends the reading, and each head has
    one in its length; and what is read in all is in proportion to the file.
    """

    def __init__(self, stream: ByteStream):
        self._stream = stream
        self._left = _MOST_READS * min(stream.size, MAX_ENVELOPE_BYTES)

    def read(self, starts: Sequence[int], length: int) -> bytes | None:
        """The bytes at one place, or what most of three places have; None if it is no JSON."""
        parts = []
        for offset in range(0, length, _SEARCH_BYTES):
            count = min(_SEARCH_BYTES, length - offset)
            self._left -= count * len(starts)
            if self._left < 0:
                return None
            pieces = [bytes(self._stream.read(start + offset, count)) for start in starts]
            piece = pieces[0] if len(pieces) == 1 else _majority(*pieces)
            if b"\0" in piece:
                return None
            parts.append(piece)
        return b"".join(parts)


def _majority(one: bytes, two: bytes, three: bytes) -> bytes:
    a, b, c = (np.frombuffer(piece, np.uint8) for piece in (one, two, three))
    return ((a & b) | (a & c) | (b & c)).tobytes()


def _find_magic(stream: ByteStream, file: BinaryIO) -> Iterator[int]:
    first = min(stream.size, _SEARCHED_BYTES)
    last = max(first, stream.size - _SEARCHED_BYTES)
    for start, stop in ((0, first), (last, stream.size)):
        # What a sparse file does not store has no magic, and is not read.
        while (stored := files.next_stored(file, start)) is not None and stored < stop:
            data = stream.read(stored, _SEARCH_BYTES + len(MAGIC) - 1)
            place = data.find(MAGIC)
            while place >= 0:
                yield stored + place
                place = data.find(MAGIC, place + 1)
            start = stored + _SEARCH_BYTES
