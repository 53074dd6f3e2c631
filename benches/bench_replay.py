"""What does a replay pay for inputs whose rows alternate, against the same inputs one behind the other?

Two event types, a view of each with count, sum and maximum over three windows, one service that reads both, a
row written for every event. `in turn`: each row is of another type than the one before it, so that the engine
can take none together. `arrivals`: in turn, and each came at a time of its own.

Measured: replay() of Arrow tables in memory to one, in CPU time of the process, with one thread of the
engine; keys of 10,000 users, uniform. Interleaved; the median of the ratios of neighbouring rounds counts.
Not measured: reading files, writing one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np
import pyarrow as pa
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from featurestore.training import replay

N_USERS = 10_000
TYPES = ("login", "play")
SCHEMA = "\n".join(
    ["version: 1", "name: alternating", "events:"]
    + [
        f"  {name}: {{time: {{field: ts, unit: ms}}, fields: {{user: key, seconds: number}}}}"
        for name in TYPES
    ]
    + ["views:"]
    + [
        f"  {name}s: {{event: {name}, key: user, windows: [1m, 1h, 1d], "
        "features: [count, sum(seconds), max(seconds)]}"
        for name in TYPES
    ]
    + ["services:", "  all: [logins.*, plays.*]"]
)


def inputs(n_events: int, run: int) -> dict[str, pa.Table]:
    """Events of the types in turn, `run` of one at a time."""
    rng = np.random.default_rng(1)
    which = np.arange(n_events) // run % len(TYPES)
    users = pa.array([f"u{i}" for i in range(N_USERS)])
    table = pa.table(
        {
            "ts": workload.START_MS + 10 * np.arange(n_events),
            "user": users.take(pa.array(rng.integers(0, N_USERS, n_events))),
            "seconds": rng.random(n_events),
        }
    )
    return {name: table.filter(pa.array(which == i)) for i, name in enumerate(TYPES)}


@pytest.mark.parametrize("kind", ["in turn", "arrivals"])
def bench_replay(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None], kind: str
) -> None:
    n_events = size(4_000, 1_000_000)
    plan = workload.plan(SCHEMA)
    apart, alternating = inputs(n_events, n_events // len(TYPES)), inputs(n_events, 1)
    seconds: dict[str, list[float]] = {"apart": [], kind: []}
    sums: set[int] = set()

    def timed(name: str, tables: dict[str, pa.Table], arrival: str | None) -> None:
        began = time.process_time()
        table = replay(tables, plan, "all", emit=TYPES, arrival=arrival)
        seconds[name].append(time.process_time() - began)
        values = table.drop_columns(["event", "outcome"]).combine_chunks()
        sums.add(zlib.crc32(b"".join(np.ascontiguousarray(column.to_numpy()) for column in values.columns)))

    def turn() -> None:
        timed("apart", apart, None)
        timed(kind, alternating, "ts:ms" if kind == "arrivals" else None)

    benchmark.pedantic(turn, rounds=size(1, 7), warmup_rounds=size(0, 1))
    assert len(sums) == 2  # the same each round
    ratio = median(a / b for a, b in zip(seconds[kind], seconds["apart"], strict=True))
    benchmark.extra_info.update(times_apart=ratio, events_per_s=n_events / median(seconds[kind]))
    found(
        f"{n_events / median(seconds[kind]):,.0f} events/s {kind}, "
        f"{n_events / median(seconds['apart']):,.0f} one behind the other: {ratio:.2f} times the time; "
        "checksum " + ", ".join(f"{one:08x}" for one in sorted(sums))
    )
