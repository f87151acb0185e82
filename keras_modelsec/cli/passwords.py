"""How the command line is told a password: by prompt, file or environment variable.

Never as an argument's value, which every user of the machine can read in the process list and the
shell keeps in its history.
"""

import argparse
import getpass
import sys
from pathlib import Path

from keras_modelsec.integrity.secrets import EnvironmentVariable, Password


def add_password_options(parser: argparse.ArgumentParser) -> None:
    """Adds the three ways to give a password, of which one may be used."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--password", action="store_true", help="the key is encrypted: ask for its password"
    )
    group.add_argument(
        "--password-env", metavar="NAME", help="read the password from this environment variable"
    )
    group.add_argument(
        "--password-file",
        metavar="FILE",
        help="read the password from this file (its last line break is not part of it)",
    )


def password_from(options: argparse.Namespace, *, confirm: bool = False) -> Password:
    """The password the options ask for, as something that gives it when it is needed.

    Args:
        options: The parsed command line.
        confirm: Whether a prompt asks twice.
    """
    if options.password_env:
        return EnvironmentVariable(options.password_env)
    if options.password_file:
        return _from_file(Path(options.password_file))
    if options.password:
        return _ask(confirm)
    return None


def _from_file(path: Path) -> bytes:
    text = path.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise ValueError(f"A password file must not be empty. Received: {str(path)!r}.")
    return text


def _ask(confirm: bool) -> str:
    if not sys.stdin.isatty():
        raise ValueError(
            "--password needs a terminal to ask at. Received: input that is none. "
            "Use --password-env or --password-file."
        )
    password = getpass.getpass("Password of the private key: ")
    if confirm and getpass.getpass("Again: ") != password:
        raise ValueError("Both passwords must be the same. Received: two different ones.")
    return password
