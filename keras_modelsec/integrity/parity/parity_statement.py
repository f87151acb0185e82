"""What a parity file says, under a signature: files, geometry, and the digest of all else in it.

Owns the fields of the signed statement and the table of digests behind it, and how strictly they
are read; docs/parity-format.md lists them. Where they lie in the file is in parity_file.py.
"""

import base64
import datetime
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_modelsec._signing import strict_json as strict
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES
from keras_modelsec.integrity.parity.erasure_code import Geometry
from keras_modelsec.integrity.parity.resynchronising import SignedBlocks
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest, check_file_name
from keras_modelsec.integrity.statements.openssf_statement import STATEMENT_TYPE, root_digest

PREDICATE_TYPE = "https://keras_modelsec/parity/v1"
CODE = "rs-cauchy-gf256-11d"
PAGE_BYTES = 4096
_MOST_RECORD_BYTES = MAX_ENVELOPE_BYTES + PAGE_BYTES
_ENTRY = np.dtype([("digest", "V32"), ("head", "<u8"), ("checksum", "<u4")])
ENTRY_BYTES = _ENTRY.itemsize


class SignedFile(NamedTuple):
    """Length in bytes and hex SHA-256 of a file."""

    size: int
    sha256: str


def block_entry(block: "bytes | memoryview") -> bytes:
    """What the table holds of a block: SHA-256, its first eight bytes, Adler-32."""
    view = memoryview(block)
    return b"".join(
        (hashlib.sha256(view).digest(), view[:8], zlib.adler32(view).to_bytes(4, "little"))
    )


