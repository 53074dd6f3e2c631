"""Replies, byte for byte what the official runtime would write, without the GIL or libprotobuf.

Sizes are known before the first byte is written: each reply is one extension of the buffer and one pass over
its arrays. What says nothing is left out: statuses when all are PRESENT, bounds when all are exact, coverage
when nothing is WARMING.
"""

import sys

import numpy as np

from featurestore.core.structs import same_structs
from featurestore.errors import LimitError

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from featurestore.core.batch cimport (
    MAX_BATCH_EVENTS, OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, OUTCOME_LATE, REFUSED_KEY, REFUSED_KEY_TOO_LONG,
    REFUSED_MEMORY, REFUSED_NO_ID, REFUSED_NOT_FINITE, REFUSED_TYPE, batch_structs,
)
from featurestore.server.memory cimport Buffer, buffer_extend, buffer_free
from featurestore.server.names cimport FieldTable, Name, NameTable

same_structs(__name__, replies_structs(), batch_structs())

if sys.byteorder != "little":
    raise ImportError("featurestore needs a little-endian machine: packed numbers are copied as they are")

# Values of featurestore.v1 enums.
cdef enum:
    WIRE_ACCEPTED = 3                # Outcome; 0 stays unspecified there
    STATUS_PRESENT = 1               # FeatureStatus
    STATUS_WARMING = 3
    BOUNDS_EXACT = 1                 # Bounds
    BOUNDS_CERTAIN = 2
    BOUNDS_CONFIDENCE = 3
    MAX_SHED = 16                    # keys that encode_observe takes

# Tags: field number << 3 | wire type.
cdef enum:
    VARINT_1 = 0x08
    VARINT_2 = 0x10
    VARINT_3 = 0x18
    VARINT_4 = 0x20
    VARINT_5 = 0x28
    VARINT_6 = 0x30
    VARINT_7 = 0x38
    VARINT_8 = 0x40
    VARINT_9 = 0x48
    VARINT_10 = 0x50
    VARINT_11 = 0x58
    FIXED64_1 = 0x09
    FIXED64_9 = 0x49
    LENGTH_1 = 0x0A
    LENGTH_3 = 0x1A
    LENGTH_4 = 0x22
    LENGTH_5 = 0x2A
    LENGTH_6 = 0x32
    LENGTH_7 = 0x3A
    LENGTH_8 = 0x42
    LENGTH_10 = 0x52

ctypedef struct VectorsLayout:       # which fields of a Vectors message are sent, and how long it gets
    uint64_t n_values
    bint statuses
    bint coverage
    bint lower_upper
    uint8_t bounds                   # featurestore.v1.Bounds
    double confidence                # 0 = not sent
    uint64_t size                    # bytes of the message, without its own tag and length


cdef inline uint64_t varint_size(uint64_t value) noexcept nogil:
    cdef uint64_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t* put_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


# A field that holds its default is not sent, as in the official runtime; all tags here are one byte.
cdef inline uint64_t number_size(uint64_t value) noexcept nogil:
    return 1 + varint_size(value) if value != 0 else 0


cdef inline uint8_t* put_number_field(uint8_t* at, uint8_t tag, uint64_t value) noexcept nogil:
    if value == 0:
        return at
    at[0] = tag
    return put_varint(at + 1, value)


cdef inline uint64_t bytes_size(uint64_t size) noexcept nogil:
    return 1 + varint_size(size) + size if size != 0 else 0


cdef inline uint8_t* put_bytes_field(uint8_t* at, uint8_t tag, const void* data,
                                     uint64_t size) noexcept nogil:
    if size == 0:
        return at
    at[0] = tag
    at = put_varint(at + 1, size)
    memcpy(at, data, <size_t>size)
    return at + size


cdef inline uint8_t* put_fixed64_field(uint8_t* at, uint8_t tag, const void* value) noexcept nogil:
    at[0] = tag
    memcpy(at + 1, value, 8)
    return at + 9


