"""Memory straight from the kernel; see pages.pxd for the picture and the reasons."""

from libc.stdint cimport uint32_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from featurestore.core.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from featurestore.core.sanitizer cimport allow

from featurestore.core.structs import same_structs

same_structs(__name__, pages_structs())

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int madvise(void* addr, size_t length, int advice)
    void* MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE


cdef void* pages_map(size_t n_bytes, bint huge) noexcept nogil:
    cdef size_t before, mapped = n_bytes + SLAB_BYTES if huge else n_bytes
    cdef char* base
    if mapped < n_bytes:
        return NULL
    base = <char*>mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if base == <char*>MAP_FAILED:
        return NULL
    if not huge:
        return base
    before = (SLAB_BYTES - (<uintptr_t>base & (SLAB_BYTES - 1))) & (SLAB_BYTES - 1)
    if before:
        munmap(base, before)
        base += before
    n_bytes = (n_bytes + 4095) & ~<size_t>4095
    if mapped - before > n_bytes:
        munmap(base + n_bytes, mapped - before - n_bytes)
    madvise(base, n_bytes, MADV_HUGEPAGE)       # refused where the machine has none: small pages then
    return base


cdef void pages_unmap(void* base, size_t n_bytes) noexcept nogil:
    allow(base, n_bytes)                        # whatever is mapped here next
    munmap(base, n_bytes)


cdef int pool_init(Pool* pool) noexcept nogil:
    memset(pool, 0, sizeof(Pool))
    return 0 if pthread_mutex_init(&pool.lock, NULL) == 0 else -1


cdef void pool_clear(Pool* pool) noexcept nogil:
    cdef uint32_t i
    for i in range(pool.n_slabs):
        pages_unmap(pool.slabs[i], SLAB_BYTES)
    free(pool.slabs)
    pthread_mutex_destroy(&pool.lock)
    memset(pool, 0, sizeof(Pool))


cdef int _add_slab(Pool* pool) noexcept nogil:
    cdef uint32_t cap
    cdef char** slabs
    cdef char* slab
    if pool.n_slabs == pool.cap_slabs:
        cap = pool.cap_slabs * 2 if pool.cap_slabs else 16
        slabs = <char**>realloc(pool.slabs, cap * sizeof(char*))
        if slabs == NULL:
            return -1
        pool.slabs = slabs
        pool.cap_slabs = cap
    slab = <char*>pages_map(SLAB_BYTES, pool.n_slabs >= HUGE_FROM)
    if slab == NULL:
        return -1
    pool.slabs[pool.n_slabs] = slab
    pool.n_slabs += 1
    pool.open_used = 0
    return 0


cdef void* pool_chunk(Pool* pool) noexcept nogil:
    cdef char* chunk = NULL
    pthread_mutex_lock(&pool.lock)
    if (pool.n_slabs and pool.open_used < SLAB_BYTES) or _add_slab(pool) == 0:
        chunk = pool.slabs[pool.n_slabs - 1] + pool.open_used
        pool.open_used += CHUNK_BYTES
    pthread_mutex_unlock(&pool.lock)
    return chunk
