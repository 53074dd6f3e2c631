"""Request bytes in, reply bytes out: what every transport does with a hot call; dispatcher.pxd draws the way
of a call.

What it promises:

- A call is of one schema from its first byte to its last: names, plan and reply change together, under the
plan lock.
- A reply says which ack its write has, and that is true. One that is to be durable and is not when its
  caller's time is over says that it is applied. A duplicate waits for what it repeats.
- Whatever the bytes are, the answer is a reply or a named fault, memory stays within its limits, and a call
that is
  answered with a fault has changed nothing. (Two exceptions, both named: FAULT_LOST and FAULT_UNANSWERED were
  written, and of the first only whether a power cut would spare it is not known. A retry with the same
  sequence finds out.)
- In the steady state a call allocates nothing: its memory is that of a call before it.

Words are made outside: `Dispatcher.exception` takes the GIL after every lock has been let go.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from featurestore.clock cimport clock_monotonic_ns
from featurestore.core.batch cimport OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, Batch, Column
from featurestore.core.plan cimport UNSET_MS, EventC, ServiceC
from featurestore.core.sequencer cimport CLOCK_WALL
from featurestore.core.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
    pthread_rwlock_rdlock, pthread_rwlock_tryrdlock, pthread_rwlock_unlock,
)
from featurestore.core.producers cimport VERDICT_DUPLICATE, is_unknown
from featurestore.core.state cimport work_clear
from featurestore.core.window cimport Outputs
from featurestore.engine cimport (
    ENGINE_BUSY, ENGINE_FAILED, ENGINE_OK, ENGINE_VERDICT, Engine, Sender, engine_read, engine_write,
)
from featurestore.server.codec cimport (
    ACK_APPLIED, ACK_DEFAULT, ACK_DURABLE, IngestCall, ObserveCall, ReadCall, codec_structs,
    wire_decode_ingest, wire_decode_observe, wire_decode_read,
)
from featurestore.server.memory cimport (
    Arena, Buffer, arena_alloc, arena_free, arena_reset, buffer_extend, buffer_free,
)
from featurestore.server.names cimport WIRE_OK, FieldTable, WireSchema, wire_exception
from featurestore.server.replies cimport (
    MAX_REFUSALS, VectorsView, replies_structs, wire_encode_ingest, wire_encode_observe, wire_encode_read,
)
from featurestore.storage.frame cimport buffer_free as body_free
from featurestore.storage.journal cimport (
    JOURNAL_OK, JOURNAL_TIMEOUT, MODE_PROCESS, journal_acknowledged, journal_durable, journal_hurry,
    journal_wait,
)

from featurestore.core.structs import same_structs
from featurestore.errors import LimitError, StorageError, UnavailableError
from featurestore.server.status import status_of

same_structs(__name__, dispatcher_structs(), codec_structs(), replies_structs())

cdef extern from * nogil:
    """
    #define fs_add(counter, n) ((void)__atomic_fetch_add((counter), (n), __ATOMIC_RELAXED))
    #define fs_sub(counter, n) ((void)__atomic_fetch_sub((counter), (n), __ATOMIC_RELEASE))
    #define fs_store(counter, n) __atomic_store_n((counter), (n), __ATOMIC_RELAXED)
    #define fs_load(counter) __atomic_load_n((counter), __ATOMIC_ACQUIRE)
    #define fs_swap(place, was, to) __atomic_compare_exchange_n((place), (was), (to), 0, __ATOMIC_RELAXED, \
                                                                __ATOMIC_RELAXED)
    #define fs_bits(x) (64 - __builtin_clzll((x) | 1))
    """
    void fs_add(uint64_t* counter, uint64_t n) noexcept
    void fs_sub(uint64_t* counter, uint64_t n) noexcept
    void fs_store(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_load(const uint64_t* counter) noexcept
    bint fs_swap(uint64_t* place, uint64_t* was, uint64_t to) noexcept
    int fs_bits(uint64_t x) noexcept

cdef enum:
    KEEP_BYTES = 1 << 20             # of each of a Call's four pieces of memory, from one request to the next
    FIRST_REASON = 16                # Outcome: the first refusal
    MAX_NAME_BYTES = 256             # of a wrong name that is repeated in an error
    UNKNOWN_STATUS = 2               # a gRPC status code
    # What a reply takes at most:
    HEAD_BYTES = 256                 # everything but the next two
    VALUE_BYTES = 29                 # per value: itself, lower, upper, status, coverage
    REFUSAL_BYTES = 20               # per refusal listed, but for the name of its field
    SHORT_READ_BYTES = 4096          # a shorter read takes less time than giving the GIL away and back

#: What a client calls each method, by its number.
METHODS = ("Observe", "Ingest", "GetFeatures", "IngestStream", "GetFeaturesStream")
OBSERVE, INGEST, READ, INGEST_STREAM, READ_STREAM = range(N_METHODS)


# -- the pool
# -------------------------------------------------------------------------------------------------

cdef Call* dispatcher_take(DispatcherC* d) noexcept nogil:
    cdef Call* call
    cdef bint may_make = False
    pthread_mutex_lock(&d.pool_lock)
    call = d.idle
    if call != NULL:
        d.idle = call.next
        d.n_idle -= 1
    elif d.n_calls < d.max_calls:
        d.n_calls += 1
        may_make = True
    pthread_mutex_unlock(&d.pool_lock)
    if may_make:
        call = <Call*>calloc(1, sizeof(Call))
        if call == NULL:
            pthread_mutex_lock(&d.pool_lock)
            d.n_calls -= 1
            pthread_mutex_unlock(&d.pool_lock)
            return NULL
        call.arena.max_bytes = d.max_arena_bytes
        call.reply.max_bytes = d.max_reply_bytes
    return call


cdef void _let_edition_go(Call* call) noexcept nogil:
    if call.edition != NULL:
        fs_sub(&call.edition.users, 1)
        call.edition = NULL


cdef void _free_call(Call* call) noexcept nogil:
    arena_free(&call.arena)
    work_clear(&call.work)
    body_free(&call.body)
    buffer_free(&call.reply)
    free(call)


cdef void dispatcher_give(DispatcherC* d, Call* call) noexcept nogil:
    _let_edition_go(call)
    call.fault = FAULT_NONE
    call.position = 0
    arena_reset(&call.arena, KEEP_BYTES)
    if call.work.capacity > KEEP_BYTES or call.work.vectors_bytes > KEEP_BYTES:
        work_clear(&call.work)
    if call.body.capacity > KEEP_BYTES:
        body_free(&call.body)
    if call.reply.capacity > KEEP_BYTES:
        buffer_free(&call.reply)
    call.reply.size = 0
    pthread_mutex_lock(&d.pool_lock)
    call.next = d.idle
    d.idle = call
    d.n_idle += 1
    pthread_mutex_unlock(&d.pool_lock)


# -- one call
# -------------------------------------------------------------------------------------------------

cdef void _count_asked(AskedC* asked, uint64_t now_ns) noexcept nogil:
    cdef uint64_t period = now_ns >> 32
    cdef uint64_t* place = &asked.periods[period % N_PERIODS]
    cdef uint64_t was = fs_load(place)
    fs_add(&asked.calls, 1)
    fs_store(&asked.last_ns, now_ns)
    # Whoever comes first in a period begins its count; who loses that race finds it begun.
    if was >> 32 >= period or not fs_swap(place, &was, period << 32 | 1):
        fs_add(place, 1)


cdef double _calls_per_s(const AskedC* asked, uint64_t now_ns, uint64_t began_ns) noexcept nogil:
    """Over the last periods, of which the newest is under way; since began_ns, and over a second at least."""
    cdef uint64_t period = now_ns >> 32, calls = 0, found, since_ns
    cdef uint64_t oldest = period - min(period, <uint64_t>(N_PERIODS - 1))
    cdef uint32_t i
    for i in range(<uint32_t>N_PERIODS):
        found = fs_load(&asked.periods[i])
        if oldest <= found >> 32 and found >> 32 <= period:
            calls += <uint32_t>found
    since_ns = min(max(oldest << 32, began_ns), now_ns)
    return calls * 1e9 / <double>max(now_ns - since_ns, <uint64_t>1000000000)


cdef int _failed(Call* call, int fault) noexcept nogil:
    call.fault = fault
    return ANSWER_ERROR


cdef int _unreadable(Call* call, Edition* edition) noexcept nogil:
    """The request could not be decoded. The words for it need the edition, which a schema change may
    replace.
    """
    call.edition = edition
    fs_add(&edition.users, 1)
    return _failed(call, FAULT_WIRE)


cdef int _untaken(Call* call) noexcept nogil:
    return ANSWER_BUSY if call.engine_status == ENGINE_BUSY else _failed(call, FAULT_ENGINE)


cdef bint _room_for_vectors(Arena* arena, uint64_t n_values, bint bounds, Outputs* outputs) noexcept nogil:
    """Where the engine writes n_values values (all of them, so nothing is cleared)."""
    memset(outputs, 0, sizeof(Outputs))
    outputs.values = <double*>arena_alloc(arena, n_values, sizeof(double))
    outputs.statuses = <uint8_t*>arena_alloc(arena, n_values, 1)
    outputs.coverage = <float*>arena_alloc(arena, n_values, sizeof(float))
    if bounds:
        outputs.lower = <double*>arena_alloc(arena, n_values, sizeof(double))
        outputs.upper = <double*>arena_alloc(arena, n_values, sizeof(double))
        if outputs.lower == NULL or outputs.upper == NULL:
            return False
    return outputs.values != NULL and outputs.statuses != NULL and outputs.coverage != NULL


cdef int _make_sure(Buffer* reply, uint64_t n_bytes) noexcept nogil:
    """A Fault unless the reply can take n_bytes: after a write there is no way back, so this is asked before
    it.
    """
    if n_bytes > reply.max_bytes - reply.size:
        return FAULT_REPLY
    if buffer_extend(reply, n_bytes) == NULL:
        return FAULT_MEMORY
    reply.size -= n_bytes
    return FAULT_NONE


cdef bint _is_large(Call* call, uint64_t n, uint64_t each, bint waits) noexcept nogil:
    """Whether n rows of so much each are more than a caller who is not to be held up runs itself."""
    cdef uint64_t cost = n * each
    call.cost = <uint32_t>min(cost, <uint64_t>0xFFFFFFFF)
    return not waits and cost > MOST_COST


cdef uint64_t _vector_cost(const ServiceC* service, bint bounds, bint coverage) noexcept nogil:
    """Of a key set: what is computed, and encoded of it."""
    return (<uint64_t>service.read_width + service.n_slots
            + <uint64_t>service.width * ((2 if bounds else 0) + (1 if coverage else 0)))


cdef uint64_t _event_cost(const EventC* event) noexcept nogil:
    """Of an event: its fields, and the views that it feeds."""
    cdef uint64_t cost = 1 + event.n_fields
    cdef uint16_t i
    for i in range(event.n_touches):
        cost += 1 + <uint64_t>event.touches[i].n_all
    return cost


cdef VectorsView _view(const Outputs* outputs, uint32_t n, uint32_t width, bint coverage) noexcept nogil:
    cdef VectorsView view
    view.n = n
    view.width = width
    view.values = outputs.values
    view.lower = outputs.lower
    view.upper = outputs.upper
    view.statuses = outputs.statuses
    view.coverage = outputs.coverage if coverage else NULL
    return view


cdef void _sender_of(const IngestCall* write, Sender* sender) noexcept nogil:
    sender.name = write.producer
    sender.name_bytes = write.producer_length
    sender.epoch = write.epoch
    sender.sequence = write.sequence
    sender.unawaited = write.ack == ACK_APPLIED


cdef void _count_refusals(DispatcherC* d, const Batch* batch) noexcept nogil:
    cdef uint64_t n[N_REASONS]
    cdef uint32_t i
    cdef uint8_t outcome
    memset(n, 0, sizeof(n))
    for i in range(batch.n_events):
        outcome = batch.outcomes[i]
        if outcome >= FIRST_REASON and outcome < FIRST_REASON + N_REASONS:
            n[outcome - FIRST_REASON] += 1
    for i in range(<uint32_t>N_REASONS):
        if n[i]:
            fs_add(&d.refused[i], n[i])


cdef bint _is_kept(const Batch* batch) noexcept nogil:
    """The journal has an event of the batch, from this call or, by its id, from one before."""
    cdef uint32_t i
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED or batch.outcomes[i] == OUTCOME_DUPLICATE:
            return True
    return False


cdef uint8_t _ack_of_mode(const DispatcherC* d) noexcept nogil:
    return ACK_APPLIED if d.engine.journal.mode == MODE_PROCESS else ACK_DURABLE


cdef int _settle(DispatcherC* d, Call* call, const Batch* batch, uint8_t wanted, uint8_t* ack) noexcept nogil:
    """What a write that the engine took may be answered with, and when: an Answer. `ack` is what will then be
    true.

    A write that kept nothing has nothing to survive: its ack stays unspecified and it waits for nothing.
    """
    ack[0] = ACK_DEFAULT
    call.position = call.result.position
    if not call.result.written and call.result.verdict != VERDICT_DUPLICATE and not _is_kept(batch):
        return ANSWER_DONE
    ack[0] = wanted
    if wanted == ACK_DURABLE:
        if journal_durable(d.engine.journal) >= call.position:
            return ANSWER_DONE
        journal_hurry(d.engine.journal)
        return ANSWER_PARKED
    if d.engine.journal.mode == MODE_PROCESS and journal_acknowledged(d.engine.journal) < call.position:
        return _failed(call, FAULT_LOST)
    return ANSWER_DONE


cdef int _run_observe(DispatcherC* d, Call* call, const uint8_t* message, size_t size,
                      bint waits) noexcept nogil:
    cdef Edition* edition = d.edition
    cdef ObserveCall request
    cdef const FieldTable* fields
    cdef Outputs outputs
    cdef VectorsView view
    cdef const ServiceC* service = NULL
    cdef uint64_t fingerprint = 0
    cdef uint8_t ack = ACK_DEFAULT
    cdef uint64_t cost, n_bytes = HEAD_BYTES
    cdef int answer = ANSWER_DONE
    if wire_decode_observe(edition.tables, &call.arena, message, size, &request, &call.wire) != WIRE_OK:
        return _unreadable(call, edition)
    if request.write.ack == ACK_DEFAULT:
        request.write.ack = d.observe_ack
    _sender_of(&request.write, &call.sender)
    fields = &edition.tables.events[request.write.batch.event]
    n_bytes += fields.keys_bytes + fields.name_bytes
    cost = _event_cost(&d.engine.state.plan.events[request.write.batch.event])
    if request.service >= 0:
        service = &d.engine.state.plan.services[request.service]
        fingerprint = edition.tables.services[request.service].fingerprint
        n_bytes += <uint64_t>service.width * VALUE_BYTES
        cost += _vector_cost(service, request.bounds, request.coverage)
        if not _room_for_vectors(&call.arena, service.width, request.bounds, &outputs):
            return _failed(call, FAULT_MEMORY)
    if _is_large(call, 1, cost, waits):
        return ANSWER_LARGE
    call.fault = _make_sure(&call.reply, n_bytes)
    if call.fault != FAULT_NONE:
        return ANSWER_ERROR
    call.engine_status = engine_write(d.engine, &request.write.batch, &call.sender, &call.work, &call.body,
                                      service, &outputs, request.peek, waits, &call.result)
    if call.engine_status != ENGINE_OK:
        return _untaken(call)
    if not request.peek:
        if call.result.verdict != VERDICT_DUPLICATE:
            _count_refusals(d, &request.write.batch)
        answer = _settle(d, call, &request.write.batch, request.write.ack, &ack)
        if answer == ANSWER_ERROR:
            return answer
    if service != NULL:
        _count_asked(edition.asked[request.service], call.began_ns)
        view = _view(&outputs, 1, service.width, request.coverage)
    if not wire_encode_observe(&call.reply, request.write.batch.outcomes[0], call.result.partly_late != 0,
                               ack, call.result.position, &call.ack_back,
                               NULL if service == NULL else &view, fingerprint,
                               1.0 if service == NULL else service.confidence,
                               &fields.keys, call.result.first_shed, fields, request.write.refused_by):
        return _failed(call, FAULT_UNANSWERED)
    return answer


cdef int _run_ingest(DispatcherC* d, Call* call, const uint8_t* message, size_t size,
                     bint streamed, bint waits) noexcept nogil:
    cdef Edition* edition = d.edition
    cdef IngestCall request
    cdef const FieldTable* fields
    cdef uint64_t n_listed
    cdef uint8_t ack = ACK_DEFAULT
    cdef bint duplicate
    cdef int answer
    if wire_decode_ingest(edition.tables, &call.arena, message, size, streamed, &request,
                          &call.wire) != WIRE_OK:
        return _unreadable(call, edition)
    if _is_large(call, request.batch.n_events,
                 _event_cost(&d.engine.state.plan.events[request.batch.event]), waits):
        return ANSWER_LARGE
    if request.ack == ACK_DEFAULT:
        request.ack = _ack_of_mode(d)
    _sender_of(&request, &call.sender)
    fields = &edition.tables.events[request.batch.event]
    n_listed = request.max_refusals if request.max_refusals else <uint64_t>MAX_REFUSALS
    n_listed = min(n_listed, <uint64_t>request.batch.n_events)
    call.fault = _make_sure(&call.reply, HEAD_BYTES + n_listed * (REFUSAL_BYTES + fields.name_bytes))
    if call.fault != FAULT_NONE:
        return ANSWER_ERROR
    call.engine_status = engine_write(d.engine, &request.batch, &call.sender, &call.work, &call.body,
                                      NULL, NULL, False, waits, &call.result)
    if call.engine_status != ENGINE_OK:
        return _untaken(call)
    duplicate = call.result.verdict == VERDICT_DUPLICATE
    if not duplicate:
        _count_refusals(d, &request.batch)
    answer = _settle(d, call, &request.batch, request.ack, &ack)
    if answer == ANSWER_ERROR:
        return answer
    if not wire_encode_ingest(&call.reply, streamed, request.batch.outcomes,
                              0 if duplicate else request.batch.n_events, call.result.partly_late,
                              call.result.shed, ack, call.result.position, &call.ack_back,
                              request.sequence, duplicate, request.max_refusals, fields, request.refused_by):
        return _failed(call, FAULT_UNANSWERED)
    return answer


cdef int _run_read(DispatcherC* d, Call* call, const uint8_t* message, size_t size,
                   bint streamed, bint waits) noexcept nogil:
    cdef Edition* edition = d.edition
    cdef ReadCall request
    cdef Outputs outputs
    cdef VectorsView view
    cdef const ServiceC* service
    cdef const Column** parts
    cdef int64_t read_at = 0
    cdef uint64_t n_values
    cdef uint32_t i
    cdef bint had_now
    if wire_decode_read(edition.tables, &call.arena, message, size, streamed, &request,
                        &call.wire) != WIRE_OK:
        return _unreadable(call, edition)
    service = &d.engine.state.plan.services[request.service]
    n_values = <uint64_t>request.n * service.width
    if n_values * sizeof(double) > call.reply.max_bytes:
        return _failed(call, FAULT_REPLY)
    if _is_large(call, request.n, _vector_cost(service, request.bounds, request.coverage), waits):
        return ANSWER_LARGE
    parts = <const Column**>arena_alloc(&call.arena, request.n_parts, sizeof(Column*))
    if parts == NULL or not _room_for_vectors(&call.arena, n_values, request.bounds, &outputs):
        return _failed(call, FAULT_MEMORY)
    for i in range(request.n_parts):
        parts[i] = &request.parts[i]
    # An event-clock store has no now before its first event. It then reads at 0, which may also be its now:
    # only the store's own clock tells the two apart.
    had_now = d.engine.state.sequencer.clock == CLOCK_WALL or d.engine.state.sequencer.now_ms != UNSET_MS
    call.engine_status = engine_read(d.engine, service, parts, request.n, request.as_of, waits, &call.work,
                                     &outputs, &read_at)
    if call.engine_status != ENGINE_OK:
        return _untaken(call)
    _count_asked(edition.asked[request.service], call.began_ns)
    view = _view(&outputs, request.n, service.width, request.coverage)
    if not wire_encode_read(&call.reply, streamed, &view,
                            edition.tables.services[request.service].fingerprint, service.confidence,
                            &read_at if had_now or read_at != 0 else NULL):
        return _failed(call, FAULT_REPLY)
    return ANSWER_DONE


cdef int _run_locked(DispatcherC* d, Call* call, int method, const uint8_t* message, size_t size,
                     bint waits) noexcept nogil:
    """With the plan lock held, shared."""
    call.method = method
    call.began_ns = clock_monotonic_ns()
    call.cost = 0
    call.reply.max_bytes = d.max_reply_bytes + call.reply.size
    if method == METHOD_OBSERVE:
        return _run_observe(d, call, message, size, waits)
    if method == METHOD_INGEST or method == METHOD_INGEST_STREAM:
        return _run_ingest(d, call, message, size, method == METHOD_INGEST_STREAM, waits)
    return _run_read(d, call, message, size, method == METHOD_READ_STREAM, waits)


cdef int dispatcher_run(DispatcherC* d, Call* call, int method, const uint8_t* message,
                        size_t size) noexcept nogil:
    cdef int answer
    pthread_rwlock_rdlock(&d.engine.state.plan_lock)
    answer = _run_locked(d, call, method, message, size, True)
    pthread_rwlock_unlock(&d.engine.state.plan_lock)
    return answer


cdef int dispatcher_try(DispatcherC* d, Call* call, int method, const uint8_t* message,
                        size_t size) noexcept nogil:
    cdef int answer
    if pthread_rwlock_tryrdlock(&d.engine.state.plan_lock) != 0:
        return ANSWER_BUSY
    answer = _run_locked(d, call, method, message, size, False)
    pthread_rwlock_unlock(&d.engine.state.plan_lock)
    if answer == ANSWER_BUSY or answer == ANSWER_LARGE:
        arena_reset(&call.arena, KEEP_BYTES)
    return answer


cdef int dispatcher_wait(DispatcherC* d, Call* call, int64_t timeout_ns) noexcept nogil:
    cdef int status = journal_wait(d.engine.journal, call.position, timeout_ns)
    if status == JOURNAL_OK:
        return ANSWER_DONE
    return ANSWER_PARKED if status == JOURNAL_TIMEOUT else _failed(call, FAULT_LOST)


cdef int dispatcher_check(DispatcherC* d, Call* call) noexcept nogil:
    return dispatcher_wait(d, call, 0)


cdef void say_applied(uint8_t* ack) noexcept nogil:
    ack[0] = ACK_APPLIED


cdef bint dispatcher_is_unknown(const Call* call) noexcept nogil:
    if call.method == METHOD_READ or call.method == METHOD_READ_STREAM:
        return False
    if call.fault == FAULT_ENGINE:
        return call.engine_status == ENGINE_FAILED or (
            call.engine_status == ENGINE_VERDICT and is_unknown(call.result.verdict))
    return call.fault == FAULT_LOST or call.fault == FAULT_UNANSWERED


cdef void dispatcher_finish(DispatcherC* d, int method, uint64_t began_ns, int status) noexcept nogil:
    cdef MethodCounts* counts = &d.methods[method]
    cdef uint64_t took_ns = clock_monotonic_ns() - began_ns
    cdef int slot = fs_bits(took_ns // 1000) if took_ns >= 1000 else 0
    fs_add(&counts.total_ns, took_ns)
    fs_add(&counts.latencies[slot if slot < N_LATENCIES else N_LATENCIES - 1], 1)
    if status:
        fs_add(&counts.statuses[status if status < N_STATUSES else UNKNOWN_STATUS], 1)
    fs_add(&counts.calls, 1)


# -- Python
# ---------------------------------------------------------------------------------------------------

cdef int check_method(int method) except -1:
    if not 0 <= method < N_METHODS:
        raise ValueError(f"method {method} of {N_METHODS}")
    return 0


@cython.final
cdef class Asked:
    """How often one vector was asked for, and when last, since began_ns; times are of CLOCK_MONOTONIC."""
    cdef AskedC c
    cdef uint64_t began_ns

    def __init__(self, uint64_t began_ns):
        self.began_ns = began_ns

    def count(self, uint64_t now_ns):
        """One call more."""
        _count_asked(&self.c, now_ns)

    def calls_per_s(self, uint64_t now_ns):
        """Over the last 64 to 69 seconds, or since began_ns where that is less; over one second at least."""
        return _calls_per_s(&self.c, now_ns, self.began_ns)


@cython.final
cdef class Served:
    """The names of one plan, and how many failed calls still point into them."""
    cdef Edition edition
    cdef WireSchema schema
    cdef list asked                  # Asked, of each vector

    def __init__(self, WireSchema schema not None, list asked not None):
        cdef Asked each
        cdef size_t i
        self.schema = schema
        self.asked = asked
        self.edition.tables = &schema.tables
        self.edition.asked = <AskedC**>calloc(len(asked) + 1, sizeof(AskedC*))
        if self.edition.asked == NULL:
            raise MemoryError
        for i, each in enumerate(asked):
            self.edition.asked[i] = &each.c

    def __dealloc__(self):
        free(self.edition.asked)


@cython.final
@cython.no_gc_clear              # hosts that are freed give their calls back to it, and those ask its engine
cdef class Dispatcher:
    """Answers the hot methods of one store.

    max_calls: requests in work at once; further ones are a LimitError. max_message_bytes: of a request and of
    a reply. max_rows: events of a batch, key sets of a read. max_call_bytes: memory that one request may take
    when decoded. observe_ack: "applied" or "durable", what an Observe waits for that asks for neither.
    Close it before the store: `close` ends its part in schema changes. Any thread may call any method.
    """

    def __cinit__(self):
        self.made = pthread_mutex_init(&self.c.pool_lock, NULL) == 0
        if not self.made:
            raise MemoryError

    def __init__(self, Engine engine not None, *, uint32_t max_calls=256, size_t max_message_bytes=16 << 20,
                 size_t max_rows=1 << 20, size_t max_call_bytes=256 << 20, str observe_ack="applied"):
        if self.engine is not None:
            raise ValueError("a Dispatcher is made once")
        self.engine = engine
        self.limits = {
            "max_message_bytes": max_message_bytes,
            "max_rows": max_rows,
            "max_values": max_message_bytes // 8 + 1,
        }
        self.c.engine = &engine.c
        self.c.max_calls = max_calls
        self.c.max_reply_bytes = max_message_bytes
        self.c.max_arena_bytes = max_call_bytes
        self.c.observe_ack = ACK_DURABLE if observe_ack == "durable" else ACK_APPLIED
        self.served = []
        self.asked = {}
        engine.add_plan_listener(self)

    def __dealloc__(self):
        cdef Call* call = self.c.idle
        cdef Call* following
        while call != NULL:
            following = call.next
            _free_call(call)
            call = following
        if self.made:
            pthread_mutex_destroy(&self.c.pool_lock)

    def close(self):
        """No more schema changes reach it. Every thread that calls in must have left."""
        self.engine.remove_plan_listener(self)

    # -- a plan listener

    def prepare(self, plan):
        """The tables of a coming plan."""
        now_ns = clock_monotonic_ns()
        asked = [self.asked.get((each.name, each.fingerprint)) or Asked(now_ns) for each in plan.served]
        return Served(WireSchema(plan, **self.limits), asked)

    def adopt(self, Served served not None):
        """Answers with these names from now on; the plan lock is held exclusively (or nobody has called
        yet).
        """
        cdef Served old
        plan = served.schema.plan
        self.asked = {(each.name, each.fingerprint): asked
                      for each, asked in zip(plan.served, served.asked, strict=True)}
        self.served = [served] + [old for old in self.served if fs_load(&old.edition.users)]
        self.c.edition = &served.edition

    # -- words

    cdef object exception(self, Call* call):
        error = self._worded(call)
        error.applied = None if dispatcher_is_unknown(call) else False
        return error

    cdef object _worded(self, Call* call):
        cdef Served served
        if call.fault == FAULT_WIRE:
            # A name may be as long as a message, and looking for one like it takes time in its length.
            call.wire.text_length = min(call.wire.text_length, <size_t>MAX_NAME_BYTES)
            for served in self.served:
                if &served.edition == call.edition:
                    return wire_exception(served.schema, &call.wire)
            raise AssertionError("the edition of a failed call is gone")
        if call.fault == FAULT_ENGINE:
            return self.engine._write_error(call.engine_status, &call.result, &call.sender)
        if call.fault == FAULT_REPLY:
            return LimitError(f"the reply would be larger than {self.c.max_reply_bytes} bytes; ask for fewer "
                              "key sets at a time, or without bounds")
        if call.fault == FAULT_MEMORY:
            return LimitError(
                "the request would take more memory than one request may; ask for less at a time")
        if call.fault == FAULT_UNANSWERED:
            return UnavailableError(
                "applied, and there was no memory for the answer; send it again, with the same producer, "
                "epoch and sequence")
        return StorageError(
            f"the store failed before position {call.position} was on disk: whether it is kept shows after a "
            "restart; send it again then, with the same producer, epoch and sequence")

    cdef Call* taken(self, int method) except NULL:
        cdef Call* call
        check_method(method)
        call = dispatcher_take(&self.c)
        if call == NULL:
            error = LimitError(
                f"{self.c.max_calls} requests are in work, as many as may be; try again in a moment")
            error.applied = False
            raise error
        return call

    cdef object refusal(self, Call* call):
        """The exception, with the call counted and given back."""
        try:
            error = self.exception(call)
            dispatcher_finish(&self.c, call.method, call.began_ns, <int>status_of(error))
            return error
        finally:
            dispatcher_give(&self.c, call)

    # -- calls

    def call(self, int method, bytes message not None, timeout_s=None):
        """The reply to one message, when it may be sent: of a write timeout_s after it was asked for at the
        latest, then with the ack that it has. Raises the errors that featurestore.server.status names.
        """
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(message)
        cdef size_t size = len(message)
        cdef int64_t until_ns = 0 if timeout_s is None else clock_monotonic_ns() + int(timeout_s * 1e9)
        cdef Call* call = self.taken(method)
        cdef int answer = ANSWER_BUSY
        if method == METHOD_READ and size <= SHORT_READ_BYTES:
            answer = dispatcher_try(&self.c, call, method, data, size)
        if answer == ANSWER_BUSY or answer == ANSWER_LARGE:
            with nogil:
                answer = dispatcher_run(&self.c, call, method, data, size)
                if answer == ANSWER_PARKED:
                    answer = dispatcher_wait(&self.c, call,
                                             max(until_ns - clock_monotonic_ns(), 0) if until_ns else -1)
        if answer == ANSWER_PARKED:
            say_applied(call.reply.data + call.reply.size - call.ack_back)
        if answer == ANSWER_ERROR:
            raise self.refusal(call)
        try:
            return PyBytes_FromStringAndSize(<const char*>call.reply.data, call.reply.size)
        finally:
            dispatcher_finish(&self.c, method, call.began_ns, 0)
            dispatcher_give(&self.c, call)

    def begin(self, int method, bytes message not None):
        """As `call` without waiting: (reply, position to wait for or 0, when it began, where its ack stands).
        Then `end`.
        """
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(message)
        cdef size_t size = len(message)
        cdef Call* call = self.taken(method)
        cdef int answer
        with nogil:
            answer = dispatcher_run(&self.c, call, method, data, size)
        if answer == ANSWER_ERROR:
            raise self.refusal(call)
        try:
            reply = PyBytes_FromStringAndSize(<const char*>call.reply.data, call.reply.size)
            position = call.position if answer == ANSWER_PARKED else 0
            return reply, position, call.began_ns, call.reply.size - call.ack_back
        finally:
            dispatcher_give(&self.c, call)

    def end(self, int method, bytes reply not None, uint64_t position, uint64_t began_ns, uint64_t ack_at,
            timeout_s=None):
        """Waits until what `begin` gave may be sent, at most timeout_s, and counts the call: the reply."""
        cdef Call call
        cdef int64_t timeout_ns = -1 if timeout_s is None else max(0, int(timeout_s * 1e9))
        cdef int answer = ANSWER_DONE
        check_method(method)
        memset(&call, 0, sizeof(Call))
        call.position = position
        if position:
            with nogil:
                answer = dispatcher_wait(&self.c, &call, timeout_ns)
        if answer == ANSWER_ERROR:
            error = self.exception(&call)
            dispatcher_finish(&self.c, method, began_ns, <int>status_of(error))
            raise error
        dispatcher_finish(&self.c, method, began_ns, 0)
        if answer == ANSWER_PARKED:
            said = bytearray(reply)
            said[ack_at] = <int>ACK_APPLIED
            return bytes(said)
        return reply

    def count_heaviest(self, uint64_t began_ns, int status):
        """Counts a GetHeaviest that began at began_ns (monotonic) and ends now with a gRPC status code."""
        dispatcher_finish(&self.c, COUNTED_HEAVIEST, began_ns, status)

    def counts(self):
        """Since it was made. By method: calls, seconds, latencies ((bound in seconds, calls) not cumulative,
        the last bound infinite) and failures by gRPC status code; and refused events by Outcome."""
        cdef MethodCounts* counts
        cdef int i, j
        methods = {}
        for i in range(<int>N_COUNTED):
            counts = &self.c.methods[i]
            bounds = [2.0 ** j / 1e6 for j in range(N_LATENCIES - 1)] + [float("inf")]
            methods["GetHeaviest" if i == COUNTED_HEAVIEST else METHODS[i]] = {
                "calls": fs_load(&counts.calls),
                "seconds": fs_load(&counts.total_ns) / 1e9,
                "latencies": [(bounds[j], fs_load(&counts.latencies[j])) for j in range(<int>N_LATENCIES)],
                "failed": {j: fs_load(&counts.statuses[j]) for j in range(1, <int>N_STATUSES)
                           if counts.statuses[j]},
            }
        refused = {FIRST_REASON + i: fs_load(&self.c.refused[i]) for i in range(<int>N_REASONS)
                   if self.c.refused[i]}
        return {"methods": methods, "refused": refused}

    def asked_of(self, str service, str fingerprint):
        """How often a vector was asked for by Observe and GetFeatures since it is served here, how often a
        second of late (Asked.calls_per_s), and how many seconds ago last: (0, 0.0, None) where it never was.
        """
        cdef Asked asked = self.asked.get((service, fingerprint))
        cdef int64_t now_ns
        if asked is None or not fs_load(&asked.c.calls):
            return 0, 0.0, None
        now_ns = clock_monotonic_ns()
        ago_s = (now_ns - <int64_t>fs_load(&asked.c.last_ns)) / 1e9
        return fs_load(&asked.c.calls), asked.calls_per_s(now_ns), ago_s

    @property
    def n_calls(self):
        """Calls whose memory is held, in work or idle."""
        return self.c.n_calls

    @property
    def n_busy(self):
        """Requests in work."""
        return self.c.n_calls - self.c.n_idle
