"""Attacks that ask the model for its outputs and have no gradient."""

from abc import abstractmethod
from typing import Any, NamedTuple

from keras import ops

from keras_modelsec._core import checks
from keras_modelsec.robustness.attacks.attack import Attack, AttackState
from keras_modelsec.robustness.attacks.target import Found, Target
from keras_modelsec.robustness.attacks.threat import Threat

Tensor = Any
Tensors = list[Any]


class Answer(NamedTuple):
    """What one query tells of each example.

    Attributes:
        fooled: (batch,) bool. Whether the prediction is wrong.
        margin: (batch,) float32. The largest other logit less that of the label, without gradient.
    """

    fooled: Tensor
    margin: Tensor


class QueryAttack(Attack):
    """Looks for a point that fools the model by asking it for outputs, a limited number of times.

    Not for direct use; see `Square`. A new one says in `search` which points it asks about. What
    the model answers carries no gradient, so a gradient that vanishes, is masked or points the
    wrong way does not help the model.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        queries: How often each example may be asked about, int >= 1.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default: class and norm, e.g. "square_linf".
        seed: Integer for the same result at each call, or None (default).
    """

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        queries: int,
        norm: str | None = None,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(epsilon, norm=norm, bounds=bounds, threat=threat, name=name, seed=seed)
        self.queries = checks.check_integer("queries", queries, minimum=1)

    @abstractmethod
    def search(self, target: Target, state: AttackState) -> tuple[Tensors, Tensor]:
        """Hook: asks with `ask` and returns points of the ball, and (batch,) queries used."""

    @staticmethod
    def ask(target: Target, points: Tensors) -> Answer:
        """One query about each example."""
        points = [ops.stop_gradient(point) for point in points]
        score, logits = target.score_and_logits(points)
        return Answer(score.fooled, ops.stop_gradient(logits.margin))

    def find(self, target: Target, state: AttackState) -> Found:
        """What `search` finds."""
        points, queries = self.search(target, state)
        return Found(points, target.none_yet(), ops.cast(queries, "int32"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "queries": self.queries}
