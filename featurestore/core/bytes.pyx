"""A growing byte buffer; see bytes.pxd."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
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


@cython.final
cdef class Block:
    """Bytes of a checkpoint: bytes(block), memoryview(block), len(block)."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.bytes.data, <Py_ssize_t>self.bytes.n_bytes, 1, flags)

    def __len__(self):
        return <Py_ssize_t>self.bytes.n_bytes

    def __dealloc__(self):
        with nogil:
            bytes_clear(&self.bytes)


cdef Block block_of(Bytes* bytes):
    cdef Block block = Block.__new__(Block)
    block.bytes = bytes[0]
    memset(bytes, 0, sizeof(Bytes))
    return block
