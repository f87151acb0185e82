"""Owns what a verification says: immutable values and their wording. It computes no statistic."""

import dataclasses

# A claimant may try keys until one fits by luck. 2**80 tries are out of reach; they reach 1e-24,
# and a mark should stand out from that by another factor of a million.
EVIDENCE_LOG10_P = -30.0
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class LayerEvidence:
    """What one weight tensor says.

    Attributes:
        name: The weight's path in the model, for reading only; whoever made the model chose it.
        shape: Its shape, as the layer computes with it: unpacked, where it is quantized.
        weights: How many weights it has.
        index: Which of the key's chip sequences for this shape fits it best, from 0.
        z: Its own correlation with that sequence, in standard deviations; not corrected. Below
            zero for a kernel that fits as its negative.
        used: Whether it is part of the combined figure.
        negated: Whether it is used as its negative.
        not_finite: How many of its weights are NaN or infinite; they were read as 0.
        digest: SHA-256 of the tensor that was read: "dtype|AxBxC|" in ASCII, then its values,
            little-endian and row-major. Quantized kernels, and those with a LoRA adapter, are read
            as the float32 values that the layer computes with.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    index: int
    z: float
    used: bool
    negated: bool = False
    not_finite: int = 0
    digest: str = ""


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
        log10_tests: Decimal logarithm of what p was multiplied by for the search: n tensors that
            are not all zero, times the ways to take the k used from them, times two signs and
            all chip sequences open to each of the k, times what the caller declared to have
            tried besides.
        layers: One `LayerEvidence` per weight tensor that could carry a mark.
        scheme: Name of the derivation.
        key_commitment: 64 hexadecimal digits that bind to the key and do not tell it (HKDF-SHA256
            for this purpose alone). Equal to that of the report, or the signed checkpoint, that
            was registered before the dispute if and only if it is the same key.
        weights_digest: SHA-256 over all weights of the model as they are stored, in its order:
            the tensor digests (as `LayerEvidence.digest`), 32 bytes each, one after the other.
            Take it from the file that you release: with LoRA adapters or in float8, Keras gives
            the weights of a loaded model in another order.
        file_digest: SHA-256 of the file, if a file was read; else None.
    """

    bit_error_rate: float
    bits: int
    z: float
    log10_p: float
    log10_tests: float
    layers: tuple[LayerEvidence, ...]
    scheme: str
    key_commitment: str = ""
    weights_digest: str = ""
    file_digest: str | None = None

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
            f"corrected for {_tests(self.log10_tests)} tests)",
            f"  z               {self.z:.1f}",
            f"  bit error rate  {self.bit_error_rate:.3f} ({wrong} of {self.bits} bits)",
            "  p is the chance that a key drawn at random fits weights made without it this well.",
            f"  key commitment  {self.key_commitment}",
            f"  weights SHA-256 {self.weights_digest}",
        ]
        if self.file_digest is not None:
            lines.append(f"  file SHA-256    {self.file_digest}")
        return "\n".join(lines + [_line(layer) for layer in self.layers])


def _line(layer: LayerEvidence) -> str:
    shape = "x".join(str(n) for n in layer.shape)
    notes = ["used" if layer.used else "not used"]
    if layer.negated:
        notes.append("as its negative")
    if layer.not_finite:
        notes.append(f"{layer.not_finite} not finite, read as 0")
    # A suspect's file chose the name: no escape sequence of it reaches the terminal.
    name = repr(layer.name[:_LONGEST_NAME])[1:-1]
    return f"  {name} ({shape}): z {layer.z:.1f}, {', '.join(notes)}"


def _tests(log10_tests: float) -> str:
    return f"{10**log10_tests:.0f}" if log10_tests < 6 else f"about 1e{int(log10_tests)}"
