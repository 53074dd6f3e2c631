"""How often the crash tests go round: a twentieth by default, in full with FEATURESTORE_CRASH_ROUNDS=200."""

from __future__ import annotations

import os

FULL = 200
ROUNDS = int(os.environ.get("FEATURESTORE_CRASH_ROUNDS") or FULL // 20)


def scaled(n_in_full: int) -> int:
    """What is left of `n_in_full` rounds or cuts when 200 stands for all of them."""
    return max(1, n_in_full * ROUNDS // FULL)
