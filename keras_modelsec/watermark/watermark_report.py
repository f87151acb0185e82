"""Owns what a verification says: immutable values and their wording. It computes no statistic."""

import dataclasses
import math

# A claimant may try keys until one fits by luck. 2**80 tries are out of reach; they reach 1e-24,
# and a mark should stand out from that by another factor of a million.
EVIDENCE_LOG10_P = -30.0


@dataclasses.dataclass(frozen=True)
class LayerEvidence:
    """What one weight tensor says.

    Attributes:
        name: The weight's path in the model, for reading only.
        shape: Its shape.
        weights: How many weights it has.
        index: Which of the key's chip sequences for this shape fits it best, from 0.
        z: Its own correlation with that sequence, in standard deviations; not corrected.
        used: Whether it is part of the combined figure.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    index: int
    z: float
    used: bool


@dataclasses.dataclass(frozen=True)
class WatermarkReport:
    """The evidence that a model carries the mark of a key.

    Attributes:
        bit_error_rate: The share of the message's bits that read wrong: 0 when marked, about 0.5
            when not. A bit that reads exactly zero counts as wrong.
        bits: Number of bits of the message.
        z: Correlation of the used weights with the mark, in standard deviations under a random
            key; not corrected for the search.
        log10_p: Decimal logarithm of an upper bound on the probability that a random key would
            fit weights made without it at least as well, corrected for all `tests`; at most 0.
        tests: How many ways of combining layers and chip sequences were open to the search, times
            what the caller declared to have tried besides.
        layers: One `LayerEvidence` per weight tensor that could carry a mark.
        scheme: Name of the derivation.
    """

    bit_error_rate: float
    bits: int
    z: float
    log10_p: float
    tests: int
    layers: tuple[LayerEvidence, ...]
    scheme: str

    @property
    def is_evidence(self) -> bool:
        """Whether `log10_p` is at most -30, out of reach of somebody who tries keys by luck."""
        return self.log10_p <= EVIDENCE_LOG10_P

    def __str__(self) -> str:
        verdict = (
            "the mark of this key is there"
            if self.is_evidence
            else "no evidence of a mark of this key"
        )
        wrong = round(self.bit_error_rate * self.bits)
        lines = [
            f"Watermark ({self.scheme}): {verdict}",
            f"  log10 p         {self.log10_p:.1f} (evidence at {EVIDENCE_LOG10_P:.0f} or less; "
            f"corrected for {_tests(self.tests)} tests)",
            f"  z               {self.z:.1f}",
            f"  bit error rate  {self.bit_error_rate:.3f} ({wrong} of {self.bits} bits)",
            "  p is the chance that a key drawn at random fits weights made without it this well.",
        ]
        for layer in self.layers:
            shape = "x".join(str(n) for n in layer.shape)
            used = "used" if layer.used else "not used"
            lines.append(f"  {layer.name} ({shape}): z {layer.z:.1f}, {used}")
        return "\n".join(lines)


def _tests(tests: int) -> str:
    return str(tests) if tests < 10**6 else f"about 1e{int(math.log10(tests))}"
