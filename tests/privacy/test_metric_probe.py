"""What runs after the update: metrics may keep the data, weights may not."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_modelsec as ms
from keras_modelsec.errors import UnsupportedModelError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(8, 3)).astype("float32")
Y = GENERATOR.normal(size=(8, 1)).astype("float32")


def _fit(build=ms.SecureModel, metrics=None, hidden=None):
    inputs = keras.Input((3,))
    x = hidden(inputs) if hidden else inputs
    model = build(inputs, keras.layers.Dense(1, name="dense")(x))
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), "mse")
    metrics = [metric(model) for metric in metrics or ()]
    optimizer = ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, "mse", metrics=metrics)
    model.fit(X, Y, verbose=0)


class AssignsInMetrics(ms.SecureModel):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        bias = self.get_layer("dense").bias
        bias.assign(bias + ops.mean(ops.cast(y, "float32"), axis=0))
        return super().compute_metrics(x, y, y_pred, sample_weight)


class AssignsWhatAMetricKept(ms.SecureModel):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.get_layer("dense").bias.assign(ops.reshape(self.metrics[0].total, (1,)))
        self.metrics[0].update_state(ops.mean(y_pred))
        return {}


class AssignsInResults(ms.SecureModel):
    def get_metrics_result(self):
        self.get_layer("dense").bias.assign(ops.reshape(self.metrics[0].total, (1,)))
        return super().get_metrics_result()


class AssignsAtReset(ms.SecureModel):
    def reset_metrics(self):
        self.get_layer("dense").bias.assign(ops.reshape(self.metrics[0].total, (1,)))
        super().reset_metrics()


class AssignsAtTheBeginning(ms.SecureModel):
    def begin_step(self, batch):
        super().begin_step(batch)
        self.get_layer("dense").bias.assign(ops.mean(ops.cast(batch.y, "float32"), axis=0))


ASSIGNING = [
    AssignsInMetrics,
    AssignsWhatAMetricKept,
    AssignsInResults,
    AssignsAtReset,
    AssignsAtTheBeginning,
]


@pytest.mark.parametrize("build", ASSIGNING)
def test_hook_that_puts_the_data_into_weights_is_refused(build):
    with pytest.raises(UnsupportedModelError, match=r"updates from the examples|independently"):
        _fit(build)


def test_metric_that_puts_the_data_into_weights_is_refused():
    def metric(model):
        def residual(y, y_pred):
            model.get_layer("dense").bias.assign(ops.mean(y, axis=0))
            return ops.mean(ops.abs(y - y_pred), axis=-1)

        return residual

    with pytest.raises(UnsupportedModelError, match="updates from the examples"):
        _fit(metrics=[metric])


def test_metric_that_puts_what_it_kept_into_weights_when_it_is_reset_is_refused():
    def metric(model):
        class Residual(keras.metrics.Mean):
            def update_state(self, y, y_pred, sample_weight=None):
                super().update_state(ops.abs(y - y_pred), sample_weight)

            def reset_state(self):
                model.get_layer("dense").bias.assign(ops.reshape(self.total, (1,)))
                super().reset_state()

        return Residual()

    with pytest.raises(UnsupportedModelError, match="updates from the examples"):
        _fit(metrics=[metric])


def test_forward_pass_that_uses_a_metric_is_refused():
    class UsesMetric(ms.SecureModel):
        def call(self, x, training=False):
            return super().call(x) + self.metrics[0].total

    with pytest.raises(UnsupportedModelError, match="must not use its metrics"):
        _fit(UsesMetric)


class Reports(ms.SecureModel):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**results, "largest": ops.max(ops.abs(y_pred))}


@pytest.mark.parametrize("build", [ms.SecureModel, Reports])
def test_metrics_of_ones_own_that_keep_to_themselves_train(build):
    _fit(build, metrics=[lambda model: lambda y, y_pred: ops.mean(ops.abs(y - y_pred), axis=-1)])
