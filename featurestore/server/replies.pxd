# Results to protobuf's wire format: each function appends one message to the caller's Buffer, so that a
# transport may put its framing before it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.server.memory cimport Buffer
from featurestore.server.names cimport FieldTable, NameTable, names_structs

cdef enum:
    MAX_REFUSALS = 100               # listed in an IngestResponse, unless it is asked for more or fewer

ctypedef struct VectorsView:         # n vectors of `width` values, row-major; borrowed
    uint32_t n
    uint32_t width
    const double* values             # [n × width]
    const double* lower              # [n × width], NULL when not asked for
    const double* upper              # [n × width], NULL when lower is
    const uint8_t* statuses          # [n × width] FeatureStatus
    const float* coverage            # [n × width], NULL when not asked for

# Each appends one message and returns True, or changes nothing and returns False when it would not fit in
# max_bytes. `vectors` NULL: nothing was read. `confidence` 1.0 means that bounds are certain. `now_ms` NULL:
# there is no now. `shed`: bits of `keys`, which is not looked at where there is none. `outcomes` are the
# batch's, after the sequencer; none for a duplicate batch. `fields` are the event type's and `refused_by` as
# in an IngestCall: refusals name their field; NULL: they do not.
cdef bint wire_encode_observe(Buffer* out, uint8_t outcome, bint partly_late, uint8_t ack, uint64_t position,
                              uint64_t* ack_back, const VectorsView* vectors, uint64_t fingerprint,
                              double confidence,
                              const NameTable* keys, uint64_t shed, const FieldTable* fields,
                              const uint16_t* refused_by) noexcept nogil
cdef bint wire_encode_ingest(Buffer* out, bint streamed, const uint8_t* outcomes, uint32_t n_events,
                             uint32_t partly_late, uint32_t shed, uint8_t ack, uint64_t position,
                             uint64_t* ack_back, uint64_t sequence, bint duplicate_batch,
                             uint64_t max_refusals,
                             const FieldTable* fields, const uint16_t* refused_by) noexcept nogil
cdef bint wire_encode_read(Buffer* out, bint streamed, const VectorsView* vectors, uint64_t fingerprint,
                           double confidence, const int64_t* now_ms) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict replies_structs():
    return names_structs() | {"server/replies.pxd": (sizeof(VectorsView),)}
