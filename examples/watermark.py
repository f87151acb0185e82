"""Watermark: mark a trained model, and read the mark after fine-tuning, pruning and export.

python examples/watermark.py
"""

import command_line
import digits
import numpy as np
from quiet import keras

import keras_modelsec as ms


def main() -> None:
    keras.utils.set_random_seed(0)
    data = digits.load()
    model = keras.Sequential(
        [
            keras.Input(data.x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    fit = {"x": data.x_train, "y": data.y_train, "verbose": 2}
    model.fit(epochs=10, **fit)
    key = ms.watermark.generate_key()  # keep it secret; key.hex() is the form to write down

    def show(what: str, shown: keras.Model, used_key: bytes = key) -> None:
        report = ms.verify_watermark(shown, used_key)
        correct = np.argmax(shown.predict(data.x_test, verbose=0), axis=-1) == data.y_test
        print(
            f"{what:24} accuracy {correct.mean():.3f}, log10 p {report.log10_p + 0.0:8.1f}, "
            f"bit error rate {report.bit_error_rate:.3f}, evidence: {report.is_evidence}"
        )

    show("before marking", model)
    ms.attach_watermark(model, key)
    show("marked", model)
    model.fit(epochs=3, callbacks=[ms.WatermarkMonitor(key)], **fit)
    show("trained on with the mark", model)
    show("... read with other key", model, ms.watermark.generate_key())

    stolen = ms.export_plain(model)  # what a thief has: weights, and nothing of this package
    stolen.compile("adam", "sparse_categorical_crossentropy")
    stolen.fit(epochs=10, **fit)
    show("stolen, fine-tuned", stolen)
    for layer in stolen.layers[1:]:
        kernel, bias = layer.get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.5)] = 0
        layer.set_weights([kernel, bias])
    show("stolen, half pruned", stolen)


if __name__ == "__main__":
    command_line.run_without_files(main)
