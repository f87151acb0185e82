"""Every layer's rule against a per-example loop; a new rule joins by one line in CASES."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_modelsec as ms
from keras_modelsec._core.batch import Batch
from keras_modelsec.privacy.clipping import clipped_gradients
from keras_modelsec.privacy.layer_rules import Conv2DRule, DenseRule, FallbackRule, find_rule
from keras_modelsec.privacy.layer_rules.linear import linear_squared_norms_and_sums

layers = keras.layers
VECTOR, SEQUENCE, IMAGE, TOKENS = (9,), (6, 8), (9, 8, 3), (6,)


def _built_prelu(width):
    layer = layers.PReLU()
    layer.build((None, width))
    return layer


CASES = {
    "dense": (VECTOR, lambda: [layers.Dense(5, activation="relu")]),
    "dense_without_bias": (VECTOR, lambda: [layers.Dense(5, use_bias=False)]),
    "dense_frozen_bias_of_next": (VECTOR, lambda: [layers.Dense(5), layers.Dense(4)]),
    "dense_activation_with_weights": (
        VECTOR,
        lambda: [layers.Dense(5, activation=_built_prelu(5))],
    ),
    "dense_on_sequence": (SEQUENCE, lambda: [layers.Dense(5, activation="tanh")]),
    "dense_on_sequence_by_gram": (SEQUENCE, lambda: [layers.Dense(30)]),
    "dense_on_image": (IMAGE, lambda: [layers.Dense(4)]),
    "conv2d": (IMAGE, lambda: [layers.Conv2D(4, 3, activation="relu")]),
    "conv2d_same_strided": (IMAGE, lambda: [layers.Conv2D(4, (4, 3), strides=2, padding="same")]),
    "conv2d_dilated": (IMAGE, lambda: [layers.Conv2D(4, 3, dilation_rate=(2, 1), use_bias=False)]),
    "conv2d_one_by_one": (IMAGE, lambda: [layers.Conv2D(4, 1)]),
    "conv2d_gathered": (
        IMAGE,
        lambda: [layers.Conv2D(16, 1), layers.Conv2D(5, (3, 2), strides=(2, 1), padding="same")],
    ),
    "conv2d_gathered_valid_dilated": (
        IMAGE,
        lambda: [layers.Conv2D(16, 1), layers.Conv2D(5, (2, 3), dilation_rate=(3, 2))],
    ),
    "conv2d_grouped": (IMAGE, lambda: [layers.Conv2D(6, 3, groups=3)]),
    "conv2d_activation_layer": (
        IMAGE,
        lambda: [layers.Conv2D(4, 3, activation=layers.LeakyReLU())],
    ),
    "conv1d": (SEQUENCE, lambda: [layers.Conv1D(5, 3)]),
    "depthwise": (IMAGE, lambda: [layers.DepthwiseConv2D(3)]),
    "transposed": (IMAGE, lambda: [layers.Conv2DTranspose(3, 2)]),
    "layer_normalization": (SEQUENCE, lambda: [layers.LayerNormalization()]),
    "group_normalization": (SEQUENCE, lambda: [layers.GroupNormalization(2)]),
    "einsum_dense": (
        SEQUENCE,
        lambda: [layers.EinsumDense("abc,cd->abd", output_shape=(6, 5), bias_axes="d")],
    ),
    "embedding": (TOKENS, lambda: [layers.Embedding(11, 5)]),
    "masked_lstm": (TOKENS, lambda: [layers.Embedding(11, 5, mask_zero=True), layers.LSTM(4)]),
    "gru": (SEQUENCE, lambda: [layers.GRU(4, return_sequences=True)]),
    "bidirectional": (SEQUENCE, lambda: [layers.Bidirectional(layers.SimpleRNN(3))]),
    "time_distributed": (SEQUENCE, lambda: [layers.TimeDistributed(layers.Dense(3))]),
    "prelu": (IMAGE, lambda: [layers.PReLU()]),
    "nested_model": (
        VECTOR,
        lambda: [keras.Sequential([layers.Dense(5), layers.Dense(4, activation="relu")])],
    ),
}
SLOW = {"masked_lstm", "gru", "bidirectional", "depthwise", "transposed", "conv2d_grouped"}


def _examples(shape, count=5):
    generator = np.random.default_rng(0)
    if shape == TOKENS:
        return generator.integers(0, 11, (count, *shape))
    return generator.normal(size=(count, *shape)).astype("float32")


def _classifier(shape, hidden):
    inputs = keras.Input(shape, dtype="int32" if shape == TOKENS else "float32")
    x = inputs
    for layer in hidden:
        x = layer(x)
    outputs = layers.Dense(3)(layers.Flatten()(x))
    model = ms.SecureModel(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _assert_equals_loop(model, x, y, loop):
    l2_norm_clip = float(np.median(loop.norms))
    compiled = tf.function(
        lambda x, y: clipped_gradients(model, Batch(x, y), l2_norm_clip)[1].sums, autograph=False
    )
    scale = max(np.abs(part).max() for part in loop.clipped_sum(l2_norm_clip))
    for expected, actual in zip(
        loop.clipped_sum(l2_norm_clip), compiled(tf.constant(x), tf.constant(y)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
@pytest.mark.filterwarnings("ignore:Converting sparse IndexedSlices")
def test_clipped_sum_equals_per_example_loop(name, per_example_loop):
    shape, build = CASES[name]
    x, y = _examples(shape), np.array([0, 1, 2, 1, 0])
    model = _classifier(shape, build())
    _assert_equals_loop(model, x, y, per_example_loop(model, x, y))


def test_attention_block_equals_per_example_loop(per_example_loop):
    inputs = keras.Input(TOKENS, dtype="int32")
    x = layers.Embedding(11, 8)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    model = ms.SecureModel(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = _examples(TOKENS), np.array([0, 1, 2, 1, 0])
    _assert_equals_loop(model, x, y, per_example_loop(model, x, y))


def test_layer_called_twice_equals_per_example_loop(per_example_loop):
    shared, convolution = layers.Dense(9, activation="tanh"), layers.Conv2D(2, 2)
    inputs = keras.Input(VECTOR)
    image = layers.Reshape((3, 3, 1))(shared(shared(inputs)))
    padded = layers.ZeroPadding2D(1)(image)
    x = layers.Concatenate()([layers.Flatten()(convolution(i)) for i in (image, padded)])
    model = ms.SecureModel(inputs, layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = _examples(VECTOR), np.array([0, 1, 2, 1, 0])
    _assert_equals_loop(model, x, y, per_example_loop(model, x, y))


def test_low_rank_adapter_counts_only_the_weights_that_train(per_example_loop):
    hidden = layers.Dense(5)
    model = _classifier(VECTOR, [hidden])
    hidden.enable_lora(2)
    hidden.lora_kernel_b.assign(np.ones(hidden.lora_kernel_b.shape))
    x, y = _examples(VECTOR), np.array([0, 1, 2, 1, 0])
    assert isinstance(find_rule(hidden, FallbackRule()), FallbackRule)
    _assert_equals_loop(model, x, y, per_example_loop(model, x, y))


def test_frozen_weights_do_not_count(per_example_loop):
    frozen, trained = layers.Dense(5), layers.Dense(4)
    model = _classifier(VECTOR, [frozen, trained])
    frozen.trainable = False
    trained.bias.trainable = False
    x, y = _examples(VECTOR), np.array([0, 1, 2, 1, 0])
    _assert_equals_loop(model, x, y, per_example_loop(model, x, y))


def test_subclass_with_its_own_call_does_not_inherit_the_rule():
    class Doubled(layers.Dense):
        def call(self, inputs):
            return super().call(2 * inputs)

    layer = Doubled(2)
    layer.build((None, 3))
    assert isinstance(find_rule(layer, FallbackRule()), FallbackRule)


def test_dense_and_conv2d_have_rules_of_their_own():
    dense, convolution = layers.Dense(2), layers.Conv2D(2, 1)
    dense.build((None, 3))
    convolution.build((None, 3, 3, 1))
    assert isinstance(find_rule(dense, FallbackRule()), DenseRule)
    assert isinstance(find_rule(convolution, FallbackRule()), Conv2DRule)


@given(
    data=st.data(),
    positions=st.integers(1, 9),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
)
@settings(deadline=None, max_examples=40)
def test_linear_norms_and_sums_equal_numpy_whichever_way_is_taken(data, positions, rows, columns):
    numbers = st.floats(-4, 4, width=32)
    inputs = data.draw(hnp.arrays("float32", (3, positions, rows), elements=numbers))
    gradients = data.draw(hnp.arrays("float32", (3, positions, columns), elements=numbers))
    weights = np.array([1.0, 0.25, 0.0], "float32")
    norms, sums = linear_squared_norms_and_sums(tf.constant(inputs), tf.constant(gradients))
    expected = np.einsum("btk,btp->bkp", inputs.astype("float64"), gradients.astype("float64"))
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(norms, (expected**2).sum((1, 2)), rtol=1e-4, atol=1e-4 * scale**2)
    np.testing.assert_allclose(
        sums(tf.constant(weights), None), np.tensordot(weights, expected, 1), atol=1e-4 * scale
    )


def test_registering_something_else_than_a_layer_is_refused():
    with pytest.raises(TypeError, match=r"keras\.Layer class"):
        ms.privacy.register_layer_rule(int, DenseRule())
    with pytest.raises(TypeError, match="LayerRule instance"):
        ms.privacy.register_layer_rule(layers.Dense, DenseRule)


class _Counting(keras.layers.Layer):
    """Owns weights, and counts its calls in a variable."""

    def __init__(self, make):
        super().__init__()
        self.calls = make()

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * self.gain


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: keras.layers.SpectralNormalization(keras.layers.Dense(5)), "must not update"),
        (
            lambda: _Counting(lambda: keras.Variable(0.0, trainable=False)),
            "must not update",
        ),
        (lambda: _Counting(lambda: tf.Variable(0.0, trainable=False)), "must not update"),
    ],
    ids=["spectral_normalization", "keras_variable", "tf_variable"],
)
def test_layer_that_would_update_its_state_for_each_example_is_refused(
    private_model, tiny_data, layer, why
):
    model = private_model(layers=[layer(), keras.layers.Dense(3)])
    with pytest.raises(ms.errors.UnsupportedModelError, match=why):
        model.fit(*tiny_data, batch_size=12, verbose=0)
