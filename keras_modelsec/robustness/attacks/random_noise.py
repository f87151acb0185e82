"""Uniform noise: what an attack has to beat."""

from typing import Any

from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import Attack


@register
class RandomNoise(Attack):
    """Adds noise drawn uniformly from the ball of radius `epsilon`; uses no gradient.

    A baseline: a model that fails here is brittle, one that holds has shown little.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf" (default) or "l2".
        restarts: Number of draws, int >= 1; each example keeps its worst. Default 1.
        targeted: Whether `y` holds classes to reach; matters with `restarts`. Default False.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        name: Identifier for log keys. Default "random_noise_linf" or "random_noise_l2".
        seed: Integer for the same noise at each call, or None (default).

    Example:
    ```python
    x_noisy = ms.attacks.RandomNoise(epsilon=0.1)(model, x_test, y_test)
    ```
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(
            epsilon,
            norm=norm,
            steps=0,
            random_start=True,
            restarts=restarts,
            targeted=targeted,
            bounds=bounds,
            name=name,
            seed=seed,
        )

    @classmethod
    def _short_name(cls) -> str:
        return "random_noise"

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = super().get_config()
        for fixed in ("steps", "step_size", "random_start"):
            del config[fixed]
        return config
