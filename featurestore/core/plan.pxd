# The plan as flat C structs: which rows an event touches, which logs are updated, which values a service
# reads. `featurestore/plan.py` explains each name; this is its copy for code without the GIL. Owned by
# CompiledPlan, immutable, and alive as long as any state uses it.
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.countmin cimport CountminC, countmin_structs
from featurestore.core.decayed cimport DecayedC, decayed_structs
from featurestore.core.distinct cimport DistinctC, distinct_structs
from featurestore.core.program cimport ProgramC, program_structs
from featurestore.core.top cimport TopC, top_structs

ctypedef union Word:             # one cell of a log entry
    double f
    int64_t i
    uint64_t u

cdef enum:
    # Words of a merged ("wide") entry; columns follow. See window.pxd.
    WIDE_FIRST = 0               # i: time of its oldest event, ms
    WIDE_LAST = 1                # i: time of its newest event, ms
    WIDE_COUNT = 2               # i: events
    WIDE_HEAD = 3
    MAX_WIDE_WORDS = 1024        # a column has at most 14
    MAX_VALUES = 64
    MAX_RAW_WORDS = 2 + MAX_VALUES
    MAX_VIEWS_PER_ENTITY = 120
    MAX_TOUCHES = 64             # of an event type: which of them found no room is a word in the journal
    MAX_KEY_PARTS = 256
    NO_COLUMN = 0xFFFF

cdef extern from * nogil:
    """
    #define FS_UNSET_MS (-4611686018427387904LL)
    #define FS_FAR_MS (1LL << 61)
    #define FS_LONG_MS (1LL << 59)
    #define FS_MANY_EVENTS (1LL << 53)
    """
    const int64_t UNSET_MS "FS_UNSET_MS"   # a time that is not known yet, before every event
    # No time lies farther from 1970 than FAR_MS, no duration is longer than LONG_MS: so that a time less a
    # few durations, or less another time, is a number of 64 bits. Decoders of what was stored refuse others.
    const int64_t FAR_MS "FS_FAR_MS"
    const int64_t LONG_MS "FS_LONG_MS"
    const int64_t MANY_EVENTS "FS_MANY_EVENTS"   # more than one log ever counts; exact as a double, too

cdef enum AggregateC:          # plan.Aggregate
    AGG_COUNT = 0
    AGG_SUM = 1
    AGG_MEAN = 2
    AGG_MIN = 3
    AGG_MAX = 4
    AGG_STDDEV = 5
    AGG_FIRST = 6
    AGG_LAST = 7
    AGG_SINCE_FIRST = 8
    AGG_SINCE_LAST = 9
    AGG_DISTINCT = 10
    AGG_DECAYED_COUNT = 11
    AGG_DECAYED_SUM = 12
    AGG_DECAYED_MEAN = 13
    AGG_INTERVAL_MEAN = 14
    AGG_INTERVAL_CV = 15
    AGG_TOP_SHARE = 16
    AGG_TOP_ENTROPY = 17
    AGG_HOUR_ENTROPY = 18

cdef enum StructureC:          # plan.Structure
    STRUCTURE_LOG = 0
    STRUCTURE_DISTINCT = 1
    STRUCTURE_DECAYED = 2
    STRUCTURE_TOP = 3
    STRUCTURE_COUNTMIN = 4

ctypedef struct ColumnC:
    int16_t value                # index among the entry's values; -1: the event itself
    int16_t filter               # bit of the entry's filter word; -1: every event
    # Where its partials are in a wide entry, in words; 0 = not kept
    uint16_t n_at                # i: events counted (filter true, value given)
    uint16_t sum_at              # f, f, f: sum of the values >= 0, sum of the magnitudes of those < 0, and
                                 # what adding to these has lost (window.pyx)
    uint16_t extremes_at         # f, f: minimum, maximum
    uint16_t moments_at          # f, f: mean, M2 at the scale of the extremes (window.pyx)
    uint16_t first_at            # f, i: value and time of the first
    uint16_t last_at             # f, i: value and time of the last
    uint16_t gaps_at             # f, f: squared distances of the gaps between neighbours from their mean,
                                 # ms^2, summed: at least, at most

