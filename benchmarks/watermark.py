"""What a watermark costs per step of `fit`: marked over plain, as a ratio within one run.

Two models on MNIST-shaped data, batch 256, compiled the same way: the CNN of tensorflow-privacy's
MNIST tutorial and an MLP 784-128-10. Plain and marked epochs alternate, so that whatever else the
machine does falls on both; the ratio is that of the median epochs, and the median of the ratios of
neighbours is given beside it. An L2 penalty on the same kernels stands for comparison. Keras
compiles with XLA on accelerators only ("graph" is what a CPU runs); XLA on a CPU is given as well.

    python benchmarks/watermark.py [--rounds 40] [--steps 40] [--json PATH]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_modelsec as ms

BATCH = 256
REACH = 1.05


def cnn(regularizer):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(
                16, 8, strides=2, padding="same", activation="relu", kernel_regularizer=regularizer
            ),
            layers.MaxPooling2D(2, 1),
            layers.Conv2D(32, 4, strides=2, activation="relu", kernel_regularizer=regularizer),
            layers.MaxPooling2D(2, 1),
            layers.Flatten(),
            layers.Dense(32, activation="relu", kernel_regularizer=regularizer),
            layers.Dense(10),
        ]
    )


def mlp(regularizer):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(128, activation="relu", kernel_regularizer=regularizer),
            layers.Dense(10, kernel_regularizer=regularizer),
        ]
    )


def dataset(steps: int) -> tf.data.Dataset:
    generator = np.random.default_rng(0)
    x = generator.random((steps * BATCH, 28, 28, 1), dtype="float32")
    y = generator.integers(0, 10, steps * BATCH)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache().prefetch(2)


def measure(build: Callable, data: tf.data.Dataset, rounds: int, jit_compile: bool) -> dict:
    regularizers = {
        "plain": None,
        "l2": keras.regularizers.L2(1e-4),
        "watermark": ms.WatermarkRegularizer(ms.watermark.generate_key()),
    }
    models = {}
    for name, regularizer in regularizers.items():
        keras.utils.set_random_seed(0)
        models[name] = build(regularizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        models[name].compile("adam", loss, jit_compile=jit_compile)
        models[name].fit(data, epochs=2, verbose=0, shuffle=False)
    wall = {name: [] for name in models}
    cpu = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter(), time.process_time()
            model.fit(data, verbose=0, shuffle=False)
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])
    return {"wall": ratios(wall, len(data)), "cpu": ratios(cpu, len(data))}


def ratios(seconds: dict[str, list[float]], steps: int) -> dict:
    plain = statistics.median(seconds["plain"])
    result = {"plain_ms_per_step": round(1e3 * plain / steps, 3)}
    for name in ("l2", "watermark"):
        neighbours = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        result[f"{name}_over_plain"] = round(statistics.median(seconds[name]) / plain, 3)
        result[f"{name}_over_plain_neighbours"] = round(statistics.median(neighbours), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    data = dataset(arguments.steps)
    result = {"reach": REACH, "batch": BATCH, "rounds": arguments.rounds}
    for build in (cnn, mlp):
        result[build.__name__] = {
            name: measure(build, data, arguments.rounds, jit_compile)
            for name, jit_compile in (("graph", False), ("xla", True))
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
