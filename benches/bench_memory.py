"""How many bytes does a cold key take, all in?

Measured: growth of this process's resident memory while keys come, divided by their number: row, log of
three events with one sum and five windows, index, allocator's slack, for ever more keys, so that the curve
holds the index just after it doubled (the worst) and just before (the best). Keys come in the order that
costs most: each first once, then again, then a third time. Not measured: what the process needs anyway (a
state of some thousand keys was filled and is measured away), and event ids.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.process import answer, resident_bytes, running
from featurestore.core.state import State

CHUNK = 1 << 16


def fill(state: State, lo: int, hi: int) -> None:
    """Keys lo..hi-1, three rounds of one event each."""
    rng = np.random.default_rng(lo)
    for turn in range(3):
        for at in range(lo, hi, CHUNK):
            numbers = np.arange(at, min(at + CHUNK, hi), dtype=np.int64)
            times = np.full(numbers.size, workload.START_MS + turn * 1000, np.int64)
            state.observe(workload.events([numbers], times, rng).batch(state.plan))


def grow(pipe: Connection, steps: list[int]) -> None:
    """Fills a state up to each number of keys; (keys, resident bytes per key, bytes the state knows of)."""

    def run() -> list[tuple[int, float, float]]:
        plan = workload.plan(workload.ONE_ENTITY_SCHEMA)
        fill(State(plan), 0, CHUNK)
        state = State(plan)
        gc.collect()
        before, at, found = resident_bytes(), 0, []
        for n_keys in steps:
            fill(state, at, n_keys)
            at = n_keys
            gc.collect()
            grown = resident_bytes() - before
            found.append((n_keys, grown / n_keys, state.stats()["used_bytes"] / n_keys))
        return found

    answer(pipe, {"run": run})


def bench_cold_key_bytes(
    benchmark: BenchmarkFixture,
    size: Callable[[list[int], list[int]], list[int]],
    found: Callable[[str], None],
) -> None:
    # 64 shards with 12 places a bucket: an index of 2^k buckets each is 27/32 full at 648 * 2^k keys.
    full = 648 * 2**13
    steps = size(
        [20_000, 40_000],
        sorted(
            {
                int(full * share)
                for share in (0.30, 0.48, 0.53, 0.56, 0.65, 0.8, 0.95, 1.03, 1.06, 1.12, 1.3, 1.6, 1.9)
            }
        ),
    )
    with running(grow, steps) as child:
        curve = benchmark.pedantic(child.ask, args=("run",), rounds=1)
    worst = max(curve, key=lambda point: point[1])
    benchmark.extra_info.update(curve=curve, worst_bytes_per_key=worst[1])
    found("keys: resident bytes per key: " + ", ".join(f"{n}: {resident:.1f}" for n, resident, _ in curve))
    found(
        f"worst {worst[1]:.1f} bytes per key at {worst[0]} keys; rows, logs and index alone {worst[2]:.1f}; "
        f"checksum {sum(int(used * n) for n, _, used in curve):x}"
    )
