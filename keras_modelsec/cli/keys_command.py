"""`modelsec keygen`."""

import argparse
from typing import Any

from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.integrity.keys import generate_keys
from keras_modelsec.integrity.signing_key import CURVES


def add_keygen(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "keygen",
        help="make a key pair",
        description="Make an ECDSA key pair as two PEM files; existing files are not replaced.",
    )
    parser.add_argument("private", metavar="PRIVATE", help="where the private key goes")
    parser.add_argument(
        "public",
        metavar="PUBLIC",
        nargs="?",
        help="where the public key goes (default: PRIVATE with the ending .pub)",
    )
    parser.add_argument("--curve", choices=list(CURVES), default="p256", help="default: p256")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    add_password_options(parser)
    parser.set_defaults(command=run_keygen)
    return parser


def run_keygen(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand."""
    pair = generate_keys(
        options.private,
        options.public,
        curve=options.curve,
        password=password_from(options, confirm=True),
        overwrite=options.force,
    )
    private, public = str(pair.private_path), str(pair.public_path)
    return {
        "private": private,
        "public": public,
        "curve": options.curve,
        "message": f"Private key (keep it secret): {private}\nPublic key (give it out): {public}",
    }
