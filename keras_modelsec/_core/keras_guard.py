"""What stands around every call by which Keras builds a model out of a file, encrypted or not.

Owns when Keras's safe mode is on, and which of its failures reach the caller under which name, so
that no way of loading is laxer than another.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from keras_modelsec._core import keras_internals
from keras_modelsec._core.printable import printable
from keras_modelsec.errors import UnsafeModelError

_CHECKED_BY_SAFE_MODE = frozenset(
    {"Lambda", "TFSMLayer", "TorchModuleWrapper"}
    | {"StringLookup", "IntegerLookup", "TextVectorization"}
)
_Result = TypeVar("_Result")


def safe_mode_for(allowed: Collection[str]) -> bool:
    """Whether Keras's safe mode is on: unless a part it would refuse is there and allowed.

    Args:
        allowed: The code-carrying parts that a configuration has, all of them allowed.
    """
    return not _CHECKED_BY_SAFE_MODE.intersection(allowed)


def refuse_unsafe_mode() -> None:
    """Refuses to load while something else has switched the safe mode off.

    Raises:
        UnsafeModelError: If so.
    """
    if keras_internals.is_unsafe_deserialization_enabled():
        raise UnsafeModelError(
            "Unsafe deserialization must be off while a model is loaded. Received: it is enabled "
            "(keras.config.enable_unsafe_deserialization or SafeModeScope(False)), and would "
            "override safe_mode=True. Do not enable it in a process that loads models."
        )


def by_keras(
    shown: Path,
    load: Callable[[], _Result],
    failure: Callable[[], Exception | None] = lambda: None,
) -> _Result:
    """What Keras loads; its own refusals as they are, all other failures under one name.

    Args:
        shown: The path for the message.
        load: Has Keras load.
        failure: What went wrong where Keras read from, if it did: Keras may turn it into an error
            of its own, or pass over it.

    Raises:
        UnsafeModelError: If Keras fails in a way that it does not document.
    """
    try:
        result = load()
    except (ValueError, NotImplementedError, ImportError):  # bad contents; another backend needed
        if failure() is None:
            raise
    except Exception as error:
        if failure() is None:
            raise UnsafeModelError(
                f"A model must be one that Keras can load. Received: {str(shown)!r}, on which it "
                f"failed with {type(error).__name__}: {printable(str(error)[:500])}"
            ) from error
    found = failure()
    if found is not None:
        raise found
    return result
