# gRPC over HTTP/2 on one connection, bytes in and bytes out: no socket, no clock and no thread of its own.
#
#   HostC          what all connections of a server share: the dispatcher, the methods, the limits, the queues
#     └─ LoopC       one thread's part: its streams, what is parked, its inbox
#          └─ Connection    an nghttp2 session and its streams
#               └─ Stream     one call, from its HEADERS to its trailers
#
# All of a LoopC belongs to the thread that runs it, but for `inbox` and what is said to be atomic. A stream
# is found again by its token (slot and generation), so that an errand that comes back late finds nobody
# rather than somebody else. A connection that is closed stays for as long as errands of it are out: what they
# have is its, and its peer's (shares.pxd). Whoever calls in here sets loop.now_ns first, and afterwards sends
# what `connection_send` gives for every connection on the loop's dirty list.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from featurestore.server.dispatcher cimport DispatcherC, dispatcher_structs
from featurestore.server.errands cimport Errand, Queue, errands_structs
from featurestore.server.memory cimport Buffer, Spares
from featurestore.server.nghttp2 cimport (
    nghttp2_option, nghttp2_session, nghttp2_session_callbacks,
)
from featurestore.server.shares cimport N_KINDS, Holder, Peers, Places, shares_structs

cdef enum:
    PYTHON_METHOD = -1               # Target.method: Python answers it
    HEALTH_CHECK = -2                # the loop does, by its HealthService table
    HEALTH_WATCH = -3
    MAX_HEADER_BYTES = 16 << 10      # of a request, as SETTINGS_MAX_HEADER_LIST_SIZE counts them

# Where messages go that a loop does not run itself. Each has threads of its own: what waits for a batch holds
# up no read.
cdef enum Bench:
    BENCH_LARGE = 0                  # it would take too long
    BENCH_READS = 1                  # it would have to wait for a row that is being written or copied
    BENCH_WRITES = 2                 # for a batch that is being written
    BENCH_HANDSHAKES = 3             # those of TLS: a signature each
    N_BENCHES = 4

ctypedef struct Target:              # a method that is served
    const uint8_t* path              # "/package.Service/Method"
    size_t path_bytes
    int method                       # of the dispatcher, PYTHON_METHOD, HEALTH_CHECK or HEALTH_WATCH
    bint streams_requests
    bint streams_replies

# Answers that need nobody to be asked. host.REFUSALS has their words, in this order.
cdef enum RefusalKind:
    REFUSE_METADATA = 0
    REFUSE_METHOD = 1
    REFUSE_ENCODING = 2
    REFUSE_TIMEOUT = 3
    REFUSE_COMPRESSED = 4
    REFUSE_LENGTH = 5
    REFUSE_TRUNCATED = 6
    REFUSE_CARDINALITY = 7
    REFUSE_CALLS = 8
    REFUSE_STREAMS = 9
    REFUSE_DRAINING = 10
    REFUSE_DRAINED = 11
    REFUSE_AGED = 12
    REFUSE_DEADLINE = 13
    REFUSE_ROOM = 14
    REFUSE_MEMORY = 15
    REFUSE_SLOW = 16
    REFUSE_WATCHES = 17
    REFUSE_HEALTH = 18
    REFUSE_SERVICE = 19
    REFUSE_LOST = 20
    REFUSE_UNANSWERED = 21
    N_REFUSALS = 22

ctypedef struct Refusal:
    int status                       # a gRPC status code
    const uint8_t* words             # percent-encoded
    size_t words_bytes
    const uint8_t* kind              # name of the error's class; for featurestore-error
    size_t kind_bytes

ctypedef struct HealthService:       # whose health is told: well, as long as the server does not drain
    const uint8_t* name
    size_t name_bytes

ctypedef struct TransportCounts:     # since the server was made; atomic
    uint64_t connections             # taken
    uint64_t refused                 # turned away: as many were open as may be, and none could go for it
    uint64_t evicted                 # idle, and told to go for others that came
    uint64_t idled                   # told to go after max_idle_ns without a call
    uint64_t aged                    # closed with calls under way, at the end of their age's grace
    uint64_t slow                    # closed for replies that they took too slowly
    uint64_t calm                    # closed for what only floods do
    uint64_t stalled                 # closed for what they did not send or take in time
    uint64_t broken                  # closed for what is no HTTP/2
    uint64_t tls_failed              # closed before they were secure
    uint64_t tls_delayed             # handshakes that waited for others of their peer's
    uint64_t tls_refused             # closed because they would have had to wait too long
    uint64_t resets                  # streams that clients gave up
    uint64_t streams_reset           # streams that we reset for what came
    uint64_t turned_away             # calls that got one of our Refusals
    uint64_t large                   # messages that take longer than a loop may, given to workers
    uint64_t refusals[N_REFUSALS][N_KINDS]  # the same by which, and by what the call was to take a place of

