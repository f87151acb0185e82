import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import WatermarkError, WatermarkKeyError
from keras_modelsec.watermark import derivation
from keras_modelsec.watermark.keys import SecretKey


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(32, activation="relu")
        self.second = keras.layers.Dense(32)

    def call(self, x):
        return self.second(self.first(x))


def _functional():
    inputs = keras.Input((64,))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Dense(32)(inputs)))


def _secure():
    inputs = keras.Input((64,))
    return ms.SecureModel(inputs, keras.layers.Dense(32)(inputs))


def _subclassed():
    model = Subclassed()
    model(np.zeros((1, 64), "float32"))
    return model


def _nested():
    return keras.Sequential([keras.Input((64,)), _functional(), keras.layers.Dense(60)])


def _sequential():
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])


BUILDERS = [_functional, _sequential, _subclassed, _nested, _secure]


@pytest.mark.parametrize("build", BUILDERS)
def test_any_built_model_is_marked_at_once(build, key):
    model = build()
    before = [np.array(w) for w in model.get_weights()]
    report = ms.attach_watermark(model, key)
    assert report == ms.verify_watermark(model, key)
    assert report.bit_error_rate == 0
    assert report.is_evidence
    for old, new in zip(before, model.get_weights(), strict=True):
        if old.ndim >= 2 and old.size >= 512:
            change = np.linalg.norm(new - old) / np.linalg.norm(old)
            assert 0.1 < change < 0.7
        else:
            np.testing.assert_array_equal(old, new)


def _layer_zoo():
    layers = keras.layers
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(40, 16, name="embedding")(tokens)
    x = layers.MultiHeadAttention(2, 16, name="attention")(x, x)
    x = layers.LSTM(16, return_sequences=True, name="lstm")(x)
    x = layers.EinsumDense("btd,de->bte", (None, 36), name="einsum")(x)
    x = layers.Reshape((6, 2, 36))(x)
    x = layers.SeparableConv2D(48, 3, padding="same", name="separable")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    return keras.Model(tokens, x)


def test_every_kind_of_kernel_is_marked_and_kept_by_the_config(key):
    model = _layer_zoo()
    report = ms.attach_watermark(model, key)
    marked = {v.path for v in model.weights if v.regularizer is not None}
    parts = ["embedding", "query", "key", "value", "attention_output", "einsum"]
    parts += ["pointwise_kernel", "recurrent_kernel", "lstm_cell/kernel", "depthwise/"]
    for part in parts:
        assert any(part in path for path in marked), part
    assert len(marked) == len(report.layers)
    assert report.bit_error_rate == 0
    assert len(model.losses) == len(marked)
    clone = keras.models.clone_model(model)
    kept = {v.path for v in clone.weights if v.regularizer is not None}
    # Attention makes its projections anew from its own arguments, which know no regularizer.
    assert len([p for p in marked if "attention" not in p]) == len(kept)


def test_attached_mark_is_kept_and_grows_back_in_training(build_mlp, digits, key):
    model = build_mlp()
    x, y = digits[0].reshape(-1, 64), digits[1]
    model.fit(x[:256], y[:256], verbose=0)  # traces the step without penalties
    ms.attach_watermark(model, key, strength=0.3)
    before = ms.verify_watermark(model, key).z
    assert len(model.losses) == 3
    rng = np.random.default_rng(0)
    for variable in model.trainable_weights:
        noise = rng.normal(size=variable.shape) * np.std(variable) * 0.7
        variable.assign(variable + noise)
    damaged = ms.verify_watermark(model, key).z
    model.fit(x[:1024], y[:1024], epochs=5, verbose=0)
    assert damaged < before
    assert ms.verify_watermark(model, key).z > before


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_mark_is_not_lost_to_averages_of_the_time_before_it(build_mlp, digits, key, wrap):
    x, y = digits[0].reshape(-1, 64)[:256], digits[1][:256]
    model = build_mlp(compiled=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(wrap(keras.optimizers.Adam(1e-3, use_ema=True)), loss)
    model.fit(x, y, epochs=2, verbose=0)
    ms.attach_watermark(model, key)
    model.fit(x, y, epochs=1, verbose=0)
    assert ms.verify_watermark(model, key).is_evidence


def test_attaching_keeps_the_loss_of_another_regularizer(key):
    l2 = keras.regularizers.L2(0.01)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, kernel_regularizer=l2)])
    ms.attach_watermark(model, key)
    kernel = model.layers[0].kernel
    assert model.layers[0].kernel_regularizer.base is l2
    np.testing.assert_allclose(model.losses[0], l2(kernel), rtol=1e-4)  # the mark is complete


def test_only_named_layers_are_marked(build_cnn, key):
    model = build_cnn()
    before = model.layers[4].kernel.numpy()
    conv = model.layers[1]
    report = ms.attach_watermark(model, key, layers=[conv])
    np.testing.assert_array_equal(before, model.layers[4].kernel)
    assert [layer.used for layer in report.layers] == [True, False, False]
    by_name = build_cnn()
    ms.attach_watermark(by_name, key, [by_name.layers[1].name])
    assert by_name.layers[1].kernel_regularizer.is_active
    assert by_name.layers[4].kernel_regularizer is None


def test_kernels_of_one_shape_get_different_sequences(build_mlp, key):
    model = build_mlp(compiled=False)
    report = ms.attach_watermark(model, key)
    assert [layer.index for layer in report.layers] == [0, 0, 1]
    assert [model.layers[i].kernel_regularizer.index for i in (1, 2)] == [0, 1]


