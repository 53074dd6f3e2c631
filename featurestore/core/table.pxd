# Index of one shard: 128-bit fingerprint → row handle.
#
# A bucket is one cache line: 12 one-byte tags, 12 row handles, a flag. A probe reads the home bucket,
# compares tags, and looks at the rows behind equal tags (each row starts with its fingerprint); it goes on to
# the next bucket only where a key once had to. So a hit costs two cache lines and an absent key, nearly
# always, one.
#
#   bytes per key = 64 / 12 / load: 6.3 just before doubling, 12.5 just after
#
# Fingerprints are keyed SipHash, so their bits are uniform even when an attacker chooses the keys.
# Not thread-safe: the owner is a shard, and its lock is held around every call.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena, arena_at

cdef enum:
    SLOTS = 12

ctypedef struct Bucket:
    uint8_t tags[SLOTS]          # 0 = empty
    uint32_t overflowed          # 1: some key whose probe came here was put further on
    uint32_t rows[SLOTS]         # arena handles

ctypedef struct Table:
    Bucket* buckets              # owned, cache-line aligned
    uint64_t n_buckets           # a power of two
    uint64_t n_rows

cdef int table_init(Table* table) noexcept nogil                    # 0, or -1 when out of memory
cdef void table_clear(Table* table) noexcept nogil
cdef uint32_t* table_find(const Table* table, const Arena* arena, uint64_t fp0, uint64_t fp1) noexcept nogil
# The place of the row's handle, or NULL; good until the next table_insert.
cdef int table_insert(Table* table, const Arena* arena, uint32_t row) noexcept nogil
# The row's fingerprint must be set and absent from the table. 0, or -1 when out of memory.
cdef void table_remove(Table* table, uint32_t* place) noexcept nogil

cdef extern from * nogil:
    """
    #define fs_prefetch(p) __builtin_prefetch((const void*)(p), 1, 3)
    """
    void fs_prefetch(const void* p) noexcept

cdef inline void table_prefetch(const Table* table, uint64_t fp0) noexcept nogil:
    fs_prefetch(&table.buckets[fp0 & (table.n_buckets - 1)])

cdef inline uint32_t table_guess(const Table* table, uint64_t fp0, uint64_t fp1) noexcept nogil:
    """First row in the home bucket whose tag fits, or 0: for prefetching only, nothing is compared."""
    cdef const Bucket* bucket = &table.buckets[fp0 & (table.n_buckets - 1)]
    cdef uint8_t tag = <uint8_t>(fp1 & 0x7F) | 0x80
    cdef int i
    for i in range(SLOTS):
        if bucket.tags[i] == tag:
            return bucket.rows[i]
    return 0
