"""Made-up batches for the probe: pairs that differ only in the examples that are not kept.

What a coupling reacts to is not known, so several kinds of values are tried (fractions, signed and
large numbers, pixels and tokens, zeros), and for each the others become ordinary, high and low.
"""

import itertools
import math
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

# Of few examples, odd, and drawn anew for each probe: behind a fixed number a model could hide what
# it does with a period, or with so many examples.
_SIZES = (7, 9, 11, 13)

# Examples in a batch of data that do not say it; beyond the usual distances and periods.
UNKNOWN_SIZE = 37

# Tried for axes whose length is not known, one after the other.
GUESSED_LENGTHS = (16, 8, 32, 64, 128, 224)

_WORDS = np.array([b"", b"one", b"two words", b"3"], object)


class Leaf(NamedTuple):
    """One tensor of a batch: what it is for ("x", "y" or "sample_weight"), shape and dtype."""

    role: str
    shape: tuple[int | None, ...]  # without the batch axis
    dtype: str


class _Kind(NamedTuple):
    """How examples are drawn: the scale of floating-point numbers, and integers below `high`."""

    floats: str
    high: int
    classes: int


# Integers that a model refuses (an Embedding of a small vocabulary) end that kind, no other.
_KINDS = (
    _Kind("fractions", high=2, classes=2),
    _Kind("signed", high=10, classes=3),
    _Kind("whole", high=256, classes=2),
    _Kind("zeros", high=1, classes=1),
)


def leaves_of(x: Any, y: Any, sample_weight: Any) -> list[Leaf]:
    """What `keras.tree.flatten((x, y, sample_weight))` holds, None left out."""
    return [
        Leaf(role, tuple(leaf.shape[1:]), keras.backend.standardize_dtype(leaf.dtype))
        for role, part in (("x", x), ("y", y), ("sample_weight", sample_weight))
        for leaf in keras.tree.flatten(part)
        if leaf is not None
    ]


class Batch(NamedTuple):
    """The arrays of a batch, and which of its examples are as in the first batch of its group."""

    arrays: list[np.ndarray]
    kept: np.ndarray


def draw_size() -> int:
    """How many examples a small batch has, from the operating system's entropy."""
    return secrets.choice(_SIZES)


def groups(leaves: list[Leaf], length: int, size: int) -> Iterator[list[Batch]]:
    """For each kind of values, a first batch and others that agree with it in what they keep.

    Args:
        leaves: What a batch consists of.
        length: Of axes whose length is not known.
        size: Examples in each batch, at least 2.
    """
    for number, kind in enumerate(_KINDS):
        generator = np.random.default_rng(number)
        first, drawn = (_drawn(leaves, kind, generator, length, size) for _ in range(2))
        high, low = (
            [_extreme(leaf, kind, generator, length, size, is_high=is_high) for leaf in leaves]
            for is_high in (True, False)
        )
        kept, also_kept = _masks(size)
        exchanged = (
            *((drawn, kept), (drawn, ~kept), (drawn, also_kept)),
            *((high, kept), (high, ~also_kept), (low, ~kept)),
        )
        yield [Batch(first, kept), *(_exchange(first, *pair) for pair in exchanged)]


def full_groups(leaves: list[Leaf], length: int, size: int) -> Iterator[list[Batch]]:
    """As `groups`, of batches as large as the user's.

    For any two examples there is a batch in which the one is exchanged and the other is kept.
    """
    for number, kind in enumerate(_KINDS):
        generator = np.random.default_rng(number)
        first, drawn = (_drawn(leaves, kind, generator, length, size) for _ in range(2))
        masks = _masks_for_each_pair(size)
        yield [Batch(first, masks[0]), *(_exchange(first, drawn, mask) for mask in masks)]


def _drawn(
    leaves: list[Leaf], kind: _Kind, generator: np.random.Generator, length: int, size: int
) -> list[np.ndarray]:
    return [_draw(leaf, kind, generator, length, size) for leaf in leaves]


