# Counts and sums of keys too many to have rows: a windowed count-min sketch, conservatively updated.
#
#   key ──► one cell in each of `depth` rows of `width` cells
#
#   cell, 128 bytes (windows 1m 10m 1h 1d 7d, lateness 1h):
#     ┌───────┬──────────┬───────────┬────────────┬───────────┬────────────┐
#     │ stamp │ 6 x 12 s │ 6 x 2 min │ 6 x 12 min │ 6 x 4.8 h │ 7 x 33.6 h │
#     └───────┴──────────┴───────────┴────────────┴───────────┴────────────┘
#               1m         10m         1h           1d          7d + 1h
#
# A level is a ring of time slices, each 1/n_slices of its window, at fixed places: slice n of absolute time
# is in place n mod ring. The stamp is the newest time at which the cell was last used: a place whose slice
# has begun since holds an older one, which counts as 0 and is zeroed at the next update. So nothing moves and
# nothing is swept as time goes on, and what a key has is `depth` pieces of adjacent cache lines (two each,
# above). An update raises one slice a level. A window is read from the finest level that still reaches its
# beginning: sum over its slices of the minimum over rows.
#
# Guarantee, for a window read at t, truth = weight of the key's events in t - window < time <= t:
#   certain        truth <= estimate, whatever came in whatever order, late or at once (so it is the upper
#                  bound)
#   at 1 - delta   lower <= truth, where lower = max(0, estimate of the slices wholly inside - bound), and
#                  bound = e / width * N <= epsilon * N, N = weight of all events in the slices that the
#                  window touches
# The window's edge cuts a slice nearly always: all of it is in `estimate`, none of it in `lower`. That slice
# is at most 1/n_slices of a declared window long when read at or after the newest event; read before it, as
# long as those of the level that still reaches so far back. delta is over the secret that the fingerprints
# are keyed with, for one key and window chosen without knowing it. (Sums are rounded up, by less than 2^-52
# of themselves per event, which `lower` does not take off: far less than epsilon.)
#
# Papers: Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch", J. Algorithms
# 2005 (width e / epsilon, depth ln 1/delta: a row is off by more than epsilon * N with probability at most
# 1/e); Estan and Varghese, "New directions in traffic measurement and accounting", SIGCOMM 2002 (conservative
# update: no cell is raised above what the key can have, so cells are at most the plain sketch's and the bound
# holds as it stands); Matusevych, Smola, Ahmed, "Hokusai: sketching streams in real time", UAI 2012 (sketches
# by age, whose slices double as they grow old).
#
# A sketch keeps longest window + lateness behind its newest event. An event from before that is late: not
# counted, and said so. A window that begins before it is UNAVAILABLE. Offsets are not answered.
#
# Saturation. A count that would overflow stays at 2^31 - 1, a sum at infinity. A window that touches such a
# counter says SATURATED; its estimate is N, which is certain, and its lower bound uses a count as it is, of a
# sum it is 0.
#
# Adding is not commutative (conservative update depends on order), the guarantee holds in any order. Not
# invertible. Merge adds counters: the sum bounds the whole from above as before, and is at most the plain
# sketch's, but it is not what one sketch would have held. Time: O(depth * levels) an update, O(depth * slices
# + windows) a read. State is a function of the sequence of adds alone, never of batches, memory or reads.
#
# Nothing of a key is kept, so a key cannot be removed: what it added stays, unnamed, until it has aged.
# Not thread-safe: the owner is a shard, and its lock is held around every call.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs

cdef enum:
    MAX_DEPTH = 16
    MAX_LEVELS = 16
    MAX_SLICES = 63              # of all levels
    MAX_WORDS = 64               # of a cell: its stamp and its slices
    MAX_WINDOWS = 32             # read at once

cdef enum CounterKind:
    COUNTER_COUNT = 0            # uint32_t counters, at most 2^31 - 1: whole weights
    COUNTER_SUM = 1              # double counters: weights of 0 and more, sums rounded up

ctypedef struct Level:
    int64_t slice_ms             # a multiple of the tick; n is slice_ms * n <= time < slice_ms * (n + 1)
    int64_t reach_ms             # how far behind the newest event it keeps all, at least
    uint32_t first               # its place in the cell
    uint32_t n_slices            # slice n is at first + n mod n_slices

ctypedef struct Shape:           # how time is cut: from windows and lateness only
    int64_t unit_ms              # a tick: the shortest slice
    uint32_t n_levels
    uint32_t n_slices            # of all levels
    Level levels[MAX_LEVELS]     # shortest first

