"""What `NAME.modelsec.json` says of a model: leaves, tensors, version, parity and provenance.

Owns the fields of the statement and how strictly they are read; docs/statement-format.md lists
them. The envelope around it is in dsse.py, what fills it in is in describing.py.
"""

import base64
import dataclasses
import datetime
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_modelsec._signing import strict_json as strict
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents import hashing
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest, check_file_name
from keras_modelsec.integrity.statements.openssf_statement import STATEMENT_TYPE, root_digest

PREDICATE_TYPE = "https://keras_modelsec/statement/v1"
STATEMENT_SUFFIX = ".modelsec.json"
STRANGERS_STATEMENT_BYTES = 16 << 20  # where nothing says how long it can be
_MOST_ENTRY_BYTES = 8 << 10  # of a file's name, escaped and in base64
_MOST_UNVERIFIED_VALUES = 2 << 20  # what a statement on some 190,000 tensors has


@dataclass(frozen=True)
class FileRecord:
    """One signed file.

    Attributes:
        size: Its length in bytes.
        sha256: Hex SHA-256 of the whole.
        leaves: The raw SHA-256 digests of its leaves, joined; where they lie follows from `size`
            and the tensors (`ModelStatement.cuts`).
    """

    size: int
    sha256: str
    leaves: bytes

    def leaf_list(self) -> list[bytes]:
        """The leaf digests, one by one."""
        step = hashing.DIGEST_BYTES
        return [self.leaves[i : i + step] for i in range(0, len(self.leaves), step)]


