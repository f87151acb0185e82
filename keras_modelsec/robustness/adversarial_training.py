"""Which part of each training batch is attacked, with what, and from which step on."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import checks
from keras_modelsec._core.batch import Batch
from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import AttackState
from keras_modelsec.robustness.attacks.gradient_attack import GradientAttack
from keras_modelsec.robustness.defense import Defense


@dataclass(frozen=True)
class TrainingState:
    """What one compiled model holds for its adversarial training; reaches no file."""

    attack: AttackState


@register
class AdversarialTraining(Defense):
    """Trains on adversarial examples of the batch instead of the batch itself.

    Each step attacks the current model with the model's own loss, then takes an ordinary training
    step on the result. The attack runs the model in inference mode and on each example for itself,
    so BatchNormalization statistics and dropout seeds are not touched by it, and `sample_weight`
    does not weaken it.

    In `fit`, inputs outside of the attack's `bounds`, NaN, and labels that the model has no class
    for or its loss does not take, stop the training with a ValueError before the update. Under
    `jit_compile=True` XLA drops the checks of values; such inputs are then left as they are and
    never moved further outside.

    What this does not promise: robustness to attacks stronger than, or different from, the one
    trained with. Single-step training (FGSM) may collapse at larger epsilon ("catastrophic
    overfitting"); watch it with a `RobustnessMonitor` on PGD. Of several losses the weighted sum is
    attacked, so one output may hide another. Rows of labels that name no class are trained with as
    they are. A gradient that points the wrong way, or is missing for some features of the input,
    is not detected.

    Args:
        attack: One of `ms.attacks`, e.g. `PGD(epsilon=0.1, steps=7)`.
        clean_ratio: Share of each batch, in [0, 1), that stays clean: the first examples of the
            batch, so that shuffled data gives a new share each epoch. Only the rest is attacked and
            paid for. Default 0.0.
        warmup_steps: Number of optimizer updates (int >= 0) with clean batches before the attack
            starts. Counted by `optimizer.iterations`, so a resumed run does not warm up again.
            Default 0.

    Raises:
        TypeError: If `attack` is no `GradientAttack`; no other can train a model.
        ValueError: If `attack` is targeted: it would move each example towards its own label.

    Example:
    ```python
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        adversarial=ms.AdversarialTraining(ms.attacks.FGSM(epsilon=0.1), clean_ratio=0.5),
    )
    ```

    Reference:
        - Madry et al., 2018, Towards Deep Learning Models Resistant to Adversarial Attacks
          (arXiv 1706.06083); the share of clean examples: Kurakin et al., 2017 (arXiv 1611.01236).
    """

    def __init__(self, attack: GradientAttack, *, clean_ratio: float = 0.0, warmup_steps: int = 0):
        if not isinstance(attack, GradientAttack):
            raise TypeError(
                "`attack` must be a gradient attack from keras_modelsec.attacks. Received: "
                f"attack={attack!r}. For example: AdversarialTraining(PGD(epsilon=0.1, steps=7))."
            )
        self.attack = _check_untargeted(attack)
        self.clean_ratio = checks.check_number("clean_ratio", clean_ratio, minimum=0.0, below=1.0)
        self.warmup_steps = checks.check_integer("warmup_steps", warmup_steps, minimum=0)

    def new_state(self, model: keras.Model) -> TrainingState:
        """Makes the attack's radius and random seeds for one model."""
        return TrainingState(attack=self.attack.new_state(model))

    def prepare(self, model: keras.Model, batch: Batch, state: TrainingState) -> Batch:
        """Replaces the inputs by adversarial ones.

        Raises:
            ValueError: If inputs are NaN or outside of the attack's bounds, labels do not fit the
                model, or the attack has been made targeted since.
        """
        _check_untargeted(self.attack)
        x = self.attack.require_usable(model, batch.x, batch.y)
        if not self.warmup_steps:
            return batch.replace(x=self._attack_share(model, x, batch.y, state))
        return batch.replace(
            x=ops.cond(
                ops.greater_equal(model.optimizer.iterations, self.warmup_steps),
                lambda: self._attack_share(model, x, batch.y, state),
                lambda: x,
            )
        )

    def _attack_share(self, model: keras.Model, x: Any, y: Any, state: TrainingState) -> Any:
        if not self.clean_ratio:
            return self.attack.perturb(model, x, y, state.attack)
        batch_size = ops.shape(keras.tree.flatten(x)[0])[0]
        clean = ops.cast(ops.floor(self.clean_ratio * ops.cast(batch_size, "float32")), "int32")
        attacked = self.attack.perturb(
            model,
            keras.tree.map_structure(lambda leaf: leaf[clean:], x),
            keras.tree.map_structure(lambda leaf: leaf[clean:], y),
            state.attack,
        )
        return keras.tree.map_structure(
            lambda whole, part: ops.concatenate([whole[:clean], part], axis=0), x, attacked
        )

    def __repr__(self) -> str:
        return (
            f"AdversarialTraining({self.attack!r}, clean_ratio={self.clean_ratio}, "
            f"warmup_steps={self.warmup_steps})"
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "attack": keras.saving.serialize_keras_object(self.attack),
            "clean_ratio": self.clean_ratio,
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdversarialTraining":
        """Builds it from what `get_config` gave."""
        config = dict(config)
        attack = keras.saving.deserialize_keras_object(config.pop("attack"))
        return cls(attack, **config)


def _check_untargeted(attack: GradientAttack) -> GradientAttack:
    if attack.targeted:
        raise ValueError(
            "`attack` must be untargeted: the labels of a training batch are the true ones, and a "
            "targeted attack would move each example towards its label, which makes it easier. "
            f"Received: {attack.name!r} with targeted=True. Leave out targeted=True."
        )
    return attack


def as_defense(value: Any) -> Defense:
    """What `compile(adversarial=value)` means.

    Raises:
        TypeError: If `value` is neither a defence nor a `GradientAttack`.
    """
    if isinstance(value, Defense):
        return value
    if isinstance(value, GradientAttack):
        return AdversarialTraining(value)
    raise TypeError(
        "`adversarial` must be an AdversarialTraining, an attack from keras_modelsec.attacks that "
        f"follows a gradient, another Defense, or None. Received: adversarial={value!r}. "
        "For example: adversarial=AdversarialTraining(PGD(epsilon=0.1, steps=7))."
    )
