"""Which of a model's variables must keep their values in a mode, and which may change.

Fails closed: a variable that is not known to change must be constant.
"""

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec.integrity.guards.activation_guard import ActivationGuard
from keras_modelsec.integrity.signatures.tensor_layout import model_tensors


def named_weights(model: keras.Model) -> dict[str, keras.Variable]:
    """The weights by the paths they have in a .keras file; no seeds, metrics, optimizer state."""
    weights = {id(variable) for variable in model.weights}
    return {path: v for path, v in model_tensors(model) if id(v) in weights}


def all_names(model: keras.Model) -> set[str]:
    """The paths of all that the model would write into a .keras file."""
    return {path for path, _ in model_tensors(model)}


def optimizer_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The optimizer's variables but the learning rate, which schedules set between steps."""
    optimizer = model.optimizer
    if optimizer is None:
        return {}
    rate = optimizer.learning_rate
    return {f"optimizer/{v.path}": v for v in optimizer.variables if v is not rate}


def free(model: keras.Model, changing: Iterable["str | keras.Layer"]) -> set[int]:
    """The `id` of variables that may change in any mode, at any time.

    Args:
        model: The model.
        changing: Layers, and patterns of paths, that the user knows to change.
    """
    found = {id(v) for layer in _layers(model) for v in _changed_by_calls(layer)}
    patterns = [item for item in changing if isinstance(item, str)]
    for layer in (item for item in changing if isinstance(item, keras.Layer)):
        found |= {id(v) for v in layer.variables}
    for path, variable in named_weights(model).items():
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
            found.add(id(variable))
    return found


def trained(model: keras.Model) -> set[int]:
    """The `id` of variables that a step of `fit` changes, and nothing between two steps."""
    found = {id(v) for v in model.trainable_variables}
    return found | {id(v) for layer in _layers(model) for v in _changed_by_training(layer)}


def _layers(model: keras.Model) -> list[keras.Layer]:
    return internals.flatten_layers(model)


def _changed_by_calls(layer: Any) -> Iterator[keras.Variable]:
    if isinstance(layer, ActivationGuard):
        yield from layer.variables
    elif isinstance(layer, keras.layers.RNN) and layer.stateful:
        yield from (s for s in keras.tree.flatten(layer.states) if isinstance(s, keras.Variable))


def _changed_by_training(layer: Any) -> Iterator[keras.Variable]:
    if isinstance(layer, keras.layers.SpectralNormalization):
        yield from layer.variables  # it rewrites the kernel of the layer inside, frozen or not
    elif isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and layer.built:
        yield from (layer.moving_mean, layer.moving_variance)
