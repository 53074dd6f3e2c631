"""Bodies of journal frames: a batch in columns, a schema's JSON, a Forget, a change of a producer, a
clock. FORMAT.md gives them byte by byte.

A batch is stored as it is used: the arrays of a `Batch`, each 8-byte aligned, so that replay decodes a body
by setting pointers into it.

    ┌ head ────────────┬ producer ┬ outcomes ┬ times  ┬ column 0 ──────────────┬ column 1 ...
    │ epoch, sequence, │ bytes    │ u8[n]    │ i64[n] │ kind, then f64[n]      │
    │ fingerprint, n.. │          │          │        │ or offsets, flags, text│
    └──────────────────┴──────────┴──────────┴────────┴────────────────────────┴ each padded to 8 with zeros

In a SHED body, u64[n] stands behind the outcomes: which keys of each event found no room.

Of a refused event there is the outcome only: its time is 0, its numbers are absent and its texts empty.

That is why the flags of present texts are bytes and not bits: they are used in place, and a column without an
absent text stores none at all.

Guarantee: `decode_batch` accepts exactly what `encode_batch` can write, or could while it kept refused events
as they came. Every length is checked against what
is left before it is used, offsets ascend, codes are known and padding is zero, so any other bytes get a
status, never a read outside the body. It does not judge what the events mean: whether a time is in range or a
text too long was decided before the batch was journaled, and the frame's checksum vouches for it since.
"""
import struct
import sys
from typing import NamedTuple

import numpy as np

from libc.math cimport NAN
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from featurestore.core.batch cimport (
    COLUMN_NUMBER, COLUMN_TEXT, MAX_BATCH_EVENTS, MAX_PRODUCER_BYTES, OUTCOME_ACCEPTED, OUTCOME_DUPLICATE,
    REFUSED_MEMORY, REFUSED_NO_TIME,
)
from featurestore.core.change cimport CHANGE_DROP, CHANGE_RESET, LAST_NUMBER

from featurestore.core.structs import same_structs
from featurestore.errors import CorruptRecordError, InvalidEventError, LimitError
from featurestore.plan import CLOCKS

same_structs(__name__, frame_structs())

if sys.byteorder != "little":
    raise ImportError("featurestore stores little-endian numbers in place; this machine is big-endian")

cdef enum:
    COLUMN_HEAD_BYTES = 8

EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999      # the years 1 to 9999

PROBLEMS = {
    BODY_SHORT: "ends before what its lengths announce",
    BODY_LONG: "is longer than what its lengths announce",
    BODY_MISALIGNED: "is not 8-byte aligned",
    BODY_EVENTS: "has no events, or more than a batch may hold",
    BODY_OUTCOME: "has an unknown outcome",
    BODY_KIND: "has an unknown column kind",
    BODY_OFFSETS: "has text offsets that do not ascend from 0 to the size of the text",
    BODY_PRESENT: "has a presence flag that is neither 0 nor 1",
    BODY_PADDING: "has a non-zero byte in its padding",
    BODY_TOO_LARGE: f"exceeds {MAX_BODY_BYTES} bytes, or its producer {MAX_PRODUCER_BYTES}: send less",
    BODY_CHANGE: "is neither a drop nor a reset of a producer to an epoch and a sequence below 2**63",
    BODY_NAME: "has no producer's name",
    BODY_SHED: "tells of no event what was shed, or of one that was not accepted",
}


cdef object body_error(int status, str where):
    """The exception for a BodyStatus; `where` names the body."""
    if status == BODY_NO_MEMORY:
        return MemoryError()
    if status == BODY_TOO_LARGE:
        return LimitError(f"{where} {PROBLEMS[status]}")
    return CorruptRecordError(f"{where} {PROBLEMS[status]}")


