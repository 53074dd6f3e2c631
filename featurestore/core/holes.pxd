# What rows have not seen: events that found no room for a new row (2.19), by entity and event type.
#
#   shed:   t1      t2 t3                 t4        events of keys without a row, memory at its cap
#   holes:  [t1]    [t2…t3]               [t4]      intervals of event time, at most MAX_HOLES: past that the
#                                                   two that are nearest become one, which claims less
#
# A key without a row may be one of those that were shed, so its windows are not covered where they meet a
# hole. Nor are those of a row that was made after a hole began: its position says so (LOG_BORN, shard.pxd).
# A row that was there before has lost nothing.
#
# Owner: the shard, under whose lock they change. Everything here is a function of what was added, in order.
# As bytes: per entity and event type, ascending: u16 entity id, u16 event id, u32 n, then n times i64 first,
# i64 last, u64 position, i64 now.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from featurestore.core.bytes cimport Bytes, bytes_structs

cdef enum:
    MAX_HOLES = 8

ctypedef struct Hole:
    int64_t first_ms             # event times, both ends included
    int64_t last_ms
    uint64_t position            # of the first event that was shed in it
    int64_t now_ms               # the clock at the last

ctypedef struct HolesOf:
    uint16_t entity_id
    uint16_t event_id
    uint32_t n
    Hole at[MAX_HOLES]           # ascending, none meets another

ctypedef struct Holes:           # zeros: none
    HolesOf* of                  # [n] by entity and event type; owned
    uint32_t n
    uint32_t capacity

cdef void holes_clear(Holes* holes) noexcept nogil
# `into` is overwritten. 0, or -1 when out of memory.
cdef int holes_copy(const Holes* holes, Holes* into) noexcept nogil
# An event of that time, at that position and clock, was shed. 0, or -1 when out of memory.
cdef int holes_add(Holes* holes, uint16_t entity_id, uint16_t event_id, int64_t time_ms, uint64_t position,
                   int64_t now_ms) noexcept nogil
# Takes out those of one entity and event type that end before from_ms and whose last event came before
# fed_ms: nothing that is read reaches back to them any more.
cdef void holes_prune(Holes* holes, uint16_t entity_id, uint16_t event_id, int64_t from_ms,
                      int64_t fed_ms) noexcept nogil
# NULL: there are none.
cdef const HolesOf* holes_find(const Holes* holes, uint16_t entity_id, uint16_t event_id) noexcept nogil
# Of [first_ms, last_ms] the milliseconds in holes that began before that position.
cdef int64_t holes_lost_ms(const HolesOf* holes, uint64_t before, int64_t first_ms,
                           int64_t last_ms) noexcept nogil
# Whether an event was shed at a clock not before fed_ms.
cdef bint holes_since(const HolesOf* holes, int64_t fed_ms) noexcept nogil

# 0, or -1 when out of memory.
cdef int holes_export(const Holes* holes, Bytes* out) noexcept nogil
# Into one that has none, of a shard at that position. 0, 1 when the bytes are not holes, -1 when out of
# memory.
cdef int holes_import(Holes* holes, uint64_t last, const uint8_t* data, size_t n_bytes) noexcept nogil

# Compared at import: see core/structs.py.
cdef inline dict holes_structs():
    return bytes_structs() | {"core/holes.pxd": (sizeof(Hole), sizeof(HolesOf), sizeof(Holes))}
