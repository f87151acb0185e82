"""What `NAME.modelsec.json` says of a model: leaves, tensors, version, parity and provenance.

Owns the fields of the statement and how strictly they are read; docs/statement-format.md lists
them. The envelope around it is in dsse.py, what fills it in is in describing.py.
"""

import base64
import dataclasses
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_modelsec.integrity import files
from keras_modelsec.integrity import strict_json as strict
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.keys.trust import Trust
from keras_modelsec.integrity.signatures import hashing
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.manifest import SINGLE_FILE, Manifest, check_file_name
from keras_modelsec.integrity.signatures.statement import STATEMENT_TYPE, root_digest
from keras_modelsec.integrity.signatures.tensor_layout import TensorRecord

PREDICATE_TYPE = "https://keras_modelsec/statement/v1"
STATEMENT_SUFFIX = ".modelsec.json"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_LARGEST = 1 << 53  # what every JSON parser reads exactly


@dataclass(frozen=True)
class FileRecord:
    """One signed file.

    Attributes:
        size: Its length in bytes.
        sha256: Hex SHA-256 of the whole.
        leaves: The raw SHA-256 digests of its leaves, joined; where they lie follows from `size`
            and the tensors (`ModelStatement.cuts`).
        fingerprint: What the file system said of it when it was hashed, as a hex SHA-256, or None.
    """

    size: int
    sha256: str
    leaves: bytes
    fingerprint: str | None = None

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
            for tensor in self.tensors
            if tensor.file == name and tensor.offset is not None
        ]
        return hashing.leaf_cuts(self.files[name].size, ranges)

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
            "created": self.created.strftime(_TIME),
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
            _check_integer(value["version"], "`version`", 1),
            _read_time(value["created"]),
            _read_files(value["files"]),
            tuple(_read_tensor(item) for item in _check_list(value["tensors"], "`tensors`")),
            tuple(_read_parity(item) for item in _check_list(value["parity"], "`parity`")),
            _check_provenance(value["provenance"]),
        )
        result._check_subject(statement["subject"])
        result._check_leaves()
        return result

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


def read_statement(place: Path, trust: Trust) -> ModelStatement:
    """What the statement file at `place` says, once its signatures are verified.

    Raises:
        SignatureError: If it is malformed or forged; UntrustedKeyError if too few trusted keys
            made it.
        OSError: If it cannot be read.
    """
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(place, MAX_ENVELOPE_BYTES))
        return ModelStatement.from_bytes(envelope.verified_payload(trust))
    except SignatureError as error:
        error.args = (f"{str(place)!r}: {error}",)
        raise


def _file_entry(name: str, record: FileRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "size": record.size,
        "sha256": record.sha256,
        "leaf_size": hashing.LEAF_BYTES,
        "leaves": base64.b64encode(record.leaves).decode("ascii"),
    }
    return entry | ({"fingerprint": record.fingerprint} if record.fingerprint else {})


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
    for item in _check_list(value, "`files`"):
        fields = ("name", "size", "sha256", "leaf_size", "leaves")
        entry = strict.check_object(item, "A file", fields, ("fingerprint",))
        name = strict.check_string(entry["name"], "A file's name")
        if name in result:
            strict.refuse("`files`", "name each file once", name)
        if name != SINGLE_FILE:
            check_file_name(name)
        strict.check_equal(entry["leaf_size"], "`leaf_size`", hashing.LEAF_BYTES)
        fingerprint = None
        if "fingerprint" in entry:
            fingerprint = strict.check_sha256(entry["fingerprint"], "A file's `fingerprint`")
        result[name] = FileRecord(
            _check_integer(entry["size"], "A file's `size`"),
            strict.check_sha256(entry["sha256"], "A file's `sha256`"),
            strict.decode_base64(entry["leaves"], "`leaves`"),
            fingerprint,
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
            _check_integer(size, "A tensor's `shape`")
            for size in _check_list(entry["shape"], "A tensor's `shape`")
        ),
        dtype=strict.check_string(entry["dtype"], "A tensor's `dtype`"),
        offset=None if offset is None else _check_integer(offset, "A tensor's `offset`"),
        nbytes=_check_integer(entry["nbytes"], "A tensor's `nbytes`"),
        digest=strict.check_sha256(entry["sha256"], "A tensor's `sha256`"),
        file=strict.check_string(entry["file"], "A tensor's `file`"),
    )


def _read_parity(value: Any) -> ParityRecord:
    entry = strict.check_object(value, "A parity file", ("name", "size", "sha256"))
    name = check_file_name(strict.check_string(entry["name"], "A parity file's name"))
    return ParityRecord(
        name,
        _check_integer(entry["size"], "A parity file's `size`"),
        strict.check_sha256(entry["sha256"], "A parity file's `sha256`"),
    )


def _read_time(value: Any) -> datetime.datetime:
    text = strict.check_string(value, "`created`")
    try:
        time = datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)
    except ValueError:
        strict.refuse("`created`", "be a time like 2026-01-31T12:00:00Z", text)
    strict.check_equal(text, "`created`", time.strftime(_TIME))
    return time


def _check_integer(value: Any, what: str, minimum: int = 0) -> int:
    if type(value) is not int or not minimum <= value <= _LARGEST:
        strict.refuse(what, f"be an integer from {minimum} to 2**53", value)
    return value


def _check_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        strict.refuse(what, "be a list", value)
    return value


def _check_provenance(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        strict.refuse("`provenance`", "be a JSON object", value)
    return value
