"""Owns the spread-spectrum arithmetic: how a mark is laid over a kernel and pulled into it.

Pure functions of arrays; keys, layers and statistics are elsewhere. With signs e_i (chip times
message bit), a bit reads as the mean of e_i * w_i over the weights that carry it, which is 0 on
average for weights that know nothing of the key. Which weights carry which bit is fixed by
`derivation.run_length`.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec.watermark.derivation import BITS, run_length

# About four weights per bit, and z = 10 at the largest default strength.
MIN_CARRIER_WEIGHTS = 512
# The default strength aims at this z in each carrier (log10 p = -347), because a mark needs the
# less of each weight the more weights there are. Half the weight scale is where cost starts.
_TARGET_Z = 40.0
_MAX_DEFAULT_STRENGTH = 0.5


def default_strength(weights: int) -> float:
    """The strength that gives a carrier of so many weights a z of 40, at most 0.5."""
    return min(_MAX_DEFAULT_STRENGTH, _TARGET_Z / math.sqrt(weights))


def can_carry(shape: Any) -> bool:
    """Whether a weight of this shape can carry a mark: at least two axes and 512 weights."""
    return len(shape) >= 2 and math.prod(shape) >= MIN_CARRIER_WEIGHTS


def weights_per_bit(shape: Any) -> np.ndarray:
    """How many weights of a kernel carry each bit: float32, shape `(BITS,)`."""
    length = run_length(shape)
    whole, rest = divmod(math.prod(shape) // length, BITS)
    return (length * (whole + (np.arange(BITS) < rest))).astype(np.float32)


def _sum_runs(values: Any) -> Any:
    # As a matrix product: XLA on a CPU sums in strict order, one number after the other.
    return ops.matmul(values, ops.ones((values.shape[1], 1), values.dtype))[:, 0]


def sum_per_bit(values: Any, shape: Any) -> Any:
    """Sums a tensor of one value per weight of a kernel into one value per bit."""
    # kernel shape -> (runs, length) -> (runs,)
    runs = _sum_runs(ops.reshape(values, (-1, run_length(shape))))
    count = runs.shape[0]
    rows = -(-count // BITS)
    padded = ops.pad(runs, (0, rows * BITS - count)) if count % BITS else runs
    # (runs,) -> (rows, bits) -> (bits,)
    return ops.sum(ops.reshape(padded, (rows, BITS)), axis=0)


def shortfall(weights: Any, signs: Any, strength: float) -> Any:
    """How far each bit is from the margin: `relu(strength * scale - correlation)`.

    The scale is the root mean square of what is left of the weights when the mark is taken out, so
    the margin does not run away as the mark grows. No gradient flows through it.

    Args:
        weights: Float tensor in the kernel's shape.
        signs: Float tensor of -1 and +1, of the same shape.
        strength: The margin in units of the scale, > 0.

    Returns:
        Float tensor of shape `(BITS,)`, in the unit of the weights.
    """
    shape = tuple(weights.shape)
    per_bit = ops.cast(weights_per_bit(shape), weights.dtype)
    correlation = sum_per_bit(weights * signs, shape) / per_bit
    squares = ops.square(ops.reshape(ops.stop_gradient(weights), (-1, run_length(shape))))
    marked = ops.sum(per_bit * ops.square(ops.stop_gradient(correlation)))
    # By Cauchy-Schwarz the difference is >= 0, but for rounding.
    rest = ops.maximum(ops.sum(_sum_runs(squares)) - marked, 0.0)
    return ops.relu(strength * ops.sqrt(rest / math.prod(shape)) - correlation)


def penalty(weights: Any, signs: Any, strength: float, rate: float) -> Any:
    """Half of `rate` times the squared shortfalls, each times its number of weights.

    The gradient for weight i is `-rate * shortfall * e_i`: like an L2 penalty, but towards the
    mark, it moves each weight in proportion to the weight scale, whatever the size of the kernel.
    """
    per_bit = ops.cast(weights_per_bit(tuple(weights.shape)), weights.dtype)
    return 0.5 * rate * ops.sum(per_bit * ops.square(shortfall(weights, signs, strength)))


def spread(per_bit: np.ndarray, shape: Any) -> np.ndarray:
    """Gives each weight of a kernel the value of the bit that it carries."""
    length = run_length(shape)
    runs = np.resize(per_bit, (math.prod(shape) // length, 1))
    return np.broadcast_to(runs, (len(runs), length)).reshape(shape)


def embed(weights: np.ndarray, signs: np.ndarray, strength: float) -> np.ndarray:
    """The nearest weights in which every bit reaches its margin; exact, since the scale is kept.

    Args:
        weights: Float array of any shape that can carry a mark.
        signs: Array of -1 and +1, of the same shape.
        strength: As in `shortfall`.

    Returns:
        Float32 array of the shape of `weights`.
    """
    weights = np.asarray(weights, np.float32)
    gap = shortfall(ops.convert_to_tensor(weights), ops.cast(signs, "float32"), strength)
    return weights + signs * spread(keras.ops.convert_to_numpy(gap), weights.shape)
