"""Open addressing over cache-line buckets; see table.pxd for the picture.

Compare Abseil's Swiss tables and F14: tags first, then the key. What differs: the key stays in the row, since
the row is read next anyway, and the tag's other bits choose the bucket (tag from the second half of the
fingerprint, bucket from the first, shard from the top of the second).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from featurestore.core.arena cimport fs_prefetch
from featurestore.core.pages cimport SLAB_BYTES, pages_map, pages_unmap

from featurestore.core.structs import same_structs

same_structs(__name__, table_structs())

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    FIRST_BUCKETS = 4
    PREFETCH_AHEAD = 8
    MAPPED_BYTES = 64 << 10      # from this size on a table is pages of its own, given back when it has grown


cdef Bucket* _new_buckets(uint64_t n_buckets) noexcept nogil:
    cdef Bucket* buckets = NULL
    if n_buckets <= (<uint64_t>1 << 40):
        if n_buckets * sizeof(Bucket) >= MAPPED_BYTES:
            return <Bucket*>pages_map(n_buckets * sizeof(Bucket), n_buckets * sizeof(Bucket) >= SLAB_BYTES)
        buckets = <Bucket*>aligned_alloc(64, n_buckets * sizeof(Bucket))
        if buckets != NULL:
            memset(buckets, 0, n_buckets * sizeof(Bucket))
    return buckets


cdef void _free_buckets(Bucket* buckets, uint64_t n_buckets) noexcept nogil:
    if buckets == NULL or n_buckets * sizeof(Bucket) < MAPPED_BYTES:
        free(buckets)
    else:
        pages_unmap(buckets, n_buckets * sizeof(Bucket))


cdef int table_init(Table* table) noexcept nogil:
    table.buckets = _new_buckets(FIRST_BUCKETS)
    table.n_buckets = FIRST_BUCKETS
    table.n_rows = 0
    return 0 if table.buckets != NULL else -1


cdef void table_clear(Table* table) noexcept nogil:
    _free_buckets(table.buckets, table.n_buckets)
    table.buckets = NULL
    table.n_buckets = table.n_rows = 0


cdef inline void _put(Bucket* buckets, uint64_t mask, uint64_t fp0, uint64_t fp1,
                      uint32_t row) noexcept nogil:
    cdef uint64_t at = fp0 & mask
    cdef int i
    while True:
        for i in range(SLOTS):
            if buckets[at].tags[i] == 0:
                buckets[at].tags[i] = <uint8_t>(fp1 & 0x7F) | 0x80
                buckets[at].rows[i] = row
                return
        buckets[at].overflowed = 1
        at = (at + 1) & mask


cdef int _grow(Table* table, const Arena* arena) noexcept nogil:
    cdef uint64_t n = table.n_buckets * 2, at
    cdef Bucket* buckets = _new_buckets(n)
    cdef Bucket* old
    cdef const uint64_t* row
    cdef int i
    if buckets == NULL:
        return -1
    for at in range(table.n_buckets):
        if at + PREFETCH_AHEAD < table.n_buckets:
            old = &table.buckets[at + PREFETCH_AHEAD]
            for i in range(SLOTS):
                if old.tags[i]:
                    fs_prefetch(arena_at(arena, old.rows[i]))
        old = &table.buckets[at]
        for i in range(SLOTS):
            if old.tags[i]:
                row = <const uint64_t*>arena_at(arena, old.rows[i])
                _put(buckets, n - 1, row[0], row[1], old.rows[i])
    _free_buckets(table.buckets, table.n_buckets)
    table.buckets = buckets
    table.n_buckets = n
    return 0


cdef int table_insert(Table* table, const Arena* arena, uint32_t row) noexcept nogil:
    cdef const uint64_t* fp = <const uint64_t*>arena_at(arena, row)
    # 27/32 = 84 % full: the mean probe of an absent key is still 1.2 buckets.
    if (table.n_rows + 1) * 32 > table.n_buckets * SLOTS * 27 and _grow(table, arena) < 0:
        return -1
    _put(table.buckets, table.n_buckets - 1, fp[0], fp[1], row)
    table.n_rows += 1
    return 0


cdef void table_remove(Table* table, uint32_t* place) noexcept nogil:
    # The bucket keeps its overflow flag: keys further on are still found through it.
    cdef size_t offset = (<char*>place - <char*>table.buckets) % sizeof(Bucket)
    cdef Bucket* bucket = <Bucket*>(<char*>place - offset)
    bucket.tags[place - bucket.rows] = 0
    place[0] = 0
    table.n_rows -= 1
