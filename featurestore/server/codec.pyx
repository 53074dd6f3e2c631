"""Hot requests: protobuf's wire format to C structs, without the GIL or libprotobuf.

Idea. A message is walked twice at most: once over its top level (names, flags, how many rows), once into
arrays of the size then known. Columns are Arrow-like on the wire, so that a packed column is checked and
copied (or, for texts, only pointed at) in one pass. Nothing is allocated but from the caller's arena, which
has a limit: a small message that would become a large batch is refused, not served.

Guarantee. Any bytes whatever are either decoded to what the official runtime and the schema say, or refused
with a status; nothing outside them is read (see cursor.pxd). The tests hold it to the official runtime. Two
kinds of message are refused that the official runtime would take: those larger than max_message_bytes, and
those whose meaning is ambiguous or wrong for the schema (WireStatus, names.pxd).

A text or number of the wrong type refuses its event only; a field given twice, or columns of different
lengths are mistakes of the program that sends, and refuse the request. So does a name that is not declared
where a declared one is in no event of the request, not even as null: it may be misspelt. Where all of them
are there, what is not declared is passed over.
"""

import sys

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport NAN, floor, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, memset

from featurestore.core.batch cimport (
    COLUMN_NUMBER,
    COLUMN_TEXT,
    MAX_PRODUCER_BYTES,
    MAX_TEXT_BYTES,
    OUTCOME_ACCEPTED,
    REFUSED_KEY,
    REFUSED_KEY_TOO_LONG,
    REFUSED_NO_TIME,
    REFUSED_NOT_FINITE,
    REFUSED_TIME_RANGE,
    REFUSED_TYPE,
    Batch,
    Column,
)
from featurestore.server.cursor cimport (
    Cursor,
    cursor_structs,
    is_utf8,
    skip,
    take_fixed64,
    take_slice,
    take_tag,
    take_varint,
    unzigzag,
)
from featurestore.server.eventtime cimport (
    TIME_MAX_MS,
    TIME_MIN_MS,
    VALUE_FLAG,
    VALUE_INTEGER,
    VALUE_NONE,
    VALUE_NUMBER,
    VALUE_TEXT,
    Scalar,
    eventtime_structs,
    read_time,
    text_number,
)
from featurestore.server.memory cimport Arena, arena_alloc, arena_free
from featurestore.server.names cimport (
    FIELD_KEY,
    FIELD_NUMBER,
    FIELD_STRING,
    WIRE_AS_OF_RANGE,
    WIRE_AS_OF_TWICE,
    WIRE_BAD_COLUMN,
    WIRE_BAD_KEY,
    WIRE_BAD_UTF8,
    WIRE_FINGERPRINT,
    WIRE_GIVEN_TWICE,
    WIRE_LENGTHS_DIFFER,
    WIRE_MALFORMED,
    WIRE_NO_ROOM,
    WIRE_OK,
    WIRE_PRODUCER_TOO_LONG,
    WIRE_ROWS_AND_COLUMNS,
    WIRE_TIME_TWICE,
    WIRE_TOO_LARGE,
    WIRE_TOO_MANY_POSITIONS,
    WIRE_TOO_MANY_ROWS,
    WIRE_TOO_MANY_VALUES,
    WIRE_UNKNOWN_ACK,
    WIRE_UNKNOWN_EVENT,
    WIRE_UNKNOWN_FIELD,
    WIRE_UNKNOWN_PART,
    WIRE_UNKNOWN_SERVICE,
    FieldTable,
    WireError,
    WireSchema,
    WireTables,
    name_index,
    wire_exception,
)

from featurestore.core.structs import same_structs

same_structs(__name__, codec_structs(), cursor_structs(), eventtime_structs())

if sys.byteorder != "little":
    raise ImportError("featurestore needs a little-endian machine: packed numbers are copied as they are")

cdef enum:
    DOUBLE_DIGITS = 320              # the longest whole double: a sign, 309 digits, a terminator

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
    FIXED64_3 = 0x19
    FIXED64_5 = 0x29
    FIXED64_8 = 0x41
    FIXED64_9 = 0x49
    LENGTH_1 = 0x0A
    LENGTH_2 = 0x12
    LENGTH_3 = 0x1A
    LENGTH_4 = 0x22
    LENGTH_5 = 0x2A
    LENGTH_6 = 0x32
    LENGTH_7 = 0x3A
    LENGTH_8 = 0x42
    LENGTH_9 = 0x4A
    LENGTH_10 = 0x52

ctypedef struct TextPiece:           # one text of a row, before its column is laid out
    const uint8_t* text              # in the message; NULL: the text is the decimals of `number`
    int64_t number                   # or the length of text in bytes

ctypedef struct Rows:                # rows being turned into columns; a column is made when first given
    const FieldTable* fields
    uint32_t n
    double** numbers                 # [n_fields][n], NULL = not made
    TextPiece** pieces               # [n_fields][n], NULL = not made
    uint8_t** present                # [n_fields][n], made with its pieces
    uint32_t* given_in               # [n_fields] row + 1 in which the field was last given
    uint8_t* named                   # [n_fields + 1] 1: in some row, with a value or without; last, the time
    const uint8_t* stranger          # a name that is not declared, in the message; NULL: none
    size_t stranger_length
    uint8_t* outcomes                # [n]
    uint16_t* refused_by             # [n] as in an IngestCall
    uint32_t refused_rank            # which field's reason the outcome of the row at hand is, see refuse_row

ctypedef struct Verdicts:            # the same of columns
    uint8_t* outcomes                # [n]
    uint16_t* refused_by             # [n]
    uint16_t field                   # whose column is being read

ctypedef struct EventTime:           # what one event says of its time
    bint by_number                   # time_ms was given
    bint by_field                    # the time field was given
    uint8_t refused                  # the time field cannot be read: the reason
    int64_t number_ms
    int64_t field_ms

ctypedef struct Chunk:               # a piece of a packed field, or one unpacked value
    const uint8_t* bytes             # in the message
    size_t size
    Chunk* next

ctypedef struct Chunks:              # a repeated number: all its pieces, in order
    Chunk* first
    Chunk* last
    uint64_t n_values
    size_t size                      # bytes of all pieces

ctypedef struct NamedScan:           # a NamedColumn, well-formed, not yet held against the schema
    const uint8_t* name
    size_t name_length
    int kind                         # ValueKind, VALUE_NONE = absent altogether
    Chunks values                    # 8 bytes each; for texts their lengths, varints
    Cursor data                      # texts only
    Cursor present                   # bitmap, empty = all given
    NamedScan* next

ctypedef struct Scans:               # the columns of a request, in order
    NamedScan* first
    NamedScan* last

ctypedef struct Decoder:             # one request being decoded
    const WireTables* tables
    Arena* arena
    WireError* error
    const uint8_t* message
    const double* no_numbers         # [n] NaN, what columns that are not given share; NULL = not made
    const uint32_t* no_offsets       # [n + 1] 0
    const uint8_t* no_present        # [n] 0


# ---- errors ----

cdef int fail(Decoder* d, int code, const uint8_t* at) noexcept nogil:
    d.error.code = code
    d.error.offset = <size_t>(at - d.message)
    return code


cdef int fail_name(Decoder* d, int code, const uint8_t* text, size_t length, uint32_t row) noexcept nogil:
    d.error.text = text
    d.error.text_length = length
    d.error.row = row
    return fail(d, code, text if text != NULL else d.message)


cdef int check_stranger(Decoder* d, const FieldTable* fields, const uint8_t* named, const uint8_t* stranger,
                        size_t length) noexcept nogil:
    """Refuses a name that is not declared where a declared one is missing, whose index is then `row` of the
    error. NULL: there is none."""
    cdef uint32_t i
    if stranger == NULL:
        return WIRE_OK
    for i in range(fields.n_fields + 1):
        if not named[i] and (i < fields.n_declared or i == fields.n_fields):
            return fail_name(d, WIRE_UNKNOWN_FIELD, stranger, length, i)
    return WIRE_OK


cdef int no_room(Decoder* d) noexcept nogil:
    return fail(d, WIRE_NO_ROOM, d.message)


cdef inline void refuse(const Verdicts* verdicts, uint32_t row, uint8_t reason) noexcept nogil:
    """The first reason stays: of the time, then of the fields in the schema's order."""
    if verdicts.outcomes[row] == OUTCOME_ACCEPTED:
        verdicts.outcomes[row] = reason
        verdicts.refused_by[row] = verdicts.field


cdef inline void refuse_row(Rows* rows, uint32_t row, uint32_t rank, uint8_t reason) noexcept nogil:
    """The same for fields that come in any order: the time has rank 0, field i has rank i + 1."""
    if rows.outcomes[row] == OUTCOME_ACCEPTED or rank < rows.refused_rank:
        rows.outcomes[row] = reason
        rows.refused_by[row] = <uint16_t>(rank - 1 if rank else rows.fields.n_fields)
        rows.refused_rank = rank


