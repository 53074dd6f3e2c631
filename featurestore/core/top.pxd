# The heaviest values of one row in every window: which ips drive this track, which tracks this ip plays.
#
#   oldest ──────────────────────────────────────────────────────────────► newest
#   RAW only      [t v][t v][t v][t v][t v]               at most exact_events events: all of it exact
#   hot           [ n; v:n v:n … ][ n; v:n … ][ n; … ]    [t v][t v][t v]
#                  merged entries: an exponential          the newest exact_events / 2 to exact_events
#                  histogram of summaries                  events stay RAW: short windows stay exact
#
# Idea and papers. The window log's shape (window.pxd: Datar, Gionis, Indyk, Motwani, SICOMP 2002) with a
# summary of heavy values in every merged entry, joined as in Agarwal, Cormode, Huang, Phillips, Wei, Yi,
# "Mergeable summaries", PODS 2012, and with a lower and an upper count per value as in Metwally, Agrawal, El
# Abbadi, "Efficient computation of frequent and top-k elements in data streams", ICDT 2005. A window only
# chooses where the backward scan ends, so one structure answers them all.
#
# Guarantee, CERTAIN and in both directions. lower <= true count <= upper for every value of the list, and no
# value outside it has more than rest_upper; likewise for the total, the share of the first and the entropy.
# RAW: lower = upper. Beyond, two things separate them:
#   the edge      an entry that straddles a window's edge: a value may have any part of its count there.
#                 Adjacent entries merge only while they weigh at most 2 * max_error of what is newer, or are
#                 one moment. So for reads no earlier than the newest event, with no late event in a merged
#                 entry and fewer than max_entries of them, the total is off by at most max_error, and a value
#                 that keeps its share by about as much of its own count.
#   the summary   an entry of n events knows `missed`: no value has more events there than its counter says
#                 plus that. missed <= 2 n / n_counters, whatever the order of merges (proof in top.pyx; most
#                 often about n / n_counters, and 0 while an entry never had more than KEPT_COUNTERS values,
#                 or, where k = n_counters, than those).
#
# Which values are told apart: those with different hashes. The hash is keyed with the store's secret, so
# nobody outside can make two collide; should two texts have one hash, they are one value, shown by the first.
#
# Merging entries is commutative; it is associative in what it guarantees but not bit for bit; nothing can be
# inverted. Deterministic: everything is a function of the adds and their order (horizons included), never of
# allocation or reads. An offset cannot be served (as by distinct): what is newer than the newest event less
# the offset would have to stay RAW.
#
# Memory, with texts of 10 bytes: 1 event 32 bytes; 3 events 48 of one value, 96 of three; 24 events of 24
# values 688; 256 events of 200 values 9.8 KB (10 bytes an event, about 20 and the text a value). A hot key:
# about 7 entries per doubling of its events at max_error 10 %, 32 bytes each and 8 per counter; with 96
# counters 55 KB after a million events of Zipf values. Texts are stored once each, and only max_text_bytes of
# them: past that a new value is known by its hash alone, until there is room (unused values leave, and their
# texts with them) and it comes again.
#
# Order needed: none. Time: add amortised O(1) and, per exact_events / 2 events, a pass over their counters;
# late O(log n) + move; read O(counters in the longest window + values per window).
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena, arena_structs
from featurestore.core.head cimport LogHead, head_structs

cdef enum:
    TOP_SMALL_EVENTS = 24
    TOP_MAX_K = 64
    TOP_MIN_COUNTERS = 8
    TOP_MAX_COUNTERS = 512
    TOP_MAX_SLOTS = 65535        # different values that one structure can hold
    TOP_MAX_TEXT = 4096          # bytes of a longer text are not kept

ctypedef struct TopC:            # what the plan fixes
    double max_error             # 0 to 0.5; see the guarantee
    uint32_t exact_events        # at least 1
    uint32_t max_entries         # at the cap entries merge beyond max_error, and the bounds say so
    uint32_t max_text_bytes      # of all texts of one structure
    uint16_t k                   # values to list, 1 to TOP_MAX_K, at most n_counters
    uint16_t n_counters          # values that a merged entry tells apart

ctypedef struct TopSlot:         # one value
    uint64_t hash
    uint32_t text_at             # among the texts
    uint16_t n_text              # bytes; NO_TEXT: it was not kept
    uint16_t scratch             # while unused slots are collected

ctypedef struct TopCounter:      # one value in one merged entry
    uint32_t n                   # so many events of it are known
    uint16_t slot                # counters of an entry are in this order
    uint16_t missed              # and at most so many more, rounded up to 12 bits: see _packed

ctypedef struct TopEntry:
    int64_t first_ms             # of its oldest event
    int64_t last_ms              # of its newest event
    uint32_t n_events
    uint32_t missed              # of a value without a counter here there are at most so many events, and of
                                 # any other at most so many more than n
    uint32_t at                  # its first counter
    uint32_t n_counters

