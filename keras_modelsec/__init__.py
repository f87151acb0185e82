"""Robustness, privacy, integrity and ownership for Keras models, inside ordinary `model.fit`.

The public face: flat names for daily use, namespaces for the rest, all resolved on first use
(PEP 562), so that `import keras_modelsec` loads no domain.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_modelsec._core.lazy_registration import register_lazily

__version__ = "0.1.0.dev0"

_NAMES = {
    "SecureModel": "keras_modelsec.secure_model",
    "export_plain": "keras_modelsec._core.export",
    # robustness
    "AdversarialMixin": "keras_modelsec.robustness.adversarial_mixin",
    "AdversarialTraining": "keras_modelsec.robustness.adversarial_training",
    "RobustnessMonitor": "keras_modelsec.robustness.robustness_monitor",
    # privacy
    "DPMixin": "keras_modelsec.privacy.dp_mixin",
    "DPOptimizer": "keras_modelsec.privacy.dp_optimizer",
    "PrivacyBudget": "keras_modelsec.privacy.privacy_budget",
    "PrivacyBudgetExceeded": "keras_modelsec.privacy.privacy_budget",
    # integrity
    "ActivationGuard": "keras_modelsec.integrity.guards.activation_guard",
    "IntegrityGuard": "keras_modelsec.integrity.guards.integrity_guard",
    "guard_activations": "keras_modelsec.integrity.guards.guarding",
    "SignOnSave": "keras_modelsec.integrity.signatures.sign_on_save",
    "SignedBackupAndRestore": "keras_modelsec.integrity.signatures.signed_backup",
    "SignatureError": "keras_modelsec.integrity.errors",
    "UnrepairableError": "keras_modelsec.integrity.errors",
    "TamperedModelError": "keras_modelsec.integrity.errors",
    "TrustStore": "keras_modelsec.integrity.keys.trust_store",
    "generate_keys": "keras_modelsec.integrity.keys.keys",
    "decrypt_file": "keras_modelsec.integrity.encryption.file_encryption",
    "encrypt_file": "keras_modelsec.integrity.encryption.file_encryption",
    "load_encrypted": "keras_modelsec.integrity.encryption.encrypted_models",
    "load_encrypted_weights": "keras_modelsec.integrity.encryption.encrypted_models",
    "load_verified_model": "keras_modelsec.integrity.loaders.loading",
    "load_verified_weights": "keras_modelsec.integrity.loaders.loading",
    "locate_tampering": "keras_modelsec.integrity.damage.locating",
    "save_encrypted": "keras_modelsec.integrity.encryption.encrypted_models",
    "protect": "keras_modelsec.integrity.parity.protecting",
    "repair": "keras_modelsec.integrity.parity.repairing",
    "sign": "keras_modelsec.integrity.signatures.signing",
    "verified_copy": "keras_modelsec.integrity.loaders.verified_copy",
    "verify": "keras_modelsec.integrity.signatures.verifying",
    # watermark
    "WatermarkMonitor": "keras_modelsec.watermark.watermark_monitor",
    "WatermarkRegularizer": "keras_modelsec.watermark.watermark_regularizer",
    "attach_watermark": "keras_modelsec.watermark.attaching",
    "verify_watermark": "keras_modelsec.watermark.verification",
}

_NAMESPACES = {
    "attacks": "keras_modelsec.robustness.attacks",
    "integrity": "keras_modelsec.integrity",
    "layers": "keras_modelsec.layers",
    "privacy": "keras_modelsec.privacy",
    "watermark": "keras_modelsec.watermark",
}

# Classes that saved files name: Keras finds them after `import keras_modelsec` alone.
_SERIALIZABLE = {
    "ActivationGuard": "keras_modelsec.integrity.guards.activation_guard",
    "SecureModel": "keras_modelsec.secure_model",
    "SecureFunctional": "keras_modelsec.secure_model",
    "AdversarialTraining": "keras_modelsec.robustness.adversarial_training",
    "RandomNoise": "keras_modelsec.robustness.attacks.random_noise",
    "FGSM": "keras_modelsec.robustness.attacks.fgsm",
    "PGD": "keras_modelsec.robustness.attacks.pgd",
    "DPOptimizer": "keras_modelsec.privacy.dp_optimizer",
    "WatermarkRegularizer": "keras_modelsec.watermark.watermark_regularizer",
}

register_lazily(_SERIALIZABLE)

__all__ = ["__version__", *_NAMES, *_NAMESPACES]

if TYPE_CHECKING:
    from keras_modelsec import integrity, layers, privacy, watermark
    from keras_modelsec._core.export import export_plain
    from keras_modelsec.integrity.damage.locating import locate_tampering
    from keras_modelsec.integrity.encryption.encrypted_models import (
        load_encrypted,
        load_encrypted_weights,
        save_encrypted,
    )
    from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
    from keras_modelsec.integrity.errors import (
        SignatureError,
        TamperedModelError,
        UnrepairableError,
    )
    from keras_modelsec.integrity.guards.activation_guard import ActivationGuard
    from keras_modelsec.integrity.guards.guarding import guard_activations
    from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard
    from keras_modelsec.integrity.keys.keys import generate_keys
    from keras_modelsec.integrity.keys.trust_store import TrustStore
    from keras_modelsec.integrity.loaders.loading import load_verified_model, load_verified_weights
    from keras_modelsec.integrity.loaders.verified_copy import verified_copy
    from keras_modelsec.integrity.parity.protecting import protect
    from keras_modelsec.integrity.parity.repairing import repair
    from keras_modelsec.integrity.signatures.sign_on_save import SignOnSave
    from keras_modelsec.integrity.signatures.signed_backup import SignedBackupAndRestore
    from keras_modelsec.integrity.signatures.signing import sign
    from keras_modelsec.integrity.signatures.verifying import verify
    from keras_modelsec.privacy.dp_mixin import DPMixin
    from keras_modelsec.privacy.dp_optimizer import DPOptimizer
    from keras_modelsec.privacy.privacy_budget import PrivacyBudget, PrivacyBudgetExceeded
    from keras_modelsec.robustness import attacks
    from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin
    from keras_modelsec.robustness.adversarial_training import AdversarialTraining
    from keras_modelsec.robustness.robustness_monitor import RobustnessMonitor
    from keras_modelsec.secure_model import SecureModel
    from keras_modelsec.watermark.attaching import attach_watermark
    from keras_modelsec.watermark.verification import verify_watermark
    from keras_modelsec.watermark.watermark_monitor import WatermarkMonitor
    from keras_modelsec.watermark.watermark_regularizer import WatermarkRegularizer


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _NAMESPACES:
        value = importlib.import_module(_NAMESPACES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
