"""The ten lines of the README, as they stand there: one `fit`, all parts."""

import csv
import hashlib

import keras
import numpy as np
import pytest

import keras_modelsec as ms

layers = keras.layers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(64, 8, 8, 1)).astype("float32")
    y = (x.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    key = hashlib.sha256(b"the owner's").digest()  # the same in every run: none fails by chance
    ms.generate_keys(folder / "owner.pem", folder / "owner.pub")

    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(16, 3, activation="relu")(inputs)
    hidden = layers.Dense(32, activation="relu")(layers.Flatten()(hidden))
    model = ms.SecureModel(inputs, layers.Dense(2, activation="softmax")(hidden))
    ms.attach_watermark(model, key)
    model.compile(
        optimizer=ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.1),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        adversarial=ms.AdversarialTraining(ms.attacks.PGD(epsilon=0.1, steps=3)),
    )
    budget = ms.PrivacyBudget(delta=1e-3, max_epsilon=50.0)
    history = model.fit(
        x,
        y,
        batch_size=32,
        epochs=2,
        validation_data=(x, y),
        verbose=0,
        callbacks=[
            ms.RobustnessMonitor(x[:32], y[:32], attacks=[ms.attacks.PGD(epsilon=0.1, steps=3)]),
            budget,
            ms.WatermarkMonitor(key),
            ms.SignOnSave(
                str(folder / "{epoch:02d}-{robust_accuracy_pgd_linf:.2f}.keras"),
                signing_key=folder / "owner.pem",
            ),
            keras.callbacks.CSVLogger(str(folder / "log.csv")),
            keras.callbacks.TensorBoard(str(folder / "logs")),
        ],
    )
    return folder, model, key, history, (x, y)


def test_every_figure_stands_in_history_and_log(trained):
    folder, _, _, history, _ = trained
    names = {"robust_accuracy_pgd_linf", "privacy_epsilon", "watermark_z", "val_accuracy"}
    assert names <= history.history.keys()
    assert all(len(history.history[name]) == 2 for name in names)
    with open(folder / "log.csv", newline="") as file:
        assert names <= next(csv.DictReader(file)).keys()


def test_every_checkpoint_verifies_and_loads_as_it_was_saved(trained):
    folder, model, _, _, (x, _) = trained
    paths = sorted(folder.glob("*.keras"))
    assert len(paths) == 2
    for path in paths:
        ms.verify(path, trusted_keys=[folder / "owner.pub"])
    loaded = ms.load_verified_model(paths[-1], trusted_keys=[folder / "owner.pub"])
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    assert loaded.optimizer.runs() == model.optimizer.runs()
    assert isinstance(loaded.adversarial, ms.AdversarialTraining)


def test_one_changed_byte_is_refused(trained):
    folder, *_ = trained
    path = sorted(folder.glob("*.keras"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ms.SignatureError):
        ms.load_verified_model(path, trusted_keys=[folder / "owner.pub"])


def test_the_mark_reads_with_its_key_and_with_no_other(trained):
    _, model, key, _, _ = trained
    assert ms.verify_watermark(model, key).log10_p < -6
    another = hashlib.sha256(b"another's").digest()
    assert ms.verify_watermark(model, another).log10_p > -4


def test_no_secret_reaches_a_saved_file(trained):
    folder, _, key, _, _ = trained
    private = (folder / "owner.pem").read_bytes().splitlines()[1]
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "owner.pem":
            content = path.read_bytes()
            assert key not in content
            assert key.hex().encode() not in content
            assert private not in content
