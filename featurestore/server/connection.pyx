"""gRPC over HTTP/2 on one connection: what connection.pxd promises.

What it promises:

- A hot call goes from bytes to bytes without the GIL.
- What is held for a client is bounded: by connection, by loop, by message, and by shares (shares.pxd), as are
  its calls: whoever holds much is refused before whoever holds little. What would exceed it is answered
  RESOURCE_EXHAUSTED, and a client that does not take its replies gets no new ones: its requests wait unread.
- Order. Replies of a stream leave in the order of its messages; one message of a stream is run at a time; a
  stream ends only after all that was applied has been answered.
- Nothing here waits, unless very many do. A message of more than INLINE_BYTES or MOST_COST, one that needs
  what others have in use, words for a failure, and a method that Python answers are errands (errands.pxd); a
  reply that must be durable parks its stream.
- Nobody waits for one connection's messages, however many have come: it runs TURN_COST of them in a round.
- What a stream takes is given back with it, and no walk is longer for streams that have been or that wait.

Frames that cost us and do nothing for the client (SETTINGS, PING, PRIORITY, RST_STREAM, CONTINUATION,
WINDOW_UPDATE, DATA without bytes) are paid from a credit, which time and answered calls fill again. A
connection without any is told ENHANCE_YOUR_CALM and closed: that is one rule for all floods, those known by
name and the next. What waits for a client that takes nothing is bounded too, frames without data by their
number: one with too many is closed without a word, which it would not take either.

HTTP/2 itself (RFC 9113, RFC 7541) is nghttp2's: frames, states, flow control, malformed messages. gRPC's
part is by https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from featurestore.core.sanitizer cimport GAP_BYTES
from featurestore.server.cursor cimport Cursor, cursor_structs, is_utf8, skip, take_slice, take_tag
from featurestore.server.dispatcher cimport (
    ANSWER_BUSY, ANSWER_DONE, ANSWER_ERROR, ANSWER_LARGE, ANSWER_PARKED, FAULT_LOST,
    FAULT_UNANSWERED, METHOD_READ, METHOD_READ_STREAM, Call, dispatcher_check, dispatcher_finish,
    dispatcher_give, dispatcher_is_unknown, dispatcher_run, dispatcher_take, dispatcher_try, say_applied,
)
from featurestore.server.errands cimport (
    ERRAND_CANCEL, ERRAND_END, ERRAND_HALF_CLOSE, ERRAND_MESSAGE, ERRAND_NEXT, ERRAND_RUN, ERRAND_SHAKE,
    ERRAND_START, ERRAND_WORDS, NOT_RUN_LATE, NOT_RUN_NO_CALL, Errand, Queue, errand_free, errand_is_late,
    errand_new, queue_destroy, queue_init, queue_put, queue_take_all,
)
from featurestore.server.grpc_text cimport grpc_timeout_ns, is_grpc_content
from featurestore.server.memory cimport (
    MOST_SPARE, Buffer, buffer_extend, buffer_free, spares_extend, spares_free, spares_take,
)
from featurestore.server.nghttp2 cimport *
from featurestore.server.shares cimport (
    KIND_OTHERS, KIND_READS, KIND_STREAMS, KIND_WATCHES, KIND_WRITES, NO_PLACE, Peer, peer_enter, peer_leave,
    peer_may_connect, peers_free, peers_init, place_give, place_take, share_has_room,
)
from featurestore.storage.journal cimport journal_durable

from featurestore.core.structs import same_structs

same_structs(__name__, connection_structs(), cursor_structs())

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef extern from * nogil:
    """
    #define fs_add(counter, n) ((void)__atomic_fetch_add((counter), (n), __ATOMIC_RELAXED))
    #define fs_sub(counter, n) ((void)__atomic_fetch_sub((counter), (n), __ATOMIC_RELAXED))
    #define fs_after_add(counter, n) __atomic_add_fetch((counter), (n), __ATOMIC_RELAXED)
    #define fs_store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
    #define fs_load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
    """
    void fs_add(uint64_t* counter, uint64_t n) noexcept
    void fs_sub(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_after_add(uint64_t* counter, uint64_t n) noexcept
    void fs_store(uint64_t* place, uint64_t value) noexcept
    uint64_t fs_load(const void* place) noexcept

cdef enum:
    PREFIX_BYTES = 5                 # of a gRPC message: a flag and its length
    INLINE_BYTES = 8 << 10           # a larger message takes longer than others should wait for
    MOST_WAITING = 64                # messages on a bench for what others have in use; then the loop waits
    MOST_WORDLESS = 128              # failed calls that wait for their words; further ones go without
    MOST_LEAVING = 64                # connections that were told to go for others and have not gone yet
    LOOKED_AT = 16                   # idle ones, to find one that can go: whoever is refused costs no more
    SLOW_BYTES = 64 << 10            # held for a client that takes them slowly is no harm to anybody
    HEALTHY = 1                      # of grpc.health.v1.HealthCheckResponse.ServingStatus
    NOT_HEALTHY = 2
    UNKNOWN_HEALTH = 3
    STREAM_BYTES = 1 << 10           # what a stream holds besides what came and replies: ours, and nghttp2's
    PAGE_BYTES = 4 << 10
    MOVE_BYTES = 64 << 10            # run or sent, and as much as the rest, before that is moved to the front
    MOST_MOVED_BYTES = 256 << 10     # at once: moving more would hold others up
    ADOPT_BYTES = 16 << 10           # a reply of so much is not copied
    MOST_STATUS_HEADERS = 4          # of a call that has ended
    ANSWER_PART = 20                 # of a call's time, one is left for the way of an answer that waited for
    ANSWER_NS = 1_000_000            # the disk in vain; this at least
    TURN_COST = 1 << 10              # of what one connection has run in a round; see Call.cost
    CALL_COST = 16                   # of a message, whatever is in it
    BYTES_A_COST = 64
    FULL_BYTES = 1 << 20             # unsent on a connection: it gets no new replies until it takes some
    BOMB_BYTES = 256 << 10           # here a header block is not even refused with words
    # nghttp2 ends the connection of a client with a stream too many: it is told of no limit, the client is.
    MANY_STREAMS = 0x7FFFFFFF
    PREFACE_BYTES = 24
    HEAD_BYTES = 9                   # of a frame
    STREAM_WINDOW_BYTES = 1 << 20
    CONNECTION_WINDOW_BYTES = 8 << 20
    MOST_CREDIT = 1000
    CREDIT_PER_S = 100
    CREDIT_PER_ANSWER = 4
    CREDIT_PER_DATA = 2              # sent: the client opens two windows for it
    MOST_STRIKES = 2
    MOST_QUEUED = 2000               # frames but DATA that wait to be sent, besides four of each stream
    NS_PER_S = 1_000_000_000
    MOST_GIVEN_S = 1 << 30           # to a request for its size: as good as for ever
    FIRST_SLOTS = 1024

cdef int64_t FRESH_NS = <int64_t>NS_PER_S               # so long nobody has to go who has just become idle
cdef int64_t LAST_WORDS_NS = <int64_t>NS_PER_S          # from the end of an age's grace until it is closed
cdef int64_t KEEPALIVE_NS = 60 * <int64_t>NS_PER_S      # silence after which we ping
cdef int64_t PONG_NS = 20 * <int64_t>NS_PER_S
cdef int64_t NOTICE_NS = 100_000_000                    # from the announcement of a drain to the last GOAWAY


# -- small parts
# -----------------------------------------------------------------------------------------------

cdef inline nghttp2_nv _header(const char* name, const void* value, size_t n) noexcept nogil:
    """A header whose name outlives the frame; the value is copied."""
    cdef nghttp2_nv header
    header.name = <uint8_t*>name
    header.namelen = strlen(name)
    header.value = <uint8_t*>value
    header.valuelen = n
    header.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
    return header


cdef inline bint _is(const uint8_t* text, size_t n, const char* word) noexcept nogil:
    return n == strlen(word) and memcmp(text, word, n) == 0


cdef inline uint64_t _out_end(const Stream* stream) noexcept nogil:
    return stream.out_base + stream.outward.size


cdef inline size_t _unread(const Stream* stream) noexcept nogil:
    """Bytes that came and were not run."""
    return stream.inward.size - stream.inward_at


cdef inline Target* _target(const Stream* stream) noexcept nogil:
    return &stream.connection.loop.host.targets[stream.target]


cdef void connection_dirty(Connection* connection) noexcept nogil:
    if not connection.is_dirty:
        connection.is_dirty = True
        connection.next_dirty = connection.loop.dirty
        connection.loop.dirty = connection


cdef void _tell_peer(Connection* connection) noexcept nogil:
    """What is beyond its part, which is there for it whatever others hold, counts for all of its peer."""
    cdef size_t part = connection.loop.host.part_bytes
    cdef size_t beyond = connection.buffered - part if connection.buffered > part else 0
    if beyond != connection.charged:
        fs_add(&connection.holder.peer.buffered, beyond - connection.charged)
        connection.charged = beyond


cdef void connection_hold(Connection* connection, size_t n) noexcept nogil:
    connection.buffered += n
    connection.loop.buffered += n
    _tell_peer(connection)


cdef void connection_let_go(Connection* connection, size_t n) noexcept nogil:
    connection.buffered -= n
    connection.loop.buffered -= n
    _tell_peer(connection)


cdef bint _has_room(const Connection* connection, size_t n) noexcept nogil:
    """For n bytes more: by shares (shares.pxd), but for the last of a loop's room, which is divided. Of that
    a connection always has its part, for calls that are not large, however many others hold however much.
    """
    cdef const HostC* host = connection.loop.host
    if (n > host.max_connection_bytes or connection.buffered > host.max_connection_bytes - n
            or n > host.max_buffered_bytes or connection.loop.buffered > host.max_buffered_bytes - n):
        return False
    if n == 0 or connection.buffered + n <= host.part_bytes:
        return True
    return share_has_room(host.max_buffered_bytes - host.shared_bytes, connection.loop.buffered, n,
                          connection.buffered, fs_load(&connection.holder.peer.buffered))


cdef void _earn(Connection* connection, int64_t credit) noexcept nogil:
    connection.credit = min(<int64_t>MOST_CREDIT, connection.credit + credit)


cdef void _say_why(Connection* connection, uint64_t* counter, uint32_t code, const char* why) noexcept nogil:
    """A connection error, by code and words: once, however much was read with what was wrong."""
    if connection.is_over:
        return
    connection.is_over = True
    fs_add(counter, 1)
    nghttp2_submit_goaway(connection.session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(connection.session),
                          code, <const uint8_t*>why, strlen(why))
    connection_dirty(connection)


cdef void _calm(Connection* connection, const char* why) noexcept nogil:
    _say_why(connection, &connection.loop.host.counts.calm, NGHTTP2_ENHANCE_YOUR_CALM, why)


cdef void _break(Connection* connection, uint32_t code, const char* why) noexcept nogil:
    _say_why(connection, &connection.loop.host.counts.broken, code, why)


cdef void _charge(Connection* connection) noexcept nogil:
    """One frame that does nothing for the client."""
    cdef int64_t now = connection.loop.now_ns
    cdef int64_t earned = (now - connection.credited_ns) * CREDIT_PER_S // NS_PER_S
    if earned > 0:
        _earn(connection, earned)
        connection.credited_ns = now
    connection.credit -= 1
    if connection.credit < 0:
        _calm(connection, b"too many frames that ask for nothing")


cdef void _note_idle(Connection* connection) noexcept nogil:
    """Keeps the loop's list of idle connections, oldest first: one that has no stream but watches is in
    it.
    """
    cdef LoopC* loop = connection.loop
    cdef bint is_idle = connection.n_streams == connection.n_watches and not connection.is_gone
    if is_idle == connection.is_idle:
        return
    connection.is_idle = is_idle
    if is_idle:
        connection.idle_ns = loop.now_ns
        connection.idle_next = NULL
        connection.idle_previous = loop.idle_last
        if loop.idle_last != NULL:
            loop.idle_last.idle_next = connection
        else:
            loop.idle_first = connection
        loop.idle_last = connection
        return
    if loop.idle_at == connection:
        loop.idle_at = connection.idle_next
    if connection.idle_previous != NULL:
        connection.idle_previous.idle_next = connection.idle_next
    else:
        loop.idle_first = connection.idle_next
    if connection.idle_next != NULL:
        connection.idle_next.idle_previous = connection.idle_previous
    else:
        loop.idle_last = connection.idle_previous


# -- streams
# ---------------------------------------------------------------------------------------------------

cdef bint _give_slot(LoopC* loop, Stream* stream) noexcept nogil:
    cdef uint32_t capacity, slot
    cdef Slot* slots
    if loop.free_slot:
        slot = loop.free_slot - 1
        loop.free_slot = loop.slots[slot].next_free
    else:
        if loop.n_slots == loop.slots_capacity:
            capacity = 2 * loop.slots_capacity if loop.slots_capacity else FIRST_SLOTS
            slots = <Slot*>realloc(loop.slots, capacity * sizeof(Slot))
            if slots == NULL:
                return False
            loop.slots = slots
            loop.slots_capacity = capacity
        slot = loop.n_slots
        loop.n_slots += 1
    loop.generation += 1
    loop.n_streams += 1
    loop.slots[slot].stream = stream
    loop.slots[slot].generation = loop.generation
    stream.token = <uint64_t>loop.generation << 32 | slot
    return True


cdef void _take_slot(LoopC* loop, Stream* stream) noexcept nogil:
    cdef uint32_t slot = <uint32_t>stream.token
    loop.slots[slot].stream = NULL
    loop.slots[slot].next_free = loop.free_slot
    loop.free_slot = slot + 1
    loop.n_streams -= 1
    if loop.n_streams == 0 and loop.slots_capacity > FIRST_SLOTS:
        # What a crowd has left: generations are the loop's, so that its slots need not be remembered.
        free(loop.slots)
        loop.slots = NULL
        loop.n_slots = loop.slots_capacity = loop.free_slot = 0


cdef void _put_away(LoopC* loop, Stream* stream) noexcept nogil:
    """Few are kept for the next calls, which then cost no malloc."""
    if loop.n_spare_streams == MOST_SPARE or GAP_BYTES:
        free(stream)
        return
    stream.next = loop.spare_streams
    loop.spare_streams = stream
    loop.n_spare_streams += 1


cdef Stream* _new_stream(Connection* connection, int32_t id) noexcept nogil:
    """NULL where there is no memory, or no room."""
    cdef LoopC* loop = connection.loop
    cdef Stream* stream
    if not _has_room(connection, STREAM_BYTES):
        return NULL
    stream = loop.spare_streams
    if stream != NULL:
        loop.spare_streams = stream.next
        loop.n_spare_streams -= 1
        memset(stream, 0, sizeof(Stream))
    else:
        stream = <Stream*>calloc(1, sizeof(Stream))
        if stream == NULL:
            return NULL
    if not _give_slot(loop, stream):
        free(stream)
        return NULL
    connection_hold(connection, STREAM_BYTES)
    stream.inward.max_bytes = <size_t>-1 >> 1
    stream.outward.max_bytes = <size_t>-1 >> 1
    stream.connection = connection
    stream.id = id
    stream.target = -1
    stream.ring = &stream.one
    stream.began_ns = loop.now_ns
    stream.next = connection.streams
    if stream.next != NULL:
        stream.next.previous = stream
    connection.streams = stream
    connection.n_streams += 1
    _note_idle(connection)
    return stream


cdef Stream* _find(LoopC* loop, uint64_t token) noexcept nogil:
    cdef uint32_t slot = <uint32_t>token
    if slot >= loop.n_slots or loop.slots[slot].generation != <uint32_t>(token >> 32):
        return NULL
    return loop.slots[slot].stream


cdef void _wait(Stream* stream) noexcept nogil:
    """Behind those of its connection that wait already."""
    cdef Connection* connection = stream.connection
    if stream.is_waiting:
        return
    stream.is_waiting = True
    stream.waiting_next = NULL
    stream.waiting_previous = connection.waiting_last
    if connection.waiting_last != NULL:
        connection.waiting_last.waiting_next = stream
    else:
        connection.waiting = stream
    connection.waiting_last = stream


cdef void _wait_no_more(Stream* stream) noexcept nogil:
    cdef Connection* connection = stream.connection
    if not stream.is_waiting:
        return
    stream.is_waiting = False
    if stream.waiting_previous != NULL:
        stream.waiting_previous.waiting_next = stream.waiting_next
    else:
        connection.waiting = stream.waiting_next
    if stream.waiting_next != NULL:
        stream.waiting_next.waiting_previous = stream.waiting_previous
    else:
        connection.waiting_last = stream.waiting_previous


cdef inline void _put_timer(LoopC* loop, uint32_t at, Stream* stream) noexcept nogil:
    loop.timers[at] = stream
    stream.timer = at + 1


cdef void _sift(LoopC* loop, uint32_t at, Stream* stream) noexcept nogil:
    """Puts the stream where it belongs in the heap, from a place that is empty."""
    cdef uint32_t other
    while at and stream.due_ns < loop.timers[(at - 1) // 2].due_ns:
        other = (at - 1) // 2
        _put_timer(loop, at, loop.timers[other])
        at = other
    while 2 * at + 1 < loop.n_timers:
        other = 2 * at + 1
        if other + 1 < loop.n_timers and loop.timers[other + 1].due_ns < loop.timers[other].due_ns:
            other += 1
        if stream.due_ns <= loop.timers[other].due_ns:
            break
        _put_timer(loop, at, loop.timers[other])
        at = other
    _put_timer(loop, at, stream)


cdef int64_t _due_ns(const Stream* stream) noexcept nogil:
    """When its time is over: its call's, or its request's to be whole; 0: neither is bounded. A request has
    request_ns, and a second more for each min_rate bytes of it that are there. Its deadline gives it no more:
    that is the client's to choose, and what is held for it is not.
    """
    cdef const HostC* host = stream.connection.loop.host
    cdef int64_t since = stream.partial_ns
    cdef int64_t due = 0, deadline
    cdef uint64_t given_s
    if not _target(stream).streams_requests:
        since = 0 if stream.is_half_closed else stream.began_ns
    if since:
        if stream.is_busy:  # what is run before it is answered first
            since = stream.connection.loop.now_ns
        given_s = min(<uint64_t>_unread(stream) // host.min_rate, <uint64_t>MOST_GIVEN_S)
        due = since + host.request_ns + <int64_t>given_s * NS_PER_S + 1
    if stream.deadline_ns == 0:
        return due
    deadline = stream.answer_ns if stream.n_parked else stream.deadline_ns
    return deadline if due == 0 or deadline < due else due


cdef bint _time(Stream* stream) noexcept nogil:
    """Has it looked at when its time is over, or before that; False where there is no memory. Time that it is
    given later moves nothing: who comes to the front is asked what it has by then.
    """
    cdef LoopC* loop = stream.connection.loop
    cdef int64_t due = _due_ns(stream)
    cdef uint32_t capacity
    cdef Stream** timers
    if stream.timer:
        if due < stream.due_ns:
            stream.due_ns = due
            _sift(loop, stream.timer - 1, stream)
        return True
    if loop.n_timers == loop.timers_capacity:
        capacity = 2 * loop.timers_capacity if loop.timers_capacity else FIRST_SLOTS
        timers = <Stream**>realloc(loop.timers, capacity * sizeof(Stream*))
        if timers == NULL:
            return False
        loop.timers = timers
        loop.timers_capacity = capacity
    stream.due_ns = due
    loop.n_timers += 1
    _sift(loop, loop.n_timers - 1, stream)
    return True


cdef void _time_no_more(Stream* stream) noexcept nogil:
    cdef LoopC* loop = stream.connection.loop
    cdef uint32_t at
    if stream.timer == 0:
        return
    at = stream.timer - 1
    stream.timer = 0
    loop.n_timers -= 1
    if at < loop.n_timers:
        _sift(loop, at, loop.timers[loop.n_timers])
    elif loop.n_timers == 0 and loop.timers_capacity > FIRST_SLOTS:
        free(loop.timers)
        loop.timers = NULL
        loop.timers_capacity = 0


cdef void _unlink_parked(LoopC* loop, Stream* stream) noexcept nogil:
    if stream.parked_previous != NULL:
        stream.parked_previous.parked_next = stream.parked_next
    else:
        loop.parked = stream.parked_next
    if stream.parked_next != NULL:
        stream.parked_next.parked_previous = stream.parked_previous
    stream.parked_next = stream.parked_previous = NULL


cdef void _drop_parked(LoopC* loop, Stream* stream, int status, uint32_t n_counted) noexcept nogil:
    """Replies that nobody will get: each is counted with `status`, but for the first n_counted, which are
    counted elsewhere.
    """
    cdef HostC* host = loop.host
    cdef size_t dropped = <size_t>(_out_end(stream) - stream.ready)
    cdef uint32_t i
    if stream.n_parked == 0:
        return
    for i in range(n_counted, stream.n_parked):
        dispatcher_finish(
            host.dispatcher, _target(stream).method,
            stream.ring[(stream.ring_first + i) % host.stream_window if stream.ring != &stream.one
                        else 0].began_ns, status)
    stream.n_parked = 0
    _unlink_parked(loop, stream)
    fs_store(&loop.n_parked, loop.n_parked - 1)
    stream.outward.size -= dropped
    connection_let_go(stream.connection, dropped)


cdef void _uncount(HostC* host, Stream* stream) noexcept nogil:
    if stream.place != NO_PLACE:
        place_give(&host.places, &stream.connection.holder, stream.place)
        stream.place = NO_PLACE
    stream.is_streaming = False
    if stream.is_watch:
        stream.is_watch = False
        stream.connection.n_watches -= 1
        _note_idle(stream.connection)


cdef void _address(const Stream* stream, Errand* errand) noexcept nogil:
    """Says whose it is."""
    errand.token = stream.token
    errand.loop = stream.connection.loop
    errand.connection = stream.connection


cdef void _send_out(Connection* connection, Errand* errand) noexcept nogil:
    """What the errand has stays its connection's, which is there until it is back, closed or not."""
    errand.n_out = 1
    connection.n_out += 1


