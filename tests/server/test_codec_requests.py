"""The decoder against the official runtime: the same bytes must mean the same, or be refused by both."""

from __future__ import annotations

import math
import random
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import wire_oracle as oracle
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import errors
from featurestore.schema import compile_schema
from featurestore.server import codec, names
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

SCHEMA = names.WireSchema(oracle.PLAN)

FIELD_NAMES = [f.name for event in oracle.PLAN.events for f in event.fields]
TIME_NAMES = [event.time.field for event in oracle.PLAN.events]

texts = st.one_of(
    st.sampled_from(
        ["", "596", "a", "ünïcödé", "🎧" * 3, "x" * 4096, "x" * 4097, "é" * 2048, "x" + "🎧" * 1024]
    ),
    st.text(max_size=8),
)
integers = st.one_of(
    st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 596, 99, 100]), st.integers(-(2**63), 2**63 - 1)
)
numbers = st.one_of(
    st.sampled_from(
        [
            0.0,
            -0.0,
            596.0,
            2.0**53,
            2.0**63,
            -(2.0**63),
            1e300,
            -1.7e308,
            1.001,
            1522540800.0009999,
            float("nan"),
            float("inf"),
            0.5,
        ]
    ),
    st.floats(),
)
times = st.one_of(
    st.sampled_from([0, -1, oracle.FIRST_MS, oracle.FIRST_MS - 1, oracle.LAST_MS, oracle.LAST_MS + 1]),
    st.integers(oracle.FIRST_MS, oracle.LAST_MS),
    integers,
)
moments = st.builds(
    lambda moment, seed: oracle.iso_texts(moment, random.Random(seed)), st.datetimes(), st.integers(0, 99)
)
maybe_iso = st.one_of(
    moments,
    st.builds(
        lambda text, at, c: text[:at] + c + text[at + 1 :], moments, st.integers(0, 25), st.text(max_size=2)
    ),
    st.sampled_from(
        ["0000-02-29", "0000-13-01", "1900-02-29", "2000-02-29", "9999-12-31T23:59:59.999-00:01"]
    ),
    st.sampled_from(
        ["0001-01-01T00:00+00:01", "2018-04-01T00:07:60", "2018-04-01T24:00", "1969-12-31 23:59:59.9999"]
    ),
)


@st.composite
def values(draw: st.DrawFn, cls: Any, kinds: str = "tinf", **more: Any) -> Any:
    message = cls(**more)
    kind = draw(st.sampled_from(kinds + "-"))
    if kind == "t":
        message.text = draw(texts)
    elif kind == "i":
        message.integer = draw(integers)
    elif kind == "n":
        message.number = draw(numbers)
    elif kind == "f":
        message.flag = draw(st.booleans())
    return message


SUITS = {
    "customer_id": "tin",
    "ip": "tin",
    "track": "ti",
    "note": "tin",
    "title": "tin",
    "tx_amount": "inf",
    "ok": "inf",
}


@st.composite
def events(draw: st.DrawFn, event_type: str) -> Any:
    """Mostly what the schema wants, sometimes not."""
    message = types.Event()
    plan = oracle.EVENTS.get(event_type, oracle.PLAN.events[0])
    if draw(st.booleans()):
        message.time_ms = draw(times)
    elif draw(st.booleans()):
        time = message.fields.add(name=plan.time.field)
        if draw(st.integers(0, 9)) == 0:
            time.CopyFrom(draw(values(types.Field, name=plan.time.field)))
        elif plan.time.unit == "iso":
            time.text = draw(maybe_iso)
        else:
            time.integer = (
                draw(times)
                * {"s": 1, "ms": 1, "us": 1}[plan.time.unit]
                // (1000 if plan.time.unit == "s" else 1)
            )
    known = [f.name for f in plan.fields]
    by_name = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    for name in by_name:
        kinds = SUITS[name] if draw(st.integers(0, 9)) else "tinf"
        message.fields.append(draw(values(types.Field, kinds, name=name)))
    if not by_name or draw(st.integers(0, 9)) == 0:
        for name in known[: draw(st.integers(0, len(known)))]:
            message.values.append(
                draw(values(types.Value, SUITS[name] if draw(st.integers(0, 9)) else "tinf"))
            )
    if draw(st.integers(0, 19)) == 0:
        message.fields.append(draw(values(types.Field, name=draw(st.sampled_from([*known, "tx_amnt", ""])))))
    if draw(st.integers(0, 19)) == 0:
        message.values.add()
    return message


