# The store's hot path for other Cython modules: decide, journal, apply, read, without the GIL.
#
# An EngineC belongs to one Engine: whoever uses it keeps a reference to that object. Any number of threads
# may call in. Take state.plan_lock (shared) before decoding a request against the plan, and let it go after
# the call that uses what was decoded.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.batch cimport Batch, Column, EventBatch
from featurestore.core.plan cimport CompiledPlan, ServiceC
from featurestore.core.state cimport Reserved, State, StateC, Work, state_structs
from featurestore.core.window cimport Outputs
from featurestore.storage.frame cimport ByteBuffer
from featurestore.storage.journal cimport Journal, JournalState, journal_structs

cdef enum EngineStatus:
    ENGINE_OK = 0
    ENGINE_NO_MEMORY = 1         # nothing was applied
    ENGINE_VERDICT = 2           # turned away by (producer, epoch, sequence): WriteResult.verdict says why
    ENGINE_FULL = 3              # a shortage of space or descriptors: nothing was applied, try later
    ENGINE_FAILED = 4            # a disk failed or memory ran out half-way: writes are over until a restart
    ENGINE_TOO_LARGE = 5         # the batch does not fit in one frame
    ENGINE_CLOSED = 6
    ENGINE_BUSY = 7              # others have what it needs, or the disk, and it was not to wait: nothing was
                                 # done
    ENGINE_UNREAD = 8            # within: ids are to be read first, without the order lock
    ENGINE_LEAPT = 9             # the wall clock has gone on further than time: nothing was applied

ctypedef struct Sender:          # who sent a batch; name_bytes 0: not deduplicated by sequence
    const uint8_t* name
    size_t name_bytes            # at most 255
    uint64_t epoch
    uint64_t sequence
    bint unawaited               # it does not wait for the disk, which may then take its time

ctypedef struct WriteResult:
    uint64_t position            # of the batch's last event; of the last one there where nothing was written
    int verdict                  # Verdict of the whole batch (sequencer.pxd)
    bint written                 # a frame is in the journal
    uint32_t partly_late         # accepted events that something that they match dropped
    uint32_t shed                # accepted events of which a key found no room
    uint64_t first_shed          # of event 0, which: bits of its event type's touches

ctypedef struct Counters:        # since the engine was opened; each is only ever added to, atomically
    uint64_t accepted
    uint64_t late
    uint64_t duplicate
    uint64_t refused
    uint64_t batches_duplicate
    uint64_t vectors
    uint64_t shed                # events of which a key found no room

ctypedef struct EngineC:
    StateC* state
    JournalState* journal
    Counters counters
    int blocked                  # checkpoints find no space: writes wait (ENGINE_FULL) until one succeeds
    uint64_t last_position       # behind it, writes wait too: what is held for a checkpoint may hold no more
    int failed                   # see ENGINE_FAILED
    int64_t lead_ms              # how far ahead of the machine's uptime its wall clock may be; atomic
    uint32_t schema_version

# Applies a batch (or, with peek, only says what it would do) and reads `service` at each event; an
# EngineStatus. `body` is the caller's scratch for the frame. A duplicate batch keeps the decoder's
# outcomes, the others become DUPLICATE.
# waits: for the batch before it; without, ENGINE_BUSY says that there is one.
cdef int engine_write(EngineC* engine, const Batch* batch, const Sender* sender, Work* work, ByteBuffer* body,
                      const ServiceC* service, const Outputs* outputs, bint peek, bint waits,
                      WriteResult* result) noexcept nogil
# state_read at the server's now; an EngineStatus.
cdef int engine_read(EngineC* engine, const ServiceC* service, const Column* const* parts, uint32_t n,
                     const int64_t* as_of, bint waits, Work* work, const Outputs* outputs,
                     int64_t* read_at) noexcept nogil

cdef class Engine:
    cdef EngineC c
    cdef readonly State state
    cdef readonly Journal journal
    cdef readonly object rows            # RowStore
    cdef readonly object directory       # DataDirectory
    cdef readonly uint64_t checkpoint_position
    cdef readonly object checkpointed_at     # time.monotonic() of this process's last checkpoint, None before
    cdef readonly object last_checkpoint     # Checkpointed: that checkpoint, None before
    cdef readonly uint64_t checkpoints_failed    # of this process, for want of space, descriptors or memory
    cdef object unwritten                    # what the last one said if it failed so, else None
    cdef readonly uint64_t schema_position   # of the last schema change of this process, 0 before
    cdef readonly object failure         # the exception that ended writes, where one did
    cdef readonly object recovered       # Recovered: what opening found
    cdef object lock                     # checkpoints, schema changes, Forget and closing: one at a time
    cdef object listeners                # see add_plan_listener
    cdef object upkeep                   # the thread of start_upkeep
    cdef object stop
    cdef uint64_t segment_bytes
    cdef uint64_t part_bytes             # of changed pages, at which a checkpoint commits what it has
    cdef uint64_t content_bytes          # _content_bytes() as of the last checkpoint
    cdef uint64_t stored_version         # of the plan that it has; 0: there is none
    cdef uint64_t room_bytes             # what the next one can write for certain, when that was last seen to
    cdef uint64_t settled_bytes          # _settled_bytes() as of it
    cdef int _check_batch(self, EventBatch batch) except -1
    cdef int _replay_batch(self, object frame, Work* work) except -1
    cdef int _replay_change(self, object frame) except -1
    cdef int _swap(self, CompiledPlan compiled, Reserved reserved, prepared, int kind, bytes body,
                   int64_t now_ms, clock) except -1
    cdef object _change_producer(self, int change, str name, uint64_t epoch, uint64_t sequence)
    cdef object _write_error(self, int status, const WriteResult* result, Sender* sender)

# Compared at import: see core/structs.py.
cdef inline dict engine_structs():
    return state_structs() | journal_structs() | {"engine.pxd": (
        sizeof(Sender), sizeof(WriteResult), sizeof(Counters), sizeof(EngineC), sizeof(Engine),
    )}
