# Ids of accepted events: per event type, the fingerprint of each one within the dedupe horizon, and when it
# was seen.
#
# The sequencer looks an id up when it decides and remembers it when it commits, both under the caller's order
# lock. All event types together have one cap, and ids within their horizon count against it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs
from featurestore.core.plan cimport PlanC, plan_structs

cdef enum:
    AGES = 32
    AGES_PER_HORIZON = 16

ctypedef struct Id:
    uint64_t fp0                 # both 0: empty place
    uint64_t fp1
    int64_t seen_at_ms           # the later of the store's clock and the event's time

ctypedef struct IdTable:
    Id* places
    uint64_t n_places            # a power of two, 0 before the first id
    uint64_t n_used              # places not empty; expired ids go when the table is rebuilt
    uint64_t moves               # how often it was rebuilt: what is being copied begins again then
    int64_t dedupe_ms            # of the event type
    # How many ids are of which age, so that the cap counts those within the horizon only, at any now and
    # without looking at the places. An age is a sixteenth of the horizon; never too few, seldom too many.
    int64_t ages[AGES]           # which age the count is of: seen_at // width, at place age % AGES
    uint64_t of_age[AGES]

ctypedef struct Ids:
    IdTable* tables              # [n_types]
    uint16_t n_types             # event types in the plan
    uint64_t max_ids             # of all types together, those within their horizons
    uint64_t n_ids               # in all tables, expired ones included

cdef int ids_init(Ids* ids, const PlanC* plan, uint64_t max_ids) noexcept nogil     # 0, or -1: out of memory
cdef void ids_clear(Ids* ids) noexcept nogil

# Where the id is, or the empty place where it would go: the table is never full.
cdef Id* id_place(const IdTable* table, uint64_t fp0, uint64_t fp1) noexcept nogil
cdef bint id_seen_before(const IdTable* table, const uint64_t* fp, int64_t oldest_ms) noexcept nogil
# Ids seen at oldest_ms or later; perhaps a few more, never fewer.
cdef uint64_t ids_live(const IdTable* table, int64_t oldest_ms) noexcept nogil
# Room for `more` ids. Expired ones (seen before oldest_ms) go when the table is full, or when all tables
# together are and it is worth it. 0, or -1 when out of memory; nothing is changed then.
cdef int ids_reserve(Ids* ids, IdTable* table, uint64_t more, int64_t oldest_ms) noexcept nogil
# There is room for it.
cdef void ids_remember(Ids* ids, IdTable* table, const uint64_t* fp, int64_t seen_at_ms,
                       int64_t oldest_ms) noexcept nogil
# Takes over the ids of an event type from the plan before; `now` is its clock. Ids that had expired stay
# expired when the new horizon is longer. 0, or -1 when out of memory; nothing is changed then.
cdef int ids_adopt(Ids* ids, IdTable* table, Ids* old, IdTable* before, int64_t now) noexcept nogil

# As bytes (format: ids.pyx). They are copied in slices between batches; see sequencer.pxd for why they may
# know ids of events after a checkpoint's cut.
ctypedef struct IdCursor:        # all zero: begin
    uint64_t type_               # index of the event type being copied
    uint64_t place
    uint64_t moves               # of the table when copying it began
    size_t began                 # bytes before it: a table that moved is copied again, in place of its copy

# type_nows: the clock of each event type. 1 more, 0 done, -1 memory
cdef int ids_copy(const Ids* ids, const PlanC* plan, const int64_t* type_nows, IdCursor* cursor,
                  uint32_t max_places, Bytes* out) noexcept nogil
cdef void ids_sort(Bytes* out) noexcept nogil            # into canonical order
# Event types that the plan does not have are left out. 0, 1 not readable, -1 memory.
cdef int ids_import(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict ids_structs():
    return bytes_structs() | plan_structs() | {"core/ids.pxd": (
        sizeof(Id), sizeof(IdTable), sizeof(Ids), sizeof(IdCursor),
    )}
