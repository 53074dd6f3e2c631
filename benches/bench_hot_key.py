"""What does one hot key cost, in time and in memory, and what does that buy?

Measured: events of one key (Poisson arrivals, count and sum, five windows, max_error 1 %), in batches, in
thread CPU time per event; the entries that its log then holds; the time of one read of its ten values with
bounds; the widest bound relative to the value. Not measured: hashing many keys, misses of caches:
bench_observe has those.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from featurestore.core.state import State

BATCH = 4_096
MEAN_GAP_MS = 500.0


def log_entries(state: State, n_shards: int) -> int:
    """Entries of the one log that the state holds; its bytes are described in core/shard.pxd."""
    state.cut()
    records = b"".join(state.copy_shard(shard) for shard in range(n_shards))
    state.copy_end(False)
    n: int = struct.unpack_from("<I", records, 20 + 8 + 4)[0]
    return n


@pytest.mark.parametrize("which", ["ten thousand", "a million"])
def bench_hot_key(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None], which: str
) -> None:
    n_events = size(2_000, 10_000) if which == "ten thousand" else size(8_000, 1_000_000)
    plan = workload.plan(workload.ONE_ENTITY_SCHEMA)
    rng = np.random.default_rng(5)
    numbers = np.zeros(n_events, np.int64)
    # The span is the same, whatever the number: the longest window holds them all.
    gap_ms = MEAN_GAP_MS * 1_000_000 / n_events
    times = workload.START_MS + np.cumsum(rng.exponential(gap_ms, n_events)).astype(np.int64)
    whole = workload.events([numbers], times, rng).batch(plan)
    states: list[State] = []
    seconds: list[float] = []

    def setup() -> tuple[tuple[State, list[object]], dict[str, object]]:
        states.append(State(plan, n_shards=1))
        return (
            states[-1],
            [whole.part(lo, min(lo + BATCH, n_events)) for lo in range(0, n_events, BATCH)],
        ), {}

    def observe(state: State, batches: list[object]) -> None:
        began = time.thread_time()
        for batch in batches:
            state.observe(batch)
        seconds.append(time.thread_time() - began)

    benchmark.pedantic(observe, setup=setup, rounds=size(1, 5))
    state = states[-1]
    keys = {"account": workload.key_texts(np.zeros(100, np.int64), "a")}
    reads = []
    for _ in range(size(3, 30)):
        began = time.thread_time()
        vectors = state.read(0, keys, 100, bounds=True)
        reads.append((time.thread_time() - began) / 100)
    assert all(one.digest() == state.digest() for one in states)
    width = np.nanmax((vectors.upper[0] - vectors.lower[0]) / vectors.values[0])
    entries = log_entries(state, 1)
    benchmark.extra_info.update(entries=entries, read_us=median(reads) * 1e6)
    found(
        f"{n_events} events: {median(seconds) / n_events * 1e9:.0f} ns per event, {entries} entries, "
        f"{median(reads) * 1e6:.1f} us to read five windows, bounds at most {width:.2%} apart, "
        f"checksum {zlib.crc32(vectors.values[0].tobytes()):08x}"
    )
