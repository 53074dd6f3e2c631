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
# A pool gives chunks and never takes them back; all go when it is cleared. A small store (below HUGE_FROM
# slabs) stays on small pages, so that it takes only what it uses. On a machine that gives no huge pages
# everything works the same.
from libc.stdint cimport uint32_t

from featurestore.core.pthread cimport pthread_mutex_t

cdef enum:
    SLAB_BYTES = 2 << 20         # a huge page
    CHUNK_BYTES = 128 << 10
    HUGE_FROM = 16               # slabs: from 32 MiB on

ctypedef struct Pool:
    pthread_mutex_t lock
    char** slabs                 # [n_slabs], owned
    uint32_t n_slabs
    uint32_t cap_slabs
    uint32_t open_used           # bytes of the newest slab that are given away

cdef int pool_init(Pool* pool) noexcept nogil             # 0, or -1 when there is no lock
cdef void pool_clear(Pool* pool) noexcept nogil           # also of a pool that is all zeros
# CHUNK_BYTES of zeros; NULL: out of memory. Any thread.
cdef void* pool_chunk(Pool* pool) noexcept nogil

# n_bytes of zeros, on a SLAB_BYTES boundary and huge pages if `huge`. NULL: out of memory. Unmapped with
# the same n_bytes.
cdef void* pages_map(size_t n_bytes, bint huge) noexcept nogil
cdef void pages_unmap(void* base, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict pages_structs():
    return {"core/pages.pxd": (sizeof(Pool),)}
