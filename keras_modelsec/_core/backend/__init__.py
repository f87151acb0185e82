"""The seam to the array library that Keras runs on.

What `keras.ops` can say is said with it, everywhere; what it cannot say (gradients, compiled
functions, replicas, non-deterministic generators) is said here. A second backend is one more module
with the same functions.
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_modelsec runs on Keras's TensorFlow backend. Received: "
        f"keras.backend.backend()={keras.backend.backend()!r}. "
        "Set KERAS_BACKEND=tensorflow before importing keras."
    )

from keras_modelsec._core.backend.tensorflow import (  # noqa: E402  (only after the check above)
    NoiseSource,
    assert_equal,
    compile_function,
    gradients_of_watched,
    input_gradients,
    map_examples,
    replica_count,
    value_and_gradients,
)

__all__ = [
    "NoiseSource",
    "assert_equal",
    "compile_function",
    "gradients_of_watched",
    "input_gradients",
    "map_examples",
    "replica_count",
    "value_and_gradients",
]
