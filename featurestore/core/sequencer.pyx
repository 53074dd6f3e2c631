"""Clock, lateness, refusals, duplicates; see sequencer.pxd for who calls what and when.

What it remembers of producers and of event ids is beneath it: producers.pyx, ids.pyx.
"""

from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from featurestore.core.batch cimport (
    OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, OUTCOME_LATE, REFUSED_BEYOND_DEDUPE, REFUSED_FUTURE, REFUSED_MEMORY,
    REFUSED_NO_ID, Batch,
)
from featurestore.core.bytes cimport Bytes, bytes_append
from featurestore.core.ids cimport (
    ID_BYTES, ID_NEW, ID_SEEN, ID_UNKNOWN, ID_WANTED, SEGMENT_IDS, Id, IdSet, IdTable, id_set_init,
    id_set_place, ids_adopt, ids_bytes, ids_clear, ids_drop, ids_init, ids_judge, ids_live_bytes, ids_oldest,
    ids_prefetch, ids_remember,
)
from featurestore.core.plan cimport UNSET_MS, EventC, PlanC, TouchC, ViewC
from featurestore.core.producers cimport (
    Origin, Producer, producer_remember, producers_clear, producers_init, producers_of, producers_set_back,
)
from featurestore.core.stored cimport all_zero, is_clock
from featurestore.core.window cimport lifetime_takes, view_horizon, window_structs

from featurestore.core.structs import same_structs

same_structs(__name__, sequencer_structs(), window_structs())

cdef enum:
    AHEAD = 8                    # events whose ids are looked up next


cdef int sequencer_init(Sequencer* s, const PlanC* plan, uint8_t clock, int64_t max_future_ms,
                        uint64_t max_producer_bytes, uint64_t max_id_bytes) noexcept nogil:
    cdef uint16_t n_types = plan.n_events, i
    memset(s, 0, sizeof(Sequencer))
    s.clock = clock
    s.max_future_ms = max_future_ms
    s.now_ms = UNSET_MS
    s.n_types = n_types
    s.type_nows = <int64_t*>malloc((n_types + 1) * sizeof(int64_t))
    s.first_nows = <int64_t*>malloc((n_types + 1) * sizeof(int64_t))
    s.dedupe_floors = <int64_t*>malloc((n_types + 1) * sizeof(int64_t))
    s.partly_late = <uint64_t*>calloc(n_types + 1, sizeof(uint64_t))
    s.untouched = <uint64_t*>calloc(n_types + 1, sizeof(uint64_t))
    s.n_entities = plan.n_entities
    s.shed = <uint64_t*>calloc(<size_t>plan.n_entities + 1, sizeof(uint64_t))
    if (producers_init(&s.producers, max_producer_bytes) < 0 or s.type_nows == NULL or s.first_nows == NULL
            or s.dedupe_floors == NULL or s.partly_late == NULL or s.untouched == NULL or s.shed == NULL
            or ids_init(&s.ids, plan, max_id_bytes) < 0):
        sequencer_clear(s)
        return -1
    for i in range(n_types):
        s.type_nows[i] = s.first_nows[i] = s.dedupe_floors[i] = UNSET_MS
    return 0


cdef void sequencer_clear(Sequencer* s) noexcept nogil:
    producers_clear(&s.producers)
    free(s.type_nows)
    free(s.first_nows)
    free(s.dedupe_floors)
    free(s.partly_late)
    free(s.untouched)
    free(s.shed)
    ids_clear(&s.ids)
    memset(s, 0, sizeof(Sequencer))


# -- decide and commit ---------------------------------------------------------------------------------------

cdef enum Drops:
    DROPS_NONE = 0
    DROPS_SOME = 1               # what matches the event, but not all of it
    DROPS_ALL = 2

