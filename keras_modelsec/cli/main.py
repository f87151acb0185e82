"""The `modelsec` command: arguments in, exit code out.

Owns the argument parser, the exit codes and the printing; what the subcommands do is in their own
modules (`keys_command.py`, `signature_commands.py`). Exit codes: 0 done or verified, 1 verification
failed, 2 wrong usage, unusable key, or a file that cannot be read or written. Neither Keras nor
TensorFlow is imported.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from keras_modelsec import __version__
from keras_modelsec._core.printable import printable
from keras_modelsec._storage import files
from keras_modelsec.cli import (
    encryption_commands,
    inspection_commands,
    keys_command,
    repair_commands,
    signature_commands,
    trust_command,
)
from keras_modelsec.cli.wording import in_options
from keras_modelsec.errors import SignatureError, TamperedModelError
from keras_modelsec.integrity.statements.places import Places

EXIT_OK, EXIT_NOT_VERIFIED, EXIT_ERROR = 0, 1, 2

_JSON_HELP = "print one JSON object instead of text"
_TERMINATIONS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_COMMANDS: tuple[Callable[[Any], argparse.ArgumentParser], ...] = (
    keys_command.add_keygen,
    signature_commands.add_sign,
    signature_commands.add_verify,
    inspection_commands.add_inspect,
    inspection_commands.add_diff,
    inspection_commands.add_locate,
    trust_command.add_trust,
    repair_commands.add_protect,
    repair_commands.add_repair,
    encryption_commands.add_encrypt,
    encryption_commands.add_decrypt,
)


class _Parser(argparse.ArgumentParser):
    """Repeats no argument raw: a shell puts in names of files that are anybody's."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser.

    Each subcommand sets `command` to the function that runs it: it takes the parsed options and
    returns what to print, as a dict with "message" and, if it is not 0, "exit_code". One that sets
    `verifies` exits with 1 on a `SignatureError`.
    """
    parser = _Parser(
        prog="modelsec",
        description="Sign, verify, inspect, repair and encrypt model files and folders "
        "(OpenSSF Model Signing format).",
        epilog="Exit codes: 0 success, 1 verification failed, or damage or a difference found, "
        "2 wrong usage, unreadable file, or interrupted. `modelsec COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        subparser = add(subparsers)
        if subparser.get_default("verifies") is None:
            subparser.set_defaults(verifies=False)
        subparser.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help=_JSON_HELP
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Without the program's name. Defaults to those of the process.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    try:
        with _interrupted_by_termination():
            result = options.command(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        failed = isinstance(error, SignatureError) or _is_lost(options, error)
        code = EXIT_NOT_VERIFIED if failed and options.verifies else EXIT_ERROR
        return _report_failure(options, error, code)
    except KeyboardInterrupt:
        return _report_failure(options, KeyboardInterrupt("interrupted"), EXIT_ERROR)
    message, code = result.pop("message"), result.pop("exit_code", EXIT_OK)
    _print(_as_json({"ok": code == EXIT_OK, **result}) if options.json else message)
    return int(code)


def _is_lost(options: argparse.Namespace, error: BaseException) -> bool:
    """Whether a model is not there whose signature is: damage, and no mistake in the path."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return False
    model = files.absolute_path(error.filename)
    named = [getattr(options, name, None) for name in ("path", "one", "other")]
    if model not in [files.absolute_path(path) for path in named if path] or not model.name:
        return False
    apart = getattr(options, "signature", None)
    places = Places.of(model, files.absolute_path(apart) if apart else None)
    return any(os.path.lexists(place) for place in (places.signature, places.statement))


@contextlib.contextmanager
def _interrupted_by_termination() -> Iterator[None]:
    """Lets `kill`, and a terminal that closes, stop as Ctrl-C does: half-made files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in _TERMINATIONS}
    ours = [number for number in old if old[number] is signal.SIG_DFL]  # `nohup` ignores one
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _encodable(text: str, stream: TextIO) -> str:
    """`text` with escapes for what the stream's encoding, or any, has no letters for."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _as_json(value: Any) -> str:
    """JSON that every parser reads: no NaN, no lone surrogates."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _print(text: str) -> None:
    """Prints long reports also into `head`, which stops reading."""
    try:
        print(_encodable(printable(text, keep="\n"), sys.stdout), flush=True)
    except BrokenPipeError:
        with open(os.devnull, "wb") as nothing:  # for the flush at the process's end
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _report_failure(options: argparse.Namespace, error: BaseException, code: int) -> int:
    if options.json:
        _print(_as_json({"ok": False, "error": type(error).__name__, **_details(error)}))
    else:
        text = printable(f"modelsec: {type(error).__name__}: {in_options(str(error))}")
        print(_encodable(text, sys.stderr), file=sys.stderr)
    return code


def _details(error: BaseException) -> dict[str, Any]:
    details: dict[str, Any] = {"message": in_options(str(error))}
    if isinstance(error, TamperedModelError):
        details["changed"] = [file._asdict() for file in error.changed]
        details["added"] = list(error.added)
        details["missing"] = list(error.missing)
        details["tensors"] = list(error.tensors)
    return details


if __name__ == "__main__":
    sys.exit(main())
