# Bodies of journal frames, to and from memory, and the cursor through which stored bytes are read.
#
# Ownership: a ByteBuffer owns its bytes until buffer_free. A BatchFrame owns its Column array until
# batch_frame_free and borrows everything else from the body it was decoded from, which must stay alive, in
# place and 8-byte aligned while the Batch is used. Nothing here is shared between threads.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from featurestore.core.batch cimport Batch, Column, batch_structs

cdef enum:
    MAX_BODY_BYTES = 1 << 30
    FORGET_BODY_BYTES = 24
    BATCH_HEAD_BYTES = 40
    PRODUCER_HEAD_BYTES = 24
    MAX_PRODUCER_BODY_BYTES = PRODUCER_HEAD_BYTES + 256

cdef enum BodyStatus:
    BODY_OK = 0
    BODY_SHORT = 1                # ends before what its lengths announce
    BODY_LONG = 2                 # bytes are left over
    BODY_MISALIGNED = 3           # the body's address or size is not a multiple of 8
    BODY_EVENTS = 4               # n_events is 0 or above MAX_BATCH_EVENTS
    BODY_OUTCOME = 5              # an outcome that no version has
    BODY_KIND = 6                 # a column kind that no version has
    BODY_OFFSETS = 7              # text offsets do not ascend from 0 to the size of the text
    BODY_PRESENT = 8              # a flag that is neither 0 nor 1
    BODY_PADDING = 9              # a byte that must be 0 is not
    BODY_TOO_LARGE = 10           # encode: more than MAX_BODY_BYTES, or a producer longer than 255 bytes
    BODY_NO_MEMORY = 11
    BODY_CHANGE = 12              # a change of a producer that no version has, or numbers that it cannot have
    BODY_NAME = 13                # no name
    BODY_SHED = 14                # a SHED body that says of no accepted event what was shed, or of another

ctypedef struct ByteBuffer:
    uint8_t* data                 # malloc'ed, so 16-byte aligned
    size_t size                   # bytes in use
    size_t capacity               # bytes allocated

ctypedef struct BatchHead:
    const char* producer          # [producer_bytes], borrowed; empty = the batch is not deduplicated
    uint8_t producer_bytes
    uint16_t event_id             # EventPlan.event_id, which outlives the indexes of one plan
    uint64_t epoch
    uint64_t sequence
    uint64_t fingerprint          # of the content as it was sent
    const uint64_t* shed          # [n_events] bits of touches whose keys found no room; NULL: a BATCH

ctypedef struct BatchFrame:
    BatchHead head
    Batch batch                   # batch.event is 0: the caller maps head.event_id to an index in its plan
    Column* columns               # owned; what batch.columns points to
    uint32_t capacity             # columns allocated

cdef int buffer_reserve(ByteBuffer* buffer, size_t capacity) noexcept nogil
cdef void buffer_free(ByteBuffer* buffer) noexcept nogil

# Replaces the buffer's content by the body of `batch`. Any status but BODY_OK leaves it empty.
cdef int encode_batch(const Batch* batch, const BatchHead* head, ByteBuffer* out) noexcept nogil
# Start from a zeroed BatchFrame; it may be used again for any number of bodies. `body` is not written to, but
# batch.outcomes points into it.
cdef int decode_batch(uint8_t* body, size_t size, bint has_shed, BatchFrame* out) noexcept nogil
cdef void batch_frame_free(BatchFrame* frame) noexcept nogil

# Writes FORGET_BODY_BYTES.
cdef void encode_forget(uint16_t entity_id, const uint8_t* fingerprint, uint8_t* out) noexcept nogil
cdef int decode_forget(
    const uint8_t* body, size_t size, uint16_t* entity_id, uint8_t* fingerprint,
) noexcept nogil

# What an operator changed of a producer. The name is borrowed.
ctypedef struct ProducerBody:
    uint8_t change                # Change of core/change.pxd
    uint8_t name_bytes            # at least 1
    const uint8_t* name
    uint64_t epoch                # of a reset, each below 2^63; else 0
    uint64_t sequence

# Returns how many bytes, at most MAX_PRODUCER_BODY_BYTES.
cdef size_t encode_producer(const ProducerBody* change, uint8_t* out) noexcept nogil
cdef int decode_producer(const uint8_t* body, size_t size, ProducerBody* out) noexcept nogil

cdef object body_error(int status, str where)


# Stored bytes are read through a cursor only. Its one way forward is `take`, which checks before it moves.
ctypedef struct Cursor:
    const uint8_t* at
    size_t left

# The next n bytes, or NULL (and no move) where fewer are left.
cdef inline const uint8_t* take(Cursor* cursor, size_t n) noexcept nogil:
    cdef const uint8_t* at = cursor.at
    if n > cursor.left:
        return NULL
    cursor.at += n
    cursor.left -= n
    return at

cdef inline uint16_t load_u16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value

cdef inline uint32_t load_u32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value

cdef inline uint64_t load_u64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value

cdef inline size_t align8(size_t n) noexcept nogil:
    return (n + 7) & ~(<size_t> 7)

# Compared at import: see core/structs.py.
cdef inline dict frame_structs():
    return batch_structs() | {"storage/frame.pxd": (
        sizeof(ByteBuffer), sizeof(BatchHead), sizeof(BatchFrame), sizeof(ProducerBody), sizeof(Cursor),
    )}
