"""What the quickstart shows: the table, the same as JSON, and the figure."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from quickstart_setup import Setup
from quiet import keras

import keras_modelsec as ms

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of how it draws

_RIGHT, _WRONG = "#1e7d3c", "#c8282d"
NO_PRIVACY: dict[str, Any] = {
    "privacy_epsilon": None,
    "privacy_delta": None,
    "privacy_statement": "Trained without privacy.",
}


def say(sentence: str) -> None:
    """Announces a step."""
    print(f"\n== {sentence}", flush=True)


def accuracies(results: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by attack, and what they rest on."""
    attacked = {name: result for name, result in results.items() if name != "clean"}
    return {
        "clean_accuracy": results["clean"].accuracy,
        "robust_accuracy": {name: result.accuracy for name, result in attacked.items()},
        "confidence_interval_95": {n: list(r.confidence_interval) for n, r in results.items()},
        "attack_settings": {name: result.settings for name, result in attacked.items()},
        "test_images": results["clean"].sample_size,
    }


def privacy(budget: ms.PrivacyBudget) -> dict[str, Any]:
    """What the training of the secured model spent."""
    return {
        "privacy_epsilon": budget.epsilon,
        "privacy_delta": budget.delta,
        "privacy_statement": budget.statement(),
    }


def flip_one_byte(path: Path, folder: Path) -> tuple[Path, int]:
    """Copies a signed file with its signature, and flips the byte in the middle of the copy."""
    folder.mkdir(0o755, exist_ok=True)
    copy = folder / path.name
    shutil.copyfile(f"{path}.sig", f"{copy}.sig")
    content = bytearray(path.read_bytes())
    position = len(content) // 2
    content[position] ^= 0xFF
    copy.write_bytes(content)
    return copy, position


def publish(setup: Setup, results: dict[str, Any]) -> None:
    """Prints the table and writes the JSON."""
    print("\n" + table(results))
    for path in setup.json_paths:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {', '.join(map(str, setup.json_paths))}, {setup.output / 'quickstart.png'}.")
    print(f"Curves and adversarial images: tensorboard --logdir {setup.output / 'logs'}")


def table(results: dict[str, Any]) -> str:
    """Plain beside secured, and below it what the figures rest on."""
    plain, secured, tampered = (results[name] for name in ("plain", "secured", "tampered"))
    rows = [("", "plain", "secured"), ("clean accuracy", *_both(results, "clean_accuracy"))]
    rows += [
        (f"robust accuracy, {_describe(settings)}", *_shares(plain, secured, name))
        for name, settings in secured["attack_settings"].items()
    ]
    delta = secured["privacy_delta"]
    rows += [
        (f"privacy epsilon at delta {delta:g}", "no privacy", f"{secured['privacy_epsilon']:.2f}"),
        ("watermark log10 p, owner's key", *_both(results, "watermark_log10_p")),
        ("watermark log10 p, another key", *_both(results, "watermark_log10_p_wrong_key")),
        ("signature", "none", secured["signature"]),
        ("file with one byte flipped", "-", "refused" if tampered["refused"] else "LOADED"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, "", *_notes(results)])


def _both(results: dict[str, Any], name: str) -> tuple[str, str]:
    digits = 3 if name == "clean_accuracy" else 1
    # Adding zero turns a -0.0 that comes of rounding into 0.0.
    values = (round(results[column][name], digits) + 0.0 for column in ("plain", "secured"))
    plain, secured = (f"{value:.{digits}f}" for value in values)
    return plain, secured


def _shares(plain: dict[str, Any], secured: dict[str, Any], name: str) -> tuple[str, str]:
    return f"{plain['robust_accuracy'][name]:.3f}", f"{secured['robust_accuracy'][name]:.3f}"


def _describe(settings: dict[str, Any]) -> str:
    """An attack in a few words, from its name and configuration."""
    options = [
        f"{settings[option]} {option}"
        for option in ("steps", "restarts")
        if settings.get(option, 1) > 1
    ]
    return ", ".join([f"{settings['name']} {settings['epsilon']:g}", *options])


def _notes(results: dict[str, Any]) -> list[str]:
    secured, tampered = results["secured"], results["tampered"]
    low, high = secured["confidence_interval_95"]["pgd_linf"]
    paragraphs = [
        f"Accuracies are shares of {secured['test_images']} test images (95 % interval of the "
        f"secured model's under pgd_linf: {low:.2f} to {high:.2f}). Robust: right both before and "
        "under the attack; an upper bound, as a stronger attack may exist.",
        f"Privacy: {secured['privacy_statement']}",
        "Watermark: p bounds the chance that a random key fits weights made without it this well; "
        f"bit error rate {secured['watermark_bit_error_rate']:g}.",
        f"Byte {tampered['flipped_byte']} flipped: {tampered['error']}: {tampered['message']}",
    ]
    unbroken = {"break_on_hyphens": False, "break_long_words": False}
    return [line for text in paragraphs for line in textwrap.wrap(text, 88, **unbroken)]


def draw_figure(
    setup: Setup, plain: keras.Model, secured: keras.Model, attack: ms.attacks.Attack
) -> None:
    """The first test image of each class, clean and attacked, with each model's prediction."""
    data = setup.data
    chosen = [np.flatnonzero(data.y_test == c)[0] for c in np.unique(data.y_test)]
    x, y = data.x_test[chosen], data.y_test[chosen]
    rows = []
    for name, model in (("plain", plain), ("secured", secured)):
        for kind, images in (("clean", x), ("attacked", attack(model, x, y))):
            predictions = np.argmax(model.predict(images, verbose=0), axis=-1)
            rows.append((f"{name} model,\n{kind}", images, predictions))
    figure, axes = pyplot.subplots(
        len(rows), len(x), figsize=(1.05 * len(x) + 1.4, 5.6), squeeze=False
    )
    for line, (title, images, predictions) in zip(axes, rows, strict=True):
        line[0].text(
            -0.35, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=11
        )
        for axis, image, predicted, label in zip(line, images, predictions, y, strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            colour = _RIGHT if predicted == label else _WRONG
            axis.set_title(str(predicted), color=colour, fontsize=14, fontweight="bold", pad=3)
            axis.set_axis_off()
    figure.suptitle(
        f"Predictions over each digit, green if right. PGD of {attack.steps} steps moves each "
        f"pixel by at most {attack.epsilon:g} of the grey scale.",
        fontsize=11,
    )
    figure.subplots_adjust(left=0.13, right=0.99, top=0.88, bottom=0.01, wspace=0.08, hspace=0.32)
    figure.savefig(setup.output / "quickstart.png", dpi=110)
    pyplot.close(figure)
