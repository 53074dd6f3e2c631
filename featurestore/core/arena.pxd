# The memory of one shard: blocks of any size behind 32-bit handles.
#
#   handle = chunk << 13 | unit        a unit is 16 bytes, a chunk 8,192 units = 128 KiB
#   handle 0 is no block
#
# Small blocks (up to BIG_BYTES) are cut from chunks, which a pool shared with the other shards gives, and
# come back to a free list per size class; a larger block is a chunk of its own. A block never moves, so a
# pointer from arena_at is good until that block is freed. The caller remembers a block's size and gives it
# back on free: no block carries a header. Not thread-safe: the owner is a shard, and its lock is held
# around every call.
from libc.stdint cimport uint32_t, uint64_t

from featurestore.core.pages cimport Pool, pages_structs

cdef enum:
    UNIT_BYTES = 16
    UNIT_BITS = 13
    BIG_BYTES = 64 << 10
    N_CLASSES = 112          # 64 steps of 16 bytes to 1 KiB, then 8 steps per doubling to 64 KiB

ctypedef struct Chunk:
    char* base
    size_t n_bytes           # of a block with a chunk of its own; CHUNK_OF_POOL; 0: the slot is free

ctypedef struct Arena:
    Pool* pool               # borrowed
    Chunk* chunks            # owned
    uint32_t n_chunks        # slots in use, freed ones included
    uint32_t cap_chunks
    uint32_t free_chunk      # a freed slot + 1, chained through n_bytes' place in `base`; 0 = none
    uint32_t open_chunk      # small blocks are cut from this one; meaningful when open_bytes > 0
    uint32_t open_used       # bytes already cut from it
    uint32_t free_blocks[N_CLASSES]   # first free block of each class, 0 = none; its first 4 bytes: the next
    uint64_t used_bytes      # cut from chunks, free blocks included: what the process holds for this arena
    uint64_t free_bytes      # of them in free blocks, which serve the next of their class

cdef void arena_init(Arena* arena, Pool* pool) noexcept nogil
cdef void arena_clear(Arena* arena) noexcept nogil                       # before the pool is cleared
cdef uint32_t arena_alloc(Arena* arena, size_t n_bytes) noexcept nogil   # 0: out of memory
cdef void arena_free(Arena* arena, uint32_t handle, size_t n_bytes) noexcept nogil
cdef size_t arena_rounded(size_t n_bytes) noexcept nogil                 # bytes such a block really has

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
