"""Signing: checkpoints that are signed as they are written, and a loader that checks.

python examples/signing.py [FOLDER]
"""

from pathlib import Path

import command_line
import digits
from quiet import keras

import keras_modelsec as ms


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    data = digits.load()
    private, public = ms.generate_keys(folder / "owner.pem", password="an example, not a secret")
    _, stranger = ms.generate_keys(folder / "stranger.pem")

    model = keras.Sequential(
        [
            keras.Input(data.x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = folder / "best.keras"
    sign_on_save = ms.SignOnSave(
        path,
        signing_key=private,
        password="an example, not a secret",
        monitor="val_accuracy",
        save_best_only=True,
    )
    model.fit(
        data.x_train,
        data.y_train,
        epochs=5,
        verbose=2,
        validation_split=0.2,
        callbacks=[sign_on_save],
    )
    loaded = ms.load_verified_model(path, trusted_keys=[public])
    _, accuracy = loaded.evaluate(data.x_test, data.y_test, verbose=0)
    print(f"Loaded the signed model: accuracy {accuracy:.3f}.")

    try:
        ms.load_verified_model(path, trusted_keys=[stranger])
    except ms.SignatureError as error:
        print(f"With another key: {type(error).__name__}: {error}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    try:
        ms.load_verified_model(path, trusted_keys=[public])
    except ms.TamperedModelError as error:
        print(f"With one bit flipped: {type(error).__name__}: {error}")


if __name__ == "__main__":
    command_line.run(main)
