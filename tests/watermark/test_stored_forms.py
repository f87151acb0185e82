"""Free changes of how kernels are stored, after which the mark must read as before."""

import hashlib
import math

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark.keys import SecretKey

pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer (InputLayer|MultiHeadAttention) does not have a `quantize`"
)
layers = keras.layers
_Int4Config = getattr(keras.quantizers, "Int4QuantizationConfig", None)
needs_groups = pytest.mark.skipif(_Int4Config is None, reason="This Keras has no int4 in groups.")


def _dense():
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(48, activation="relu"), layers.Dense(33)]
    )


def _einsum():
    inputs = keras.Input((10, 48))
    x = layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 12))(inputs)
    x = layers.EinsumDense("abde,dec->abc", output_shape=(None, 33))(x)
    return keras.Model(inputs, x)


def _embedding():
    return keras.Sequential(
        [keras.Input((7,), dtype="int32"), layers.Embedding(60, 31), layers.Dense(48)]
    )


def _nested():
    inner = _dense()
    inputs = keras.Input((5, 64))
    wrapped = layers.SpectralNormalization(layers.Dense(40))
    return keras.Model(inputs, wrapped(layers.TimeDistributed(inner)(inputs)))


MODELS = {"dense": _dense, "einsum": _einsum, "embedding": _embedding, "nested": _nested}
QUANTIZATIONS = {
    "int8": {"mode": "int8"},
    "int4": {"mode": "int4"},
    "float8": {"mode": "float8"},
}
if _Int4Config is not None:
    QUANTIZATIONS |= {
        "int4_by_channel": {"config": _Int4Config(block_size=None)},
        "int4_in_groups_of_16": {"config": _Int4Config(block_size=16)},
        "int4_in_groups_of_7": {"config": _Int4Config(block_size=7)},
    }
IN_INTEGERS = sorted(set(QUANTIZATIONS) & {"int8", "int4", "int4_in_groups_of_16"})


def _marked(build, key):
    keras.utils.set_random_seed(3)
    model = build()
    assert ms.attach_watermark(model, key).log10_p < -100
    return ms.export_plain(model)


def _adaptable(model):
    return [layer for layer in model._flatten_layers() if hasattr(layer, "enable_lora")]


