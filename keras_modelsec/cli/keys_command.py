"""`modelsec keygen`."""

import argparse
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec._signing.algorithms import ALGORITHMS
from keras_modelsec._signing.key_files import WRAPPINGS, generate_keys
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.integrity.encryption.encryption_keys import generate_encryption_keys


def add_keygen(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "keygen",
        help="make a key pair",
        description="Make a key pair as two PEM files; existing files are not replaced. ECDSA keys "
        "(p256, p384, p521) sign in OpenSSF's format; ed25519 and ml-dsa-65 keys co-sign. "
        "--encryption makes a pair for `modelsec encrypt` and `decrypt` instead.",
    )
    parser.add_argument("private", metavar="PRIVATE", help="where the private key goes")
    parser.add_argument(
        "public",
        metavar="PUBLIC",
        nargs="?",
        help="where the public key goes (default: PRIVATE with the ending .pub)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--algorithm", choices=list(ALGORITHMS), help="default: p256")
    kind.add_argument(
        "--encryption", action="store_true", help="a pair to encrypt for (X-Wing), not to sign with"
    )
    parser.add_argument(
        "--wrapping",
        choices=WRAPPINGS,
        default=WRAPPINGS[0],
        help="how a password protects the key: argon2id (default; read by this package only) or "
        "pkcs8 (weaker; read by OpenSSL too)",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    add_password_options(parser, ask="encrypt the private key: ask for a new password")
    parser.set_defaults(command=run_keygen)
    return parser


def run_keygen(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand."""
    algorithm = options.algorithm or "p256"
    password = password_from(options, confirm=True)
    if options.encryption:
        algorithm = "x-wing"
        if options.wrapping != WRAPPINGS[0]:
            raise ValueError(
                f"--encryption goes with --wrapping {WRAPPINGS[0]} only. "
                f"Received: --wrapping {options.wrapping}."
            )
        pair = generate_encryption_keys(
            options.private, options.public, password=password, overwrite=options.force
        )
    else:
        pair = generate_keys(
            options.private,
            options.public,
            algorithm=algorithm,
            wrapping=options.wrapping,
            password=password,
            overwrite=options.force,
        )
    private, public = str(pair.private_path), str(pair.public_path)
    return {
        "private": private,
        "public": public,
        "algorithm": algorithm,
        "message": f"Private key (keep it secret): {printable(private)}\n"
        f"Public key (give it out): {printable(public)}",
    }
