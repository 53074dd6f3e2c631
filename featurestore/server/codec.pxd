# The hot messages between protobuf's wire format and C structs, without the GIL, a Python object or libprotobuf.
#
# Decoding: bytes in, a call struct out. Everything the struct points to lies in the caller's Arena or in the message
# itself (texts of columns are not copied), so both must outlive it. A decoder returns WIRE_OK or a WireStatus and then
# has filled the WireError. What it accepts is well-formed, its names are resolved to the plan's indexes, offsets
# ascend and end within the bytes, every array has n entries, texts are UTF-8. An event that cannot be kept is refused
# in `outcomes`: for its time first, then for its fields in the schema's order; its values then mean nothing. What a
# value means for its field is what featurestore/columns.py says of it.
#
# Encoding: appends one message to the caller's Buffer, so a transport may put its framing before it.
#
# An Arena, a Buffer and a WireError belong to one thread at a time. WireTables are read-only and shared by all; the
# WireSchema that owns them must outlive every use.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.batch cimport Batch, Column

# ---- memory the caller owns ----

ctypedef struct ArenaBlock:
    ArenaBlock* next                 # made before this one
    size_t capacity                  # bytes after this header
    size_t used                      # of them

ctypedef struct Arena:               # all zero but max_bytes: ready to use
    ArenaBlock* newest
    size_t taken_bytes               # capacity of all blocks together
    size_t max_bytes                 # no request may make it larger than this

ctypedef struct Buffer:              # all zero but max_bytes: ready to use
    uint8_t* data
    size_t size                      # bytes written
    size_t capacity
    size_t max_bytes                 # no reply may make it larger than this

# 16-byte aligned room for count × size bytes, or NULL when that overflows, exceeds max_bytes, or malloc fails.
cdef void* arena_alloc(Arena* arena, size_t count, size_t size) noexcept nogil
# Everything taken from it is gone; one block stays for the next request, unless it is larger than keep_bytes.
cdef void arena_reset(Arena* arena, size_t keep_bytes) noexcept nogil
cdef void arena_free(Arena* arena) noexcept nogil
cdef void buffer_free(Buffer* buffer) noexcept nogil

# ---- names ----

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
cdef int32_t name_index(const NameTable* table, const uint8_t* text, size_t length, uint32_t guess) noexcept nogil

cdef enum FieldKind:
    FIELD_NUMBER = 0
    FIELD_STRING = 1
    FIELD_KEY = 2

cdef enum TimeUnit:
    TIME_S = 0
    TIME_MS = 1
    TIME_US = 2
    TIME_ISO = 3

ctypedef struct FieldTable:          # the fields of an event type, or the key parts of the whole plan
    NameTable names                  # for an event type, index n_fields is its time field
    uint32_t n_fields
    const uint8_t* kinds             # [n_fields] FieldKind
    uint8_t time_unit                # TimeUnit; event types only

ctypedef struct ServiceEntry:
    uint64_t fingerprint
    uint32_t width                   # number of its features

ctypedef struct WireTables:
    NameTable event_names
    const FieldTable* events         # [event_names.n], the plan's order
    NameTable service_names
    const ServiceEntry* services     # [service_names.n], the plan's order
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
    WIRE_BAD_COLUMN = 16             # lengths and data disagree, bitmap too short, absent but not empty; text: the column
    WIRE_UNKNOWN_ACK = 17            # not a value of Ack
    WIRE_PRODUCER_TOO_LONG = 18      # more than MAX_PRODUCER_BYTES
    WIRE_BAD_KEY = 19                # of a read; row, reason: Outcome
    WIRE_AS_OF_RANGE = 20            # outside the years 1..9999; row
    WIRE_AS_OF_TWICE = 21            # one for all and one for each
    WIRE_FINGERPRINT = 22            # not the service's; text: the service's name

cdef enum:
    MAX_PRODUCER_BYTES = 256
    MAX_REFUSALS = 100               # listed in an IngestResponse

ctypedef struct WireError:
    int code                         # WireStatus
    size_t offset                    # in the message, where reading stopped
    const uint8_t* text              # in the message or the tables; NULL when no name is involved
    size_t text_length               # bytes
    int32_t event                    # index of the event type, or -1
    uint32_t row                     # index of the event, key set or value
    uint8_t reason                   # Outcome, for WIRE_BAD_KEY

# The exception of featurestore.errors that says it in words, with a suggestion for a mistyped name.
cdef object wire_exception(WireSchema schema, const WireError* error)

# ---- requests ----

cdef enum Ack:
    ACK_DEFAULT = 0
    ACK_APPLIED = 1
    ACK_DURABLE = 2

ctypedef struct IngestCall:          # also the part of an ObserveCall that writes
    Batch batch
    const uint8_t* producer          # UTF-8
    size_t producer_length           # bytes; 0 = the batch is not deduplicated by sequence
    uint64_t epoch
    uint64_t sequence
    uint8_t ack                      # Ack

ctypedef struct ObserveCall:
    IngestCall write                 # write.batch has one event
    int32_t service                  # index in the plan, -1 = nothing to read
    bint peek
    bint bounds
    bint coverage

ctypedef struct ReadCall:
    int32_t service                  # index in the plan
    uint32_t n                       # key sets
    uint32_t n_parts                 # of the whole plan
    const Column* parts              # [n_parts] n texts each, in the order of WireSchema.parts; not given = absent
    const int64_t* as_of             # [n] ms since the epoch; NULL = now for all
    bint bounds
    bint coverage

# `streamed`: the message is the stream's wrapper (IngestStreamRequest, GetFeaturesStreamRequest).
cdef int wire_decode_observe(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                             ObserveCall* call, WireError* error) noexcept nogil
cdef int wire_decode_ingest(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                            bint streamed, IngestCall* call, WireError* error) noexcept nogil
cdef int wire_decode_read(const WireTables* tables, Arena* arena, const uint8_t* message, size_t size,
                          bint streamed, ReadCall* call, WireError* error) noexcept nogil

# ---- replies ----

ctypedef struct VectorsView:         # n vectors of `width` values, row-major; borrowed
    uint32_t n
    uint32_t width
    const double* values             # [n × width]
    const double* lower              # [n × width], NULL when not asked for
    const double* upper              # [n × width], NULL when lower is
    const uint8_t* statuses          # [n × width] FeatureStatus
    const float* coverage            # [n × width], NULL when not asked for

# Each appends one message and returns True, or changes nothing and returns False when it would not fit in max_bytes.
# `vectors` NULL: nothing was read. `confidence` 1.0 means that bounds are certain. `now_ms` NULL: there is no now.
# `outcomes` are the batch's, after the sequencer; none for a duplicate batch.
cdef bint wire_encode_observe(Buffer* out, uint8_t outcome, uint8_t ack, uint64_t position,
                              const VectorsView* vectors, uint64_t fingerprint, double confidence) noexcept nogil
cdef bint wire_encode_ingest(Buffer* out, bint streamed, const uint8_t* outcomes, uint32_t n_events, uint8_t ack,
                             uint64_t position, uint64_t sequence, bint duplicate_batch) noexcept nogil
cdef bint wire_encode_read(Buffer* out, bint streamed, const VectorsView* vectors, uint64_t fingerprint,
                           double confidence, const int64_t* now_ms) noexcept nogil
