"""The package as its users meet it: what importing costs, what it offers, what is shipped."""

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import keras
import numpy as np
import pytest

import keras_modelsec as ms

REPOSITORY = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def run(*arguments, **options):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_domain_and_no_heavy_library():
    heavy = {"keras", "tensorflow", "numpy", "cryptography", "dp_accounting", "matplotlib", "scipy"}
    loaded = run("-c", "import sys, keras_modelsec; print(*sys.modules)").split()
    assert "keras_modelsec" in loaded
    assert not heavy.intersection(module.split(".")[0] for module in loaded)
    own = {module for module in loaded if module.startswith("keras_modelsec.")}
    assert own == {
        "keras_modelsec._core",
        "keras_modelsec._core.lazy_names",
        "keras_modelsec._core.lazy_registration",
    }


@pytest.mark.parametrize("name", ms.__all__)
def test_public_name_resolves(name):
    value = getattr(ms, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_dir_lists_the_public_names():
    assert set(ms.__all__) <= set(dir(ms))


def test_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="no attribute 'Sekuremodel'"):
        _ = ms.Sekuremodel


def test_each_public_name_has_one_address_beside_its_flat_one():
    homes = {}
    for name in ms.__all__:
        value = getattr(ms, name)
        if inspect.ismodule(value) and name not in {"callbacks", "layers"}:  # indexes by kind
            for part in value.__all__:
                homes.setdefault(part, []).append(name)
    assert not {part: names for part, names in homes.items() if len(names) > 1}


@pytest.mark.parametrize("module", [ms, ms.integrity, ms.encryption], ids=lambda m: m.__name__)
def test_stub_that_type_checkers_read_is_what_is_resolved(module):
    stub = ast.parse(pathlib.Path(module.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    places = [(n.module, n.names[0]) for n in stub.body if isinstance(n, ast.ImportFrom)]
    assert [alias.name for _, alias in places] == [n for n in module.__all__ if n[0] != "_"]
    for place, alias in places:
        assert alias.asname == alias.name  # without it, it is no public name to type checkers
        assert getattr(importlib.import_module(place), alias.name) is getattr(module, alias.name)


def test_version_is_the_declared_one():
    assert ms.__version__ == PYPROJECT["project"]["version"]


def test_classifiers_name_the_supported_versions_of_python():
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert sys.version_info[:2] in {(3, 11), (3, 12), (3, 13)}
    declared = {c.rsplit(" ", 1)[-1] for c in PYPROJECT["project"]["classifiers"] if ":: 3." in c}
    assert declared == {"3.11", "3.12", "3.13"}


def test_type_information_is_shipped():
    assert importlib.resources.files(ms).joinpath("py.typed").is_file()


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(tmp_path):
    try:
        setuptools = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        setuptools = "0"
    if int(setuptools.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools >= 77, here is {setuptools}")
    source = tmp_path / "source"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "keras_modelsec", source / "keras_modelsec", ignore=no_caches)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path]
    run("-m", "pip", "wheel", "-q", *options, source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {n for n in archive.namelist() if ".dist-info/" not in n}
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        licensed = b"License-Expression: Apache-2.0" in archive.read(metadata)
    expected = {p.relative_to(source).as_posix() for p in source.glob("keras_modelsec/**/*.*")}
    assert shipped == expected
    assert "keras_modelsec/py.typed" in shipped
    assert licensed


@pytest.mark.slow
def test_saved_secure_model_loads_after_importing_the_package_alone(tmp_path):
    inputs = keras.Input((3,))
    model = ms.SecureModel(inputs, keras.layers.Dense(2)(inputs))
    model.compile(
        ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0),
        "mse",
        adversarial=ms.AdversarialTraining(ms.attacks.FGSM(epsilon=0.1)),
    )
    path = tmp_path / "model.keras"
    model.save(path)
    script = (
        "import sys, keras_modelsec, keras\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "import numpy as np\n"
        "print(type(model).__mro__[1].__name__, type(model.optimizer).__name__)\n"
        "print(*model.predict(np.ones((1, 3)), verbose=0)[0])"
    )
    names, outputs = run("-c", script, path).strip().splitlines()
    assert names.split() == ["SecureModel", "DPOptimizer"]
    expected = model.predict(np.ones((1, 3)), verbose=0)[0]
    np.testing.assert_allclose([float(v) for v in outputs.split()], expected, rtol=1e-5)
