"""What the connections of one server share, and Python's side of it: words for failures, methods that Python
answers, numbers.

A Host outlives its loops' threads and is closed after them. Loops put errands on queues of it
(errands.pxd): benches, which workers empty without the GIL, and the desk, which one thread of Python's
empties through `take`. What Python has to say goes to the loop's inbox, and wakes it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from featurestore.clock cimport clock_monotonic_ns
from featurestore.core.turns cimport Turns, turn_give, turn_take
from featurestore.server.connection cimport (
    BENCH_HANDSHAKES, BENCH_LARGE, BENCH_READS, BENCH_WRITES, HEALTH_CHECK, HEALTH_WATCH, MAX_HEADER_BYTES,
    N_BENCHES, N_REFUSALS, HealthService, HostC, LoopC, Target, TransportCounts, connection_close,
    connection_is_over, connection_open, connection_receive, connection_send, connection_tick, host_free,
    host_init, host_run, loop_deadlines, loop_drain, loop_free, loop_inbox, loop_init, loop_post, loop_turns,
    loop_unpark, loop_waits, throw_away,
)
from featurestore.server.dispatcher cimport Dispatcher, dispatcher_is_unknown
from featurestore.server.errands cimport (
    ERRAND_CANCEL, ERRAND_END, ERRAND_HALF_CLOSE, ERRAND_MESSAGE, ERRAND_NEXT, ERRAND_REPLY, ERRAND_SHAKE,
    ERRAND_START, ERRAND_WORDS, Errand, errand_free, errand_is_late, errand_new, queue_close, queue_destroy,
    queue_init, queue_take, queue_take_all,
)
from featurestore.server.grpc_text cimport percent_encode
from featurestore.server.nghttp2 cimport nghttp2_version
from featurestore.server.shares cimport (
    KIND_OTHERS, KIND_READS, KIND_STREAMS, KIND_WATCHES, KIND_WRITES, N_KINDS,
)
from featurestore.server.tls cimport TLS_BROKEN, tls_shake, tls_structs

from featurestore.config import Limits
from featurestore.core.structs import same_structs
from featurestore.server.status import Status, status_of, words_of

same_structs(__name__, host_structs(), tls_structs())

cdef extern from * nogil:
    """
    #define fs_sub(counter, n) ((void)__atomic_fetch_sub((counter), (n), __ATOMIC_RELAXED))
    """
    void fs_sub(uint64_t* counter, uint64_t n) noexcept

cdef enum:
    PREFIX_BYTES = 5                 # of a gRPC message
    SHARED_PART = 8                  # of a loop's room: an eighth is shared out

#: Kinds of errands that Host.take gives.
START, MESSAGE, HALF_CLOSE, CANCEL = (
    <int>ERRAND_START, <int>ERRAND_MESSAGE, <int>ERRAND_HALF_CLOSE, <int>ERRAND_CANCEL)

#: Benches that Host.work empties.
LARGE, READS, WRITES, HANDSHAKES = (
    <int>BENCH_LARGE, <int>BENCH_READS, <int>BENCH_WRITES, <int>BENCH_HANDSHAKES)

#: In place of a method of the dispatcher: what a loop answers of grpc.health.v1.Health.
CHECK, WATCH = <int>HEALTH_CHECK, <int>HEALTH_WATCH

#: What calls take places of, in the order of Kind.
KINDS = ("", "reads", "writes", "streams", "others", "watches")

#: Answers that need nobody to be asked, in the order of RefusalKind: reason as in metrics, status, words
#: (with the limits that Host was made with), class.
REFUSALS = (
    ("metadata", Status.RESOURCE_EXHAUSTED,
     f"the call's metadata has more than {<int>MAX_HEADER_BYTES} bytes; send less", "LimitError"),
    ("method", Status.UNIMPLEMENTED,
     "this server has no such method; reflection and the proto files say what it has", ""),
    ("encoding", Status.UNIMPLEMENTED, "messages are taken uncompressed: grpc-encoding identity only", ""),
    ("timeout", Status.INVALID_ARGUMENT,
     "grpc-timeout is one to eight digits and a unit: H, M, S, m, u or n", ""),
    ("compressed", Status.INTERNAL,
     "a message is said to be compressed, and grpc-encoding says how of none", ""),
    ("length", Status.RESOURCE_EXHAUSTED,
     "a message has more than {max_message_bytes} bytes, the most that one may have; send less at a time",
     "LimitError"),
    ("truncated", Status.INTERNAL, "the request ended within a message", ""),
    ("cardinality", Status.UNIMPLEMENTED,
     "the method takes exactly one message, and another number was sent", ""),
    ("calls", Status.RESOURCE_EXHAUSTED,
     "{max_concurrent_calls} calls of this kind may be in work, and they are, or this client has more of "
     "them than are left to others; try again in a moment", "LimitError"),
    ("streams", Status.RESOURCE_EXHAUSTED,
     "{max_streams} streams may be open, and they are, or this client has more of them than are left to "
     "others; close one, or use unary calls", "LimitError"),
    ("draining", Status.UNAVAILABLE,
     "the server is shutting down; try again, here in a moment or elsewhere", "UnavailableError"),
    ("drained", Status.UNAVAILABLE,
     "the server is shutting down; all batches that were applied have been answered: go on elsewhere",
     "UnavailableError"),
    ("aged", Status.UNAVAILABLE,
     "the connection has reached its age; all batches that were applied have been answered: open another",
     "UnavailableError"),
    ("deadline", Status.DEADLINE_EXCEEDED, "the call's time was over before it was answered", ""),
    ("room", Status.RESOURCE_EXHAUSTED,
     "the server's buffers for this client are full; take what was answered, and send less at once",
     "LimitError"),
    ("memory", Status.RESOURCE_EXHAUSTED,
     "the server is out of memory; try again later, or with less at a time",
     "LimitError"),
    ("slow", Status.DEADLINE_EXCEEDED,
     "the request did not come whole in {request_s:g} s and a second for each {min_rate_bytes} bytes of it",
     ""),
    ("watches", Status.RESOURCE_EXHAUSTED,
     "{max_watches} watches of the server's health may be open, and they are, or this client has more of "
     "them than are left to others; share one, or ask with Check", "LimitError"),
    ("health", Status.INVALID_ARGUMENT, "the request's bytes are not the message of this method",
     "InvalidEventError"),
    ("service", Status.NOT_FOUND, "there is no such service here; reflection says what there is", ""),
    ("lost", Status.UNAVAILABLE,
     "the store failed before what was applied was on disk: whether it is kept shows after a restart; send "
     "it again then, with the same producer, epoch and sequence", "StorageError"),
    ("unanswered", Status.UNAVAILABLE,
     "there was no memory for the answer to what may have been applied; send it again, with the same "
     "producer, epoch and sequence", "UnavailableError"),
)


cdef int64_t _ns(double seconds) except? -1:
    return <int64_t>(seconds * 1e9)


cdef void _shake(Errand* errand) noexcept nogil:
    """A step of a TLS handshake, if there is still somebody who waits for it."""
    errand.answer = TLS_BROKEN
    if not errand_is_late(errand, clock_monotonic_ns()):
        errand.answer = tls_shake((<Connection*>errand.connection).ssl)
    loop_post(<LoopC*>errand.loop, errand)


cdef tuple _call_of(const Errand* errand):
    return <size_t>errand.loop, errand.token, <size_t>errand.connection


cdef Errand* _errand_to(tuple call, int kind, size_t size) except NULL:
    """What Python has to say to a call, as `_call_of` names it."""
    cdef Errand* errand = errand_new(kind, size)
    if errand == NULL:
        raise MemoryError
    errand.loop = <void*><size_t>call[0]
    errand.token = call[1]
    errand.connection = <void*><size_t>call[2]
    return errand


def nghttp2_library():
    """The library that is loaded, with its version."""
    return f"nghttp2 {nghttp2_version(0).version_str.decode()}"


@cython.final
@cython.no_gc_clear
cdef class Host:
    """What all connections of one server share.

    targets: (path, method of the dispatcher, -1 for Python, CHECK or WATCH, streams requests, streams
    replies). services: those whose health CHECK and WATCH tell. n_loops: among which max_buffered_bytes is
    divided. `close` ends its queues: workers and whoever answers for Python return then.
    """

    def __cinit__(self):
        cdef int i
        self.c.desk.is_closed = False
        self.made = queue_init(&self.c.desk) == 0
        for i in range(<int>N_BENCHES):
            self.c.benches[i].is_closed = False
            self.made = self.made and queue_init(&self.c.benches[i]) == 0
        if not self.made:
            raise MemoryError

    def __init__(self, Dispatcher dispatcher not None, list targets not None, limits=Limits(), *,
                 tuple services=(), int n_loops=1):
        cdef HostC* c = &self.c
        cdef bytes text, name
        cdef int i
        if self.dispatcher is not None:
            raise ValueError("a Host is made once")
        if n_loops < 1 or limits.stream_window < 1 or limits.max_connections < 1 or limits.min_rate_bytes < 1:
            raise ValueError(f"n_loops is {n_loops}, stream_window {limits.stream_window}, max_connections "
                             f"{limits.max_connections}, min_rate_bytes {limits.min_rate_bytes}; each is at "
                             "least 1")
        self.dispatcher = dispatcher
        self.targets = targets
        c.dispatcher = &dispatcher.c
        c.max_message_bytes = limits.max_message_bytes
        c.max_connection_bytes = limits.max_connection_bytes
        c.max_buffered_bytes = limits.max_buffered_bytes // n_loops
        c.max_connections = limits.max_connections
        c.shared_bytes = c.max_buffered_bytes // SHARED_PART
        c.part_bytes = c.shared_bytes // c.max_connections
        c.max_streams_per_connection = limits.max_streams_per_connection
        c.places.most[<int>KIND_READS] = c.places.most[<int>KIND_WRITES] = limits.max_concurrent_calls
        c.places.most[<int>KIND_OTHERS] = min(limits.max_concurrent_calls, limits.max_other_calls)
        c.places.most[<int>KIND_STREAMS] = limits.max_streams
        c.places.most[<int>KIND_WATCHES] = limits.max_watches
        c.stream_window = limits.stream_window
        c.min_ping_ns = limits.min_ping_interval_ms * 1_000_000
        c.min_rate = limits.min_rate_bytes
        c.durable_wait_ns = _ns(limits.durable_wait_s)
        c.handshake_ns = _ns(limits.handshake_s)
        c.between_shakes_ns = _ns(1 / limits.handshake_rate)
        c.request_ns = _ns(limits.request_s)
        c.stall_ns = _ns(limits.stall_s)
        c.max_idle_ns = _ns(limits.max_connection_idle_s)
        c.max_age_ns = _ns(limits.max_connection_age_s)
        c.age_grace_ns = _ns(limits.connection_age_grace_s)
        self.kept = []
        c.services = <HealthService*>calloc(max(1, len(services)), sizeof(HealthService))
        if c.services == NULL:
            raise MemoryError
        for i, service in enumerate(services):
            text = service.encode()
            self.kept.append(text)
            c.services[i].name = <const uint8_t*>PyBytes_AS_STRING(text)
            c.services[i].name_bytes = len(text)
        c.n_services = len(services)
        c.targets = <Target*>calloc(max(1, len(targets)), sizeof(Target))
        if c.targets == NULL:
            raise MemoryError
        for i, (path, method, streams_requests, streams_replies) in enumerate(targets):
            text = path.encode()
            self.kept.append(text)
            c.targets[i].path = <const uint8_t*>PyBytes_AS_STRING(text)
            c.targets[i].path_bytes = len(text)
            c.targets[i].method = method
            c.targets[i].streams_requests = streams_requests
            c.targets[i].streams_replies = streams_replies
        c.n_targets = len(targets)
        for i, (_, status, words, kind) in enumerate(REFUSALS):
            words = words.format(**vars(limits))
            text, name = words.encode(), kind.encode()
            self.kept += [text, name]
            c.refusals[i].status = status
            c.refusals[i].words = <const uint8_t*>PyBytes_AS_STRING(text)
            c.refusals[i].words_bytes = len(text)
            c.refusals[i].kind = <const uint8_t*>PyBytes_AS_STRING(name)
            c.refusals[i].kind_bytes = len(name)
        if host_init(c) != 0:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self.made:
            for i in range(<int>N_BENCHES):
                throw_away(&self.c, &self.c.benches[i])
                queue_destroy(&self.c.benches[i])
            throw_away(&self.c, &self.c.desk)
            queue_destroy(&self.c.desk)
        host_free(&self.c)
        free(self.c.targets)
        free(self.c.services)

    def close(self):
        """Workers and whoever takes from the desk find it closed, and return."""
        cdef int i
        with nogil:
            for i in range(<int>N_BENCHES):
                queue_close(&self.c.benches[i])
            queue_close(&self.c.desk)

    def work(self, int bench):
        """A worker: does what is on one bench (LARGE, READS, WRITES: messages; HANDSHAKES) until the host is
        closed.
        """
        cdef Errand* errand
        cdef bint waits
        cdef Turns* turns = &self.c.dispatcher.engine.state.turns
        if not 0 <= bench < N_BENCHES:
            raise ValueError(f"bench is {bench}; there are {<int>N_BENCHES}")
        with nogil:
            while True:
                errand = queue_take(&self.c.benches[bench])
                if errand == NULL:
                    break
                if errand.kind == ERRAND_SHAKE:
                    _shake(errand)
                    continue
                waits = bench == BENCH_LARGE and not errand_is_late(errand, clock_monotonic_ns())
                if waits:
                    turn_take(turns)
                host_run(&self.c, errand, clock_monotonic_ns())
                if waits:
                    turn_give(turns)

    def take(self):
        """Waits for an errand to Python: (kind, call, target, message, deadline in CLOCK_MONOTONIC seconds or
        None); None when the host is closed. A call is (address of its loop, token, address of its
        connection). Words are given on the way.
        """
        cdef Errand* errand
        while True:
            with nogil:
                errand = queue_take(&self.c.desk)
            if errand == NULL:
                return None
            if errand.kind == ERRAND_WORDS:
                self.answer_words(errand)
                continue
            try:
                call = _call_of(errand)
                message = None
                if errand.kind == ERRAND_MESSAGE:
                    message = PyBytes_FromStringAndSize(<const char*>errand.data, errand.size)
                deadline = errand.deadline_ns / 1e9 if errand.deadline_ns else None
                return errand.kind, call, errand.target, message, deadline
            finally:
                errand_free(errand)

    cdef object answer_words(self, Errand* errand):
        """Turns a failed call into its status and words, and sends them back."""
        cdef bint is_unknown = dispatcher_is_unknown(errand.call)  # whatever its words become
        fs_sub(&self.c.n_wordless, 1)
        try:
            error = self.dispatcher.refusal(errand.call)
        except Exception as why:  # no words are worth the desk: it serves all
            error = why
        errand.call = NULL
        self._say(errand, status_of(error), words_of(error), type(error).__name__, is_unknown)

    cdef object _say(self, Errand* errand, int status, str words, str kind, bint is_unknown):
        """Makes it an END and posts it; without its words where there is no memory for them."""
        cdef bytes text = words.encode("utf-8", "replace")
        cdef bytes name = kind.encode()
        free(errand.memory)
        errand.memory = <uint8_t*>malloc(3 * <size_t>len(text) + <size_t>len(name) + 1)
        errand.data = errand.memory
        errand.size = errand.class_bytes = 0
        if errand.memory != NULL:
            errand.size = percent_encode(<const uint8_t*>PyBytes_AS_STRING(text), len(text), errand.memory)
            errand.class_bytes = len(name)
            memcpy(errand.memory + errand.size, PyBytes_AS_STRING(name), errand.class_bytes)
        errand.kind = ERRAND_END
        errand.status = status
        errand.is_unknown = is_unknown
        loop_post(<LoopC*>errand.loop, errand)

    def next(self, tuple call not None, size_t n_bytes):
        """Python is done with the call's message, which had so many bytes: it may have the next."""
        cdef Errand* errand = _errand_to(call, ERRAND_NEXT, 0)
        errand.n_out = 1
        errand.held = PREFIX_BYTES + n_bytes
        loop_post(<LoopC*>errand.loop, errand)

    def reply(self, tuple call not None, bytes message not None):
        """A message for the client. One that has gone gets nothing, silently, as with `end`."""
        cdef Errand* errand = _errand_to(call, ERRAND_REPLY, max(1, len(message)))
        memcpy(errand.memory, PyBytes_AS_STRING(message), len(message))
        errand.size = len(message)
        loop_post(<LoopC*>errand.loop, errand)

    def end(self, tuple call not None, int status, str words="", str kind="", *, bint is_unknown=False,
            size_t n_messages=0, size_t n_bytes=0):
        """The call's status, once for every START, also of a call that was cancelled: until then it counts as
        under way. `kind`: name of the error's class; is_unknown: whether it applied anything. n_messages,
        n_bytes: that it had and `next` has not said that it is done with.
        """
        cdef Errand* errand = _errand_to(call, ERRAND_END, 0)
        errand.place = <int>KIND_OTHERS
        errand.n_out = 1 + n_messages
        errand.held = n_messages * PREFIX_BYTES + n_bytes
        self._say(errand, status, words, kind, is_unknown)

    def counts(self):
        """Since it was made, by name; and what is under way now."""
        cdef TransportCounts* n = &self.c.counts
        cdef int i
        calls = {kind: self.c.places.taken[i] for i, kind in enumerate(KINDS) if kind}
        return {
            "connections": n.connections, "refused": n.refused, "evicted": n.evicted, "idled": n.idled,
            "aged": n.aged, "slow": n.slow, "calm": n.calm, "stalled": n.stalled, "broken": n.broken,
            "tls_failed": n.tls_failed, "tls_delayed": n.tls_delayed, "tls_refused": n.tls_refused,
            "resets": n.resets, "streams_reset": n.streams_reset, "turned_away": n.turned_away,
            "large": n.large, "connections_now": self.c.n_connections, "streams_now": calls["streams"],
            "watches_now": calls["watches"],
            "calls_now": sum(calls.values()) - calls["watches"],
        }

    def refusals(self):
        """Calls turned away since it was made, by (reason, kind of the call); the kind is "" of no method."""
        cdef int i, j
        return {(REFUSALS[i][0], KINDS[j]): self.c.counts.refusals[i][j]
                for i in range(<int>N_REFUSALS) for j in range(<int>N_KINDS) if self.c.counts.refusals[i][j]}


