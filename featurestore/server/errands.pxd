# What a loop has others do, so that it need not wait: an errand goes out, and the same errand comes back.
#
#   loop ── RUN ──────────────► worker            a message that would take long, or has to wait for others
#        ── SHAKE ────────────► worker            a step of a connection's TLS handshake
#        ── WORDS ────────────► Python            a failed Call: its status and words
#        ── START, MESSAGE,
#           HALF_CLOSE, CANCEL ► Python            a call of a method that Python answers
#        ◄─ the same, or NEXT, REPLY, END ─────── through the loop's inbox
#
# A queue is a list under a lock and holds no more than there are calls, which are bounded: a message that is
# with others counts as one until it is back, even if its client has gone long before. An errand has one
# owner: whoever took it from a queue, or the queue. What it points to it owns: `memory`, and `call` until
# it is given back.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from featurestore.core.pthread cimport pthread_cond_t, pthread_mutex_t
from featurestore.server.dispatcher cimport Call, dispatcher_structs

cdef enum ErrandKind:
    ERRAND_RUN = 0                   # data: the message. Comes back with call and answer
    ERRAND_WORDS = 1                 # call: failed. Comes back as END
    ERRAND_START = 2                 # target: a call begins
    ERRAND_MESSAGE = 3               # data: a message of its client
    ERRAND_HALF_CLOSE = 4            # its client has sent all
    ERRAND_CANCEL = 5                # nobody waits for its answer any more
    ERRAND_NEXT = 6                  # Python has taken the message: send the next
    ERRAND_REPLY = 7                 # data: a message for the client
    ERRAND_END = 8                   # status, data: percent-encoded words, and the error's class behind them
    ERRAND_SHAKE = 9                 # connection: hears what its client says of the handshake, and answers

cdef enum:                           # Errand.answer of a RUN that was not run
    NOT_RUN_NO_CALL = -1             # no Call was to be had
    NOT_RUN_LATE = -2                # its deadline had passed, or it was in vain

ctypedef struct Errand:
    Errand* next
    int kind                         # ErrandKind
    int method                       # of the dispatcher
    int target                       # of the host
    int answer                       # RUN that comes back: an Answer, or why none; SHAKE: a TlsResult
    int status                       # END: a gRPC status code
    uint64_t token                   # of the stream: see connection.pxd
    void* loop                       # whose inbox it comes back to
    Call* call
    int64_t deadline_ns              # CLOCK_MONOTONIC; 0: none
    uint64_t began_ns                # RUN: when it was put there, by the same clock
    uint8_t* memory                  # owned; data lies in it
    const uint8_t* data
    size_t size
    size_t class_bytes               # END: behind data
    bint is_unknown                  # END: whether anything was applied is not known
    void* connection                 # of its stream; to be looked at only where n_out is not 0
    uint64_t is_vain                 # RUN, a read: nobody waits for its answer any more; atomic
    uint64_t n_out                   # of what the connection has out, and stays for: comes back with this
    int place                        # a Kind that it holds, whatever becomes of its stream; or NO_PLACE
    size_t held                      # bytes for which there is no room until it is back; a MESSAGE's come
                                     # back with NEXT or END

ctypedef struct Queue:
    pthread_mutex_t lock
    pthread_cond_t filled
    Errand* first
    Errand* last
    uint64_t n
    bint is_closed                   # takers return

cdef int queue_init(Queue* queue) noexcept nogil
cdef void queue_destroy(Queue* queue) noexcept nogil
# Returns whether it was empty: then somebody may have to be woken.
cdef bint queue_put(Queue* queue, Errand* errand) noexcept nogil
# Waits; NULL when the queue is closed and empty.
cdef Errand* queue_take(Queue* queue) noexcept nogil
# All there is, oldest first; NULL for nothing. Does not wait.
cdef Errand* queue_take_all(Queue* queue) noexcept nogil
cdef void queue_close(Queue* queue) noexcept nogil
# A new errand with room for `size` bytes in its memory; NULL when there is none.
cdef Errand* errand_new(int kind, size_t size) noexcept nogil
cdef void errand_free(Errand* errand) noexcept nogil

cdef inline bint errand_is_late(const Errand* errand, int64_t now_ns) noexcept nogil:
    return errand.deadline_ns != 0 and now_ns >= errand.deadline_ns

# Compared at import: see core/structs.py.
cdef inline dict errands_structs():
    return dispatcher_structs() | {"server/errands.pxd": (sizeof(Errand), sizeof(Queue))}
