"""Encrypts and decrypts a stream of bytes in chunks, each of which authenticates by itself.

Owns the ciphers: AES-256-GCM in the STREAM construction, and the keys derived for it. Plaintext
comes in and goes out in memory; where it goes from there is for others.

Reference: Hoang, Reyhanitabar, Rogaway and Vizar, Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance, CRYPTO 2015 (STREAM); Albertini et al., How to Abuse and Fix
Authenticated Encryption Without Key Commitment, USENIX Security 2022.
"""

import hashlib
import hmac
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keras_modelsec._storage.files import fill, read_up_to
from keras_modelsec._storage.seekable_readers import SeekableReader
from keras_modelsec._storage.write_behind import WriteBehind, write_all
from keras_modelsec.errors import DecryptionError
from keras_modelsec.integrity.encryption import encryption_format
from keras_modelsec.integrity.encryption.encryption_format import (
    COMMITMENT_BYTES,
    MOST_CHUNKS,
    MOST_HEADER_BYTES,
    TAG_BYTES,
    Header,
    parse_header,
)
from keras_modelsec.integrity.encryption.key_slots import Lock, Opener, open_slots

_INFO = b"keras_modelsec encrypted file v1"
_PREFIX_BYTES = 7
_CACHED_CHUNKS = 8


class _Keys(NamedTuple):
    """What is derived from a file's data key and its header."""

    cipher: AESGCM
    prefix: bytes
    commitment: bytes

    @classmethod
    def derive(cls, data_key: bytes, bound: bytes) -> "_Keys":
        info = _INFO + hashlib.sha256(bound).digest()
        length = 32 + _PREFIX_BYTES + COMMITMENT_BYTES
        derived = HKDF(hashes.SHA256(), length, None, info).derive(data_key)
        return cls(
            AESGCM(derived[:32]), derived[32 : 32 + _PREFIX_BYTES], derived[32 + _PREFIX_BYTES :]
        )

    def nonce(self, index: int, last: bool) -> bytes:
        return self.prefix + index.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


class EncryptingWriter(io.RawIOBase):
    """A stream that encrypts what is written to it.

    What was written is a whole file only after `finish`; without it, readers find it cut off. A
    context manager, which ends the thread that writes large files.

    Args:
        file: Where the encrypted bytes go; unbuffered is best.
        locks: For whom, at least one.
        chunk_bytes: Bytes of plaintext a chunk: a power of 2 from 256 to 16 MiB. Default 1 MiB.

    Raises:
        KeyFormatError: If a lock cannot be used here.
        OSError: If `file` cannot be written to.
    """

    def __init__(
        self,
        file: BinaryIO,
        locks: Sequence[Lock],
        *,
        chunk_bytes: int = encryption_format.CHUNK_BYTES,
    ):
        super().__init__()
        data_key = os.urandom(encryption_format.DATA_KEY_BYTES)
        slots = tuple(lock.seal(data_key) for lock in locks)
        bound = Header(chunk_bytes, slots, b"").bound
        self._keys = _Keys.derive(data_key, bound)
        self._chunk_bytes = chunk_bytes
        self._waiting = memoryview(bytearray(chunk_bytes))
        self._filled = 0
        self._index = 0
        write_all(file, memoryview(bound + self._keys.commitment))
        self._out = WriteBehind(file, chunk_bytes + TAG_BYTES)

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Encrypts `data`; the last chunk of it waits for what follows."""
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view):
            if self._filled == self._chunk_bytes:
                self._seal(self._waiting, last=False)
                self._filled = 0
            if not self._filled and len(view) > self._chunk_bytes:
                self._seal(view[: self._chunk_bytes], last=False)
                view = view[self._chunk_bytes :]
                continue
            count = min(self._chunk_bytes - self._filled, len(view))
            self._waiting[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
        return size

    def finish(self) -> None:
        """Writes the last chunk, which says that it is the last."""
        self._seal(self._waiting[: self._filled], last=True)
        self._filled = 0
        self._out.drain()

    def close(self) -> None:
        """Ends the thread that writes."""
        if not self.closed and hasattr(self, "_out"):
            self._out.close()
        super().close()

    def _seal(self, plain: memoryview, last: bool) -> None:
        if self._index >= MOST_CHUNKS:
            raise ValueError(f"A file must have at most {MOST_CHUNKS} chunks. Received: more.")
        buffer, count = self._out.buffer(), len(plain) + TAG_BYTES
        nonce = self._keys.nonce(self._index, last)
        if hasattr(AESGCM, "encrypt_into"):
            self._keys.cipher.encrypt_into(nonce, plain, None, buffer[:count])
        else:
            buffer[:count] = self._keys.cipher.encrypt(nonce, plain, None)
        self._index += 1
        self._out.put(buffer, count)


class EncryptedFile:
    """An encrypted file that is open for reading and whose header has been authenticated.

    Args:
        file: The file, unbuffered, at its beginning. Its size must not change.
        openers: What to open it with.
        name: For messages.

    Raises:
        DecryptionError: If it is no encrypted file, was altered, or no opener opens it.
    """

    def __init__(self, file: BinaryIO, openers: Sequence[Opener], name: str):
        self._file = file
        self._name = name
        try:
            head = read_up_to(file, MOST_HEADER_BYTES)
            header = parse_header(head)
            self._keys = _Keys.derive(open_slots(header.slots, openers), header.bound)
            if not hmac.compare_digest(self._keys.commitment, header.commitment):
                encryption_format.refuse("have the header it was made with", "another")
        except DecryptionError as error:
            error.args = (f"{name!r}: {error}",)
            raise
        self._chunk_bytes = header.chunk_bytes
        self._start = len(header.bound) + COMMITMENT_BYTES
        self.header = bytes(head[: self._start])
        self._measure(os.fstat(file.fileno()).st_size - self._start)
        self._sealed = memoryview(bytearray(min(self._whole, max(self._body, TAG_BYTES))))
        self._plain = memoryview(bytearray(len(self._sealed) - TAG_BYTES))

    def _measure(self, body: int) -> None:
        self._whole = self._chunk_bytes + TAG_BYTES
        self._body = body
        self.chunk_count = -(-body // self._whole)
        rest = body - (self.chunk_count - 1) * self._whole
        if not 1 <= self.chunk_count <= MOST_CHUNKS or rest < TAG_BYTES + (self.chunk_count > 1):
            self._fail("is cut off or has bytes added")
        self.size = body - self.chunk_count * TAG_BYTES

    def chunks(
        self,
        on_sealed: Callable[[memoryview], Any] | None = None,
        buffer: Callable[[], memoryview] | None = None,
    ) -> Iterator[memoryview]:
        """Yields the plaintext, chunk by chunk, each authenticated; a view that is reused.

        The file as a whole is authentic only when the iterator has come to its end.

        Args:
            on_sealed: Called with each chunk's encrypted bytes before it is decrypted.
            buffer: Gives a buffer of `chunk_bytes` for the next chunk; default: always the same.
        """
        for index in range(self.chunk_count):
            sealed = self._read_sealed(index)
            if on_sealed is not None:
                on_sealed(sealed)
            yield self._open(index, sealed, buffer() if buffer else self._plain)
        self._file.seek(self._start + self._body)
        if self._file.read(1):
            self._fail("has bytes added")

    def chunk(self, index: int, on_sealed: Callable[[memoryview], Any]) -> memoryview:
        """The plaintext of one chunk, authenticated; a view that is reused.

        Args:
            index: From 0.
            on_sealed: Called with the encrypted bytes before they are decrypted.
        """
        sealed = self._read_sealed(index)
        on_sealed(sealed)
        return self._open(index, sealed, self._plain)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of plaintext in every chunk but the last."""
        return self._chunk_bytes

    def _read_sealed(self, index: int) -> memoryview:
        start = index * self._whole
        view = self._sealed[: min(self._whole, self._body - start)]
        self._file.seek(self._start + start)
        if fill(view, self._file) != len(view):
            self._fail("became shorter while it was read")
        return view

    def _open(self, index: int, sealed: memoryview, buffer: memoryview) -> memoryview:
        out = buffer[: len(sealed) - TAG_BYTES]
        nonce = self._keys.nonce(index, index == self.chunk_count - 1)
        try:
            if hasattr(AESGCM, "decrypt_into"):
                self._keys.cipher.decrypt_into(nonce, sealed, None, out)
            else:
                out[:] = self._keys.cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            self._fail(f"was altered, cut or extended: chunk {index} of {self.chunk_count} is bad")
        return out

    def _fail(self, what: str) -> NoReturn:
        raise DecryptionError(
            f"{self._name!r} {what}. Do not use the file: get it again from where it came."
        )


