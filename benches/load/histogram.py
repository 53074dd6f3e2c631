"""Reads the histograms that the generator fills: percentiles, each at most 0.8 % above the true one.

histogram.pxd says which bucket a time falls in. A percentile is the upper end of the bucket that holds it, so
it is never less than the truth.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SUB_BITS = 7


def upper_ends(n_buckets: int) -> NDArray[np.uint64]:
    """The greatest value, in ns, that each bucket counts."""
    index = np.arange(n_buckets, dtype=np.uint64)
    shift = np.maximum(index >> np.uint64(SUB_BITS), np.uint64(1)) - np.uint64(1)
    low = (index - (shift << np.uint64(SUB_BITS))) << shift
    return low + (np.uint64(1) << shift) - np.uint64(1)


def percentile_ns(counts: NDArray[np.uint64], share: float) -> int:
    """The least value that at least `share` of all are no greater than; 0 where nothing was counted."""
    total = int(counts.sum())
    if not total:
        return 0
    rank = max(1, math.ceil(share * total - 1e-9))
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    return int(upper_ends(counts.size)[bucket])


def summary_us(counts: NDArray[np.uint64], max_ns: int, sum_ns: int) -> dict[str, float]:
    """Percentiles in microseconds, with the exact maximum and mean; all 0 where nothing was counted."""
    total = int(counts.sum())
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
    found = {name: min(percentile_ns(counts, share), max_ns) / 1e3 for name, share in shares.items()}
    return found | {"max": max_ns / 1e3, "mean": sum_ns / total / 1e3 if total else 0.0}
