"""The reported epsilon beside the truth: which example entered which release is recorded.

Each example carries its number as a feature, and an eager model notes the numbers of every batch
it trains on. From that the true cost of the example that was used most follows. Whatever the
history, the reported figure never falls, and is never below the truth.
"""

import collections
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec.errors import NotPrivateError, PrivacyBudgetExceeded

pytestmark = pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:.*shuffle=True")

DELTA = 1e-3
SIZE = 10


class Truth:
    """Releases as they were, told apart by the optimizer's own count of them."""

    def __init__(self):
        self.influence = collections.Counter()
        self.waiting = collections.Counter()

    def batch(self, numbers):
        self.waiting.update(int(number) for number in numbers)

    def release(self, noise_multiplier):
        for number, times in self.waiting.items():
            self.influence[number] += (times / noise_multiplier) ** 2
        self.waiting.clear()

    def most(self):
        return max(self.influence.values(), default=0.0)


@keras.saving.register_keras_serializable("tests_true_epsilon")
class Watched(ms.DPMixin, keras.Sequential):
    """Notes which examples enter which batch; runs eagerly."""

    truth = Truth()

    def compute_gradients(self, batch):
        if not tf.is_symbolic_tensor(batch.x):  # as it is where the model is probed
            Watched.truth.batch(np.asarray(batch.x)[:, 0])
        return super().compute_gradients(batch)


@pytest.fixture(autouse=True)
def truth(monkeypatch):
    """Notes each release where the optimizer makes it."""
    Watched.truth = Truth()
    release = ms.DPOptimizer._release

    def noting(self, *args):
        Watched.truth.release(self.noise_multiplier)
        release(self, *args)

    monkeypatch.setattr(ms.DPOptimizer, "_release", noting)
    return Watched.truth


X = np.stack([np.arange(SIZE), np.ones(SIZE)], axis=1).astype("float32")
Y = np.zeros((SIZE, 1), "float32")


class Rows(keras.utils.PyDataset):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    @property
    def num_batches(self):
        return -(-SIZE // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return X[rows], Y[rows]


def _endless(batch_size):
    order = [i % SIZE for i in range(4000)]
    for start in range(0, 4000, batch_size):
        rows = order[start : start + batch_size]
        yield X[rows], Y[rows]


SLICES = tf.data.Dataset.from_tensor_slices((X, Y))
# The data, and whether they may repeat within a batch, so that `dataset_size` must be given.
FORMS = {
    "arrays": (lambda size: {"x": X, "y": Y, "batch_size": size}, False),
    "pipeline": (lambda size: {"x": SLICES.shuffle(SIZE).batch(size)}, False),
    "of unknown length": (lambda size: {"x": SLICES.filter(lambda *_: True).batch(size)}, False),
    "batches repeated": (lambda size: {"x": SLICES.batch(size).repeat(3)}, False),
    "examples repeated": (lambda size: {"x": SLICES.shuffle(SIZE).repeat(3).batch(size)}, True),
    "sequence": (lambda size: {"x": Rows(size)}, False),
    "generator": (lambda size: {"x": _endless(size)}, True),
}


def _compiled(model, draw):
    optimizer = ms.DPOptimizer(
        "sgd",
        l2_norm_clip=1.0,
        noise_multiplier=draw.choice([3.0, 8.0]),
        gradient_accumulation_steps=draw.choice([None, None, 2, 3]),
    )
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def _fit(model, draw):
    data, needs_size = FORMS[draw.choice(sorted(FORMS))]
    size_given = needs_size or draw.random() < 0.3
    budgets = [ms.PrivacyBudget(DELTA, dataset_size=SIZE if size_given else None)]
    if draw.random() < 0.3:
        budgets.append(
            ms.PrivacyBudget(
                DELTA, max_epsilon=draw.uniform(1, 30), dataset_size=budgets[0].dataset_size
            )
        )
    model.fit(
        **data(draw.choice([2, 3, 5, 10])),
        shuffle=draw.random() < 0.5,
        steps_per_epoch=draw.choice([None, 1, 3, 6]) or (6 if needs_size else None),
        epochs=draw.randint(1, 3),
        callbacks=budgets if needs_size or draw.random() < 0.7 else [],
        verbose=0,
    )


def _train_on_batch(model, draw):
    model.train_on_batch(X[:4], Y[:4])


def _own_loop(model, draw):
    for _ in range(2):
        model.train_step((tf.constant(X[:3]), tf.constant(Y[:3])))


def _saved_and_loaded(model, draw, path):
    model.save(path)
    loaded = keras.models.load_model(path)
    loaded.run_eagerly = True
    return loaded


def _epsilon(truth, gaussian_epsilon):
    return gaussian_epsilon(truth.most(), DELTA) if truth.most() else 0.0


def _read(model, **options):
    budget = ms.PrivacyBudget(DELTA, **options)
    budget.set_model(model)
    return budget.epsilon


@pytest.mark.parametrize("seed", range(8))
def test_reported_epsilon_never_falls_and_is_never_below_the_truth(
    seed, truth, tmp_path, gaussian_epsilon
):
    draw = random.Random(seed)
    model = _compiled(Watched([keras.Input((2,)), keras.layers.Dense(1)]), draw)
    reported = 0.0
    for _ in range(7):
        action = draw.choice([_fit, _fit, _fit, _train_on_batch, _own_loop, "compile", "save"])
        try:
            if action == "compile":
                model = _compiled(model, draw)
            elif action == "save":
                model = _saved_and_loaded(model, draw, tmp_path / "model.keras")
            else:
                action(model, draw)
        except (NotPrivateError, PrivacyBudgetExceeded):
            pass
        before, reported = reported, _read(model)
        assert reported >= before - 1e-9, action
        assert reported >= _epsilon(truth, gaussian_epsilon) - 1e-6, action
        for told in ({"sampling_probability": 1e-4}, {"dataset_size": 10**6}):
            assert _read(model, **told) == pytest.approx(reported)


@pytest.mark.parametrize("form", ["arrays", "pipeline", "of unknown length", "sequence"])
def test_every_start_of_the_data_is_counted_whatever_an_epoch_is_said_to_be(
    form, truth, gaussian_epsilon
):
    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(ms.DPOptimizer("sgd", 1.0, 4.0), "mse", run_eagerly=True)
    data = FORMS[form][0](5)
    shuffle = form == "arrays"
    model.fit(**data, shuffle=shuffle, steps_per_epoch=1000, epochs=20, verbose=0)
    assert sum(truth.influence.values()) == pytest.approx(SIZE * 20 / 16)
    assert _read(model) == pytest.approx(_epsilon(truth, gaussian_epsilon))


def test_epochs_shorter_than_the_data_are_not_charged_as_passes(truth, gaussian_epsilon):
    model = Watched([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(ms.DPOptimizer("sgd", 1.0, 4.0), "mse", run_eagerly=True)
    model.fit(X, Y, batch_size=2, steps_per_epoch=1, epochs=10, verbose=0)
    assert _read(model) == pytest.approx(_epsilon(truth, gaussian_epsilon))
