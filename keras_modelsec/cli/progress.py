"""A progress bar on standard error, for people only: none in a pipe, a log file or with --json."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]

_WIDTH = 30
_SECONDS_BEFORE = 0.5  # what is done by then needs no bar
_SECONDS_BETWEEN = 0.1


@contextlib.contextmanager
def progress_bar(label: str, *, json: bool = False) -> Iterator[Progress | None]:
    """Yields what to pass as `progress=`, and removes the bar at the end.

    Args:
        label: What is being done, e.g. "Encrypting".
        json: Whether `--json` was given; no bar is shown then.

    Yields:
        `progress(bytes_done, bytes_total)`, or None where no bar is to be shown.
    """
    if json or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(label)
    try:
        yield bar
    finally:
        bar.clear()


class _Bar:
    def __init__(self, label: str):
        self._label = label
        self._start = time.monotonic()
        self._next = self._start + _SECONDS_BEFORE
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN
        self._write(bar_text(self._label, done, total, now - self._start))

    def clear(self) -> None:
        if self._shown:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _write(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(text)


def bar_text(label: str, done: int, total: int, seconds: float) -> str:
    """The bar as text, at most 80 columns for labels of up to 20.

    Args:
        label: What is being done.
        done: Bytes done.
        total: Bytes in all; 0 if there is nothing to do.
        seconds: Since the beginning.
    """
    share = min(1.0, done / total) if total > 0 else 1.0
    filled = int(share * _WIDTH)
    speed = done / seconds / 1e6 if seconds > 0 else 0.0
    bar = "#" * filled + "." * (_WIDTH - filled)
    return f"{label} [{bar}] {share:4.0%} {speed:6,.0f} MB/s"
