"""Layers of this package, under one name: `ms.layers`. Re-exports only."""

from keras_modelsec.integrity.guards.activation_guard import ActivationGuard

__all__ = ["ActivationGuard"]
