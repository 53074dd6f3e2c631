# Memory that a caller lends to one request at a time, and where its reply is written.
#
# An Arena hands out room and takes it back all at once, so that decoding frees nothing and leaks nothing; a
# Buffer is one growing piece, so that a reply can be sent as it stands. Both have a limit in bytes, both
# belong to one thread at a time, and both are ready to use when they are all zero but for max_bytes. Spares
# are a loop's: messages are small and many, and malloc keeps too few of what is given back for the next.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

ctypedef struct ArenaBlock:
    ArenaBlock* next                 # made before this one
    size_t capacity                  # bytes after this header
    size_t used                      # of them

ctypedef struct Arena:
    ArenaBlock* newest
    size_t taken_bytes               # capacity of all blocks together
    size_t max_bytes                 # no request may make it larger than this

ctypedef struct Buffer:
    uint8_t* data
    size_t size                      # bytes written
    size_t capacity
    size_t max_bytes                 # no reply may make it larger than this

cdef enum:
    MOST_SPARE = 64
    SPARE_BYTES = 4 << 10            # of the largest that is kept

ctypedef struct Spares:              # small buffers that nobody uses, for the next who needs one
    uint8_t* data[MOST_SPARE]
    size_t capacity[MOST_SPARE]
    uint32_t n

# 16-byte aligned room for count × size bytes, or NULL when that overflows, exceeds max_bytes, or malloc
# fails.
cdef void* arena_alloc(Arena* arena, size_t count, size_t size) noexcept nogil
# Everything taken from it is gone; one block stays for the next request, unless it is larger than keep_bytes.
cdef void arena_reset(Arena* arena, size_t keep_bytes) noexcept nogil
cdef void arena_free(Arena* arena) noexcept nogil
# Room for `more` bytes at the end, counted as written; NULL, and nothing changed, when it would exceed
# max_bytes.
cdef uint8_t* buffer_extend(Buffer* buffer, uint64_t more) noexcept nogil
cdef void buffer_free(Buffer* buffer) noexcept nogil
# The same, by way of what is spare.
cdef uint8_t* spares_extend(Spares* spares, Buffer* buffer, uint64_t more) noexcept nogil
cdef void spares_take(Spares* spares, Buffer* buffer) noexcept nogil
cdef void spares_free(Spares* spares) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict memory_structs():
    return {"server/memory.pxd": (sizeof(ArenaBlock), sizeof(Arena), sizeof(Buffer), sizeof(Spares))}
