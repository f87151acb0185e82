"""Owns the spread-spectrum arithmetic: how a mark is laid over a kernel and pulled into it.

Pure functions of arrays; keys, layers and statistics are elsewhere. Weight i (row-major) carries
bit i mod `BITS`. With signs e_i (chip times message bit), bit b reads as the mean of e_i * w_i over
its weights, which is 0 on average for weights that know nothing of the key.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec.watermark.derivation import BITS

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


def weights_per_bit(weights: int) -> np.ndarray:
    """How many of `weights` weights carry each bit: float32, shape `(BITS,)`."""
    whole, rest = divmod(weights, BITS)
    return (whole + (np.arange(BITS) < rest)).astype(np.float32)


def sum_per_bit(values: Any) -> Any:
    """Sums a flat tensor of one value per weight into one value per bit."""
    count = values.shape[0]
    rows = -(-count // BITS)
    padded = ops.pad(values, (0, rows * BITS - count)) if count % BITS else values
    # (weights,) -> (rows, bits) -> (bits,)
    return ops.sum(ops.reshape(padded, (rows, BITS)), axis=0)


def shortfall(weights: Any, signs: Any, strength: float) -> Any:
    """How far each bit is from the margin: `relu(strength * scale - correlation)`.

    The scale is the root mean square of what is left of the weights when the mark is taken out, so
    the margin does not run away as the mark grows. No gradient flows through it.

    Args:
        weights: Flat float tensor.
        signs: Flat float tensor of -1 and +1, of the same length.
        strength: The margin in units of the scale, > 0.

    Returns:
        Float tensor of shape `(BITS,)`, in the unit of the weights.
    """
    per_bit = ops.cast(weights_per_bit(weights.shape[0]), weights.dtype)
    correlation = sum_per_bit(weights * signs) / per_bit
    energy = ops.sum(ops.square(ops.stop_gradient(weights)))
    marked = ops.sum(per_bit * ops.square(ops.stop_gradient(correlation)))
    # By Cauchy-Schwarz the difference is >= 0, but for rounding.
    scale = ops.sqrt(ops.maximum(energy - marked, 0.0) / weights.shape[0])
    return ops.relu(strength * scale - correlation)


def penalty(weights: Any, signs: Any, strength: float, rate: float) -> Any:
    """Half of `rate` times the squared shortfalls, each times its number of weights.

    The gradient for weight i is `-rate * shortfall * e_i`: like an L2 penalty, but towards the
    mark, it moves each weight in proportion to the weight scale, whatever the size of the kernel.
    """
    per_bit = ops.cast(weights_per_bit(weights.shape[0]), weights.dtype)
    return 0.5 * rate * ops.sum(per_bit * ops.square(shortfall(weights, signs, strength)))


def embed(weights: np.ndarray, signs: np.ndarray, strength: float) -> np.ndarray:
    """The nearest weights in which every bit reaches its margin; exact, since the scale is kept.

    Args:
        weights: Float array of any shape.
        signs: Flat array of -1 and +1, one per weight.
        strength: As in `shortfall`.

    Returns:
        Float32 array of the shape of `weights`.
    """
    flat = np.asarray(weights, np.float32).reshape(-1)
    gap = keras.ops.convert_to_numpy(
        shortfall(ops.convert_to_tensor(flat), ops.cast(signs, "float32"), strength)
    )
    return (flat + signs * np.resize(gap, flat.shape)).reshape(np.shape(weights))
