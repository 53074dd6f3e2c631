# The names of a plan as tables, what can be wrong with a request, and the words for it.
#
# WireTables are read-only and shared by all threads; the WireSchema that owns them must outlive every use.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from featurestore.server.memory cimport Arena, memory_structs

ctypedef struct Name:
    const uint8_t* text              # UTF-8, not terminated
    uint32_t length                  # bytes
    uint32_t hash

ctypedef struct NameTable:           # open addressing, linear probing, at most half full
    uint32_t n
    uint32_t mask                    # number of slots - 1, a power of two - 1
    const Name* names                # [n]
    const uint32_t* slots            # [mask + 1] index + 1, 0 = empty

# Index of a name, or -1. `guess` is tried first: names mostly come in the order of the call before.
cdef int32_t name_index(const NameTable* table, const uint8_t* text, size_t length,
                        uint32_t guess) noexcept nogil

cdef enum FieldKind:
    FIELD_NUMBER = 0
    FIELD_STRING = 1
    FIELD_KEY = 2
    FIELD_ID = 3      # a string that tells events apart

ctypedef struct FieldTable:          # the fields of an event type, or the key parts of the whole plan
    NameTable names                  # for an event type, index n_fields is its time field
    uint32_t n_fields
    uint32_t n_declared              # of them, the first; the others are retired, and nobody has to name them
    const uint8_t* kinds             # [n_fields] FieldKind
    uint8_t time_unit                # TimeUnit; event types only
    int32_t id_field                 # index of the field that holds ids, -1: none; event types only
    uint32_t name_bytes              # of the longest name
    NameTable keys                   # of the event type's touches, their parts joined with commas
    uint32_t keys_bytes              # that they take in a reply, at most

ctypedef struct ServiceEntry:
    uint64_t fingerprint
    uint32_t width                   # number of its features
    uint32_t older                   # index of what the service was before; 0: nothing that is still served
    uint8_t is_gone                  # no service any more: only whoever has the fingerprint is answered

ctypedef struct WireTables:
    NameTable event_names
    const FieldTable* events         # [event_names.n], the plan's order
    NameTable service_names
    const ServiceEntry* services     # as in Plan.served: [service_names.n], then what they were before
    FieldTable parts                 # every key part of every entity, sorted by name
    size_t max_message_bytes
    uint32_t max_rows                # events of a batch, key sets of a read; at most MAX_BATCH_EVENTS
    uint64_t max_values              # key sets × features of one read

# Made from a Plan and replaced with it; owns what `tables` points to.
cdef class WireSchema:
    cdef WireTables tables
    cdef Arena _memory
    cdef readonly object plan        # featurestore.plan.Plan
    cdef readonly tuple parts        # names, in the order of ReadCall.parts
    cdef int _fill_names(self, NameTable* table, list names) except -1
    cdef int _fill_fields(self, FieldTable* table, list names, list kinds) except -1

# ---- what can be wrong with a request ----

cdef enum WireStatus:
    WIRE_OK = 0
    WIRE_MALFORMED = 1               # not a protobuf message of this type
    WIRE_BAD_UTF8 = 2                # a text is not UTF-8
    WIRE_TOO_LARGE = 3               # more bytes than max_message_bytes
    WIRE_TOO_MANY_ROWS = 4           # more than max_rows
    WIRE_TOO_MANY_VALUES = 5         # a read of more than max_values
    WIRE_NO_ROOM = 6                 # decoded it would not fit in the arena
    WIRE_UNKNOWN_EVENT = 7           # text: the name
    WIRE_UNKNOWN_FIELD = 8           # text: the name, event: of which event type
    WIRE_UNKNOWN_SERVICE = 9         # text: the name
    WIRE_UNKNOWN_PART = 10           # text: the name
    WIRE_GIVEN_TWICE = 11            # a field, part or column; text: its name
    WIRE_TIME_TWICE = 12             # as milliseconds and as the event type's time field
    WIRE_TOO_MANY_POSITIONS = 13     # more positional values than the event type has fields
    WIRE_ROWS_AND_COLUMNS = 14       # one or the other
    WIRE_LENGTHS_DIFFER = 15         # columns of different lengths; text: the column
    WIRE_BAD_COLUMN = 16             # lengths against data or bitmap; text: the column
    WIRE_UNKNOWN_ACK = 17            # not a value of Ack
    WIRE_PRODUCER_TOO_LONG = 18      # more than MAX_PRODUCER_BYTES
    WIRE_BAD_KEY = 19                # of a read; row, reason: Outcome
    WIRE_AS_OF_RANGE = 20            # outside the years 1..9999; row
    WIRE_AS_OF_TWICE = 21            # one for all and one for each
    WIRE_FINGERPRINT = 22            # of no vector of the service; text: the service's name

ctypedef struct WireError:
    int code                         # WireStatus
    size_t offset                    # in the message, where reading stopped
    const uint8_t* text              # in the message or the tables; NULL when no name is involved
    size_t text_length               # bytes
    int32_t event                    # index of the event type, or -1
    uint32_t row                     # index of the event, key set or value
    uint8_t reason                   # Outcome, for WIRE_BAD_KEY
    uint64_t fingerprint             # for WIRE_FINGERPRINT

# The exception of featurestore.errors that says it in words, with a suggestion for a mistyped name.
cdef object wire_exception(WireSchema schema, const WireError* error)

# Compared at import: see core/structs.py.
cdef inline dict names_structs():
    return memory_structs() | {"server/names.pxd": (
        sizeof(Name), sizeof(NameTable), sizeof(FieldTable), sizeof(ServiceEntry), sizeof(WireTables),
        sizeof(WireSchema), sizeof(WireError),
    )}
