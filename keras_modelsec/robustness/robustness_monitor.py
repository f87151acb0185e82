"""Robust accuracy during training: in `logs` for every callback, and in TensorBoard."""

import os
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import checks
from keras_modelsec._core.monitor import Monitor
from keras_modelsec.robustness.attacks import inputs, one_class
from keras_modelsec.robustness.attacks.attack import Attack
from keras_modelsec.robustness.image_grid import are_images, draw_grid
from keras_modelsec.robustness.predictions import Predictor, true_classes
from keras_modelsec.robustness.robustness_result import RobustnessResult


class RobustnessMonitor(Monitor):
    """Attacks the model at the end of epochs and puts its accuracies into `logs`.

    Adds `clean_accuracy` and, for each attack, `robust_accuracy_<attack.name>`: the share of
    examples classified correctly both clean and under that attack. History, CSVLogger,
    EarlyStopping, ModelCheckpoint and TensorBoard see them if listed after this callback. The
    training metrics of an adversarially trained model describe adversarial batches; these do not.

    Beside the figure of an attack that follows a gradient stand `not_attacked_<attack.name>`, the
    share of examples that gave it nothing to follow, and `masked_<attack.name>`, 1 if the output
    saturates and the scores behind it were not found (see `AttackResult`). Unless both are 0, the
    accuracy flatters; a warning says so too. Neither shows a gradient that points the wrong way, or
    is missing for some features of the input only. A model with several outputs is refused.

    What a figure rests on (sample size, 95 % confidence interval, the attack's settings) is in
    `results`. It is an upper bound: a stronger attack may find more.

    Args:
        x: Held-out inputs as `fit` takes them: an array, or a list, tuple or dict of arrays.
        y: One class for each example: class numbers or one-hot rows, whichever the model's loss
            takes. For one output unit 0 and 1, or -1 and 1.
        attacks: An attack from `ms.attacks` or a list of them, with names that differ.
        every: Evaluate on the first epoch and every that many epochs, int >= 1. On the others the
            last values are repeated, so that file names and monitors find them. Default 1.
        batch_size: Examples attacked together, int >= 1. Default 256.
        log_dir: Folder for TensorBoard: the accuracies, and for image inputs a grid of adversarial
            examples with their predictions. Default None: nothing is written.
        max_images: How many examples such a grid shows, int >= 1. Default 8.

    Raises:
        TypeError: If `attacks` holds anything but attacks.
        ValueError: If data is unusable (lengths, NaN, outside an attack's bounds), two names are
            equal, or an attack is targeted; when the model runs, if it has several outputs or the
            labels do not fit its own.
        OSError: If `log_dir` cannot be made or written to.

    Example:
    ```python
    monitor = ms.RobustnessMonitor(x_val, y_val, [ms.attacks.PGD(epsilon=0.1, steps=20)])
    stop = keras.callbacks.EarlyStopping(monitor="robust_accuracy_pgd_linf", mode="max")
    model.fit(x_train, y_train, epochs=10, callbacks=[monitor, stop])
    print(monitor.results["pgd_linf"].confidence_interval)
    ```
    """

    section = "robustness"

    def __init__(
        self,
        x: Any,
        y: Any,
        attacks: Any,
        every: int = 1,
        *,
        batch_size: int = 256,
        log_dir: str | os.PathLike[str] | None = None,
        max_images: int = 8,
    ):
        super().__init__(every, log_dir=log_dir)
        self.attacks = _check_attacks(attacks)
        self.batch_size = checks.check_integer("batch_size", batch_size, minimum=1)
        self.max_images = checks.check_integer("max_images", max_images, minimum=1)
        self._x, self._y = inputs.as_arrays("x", x), inputs.as_arrays("y", y)
        inputs.check_lengths(self._x, self._y)
        self._labels = true_classes(self._y)
        self._signs = bool(one_class.are_signs(self._y))
        for attack in self.attacks:
            inputs.check_values(self._x, attack.bounds)
        self._predictor = Predictor()
        self._results: dict[str, RobustnessResult] = {}

    @property
    def results(self) -> dict[str, RobustnessResult]:
        """The last results by name: "clean", then one for each attack; empty before the first."""
        return dict(self._results)

    def begin(self) -> None:
        """Tries the model on one example, so that what cannot work fails before the training."""
        self._results = {}
        if self.model.built:
            one = keras.tree.map_structure(lambda leaf: leaf[:1], self._x)
            self._classes(self.model, one)

    def measure(self, step: int) -> None:
        """As `evaluate`, of the model that is trained."""
        self.evaluate(self.model, step=step)

    def evaluate(self, model: keras.Model, step: int = 0) -> dict[str, RobustnessResult]:
        """Attacks `model` now.

        Args:
            model: The model to attack.
            step: Where TensorBoard shows it, if this happens during a training.

        Returns:
            What `results` holds from then on.
        """
        clean = self._classes(model, self._x)
        right = clean == self._labels
        results = {"clean": RobustnessResult("clean", int(right.sum()), len(right))}
        images, texts = {}, {}
        for attack in self.attacks:
            result = attack.run(model, self._x, self._y, batch_size=self.batch_size)
            result.warn()
            found = result.x
            attacked = self._classes(model, found)
            still_right = int((right & (attacked == self._labels)).sum())
            results[attack.name] = RobustnessResult(
                attack.name,
                still_right,
                len(right),
                attack.get_config(),
                not_attacked=int(result.still.sum()),
                masked=result.masked,
            )
            if self._log is not None:
                tag = f"adversarial_examples/{attack.name}"
                # Under a tag of its own: TensorBoard shows neither of two kinds that share one.
                texts[f"adversarial_predictions/{attack.name}"] = self._table(clean, attacked)
                images.update(self._images(tag, attack, found, clean, attacked))
        self._results = results
        if self._log is not None:
            self._log.write(step, scalars=self.scalars(), images=images, texts=texts)
        return self.results

    def _classes(self, model: keras.Model, x: Any) -> np.ndarray:
        return self._predictor.classes(
            model, x, batch_size=self.batch_size, signs=self._signs, labels=self._labels
        )

    def scalars(self) -> dict[str, float]:
        """The accuracies, and what they rest on, by the names they have in `logs`."""
        scalars = {
            "clean_accuracy" if name == "clean" else f"robust_accuracy_{name}": result.accuracy
            for name, result in self._results.items()
        }
        for attack in self.attacks:
            if attack.follows_gradient and self._results:
                result = self._results[attack.name]
                scalars[f"not_attacked_{attack.name}"] = result.not_attacked / result.sample_size
                scalars[f"masked_{attack.name}"] = float(result.masked)
        return scalars

    def facts(self) -> dict[str, Any]:
        """What a signed checkpoint states of the last evaluation."""
        return {
            name: {
                "accuracy": result.accuracy,
                "confidence_interval": result.confidence_interval,
                "sample_size": result.sample_size,
                "not_attacked": result.not_attacked,
                "masked": result.masked,
                "settings": result.settings,
            }
            for name, result in self._results.items()
        }

    def _images(
        self, tag: str, attack: Attack, found: Any, clean: np.ndarray, attacked: np.ndarray
    ) -> dict[str, np.ndarray]:
        shown = slice(0, self.max_images)
        pairs = zip(keras.tree.flatten(self._x), keras.tree.flatten(found), strict=True)
        for before, after in pairs:
            if inputs.is_floating(before) and are_images(before):
                predictions = clean[shown], attacked[shown]
                labels = self._labels[shown]
                grid = draw_grid(before[shown], after[shown], predictions, labels, attack.bounds)
                return {tag: grid[None]}
        return {}

    def _table(self, clean: np.ndarray, attacked: np.ndarray) -> str:
        """The predictions as Markdown, which TensorBoard renders."""
        lines = ["| example | true | predicted clean | predicted attacked |", "|--|--|--|--|"]
        rows = zip(self._labels, clean, attacked, strict=True)
        for index, (label, before, after) in enumerate(rows):
            if index == self.max_images:
                break
            lines.append(f"| {index} | {label} | {before} | {after} |")
        return "\n".join(lines)


def _check_attacks(attacks: Any) -> list[Attack]:
    found = [attacks] if isinstance(attacks, Attack) else attacks
    if not isinstance(found, (list, tuple)) or not all(isinstance(a, Attack) for a in found):
        raise TypeError(
            "`attacks` must be a list of attacks from keras_modelsec.attacks. Received: "
            f"attacks={attacks!r}. For example: attacks=[PGD(epsilon=0.1, steps=20)]."
        )
    names = [attack.name for attack in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or "clean" in names:
        raise ValueError(
            "`attacks` must hold at least one attack, with names that differ and are not 'clean'. "
            f"Received names: {names}. Give an attack another: PGD(epsilon=0.2, name='pgd_02')."
        )
    for attack in found:
        if getattr(attack, "targeted", False):
            raise ValueError(
                "`attacks` must be untargeted, as `y` holds the true classes. "
                f"Received: {attack.name!r} with targeted=True."
            )
    return list(found)
