"""Only one thread trains a model privately at a time.

The ledger says of the steps to come what their data are, and counts them. A second thread would
change what is said in the middle of the first one's steps, and of two counts at once one is lost.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator

import keras

from keras_modelsec.errors import NotPrivateError

# Not attributes, which Keras would track, and pickle.
_LOCKS: "weakref.WeakKeyDictionary[keras.Model, threading.RLock]" = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


@contextlib.contextmanager
def only_this_thread(model: keras.Model) -> Iterator[None]:
    """While open, no other thread may train `model`; this one may go further in.

    Raises:
        NotPrivateError: If another thread trains it.
    """
    with _MAKING:
        lock = _LOCKS.setdefault(model, threading.RLock())
    if not lock.acquire(blocking=False):
        raise NotPrivateError(
            "A model is trained privately by one thread at a time, or steps of one would be "
            f"charged as those of another. Received: model {model.name!r}, which another thread "
            "trains. Wait until it is done."
        )
    try:
        yield
    finally:
        lock.release()
