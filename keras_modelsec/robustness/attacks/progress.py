"""Whether an attack had anything to follow, counted for each example while it runs."""

from typing import Any, NamedTuple

from keras import ops

Tensor = Any
Tensors = list[Any]


class Progress(NamedTuple):
    """What the steps of one run have met so far; a tuple, so that loops can carry it.

    Attributes:
        met_gradient: (batch,) bool. Whether the gradient gave a way to go at some step, and was a
            number for every feature there: features without one stay where they are.
        changed: (batch,) bool. Whether the loss of some step differed from that of the step before.
        loss: (batch,) float32. The loss of the last step; infinite before the first.
    """

    met_gradient: Tensor
    changed: Tensor
    loss: Tensor

    @classmethod
    def of_none(cls, batch: Tensor) -> "Progress":
        """Before the first step, for that many examples."""
        never = ops.zeros((batch,), dtype="bool")
        return cls(never, never, ops.full((batch,), float("inf"), dtype="float32"))

    def after(self, losses: Tensor, directions: Tensors, whole: Tensor) -> "Progress":
        """After one more step, which met these losses and went these ways, zero for nowhere.

        `whole`: (batch,) bool, whether the gradient was a number for every feature.
        """
        met = self.met_gradient
        for direction in directions:
            way = ops.logical_and(whole, _any_feature(ops.not_equal(direction, 0)))
            met = ops.logical_or(met, way)
        losses = ops.cast(losses, "float32")
        # The loss of an ignored example is minus infinity throughout.
        other = ops.logical_and(ops.not_equal(losses, self.loss), ops.isfinite(self.loss))
        return Progress(met, ops.logical_or(self.changed, other), losses)

    def is_still(self, start: Tensors, end: Tensors, steps: int) -> Tensor:
        """(batch,) bool: which examples had no gradient at any step, or a loss that stayed.

        A loss that is the same to the last bit at every point of the run, though the input moved,
        is one that outputs saturated or rounded too far no longer show; some gradient may be left
        of it, which leads nowhere. One step says nothing of that.
        """
        without = ops.logical_not(self.met_gradient)
        if steps < 2:
            return without
        moved = ops.zeros_like(without)
        for before, after in zip(start, end, strict=True):
            moved = ops.logical_or(moved, _any_feature(ops.not_equal(before, after)))
        return ops.logical_or(without, ops.logical_and(moved, ops.logical_not(self.changed)))


def _any_feature(flags: Tensor) -> Tensor:
    return ops.any(flags, axis=tuple(range(1, len(flags.shape))))
