"""The in-toto statement of OpenSSF Model Signing v1.0: a manifest as the bytes that are signed.

Owns the fields of the statement and predicate, and how strictly they are read;
docs/signature-format.md lists them. Specification: https://github.com/ossf/model-signing-spec.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from keras_modelsec._signing import strict_json as strict
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest, check_file_name

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"


def to_bytes(manifest: Manifest, *, ignore_paths: Sequence[str] = ()) -> bytes:
    """The statement that says `manifest`, resources in code-point order of their names.

    Args:
        manifest: At least one file.
        ignore_paths: What was left out: signature and statement inside the folder, and what the
            signer ignored.
    """
    names = sorted(manifest.digests)
    serialization: dict[str, Any] = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
    }
    if ignore_paths:
        serialization["ignore_paths"] = list(ignore_paths)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": manifest.model_name,
                "digest": {"sha256": root_digest(manifest.digests[n] for n in names)},
            }
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": serialization,
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": manifest.digests[name]}
                for name in names
            ],
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode("ascii")


def root_digest(digests: Iterable[str]) -> str:
    """The subject's digest: hex SHA-256 over the raw digests of the files, joined in order."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def from_bytes(payload: bytes, *, own_names: Sequence[str] = ()) -> Manifest:
    """The manifest in a statement whose signature has been verified.

    Args:
        payload: The signed bytes.
        own_names: Names of signature and statement inside the folder, if they lie there.

    Raises:
        SignatureError: If a field is missing, unknown, of another type or of another value than
            this version of the format allows.
    """
    statement = strict.check_object(
        strict.parse(payload, "The signed statement"),
        "The signed statement",
        ("_type", "subject", "predicateType", "predicate"),
    )
    strict.check_equal(statement["_type"], "`_type`", STATEMENT_TYPE)
    strict.check_equal(statement["predicateType"], "`predicateType`", PREDICATE_TYPE)
    predicate = strict.check_object(
        statement["predicate"], "`predicate`", ("serialization", "resources")
    )
    ignored = _check_serialization(predicate["serialization"])
    digests = _read_resources(predicate["resources"])
    name, root = _read_subject(statement["subject"])
    if root != root_digest(digests.values()):
        strict.refuse("The subject's digest", "be that of the listed resources", root)
    return Manifest(name, digests, tuple(path for path in ignored if path not in own_names))


def _read_subject(value: Any) -> tuple[str, str]:
    subject = strict.check_object(
        strict.check_single(value, "`subject`"), "`subject`", ("name", "digest")
    )
    name = strict.check_string(subject["name"], "The subject's name")
    digest = strict.check_object(subject["digest"], "The subject's digest", ("sha256",))
    return name, strict.check_sha256(digest["sha256"], "The subject's digest")


def _check_serialization(value: Any) -> list[str]:
    """The paths the signer left out: told to the reader, who alone decides what is ignored."""
    what = "`serialization`"
    required = ("method", "hash_type", "allow_symlinks")
    method = value.get("method") if isinstance(value, dict) else None
    if method == "shards":
        raise SignatureError(
            "`method` must be 'files'. Received: 'shards', an optional method of the format that "
            "is not supported. Sign again with one SHA-256 digest a file."
        )
    serialization = strict.check_object(value, what, required, ("ignore_paths",))
    strict.check_equal(method, "`method`", "files")
    strict.check_equal(serialization["hash_type"], "`hash_type`", "sha256")
    strict.check_equal(serialization["allow_symlinks"], "`allow_symlinks`", False)
    ignored = serialization.get("ignore_paths", [])
    for path in strict.check_list(ignored, "`ignore_paths`"):
        check_file_name(strict.check_string(path, "An ignored path"))
    if len(set(ignored)) != len(ignored):
        strict.refuse("`ignore_paths`", "name each path once", ignored)
    return ignored


def _read_resources(value: Any) -> dict[str, str]:
    if not isinstance(value, list) or not value:
        strict.refuse("`resources`", "be a list of at least one file", value)
    digests: dict[str, str] = {}
    for item in value:
        name, digest = _read_resource(item)
        if name in digests:
            strict.refuse("`resources`", "name each file once", name)
        digests[name] = digest
    if SINGLE_FILE in digests and len(digests) > 1:
        strict.refuse("`resources`", "hold '.' alone or not at all", sorted(digests))
    return digests


def _read_resource(value: Any) -> tuple[str, str]:
    fields = ("name", "algorithm", "digest")
    resource = strict.check_object(value, "A resource", fields, ("annotations",))
    strict.check_mapping(resource.get("annotations", {}), "`annotations`")
    name = strict.check_string(resource["name"], "A resource's name")
    if name != SINGLE_FILE:
        check_file_name(name)
    strict.check_equal(resource["algorithm"], "A resource's `algorithm`", "sha256")
    return name, strict.check_sha256(resource["digest"], "A resource's digest")
