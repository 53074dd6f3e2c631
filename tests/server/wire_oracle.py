"""What a request means, said slowly: official messages in, plain Python values out. Knows nothing of the
codec.

A request is `Meaning` (rows of plain values and the outcome of each) or `Wrong` (the names of every error
that applies; which of several is reported is free). `scrambled` writes a message by hand in one of the many
ways in which the wire format allows it to be written.
"""

from __future__ import annotations

import math
import random
import re
import struct
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from featurestore.plan import EntityPlan, EventPlan, FieldPlan, Kind, Plan, ServicePlan, TimePlan
from featurestore.v1 import types_pb2 as types

NO_TIME = types.OUTCOME_REFUSED_NO_TIME
TIME_RANGE = types.OUTCOME_REFUSED_TIME_RANGE
NOT_FINITE = types.OUTCOME_REFUSED_NOT_FINITE
BAD_KEY = types.OUTCOME_REFUSED_KEY
TOO_LONG = types.OUTCOME_REFUSED_KEY_TOO_LONG
BAD_TYPE = types.OUTCOME_REFUSED_TYPE

FIRST_MS, LAST_MS = -62135596800000, 253402300799999


def _event(name: str, time: str, unit: str, *fields: FieldPlan) -> EventPlan:
    return EventPlan(0, name, TimePlan(time, unit), fields, 0, None, 0, ())


def _key(name: str) -> FieldPlan:
    return FieldPlan(name, Kind.TEXT, True)


PLAN = Plan(
    version=1,
    name="wire",
    source="",
    entities=(
        EntityPlan(0, ("customer_id",), False),
        EntityPlan(1, ("ip", "track"), False),
        EntityPlan(2, (), False),
    ),
    events=(
        _event(
            "transaction",
            "tx_datetime",
            "iso",
            _key("customer_id"),
            FieldPlan("tx_amount", Kind.NUMBER, False),
            FieldPlan("note", Kind.TEXT, False),
            _key("ip"),
        ),
        _event("login", "ts", "s", _key("ip"), FieldPlan("ok", Kind.NUMBER, False)),
        _event("play", "at_us", "us", _key("track"), FieldPlan("title", Kind.TEXT, False)),
        _event("ping", "at", "ms"),
    ),
    programs=(),
    views=(),
    features=(),
    services=(
        ServicePlan("fraud", (0, 1, 2), "00000000000000ff"),
        ServicePlan("plays", (0,), "fedcba9876543210"),
        ServicePlan("nothing", (), "0000000000000000"),
    ),
    next_event_id=4,
    next_entity_id=3,
    next_view_id=0,
)
EVENTS = {event.name: event for event in PLAN.events}
PARTS = ("customer_id", "ip", "track")


@dataclass
class Wrong:
    errors: set[str]


@dataclass
class Rows:
    """Rows of values by field name (absent: no entry), the time of each, and the outcome of each."""

    values: list[dict[str, Any]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    refused_by: list[str | None] = field(default_factory=list)


ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"(?:[Zz]|([+-])([0-9]{2})(?::?([0-9]{2}))?)?)?"
)


def iso_ms(text: str) -> tuple[int, int]:
    """(milliseconds, 0) or (0, why not)."""
    if not text:
        return 0, NO_TIME
    found = ISO.fullmatch(text)
    if found is None or len(text) > 64:
        return 0, BAD_TYPE
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    zone_h, zone_m = int(found[9] or 0), int(found[10] or 0)
    if hour > 23 or minute > 59 or second > 60 or zone_h > 23 or zone_m > 59:
        return 0, BAD_TYPE
    try:
        days = (date(year or 400, month, day) - date(1970, 1, 1)).days - (0 if year else 146097)
    except ValueError:
        return 0, BAD_TYPE
    milli = int((found[7] or "").ljust(3, "0")[:3])
    ms = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + milli
    ms -= (-1 if found[8] == "-" else 1) * (zone_h * 60 + zone_m) * 60000
    return (ms, 0) if FIRST_MS <= ms <= LAST_MS else (0, TIME_RANGE)


