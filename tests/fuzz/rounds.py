"""How many damaged inputs a decoder gets, and how many histories a store is compared in: few by default,
FEATURESTORE_FUZZ_ROUNDS=5000 for a real search.

FEATURESTORE_FUZZ_FIRST: the number of the first round, to go on where another search ended.
"""

from __future__ import annotations

import os

FULL = 5000
FIRST = int(os.environ.get("FEATURESTORE_FUZZ_FIRST") or 0)
ROUNDS = int(os.environ.get("FEATURESTORE_FUZZ_ROUNDS") or FULL // 20)


def scaled(n_in_full: int) -> int:
    """What is left of `n_in_full` rounds when 5000 stands for all of them."""
    return max(1, n_in_full * ROUNDS // FULL)
