"""Where a Redis reply ends (RESP2: simple strings, errors, integers, bulk strings, arrays of these)."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr

cdef enum:
    RESP_MALFORMED = -1
    RESP_INCOMPLETE = 0


cdef inline ssize_t resp_size(const uint8_t* data, size_t n) noexcept nogil:
    """Bytes of the reply at the front of `data`, or one of the two above."""
    cdef int64_t wanted = 1, number
    cdef size_t at = 0, digit
    cdef const uint8_t* end
    cdef bint is_negative
    while wanted > 0:
        if at >= n:
            return RESP_INCOMPLETE
        end = <const uint8_t*> memchr(data + at, c"\n", n - at)
        if end == NULL:
            return RESP_INCOMPLETE
        number = 0
        is_negative = data[at + 1] == c"-"
        if data[at] == c"$" or data[at] == c"*":
            digit = at + 1 + is_negative
            while c"0" <= data[digit] <= c"9":
                number = number * 10 + data[digit] - c"0"
                digit += 1
                if digit - at > 10:
                    return RESP_MALFORMED
            if data[digit] != c"\r":
                return RESP_MALFORMED
        elif data[at] != c"+" and data[at] != c"-" and data[at] != c":":
            return RESP_MALFORMED
        wanted -= 1
        if is_negative and data[at] != c"-":
            number = -1
        if data[at] == c"*" and number > 0:
            wanted += number
        if data[at] == c"$" and number >= 0:
            at = end + 1 - data + number + 2
            if at > n:
                return RESP_INCOMPLETE
        else:
            at = end + 1 - data
    return at
