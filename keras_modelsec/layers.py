"""Layers of this package, under one name: `ms.layers`. Re-exports only."""

from keras_modelsec.integrity.activation_guard import ActivationGuard

__all__ = ["ActivationGuard"]
