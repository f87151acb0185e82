"""One `fit` with every part of keras_modelsec, then attacks on what came out of it.

Trains a plain and a secured model on handwritten digits, attacks both, signs, flips one byte,
checks the watermark, and prints a table with one column for each.

    python examples/quickstart.py [--output DIR] [--data MNIST_SHAPED.npz] [--json PATH]
"""
# ruff: noqa: E402 - options are checked before TensorFlow is loaded, which takes seconds

import quickstart_setup

SETUP = quickstart_setup.from_command_line() if __name__ == "__main__" else None

import quickstart_report as report
from quickstart_setup import Keys, Settings, Setup
from quiet import keras

import keras_modelsec as ms


def build_model(shape: tuple[int, ...], units: int) -> keras.Model:
    """A small network that ends in logits; tanh suits private training better than ReLU."""
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(units, activation="tanh", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def monitor(setup: Setup, log_dir: str) -> ms.RobustnessMonitor:
    """Attacks some test images after each epoch; nothing is chosen by what it finds."""
    data, count = setup.data, setup.settings.watched
    return ms.RobustnessMonitor(
        data.x_test[:count],
        data.y_test[:count],
        attacks=[
            ms.attacks.FGSM(setup.settings.epsilon),
            ms.attacks.PGD(setup.settings.epsilon, steps=10),
        ],
        log_dir=log_dir,
    )


def train_plain(setup: Setup, model: keras.Model) -> None:
    data, log_dir = setup.data, str(setup.output / "logs" / "plain")
    model.compile("adam", loss=loss(), metrics=["accuracy"])
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=64,
        epochs=setup.settings.plain_epochs,
        callbacks=[monitor(setup, log_dir), keras.callbacks.TensorBoard(log_dir)],
    )


def train_secured(setup: Setup, model: keras.Model, keys: Keys) -> ms.PrivacyBudget:
    """The one `fit` that all parts share; it leaves `secured.keras`, signed."""
    data, settings = setup.data, setup.settings
    log_dir = str(setup.output / "logs" / "secured")
    secured = ms.SecureModel.from_model(model)
    secured.compile(
        optimizer=ms.DPOptimizer(
            keras.optimizers.Adam(settings.learning_rate),
            l2_norm_clip=1.0,
            noise_multiplier=settings.noise_multiplier,
        ),
        loss=loss(),
        metrics=["accuracy"],
        adversarial=ms.AdversarialTraining(ms.attacks.PGD(settings.epsilon, steps=5)),
    )
    ms.attach_watermark(secured, keys.watermark)
    budget = ms.PrivacyBudget(delta=settings.delta, max_epsilon=settings.max_epsilon)
    secured.fit(
        data.x_train,
        data.y_train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        callbacks=[
            monitor(setup, log_dir),
            budget,
            ms.WatermarkMonitor(keys.watermark),
            ms.SignOnSave(setup.output / "secured.keras", signing_key=keys.private),
            keras.callbacks.TensorBoard(log_dir),
        ],
    )
    return budget


def final_attacks(settings: Settings) -> list[ms.attacks.Attack]:
    strong = {"steps": 40, "restarts": 5, "seed": 0}
    return [
        ms.attacks.RandomNoise(settings.epsilon, restarts=10, seed=0),
        ms.attacks.FGSM(settings.epsilon),
        ms.attacks.PGD(settings.l2_epsilon, norm="l2", **strong),
        ms.attacks.PGD(settings.epsilon, **strong),
    ]


def accuracies(setup: Setup, model: keras.Model, attacks: list[ms.attacks.Attack]) -> dict:
    """Clean accuracy and accuracy under each attack, on test images."""
    data, count = setup.data, setup.settings.attacked
    monitor = ms.RobustnessMonitor(data.x_test[:count], data.y_test[:count], attacks)
    return report.accuracies(monitor.evaluate(model))


def check_watermark(model: keras.Model, keys: Keys) -> dict[str, float]:
    right = ms.verify_watermark(model, keys.watermark)
    wrong = ms.verify_watermark(model, ms.watermark.generate_key())
    return {
        "watermark_log10_p": right.log10_p,
        "watermark_log10_p_wrong_key": wrong.log10_p,
        "watermark_bit_error_rate": right.bit_error_rate,
    }


def load_tampered(setup: Setup, keys: Keys) -> dict[str, object]:
    """Flips one byte of a copy of the signed file, and tries to load that."""
    path, position = report.flip_one_byte(setup.output / "secured.keras", setup.output / "tampered")
    result = {"flipped_byte": position, "refused": False, "error": None, "message": None}
    try:
        ms.load_verified_model(path, keys.public)
    except ms.TamperedModelError as error:
        result |= {"refused": True, "error": type(error).__name__, "message": str(error)}
    return result


def main(setup: Setup) -> None:
    say = report.say
    keys = quickstart_setup.get_keys(setup.output / "keys")
    quickstart_setup.clear_logs(setup.output / "logs")
    # For equal starting weights and batches; the privacy noise comes from the operating system.
    keras.utils.set_random_seed(0)
    plain = build_model(setup.data.x_train.shape[1:], setup.settings.units)
    secured = keras.models.clone_model(plain)

    say(f"Training a plain model on {len(setup.data.x_train)} images.")
    train_plain(setup, plain)
    say("Training a secured model: adversarial, private, watermarked and signed in one fit.")
    budget = train_secured(setup, secured, keys)

    say("Loading the secured model from its signed file, after verifying it.")
    ms.verify(setup.output / "secured.keras", keys.public)
    secured = ms.load_verified_model(setup.output / "secured.keras", keys.public)
    say("Attacking both models.")
    attacks = final_attacks(setup.settings)
    results = {
        "plain": accuracies(setup, plain, attacks),
        "secured": accuracies(setup, secured, attacks),
    }
    say("Reading the watermark from both, with the owner's key and with another.")
    results["plain"] |= report.NO_PRIVACY | check_watermark(plain, keys)
    results["secured"] |= report.privacy(budget) | check_watermark(secured, keys)
    results["plain"]["signature"] = None
    results["secured"]["signature"] = "valid"
    say("Flipping one byte of the signed file and loading it.")
    results["tampered"] = load_tampered(setup, keys)

    say("Exporting the secured model to an ordinary Keras file, deployed.keras.")
    ms.export_plain(secured).save(setup.output / "deployed.keras")
    report.draw_figure(setup, plain, secured, attacks[-1])
    report.publish(setup, results)


if SETUP is not None:
    main(SETUP)