def time_ms(unit: str, kind: str, value: Any) -> tuple[int, int]:  # noqa: PLR0911  # a rule each
    if unit == "iso":
        return iso_ms(value) if kind == "text" else (0, BAD_TYPE)
    if kind == "text" and value == "":
        return 0, NO_TIME
    if kind == "text":
        if re.fullmatch(r"-?(?:[0-9]{1,18}|[0-8][0-9]{18})", value):
            kind, value = "integer", int(value)
        else:
            found = NUMBER.fullmatch(value)
            if found is None or not found[1] or len(value) > 4096:
                return 0, BAD_TYPE
            kind, value = "number", float(found[1])
    if kind not in ("integer", "number"):
        return 0, BAD_TYPE
    if math.isnan(value):
        return 0, NO_TIME
    if abs(value) > 10**19:
        return 0, TIME_RANGE
    if kind == "number" and unit == "s":
        value, unit = round(value * 1e6), "us"
    if unit == "ns":
        if not -(2**63) <= value < 2**63:
            return 0, TIME_RANGE
        return math.floor(value) // 1_000_000, 0
    ms = {"s": value * 1000, "ms": math.floor(value), "us": math.floor(value) // 1000}[unit]
    return (ms, 0) if FIRST_MS <= ms <= LAST_MS else (0, TIME_RANGE)


NUMBER = re.compile(
    r"[ \t\n\r\v\f]*(?:([+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan))"
    r"|(t|true)|(f|false))"
    r"[ \t\n\r\v\f]*",
    re.ASCII | re.IGNORECASE,
)


def number_in(text: str) -> float | None:
    found = NUMBER.fullmatch(text)
    if found is None or len(text) > 4096:
        return None
    return float(found[1]) if found[1] else float(found[2] is not None)


def kept(declared: FieldPlan, kind: str, value: Any) -> tuple[Any, int]:  # noqa: PLR0911  # a rule each
    """(the value as it is kept, 0) or (None, why the event is refused)."""
    if kind == "text" and value == "":
        return None, 0
    if declared.kind == Kind.NUMBER:
        if kind == "text":
            value = number_in(value)
            if value is None:
                return None, BAD_TYPE
        return (float(value), 0) if math.isfinite(value) else (None, NOT_FINITE)
    if kind == "text":
        encoded = value.encode()
        if declared.is_key and len(encoded) > 4096:
            return None, TOO_LONG
        return encoded[:4096].decode(
            errors="ignore"
        ).encode(), 0  # whole characters, none but the last is cut
    if kind == "flag" or not math.isfinite(value) or value != int(value):
        return None, BAD_KEY if declared.is_key and kind != "flag" else BAD_TYPE
    return str(int(value)).encode(), 0


# One value as sent: (kind, value), or None where it is absent.
Sent = tuple[str, Any] | None


def _sent(message: Any) -> Sent:
    kind = message.WhichOneof("kind")
    return None if kind is None else (kind, getattr(message, kind))


def _resolve(
    event: EventPlan,
    given: dict[str, Sent],
    rows: Rows,
    errors: set[str],
    number_ms: int | None,
    *,
    in_columns: bool = False,
) -> None:
    """Adds one row from the values given by name; the time field is one of the names."""
    values: dict[str, Any] = {}
    refused = []
    judged = [event.time.field]
    ms = 0
    by_field = given.get(event.time.field)
    if number_ms is not None and by_field is not None and not in_columns:
        by_field = None if time_ms(event.time.unit, *by_field)[1] == NO_TIME else by_field
    if number_ms is not None and by_field is not None:
        errors.add("InvalidEventError")
    if number_ms is not None:
        ms = number_ms
        refused.append(0 if FIRST_MS <= ms <= LAST_MS else TIME_RANGE)
    elif by_field is not None:
        ms, why = time_ms(event.time.unit, *by_field)
        refused.append(why)
    else:
        refused.append(NO_TIME)
    for declared in event.fields:
        sent = given.get(declared.name)
        if sent is not None:
            value, why = kept(declared, *sent)
            refused.append(why)
            judged.append(declared.name)
            if value is not None or why:
                values[declared.name] = value
    rows.values.append(values)
    rows.times.append(ms)
    rows.outcomes.append(next((why for why in refused if why), 0))
    rows.refused_by.append(next((name for name, why in zip(judged, refused, strict=True) if why), None))


@dataclass
class Seen:
    """The names in all events of a request, with a value or without."""

    declared: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)

    def judge(self, known: set[str], errors: set[str]) -> None:
        """What is not declared is ignored where all that is declared is there."""
        if "" in self.strangers or (self.strangers and self.declared < known):
            errors.add("UnknownNameError")


