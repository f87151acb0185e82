import io
import sys
import time

import pytest

from keras_modelsec.cli.progress import bar_text, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_at_time(monkeypatch, now):
    """To be called in the test itself: pytest puts its own stderr in place after the fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return stream


def test_no_bar_without_a_terminal_or_with_json(monkeypatch):
    terminal = terminal_at_time(monkeypatch, [0.0])
    with progress_bar("Encrypting", json=True) as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("Encrypting") as progress:
        assert progress is None
    assert sys.stderr.getvalue() == terminal.getvalue() == ""


def test_bar_appears_only_when_it_takes_long_and_is_removed(monkeypatch):
    now = [0.0]
    terminal = terminal_at_time(monkeypatch, now)
    with progress_bar("Encrypting") as progress:
        progress(10, 100)
        assert terminal.getvalue() == ""
        now[0] = 2.0
        progress(50, 100)
        assert "50%" in terminal.getvalue()
        shown = terminal.getvalue()
        progress(51, 100)
        assert terminal.getvalue() == shown  # too soon after the last
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_bar_is_removed_after_an_error(monkeypatch):
    now = [0.0]
    terminal = terminal_at_time(monkeypatch, now)

    def fails():
        with progress_bar("Encrypting") as progress:
            now[0] = 2.0
            progress(50, 100)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "50%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


@pytest.mark.parametrize(("done", "total", "share"), [(0, 0, "100%"), (0, 5, "0%"), (9, 5, "100%")])
def test_bar_text_holds_at_its_edges(done, total, share):
    assert share in bar_text("Encrypting", done, total, 0.0)


def test_bar_text_fits_a_terminal():
    assert len(bar_text("x" * 20, 10**12, 10**12, 1.0)) <= 80
