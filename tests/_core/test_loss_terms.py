"""What the robustness hooks read from Keras's private parts."""

import keras
import numpy as np
import pytest

from keras_modelsec._core import keras_internals as internals

X = np.random.default_rng(0).random((6, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 6)


def two_outputs():
    inputs = keras.Input((4,))
    outputs = {
        "a": keras.layers.Dense(3, activation="softmax", name="a")(inputs),
        "b": keras.layers.Dense(1, name="b")(inputs),
    }
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("fitted", [False, True])
def test_loss_terms_take_a_compiled_loss_apart_without_touching_its_metrics(fitted):
    model = two_outputs()
    model.compile(
        "sgd",
        {"a": "sparse_categorical_crossentropy", "b": "mse"},
        loss_weights={"a": 2.0, "b": 0.5},
    )
    y = {"a": Y, "b": X[:, :1]}
    if fitted:
        model.fit(X, y, verbose=0)
    compiled = internals.compiled_loss(model)
    before = [variable.numpy() for variable in compiled.variables]
    outputs = model(X)
    terms = internals.LossTerms(model)(y, outputs)
    assert [term.weight for term in terms] == [2.0, 0.5]
    assert terms[0].y_pred is outputs["a"]
    np.testing.assert_array_equal(terms[0].y_true, Y)
    function, _ = internals.loss_function(terms[0].loss)
    assert function is keras.losses.sparse_categorical_crossentropy
    assert compiled.built is fitted
    for left, right in zip(compiled.variables, before, strict=True):
        np.testing.assert_array_equal(left.numpy(), right)


def test_output_without_a_loss_has_no_term():
    model = two_outputs()
    model.compile("sgd", {"a": "sparse_categorical_crossentropy"})
    terms = internals.LossTerms(model)({"a": Y}, model(X))
    assert len(terms) == 1


def test_loss_function_gives_the_arguments():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=7)
    function, arguments = internals.loss_function(loss)
    assert function is keras.losses.sparse_categorical_crossentropy
    assert arguments["from_logits"] is True
    assert arguments["ignore_class"] == 7


class NoFunction(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred


def test_loss_class_without_a_function_has_none():
    assert internals.loss_function(NoFunction()) == (None, {})


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_are_remembered_on_the_activation_and_lost_after_it(activation):
    logits = keras.ops.convert_to_tensor(X)
    output = keras.activations.get(activation)(logits)
    np.testing.assert_array_equal(internals.logits_of(output), X)
    assert internals.logits_of(output * 1.0) is None


def test_token_is_another_after_each_compile():
    model = two_outputs()
    assert internals.compile_token(model) is None
    model.compile(loss="mse")
    first = internals.compile_token(model)
    assert internals.compile_token(model) is first
    model.compile(loss="mse")
    assert internals.compile_token(model) is not first


def test_user_loss_is_what_compile_was_given():
    model = two_outputs()
    assert internals.user_loss(model) is None
    model.compile(loss={"a": "mse", "b": "mae"})
    assert internals.user_loss(model) == {"a": "mse", "b": "mae"}


def test_build_for_training_builds_model_and_loss_from_shapes_alone():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Net()
    model.compile("adam", "mse")
    x, y = keras.ops.convert_to_tensor(X), keras.ops.zeros((6, 3))
    internals.build_for_training(model, x, y, None)
    assert model.built
    assert internals.compiled_loss(model).built
    assert model.dense.kernel.shape == (4, 3)
