"""What would break the bound is refused, with the layer's name and the remedy."""

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import UnsupportedModelError

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _compile(model, loss=LOSS, **options):
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), loss, **options)
    return model


def _fit(model, width=4):
    x = np.random.default_rng(0).normal(size=(6, width)).astype("float32")
    model.fit(x, np.array([0, 1, 2, 0, 1, 2]), batch_size=3, verbose=0)


def _functional(*hidden, shape=(4,)):
    inputs = keras.Input(shape)
    x = inputs
    for layer in hidden:
        x = layer(x)
    return ms.SecureModel(inputs, layers.Dense(3)(x))


def test_batch_normalization_is_refused_at_compile():
    with pytest.raises(UnsupportedModelError, match=r"'norm'.*GroupNormalization"):
        _compile(_functional(layers.BatchNormalization(name="norm")))


def test_frozen_batch_normalization_is_welcome():
    _fit(_compile(_functional(layers.BatchNormalization(trainable=False))))


def test_batch_normalization_inside_a_nested_model_is_refused():
    nested = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="deep")])
    with pytest.raises(UnsupportedModelError, match="'deep'"):
        _compile(_functional(nested))


def test_activity_regularizer_is_refused():
    with pytest.raises(UnsupportedModelError, match="activity regularizer"):
        _compile(_functional(layers.Dense(4, activity_regularizer="l2")))


def test_stateful_rnn_is_refused():
    inputs = keras.Input((3, 2), batch_size=2)
    outputs = layers.Dense(3)(layers.LSTM(2, stateful=True)(inputs))
    with pytest.raises(UnsupportedModelError, match="stateful"):
        _compile(ms.SecureModel(inputs, outputs))


def test_randomness_inside_a_recomputed_layer_is_refused():
    inputs = keras.Input((3, 2))
    outputs = layers.Dense(3)(layers.LSTM(2, recurrent_dropout=0.5)(inputs))
    with pytest.raises(UnsupportedModelError, match=r"recurrent_dropout=0\.5"):
        _compile(ms.SecureModel(inputs, outputs))


def test_weight_tied_across_layers_is_refused():
    class Tied(layers.Layer):
        def __init__(self, source, **kwargs):
            super().__init__(**kwargs)
            self.weight = source

        def call(self, x):
            return keras.ops.matmul(x, self.weight)

    first = layers.Dense(4)
    first.build((None, 4))
    with pytest.raises(UnsupportedModelError, match="tied between layers"):
        _compile(_functional(first, Tied(first.kernel)))


def test_weights_owned_by_the_model_are_refused():
    class Net(ms.DPMixin, keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(3,), initializer="ones")
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x) * self.scale

    with pytest.raises(UnsupportedModelError, match="weights of its own"):
        _fit(_compile(Net()))


def test_loss_added_inside_a_layer_is_refused():
    class Adds(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x))
            return x

    with pytest.raises(UnsupportedModelError, match="add_loss"):
        _fit(_compile(_functional(Adds())))


def test_overridden_compute_loss_is_refused():
    class Net(ms.DPMixin, keras.Model):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    inputs = keras.Input((4,))
    with pytest.raises(UnsupportedModelError, match="compute_loss"):
        _compile(Net(inputs, layers.Dense(3)(inputs)))


def test_scalar_loss_is_refused():
    def scalar(y_true, y_pred):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y_true, y_pred))

    with pytest.raises(UnsupportedModelError, match="one value per example"):
        _fit(_compile(_functional(), loss=scalar))


def test_weighted_mean_reduction_is_refused():
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
    with pytest.raises(UnsupportedModelError, match="reduction"):
        _fit(_compile(_functional(), loss=loss))


def test_loss_that_ignores_a_class_is_refused():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    with pytest.raises(UnsupportedModelError, match="ignore_class"):
        _fit(_compile(_functional(), loss=loss))


class EveryPair(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.square(keras.ops.expand_dims(y_true, 0) - y_pred[:, :1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, p: keras.ops.sqrt(keras.ops.mean(keras.ops.square(p), axis=0)), "first axis"),
        (EveryPair(), "every example against every other"),
    ],
    ids=["averaged_over_the_batch", "broadcast"],
)
def test_loss_that_is_not_one_value_per_example_is_refused(loss, message):
    with pytest.raises(UnsupportedModelError, match=message):
        _fit(_compile(_functional(), loss=loss))