def pages_of(data: bytes) -> list[bytes]:
    """`data` in pages of 4096 bytes, the last one filled up with zeros."""
    return [
        data[start : start + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
        for start in range(0, len(data), PAGE_BYTES)
    ]


def signed_blocks(entries: bytes, size: int) -> SignedBlocks:
    """A table of entries as something to look for."""
    table = np.frombuffer(entries, _ENTRY)
    return SignedBlocks(
        size,
        [entry.tobytes() for entry in table["digest"]],
        table["head"].copy(),
        table["checksum"].copy(),
    )


@dataclass(frozen=True)
class Annex:
    """The part of a parity file that is neither statement nor parity.

    Attributes:
        blocks: Entries of the data blocks (`block_entry`), joined.
        parity: Entries of the parity blocks, joined.
        signature: The bytes of `NAME.sig` when parity was made; empty if there was none.
        statement: The same of `NAME.modelsec.json`.
    """

    blocks: bytes
    parity: bytes
    signature: bytes = b""
    statement: bytes = b""

    def to_bytes(self) -> bytes:
        """All parts, joined."""
        return self.blocks + self.parity + self.signature + self.statement


@dataclass(frozen=True)
class ParityStatement:
    """What the signer states about a model and its parity.

    Attributes:
        model: The model's name, as in its statement, or else its file's name.
        version: The version in the model's statement, or None if there was none.
        created: When it was signed, by the signer's clock, in UTC.
        files: By name: POSIX paths relative to the folder, or "." for a single file.
        geometry: How the files' bytes are cut into blocks, and these into stripes.
        record_bytes: Length of the places that hold this statement.
        lengths: Bytes of `Annex.signature` and of `Annex.statement`.
        pages: Entries (`block_entry`) of the annex's pages, joined.
    """

    model: str
    version: int | None
    created: datetime.datetime
    files: Mapping[str, SignedFile]
    geometry: Geometry
    record_bytes: int
    lengths: tuple[int, int]
    pages: bytes

    @property
    def manifest(self) -> Manifest:
        """Names and whole-file digests, as the OpenSSF signature has them."""
        return Manifest(self.model, {name: file.sha256 for name, file in self.files.items()})

    @property
    def root(self) -> str:
        """The subject's digest."""
        return root_digest(self.files[name].sha256 for name in sorted(self.files))

    @property
    def annex_bytes(self) -> int:
        """The length of the annex."""
        count = self.geometry.blocks + self.geometry.parity_total
        return count * ENTRY_BYTES + sum(self.lengths)

    def split_annex(self, data: bytes) -> Annex:
        """The annex out of its bytes, which must have been checked against `pages`."""
        ends = [self.geometry.blocks * ENTRY_BYTES, self.geometry.parity_total * ENTRY_BYTES]
        parts, start = [], 0
        for length in (*ends, *self.lengths):
            parts.append(data[start : start + length])
            start += length
        return Annex(*parts)

    def to_bytes(self) -> bytes:
        """The payload to be signed."""
        geometry = self.geometry
        predicate = {
            "model": self.model,
            "version": self.version,
            "created": strict.write_time(self.created),
            "files": [
                {"name": name, "size": file.size, "sha256": file.sha256}
                for name, file in sorted(self.files.items())
            ],
            "code": CODE,
            "block_size": geometry.block_size,
            "stripes": geometry.stripes,
            "data": geometry.data,
            "parity": geometry.parity,
            "record_bytes": self.record_bytes,
            "signature_bytes": self.lengths[0],
            "statement_bytes": self.lengths[1],
            "pages": base64.b64encode(self.pages).decode("ascii"),
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.model, "digest": {"sha256": self.root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
        return json.dumps(statement, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, payload: bytes) -> "ParityStatement":
        """Reads a payload whose signature has been verified.

        Raises:
            SignatureError: If a field is missing, unknown, of another type, or contradicts another.
        """
        what = "The parity statement"
        statement = strict.check_object(
            strict.parse(payload, what), what, ("_type", "subject", "predicateType", "predicate")
        )
        strict.check_equal(statement["_type"], "`_type`", STATEMENT_TYPE)
        strict.check_equal(statement["predicateType"], "`predicateType`", PREDICATE_TYPE)
        result = _read_predicate(statement["predicate"])
        subject = [{"name": result.model, "digest": {"sha256": result.root}}]
        strict.check_equal(statement["subject"], "`subject`", subject)
        return result


_NUMBERS = (
    "block_size",
    "stripes",
    "data",
    "parity",
    "record_bytes",
    "signature_bytes",
    "statement_bytes",
)


def _read_predicate(value: Any) -> ParityStatement:
    fields = ("model", "version", "created", "files", "code", *_NUMBERS, "pages")
    value = strict.check_object(value, "`predicate`", fields)
    strict.check_equal(value["code"], "`code`", CODE)
    numbers = {name: strict.check_integer(value[name], f"`{name}`") for name in _NUMBERS}
    signed = _read_files(value["files"])
    total = sum(file.size for file in signed.values())
    names = ("block_size", "stripes", "data", "parity")
    geometry = Geometry(total, *(numbers[name] for name in names))
    if not geometry.is_consistent:
        strict.refuse("The geometry", "cover the files", {name: numbers[name] for name in names})
    version = value["version"]
    result = ParityStatement(
        strict.check_string(value["model"], "`model`"),
        None if version is None else strict.check_integer(version, "`version`", 1),
        strict.check_time(value["created"], "`created`"),
        signed,
        geometry,
        numbers["record_bytes"],
        (numbers["signature_bytes"], numbers["statement_bytes"]),
        strict.decode_base64(value["pages"], "`pages`"),
    )
    pages = -(-result.annex_bytes // PAGE_BYTES)
    strict.check_equal(len(result.pages), "The length of `pages`", pages * ENTRY_BYTES)
    if result.record_bytes % PAGE_BYTES or result.record_bytes > _MOST_RECORD_BYTES:
        rule = f"be a multiple of {PAGE_BYTES} and at most {_MOST_RECORD_BYTES}"
        strict.refuse("`record_bytes`", rule, result.record_bytes)
    return result


def _read_files(value: Any) -> dict[str, SignedFile]:
    if not isinstance(value, list) or not value:
        strict.refuse("`files`", "be a list of at least one file", value)
    result: dict[str, SignedFile] = {}
    for item in value:
        entry = strict.check_object(item, "A file", ("name", "size", "sha256"))
        name = strict.check_string(entry["name"], "A file's name")
        if name != SINGLE_FILE:
            check_file_name(name)
        result[name] = SignedFile(
            strict.check_integer(entry["size"], "A file's `size`"),
            strict.check_sha256(entry["sha256"], "A file's `sha256`"),
        )
    if list(result) != sorted(result) or len(result) != len(value):
        strict.refuse("`files`", "be sorted by name, each once", list(result))
    if SINGLE_FILE in result and len(result) > 1:
        strict.refuse("`files`", "hold '.' alone or not at all", list(result))
    return result


def entry_digests(entries: bytes) -> Sequence[bytes]:
    """The SHA-256 digests in a table of entries."""
    return [entries[i : i + 32] for i in range(0, len(entries), ENTRY_BYTES)]
