"""What the guards at run time cost, and what `ActivationGuard` saves.

`integrity_guard`: a network with 100 MB of weights trains, is evaluated and predicts with and
without `ms.IntegrityGuard` at its default. `ratio` is that of the times of a step, in rounds taken
in turns, medians; `share` is the guard's own time in the steps over all time, which other load on
the machine disturbs less. "fit_frozen" trains the last layer only, so that nearly all weights are
hashed. `one_full_check_seconds` is what the beginning and the end of a run cost each.

`activation_guard`: the time of `predict` with guards over that without, for networks that compute
much for each value (wide convolutions), and little (narrow ones).

`bit_flips`: accuracy on scikit-learn's digits with random exponent bits flipped in the weights of a
small convolutional network, without and with guards.

    python benchmarks/guards.py --rounds 15
"""

import argparse
import json
import os
import statistics
import time
from operator import truediv
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import keras_modelsec as ms

WIDTH = 2048
STEPS = 12
BATCH = 128


class Clock(keras.callbacks.Callback):
    """Notes when Keras calls it; stands before or behind the guard in the list of callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[float] = []
        self.ends: list[float] = []

    def _begin(self, batch: int, logs: Any = None) -> None:
        self.begins.append(time.perf_counter())

    def _end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())

    on_train_batch_begin = on_test_batch_begin = on_predict_batch_begin = _begin
    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _end


def spent_between(before: Clock, behind: Clock) -> float:
    """The share of the time of the steps that the callbacks between two clocks took."""
    calls = zip(
        [*before.begins[1:], *before.ends[1:]], [*behind.begins[1:], *behind.ends[1:]], strict=True
    )
    return sum(late - early for early, late in calls) / (behind.ends[-1] - behind.ends[0])


def dense_model(*, frozen: bool) -> keras.Model:
    """Six layers of 2048 x 2048 float32: 100 MB."""
    hidden = [layers.Dense(WIDTH, "relu", trainable=not frozen) for _ in range(6)]
    model = keras.Sequential([keras.Input((WIDTH,)), *hidden, layers.Dense(10)])
    model.compile("sgd", "mse")
    return model


def ratio_of_steps(kind: str, rounds: int) -> dict[str, Any]:
    model = dense_model(frozen=kind == "fit_frozen")
    x = np.random.default_rng(0).normal(size=(STEPS * BATCH, WIDTH)).astype("float32")
    y = np.zeros((len(x), 10), "float32")
    guard = ms.IntegrityGuard()
    medians: dict[bool, list[float]] = {False: [], True: []}
    shares = []
    options = {"batch_size": BATCH, "verbose": 0}
    for _ in range(rounds + 1):
        for guarded in medians:
            before, behind = Clock(), Clock()
            callbacks = [before, guard, behind] if guarded else [before, behind]
            if kind.startswith("fit"):
                model.fit(x, y, callbacks=callbacks, shuffle=False, **options)
            elif kind == "evaluate":
                model.evaluate(x, y, callbacks=callbacks, **options)
            else:
                model.predict(x, callbacks=callbacks, **options)
            medians[guarded].append(statistics.median(np.diff(behind.ends)))
            if guarded:
                shares.append(spent_between(before, behind))
    begin = time.perf_counter()
    guard.check(model)
    return {
        "weights_mb": round(model.count_params() * 4 / 1e6),
        "step_seconds": round(statistics.median(medians[False][1:]), 4),
        "ratio": round(statistics.median(map(truediv, medians[True][1:], medians[False][1:])), 4),
        "share": round(statistics.median(shares[1:]), 4),
        "one_full_check_seconds": round(time.perf_counter() - begin, 4),
        "full_checks": guard.checks,
        "gaps_watched": guard.gaps,
    }


def convolutions(width: int, depth: int, size: int) -> keras.Model:
    inputs = x = keras.Input((size, size, 3))
    for stage in range(3):
        for _ in range(depth):
            x = layers.Conv2D(width << stage, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def ratio_of_predict(model: keras.Model, rounds: int) -> dict[str, Any]:
    shape = model.input_shape[1:]
    x = np.random.default_rng(0).uniform(size=(64, *shape)).astype("float32")
    guarded = ms.guard_activations(model, x)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 2):
        for is_guarded, one in ((False, model), (True, guarded)):
            begin = time.perf_counter()
            one.predict(x, verbose=0, batch_size=32)
            times[is_guarded].append(time.perf_counter() - begin)
    reports = ms.guards.activation_reports(guarded)
    return {
        "guards": len(reports),
        "predict_seconds": round(statistics.median(times[False][2:]), 4),
        "ratio": round(statistics.median(map(truediv, times[True][2:], times[False][2:])), 4),
        "violations": sum(report.violations for report in reports),
    }


def digits_model() -> tuple[keras.Model, Any, Any, Any]:
    data = load_digits()
    x = (data.images[..., None] / 16).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x[:1200], data.target[:1200], epochs=15, verbose=0)
    return model, x[:1200], x[1200:], data.target[1200:]


def accuracy(model: keras.Model, x: Any, y: Any) -> float:
    return float(np.mean(np.argmax(keras.ops.convert_to_numpy(model(x)), -1) == y))


def bit_flips(trials: int) -> dict[str, Any]:
    model, calibration, x, y = digits_model()
    actions = {a: ms.guard_activations(model, calibration, action=a) for a in ("clip", "zero")}
    clean = model.get_weights()
    found: dict[str, Any] = {
        "trials": trials,
        "clean": {
            "unguarded": round(accuracy(model, x, y), 3),
            **{action: round(accuracy(guarded, x, y), 3) for action, guarded in actions.items()},
        },
    }
    for flips in (1, 4, 16):
        generator = np.random.default_rng(flips)
        rows = []
        for _ in range(trials):
            damaged = [w.copy() for w in clean]
            flat = damaged[2 * generator.integers(len(damaged) // 2)].reshape(-1).view("uint32")
            places = generator.choice(flat.size, flips, replace=False)
            flat[places] ^= np.uint32(1) << generator.integers(23, 31, flips).astype("uint32")
            model.set_weights(damaged)
            rows.append([accuracy(m, x, y) for m in (model, *actions.values())])
        means = np.mean(rows, axis=0).round(3).tolist()
        found[f"{flips}_flips"] = dict(zip(("unguarded", *actions), means, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    kinds = ("fit", "fit_frozen", "evaluate", "predict")
    networks = {
        "conv_width_128": convolutions(128, 1, 32),
        "conv_width_64": convolutions(64, 2, 32),
        "conv_width_16": convolutions(16, 2, 32),
        "dense_2048": dense_model(frozen=False),
    }
    result = {
        "integrity_guard": {kind: ratio_of_steps(kind, options.rounds) for kind in kinds},
        "activation_guard": {n: ratio_of_predict(m, options.rounds) for n, m in networks.items()},
        "bit_flips": bit_flips(options.trials),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
