"""The probe's batches: no period, distance or size of the training's batches is left out."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec.defenses import Defense
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy import probe_batches

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(48, 3)).astype("float32")
Y = GENERATOR.normal(size=(48, 1)).astype("float32")


def _apart(distance):
    def mix(x):
        moved = ops.pad(x, [[distance, 0], [0, 0]])[: ops.shape(x)[0]]
        return x + 0.5 * moved

    return mix


def _in_batches_of(size):
    return lambda x: ops.where(ops.shape(x)[0] >= size, x - ops.mean(x, axis=0), x)


def _model(function):
    inputs = keras.Input((3,))
    hidden = keras.layers.Lambda(function)(inputs)
    return _compile(ms.SecureModel(inputs, keras.layers.Dense(1)(hidden)))


def _compile(model, **options):
    optimizer = ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, "mse", **options)
    return model


@pytest.mark.parametrize(
    ("function", "size"),
    [
        pytest.param(lambda x: ops.roll(x, 7, axis=0), 7, id="roll_7"),
        pytest.param(lambda x: ops.roll(x, 18, axis=0), 9, id="roll_18"),
        pytest.param(lambda x: ops.roll(x, 8, axis=0), 13, id="roll_8"),
        pytest.param(_apart(16), 11, id="apart_16"),
        pytest.param(_apart(31), 13, id="apart_31"),
        pytest.param(_in_batches_of(32), 13, id="in_large_batches"),
    ],
)
def test_coupling_behind_a_period_distance_or_size_is_refused(monkeypatch, function, size):
    monkeypatch.setattr(probe_batches, "_SIZES", (size,))
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _model(function).fit(X, Y, batch_size=32, verbose=0)


def test_data_that_do_not_say_their_batch_size_are_probed_with_distant_examples():
    data = tf.data.Dataset.from_generator(
        lambda: iter([(X, Y)]),
        output_signature=(tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1))),
    )
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _model(_apart(30)).fit(data, shuffle=False, verbose=0)


def test_batches_of_a_pipeline_are_probed_at_their_size():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(45).prefetch(1)
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _model(_apart(40)).fit(data, shuffle=False, verbose=0)


def test_larger_batches_are_probed_again():
    model = _model(_in_batches_of(32))
    model.fit(X, Y, batch_size=16, verbose=0)
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        model.fit(X, Y, batch_size=32, verbose=0)


def test_hook_that_knows_the_size_of_a_batch_is_probed_with_that_size():
    class Hooked(ms.SecureModel):
        def prepare_batch(self, batch):
            batch = super().prepare_batch(batch)
            centred = batch.replace(x=batch.x - ops.mean(batch.x, axis=0))
            return centred if batch.x.shape[0] == 24 else batch

    inputs = keras.Input((3,))
    model = _compile(Hooked(inputs, keras.layers.Dense(1)(inputs)))
    with pytest.raises(UnsupportedModelError, match="a hook before the forward pass"):
        model.train_on_batch(X[:24], Y[:24])


def test_defense_that_knows_the_size_of_a_batch_is_probed_with_that_size():
    class Sized(Defense):
        def after_update(self, model, batch, extra, state):
            if batch.x.shape[0] == 24:
                state.assign(ops.mean(batch.x, axis=0))

        def new_state(self, model):
            return keras.Variable("zeros", (3,), trainable=False)

    inputs = keras.Input((3,))
    model = _compile(ms.SecureModel(inputs, keras.layers.Dense(1)(inputs)), adversarial=Sized())
    with pytest.raises(UnsupportedModelError, match="updates from the examples"):
        model.train_on_batch(X[:24], Y[:24])


@pytest.mark.parametrize("size", [2, 3, 7, 9, 11, 13, 32, 37, 256])
def test_masks_keep_some_and_exchange_some(size):
    for mask in probe_batches._masks(size)[:1]:
        assert 0 < mask.sum() < size


@pytest.mark.parametrize("size", [2, 3, 32, 37, 300])
def test_each_two_examples_are_told_apart_in_a_full_batch(size):
    masks = np.array(probe_batches._masks_for_each_pair(size))
    one_kept = (masks[:, :, None] & ~masks[:, None, :]).any(axis=0)
    assert one_kept[~np.eye(size, dtype=bool)].all()


@pytest.mark.parametrize("size", [7, 9, 11, 13, 32, 37])
def test_neighbours_are_apart_in_one_of_the_masks(size):
    kept, also_kept = probe_batches._masks(size)
    for distance in (1, 2):
        together = (kept[distance:] == kept[:-distance]) & (
            also_kept[distance:] == also_kept[:-distance]
        )
        assert not together.any()
