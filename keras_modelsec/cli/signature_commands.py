"""`modelsec sign` and `modelsec verify`."""

import argparse
from typing import Any

from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.integrity.signing import sign
from keras_modelsec.integrity.verifying import verify


def add_sign(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `sign` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sign",
        help="sign a model file or folder",
        description="Sign a model file, or all files of a folder.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument("--key", required=True, metavar="PRIVATE", help="the private key (PEM)")
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    add_password_options(parser)
    parser.set_defaults(command=run_sign)
    return parser


def run_sign(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `sign`."""
    signature = sign(
        options.path,
        options.key,
        signature_path=options.signature,
        password=password_from(options),
    )
    return {
        "path": options.path,
        "signature": str(signature),
        "message": f"Signed {options.path}: {signature}",
    }


def add_verify(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `verify` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="verify a model file or folder",
        description="Verify that a model file or folder is what a trusted key signed.",
    )
    parser.add_argument("path", metavar="PATH", help="the file or folder")
    parser.add_argument(
        "--key",
        required=True,
        action="append",
        metavar="PUBLIC",
        help="a trusted public key (PEM); may be given again",
    )
    parser.add_argument("--signature", metavar="FILE", help="default: PATH with .sig added")
    parser.set_defaults(command=run_verify, verifies=True)
    return parser


def run_verify(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `verify`."""
    verify(options.path, options.key, signature_path=options.signature)
    return {"path": options.path, "message": f"Verified {options.path}"}