ctypedef struct CountminC:       # a view's sketches: each shard has one
    Shape shape
    uint64_t width
    uint64_t n_bytes             # of one
    uint32_t depth
    uint32_t kind                # CounterKind

ctypedef struct Ruler:           # which slices a cell holds when the newest event is in `tick`
    int32_t tick                 # counted from the sketch's origin, above 0; 0 before any event
    uint32_t newest[MAX_LEVELS]  # where the newest slice of each level is
    int64_t numbers[MAX_LEVELS]  # which slice that is: n of slice_ms * n <= time < slice_ms * (n + 1)
    int32_t begins[MAX_WORDS]   # the tick with which the slice in each place begins: a cell holds it if its
                                 # stamp is not before that
    double begins_as_sums[MAX_WORDS]    # the same, to be compared beside sums

ctypedef struct Countmin:
    char* cells                  # owned: depth rows of width cells: int32_t stamp, 0 = never used, padded to
                                 # a word; then a word (uint32_t or double) per slice
    uint32_t* marks              # owned: [n_pieces] the cut after which the piece last changed, 0 = never
    uint64_t width
    double error                 # e / width: the share of N that is `bound`
    uint64_t n_pieces
    size_t n_bytes               # of cells
    uint32_t depth
    uint32_t kind                # CounterKind
    uint32_t cell_bytes
    uint32_t n_words             # of a cell
    uint32_t piece_bits          # a piece is 2^piece_bits cells, within PIECE_BYTES
    Shape shape
    int64_t origin_ms            # where tick 0 begins, a multiple of the tick; UNSET_MS before any event
    int64_t newest_ms            # of all events counted; UNSET_MS before any
    int64_t from_ms              # the newest tick: from_ms <= time < until_ms
    int64_t until_ms
    Ruler now                    # for newest_ms
    double totals[MAX_WORDS]     # N of each slice, placed as in a cell that is stamped now.tick
    uint32_t cut                 # counts checkpoints begun, from 1
    uint32_t written             # the last cut whose checkpoint was written; pieces with mark < written are
                                 # in it
    uint32_t copying             # 1 while a checkpoint copies the pieces with written <= mark < cut
    uint64_t copy_piece          # next piece to copy
    Ruler at_cut                 # `now` at the cut
    Bytes copied                 # records of the checkpoint under way

cdef enum ReplyStatus:
    REPLY_OK = 0
    REPLY_SATURATED = 1
    REPLY_UNAVAILABLE = 2        # the window begins before what is kept: every number is NaN

ctypedef struct Reply:
    double estimate              # upper bound, certain
    double lower                 # at confidence 1 - delta
    double bound                 # e / width * weight: what the estimate is above the touched slices' truth,
                                 # at most
    double weight                # N: of all events in the slices that the window touches
    uint32_t status              # ReplyStatus
    uint32_t reserved

ctypedef struct WindowAt:
    uint32_t status              # ReplyStatus
    uint32_t ranges[2][2]        # places of the slices that it touches: from, to
    uint32_t n_cut
    uint32_t cuts[2]             # those that it touches without holding them whole
    double weight                # N

ctypedef struct Frame:           # windows at one time, as the sketch is now: good until the next add
    uint32_t n_windows
    WindowAt windows[MAX_WINDOWS]

# How the windows (ascending, each > 0) are cut into slices of at most 1/n_slices of each. 0; -1: no such cut,
# or more than MAX_SLICES in all.
cdef int shape_init(Shape* shape, const int64_t* windows_ms, uint32_t n_windows, int64_t lateness_ms,
                    uint32_t n_slices) noexcept nogil
# Bytes of a cell.
cdef uint32_t shape_cell_bytes(const Shape* shape, uint32_t kind) noexcept nogil

# Width and depth by what is declared. 0; -1: out of range: 0 < epsilon < 1, 0 < delta < 1, depth <=
# MAX_DEPTH, cells of at most 64 GiB, or no such shape.
cdef int countmin_c(CountminC* settings, const int64_t* windows_ms, uint32_t n_windows, int64_t lateness_ms,
                    uint32_t n_slices, uint32_t kind, double epsilon, double delta) noexcept nogil
# 0; -1: out of memory. Whatever it says, countmin_clear is due.
cdef int countmin_init(Countmin* sketch, const CountminC* settings) noexcept nogil
cdef void countmin_clear(Countmin* sketch) noexcept nogil

