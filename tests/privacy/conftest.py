"""An independent reference for per-example gradients: a plain tape, one example at a time."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize, stats

import keras_modelsec as ms


class PerExampleLoop:
    """Per-example gradients by running the model on each example alone."""

    def __init__(self, model, x, y, sample_weight=None):
        self.variables = [v.value for v in model.trainable_variables]
        size = len(keras.tree.flatten(x)[0])
        self.gradients = [
            self._gradient(model, *(self._slice(part, i) for part in (x, y, sample_weight)))
            for i in range(size)
        ]
        self.norms = np.array(
            [np.sqrt(sum(np.sum(np.square(part)) for part in g)) for g in self.gradients]
        )

    @staticmethod
    def _slice(part, index):
        if part is None:
            return None
        return keras.tree.map_structure(lambda leaf: leaf[index : index + 1], part)

    def _gradient(self, model, x, y, sample_weight):
        with tf.GradientTape() as tape:
            loss = model._compile_loss(y, model(x, training=True), sample_weight)
        gradients = tape.gradient(loss, self.variables, unconnected_gradients="zero")
        return [np.asarray(tf.convert_to_tensor(g), "float64") for g in gradients]

    def clipped_sum(self, l2_norm_clip):
        """The reference for `ClippedGradients.sums`."""
        factors = [min(1.0, l2_norm_clip / norm) if norm else 1.0 for norm in self.norms]
        return [
            sum(f * gradient[k] for f, gradient in zip(factors, self.gradients, strict=True))
            for k in range(len(self.variables))
        ]


@pytest.fixture
def per_example_loop():
    return PerExampleLoop


@pytest.fixture
def tiny_data():
    """Twelve examples of four features in three classes."""
    generator = np.random.default_rng(1)
    return generator.normal(size=(12, 4)).astype("float32"), generator.integers(0, 3, 12)


@pytest.fixture
def private_model():
    """Builds and compiles a small `SecureModel` with a `DPOptimizer`."""

    def build(optimizer="sgd", *, l2_norm_clip=1.0, noise_multiplier=1.0, layers=None, **options):
        options.setdefault("seed", 3)
        compile_options = options.pop("compile_options", {})
        inputs = keras.Input((4,))
        x = inputs
        for layer in layers or [keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)]:
            x = layer(x)
        model = ms.SecureModel(inputs, x)
        model.compile(
            ms.DPOptimizer(
                optimizer, l2_norm_clip=l2_norm_clip, noise_multiplier=noise_multiplier, **options
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **compile_options,
        )
        return model

    return build


@pytest.fixture
def gaussian_epsilon():
    """The exact epsilon of Gaussian releases, by influence (Balle and Wang, 2018, theorem 8).

    dp_accounting has it too, but not in the lowest version that is supported.
    """

    def solve(influence, delta):
        mu = influence**0.5

        def excess(value):
            tail = math.exp(value + stats.norm.logcdf(-mu / 2 - value / mu))
            return stats.norm.cdf(mu / 2 - value / mu) - tail - delta

        return optimize.brentq(excess, 0, mu * mu / 2 + 10 * mu, xtol=1e-12)

    return solve
