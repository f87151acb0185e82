"""Adversarial training: the same network twice, once trained on attacked batches.

    python examples/adversarial_training.py [FOLDER]

Robust accuracy is an ordinary log value: it stops training early and names the checkpoint.
"""

from pathlib import Path

import command_line
import digits
from quiet import keras

import keras_modelsec as ms

EPSILON = 0.15  # how far each pixel, from 0 to 1, may be moved


def train(data: digits.Digits, folder: Path, name: str, adversarial: object) -> keras.Model:
    inputs = keras.Input(data.x_train.shape[1:])
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    model = ms.SecureModel(inputs, keras.layers.Dense(10)(x), name=name)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        adversarial=adversarial,
    )
    # Training is steered by images held out of it; the test images are for the end.
    x_fit, x_held_out = data.x_train[:-240], data.x_train[-240:]
    y_fit, y_held_out = data.y_train[:-240], data.y_train[-240:]
    watched = "robust_accuracy_pgd_linf"
    path = str(folder / f"{name}-{{epoch:02d}}-{{{watched}:.2f}}.keras")
    model.fit(
        x_fit,
        y_fit,
        batch_size=64,
        epochs=15,
        verbose=2,
        callbacks=[
            ms.RobustnessMonitor(x_held_out, y_held_out, [ms.attacks.PGD(EPSILON, steps=10)]),
            keras.callbacks.ModelCheckpoint(path, watched, mode="max", save_best_only=True),
            keras.callbacks.EarlyStopping(
                watched, mode="max", patience=5, restore_best_weights=True
            ),
        ],
    )
    return model


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    data = digits.load()
    attack = ms.attacks.PGD(EPSILON, steps=5)
    models = [
        train(data, folder, "plain", adversarial=None),
        train(data, folder, "hardened", adversarial=ms.AdversarialTraining(attack)),
    ]
    strong = ms.attacks.PGD(EPSILON, steps=40, restarts=3)
    for model in models:
        results = ms.RobustnessMonitor(data.x_test, data.y_test, [strong]).evaluate(model)
        for result in results.values():
            low, high = result.confidence_interval
            print(f"{model.name:9}{result.name:9} {result.accuracy:.3f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    command_line.run(main)
