# A growing byte buffer, for what is written out: checkpoints, digests, frames.
from libc.stdint cimport uint8_t

ctypedef struct Bytes:
    uint8_t* data                # owned by whoever holds the struct; bytes_clear gives it back
    size_t n_bytes
    size_t capacity

cdef int bytes_reserve(Bytes* bytes, size_t more) noexcept nogil           # 0, or -1 when out of memory
cdef int bytes_append(Bytes* bytes, const void* data, size_t n) noexcept nogil   # 0, or -1 when out of memory
cdef void bytes_clear(Bytes* bytes) noexcept nogil


# What a Bytes held, for Python to read through the buffer protocol: not copied, and given back without the
# GIL. A checkpoint has hundreds of megabytes of it, and whoever answers requests waits for the GIL meanwhile.
cdef class Block:
    cdef Bytes bytes

cdef Block block_of(Bytes* bytes)                        # takes what it holds: `bytes` is empty then

# Compared at import: see core/structs.py.
cdef inline dict bytes_structs():
    return {"core/bytes.pxd": (sizeof(Bytes), sizeof(Block))}
