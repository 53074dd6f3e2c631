# One log of one (row, view): what happened, by event time, exact first and bounded after.
#
#   oldest ───────────────────────────────────────────────► newest
#   RAW   [t v…][t v…][t v…]                      one entry per event, at most exact_events of them
#   WIDE  [first…last, n, partials][…][…][t][t]   older events merged, an exponential histogram
#
# Idea and paper: Datar, Gionis, Indyk, Motwani, "Maintaining stream statistics over sliding windows", SICOMP
# 2002. One log answers every window of the view, because a window only chooses where the backward scan ends.
# Only the entry that straddles a window's edge is uncertain; it is what separates `lower` from `upper`.
#
# Guarantee. RAW is exact. WIDE: adjacent entries merge only while each of their weights (events, events per
# column, sums of each sign) is at most 2 * max_error of what is newer, so for reads no earlier than the
# newest event a count or a sum of non-negative values is off by at most max_error, unless a late event fell
# into a merged entry or the log reached max_entries. Always: the truth is within [lower, upper].
#
# Entries are sorted and never overlap: last of one < first of the next (RAW: <=, in position order where
# equal). Order needed: none (late events are inserted). Time: append amortised O(1), late O(log n) + move,
# read O(entries read). Everything below is a function of the log's content and its arguments, never of
# allocation or of earlier reads.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena, arena_structs
from featurestore.core.head cimport LogHead, head_structs
from featurestore.core.holes cimport HolesOf, holes_structs
from featurestore.core.plan cimport ItemC, ViewC, Word, plan_structs

cdef enum:
    SMALL_ENTRIES = 24           # of a log of kind LOG_SMALL

ctypedef struct LargeLog:        # head of a LOG_LARGE block; entries follow
    uint32_t capacity            # entries
    uint32_t start               # place of the oldest entry
    uint32_t n_entries
    uint32_t compact_at          # WIDE: entries at which the next compaction runs
    uint64_t n_events            # in all entries
    uint32_t wide                # 0 RAW, 1 WIDE
    uint32_t reserved

# Status of a value: the same numbers as in the proto.
cdef enum Status:
    STATUS_PRESENT = 1
    STATUS_NOT_FOUND = 2
    STATUS_WARMING = 3
    STATUS_UNAVAILABLE = 4

ctypedef struct Outputs:         # one vector: where its values go
    double* values               # [width]
    double* lower                # [width] or NULL
    double* upper                # [width] or NULL
    uint8_t* statuses            # [width] Status
    float* coverage              # [width]

ctypedef struct ReadAt:          # when a row is read, and what the store's clock says
    int64_t at_ms
    int64_t last_ms              # events after it are left out: at_ms, or the millisecond before
    int64_t now_ms               # of the view's event type; UNSET_MS before its first event
    int64_t first_now_ms         # now at the first accepted event of that type; UNSET_MS before it
    int64_t seen_ms              # events of that type up to then may have been accepted; UNSET_MS: none
    bint own                     # of what is no log: an event of at_ms has just been added to it
    uint64_t own_hash            # its value, where values are told apart
    double own_value             # and where they are summed
    const HolesOf* holes         # in what its type has brought, and the row may not have seen; NULL: none
    uint64_t born                # it has seen what came from that position on; of no row, nothing
    bint came_later              # it was made after events of its entity had found no room

# Oldest time still kept by the view at `now_ms`: older events are late, older entries absent.
cdef int64_t view_horizon(const ViewC* view, int64_t now_ms) noexcept nogil

# Asks for the oldest and the newest entry, which log_append touches. The block's first line is in the cache:
# whoever calls has asked for it before.
cdef void log_fetch_ends(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil

# Adds one event: raw[0].i its time (not before the horizon), then its values and filter word. 0, or -1 out of
# memory.
cdef int log_append(Arena* arena, LogHead* head, const ViewC* view, const Word* raw,
                    int64_t now_ms) noexcept nogil
cdef int lifetime_append(Arena* arena, LogHead* head, const ViewC* view, const Word* raw,
                         int64_t now_ms) noexcept nogil

# Whether a view's lifetimes take an event of that time: they drop only what is older than lifetime_idle.
cdef bint lifetime_takes(const ViewC* view, int64_t time_ms, int64_t now_ms) noexcept nogil

# True when nothing in it can be read any more at now_ms.
cdef bint log_expired(const Arena* arena, const LogHead* head, const ViewC* view,
                      int64_t now_ms) noexcept nogil
cdef void log_free(Arena* arena, LogHead* head, const ViewC* view) noexcept nogil
cdef int log_clone(Arena* arena, const LogHead* head, const ViewC* view, LogHead* copy) noexcept nogil

# One value: its status and coverage as far as they do not depend on what is kept, then what it says. Shared
# with the other structures (kept.pyx). put_value moves a value into its bounds; put_summed is that of sums,
# which cannot be answered where one has left the doubles; put_nothing is that of no events.
cdef void judge(const ViewC* view, const ReadAt* when, const ItemC* item, int64_t lo, int64_t hi,
                const Outputs* out) noexcept nogil
# As judge, of what fades: its window is what warms, and all that is kept still counts.
cdef void judge_fading(const ViewC* view, const ReadAt* when, const ItemC* item,
                       const Outputs* out) noexcept nogil
cdef void put_value(const Outputs* out, const ItemC* item, double value, double lower,
                    double upper) noexcept nogil
cdef void put_summed(const Outputs* out, const ItemC* item, double value, double lower,
                     double upper) noexcept nogil
cdef void put_nothing(const Outputs* out, const ItemC* item) noexcept nogil
cdef void put_unavailable(const Outputs* out, const ItemC* item) noexcept nogil

# Reads `items` (sorted by window, lifetime last) of one view; log or lifetime may be NULL: no event yet.
cdef void view_read(const Arena* arena, const LogHead* log, const LogHead* lifetime, const ViewC* view,
                    const ReadAt* when, const ItemC* items, uint32_t n_items,
                    const Outputs* out) noexcept nogil
# What every value of a missing key reads as.
cdef void read_unavailable(const ItemC* items, uint32_t n_items, const Outputs* out) noexcept nogil

# The log as bytes (format: shard.pxd), for checkpoints and digests. Size, then writing exactly that many.
cdef size_t log_export_bytes(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil
cdef void log_export(const Arena* arena, const LogHead* head, const ViewC* view, uint8_t* out) noexcept nogil
# Reads one log back. Bytes consumed, 0 when they are not a log of this view, -1 when out of memory.
cdef int64_t log_import(Arena* arena, LogHead* head, const ViewC* view, const uint8_t* data,
                        size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict window_structs():
    return arena_structs() | head_structs() | holes_structs() | plan_structs() | {"core/window.pxd": (
        sizeof(LargeLog), sizeof(Outputs), sizeof(ReadAt),
    )}
