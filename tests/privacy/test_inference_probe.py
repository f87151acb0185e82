"""What the model does in inference: it keeps nothing of the examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec.errors import UnsupportedModelError

X, Y = np.random.default_rng(0).normal(size=(2, 8, 3)).astype("float32")


class _InInference(keras.layers.Layer):
    def build(self, shape):
        self.kept = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if not training:
            self.note(x)
        return x


class KeepsAnExample(_InInference):
    def note(self, x):
        self.kept.assign(x[0])


class KeepsAMaximum(_InInference):
    def note(self, x):
        self.kept.assign(ops.maximum(self.kept, ops.max(x, axis=0)))


class HandsToPython(_InInference):
    def note(self, x):
        tf.py_function(lambda value: None, [x], [])


class Counts(_InInference):
    def note(self, x):
        self.kept.assign_add(ops.ones_like(self.kept))


def _fit(layer):
    inputs = keras.Input((3,))
    model = ms.SecureModel(inputs, keras.layers.Dense(3)(layer(inputs)))
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), "mse")
    model.fit(X, Y, validation_split=0.25, verbose=0)
    return model


@pytest.mark.parametrize("kind", [KeepsAnExample, KeepsAMaximum])
def test_layer_that_keeps_what_evaluation_gives_it_is_refused(kind):
    with pytest.raises(UnsupportedModelError, match="in inference"):
        _fit(kind())


def test_layer_that_hands_what_evaluation_gives_it_to_python_is_refused():
    with pytest.raises(UnsupportedModelError, match="hand them to Python"):
        _fit(HandsToPython())


def test_layer_that_counts_in_inference_trains():
    assert _fit(Counts()).layers[1].kept.numpy().any()


class CountsValues(_InInference):
    """As a guard does: one whole number, in no file."""

    unsaved_counters = property(lambda self: [self.kept])

    def build(self, shape):
        self.kept = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def note(self, x):
        self.kept.assign_add(ops.cast(ops.sum(ops.abs(x)) * 1000, "int32"))

    def save_own_variables(self, store):
        pass


class CountsAndSaves(CountsValues):
    save_own_variables = keras.layers.Layer.save_own_variables


class CallsAnExampleACount(KeepsAMaximum):
    unsaved_counters = CountsValues.unsaved_counters
    save_own_variables = CountsValues.save_own_variables


def test_what_a_guard_counts_is_in_no_file_and_trains():
    assert _fit(CountsValues()).layers[1].kept.numpy()
    model = _fit(ms.layers.ActivationGuard(-0.1, 0.1))
    assert model.layers[1].report().violations


@pytest.mark.parametrize("kind", [CountsAndSaves, CallsAnExampleACount])
def test_layer_is_not_believed_that_what_it_keeps_is_an_unsaved_count(kind):
    with pytest.raises(UnsupportedModelError, match="in inference"):
        _fit(kind())


class FailsOnWhatIsMadeUp(KeepsAnExample):
    def note(self, x):
        with tf.control_dependencies([tf.debugging.assert_greater(x, 1e6)]):
            super().note(x)


def test_model_whose_inference_cannot_be_looked_at_is_refused():
    with pytest.raises(UnsupportedModelError, match="no inference came"):
        _fit(FailsOnWhatIsMadeUp())