@dataclass(frozen=True)
class ParityRecord:
    """A parity file that belongs to the model: its name, length, and the SHA-256 of its header."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelStatement:
    """What the holders of the signing keys state about one model.

    Attributes:
        model: The name its owner gave it: what a lowest version is kept for. Not a file name.
        version: Integer >= 1; grows with each release of the model of that name.
        created: When it was signed, by the signer's clock, in UTC.
        files: By name: POSIX paths relative to the folder, or "." for a single file.
        tensors: The tensors found in the files, in the files' order.
        parity: Parity files beside the model.
        provenance: How the model came to be, as far as it was told; a JSON object.
    """

    model: str
    version: int
    created: datetime.datetime
    files: Mapping[str, FileRecord]
    tensors: tuple[TensorRecord, ...] = ()
    parity: tuple[ParityRecord, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def cuts(self, name: str) -> list[hashing.Cut]:
        """Offset and length of each leaf of a file."""
        ranges = [
            (tensor.offset, tensor.nbytes)
            for tensor in self.tensors_of(name)
            if tensor.offset is not None
        ]
        return hashing.leaf_cuts(self.files[name].size, ranges)

    def tensors_of(self, name: str) -> Sequence[TensorRecord]:
        """The tensors of one file, in their order."""
        return self._by_file.get(name, ())

    @functools.cached_property
    def _by_file(self) -> Mapping[str, Sequence[TensorRecord]]:
        """Sorted once: to look through all tensors for each file takes files times tensors."""
        result: dict[str, list[TensorRecord]] = {}
        for tensor in self.tensors:
            result.setdefault(tensor.file, []).append(tensor)
        return result

    @property
    def manifest(self) -> Manifest:
        """Names and whole-file digests, as the OpenSSF signature has them."""
        return Manifest(self.model, {name: file.sha256 for name, file in self.files.items()})

    def to_bytes(self) -> bytes:
        """The payload to be signed."""
        names = sorted(self.files)
        root = root_digest(self.files[name].sha256 for name in names)
        predicate = {
            "model": self.model,
            "version": self.version,
            "created": strict.write_time(self.created),
            "files": [_file_entry(name, self.files[name]) for name in names],
            "tensors": [_tensor_entry(tensor) for tensor in self.tensors],
            "parity": [dataclasses.asdict(record) for record in self.parity],
            "provenance": dict(self.provenance),
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.model, "digest": {"sha256": root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
        return json.dumps(statement, separators=(",", ":"), allow_nan=False).encode("ascii")

    @classmethod
    def from_bytes(cls, payload: bytes) -> "ModelStatement":
        """Reads a payload whose signatures have been verified.

        Raises:
            SignatureError: If a field is missing, unknown, of another type, or contradicts another.
        """
        what = "The signed statement"
        statement = strict.check_object(
            strict.parse(payload, what), what, ("_type", "subject", "predicateType", "predicate")
        )
        strict.check_equal(statement["_type"], "`_type`", STATEMENT_TYPE)
        strict.check_equal(statement["predicateType"], "`predicateType`", PREDICATE_TYPE)
        fields = ("model", "version", "created", "files", "tensors", "parity", "provenance")
        value = strict.check_object(statement["predicate"], "`predicate`", fields)
        result = cls(
            strict.check_string(value["model"], "`model`"),
            strict.check_integer(value["version"], "`version`", 1),
            strict.check_time(value["created"], "`created`"),
            _read_files(value["files"]),
            tuple(_read_tensor(item) for item in strict.check_list(value["tensors"], "`tensors`")),
            tuple(_read_parity(item) for item in strict.check_list(value["parity"], "`parity`")),
            strict.check_mapping(value["provenance"], "`provenance`"),
        )
        result._check_subject(statement["subject"])
        result._check_leaves()
        return result

    @classmethod
    def from_unverified(cls, payload: bytes) -> "ModelStatement":
        """Reads a payload whose signatures nobody has verified, for people to look at.

        Raises:
            SignatureError: As `from_bytes`; or if it holds more values than fit into a few hundred
                MiB, which are not parsed at all.
        """
        values = sum(payload.count(mark) for mark in (b"[", b"{", b","))
        if values > _MOST_UNVERIFIED_VALUES:
            rule = f"hold at most {_MOST_UNVERIFIED_VALUES} values while nobody vouches for it"
            strict.refuse("The statement", rule, values)
        return cls.from_bytes(payload)

    def _check_subject(self, value: Any) -> None:
        fields = ("name", "digest")
        subject = strict.check_object(strict.check_single(value, "`subject`"), "`subject`", fields)
        strict.check_equal(subject["name"], "The subject's name", self.model)
        digest = strict.check_object(subject["digest"], "The subject's digest", ("sha256",))
        root = root_digest(self.files[name].sha256 for name in sorted(self.files))
        strict.check_equal(digest["sha256"], "The subject's digest", root)

    def _check_leaves(self) -> None:
        for tensor in self.tensors:
            if tensor.file not in self.files:
                strict.refuse("A tensor's `file`", "be one of `files`", tensor.file)
        keys = [(tensor.file, tensor.path) for tensor in self.tensors]
        if len(set(keys)) != len(keys):
            strict.refuse("`tensors`", "name each tensor once", len(keys) - len(set(keys)))
        for name, record in self.files.items():
            fewest = -(-record.size // hashing.LEAF_BYTES) * hashing.DIGEST_BYTES
            if len(record.leaves) < fewest:  # before a claimed size is cut into leaves in memory
                strict.refuse("`leaves`", f"have {fewest} bytes or more", len(record.leaves))
            expected = len(self.cuts(name)) * hashing.DIGEST_BYTES
            if len(record.leaves) != expected:
                strict.refuse("`leaves`", f"have {expected} bytes", len(record.leaves))


def statement_path_of(path: Path) -> Path:
    """Where the statement on `path` lies unless the user says otherwise: beside it."""
    return path.with_name(path.name + STATEMENT_SUFFIX)


def most_statement_bytes(sizes: Collection[int]) -> int:
    """How long a statement on files of these lengths can be: what is longer is on other files.

    An entry of a file or tensor is shorter than the place itself, and a leaf of 256 KiB takes 60
    bytes; the name of an empty file takes some thousands. The rest is for provenance.
    """
    explained = STRANGERS_STATEMENT_BYTES + 4 * sum(sizes) + _MOST_ENTRY_BYTES * len(sizes)
    return min(MAX_ENVELOPE_BYTES, explained)


def read_statement(place: Path, trust: Trust, *, limit: int = MAX_ENVELOPE_BYTES) -> ModelStatement:
    """What the statement file at `place` says, once its signatures are verified.

    Args:
        place: The file.
        trust: Who may have signed it.
        limit: How many bytes it may have; if it has more, it is not read.

    Raises:
        SignatureError: If it is malformed or forged; UntrustedKeyError if too few trusted keys
            made it.
        OSError: If it cannot be read.
    """
    return read_signed_statement(place, trust, limit=limit)[0]


def read_signed_statement(
    place: Path, trust: Trust, *, limit: int = MAX_ENVELOPE_BYTES
) -> tuple[ModelStatement, tuple[str, ...]]:
    """As `read_statement`, and the hints of the trusted keys that have signed it."""
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(place, limit))
        signers = envelope.check(trust)
        return ModelStatement.from_bytes(envelope.payload), signers
    except SignatureError as error:
        error.args = (f"{str(place)!r}: {error}",)
        raise


def _file_entry(name: str, record: FileRecord) -> dict[str, Any]:
    return {
        "name": name,
        "size": record.size,
        "sha256": record.sha256,
        "leaf_size": hashing.LEAF_BYTES,
        "leaves": base64.b64encode(record.leaves).decode("ascii"),
    }


def _tensor_entry(tensor: TensorRecord) -> dict[str, Any]:
    return {
        "file": tensor.file,
        "path": tensor.path,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "offset": tensor.offset,
        "nbytes": tensor.nbytes,
        "sha256": tensor.digest,
    }


def _read_files(value: Any) -> dict[str, FileRecord]:
    result: dict[str, FileRecord] = {}
    for item in strict.check_list(value, "`files`"):
        fields = ("name", "size", "sha256", "leaf_size", "leaves")
        entry = strict.check_object(item, "A file", fields, ("fingerprint",))
        name = strict.check_string(entry["name"], "A file's name")
        if name in result:
            strict.refuse("`files`", "name each file once", name)
        if name != SINGLE_FILE:
            check_file_name(name)
        strict.check_equal(entry["leaf_size"], "`leaf_size`", hashing.LEAF_BYTES)
        if "fingerprint" in entry:  # of statements made before 0.1; says nothing to a reader
            strict.check_sha256(entry["fingerprint"], "A file's `fingerprint`")
        result[name] = FileRecord(
            strict.check_integer(entry["size"], "A file's `size`"),
            strict.check_sha256(entry["sha256"], "A file's `sha256`"),
            strict.decode_base64(entry["leaves"], "`leaves`"),
        )
    if not result or (SINGLE_FILE in result and len(result) > 1):
        strict.refuse("`files`", "hold '.' alone, or names of at least one file", sorted(result))
    return result


def _read_tensor(value: Any) -> TensorRecord:
    fields = ("file", "path", "shape", "dtype", "offset", "nbytes", "sha256")
    entry = strict.check_object(value, "A tensor", fields)
    offset = entry["offset"]
    return TensorRecord(
        path=strict.check_string(entry["path"], "A tensor's `path`"),
        shape=tuple(
            strict.check_integer(size, "A tensor's `shape`")
            for size in strict.check_list(entry["shape"], "A tensor's `shape`")
        ),
        dtype=strict.check_string(entry["dtype"], "A tensor's `dtype`"),
        offset=None if offset is None else strict.check_integer(offset, "A tensor's `offset`"),
        nbytes=strict.check_integer(entry["nbytes"], "A tensor's `nbytes`"),
        digest=strict.check_sha256(entry["sha256"], "A tensor's `sha256`"),
        file=strict.check_string(entry["file"], "A tensor's `file`"),
    )


def _read_parity(value: Any) -> ParityRecord:
    entry = strict.check_object(value, "A parity file", ("name", "size", "sha256"))
    name = check_file_name(strict.check_string(entry["name"], "A parity file's name"))
    return ParityRecord(
        name,
        strict.check_integer(entry["size"], "A parity file's `size`"),
        strict.check_sha256(entry["sha256"], "A parity file's `sha256`"),
    )
