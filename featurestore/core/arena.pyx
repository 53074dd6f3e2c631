"""Size-class allocator of one shard; see arena.pxd for the picture.

A general malloc would serve, but costs 8 bytes of header and 8 of pointer for every block, and a cold key is
only 96 bytes in all. Classes are 16 bytes apart up to 1 KiB (no waste beyond rounding) and at most 12.5 %
apart above.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from featurestore.core.pages cimport CHUNK_BYTES, pages_map, pages_unmap, pool_chunk
from featurestore.core.sanitizer cimport GAP_BYTES, allow, forbid

from featurestore.core.structs import same_structs

same_structs(__name__, arena_structs())

cdef enum:
    LINEAR_CLASSES = 64
    MAX_CHUNKS = 1 << 19
    CHUNK_OF_POOL = 1            # as Chunk.n_bytes: the pool frees it


cdef void arena_init(Arena* arena, Pool* pool) noexcept nogil:
    memset(arena, 0, sizeof(Arena))
    arena.pool = pool


cdef void arena_clear(Arena* arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.n_chunks):
        if arena.chunks[i].n_bytes > CHUNK_OF_POOL:
            pages_unmap(arena.chunks[i].base, arena.chunks[i].n_bytes)
    free(arena.chunks)
    arena_init(arena, arena.pool)


cdef inline uint32_t _class_of(size_t n_bytes, size_t* rounded) noexcept nogil:
    """Size class of 1..BIG_BYTES bytes, and the bytes a block of that class has."""
    cdef uint32_t units = <uint32_t>((n_bytes + UNIT_BYTES - 1) // UNIT_BYTES)
    cdef uint32_t doubling = 0, base = LINEAR_CLASSES, step
    if units <= LINEAR_CLASSES:
        rounded[0] = units * UNIT_BYTES
        return units - 1
    while base * 2 < units:
        base *= 2
        doubling += 1
    step = (units - base + base // 8 - 1) // (base // 8)      # 1..8 eighths above base
    rounded[0] = <size_t>(base + step * (base // 8)) * UNIT_BYTES
    return LINEAR_CLASSES + doubling * 8 + step - 1


cdef size_t arena_rounded(size_t n_bytes) noexcept nogil:
    cdef size_t rounded
    if n_bytes > BIG_BYTES:
        return n_bytes
    _class_of(n_bytes, &rounded)
    return rounded


cdef inline void _push(Arena* arena, uint32_t class_, uint32_t handle, size_t n_bytes) noexcept nogil:
    cdef uint32_t* block = <uint32_t*>arena_at(arena, handle)
    allow(block, sizeof(uint32_t))
    block[0] = arena.free_blocks[class_]
    forbid(block, n_bytes)
    arena.free_blocks[class_] = handle
    arena.free_bytes += n_bytes


cdef inline uint32_t _pop(Arena* arena, uint32_t class_) noexcept nogil:
    """The first free block of the class, 0 where there is none."""
    cdef uint32_t handle = arena.free_blocks[class_]
    cdef const uint32_t* block
    if handle:
        block = <const uint32_t*>arena_at(arena, handle)
        allow(block, sizeof(uint32_t))
        arena.free_blocks[class_] = block[0]
    return handle


cdef uint32_t _new_chunk(Arena* arena, size_t n_bytes) noexcept nogil:
    """Slot + 1 of a new chunk, of the pool or of n_bytes of its own, or 0."""
    cdef uint32_t slot, cap
    cdef Chunk* chunks
    cdef void* base
    if arena.free_chunk == 0 and arena.n_chunks == arena.cap_chunks:
        cap = arena.cap_chunks * 2 if arena.cap_chunks else 8
        if cap > MAX_CHUNKS:
            return 0
        chunks = <Chunk*>realloc(arena.chunks, cap * sizeof(Chunk))
        if chunks == NULL:
            return 0
        arena.chunks = chunks
        arena.cap_chunks = cap
    base = pool_chunk(arena.pool) if n_bytes == CHUNK_OF_POOL else pages_map(n_bytes, False)
    if base == NULL:
        return 0
    if arena.free_chunk:
        slot = arena.free_chunk - 1
        arena.free_chunk = <uint32_t><size_t>arena.chunks[slot].base
    else:
        slot = arena.n_chunks
        arena.n_chunks += 1
    arena.chunks[slot].base = <char*>base
    arena.chunks[slot].n_bytes = n_bytes
    return slot + 1


cdef uint32_t arena_alloc(Arena* arena, size_t n_bytes) noexcept nogil:
    cdef size_t rounded, left
    cdef uint32_t class_, handle, slot
    if n_bytes + GAP_BYTES > BIG_BYTES:
        # One unit in, as in every chunk: handle 0 means no block.
        slot = _new_chunk(arena, n_bytes + UNIT_BYTES + GAP_BYTES)
        if slot == 0:
            return 0
        forbid(arena.chunks[slot - 1].base + UNIT_BYTES + n_bytes, GAP_BYTES)
        arena.used_bytes += n_bytes
        return (slot - 1) << UNIT_BITS | 1
    class_ = _class_of(n_bytes + GAP_BYTES if n_bytes else 1, &rounded)
    handle = _pop(arena, class_)
    if handle:
        allow(arena_at(arena, handle), n_bytes)
        arena.free_bytes -= rounded
        return handle
    if arena.open_used == 0 or arena.open_used + rounded > CHUNK_BYTES:
        # What is left of the open chunk is given to the free lists in pieces, so that none of it is lost.
        while arena.open_used and arena.open_used < CHUNK_BYTES:
            left = CHUNK_BYTES - arena.open_used
            if left > LINEAR_CLASSES * UNIT_BYTES:
                left = LINEAR_CLASSES * UNIT_BYTES
            _push(arena, <uint32_t>(left // UNIT_BYTES) - 1,
                  arena.open_chunk << UNIT_BITS | arena.open_used // UNIT_BYTES, left)
            arena.open_used += <uint32_t>left
            arena.used_bytes += left
        slot = _new_chunk(arena, CHUNK_OF_POOL)
        if slot == 0:
            arena.open_used = 0
            return 0
        arena.open_chunk = slot - 1
        arena.open_used = UNIT_BYTES                           # unit 0 stays unused: handle 0 means no block
        forbid(arena.chunks[arena.open_chunk].base, CHUNK_BYTES)
    handle = arena.open_chunk << UNIT_BITS | arena.open_used // UNIT_BYTES
    arena.open_used += <uint32_t>rounded
    arena.used_bytes += rounded
    allow(arena_at(arena, handle), n_bytes)
    return handle


cdef void arena_free(Arena* arena, uint32_t handle, size_t n_bytes) noexcept nogil:
    cdef size_t rounded
    cdef uint32_t slot = handle >> UNIT_BITS, class_
    if handle == 0:
        return
    if n_bytes + GAP_BYTES > BIG_BYTES:
        pages_unmap(arena.chunks[slot].base, arena.chunks[slot].n_bytes)
        arena.used_bytes -= n_bytes
        arena.chunks[slot].n_bytes = 0
        arena.chunks[slot].base = <char*><size_t>arena.free_chunk
        arena.free_chunk = slot + 1
        return
    class_ = _class_of(n_bytes + GAP_BYTES if n_bytes else 1, &rounded)
    _push(arena, class_, handle, rounded)
