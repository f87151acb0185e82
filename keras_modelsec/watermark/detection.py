"""Owns the statistic: plain NumPy weights and a key in, a report out. It knows no Keras.

The null hypothesis is that the weights were made without the key. Then, whatever the weights are
(trained, pruned, all zero, chosen by an adversary), the chips are independent fair signs, so with
a_i computed from the weights alone

    z = sum(e_i * a_i) / sqrt(sum(a_i ** 2))        satisfies        P(z >= t) <= exp(-t**2 / 2)

(Hoeffding's inequality; a_i adds up where several tensors share a chip sequence.) The search over
which tensors count, which chip sequence each carries and with which sign is paid for by a weighted
Bonferroni inequality. Of n tensors that are not all zero, a reading of k, where tensor i has J_i
sequences open to it, is charged

    n * C(n, k) * prod(2 * J_i)     and     p = min over readings of charge * exp(-z**2 / 2)

The reciprocals of the charges of all readings add up to 1 (1/n for each k), so P(p <= a) <= a.
A tensor that is not used costs no more than its place in n and C(n, k): tensors that somebody adds
to a marked model cannot starve it. The sum runs over every reading there is, so it does not matter
which of them are looked at, nor that the order in which they are looked at depends on the key.
"""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark import derivation
from keras_modelsec.watermark.derivation import BITS
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.watermark_report import LayerEvidence, WatermarkReport

# In units of a robust scale; keeps one planted giant weight from drowning all others.
_CLIP = 3.0
# Median of |x| for a standard normal x.
_MEDIAN_TO_SIGMA = 0.6745
# In the same units; what is smaller reads as 0. Squares of what is left, differences of copies
# included, stay far from the denormal numbers, in which an energy would be rounded to nothing.
_NEGLIGIBLE = 1e-100
# Signs that are held at once while many tensors of one shape are compared with many sequences.
_SIGNS_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """One tensor with one chip sequence and a sign, of `sequences` open to it.

    `dot` is sum(e * a), `energy` is sum(a * a); `sign` is -1 for a kernel read as its negative.
    """

    position: int
    index: int
    sign: int
    dot: float
    energy: float
    sequences: int

    @property
    def z(self) -> float:
        return self.dot / math.sqrt(self.energy) if self.energy > 0 else 0.0


def normalise(weights: np.ndarray, name: str = "weights") -> np.ndarray:
    """The weights in units of their robust scale, flat, clipped to +-3; a function of them alone.

    The scale is the median magnitude of the weights that are not zero, so that neither pruning nor
    a few planted giants change it much. Weights below 1e-100 of it, which only float64 can hold,
    read as 0.

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
        clipped = np.clip(flat / scale, -_CLIP, _CLIP)
    return np.where(np.abs(clipped) < _NEGLIGIBLE, 0.0, clipped)


def finite_part(weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The weights with zeros in place of what is not finite, and how many those were.

    NaN planted in one kernel must not hide the mark in the others.
    """
    values = np.asarray(weights)
    planted = ~np.isfinite(values.astype(np.float64))
    return (np.where(planted, 0, values) if planted.any() else values), int(planted.sum())


