"""Ctrl-C stops training, once and always: handlers, nesting, threads, and a whole run of them."""

import os
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec._core.interrupts import Interrupts, held_back

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent with os.kill")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_and_wait():
    interrupt()
    threading.Event().wait(5)


def save(*steps):
    """As a save: all of it while the interrupt is held back."""
    with held_back():
        for step in steps:
            step()


def fail():
    raise OSError("full")


def swallow():
    """What a destructor and a bare `except:` do."""
    try:
        interrupt_and_wait()
    except BaseException:
        return
    raise AssertionError("no signal came")


def test_held_back_interrupt_is_obeyed_at_the_end_and_the_handler_is_back():
    done = []
    with pytest.raises(KeyboardInterrupt):
        save(interrupt, lambda: done.append(True))
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_is_obeyed_at_once_though_the_first_is_held_back():
    done = []
    with pytest.raises(KeyboardInterrupt):
        save(interrupt, interrupt, lambda: done.append(True))
    assert not done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_that_is_swallowed_too_is_obeyed_at_the_end():
    with pytest.raises(KeyboardInterrupt):
        save(interrupt, swallow)


def test_held_back_interrupt_wins_over_an_error_of_the_save():
    with pytest.raises(KeyboardInterrupt) as caught:
        save(interrupt, fail)
    assert isinstance(caught.value.__context__, OSError)


def test_users_handler_is_called_once_for_each_signal_and_may_raise_nothing():
    calls = []
    signal.signal(signal.SIGINT, lambda *arguments: calls.append(arguments[0]))
    watch = Interrupts()
    watch.begin()
    with held_back():
        interrupt()
        assert calls == []
    assert calls == [signal.SIGINT]
    interrupt()
    watch.check()
    watch.end()
    assert calls == [signal.SIGINT] * 2


def test_swallowed_interrupt_is_raised_again_once():
    watch = Interrupts()
    watch.begin()
    swallow()
    with pytest.raises(KeyboardInterrupt):
        watch.check()
    watch.check()
    watch.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_swallowed_interrupt_of_the_last_batch_is_raised_when_training_ends():
    watch = Interrupts()
    watch.begin()
    swallow()
    with pytest.raises(KeyboardInterrupt):
        watch.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_of_an_earlier_training_is_not_raised_in_the_next():
    watch = Interrupts()
    watch.begin()
    with pytest.raises(KeyboardInterrupt):
        interrupt_and_wait()
    watch.begin()
    watch.check()
    watch.end()


def test_trainings_may_be_nested_and_both_hear_of_it():
    outer, inner = Interrupts(), Interrupts()
    outer.begin()
    inner.begin()
    swallow()
    for watch in (inner, outer):
        with pytest.raises(KeyboardInterrupt):
            watch.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_set_during_training_stays_the_users():
    def own(*_):
        raise SystemExit(3)

    watch = Interrupts()
    watch.begin()
    signal.signal(signal.SIGINT, own)
    with held_back():
        pass
    watch.end()
    assert signal.getsignal(signal.SIGINT) is own


def test_trainings_that_fail_do_not_pile_up_handlers():
    for _ in range(5):
        Interrupts().begin()
    assert signal.getsignal(signal.SIGINT).previous is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        interrupt_and_wait()


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_ignored_signals_stay_ignored(ignored):
    signal.signal(signal.SIGINT, ignored)
    watch = Interrupts()
    watch.begin()
    with held_back():
        assert signal.getsignal(signal.SIGINT) is ignored
    watch.end()
    assert signal.getsignal(signal.SIGINT) is ignored


def test_other_threads_leave_the_handler_alone():
    seen = []

    def work():
        watch = Interrupts()
        watch.begin()
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))
        watch.end()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


