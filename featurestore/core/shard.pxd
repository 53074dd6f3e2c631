# The rows of one partition of the key space: applied in position order, read under the same lock.
#
#   index (table) ──► row: fingerprint, entity, log heads ──► logs (window), one per view that had an event
#
# All views of one entity key sit in one row, so an event costs one probe per entity and a read is one probe
# and a scan. Owner of the memory: the shard. Writers are one at a time for the whole store (the caller's
# order lock); the shard's own lock is what a writer shares with readers and with the checkpoint's copier, and
# is held for at most LOCKED_PARTS parts.
#
# A row as bytes (checkpoints, digests), little-endian, all sizes multiples of 8:
#   u16 entity_id, u16 number of logs, u32 0, then the logs by (view_id, kind):
#   u16 view_id (raw key: the entity's key_epoch; birth: 0), u8 kind (0 RAW, 1 WIDE, 2 lifetime, 3 raw key,
#   6 birth), u8 layout
#   (of merged entries, bits: LAYOUT_... in window.pyx; RAW: 0), u32 entries,
#   u32 compact_at, u32 words per entry, then the entries, 8 bytes a word:
#     RAW    i64 time, f64 per value, u64 filter bits if the view has feature filters
#     WIDE   i64 first, i64 last, i64 events, then the columns' partials in plan order
#     key    the key's bytes as they are hashed (entries = their number), padded with 0
#     birth  u64 position of the event that made the row, where others were shed before it (holes.pxd);
#            entries = 8
# or, of kind 4 and 5, distinct values (distinct.pxd), of kind 8 and 9 heaviest values (top.pyx), of kind 10
# and 11 decayed sums (decayed.pxd).
#
# Beside the rows, a shard has a sketch of each view that is kept in one (frequency.pxd); it is cut, copied
# and ended with the rows. So are the holes: what was shed of its rows' entities.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.arena cimport Arena
from featurestore.core.batch cimport Batch
from featurestore.core.bytes cimport Bytes, bytes_structs
from featurestore.core.frequency cimport Frequencies, frequency_structs
from featurestore.core.pages cimport Pool
from featurestore.core.plan cimport EventC, PlanC, ServiceC, SlotC
from featurestore.core.head cimport LogHead, head_structs
from featurestore.core.holes cimport Holes
from featurestore.core.pthread cimport pthread_mutex_t
from featurestore.core.table cimport Table, table_structs
from featurestore.core.window cimport Outputs, ReadAt, window_structs

cdef enum:
    LOCKED_PARTS = 128           # parts applied, or rows copied, before the lock is let go for others

ctypedef struct Row:             # head of a row's block; n_heads LogHeads follow
    uint64_t fp0
    uint64_t fp1
    uint16_t entity_id
    uint8_t n_heads
    uint8_t cap_heads
    uint32_t mark                # the cut after which it last changed

ctypedef struct Shard:
    Arena arena
    Table table
    Frequencies frequencies
    pthread_mutex_t lock
    int waiting                  # who wants the lock: whoever holds it for long lets them in
    uint64_t position            # of the last event applied: earlier parts are skipped
    uint32_t cut                 # counts checkpoints begun; a row changed since has mark == cut
    uint32_t written             # the last cut whose checkpoint was written: rows with mark < written are in
                                 # it
    uint32_t copying             # 1 while a checkpoint copies the rows with written <= mark < cut
    uint64_t copy_bucket         # next bucket to copy from
    uint64_t copy_resized        # the table's n_resized then: once it has another size, all is copied again
    const int64_t* cut_nows      # the clocks at the cut, borrowed until shard_copy_end
    Bytes copied                 # row records of the checkpoint under way
    Bytes freed                  # fingerprints (16 bytes each) of rows freed since the cut, or since the last
                                 # written
    Bytes freed_before           # those freed before the cut under way
    Holes holes
    Holes holes_at_cut           # until shard_copy_end

ctypedef struct Part:            # one event's share of one row
    uint32_t event               # index in the batch
    uint16_t touch               # index in the event type's touches
    uint64_t fp0
    uint64_t fp1

ctypedef struct Clocks:          # what time it is; everything is borrowed
    const int64_t* nows          # [events in the plan] the clock of each event type
    const int64_t* first_nows    # [events in the plan] now at its first accepted event, UNSET_MS before
    int64_t ahead_ms             # how far ahead of its clock an event may be
    bint is_one                  # of all types
    uint16_t own_type            # whose clock is not that of the arrays; 0xFFFF: none
    int64_t own_now_ms
    int64_t own_first_now_ms

ctypedef struct Job:             # one batch being applied and read; everything is borrowed
    const PlanC* plan
    const EventC* event
    const Batch* batch
    const uint8_t* masks         # [n_programs][n_events] 1 = the program is TRUE
    const uint64_t* hashes       # [n_hashed][n_events] of values, under the secret; 0 = absent
    const int64_t* nows          # [n_events] the store's clock as each event was decided
    Clocks clocks                # own_now_ms is that of no event yet
    uint32_t first_accepted      # events before this one, and their reads, come before own_first_now_ms
    const int64_t* reads_at      # [n_events] when the vector is read: the event's time, or now where it has
                                 # none
    const uint64_t* shed         # [n_events] bits of touches whose key found no room for a row; NULL: none
    uint64_t first_position      # of event 0
    const ServiceC* service      # NULL: nothing is read
    Outputs outputs              # of event 0; event i's are i * read_width further on
    bint peek