cdef inline int _drops(const PlanC* plan, const Batch* batch, const Facts* facts, uint32_t i,
                       int64_t now_ms) noexcept nogil:
    """Which of the logs, sketches and lifetimes that the event matches drop its time."""
    cdef const EventC* event = &plan.events[batch.event]
    cdef const TouchC* touch
    cdef const ViewC* view
    cdef bint taken = False, dropped = False
    cdef uint16_t j, k
    for j in range(event.n_touches):
        if facts.missing[<size_t>j * batch.n_events + i]:
            continue
        touch = &event.touches[j]
        for k in range(touch.n_all):
            view = &plan.views[touch.views[k]]
            if view.where >= 0 and not facts.masks[<size_t>view.where * batch.n_events + i]:
                continue
            if view.has_windows:
                if batch.times[i] >= view_horizon(view, now_ms):
                    taken = True
                else:
                    dropped = True
            if lifetime_takes(view, batch.times[i], now_ms):
                taken = True
            elif view.has_lifetime:
                dropped = True
    if taken:
        return DROPS_SOME if dropped else DROPS_NONE
    return DROPS_ALL if dropped else DROPS_NONE


cdef uint64_t _bytes_of_others(const Sequencer* s, uint16_t type_, int64_t now_ms) noexcept nogil:
    """What ids of the other event types take that are within their horizons."""
    cdef uint64_t n = 0
    cdef uint16_t i
    for i in range(s.n_types):
        if i != type_ and s.ids.tables[i].n_ids:
            n += ids_live_bytes(&s.ids.tables[i], ids_oldest(
                &s.ids.tables[i], now_ms if s.clock == CLOCK_WALL else s.type_nows[i]))
    return n


cdef int sequencer_decide(const Sequencer* s, const PlanC* plan, const Batch* batch, const Facts* facts,
                          int64_t wall_ms, int64_t* nows, uint8_t* partly) noexcept nogil:
    cdef const EventC* event = &plan.events[batch.event]
    cdef int64_t now = s.type_nows[batch.event] if s.clock != CLOCK_WALL else wall_ms, t, then
    cdef const IdTable* table = &s.ids.tables[batch.event]
    cdef IdSet in_batch
    cdef Id* id_ = NULL
    cdef int64_t oldest_ms = 0, latest_ms = INT64_MAX
    cdef uint64_t new_bytes = 0, others_bytes = 0
    cdef uint32_t i
    cdef int verdict = ID_NEW, status = 0, drops
    # Most batches are far from the cap, whatever has expired.
    cdef bint is_near_cap = event.id_field >= 0 and (
        ids_bytes(&s.ids) + batch.n_events * <uint64_t>ID_BYTES > s.ids.max_bytes)
    if s.clock == CLOCK_WALL and s.now_ms > now:
        now = s.now_ms
    # Whichever clock: one that events move would else follow the first of them that is dated years ahead.
    if s.clock == CLOCK_WALL:
        latest_ms = now + s.max_future_ms
    elif wall_ms > 0:
        latest_ms = wall_ms + s.max_future_ms
    memset(&in_batch, 0, sizeof(in_batch))
    if is_near_cap:
        others_bytes = _bytes_of_others(s, batch.event, now)
    if event.id_field >= 0:
        if id_set_init(&in_batch, batch.n_events) < 0:
            return -1
        for i in range(min(<uint32_t>AHEAD, batch.n_events)):
            ids_prefetch(table, &facts.id_fps[2 * i])
    for i in range(batch.n_events):
        nows[i] = now
        partly[i] = 0
        if event.id_field >= 0 and batch.n_events - i > AHEAD:
            ids_prefetch(table, &facts.id_fps[2 * (i + AHEAD)])
        if batch.outcomes[i] != OUTCOME_ACCEPTED:
            continue
        t = batch.times[i]
        then = t if s.clock != CLOCK_WALL and t > now else now       # the clock, if this event is accepted
        if t > latest_ms:
            batch.outcomes[i] = REFUSED_FUTURE
            continue
        if event.id_field >= 0:
            if facts.id_missing[i]:
                batch.outcomes[i] = REFUSED_NO_ID
                continue
            if t < then - event.dedupe_ms or t < s.dedupe_floors[batch.event]:
                batch.outcomes[i] = REFUSED_BEYOND_DEDUPE
                continue
            oldest_ms = ids_oldest(table, then)
            id_ = id_set_place(&in_batch, &facts.id_fps[2 * i])
            verdict = ID_SEEN
            if (id_.fp0 | id_.fp1) == 0 or id_.seen_at_ms < oldest_ms:
                verdict = ids_judge(table, &facts.id_fps[2 * i], oldest_ms, i, facts.cold)
            if verdict == ID_SEEN:
                batch.outcomes[i] = OUTCOME_DUPLICATE
                continue
            if verdict == ID_WANTED:
                status = 1
                continue
            if verdict < 0:
                status = -1
                break
        drops = DROPS_NONE
        if t < then - event.min_keep_ms or t < event.max_floor_ms:
            drops = _drops(plan, batch, facts, i, then)
        if drops == DROPS_ALL:
            batch.outcomes[i] = OUTCOME_LATE
            continue
        if verdict == ID_UNKNOWN:
            batch.outcomes[i] = REFUSED_MEMORY
            continue
        if event.id_field >= 0:
            if is_near_cap and (others_bytes + new_bytes + ids_live_bytes(table, oldest_ms) + ID_BYTES
                                > s.ids.max_bytes):
                batch.outcomes[i] = REFUSED_MEMORY
                continue
            new_bytes += ID_BYTES
            id_.fp0 = facts.id_fps[2 * i]
            id_.fp1 = facts.id_fps[2 * i + 1]
            id_.seen_at_ms = t if t > then else then
        partly[i] = drops == DROPS_SOME
        now = nows[i] = then
    free(in_batch.places)
    return status


