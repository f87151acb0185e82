"""The owner of `train_step`: exactly keras.Model without hooks, and a guard around them."""

import keras
import numpy as np
import pytest

from keras_modelsec._core.train_step import TrainStepOwner
from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin

X = np.random.default_rng(0).random((48, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 48)


def new_class(mixin):
    """A class for each model: Keras rewrites the bases of one that makes a functional model."""
    if mixin is None:
        return keras.Model
    return type("Net", (mixin, keras.Model), {})


def layers():
    return [
        keras.layers.Dense(8, activation="relu", kernel_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5, seed=3),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, activation="softmax"),
    ]


def functional(mixin):
    inputs = outputs = keras.Input((6,))
    for layer in layers():
        outputs = layer(outputs)
    return new_class(mixin)(inputs, outputs)


def from_sequential(mixin):
    model = keras.Sequential([keras.Input((6,)), *layers()])
    return new_class(mixin)(model.inputs[0], model.outputs[0]) if mixin else model


def subclassed(mixin):
    class Net(new_class(mixin)):
        def __init__(self):
            super().__init__()
            self.steps = layers()

        def call(self, x, training=False):
            for layer in self.steps:
                takes_training = isinstance(
                    layer, (keras.layers.Dropout, keras.layers.BatchNormalization)
                )
                x = layer(x, training=training) if takes_training else layer(x)
            return x

    return Net()


def weights_after_fit(make, mixin, **compile_arguments):
    keras.utils.set_random_seed(7)
    keras.backend.clear_session(free_memory=False)
    model = make(mixin)
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **compile_arguments,
    )
    history = model.fit(
        X,
        Y,
        sample_weight=np.linspace(0, 1, 48),
        epochs=2,
        batch_size=20,
        verbose=0,
    )
    return model.get_weights(), history.history


@pytest.mark.parametrize(
    ("make", "mixin", "arguments"),
    [
        *((make, TrainStepOwner, {}) for make in (functional, from_sequential, subclassed)),
        *((make, AdversarialMixin, {}) for make in (functional, from_sequential, subclassed)),
        (functional, AdversarialMixin, {"run_eagerly": True}),
        (functional, AdversarialMixin, {"steps_per_execution": 2}),
    ],
)
def test_without_hooks_weights_and_history_equal_those_of_keras_exactly(make, mixin, arguments):
    expected, expected_history = weights_after_fit(make, None, **arguments)
    received, history = weights_after_fit(make, mixin, **arguments)
    assert len(received) == len(expected)
    for left, right in zip(received, expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert history == expected_history


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_weights_equal_those_of_keras_exactly(precision):
    keras.config.set_dtype_policy(precision)
    expected, _ = weights_after_fit(functional, None)
    received, _ = weights_after_fit(functional, AdversarialMixin)
    for left, right in zip(received, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_gradient_accumulation_equals_keras_exactly():
    def run(mixin):
        keras.utils.set_random_seed(7)
        model = functional(mixin)
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
        model.fit(X, keras.utils.to_categorical(Y), batch_size=8, epochs=1, verbose=0)
        return model.get_weights()

    for left, right in zip(run(TrainStepOwner), run(None), strict=True):
        np.testing.assert_array_equal(left, right)


def test_mixin_after_keras_model_is_refused_when_the_class_is_defined():
    with pytest.raises(TypeError, match=r"before keras\.Model.*class Net\(AdversarialMixin"):

        class Net(keras.Model, AdversarialMixin):
            pass


def test_override_of_train_step_is_refused_when_the_class_is_defined():
    with pytest.raises(TypeError, match=r"one owner.*Net\.train_step"):

        class Net(AdversarialMixin, keras.Model):
            def train_step(self, data):
                return {}


def test_override_of_the_order_of_hooks_is_refused_when_the_class_is_defined():
    with pytest.raises(TypeError, match=r"one owner.*Net\.run_update"):

        class Net(AdversarialMixin, keras.Model):
            def run_update(self, given, apply):
                return given, None


class Noting(TrainStepOwner):
    """Notes which hook was given what, in eager steps."""

    updates_per_batch = 2

    def begin_step(self, batch):
        self.seen.append(("begin", float(batch.x[0, 0])))

    def prepare_batch(self, batch):
        self.seen.append(("prepare", float(batch.x[0, 0])))
        return batch.replace(x=batch.x + 1.0, aux={"shift": 1.0})

    def training_loss(self, batch, y_pred):
        self.seen.append(("loss", float(batch.x[0, 0])))
        return batch.aux["shift"] * super().training_loss(batch, y_pred)

    def after_update(self, batch, extra):
        self.seen.append(("after", int(self.optimizer.iterations.numpy())))


def test_hooks_run_in_order_and_each_update_begins_with_the_batch_of_fit():
    model = functional(Noting)
    model.seen = []
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    x = np.zeros((4, 6), "float32")
    model.fit(x, Y[:4], verbose=0)
    update = [("prepare", 0.0), ("loss", 1.0)]
    assert list(model.seen) == [("begin", 0.0), *update, ("after", 1), *update, ("after", 2)]


@keras.saving.register_keras_serializable("test_train_step")
class Loaded(TrainStepOwner, keras.Model):
    """A mixin that gives `compile` an argument."""

    note = None

    def compile(self, *args, note=None, **kwargs):
        super().compile(*args, **kwargs)
        self.note = note

    def get_compile_config(self):
        return {**super().get_compile_config(), "note": self.note}


def test_overridden_compile_is_called_on_loading_with_its_own_argument(tmp_path):
    inputs = keras.Input((6,))
    model = Loaded(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    model.compile("adam", "sparse_categorical_crossentropy", note="kept")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.note == "kept"
    for left, right in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(left.numpy(), right.numpy())


def test_loaded_model_continues_exactly_where_the_saved_one_would(tmp_path):
    inputs = keras.Input((6,))
    net = new_class(TrainStepOwner)
    model = net(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Net": net})
    for each in (model, loaded):
        each.fit(X, Y, shuffle=False, verbose=0)
    for left, right in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_model_loaded_uncompiled_stays_uncompiled(tmp_path):
    inputs = keras.Input((6,))
    model = Loaded(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    assert not keras.saving.load_model(tmp_path / "model.keras", compile=False).compiled
