"""The rules of the layout (docs/adr/0002), held by reading the source."""

import ast
import graphlib
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import keras_modelsec as ms

ROOT = pathlib.Path(ms.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the ground up; then the domains, which do not know one another, and what joins them.
FLOORS = ("errors", "_core", "_storage", "_signing")
SHARED = tuple(f"keras_modelsec.{part}" for part in FLOORS)
DOMAINS = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {*FLOORS, "cli"}
LAYERS_OF_INTEGRITY = (
    ("contents",),
    ("statements",),
    ("signing",),
    ("loading", "damage", "parity", "encryption", "guards"),
    ("callbacks",),
)
LIBRARIES_OF_MODELS = {"keras", "tensorflow", "numpy", "h5py"}
MOST_LINES = 400
NAMED_TUPLE_METHODS = {"_asdict", "_fields", "_replace"}

BACKEND = {path.stem for path in (ROOT / "_core/backend/tensorflow").glob("[a-z]*.py")}

# Each outside library has its owners; all else goes through them.
OWNERS = {
    "tensorflow": {f"_core/backend/tensorflow/{file}.py" for file in BACKEND},
    "keras.src": {"_core/keras_internals.py", "_core/keras_saving.py"},
    "dp_accounting": {"privacy/accounting.py"},
    "cryptography": {
        "integrity/encryption/encrypted_stream.py",
        "integrity/encryption/encryption_keys.py",
        "integrity/encryption/key_slots.py",
        "_signing/algorithms.py",
        "_signing/certificate_rules.py",
        "_signing/certificates.py",
        "_signing/key_files.py",
        "_signing/key_wrapping.py",
        "_signing/keys.py",
        "watermark/keys.py",
    },
    "pyeclib": {"integrity/parity/erasure_code.py"},
    "tensorflow_privacy": set(),
    "matplotlib": set(),
    "torch": set(),
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path):
    """Absolute names of all that a file imports, anywhere in it, `import_module("...")` included.

    For `from a import b`, both `a` and `a.b`, since b may be a module.
    """
    package = ["keras_modelsec", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield argument.value


def is_inside(module, package):
    return module == package or module.startswith(f"{package}.")


def dotted(path):
    return ".".join(["keras_modelsec", *path.relative_to(ROOT).with_suffix("").parts])


def own_files(part):
    """The files of a folder, or the one file of that name."""
    file = ROOT / f"{part}.py"
    return [file] if file.exists() else sorted((ROOT / part).rglob("*.py"))


def own_imports(path):
    return {m for m in imported_modules(path) if is_inside(m, "keras_modelsec")}


def test_there_is_something_to_check():
    assert {"integrity", "privacy", "robustness", "watermark"} <= DOMAINS
    assert len(FILES) > 50
    assert "tensorflow" in set(imported_modules(ROOT / "_core/backend/tensorflow/gradients.py"))


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_domain_imports_only_itself_and_what_is_shared(domain):
    allowed = (f"keras_modelsec.{domain}", *SHARED)
    for path in (ROOT / domain).rglob("*.py"):
        for module in own_imports(path):
            assert any(is_inside(module, package) for package in allowed), (name(path), module)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_what_is_shared_imports_only_what_is_below_it(floor):
    below = [f"keras_modelsec.{part}" for part in FLOORS[: floor + 1]]
    for path in own_files(FLOORS[floor]):
        for module in own_imports(path) - {"keras_modelsec"}:
            assert any(is_inside(module, package) for package in below), (name(path), module)


@pytest.mark.parametrize("part", ["errors", "_storage", "_signing"])
def test_files_and_signatures_need_no_library_of_models(part):
    for path in own_files(part):
        for module in imported_modules(path):
            assert module.split(".")[0] not in LIBRARIES_OF_MODELS, (name(path), module)


def test_files_and_signatures_are_used_without_keras():
    parts = [dotted(path) for part in ("_storage", "_signing") for path in own_files(part)]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {parts}]"
    code += f"; print({LIBRARIES_OF_MODELS} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_import_points_up_inside_of_integrity():
    for height, layer in enumerate(LAYERS_OF_INTEGRITY):
        below = [folder for lower in LAYERS_OF_INTEGRITY[:height] for folder in lower]
        for folder in layer:
            allowed = [f"keras_modelsec.integrity.{part}" for part in (folder, *below)]
            for path in own_files(f"integrity/{folder}"):
                for module in own_imports(path) - {"keras_modelsec.integrity"}:
                    inside = is_inside(module, "keras_modelsec.integrity")
                    good = any(is_inside(module, package) for package in allowed)
                    assert good or not inside, (name(path), module)


def test_every_folder_of_integrity_has_its_layer():
    folders = {path.parent.name for path in (ROOT / "integrity").glob("*/__init__.py")}
    assert folders == {folder for layer in LAYERS_OF_INTEGRITY for folder in layer}
    assert [path.name for path in (ROOT / "integrity").glob("*.py")] == ["__init__.py"]


def test_there_is_no_import_circle():
    modules = {dotted(path): path for path in FILES if path.name != "__init__.py"}
    imports = {m: own_imports(path) & set(modules) - {m} for m, path in modules.items()}
    assert tuple(graphlib.TopologicalSorter(imports).static_order())  # or raises CycleError


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_library_is_imported_only_by_its_owners(library):
    users = {name(p) for p in FILES if any(is_inside(m, library) for m in imported_modules(p))}
    assert users == OWNERS[library]


def test_private_attributes_that_keras_internals_reads_are_read_nowhere_else():
    def private(path):
        return {
            node.attr
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in NAMED_TUPLE_METHODS
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        }

    beside = ["_core/keras_kernels.py", "_core/keras_averages.py"]
    internals = {ROOT / owner for owner in [*OWNERS["keras.src"], *beside]}
    of_keras = {attribute for path in internals for attribute in private(path)}
    assert {"_compile_loss", "_save_state", "_int4_unpacked_column_size"} <= of_keras
    for path in FILES:
        if path not in internals:
            assert not private(path) & of_keras, name(path)


def test_every_registered_class_is_listed_with_its_module():
    registered = {
        node.name: dotted(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(d, ast.Name) and d.id == "register" for d in node.decorator_list)
    }
    assert registered == ms._SERIALIZABLE


def test_train_step_has_one_owner():
    owners = {
        name(path)
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name == "train_step"
    }
    assert owners == {"_core/train_step.py"}


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_domain_exports_public_names_that_resolve(domain):
    module = importlib.import_module(f"keras_modelsec.{domain}")
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    for exported in module.__all__:
        assert not exported.startswith("_")
        assert getattr(module, exported) is not None


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_says_what_it_owns_keeps_its_length_and_asserts_nothing(path):
    parsed = tree(path)
    assert ast.get_docstring(parsed)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not [node.lineno for node in ast.walk(parsed) if isinstance(node, ast.Assert)]


def test_every_decision_is_in_the_index():
    folder = ROOT.parent / "docs" / "adr"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert pages
    assert re.findall(r"\]\(([^)]+)\)", index) == pages
