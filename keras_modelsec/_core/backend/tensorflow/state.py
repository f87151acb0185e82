"""What running a model changes beside its outputs, put back."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf
from tensorflow.python.eager import context as eager_context

from keras_modelsec._core.backend.tensorflow.functions import is_equal_content
from keras_modelsec._core.backend.tensorflow.variables import variable_contents


@contextlib.contextmanager
def contents_put_back(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Gives variables at the end what they held at the beginning; copies nothing on the CPU."""
    held = [(variable, variable_contents(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, before in held:
            now = variable_contents(variable)
            if not all(map(is_equal_content, before, now)):
                _assign(variable, before)


def _assign(variable: keras.Variable, contents: list[tf.Tensor]) -> None:
    value = variable.value
    copies = value.values if isinstance(value, tf.distribute.DistributedValues) else (value,)
    if len(copies) != len(contents):  # what replicas keep apart and read together
        value.assign(contents[0])
        return
    for copy, content in zip(copies, contents, strict=True):
        tf.raw_ops.AssignVariableOp(resource=copy.handle, value=content)


@contextlib.contextmanager
def own_eager_randomness() -> Iterator[None]:
    """Keeps eager operations such as `tf.random.normal` from drawing what others would draw next.

    An operation that is given a seed of its own goes on counting all the same.
    """
    context = eager_context.context()
    stream = getattr(context, "_rng", None)  # None before tf.random.set_seed
    if stream is None:
        yield
        return
    twin = random.Random()
    twin.setstate(stream.getstate())
    context._rng = random.Random(twin.getrandbits(64))
    try:
        yield
    finally:
        context._rng = stream
