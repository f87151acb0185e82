"""An accuracy with what it rests on."""

import math
from dataclasses import dataclass, field
from typing import Any

# The 97.5th percentile of the normal distribution: two-sided 95 %.
_Z = 1.959963984540054


@dataclass(frozen=True)
class RobustnessResult:
    """How many of a set of examples a model classified correctly, clean or under one attack.

    Attributes:
        name: Name of the attack, or "clean".
        correct: Number of examples classified correctly; under an attack, both before and after.
        sample_size: Number of examples.
        settings: The attack's configuration; empty for "clean".
        not_attacked: Number of examples for which the attack had nothing to follow.
        masked: Whether the output saturates and the attack did not find the scores behind it.
    """

    name: str
    correct: int
    sample_size: int
    settings: dict[str, Any] = field(default_factory=dict)
    not_attacked: int = 0
    masked: bool = False

    @property
    def accuracy(self) -> float:
        """The share of correct examples, in [0, 1]."""
        return self.correct / self.sample_size

    @property
    def confidence_interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy.

        It covers the choice of examples, not the choice of attack: a stronger attack may lead to
        an accuracy far below it.
        """
        return wilson_interval(self.correct, self.sample_size)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion; reliable near 0 and 1 and for few trials.

    Reference:
        - Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    share = successes / trials
    scale = 1.0 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / scale
    spread = math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    half = _Z * spread / scale
    return max(0.0, centre - half), min(1.0, centre + half)
