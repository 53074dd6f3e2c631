"""Which batches each producer has sent; see producers.pxd.

The table is keyed by SipHash with the store's secret: whoever chooses producer names cannot make them
collide. It has a cap, because whoever reaches the port may invent names. At the cap a new producer takes the
place of the one silent longest, if that is longer than PRODUCER_IDLE_MS, else its batch is turned away.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t, uint32_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memcpy, memset

from featurestore.core.bytes cimport Bytes, bytes_append
from featurestore.core.plan cimport UNSET_MS, plan_structs
from featurestore.core.stored cimport by_words, is_clock

from featurestore.core.structs import same_structs

same_structs(__name__, producers_structs(), plan_structs())

cdef enum:
    PRODUCER_IDLE_MS = 604_800_000      # 7 days


cdef int producers_init(ProducerTable* table, uint64_t max_producers) noexcept nogil:
    memset(table, 0, sizeof(ProducerTable))
    table.max_producers = max_producers
    table.oldest_ms = UNSET_MS
    table.n_places = 16
    table.places = <Producer**>calloc(table.n_places, sizeof(void*))
    return 0 if table.places != NULL else -1


cdef void producers_clear(ProducerTable* table) noexcept nogil:
    cdef uint64_t i
    if table.places != NULL:
        for i in range(table.n_places):
            free(table.places[i])
    free(table.places)
    memset(table, 0, sizeof(ProducerTable))


cdef Producer** _producer_place(const ProducerTable* table, uint64_t fp0, uint64_t fp1) noexcept nogil:
    """Its place, or the empty place where it would go: the table is never full."""
    cdef uint64_t at = fp0 & (table.n_places - 1)
    while table.places[at] != NULL and (table.places[at].fp0 != fp0 or table.places[at].fp1 != fp1):
        at = (at + 1) & (table.n_places - 1)
    return &table.places[at]


cdef Producer* _idlest(ProducerTable* table, int64_t now_ms) noexcept nogil:
    """The producer that may be forgotten for a new one, or NULL. Depends on content only: ties go by
    fingerprint."""
    cdef Producer* best = NULL
    cdef Producer* other
    cdef int64_t oldest_ms = now_ms
    cdef uint64_t i
    if now_ms == UNSET_MS or table.oldest_ms > now_ms - PRODUCER_IDLE_MS:
        return NULL                      # whoever invents names must not make the store search each time
    for i in range(table.n_places):
        other = table.places[i]
        if other == NULL:
            continue
        if other.last_ms < oldest_ms:
            oldest_ms = other.last_ms
        if other.last_ms > now_ms - PRODUCER_IDLE_MS:
            continue
        if best == NULL or other.last_ms < best.last_ms or (other.last_ms == best.last_ms
                                                            and other.fp0 < best.fp0):
            best = other
    table.oldest_ms = oldest_ms
    return best


cdef int producers_judge(ProducerTable* table, const Origin* origin, int64_t now_ms) noexcept nogil:
    cdef const Producer* producer
    cdef uint64_t seen
    if not origin.given:
        return VERDICT_NEW
    producer = _producer_place(table, origin.fp0, origin.fp1)[0]
    if producer == NULL:
        if table.n_producers < table.max_producers or _idlest(table, now_ms) != NULL:
            return VERDICT_NEW
        return VERDICT_FULL
    if origin.epoch != producer.epoch:
        return VERDICT_NEW if origin.epoch > producer.epoch else VERDICT_FENCED
    if origin.sequence > producer.highest:
        return VERDICT_NEW
    if producer.highest - origin.sequence >= SEQUENCES:
        return VERDICT_TOO_OLD
    seen = producer.content[origin.sequence % SEQUENCES]
    if seen == 0:
        return VERDICT_NEW
    return VERDICT_DUPLICATE if seen == origin.content else VERDICT_CONFLICT


cdef int _grow_producers(ProducerTable* table) noexcept nogil:
    cdef ProducerTable grown = table[0]
    cdef uint64_t i
    grown.n_places = table.n_places * 2
    grown.places = <Producer**>calloc(grown.n_places, sizeof(void*))
    if grown.places == NULL:
        return -1
    for i in range(table.n_places):
        if table.places[i] != NULL:
            _producer_place(&grown, table.places[i].fp0, table.places[i].fp1)[0] = table.places[i]
    free(table.places)
    grown.moves += 1
    table[0] = grown
    return 0


cdef void _forget_producer(ProducerTable* table, Producer* gone) noexcept nogil:
    """Removes it and closes the gap, so that no probe ends too early."""
    cdef uint64_t mask = table.n_places - 1, at = gone.fp0 & mask
    cdef Producer* moved
    while table.places[at] != gone:
        at = (at + 1) & mask
    table.places[at] = NULL
    free(gone)
    table.n_producers -= 1
    table.moves += 1
    at = (at + 1) & mask
    while table.places[at] != NULL:
        moved = table.places[at]
        table.places[at] = NULL
        _producer_place(table, moved.fp0, moved.fp1)[0] = moved
        at = (at + 1) & mask


cdef Producer* _make_producer(ProducerTable* table, uint64_t fp0, uint64_t fp1,
                              int64_t now_ms) noexcept nogil:
    cdef Producer* producer
    if table.n_producers >= table.max_producers:
        producer = _idlest(table, now_ms)
        if producer != NULL:
            _forget_producer(table, producer)
    if (table.n_producers + 1) * 4 > table.n_places * 3 and _grow_producers(table) < 0:
        return NULL
    producer = <Producer*>calloc(1, sizeof(Producer))
    if producer != NULL:
        producer.fp0 = fp0
        producer.fp1 = fp1
        _producer_place(table, fp0, fp1)[0] = producer
        table.n_producers += 1
    return producer


cdef Producer* producers_of(ProducerTable* table, const Origin* origin, int64_t now_ms) noexcept nogil:
    cdef Producer* producer = _producer_place(table, origin.fp0, origin.fp1)[0]
    if producer == NULL:
        producer = _make_producer(table, origin.fp0, origin.fp1, now_ms)
    return producer


cdef void producer_remember(Producer* producer, const Origin* origin, int64_t now_ms) noexcept nogil:
    cdef uint64_t gap, i
    # Never live, where such batches are turned away. A replay begins with tables that may be ahead of its
    # first batches.
    if origin.epoch < producer.epoch or (
            origin.epoch == producer.epoch and producer.highest > origin.sequence and
            producer.highest - origin.sequence >= SEQUENCES):
        return
    if origin.epoch > producer.epoch:
        memset(producer.content, 0, sizeof(producer.content))
        producer.epoch = origin.epoch
        producer.highest = origin.sequence
    elif origin.sequence > producer.highest:
        gap = origin.sequence - producer.highest
        for i in range(1, gap if gap < SEQUENCES else SEQUENCES):
            producer.content[(producer.highest + i) % SEQUENCES] = 0
        if gap >= SEQUENCES:
            memset(producer.content, 0, sizeof(producer.content))
        producer.highest = origin.sequence
    producer.content[origin.sequence % SEQUENCES] = origin.content
    producer.last_ms = now_ms


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian. Per producer: u64[2] fingerprint, u64 epoch, u64 highest, i64 last, u64[1025] content

cdef int producers_copy(const ProducerTable* table, ProducerCursor* cursor, uint32_t max_places,
                        Bytes* out) noexcept nogil:
    cdef uint32_t looked = 0
    if cursor.moves != table.moves:
        cursor.moves = table.moves
        cursor.place = 0
        out.n_bytes = cursor.began
    while cursor.place < table.n_places:
        if looked == max_places:
            return 1
        looked += 1
        if table.places[cursor.place] != NULL:
            if bytes_append(out, table.places[cursor.place], sizeof(Producer)) < 0:
                return -1
        cursor.place += 1
    return 0


cdef int _by_producer(const void* a, const void* b) noexcept nogil:
    return by_words(<const uint64_t*>a, <const uint64_t*>b)


cdef void producers_sort(Bytes* producers) noexcept nogil:
    if producers.n_bytes:
        qsort(producers.data, producers.n_bytes // sizeof(Producer), sizeof(Producer), _by_producer)


cdef int producers_import(ProducerTable* table, const uint8_t* data, size_t n_bytes) noexcept nogil:
    cdef Producer producer
    cdef Producer* made
    cdef size_t k
    if n_bytes % sizeof(Producer):
        return 1
    for k in range(n_bytes // sizeof(Producer)):
        memcpy(&producer, data + k * sizeof(Producer), sizeof(Producer))
        if not is_clock(producer.last_ms):
            return 1
        made = _producer_place(table, producer.fp0, producer.fp1)[0]
        if made == NULL:
            made = _make_producer(table, producer.fp0, producer.fp1, UNSET_MS)
            if made == NULL:
                return -1
        made[0] = producer
        table.oldest_ms = UNSET_MS
    return 0
