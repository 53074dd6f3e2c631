# How many different values a key had in a window: exact while they are few, then estimated with bounds.
#
#   SET      [value, last seen][value, last seen]…             up to exact_values values, by fingerprint
#   MATRIX   rank 0  [last seen of register 0, 1, … m - 1]     dense: a rank of which half is occupied
#            rank 1  [last seen …]
#            …
#            [rank, register, last seen]…                      sparse: the ranks above, cell by cell
#
# A matrix remembers of each (register, rank) when a value that hashes to it was last seen. One structure
# answers every window, because a window only chooses which last times are recent enough. distinct.pyx has the
# idea, the papers, the guarantee and what was measured.
#
# A value is a 64-bit hash under the store's secret, of which the upper 40 bits count: its fingerprint.
# Times are within MAX_TIME_MS of the epoch. `horizon_ms` is the oldest time that still counts, never goes
# back, and is at most keep_ms + SLACK_MS behind the newest time added. What is older reads, exports and
# compares as absent, whether or not its memory was given back.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena, arena_structs
from featurestore.core.head cimport LogHead, head_structs

cdef enum:
    EXPORT_SET = 4               # kinds of what is exported
    EXPORT_MATRIX = 5
    FINGERPRINT_BITS = 40
    MIN_LOG2_REGISTERS = 6
    MAX_LOG2_REGISTERS = 14
    MAX_EXACT_VALUES = 4096
    DEFAULT_EXACT_VALUES = 512
    DEFAULT_LOG2_REGISTERS = 9
    SLACK_MS = 86_400_000        # how far ahead of now the newest time may be

cdef extern from * nogil:
    """
    #define FS_MAX_DISTINCT_TIME_MS (1LL << 48)
    #define FS_MAX_DISTINCT_KEEP_MS (1LL << 38)
    """
    const int64_t MAX_TIME_MS "FS_MAX_DISTINCT_TIME_MS"  # 8,900 years; the year 9999 is within it
    const int64_t MAX_KEEP_MS "FS_MAX_DISTINCT_KEEP_MS"  # 8.7 years

ctypedef struct DistinctC:       # what the plan fixes; see distinct_c
    double z                     # the bounds of a MATRIX are so many standard errors away, 0 < z <= 4
    int64_t keep_ms              # max(window) + lateness
    uint32_t exact_values        # 1 .. MAX_EXACT_VALUES: one more makes it a MATRIX
    uint8_t log2_registers
    uint8_t tick_bits            # a MATRIX keeps times in units of 2^tick_bits ms

ctypedef struct DistinctValue:   # of one window
    double estimate              # lower <= estimate <= upper
    double lower
    double upper
    uint8_t certain              # 1: the truth is within the bounds; 0: with the confidence of z
    uint8_t past                 # something seen later may have been seen in it too

# The constants of a view; the arguments are within the limits above.
cdef DistinctC distinct_c(uint32_t exact_values, uint8_t log2_registers, double z,
                          int64_t keep_ms) noexcept nogil

# A head of kind LOG_DISTINCT: block 0 holds nothing; n_small > 0 is a SET of so many; 0: the block says.
# Counts one value, seen at time_ms >= horizon_ms. 0, or -1 out of memory (then nothing changed).
cdef int distinct_add(Arena* arena, LogHead* head, const DistinctC* c, uint64_t hash, int64_t time_ms,
                      int64_t horizon_ms) noexcept nogil
# Fetches what distinct_add will touch, in two steps some additions apart: of a large block the place depends
# on what its beginning says. The first wants the head in the cache already.
cdef void distinct_prefetch(const Arena* arena, const LogHead* head, const DistinctC* c,
                            uint64_t hash) noexcept nogil
cdef void distinct_prefetch_value(const Arena* arena, const LogHead* head, const DistinctC* c,
                                  uint64_t hash) noexcept nogil
# Adds all that `from_` holds, in an arena that may be another one. 0, or -1 out of memory (then some of it).
cdef int distinct_merge(Arena* arena, LogHead* head, const DistinctC* c, const Arena* from_arena,
                        const LogHead* from_, int64_t horizon_ms) noexcept nogil

# Values with at_ms - window < last seen <= at_ms, one answer per window; windows_ms ascend. What was last
# seen after at_ms may have been seen before it too: it counts in upper and not in lower, and in the estimate
# as far as the window reaches towards that time. own_hash: of a value that was surely seen at at_ms; 0: none
# is known.
cdef void distinct_read(const Arena* arena, const LogHead* head, const DistinctC* c, int64_t at_ms,
                        int64_t horizon_ms, uint64_t own_hash, const int64_t* windows_ms, uint32_t n_windows,
                        DistinctValue* out) noexcept nogil

# True when nothing in it can be read any more.
cdef bint distinct_expired(const Arena* arena, const LogHead* head, int64_t horizon_ms) noexcept nogil
# Gives back memory of what the horizon has passed. Changes no answer and no exported byte. 0, or -1 when out
# of memory (then it is as it was).
cdef int distinct_prune(Arena* arena, LogHead* head, const DistinctC* c, int64_t horizon_ms) noexcept nogil
cdef void distinct_free(Arena* arena, LogHead* head, const DistinctC* c) noexcept nogil
cdef int distinct_clone(Arena* arena, const LogHead* head, const DistinctC* c,
                        LogHead* copy) noexcept nogil        # 0, or -1 out of memory
cdef size_t distinct_block_bytes(const Arena* arena, const LogHead* head, const DistinctC* c) noexcept nogil

# As bytes, equal for equal content; little-endian, all sizes multiples of 8. Size, then writing exactly that
# many.
#   SET      u16 view_id, u8 4, u8 0, u32 values, i64 base, then the values by fingerprint, 10 bytes each:
#            u40 fingerprint, u40 last seen - base + 2^39; padded with 0. base: the greatest multiple of 2^39
#            that is at most the newest time
#   MATRIX   u16 view_id, u8 5, u8 log2 of m, u8 tick_bits, u8 dense ranks, u16 0, u32 sparse cells, u32 0,
#            i64 newest time, then m * dense ranks i32, then the sparse cells by (rank, register):
#            i32 last seen, u16 register, u16 rank. Last seen: time >> tick_bits, less the greatest multiple
#            of 2^31 that is at most newest >> tick_bits; -2^31: never. Dense: the ranks before the first of
#            which less than half is occupied.
cdef size_t distinct_export_bytes(const Arena* arena, const LogHead* head, const DistinctC* c,
                                  int64_t horizon_ms) noexcept nogil
cdef void distinct_export(const Arena* arena, const LogHead* head, const DistinctC* c, int64_t horizon_ms,
                          uint8_t* out) noexcept nogil
# Reads one back. Bytes consumed, 0 when they are not such a structure under c, -1 when out of memory.
cdef int64_t distinct_import(Arena* arena, LogHead* head, const DistinctC* c, const uint8_t* data,
                             size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict distinct_structs():
    return arena_structs() | head_structs() | {
        "core/distinct.pxd": (sizeof(DistinctC), sizeof(DistinctValue)),
    }
