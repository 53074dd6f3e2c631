# Which batches each producer has sent: its epoch, its highest sequence, and which of the 1,024 below it were
# seen, with a fingerprint of each. The sequencer owns the table and decides by it; all of this runs under the
# order lock.
#
# Time is the server's clock as frames have it, also where events bring their own: how long somebody has been
# silent has nothing to do with what he tells of. A producer is forgotten after a silence that is longer than
# any retry: 7 days, or 15 minutes if its name is one that a client made up for itself. Then it is as if it
# had never been; when its memory is given back changes nothing.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs

cdef enum:
    SEQUENCES = 1025             # the highest sequence and the 1,024 below it
    NAMED = 0                    # classes, each with half of the memory
    MADE_UP = 1
    N_CLASSES = 2
    SEGMENT = 1024               # buckets are made so many at a time
    MAX_SEGMENTS = 65536

cdef enum Verdict:               # of a whole batch, by its producer, epoch and sequence
    VERDICT_NEW = 0
    VERDICT_DUPLICATE = 1        # acknowledged, not applied
    VERDICT_TOO_OLD = 2          # more than 1,024 below the highest: cannot be judged
    VERDICT_CONFLICT = 3         # the sequence was seen with other content
    VERDICT_FENCED = 4           # a newer epoch of this producer has written
    VERDICT_FULL = 5             # it needs memory, and its class has none left
    VERDICT_JUMP = 6             # its epoch or sequence is out of reach

ctypedef struct Producer:
    uint64_t fp0                 # SipHash of its name
    uint64_t fp1
    uint64_t epoch
    uint64_t highest
    int64_t last_ms              # the server's clock at its last batch; UNSET_MS: not known
    Producer* next               # of its bucket
    Producer* older              # of its class, by last_ms
    Producer* newer
    uint64_t* content            # [capacity] by sequence % capacity: fingerprint of the batch, 0 = not seen
    uint16_t capacity            # 4, 8, ... 1024, SEQUENCES: as many as what was seen needs
    uint8_t class_

ctypedef struct ProducerClass:
    Producer* oldest
    Producer* newest
    uint64_t n
    uint64_t n_bytes
    uint64_t refused             # batches, since the process started
    uint64_t forgotten           # producers, since the process started

# Linear hashing: with each producer more one bucket is split in two, so that no growth is ever longer than
# that, and a walk through the buckets, upwards, passes everything that is there from its beginning to its
# end.
ctypedef struct ProducerTable:
    Producer*** segments         # [MAX_SEGMENTS] of SEGMENT buckets each, NULL behind the last
    uint64_t n_buckets
    uint64_t level               # a power of two: buckets below n_buckets - level have been split
    uint64_t max_bytes
    int64_t now_ms               # the latest that frames have had; UNSET_MS before the first
    ProducerClass classes[N_CLASSES]

ctypedef struct Origin:          # who sent a batch; n_bytes 0: nobody says, no deduplication by sequence
    uint64_t fp0                 # SipHash of the producer's name
    uint64_t fp1
    uint64_t epoch
    uint64_t sequence
    uint64_t content             # fingerprint of the batch as sent, never 0
    uint8_t class_
    bint given

cdef int producers_init(ProducerTable* table, uint64_t max_bytes) noexcept nogil   # 0, -1 memory
cdef void producers_clear(ProducerTable* table) noexcept nogil
# NAMED, or MADE_UP: `client-`, 16 hexadecimal digits, and perhaps `/` and a number.
cdef uint8_t producer_class(const uint8_t* name, size_t n_bytes) noexcept nogil
# A Verdict, at the server's clock.
cdef int producers_judge(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil
# The origin's record with room for its sequence, made where there is none; NULL when out of memory. Then
# producer_remember cannot fail.
cdef Producer* producers_of(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil
cdef void producer_remember(ProducerTable* table, Producer* producer, const Origin* origin) noexcept nogil
cdef uint64_t producers_bytes(const ProducerTable* table) noexcept nogil

# As bytes (format: producers.pyx), bucket after bucket from bucket[0] on: 1 more, 0 done, -1 memory. It
# ends however fast producers come.
cdef int producers_copy(const ProducerTable* table, uint64_t* bucket, uint32_t max_buckets,
                        Bytes* out) noexcept nogil
# All of them in canonical order. 0, -1 memory
cdef int producers_export(const ProducerTable* table, Bytes* out) noexcept nogil
# 0, 1 not readable, -1 memory
cdef int producers_import(ProducerTable* table, const uint8_t* data, size_t n_bytes, bint wall) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict producers_structs():
    return bytes_structs() | {"core/producers.pxd": (
        sizeof(Producer), sizeof(ProducerClass), sizeof(ProducerTable), sizeof(Origin),
    )}
