"""Checks of data that is to be attacked, on NumPy arrays, before any work is done."""

from typing import Any

import keras
import numpy as np

# Scaling to [0, 1] may miss the ends by a rounding error.
BOUNDS_TOLERANCE = 1e-6

Bounds = tuple[float, float]


def is_floating(leaf: Any) -> bool:
    """Whether an input can be perturbed; class numbers, token ids and masks cannot."""
    return "float" in keras.backend.standardize_dtype(leaf.dtype)


def floating_indices(leaves: list[Any]) -> list[int]:
    """Which of the flattened inputs an attack changes.

    Raises:
        TypeError: If there is none.
    """
    indices = [index for index, leaf in enumerate(leaves) if is_floating(leaf)]
    if not indices:
        dtypes = ", ".join(keras.backend.standardize_dtype(leaf.dtype) for leaf in leaves)
        raise TypeError(
            "`x` must have at least one floating-point input to perturb. Received dtypes: "
            f"{dtypes}. Convert images to float32, e.g. x.astype('float32') / 255."
        )
    return indices


def as_arrays(name: str, values: Any) -> Any:
    """The nested structure with NumPy arrays in it, floating ones in Keras's default precision.

    Raises:
        TypeError: If a leaf has no axis for examples, or holds no numbers.
    """

    def convert(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if array.ndim == 0 or array.dtype.kind in "OSUMm":
            found = type(leaf).__name__ + (f" of {array.dtype}" if array.ndim else "")
            raise TypeError(
                f"`{name}` must hold arrays of numbers whose first axis counts the examples. "
                f"Received: {found}. Use numpy.asarray on lists of numbers, numbers for class "
                "names, and the arrays themselves instead of a dataset or generator."
            )
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(keras.config.floatx(), copy=False)
        return array

    return keras.tree.map_structure(convert, values)


def check_lengths(x: Any, y: Any) -> int:
    """The number of examples in arrays `x` and `y`.

    Raises:
        ValueError: If it is zero or not the same everywhere.
    """
    lengths = [len(leaf) for leaf in keras.tree.flatten(x) + keras.tree.flatten(y)]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(
            "`x` and `y` must hold the same number of examples, at least one. "
            f"Received lengths: {', '.join(map(str, lengths))}."
        )
    return lengths[0]


def check_values(x: Any, bounds: Bounds | None) -> None:
    """Refuses NaN, infinities and values outside of `bounds` in the floating inputs.

    Raises:
        ValueError: With the first input that breaks the rule.
    """
    leaves = keras.tree.flatten(x)
    for index in floating_indices(leaves):
        leaf, place = leaves[index], f" (input {index})" if len(leaves) > 1 else ""
        finite = np.isfinite(leaf)
        if not finite.all():
            raise ValueError(
                f"`x` must hold finite numbers. Received: {int((~finite).sum())} NaN or infinite "
                f"values{place}. Remove or impute those examples."
            )
        if bounds is None:
            continue
        low, high = float(leaf.min()), float(leaf.max())
        if low < bounds[0] - BOUNDS_TOLERANCE or high > bounds[1] + BOUNDS_TOLERANCE:
            raise ValueError(
                f"`x` must lie inside `bounds`={bounds}. Received values from {low:g} to "
                f"{high:g}{place}. Rescale the data, or give the attack the bounds it has, e.g. "
                f"bounds=({low:g}, {high:g})."
            )
