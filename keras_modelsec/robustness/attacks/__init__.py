"""Attacks on the inputs of a model: `ms.attacks`."""

from keras_modelsec.robustness.attacks.attack import Attack
from keras_modelsec.robustness.attacks.fgsm import FGSM
from keras_modelsec.robustness.attacks.pgd import PGD
from keras_modelsec.robustness.attacks.random_noise import RandomNoise
from keras_modelsec.robustness.attacks.running import GradientVanishedWarning

__all__ = ["FGSM", "PGD", "Attack", "GradientVanishedWarning", "RandomNoise"]
