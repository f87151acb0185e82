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

from keras_modelsec._core.backend.tensorflow import (
    NoiseSource,
    SummaryLog,
    assert_equal,
    compile_for_batches,
    compile_function,
    forget_batch_size,
    gradients_of_watched,
    input_gradients,
    is_same_memory,
    is_softmax,
    map_examples,
    may_be_batch_axis,
    memory_of,
    outside_compiled_function,
    repeat,
    replica_count,
    replica_index,
    require,
    run_eagerly_now,
    undo_activation,
    value_and_gradients,
    variable_contents,
    variable_scope,
)

__all__ = [
    "NoiseSource",
    "SummaryLog",
    "assert_equal",
    "compile_for_batches",
    "compile_function",
    "forget_batch_size",
    "gradients_of_watched",
    "input_gradients",
    "is_same_memory",
    "is_softmax",
    "map_examples",
    "may_be_batch_axis",
    "memory_of",
    "repeat",
    "outside_compiled_function",
    "replica_count",
    "replica_index",
    "require",
    "run_eagerly_now",
    "undo_activation",
    "value_and_gradients",
    "variable_contents",
    "variable_scope",
]
