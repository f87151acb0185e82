"""The layer that holds intermediate values inside the range they have on clean data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_modelsec._core import checks, keras_internals
from keras_modelsec._core.serialization import register

ACTIONS = ("clip", "zero", "count")


class ActivationReport(NamedTuple):
    """What one `ActivationGuard` has seen.

    Attributes:
        layer: The guard's name.
        violations: How many values were out of range or not finite since the last `reset`.
        lower: Lowest value allowed, a float, or a tuple with one for each channel.
        upper: Highest value allowed, likewise.
    """

    layer: str
    violations: int
    lower: float | tuple[float, ...]
    upper: float | tuple[float, ...]


@register
class ActivationGuard(keras.layers.Layer):
    """Clips, counts and reports intermediate values that clean data never produces.

    A flipped exponent bit, in a weight or in a value on its way through the network, mostly makes a
    number huge, and one such number can decide the output. Held inside the range it has on clean
    data it mostly cannot. `ms.guard_activations` puts these layers into a model, with bounds it
    learns.

    Values in range pass unchanged, to the last bit, in their own dtype. The gradient is that of
    `keras.ops.clip`: 1 where a value passes, 0 where it was replaced. With `training=True` the
    layer does nothing, since training moves the ranges that were learned; `fit` is as without it.

    What it cannot do: wrong values inside the range pass. A weight that was changed stays changed
    (`ms.IntegrityGuard` finds it). Who controls the process can change or remove the guard; who
    knows the bounds can stay within them. Clean data unlike the calibration data is clipped too.

    Args:
        lower: Lowest value allowed: a finite float, or a list with one for each channel.
        upper: Highest value allowed, >= `lower`, likewise.
        axis: The axis of the channels if bounds are lists. Default -1.
        action: What happens to a value outside of the bounds. "clip": it becomes the bound, a NaN
            becomes 0 or the bound nearest to 0 (default). "zero": it becomes 0, or the bound
            nearest to 0 (better against huge values, worse for rare clean ones). "count": nothing,
            it is only counted.
        **kwargs: As in `keras.layers.Layer`.

    Raises:
        ValueError: If a bound is not finite, `lower` is above `upper`, or lengths differ.

    Example:
    ```python
    guard = ms.layers.ActivationGuard(lower=0.0, upper=6.0)
    guard(keras.ops.array([1.0, 1e30, float("nan")]))  # [1.0, 6.0, 0.0]
    guard.report().violations  # 2
    ```

    The count is a variable that is not saved: a loaded model starts at 0.

    Reference:
        Chen et al. 2021, "A Low-cost Fault Corrector for Deep Neural Networks through Range
        Restriction" (Ranger), arXiv:2003.13874. Hoang et al. 2020 (FT-ClipAct), arXiv:1912.00941,
        for "zero".
    """

    def __init__(
        self,
        lower: float | Sequence[float],
        upper: float | Sequence[float],
        *,
        axis: int = -1,
        action: str = "clip",
        **kwargs: Any,
    ):
        # In mixed precision a layer casts its inputs; a guard must hand on what it was given.
        super().__init__(**{"autocast": False, **kwargs})
        self.lower, self.upper = _check_bounds(lower, upper)
        self.axis = checks.check_integer("axis", axis)
        self.action = checks.check_choice("action", action, ACTIONS)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Checks that there is a bound for each channel, and makes the counter."""
        if isinstance(self.lower, list) and input_shape[self.axis] not in (None, len(self.lower)):
            raise ValueError(
                f"`lower` must have one bound for each channel, {input_shape[self.axis]} on axis "
                f"{self.axis} of {tuple(input_shape)}. Received: {len(self.lower)} bounds."
            )
        self._count = self.add_weight(
            shape=(),
            dtype="int",
            initializer="zeros",
            trainable=False,
            aggregation="sum",
            name="violations",
        )

    @property
    def unsaved_counters(self) -> list[keras.Variable]:
        """What it counts of the data it is given, for this process alone."""
        return [self._count] if self.built else []

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`inputs`, with what is outside of the bounds replaced and counted."""
        if training:
            return inputs
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        lower, upper = (self._bound(b, dtype, len(inputs.shape)) for b in (self.lower, self.upper))
        # Two passes that only read. A comparison is False for NaN; whether `min` passes NaN on
        # depends on the device.
        inside = ops.all(inputs <= upper)
        if isinstance(self.lower, list):
            inside = ops.logical_and(inside, ops.all(inputs >= lower))
        else:
            inside = ops.logical_and(inside, ops.min(inputs) >= lower)
        outputs, found = ops.cond(
            inside,
            lambda: (inputs, ops.zeros((), self._count.dtype)),
            lambda: self._replace(inputs, lower, upper),
        )
        self._count.assign_add(found)
        return outputs

    def report(self) -> ActivationReport:
        """What was found since the layer was made, or since `reset`."""
        count = int(ops.convert_to_numpy(self._count)) if self.built else 0
        lower, upper = (tuple(b) if isinstance(b, list) else b for b in (self.lower, self.upper))
        return ActivationReport(self.name, count, lower, upper)

    def reset(self) -> None:
        """Starts counting from 0."""
        if self.built:
            self._count.assign(0)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Shape and dtype of the inputs, whatever the layer's own dtype."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the bounds are in the config, and the count is this process's own."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        bounds = {"lower": self.lower, "upper": self.upper}
        return {**super().get_config(), **bounds, "axis": self.axis, "action": self.action}

    def _replace(self, inputs: Any, lower: Any, upper: Any) -> tuple[Any, Any]:
        is_inside = ops.logical_and(inputs >= lower, inputs <= upper)
        found = ops.sum(ops.cast(ops.logical_not(is_inside), self._count.dtype))
        if self.action == "count":
            return inputs, found
        neutral = ops.clip(ops.zeros_like(inputs), lower, upper)
        if self.action == "zero":
            return ops.where(is_inside, inputs, neutral), found
        # First without NaN: the gradient of what `where` drops would still be NaN.
        finite = ops.where(ops.isnan(inputs), neutral, inputs)
        return ops.minimum(ops.maximum(finite, lower), upper), found

    def _bound(self, bound: float | list[float], dtype: str, rank: int) -> Any:
        """The bound as a tensor of `dtype` that broadcasts, and finite there (float16)."""
        largest = float(ml_dtypes.finfo(dtype).max)
        value = np.clip(np.asarray(bound, "float64"), -largest, largest)
        if isinstance(bound, list):
            shape = [1] * rank
            shape[self.axis] = len(bound)
            value = value.reshape(shape)
        return ops.convert_to_tensor(value, dtype=dtype)


def activation_reports(model: keras.Model) -> list[ActivationReport]:
    """What the guards of a model have found, in the order of its layers, nested models included.

    Args:
        model: A model with `ActivationGuard` layers.

    Example:
    ```python
    guarded = ms.guard_activations(model, x_train)
    guarded.predict(x_test, verbose=0)
    print(sum(report.violations for report in ms.guards.activation_reports(guarded)))
    ```
    """
    return [guard.report() for guard in guards_of(model)]


def guards_of(model: keras.Model) -> list[ActivationGuard]:
    """The guards inside `model`, each once."""
    layers = keras_internals.flatten_layers(model)
    return [layer for layer in layers if isinstance(layer, ActivationGuard)]


def _check_bounds(lower: Any, upper: Any) -> tuple[Any, Any]:
    low, high = np.asarray(lower, "float64"), np.asarray(upper, "float64")
    if low.shape != high.shape or low.ndim > 1 or not low.size:
        raise ValueError(
            "`lower` and `upper` must be two numbers, or two lists of one length with a number for "
            f"each channel. Received shapes: {low.shape} and {high.shape}."
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(
            "`lower` and `upper` must be finite, and `lower` <= `upper`. "
            f"Received: lower={lower!r}, upper={upper!r}."
        )
    return low.tolist(), high.tolist()
