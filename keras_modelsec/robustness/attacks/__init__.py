"""Attacks on the inputs of a model: `ms.attacks`."""

from keras_modelsec.robustness.attacks.attack import Attack
from keras_modelsec.robustness.attacks.attack_result import (
    AttackResult,
    GradientVanishedWarning,
    MaskedModelWarning,
    SeveralOutputsWarning,
)
from keras_modelsec.robustness.attacks.attack_sequence import AttackSequence
from keras_modelsec.robustness.attacks.deep_fool import DeepFool
from keras_modelsec.robustness.attacks.fgsm import FGSM
from keras_modelsec.robustness.attacks.gradient_attack import GradientAttack
from keras_modelsec.robustness.attacks.minimum_norm_attack import MinimumNormAttack
from keras_modelsec.robustness.attacks.pgd import PGD
from keras_modelsec.robustness.attacks.query_attack import QueryAttack
from keras_modelsec.robustness.attacks.random_noise import RandomNoise
from keras_modelsec.robustness.attacks.square import Square
from keras_modelsec.robustness.attacks.threat import Threat

__all__ = [
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "AttackSequence",
    "DeepFool",
    "GradientAttack",
    "GradientVanishedWarning",
    "MaskedModelWarning",
    "MinimumNormAttack",
    "QueryAttack",
    "RandomNoise",
    "SeveralOutputsWarning",
    "Square",
    "Threat",
]
