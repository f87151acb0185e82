"""The fault suite and the fuzzing, which pytest does not run: that they are whole, and say why."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path for part in ("torture", "fuzz") for path in (ROOT / "tests" / part).rglob("*.py")
)
MOST_LINES = 400
CASES = """
import json
from tests.fuzz.__main__ import BY_NAME
from tests.torture import __main__, disk, kills, operations
from tests.torture.subjects.catalogue import all_subjects
cases = [*all_subjects().values(), *operations.OPERATIONS, *disk.FAULTS.values(), *BY_NAME.values()]
said = {case.__name__: case.__doc__ for case in cases}
print(json.dumps([said, sorted(kills.COUNTS), sorted(kills.BEYOND)]))
"""


def name(path):
    return path.relative_to(ROOT).as_posix()


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(path):
    """Which of these modules a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(MODULES) - {module(path)}


def test_there_is_no_import_circle_and_the_fault_suite_knows_nothing_of_the_fuzzing():
    graph = {each: imports(path) for each, path in MODULES.items()}
    assert tuple(graphlib.TopologicalSorter(graph).static_order())  # or raises CycleError
    assert any(i.startswith("tests.torture") for i in graph["tests.fuzz.seeds"])
    for each, imported in graph.items():
        if each.startswith("tests.torture"):
            assert not [other for other in imported if other.startswith("tests.fuzz")], each


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_says_what_it_owns_and_keeps_its_length(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= MOST_LINES
    assert not path.name.startswith("test_")  # which pytest would run


def test_each_case_says_what_it_covers_beyond_the_tests():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CASES], capture_output=True, text=True, cwd=ROOT
    )
    assert not done.returncode, done.stderr
    said, kinds, kinds_said = json.loads(done.stdout)
    assert len(said) > 80
    assert not [case for case, text in said.items() if "Beyond the tests: " not in (text or "")]
    assert kinds == kinds_said
