"""What was read of a variable stays, by whichever operation the variable is changed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec._core import backend

SHAPE = (32, 32)
ONES = np.ones(SHAPE, "float32")


def within(function, **options):
    return lambda variable: tf.function(lambda: function(variable), **options)()


def loop(variable):
    def turn(count):
        variable.assign_add(variable * 0 + 1)
        return count + 1

    tf.while_loop(lambda count: count < 3, turn, [0])


CHANGES = {
    "assign": lambda variable: variable.assign(ONES * 5),
    "assign_add": lambda variable: variable.assign_add(ONES),
    "assign_sub in a function": within(lambda variable: variable.assign_sub(ONES)),
    "compiled": within(lambda variable: variable.assign(variable * 2 + 1), jit_compile=True),
    "compiled loop": within(loop, jit_compile=True),
    "loop": within(loop),
    "scatter": lambda variable: variable.value.scatter_nd_update([[3]], tf.ones((1, 32)) * 9),
    "slice": lambda variable: variable.value[3:5].assign(tf.ones((2, 32)) * 9),
    "fused kernel": lambda variable: tf.raw_ops.ResourceApplyGradientDescent(
        var=variable.value.handle, alpha=0.1, delta=ONES
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_is_not_written_over(change):
    variable = keras.Variable(ONES * 3)
    arrays = [backend.array_now(variable), backend.array_now(variable.value)]
    for _ in range(3):
        CHANGES[change](variable)
        assert all(np.array_equal(array, ONES * 3) for array in arrays)
        assert not np.array_equal(backend.array_now(variable), ONES * 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "bool", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_every_type_and_shape_is_what_keras_gives(dtype, shape):
    variable = keras.Variable(np.ones(shape), dtype=dtype)
    ours, theirs = backend.array_now(variable), keras.ops.convert_to_numpy(variable)
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, shape, theirs.tobytes())


def test_texts_and_arrays_are_copied():
    assert backend.array_now(tf.constant(["a"])).tolist() == [b"a"]
    array = np.ones(3)
    now = backend.array_now(array)
    array += 1
    assert now.tolist() == [1, 1, 1]


def test_replicas_variables_are_read_as_keras_reads_them():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        variable = keras.Variable(ONES)
    now = backend.array_now(variable)
    variable.assign_add(ONES)
    assert np.array_equal(now, ONES)
    assert np.array_equal(backend.array_now(variable), keras.ops.convert_to_numpy(variable))
