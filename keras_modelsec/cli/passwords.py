"""How the command line is told a password: by prompt, file or environment variable.

Never as an argument's value, which every user of the machine can read in the process list and the
shell keeps in its history.
"""

import argparse
import getpass
import sys
from pathlib import Path

from keras_modelsec._signing.secrets import EnvironmentVariable, Password


def add_password_options(
    parser: argparse.ArgumentParser,
    *,
    name: str = "password",
    ask: str = "the key is encrypted: ask for its password",
) -> None:
    """Adds the three ways to give a password, of which one may be used.

    Args:
        parser: The subcommand's.
        name: What the options are called: `--NAME`, `--NAME-env` and `--NAME-file`.
        ask: The help of `--NAME`, which asks at the terminal.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(f"--{name}", action="store_true", help=ask)
    group.add_argument(
        f"--{name}-env", metavar="NAME", help=f"read the {name} from this environment variable"
    )
    group.add_argument(
        f"--{name}-file",
        metavar="FILE",
        help=f"read the {name} from this file (its last line break is not part of it)",
    )


def password_from(
    options: argparse.Namespace,
    *,
    confirm: bool = False,
    name: str = "password",
    prompt: str = "Password of the private key: ",
) -> Password:
    """The password the options ask for, as something that gives it when it is needed.

    Args:
        options: The parsed command line.
        confirm: Whether a prompt asks twice.
        name: As for `add_password_options`.
        prompt: What is asked.
    """
    variable, file = getattr(options, f"{name}_env"), getattr(options, f"{name}_file")
    if variable:
        return EnvironmentVariable(variable)
    if file:
        return _from_file(Path(file), name)
    if getattr(options, name):
        return _ask(confirm, name, prompt)
    return None


def _from_file(path: Path, name: str) -> bytes:
    text = path.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise ValueError(f"A {name} file must not be empty. Received: {str(path)!r}.")
    return text


def _ask(confirm: bool, name: str, prompt: str) -> str:
    if not sys.stdin.isatty():
        raise ValueError(
            f"--{name} needs a terminal to ask at. Received: input that is none. "
            f"Use --{name}-env or --{name}-file."
        )
    password = getpass.getpass(prompt)
    if confirm and getpass.getpass("Again: ") != password:
        raise ValueError(f"Both {name}s must be the same. Received: two different ones.")
    return password