ctypedef struct HostC:
    DispatcherC* dispatcher
    Target* targets
    int n_targets
    Refusal refusals[N_REFUSALS]
    # Limits; see featurestore.config.Limits.
    size_t max_message_bytes
    size_t max_connection_bytes      # held for one connection: requests not run and replies not sent
    size_t max_buffered_bytes        # held by one loop
    size_t shared_bytes              # of those, the last, which are divided among connections
    size_t part_bytes                # of those, a connection's
    uint64_t max_connections
    uint32_t max_streams_per_connection
    uint32_t stream_window
    int64_t durable_wait_ns
    int64_t min_ping_ns
    int64_t handshake_ns             # for TLS and the client's SETTINGS, and for a header block
    int64_t between_shakes_ns        # of one peer, but for those of a second, which it may have at once
    int64_t request_ns               # for a request that has begun, besides what min_rate gives it
    int64_t stall_ns                 # without a byte taken of what waits for the client; a window of min_rate
    uint64_t min_rate                # bytes a second: of a request that comes, of replies that are taken
    int64_t max_idle_ns              # of a connection without a call; 0: any
    int64_t max_age_ns               # of a connection; 0: any
    int64_t age_grace_ns             # that calls get when it has reached its age
    HealthService* services          # whose health is known
    int n_services
    # Shared state.
    Peers peers
    Places places                    # for calls under way that are not answered where they were read
    uint64_t n_connections           # open, those not counted that were evicted; atomic
    uint64_t n_leaving               # evicted, and not closed yet; atomic
    uint64_t n_wordless              # failed calls that wait for their words; atomic
    bint has_failed                  # the journal takes no more; written by its sync thread
    TransportCounts counts
    Queue benches[N_BENCHES]         # RUN, by Bench
    Queue desk                       # for Python
    nghttp2_session_callbacks* callbacks
    nghttp2_option* option

ctypedef struct Parked:              # a reply that waits for the disk
    uint64_t position
    uint64_t end                     # logical offset of its last byte in `out`, plus 1
    uint64_t ack_at                  # that of its ack
    uint64_t began_ns                # when its message was run, by the dispatcher's clock
    int64_t since_ns                 # when it was parked, by the loop's

ctypedef struct Stream:
    Connection* connection
    Stream* next                     # of the connection
    Stream* previous
    uint64_t token                   # by which errands find it
    int32_t id
    int target                       # -1: not known yet
    int64_t deadline_ns              # 0: none
    int64_t answer_ns                # a write that waits for the disk is answered by then
    int64_t began_ns
    size_t header_bytes
    bint is_post
    bint is_grpc
    bint has_foreign_encoding
    bint has_bad_timeout
    bint is_half_closed              # the client has sent all
    bint is_given_up                 # by the client, with RST_STREAM
    bint is_busy                     # an errand of it is out
    Errand* read                     # that one, if a worker has or will have it
    bint is_waiting                  # would go on if it were its turn, or the client took its replies
    Stream* waiting_next             # of the connection, while is_waiting
    Stream* waiting_previous
    int64_t due_ns                   # its time is not over before: when to look at it
    uint32_t timer                   # its place in LoopC.timers, and 1; 0: none
    int place                        # of HostC.places, the Kind that it has; or NO_PLACE
    bint is_streaming                # a hot stream that has not ended
    bint is_watch                    # a Health.Watch that has been answered and goes on
    bint knows_service               # and of a service that there is
    bint is_told                     # Python answers it and has not yet
    bint is_told_half                # and that its client has sent all
    bint has_run                     # a unary call's message
    bint is_ending                   # words for its failure are on the way, and nothing else counts any more
    bint is_ended                    # its status is known
    bint is_responded                # its HEADERS are on the way
    bint is_deferred                 # nghttp2 waits for more
    int http_status                  # other than 200; 0: 200
    Buffer inward                    # what came
    size_t inward_at                 # of it, what was run
    int64_t partial_ns               # since when a stream's next message is there in part; 0: it is not
    size_t unconsumed                # bytes for which the stream's window was not given back
    Buffer outward                   # replies, framed
    uint64_t out_base                # logical offset of outward.data[0]
    uint64_t sent
    uint64_t ready                   # what may be sent
    Parked one
    Parked* ring                     # &one, or stream_window of them
    uint32_t ring_first
    uint32_t n_parked
    Stream* parked_next              # while n_parked
    Stream* parked_previous
    int status
    const uint8_t* words
    size_t words_bytes
    const uint8_t* kind
    size_t kind_bytes
    bint is_unknown                  # whether something was applied that its client may have no answer to
    Errand* ending                   # owns words and kind, where nobody else does

