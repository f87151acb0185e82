"""Writes the pages of the reference that follow from the code: public names, errors, commands.

What the package offers is what it lists: `keras_modelsec.__all__`, and the `__all__` of each module
named there. Each object has one heading, under its shortest public name; the other names it has are
said there. So a name that is added stands in the reference, and one that is renamed moves, without
a page being edited. Nothing here knows where in the package an object is defined.
"""

import contextlib
import importlib
import inspect
import io
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

PACKAGE = "keras_modelsec"
_REPOSITORY = Path(__file__).parents[2]
_NOT_OBJECTS = {"__version__"}
_INDEXES = {f"{PACKAGE}.callbacks", f"{PACKAGE}.layers"}  # which name again what stands elsewhere


class Documented(NamedTuple):
    """One public object: its name, the other names it has, and itself."""

    name: str
    others: tuple[str, ...]
    value: Any


def public_names() -> dict[str, Any]:
    """Every public name, full, with what it stands for; the flat ones first."""
    package = importlib.import_module(PACKAGE)
    flat = {name: getattr(package, name) for name in package.__all__ if name not in _NOT_OBJECTS}
    names = {f"{PACKAGE}.{name}": value for name, value in flat.items()}
    for name, module in flat.items():
        if isinstance(module, ModuleType):
            names |= {f"{PACKAGE}.{name}.{part}": getattr(module, part) for part in module.__all__}
    return names


def pages() -> dict[str, list[Documented]]:
    """For the package and each of its public modules, the objects whose heading stands there."""
    found: dict[int, list[str]] = {}
    names = public_names()
    for name, value in names.items():
        found.setdefault(id(value), []).append(name)
    modules = [name for name, value in names.items() if isinstance(value, ModuleType)]
    filled: dict[str, list[Documented]] = {module: [] for module in [PACKAGE, *modules]}
    for same in found.values():
        value = names[same[0]]
        if not isinstance(value, ModuleType):
            home = _home(same)
            flat = [name for name in same if name.count(".") == 1]
            heading = (flat or [name for name in same if name.startswith(f"{home}.")])[0]
            others = tuple(name for name in same if name != heading)
            filled[home].append(Documented(heading, others, value))
    return filled


def _home(same: list[str]) -> str:
    """The module under which an object is read: its namespace, if it is in one."""
    modules = [name.rpartition(".")[0] for name in same]
    return max(modules, key=lambda module: (module not in _INDEXES, module.count(".")))


def _directive(value: Any) -> list[str]:
    if inspect.isclass(value):
        kind, members = "autoclass", not issubclass(value, BaseException)
    else:
        kind, members = ("autofunction" if inspect.isroutine(value) else "autodata"), False
    return [kind, *(["   :members:"] if members else [])]


def _module(name: str) -> ModuleType:
    """A public module; `keras_modelsec.attacks` is an attribute, and no file of that name."""
    package = importlib.import_module(PACKAGE)
    return package if name == PACKAGE else getattr(package, name.rpartition(".")[2])


def _page(module: str, documented: list[Documented]) -> str:
    summary = inspect.getdoc(_module(module)) or ""
    title = "`keras_modelsec`: the flat names" if module == PACKAGE else f"`{module}`"
    lines = [f"# {title}", "", summary.partition("\n")[0], ""]
    if module == PACKAGE:
        lines += ["Flat names that a namespace has too are on the namespace's page.", ""]
    for name, others, value in documented:
        kind, *options = _directive(value)
        also = f"Also: {', '.join(f'`{other}`' for other in others)}.\n" if others else ""
        lines += ["```{eval-rst}", f".. {kind}:: {name}", *options, "```", also]
    if not documented:
        again = sorted(_module(module).__all__)
        lines += [
            f"Other names of what stands elsewhere: {', '.join(f'`{n}`' for n in again)}.",
            "",
        ]
    return "\n".join(lines)


def command() -> Any:
    """The function behind the `modelsec` command, as pyproject.toml names it."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["modelsec"].partition(":")
    return getattr(importlib.import_module(module), function)


def help_of(*arguments: str) -> str:
    """What `modelsec ARGUMENTS --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command()([*arguments, "--help"])
    return printed.getvalue()


def commands(*above: str) -> list[tuple[str, ...]]:
    """Every command, a command's own commands after it."""
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", help_of(*above), re.MULTILINE)
    return [path for name in listed for path in ((*above, name), *commands(*above, name))]


def _command_page() -> str:
    lines = ["# Every command and its options", "", "```text", help_of(), "```", ""]
    for path in commands():
        name = " ".join(("modelsec", *path))
        lines += [f"{'#' * (1 + len(path))} `{name}`", "", "```text", help_of(*path), "```", ""]
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Writes all of them into `folder`; a page that says what it said before is left alone."""
    texts = {f"{module}.md": _page(module, inside) for module, inside in pages().items()}
    texts["commands.md"] = _command_page()
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        place = folder / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")
