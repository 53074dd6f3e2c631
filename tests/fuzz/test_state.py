"""Rows, the sequencer's tables and whole snapshots: what a restart reads back.

Their checksums lie outside, in the row store. So here nothing stands between a wrong byte and the decoder.
"""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.core.state import State, split_records
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
    parts = head, rows, bytes(state.copy_id_records()), bytes(state.copy_producers()[1])
    state.copy_end(True)
    return parts


PARTS = [checkpoint(filled(n, clock, n)) for n, clock in ((5, "event"), (90, "event"), (40, "wall"))]
HEADS = [filled(0).cut()[1], *(parts[0] for parts in PARTS)]
ROWS = [rows for parts in PARTS for rows in parts[1] if rows]
ID_RECORDS = [parts[2] for parts in PARTS]
PRODUCER_RECORDS = [parts[3] for parts in PARTS]


def section(snapshot: bytes, number: int) -> bytes:
    at = 32
    for _ in range(number):
        at += 8 + int.from_bytes(snapshot[at : at + 8], "little")
    return snapshot[at + 8 : at + 8 + int.from_bytes(snapshot[at : at + 8], "little")]


IDS = [section(state.snapshot(), 1) for state in STATES]
PRODUCERS = [section(state.snapshot(), 2) for state in STATES]


def as_version_2(head: bytes) -> bytes:
    """Without the floors, which the event types have since version 3."""
    return (2).to_bytes(4, "little") + head[4:32] + b"".join(each[:24] for each in types(head))


def check_head(data: bytes) -> None:
    state = empty()
    state.import_head(data)
    written = state.cut()[1]
    state.copy_end(False)
    again = empty()
    again.import_head(written)
    assert again.cut()[1] == written
    # Of an event type that is there twice the last counts, and one that is unknown is left out.
    if data[0] < 3:
        written = as_version_2(written)
    new, old = written[4:], data[4:]
    assert new == old or (new[:20] == old[:20] and set(types(written)) != set(types(data)))
    exercise(state)


def types(head: bytes) -> list[bytes]:
    size = 32 if head[0] > 2 else 24
    return [head[i : i + size] for i in range(32, len(head), size)]


def check_ids(data: bytes) -> None:
    state = empty()
    state.import_head(HEADS[2])
    state.import_ids(data)
    written = section(state.snapshot(), 1)
    assert len(written) <= len(data)
    again = empty()
    again.import_head(HEADS[2])
    again.import_ids(written)
    assert section(again.snapshot(), 1) == written
    assert set(sorted_records(written, 32)) <= set(sorted_records(data, 32))
    exercise(state)


def check_id_records(data: bytes) -> None:
    """What was read is what a checkpoint has already; written anew it would be the same."""
    state = empty()
    state.import_head(HEADS[2])
    state.import_id_records(data)
    assert state.ids_to_copy == 0 and bytes(state.copy_id_records()) == b""
    assert state.stats()["ids"] == sum(len(record) // 24 for record in split_records(data))
    exercise(state)


def check_producers(data: bytes) -> None:
    state = empty()
    state.import_head(HEADS[2])
    if state.import_producers(data):
        assert len(data) == 16
    written = section(state.snapshot(), 2)
    again = empty()
    again.import_producers(written)
    assert section(again.snapshot(), 2) == written
    # Records of version 2 have 8 bytes less, and 48 at least.
    assert len(written) <= max(16, len(data) + len(data) // 6)
    exercise(state)


def check_producer_records(data: bytes) -> None:
    """What was read is what a checkpoint has already; written anew it would be the same."""
    state = empty()
    state.import_head(HEADS[2])
    assert state.import_producers(b"\4" + bytes(15))
    state.import_producer_records(data)
    assert bytes(state.copy_producers()[1]) == b""
    state.copy_end(True)
    assert state.stats()["producers"] == len(list(split_records(data)))
    again = empty()
    again.import_producers(section(state.snapshot(), 2))
    assert section(again.snapshot(), 2) == section(state.snapshot(), 2)
    exercise(state)


def sorted_records(data: bytes, size: int) -> list[bytes]:
    return sorted(data[i : i + size] for i in range(0, len(data), size))


TRIALS = [
    Trial("snapshot", [state.snapshot() for state in STATES], check_snapshot, (CorruptRecordError,)),
    Trial("rows", ROWS, check_rows, (CorruptRecordError,), rounds=8000),
    Trial("head", [*HEADS, *map(as_version_2, HEADS)], check_head, (CorruptRecordError,)),
    Trial("ids", IDS, check_ids, (CorruptRecordError,)),
    Trial("id records", ID_RECORDS, check_id_records, (CorruptRecordError,)),
    Trial("producers", PRODUCERS, check_producers, (CorruptRecordError,), rounds=2000),
    Trial("producer records", PRODUCER_RECORDS, check_producer_records, (CorruptRecordError,), rounds=2000),
]


@pytest.mark.parametrize("one", TRIALS, ids=lambda one: one.name)
def test_damaged_state_is_refused_or_is_a_state(one: Trial) -> None:
    trial.run(one)
