# Decide, apply, read: the deterministic state machine over all shards.
#
#   work_prepare     filters, fingerprints, parts by shard            any thread, no lock
#   state_judge      is it new, by producer, epoch and sequence       order lock held
#   state_decide     outcomes and clocks, by the sequencer            order lock held
#   state_fetch      ids that this asked for, from the disk           any thread, no lock; then from judge on
#   state_repeat     the same for a batch seen before                 order lock held
#   state_commit     the decision becomes state                       order lock held, the journal is written
#   state_apply      parts into their shards, vectors read on the way order lock held
#   state_read       vectors of given keys                            any thread; each shard's lock in turn
#
# Locks, in the order they are taken: a turn where the work is long, plan (shared by every call that uses
# the plan, exclusive while it changes), order (one batch at a time), then a shard's. A batch and its Work
# belong to the caller; the state keeps nothing of either.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.batch cimport Batch, Column, EventBatch
from featurestore.core.bytes cimport Block, Bytes
from featurestore.core.pages cimport Pool
from featurestore.core.frequency cimport Frequencies
from featurestore.core.ids cimport ColdIds, IdSource, IdTable
from featurestore.core.plan cimport CompiledPlan, PlanC, ServiceC
from featurestore.core.pthread cimport pthread_mutex_t, pthread_rwlock_t
from featurestore.core.producers cimport Origin
from featurestore.core.sequencer cimport Facts, Sequencer, sequencer_structs
from featurestore.core.shard cimport Part, Shard, shard_structs
from featurestore.core.turns cimport Turns, turns_structs
from featurestore.core.window cimport Outputs

cdef enum:
    READ_BUSY = 1                # of state_read

ctypedef struct StateC:
    const PlanC* plan            # owned by State.compiled
    Shard* shards                # [n_shards], owned
    Pool pool                    # where the shards' memory comes from
    uint32_t n_shards            # a power of two, fixed when the store is created
    uint32_t shard_bits
    uint32_t threads             # that apply one large batch together
    uint8_t secret[16]           # keys every fingerprint; fixed when the store is created
    uint64_t max_memory_bytes    # 0: no limit
    Sequencer sequencer
    IdSource id_source           # where cold ids are read
    uint64_t id_reads            # how many were, and of those: that were other ids, that could not be read;
    uint64_t id_reads_in_vain    # each only ever added to, atomically
    uint64_t id_reads_failed
    pthread_rwlock_t plan_lock
    pthread_mutex_t order
    Turns turns                  # at long work
    bint full                    # the last batch found memory at its limit
    bint broken                  # memory ran out while applying: the state is not to be trusted any more

ctypedef struct Work:            # scratch of one batch; grows, and serves the next batch
    uint8_t* memory              # owned
    size_t capacity
    ColdIds cold
    Facts facts                  # these point into memory
    uint64_t* masks              # [n_events] where shed points to, if it does
    const uint64_t* shed         # see Job; NULL: nothing was shed
    uint64_t* hashes             # see Job
    int64_t* nows
    int64_t* reads_at
    int64_t* type_nows
    int64_t* first_nows
    Part* parts                  # by shard, each shard's in position order
    uint32_t* starts             # [n_shards + 1] where each shard's begin
    uint32_t n_parts
    uint8_t* partly              # [n_events] 1: accepted, and something that it matches drops it
    int64_t now_ms               # the latest clock of all types before this batch
    bint first_of_type           # no event of its type had been accepted before this batch
    uint8_t* vectors             # owned: vectors with what derived features are made of
    size_t vectors_bytes
    Outputs read                 # these point into vectors

# Whether a batch has the columns that the plan declares for its event type: everything below relies on it.
cdef bint batch_fits(const PlanC* plan, const Batch* batch) noexcept nogil
# The plan lock must be held (shared) from before the batch was decoded until after state_apply. 0, or -1 when
# out of memory. service: what state_apply will read, NULL for nothing. Where vectors are read, rows that the
# events only read need their fingerprints.
cdef int work_prepare(const StateC* state, const Batch* batch, const ServiceC* service,
                      Work* work) noexcept nogil
cdef void work_clear(Work* work) noexcept nogil
# Whether a shard that the batch has parts of is in use just now.
cdef bint work_would_wait(StateC* state, const Work* work) noexcept nogil
cdef int state_judge(StateC* state, const Batch* batch, const Origin* origin,
                     int64_t wall_ms) noexcept nogil   # a Verdict
# 0, -1 when out of memory, or 1: state_fetch first, then let it be judged and decided again.
cdef int state_decide(StateC* state, const Batch* batch, Work* work, int64_t wall_ms) noexcept nogil
# Reads what deciding asked for: without the order lock, because the disk may take its time. Ends after a few
# rounds: each asks only for ids that became cold since the one before. 0, or -1 when out of memory.
cdef int state_fetch(StateC* state, const Batch* batch, Work* work) noexcept nogil
cdef void state_repeat(StateC* state, const Batch* batch, Work* work, int64_t wall_ms) noexcept nogil
# Gives up the memory of ids that the last checkpoint has, the oldest first: all, or until there are not many
# any more (ids.pxd). How many segments.
cdef uint64_t state_cool(StateC* state, bint all_) noexcept nogil
# Adds up what a decided batch has shed, by entity, and says of how many events.
# Counts the accepted events of a batch that no view took, also by their type.
cdef uint32_t state_count_untouched(StateC* state, const Batch* batch, const Work* work) noexcept nogil
cdef uint32_t state_count_shed(StateC* state, const Batch* batch, const Work* work) noexcept nogil
cdef int state_commit(StateC* state, const Batch* batch, Work* work, const Origin* origin,
                      int64_t wall_ms) noexcept nogil
