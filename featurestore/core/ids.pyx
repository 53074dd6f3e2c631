"""Ids of accepted events; see ids.pxd for who calls what and when.

Keyed by SipHash with the store's secret: whoever chooses event ids cannot make them collide. There is a cap,
because whoever reaches the port may invent ids: at it a new id refuses its event (REFUSED_MEMORY) until older
ones expire.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memcpy, memset

from featurestore.core.bytes cimport Bytes, bytes_append
from featurestore.core.plan cimport UNSET_MS, PlanC
from featurestore.core.stored cimport by_words, is_clock

from featurestore.core.structs import same_structs

same_structs(__name__, ids_structs())


cdef int ids_init(Ids* ids, const PlanC* plan, uint64_t max_ids) noexcept nogil:
    cdef uint16_t i
    memset(ids, 0, sizeof(Ids))
    ids.tables = <IdTable*>calloc(plan.n_events + 1, sizeof(IdTable))
    if ids.tables == NULL:
        return -1
    ids.n_types = plan.n_events
    ids.max_ids = max_ids
    for i in range(plan.n_events):
        ids.tables[i].dedupe_ms = plan.events[i].dedupe_ms
    return 0


cdef void ids_clear(Ids* ids) noexcept nogil:
    cdef uint16_t i
    for i in range(ids.n_types):
        free(ids.tables[i].places)
    free(ids.tables)
    memset(ids, 0, sizeof(Ids))


cdef Id* id_place(const IdTable* table, uint64_t fp0, uint64_t fp1) noexcept nogil:
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


cdef uint64_t ids_live(const IdTable* table, int64_t oldest_ms) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(AGES):
        if (table.ages[i] + 1) * _age_ms(table) > oldest_ms:
            n += table.of_age[i]
    return n if n < table.n_used else table.n_used


cdef int _rebuild(Ids* ids, IdTable* table, uint64_t more, int64_t oldest_ms) noexcept nogil:
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
            id_place(&grown, table.places[i].fp0, table.places[i].fp1)[0] = table.places[i]
            _add_age(&grown, table.places[i].seen_at_ms, oldest_ms)
    free(table.places)
    ids.n_ids = ids.n_ids - table.n_used + live
    table[0] = grown
    return 0


cdef int ids_reserve(Ids* ids, IdTable* table, uint64_t more, int64_t oldest_ms) noexcept nogil:
    if (table.n_used + more) * 4 <= table.n_places * 3 and (
            ids.n_ids + more <= ids.max_ids or ids_live(table, oldest_ms) * 8 > table.n_used * 7):
        return 0
    return _rebuild(ids, table, more, oldest_ms)


cdef void ids_remember(Ids* ids, IdTable* table, const uint64_t* fp, int64_t seen_at_ms,
                       int64_t oldest_ms) noexcept nogil:
    cdef Id* id_ = id_place(table, fp[0], fp[1])
    if (id_.fp0 | id_.fp1) == 0:
        table.n_used += 1
        ids.n_ids += 1
    else:
        _remove_age(table, id_.seen_at_ms)
    id_.fp0 = fp[0]
    id_.fp1 = fp[1]
    id_.seen_at_ms = seen_at_ms
    _add_age(table, seen_at_ms, oldest_ms)


cdef bint id_seen_before(const IdTable* table, const uint64_t* fp, int64_t oldest_ms) noexcept nogil:
    cdef const Id* id_
    if table.n_places == 0:
        return False
    id_ = id_place(table, fp[0], fp[1])
    return (id_.fp0 | id_.fp1) != 0 and id_.seen_at_ms >= oldest_ms


cdef int ids_adopt(Ids* ids, IdTable* table, Ids* old, IdTable* before, int64_t now) noexcept nogil:
    cdef int64_t dedupe_ms = table.dedupe_ms, before_ms = before.dedupe_ms
    if dedupe_ms != before_ms and before.n_places:
        before.dedupe_ms = dedupe_ms
        if _rebuild(old, before, 0, now - before_ms) < 0:
            before.dedupe_ms = before_ms
            return -1
    table[0] = before[0]
    table.dedupe_ms = dedupe_ms
    ids.n_ids += table.n_used
    memset(before, 0, sizeof(IdTable))
    return 0


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian, per id: u16 event_id, u8[6] 0, u64[2] fingerprint, i64 seen_at.

ctypedef struct IdRecord:
    uint16_t event_id
    uint16_t zero[3]
    Id id_


cdef int ids_copy(const Ids* ids, const PlanC* plan, const int64_t* type_nows, IdCursor* cursor,
                  uint32_t max_places, Bytes* out) noexcept nogil:
    cdef const IdTable* table
    cdef const Id* id_
    cdef IdRecord record
    cdef uint32_t looked = 0
    memset(&record, 0, sizeof(record))
    while cursor.type_ < ids.n_types:
        table = &ids.tables[cursor.type_]
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
            if (id_.fp0 | id_.fp1) and id_.seen_at_ms >= type_nows[cursor.type_] - table.dedupe_ms:
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


cdef void ids_sort(Bytes* out) noexcept nogil:
    if out.n_bytes:
        qsort(out.data, out.n_bytes // sizeof(IdRecord), sizeof(IdRecord), _by_id)


cdef int ids_import(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil:
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
        for i in range(ids.n_types):
            if plan.events[i].event_id == record.event_id:
                if ids_reserve(ids, &ids.tables[i], 1, UNSET_MS) < 0:
                    return -1
                ids_remember(ids, &ids.tables[i], &record.id_.fp0, record.id_.seen_at_ms, UNSET_MS)
                break
    return 0
