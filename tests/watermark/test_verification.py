import math

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import WatermarkError, WatermarkKeyError


@pytest.fixture(scope="session")
def trained_weights():
    """What a marked model's weights are after some training, once for all tests."""
    return []


@pytest.fixture
def marked(build_mlp, digits, key, trained_weights):
    """A trained, marked model."""
    model = build_mlp()
    ms.attach_watermark(model, key)
    if not trained_weights:
        x, y = digits[0].reshape(-1, 64), digits[1]
        model.fit(x[:1024], y[:1024], epochs=3, verbose=0)
        trained_weights.extend(model.get_weights())
    model.set_weights(trained_weights)
    return model


def _plain_copy(model, order=(0, 1, 2, 3), prefix="renamed"):
    """The same weights in a model without any trace of this package, and other names."""
    layers = [keras.layers.Dense(32, activation="relu", name=f"{prefix}_{i}") for i in order[:3]]
    plain = keras.Sequential(
        [keras.Input((64,)), *layers, keras.layers.Dense(10, name=f"{prefix}_out")]
    )
    for target, source in zip(plain.layers, order, strict=True):
        target.set_weights(model.layers[source].get_weights())
    return plain


def test_right_key_is_evidence_and_a_wrong_key_is_not(marked, key, other_key):
    right, wrong = ms.verify_watermark(marked, key), ms.verify_watermark(marked, other_key)
    assert right.is_evidence
    assert right.bit_error_rate == 0
    assert right.log10_p < -100
    assert not wrong.is_evidence
    assert wrong.log10_p > -3
    assert 0.3 < wrong.bit_error_rate < 0.7


def test_innocent_trained_model_shows_no_mark(build_mlp, digits, key):
    model = build_mlp()
    x, y = digits[0].reshape(-1, 64), digits[1]
    model.fit(x[:1024], y[:1024], epochs=3, verbose=0)
    report = ms.verify_watermark(model, key)
    assert report.log10_p > -3
    assert 0 < report.log10_tests <= math.log10(3 * 3 * 2 * 4 * 4)


def _cast_to_half(weights):
    return weights.astype(np.float16).astype(np.float32)


def _round_to_int8(weights):
    step = np.abs(weights).max() / 127
    return np.round(weights / step) * step


def _prune_half(weights):
    return np.where(np.abs(weights) < np.median(np.abs(weights)), 0, weights)


def _prune_most(weights):
    return np.where(np.abs(weights) < np.quantile(np.abs(weights), 0.8), 0, weights)


def _add_noise(weights):
    return weights + np.random.default_rng(0).normal(size=weights.shape) * np.std(weights)


@pytest.mark.parametrize(
    "attack", [_cast_to_half, _round_to_int8, _prune_half, _prune_most, _add_noise]
)
def test_mark_survives(marked, key, attack):
    for layer in marked.layers:
        kernel, bias = layer.get_weights()
        layer.set_weights([attack(kernel), bias])
    report = ms.verify_watermark(marked, key)
    assert report.is_evidence
    assert report.bit_error_rate < 0.1


def test_mark_survives_fine_tuning_without_the_regularizer(marked, digits, key):
    plain = _plain_copy(marked)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.Adam(3e-3), loss)
    x, y = digits[0].reshape(-1, 64), digits[1]
    plain.fit(x[1024:], y[1024:], epochs=10, verbose=0)
    report = ms.verify_watermark(plain, key)
    assert report.is_evidence
    assert report.bit_error_rate < 0.05


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_mark_survives_keras_int8_quantization(marked, key):
    marked.quantize("int8")
    assert marked.layers[0].kernel.dtype == "int8"
    assert ms.verify_watermark(marked, key).is_evidence


def test_mark_is_read_under_other_names_and_without_this_package(marked, key, tmp_path):
    plain = _plain_copy(marked)
    plain.save(tmp_path / "plain.keras")
    plain.save_weights(tmp_path / "plain.weights.h5")
    z = ms.verify_watermark(marked, key).z
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    assert ms.verify_watermark(loaded, key).z == pytest.approx(z)
    fresh = _plain_copy(keras.models.clone_model(plain), prefix="other")
    fresh.load_weights(tmp_path / "plain.weights.h5")
    assert ms.verify_watermark(fresh, key).z == pytest.approx(z)


