"""What an attack of one batch works on: the points it may choose, and what the model says there."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks.objective import Objective, Score
from keras_modelsec.robustness.attacks.threat import Ball, Threat

Tensor = Any
Tensors = list[Any]


class Logits(NamedTuple):
    """What a model says of each example, and the class it should say.

    Attributes:
        values: (batch, classes) float32.
        labels: (batch,) int32.
    """

    values: Tensor
    labels: Tensor

    @property
    def margin(self) -> Tensor:
        """(batch,): the largest other logit less that of the label; above 0 once fooled."""
        chosen = ops.one_hot(self.labels, self.values.shape[-1], dtype="bool")
        own = ops.sum(ops.where(chosen, self.values, 0.0), axis=-1)
        return ops.max(ops.where(chosen, -float("inf"), self.values), axis=-1) - own


@dataclass(frozen=True)
class Found:
    """What an attack found for each example of a batch.

    Attributes:
        points: The attacked inputs.
        still: (batch,) bool. Whether a gradient gave the attack nothing to follow.
        queries: (batch,) int32. How often the model was asked about the example.
        distance: (batch,) float32. Length of the smallest change found that fools the model,
            infinite for none; None where that is not what the attack looks for.
    """

    points: Tensors
    still: Tensor
    queries: Tensor
    distance: Tensor | None = None


class Target:
    """One batch under attack; pure functions of tensors.

    Args:
        model: The model.
        objective: What is maximised.
        threat: What may change.
        x: The inputs, nested tensors.
        y: Their labels.
        epsilon: The radius, a scalar tensor.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Objective,
        threat: Threat,
        x: Any,
        y: Any,
        epsilon: Tensor,
    ):
        self._model, self._objective, self._x, self._y = model, objective, x, y
        self._leaves = keras.tree.flatten(x)
        self._attacked = threat.attacked(x)
        origin = [ops.stop_gradient(self._leaves[index]) for index in self._attacked]
        self.ball: Ball = threat.ball(origin, epsilon)

    @property
    def batch(self) -> Tensor:
        """The number of examples."""
        return ops.shape(self.ball.origin[0])[0]

    def inputs(self, points: Tensors) -> Any:
        """The model's inputs with these points in them, in their structure."""
        leaves = list(self._leaves)
        for index, point in zip(self._attacked, points, strict=True):
            leaves[index] = point
        return keras.tree.pack_sequence_as(self._x, leaves)

    def score(self, points: Tensors) -> Score:
        """How far the attack is there."""
        return self._objective(self._y, self._outputs(points))

    def logits(self, points: Tensors) -> Logits:
        """What the model says there.

        Raises:
            ValueError: If the model does not predict one class for each example.
        """
        return Logits(*self._objective.logits(self._y, self._outputs(points)))

    def score_and_logits(self, points: Tensors) -> tuple[Score, Logits]:
        """Both, of one pass of the model.

        Raises:
            ValueError: If the model does not predict one class for each example.
        """
        outputs = self._outputs(points)
        logits = Logits(*self._objective.logits(self._y, outputs))
        return self._objective(self._y, outputs), logits

    def none_yet(self) -> Tensor:
        """(batch,) bool, all False."""
        return ops.zeros((self.batch,), dtype="bool")

    def _outputs(self, points: Tensors) -> Any:
        return internals.call_for_inference(self._model, self.inputs(points))


def chosen(condition: Tensor, new: Tensors, old: Tensors) -> Tensors:
    """For each example `new` where the condition holds, else `old`."""
    return [
        ops.where(ops.reshape(condition, [-1] + [1] * (len(a.shape) - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    ]
