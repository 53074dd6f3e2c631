"""An event loop on a thread of its own: reads, has connections answer, writes; never waits but in epoll.

    epoll ──► accept ──────────────► a new connection
          ──► read ──► connection_receive ──┐
          ──► eventfd: errands, durable ────┤
    time  ──► deadlines, ticks ─────────────┴──► dirty connections ──► connection_send ──► write

All that came is worked off before anything is written, so that what a client sent together is answered
together. A connection is read READ_BYTES at a time, and in one round of the loop no more once that is
ROUND_BYTES, or running what came has taken ROUND_NS: the rest comes after what all others have sent. What a
socket does not take is kept, at most WRITE_BYTES of it, and the connection gives no more until it is taken. A
connection that is over is shut down for writing first and read to its end for LINGER_NS, so that the client
sees the last words rather than a reset.

`run` holds the GIL at no time. `drain`, `stop` and the sync thread's hook may be called from any thread.
"""

cimport cython
from posix.time cimport timespec
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from featurestore.clock cimport clock_monotonic_ns
from featurestore.server.connection cimport (
    HANDS_AT_WORKER, HANDS_AWAITED, HANDS_BACK, HANDS_BEGUN, HANDS_DELAYED, HANDS_SHAKEN, Connection, HostC,
    LoopC, connection_close, connection_dirty, connection_hears_no_more, connection_hold, connection_is_over,
    connection_let_go, connection_open, connection_receive, connection_send, connection_shake,
    connection_tick, loop_deadlines, loop_drain, loop_free, loop_inbox, loop_init, loop_next_deadline_ns,
    loop_turns, loop_unpark, loop_waits,
)
from featurestore.server.host cimport Host
from featurestore.server.memory cimport buffer_extend, buffer_free
from featurestore.server.shares cimport peer_of_socket, peer_shakes
from featurestore.server.tls cimport (
    TLS_AGAIN, TLS_AGAIN_WRITE, TLS_CLOSED, TLS_SECURE, TlsContext, tls_free, tls_open, tls_receive, tls_send,
    tls_shutdown,
)
from featurestore.storage.journal cimport JournalState, journal_add_hook, journal_remove_hook

from featurestore.core.structs import same_structs
from featurestore.errors import LimitError

same_structs(__name__, loop_structs())

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/socket.h>" nogil:
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, SHUT_WR, SHUT_RDWR
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    int shutdown(int fd, int how)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_NONBLOCK, EFD_CLOEXEC
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t* value)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int ppoll(pollfd* fds, size_t n, const timespec* timeout, const void* sigmask) noexcept

cdef extern from "<sys/epoll.h>" nogil:
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLEXCLUSIVE, EPOLLONESHOT
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll_fd, epoll_event* events, int n, int timeout_ms)