# ---- one value ----

cdef int take_text(Decoder* d, Cursor* c, const uint8_t** text, size_t* length) noexcept nogil:
    cdef Cursor slice
    if not take_slice(c, &slice):
        return fail(d, WIRE_MALFORMED, c.at)
    length[0] = <size_t>(slice.end - slice.at)
    text[0] = slice.at
    if not is_utf8(slice.at, length[0]):
        return fail(d, WIRE_BAD_UTF8, slice.at)
    return WIRE_OK


cdef int take_scalar(Decoder* d, Cursor body, bint named, int depth, Scalar* value,
                     const uint8_t** name, size_t* name_length) noexcept nogil:
    """A Value, or a Field: the same members one field number further on, after the name."""
    cdef uint32_t tag, first = 8 if named else 0
    cdef uint64_t raw = 0
    cdef int status
    value.kind = VALUE_NONE
    name_length[0] = 0
    while body.at < body.end:
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if named and tag == LENGTH_1:
            status = take_text(d, &body, name, name_length)
            if status != WIRE_OK:
                return status
        elif tag == LENGTH_1 + first:
            status = take_text(d, &body, &value.text, &value.length)
            if status != WIRE_OK:
                return status
            value.kind = VALUE_TEXT
        elif tag == VARINT_2 + first:
            if not take_varint(&body, &raw):
                return fail(d, WIRE_MALFORMED, body.at)
            value.integer = unzigzag(raw)
            value.kind = VALUE_INTEGER
        elif tag == FIXED64_3 + first:
            if not take_fixed64(&body, <uint64_t*>&value.number):
                return fail(d, WIRE_MALFORMED, body.at)
            value.kind = VALUE_NUMBER
        elif tag == VARINT_4 + first:
            if not take_varint(&body, &raw):
                return fail(d, WIRE_MALFORMED, body.at)
            value.integer = raw != 0
            value.kind = VALUE_FLAG
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
    return WIRE_OK


cdef int decimal_length(int64_t number) noexcept nogil:
    cdef uint64_t rest = 0 - <uint64_t>number if number < 0 else <uint64_t>number
    cdef int length = 2 if number < 0 else 1
    while rest >= 10:
        rest //= 10
        length += 1
    return length


cdef void write_decimal(int64_t number, int length, uint8_t* out) noexcept nogil:
    cdef uint64_t rest = 0 - <uint64_t>number if number < 0 else <uint64_t>number
    cdef int i
    for i in range(length - 1, -1, -1):
        out[i] = <uint8_t>(48 + rest % 10)
        rest //= 10
    if number < 0:
        out[0] = 45


# ---- texts ----

cdef int64_t cut_length(const uint8_t* text) noexcept nogil:
    """How much is kept of a text that is longer than MAX_TEXT_BYTES: whole characters, if it is UTF-8."""
    cdef int64_t length = MAX_TEXT_BYTES
    while length > MAX_TEXT_BYTES - 3 and (text[length] & 0xC0) == 0x80:
        length -= 1
    return length


cdef int text_piece(Decoder* d, const Scalar* value, uint8_t field_kind, TextPiece* piece,
                    uint8_t* refused) noexcept nogil:
    """What a key or string field keeps of a value: its text, or the decimals of a whole number."""
    cdef uint8_t* digits
    refused[0] = 0
    piece.text = NULL
    if value.kind == VALUE_TEXT:
        piece.text = value.text
        piece.number = <int64_t>value.length
        if value.length > MAX_TEXT_BYTES:
            if field_kind == FIELD_STRING:
                piece.number = cut_length(value.text)
            else:
                refused[0] = REFUSED_KEY_TOO_LONG
    elif value.kind == VALUE_INTEGER:
        piece.number = value.integer
    elif value.kind == VALUE_FLAG:
        refused[0] = REFUSED_TYPE
    elif not isfinite(value.number) or floor(value.number) != value.number:
        refused[0] = REFUSED_KEY if field_kind == FIELD_KEY else REFUSED_TYPE
    elif -9223372036854775808.0 <= value.number < 9223372036854775808.0:
        piece.number = <int64_t>value.number
    else:
        digits = <uint8_t*>arena_alloc(d.arena, DOUBLE_DIGITS, 1)
        if digits == NULL:
            return no_room(d)
        piece.text = digits
        piece.number = snprintf(<char*>digits, DOUBLE_DIGITS, "%.0f", value.number)
    return WIRE_OK


cdef int lay_out_texts(Decoder* d, const TextPiece* pieces, uint32_t n, const uint8_t* present,
                       Column* out) noexcept nogil:
    """Pieces back to back as one text column; `present` NULL: all are given."""
    cdef uint32_t* offsets = <uint32_t*>arena_alloc(d.arena, <size_t>n + 1, sizeof(uint32_t))
    cdef uint8_t* bytes
    cdef uint64_t total = 0
    cdef int64_t length
    cdef uint32_t i
    if offsets == NULL:
        return no_room(d)
    for i in range(n):
        offsets[i] = <uint32_t>total
        if present == NULL or present[i]:
            length = pieces[i].number if pieces[i].text != NULL else decimal_length(pieces[i].number)
            total += <uint64_t>length
    if total > 0xFFFFFFFFu:
        return no_room(d)
    offsets[n] = <uint32_t>total
    bytes = <uint8_t*>arena_alloc(d.arena, <size_t>total, 1)
    if bytes == NULL:
        return no_room(d)
    for i in range(n):
        if present == NULL or present[i]:
            if pieces[i].text != NULL:
                memcpy(bytes + offsets[i], pieces[i].text, offsets[i + 1] - offsets[i])
            else:
                write_decimal(pieces[i].number, <int>(offsets[i + 1] - offsets[i]), bytes + offsets[i])
    memset(out, 0, sizeof(Column))
    out.kind = COLUMN_TEXT
    out.offsets = offsets
    out.bytes = <const char*>bytes
    out.present = present
    return WIRE_OK


# ---- columns that are not given ----

cdef int absent_column(Decoder* d, bint is_number, uint32_t n, Column* out) noexcept nogil:
    cdef double* numbers
    cdef uint32_t* offsets
    cdef uint8_t* present
    cdef uint32_t i
    memset(out, 0, sizeof(Column))
    if is_number:
        if d.no_numbers == NULL:
            numbers = <double*>arena_alloc(d.arena, n, sizeof(double))
            if numbers == NULL:
                return no_room(d)
            for i in range(n):
                numbers[i] = NAN
            d.no_numbers = numbers
        out.kind = COLUMN_NUMBER
        out.numbers = d.no_numbers
        return WIRE_OK
    if d.no_present == NULL:
        offsets = <uint32_t*>arena_alloc(d.arena, <size_t>n + 1, sizeof(uint32_t))
        present = <uint8_t*>arena_alloc(d.arena, n, 1)
        if offsets == NULL or present == NULL:
            return no_room(d)
        memset(offsets, 0, (<size_t>n + 1) * sizeof(uint32_t))
        memset(present, 0, n)
        d.no_offsets = offsets
        d.no_present = present
    out.kind = COLUMN_TEXT
    out.offsets = d.no_offsets
    out.bytes = <const char*>d.no_offsets
    out.present = d.no_present
    return WIRE_OK


# ---- rows ----

cdef int rows_begin(Decoder* d, Rows* rows, const FieldTable* fields, uint32_t n) noexcept nogil:
    cdef size_t n_fields = fields.n_fields
    rows.fields = fields
    rows.n = n
    rows.numbers = <double**>arena_alloc(d.arena, n_fields, sizeof(double*))
    rows.pieces = <TextPiece**>arena_alloc(d.arena, n_fields, sizeof(TextPiece*))
    rows.present = <uint8_t**>arena_alloc(d.arena, n_fields, sizeof(uint8_t*))
    rows.given_in = <uint32_t*>arena_alloc(d.arena, n_fields, sizeof(uint32_t))
    rows.named = <uint8_t*>arena_alloc(d.arena, n_fields + 1, 1)
    rows.stranger = NULL
    rows.stranger_length = 0
    rows.outcomes = <uint8_t*>arena_alloc(d.arena, n, 1)
    rows.refused_by = <uint16_t*>arena_alloc(d.arena, n, sizeof(uint16_t))
    if (rows.numbers == NULL or rows.pieces == NULL or rows.present == NULL or rows.given_in == NULL
            or rows.named == NULL or rows.outcomes == NULL or rows.refused_by == NULL):
        return no_room(d)
    memset(rows.named, 0, n_fields + 1)
    memset(rows.numbers, 0, n_fields * sizeof(double*))
    memset(rows.pieces, 0, n_fields * sizeof(TextPiece*))
    memset(rows.given_in, 0, n_fields * sizeof(uint32_t))
    memset(rows.outcomes, OUTCOME_ACCEPTED, n)
    return WIRE_OK


