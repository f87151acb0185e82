"""Clipped gradients without noise: ours against every way tensorflow-privacy has of making them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery
from tensorflow_privacy.privacy.dp_query.normalized_query import NormalizedQuery
from tensorflow_privacy.privacy.fast_gradient_clipping.clip_grads import compute_clip_weights
from tensorflow_privacy.privacy.fast_gradient_clipping.registry_functions.dense import (
    dense_layer_computation,
)
from tensorflow_privacy.privacy.optimizers.clip_and_aggregate_gradients import (
    clip_and_aggregate_gradients,
)
from tensorflow_privacy.privacy.optimizers.dp_optimizer_keras import (
    make_keras_generic_optimizer_class,
)

import keras_modelsec as ms
from keras_modelsec._core.batch import Batch
from keras_modelsec.privacy.clipping import clipped_gradients

pytestmark = pytest.mark.interop

CLIPPED = ["all", "some", "none"]


def ours(case, l2_norm_clip):
    model = ms.SecureModel.from_model(case.model)
    model.compile("sgd", case.model.loss)
    run = tf.function(
        lambda x, y: clipped_gradients(model, Batch(x, y), l2_norm_clip)[1].sums,
        autograph=False,
    )
    return run(tf.constant(case.x), tf.constant(case.y))


def per_example_gradients(case):
    for i in range(len(case.x)):
        with tf.GradientTape() as tape:
            loss = case.losses(slice(i, i + 1))[0]
        yield tape.gradient(loss, case.variables)


def clip_that_clips(which, case):
    """A bound below, between or above the norms of the case's examples."""
    norms = [float(tf.linalg.global_norm(g)) for g in per_example_gradients(case)]
    assert max(norms) > 1.1 * min(norms)
    return {"all": 0.5 * min(norms), "some": float(np.median(norms)), "none": 2 * max(norms)}[which]


def run_query(query, records):
    """What a DPQuery releases for these records."""
    state = query.initial_global_state()
    params = query.derive_sample_params(state)
    sample = query.initial_sample_state(next(iter(records)))
    for record in records:
        sample = query.accumulate_record(params, sample, record)
    return query.get_noised_result(sample, state)


def assert_equal_gradients(actual, expected, rtol=1e-5):
    """Relative to the largest entry of each weight's gradient, float32 sums being what they are."""
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        right = np.asarray(right)
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * np.abs(right).max())


@pytest.mark.parametrize("clipped", CLIPPED)
def test_sum_equals_that_of_gaussian_sum_query(case, clipped):
    l2_norm_clip = clip_that_clips(clipped, case)
    query = GaussianSumQuery(l2_norm_clip, stddev=0.0)
    expected, _, _ = run_query(query, list(per_example_gradients(case)))
    assert_equal_gradients(ours(case, l2_norm_clip), expected)


@pytest.mark.parametrize("clipped", CLIPPED)
def test_sum_equals_that_of_vectorized_clipping(case, clipped):
    """`clip_and_aggregate_gradients`: its own Jacobian, its own clipping."""
    l2_norm_clip = clip_that_clips(clipped, case)
    with tf.GradientTape(persistent=True) as tape:
        losses = case.losses()
    expected = clip_and_aggregate_gradients(
        tape, losses, case.variables, l2_norm_clip=l2_norm_clip, aggregate_method="sum"
    )
    assert_equal_gradients(ours(case, l2_norm_clip), expected)


@pytest.mark.parametrize("clipped", CLIPPED)
def test_norms_equal_those_of_fast_clipping(mlp, clipped):
    """Its ghost norms of Dense layers; weighting the losses by what they give must be our sum."""
    l2_norm_clip = clip_that_clips(clipped, mlp)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        outputs, watched, squared_norms = mlp.x, [], []
        for layer in mlp.model.layers:
            base, outputs, squared_norm = dense_layer_computation(layer, (outputs,), {}, tape)
            watched.append(base)
            squared_norms.append(squared_norm)
        total = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")(
            mlp.y, outputs
        )
    gradients = tape.gradient(total, watched)
    norms = tf.sqrt(sum(norm(g) for norm, g in zip(squared_norms, gradients, strict=True)))
    with tf.GradientTape() as tape:
        weighted = tf.reduce_sum(compute_clip_weights(l2_norm_clip, norms) * mlp.losses())
    assert_equal_gradients(ours(mlp, l2_norm_clip), tape.gradient(weighted, mlp.variables))


@pytest.mark.parametrize("clipped", CLIPPED)
def test_mean_equals_that_of_its_keras_optimizer(case, clipped):
    """What our optimizer hands on without noise equals what its DP optimizer would apply."""
    l2_norm_clip = clip_that_clips(clipped, case)
    optimizer_class = make_keras_generic_optimizer_class(keras.optimizers.SGD)
    theirs = optimizer_class(GaussianSumQuery(l2_norm_clip, stddev=0.0))
    theirs._name = theirs.name  # it was written for Keras 2
    with tf.GradientTape(persistent=True) as tape:
        losses = case.losses()
    expected = theirs._compute_gradients(losses, case.variables, tape=tape)
    size = len(case.x)
    assert_equal_gradients(
        [total / size for total in ours(case, l2_norm_clip)], [gradient for gradient, _ in expected]
    )


def test_step_of_fit_equals_a_step_along_the_normalized_query(case):
    """`fit`, one batch, SGD with learning rate 1: weights move by tensorflow-privacy's mean."""
    l2_norm_clip, size = clip_that_clips("some", case), len(case.x)
    query = NormalizedQuery(GaussianSumQuery(l2_norm_clip, stddev=0.0), denominator=size)
    mean, _, _ = run_query(query, list(per_example_gradients(case)))
    expected = [before - step for before, step in zip(case.model.get_weights(), mean, strict=True)]
    model = ms.SecureModel.from_model(case.model)
    model.compile(
        ms.DPOptimizer(keras.optimizers.SGD(1.0), l2_norm_clip, noise_multiplier=0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(case.x, case.y, batch_size=size, epochs=1, verbose=0)
    assert_equal_gradients(model.get_weights(), expected)
