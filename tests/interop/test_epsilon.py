"""Epsilon: our figures against those of tensorflow-privacy's own accounting and statement."""

import re

import numpy as np
import pytest
from tensorflow_privacy.privacy.analysis import compute_dp_sgd_privacy_lib as theirs

import keras_modelsec as ms
from keras_modelsec.privacy import accounting
from keras_modelsec.privacy.ledger import ONE_PASS, Run

pytestmark = pytest.mark.interop

# examples, batch size, noise multiplier, epochs, delta; the first is its MNIST tutorial
SETTINGS = [
    (60_000, 250, 1.3, 15, 1e-5),
    (60_000, 256, 1.1, 60, 1e-5),
    (1_437, 64, 2.0, 20, 1e-4),
    (50_000, 1_000, 0.8, 5, 1e-6),
]


def epsilon(setting, accountant, *, poisson):
    """Our figure for training of so many epochs."""
    examples, batch_size, noise_multiplier, epochs, delta = setting
    steps = int(np.ceil(examples / batch_size))
    if poisson:
        releases = float(np.ceil(epochs * examples / batch_size))
        run = Run(noise_multiplier, float(batch_size), releases, 1.0, 1.0)
        run = run._replace(sampling_probability=batch_size / examples)
    else:
        run = Run(noise_multiplier, float(batch_size), float(steps), float(epochs), 1.0, ONE_PASS)
    return accounting.epsilon((run,), delta, accountant)


def their_epsilon(setting, accountant, *, poisson):
    examples, batch_size, noise_multiplier, epochs, delta = setting
    return theirs._compute_dp_sgd_example_privacy(
        epochs,
        noise_multiplier,
        delta,
        used_microbatching=False,
        poisson_subsampling_probability=batch_size / examples if poisson else None,
        accountant_type=theirs.AccountantType(accountant.upper()),
    )


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_epsilon_under_poisson_sampling_is_the_same(setting, accountant):
    np.testing.assert_allclose(
        epsilon(setting, accountant, poisson=True),
        their_epsilon(setting, accountant, poisson=True),
        rtol=1e-6,
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_epsilon_of_passes_over_the_data_is_the_same(setting):
    """Ours is exact; its PLD figure rounds up on a grid, its RDP figure is an upper bound."""
    exact = epsilon(setting, "pld", poisson=False)
    np.testing.assert_allclose(exact, their_epsilon(setting, "pld", poisson=False), rtol=1e-3)
    assert exact < their_epsilon(setting, "rdp", poisson=False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_epsilon_is_within_two_hundredths_of_the_older_function(setting):
    """`compute_dp_sgd_privacy` tries fewer RDP orders, so that it may lie a little above."""
    older, _ = theirs.compute_dp_sgd_privacy(*setting)
    ours = epsilon(setting, "rdp", poisson=True)
    assert older * 0.98 <= ours <= older * (1 + 1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_epsilon_is_the_one_in_its_statement(accountant):
    examples, batch_size, noise_multiplier, epochs, delta = setting = SETTINGS[0]
    statement = theirs.compute_dp_sgd_privacy_statement(
        examples,
        batch_size,
        epochs,
        noise_multiplier,
        delta,
        used_microbatching=False,
        accountant_type=theirs.AccountantType(accountant.upper()),
    )
    stated = float(re.search(r"Poisson sampling \(\*\): +([\d.]+)", statement)[1])
    np.testing.assert_allclose(epsilon(setting, accountant, poisson=True), stated, atol=6e-4)


def test_epsilon_in_the_logs_of_fit_is_the_same(mlp):
    """One private training in this environment, with numpy 1 and the older dp-accounting."""
    epochs, size, batch_size = 3, len(mlp.x), 3
    setting = (size, batch_size, 1.5, epochs, 1e-2)
    targets = np.eye(4, dtype="float32")[mlp.y]
    for poisson, budget in ((True, {"sampling_probability": batch_size / size}), (False, {})):
        model = ms.SecureModel.from_model(mlp.model)
        model.compile(ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.5), "mse")
        before = model.get_weights()
        logs = model.fit(
            mlp.x,
            targets,
            batch_size=batch_size,
            epochs=epochs,
            verbose=0,
            callbacks=[ms.PrivacyBudget(1e-2, **budget)],
        ).history["privacy_epsilon"]
        assert any(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))
        np.testing.assert_allclose(
            logs[-1],
            their_epsilon(setting, "pld", poisson=poisson),
            rtol=1e-6 if poisson else 1e-3,
        )