cdef enum Hands:
    HANDS_SHAKEN = 0                 # or there is no TLS
    HANDS_AWAITED = 1                # its client has said nothing yet
    HANDS_DELAYED = 2                # its peer has begun many: until shakes_ns
    HANDS_AT_WORKER = 3              # nobody else touches ssl and fd, nor closes the connection
    HANDS_BACK = 4                   # from there, with `shook`
    HANDS_BEGUN = 5                  # its client is to go on

ctypedef struct Connection:
    LoopC* loop
    nghttp2_session* session
    Connection* next
    Connection* previous
    Connection* next_dirty
    bint is_dirty
    Connection* idle_next            # of the loop's idle ones, in the order in which they became so
    Connection* idle_previous
    bint is_idle                     # it is one of them: it has no stream but watches
    bint is_evicted
    bint is_gone                     # closed, and here until what it has out is back
    uint64_t n_out                   # errands with a place or bytes of its that are not back
    int64_t idle_ns                  # since when it is idle
    Holder holder
    size_t charged                   # of `buffered`, what the peer is told of: beyond a connection's part
    Stream* streams
    uint32_t n_streams
    uint32_t n_watches               # of them
    # The last streams that the client has opened, so that frames on those that are closed are known for what
    # they are. Bit i is of stream last_id - 2i; of older ones nothing is known.
    int32_t last_id
    Stream* heading                  # whose header block is not whole
    uint64_t opened                  # not skipped
    uint64_t unended                 # of them, those on which it may still send
    uint8_t head[9]                  # of the frame that comes
    uint32_t head_bytes              # of it, that have come
    size_t rest                      # bytes of the frame, or of the client's preface, that have not
    int64_t crossing                 # bytes that may be under way on streams that we closed before it did
    Stream* waiting                  # that would go on, the first of them, and the last
    Stream* waiting_last
    uint32_t spent                   # of TURN_COST, in the round below
    uint64_t round
    bint is_in_turns
    Connection* next_turn
    size_t buffered                  # bytes of its streams, of what they and its errands hold, and pending
    size_t unsent                    # of them in outward and ready
    bint is_greeted                  # our SETTINGS have been sent
    bint is_settled                  # it has sent its SETTINGS: it is an HTTP/2 client
    bint is_draining
    bint is_going                    # the last GOAWAY is out
    bint is_over                     # send what there is, then close
    bint is_dead                     # close it now
    bint is_deaf                     # the client has closed its side, and is answered
    int64_t opened_ns
    int64_t heard_ns
    int64_t took_ns                  # when it last took a byte, or what waits for it began to
    int64_t window_ns                # since when it is watched how fast it takes; 0: nothing waits for it
    uint64_t window_bytes            # that it took since
    int64_t drained_ns
    int64_t pinged_ns                # by us; 0: no answer is awaited
    int64_t client_pinged_ns
    int strikes                      # pings that came too soon
    int64_t credit                   # see `_charge`
    int64_t credited_ns
    # The socket's, for loop.pyx.
    int fd
    void* ssl                        # see tls.pxd; NULL: plain
    int hands                        # Hands
    int shook                        # a TlsResult
    int64_t shakes_ns                # when its peer's others let it begin
    uint32_t events
    bint is_corked                   # the socket took less than all
    int64_t lingers_ns               # since when all is said, and what comes is thrown away; 0: it is not
    Buffer pending                   # what the socket has not taken
    size_t pending_at

ctypedef struct Slot:
    Stream* stream                   # NULL: free
    uint32_t generation              # of the stream that has or had it
    uint32_t next_free               # index of another that is free, and 1; 0: none

