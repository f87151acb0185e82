"""Compiled functions of a model, kept as long as the model stays what it was.

Holds models weakly, so that an attack kept for long keeps no model alive; what is kept here must
refer to its model weakly too. A function is made anew after `compile`, and when a variable of the
model has been replaced. A change inside a layer that replaces no variable (another activation
function) is seen after `model.compile`, as with Keras's own `predict`.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import keras_internals as internals


class ModelFunctions:
    """A cache from a model and a key to what was compiled for them."""

    def __init__(self) -> None:
        self._entries: weakref.WeakKeyDictionary[
            keras.Model, dict[Hashable, tuple[tuple[Any, ...], Any]]
        ] = weakref.WeakKeyDictionary()

    def get(self, model: keras.Model, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make()` gave for this model and key, made again if the model has changed."""
        entries = self._entries.setdefault(model, {})
        known = entries.get(key)
        if known is not None and _is_same(known[0], _token(model)):
            return known[1]
        made = make()
        # The token is taken afterwards: making may have built the model.
        entries[key] = (_token(model), made)
        return made


def tensors(arrays: Any, batch: slice) -> Any:
    """Some of the examples, as tensors."""
    return keras.tree.map_structure(lambda leaf: ops.convert_to_tensor(leaf[batch]), arrays)


def form(arrays: Any) -> Hashable:
    """Structure, dtypes and shapes without the number of examples: what is traced."""
    paths = keras.tree.flatten_with_path(arrays)
    return tuple((path, leaf.dtype.name, leaf.shape[1:]) for path, leaf in paths)


def _token(model: keras.Model) -> tuple[Any, ...]:
    return internals.compile_token(model), model.dtype_policy, *model.variables


def _is_same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
