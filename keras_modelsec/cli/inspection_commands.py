"""`modelsec inspect`, `modelsec diff` and `modelsec locate`."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files
from keras_modelsec.cli.model_tables import (
    NOT_VERIFIED,
    UNSIGNED,
    VERIFIED,
    Shown,
    difference_text,
    inspection_dict,
    inspection_text,
)
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.cli.trust_options import add_ignore_option, add_trust_options, trust_from
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.signing.evidence import Evidence
from keras_modelsec.integrity.signing.verifying import check_path
from keras_modelsec.integrity.statements.places import check_ignored


def _load(module: str) -> Any:
    """What does the work needs numpy, which the other commands do not wait for."""
    return importlib.import_module(f"keras_modelsec.integrity.{module}")


def add_inspect(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `inspect` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="show what is signed of a model",
        description="Show signers, version, files, tensors, provenance and parity of a model. "
        "Without --key nothing of it is verified. Exit code 1: a key was given, and the model is "
        "not what it signed.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_ignore_option(parser)
    add_trust_options(parser, required=False)
    parser.set_defaults(command=run_inspect, verifies=True)
    return parser


def run_inspect(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `inspect`."""
    path, trust = files.absolute_path(options.path), trust_from(options)
    signature = files.absolute_path(options.signature) if options.signature else None
    ignored = check_ignored(options.ignore)
    found = _load("damage.inspecting").inspect_model(path, signature, ignored)
    with progress_bar("Hashing", json=options.json) as progress:
        evidence, reason = _verify(path, trust, signature, options, progress)
    said = evidence.statement if evidence else found.statement
    unsaid = () if evidence and found.statement else found.tensors  # not those of another statement
    if evidence:
        verdict = VERIFIED
    else:
        verdict = NOT_VERIFIED if found.signers or found.problems else UNSIGNED
    shown = Shown(
        path=options.path,
        verdict=verdict,
        reason="; ".join([reason, *found.problems] if reason else found.problems),
        signers=tuple((signer, _is_trusted(trust, signer.hint)) for signer in found.signers),
        said=said,
        sizes=found.sizes,
        tensors=said.tensors if said else unsaid,
    )
    return {
        **inspection_dict(shown),
        "exit_code": 1 if trust is not None and evidence is None else 0,
        "message": inspection_text(shown),
    }


def _verify(
    path: Path,
    trust: Trust | None,
    signature: Path | None,
    options: argparse.Namespace,
    progress: Progress,
) -> tuple[Evidence | None, str]:
    """What trusted keys say of exactly the bytes that are there, or why they do not."""
    if trust is None:
        return None, "no trusted key was given; anybody can have written what follows"
    try:
        return check_path(path, trust, signature, options.name, options.ignore, progress), ""
    except SignatureError as error:
        return None, str(error)


def _is_trusted(trust: Trust | None, hint: str) -> bool:
    """Whether a signature that names this key counts, and so was checked."""
    try:
        return trust is not None and bool(hint) and trust.find(hint) is not None
    except SignatureError:
        return False  # revoked, or not valid now


def add_diff(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `diff` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "diff",
        help="compare two models tensor by tensor",
        description="Compare two model files, or two folders: tensors and by how much their "
        "values differ, configuration, files. Neither is loaded. Exit codes: 0 no difference, 1 "
        "some, or one of them is not what --key signed, 2 cannot be compared.",
    )
    parser.add_argument("one", metavar="A", help="a file or folder")
    parser.add_argument("other", metavar="B", help="a file or folder")
    add_trust_options(parser, required=False)
    parser.set_defaults(command=run_diff, verifies=True)
    return parser


def run_diff(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `diff`."""
    trust = trust_from(options)
    if trust is not None:
        for path in (options.one, options.other):
            check_path(files.absolute_path(path), trust, None, options.name)
    paths = [files.absolute_path(path) for path in (options.one, options.other)]
    found = _load("damage.model_difference").compare_models(*paths)
    return {
        "one": options.one,
        "other": options.other,
        "verified": trust is not None,
        **found.to_dict(),
        "exit_code": 0 if found.is_empty else 1,
        "message": difference_text(found, options.one, options.other, verified=trust is not None),
    }


def add_locate(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `locate` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "locate",
        help="name the tensors and bytes that were changed",
        description="Name each tensor, piece and file of a model that is not as a trusted key "
        "signed it. Exit codes: 0 nothing was changed, 1 something was, 2 cannot be read.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument(
        "--reference", metavar="COPY", help="a good copy: then by how much is said too"
    )
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_ignore_option(parser)
    add_trust_options(parser)
    parser.set_defaults(command=run_locate, verifies=True)
    return parser


def run_locate(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `locate`."""
    locate_tampering = _load("damage.locating").locate_tampering
    with progress_bar("Hashing", json=options.json) as progress:
        report = locate_tampering(
            options.path,
            trust_from(options),
            reference=options.reference,
            signature_path=options.signature,
            expected_name=options.name,
            ignore=options.ignore,
            progress=progress,
        )
    return {
        "path": options.path,
        **report.to_dict(),
        "exit_code": 0 if report.is_clean else 1,
        "message": str(report),
    }
