"""The parts of the backend seam that attacks stand on."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec._core import backend


@pytest.mark.parametrize("turns", [1, 2, 3, 7, 60])
@pytest.mark.parametrize("times", [0, 1, 2, 10, 11, 12, 50, 53])
@pytest.mark.parametrize("traced", [False, True])
def test_repeat_applies_a_function_that_often(times, turns, traced):
    def halve(s):
        return {"n": s["n"] + 1, "x": 0.5 * s["x"]}

    def run(x):
        return backend.repeat(halve, x, times, turns_a_body=turns)

    start = {"n": tf.constant(0), "x": tf.constant([1.0, 2.0])}
    result = (tf.function(run) if traced else run)(start)
    assert int(result["n"]) == times
    np.testing.assert_allclose(result["x"], np.array([1.0, 2.0]) * 0.5**times)


@pytest.mark.parametrize(("times", "traces"), [(40, 2), (41, 3)])
def test_a_long_loop_is_traced_for_its_body_and_what_is_left_over(times, traces):
    calls = []

    @tf.function
    def run(x):
        return backend.repeat(lambda s: calls.append(1) or s + 1, x, times, turns_a_body=2)

    assert int(run(tf.constant(0))) == int(run(tf.constant(0))) == times
    assert len(calls) == traces


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
        message = "all must be positive, from {} to {} in [0, 1]"
        values = tf.reduce_min(x), tf.reduce_max(x)
        x = backend.require(tf.reduce_all(x > 0), message, *values, passing=x)
        variable.assign_add(tf.reduce_sum(x))
        return x

    step = backend.with_value_errors(tf.function(run)) if traced else run
    np.testing.assert_array_equal(step(tf.constant([1.0, 2.0])), [1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"^all must be positive, from -1(\.0)? to 2(\.0)? in \[0, 1\]$"
    ):
        step(tf.constant([-1.0, 2.0]))
    assert float(variable) == 3.0


def test_graph_says_how_a_tensor_was_made_and_eager_execution_does_not():
    seen = {}

    @tf.function(autograph=False)
    def run(z):
        seen["softmax"], seen["sources"] = backend.made_by(tf.nn.softmax(z))
        return z

    run(tf.zeros((2, 3)))
    assert seen["softmax"] == "Softmax"
    assert [source.shape for source in seen["sources"]] == [(2, 3)]
    assert backend.made_by(tf.nn.softmax(tf.zeros((2, 3)))) == ("", [])


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
