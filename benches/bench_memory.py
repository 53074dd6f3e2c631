"""How many bytes does a cold key take, all in? Up to how many events is a hot one cheaper exact than merged?

Cold, measured: growth of this process's resident memory while keys come, divided by their number: row, log of
three events with one sum and five windows, index, allocator's slack, for ever more keys, so that the curve
holds the index just after it doubled (the worst) and just before (the best). Keys come in the order that
costs most: each first once, then again, then a third time. Not measured: what the process needs anyway (a
state of some thousand keys was filled and is measured away), and event ids.

Hot, measured: the bytes of one key's row and log, as the state knows them, on average while a steady number
of events is in its window of an hour: with all of them exact, and merged at max_error 1 %, for three arrival
patterns and four layouts. Where the two meet is where `exact_events` is best put, and its default is
(DEFAULT_EXACT_EVENTS in schema/model.py). Deterministic: no time and no allocator in it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.process import answer, resident_bytes, running
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.schema import compile_schema

CHUNK = 1 << 16
HOUR_MS = 3_600_000
LAYOUTS = {
    "count": "[count]",
    "a sum": "[count, sum(a)]",
    "three sums": "[count, sum(a), sum(b), sum(c)]",
    "spread": "[count, mean(a), max(a), stddev(a)]",
}


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


def arrivals(pattern: str, n: int, span_ms: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Times of n events over a span: evenly, at random, or nine of ten in bursts."""
    gap_ms = span_ms / n
    gaps = np.full(n, gap_ms)
    if pattern == "random":
        gaps = rng.exponential(gap_ms, n)
    elif pattern == "bursts":
        gaps = np.where(rng.random(n) < 0.1, 9.1 * gap_ms, 0.1 * gap_ms)
    return workload.START_MS + np.cumsum(gaps).astype(np.int64)


def hot_key_bytes(features: str, n_kept: int, exact_events: int, pattern: str) -> float:
    """Of one key with so many events in its window, on average while its window moves on by two lengths."""
    plan = compile_schema(
        "version: 1\nname: hot\n"
        "events: {e: {time: {field: ts, unit: ms}, lateness: 1s,\n"
        "             fields: {k: key, a: number, b: number, c: number}}}\n"
        f"views: {{v: {{event: e, key: k, windows: [1h], features: {features},\n"
        f"            exact_events: {exact_events}, max_entries: 1048576}}}}\n"
        "services: {s: [v.*]}\n"
    )
    event, rng, n = plan.events[0], np.random.default_rng(1), 3 * n_kept
    times = arrivals(pattern, n, 3 * HOUR_MS, rng)
    values = [rng.exponential(10.0, n) for _ in range(3)]
    state = State(plan, n_shards=1)
    empty, used, step = state.stats()["used_bytes"], [], max(1, n_kept // 24)
    for lo in range(0, n, step):
        hi = min(lo + step, n)
        key = workload.key_texts(np.zeros(hi - lo, np.int64), "k")
        state.observe(EventBatch(event, 0, times[lo:hi], [key, *(each[lo:hi] for each in values)]))
        if lo >= n_kept:
            used.append(state.stats()["used_bytes"] - empty)
    return float(np.mean(used))


@pytest.mark.parametrize("pattern", ["even", "random", "bursts"])
def bench_hot_key_bytes(
    benchmark: BenchmarkFixture,
    size: Callable[[list[int], list[int]], list[int]],
    found: Callable[[str], None],
    pattern: str,
) -> None:
    kept = size([128, 256], [128, 256, 512, 700, 1000, 1400, 2000, 2800, 4000])

    def run() -> dict[str, list[tuple[float, float]]]:
        return {
            layout: [
                (hot_key_bytes(each, n, 2 * n, pattern), hot_key_bytes(each, n, 1, pattern)) for n in kept
            ]
            for layout, each in LAYOUTS.items()
        }

    curves = benchmark.pedantic(run, rounds=1)
    for layout, curve in curves.items():
        points = ", ".join(
            f"{n}: {exact / 1024:.1f} / {merged / 1024:.1f} = {exact / merged:.2f}"
            for n, (exact, merged) in zip(kept, curve, strict=True)
        )
        found(f"{pattern}, {layout}: KB exact / merged by events kept: {points}")
    total = sum(int(exact + merged) for curve in curves.values() for exact, merged in curve)
    found(f"checksum {total:x}")
