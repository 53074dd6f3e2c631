# Memory straight from the kernel, on huge pages where that pays.
#
#   pool  ──►  slabs of 2 MiB, each on its boundary, one huge page
#         ──►  chunks of 128 KiB, cut in turn for whichever shard asks
#
# Why huge pages: a row update touches three cache lines of memory that no cache holds. On 4 KiB pages each
# also misses the TLB, and under a hypervisor the walk costs more than the line: a random line of 1 GiB took
# 34 ns prefetched on small pages, 16 on huge. Why one pool: a huge page is resident from its first byte.
# Were each shard to have its own, 64 shards would hold 64 MiB that nothing is in; cut into chunks, what is
# not in use is half a chunk a shard.
#
# What comes back goes back: the fullest slab gives first, so that others empty; an empty one is unmapped, all
# but one. A chunk that comes back to a slab with others in use waits as it is for whoever asks next while no
# more wait than MOST_IDLE and a sixteenth of what is in use; the pages of any other are given to the system,
# and a slab that loses some has small pages from then on, or the kernel would fill it up again.
#
# A small store (below HUGE_FROM slabs) stays on small pages, so that it takes only what it uses. On a machine
# that gives no huge pages everything works the same.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from featurestore.core.pthread cimport pthread_mutex_t

cdef enum:
    SLAB_BYTES = 2 << 20         # a huge page
    CHUNK_BYTES = 128 << 10
    SLAB_CHUNKS = 16
    HUGE_FROM = 16               # slabs: from 32 MiB on
    MOST_IDLE = 16               # chunks

ctypedef struct Slab:            # a place for one, and its number + 1 wherever one is named; 0 names none
    char* base                   # NULL: there is none
    uint16_t used                # chunks that are given away, a bit each
    uint16_t resident            # chunks that the process may have pages of, a bit each
    bint huge
    uint32_t next                # in the list of those with as many chunks given away, or of empty places
    uint32_t previous

ctypedef struct Pool:
    pthread_mutex_t lock
    Slab* slabs                  # [n_slabs], owned
    uint32_t n_slabs             # places, empty ones included
    uint32_t cap_slabs
    uint32_t n_mapped
    uint32_t empty_place         # the first of the list
    uint32_t first[SLAB_CHUNKS]  # slabs by how many chunks they gave away
    uint64_t n_idle              # resident chunks that nobody has
    uint64_t n_used              # chunks given away

cdef int pool_init(Pool* pool) noexcept nogil             # 0, or -1 when there is no lock
cdef void pool_clear(Pool* pool) noexcept nogil           # also of a pool that is all zeros
# CHUNK_BYTES of whatever is in them, and their slab; NULL: out of memory. Any thread, as pool_give.
cdef char* pool_take(Pool* pool, uint32_t* slab) noexcept nogil
cdef void pool_give(Pool* pool, char* chunk, uint32_t slab) noexcept nogil
# What the process holds that nobody has.
cdef uint64_t pool_idle_bytes(Pool* pool) noexcept nogil

# n_bytes of zeros, on a SLAB_BYTES boundary and huge pages if `huge`. NULL: out of memory. Unmapped with
# the same n_bytes.
cdef void* pages_map(size_t n_bytes, bint huge) noexcept nogil
cdef void pages_unmap(void* base, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict pages_structs():
    return {"core/pages.pxd": (sizeof(Slab), sizeof(Pool))}
