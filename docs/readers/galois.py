"""Arithmetic in GF(2^8) with the polynomial 0x11D, for the reader of parity files."""

EXP = [1]  # the powers of 2
while len(EXP) < 255:
    EXP.append(EXP[-1] << 1 ^ (0x11D if EXP[-1] & 0x80 else 0))
LOG = {value: power for power, value in enumerate(EXP)}


def add(one, other, power):
    """`one` plus `other` times 2 to the power, byte by byte."""
    table = bytes([0, *(EXP[(LOG[value] + power) % 255] for value in range(1, 256))])
    summed = int.from_bytes(one, "big") ^ int.from_bytes(other.translate(table), "big")
    return summed.to_bytes(len(one), "big")


def cauchy_undone(xs, ys, x, y):
    """The logarithm of an element of the inverse of the Cauchy matrix 1 / (x + y).

    Of (x, y) the product of all x + ys and xs + y, over x + y, all x + xs but its own and all
    y + ys but its own.
    """
    above = [LOG[x ^ other] for other in ys] + [LOG[other ^ y] for other in xs]
    below = [LOG[x ^ y]] + [LOG[x ^ o] for o in xs if o != x] + [LOG[y ^ o] for o in ys if o != y]
    return sum(above) - sum(below)
