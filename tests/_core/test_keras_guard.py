"""Every way of loading fails under the same names."""

from pathlib import Path

import pytest

from keras_modelsec._core.keras_guard import by_keras, safe_mode_for
from keras_modelsec.errors import DecryptionError, UnsafeModelError


def raises(error):
    def load():
        raise error

    return load


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), OSError("x"), AttributeError()])
def test_what_keras_does_not_document_has_a_named_error(error):
    with pytest.raises(UnsafeModelError, match=type(error).__name__):
        by_keras(Path("m"), raises(error))


@pytest.mark.parametrize("error", [ValueError("x"), NotImplementedError(), ImportError()])
def test_what_keras_refuses_stays_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        by_keras(Path("m"), raises(error))
    assert caught.value is error


@pytest.mark.parametrize("load", [raises(ValueError()), raises(TypeError()), lambda: "a model"])
def test_a_failure_of_the_file_comes_before_what_keras_makes_of_it(load):
    failure = DecryptionError("changed")
    with pytest.raises(DecryptionError, match="changed"):
        by_keras(Path("m"), load, lambda: failure)


def test_safe_mode_is_off_only_for_what_it_would_refuse():
    assert safe_mode_for(())
    assert safe_mode_for({"JaxLayer", "FlaxLayer"})
    assert not safe_mode_for({"JaxLayer", "Lambda"})
