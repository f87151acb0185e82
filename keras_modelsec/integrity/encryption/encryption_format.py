"""The header of an encrypted file, as bytes and back; docs/encryption-format.md describes it.

Owns the layout and every check that needs no key. Pure: no file, no key and no cipher here.
"""

import struct
from dataclasses import dataclass

from keras_modelsec.errors import DecryptionError

MAGIC = b"MSENC\r\n\x1a"
VERSION = 1
DATA_KEY_BYTES = 32
COMMITMENT_BYTES = 32
TAG_BYTES = 16

RAW_KEY, PASSPHRASE, RECIPIENT = 1, 2, 3  # the kinds of slots
SLOT_BYTES = {RAW_KEY: 64, PASSPHRASE: 108, RECIPIENT: 1168}
MOST_SLOTS = 64
MOST_PASSPHRASES = 4  # each costs the reader a fraction of a second, or seconds if it is hostile

CHUNK_BYTES = 1 << 20
_LEAST_CHUNK_POWER, _MOST_CHUNK_POWER = 8, 24
MOST_CHUNKS = 1 << 32

_FIXED = struct.Struct("<8sBBBB")  # magic, version, log2 of the chunk size, number of slots, 0
_SLOT = struct.Struct("<BBH")  # kind, 0, length
MOST_HEADER_BYTES = (
    _FIXED.size + MOST_SLOTS * (_SLOT.size + max(SLOT_BYTES.values())) + COMMITMENT_BYTES
)
LEAST_HEADER_BYTES = _FIXED.size + _SLOT.size + min(SLOT_BYTES.values()) + COMMITMENT_BYTES


@dataclass(frozen=True)
class Slot:
    """The file's data key, wrapped for one key, passphrase or recipient.

    Args:
        kind: `RAW_KEY`, `PASSPHRASE` or `RECIPIENT`.
        body: The wrapped key, of the length that belongs to the kind.
    """

    kind: int
    body: bytes


@dataclass(frozen=True)
class Header:
    """What stands before the first chunk.

    Args:
        chunk_bytes: Bytes of plaintext in every chunk but the last: a power of 2.
        slots: 1 to 64, of which at most 4 for passphrases.
        commitment: What only the right data key and these slots give.
    """

    chunk_bytes: int
    slots: tuple[Slot, ...]
    commitment: bytes

    @property
    def bound(self) -> bytes:
        """The header without its commitment: what keys and commitment are derived from."""
        power = self.chunk_bytes.bit_length() - 1
        parts = [_FIXED.pack(MAGIC, VERSION, power, len(self.slots), 0)]
        for slot in self.slots:
            parts += [_SLOT.pack(slot.kind, 0, len(slot.body)), slot.body]
        return b"".join(parts)

    def to_bytes(self) -> bytes:
        """The header as it stands in the file."""
        return self.bound + self.commitment


def parse_header(data: bytes) -> Header:
    """Reads the header at the beginning of `data`; nothing in it is trusted yet.

    For every header there is exactly one byte string, `Header.to_bytes`; what follows it in `data`
    is ignored.

    Args:
        data: The file's first `MOST_HEADER_BYTES` bytes, or all if it has fewer.

    Raises:
        DecryptionError: If it is no header of this version.
    """
    if data[: len(MAGIC)] != MAGIC:
        refuse("begin as an encrypted file does", f"{data[:8].hex() or 'no bytes'}")
    if len(data) < LEAST_HEADER_BYTES:
        refuse("have a whole header", f"{len(data)} bytes")
    _, version, power, count, reserved = _FIXED.unpack_from(data)
    if version != VERSION:
        refuse(f"be of version {VERSION}", f"version {version}")
    if reserved != 0 or not _LEAST_CHUNK_POWER <= power <= _MOST_CHUNK_POWER:
        refuse("have chunks of 256 bytes to 16 MiB", f"2**{power}, {reserved}")
    if not 1 <= count <= MOST_SLOTS:
        refuse(f"have 1 to {MOST_SLOTS} key slots", count)
    slots, end = [], _FIXED.size
    for _ in range(count):
        slot, end = _parse_slot(data, end)
        slots.append(slot)
    if sum(slot.kind == PASSPHRASE for slot in slots) > MOST_PASSPHRASES:
        refuse(f"have at most {MOST_PASSPHRASES} passphrases", "more")
    commitment = data[end : end + COMMITMENT_BYTES]
    if len(commitment) != COMMITMENT_BYTES:
        refuse("have a whole header", f"{len(data)} bytes")
    return Header(1 << power, tuple(slots), bytes(commitment))


def _parse_slot(data: bytes, start: int) -> tuple[Slot, int]:
    if len(data) < start + _SLOT.size:
        refuse("have a whole header", f"{len(data)} bytes")
    kind, reserved, length = _SLOT.unpack_from(data, start)
    if SLOT_BYTES.get(kind) != length or reserved != 0:
        refuse("have key slots of known kinds and lengths", f"kind {kind}, {length} bytes")
    start += _SLOT.size
    body = data[start : start + length]
    if len(body) != length:
        refuse("have a whole header", f"{len(data)} bytes")
    return Slot(kind, bytes(body)), start + length


def refuse(rule: str, value: object) -> None:
    """Raises `DecryptionError` with the rule and what was found."""
    raise DecryptionError(
        f"An encrypted file must {rule}. Received: {value}. It was damaged or altered, or was not "
        "made by keras_modelsec, or by a later version of it."
    )