ctypedef struct WeightC:         # a partial that the merge criterion weighs
    uint16_t at                  # word of a wide entry
    uint16_t is_float

ctypedef struct ViewC:
    uint16_t view_id
    uint16_t event               # index
    uint16_t entity              # index
    int32_t where                # index in the masks of its event type's programs; -1: every event
    int64_t offset_ms
    int64_t keep_ms
    int64_t floor_ms             # UNSET_MS: none
    int64_t since_ms             # -FAR_MS: it has seen everything; UNSET_MS: from its type's first event on
    int64_t lifetime_idle_ms
    int64_t lifetime_floor_ms    # UNSET_MS: none
    double max_error
    uint32_t exact_events
    uint32_t max_entries
    uint16_t n_values
    uint16_t n_filters
    uint16_t n_columns
    uint16_t n_sums              # columns that keep one
    uint16_t n_weights
    uint16_t raw_words           # of an entry that is one event: time, values, filter word if any
    uint16_t wide_words
    uint8_t has_lifetime
    uint8_t has_windows          # that features read
    uint8_t structure            # StructureC; all but LOG have no columns, and one value or none
    uint16_t hashed              # index among the event type's hashed fields: DISTINCT, TOP of a field
    int32_t counted_by           # DISTINCT: index of a log of the same events and windows; -1: none
    uint16_t counted_column      # and its column; NO_COLUMN: all of them
    uint8_t needs_value          # DISTINCT: its filter lets no event without the value pass
    DistinctC distinct
    DecayedC decayed
    CountminC* countmin          # COUNTMIN, else NULL
    uint16_t sketch              # index among PlanC.sketched: COUNTMIN
    TopC top                     # of no value: the hours of the day
    uint16_t* values             # [n_values] index among the event type's fields
    uint16_t* filters            # [n_filters] index in the masks of its event type's programs
    ColumnC* columns             # [n_columns]
    WeightC* weights             # [n_weights]

ctypedef struct TouchC:
    uint16_t entity              # index
    uint16_t entity_id
    uint16_t n_fields
    uint16_t n_views             # kept in rows
    uint16_t n_all               # and in sketches
    uint16_t* fields             # [n_fields] index among the event type's fields
    uint16_t* views              # [n_all] views this event type feeds on this entity, those in rows first
    uint8_t keep_keys

ctypedef struct HashedC:         # a field whose values views tell apart, by their hash
    uint16_t field               # index among the event type's fields
    uint8_t is_key               # empty texts are absent

ctypedef struct EventC:
    uint16_t event_id
    uint16_t n_fields
    uint16_t n_touches
    uint16_t n_programs
    uint16_t n_hashed
    int32_t id_field             # -1: none
    int64_t dedupe_ms
    int64_t min_keep_ms          # of its views and their lifetimes: none drops an event that is younger
    int64_t max_floor_ms         # the latest floor of its views
    uint8_t* kinds               # [n_fields] ColumnKind
    TouchC* touches              # [n_touches]
    HashedC* hashed              # [n_hashed]
    uint16_t* by_name            # [n_fields] index of each field, in the order of their names
    uint64_t* name_words         # [n_fields] what stands for each field's name in a content fingerprint
    ProgramC** programs          # [n_programs] borrowed from the CompiledPrograms that CompiledPlan holds

ctypedef struct ItemC:           # one value of a service
    int64_t window_ms            # 0 = lifetime
    uint32_t out                 # place in the vector
    uint16_t column              # NO_COLUMN: every event
    uint8_t aggregate