cdef extern from * nogil:
    """
    #define fs_add(counter, n) ((void)__atomic_fetch_add((counter), (n), __ATOMIC_RELAXED))
    #define fs_load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
    #define fs_store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
    #define fs_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #include <malloc.h>
    #ifdef __GLIBC__
    #define fs_trim() ((void)malloc_trim(0))
    #else
    #define fs_trim() ((void)0)
    #endif
    """
    void fs_add(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_load(const void* place) noexcept
    void fs_store(void* place, int value) noexcept
    void fs_fence() noexcept
    void fs_trim() noexcept

cdef enum:
    N_EVENTS = 256                   # of one epoll_wait
    N_ACCEPTS = 16                   # of one listener and round
    READ_BYTES = 8 << 10             # by one recv
    RECORD_BYTES = 16 << 10          # of TLS: what one tls_receive gives at most
    ROUND_BYTES = 64 << 10           # of one connection
    ROUND_NS = 100_000               # for one connection, when there is more to read
    WRITE_BYTES = 64 << 10
    LOOK_MS = 5                      # at deadlines, while there are some; those of what is parked are exact
    TICK_MS = 200
    CONNECTION_BYTES = 20 << 10      # about: what nghttp2 and we keep of one that says nothing
    TRIM_BYTES = 16 << 20
    TRIM_NS = 2_000_000_000          # between two times at least: each holds everybody up for some ms
    LINGER_NS = 1_000_000_000


cdef void _on_durable(void* context, uint64_t position, int error) noexcept nogil:
    """The journal's hook. The fence stands between its position, written before, and n_parked: the loop
    writes the one and then reads the other, so that one of the two sees the other's.
    """
    cdef LoopC* loop = <LoopC*>context
    fs_fence()
    if error:
        loop.host.has_failed = True
        eventfd_write(loop.wake_fd, 1)
    elif fs_load(&loop.n_parked):
        eventfd_write(loop.wake_fd, 1)


# -- sockets
# ---------------------------------------------------------------------------------------------------

cdef void _watch(Sockets* s, Connection* connection, uint32_t events) noexcept nogil:
    cdef epoll_event event
    if connection.events == events:
        return
    event.events = events
    event.data.ptr = connection
    if epoll_ctl(s.epoll_fd, EPOLL_CTL_MOD if connection.events else EPOLL_CTL_ADD, connection.fd,
                 &event) != 0:
        connection.is_dead = True
        connection_dirty(connection)
        return
    connection.events = events


cdef void _pause(Sockets* s, Listener* listener, bint is_paused) noexcept nogil:
    cdef epoll_event event
    listener.is_paused = is_paused
    event.events = EPOLLIN | EPOLLEXCLUSIVE
    event.data.ptr = listener
    epoll_ctl(s.epoll_fd, EPOLL_CTL_DEL if is_paused else EPOLL_CTL_ADD, listener.fd, &event)


cdef void _close(Connection* connection) noexcept nogil:
    if connection.ssl != NULL:
        tls_free(connection.ssl)
    close(connection.fd)
    connection_close(connection)


cdef void _accept(Sockets* s, Listener* listener) noexcept nogil:
    cdef LoopC* loop = &s.loop
    cdef Connection* connection
    cdef uint64_t address[16]        # as much as a sockaddr_storage
    cdef socklen_t size
    cdef int fd, one = 1, _i
    for _i in range(N_ACCEPTS):
        size = sizeof(address)
        fd = accept4(listener.fd, <sockaddr*>&address[0], &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0 and (errno == ECONNABORTED or errno == EINTR):
            continue                     # gone while it waited: there may be others behind
        if fd < 0:
            if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                _pause(s, listener, True)
            return
        connection = connection_open(loop, peer_of_socket(&address[0], size))
        if connection == NULL:
            close(fd)
            continue
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))  # a Unix socket has no delay, and says so
        connection.fd = fd
        if s.tls != NULL:
            connection.ssl = tls_open(s.tls, fd)
            connection.hands = HANDS_AWAITED
            if connection.ssl == NULL:
                _close(connection)
                continue
        _watch(s, connection, EPOLLIN)


cdef uint32_t _wanted(const Connection* connection) noexcept nogil:
    """Events, but for those of a socket that took less than all. Errors are told of in any case."""
    return EPOLLERR if connection.is_deaf else EPOLLIN


cdef void _end_of_input(Sockets* s, Connection* connection) noexcept nogil:
    """The client has closed its side; it may read on, and what it asked for is answered as far as it does."""
    if connection.lingers_ns or not connection_hears_no_more(connection):
        connection.is_dead = True
        return
    _watch(s, connection, _wanted(connection) | (EPOLLOUT if connection.is_corked else 0))


cdef void _give_to_worker(Sockets* s, Connection* connection) noexcept nogil:
    """What its client has said of the handshake. Nothing is watched meanwhile, nor its end."""
    _watch(s, connection, EPOLLONESHOT)
    if not connection.is_dead and not connection_shake(connection):
        connection.is_dead = True
        connection_dirty(connection)


