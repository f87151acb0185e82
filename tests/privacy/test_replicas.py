"""What private training does where several replicas make one noisy step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError

X, Y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")


@pytest.fixture
def model(mirrored_strategy):
    with mirrored_strategy.scope():
        inputs = keras.Input((3,))
        model = ms.SecureModel(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
        model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), "mse")
    return model


def _train_on_batch(model):
    model.train_on_batch(X, Y)


def _train_on_batch_in_a_callback(model):
    class Trains(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.train_on_batch(X, Y)

    model.fit(X, Y, verbose=0, callbacks=[Trains()])


def _run(model):
    model.distribute_strategy.run(model.train_step, args=((tf.constant(X), tf.constant(Y)),))


def _run_compiled(model):
    tf.function(lambda: _run(model), autograph=False)()


OUTSIDE = [_train_on_batch, _train_on_batch_in_a_callback, _run, _run_compiled]


@pytest.mark.parametrize("train", OUTSIDE)
def test_steps_that_may_give_each_replica_the_same_examples_are_refused(model, train):
    with pytest.raises(NotPrivateError, match="by `fit` only"):
        train(model)


def test_batches_made_for_each_replica_are_refused(model):
    def make(_):
        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()

    data = model.distribute_strategy.distribute_datasets_from_function(make)
    before = model.get_weights()
    with pytest.raises(NotPrivateError, match="for each replica"):
        model.fit(data, steps_per_epoch=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(before, model.get_weights())


def test_data_that_tensorflow_deals_out_train(model):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    dealt = model.distribute_strategy.experimental_distribute_dataset(data)
    model.fit(dealt, shuffle=False, verbose=0)
    assert model.optimizer.release_count == 1


def test_other_strategies_are_refused(private_model, tiny_data):
    model = private_model()
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"], "CPU:0")
    with strategy.scope(), pytest.raises(NotPrivateError, match="one device"):
        model.train_step(tuple(map(tf.constant, tiny_data)))


def test_weights_of_few_digits_are_rounded_after_the_replicas_are_added_up(mirrored_strategy):
    """259 and 258 are 517, and 516 in bfloat16; 259 alone is 260, which would make it 520."""
    with mirrored_strategy.scope():
        inputs = keras.Input((1,))
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="bfloat16")
        model = ms.SecureModel(inputs, layer(inputs))
        sgd = keras.optimizers.SGD(1.0)
        model.compile(
            ms.DPOptimizer(sgd, l2_norm_clip=1.0, noise_multiplier=0.0, expected_batch_size=1),
            lambda y, y_pred: y * y_pred,
        )
    x, y = np.ones((2, 518, 1), "float32")
    y[-1] = 0.0
    model.fit(x, y, batch_size=518, shuffle=False, verbose=0)
    np.testing.assert_array_equal(np.asarray(layer.kernel, "float32"), [[-516.0]])
