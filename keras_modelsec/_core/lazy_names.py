"""Public names that are resolved on first use (PEP 562), read from the stub beside a module.

The stub (`__init__.pyi`) is the one list: type checkers read it as it is, this file at run time.
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _places(stub: Path) -> dict[str, str]:
    """The module of each name that the stub imports, in its order."""
    statements = ast.parse(stub.read_text(encoding="utf-8")).body
    return {
        alias.asname or alias.name: str(statement.module)
        for statement in statements
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def names_of_stub(
    module: dict[str, Any],
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a module assigns to `__getattr__`, `__dir__` and `__all__`.

    Args:
        module: The module's `globals()`; a stub of the same name lies beside its file. A name that
            was resolved is put there, so that it is looked for once.
    """
    places = _places(Path(module["__file__"]).with_suffix(".pyi"))

    def get_attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        place = places[name]
        if place == module["__name__"]:  # a namespace: a module beside it
            module[name] = importlib.import_module(f"{place}.{name}")
        else:
            module[name] = getattr(importlib.import_module(place), name)
        return module[name]

    return get_attribute, lambda: sorted({*module, *places}), list(places)