# One process, so that TensorFlow starts once; most of the moments are inside of a save.
RUN = """
import os, random, signal, sys, threading, time
import keras, numpy as np
import keras_modelsec as ms

kind, folder = sys.argv[1:]
key = os.path.join(folder, "owner.pem")
ms.generate_keys(key, os.path.join(folder, "owner.pub"))
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(1)])
model.compile("adam", "mse")
x, y = np.zeros((64, 8), "float32"), np.zeros((64, 1), "float32")
model.fit(x, y, batch_size=1, verbose=0)  # traced: TensorFlow makes a ValueError of Ctrl-C there
sent = []

def saving():
    place = os.path.join(folder, kind)
    if kind == "backup":
        return ms.SignedBackupAndRestore(place, key, save_freq=1, delete_checkpoint=False)
    return ms.SignOnSave(place, key, save_freq=1, save_weights_only="weights" in kind,
                         encrypt_to=bytes(range(32)) if kind.endswith(".enc") else None)

class StopAtLast(keras.callbacks.Callback):  # so that a lost signal ends the test, not hangs it
    def on_train_batch_end(self, batch, logs=None):
        if sent and time.monotonic() - sent[0] > 300:
            self.model.stop_training = True

def send(delay):
    time.sleep(delay)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

rng, obeyed = random.Random(5), 0
for count in range(20):
    sent.clear()
    callbacks = [saving(), StopAtLast()]
    thread = threading.Thread(target=send, args=(rng.uniform(0, 0.5),))
    class Begin(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not thread.ident:
                thread.start()
    try:
        model.fit(x, y, batch_size=1, epochs=10**6, verbose=0, callbacks=[*callbacks, Begin()])
    except KeyboardInterrupt:
        obeyed += 1
    except BaseException as error:
        print("turned into", repr(error))
    thread.join()
print("obeyed", obeyed, flush=True)
"""


OTHERS = ("backup", "m.weights.h5", "m.keras.enc")
LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["m.keras", *LONG])
def test_one_interrupt_at_each_of_20_random_moments_stops_training(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["obeyed 20"], done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["SignOnSave", "SignedBackupAndRestore"])
def test_interrupt_in_a_destructor_stops_training_at_the_next_batch(tmp_path, kind, monkeypatch):
    ms.generate_keys(tmp_path / "owner.pem", tmp_path / "owner.pub")
    batches, printed = [], []

    class Destructor:
        def __del__(self):
            interrupt_and_wait()  # the signal is answered in here, and dropped

    class Lose(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            batches.append(batch)
            if len(batches) == 3:
                Destructor()

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    name = "m.keras" if kind == "SignOnSave" else "backup"
    callbacks = [Lose(), getattr(ms, kind)(tmp_path / name, tmp_path / "owner.pem")]
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=1, verbose=0, callbacks=callbacks)
    assert len(batches) == 3
    assert not printed


class PressCtrlC(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        interrupt_and_wait()


@pytest.fixture
def stopped(tmp_path):
    """A compiled model, its data, and the callback of a `fit` that Ctrl-C has stopped."""
    ms.generate_keys(tmp_path / "owner.pem", tmp_path / "owner.pub")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((8, 4)), np.ones((8, 1))
    callback = ms.SignOnSave(tmp_path / "m.keras", tmp_path / "owner.pem")
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[callback, PressCtrlC()])
    return model, x, y, callback


def test_interrupt_of_a_stopped_fit_is_not_raised_in_evaluate_or_predict(stopped):
    model, x, y, callback = stopped
    model.evaluate(x, y, verbose=0, callbacks=[callback])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.predict(x, verbose=0, callbacks=[callback])


def test_good_fit_puts_the_handler_back_though_an_earlier_one_failed(stopped, tmp_path):
    model, x, y, callback = stopped
    other = ms.SignOnSave(tmp_path / "o.keras", tmp_path / "owner.pem")
    model.fit(x, y, verbose=0, callbacks=[other])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.fit(x, y, verbose=0, validation_data=(x, y), callbacks=[callback])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_after_a_fit_that_failed_goes_to_the_users_handler_and_puts_it_back():
    calls = []

    def own(*_):
        calls.append(1)
        raise OSError("stop")

    def fit(watch):
        watch.begin()
        raise ValueError("a bug in a callback")

    signal.signal(signal.SIGINT, own)
    watch = Interrupts()
    with pytest.raises(ValueError, match="a bug"):
        fit(watch)
    with pytest.raises(OSError, match="stop"):
        interrupt_and_wait()
    assert signal.getsignal(signal.SIGINT) is own
    assert calls == [1]
    watch.check()
    watch.end()