# first_position is that of event 0. service (as in work_prepare) and outputs may be NULL: nothing is read.
# peek: nothing is applied or kept.
cdef int state_apply(StateC* state, const Batch* batch, Work* work, uint64_t first_position,
                     const ServiceC* service, const Outputs* outputs, bint peek) noexcept nogil
# parts: one column of n keys per part name of the plan, NULL where not given. as_of: [n] or NULL for now.
# 0, -1 when out of memory, or READ_BUSY where `waits` is not set and a shard is in use: outputs mean nothing
# then. read_at[0] becomes the time of a read without as_of.
cdef int state_read(StateC* state, const ServiceC* service, const Column* const* parts, uint32_t n,
                    const int64_t* as_of, int64_t wall_ms, bint waits, Work* work, const Outputs* outputs,
                    int64_t* read_at) noexcept nogil
# Frees what one key holds; it takes one position. True if there was a row. Order lock held. When out of
# memory the row is still there, and the state broken.
cdef bint state_forget(StateC* state, uint64_t fp0, uint64_t fp1) noexcept nogil
# What an operator changes (Change) of the producer whom the origin names; it takes one position. Order lock
# held.
cdef void state_change_producer(StateC* state, int change, const Origin* origin,
                                int64_t wall_ms) noexcept nogil
# Fingerprint of all that a batch says, never 0: a retry has the same, also where fields have been added to
# the event type since, or moved.
cdef uint64_t state_content(const StateC* state, const Batch* batch) noexcept nogil
cdef void state_origin(const StateC* state, const uint8_t* producer, size_t n_bytes, uint64_t epoch,
                       uint64_t sequence, uint64_t content, Origin* origin) noexcept nogil

# Fresh Vectors for n rows of a service, and where they are; None for no service.
cdef object vectors_for(const ServiceC* service, uint32_t n, bint bounds, Outputs* outputs)
cdef object verdict_error(int verdict, bytes producer, uint64_t epoch, uint64_t sequence)

cdef class Reserved:             # memory of the sketches that a coming plan adds
    cdef Frequencies* made       # [n_shards], owned
    cdef uint32_t n_shards

cdef class State:
    cdef StateC c
    cdef bint made
    cdef CompiledPlan compiled
    cdef int64_t* cut_nows       # the clocks at the checkpoint's cut, owned
    cdef uint32_t n_ended        # shards, from the first on, whose part in it has ended
    cdef dict gone               # sketches that the plan has no more and the last checkpoint may: view id →
                                 # pieces
    cdef dict gone_at_cut
    cdef dict ids_stored         # that the last checkpoint has: event id → (number of its first segment, ids
                                 # in that and each after it)
    cdef dict ids_copied         # the same of the one being written
    cdef object id_owner         # of what id_source is
    cdef uint64_t n_ids_stored   # ids ever remembered, when the last checkpoint copied them
    cdef uint64_t n_ids_copied
    cdef Reserved reserve(self, CompiledPlan compiled)
    cdef int swap_plan(self, CompiledPlan compiled, Reserved reserved) except -1
    cdef void set_clock(self, int clock, int64_t now_ms) noexcept
    cdef const ServiceC* _service(self, service) except? NULL
    cdef bint _drop_ids(self, uint32_t* type_) noexcept nogil
    cdef void _settle(self, uint32_t shard, bint shrinks) noexcept nogil
    cdef tuple _copy_ids(self, const IdTable* table, uint16_t event_id, Bytes* out, object meanwhile)
    cdef int _change_producer(self, int change, bytes name, uint64_t epoch, uint64_t sequence,
                              int64_t now_ms) except -1
    cdef tuple _some_keys(self, uint32_t shard, uint64_t bucket, size_t entity, uint16_t entity_id)
    cdef int _set_stored(self) except -1
    cdef int _imported(self, int status, str what) except -1
    cdef int _check_batch(self, EventBatch batch) except -1
    # As read, with the plan lock held (shared). Whoever took it twice might wait for a writer that came in
    # between, and that waits for the first.
    cdef object _read(self, service, parts, uint32_t n, as_of, int64_t now_ms, bint bounds)
    cdef object _lists(self, service, parts, as_of, int64_t now_ms)

# Compared at import: see core/structs.py.
cdef inline dict state_structs():
    return sequencer_structs() | shard_structs() | turns_structs() | {"core/state.pxd": (
        sizeof(StateC), sizeof(Work), sizeof(Reserved), sizeof(State),
    )}
