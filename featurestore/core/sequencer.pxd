# The one place that decides: clock, lateness, refusals, duplicates, order.
#
# sequencer_decide looks and changes nothing; sequencer_commit makes the decision part of the state and
# decides nothing. The journal is written in between, and replay only commits, so that it can never decide
# differently. Both run under the caller's order lock: one batch at a time for the whole store.
#
# The state is small and a machine of its own: a position, the clocks, and two tables.
#   producers   who sent which batches: producers.pxd
#   ids         which ids each event type accepted within its dedupe horizon: ids.pxd
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.batch cimport Batch
from featurestore.core.bytes cimport Bytes
from featurestore.core.ids cimport ColdIds, Ids, ids_structs
from featurestore.core.plan cimport PlanC
from featurestore.core.producers cimport Origin, ProducerTable, producers_structs

cdef enum ClockC:               # plan.CLOCKS; in heads of checkpoints
    CLOCK_WALL = 0
    CLOCK_EVENT = 1
    CLOCK_MERGED = 2

ctypedef struct Sequencer:
    uint8_t clock                # ClockC
    int64_t max_future_ms        # how far ahead of the server's clock an event may be
    int64_t now_ms               # the latest of all clocks, never decreasing; UNSET_MS at first
    uint64_t position            # of the last event
    uint16_t n_types             # event types in the plan
    int64_t* type_nows           # [n_types] event clock: greatest time accepted of it; others: now_ms
    int64_t* first_nows          # [n_types] now at the first accepted event, UNSET_MS before
    int64_t* dedupe_floors       # [n_types] ids of events before it may have been forgotten; UNSET_MS: none
    uint64_t* partly_late        # [n_types] accepted since this process began, and dropped by something that
                                 # they match; only ever added to, atomically, as are
    uint64_t* untouched          # [n_types] of the accepted, those that no view took
    uint64_t* shed               # [n_entities] keys of accepted events that found no room, since then
    uint16_t n_entities
    Ids ids
    ProducerTable producers

cdef int sequencer_init(Sequencer* s, const PlanC* plan, uint8_t clock, int64_t max_future_ms,
                        uint64_t max_producer_bytes, uint64_t max_id_bytes) noexcept nogil
cdef void sequencer_clear(Sequencer* s) noexcept nogil

ctypedef struct Facts:           # what is known of a batch before it is decided; everything is borrowed
    const uint8_t* masks         # [n_programs][n_events] 1 = the program is TRUE
    const uint8_t* missing       # [n_touches][n_events] 1 = the key of that touch is null or empty
    const uint64_t* id_fps       # [n_events][2] fingerprints of ids, where the event type declares them
    const uint8_t* id_missing    # [n_events]
    ColdIds* cold                # what was read of ids; what is to be read is added

# Fills the outcomes that are still 0, every nows[i]: the clock at event i, and every partly[i]: 1 where it is
# accepted and something that it matches drops it. wall_ms: the server's clock; 0 where that is not known, and
# then only a wall clock has a future. 0, or -1 when out of memory; 1 where ids are to be read
# first: none of them means anything then.
cdef int sequencer_decide(const Sequencer* s, const PlanC* plan, const Batch* batch, const Facts* facts,
                          int64_t wall_ms, int64_t* nows, uint8_t* partly) noexcept nogil
# Takes the outcomes as they stand, moves the clocks and the position, and remembers ids and the origin. Also
# fills nows. 0, or -1 when out of memory; the sequencer is not to be used any more then.
cdef int sequencer_commit(Sequencer* s, const Batch* batch, const Facts* facts, const Origin* origin,
                          int64_t wall_ms, int64_t* nows) noexcept nogil
# Takes over the clock, the count and the ids of an event type, from the sequencer of the plan before. Ids
# that had expired stay expired when the new horizon is longer; none are kept when another field holds them
# (`same_ids` false).
cdef void sequencer_adopt(Sequencer* s, uint16_t type_, Sequencer* old, uint16_t old_type,
                          bint same_ids) noexcept nogil

# The clock is another from here on, or says now_ms. Set back, it knows no id any more: those seen at the
# time that is taken back would not expire, and those before it are gone. So the plan's `dedupe_floor_ms` are
# to be beyond now_ms.
cdef void sequencer_set_clock(Sequencer* s, uint8_t clock, int64_t now_ms) noexcept nogil

# The state as bytes, in three streams: the head (clocks and position; format: sequencer.pyx), the ids
# (ids.pyx) and the producers (producers.pyx).
#
# A checkpoint takes the head at its cut and the tables later, in slices between batches: they may then know
# ids and sequences of events after the cut, which is harmless because replay only commits, and committing
# those events again changes nothing. The checkpoint must not be kept, though, before the journal is durable
# up to the last slice.
# 0, -1 memory
cdef int sequencer_export_head(const Sequencer* s, const PlanC* plan, Bytes* out) noexcept nogil
# Into a new sequencer, head first. Event types that the plan does not have are left out. 0, 1 not readable,
# -1 memory.
cdef int sequencer_import_head(Sequencer* s, const PlanC* plan, const uint8_t* data,
                               size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict sequencer_structs():
    return ids_structs() | producers_structs() | {"core/sequencer.pxd": (
        sizeof(Sequencer), sizeof(Facts),
    )}
