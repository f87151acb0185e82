"""Layers inside of loops and branches: refused by name, or exact; never without training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec.errors import UnsupportedModelError

layers = keras.layers
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(5, 4)).astype("float32")
Y = np.array([0, 1, 2, 0, 1])


def _fori_loop(dense, x):
    return ops.fori_loop(0, 3, lambda _, v: dense(v), x)


def _while_loop(dense, x):
    return ops.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, dense(v)), (0, x))[1]


def _tf_while_loop(dense, x):
    return tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, dense(v)), (0, x))[1]


def _scan(dense, x):
    return ops.scan(lambda carry, _: (dense(carry),) * 2, x, ops.zeros((3,)))[0]


def _associative_scan(dense, x):
    parts = ops.stack([x, x])
    return ops.associative_scan(lambda a, b: a + ops.reshape(b, ops.shape(b)), parts)[1] + dense(x)


def _map(dense, x):
    return ops.map(lambda row: dense(row[None])[0], x)


def _tf_map(dense, x):
    return tf.map_fn(lambda row: dense(row[None])[0], x)


def _vectorized_map(dense, x):
    return ops.vectorized_map(lambda row: dense(row[None])[0], x)


def _tf_vectorized_map(dense, x):
    return tf.vectorized_map(lambda row: dense(row[None])[0], x)


def _cond(dense, x):
    return ops.cond(ops.size(x) > 0, lambda: dense(x), lambda: x)


def _tf_cond(dense, x):
    return tf.cond(tf.size(x) > 0, lambda: dense(x), lambda: x)


def _switch(dense, x):
    return ops.switch(ops.minimum(ops.size(x), 0), [dense, lambda v: v], x)


def _tf_switch(dense, x):
    return tf.switch_case(tf.minimum(tf.size(x), 0), [lambda: dense(x), lambda: x])


def _compiled(dense, x):
    return tf.function(dense)(x)


def _compiled_by_xla(dense, x):
    return tf.function(dense, jit_compile=True)(x)


REFUSED = [
    *(_fori_loop, _while_loop, _tf_while_loop, _scan, _map, _tf_map),
    *(_vectorized_map, _tf_vectorized_map, _cond, _tf_cond, _switch, _tf_switch),
    *(_compiled, _compiled_by_xla),
]


class Looping(layers.Layer):
    """Calls its layer as `around` says; built beforehand, for loops must not make variables."""

    def __init__(self, around, **options):
        super().__init__(**options)
        self.around = around
        self.dense = layers.Dense(4, activation="tanh", name="inner")
        self.dense.build((None, 4))

    def call(self, x):
        return ops.reshape(self.around(self.dense, x), (-1, 4))


class LoopingAsOneUnit(Looping):
    """The same, registered as one unit."""


ms.privacy.register_layer_rule(LoopingAsOneUnit, ms.privacy.FallbackRule())


def _model(layer, l2_norm_clip=1.0, noise_multiplier=1.0):
    inputs = keras.Input((4,))
    model = ms.SecureModel(inputs, layers.Dense(3)(layer(inputs)))
    optimizer = ms.DPOptimizer(keras.optimizers.SGD(1.0), l2_norm_clip, noise_multiplier)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("around", REFUSED, ids=lambda f: f.__name__)
def test_layer_called_in_an_inner_function_is_refused(around):
    with pytest.raises(
        UnsupportedModelError, match=r"'inner'.*(loop, a branch|batch as the first)"
    ):
        _model(Looping(around)).fit(X, Y, verbose=0)


def test_layer_beside_a_loop_trains():
    _model(Looping(_associative_scan)).fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "around", [_fori_loop, _while_loop, _tf_while_loop, _map, _tf_map, _cond, _compiled]
)
def test_layer_that_owns_the_loop_equals_per_example_loop(around, per_example_loop):
    model = _model(LoopingAsOneUnit(around), l2_norm_clip=0.5, noise_multiplier=0.0)
    before = [np.asarray(v) for v in model.trainable_variables]
    loop = per_example_loop(model, X, Y)
    model.fit(X, Y, verbose=0)
    for start, variable, total in zip(
        before, model.trainable_variables, loop.clipped_sum(0.5), strict=True
    ):
        np.testing.assert_allclose(
            start - np.asarray(variable), total / len(X), rtol=1e-4, atol=1e-6
        )


def test_loop_that_cannot_be_differentiated_for_many_examples_at_once_is_refused():
    with pytest.raises(UnsupportedModelError, match="many examples at once"):
        _model(LoopingAsOneUnit(_scan)).fit(X, Y, verbose=0)


def test_weight_of_a_layer_used_in_a_loop_outside_of_its_call_is_refused():
    class Reads(Looping):
        def call(self, x):
            x = self.dense(x)
            return ops.fori_loop(0, 2, lambda _, v: ops.matmul(v, self.dense.kernel), x)

    with pytest.raises(UnsupportedModelError, match="add up to its gradient"):
        _model(Reads(None)).fit(X, Y, verbose=0)


def test_layer_in_a_loop_run_step_by_step_is_refused_too():
    model = _model(Looping(_while_loop))
    model.run_eagerly = True
    with pytest.raises(UnsupportedModelError, match="loop, a branch"):
        model.fit(X, Y, verbose=0)
