# The journal for other Cython modules: append, wait, read, without the GIL.
#
# A JournalState belongs to one Journal object: whoever calls these functions keeps a reference to that
# object. Appending and waiting are safe from any number of threads. A JournalReader belongs to one thread.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from featurestore.storage.frame cimport ByteBuffer, frame_structs

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    MAX_PIECES = 16               # per frame
    MAX_HOOKS = 8
    SEGMENT_HEADER_BYTES = 72
    FRAME_HEADER_BYTES = 56

# Part of the format: never renumbered.
cdef enum FrameKind:
    FRAME_BATCH = 1
    FRAME_SCHEMA = 2
    FRAME_FORGET = 3
    FRAME_PRODUCER = 4
    FRAME_SHED = 5                # a batch with what found no room
    FRAME_CLOCK = 6               # a clock that is another, or set back
    LAST_KIND = FRAME_CLOCK

cdef enum JournalMode:
    MODE_GROUP = 0                # acknowledged when synced
    MODE_PROCESS = 1              # acknowledged when written, synced within a second

cdef enum JournalStatus:
    JOURNAL_OK = 0
    JOURNAL_FULL = 1              # no space: nothing was written, a later append may succeed
    JOURNAL_FAILED = 2            # for good: a write or sync failed, see JournalState.error
    JOURNAL_CLOSED = 3
    JOURNAL_TIMEOUT = 4
    JOURNAL_INVALID = 5           # kind, n_positions, number of pieces, or a position not written yet
    JOURNAL_TOO_LARGE = 6         # body above MAX_BODY_BYTES
    JOURNAL_NO_MEMORY = 7

# Stored as it stands in memory (little-endian, no padding); FORMAT.md says what each field promises.
ctypedef struct SegmentHeader:
    uint32_t magic
    uint16_t version
    uint16_t header_bytes
    uint8_t store_id[16]
    uint64_t salt
    uint64_t first_position
    uint64_t previous_position    # first position of the segment before, 0 = none
    uint64_t base_offset
    uint64_t file_bytes
    uint32_t zero
    uint32_t checksum

ctypedef struct FrameHeader:
    uint32_t magic
    uint32_t checksum
    uint8_t version
    uint8_t kind
    uint16_t header_bytes
    uint32_t body_bytes
    uint64_t first_position
    uint32_t n_positions
    uint32_t schema_version
    int64_t now_ms
    uint64_t durable_offset
    uint64_t offset

# One frame: the caller of journal_append fills the first five fields and gets the next three back.
ctypedef struct Frame:
    uint8_t kind                  # FrameKind
    uint32_t n_positions          # at least 1
    uint32_t schema_version
    int64_t now_ms
    bint unawaited                # nobody waits for it yet: MODE_GROUP too may sync it later
    uint64_t first_position
    uint64_t offset               # logical: of its first byte, over all segments
    uint64_t durable_offset       # logical: everything before it was durable when this frame was written
    uint32_t body_bytes           # from a reader only, as is
    uint8_t* body                 # 8-byte aligned, valid until the reader moves on

# Called by the sync thread, without the GIL, each time more is durable (error 0) and once when the journal
# has failed (error = errno). Must neither block nor add or remove hooks.
ctypedef void (*DurableHook)(void* context, uint64_t durable_position, int error) noexcept nogil

ctypedef struct Hook:
    DurableHook call
    void* context

ctypedef struct SegmentEntry:
    uint64_t first_position
    uint64_t file_bytes

ctypedef struct JournalState:
    # Fixed while open.
    int directory_fd              # carries the flock
    int mode                      # JournalMode
    uint8_t store_id[16]
    uint64_t segment_bytes        # of a new segment, unless one frame needs more
    uint64_t sync_delay_ns        # from the first unsynced write to its sync, while nobody waits

    pthread_mutex_t append_lock   # held while a frame is written or a segment is added
    int fd                        # the active segment; changed under append_lock and sync_lock
    uint64_t salt                 # of the active segment, as the next four
    uint64_t base_offset
    uint64_t file_bytes
    uint64_t at                   # file offset of the next frame
    uint64_t next_position
    uint64_t retry_at_ns          # after JOURNAL_FULL: not before this time
    bint full                     # the last append found a shortage
    int shortage                  # errno: of what, the last time
    bint closed

    pthread_mutex_t sync_lock     # held for a few instructions; the fields below
    pthread_cond_t work           # to the sync thread: something to do
    pthread_cond_t done           # to waiters: durable_* or error changed
    uint64_t written_offset
    uint64_t written_position
    uint64_t durable_offset       # also read without the lock, as error and durable_position
    uint64_t durable_position
    uint64_t dirty_since_ns       # not after the first write that is not synced
    uint64_t n_appends
    uint64_t n_syncs
    SegmentEntry* segments        # oldest first, the last is active
    uint64_t n_segments
    uint64_t segments_capacity
    bint idle                     # the sync thread waits for `work`
    bint hurry                    # somebody waits, sync now
    bint stopping
    int error                     # errno of the first failure; never cleared
    pthread_t thread
    bint has_thread

    pthread_mutex_t hook_lock     # held while hooks run
    Hook hooks[MAX_HOOKS]
    int n_hooks

    pthread_mutex_t truncate_lock  # one truncation at a time; taken before append_lock

