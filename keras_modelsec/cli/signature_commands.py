"""`modelsec sign` and `modelsec verify`."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec._signing.trust import Trust, load_trust
from keras_modelsec._storage import files
from keras_modelsec.cli.model_tables import clean
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.cli.signing_options import add_co_key_option, co_key
from keras_modelsec.cli.trust_options import add_ignore_option, add_trust_options, trust_from
from keras_modelsec.integrity.signing.evidence import Evidence
from keras_modelsec.integrity.signing.signing import sign
from keras_modelsec.integrity.signing.verifying import check_path


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
    add_co_key_option(parser, "NAME.modelsec.json too")
    parser.add_argument(
        "--certificate-chain", metavar="FILE", help="X.509 certificates for the key (PEM)"
    )
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    parser.add_argument("--name", help="what the model is called (default: its file or folder)")
    version = parser.add_mutually_exclusive_group()
    version.add_argument(
        "--model-version",
        type=int,
        metavar="N",
        help="default: one more than this key stated in what is replaced; 1 if nothing is",
    )
    version.add_argument(
        "--version-counter",
        metavar="FILE",
        help="a JSON object of names and last versions, which is counted up (first: {})",
    )
    parser.add_argument(
        "--provenance", metavar="FILE", help="a JSON object that says where the model comes from"
    )
    add_ignore_option(parser, signs=True)
    add_password_options(parser)
    parser.set_defaults(command=run_sign)
    return parser


def run_sign(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `sign`."""
    password = password_from(options)
    with progress_bar("Hashing", json=options.json) as progress:
        report = sign(
            options.path,
            options.key,
            signature_path=options.signature,
            password=password,
            co_signing_keys=[co_key(path, password) for path in options.co_key],
            certificate_chain=options.certificate_chain,
            name=options.name,
            version=options.version_counter or options.model_version,
            provenance=_read_json(options.provenance),
            ignore=options.ignore,
            progress=progress,
        )
    return {
        "path": options.path,
        "signature": str(report.signature or report.statement),
        "statement": str(report.statement),
        "model": report.name,
        "version": report.version,
        "signers": list(report.signers),
        "message": printable(str(report)),
    }


def _read_json(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deep
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
    add_ignore_option(parser)
    add_trust_options(parser)
    parser.set_defaults(command=run_verify, verifies=True)
    return parser


def run_verify(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `verify`."""
    trust = load_trust(trust_from(options))
    path = files.absolute_path(options.path)
    apart = files.absolute_path(options.signature) if options.signature else None
    with progress_bar("Hashing", json=options.json) as progress:
        found = check_path(path, trust, apart, options.name, options.ignore, progress)
    said = found.statement
    return {
        "path": options.path,
        "model": said.model if said else None,
        "version": said.version if said else None,
        "created": f"{said.created:%Y-%m-%dT%H:%M:%SZ}" if said else None,
        "signers": [{"hint": hint, "who": who} for hint, who in found.signers],
        "threshold": options.threshold,
        "files": len(found.manifest.digests),
        "ignored": list(found.ignored),
        "store_version": trust.store_version,
        "message": "\n  ".join(_success(options, found, trust)),
    }


def _success(options: argparse.Namespace, found: Evidence, trust: Trust) -> Iterator[str]:
    """What was shown, and what was not asked for."""
    said, count = found.statement, len(found.manifest.digests)
    yield f"Verified {clean(options.path)}"
    if said:
        yield (
            f"model {clean(said.model)!r}, version {said.version}, signed "
            f"{said.created:%Y-%m-%d %H:%M:%S} UTC by the signer's clock"
        )
    else:
        yield "by an OpenSSF signature alone, which states no name and no version"
    yield f"signed by {', '.join(who for _, who in found.signers)}"
    files_checked = "the file" if found.manifest.is_single_file else f"{count} file(s)"
    yield f"checked: every byte of {files_checked}, and that there is no other"
    if trust.store_version is not None:
        yield f"trust store: version {trust.store_version}"
    if found.ignored:
        yield f"not looked at: {', '.join(map(clean, found.ignored))}"
    open_questions = [] if options.name else ["whether this is the model you mean (--name)"]
    if trust.store_version is None:
        open_questions.append("whether it is the newest, or revoked (--trust-store)")
    if open_questions:
        yield f"not checked: {'; '.join(open_questions)}"
