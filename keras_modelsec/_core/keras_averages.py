"""Finds the averages of weights that an optimizer puts in their place when training ends.

Beside keras_internals.py, of what Keras keeps private: where its optimizers hold them (`use_ema`).
"""

from collections.abc import Iterator
from typing import Any

import keras


def optimizers(model: keras.Model) -> Iterator[keras.optimizers.Optimizer]:
    """A compiled model's optimizer, and those inside of it, as mixed precision has them."""
    optimizer: Any = getattr(model, "optimizer", None)
    seen: list[Any] = []
    while isinstance(optimizer, keras.optimizers.Optimizer) and optimizer not in seen:
        yield optimizer
        seen.append(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)


def replaces_weights(model: keras.Model) -> bool:
    """Whether Keras puts averages in the place of the weights when `fit` ends."""
    return any(optimizer.use_ema for optimizer in optimizers(model))


def weight_averages(model: keras.Model, variable: keras.Variable) -> list[keras.Variable]:
    """The averages that a model's optimizers keep of a weight, once they have made a step."""
    found = []
    for optimizer in optimizers(model):
        averages = getattr(optimizer, "_model_variables_moving_average", None) or []
        followed = getattr(optimizer, "_trainable_variables", None) or []
        # Before the first step they are zeros, which Keras then replaces by the weights.
        if optimizer.use_ema and int(optimizer.iterations) > 0:
            found += [
                average
                for weight, average in zip(followed, averages, strict=False)
                if weight is variable and average is not None
            ]
    return found
