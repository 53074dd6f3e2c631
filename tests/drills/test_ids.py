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


class Traffic:
    """New ids each second, a fifth more that may be known, and what is to become of each: a dict says it."""

    def __init__(self, per_second: int) -> None:
        self.rng, self.per_second = random.Random(9), per_second
        self.seen: dict[int, int] = {}  # id → second at which it was accepted
        self.times: deque[tuple[int, int]] = deque()  # the same in order
        self.n_new = self.n_told = 0

    def cap(self, id_bytes: int) -> int:
        """Memory for what lies within the horizon (an eighth more comes back from before it), a sixteenth
        that goes only as a whole, and a tenth to spare."""
        return id_bytes * self.per_second * 9 // 8 * 61 * 17 // 16 * 11 // 10

    def sent(self, engine: Engine, second: int) -> int:
        """How many were accepted."""
        n = self.per_second
        ids = list(range(self.n_new, self.n_new + n))
        self.n_new += n
        for _ in range(n // 4):  # of random age, half of them within the horizon
            ids.append(max(0, self.n_new - 1 - self.rng.randrange(n * 120)))
        self.rng.shuffle(ids)
        expected = []
        for each in ids:
            if self.seen.get(each, -1_000_000) >= second - 60:
                expected.append(int(DUPLICATE))
            else:
                self.seen[each] = second
                self.times.append((second, each))
                expected.append(int(ACCEPTED))
        assert outcomes_of(engine, 1_700_000_000_000 + second * 1_000, ids) == expected, second
        self.n_told += expected.count(int(DUPLICATE))
        while self.times and self.times[0][0] < second - 60:
            at, each = self.times.popleft()
            if self.seen.get(each) == at:
                del self.seen[each]
        return expected.count(int(ACCEPTED))


def opened(path: Path, cap: int) -> Engine:
    return Engine.open(path, schema=SCHEMA, clock="event", n_shards=1, dedupe_memory_bytes=cap)


def resident_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_ids_at_many_times_the_memory_cap_pass_through_a_small_horizon_over_restarts(
    tmp_path: Path, drill_size: Callable[[int, int], int]
) -> None:
    traffic = Traffic(drill_size(200, 20_000))
    seconds, cap = drill_size(300, 1_200), traffic.cap(ID_BYTES)
    engine = None
    most, resident = 0, []
    accepted, written = [], []  # since the last checkpoint; ids and bytes of each
    for second in range(seconds):
        if engine is None:
            engine = opened(tmp_path / "store", cap)
        accepted.append(traffic.sent(engine, second))
        most = max(most, int(engine.stats()["id_bytes"] or 0))
        assert most <= cap
        if second % 75 == 50:  # as kill -9 leaves it, or after a checkpoint
            if traffic.rng.random() < 0.5:
                _, n_bytes = engine.checkpoint()
                # Of an id 24 bytes, and of 168 of them 20 more, twice where it is taken out again.
                assert n_bytes < 25 * sum(accepted) + cap // ID_BYTES // 8 + 8192
                written.append((sum(accepted), n_bytes))
                accepted.clear()
            if traffic.rng.random() < 0.5:
                accepted.clear()
                engine.close(checkpoint=True)
            engine.close()
            engine = None
            resident.append(resident_kib())
    if engine is not None:
        engine.close()
    assert traffic.n_told > seconds * traffic.per_second // 10
    assert traffic.n_new * ID_BYTES > drill_size(3, 12) * cap, "many times what may be held"
    print(f"{traffic.n_new} ids, {traffic.n_told} told, {most} of {cap} bytes, resident {resident} KiB")
    print(f"new ids and bytes of checkpoints: {written}")


def test_ids_of_a_horizon_that_memory_cannot_hold_are_told_from_the_disk_over_restarts(
    tmp_path: Path, drill_size: Callable[[int, int], int]
) -> None:
    """Half of the memory that they would take, of which their index takes two thirds. Checkpoints come when
    upkeep would write them, and at no other time."""
    traffic = Traffic(drill_size(2_000, 20_000))
    seconds, cap = drill_size(110, 1_200), traffic.cap(ID_BYTES // 2)
    engine = opened(tmp_path / "store", cap)
    most, checkpoints, resident, on_disk, reads = 0, 0, [], [], [0, 0]
    for second in range(seconds):
        traffic.sent(engine, second)
        stats = engine.stats()
        most = max(most, stats["id_bytes"])
        assert most <= cap and stats["id_reads_failed"] == 0
        if engine.state.ids_are_due:
            engine.checkpoint()
            checkpoints += 1
        if second % 50 == 40:  # as kill -9 leaves it
            on_disk.append((stats["ids"], stats["ids_on_disk"]))
            reads = [reads[0] + stats["id_reads"], reads[1] + stats["id_reads_in_vain"]]
            engine.close()
            engine = opened(tmp_path / "store", cap)
            resident.append(resident_kib())
    engine.close()
    print(f"{traffic.n_new} ids, {traffic.n_told} told, {most} of {cap} bytes, resident {resident} KiB")
    print(f"ids, and those on the disk: {on_disk}; {checkpoints} checkpoints; reads, in vain: {reads}")
    assert all(cold * 3 > ids for ids, cold in on_disk)
    assert reads[0] > seconds * traffic.per_second // 100
    assert reads[1] * 1_000 <= reads[0] + 1_000, "the index hardly ever leads to another id"
