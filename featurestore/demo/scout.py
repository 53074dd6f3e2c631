"""Who stands out: each address at the worst moment of its day, against all other addresses at theirs.

Every event has its vector, read at the event's time. For a watched value, an address's peak is its greatest
reading. An address stands out when its peak is beyond what 95 of 100 addresses ever reach; the greatest few
are named, each under the first value that they stand out by. No threshold is written down: what is usual
comes from the same vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore.client import Vectors
from featurestore.demo.logs import Watched

USUAL_SHARE = 0.95


@dataclass(frozen=True)
class Peak:
    address: str
    event: int  # row of the log: the moment of the peak
    value: float


@dataclass(frozen=True)
class Group:
    """Those who stand out by one value, greatest first."""

    watched: Watched
    usual: float  # that 95 of 100 addresses never exceed
    peaks: tuple[Peak, ...]


def groups(
    addresses: Sequence[str], vectors: Vectors, watched: Sequence[Watched], n_each: int
) -> tuple[Group, ...]:
    """`vectors[i]` was read for `addresses[i]` at event i; at most `n_each` addresses for each value."""
    found: list[Group] = []
    named: set[str] = set()
    for one in watched:
        peaks = _peaks(addresses, vectors.values[:, vectors.names.index(one.feature)])
        if not peaks:
            continue
        usual = float(np.quantile([peak.value for peak in peaks], USUAL_SHARE))
        beyond = [peak for peak in peaks if peak.value > usual][:n_each]
        found.append(Group(one, usual, tuple(peak for peak in beyond if peak.address not in named)))
        named.update(peak.address for peak in beyond)
    return tuple(group for group in found if group.peaks)


def _peaks(addresses: Sequence[str], values: NDArray[np.float64]) -> list[Peak]:
    """Each address's greatest value and where it was first reached; the greatest first."""
    best: dict[str, Peak] = {}
    for row, (address, value) in enumerate(zip(addresses, values.tolist(), strict=True)):
        if not math.isnan(value) and (address not in best or value > best[address].value):
            best[address] = Peak(address, row, value)
    return sorted(best.values(), key=lambda peak: (-peak.value, peak.address))
