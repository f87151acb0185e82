"""The layer alone: what it replaces, counts, hands on, saves and refuses."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_modelsec as ms
from keras_modelsec._core import backend
from keras_modelsec.integrity.guards.activation_guard import ActivationGuard

NAN, INF = float("nan"), float("inf")


def apply(guard, values, dtype="float32", **options):
    found = guard(ops.convert_to_tensor(np.asarray(values), dtype=dtype), **options)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    return ops.convert_to_numpy(ops.cast(found, "float32"))


def test_values_in_range_pass_to_the_last_bit_and_count_nothing():
    values = np.random.default_rng(0).uniform(-1, 1, (4, 5)).astype("float32")
    guard = ActivationGuard(-1.0, 1.0)
    np.testing.assert_array_equal(apply(guard, values), values)
    assert guard.report() == ("activation_guard", 0, -1.0, 1.0)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("clip", [1, 2, 2, 2, -1, -1, 0]),
        ("zero", [1, 2, 0, 0, 0, 0, 0]),
        ("count", [1, 2, 3, INF, -2, -INF, NAN]),
    ],
)
def test_each_action_does_what_it_says_and_counts_all(action, expected, jit_compile):
    guard = ActivationGuard(-1.0, 2.0, action=action)
    guard.build((None,))
    run = backend.compile_function(guard, jit_compile=jit_compile)
    found = ops.convert_to_numpy(run(ops.array([1, 2, 3, INF, -2, -INF, NAN], "float32")))
    np.testing.assert_array_equal(found, np.array(expected, "float32"))
    assert guard.report().violations == 5
    guard.reset()
    assert guard.report().violations == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF, 2.5, -0.5])
@pytest.mark.parametrize("position", [0, 7, 99_999])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_single_bad_value_is_found_wherever_it_is(value, position, jit_compile):
    values = np.random.default_rng(0).uniform(0, 2, 100_000).astype("float32")
    values[position] = value
    guard = ActivationGuard(0.0, 2.0)
    guard.build(values.shape)
    found = backend.compile_function(guard, jit_compile=jit_compile)(ops.array(values))
    assert guard.report().violations == 1
    assert ops.all(found >= 0)
    assert ops.all(found <= 2)


def test_zero_outside_of_the_bounds_becomes_the_bound_nearest_to_it():
    assert apply(ActivationGuard(1.0, 2.0), [NAN]) == [1]
    assert apply(ActivationGuard(-2.0, -1.0, action="zero"), [NAN]) == [-1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_is_kept_and_bounds_beyond_it_still_stop_infinity(dtype):
    guard = ActivationGuard(-1e300, 1e300)
    found = apply(guard, [INF, -INF, NAN, 1], dtype)
    assert np.isfinite(ops.convert_to_numpy(found)[2:]).all()
    assert guard.report().violations == 3


def test_mixed_precision_does_not_narrow_a_float32_value():
    keras.config.set_dtype_policy("mixed_float16")
    guard = ActivationGuard(0.0, 2.0)
    inputs = keras.Input((3,), dtype="float32")
    assert guard(inputs).dtype == "float32"
    assert apply(guard, [1.0001, 1, 3])[0] == np.float32(1.0001)


def test_channels_have_bounds_of_their_own_on_any_axis():
    values = np.full((2, 3, 4), 5.0)
    last = ActivationGuard([0, 0, 0, 0], [1, 2, 3, 9])
    np.testing.assert_array_equal(apply(last, values)[0, 0], [1, 2, 3, 5])
    assert last.report().violations == 18
    middle = ActivationGuard([0, 0, 7], [1, 2, 9], axis=1)
    np.testing.assert_array_equal(apply(middle, values)[0, :, 0], [1, 2, 7])
    with pytest.raises(ValueError, match=r"one bound for each channel, 4.*Received: 3"):
        apply(ActivationGuard([0, 0, 7], [1, 2, 9]), values)


def test_training_passes_everything():
    guard = ActivationGuard(0.0, 1.0)
    assert np.isinf(apply(guard, [INF], training=True))
    assert guard.report().violations == 0


@pytest.mark.parametrize("action", ["clip", "zero"])
def test_the_gradient_is_that_of_clip_also_beside_nan(action):
    guard = ActivationGuard(0.0, 2.0, action=action)
    inputs = ops.array([1.0, 3.0, -1.0, NAN, INF])
    found = backend.input_gradients(lambda x: guard(x) * 3, inputs)[1]
    np.testing.assert_array_equal(ops.convert_to_numpy(found), [3, 0, 0, 0, 0])
    clean = backend.input_gradients(lambda x: guard(x) * 3, inputs[:1])[1]
    np.testing.assert_array_equal(ops.convert_to_numpy(clean), [3])


def test_config_round_trip_and_save_keep_the_bounds_but_not_the_count(tmp_path):
    guard = ActivationGuard([0.0, -1.0], [1.0, 2.0], axis=1, action="zero", name="held")
    assert ActivationGuard.from_config(guard.get_config()).get_config() == guard.get_config()
    inputs = keras.Input((2,))
    model = keras.Model(inputs, guard(inputs))
    model.predict(np.full((1, 2), 9.0), verbose=0)
    assert guard.report().violations == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("held")
    assert loaded.get_config() == guard.get_config()
    assert loaded.report().violations == 0


def test_it_is_the_layer_of_the_namespace():
    assert ms.layers.ActivationGuard is ms.ActivationGuard is ActivationGuard


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, NAN), "must be finite.*upper=nan"),
        ((2, 1), "`lower` <= `upper`.*lower=2, upper=1"),
        (([0, 0], [1]), "two lists of one length"),
        (([], []), "two lists of one length"),
        ((0, [1, 2]), "two lists of one length"),
    ],
)
def test_bad_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivationGuard(*arguments)


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="`action` must be one of 'clip', 'zero', 'count'"):
        ActivationGuard(0, 1, action="raise")
