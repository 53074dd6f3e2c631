"""What the connections of one server share, and Python's side of it: words for failures, methods that Python
answers, numbers.

A Host outlives its loops' threads and is closed after them. Loops put errands on queues of it
(errands.pxd): benches, which workers empty without the GIL, and the desk, which one thread of Python's
empties through `take`. What Python has to say goes to the loop's inbox, and wakes it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from featurestore.clock cimport clock_monotonic_ns
from featurestore.core.turns cimport Turns, turn_give, turn_take
from featurestore.server.connection cimport (
    BENCH_LARGE, BENCH_READS, BENCH_WRITES, MAX_HEADER_BYTES, N_BENCHES, HostC, LoopC, Target,
    TransportCounts, connection_close, connection_is_over, connection_open, connection_receive,
    connection_send, connection_tick, host_free, host_init, host_run, loop_deadlines, loop_drain,
    loop_free, loop_inbox, loop_init, loop_post, loop_turns, loop_unpark, throw_away,
)
from featurestore.server.dispatcher cimport Dispatcher
from featurestore.server.errands cimport (
    ERRAND_CANCEL, ERRAND_END, ERRAND_HALF_CLOSE, ERRAND_MESSAGE, ERRAND_NEXT, ERRAND_REPLY, ERRAND_START,
    ERRAND_WORDS, Errand, errand_free, errand_is_late, errand_new, queue_close, queue_destroy, queue_init,
    queue_take, queue_take_all,
)
from featurestore.server.grpc_text cimport percent_encode
from featurestore.server.nghttp2 cimport nghttp2_version

from featurestore.core.structs import same_structs
from featurestore.server.status import Status, status_of, words_of

same_structs(__name__, host_structs())

cdef enum:
    PREFIX_BYTES = 5                 # of a gRPC message
    SHARED_PART = 8                  # of a loop's room: an eighth is shared out

#: Kinds of errands that Host.take gives.
START, MESSAGE, HALF_CLOSE, CANCEL = (
    <int>ERRAND_START, <int>ERRAND_MESSAGE, <int>ERRAND_HALF_CLOSE, <int>ERRAND_CANCEL)

#: Benches that Host.work empties.
LARGE, READS, WRITES = <int>BENCH_LARGE, <int>BENCH_READS, <int>BENCH_WRITES

#: Answers that need nobody to be asked, in the order of RefusalKind: status, words (with the limits that Host
#: was made with), class.
REFUSALS = (
    (Status.RESOURCE_EXHAUSTED,
     f"the call's metadata has more than {<int>MAX_HEADER_BYTES} bytes; send less", "LimitError"),
    (Status.UNIMPLEMENTED,
     "this server has no such method; reflection and the proto files say what it has", ""),
    (Status.UNIMPLEMENTED, "messages are taken uncompressed: grpc-encoding identity only", ""),
    (Status.INVALID_ARGUMENT, "grpc-timeout is one to eight digits and a unit: H, M, S, m, u or n", ""),
    (Status.INTERNAL, "a message is said to be compressed, and grpc-encoding says how of none", ""),
    (Status.RESOURCE_EXHAUSTED,
     "a message has more than {max_message_bytes} bytes, the most that one may have; send less at a time",
     "LimitError"),
    (Status.INTERNAL, "the request ended within a message", ""),
    (Status.UNIMPLEMENTED, "the method takes exactly one message, and another number was sent", ""),
    (Status.RESOURCE_EXHAUSTED,
     "{max_calls} calls are in work, as many as may be; try again in a moment", "LimitError"),
    (Status.RESOURCE_EXHAUSTED,
     "{max_streams} streams are open, as many as may be; close one, or use unary calls", "LimitError"),
    (Status.UNAVAILABLE,
     "the server is shutting down; try again, here in a moment or elsewhere", "UnavailableError"),
    (Status.UNAVAILABLE,
     "the server is shutting down; all batches that were applied have been answered: go on elsewhere",
     "UnavailableError"),
    (Status.UNAVAILABLE,
     "the connection has reached its age; all batches that were applied have been answered: open another",
     "UnavailableError"),
    (Status.DEADLINE_EXCEEDED, "the call's time was over before it was answered", ""),
    (Status.RESOURCE_EXHAUSTED,
     "the server's buffers for this client are full; take what was answered, and send less at once",
     "LimitError"),
    (Status.RESOURCE_EXHAUSTED,
     "the server is out of memory; nothing was applied; try again later, or with less at a time",
     "LimitError"),
)


def nghttp2_library():
    """The library that is loaded, with its version."""
    return f"nghttp2 {nghttp2_version(0).version_str.decode()}"


@cython.final
@cython.no_gc_clear
cdef class Host:
    """What all connections of one server share. See the parameters' names in featurestore.config.Limits.

    targets: (path, method of the dispatcher or -1 for Python, streams requests, streams replies). n_loops:
    among which max_buffered_bytes is divided. `close` ends its queues: workers and whoever answers for
    Python return then.
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

    def __init__(self, Dispatcher dispatcher not None, list targets not None, *, int n_loops=1,
                 size_t max_message_bytes=16 << 20, size_t max_connection_bytes=64 << 20,
                 size_t max_buffered_bytes=1 << 30, uint32_t max_connections=4096,
                 uint32_t max_streams_per_connection=100, uint64_t max_streams=32, uint64_t max_calls=256,
                 uint32_t stream_window=8, double durable_wait_s=60.0, int64_t min_ping_interval_ms=10_000,
                 double max_connection_age_s=0.0):
        cdef HostC* c = &self.c
        cdef bytes text, name
        cdef int i
        if self.dispatcher is not None:
            raise ValueError("a Host is made once")
        if n_loops < 1 or stream_window < 1 or max_connections < 1:
            raise ValueError(f"n_loops is {n_loops}, stream_window {stream_window}, max_connections "
                             f"{max_connections}; each is at least 1")
        self.dispatcher = dispatcher
        self.targets = targets
        c.dispatcher = &dispatcher.c
        c.max_message_bytes = max_message_bytes
        c.max_connection_bytes = max_connection_bytes
        c.max_buffered_bytes = max_buffered_bytes // n_loops
        c.shared_bytes = c.max_buffered_bytes // SHARED_PART
        c.part_bytes = c.shared_bytes // max_connections
        c.max_connections = max_connections
        c.max_streams_per_connection = max_streams_per_connection
        c.max_streams = max_streams
        c.max_calls = max_calls
        c.stream_window = stream_window
        c.durable_wait_ns = <int64_t>(durable_wait_s * 1e9)
        c.min_ping_ns = min_ping_interval_ms * 1_000_000
        c.max_age_ns = <int64_t>(max_connection_age_s * 1e9)
        self.kept = []
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
        for i, (status, words, kind) in enumerate(REFUSALS):
            words = words.format(
                max_message_bytes=max_message_bytes, max_calls=max_calls, max_streams=max_streams)
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

    def close(self):
        """Workers and whoever takes from the desk find it closed, and return."""
        cdef int i
        with nogil:
            for i in range(<int>N_BENCHES):
                queue_close(&self.c.benches[i])
            queue_close(&self.c.desk)

    def work(self, int bench):
        """A worker: runs messages of one bench (LARGE, READS or WRITES) until the host is closed."""
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
                waits = bench == BENCH_LARGE and not errand_is_late(errand, clock_monotonic_ns())
                if waits:
                    turn_take(turns)
                host_run(&self.c, errand, clock_monotonic_ns())
                if waits:
                    turn_give(turns)

    def take(self):
        """Waits for an errand to Python: (kind, call, target, message, deadline in CLOCK_MONOTONIC seconds or
        None); None when the host is closed. A call is (address of its loop, token). Words are given on the
        way.
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
                call = (<size_t>errand.loop, errand.token)
                message = None
                if errand.kind == ERRAND_MESSAGE:
                    message = PyBytes_FromStringAndSize(<const char*>errand.data, errand.size)
                deadline = errand.deadline_ns / 1e9 if errand.deadline_ns else None
                return errand.kind, call, errand.target, message, deadline
            finally:
                errand_free(errand)

    cdef object answer_words(self, Errand* errand):
        """Turns a failed call into its status and words, and sends them back."""
        try:
            error = self.dispatcher.refusal(errand.call)
        except Exception as why:  # no words are worth the desk: it serves all
            error = why
        errand.call = NULL
        self._say(errand, status_of(error), words_of(error), type(error).__name__)

    cdef object _say(self, Errand* errand, int status, str words, str kind):
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
        loop_post(<LoopC*>errand.loop, errand)

    cdef object _end(self, LoopC* loop, uint64_t token, int status, str words, str kind, size_t held):
        cdef Errand* errand = errand_new(ERRAND_END, 0)
        if errand == NULL:
            raise MemoryError
        errand.held = held
        errand.loop = loop
        errand.token = token
        errand.is_counted = True
        self._say(errand, status, words, kind)

    def next(self, tuple call not None, size_t n_bytes):
        """Python is done with the call's message, which had so many bytes: it may have the next."""
        cdef Errand* errand = errand_new(ERRAND_NEXT, 0)
        if errand == NULL:
            raise MemoryError
        errand.token = call[1]
        errand.held = PREFIX_BYTES + n_bytes
        loop_post(<LoopC*><size_t>call[0], errand)

    def reply(self, tuple call not None, bytes message not None):
        """A message for the client. One that has gone gets nothing, silently, as with `end`."""
        cdef Errand* errand = errand_new(ERRAND_REPLY, max(1, len(message)))
        if errand == NULL:
            raise MemoryError
        memcpy(errand.memory, PyBytes_AS_STRING(message), len(message))
        errand.size = len(message)
        errand.token = call[1]
        loop_post(<LoopC*><size_t>call[0], errand)

    def end(self, tuple call not None, int status, str words="", str kind="", *, size_t n_messages=0,
            size_t n_bytes=0):
        """The call's status, once for every START, also of a call that was cancelled: until then it counts as
        under way. `kind`: name of the error's class. n_messages, n_bytes: that it had and `next` has not said
        that it is done with.
        """
        self._end(<LoopC*><size_t>call[0], call[1], status, words, kind, n_messages * PREFIX_BYTES + n_bytes)

    def counts(self):
        """Since it was made, by name; and what is under way now."""
        cdef TransportCounts* n = &self.c.counts
        return {
            "connections": n.connections, "refused": n.refused, "calm": n.calm, "stalled": n.stalled,
            "broken": n.broken, "tls_failed": n.tls_failed, "resets": n.resets,
            "streams_reset": n.streams_reset, "turned_away": n.turned_away, "large": n.large,
            "connections_now": self.c.n_connections, "streams_now": self.c.n_streams,
            "calls_now": self.c.n_calls,
        }


@cython.final
@cython.no_gc_clear
cdef class Session:
    """One connection of a host without a socket, for tests and tools: bytes in, bytes out, in one thread.

    Errands are run where they arise, and time is what it is told: everything that a client's bytes reach is
    reached here, and the same bytes give the same answer. A method that Python answers is answered
    UNIMPLEMENTED.
    """

    def __init__(self, Host host not None):
        if self.host is not None:
            raise ValueError("a Session is made once")
        if loop_init(&self.loop, &host.c) != 0:
            raise MemoryError
        self.host = host
        self.loop.now_ns = 1
        self.connection = connection_open(&self.loop)
        if self.connection == NULL:
            raise MemoryError

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
        if connection_tick(self.connection) != 0:
            self.close()
            return None
        return self._turn()

    def close(self):
        """The client is gone. What was under way is given up."""
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
                if errand.kind == ERRAND_START:
                    self.host._end(&self.loop, errand.token, <int>Status.UNIMPLEMENTED, "Python's", "", 0)
                self.loop.buffered -= errand.held
                errand_free(errand)
            errand = following
        loop_inbox(&self.loop)
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