@cython.final
@cython.no_gc_clear
cdef class Session:
    """One connection of a host without a socket, for tests and tools: bytes in, bytes out, in one thread.

    Errands are run where they arise, and time is what it is told: everything that a client's bytes reach is
    reached here, and the same bytes give the same answer. A method that Python answers is answered
    UNIMPLEMENTED. peer: as addresses tell clients apart. One that is not taken, for others', is over at once.
    """

    def __init__(self, Host host not None, uint64_t peer=0):
        if self.host is not None:
            raise ValueError("a Session is made once")
        if loop_init(&self.loop, &host.c) != 0:
            raise MemoryError
        self.host = host
        self.loop.now_ns = 1
        self.connection = connection_open(&self.loop, peer)

    def __dealloc__(self):
        if self.host is not None:
            loop_free(&self.loop)

    def receive(self, bytes data not None):
        """What the connection says to `data`. None: it closes without a word, and so it does ever after."""
        cdef const uint8_t* bytes_in = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef size_t size = len(data)
        if self.connection == NULL:
            return None
        loop_turns(&self.loop)
        if size and connection_receive(self.connection, bytes_in, size) != 0:
            self.close()
            return None
        return self._turn()

    def drain(self):
        """As `receive`, for the server's will to stop."""
        if self.connection == NULL:
            return None
        self.loop.is_draining = True
        loop_drain(&self.loop)
        return self._turn()

    def wait(self, double seconds):
        """As `receive`, for time that passes."""
        if self.connection == NULL:
            return None
        self.loop.now_ns += <int64_t>(seconds * 1e9)
        loop_deadlines(&self.loop)
        loop_waits(&self.loop)
        if connection_tick(self.connection) != 0:
            self.close()
            return None
        return self._turn()

    def close(self):
        """The client is gone. What was under way is given up; once more, for what has come back since."""
        if self.connection != NULL:
            connection_close(self.connection)
            self.connection = NULL
        self._run_errands()

    cdef object _turn(self):
        cdef uint8_t out[64 << 10]
        cdef ssize_t n = 1
        said = []
        while n > 0 or self._run_errands() or self.loop.turns != NULL:
            if self.loop.turns != NULL:
                loop_turns(&self.loop)
            n = connection_send(self.connection, out, sizeof(out))
            if n > 0:
                said.append(PyBytes_FromStringAndSize(<const char*>out, n))
        if n < 0:
            self.close()
            return None
        self.loop.dirty = NULL
        self.connection.is_dirty = False
        return b"".join(said)

    cdef bint _run_errands(self) except -1:
        """Whether there were any, or replies that are durable by now."""
        cdef Errand* errand
        cdef Errand* following
        cdef uint64_t n_parked = self.loop.n_parked
        cdef bint had_some = False
        cdef int i
        for i in range(<int>N_BENCHES):
            errand = queue_take_all(&self.host.c.benches[i])
            had_some = had_some or errand != NULL
            while errand != NULL:
                following = errand.next
                host_run(&self.host.c, errand, self.loop.now_ns + <int64_t>(self.errands_lie_s * 1e9))
                errand = following
        errand = NULL if self.leaves_desk else queue_take_all(&self.host.c.desk)
        had_some = had_some or errand != NULL
        while errand != NULL:
            following = errand.next
            if errand.kind == ERRAND_WORDS:
                self.host.answer_words(errand)
            else:
                call = _call_of(errand)
                if errand.kind == ERRAND_START:
                    self.host.end(call, <int>Status.UNIMPLEMENTED, "Python's")
                elif errand.kind == ERRAND_MESSAGE:
                    self.host.next(call, errand.size)
                errand_free(errand)
            errand = following
        had_some = had_some or self.loop.inbox.n != 0
        loop_inbox(&self.loop)
        self.host.c.has_failed |= self.disk_has_failed
        loop_unpark(&self.loop)
        return had_some or self.loop.n_parked != n_parked

    @property
    def is_over(self):
        """Whether all has been said: whoever has the socket closes it."""
        return self.connection == NULL or connection_is_over(self.connection)

    @property
    def buffered(self):
        """Bytes held for the client."""
        return self.loop.buffered

    @property
    def places(self):
        """For which there is memory: of streams, and of deadlines."""
        return self.loop.slots_capacity, self.loop.timers_capacity

    @property
    def n_rounds(self):
        """Turns that its connection has had."""
        return self.loop.round

    @property
    def n_streams(self):
        """Calls of the client that are not over."""
        return 0 if self.connection == NULL else self.connection.n_streams

    @property
    def n_parked(self):
        """Of them, those that wait for the disk."""
        return self.loop.n_parked
