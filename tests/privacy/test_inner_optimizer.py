"""What a `DPOptimizer` takes for its inner optimizer, its bound and its noise."""

import numpy as np
import pytest

import keras_modelsec as ms


@pytest.mark.parametrize(
    ("l2_norm_clip", "noise_multiplier"),
    [(1e39, 0.0), (1e-40, 1.0), (1e-36, 1e-3), (1.0, 1e-40), (1.0, 1e39)],
)
def test_bound_or_noise_that_float32_loses_is_refused(l2_norm_clip, noise_multiplier):
    with pytest.raises(ValueError, match="float32 loses it"):
        ms.DPOptimizer("sgd", l2_norm_clip, noise_multiplier)


@pytest.mark.parametrize("l2_norm_clip", [1e-25, 1e25])
def test_bound_and_noise_of_any_other_size_train(private_model, tiny_data, l2_norm_clip):
    model = private_model(l2_norm_clip=l2_norm_clip, noise_multiplier=1e-3)
    before = model.get_weights()[1]
    model.fit(*tiny_data, verbose=0)
    assert np.any(model.get_weights()[1] != before)
    assert np.all(np.isfinite(model.get_weights()[1]))
