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
    MAPPED_BYTES = 64 << 10      # from this size on an array is pages of its own, given back when it is empty
    SHRINK_BELOW = 8             # a table less than an eighth as full as it may be shrinks
    SHRINK_BY = 4                # to less than half of that


cdef int _make(Buckets* buckets, uint64_t n) noexcept nogil:
    """So many, all empty. 0, or -1 when out of memory."""
    cdef uint64_t n_bytes = n * sizeof(Bucket)
    buckets.at = NULL
    if n <= (<uint64_t>1 << 40):
        if n_bytes >= MAPPED_BYTES:
            buckets.at = <Bucket*>pages_map(n_bytes, n_bytes >= SLAB_BYTES)
        else:
            buckets.at = <Bucket*>aligned_alloc(64, n_bytes)
            if buckets.at != NULL:
                memset(buckets.at, 0, n_bytes)
    buckets.n = n if buckets.at != NULL else 0
    return 0 if buckets.at != NULL else -1


cdef void _free(Buckets* buckets) noexcept nogil:
    if buckets.n * sizeof(Bucket) < MAPPED_BYTES:
        free(buckets.at)
    else:
        pages_unmap(buckets.at, buckets.n * sizeof(Bucket))
    memset(buckets, 0, sizeof(Buckets))


cdef int table_init(Table* table) noexcept nogil:
    memset(table, 0, sizeof(Table))
    return _make(&table.now, FIRST_BUCKETS)


cdef void table_clear(Table* table) noexcept nogil:
    _free(&table.now)
    _free(&table.old)
    memset(table, 0, sizeof(Table))


cdef inline bint _has_room(uint64_t n_buckets, uint64_t n_rows) noexcept nogil:
    # 27/32 = 84 % full: an absent key then takes 2.0 buckets, and 1.2 on the way there.
    return n_rows * 32 <= n_buckets * SLOTS * 27


cdef inline void _put(Buckets* buckets, uint64_t fp0, uint64_t fp1, uint32_t row) noexcept nogil:
    cdef uint64_t mask = buckets.n - 1, at = fp0 & mask
    cdef Bucket* bucket
    cdef int i
    while True:
        bucket = &buckets.at[at]
        for i in range(SLOTS):
            if bucket.tags[i] == 0:
                bucket.tags[i] = <uint8_t>(fp1 & 0x7F) | 0x80
                bucket.rows[i] = row
                return
        bucket.overflowed += 1
        at = (at + 1) & mask


cdef inline uint64_t _pull(Buckets* buckets, const Arena* arena, uint64_t to, int slot) noexcept nogil:
    """Fills the free slot of a bucket that keys went past with the nearest of them, whose slot is free then:
    that bucket * SLOTS + slot."""
    cdef uint64_t mask = buckets.n - 1, at = to
    cdef Bucket* bucket
    cdef const uint64_t* row
    cdef int i
    while True:
        at = (at + 1) & mask
        bucket = &buckets.at[at]
        for i in range(SLOTS):
            row = <const uint64_t*>arena_at(arena, bucket.rows[i])
            # It went past `to` if its home is further from here than `to` is.
            if bucket.tags[i] and ((at - row[0]) & mask) >= ((at - to) & mask):
                buckets.at[to].tags[slot] = bucket.tags[i]
                buckets.at[to].rows[slot] = bucket.rows[i]
                while to != at:
                    buckets.at[to].overflowed -= 1
                    to = (to + 1) & mask
                return at * SLOTS + i


cdef void _take(Buckets* buckets, const Arena* arena, uint64_t found, int slot) noexcept nogil:
    """What is in this slot out of the buckets, which are then as if it had never been there."""
    cdef const uint64_t* row = <const uint64_t*>arena_at(arena, buckets.at[found].rows[slot])
    cdef uint64_t mask = buckets.n - 1, at = row[0] & mask
    while at != found:
        buckets.at[at].overflowed -= 1
        at = (at + 1) & mask
    while buckets.at[at].overflowed:
        found = _pull(buckets, arena, at, slot)
        at = found // SLOTS
        slot = <int>(found % SLOTS)
    buckets.at[at].tags[slot] = 0
    buckets.at[at].rows[slot] = 0


cdef int _resize(Table* table, uint64_t n) noexcept nogil:
    """Begins to move what there is to n buckets. 0, or -1 when out of memory: then it stays as it is."""
    cdef Buckets made
    if _make(&made, n) < 0:
        return -1
    table.old = table.now
    table.now = made
    table.n_moved = 0
    table.n_resized += 1
    table.n_moves += 1
    return 0


