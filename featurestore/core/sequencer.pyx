"""Clock, lateness, refusals, duplicates; see sequencer.pxd for who calls what and when.

Ids are keyed by SipHash with the store's secret: whoever chooses them cannot make them collide. They have a
cap, because whoever reaches the port may invent some: at the cap a new id refuses its event (REFUSED_MEMORY)
until older ones expire. Producers are as producers.pyx says.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy, memset

from featurestore.core.batch cimport (
    OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, OUTCOME_LATE, REFUSED_BEYOND_DEDUPE, REFUSED_FUTURE, REFUSED_MEMORY,
    REFUSED_NO_ID, Batch,
)
from featurestore.core.bytes cimport Bytes, bytes_append
from featurestore.core.plan cimport UNSET_MS, EventC, PlanC, TouchC, ViewC
from featurestore.core.producers cimport (
    Origin, Producer, producer_remember, producers_clear, producers_init, producers_of,
)
from featurestore.core.stored cimport all_zero, by_words, is_clock
from featurestore.core.window cimport view_horizon, window_structs

from featurestore.core.structs import same_structs

same_structs(__name__, sequencer_structs(), window_structs())

cdef int sequencer_init(Sequencer* s, const PlanC* plan, bint event_clock, int64_t max_future_ms,
                        uint64_t max_producers, uint64_t max_ids) noexcept nogil:
    cdef uint16_t n_types = plan.n_events, i
    memset(s, 0, sizeof(Sequencer))
    s.event_clock = event_clock
    s.max_future_ms = max_future_ms
    s.now_ms = UNSET_MS
    s.max_ids = max_ids
    s.n_types = n_types
    s.type_nows = <int64_t*>malloc((n_types + 1) * sizeof(int64_t))
    s.first_nows = <int64_t*>malloc((n_types + 1) * sizeof(int64_t))
    s.ids = <IdTable*>calloc(n_types + 1, sizeof(IdTable))
    if (producers_init(&s.producers, max_producers) < 0 or s.type_nows == NULL or s.first_nows == NULL
            or s.ids == NULL):
        sequencer_clear(s)
        return -1
    for i in range(n_types):
        s.type_nows[i] = s.first_nows[i] = UNSET_MS
        s.ids[i].dedupe_ms = plan.events[i].dedupe_ms
    return 0


cdef void sequencer_clear(Sequencer* s) noexcept nogil:
    cdef uint64_t i
    if s.ids != NULL:
        for i in range(s.n_types):
            free(s.ids[i].places)
    producers_clear(&s.producers)
    free(s.type_nows)
    free(s.first_nows)
    free(s.ids)
    memset(s, 0, sizeof(Sequencer))


# -- ids -----------------------------------------------------------------------------------------------------

cdef Id* _id_place(const IdTable* table, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef uint64_t at = fp0 & (table.n_places - 1)
    while (table.places[at].fp0 | table.places[at].fp1) and (
            table.places[at].fp0 != fp0 or table.places[at].fp1 != fp1):
        at = (at + 1) & (table.n_places - 1)
    return &table.places[at]


cdef inline int64_t _age_ms(const IdTable* table) noexcept nogil:
    return table.dedupe_ms // AGES_PER_HORIZON + 1


cdef inline int64_t _age(const IdTable* table, int64_t seen_at_ms) noexcept nogil:
    cdef int64_t width_ms = _age_ms(table)
    return seen_at_ms // width_ms - (seen_at_ms % width_ms < 0)          # C's division rounds towards 0


cdef inline uint32_t _age_place(int64_t age) noexcept nogil:
    return <uint32_t>(<uint64_t>age % AGES)


cdef void _add_age(IdTable* table, int64_t seen_at_ms, int64_t oldest_ms) noexcept nogil:
    cdef int64_t age = _age(table, seen_at_ms)
    cdef uint32_t at = _age_place(age)
    if table.of_age[at] == 0 or (table.ages[at] + 1) * _age_ms(table) <= oldest_ms:
        table.of_age[at] = 0
        table.ages[at] = age
    elif table.ages[at] < age:
        table.ages[at] = age             # two ages at one place count as the younger
    table.of_age[at] += 1


cdef void _remove_age(IdTable* table, int64_t seen_at_ms) noexcept nogil:
    cdef int64_t age = _age(table, seen_at_ms)
    cdef uint32_t at = _age_place(age)
    if table.ages[at] == age and table.of_age[at]:
        table.of_age[at] -= 1


cdef uint64_t _n_live(const IdTable* table, int64_t oldest_ms) noexcept nogil:
    """Ids seen at oldest_ms or later; perhaps a few more, never fewer."""
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(AGES):
        if (table.ages[i] + 1) * _age_ms(table) > oldest_ms:
            n += table.of_age[i]
    return n if n < table.n_used else table.n_used


cdef int _rebuild_ids(Sequencer* s, IdTable* table, uint64_t more, int64_t oldest_ms) noexcept nogil:
    """Without the ids seen before oldest_ms, and with room for `more`."""
    cdef IdTable grown = table[0]
    cdef uint64_t i, live = 0
    for i in range(table.n_places):
        live += (table.places[i].fp0 | table.places[i].fp1) != 0 and table.places[i].seen_at_ms >= oldest_ms
    grown.n_places = 64
    while (live + more) * 2 > grown.n_places:
        grown.n_places *= 2
    grown.places = <Id*>calloc(grown.n_places, sizeof(Id))
    grown.n_used = live
    grown.moves += 1
    if grown.places == NULL:
        return -1
    memset(grown.of_age, 0, sizeof(grown.of_age))
    for i in range(table.n_places):
        if (table.places[i].fp0 | table.places[i].fp1) and table.places[i].seen_at_ms >= oldest_ms:
            _id_place(&grown, table.places[i].fp0, table.places[i].fp1)[0] = table.places[i]
            _add_age(&grown, table.places[i].seen_at_ms, oldest_ms)
    free(table.places)
    s.n_ids = s.n_ids - table.n_used + live
    table[0] = grown
    return 0


cdef int _reserve_ids(Sequencer* s, IdTable* table, uint64_t more, int64_t oldest_ms) noexcept nogil:
    """Room for `more` ids. Expired ones (seen before oldest_ms) go when the table is full, or when all tables
    together are and it is worth it."""
    if (table.n_used + more) * 4 <= table.n_places * 3 and (
            s.n_ids + more <= s.max_ids or _n_live(table, oldest_ms) * 8 > table.n_used * 7):
        return 0
    return _rebuild_ids(s, table, more, oldest_ms)


cdef inline void _remember_id(Sequencer* s, IdTable* table, const uint64_t* fp, int64_t seen_at_ms,
                              int64_t oldest_ms) noexcept nogil:
    """There is room for it."""
    cdef Id* id_ = _id_place(table, fp[0], fp[1])
    if (id_.fp0 | id_.fp1) == 0:
        table.n_used += 1
        s.n_ids += 1
    else:
        _remove_age(table, id_.seen_at_ms)
    id_.fp0 = fp[0]
    id_.fp1 = fp[1]
    id_.seen_at_ms = seen_at_ms
    _add_age(table, seen_at_ms, oldest_ms)


cdef bint _seen_before(const IdTable* table, const uint64_t* fp, int64_t oldest_ms) noexcept nogil:
    cdef const Id* id_
    if table.n_places == 0:
        return False
    id_ = _id_place(table, fp[0], fp[1])
    return (id_.fp0 | id_.fp1) != 0 and id_.seen_at_ms >= oldest_ms


cdef uint64_t _n_live_of_others(const Sequencer* s, uint16_t type_, int64_t now_ms) noexcept nogil:
    """Ids of the other event types within their horizons."""
    cdef uint64_t n = 0
    cdef int64_t now
    cdef uint16_t i
    for i in range(s.n_types):
        if i != type_ and s.ids[i].n_used:
            now = s.type_nows[i] if s.event_clock else now_ms
            n += _n_live(&s.ids[i], now - s.ids[i].dedupe_ms)
    return n


cdef int sequencer_adopt(Sequencer* s, uint16_t type_, Sequencer* old, uint16_t old_type,
                         bint same_ids) noexcept nogil:
    cdef IdTable* table = &old.ids[old_type]
    cdef int64_t dedupe_ms = s.ids[type_].dedupe_ms, before_ms = table.dedupe_ms
    cdef int64_t now = old.type_nows[old_type]
    if same_ids and dedupe_ms != before_ms and table.n_places:
        table.dedupe_ms = dedupe_ms
        if _rebuild_ids(old, table, 0, now - before_ms) < 0:
            table.dedupe_ms = before_ms
            return -1
    if same_ids:
        s.ids[type_] = table[0]
        s.ids[type_].dedupe_ms = dedupe_ms
        s.n_ids += table.n_used
        memset(table, 0, sizeof(IdTable))
    s.type_nows[type_] = now
    s.first_nows[type_] = old.first_nows[old_type]
    return 0


# -- decide and commit ---------------------------------------------------------------------------------------

cdef inline bint _is_late(const PlanC* plan, const Batch* batch, const Facts* facts, uint32_t i,
                          int64_t now_ms) noexcept nogil:
    """Every view that the event matches has dropped its time, and there is one."""
    cdef const EventC* event = &plan.events[batch.event]
    cdef const TouchC* touch
    cdef const ViewC* view
    cdef bint matched = False
    cdef uint16_t j, k
    for j in range(event.n_touches):
        if facts.missing[<size_t>j * batch.n_events + i]:
            continue
        touch = &event.touches[j]
        for k in range(touch.n_all):
            view = &plan.views[touch.views[k]]
            if view.where >= 0 and not facts.masks[<size_t>view.where * batch.n_events + i]:
                continue
            if batch.times[i] >= view_horizon(view, now_ms):
                return False
            matched = True
    return matched


cdef int sequencer_decide(const Sequencer* s, const PlanC* plan, const Batch* batch, const Facts* facts,
                          int64_t wall_ms, int64_t* nows) noexcept nogil:
    cdef const EventC* event = &plan.events[batch.event]
    cdef int64_t now = s.type_nows[batch.event] if s.event_clock else wall_ms, t, then
    cdef IdTable in_batch
    cdef Id* id_ = NULL
    cdef uint64_t n_new = 0, n_others = 0
    cdef uint32_t i
    # Most batches are far from the cap, whatever has expired.
    cdef bint is_near_cap = event.id_field >= 0 and s.n_ids + batch.n_events > s.max_ids
    if not s.event_clock and s.now_ms > now:
        now = s.now_ms
    memset(&in_batch, 0, sizeof(in_batch))
    if is_near_cap:
        n_others = _n_live_of_others(s, batch.event, now)
    if event.id_field >= 0:
        in_batch.n_places = 16
        while in_batch.n_places < <uint64_t>batch.n_events * 2:
            in_batch.n_places *= 2
        in_batch.places = <Id*>calloc(in_batch.n_places, sizeof(Id))
        if in_batch.places == NULL:
            return -1
    for i in range(batch.n_events):
        nows[i] = now
        if batch.outcomes[i] != OUTCOME_ACCEPTED:
            continue
        t = batch.times[i]
        then = t if s.event_clock and t > now else now       # the clock, if this event is accepted
        if not s.event_clock and t > now + s.max_future_ms:
            batch.outcomes[i] = REFUSED_FUTURE
            continue
        if event.id_field >= 0:
            if facts.id_missing[i]:
                batch.outcomes[i] = REFUSED_NO_ID
                continue
            if t < then - event.dedupe_ms:
                batch.outcomes[i] = REFUSED_BEYOND_DEDUPE
                continue
            id_ = _id_place(&in_batch, facts.id_fps[2 * i], facts.id_fps[2 * i + 1])
            if (id_.fp0 | id_.fp1 and id_.seen_at_ms >= then - event.dedupe_ms) or _seen_before(
                    &s.ids[batch.event], &facts.id_fps[2 * i], then - event.dedupe_ms):
                batch.outcomes[i] = OUTCOME_DUPLICATE
                continue
        if (t < then - event.min_keep_ms or t < event.max_floor_ms) and _is_late(plan, batch, facts, i, then):
            batch.outcomes[i] = OUTCOME_LATE
            continue
        if facts.homeless != NULL and facts.homeless[i]:
            batch.outcomes[i] = REFUSED_MEMORY
            continue
        if event.id_field >= 0:
            if is_near_cap and n_others + n_new + _n_live(
                    &s.ids[batch.event], then - event.dedupe_ms) >= s.max_ids:
                batch.outcomes[i] = REFUSED_MEMORY
                continue
            n_new += 1
            id_.fp0 = facts.id_fps[2 * i]
            id_.fp1 = facts.id_fps[2 * i + 1]
            id_.seen_at_ms = t if t > then else then
        now = nows[i] = then
    free(in_batch.places)
    return 0


cdef int sequencer_commit(Sequencer* s, const Batch* batch, const Facts* facts, const Origin* origin,
                          int64_t wall_ms, int64_t* nows) noexcept nogil:
    cdef int64_t now = s.type_nows[batch.event] if s.event_clock else wall_ms, t, last
    cdef Producer* producer = NULL
    cdef IdTable* ids = &s.ids[batch.event]
    cdef uint32_t i, n_accepted = 0
    if not s.event_clock and s.now_ms > now:
        now = s.now_ms
    if origin.given:
        producer = producers_of(&s.producers, origin, s.now_ms)
        if producer == NULL:
            return -1
    last = now
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED:
            n_accepted += 1
            if s.event_clock and batch.times[i] > last:
                last = batch.times[i]
    if facts.id_fps != NULL and n_accepted and _reserve_ids(s, ids, n_accepted, last - ids.dedupe_ms) < 0:
        return -1
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED:
            t = batch.times[i]
            if s.event_clock and t > now:
                now = t
            if s.first_nows[batch.event] == UNSET_MS:
                s.first_nows[batch.event] = now
            if facts.id_fps != NULL:
                _remember_id(s, ids, &facts.id_fps[2 * i], t if t > now else now, now - ids.dedupe_ms)
        nows[i] = now
    s.type_nows[batch.event] = now
    if now > s.now_ms:
        s.now_ms = now
    if not s.event_clock:
        for i in range(s.n_types):
            s.type_nows[i] = now
    s.position += batch.n_events
    if producer != NULL:
        producer_remember(producer, origin, s.now_ms)
    return 0


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian.
#   head       u32 version (1), u8 event_clock, u8[3] 0, i64 now, u64 position, u32 event types, u32 0,
#              then per type: u16 event_id, u8[6] 0, i64 now, i64 now at its first accepted event
#   ids        per id: u16 event_id, u8[6] 0, u64[2] fingerprint, i64 seen_at

cdef enum:
    HEAD_BYTES = 32
    TYPE_BYTES = 24

ctypedef struct IdRecord:
    uint16_t event_id
    uint16_t zero[3]
    Id id_


cdef int sequencer_export_head(const Sequencer* s, const PlanC* plan, Bytes* out) noexcept nogil:
    cdef uint8_t head[HEAD_BYTES]
    cdef uint8_t type_head[TYPE_BYTES]
    cdef uint32_t version = 1, n = s.n_types
    cdef uint16_t i
    memset(head, 0, sizeof(head))
    memcpy(head, &version, 4)
    head[4] = s.event_clock
    memcpy(head + 8, &s.now_ms, 8)
    memcpy(head + 16, &s.position, 8)
    memcpy(head + 24, &n, 4)
    if bytes_append(out, head, HEAD_BYTES) < 0:
        return -1
    for i in range(s.n_types):
        memset(type_head, 0, TYPE_BYTES)
        memcpy(type_head, &plan.events[i].event_id, 2)
        memcpy(type_head + 8, &s.type_nows[i], 8)
        memcpy(type_head + 16, &s.first_nows[i], 8)
        if bytes_append(out, type_head, TYPE_BYTES) < 0:
            return -1
    return 0


cdef int sequencer_copy_ids(const Sequencer* s, const PlanC* plan, TableCursor* cursor, uint32_t max_places,
                            Bytes* out) noexcept nogil:
    cdef const IdTable* table
    cdef const Id* id_
    cdef IdRecord record
    cdef uint32_t looked = 0
    memset(&record, 0, sizeof(record))
    while cursor.type_ < s.n_types:
        table = &s.ids[cursor.type_]
        if cursor.moves != table.moves:
            cursor.moves = table.moves
            cursor.place = 0
            out.n_bytes = cursor.began
        record.event_id = plan.events[cursor.type_].event_id
        while cursor.place < table.n_places:
            if looked == max_places:
                return 1
            looked += 1
            id_ = &table.places[cursor.place]
            if (id_.fp0 | id_.fp1) and id_.seen_at_ms >= s.type_nows[cursor.type_] - table.dedupe_ms:
                record.id_ = id_[0]
                if bytes_append(out, &record, sizeof(record)) < 0:
                    return -1
            cursor.place += 1
        cursor.type_ += 1
        cursor.moves = cursor.place = 0
        cursor.began = out.n_bytes
    return 0


cdef int _by_id(const void* a, const void* b) noexcept nogil:
    cdef const IdRecord* x = <const IdRecord*>a
    cdef const IdRecord* y = <const IdRecord*>b
    if x.event_id != y.event_id:
        return 1 if x.event_id > y.event_id else -1
    return by_words(&x.id_.fp0, &y.id_.fp0)


cdef void sequencer_sort_ids(Bytes* ids) noexcept nogil:
    if ids.n_bytes:
        qsort(ids.data, ids.n_bytes // sizeof(IdRecord), sizeof(IdRecord), _by_id)


cdef int sequencer_import_head(Sequencer* s, const PlanC* plan, const uint8_t* data,
                               size_t n_bytes) noexcept nogil:
    cdef uint32_t version, n_types, k
    cdef uint16_t event_id, i
    cdef int64_t now_ms, first_now_ms
    cdef const uint8_t* at
    if n_bytes < HEAD_BYTES:
        return 1
    memcpy(&version, data, 4)
    memcpy(&n_types, data + 24, 4)
    if version != 1 or n_types > 0xFFFF or n_bytes != HEAD_BYTES + <size_t>n_types * TYPE_BYTES:
        return 1
    memcpy(&now_ms, data + 8, 8)
    if data[4] > 1 or not all_zero(data + 5, 3) or not all_zero(data + 28, 4) or not is_clock(now_ms):
        return 1
    s.event_clock = data[4]
    s.now_ms = now_ms
    memcpy(&s.position, data + 16, 8)
    for k in range(n_types):
        at = data + HEAD_BYTES + <size_t>k * TYPE_BYTES
        memcpy(&event_id, at, 2)
        memcpy(&now_ms, at + 8, 8)
        memcpy(&first_now_ms, at + 16, 8)
        if not all_zero(at + 2, 6) or not is_clock(now_ms) or not is_clock(first_now_ms):
            return 1
        for i in range(s.n_types):
            if plan.events[i].event_id == event_id:
                s.type_nows[i] = now_ms
                s.first_nows[i] = first_now_ms
    return 0


cdef int sequencer_import_ids(Sequencer* s, const PlanC* plan, const uint8_t* data,
                              size_t n_bytes) noexcept nogil:
    cdef IdRecord record
    cdef size_t k
    cdef uint16_t i
    if n_bytes % sizeof(IdRecord):
        return 1
    for k in range(n_bytes // sizeof(IdRecord)):
        memcpy(&record, data + k * sizeof(IdRecord), sizeof(IdRecord))
        if ((record.id_.fp0 | record.id_.fp1) == 0 or not is_clock(record.id_.seen_at_ms)
                or record.zero[0] or record.zero[1] or record.zero[2]):
            return 1
        for i in range(s.n_types):
            if plan.events[i].event_id == record.event_id:
                if _reserve_ids(s, &s.ids[i], 1, UNSET_MS) < 0:
                    return -1
                _remember_id(s, &s.ids[i], &record.id_.fp0, record.id_.seen_at_ms, UNSET_MS)
                break
    return 0