# A loop walks no streams but those that something has come to be of: what waits is in a list or a heap.
ctypedef struct LoopC:
    HostC* host
    int64_t now_ns
    Slot* slots
    uint32_t n_slots
    uint32_t slots_capacity
    uint32_t free_slot               # index of one, and 1; 0: none
    uint32_t generation              # of the stream that was made last
    uint32_t n_streams
    Stream** timers                  # a heap, the first to come in front: those with a deadline, and those
                                     # whose request is not whole, or was not when they were put there
    uint32_t n_timers
    uint32_t timers_capacity
    uint64_t round                   # one for each time that all connections have had their turn
    Connection* turns                # that have had theirs, and streams that wait for another
    Stream* parked
    uint64_t n_parked                # atomic
    size_t buffered
    Spares spares
    Stream* spare_streams            # by `next`
    uint32_t n_spare_streams
    Connection* connections
    uint32_t n_connections
    uint32_t n_shaking               # of them, whose hands are AT_WORKER
    Connection* idle_first           # the longest so
    Connection* idle_last
    Connection* idle_at              # where the next look for one that can go begins; NULL: in front
    Connection* gone                 # closed, with errands out
    Connection* dirty
    bint is_draining
    Queue inbox
    int wake_fd                      # an eventfd

# A connection of the loop, from a peer at an address (see peer_of_socket). NULL: it is not taken, for want of
# memory or of room; where an idle one can go for it, that is told to and is dirty.
cdef Connection* connection_open(LoopC* loop, uint64_t address) noexcept nogil
# Has a worker make the next step of its handshake; False: no memory.
cdef bint connection_shake(Connection* connection) noexcept nogil
# Bytes that are held for it elsewhere, more or fewer.
cdef void connection_hold(Connection* connection, size_t n) noexcept nogil
cdef void connection_let_go(Connection* connection, size_t n) noexcept nogil
# Bytes that came; -1: the connection is to be closed at once.
cdef int connection_receive(Connection* connection, const uint8_t* data, size_t size) noexcept nogil
# Writes at most `room` bytes that are to be sent and returns how many; 0: nothing for now; -1: close it.
cdef ssize_t connection_send(Connection* connection, uint8_t* out, size_t room) noexcept nogil
# The client has closed its side. Whether somebody is still to be answered: a request that was whole and is in
# work, or has its answer. Others have nobody who waits for them.
cdef bint connection_hears_no_more(Connection* connection) noexcept nogil
# Whether all has been said.
cdef bint connection_is_over(Connection* connection) noexcept nogil
# No new streams; those under way end.
cdef void connection_drain(Connection* connection) noexcept nogil
cdef void connection_close(Connection* connection) noexcept nogil
cdef void connection_dirty(Connection* connection) noexcept nogil
# What time alone changes on a connection; -1: close it.
cdef int connection_tick(Connection* connection) noexcept nogil

cdef int loop_init(LoopC* loop, HostC* host) noexcept nogil
cdef void loop_free(LoopC* loop) noexcept nogil
# Errands that came back.
cdef void loop_inbox(LoopC* loop) noexcept nogil
# Replies whose positions are on disk by now.
cdef void loop_unpark(LoopC* loop) noexcept nogil
# Ends the calls whose time is over, and those whose request's is; answers what has waited for the disk until
# just before that.
cdef void loop_deadlines(LoopC* loop) noexcept nogil
# Answers what has waited for the disk for as long as the server lets anything wait.
cdef void loop_waits(LoopC* loop) noexcept nogil
# Begins a round, with what waits for its turn from the one before.
cdef void loop_turns(LoopC* loop) noexcept nogil
# When a call's time may be over, the first of them; 0: no call's is bounded.
cdef int64_t loop_next_deadline_ns(const LoopC* loop) noexcept nogil
# Begins the drain of all its connections.
cdef void loop_drain(LoopC* loop) noexcept nogil
# Into the loop's inbox, from any thread.
cdef void loop_post(LoopC* loop, Errand* errand) noexcept nogil
# Runs an ERRAND_RUN, unless its deadline has passed by now_ns, and posts it; for workers.
cdef void host_run(HostC* host, Errand* errand, int64_t now_ns) noexcept nogil
# What nghttp2 calls, and its options; -1: no memory.
cdef int host_init(HostC* host) noexcept nogil
cdef void host_free(HostC* host) noexcept nogil
# Frees errands that nobody will take any more.
cdef void throw_away(HostC* host, Queue* queue) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict connection_structs():
    return dispatcher_structs() | errands_structs() | shares_structs() | {"server/connection.pxd": (
        sizeof(Target), sizeof(Refusal), sizeof(HealthService), sizeof(TransportCounts), sizeof(HostC),
        sizeof(Parked), sizeof(Stream), sizeof(Connection), sizeof(Slot), sizeof(LoopC),
    )}
