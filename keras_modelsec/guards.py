"""What watches a model while it runs: its weights, and what its layers give. `ms.guards`."""

from keras_modelsec.integrity.guards.activation_guard import (
    ActivationGuard,
    ActivationReport,
    activation_reports,
)
from keras_modelsec.integrity.guards.guarding import guard_activations
from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard

__all__ = [
    "ActivationGuard",
    "ActivationReport",
    "IntegrityGuard",
    "activation_reports",
    "guard_activations",
]
