"""The distinct counter, written to be obviously right: every event is kept, and a window is a comprehension.

What it shares with featurestore/core/distinct.pyx is the hash and the meaning of its bits; the estimate is
found by bisection and the standard error by a plain sum over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

BITS = 40
DAY_MS = 86_400_000
Cell = tuple[int, int]


def cell(hash_: int, log2_registers: int) -> Cell:
    """(register, rank) of a 64-bit hash: its first bits, and the zeros before the first one of the next."""
    text = f"{hash_:064b}"[:BITS]
    rest = text[log2_registers:]
    return int(text[:log2_registers], 2), len(rest) - len(rest.lstrip("0"))


def probabilities(log2_registers: int) -> list[float]:
    last = BITS - log2_registers
    return [2.0 ** -(rank + 1) for rank in range(last)] + [2.0**-last]


def likeliest(counts: list[int], log2_registers: int) -> float:
    """The number of values under which so many occupied cells of each rank are likeliest."""
    if not any(counts):
        return 0.0
    m, shares = 2.0**log2_registers, probabilities(log2_registers)

    def falls(n: float) -> bool:
        """Whether the likelihood falls with more than n values."""
        gain = 0.0
        for count, share in zip(counts, shares, strict=True):
            x = n * share / m
            gain += count * (1.0 if x == 0 else x / -math.expm1(-x))
        return gain < n

    lo, hi = math.log(0.5), math.log(1e13)
    for _ in range(200):
        mid = (lo + hi) / 2
        lo, hi = (lo, mid) if falls(math.exp(mid)) else (mid, hi)
    return math.exp(lo)


def standard_error(n: float, log2_registers: int) -> float:
    """Of `likeliest`, relative: the inverse of Fisher's information, less n's own variance."""
    m = 2.0**log2_registers
    information = 0.0
    for share in probabilities(log2_registers):
        x = n * share / m
        information += m * x * x * math.exp(-x) / -math.expm1(-x)
    return math.sqrt(max(0.0, 1 / information - 1 / n))


@dataclass
class Naive:
    keep_ms: int
    exact_values: int
    log2_registers: int
    confidence: float = 0.95
    now_ms: int = -(1 << 48)
    estimated: bool = False
    sightings: dict[int, list[int]] = field(default_factory=dict)

    @property
    def horizon_ms(self) -> int:
        return self.now_ms - self.keep_ms

    @property
    def tick_bits(self) -> int:
        bits = 0
        while ((self.keep_ms + DAY_MS) >> bits) + 2 >= 1 << 31:
            bits += 1
        return bits

    def advance(self, now_ms: int) -> None:
        self.now_ms = max(self.now_ms, now_ms)

    def add(self, hash_: int, t: int) -> bool:
        """False when it is late."""
        self.advance(t)
        if t < self.horizon_ms:
            return False
        if self.expired():
            self.estimated = False
        self.sightings.setdefault(hash_, []).append(t)
        if len(self.kept()) > self.exact_values:
            self.estimated = True
        return True

    def kept(self) -> dict[int, int]:
        """Fingerprint → last seen, of what the horizon has not passed."""
        last: dict[int, int] = {}
        for hash_, times in self.sightings.items():
            if max(times) >= self.horizon_ms:
                fingerprint = hash_ >> 64 - BITS
                last[fingerprint] = max(last.get(fingerprint, times[0]), *times)
        return last

    def expired(self) -> bool:
        return not self.kept()

    def truth(self, at: int, window: int) -> int:
        """How many were seen in the window, of what counts at all."""
        lo = max(at - window, self.horizon_ms - 1)
        return len(
            {
                hash_ >> 64 - BITS
                for hash_, times in self.sightings.items()
                if any(lo < t <= at for t in times)
            }
        )

    def read(self, at: int, window: int) -> tuple[float, float, float, bool]:
        lo = max(at - window, self.horizon_ms - 1)
        if lo >= at:
            return 0.0, 0.0, 0.0, True
        if not self.estimated:
            sure = sum(lo < t <= at for t in self.kept().values())
            later = [t for t in self.kept().values() if t > at]
            return sure + sum((at - lo) / (t - lo) for t in later), sure, sure + len(later), True
        bits = self.tick_bits
        last: dict[Cell, int] = {}
        for hash_, times in self.sightings.items():
            place = cell(hash_, self.log2_registers)
            last[place] = max(last.get(place, times[0]), *times)
        past = at < max(last.values())
        sure_cells = self._by_rank(
            last, lambda t: t >> bits > lo >> bits and not (past and t >> bits >= (at + 1) >> bits)
        )
        all_cells = self._by_rank(last, lambda t: t >> bits >= (lo + 1) >> bits)
        if not any(all_cells):
            return 0.0, 0.0, 0.0, True
        z = 1.03 * NormalDist().inv_cdf((1 + self.confidence) / 2)
        least, most = (likeliest(counts, self.log2_registers) for counts in (sure_cells, all_cells))
        lower = 0.0
        if least:
            lower = max(
                sum(sure_cells), math.floor(least * (1 - z * standard_error(least, self.log2_registers)))
            )
        upper = math.ceil(most / (1 - z * standard_error(most, self.log2_registers)))
        share = (at - lo) / (max(last.values()) - lo) if past else 0.5
        return least + (most - least) * share, lower, upper, False

    def _by_rank(self, last: dict[Cell, int], counts: Callable[[int], bool]) -> list[int]:
        found = [0] * (BITS - self.log2_registers + 1)
        for (_, rank), t in last.items():
            found[rank] += counts(t)
        return found