def detect(
    weights: Sequence[np.ndarray],
    secret: SecretKey,
    *,
    names: Sequence[str] | None = None,
    allowed: Collection[int] | None = None,
    indices: int | None = None,
    tried: int = 1,
    weights_digest: str = "",
    file_digest: str | None = None,
) -> WatermarkReport:
    """Reads the mark of a key from weights.

    Args:
        weights: The tensors that could carry a mark, all of them. What is not finite reads as 0.
        secret: The key.
        names: One name per tensor, for the report.
        allowed: Positions in `weights` that may count; None for all. The correction does not
            become smaller, so choosing them after a look at the result gains nothing.
        indices: How many chip sequences to try per shape; None for as many as there are tensors
            of the shape.
        tried: How many other keys, models or alignments were tried; p is multiplied by it.
        weights_digest: Digest of the model's weights, for the report.
        file_digest: Digest of the file they are from, for the report.

    Returns:
        A `WatermarkReport`.
    """
    names = list(names) if names is not None else [f"weights[{i}]" for i in range(len(weights))]
    finite = [finite_part(w) for w in weights]
    values = [normalise(w, name) for (w, _), name in zip(finite, names, strict=True)]
    shapes = [tuple(np.shape(w)) for w in weights]
    allowed = set(range(len(weights)) if allowed is None else allowed)
    sequences = [indices or shapes.count(shape) for shape in shapes]

    fits = _best_fits(values, shapes, sequences, secret)
    readable = [fit for fit in fits if fit.energy > 0]
    candidates = [fit for fit in readable if fit.position in allowed]
    chosen = _best_subset(candidates, values, shapes, len(readable))
    z, bit_sums = _combine(chosen, values, shapes, secret)
    charge = log10_charge(len(readable), [c.sequences for c in chosen], tried)
    if log10_bound(z, charge) == 0:  # nothing found: say what the layers in their own order give
        chosen = _in_order(candidates, shapes)
        z, bit_sums = _combine(chosen, values, shapes, secret)
        charge = log10_charge(len(readable), [c.sequences for c in chosen], tried)
    used = {candidate.position: candidate.sign for candidate in chosen}
    return WatermarkReport(
        bit_error_rate=float(np.mean(bit_sums <= 0)),
        bits=BITS,
        z=z,
        log10_p=log10_bound(z, charge),
        log10_tests=charge,
        layers=tuple(
            LayerEvidence(
                name=names[fit.position],
                shape=shapes[fit.position],
                weights=math.prod(shapes[fit.position]),
                index=fit.index,
                z=fit.sign * fit.z,
                used=fit.position in used,
                negated=used.get(fit.position, 1) < 0,
                not_finite=finite[fit.position][1],
                digest=tensor_digest(weights[fit.position]),
            )
            for fit in fits
        ),
        scheme=derivation.SCHEME,
        key_commitment=secret.commitment,
        weights_digest=weights_digest,
        file_digest=file_digest,
    )


