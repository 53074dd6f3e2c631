"""What does an event id cost: memory and time for each, and the longest that a batch holds the order lock?

memory   bytes resident per id remembered, and what the store counts for it.
new      batches of new ids against batches of an event type without ids, interleaved: the difference is
         looking an id up and remembering it. The longest batch of all is the worst that growing does.
known    the same ids again: all are duplicates.
written  bytes that a checkpoint of all ids takes, and the next after a hundredth as many again came; and the
         longest that copying them held the order lock, which has a wait for the processor in it.
cold     of a store whose memory holds a third of its ids: batches of known ids that are read from the disk
         (which the page cache has) against batches of those in memory, interleaved, with the journal and all;
         new ones beside them; and how many of what was read was read in vain.

Not measured: hashing apart from the rest, the wire, a disk that has to move. For instructions per id:
  valgrind --tool=callgrind --toggle-collect='*ids_remember*' python -m pytest benches/bench_dedupe.py
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from benches import workload
from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.engine import Engine
from featurestore.outcome import Outcome
from featurestore.schema import compile_schema

SCHEMA = """
version: 1
name: dedupe
events:
  known:
    time: {field: ts, unit: ms}
    ids: {id: id, dedupe: 1h}
    fields: {account: key, id: string}
  plain:
    time: {field: ts, unit: ms}
    fields: {account: key, id: string}
views:
  known: {event: known, key: account, windows: [10s], features: [count]}
  plain: {event: plain, key: account, windows: [10s], features: [count]}
services:
  all: [known.*, plain.*]
"""
BATCH = 500


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def bench_ids(size: Callable[[int, int], int], found: Callable[[str], None]) -> None:
    n = size(100_000, 10_000_000)
    plan = compile_schema(SCHEMA)
    state = State(plan, n_shards=1, dedupe_memory_bytes=1 << 40)
    spent: dict[str, list[float]] = {"known": [], "plain": [], "again": [], "more": []}
    outcomes = np.zeros(0, np.uint8)
    checksum = 0
    before = resident_bytes()

    def run(event: int, first: int, what: str) -> None:
        nonlocal outcomes, checksum
        declared = plan.events[event]
        names = workload.key_texts(np.arange(first, first + BATCH), "i")
        data = {"ts": [1_000_000 + first // 1_000] * BATCH, "account": ["a"] * BATCH, "id": names}
        batch = EventBatch(declared, event, *event_columns(declared, data))
        began = time.perf_counter()
        state.observe(batch)
        spent[what].append(time.perf_counter() - began)
        outcomes = batch.outcomes
        checksum = zlib.crc32(outcomes.tobytes(), checksum)

    for first in range(0, n, BATCH):
        run(0, first, "known")
        run(1, first, "plain")
    held = state.stats()["ids"]
    taken = resident_bytes() - before
    for first in range(0, n, BATCH * 7):
        run(0, first, "again")
        assert set(outcomes) == {int(Outcome.DUPLICATE)}
    written: list[int] = []
    longest_copy = 0.0
    for more in (0, n // 100):
        for first in range(n, n + more, BATCH):
            run(0, first, "more")
        state.cut()
        turns = [time.perf_counter()]
        written.append(len(state.copy_id_records(lambda turns=turns: turns.append(time.perf_counter()))))
        state.copy_end(True)
        longest_copy = max(longest_copy, *(later - turn for turn, later in pairwise(turns)))
    new = median((a - b) / BATCH * 1e9 for a, b in zip(spent["known"], spent["plain"], strict=True))
    again = median(spent["again"]) / BATCH * 1e9
    longest = max(spent["known"]) * 1e6
    found(
        f"{held} ids: {taken / held:.1f} bytes resident each, {state.stats()['id_bytes'] // held} counted; "
        f"{new:.0f} ns for a new one more than without ids, {again:.0f} ns for an event that is a duplicate; "
        f"longest batch of {BATCH} {longest:.0f} us; a checkpoint writes {written[0]} bytes, {written[1]} of "
        f"{n // 100} more, in holds of {longest_copy * 1e6:.0f} us at most; checksum {checksum:08x}"
    )


def bench_cold_ids(size: Callable[[int, int], int], found: Callable[[str], None], tmp_path: Path) -> None:
    n = size(200_000, 5_000_000)
    with Engine.open(
        tmp_path / "store", schema=SCHEMA, clock="event", durability="process", n_shards=1,
        dedupe_memory_bytes=20 * n,
    ) as engine:  # fmt: skip
        declared = engine.state.plan.events[0]
        checksum = 0

        def run(first: int) -> float:
            nonlocal checksum
            names = workload.key_texts(np.arange(first, first + BATCH), "i")
            data = {"ts": [1_000_000 + first // 1_000] * BATCH, "account": ["a"] * BATCH, "id": names}
            batch = EventBatch(declared, 0, *event_columns(declared, data))
            began = time.perf_counter()
            engine.observe(batch, wait=False)
            took = time.perf_counter() - began
            checksum = zlib.crc32(batch.outcomes.tobytes(), checksum)
            return took / BATCH * 1e9

        for first in range(0, n, BATCH):
            run(first)
            if engine.state.ids_are_due:
                engine.checkpoint()
        before = engine.stats()
        spent: dict[str, list[float]] = {"new": [], "hot": [], "cold": []}
        for k in range(200):
            spent["new"].append(run(n + k * BATCH))
            spent["hot"].append(run(n + k * BATCH))
            spent["cold"].append(run(k * (n // 3 // 200)))
        stats = engine.stats()
        new, hot, cold = (median(spent[what]) for what in ("new", "hot", "cold"))
        found(
            f"{before['ids']} ids, {before['ids_on_disk']} on the disk, {before['id_bytes']} bytes of memory "
            f"for all; an event with a new id {new:.0f} ns, known {hot:.0f} ns, known from the disk "
            f"{cold:.0f} ns: {cold / hot:.1f} times that; {stats['id_reads']} read, "
            f"{stats['id_reads_in_vain']} in vain, {before['id_reads']} of them for the {n} new ones; "
            f"checksum {checksum:08x}"
        )
