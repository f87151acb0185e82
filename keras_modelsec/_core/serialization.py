"""How this package's objects get into Keras files and come back out of them.

Owns the registration name (a file format: `keras_modelsec>ClassName`) and the lazy entries that let
`import keras_modelsec` alone be enough for `keras.models.load_model`, without importing any domain.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import keras

PACKAGE = "keras_modelsec"

register: Callable[[type], type] = keras.saving.register_keras_serializable(package=PACKAGE)


def registered_name(class_name: str) -> str:
    """The name under which a class of this package stands in a saved file."""
    return f"{PACKAGE}>{class_name}"


def is_registered_name(name: object) -> bool:
    """Whether `name` from a saved config belongs to a class of this package."""
    return isinstance(name, str) and name.startswith(f"{PACKAGE}>")


class LazyClass:
    """Stands for a serialisable class in Keras's registry until a file asks for it.

    Keras calls `from_config` on what it finds in its registry; the real class registers itself
    under the same name when its module is imported, and takes this object's place.
    """

    def __init__(self, module: str, class_name: str):
        self._module = module
        self._class_name = class_name

    def from_config(self, config: dict[str, Any], **kwargs: Any) -> Any:
        """Imports the class and builds the object."""
        cls = getattr(importlib.import_module(self._module), self._class_name)
        return cls.from_config(config, **kwargs)


def register_lazily(modules_by_class: Mapping[str, str]) -> None:
    """Tells Keras where to find each class, unless the class itself is registered already."""
    custom_objects = keras.saving.get_custom_objects()
    for class_name, module in modules_by_class.items():
        custom_objects.setdefault(registered_name(class_name), LazyClass(module, class_name))