cdef int shard_init(Shard* shard, Pool* pool) noexcept nogil     # 0, or -1. The pool is borrowed
cdef void shard_clear(Shard* shard) noexcept nogil

# Applies and reads parts, which are all of this shard and in position order. 0, or -1 when out of memory.
cdef int shard_apply(Shard* shard, const Job* job, const Part* parts, uint32_t n_parts) noexcept nogil
# Takes a lock. False, without it, where `waits` is not set and whoever has it keeps it for longer than a read
# takes.
cdef bint lock_taken(pthread_mutex_t* lock, bint waits) noexcept nogil
# Reads the values of one row; `slot` is the service's part that its entity answers. False, and nothing is
# read, where `waits` is not set and the shard is in use.
cdef bint shard_read(Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0, uint64_t fp1,
                     int64_t at_ms, const Clocks* clocks, bint waits, const Outputs* out) noexcept nogil
# Ask for what a read of that key will need, each for what the one before has brought: its row, what the row
# keeps; and its cells in sketches. Of a shard that is in use they ask for nothing.
cdef void shard_fetch_row(Shard* shard, uint64_t fp0, uint64_t fp1) noexcept nogil
cdef void shard_fetch_logs(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1) noexcept nogil
cdef void shard_fetch_cells(const Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0,
                            uint64_t fp1) noexcept nogil
# Appends the lists of heaviest values that a slot's features tell of (kept.pxd). 0, or -1 when out of memory.
cdef int shard_list(Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0, uint64_t fp1,
                    int64_t at_ms, const Clocks* clocks, Bytes* out) noexcept nogil
# Whether somebody has its lock just now.
cdef bint shard_in_use(Shard* shard) noexcept nogil
# Whether applying the part, to a key without a row, makes one. The job is one that nothing is read for.
cdef bint shard_makes_row(const Job* job, const Part* part) noexcept nogil
cdef bint shard_holds(Shard* shard, uint64_t fp0, uint64_t fp1) noexcept nogil
# 1 if the row was there, 0 if not, -1 when out of memory: then it still is.
cdef int shard_forget(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1) noexcept nogil
# Frees logs and rows that hold nothing any more at type_nows, in some buckets from bucket[0] on, which moves
# and is 0 again after the last. Under the order lock: type_nows must not be ahead of what is applied. Number
# of rows freed, -1 out of memory.
cdef int64_t shard_sweep(Shard* shard, const PlanC* plan, const int64_t* type_nows,
                         uint64_t* bucket) noexcept nogil
# A step towards an index whose size does not change: before a sweep, which does not look at rows that are yet
# to be moved; and after it, with `shrinks`, towards one as small as its rows let it be. The order need not
# wait. Whether there is more to do.
cdef bint shard_settle(Shard* shard, bint shrinks) noexcept nogil

# Checkpoint. Cut: under the order lock, between batches. Then slices until one returns 0 (1: more, -1: out of
# memory); rows that change meanwhile are copied as they were at the cut. Then the records, sorted: each is
# the 16 bytes of the fingerprint in big-endian order of (fp0, fp1), u32 payload bytes (0xFFFFFFFF: the row
# was freed, no payload), payload; those of sketches are apart. Then the end, which says whether they were
# written; if not, the next checkpoint has them again.
cdef int shard_cut(Shard* shard, const int64_t* nows) noexcept nogil   # -1: out of memory, the end is due
cdef int shard_copy_slice(Shard* shard, const PlanC* plan) noexcept nogil
cdef int shard_copy_records(Shard* shard, Bytes* out) noexcept nogil   # 0, or -1 when out of memory
cdef void shard_copy_end(Shard* shard, bint written) noexcept nogil
# Appends such records in order of fingerprint, one of each; not the mark that it was freed where there is
# another. 0, or -1 when out of memory.
cdef int sorted_records(const Bytes* records, Bytes* out) noexcept nogil
# Puts one record back (restart, restore). 0; 1 when the bytes are not a row; -1 when out of memory.
cdef int shard_import(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1, const uint8_t* payload,
                      size_t n_bytes) noexcept nogil
# Appends every row that is not expired as such records, sorted. 0, or -1 when out of memory.
cdef int shard_export(Shard* shard, const PlanC* plan, const int64_t* type_nows, Bytes* out) noexcept nogil
# Appends the raw keys of an entity's rows, as they are hashed (each part u16 length, bytes) and each after
# its u32 length, from some buckets on as shard_sweep does. 0, or -1 when out of memory.
cdef int shard_keys(Shard* shard, const PlanC* plan, uint16_t entity, const int64_t* type_nows,
                    uint64_t* bucket, Bytes* out) noexcept nogil
# What its rows, index and sketches take; and what is held for them, with what is free between and the names
# of the freed rows that the next checkpoint takes out.
cdef uint64_t shard_used_bytes(const Shard* shard) noexcept nogil
cdef uint64_t shard_held_bytes(const Shard* shard) noexcept nogil
# Whether what it holds has room for a new row.
cdef bint shard_has_room(const Shard* shard) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict shard_structs():
    return bytes_structs() | frequency_structs() | table_structs() | window_structs() | {"core/shard.pxd": (
        sizeof(Row), sizeof(Shard), sizeof(Part), sizeof(Clocks), sizeof(Job),
    )}
