"""Calls by the hundred thousand a second from one thread that never has the GIL: nghttp2 over epoll.

A *call* is a place for one HTTP/2 stream: `streams` of them on each connection. A unary call opens a stream
for each message; a streaming call keeps its stream and has up to `window` messages on it that are not
answered. Each message that may be under way is a *credit* of its call; credits wait in a ring, over all
connections in turn, and whoever is answered puts its credit at the end.

    closed loop    every credit is spent at once; latency counts from then
    open loop      the i-th message is due at start + i / rate, whatever the server does. It waits for a
                   credit if it must, and its latency counts from when it was due: a server that stands still
                   is seen by all the messages that it kept from being sent (no coordinated omission)

What is not answered by the end counts too, with the time that it had waited until then.

Every gRPC reply is looked at: HTTP status, content type, length prefix, number of messages, grpc-status in
trailers or in trailers only, grpc-message. A Redis connection is a call with a window of 1 and no stream.
A connection that fails ends the run, with the reason; GOAWAY without an error opens another in its place.
"""

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from benches.load.histogram cimport N_BUCKETS, histogram_add
from benches.load.nghttp2 cimport *
from benches.load.resp cimport RESP_INCOMPLETE, RESP_MALFORMED, resp_size
from benches.load.system cimport *
from featurestore.core.hashing cimport crc32c

import numpy as np

cdef enum:
    UNARY
    STREAM
    REDIS

# What became of a message: gRPC's statuses, then what is none.
NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
    "RESET",         # the stream was reset before it had a status
    "TIMEOUT",       # not answered in timeout_s, and reset by us
    "MALFORMED",     # OK, with something else than one message, or not gRPC
    "ERROR",         # Redis said -...
    "UNANSWERED",    # under way, or not even sent, when the run was over
)

cdef enum:
    OK = 0
    UNKNOWN = 2
    LAST_GRPC = 16
    RESET
    TIMEOUT
    MALFORMED
    ERROR
    UNANSWERED
    N_STATUSES
    NO_STATUS = -1

assert len(NAMES) == N_STATUSES

cdef enum:
    TEXT_BYTES = 240
    N_FAILURES = 32               # different failures that are told apart
    IN_BYTES = 1 << 18
    OUT_BYTES = 1 << 17           # of a connection, gathered before it is sent
    OUT_FULL = 1 << 16
    N_EVENTS = 256
    WINDOW_BYTES = 1 << 24        # HTTP/2's: of a stream and of a connection
    MAX_REPLY_BYTES = 1 << 26     # of Redis
    TICK_NS = 100_000_000         # between two looks for messages that are overdue

cdef struct Message:
    uint8_t* data
    size_t size
    size_t times_at               # its event times, if they move: an offset into data
    uint32_t n_times              # sfixed64 one after the other; 0: one sint64

cdef struct Sent:
    int64_t due_ns                # what its latency counts from
    int64_t given_ns              # what its timeout counts from
    uint32_t message
    bint is_measured              # due after the warm-up

cdef struct Call:
    Connection* connection
    Sent* sent                    # `window` of them: the i-th message is at i % window
    uint64_t n_given
    uint64_t n_written
    uint64_t n_answered
    size_t offset                 # of the message being written: bytes that are
    uint32_t n_held               # credits that wait for the connection to be there
    int32_t stream_id             # 0: none
    bint is_ending                # half-close when all is written
    bint is_timed_out
    # The reply.
    int32_t status                # grpc-status, or NO_STATUS
    int32_t http_status
    bint is_grpc                  # its content type
    bint is_compressed            # a message was, unasked
    uint8_t prefix[5]
    uint32_t n_prefix
    uint32_t n_left               # of the message being read
    uint32_t n_message            # bytes of it
    uint32_t crc
    uint64_t n_messages
    char text[TEXT_BYTES]         # grpc-message
    size_t n_text

cdef struct Connection:
    Load* load
    Call* calls                   # `streams` of them
    nghttp2_session* session
    int fd                        # -1: closed, and not needed any more
    uint32_t n_open               # streams
    uint32_t events               # what epoll watches for
    bint is_connecting
    bint is_ready                 # the server's SETTINGS are here
    bint is_draining              # GOAWAY
    bint is_dirty                 # in load.dirty
    uint8_t* out
    size_t n_out
    size_t n_sent                 # of n_out
    uint8_t* reply                # of Redis, as far as it is here
    size_t n_reply
    size_t reply_size

cdef struct Failure:
    int status
    size_t n_text
    uint64_t n
    char text[TEXT_BYTES]

cdef struct Load:
    int kind
    int epoll
    bint is_spinning
    Connection* connections
    uint32_t n_connections
    uint32_t n_streams
    uint32_t window
    Message* messages
    uint32_t n_messages
    nghttp2_nv* headers
    size_t n_headers
    nghttp2_session_callbacks* callbacks
    nghttp2_option* option
    sockaddr_storage address
    socklen_t address_size
    uint8_t* input
    Connection** dirty
    uint32_t n_dirty
    uint32_t* credits             # a ring of indices of calls
    uint64_t n_credits            # capacity
    uint64_t first_credit
    uint64_t end_credit
    # What to do.
    double period_ns              # 0: closed loop
    int64_t warmup_ns
    int64_t run_ns
    int64_t timeout_ns
    uint64_t count                # measured messages; 0: as many as the time allows
    int64_t step_ms               # by which event times move when a message is sent again; 0: not at all
    # Where it is.
    int64_t start_ns
    int64_t measure_ns
    int64_t end_ns
    int64_t give_up_ns
    int64_t tick_ns
    uint32_t n_ready
    uint64_t n_given
    uint64_t n_measured           # of these
    uint64_t n_outstanding
    bint is_giving
    bint is_ending                # streams have been half-closed
    bint is_stopped               # from outside
    char error[TEXT_BYTES * 2]    # the first
    # What was found.
    uint64_t n_calls              # measured and answered, with whatever
    uint64_t n_warm
    uint64_t statuses[N_STATUSES]
    uint64_t stream_statuses[N_STATUSES]
    Failure failures[N_FAILURES]
    uint32_t n_failures
    uint64_t n_other              # failures beyond these
    uint64_t* latency             # N_BUCKETS
    uint64_t* lag
    int64_t max_ns
    int64_t max_lag_ns
    uint64_t sum_ns
    uint64_t sum_lag_ns
    int64_t last_ns
    uint64_t n_reply_bytes
    uint64_t checksum
    uint64_t n_bytes_in
    uint64_t n_bytes_out
    uint64_t n_goaways
    int64_t cpu_ns


