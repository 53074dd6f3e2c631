"""A day of ever new clients, each under a name of its own: is anybody refused, does memory stay bounded?"""

from __future__ import annotations

from collections.abc import Callable

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.outcome import Outcome
from featurestore.schema import compile_schema

PLAN = compile_schema(
    """
version: 1
name: names
events:
  play: {time: {field: ts, unit: ms}, fields: {account: key}}
views:
  account: {event: play, key: account, windows: [1h], features: [count]}
services:
  all: [account.*]
"""
)
DAY_MS = 86_400_000
T0 = 1_700_000_000_000


def write(state: State, name: bytes, sequence: int, now_ms: int, time_ms: int | None = None) -> int:
    columns = {"ts": [now_ms if time_ms is None else time_ms], "account": ["a"]}
    batch = EventBatch(PLAN.events[0], 0, *event_columns(PLAN.events[0], columns))
    state.observe(batch, producer=name, epoch=1, sequence=sequence, now_ms=now_ms)
    return int(batch.outcomes[0])


def test_new_names_all_day_are_taken_told_apart_and_forgotten(drill_size: Callable[[int, int], int]) -> None:
    n = drill_size(6_000, 100_000)
    state = State(PLAN, clock="wall", max_producer_bytes=4 << 20)
    write(state, b"ingest", 1, T0)
    most = 0
    for i in range(n):
        name, now_ms = b"client-%016x" % i, T0 + i * DAY_MS // n
        for sequence in (1, 2, 3):
            assert write(state, name, sequence, now_ms) == Outcome.ACCEPTED
        assert write(state, name, 2, now_ms) == Outcome.DUPLICATE
        most = max(most, state.stats()["producer_bytes"])
    a_quarter_hour = n // 96 + 9
    stats = state.stats()
    assert stats["producers_refused"] == 0
    assert stats["producers"] <= a_quarter_hour + 1
    assert most <= (a_quarter_hour + 1) * 199, "199 bytes for a session of a few batches"
    before = state.position
    restarted = State.restore(PLAN, state.snapshot())
    assert restarted.digest() == state.digest()
    for each in (state, restarted):
        write(each, b"ingest", 1, T0 + DAY_MS, T0)
        assert each.position == before, "a name that was given is known for a week"
