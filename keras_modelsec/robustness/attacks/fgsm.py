"""The fast gradient method: one step."""

from typing import Any

from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import Attack


@register
class FGSM(Attack):
    """Takes one step of size `epsilon` along the sign (or l2 direction) of the gradient.

    Cheap enough to train with; weak as an evaluation. Training with it can collapse at larger
    epsilon; a random start (`random_start=True, step_size=1.25 * epsilon`) delays that.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf" (default) or "l2", which is also called the fast gradient method.
        step_size: Length of the step, float > 0. Default: `epsilon`.
        random_start: Whether to step from a random point of the ball. Default False.
        restarts: How often to start anew, int >= 1, with a random start. Default 1.
        targeted: Whether `y` holds the classes to reach. Default False.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        name: Identifier for log keys. Default "fgsm_linf" or "fgsm_l2".
        seed: Integer for the same random start at each call, or None (default).

    Example:
    ```python
    x_adv = ms.attacks.FGSM(epsilon=0.1)(model, x_test, y_test)
    ```

    Reference:
        - Goodfellow et al., 2015, Explaining and Harnessing Adversarial Examples
          (arXiv 1412.6572); the random start: Wong et al., 2020 (arXiv 2001.03994).
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        step_size: float | None = None,
        random_start: bool = False,
        restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(
            epsilon,
            norm=norm,
            steps=1,
            step_size=step_size,
            random_start=random_start,
            restarts=restarts,
            targeted=targeted,
            bounds=bounds,
            name=name,
            seed=seed,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = super().get_config()
        del config["steps"]
        return config
