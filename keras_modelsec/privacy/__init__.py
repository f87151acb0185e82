"""Training with differential privacy: per-example clipping, noise, accounting."""

from keras_modelsec.privacy.dp_mixin import DPMixin
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.layer_rules import FallbackRule, LayerRule, register_layer_rule
from keras_modelsec.privacy.privacy_budget import PrivacyBudget

__all__ = [
    "DPMixin",
    "DPOptimizer",
    "FallbackRule",
    "LayerRule",
    "PrivacyBudget",
    "register_layer_rule",
]
