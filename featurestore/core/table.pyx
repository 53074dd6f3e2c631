"""Open addressing over cache-line buckets; see table.pxd for the picture.

Compare Abseil's Swiss tables and F14: tags first, then the key. What differs: the key stays in the row, since
the row is read next anyway, and the tag's other bits choose the bucket (tag from the second half of the
fingerprint, bucket from the first, shard from the top of the second).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cimport cython

from featurestore.core.arena cimport (
    Arena, arena_alloc, arena_at, arena_clear, arena_free, arena_init, fs_prefetch,
)
from featurestore.core.pages cimport SLAB_BYTES, Pool, pages_map, pages_unmap, pool_clear, pool_init

from featurestore.core.structs import same_structs

same_structs(__name__, table_structs())

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    FIRST_BUCKETS = 4
    PREFETCH_AHEAD = 8
    MAPPED_BYTES = 64 << 10      # from this size on a table is pages of its own, given back when it has grown
    SHRINK_BELOW = 8             # a table less than an eighth as full as it may be is rebuilt


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
    table.n_rows = table.n_rebuilt = 0
    return 0 if table.buckets != NULL else -1


cdef void table_clear(Table* table) noexcept nogil:
    _free_buckets(table.buckets, table.n_buckets)
    table.buckets = NULL
    table.n_buckets = table.n_rows = 0


cdef inline bint _has_room(uint64_t n_buckets, uint64_t n_rows) noexcept nogil:
    # 27/32 = 84 % full: an absent key then takes 2.0 buckets, and 1.2 on the way there.
    return n_rows * 32 <= n_buckets * SLOTS * 27


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
        buckets[at].overflowed += 1
        at = (at + 1) & mask


cdef int _rebuild(Table* table, const Arena* arena, uint64_t n) noexcept nogil:
    cdef uint64_t at
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
    table.n_rebuilt += 1
    return 0


cdef int table_insert(Table* table, const Arena* arena, uint32_t row) noexcept nogil:
    cdef const uint64_t* fp = <const uint64_t*>arena_at(arena, row)
    if not _has_room(table.n_buckets, table.n_rows + 1) and _rebuild(table, arena, table.n_buckets * 2) < 0:
        return -1
    _put(table.buckets, table.n_buckets - 1, fp[0], fp[1], row)
    table.n_rows += 1
    return 0


cdef inline uint64_t _pull(Table* table, const Arena* arena, uint64_t to, int slot) noexcept nogil:
    """Fills the free slot of a bucket that keys went past with the nearest of them, whose slot is free then:
    that bucket * SLOTS + slot."""
    cdef uint64_t mask = table.n_buckets - 1, at = to
    cdef Bucket* bucket
    cdef const uint64_t* row
    cdef int i
    while True:
        at = (at + 1) & mask
        bucket = &table.buckets[at]
        for i in range(SLOTS):
            row = <const uint64_t*>arena_at(arena, bucket.rows[i])
            # It went past `to` if its home is further from here than `to` is.
            if bucket.tags[i] and ((at - row[0]) & mask) >= ((at - to) & mask):
                table.buckets[to].tags[slot] = bucket.tags[i]
                table.buckets[to].rows[slot] = bucket.rows[i]
                while to != at:
                    table.buckets[to].overflowed -= 1
                    to = (to + 1) & mask
                return at * SLOTS + i


cdef inline uint64_t _bucket_of(const Table* table, const uint32_t* place) noexcept nogil:
    return <uint64_t>(<const char*>place - <const char*>table.buckets) // sizeof(Bucket)


cdef void table_remove(Table* table, const Arena* arena, uint32_t* place) noexcept nogil:
    cdef const uint64_t* row = <const uint64_t*>arena_at(arena, place[0])
    cdef uint64_t mask = table.n_buckets - 1, found = _bucket_of(table, place), at = row[0] & mask
    cdef int slot = <int>(place - table.buckets[found].rows)
    while at != found:
        table.buckets[at].overflowed -= 1
        at = (at + 1) & mask
    while table.buckets[at].overflowed:
        found = _pull(table, arena, at, slot)
        at = found // SLOTS
        slot = <int>(found % SLOTS)
    table.buckets[at].tags[slot] = 0
    table.buckets[at].rows[slot] = 0
    table.n_rows -= 1


cdef uint64_t table_reach(const Table* table, const uint32_t* place, uint64_t* last) noexcept nogil:
    cdef uint64_t first = _bucket_of(table, place)
    last[0] = first
    while table.buckets[last[0]].overflowed:
        last[0] = (last[0] + 1) & (table.n_buckets - 1)
    return first


cdef void table_shrink(Table* table, const Arena* arena) noexcept nogil:
    cdef uint64_t n = table.n_buckets
    if n > FIRST_BUCKETS and _has_room(n, table.n_rows * SHRINK_BELOW):
        # Left half as full as it may be: the next rows do not make it grow at once.
        while n > FIRST_BUCKETS and _has_room(n // 2, table.n_rows * 2):
            n //= 2
        _rebuild(table, arena, n)              # without memory for it, it stays as it is


# -- Python --------------------------------------------------------------------------------------------------

cdef uint64_t _probe(const Table* table, uint64_t fp0) noexcept nogil:
    """Buckets that table_find looks at before it says of such a key that it is absent."""
    cdef uint64_t at = fp0 & (table.n_buckets - 1), n = 1
    while table.buckets[at].overflowed and n <= table.n_buckets:
        at = (at + 1) & (table.n_buckets - 1)
        n += 1
    return n


@cython.final
cdef class Index:
    """A table over rows that are nothing but their fingerprints: uint64 of shape (n, 2)."""
    cdef Pool _pool
    cdef Arena _arena
    cdef Table _table

    def __cinit__(self):
        if pool_init(&self._pool) < 0:
            raise MemoryError
        arena_init(&self._arena, &self._pool)
        if table_init(&self._table) < 0:
            raise MemoryError

    def __dealloc__(self):
        table_clear(&self._table)
        arena_clear(&self._arena)
        pool_clear(&self._pool)

    cdef int _check(self, const uint64_t[:, ::1] fps) except -1:
        if fps.shape[1] != 2:
            raise ValueError(f"fingerprints have 2 words, not {fps.shape[1]}")
        return 0

    def insert(self, const uint64_t[:, ::1] fps not None):
        """Of keys that are absent."""
        cdef Py_ssize_t i
        cdef uint32_t row
        cdef uint64_t* fp
        cdef int status = 0
        self._check(fps)
        with nogil:
            for i in range(fps.shape[0]):
                row = arena_alloc(&self._arena, 16)
                if row == 0:
                    status = -1
                    break
                fp = <uint64_t*>arena_at(&self._arena, row)
                fp[0] = fps[i, 0]
                fp[1] = fps[i, 1]
                status = table_insert(&self._table, &self._arena, row)
                if status < 0:
                    break
        if status < 0:
            raise MemoryError

    def remove(self, const uint64_t[:, ::1] fps not None):
        """How many of these keys were there."""
        cdef Py_ssize_t i, n_removed = 0
        cdef uint32_t* place
        cdef uint32_t row
        self._check(fps)
        with nogil:
            for i in range(fps.shape[0]):
                place = table_find(&self._table, &self._arena, fps[i, 0], fps[i, 1])
                if place != NULL:
                    row = place[0]
                    table_remove(&self._table, &self._arena, place)
                    arena_free(&self._arena, row, 16)
                    n_removed += 1
        return n_removed

    def find(self, const uint64_t[:, ::1] fps not None):
        """How many of these keys are there."""
        cdef Py_ssize_t i, n_found = 0
        self._check(fps)
        with nogil:
            for i in range(fps.shape[0]):
                n_found += table_find(&self._table, &self._arena, fps[i, 0], fps[i, 1]) != NULL
        return n_found

    def probes(self):
        """Buckets looked at for an absent key, by its home bucket; one more than all: it would not end."""
        return [_probe(&self._table, at) for at in range(self._table.n_buckets)]

    def buckets(self):
        """(keys in it, keys that went past it), by bucket."""
        cdef uint64_t at
        cdef int slot
        found = []
        for at in range(self._table.n_buckets):
            taken = 0
            for slot in range(SLOTS):
                taken += self._table.buckets[at].tags[slot] != 0
            found.append((taken, self._table.buckets[at].overflowed))
        return found

    def shrink(self):
        table_shrink(&self._table, &self._arena)

    def __len__(self):
        return self._table.n_rows