@st.composite
def named_columns(draw: st.DrawFn, name: str, kinds: str, n: int) -> Any:
    message = types.NamedColumn(name=name)
    kind = draw(st.sampled_from(kinds))
    present = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=n, max_size=n)))
    bits = np.packbits(np.array(present, bool), bitorder="little").tobytes() if present is not None else b""
    if kind == "t":
        pieces = [draw(maybe_iso if name in TIME_NAMES else texts).encode() for _ in range(n)]
        if present is not None and draw(st.integers(0, 9)):
            pieces = [piece if given else b"" for piece, given in zip(pieces, present, strict=True)]
        message.texts.data = b"".join(pieces)
        message.texts.lengths.extend(map(len, pieces))
        message.texts.present = bits
        if pieces and draw(st.integers(0, 19)) == 0:
            message.texts.lengths[draw(st.integers(0, n - 1))] = draw(
                st.sampled_from([0, 1, 2**32 - 1, 2**31])
            )
    elif kind == "n":
        message.numbers.values.extend(draw(numbers) for _ in range(n))
        message.numbers.present = bits
    elif kind == "i":
        message.integers.values.extend(draw(times if name in TIME_NAMES else integers) for _ in range(n))
        message.integers.present = bits + draw(st.sampled_from([b"", b"", b"\xff"]))
    return message


@st.composite
def ingests(draw: st.DrawFn) -> Any:
    event_type = draw(st.sampled_from([*oracle.EVENTS, *oracle.EVENTS, "transactoin"]))
    message = pb.IngestRequest(event_type=event_type)
    if draw(st.booleans()):
        message.producer = draw(st.sampled_from(["p", "", "é" * 128, "é" * 128 + "x"]))
        message.epoch = draw(st.integers(0, 2**64 - 1))
        message.sequence = draw(st.integers(0, 2**64 - 1))
        message.ack = draw(st.sampled_from([0, 1, 2, 2, 1, 7, -1]))
    if draw(st.booleans()):
        message.rows.extend(draw(st.lists(events(event_type), max_size=5)))
        if draw(st.integers(0, 9)) == 0:
            message.columns.SetInParent()
        return message
    n = draw(st.sampled_from([0, 1, 3, 8, 9]))
    plan = oracle.EVENTS.get(event_type, oracle.PLAN.events[0])
    if draw(st.booleans()):
        message.columns.times_ms.extend(draw(times) for _ in range(n))
    elif draw(st.booleans()):
        kinds = ("t" if plan.time.unit == "iso" else "iiin") if draw(st.integers(0, 9)) else "tin-"
        message.columns.columns.append(draw(named_columns(plan.time.field, kinds, n)))
    for name in draw(st.lists(st.sampled_from([f.name for f in plan.fields] or ["at"]), unique=True)):
        kinds = SUITS.get(name, "i").replace("f", "") if draw(st.integers(0, 9)) else "tin-"
        size = n if draw(st.integers(0, 29)) else n + 1
        message.columns.columns.append(draw(named_columns(name, kinds, size)))
    if draw(st.integers(0, 19)) == 0:
        message.columns.columns.append(
            draw(named_columns(draw(st.sampled_from(["ip", "tx_amnt"])), "tin-", n))
        )
    return message


@st.composite
def observes(draw: st.DrawFn) -> Any:
    event_type = draw(st.sampled_from([*oracle.EVENTS, *oracle.EVENTS, "x"]))
    message = pb.ObserveRequest(event_type=event_type)
    if draw(st.integers(0, 9)):
        message.event.CopyFrom(draw(events(event_type)))
    message.service = draw(st.sampled_from(["", "fraud", "plays", "nothing", "fruad"]))
    if draw(st.integers(0, 4)) == 0:
        message.fingerprint = draw(st.sampled_from([255, 0xFEDCBA9876543210, 0, 1]))
    message.peek, message.bounds, message.coverage = (draw(st.booleans()) for _ in range(3))
    if draw(st.booleans()):
        message.ack = draw(st.sampled_from([0, 1, 2, 2, 1, 3]))
        message.producer, message.epoch = "p", draw(st.integers(0, 2**64 - 1))
        message.sequence = draw(st.integers(0, 2**64 - 1))
    return message


@st.composite
def reads(draw: st.DrawFn) -> Any:
    message = pb.GetFeaturesRequest(
        service=draw(st.sampled_from(["fraud", "fraud", "plays", "nothing", "fruad", ""]))
    )
    known = [*oracle.PARTS, *oracle.PARTS, *oracle.PARTS, "costumer_id"]
    n = draw(st.sampled_from([0, 1, 2, 5]))
    if draw(st.booleans()):
        for _ in range(n):
            key_set = message.key_sets.add()
            for name in draw(
                st.lists(st.sampled_from(known), unique=draw(st.integers(0, 9)) > 0, max_size=3)
            ):
                key_set.parts.append(
                    draw(values(types.Field, "tin" if draw(st.integers(0, 9)) else "f", name=name))
                )
        if draw(st.integers(0, 9)) == 0:
            message.key_columns.SetInParent()
    else:
        for name in draw(st.lists(st.sampled_from(known), unique=draw(st.integers(0, 9)) > 0, max_size=3)):
            message.key_columns.parts.append(draw(named_columns(name, "tti-", n)))
    if draw(st.integers(0, 2)) == 0:
        message.as_of_ms = draw(times)
    elif draw(st.booleans()):
        message.as_of_each_ms.extend(draw(times) for _ in range(n if draw(st.integers(0, 9)) else n + 1))
    if draw(st.integers(0, 4)) == 0:
        message.fingerprint = draw(st.sampled_from([255, 0xFEDCBA9876543210, 0]))
    message.bounds, message.coverage = draw(st.booleans()), draw(st.booleans())
    return message


