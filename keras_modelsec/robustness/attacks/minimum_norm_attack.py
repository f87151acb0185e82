"""Attacks that look for the smallest change that fools the model."""

from abc import abstractmethod
from typing import Any, NamedTuple

from keras import ops

from keras_modelsec.robustness.attacks.attack import Attack, AttackState
from keras_modelsec.robustness.attacks.target import Found, Target, chosen

Tensor = Any
Tensors = list[Any]


class Nearest(NamedTuple):
    """The nearest points so far at which the model is fooled; a tuple, so that loops can carry it.

    Attributes:
        points: Where, or the origin.
        distance: (batch,) float32. How far, infinite for none.
    """

    points: Tensors
    distance: Tensor

    def or_nearer(self, target: Target, points: Tensors, fooled: Tensor) -> "Nearest":
        """With these points in it, where they fool the model and are nearer."""
        distance = ops.cast(target.ball.distance(points), "float32")
        nearer = ops.logical_and(fooled, distance < self.distance)
        return Nearest(
            chosen(nearer, points, self.points), ops.where(nearer, distance, self.distance)
        )


class MinimumNormAttack(Attack):
    """Looks for the smallest change of each input that fools the model.

    Not for direct use; see `DeepFool`. A new one says in `search` which points it tries, and offers
    each to the nearest so far. What is found is then held against the radius: an example whose
    smallest change is longer stays as it was and is not fooled, and `AttackResult.distance` says
    how long it is.

    Args:
        epsilon: Longest change that counts, float >= 0. Default None: any.
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default: class and norm, e.g. "deep_fool_l2".
        seed: Integer for the same result at each call, or None (default).
    """

    follows_gradient = True
    needs_epsilon = False

    @property
    @abstractmethod
    def passes(self) -> int:
        """Hook: how often `search` asks the model about each example at most."""

    @abstractmethod
    def search(self, target: Target, first: Nearest, state: AttackState) -> tuple[Nearest, Tensor]:
        """Hook: tries points, of any length.

        Args:
            target: What is attacked.
            first: What to begin with: none, or the origin where the model is wrong there.
            state: Radius and seeds.

        Returns:
            The nearest points found, and (batch,) bool: which examples gave nothing to follow.
        """

    def find(self, target: Target, state: AttackState) -> Found:
        """What `search` finds, as far as it lies in the ball."""
        origin = target.ball.origin
        none = Nearest(origin, ops.full((target.batch,), float("inf")))
        first = none.or_nearer(target, origin, target.score(origin).fooled)
        nearest, still = self.search(target, first, state)
        inside = nearest.distance <= ops.cast(target.ball.epsilon, "float32")
        found = ops.logical_and(inside, ops.isfinite(nearest.distance))
        queries = ops.full((target.batch,), 1 + self.passes, dtype="int32")
        points = chosen(found, nearest.points, origin)
        return Found(points, still, queries, nearest.distance)