cdef inline bint is_exact(double value, double lower, double upper) noexcept nogil:
    return (lower == value and upper == value) or (value != value and lower != lower and upper != upper)


cdef void lay_out_vectors(const VectorsView* v, uint64_t fingerprint, double confidence,
                          VectorsLayout* layout) noexcept nogil:
    cdef uint64_t i, n = <uint64_t>v.n * v.width
    memset(layout, 0, sizeof(VectorsLayout))
    layout.n_values = n
    for i in range(n):
        if v.statuses[i] != STATUS_PRESENT:
            layout.statuses = True
            layout.coverage |= v.statuses[i] == STATUS_WARMING
    layout.coverage &= v.coverage != NULL
    if v.lower != NULL:
        layout.bounds = BOUNDS_EXACT
        for i in range(n):
            if not is_exact(v.values[i], v.lower[i], v.upper[i]):
                layout.lower_upper = True
                layout.bounds = BOUNDS_CERTAIN if confidence >= 1.0 else BOUNDS_CONFIDENCE
                break
    if layout.bounds == BOUNDS_CONFIDENCE:
        layout.confidence = confidence
    layout.size = (
        (9 if fingerprint != 0 else 0)
        + number_size(v.n)
        + number_size(v.width)
        + bytes_size(n * 8)
        + (bytes_size(n) if layout.statuses else 0)
        + number_size(layout.bounds)
        + (2 * bytes_size(n * 8) if layout.lower_upper else 0)
        + (9 if layout.confidence != 0 else 0)
        + (bytes_size(n * 4) if layout.coverage else 0)
    )


cdef uint8_t* put_vectors(uint8_t* at, const VectorsView* v, uint64_t fingerprint,
                          const VectorsLayout* layout) noexcept nogil:
    cdef uint64_t n = layout.n_values
    if fingerprint != 0:
        at = put_fixed64_field(at, FIXED64_1, &fingerprint)
    at = put_number_field(at, VARINT_2, v.n)
    at = put_number_field(at, VARINT_3, v.width)
    at = put_bytes_field(at, LENGTH_4, v.values, n * 8)
    if layout.statuses:
        at = put_bytes_field(at, LENGTH_5, v.statuses, n)
    at = put_number_field(at, VARINT_6, layout.bounds)
    if layout.lower_upper:
        at = put_bytes_field(at, LENGTH_7, v.lower, n * 8)
        at = put_bytes_field(at, LENGTH_8, v.upper, n * 8)
    if layout.confidence != 0:
        at = put_fixed64_field(at, FIXED64_9, &layout.confidence)
    if layout.coverage:
        at = put_bytes_field(at, LENGTH_10, v.coverage, n * 4)
    return at


cdef inline uint8_t on_wire(uint8_t outcome) noexcept nogil:
    return WIRE_ACCEPTED if outcome == OUTCOME_ACCEPTED else outcome


cdef const Name* refused_field(const FieldTable* fields, uint8_t outcome,
                               const uint16_t* refused_by) noexcept nogil:
    """The field whose value, or want of one, refused the event; NULL where it was not, or `fields` is."""
    if fields == NULL or outcome <= OUTCOME_DUPLICATE:
        return NULL
    if outcome == REFUSED_NO_ID or outcome == REFUSED_MEMORY:
        return NULL if fields.id_field < 0 else &fields.names.names[fields.id_field]
    if (outcome == REFUSED_TYPE or outcome == REFUSED_NOT_FINITE or outcome == REFUSED_KEY
            or outcome == REFUSED_KEY_TOO_LONG):
        return &fields.names.names[refused_by[0]]
    return &fields.names.names[fields.n_fields]