def test_mark_is_read_after_kernels_of_one_shape_changed_places(marked, key):
    swapped = _plain_copy(marked, order=(0, 2, 1, 3))
    report = ms.verify_watermark(swapped, key)
    assert report.z == pytest.approx(ms.verify_watermark(marked, key).z)
    assert [layer.index for layer in report.layers] == [0, 1, 0]


def test_mark_is_read_inside_a_larger_model(marked, key):
    layers = keras.layers
    larger = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, activation="relu"),
            _plain_copy(marked),
            layers.Dense(100),
            layers.Dense(32),
            layers.Dense(32),
        ]
    )
    report = ms.verify_watermark(larger, key)
    assert report.is_evidence
    assert [layer.used for layer in report.layers] == [False, True, True, True, False, False, False]


def test_cut_off_model_is_read_with_the_original_number_of_sequences(marked, key):
    kernel = marked.layers[2].kernel.numpy()  # index 1 of its shape
    cut = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32, use_bias=False)])
    cut.set_weights([kernel])
    assert ms.verify_watermark(cut, key).z < 5
    report = ms.verify_watermark(cut, key, indices=2)
    assert report.z > 10
    assert report.log10_tests == pytest.approx(math.log10(2 * 2))


def test_layers_restrict_what_is_read_but_not_the_correction(marked, key):
    everything = ms.verify_watermark(marked, key)
    name = marked.layers[0].name
    part = ms.verify_watermark(marked, key, layers=[name])
    assert part.z < everything.z
    assert part.log10_tests == pytest.approx(math.log10(3 * 3 * 2))  # one of three, not of one
    assert [layer.used for layer in part.layers] == [True, False, False]
    assert ms.verify_watermark(marked, key, layers=name) == part


def test_permuted_neurons_hide_the_mark_as_documented(marked, key):
    order = np.random.default_rng(0).permutation(32)
    plain = _plain_copy(marked)
    for first, second in ((0, 1), (1, 2), (2, 3)):
        kernel, bias = plain.layers[first].get_weights()
        plain.layers[first].set_weights([kernel[:, order], bias[order]])
        kernel, bias = plain.layers[second].get_weights()
        plain.layers[second].set_weights([kernel[order], bias])
    x = np.random.default_rng(0).random((8, 64), dtype="float32")
    np.testing.assert_allclose(plain(x), marked(x), rtol=1e-3, atol=1e-4)
    assert not ms.verify_watermark(plain, key).is_evidence


def test_a_row_shift_before_softmax_hides_the_mark_as_documented(key):
    # Named as a limit in the docstring: should it ever be read, the docstring has to change.
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(64, activation="softmax")(inputs))
    assert ms.attach_watermark(model, key).is_evidence
    kernel, bias = model.layers[1].get_weights()
    shift = np.random.default_rng(0).normal(size=(64, 1)) * 100 * kernel.std()
    x = np.random.default_rng(1).normal(size=(20, 64)).astype("float32")
    before = model.predict(x, verbose=0)
    model.layers[1].set_weights([kernel + shift, bias])
    np.testing.assert_allclose(model.predict(x, verbose=0), before, atol=1e-3)
    assert not ms.verify_watermark(model, key).is_evidence


def test_second_mark_leaves_the_first_readable(marked, key, other_key):
    plain = _plain_copy(marked)
    ms.attach_watermark(plain, other_key)
    assert ms.verify_watermark(plain, key).is_evidence
    assert ms.verify_watermark(plain, other_key).is_evidence


def test_bad_input_is_refused(marked, build_mlp, key):
    with pytest.raises(WatermarkError, match="must name layers of the model"):
        ms.verify_watermark(marked, key, layers=["elsewhere"])
    with pytest.raises(WatermarkError, match="weight that can carry"):
        ms.verify_watermark(marked, key, layers=[marked.layers[3]])
    with pytest.raises(WatermarkError, match="must be built"):
        ms.verify_watermark(keras.Sequential([keras.layers.Dense(64)]), key)
    with pytest.raises(WatermarkError, match=r"must be a keras.Model"):
        ms.verify_watermark(marked.get_weights(), key)
    with pytest.raises(WatermarkKeyError, match="is needed"):
        ms.verify_watermark(marked, None)
    with pytest.raises(ValueError, match="`tried` must be an integer >= 1"):
        ms.verify_watermark(marked, key, tried=0)
    with pytest.raises(ValueError, match="`indices` must be"):
        ms.verify_watermark(marked, key, indices=0)
