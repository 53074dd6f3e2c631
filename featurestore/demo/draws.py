"""Random numbers that are the same on every machine, of every numpy.

numpy promises the raw words of PCG64 and the seeding of SeedSequence for good; it promises neither how its
Generator makes distributions of them, nor the last bit of log and exp, which differ between processors. So
only raw words are taken, and what is made of them uses + - * / and sqrt, which IEEE 754 rounds in one way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

LN_2 = 0.6931471805599453
SERIES_TERMS = 14  # of the logarithm: what is left out is below 1e-14


class Draws:
    """One stream of numbers, named by its seed: several whole numbers from 0 on."""

    def __init__(self, *seed: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(seed))

    def units(self, n: int) -> Floats:
        """Uniform in [0, 1), multiples of 2**-53."""
        words: NDArray[np.uint64] = self._words.random_raw(n)
        return unit_of(words)

    def chance(self, n: int, share: float | Floats) -> Mask:
        return self.units(n) < share

    def below(self, n: int, limit: int | Ints) -> Ints:
        """Whole numbers from 0 to limit - 1, uniform."""
        drawn: Ints = np.minimum((self.units(n) * limit).astype(np.int64), np.asarray(limit) - 1)
        return drawn

    def between(self, n: int, least: int, limit: int) -> Ints:
        return least + self.below(n, limit - least)

    def exponential(self, n: int, mean: float) -> Ints:
        """Exponential with that mean, rounded down."""
        return (natural_log(1.0 - self.units(n)) * -mean).astype(np.int64)

    def weighted(self, n: int, ends: Floats) -> Ints:
        """Number i as often as ends[i] - ends[i - 1]; `ends` are sums of weights."""
        return placed(self.units(n), ends)

    def permutation(self, n: int) -> Ints:
        words: NDArray[np.uint64] = self._words.random_raw(n)
        return np.argsort(words, kind="stable")


def unit_of(words: NDArray[np.uint64]) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def placed(units: Floats, ends: Floats) -> Ints:
    """Which of the parts that end at `ends` each unit falls into."""
    place: Ints = np.minimum(np.searchsorted(ends, units * ends[-1], side="right"), ends.size - 1)
    return place


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of numbers (the finalizer of SplitMix64): a draw that a number always gives again."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def natural_log(x: Floats) -> Floats:
    """ln of what is above 0: exponent and mantissa apart, and of the mantissa 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    squared = s * s
    total = np.zeros_like(s)
    for k in range(SERIES_TERMS, -1, -1):
        total = total * squared + 1.0 / (2 * k + 1)
    return total * s * 2.0 + exponent * LN_2
