"""Event ids: every duplicate within its horizon is told and none invented, whatever the clock does and
however many come and go. The oracle is a dict.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import FREED, State, split_records
from featurestore.errors import CorruptRecordError
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


def plan_with(dedupe: str | None = "60s", previous: Plan | None = None, now_ms: int = 0) -> Plan:
    """Without a dedupe the plays have no ids."""
    text = SCHEMA if dedupe else SCHEMA.replace("    ids: {id: id, dedupe: DEDUPE}\n", "", 1)
    return compile_schema(text.replace("DEDUPE", str(dedupe)), previous=previous, now_ms=now_ms)


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
            if t > (then if self.clock == "wall" else now_ms) + 10_000:
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


class Stored:
    """What checkpoints wrote of ids: records by key, as the row store keeps them."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.n_bytes = 0  # of the last checkpoint

    def checkpoint(
        self, state: State, meanwhile: Callable[[], object] | None = None, kept: bool = True
    ) -> None:
        state.cut()
        data = bytes(state.copy_id_records(meanwhile))
        state.copy_end(kept)
        self.n_bytes = len(data)
        if kept:
            keys = []
            for record in split_records(data):
                keys.append(record[:16])
                if record[16:20] == FREED:
                    del self.records[record[:16]]
                else:
                    self.records[record[:16]] = record
            assert keys == sorted(set(keys))

    def bytes(self) -> bytes:
        return b"".join(self.records[key] for key in sorted(self.records))

    def loaded(self, state: State) -> State:
        """A new state of the same plan, with the ids that are stored."""
        new = State(state.plan, n_shards=1)
        new.import_head(state.cut()[1])
        state.copy_end(False)
        new.import_id_records(self.bytes())
        return new


def ids_of(state: State) -> bytes:
    """That part of a snapshot: what is remembered and has not expired."""
    snapshot = state.snapshot()
    after_head = 40 + int.from_bytes(snapshot[32:40], "little")
    n_bytes = int.from_bytes(snapshot[after_head : after_head + 8], "little")
    return snapshot[after_head + 8 : after_head + 8 + n_bytes]