ctypedef struct GroupC:          # the values that a service reads from one view, by window, lifetime last
    uint16_t view                # index
    uint32_t n_before            # read before the event is applied (`self: exclude`)
    uint32_t n_after
    ItemC* before
    ItemC* after

ctypedef struct SlotC:           # the part of a service that one row answers
    uint16_t entity              # index
    uint16_t n_groups            # of views kept in rows
    uint16_t n_all               # and in sketches
    GroupC* groups               # [n_all] those in rows first

ctypedef struct DerivedC:        # a derived feature of a service
    const ProgramC* program      # borrowed, as those of events are. Its loads are indexes in operands
    uint16_t n_operands
    uint16_t* operands           # [n_operands] places in the vector
    uint32_t out                 # place in the vector
    double by_zero               # its value where it divides by zero; NaN: none

ctypedef struct ServiceC:
    uint32_t width               # values that it lists: the first places of a vector
    uint32_t read_width          # and with those that its derived features need
    double confidence            # at which each value's bounds hold, at least; 1: certain
    uint32_t n_derived
    DerivedC* derived            # [n_derived] each after those that it needs
    uint16_t n_slots
    SlotC* slots
    int16_t* slot_of_entity      # [n_entities] index in slots, -1: the service does not read it

ctypedef struct EntityC:
    uint16_t entity_id
    uint16_t n_parts
    uint16_t* parts              # [n_parts] index among the plan's part names
    uint16_t key_epoch           # raw keys of another are kept no more
    uint8_t keep_keys

ctypedef struct PlanC:
    uint16_t n_entities
    uint16_t n_events
    uint16_t n_views
    uint16_t n_services
    uint16_t n_part_names
    uint16_t n_sketched          # views kept in sketches
    uint32_t max_view_id         # largest view id in use
    uint32_t max_raw_words
    uint32_t max_wide_words
    EntityC* entities
    EventC* events
    ViewC* views
    ServiceC* services
    uint16_t* sketched           # [n_sketched] index of each such view, by view id
    int32_t* view_of_id          # [max_view_id + 1] index, -1: removed
    const ViewC** layout_of_id   # [max_view_id + 1] also of views removed while the process runs; NULL:
                                 # unknown

cdef class CompiledPlan:
    cdef readonly object plan    # featurestore.plan.Plan
    cdef readonly tuple part_names   # of all entities, sorted
    cdef PlanC* c
    cdef list programs           # keeps the CompiledPrograms alive
    cdef list hashed_of          # per event type: {field: index in EventC.hashed}
    cdef list formulas           # CompiledFormula of each derived feature
    cdef void** blocks           # every array above, owned
    cdef size_t n_blocks, cap_blocks
    cdef void* _array(self, size_t n, size_t item_bytes) except NULL
    cdef void* _copy(self, const void* items, size_t n, size_t item_bytes) except NULL
    cdef const ViewC* _copied(self, const ViewC* view) except? NULL
    cdef uint16_t* _indexes(self, items, size_t limit, str what) except NULL
    cdef int _weights(self, ViewC* view, size_t n) except -1
    cdef int _countmin(self, spec, ViewC* view) except -1
    cdef int _derived(self, ServiceC* service, dict places) except -1
    cdef ItemC* _items(self, list items, size_t view) except NULL
    cdef int _check_parts(self, feature, ViewC* view, size_t column_index) except -1

# Compared at import: see core/structs.py.
cdef inline dict plan_structs():
    cdef dict built_on = countmin_structs() | decayed_structs() | distinct_structs() | program_structs()
    return built_on | top_structs() | {"core/plan.pxd": (
        sizeof(Word), sizeof(ColumnC), sizeof(WeightC), sizeof(ViewC), sizeof(TouchC), sizeof(HashedC),
        sizeof(EventC), sizeof(ItemC), sizeof(GroupC), sizeof(SlotC), sizeof(DerivedC), sizeof(ServiceC),
        sizeof(EntityC), sizeof(PlanC), sizeof(CompiledPlan),
    )}
