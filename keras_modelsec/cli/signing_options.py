"""How the command line is told further keys to sign with."""

import argparse

from keras_modelsec._signing.key_files import load_signing_key
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.secrets import Password
from keras_modelsec.errors import WrongPasswordError


def add_co_key_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--co-key`, for a key that signs `what`; `co_key` reads one."""
    parser.add_argument(
        "--co-key",
        action="append",
        default=[],
        metavar="PRIVATE",
        help=f"a key that signs {what}, e.g. ML-DSA-65; not encrypted, or with the same password; "
        "may be given again",
    )


def co_key(path: str, password: Password) -> SigningKey:
    """One further key; those without a password are read without."""
    try:
        return load_signing_key(path)
    except WrongPasswordError:
        return load_signing_key(path, password)