cdef void _tell_cancelled(Stream* stream) noexcept nogil:
    """Python need not answer a call any more. Without memory to say so, it answers in vain. The call counts
    until Python is done with it.
    """
    cdef Errand* errand
    if not stream.is_told:
        return
    stream.is_told = False
    stream.place = NO_PLACE              # END gives it back
    errand = errand_new(ERRAND_CANCEL, 0)
    if errand != NULL:
        _address(stream, errand)
        queue_put(&stream.connection.loop.host.desk, errand)


cdef void _free_stream(Stream* stream) noexcept nogil:
    cdef Connection* connection = stream.connection
    cdef LoopC* loop = connection.loop
    _tell_cancelled(stream)
    if stream.read != NULL:
        fs_store(&stream.read.is_vain, 1)
    _drop_parked(loop, stream, 1, 0)  # CANCELLED
    _uncount(loop.host, stream)
    _time_no_more(stream)
    _wait_no_more(stream)
    if connection.heading == stream:
        connection.heading = NULL
    connection.unsent -= <size_t>(stream.ready - stream.sent)
    connection_let_go(connection, STREAM_BYTES + _unread(stream) + stream.outward.size)
    spares_take(&loop.spares, &stream.inward)
    spares_take(&loop.spares, &stream.outward)
    if stream.ring != &stream.one:
        free(stream.ring)
    if stream.ending != NULL:
        errand_free(stream.ending)
    if stream.previous != NULL:
        stream.previous.next = stream.next
    else:
        connection.streams = stream.next
    if stream.next != NULL:
        stream.next.previous = stream.previous
    connection.n_streams -= 1
    _note_idle(connection)
    _take_slot(loop, stream)
    _put_away(loop, stream)


