"""Puts an `ActivationGuard` behind the layers of a model, with bounds learned on clean data.

Owns where guards are put, unless the user says, and how bounds are learned; what a guard does is in
activation_guard.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.integrity.guards.activation_guard import ACTIONS, ActivationGuard

_ROUNDING = 1e-5  # other batch sizes sum in another order


def guard_activations(
    model: keras.Model,
    calibration: Any,
    *,
    margin: float = 0.1,
    layers: Iterable["str | keras.Layer"] | None = None,
    per_channel: bool = False,
    action: str = "clip",
) -> keras.Model:
    """A model with the same layers and weights, whose intermediate values are held in range.

    Runs `calibration` through the model, notes the lowest and highest value behind each layer, and
    puts an `ms.layers.ActivationGuard` with these bounds there. Weights are shared, not copied:
    training or restoring one model changes both. The new model is not compiled; on data whose
    values stay in range it computes the same numbers.

    By default guards stand where they cost least and miss little: behind each layer with weights
    and the normalization, activation, addition and max pooling that follow it, once for such a
    chain; not behind a model's final softmax, sigmoid or tanh, whose range is fixed and which
    losses look behind.

    Each guard reads the values twice; it writes only if some are out of range. That is little
    beside a convolution with many channels and not beside one with few: see
    `benchmarks/guards.py`, and choose `layers`.

    Args:
        model: A functional or Sequential model, built, nested ones included.
        calibration: Clean inputs like those to come, as `predict` takes them: arrays, or a data set
            (targets in it are ignored). A few hundred examples at least: what they do not reach is
            clipped.
        margin: By what part of the learned range it is widened at both ends, >= 0. Default 0.1.
        layers: Names of layers, or layers, to guard instead of the default.
        per_channel: Whether each channel has bounds of its own: tighter, and slower. Channels are
            on the last axis, or where the layer's `data_format` says. Default False.
        action: "clip", "zero" or "count", as in `ActivationGuard`.

    Returns:
        A new `keras.Model` (Sequential for a Sequential one). It saves and loads as a .keras file;
        sign that file to have the bounds signed.

    Raises:
        TypeError: If `model` is a subclassed model, or is no model.
        ValueError: If it is not built, `layers` names what is not there, nothing can be guarded,
            or the model yields non-finite values on `calibration`.

    Example:
    ```python
    guarded = ms.guard_activations(model, x_train)
    guarded.predict(x_test, verbose=0)
    print(ms.guards.activation_reports(guarded))
    ```

    Limits: see `ActivationGuard`.

    Reference:
        Chen et al. 2021, arXiv:2003.13874.
    """
    _check_model(model)
    checks.check_number("margin", margin, minimum=0)
    checks.check_choice("action", action, ACTIONS)
    checks.check_boolean("per_channel", per_channel)
    chosen = default_places(model) if layers is None else _named(model, layers)
    observers: dict[tuple[int, int], _RangeObserver] = {}

    def observer(layer: keras.Layer, index: int) -> keras.Layer:
        axis = _channel_axis(layer) if per_channel else None
        return observers.setdefault((id(layer), index), _RangeObserver(layer.name, axis))

    observed = _Rebuilding(chosen, observer).rebuild(model)
    if not observers:
        raise ValueError(
            "`model` must have at least one layer with a floating-point output to guard. "
            f"Received: {model.name!r}, and none was chosen. Name them with `layers`."
        )
    observed.predict(calibration, verbose=0)
    guards: dict[tuple[int, int], ActivationGuard] = {}

    def guard(layer: keras.Layer, index: int) -> keras.Layer | None:
        key = (id(layer), index)
        if key not in guards and observers[key].has_seen_values:
            name = f"{layer.name}_guard" + (f"_{index}" if index else "")
            guards[key] = observers[key].make_guard(margin, action, name)
        return guards.get(key)

    with backend.variable_scope(model):
        return _Rebuilding(chosen, guard).rebuild(model)


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
    if not is_graph(model):
        raise TypeError(
            f"`model` must be functional or Sequential. Received: {type(model).__name__}, a "
            "subclassed model, whose `call` cannot be rebuilt from outside. Write "
            "ms.layers.ActivationGuard layers into it, or guard the functional models it holds."
        )
    if not model.built:
        raise ValueError(
            f"`model` must be built. Received: {model.name!r}, whose input shape is not known. "
            "Start it with keras.Input(shape), or call it on a batch of data first."
        )


def _named(model: keras.Model, layers: Iterable[Any]) -> set[int]:
    found = internals.flatten_layers(model, include_self=False)
    chosen: set[int] = set()
    for wanted in layers:
        same = [layer for layer in found if layer is wanted or layer.name == wanted]
        if not same or any(isinstance(layer, keras.Model) for layer in same):
            raise ValueError(
                "`layers` must name layers of the model, and no models inside of it. "
                f"Received: {getattr(wanted, 'name', wanted)!r}. There are: "
                f"{[layer.name for layer in found if not isinstance(layer, keras.Model)][:20]}."
            )
        chosen.update(map(id, same))
    return chosen


def _channel_axis(layer: keras.Layer) -> int:
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    axis = getattr(layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


class _Rebuilding:
    """Builds a model again, with a layer of our own behind each chosen one.

    Args:
        chosen: `id` of the layers.
        make: `make(layer, index)` gives what to put behind output number `index` of `layer`, or
            None; asked again for a layer that is used again, it gives the same.
    """

    def __init__(self, chosen: set[int], make: Callable[[keras.Layer, int], keras.Layer | None]):
        self._chosen = chosen
        self._make = make
        self._models: dict[int, keras.Model] = {}

    def rebuild(self, model: keras.Model) -> keras.Model:
        """The same layers, and nested models rebuilt likewise, each once."""
        if id(model) not in self._models:
            build = self._sequential if isinstance(model, keras.Sequential) else self._functional
            rebuilt = build(model)
            rebuilt.trainable = model.trainable
            self._models[id(model)] = rebuilt
        return self._models[id(model)]

    def _sequential(self, model: keras.Sequential) -> keras.Model:
        first = model.inputs[0]
        rebuilt = keras.Sequential(
            [keras.Input(batch_shape=first.shape, dtype=first.dtype, name=first.name)],
            name=model.name,
        )
        for layer in model.layers:
            rebuilt.add(self._part(layer))
            behind = self._behind(layer, 0, rebuilt.outputs[0])
            if behind is not None:
                rebuilt.add(behind)
        return rebuilt

    def _functional(self, model: keras.Model) -> keras.Model:
        inputs, _ = internals.graph_ends(model)
        outputs = internals.run_graph(model, inputs, self._call)
        return keras.Model(inputs, outputs, name=model.name)

    def _part(self, layer: Any) -> Any:
        return self.rebuild(layer) if is_graph(layer) else layer

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = self._part(layer)(*args, **kwargs)
        held = []
        for index, leaf in enumerate(keras.tree.flatten(outputs)):
            behind = self._behind(layer, index, leaf)
            held.append(leaf if behind is None else behind(leaf))
        return keras.tree.pack_sequence_as(outputs, held)

    def _behind(self, layer: Any, index: int, output: Any) -> keras.Layer | None:
        is_held = id(layer) in self._chosen and _is_floating(output)
        return self._make(layer, index) if is_held else None


def _is_floating(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


class _RangeObserver(keras.layers.Layer):
    """Notes the lowest and highest values that pass, for the whole or for each channel."""

    def __init__(self, observed: str, axis: int | None):
        super().__init__(autocast=False)
        self._observed = observed
        self._axis = axis
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        shape = () if self._axis is None else (input_shape[self._axis],)
        self._low, self._high, self._broken = (
            self.add_weight(shape=shape, initializer=start, dtype="float32", trainable=False)
            for start in (
                keras.initializers.Constant(np.inf),
                keras.initializers.Constant(-np.inf),
                "zeros",
            )
        )

    def call(self, inputs: Any) -> Any:
        axes = self._reduced(len(inputs.shape))
        values = ops.cast(inputs, "float32")
        broken = ops.any(ops.logical_not(ops.isfinite(values)), axis=axes)
        self._low.assign(ops.minimum(self._low, ops.min(values, axis=axes)))
        self._high.assign(ops.maximum(self._high, ops.max(values, axis=axes)))
        self._broken.assign(ops.maximum(self._broken, ops.cast(broken, "float32")))
        return inputs

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def _reduced(self, rank: int) -> tuple[int, ...]:
        kept = None if self._axis is None else self._axis % rank
        return tuple(axis for axis in range(rank) if axis != kept)

    @property
    def has_seen_values(self) -> bool:
        """False behind an output that nothing reads, which a model leaves out."""
        return bool(np.isfinite(ops.convert_to_numpy(self._low)).any() or self._is_broken())

    def _is_broken(self) -> bool:
        return bool(ops.convert_to_numpy(self._broken).any())

    def make_guard(self, margin: float, action: str, name: str) -> ActivationGuard:
        """A guard with the bounds that were seen, widened by `margin`."""
        if self._is_broken():
            raise ValueError(
                "`calibration` must be clean data that give finite values behind each layer. "
                f"Received: NaN or infinite values behind {self._observed!r}. Check the data and "
                "the model's weights, or leave the layer out with `layers`."
            )
        low, high = (ops.convert_to_numpy(v).astype("float64") for v in (self._low, self._high))
        width = float(high.max() - low.min())
        slack = margin * width + _ROUNDING * float(max(abs(low).max(), abs(high).max()))
        axis = -1 if self._axis is None else self._axis
        lower, upper = (low - slack).tolist(), (high + slack).tolist()
        return ActivationGuard(lower, upper, axis=axis, action=action, name=name)


# A guard moves behind these when they are all that reads a layer's output: what is out of range
# before them is out of range, or harmless, behind them.
_FOLLOWING = (
    keras.layers.BatchNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Add,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)
_BOUNDED = ("softmax", "sigmoid", "tanh", "hard_sigmoid", "softsign")


def is_graph(model: Any) -> bool:
    """Whether `model` is a functional or Sequential model, which can be built again."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and internals.is_functional(model)
    )


