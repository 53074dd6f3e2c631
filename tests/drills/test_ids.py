"""Ids without end: many times what memory may hold go through a small horizon, over restarts. Every duplicate
is told, none is invented, nobody is refused, memory stays in proportion to the horizon, and what a checkpoint
writes to what came since the one before.
"""

from __future__ import annotations

import random
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.outcome import Outcome

SCHEMA = """
version: 1
name: ids
events:
  play:
    time: {field: ts, unit: ms}
    lateness: 1h
    ids: {id: id, dedupe: 60s}
    fields: {account: key, id: string}
views:
  account: {event: play, key: account, windows: [10s], features: [count]}
services:
  everything: [account.*]
"""
DEDUPE_MS = 60_000
ID_BYTES = 36
ACCEPTED, DUPLICATE = Outcome.ACCEPTED, Outcome.DUPLICATE


def outcomes_of(engine: Engine, now_ms: int, ids: list[int]) -> list[int]:
    event, n = engine.state.plan.events[0], len(ids)
    data = {"ts": [now_ms] * n, "account": ["a"] * n, "id": [f"{i}" for i in ids]}
    batch = EventBatch(event, 0, *event_columns(event, data))
    engine.observe(batch, wait=False)
    return [int(outcome) for outcome in batch.outcomes]


def test_ids_at_many_times_the_memory_cap_pass_through_a_small_horizon_over_restarts(
    tmp_path: Path, drill_size: Callable[[int, int], int]
) -> None:
    rng = random.Random(9)
    per_second = drill_size(200, 20_000)
    seconds = drill_size(300, 1_200)
    # What lies within the horizon (an eighth more comes back from before it), a sixteenth that goes only as a
    # whole, and a tenth to spare.
    cap = ID_BYTES * per_second * 9 // 8 * 61 * 17 // 16 * 11 // 10
    engine = None
    seen: dict[int, int] = {}  # id → second at which it was accepted
    times: deque[tuple[int, int]] = deque()  # the same in order
    n_new, n_told, most, resident = 0, 0, 0, []
    accepted, written = [], []  # since the last checkpoint; ids and bytes of each
    for second in range(seconds):
        if engine is None:
            engine = Engine.open(
                tmp_path / "store", schema=SCHEMA, clock="event", n_shards=1, dedupe_memory_bytes=cap
            )
        now_ms = 1_700_000_000_000 + second * 1_000
        ids = list(range(n_new, n_new + per_second))
        n_new += per_second
        for _ in range(per_second // 4):  # of random age, half of them within the horizon
            ids.append(max(0, n_new - 1 - rng.randrange(per_second * 120)))
        rng.shuffle(ids)
        expected = []
        for each in ids:
            if seen.get(each, -1_000_000) >= second - 60:
                expected.append(int(DUPLICATE))
            else:
                seen[each] = second
                times.append((second, each))
                expected.append(int(ACCEPTED))
        assert outcomes_of(engine, now_ms, ids) == expected, second
        n_told += expected.count(int(DUPLICATE))
        accepted.append(expected.count(int(ACCEPTED)))
        most = max(most, int(engine.stats()["id_bytes"] or 0))
        assert most <= cap
        while times and times[0][0] < second - 60:
            at, each = times.popleft()
            if seen.get(each) == at:
                del seen[each]
        if second % 75 == 50:  # as kill -9 leaves it, or after a checkpoint
            if rng.random() < 0.5:
                _, n_bytes = engine.checkpoint()
                # Of an id 24 bytes, and of 168 of them 20 more, twice where it is taken out again.
                assert n_bytes < 25 * sum(accepted) + cap // ID_BYTES // 8 + 8192
                written.append((sum(accepted), n_bytes))
                accepted.clear()
            if rng.random() < 0.5:
                accepted.clear()
                engine.close(checkpoint=True)
            engine.close()
            engine = None
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if engine is not None:
        engine.close()
    assert n_told > seconds * per_second // 10
    assert n_new * ID_BYTES > drill_size(3, 12) * cap, "many times what may be held"
    print(f"{n_new} ids, {n_told} duplicates told, {most} of {cap} bytes, resident {resident} KiB")
    print(f"new ids and bytes of checkpoints: {written}")
