# Sums that fade: every event counts 2^(-age / half-life), so there is no window and no edge.
#
#   [newest][era][weight, rest][above, rest][below, rest]      8 words; 4 where no field is summed
#
# decayed.pyx has the idea, the paper and the guarantee.
from libc.stdint cimport int64_t, uint8_t

from featurestore.core.arena cimport Arena, arena_structs
from featurestore.core.head cimport LogHead, head_structs

cdef enum:
    GONE_AFTER = 64              # half-lives after its newest event a row's sum is dropped: it is below 2^-64
    DECAYED_DEEP = 900           # half-lives: events further apart need not leave a trace of the older one
    WARM_AFTER = 7               # half-lives that a feature warms for: then it lacks less than 1 %
    EXPORT_DECAYED = 10          # kind of what is exported
    EXPORT_DECAYED_AHEAD = 11    # of sums whose landmark lies ahead

ctypedef struct DecayedC:        # what the plan fixes
    int64_t half_life_ms
    uint8_t sums                 # 1: of a field's values, 0: events only

ctypedef struct DecayedValue:
    double weight                # of the events that count: decayed_count
    double total                 # of their values: decayed_sum; no finite one while it is beyond the doubles
    double mean                  # total by weight: decayed_mean

# A head of kind LOG_DECAYED: block 0 holds nothing. Counts one event, no older than the horizon; sums last
# fed before it start anew. 0, or -1 when out of memory.
cdef int decayed_add(Arena* arena, LogHead* head, const DecayedC* c, int64_t time_ms, double value,
                     int64_t horizon_ms) noexcept nogil
ctypedef struct DecayedPast:     # at a time before the newest event, what it all would weigh then
    double weight
    double newest                # of the weight, that of the newest event alone: it came later
    double above                 # of the values >= 0, and of the magnitudes of the others
    double below
    double lost                  # at most so much of either underflowed
    bint is_only                 # there is no other event, unless such can underflow: see DECAYED_DEEP

# What is left at `at_ms`, no earlier than the newest event.
cdef DecayedValue decayed_read(const Arena* arena, const LogHead* head, const DecayedC* c,
                               int64_t at_ms) noexcept nogil
# At `at_ms`, before the newest event. No finite numbers where that is so long before that they leave the
# doubles.
cdef DecayedPast decayed_read_past(const Arena* arena, const LogHead* head, const DecayedC* c,
                                   int64_t at_ms) noexcept nogil
# Event time of the newest event. The head must hold one.
cdef int64_t decayed_newest_ms(const Arena* arena, const LogHead* head) noexcept nogil
cdef void decayed_free(Arena* arena, LogHead* head, const DecayedC* c) noexcept nogil
cdef int decayed_clone(Arena* arena, const LogHead* head, const DecayedC* c, LogHead* copy) noexcept nogil
# As bytes: u16 view_id, u8 10 or 11, u8 0, u32 words, i64 0, then the words (format: above). Size, then
# writing.
cdef size_t decayed_export_bytes(const DecayedC* c) noexcept nogil
cdef void decayed_export(const Arena* arena, const LogHead* head, const DecayedC* c,
                         uint8_t* out) noexcept nogil
# Bytes consumed, 0 when they are not such sums under c, -1 when out of memory.
cdef int64_t decayed_import(Arena* arena, LogHead* head, const DecayedC* c, const uint8_t* data,
                            size_t n) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict decayed_structs():
    return arena_structs() | head_structs() | {"core/decayed.pxd": (
        sizeof(DecayedC), sizeof(DecayedValue), sizeof(DecayedPast),
    )}