# ---- what was found

cdef int fail(Load* load, const char* what, const char* why) noexcept nogil:
    """Ends the run; the first reason stays."""
    if not load.error[0]:
        snprintf(load.error, sizeof(load.error), "%s: %s", what, why)
    return -1


cdef int fail_errno(Load* load, const char* what, int code) noexcept nogil:
    cdef char text[128]
    return fail(load, what, strerror_r(code, text, sizeof(text)))


cdef void note_failure(Load* load, int status, const char* text, size_t n_text, uint64_t n) noexcept nogil:
    cdef Failure* failure
    cdef uint32_t i
    n_text = min(n_text, <size_t> TEXT_BYTES)
    for i in range(load.n_failures):
        failure = &load.failures[i]
        if failure.status == status and failure.n_text == n_text and memcmp(failure.text, text, n_text) == 0:
            failure.n += n
            return
    if load.n_failures == N_FAILURES:
        load.n_other += n
        return
    failure = &load.failures[load.n_failures]
    load.n_failures += 1
    failure.status, failure.n_text, failure.n = status, n_text, n
    memcpy(failure.text, text, n_text)


cdef void measure(Load* load, int status, int64_t due_ns, int64_t now_ns) noexcept nogil:
    cdef int64_t latency_ns = max(now_ns - due_ns, <int64_t> 0)
    load.n_calls += 1
    load.statuses[status] += 1
    load.last_ns = now_ns
    load.sum_ns += latency_ns
    load.max_ns = max(load.max_ns, latency_ns)
    histogram_add(load.latency, latency_ns)


cdef void answered(Call* call, int status, int64_t now_ns) noexcept nogil:
    """The oldest message of a call has its answer, or never will: its credit is free."""
    cdef Load* load = call.connection.load
    cdef Sent* sent = &call.sent[call.n_answered % load.window]
    call.n_answered += 1
    load.n_outstanding -= 1
    add_credit(load, call)
    if sent.is_measured:
        measure(load, status, sent.due_ns, now_ns)
    else:
        load.n_warm += 1


cdef void fail_messages(Call* call, int status, const char* text, size_t n_text) noexcept nogil:
    """All that a call has under way ends with `status`."""
    cdef Load* load = call.connection.load
    cdef uint64_t n_measured = 0
    cdef int64_t now_ns = clock_ns(CLOCK_MONOTONIC)
    while call.n_answered < call.n_given:
        n_measured += call.sent[call.n_answered % load.window].is_measured
        answered(call, status, now_ns)
    call.n_written, call.offset = call.n_given, 0
    if n_measured:
        note_failure(load, status, text, n_text, n_measured)


cdef void add_reply(Call* call, uint32_t crc, size_t n) noexcept nogil:
    cdef Load* load = call.connection.load
    if call.sent[call.n_answered % load.window].is_measured:
        load.checksum += crc
        load.n_reply_bytes += n


# ---- credits

cdef void add_credit(Load* load, Call* call) noexcept nogil:
    cdef uint32_t which
    if not call.connection.is_ready or call.connection.is_draining:
        call.n_held += 1
        return
    which = <uint32_t> (
        (call.connection - load.connections) * load.n_streams + (call - call.connection.calls))
    load.credits[load.end_credit % load.n_credits] = which
    load.end_credit += 1


cdef void release_credits(Connection* connection) noexcept nogil:
    cdef Load* load = connection.load
    cdef uint32_t i, n
    for i in range(load.n_streams):
        n, connection.calls[i].n_held = connection.calls[i].n_held, 0
        while n:
            add_credit(load, &connection.calls[i])
            n -= 1


