"""Adversarial and private training together, in every way `fit` can run.

The attack starts at the data and the noise is off, so the step is deterministic: each way must give
the weights of the reference, not merely run.
"""

import hashlib

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError

layers = keras.layers
GENERATOR = np.random.default_rng(5)
X = GENERATOR.uniform(0.1, 0.9, (14, 8)).astype("float32")
Y = GENERATOR.integers(0, 3, 14)
WEIGHT = GENERATOR.uniform(0, 2, 14).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _hidden():
    return [
        layers.Dense(6, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(1)),
        layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(2)),
    ]


def _functional(base=ms.SecureModel):
    inputs = keras.Input((8,))
    x = inputs
    for layer in _hidden():
        x = layer(x)
    return base(inputs, x)


def _subclassed(*bases):
    class Net(*(bases or (ms.SecureModel,))):
        def __init__(self):
            super().__init__()
            self.steps = _hidden()

        def call(self, x):
            for layer in self.steps:
                x = layer(x)
            return x

    return Net()


def _of_order(*mixins):
    return type("Net", (*mixins, keras.Model), {})


FORMS = {
    "functional": _functional,
    "from_sequential": lambda: ms.SecureModel.from_model(
        keras.Sequential([keras.Input((8,)), *_hidden()])
    ),
    "from_functional": lambda: ms.SecureModel.from_model(_functional(keras.Model)),
    "subclassed": _subclassed,
    "adversarial_first": lambda: _functional(_of_order(ms.AdversarialMixin, ms.DPMixin)),
    "private_first": lambda: _functional(_of_order(ms.DPMixin, ms.AdversarialMixin)),
    "mixed_into_sequential": lambda: type(
        "Stack", (ms.DPMixin, ms.AdversarialMixin, keras.Sequential), {}
    )(_hidden()),
    "subclassed_private_first": lambda: _subclassed(ms.DPMixin, ms.AdversarialMixin, keras.Model),
}
WAYS = {
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "auto": {"jit_compile": "auto"},
    "several_steps_at_once": {"steps_per_execution": 3},
}


def _compile(model, **options):
    optimizer = options.pop("optimizer", None) or keras.optimizers.SGD(0.5)
    model.compile(
        ms.DPOptimizer(optimizer, l2_norm_clip=0.2, noise_multiplier=0.0),
        options.pop("loss", LOSS),
        adversarial=ms.attacks.FGSM(epsilon=0.05),
        **options,
    )
    return model


def _fit(model, x=X, y=Y, **options):
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, **options)  # three batches of 4 and a last one of 2


@pytest.fixture(scope="module")
def reference():
    """Weights and losses that a loop by hand gives: attack, clip each example, sum, divide."""
    model = _functional(keras.Model)
    model.compile("sgd", LOSS)
    losses = []
    for start in [0, 4, 8, 12] * 2:
        x, y = X[start : start + 4], Y[start : start + 4]
        x = ms.attacks.FGSM(epsilon=0.05)(model, x, y)
        updates = [np.zeros_like(weight) for weight in model.get_weights()]
        losses.append(float(LOSS(y, model(x))))
        for i in range(len(x)):
            gradients = _one_gradient(model, x[i : i + 1], y[i : i + 1])
            norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
            for update, gradient in zip(updates, gradients, strict=True):
                update += gradient * min(1.0, 0.2 / norm) / 4
        model.set_weights(
            [w - 0.5 * update for w, update in zip(model.get_weights(), updates, strict=True)]
        )
    return model.get_weights(), losses


def _one_gradient(model, x, y):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = LOSS(y, model(x, training=True))
    return [
        np.asarray(g) for g in tape.gradient(loss, [v.value for v in model.trainable_variables])
    ]


def _assert_equal(model, reference, atol=2e-5):
    for actual, expected in zip(model.get_weights(), reference[0], strict=True):
        np.testing.assert_allclose(actual, expected, atol=atol)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_model_gives_the_weights_of_a_loop_by_hand(form, reference):
    model = _compile(FORMS[form]())
    history = _fit(model)
    _assert_equal(model, reference)
    counts = np.array([4, 4, 4, 2])
    expected = [np.average(reference[1][4 * e : 4 * e + 4], weights=counts) for e in range(2)]
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-4)
    assert model.optimizer.release_count == 8


@pytest.mark.parametrize(
    "way", [pytest.param("xla", marks=pytest.mark.slow), *sorted(set(WAYS) - {"xla"})]
)
def test_every_way_to_run_gives_the_same_weights(way, reference):
    model = _compile(_functional(), **WAYS[way])
    _fit(model)
    _assert_equal(model, reference)


