"""Powers, sines and cosines that do not depend on the CPU, as those of libm and numpy do.

Sines and cosines: reduced to [-pi/4, pi/4] with pi/2 in three parts (Cody and Waite, "Software Manual for the
Elementary Functions", 1980), then Taylor series. `native/csrc/trigonometry.h` computes the same bits.
"""

from __future__ import annotations

from decimal import Context, Decimal
from math import factorial

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

# The first two parts have 33 bits, so that multiples of them up to 2^20 are exact.
HALF_PI_PARTS = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
TWO_OVER_PI = 0.636619772367581343076
SINE_TERMS = tuple((-1.0) ** n / factorial(2 * n + 1) for n in range(1, 9))
COSINE_TERMS = tuple((-1.0) ** n / factorial(2 * n) for n in range(1, 9))
_DIGITS = Context(prec=50)


def power(base: float, exponents: list[tuple[int, int]]) -> Doubles:
    """base^(numerator / denominator) for each of `exponents`, rounded once."""
    number = Decimal(base)
    ratios = [_DIGITS.divide(Decimal(numerator), Decimal(denominator)) for numerator, denominator in exponents]
    return np.array([float(_DIGITS.power(number, ratio)) for ratio in ratios])


def sine_cosine(angles: Doubles) -> tuple[Doubles, Doubles]:
    """Sines and cosines of `angles` in radians, to about 1e-16; of a magnitude up to 10^6."""
    turns = np.rint(angles * TWO_OVER_PI)
    rest = angles - turns * HALF_PI_PARTS[0]
    rest = rest - turns * HALF_PI_PARTS[1]
    rest = rest - turns * HALF_PI_PARTS[2]
    square = rest * rest
    sine = rest + rest * square * _series(SINE_TERMS, square)
    cosine = 1.0 + square * _series(COSINE_TERMS, square)
    quarter = turns.astype(np.int64) & 3
    sines = np.where(quarter & 1, cosine, sine)
    cosines = np.where(quarter & 1, sine, cosine)
    return np.where(quarter & 2, -sines, sines), np.where((quarter + 1) & 2, -cosines, cosines)


def _series(terms: tuple[float, ...], x: Doubles) -> Doubles:
    total = np.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        total = total * x + term
    return total
