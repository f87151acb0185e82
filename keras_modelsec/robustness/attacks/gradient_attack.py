"""Attacks that climb the loss inside a ball, outside of training and in it."""

from abc import abstractmethod
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec.robustness.attacks import inputs, labels
from keras_modelsec.robustness.attacks.attack import Attack, AttackState
from keras_modelsec.robustness.attacks.attack_result import warn_masked, warn_several
from keras_modelsec.robustness.attacks.objective import Objective, Score
from keras_modelsec.robustness.attacks.progress import Progress
from keras_modelsec.robustness.attacks.target import Found, Target, chosen
from keras_modelsec.robustness.attacks.threat import Threat

Tensor = Any
Tensors = list[Any]


class GradientAttack(Attack):
    """Looks in the ball around each input for the point where the model's loss is highest.

    Not for direct use; see `RandomNoise`, `FGSM` and `PGD`. A new one says in `search_once` how it
    goes from the input to another point; `ascend` is the loop of projected gradient steps.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        restarts: How often to start anew, int >= 1; each example keeps the run in which it was
            misclassified, or else the one of highest loss. Default 1.
        targeted: Whether `y` holds the classes to reach instead of the true ones. Default False.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default: class and norm, e.g. "pgd_linf".
        seed: Integer for the same result at each call outside of training, or None (default).
    """

    follows_gradient = True

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        norm: str | None = None,
        restarts: int = 1,
        targeted: bool = False,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(epsilon, norm=norm, bounds=bounds, threat=threat, name=name, seed=seed)
        self.restarts = checks.check_integer("restarts", restarts, minimum=1)
        self.targeted = checks.check_boolean("targeted", targeted)

    @property
    @abstractmethod
    def passes(self) -> int:
        """Hook: how often one run asks the model about each example."""

    @abstractmethod
    def search_once(self, target: Target, state: AttackState) -> tuple[Tensors, Tensor]:
        """Hook: one run, from the input or a random start.

        Returns:
            Points of the ball, and (batch,) bool: which examples gave nothing to follow.
        """

    def find(self, target: Target, state: AttackState) -> Found:
        """The worst of all restarts."""
        points, still = self.search(target, state)
        once = self.passes + (1 if self.restarts > 1 else 0)
        queries = ops.full((target.batch,), self.restarts * once, dtype="int32")
        return Found(points, still, queries)

    def search(self, target: Target, state: AttackState) -> tuple[Tensors, Tensor]:
        """The attack in a graph: the worst of all restarts, as `search_once` returns it."""
        if self.restarts == 1:
            return self.search_once(target, state)

        def restart(best: tuple[Tensors, Tensor, Tensor, Tensor]) -> tuple[Any, ...]:
            points, value, success, still = best
            new_points, new_still = self.search_once(target, state)
            outcome = target.score(new_points)
            new_value = self.sign * outcome.loss
            new_success = self.has_reached(outcome)
            better = ops.logical_or(
                ops.logical_and(new_success, ops.logical_not(success)),
                ops.logical_and(ops.equal(new_success, success), new_value > value),
            )
            value = ops.where(better, new_value, value)
            success = ops.logical_or(success, new_success)
            still = ops.logical_and(still, new_still)
            return chosen(better, new_points, points), value, success, still

        always = ops.ones((target.batch,), dtype="bool")
        lowest = ops.full((target.batch,), -float("inf"))
        start = (target.ball.origin, lowest, target.none_yet(), always)
        points, _, _, still = backend.repeat(restart, start, self.restarts)
        return points, still

    def perturb(self, model: keras.Model, x: Any, y: Any, state: AttackState) -> Any:
        """The attack as part of a compiled training step: tensors in, tensors out.

        Args:
            model: The model, compiled with the loss to attack.
            x: Nested tensors. Values outside of `bounds` are not moved further outside.
            y: Labels in the structure `fit` takes.
            state: From `new_state`.

        Returns:
            The perturbed inputs in the structure of `x`, without gradient.

        Warns:
            MaskedModelWarning: When the step is traced, if the output saturates and the scores
                behind it were not found. A gradient that vanishes is not counted here.
            SeveralOutputsWarning: When the step is traced, if the model has several outputs.
        """
        objective = Objective(model)
        epsilon = ops.convert_to_tensor(state.epsilon)
        target = Target(model, objective, self.threat, x, y, epsilon)
        points, _ = self.search(target, state)
        if objective.masked and self.follows_gradient:
            warn_masked(self.name)
        if objective.followed and self.follows_gradient:
            warn_several(self.name, objective.followed)
        return target.inputs([ops.stop_gradient(point) for point in points])

    def require_usable(self, model: keras.Model, x: Any, y: Any) -> Any:
        """Passes the inputs of a training step on, if inputs and labels can be attacked.

        What only the values show is checked when the step runs, and not at all under XLA.

        Raises:
            ValueError: For labels that do not fit the model, NaN, and values out of `bounds`.
        """
        for rule in labels.training_rules(model, x, y):
            x = backend.require(rule.holds, rule.message, *rule.received, passing=x)
        low, high = self.bounds or (-float("inf"), float("inf"))

        def require(leaf: Tensor) -> Tensor:
            if not inputs.is_floating(leaf):
                return leaf
            smallest, largest = ops.min(leaf), ops.max(leaf)
            inside = ops.logical_and(
                smallest >= low - inputs.BOUNDS_TOLERANCE,
                largest <= high + inputs.BOUNDS_TOLERANCE,
            )
            return backend.require(
                ops.logical_and(inside, ops.all(ops.isfinite(leaf))),
                f"Training inputs must be finite and lie inside `bounds`={self.bounds} of the "
                f"attack {self.name!r}. Received values from {{}} to {{}}. Rescale the data, or "
                "give the attack its bounds.",
                smallest,
                largest,
                passing=leaf,
            )

        return keras.tree.map_structure(require, x)

    @property
    def sign(self) -> float:
        """1 where the loss is to grow, -1 where it is to fall."""
        return -1.0 if self.targeted else 1.0

    def has_reached(self, score: Score) -> Tensor:
        """(batch,) bool: whether the model is wrong, or says the class to reach."""
        if self.targeted:
            return ops.logical_and(score.named, ops.logical_not(score.fooled))
        return score.fooled

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "restarts": self.restarts, "targeted": self.targeted}


