"""Tells Keras which classes saved files may name, without importing Keras or any domain.

Owns the registration name (a file format: `keras_modelsec>ClassName`). The entries are made when
Keras is imported, whether before this package or after it; the command line, which only reads
files, never pays for that import.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "keras_modelsec"


def registered_name(class_name: str) -> str:
    """The name under which a class of this package stands in a saved file."""
    return f"{PACKAGE}>{class_name}"


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
    """Tells Keras where to find each class, unless the class itself is registered already.

    Args:
        modules_by_class: The module of each class, by the class's name.
    """

    def register() -> None:
        custom_objects = importlib.import_module("keras").saving.get_custom_objects()
        for class_name, module in modules_by_class.items():
            custom_objects.setdefault(registered_name(class_name), LazyClass(module, class_name))

    after_import("keras", register)


def after_import(name: str, action: Callable[[], None]) -> None:
    """Runs `action` once the module `name` has been imported: now, if it has been already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _ImportWatcher(name, action))


class _ImportWatcher(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and acts when it has been executed."""

    def __init__(self, name: str, action: Callable[[], None]):
        self._name = name
        self._action = action

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)  # so that the search below meets only the other finders
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            self._act_after(spec.loader)
        return spec

    def _act_after(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:  # a failed import is tried again, a good one is final
                sys.meta_path.remove(self)
                self._action()

        loader.exec_module = exec_module
