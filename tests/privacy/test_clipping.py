"""The clipped sum as a whole: bounds, weights, odd examples, several outputs, mixed precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec._core.batch import Batch
from keras_modelsec.privacy.clipping import clipped_gradients
from keras_modelsec.privacy.layer_rules.linear import linear_squared_norms_and_sums

layers = keras.layers


def _sums(model, x, y, sample_weight=None, l2_norm_clip=1.0):
    def run(x, y, sample_weight):
        return clipped_gradients(model, Batch(x, y, sample_weight), l2_norm_clip)[1].sums

    convert = lambda part: keras.tree.map_structure(tf.constant, part)  # noqa: E731
    weight = None if sample_weight is None else tf.constant(sample_weight)
    return tf.function(run, autograph=False)(convert(x), convert(y), weight)


def _norm(sums):
    return np.sqrt(sum(np.sum(np.square(np.asarray(part, "float64"))) for part in sums))


@pytest.mark.parametrize("l2_norm_clip", [1e-3, 0.5, 1e3])
def test_one_example_never_contributes_more_than_the_bound(private_model, tiny_data, l2_norm_clip):
    x, y = tiny_data
    model = private_model(l2_norm_clip=l2_norm_clip)
    for i in range(4):
        sums = _sums(model, 100 * x[i : i + 1], y[i : i + 1], l2_norm_clip=l2_norm_clip)
        assert _norm(sums) <= l2_norm_clip * (1 + 1e-5)


def test_weight_that_is_listed_twice_gets_noise_for_one_sum_alone(private_model, tiny_data):
    model = private_model()

    class Twice(type(model)):
        @property
        def trainable_variables(self):
            return [*super().trainable_variables, *super().trainable_variables]

    count = len(model.trainable_variables)
    model.__class__ = Twice
    sums = _sums(model, *tiny_data)
    assert [part is None for part in sums] == [False] * count + [True] * count


def test_sum_over_a_batch_is_the_sum_of_its_examples(private_model, tiny_data):
    x, y = tiny_data
    model = private_model()
    whole = _sums(model, x, y, l2_norm_clip=0.3)
    parts = [_sums(model, x[i : i + 1], y[i : i + 1], l2_norm_clip=0.3) for i in range(len(x))]
    for k, total in enumerate(whole):
        np.testing.assert_allclose(total, sum(part[k] for part in parts), atol=1e-5)


def test_zero_gradient_stays_zero(private_model, tiny_data):
    x, y = tiny_data
    assert _norm(_sums(private_model(), x, y, sample_weight=np.zeros(len(x), "float32"))) == 0


def test_sample_weights_act_before_clipping(private_model, tiny_data, per_example_loop):
    x, y = tiny_data
    weights = np.linspace(0, 3, len(x)).astype("float32")
    model = private_model()
    loop = per_example_loop(model, x, y, weights)
    clip = float(np.median(loop.norms))
    sums = _sums(model, x, y, weights, clip)
    for expected, actual in zip(loop.clipped_sum(clip), sums, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_example_without_finite_gradient_counts_as_zero(private_model, tiny_data, bad):
    x, y = tiny_data
    model = private_model(layers=[layers.Dense(5, activation="relu"), layers.Dense(3)])
    spoiled = x.copy()
    spoiled[4] = bad
    expected = _sums(model, np.delete(x, 4, 0), np.delete(y, 4))
    for left, right in zip(_sums(model, spoiled, y), expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_non_finite_image_leaves_its_neighbours_alone():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.Flatten()(layers.Conv2D(4, 2)(x))
    model = ms.SecureModel(inputs, layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("float32")
    labels = np.array([0, 1, 2])
    spoiled = images.copy()
    spoiled[1, 2, 2] = np.nan
    expected = _sums(model, images[::2], labels[::2])
    for left, right in zip(_sums(model, spoiled, labels), expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_dict_inputs_and_several_outputs_equal_per_example_loop(per_example_loop):
    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    shared = layers.Concatenate()([layers.Dense(4)(left), layers.Dense(4, "relu")(right)])
    outputs = {
        "kind": layers.Dense(3, name="kind")(shared),
        "size": layers.Dense(1, name="size")(shared),
    }
    model = ms.SecureModel({"left": left, "right": right}, outputs)
    model.compile(
        "sgd",
        loss={
            "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "size": "mse",
        },
        loss_weights={"kind": 1.0, "size": 0.3},
    )
    generator = np.random.default_rng(0)
    x = {
        name: generator.normal(size=(6, n)).astype("float32")
        for name, n in (("left", 3), ("right", 4))
    }
    y = {
        "kind": generator.integers(0, 3, 6),
        "size": generator.normal(size=(6, 1)).astype("float32"),
    }
    loop = per_example_loop(model, x, y)
    clip = float(np.median(loop.norms))
    sums = _sums(model, x, y, l2_norm_clip=clip)
    for expected, actual in zip(loop.clipped_sum(clip), sums, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_summed_loss_equals_averaged_loss(tiny_data):
    x, y = tiny_data
    inputs = keras.Input((4,))
    model = ms.SecureModel(inputs, layers.Dense(3)(inputs))
    results = []
    for reduction in ("sum_over_batch_size", "sum"):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        model.compile("sgd", loss)
        results.append(_sums(model, x, y))
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_close_to_float32(tiny_data, policy):
    x, y = tiny_data
    results, weights = [], None
    for name in ("float32", policy):
        keras.config.set_dtype_policy(name)
        inputs = keras.Input((4,))
        model = ms.SecureModel(inputs, layers.Dense(3, dtype=name)(layers.Dense(6)(inputs)))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        results.append(_sums(model, x, y, l2_norm_clip=0.5))
    for exact, mixed in zip(*results, strict=True):
        assert mixed.dtype == "float32"
        np.testing.assert_allclose(mixed, exact, atol=0.02 * _norm([exact]) + 0.01)


def test_positions_that_cancel_do_not_escape_clipping():
    generator = np.random.default_rng(0)
    inputs, gradients = generator.normal(size=(2, 1, 1, 64))
    nearly = 1 + 1e-4 * generator.normal(size=(2, 50, 1, 1))
    inputs = np.concatenate([np.tile(inputs, (50, 1, 1)), inputs * nearly[0]], axis=1) * 1e4
    gradients = np.concatenate([np.tile(gradients, (50, 1, 1)), -gradients * nearly[1]], axis=1)
    inputs, gradients = inputs.astype("float32"), gradients.astype("float32")
    norms, _ = linear_squared_norms_and_sums(tf.constant(inputs), tf.constant(gradients))
    exact = np.einsum("btk,btp->bkp", *(a.astype("float64") for a in (inputs, gradients)))
    assert np.all(np.sqrt(norms) >= 0.999 * np.linalg.norm(exact, axis=(1, 2)))


def test_absent_input_is_passed_on_as_it_is(tiny_data):
    class Net(ms.DPMixin, keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs["there"])

    x, y = tiny_data
    model = Net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), loss)
    model.train_on_batch({"absent": None, "there": x}, y)
    assert model.optimizer.release_count == 1