cdef bint table_move(Table* table, const Arena* arena, uint64_t n_buckets) noexcept nogil:
    cdef Bucket* bucket
    cdef const uint64_t* row
    cdef uint32_t handle
    cdef int i
    if table.old.n == 0:
        return False
    table.n_moves += 1
    while n_buckets and table.n_moved < table.old.n:
        if table.n_moved + 1 < table.old.n:
            bucket = &table.old.at[table.n_moved + 1]
            for i in range(SLOTS):
                if bucket.tags[i]:
                    fs_prefetch(arena_at(arena, bucket.rows[i]))
        bucket = &table.old.at[table.n_moved]
        for i in range(SLOTS):
            while bucket.tags[i]:                # those that went past it come into their places
                handle = bucket.rows[i]
                row = <const uint64_t*>arena_at(arena, handle)
                if bucket.overflowed or row[0] & (table.old.n - 1) != table.n_moved:
                    _take(&table.old, arena, table.n_moved, i)
                else:
                    bucket.tags[i] = 0           # nothing else knows of it
                    bucket.rows[i] = 0
                _put(&table.now, row[0], row[1], handle)
        table.n_moved += 1
        n_buckets -= 1
    if table.n_moved < table.old.n:
        return True
    _free(&table.old)
    return False


cdef int table_insert(Table* table, const Arena* arena, uint32_t row) noexcept nogil:
    cdef const uint64_t* fp = <const uint64_t*>arena_at(arena, row)
    if table.old.n == 0 and not _has_room(table.now.n, table.n_rows + 1) and _resize(
            table, table.now.n * 2) < 0:
        return -1
    if table.old.n:
        table_move(table, arena, 1)
    _put(&table.now, fp[0], fp[1], row)
    table.n_rows += 1
    return 0


cdef inline bint _is_in(const Buckets* buckets, const uint32_t* place) noexcept nogil:
    return <size_t>place - <size_t>buckets.at < buckets.n * sizeof(Bucket)


cdef inline uint64_t _bucket_of(const Buckets* buckets, const uint32_t* place) noexcept nogil:
    return (<size_t>place - <size_t>buckets.at) // sizeof(Bucket)


cdef void table_remove(Table* table, const Arena* arena, uint32_t* place) noexcept nogil:
    cdef Buckets* buckets = &table.now if _is_in(&table.now, place) else &table.old
    cdef uint64_t found = _bucket_of(buckets, place)
    _take(buckets, arena, found, <int>(place - buckets.at[found].rows))
    table.n_rows -= 1


cdef uint64_t table_reach(const Table* table, const uint32_t* place, uint64_t* last) noexcept nogil:
    cdef uint64_t first = _bucket_of(&table.now, place)
    last[0] = first
    while table.now.at[last[0]].overflowed:
        last[0] = (last[0] + 1) & (table.now.n - 1)
    return first


cdef bint table_shrink(Table* table) noexcept nogil:
    # What is left has then room for more keys than there are buckets to move.
    return (table.old.n == 0 and table.now.n > FIRST_BUCKETS
            and _has_room(table.now.n, table.n_rows * SHRINK_BELOW)
            and _resize(table, max(table.now.n // SHRINK_BY, <uint64_t>FIRST_BUCKETS)) == 0)


# -- Python --------------------------------------------------------------------------------------------------

cdef uint64_t _probe(const Buckets* buckets, uint64_t fp0) noexcept nogil:
    """Buckets that buckets_find looks at before it says of such a key that it is absent."""
    cdef uint64_t at = fp0 & (buckets.n - 1), n = 1
    while buckets.at[at].overflowed and n <= buckets.n:
        at = (at + 1) & (buckets.n - 1)
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
        return [_probe(&self._table.now, at) for at in range(self._table.now.n)]

    def buckets(self, *, bint old=False):
        """(keys in it, keys that went past it), by bucket. old: of those that keys are moved out of."""
        cdef const Buckets* buckets = &self._table.old if old else &self._table.now
        cdef uint64_t at
        cdef int slot
        found = []
        for at in range(buckets.n):
            taken = 0
            for slot in range(SLOTS):
                taken += buckets.at[at].tags[slot] != 0
            found.append((taken, buckets.at[at].overflowed))
        return found

    def shrink(self):
        """Whether it begins to."""
        return table_shrink(&self._table)

    def move(self, uint64_t n_buckets):
        """Moves the keys of so many old buckets; whether there are more."""
        return table_move(&self._table, &self._arena, n_buckets)

    @property
    def n_resized(self):
        """How often its size has begun to change."""
        return self._table.n_resized

    def __len__(self):
        return self._table.n_rows