cdef int buffer_reserve(ByteBuffer* buffer, size_t capacity) noexcept nogil:
    """Room for `capacity` bytes in all; 0, or BODY_NO_MEMORY with the buffer as it was."""
    cdef uint8_t* data
    if capacity <= buffer.capacity:
        return BODY_OK
    if capacity < buffer.capacity + buffer.capacity // 2:
        capacity = buffer.capacity + buffer.capacity // 2
    data = <uint8_t*> realloc(buffer.data, capacity)
    if data == NULL:
        return BODY_NO_MEMORY
    buffer.data = data
    buffer.capacity = capacity
    return BODY_OK


cdef void buffer_free(ByteBuffer* buffer) noexcept nogil:
    free(buffer.data)
    memset(buffer, 0, sizeof(ByteBuffer))


cdef inline bint is_refused(const Batch* batch, uint32_t i) noexcept nogil:
    return batch.outcomes[i] >= REFUSED_NO_TIME


cdef bint any_refused(const Batch* batch) noexcept nogil:
    cdef uint32_t i
    cdef bint found = False
    for i in range(batch.n_events):
        found |= is_refused(batch, i)
    return found


cdef size_t text_bytes(const Column* column, const Batch* batch, bint blanks) noexcept nogil:
    """Of the events that were not refused."""
    cdef size_t size = column.offsets[batch.n_events] - column.offsets[0]
    cdef uint32_t i
    if blanks:
        for i in range(batch.n_events):
            if is_refused(batch, i):
                size -= column.offsets[i + 1] - column.offsets[i]
    return size


cdef size_t batch_bytes(const Batch* batch, const BatchHead* head, bint blanks) noexcept nogil:
    """Size of the body. Cannot wrap: 2^16 columns of 2^20 events of 13 bytes and 2^32 bytes of text."""
    cdef size_t n = batch.n_events
    cdef size_t total = BATCH_HEAD_BYTES + align8(head.producer_bytes) + align8(n) + 8 * n
    if head.shed != NULL:
        total += 8 * n
    cdef const Column* column
    cdef uint32_t c
    for c in range(batch.n_columns):
        column = &batch.columns[c]
        total += COLUMN_HEAD_BYTES
        if column.kind == COLUMN_NUMBER:
            total += 8 * n
            continue
        total += align8(4 * (n + 1)) + align8(text_bytes(column, batch, blanks))
        if column.present != NULL:
            total += align8(n)
    return total


cdef inline uint8_t* put(uint8_t* at, const void* data, size_t n) noexcept nogil:
    """Copies n bytes and zeros up to the next multiple of 8; returns the place after them."""
    cdef size_t padded = align8(n)
    if n:
        memcpy(at, data, n)
    memset(at + n, 0, padded - n)
    return at + padded


cdef uint8_t* put_text(uint8_t* at, const Column* column, const Batch* batch, bint blanks,
                       uint32_t size) noexcept nogil:
    """Offsets from 0 whatever they begin with in memory, then flags (if any is needed), then the text, of
    `size` bytes."""
    cdef uint32_t n = batch.n_events, first = column.offsets[0], gone = 0, i, length
    cdef uint32_t* offsets = <uint32_t*> at
    cdef uint8_t* flags
    for i in range(n):
        offsets[i] = column.offsets[i] - first - gone
        if blanks and is_refused(batch, i):
            gone += column.offsets[i + 1] - column.offsets[i]
    offsets[n] = size
    if n % 2 == 0:
        offsets[n + 1] = 0   # n + 1 offsets are an odd number: pad
    at += align8(4 * (<size_t> n + 1))
    if column.present != NULL:
        flags = at
        at = put(at, column.present, n)
        if blanks:
            for i in range(n):
                if is_refused(batch, i):
                    flags[i] = 0
    if gone == 0:
        return put(at, column.bytes + first, size)
    for i in range(n):
        length = offsets[i + 1] - offsets[i]
        if length:
            memcpy(at + offsets[i], column.bytes + column.offsets[i], length)
    memset(at + size, 0, align8(size) - size)
    return at + align8(size)


