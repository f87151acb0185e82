"""How much a private step costs over the plain `fit` step, in time and in peak memory.

Prints JSON. Each ratio is the median over interleaved rounds of one run, process CPU time; memory
is the peak resident set of one process per variant. Not under XLA, which `jit_compile="auto"`
leaves off on a CPU.

    python benchmarks/dp_step.py [--rounds 15] [--steps 20]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH = 256


def build_mlp(keras, model_class):
    inputs = keras.Input((784,))
    hidden = keras.layers.Dense(128, activation="relu")(inputs)
    return model_class(inputs, keras.layers.Dense(10)(hidden))


def build_cnn(keras, model_class):
    """The CNN of tensorflow-privacy's MNIST tutorial."""
    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 8, strides=2, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D(2, 1)(x)
    x = layers.Conv2D(32, 4, strides=2, padding="valid", activation="relu")(x)
    x = layers.MaxPooling2D(2, 1)(x)
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    return model_class(inputs, layers.Dense(10)(x))


BUILDERS = {"mlp": build_mlp, "cnn": build_cnn}
SHAPES = {"mlp": (784,), "cnn": (28, 28, 1)}


def compiled(name, private):
    import keras

    import keras_modelsec as ms

    model = BUILDERS[name](keras, ms.SecureModel if private else keras.Model)
    optimizer = keras.optimizers.SGD(0.1)
    if private:
        optimizer = ms.DPOptimizer(optimizer, l2_norm_clip=1.0, noise_multiplier=1.1)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def dataset(name, steps):
    import numpy as np
    import tensorflow as tf

    generator = np.random.default_rng(0)
    x = generator.uniform(size=(BATCH, *SHAPES[name])).astype("float32")
    y = generator.integers(0, 10, BATCH)
    return tf.data.Dataset.from_tensors((x, y)).repeat(steps)


def time_fit(model, data):
    start = time.process_time()
    model.fit(data, verbose=0)
    return time.process_time() - start


def time_ratio(name, rounds, steps):
    data = dataset(name, steps)
    models = {private: compiled(name, private) for private in (False, True)}
    for model in models.values():
        model.fit(data, verbose=0)
    times = {False: [], True: []}
    for _ in range(rounds):
        for private, model in models.items():
            times[private].append(time_fit(model, data))
    plain, private = (statistics.median(times[key]) / steps * 1e3 for key in (False, True))
    ratio = statistics.median(
        secured / base for base, secured in zip(times[False], times[True], strict=True)
    )
    return {"plain_ms": plain, "private_ms": private, "ratio": ratio}


def peak_memory(name, private, steps):
    """The peak resident set in KiB of a fresh process that trains one variant."""
    command = [sys.executable, __file__, "--peak", name, "--steps", str(steps)]
    output = subprocess.run(
        command + (["--private"] if private else []), check=True, capture_output=True, text=True
    ).stdout
    return float(output.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", help="ignored: the cost does not depend on the values")
    parser.add_argument("--peak", choices=BUILDERS, help=argparse.SUPPRESS)
    parser.add_argument("--private", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        compiled(options.peak, options.private).fit(dataset(options.peak, options.steps), verbose=0)
        # Not getrusage: its peak is inherited from the process that started this one.
        status = pathlib.Path("/proc/self/status").read_text()
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        return
    result = {}
    for name in BUILDERS:
        result[name] = time_ratio(name, options.rounds, options.steps)
        memory = {private: peak_memory(name, private, options.steps) for private in (False, True)}
        result[name]["peak_memory_ratio"] = memory[True] / memory[False]
    print(json.dumps({"dp_step": result}, indent=2))


if __name__ == "__main__":
    main()