def plain(column: Any, n: int) -> list[Any]:
    """A decoded column as Python values, None where it is absent."""
    if isinstance(column, tuple):
        offsets, data, present = column
        assert offsets[0] == 0 and offsets[-1] == len(data) and (np.diff(offsets.astype(np.int64)) >= 0).all()
        pieces = [data[offsets[i] : offsets[i + 1]].tobytes() for i in range(n)]
        return [piece if present is None or present[i] else None for i, piece in enumerate(pieces)]
    assert len(column) == n
    return [None if np.isnan(number) else float(number) for number in column]


def same_rows(expected: oracle.Rows, decoded: Any) -> None:
    n = len(expected.times)
    assert decoded["outcomes"].tolist() == expected.outcomes
    event = oracle.PLAN.events[decoded["event"]]
    fields = [f.name for f in event.fields]
    names = [*fields, event.time.field]
    refused_by = zip(decoded["refused_by"].tolist(), decoded["outcomes"].tolist(), strict=True)
    assert [names[field] if outcome else None for field, outcome in refused_by] == expected.refused_by
    columns = dict(zip(fields, (plain(c, n) for c in decoded["columns"]), strict=True))
    for i in range(n):
        if expected.outcomes[i] == 0:
            assert decoded["times"][i] == expected.times[i]
            got = {name: column[i] for name, column in columns.items() if column[i] is not None}
            assert {k: repr(v) for k, v in got.items()} == {k: repr(v) for k, v in expected.values[i].items()}


def written(message: Any, seed: int) -> bytes:
    """The message's bytes, scrambled for every other seed; the official runtime must read them back."""
    if seed % 2:
        return message.SerializeToString()
    data = oracle.scrambled(message, random.Random(seed))
    back = type(message).FromString(data)
    back.DiscardUnknownFields()
    assert back.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    return data


def raises(expected: oracle.Wrong, call: Any) -> None:
    with pytest.raises(errors.FeatureStoreError) as caught:
        call()
    assert type(caught.value).__name__ in expected.errors, str(caught.value)


@settings(max_examples=400, deadline=None)
@given(ingests(), st.integers(0, 2**32), st.booleans())
def test_ingest_means_what_the_official_runtime_and_the_schema_say(
    message: Any, seed: int, streamed: bool
) -> None:
    outer = pb.IngestStreamRequest(batch=message) if streamed else message
    data = written(outer, seed)
    expected = oracle.ingest(message)
    if isinstance(expected, oracle.Wrong):
        raises(expected, lambda: codec.decode_ingest(data, SCHEMA, streamed=streamed))
        return
    decoded = codec.decode_ingest(data, SCHEMA, streamed=streamed)
    same_rows(expected, decoded)
    assert oracle.PLAN.events[decoded["event"]].name == message.event_type
    got = (decoded["producer"].decode(), decoded["epoch"], decoded["sequence"], decoded["ack"])
    assert got == (message.producer, message.epoch, message.sequence, message.ack)


@settings(max_examples=300, deadline=None)
@given(observes(), st.integers(0, 2**32))
def test_observe_means_what_the_official_runtime_and_the_schema_say(message: Any, seed: int) -> None:
    data = written(message, seed)
    expected = oracle.observe(message)
    if isinstance(expected, oracle.Wrong):
        raises(expected, lambda: codec.decode_observe(data, SCHEMA))
        return
    decoded = codec.decode_observe(data, SCHEMA)
    same_rows(expected[0], decoded)
    assert decoded["service"] == expected[1]
    for name in ("peek", "bounds", "coverage", "ack", "epoch", "sequence"):
        assert decoded[name] == getattr(message, name)
    assert decoded["producer"].decode() == message.producer


