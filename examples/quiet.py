"""Keras without TensorFlow's start-up messages: `from quiet import keras`.

TensorFlow reports its CPU features and the lack of a GPU on standard error, some of it before
`TF_CPP_MIN_LOG_LEVEL` is heeded. If the import fails, all that was held back is shown.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextlib.contextmanager
def _standard_error_held_back() -> Iterator[None]:
    sys.stderr.flush()
    descriptor = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(descriptor, held_back.read())
            raise
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)


__all__ = ["keras"]

with _standard_error_held_back():
    import keras

    keras.ops.zeros(())  # TensorFlow looks for devices when it first computes
