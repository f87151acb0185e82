"""Replicas, and what variables hold."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

Tensor = Any
Nested = Any


def replica_count() -> int:
    """How many replicas run the current step in parallel; 1 outside of a distribution strategy."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replicas_of(model: Any) -> int:
    """How many replicas a step of `fit` or `train_on_batch` of a Keras model has."""
    return int(model.distribute_strategy.num_replicas_in_sync)


def is_in_one_process() -> bool:
    """Whether the current step's replicas, if there are several, all run in this process.

    Of a strategy with workers elsewhere it is not known which data each of them is given.
    """
    strategy = tf.distribute.get_strategy()
    known = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)
    return isinstance(strategy, known) or not tf.distribute.has_strategy()


def replica_index() -> Tensor | int:
    """Which replica of a distribution strategy runs this; 0 outside of one."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def variable_scope(model: keras.Model) -> Any:
    """A context manager in which new variables live where `model` keeps its own."""
    return model.distribute_strategy.scope()


def variable_contents(variable: keras.Variable) -> list[Tensor]:
    """What each replica's copy of `variable` holds now; on the CPU without copying it.

    As long as a content is held, what assigns to the variable writes to other memory. Of variables
    that each replica updates for itself it is one content, what they are together.
    """
    value = variable.value
    copies = (value,)
    if isinstance(value, tf.distribute.DistributedValues):
        if value.synchronization == tf.VariableSynchronization.ON_READ:
            return [tf.convert_to_tensor(value)]
        copies = value.values
    return [tf.raw_ops.ReadVariableOp(resource=copy.handle, dtype=copy.dtype) for copy in copies]


def array_now(value: Any) -> np.ndarray:
    """What a variable, a tensor or an array holds now, whatever is assigned or written to it later.

    On the CPU variables and tensors are not copied: TensorFlow does, when it assigns. What another
    device holds is copied from there, where memory is scarce.
    """
    if isinstance(value, keras.Variable):
        tensor = variable_contents(value)[0]
    elif isinstance(value, (tf.Tensor, tf.Variable)):
        tensor = tf.convert_to_tensor(value)
    else:
        return keras.ops.convert_to_numpy(value)
    if "CPU" not in tensor.device:
        with tf.device("CPU:0"):
            tensor = tf.identity(tensor)
    if tensor.dtype == tf.string:
        return tensor.numpy()
    return np.ndarray(tuple(tensor.shape), tensor.dtype.as_numpy_dtype, buffer=memory_of(tensor))


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, on the CPU without copying them."""
    if tensor.dtype.size in (1, 2) and not tensor.dtype.is_bool:  # bfloat16 has no buffer format
        tensor = tf.bitcast(tensor, tf.uint16 if tensor.dtype.size == 2 else tf.uint8)
    view = memoryview(tensor)
    return view.cast("B") if view.nbytes else memoryview(b"")


def is_same_memory(left: Tensor, right: Tensor) -> bool:
    """Whether two contents of one variable are at one place, so that nothing was assigned between.

    False says nothing: some variables are copied whenever they are read.
    """
    views = [np.frombuffer(memory_of(tensor), np.uint8) for tensor in (left, right)]
    return views[0].ctypes.data == views[1].ctypes.data