@settings(max_examples=300, deadline=None)
@given(reads(), st.integers(0, 2**32), st.booleans())
def test_a_read_means_what_the_official_runtime_and_the_schema_say(
    message: Any, seed: int, streamed: bool
) -> None:
    data = written(pb.GetFeaturesStreamRequest(read=message) if streamed else message, seed)
    expected = oracle.read(message)
    if isinstance(expected, oracle.Wrong):
        raises(expected, lambda: codec.decode_read(data, SCHEMA, streamed=streamed))
        return
    decoded = codec.decode_read(data, SCHEMA, streamed=streamed)
    key_sets, service, as_of = expected
    assert (decoded["n"], decoded["service"]) == (len(key_sets), service)
    columns = {name: plain(column, decoded["n"]) for name, column in decoded["parts"].items()}
    for i, key_set in enumerate(key_sets):
        assert {name: column[i] for name, column in columns.items() if column[i] is not None} == key_set
    assert (None if decoded["as_of"] is None else decoded["as_of"].tolist()) == as_of
    assert (decoded["bounds"], decoded["coverage"]) == (message.bounds, message.coverage)


DECODERS = [
    (pb.ObserveRequest, lambda data: codec.decode_observe(data, SCHEMA)),
    (pb.IngestRequest, lambda data: codec.decode_ingest(data, SCHEMA)),
    (pb.IngestStreamRequest, lambda data: codec.decode_ingest(data, SCHEMA, streamed=True)),
    (pb.GetFeaturesRequest, lambda data: codec.decode_read(data, SCHEMA)),
    (pb.GetFeaturesStreamRequest, lambda data: codec.decode_read(data, SCHEMA, streamed=True)),
]


def is_well_formed(cls: Any, data: bytes) -> bool:
    try:
        cls.FromString(data)
    except DecodeError:
        return False
    return True


def agrees(cls: Any, decode: Any, data: bytes) -> None:
    """Malformed for one is refused by the other; what is well-formed is never called malformed."""
    try:
        decode(data)
    except errors.FeatureStoreError as error:
        said_malformed = "not a valid protobuf message" in str(error) or ("near byte" in str(error))
        column_text = "near byte" in str(error) and is_well_formed(
            cls, data
        )  # `bytes` that must be UTF-8 here
        assert not said_malformed or column_text or not is_well_formed(cls, data), str(error)
    else:
        assert is_well_formed(cls, data)


def examples() -> list[tuple[Any, Any, bytes]]:
    row = types.Event(
        time_ms=5, fields=[types.Field(name="ip", text="1.2.3.4"), types.Field(name="note", text="é")]
    )
    named = types.Event(
        values=[types.Value(integer=596), types.Value(number=1.5), types.Value(), types.Value(text="x")]
    )
    named.fields.add(name="tx_datetime", text="2018-04-01T00:07:56Z")
    columns = types.EventColumns(times_ms=[1, 2])
    columns.columns.add(name="ip").texts.CopyFrom(
        types.TextColumn(data=b"ab\xc3\xa9", lengths=[1, 3], present=b"\x03")
    )
    columns.columns.add(name="tx_amount").numbers.values.extend([1.0, 2.0])
    columns.columns.add(name="customer_id").integers.values.extend([1, -2])
    by_rows = pb.IngestRequest(event_type="transaction", producer="p", sequence=9, rows=[row, named])
    by_columns = pb.IngestRequest(event_type="transaction", epoch=1, ack=2, columns=columns)
    observe = pb.ObserveRequest(
        event_type="transaction", event=named, service="fraud", bounds=True, fingerprint=255
    )
    read = pb.GetFeaturesRequest(
        service="fraud", as_of_ms=77, key_sets=[types.KeySet(parts=[types.Field(name="ip", text="a")])]
    )
    many = pb.GetFeaturesRequest(service="fraud", as_of_each_ms=[1, 2], fingerprint=255)
    many.key_columns.parts.add(name="track").integers.values.extend([1, 2])
    messages = [observe, by_rows, by_columns, pb.IngestStreamRequest(batch=by_rows), read, many]
    messages.append(pb.GetFeaturesStreamRequest(read=many))
    decoders = dict(DECODERS)
    return [(type(m), decoders[type(m)], m.SerializeToString()) for m in messages]


EXAMPLES = examples()


