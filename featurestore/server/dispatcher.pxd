# Request bytes in, reply bytes out: what every transport does with a hot call, without the GIL and without
# waiting.
#
#   take ──► try ──► DONE                      send reply
#                ├─► PARKED                    keep reply and position, until `check` or `wait` says DONE; or
#                │                             until time is over: `say_applied`, and send it
#                ├─► ERROR ──► exception       with the GIL: the words; then its status
#                └─► BUSY, LARGE ──► run       the same but these two
#   finish                                     counts the call and its time
#   give                                       the Call is somebody else's
#
# A Call is taken from a bounded pool and belongs to one thread at a time; it keeps its memory for the next
# request. The message must stay where it is until `give`. A reply is encoded before its write is durable,
# since nothing in it can change any more, so a transport may take the reply out of the Call, give the Call
# back, and park bytes only.
#
# A DispatcherC belongs to one Dispatcher: whoever uses it keeps a reference to that object. Any number of
# threads may call in. The store's plan lock is held (shared) from decoding to applying, so that names and
# plan are of one version in every call. `try` waits for no lock that somebody may hold for longer than a call
# takes: for a batch that is being applied, a shard of which rows are being copied, a plan that changes.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from featurestore.core.pthread cimport pthread_mutex_t
from featurestore.core.state cimport Work
from featurestore.engine cimport Engine, EngineC, Sender, WriteResult, engine_structs
from featurestore.server.memory cimport Arena, Buffer
from featurestore.server.names cimport WireError, WireSchema, WireTables, names_structs
from featurestore.storage.frame cimport ByteBuffer

cdef enum Method:
    METHOD_OBSERVE = 0
    METHOD_INGEST = 1
    METHOD_READ = 2                  # GetFeatures
    METHOD_INGEST_STREAM = 3         # one message of an IngestStream
    METHOD_READ_STREAM = 4           # one message of a GetFeaturesStream
    N_METHODS = 5
    COUNTED_HEAVIEST = 5             # GetHeaviest: answered by heaviest.py, and only counted here
    N_COUNTED = 6

cdef enum Answer:
    ANSWER_DONE = 0                  # Call.reply is the message to send
    ANSWER_PARKED = 1                # the same, once Call.position is on disk
    ANSWER_ERROR = 2                 # Call.fault says why there is none
    ANSWER_BUSY = 3                  # nothing was done: `run` it where waiting holds nobody up
    ANSWER_LARGE = 4                 # nothing was done: `run` it where taking long holds nobody up

cdef enum Fault:
    FAULT_NONE = 0
    FAULT_WIRE = 1                   # Call.wire: the request cannot be read
    FAULT_ENGINE = 2                 # Call.engine_status: the store did not take it
    FAULT_REPLY = 3                  # the reply would exceed the limit on messages; nothing was written
    FAULT_MEMORY = 4                 # no memory for the reply; nothing was written
    FAULT_LOST = 5                   # written, then the journal failed: a restart shows whether it is kept
    FAULT_UNANSWERED = 6             # written, and no memory for the reply after all

cdef enum:
    MOST_COST = 1 << 10              # of a Call that `try` runs: some 100 µs
    N_LATENCIES = 24                 # the last one is open
    N_REASONS = 16                   # refusals: Outcome 16 to 31
    N_STATUSES = 17                  # gRPC status codes, 0 to 16
    N_PERIODS = 16                   # of 2^32 ns, 4.3 s, by which calls of one vector are told apart

ctypedef struct AskedC:              # how often one vector was asked for; atomic, each of its own
    uint64_t calls
    uint64_t last_ns                 # CLOCK_MONOTONIC, of the last of them
    uint64_t periods[N_PERIODS]      # [p % N_PERIODS]: p << 32 | calls in the period p, the last that had one

ctypedef struct Edition:             # the names of one plan; alive while it is served or has users
    const WireTables* tables
    AskedC** asked                   # of each vector, as in Plan.served
    uint64_t users                   # failed calls that have not been put in words yet; atomic

