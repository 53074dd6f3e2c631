# Bytes from outside, read so that nothing past their end is ever touched.
#
# A Cursor is what is left of a piece of a message. Every read goes through `take`, the one function that
# moves it, and `take` checks first; the rest are readings of the protobuf wire format built on it:
#
#     message  := (tag value)*            tag := varint of field number << 3 | wire type
#     VARINT   := 1 to 10 bytes, 7 bits each, least significant first, the high bit set in all but the last
#     FIXED64  := 8 bytes little-endian   FIXED32 := 4 bytes little-endian
#     LENGTH   := varint n, n bytes       (texts, bytes, sub-messages, packed numbers)
#     START_GROUP := message END_GROUP    (with the same field number; only ever skipped)
#
# They return False (or NULL) when the bytes are malformed or end too early; the cursor then stands where it
# failed. What the official runtime takes is taken here, and what it refuses is refused: an eleventh varint
# byte, a tag past 32 bits, field number 0, wire types 6 and 7, an END_GROUP without its start, nesting beyond
# MAX_NESTING.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum WireType:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_LENGTH = 2
    WIRE_START_GROUP = 3
    WIRE_END_GROUP = 4
    WIRE_FIXED32 = 5

cdef enum:
    MAX_NESTING = 100                # of messages and groups in one another, the outermost not counted

ctypedef struct Cursor:
    const uint8_t* at                # the next byte
    const uint8_t* end               # the byte after the last


cdef inline const uint8_t* take(Cursor* c, size_t n) noexcept nogil:
    """The next n bytes, or NULL if there are fewer."""
    cdef const uint8_t* taken = c.at
    if n > <size_t>(c.end - c.at):
        return NULL
    c.at += n
    return taken


cdef inline bint take_varint(Cursor* c, uint64_t* value) noexcept nogil:
    """Bits past the 64th are dropped, as the official runtime does."""
    cdef const uint8_t* byte
    cdef uint64_t result = 0
    cdef int shift = 0
    while shift < 70:
        byte = take(c, 1)
        if byte == NULL:
            return False
        result |= <uint64_t>(byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            value[0] = result
            return True
        shift += 7
    return False


cdef inline bint take_tag(Cursor* c, uint32_t* tag) noexcept nogil:
    """At most five bytes and 32 bits; the field number is not 0."""
    cdef const uint8_t* start = c.at
    cdef uint64_t value = 0
    if not take_varint(c, &value):
        return False
    if c.at - start > 5 or value > 0xFFFFFFFFu or value < 8:
        c.at = start
        return False
    tag[0] = <uint32_t>value
    return True


cdef inline bint take_slice(Cursor* c, Cursor* slice) noexcept nogil:
    """A length and that many bytes."""
    cdef uint64_t length = 0
    cdef const uint8_t* start
    if not take_varint(c, &length) or length > <uint64_t>(c.end - c.at):
        return False
    start = take(c, <size_t>length)
    slice.at = start
    slice.end = start + length
    return True


cdef inline bint take_fixed64(Cursor* c, uint64_t* value) noexcept nogil:
    cdef const uint8_t* bytes = take(c, 8)
    if bytes == NULL:
        return False
    memcpy(value, bytes, 8)
    return True


cdef inline int64_t unzigzag(uint64_t value) noexcept nogil:
    return <int64_t>((value >> 1) ^ (~(value & 1) + 1))


cdef inline bint skip(Cursor* c, uint32_t tag, int depth) noexcept nogil:
    """Passes over the value of an unknown field of a message that stands `depth` deep.

    Groups are walked with a stack of our own: the sender chooses how deep they go.
    """
    cdef uint32_t open_groups[MAX_NESTING + 1]
    cdef int n_open = 0
    cdef uint64_t ignored
    cdef Cursor slice
    cdef uint32_t wire
    while True:
        wire = tag & 7
        if wire == WIRE_VARINT:
            if not take_varint(c, &ignored):
                return False
        elif wire == WIRE_FIXED64:
            if take(c, 8) == NULL:
                return False
        elif wire == WIRE_LENGTH:
            if not take_slice(c, &slice):
                return False
        elif wire == WIRE_FIXED32:
            if take(c, 4) == NULL:
                return False
        elif wire == WIRE_START_GROUP:
            if depth + n_open >= MAX_NESTING:
                return False
            open_groups[n_open] = tag >> 3
            n_open += 1
        elif wire == WIRE_END_GROUP:
            if n_open == 0 or open_groups[n_open - 1] != tag >> 3:
                return False
            n_open -= 1
        else:
            return False
        if n_open == 0:
            return True
        if not take_tag(c, &tag):
            return False


cdef inline bint is_utf8(const uint8_t* text, size_t length) noexcept nogil:
    """Well-formed UTF-8 (Unicode 15, table 3-7): no overlong forms, no surrogates, nothing past U+10FFFF."""
    cdef const uint8_t* at = text
    cdef const uint8_t* end = text + length
    cdef uint64_t eight
    cdef uint8_t lead, low, high
    cdef int more
    while at < end:
        if end - at >= 8:
            memcpy(&eight, at, 8)
            if eight & 0x8080808080808080u == 0:
                at += 8
                continue
        lead = at[0]
        at += 1
        if lead < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if end - at < more or at[0] < low or at[0] > high:
            return False
        at += 1
        while more > 1:
            if at[0] & 0xC0 != 0x80:
                return False
            at += 1
            more -= 1
    return True

# Compared at import: see core/structs.py.
cdef inline dict cursor_structs():
    return {"server/cursor.pxd": (sizeof(Cursor),)}
