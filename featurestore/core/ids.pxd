# Ids of accepted events: per event type, the fingerprint of each one within the dedupe horizon, and when it
# was seen.
#
#   log      ids in the order in which they were remembered, which is nearly that in which they expire: in
#            segments of at most 16,384 ids, and none is filled for longer than a sixteenth of the horizon. A
#            segment whose newest id has expired is dropped whole; an id never moves
#   index    fingerprint → place in the log: buckets of one cache line, linear hashing. It grows and shrinks
#            by one bucket at a time, as ids come and go, and never looks into the log for it
#
# So whatever the number of ids, no step takes longer than a bucket and a segment: the sequencer looks an id
# up when it decides and remembers it when it commits, both under the caller's order lock. All event types
# together have one cap in bytes: ID_BYTES an id, INDEX_ID_BYTES where it is cold, and only ids within their
# horizon count against it.
#
# Cold segments. A checkpoint has the ids of a segment that takes no more of them, and then their part of the
# log can be had from there: it is given up when memory becomes short, the oldest first, so that the cold
# segments of a type are always its first. The index is then the filter before the disk: it knows 23 bits of
# an id beside its bucket, so that looking a new id up hardly ever leads to a cold one. What it leads to is
# named in `ColdIds`, read without the order lock (state_fetch), and decided anew with what was found. The
# number of an id means the same id for as long as the log has it, so what was found stays true meanwhile.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs
from featurestore.core.plan cimport PlanC, plan_structs

cdef enum:
    INDEX_ID_BYTES = 12          # of an id in the index
    ID_BYTES = 36                # and with its 24 in the log
    SEGMENT_BITS = 14
    SEGMENT_IDS = 1 << SEGMENT_BITS
    SLICES = 16                  # of a horizon
    BUCKET_IDS = 8
    PIECE_BUCKETS = 4096         # of the index: 256 KiB
    RECORD_IDS = 168             # in one record of a checkpoint: as many as fit a page of the rows' file
    RECORD_BYTES = 20 + RECORD_IDS * 24

ctypedef struct Id:
    uint64_t fp0
    uint64_t fp1
    int64_t seen_at_ms           # the later of the store's clock and the event's time

ctypedef struct IdSegment:
    Id* ids                      # [n], owned; mapped for SEGMENT_IDS. NULL: cold
    uint32_t n
    int64_t newest_ms            # the greatest seen_at

# A tag is 24 bits: a 1, and below it what is known of the fingerprint beyond the bits that name the bucket,
# 23 bits at first. When a bucket is split, the lowest of them says which half an entry goes to and leaves the
# tag; when two become one again it comes back. So an entry moves without the log, which may be cold, at the
# price of one bit for each time that the index doubled since: half of all entries came since the last time.
ctypedef struct IdBucket:        # one cache line
    uint16_t tags_low[BUCKET_IDS]    # tag 0: empty
    uint8_t tags_high[BUCKET_IDS]
    uint32_t next_               # 1 + place of the bucket that it goes on in, 0: none
    uint32_t unused
    uint32_t numbers[BUCKET_IDS]  # segment << SEGMENT_BITS | place in it; of a segment that is gone: empty

ctypedef struct IdBuckets:
    IdBucket** pieces            # [n_pieces], owned, PIECE_BUCKETS each
    uint32_t n_pieces
    uint32_t capacity
    uint64_t n

ctypedef struct IdTable:         # all zero but dedupe_ms and floor_ms: empty
    int64_t dedupe_ms            # of the event type
    int64_t floor_ms             # ids seen before it have expired, whatever the horizon: see ids_adopt
    IdSegment* segments          # ring of a power of two, by number
    uint32_t capacity
    uint32_t n_segments
    uint64_t first               # number of the oldest segment
    uint64_t stored_end          # of those before it, a checkpoint has all there is
    uint64_t cold_end            # those before it are cold
    int64_t open_until_ms        # the newest takes no more ids from this clock on
    uint64_t n_ids               # in the log
    uint64_t n_cold              # of those, in cold segments
    IdBuckets index
    IdBuckets further            # where full buckets go on
    uint32_t free_               # 1 + first of those not in use, by next_; 0: none

ctypedef struct Ids:
    IdTable* tables              # [n_types]
    uint16_t n_types             # event types in the plan
    uint64_t max_bytes           # of all types together
    uint64_t n_ids               # in all logs, expired ones that were not dropped yet included
    uint64_t n_cold              # of those, in cold segments
    uint64_t n_ever              # that were ever put into a log

ctypedef struct IdSet:           # ids of one batch; never full
    Id* places                   # [n_places], owned; fingerprint 0: empty
    uint64_t n_places            # a power of two

# Where the ids of cold segments are read: the record of this key (as in checkpoints, its two halves as
# numbers) into ids[RECORD_IDS]. How many; 0: there is none, -1: it cannot be read. Any thread.
ctypedef int (*ReadIds)(void* source, uint64_t key0, uint64_t key1, Id* ids) noexcept nogil

ctypedef struct IdSource:
    ReadIds read                 # NULL: there are no cold segments
    void* source

cdef enum ColdStatus:
    COLD_WANTED = 0
    COLD_SAME = 1                # it is this id, seen at seen_at_ms
    COLD_OTHER = 2               # it is another: the index led there in vain
    COLD_UNREADABLE = 3

ctypedef struct ColdId:          # what the index leads to for an event's id
    uint32_t event               # its place in the batch
    uint32_t status              # ColdStatus
    uint64_t at                  # number of the segment << SEGMENT_BITS | place in it
    uint64_t fp[2]
    int64_t seen_at_ms

