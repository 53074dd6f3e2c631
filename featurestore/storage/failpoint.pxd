# Failpoints for other modules: one global flag, one predictable branch when nothing is armed.
#
# A place in the code says `error = failpoint(JOURNAL_BEFORE_SYNC)` and treats a non-zero result as the errno
# that its own system call had returned. The call may also not come back: action `kill` is SIGKILL to itself.

# The order is that of NAMES in failpoint.pyx; a test compares the two.
cdef enum Failpoint:
    JOURNAL_MID_FRAME = 0         # half of a frame is written
    JOURNAL_BEFORE_SYNC = 1       # frames are written, none of them synced
    JOURNAL_AFTER_SYNC = 2        # synced, nobody told
    JOURNAL_ALLOCATE = 3          # a new segment's file exists under its temporary name, no space allocated
    JOURNAL_ROLL = 4              # the new segment is synced, still under its temporary name
    JOURNAL_ROLLED = 5            # renamed, the directory not synced
    JOURNAL_TRUNCATE = 6          # one old segment is deleted, the next is not
    RECOVERY_MID = 7              # a torn tail was found and partly zeroed
    CHECKPOINT_MID = 8            # a checkpoint is written, nothing of it is committed
    CHECKPOINT_COMMITTED = 9      # committed, the journal before it still there
    COMPACT_COPIED = 10           # the rows' new file is complete, not in its place
    COMPACT_SWAPPED = 11          # in its place, the directory not synced
    SCHEMA_JOURNALED = 12         # a schema frame is written, nothing serves it yet
    FORGET_JOURNALED = 13         # the tombstone is written, the key still in rows and journal
    FORGET_CHECKPOINTED = 14      # the key is in no row and no segment, the rows' file has it in free pages
    PRODUCER_JOURNALED = 15       # a producer's change is written, the producer as it was
    CHECKPOINT_PART = 16          # some of its shards are committed, the others and its head are not
    IDS_UNREAD = 17               # ids are to be read; instead of failing, all that may become cold does so
    CLOCK_JOURNALED = 18          # a clock is written, the store still has the one before
    N_FAILPOINTS = 19

cdef bint failpoints_armed        # any rule is set; read without a lock, written under the GIL

cdef int failpoint_hit(int point) noexcept nogil

# 0, or the errno to act on.
cdef inline int failpoint(int point) noexcept nogil:
    if not failpoints_armed:
        return 0
    return failpoint_hit(point)
