"""The fast gradient method: one step."""

from typing import Any

from keras import ops

from keras_modelsec._core import checks
from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import AttackState
from keras_modelsec.robustness.attacks.gradient_attack import (
    GradientAttack,
    ascend,
    check_restarts,
)
from keras_modelsec.robustness.attacks.target import Target
from keras_modelsec.robustness.attacks.threat import Threat


@register
class FGSM(GradientAttack):
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
        threat: A `Threat` in place of epsilon, norm and bounds.
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
        epsilon: float | None = None,
        *,
        norm: str | None = None,
        step_size: float | None = None,
        random_start: bool = False,
        restarts: int = 1,
        targeted: bool = False,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(
            epsilon,
            norm=norm,
            restarts=restarts,
            targeted=targeted,
            bounds=bounds,
            threat=threat,
            name=name,
            seed=seed,
        )
        self.step_size = checks.check_number("step_size", step_size, above=0.0, optional=True)
        self.random_start = checks.check_boolean("random_start", random_start)
        check_restarts(self.restarts, self.random_start)

    @property
    def passes(self) -> int:
        """One forward and backward pass."""
        return 1

    def search_once(self, target: Target, state: AttackState) -> tuple[list[Any], Any]:
        """One step."""
        ball = target.ball
        size = ball.epsilon if self.step_size is None else ops.convert_to_tensor(self.step_size)
        start = ball.random_start(state.seeds) if self.random_start else ball.origin
        return ascend(target, start, 1, size, self.sign)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"step_size": self.step_size, "random_start": self.random_start}
        return {**super().get_config(), **own}