def _beside_a_lora_layer():
    inputs = keras.Input((64,))
    adapted, plain = keras.layers.Dense(32, name="adapted"), keras.layers.Dense(32, name="plain")
    model = keras.Model(inputs, keras.layers.Add()([adapted(inputs), plain(inputs)]))
    adapted.enable_lora(32)  # one of its factors has the shape of the kernels
    return model


def test_beside_a_lora_layer_kernels_get_sequences_that_verification_tries(key):
    model = _beside_a_lora_layer()
    assert ms.attach_watermark(model, key).log10_p < -60
    model.compile("sgd", "mse")
    x = np.zeros((8, 64), "float32")
    model.fit(x, x[:, :32], verbose=0, callbacks=[ms.WatermarkMonitor(key)])


def test_index_that_only_adapters_make_room_for_is_refused_by_the_monitor(key):
    model = _beside_a_lora_layer()
    model.get_layer("plain").kernel.regularizer = ms.WatermarkRegularizer(key, index=2)
    model.compile("sgd", "mse")
    x = np.zeros((8, 64), "float32")
    with pytest.raises(WatermarkError, match=r"`index` must be below .* 2 for \(64, 32\)"):
        model.fit(x, x[:, :32], verbose=0, callbacks=[ms.WatermarkMonitor(key)])


def test_model_with_no_kernel_to_mark_but_adapted_ones_says_when_to_mark(key):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    model.layers[0].enable_lora(4)
    with pytest.raises(WatermarkError, match=r"Mark before .*quantize.*enable_lora"):
        ms.attach_watermark(model, key)


def test_frozen_layers_are_marked_only_when_named(build_mlp, key):
    model = build_mlp(compiled=False)
    model.layers[0].trainable = False
    frozen = model.layers[0].kernel.numpy()
    ms.attach_watermark(model, key)
    np.testing.assert_array_equal(frozen, model.layers[0].kernel)
    ms.attach_watermark(model, key, [model.layers[0].name])
    assert np.any(frozen != model.layers[0].kernel)


def test_marking_again_with_the_same_key_changes_nothing_more(build_mlp, key):
    model = build_mlp(compiled=False)
    ms.attach_watermark(model, key)
    before = model.get_weights()
    ms.attach_watermark(model, key)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)
    assert model.layers[0].kernel_regularizer.base is None


def test_strength_is_the_margin_that_is_read(key):
    z = {}
    for strength in (0.1, 0.5, 1.0):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
        z[strength] = ms.attach_watermark(model, key, strength=strength).z
        # Bits that lay above the margin by chance were left there, hence "at least".
        assert z[strength] >= 0.95 * strength * np.sqrt(1e4 / (1 + strength**2))
    assert z[0.1] < z[0.5] < z[1.0]


def _poison(model, value):
    kernel = model.layers[1].kernel
    kernel.assign(np.full(kernel.shape, value, "float32"))


@pytest.mark.parametrize(
    ("value", "rule"), [(0.0, "some nonzero weights"), (np.nan, "must be finite")]
)
def test_refused_model_is_left_as_it_was(build_mlp, key, value, rule):
    model = build_mlp(compiled=False)
    _poison(model, value)
    before = model.get_weights()
    with pytest.raises(WatermarkError, match=rule):
        ms.attach_watermark(model, key)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.losses == []


def test_second_key_on_the_same_kernels_is_refused(build_mlp, key, other_key):
    model = build_mlp(compiled=False)
    ms.attach_watermark(model, key)
    with pytest.raises(WatermarkError, match=r"mark of one key only.*export_plain"):
        ms.attach_watermark(model, other_key)


@pytest.mark.parametrize(
    ("layers", "rule"),
    [
        (["no_such_layer"], "must name layers of the model. Received: 'no_such_layer'"),
        (["tiny"], "at least 512 weights. Received: layer 'tiny', whose largest weight has 320"),
        ([], "which has none"),
    ],
)
def test_unknown_or_small_layer_is_refused(key, layers, rule):
    names = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(32), keras.layers.Dense(10, name="tiny")]
    )
    with pytest.raises(WatermarkError, match=rule):
        ms.attach_watermark(names, key, layers)


def test_unbuilt_or_small_model_and_no_model_are_refused(key):
    with pytest.raises(WatermarkError, match="must be built"):
        ms.attach_watermark(keras.Sequential([keras.layers.Dense(64)]), key)
    small = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
    with pytest.raises(WatermarkError, match=r"at least 512 weights.*largest weight has 80"):
        ms.attach_watermark(small, key)
    with pytest.raises(WatermarkError, match=r"must be a keras.Model. Received: str"):
        ms.attach_watermark("model.keras", key)


def test_bad_key_and_strength_are_refused(build_mlp, key):
    model = build_mlp(compiled=False)
    with pytest.raises(WatermarkKeyError, match="at least 16 bytes"):
        ms.attach_watermark(model, b"\x01\x9f")
    with pytest.raises(ValueError, match="`strength` must be"):
        ms.attach_watermark(model, key, strength=-1)


def test_half_precision_weights_are_marked(key):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, dtype="bfloat16")])
    assert ms.attach_watermark(model, key).bit_error_rate == 0


def test_embedding_moves_weights_along_the_signs_only(key):
    model = _sequential()
    before = model.layers[0].kernel.numpy()
    ms.attach_watermark(model, key)
    moved = (model.layers[0].kernel.numpy() - before).reshape(-1)
    signs = derivation.signs(SecretKey(key), (64, 32), 0)
    assert np.all(moved * signs >= 0)
