"""Ctrl-C that is obeyed: once, though libraries below us lose a `KeyboardInterrupt`.

Owns the handlers of SIGINT that this package installs. Python raises `KeyboardInterrupt` wherever
the main thread happens to be. In a destructor, or any other call from C that cannot fail, it is
printed and dropped: TensorFlow's `AtomicFunction.__del__` takes it most often, since a signal that
comes while garbage is collected is answered there. A bare `except:` in Keras's saving, and HDF5
between two Python frames, drop it or make another error of it.

Two remedies, each for the main thread only and each in front of the user's own handler:

- while a model is written (`held_back`), the first signal is noted, and obeyed right after;
- while `fit` runs (`Interrupts`), a signal is obeyed at once, or after the destructor it came up
  in; if training goes on all the same, what the user's handler raised is raised again at the next
  batch. A callback that catches `KeyboardInterrupt` to go on cannot: set a handler for that.

A training that fails tells nobody. So each notes the frame it runs in: once that is off the stack,
nothing is raised for it any more, and our handler goes at the next signal, `fit` or `evaluate`.

A handler of the user's that raises nothing is called once and has the last word. A second signal
goes to the user's handler at once.
"""

import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]
_training: "weakref.WeakSet[Interrupts]" = weakref.WeakSet()


class Interrupts:
    """Of one training: notes what was raised for a signal, so that it can be raised again."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None
        self._frame: tuple[int, CodeType] | None = None  # no reference: it would hold the data

    def begin(self) -> None:
        """Starts to watch, unless signals are ignored, or handled outside of this thread."""
        self._raised = None
        handler = _handler()
        if handler is None:
            return
        self._frame = _frame_of_training(sys._getframe(1))
        _training.add(self)
        if not isinstance(handler, _Watching):
            signal.signal(signal.SIGINT, _Watching(handler))

    def check(self) -> None:
        """Raises again what was raised for a signal, if training goes on nevertheless.

        After a training that failed it raises nothing, and puts the user's handler back.
        """
        raised, self._raised = self._raised, None
        if not self.is_running():
            self._leave()
        elif raised is not None:
            raise raised.with_traceback(None)

    def end(self) -> None:
        """Puts the user's handler back; also raises as `check`."""
        try:
            self.check()
        finally:
            self._leave()

    def _leave(self) -> None:
        self._frame = None
        _training.discard(self)
        handler = _handler()
        if isinstance(handler, _Watching) and not _running():
            signal.signal(signal.SIGINT, handler.previous)

    def is_running(self) -> bool:
        """Whether the frame that this training began in is on this thread's stack."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and (id(frame), frame.f_code) != self._frame:
            frame = frame.f_back
        return frame is not None

    def note(self, raised: BaseException) -> None:
        """Called by the handler."""
        self._raised = raised


def _running() -> "list[Interrupts]":
    return [training for training in list(_training) if training.is_running()]


def _frame_of_training(frame: FrameType) -> tuple[int, CodeType]:
    """Identifies `fit`; in a loop of the user's, who called the first `on_train_begin`."""
    callers = [frame]
    while (caller := callers[-1].f_back) is not None:
        callers.append(caller)
    fits = [frame for frame in callers if frame.f_code.co_name == "fit"]
    others = [frame for frame in callers if frame.f_code.co_name != "on_train_begin"]
    found = (fits or others or callers)[0]
    return id(found), found.f_code


class _Watching:
    """The handler while `fit` runs. A training that failed leaves it behind, until it is called."""

    def __init__(self, previous: _Handler):
        self.previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        running, previous = _running(), self.previous
        if not running and signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, previous)
        try:
            previous(number, frame)
        except BaseException as raised:
            for training in running:
                training.note(raised)
            if not (running and _in_destructor(frame)):
                raise


def _in_destructor(frame: FrameType | None) -> bool:
    """Whether Python would print what is raised now, as "Exception ignored", and drop it."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within it the first Ctrl-C waits; it is obeyed at the end. The second is obeyed at once."""
    previous = _handler()
    if previous is None:
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) > 1:
            previous(number, frame)

    try:
        signal.signal(signal.SIGINT, note)
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, previous)
        if noted:
            previous(noted[0], None)


def _handler() -> "_Handler | None":
    """Python's or the user's handler of SIGINT; None if there is none that we may stand before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGINT)
    return handler if callable(handler) else None  # SIG_IGN and SIG_DFL are numbers
