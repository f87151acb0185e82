"""The data of the examples: scikit-learn's digits, or a file of MNIST's form; no download."""

import os
import zipfile
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

NAMES = ("x_train", "y_train", "x_test", "y_test")
_TRAINING_DIGITS = 1440


class DataError(ValueError):
    """The file given as data is not what the examples can use."""


class Digits(NamedTuple):
    """Images (examples, height, width, 1), float32 from 0 to 1, and their classes."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(path: "str | os.PathLike[str] | None" = None) -> Digits:
    """The data in `path`, or scikit-learn's 1,797 digits of 8x8 pixels in an order of our own.

    Args:
        path: An .npz file with `x_train`, `x_test` (uint8, 28x28 each) and `y_train`, `y_test`.

    Raises:
        DataError: If the file cannot be read or holds anything else.
    """
    if path is not None:
        return _from_file(os.fspath(path))
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order, ..., None] / 16).astype("float32")
    y = digits.target[order].astype("int64")
    cut = _TRAINING_DIGITS
    return Digits(x[:cut], y[:cut], x[cut:], y[cut:])


def _from_file(path: str) -> Digits:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in NAMES if name not in file]
            if missing:
                raise DataError(
                    f"The data must hold {', '.join(NAMES)}. Received: {path!r}, which lacks "
                    f"{', '.join(missing)} and has {', '.join(sorted(file)) or 'nothing'}."
                )
            arrays = {name: file[name] for name in NAMES}
    except FileNotFoundError:
        raise DataError(
            f"The data must be an .npz file that exists. Received: {path!r}, which does not. "
            "Leave --data out to use scikit-learn's digits."
        ) from None
    except DataError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The data must be an .npz file that NumPy can read. Received: {path!r} ({error})."
        ) from None
    for part in ("train", "test"):
        _check(path, f"x_{part}", arrays[f"x_{part}"], f"y_{part}", arrays[f"y_{part}"])
    x_train, x_test = (arrays[name][..., None].astype("float32") / 255 for name in NAMES[::2])
    y_train, y_test = (arrays[name].astype("int64") for name in NAMES[1::2])
    return Digits(x_train, y_train, x_test, y_test)


def _check(path: str, x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> None:
    if x.ndim != 3 or x.shape[1:] != (28, 28) or x.dtype != np.uint8 or not len(x):
        raise DataError(
            f"`{x_name}` must be uint8 images of shape (examples, 28, 28). Received: {path!r} with "
            f"{x_name} of shape {x.shape} and type {x.dtype}."
        )
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise DataError(
            f"`{y_name}` must be integers of shape {x.shape[:1]}, one class for each image. "
            f"Received: {path!r} with {y_name} of shape {y.shape} and type {y.dtype}."
        )
    if y.min() < 0 or y.max() > 9:
        raise DataError(
            f"`{y_name}` must be classes from 0 to 9. Received: {path!r} with {y_name} from "
            f"{y.min()} to {y.max()}."
        )
