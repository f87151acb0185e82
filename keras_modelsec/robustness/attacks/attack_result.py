"""What an attack found, with what its success or failure rests on."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

_REMEDY = (
    "Let the model return logits, or end in keras.layers.Softmax or a layer with "
    "activation='softmax'."
)


class GradientVanishedWarning(UserWarning):
    """Some examples were not attacked: the loss has no gradient there, or never changes.

    Or its gradient is not finite for some features, which then stay as they are. The model may
    look more robust than it is.
    """


class MaskedModelWarning(UserWarning):
    """The model's output saturates, and the scores behind it were not found.

    The attack had to follow the output itself. The model may look more robust than it is.
    """


class SeveralOutputsWarning(UserWarning):
    """The model has several outputs, of which the attack followed one sum.

    One output may take over and hide how weak another is.
    """


@dataclass(frozen=True)
class AttackResult:
    """The outcome of one attack on arrays.

    Attributes:
        name: Name of the attack.
        x: Adversarial examples, NumPy arrays in the structure of the inputs.
        fooled: (examples,) bool. Whether the attack reached its aim at `x`: a prediction that is
            wrong or, if targeted, the class to reach. False throughout for models without one class
            per example.
        distance: (examples,) float32. How far `x` is from the original in the threat's norm and
            scale; of an attack that looks for the smallest change, the length of that, infinite
            where none was found, whether it lies in the ball or not.
        queries: (examples,) int. How often the attack asked the model about the example; of an
            attack that looks for the smallest change, how often at most.
        still: (examples,) bool. For which examples a gradient attack had nothing to follow: a
            gradient of zero at every step of every restart, or one not finite for some features,
            or a loss that was the same at every point although the input moved. Their accuracy
            says nothing about robustness.
        masked: Whether the output consists of probabilities, or otherwise saturates, and the scores
            behind it were not found. The accuracy of such a model says little about robustness.
        followed: For a model with several outputs, the losses whose sum was followed, by name, with
            their weights; empty for one output.
    """

    name: str
    x: Any
    fooled: np.ndarray
    distance: np.ndarray
    queries: np.ndarray
    still: np.ndarray
    masked: bool = False
    followed: tuple[tuple[str, float], ...] = ()

    def warn(self, stacklevel: int = 2) -> None:
        """Warns of what makes the model look more robust than it is.

        Warns:
            MaskedModelWarning: If the scores behind a saturating output were not found.
            SeveralOutputsWarning: If the model has several outputs.
            GradientVanishedWarning: If some examples gave the attack nothing to follow.
        """
        if self.followed:
            warn_several(self.name, self.followed, stacklevel + 1)
        if self.masked:
            warn_masked(self.name, stacklevel + 1)
        if not self.still.any():
            return
        warnings.warn(
            f"The gradient was zero for {self.still.sum()} of {len(self.still)} examples, or not "
            f"finite for features of theirs, or their loss never changed, so the attack "
            f"{self.name!r} had nothing, or not all, to follow there and the model may look more "
            "robust than it is. Usual causes: an output that saturates and hides its logits, "
            "rounding, a layer without a gradient, or a root or norm at zero (add a small number "
            f"under it). {_REMEDY}",
            GradientVanishedWarning,
            stacklevel=stacklevel + 1,
        )


def warn_masked(name: str, stacklevel: int = 2) -> None:
    """Warns that the attack of that name did not find the scores behind a saturating output."""
    warnings.warn(
        "The model's output saturates and hides the scores behind it, which the attack "
        f"{name!r} did not find, so the model may look more robust than it is. {_REMEDY} A model "
        "compiled with run_eagerly=True shows more without it.",
        MaskedModelWarning,
        stacklevel=stacklevel + 1,
    )


def warn_several(name: str, followed: tuple[tuple[str, float], ...], stacklevel: int = 2) -> None:
    """Warns that the attack of that name follows one sum of a model's several losses."""
    terms = ", ".join(f"{loss!r} (weight {weight:g})" for loss, weight in followed)
    warnings.warn(
        f"The model has several outputs, and the attack {name!r} follows one sum of the losses of "
        f"{terms}, so one output may hide how weak another is. Attack each in a model of its own: "
        "keras.Model(model.inputs, model.outputs[0]).",
        SeveralOutputsWarning,
        stacklevel=stacklevel + 1,
    )
