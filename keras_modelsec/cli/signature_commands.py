"""`modelsec sign` and `modelsec verify`."""

import argparse
import json
from typing import Any

from keras_modelsec.cli.model_tables import clean
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.cli.trust_options import add_trust_options, trusted_from
from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import WrongPasswordError
from keras_modelsec.integrity.keys.key_loading import load_signing_key
from keras_modelsec.integrity.keys.signing_key import SigningKey
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.signing import sign
from keras_modelsec.integrity.signatures.verifying import verify


def add_sign(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `sign` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sign",
        help="sign a model file or folder",
        description="Sign a model file, or all files of a folder: NAME.sig in the OpenSSF format "
        "and NAME.modelsec.json, which also names tensors, version and provenance.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--key", required=True, metavar="PRIVATE", help="the private key (PEM)")
    parser.add_argument(
        "--co-key",
        action="append",
        default=[],
        metavar="PRIVATE",
        help="a key that signs NAME.modelsec.json too, e.g. ML-DSA-65; not encrypted, or with the "
        "same password; may be given again",
    )
    parser.add_argument(
        "--certificate-chain", metavar="FILE", help="X.509 certificates for the key (PEM)"
    )
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    parser.add_argument("--name", help="what the model is called (default: as before, or its file)")
    parser.add_argument(
        "--model-version",
        type=int,
        metavar="N",
        help="default: one more than this key stated before, or 1",
    )
    parser.add_argument(
        "--provenance", metavar="FILE", help="a JSON object that says where the model comes from"
    )
    parser.add_argument(
        "--reuse-unchanged",
        action="store_true",
        help="do not hash files again that cannot have changed since they were signed",
    )
    add_password_options(parser)
    parser.set_defaults(command=run_sign)
    return parser


def run_sign(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `sign`."""
    password = password_from(options)
    with progress_bar("Hashing", json=options.json) as progress:
        signature = sign(
            options.path,
            options.key,
            signature_path=options.signature,
            password=password,
            co_signing_keys=[_co_key(path, password) for path in options.co_key],
            certificate_chain=options.certificate_chain,
            name=options.name,
            version=options.model_version,
            provenance=_read_json(options.provenance),
            reuse_unchanged=options.reuse_unchanged,
            progress=progress,
        )
    apart = files.absolute_path(options.signature) if options.signature else None
    place = Places.of(files.absolute_path(options.path), apart).statement
    envelope = DsseEnvelope.from_bytes(files.read_limited(place, MAX_ENVELOPE_BYTES))
    statement = ModelStatement.from_bytes(envelope.payload)
    written = " and ".join(dict.fromkeys([str(signature), str(place)]))
    return {
        "path": options.path,
        "signature": str(signature),
        "statement": str(place),
        "model": statement.model,
        "version": statement.version,
        "message": f"Signed {options.path} as version {statement.version} of "
        f"{clean(statement.model)!r}: {written}",
    }


def _co_key(path: str, password: Password) -> SigningKey:
    try:
        return load_signing_key(path)
    except WrongPasswordError:
        return load_signing_key(path, password)


def _read_json(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file)
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(
                f"--provenance must name a file with a JSON object. Received: {path!r} ({error})."
            ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"--provenance must name a file with a JSON object. Received: {path!r}, which holds "
            f"a {type(value).__name__}."
        )
    return value


def add_verify(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `verify` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="verify a model file or folder",
        description="Verify that a model file or folder is what a trusted key signed.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    parser.add_argument("--name", help="the name it must have been signed under (default: any)")
    add_trust_options(parser)
    parser.set_defaults(command=run_verify, verifies=True)
    return parser


def run_verify(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `verify`."""
    with progress_bar("Hashing", json=options.json) as progress:
        verify(
            options.path,
            trusted_from(options),
            signature_path=options.signature,
            expected_name=options.name,
            progress=progress,
        )
    return {"path": options.path, "message": f"Verified {options.path}"}
