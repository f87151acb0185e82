"""Private training: an optimizer that adds noise, and a budget that stops in time.

    python examples/private_training.py [FOLDER]

The budget belongs to the weights: it is saved with them, and training on counts from there.
"""

from pathlib import Path

import command_line
import digits
from quiet import keras

import keras_modelsec as ms

DELTA = 1e-5  # well below one over the number of training images


def build(shape: tuple[int, ...]) -> keras.Model:
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(64, activation="tanh")(x)
    return ms.SecureModel(inputs, keras.layers.Dense(10)(x))


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    data = digits.load()
    model = build(data.x_train.shape[1:])
    model.compile(
        ms.DPOptimizer(keras.optimizers.Adam(0.02), l2_norm_clip=1.0, noise_multiplier=5.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # One batch holds all images: the larger the batch, the less the noise matters.
    fit = {"batch_size": len(data.x_train), "validation_data": data[2:], "verbose": 2}
    budget = ms.PrivacyBudget(delta=DELTA, max_epsilon=4.0)
    model.fit(data.x_train, data.y_train, epochs=40, callbacks=[budget], **fit)
    print(budget.statement())

    model.save(folder / "private.keras")
    model = keras.models.load_model(folder / "private.keras")
    budget = ms.PrivacyBudget(delta=DELTA, max_epsilon=4.0)
    try:
        model.fit(data.x_train, data.y_train, epochs=1, callbacks=[budget], **fit)
    except ms.PrivacyBudgetExceeded as error:
        print(f"Refused to train on: {error}")


if __name__ == "__main__":
    command_line.run(main)