def ascend(
    target: Target, start: Tensors, steps: int, size: Tensor, sign: float
) -> tuple[Tensors, Tensor]:
    """Steps along the gradient of the loss, each brought back into the ball and the bounds.

    Args:
        target: What is attacked.
        start: Where to begin.
        steps: How often.
        size: Length of a step, in the norm of the threat.
        sign: 1 to climb, -1 to descend.

    Returns:
        The last points, and (batch,) bool: which examples gave nothing to follow.
    """
    ball = target.ball

    def step(current: tuple[Tensors, Progress]) -> tuple[Tensors, Progress]:
        points, progress = current
        losses, gradients = backend.input_gradients(lambda p: target.score(p).loss, points)
        finite, whole = ball.finite(gradients)
        moves = ball.direction(finite)
        return ball.step(points, moves, sign * size), progress.after(losses, moves, whole)

    first = Progress.of_none(target.batch)
    points, progress = backend.repeat(step, (start, first), steps, turns_a_body=2)
    return points, progress.is_still(start, points, steps)


def check_restarts(restarts: int, random_start: bool) -> None:
    """Refuses restarts that would all be the same run.

    Raises:
        ValueError: If there are several without a random start.
    """
    if restarts > 1 and not random_start:
        raise ValueError(
            "`restarts` must be 1 without a random start, or every run would be the same. "
            f"Received: restarts={restarts}, random_start=False. Set random_start=True."
        )