cdef void _shake(Sockets* s, Connection* connection) noexcept nogil:
    """Its client has said something of the handshake: if it is the first, when its peer's others let it."""
    cdef HostC* host = s.loop.host
    if connection.hands == HANDS_AWAITED:
        connection.shakes_ns = peer_shakes(connection.holder.peer, s.loop.now_ns, host.between_shakes_ns,
                                           connection.opened_ns + host.handshake_ns)
        if connection.shakes_ns < 0:
            fs_add(&host.counts.tls_refused, 1)
            connection.is_dead = True
            return
        if connection.shakes_ns > s.loop.now_ns:
            fs_add(&host.counts.tls_delayed, 1)
            connection.hands = HANDS_DELAYED
            _watch(s, connection, EPOLLRDHUP)
            return
    _give_to_worker(s, connection)


cdef bint _heed(Sockets* s, Connection* connection) noexcept nogil:
    """What a worker has found; False: the client is not let in."""
    cdef int shook = connection.shook
    connection.hands = HANDS_SHAKEN if shook == TLS_SECURE else HANDS_BEGUN
    if shook != TLS_SECURE and shook != TLS_AGAIN and shook != TLS_AGAIN_WRITE:
        fs_add(&s.loop.host.counts.tls_failed, 1)
        return False
    _watch(s, connection, EPOLLIN | EPOLLOUT if shook == TLS_AGAIN_WRITE else EPOLLIN)
    return True


