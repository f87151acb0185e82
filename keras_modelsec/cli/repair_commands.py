"""`modelsec protect` and `modelsec repair`."""

import argparse
import importlib
from typing import Any

from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.cli.trust_options import add_trust_options, trusted_from


def _load(module: str) -> Any:
    """What does the work needs numpy, which the other commands do not wait for."""
    return importlib.import_module(f"keras_modelsec.integrity.{module}")


def add_protect(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `protect` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "protect",
        help="write parity from which damage can be repaired",
        description="Write signed parity of a model file or folder, from which `repair` restores "
        "damaged bytes. Sign the model first. Needs the `repair` extra.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--key", required=True, metavar="PRIVATE", help="the private key (PEM)")
    parser.add_argument(
        "--redundancy",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="parity in proportion to the model, above 0, at most 1 (default: 0.05)",
    )
    parser.add_argument("--parity", metavar="FILE", help="default: PATH with .parity added")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_password_options(parser)
    parser.set_defaults(command=run_protect)
    return parser


def run_protect(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `protect`."""
    protect = _load("parity.protecting").protect
    with progress_bar("Encoding", json=options.json) as progress:
        parity = protect(
            options.path,
            options.key,
            redundancy=options.redundancy,
            password=password_from(options),
            parity_path=options.parity,
            signature_path=options.signature,
            progress=progress,
        )
    return {
        "path": options.path,
        "parity": str(parity),
        "bytes": parity.stat().st_size,
        "message": f"Protected {options.path}: {parity} ({parity.stat().st_size} bytes)",
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
    add_trust_options(parser)
    parser.set_defaults(command=run_repair, verifies=True)
    return parser


def run_repair(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `repair`."""
    repair = _load("parity.repairing").repair
    with progress_bar("Repairing", json=options.json) as progress:
        report = repair(
            options.path,
            trusted_from(options),
            parity_path=options.parity,
            signature_path=options.signature,
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