def _exchange(first: list[np.ndarray], others: list[np.ndarray], kept: np.ndarray) -> Batch:
    return Batch([_merge(*pair, kept) for pair in zip(first, others, strict=True)], kept)


def _masks(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are kept while the others are exchanged, in two ways.

    Drawn until no shift, flip or swap of pairs maps one of them onto itself, and examples that are
    one or two apart are together in one of them at most. Of very few examples there may be none.
    """
    generator = np.random.default_rng(secrets.randbits(128))
    codes = np.zeros(size, int)
    for _ in range(200):
        for place in range(size):
            free = [code for code in range(4) if code not in codes[max(place - 2, 0) : place]]
            codes[place] = generator.choice(free)
        masks = codes % 2 == 1, codes >= 2
        if all(map(_is_irregular, masks)):
            return masks
    return np.arange(size) % 2 == 0, np.arange(size) % 4 < 2


def _masks_for_each_pair(size: int) -> list[np.ndarray]:
    """Masks such that for any two examples one of them keeps the one and exchanges the other.

    Each example is kept in another half of the masks: no half contains another.
    """
    count = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= size)
    halves = list(itertools.islice(itertools.combinations(range(count), count // 2), size))
    secrets.SystemRandom().shuffle(halves)
    return [np.array([number in half for half in halves]) for number in range(count)]


def _is_irregular(mask: np.ndarray) -> bool:
    size = len(mask)
    swapped = mask[: size // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    same = [np.array_equal(np.roll(mask, shift), mask) for shift in range(1, min(size, 64))]
    same += [np.array_equal(mask[::-1], mask), np.array_equal(swapped, mask[: len(swapped)])]
    return not any(same) and size / 3 <= mask.sum() <= 2 * size / 3


def _merge(first: np.ndarray, other: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.where(kept.reshape(-1, *[1] * (first.ndim - 1)), first, other)


def _shape(leaf: Leaf, length: int, examples: int) -> tuple[int, ...]:
    return (examples, *(length if size is None else size for size in leaf.shape))


def _draw(
    leaf: Leaf, kind: _Kind, generator: np.random.Generator, length: int, examples: int
) -> np.ndarray:
    shape = _shape(leaf, length, examples)
    if leaf.dtype == "string":
        return generator.choice(_WORDS, shape)
    if leaf.role == "sample_weight":
        return generator.uniform(0.2, 2.0, shape)
    if not keras.backend.is_float_dtype(leaf.dtype):
        return generator.integers(0, kind.classes if leaf.role == "y" else kind.high, shape)
    if kind.floats == "signed":
        return generator.normal(0.0, 3.0, shape)
    if kind.floats == "whole":
        return generator.integers(0, 2 if leaf.role == "y" else 256, shape).astype("float32")
    return generator.uniform(0.05, 0.95, shape) * (kind.floats != "zeros")


def _extreme(
    leaf: Leaf,
    kind: _Kind,
    generator: np.random.Generator,
    length: int,
    examples: int,
    *,
    is_high: bool,
) -> np.ndarray:
    """The largest and smallest that this kind may hold; signed numbers far outside of it."""
    shape = _shape(leaf, length, examples)
    if leaf.dtype == "string":
        return np.full(shape, _WORDS[-1 if is_high else 0], object)
    if leaf.role == "sample_weight":
        return np.full(shape, 100.0 if is_high else 0.0)
    if not keras.backend.is_float_dtype(leaf.dtype):
        high = kind.classes if leaf.role == "y" else kind.high
        return np.full(shape, max(high - 1, 1) if is_high else 0)
    if kind.floats == "signed":
        return generator.normal(0.0, 1e3, shape) if is_high else np.full(shape, -7.0)
    if kind.floats == "whole":
        return np.full(shape, (1.0 if leaf.role == "y" else 255.0) * is_high)
    return np.full(shape, 0.95 if is_high else 0.05)