def test_state_kept_from_the_data_is_refused():
    class Remembers(layers.Layer):
        def build(self, shape):
            self.mean = self.add_weight(shape=(shape[-1],), trainable=False)

        def call(self, x, training=False):
            if training:
                self.mean.assign(keras.ops.mean(x, axis=0))
            return x

    with pytest.raises(UnsupportedModelError, match="updates from the examples"):
        _fit(_compile(_functional(Remembers())))


def test_state_that_does_not_come_from_the_data_is_welcome_and_undisturbed():
    class Counts(layers.Layer):
        def build(self, shape):
            self.steps = self.add_weight(shape=(), trainable=False, initializer="zeros")

        def call(self, x):
            self.steps.assign_add(1.0)
            return x

    model = _compile(_functional(Counts()))
    _fit(model)
    assert float(model.non_trainable_weights[0]) == 2


class TiedInCall(ms.DPMixin, keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, use_bias=False)

    def call(self, x):
        return keras.ops.matmul(self.dense(x), keras.ops.transpose(self.dense.kernel))


class Recomputed(ms.DPMixin, keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.dense = layers.Dense(4), layers.Dense(3)

    def call(self, x):
        return self.dense(keras.remat(self.hidden)(x))


class Noisy(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(4,), initializer="ones")
        self.noise = layers.GaussianNoise(1.0)

    def call(self, x, training=False):
        return self.noise(x, training=training) * self.scale


@pytest.mark.parametrize(
    "build",
    [TiedInCall, Recomputed, lambda: _functional(Noisy())],
    ids=["weight_read_elsewhere", "remat", "random_inside"],
)
def test_gradients_that_would_be_silently_wrong_are_refused(build):
    with pytest.raises(UnsupportedModelError, match="add up to its gradient"):
        _fit(_compile(build()))


def test_loss_that_no_weight_reaches_is_refused():
    class Stops(layers.Layer):
        def call(self, x):
            return keras.ops.stop_gradient(x)

    inputs = keras.Input((4,))
    model = ms.SecureModel(inputs, Stops()(layers.Dense(3)(inputs)))
    with pytest.raises(UnsupportedModelError, match="no gradient reaches"):
        _fit(_compile(model))


@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
def test_masked_output_is_refused():
    inputs = keras.Input((3,), dtype="int32")
    outputs = layers.Dense(3)(layers.Embedding(7, 4, mask_zero=True)(inputs))
    model = _compile(ms.SecureModel(inputs, outputs))
    with pytest.raises(UnsupportedModelError, match="mask"):
        model.fit(np.ones((4, 3), int), np.ones((4, 3), int), batch_size=2, verbose=0)


def test_layer_without_batch_axis_is_refused_with_the_remedy():
    class Positions(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.table = layers.Embedding(4, 1)

        def call(self, x):
            return x + keras.ops.squeeze(self.table(keras.ops.arange(4)), -1)

    with pytest.raises(UnsupportedModelError, match="register_layer_rule"):
        _fit(_compile(_functional(Positions())))
    ms.privacy.register_layer_rule(Positions, ms.privacy.FallbackRule())
    _fit(_compile(_functional(Positions())))


def test_batch_folded_into_positions_is_refused():
    class Folded(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)

        def call(self, x):
            return keras.ops.reshape(self.dense(keras.ops.reshape(x, (-1, 2))), (-1, 4))

    # Two operations fail, and which of them TensorFlow names depends on which runs first.
    either = r"batch as the first|Matrix size-incompatible"
    with pytest.raises(UnsupportedModelError, match=either):
        _fit(_compile(_functional(Folded())))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - keras.ops.mean(x, axis=0, keepdims=True),
        lambda x: keras.ops.softmax(x, axis=0),
        lambda x: keras.ops.flip(x, axis=0),
        lambda x: x + keras.ops.roll(x, 2, axis=0),
    ],
    ids=["centred", "softmax_over_batch", "flipped", "shifted_by_two"],
)
def test_custom_layer_that_mixes_examples_is_found_by_the_probe(mix):
    class Mixes(layers.Layer):
        def call(self, x, training=False):
            return mix(x) if training else x

    with pytest.raises(UnsupportedModelError, match="after layer 'before'"):
        _fit(_compile(_functional(layers.Dense(4, name="before"), Mixes())))
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(_functional(Mixes())))


def test_wrapped_loss_scale_optimizer_is_refused():
    optimizer = ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0)
    with pytest.raises(ms.errors.NotPrivateError, match="must not be wrapped"):
        _functional().compile(keras.optimizers.LossScaleOptimizer(optimizer), LOSS)