def default_places(model: keras.Model) -> set[int]:
    """The `id` of each layer to guard, nested models included."""
    places: set[int] = set()
    for part in [model, *internals.flatten_layers(model, include_self=False)]:
        if is_graph(part) and part.built:
            places |= _places_in(part, is_outermost=part is model)
    return places


def _places_in(model: keras.Model, *, is_outermost: bool) -> set[int]:
    readers = _readers(model)
    starts = [
        layer
        for layer in model.layers
        if layer.weights and not isinstance(layer, keras.Model) and layer not in _inputs(model)
    ]
    chosen: set[int] = set()
    for start in starts:
        place = start
        while len(readers[id(place)]) == 1 and _moves_behind(readers[id(place)][0]):
            place = readers[id(place)][0]
        is_final = is_outermost and not readers[id(place)]
        if not (is_final and _is_bounded(place)):
            chosen.add(id(place))
    return chosen


def _inputs(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer)]


def _moves_behind(layer: Any) -> bool:
    return isinstance(layer, _FOLLOWING) and not _is_bounded(layer)


def _is_bounded(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Softmax):
        return True
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", "") in _BOUNDED


def _readers(model: keras.Model) -> dict[int, list[Any]]:
    """By `id` of each layer, who reads its output; twice if twice."""
    readers: dict[int, list[Any]] = defaultdict(list)
    if isinstance(model, keras.Sequential):
        for layer, reader in zip(model.layers, model.layers[1:], strict=False):
            readers[id(layer)].append(reader)
        return readers
    makers: dict[int, Any] = {}
    kept: list[Any] = []  # an id is good only while its tensor lives

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        for leaf in keras.tree.flatten((args, kwargs)):
            if id(leaf) in makers:
                readers[id(makers[id(leaf)])].append(layer)
        outputs = layer(*args, **kwargs)
        for leaf in keras.tree.flatten(outputs):
            makers[id(leaf)] = layer
            kept.append(leaf)
        return outputs

    internals.run_graph(model, internals.graph_ends(model)[0], call)
    return readers
