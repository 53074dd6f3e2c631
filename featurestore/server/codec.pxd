# Hot requests: protobuf's wire format to C structs, without the GIL, a Python object or libprotobuf.
#
# Bytes in, a call struct out. Everything the struct points to lies in the caller's Arena or in the message
# itself (texts of columns are not copied), so both must outlive it. A decoder returns WIRE_OK or a WireStatus
# and then has filled the WireError. What it accepts is well-formed, its names are resolved to the plan's
# indexes, offsets ascend and end within the bytes, every array has n entries, texts are UTF-8. An event that
# cannot be kept is refused in `outcomes`: for its time first, then for its fields in the schema's order; its
# values then mean nothing. What a value means for its field is what featurestore/columns.py says of it.
#
# An Arena and a WireError belong to one thread at a time; WireTables are read-only and shared by all.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.batch cimport Batch, Column, batch_structs
from featurestore.server.memory cimport Arena
from featurestore.server.names cimport WireError, WireTables, names_structs

cdef enum Ack:                       # featurestore.v1.Ack
    ACK_DEFAULT = 0
    ACK_APPLIED = 1
    ACK_DURABLE = 2

ctypedef struct IngestCall:          # also the part of an ObserveCall that writes
    Batch batch
    const uint16_t* refused_by       # [n_events] of those refused here: index of the field whose value is
                                     # why; that of the time is behind the others
    const uint8_t* producer          # UTF-8
    size_t producer_length           # bytes; 0 = the batch is not deduplicated by sequence
    uint64_t epoch
    uint64_t sequence
    uint64_t max_refusals            # to list in the reply; 0: MAX_REFUSALS
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
    const Column* parts              # [n_parts] n texts each, in the order of WireSchema.parts
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

# Compared at import: see core/structs.py.
cdef inline dict codec_structs():
    return batch_structs() | names_structs() | {"server/codec.pxd": (
        sizeof(IngestCall), sizeof(ObserveCall), sizeof(ReadCall),
    )}
