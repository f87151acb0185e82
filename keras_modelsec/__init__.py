"""Robustness, privacy, integrity and ownership for Keras models, inside ordinary `model.fit`.

The public face: flat names for daily use, namespaces for the rest, all resolved on first use
(PEP 562) from `__init__.pyi`, so that `import keras_modelsec` loads no domain.
"""

from keras_modelsec._core.lazy_names import names_of_stub
from keras_modelsec._core.lazy_registration import register_lazily

__version__ = "0.1.0.dev0"

# Classes that saved files name: Keras finds them after `import keras_modelsec` alone.
_SERIALIZABLE = {
    "ActivationGuard": "keras_modelsec.integrity.guards.activation_guard",
    "SecureModel": "keras_modelsec.secure_model",
    "SecureFunctional": "keras_modelsec.secure_model",
    "AdversarialTraining": "keras_modelsec.robustness.adversarial_training",
    "RandomNoise": "keras_modelsec.robustness.attacks.random_noise",
    "FGSM": "keras_modelsec.robustness.attacks.fgsm",
    "PGD": "keras_modelsec.robustness.attacks.pgd",
    "DeepFool": "keras_modelsec.robustness.attacks.deep_fool",
    "Square": "keras_modelsec.robustness.attacks.square",
    "AttackSequence": "keras_modelsec.robustness.attacks.attack_sequence",
    "Threat": "keras_modelsec.robustness.attacks.threat",
    "DPOptimizer": "keras_modelsec.privacy.dp_optimizer",
    "WatermarkRegularizer": "keras_modelsec.watermark.watermark_regularizer",
}

register_lazily(_SERIALIZABLE)

__getattr__, __dir__, _public = names_of_stub(globals())
__all__ = ["__version__", *_public]
