"""Batch and Forget bodies: round trips, every damaged byte, random bytes."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import CorruptRecordError, InvalidEventError, LimitError
from featurestore.storage.frame import (
    TextValues,
    batch_body,
    forget_body,
    parse_batch_body,
    parse_forget_body,
    parse_producer_body,
    producer_body,
)

from . import journal_v1

OUTCOMES = [0, 1, 2, *range(16, 26)]

Column = journal_v1.Column


def as_column(values: Column) -> np.ndarray | TextValues:
    if all(isinstance(value, float) for value in values):
        return np.array(values, np.float64)
    texts = [value if isinstance(value, bytes) else b"" for value in values]
    present = np.array([value is not None for value in values], np.uint8)
    return TextValues(
        np.cumsum([0, *map(len, texts)]).astype(np.uint32),
        np.frombuffer(b"".join(texts), np.uint8),
        None if present.all() else present,
    )


def from_column(column: np.ndarray | TextValues) -> Column:
    if isinstance(column, np.ndarray):
        return [float(value) for value in column]
    data, ends = column.data.tobytes(), column.offsets.tolist()
    given = [1] * (len(ends) - 1) if column.present is None else column.present.tolist()
    return [data[a:b] if ok else None for a, b, ok in zip(ends, ends[1:], given, strict=False)]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, object]:
    n = draw(st.integers(1, 9))
    numbers = st.lists(st.floats(allow_nan=False), min_size=n, max_size=n)
    texts = st.lists(st.none() | st.binary(max_size=12), min_size=n, max_size=n)
    return {
        "outcomes": draw(st.lists(st.sampled_from(OUTCOMES), min_size=n, max_size=n)),
        "times": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)),
        "columns": draw(st.lists(numbers | texts, max_size=4)),
        "producer": draw(st.binary(max_size=255)),
        "epoch": draw(st.integers(0, 2**64 - 1)),
        "sequence": draw(st.integers(0, 2**64 - 1)),
        "fingerprint": draw(st.integers(0, 2**64 - 1)),
        "event_id": draw(st.integers(0, 2**16 - 1)),
    }


def without_refused(outcomes: list[int], values: list[Any], nothing: Any) -> list[Any]:
    return [nothing if outcome >= 16 else value for outcome, value in zip(outcomes, values, strict=True)]


def column_without_refused(outcomes: list[int], values: Column) -> Column:
    if all(isinstance(value, float) for value in values):
        return without_refused(outcomes, values, math.nan)
    return without_refused(outcomes, values, None if None in values else b"")


@given(batches())
def test_a_batch_round_trips_and_has_the_documented_bytes(batch: dict[str, Any]) -> None:
    """All of it but what was refused, of which nothing is kept."""
    columns = batch.pop("columns")
    outcomes, times = batch.pop("outcomes"), batch.pop("times")
    body = batch_body(outcomes, times, [as_column(column) for column in columns], **batch)
    times = without_refused(outcomes, times, 0)
    columns = [column_without_refused(outcomes, column) for column in columns]
    assert body == journal_v1.batch_body(outcomes, times, columns, **batch)
    parsed = parse_batch_body(body)
    assert parsed.outcomes.tolist() == outcomes
    assert parsed.times.tolist() == times
    found = [from_column(column) for column in parsed.columns]
    for i, outcome in enumerate(outcomes):
        assert outcome >= 16 or [column[i] for column in found] == [column[i] for column in columns]
    assert {name: getattr(parsed, name) for name in batch} == batch


def test_nothing_of_a_refused_event_is_written() -> None:
    """However it was refused, wherever it stands, and whatever memory was there before."""
    for refused in range(16, 26):
        for at in range(3):
            texts = [b"kept", b"kept", b"kept"]
            texts[at] = b"secret" * 9
            outcomes = [0, 1, 0]
            outcomes[at] = refused
            body = batch_body(outcomes, [77] * 3, [as_column(texts), as_column([7.5] * 3)])
            assert b"secret" not in body and body.count(b"kept") == 2
            assert body.count(struct.pack("<d", 7.5)) == body.count(struct.pack("<q", 77)) == 2


def test_a_shed_body_has_what_was_shed_behind_the_outcomes() -> None:
    columns, more = [[1.5, 2.5, 3.5]], {"producer": b"p", "epoch": 1, "sequence": 2, "event_id": 3}
    shed = [1, 0, 2**63 | 4]
    body = batch_body([0, 1, 0], [5, 6, 7], [as_column(columns[0])], **more, shed=shed)
    assert body == journal_v1.batch_body([0, 1, 0], [5, 6, 7], columns, **more, shed=shed)
    parsed = parse_batch_body(body, has_shed=True)
    assert parsed.shed is not None
    assert parsed.shed.tolist() == shed
    for wrong in ([0, 0, 0], [1, 1, 0]):
        damaged = journal_v1.batch_body([0, 1, 0], [5, 6, 7], columns, **more, shed=wrong)
        with pytest.raises(CorruptRecordError, match="tells of no event what was shed"):
            parse_batch_body(damaged, has_shed=True)
    with pytest.raises(CorruptRecordError):
        parse_batch_body(body)
    with pytest.raises(InvalidEventError, match="shed has 2 values for 3 events"):
        batch_body([0] * 3, [1, 2, 3], [], shed=[1, 2])


def encoded_again(body: bytes) -> bytes:
    parsed = parse_batch_body(body)
    fields = {
        name: getattr(parsed, name) for name in ("producer", "epoch", "sequence", "fingerprint", "event_id")
    }
    return batch_body(parsed.outcomes, parsed.times, parsed.columns, **fields)


def check_accepted_bytes_are_canonical(body: bytes) -> bool:
    """Any bytes are refused, or are exactly what the encoder writes for what they decode to; refused events
    that were kept are the exception, which it writes no more."""
    try:
        parsed = parse_batch_body(body)
    except CorruptRecordError:
        return False
    assert len(parsed.times) == len(parsed.outcomes) > 0
    again = encoded_again(body)
    assert encoded_again(again) == again
    assert again == body or parsed.outcomes.max() >= 16
    return True


SAMPLE = journal_v1.batch_body(
    [0, 2, 25],
    [5, -7, 2**62],
    [[1.0, 2.0, -0.0], [b"k", None, b"key"], [b"", b"abcdefgh", b"i"]],
    producer=b"p" * 9,
)


def test_every_flipped_bit_is_refused_or_another_value() -> None:
    accepted = 0
    for bit in range(8 * len(SAMPLE)):
        damaged = bytearray(SAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        accepted += check_accepted_bytes_are_canonical(bytes(damaged))
    assert 0 < accepted < 8 * len(SAMPLE)


def test_every_truncation_and_every_extension_is_refused() -> None:
    for n in range(len(SAMPLE)):
        with pytest.raises(CorruptRecordError):
            parse_batch_body(SAMPLE[:n])
    for n in range(1, 33):
        with pytest.raises(CorruptRecordError):
            parse_batch_body(SAMPLE + bytes(n))


@given(st.binary(max_size=200), st.integers(1, 5), st.integers(0, 3))
def test_random_bytes_behind_a_plausible_head_are_refused_or_canonical(
    tail: bytes, n: int, columns: int
) -> None:
    head = struct.pack("<QQQIHHB7x", 1, 2, 3, n, 4, columns, 0)
    check_accepted_bytes_are_canonical(journal_v1.padded(head + tail))
    check_accepted_bytes_are_canonical(tail)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_extreme_lengths_anywhere_are_refused_or_canonical(width: int) -> None:
    chance = random.Random(width)
    for at in range(0, len(SAMPLE) - width + 1, width):
        for value in (0, 1, 7, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), chance.getrandbits(8 * width)):
            damaged = SAMPLE[:at] + value.to_bytes(width, "little") + SAMPLE[at + width :]
            check_accepted_bytes_are_canonical(damaged)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (24, b"\0\0\0\0", "no events"),
        (33, b"\1", "padding"),
        (56, b"\3", "unknown outcome"),
        (59, b"\1", "padding"),
        (88, b"\2", "unknown column kind"),
        (121, b"\2", "presence flag"),
        (128, b"\1", "do not ascend"),
        (136, b"\x09", "do not ascend"),
        (144, b"\2", "presence flag"),
    ],
)
def test_each_wrong_field_is_named(at: int, value: bytes, said: str) -> None:
    with pytest.raises(CorruptRecordError, match=said):
        parse_batch_body(SAMPLE[:at] + value + SAMPLE[at + len(value) :])


def test_text_that_begins_inside_its_buffer_is_stored_from_zero() -> None:
    column = TextValues(np.array([3, 4, 7], np.uint32), np.frombuffer(b"xxxabcdyyy", np.uint8), None)
    assert batch_body([0, 0], [1, 2], [column]) == journal_v1.batch_body([0, 0], [1, 2], [[b"a", b"bcd"]])


def test_what_cannot_be_a_batch_is_refused() -> None:
    with pytest.raises(InvalidEventError):
        batch_body([], [], [])
    with pytest.raises(InvalidEventError):
        batch_body([0], [1, 2], [])
    with pytest.raises(InvalidEventError, match="column 0"):
        batch_body([0], [1], [[1.0, 2.0]])
    with pytest.raises(InvalidEventError, match="descend"):
        batch_body([0, 0], [1, 2], [TextValues(np.array([0, 2, 1]), np.zeros(4, np.uint8), None)])
    with pytest.raises(InvalidEventError, match="offsets"):
        batch_body([0], [1], [TextValues(np.array([0, 9]), np.zeros(4, np.uint8), None)])
    with pytest.raises(InvalidEventError, match="flags"):
        batch_body([0], [1], [TextValues(np.array([0, 4]), np.zeros(4, np.uint8), np.ones(2, np.uint8))])
    with pytest.raises(LimitError):
        batch_body([0], [1], [], producer=bytes(256))


def test_a_forget_body_round_trips_and_nothing_else_is_one() -> None:
    body = forget_body(513, bytes(range(16)))
    assert body == b"\1\2" + bytes(6) + bytes(range(16))
    assert parse_forget_body(body) == (513, bytes(range(16)))
    for wrong in (b"", body[:-1], body + b"\0", body[:2] + b"\1" + body[3:]):
        with pytest.raises(CorruptRecordError):
            parse_forget_body(wrong)
    with pytest.raises(ValueError, match="16 bytes"):
        forget_body(1, b"short")


def test_a_producers_change_round_trips_and_nothing_else_is_one() -> None:
    for each in ((1, b"p", 0, 0), (2, b"p" * 255, 2**63 - 1, 2**63 - 1), (2, b"\xff", 0, 0)):
        assert parse_producer_body(producer_body(*each)) == each
    body = producer_body(2, b"ingest-1", 7, 41)
    assert body == b"\2\x08" + bytes(6) + struct.pack("<QQ", 7, 41) + b"ingest-1"
    wrong = [b"", body[:-1], body + b"\0", body[:2] + b"\1" + body[3:], b"\0" + body[1:], b"\3" + body[1:]]
    wrong += [b"\1" + body[1:], body[:15] + b"\x80" + body[16:], body[:23] + b"\x80" + body[24:]]
    wrong += [b"\2\0" + body[2:24]]
    for bad in wrong:
        with pytest.raises(CorruptRecordError):
            parse_producer_body(bad)
    with pytest.raises(LimitError):
        producer_body(1, bytes(256))