ctypedef struct Call:
    int method                       # Method
    int fault                        # Fault
    uint64_t position                # PARKED: what the reply waits for
    uint64_t ack_back                # PARKED: how far from the reply's end its ack stands; see say_applied
    Buffer reply
    uint64_t began_ns                # CLOCK_MONOTONIC
    uint32_t cost                    # what it takes to run: rows × what is computed or kept of each
    # Why it failed. Pointers lead into the message or the edition.
    WireError wire
    int engine_status                # EngineStatus
    WriteResult result
    Sender sender
    Edition* edition                 # held (Edition.users) while fault is FAULT_WIRE
    # Scratch, owned, kept for the next request up to a limit.
    Arena arena
    Work work
    ByteBuffer body
    Call* next                       # in the pool

ctypedef struct MethodCounts:        # each is only ever added to, atomically
    uint64_t calls                   # finished, whatever their status
    uint64_t total_ns                # of all of them, waiting for the disk included
    uint64_t latencies[N_LATENCIES]  # [i] took less than 2^i µs and not less than 2^(i-1)
    uint64_t statuses[N_STATUSES]    # [0] stays 0: calls less the others

ctypedef struct DispatcherC:
    EngineC* engine
    Edition* edition                 # read with the plan lock held; replaced while it is held exclusively
    size_t max_reply_bytes
    size_t max_arena_bytes
    uint8_t observe_ack              # Ack: what an Observe that asks for none waits for
    pthread_mutex_t pool_lock        # the next three
    Call* idle                       # a stack: the warmest first
    uint32_t n_calls                 # made
    uint32_t n_idle
    uint32_t max_calls
    MethodCounts methods[N_COUNTED]
    uint64_t refused[N_REASONS]      # events, by Outcome - 16

# A Call, or NULL: as many as allowed are in use, or there is no memory. Answer RESOURCE_EXHAUSTED.
cdef Call* dispatcher_take(DispatcherC* d) noexcept nogil
# An Answer. The reply is appended to call.reply, behind what a transport has put there.
cdef int dispatcher_run(DispatcherC* d, Call* call, int method, const uint8_t* message,
                        size_t size) noexcept nogil
# The same, or BUSY, or LARGE: for a caller that must not be held up.
cdef int dispatcher_try(DispatcherC* d, Call* call, int method, const uint8_t* message,
                        size_t size) noexcept nogil
# What has become of a PARKED call, an Answer: PARKED where nothing has. `wait` blocks, for ever with
# timeout_ns < 0.
cdef int dispatcher_check(DispatcherC* d, Call* call) noexcept nogil
cdef int dispatcher_wait(DispatcherC* d, Call* call, int64_t timeout_ns) noexcept nogil
# Has a PARKED reply say of its write that it is applied, which is all that is known of it when its time is
# over: `ack` is where it stands in the reply.
cdef void say_applied(uint8_t* ack) noexcept nogil
# Whether a call that has failed may have applied something, or one before it of the same producer, epoch and
# sequence: that is not known. A read never has.
cdef bint dispatcher_is_unknown(const Call* call) noexcept nogil
# Counts a call that ends now with a gRPC status code.
cdef void dispatcher_finish(DispatcherC* d, int method, uint64_t began_ns, int status) noexcept nogil
cdef void dispatcher_give(DispatcherC* d, Call* call) noexcept nogil

cdef class Dispatcher:
    cdef DispatcherC c
    cdef readonly Engine engine
    cdef readonly dict limits        # of WireSchema
    cdef list served                 # Served: the one in use, then those whose errors still await words
    cdef dict asked                  # Asked, by service and fingerprint: they outlive a change of schema
    cdef bint made
    # The exception of featurestore.errors for a call that failed; releases what it held.
    cdef object exception(self, Call* call)
    cdef object _worded(self, Call* call)
    cdef Call* taken(self, int method) except NULL
    cdef object refusal(self, Call* call)

# Compared at import: see core/structs.py.
cdef inline dict dispatcher_structs():
    return engine_structs() | names_structs() | {"server/dispatcher.pxd": (
        sizeof(AskedC), sizeof(Edition), sizeof(Call), sizeof(MethodCounts), sizeof(DispatcherC),
        sizeof(Dispatcher),
    )}
