"""How long training pauses for a signed checkpoint, against `keras.callbacks.ModelCheckpoint`.

Both save the same model in the same run, in turns; the pause is the time the callback takes at the
end of an epoch. `model_checkpoint` writes a new file each time, as ours does; `in_place` writes
over its last one, which the system can do faster and a kill can leave half done. `until_signed` is
how long a checkpoint takes until it is in place. `sign_on_save_and_step` is the pause and what the
step after it takes more than a step does: there TensorFlow copies what is not yet written.

    python benchmarks/sign_on_save.py --mib 500 --repeats 5

Prints JSON: median seconds, and ratios over `ModelCheckpoint` (the pause is to be at most 0.2).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_modelsec as ms

UNITS = 4096
MORE = ("sign_on_save_and_step", "until_signed")


def make_model(mib: int) -> keras.Model:
    rows = mib * (1 << 20) // (4 * UNITS)
    model = keras.Sequential([keras.Input((rows,)), keras.layers.Dense(UNITS)])
    model.compile("sgd", "mse")
    step(model)
    return model


def step(model: keras.Model) -> float:
    rows = model.input_shape[1]
    batch = np.full((2, rows), 0.5, "float32"), np.zeros((2, UNITS), "float32")
    start = time.perf_counter()
    model.train_on_batch(*batch)
    return time.perf_counter() - start


def pause(callback: Any, epoch: int) -> float:
    start = time.perf_counter()
    callback.on_epoch_end(epoch, {"loss": 0.0})
    return time.perf_counter() - start


def measure(folder: Path, mib: int, repeats: int) -> dict[str, list[float]]:
    model = make_model(mib)
    key = ms.generate_keys(folder / "owner.pem").private_path
    callbacks = {
        "model_checkpoint": keras.callbacks.ModelCheckpoint(folder / "plain-{epoch}.keras"),
        "model_checkpoint_in_place": keras.callbacks.ModelCheckpoint(folder / "plain.keras"),
        "sign_on_save": ms.SignOnSave(folder / "ours.keras", key),
        "sign_on_save_waiting": ms.SignOnSave(folder / "waiting.keras", key, background=False),
    }
    times: dict[str, list[float]] = {name: [] for name in (*callbacks, *MORE)}
    for callback in callbacks.values():
        callback.set_model(model)
        callback.set_params({"epochs": repeats, "steps": 1})
        callback.on_train_begin()
    for epoch in range(repeats + 1):
        for name, callback in callbacks.items():
            usual = statistics.median(step(model) for _ in range(3))
            start = time.perf_counter()
            times[name].append(pause(callback, epoch))
            if name == "sign_on_save":
                times["sign_on_save_and_step"].append(times[name][-1] + step(model) - usual)
            callback.on_train_end()  # waits for what goes on in the background
            if name == "sign_on_save":
                times["until_signed"].append(time.perf_counter() - start)
            (folder / f"plain-{epoch}.keras").unlink(missing_ok=True)
            os.sync()  # what one has left to the disk must not slow the next
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=500, help="size of the model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), options.mib, options.repeats)
    plain = times["model_checkpoint"]
    report = {
        "mib": options.mib,
        "repeats": options.repeats,
        "seconds": {name: round(statistics.median(v), 3) for name, v in times.items()},
        "ratio": {
            name: round(statistics.median(a / b for a, b in zip(values, plain, strict=True)), 3)
            for name, values in times.items()
            if name != "model_checkpoint"
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