cdef bint wire_encode_observe(Buffer* out, uint8_t outcome, bint partly_late, uint8_t ack, uint64_t position,
                              uint64_t* ack_back, const VectorsView* vectors, uint64_t fingerprint,
                              double confidence,
                              const NameTable* keys, uint64_t shed, const FieldTable* fields,
                              const uint16_t* refused_by) noexcept nogil:
    cdef VectorsLayout layout
    cdef const Name* field = refused_field(fields, outcome, refused_by)
    cdef uint64_t size = (number_size(on_wire(outcome)) + number_size(ack) + number_size(position)
                          + number_size(partly_late) + (0 if field == NULL else bytes_size(field.length)))
    cdef uint8_t* at
    cdef uint32_t i
    if shed != 0:
        for i in range(keys.n):
            if (shed >> i) & 1:
                size += bytes_size(keys.names[i].length)
    if vectors != NULL:
        lay_out_vectors(vectors, fingerprint, confidence, &layout)
        size += 1 + varint_size(layout.size) + layout.size
    at = buffer_extend(out, size)
    if at == NULL:
        return False
    at = put_number_field(at, VARINT_1, on_wire(outcome))
    at = put_number_field(at, VARINT_2, ack)
    ack_back[0] = <uint64_t>(out.data + out.size - at) + 1
    at = put_number_field(at, VARINT_3, position)
    if vectors != NULL:
        at[0] = LENGTH_4
        at = put_varint(at + 1, layout.size)
        at = put_vectors(at, vectors, fingerprint, &layout)
    at = put_number_field(at, VARINT_5, partly_late)
    if shed != 0:
        for i in range(keys.n):
            if (shed >> i) & 1:
                at = put_bytes_field(at, LENGTH_6, keys.names[i].text, keys.names[i].length)
    if field != NULL:
        put_bytes_field(at, LENGTH_7, field.text, field.length)
    return True


cdef inline uint64_t refusal_size(uint32_t index, uint8_t outcome, const Name* field) noexcept nogil:
    return number_size(index) + number_size(outcome) + (0 if field == NULL else bytes_size(field.length))


cdef bint wire_encode_ingest(Buffer* out, bint streamed, const uint8_t* outcomes, uint32_t n_events,
                             uint32_t partly_late, uint32_t shed, uint8_t ack, uint64_t position,
                             uint64_t* ack_back, uint64_t sequence, bint duplicate_batch,
                             uint64_t max_refusals,
                             const FieldTable* fields, const uint16_t* refused_by) noexcept nogil:
    cdef uint64_t accepted = 0, late = 0, duplicate = 0, refused = 0, size, refusals_size = 0
    cdef const Name* field
    cdef uint32_t i
    cdef uint8_t* at
    for i in range(n_events):
        if outcomes[i] == OUTCOME_ACCEPTED:
            accepted += 1
        elif outcomes[i] == OUTCOME_LATE:
            late += 1
        elif outcomes[i] == OUTCOME_DUPLICATE:
            duplicate += 1
        else:
            refused += 1
            if refused <= (max_refusals if max_refusals else <uint64_t>MAX_REFUSALS):
                size = refusal_size(i, outcomes[i], refused_field(fields, outcomes[i], &refused_by[i]))
                refusals_size += 1 + varint_size(size) + size
    size = (number_size(accepted) + number_size(late) + number_size(duplicate) + number_size(refused)
            + refusals_size + number_size(position) + number_size(ack) + number_size(duplicate_batch)
            + number_size(sequence) + number_size(partly_late) + number_size(shed))
    at = buffer_extend(out, size + (1 + varint_size(size) if streamed else 0))
    if at == NULL:
        return False
    if streamed:
        at[0] = LENGTH_1
        at = put_varint(at + 1, size)
    at = put_number_field(at, VARINT_1, accepted)
    at = put_number_field(at, VARINT_2, late)
    at = put_number_field(at, VARINT_3, duplicate)
    at = put_number_field(at, VARINT_4, refused)
    i = 0
    while refusals_size != 0:
        if outcomes[i] > OUTCOME_DUPLICATE:
            field = refused_field(fields, outcomes[i], &refused_by[i])
            size = refusal_size(i, outcomes[i], field)
            at[0] = LENGTH_5
            at = put_varint(at + 1, size)
            at = put_number_field(at, VARINT_1, i)
            at = put_number_field(at, VARINT_2, outcomes[i])
            if field != NULL:
                at = put_bytes_field(at, LENGTH_3, field.text, field.length)
            refusals_size -= 1 + varint_size(size) + size
        i += 1
    at = put_number_field(at, VARINT_6, position)
    at = put_number_field(at, VARINT_7, ack)
    ack_back[0] = <uint64_t>(out.data + out.size - at) + 1
    at = put_number_field(at, VARINT_8, duplicate_batch)
    at = put_number_field(at, VARINT_9, sequence)
    at = put_number_field(at, VARINT_10, partly_late)
    put_number_field(at, VARINT_11, shed)
    return True


