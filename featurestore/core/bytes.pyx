"""A growing byte buffer; see bytes.pxd."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from featurestore.core.structs import same_structs

same_structs(__name__, bytes_structs())

cdef enum:
    FIRST_BYTES = 256


cdef int bytes_reserve(Bytes* bytes, size_t more) noexcept nogil:
    cdef size_t capacity
    cdef uint8_t* data
    if more <= bytes.capacity - bytes.n_bytes:
        return 0
    if more > (<size_t>1 << 62) - bytes.n_bytes:
        return -1
    capacity = bytes.n_bytes + more
    capacity += capacity // 2 + FIRST_BYTES
    data = <uint8_t*>realloc(bytes.data, capacity)
    if data == NULL:
        return -1
    bytes.data = data
    bytes.capacity = capacity
    return 0


cdef int bytes_append(Bytes* bytes, const void* data, size_t n) noexcept nogil:
    if n == 0:
        return 0                         # data may be NULL then, and memcpy may not have it
    if bytes_reserve(bytes, n) < 0:
        return -1
    memcpy(bytes.data + bytes.n_bytes, data, n)
    bytes.n_bytes += n
    return 0


cdef void bytes_clear(Bytes* bytes) noexcept nogil:
    free(bytes.data)
    memset(bytes, 0, sizeof(Bytes))