cdef Call* next_call(Load* load) noexcept nogil:
    """A call with a credit, which it spends; NULL: there is none."""
    cdef uint32_t which
    cdef Connection* connection
    cdef Call* call
    while load.first_credit < load.end_credit:
        which = load.credits[load.first_credit % load.n_credits]
        load.first_credit += 1
        connection = &load.connections[which // load.n_streams]
        call = &connection.calls[which % load.n_streams]
        if connection.is_ready and not connection.is_draining:
            return call
        call.n_held += 1
    return NULL


# ---- event times

cdef int move_times(Message* message, int64_t by_ms) noexcept nogil:
    """Later by so much. -1: a sint64 would need another number of bytes, and nothing was changed."""
    cdef uint8_t* at = message.data + message.times_at
    cdef int64_t time_ms
    cdef uint64_t zigzag = 0
    cdef uint32_t i, n = 0
    for i in range(message.n_times):
        memcpy(&time_ms, at + 8 * i, 8)
        time_ms += by_ms
        memcpy(at + 8 * i, &time_ms, 8)
    if message.n_times:
        return 0
    while n < 9 and at[n] & 0x80:
        zigzag |= <uint64_t> (at[n] & 0x7F) << 7 * n
        n += 1
    zigzag |= <uint64_t> at[n] << 7 * n
    time_ms = <int64_t> (zigzag >> 1) ^ -<int64_t> (zigzag & 1)
    time_ms += by_ms
    zigzag = <uint64_t> time_ms << 1 ^ <uint64_t> (time_ms >> 63)
    if zigzag >> 7 * n == 0 or n < 9 and zigzag >> 7 * (n + 1) != 0:
        return -1
    for i in range(n):
        at[i] = <uint8_t> (zigzag & 0x7F | 0x80)
        zigzag >>= 7
    at[n] = <uint8_t> zigzag
    return 0


# ---- giving messages to calls

cdef int give(Load* load, Call* call, int64_t due_ns, int64_t now_ns) noexcept nogil:
    cdef Sent* sent = &call.sent[call.n_given % load.window]
    cdef Connection* connection = call.connection
    cdef int64_t lag_ns = max(now_ns - due_ns, <int64_t> 0)
    sent.due_ns, sent.given_ns = due_ns, now_ns
    sent.message = <uint32_t> (load.n_given % load.n_messages)
    if load.step_ms and load.n_given >= load.n_messages:
        if move_times(&load.messages[sent.message], load.step_ms) != 0:
            return fail(load, "event times", b"the next one has another length")
    sent.is_measured = due_ns >= load.measure_ns
    call.n_given += 1
    load.n_given += 1
    load.n_outstanding += 1
    if sent.is_measured:
        load.n_measured += 1
        load.sum_lag_ns += lag_ns
        load.max_lag_ns = max(load.max_lag_ns, lag_ns)
        histogram_add(load.lag, lag_ns)
    if load.kind != REDIS:
        if call.stream_id == 0:
            if open_stream(call) != 0:
                return -1
        else:
            nghttp2_session_resume_data(connection.session, call.stream_id)
    mark_dirty(connection)
    return 0


cdef int feed(Load* load) noexcept nogil:
    """Gives what is due to whoever has a credit."""
    cdef Call* call
    cdef int64_t due_ns, now_ns = clock_ns(CLOCK_MONOTONIC)
    while load.is_giving:
        if load.count and load.n_measured == load.count:
            load.is_giving = False
        elif load.period_ns:
            due_ns = load.start_ns + <int64_t> (<double> load.n_given * load.period_ns)
            if due_ns >= load.end_ns:
                load.is_giving = False
            elif due_ns > now_ns:
                now_ns = clock_ns(CLOCK_MONOTONIC)
                if due_ns > now_ns:
                    return 0
        else:
            due_ns = now_ns = clock_ns(CLOCK_MONOTONIC)
            if due_ns >= load.end_ns and load.n_measured:
                load.is_giving = False    # one is measured even if this thread had no core until now
        if not load.is_giving:
            load.give_up_ns = clock_ns(CLOCK_MONOTONIC) + load.timeout_ns + 2 * TICK_NS
            return 0
        call = next_call(load)
        if call == NULL:
            return 0
        if give(load, call, due_ns, now_ns) != 0:
            return -1
    return 0


cdef int open_stream(Call* call) noexcept nogil:
    cdef Connection* connection = call.connection
    cdef Load* load = connection.load
    cdef nghttp2_data_provider body
    body.source.ptr = call
    body.read_callback = on_read
    call.status, call.http_status, call.is_grpc, call.is_compressed = NO_STATUS, 0, False, False
    call.n_prefix = call.n_left = 0
    call.n_messages = call.n_text = 0
    call.is_ending = call.is_timed_out = False
    call.stream_id = nghttp2_submit_request(
        connection.session, NULL, load.headers, load.n_headers, &body, call)
    if call.stream_id < 0:
        return fail(load, "cannot open a stream", nghttp2_strerror(call.stream_id))
    connection.n_open += 1
    return 0


# ---- what nghttp2 calls

cdef ssize_t on_read(
        nghttp2_session* session, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* flags,
        nghttp2_data_source* source, void* user_data) noexcept nogil:
    cdef Call* call = <Call*> source.ptr
    cdef Load* load = call.connection.load
    cdef const Message* message
    cdef size_t n, done = 0
    while done < length and call.n_written < call.n_given:
        message = &load.messages[call.sent[call.n_written % load.window].message]
        n = min(message.size - call.offset, length - done)
        memcpy(buf + done, message.data + call.offset, n)
        done += n
        call.offset += n
        if call.offset == message.size:
            call.n_written += 1
            call.offset = 0
    if call.n_written == call.n_given and (load.kind == UNARY or call.is_ending):
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
        return done
    return done if done else NGHTTP2_ERR_DEFERRED


cdef int on_header(
        nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t n_name,
        const uint8_t* value, size_t n_value, uint8_t flags, void* user_data) noexcept nogil:
    cdef Call* call
    cdef int32_t number = 0
    cdef size_t i
    if frame.hd.type != NGHTTP2_HEADERS:
        return 0
    call = <Call*> nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if call == NULL:
        return 0
    if (n_name == 7 and memcmp(name, b":status", 7) == 0
            or n_name == 11 and memcmp(name, b"grpc-status", 11) == 0):
        for i in range(min(n_value, <size_t> 4)):
            if not c"0" <= value[i] <= c"9":
                number = UNKNOWN
                break
            number = number * 10 + value[i] - c"0"
        if n_name == 7:
            call.http_status = number
        else:
            call.status = number if number <= LAST_GRPC else UNKNOWN
    elif n_name == 12 and memcmp(name, b"grpc-message", 12) == 0:
        call.n_text = min(n_value, <size_t> TEXT_BYTES)
        memcpy(call.text, value, call.n_text)
    elif n_name == 12 and memcmp(name, b"content-type", 12) == 0:
        call.is_grpc = n_value >= 16 and memcmp(value, b"application/grpc", 16) == 0
    return 0


cdef int on_data(
        nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t n,
        void* user_data) noexcept nogil:
    """Messages of a reply, however they are cut into frames."""
    cdef Call* call = <Call*> nghttp2_session_get_stream_user_data(session, stream_id)
    cdef size_t some
    if call == NULL:
        return 0
    while n:
        if call.n_prefix < 5:
            some = min(n, <size_t> (5 - call.n_prefix))
            memcpy(call.prefix + call.n_prefix, data, some)
            call.n_prefix += <uint32_t> some
            data += some
            n -= some
            if call.n_prefix < 5:
                return 0
            call.is_compressed |= call.prefix[0] != 0
            call.n_message = call.n_left = (
                <uint32_t> call.prefix[1] << 24 | <uint32_t> call.prefix[2] << 16
                | <uint32_t> call.prefix[3] << 8 | call.prefix[4])
            call.crc = 0
        some = min(n, <size_t> call.n_left)
        call.crc = crc32c(call.crc, data, some)
        call.n_left -= <uint32_t> some
        data += some
        n -= some
        if call.n_left == 0:
            end_message(call)
    return 0


cdef void end_message(Call* call) noexcept nogil:
    call.n_prefix = 0
    call.n_messages += 1
    if call.n_answered == call.n_given:
        return                    # one too many: on_close counts them
    add_reply(call, call.crc, call.n_message)
    if call.connection.load.kind == STREAM:
        answered(call, MALFORMED if call.is_compressed else OK, clock_ns(CLOCK_MONOTONIC))


cdef int on_close(
        nghttp2_session* session, int32_t stream_id, uint32_t code, void* user_data) noexcept nogil:
    cdef Call* call = <Call*> nghttp2_session_get_stream_user_data(session, stream_id)
    cdef Load* load
    cdef int status
    cdef const char* text
    cdef size_t n_text
    cdef char buffer[TEXT_BYTES]
    if call == NULL:
        return 0
    load = call.connection.load
    call.stream_id = 0
    call.connection.n_open -= 1
    status, text, n_text = call.status, call.text, call.n_text
    if call.is_timed_out:
        status = TIMEOUT
        n_text = snprintf(buffer, sizeof(buffer), "not answered in %.3g s", load.timeout_ns / 1e9)
        text = buffer
    elif status == NO_STATUS and code != NGHTTP2_NO_ERROR:
        status, n_text = RESET, snprintf(buffer, sizeof(buffer), "%s", nghttp2_http2_strerror(code))
        text = buffer
    elif status == NO_STATUS or call.http_status != 200 or not call.is_grpc:
        status = MALFORMED
        n_text = snprintf(buffer, sizeof(buffer), "no gRPC reply: HTTP status %d, %s", call.http_status,
                          b"no grpc-status" if call.is_grpc else b"another content type")
        text = buffer
    elif status == OK and (
            call.is_compressed or call.n_prefix or load.kind == UNARY and call.n_messages != 1):
        status = MALFORMED
        n_text = snprintf(buffer, sizeof(buffer), "OK with %llu messages%s%s",
                          <unsigned long long> call.n_messages,
                          b", of which some compressed" if call.is_compressed else b"",
                          b" and part of another" if call.n_prefix else b"")
        text = buffer
    if load.kind == STREAM:
        load.stream_statuses[status] += 1
        if status == OK:
            status, text, n_text = MALFORMED, b"the stream ended OK before all was answered", 43
    elif status == OK:
        answered(call, OK, clock_ns(CLOCK_MONOTONIC))
    fail_messages(call, status, text, n_text)
    return 0


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*> user_data
    cdef Load* load = connection.load
    cdef Call* call
    cdef char why[TEXT_BYTES]
    cdef uint32_t allowed
    if frame.hd.type == NGHTTP2_SETTINGS and not (connection.is_ready or frame.hd.flags & NGHTTP2_FLAG_ACK):
        allowed = nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
        if allowed < load.n_streams:
            snprintf(why, sizeof(why), "the server allows %u on a connection and %u were asked for", allowed,
                     load.n_streams)
            return fail(load, "too many streams", why)
        connection.is_ready = True
        load.n_ready += 1
        if load.start_ns:         # in place of one that drained
            release_credits(connection)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        if frame.goaway.error_code != NGHTTP2_NO_ERROR:
            snprintf(why, sizeof(why), "%s %.*s", nghttp2_http2_strerror(frame.goaway.error_code),
                     <int> min(frame.goaway.opaque_data_len, <size_t> 160), <char*> frame.goaway.opaque_data)
            return fail(load, "the server ended the connection with GOAWAY", why)
        load.n_goaways += not connection.is_draining
        connection.is_draining = True
    elif frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        # An answer before all was sent: the stream is over for gRPC, and for HTTP/2 once we say so.
        call = <Call*> nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if call != NULL and (load.kind == STREAM or call.n_written < call.n_given):
            if nghttp2_session_get_stream_local_close(session, frame.hd.stream_id) == 0:
                nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR)
    return 0