ctypedef struct TopLost:         # events that a full entry (2**32 - 2 events) could not count
    int64_t first_ms
    int64_t last_ms
    uint64_t n

ctypedef struct TopLarge:        # a TOP_LARGE block; it owns the other blocks
    uint32_t raw                 # int64 times[cap_raw], then uint16 slots[cap_raw], in time order
    uint32_t cap_raw
    uint32_t start_raw           # place of the oldest
    uint32_t n_raw
    uint32_t slots               # TopSlot[cap_slots], then uint16 index[]: open addressing by hash
    uint32_t cap_slots
    uint32_t n_slots
    uint32_t collect_at          # slots at which the unused ones are collected
    uint32_t texts
    uint32_t cap_texts
    uint32_t n_texts             # bytes
    uint32_t entries             # TopEntry[cap_entries], oldest first; none overlaps the next, or RAW
    uint32_t cap_entries
    uint32_t n_entries
    uint32_t counters            # TopCounter[cap_counters], entry by entry
    uint32_t cap_counters
    uint32_t n_counters
    uint32_t compact_at          # entries at which the next compaction runs
    TopLost lost

ctypedef struct TopValue:        # one value of the list
    uint64_t hash
    uint64_t lower
    uint64_t upper
    double estimate
    uint32_t slot                # for top_text, until the next top_add

ctypedef struct TopWindow:       # one window
    double total                 # events
    uint64_t total_lower
    uint64_t total_upper
    uint64_t rest_upper          # no value outside the list has more events
    # Events of the heaviest value in those of all; NaN in an empty window.
    double share
    double share_lower
    double share_upper
    # Shannon's, in bits, of the shares that the k heaviest values have of what these k have together: 0 = one
    # value has it all, log2(k) = they are even. The rest is left out on purpose: as a class of its own it
    # would make a window of all different values look like a window of one. NaN in an empty window.
    double entropy
    double entropy_lower
    double entropy_upper
    uint32_t n_listed
    uint8_t exact                # every event of the window is known by its value

# True if these settings can be served: each in its range, and slots enough for the worst case.
cdef bint top_plan_ok(const TopC* top) noexcept nogil

# Adds one event (text may be NULL if n_text is 0; an event before the horizon changes nothing). 0; 1: not
# counted, a merged entry is full (the bounds say so); -1: out of memory.
cdef int top_add(Arena* arena, LogHead* head, const TopC* top, uint64_t value_hash, const char* text,
                 uint32_t n_text, int64_t time_ms, int64_t horizon_ms) noexcept nogil

# Asks for what adding a value of this hash touches. The first line of the head's block was asked for before.
cdef void top_prefetch(const Arena* arena, const LogHead* head, uint64_t value_hash) noexcept nogil

# Reads windows (each: at_ms - window < time <= at_ms, and not before the horizon), ascending. listed[i * k]
# on: the values of window i, by estimate, then lower, both descending, then hash. head may be empty. 0, or -1
# out of memory.
cdef int top_read(const Arena* arena, const LogHead* head, const TopC* top, int64_t at_ms, int64_t horizon_ms,
                  const int64_t* windows_ms, uint32_t n_windows, TopValue* listed,
                  TopWindow* out) noexcept nogil
# The text of a listed value, good until the next top_add. False: it was not kept.
cdef bint top_text(const Arena* arena, const LogHead* head, uint32_t slot, const char** text,
                   uint32_t* n_text) noexcept nogil

# True when nothing in it can be read any more.
cdef bint top_expired(const Arena* arena, const LogHead* head, int64_t horizon_ms) noexcept nogil
cdef void top_free(Arena* arena, LogHead* head) noexcept nogil
cdef int top_clone(Arena* arena, const LogHead* head, LogHead* copy) noexcept nogil    # 0, or -1

# As bytes, for checkpoints and digests (format: top.pyx). Size, then writing exactly that many. Not of an
# empty head.
cdef size_t top_export_bytes(const Arena* arena, const LogHead* head) noexcept nogil
cdef void top_export(const Arena* arena, const LogHead* head, uint8_t* out) noexcept nogil
# Reads one back, and trusts nothing. Bytes consumed, 0 when they are not one of these settings, -1 when out
# of memory.
cdef int64_t top_import(Arena* arena, LogHead* head, const TopC* top, const uint8_t* data,
                        size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict top_structs():
    return arena_structs() | head_structs() | {"core/top.pxd": (
        sizeof(TopC), sizeof(TopSlot), sizeof(TopCounter), sizeof(TopEntry), sizeof(TopLost),
        sizeof(TopLarge), sizeof(TopValue), sizeof(TopWindow),
    )}
