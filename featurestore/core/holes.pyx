"""Intervals of event time that rows have not seen; see holes.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from featurestore.core.bytes cimport Bytes, bytes_append

from featurestore.core.structs import same_structs

same_structs(__name__, holes_structs())

cdef enum:
    HEAD_BYTES = 8
    HOLE_BYTES = 32


cdef void holes_clear(Holes* holes) noexcept nogil:
    free(holes.of)
    memset(holes, 0, sizeof(Holes))


cdef int holes_copy(const Holes* holes, Holes* into) noexcept nogil:
    memset(into, 0, sizeof(Holes))
    if holes.n == 0:
        return 0
    into.of = <HolesOf*>malloc(holes.n * sizeof(HolesOf))
    if into.of == NULL:
        return -1
    memcpy(into.of, holes.of, holes.n * sizeof(HolesOf))
    into.n = into.capacity = holes.n
    return 0


cdef inline bint _comes_before(const HolesOf* a, uint16_t entity_id, uint16_t event_id) noexcept nogil:
    return a.entity_id < entity_id or (a.entity_id == entity_id and a.event_id < event_id)


cdef inline uint32_t _place(const Holes* holes, uint16_t entity_id, uint16_t event_id) noexcept nogil:
    cdef uint32_t i = 0
    while i < holes.n and _comes_before(&holes.of[i], entity_id, event_id):
        i += 1
    return i


cdef inline bint _is_of(const Holes* holes, uint32_t i, uint16_t entity_id, uint16_t event_id) noexcept nogil:
    return i < holes.n and holes.of[i].entity_id == entity_id and holes.of[i].event_id == event_id


cdef HolesOf* _insert(Holes* holes, uint32_t i, uint16_t entity_id, uint16_t event_id) noexcept nogil:
    """Makes place i that of an entity and event type without holes. NULL: out of memory."""
    cdef HolesOf* grown
    if holes.n == holes.capacity:
        grown = <HolesOf*>realloc(holes.of, (2 * <size_t>holes.capacity + 1) * sizeof(HolesOf))
        if grown == NULL:
            return NULL
        holes.of = grown
        holes.capacity = 2 * holes.capacity + 1
    memmove(&holes.of[i + 1], &holes.of[i], (holes.n - i) * sizeof(HolesOf))
    holes.n += 1
    memset(&holes.of[i], 0, sizeof(HolesOf))
    holes.of[i].entity_id = entity_id
    holes.of[i].event_id = event_id
    return &holes.of[i]


cdef inline void _join(Hole* hole, const Hole* next_) noexcept nogil:
    """Takes the one that follows it into it."""
    hole.last_ms = next_.last_ms
    if next_.position < hole.position:
        hole.position = next_.position
    if next_.now_ms > hole.now_ms:
        hole.now_ms = next_.now_ms


cdef void _close_nearest(Hole* at, uint32_t n) noexcept nogil:
    """Of n holes, at least 2, the two with the least between them become one; the oldest such."""
    cdef uint32_t i, nearest = 1
    for i in range(2, n):
        if at[i].first_ms - at[i - 1].last_ms < at[nearest].first_ms - at[nearest - 1].last_ms:
            nearest = i
    _join(&at[nearest - 1], &at[nearest])
    memmove(&at[nearest], &at[nearest + 1], (n - nearest - 1) * sizeof(Hole))


cdef int holes_add(Holes* holes, uint16_t entity_id, uint16_t event_id, int64_t time_ms, uint64_t position,
                   int64_t now_ms) noexcept nogil:
    cdef Hole at[MAX_HOLES + 1]
    cdef uint32_t i = _place(holes, entity_id, event_id), k = 0
    cdef HolesOf* of
    of = &holes.of[i] if _is_of(holes, i, entity_id, event_id) else _insert(holes, i, entity_id, event_id)
    if of == NULL:
        return -1
    while k < of.n and of.at[k].last_ms < time_ms:
        k += 1
    if k < of.n and of.at[k].first_ms <= time_ms:
        if now_ms > of.at[k].now_ms:
            of.at[k].now_ms = now_ms
        return 0
    memcpy(at, of.at, k * sizeof(Hole))
    at[k] = Hole(first_ms=time_ms, last_ms=time_ms, position=position, now_ms=now_ms)
    memcpy(&at[k + 1], &of.at[k], (of.n - k) * sizeof(Hole))
    of.n += 1
    if of.n > MAX_HOLES:
        _close_nearest(at, of.n)
        of.n -= 1
    memcpy(of.at, at, of.n * sizeof(Hole))
    return 0


cdef void holes_prune(Holes* holes, uint16_t entity_id, uint16_t event_id, int64_t from_ms,
                      int64_t fed_ms) noexcept nogil:
    cdef uint32_t i = _place(holes, entity_id, event_id), k, kept = 0
    cdef HolesOf* of
    if not _is_of(holes, i, entity_id, event_id):
        return
    of = &holes.of[i]
    for k in range(of.n):
        if of.at[k].last_ms >= from_ms or of.at[k].now_ms >= fed_ms:
            of.at[kept] = of.at[k]
            kept += 1
    memset(&of.at[kept], 0, (of.n - kept) * sizeof(Hole))
    of.n = kept
    if kept == 0:
        memmove(of, of + 1, (holes.n - i - 1) * sizeof(HolesOf))
        holes.n -= 1


cdef const HolesOf* holes_find(const Holes* holes, uint16_t entity_id, uint16_t event_id) noexcept nogil:
    cdef uint32_t i = _place(holes, entity_id, event_id)
    return &holes.of[i] if _is_of(holes, i, entity_id, event_id) else NULL


cdef int64_t holes_lost_ms(const HolesOf* holes, uint64_t before, int64_t first_ms,
                           int64_t last_ms) noexcept nogil:
    cdef int64_t lost = 0, first, last
    cdef uint32_t i
    for i in range(holes.n):
        first = holes.at[i].first_ms if holes.at[i].first_ms > first_ms else first_ms
        last = holes.at[i].last_ms if holes.at[i].last_ms < last_ms else last_ms
        if holes.at[i].position < before and first <= last:
            lost += last - first + 1
    return lost


cdef bint holes_since(const HolesOf* holes, int64_t fed_ms) noexcept nogil:
    cdef uint32_t i
    for i in range(holes.n):
        if holes.at[i].now_ms >= fed_ms:
            return True
    return False


# -- bytes ---------------------------------------------------------------------------------------------------

cdef int holes_export(const Holes* holes, Bytes* out) noexcept nogil:
    cdef const HolesOf* of
    cdef uint8_t head[HEAD_BYTES]
    cdef uint32_t i
    for i in range(holes.n):
        of = &holes.of[i]
        memcpy(head, &of.entity_id, 2)
        memcpy(head + 2, &of.event_id, 2)
        memcpy(head + 4, &of.n, 4)
        if (bytes_append(out, head, HEAD_BYTES) < 0
                or bytes_append(out, of.at, of.n * <size_t>HOLE_BYTES) < 0):
            return -1
    return 0


cdef inline bint _is_time(int64_t t) noexcept nogil:
    """Within what can be subtracted: FAR_MS of plan.pxd, which is above this module."""
    return -(<int64_t>1 << 61) <= t <= <int64_t>1 << 61


cdef inline bint _holds(const HolesOf* of, uint64_t last) noexcept nogil:
    """Could events have made these holes?"""
    cdef uint32_t k
    for k in range(of.n):
        if (not _is_time(of.at[k].first_ms) or not _is_time(of.at[k].last_ms) or not _is_time(of.at[k].now_ms)
                or of.at[k].first_ms > of.at[k].last_ms
                or not 1 <= of.at[k].position <= last
                or (k and of.at[k].first_ms <= of.at[k - 1].last_ms)):
            return False
    return True


cdef int holes_import(Holes* holes, uint64_t last, const uint8_t* data, size_t n_bytes) noexcept nogil:
    cdef size_t at = 0
    cdef uint16_t entity_id, event_id
    cdef uint32_t n
    cdef HolesOf* of
    while at < n_bytes:
        if n_bytes - at < HEAD_BYTES:
            return 1
        memcpy(&entity_id, data + at, 2)
        memcpy(&event_id, data + at + 2, 2)
        memcpy(&n, data + at + 4, 4)
        at += HEAD_BYTES
        if n == 0 or n > MAX_HOLES or n * <size_t>HOLE_BYTES > n_bytes - at:
            return 1
        if holes.n and not _comes_before(&holes.of[holes.n - 1], entity_id, event_id):
            return 1
        of = _insert(holes, holes.n, entity_id, event_id)
        if of == NULL:
            return -1
        of.n = n
        memcpy(of.at, data + at, n * <size_t>HOLE_BYTES)
        at += n * <size_t>HOLE_BYTES
        if not _holds(of, last):
            return 1
    return 0
