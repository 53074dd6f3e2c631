"""What an EventBatch promises to those who use it without checking."""

from __future__ import annotations

import gc
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import columns
from featurestore.columns import TextColumn, text_column
from featurestore.core import hashing
from featurestore.core.batch import EventBatch, outcome_codes
from featurestore.errors import InvalidEventError
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan

EVENT = EventPlan(
    event_id=1,
    name="play",
    time=TimePlan("ts", "ms"),
    fields=(FieldPlan("seconds", Kind.NUMBER, False), FieldPlan("account", Kind.TEXT, True)),
    lateness_ms=0,
    id_field=None,
    dedupe_ms=0,
    touches=(),
)


def batch(times: Any = (0,), seconds: Any = None, account: Any = None, outcomes: Any = None) -> EventBatch:
    times = np.array(times, np.int64)
    seconds = np.zeros(len(times)) if seconds is None else seconds
    account = text_column(["a"] * len(times))[0] if account is None else account
    return EventBatch(EVENT, 3, times, [seconds, account], outcomes)


def texts(offsets: Any, data: bytes, present: Any = None) -> TextColumn:
    return TextColumn(
        np.array(offsets, np.uint32),
        np.frombuffer(data, np.uint8),
        None if present is None else np.array(present, np.uint8),
    )


def test_outcomes_have_the_numbers_of_the_core() -> None:
    assert {outcome.name: outcome.value for outcome in Outcome} == outcome_codes()
    assert all(outcome.reason for outcome in Outcome)
    assert [outcome for outcome in Outcome if not outcome.refused] == [0, 1, 2]


def test_a_batch_knows_its_event_type_and_size() -> None:
    made = batch([1, 2, 3])
    assert (made.n_events, len(made), made.event_index, made.event) == (3, 3, 3, EVENT)
    assert made.outcomes.tolist() == [0, 0, 0]
    assert batch([]).n_events == 0


def test_times_outside_the_years_1_to_9999_are_refused() -> None:
    times = [-62135596800001, -62135596800000, 253402300799999, 253402300800000, -(2**63), 2**63 - 1]
    assert batch(times).outcomes.tolist() == [17, 0, 0, 17, 17, 17]


def test_infinite_numbers_are_refused_and_absent_ones_are_not() -> None:
    made = batch([0] * 4, seconds=np.array([1.0, math.inf, -math.inf, math.nan]))
    assert made.outcomes.tolist() == [0, 19, 19, 0]


def test_texts_longer_than_the_limit_are_refused() -> None:
    made = batch([0] * 2, account=texts([0, 4096, 8193], b"x" * 8193))
    assert made.outcomes.tolist() == [0, Outcome.REFUSED_KEY_TOO_LONG]


def test_the_first_reason_counts() -> None:
    given_codes = np.array([22, 0, 0], np.uint8)
    long = texts([0, 4097, 8194, 12291], b"x" * 12291)
    made = batch([2**62, 2**62, 0], np.array([math.inf] * 3), long, given_codes)
    assert made.outcomes.tolist() == [22, 17, 19]
    assert given_codes.tolist() == [22, 0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seconds": np.zeros(2)}, "play.seconds: 2 entries where 1 "),
        (
            {"seconds": np.zeros(1, np.float32)},
            "play.seconds: expected a 1-d float64 array, found 1-d float32",
        ),
        ({"seconds": np.zeros((1, 1))}, "found 2-d float64"),
        ({"seconds": [0.0]}, "found list"),
        ({"seconds": texts([0, 0], b"")}, "found TextColumn"),
        ({"account": np.zeros(1)}, "play.account: expected a TextColumn, found ndarray"),
        ({"account": texts([0], b"")}, "play.account offsets: 1 entries where 2"),
        ({"account": texts([0, 2], b"a")}, "last offset is 2; there are 1 bytes"),
        ({"account": texts([1, 0], b"a")}, r"offset 1 is 0, before offset 0 \(1\)"),
        ({"account": texts([0, 1], b"a", [1, 1])}, "present: 2 entries"),
        ({"account": TextColumn(np.zeros(2, np.int64), np.zeros(1, np.uint8), None)}, "found 1-d int64"),
        ({"account": TextColumn(np.zeros(2, np.uint32), b"a", None)}, r"data: .*found bytes"),
        ({"outcomes": np.zeros(2, np.uint8)}, "outcomes: 2 entries"),
        ({"outcomes": [0]}, r"outcomes: .*found list"),
    ],
)
def test_arrays_of_the_wrong_shape_are_errors(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidEventError, match=says):
        batch(**change)