cdef int encode_batch(const Batch* batch, const BatchHead* head, ByteBuffer* out) noexcept nogil:
    cdef size_t size, n = batch.n_events
    cdef uint8_t* at
    cdef const Column* column
    cdef uint32_t c, i, text_size
    cdef bint blanks
    out.size = 0
    if batch.n_events == 0 or batch.n_events > MAX_BATCH_EVENTS:
        return BODY_EVENTS
    blanks = any_refused(batch)
    size = batch_bytes(batch, head, blanks)
    if size > MAX_BODY_BYTES:
        return BODY_TOO_LARGE
    if buffer_reserve(out, size) != BODY_OK:
        return BODY_NO_MEMORY
    at = out.data
    memset(at, 0, BATCH_HEAD_BYTES)
    memcpy(at, &head.epoch, 8)
    memcpy(at + 8, &head.sequence, 8)
    memcpy(at + 16, &head.fingerprint, 8)
    memcpy(at + 24, &batch.n_events, 4)
    memcpy(at + 28, &head.event_id, 2)
    memcpy(at + 30, &batch.n_columns, 2)
    at[32] = head.producer_bytes
    at = put(at + BATCH_HEAD_BYTES, head.producer, head.producer_bytes)
    at = put(at, batch.outcomes, n)
    if head.shed != NULL:
        at = put(at, head.shed, 8 * n)
    put(at, batch.times, 8 * n)
    if blanks:
        for i in range(n):
            if is_refused(batch, i):
                (<int64_t*> at)[i] = 0
    at += 8 * n
    for c in range(batch.n_columns):
        column = &batch.columns[c]
        memset(at, 0, COLUMN_HEAD_BYTES)
        at[0] = column.kind
        if column.kind == COLUMN_NUMBER:
            at += COLUMN_HEAD_BYTES
            put(at, column.numbers, 8 * n)
            if blanks:
                for i in range(n):
                    if is_refused(batch, i):
                        (<double*> at)[i] = NAN
            at += 8 * n
            continue
        at[1] = column.present != NULL
        text_size = <uint32_t> text_bytes(column, batch, blanks)
        memcpy(at + 4, &text_size, 4)
        at = put_text(at + COLUMN_HEAD_BYTES, column, batch, blanks, text_size)
    out.size = size
    return BODY_OK


cdef inline int take_padded(Cursor* cursor, size_t n, const uint8_t** out) noexcept nogil:
    """The next n bytes, and the zeros after them up to a multiple of 8."""
    cdef size_t padded = align8(n), i
    cdef const uint8_t* at = take(cursor, padded)
    if at == NULL:
        return BODY_SHORT
    for i in range(n, padded):
        if at[i]:
            return BODY_PADDING
    out[0] = at
    return BODY_OK


cdef int decode_text(Cursor* cursor, uint32_t n, uint32_t size, bint has_flags, Column* out) noexcept nogil:
    cdef const uint8_t* at
    cdef int status = take_padded(cursor, 4 * (<size_t> n + 1), &at)
    cdef uint32_t i
    if status:
        return status
    out.offsets = <const uint32_t*> at
    if out.offsets[0] != 0 or out.offsets[n] != size:
        return BODY_OFFSETS
    for i in range(n):
        if out.offsets[i] > out.offsets[i + 1]:
            return BODY_OFFSETS
    if has_flags:
        status = take_padded(cursor, n, &at)
        if status:
            return status
        for i in range(n):
            if at[i] > 1:
                return BODY_PRESENT
        out.present = at
    status = take_padded(cursor, size, &at)
    out.bytes = <const char*> at
    return status


cdef int decode_column(Cursor* cursor, uint32_t n, Column* out) noexcept nogil:
    cdef const uint8_t* head = take(cursor, COLUMN_HEAD_BYTES)
    if head == NULL:
        return BODY_SHORT
    memset(out, 0, sizeof(Column))
    out.kind = head[0]
    if load_u16(head + 2):
        return BODY_PADDING
    if out.kind == COLUMN_TEXT:
        if head[1] > 1:
            return BODY_PRESENT
        return decode_text(cursor, n, load_u32(head + 4), head[1], out)
    if out.kind != COLUMN_NUMBER:
        return BODY_KIND
    if head[1] or load_u32(head + 4):
        return BODY_PADDING
    out.numbers = <const double*> take(cursor, 8 * <size_t> n)
    return BODY_OK if out.numbers != NULL else BODY_SHORT