cdef int put_number(Decoder* d, Rows* rows, uint32_t row, uint32_t field, const Scalar* value) noexcept nogil:
    cdef double number
    cdef uint32_t i
    if value.kind == VALUE_TEXT:
        if not text_number(value.text, value.length, True, &number):
            refuse_row(rows, row, field + 1, REFUSED_TYPE)
            return WIRE_OK
    else:
        number = value.number if value.kind == VALUE_NUMBER else <double>value.integer
    if not isfinite(number):
        refuse_row(rows, row, field + 1, REFUSED_NOT_FINITE)
        return WIRE_OK
    if rows.numbers[field] == NULL:
        rows.numbers[field] = <double*>arena_alloc(d.arena, rows.n, sizeof(double))
        if rows.numbers[field] == NULL:
            return no_room(d)
        for i in range(rows.n):
            rows.numbers[field][i] = NAN
    rows.numbers[field][row] = number
    return WIRE_OK


cdef int put_text(Decoder* d, Rows* rows, uint32_t row, uint32_t field, const Scalar* value) noexcept nogil:
    cdef TextPiece piece
    cdef uint8_t refused
    cdef int status = text_piece(d, value, rows.fields.kinds[field], &piece, &refused)
    if status != WIRE_OK:
        return status
    if refused:
        refuse_row(rows, row, field + 1, refused)
        return WIRE_OK
    if rows.pieces[field] == NULL:
        rows.pieces[field] = <TextPiece*>arena_alloc(d.arena, rows.n, sizeof(TextPiece))
        rows.present[field] = <uint8_t*>arena_alloc(d.arena, rows.n, 1)
        if rows.pieces[field] == NULL or rows.present[field] == NULL:
            return no_room(d)
        memset(rows.present[field], 0, rows.n)
    rows.pieces[field][row] = piece
    rows.present[field][row] = 1
    return WIRE_OK


cdef int put(Decoder* d, Rows* rows, uint32_t row, uint32_t field, const Scalar* value) noexcept nogil:
    """An empty text is absent, whatever it is of."""
    if value.kind == VALUE_NONE:
        return WIRE_OK
    if rows.given_in[field] == row + 1:
        d.error.row = row
        d.error.text = rows.fields.names.names[field].text
        d.error.text_length = rows.fields.names.names[field].length
        return fail(d, WIRE_GIVEN_TWICE, d.message)
    rows.given_in[field] = row + 1
    if value.kind == VALUE_TEXT and value.length == 0:
        return WIRE_OK
    if rows.fields.kinds[field] == FIELD_NUMBER:
        return put_number(d, rows, row, field, value)
    return put_text(d, rows, row, field, value)


cdef int rows_end(Decoder* d, const Rows* rows, const Column** columns) noexcept nogil:
    cdef Column* made = <Column*>arena_alloc(d.arena, rows.fields.n_fields, sizeof(Column))
    cdef uint32_t field
    cdef int status
    if made == NULL:
        return no_room(d)
    for field in range(rows.fields.n_fields):
        if rows.pieces[field] != NULL:
            status = lay_out_texts(d, rows.pieces[field], rows.n, rows.present[field], &made[field])
            if memchr(rows.present[field], 0, rows.n) == NULL:
                made[field].present = NULL
        elif rows.numbers[field] != NULL:
            memset(&made[field], 0, sizeof(Column))
            made[field].kind = COLUMN_NUMBER
            made[field].numbers = rows.numbers[field]
            status = WIRE_OK
        else:
            status = absent_column(d, rows.fields.kinds[field] == FIELD_NUMBER, rows.n, &made[field])
        if status != WIRE_OK:
            return status
    columns[0] = made
    return WIRE_OK


cdef int take_event(Decoder* d, Cursor body, int depth, Rows* rows, uint32_t row,
                    uint32_t* position, EventTime* time) noexcept nogil:
    """An Event, or one of several that merge into one: `position` and `time` go on where the last one
    ended."""
    cdef uint32_t tag, n_fields = rows.fields.n_fields
    cdef uint64_t raw = 0
    cdef int32_t field = -1
    cdef int status
    cdef Cursor slice
    cdef Scalar value
    cdef const uint8_t* name = NULL
    cdef size_t name_length = 0
    while body.at < body.end:
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if tag == LENGTH_2:
            if not take_slice(&body, &slice):
                return fail(d, WIRE_MALFORMED, body.at)
            status = take_scalar(d, slice, True, depth + 1, &value, &name, &name_length)
            if status != WIRE_OK:
                return status
            field = name_index(&rows.fields.names, name, name_length, <uint32_t>(field + 1))
            if field < 0 and name_length == 0:
                return fail_name(d, WIRE_UNKNOWN_FIELD, name, name_length, row)
            if field < 0:
                rows.stranger = name
                rows.stranger_length = name_length
                continue
            rows.named[field] = 1
            if <uint32_t>field < n_fields:
                status = put(d, rows, row, <uint32_t>field, &value)
                if status != WIRE_OK:
                    return status
            elif value.kind != VALUE_NONE:
                if time.by_field:
                    return fail_name(d, WIRE_GIVEN_TWICE, name, name_length, row)
                time.by_field = True
                time.refused = read_time(rows.fields.time_unit, &value, &time.field_ms)
        elif tag == LENGTH_3:
            if not take_slice(&body, &slice):
                return fail(d, WIRE_MALFORMED, body.at)
            status = take_scalar(d, slice, False, depth + 1, &value, &name, &name_length)
            if status != WIRE_OK:
                return status
            if position[0] >= n_fields:
                d.error.row = row
                return fail(d, WIRE_TOO_MANY_POSITIONS, slice.at)
            rows.named[position[0]] = 1
            status = put(d, rows, row, position[0], &value)
            if status != WIRE_OK:
                return status
            position[0] += 1
        elif tag == VARINT_1:
            if not take_varint(&body, &raw):
                return fail(d, WIRE_MALFORMED, body.at)
            time.by_number = True
            time.number_ms = unzigzag(raw)
            rows.named[n_fields] = 1
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
    return WIRE_OK


cdef int end_event(Decoder* d, Rows* rows, uint32_t row, const EventTime* time,
                   int64_t* time_ms) noexcept nogil:
    cdef uint8_t refused = 0
    time_ms[0] = 0
    if time.by_number and time.by_field and time.refused != REFUSED_NO_TIME:   # which "" is, and null
        d.error.row = row
        return fail(d, WIRE_TIME_TWICE, d.message)
    if time.by_number:
        if TIME_MIN_MS <= time.number_ms <= TIME_MAX_MS:
            time_ms[0] = time.number_ms
        else:
            refused = REFUSED_TIME_RANGE
    elif time.by_field:
        refused = time.refused
        if not refused:
            time_ms[0] = time.field_ms
    else:
        refused = REFUSED_NO_TIME
    if refused:
        refuse_row(rows, row, 0, refused)
    return WIRE_OK


cdef int take_key_set(Decoder* d, Cursor body, int depth, Rows* rows, uint32_t row) noexcept nogil:
    cdef uint32_t tag
    cdef int32_t part = -1
    cdef int status
    cdef Cursor slice
    cdef Scalar value
    cdef const uint8_t* name = NULL
    cdef size_t name_length = 0
    while body.at < body.end:
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if tag == LENGTH_1:
            if not take_slice(&body, &slice):
                return fail(d, WIRE_MALFORMED, body.at)
            status = take_scalar(d, slice, True, depth + 1, &value, &name, &name_length)
            if status != WIRE_OK:
                return status
            part = name_index(&rows.fields.names, name, name_length, <uint32_t>(part + 1))
            if part < 0:
                return fail_name(d, WIRE_UNKNOWN_PART, name, name_length, row)
            status = put(d, rows, row, <uint32_t>part, &value)
            if status != WIRE_OK:
                return status
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
    return WIRE_OK


# ---- columns ----

cdef int add_chunk(Decoder* d, Chunks* chunks, const uint8_t* bytes, size_t size,
                   uint64_t n_values) noexcept nogil:
    cdef Chunk* chunk
    if size == 0:
        return WIRE_OK
    chunk = <Chunk*>arena_alloc(d.arena, 1, sizeof(Chunk))
    if chunk == NULL:
        return no_room(d)
    chunk.bytes = bytes
    chunk.size = size
    chunk.next = NULL
    if chunks.last == NULL:
        chunks.first = chunk
    else:
        chunks.last.next = chunk
    chunks.last = chunk
    chunks.n_values += n_values
    chunks.size += size
    return WIRE_OK


