"""How `make docs` builds the site: Sphinx, Markdown by MyST, docstrings by napoleon."""

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.util.nodes import make_refnode

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["COLUMNS"] = "88"  # argparse wraps the help texts at it
sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

import public_names  # noqa: E402 - found by the path above

import keras_modelsec  # noqa: E402

project = "keras_modelsec"
copyright = "the keras_modelsec authors, Apache-2.0"
release = version = keras_modelsec.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build", "_ext", "readers"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]
suppress_warnings = ["myst.header"]  # a docstring's page begins where autodoc lets it

nitpicky = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # dataclasses say of their fields what `:members:` says again
default_role = "code"  # docstrings mark code with one backtick, as Markdown does

html_theme = "furo"
html_title = "keras_modelsec"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"

_FENCE = re.compile(r"^( *)```(\w*)$")


def _fences_to_directives(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: Any
) -> None:
    """Docstrings fence their examples as Markdown does; napoleon reads reStructuredText."""
    converted: list[str] = []
    inside = ""
    for line in lines:
        fence = _FENCE.match(line)
        if fence and not inside:
            inside = "   "
            converted += ["", f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""]
        elif fence:
            inside = ""
            converted += [""]
        else:
            converted.append(f"{inside}{line if inside else _escaped(line)}".rstrip())
    lines[:] = converted


def _escaped(line: str) -> str:
    """A star in prose is a star; between backticks it needs no help."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in parts)


def _resolve(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """Types in signatures: public ones lead to their page; others stand as text."""
    if node.get("refdomain") != "py":
        return None
    short = node["reftarget"].rpartition(".")[2]
    python = environment.get_domain("py")
    for name in public_names.public_names():
        if name.endswith(f".{short}") and name in python.objects:
            place = python.objects[name]
            where = node["refdoc"], place.docname, place.node_id
            return make_refnode(app.builder, *where, content, name)
    return content


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What named tuples say of their fields by themselves says nothing."""
    said_by_python = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    return True if said_by_python else None


def _write_pages(app: Any, config: Any) -> None:
    public_names.write(Path(app.srcdir) / "reference" / "api")


def setup(app: Any) -> None:
    """Joins what is written here to the build."""
    app.connect("config-inited", _write_pages)
    app.connect("autodoc-process-docstring", _fences_to_directives, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
