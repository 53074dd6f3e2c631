"""The whole state machine: what it may be asked, growth and freeing of rows, memory limits, snapshots."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.state import FREED, State, split_records
from featurestore.errors import (
    CorruptRecordError,
    InvalidEventError,
    LimitError,
    SequenceError,
    UnknownNameError,
)
from featurestore.outcome import Outcome
from featurestore.plan import Plan
from featurestore.schema import compile_schema

SCHEMA = """
version: 1
name: state
events:
  play:
    time: {field: ts, unit: ms}
    lateness: 10s
    ids: {id: id, dedupe: 60s}
    fields: {account: key, track: key, ms: number, id: string}
views:
  account: {event: play, key: account, windows: [10s, 60s], features: [count, sum(ms)]}
  pair: {event: play, key: [account, track], windows: [10s], features: [count]}
  all: {event: play, key: [], windows: [10s, lifetime], features: [count]}
services:
  everything: [account.*, pair.*, all.*]
"""
PLAN = compile_schema(SCHEMA)


def batch(**columns: Any) -> EventBatch:
    times, values, outcomes = event_columns(PLAN.events[0], columns)
    return EventBatch(PLAN.events[0], 0, times, values, outcomes)


def plays(
    n: int, *, start: int = 1_000_000, step: int = 1, prefix: str = "i", keys: int | None = None
) -> EventBatch:
    keys = keys or n
    return batch(
        ts=[start + i * step for i in range(n)],
        account=[f"a{i % keys}" for i in range(n)],
        track=["t"] * n,
        ms=[float(i) for i in range(n)],
        id=[f"{prefix}{i}" for i in range(n)],
    )


def counts(state: State, accounts: list[str], as_of: int) -> list[float]:
    keys, _ = text_column(accounts)
    vectors = state.read(0, {"account": keys}, len(accounts), as_of=np.full(len(accounts), as_of))
    return list(vectors.values[:, 1])


def test_batches_whose_events_alternate_are_applied_as_one_by_one() -> None:
    ones = [plays(5, start=1_000_000 + i, step=10, prefix=f"{i}i") for i in range(2)]
    which = np.array([0, 1, 1, 0, 0, 0, 1], np.uint32)  # of each but the first, or not the last
    wanted = np.array([1, 1, 0, 1, 1, 0, 0], np.uint8)
    merged, plain = State(PLAN, clock="wall"), State(PLAN, clock="wall")
    nows = np.array([1_000_000, 1_000_000, 1_000_002, 1_000_002, 1_000_030, 1_000_030, 1_000_050])
    found = merged.observe_merged(
        [(ones[0], 1, False), (ones[1], 0, False)], which, 0, wanted=wanted, nows_ms=nows, bounds=True
    )
    nexts, row = [1, 0], 0
    for place, is_wanted, now in zip(which.tolist(), wanted.tolist(), nows.tolist(), strict=True):
        one = ones[place].part(nexts[place], nexts[place] + 1)
        expected = plain.observe(one, 0, now_ms=now, bounds=True)
        assert ones[place].outcomes[nexts[place]] == one.outcomes[0] == Outcome.ACCEPTED
        nexts[place] += 1
        if is_wanted:
            for name in ("values", "lower", "upper", "statuses", "coverage"):
                np.testing.assert_array_equal(getattr(found, name)[row], getattr(expected, name)[0])
            row += 1
    assert row == len(found.values) == 4
    assert merged.snapshot() == plain.snapshot()
    assert merged.observe_merged([(ones[0], 0, True)], np.zeros(5, np.uint32)) is None
    assert merged.snapshot() == plain.snapshot()


@pytest.mark.parametrize(
    ("which", "first", "options", "says"),
    [
        ([0, 0], 4, {}, "batch 0 has 5 events; 2 from 4 on are to come"),
        ([0], -1, {}, "batch 0 has 5 events; 1 from -1 on are to come"),
        ([0, 1], 0, {}, "which names batch 1; there are 1"),
        ([0, 0], 0, {"wanted": np.ones(1, np.uint8)}, "wanted: 1 entries where 2 are needed"),
        ([0, 0], 0, {"wanted": np.array([1, 2], np.uint8)}, "other numbers than 0 and 1"),
        ([0, 0], 0, {"nows_ms": np.zeros(2)}, "nows_ms: expected a 1-d int64 array"),
    ],
)
def test_what_does_not_fit_the_batches_that_alternate_is_an_error(
    which: list[int], first: int, options: dict[str, Any], says: str
) -> None:
    state = State(PLAN)
    with pytest.raises(InvalidEventError, match=says):
        state.observe_merged([(plays(5), first, False)], np.array(which, np.uint32), 0, **options)
    assert state.position == 0


@pytest.mark.parametrize("n_shards", [1, 2, 64])
def test_every_row_is_found_again_however_often_its_index_grew(n_shards: int) -> None:
    state = State(PLAN, n_shards=n_shards)
    n = 20_000
    state.observe(plays(n, step=0))
    assert state.stats()["rows"] == 2 * n + 1
    assert counts(state, [f"a{i}" for i in range(n)], 1_000_000) == [1.0] * n
    assert counts(state, ["a-1", f"a{n}"], 1_000_000) == [0.0, 0.0]


def test_rows_that_hold_nothing_are_freed_and_their_memory_serves_the_next_ones() -> None:
    state = State(PLAN, n_shards=4)
    used = []
    for turn in range(6):
        state.observe(plays(5_000, start=turn * 1_000_000, step=0, prefix=f"{turn}-"))
        state.sweep()
        used.append(state.stats()["used_bytes"])
    assert state.stats()["rows"] == 2 * 5_000 + 1
    assert used[-1] <= used[1]


def test_past_the_memory_limit_a_key_without_a_row_is_shed_and_known_ones_go_on() -> None:
    state = State(PLAN, n_shards=1, max_memory_bytes=300)
    state.observe(plays(1))
    again = batch(
        ts=[1_000_001, 1_000_002], account=["a0", "new"], track=["t", "t"], ms=[1, 1], id=["x", "y"]
    )
    state.observe(again)
    assert list(again.outcomes) == [Outcome.ACCEPTED] * 2
    keys = [state.plan.entities[touch.entity].parts for touch in state.plan.events[0].touches]
    shed = [{keys[j] for j in range(len(keys)) if int(bits) >> j & 1} for bits in again.shed]
    assert shed == [set(), {("account",), ("account", "track")}], "the pair is known, too"
    assert counts(state, ["a0", "new"], 1_000_002) == [2.0, 0.0]


def test_memory_of_rows_that_were_freed_is_there_for_new_ones() -> None:
    state = State(PLAN, n_shards=1, max_memory_bytes=1 << 20)

    def kept(turn: int, name: str = "") -> int:
        """Of 1,000 events of new accounts, those of which nothing was shed."""
        sent = batch(
            ts=[turn * 10_000_000] * 1_000,
            account=[f"{name}{i}" for i in range(1_000)],
            track=["t"] * 1_000,
            ms=[1.0] * 1_000,
            id=[f"{turn}-{name}{i}" for i in range(1_000)],
        )
        state.observe(sent)
        assert not sent.outcomes.any()
        return int((sent.shed == 0).sum())

    n = 0
    while kept(1, f"{n}-"):
        n += 1
        assert n < 50
    clock = one(PLAN, ts=[10_000_000 * 3], account=["0-0"], id=["clock"])
    state.observe(clock)
    assert list(clock.outcomes) == [Outcome.ACCEPTED], "a known key goes on"
    assert state.sweep() > 1_000
    assert kept(4) == 1_000


def test_a_peek_says_what_observe_then_says_and_leaves_no_trace() -> None:
    state = State(PLAN)
    state.observe(plays(100, keys=3))
    before = state.digest()
    event = batch(ts=[1_000_200], account=["a1"], track=["t"], ms=[5], id=["new"])
    peeked = state.observe(event, 0, bounds=True, peek=True)
    assert state.digest() == before
    observed = state.observe(event, 0, bounds=True)
    for name in ("values", "lower", "upper", "statuses", "coverage"):
        assert getattr(peeked, name).tobytes() == getattr(observed, name).tobytes()


def test_a_sequence_is_applied_once_and_judged_by_its_content_and_age() -> None:
    state = State(PLAN)
    for sequence in (3, 1, 2_000):
        state.observe(plays(2, prefix=f"{sequence}-"), producer=b"p", epoch=1, sequence=sequence)
    position = state.position
    retry = plays(2, prefix="2000-")
    state.observe(retry, producer=b"p", epoch=1, sequence=2_000)
    assert list(retry.outcomes) == [Outcome.DUPLICATE] * 2 and state.position == position
    with pytest.raises(InvalidEventError, match="other content"):
        state.observe(plays(2, prefix="other"), producer=b"p", epoch=1, sequence=2_000)
    with pytest.raises(SequenceError, match="1,024 below"):
        state.observe(plays(2, prefix="old"), producer=b"p", epoch=1, sequence=975)
    state.observe(plays(2, prefix="edge"), producer=b"p", epoch=1, sequence=976)
    state.observe(plays(2, prefix="epoch"), producer=b"p", epoch=2, sequence=1)
    with pytest.raises(SequenceError, match="fenced"):
        state.observe(plays(2, prefix="late"), producer=b"p", epoch=1, sequence=2_001)


def test_a_retry_of_a_batch_with_unreadable_events_is_told_by_its_content() -> None:
    state = State(PLAN)

    def mixed() -> EventBatch:
        return batch(
            ts=[1_000_000, 1_000_000], account=["a", 1.5], track=["t", "t"], ms=[np.inf, 2], id=["1", "2"]
        )

    sent, retry = mixed(), mixed()
    state.observe(sent, producer=b"p", sequence=1)
    position = state.position
    state.observe(retry, producer=b"p", sequence=1)
    assert list(retry.outcomes) == list(sent.outcomes)
    assert state.position == position


DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000


def write(state: State, name: bytes, sequence: int = 1, *, epoch: int = 0, now_ms: int = NOW_MS) -> int:
    """Outcome of the one event of a batch that is always the same."""
    sent = plays(1, start=NOW_MS, prefix=f"{name!r}{epoch}-{sequence}")
    state.observe(sent, producer=name, epoch=epoch, sequence=sequence, now_ms=now_ms)
    return int(sent.outcomes[0])


def made_up(i: int) -> bytes:
    return b"client-%016x" % i


@pytest.mark.parametrize(
    ("first", "second", "idle_ms"),
    [(b"given-%017d", b"client-%016x", 7 * DAY_MS), (b"client-%016x", b"given-%017d", 15 * 60_000)],
)
def test_a_producer_too_many_is_turned_away_until_one_of_its_kind_was_silent_for_long_enough(
    first: bytes, second: bytes, idle_ms: int
) -> None:
    state = State(PLAN, max_producer_bytes=2 * 10 * (176 + 23))
    for i in range(10):
        write(state, first % i)
    with pytest.raises(LimitError, match="memory for producers of its kind"):
        write(state, first % 99)
    for i in range(10):
        assert write(state, second % i) == Outcome.ACCEPTED, "the other kind has memory of its own"
    with pytest.raises(LimitError, match="memory for producers of its kind"):
        write(state, first % 99, now_ms=NOW_MS + idle_ms)
    assert write(state, first % 99, now_ms=NOW_MS + idle_ms + 1) == Outcome.ACCEPTED
    stats = state.stats()
    assert stats["producers_refused"] == 2
    assert stats["producer_bytes"] <= stats["max_producer_bytes"]


EMPTY = batch(ts=[None], account=["a"], track=["t"], ms=[1.0], id=["x"])


def test_a_producer_costs_what_it_has_sent() -> None:
    state = State(PLAN)
    sizes = []
    for sequence in range(1, 2_050):
        state.observe(EMPTY, producer=b"p", sequence=sequence, now_ms=NOW_MS)
        sizes.append(state.stats()["producer_bytes"])
    assert sizes[2] < 200
    assert sizes[100] < 1_400
    assert sizes[-1] == sizes[1_100] < 8_500


@pytest.mark.parametrize("seed", range(8))
def test_what_was_seen_of_the_last_1025_sequences_is_told_in_any_order(seed: int) -> None:
    draw = np.random.default_rng(seed)
    state = State(PLAN)
    seen: dict[int, bool] = {}
    highest = epoch = 0
    for step in range(3_000):
        kind = draw.integers(100)
        if kind == 0:
            epoch += 1
            seen, highest = {}, 0
        step_up = int(draw.integers(1, 4)) if kind < 60 else int(draw.integers(1, 700)) if kind == 60 else 0
        sequence = highest + step_up if step_up else max(1, highest - int(draw.integers(0, 1_100)))
        if step % 400 == 399:
            state = State.restore(PLAN, state.snapshot())
        position = state.position
        too_old = bool(seen) and highest - sequence > 1_024
        try:
            state.observe(EMPTY, producer=b"p", epoch=epoch, sequence=sequence, now_ms=NOW_MS)
        except SequenceError:
            assert too_old
            continue
        assert not too_old
        assert (state.position == position) == (sequence in seen)
        seen[sequence] = True
        highest = max(highest, sequence)
        if step % 50 == 0:
            known = state.producer(b"p", now_ms=NOW_MS)
            assert known is not None
            lowest = max(0, highest - 1_024)
            assert known[:3] + known[4:] == (epoch, highest, lowest, NOW_MS)
            assert known.seen == tuple(sorted((each for each in seen if each >= lowest), reverse=True))


def test_what_is_known_of_a_producer_is_known_for_as_long_as_it_is_remembered() -> None:
    state = State(PLAN)
    write(state, b"p", 5, epoch=3)
    write(state, b"p", 0, epoch=3)
    assert state.producer(b"p", now_ms=NOW_MS) == (3, 5, 0, (5, 0), NOW_MS)
    for unknown in (b"", b"q", b"p" * 256):
        assert state.producer(unknown, now_ms=NOW_MS) is None
    assert state.producer(b"p", now_ms=NOW_MS + 7 * DAY_MS) is not None
    assert state.producer(b"p", now_ms=NOW_MS + 7 * DAY_MS + 1) is None
    state.reset_producer(b"p", 4, 9, now_ms=NOW_MS)
    assert state.producer(b"p", now_ms=NOW_MS) == (4, 9, 10, (), NOW_MS)
    assert write(state, b"p", 12, epoch=4) == Outcome.ACCEPTED
    assert state.producer(b"p", now_ms=NOW_MS) == (4, 12, 10, (12,), NOW_MS)


def test_a_number_out_of_reach_is_refused_and_does_not_fence_its_owner_off() -> None:
    state = State(PLAN)
    write(state, b"p", 7, epoch=3)
    for epoch, sequence in ((2**64 - 1, 1), (3, 2**64 - 1), (4, 2**64 - 1), (3 + 2**40 + 1 + 2**62, 1)):
        with pytest.raises(InvalidEventError, match="out of reach"):
            write(state, b"p", sequence, epoch=epoch)
    with pytest.raises(InvalidEventError, match="out of reach"):
        write(state, b"new", 1, epoch=2**64 - 1)
    assert write(state, b"p", 8, epoch=3) == Outcome.ACCEPTED
    assert write(state, b"p", 8 + 2**40, epoch=3) == Outcome.ACCEPTED
    for epoch in (NOW_MS, NOW_MS * 1_000_000, (NOW_MS + DAY_MS) * 1_000_000):
        assert write(state, b"by time", 1, epoch=epoch) == Outcome.ACCEPTED, "a time may be an epoch"


@pytest.mark.parametrize(("epoch", "sequence"), [(3, 7 + 2**40), (3 + 2**40, 1)])
def test_an_owner_fenced_off_by_another_goes_on_where_an_operator_says(epoch: int, sequence: int) -> None:
    state = State(PLAN)
    for own in (6, 7):
        write(state, b"p", own, epoch=3)
    write(state, b"p", sequence, epoch=epoch)  # not by its owner
    with pytest.raises(SequenceError, match="operator reset"):
        write(state, b"p", 8, epoch=3)
    position = state.position
    assert state.reset_producer(b"p", 3, 7, now_ms=NOW_MS)
    assert state.position == position + 1
    assert write(state, b"p", 8, epoch=3) == Outcome.ACCEPTED
    for each in (state, State.restore(PLAN, state.snapshot())):
        position = each.position
        assert write(each, b"p", 8, epoch=3) == Outcome.DUPLICATE
        for before in (1, 6, 7):  # whether they had counted was lost with the jump: never twice
            with pytest.raises(SequenceError, match="from before an operator reset"):
                write(each, b"p", before, epoch=3)
        assert each.position == position
        assert write(each, b"p", 10, epoch=3) == Outcome.ACCEPTED
        assert write(each, b"p", 9, epoch=3) == Outcome.ACCEPTED
        assert write(each, b"p", 1, epoch=4) == Outcome.ACCEPTED, "its next life begins as any"
    assert not state.reset_producer(b"other", 3, 7, now_ms=NOW_MS)
    with pytest.raises(InvalidEventError, match="below 2"):
        state.reset_producer(b"p", 0, 2**63)


def test_a_producer_that_was_dropped_is_as_if_it_had_never_written() -> None:
    state, other = State(PLAN), State(PLAN)
    before = producers(state)
    for each in (state, other):
        write(each, b"other", 1)
    write(state, b"p", 5, epoch=3)
    position = state.position
    assert state.drop_producer(b"p", now_ms=NOW_MS)
    assert not state.drop_producer(b"p", now_ms=NOW_MS)
    assert state.position == position + 1, "one position, and none where there is nothing to drop"
    assert producers(state) == producers(other) != before
    state.observe(EMPTY, producer=b"p", epoch=0, sequence=5, now_ms=NOW_MS)
    assert state.position == position + 2, "sent again, it counts again"
    assert not state.drop_producer(b"p", now_ms=NOW_MS + 8 * DAY_MS), "forgotten, it is not known any more"


def test_producers_are_listed_by_name_page_by_page_while_others_come() -> None:
    state = State(PLAN)
    for i in range(2_500):
        state.observe(EMPTY, producer=b"%d" % i, epoch=i, sequence=i + 1, now_ms=NOW_MS)
    state.observe(EMPTY, producer=made_up(1), sequence=1, now_ms=NOW_MS + 1)
    after, pages, found = 0, 0, []
    while True:
        some, following = state.list_producers(after, at_least=100, now_ms=NOW_MS, max_places=8)
        found += some
        pages += 1
        for i in range(100):
            state.observe(EMPTY, producer=b"new%d-%d" % (pages, i), sequence=1, now_ms=NOW_MS)
        if following is None:
            break
        assert following > after
        after = following
    assert pages > 20
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    known = {each.name: each for each in found}
    assert all(known[b"%d" % i][1:] == (i, i + 1, NOW_MS, False) for i in range(2_500))
    assert known[made_up(1)][1:] == (0, 1, NOW_MS + 1, True)
    for nowhere in (1, 2**64 - 1, 5000 << 32, 1 << 32, 1024 << 32 | 1024):
        with pytest.raises(InvalidEventError, match="begin again"):
            State(PLAN).list_producers(nowhere)
    listed, _ = state.list_producers(at_least=10**6, now_ms=NOW_MS + 15 * 60_000 + 2)
    assert made_up(1) not in {each.name for each in listed}, "forgotten, though its memory is in use"


def test_a_longer_name_takes_more_of_the_memory() -> None:
    state = State(PLAN)
    sizes = []
    for n in (1, 100, 255):
        before = state.stats()["producer_bytes"]
        write(state, b"p" * n)
        sizes.append(state.stats()["producer_bytes"] - before - n)
    assert sizes == [sizes[0]] * 3
    assert state.drop_producer(b"p" * 255, now_ms=NOW_MS)
    state.drop_producer(b"p" * 100, now_ms=NOW_MS)
    state.drop_producer(b"p", now_ms=NOW_MS)
    assert state.stats()["producer_bytes"] == 0


def test_silence_is_judged_by_the_servers_clock_and_not_by_the_times_of_events() -> None:
    state = State(PLAN, clock="event")
    assert write(state, made_up(1)) == Outcome.ACCEPTED
    state.observe(plays(1, start=NOW_MS + 30 * DAY_MS, prefix="history-"), now_ms=NOW_MS + 1_000)
    again = plays(1, start=NOW_MS, prefix=f"{made_up(1)!r}0-1")
    position = state.position
    state.observe(again, producer=made_up(1), sequence=1, now_ms=NOW_MS + 2_000)
    assert list(again.outcomes) == [Outcome.DUPLICATE]
    assert state.position == position


def test_a_ticket_is_known_for_15_minutes_after_it_was_sent_whatever_its_client_sends_meanwhile() -> None:
    """A client's lanes are producers of their own: writes of one keep no other in mind."""
    state, lane, next_lane = State(PLAN), made_up(1), made_up(1) + b"/1"
    sent_ms, minutes_15 = NOW_MS, 15 * 60_000
    assert write(state, lane, now_ms=sent_ms) == Outcome.ACCEPTED
    for i in range(1, 15):
        write(state, next_lane, i, now_ms=sent_ms + i * 60_000)
    assert state.producer(lane, now_ms=sent_ms + minutes_15) is not None
    assert state.producer(lane, now_ms=sent_ms + minutes_15 + 1) is None
    assert state.producer(next_lane, now_ms=sent_ms + minutes_15 + 1) is not None


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_ids_past_their_cap_refuse_events_and_expire_with_the_horizon(clock: str) -> None:
    state = State(PLAN, dedupe_memory_bytes=3 * 36, clock=clock)
    first = plays(5, step=0)
    state.observe(first, now_ms=1_000_000)
    assert list(first.outcomes) == [Outcome.ACCEPTED] * 3 + [Outcome.REFUSED_MEMORY] * 2
    assert state.stats()["ids"] == 3
    for now_ms, outcome in ((1_060_000, Outcome.REFUSED_MEMORY), (1_070_000, Outcome.ACCEPTED)):
        again = plays(3, start=now_ms, step=0, prefix=f"{now_ms}-")
        state.observe(again, now_ms=now_ms)
        assert list(again.outcomes) == [outcome] * 3
    assert state.stats()["ids"] == 3


