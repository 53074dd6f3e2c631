"""Requests as a server gets them, and replies as a client gets them.

tests/server/test_codec_requests.py holds the request decoder to the official runtime, bit by bit and byte by
byte; here it goes further from what is right, and what it takes is sent again in columns and must then mean
the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from featurestore.client import wire
from featurestore.client.replies import FeatureSchema, ServiceSchema, Vector, Vectors
from featurestore.errors import (
    InvalidEventError,
    LimitError,
    SchemaMismatchError,
    UnavailableError,
    UnknownNameError,
)
from featurestore.plan import EntityPlan, EventPlan, FieldPlan, Kind, Plan, ServicePlan, TimePlan
from featurestore.server import codec
from featurestore.server.names import WireSchema
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types
from fuzz import trial
from fuzz.trial import Trial

PLAN = Plan(
    version=1,
    name="wire",
    source="",
    entities=(EntityPlan(1, ("account",), False), EntityPlan(2, ("ip", "track"), False)),
    events=(
        EventPlan(
            1,
            "play",
            TimePlan("at", "iso"),
            (
                FieldPlan("account", Kind.TEXT, True),
                FieldPlan("ms", Kind.NUMBER, False),
                FieldPlan("note", Kind.TEXT, False),
            ),
            0,
            None,
            0,
            (),
        ),
        EventPlan(2, "like", TimePlan("ts", "s"), (FieldPlan("ip", Kind.TEXT, True),), 0, None, 0, ()),
    ),
    programs=(),
    views=(),
    features=(),
    services=(ServicePlan("all", (0, 1, 2), "00000000000000ff"), ServicePlan("none", (), "0000000000000000")),
    next_event_id=3,
    next_entity_id=3,
    next_view_id=1,
)
SCHEMA = WireSchema(PLAN)
REFUSED = (InvalidEventError, UnknownNameError, SchemaMismatchError, LimitError)
T_MS = 1_522_540_800_000


def column(name: str, texts: list[bytes | None]) -> types.NamedColumn:
    made = types.NamedColumn(name=name)
    made.texts.data = b"".join(text or b"" for text in texts)
    made.texts.lengths.extend(len(text or b"") for text in texts)
    present = np.packbits([text is not None for text in texts], bitorder="little").tobytes()
    made.texts.present = b"" if None not in texts else present
    return made


def requests() -> dict[str, list[bytes]]:
    row = types.Event(
        time_ms=T_MS, values=[types.Value(integer=596), types.Value(number=1.5), types.Value(text="né")]
    )
    named = types.Event(
        fields=[
            types.Field(name="at", text="2018-04-01T00:07:56.123+02:00"),
            types.Field(name="account", number=1e18),
            types.Field(name="ms", flag=True),
        ]
    )
    columns = types.EventColumns(times_ms=[T_MS, T_MS + 1, T_MS - 1])
    columns.columns.append(column("account", [b"a", None, b"bcd"]))
    columns.columns.append(column("note", [b"", b"x", b"\xf0\x9f\x8e\xa7"]))
    columns.columns.add(name="ms").numbers.values.extend([1.0, -0.0, 2.5])
    rows = pb.IngestRequest(event_type="play", producer="p", epoch=3, sequence=9, rows=[row, named, row])
    packed = pb.IngestRequest(event_type="play", ack=2, columns=columns)
    short = pb.IngestRequest(
        event_type="like", rows=[types.Event(fields=[types.Field(name="ts", number=1.001)])] * 2
    )
    observe = pb.ObserveRequest(event_type="play", event=named, service="all", bounds=True, fingerprint=255)
    read = pb.GetFeaturesRequest(
        service="all",
        as_of_ms=T_MS,
        key_sets=[
            types.KeySet(parts=[types.Field(name="ip", text="a"), types.Field(name="track", integer=-7)])
        ]
        * 2,
    )
    many = pb.GetFeaturesRequest(service="all", as_of_each_ms=[T_MS, 2], fingerprint=255, coverage=True)
    many.key_columns.parts.append(column("track", [b"t1", None]))
    many.key_columns.parts.add(name="account").integers.values.extend([1, -2])
    messages: dict[str, list[Any]] = {
        "observe": [observe, pb.ObserveRequest(event_type="play", event=row, peek=True, ack=1)],
        "ingest": [rows, packed, short],
        "ingest streamed": [pb.IngestStreamRequest(batch=one) for one in (rows, packed)],
        "read": [read, many, pb.GetFeaturesRequest(service="none", key_sets=[types.KeySet()])],
        "read streamed": [pb.GetFeaturesStreamRequest(read=one) for one in (read, many)],
    }
    return {name: [one.SerializeToString() for one in many] for name, many in messages.items()}


REQUESTS = requests()


def texts_of(decoded: Any, n: int) -> list[bytes | None]:
    offsets, data, present = decoded
    assert (
        len(offsets) == n + 1
        and offsets[0] <= offsets[-1] <= len(data)
        and not (np.diff(offsets.astype(int)) < 0).any()
    )
    bounds = offsets.tolist()
    return [
        data[a:b].tobytes() if present is None or present[i] else None
        for i, (a, b) in enumerate(pairwise(bounds))
    ]


def events_of(decoded: Any) -> tuple[list[tuple[Any, ...]], list[list[Any]]]:
    """Accepted events, as tuples to compare, and the columns they came in."""
    n = len(decoded["times"])
    fields = PLAN.events[decoded["event"]].fields
    columns: list[list[Any]] = []
    for declared, values in zip(fields, decoded["columns"], strict=True):
        columns.append(texts_of(values, n) if declared.kind == Kind.TEXT else values.tolist())
        assert len(columns[-1]) == n == len(decoded["outcomes"])
    kept = [i for i in range(n) if decoded["outcomes"][i] == 0]
    # repr: a NaN, which is an absent number, is unlike itself.
    rows = [(decoded["times"][i], *(repr(c[i]) for c in columns)) for i in kept]
    return rows, [[c[i] for i in kept] for c in columns]


def check_written(decoded: Any) -> None:
    """Sent again in columns, without what was refused, it is the same events."""
    rows, columns = events_of(decoded)
    event = PLAN.events[decoded["event"]]
    if not rows:
        return
    again = pb.IngestRequest(
        event_type=event.name, columns=types.EventColumns(times_ms=[row[0] for row in rows])
    )
    for declared, values in zip(event.fields, columns, strict=True):
        if declared.kind == Kind.TEXT:
            again.columns.columns.append(column(declared.name, values))
        elif not all(map(math.isnan, values)):
            numbers = again.columns.columns.add(name=declared.name).numbers
            numbers.values.extend(0.0 if math.isnan(value) else value for value in values)
            numbers.present = np.packbits(~np.isnan(values), bitorder="little").tobytes()
    repeated = codec.decode_ingest(again.SerializeToString(), SCHEMA)
    assert not repeated["outcomes"].any()
    assert events_of(repeated)[0] == rows


def check_read(decoded: Any) -> None:
    n = decoded["n"]
    assert decoded["as_of"] is None or len(decoded["as_of"]) == n
    texts = {name: texts_of(part, n) for name, part in decoded["parts"].items()}
    again = pb.GetFeaturesRequest(service=PLAN.services[decoded["service"]].name)
    if decoded["as_of"] is not None:
        again.as_of_each_ms.extend(decoded["as_of"].tolist())
    for name, part in texts.items():
        if any(text is not None for text in part):
            again.key_columns.parts.append(column(name, part))
    if n and (again.key_columns.parts or decoded["as_of"] is not None):
        repeated = codec.decode_read(again.SerializeToString(), SCHEMA)
        assert {name: texts_of(part, n) for name, part in repeated["parts"].items()} == texts


def decoder(name: str) -> Callable[[bytes], None]:
    limits = {"max_bytes": 1 << 20}  # of its arena: a server's calls have one, too
    streamed = name.endswith("streamed")

    def check(data: bytes) -> None:
        if name == "observe":
            check_written(codec.decode_observe(data, SCHEMA, **limits))
        elif name.startswith("ingest"):
            check_written(codec.decode_ingest(data, SCHEMA, streamed=streamed, **limits))
        else:
            check_read(codec.decode_read(data, SCHEMA, streamed=streamed, **limits))

    return check


def service(width: int) -> ServiceSchema:
    features = tuple(FeatureSchema(f"f{i}", "count", None, 1000, 0, (), False) for i in range(width))
    return ServiceSchema("s", 77, features, (), tuple(f"f{i}" for i in range(width)))


def replies(width: int) -> list[bytes]:
    n = 2 * width
    exact = types.Vectors(fingerprint=77, rows=2, width=width, values=[1.5] * n, bounds=types.BOUNDS_EXACT)
    full = types.Vectors(
        fingerprint=77, rows=2, width=width, values=[float("nan")] * n, statuses=bytes([4] * n),
        bounds=types.BOUNDS_CERTAIN, lower=[0.0] * n, upper=[2.0] * n, coverage=[0.5] * n,
    )  # fmt: skip
    return [pb.GetFeaturesResponse(vectors=one, now_ms=T_MS).SerializeToString() for one in (exact, full)]


def check_vectors(data: bytes) -> None:
    for width in (3, 0):
        try:
            read = wire.decode_read(data, service(width), rows=2, bounds=True)
        except (UnavailableError, SchemaMismatchError):
            if width == 0:
                raise
            continue
        # What the official runtime says that it means.
        sent = pb.GetFeaturesResponse.FromString(data)
        assert read.now_ms == (sent.now_ms if sent.HasField("now_ms") else None)
        same_vectors(read, sent.vectors, 2 * width)
        return


def same_vectors(read: Vector | Vectors, sent: types.Vectors, n: int) -> None:
    assert sent.rows * sent.width == n
    exact = sent.bounds == types.BOUNDS_EXACT
    statuses = sent.statuses or bytes([types.FEATURE_STATUS_PRESENT] * n)
    for array, numbers, others in (
        (read.values, sent.values, []),
        (read.lower, sent.values if exact else sent.lower, []),
        (read.upper, sent.values if exact else sent.upper, []),
        (read.coverage, sent.coverage, [float(s != types.FEATURE_STATUS_UNAVAILABLE) for s in statuses]),
    ):
        assert array is not None
        assert array.tobytes() == np.array(list(numbers) or others, array.dtype).tobytes()
    assert read.statuses.tobytes() == statuses


def check_observed(data: bytes) -> None:
    asked: dict[str, Any] = {"peek": False, "bounds": True}
    observed = wire.decode_observed(data, service(3), 1, **asked)
    sent = pb.ObserveResponse.FromString(data)
    assert (observed.position, observed.ack or 0) == (sent.position, sent.ack)
    assert observed.outcome == (0 if sent.outcome == types.OUTCOME_ACCEPTED else sent.outcome)
    assert observed.vector is not None
    same_vectors(observed.vector, sent.vectors, 3)
    wire.decode_observed(data, None, 1, **asked)


OBSERVED = [
    pb.ObserveResponse(
        outcome=types.OUTCOME_ACCEPTED,
        ack=types.ACK_DURABLE,
        position=123456,
        vectors=types.Vectors(
            fingerprint=77, rows=1, width=3, values=[1.0, 2.0, 3.0], bounds=types.BOUNDS_EXACT
        ),
    ).SerializeToString(),
    pb.ObserveResponse(
        outcome=types.OUTCOME_LATE,
        position=1,
        vectors=types.Vectors(
            fingerprint=77,
            rows=1,
            width=3,
            values=[math.nan] * 3,
            statuses=b"\4\3\2",
            bounds=types.BOUNDS_EXACT,
            coverage=[1.0, 0.5, 1.0],
        ),
    ).SerializeToString(),
]

TRIALS = [
    *(Trial(name, samples, decoder(name), REFUSED, rounds=8000) for name, samples in REQUESTS.items()),
    Trial("reply", replies(3) + replies(0), check_vectors, (UnavailableError, SchemaMismatchError)),
    Trial("observed", OBSERVED, check_observed, (UnavailableError, SchemaMismatchError)),
]


@pytest.mark.parametrize("one", TRIALS, ids=lambda one: one.name)
def test_a_damaged_message_is_refused_or_means_what_it_says(one: Trial) -> None:
    trial.run(one)
