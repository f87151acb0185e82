"""What is claimed of training data is what the data show."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.privacy.data_source import NOTHING_KNOWN, DataSource, describe

X = np.zeros((12, 2), "float32")
SLICES = tf.data.Dataset.from_tensor_slices(X)
OTHERS = tf.data.Dataset.from_tensor_slices(X + 1)
ONCE = DataSource(once=True, once_a_batch=True, in_passes=True)


class Rows(keras.utils.PyDataset):
    def __init__(self, length):
        super().__init__()
        self.length = length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        return X[:4], X[:4]


@pytest.mark.parametrize(
    "data",
    [
        X,
        {"a": X, "b": [X, X]},
        tf.constant(X),
        Rows(3),
        SLICES.batch(4),
        SLICES.shuffle(12).batch(4, num_parallel_calls=2).prefetch(2),
        SLICES.map(lambda x: x + 1, num_parallel_calls=2).cache().take(8).skip(1).shard(2, 0),
        tf.data.Dataset.zip((SLICES, OTHERS)).padded_batch(4, ((2,), (2,))),
        SLICES.concatenate(OTHERS).batch(4),
        SLICES.batch(4).unbatch().filter(lambda x: True).with_options(tf.data.Options()),
        tf.data.TextLineDataset(["a"]).batch(2),
        tf.data.TFRecordDataset(["a"], num_parallel_reads=2).batch(2),
    ],
)
def test_data_without_repetition_hold_each_example_once(data):
    assert describe(data) == ONCE


@pytest.mark.parametrize(
    "data",
    [
        None,
        iter([X]),
        Rows(None),
        (batch for batch in [X]),
        3.0,
        object(),
        tf.data.Dataset.from_generator(lambda: iter([X]), output_signature=tf.TensorSpec((12, 2))),
        SLICES.flat_map(lambda x: tf.data.Dataset.from_tensors(x).repeat(3)).batch(4),
        SLICES.interleave(lambda x: tf.data.Dataset.from_tensors(x)).batch(4),
        tf.data.Dataset.sample_from_datasets([SLICES, OTHERS]).batch(4),
        SLICES.batch(4).repeat(2),
    ],
)
def test_of_other_data_nothing_is_known(data):
    assert describe(data) == NOTHING_KNOWN


@pytest.mark.parametrize(
    ("data", "once_a_batch", "in_passes"),
    [
        (SLICES.repeat(2).batch(4), False, True),
        (SLICES.shuffle(12).repeat().map(lambda x: x, num_parallel_calls=2).batch(4), False, True),
        (SLICES.repeat(2).shuffle(12).batch(4), False, False),
        (SLICES.repeat(2).batch(4).shuffle(3), False, False),
        (SLICES.batch(4).repeat().shuffle(3), True, False),
        (SLICES.repeat().interleave(lambda x: SLICES).batch(4), False, False),
        (
            SLICES.repeat().map(lambda x: x, num_parallel_calls=2, deterministic=False).batch(4),
            False,
            False,
        ),
        (SLICES.apply(tf.data.experimental.shuffle_and_repeat(12, 2)).batch(4), False, True),
        (tf.data.Dataset.zip((SLICES, OTHERS.repeat())).batch(4), False, False),
        (tf.data.Dataset.zip((SLICES, SLICES.skip(1))).batch(4), False, False),
        (SLICES.concatenate(SLICES).batch(4), False, False),
        (SLICES.batch(4).concatenate(SLICES.batch(4)), True, False),
        (tf.data.Dataset.sample_from_datasets([SLICES, SLICES.take(3)]).batch(4), False, False),
        (SLICES.repeat().window(4).flat_map(lambda w: w.batch(4)), False, False),
        (SLICES.repeat().filter(lambda x: True).batch(4), False, False),
        (SLICES.repeat().skip(3).batch(4), False, False),
    ],
)
def test_repetition_is_seen_where_it_stands(data, once_a_batch, in_passes):
    assert describe(data) == DataSource(False, once_a_batch, in_passes)


def test_option_that_lets_parallel_steps_reorder_is_seen():
    options = tf.data.Options()
    options.deterministic = False
    data = SLICES.repeat().map(lambda x: x, num_parallel_calls=2).batch(4).with_options(options)
    assert not describe(data).in_passes


def test_distributed_data_are_seen_through(mirrored_strategy):
    repeated = mirrored_strategy.experimental_distribute_dataset(SLICES.repeat().batch(4))
    assert not describe(repeated).once_a_batch
    assert describe(mirrored_strategy.experimental_distribute_dataset(SLICES.batch(4))) == ONCE


class Reshuffled(Rows):
    def on_epoch_end(self):
        pass


@pytest.mark.parametrize("steps", [None, 1, 7])
@pytest.mark.parametrize("kind", [Rows, Reshuffled])
def test_data_changed_between_epochs_hold_an_example_once_only_where_an_epoch_is_a_pass(
    kind, steps
):
    data = kind(7)
    once = kind is Rows or steps in (None, 7)
    assert describe(data, steps).once is once
