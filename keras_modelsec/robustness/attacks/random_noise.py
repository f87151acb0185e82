"""Uniform noise: what an attack has to beat."""

from typing import Any

from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import AttackState
from keras_modelsec.robustness.attacks.gradient_attack import GradientAttack
from keras_modelsec.robustness.attacks.target import Target


@register
class RandomNoise(GradientAttack):
    """Adds noise drawn uniformly from the ball of radius `epsilon`; uses no gradient.

    A baseline: a model that fails here is brittle, one that holds has shown little. It counts among
    the gradient attacks because it may stand where they do, in training too.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf" (default) or "l2".
        restarts: Number of draws, int >= 1; each example keeps its worst. Default 1.
        targeted: Whether `y` holds classes to reach; matters with `restarts`. Default False.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default "random_noise_linf" or "random_noise_l2".
        seed: Integer for the same noise at each call, or None (default).

    Example:
    ```python
    x_noisy = ms.attacks.RandomNoise(epsilon=0.1)(model, x_test, y_test)
    ```
    """

    follows_gradient = False
    random_start = True

    @property
    def passes(self) -> int:
        """None."""
        return 0

    def search_once(self, target: Target, state: AttackState) -> tuple[list[Any], Any]:
        """One draw."""
        return target.ball.random_start(state.seeds), target.none_yet()
