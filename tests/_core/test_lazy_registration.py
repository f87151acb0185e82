import importlib
import subprocess
import sys

import pytest

from keras_modelsec._core.lazy_registration import LazyClass, after_import, registered_name


def run(script, *paths):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import keras, keras_modelsec",
        "import keras_modelsec; import keras.saving as _; import keras",
    ],
)
def test_saved_classes_are_known_to_keras_in_either_order_of_import(imports):
    script = (
        f"{imports}; name = 'keras_modelsec>SecureModel';"
        "print(type(keras.saving.get_custom_objects()[name]).__name__)"
    )
    assert run(script) == "LazyClass"


def test_importing_the_package_imports_neither_keras_nor_a_domain():
    script = (
        "import sys, keras_modelsec; print([m for m in sys.modules if m.split('.')[0] in "
        "('keras', 'tensorflow', 'numpy', 'cryptography') or '.integrity' in m])"
    )
    assert run(script) == "[]"


def test_signing_and_verifying_import_no_keras():
    script = (
        "import sys, keras_modelsec as ms; ms.sign, ms.verify, ms.generate_keys; "
        "import keras_modelsec.cli.main; print('keras' in sys.modules, 'numpy' in sys.modules)"
    )
    assert run(script) == "False False"


def test_action_runs_once_after_the_import_and_leaves_the_module_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "lately_imported.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    calls = []
    finders = list(sys.meta_path)
    after_import("lately_imported", lambda: calls.append(sys.modules["lately_imported"].value))
    assert calls == []
    lately_imported = importlib.import_module("lately_imported")
    assert calls == [1]
    assert sys.meta_path == finders
    assert lately_imported.__spec__.loader is lately_imported.__loader__
    after_import("lately_imported", lambda: calls.append(2))
    assert calls == [1, 2]


def test_failed_import_is_watched_again(tmp_path, monkeypatch):
    module = tmp_path / "broken_at_first.py"
    module.write_text("raise ValueError('first')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    calls = []
    after_import("broken_at_first", lambda: calls.append(1))
    with pytest.raises(ValueError, match="first"):
        importlib.import_module("broken_at_first")
    assert calls == []
    module.write_text("pass\n")
    importlib.import_module("broken_at_first")
    assert calls == [1]


def test_missing_module_is_still_missing():
    finders = list(sys.meta_path)
    after_import("no_module_of_this_name", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_module_of_this_name")
    sys.meta_path[:] = finders


def test_lazy_class_imports_the_class_when_asked():
    lazy = LazyClass("collections", "OrderedDict")
    with pytest.raises(AttributeError, match="from_config"):
        lazy.from_config({})
    assert registered_name("PGD") == "keras_modelsec>PGD"
