"""Square: random search with squares that shrink."""

import math
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.attack import AttackState
from keras_modelsec.robustness.attacks.query_attack import QueryAttack
from keras_modelsec.robustness.attacks.target import Target, chosen
from keras_modelsec.robustness.attacks.threat import Threat

Tensor = Any
Tensors = list[Any]

# After how many of 10,000 queries the share of changed features halves (the paper's schedule).
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@register
class Square(QueryAttack):
    """Changes random squares of the input to the ends of the ball, and keeps what helps.

    Needs no gradient, so it finds what masking hides: a model that falls to it and not to `PGD` is
    masked. Of other models it finds less. Inputs are images, channels last; of an input with one
    axis, such as a vector, it changes runs of features.

    Args:
        epsilon: Radius of the ball in input units, float >= 0.
        norm: "linf", the only one here.
        queries: How often each example may be asked about, int >= 1. Default 5000. An example that
            is fooled is asked about no more, and a batch ends when all are.
        share: Share of the features that the first squares cover, in (0, 1]. Default 0.8.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of epsilon, norm and bounds.
        name: Identifier for log keys. Default "square_linf".
        seed: Integer for the same squares at each call, or None (default).

    Raises:
        ValueError: When it runs, if the model does not predict one class for each example.

    Example:
    ```python
    x_adv = ms.attacks.Square(epsilon=0.1, queries=1000)(model, x_test, y_test)
    ```

    Reference:
        - Andriushchenko et al., 2020, Square Attack: a query-efficient black-box adversarial attack
          via random search (arXiv 1912.00049), algorithms 1 and 2.
    """

    norms = ("linf",)

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        norm: str | None = None,
        queries: int = 5000,
        share: float = 0.8,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        super().__init__(
            epsilon, queries=queries, norm=norm, bounds=bounds, threat=threat, name=name, seed=seed
        )
        self.share = checks.check_number("share", share, above=0.0, maximum=1.0)

    def search(self, target: Target, state: AttackState) -> tuple[Tensors, Tensor]:
        """Random search from stripes, each example until it fools the model."""
        ball, seeds = target.ball, state.seeds
        _check_sizes(ball.origin)
        answer = self.ask(target, ball.origin)
        nothing = [ops.zeros_like(x) for x in ball.origin]
        used = ops.ones((target.batch,), dtype="int32")

        def turn(current: tuple[Any, ...]) -> tuple[Any, ...]:
            number, changes, best, done, used = current
            stripes = [_stripes(change, ball.epsilon, seeds) for change in changes]
            share = self._share_at(number)
            squares = [_square(change, share, ball.epsilon, seeds) for change in changes]
            is_first = ops.equal(number, 0)
            tried = [
                ops.where(is_first, stripe, square)
                for stripe, square in zip(stripes, squares, strict=True)
            ]
            reply = self.ask(target, ball.into_bounds(tried))
            # The stripes are kept whatever the answer: they are where the search begins.
            helps = ops.logical_or(is_first, ops.logical_or(reply.margin > best, reply.fooled))
            better = ops.logical_and(ops.logical_not(done), helps)
            used = used + ops.cast(ops.logical_not(done), "int32")
            done = ops.logical_or(done, ops.logical_and(better, reply.fooled))
            best = ops.where(better, reply.margin, best)
            return number + 1, chosen(better, tried, changes), best, done, used

        start = ops.zeros((), "int32"), nothing, answer.margin, answer.fooled, used
        _, changes, _, _, used = backend.repeat(
            turn, start, self.queries - 1, unless=lambda current: ops.all(current[3])
        )
        return ball.into_bounds(changes), used

    def _share_at(self, number: Tensor) -> Tensor:
        """The share of the features that the square of a query covers."""
        of_schedule = ops.cast(number, "float32") / self.queries * 10_000
        halvings = sum(ops.cast(of_schedule > limit, "float32") for limit in _HALVED_AT)
        return self.share * ops.power(0.5, halvings)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "share": self.share}


def _check_sizes(origin: Tensors) -> None:
    for leaf in origin:
        if any(size is None for size in leaf.shape[1:]):
            raise ValueError(
                "Square needs inputs of one known size. Received: an input of shape "
                f"{tuple(leaf.shape)}. Attack the model of a fixed input size."
            )


def _stripes(like: Tensor, epsilon: Tensor, seeds: Any) -> Tensor:
    """One sign for each column and channel; of a vector, for each feature."""
    shape = ops.shape(like)
    if len(shape) > 2:
        shape = (shape[0], 1, *shape[2:])
    signs = _signs(shape, like.dtype, seeds)
    return ops.cast(epsilon, like.dtype) * ops.broadcast_to(signs, ops.shape(like))


def _square(change: Tensor, share: Tensor, epsilon: Tensor, seeds: Any) -> Tensor:
    """The change with one square of it at the ends of the ball, for each example another."""
    shape = ops.shape(change)
    sides = shape[1:3] if len(shape) > 2 else shape[1:2]
    batch, rank = shape[0], len(shape)
    area = math.prod(int(side) for side in sides)
    length = ops.power(share * area, 1.0 / len(sides))
    inside: Tensor = True
    for axis, side in enumerate(sides, start=1):
        # At least one feature and, as in the paper, never a whole side of more than one.
        size = ops.clip(ops.round(length), 1, max(int(side) - 1, 1))
        room = ops.cast(side, "float32") - size + 1
        uniform = keras.random.uniform((batch,), seed=seeds)
        first = ops.minimum(ops.floor(uniform * room), room - 1)[:, None]
        places = ops.arange(side, dtype="float32")[None, :]
        within = ops.logical_and(places >= first, places < first + size)
        form = [-1 if a in (0, axis) else 1 for a in range(rank)]
        form[0], form[axis] = batch, int(side)
        inside = ops.logical_and(inside, ops.reshape(within, form))
    channels = shape[3:] if rank > 3 else ()
    signs = _signs((batch, *[1] * len(sides), *channels), change.dtype, seeds)
    signs = ops.reshape(signs, (batch, *[1] * len(sides), *channels))
    ends = ops.cast(epsilon, change.dtype) * signs
    return ops.where(inside, ends, change)


def _signs(shape: Any, dtype: str, seeds: Any) -> Tensor:
    uniform = keras.random.uniform(shape, -1.0, 1.0, seed=seeds)
    return ops.cast(ops.where(uniform < 0, -1.0, 1.0), dtype)
