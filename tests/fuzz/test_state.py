"""Rows, the sequencer's tables and whole snapshots: what a restart reads back.

Their checksums lie outside, in the row store. So here nothing stands between a wrong byte and the decoder.
"""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.core.state import State
from featurestore.errors import CorruptRecordError
from fuzz import trial
from fuzz.stores import PLAN, SECRET, exercise, filled
from fuzz.trial import Trial

STATES = [filled(0), filled(5), filled(90), filled(40, "wall", 1)]


def empty() -> State:
    return State(PLAN, n_shards=2, secret=SECRET)


def check_snapshot(data: bytes) -> None:
    """What was read is written as it was, but for what is left out: what is unknown, and what expired."""
    state = State.restore(PLAN, data)
    written = state.snapshot()
    assert len(written) <= len(data)
    assert written == data or State.restore(PLAN, written).snapshot() == written
    exercise(state)


def check_rows(data: bytes) -> None:
    for shard in range(2):
        state = empty()
        state.import_head(HEADS[2])
        # An array of just these bytes: a sanitizer sees a read past its end.
        try:
            state.import_shard(shard, memoryview(np.frombuffer(data, np.uint8).copy()))
        except CorruptRecordError:
            if shard == 1:
                raise
            continue
        exercise(state)
        return


def checkpoint(state: State) -> tuple[bytes, list[bytes], bytes, bytes]:
    _, head = state.cut()
    rows = [bytes(state.copy_shard(shard)) for shard in range(2)]
    parts = head, rows, bytes(state.copy_ids()), bytes(state.copy_producers())
    state.copy_end(True)
    return parts


PARTS = [checkpoint(filled(n, clock, n)) for n, clock in ((5, "event"), (90, "event"), (40, "wall"))]
HEADS = [filled(0).cut()[1], *(parts[0] for parts in PARTS)]
ROWS = [rows for parts in PARTS for rows in parts[1] if rows]
IDS = [parts[2] for parts in PARTS]
PRODUCERS = [parts[3] for parts in PARTS]


def check_head(data: bytes) -> None:
    state = empty()
    state.import_head(data)
    written = state.cut()[1]
    state.copy_end(False)
    again = empty()
    again.import_head(written)
    assert again.cut()[1] == written
    # Of an event type that is there twice the last counts, and one that is unknown is left out.
    new, old = written[4:], data[4:]
    assert new == old or (new[:20] == old[:20] and set(types(written)) != set(types(data)))
    exercise(state)


def types(head: bytes) -> list[bytes]:
    return [head[i : i + 24] for i in range(32, len(head), 24)]


def check_ids(data: bytes) -> None:
    state = empty()
    state.import_head(HEADS[2])
    state.import_ids(data)
    written = bytes(state.copy_ids())
    assert len(written) <= len(data)
    again = empty()
    again.import_head(HEADS[2])
    again.import_ids(written)
    assert sorted_records(bytes(again.copy_ids()), 32) == sorted_records(written, 32)
    assert set(sorted_records(written, 32)) <= set(sorted_records(data, 32))
    exercise(state)


def check_producers(data: bytes) -> None:
    state = empty()
    state.import_head(HEADS[2])
    state.import_producers(data)
    written = bytes(state.copy_producers())
    again = empty()
    again.import_producers(written)
    assert len(bytes(again.copy_producers())) == len(written) <= max(16, len(data))
    exercise(state)


def sorted_records(data: bytes, size: int) -> list[bytes]:
    return sorted(data[i : i + size] for i in range(0, len(data), size))


TRIALS = [
    Trial("snapshot", [state.snapshot() for state in STATES], check_snapshot, (CorruptRecordError,)),
    Trial("rows", ROWS, check_rows, (CorruptRecordError,), rounds=8000),
    Trial("head", HEADS, check_head, (CorruptRecordError,)),
    Trial("ids", IDS, check_ids, (CorruptRecordError,)),
    Trial("producers", PRODUCERS, check_producers, (CorruptRecordError,), rounds=2000),
]


@pytest.mark.parametrize("one", TRIALS, ids=lambda one: one.name)
def test_damaged_state_is_refused_or_is_a_state(one: Trial) -> None:
    trial.run(one)
