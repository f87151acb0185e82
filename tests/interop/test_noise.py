"""`noise_multiplier` means here what it means in tensorflow-privacy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery
from tensorflow_privacy.privacy.dp_query.normalized_query import NormalizedQuery

import keras_modelsec as ms

pytestmark = pytest.mark.interop

L2_NORM_CLIP, NOISE_MULTIPLIER, BATCH = 0.5, 1.3, 8
SHAPE = (250, 400)


def released_by_fit():
    """The change of 100,000 weights in one step in which every gradient is zero: noise alone."""
    model = ms.SecureModel.from_model(
        keras.Sequential([keras.Input((SHAPE[0],)), keras.layers.Dense(SHAPE[1], use_bias=False)])
    )
    model.compile(
        ms.DPOptimizer(keras.optimizers.SGD(1.0), L2_NORM_CLIP, NOISE_MULTIPLIER, seed=5), "mse"
    )
    before = model.get_weights()[0]
    model.fit(np.zeros((BATCH, SHAPE[0])), np.zeros((BATCH, SHAPE[1])), batch_size=BATCH, verbose=0)
    return before - model.get_weights()[0]


def released_by_query():
    query = NormalizedQuery(
        GaussianSumQuery(L2_NORM_CLIP, stddev=NOISE_MULTIPLIER * L2_NORM_CLIP), denominator=BATCH
    )
    state = query.initial_global_state()
    sample = query.initial_sample_state(tf.zeros(SHAPE))
    noised, _, event = query.get_noised_result(sample, state)
    return np.asarray(noised), event


def test_noise_has_the_same_standard_deviation():
    ours, (theirs, _) = released_by_fit(), released_by_query()
    # The standard error of a standard deviation from 100,000 values is 0.22 %.
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.015)
    np.testing.assert_allclose(ours.std(), NOISE_MULTIPLIER * L2_NORM_CLIP / BATCH, rtol=0.01)


def test_same_noise_multiplier_is_accounted_for():
    _, event = released_by_query()
    np.testing.assert_allclose(event.noise_multiplier, NOISE_MULTIPLIER, rtol=1e-6)
