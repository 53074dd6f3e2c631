# Events in columns: the one shape in which they travel from a decoder to the journal and the shards.
#
# A Batch holds events of one event type. It borrows every pointer; whoever made it (EventBatch for Python
# callers, the codec for requests, the journal's reader for frames) owns the memory and has checked that
# offsets ascend, end within the bytes, and that every array has n_events entries.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum ColumnKind:
    COLUMN_NUMBER = 0     # float64, NaN = absent (a NaN that was sent refuses its event in the decoder)
    COLUMN_TEXT = 1       # UTF-8 bytes; integers arrive here as their decimal text

# Outcome of one event. Values are part of the journal's format and of the proto: never renumbered.
cdef enum Outcome:
    OUTCOME_ACCEPTED = 0
    OUTCOME_LATE = 1              # every view it matches had already dropped its time
    OUTCOME_DUPLICATE = 2         # its id was accepted before, within the dedupe horizon
    # 16 and above: refused, with the reason
    REFUSED_NO_TIME = 16          # the time field is absent
    REFUSED_TIME_RANGE = 17       # outside the years 1..9999
    REFUSED_FUTURE = 18           # wall clock: further ahead than max_future
    REFUSED_NOT_FINITE = 19       # a number field is NaN or infinite
    REFUSED_KEY = 20              # a key field holds a float that is not integral
    REFUSED_KEY_TOO_LONG = 21     # a text longer than MAX_TEXT_BYTES
    REFUSED_TYPE = 22             # a value of the wrong type for its field
    REFUSED_NO_ID = 23            # the event type declares ids and the id is absent
    REFUSED_BEYOND_DEDUPE = 24    # older than the dedupe horizon: a duplicate could not be told
    REFUSED_MEMORY = 25           # its id finds no room, or cannot be compared with those on the disk

cdef enum:
    MAX_TEXT_BYTES = 4096
    MAX_BATCH_EVENTS = 1 << 20
    MAX_PRODUCER_BYTES = 255      # of a producer's name; its length is one byte in the journal

ctypedef struct Column:
    uint8_t kind                  # ColumnKind
    const double* numbers         # [n_events], COLUMN_NUMBER only
    const uint32_t* offsets       # [n_events + 1] into bytes, COLUMN_TEXT only
    const char* bytes
    const uint8_t* present        # [n_events] 1 = given; NULL = all given. COLUMN_TEXT only

ctypedef struct Batch:
    uint32_t n_events
    uint16_t event                # index of the event type in the plan
    uint16_t n_columns            # the event type's fields, in the plan's order
    const int64_t* times          # [n_events] event time, ms since the epoch
    const Column* columns         # [n_columns]
    uint8_t* outcomes             # [n_events] Outcome; the decoder refuses, the sequencer decides the rest

# Are the time, the numbers and the texts of every event that is still accepted in range, as an EventBatch has
# them?
cdef bint batch_holds(const Batch* batch) noexcept nogil
# Events lo..hi-1 of a batch, as one that shares its columns and its outcomes; columns: room for descriptions
# of n_columns of them.
cdef void batch_part(const Batch* whole, uint32_t lo, uint32_t hi, Column* columns,
                     Batch* part) noexcept nogil

# The array itself, or a contiguous copy where it is strided; InvalidEventError where it is no 1-d array of n
# such numbers.
cdef object checked_array(object array, object dtype, Py_ssize_t n, str what)
cdef const void* address(object array) except? NULL    # of the first byte of a numpy array


# Owns (or keeps alive) everything its `batch` points to; made and checked once, then passed on under nogil.
cdef class EventBatch:
    cdef Batch batch
    cdef readonly object event             # EventPlan
    cdef readonly object outcomes          # uint8 array over batch.outcomes: shows what the engine decides
    cdef readonly object partly_late       # uint8 array: 1 = accepted, and something it matches drops it
    cdef uint8_t* partly                   # its memory
    cdef readonly object shed              # uint64 array: bit j = its key of touches[j] found no room
    cdef uint64_t* shed_bits               # its memory
    cdef Column* _columns
    cdef object _refused                   # outcomes as they were when the batch was made
    cdef tuple _memory                     # the arrays that batch points into
    cdef int _take_texts(self, Column* c, object column, str what, list memory) except -1
    cdef void _refuse(self) noexcept
    cdef list _no_columns(self)

# Compared at import: see core/structs.py.
cdef inline dict batch_structs():
    return {"core/batch.pxd": (sizeof(Column), sizeof(Batch), sizeof(EventBatch))}
