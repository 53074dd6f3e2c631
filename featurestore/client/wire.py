"""The bulk of the wire by hand: packed columns from numpy buffers, vectors as views of a reply's bytes.

The official classes make the small messages. For packed columns they would take every number through a Python
object: 8 ms for 65,536 numbers where copying the buffer takes 50 µs. A packed field of fixed width is a tag,
a length and the numbers little-endian, so an encoded column is a join and a decoded one is `np.frombuffer`.

    field     = tag value                   tag = varint (number << 3 | type)
    value     = varint                      type 0
              | 8 bytes                     type 1
              | length=varint bytes         type 2: texts, messages, packed numbers
              | 4 bytes                     type 5

Whatever bytes a server sends become what was asked for or an UnavailableError that says why they are not:
as many vectors as key sets, bounds where they were asked for, counts that add up. No length is believed
before it is checked against what is there. Unknown fields are skipped, as in any protobuf reader; a known one
of another type, or one that comes twice, is no message of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from featurestore.client.replies import (
    STATUS_NAMES,
    Ack,
    HeavyList,
    HeavyValue,
    Observed,
    Producer,
    ServiceSchema,
    Status,
    Vectors,
)
from featurestore.columns import TextColumn
from featurestore.errors import SchemaMismatchError, UnavailableError
from featurestore.outcome import Outcome
from featurestore.refusals import Why
from featurestore.v1 import feature_store_service_pb2 as service_pb
from featurestore.v1 import registry_service_pb2 as registry_pb

M = TypeVar("M", bound=Message)

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

# field numbers of proto/featurestore/v1
INGEST_COLUMNS = 7
STREAMED_BATCH = 1
COLUMNS_TIMES, COLUMNS_COLUMN = 1, 2
KEY_COLUMNS_PART = 1
COLUMN_NAME, COLUMN_TEXTS, COLUMN_NUMBERS = 1, 2, 3
TEXTS_DATA, TEXTS_LENGTHS, TEXTS_PRESENT = 1, 2, 3
NUMBERS_VALUES, NUMBERS_PRESENT = 1, 2
READ_KEY_COLUMNS, READ_AS_OF_EACH = 3, 5
REPLY_VECTORS, REPLY_NOW = 1, 2
OBSERVED_OUTCOME, OBSERVED_ACK, OBSERVED_POSITION, OBSERVED_VECTORS, OBSERVED_PARTLY_LATE = 1, 2, 3, 4, 5
OBSERVED_SHED = 6  # repeated
OBSERVED_FIELD = 7
VECTORS_FINGERPRINT, VECTORS_ROWS, VECTORS_WIDTH, VECTORS_VALUES, VECTORS_STATUSES = 1, 2, 3, 4, 5
VECTORS_BOUNDS, VECTORS_LOWER, VECTORS_UPPER, VECTORS_CONFIDENCE, VECTORS_COVERAGE = 6, 7, 8, 9, 10
BOUNDS_UNSPECIFIED, BOUNDS_EXACT, BOUNDS_CERTAIN, BOUNDS_CONFIDENCE = range(4)
OUTCOME_ACCEPTED = 3

# how each known field of a reply is written
REPLY_TYPES = {REPLY_VECTORS: LENGTH, REPLY_NOW: VARINT}
OBSERVED_TYPES = {
    OBSERVED_OUTCOME: VARINT,
    OBSERVED_ACK: VARINT,
    OBSERVED_POSITION: VARINT,
    OBSERVED_VECTORS: LENGTH,
    OBSERVED_PARTLY_LATE: VARINT,
    OBSERVED_FIELD: LENGTH,
}
VECTORS_TYPES = {
    VECTORS_FINGERPRINT: FIXED64,
    VECTORS_ROWS: VARINT,
    VECTORS_WIDTH: VARINT,
    VECTORS_VALUES: LENGTH,
    VECTORS_STATUSES: LENGTH,
    VECTORS_BOUNDS: VARINT,
    VECTORS_LOWER: LENGTH,
    VECTORS_UPPER: LENGTH,
    VECTORS_CONFIDENCE: FIXED64,
    VECTORS_COVERAGE: LENGTH,
}

FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
MAX_FIELD_NUMBER = (1 << 29) - 1  # of protobuf
MAX_REFUSALS = 100  # listed in one answer
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
KNOWN_STATUSES = bytes(Status)
OF_TWO_EVENTS = {"interval_mean", "interval_cv"}  # PRESENT with one event, which has no interval yet
DOUBLES, FLOATS, BYTES = np.dtype("<f8"), np.dtype("<f4"), np.dtype("u1")

# ---- encoding


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def length_field(number: int, *pieces: bytes) -> bytes:
    """A field of type 2 holding the pieces one after the other."""
    return b"".join((varint(number << 3 | LENGTH), varint(sum(map(len, pieces))), *pieces))


def packed_varints(numbers: NDArray[np.uint32]) -> bytes:
    """Each as a varint. Lengths of texts need one byte, mostly, and two at most (4096 is the longest)."""
    if not numbers.size or int(numbers.max()) < 1 << 7:
        return numbers.astype(np.uint8).tobytes()
    if int(numbers.max()) >= 1 << 14:
        return b"".join(varint(number) for number in numbers.tolist())
    pairs = np.empty((numbers.size, 2), np.uint8)
    two = numbers >= 1 << 7
    pairs[:, 0] = numbers & 0x7F | np.where(two, 0x80, 0)
    pairs[:, 1] = numbers >> 7
    used = np.ones(pairs.shape, np.bool_)
    used[:, 1] = two
    return pairs[used].tobytes()


def bitmap(present: NDArray[np.bool_]) -> bytes:
    return np.packbits(present, bitorder="little").tobytes()


def text_column(name: str, column: TextColumn) -> bytes:
    """A NamedColumn of texts."""
    pieces = [
        length_field(TEXTS_DATA, column.data.tobytes()),
        length_field(TEXTS_LENGTHS, packed_varints(np.diff(column.offsets))),
    ]
    if column.present is not None and not column.present.all():
        pieces.append(length_field(TEXTS_PRESENT, bitmap(column.present != 0)))
    return length_field(COLUMN_NAME, name.encode()) + length_field(COLUMN_TEXTS, *pieces)


def number_column(name: str, numbers: NDArray[np.float64]) -> bytes:
    """A NamedColumn of numbers, NaN = absent."""
    pieces = [length_field(NUMBERS_VALUES, numbers.astype("<f8", copy=False).tobytes())]
    absent = np.isnan(numbers)
    if absent.any():
        pieces.append(length_field(NUMBERS_PRESENT, bitmap(~absent)))
    return length_field(COLUMN_NAME, name.encode()) + length_field(COLUMN_NUMBERS, *pieces)


def event_columns(
    times: NDArray[np.int64], named: Sequence[tuple[str, NDArray[np.float64] | TextColumn]]
) -> bytes:
    """An IngestRequest with nothing but its columns. A column that is absent throughout is left out."""
    pieces = [length_field(COLUMNS_TIMES, times.astype("<i8", copy=False).tobytes())]
    for name, column in named:
        if isinstance(column, TextColumn):
            if column.present is None or column.present.any():
                pieces.append(length_field(COLUMNS_COLUMN, text_column(name, column)))
        elif not np.isnan(column).all():
            pieces.append(length_field(COLUMNS_COLUMN, number_column(name, column)))
    return length_field(INGEST_COLUMNS, *pieces)


def key_columns(named: Sequence[tuple[str, TextColumn]]) -> bytes:
    """A GetFeaturesRequest with nothing but its key columns."""
    return length_field(
        READ_KEY_COLUMNS, *(length_field(KEY_COLUMNS_PART, text_column(name, one)) for name, one in named)
    )


def as_of_each(times: NDArray[np.int64]) -> bytes:
    """A GetFeaturesRequest with nothing but a time per key set."""
    return length_field(READ_AS_OF_EACH, times.astype("<i8", copy=False).tobytes())


# ---- decoding

Span = tuple[int, int]


def _varint_at(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise unreadable(f"a number is cut short at byte {at}")


def unreadable(what: str) -> UnavailableError:
    """The error of every reply that is not an answer to what was asked; `what` says why it is not.

    It says nothing of trying again: that depends on what was asked.
    """
    return UnavailableError(
        f"the server's reply cannot be read ({what}); is it a featurestore server of this version?"
    )


def message_of(kind: type[M], data: bytes | None) -> M:
    """A whole message, by the official runtime. None is what gRPC has of a call that ends well without it."""
    if data is None:
        raise unreadable("the call ended without one")
    made: M = kind()
    try:
        made.ParseFromString(data)
    except DecodeError:  # its words are of the runtime, and there are two of them
        raise unreadable(f"{len(data)} bytes are no {kind.DESCRIPTOR.name}") from None
    return made


def fields_of(
    data: bytes,
    begin: int,
    end: int,
    types: Mapping[int, int],
    repeated: Mapping[int, list[Span]] | None = None,
) -> tuple[dict[int, int], dict[int, Span]]:
    """The fields of a message that `types` has, by their number: values of type 0, and where the bytes of the
    others are. Where the bytes of those are that `repeated` has is added to it.
    """
    numbers: dict[int, int] = {}
    spans: dict[int, Span] = {}
    at = begin
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint_at(data, at - 1, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= MAX_FIELD_NUMBER:
            raise unreadable(f"no field has number {number}")
        wanted = types.get(number)
        if wanted is not None and (wanted != kind or number in numbers or number in spans):
            raise unreadable(f"field {number} {'of type ' + str(kind) if wanted != kind else 'comes twice'}")
        if kind == VARINT:
            value, at = _varint_at(data, at, end)
            if wanted is not None:
                numbers[number] = value
            continue
        if kind == LENGTH:
            size, at = _varint_at(data, at, end)
        elif kind in FIXED_BYTES:
            size = FIXED_BYTES[kind]
        else:
            raise unreadable(f"unknown field type {kind} at byte {at}")
        if size > end - at:
            raise unreadable(f"a field of {size} bytes at byte {at} of {end}")
        if wanted is not None:
            spans[number] = (at, at + size)
        elif repeated and kind == LENGTH:
            repeated.get(number, []).append((at, at + size))
        at += size
    return numbers, spans


def _unzigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def decode_vectors(
    data: bytes, span: Span, service: ServiceSchema, *, rows: int, bounds: bool, now_ms: int | None = None
) -> Vectors:
    """A Vectors message with `rows` vectors of this service, and bounds where they were asked for.

    SchemaMismatchError where it comes from another version of the service.
    """
    numbers, spans = fields_of(data, *span, VECTORS_TYPES)
    n, width = numbers.get(VECTORS_ROWS, 0), numbers.get(VECTORS_WIDTH, 0)
    at = spans.get(VECTORS_FINGERPRINT)
    if (0 if at is None else int.from_bytes(data[slice(*at)], "little")) != service.fingerprint:
        raise SchemaMismatchError(
            f"service {service.name!r} is being changed (the vector has another fingerprint than the schema)"
        )
    if n != rows:
        raise unreadable(f"{n} vectors where {rows} were asked for")
    if width != len(service.names):
        raise unreadable(f"vectors of {width} values for a service of {len(service.names)} features")

    def array(which: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        begin, end = spans.get(which, (0, 0))
        size = n * width * dtype.itemsize
        if end - begin != size:
            raise unreadable(f"field {which} has {end - begin} bytes for {n} × {width} values, not {size}")
        return np.frombuffer(data, dtype, n * width, begin).reshape(n, width)

    values: NDArray[np.float64] = array(VECTORS_VALUES, DOUBLES)
    statuses = np.full((n, width), Status.PRESENT, np.uint8)
    if VECTORS_STATUSES in spans:
        statuses = array(VECTORS_STATUSES, BYTES)
        if data[slice(*spans[VECTORS_STATUSES])].translate(None, KNOWN_STATUSES):
            raise unreadable("a status that this client does not know")
    kind = numbers.get(VECTORS_BOUNDS, BOUNDS_UNSPECIFIED)
    if kind > BOUNDS_CONFIDENCE or (bounds and kind == BOUNDS_UNSPECIFIED and n * width):
        raise unreadable(f"bounds of kind {kind}, where bounds were {'' if bounds else 'not '}asked for")
    lower = upper = values
    if kind in (BOUNDS_CERTAIN, BOUNDS_CONFIDENCE):
        lower, upper = array(VECTORS_LOWER, DOUBLES), array(VECTORS_UPPER, DOUBLES)
        crossed = lower > upper
        if crossed.any():
            name = service.names[int(np.argwhere(crossed)[0][1])]
            raise unreadable(f"the lower bound of {name} is above the upper one")
    elif VECTORS_LOWER in spans or VECTORS_UPPER in spans:
        raise unreadable(f"bounds beside the word that there are none to send ({kind})")
    if VECTORS_COVERAGE in spans:
        coverage = array(VECTORS_COVERAGE, FLOATS)
    elif (statuses == Status.WARMING).any():
        raise unreadable("a value that is WARMING, and no word of the share that it covers")
    else:
        coverage = (statuses != Status.UNAVAILABLE).astype(np.float32)
    made = Vectors(service.names, values, statuses, coverage, lower, upper, now_ms, service.pin)
    _check_meaning(made, service)
    return made if bounds else replace(made, lower=None, upper=None)


def _check_meaning(made: Vectors, service: ServiceSchema) -> None:
    """What a status says of its value: else the numbers are not what they seem."""
    is_nan = np.isnan(made.values)
    wrong = is_nan & (made.statuses == Status.PRESENT) | ~is_nan & (made.statuses == Status.UNAVAILABLE)
    for row, column in np.argwhere(wrong).tolist():
        if is_nan[row, column] and service.features[column].aggregate in OF_TWO_EVENTS:
            continue
        what = "no number" if is_nan[row, column] else "a number"
        raise unreadable(f"{made.names[column]} is {STATUS_NAMES[made.statuses[row, column]]} and has {what}")
    if not ((made.coverage >= 0) & (made.coverage <= 1)).all():  # nor NaN
        raise unreadable("a covered share that is not from 0 to 1")


def decode_read(data: bytes | None, service: ServiceSchema, *, rows: int, bounds: bool) -> Vectors:
    """A GetFeaturesResponse to a request for so many rows."""
    if data is None:
        raise unreadable("the call ended without one")
    numbers, spans = fields_of(data, 0, len(data), REPLY_TYPES)
    if REPLY_VECTORS not in spans:
        raise unreadable("no vectors in it")
    now_ms = None
    if REPLY_NOW in numbers:
        now_ms = _unzigzag(numbers[REPLY_NOW])
        if not FIRST_MS <= now_ms <= LAST_MS:
            raise unreadable(f"it was read at {now_ms} ms, outside the years 1 to 9999")
    return decode_vectors(data, spans[REPLY_VECTORS], service, rows=rows, bounds=bounds, now_ms=now_ms)


def decode_producer(data: bytes | None, name: str) -> Producer:
    """A GetProducerResponse, of the producer of this name."""
    reply = message_of(registry_pb.GetProducerResponse, data)
    bits = np.unpackbits(np.frombuffer(reply.seen, np.uint8), bitorder="little")
    below = np.flatnonzero(bits).tolist()
    if not reply.lowest <= reply.sequence + 1 or (below and reply.sequence - below[-1] < reply.lowest):
        raise unreadable(f"of sequences up to {reply.sequence}, from {reply.lowest} on, others were seen")
    return Producer(
        name,
        reply.epoch,
        reply.sequence,
        reply.lowest,
        frozenset(reply.sequence - each for each in below),
        reply.heard_ms if reply.HasField("heard_ms") else None,
    )


def decode_heaviest(data: bytes | None) -> list[HeavyList]:
    """A GetHeaviestResponse."""
    reply = message_of(service_pb.GetHeaviestResponse, data)
    lists = [_heavy_list(each) for each in reply.lists]
    if len({each.name for each in lists}) != len(lists):
        raise unreadable("two lists of one name")
    return lists


def _heavy_list(sent: service_pb.HeaviestList) -> HeavyList:
    if not sent.name:
        raise unreadable("a list without a name")
    try:
        status = Status(sent.status)
    except ValueError:
        raise unreadable(f"{sent.name} has status {sent.status}") from None
    if not 0 <= sent.coverage <= 1:
        raise unreadable(f"{sent.name} covers {sent.coverage} of its window")
    if not sent.total_lower <= sent.total_upper:
        raise unreadable(f"the bounds of {sent.name}'s total are {sent.total_lower} and {sent.total_upper}")
    values = []
    for one in sent.values:
        kind = one.WhichOneof("kind")
        if not one.lower <= one.upper or np.isnan(one.count):
            raise unreadable(f"a value of {sent.name} has {one.count} events, {one.lower} to {one.upper}")
        value = None if kind is None else getattr(one, kind)
        values.append(HeavyValue(value, one.count, one.lower, one.upper, one.hash))
    return HeavyList(
        sent.name,
        status,
        sent.coverage,
        tuple(values),
        sent.rest_upper,
        sent.total,
        sent.total_lower,
        sent.total_upper,
    )


def decode_observed(
    data: bytes | None,
    service: ServiceSchema | None,
    attempts: int,
    *,
    peek: bool,
    bounds: bool,
    why: Callable[[Outcome, str | None], Why] | None = None,
) -> Observed:
    """An ObserveResponse; the rest is what was asked for. `why` is asked of an event that was refused, for
    the field that the server names."""
    if data is None:
        raise unreadable("the call ended without one")
    keys: list[Span] = []
    numbers, spans = fields_of(data, 0, len(data), OBSERVED_TYPES, {OBSERVED_SHED: keys})
    outcome = outcome_of(numbers.get(OBSERVED_OUTCOME, 0))
    acknowledged = ack_of(numbers.get(OBSERVED_ACK, 0))
    if not peek:
        check_ack(acknowledged, is_needed=outcome is Outcome.ACCEPTED)
    position = numbers.get(OBSERVED_POSITION, 0)
    if outcome is Outcome.ACCEPTED and not peek and not position:
        raise unreadable("no position of an event that it says was applied")
    vector = None
    if service is not None:
        if OBSERVED_VECTORS not in spans:
            raise unreadable(f"no vector of {service.name!r} in it")
        vector = decode_vectors(data, spans[OBSERVED_VECTORS], service, rows=1, bounds=bounds)[0]
    partly_late = bool(numbers.get(OBSERVED_PARTLY_LATE, 0))
    if partly_late and outcome is not Outcome.ACCEPTED:
        raise unreadable(f"it calls an event partly late that became {outcome.name}")
    if keys and outcome is not Outcome.ACCEPTED:
        raise unreadable(f"it shed keys of an event that became {outcome.name}")
    try:
        shed = tuple(data[begin:end].decode() for begin, end in keys)
    except UnicodeDecodeError:
        raise unreadable("the name of a key is not UTF-8") from None
    told = None
    if outcome.refused and why is not None:
        begin, end = spans.get(OBSERVED_FIELD, (0, 0))
        told = why(outcome, data[begin:end].decode(errors="replace") or None)
    return Observed(outcome, position, acknowledged, vector, attempts, partly_late, shed, told)


def decode_ingested(
    message: bytes,
    *,
    sequence: int | None,
    n_events: int,
    position: int,
    max_refusals: int = MAX_REFUSALS,
) -> service_pb.IngestResponse:
    """The answer on a stream to a batch of so many events under this number (None: none is waited for), after
    one at `position`. It lists `max_refusals`, or as many as a server that cannot be asked.
    """
    streamed = message_of(service_pb.IngestStreamResponse, message)
    reply = streamed.batch
    if sequence is None or not streamed.HasField("batch") or reply.sequence != sequence:
        raise unreadable(f"an answer to batch {reply.sequence} where {sequence or 'none'} was next")
    listed = [one.index for one in reply.refusals]
    counted = reply.accepted + reply.late + reply.duplicate + reply.refused
    if counted != (0 if reply.duplicate_batch else n_events):
        again = " that it had before" if reply.duplicate_batch else ""
        raise unreadable(f"it counts {counted} of the {n_events} events of batch {sequence}{again}")
    if reply.partly_late > reply.accepted:
        raise unreadable(
            f"it counts {reply.partly_late} of the {reply.accepted} accepted events of batch {sequence} as "
            "partly late"
        )
    if reply.shed > reply.accepted:
        raise unreadable(
            f"it counts {reply.shed} of the {reply.accepted} accepted events of batch {sequence} as shed"
        )
    if len(listed) not in (min(reply.refused, max_refusals), min(reply.refused, MAX_REFUSALS)):
        raise unreadable(f"it lists {len(listed)} of the {reply.refused} events refused of batch {sequence}")
    if any(a >= b for a, b in pairwise([*listed, n_events])):
        raise unreadable(f"it refuses events that are not in batch {sequence}, or not in their order")
    for one in reply.refusals:
        if not outcome_of(one.reason).refused:
            raise unreadable(f"it refuses an event of batch {sequence} with outcome {one.reason}")
    if reply.position < position:
        raise unreadable(
            f"batch {sequence} is at position {reply.position} of the journal, behind {position} that was "
            "answered before: has the store lost its end, or become another?"
        )
    check_ack(ack_of(reply.ack), is_needed=reply.accepted > 0)
    return reply


def check_ack(given: Ack | None, *, is_needed: bool) -> None:
    """It is said what survives what was written; less than was asked for, where that was not had in time."""
    if given is None and is_needed:
        raise unreadable("it does not say what was written survives")


def outcome_of(number: int) -> Outcome:
    """The wire gives 3 to what is 0 everywhere else, because 0 is never sent."""
    try:
        return Outcome.ACCEPTED if number == OUTCOME_ACCEPTED else Outcome(number or -1)
    except ValueError:
        raise unreadable(f"outcome {number}") from None


def ack_of(number: int) -> Ack | None:
    try:
        return Ack(number) if number else None
    except ValueError:
        raise unreadable(f"acknowledgement {number}") from None
