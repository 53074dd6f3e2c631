"""Text in gRPC's headers: what grpc_text.pxd promises, and the same for Python, which the tests call."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

cdef int64_t LONGEST_TIMEOUT_NS = <int64_t>1 << 60


cdef int64_t grpc_timeout_ns(const uint8_t* text, size_t n) noexcept nogil:
    cdef int64_t value = 0, unit
    cdef size_t i
    if n < 2 or n > 9:
        return -1
    for i in range(n - 1):
        if text[i] < c'0' or text[i] > c'9':
            return -1
        value = value * 10 + (text[i] - c'0')
    if text[n - 1] == c'H':
        unit = 3_600_000_000_000
    elif text[n - 1] == c'M':
        unit = 60_000_000_000
    elif text[n - 1] == c'S':
        unit = 1_000_000_000
    elif text[n - 1] == c'm':
        unit = 1_000_000
    elif text[n - 1] == c'u':
        unit = 1_000
    elif text[n - 1] == c'n':
        unit = 1
    else:
        return -1
    if value > LONGEST_TIMEOUT_NS // unit:
        return LONGEST_TIMEOUT_NS
    return value * unit


cdef bint is_grpc_content(const uint8_t* text, size_t n) noexcept nogil:
    if n < 16 or memcmp(text, b"application/grpc", 16) != 0:
        return False
    return n == 16 or text[16] == c'+' or text[16] == c';'


cdef size_t percent_encode(const uint8_t* text, size_t n, uint8_t* out) noexcept nogil:
    cdef const char* digits = "0123456789ABCDEF"
    cdef size_t i, size = 0
    for i in range(n):
        if text[i] < 0x20 or text[i] > 0x7E or text[i] == c'%':
            out[size] = c'%'
            out[size + 1] = <uint8_t>digits[text[i] >> 4]
            out[size + 2] = <uint8_t>digits[text[i] & 15]
            size += 3
        else:
            out[size] = text[i]
            size += 1
    return size


def timeout_ns(bytes text not None):
    """A grpc-timeout in nanoseconds, at most 2^60; None where it is none."""
    cdef int64_t found = grpc_timeout_ns(text, len(text))
    return None if found < 0 else found


def is_grpc(bytes text not None):
    """Whether a content-type is gRPC's."""
    return bool(is_grpc_content(text, len(text)))


def percent_encoded(bytes text not None):
    """A grpc-message as it travels."""
    cdef uint8_t* out = <uint8_t*>malloc(3 * <size_t>len(text) + 1)
    if out == NULL:
        raise MemoryError
    try:
        return PyBytes_FromStringAndSize(<char*>out, percent_encode(text, len(text), out))
    finally:
        free(out)
