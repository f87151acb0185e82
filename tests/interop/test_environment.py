"""The whole package works beside tensorflow-privacy, and never imports it."""

import importlib.metadata
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import keras_modelsec as ms

pytestmark = pytest.mark.interop

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
loaded = [name for name in sys.modules if name.split(".")[0] == "tensorflow_privacy"]
raise SystemExit(f"imported: {loaded[:3]}" if loaded else 0)
"""


def test_environment_is_the_one_that_was_meant():
    assert importlib.metadata.version("tensorflow-privacy") == "0.9.0"
    assert np.__version__.startswith("1.")


def test_every_module_imports_without_tensorflow_privacy():
    modules = [m.name for m in pkgutil.walk_packages(ms.__path__, "keras_modelsec.")]
    assert len(modules) > 50
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