cdef bint wire_encode_read(Buffer* out, bint streamed, const VectorsView* vectors, uint64_t fingerprint,
                           double confidence, const int64_t* now_ms) noexcept nogil:
    cdef VectorsLayout layout
    cdef uint64_t size, now_zigzag = 0
    cdef uint8_t* at
    lay_out_vectors(vectors, fingerprint, confidence, &layout)
    size = 1 + varint_size(layout.size) + layout.size
    if now_ms != NULL:
        now_zigzag = (<uint64_t>now_ms[0] << 1) ^ (<uint64_t>-1 if now_ms[0] < 0 else 0)
        size += 1 + varint_size(now_zigzag)
    at = buffer_extend(out, size + (1 + varint_size(size) if streamed else 0))
    if at == NULL:
        return False
    if streamed:
        at[0] = LENGTH_1
        at = put_varint(at + 1, size)
    at[0] = LENGTH_1
    at = put_varint(at + 1, layout.size)
    at = put_vectors(at, vectors, fingerprint, &layout)
    if now_ms != NULL:
        # Present even when 0: 1970 is a time like any other.
        at[0] = VARINT_2
        put_varint(at + 1, now_zigzag)
    return True


# ---- for Python: one message at a time, from arrays ----

@cython.final
cdef class _Reply:
    """A Buffer that is freed whatever happens, and vectors borrowed from arrays that it keeps alive."""
    cdef Buffer buffer
    cdef VectorsView view
    cdef list _arrays

    def __cinit__(self, size_t max_bytes):
        self.buffer.max_bytes = max_bytes
        self._arrays = []

    cdef int take(self, values, lower, upper, statuses, coverage) except -1:
        cdef const double[::1] numbers = self._flat(values, np.float64, values)
        cdef const uint8_t[::1] codes = self._flat(statuses, np.uint8, values)
        cdef const float[::1] shares
        self.view.n, self.view.width = values.shape
        self.view.values = &numbers[0]
        self.view.statuses = &codes[0]
        if lower is not None:
            numbers = self._flat(lower, np.float64, values)
            self.view.lower = &numbers[0]
            numbers = self._flat(upper, np.float64, values)
            self.view.upper = &numbers[0]
        if coverage is not None:
            shares = self._flat(coverage, np.float32, values)
            self.view.coverage = &shares[0]
        return 0

    cdef object _flat(self, array, dtype, values):
        """Row-major, and with an address even when there is nothing in it."""
        made = np.asarray(array, dtype=dtype)
        if made.ndim != 2 or made.shape != values.shape:
            raise ValueError(f"arrays of a vector share one shape, {values.shape}, not {made.shape}")
        flat = np.ascontiguousarray(made).ravel() if made.size else np.zeros(1, dtype)
        self._arrays.append(flat)
        return flat

    cdef bytes bytes(self, bint encoded):
        if not encoded:
            raise LimitError(f"the reply is larger than {self.buffer.max_bytes} bytes; ask for less at once")
        return PyBytes_FromStringAndSize(<char*>self.buffer.data, self.buffer.size)

    def __dealloc__(self):
        buffer_free(&self.buffer)