cdef inline bint could_be_shed(const uint8_t* outcomes, const uint64_t* shed, uint32_t n) noexcept nogil:
    """Of accepted events only, and of one at least."""
    cdef uint64_t found = 0
    cdef uint32_t i
    for i in range(n):
        if shed[i] and outcomes[i] != OUTCOME_ACCEPTED:
            return False
        found |= shed[i]
    return found != 0


cdef int decode_batch(uint8_t* body, size_t size, bint has_shed, BatchFrame* out) noexcept nogil:
    cdef Cursor cursor = Cursor(at=body, left=size)
    cdef const uint8_t* head
    cdef const uint8_t* at
    cdef Column* columns
    cdef uint32_t c, i, n
    cdef int status
    if <uintptr_t> body % 8 or size % 8:
        return BODY_MISALIGNED
    head = take(&cursor, BATCH_HEAD_BYTES)
    if head == NULL:
        return BODY_SHORT
    out.head.epoch = load_u64(head)
    out.head.sequence = load_u64(head + 8)
    out.head.fingerprint = load_u64(head + 16)
    out.batch.n_events = n = load_u32(head + 24)
    out.head.event_id = load_u16(head + 28)
    out.batch.n_columns = load_u16(head + 30)
    out.head.producer_bytes = head[32]
    out.batch.event = 0
    if n == 0 or n > MAX_BATCH_EVENTS:
        return BODY_EVENTS
    if load_u64(head + 32) >> 8:
        return BODY_PADDING
    status = take_padded(&cursor, out.head.producer_bytes, &at)
    if status:
        return status
    out.head.producer = <const char*> at
    status = take_padded(&cursor, n, &at)
    if status:
        return status
    for i in range(n):
        if at[i] > REFUSED_MEMORY or OUTCOME_DUPLICATE < at[i] < REFUSED_NO_TIME:
            return BODY_OUTCOME
    out.batch.outcomes = <uint8_t*> at
    out.head.shed = NULL
    if has_shed:
        out.head.shed = <const uint64_t*> take(&cursor, 8 * <size_t> n)
        if out.head.shed == NULL:
            return BODY_SHORT
        if not could_be_shed(out.batch.outcomes, out.head.shed, n):
            return BODY_SHED
    out.batch.times = <const int64_t*> take(&cursor, 8 * <size_t> n)
    if out.batch.times == NULL:
        return BODY_SHORT
    # Each column takes at least its head, so this also bounds what a wrong n_columns can make us allocate.
    if <size_t> out.batch.n_columns * COLUMN_HEAD_BYTES > cursor.left:
        return BODY_SHORT
    if out.batch.n_columns > out.capacity:
        columns = <Column*> realloc(out.columns, out.batch.n_columns * sizeof(Column))
        if columns == NULL:
            return BODY_NO_MEMORY
        out.columns = columns
        out.capacity = out.batch.n_columns
    for c in range(out.batch.n_columns):
        status = decode_column(&cursor, n, &out.columns[c])
        if status:
            return status
    out.batch.columns = out.columns
    return BODY_LONG if cursor.left else BODY_OK


cdef void batch_frame_free(BatchFrame* frame) noexcept nogil:
    free(frame.columns)
    memset(frame, 0, sizeof(BatchFrame))


cdef void encode_forget(uint16_t entity_id, const uint8_t* fingerprint, uint8_t* out) noexcept nogil:
    memset(out, 0, FORGET_BODY_BYTES)
    memcpy(out, &entity_id, 2)
    memcpy(out + 8, fingerprint, 16)


cdef int decode_forget(
    const uint8_t* body, size_t size, uint16_t* entity_id, uint8_t* fingerprint,
) noexcept nogil:
    cdef int i
    if size != FORGET_BODY_BYTES:
        return BODY_SHORT if size < FORGET_BODY_BYTES else BODY_LONG
    for i in range(2, 8):
        if body[i]:
            return BODY_PADDING
    entity_id[0] = load_u16(body)
    memcpy(fingerprint, body + 8, 16)
    return BODY_OK


