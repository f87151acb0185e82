"""How this package's objects get into Keras files and come back out of them.

Owns the decorator of every serialisable class. What lets `import keras_modelsec` alone be enough
for `keras.models.load_model` is in lazy_registration.py, which does not import Keras.
"""

from collections.abc import Callable

import keras

from keras_modelsec._core.lazy_registration import (
    PACKAGE,
    LazyClass,
    register_lazily,
    registered_name,
)

__all__ = [
    "PACKAGE",
    "LazyClass",
    "is_registered_name",
    "register",
    "register_lazily",
    "registered_name",
]

register: Callable[[type], type] = keras.saving.register_keras_serializable(package=PACKAGE)


def is_registered_name(name: object) -> bool:
    """Whether `name` from a saved config belongs to a class of this package."""
    return isinstance(name, str) and name.startswith(f"{PACKAGE}>")