@pytest.mark.parametrize(
    ("cls", "decode", "data"), EXAMPLES, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_truncation_is_judged_as_the_official_runtime_does(cls: Any, decode: Any, data: bytes) -> None:
    decode(data)
    for end in range(len(data)):
        agrees(cls, decode, data[:end])


@pytest.mark.parametrize(
    ("cls", "decode", "data"), EXAMPLES, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_flipped_bit_is_judged_as_the_official_runtime_does(cls: Any, decode: Any, data: bytes) -> None:
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        agrees(cls, decode, bytes(flipped))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_damaged_messages_are_judged_as_the_official_runtime_does(example: Any, data: st.DataObject) -> None:
    cls, decode, original = example
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    agrees(cls, decode, bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DECODERS), st.binary(max_size=60))
def test_random_bytes_are_judged_as_the_official_runtime_does(decoder: Any, data: bytes) -> None:
    agrees(*decoder, data)


@pytest.mark.parametrize(
    ("cls", "decode", "data"), EXAMPLES, ids=lambda value: getattr(value, "__name__", None)
)
@pytest.mark.parametrize(
    "tail",
    [
        b"\x80" * 9 + b"\x01",  # a tag of ten bytes
        b"\xf8\xff\xff\xff\x1f\x00",  # a tag past 32 bits
        b"\xf8\xff\xff\xff\x0f\x00",  # the largest tag
        b"\xf8\x87\x80\x80\x80\x00\x01",  # a tag of six bytes
        b"\x00\x00",  # field number 0
        b"\xd0\x05" + b"\xff" * 9 + b"\x01",  # ten bytes of varint
        b"\xd0\x05" + b"\xff" * 9 + b"\x7f",  # and bits past the 64th
        b"\xd0\x05" + b"\xff" * 10 + b"\x01",  # eleven
        b"\xd3\x05\xd4\x05",  # an empty group
        b"\xd3\x05\xdc\x05",  # closed by another's end
        b"\xd4\x05",  # an end without a start
        b"\xd6\x05",  # wire type 6
        b"\xd7\x05",  # wire type 7
        b"\xd2\x05" + b"\xff" * 9 + b"\x01",  # a length of 2^64 - 1
        b"\xd2\x05" + b"\xff\xff\xff\xff\x07",  # a length of 2^31 - 1
        b"\xd3\x05" * 99 + b"\xd4\x05" * 99,
        b"\xd3\x05" * 100 + b"\xd4\x05" * 100,
        b"\xd3\x05" * 101 + b"\xd4\x05" * 101,
        b"\xd3\x05" * 5000 + b"\xd4\x05" * 5000,
    ],
    ids=lambda tail: tail[:8].hex() + f"-{len(tail)}",
)
def test_the_limits_of_the_format_are_the_official_ones(
    cls: Any, decode: Any, data: bytes, tail: bytes
) -> None:
    agrees(cls, decode, data + tail)


@pytest.mark.parametrize("inner", [95, 96, 97, 98, 99, 100])
def test_groups_deep_inside_count_from_the_outermost_message(inner: int) -> None:
    group = b"\xd3\x05" * inner + b"\xd4\x05" * inner
    inside = oracle._framed(2, group, random.Random(3))  # a Field of nothing but unknown fields, with no name
    row = oracle._framed(6, inside, random.Random(3))
    agrees(pb.IngestRequest, DECODERS[1][1], b"\x0a\x04ping" + row)
    column = oracle._framed(
        7, oracle._framed(2, oracle._framed(3, group, random.Random(3)), random.Random(3)), random.Random(3)
    )
    agrees(pb.IngestRequest, DECODERS[1][1], b"\x0a\x04ping" + column)


@pytest.mark.parametrize(
    "text",
    [
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xff",
        b"a" * 9 + b"\xc3",
        b"\xf0\x8f\xbf\xbf",
    ],
)
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    framed = oracle._framed(2, b"\x0a\x02ip" + oracle._framed(2, text, random.Random(1)), random.Random(1))
    data = b"\x0a\x05login" + oracle._framed(6, framed, random.Random(1))
    assert not is_well_formed(pb.IngestRequest, data)
    with pytest.raises(errors.InvalidEventError, match="UTF-8"):
        codec.decode_ingest(data, SCHEMA)
    columns = types.EventColumns(times_ms=[1])
    columns.columns.add(name="ip").texts.CopyFrom(types.TextColumn(data=text, lengths=[len(text)]))
    with pytest.raises(errors.InvalidEventError, match="UTF-8"):
        codec.decode_ingest(pb.IngestRequest(event_type="login", columns=columns).SerializeToString(), SCHEMA)


def test_a_length_that_cuts_a_character_is_refused() -> None:
    columns = types.EventColumns(times_ms=[1, 2])
    columns.columns.add(name="ip").texts.CopyFrom(types.TextColumn(data="é".encode(), lengths=[1, 1]))
    with pytest.raises(errors.InvalidEventError, match="UTF-8"):
        codec.decode_ingest(pb.IngestRequest(event_type="login", columns=columns).SerializeToString(), SCHEMA)


def test_pieces_of_a_streamed_batch_must_each_be_whole() -> None:
    batch = pb.IngestRequest(event_type="ping", rows=[types.Event(time_ms=1)]).SerializeToString()
    rng = random.Random(5)
    cut = oracle._framed(1, batch[:-1], rng) + oracle._framed(1, batch[-1:], rng)
    assert not is_well_formed(pb.IngestStreamRequest, cut)
    with pytest.raises(errors.InvalidEventError, match="malformed"):
        codec.decode_ingest(cut, SCHEMA, streamed=True)


@settings(max_examples=500, deadline=None)
@given(maybe_iso)
def test_iso_times_are_read_as_datetime_reads_them(text: str) -> None:
    event = types.Event(fields=[types.Field(name="tx_datetime", text=text)])
    decoded = codec.decode_observe(
        pb.ObserveRequest(event_type="transaction", event=event).SerializeToString(), SCHEMA
    )
    ms, why = oracle.iso_ms(text)
    assert (decoded["times"][0], decoded["outcomes"][0]) == (ms, why)
    if not why and text.count(":") == 2 and len(text) == 19 and not text.endswith(":60"):
        moment = datetime.fromisoformat(text + "+00:00")
        assert ms == (moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")).total_seconds() * 1000


def test_a_time_in_microseconds_is_kept_to_the_millisecond_below() -> None:
    sent = [-1, -1000, -1001, 999, 1000, 1999]
    columns = types.EventColumns(
        columns=[types.NamedColumn(name="at_us", integers=types.IntegerColumn(values=sent))]
    )
    decoded = codec.decode_ingest(
        pb.IngestRequest(event_type="play", columns=columns).SerializeToString(), SCHEMA
    )
    assert decoded["times"].tolist() == [-1, -1, -2, 0, 1, 1]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            pb.IngestRequest(event_type="transactoin"),
            "unknown event type 'transactoin'; did you mean transaction",
        ),
        (
            pb.IngestRequest(
                event_type="transaction", rows=[types.Event(fields=[types.Field(name="tx_amnt")])]
            ),
            "unknown field 'tx_amnt' of event type transaction; did you mean tx_amount",
        ),
        (
            pb.IngestRequest(
                event_type="login", rows=[types.Event()] * 2 + [types.Event(values=[types.Value()] * 3)]
            ),
            "row 2 of event type login has more values than the 2 fields declared",
        ),
        (
            pb.IngestRequest(
                event_type="login",
                columns=types.EventColumns(
                    times_ms=[1, 2],
                    columns=[types.NamedColumn(name="ok", numbers=types.NumberColumn(values=[1]))],
                ),
            ),
            "column 'ok' has another number of rows",
        ),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(request_: Any, words: str) -> None:
    with pytest.raises(errors.FeatureStoreError) as caught:
        codec.decode_ingest(request_.SerializeToString(), SCHEMA)
    assert words in str(caught.value)


LOGIN = {"ip": types.Field(name="ip", text="a"), "ok": types.Field(name="ok", integer=1)}
MORE = types.Field(name="port", integer=22)


@pytest.mark.parametrize("streamed", [False, True])
def test_names_that_are_not_declared_are_ignored_where_all_that_are_are_there(streamed: bool) -> None:
    whole = types.Event(time_ms=5, fields=[MORE, *LOGIN.values()])
    nulls = types.Event(fields=[types.Field(name="ts"), types.Field(name="ip"), types.Field(name="ok"), MORE])
    positional = types.Event(time_ms=5, values=[types.Value(text="a"), types.Value()], fields=[MORE])
    elsewhere = types.Event(time_ms=6, fields=[MORE])
    for rows in ([whole], [nulls], [positional], [whole, elsewhere], [elsewhere, nulls]):
        data = pb.IngestRequest(event_type="login", rows=rows)
        expected = oracle.ingest(data)
        assert isinstance(expected, oracle.Rows)
        message = pb.IngestStreamRequest(batch=data) if streamed else data
        same_rows(expected, codec.decode_ingest(message.SerializeToString(), SCHEMA, streamed=streamed))


@pytest.mark.parametrize("missing", ["ip", "ok", "ts"])
def test_a_name_that_is_not_declared_is_refused_where_a_declared_one_is_missing(missing: str) -> None:
    fields = [MORE, *(field for name, field in LOGIN.items() if name != missing)]
    row = types.Event(fields=fields) if missing == "ts" else types.Event(time_ms=5, fields=fields)
    texts = types.TextColumn(data=b"a", lengths=[1])
    columns = types.EventColumns(
        times_ms=[] if missing == "ts" else [5],
        columns=[types.NamedColumn(name=field.name, texts=texts) for field in fields],
    )
    for request_ in (
        pb.IngestRequest(event_type="login", rows=[row]),
        pb.IngestRequest(event_type="login", columns=columns),
        pb.ObserveRequest(event_type="login", event=row),
    ):
        decode = codec.decode_observe if isinstance(request_, pb.ObserveRequest) else codec.decode_ingest
        with pytest.raises(errors.UnknownNameError, match=f"unknown field 'port' .* '{missing}' is not, nor"):
            decode(request_.SerializeToString(), SCHEMA)


def test_columns_that_are_not_declared_are_ignored_where_all_that_are_are_there() -> None:
    columns = types.EventColumns(
        times_ms=[5, 6],
        columns=[
            types.NamedColumn(name="port", texts=types.TextColumn(data=b"x", lengths=[1, 0])),
            types.NamedColumn(name="ip", integers=types.IntegerColumn(values=[1, 2])),
            types.NamedColumn(name="ok"),
        ],
    )
    message = pb.IngestRequest(event_type="login", columns=columns)
    expected = oracle.ingest(message)
    assert isinstance(expected, oracle.Rows)
    same_rows(expected, codec.decode_ingest(message.SerializeToString(), SCHEMA))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_time_field_that_holds_no_time_is_absent_beside_time_ms(streamed: bool) -> None:
    empty, nan = types.Field(name="ts", text=""), types.Field(name="ts", number=math.nan)
    for rows in (
        [types.Event(time_ms=5, fields=[empty])],  # refused the whole request
        [types.Event(time_ms=5, fields=[nan])],
        [types.Event(fields=[empty]), types.Event(time_ms=6, fields=[types.Field(name="ts"), LOGIN["ip"]])],
        [types.Event(time_ms=5, fields=[types.Field(name="ts", text="soon")])],
        [types.Event(time_ms=5, fields=[types.Field(name="ts", integer=5)])],
        [types.Event(time_ms=5, fields=[empty, empty])],
    ):
        data = pb.IngestRequest(event_type="login", rows=rows)
        expected = oracle.ingest(data)
        message = pb.IngestStreamRequest(batch=data) if streamed else data
        if isinstance(expected, oracle.Rows):
            same_rows(expected, codec.decode_ingest(message.SerializeToString(), SCHEMA, streamed=streamed))
        else:
            with pytest.raises(errors.InvalidEventError):
                codec.decode_ingest(message.SerializeToString(), SCHEMA, streamed=streamed)
    assert isinstance(oracle.ingest(pb.IngestRequest(event_type="login", rows=[rows[0]])), oracle.Wrong)
    row = types.Event(time_ms=5, fields=[empty])
    assert isinstance(oracle.ingest(pb.IngestRequest(event_type="login", rows=[row])), oracle.Rows)


def test_of_no_events_none_lacks_a_field_beside_one_that_is_not_declared() -> None:
    for name in ("port", ""):
        columns = types.EventColumns(columns=[types.NamedColumn(name=name, texts=types.TextColumn())])
        message = pb.IngestRequest(event_type="login", columns=columns)
        expected = oracle.ingest(message)
        assert isinstance(expected, oracle.Rows) == bool(name)
        if name:
            same_rows(expected, codec.decode_ingest(message.SerializeToString(), SCHEMA))
        else:
            with pytest.raises(errors.UnknownNameError):
                codec.decode_ingest(message.SerializeToString(), SCHEMA)


def test_a_stale_fingerprint_is_a_schema_mismatch() -> None:
    message = pb.GetFeaturesRequest(service="fraud", fingerprint=254)
    with pytest.raises(errors.SchemaMismatchError, match="fraud"):
        codec.decode_read(message.SerializeToString(), SCHEMA)


def test_limits_are_refused_as_limits() -> None:
    small = names.WireSchema(oracle.PLAN, max_message_bytes=100, max_rows=3, max_values=6)
    four = pb.IngestRequest(event_type="ping", rows=[types.Event(time_ms=1)] * 4)
    with pytest.raises(errors.LimitError, match="more than 3 rows"):
        codec.decode_ingest(four.SerializeToString(), small)
    with pytest.raises(errors.LimitError, match="more than 3 rows"):
        data = pb.IngestRequest(
            event_type="ping", columns=types.EventColumns(times_ms=[1] * 4)
        ).SerializeToString()
        codec.decode_ingest(data, small)
    with pytest.raises(errors.LimitError, match="larger than 100 bytes"):
        codec.decode_ingest(b"\x0a\x04ping" + b"\xd2\x05\x60" + b"x" * 96, small)
    with pytest.raises(errors.LimitError, match="more than 6 values"):
        codec.decode_read(
            pb.GetFeaturesRequest(service="fraud", key_sets=[types.KeySet()] * 3).SerializeToString(), small
        )
    assert codec.decode_ingest(four.SerializeToString()[:-4], small)["times"].tolist() == [1, 1, 1]


def test_a_small_message_cannot_become_a_large_batch() -> None:
    message = pb.IngestRequest(event_type="transaction", rows=[types.Event()] * 100_000)
    with pytest.raises(errors.LimitError, match="more memory"):
        codec.decode_ingest(message.SerializeToString(), SCHEMA, max_bytes=1 << 20)


def test_an_arena_too_small_at_any_point_is_a_limit_and_nothing_else() -> None:
    for _, decode, data in EXAMPLES[1:3]:
        assert decode(data)["times"].size == 2
        for max_bytes in range(0, 2000, 8):
            try:
                codec.decode_ingest(data, SCHEMA, max_bytes=max_bytes)
            except errors.LimitError:
                continue
            break
        else:
            pytest.fail("2000 bytes must be enough")
        assert max_bytes > 100


def test_a_schema_of_many_names_finds_each() -> None:
    wide = [f"f{i}" for i in range(700)]
    fields = tuple(oracle.FieldPlan(name, oracle.Kind.NUMBER, False) for name in wide)
    event = oracle.EventPlan(0, "wide", oracle.TimePlan("t", "ms"), fields, 0, None, 0, ())
    plan = oracle.Plan(1, "wide", "", (), (event,), (), (), (), (), 1, 0, 0)
    row = types.Event(
        time_ms=1, fields=[types.Field(name=n, integer=i) for i, n in reversed(list(enumerate(wide)))]
    )
    data = pb.IngestRequest(event_type="wide", rows=[row]).SerializeToString()
    decoded = codec.decode_ingest(data, names.WireSchema(plan))
    assert [column[0] for column in decoded["columns"]] == list(range(700))


def login_columns(named: bytes) -> bytes:
    """An IngestRequest of two logins with times and this NamedColumn."""
    rng = random.Random(1)
    times = types.EventColumns(times_ms=[1, 2]).SerializeToString()
    return b"\x0a\x05login" + oracle._framed(7, times + oracle._framed(2, named, rng), rng)


def test_a_later_member_of_a_column_takes_the_place_of_the_earlier_one_whole() -> None:
    first = types.NamedColumn(
        name="ip", texts=types.TextColumn(data=b"abc", lengths=[1, 1, 1], present=b"\x02")
    )
    second = types.NamedColumn(name="ip", integers=types.IntegerColumn(values=[7, 8]))
    data = login_columns(first.SerializeToString() + second.SerializeToString())
    expected = oracle.ingest(pb.IngestRequest.FromString(data))
    assert isinstance(expected, oracle.Rows) and expected.values == [{"ip": b"7"}, {"ip": b"8"}]
    same_rows(expected, codec.decode_ingest(data, SCHEMA))


def test_lengths_keep_their_lowest_32_bits_as_in_the_official_runtime() -> None:
    lengths = oracle.varint(2**32 + 1) + oracle.varint(2)
    texts = b"\x0a\x03abc" + oracle._framed(2, lengths, random.Random(1))
    data = login_columns(b"\x0a\x02ip" + oracle._framed(2, texts, random.Random(1)))
    expected = oracle.ingest(pb.IngestRequest.FromString(data))
    assert isinstance(expected, oracle.Rows) and expected.values == [{"ip": b"a"}, {"ip": b"bc"}]
    same_rows(expected, codec.decode_ingest(data, SCHEMA))


COLUMNS = names.WireSchema(
    compile_schema("""\
version: 1
name: s
events: {e: {time: {field: ts, unit: s}, fields: {k: key, s: string, n: number, m: number}}}
views: {v: {event: e, key: k, windows: [1h], features: [count]}}
""")
)


def a_column(name: str, values: list[Any]) -> Any:
    if isinstance(values[0], str):
        raw = [value.encode() for value in values]
        texts = types.TextColumn(data=b"".join(raw), lengths=[len(one) for one in raw])
        return types.NamedColumn(name=name, texts=texts)
    return types.NamedColumn(name=name, numbers=types.NumberColumn(values=values))


@pytest.mark.parametrize("by_number", [False, True])
def test_of_columns_too_the_field_is_named_for_which_each_row_is_refused(by_number: bool) -> None:
    """One bad value a row, by every way that a column is read, and one row with two."""
    inf = math.inf
    data = {
        "ts": [1.0, 1e18, 1.0, 1.0, 1.0, 1.0, 1.0],
        "n": [1.0, 1.0, inf, 1.0, 1.0, 1.0, 1.0],
        "m": ["1", "1", "1", "one", "1", "1", "one"],
        "k": ["a", "a", "a", "a", "a" * 4097, "a", "a"],
        "s": [1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.5],
    }
    expected = [None, "ts", "n", "m", "k", "s", "s"]
    request = pb.IngestRequest(event_type="e")
    for name, values in data.items():
        if name == "ts" and by_number:
            request.columns.times_ms.extend(10**18 if at > 1 else 1000 for at in map(int, values))
        else:
            request.columns.columns.append(a_column(name, values))
    decoded = codec.decode_ingest(request.SerializeToString(), COLUMNS)
    fields = ["k", "s", "n", "m", "ts"]
    found = zip(decoded["refused_by"].tolist(), decoded["outcomes"].tolist(), strict=True)
    assert [fields[field] if outcome else None for field, outcome in found] == expected