cdef int take_fixed64s(Decoder* d, Cursor* c, bint packed, Chunks* chunks) noexcept nogil:
    """A repeated double or sfixed64, packed or one value of it."""
    cdef Cursor slice
    cdef uint64_t ignored
    if packed:
        if not take_slice(c, &slice) or (slice.end - slice.at) % 8 != 0:
            return fail(d, WIRE_MALFORMED, c.at)
    else:
        slice.at = c.at
        if not take_fixed64(c, &ignored):
            return fail(d, WIRE_MALFORMED, c.at)
        slice.end = c.at
    return add_chunk(d, chunks, slice.at, <size_t>(slice.end - slice.at),
                     <uint64_t>(slice.end - slice.at) // 8)


cdef int take_varints(Decoder* d, Cursor* c, bint packed, Chunks* chunks) noexcept nogil:
    """A repeated uint32, packed or one value of it."""
    cdef Cursor slice
    cdef const uint8_t* start = c.at
    cdef uint64_t n_values = 0, ignored
    if not packed:
        if not take_varint(c, &ignored):
            return fail(d, WIRE_MALFORMED, c.at)
        return add_chunk(d, chunks, start, <size_t>(c.at - start), 1)
    if not take_slice(c, &slice):
        return fail(d, WIRE_MALFORMED, c.at)
    start = slice.at
    while slice.at < slice.end:
        if not take_varint(&slice, &ignored):
            return fail(d, WIRE_MALFORMED, slice.at)
        n_values += 1
    return add_chunk(d, chunks, start, <size_t>(slice.end - start), n_values)


cdef const uint8_t* joined(Decoder* d, const Chunks* chunks) noexcept nogil:
    """The pieces back to back: in the message if there is one (not aligned), else a copy. NULL: no room."""
    cdef const Chunk* chunk = chunks.first
    cdef uint8_t* copy
    cdef size_t at = 0
    if chunk != NULL and chunk.next == NULL:
        return chunk.bytes
    copy = <uint8_t*>arena_alloc(d.arena, chunks.size, 1)
    if copy == NULL:
        return NULL
    while chunk != NULL:
        memcpy(copy + at, chunk.bytes, chunk.size)
        at += chunk.size
        chunk = chunk.next
    return copy


cdef int scan_values(Decoder* d, Cursor body, int kind, int depth, NamedScan* scan) noexcept nogil:
    """A TextColumn, NumberColumn or IntegerColumn."""
    cdef bint texts = kind == VALUE_TEXT
    cdef uint32_t tag, present_tag = LENGTH_3 if texts else LENGTH_2
    cdef int status
    while body.at < body.end:
        status = WIRE_OK
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if not texts and (tag == LENGTH_1 or tag == FIXED64_1):
            status = take_fixed64s(d, &body, tag == LENGTH_1, &scan.values)
        elif texts and (tag == LENGTH_2 or tag == VARINT_2):
            status = take_varints(d, &body, tag == LENGTH_2, &scan.values)
        elif texts and tag == LENGTH_1:
            if not take_slice(&body, &scan.data):
                return fail(d, WIRE_MALFORMED, body.at)
        elif tag == present_tag:
            if not take_slice(&body, &scan.present):
                return fail(d, WIRE_MALFORMED, body.at)
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
        if status != WIRE_OK:
            return status
    return WIRE_OK


cdef int scan_column(Decoder* d, Cursor body, int depth, Scans* scans) noexcept nogil:
    """A NamedColumn. Its members are a oneof: the same one again merges, another one takes its place."""
    cdef NamedScan* scan = <NamedScan*>arena_alloc(d.arena, 1, sizeof(NamedScan))
    cdef uint32_t tag
    cdef int kind, status
    cdef Cursor slice
    if scan == NULL:
        return no_room(d)
    memset(scan, 0, sizeof(NamedScan))
    scan.name = body.at
    while body.at < body.end:
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if tag == LENGTH_1:
            status = take_text(d, &body, &scan.name, &scan.name_length)
            if status != WIRE_OK:
                return status
        elif tag == LENGTH_2 or tag == LENGTH_3 or tag == LENGTH_4:
            kind = VALUE_TEXT if tag == LENGTH_2 else VALUE_NUMBER if tag == LENGTH_3 else VALUE_INTEGER
            if not take_slice(&body, &slice):
                return fail(d, WIRE_MALFORMED, body.at)
            if kind != scan.kind:
                memset(&scan.values, 0, sizeof(Chunks))
                memset(&scan.data, 0, sizeof(Cursor))
                memset(&scan.present, 0, sizeof(Cursor))
                scan.kind = kind
            status = scan_values(d, slice, kind, depth + 1, scan)
            if status != WIRE_OK:
                return status
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
    if scans.last == NULL:
        scans.first = scan
    else:
        scans.last.next = scan
    scans.last = scan
    return WIRE_OK


cdef int scan_columns(Decoder* d, Cursor body, bint events, int depth, Chunks* times,
                      Scans* scans) noexcept nogil:
    """An EventColumns (times, then columns) or a KeyColumns (columns only)."""
    cdef uint32_t tag, column_tag = LENGTH_2 if events else LENGTH_1
    cdef int status
    cdef Cursor slice
    while body.at < body.end:
        status = WIRE_OK
        if not take_tag(&body, &tag):
            return fail(d, WIRE_MALFORMED, body.at)
        if tag == column_tag:
            if not take_slice(&body, &slice):
                return fail(d, WIRE_MALFORMED, body.at)
            status = scan_column(d, slice, depth + 1, scans)
        elif events and (tag == LENGTH_1 or tag == FIXED64_1):
            status = take_fixed64s(d, &body, tag == LENGTH_1, times)
        elif not skip(&body, tag, depth):
            return fail(d, WIRE_MALFORMED, body.at)
        if status != WIRE_OK:
            return status
    return WIRE_OK


cdef int fail_scan(Decoder* d, int code, const NamedScan* scan, uint32_t row) noexcept nogil:
    return fail_name(d, code, scan.name, scan.name_length, row)


cdef int count_rows(Decoder* d, const Chunks* times, const Scans* scans, uint32_t* n) noexcept nogil:
    """What all columns that are given agree on; 0 if none is."""
    cdef const NamedScan* scan = scans.first
    cdef uint64_t rows = times.n_values
    cdef bint known = times.n_values != 0
    while scan != NULL:
        if scan.kind != VALUE_NONE:
            if known and scan.values.n_values != rows:
                return fail_scan(d, WIRE_LENGTHS_DIFFER, scan, 0)
            rows = scan.values.n_values
            known = True
        scan = scan.next
    if rows > d.tables.max_rows:
        return fail(d, WIRE_TOO_MANY_ROWS, d.message)
    n[0] = <uint32_t>rows
    return WIRE_OK


cdef int spread_bitmap(Decoder* d, const NamedScan* scan, uint32_t n, uint8_t** present) noexcept nogil:
    """One byte per row from one bit per row; NULL where all are given."""
    cdef const uint8_t* bits = scan.present.at
    cdef uint32_t i
    cdef uint8_t everything = 1
    present[0] = NULL
    if scan.present.at == scan.present.end:
        return WIRE_OK
    if <uint64_t>(scan.present.end - bits) < (<uint64_t>n + 7) // 8:
        return fail_scan(d, WIRE_BAD_COLUMN, scan, n)
    present[0] = <uint8_t*>arena_alloc(d.arena, n, 1)
    if present[0] == NULL:
        return no_room(d)
    for i in range(n):
        present[0][i] = (bits[i >> 3] >> (i & 7)) & 1
        everything &= present[0][i]
    if everything:
        present[0] = NULL
    return WIRE_OK


cdef int read_offsets(Decoder* d, const NamedScan* scan, uint32_t n, const uint8_t* present,
                      const uint32_t** offsets) noexcept nogil:
    """Offsets from lengths, held against the data: they end with it, cut no character, and absent texts are
    empty."""
    cdef Cursor lengths
    cdef uint32_t* made = <uint32_t*>arena_alloc(d.arena, <size_t>n + 1, sizeof(uint32_t))
    cdef const uint8_t* data = scan.data.at
    cdef uint64_t size = <uint64_t>(scan.data.end - data), end = 0, length = 0
    cdef uint32_t i
    lengths.at = joined(d, &scan.values)
    if made == NULL or lengths.at == NULL:
        return no_room(d)
    lengths.end = lengths.at + scan.values.size
    if not is_utf8(data, size):
        return fail_scan(d, WIRE_BAD_UTF8, scan, n)
    made[0] = 0
    for i in range(n):
        if not take_varint(&lengths, &length):
            return fail_scan(d, WIRE_MALFORMED, scan, i)
        length &= 0xFFFFFFFFu
        if length > size - end or (length != 0 and present != NULL and not present[i]):
            return fail_scan(d, WIRE_BAD_COLUMN, scan, i)
        end += length
        if end < size and data[end] & 0xC0 == 0x80:
            return fail_scan(d, WIRE_BAD_UTF8, scan, i)
        made[i + 1] = <uint32_t>end
    if end != size:
        return fail_scan(d, WIRE_BAD_COLUMN, scan, n)
    offsets[0] = made
    return WIRE_OK


cdef int fill_numbers(Decoder* d, const NamedScan* scan, uint32_t n, const uint8_t* present, Column* out,
                      const Verdicts* verdicts) noexcept nogil:
    """A number field from numbers or integers."""
    cdef const uint8_t* raw = joined(d, &scan.values)
    cdef double* numbers = <double*>arena_alloc(d.arena, n, sizeof(double))
    cdef int64_t integer
    cdef uint32_t i
    if raw == NULL or numbers == NULL:
        return no_room(d)
    if scan.kind == VALUE_NUMBER:
        memcpy(numbers, raw, <size_t>n * 8)
        for i in range(n):
            if present != NULL and not present[i]:
                numbers[i] = NAN
            elif not isfinite(numbers[i]):
                refuse(verdicts, i, REFUSED_NOT_FINITE)
    else:
        for i in range(n):
            memcpy(&integer, raw + <size_t>i * 8, 8)
            numbers[i] = <double>integer if present == NULL or present[i] else NAN
    out.kind = COLUMN_NUMBER
    out.numbers = numbers
    return WIRE_OK


cdef int fill_texts(Decoder* d, const NamedScan* scan, uint8_t field_kind, uint32_t n, const uint8_t* present,
                    Column* out, const Verdicts* verdicts) noexcept nogil:
    """A key or string field from numbers or integers: their decimal texts."""
    cdef const uint8_t* raw = joined(d, &scan.values)
    cdef TextPiece* pieces = <TextPiece*>arena_alloc(d.arena, n, sizeof(TextPiece))
    cdef Scalar value
    cdef uint8_t refused
    cdef uint32_t i
    cdef int status
    if raw == NULL or pieces == NULL:
        return no_room(d)
    memset(&value, 0, sizeof(Scalar))
    value.kind = scan.kind
    for i in range(n):
        if present != NULL and not present[i]:
            continue
        if scan.kind == VALUE_INTEGER:
            memcpy(&value.integer, raw + <size_t>i * 8, 8)
        else:
            memcpy(&value.number, raw + <size_t>i * 8, 8)
        status = text_piece(d, &value, field_kind, &pieces[i], &refused)
        if status != WIRE_OK:
            return status
        if refused:
            refuse(verdicts, i, refused)
            pieces[i].number = 0
    return lay_out_texts(d, pieces, n, present, out)


cdef int absent_where_empty(Decoder* d, const uint32_t* offsets, uint32_t n,
                            uint8_t** present) noexcept nogil:
    """Marks empty texts as absent."""
    cdef uint32_t i
    for i in range(n):
        if offsets[i + 1] != offsets[i] or (present[0] != NULL and not present[0][i]):
            continue
        if present[0] == NULL:
            present[0] = <uint8_t*>arena_alloc(d.arena, n, 1)
            if present[0] == NULL:
                return no_room(d)
            memset(present[0], 1, n)
        present[0][i] = 0
    return WIRE_OK


cdef int fill_said_numbers(Decoder* d, const uint8_t* bytes, const uint32_t* offsets, uint32_t n,
                           const uint8_t* present, Column* out, const Verdicts* verdicts) noexcept nogil:
    """A number field from texts."""
    cdef double* numbers = <double*>arena_alloc(d.arena, n, sizeof(double))
    cdef uint32_t i
    if numbers == NULL:
        return no_room(d)
    for i in range(n):
        numbers[i] = NAN
        if present != NULL and not present[i]:
            continue
        if not text_number(bytes + offsets[i], offsets[i + 1] - offsets[i], True, &numbers[i]):
            refuse(verdicts, i, REFUSED_TYPE)
        elif not isfinite(numbers[i]):
            refuse(verdicts, i, REFUSED_NOT_FINITE)
    memset(out, 0, sizeof(Column))
    out.kind = COLUMN_NUMBER
    out.numbers = numbers
    return WIRE_OK


cdef int cut_texts(Decoder* d, const uint8_t* bytes, const uint32_t* offsets, uint32_t n,
                   const uint8_t* present, Column* out) noexcept nogil:
    """A string field of texts some of which are too long, and cut."""
    cdef TextPiece* pieces = <TextPiece*>arena_alloc(d.arena, n, sizeof(TextPiece))
    cdef uint32_t i
    if pieces == NULL:
        return no_room(d)
    for i in range(n):
        pieces[i].text = bytes + offsets[i]
        pieces[i].number = offsets[i + 1] - offsets[i]
        if pieces[i].number > MAX_TEXT_BYTES:
            pieces[i].number = cut_length(pieces[i].text)
    return lay_out_texts(d, pieces, n, present, out)


cdef int fill_column(Decoder* d, const NamedScan* scan, uint8_t field_kind, uint32_t n, Column* out,
                     const Verdicts* verdicts) noexcept nogil:
    """Column `out` of a field of `field_kind` from what was sent for it; values that do not suit refuse their
    row."""
    cdef uint8_t* present = NULL
    cdef const uint32_t* offsets = NULL
    cdef uint32_t i
    cdef int status = spread_bitmap(d, scan, n, &present)
    if status != WIRE_OK:
        return status
    if scan.kind == VALUE_TEXT:
        status = read_offsets(d, scan, n, present, &offsets)
        if status == WIRE_OK:
            status = absent_where_empty(d, offsets, n, &present)
        if status != WIRE_OK:
            return status
        if field_kind == FIELD_NUMBER:
            return fill_said_numbers(d, scan.data.at, offsets, n, present, out, verdicts)
        for i in range(n):
            if offsets[i + 1] - offsets[i] > MAX_TEXT_BYTES:
                if field_kind == FIELD_STRING:
                    return cut_texts(d, scan.data.at, offsets, n, present, out)
                refuse(verdicts, i, REFUSED_KEY_TOO_LONG)
        memset(out, 0, sizeof(Column))
        out.kind = COLUMN_TEXT
        out.offsets = offsets
        out.bytes = <const char*>scan.data.at if scan.data.at != NULL else <const char*>offsets
        out.present = present
        return WIRE_OK
    if field_kind == FIELD_NUMBER:
        memset(out, 0, sizeof(Column))
        return fill_numbers(d, scan, n, present, out, verdicts)
    return fill_texts(d, scan, field_kind, n, present, out, verdicts)


cdef int fill_times(Decoder* d, const NamedScan* scan, uint8_t unit, uint32_t n, int64_t* times,
                    const Verdicts* verdicts) noexcept nogil:
    """Times from the column of the event type's time field."""
    cdef uint8_t* present = NULL
    cdef const uint32_t* offsets = NULL
    cdef const uint8_t* raw = NULL
    cdef Scalar value
    cdef uint8_t refused
    cdef uint32_t i
    cdef int status = spread_bitmap(d, scan, n, &present)
    if status != WIRE_OK:
        return status
    if scan.kind == VALUE_TEXT:
        status = read_offsets(d, scan, n, present, &offsets)
        if status != WIRE_OK:
            return status
    else:
        raw = joined(d, &scan.values)
        if raw == NULL:
            return no_room(d)
    memset(&value, 0, sizeof(Scalar))
    value.kind = scan.kind
    for i in range(n):
        times[i] = 0
        if present != NULL and not present[i]:
            refuse(verdicts, i, REFUSED_NO_TIME)
            continue
        if scan.kind == VALUE_TEXT:
            value.text = scan.data.at + offsets[i] if scan.data.at != NULL else NULL
            value.length = offsets[i + 1] - offsets[i]
        elif scan.kind == VALUE_INTEGER:
            memcpy(&value.integer, raw + <size_t>i * 8, 8)
        else:
            memcpy(&value.number, raw + <size_t>i * 8, 8)
        refused = read_time(unit, &value, &times[i])
        if refused:
            times[i] = 0
            refuse(verdicts, i, refused)
    return WIRE_OK


cdef int copy_times(Decoder* d, const Chunks* sent, uint32_t n, int64_t* times,
                    const Verdicts* verdicts) noexcept nogil:
    """Times from times_ms."""
    cdef const uint8_t* raw = joined(d, sent)
    cdef uint32_t i
    if raw == NULL:
        return no_room(d)
    memcpy(times, raw, <size_t>n * 8)
    for i in range(n):
        if not TIME_MIN_MS <= times[i] <= TIME_MAX_MS:
            times[i] = 0
            refuse(verdicts, i, REFUSED_TIME_RANGE)
    return WIRE_OK


cdef int fill_columns(Decoder* d, const FieldTable* fields, int unknown, const Chunks* sent_times,
                      const Scans* scans, uint32_t n, int64_t* times, uint8_t* outcomes, uint16_t* refused_by,
                      const Column** columns) noexcept nogil:
    """All columns of `fields`, and `times` unless it is NULL. `unknown`: the status for a name not among
    them, which is passed over in events that have all of `fields`."""
    cdef uint32_t field, n_fields = fields.n_fields
    cdef Verdicts verdicts
    cdef Column* made = <Column*>arena_alloc(d.arena, n_fields, sizeof(Column))
    # By field, the time field last.
    cdef const NamedScan** given = <const NamedScan**>arena_alloc(d.arena, <size_t>n_fields + 1,
                                                                  sizeof(void*))
    cdef uint8_t* named = <uint8_t*>arena_alloc(d.arena, <size_t>n_fields + 1, 1)
    cdef const NamedScan* scan = scans.first
    cdef const NamedScan* stranger = NULL
    cdef int32_t found = -1
    cdef int status = WIRE_OK
    if made == NULL or given == NULL or named == NULL:
        return no_room(d)
    memset(named, 0, <size_t>n_fields + 1)
    memset(given, 0, (<size_t>n_fields + 1) * sizeof(void*))
    memset(outcomes, OUTCOME_ACCEPTED, n)
    verdicts.outcomes = outcomes
    verdicts.refused_by = refused_by
    verdicts.field = <uint16_t>n_fields
    while scan != NULL:
        found = name_index(&fields.names, scan.name, scan.name_length, <uint32_t>(found + 1))
        if found < 0 and (times == NULL or scan.name_length == 0):
            return fail_scan(d, unknown, scan, 0)
        if found < 0:
            stranger = scan
            scan = scan.next
            continue
        named[found] = 1
        if scan.kind != VALUE_NONE:
            if given[found] != NULL:
                return fail_scan(d, WIRE_GIVEN_TWICE, scan, 0)
            given[found] = scan
        scan = scan.next
    if stranger != NULL and n != 0:  # of no events, there is none that could lack a field
        named[n_fields] |= sent_times.n_values != 0
        status = check_stranger(d, fields, named, stranger.name, stranger.name_length)
        if status != WIRE_OK:
            return status
    if times != NULL:
        if given[n_fields] != NULL and sent_times.n_values != 0:
            return fail_scan(d, WIRE_TIME_TWICE, given[n_fields], 0)
        if given[n_fields] != NULL:
            status = fill_times(d, given[n_fields], fields.time_unit, n, times, &verdicts)
        elif sent_times.n_values != 0:
            status = copy_times(d, sent_times, n, times, &verdicts)
        else:
            memset(times, 0, <size_t>n * 8)
            for field in range(n):
                refuse(&verdicts, field, REFUSED_NO_TIME)
    for field in range(n_fields):
        if status != WIRE_OK:
            return status
        if given[field] != NULL:
            verdicts.field = <uint16_t>field
            status = fill_column(d, given[field], fields.kinds[field], n, &made[field], &verdicts)
        else:
            status = absent_column(d, fields.kinds[field] == FIELD_NUMBER, n, &made[field])
    columns[0] = made
    return status


# ---- requests ----

cdef int begin(Decoder* d, const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
               bint streamed, WireError* error, Cursor* body) noexcept nogil:
    """Checks the size and takes off the stream's wrapper: `body` is then the request itself."""
    cdef Cursor c
    cdef Cursor slice
    cdef Chunks pieces
    cdef uint32_t tag
    cdef int status
    memset(d, 0, sizeof(Decoder))
    memset(error, 0, sizeof(WireError))
    memset(&pieces, 0, sizeof(Chunks))
    error.event = -1
    d.tables = tables
    d.arena = arena
    d.error = error
    d.message = message
    c.at = message
    c.end = message + size
    body[0] = c
    if size > tables.max_message_bytes:
        return fail(d, WIRE_TOO_LARGE, message)
    if not streamed:
        return WIRE_OK
    while c.at < c.end:
        if not take_tag(&c, &tag):
            return fail(d, WIRE_MALFORMED, c.at)
        if tag == LENGTH_1:
            if not take_slice(&c, &slice):
                return fail(d, WIRE_MALFORMED, c.at)
            status = add_chunk(d, &pieces, slice.at, <size_t>(slice.end - slice.at), 1)
            if status != WIRE_OK:
                return status
        elif not skip(&c, tag, 0):
            return fail(d, WIRE_MALFORMED, c.at)
    body.at = c.end
    if pieces.n_values == 0:
        return WIRE_OK
    if pieces.n_values > 1:
        status = check_pieces(d, &pieces)
        if status != WIRE_OK:
            return status
    body.at = joined(d, &pieces)
    if body.at == NULL:
        return no_room(d)
    body.end = body.at + pieces.size
    if pieces.n_values > 1:
        d.message = body.at
    return WIRE_OK


cdef int check_pieces(Decoder* d, const Chunks* pieces) noexcept nogil:
    """Sub-messages sent twice merge, and joining their bytes does that; but each must be whole by itself."""
    cdef const Chunk* chunk = pieces.first
    cdef Cursor c
    cdef uint32_t tag
    while chunk != NULL:
        c.at = chunk.bytes
        c.end = chunk.bytes + chunk.size
        while c.at < c.end:
            if not take_tag(&c, &tag) or not skip(&c, tag, 1):
                return fail(d, WIRE_MALFORMED, c.at)
        chunk = chunk.next
    return WIRE_OK


cdef int find_event(Decoder* d, const uint8_t* name, size_t length, IngestCall* call) noexcept nogil:
    cdef int32_t event = name_index(&d.tables.event_names, name, length, 0)
    if event < 0:
        return fail_name(d, WIRE_UNKNOWN_EVENT, name, length, 0)
    d.error.event = event
    call.batch.event = <uint16_t>event
    call.batch.n_columns = <uint16_t>d.tables.events[event].n_fields
    if call.producer_length > MAX_PRODUCER_BYTES:
        return fail(d, WIRE_PRODUCER_TOO_LONG, call.producer)
    return WIRE_OK


cdef int find_service(Decoder* d, const uint8_t* name, size_t length, bint has_fingerprint,
                      uint64_t fingerprint, int32_t* service) noexcept nogil:
    """The service as it is, or as it was where the request has the fingerprint of that."""
    service[0] = name_index(&d.tables.service_names, name, length, 0)
    if service[0] < 0 or (d.tables.services[service[0]].is_gone and not has_fingerprint):
        return fail_name(d, WIRE_UNKNOWN_SERVICE, name, length, 0)
    while has_fingerprint and d.tables.services[service[0]].fingerprint != fingerprint:
        service[0] = <int32_t>d.tables.services[service[0]].older
        if service[0] == 0:
            d.error.fingerprint = fingerprint
            return fail_name(d, WIRE_FINGERPRINT, name, length, 0)
    return WIRE_OK


cdef int set_ack(Decoder* d, uint64_t raw, uint8_t* ack, const uint8_t* at) noexcept nogil:
    if <int32_t>raw != ACK_DEFAULT and <int32_t>raw != ACK_APPLIED and <int32_t>raw != ACK_DURABLE:
        return fail(d, WIRE_UNKNOWN_ACK, at)
    ack[0] = <uint8_t>raw
    return WIRE_OK


cdef int wire_decode_observe(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                             ObserveCall* call, WireError* error) noexcept nogil:
    cdef Decoder d
    cdef Cursor c
    cdef Cursor slice
    cdef Cursor again                    # from the first event on
    cdef uint32_t tag, n_events = 0, position = 0
    cdef uint64_t raw = 0, ack = 0, fingerprint = 0
    cdef bint has_fingerprint = False
    cdef const uint8_t* event_name = message
    cdef const uint8_t* service = message
    cdef size_t event_name_length = 0, service_length = 0
    cdef Rows rows
    cdef EventTime time
    cdef int64_t* times
    cdef int status
    memset(call, 0, sizeof(ObserveCall))
    memset(&time, 0, sizeof(EventTime))
    call.service = -1
    status = begin(&d, tables, arena, message, size, False, error, &c)
    if status != WIRE_OK:
        return status
    again = c
    while c.at < c.end:
        status = WIRE_OK
        if n_events == 0:
            again.at = c.at
        if not take_tag(&c, &tag):
            return fail(&d, WIRE_MALFORMED, c.at)
        if tag == LENGTH_1:
            status = take_text(&d, &c, &event_name, &event_name_length)
        elif tag == LENGTH_2:
            if not take_slice(&c, &slice):
                return fail(&d, WIRE_MALFORMED, c.at)
            n_events += 1
        elif tag == LENGTH_3:
            status = take_text(&d, &c, &service, &service_length)
        elif tag == LENGTH_9:
            status = take_text(&d, &c, &call.write.producer, &call.write.producer_length)
        elif tag == FIXED64_8:
            has_fingerprint = take_fixed64(&c, &fingerprint)
            if not has_fingerprint:
                return fail(&d, WIRE_MALFORMED, c.at)
        elif (VARINT_4 <= tag <= VARINT_7 or tag == VARINT_10 or tag == VARINT_11) and tag & 7 == 0:
            if not take_varint(&c, &raw):
                return fail(&d, WIRE_MALFORMED, c.at)
            if tag == VARINT_4:
                call.peek = raw != 0
            elif tag == VARINT_5:
                ack = raw
            elif tag == VARINT_6:
                call.bounds = raw != 0
            elif tag == VARINT_7:
                call.coverage = raw != 0
            elif tag == VARINT_10:
                call.write.epoch = raw
            else:
                call.write.sequence = raw
        elif not skip(&c, tag, 0):
            return fail(&d, WIRE_MALFORMED, c.at)
        if status != WIRE_OK:
            return status

    status = set_ack(&d, ack, &call.write.ack, message)
    if status == WIRE_OK:
        status = find_event(&d, event_name, event_name_length, &call.write)
    if status == WIRE_OK and service_length != 0:
        status = find_service(&d, service, service_length, has_fingerprint, fingerprint, &call.service)
    if status == WIRE_OK:
        status = rows_begin(&d, &rows, &tables.events[call.write.batch.event], 1)
    if status != WIRE_OK:
        return status
    times = <int64_t*>arena_alloc(arena, 1, sizeof(int64_t))
    if times == NULL:
        return no_room(&d)
    while n_events != 0:
        if not take_tag(&again, &tag):
            return fail(&d, WIRE_MALFORMED, again.at)
        if tag != LENGTH_2:
            if not skip(&again, tag, 0):
                return fail(&d, WIRE_MALFORMED, again.at)
            continue
        if not take_slice(&again, &slice):
            return fail(&d, WIRE_MALFORMED, again.at)
        status = take_event(&d, slice, 1, &rows, 0, &position, &time)
        if status != WIRE_OK:
            return status
        n_events -= 1
    status = end_event(&d, &rows, 0, &time, times)
    if status == WIRE_OK:
        status = check_stranger(&d, rows.fields, rows.named, rows.stranger, rows.stranger_length)
    if status != WIRE_OK:
        return status
    call.write.batch.n_events = 1
    call.write.batch.times = times
    call.write.batch.outcomes = rows.outcomes
    call.write.refused_by = rows.refused_by
    return rows_end(&d, &rows, &call.write.batch.columns)


cdef int ingest_rows(Decoder* d, Cursor again, int depth, uint32_t n, IngestCall* call) noexcept nogil:
    """The n rows of an IngestRequest of which `again` is what follows from the first row on."""
    cdef Rows rows
    cdef EventTime time
    cdef Cursor slice
    cdef uint32_t tag, position, row = 0
    cdef Batch* batch = &call.batch
    cdef int64_t* times = <int64_t*>arena_alloc(d.arena, n, sizeof(int64_t))
    cdef int status = rows_begin(d, &rows, &d.tables.events[batch.event], n)
    if status != WIRE_OK:
        return status
    if times == NULL:
        return no_room(d)
    while row < n:
        if not take_tag(&again, &tag):
            return fail(d, WIRE_MALFORMED, again.at)
        if tag != LENGTH_6:
            if not skip(&again, tag, depth):
                return fail(d, WIRE_MALFORMED, again.at)
            continue
        if not take_slice(&again, &slice):
            return fail(d, WIRE_MALFORMED, again.at)
        memset(&time, 0, sizeof(EventTime))
        position = 0
        status = take_event(d, slice, depth + 1, &rows, row, &position, &time)
        if status == WIRE_OK:
            status = end_event(d, &rows, row, &time, &times[row])
        if status != WIRE_OK:
            return status
        row += 1
    status = check_stranger(d, rows.fields, rows.named, rows.stranger, rows.stranger_length)
    if status != WIRE_OK:
        return status
    batch.n_events = n
    batch.times = times
    batch.outcomes = rows.outcomes
    call.refused_by = rows.refused_by
    return rows_end(d, &rows, &batch.columns)


cdef int ingest_columns(Decoder* d, const Chunks* sent_times, const Scans* scans,
                        IngestCall* call) noexcept nogil:
    cdef Batch* batch = &call.batch
    cdef uint16_t* refused_by
    cdef uint32_t n = 0
    cdef int64_t* times
    cdef int status = count_rows(d, sent_times, scans, &n)
    if status != WIRE_OK:
        return status
    times = <int64_t*>arena_alloc(d.arena, n, sizeof(int64_t))
    batch.outcomes = <uint8_t*>arena_alloc(d.arena, n, 1)
    refused_by = <uint16_t*>arena_alloc(d.arena, n, sizeof(uint16_t))
    if times == NULL or batch.outcomes == NULL or refused_by == NULL:
        return no_room(d)
    call.refused_by = refused_by
    batch.n_events = n
    batch.times = times
    return fill_columns(d, &d.tables.events[batch.event], WIRE_UNKNOWN_FIELD, sent_times, scans, n, times,
                        batch.outcomes, refused_by, &batch.columns)


cdef int wire_decode_ingest(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                            bint streamed, IngestCall* call, WireError* error) noexcept nogil:
    cdef Decoder d
    cdef Cursor c
    cdef Cursor slice
    cdef Cursor again                    # from the first row on
    cdef uint32_t tag
    cdef uint64_t n_rows = 0, ack = 0
    cdef uint64_t* number
    cdef bint has_columns = False
    cdef int depth = 1 if streamed else 0
    cdef const uint8_t* event_name = message
    cdef size_t event_name_length = 0
    cdef Chunks times
    cdef Scans scans
    cdef int status
    memset(call, 0, sizeof(IngestCall))
    memset(&times, 0, sizeof(Chunks))
    memset(&scans, 0, sizeof(Scans))
    status = begin(&d, tables, arena, message, size, streamed, error, &c)
    if status != WIRE_OK:
        return status
    again = c
    while c.at < c.end:
        status = WIRE_OK
        if n_rows == 0:
            again.at = c.at
        if not take_tag(&c, &tag):
            return fail(&d, WIRE_MALFORMED, c.at)
        if tag == LENGTH_6:
            if not take_slice(&c, &slice):
                return fail(&d, WIRE_MALFORMED, c.at)
            n_rows += 1
        elif tag == LENGTH_7:
            if not take_slice(&c, &slice):
                return fail(&d, WIRE_MALFORMED, c.at)
            has_columns = True
            status = scan_columns(&d, slice, True, depth + 1, &times, &scans)
        elif tag == LENGTH_1:
            status = take_text(&d, &c, &event_name, &event_name_length)
        elif tag == LENGTH_2:
            status = take_text(&d, &c, &call.producer, &call.producer_length)
        elif tag == VARINT_3 or tag == VARINT_4 or tag == VARINT_5 or tag == VARINT_8:
            number = (&call.epoch if tag == VARINT_3 else &call.sequence if tag == VARINT_4
                      else &ack if tag == VARINT_5 else &call.max_refusals)
            if not take_varint(&c, number):
                return fail(&d, WIRE_MALFORMED, c.at)
        elif not skip(&c, tag, depth):
            return fail(&d, WIRE_MALFORMED, c.at)
        if status != WIRE_OK:
            return status

    status = set_ack(&d, ack, &call.ack, message)
    if status == WIRE_OK:
        status = find_event(&d, event_name, event_name_length, call)
    if status != WIRE_OK:
        return status
    if n_rows != 0 and has_columns:
        return fail(&d, WIRE_ROWS_AND_COLUMNS, again.at)
    if n_rows > tables.max_rows:
        return fail(&d, WIRE_TOO_MANY_ROWS, again.at)
    if n_rows != 0:
        return ingest_rows(&d, again, depth, <uint32_t>n_rows, call)
    return ingest_columns(&d, &times, &scans, call)


cdef int read_key_sets(Decoder* d, Cursor again, int depth, uint32_t n, uint8_t** outcomes,
                       const Column** columns) noexcept nogil:
    """The n key sets of a GetFeaturesRequest of which `again` is what follows from the first on."""
    cdef Rows rows
    cdef Cursor slice
    cdef uint32_t tag, row = 0
    cdef int status = rows_begin(d, &rows, &d.tables.parts, n)
    if status != WIRE_OK:
        return status
    while row < n:
        if not take_tag(&again, &tag):
            return fail(d, WIRE_MALFORMED, again.at)
        if tag != LENGTH_2:
            if not skip(&again, tag, depth):
                return fail(d, WIRE_MALFORMED, again.at)
            continue
        if not take_slice(&again, &slice):
            return fail(d, WIRE_MALFORMED, again.at)
        status = take_key_set(d, slice, depth + 1, &rows, row)
        if status != WIRE_OK:
            return status
        row += 1
    outcomes[0] = rows.outcomes
    return rows_end(d, &rows, columns)


cdef int read_as_of(Decoder* d, bint has_one, int64_t one, const Chunks* each, ReadCall* call) noexcept nogil:
    cdef int64_t* times
    cdef const uint8_t* raw = NULL
    cdef uint32_t i
    if not has_one and each.n_values == 0:
        return WIRE_OK
    if has_one and each.n_values != 0:
        return fail(d, WIRE_AS_OF_TWICE, d.message)
    if not has_one and each.n_values != call.n:
        return fail(d, WIRE_LENGTHS_DIFFER, d.message)
    times = <int64_t*>arena_alloc(d.arena, call.n, sizeof(int64_t))
    if not has_one:
        raw = joined(d, each)
    if times == NULL or (not has_one and raw == NULL):
        return no_room(d)
    # One time for all is checked even when there is nobody to read.
    if has_one and not TIME_MIN_MS <= one <= TIME_MAX_MS:
        return fail(d, WIRE_AS_OF_RANGE, d.message)
    for i in range(call.n):
        if has_one:
            times[i] = one
        else:
            memcpy(&times[i], raw + <size_t>i * 8, 8)
            if not TIME_MIN_MS <= times[i] <= TIME_MAX_MS:
                d.error.row = i
                return fail(d, WIRE_AS_OF_RANGE, d.message)
    call.as_of = times
    return WIRE_OK


cdef int wire_decode_read(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                          bint streamed, ReadCall* call, WireError* error) noexcept nogil:
    cdef Decoder d
    cdef Cursor c
    cdef Cursor slice
    cdef Cursor again                    # from the first key set on
    cdef uint32_t tag, i
    cdef uint64_t raw = 0, n_rows = 0, fingerprint = 0
    cdef bint has_columns = False, has_as_of = False, has_fingerprint = False
    cdef int depth = 1 if streamed else 0
    cdef int64_t as_of = 0
    cdef const uint8_t* service = message
    cdef size_t service_length = 0
    cdef Chunks each
    cdef Chunks none
    cdef Scans scans
    cdef uint8_t* outcomes = NULL
    cdef uint16_t* refused_by
    cdef int status
    memset(call, 0, sizeof(ReadCall))
    memset(&each, 0, sizeof(Chunks))
    memset(&none, 0, sizeof(Chunks))
    memset(&scans, 0, sizeof(Scans))
    call.service = -1
    status = begin(&d, tables, arena, message, size, streamed, error, &c)
    if status != WIRE_OK:
        return status
    again = c
    while c.at < c.end:
        status = WIRE_OK
        if n_rows == 0:
            again.at = c.at
        if not take_tag(&c, &tag):
            return fail(&d, WIRE_MALFORMED, c.at)
        if tag == LENGTH_1:
            status = take_text(&d, &c, &service, &service_length)
        elif tag == LENGTH_2:
            if not take_slice(&c, &slice):
                return fail(&d, WIRE_MALFORMED, c.at)
            n_rows += 1
        elif tag == LENGTH_3:
            if not take_slice(&c, &slice):
                return fail(&d, WIRE_MALFORMED, c.at)
            has_columns = True
            status = scan_columns(&d, slice, False, depth + 1, &none, &scans)
        elif tag == LENGTH_5 or tag == FIXED64_5:
            status = take_fixed64s(&d, &c, tag == LENGTH_5, &each)
        elif tag == VARINT_4 or tag == VARINT_6 or tag == VARINT_7:
            if not take_varint(&c, &raw):
                return fail(&d, WIRE_MALFORMED, c.at)
            if tag == VARINT_4:
                has_as_of = True
                as_of = unzigzag(raw)
            elif tag == VARINT_6:
                call.bounds = raw != 0
            else:
                call.coverage = raw != 0
        elif tag == FIXED64_8:
            has_fingerprint = take_fixed64(&c, &fingerprint)
            if not has_fingerprint:
                return fail(&d, WIRE_MALFORMED, c.at)
        elif not skip(&c, tag, depth):
            return fail(&d, WIRE_MALFORMED, c.at)
        if status != WIRE_OK:
            return status

    status = find_service(&d, service, service_length, has_fingerprint, fingerprint, &call.service)
    if status != WIRE_OK:
        return status
    if n_rows != 0 and has_columns:
        return fail(&d, WIRE_ROWS_AND_COLUMNS, again.at)
    if n_rows > tables.max_rows or each.n_values > tables.max_rows:
        return fail(&d, WIRE_TOO_MANY_ROWS, again.at)
    if n_rows != 0:
        call.n = <uint32_t>n_rows
    else:
        status = count_rows(&d, &each, &scans, &call.n)
        if status != WIRE_OK:
            return status
    if <uint64_t>call.n * tables.services[call.service].width > tables.max_values:
        return fail(&d, WIRE_TOO_MANY_VALUES, again.at)
    status = read_as_of(&d, has_as_of, as_of, &each, call)
    if status != WIRE_OK:
        return status
    call.n_parts = tables.parts.n_fields
    if n_rows != 0:
        status = read_key_sets(&d, again, depth, call.n, &outcomes, &call.parts)
    else:
        outcomes = <uint8_t*>arena_alloc(arena, call.n, 1)
        refused_by = <uint16_t*>arena_alloc(arena, call.n, sizeof(uint16_t))
        if outcomes == NULL or refused_by == NULL:
            return no_room(&d)
        status = fill_columns(&d, &tables.parts, WIRE_UNKNOWN_PART, &none, &scans, call.n, NULL, outcomes,
                              refused_by, &call.parts)
    if status != WIRE_OK:
        return status
    for i in range(call.n):
        if outcomes[i] != OUTCOME_ACCEPTED:
            error.row = i
            error.reason = outcomes[i]
            return fail(&d, WIRE_BAD_KEY, again.at)
    return WIRE_OK


# ---- for Python: one message at a time, into copies ----

cdef object _copied(const void* data, size_t count, size_t size, str dtype):
    return np.frombuffer(PyBytes_FromStringAndSize(<const char*>data, count * size), dtype=dtype)


cdef object _column(const Column* column, size_t n):
    if column.kind == COLUMN_NUMBER:
        return _copied(column.numbers, n, 8, "<f8")
    present = None if column.present == NULL else _copied(column.present, n, 1, "u1")
    data = _copied(column.bytes, column.offsets[n], 1, "u1")
    return _copied(column.offsets, n + 1, 4, "<u4"), data, present


cdef dict _write(const IngestCall* call):
    cdef const Batch* batch = &call.batch
    return {
        "event": batch.event,
        "times": _copied(batch.times, batch.n_events, 8, "<i8"),
        "columns": [_column(&batch.columns[i], batch.n_events) for i in range(batch.n_columns)],
        "outcomes": _copied(batch.outcomes, batch.n_events, 1, "u1"),
        "refused_by": _copied(call.refused_by, batch.n_events, 2, "<u2"),
        "producer": b"" if call.producer_length == 0 else call.producer[:call.producer_length],
        "epoch": call.epoch,
        "sequence": call.sequence,
        "max_refusals": call.max_refusals,
        "ack": call.ack,
    }


def decode_observe(bytes data not None, WireSchema schema not None, *, size_t max_bytes=1 << 28):
    cdef Arena arena
    cdef ObserveCall call
    cdef WireError error
    cdef const uint8_t* message = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef size_t size = len(data)
    cdef int status
    memset(&arena, 0, sizeof(Arena))
    arena.max_bytes = max_bytes
    try:
        with nogil:
            status = wire_decode_observe(&schema.tables, &arena, message, size, &call, &error)
        if status != WIRE_OK:
            raise wire_exception(schema, &error)
        flags = {"peek": call.peek != 0, "bounds": call.bounds != 0, "coverage": call.coverage != 0}
        return {**_write(&call.write), "service": call.service, **flags}
    finally:
        arena_free(&arena)


def decode_ingest(bytes data not None, WireSchema schema not None, *, bint streamed=False,
                  size_t max_bytes=1 << 28):
    cdef Arena arena
    cdef IngestCall call
    cdef WireError error
    cdef const uint8_t* message = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef size_t size = len(data)
    cdef int status
    memset(&arena, 0, sizeof(Arena))
    arena.max_bytes = max_bytes
    try:
        with nogil:
            status = wire_decode_ingest(&schema.tables, &arena, message, size, streamed, &call, &error)
        if status != WIRE_OK:
            raise wire_exception(schema, &error)
        return _write(&call)
    finally:
        arena_free(&arena)


def decode_read(bytes data not None, WireSchema schema not None, *, bint streamed=False,
                size_t max_bytes=1 << 28):
    cdef Arena arena
    cdef ReadCall call
    cdef WireError error
    cdef const uint8_t* message = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef size_t size = len(data)
    cdef int status
    memset(&arena, 0, sizeof(Arena))
    arena.max_bytes = max_bytes
    try:
        with nogil:
            status = wire_decode_read(&schema.tables, &arena, message, size, streamed, &call, &error)
        if status != WIRE_OK:
            raise wire_exception(schema, &error)
        return {
            "service": call.service,
            "n": call.n,
            "parts": {schema.parts[i]: _column(&call.parts[i], call.n) for i in range(call.n_parts)},
            "as_of": None if call.as_of == NULL else _copied(call.as_of, call.n, 8, "<i8"),
            "bounds": call.bounds != 0,
            "coverage": call.coverage != 0,
        }
    finally:
        arena_free(&arena)