cdef size_t encode_producer(const ProducerBody* change, uint8_t* out) noexcept nogil:
    memset(out, 0, PRODUCER_HEAD_BYTES)
    out[0] = change.change
    out[1] = change.name_bytes
    memcpy(out + 8, &change.epoch, 8)
    memcpy(out + 16, &change.sequence, 8)
    memcpy(out + PRODUCER_HEAD_BYTES, change.name, change.name_bytes)
    return PRODUCER_HEAD_BYTES + <size_t> change.name_bytes


cdef int decode_producer(const uint8_t* body, size_t size, ProducerBody* out) noexcept nogil:
    cdef int i
    if size < PRODUCER_HEAD_BYTES or size < PRODUCER_HEAD_BYTES + <size_t> body[1]:
        return BODY_SHORT
    if size > PRODUCER_HEAD_BYTES + <size_t> body[1]:
        return BODY_LONG
    for i in range(2, 8):
        if body[i]:
            return BODY_PADDING
    out.change = body[0]
    out.name_bytes = body[1]
    out.epoch = load_u64(body + 8)
    out.sequence = load_u64(body + 16)
    out.name = body + PRODUCER_HEAD_BYTES
    if out.name_bytes == 0:
        return BODY_NAME
    if out.change == CHANGE_RESET:
        return BODY_OK if out.epoch <= LAST_NUMBER and out.sequence <= LAST_NUMBER else BODY_CHANGE
    return BODY_OK if out.change == CHANGE_DROP and not out.epoch | out.sequence else BODY_CHANGE


class TextValues(NamedTuple):
    """One text column: event i's text is `data[offsets[i]:offsets[i + 1]]`; `present` None: all are given."""

    offsets: np.ndarray
    data: np.ndarray
    present: np.ndarray | None


class BatchBody(NamedTuple):
    """A batch body as numpy arrays of its own; columns are float64 arrays or TextValues."""

    producer: bytes
    epoch: int
    sequence: int
    fingerprint: int
    event_id: int
    outcomes: np.ndarray
    times: np.ndarray
    columns: tuple
    shed: np.ndarray | None = None


cdef object text_column(object column, uint32_t n, Column* out, list keep):
    """Points `out` at the arrays of a text column after checking them; `keep` holds on to them."""
    cdef const uint32_t[::1] offsets = np.ascontiguousarray(column.offsets, np.uint32)
    cdef const uint8_t[::1] data = np.ascontiguousarray(column.data, np.uint8)
    cdef const uint8_t[::1] present
    cdef Py_ssize_t i
    if offsets.shape[0] != n + 1 or offsets[n] > <size_t> data.shape[0]:
        raise InvalidEventError(f"a text column of {n} events needs {n + 1} offsets that end within its data")
    for i in range(n):
        if offsets[i] > offsets[i + 1]:
            raise InvalidEventError(f"text offsets descend at event {i}")
    out.kind = COLUMN_TEXT
    out.offsets = &offsets[0]
    if data.shape[0]:
        out.bytes = <const char*> &data[0]
    keep += [offsets, data]
    if column.present is not None:
        present = np.ascontiguousarray(column.present, np.uint8)
        if present.shape[0] != n:
            raise InvalidEventError(f"a text column of {n} events needs {n} presence flags")
        out.present = &present[0]
        keep.append(present)