def test_batches_that_are_too_large_or_of_the_wrong_width_are_errors() -> None:
    with pytest.raises(InvalidEventError, match="1048577 events; the limit is 1048576"):
        batch(np.zeros(2**20 + 1, np.int64))
    with pytest.raises(InvalidEventError, match="2 fields and 1 columns"):
        EventBatch(EVENT, 0, np.zeros(1, np.int64), [np.zeros(1)])
    with pytest.raises(InvalidEventError, match="event_index is -1"):
        EventBatch(EVENT, -1, np.zeros(0, np.int64), [])
    with pytest.raises(InvalidEventError, match=r"times: expected .* found list"):
        EventBatch(EVENT, 0, [0], [np.zeros(1), texts([0, 0], b"")])
    with pytest.raises(TypeError, match="EventPlan"):
        EventBatch("play", 0, np.zeros(0, np.int64), [])


@given(st.lists(st.integers(0, 12), min_size=3, max_size=6), st.binary(max_size=12))
def test_any_offsets_are_refused_or_stay_within_the_bytes(offsets: list[int], data: bytes) -> None:
    fits = offsets == sorted(offsets) and offsets[-1] <= len(data)
    try:
        made = batch([0] * (len(offsets) - 1), account=texts(offsets, data))
    except InvalidEventError:
        assert not fits
        return
    assert fits
    _, missing = hashing.fingerprints(bytes(16), 0, made, [1])
    assert missing.tolist() == [a == b for a, b in pairwise(offsets)]


def test_arrays_that_are_strided_or_dropped_by_their_owner_stay_readable() -> None:
    names = [f"account-{i}" for i in range(1000)]
    column = text_column(names)[0]
    made = batch(np.arange(2000)[::2], np.arange(2000, dtype=np.float64)[::2], column)
    del column
    gc.collect()
    words, missing = hashing.fingerprints(bytes(16), 0, made, [1])
    assert not missing.any()
    assert words[999].tobytes() == hashing.fingerprint(bytes(16), 0, [b"account-999"])


def test_offsets_changed_afterwards_do_not_move_the_batch() -> None:
    column = texts([0, 1, 2], b"ab")
    made = batch([0, 0], account=column)
    before = hashing.fingerprints(bytes(16), 0, made, [1])[0].tolist()
    column.offsets[:] = 2**31
    assert hashing.fingerprints(bytes(16), 0, made, [1])[0].tolist() == before


def test_a_part_shares_columns_and_starts_from_the_decoders_outcomes() -> None:
    names = ["a", None, "c", "d", ""]
    made = batch(
        [0, 1, 2**62, 3, 4], np.arange(5.0), text_column(names)[0], np.array([0, 0, 0, 22, 0], np.uint8)
    )
    whole = hashing.fingerprints(bytes(16), 0, made, [1])
    made.outcomes[:] = Outcome.LATE
    part = made.part(1, 5)
    del made
    gc.collect()
    assert part.outcomes.tolist() == [0, 17, 22, 0]
    words, missing = hashing.fingerprints(bytes(16), 0, part, [1])
    assert words.tolist() == whole[0][1:].tolist()
    assert missing.tolist() == [True, False, False, True]
    inner = part.part(1, 2)
    assert hashing.fingerprints(bytes(16), 0, inner, [1])[0].tolist() == whole[0][2:3].tolist()
    part.outcomes[:] = 1
    assert inner.outcomes.tolist() == [17]
    assert part.part(2, 2).n_events == 0


@pytest.mark.parametrize(("lo", "hi"), [(-1, 1), (0, 3), (2, 1)])
def test_a_part_outside_the_batch_is_an_error(lo: int, hi: int) -> None:
    with pytest.raises(IndexError):
        batch([0, 0]).part(lo, hi)


def test_the_limits_are_those_of_the_columns_module() -> None:
    column = texts([0, columns.MAX_TEXT_BYTES, 2 * columns.MAX_TEXT_BYTES + 1], b"x" * 8193)
    assert batch([columns.EARLIEST_MS, columns.LATEST_MS], account=column).outcomes.tolist() == [0, 21]
    times = [columns.EARLIEST_MS - 1, columns.LATEST_MS + 1]
    assert batch(times).outcomes.tolist() == [17, 17]
