"""A kernel read from a layer is the one that the layer computes with."""

import keras
import numpy as np
import pytest

from keras_modelsec._core.keras_kernels import effective_kernels

if not hasattr(keras.quantizers, "Int4QuantizationConfig"):
    pytest.skip(
        "Before this class, int4 layers rounded their inputs: nothing exact to compare with.",
        allow_module_level=True,
    )

layers = keras.layers
_rng = np.random.default_rng(0)
GROUPS = keras.quantizers.Int4QuantizationConfig(block_size=8)
EQUATIONS = [
    ("abc,cde->abde", (None, 3, 8), (2, 4, 33)),
    ("abde,dec->abc", (None, 15), (2, 4, 3, 8)),
    ("ab,cb->ac", (20,), (5, 33)),
]


def _prepare(layer, x, quantization, adapted):
    layer(x)
    if quantization is not None:
        layer.quantize(**quantization)
    if adapted:
        layer.enable_lora(4)
        for weight in layer.weights:
            if "lora" in weight.name:
                weight.assign(_rng.normal(size=weight.shape) * 0.1)
    (kernel, *_) = effective_kernels(layer)
    return kernel


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("quantization", [{"mode": "int4"}, {"mode": "int4", "config": GROUPS}])
@pytest.mark.parametrize("units", [24, 25])
def test_dense_computes_with_the_kernel_read(units, quantization, adapted):
    layer, x = layers.Dense(units, use_bias=False), _rng.normal(size=(5, 33)).astype("float32")
    kernel = _prepare(layer, x, quantization, adapted)
    np.testing.assert_allclose(x @ kernel.value, layer(x), atol=1e-5)
    assert kernel.variable is layer._kernel


@pytest.mark.parametrize("quantization", [{"mode": "int4"}, {"mode": "int4", "config": GROUPS}])
@pytest.mark.parametrize(("equation", "output_shape", "shape"), EQUATIONS)
def test_einsum_dense_computes_with_the_kernel_read(equation, output_shape, shape, quantization):
    layer = layers.EinsumDense(equation, output_shape=output_shape)
    x = _rng.normal(size=shape).astype("float32")
    kernel = _prepare(layer, x, quantization, adapted=False)
    np.testing.assert_allclose(np.einsum(equation, x, kernel.value), layer(x), atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "quantization", [{"mode": "int8"}, {"mode": "int4"}, {"mode": "int4", "config": GROUPS}]
)
@pytest.mark.parametrize("kind", [layers.Embedding, layers.ReversibleEmbedding])
def test_embedding_computes_with_the_kernel_read(kind, quantization, adapted):
    layer, indices = kind(40, 21), np.arange(40)
    kernel = _prepare(layer, indices, quantization, adapted)
    np.testing.assert_allclose(kernel.value, layer(indices), atol=1e-6)


@pytest.mark.parametrize("quantization", [{"mode": "int8"}, {"mode": "int4"}, {"config": GROUPS}])
def test_untied_reverse_embedding_is_read_too(quantization):
    layer, indices = layers.ReversibleEmbedding(40, 21, tie_weights=False), np.arange(40)
    layer(indices)
    before = layer.reverse_embeddings.numpy()
    layer.quantize(**({"mode": "int4"} | quantization))
    reverse = list(effective_kernels(layer))[1].value
    assert np.corrcoef(reverse.ravel(), before.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(24, use_bias=False), (5, 33)),
        (layers.EinsumDense("abc,cde->abde", output_shape=(None, 3, 8)), (2, 4, 33)),
        (layers.EinsumDense("ab,cb->ac", output_shape=(20,)), (5, 33)),
    ],
)
def test_int8_kernel_is_within_its_rounding_of_the_original(layer, shape):
    layer(np.zeros(shape, "float32"))
    before = layer.kernel.numpy()
    layer.quantize("int8")
    (kernel,) = effective_kernels(layer)
    np.testing.assert_allclose(kernel.value, before, atol=np.abs(before).max() / 250)


@pytest.mark.parametrize(
    ("layer", "shape"), [(layers.Conv2D(8, 3), (2, 8, 8, 3)), (layers.Dense(24), (5, 33))]
)
def test_adapter_is_added_as_the_layer_adds_it(layer, shape):
    kernel = _prepare(layer, np.zeros(shape, "float32"), None, adapted=True)
    np.testing.assert_allclose(kernel.value, layer.kernel, atol=1e-6)
    assert kernel.parts[1:] == (layer.lora_kernel_a, layer.lora_kernel_b)


def test_layers_that_compute_with_what_they_store_yield_nothing():
    dense = layers.Dense(24)
    dense(np.zeros((2, 3)))
    conv = layers.DepthwiseConv2D(3)
    conv(np.zeros((2, 8, 8, 3)))
    lstm = layers.LSTM(4)
    lstm(np.zeros((2, 3, 4)))
    for layer in [dense, conv, lstm, lstm.cell, layers.Dense(3), layers.ReLU()]:
        assert not list(effective_kernels(layer))
    dense.quantize("float8")
    assert not list(effective_kernels(dense))


def test_reading_leaves_the_layer_as_it_was():
    layer, x = layers.Dense(24), _rng.normal(size=(5, 33)).astype("float32")
    _prepare(layer, x, {"mode": "int4"}, adapted=True)
    before = layer(x).numpy()
    list(effective_kernels(layer))
    assert layer.lora_enabled
    np.testing.assert_array_equal(layer(x), before)