def batch_body(
    object outcomes not None, object times not None, object columns not None, *,
    bytes producer not None=b"", uint64_t epoch=0, uint64_t sequence=0, uint64_t fingerprint=0,
    uint16_t event_id=0, object shed=None,
):
    """The BATCH body of n events as bytes; with `shed` a SHED body.

    outcomes (n,) uint8, times (n,) int64 ms, shed (n,) uint64; each column (n,) float64, or anything with
    `offsets` (n + 1,) uint32, `data` uint8 and `present` (n,) uint8 or None. Raises InvalidEventError where
    lengths disagree.
    """
    cdef const uint8_t[::1] outcome_array = np.ascontiguousarray(outcomes, np.uint8)
    cdef const int64_t[::1] time_array = np.ascontiguousarray(times, np.int64)
    cdef const double[::1] numbers
    cdef const uint64_t[::1] shed_array
    cdef uint32_t n = <uint32_t> outcome_array.shape[0]
    cdef ByteBuffer buffer = ByteBuffer(data=NULL, size=0, capacity=0)
    cdef Batch batch
    cdef BatchHead head
    cdef Column* array
    cdef Py_ssize_t c
    cdef int status
    cdef list keep = []
    if not 0 < outcome_array.shape[0] <= MAX_BATCH_EVENTS or time_array.shape[0] != outcome_array.shape[0]:
        raise InvalidEventError(f"a batch has 1 to {MAX_BATCH_EVENTS} events, each with outcome and time")
    if len(producer) > MAX_PRODUCER_BYTES or len(columns) > 0xFFFF:
        raise LimitError(f"a producer's name has at most {MAX_PRODUCER_BYTES} bytes, a batch 65535 columns")
    array = <Column*> calloc(len(columns) + 1, sizeof(Column))
    if array == NULL:
        raise MemoryError
    try:
        for c in range(len(columns)):
            if hasattr(columns[c], "offsets"):
                text_column(columns[c], n, &array[c], keep)
                continue
            numbers = np.ascontiguousarray(columns[c], np.float64)
            if numbers.shape[0] != n:
                raise InvalidEventError(f"column {c} has {numbers.shape[0]} values for {n} events")
            array[c].kind = COLUMN_NUMBER
            array[c].numbers = &numbers[0]
            keep.append(numbers)
        batch = Batch(
            n_events=n, event=0, n_columns=<uint16_t> len(columns), times=&time_array[0], columns=array,
            outcomes=<uint8_t*> &outcome_array[0],
        )
        head = BatchHead(
            producer=PyBytes_AS_STRING(producer), producer_bytes=<uint8_t> len(producer), event_id=event_id,
            epoch=epoch, sequence=sequence, fingerprint=fingerprint, shed=NULL,
        )
        if shed is not None:
            shed_array = np.ascontiguousarray(shed, np.uint64)
            if <size_t>shed_array.shape[0] != n:
                raise InvalidEventError(f"shed has {shed_array.shape[0]} values for {n} events")
            head.shed = &shed_array[0]
        status = encode_batch(&batch, &head, &buffer)
        if status:
            raise body_error(status, "batch body")
        return PyBytes_FromStringAndSize(<char*> buffer.data, buffer.size)
    finally:
        buffer_free(&buffer)
        free(array)


cdef object copied(const void* data, size_t n_bytes, object dtype):
    return np.frombuffer(PyBytes_FromStringAndSize(<const char*> data, n_bytes), dtype)


cdef object column_values(const Column* column, size_t n):
    if column.kind == COLUMN_NUMBER:
        return copied(column.numbers, 8 * n, np.float64)
    return TextValues(
        copied(column.offsets, 4 * (n + 1), np.uint32),
        copied(column.bytes, column.offsets[n], np.uint8),
        None if column.present == NULL else copied(column.present, n, np.uint8),
    )


