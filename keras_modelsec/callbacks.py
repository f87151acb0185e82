"""Callbacks of this package, under one name: `ms.callbacks`. Re-exports only."""

from keras_modelsec.integrity.callbacks.sign_on_save import SignOnSave
from keras_modelsec.integrity.callbacks.signed_backup import SignedBackupAndRestore
from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard
from keras_modelsec.privacy.privacy_budget import PrivacyBudget
from keras_modelsec.robustness.robustness_monitor import RobustnessMonitor
from keras_modelsec.watermark.watermark_monitor import WatermarkMonitor

__all__ = [
    "IntegrityGuard",
    "PrivacyBudget",
    "RobustnessMonitor",
    "SignOnSave",
    "SignedBackupAndRestore",
    "WatermarkMonitor",
]