def test_the_cap_holds_for_all_event_types_together_and_counts_what_has_not_expired() -> None:
    two = SCHEMA.replace(
        "views:", "  skip:\n    time: {field: ts, unit: ms}\n    ids: {id: id, dedupe: 60s}\nviews:"
    )
    plan = compile_schema(two)
    state = State(plan, dedupe_memory_bytes=10 * 36, clock="wall")
    accepted = []
    for turn in range(200):
        now_ms = 1_000_000 + turn * 9_000  # six or seven turns lie within the horizon
        event = plan.events[turn % 2]
        data: dict[str, Any] = {"ts": [now_ms] * 2, "id": [f"{turn}", f"{turn}b"]}
        data |= {"account": ["a"] * 2, "track": ["t"] * 2, "ms": [1] * 2} if turn % 2 == 0 else {}
        sent = EventBatch(event, turn % 2, *event_columns(event, data))
        state.observe(sent, now_ms=now_ms)
        accepted.append(int((sent.outcomes == Outcome.ACCEPTED).sum()))
        assert sum(accepted[-6:]) <= 10
        assert state.stats()["ids"] <= 20
    assert sum(accepted[100:]) >= 100 * 10 // 8


def changed(old: str, new: str, plan: Plan = PLAN, **options: Any) -> Plan:
    assert SCHEMA.count(old) == 1
    return compile_schema(SCHEMA.replace(old, new), previous=plan, **options)


