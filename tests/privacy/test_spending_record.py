"""No way of saving, loading and compiling loses what was spent on the weights."""

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping variable loading",
    "ignore:A total of",
    "ignore:Skipping nested container",
)


def _spent(model):
    return sorted((r.noise_multiplier, r.releases * r.runs) for r in model.optimizer.runs())


def _compile_privately(model, inner="sgd"):
    model.compile(ms.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=7.0), LOSS)


@pytest.fixture(scope="module")
def trained_file(tmp_path_factory):
    """Spent three releases of noise 1.5; trained once for all tests."""
    x = np.random.default_rng(1).normal(size=(12, 4)).astype("float32")
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu")(inputs)
    model = ms.SecureModel(inputs, keras.layers.Dense(3)(hidden))
    model.compile(ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.5), LOSS)
    model.fit(x, np.arange(12) % 3, batch_size=4, verbose=0)
    path = tmp_path_factory.mktemp("trained") / "trained.keras"
    model.save(path)
    return path


@pytest.fixture
def trained(trained_file):
    return keras.models.load_model(trained_file)


@pytest.fixture
def built(private_model):
    """A model of the same layers, with an optimizer that is ready to load into."""

    def build(inner="sgd", classes=3):
        layers = [keras.layers.Dense(5, activation="relu"), keras.layers.Dense(classes)]
        model = private_model(inner, noise_multiplier=7.0, layers=layers)
        model.optimizer.build(model.trainable_variables)
        return model

    return build


def test_another_inner_optimizer_skipping_what_does_not_fit(tmp_path, trained, built):
    trained.save_weights(tmp_path / "m.weights.h5")
    model = built("sgd")
    model.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    assert _spent(model) == [(1.5, 3.0)]


def test_another_inner_optimizer_is_refused_and_counts_though_the_error_is_caught(
    tmp_path, trained, built
):
    trained.save_weights(tmp_path / "m.weights.h5")
    model = built("sgd")
    with pytest.raises(ValueError, match="must fit"):
        model.load_weights(tmp_path / "m.weights.h5")
    assert _spent(model) == [(1.5, 3.0)]


def test_state_of_another_inner_optimizer_counts_without_a_record_of_the_model(trained, built):
    """As in files of earlier versions, which have none."""
    store = {}
    trained.optimizer.save_own_variables(store)
    model = built("sgd")
    with pytest.raises(NotPrivateError, match="counts from now on"):
        model.optimizer.load_own_variables(store)
    assert _spent(model) == [(1.5, 3.0)]


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("compiled_with", ["private", "plain", "nothing"])
@pytest.mark.parametrize("loaded_into", ["private", "plain", "nothing"])
def test_every_way_of_saving_and_loading_keeps_it(
    tmp_path, trained, built, suffix, compiled_with, loaded_into
):
    path = str(tmp_path / f"m{suffix}")
    if compiled_with == "nothing":
        trained.save(tmp_path / "t.keras")
        trained = keras.models.load_model(tmp_path / "t.keras", compile=False)
    elif compiled_with == "plain":
        trained.compile("sgd", LOSS)
    trained.save(path) if suffix == ".keras" else trained.save_weights(path)
    model = built("adam") if loaded_into == "private" else _without_privacy(built, loaded_into)
    # Only what the optimizer says of itself may be skipped.
    model.load_weights(path, skip_mismatch=compiled_with != loaded_into)
    _compile_privately(model)
    assert _spent(model) == [(1.5, 3.0)]
    for left, right in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def _without_privacy(built, compiled_with):
    model = ms.SecureModel.from_model(built())
    if compiled_with == "plain":
        model.compile("sgd", LOSS)
    return model


@pytest.mark.parametrize("compile", [True, False])
def test_compiled_without_privacy_saved_loaded_and_compiled_again(tmp_path, trained, compile):
    trained.compile("sgd", LOSS)
    trained.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=compile)
    loaded.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras", compile=compile)
    _compile_privately(again)
    assert _spent(again) == [(1.5, 3.0)]


def test_loaded_without_compiling_and_compiled_again(tmp_path, trained, tiny_data):
    trained.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    _compile_privately(loaded)
    loaded.fit(*tiny_data, batch_size=4, verbose=0)
    assert _spent(loaded) == [(1.5, 3.0), (7.0, 3.0)]


def test_saving_and_loading_again_and_again_counts_once(tmp_path, trained):
    model = trained
    for turn in range(3):
        model.save(tmp_path / f"{turn}.keras")
        model.load_weights(tmp_path / f"{turn}.keras")
        model = keras.models.load_model(tmp_path / f"{turn}.keras")
    assert _spent(model) == [(1.5, 3.0)]


@pytest.mark.parametrize("how", ["skipping", "failing", "by Keras's function"])
def test_weights_that_stay_keep_what_they_cost(tmp_path, tiny_data, trained, built, how):
    """The file's last layer does not fit, so the one trained here stays."""
    trained.compile("sgd", LOSS)
    _compile_privately(trained)
    trained.optimizer.build(trained.trainable_variables)
    trained.save_weights(tmp_path / "m.weights.h5")
    model = built("sgd", classes=4)
    model.fit(*tiny_data, batch_size=6, verbose=0)
    if how == "skipping":
        model.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    elif how == "by Keras's function":
        keras.saving.load_weights(model, tmp_path / "m.weights.h5", skip_mismatch=True)
    else:
        with pytest.raises(ValueError, match="could not be loaded"):
            model.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], trained.get_weights()[0])
    assert _spent(model) == [(1.5, 3.0), (7.0, 2.0)]


def test_weights_that_stay_keep_what_they_cost_without_an_optimizer(tmp_path, trained):
    trained.save(tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    loaded.load_weights(tmp_path / "m.weights.h5", objects_to_skip=[loaded.layers[1]])
    _compile_privately(loaded)
    assert _spent(loaded) == [(1.5, 6.0)]


def test_a_file_that_is_not_there_changes_nothing(tmp_path, trained):
    with pytest.raises(OSError, match="nothing"):
        trained.load_weights(tmp_path / "nothing.weights.h5")
    assert _spent(trained) == [(1.5, 3.0)]


@pytest.mark.parametrize("load", [ms.SecureModel.load_weights, keras.saving.load_weights])
def test_optimizer_that_is_skipped_still_counts(tmp_path, trained, built, load):
    trained.save_weights(tmp_path / "m.weights.h5")
    model = built("adam")
    load(model, tmp_path / "m.weights.h5", objects_to_skip=[model.optimizer])
    assert _spent(model) == [(1.5, 3.0)]


def test_weights_without_spending_load_into_a_plain_model_and_from_one(tmp_path, trained, built):
    trained.save_weights(tmp_path / "m.weights.h5")
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu")(inputs)
    plain = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    plain.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(plain.get_weights()[0], trained.get_weights()[0])
    plain.save_weights(tmp_path / "p.weights.h5")
    model = _without_privacy(built, "nothing")
    model.load_weights(tmp_path / "p.weights.h5")
    _compile_privately(model)
    assert _spent(model) == []


@pytest.mark.parametrize("rows", [np.zeros(3), np.full((1, 8), np.nan), np.zeros((1, 40))])
def test_rows_that_this_version_does_not_write_are_refused(trained, rows):
    with pytest.raises(NotPrivateError, match="must be rows"):
        trained._spent_privacy.load_own_variables({"0": rows})
