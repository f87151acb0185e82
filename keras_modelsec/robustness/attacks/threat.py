"""What an attacker may do to an input: `Threat`, and the ball of points it leaves him."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import checks
from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks.inputs import floating_indices, is_floating
from keras_modelsec.robustness.attacks.norms import Norm, get_norm

Tensor = Any
Tensors = list[Any]


@register
class Threat:
    """Which changes of an input count: how long, inside which values, of which features.

    An attack takes one as `threat=`; `epsilon=`, `norm=` and `bounds=` of an attack are short for
    `Threat(norm, epsilon, bounds)`.

    Args:
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        epsilon: Radius of the ball, float >= 0, in input units, or in those of `scale`. None
            (default) for no limit, which only attacks that look for the smallest change take.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        mask: Which features may change: an array of 0 and 1 (or bool) that broadcasts to one
            example, or a list with an entry for each attacked input. Default None: all.
        inputs: Which inputs of several may change, by their names or their places: a string, an
            integer, or a list of these. Default None: all of floating-point numbers.
        scale: What counts as a change of 1 of a feature, > 0: a number, an array that broadcasts
            to one example, or a list with an entry for each attacked input. Default None: 1.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If one has another value.

    Example:
    ```python
    first_half = x_test[0] * 0
    first_half[:32] = 1
    threat = ms.attacks.Threat("linf", 0.3, mask=first_half)
    x_adv = ms.attacks.PGD(threat=threat, steps=40)(model, x_test, y_test)
    ```
    """

    def __init__(
        self,
        norm: str = "linf",
        epsilon: float | None = None,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        *,
        mask: Any = None,
        inputs: Any = None,
        scale: Any = None,
    ):
        self.norm = get_norm(norm).name
        self.epsilon = checks.check_number("epsilon", epsilon, minimum=0.0, optional=True)
        self.bounds = check_bounds(bounds)
        self.mask = _check_features("mask", mask)
        self.inputs = _check_inputs(inputs)
        self.scale = _check_features("scale", scale)

    @property
    def is_plain(self) -> bool:
        """Whether norm, epsilon and bounds say it all."""
        return self.mask is None and self.inputs is None and self.scale is None

    def with_epsilon(self, epsilon: float | None) -> "Threat":
        """The same with another radius."""
        return Threat.from_config({**self.get_config(), "epsilon": epsilon})

    def attacked(self, x: Any) -> list[int]:
        """Which of the flattened inputs change.

        Raises:
            TypeError: If there is none, or a named one holds no floating-point numbers.
            ValueError: If a named one does not exist, or `mask` or `scale` do not fit.
        """
        leaves = keras.tree.flatten(x)
        indices = floating_indices(leaves) if self.inputs is None else self._named(x)
        for name in ("mask", "scale"):
            features = getattr(self, name)
            if isinstance(features, list) and len(features) != len(indices):
                raise ValueError(
                    f"`{name}` must have one entry for each attacked input. Received: "
                    f"{len(features)} for {len(indices)}."
                )
            for index, entry in zip(indices, _for_each(features, len(indices)), strict=True):
                _check_fits(name, entry, tuple(leaves[index].shape[1:]))
        return indices

    def _named(self, x: Any) -> list[int]:
        leaves = [(path, leaf) for path, leaf in keras.tree.flatten_with_path(x)]
        ends = [path[-1] if path else 0 for path, _ in leaves]
        indices = []
        for name in self.inputs or ():
            if name not in ends:
                raise ValueError(
                    f"`inputs` must name inputs of the model. Received: {name!r}, for {ends}."
                )
            indices.append(ends.index(name))
            dtype = leaves[indices[-1]][1].dtype
            if not is_floating(leaves[indices[-1]][1]):
                raise TypeError(
                    "`inputs` must name inputs of floating-point numbers. Received: "
                    f"{name!r} of {keras.backend.standardize_dtype(dtype)}."
                )
        return sorted(indices)

    def ball(self, origin: Tensors, epsilon: Tensor) -> "Ball":
        """The points that the attacker of these inputs may choose."""
        return Ball(self, origin, epsilon)

    def units(self, origin: Tensors) -> Tensors | None:
        """For each attacked input, the change of a feature that counts as 1; 0 if it may not.

        None if it is 1 everywhere.
        """
        if self.mask is None and self.scale is None:
            return None
        count = len(origin)
        pairs = zip(_for_each(self.mask, count), _for_each(self.scale, count), strict=True)
        return [
            ops.convert_to_tensor(
                np.where(1.0 if mask is None else mask, 1.0 if scale is None else scale, 0.0),
                dtype=leaf.dtype,
            )
            for (mask, scale), leaf in zip(pairs, origin, strict=True)
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Threat):
            return NotImplemented
        return bool(self.get_config() == other.get_config())

    def __hash__(self) -> int:
        return hash((self.norm, self.epsilon, self.bounds, self.inputs))

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"Threat({settings})"

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "norm": self.norm,
            "epsilon": self.epsilon,
            "bounds": self.bounds,
            "mask": keras.saving.serialize_keras_object(self.mask),
            "inputs": None if self.inputs is None else list(self.inputs),
            "scale": keras.saving.serialize_keras_object(self.scale),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Threat":
        """Builds it from what `get_config` gave."""
        arrays = {
            key: keras.saving.deserialize_keras_object(config[key]) for key in ("mask", "scale")
        }
        return cls(**{**config, **arrays})


class Ball:
    """The points of one batch that a threat allows; pure functions of tensors.

    Args:
        threat: What it allows.
        origin: The attacked inputs.
        epsilon: The radius, a scalar tensor.

    Attributes:
        origin: The attacked inputs.
        epsilon: The radius.
        norm: The norm that measures changes.
    """

    def __init__(self, threat: Threat, origin: Tensors, epsilon: Tensor):
        self.origin, self.epsilon = origin, epsilon
        self.norm: Norm = get_norm(threat.norm)
        self._units = threat.units(origin)
        low, high = threat.bounds or (-float("inf"), float("inf"))
        # A value outside of the bounds is not pulled in: that would change clean data.
        self._limits = [(ops.minimum(x, low), ops.maximum(x, high)) for x in origin]

    def into_bounds(self, changes: Tensors) -> Tensors:
        """The points that lie so far from the origin, in units of the threat, inside the bounds."""
        return [
            ops.clip(x + delta, *ends)
            for x, delta, ends in zip(self.origin, self._scaled(changes), self._limits, strict=True)
        ]

    def random_start(self, seeds: Any) -> Tensors:
        """Points drawn uniformly from the ball, then brought into the bounds."""
        free = None if self._units is None else [ops.cast(u != 0, u.dtype) for u in self._units]
        return self.into_bounds(self.norm.random_start(self.origin, self.epsilon, seeds, free))

    def direction(self, gradients: Tensors) -> Tensors:
        """The changes of norm 1 along which functions with these gradients grow most."""
        return self.norm.direction(self._scaled(gradients))

    def finite(self, gradients: Tensors) -> tuple[Tensors, Tensor]:
        """Gradients with 0 for what is no number, and for which examples all that counts was one.

        Returns:
            The gradients, and (batch,) bool.
        """
        finite = [ops.isfinite(gradient) for gradient in gradients]
        counted = finite
        if self._units is not None:
            pairs = zip(finite, self._units, strict=True)
            counted = [ops.logical_or(flags, ops.equal(unit, 0)) for flags, unit in pairs]
        whole = [ops.all(flags, axis=tuple(range(1, len(flags.shape)))) for flags in counted]
        numbers = [
            ops.where(flags, gradient, ops.zeros_like(gradient))
            for flags, gradient in zip(finite, gradients, strict=True)
        ]
        return numbers, functools.reduce(ops.logical_and, whole)

    def step(self, points: Tensors, moves: Tensors, size: Tensor) -> Tensors:
        """The points after a step of that size along `moves`, brought back into ball and bounds."""
        if self._units is None:
            changes = [
                point + ops.cast(size, point.dtype) * move - x
                for point, move, x in zip(points, moves, self.origin, strict=True)
            ]
        else:
            changes = [
                change + ops.cast(size, change.dtype) * move
                for change, move in zip(self.changes(points), moves, strict=True)
            ]
        return self.into_bounds(self.norm.project(changes, self.epsilon))

    def changes(self, points: Tensors) -> Tensors:
        """How far points lie from the origin, in units of the threat."""
        deltas = [point - x for point, x in zip(points, self.origin, strict=True)]
        if self._units is None:
            return deltas
        return [
            ops.where(unit > 0, delta / ops.where(unit > 0, unit, ops.ones_like(unit)), 0.0)
            for delta, unit in zip(deltas, self._units, strict=True)
        ]

    def slope(self, gradients: Tensors, moves: Tensors) -> Tensor:
        """(batch,) float32: how fast functions with these gradients grow along `moves`."""
        products = [
            ops.sum(ops.reshape(ops.cast(g * m, "float32"), (ops.shape(g)[0], -1)), axis=1)
            for g, m in zip(self._scaled(gradients), moves, strict=True)
        ]
        return sum(products[1:], products[0])

    def distance(self, points: Tensors) -> Tensor:
        """(batch,) float32: how far points lie from the origin."""
        return self.norm.length(self.changes(points))

    def _scaled(self, tensors: Tensors) -> Tensors:
        if self._units is None:
            return tensors
        return [tensor * unit for tensor, unit in zip(tensors, self._units, strict=True)]


def as_threat(threat: Any, epsilon: Any, norm: Any, bounds: Any) -> Threat:
    """The threat that an attack's arguments mean.

    Raises:
        TypeError: If `threat` is no `Threat`.
        ValueError: If it is given together with what it holds.
    """
    is_unit = isinstance(bounds, str) and bounds == "unit"
    if threat is None:
        interval = (0.0, 1.0) if is_unit else bounds
        return Threat("linf" if norm is None else norm, epsilon, interval)
    if not isinstance(threat, Threat):
        raise TypeError(
            f"`threat` must be a keras_modelsec.attacks.Threat. Received: threat={threat!r}."
        )
    given = {"epsilon": epsilon is not None, "norm": norm is not None, "bounds": not is_unit}
    if any(given.values()):
        twice = " and ".join(f"`{name}`" for name, is_given in given.items() if is_given)
        raise ValueError(f"`threat` holds {twice} already. Received: both. Give one of them.")
    return threat


def check_bounds(bounds: Any) -> tuple[float, float] | None:
    """Returns `bounds`, which must be None or a pair of numbers."""
    if bounds is None:
        return None
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low, high = None, None
    if not all(isinstance(end, (int, float)) for end in (low, high)) or not low < high:
        raise ValueError(
            "`bounds` must be a pair (lowest, highest) of numbers, or None. "
            f"Received: bounds={bounds!r}. For images scaled to [0, 1] use bounds=(0, 1)."
        )
    return float(low), float(high)


def _check_inputs(inputs: Any) -> tuple[str | int, ...] | None:
    if inputs is None:
        return None
    names = [inputs] if isinstance(inputs, (str, int)) else inputs
    valid = isinstance(names, (list, tuple)) and all(isinstance(n, (str, int)) for n in names)
    if not valid or not names or len(set(names)) < len(names):
        raise ValueError(
            "`inputs` must be names or places of inputs, each once. Received: "
            f"inputs={inputs!r}. For example: inputs='image'."
        )
    return tuple(names)


def _check_features(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_check_features(name, entry) for entry in value]
    if value is None:
        return None
    array = np.asarray(value)
    rule = "0 and 1" if name == "mask" else "finite numbers above 0"
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must be an array of {rule}. Received: {type(value).__name__}.")
    right = np.isin(array, (0, 1)) if name == "mask" else np.isfinite(array) & (array > 0)
    if not right.all():
        raise ValueError(f"`{name}` must hold {rule}. Received: {array[~right].flat[0]!r}.")
    return float(value) if array.ndim == 0 else array.astype("float32")


def _for_each(features: Any, count: int) -> Sequence[Any]:
    return features if isinstance(features, list) else [features] * count


def _check_fits(name: str, entry: Any, shape: tuple[int | None, ...]) -> None:
    known = tuple(1 if size is None else size for size in shape)
    try:
        fits = entry is None or np.broadcast_shapes(np.shape(entry), known) == known
    except ValueError:
        fits = False
    if not fits and None not in shape:
        raise ValueError(
            f"`{name}` must broadcast to one example. Received: shape {np.shape(entry)}, for an "
            f"input of shape {shape}."
        )
