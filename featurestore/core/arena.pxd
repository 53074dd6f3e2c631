# The memory of one shard: blocks of any size behind 32-bit handles.
#
#   handle = chunk << 13 | unit        a unit is 16 bytes, a chunk 8,192 units = 128 KiB
#   handle 0 is no block
#
# Small blocks (up to BIG_BYTES) are cut from chunks, which a pool shared with the other shards gives, and
# what is freed serves any size: a free block is split where less is asked for, joins free neighbours at once,
# and a chunk that is free as a whole goes back to the pool. A larger block is a mapping of its own. A block
# never moves, so a pointer from arena_at is good until that block is freed. The caller remembers a block's
# size and gives it back on free: no block carries a header. Not thread-safe: the owner is a shard, and its
# lock is held around every call.
#
# This is TLSF (Masmano, Ripoll, Crespo and Real 2004) without its headers: good fit by two levels of size
# classes, everything in constant time. What a header would say of the neighbours, one bit a unit does, in the
# first 64 units of each chunk: the unit is the first or the last of a free block. The rest stands in the free
# block itself:
#
#   u32 next, u32 previous of its class (handles), u32 units, ... the last 4 bytes: u32 units
#
# To join its neighbours a block that is freed needs lines that no cache holds, and where keys grow and come
# alike the next to ask wants its size: so small ones wait for that, in a list a size, until there are
# MOST_WAITING of them or no free block serves what is asked for. Then all of them join.
from libc.stdint cimport uint32_t, uint64_t

from featurestore.core.pages cimport Pool, pages_structs

cdef enum:
    UNIT_BYTES = 16
    UNIT_BITS = 13
    CHUNK_UNITS = 8192
    FIRST_UNIT = 64          # those before it are the bits
    BIG_BYTES = 64 << 10
    LINEAR_CLASSES = 64      # of 1 to 63 units, one each; then 8 per doubling
    N_CLASSES = 120
    ROOM_UNITS = 256         # what a new row needs, with some to grow
    MOST_WAITING = 256       # blocks that have not joined their neighbours, and
    MOST_WAITING_UNITS = 2048

ctypedef struct Chunk:
    char* base
    uint32_t n_pages         # of 4 KiB, of a block with a mapping of its own; 0: of the pool, or a free slot
    uint32_t slab            # that the pool cut it from

ctypedef struct Arena:
    Pool* pool               # borrowed
    Chunk* chunks            # owned
    uint32_t n_chunks        # slots in use, freed ones included
    uint32_t cap_chunks
    uint32_t free_chunk      # a freed slot + 1, chained through `slab`; 0 = none
    uint64_t classes[2]      # that have a free block, a bit each
    uint32_t free_blocks[N_CLASSES]   # the first of each, 0 = none
    uint32_t waiting[LINEAR_CLASSES]  # the first freed block of so many units that has not joined
    uint32_t n_waiting
    uint32_t waiting_units
    uint64_t used_bytes      # of the blocks that are in use
    uint64_t held_bytes      # what the process holds for this arena, free blocks included

cdef void arena_init(Arena* arena, Pool* pool) noexcept nogil
cdef void arena_clear(Arena* arena) noexcept nogil                       # before the pool is cleared
cdef uint32_t arena_alloc(Arena* arena, size_t n_bytes) noexcept nogil   # 0: out of memory
# n_bytes: as they were asked for.
cdef void arena_free(Arena* arena, uint32_t handle, size_t n_bytes) noexcept nogil
# What was freed joins its neighbours now, so that whole chunks go back.
cdef void arena_settle(Arena* arena) noexcept nogil
cdef size_t arena_rounded(size_t n_bytes) noexcept nogil                 # bytes such a block really has
# Whether a free block of ROOM_UNITS is there, so that a row that comes takes nothing from the system.
cdef bint arena_has_room(const Arena* arena) noexcept nogil

cdef extern from * nogil:
    """
    /* The asm keeps it: a function that only prefetches is pure to the compiler, and calls of it are dropped.
    */
    static inline void fs_prefetch(const void* p) {
        __builtin_prefetch(p, 1, 3);
        __asm__ volatile("");
    }
    """
    void fs_prefetch(const void* p) noexcept       # asks for the cache line of p, which may be anything

cdef inline void* arena_at(const Arena* arena, uint32_t handle) noexcept nogil:
    return arena.chunks[handle >> UNIT_BITS].base + (<size_t>(handle & ((1 << UNIT_BITS) - 1))) * UNIT_BYTES

# Compared at import: see core/structs.py.
cdef inline dict arena_structs():
    return pages_structs() | {"core/arena.pxd": (sizeof(Chunk), sizeof(Arena))}
