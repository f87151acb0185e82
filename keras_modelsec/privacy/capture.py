"""Saves, during one forward pass, what per-example gradients need of each weight-owning layer.

A unit is the smallest layer that holds trainable weights of its own and is called with a batch
axis. While the pass is traced, each unit's `call` is replaced on the instance; nothing of that
outlives the pass. What a unit computes is not changed.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy.layer_rules import FallbackRule, LayerRule, find_rule, is_registered
from keras_modelsec.privacy.layer_rules.rule import floating_leaves
from keras_modelsec.privacy.model_checks import check_recomputable

Tensor = Any

_FALLBACK = FallbackRule()

# Their sublayers run once per time step, inside a loop whose values cannot be captured.
_ALWAYS_ONE_UNIT = (keras.layers.RNN, keras.layers.TimeDistributed, keras.layers.Bidirectional)


@dataclass
class SavedCall:
    """Arguments and watched outputs of one call of a unit, before its activation if that splits.

    Attributes:
        outputs: The floating-point tensors the call returned.
        watched_as: For each output, its place in the order of all watched tensors.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    watched_as: list[int]


@dataclass
class Unit:
    """A layer, its rule, the trainable weights it answers for, and its calls in this pass."""

    layer: keras.Layer
    rule: LayerRule
    variables: list[keras.Variable]
    calls: list[SavedCall] = field(default_factory=list)


def find_units(model: keras.Model) -> list[Unit]:
    """The units of `model`, which together own every trainable weight exactly once.

    Raises:
        UnsupportedModelError: If the model is not built or owns weights directly, or two layers
            share one.
    """
    if not model.built:
        raise UnsupportedModelError(
            f"A model must be built before its layers are known. Received: {model.name!r}. "
            "Call it on a batch of data first."
        )
    units: list[Unit] = []
    visited: set[int] = set()
    _collect(model, model, units, visited)
    owners: dict[int, Unit] = {}
    for unit in units:
        for variable in unit.variables:
            other = owners.setdefault(id(variable), unit)
            if other is not unit:
                raise UnsupportedModelError(
                    f"A weight must belong to one layer. Received: {variable.path!r}, tied between "
                    f"layers {other.layer.name!r} and {unit.layer.name!r}, whose gradients would "
                    "need cross terms. Give each layer its own weight, or call one layer twice."
                )
    orphans = [v.path for v in model.trainable_variables if id(v) not in owners]
    if orphans:
        raise UnsupportedModelError(
            "Every trainable weight must belong to a layer that Keras tracks. Received: "
            f"{orphans}. Assign the layer to an attribute of the model."
        )
    return units


def _collect(model: keras.Model, layer: keras.Layer, units: list[Unit], visited: set[int]) -> None:
    if id(layer) in visited:
        return
    visited.add(id(layer))
    variables = _unique(v for v in layer.trainable_variables)
    if not variables:
        return
    owns_weights = bool(internals.direct_trainable_variables(layer))
    if layer is model and owns_weights:
        raise UnsupportedModelError(
            "A model trained privately must keep its weights in layers. Received: model "
            f"{model.name!r} with weights of its own "
            f"({[v.path for v in internals.direct_trainable_variables(model)]}). Move them into a "
            "keras.Layer that the model calls with the batch."
        )
    if owns_weights or is_registered(layer) or isinstance(layer, _ALWAYS_ONE_UNIT):
        for sublayer in internals.flatten_layers(layer):
            visited.add(id(sublayer))
        rule = find_rule(layer, _FALLBACK)
        if isinstance(rule, FallbackRule):
            check_recomputable(layer)
        units.append(Unit(layer, rule, variables))
        return
    for sublayer in internals.direct_sublayers(layer):
        _collect(model, sublayer, units, visited)


def _unique(variables: Iterator[keras.Variable]) -> list[keras.Variable]:
    return list({id(v): v for v in variables}.values())


@contextlib.contextmanager
def capturing(units: list[Unit], watch: Callable[[Tensor], int], batch: Tensor) -> Iterator[None]:
    """While open, calls of the units are saved and their outputs watched.

    Args:
        units: What `find_units` returned.
        watch: Called once on every floating-point output; returns its place in the order of calls.
        batch: The number of examples, a scalar tensor; each watched output is checked against it.
    """
    for unit in units:
        unit.layer.__dict__["call"] = _recording_call(unit, watch, batch)
    try:
        yield
    finally:
        for unit in units:
            unit.layer.__dict__.pop("call", None)


def _recording_call(
    unit: Unit, watch: Callable[[Tensor], int], batch: Tensor
) -> Callable[..., Any]:
    layer = unit.layer
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        splits = unit.rule.splits_activation and layer.activation is not None
        if splits:
            with _activation_off(layer):
                result = original(*args, **kwargs)
        else:
            result = original(*args, **kwargs)
        result = _each_by_itself(result)
        outputs = floating_leaves(result)
        for output in outputs:
            _check_place(layer, output, batch)
            _check_batch_axis(layer, output, batch)
        places = [watch(output) for output in outputs]
        unit.calls.append(SavedCall(args, kwargs, outputs, places))
        return layer.activation(result) if splits else result

    return call


@contextlib.contextmanager
def _activation_off(layer: keras.Layer) -> Iterator[None]:
    activation = layer.__dict__["activation"]
    layer.__dict__["activation"] = None
    try:
        yield
    finally:
        layer.__dict__["activation"] = activation


def _each_by_itself(result: Any) -> Any:
    """The outputs of a call, such that none is one tensor with another (an LSTM's, with its state).

    The gradient of a tensor that is watched twice would be counted twice.
    """
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if id(leaf) not in seen or not ops.is_tensor(leaf):
            seen.add(id(leaf))
            return leaf
        return internals.carry_mask(leaf, backend.another_tensor(leaf))

    return keras.tree.map_structure(own, result)


def _check_place(layer: keras.Layer, output: Tensor, batch: Tensor) -> None:
    """Refuses a call whose gradient the backward pass of the whole step could not reach."""
    if not backend.same_graph(output, batch):
        raise UnsupportedModelError(
            f"Layer {layer.name!r} ({type(layer).__name__}) must be called by the model itself. "
            "Received: a call inside of a loop, a branch or a compiled function (`ops.fori_loop`, "
            "`ops.while_loop`, `ops.scan`, `ops.map`, `ops.vectorized_map`, `ops.cond`, "
            "`tf.function` and the like), where its gradient is not seen, so that it would not "
            "train. Write the loop in Python, or make it the `call` of a layer that owns the "
            "layers in it, and register that layer's class with ms.privacy.register_layer_rule("
            "TheClass, ms.privacy.FallbackRule())."
        )


def _check_batch_axis(layer: keras.Layer, output: Tensor, batch: Tensor) -> None:
    rule = (
        f"Layer {layer.name!r} ({type(layer).__name__}) must be called with the batch as the first "
        "axis of its inputs and outputs"
    )
    remedy = (
        "If a layer that contains it keeps the batch axis, register that layer's class with "
        "ms.privacy.register_layer_rule(TheClass, ms.privacy.FallbackRule())."
    )
    if len(output.shape) == 0 or not backend.may_be_batch_axis(output.shape[0], batch):
        raise UnsupportedModelError(
            f"{rule}. Received: an output of shape {tuple(output.shape)}. {remedy}"
        )
    backend.assert_equal(ops.shape(output)[0], batch, f"{rule}. {remedy}")
