"""The whole state machine: what it may be asked, growth and freeing of rows, memory limits, snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.errors import (
    CorruptRecordError,
    InvalidEventError,
    LimitError,
    SequenceError,
    UnknownNameError,
)
from featurestore.outcome import Outcome
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


def test_an_event_that_needs_a_new_row_past_the_memory_limit_is_refused_and_known_keys_go_on() -> None:
    state = State(PLAN, n_shards=1, max_memory_bytes=300)
    state.observe(plays(1))
    again = batch(
        ts=[1_000_001, 1_000_002], account=["a0", "new"], track=["t", "t"], ms=[1, 1], id=["x", "y"]
    )
    state.observe(again)
    assert list(again.outcomes) == [Outcome.ACCEPTED, Outcome.REFUSED_MEMORY]


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

    state.observe(mixed(), producer=b"p", sequence=1)
    retry = mixed()
    state.observe(retry, producer=b"p", sequence=1)
    assert list(retry.outcomes) == [Outcome.DUPLICATE] * 2


def test_a_producer_too_many_is_turned_away_until_one_has_been_silent_for_a_week() -> None:
    state = State(PLAN, max_producers=2)
    for name in (b"p", b"q"):
        state.observe(plays(1, prefix=name.decode()), producer=name, sequence=1)
    with pytest.raises(LimitError, match="producers"):
        state.observe(plays(1, prefix="r"), producer=b"r", sequence=1)
    state.observe(plays(1, start=1_000_000 + 7 * 86_400_000 + 1, prefix="s"))
    state.observe(plays(1, start=1_000_000 + 7 * 86_400_000 + 1, prefix="r"), producer=b"r", sequence=1)
    assert state.stats()["producers"] == 2


def test_ids_past_their_cap_refuse_events_and_expire_with_the_horizon() -> None:
    state = State(PLAN, max_ids=3)
    first = plays(5)
    state.observe(first)
    assert list(first.outcomes) == [Outcome.ACCEPTED] * 3 + [Outcome.REFUSED_MEMORY] * 2
    assert state.stats()["ids"] == 3


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
            data = {"ts": [1_000_000 + i], "account": ["a"], "id": [f"{generation}-{i}"]}
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
    records = [state.copy_shard(shard) for shard in range(2)]
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