# One key: its places[MAX_DEPTH], which depend on the fingerprint and the sketch's size only; then the cache
# lines that an update (a read) needs, fetched ahead of it; then the update or read.
cdef void countmin_place(const Countmin* sketch, uint64_t fp0, uint64_t fp1, uint64_t* places) noexcept nogil
cdef void countmin_prefetch(const Countmin* sketch, const uint64_t* places) noexcept nogil
# Adds one event. Its time lies in the years 1 to 9999. A weight that is not above 0 adds nothing; of a count
# it is rounded up to a whole number, 2^31 - 1 at most. 0; 1: late, not counted; -1: out of memory, not
# counted.
cdef int countmin_add_one(Countmin* sketch, const uint64_t* places, int64_t time_ms,
                          double weight) noexcept nogil
# Windows that end at at_ms (years 1 to 9999), each > 0 and at most 2^53 ms; at most MAX_WINDOWS.
cdef void countmin_frame(const Countmin* sketch, int64_t at_ms, const int64_t* windows_ms, uint32_t n_windows,
                         Frame* frame) noexcept nogil
cdef void countmin_read_one(const Countmin* sketch, const uint64_t* places, const Frame* frame,
                            Reply* replies) noexcept nogil
# What countmin_add_one and then a read at at_ms would answer, bit for bit, and leaves no trace. As
# countmin_add_one, without -1.
cdef int countmin_peek_one(const Countmin* sketch, const uint64_t* places, int64_t time_ms, double weight,
                           int64_t at_ms, const int64_t* windows_ms, uint32_t n_windows,
                           Reply* replies) noexcept nogil

# Many keys, prefetched ahead. keys: [n][2] fp0, fp1. weights NULL: 1 each. Number of late events, or -1 out
# of memory: a part of them is applied then.
cdef int64_t countmin_add(Countmin* sketch, const uint64_t* keys, const int64_t* times_ms,
                          const double* weights,
                          uint64_t n) noexcept nogil
# Key i at times_ms[i]. replies: [n][n_windows].
cdef void countmin_read(const Countmin* sketch, const uint64_t* keys, const int64_t* times_ms, uint64_t n,
                        const int64_t* windows_ms, uint32_t n_windows, Reply* replies) noexcept nogil

# Adds what `other` holds. 0; 1: of another shape, size or kind, nothing was done; -1: out of memory. Both
# must be keyed with the same secret. Not while a checkpoint copies.
cdef int countmin_merge(Countmin* sketch, const Countmin* other) noexcept nogil

# Checkpoint, as a shard's (shard.pxd): cut; then slices until one returns 0 (1: more, -1: out of memory);
# then the records in `copied`; then the end, which says whether they were written; if not, the next has them
# again. Pieces that change meanwhile are copied as they were at the cut.
cdef int countmin_cut(Countmin* sketch) noexcept nogil                       # 0, or -1 when out of memory
cdef int countmin_copy_slice(Countmin* sketch) noexcept nogil
cdef void countmin_copy_end(Countmin* sketch, bint written) noexcept nogil
# Appends everything as such records. Same adds, same bytes. 0, or -1 when out of memory.
cdef int countmin_export(const Countmin* sketch, Bytes* out) noexcept nogil
# Puts one record back: the head first, into a sketch without events, then pieces in any order. Bytes
# consumed, 0 when they are not a record of such a sketch, -1 when out of memory. A record, little-endian, a
# multiple of 8 bytes:
#   head    u32 0xFFFFFFFF, u32 payload bytes, u32 version, u32 kind, u64 width, u32 depth, u32 levels, i64
#           unit_ms, i64 origin_ms, i64 newest_ms, per level: i64 slice_ms, i64 reach_ms; then f64 totals of
#           the slices, in place
#   piece   u32 number, u32 payload bytes (0: nothing in it any more), then each cell that holds something, in
#           order: u32 place in the piece, i32 stamp, u64 words that are not 0 (bit 1: the first slice), then
#           these: u32 (padded with 0 to 8 bytes) or f64
# Piece p, place c is cell (p << piece_bits) + c = row * width + column.
cdef int64_t countmin_import(Countmin* sketch, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict countmin_structs():
    return bytes_structs() | {"core/countmin.pxd": (
        sizeof(Level), sizeof(Shape), sizeof(CountminC), sizeof(Ruler), sizeof(Countmin), sizeof(Reply),
        sizeof(WindowAt), sizeof(Frame),
    )}
