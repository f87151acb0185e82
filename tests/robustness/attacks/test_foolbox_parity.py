"""FGSM, PGD and DeepFool against foolbox, an independent implementation."""

import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.robustness.attacks import FGSM, PGD, DeepFool

# foolbox imports GitPython to fetch models; without this that fails where git is not installed.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox and eagerpy speak about themselves on import
    import foolbox

X = np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(4, 3, activation="tanh")(inputs)
    hidden = keras.layers.Dense(16, activation="tanh")(keras.layers.Flatten()(hidden))
    return keras.Model(inputs, keras.layers.Dense(5)(hidden))


@pytest.fixture
def labels(model):
    return np.asarray(model(X)).argmax(-1)


def by_foolbox(attack, model, criterion, **radius):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = foolbox.models.TensorFlowModel(model, bounds=(0, 1), device="CPU:0")
        return attack.run(wrapped, tf.constant(X), criterion, **radius).numpy()


FOOLBOX_FGSM = {
    "linf": foolbox.attacks.LinfFastGradientAttack,
    "l2": foolbox.attacks.L2FastGradientAttack,
}
FOOLBOX_PGD = {
    "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
    "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
}


def assert_same(ours, theirs, norm):
    if norm == "l2":
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    else:
        # A gradient within rounding of zero may take either sign, and there only.
        assert (np.abs(ours - theirs) > 1e-6).mean() < 2e-3


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.0)])
def test_fgsm_gives_the_examples_of_foolbox(model, labels, norm, epsilon):
    criterion = foolbox.criteria.Misclassification(tf.constant(labels))
    theirs = by_foolbox(FOOLBOX_FGSM[norm](), model, criterion, epsilon=epsilon)
    ours = FGSM(epsilon, norm=norm)(model, X, labels)
    assert_same(ours, theirs, norm)
    assert np.abs(ours - X).max() > 0.05


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.0)])
def test_pgd_gives_the_examples_of_foolbox(model, labels, norm, epsilon, targeted):
    steps, step_size = 10, 0.3 * epsilon
    attack = FOOLBOX_PGD[norm](steps=steps, abs_stepsize=step_size, random_start=False)
    y = (labels + 1) % 5 if targeted else labels
    criterion = (
        foolbox.criteria.TargetedMisclassification(tf.constant(y))
        if targeted
        else foolbox.criteria.Misclassification(tf.constant(y))
    )
    theirs = by_foolbox(attack, model, criterion, epsilon=epsilon)
    ours = PGD(
        epsilon,
        norm=norm,
        steps=steps,
        step_size=step_size,
        random_start=False,
        targeted=targeted,
    )(model, X, y)
    assert_same(ours, theirs, norm)
    assert (np.asarray(model(ours)).argmax(-1) == np.asarray(model(theirs)).argmax(-1)).all()


def test_foolbox_on_a_saturated_softmax_sees_a_robust_model_and_this_does_not(model, labels):
    """The failure this package guards against, in the wild (foolbox issues 108 and 618)."""
    probabilities = keras.Sequential([model, keras.layers.Rescaling(1e4), keras.layers.Softmax()])
    criterion = foolbox.criteria.Misclassification(tf.constant(labels))
    attack = FOOLBOX_PGD["linf"](steps=10, random_start=False)
    theirs = by_foolbox(attack, probabilities, criterion, epsilon=0.2)
    ours = PGD(0.2, steps=10, random_start=False)(probabilities, X, labels)
    survivors = [
        float((np.asarray(model(points)).argmax(-1) == labels).mean()) for points in (theirs, ours)
    ]
    assert survivors[1] < 0.1
    confidence = np.asarray(probabilities(X)).max(axis=-1)
    if (confidence < 1.0).any():
        pytest.skip("on this processor softmax rounds to just below 1, which leaves a gradient")
    assert survivors[0] > 0.9


FOOLBOX_DEEP_FOOL = {
    "linf": foolbox.attacks.LinfDeepFoolAttack,
    "l2": foolbox.attacks.L2DeepFoolAttack,
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deep_fool_finds_changes_as_long_as_those_of_foolbox(model, labels, norm):
    criterion = foolbox.criteria.Misclassification(tf.constant(labels))
    theirs = by_foolbox(FOOLBOX_DEEP_FOOL[norm](steps=8), model, criterion)
    result = DeepFool(norm=norm, steps=8).run(model, X, labels)
    change = (theirs - X).reshape(32, -1)
    lengths = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    fooled = np.asarray(model(theirs)).argmax(1) != labels
    assert fooled.all()
    assert result.fooled.all()
    np.testing.assert_allclose(result.distance, lengths, rtol=2e-3)
