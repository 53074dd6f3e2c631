"""Event ids: every duplicate within its horizon is told and none invented, whatever the clock does and
however many come and go. The oracle is a dict.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.outcome import Outcome
from featurestore.plan import Plan
from featurestore.schema import compile_schema

SCHEMA = """
version: 1
name: ids
events:
  play:
    time: {field: ts, unit: ms}
    lateness: 10s
    ids: {id: id, dedupe: DEDUPE}
    fields: {account: key, id: string}
  skip:
    time: {field: ts, unit: ms}
    ids: {id: id, dedupe: 60s}
    fields: {account: key, id: string}
views:
  account: {event: play, key: account, windows: [10s], features: [count]}
services:
  everything: [account.*]
"""
ID_BYTES = 36
SEGMENT_IDS = 16_384


def plan_with(dedupe: str = "60s", previous: Plan | None = None) -> Plan:
    return compile_schema(SCHEMA.replace("DEDUPE", dedupe), previous=previous, now_ms=0)


PLAN = plan_with()


def sent(state: State, times: list[int], ids: list[str], now_ms: int = 0, event: int = 0) -> list[int]:
    """The outcomes of a batch of events that differ in time and id."""
    declared = state.plan.events[event]
    data: dict[str, Any] = {"ts": times, "account": ["a"] * len(times), "id": ids}
    batch = EventBatch(declared, event, *event_columns(declared, data))
    state.observe(batch, now_ms=now_ms)
    return [int(outcome) for outcome in batch.outcomes]


class Oracle:
    """Design 2.7 in a few lines, for one event type."""

    def __init__(self, clock: str, dedupe_ms: int) -> None:
        self.clock, self.dedupe_ms, self.now = clock, dedupe_ms, -(1 << 62)
        self.seen: dict[str, int] = {}

    def sent(self, times: list[int], ids: list[str], now_ms: int) -> list[int]:
        if self.clock == "wall":
            self.now = max(self.now, now_ms)
        outcomes = []
        for t, name in zip(times, ids, strict=True):
            then = max(self.now, t) if self.clock == "event" else self.now
            if self.clock == "wall" and t > then + 10_000:
                outcomes.append(Outcome.REFUSED_FUTURE)
            elif t < then - self.dedupe_ms:
                outcomes.append(Outcome.REFUSED_BEYOND_DEDUPE)
            elif self.seen.get(name, -(1 << 62)) >= then - self.dedupe_ms:
                outcomes.append(Outcome.DUPLICATE)
            elif t < then - 20_000:
                outcomes.append(Outcome.LATE)
            else:
                self.now = then
                self.seen[name] = max(t, then)
                outcomes.append(Outcome.ACCEPTED)
        return [int(outcome) for outcome in outcomes]


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("dedupe_ms", [1_000, 60_000])
def test_every_duplicate_within_the_horizon_is_told_and_none_invented(clock: str, dedupe_ms: int) -> None:
    rng = random.Random(dedupe_ms)
    state = State(plan_with(f"{dedupe_ms // 1000}s"), clock=clock, n_shards=1)
    oracle = Oracle(clock, dedupe_ms)
    now_ms, n_new, told = 1_000_000, 0, {}
    for turn in range(600):
        # Steps from none to several horizons; names from the newest to those of long ago.
        now_ms += rng.choice([0, 1, dedupe_ms // 40, dedupe_ms // 3]) if turn % 97 else dedupe_ms * 3
        times, ids = [], []
        for _ in range(rng.choice([1, 3, 200])):
            ahead_ms = rng.randrange(12_000) if turn % 29 == 28 else rng.randrange(dedupe_ms // 50)
            times.append(now_ms + rng.choice([0, 0, -rng.randrange(2 * dedupe_ms), ahead_ms]))
            if rng.random() < 0.5:
                n_new += 1
                ids.append(f"{n_new}")
            else:
                ids.append(f"{max(0, n_new - rng.choice([0, rng.randrange(50), rng.randrange(20_000)]))}")
        outcomes = sent(state, times, ids, now_ms)
        assert outcomes == oracle.sent(times, ids, now_ms), turn
        for outcome in outcomes:
            told[outcome] = told.get(outcome, 0) + 1
        if turn % 50 == 49:
            restored = State.restore(state.plan, state.snapshot())
            assert restored.digest() == state.digest()
            state = restored
    assert min(told.get(int(each), 0) for each in (Outcome.ACCEPTED, Outcome.DUPLICATE)) > 300


def test_ids_are_found_while_the_index_grows_by_a_hundred_thousand_and_shrinks_again() -> None:
    state = State(PLAN, n_shards=1)
    n = 120_000
    names = [f"i{i}" for i in range(n)]
    for at in range(0, n, 7_000):
        some = names[at : at + 7_000]
        assert set(sent(state, [1_000_000 + at // 10] * len(some), some)) == {int(Outcome.ACCEPTED)}
        early = names[: at + 7_000 : 11]
        assert set(sent(state, [1_000_000 + at // 10] * len(early), early)) == {int(Outcome.DUPLICATE)}
    # Few a second from here on: what is many shrinks bucket by bucket, and no id is lost on the way.
    now_ms = 1_000_000 + n
    for turn in range(400):
        now_ms += 1_000
        some = [f"{turn}-{i}" for i in range(60)]
        assert set(sent(state, [now_ms] * 60, some)) == {int(Outcome.ACCEPTED)}
        assert set(sent(state, [now_ms] * 60, some)) == {int(Outcome.DUPLICATE)}
    assert state.stats()["ids"] <= 60 * (60 + 60 // 16 + 1)
    held = [f"{turn}-{i}" for turn in range(341, 400) for i in range(60)]
    assert set(sent(state, [now_ms] * len(held), held)) == {int(Outcome.DUPLICATE)}


def test_what_is_remembered_stays_in_proportion_to_the_horizon_for_a_hundred_horizons() -> None:
    state = State(PLAN, n_shards=1, dedupe_memory_bytes=ID_BYTES * 6_600)
    for turn in range(100 * 16):
        now_ms = 1_000_000 + turn * 60_000 // 16
        some = [f"{turn}-{i}" for i in range(350)]
        assert set(sent(state, [now_ms] * 350, some)) == {int(Outcome.ACCEPTED)}, turn
        assert state.stats()["ids"] <= 350 * 19
    assert sent(state, [now_ms + 10_000_000], ["x"]) == [Outcome.ACCEPTED]
    state.sweep()
    assert state.stats()["ids"] == 1


def test_ids_of_a_type_that_fell_silent_are_dropped_by_the_sweep() -> None:
    state = State(PLAN, clock="wall", n_shards=1)
    sent(state, [1_000_000] * 40_000, [f"{i}" for i in range(40_000)], 1_000_000, event=1)
    sent(state, [1_070_000], ["other"], 1_070_000)
    assert state.stats()["ids"] == 40_001
    state.sweep()
    assert state.stats()["ids"] == 1


def test_the_cap_is_bytes_and_what_has_expired_makes_room() -> None:
    state = State(PLAN, clock="wall", n_shards=1, dedupe_memory_bytes=ID_BYTES * 20_000)
    first = [f"{i}" for i in range(20_010)]
    outcomes = sent(state, [1_000_000] * 20_010, first, 1_000_000)
    assert outcomes == [Outcome.ACCEPTED] * 20_000 + [Outcome.REFUSED_MEMORY] * 10
    stats = state.stats()
    assert stats["id_bytes"] == stats["dedupe_memory_bytes"] == ID_BYTES * 20_000
    assert sent(state, [1_000_000] * 2, ["0", "19999"], 1_060_000) == [Outcome.DUPLICATE] * 2
    assert sent(state, [1_060_001], ["late"], 1_060_001, event=1) == [Outcome.ACCEPTED], "all have expired"
    assert set(sent(state, [1_060_001] * 10_000, first[:10_000], 1_060_001)) == {int(Outcome.ACCEPTED)}


def test_copying_ends_though_ids_come_and_go_faster_than_they_are_copied() -> None:
    state = State(PLAN, n_shards=1)
    sent(state, [1_000_000] * 3_000, [f"{i}" for i in range(3_000)])
    n = 0

    def meanwhile() -> None:
        nonlocal n
        n += 1
        assert n < 100, "it begins again and again"
        some = [f"{n}-{i}" for i in range(900)]
        sent(state, [1_000_000 + n * 3_000] * 900, some)

    copied = bytes(state.copy_ids(500, meanwhile))
    assert len(copied) % 32 == 0 and len(copied) // 32 <= 3_000 + SEGMENT_IDS


def test_ids_that_are_there_from_beginning_to_end_are_copied_whatever_is_dropped_meanwhile() -> None:
    for turns in range(12):
        state = State(PLAN, n_shards=1)
        sent(state, [1_000_000] * 30, [f"old{i}" for i in range(30)])
        sent(state, [1_050_000] * 17, [f"kept{i}" for i in range(17)])
        left = iter(range(turns * 4))

        def meanwhile(state: State = state, left: Any = left) -> None:
            if next(left, None) is None and state.stats()["ids"] == 47:
                sent(state, [1_061_000] * 2, ["new0", "new1"])

        copied = bytes(state.copy_ids(1, meanwhile))
        assert state.stats()["ids"] == 19, "the old ones have expired"
        copy = State(PLAN, n_shards=1)
        copy.import_ids(copied)
        assert set(sent(copy, [1_061_000] * 17, [f"kept{i}" for i in range(17)])) == {int(Outcome.DUPLICATE)}