def one(plan: Plan, **columns: Any) -> EventBatch:
    event = plan.events[0]
    data: dict[str, Any] = {"account": ["a"], "track": ["t"], "ms": [1.0]} | columns
    return EventBatch(event, 0, *event_columns(event, data))


def test_a_longer_horizon_does_not_bring_back_ids_that_had_expired() -> None:
    state = State(PLAN)
    state.observe(plays(1, prefix="old"))
    state.observe(plays(1, start=1_100_000, prefix="young"))
    restarted = State.restore(PLAN, state.snapshot())
    longer = changed("dedupe: 60s", "dedupe: 1d", now_ms=1_100_000)
    outcomes = []
    for each in (state, restarted):
        each.apply_plan(longer)
        for name in ("old0", "young0"):
            sent = one(longer, ts=[1_100_001], id=[name])
            each.observe(sent)
            outcomes.append(sent.outcomes[0])
    assert outcomes == [Outcome.ACCEPTED, Outcome.DUPLICATE] * 2
    assert state.digest() == restarted.digest()


def test_ids_of_another_field_are_other_ids() -> None:
    state = State(PLAN)
    state.observe(plays(1, prefix="t"))
    other = changed("ids: {id: id", "ids: {id: track", now_ms=1_000_000)
    state.apply_plan(other)
    sent = one(other, ts=[1_000_001], id=["x"], track=["t0"])
    state.observe(sent)
    assert list(sent.outcomes) == [Outcome.ACCEPTED]
    state.apply_plan(compile_schema(SCHEMA, previous=other, now_ms=1_000_001))
    again = one(PLAN, ts=[1_000_002], id=["t0"])
    state.observe(again)
    assert list(again.outcomes) == [Outcome.ACCEPTED], "its ids ended with the change before"


