"""`modelsec encrypt` and `modelsec decrypt`."""

import argparse
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.progress import progress_bar
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase

_PHRASE = "passphrase"


def add_encrypt(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `encrypt` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "encrypt",
        help="encrypt a file",
        description="Encrypt a file for public keys, a passphrase, or both; each opens it alone. "
        "The original stays where it is. Encryption does not say who wrote a file: sign the "
        "encrypted file too.",
    )
    parser.add_argument("path", metavar="PATH", help="the file")
    parser.add_argument(
        "--recipient",
        action="append",
        default=[],
        metavar="PUBLIC",
        help="a public key of `modelsec keygen --encryption`; may be given again",
    )
    _add_common(parser, "default: PATH with .enc added")
    parser.set_defaults(command=run_encrypt)
    return parser


def run_encrypt(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `encrypt`."""
    keys = [*options.recipient, *_passphrases(options, confirm=True)]
    if not keys:
        raise ValueError(
            "A file must be encrypted for somebody. Received: neither --recipient nor one of the "
            "--passphrase options."
        )
    with progress_bar("Encrypting", json=options.json) as progress:
        output = encrypt_file(
            options.path, keys, options.output, overwrite=options.force, progress=progress
        )
    return {
        "path": options.path,
        "output": str(output),
        "message": printable(f"Encrypted {options.path}: {output}"),
    }


def add_decrypt(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `decrypt` to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "decrypt",
        help="decrypt a file",
        description="Decrypt a file. The result appears only when every byte has authenticated. "
        "Exit code 1: the file was altered, or the key is another.",
    )
    parser.add_argument("path", metavar="PATH", help="the encrypted file")
    parser.add_argument("--key", metavar="PRIVATE", help="the private key")
    add_password_options(parser)
    _add_common(parser, "default: PATH without .enc")
    parser.set_defaults(command=run_decrypt, verifies=True)
    return parser


def run_decrypt(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `decrypt`."""
    password = password_from(options)
    if password is not None and options.key is None:
        raise ValueError(
            "--password is the private key's and goes with --key. Received: no --key. "
            "For a file that was encrypted with a passphrase, use --passphrase."
        )
    keys = [*([options.key] if options.key else []), *_passphrases(options, confirm=False)]
    if not keys:
        raise ValueError(
            "A file is decrypted with a key. Received: neither --key nor one of the --passphrase "
            "options."
        )
    with progress_bar("Decrypting", json=options.json) as progress:
        output = decrypt_file(
            options.path,
            keys,
            options.output,
            password=password,
            overwrite=options.force,
            progress=progress,
        )
    return {
        "path": options.path,
        "output": str(output),
        "message": printable(f"Decrypted {options.path}: {output}"),
    }


def _add_common(parser: argparse.ArgumentParser, output: str) -> None:
    add_password_options(parser, name=_PHRASE, ask="ask for the file's passphrase")
    parser.add_argument("--output", metavar="FILE", help=output)
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _passphrases(options: argparse.Namespace, *, confirm: bool) -> list[Passphrase]:
    given = password_from(options, confirm=confirm, name=_PHRASE, prompt="Passphrase: ")
    return [] if given is None else [Passphrase(given)]
