"""The parts of the backend seam that attacks stand on."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec._core import backend


@pytest.mark.parametrize("times", [0, 1, 2, 10, 11, 50])
@pytest.mark.parametrize("traced", [False, True])
def test_repeat_applies_a_function_that_often(times, traced):
    def run(x):
        return backend.repeat(lambda s: {"n": s["n"] + 1, "x": 0.5 * s["x"]}, x, times)

    start = {"n": tf.constant(0), "x": tf.constant([1.0, 2.0])}
    result = (tf.function(run) if traced else run)(start)
    assert int(result["n"]) == times
    np.testing.assert_allclose(result["x"], np.array([1.0, 2.0]) * 0.5**times)


def test_compiled_for_batches_is_traced_once_for_every_batch_size():
    traces = []

    def run(x, scale):
        traces.append(1)
        return {"a": x["a"] * scale}

    example = {"a": tf.zeros((3, 2))}
    compiled = backend.compile_for_batches(run, [example, tf.constant(1.0)])
    for size in (1, 3, 7):
        assert compiled({"a": tf.ones((size, 2))}, tf.constant(2.0))["a"].shape == (size, 2)
    assert len(traces) == 1


def test_one_function_compiled_for_many_models_is_not_reported_as_compiled_too_often():
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        for factor in range(12):
            compiled = backend.compile_for_batches(lambda x, f=factor: f * x, [tf.zeros((3,))])
            compiled(tf.zeros((3,)))
    finally:
        tf.get_logger().removeHandler(handler)
    assert not [message for message in messages if "retracing" in message]


@pytest.mark.parametrize("traced", [False, True])
def test_require_passes_values_on_or_raises_before_they_are_used(traced):
    variable = tf.Variable(0.0)

    def run(x):
        x = backend.require(tf.reduce_all(x > 0), "all must be positive, found", x, passing=x)
        variable.assign_add(tf.reduce_sum(x))
        return x

    step = tf.function(run) if traced else run
    np.testing.assert_array_equal(step(tf.constant([1.0, 2.0])), [1.0, 2.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="all must be positive"):
        step(tf.constant([-1.0, 2.0]))
    assert float(variable) == 3.0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: p, True),
        (lambda p: tf.cast(tf.cast(p, tf.float16), tf.float32), True),
        (lambda p: tf.reshape(p, (-1, 1, 3)), True),
        (lambda p: p + 0.0, False),
        (lambda p: tf.reshape(p, (-1, 1)), False),
        (lambda p: tf.transpose(p), False),
    ],
)
def test_softmax_is_undone_through_what_keeps_its_meaning(change, found):
    logits = tf.constant(np.random.default_rng(0).normal(size=(5, 3)).astype("float32"))

    @tf.function(autograph=False)
    def run(z):
        undone = backend.undo_activation(change(tf.nn.softmax(z)))
        return tf.zeros(()) if undone is None else undone

    result = run(logits).numpy()
    assert (result.shape != ()) is found
    if found:
        np.testing.assert_allclose(result.reshape(5, 3), logits, rtol=1e-6)


def test_nothing_is_undone_without_a_graph():
    assert backend.undo_activation(tf.nn.softmax(tf.zeros((2, 3)))) is None


def test_variables_are_made_where_the_model_keeps_its_own(mirrored_strategy):
    with mirrored_strategy.scope():
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with backend.variable_scope(model):
        variable = keras.Variable(1.0)
    assert len(variable.value.values) == 2


def test_each_replica_knows_its_index(mirrored_strategy):
    @tf.function
    def run():
        return mirrored_strategy.run(lambda: tf.identity(backend.replica_index()))

    assert [int(value) for value in run().values] == [0, 1]
    assert backend.replica_index() == 0