# Writes one frame whose body is the pieces one after the other. On JOURNAL_OK it has been handed to the
# kernel.
cdef int journal_append(JournalState* j, Frame* frame, const iovec* pieces, int n_pieces) noexcept nogil
# Blocks until `position` is durable; timeout_ns < 0 waits for ever. Has what is written synced at once.
cdef int journal_wait(JournalState* j, uint64_t position, int64_t timeout_ns) noexcept nogil
# As journal_wait without waiting: the hooks tell.
cdef void journal_hurry(JournalState* j) noexcept nogil
# Every position up to this one survives a power cut.
cdef uint64_t journal_durable(const JournalState* j) noexcept nogil
# Every position up to this one may be acknowledged in the journal's mode.
cdef uint64_t journal_acknowledged(JournalState* j) noexcept nogil
cdef int journal_add_hook(JournalState* j, DurableHook call, void* context) noexcept nogil
# When it returns the hook is not running and will not be called again.
cdef void journal_remove_hook(JournalState* j, DurableHook call, void* context) noexcept nogil
# Whether a frame of so many bytes would need a new segment, which waits for the disk. For whoever is the only
# one to append.
cdef bint journal_would_wait(const JournalState* j, size_t n_bytes) noexcept nogil
# Begins a new segment, unless the active one is empty, so that truncation can reach everything written so
# far.
cdef int journal_roll(JournalState* j) noexcept nogil

ctypedef struct SegmentScan:
    int fd
    uint64_t salt
    uint64_t base_offset
    uint64_t limit                # file offset at which the frames end at the latest
    uint64_t at                   # file offset of the next frame
    uint64_t next_position        # what the next frame must begin with
    uint64_t durable_offset       # the greatest that a frame recorded
    ByteBuffer buffer             # file bytes from buffered_from on; multiples of 8
    uint64_t buffered_from
    int error                     # errno of the last FRAME_IO

cdef class JournalReader:
    cdef readonly str directory
    cdef readonly object segments         # list of Segment still known to this reader
    cdef readonly object torn             # str: why the last segment ends before its zeros, None: it does not
    cdef readonly uint64_t end_offset     # file offset in the last segment after its last good frame
    cdef Frame frame                      # the one that advance() found
    cdef SegmentScan scan
    cdef uint64_t from_position
    cdef uint64_t live_end                # logical; 0 = not live: ends at the first bad frame
    cdef Py_ssize_t index                 # of the segment being scanned
    cdef bint exhausted

    # True: self.frame is the next frame. False: there are no more. Raises what `open` would raise.
    cdef bint advance(self) except -1
    # Steps of advance().
    cdef int open_segment(self, Py_ssize_t index) except -1
    cdef int refuse(self, int verdict) except -1
    cdef int end(self, int verdict) except -1

cdef class Journal:
    cdef JournalState* state
    cdef readonly str directory
    cdef readonly object torn     # str: what opening found torn and cut off; None: it ended cleanly

    # Steps of opening.
    cdef int lock_directory(self) except -1
    cdef int remove_temporaries(self) except -1
    cdef int begin(self, uint64_t first_position) except -1
    cdef int recover(self, uint64_t from_position, bytes store_id) except -1
    cdef int zero(self, uint64_t start, uint64_t end) except -1
    cdef int rewrite(self, uint64_t start, uint64_t end) except -1
    # The exception for a JournalStatus.
    cdef object problem(self, int status)
    cdef uint64_t under_sync_lock(self, const uint64_t* field) noexcept

# Compared at import: see core/structs.py.
cdef inline dict journal_structs():
    return frame_structs() | {"storage/journal.pxd": (
        sizeof(SegmentHeader), sizeof(FrameHeader), sizeof(Frame), sizeof(Hook), sizeof(SegmentEntry),
        sizeof(JournalState), sizeof(SegmentScan), sizeof(JournalReader), sizeof(Journal),
    )}
