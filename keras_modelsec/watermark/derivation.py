"""Owns what is derived from a watermark key, and what for: a file format, frozen per scheme.

A mark made with one release must be readable with every later one, so nothing here may change
without a new scheme name; a golden file holds it. Nothing in a derivation can be chosen freely by
an owner: with a free choice of bits a forger would set them to what the weights already say.
"""

import math
from collections.abc import Sequence

import numpy as np

from keras_modelsec.watermark.keys import SecretKey

SCHEME = "keras_modelsec/watermark/v1"
# Prime, so that no bit falls on one column, channel or filter tap alone (their numbers are rarely
# multiples of 127): pruning a neuron weakens many bits a little instead of deleting one.
BITS = 127
# About four runs for each bit.
_MIN_RUNS = 512
_KEY_ID_BYTES = 16


def key_id(secret: SecretKey) -> str:
    """A public name of the key, 32 hexadecimal digits, to tell a wrong key from the right one.

    One-way (HKDF) and independent of the chips. It offers a guesser nothing: whoever holds a
    marked model can test a guessed key on the weights themselves, and a random key of 128 bits
    cannot be guessed. Models that carry the same name are seen to have the same owner.
    """
    return secret.derive(f"{SCHEME}|key-id", _KEY_ID_BYTES).hex()


def _signs(stream: bytes, count: int) -> np.ndarray:
    """The first `count` bits, most significant first in each byte, as int8: 0 -> +1, 1 -> -1."""
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=count)
    return 1 - 2 * bits.astype(np.int8)


def message(secret: SecretKey) -> np.ndarray:
    """The message that all carriers repeat: int8 of -1 and +1, shape `(BITS,)`."""
    return _signs(secret.keystream(f"{SCHEME}|message", -(-BITS // 8)), BITS)


def chips(secret: SecretKey, shape: Sequence[int], index: int) -> np.ndarray:
    """One chip per weight of a kernel: int8 of -1 and +1, flat, in the kernel's row-major order.

    Args:
        secret: The key.
        shape: The kernel's shape.
        index: Which kernel of this shape, from 0. Shape and index are all that tells one carrier
            from another, so names may change and files may be converted.
    """
    count = int(np.prod(shape))
    size = "x".join(str(int(n)) for n in shape)
    stream = secret.keystream(f"{SCHEME}|chips|shape={size}|index={int(index)}", -(-count // 8))
    return _signs(stream, count)


def run_length(shape: Sequence[int]) -> int:
    """How many consecutive weights of a kernel carry the same bit; run j carries bit j mod `BITS`.

    The largest power of two that divides the last axis and leaves 512 runs: long runs are what
    keeps the penalty cheap, since compilers sum along the last axis fastest.
    """
    length = 1
    while shape[-1] % (2 * length) == 0 and math.prod(shape) // (2 * length) >= _MIN_RUNS:
        length *= 2
    return length


def signs(secret: SecretKey, shape: Sequence[int], index: int) -> np.ndarray:
    """Chip times message bit for each weight: the direction in which the mark moves it."""
    length = run_length(shape)
    runs = chips(secret, shape, index).reshape(-1, length)
    return (runs * np.resize(message(secret), (len(runs), 1))).reshape(-1)
