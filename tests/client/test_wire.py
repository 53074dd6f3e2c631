"""The hand-made half of the wire against the official runtime, both ways; and whatever a server may send."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.client import wire
from featurestore.client.replies import FeatureSchema, ServiceSchema, Status
from featurestore.columns import number_column, text_column
from featurestore.errors import SchemaMismatchError, UnavailableError
from featurestore.v1 import feature_store_service_pb2 as service_pb
from featurestore.v1 import types_pb2 as t

from .fake_server import numbers_of, texts_of

texts = st.one_of(st.none(), st.text(max_size=20), st.text("ab", min_size=120, max_size=300))
finite = st.floats(allow_nan=False, allow_infinity=False)
ms = st.integers(-62135596800000, 253402300799999)


def service_of(width: int, fingerprint: int = 77) -> ServiceSchema:
    features = tuple(FeatureSchema(f"f{i}", "count", None, 1000, 0, (), False) for i in range(width))
    return ServiceSchema("s", fingerprint, features, (), tuple(f"f{i}" for i in range(width)))


@given(st.lists(st.tuples(ms, texts, st.one_of(st.none(), finite)), min_size=1, max_size=40))
def test_packed_columns_are_what_the_official_runtime_reads(rows: list[tuple[int, Any, Any]]) -> None:
    times, names, amounts = zip(*rows, strict=True)
    message = wire.event_columns(
        np.array(times, np.int64),
        [("name", text_column(list(names))[0]), ("amount", number_column(list(amounts))[0])],
    )
    columns = service_pb.IngestRequest.FromString(message).columns
    assert list(columns.times_ms) == list(times)
    seen = {column.name: column for column in columns.columns}
    if any(names):  # an empty one is absent
        assert texts_of(seen.pop("name").texts) == [name or None for name in names]
    if any(amount is not None for amount in amounts):
        assert numbers_of(seen.pop("amount").numbers) == list(amounts)
    assert not seen


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_packed_varints_are_what_the_official_runtime_writes(numbers: list[int]) -> None:
    expected = t.TextColumn(lengths=numbers).SerializeToString()
    packed = wire.packed_varints(np.array(numbers, np.uint32))
    assert (wire.length_field(wire.TEXTS_LENGTHS, packed) if numbers else b"") == expected


@pytest.mark.parametrize("length", [0, 127, 128, 4096, (1 << 14) - 1, 1 << 14])
def test_lengths_of_one_two_and_three_bytes(length: int) -> None:
    packed = wire.packed_varints(np.array([1, length, 1], np.uint32))
    column = t.TextColumn.FromString(wire.length_field(wire.TEXTS_LENGTHS, packed))
    assert list(column.lengths) == [1, length, 1]


@st.composite
def vectors(draw: st.DrawFn) -> t.Vectors:
    rows, width = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    n = rows * width

    def many(of: Any) -> Any:
        return draw(st.lists(of, min_size=n, max_size=n))

    statuses = many(st.integers(1, 4)) if draw(st.booleans()) else [1] * n
    values = [
        math.nan if status == Status.UNAVAILABLE else draw(st.floats(allow_nan=status != Status.PRESENT))
        for status in statuses
    ]
    made = t.Vectors(fingerprint=77, rows=rows, width=width, values=values)
    made.statuses = bytes(statuses) if set(statuses) != {1} or draw(st.booleans()) else b""
    made.bounds = draw(st.sampled_from([t.BOUNDS_UNSPECIFIED, t.BOUNDS_EXACT, t.BOUNDS_CERTAIN]))
    if made.bounds == t.BOUNDS_CERTAIN:
        ends = [sorted(pair) for pair in many(st.tuples(st.floats(), st.floats()))]
        made.lower.extend(lower for lower, _ in ends)
        made.upper.extend(upper for _, upper in ends)
    if Status.WARMING in statuses or draw(st.booleans()):
        made.coverage.extend(many(st.floats(0, 1, width=32)))
    return made


def same(left: Any, right: list[float]) -> bool:
    flat = [] if left is None else left.ravel().tolist()
    return len(flat) == len(right) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(flat, right, strict=True)
    )


@given(vectors(), st.one_of(st.none(), ms))
def test_vectors_are_what_the_official_runtime_wrote(sent: t.Vectors, now_ms: int | None) -> None:
    message = service_pb.GetFeaturesResponse(vectors=sent, now_ms=now_ms).SerializeToString()
    bounded = sent.bounds != t.BOUNDS_UNSPECIFIED
    read = wire.decode_read(message, service_of(sent.width), rows=sent.rows, bounds=bounded)
    assert (read.now_ms, read.values.shape) == (now_ms, (sent.rows, sent.width))
    assert same(read.values, list(sent.values))
    n = sent.rows * sent.width
    statuses = list(sent.statuses) or [Status.PRESENT] * n
    assert read.statuses.ravel().tolist() == statuses
    assert same(read.coverage, list(sent.coverage) or [float(s != Status.UNAVAILABLE) for s in statuses])
    if sent.bounds == t.BOUNDS_EXACT:
        assert same(read.lower, list(sent.values))
        assert same(read.upper, list(sent.values))
    elif n:
        assert same(read.lower, list(sent.lower))
        assert same(read.upper, list(sent.upper))


def test_values_are_views_of_the_reply() -> None:
    message = service_pb.GetFeaturesResponse(
        vectors=t.Vectors(fingerprint=77, rows=1, width=2, values=[1, 2])
    ).SerializeToString()
    vector = wire.decode_read(message, service_of(2), rows=1, bounds=False)[0]
    assert not vector.values.flags.owndata
    assert not vector.values.flags.writeable
    assert vector.to_dict() == {"f0": 1.0, "f1": 2.0}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"fingerprint": 78}, SchemaMismatchError),
        ({"width": 3}, UnavailableError),
        ({"rows": 2}, UnavailableError),
        ({"rows": 2**32 - 1}, UnavailableError),
        ({"statuses": b"\1"}, UnavailableError),
        ({"statuses": b"\1\5"}, UnavailableError),
        ({"bounds": 2, "lower": [1, 2], "upper": [1]}, UnavailableError),
        ({"coverage": [1.0]}, UnavailableError),
        ({"coverage": [1.0, 1.5]}, UnavailableError),
        ({"coverage": [1.0, math.nan]}, UnavailableError),
        ({"statuses": b"\1\3"}, UnavailableError),  # WARMING, and what it covers is not said
        ({"rows": 0, "values": []}, UnavailableError),
        ({"rows": 2, "values": [1, 2, 3, 4]}, UnavailableError),
        ({"values": [1, math.nan]}, UnavailableError),
        ({"statuses": b"\1\4"}, UnavailableError),  # UNAVAILABLE, and 2
        ({"bounds": 0}, UnavailableError),
        ({"bounds": 4}, UnavailableError),
        ({"bounds": 1, "lower": [1, 2], "upper": [1, 2]}, UnavailableError),
        ({"bounds": 0, "lower": [1, 2], "upper": [1, 2]}, UnavailableError),
        ({"bounds": 2, "lower": [1, 3], "upper": [1, 2]}, UnavailableError),
        ({"bounds": 2, "upper": [1, 2]}, UnavailableError),
    ],
)
def test_vectors_that_contradict_themselves_are_not_served(
    change: dict[str, Any], error: type[Exception]
) -> None:
    sound = {"fingerprint": 77, "rows": 1, "width": 2, "values": [1, 2], "bounds": 1}
    message = service_pb.GetFeaturesResponse(vectors=t.Vectors(**(sound | change))).SerializeToString()
    with pytest.raises(error):
        wire.decode_read(message, service_of(2), rows=1, bounds=True)


def test_what_needs_two_events_is_present_without_a_number_when_there_is_one() -> None:
    features = (FeatureSchema("mean", "interval_mean", None, 1000, 0, (), False),)
    service = ServiceSchema("s", 77, features, (), ("mean",))
    vectors = t.Vectors(fingerprint=77, rows=1, width=1, values=[math.nan])
    message = service_pb.GetFeaturesResponse(vectors=vectors).SerializeToString()
    assert math.isnan(wire.decode_read(message, service, rows=1, bounds=False)[0]["mean"])


def test_a_field_of_another_type_or_that_comes_twice_is_no_reply() -> None:
    vectors = t.Vectors(fingerprint=77, rows=1, width=1, values=[1]).SerializeToString()
    for more, words in (
        (b"\x10\x01", "field 2 comes twice"),
        (b"\x28\x01", "field 5 of type 0"),  # statuses as a number
        (b"\x31" + b"\0" * 8, "field 6 of type 1"),
        (b"\x0b", "field 1 of type 3"),
    ):
        message = wire.length_field(wire.REPLY_VECTORS, vectors + more)
        with pytest.raises(UnavailableError, match=words):
            wire.decode_read(message, service_of(1), rows=1, bounds=False)
    for message, words in ((b"", "no vectors"), (b"\x10\x02", "no vectors"), (None, "ended without one")):
        with pytest.raises(UnavailableError, match=words):
            wire.decode_read(message, service_of(1), rows=1, bounds=False)


def test_rows_that_no_number_of_the_proto_counts_are_not_served_even_where_nothing_is_in_them() -> None:
    varint = b"\xff" * 9 + b"\1"  # 2^64 - 1, where the proto has 32 bits
    vectors = t.Vectors(fingerprint=77).SerializeToString() + b"\x10" + varint
    message = b"\x0a" + bytes([len(vectors)]) + vectors
    with pytest.raises(UnavailableError, match="vectors where 1 were asked for"):
        wire.decode_read(message, service_of(0), rows=1, bounds=False)


def decode_anything(message: bytes) -> None:
    for decode in (
        lambda: wire.decode_read(message, service_of(2), rows=1, bounds=False),
        lambda: wire.decode_read(message, service_of(2), rows=1, bounds=True),
        lambda: wire.decode_observed(message, service_of(2), 1, peek=False, bounds=True),
        lambda: wire.decode_observed(message, None, 1, peek=True, bounds=False),
    ):
        with contextlib.suppress(UnavailableError, SchemaMismatchError):
            decode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_an_error(message: bytes) -> None:
    decode_anything(message)


@given(vectors(), st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 10**6))
def test_damaged_replies_are_a_reply_or_an_error(sent: t.Vectors, at: int, flip: int, cut: int) -> None:
    message = bytearray(service_pb.GetFeaturesResponse(vectors=sent, now_ms=5).SerializeToString())
    message[at % len(message)] ^= flip
    decode_anything(bytes(message))
    decode_anything(bytes(message[: cut % len(message)]))