def tensor_digest(tensor: np.ndarray) -> str:
    """SHA-256 of a tensor: "dtype|AxBxC|" in ASCII, then its values, little-endian, row-major."""
    values = np.asarray(tensor)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    header = f"{values.dtype.name}|{'x'.join(str(n) for n in values.shape)}|"
    digest = hashlib.sha256(header.encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def log10_bound(z: float, log10_tests: float) -> float:
    """Decimal logarithm of `min(1, tests * exp(-z**2 / 2))`; 0 for z <= 0."""
    if z <= 0:
        return 0.0
    return min(0.0, -(z**2) / 2 / math.log(10) + log10_tests)


def log10_charge(readable: int, sequences: Sequence[int], tried: int = 1) -> float:
    """Decimal logarithm of `tried * n * C(n, k) * prod(2 * J_i)`, the price of one reading.

    Args:
        readable: n, the number of tensors that are not all zero.
        sequences: J_i for each of the k tensors used.
        tried: What the caller tried besides.
    """
    if not sequences:
        return math.log10(tried)
    ways = readable * math.comb(readable, len(sequences)) * math.prod(2 * j for j in sequences)
    return math.log10(tried * ways)


def _best_fits(
    values: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    sequences: Sequence[int],
    secret: SecretKey,
) -> list[_Candidate]:
    """For each tensor the chip sequence, and the sign, that it fits best."""
    fits: dict[int, _Candidate] = {}
    for shape in dict.fromkeys(shapes):
        positions = [i for i, other in enumerate(shapes) if other == shape]
        live = [i for i in positions if values[i].any()]
        best = dict(zip(live, _best_indices(live, values, shape, sequences, secret), strict=True))
        for position in positions:
            value, index = values[position], best.get(position, 0)
            dot = float(derivation.signs(secret, shape, index) @ value) if position in best else 0.0
            fits[position] = _Candidate(
                position,
                index,
                -1 if dot < 0 else 1,
                abs(dot),
                float(value @ value),
                sequences[position],
            )
    return [fits[position] for position in range(len(values))]


def _best_indices(
    live: Sequence[int],
    values: Sequence[np.ndarray],
    shape: tuple[int, ...],
    sequences: Sequence[int],
    secret: SecretKey,
) -> list[int]:
    """The best of the sequences for each of some tensors of one shape; each is derived once."""
    count = sequences[live[0]] if live else 0
    if count <= 1:
        return [0] * len(live)
    rows = np.stack([values[i] for i in live]).astype(np.float32)  # (tensors, weights)
    step = max(1, _SIGNS_AT_ONCE // rows.shape[1])
    best, indices = np.full(len(live), -1.0), np.zeros(len(live), int)
    for first in range(0, count, step):
        some = range(first, min(first + step, count))
        signs = np.stack([derivation.signs(secret, shape, i) for i in some], axis=1)
        fit = np.abs(rows @ signs.astype(np.float32))  # (tensors, sequences)
        here = fit.max(axis=1)
        indices = np.where(here > best, first + fit.argmax(axis=1), indices)
        best = np.maximum(here, best)
    return [int(index) for index in indices]


def _best_subset(
    candidates: Sequence[_Candidate],
    values: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    readable: int,
) -> list[_Candidate]:
    """The tensors whose reading has the smallest price times bound, of those that are looked at.

    Looked at are the prefixes of three orders: by evidence, which many small tensors that fit by
    luck cannot crowd; the same with the best of each chip sequence first, then the seconds, since
    copies add nothing to one another and would stand before the next kernel; and by mean
    correlation, which gives the largest z where all are marked.
    """
    by_evidence = sorted(
        candidates, key=lambda c: c.z**2 / 2 - math.log(2 * c.sequences), reverse=True
    )
    orders = [
        by_evidence,
        _best_of_each_first(by_evidence, shapes),
        sorted(candidates, key=lambda c: c.dot / c.energy, reverse=True),
    ]
    best, chosen = math.inf, []
    for order in orders:
        prices = _prefix_prices(order, readable)
        for count, (z, price) in enumerate(
            zip(_prefix_z(order, values, shapes), prices, strict=True), 1
        ):
            log10_p = price - z**2 / 2 / math.log(10)
            if log10_p < best:
                best, chosen = log10_p, order[:count]
    return chosen


def _best_of_each_first(
    order: Sequence[_Candidate], shapes: Sequence[tuple[int, ...]]
) -> list[_Candidate]:
    """The first of each chip sequence in their order, then the second of each, and so on."""
    seen: collections.Counter[tuple[tuple[int, ...], int]] = collections.Counter()
    ranks = []
    for candidate in order:
        carrier = (shapes[candidate.position], candidate.index)
        ranks.append(seen[carrier])
        seen[carrier] += 1
    return [order[i] for i in sorted(range(len(order)), key=ranks.__getitem__)]


def _prefix_prices(order: Sequence[_Candidate], readable: int) -> Iterator[float]:
    """`log10_charge` of each prefix, to the precision of a float."""
    price = math.log10(max(readable, 1))
    for count, candidate in enumerate(order, 1):
        price += math.log10((readable - count + 1) / count * 2 * candidate.sequences)
        yield price


def _prefix_z(
    order: Sequence[_Candidate], values: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
) -> Iterator[float]:
    """The z of each prefix, to choose by: where tensors cancel, rounding may spoil it."""
    dot = energy = 0.0
    totals: dict[tuple[tuple[int, ...], int], Any] = {}
    for candidate in order:
        carrier = (shapes[candidate.position], candidate.index)
        value = values[candidate.position]
        value = value if candidate.sign > 0 else -value
        total = totals.get(carrier)
        energy += candidate.energy + (0.0 if total is None else 2 * float(total @ value))
        totals[carrier] = value if total is None else total + value
        dot += candidate.dot
        yield dot / math.sqrt(energy) if energy > 0 else 0.0


def _in_order(
    candidates: Sequence[_Candidate], shapes: Sequence[tuple[int, ...]]
) -> list[_Candidate]:
    seen: dict[tuple[int, ...], int] = {}
    chosen = []
    for candidate in sorted(candidates, key=lambda c: c.position):
        shape = shapes[candidate.position]
        index = min(seen.get(shape, 0), candidate.sequences - 1)
        seen[shape] = index + 1
        chosen.append(dataclasses.replace(candidate, index=index, sign=1))
    return chosen


def _combine(
    chosen: Sequence[_Candidate],
    values: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    secret: SecretKey,
) -> tuple[float, np.ndarray]:
    """The exact z of a choice, and the sum that each bit reads.

    Tensors of one sequence are added in the order of the model, so that not even their rounding
    depends on the key.
    """
    totals: dict[tuple[tuple[int, ...], int], np.ndarray] = {}
    for candidate in sorted(chosen, key=lambda c: c.position):
        carrier = (shapes[candidate.position], candidate.index)
        value = candidate.sign * values[candidate.position]
        totals[carrier] = totals.get(carrier, 0.0) + value
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