cdef void _receive_secure(Sockets* s, Connection* connection) noexcept nogil:
    cdef ssize_t n
    cdef int64_t until_ns = clock_monotonic_ns() + ROUND_NS
    cdef int _i
    for _i in range(ROUND_BYTES // RECORD_BYTES):
        n = tls_receive(connection.ssl, s.inward, RECORD_BYTES)
        if n == TLS_AGAIN or n == TLS_AGAIN_WRITE:
            if not connection.is_corked:
                _watch(s, connection, EPOLLIN | EPOLLOUT if n == TLS_AGAIN_WRITE else EPOLLIN)
            return
        if n > 0 and connection.lingers_ns:
            continue
        if n == TLS_CLOSED:
            _end_of_input(s, connection)
            return
        if n < 0 and _i:
            return                       # what came before the end is answered first; epoll tells again
        if n < 0 or connection_receive(connection, s.inward, <size_t>n) != 0:
            connection.is_dead = True
            connection_dirty(connection)
            return
        # A record is taken whole: what is left is in the socket, of which epoll tells again.
        if clock_monotonic_ns() >= until_ns:
            return


cdef void _receive(Sockets* s, Connection* connection) noexcept nogil:
    cdef ssize_t n
    cdef int64_t until_ns
    cdef int _i
    if connection.hands != HANDS_SHAKEN:
        _shake(s, connection)
        return
    if connection.is_in_turns:
        return                           # what has come is run before more is read; epoll tells again
    if connection.ssl != NULL:
        _receive_secure(s, connection)
        return
    until_ns = clock_monotonic_ns() + ROUND_NS
    for _i in range(ROUND_BYTES // READ_BYTES):
        n = recv(connection.fd, s.inward, READ_BYTES, 0)
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if n == 0:
            _end_of_input(s, connection)
            return
        if n < 0 or (connection.lingers_ns == 0
                     and connection_receive(connection, s.inward, <size_t>n) != 0):
            connection.is_dead = True
            connection_dirty(connection)
            return
        if n < READ_BYTES or clock_monotonic_ns() >= until_ns:
            return


cdef bint _write(Connection* connection, const uint8_t* data, size_t size, size_t* taken) noexcept nogil:
    """False: the connection is broken."""
    cdef ssize_t n
    taken[0] = 0
    while taken[0] < size:
        if connection.ssl != NULL:
            n = tls_send(connection.ssl, data + taken[0], size - taken[0])
            if n == TLS_AGAIN or n == TLS_AGAIN_WRITE:
                return True
            if n < 0:
                return False
            taken[0] += <size_t>n
            continue
        n = send(connection.fd, data + taken[0], size - taken[0], MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            return errno == EAGAIN
        taken[0] += <size_t>n
    return True


cdef bint _write_pending(Sockets* s, Connection* connection) noexcept nogil:
    cdef size_t taken
    if not _write(connection, connection.pending.data + connection.pending_at,
                  connection.pending.size - connection.pending_at, &taken):
        return False
    if taken:
        connection.took_ns = s.loop.now_ns
    connection.pending_at += taken
    if connection.pending_at == connection.pending.size:
        connection.pending_at = 0
        connection_let_go(connection, connection.pending.size)
        buffer_free(&connection.pending)
        connection.is_corked = False
        _watch(s, connection, _wanted(connection))
    return True


cdef bint _flush(Sockets* s, Connection* connection) noexcept nogil:
    """Writes what the connection has to say; False: close it."""
    cdef ssize_t n
    cdef size_t taken
    cdef uint8_t* rest
    cdef int64_t until_ns = 0
    if connection.hands == HANDS_AT_WORKER:
        return True
    if connection.is_dead:
        return False
    if connection.lingers_ns:  # what comes back to its calls now would tear it, and its last words with it
        return True
    if connection.hands == HANDS_BACK and not _heed(s, connection):
        return False
    if connection.hands != HANDS_SHAKEN:
        return not connection.is_going  # it has asked for nothing yet, and cannot be told to go
    while not connection.is_corked:
        if until_ns and clock_monotonic_ns() >= until_ns:
            connection_dirty(connection)
            return True
        n = connection_send(connection, s.outward, WRITE_BYTES)
        if n < 0:
            return False
        if n == 0:
            break
        if not _write(connection, s.outward, <size_t>n, &taken):
            return False
        if taken < <size_t>n:
            rest = buffer_extend(&connection.pending, <size_t>n - taken)
            if rest == NULL:
                return False
            memcpy(rest, s.outward + taken, <size_t>n - taken)
            connection_hold(connection, <size_t>n - taken)
            connection.is_corked = True
            _watch(s, connection, _wanted(connection) | EPOLLOUT)
        if until_ns == 0 and <size_t>n >= WRITE_BYTES // 2:  # no call to the clock for one that says little
            until_ns = clock_monotonic_ns() + ROUND_NS // 2
    if connection.is_deaf and not connection.is_corked and (connection.n_streams == 0 or connection.unsent):
        # All is answered, or the client would have to say that it takes more.
        if connection.ssl != NULL:
            tls_shutdown(connection.ssl)
        return False
    if connection_is_over(connection) and not connection.is_corked:
        connection.lingers_ns = s.loop.now_ns
        if connection.ssl != NULL:
            tls_shutdown(connection.ssl)
        shutdown(connection.fd, SHUT_WR)
    return not connection.is_dead


cdef void _flush_all(Sockets* s) noexcept nogil:
    """Once each: one that has more to say than its part of a round says it in the next."""
    cdef Connection* connection = s.loop.dirty
    cdef Connection* following
    s.loop.dirty = NULL
    while connection != NULL:
        following = connection.next_dirty
        connection.is_dirty = False
        if not _flush(s, connection):
            _close(connection)
        connection = following


cdef size_t _taken_bytes(Sockets* s) noexcept nogil:
    return s.loop.buffered + <size_t>s.loop.n_connections * CONNECTION_BYTES


cdef void _trim(Sockets* s) noexcept nogil:
    """What a burst has left in pieces between others' memory malloc would keep for good."""
    cdef size_t taken = _taken_bytes(s)
    cdef size_t given_back = s.most_taken - min(taken, s.most_taken)
    if (given_back >= TRIM_BYTES and given_back >= s.most_taken // 8
            and s.loop.now_ns - s.trimmed_ns >= TRIM_NS):
        s.most_taken = taken
        s.trimmed_ns = s.loop.now_ns
        fs_trim()


cdef void _tick(Sockets* s) noexcept nogil:
    """What only time changes."""
    cdef Connection* connection = s.loop.connections
    cdef Connection* following
    cdef int i
    while connection != NULL:
        following = connection.next
        if connection.lingers_ns:
            if s.loop.now_ns - connection.lingers_ns > LINGER_NS:
                _close(connection)
        elif connection.hands == HANDS_DELAYED and s.loop.now_ns >= connection.shakes_ns:
            _give_to_worker(s, connection)
        elif connection.hands != HANDS_AT_WORKER and connection_tick(connection) < 0:
            _close(connection)
        connection = following
    _trim(s)
    if s.is_listening:
        for i in range(s.n_listeners):
            if s.listeners[i].is_paused:
                _pause(s, &s.listeners[i], False)


cdef void _stop_listening(Sockets* s) noexcept nogil:
    """Whoever has come already is told to go; whoever comes is refused by the system, and may go elsewhere
    rather than wait for the end of a drain.
    """
    cdef int i
    s.is_listening = False
    for i in range(s.n_listeners):
        _accept(s, &s.listeners[i])
        if not s.listeners[i].is_paused:
            _pause(s, &s.listeners[i], True)
        shutdown(s.listeners[i].fd, SHUT_RDWR)


cdef void _handle(Sockets* s, epoll_event* event) noexcept nogil:
    cdef uint64_t count
    cdef void* what = event.data.ptr
    cdef Connection* connection
    if what == NULL:
        eventfd_read(s.loop.wake_fd, &count)
    elif <void*>s.listeners <= what < <void*>(s.listeners + s.n_listeners):
        _accept(s, <Listener*>what)
    else:
        connection = <Connection*>what
        if connection.hands == HANDS_AT_WORKER:
            return                       # it is looked at when it is back
        if connection.hands == HANDS_DELAYED:  # its client has closed its side
            fs_add(&s.loop.host.counts.tls_failed, 1)
            connection.is_dead = True
        if event.events & EPOLLOUT and connection.is_corked and not _write_pending(s, connection):
            connection.is_dead = True
        if connection.is_deaf:
            connection.is_dead = connection.is_dead or (event.events & (EPOLLERR | EPOLLHUP)) != 0
        elif not connection.is_dead and (connection.ssl != NULL  # TLS may have to write before it reads
                                         or event.events & (EPOLLIN | EPOLLERR | EPOLLHUP)):
            _receive(s, connection)
        connection_dirty(connection)


cdef void _sleep(Sockets* s, int64_t ns) noexcept nogil:
    """Until somebody has something to say, or so long to the nanosecond: epoll_wait counts milliseconds."""
    cdef pollfd polled
    cdef timespec longest
    if ns <= 0:
        return
    polled.fd = s.epoll_fd
    polled.events = POLLIN
    longest.tv_sec = 0
    longest.tv_nsec = ns
    ppoll(&polled, 1, &longest, NULL)


cdef int _may_sleep_ms(Sockets* s) noexcept nogil:
    """Until somebody has something to say: not at all while there is something to go on with, or when it has
    slept already.
    """
    cdef LoopC* loop = &s.loop
    cdef int64_t next_ns = loop_next_deadline_ns(loop)
    if loop.turns != NULL or loop.dirty != NULL:
        return 0
    if loop.n_parked:
        if next_ns and next_ns - loop.now_ns < LOOK_MS * 1_000_000:
            _sleep(s, next_ns - loop.now_ns)
            return 0
        return LOOK_MS
    if next_ns and next_ns - loop.now_ns < TICK_MS * 1_000_000:
        return max(<int>LOOK_MS, <int>((next_ns - loop.now_ns) // 1_000_000 + 1))
    return TICK_MS


cdef void _run(Sockets* s) noexcept nogil:
    cdef epoll_event events[N_EVENTS]
    cdef LoopC* loop = &s.loop
    cdef int n, i
    loop.now_ns = s.ticked_ns = s.looked_ns = clock_monotonic_ns()
    while True:
        n = epoll_wait(s.epoll_fd, events, N_EVENTS, _may_sleep_ms(s))
        loop.now_ns = clock_monotonic_ns()
        loop_turns(loop)
        for i in range(n if n > 0 else 0):
            _handle(s, &events[i])
        loop_inbox(loop)
        if loop.n_parked:
            loop_unpark(loop)
            loop_deadlines(loop)
        if loop.now_ns - s.looked_ns >= LOOK_MS * 1_000_000:
            s.looked_ns = loop.now_ns
            loop_deadlines(loop)
            loop_waits(loop)
        if fs_load(&s.wants_drain) and not loop.is_draining:
            loop.is_draining = True
            _stop_listening(s)
            loop_drain(loop)
        if loop.now_ns - s.ticked_ns >= TICK_MS * 1_000_000:
            s.ticked_ns = loop.now_ns
            _tick(s)
        s.most_taken = max(s.most_taken, _taken_bytes(s))
        _flush_all(s)
        if fs_load(&s.wants_stop) or (loop.is_draining and loop.n_connections == 0):
            break
    while loop.n_shaking:                # workers are there for longer
        epoll_wait(s.epoll_fd, events, N_EVENTS, LOOK_MS)
        loop_inbox(loop)
    while loop.connections != NULL:
        _close(loop.connections)


@cython.final
@cython.no_gc_clear
cdef class Loop:
    """One loop of a host, on listening sockets of its own, non-blocking; the caller's thread runs it.
    With `tls`, every connection is secure. (no_gc_clear: what it points to is needed until it is gone.)

    Raises LimitError where the store's journal has no hook left, OSError where the system has no descriptors.
    """

    def __cinit__(self):
        self.s.epoll_fd = -1
        self.s.loop.wake_fd = -1

    def __init__(self, Host host not None, list sockets not None, TlsContext tls=None):
        cdef epoll_event event
        cdef int i
        if self.made:
            raise ValueError("a Loop is made once")
        if loop_init(&self.s.loop, &host.c) != 0:
            raise MemoryError
        self.made = True
        self.host = host
        self.journal = host.dispatcher.engine.journal
        self.sockets = sockets
        self.tls = tls
        self.s.tls = NULL if tls is None else &tls.c
        self.s.inward = <uint8_t*>malloc(RECORD_BYTES)
        self.s.outward = <uint8_t*>malloc(WRITE_BYTES)
        self.s.listeners = <Listener*>calloc(max(1, len(sockets)), sizeof(Listener))
        if self.s.inward == NULL or self.s.outward == NULL or self.s.listeners == NULL:
            raise MemoryError
        self.s.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.s.loop.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.s.epoll_fd < 0 or self.s.loop.wake_fd < 0:
            raise OSError(errno, "no descriptor for an event loop")
        event.events = EPOLLIN
        event.data.ptr = NULL
        epoll_ctl(self.s.epoll_fd, EPOLL_CTL_ADD, self.s.loop.wake_fd, &event)
        self.s.n_listeners = len(sockets)
        self.s.is_listening = True
        for i in range(self.s.n_listeners):
            self.s.listeners[i].fd = sockets[i].fileno()
            _pause(&self.s, &self.s.listeners[i], False)
        if journal_add_hook(self.journal.state, _on_durable, &self.s.loop) != 0:
            raise LimitError(
                "the store's journal tells no more loops what is durable; run fewer loop threads")
        self.hooked = True

    def __dealloc__(self):
        if self.hooked:
            journal_remove_hook(self.journal.state, _on_durable, &self.s.loop)
        if self.made:
            loop_free(&self.s.loop)
        if self.s.epoll_fd >= 0:
            close(self.s.epoll_fd)
        if self.s.loop.wake_fd >= 0:
            close(self.s.loop.wake_fd)
        free(self.s.inward)
        free(self.s.outward)
        free(self.s.listeners)

    def run(self):
        """Serves until it is told to stop, or to drain and the last connection has gone."""
        with nogil:
            _run(&self.s)

    def drain(self):
        """Takes no more connections and no more calls; those under way end."""
        fs_store(&self.s.wants_drain, 1)
        eventfd_write(self.s.loop.wake_fd, 1)

    def stop(self):
        """Closes every connection as it is."""
        fs_store(&self.s.wants_stop, 1)
        eventfd_write(self.s.loop.wake_fd, 1)

    def close(self):
        """When `run` has returned and nobody has errands of it: hears of the journal no more."""
        cdef JournalState* journal
        if self.hooked:
            self.hooked = False
            journal = self.journal.state
            with nogil:
                journal_remove_hook(journal, _on_durable, &self.s.loop)

    @property
    def n_connections(self):
        """Open now."""
        return self.s.loop.n_connections