cdef int sequencer_commit(Sequencer* s, const Batch* batch, const Facts* facts, const Origin* origin,
                          int64_t wall_ms, int64_t* nows) noexcept nogil:
    cdef int64_t now = s.type_nows[batch.event] if s.clock != CLOCK_WALL else wall_ms, t
    cdef Producer* producer = NULL
    cdef IdTable* ids = &s.ids.tables[batch.event]
    cdef uint32_t i
    if s.clock == CLOCK_WALL and s.now_ms > now:
        now = s.now_ms
    if origin.given:
        producer = producers_of(&s.producers, origin, wall_ms)
        if producer == NULL:
            return -1
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED:
            t = batch.times[i]
            if s.clock != CLOCK_WALL and t > now:
                now = t
            if s.first_nows[batch.event] == UNSET_MS:
                s.first_nows[batch.event] = now
            if facts.id_fps != NULL and ids_remember(&s.ids, ids, &facts.id_fps[2 * i], t if t > now else now,
                                                     now) < 0:
                return -1
        nows[i] = now
    s.type_nows[batch.event] = now
    if now > s.now_ms:
        s.now_ms = now
    if s.clock != CLOCK_EVENT:
        for i in range(s.n_types):
            s.type_nows[i] = now
    if facts.id_fps != NULL:
        # What a batch can fill expires no faster, so that dropping keeps up.
        ids_drop(&s.ids, ids, ids_oldest(ids, now), 2 + batch.n_events // SEGMENT_IDS)
    s.position += batch.n_events
    if producer != NULL:
        producer_remember(&s.producers, producer, origin, wall_ms)
    return 0


cdef void sequencer_adopt(Sequencer* s, uint16_t type_, Sequencer* old, uint16_t old_type,
                          bint same_ids) noexcept nogil:
    cdef int64_t now = old.type_nows[old_type]
    if same_ids:
        ids_adopt(&s.ids, &s.ids.tables[type_], &old.ids, &old.ids.tables[old_type], now)
    else:                        # a checkpoint knows segments by their number: none has the same twice
        s.ids.tables[type_].first = old.ids.tables[old_type].first + old.ids.tables[old_type].n_segments
    s.type_nows[type_] = now
    s.first_nows[type_] = old.first_nows[old_type]
    s.partly_late[type_] = old.partly_late[old_type]
    s.untouched[type_] = old.untouched[old_type]


cdef void sequencer_set_clock(Sequencer* s, uint8_t clock, int64_t now_ms) noexcept nogil:
    cdef bint is_back = s.now_ms != UNSET_MS and now_ms < s.now_ms
    cdef uint16_t i
    s.clock = clock
    s.now_ms = now_ms
    for i in range(s.n_types):
        s.type_nows[i] = now_ms
        if is_back:
            ids_drop(&s.ids, &s.ids.tables[i], INT64_MAX, UINT32_MAX)
            s.ids.tables[i].floor_ms = UNSET_MS
    if is_back:
        producers_set_back(&s.producers, now_ms)


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian: u32 version (3; 4 while shards of rows may be ahead of it; 5 and 6 where keys were shed), u8
# clock (ClockC), u8 1 where the store was made with another (the engine's word, for programs that would go by
# that one: they refuse it), u8[2] 0, i64 now, u64 position, u32 event types, u32 0, then per type: u16
# event_id, u8[6] 0, i64 now, i64 now at its first accepted event, and since version 3 i64 floor of its ids

cdef enum:
    HEAD_BYTES = 32
    TYPE_BYTES = 32
    TYPE_BYTES_BEFORE_3 = 24


cdef int sequencer_export_head(const Sequencer* s, const PlanC* plan, Bytes* out) noexcept nogil:
    cdef uint8_t head[HEAD_BYTES]
    cdef uint8_t type_head[TYPE_BYTES]
    cdef uint32_t version = 3, n = s.n_types
    cdef uint16_t i
    memset(head, 0, sizeof(head))
    memcpy(head, &version, 4)
    head[4] = s.clock
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
        memcpy(type_head + 24, &s.ids.tables[i].floor_ms, 8)
        if bytes_append(out, type_head, TYPE_BYTES) < 0:
            return -1
    return 0


cdef int sequencer_import_head(Sequencer* s, const PlanC* plan, const uint8_t* data,
                               size_t n_bytes) noexcept nogil:
    cdef uint32_t version, n_types, type_bytes, k
    cdef uint16_t event_id, i
    cdef int64_t now_ms, first_now_ms, floor_ms = UNSET_MS
    cdef const uint8_t* at
    if n_bytes < HEAD_BYTES:
        return 1
    memcpy(&version, data, 4)
    memcpy(&n_types, data + 24, 4)
    type_bytes = TYPE_BYTES if version > 2 else TYPE_BYTES_BEFORE_3
    if version < 1 or version > 6 or n_types > 0xFFFF or n_bytes != HEAD_BYTES + <size_t>n_types * type_bytes:
        return 1
    memcpy(&now_ms, data + 8, 8)
    if (data[4] > CLOCK_MERGED or data[5] > 1 or not all_zero(data + 6, 2) or not all_zero(data + 28, 4)
            or not is_clock(now_ms)):
        return 1
    s.clock = data[4]
    s.now_ms = now_ms
    memcpy(&s.position, data + 16, 8)
    for k in range(n_types):
        at = data + HEAD_BYTES + <size_t>k * type_bytes
        memcpy(&event_id, at, 2)
        memcpy(&now_ms, at + 8, 8)
        memcpy(&first_now_ms, at + 16, 8)
        if version > 2:
            memcpy(&floor_ms, at + 24, 8)
        if (not all_zero(at + 2, 6) or not is_clock(now_ms) or not is_clock(first_now_ms)
                or not is_clock(floor_ms)):
            return 1
        for i in range(s.n_types):
            if plan.events[i].event_id == event_id:
                s.type_nows[i] = now_ms
                s.first_nows[i] = first_now_ms
                s.ids.tables[i].floor_ms = floor_ms
    return 0