cdef void _one_field(bytes name, Name* names, FieldTable* fields) noexcept:
    """A table of two fields of this name, the second the time; the first has ids."""
    memset(fields, 0, sizeof(FieldTable))
    memset(names, 0, 2 * sizeof(Name))
    names[0].text = names[1].text = <const uint8_t*>PyBytes_AS_STRING(name)
    names[0].length = names[1].length = len(name)
    fields.names.n = 2
    fields.names.names = names
    fields.n_fields = 1


def encode_observe(
    uint8_t outcome,
    uint8_t ack,
    uint64_t position,
    values=None,
    *,
    bint partly_late=False,
    shed=(),
    statuses=None,
    lower=None,
    upper=None,
    coverage=None,
    uint64_t fingerprint=0,
    double confidence=1.0,
    bytes field=None,
    size_t max_bytes=1 << 28,
):
    """`field` is the name of one of the type's fields, which is its id too, and its time's."""
    cdef _Reply reply = _Reply(max_bytes)
    cdef Name field_names[2]
    cdef FieldTable fields
    cdef uint16_t refused_by = 0
    cdef Name names[MAX_SHED]
    cdef NameTable keys
    cdef uint32_t n_shed = len(shed), i
    cdef uint64_t ack_back = 0
    if n_shed > MAX_SHED:
        raise ValueError(f"at most {MAX_SHED} keys here, not {n_shed}")
    memset(&keys, 0, sizeof(NameTable))
    for i in range(n_shed):
        names[i].text = <const uint8_t*>PyBytes_AS_STRING(shed[i])
        names[i].length = len(shed[i])
    keys.n = n_shed
    keys.names = names
    if field is not None:
        _one_field(field, field_names, &fields)
    if values is not None:
        reply.take(values, lower, upper, statuses, coverage)
    return reply.bytes(
        wire_encode_observe(
            &reply.buffer,
            outcome,
            partly_late,
            ack,
            position,
            &ack_back,
            NULL if values is None else &reply.view,
            fingerprint,
            confidence,
            &keys,
            (<uint64_t>1 << n_shed) - 1,
            NULL if field is None else &fields,
            &refused_by,
        )
    )


def encode_ingest(
    const uint8_t[::1] outcomes not None,
    uint8_t ack,
    uint64_t position,
    uint64_t sequence,
    *,
    uint32_t partly_late=0,
    uint32_t shed=0,
    bint duplicate_batch=False,
    bint streamed=False,
    uint64_t max_refusals=0,
    bytes field=None,
    size_t max_bytes=1 << 28,
):
    """`field` as in encode_observe, of every refused event."""
    cdef _Reply reply = _Reply(max_bytes)
    cdef Name field_names[2]
    cdef FieldTable fields
    cdef uint16_t[::1] refused_by = np.zeros(outcomes.shape[0] + 1, np.uint16)
    cdef uint32_t n_events
    cdef uint64_t ack_back = 0
    if outcomes.shape[0] > MAX_BATCH_EVENTS:
        raise ValueError(f"a batch has at most {MAX_BATCH_EVENTS} events, not {outcomes.shape[0]}")
    n_events = outcomes.shape[0]
    if field is not None:
        _one_field(field, field_names, &fields)
    return reply.bytes(
        wire_encode_ingest(
            &reply.buffer,
            streamed,
            &outcomes[0] if n_events else NULL,
            n_events,
            partly_late,
            shed,
            ack,
            position,
            &ack_back,
            sequence,
            duplicate_batch,
            max_refusals,
            NULL if field is None else &fields,
            &refused_by[0],
        )
    )


def encode_read(
    values not None,
    *,
    statuses not None,
    lower=None,
    upper=None,
    coverage=None,
    uint64_t fingerprint=0,
    double confidence=1.0,
    now_ms=None,
    bint streamed=False,
    size_t max_bytes=1 << 28,
):
    cdef _Reply reply = _Reply(max_bytes)
    cdef int64_t now = 0 if now_ms is None else now_ms
    reply.take(values, lower, upper, statuses, coverage)
    return reply.bytes(
        wire_encode_read(
            &reply.buffer, streamed, &reply.view, fingerprint, confidence, NULL if now_ms is None else &now
        )
    )
