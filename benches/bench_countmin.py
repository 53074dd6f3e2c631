"""How many updates and queries a second does one core put through a count-min sketch?

Measured: a table of 69 MB at --headline, 5 rows (delta 0.01), windows of 1 minute to 7 days, on 10 M updates
over 1 M keys, Zipf with exponent 1.05, in batches of 4,096; queries are the stream's keys, five windows each,
or one; CPU time of the thread. The rate is how many events a second the stream has: it decides how often a
cell is used again within a slice. `sums` has double counters, and so twice the table. Fingerprints and
batches are made before.

Beside it, in the same rounds, Apache DataSketches' count-min from its Python package, on the same keys (the
first half of the fingerprint) with a table of as many rows and as many bytes. It has no time and no
conservative update, and it takes one key a call, so that its rate has the call from Python in it. Skipped,
and said so, where `datasketches` is not installed.

How near: bench_accuracy.py.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from featurestore.core.countmin import CountminSketch

try:
    from datasketches import count_min_sketch
except ImportError:
    count_min_sketch = None

WINDOWS_MS = [60_000, 600_000, 3_600_000, 86_400_000, 7 * 86_400_000]
START_MS = 1_700_000_000_000
N_BATCH = 4_096
ZIPF_EXPONENT = 1.05
DELTA = 0.01
SKETCH_WORD_BYTES = 8  # DataSketches' counters are doubles


def stream(n: int, n_keys: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The fingerprints of all keys, and which of them each event has."""
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**64, (n_keys, 2), dtype=np.uint64)
    weights = np.cumsum(np.arange(1, n_keys + 1) ** -ZIPF_EXPONENT)
    numbers = np.searchsorted(weights, rng.random(n) * weights[-1])
    return keys, np.minimum(numbers, n_keys - 1)


def in_batches(n: int, call: Callable[[slice], object]) -> float:
    """Calls a second of CPU time, each for a batch; in units of what the batches hold."""
    began = time.thread_time()
    for lo in range(0, n, N_BATCH):
        call(slice(lo, lo + N_BATCH))
    return n / (time.thread_time() - began)


@pytest.mark.parametrize("kind", ["counts", "sums"])
@pytest.mark.parametrize("rate", [100_000, 1_000, 20])
def bench_countmin(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    rate: int,
    kind: str,
) -> None:
    n, n_keys, epsilon = int(size(20_000, 10_000_000)), int(size(2_000, 1_000_000)), size(1e-2, 2.5e-5)
    sums = kind == "sums"
    sketch = CountminSketch(epsilon, DELTA, WINDOWS_MS, sums=sums, cell_bytes=256 if sums else 128)
    keys, numbers = stream(n, n_keys)
    each, times = keys[numbers], START_MS + np.arange(n, dtype=np.int64) * 1_000 // rate
    weights = np.random.default_rng(2).random(n) * 300 if sums else None
    checksum = 0
    theirs, n_theirs = None, int(size(2_000, 300_000))
    if count_min_sketch is not None:
        theirs = count_min_sketch(
            sketch.shape.depth, sketch.shape.bytes // sketch.shape.depth // SKETCH_WORD_BYTES
        )
    their_keys = each[:n_theirs, 0].astype(np.int64).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in ("update", "five", "one", "update2", "query2")}
    n_read = int(size(4_000, 2_000_000))
    n_round = n // 5
    sketch.add(keys, np.full(n_keys, START_MS))  # touches the table

    def once() -> None:
        nonlocal checksum
        done = len(seconds["update"]) * n_round % n
        part = slice(done, done + n_round)
        mine, at, w = each[part], times[part], None if weights is None else weights[part]
        seconds["update"].append(
            in_batches(n_round, lambda s: sketch.add(mine[s], at[s], None if w is None else w[s]))
        )
        now = np.full(N_BATCH, at[-1])

        def read(s: slice, windows_ms: list[int]) -> None:
            nonlocal checksum
            some = mine[s]
            replies = sketch.read(some, now[: len(some)], windows_ms)
            checksum = zlib.crc32(replies[-1:].tobytes(), checksum)

        n_now = min(n_read, n_round)
        seconds["five"].append(
            in_batches(n_now, lambda s: read(slice(s.start, min(s.stop, n_now)), WINDOWS_MS))
        )
        seconds["one"].append(
            in_batches(n_now, lambda s: read(slice(s.start, min(s.stop, n_now)), [86_400_000]))
        )
        if theirs is not None:
            began = time.thread_time()
            for key in their_keys:
                theirs.update(key)
            seconds["update2"].append(n_theirs / (time.thread_time() - began))
            began = time.thread_time()
            for key in their_keys:
                theirs.get_estimate(key)
            seconds["query2"].append(n_theirs / (time.thread_time() - began))

    benchmark.pedantic(once, rounds=int(size(2, 5)))
    ours = {name: median(rates) / 1e6 for name, rates in seconds.items() if rates}
    benchmark.extra_info.update(ours)
    beside = "datasketches is not installed: NOT compared with it"
    if theirs is not None:
        ratios = [
            median(a / b for a, b in zip(seconds[x], seconds[y], strict=True))
            for x, y in (("update", "update2"), ("five", "query2"))
        ]
        beside = (
            f"DataSketches {ours['update2']:.2f} and {ours['query2']:.2f} M/s a call from Python: "
            f"{ratios[0]:.1f} and {ratios[1]:.1f} times as fast"
        )
    found(
        f"update {ours['update']:.2f}, query of 5 windows {ours['five']:.2f}, of one {ours['one']:.2f} M/s "
        f"of one core; {sketch.shape.bytes / 1e6:.0f} MB, {sketch.shape.depth} rows, {rate} events/s; "
        f"{beside}; checksum {checksum:08x}"
    )
