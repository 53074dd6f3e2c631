# Which batches each producer has sent: its epoch, its highest sequence, and which of the 1,024 below it were
# seen, with a fingerprint of each. The sequencer owns the table and decides by it; all of this runs under the
# order lock.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs

cdef enum:
    SEQUENCES = 1025             # the highest sequence and the 1,024 below it

cdef enum Verdict:               # of a whole batch, by its producer, epoch and sequence
    VERDICT_NEW = 0
    VERDICT_DUPLICATE = 1        # acknowledged, not applied
    VERDICT_TOO_OLD = 2          # more than 1,024 below the highest: cannot be judged
    VERDICT_CONFLICT = 3         # the sequence was seen with other content
    VERDICT_FENCED = 4           # a newer epoch of this producer has written
    VERDICT_FULL = 5             # a new producer, and the table is at its cap

ctypedef struct Producer:
    uint64_t fp0                 # SipHash of its name
    uint64_t fp1
    uint64_t epoch
    uint64_t highest
    int64_t last_ms              # the store's clock at its last batch
    uint64_t content[SEQUENCES]  # by sequence % SEQUENCES: fingerprint of the batch, 0 = not seen

ctypedef struct ProducerTable:   # open addressing over owned records
    Producer** places
    uint64_t n_places            # a power of two
    uint64_t n_producers
    uint64_t max_producers
    uint64_t moves               # how often records changed places: what is being copied begins again then
    int64_t oldest_ms            # no last_ms is before it: spares looking for who may be forgotten

ctypedef struct Origin:          # who sent a batch; n_bytes 0: nobody says, no deduplication by sequence
    uint64_t fp0                 # SipHash of the producer's name
    uint64_t fp1
    uint64_t epoch
    uint64_t sequence
    uint64_t content             # fingerprint of the batch as sent, never 0
    bint given

ctypedef struct ProducerCursor:  # of a table being copied; all zero: begin
    uint64_t place
    uint64_t moves               # of the table when copying it began
    size_t began                 # bytes before it: a table that moved is copied again, in place of its copy

cdef int producers_init(ProducerTable* table, uint64_t max_producers) noexcept nogil   # 0, -1 memory
cdef void producers_clear(ProducerTable* table) noexcept nogil
# A Verdict. now_ms: the store's clock, which says who may be forgotten for a new producer.
cdef int producers_judge(ProducerTable* table, const Origin* origin, int64_t now_ms) noexcept nogil
# The origin's record, made where it is new; NULL when out of memory.
cdef Producer* producers_of(ProducerTable* table, const Origin* origin, int64_t now_ms) noexcept nogil
cdef void producer_remember(Producer* producer, const Origin* origin, int64_t now_ms) noexcept nogil

# As bytes, copied in slices (format: producers.pyx). 1 more, 0 done, -1 memory
cdef int producers_copy(const ProducerTable* table, ProducerCursor* cursor, uint32_t max_places,
                        Bytes* out) noexcept nogil
# into canonical order
cdef void producers_sort(Bytes* producers) noexcept nogil
# 0, 1 not readable, -1 memory
cdef int producers_import(ProducerTable* table, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict producers_structs():
    return bytes_structs() | {"core/producers.pxd": (
        sizeof(Producer), sizeof(ProducerTable), sizeof(Origin), sizeof(ProducerCursor),
    )}