cdef inline bint _reads(int method) noexcept nogil:
    return method == METHOD_READ or method == METHOD_READ_STREAM


# -- replies
# ---------------------------------------------------------------------------------------------------

cdef int _status_headers(const Stream* stream, nghttp2_nv* headers, char* digits) noexcept nogil:
    """grpc-status, and what explains it; returns how many headers."""
    cdef int n = 1
    digits[0] = <char>(c'0' + stream.status // 10)
    digits[1] = <char>(c'0' + stream.status % 10)
    headers[0] = _header(b"grpc-status", digits + (stream.status < 10), 1 + (stream.status >= 10))
    if stream.words_bytes:
        headers[n] = _header(b"grpc-message", stream.words, stream.words_bytes)
        n += 1
    if stream.kind_bytes:
        headers[n] = _header(b"featurestore-error", stream.kind, stream.kind_bytes)
        n += 1
    if stream.status and stream.is_unknown:
        headers[n] = _header(b"featurestore-applied", <const uint8_t*>b"unknown", 7)
        n += 1
    elif stream.status:
        headers[n] = _header(b"featurestore-applied", <const uint8_t*>b"no", 2)
        n += 1
    return n


cdef bint _forget(LoopC* loop, Buffer* buffer, size_t at) noexcept nogil:
    """Drops the first `at` bytes where that is worth it: all there are, or as much as the rest and more. What
    is kept never has more than four times the memory that it needs, but for a page.
    """
    cdef size_t rest = buffer.size - at
    cdef uint8_t* data
    if rest == 0:
        spares_take(&loop.spares, buffer)
        return True
    if rest > MOST_MOVED_BYTES:
        return False
    if rest <= buffer.capacity // 4 and buffer.capacity > PAGE_BYTES:
        data = <uint8_t*>malloc(rest)
        if data != NULL:
            memcpy(data, buffer.data + at, rest)
            free(buffer.data)
            buffer.data = data
            buffer.size = buffer.capacity = rest
            return True
    if at < MOVE_BYTES or at < rest:
        return False
    memmove(buffer.data, buffer.data + at, rest)
    buffer.size = rest
    return True


cdef ssize_t _give_data(nghttp2_session* session, int32_t stream_id, uint8_t* out, size_t room,
                        uint32_t* flags, nghttp2_data_source* source, void* user_data) noexcept nogil:
    """A data provider: what is ready of a stream's replies, and its trailers behind the last."""
    cdef Stream* stream = <Stream*>source.ptr
    cdef Connection* connection = stream.connection
    cdef size_t at = <size_t>(stream.sent - stream.out_base)
    cdef size_t n = <size_t>(stream.ready - stream.sent)
    cdef nghttp2_nv headers[MOST_STATUS_HEADERS]
    cdef char digits[2]
    if n > room:
        n = room
    if n:
        memcpy(out, stream.outward.data + at, n)
        stream.sent += n
        connection.unsent -= n
        connection.window_bytes += n
        connection.took_ns = connection.loop.now_ns
        at += n
        if _forget(connection.loop, &stream.outward, at):
            stream.out_base += at
            connection_let_go(connection, at)
    if stream.is_ended and stream.n_parked == 0 and stream.sent == _out_end(stream):
        flags[0] = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        if nghttp2_submit_trailer(session, stream_id, headers, _status_headers(stream, headers, digits)) != 0:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        return <ssize_t>n
    if n == 0:
        stream.is_deferred = True
        return NGHTTP2_ERR_DEFERRED
    return <ssize_t>n


cdef void _respond(Stream* stream) noexcept nogil:
    """Has nghttp2 send what may be sent by now."""
    cdef Connection* connection = stream.connection
    cdef nghttp2_data_provider provider
    cdef nghttp2_nv headers[3 + MOST_STATUS_HEADERS]
    cdef char digits[2]
    cdef char http[3]
    cdef int n = 2, failed = 0
    cdef bint is_done = stream.is_ended and stream.n_parked == 0
    if stream.is_responded:
        if stream.is_deferred and (stream.ready > stream.sent or is_done):
            stream.is_deferred = False
            failed = nghttp2_session_resume_data(connection.session, stream.id)
    elif stream.http_status:
        http[0] = <char>(c'0' + stream.http_status // 100)
        http[1] = <char>(c'0' + stream.http_status // 10 % 10)
        http[2] = <char>(c'0' + stream.http_status % 10)
        headers[0] = _header(b":status", http, 3)
        failed = nghttp2_submit_response(connection.session, stream.id, headers, 1, NULL)
        stream.is_responded = True
    elif is_done or stream.ready > stream.sent:
        headers[0] = _header(b":status", b"200", 3)
        headers[1] = _header(b"content-type", b"application/grpc", 16)
        headers[0].flags |= NGHTTP2_NV_FLAG_NO_COPY_VALUE
        headers[1].flags |= NGHTTP2_NV_FLAG_NO_COPY_VALUE
        stream.is_responded = True
        if stream.ready > stream.sent:
            provider.source.ptr = stream
            provider.read_callback = _give_data
            failed = nghttp2_submit_response(connection.session, stream.id, headers, 2, &provider)
        else:  # trailers only
            if stream.has_foreign_encoding:
                headers[n] = _header(b"grpc-accept-encoding", b"identity", 8)
                n += 1
            n += _status_headers(stream, headers + n, digits)
            failed = nghttp2_submit_response(connection.session, stream.id, headers, n, NULL)
    if failed:
        nghttp2_submit_rst_stream(connection.session, NGHTTP2_FLAG_NONE, stream.id, NGHTTP2_INTERNAL_ERROR)
    connection_dirty(connection)


cdef void _end(Stream* stream, int status, const uint8_t* words, size_t words_bytes, const uint8_t* kind,
               size_t kind_bytes) noexcept nogil:
    """The stream's status. What is parked is still answered first."""
    cdef Connection* connection = stream.connection
    if stream.is_ended:
        return
    stream.is_ended = True
    stream.status = status
    stream.is_unknown |= stream.is_busy and _writes(stream)  # it may be being applied
    _tell_cancelled(stream)
    stream.words, stream.words_bytes = words, words_bytes
    stream.kind, stream.kind_bytes = kind, kind_bytes
    _uncount(connection.loop.host, stream)
    if status == 0:
        _earn(connection, CREDIT_PER_ANSWER)
    # What it has sent beyond is of no use to anybody.
    connection_let_go(connection, _unread(stream))
    spares_take(&connection.loop.spares, &stream.inward)
    stream.inward_at = 0
    _time_no_more(stream)
    _wait_no_more(stream)
    if stream.unconsumed:
        nghttp2_session_consume_stream(connection.session, stream.id, stream.unconsumed)
        stream.unconsumed = 0
    _respond(stream)


cdef inline bint _writes(const Stream* stream) noexcept nogil:
    """Whether its messages are written by the dispatcher. Python's methods on this port only read."""
    cdef int method = _target(stream).method if stream.target >= 0 else PYTHON_METHOD
    return method >= 0 and not _reads(method)


cdef int _kind(const Stream* stream) noexcept nogil:
    """Of what it takes a place, if of any."""
    cdef const Target* target
    if stream.target < 0:
        return NO_PLACE
    target = _target(stream)
    if target.method == PYTHON_METHOD:
        return KIND_OTHERS
    if target.method == HEALTH_CHECK or target.method == HEALTH_WATCH:
        return KIND_WATCHES
    if target.streams_requests:
        return KIND_STREAMS
    return KIND_READS if target.method == METHOD_READ else KIND_WRITES


cdef void _refuse(Stream* stream, int kind) noexcept nogil:
    cdef HostC* host = stream.connection.loop.host
    cdef const Refusal* refusal = &host.refusals[kind]
    if not stream.is_ended:
        fs_add(&host.counts.turned_away, 1)
        fs_add(&host.counts.refusals[kind][_kind(stream)], 1)
    _end(stream, refusal.status, refusal.words, refusal.words_bytes, refusal.kind, refusal.kind_bytes)


cdef bint _append(Stream* stream, const uint8_t* message, size_t size) noexcept nogil:
    """A framed message behind the stream's replies; False, and nothing appended, where there is no memory."""
    cdef Connection* connection = stream.connection
    cdef uint8_t* out
    out = spares_extend(&connection.loop.spares, &stream.outward, size + PREFIX_BYTES)
    if out == NULL:
        return False
    _frame(out, size)
    memcpy(out + PREFIX_BYTES, message, size)
    connection_hold(connection, size + PREFIX_BYTES)
    return True


cdef void _frame(uint8_t* out, size_t size) noexcept nogil:
    """The prefix of a message of so many bytes."""
    out[0] = 0
    out[1] = <uint8_t>(size >> 24)
    out[2] = <uint8_t>(size >> 16)
    out[3] = <uint8_t>(size >> 8)
    out[4] = <uint8_t>size


cdef bint _take_reply(Stream* stream, Call* call) noexcept nogil:
    """As _append, of a Call's reply, which has room for its prefix in front. A large one is not copied: its
    memory goes with it, where that is not mostly empty.
    """
    cdef Buffer* out = &stream.outward
    cdef Buffer* reply = &call.reply
    cdef size_t size = reply.size
    cdef Buffer empty
    if size < ADOPT_BYTES or out.size or size < reply.capacity // 2:
        return _append(stream, reply.data + PREFIX_BYTES, size - PREFIX_BYTES)
    _frame(reply.data, size - PREFIX_BYTES)
    empty = out[0]
    out.data, out.size, out.capacity = reply.data, size, reply.capacity
    reply.data, reply.size, reply.capacity = empty.data, 0, empty.capacity
    connection_hold(stream.connection, size)
    return True


cdef void _make_ready(Stream* stream, uint64_t end) noexcept nogil:
    """The replies up to this logical offset may be sent."""
    cdef Connection* connection = stream.connection
    if connection.unsent == 0:
        connection.took_ns = connection.loop.now_ns
    connection.unsent += <size_t>(end - stream.ready)
    stream.ready = end


cdef bint _park(Stream* stream, const Call* call) noexcept nogil:
    """The reply just appended waits for its position."""
    cdef LoopC* loop = stream.connection.loop
    cdef uint32_t window = loop.host.stream_window
    cdef Parked* parked
    if _target(stream).streams_requests and stream.ring == &stream.one and window > 1:
        parked = <Parked*>malloc(window * sizeof(Parked))
        if parked == NULL:
            return False
        stream.ring = parked
    parked = &stream.ring[(stream.ring_first + stream.n_parked) % window if stream.ring != &stream.one else 0]
    parked.position = call.position
    parked.end = _out_end(stream)
    parked.ack_at = parked.end - call.ack_back
    parked.began_ns = call.began_ns
    parked.since_ns = loop.now_ns
    stream.n_parked += 1
    if stream.n_parked == 1:
        stream.parked_previous = NULL
        stream.parked_next = loop.parked
        if loop.parked != NULL:
            loop.parked.parked_previous = stream
        loop.parked = stream
        fs_store(&loop.n_parked, loop.n_parked + 1)
    if stream.timer and stream.deadline_ns:
        _time(stream)
    return True


cdef bint _goes_without_words(const HostC* host, const Call* call) noexcept nogil:
    """Whether a failure does: it would hold its Call until the desk gets to it, and so many hold half of all
    already. What a client cannot cause at will has its words: what was applied, and is in doubt.
    """
    cdef uint64_t most = min(<uint64_t>MOST_WORDLESS, <uint64_t>host.dispatcher.max_calls // 2)
    return (fs_load(&host.n_wordless) >= most and call.fault != FAULT_LOST
            and call.fault != FAULT_UNANSWERED)


cdef void _have_words_made(HostC* host, Errand* errand) noexcept nogil:
    errand.kind = ERRAND_WORDS
    fs_add(&host.n_wordless, 1)
    queue_put(&host.desk, errand)


cdef void _go_without_words(Stream* stream, Call* call, int kind) noexcept nogil:
    """A call has failed, and its own words cannot be had: the refusal's are for it."""
    cdef HostC* host = stream.connection.loop.host
    stream.is_unknown |= dispatcher_is_unknown(call)
    dispatcher_finish(host.dispatcher, call.method, call.began_ns, host.refusals[kind].status)
    dispatcher_give(host.dispatcher, call)
    _refuse(stream, kind)


cdef void _ask_for_words(Stream* stream, Call* call) noexcept nogil:
    """A call has failed: Python says why. The call is given back there."""
    cdef LoopC* loop = stream.connection.loop
    cdef Errand* errand = errand_new(ERRAND_WORDS, 0)
    if errand == NULL:
        # Not REFUSE_MEMORY: what it is about was applied.
        _go_without_words(stream, call, REFUSE_LOST if call.fault == FAULT_LOST else REFUSE_DEADLINE)
        return
    _address(stream, errand)
    errand.call = call
    stream.is_busy = True
    _have_words_made(loop.host, errand)


cdef void _settle(Stream* stream, Call* call, int answer) noexcept nogil:
    """What becomes of a call that was run without a fault."""
    cdef HostC* host = stream.connection.loop.host
    cdef bint is_write = not _reads(call.method)
    cdef bint is_appended
    cdef size_t size = call.reply.size
    # An error that the stream ends in may hide its answer: gRPC's clients drop what they have not read.
    stream.is_unknown |= is_write and _target(stream).streams_requests
    # What was applied is answered, room or not: a refusal would have it sent again.
    is_appended = (is_write or _has_room(stream.connection, size)) and _take_reply(stream, call)
    if is_appended and answer == ANSWER_PARKED and _park(stream, call):
        dispatcher_give(host.dispatcher, call)
        _unpark(stream)  # it may have become durable before the sync thread could see that somebody waits
        return
    dispatcher_finish(host.dispatcher, call.method, call.began_ns,
                      0 if is_appended and answer == ANSWER_DONE
                      else host.refusals[<int>(REFUSE_UNANSWERED if is_write else REFUSE_ROOM)].status)
    if is_appended and answer != ANSWER_DONE:
        stream.outward.size -= size
        connection_let_go(stream.connection, size)
    dispatcher_give(host.dispatcher, call)
    if is_write and (not is_appended or answer != ANSWER_DONE):
        stream.is_unknown = True
        _refuse(stream, REFUSE_UNANSWERED)
    elif not is_appended or answer != ANSWER_DONE:
        _refuse(stream, REFUSE_ROOM)
    elif stream.n_parked == 0:
        _make_ready(stream, _out_end(stream))
        _after_answer(stream)
    else:  # behind one that waits: a duplicate of what is durable, a batch that kept nothing
        stream.ring[(stream.ring_first + stream.n_parked - 1) % host.stream_window
                    if stream.ring != &stream.one else 0].end = _out_end(stream)


cdef void _after_answer(Stream* stream) noexcept nogil:
    """A reply may leave."""
    if _target(stream).streams_requests:
        _earn(stream.connection, CREDIT_PER_ANSWER)
        _respond(stream)
    else:
        _end(stream, 0, NULL, 0, NULL, 0)


cdef bint _has_waited(const Stream* stream, const Parked* parked) noexcept nogil:
    """Whether a reply has waited for the disk for as long as it may."""
    cdef const LoopC* loop = stream.connection.loop
    return (stream.deadline_ns != 0 and loop.now_ns >= stream.answer_ns
            or loop.now_ns - parked.since_ns >= loop.host.durable_wait_ns)


cdef void _unpark(Stream* stream) noexcept nogil:
    """Lets go what is durable of a stream's parked replies; and what has no more time to become so, as no
    more than applied. Once the disk has failed that is not certain either: see loop_unpark.
    """
    cdef LoopC* loop = stream.connection.loop
    cdef HostC* host = loop.host
    cdef uint64_t durable = journal_durable(host.dispatcher.engine.journal)
    cdef Parked* parked
    cdef bint has_moved = False
    while stream.n_parked:
        parked = &stream.ring[stream.ring_first]
        if parked.position > durable:
            if fs_load(&host.has_failed) or not _has_waited(stream, parked):
                break
            say_applied(stream.outward.data + (parked.ack_at - stream.out_base))
        _make_ready(stream, parked.end)
        dispatcher_finish(host.dispatcher, _target(stream).method, parked.began_ns, 0)
        stream.n_parked -= 1
        if stream.ring != &stream.one:
            stream.ring_first = (stream.ring_first + 1) % host.stream_window
        has_moved = True
    if not has_moved:
        return
    if stream.n_parked == 0:
        _unlink_parked(loop, stream)
        fs_store(&loop.n_parked, loop.n_parked - 1)
    if stream.is_ended:
        _respond(stream)
    else:
        _after_answer(stream)


cdef void _give_up_parked(Stream* stream, Call* call) noexcept nogil:
    """The first parked reply will not be sent, because the disk has failed: nor will those behind it."""
    cdef LoopC* loop = stream.connection.loop
    cdef bint has_words = not stream.is_ended  # drained, or ended by a message behind
    stream.is_unknown = True
    _drop_parked(loop, stream, 14, has_words)
    if not has_words:
        dispatcher_give(loop.host.dispatcher, call)
        stream.is_ended = False
        _refuse(stream, REFUSE_LOST)
        return
    stream.is_ending = True
    _time_no_more(stream)
    _ask_for_words(stream, call)


# -- requests
# --------------------------------------------------------------------------------------------------

cdef bint _count(Stream* stream) noexcept nogil:
    """Whether one more call may be under way that is not answered where it is read."""
    cdef Connection* connection = stream.connection
    cdef int kind = _kind(stream)
    if stream.place == NO_PLACE and place_take(&connection.loop.host.places, &connection.holder, kind):
        stream.place = kind
    return stream.place != NO_PLACE


cdef bint _send_errand(Stream* stream, Queue* queue, Errand* errand) noexcept nogil:
    if errand == NULL:
        _refuse(stream, REFUSE_MEMORY)
        return False
    _address(stream, errand)
    errand.target = stream.target
    errand.deadline_ns = stream.deadline_ns
    queue_put(queue, errand)
    return True


cdef void _drop_inward(Stream* stream, size_t n) noexcept nogil:
    stream.inward_at += n
    if _forget(stream.connection.loop, &stream.inward, stream.inward_at):
        stream.inward_at = 0
    connection_let_go(stream.connection, n)


cdef bint _take_rest(Stream* stream, size_t n) noexcept nogil:
    """Gives `inward` memory of its own for what is behind its next n bytes; False where there is none."""
    cdef Buffer fresh
    cdef size_t rest = _unread(stream) - n
    cdef uint8_t* behind
    memset(&fresh, 0, sizeof(Buffer))
    fresh.max_bytes = stream.inward.max_bytes
    if rest:
        behind = buffer_extend(&fresh, rest)
        if behind == NULL:
            return False
        memcpy(behind, stream.inward.data + stream.inward_at + n, rest)
    stream.inward = fresh
    stream.inward_at = 0
    return True


cdef Errand* _hand_out(Stream* stream, int kind, size_t size) noexcept nogil:
    """An errand with the message at the head of `inward`, whose memory goes with it where that is not mostly
    others'; NULL where there is no memory.
    """
    cdef Connection* connection = stream.connection
    cdef size_t whole = PREFIX_BYTES + size
    cdef bint is_copied = _unread(stream) - whole > whole
    cdef Errand* errand = errand_new(kind, size if is_copied else 0)
    cdef Buffer kept = stream.inward
    cdef size_t at = stream.inward_at + PREFIX_BYTES
    if errand != NULL and is_copied:
        if size:
            memcpy(errand.memory, kept.data + at, size)
        _drop_inward(stream, whole)
        connection_hold(connection, whole)
    elif errand != NULL and _take_rest(stream, whole):
        errand.memory = kept.data
        errand.data = kept.data + at
        errand.size = size
    elif errand != NULL:
        errand_free(errand)
        errand = NULL
    if errand != NULL:
        # While others have it, it counts for its connection: a client that gives up, or has no time, makes no
        # room for more.
        errand.held = whole
        _send_out(connection, errand)
        stream.is_busy = True
    return errand


cdef void _send_to_bench(Stream* stream, size_t size, int bench) noexcept nogil:
    cdef Connection* connection = stream.connection
    cdef Errand* errand = _hand_out(stream, ERRAND_RUN, size)
    if errand != NULL:
        errand.place = stream.place
        stream.place = NO_PLACE
        errand.method = _target(stream).method
        if _reads(errand.method):
            stream.read = errand
        errand.began_ns = <uint64_t>connection.loop.now_ns
    _send_errand(stream, &connection.loop.host.benches[bench], errand)


cdef Call* _new_call(HostC* host) noexcept nogil:
    """With room for a prefix in front of its reply; NULL where there is none."""
    cdef Call* call = dispatcher_take(host.dispatcher)
    if call != NULL and buffer_extend(&call.reply, PREFIX_BYTES) == NULL:
        dispatcher_give(host.dispatcher, call)
        return NULL
    return call


cdef void _say_health(Stream* stream, int status) noexcept nogil:
    cdef uint8_t message[2]
    message[0] = 1 << 3  # HealthCheckResponse.status, a varint
    message[1] = <uint8_t>status
    if _append(stream, message, 2):
        _make_ready(stream, _out_end(stream))
    else:
        _refuse(stream, REFUSE_MEMORY)


cdef bint _is_known(const HostC* host, const Cursor* name) noexcept nogil:
    cdef size_t n = <size_t>(name.end - name.at)
    cdef int i
    for i in range(host.n_services):
        if host.services[i].name_bytes == n and memcmp(host.services[i].name, name.at, n) == 0:
            return True
    return False


cdef void _tell_health(Stream* stream, size_t size) noexcept nogil:
    """Answers a Health.Check or begins a Health.Watch, here and now: whoever asks how the server is takes no
    thread and no place from those whose calls it is there for.
    """
    cdef LoopC* loop = stream.connection.loop
    cdef bint watches = _target(stream).method == HEALTH_WATCH
    cdef Cursor c, name
    cdef uint32_t tag
    cdef bint is_known, is_read = size <= INLINE_BYTES
    c.at = stream.inward.data + stream.inward_at + PREFIX_BYTES
    c.end = c.at + size
    name.at = name.end = c.at
    while is_read and c.at < c.end:
        is_read = take_tag(&c, &tag)
        if is_read and tag == (1 << 3 | 2):
            is_read = take_slice(&c, &name) and is_utf8(name.at, <size_t>(name.end - name.at))
        elif is_read:
            is_read = skip(&c, tag, 0)
    is_known = is_read and _is_known(loop.host, &name)
    _spend(stream.connection, size, 0)
    _drop_inward(stream, PREFIX_BYTES + size)
    if not is_read:
        _refuse(stream, REFUSE_HEALTH)
    elif not watches and not is_known:
        _refuse(stream, REFUSE_SERVICE)
    elif not watches:
        _say_health(stream, NOT_HEALTHY if loop.is_draining else HEALTHY)
        _end(stream, 0, NULL, 0, NULL, 0)
    elif stream.connection.is_draining:
        _end_watch(stream)
    elif not _count(stream):
        _refuse(stream, REFUSE_WATCHES)
    else:
        stream.is_watch = True
        stream.connection.n_watches += 1
        _note_idle(stream.connection)
        stream.knows_service = is_known
        _say_health(stream, HEALTHY if is_known else UNKNOWN_HEALTH)
        _respond(stream)


cdef void _end_watch(Stream* stream) noexcept nogil:
    """Its connection ends. That the server does is the last thing that it is told; else it watches anew."""
    if not stream.connection.loop.is_draining:
        _refuse(stream, REFUSE_AGED)
        return
    if stream.knows_service:
        _say_health(stream, NOT_HEALTHY)
    _end(stream, 0, NULL, 0, NULL, 0)


cdef void _run(Stream* stream, size_t size) noexcept nogil:
    """Runs the message at the head of `inward`, or has it run."""
    cdef HostC* host = stream.connection.loop.host
    cdef int method = _target(stream).method
    cdef Errand* errand
    cdef Call* call
    cdef int answer, bench
    if method == HEALTH_CHECK or method == HEALTH_WATCH:
        _tell_health(stream, size)
        return
    if method == PYTHON_METHOD:
        _send_errand(stream, &host.desk, _hand_out(stream, ERRAND_MESSAGE, size))
        return
    # One that is answered here and now takes no place from others, nor can they leave it none.
    if (method != METHOD_READ or size > INLINE_BYTES) and not _count(stream):
        _refuse(stream, REFUSE_CALLS)
        return
    if not _has_room(stream.connection, 0):
        _refuse(stream, REFUSE_ROOM)
        return
    if stream.deadline_ns and stream.connection.loop.now_ns >= stream.deadline_ns:
        _too_late(stream)
        return
    if size > INLINE_BYTES:
        fs_add(&host.counts.large, 1)
        _send_to_bench(stream, size, BENCH_LARGE)
        return
    call = _new_call(host)
    if call == NULL:
        _refuse(stream, REFUSE_CALLS)
        return
    answer = dispatcher_try(host.dispatcher, call, method,
                            stream.inward.data + stream.inward_at + PREFIX_BYTES, size)
    _spend(stream.connection, size, 0 if answer == ANSWER_LARGE else call.cost)
    if answer == ANSWER_LARGE:
        fs_add(&host.counts.large, 1)
        dispatcher_give(host.dispatcher, call)
        if _count(stream):
            _send_to_bench(stream, size, BENCH_LARGE)
        else:
            _refuse(stream, REFUSE_CALLS)
        return
    if answer == ANSWER_BUSY:
        bench = BENCH_READS if _reads(method) else BENCH_WRITES
        if fs_load(&host.benches[bench].n) < MOST_WAITING and _count(stream):
            dispatcher_give(host.dispatcher, call)
            _send_to_bench(stream, size, bench)
            return
        # Too many wait: clients had better wait too than be refused.
        answer = dispatcher_run(host.dispatcher, call, method,
                                stream.inward.data + stream.inward_at + PREFIX_BYTES, size)
    if answer == ANSWER_ERROR and _goes_without_words(host, call):
        _go_without_words(stream, call, REFUSE_CALLS)
        return
    if answer == ANSWER_ERROR:
        # The words may lead into the message, which has to stay where it is until they are made.
        errand = errand_new(ERRAND_WORDS, 0)
        if errand != NULL:
            errand.memory = stream.inward.data
            errand.call = call
            errand.held = _unread(stream)
            _address(stream, errand)
            _send_out(stream.connection, errand)
            _take_rest(stream, _unread(stream))  # nothing: what is behind is not run any more
            stream.is_busy = True
            _have_words_made(host, errand)
        else:
            _go_without_words(stream, call,
                              REFUSE_UNANSWERED if dispatcher_is_unknown(call) else REFUSE_MEMORY)
        return
    _drop_inward(stream, PREFIX_BYTES + size)
    _settle(stream, call, answer)


cdef void _spend(Connection* connection, size_t size, uint32_t cost) noexcept nogil:
    """What a message took that was run here, of its connection's turn."""
    cdef LoopC* loop = connection.loop
    if connection.round != loop.round:
        connection.round = loop.round
        connection.spent = 0
    connection.spent += CALL_COST + <uint32_t>size // BYTES_A_COST + cost


cdef inline bint _has_had_its_turn(const Connection* connection) noexcept nogil:
    return connection.round == connection.loop.round and connection.spent >= TURN_COST


cdef void _wait_for_turn(Connection* connection) noexcept nogil:
    """If that is what its streams wait for; else it is the client, and they go on as it takes replies."""
    cdef LoopC* loop = connection.loop
    if (connection.waiting != NULL and connection.unsent <= FULL_BYTES and not connection.is_in_turns
            and _has_had_its_turn(connection)):
        connection.is_in_turns = True
        connection.next_turn = loop.turns
        loop.turns = connection


cdef bint _is_blocked(Stream* stream) noexcept nogil:
    """Whether a message that is there has to wait: for replies to leave, or for the others' turn."""
    cdef Connection* connection = stream.connection
    if stream.is_busy or (stream.n_parked and stream.n_parked >= connection.loop.host.stream_window):
        return True
    if connection.unsent > FULL_BYTES or _has_had_its_turn(connection):
        _wait(stream)
        _wait_for_turn(connection)
        return True
    return False


cdef void _go_on(Connection* connection) noexcept nogil:
    """With what waits, one message after the other's, for as long as it may."""
    cdef Stream* stream
    while (connection.waiting != NULL and connection.unsent <= FULL_BYTES
           and not _has_had_its_turn(connection)):
        stream = connection.waiting
        _wait_no_more(stream)
        _advance(stream)
    _wait_for_turn(connection)


cdef void _advance(Stream* stream) noexcept nogil:
    """Runs what can be run of what has come."""
    cdef Connection* connection = stream.connection
    cdef HostC* host = connection.loop.host
    cdef Target* target
    cdef const uint8_t* head
    cdef size_t size
    if stream.target < 0 or stream.is_ended or stream.is_ending:
        return
    target = _target(stream)
    if stream.is_streaming and connection.is_draining and not stream.is_busy:
        _refuse(stream, REFUSE_DRAINED if connection.loop.is_draining else REFUSE_AGED)
        return
    while not stream.is_ended:
        _wait_no_more(stream)
        if _unread(stream) < PREFIX_BYTES:
            break
        head = stream.inward.data + stream.inward_at
        if head[0]:
            _refuse(stream, REFUSE_COMPRESSED)
            return
        size = <size_t>head[1] << 24 | <size_t>head[2] << 16 | <size_t>head[3] << 8 | head[4]
        if size > host.max_message_bytes:
            _refuse(stream, REFUSE_LENGTH)
            return
        if _unread(stream) - PREFIX_BYTES < size:
            break
        stream.partial_ns = 0
        if not target.streams_requests:
            if stream.has_run or _unread(stream) - PREFIX_BYTES > size:
                _refuse(stream, REFUSE_CARDINALITY)
                return
            if not stream.is_half_closed:
                return
        if _is_blocked(stream):
            return
        if not target.streams_requests:
            stream.has_run = True
        _run(stream, size)
    if stream.is_ended:
        return
    # The next message is not whole: the client may send more.
    if target.streams_requests and _unread(stream) and stream.partial_ns == 0:
        stream.partial_ns = connection.loop.now_ns
        if not _time(stream):
            _refuse(stream, REFUSE_MEMORY)
            return
    if stream.unconsumed:
        nghttp2_session_consume_stream(connection.session, stream.id, stream.unconsumed)
        stream.unconsumed = 0
        connection_dirty(connection)
    if not stream.is_half_closed or stream.is_busy:
        return
    if _unread(stream):
        _refuse(stream, REFUSE_TRUNCATED)
    elif target.method == PYTHON_METHOD:
        if not target.streams_requests and not stream.has_run:
            _refuse(stream, REFUSE_CARDINALITY)
        elif not stream.is_told_half:
            stream.is_told_half = True
            _send_errand(stream, &host.desk, errand_new(ERRAND_HALF_CLOSE, 0))
    elif target.streams_requests:
        if stream.n_parked == 0:
            _end(stream, 0, NULL, 0, NULL, 0)
    elif not stream.has_run:
        _refuse(stream, REFUSE_CARDINALITY)


cdef int _find_target(const HostC* host, const uint8_t* path, size_t n) noexcept nogil:
    cdef int i
    for i in range(host.n_targets):
        if host.targets[i].path_bytes == n and memcmp(host.targets[i].path, path, n) == 0:
            return i
    return -1


cdef void _start(Stream* stream) noexcept nogil:
    """The request's headers are there."""
    cdef LoopC* loop = stream.connection.loop
    cdef HostC* host = loop.host
    cdef Target* target
    cdef Errand* errand
    if stream.header_bytes > MAX_HEADER_BYTES:
        _refuse(stream, REFUSE_METADATA)
        return
    if not stream.is_post or not stream.is_grpc:
        stream.http_status = 415 if stream.is_post else 405
        _end(stream, 2, NULL, 0, NULL, 0)
        return
    if stream.target < 0:
        _refuse(stream, REFUSE_METHOD)
        return
    if stream.has_foreign_encoding:
        _refuse(stream, REFUSE_ENCODING)
        return
    if stream.has_bad_timeout:
        _refuse(stream, REFUSE_TIMEOUT)
        return
    if stream.deadline_ns and loop.now_ns >= stream.deadline_ns:
        _refuse(stream, REFUSE_DEADLINE)
        return
    target = _target(stream)
    if (stream.deadline_ns or not target.streams_requests) and not _time(stream):
        _refuse(stream, REFUSE_MEMORY)
        return
    if target.method >= 0 and target.streams_requests:
        if loop.is_draining:
            _refuse(stream, REFUSE_DRAINING)
            return
        if not _count(stream):
            _refuse(stream, REFUSE_STREAMS)
            return
        stream.is_streaming = True
    if target.method == PYTHON_METHOD and not _count(stream):
        _refuse(stream, REFUSE_CALLS)
        return
    if target.method == PYTHON_METHOD:
        errand = errand_new(ERRAND_START, 0)
        if errand != NULL:
            _send_out(stream.connection, errand)
        stream.is_told = _send_errand(stream, &host.desk, errand)


# -- what nghttp2 tells
# ----------------------------------------------------------------------------------------

cdef void _note_opened(Connection* connection, int32_t id) noexcept nogil:
    """A stream of the client's, greater than all before."""
    cdef uint32_t skipped = <uint32_t>(id - connection.last_id) // 2
    if skipped > 63 or connection.last_id == 0:
        connection.opened = connection.unended = 0
    else:
        connection.opened <<= skipped
        connection.unended <<= skipped
    connection.last_id = id
    connection.opened |= 1
    connection.unended |= 1


cdef void _note_ended(Connection* connection, int32_t id) noexcept nogil:
    """The client has said that it sends no more on a stream that is closed now."""
    cdef uint32_t i = <uint32_t>(connection.last_id - id) // 2
    if i < 64:
        connection.unended &= ~(<uint64_t>1 << i)


cdef bint _is_closed(Connection* connection, int32_t id) noexcept nogil:
    """Or was never opened, although one behind it has been."""
    return (id & 1 and id <= connection.last_id
            and nghttp2_session_get_stream_user_data(connection.session, id) == NULL)


cdef void _judge_closed(Connection* connection, const nghttp2_frame_hd* hd) noexcept nogil:
    """A frame on a stream that is closed, or never was (RFC 9113, 5.1 and 5.1.1): nghttp2 takes any for what
    crossed a reset of its own. That it is only where we have closed the stream before the client had.
    """
    cdef uint32_t i = <uint32_t>(connection.last_id - hd.stream_id) // 2
    cdef uint64_t bit = <uint64_t>1 << i if i < 64 else 0
    if hd.type == NGHTTP2_PRIORITY:
        return
    if bit and not connection.opened & bit:
        _break(connection, NGHTTP2_PROTOCOL_ERROR, b"a frame on a stream smaller than others before it")
    elif hd.type == NGHTTP2_DATA or hd.type == NGHTTP2_HEADERS:
        if bit and not connection.unended & bit:
            _break(connection, NGHTTP2_STREAM_CLOSED, b"a frame on a stream that its sender has closed")
        elif hd.type == NGHTTP2_DATA and connection.crossing >= <int64_t>hd.length:
            connection.crossing -= <int64_t>hd.length
        else:
            _charge(connection)


cdef int _on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* hd,
                         void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    if hd.type == NGHTTP2_HEADERS and hd.stream_id & 1 and hd.stream_id > connection.last_id:
        _note_opened(connection, hd.stream_id)
    elif _is_closed(connection, hd.stream_id):
        _judge_closed(connection, hd)
    if hd.type == NGHTTP2_DATA:
        if hd.length == 0 and not hd.flags & NGHTTP2_FLAG_END_STREAM:
            _charge(connection)
    elif hd.type != NGHTTP2_HEADERS:
        _charge(connection)
    # Behind what was too much nothing is read: an answer to it would leave before the reason for the end.
    return NGHTTP2_ERR_CALLBACK_FAILURE if connection.is_over else 0


cdef int _on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame,
                           void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef Stream* stream
    # GOAWAY is on its way, and does not name this call: its client sends it again elsewhere.
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST or connection.is_over or connection.is_going:
        return 0
    stream = NULL
    if connection.n_streams < connection.loop.host.max_streams_per_connection:
        stream = _new_stream(connection, frame.hd.stream_id)
    if stream == NULL:
        # This stream alone is refused, whether or not its client has seen the limit (5.1.2).
        return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id,
                                         NGHTTP2_REFUSED_STREAM)
    connection.heading = stream
    nghttp2_session_set_stream_user_data(session, frame.hd.stream_id, stream)
    return 0


cdef int _on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                    size_t name_bytes, const uint8_t* value, size_t n, uint8_t flags,
                    void* user_data) noexcept nogil:
    cdef Stream* stream
    cdef int64_t timeout
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if stream == NULL:
        return 0
    stream.header_bytes += name_bytes + n + 32
    if stream.header_bytes > BOMB_BYTES:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if _is(name, name_bytes, b":path"):
        stream.target = _find_target(stream.connection.loop.host, value, n)
    elif _is(name, name_bytes, b":method"):
        stream.is_post = _is(value, n, b"POST")
    elif _is(name, name_bytes, b"content-type"):
        stream.is_grpc = is_grpc_content(value, n)
    elif _is(name, name_bytes, b"grpc-encoding"):
        stream.has_foreign_encoding = not _is(value, n, b"identity")
    elif _is(name, name_bytes, b"grpc-timeout"):
        timeout = grpc_timeout_ns(value, n)
        if timeout < 0:
            stream.has_bad_timeout = True
        elif stream.deadline_ns == 0:
            stream.deadline_ns = stream.connection.loop.now_ns + timeout
            stream.answer_ns = stream.deadline_ns - max(timeout // ANSWER_PART, <int64_t>ANSWER_NS)
    return 0


cdef int _on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef HostC* host = connection.loop.host
    cdef Stream* stream
    cdef int64_t now = connection.loop.now_ns
    if frame.hd.type == NGHTTP2_SETTINGS:
        connection.is_settled = True
        return 0
    if frame.hd.type == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK:
            connection.pinged_ns = 0
        else:
            # gRPC's rule: pings are for silence, not for a connection that is talked on.
            if connection.client_pinged_ns and now - connection.client_pinged_ns < host.min_ping_ns:
                connection.strikes += 1
            connection.client_pinged_ns = now
            if connection.strikes > MOST_STRIKES:
                _calm(connection, b"too_many_pings")
        return 0
    stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if frame.hd.type == NGHTTP2_RST_STREAM:
        fs_add(&host.counts.resets, 1)
        if stream != NULL:
            stream.is_given_up = True
        return 0
    if frame.hd.type != NGHTTP2_DATA and frame.hd.type != NGHTTP2_HEADERS:
        return 0
    if frame.hd.type == NGHTTP2_HEADERS:
        if stream != NULL and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            connection.heading = NULL
            _start(stream)
    if stream != NULL and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream.is_half_closed = True
        _advance(stream)
    return 0


cdef int _on_data(nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* data,
                  size_t size, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, stream_id)
    cdef uint8_t* room
    nghttp2_session_consume_connection(session, size)
    if stream == NULL or stream.is_ended:
        nghttp2_session_consume_stream(session, stream_id, size)
        return 0
    room = NULL
    if _has_room(connection, size):
        room = spares_extend(&connection.loop.spares, &stream.inward, size)
    if room == NULL:
        nghttp2_session_consume_stream(session, stream_id, size)
        _refuse(stream, REFUSE_ROOM)
        return 0
    memcpy(room, data, size)
    connection_hold(connection, size)
    stream.unconsumed += size
    _advance(stream)
    return 0


cdef int _on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    if frame.hd.type == NGHTTP2_DATA or frame.hd.type == NGHTTP2_HEADERS:
        connection.strikes = 0
        connection.client_pinged_ns = 0
        if frame.hd.type == NGHTTP2_DATA and frame.hd.length:
            _earn(connection, CREDIT_PER_DATA)
        # Answered before all was sent: the client need not send the rest.
        if (frame.hd.flags & NGHTTP2_FLAG_END_STREAM
                and nghttp2_session_get_stream_remote_close(session, frame.hd.stream_id) == 0):
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR)
    elif frame.hd.type == NGHTTP2_RST_STREAM and frame.rst_stream.error_code != NGHTTP2_NO_ERROR:
        fs_add(&connection.loop.host.counts.streams_reset, 1)
        _charge(connection)  # the client made us reset it
    return 0


cdef int _on_stream_close(nghttp2_session* session, int32_t stream_id, uint32_t error_code,
                          void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef const HostC* host = connection.loop.host
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, stream_id)
    if stream != NULL and (stream.is_half_closed or stream.is_given_up):
        _note_ended(connection, stream_id)
    else:
        connection.crossing = min(<int64_t>STREAM_WINDOW_BYTES * host.max_streams_per_connection,
                                  connection.crossing + STREAM_WINDOW_BYTES)
    if stream != NULL:
        nghttp2_session_set_stream_user_data(session, stream_id, NULL)
        _free_stream(stream)
    return 0


# -- a connection
# ----------------------------------------------------------------------------------------------

cdef void _evict(Connection* connection) noexcept nogil:
    """Tells an idle one to go. It does not count any more, and has LINGER_NS at most."""
    cdef HostC* host = connection.loop.host
    connection.is_evicted = True
    fs_sub(&host.n_connections, 1)
    fs_sub(&connection.holder.peer.connections, 1)
    fs_add(&host.n_leaving, 1)
    fs_add(&host.counts.evicted, 1)
    if not connection.is_settled:
        connection.is_dead = True    # there is nobody to tell
    else:
        connection.is_over = True
        nghttp2_submit_goaway(connection.session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(connection.session), NGHTTP2_NO_ERROR,
                              NULL, 0)
    connection_dirty(connection)


cdef bint _make_room(LoopC* loop, const Peer* newcomer, bint of_its_own) noexcept nogil:
    """Has an idle connection go for one that comes: of a few, in turn, that of the peer which has most, and
    of its the longest idle; nobody's who has no more than the newcomer, but its own.
    """
    cdef Connection* connection = loop.idle_at
    cdef Connection* chosen = NULL
    cdef uint64_t n, most = 0
    cdef int _i
    if fs_load(&loop.host.n_leaving) >= MOST_LEAVING:
        return False
    for _i in range(<int>LOOKED_AT):
        if connection == NULL:
            connection = loop.idle_first
        if connection == NULL:
            break
        if (loop.now_ns - connection.idle_ns >= FRESH_NS and not connection.is_evicted
                and not connection.is_over and not connection.is_dead):
            n = fs_load(&connection.holder.peer.connections)
            if ((n > most or (n == most and connection.idle_ns < chosen.idle_ns))
                    and (connection.holder.peer == newcomer
                         or (not of_its_own and n > fs_load(&newcomer.connections)))):
                chosen = connection
                most = n
        connection = connection.idle_next
    loop.idle_at = connection
    if chosen != NULL:
        _evict(chosen)
    return chosen != NULL


cdef bint _may_connect(LoopC* loop, Peer* peer) noexcept nogil:
    """Counts one more connection of the peer, if it may have one."""
    cdef HostC* host = loop.host
    cdef uint64_t taken
    cdef int tries
    for tries in range(2):
        taken = fs_after_add(&host.n_connections, 1) - 1
        if peer_may_connect(peer, host.max_connections, taken):
            fs_add(&peer.connections, 1)
            return True
        fs_sub(&host.n_connections, 1)
        if tries or not _make_room(loop, peer, taken < host.max_connections):
            break
    fs_add(&host.counts.refused, 1)
    return False


cdef void _uncount_connection(Connection* connection) noexcept nogil:
    cdef HostC* host = connection.loop.host
    if connection.is_evicted:
        fs_sub(&host.n_leaving, 1)
    else:
        fs_sub(&host.n_connections, 1)
        fs_sub(&connection.holder.peer.connections, 1)


cdef void _free_gone(Connection* connection) noexcept nogil:
    peer_leave(&connection.loop.host.peers, connection.holder.peer, connection.loop.now_ns)
    free(connection)


cdef Connection* connection_open(LoopC* loop, uint64_t address) noexcept nogil:
    cdef HostC* host = loop.host
    cdef Peer* peer = peer_enter(&host.peers, address, loop.now_ns)
    cdef Connection* connection
    if peer == NULL:
        return NULL
    if not _may_connect(loop, peer):
        peer_leave(&host.peers, peer, loop.now_ns)
        return NULL
    connection = _new_connection(loop)
    if connection == NULL:
        fs_sub(&host.n_connections, 1)
        fs_sub(&peer.connections, 1)
        peer_leave(&host.peers, peer, loop.now_ns)
        return NULL
    fs_add(&host.counts.connections, 1)
    connection.holder.peer = peer
    connection.next = loop.connections
    if connection.next != NULL:
        connection.next.previous = connection
    loop.connections = connection
    loop.n_connections += 1
    _note_idle(connection)
    if loop.is_draining:
        connection_drain(connection)
    connection_dirty(connection)
    return connection


cdef Connection* _new_connection(LoopC* loop) noexcept nogil:
    cdef Connection* connection = <Connection*>calloc(1, sizeof(Connection))
    cdef nghttp2_settings_entry settings[3]
    cdef HostC* host = loop.host
    if connection == NULL:
        return NULL
    connection.loop = loop
    connection.fd = -1
    connection.pending.max_bytes = <size_t>-1 >> 1
    connection.credit = MOST_CREDIT
    connection.rest = PREFACE_BYTES
    connection.opened_ns = connection.heard_ns = connection.took_ns = connection.credited_ns = loop.now_ns
    if nghttp2_session_server_new2(&connection.session, host.callbacks, connection, host.option) != 0:
        free(connection)
        return NULL
    settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[0].value = MANY_STREAMS
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = STREAM_WINDOW_BYTES
    settings[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[2].value = MAX_HEADER_BYTES
    if (nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, settings, 3) != 0
            or nghttp2_session_set_local_window_size(connection.session, NGHTTP2_FLAG_NONE, 0,
                                                     CONNECTION_WINDOW_BYTES) != 0):
        nghttp2_session_del(connection.session)
        free(connection)
        return NULL
    return connection


cdef size_t _until_closed(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """How much of what came nghttp2 may have before it is to be asked which streams are closed: up to the end
    of an RST_STREAM, or to a DATA frame on a closed stream, which nghttp2 skips without a word.
    """
    cdef const uint8_t* head = connection.head
    cdef nghttp2_frame_hd hd
    cdef size_t at = 0, n, begun
    while at < size and not connection.is_over:
        n = min(connection.rest, size - at)
        at += n
        connection.rest -= n
        if connection.rest:
            break
        if connection.head_bytes == HEAD_BYTES:
            connection.head_bytes = 0
            if head[3] == NGHTTP2_RST_STREAM:
                break
        begun = at
        if connection.head_bytes == 0 and size - at >= HEAD_BYTES:
            memcpy(connection.head, data + at, HEAD_BYTES)
            connection.head_bytes = HEAD_BYTES
            at += HEAD_BYTES
        while at < size and connection.head_bytes < HEAD_BYTES:
            connection.head[connection.head_bytes] = data[at]
            connection.head_bytes += 1
            at += 1
        if connection.head_bytes < HEAD_BYTES:
            break
        connection.rest = <size_t>head[0] << 16 | <size_t>head[1] << 8 | head[2]
        hd.length = connection.rest
        hd.type = head[3]
        hd.flags = head[4]
        hd.stream_id = <int32_t>(<uint32_t>(head[5] & 0x7F) << 24 | <uint32_t>head[6] << 16
                                 | <uint32_t>head[7] << 8 | head[8])
        if hd.type == NGHTTP2_DATA and _is_closed(connection, hd.stream_id):
            _judge_closed(connection, &hd)
            if connection.is_over:
                return begun
    return at


cdef int connection_receive(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    cdef ssize_t n = 0
    cdef size_t at = 0, piece
    connection.heard_ns = connection.loop.now_ns
    connection_dirty(connection)
    while at < size and not connection.is_over:
        piece = _until_closed(connection, data + at, size - at)
        if piece:
            n = nghttp2_session_mem_recv(connection.session, data + at, piece)
        if n < 0 and not connection.is_over:
            fs_add(&connection.loop.host.counts.broken, 1)
            return -1
        at += piece
    if (nghttp2_session_get_outbound_queue_size(connection.session)
            > MOST_QUEUED + 4 * <size_t>connection.loop.host.max_streams_per_connection):
        fs_add(&connection.loop.host.counts.calm, 1)
        return -1
    return 0


cdef void _announce_limit(Connection* connection, uint8_t* frame) noexcept nogil:
    """Our SETTINGS, the first frame of all, say how many streams a client may have: see MANY_STREAMS."""
    cdef uint32_t n = connection.loop.host.max_streams_per_connection
    cdef uint8_t* value = frame + HEAD_BYTES + 2  # behind the frame's head and the name of its first setting
    value[0] = <uint8_t>(n >> 24)
    value[1] = <uint8_t>(n >> 16)
    value[2] = <uint8_t>(n >> 8)
    value[3] = <uint8_t>n
    connection.is_greeted = True


cdef ssize_t connection_send(Connection* connection, uint8_t* out, size_t room) noexcept nogil:
    cdef const uint8_t* data
    cdef ssize_t n
    cdef size_t size = 0
    # A frame is at most MAX_FRAME_BYTES, and what mem_send has given once it will not give again.
    while room - size >= <size_t>(1 << 14) + 9:
        n = nghttp2_session_mem_send(connection.session, &data)
        if n < 0 or <size_t>n > room - size:
            return -1
        if n == 0:
            # All that may be sent is. Streams that waited for it go on, and may have more.
            if connection.waiting == NULL or connection.unsent > FULL_BYTES:
                break
            _go_on(connection)
            if connection.is_in_turns or nghttp2_session_want_write(connection.session) == 0:
                break
            continue
        memcpy(out + size, data, <size_t>n)
        if not connection.is_greeted:
            _announce_limit(connection, out + size)
        size += <size_t>n
    if connection.unsent == 0:
        connection.took_ns = connection.loop.now_ns
    return <ssize_t>size


cdef bint connection_hears_no_more(Connection* connection) noexcept nogil:
    cdef Stream* stream = connection.streams
    cdef Stream* following
    connection.is_deaf = True
    while stream != NULL:
        following = stream.next
        if not (stream.is_half_closed and stream.n_parked == 0
                and (stream.is_ended or stream.is_waiting or stream.is_busy and not stream.is_told)):
            nghttp2_session_set_stream_user_data(connection.session, stream.id, NULL)
            _free_stream(stream)
        stream = following
    return connection.n_streams != 0


cdef bint connection_is_over(Connection* connection) noexcept nogil:
    if connection.is_over:
        return True
    return (nghttp2_session_want_read(connection.session) == 0
            and nghttp2_session_want_write(connection.session) == 0)


cdef void connection_drain(Connection* connection) noexcept nogil:
    cdef Stream* stream
    cdef Stream* following
    if connection.is_draining:
        return
    connection.is_draining = True
    connection.drained_ns = connection.loop.now_ns
    nghttp2_submit_shutdown_notice(connection.session)
    connection_dirty(connection)
    stream = connection.streams
    while stream != NULL:
        following = stream.next
        if stream.is_watch:
            _end_watch(stream)
        elif stream.is_streaming:
            _advance(stream)
        stream = following


cdef bint _takes_too_slowly(Connection* connection) noexcept nogil:
    """Looked at once in stall_ns, while there is always something for it to take."""
    cdef const HostC* host = connection.loop.host
    cdef int64_t now = connection.loop.now_ns
    cdef uint64_t taken
    cdef bint is_slow
    if connection.unsent == 0 and connection.pending.size == 0:
        connection.window_ns = 0
        return False
    if connection.window_ns == 0:
        connection.window_ns, connection.window_bytes = now, 0
    if now - connection.window_ns <= host.stall_ns:
        return False
    taken = connection.window_bytes * <uint64_t>NS_PER_S // <uint64_t>(now - connection.window_ns)
    is_slow = connection.unsent + connection.pending.size > <size_t>SLOW_BYTES and taken < host.min_rate
    connection.window_ns, connection.window_bytes = now, 0
    return is_slow


cdef void _end_age(Connection* connection) noexcept nogil:
    """What goes on ends now, but for what is being applied or waits for the disk."""
    cdef Stream* stream = connection.streams
    cdef Stream* following
    while stream != NULL:
        following = stream.next
        if (not stream.is_ended and not stream.is_ending and stream.n_parked == 0
                and not (stream.is_busy and stream.target >= 0 and _target(stream).method >= 0)):
            _refuse(stream, REFUSE_AGED)
        stream = following


cdef int connection_tick(Connection* connection) noexcept nogil:
    cdef LoopC* loop = connection.loop
    cdef HostC* host = loop.host
    cdef int64_t now = loop.now_ns
    cdef uint64_t zeros = 0
    if ((not connection.is_settled and now - connection.opened_ns > host.handshake_ns)
            or ((connection.unsent or connection.pending.size) and now - connection.took_ns > host.stall_ns)
            or (connection.heading != NULL and now - connection.heading.began_ns > host.handshake_ns)
            or (connection.pinged_ns and now - connection.pinged_ns > PONG_NS)):
        fs_add(&host.counts.stalled, 1)
        return -1
    if _takes_too_slowly(connection):
        fs_add(&host.counts.slow, 1)
        return -1
    if connection.is_settled and connection.pinged_ns == 0 and now - connection.heard_ns > KEEPALIVE_NS:
        connection.pinged_ns = now
        nghttp2_submit_ping(connection.session, NGHTTP2_FLAG_NONE, <const uint8_t*>&zeros)
        connection_dirty(connection)
    if (host.max_idle_ns and connection.n_streams == 0 and connection.is_settled
            and not connection.is_draining and now - connection.idle_ns > host.max_idle_ns):
        fs_add(&host.counts.idled, 1)
        connection_drain(connection)
    if host.max_age_ns and now - connection.opened_ns > host.max_age_ns:
        connection_drain(connection)
        if not loop.is_draining and now - connection.drained_ns > host.age_grace_ns:
            if now - connection.drained_ns > host.age_grace_ns + LAST_WORDS_NS:
                fs_add(&host.counts.aged, 1)
                return -1
            _end_age(connection)
    if connection.is_draining and not connection.is_going and now - connection.drained_ns > NOTICE_NS:
        connection.is_going = True
        nghttp2_submit_goaway(connection.session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(connection.session), NGHTTP2_NO_ERROR,
                              NULL, 0)
        connection_dirty(connection)
    return 0


cdef void connection_close(Connection* connection) noexcept nogil:
    cdef LoopC* loop = connection.loop
    cdef Connection** link = &loop.dirty
    cdef Connection** turn
    connection.is_gone = True
    while connection.streams != NULL:
        nghttp2_session_set_stream_user_data(connection.session, connection.streams.id, NULL)
        _free_stream(connection.streams)
    nghttp2_session_del(connection.session)
    if connection.is_in_turns:
        turn = &loop.turns
        while turn[0] != connection:
            turn = &turn[0].next_turn
        turn[0] = connection.next_turn
    if connection.is_dirty:
        while link[0] != connection:
            link = &link[0].next_dirty
        link[0] = connection.next_dirty
    if connection.previous != NULL:
        connection.previous.next = connection.next
    else:
        loop.connections = connection.next
    if connection.next != NULL:
        connection.next.previous = connection.previous
    loop.n_connections -= 1
    _note_idle(connection)
    _uncount_connection(connection)
    connection_let_go(connection, connection.pending.size)
    buffer_free(&connection.pending)
    if connection.n_out == 0:
        _free_gone(connection)
        return
    connection.previous = NULL
    connection.next = loop.gone
    if connection.next != NULL:
        connection.next.previous = connection
    loop.gone = connection


cdef bint connection_shake(Connection* connection) noexcept nogil:
    cdef LoopC* loop = connection.loop
    cdef Errand* errand = errand_new(ERRAND_SHAKE, 0)
    if errand == NULL:
        return False
    errand.loop = loop
    errand.connection = connection
    errand.deadline_ns = connection.opened_ns + loop.host.handshake_ns
    _send_out(connection, errand)
    connection.hands = HANDS_AT_WORKER
    loop.n_shaking += 1
    queue_put(&loop.host.benches[<int>BENCH_HANDSHAKES], errand)
    return True


cdef void _came_home(Connection* connection, uint64_t n_out) noexcept nogil:
    """So much of what it had out is back."""
    connection.n_out -= n_out
    if not connection.is_gone or connection.n_out:
        return
    if connection.previous != NULL:
        connection.previous.next = connection.next
    else:
        connection.loop.gone = connection.next
    if connection.next != NULL:
        connection.next.previous = connection.previous
    _free_gone(connection)


# -- a loop
# ----------------------------------------------------------------------------------------------------

cdef int loop_init(LoopC* loop, HostC* host) noexcept nogil:
    memset(loop, 0, sizeof(LoopC))
    loop.host = host
    loop.wake_fd = -1
    return queue_init(&loop.inbox)


cdef void throw_away(HostC* host, Queue* queue) noexcept nogil:
    """Errands that nobody will take any more."""
    cdef Errand* errand = queue_take_all(queue)
    cdef Errand* following
    while errand != NULL:
        following = errand.next
        if errand.call != NULL:
            dispatcher_give(host.dispatcher, errand.call)
        errand_free(errand)
        errand = following


cdef void loop_free(LoopC* loop) noexcept nogil:
    cdef Connection* connection
    cdef Stream* stream
    while loop.connections != NULL:
        connection_close(loop.connections)
    throw_away(loop.host, &loop.inbox)
    while loop.gone != NULL:  # what they have out is with others, and nobody takes it any more
        connection = loop.gone
        loop.gone = connection.next
        _free_gone(connection)
    while loop.spare_streams != NULL:
        stream = loop.spare_streams
        loop.spare_streams = stream.next
        free(stream)
    spares_free(&loop.spares)
    free(loop.slots)
    free(loop.timers)
    queue_destroy(&loop.inbox)


cdef void loop_post(LoopC* loop, Errand* errand) noexcept nogil:
    if queue_put(&loop.inbox, errand):
        eventfd_write(loop.wake_fd, 1)


cdef void _came_back(LoopC* loop, Errand* errand) noexcept nogil:
    """One errand, which is freed here or kept by its stream."""
    cdef Stream* stream = _find(loop, errand.token)
    cdef Connection* connection = <Connection*>errand.connection
    cdef const uint8_t* kind
    if errand.kind == ERRAND_SHAKE:
        loop.n_shaking -= 1
        connection.hands, connection.shook = HANDS_BACK, errand.answer
        _came_home(connection, errand.n_out)
        connection_dirty(connection)
        errand_free(errand)
        return
    if stream != NULL:
        stream.read = NULL
    if (errand.kind == ERRAND_RUN and errand.answer == ANSWER_ERROR and stream != NULL
            and not stream.is_ended and not stream.is_ending
            and not _goes_without_words(loop.host, errand.call)):
        _have_words_made(loop.host, errand)  # with the message that the words may lead into
        return
    if errand.place != NO_PLACE:
        if stream != NULL and not stream.is_ended:
            stream.place = errand.place
        else:
            place_give(&loop.host.places, &connection.holder, errand.place)
        errand.place = NO_PLACE
    if errand.n_out:
        connection_let_go(connection, errand.held)
        errand.held = 0
        _came_home(connection, errand.n_out)
        errand.n_out = 0
    if stream == NULL or stream.is_ended or (stream.is_ending and errand.kind != ERRAND_END):
        if errand.call != NULL:
            dispatcher_finish(loop.host.dispatcher, errand.call.method, errand.call.began_ns, 1)
            dispatcher_give(loop.host.dispatcher, errand.call)
        errand_free(errand)
        return
    if errand.kind == ERRAND_END:
        stream.is_busy = False
        stream.is_told = False
        stream.ending = errand
        stream.is_unknown |= errand.is_unknown
        kind = errand.data + errand.size
        _end(stream, errand.status, errand.data, errand.size, kind, errand.class_bytes)
        return
    if errand.kind == ERRAND_RUN:
        stream.is_busy = False
        if errand.answer == NOT_RUN_LATE:
            _too_late(stream)
        elif errand.answer == NOT_RUN_NO_CALL:
            _refuse(stream, REFUSE_CALLS)
        elif errand.answer == ANSWER_ERROR:
            _go_without_words(stream, errand.call, REFUSE_CALLS)
        else:
            _settle(stream, errand.call, errand.answer)
    elif errand.kind == ERRAND_NEXT:
        stream.is_busy = False
    elif (_has_room(stream.connection, errand.size + PREFIX_BYTES)
          and _append(stream, errand.data, errand.size)):  # a REPLY
        _make_ready(stream, _out_end(stream))
        _respond(stream)
    else:
        _refuse(stream, REFUSE_ROOM)
    errand_free(errand)
    _advance(stream)


cdef void loop_inbox(LoopC* loop) noexcept nogil:
    cdef Errand* errand = queue_take_all(&loop.inbox)
    cdef Errand* following
    while errand != NULL:
        following = errand.next
        _came_back(loop, errand)
        errand = following


cdef void loop_turns(LoopC* loop) noexcept nogil:
    cdef Connection* connection = loop.turns
    cdef Connection* following
    loop.round += 1
    loop.turns = NULL
    while connection != NULL:
        following = connection.next_turn
        connection.is_in_turns = False
        _go_on(connection)
        connection = following


cdef int64_t loop_next_deadline_ns(const LoopC* loop) noexcept nogil:
    return loop.timers[0].due_ns if loop.n_timers else 0


cdef void loop_drain(LoopC* loop) noexcept nogil:
    cdef Connection* connection = loop.connections
    while connection != NULL:
        connection_drain(connection)
        connection = connection.next


cdef void loop_unpark(LoopC* loop) noexcept nogil:
    cdef Stream* stream = loop.parked
    cdef Stream* following
    cdef Call* call
    while stream != NULL:
        following = stream.parked_next
        _unpark(stream)
        if stream.n_parked and fs_load(&loop.host.has_failed):
            call = dispatcher_take(loop.host.dispatcher)
            if call != NULL:
                call.method = _target(stream).method
                call.began_ns = stream.ring[stream.ring_first].began_ns
                call.position = stream.ring[stream.ring_first].position
                if dispatcher_check(loop.host.dispatcher, call) == ANSWER_ERROR:
                    _give_up_parked(stream, call)
                else:
                    dispatcher_give(loop.host.dispatcher, call)
        elif not stream.is_ended:
            _advance(stream)
        stream = following


cdef void _too_late(Stream* stream) noexcept nogil:
    _unpark(stream)
    _refuse(stream, REFUSE_DEADLINE)


cdef void _come_due(Stream* stream) noexcept nogil:
    """Its time was to be over by now. If it is not any more, it is looked at again when it will be."""
    cdef LoopC* loop = stream.connection.loop
    cdef int64_t due
    _let_go_parked(stream)
    if stream.timer == 0:
        return
    due = _due_ns(stream)
    if due > loop.now_ns:
        stream.due_ns = due
        _sift(loop, stream.timer - 1, stream)
        return
    _time_no_more(stream)
    if stream.deadline_ns and loop.now_ns >= stream.deadline_ns:
        _too_late(stream)
    elif due and stream.n_parked == 0:  # else the disk has failed, and loop_unpark ends it
        _refuse(stream, REFUSE_SLOW)


cdef void loop_deadlines(LoopC* loop) noexcept nogil:
    while loop.n_timers and loop.now_ns >= loop.timers[0].due_ns:
        _come_due(loop.timers[0])


cdef void _let_go_parked(Stream* stream) noexcept nogil:
    """What may be; and runs what waited behind it."""
    if stream.n_parked:
        _unpark(stream)
        if not stream.is_ended:
            _advance(stream)


cdef void loop_waits(LoopC* loop) noexcept nogil:
    cdef Stream* stream = loop.parked
    cdef Stream* following
    while stream != NULL:
        following = stream.parked_next
        if _has_waited(stream, &stream.ring[stream.ring_first]):
            _let_go_parked(stream)
        stream = following


# -- a host
# ----------------------------------------------------------------------------------------------------

cdef int host_init(HostC* host) noexcept nogil:
    if peers_init(&host.peers, host.max_connections) != 0:
        return -1
    if nghttp2_session_callbacks_new(&host.callbacks) != 0 or nghttp2_option_new(&host.option) != 0:
        return -1
    nghttp2_session_callbacks_set_on_begin_frame_callback(host.callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(host.callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(host.callbacks, _on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(host.callbacks, _on_frame)
    nghttp2_session_callbacks_set_on_frame_send_callback(host.callbacks, _on_sent)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(host.callbacks, _on_data)
    nghttp2_session_callbacks_set_on_stream_close_callback(host.callbacks, _on_stream_close)
    nghttp2_option_set_no_auto_window_update(host.option, 1)
    nghttp2_option_set_no_closed_streams(host.option, 1)
    return 0


cdef void host_free(HostC* host) noexcept nogil:
    nghttp2_session_callbacks_del(host.callbacks)
    nghttp2_option_del(host.option)
    peers_free(&host.peers)


cdef void host_run(HostC* host, Errand* errand, int64_t now_ns) noexcept nogil:
    if errand_is_late(errand, now_ns) or fs_load(&errand.is_vain):
        errand.answer = NOT_RUN_LATE     # whoever asked has been told, or is when it comes back
    else:
        errand.call = _new_call(host)
        errand.answer = NOT_RUN_NO_CALL
        if errand.call != NULL:
            errand.answer = dispatcher_run(host.dispatcher, errand.call, errand.method, errand.data,
                                           errand.size)
            errand.call.began_ns = errand.began_ns
    loop_post(<LoopC*>errand.loop, errand)
