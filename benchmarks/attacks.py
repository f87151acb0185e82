"""What an attack and adversarial training cost, as ratios within one run, printed as JSON.

- `pgd_over_floor`: PGD over as many forward-and-input-gradient passes of the same model, compiled
  the same way. An attack cannot do less. TensorFlow may compile the same attack well or badly, so
  the figure is the worst of several attacks compiled afresh, in a process on one core and in one
  on two; `pgd_over_floor_each` has them all.
- `fgsm_step_over_clean_step`, `pgd7_step_over_clean_step`: an adversarial training step over an
  ordinary one of the same model.

Process CPU time, since wall-clock time depends on what else runs; medians over interleaved rounds.

    python benchmarks/attacks.py [--data PATH.npz] [--steps 40] [--examples 250] [--rounds 7]
                                 [--compilations 6]

The .npz needs an array `x_test` (examples, 28, 28), uint8, and `y_test`; without it, images are
random, which changes no ratio.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_modelsec as ms
from keras_modelsec.robustness import AdversarialMixin


class Net(AdversarialMixin, keras.Model):
    """A model that can train adversarially and do nothing else."""


def make_model() -> keras.Model:
    layers = keras.layers
    inputs = outputs = keras.Input((28, 28, 1))
    for layer in (
        layers.Conv2D(32, 3, activation="relu"),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(10),
    ):
        outputs = layer(outputs)
    return Net(inputs, outputs)


def load(path: str | None, examples: int) -> tuple[np.ndarray, np.ndarray]:
    if path is None:
        generator = np.random.default_rng(0)
        x = generator.random((examples, 28, 28, 1)).astype("float32")
        return x, generator.integers(0, 10, examples)
    with np.load(path) as data:
        x, y = data["x_test"][:examples], data["y_test"][:examples]
    return (x.reshape(-1, 28, 28, 1) / 255).astype("float32"), y.astype("int64")


def make_floor(model: keras.Model, x: np.ndarray, y: np.ndarray, steps: int) -> Callable[[], Any]:
    """Forward and input gradient of the cross-entropy, written with TensorFlow alone."""
    signature = [tf.TensorSpec([None, 28, 28, 1]), tf.TensorSpec([None], tf.int64)]

    @tf.function(input_signature=signature, autograph=False)
    def gradient(points: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            logits = model(points, training=False)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tape.gradient(loss, points)

    points, labels = tf.constant(x), tf.constant(y)

    def run() -> None:
        for _ in range(steps):
            gradient(points, labels)

    return run


def make_step(
    model: keras.Model, x: np.ndarray, y: np.ndarray, adversarial: Any
) -> Callable[[], Any]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, adversarial=adversarial)
    return lambda: model.train_on_batch(x, y)


def medians(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each case; the first, compiling run of each is left out."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def attack_ratios(arguments: argparse.Namespace) -> list[float]:
    """Each of several attacks, compiled one by one, over the floor; rounds are interleaved."""
    x, y = load(arguments.data, arguments.examples)
    model = make_model()
    cases = {"floor": make_floor(model, x, y, arguments.steps)}
    for number in range(arguments.compilations):
        attack = ms.attacks.PGD(epsilon=0.3, steps=arguments.steps, random_start=False)
        cases[f"pgd_{number}"] = functools.partial(attack, model, x, y, batch_size=len(x))
    times = medians(cases, arguments.rounds)
    return [round(times[name] / times["floor"], 3) for name in cases if name != "floor"]


def attack_ratios_on(cores: int) -> list[float]:
    """`attack_ratios` in a process of its own that has so many cores and threads."""
    threads = {f"TF_NUM_{kind}_THREADS": str(cores) for kind in ("INTRAOP", "INTEROP")}
    command = [sys.executable, __file__, *sys.argv[1:], "--on-cores", str(cores)]
    output = subprocess.run(
        command, env=os.environ | threads, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def keep_to_cores(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):  # elsewhere, the number of threads must do
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def main() -> None:
    parser = argparse.ArgumentParser(description="What attacks cost, as ratios.")
    parser.add_argument("--data", help="an .npz file with x_test and y_test")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compilations", type=int, default=6)
    parser.add_argument("--on-cores", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    if arguments.on_cores is not None:
        keep_to_cores(arguments.on_cores)
        print(json.dumps(attack_ratios(arguments)))
        return
    ratios = {f"{cores}_cores": attack_ratios_on(cores) for cores in (1, 2)}
    x, y = load(arguments.data, arguments.examples)
    batch, labels = x[:128], y[:128]
    training = {
        "clean_step": None,
        "fgsm_half_step": ms.AdversarialTraining(ms.attacks.FGSM(0.1), clean_ratio=0.5),
        "fgsm_step": ms.attacks.FGSM(0.1),
        "pgd7_step": ms.attacks.PGD(0.1, steps=7),
    }
    step_times = medians(
        {name: make_step(make_model(), batch, labels, how) for name, how in training.items()},
        3 * arguments.rounds,
    )
    clean = step_times["clean_step"]
    print(
        json.dumps(
            {
                "pgd_over_floor": {name: max(values) for name, values in ratios.items()},
                "pgd_over_floor_each": ratios,
                **{
                    f"{name}_over_clean_step": round(seconds / clean, 3)
                    for name, seconds in step_times.items()
                    if name != "clean_step"
                },
                "cpu_seconds": {name: round(value, 4) for name, value in step_times.items()},
                "steps": arguments.steps,
                "examples": len(x),
                "rounds": arguments.rounds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
