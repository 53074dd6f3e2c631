"""Memory straight from the kernel; see pages.pxd for the picture and the reasons."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
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
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTNEED

cdef extern from * nogil:
    """
    #define fs_popcount16(x) ((uint32_t)__builtin_popcount((x) & 0xFFFF))
    #define fs_lowest16(x) ((uint32_t)__builtin_ctz((x) & 0xFFFF))
    """
    uint32_t fs_popcount16(uint32_t x) noexcept
    uint32_t fs_lowest16(uint32_t x) noexcept               # x has a bit


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
        if pool.slabs[i].base != NULL:
            pages_unmap(pool.slabs[i].base, SLAB_BYTES)
    free(pool.slabs)
    pthread_mutex_destroy(&pool.lock)
    memset(pool, 0, sizeof(Pool))


cdef inline void _enlist(Pool* pool, uint32_t* first, uint32_t number) noexcept nogil:
    cdef Slab* slab = &pool.slabs[number - 1]
    slab.previous = 0
    slab.next = first[0]
    if first[0]:
        pool.slabs[first[0] - 1].previous = number
    first[0] = number


cdef inline void _delist(Pool* pool, uint32_t* first, uint32_t number) noexcept nogil:
    cdef Slab* slab = &pool.slabs[number - 1]
    if slab.previous:
        pool.slabs[slab.previous - 1].next = slab.next
    else:
        first[0] = slab.next
    if slab.next:
        pool.slabs[slab.next - 1].previous = slab.previous


cdef uint32_t _new_slab(Pool* pool) noexcept nogil:
    """An empty slab, not in a list, or 0."""
    cdef uint32_t cap, number = pool.empty_place
    cdef Slab* slabs
    cdef Slab* slab
    cdef bint huge = pool.n_mapped >= HUGE_FROM
    cdef char* base = <char*>pages_map(SLAB_BYTES, huge)
    if base == NULL:
        return 0
    if number:
        _delist(pool, &pool.empty_place, number)
    else:
        if pool.n_slabs == pool.cap_slabs:
            cap = pool.cap_slabs * 2 if pool.cap_slabs else 16
            slabs = <Slab*>realloc(pool.slabs, cap * sizeof(Slab))
            if slabs == NULL:
                pages_unmap(base, SLAB_BYTES)
                return 0
            pool.slabs = slabs
            pool.cap_slabs = cap
        pool.n_slabs += 1
        number = pool.n_slabs
    slab = &pool.slabs[number - 1]
    memset(slab, 0, sizeof(Slab))
    slab.base = base
    slab.huge = huge
    if huge:
        slab.resident = 0xFFFF                  # with the first byte of it
        pool.n_idle += SLAB_CHUNKS
    pool.n_mapped += 1
    return number


cdef char* pool_take(Pool* pool, uint32_t* number) noexcept nogil:
    cdef Slab* slab
    cdef char* base
    cdef uint32_t waiting, chunk
    cdef int n_used = SLAB_CHUNKS - 1
    pthread_mutex_lock(&pool.lock)
    while n_used >= 0 and pool.first[n_used] == 0:
        n_used -= 1
    if n_used >= 0:
        number[0] = pool.first[n_used]
        _delist(pool, &pool.first[n_used], number[0])
    else:
        n_used = 0
        number[0] = _new_slab(pool)
        if number[0] == 0:
            pthread_mutex_unlock(&pool.lock)
            return NULL
    slab = &pool.slabs[number[0] - 1]
    waiting = <uint32_t>slab.resident & ~<uint32_t>slab.used & 0xFFFF
    if waiting:
        pool.n_idle -= 1
    else:
        waiting = ~<uint32_t>slab.used & 0xFFFF
    chunk = fs_lowest16(waiting)
    slab.used |= <uint16_t>(1 << chunk)
    slab.resident |= <uint16_t>(1 << chunk)
    pool.n_used += 1
    if n_used + 1 < SLAB_CHUNKS:
        _enlist(pool, &pool.first[n_used + 1], number[0])
    base = slab.base + <size_t>chunk * CHUNK_BYTES
    pthread_mutex_unlock(&pool.lock)
    return base


cdef void pool_give(Pool* pool, char* chunk, uint32_t number) noexcept nogil:
    cdef Slab* slab
    cdef char* unmapped = NULL
    cdef uint32_t n_used, bit
    pthread_mutex_lock(&pool.lock)
    slab = &pool.slabs[number - 1]
    bit = <uint32_t>1 << <uint32_t>((chunk - slab.base) // CHUNK_BYTES)
    n_used = fs_popcount16(slab.used)
    if n_used < SLAB_CHUNKS:
        _delist(pool, &pool.first[n_used], number)
    slab.used &= <uint16_t>~bit
    pool.n_used -= 1
    pool.n_idle += 1
    if slab.used == 0 and pool.first[0]:
        # One empty slab is enough to wait with.
        pool.n_idle -= fs_popcount16(slab.resident)
        pool.n_mapped -= 1
        unmapped = slab.base
        slab.base = NULL
        _enlist(pool, &pool.empty_place, number)
    else:
        if pool.n_idle > MOST_IDLE + pool.n_used // 16:
            if slab.huge:
                slab.huge = False
                madvise(slab.base, SLAB_BYTES, MADV_NOHUGEPAGE)
            madvise(chunk, CHUNK_BYTES, MADV_DONTNEED)
            slab.resident &= <uint16_t>~bit
            pool.n_idle -= 1
        _enlist(pool, &pool.first[n_used - 1], number)
    pthread_mutex_unlock(&pool.lock)
    if unmapped != NULL:
        pages_unmap(unmapped, SLAB_BYTES)


cdef uint64_t pool_idle_bytes(Pool* pool) noexcept nogil:
    cdef uint64_t n_idle
    pthread_mutex_lock(&pool.lock)
    n_idle = pool.n_idle
    pthread_mutex_unlock(&pool.lock)
    return n_idle * CHUNK_BYTES
