"""Guards in whole models: where they stand, what they learn, and what they save from bit flips."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from sklearn.datasets import load_digits

import keras_modelsec as ms
from keras_modelsec.integrity.guards.activation_guard import (
    ActivationGuard,
    activation_reports,
    guards_of,
)
from keras_modelsec.integrity.guards.guarding import guard_activations


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = (data.images[..., None] / 16).astype("float32")
    return x, data.target


@pytest.fixture(scope="module")
def trained(digits):
    x, y = digits
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x[:1200], y[:1200], epochs=12, verbose=0)
    return model


def names(model):
    return [guard.name for guard in guards_of(model)]


def data(shape, n=64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype("float32")


def test_clean_calibration_data_give_the_same_numbers_and_no_violation(trained, digits):
    x = digits[0][:1200]
    for options in ({}, {"margin": 0.0}, {"per_channel": True, "margin": 0.0}):
        guarded = guard_activations(trained, x, **options)
        np.testing.assert_array_equal(
            guarded.predict(x, verbose=0), trained.predict(x, verbose=0), str(options)
        )
        assert len(guards_of(guarded)) == 4
        assert not any(report.violations for report in activation_reports(guarded))


def test_weights_are_shared_and_the_original_is_unchanged(trained, digits):
    x = digits[0][:100]
    before = trained.predict(x, verbose=0)
    guarded = guard_activations(trained, x)
    assert isinstance(guarded, keras.Sequential)
    own = {id(v) for v in guarded.trainable_variables}
    assert own == {id(v) for v in trained.trainable_variables}
    assert not guards_of(trained)
    assert trained.compiled
    np.testing.assert_array_equal(trained.predict(x, verbose=0), before)


def test_bounds_are_the_learned_range_widened_by_the_margin():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(2, kernel_initializer="identity", name="d")(inputs))
    x = np.array([[0, -1], [4, 3]], "float32")
    (report,) = activation_reports(guard_activations(model, x, margin=0.2))
    np.testing.assert_allclose([report.lower, report.upper], [-2, 5], rtol=1e-4)
    (report,) = activation_reports(guard_activations(model, x, margin=0.0, per_channel=True))
    np.testing.assert_allclose([report.lower, report.upper], [[0, -1], [4, 3]], atol=1e-4)


def test_guards_stand_once_behind_each_chain_and_not_behind_the_final_softmax():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="c1")(inputs)
    x = layers.BatchNormalization(name="b1")(x)
    skip = layers.ReLU(name="r1")(x)
    x = layers.Conv2D(4, 3, padding="same", name="c2")(skip)
    x = layers.Add(name="add")([x, skip])
    x = layers.MaxPooling2D(name="pool")(layers.Activation("relu", name="r2")(x))
    x = layers.Dense(5, name="logits")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Softmax()(x))
    guarded = guard_activations(model, data((8, 8, 3)))
    assert names(guarded) == ["r1_guard", "pool_guard", "logits_guard"]
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2, "sigmoid")])
    assert len(names(guard_activations(model, data((3,))))) == 1


def test_layers_names_where(trained, digits):
    x = digits[0][:50]
    first, last = trained.layers[0], trained.layers[-1]
    guarded = guard_activations(trained, x, layers=[first.name, last])
    assert names(guarded) == [f"{first.name}_guard", f"{last.name}_guard"]
    with pytest.raises(ValueError, match=r"`layers` must name layers of the model.*'nowhere'"):
        guard_activations(trained, x, layers=["nowhere"])


def _nested():
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, layers.Dense(4, "relu", name="in")(inner_inputs), name="net")
    block = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="seq")], name="block")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(4, name="shared")
    joined = layers.Concatenate()([inner(shared(a)), inner(shared(b)), block(a)])
    outputs = {"p": layers.Dense(2, name="p")(joined), "q": layers.Dense(1, name="q")(joined) * 2.0}
    return keras.Model({"a": a, "b": b}, outputs)


def test_nested_models_shared_layers_and_many_inputs_and_outputs(tmp_path):
    model = _nested()
    x = {"a": data((4,)), "b": data((4,), seed=1)}
    guarded = guard_activations(model, x)
    assert sorted(names(guarded)) == ["in_guard", "p_guard", "q_guard", "seq_guard", "shared_guard"]
    expected = model.predict(x, verbose=0)
    guarded.save(tmp_path / "guarded.keras")
    loaded = keras.models.load_model(tmp_path / "guarded.keras")
    for found in (guarded.predict(x, verbose=0), loaded.predict(x, verbose=0)):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6)
    assert [r.upper for r in activation_reports(loaded)] == [
        r.upper for r in activation_reports(guarded)
    ]
    x["b"][3, 2] = np.nan  # through `shared` only
    found = loaded.predict(x, verbose=0)
    assert all(np.isfinite(value).all() for value in found.values())
    assert {r.layer for r in activation_reports(loaded) if r.violations} == {"shared_guard"}


def test_recurrent_states_masks_and_integer_inputs():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="e")(inputs)
    x, state, _ = layers.LSTM(3, return_sequences=True, return_state=True, name="lstm")(x)
    x = layers.GlobalAveragePooling1D()(x)  # reads the mask
    model = keras.Model(inputs, layers.Dense(2, name="d")(layers.Concatenate()([x, state])))
    tokens = np.random.default_rng(0).integers(0, 9, (40, 6))
    guarded = guard_activations(model, tokens)
    assert names(guarded) == [
        "e_guard",
        "lstm_guard",
        "lstm_guard_1",  # the third output is read by nothing
        "d_guard",
    ]
    np.testing.assert_allclose(
        guarded.predict(tokens, verbose=0), model.predict(tokens, verbose=0), rtol=1e-5
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_mixed_precision_and_xla(jit_compile):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(2, dtype="float32")]
    )
    x = data((4,))
    guarded = guard_activations(model, x)
    guarded.compile(loss="mse", jit_compile=jit_compile)
    found = guarded.predict(x, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-3, atol=1e-4)
    assert guarded.layers[1].output.dtype == "float16"
    kernel = model.layers[0].kernel
    kernel.assign(ops.multiply(kernel, 1e30))
    assert np.isfinite(guarded.predict(x, verbose=0)).all()


def test_data_sets_calibrate_and_targets_in_them_are_ignored(trained, digits):
    import tensorflow as tf

    x, y = digits[0][:100], digits[1][:100]
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(30)
    by_set, by_array = (
        activation_reports(guard_activations(trained, source)) for source in (dataset, x)
    )
    np.testing.assert_allclose([r.upper for r in by_set], [r.upper for r in by_array], rtol=1e-4)


def test_fit_is_as_without_guards_and_evaluate_counts(digits):
    x, y = digits[0][:200], digits[1][:200]
    results = []
    for guarding in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, "relu"), layers.Dense(10)]
        )
        if guarding:
            model = guard_activations(model, x)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        results.append(model.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"])
    assert results[0] == results[1]
    assert not any(report.violations for report in activation_reports(model))
    model.evaluate(x * 100, y, verbose=0)
    assert all(report.violations for report in activation_reports(model))


def test_a_distributed_model_stays_distributed_and_counts_on_all_replicas(mirrored_strategy):
    with mirrored_strategy.scope():
        model = keras.Sequential([keras.Input((2,)), layers.Dense(2, kernel_initializer="ones")])
    guarded = guard_activations(model, np.ones((8, 2), "float32"))
    with mirrored_strategy.scope():
        guarded.compile(loss="mse")
    guarded.evaluate(np.full((8, 2), 100.0), np.zeros((8, 2)), batch_size=8, verbose=0)
    assert activation_reports(guarded)[0].violations == 16


def test_what_cannot_be_guarded_is_refused_and_says_why():
    class Own(keras.Model):
        def call(self, x):
            return x

    x = data((3,))
    with pytest.raises(TypeError, match=r"Received: Own, a subclassed model.*ActivationGuard"):
        guard_activations(Own(), x)
    with pytest.raises(TypeError, match=r"must be a keras\.Model. Received: int"):
        guard_activations(3, x)
    with pytest.raises(ValueError, match="must be built"):
        guard_activations(keras.Sequential([layers.Dense(2)]), x)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="d")])
    x[5, 1] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite values behind 'd'"):
        guard_activations(model, x)
    softmax = keras.Sequential([keras.Input((3,)), layers.Dense(2, "softmax")])
    with pytest.raises(ValueError, match="at least one layer"):
        guard_activations(softmax, data((3,)))
    with pytest.raises(ValueError, match="`margin` must be a finite number >= 0"):
        guard_activations(model, x, margin=-0.1)


def test_plain_keras_loads_a_guarded_model_after_importing_the_package(trained, digits, tmp_path):
    guarded = ms.guard_activations(trained, digits[0][:50])
    guarded.save_weights(tmp_path / "guarded.weights.h5")
    before = guarded.predict(digits[0][:50], verbose=0)
    guarded.load_weights(tmp_path / "guarded.weights.h5")
    np.testing.assert_array_equal(guarded.predict(digits[0][:50], verbose=0), before)


def flip_exponent_bits(generator, values, count):
    """Flips a random one of the 8 exponent bits in `count` random float32 values, in place."""
    flat = values.reshape(-1).view("uint32")
    places = generator.choice(flat.size, count, replace=False)
    flat[places] ^= np.uint32(1) << generator.integers(23, 31, count).astype("uint32")


def campaign_on_weights(model, guarded, x, y, *, trials, flips):
    """Mean accuracies (unguarded, guarded) over random flips in the weights both share."""
    generator = np.random.default_rng(0)
    clean = model.get_weights()
    found = []
    for _ in range(trials):
        damaged = [w.copy() for w in clean]
        target = damaged[2 * generator.integers(len(damaged) // 2)]  # a kernel
        flip_exponent_bits(generator, target, flips)
        model.set_weights(damaged)
        found.append([accuracy(m, x, y) for m in (model, guarded)])
    model.set_weights(clean)
    return np.mean(found, axis=0)


def accuracy(model, x, y):
    return np.mean(np.argmax(ops.convert_to_numpy(model(x)), -1) == y)


def test_bit_flips_in_weights_cost_much_less_accuracy_with_guards(trained, digits):
    x, y = digits[0][1200:], digits[1][1200:]
    guarded = guard_activations(trained, digits[0][:1200])
    clean = accuracy(trained, x, y)
    assert clean > 0.9
    assert abs(accuracy(guarded, x, y) - clean) < 0.005
    without, with_guards = campaign_on_weights(trained, guarded, x, y, trials=40, flips=10)
    assert without < clean - 0.2  # the campaign does harm
    assert with_guards > without + 0.5 * (clean - without)
    assert sum(report.violations for report in activation_reports(guarded)) > 0


class Flipping(keras.layers.Layer):
    """Flips bits in intermediate values on their way, as faulty memory would."""

    def call(self, inputs):
        values = ops.convert_to_numpy(inputs).copy()
        for example in values:
            flip_exponent_bits(np.random.default_rng(len(values)), example, 2)
        return ops.convert_to_tensor(values)


def test_bit_flips_in_intermediate_values_cost_much_less_accuracy_with_guards(trained, digits):
    x, y = digits[0][1200:], digits[1][1200:]
    guards = iter(guards_of(guard_activations(trained, digits[0][:1200])))

    def run(guarding):
        value, fault = x, Flipping()
        for layer in trained.layers:
            value = layer(value)
            if layer.weights and layer is not trained.layers[-1]:
                value = fault(value)
                value = next(guards)(value) if guarding else value
        return np.mean(np.argmax(ops.convert_to_numpy(value), -1) == y)

    without, with_guards = run(False), run(True)
    assert without < 0.6
    assert with_guards > without + 0.3
    assert isinstance(next(guards), ActivationGuard)
