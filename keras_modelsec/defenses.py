"""What makes a model harder to fool while it trains. `ms.defenses`."""

from keras_modelsec.robustness.adversarial_training import AdversarialTraining
from keras_modelsec.robustness.defense import Defense

__all__ = [
    "AdversarialTraining",
    "Defense",
]