def producers(state: State) -> bytes:
    """In canonical order, as a snapshot has them after the head and the ids."""
    data, at = state.snapshot(), 32
    for _ in range(3):
        size = int.from_bytes(data[at : at + 8], "little")
        section, at = data[at + 8 : at + 8 + size], at + 8 + size
    return section


@pytest.mark.parametrize("secret", range(4))
def test_producers_are_all_copied_though_they_come_and_go_and_write_meanwhile(secret: int) -> None:
    state = State(PLAN, secret=bytes([secret] * 16), n_shards=1)
    for i in range(1_500):
        state.observe(EMPTY, producer=b"gone%d" % i, sequence=1, now_ms=NOW_MS)
    now_ms = NOW_MS + 7 * DAY_MS
    for i in range(700):
        state.observe(EMPTY, producer=b"%d" % i, sequence=1, now_ms=now_ms)
    n = iter(range(10_000))

    def meanwhile() -> None:
        i = next(n)
        state.observe(EMPTY, producer=b"new%d" % i, sequence=1, now_ms=now_ms + 1)
        state.observe(EMPTY, producer=b"%d" % (i % 700), sequence=2 + i // 700, now_ms=now_ms + 1)

    copied = state.copy_producers(1, meanwhile)
    n_calls = next(n)
    assert n_calls > 1_024, "it ends though the table grows with each slice"
    copy = State(PLAN, secret=bytes([secret] * 16), n_shards=1)
    import_copied(copy, copied)
    for i in range(n_calls):  # what a replay of the journal from the cut on does
        copy.observe(EMPTY, producer=b"new%d" % i, sequence=1, now_ms=now_ms + 1)
        copy.observe(EMPTY, producer=b"%d" % (i % 700), sequence=2 + i // 700, now_ms=now_ms + 1)
    assert producers(copy) == producers(state)


def test_what_a_checkpoint_knows_of_later_batches_does_not_change_when_one_was_heard_of() -> None:
    def steps(state: State) -> None:
        state.observe(EMPTY, producer=b"early", sequence=2, now_ms=NOW_MS + 1_000)
        state.reset_producer(b"reset", 2, 7, now_ms=NOW_MS + 2_000)
        state.observe(EMPTY, producer=b"gone", sequence=2, now_ms=NOW_MS + 2_000)
        state.drop_producer(b"gone", now_ms=NOW_MS + 2_500)
        state.observe(EMPTY, producer=b"late", sequence=1, now_ms=NOW_MS + 3_000)

    state = State(PLAN)
    for name in (b"early", b"reset", b"gone"):
        state.observe(EMPTY, producer=name, epoch=0, sequence=1, now_ms=NOW_MS)
    _, head = state.cut()
    steps(state)
    copied = state.copy_producers()  # after the cut, from which a replay begins
    state.copy_end(False)
    again = State(PLAN)
    again.import_head(head)
    import_copied(again, copied)
    steps(again)
    assert producers(again) == producers(state)


@pytest.mark.parametrize("seed", range(12))
def test_checkpoints_of_what_changed_make_up_all_whatever_becomes_of_them(seed: int) -> None:
    """Some are written and some are lost; producers write, fall silent for long, are dropped and reset,
    between the slices too."""
    random_ = random.Random(seed)
    state = State(PLAN, n_shards=1, max_producer_bytes=80_000)
    now_ms, journal, touched = NOW_MS, list[Callable[[State], object]](), set[bytes]()
    stored: dict[bytes, bytes] = {}
    head = b""

    def step(most: int) -> None:
        nonlocal now_ms
        for _ in range(random_.randrange(most)):
            name = b"%d" % random_.randrange(60)
            if random_.randrange(3) == 0:
                name = b"client-%016x" % random_.randrange(60)
            touched.add(name)
            now_ms += random_.choice([1, 1, 1, 1000, 400_000, DAY_MS]) if random_.randrange(3) == 0 else 0
            n, what, position = random_.randrange(1, 1 << 20), random_.randrange(8), state.position
            if what == 0:
                change = partial(State.drop_producer, name=name, now_ms=now_ms)
            elif what == 1:
                change = partial(State.reset_producer, name=name, epoch=n % 5, sequence=n % 9, now_ms=now_ms)
            else:
                change = partial(sent, name=name, epoch=n % 5, sequence=n // 5 % 30, now_ms=now_ms)
            change(state)
            if state.position > position:
                journal.append(change)

    for _ in range(60):
        step(40)
        journal.clear()
        state.cut()
        head, copied = state.copy_producers(
            random_.choice([1, 7, 5000]), lambda: step(3) if random_.randrange(300) == 0 else None
        )
        records = list(split_records(bytes(copied)))
        assert records == sorted(records)
        written = random_.randrange(3) > 0
        state.copy_end(written)
        if not written:
            continue
        assert len(records) <= 2 * len(touched) + 16, "what nobody touched is not written again"
        touched.clear()
        for record in records:
            if record[16:20] == FREED:
                stored.pop(record[:16], None)
            else:
                stored[record[:16]] = record
        again = State(PLAN, n_shards=1)
        import_copied(again, (head, b"".join(stored[key] for key in sorted(stored))))
        for change in [*journal, partial(sent, name=b"last", epoch=9, sequence=now_ms, now_ms=now_ms)]:
            change(again)
        sent(state, b"last", 9, now_ms, now_ms)
        assert producers(again) == producers(state)
        assert len(stored) <= state.stats()["producers"] + 60


def sent(state: State, name: bytes, epoch: int, sequence: int, now_ms: int) -> None:
    with contextlib.suppress(SequenceError, LimitError):
        state.observe(EMPTY, producer=name, epoch=epoch, sequence=sequence, now_ms=now_ms)


def import_copied(state: State, copied: tuple[bytes, Buffer]) -> None:
    head, records = copied
    assert state.import_producers(head)
    state.import_producer_records(bytes(records))


def test_what_is_kept_of_producers_that_are_gone_counts_against_their_memory_until_a_checkpoint() -> None:
    state = State(PLAN, max_producer_bytes=400_000)

    def checkpoint(written: bool) -> int:
        state.cut()
        _, records = state.copy_producers()
        state.copy_end(written)
        return len(records)

    checkpoint(True)
    for day in range(40):  # of which no checkpoint is written
        for i in range(500):
            sent(state, b"d%d-%d" % (day, i), 1, 1, NOW_MS + 8 * day * DAY_MS + i)
        checkpoint(False)
        assert state.stats()["producer_bytes"] <= 200_000
    n_bytes = state.stats()["producer_bytes"]
    assert checkpoint(True) > 20 * 10_000
    assert state.stats()["producer_bytes"] < n_bytes
    assert checkpoint(True) == 0


def test_a_name_that_a_store_of_before_did_not_keep_is_known_when_it_writes_again() -> None:
    state = State(PLAN)
    for sequence in (1, 2, 9):
        state.observe(EMPTY, producer=b"ingest-1", epoch=4, sequence=sequence, now_ms=NOW_MS)
    data = producers(state)
    name = b"ingest-1"
    assert data[72:80] == name
    record = data[16:57].ljust(42, b"\0") + data[58:64] + data[80:]
    again = State(PLAN)
    again.import_producers(b"\2" + data[1:16] + record)
    ((unnamed,), following) = again.list_producers(now_ms=NOW_MS)
    assert (*unnamed, following) == (None, 4, 9, NOW_MS, False, None)
    before = again.stats()["producer_bytes"]
    assert again.reset_producer(name, 4, 9, now_ms=NOW_MS), "by its name all the same"
    again.observe(EMPTY, producer=name, epoch=4, sequence=10, now_ms=NOW_MS + 1)
    ((named,), _) = again.list_producers(now_ms=NOW_MS)
    assert tuple(named) == (name, 4, 10, NOW_MS + 1, False)
    assert again.stats()["producer_bytes"] == before + len(name)


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_producers_of_the_version_before_are_read_and_their_retries_told(clock: str) -> None:
    state = State(PLAN, clock=clock)
    for sequence in (1, 900, 1_500):
        state.observe(EMPTY, producer=b"p", epoch=4, sequence=sequence, now_ms=NOW_MS)
    content = int.from_bytes(producers(state)[-8:], "little")
    fingerprint = producers(state)[16:32]
    places = [0] * 1025
    for sequence in (900, 1_500):
        places[sequence % 1025] = content
    before = fingerprint + struct.pack("<QQq1025Q", 4, 1_500, NOW_MS, *places)
    again = State(PLAN, clock=clock)
    again.import_producers(before)
    for sequence, is_new in ((900, False), (901, True), (1_500, False), (1_501, True)):
        position = again.position
        again.observe(EMPTY, producer=b"p", epoch=4, sequence=sequence, now_ms=NOW_MS + 1)
        assert again.position == position + is_new
    with pytest.raises(SequenceError, match="fenced"):
        again.observe(EMPTY, producer=b"p", epoch=3, sequence=1, now_ms=NOW_MS + 1)
    # Of one that never writes again nobody knows since when it is silent: no longer than from here on.
    last = State(PLAN, clock=clock)
    last.import_producers(before)
    for days in (0, 7, 8):
        last.observe(EMPTY, producer=b"other%d" % days, sequence=1, now_ms=NOW_MS + days * DAY_MS)
    assert last.stats()["producers"] == 2, "p and the first of the others are forgotten"


def retried(state: State, plan: Plan, **columns: Any) -> int:
    sent = one(plan, **columns)
    state.observe(sent, now_ms=1_061_000)
    return int(sent.outcomes[0])


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize(
    ("before", "after", "floor_ms"),
    [
        ("ids: {id: id, dedupe: 60s}", "ids: {id: id, dedupe: 10m}", 1_001_000),
        ("ids: {id: id, dedupe: 60s}", "ids: {id: track, dedupe: 10m}", 1_061_000),
        ("lateness: 10s", "lateness: 10s\n    ids: {id: id, dedupe: 10m}", 1_061_000),
    ],
)
def test_a_late_retry_is_refused_where_its_id_was_not_kept(
    clock: str, before: str, after: str, floor_ms: int
) -> None:
    source = SCHEMA if before in SCHEMA else SCHEMA.replace("    ids: {id: id, dedupe: 60s}\n", "")
    if before.startswith("lateness"):
        source = SCHEMA.replace("    ids: {id: id, dedupe: 60s}\n", "")
    plan = compile_schema(source, now_ms=1_000_000)
    state = State(plan, clock=clock)
    first = one(plan, ts=[1_000_500], id=["x"], track=["x"])
    state.observe(first, now_ms=1_000_500)
    state.observe(one(plan, ts=[1_061_000], id=["clock"], track=["clock"]), now_ms=1_061_000)
    now_ms = 1_061_000 if clock == "wall" else {"play": 1_061_000}
    changed = compile_schema(source.replace(before, after), previous=plan, now_ms=now_ms)
    assert changed.events[0].dedupe_floor_ms == floor_ms
    state.apply_plan(changed)
    for each in (state, State.restore(Plan.from_json(changed.to_json()), state.snapshot())):
        assert retried(each, changed, ts=[1_000_500], id=["x"], track=["x"]) == Outcome.REFUSED_BEYOND_DEDUPE
        at_floor = {"ts": [floor_ms], "id": [f"{id(each)}"], "track": ["t"]}
        assert retried(each, changed, **at_floor) == Outcome.ACCEPTED
    again = compile_schema(source.replace(before, after) + "# same", previous=changed, now_ms=now_ms)
    assert again.events[0].dedupe_floor_ms == floor_ms, "it stays"


def test_a_longer_idle_does_not_bring_back_a_lifetime_that_had_ended() -> None:
    def source(idle: str) -> str:
        view = "{event: play, key: account, windows: [10s, 60s], features: [count, sum(ms)]}"
        assert view in SCHEMA
        return SCHEMA.replace(
            view,
            f"{{event: play, key: account, windows: [lifetime], features: [count], lifetime_idle: {idle}}}",
        )

    plan = compile_schema(source("100s"))
    state = State(plan)
    state.observe(one(plan, ts=[1_000_000], id=["x"]))
    state.observe(one(plan, ts=[1_200_000], id=["y"], account=["b"]))
    restarted = State.restore(plan, state.snapshot())
    longer = compile_schema(source("1d"), previous=plan, now_ms=1_200_000)
    for each in (state, restarted):
        each.apply_plan(longer)
        keys, _ = text_column(["a", "b"])
        assert each.read(0, {"account": keys}, 2).values[:, 0].tolist() == [0.0, 1.0]
    assert state.digest() == restarted.digest()
    for each in (state, restarted):
        each.observe(one(longer, ts=[1_200_001], id=["z"]))
        assert each.read(0, {"account": keys}, 2).values[:, 0].tolist() == [1.0, 1.0]
    assert state.digest() == restarted.digest()


def test_a_retry_is_told_though_fields_were_added_or_moved_since() -> None:
    state = State(PLAN)
    state.observe(plays(2), producer=b"p", sequence=1)
    plan = PLAN
    for fields in (
        "{account: key, track: key, ms: number, id: string, free: bool, country: string}",
        "{country: string, ms: number, id: string, track: key, account: key}",
    ):
        source = SCHEMA.replace("{account: key, track: key, ms: number, id: string}", fields)
        plan = compile_schema(source, previous=plan, now_ms=1_000_001)
        state.apply_plan(plan)
        event = plan.events[0]
        data: dict[str, Any] = {"ts": [1_000_000, 1_000_001], "account": ["a0", "a1"], "track": ["t", "t"]}
        data |= {"ms": [0.0, 1.0], "id": ["i0", "i1"]}
        retry = EventBatch(event, 0, *event_columns(event, data))
        state.observe(retry, producer=b"p", sequence=1)
        assert list(retry.outcomes) == [Outcome.DUPLICATE] * 2
        other = EventBatch(event, 0, *event_columns(event, data | {"country": ["fr", None]}))
        with pytest.raises(InvalidEventError, match="other content"):
            state.observe(other, producer=b"p", sequence=1)


def test_values_of_one_field_are_not_those_of_another() -> None:
    state = State(PLAN)
    state.observe(batch(ts=[0], account=["a"], track=[None], ms=[1], id=["x"]), producer=b"p", sequence=1)
    with pytest.raises(InvalidEventError, match="other content"):
        state.observe(batch(ts=[0], account=[None], track=["a"], ms=[1], id=["x"]), producer=b"p", sequence=1)


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("start_ms", [1_000_000, -5_000_000_000])
def test_an_event_without_a_time_reads_at_now_wherever_it_is_in_its_batch(clock: str, start_ms: int) -> None:
    first = batch(ts=[start_ms], account=["a"], track=["t"], ms=[1], id=["x"])
    mixed: dict[str, Any] = {
        "ts": [None, start_ms + 5_000, None, start_ms + 20_000],
        "account": ["a"] * 4,
        "track": ["t"] * 4,
        "ms": [1] * 4,
        "id": ["p", "q", "r", "s"],
    }
    whole, parts = State(PLAN, clock=clock), State(PLAN, clock=clock)
    now_ms = start_ms + 20_000
    for state in (whole, parts):
        state.observe(first, now_ms=start_ms)
    together = whole.observe(batch(**mixed), 0, now_ms=now_ms)
    alone = [
        parts.observe(batch(**{name: values[i : i + 1] for name, values in mixed.items()}), 0, now_ms=now_ms)
        for i in range(4)
    ]
    assert together is not None
    for name in ("values", "statuses", "coverage"):
        assert [getattr(v, name).tobytes() for v in alone] == [
            row.tobytes() for row in getattr(together, name)
        ]
    # One event within 10 s of now, or none; two when the second comes; the last is alone.
    expected = [1, 2, 2, 1] if clock == "event" else [0, 2, 0, 1]
    assert list(together.values[:, 0]) == expected


def test_a_row_outlives_any_number_of_views_that_came_and_went() -> None:
    views = [[f"v{turn}_{i}" for i in range(100)] for turn in range(5)]
    plan, state = None, None
    for turn, names in enumerate(views):
        source = (
            "version: 1\nname: many\nevents:\n  e: {time: {field: ts, unit: ms}, fields: {k: key}}\nviews:\n"
        )
        source += "".join(
            f"  {name}: {{event: e, key: k, windows: [60s, lifetime], features: [count]}}\n" for name in names
        )
        source += f"services:\n  all: [{', '.join(f'{name}.*' for name in names)}]\n"
        plan = compile_schema(source, previous=plan, now_ms=turn)
        if state is None:
            state = State(plan, n_shards=1)
        else:
            state.apply_plan(plan)
        sent = EventBatch(
            plan.events[0], 0, *event_columns(plan.events[0], {"ts": [turn] * 3, "k": ["a"] * 3})
        )
        vectors = state.observe(sent, 0)
        assert vectors is not None
        assert vectors.values[2].tolist() == [3.0] * 200
    assert plan is not None and state is not None
    assert State.restore(plan, state.snapshot()).digest() == state.digest()


def kept(state: State) -> list[tuple[bytes, ...]]:
    return sorted(
        state.keys(state.plan.entities.index(next(e for e in state.plan.entities if len(e.parts) == 2)))
    )


def test_raw_keys_are_kept_from_when_it_is_asked_for_until_it_is_not() -> None:
    state = State(PLAN)
    with pytest.raises(UnknownNameError, match="keep_keys"):
        kept(state)
    state.observe(plays(3))
    turned_on = compile_schema(SCHEMA + "keep_keys: [[account, track]]\n", previous=PLAN, now_ms=1_000_002)
    state.apply_plan(turned_on)
    assert kept(state) == []
    state.observe(plays(2, start=1_000_003, prefix="n"))
    assert kept(state) == [(b"a0", b"t"), (b"a1", b"t")]
    assert kept(State.restore(turned_on, state.snapshot())) == kept(state)
    turned_off = compile_schema(SCHEMA, previous=turned_on, now_ms=1_000_004)
    state.apply_plan(turned_off)
    swept = State.restore(turned_off, state.snapshot())
    assert b"a1" not in state.snapshot()
    again = compile_schema(SCHEMA + "keep_keys: [[account, track]]\n", previous=turned_off, now_ms=1_000_005)
    swept.sweep()
    for each in (state, swept):
        each.apply_plan(again)
        assert kept(each) == []
        each.observe(plays(1, start=1_000_006, prefix="m"))
        assert kept(each) == [(b"a0", b"t")]
    assert state.digest() == swept.digest()


def test_a_checkpoint_has_the_rows_that_others_leaving_moved_past_its_copier() -> None:
    n = 10_300  # two rows each, and one of all: the index is nearly as full as it may be
    moved = 0
    for seed in range(4):
        states = [State(PLAN, n_shards=1, secret=bytes([seed] * 16)) for _ in range(2)]
        for each in states:
            each.observe(plays(n))
            each.cut()
        state, undisturbed = states
        order = iter(np.random.default_rng(seed).permutation(n))

        def leave(state: State = state, order: Iterator[int] = order) -> None:
            nonlocal moved
            for _ in range(1_500):
                moved += state.forget(0, [b"a%d" % next(order)])

        assert bytes(state.copy_shard(0, meanwhile=leave)) == bytes(undisturbed.copy_shard(0))
    assert moved >= 4 * 4 * 1_500


def test_keys_kept_no_more_are_in_no_checkpoint_after_the_next_sweep() -> None:
    plan = compile_schema(SCHEMA + "keep_keys: [[account, track]]\n")
    state = State(plan, n_shards=1)
    state.observe(plays(20))
    state.cut()
    assert b"a7" in bytes(state.copy_shard(0))
    state.copy_end(True)
    state.apply_plan(compile_schema(SCHEMA, previous=plan, now_ms=1_000_020))
    assert state.sweep() == 0, "the rows themselves stay"
    state.cut()
    records = bytes(state.copy_shard(0))
    state.copy_end(True)
    assert len(records) > 20 * 20 and b"a7" not in records
    assert counts(state, ["a7"], 1_000_020) == [1.0]


def test_an_event_that_no_view_takes_needs_no_row_past_the_memory_limit() -> None:
    source = SCHEMA.replace("pair: {", "pair: {where: ms > 5, ")
    plan = compile_schema(source)
    state = State(plan, n_shards=1, max_memory_bytes=300)
    state.observe(one(plan, ts=[1_000_000], id=["x"], ms=[9.0]))
    few = one(plan, ts=[1_000_001], id=["y"], track=["new"], ms=[1.0])
    state.observe(few)
    much = one(plan, ts=[1_000_001], id=["z"], track=["new"], ms=[9.0])
    state.observe(much)
    assert [few.outcomes[0], much.outcomes[0]] == [Outcome.ACCEPTED] * 2
    assert [int(few.shed[0]).bit_count(), int(much.shed[0]).bit_count()] == [0, 1]


@pytest.mark.parametrize("cut", [0, 7, 31, 40, 200, -1])
def test_a_snapshot_that_was_cut_is_refused(cut: int) -> None:
    state = State(PLAN, n_shards=2)
    state.observe(plays(50, keys=7), producer=b"p", sequence=1)
    data = state.snapshot()
    assert State.restore(PLAN, data).digest() == state.digest()
    with pytest.raises(CorruptRecordError):
        State.restore(PLAN, data[:cut])
    with pytest.raises(CorruptRecordError):
        State.restore(PLAN, data + b"\0")


def test_a_restored_state_goes_on_exactly_as_the_one_it_was_taken_from() -> None:
    state = State(PLAN, n_shards=2)
    state.observe(plays(500, keys=7, step=50), producer=b"p", sequence=1)
    restored = State.restore(PLAN, state.snapshot())
    for one in (state, restored):
        one.observe(plays(300, start=1_025_000, keys=5, prefix="n"), producer=b"p", sequence=2)
    assert restored.digest() == state.digest()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"clock": "sundial"}, "event"),
        ({"secret": b"short"}, "16"),
        ({"n_shards": 3}, "power of two"),
        ({"n_shards": 0}, "power of two"),
        ({"threads": 0}, "threads"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        State(PLAN, **arguments)


def test_reads_check_their_names_lengths_and_times() -> None:
    state = State(PLAN)
    keys, _ = text_column(["a"])
    with pytest.raises(UnknownNameError, match="acount"):
        state.read(0, {"acount": keys}, 1)
    with pytest.raises(UnknownNameError):
        state.read(7, {}, 1)
    with pytest.raises(InvalidEventError, match="as_of"):
        state.read(0, {"account": keys}, 1, as_of=np.zeros(2, np.int64))
    with pytest.raises(InvalidEventError, match="9999"):
        state.read(0, {"account": keys}, 1, as_of=np.array([1 << 62]))
    with pytest.raises(InvalidEventError):
        state.read(0, {"account": keys}, 2)


def test_a_batch_made_for_an_event_type_with_other_columns_is_refused() -> None:
    other = compile_schema(SCHEMA.replace("track: key, ms: number", "ms: number, track: key"))
    times, values, outcomes = event_columns(
        other.events[0], {"ts": [1_000_000], "account": ["a"], "track": ["t"], "ms": [1.0], "id": ["i"]}
    )
    state = State(PLAN)
    with pytest.raises(InvalidEventError, match="another event type than play"):
        state.observe(EventBatch(other.events[0], 0, times, values, outcomes), 0)
    assert state.position == 0


def test_a_row_outlives_more_views_than_one_plan_may_have() -> None:
    """Logs of views that were removed stay until the next sweep; a row counts its logs in 8 bits."""

    def schema(generation: int) -> str:
        view = "{event: play, key: account, windows: [10s, lifetime], features: [count]}"
        views = "".join(f"  v{generation}_{i}: {view}\n" for i in range(120))
        head, _, _ = SCHEMA.partition("views:")
        return f"{head}views:\n{views}services:\n  all: [v{generation}_0.*, v{generation}_119.*]\n"

    plan = compile_schema(schema(0))
    state = State(plan, n_shards=1)
    for generation in range(4):
        if generation:
            plan = compile_schema(schema(generation), previous=plan, now_ms=1_000_000)
            state.apply_plan(plan)
        event = plan.events[0]
        for i in range(2):
            data = {"ts": [1_000_000 + i], "account": ["a"], "track": [None], "id": [f"{generation}-{i}"]}
            vectors = state.observe(EventBatch(event, 0, *event_columns(event, data)), 0)
            assert vectors is not None
            assert vectors.values.tolist() == [[i + 1.0] * 4]
    restored = State.restore(plan, state.snapshot())
    assert restored.digest() == state.digest()


def test_a_checkpoint_copies_rows_as_they_were_at_the_cut_whatever_changes_meanwhile() -> None:
    state = State(PLAN, n_shards=2, secret=bytes(range(16)))
    state.observe(plays(3_000, keys=1_000))
    frozen = State.restore(PLAN, state.snapshot())
    position, head = state.cut()
    state.observe(plays(6_000, start=1_005_000, keys=1_500, prefix="later"))
    records = [bytes(state.copy_shard(shard)) for shard in range(2)]
    copy = State(PLAN, n_shards=2, secret=bytes(range(16)))
    copy.import_head(head)
    for shard, data in enumerate(records):
        copy.import_shard(shard, data)
    state.copy_end(True)
    accounts = [f"a{i}" for i in range(1_500)]
    assert position == frozen.position == copy.position
    assert counts(copy, accounts, 1_003_000) == counts(frozen, accounts, 1_003_000)
    state.cut()
    assert sum(len(state.copy_shard(shard)) for shard in range(2)) > 0
    state.copy_end(False)
    state.cut()
    again = sum(len(state.copy_shard(shard)) for shard in range(2))
    state.copy_end(True)
    state.cut()
    assert again > 0 and sum(len(state.copy_shard(shard)) for shard in range(2)) == 0
    state.copy_end(True)