def _named(
    pairs: list[tuple[str, Sent]], known: set[str], errors: set[str], seen: Seen | None = None
) -> dict[str, Sent]:
    given: dict[str, Sent] = {}
    for name, sent in pairs:
        if seen is not None:
            (seen.declared if name in known else seen.strangers).add(name)
        if name not in known:
            if seen is None:
                errors.add("UnknownNameError")
        elif sent is not None:
            if name in given:
                errors.add("InvalidEventError")
            given[name] = sent
    return given


def names_of(event: EventPlan) -> set[str]:
    return {f.name for f in event.fields} | {event.time.field}


def event_row(event: EventPlan, message: Any, rows: Rows, errors: set[str], seen: Seen) -> None:
    known = names_of(event)
    pairs = [(f.name, _sent(f)) for f in message.fields]
    for position, value in enumerate(message.values):
        if position >= len(event.fields):
            errors.add("InvalidEventError")
        else:
            pairs.append((event.fields[position].name, _sent(value)))
    given = _named(pairs, known, errors, seen)
    if message.HasField("time_ms"):
        seen.declared.add(event.time.field)
    _resolve(event, given, rows, errors, message.time_ms if message.HasField("time_ms") else None)


def column(message: Any, errors: set[str]) -> list[Sent] | None:
    """The values of a NamedColumn, None where it has no member."""
    member = message.WhichOneof("kind")
    if member is None:
        return None
    sent = getattr(message, member)
    values: list[Sent]
    if member == "texts":
        ends = [sum(sent.lengths[: i + 1]) for i in range(len(sent.lengths))]
        if (ends[-1] if ends else 0) != len(sent.data):
            errors.add("InvalidEventError")
            return [None] * len(ends)
        pieces = [sent.data[end - length : end] for end, length in zip(ends, sent.lengths, strict=True)]
        try:
            values = [("text", piece.decode()) for piece in pieces]
        except UnicodeDecodeError:
            errors.add("InvalidEventError")
            return [None] * len(ends)
    else:
        values = [({"numbers": "number", "integers": "integer"}[member], value) for value in sent.values]
    if sent.present:
        if len(sent.present) * 8 < len(values):
            errors.add("InvalidEventError")
            return values
        for i in range(len(values)):
            if not sent.present[i // 8] >> i % 8 & 1:
                if values[i] not in (("text", ""),) and member == "texts":
                    errors.add("InvalidEventError")
                values[i] = None
    return values


def _columns(
    messages: Any, known: set[str], more: list[int], errors: set[str], seen: Seen | None = None
) -> tuple[dict[str, list[Sent]], int]:
    """The columns by name and the number of rows; `more`: lengths of what else must agree."""
    given: dict[str, list[Sent]] = {}
    lengths = set(more)
    for message in messages:
        if seen is not None:
            (seen.declared if message.name in known else seen.strangers).add(message.name)
        if message.name not in known:
            if seen is None:
                errors.add("UnknownNameError")
            values = column(message, set())  # only how long it is matters
            lengths |= set() if values is None else {len(values)}
            continue
        values = column(message, errors)
        if values is not None:
            lengths.add(len(values))
            if message.name in given:
                errors.add("InvalidEventError")
            given[message.name] = values
    if len(lengths) > 1:
        errors.add("InvalidEventError")
    return given, max(lengths, default=0)


def ingest(message: Any) -> Rows | Wrong:
    errors: set[str] = set()
    rows = Rows()
    event = EVENTS.get(message.event_type)
    if message.ack not in (0, 1, 2) or len(message.producer.encode()) > 255:
        errors.add("InvalidEventError")
    if message.rows and message.HasField("columns"):
        errors.add("InvalidEventError")
    if event is None:
        return Wrong({*errors, "UnknownNameError"})
    seen = Seen()
    for row in message.rows:
        event_row(event, row, rows, errors, seen)
    if not message.rows:
        times = list(message.columns.times_ms)
        known = names_of(event)
        given, n = _columns(message.columns.columns, known, [len(times)] if times else [], errors, seen)
        if times:
            seen.declared.add(event.time.field)
        if times and event.time.field in given:
            errors.add("InvalidEventError")
        if not errors:
            for i in range(n):
                at = {name: values[i] for name, values in given.items()}
                _resolve(event, at, rows, errors, times[i] if times else None, in_columns=True)
        if not n:  # of no events, there is none that could lack a field
            seen.strangers &= {""}
    seen.judge(names_of(event), errors)
    return Wrong(errors) if errors else rows


def _service(message: Any, errors: set[str]) -> int:
    names = [service.name for service in PLAN.services]
    if message.service not in names:
        errors.add("UnknownNameError")
        return -1
    service = names.index(message.service)
    if message.HasField("fingerprint") and message.fingerprint != int(PLAN.services[service].fingerprint, 16):
        errors.add("SchemaMismatchError")
    return service


def observe(message: Any) -> tuple[Rows, int] | Wrong:
    errors: set[str] = set()
    rows = Rows()
    event = EVENTS.get(message.event_type)
    if message.ack not in (0, 1, 2) or len(message.producer.encode()) > 255:
        errors.add("InvalidEventError")
    service = _service(message, errors) if message.service else -1
    if event is None:
        return Wrong({*errors, "UnknownNameError"})
    seen = Seen()
    event_row(event, message.event, rows, errors, seen)
    seen.judge(names_of(event), errors)
    return Wrong(errors) if errors else (rows, service)


def read(message: Any) -> tuple[list[dict[str, bytes]], int, list[int] | None] | Wrong:
    """Key sets, service, times."""
    errors: set[str] = set()
    service = _service(message, errors)
    key_sets: list[dict[str, bytes]] = []
    each = list(message.as_of_each_ms)
    sent: list[dict[str, Sent]] = []
    if message.key_sets:
        if message.HasField("key_columns"):
            errors.add("InvalidEventError")
        for key_set in message.key_sets:
            sent.append(_named([(p.name, _sent(p)) for p in key_set.parts], set(PARTS), errors))
        if each and len(each) != len(sent):
            errors.add("InvalidEventError")
    else:
        given, n = _columns(message.key_columns.parts, set(PARTS), [len(each)] if each else [], errors)
        if not errors:
            sent = [{name: values[i] for name, values in given.items()} for i in range(n)]
    for by_name in sent:
        key_set = {}
        for name, value in by_name.items():
            if value is not None:
                key, why = kept(_key(name), *value)
                if why:
                    errors.add("InvalidEventError")
                if key is not None:
                    key_set[name] = key
        key_sets.append(key_set)
    one = [message.as_of_ms] if message.HasField("as_of_ms") else []
    if (one and each) or any(not FIRST_MS <= ms <= LAST_MS for ms in one + each):
        errors.add("InvalidEventError")
    as_of = each or one * len(sent) if each or one else None
    return Wrong(errors) if errors else (key_sets, service, as_of)


# ---- the same message, written otherwise ----

F = FieldDescriptor
_VARINT = {F.TYPE_BOOL, F.TYPE_UINT32, F.TYPE_UINT64, F.TYPE_SINT64, F.TYPE_INT64, F.TYPE_ENUM}


def varint(value: int, pad: int = 0) -> bytes:
    """`pad` more bytes than it needs, ten at most."""
    out = bytearray()
    value &= 2**64 - 1
    while True:
        out.append(value & 0x7F)
        value >>= 7
        if not value:
            break
    for _ in range(min(pad, 10 - len(out))):
        out.append(0)
    return bytes([*(byte | 0x80 for byte in out[:-1]), out[-1]])


def _scalar(field: FieldDescriptor, value: Any, rng: random.Random) -> tuple[int, bytes]:
    """(wire type, bytes)"""
    if field.type == F.TYPE_SINT64:
        return 0, varint((value << 1) ^ (value >> 63), rng.choice([0, 0, 0, 1, 9]))
    if field.type in _VARINT:
        return 0, varint(int(value), rng.choice([0, 0, 0, 1, 9]))
    if field.type == F.TYPE_DOUBLE:
        return 1, struct.pack("<d", value)
    if field.type == F.TYPE_FIXED64:
        return 1, struct.pack("<Q", value)
    if field.type == F.TYPE_SFIXED64:
        return 1, struct.pack("<q", value)
    data = value.encode() if field.type == F.TYPE_STRING else value
    return 2, varint(len(data), rng.choice([0, 0, 1])) + data


def _tagged(number: int, wire: int, data: bytes, rng: random.Random) -> bytes:
    tag = number << 3 | wire
    return varint(tag, rng.choice([0, 0, 0, 5 - len(varint(tag))])) + data


def _framed(number: int, data: bytes, rng: random.Random) -> bytes:
    return _tagged(number, 2, varint(len(data), rng.choice([0, 0, 2])) + data, rng)


def unknown(rng: random.Random, depth: int = 0) -> bytes:
    """A field that no message here has, of any wire type."""
    number = rng.choice([90, 2047, 2**29 - 1])
    wire = rng.choice([0, 1, 2, 5, 3] if depth < 3 else [0, 1, 2, 5])
    if wire == 3:
        inner = b"".join(unknown(rng, depth + 1) for _ in range(rng.randrange(3)))
        return varint(number << 3 | 3) + inner + varint(number << 3 | 4)
    data = {0: varint(rng.getrandbits(64)), 1: rng.randbytes(8), 5: rng.randbytes(4), 2: b"\x03\xff\x00\x80"}[
        wire
    ]
    return varint(number << 3 | wire) + data


def _cut(items: list[Any], rng: random.Random) -> list[list[Any]]:
    if len(items) < 2 or rng.random() < 0.5:
        return [items]
    at = rng.randrange(1, len(items))
    return [items[:at], items[at:]]


def _superseded(field: FieldDescriptor, rng: random.Random) -> bytes:
    """An earlier occurrence of a scalar, which the later one overrules."""
    values = {F.TYPE_STRING: "früher", F.TYPE_BYTES: b"\x01\x02", F.TYPE_DOUBLE: 1.5}
    wire, data = _scalar(field, values.get(field.type, 1), rng)
    return _tagged(field.number, wire, data, rng)


def _occurrences(desc: FieldDescriptor, value: Any, rng: random.Random) -> list[bytes]:
    """One field, in as many pieces as it may be written in; their order matters."""
    group: list[bytes] = []
    if desc.is_repeated and desc.type == F.TYPE_MESSAGE:
        group = [_framed(desc.number, scrambled(item, rng), rng) for item in value]
    elif desc.is_repeated:
        for piece in _cut(list(value), rng):
            encoded = [_scalar(desc, item, rng) for item in piece]
            if rng.random() < 0.3:
                group += [_tagged(desc.number, wire, data, rng) for wire, data in encoded]
            else:
                group.append(_framed(desc.number, b"".join(data for _, data in encoded), rng))
    elif desc.type == F.TYPE_MESSAGE:
        if desc.containing_oneof is not None and rng.random() < 0.2:
            others = [f for f in desc.containing_oneof.fields if f is not desc]
            group.append(_framed(rng.choice(others).number, b"\x1a\x01\x00", rng))
        group += [_framed(desc.number, piece, rng) for piece in _split_message(value, rng)]
    else:
        oneof = desc.containing_oneof
        if rng.random() < 0.2:
            group.append(_superseded(rng.choice(oneof.fields) if oneof else desc, rng))
        wire, data = _scalar(desc, value, rng)
        group.append(_tagged(desc.number, wire, data, rng))
    return group


def scrambled(message: Any, rng: random.Random) -> bytes:
    """The message in one of the ways in which it may be written: fields in any order, sub-messages and packed
    numbers in pieces, numbers unpacked, varints too long, scalars overruled, unknown fields between."""
    groups = [_occurrences(desc, value, rng) for desc, value in message.ListFields()]
    while rng.random() < 0.2:
        groups.append([unknown(rng)])
    # Any order between fields, the order within each kept.
    out = []
    while groups:
        group = rng.choice(groups)
        out.append(group.pop(0))
        if not group:
            groups.remove(group)
    return b"".join(out)


def _split_message(message: Any, rng: random.Random) -> list[bytes]:
    """One sub-message as pieces that merge into it."""
    if rng.random() < 0.7:
        return [scrambled(message, rng)]
    first, second = type(message)(), type(message)()
    for desc, value in message.ListFields():
        if desc.is_repeated:
            at = rng.randrange(len(value) + 1)
            getattr(first, desc.name).extend(value[:at])
            getattr(second, desc.name).extend(value[at:])
        else:
            target = rng.choice([first, second])
            if desc.type == F.TYPE_MESSAGE:
                getattr(target, desc.name).CopyFrom(value)
            else:
                setattr(target, desc.name, value)
    return [scrambled(first, rng), scrambled(second, rng)]


def iso_texts(moment: datetime, rng: random.Random) -> str:
    """A moment in one of the ways in which people write it."""
    text = moment.strftime("%m-%d") + rng.choice("T ") + moment.strftime("%H:%M")
    if rng.random() < 0.8:
        text += moment.strftime(":%S")
        if rng.random() < 0.6:
            text += rng.choice(".,") + "".join(
                rng.choices("0123456789", k=rng.choice([1, 2, 3, 4, 9, 40, 50]))
            )
    return (
        f"{moment.year:04d}-"
        + text
        + rng.choice(["", "", "Z", "z", "+02:00", "-0530", "+14", "-23:59", "+24:00"])
    )
