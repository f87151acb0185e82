"""Runs an example as a user does: in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fonts(tmp_path_factory):
    """Where matplotlib has all it needs: on a new machine it would say that it waits for it."""
    folder = tmp_path_factory.mktemp("matplotlib")
    subprocess.run(
        [sys.executable, "-c", "import matplotlib.font_manager"],
        env={**os.environ, "MPLCONFIGDIR": str(folder)},
        capture_output=True,
        check=False,  # not all examples need it
    )
    return folder


@pytest.fixture
def start_example(tmp_path, fonts):
    """Returns `start(name, *arguments, **options)`, which gives back the running process."""

    def start(name, *arguments, **options):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        environment |= {"PYTHONUNBUFFERED": "1", "MPLCONFIGDIR": str(fonts)}
        path = [str(ROOT), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        # A shell has what it runs in the background ignore Ctrl-C, and that is inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=environment,
                **options,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    return start


@pytest.fixture
def run_example(start_example):
    """Returns `run(name, *arguments)`, which gives back the finished process."""

    def run(name, *arguments):
        with start_example(name, *arguments) as process:
            try:
                out, err = process.communicate(timeout=1800)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
