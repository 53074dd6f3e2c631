"""How many events a second does a store take into a view with `store: sketch`, and how many vectors are read?

Pairs of account and track, which are too many for rows: 2 M accounts times 2 M tracks at --headline, each of
them drawn by Zipf 0.99, so that most pairs are new and some are hot. Five windows, epsilon and delta as they
are by default: 64 shards of five rows each, 111 MB for counts and twice that for sums.

Measured: Engine.observe, in batches, with the journal written (durability `process`), and Engine.read of the
same pairs with bounds, all windows of each. `count`, `sum`, and `both`: one view with one or both, each of
which has a sketch of its own. CPU time of the thread, the batches made before. Not measured: decoding,
network, waiting for a disk, checkpoints. bench_countmin.py has the sketch alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

FEATURES = {"count": "count", "sum": "sum(seconds)", "both": "count, sum(seconds)"}


def schema(what: str, epsilon: float) -> str:
    return f"""
version: 1
name: pairs
events:
  play:
    time: {{field: ts, unit: ms}}
    fields: {{account: key, track: key, seconds: number}}
views:
  pair:
    event: play
    key: [account, track]
    store: sketch
    epsilon: {epsilon}
    windows: {workload.WINDOWS}
    features: [{FEATURES[what]}]
services:
  all: [pair.*]
"""


@pytest.mark.parametrize("what", list(FEATURES))
def bench_frequency(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    tmp_path: Path,
    what: str,
) -> None:
    n_keys, n_events, n_batch = int(size(500, 2_000_000)), int(size(4_000, 1 << 20)), int(size(1_000, 65_536))
    n_read, rounds = int(size(400, 4_096)), int(size(2, 5))
    zipf = workload.Zipf(n_keys)
    rng = np.random.default_rng(5)
    updates: list[float] = []
    reads: list[float] = []
    n_values = 0
    with Engine.open(
        tmp_path / "store", schema=schema(what, size(0.02, 0.001)), clock="event", durability="process"
    ) as engine:
        event = engine.state.plan.events[0]
        # Touches the table: memory of a virtual machine is given at its first touch.
        n_warm = int(size(0, 4))

        def setup() -> tuple[tuple[list[EventBatch], list[dict[str, TextColumn]]], dict[str, object]]:
            times = workload.START_MS + (engine.state.position + np.arange(n_events, dtype=np.int64)) // 2
            drawn = {part: zipf.draw(rng, n_events) for part in ("account", "track")}
            columns = [workload.key_texts(numbers, part[0]) for part, numbers in drawn.items()]
            seconds = rng.integers(1, 300, n_events).astype(np.float64)
            whole = EventBatch(event, 0, times, [*columns, seconds])
            batches = [whole.part(lo, min(lo + n_batch, n_events)) for lo in range(0, n_events, n_batch)]
            asked = [
                {part: workload.key_texts(of[lo : lo + n_read], part[0]) for part, of in drawn.items()}
                for lo in range(0, n_events, n_batch)
            ]
            return (batches, asked), {}

        def turn(batches: list[EventBatch], asked: list[dict[str, TextColumn]]) -> None:
            nonlocal n_values
            began = time.thread_time()
            for batch in batches:
                engine.observe(batch, wait=False)
            updates.append(n_events / (time.thread_time() - began))
            assert not any(batch.outcomes.any() for batch in batches)
            began = time.thread_time()
            for parts in asked:
                vectors = engine.read(0, parts, n_read, bounds=True)
                n_values += np.count_nonzero(vectors.values > 0)
            reads.append(n_read * len(asked) / (time.thread_time() - began))

        benchmark.pedantic(turn, setup=setup, warmup_rounds=n_warm, rounds=rounds)
        stats = engine.state.stats()
        position = engine.state.position
    update, read = median(updates[n_warm:]), median(reads[n_warm:])
    width = len(engine.state.plan.services[0].features)
    benchmark.extra_info.update(updates_per_s=update, reads_per_s=read)
    # The store's secret is its own, and with it who shares a cell: its checksum is of how much was done.
    found(
        f"{update / 1e6:.2f} M events/s into a store and {read / 1e6:.2f} M vectors of {width} values/s out "
        f"of it, of one core; {stats['used_bytes'] / 1e6:.0f} MB of tables, {stats['rows']} rows; checksum "
        f"{position:08x} and {n_values:08x} values"
    )