# ---- connections

cdef void mark_dirty(Connection* connection) noexcept nogil:
    if not connection.is_dirty:
        connection.is_dirty = True
        connection.load.dirty[connection.load.n_dirty] = connection
        connection.load.n_dirty += 1


cdef int watch(Connection* connection, int operation, uint32_t events) noexcept nogil:
    cdef epoll_event event
    if operation == EPOLL_CTL_MOD and events == connection.events:
        return 0
    connection.events = events
    event.events = events
    event.data.ptr = connection
    if epoll_ctl(connection.load.epoll, operation, connection.fd, &event) != 0:
        return fail_errno(connection.load, "epoll", errno)
    return 0


cdef int open_session(Connection* connection) noexcept nogil:
    """On a socket that is connected."""
    cdef Load* load = connection.load
    cdef nghttp2_settings_entry settings[2]
    cdef int one = 1, code
    if load.address.ss_family != AF_UNIX:
        setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    if load.kind == REDIS:
        connection.is_ready = True
        load.n_ready += 1
        return 0
    settings[0].settings_id, settings[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
    settings[1].settings_id, settings[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES
    code = nghttp2_session_client_new2(&connection.session, load.callbacks, connection, load.option)
    if code == 0:
        code = nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, settings, 2)
    if code == 0:
        code = nghttp2_session_set_local_window_size(connection.session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES)
    if code != 0:
        return fail(load, "HTTP/2", nghttp2_strerror(code))
    mark_dirty(connection)
    return 0


cdef int reconnect(Connection* connection) noexcept nogil:
    """In place of a connection that the server let go of; with nothing left to send, just away with it."""
    cdef Load* load = connection.load
    if connection.session != NULL:
        nghttp2_session_del(connection.session)
        connection.session = NULL
    close(connection.fd)
    connection.fd = -1
    load.n_ready -= connection.is_ready
    connection.is_ready = connection.is_draining = False
    connection.n_out = connection.n_sent = connection.n_reply = 0
    if not load.is_giving:
        return 0
    connection.fd = socket(load.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if connection.fd < 0:
        return fail_errno(load, "socket", errno)
    if connect(connection.fd, <sockaddr*> &load.address, load.address_size) != 0 and errno != EINPROGRESS:
        return fail_errno(load, "cannot connect again", errno)
    connection.is_connecting = True
    return watch(connection, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT)


cdef int connected(Connection* connection) noexcept nogil:
    cdef int code = 0
    cdef socklen_t size = sizeof(code)
    getsockopt(connection.fd, SOL_SOCKET, SO_ERROR, &code, &size)
    if code != 0:
        return fail_errno(connection.load, "cannot connect again", code)
    connection.is_connecting = False
    return open_session(connection)


cdef int lost(Connection* connection, int code) noexcept nogil:
    """The server closed it. Whoever has nothing under way there may."""
    cdef Load* load = connection.load
    cdef char why[160]
    cdef char text[96]
    cdef const char* reason = b"without a reason"
    cdef uint64_t n_open = connection.n_open
    if load.kind == REDIS:
        n_open = connection.calls.n_given - connection.calls.n_answered
    elif not connection.is_ready:
        return fail(load, "the server closed a connection", b"before it said a word of HTTP/2")
    if n_open == 0:
        return reconnect(connection)
    if code:
        reason = strerror_r(code, text, sizeof(text))
    snprintf(why, sizeof(why), "%s, with %llu calls under way", reason, <unsigned long long> n_open)
    return fail(load, "the server closed a connection", why)


cdef int flush(Connection* connection) noexcept nogil:
    """Sends what there is to send, or as much as goes."""
    cdef Load* load = connection.load
    cdef Call* call = connection.calls
    cdef const Message* message
    cdef const uint8_t* data
    cdef ssize_t n
    if connection.fd < 0 or connection.is_connecting:
        return 0
    while True:
        if load.kind == REDIS:
            if call.n_written == call.n_given:
                return watch(connection, EPOLL_CTL_MOD, EPOLLIN)
            message = &load.messages[call.sent[call.n_written % load.window].message]
            n = send(connection.fd, message.data + call.offset, message.size - call.offset, MSG_NOSIGNAL)
            if n > 0:
                call.offset += n
                if call.offset == message.size:
                    call.n_written += 1
                    call.offset = 0
        else:
            if connection.n_sent == connection.n_out:
                connection.n_sent = connection.n_out = 0
                while connection.n_out < OUT_FULL:
                    n = nghttp2_session_mem_send(connection.session, &data)
                    if n < 0:
                        return fail(load, "HTTP/2", nghttp2_strerror(<int> n))
                    if n == 0:
                        break
                    if <size_t> n > OUT_BYTES - connection.n_out:
                        return fail(load, "HTTP/2", b"a frame larger than was allowed")
                    memcpy(connection.out + connection.n_out, data, n)
                    connection.n_out += n
                if connection.n_out == 0:
                    if not (connection.is_draining or nghttp2_session_want_read(connection.session)
                            or nghttp2_session_want_write(connection.session)):
                        return fail(load, "HTTP/2", b"what the server sends breaks the protocol")
                    return watch(connection, EPOLL_CTL_MOD, EPOLLIN)
            data = connection.out + connection.n_sent
            n = send(connection.fd, data, connection.n_out - connection.n_sent, MSG_NOSIGNAL)
            if n > 0:
                connection.n_sent += n
        if n > 0:
            load.n_bytes_out += n
        elif errno == EAGAIN:
            return watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT)
        elif errno != EINTR:
            return 0              # what it said before it closed is still to be read: receive() sees the end


cdef int receive(Connection* connection) noexcept nogil:
    cdef Load* load = connection.load
    cdef ssize_t n, used
    while True:
        n = recv(connection.fd, load.input, IN_BYTES, 0)
        if n < 0 and errno == EINTR:
            continue
        if n < 0 and errno == EAGAIN:
            return 0
        if n <= 0:
            return lost(connection, errno if n < 0 else 0)
        load.n_bytes_in += n
        if load.kind == REDIS:
            if take_reply(connection, load.input, n) != 0:
                return -1
        else:
            used = nghttp2_session_mem_recv(connection.session, load.input, n)
            if used < 0:
                return fail(load, "HTTP/2", nghttp2_strerror(<int> used))
            if load.error[0]:
                return -1
            if connection.is_draining and connection.n_open == 0:
                return reconnect(connection)
            mark_dirty(connection)   # window updates, acknowledgements
        if n < IN_BYTES:
            return 0


cdef int take_reply(Connection* connection, const uint8_t* data, size_t n) noexcept nogil:
    """Bytes that Redis sent: one reply at most, because only one command is under way."""
    cdef Load* load = connection.load
    cdef Call* call = connection.calls
    cdef uint8_t* larger
    cdef size_t line
    cdef ssize_t size
    if connection.n_reply + n > connection.reply_size:
        if connection.n_reply + n > MAX_REPLY_BYTES:
            return fail(load, "Redis", b"the reply is too long")
        larger = <uint8_t*> realloc(connection.reply, 2 * (connection.n_reply + n))
        if larger == NULL:
            return fail(load, "Redis", b"no memory for the reply")
        connection.reply, connection.reply_size = larger, 2 * (connection.n_reply + n)
    memcpy(connection.reply + connection.n_reply, data, n)
    connection.n_reply += n
    size = resp_size(connection.reply, connection.n_reply)
    if size == RESP_INCOMPLETE:
        return 0
    if size == RESP_MALFORMED or <size_t> size != connection.n_reply or call.n_answered == call.n_given:
        return fail(load, "Redis", b"it answers something else than one reply in its protocol")
    connection.n_reply = 0
    if connection.reply[0] == c"-":
        line = max(size - 3, 0)
        fail_messages(call, ERROR, <char*> connection.reply + 1, line)
        return 0
    add_reply(call, crc32c(0, connection.reply, size), size)
    answered(call, OK, clock_ns(CLOCK_MONOTONIC))
    return 0


# ---- the loop

cdef int flush_dirty(Load* load) noexcept nogil:
    cdef Connection* connection
    while load.n_dirty:
        load.n_dirty -= 1
        connection = load.dirty[load.n_dirty]
        connection.is_dirty = False
        if flush(connection) != 0:
            return -1
    return 0


cdef int wait(Load* load, int64_t until_ns) noexcept nogil:
    """What comes in by then, or in the moment where until_ns is past."""
    cdef epoll_event events[N_EVENTS]
    cdef timespec timeout
    cdef Connection* connection
    cdef int64_t left_ns = 0
    cdef int i, n
    if not load.is_spinning:
        left_ns = max(until_ns - clock_ns(CLOCK_MONOTONIC), <int64_t> 0)
    timeout.tv_sec, timeout.tv_nsec = left_ns // 1_000_000_000, left_ns % 1_000_000_000
    n = epoll_pwait2(load.epoll, events, N_EVENTS, &timeout, NULL)
    if n < 0 and errno != EINTR:
        return fail_errno(load, "epoll", errno)
    for i in range(n):
        connection = <Connection*> events[i].data.ptr
        if connection.is_connecting:
            if connected(connection) != 0:
                return -1
            continue
        if events[i].events & EPOLLOUT:
            mark_dirty(connection)
        if events[i].events & ~EPOLLOUT and receive(connection) != 0:
            return -1
    return 0


cdef void look_for_overdue(Load* load, int64_t now_ns) noexcept nogil:
    cdef Connection* connection
    cdef Call* call
    cdef uint32_t i, j
    load.tick_ns = now_ns + TICK_NS
    for i in range(load.n_connections):
        connection = &load.connections[i]
        for j in range(load.n_streams):
            call = &connection.calls[j]
            if call.n_answered == call.n_given or call.is_timed_out:
                continue
            if now_ns - call.sent[call.n_answered % load.window].given_ns < load.timeout_ns:
                continue
            if load.kind == REDIS:
                fail(load, "Redis", b"a command was not answered in time")
                return
            call.is_timed_out = True
            nghttp2_submit_rst_stream(
                connection.session, NGHTTP2_FLAG_NONE, call.stream_id, NGHTTP2_CANCEL)
            mark_dirty(connection)


cdef void end_streams(Load* load) noexcept nogil:
    cdef Connection* connection
    cdef Call* call
    cdef uint32_t i, j
    load.is_ending = True
    for i in range(load.n_connections):
        connection = &load.connections[i]
        for j in range(load.n_streams):
            call = &connection.calls[j]
            if call.stream_id:
                call.is_ending = True
                nghttp2_session_resume_data(connection.session, call.stream_id)
                mark_dirty(connection)


cdef uint64_t n_open_streams(const Load* load) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(load.n_connections):
        n += load.connections[i].n_open
    return n


cdef void count_unanswered(Load* load) noexcept nogil:
    """What is under way, and what was due and never sent, has waited until now at least."""
    cdef uint64_t n = 0
    cdef uint32_t i, j
    cdef int64_t due_ns, now_ns = clock_ns(CLOCK_MONOTONIC)
    cdef Call* call
    load.stream_statuses[UNANSWERED] += n_open_streams(load)
    for i in range(load.n_connections):
        for j in range(load.n_streams):
            call = &load.connections[i].calls[j]
            while call.n_answered < call.n_given:
                n += call.sent[call.n_answered % load.window].is_measured
                answered(call, UNANSWERED, now_ns)
    while load.period_ns and load.is_giving and not (load.count and load.n_measured == load.count):
        due_ns = load.start_ns + <int64_t> (<double> load.n_given * load.period_ns)
        if due_ns >= load.end_ns or due_ns > now_ns:
            break
        load.n_given += 1
        if due_ns >= load.measure_ns:
            load.n_measured += 1
            n += 1
            measure(load, UNANSWERED, due_ns, now_ns)
    if n:
        note_failure(load, UNANSWERED, b"the run was over", 16, n)


cdef int connect_all(Load* load) noexcept nogil:
    """Until every connection is ready: nothing is measured before."""
    cdef int64_t until_ns = clock_ns(CLOCK_MONOTONIC) + load.timeout_ns
    cdef uint32_t i, j, _
    for i in range(load.n_connections):
        if watch(&load.connections[i], EPOLL_CTL_ADD, EPOLLIN) != 0:
            return -1
        if open_session(&load.connections[i]) != 0:
            return -1
    while load.n_ready < load.n_connections:
        if flush_dirty(load) != 0 or wait(load, until_ns) != 0:
            return -1
        if clock_ns(CLOCK_MONOTONIC) >= until_ns:
            return fail(load, "HTTP/2", b"no SETTINGS from the server in time")
        if load.is_stopped:
            return 0
    for _ in range(load.window):
        for j in range(load.n_streams):
            for i in range(load.n_connections):
                add_credit(load, &load.connections[i].calls[j])
    return 0


cdef int run(Load* load) noexcept nogil:
    cdef int64_t now_ns, until_ns, cpu_ns = 0
    prctl(PR_SET_TIMERSLACK, 1)
    load.is_giving = True
    load.give_up_ns = INT64_MAX
    if connect_all(load) != 0:
        return -1
    load.start_ns = now_ns = clock_ns(CLOCK_MONOTONIC)
    load.measure_ns = load.start_ns + load.warmup_ns
    load.end_ns = load.measure_ns + load.run_ns if load.run_ns else INT64_MAX
    load.tick_ns = now_ns + TICK_NS
    while not load.is_stopped:
        if feed(load) != 0 or flush_dirty(load) != 0:
            return -1
        now_ns = clock_ns(CLOCK_MONOTONIC)
        if not cpu_ns and now_ns >= load.measure_ns:
            cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        if now_ns >= load.tick_ns:
            look_for_overdue(load, now_ns)
            if load.error[0]:
                return -1
        if not load.is_giving and load.n_outstanding == 0:
            if load.kind == STREAM and not load.is_ending:
                end_streams(load)
            if n_open_streams(load) == 0:
                break
        if now_ns >= load.give_up_ns or now_ns - load.end_ns >= load.timeout_ns + 2 * TICK_NS:
            break
        until_ns = load.tick_ns
        if load.n_dirty:
            until_ns = 0
        elif load.is_giving and load.period_ns and load.first_credit < load.end_credit:
            until_ns = min(
                until_ns, load.start_ns + <int64_t> (<double> load.n_given * load.period_ns))
        if wait(load, until_ns) != 0:
            return -1
    if cpu_ns:
        load.cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns
    if not load.is_stopped:
        count_unanswered(load)
    return 0


# ---- for Python

def record(times_ns) -> np.ndarray:
    """A histogram of these: for the test of what histogram.pxd says."""
    cdef uint64_t[::1] counts = np.zeros(N_BUCKETS, np.uint64)
    cdef int64_t time_ns
    for time_ns in times_ns:
        histogram_add(&counts[0], time_ns)
    return np.asarray(counts)


cdef class Generator:
    """One run: `run` it once, in a thread of its own; `stop` and `progress` are for other threads.

    kind: "unary", "stream" or "redis". fds: connected sockets, which become its own. messages: gRPC messages
    without their prefix, or Redis commands as they are sent; taken in turn. headers: of a request, names in
    lower case. rate: messages a second, None: closed loop. Times in seconds; count: of measured messages.
    benches.load.run is how to call it.
    """

    cdef Load load
    cdef bytearray _arena
    cdef list _headers
    cdef uint64_t[::1] _latency, _lag

    def __init__(
            self, str kind, list fds, list messages, list headers, *, uint32_t streams, uint32_t window,
            rate, double warmup_s, double seconds, uint64_t count, double timeout_s, bint spin) -> None:
        cdef Load* load = &self.load
        cdef Connection* connection
        cdef uint32_t i, j
        cdef size_t at = 0
        cdef uint8_t* data
        if load.connections != NULL:
            raise ValueError("a generator runs once")
        load.kind = ("unary", "stream", "redis").index(kind)
        load.epoll = -1
        load.n_connections, load.n_streams, load.window = <uint32_t> len(fds), streams, window
        load.period_ns = 0.0 if rate is None else 1e9 / rate
        load.warmup_ns, load.run_ns = <int64_t> (warmup_s * 1e9), <int64_t> (seconds * 1e9)
        load.timeout_ns, load.count, load.is_spinning = <int64_t> (timeout_s * 1e9), count, spin
        self._latency, self._lag = np.zeros(N_BUCKETS, np.uint64), np.zeros(N_BUCKETS, np.uint64)
        load.latency, load.lag = &self._latency[0], &self._lag[0]
        # One piece of memory for all messages, each with gRPC's prefix: not compressed, length.
        prefixes = [b"" if kind == "redis" else b"\0" + len(m).to_bytes(4, "big") for m in messages]
        self._arena = bytearray().join([part for pair in zip(prefixes, messages) for part in pair])
        data = self._arena
        load.messages = <Message*> calloc(len(messages), sizeof(Message))
        load.headers = <nghttp2_nv*> calloc(max(1, len(headers)), sizeof(nghttp2_nv))
        load.connections = <Connection*> calloc(load.n_connections, sizeof(Connection))
        load.dirty = <Connection**> calloc(load.n_connections, sizeof(Connection*))
        load.n_credits = <uint64_t> load.n_connections * streams * window
        load.credits = <uint32_t*> calloc(load.n_credits, sizeof(uint32_t))
        load.input = <uint8_t*> malloc(IN_BYTES)
        if (load.messages == NULL or load.headers == NULL or load.connections == NULL or load.dirty == NULL
                or load.credits == NULL or load.input == NULL):
            raise MemoryError
        for prefix, message in zip(prefixes, messages):
            load.messages[load.n_messages].data = data + at
            load.messages[load.n_messages].size = len(prefix) + len(message)
            at += len(prefix) + len(message)
            load.n_messages += 1
        self._headers = headers
        for name, value in headers:
            load.headers[load.n_headers].name, load.headers[load.n_headers].namelen = name, len(name)
            load.headers[load.n_headers].value, load.headers[load.n_headers].valuelen = value, len(value)
            load.headers[load.n_headers].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
            load.n_headers += 1
        for i in range(load.n_connections):
            connection = &load.connections[i]
            connection.load, connection.fd = load, fds[i]
            connection.calls = <Call*> calloc(streams, sizeof(Call))
            connection.out = <uint8_t*> malloc(OUT_BYTES)
            if connection.calls == NULL or connection.out == NULL:
                raise MemoryError
            for j in range(streams):
                connection.calls[j].connection = connection
                connection.calls[j].sent = <Sent*> calloc(window, sizeof(Sent))
                if connection.calls[j].sent == NULL:
                    raise MemoryError
        load.address_size = sizeof(load.address)
        load.epoll = epoll_create1(EPOLL_CLOEXEC)
        if load.epoll < 0 or getpeername(
                load.connections[0].fd, <sockaddr*> &load.address, &load.address_size) != 0:
            raise OSError(errno, "epoll or getpeername")
        if nghttp2_session_callbacks_new(&load.callbacks) != 0 or nghttp2_option_new(&load.option) != 0:
            raise MemoryError
        nghttp2_option_set_no_closed_streams(load.option, 1)
        nghttp2_session_callbacks_set_on_frame_recv_callback(load.callbacks, on_frame)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(load.callbacks, on_data)
        nghttp2_session_callbacks_set_on_stream_close_callback(load.callbacks, on_close)
        nghttp2_session_callbacks_set_on_header_callback(load.callbacks, on_header)

    def __dealloc__(self) -> None:
        cdef Load* load = &self.load
        cdef Connection* connection
        cdef uint32_t i, j
        if load.connections != NULL:
            for i in range(load.n_connections):
                connection = &load.connections[i]
                if connection.session != NULL:
                    nghttp2_session_del(connection.session)
                if connection.load != NULL and connection.fd >= 0:
                    close(connection.fd)
                if connection.calls != NULL:
                    for j in range(load.n_streams):
                        free(connection.calls[j].sent)
                free(connection.calls)
                free(connection.out)
                free(connection.reply)
            if load.epoll >= 0:
                close(load.epoll)
        if load.callbacks != NULL:
            nghttp2_session_callbacks_del(load.callbacks)
        if load.option != NULL:
            nghttp2_option_del(load.option)
        free(load.connections)
        free(load.dirty)
        free(load.credits)
        free(load.messages)
        free(load.headers)
        free(load.input)

    def move_times(self, list places, int64_t first_ms, int64_t step_ms) -> None:
        """Event times move: by first_ms now, by step_ms each time that a message is sent again.

        places: for each message where its times are, offset and number of sfixed64 (0: one sint64).
        """
        cdef Message* message
        cdef uint32_t i
        cdef size_t prefix = 0 if self.load.kind == REDIS else 5
        if len(places) != self.load.n_messages or self.load.n_messages < self.load.n_credits:
            raise ValueError("one place for each message, and more messages than may be under way")
        for i in range(self.load.n_messages):
            message = &self.load.messages[i]
            offset, n_times = places[i]
            message.times_at, message.n_times = prefix + offset, n_times
            if message.times_at + (8 * message.n_times or 10) > message.size:
                raise ValueError(f"message {i} ends before its times do")
            if move_times(message, first_ms) != 0:
                raise ValueError(f"message {i}: its time, moved, has another length")
        self.load.step_ms = step_ms

    def run(self) -> None:
        """Until it is over, without the GIL. What went wrong is in `error`."""
        with nogil:
            run(&self.load)

    def stop(self) -> None:
        """Ends the run at once; what is under way is not counted."""
        self.load.is_stopped = True

    @property
    def n_answered(self) -> int:
        """Messages, those of the warm-up too."""
        return self.load.n_calls + self.load.n_warm

    @property
    def n_sent(self) -> int:
        """Messages, whether answered or not."""
        return self.load.n_given

    @property
    def error(self) -> str | None:
        """Why the run ended early."""
        return self.load.error.decode(errors="replace") if self.load.error[0] else None

    def found(self) -> dict[str, object]:
        """What was measured; times in ns, histograms as counts."""
        cdef Load* load = &self.load
        cdef Failure* failure
        failures = []
        for i in range(load.n_failures):
            failure = &load.failures[i]
            text = failure.text[:failure.n_text].decode(errors="replace")
            failures.append((NAMES[failure.status], text, failure.n))
        return {
            "calls": load.n_calls,
            "warmup_calls": load.n_warm,
            "statuses": {name: load.statuses[i] for i, name in enumerate(NAMES) if load.statuses[i]},
            "stream_statuses": {
                name: load.stream_statuses[i] for i, name in enumerate(NAMES) if load.stream_statuses[i]},
            "failures": failures,
            "other_failures": load.n_other,
            "span_ns": load.last_ns - load.measure_ns if load.n_calls else 0,
            "cpu_ns": load.cpu_ns,
            "latency": np.asarray(self._latency), "max_ns": load.max_ns, "sum_ns": load.sum_ns,
            "lag": np.asarray(self._lag), "max_lag_ns": load.max_lag_ns, "sum_lag_ns": load.sum_lag_ns,
            "reply_bytes": load.n_reply_bytes,
            "checksum": load.checksum & 0xFFFFFFFF,
            "bytes_in": load.n_bytes_in,
            "bytes_out": load.n_bytes_out,
            "goaways": load.n_goaways,
        }
