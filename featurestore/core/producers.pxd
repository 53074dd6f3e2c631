# Which batches each producer has sent: its epoch, its highest sequence, and which of the 1,024 below it were
# seen, with a fingerprint of each. The sequencer owns the table and decides by it; all of this runs under the
# order lock.
#
# Time is the server's clock as frames have it, also where events bring their own: how long somebody has been
# silent has nothing to do with what he tells of. A producer is forgotten after a silence that is longer than
# any retry: 7 days, or 15 minutes if its name is one that a client made up for itself. Then it is as if it
# had never been; when its memory is given back changes nothing.
#
# An operator may change what is remembered of one: forget it before that (drop), or say where it is to go on
# (reset) after another has written under its name and fenced it off.
#
# A checkpoint writes a record of each one that has changed since the one before, and takes out those of
# producers that are gone: which have one is kept until it has been taken out.
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
    VERDICT_TOO_OLD = 2          # more than 1,024 below the highest, or from before a reset: cannot be judged
    VERDICT_CONFLICT = 3         # the sequence was seen with other content
    VERDICT_FENCED = 4           # a newer epoch of this producer has written
    VERDICT_FULL = 5             # it needs memory, and its class has none left
    VERDICT_JUMP = 6             # its epoch or sequence is out of reach

# Whether a batch that is turned away so may have been applied before.
cdef inline bint is_unknown(int verdict) noexcept nogil:
    return verdict == VERDICT_TOO_OLD or verdict == VERDICT_FENCED

ctypedef struct Producer:
    uint64_t fp0                 # SipHash of its name
    uint64_t fp1
    uint64_t epoch
    uint64_t highest
    uint64_t lowest              # sequences below it cannot be judged: they are from before a reset
    int64_t last_ms              # the server's clock at its last batch or reset; UNSET_MS: not known
    Producer* next               # of its bucket
    Producer* older              # of its class, by last_ms
    Producer* newer
    uint64_t* content            # [capacity] by sequence % capacity: fingerprint of the batch, 0 = not seen;
                                 # its name follows
    uint16_t capacity            # 4, 8, ... 1024, SEQUENCES: as many as what was seen needs
    uint8_t class_
    uint8_t name_bytes           # 0: not known, of a store of before in which it has not written since
    uint32_t mark                # the round in which it last changed
    uint8_t is_stored            # a checkpoint may have a record of it

ctypedef struct ProducerClass:
    Producer* oldest
    Producer* newest
    uint64_t n
    uint64_t n_bytes
    uint64_t refused             # batches, since the process started
    uint64_t forgotten           # producers, since the process started
    Bytes freed                  # fingerprints (16 bytes each) of those gone that may have a record
    size_t n_freed_copied        # bytes of those, from the first on, that the checkpoint under way takes out

# Linear hashing: with each producer more one bucket is split in two, so that no growth is ever longer than
# that, and a walk through the buckets, upwards, passes everything that is there from its beginning to its
# end.
ctypedef struct ProducerTable:
    Producer*** segments         # [MAX_SEGMENTS] of SEGMENT buckets each, NULL behind the last
    uint64_t n_buckets
    uint64_t level               # a power of two: buckets below n_buckets - level have been split
    uint64_t max_bytes
    int64_t now_ms               # the latest that frames have had; UNSET_MS before the first
    uint32_t round               # counts checkpoints begun, from 1
    uint32_t stored              # the round before which all that changed is stored
    uint32_t copied              # the one that the checkpoint under way began; 0: there is none
    ProducerClass classes[N_CLASSES]

ctypedef struct Origin:          # who sent a batch; not `given`: nobody says, no deduplication by sequence
    const uint8_t* name          # borrowed
    uint8_t name_bytes
    uint64_t fp0                 # SipHash of the name
    uint64_t fp1
    uint64_t epoch
    uint64_t sequence
    uint64_t content             # fingerprint of the batch as sent, never 0
    uint8_t class_
    bint given

