"""`modelsec protect` and `modelsec repair`."""

import argparse
import importlib
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.cli.signing_options import add_co_key_option, co_key
from keras_modelsec.cli.trust_options import add_ignore_option, add_trust_options, trust_from


def _integrity() -> Any:
    """What does the work needs numpy, which the other commands do not wait for."""
    return importlib.import_module("keras_modelsec.integrity")


def add_protect(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `protect` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "protect",
        help="write parity from which damage can be repaired",
        description="Write signed parity of a model file or folder, from which `repair` restores "
        "damaged bytes. Sign the model first. Needs the `repair` extra. Exit code 1: the model is "
        "not what its signature says.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--key", required=True, metavar="PRIVATE", help="the private key (PEM)")
    add_co_key_option(parser, "parity too, as it must where repair is to ask for --threshold")
    parser.add_argument(
        "--trusted-key",
        action="append",
        default=[],
        metavar="PUBLIC",
        help="a public key (PEM) that signed the model, if it was not --key; may be repeated",
    )
    parser.add_argument(
        "--redundancy",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="parity in proportion to the model, above 0, at most 1 (default: 0.05)",
    )
    parser.add_argument("--parity", metavar="FILE", help="default: PATH with .parity added")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_ignore_option(parser, signs=True)
    add_password_options(parser)
    parser.set_defaults(command=run_protect, verifies=True)
    return parser


def run_protect(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `protect`."""
    password = password_from(options)
    with progress_bar("Encoding", json=options.json) as progress:
        report = _integrity().write_parity(
            options.path,
            options.key,
            redundancy=options.redundancy,
            password=password,
            co_signing_keys=[co_key(path, password) for path in options.co_key],
            trusted_keys=options.trusted_key or None,
            parity_path=options.parity,
            signature_path=options.signature,
            ignore=options.ignore,
            progress=progress,
        )
    return {
        "path": options.path,
        "parity": str(report.parity),
        "bytes": report.size,
        "model": report.name,
        "version": report.version,
        "signers": list(report.signers),
        "rests_on": list(report.rests_on),
        "longest_burst": report.longest_burst,
        "message": printable(str(report)),
    }


def add_repair(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `repair` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "repair",
        help="restore a damaged model from its parity",
        description="Restore a damaged model file or folder to the exact signed bytes, or say what "
        "cannot be restored and leave it alone. Exit code 1: not repaired, or files that are no "
        "part of the model are among its files.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--parity", metavar="FILE", help="default: PATH with .parity added")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_ignore_option(parser)
    add_trust_options(parser)
    parser.set_defaults(command=run_repair, verifies=True)
    return parser


def run_repair(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `repair`."""
    with progress_bar("Repairing", json=options.json) as progress:
        report = _integrity().repair(
            options.path,
            trust_from(options),
            parity_path=options.parity,
            signature_path=options.signature,
            expected_name=options.name,
            ignore=options.ignore,
            progress=progress,
        )
    return {
        "path": options.path,
        "changed": list(report.changed),
        "missing": list(report.missing),
        "added": list(report.added),
        "blocks": report.blocks,
        "block_size": report.block_size,
        "damaged_blocks": report.damaged_blocks,
        "decoded_blocks": report.decoded_blocks,
        "moved_blocks": report.moved_blocks,
        "restored_bytes": report.restored_bytes,
        "signatures": list(report.signatures),
        "damaged_parity": report.damaged_parity,
        "parity_rewritten": report.parity_rewritten,
        "exit_code": 1 if report.added else 0,
        "message": str(report),
    }
