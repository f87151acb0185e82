"""Behind which layers of a model a guard is worth its cost, unless the user says."""

from collections import defaultdict
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals

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
