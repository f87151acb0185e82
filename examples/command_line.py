"""How the examples are started: with a folder for their files, or without.

What is wrong with the folder ends an example with a message, not a traceback, as Ctrl-C does.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[Path], None]) -> None:
    """Calls `main` with the folder on the command line, or with one that is removed afterwards."""
    parser = _parser()
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="where files are kept; without it, none are"
    )
    given = parser.parse_args().folder
    if given is not None:
        _say_what_stops(lambda: main(_made(Path(given))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        _say_what_stops(lambda: main(Path(temporary)))


def run_without_files(main: Callable[[], None]) -> None:
    """Calls `main`, which makes no files."""
    _parser().parse_args()
    _say_what_stops(main)


def _parser() -> argparse.ArgumentParser:
    about = (sys.modules["__main__"].__doc__ or "").partition("\n")[0]
    return argparse.ArgumentParser(prog=Path(sys.argv[0]).name, description=about)


def _made(folder: Path) -> Path:
    folder.mkdir(0o755, parents=True, exist_ok=True)  # where others may write, nothing is signed
    return folder


def _say_what_stops(main: Callable[[], None]) -> None:
    try:
        main()
    except OSError as error:  # read-only, full, open to others, with the keys of an earlier run
        print(f"{Path(sys.argv[0]).name}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
