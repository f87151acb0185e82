"""Owns the statistic: plain NumPy weights and a key in, a report out. It knows no Keras.

The null hypothesis is that the weights were made without the key. Then, whatever the weights are
(trained, pruned, all zero, chosen by an adversary), the chips are independent fair signs, so with
a_i computed from the weights alone

    z = sum(e_i * a_i) / sqrt(sum(a_i ** 2))        satisfies        P(z >= t) <= exp(-t**2 / 2)

(Hoeffding's inequality; a_i adds up where several tensors share a chip sequence.) The search over
which tensors count and which chip sequence each carries is paid for by Bonferroni's inequality:
p is multiplied by the number of all combinations, of which the reported one is the best.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

from keras_modelsec.watermark import derivation
from keras_modelsec.watermark.derivation import BITS
from keras_modelsec.watermark.errors import WatermarkError
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.watermark_report import LayerEvidence, WatermarkReport

# In units of a robust scale; keeps one planted giant weight from drowning all others.
_CLIP = 3.0
# Median of |x| for a standard normal x.
_MEDIAN_TO_SIGMA = 0.6745


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """One tensor with one chip sequence: `dot` is sum(e*a), `energy` is sum(a*a)."""

    position: int
    index: int
    dot: float
    energy: float

    @property
    def z(self) -> float:
        return self.dot / math.sqrt(self.energy) if self.energy > 0 else 0.0


def normalise(weights: np.ndarray, name: str = "weights") -> np.ndarray:
    """The weights in units of their robust scale, flat, clipped to +-3; a function of them alone.

    The scale is the median magnitude of the weights that are not zero, so that neither pruning nor
    a few planted giants change it much.

    Raises:
        WatermarkError: If a weight is NaN or infinite.
    """
    flat = np.asarray(weights).astype(np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise WatermarkError(
            f"Weights must be finite to be verified. Received: NaN or infinity in {name!r}. Verify "
            "a checkpoint from before the training diverged."
        )
    magnitudes = np.abs(flat[flat != 0])
    if magnitudes.size == 0:
        return flat
    scale = float(np.median(magnitudes)) / _MEDIAN_TO_SIGMA
    with np.errstate(over="ignore"):  # a giant becomes infinite here and is clipped like others
        return np.clip(flat / scale, -_CLIP, _CLIP)


def detect(
    weights: Sequence[np.ndarray],
    secret: SecretKey,
    *,
    names: Sequence[str] | None = None,
    allowed: Collection[int] | None = None,
    indices: int | None = None,
    tried: int = 1,
) -> WatermarkReport:
    """Reads the mark of a key from weights.

    Args:
        weights: The tensors that could carry a mark, all of them; finite numbers.
        secret: The key.
        names: One name per tensor, for the report.
        allowed: Positions in `weights` that may count; None for all. The correction does not
            become smaller, so choosing them after a look at the result gains nothing.
        indices: How many chip sequences to try per shape; None for as many as there are tensors
            of the shape.
        tried: How many other keys, models or alignments were tried; p is multiplied by it.

    Returns:
        A `WatermarkReport`.
    """
    names = list(names) if names is not None else [f"weights[{i}]" for i in range(len(weights))]
    values = [normalise(w, name) for w, name in zip(weights, names, strict=True)]
    shapes = [tuple(np.shape(w)) for w in weights]
    allowed = set(range(len(weights)) if allowed is None else allowed)
    open_indices = {shape: indices or shapes.count(shape) for shape in shapes}
    tests = tried * max(1, math.prod(open_indices[shape] + 1 for shape in shapes) - 1)

    fits = [
        _best_fit(position, value, shape, open_indices[shape], secret)
        for position, (value, shape) in enumerate(zip(values, shapes, strict=True))
    ]
    chosen = _best_subset([fit for fit in fits if fit.position in allowed])
    z, bit_sums = _combine(chosen, values, shapes, secret)
    if log10_bound(z, tests) == 0:  # nothing found: say what the layers in their own order give
        chosen = _in_order(allowed, shapes, open_indices)
        z, bit_sums = _combine(chosen, values, shapes, secret)
    used = {candidate.position for candidate in chosen}
    return WatermarkReport(
        bit_error_rate=float(np.mean(bit_sums <= 0)),
        bits=BITS,
        z=z,
        log10_p=log10_bound(z, tests),
        tests=tests,
        layers=tuple(
            LayerEvidence(name, shape, math.prod(shape), fit.index, fit.z, fit.position in used)
            for name, shape, fit in zip(names, shapes, fits, strict=True)
        ),
        scheme=derivation.SCHEME,
    )


def log10_bound(z: float, tests: int) -> float:
    """Decimal logarithm of `min(1, tests * exp(-z**2 / 2))`; 0 for z <= 0."""
    if z <= 0:
        return 0.0
    return min(0.0, -(z**2) / 2 / math.log(10) + math.log10(tests))


def _best_fit(
    position: int, value: np.ndarray, shape: tuple[int, ...], count: int, secret: SecretKey
) -> _Candidate:
    energy = float(value @ value)
    dots = [float(derivation.signs(secret, shape, index) @ value) for index in range(count)]
    index = int(np.argmax(dots))
    return _Candidate(position, index, dots[index], energy)


def _best_subset(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The tensors that together give the largest z: the best prefix by mean correlation."""
    ranked = sorted(
        (c for c in candidates if c.energy > 0), key=lambda c: c.dot / c.energy, reverse=True
    )
    if not ranked:
        return []
    dots = np.cumsum([c.dot for c in ranked])
    energies = np.cumsum([c.energy for c in ranked])
    return ranked[: int(np.argmax(dots / np.sqrt(energies))) + 1]


def _in_order(
    allowed: Collection[int], shapes: Sequence[tuple[int, ...]], open_indices: dict
) -> list[_Candidate]:
    seen: dict[tuple[int, ...], int] = {}
    chosen = []
    for position, shape in enumerate(shapes):
        index = min(seen.get(shape, 0), open_indices[shape] - 1)
        seen[shape] = index + 1
        if position in allowed:
            chosen.append(_Candidate(position, index, 0.0, 0.0))
    return chosen


def _combine(
    chosen: Sequence[_Candidate],
    values: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    secret: SecretKey,
) -> tuple[float, np.ndarray]:
    """The exact z of a choice, and the sum that each bit reads."""
    totals: dict[tuple[tuple[int, ...], int], np.ndarray] = {}
    for candidate in chosen:
        carrier = (shapes[candidate.position], candidate.index)
        totals[carrier] = totals.get(carrier, 0.0) + values[candidate.position]
    energy = sum(float(total @ total) for total in totals.values())
    bit_sums = np.zeros(BITS)
    for (shape, index), total in totals.items():
        products = derivation.signs(secret, shape, index) * total
        runs = products.reshape(-1, derivation.run_length(shape)).sum(axis=1)
        rows = -(-runs.size // BITS)
        padded = np.pad(runs, (0, rows * BITS - runs.size))
        bit_sums += padded.reshape(rows, BITS).sum(axis=0)
    z = float(bit_sums.sum() / math.sqrt(energy)) if energy > 0 else 0.0
    return z, bit_sums