def parse_batch_body(bytes body not None, *, bint has_shed=False):
    """The BatchBody that these bytes hold, of a SHED body with `has_shed`; CorruptRecordError says what is
    wrong with others."""
    cdef BatchFrame frame
    cdef size_t size = len(body)
    # Of the body's own size, so that a sanitizer sees a read past its end.
    cdef uint8_t* copy = <uint8_t*> malloc(size or 1)
    cdef int status
    memset(&frame, 0, sizeof(BatchFrame))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, PyBytes_AS_STRING(body), size)
    try:
        status = decode_batch(copy, size, has_shed, &frame)
        if status:
            raise body_error(status, "batch body")
        return BatchBody(
            frame.head.producer[:frame.head.producer_bytes],
            frame.head.epoch,
            frame.head.sequence,
            frame.head.fingerprint,
            frame.head.event_id,
            copied(frame.batch.outcomes, frame.batch.n_events, np.uint8),
            copied(frame.batch.times, 8 * <size_t> frame.batch.n_events, np.int64),
            tuple([
                column_values(&frame.columns[c], frame.batch.n_events)
                for c in range(frame.batch.n_columns)
            ]),
            copied(frame.head.shed, 8 * <size_t> frame.batch.n_events, np.uint64) if has_shed else None,
        )
    finally:
        batch_frame_free(&frame)
        free(copy)


def forget_body(uint16_t entity_id, bytes fingerprint not None):
    """The FORGET body for one row: its entity and its 16-byte fingerprint."""
    cdef uint8_t out[FORGET_BODY_BYTES]
    if len(fingerprint) != 16:
        raise ValueError(f"a row's fingerprint has 16 bytes, not {len(fingerprint)}")
    encode_forget(entity_id, <const uint8_t*> PyBytes_AS_STRING(fingerprint), out)
    return PyBytes_FromStringAndSize(<char*> out, FORGET_BODY_BYTES)


def parse_forget_body(bytes body not None):
    """(entity_id, fingerprint) of a FORGET body; CorruptRecordError says what is wrong with other bytes."""
    cdef uint16_t entity_id
    cdef uint8_t fingerprint[16]
    cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(body)
    cdef int status = decode_forget(at, len(body), &entity_id, fingerprint)
    if status:
        raise body_error(status, "forget body")
    return entity_id, PyBytes_FromStringAndSize(<char*> fingerprint, 16)


CLOCK_HEAD = struct.Struct("<B7xq")


def clock_body(str clock not None, int64_t now_ms, bytes plan not None):
    """The CLOCK body: which clock the store has from there on (of plan.CLOCKS), what it says, and the plan
    that is served then."""
    return CLOCK_HEAD.pack(CLOCKS.index(clock), now_ms) + plan


def parse_clock_body(bytes body not None):
    """(clock, now_ms, plan) of a CLOCK body; CorruptRecordError says what is wrong with other bytes."""
    if len(body) < CLOCK_HEAD.size:
        raise body_error(BODY_SHORT, "clock body")
    number, now_ms = CLOCK_HEAD.unpack_from(body)
    if any(body[1:8]):
        raise body_error(BODY_PADDING, "clock body")
    if number >= len(CLOCKS) or not EARLIEST_MS <= now_ms <= LATEST_MS:
        raise CorruptRecordError(f"clock body: clock {number}, which says {now_ms}")
    return CLOCKS[number], now_ms, body[CLOCK_HEAD.size:]


def producer_body(uint8_t change, bytes name not None, uint64_t epoch=0, uint64_t sequence=0):
    """The PRODUCER body: 1 drops the producer of that name, 2 resets it to an epoch and a sequence."""
    cdef uint8_t out[MAX_PRODUCER_BODY_BYTES]
    cdef ProducerBody body
    if len(name) > MAX_PRODUCER_BYTES:
        raise LimitError(f"a producer's name has at most {MAX_PRODUCER_BYTES} bytes")
    body = ProducerBody(change=change, name_bytes=<uint8_t> len(name), epoch=epoch, sequence=sequence,
                        name=<const uint8_t*> PyBytes_AS_STRING(name))
    return PyBytes_FromStringAndSize(<char*> out, encode_producer(&body, out))


def parse_producer_body(bytes body not None):
    """(change, name, epoch, sequence) of a PRODUCER body; CorruptRecordError says what is wrong with other
    bytes."""
    cdef ProducerBody found
    cdef int status = decode_producer(<const uint8_t*> PyBytes_AS_STRING(body), len(body), &found)
    if status:
        raise body_error(status, "producer body")
    return found.change, (<const char*> found.name)[:found.name_bytes], found.epoch, found.sequence
