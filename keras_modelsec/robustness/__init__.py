"""Robustness: attacks, adversarial training, and the monitor that measures it."""

from keras_modelsec.robustness import attacks
from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin
from keras_modelsec.robustness.adversarial_training import AdversarialTraining
from keras_modelsec.robustness.robustness_monitor import RobustnessMonitor
from keras_modelsec.robustness.robustness_result import RobustnessResult

__all__ = [
    "AdversarialMixin",
    "AdversarialTraining",
    "RobustnessMonitor",
    "RobustnessResult",
    "attacks",
]