def test_a_checkpoint_writes_the_ids_that_came_since_the_one_before_and_no_others() -> None:
    state, stored = State(PLAN, n_shards=1), Stored()
    now_ms, n_written = 1_000_000, 0
    for turn in range(40):
        n_new = [0, 1, 167, 168, 169, 5_000, 20_000][turn % 7]
        now_ms += 100
        for at in range(0, n_new, 5_000):
            some = [f"{turn}-{i}" for i in range(at, min(n_new, at + 5_000))]
            sent(state, [now_ms] * len(some), some)
        assert state.ids_to_copy == n_new
        stored.checkpoint(state)
        # An id is 24 bytes, and a record of 168 has 20 more. Segments end within a record, at most two here.
        assert 24 * n_new <= stored.n_bytes <= 24 * (n_new + 2 * 168) + 20 * (n_new // 168 + 4), turn
        assert n_new or not stored.n_bytes
        n_written += n_new
    assert n_written == state.stats()["ids"] == sum(len(each) // 24 for each in stored.records.values())
    assert max(map(len, stored.records.values())) <= 4072, "or it takes more than a page of the file"
    sent(state, [now_ms + 100_000], ["last"])
    stored.checkpoint(state)
    assert stored.n_bytes <= 20 * (n_written // 168 + 400) + 44, "what has expired is only taken out"
    assert ids_of(stored.loaded(state)) == ids_of(state)


@pytest.mark.parametrize("seed", range(4))
def test_what_checkpoints_wrote_together_is_what_is_remembered_whatever_came_between(seed: int) -> None:
    rng = random.Random(seed)
    state, stored = State(PLAN, n_shards=1), Stored()
    now_ms, n = 1_000_000, 0

    def some_batches(most: int = 3) -> None:
        nonlocal now_ms, n
        for _ in range(rng.randrange(most + 1)):
            now_ms += rng.choice([0, 10, 4_000, 4_000, 30_000, 90_000 if rng.random() < 0.1 else 0])
            count = rng.choice([1, 170, 1_000, 17_000 if rng.random() < 0.1 else 2])
            back = rng.choice([0, 500])
            ids = [f"{i}" for i in range(max(0, n - back), n + count)]
            n += count
            sent(state, [now_ms] * len(ids), ids, event=rng.randrange(2))

    for _ in range(20):
        some_batches()
        if rng.random() < 0.2:
            plan = plan_with(rng.choice(["60s", "10s", "90s", None]), state.plan, now_ms)
            if plan is not state.plan:
                state.apply_plan(plan)
        meanwhile = (lambda: some_batches(1)) if rng.random() < 0.3 else None
        stored.checkpoint(state, meanwhile, kept=rng.random() < 0.8)
        stored.checkpoint(state)
        loaded = stored.loaded(state)
        assert ids_of(loaded) == ids_of(state)
        if rng.random() < 0.3:
            state = loaded  # a restart


def test_ids_that_are_declared_again_are_stored_beside_what_a_checkpoint_has_of_those_before() -> None:
    state, stored = State(PLAN, n_shards=1), Stored()
    sent(state, [1_000_000], ["before"])
    stored.checkpoint(state)
    for dedupe in (None, "60s"):
        state.apply_plan(plan_with(dedupe, state.plan, 1_000_000))
    sent(state, [1_060_001], ["after"])
    stored.checkpoint(state)
    assert sent(stored.loaded(state), [1_060_001] * 2, ["after", "x"]) == [
        Outcome.DUPLICATE,
        Outcome.ACCEPTED,
    ]


def test_ids_that_had_expired_stay_so_when_they_are_read_back_after_the_horizon_grew() -> None:
    state, stored = State(plan_with("10s"), n_shards=1), Stored()
    sent(state, [1_000_000] * 2, ["old", "older"])
    sent(state, [1_000_500], ["kept"])
    sent(state, [1_010_400], ["new"])
    state.apply_plan(plan_with("90s", state.plan, 1_010_400))
    stored.checkpoint(state)
    for each in (state, stored.loaded(state)):
        assert sent(each, [1_010_400] * 2, ["kept", "old"]) == [Outcome.DUPLICATE, Outcome.ACCEPTED]


def test_copying_ends_though_ids_come_and_go_faster_than_they_are_copied() -> None:
    state, stored = State(PLAN, n_shards=1), Stored()
    sent(state, [1_000_000] * 30_000, [f"{i}" for i in range(30_000)])
    n = 0

    def meanwhile() -> None:
        nonlocal n
        n += 1
        assert n < 100, "it begins again and again"
        some = [f"{n}-{i}" for i in range(6_000)]
        sent(state, [1_000_000 + n * 30_000] * 6_000, some)

    stored.checkpoint(state, meanwhile)
    assert n > 2
    last = [f"{n}-{i}" for i in range(6_000)]
    stored.checkpoint(state)
    assert set(sent(stored.loaded(state), [1_000_000 + n * 30_000] * 6_000, last)) == {int(Outcome.DUPLICATE)}


def test_few_ids_are_copied_each_time_that_batches_wait() -> None:
    state, stored = State(PLAN, n_shards=1), Stored()
    n = 100_000
    sent(state, [1_000_000] * n, [f"{i}" for i in range(n)])
    turns = 0

    def meanwhile() -> None:
        nonlocal turns
        turns += 1

    stored.checkpoint(state, meanwhile)
    assert turns >= n / 4_096


def test_ids_that_are_there_from_beginning_to_end_are_copied_whatever_is_dropped_meanwhile() -> None:
    for turns in range(20):
        state, stored = State(PLAN, n_shards=1), Stored()
        for i in range(10):  # of which each is a segment of its own
            sent(state, [1_000_000 + i * 4_000] * 9, [f"{i}-{j}" for j in range(9)])
            if i == 3:
                stored.checkpoint(state)
        left = iter(range(turns))

        def meanwhile(state: State = state, left: Any = left) -> None:
            if next(left, None) is None and state.stats()["ids"] >= 90:
                sent(state, [1_085_000] * 2, ["new0", "new1"])

        stored.checkpoint(state, meanwhile)
        state = stored.loaded(state)
        kept = [f"{i}-{j}" for i in range(7, 10) for j in range(9)]
        assert set(sent(state, [1_085_000] * len(kept), kept)) == {int(Outcome.DUPLICATE)}
        stored.checkpoint(state)
        assert ids_of(stored.loaded(state)) == ids_of(state)


def records(*of_segments: tuple[int, list[int]]) -> bytes:
    """Of event type 1: per segment its number and how many ids each of its records has."""
    made = bytearray()
    for segment, counts in of_segments:
        for i, n in enumerate(counts):
            made += (1 << 48 | segment).to_bytes(8, "big") + i.to_bytes(8, "big")
            made += (24 * n).to_bytes(4, "little")
            for j in range(n):
                made += (segment << 32 | i << 16 | j + 1).to_bytes(16, "little") + bytes(8)
    return bytes(made)


@pytest.mark.parametrize(
    "damaged",
    [
        records((0, [168]), (2, [1])),
        records((3, [168]), (2, [1])),
        records((0, [167, 1])),
        records((0, [169])),
        records((0, [168] * 97 + [89])),
        records((0, [168] * 98)),
        records((0, [0])),
        records((1 << 47, [1])),
        records((0, [1]))[:-1],
        records((0, [1]))[:19],
        records((0, [1])).replace(b"\0\x18\0\0\0", b"\0\x17\0\0\0", 1),
        b"\0\7" + records((0, [1]))[2:],
        records((0, [1]))[:20] + bytes(24),
    ],
    ids=[
        "a gap",
        "backwards",
        "not full",
        "too many in one",
        "too many",
        "too many records",
        "empty",
        "a number beyond all",
        "cut",
        "no length",
        "no whole id",
        "of no event type",
        "no id",
    ],
)
def test_records_that_no_checkpoint_wrote_are_refused(damaged: bytes) -> None:
    State(PLAN, n_shards=1).import_id_records(records((5, [168] * 97 + [88]), (6, [168, 1]), (7, [2])))
    with pytest.raises(CorruptRecordError):
        State(PLAN, n_shards=1).import_id_records(damaged)
