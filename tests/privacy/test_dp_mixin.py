"""What the mixin checks before and while a model trains privately."""

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_data_stops_before_the_update_it_would_spoil(private_model, tiny_data, bad):
    x, y = tiny_data
    x = x.copy()
    x[3, 1] = bad
    model = private_model()
    before = model.get_weights()
    with pytest.raises(Exception, match="must be finite"):
        model.fit(x, y, batch_size=12, verbose=0)
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_missing_loss_is_refused_at_compile():
    inputs = keras.Input((4,))
    model = ms.SecureModel(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(NotPrivateError, match="loss=None"):
        model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0))


@pytest.mark.parametrize("metrics", [None, ["accuracy"]])
def test_step_is_traced_once_beside_the_probe(metrics):
    traces = []

    class Counting(ms.SecureModel):
        def prepare_batch(self, batch):
            traces.append(batch.x)
            return super().prepare_batch(batch)

    inputs = keras.Input((4,))
    model = Counting(inputs, keras.layers.Dense(3)(inputs))
    model.compile(ms.DPOptimizer("adam", 1.0, 1.0), "mse", metrics=metrics)
    model.fit(np.zeros((8, 4)), np.zeros((8, 3)), verbose=0)
    assert len(traces) == 2