class DecryptedReader(SeekableReader):
    """The plaintext of an encrypted file as a seekable file, decrypted as it is read.

    Made only when every chunk has authenticated, in order and to the end. It needs memory for some
    chunks, not for the file. What is read later is read from the file a second time: it must be
    bit for bit what authenticated the first time, which a key of this process alone decides
    (GMAC), so that not even somebody who has the file's key can exchange a chunk in between.

    Args:
        file: The encrypted file.
        on_bytes: Called with the file's bytes as they are on the disk, in order, while they are
            authenticated.
        progress: `progress(bytes_done, bytes_total)`, while they are authenticated.

    Raises:
        DecryptionError: If a chunk does not authenticate.
    """

    def __init__(
        self,
        file: EncryptedFile,
        *,
        on_bytes: Callable[[Any], Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        super().__init__(file.size)
        self.failure: DecryptionError | None = None
        self._file = file
        self._own = AESGCM(os.urandom(32))
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._marks: list[bytes] = []
        if on_bytes is not None:
            on_bytes(file.header)

        def note(sealed: memoryview) -> None:
            if on_bytes is not None:
                on_bytes(sealed)
            self._marks.append(self._mark(len(self._marks), sealed))

        done = 0
        for plain in file.chunks(note):
            done += len(plain)
            if progress is not None:
                progress(done, file.size)

    def _mark(self, index: int, sealed: memoryview) -> bytes:
        return self._own.encrypt(index.to_bytes(12, "big"), b"", sealed)

    def read_at(self, place: int, view: memoryview) -> int:
        """Fills `view` with the plaintext from `place` on."""
        done = 0
        while done < len(view):
            index, offset = divmod(place + done, self._file.chunk_bytes)
            piece = memoryview(self._chunk(index))[offset : offset + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def _chunk(self, index: int) -> bytes:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]

        def check(sealed: memoryview) -> None:
            if not hmac.compare_digest(self._mark(index, sealed), self._marks[index]):
                raise DecryptionError(
                    "An encrypted file must not change while it is read. Received: one that did, "
                    f"in chunk {index}. Do not use what was loaded."
                )

        try:
            plain = bytes(self._file.chunk(index, check))
        except DecryptionError as error:
            # Keras and HDF5 may turn it into an error of their own. A new one, without the trace
            # of this: that would keep h5py's frames, and what they hold, to the interpreter's end.
            self.failure = type(error)(*error.args)
            raise
        self._cache[index] = plain
        if len(self._cache) > _CACHED_CHUNKS:
            self._cache.popitem(last=False)
        return plain