def _hide_in_adapters(model, spoil=True):
    """Moves each kernel into a full-rank LoRA adapter, and leaves noise in its place."""
    rng = np.random.default_rng(0)
    for layer in _adaptable(model):
        name = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
        kernel = np.array(getattr(layer, name))
        noise = rng.normal(size=kernel.shape).astype("float32") * kernel.std() if spoil else 0
        layer.enable_lora(kernel.shape[-1])
        getattr(layer, f"_{name}").assign(noise + np.zeros_like(kernel))
        getattr(layer, f"lora_{name}_a").assign(kernel - noise)
        getattr(layer, f"lora_{name}_b").assign(np.eye(kernel.shape[-1]))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("build", MODELS)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`:UserWarning")
def test_mark_is_read_in_every_form_that_keras_quantizes_to(build, quantization, key):
    if build == "embedding" and quantization == "float8":
        pytest.skip("Keras has no float8 embedding.")
    model = _marked(MODELS[build], key)
    before = ms.verify_watermark(model, key)
    model.quantize(**QUANTIZATIONS[quantization])
    after = ms.verify_watermark(model, key)
    assert after.log10_p < 0.6 * before.log10_p
    assert {layer.shape for layer in after.layers} == {layer.shape for layer in before.layers}


def _calibrate(model, mode, **options):
    """Quantizes all but the embedding with the method that needs calibration."""
    config = {"gptq": keras.quantizers.GPTQConfig, "awq": keras.quantizers.AWQConfig}[mode](
        dataset=[np.random.default_rng(0).integers(0, 60, 64)],
        tokenizer=object(),  # unused: the data are tokens
        num_samples=8,
        sequence_length=7,
        quantization_layer_structure={
            "pre_block_layers": [model.layers[0]],
            "sequential_blocks": model.layers[1:],
        },
        **options,
    )
    model.quantize(mode, config=config, filters=lambda layer: layer is not model.layers[0])


def _blocks():
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(60, 32),
            layers.Dense(48),
            layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 10)),
        ]
    )


@needs_groups
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("gptq", {"weight_bits": 4, "group_size": 16}),
        ("gptq", {"weight_bits": 8, "group_size": -1}),
        ("gptq", {"weight_bits": 4, "group_size": 16, "activation_order": True}),
        ("awq", {"group_size": 16}),
    ],
)
def test_mark_is_read_after_quantization_with_calibration(mode, options, key):
    model = _marked(_blocks, key)
    before = ms.verify_watermark(model, key)
    _calibrate(model, mode, **options)
    assert getattr(model.layers[1], f"is_{mode}_calibrated")
    after = ms.verify_watermark(model, key)
    assert [layer.shape for layer in after.layers] == [layer.shape for layer in before.layers]
    for old, new in zip(before.layers, after.layers, strict=True):
        assert new.z > 0.75 * old.z


@pytest.mark.parametrize("build", MODELS)
def test_kernels_hidden_in_lora_adapters_are_read(build, key):
    model = _marked(MODELS[build], key)
    before = ms.verify_watermark(model, key)
    _hide_in_adapters(model)
    after = ms.verify_watermark(model, key)
    assert after.log10_p == pytest.approx(before.log10_p, rel=0.01)
    assert len(after.layers) == len(before.layers)


def test_convolution_hidden_in_a_lora_adapter_is_read(build_cnn, key):
    model = _marked(build_cnn, key)
    before = ms.verify_watermark(model, key)
    _hide_in_adapters(model)
    assert ms.verify_watermark(model, key).log10_p == pytest.approx(before.log10_p, rel=0.01)


@pytest.mark.parametrize("quantization", IN_INTEGERS)
@pytest.mark.parametrize("build", ["dense", "einsum", "embedding"])
def test_kernels_hidden_in_adapters_of_quantized_layers_are_read(build, quantization, key):
    model = _marked(MODELS[build], key)
    before = ms.verify_watermark(model, key)
    kernels = [np.array(layer.get_weights()[0]) for layer in _adaptable(model)]
    for layer in _adaptable(model):
        layer.set_weights(
            [np.random.default_rng(1).normal(size=w.shape) for w in layer.get_weights()]
        )
    model.quantize(**QUANTIZATIONS[quantization])
    for layer, kernel in zip(_adaptable(model), kernels, strict=True):
        name = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
        layer.enable_lora(kernel.shape[-1])
        scale = getattr(layer, f"{name}_scale")
        zero_factor = 0.0 if hasattr(layer, f"{name}_zero") else np.inf  # a factor, or a divisor
        scale.assign(np.full(scale.shape, zero_factor))
        getattr(layer, f"lora_{name}_a").assign(kernel)
        getattr(layer, f"lora_{name}_b").assign(np.eye(kernel.shape[-1]))
    after = ms.verify_watermark(model, key)
    assert after.log10_p == pytest.approx(before.log10_p, rel=0.01)


@pytest.mark.parametrize("quantization", IN_INTEGERS)
def test_quantized_and_adapted_model_is_read_from_its_file(quantization, key, tmp_path):
    model = _marked(_dense, key)
    before = ms.verify_watermark(model, key)
    model.quantize(**QUANTIZATIONS[quantization])
    for layer in _adaptable(model):
        layer.enable_lora(2)
    model.save(tmp_path / "model.keras")
    after = ms.verify_watermark(tmp_path / "model.keras", key)
    assert after.log10_p < 0.6 * before.log10_p


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_mark_is_read_after_a_cast(policy, key):
    model = _marked(_dense, key)
    before = ms.verify_watermark(model, key)
    keras.config.set_dtype_policy(policy)
    try:
        cast = _dense()
    finally:
        keras.config.set_dtype_policy("float32")
    cast.set_weights(model.get_weights())
    assert ms.verify_watermark(cast, key).log10_p == pytest.approx(before.log10_p, rel=0.01)


def test_added_layers_do_not_starve_the_mark(key):
    model = _marked(_dense, key)
    before = ms.verify_watermark(model, key)
    x = model.inputs[0]
    added = [layers.Dense(64, kernel_initializer="zeros")(x) for _ in range(200)]
    larger = keras.Model(x, layers.Add()([model(x), *[layers.Dense(33)(y) for y in added[:3]]]))
    unused = keras.Model(x, [larger(x), *added])
    after = ms.verify_watermark(unused, key)
    assert after.log10_p < before.log10_p + 20
    assert after.bit_error_rate == before.bit_error_rate


@needs_groups
@pytest.mark.parametrize("planted", [np.nan, np.inf])
def test_planted_scales_and_kernels_do_not_end_the_verification(planted, key):
    model = _marked(_dense, key)
    inputs = model.inputs[0]
    hostile = layers.Dense(64)
    model = keras.Model(inputs, [model(inputs), hostile(inputs)])
    hostile.quantize(config=_Int4Config(block_size=16), mode="int4")
    hostile.kernel_scale.assign(np.full(hostile.kernel_scale.shape, planted))
    hostile.g_idx.assign(np.full(hostile.g_idx.shape, planted))
    report = ms.verify_watermark(model, key)
    assert report.is_evidence
    hostile.g_idx.assign(np.full(hostile.g_idx.shape, 1e9))
    assert ms.verify_watermark(model, key).log10_p == pytest.approx(report.log10_p)
    kernel = model.layers[1].layers[0].kernel
    kernel.assign(np.where(np.arange(kernel.shape[1]) == 0, planted, kernel))
    report = ms.verify_watermark(model, key)
    assert report.is_evidence
    assert report.layers[0].not_finite == kernel.shape[0]


def test_kernel_in_another_shape_is_read_once_it_is_put_back_as_documented(key):
    model = _marked(_dense, key)
    kernel, bias = model.layers[0].get_weights()
    x = keras.Input((64,))
    transposed = layers.EinsumDense("ab,cb->ac", output_shape=(48,), bias_axes="c")
    changed = keras.Model(x, transposed(x))
    transposed.set_weights([kernel.T, bias])
    np.testing.assert_allclose(changed(np.eye(64)), np.eye(64) @ kernel + bias, atol=1e-5)
    assert not ms.verify_watermark(changed, key).is_evidence
    restored = _dense()
    restored.layers[0].kernel.assign(transposed.kernel.numpy().T)
    report = ms.verify_watermark(restored, key, tried=2)
    assert report.is_evidence


def test_report_names_the_file_the_weights_and_the_key_it_read(key, other_key, tmp_path):
    model = _marked(_dense, key)
    path = tmp_path / "model.keras"
    model.save(path)
    report = ms.verify_watermark(path, key)
    assert report.file_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    live = ms.verify_watermark(model, key)
    assert live.file_digest is None
    assert live.weights_digest == report.weights_digest
    assert live.key_commitment == report.key_commitment == SecretKey(key).commitment
    assert ms.verify_watermark(model, other_key).key_commitment != report.key_commitment
    for value in (report.file_digest, report.weights_digest, report.key_commitment):
        assert value in str(report)


def test_weights_digest_is_what_its_definition_says_and_covers_every_weight(key):
    model = _marked(_dense, key)
    model.quantize("int4")
    digests = []
    for weight in model.weights:
        values = np.asarray(weight)
        header = f"{values.dtype.name}|{'x'.join(map(str, values.shape))}|"
        digests.append(hashlib.sha256(header.encode() + values.tobytes()).digest())
    report = ms.verify_watermark(model, key)
    assert report.weights_digest == hashlib.sha256(b"".join(digests)).hexdigest()
    bias = model.layers[-1].bias
    bias.assign(bias + 1e-3)
    assert ms.verify_watermark(model, key).weights_digest != report.weights_digest


def test_report_holds_no_secret(key):
    report = ms.verify_watermark(_marked(_dense, key), key)
    for text in (str(report), repr(report)):
        assert key.hex() not in text
        assert repr(key) not in text
    assert len(report.key_commitment) == 64
    assert int(report.key_commitment, 16) not in (int.from_bytes(key), 0)
    assert report.key_commitment != hashlib.sha256(key).hexdigest()  # of this purpose alone


@pytest.mark.parametrize("name", ["absent.keras", "model.weights.h5", "folder.keras", "model.bin"])
def test_what_is_no_model_file_is_refused_by_name(name, key, tmp_path):
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    elif not name.startswith("absent"):
        path.write_bytes(b"x")
    with pytest.raises(WatermarkError, match=f"must be a model, or the path.*{name}"):
        ms.verify_watermark(path, key)


def _truncated(whole):
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "spoil", [_truncated, lambda _: b"", lambda _: b"junk" * 99], ids=["truncated", "empty", "junk"]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_corrupt_file_is_refused_by_the_name_that_the_caller_gave(spoil, suffix, key, tmp_path):
    path = tmp_path / f"suspect{suffix}"
    _dense().save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(WatermarkError, match=rf"must hold a model.*suspect\{suffix}") as refused:
        ms.verify_watermark(path, key)
    assert refused.value.__cause__ is not None


def _with_lambda(path):
    inputs = keras.Input((64,))
    hidden = layers.Lambda(lambda x: x * 1.0)(layers.Dense(48)(inputs))
    keras.Model(inputs, hidden).save(path)


def test_file_is_not_read_while_unsafe_deserialization_is_on(key, tmp_path):
    _with_lambda(tmp_path / "suspect.keras")
    with pytest.raises(WatermarkError, match=r"must hold a model.*suspect\.keras"):
        ms.verify_watermark(tmp_path / "suspect.keras", key)
    with (
        keras.src.saving.serialization_lib.SafeModeScope(False),
        pytest.raises(WatermarkError, match="Unsafe deserialization must be off"),
    ):
        ms.verify_watermark(tmp_path / "suspect.keras", key)


@pytest.mark.parametrize("wrong", [0, 1.5, b"dense"])
def test_layers_that_are_no_list_are_refused(wrong, key):
    model = _dense()
    for call in (ms.verify_watermark, ms.attach_watermark):
        with pytest.raises(TypeError, match="`layers` must be names of layers, or layers, in a"):
            call(model, key, wrong)


def test_charge_of_a_plain_reading_is_as_documented(key):
    report = ms.verify_watermark(_marked(_dense, key), key)
    assert report.log10_tests == pytest.approx(math.log10(2 * 1 * 2 * 2))
