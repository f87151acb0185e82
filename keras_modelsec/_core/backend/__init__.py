"""The seam to the array library that Keras runs on.

What `keras.ops` can say is said with it, everywhere; what it cannot say (gradients, compiled
functions, replicas, non-deterministic generators) is said here. A second backend is one more
folder with the same functions.
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_modelsec runs on Keras's TensorFlow backend. Received: "
        f"keras.backend.backend()={keras.backend.backend()!r}. "
        "Set KERAS_BACKEND=tensorflow before importing keras."
    )

from keras_modelsec._core.backend.tensorflow.control import (
    assert_equal,
    repeat,
    require,
    with_value_errors,
)
from keras_modelsec._core.backend.tensorflow.data import (
    DatasetStep,
    dataset_batch_size,
    dataset_steps,
)
from keras_modelsec._core.backend.tensorflow.functions import (
    TracedFunction,
    after,
    another_tensor,
    can_be_traced,
    compile_for_batches,
    compile_function,
    forget_batch_size,
    is_equal_content,
    may_be_batch_axis,
    outputs_of,
    run_eagerly_now,
    same_graph,
    specification,
    static_shape,
    with_shape,
    with_variable_updates,
)
from keras_modelsec._core.backend.tensorflow.gradients import (
    differentiable,
    gradients_of_watched,
    input_gradients,
    map_examples,
    value_and_gradients,
)
from keras_modelsec._core.backend.tensorflow.graphs import (
    constant_in,
    made_by,
    move_again,
    moved_by,
)
from keras_modelsec._core.backend.tensorflow.noise import (
    NoiseSource,
)
from keras_modelsec._core.backend.tensorflow.state import (
    contents_put_back,
    own_eager_randomness,
)
from keras_modelsec._core.backend.tensorflow.summaries import (
    SummaryLog,
)
from keras_modelsec._core.backend.tensorflow.variables import (
    array_now,
    is_in_one_process,
    is_same_memory,
    memory_of,
    replica_count,
    replica_index,
    replicas_of,
    variable_contents,
    variable_scope,
)

__all__ = [
    "DatasetStep",
    "NoiseSource",
    "SummaryLog",
    "TracedFunction",
    "after",
    "another_tensor",
    "array_now",
    "assert_equal",
    "can_be_traced",
    "compile_for_batches",
    "compile_function",
    "dataset_batch_size",
    "with_variable_updates",
    "dataset_steps",
    "constant_in",
    "contents_put_back",
    "differentiable",
    "forget_batch_size",
    "gradients_of_watched",
    "input_gradients",
    "is_equal_content",
    "is_in_one_process",
    "is_same_memory",
    "made_by",
    "map_examples",
    "may_be_batch_axis",
    "memory_of",
    "own_eager_randomness",
    "repeat",
    "outputs_of",
    "replica_count",
    "replica_index",
    "replicas_of",
    "require",
    "run_eagerly_now",
    "move_again",
    "moved_by",
    "same_graph",
    "specification",
    "static_shape",
    "value_and_gradients",
    "variable_contents",
    "variable_scope",
    "with_shape",
    "with_value_errors",
]