ctypedef struct ProducerRecord:   # as it is stored; its name and what was seen follow (format: producers.pyx)
    uint64_t fp[2]
    uint64_t epoch
    uint64_t highest
    int64_t last_ms
    uint8_t class_
    uint8_t name_bytes
    uint16_t n
    uint32_t zeros
    uint64_t lowest              # not in version 2

cdef int producers_init(ProducerTable* table, uint64_t max_bytes) noexcept nogil   # 0, -1 memory
cdef void producers_clear(ProducerTable* table) noexcept nogil
# NAMED, or MADE_UP: `client-`, 16 hexadecimal digits, and perhaps `/` and a number.
cdef uint8_t producer_class(const uint8_t* name, size_t n_bytes) noexcept nogil
# A Verdict, at the server's clock.
cdef int producers_judge(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil
# The origin's record with room for its sequence, made where there is none; NULL when out of memory. Then
# producer_remember cannot fail.
cdef Producer* producers_of(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil
cdef void producer_remember(ProducerTable* table, Producer* producer, const Origin* origin,
                            int64_t wall_ms) noexcept nogil
cdef uint64_t producers_bytes(const ProducerTable* table) noexcept nogil
# Whether anything is remembered of it at the server's clock.
cdef bint producers_know(const ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil
# A Change of whom the origin names; of one that is not known nothing. A reset takes epoch and sequence as the
# last ones seen: what is not above them cannot be judged any more. 0, or -1 when out of memory: then nothing
# is changed.
cdef int producers_change(ProducerTable* table, int change, const Origin* origin,
                          int64_t wall_ms) noexcept nogil

# The store's clock is set back to now_ms: nobody was heard later.
cdef void producers_set_back(ProducerTable* table, int64_t now_ms) noexcept nogil

# For a checkpoint. Cut: it appends the head, which is of all of them. Then records (format: producers.pyx) of
# those gone since the last one stored, from number at[0] on; then, bucket after bucket from bucket[0] on, of
# those that have changed since: each 1 more, 0 done, -1 memory, -2 not a place to go on from. It ends however
# fast producers come. They are in no order; where one is gone and has changed, it has come again. Then the
# end; what is in freed[N_CLASSES] then is the caller's to clear.
cdef int producers_cut(ProducerTable* table, Bytes* out) noexcept nogil                 # 0, -1 memory
cdef int producers_copy_gone(const ProducerTable* table, uint64_t* at, uint32_t most,
                             Bytes* out) noexcept nogil
cdef int producers_copy(ProducerTable* table, uint64_t* bucket, uint32_t max_buckets,
                        Bytes* out) noexcept nogil
cdef void producers_copy_end(ProducerTable* table, bint written, Bytes* freed) noexcept nogil
# The same walk, at the server's clock, over all of them: as producers_export has them, without what was seen
# and without a head.
cdef int producers_list(ProducerTable* table, uint64_t* bucket, uint32_t max_buckets, int64_t wall_ms,
                        Bytes* out) noexcept nogil
# One of them, by the origin's name, at the server's clock: as producers_export has it, without a head. 0, 1
# it is not known, -1 memory
cdef int producers_get(const ProducerTable* table, const Origin* origin, int64_t wall_ms,
                       Bytes* out) noexcept nogil
# All of them in canonical order. 0, -1 memory
cdef int producers_export(const ProducerTable* table, Bytes* out) noexcept nogil
# What producers_export gave, or a checkpoint has as its head: 0, 2 records of them follow, 1 not readable, -1
# memory
cdef int producers_import(ProducerTable* table, const uint8_t* data, size_t n_bytes, bint wall) noexcept nogil
# All records of a checkpoint, sorted, into a table without any. 0, 1 not readable, -1 memory
cdef int producers_import_records(ProducerTable* table, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict producers_structs():
    return bytes_structs() | {"core/producers.pxd": (
        sizeof(Producer), sizeof(ProducerClass), sizeof(ProducerTable), sizeof(Origin),
        sizeof(ProducerRecord),
    )}