def test_two_replicas_give_the_same_weights_but_for_the_short_batch(mirrored_strategy):
    results = []
    for make_scope in (mirrored_strategy.scope, lambda: keras.name_scope("one")):
        with make_scope():
            model = _compile(_functional())
        _fit(model, X[:12], Y[:12])
        results.append(model.get_weights())
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_near_the_reference(policy, reference):
    keras.config.set_dtype_policy(policy)
    model = _compile(_functional())
    assert isinstance(model.optimizer, ms.DPOptimizer)
    _fit(model)
    _assert_equal(model, reference, atol=0.05)


def test_weighted_examples_and_classes_train():
    for options in ({"sample_weight": WEIGHT}, {"class_weight": {0: 0.5, 1: 2.0, 2: 1.0}}):
        model = _compile(_functional())
        before = model.get_weights()
        _fit(model, **options)
        assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())
        assert np.any(before[0] != model.get_weights()[0])


def test_functional_model_of_a_users_class_leaves_other_subclasses_as_they_are():
    class Net(ms.SecureModel):
        pass

    class Child(Net):
        pass

    class Called(ms.SecureModel):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    inputs = keras.Input((3,))
    for kind in (Child, Net, Child):
        model = kind(inputs, layers.Dense(2)(inputs))
        assert type(model) is kind
        assert model.inputs[0] is inputs
    assert Called()(np.ones((1, 3))).shape == (1, 2)


@pytest.mark.filterwarnings("ignore:The model has several outputs:UserWarning")
@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_inputs_and_outputs_train(structure):
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    joined = layers.Add()([layers.Dense(4)(left), layers.Dense(4)(right)])
    outputs = {
        "kind": layers.Dense(3, name="kind")(joined),
        "size": layers.Dense(1, name="size")(joined),
    }
    x, y = {"left": X, "right": X[::-1]}, {"kind": Y, "size": WEIGHT[:, None]}
    losses = {"kind": LOSS, "size": "mse"}
    if structure == "dict":
        model = ms.SecureModel({"left": left, "right": right}, outputs)
    else:
        model = ms.SecureModel([left, right], list(outputs.values()))
        x, y, losses = (list(part.values()) for part in (x, y, losses))
    _compile(model, loss=losses)
    history = _fit(model, x, y)
    assert history.history["loss"][1] < history.history["loss"][0]
    assert model.optimizer.release_count == 8


def test_accumulation_is_private_where_keras_own_would_not_be():
    model = _functional()
    optimizer = ms.DPOptimizer(
        "sgd", l2_norm_clip=0.2, noise_multiplier=1.0, gradient_accumulation_steps=2
    )
    model.compile(optimizer, LOSS, adversarial=ms.attacks.FGSM(epsilon=0.05))
    _fit(model)
    assert model.optimizer.release_count == 4


@pytest.mark.parametrize("form", ["functional", "subclassed"])
def test_whole_state_survives_saving(form, tmp_path):
    model = _compile(FORMS[form](), optimizer=keras.optimizers.Adam(0.01))
    _fit(model)
    path = str(tmp_path / "model.keras")
    if form == "subclassed":
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = _compile(FORMS[form](), optimizer=keras.optimizers.Adam(0.01))
        loaded(X[:1])
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(tmp_path / "model.weights.h5")
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
        assert isinstance(loaded.adversarial.attack, ms.attacks.FGSM)
    assert loaded.optimizer.runs() == model.optimizer.runs()
    for both in (model, loaded):
        _fit(both, epochs=1)
    for left, right in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_penalties_are_not_drowned_by_clipping_or_noise():
    key = hashlib.sha256(b"the owner's").digest()  # the same in every run: none fails by chance
    inputs = keras.Input((8,))
    regularizer = ms.WatermarkRegularizer(key, strength=4.0)
    hidden = layers.Dense(96, activation="relu", kernel_regularizer=regularizer)(inputs)
    model = ms.SecureModel(inputs, layers.Dense(3)(hidden))
    model.compile(
        ms.DPOptimizer(keras.optimizers.Adam(0.01), l2_norm_clip=0.1, noise_multiplier=1.0), LOSS
    )
    _fit(model, batch_size=14, epochs=60)
    assert ms.verify_watermark(model, key).log10_p < -8


def test_unbuilt_subclassed_model_trains_privately_from_its_first_step():
    model = _subclassed(ms.DPMixin, keras.Model)
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=0.0), LOSS)
    reference = _functional(ms.SecureModel)
    reference.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=0.0), LOSS)
    for either in (model, reference):
        _fit(either, epochs=1)
    for left, right in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_plain_model_with_a_dp_optimizer_never_trains():
    model = _functional(keras.Model)
    model.compile(ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0), LOSS)
    before = model.get_weights()
    with pytest.raises(NotPrivateError):
        _fit(model)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
