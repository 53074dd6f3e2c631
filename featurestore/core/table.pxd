# Index of one shard: 128-bit fingerprint → row handle.
#
# A bucket is one cache line: 12 one-byte tags, 12 row handles, a count. A probe reads the home bucket,
# compares tags, and looks at the rows behind equal tags (each row starts with its fingerprint); it goes on to
# the next bucket only while a key that is in the table now had to. So a hit costs two cache lines and an
# absent key, nearly always, one.
#
#   bytes per key = 64 / 12 / load: 6.3 just before doubling, 12.5 just after
#
# It grows, and shrinks, without a pause: beside the buckets there is for a while a second array of them, out
# of which each insertion moves one bucket's keys, and table_move some more. Until it is empty a key may be in
# either. The new array has room for more keys than the old one has buckets, so that no change of size has to
# wait for the end of the one before.
#
# A bucket that keys went past is full: table_remove fills a free place in it from further on. So the cost of
# a probe depends on the keys that are there, and not on how many came and went; and since a table is never
# full, some bucket has room, none went past that one, and there every probe ends.
#
# Fingerprints are keyed SipHash, so their bits are uniform even when an attacker chooses the keys.
# Not thread-safe: the owner is a shard, and its lock is held around every call.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from featurestore.core.arena cimport Arena, arena_at, arena_structs, fs_prefetch

cdef enum:
    SLOTS = 12

ctypedef struct Bucket:
    uint8_t tags[SLOTS]          # 0 = empty
    uint32_t overflowed          # keys that are further on, and whose probe came by here
    uint32_t rows[SLOTS]         # arena handles

ctypedef struct Buckets:
    Bucket* at                   # [n], owned, cache-line aligned
    uint64_t n                   # a power of two; 0: there are none

ctypedef struct Table:
    Buckets now
    Buckets old                  # while the size changes: those that keys are moved out of
    uint64_t n_moved             # of the old ones, from the first on: they are empty
    uint64_t n_rows
    uint64_t n_resized           # counts how often it began to
    uint64_t n_moves             # counts what made places bad other than a removal

cdef int table_init(Table* table) noexcept nogil                    # 0, or -1 when out of memory
cdef void table_clear(Table* table) noexcept nogil
cdef int table_insert(Table* table, const Arena* arena, uint32_t row) noexcept nogil
# The row's fingerprint must be set and absent from the table. 0, or -1 when out of memory.
# Rows further on may move to a place before theirs: each to a bucket from that of `place` on, and from one
# up to table_reach's.
cdef void table_remove(Table* table, const Arena* arena, uint32_t* place) noexcept nogil
# The bucket of a place, and the last one (it may be a smaller number) that its removal may take a row from.
# Of a table that does not change its size.
cdef uint64_t table_reach(const Table* table, const uint32_t* place, uint64_t* last) noexcept nogil
# Moves the keys of up to so many old buckets. Whether there are more: until then, `now` has not all rows.
cdef bint table_move(Table* table, const Arena* arena, uint64_t n_buckets) noexcept nogil
# Begins to give memory back after many removals: whether there is something to move. Of a table that does not
# change its size.
cdef bint table_shrink(Table* table) noexcept nogil
cdef inline uint64_t table_bytes(const Table* table) noexcept nogil:
    return (table.now.n + table.old.n) * sizeof(Bucket)

cdef extern from * nogil:
    """
    /* Slots whose tag is `tag`, a bit each in one word: that of slots 0..7 at 8 * slot, that of 8..11 at
       8 * (slot - 8) + 4. Exact: the sum of seven bits a byte never carries into the next byte. */
    static inline uint64_t fs_equal_tags(const uint8_t* tags, uint8_t tag) {
        const uint64_t low = 0x7F7F7F7F7F7F7F7Full, each = tag * 0x0101010101010101ull;
        uint64_t a;
        uint32_t b;
        memcpy(&a, tags, 8);
        memcpy(&b, tags + 8, 4);
        a ^= each;
        b ^= (uint32_t)each;
        a = ~(((a & low) + low) | a | low);
        b = ~(((b & (uint32_t)low) + (uint32_t)low) | b | (uint32_t)low);
        return a >> 7 | (uint64_t)b >> 3;
    }
    static inline unsigned fs_first_slot(uint64_t equal) {
        const unsigned bit = (unsigned)__builtin_ctzll(equal);
        return bit >> 3 | (bit & 4) << 1;
    }
    """
    uint64_t fs_equal_tags(const uint8_t* tags, uint8_t tag) noexcept
    uint32_t fs_first_slot(uint64_t equal) noexcept          # equal is not 0

cdef inline uint32_t* buckets_find(const Buckets* buckets, const Arena* arena, uint64_t fp0,
                                   uint64_t fp1) noexcept nogil:
    cdef uint64_t at = fp0 & (buckets.n - 1)
    cdef uint8_t tag = <uint8_t>(fp1 & 0x7F) | 0x80
    cdef uint64_t equal
    cdef Bucket* bucket
    cdef const uint64_t* row
    cdef uint32_t i
    while True:
        bucket = &buckets.at[at]
        equal = fs_equal_tags(bucket.tags, tag)
        while equal:
            i = fs_first_slot(equal)
            row = <const uint64_t*>arena_at(arena, bucket.rows[i])
            if row[0] == fp0 and row[1] == fp1:
                return &bucket.rows[i]
            equal &= equal - 1
        if not bucket.overflowed:
            return NULL
        at = (at + 1) & (buckets.n - 1)

cdef inline uint32_t* table_find(const Table* table, const Arena* arena, uint64_t fp0,
                                 uint64_t fp1) noexcept nogil:
    """The place of the row's handle, or NULL; good until a row comes or goes, or table_move."""
    cdef uint32_t* place = buckets_find(&table.now, arena, fp0, fp1)
    if place == NULL and table.old.n:
        place = buckets_find(&table.old, arena, fp0, fp1)
    return place

# While the size changes these ask for what is in `now` only.

cdef inline void table_prefetch(const Table* table, uint64_t fp0) noexcept nogil:
    fs_prefetch(&table.now.at[fp0 & (table.now.n - 1)])

cdef inline void table_prefetch_rows(const Table* table, const Arena* arena, uint64_t fp0, uint64_t fp1,
                                     size_t n_bytes) noexcept nogil:
    """The rows in the home bucket whose tag fits: one, nearly always. n_bytes: of it, across up to two
    lines."""
    cdef const Bucket* bucket = &table.now.at[fp0 & (table.now.n - 1)]
    cdef uint64_t equal = fs_equal_tags(bucket.tags, <uint8_t>(fp1 & 0x7F) | 0x80)
    cdef const char* row
    while equal:
        row = <const char*>arena_at(arena, bucket.rows[fs_first_slot(equal)])
        fs_prefetch(row)
        fs_prefetch(row + n_bytes - 1)
        equal &= equal - 1

# Compared at import: see core/structs.py.
cdef inline dict table_structs():
    return arena_structs() | {"core/table.pxd": (sizeof(Bucket), sizeof(Buckets), sizeof(Table))}
