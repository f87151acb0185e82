"""DeepFool: to the nearest boundary of the linearised model, again and again."""

from typing import Any

from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import AttackState
from keras_modelsec.robustness.attacks.minimum_norm_attack import MinimumNormAttack, Nearest
from keras_modelsec.robustness.attacks.target import Target, chosen
from keras_modelsec.robustness.attacks.threat import Threat

Tensor = Any
Tensors = list[Any]

# Added to each step so that it ends beyond the boundary and not on it (foolbox uses the same).
_BEYOND = 1e-4
# Keeps a gradient of zero from dividing.
_SMALLEST = 1e-8


@register
class DeepFool(MinimumNormAttack):
    """Steps to the nearest class boundary of the model's linearisation until the class changes.

    Quick, and exact for linear models. For others the change it finds is some 10 to 50 % longer
    than the smallest (that of CW or FAB is shorter), so the share of examples fooled inside a
    radius flatters: use it to compare distances, and `PGD` for a radius. It fails where gradients
    vanish or are masked, which the result reports.

    Args:
        epsilon: Longest change that counts, float >= 0. Default None: any.
        norm: "linf" (default) or "l2".
        steps: Number of linearisations at most, int >= 1. Default 50.
        candidates: How many classes are looked at, the likeliest ones, int >= 2. Each costs a
            backward pass a step. Default 10.
        overshoot: By which share the sum of steps is lengthened, float >= 0. Default 0.02.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default "deep_fool_linf" or "deep_fool_l2".
        seed: Not used, as nothing here is random.

    Raises:
        ValueError: When it runs, if the model does not predict one class for each example.

    Example:
    ```python
    result = ms.attacks.DeepFool(norm="l2").run(model, x_test, y_test)
    print(result.distance.mean())
    ```

    Reference:
        - Moosavi-Dezfooli et al., 2016, DeepFool: a simple and accurate method to fool deep neural
          networks (arXiv 1511.04599), algorithm 2 and section 4 on other norms.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        norm: str | None = None,
        steps: int = 50,
        candidates: int = 10,
        overshoot: float = 0.02,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(epsilon, norm=norm, bounds=bounds, threat=threat, name=name, seed=seed)
        self.steps = checks.check_integer("steps", steps, minimum=1)
        self.candidates = checks.check_integer("candidates", candidates, minimum=2)
        self.overshoot = checks.check_number("overshoot", overshoot, minimum=0.0)

    @property
    def passes(self) -> int:
        """One for the candidates, and two for each step."""
        return 1 + 2 * self.steps

    def search(self, target: Target, first: Nearest, state: AttackState) -> tuple[Nearest, Tensor]:
        """Steps from the origin, each example until it fools the model."""
        ball = target.ball
        values = target.logits(ball.origin).values
        count = min(self.candidates, values.shape[-1])
        _, classes = ops.top_k(values, count)

        def step(current: tuple[Tensors, Nearest, Tensor]) -> tuple[Any, ...]:
            total, nearest, met = current
            size, direction = self._to_boundary(target, self._points(target, total), classes)
            met = ops.logical_or(met, size > 0)
            unfooled = ops.isinf(nearest.distance)
            longer = [
                change + ops.cast(_like(size, move), move.dtype) * move
                for change, move in zip(total, direction, strict=True)
            ]
            total = chosen(unfooled, longer, total)
            points = self._points(target, total)
            fooled = ops.logical_and(unfooled, target.score(points).fooled)
            return total, nearest.or_nearer(target, points, fooled), met

        nothing = [ops.zeros_like(x) for x in ball.origin]
        start = nothing, first, ops.isfinite(first.distance)
        _, nearest, met = backend.repeat(
            step, start, self.steps, unless=lambda c: ops.all(ops.isfinite(c[1].distance))
        )
        return nearest, ops.logical_not(met)

    def _points(self, target: Target, total: Tensors) -> Tensors:
        return target.ball.into_bounds([(1.0 + self.overshoot) * change for change in total])

    def _to_boundary(
        self, target: Target, points: Tensors, classes: Tensor
    ) -> tuple[Tensor, Tensors]:
        """How far the nearest boundary is, (batch,), 0 without a gradient, and which way."""

        def run(watch: Any) -> Tensors:
            for point in points:
                watch(point)
            ranked = ops.take_along_axis(target.logits(points).values, classes, axis=-1)
            return [ranked[:, 0] - ranked[:, k] for k in range(1, int(classes.shape[-1]))]

        gaps, gradients = backend.differentiable(run)
        best = ops.full((target.batch,), float("inf"))
        size, direction = ops.zeros_like(best), [ops.zeros_like(point) for point in points]
        for gap in gaps:
            found = [
                ops.zeros_like(point) if gradient is None else -gradient
                for point, gradient in zip(points, gradients(gap), strict=True)
            ]
            move = target.ball.direction(found)
            slope = target.ball.slope(found, move)
            distance = ops.abs(gap) / (slope + _SMALLEST)
            nearer = ops.logical_and(slope > 0, distance < best)
            best = ops.where(nearer, distance, best)
            size = ops.where(nearer, distance + _BEYOND, size)
            direction = chosen(nearer, move, direction)
        return size, direction

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "candidates": self.candidates,
            "overshoot": self.overshoot,
        }


def _like(values: Tensor, like: Tensor) -> Tensor:
    return ops.reshape(values, [-1] + [1] * (len(like.shape) - 1))
