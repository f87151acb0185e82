"""Robustness: the mixin that trains with a defense, and the monitor that measures it.

Attacks and defenses have addresses of their own: `ms.attacks`, `ms.defenses`.
"""

from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin
from keras_modelsec.robustness.robustness_monitor import RobustnessMonitor
from keras_modelsec.robustness.robustness_result import RobustnessResult

__all__ = [
    "AdversarialMixin",
    "RobustnessMonitor",
    "RobustnessResult",
]
