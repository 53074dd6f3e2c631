"""The bulk of the wire by hand: packed columns from numpy buffers, vectors as views of a reply's bytes.

The official classes make the small messages. For packed columns they would take every number through a Python
object: 8 ms for 65,536 numbers where copying the buffer takes 50 µs. A packed field of fixed width is a tag,
a length and the numbers little-endian, so an encoded column is a join and a decoded one is `np.frombuffer`.

    field     = tag value                   tag = varint (number << 3 | type)
    value     = varint                      type 0
              | 8 bytes                     type 1
              | length=varint bytes         type 2: texts, messages, packed numbers
              | 4 bytes                     type 5

Whatever bytes a server sends become a message or an UnavailableError that says they are none: no length is
believed before it is checked against what is there. A field that comes twice counts the last time, and
unknown fields are skipped, as in any protobuf reader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.client.replies import Ack, HeavyList, HeavyValue, Observed, ServiceSchema, Status, Vectors
from featurestore.columns import TextColumn
from featurestore.errors import SchemaMismatchError, UnavailableError
from featurestore.outcome import Outcome
from featurestore.v1 import feature_store_service_pb2 as service_pb

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
OBSERVED_OUTCOME, OBSERVED_ACK, OBSERVED_POSITION, OBSERVED_VECTORS = 1, 2, 3, 4
VECTORS_FINGERPRINT, VECTORS_ROWS, VECTORS_WIDTH, VECTORS_VALUES, VECTORS_STATUSES = 1, 2, 3, 4, 5
VECTORS_BOUNDS, VECTORS_LOWER, VECTORS_UPPER, VECTORS_COVERAGE = 6, 7, 8, 10
BOUNDS_EXACT = 1
OUTCOME_ACCEPTED = 3

MAX_ROWS = (1 << 32) - 1  # a uint32 in the proto
KNOWN_STATUSES = bytes(Status)
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
    raise _unreadable(f"a number is cut short at byte {at}")


def _unreadable(what: str) -> UnavailableError:
    return UnavailableError(
        f"the server's reply cannot be read ({what}); is it a featurestore server of this version?"
    )


def fields_of(data: bytes, begin: int, end: int) -> tuple[dict[int, int], dict[int, Span]]:
    """The fields of a message by their number: values of type 0, and where the bytes of the others are."""
    numbers: dict[int, int] = {}
    spans: dict[int, Span] = {}
    at = begin
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint_at(data, at - 1, end)
        kind = tag & 7
        if kind == VARINT:
            numbers[tag >> 3], at = _varint_at(data, at, end)
            continue
        if kind == LENGTH:
            size, at = _varint_at(data, at, end)
        elif kind == FIXED64:
            size = 8
        elif kind == FIXED32:
            size = 4
        else:
            raise _unreadable(f"unknown field type {kind} at byte {at}")
        if size > end - at:
            raise _unreadable(f"a field of {size} bytes at byte {at} of {end}")
        spans[tag >> 3] = (at, at + size)
        at += size
    return numbers, spans


def _fixed64(data: bytes, span: Span | None) -> int:
    if span is None:
        return 0
    if span[1] - span[0] != 8:
        raise _unreadable("a fingerprint is not 8 bytes long")
    return int(struct.unpack_from("<Q", data, span[0])[0])


def _unzigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def decode_vectors(data: bytes, span: Span, service: ServiceSchema, now_ms: int | None = None) -> Vectors:
    """A Vectors message of this service; SchemaMismatchError where it comes from another version of it."""
    numbers, spans = fields_of(data, *span)
    n, width = numbers.get(VECTORS_ROWS, 0), numbers.get(VECTORS_WIDTH, 0)
    if _fixed64(data, spans.get(VECTORS_FINGERPRINT)) != service.fingerprint:
        raise SchemaMismatchError(
            f"service {service.name!r} is being changed (the vector has another fingerprint than the schema)"
        )
    if n > MAX_ROWS:  # where nothing is in a row, no bytes say so
        raise _unreadable(f"vectors of {n} rows")
    if width != len(service.names):
        raise _unreadable(f"vectors of {width} values for a service of {len(service.names)} features")

    def numbers_of(which: int) -> NDArray[np.float64]:
        return _array(data, spans.get(which), DOUBLES, n, width)

    values = numbers_of(VECTORS_VALUES)
    if VECTORS_STATUSES in spans:
        statuses: NDArray[np.uint8] = _array(data, spans[VECTORS_STATUSES], BYTES, n, width)
        begin, end = spans[VECTORS_STATUSES]
        if data[begin:end].translate(None, KNOWN_STATUSES):
            raise _unreadable("a status that this client does not know")
    else:
        statuses = np.full((n, width), Status.PRESENT, np.uint8)
    lower = upper = None
    if numbers.get(VECTORS_BOUNDS, 0) == BOUNDS_EXACT:
        lower = upper = values
    elif VECTORS_LOWER in spans:
        lower, upper = numbers_of(VECTORS_LOWER), numbers_of(VECTORS_UPPER)
    if VECTORS_COVERAGE in spans:
        coverage: NDArray[np.float32] = _array(data, spans[VECTORS_COVERAGE], FLOATS, n, width)
    else:
        coverage = np.ones((n, width), np.float32)
    return Vectors(service.names, values, statuses, coverage, lower, upper, now_ms)


def _array(data: bytes, span: Span | None, dtype: np.dtype[Any], n: int, width: int) -> NDArray[Any]:
    begin, end = span or (0, 0)
    size = n * width * dtype.itemsize
    if end - begin != size:
        raise _unreadable(f"{end - begin} bytes for {n} × {width} values, {size} are needed")
    return np.frombuffer(data, dtype, n * width, begin).reshape(n, width)


def decode_read(data: bytes, service: ServiceSchema) -> Vectors:
    """A GetFeaturesResponse."""
    numbers, spans = fields_of(data, 0, len(data))
    now = numbers.get(REPLY_NOW)
    return decode_vectors(
        data, spans.get(REPLY_VECTORS, (0, 0)), service, None if now is None else _unzigzag(now)
    )


def decode_heaviest(data: bytes) -> list[HeavyList]:
    reply = service_pb.GetHeaviestResponse.FromString(data)
    lists = []
    for each in reply.lists:
        values = []
        for one in each.values:
            kind = one.WhichOneof("kind")
            value = None if kind is None else getattr(one, kind)
            values.append(HeavyValue(value, one.count, one.lower, one.upper, one.hash))
        lists.append(
            HeavyList(
                each.name,
                Status(each.status),
                each.coverage,
                tuple(values),
                each.rest_upper,
                each.total,
                each.total_lower,
                each.total_upper,
            )
        )
    return lists


def decode_observed(data: bytes, service: ServiceSchema | None, attempts: int) -> Observed:
    """An ObserveResponse; `service` is what was asked for with it."""
    numbers, spans = fields_of(data, 0, len(data))
    vector = None
    if service is not None and OBSERVED_VECTORS in spans:
        vectors = decode_vectors(data, spans[OBSERVED_VECTORS], service)
        if len(vectors) != 1:
            raise _unreadable(f"{len(vectors)} vectors for one event")
        vector = vectors[0]
    outcome, ack = outcome_of(numbers.get(OBSERVED_OUTCOME, 0)), ack_of(numbers.get(OBSERVED_ACK, 0))
    return Observed(outcome, numbers.get(OBSERVED_POSITION, 0), ack, vector, attempts)


def outcome_of(number: int) -> Outcome:
    """The wire gives 3 to what is 0 everywhere else, because 0 is never sent."""
    try:
        return Outcome.ACCEPTED if number == OUTCOME_ACCEPTED else Outcome(number or -1)
    except ValueError:
        raise _unreadable(f"outcome {number}") from None


def ack_of(number: int) -> Ack | None:
    try:
        return Ack(number) if number else None
    except ValueError:
        raise _unreadable(f"acknowledgement {number}") from None
