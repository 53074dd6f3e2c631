"""The request's arena and the reply's buffer: what they promise is in memory.pxd.

Blocks of an arena double, so that a request of any size takes few of them, and the one that stays after a
reset is mostly large enough for the next request: in the steady state a request costs no malloc at all.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from featurestore.core.sanitizer cimport GAP_BYTES, allow, forbid

from featurestore.core.structs import same_structs

same_structs(__name__, memory_structs())

cdef enum:
    FIRST_BLOCK_BYTES = 1 << 14
    FIRST_REPLY_BYTES = 1 << 8


cdef inline uint8_t* _room(ArenaBlock* block) noexcept nogil:
    return <uint8_t*>block + ((sizeof(ArenaBlock) + 15) & ~<size_t>15)


cdef void* arena_alloc(Arena* arena, size_t count, size_t size) noexcept nogil:
    cdef ArenaBlock* block = arena.newest
    cdef size_t bytes, capacity
    cdef void* room
    if size != 0 and count > (<size_t>-1 - 15 - GAP_BYTES) // size:
        return NULL
    bytes = ((count * size + 15) & ~<size_t>15) + GAP_BYTES
    if block == NULL or block.capacity - block.used < bytes:
        if bytes > arena.max_bytes or arena.taken_bytes > arena.max_bytes - bytes:
            return NULL
        # Each block is as large as all before it, so that their number stays small.
        capacity = arena.taken_bytes if arena.taken_bytes > FIRST_BLOCK_BYTES else FIRST_BLOCK_BYTES
        if capacity > arena.max_bytes - arena.taken_bytes:
            capacity = arena.max_bytes - arena.taken_bytes
        if capacity < bytes:
            capacity = bytes
        block = <ArenaBlock*>malloc(sizeof(ArenaBlock) + 16 + capacity)
        if block == NULL:
            return NULL
        block.next = arena.newest
        block.capacity = capacity
        block.used = 0
        arena.newest = block
        arena.taken_bytes += capacity
        forbid(_room(block), capacity)
    room = _room(block) + block.used
    block.used += bytes
    allow(room, count * size)
    return room


cdef void arena_reset(Arena* arena, size_t keep_bytes) noexcept nogil:
    cdef ArenaBlock* kept = arena.newest
    cdef ArenaBlock* block
    cdef ArenaBlock* following
    if kept == NULL:
        return
    # The newest block is the largest: the one most likely to hold all of the next request.
    if kept.capacity > keep_bytes:
        arena_free(arena)
        return
    block = kept.next
    while block != NULL:
        following = block.next
        free(block)
        block = following
    forbid(_room(kept), kept.capacity)
    kept.next = NULL
    kept.used = 0
    arena.taken_bytes = kept.capacity


cdef void arena_free(Arena* arena) noexcept nogil:
    cdef ArenaBlock* block = arena.newest
    cdef ArenaBlock* following
    while block != NULL:
        following = block.next
        free(block)
        block = following
    arena.newest = NULL
    arena.taken_bytes = 0


cdef uint8_t* buffer_extend(Buffer* buffer, uint64_t more) noexcept nogil:
    cdef size_t capacity = buffer.capacity
    cdef uint8_t* data
    if buffer.size > buffer.max_bytes or more > buffer.max_bytes - buffer.size:
        return NULL
    if buffer.data == NULL or more > capacity - buffer.size:
        capacity = FIRST_REPLY_BYTES if capacity < FIRST_REPLY_BYTES else capacity
        while capacity < buffer.size + more:
            capacity = capacity * 2 if capacity <= buffer.max_bytes // 2 else buffer.size + <size_t>more
        data = <uint8_t*>realloc(buffer.data, capacity)
        if data == NULL:
            return NULL
        buffer.data = data
        buffer.capacity = capacity
    data = buffer.data + buffer.size
    buffer.size += <size_t>more
    return data


cdef void buffer_free(Buffer* buffer) noexcept nogil:
    free(buffer.data)
    buffer.data = NULL
    buffer.size = 0
    buffer.capacity = 0


cdef uint8_t* spares_extend(Spares* spares, Buffer* buffer, uint64_t more) noexcept nogil:
    if buffer.data == NULL and spares.n and more <= SPARE_BYTES:
        spares.n -= 1
        buffer.data = spares.data[spares.n]
        buffer.capacity = spares.capacity[spares.n]
    return buffer_extend(buffer, more)


cdef void spares_take(Spares* spares, Buffer* buffer) noexcept nogil:
    # In a sanitized build none is used again: what was freed is not to be read.
    if buffer.data != NULL and buffer.capacity <= SPARE_BYTES and spares.n < MOST_SPARE and GAP_BYTES == 0:
        spares.data[spares.n] = buffer.data
        spares.capacity[spares.n] = buffer.capacity
        spares.n += 1
        buffer.data = NULL
    buffer_free(buffer)


cdef void spares_free(Spares* spares) noexcept nogil:
    cdef uint32_t i
    for i in range(spares.n):
        free(spares.data[i])
    spares.n = 0
