"""What the pages of the documentation take for granted: a model trained once, data, keys, files."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_modelsec as ms

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block: its language, its text, the line it begins at."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(text)
    ]


@pytest.fixture(scope="session")
def digits():
    """320 digits of 8x8 pixels from 0 to 1, and their classes."""
    data = load_digits()
    return (data.images[:320, ..., None] / 16).astype("float32"), data.target[:320]


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The path of a small trained model, shared by all pages."""
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*digits, epochs=3, verbose=0)
    path = tmp_path_factory.mktemp("trained") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def given(digits, trained, tmp_path, monkeypatch):
    """The names of docs/how-to/index.md, with the current folder as it says."""
    monkeypatch.chdir(tmp_path)
    ms.generate_keys("owner.pem", "owner.pub")
    Path("model.keras").write_bytes(trained.read_bytes())
    x, y = digits
    parts = {"train": slice(200), "val": slice(200, 260), "test": slice(260, 320)}
    data = {f"x_{n}": x[part] for n, part in parts.items()}
    data |= {f"y_{n}": y[part] for n, part in parts.items()}
    return {"keras": keras, "ms": ms, "model": keras.models.load_model(trained), **data}


@pytest.fixture
def run_blocks(monkeypatch, tmp_path):
    """Returns `run(path, names)`, which runs the Python and shell blocks of a page in order."""

    def run(path, names):
        shell = _shell(tmp_path)
        for block in blocks(path):
            if block.language == "python":
                code = "\n" * (block.line - 1) + block.text
                exec(compile(code, str(path), "exec"), names)
            elif block.language == "sh":
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", shell["before"] + block.text],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=shell["environment"],
                )
                assert done.returncode == 0, f"{path}:{block.line}\n{done.stdout}{done.stderr}"

    return run


def _shell(folder):
    """`modelsec` of this checkout; `make` says what it would do; an example must be there."""
    commands = folder / ".commands"
    commands.mkdir(exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["modelsec"].partition(":")
    script = commands / "modelsec"
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    run = shlex.join([sys.executable, "-c", code])  # no `#!` where the path has a space or is long
    script.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    script.chmod(0o755)
    root = shlex.quote(str(ROOT))
    before = (
        f'make() {{ command make --dry-run -C {root} "$@" >/dev/null; }}\n'
        f'python() {{ test -f {root}/"$1"; }}\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {"before": before, "environment": environment}


@pytest.fixture
def mnist_shaped(digits, monkeypatch):
    """`keras.datasets.mnist` without a download: digits enlarged to 28x28, in uint8."""
    x, y = digits
    large = np.kron(x[..., 0], np.ones((1, 3, 3)))
    large = (np.pad(large, ((0, 0), (2, 2), (2, 2))) * 255).astype("uint8")
    data = (large[:240], y[:240]), (large[240:], y[240:])
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: data)
