"""What goes through file objects is what Keras's own paths give."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_modelsec._core import keras_saving

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")


def no_assets():
    raise AssertionError("no layer of this model has files")


def contents(file):
    """All that an HDF5 file says; its bytes depend on how h5py was given the file."""
    found = {}

    def visit(name, item):
        value = item[()].tobytes() if isinstance(item, h5py.Dataset) else None
        found[name] = value, dict(item.attrs)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return found


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="relu", dtype="mixed_bfloat16")(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    model.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)
    return model


def whole(file):
    return b"".join(file.parts())


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_archive_holds_what_model_save_writes(model, tmp_path):
    model.save(tmp_path / "model.keras")
    theirs = members((tmp_path / "model.keras").read_bytes())
    ours = members(whole(keras_saving.hold_archive(model, no_assets)()))
    assert list(ours) == list(theirs)
    assert json.loads(ours["config.json"]) == json.loads(theirs["config.json"])
    assert ours["model.weights.h5"] == theirs["model.weights.h5"]
    assert set(json.loads(ours["metadata.json"])) == set(json.loads(theirs["metadata.json"]))


def test_keras_loads_what_was_written(model, tmp_path):
    with open(tmp_path / "model.keras", "wb") as file:
        file.write(whole(keras_saving.hold_archive(model, no_assets)()))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, 6))
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_what_model_save_wrote_is_read(model, tmp_path):
    model.save(tmp_path / "model.keras")
    parts = members((tmp_path / "model.keras").read_bytes())
    loaded = keras_saving.read_archive(
        parts["config.json"].decode(), io.BytesIO(parts["model.weights.h5"]), None
    )
    assert loaded.optimizer.iterations == 1
    for ours, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_those_of_save_weights(model, tmp_path):
    model.save_weights(tmp_path / "a.weights.h5")
    file = keras_saving.hold_weights(model)()
    assert contents(file) == contents(tmp_path / "a.weights.h5")
    clone = keras.models.clone_model(model)
    clone.compile("adam", "mse")
    keras_saving.read_weights(clone, file)
    for ours, theirs in zip(clone.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_that_do_not_fit_raise_as_in_keras(model):
    file = keras_saving.hold_weights(model)()
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match="could not be loaded"):
        keras_saving.read_weights(other, file)
    with pytest.raises(ValueError, match="must be built"):
        keras_saving.read_weights(keras.Sequential([keras.layers.Dense(7)]), file)


def test_layers_with_files_keep_them(tmp_path):
    lookup = keras.layers.StringLookup()
    lookup.adapt(["alpha", "beta", "beta"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    folder = tmp_path / "assets"
    folder.mkdir()
    parts = members(whole(keras_saving.hold_archive(model, lambda: str(folder))()))
    model.save(tmp_path / "model.keras")
    theirs = members((tmp_path / "model.keras").read_bytes())
    assert list(parts) == list(theirs)
    loaded = keras_saving.read_archive(
        parts["config.json"].decode(), io.BytesIO(parts["model.weights.h5"]), str(folder)
    )
    assert loaded.layers[0].get_vocabulary() == lookup.get_vocabulary()


class _Note(keras_saving.SavedBeside):
    """Holds a number, and a layer that must not be found through it."""

    def __init__(self, value=0.0):
        self.value, self.hidden = value, keras.layers.Dense(1)
        self.hidden.build((None, 1))

    def save_own_variables(self, store):
        if self.value:
            store["0"] = np.float64(self.value)

    def load_own_variables(self, store):
        self.value = float(np.asarray(store["0"])) if "0" in store.keys() else None  # noqa: SIM118


@pytest.mark.parametrize("value", [3.5, 0.0])
def test_an_object_beside_the_weights_is_saved_with_them_and_only_that(tmp_path, value):
    models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(3)]
    models[0].note, models[1].note = _Note(value), _Note()
    models[0].save_weights(tmp_path / "m.weights.h5")
    names = {path for path, _ in keras_saving.saved_state(models[0])}
    assert names == {"layers/dense/vars/0", "layers/dense/vars/1"} | (
        {"note/vars/0"} if value else set()
    )
    for model in models[1:]:
        model.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(model.get_weights()[0], models[0].get_weights()[0])
    assert models[1].note.value == (value or None)


def dense(*policies, **compile_arguments):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(16, dtype=policy) for policy in policies]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(2)])
    model.compile(**{"optimizer": "adam", "loss": "mse", **compile_arguments})
    return model


def quantised():
    model = dense("float32", "float32")
    model.quantize("int8")
    for layer in model.layers:
        layer.enable_lora(2)
    model.compile("adam", "mse")
    return model


def embedded():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Embedding(9, 4)])
    for layer in ("Flatten", "BatchNormalization"):
        model.add(getattr(keras.layers, layer)())
    model.add(keras.layers.Dropout(0.3))
    model.add(keras.layers.Dense(2))
    model.compile(keras.optimizers.SGD(momentum=0.9, use_ema=True), "mse")
    return model


def mirrored():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        return dense("float32")


KINDS = {
    "plain": lambda: dense("float32"),
    "mixed precision, scaled loss": lambda: dense("mixed_float16", "mixed_bfloat16"),
    "compiled by XLA": lambda: dense("float32", jit_compile=True),
    "several steps an execution": lambda: dense("float32", steps_per_execution=3),
    "eager": lambda: dense("float32", run_eagerly=True),
    "quantised": quantised,
    "embedding, moving averages, noise": embedded,
    "mirrored": mirrored,
}
SLOW = ("eager", "quantised", "mirrored")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS]
)
def test_what_is_held_is_the_model_of_the_moment_however_training_goes_on(kind, tmp_path):
    model = KINDS[kind]()
    x, y = np.arange(36).reshape(6, 6) % 9, np.ones((6, 2))
    model.fit(x, y, batch_size=2, verbose=0)
    model.save_weights(tmp_path / "then.weights.h5")
    held = keras_saving.hold_weights(model)
    model.fit(x, y, batch_size=2, epochs=3, verbose=0)
    then = contents(tmp_path / "then.weights.h5")
    assert contents(held()) == then
    assert contents(keras_saving.hold_weights(model)()) != then
    assert any(name.startswith("optimizer/vars/") for name in then)
    assert "save_own_variables" not in vars(model.optimizer)


def test_tensors_are_neither_copied_to_be_held_nor_to_be_written(tmp_path):
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(300)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    file = keras_saving.hold_archive(model, no_assets)()
    assert (
        members(whole(file))["model.weights.h5"]
        == (members((tmp_path / "model.keras").read_bytes())["model.weights.h5"])
    )
    kept = {np.frombuffer(part, np.uint8).ctypes.data for part in file.parts()}
    kernels = [v for v in (*model.weights, *model.optimizer.variables) if v.shape == (200, 300)]
    assert len(kernels) == 3
    assert all(keras_saving.backend.array_now(v).ctypes.data in kept for v in kernels)


class _Table(keras.layers.Layer):
    """Saves an array that it goes on changing, through whatever `store` offers."""

    def __init__(self, way="plain"):
        super().__init__()
        self.way, self.table = way, np.zeros(3)

    def save_own_variables(self, store):
        store["table"] = self.table
        if self.way == "reads back":
            store["again"] = store["table"] + 1
            del store["table"]
            assert "again" in store
            assert list(store.keys()) == ["again"]
        elif self.way == "needs a file":
            store.h5_file.attrs["mine"] = 7
        elif self.way == "fails":
            raise RuntimeError("no")


@pytest.mark.parametrize("way", ["plain", "reads back", "needs a file"])
def test_arrays_of_layers_are_those_of_the_moment_whatever_they_ask_of_the_store(way, tmp_path):
    model = keras.Sequential([keras.Input((2,)), _Table(way)])
    model.save_weights(tmp_path / "then.weights.h5")
    held = keras_saving.hold_weights(model)
    model.layers[0].table += 1
    file = held()
    assert contents(file) == contents(tmp_path / "then.weights.h5")
    with h5py.File(file, "r") as opened:
        assert ("mine" in opened.attrs) == (way == "needs a file")


def test_error_of_a_layer_is_its_own():
    model = keras.Sequential([keras.Input((2,)), _Table("fails")])
    with pytest.raises(RuntimeError, match="no"):
        keras_saving.hold_weights(model)


class _InMemory(io.BytesIO):
    """A file that says where all its bytes are, as files that are read in memory do."""

    def __init__(self, data):
        super().__init__(data)
        self.memory = memoryview(bytearray(data))


@pytest.mark.parametrize(
    "kind", ["float32", ">f4", "float16", "int8", "uint8", "bool", "complex64"]
)
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_large_tensors_in_memory_are_those_that_keras_reads(kind, in_one_piece):
    values = np.random.default_rng(0).integers(0, 2, (3, 1 << 19)).astype(kind)
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.create_dataset("vars/0", data=values, chunks=None if in_one_piece else True)
    image = _InMemory(file.getvalue())
    store = keras_saving._Views(image, image.memory)
    found = store.get("")["0"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype
    plain = in_one_piece and kind not in (">f4", "bool", "complex64")
    assert np.shares_memory(found, np.frombuffer(image.memory, np.uint8)) == plain
    store.close()