ctypedef struct ColdIds:         # of one batch
    ColdId* all_                 # owned
    uint32_t n
    uint32_t n_known             # the first of them are not wanted any more, and sorted by event and place
    uint32_t capacity

cdef enum IdVerdict:
    ID_NEW = 0
    ID_SEEN = 1
    ID_WANTED = 2                # it depends on cold ids, which were put into ColdIds
    ID_UNKNOWN = 3               # it depends on cold ids that cannot be read

cdef int ids_init(Ids* ids, const PlanC* plan, uint64_t max_bytes) noexcept nogil   # 0, or -1: out of memory
cdef void ids_clear(Ids* ids) noexcept nogil

cdef int id_set_init(IdSet* known, uint32_t n) noexcept nogil        # for n ids. 0, or -1 when out of memory
# Where the id is, or the empty place where it would go.
cdef Id* id_set_place(const IdSet* known, const uint64_t* fp) noexcept nogil

# Ids seen before it have expired when the type's clock is `now`.
cdef inline int64_t ids_oldest(const IdTable* table, int64_t now) noexcept nogil:
    return now - table.dedupe_ms if now - table.dedupe_ms > table.floor_ms else table.floor_ms

# Whether an id was seen since oldest_ms: an IdVerdict, or -1: out of memory.
cdef int ids_judge(const IdTable* table, const uint64_t* fp, int64_t oldest_ms, uint32_t event,
                   ColdIds* cold) noexcept nogil
# Reads what is wanted. 0, or -1 when out of memory. in_vain: how many were of another id; unread: or could
# not be read.
cdef int ids_fetch(ColdIds* cold, const IdSource* source, uint16_t event_id, uint64_t* in_vain,
                   uint64_t* unread) noexcept nogil
# Asks for the memory that looking the id up begins with.
cdef void ids_prefetch(const IdTable* table, const uint64_t* fp) noexcept nogil
# Bytes that count at this time: of all ids but those of segments that have expired.
cdef uint64_t ids_live_bytes(const IdTable* table, int64_t oldest_ms) noexcept nogil
cdef inline uint64_t ids_bytes(const Ids* ids) noexcept nogil:
    return ids.n_ids * ID_BYTES - ids.n_cold * (ID_BYTES - INDEX_ID_BYTES)

# Whether there is so much that segments are to become cold, before anybody meets the cap.
cdef inline bint ids_are_many(const Ids* ids) noexcept nogil:
    return ids_bytes(ids) > ids.max_bytes // 8 * 5

# Makes the oldest segment cold that can be, of the type that has most of those. What is to be given back with
# ids_give then, order lock or not; NULL: there is none.
cdef Id* ids_cool(Ids* ids) noexcept nogil
cdef void ids_give(Id* given_up) noexcept nogil
# Remembers an id at the type's clock `now`; one that is known keeps the later time. 0, or -1 when out of
# memory.
cdef int ids_remember(Ids* ids, IdTable* table, const uint64_t* fp, int64_t seen_at_ms,
                      int64_t now) noexcept nogil
# Drops segments that have expired, at most `most`; how many.
cdef uint32_t ids_drop(Ids* ids, IdTable* table, int64_t oldest_ms, uint32_t most) noexcept nogil
# Takes over the ids of an event type from the plan before; `now` is its clock. Ids that had expired stay
# expired when the new horizon is longer.
cdef void ids_adopt(Ids* ids, IdTable* table, Ids* old, IdTable* before, int64_t now) noexcept nogil

# For a checkpoint: records, RECORD_IDS ids of a segment each. What a segment holds never changes but at its
# end, so each is written once; the last of a segment that still grows is written again. They are copied
# between batches; see sequencer.pxd for why they may know ids of events after a checkpoint's cut.
#
# Appends at most `most` records of a segment of which from_ ids are in records. How many are then; 0: it was
# dropped; -1: out of memory.
cdef int64_t ids_copy_records(const IdTable* table, uint16_t event_id, uint64_t segment, uint32_t from_,
                              uint32_t most, Bytes* out) noexcept nogil
# Appends the freed records of a segment of which n ids are stored. 0, -1 memory
cdef int ids_free_records(uint16_t event_id, uint64_t segment, uint32_t n, Bytes* out) noexcept nogil
# Ids in segment number k of a table, by age; 0 where it has not as many.
cdef uint32_t ids_of_segment(const IdTable* table, uint32_t k) noexcept nogil
# The last checkpoint written has all of the segments before `last`, and n ids of that one.
cdef void ids_set_stored(IdTable* table, uint64_t last, uint32_t n) noexcept nogil
# Records of a checkpoint, sorted, into tables without ids; or what follows on the records before. 0, 1 not
# readable, -1 memory.
cdef int ids_import_records(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil

# As bytes that depend on nothing but what is remembered (format: ids.pyx), into an empty `out`: for
# snapshots, and checkpoints before there were records. type_nows: the clock of each event type. Cold ids are
# read from `source`. 0, 1 they cannot be read, -1 memory
cdef int ids_export(const Ids* ids, const PlanC* plan, const int64_t* type_nows, const IdSource* source,
                    Bytes* out) noexcept nogil
# Event types that the plan does not have are left out. 0, 1 not readable, -1 memory.
cdef int ids_import(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict ids_structs():
    return bytes_structs() | plan_structs() | {"core/ids.pxd": (
        sizeof(Id), sizeof(IdSegment), sizeof(IdBucket), sizeof(IdBuckets), sizeof(IdTable), sizeof(Ids),
        sizeof(IdSet), sizeof(IdSource), sizeof(ColdId), sizeof(ColdIds),
    )}
