"""The rules of the layout (docs/adr/0002), held by reading the source."""

import ast
import importlib
import pathlib
import re

import pytest

import keras_modelsec as ms

ROOT = pathlib.Path(ms.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
DOMAINS = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"_core", "cli"}
MOST_LINES = 400
NAMED_TUPLE_METHODS = {"_asdict", "_fields", "_replace"}

# Each outside library has its owners; all else goes through them.
OWNERS = {
    "tensorflow": {"_core/backend/tensorflow.py"},
    "keras.src": {"_core/keras_internals.py", "_core/keras_saving.py"},
    "dp_accounting": {"privacy/accounting.py"},
    "cryptography": {
        "integrity/encryption/encrypted_stream.py",
        "integrity/encryption/encryption_keys.py",
        "integrity/encryption/key_slots.py",
        "integrity/keys/algorithms.py",
        "integrity/keys/certificate_chain.py",
        "integrity/keys/certificates.py",
        "integrity/keys/key_loading.py",
        "integrity/keys/keys.py",
        "integrity/keys/passphrase.py",
        "integrity/keys/pem_encryption.py",
        "integrity/keys/signing_key.py",
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


def own_imports(path):
    return {m for m in imported_modules(path) if is_inside(m, "keras_modelsec")}


def test_there_is_something_to_check():
    assert {"integrity", "privacy", "robustness", "watermark"} <= DOMAINS
    assert len(FILES) > 50
    assert "tensorflow" in set(imported_modules(ROOT / "_core/backend/tensorflow.py"))


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_domain_imports_only_itself_and_core(domain):
    allowed = (f"keras_modelsec.{domain}", "keras_modelsec._core")
    for path in (ROOT / domain).rglob("*.py"):
        for module in own_imports(path):
            assert any(is_inside(module, package) for package in allowed), (name(path), module)


def test_core_imports_no_domain():
    for path in (ROOT / "_core").rglob("*.py"):
        for module in own_imports(path):
            assert is_inside(module, "keras_modelsec._core"), (name(path), module)


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

    internals = {ROOT / owner for owner in OWNERS["keras.src"]}
    of_keras = {attribute for path in internals for attribute in private(path)}
    assert {"_compile_loss", "_save_state"} <= of_keras
    for path in FILES:
        if path not in internals:
            assert not private(path) & of_keras, name(path)


def test_every_registered_class_is_listed_with_its_module():
    registered = {
        node.name: ".".join(["keras_modelsec", *path.relative_to(ROOT).with_suffix("").parts])
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
