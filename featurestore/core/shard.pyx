"""One shard: rows, their index and their memory; see shard.pxd for the picture and the bytes of a row."""

from libc.math cimport NAN
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset

from featurestore.core.arena cimport (
    Arena, arena_alloc, arena_at, arena_clear, arena_free, arena_has_room, arena_init, arena_settle,
    fs_prefetch,
)
from featurestore.core.batch cimport COLUMN_NUMBER, OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, Column
from featurestore.core.bytes cimport Bytes, bytes_append, bytes_clear, bytes_reserve
from featurestore.core.frequency cimport (
    Counted, frequencies_clear, frequencies_copy_end, frequencies_copy_slice, frequencies_cut,
    frequency_add, frequency_fetch, frequency_read,
)
from featurestore.core.head cimport LOG_BORN, LOG_KEY, LOG_LARGE, LOG_LIFETIME, LOG_SMALL, LogHead, is_note
from featurestore.core.holes cimport (
    Hole, Holes, holes_add, holes_clear, holes_copy, holes_find, holes_prune,
)
from featurestore.core.kept cimport (
    Given, kept_clone, kept_expired, kept_export, kept_export_bytes, kept_free, kept_import, kept_prefetch,
    kept_prefetch_value, kept_skip_bytes, kept_structs, sketch_add, sketch_kind, sketch_list, sketch_read,
)
from featurestore.core.plan cimport (
    FAR_MS, MAX_RAW_WORDS, STRUCTURE_DECAYED, STRUCTURE_DISTINCT, STRUCTURE_LOG, STRUCTURE_TOP, UNSET_MS,
    EntityC, GroupC, ItemC, PlanC, SlotC, TouchC, ViewC, Word,
)
from featurestore.core.pthread cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_trylock,
    pthread_mutex_unlock,
)
from featurestore.core.table cimport (
    SLOTS, Bucket, table_clear, table_find, table_init, table_insert, table_prefetch, table_prefetch_rows,
    table_bytes, table_move, table_reach, table_remove, table_shrink,
)
from featurestore.core.window cimport (
    Outputs, ReadAt, lifetime_append, lifetime_takes, log_append, view_horizon, view_read,
)

from featurestore.core.structs import same_structs

same_structs(__name__, shard_structs(), kept_structs())

cdef enum:
    ROW_HEAD_BYTES = 24          # of Row; with one LogHead a row is 32 bytes
    ROW_EXPORT_BYTES = 8
    RECORD_HEAD_BYTES = 20
    FREED = 0xFFFFFFFF
    HOUR_MS = 3600 * 1000
    DAY_MS = 24 * HOUR_MS
    MOST_HEADS = 254             # of a row; the views of a plan and two notes need fewer
    COPIED_BYTES = 64 << 10      # of records in one slice: rows of hot keys are large
    MOVED_BUCKETS = 32           # of the index in one slice, while its size changes
    AHEAD_INDEX = 24             # parts ahead of the one applied whose bucket, row, blocks and logs are being
    AHEAD_ROW = 16               # fetched
    AHEAD_CELLS = 12             # and a sketch's cells, which are many lines
    AHEAD_BLOCK = 8              # a power of two
    AHEAD_LOG = 4
    AHEAD_VALUE = 2
    READ_BYTES = 256             # of what a row keeps, fetched ahead of a read: more is brought in order
    N_TURNS = 16                 # at a lock, a microsecond in all


cdef extern from * nogil:
    """
    #include <sched.h>
    #define fs_bswap64(x) __builtin_bswap64(x)
    #define fs_wants(counter) __atomic_fetch_add((counter), 1, __ATOMIC_RELAXED)
    #define fs_got(counter) __atomic_fetch_sub((counter), 1, __ATOMIC_RELAXED)
    #define fs_wanted(counter) __atomic_load_n((counter), __ATOMIC_RELAXED)
    #if defined(__x86_64__)
        #define fs_pause() __builtin_ia32_pause()
    #else
        #define fs_pause() ((void)0)
    #endif
    """
    uint64_t fs_bswap64(uint64_t x) noexcept
    int fs_wants(int* counter) noexcept
    int fs_got(int* counter) noexcept
    int fs_wanted(int* counter) noexcept
    void fs_pause() noexcept
    int sched_yield() noexcept


cdef bint lock_taken(pthread_mutex_t* lock, bint waits) noexcept nogil:
    cdef int _turn
    if waits:
        pthread_mutex_lock(lock)
        return True
    for _turn in range(N_TURNS):
        if pthread_mutex_trylock(lock) == 0:
            return True
        fs_pause()
    return False


cdef inline bint _lock(Shard* shard, bint waits) noexcept nogil:
    cdef bint taken
    if pthread_mutex_trylock(&shard.lock) == 0:
        return True
    if not waits:
        return lock_taken(&shard.lock, False)
    fs_wants(&shard.waiting)
    taken = lock_taken(&shard.lock, True)
    fs_got(&shard.waiting)
    return taken


cdef inline void _lock_again(Shard* shard) noexcept nogil:
    """After unlocking amid long work. A mutex alone is not fair: whoever lets go takes it again at once."""
    cdef int _turn
    for _turn in range(64):
        if fs_wanted(&shard.waiting) == 0:
            break
        sched_yield()
    pthread_mutex_lock(&shard.lock)


cdef int shard_init(Shard* shard, Pool* pool) noexcept nogil:
    memset(shard, 0, sizeof(Shard))
    arena_init(&shard.arena, pool)
    shard.cut = 1
    shard.written = 1
    if table_init(&shard.table) < 0:
        return -1
    if pthread_mutex_init(&shard.lock, NULL) != 0:
        table_clear(&shard.table)
        return -1
    return 0


cdef void shard_clear(Shard* shard) noexcept nogil:
    pthread_mutex_destroy(&shard.lock)
    table_clear(&shard.table)
    arena_clear(&shard.arena)
    frequencies_clear(&shard.frequencies)
    bytes_clear(&shard.copied)
    bytes_clear(&shard.freed)
    bytes_clear(&shard.freed_before)
    holes_clear(&shard.holes)
    holes_clear(&shard.holes_at_cut)


cdef uint64_t shard_used_bytes(const Shard* shard) noexcept nogil:
    return shard.arena.used_bytes + table_bytes(&shard.table) + shard.frequencies.n_bytes


cdef uint64_t shard_held_bytes(const Shard* shard) noexcept nogil:
    return (shard.arena.held_bytes + table_bytes(&shard.table) + shard.frequencies.n_bytes
            + shard.freed.capacity + shard.freed_before.capacity)


cdef bint shard_has_room(const Shard* shard) noexcept nogil:
    return arena_has_room(&shard.arena)


# -- rows ----------------------------------------------------------------------------------------------------

cdef inline LogHead* _heads(Row* row) noexcept nogil:
    return <LogHead*>(<char*>row + ROW_HEAD_BYTES)


cdef inline size_t _row_bytes(uint32_t cap_heads) noexcept nogil:
    return ROW_HEAD_BYTES + cap_heads * sizeof(LogHead)


cdef inline LogHead* _find_head(Row* row, uint16_t view_id, bint lifetime) noexcept nogil:
    cdef LogHead* head = _heads(row)
    cdef uint8_t i
    for i in range(row.n_heads):
        if (head[i].view_id == view_id and (head[i].kind == LOG_LIFETIME) == lifetime
                and not is_note(head[i].kind)):
            return &head[i]
    return NULL


cdef uint32_t _new_row(Arena* arena, uint64_t fp0, uint64_t fp1, uint16_t entity_id,
                       uint8_t cap_heads) noexcept nogil:
    cdef uint32_t handle = arena_alloc(arena, _row_bytes(cap_heads))
    cdef Row* row
    if handle:
        row = <Row*>arena_at(arena, handle)
        row.fp0 = fp0
        row.fp1 = fp1
        row.entity_id = entity_id
        row.n_heads = 0
        row.cap_heads = cap_heads
        row.mark = 0
    return handle


cdef inline const ViewC* _layout(const PlanC* plan, uint16_t view_id) noexcept nogil:
    return plan.layout_of_id[view_id] if view_id <= plan.max_view_id else NULL


cdef LogHead* _add_head(Arena* arena, uint32_t* place, uint16_t view_id, uint8_t kind) noexcept nogil:
    """A new empty head; the row moves when it is full, and *place, which holds its handle, follows. NULL: out
    of memory."""
    cdef Row* row = <Row*>arena_at(arena, place[0])
    cdef Row* grown
    cdef LogHead* head
    cdef uint32_t handle
    if row.n_heads == row.cap_heads:
        # Two more heads are one more unit of the arena.
        handle = _new_row(arena, row.fp0, row.fp1, row.entity_id, row.cap_heads + 2)
        if handle == 0:
            return NULL
        grown = <Row*>arena_at(arena, handle)
        grown.n_heads = row.n_heads
        grown.mark = row.mark
        memcpy(_heads(grown), _heads(row), row.n_heads * sizeof(LogHead))
        arena_free(arena, place[0], _row_bytes(row.cap_heads))
        place[0] = handle
        row = grown
    head = &_heads(row)[row.n_heads]
    memset(head, 0, sizeof(LogHead))
    head.view_id = view_id
    head.kind = kind
    row.n_heads += 1
    return head


cdef void _free_row(Arena* arena, const PlanC* plan, uint32_t handle) noexcept nogil:
    cdef Row* row = <Row*>arena_at(arena, handle)
    cdef uint8_t i
    for i in range(row.n_heads):
        kept_free(arena, &_heads(row)[i], _layout(plan, _heads(row)[i].view_id))
    arena_free(arena, handle, _row_bytes(row.cap_heads))


cdef uint32_t _clone_row(Arena* arena, const PlanC* plan, const Row* row) noexcept nogil:
    """A row of its own with the same content, not in the index. 0: out of memory."""
    cdef uint32_t handle = _new_row(arena, row.fp0, row.fp1, row.entity_id, row.cap_heads)
    cdef Row* clone
    cdef uint8_t i
    if handle == 0:
        return 0
    clone = <Row*>arena_at(arena, handle)
    for i in range(row.n_heads):
        if kept_clone(arena, &_heads(<Row*>row)[i], _layout(plan, _heads(<Row*>row)[i].view_id),
                      &_heads(clone)[i]) < 0:
            _free_row(arena, plan, handle)
            return 0
        clone.n_heads += 1
    return handle


cdef bint _key_expired(const PlanC* plan, uint16_t entity_id, const LogHead* head) noexcept nogil:
    """Whether the entity's keys are not kept any more, or were not for a time since this one was."""
    cdef const EntityC* entity
    cdef uint16_t i
    for i in range(plan.n_entities):
        entity = &plan.entities[i]
        if entity.entity_id == entity_id:
            return not entity.keep_keys or entity.key_epoch != head.view_id
    return True


cdef bint _head_expired(const Arena* arena, const PlanC* plan, const Row* row, const LogHead* head,
                        const int64_t* type_nows) noexcept nogil:
    cdef const ViewC* view
    if head.kind == LOG_KEY:
        return _key_expired(plan, row.entity_id, head)
    if head.kind == LOG_BORN:
        return False
    if plan.view_of_id[head.view_id] < 0:
        return True
    view = &plan.views[plan.view_of_id[head.view_id]]
    return kept_expired(arena, head, view, type_nows[view.event])


cdef inline int64_t _horizon(const PlanC* plan, const LogHead* head, const int64_t* type_nows) noexcept nogil:
    """Of the view of a head that is not expired; a note has none."""
    cdef const ViewC* view
    if is_note(head.kind):
        return UNSET_MS
    view = &plan.views[plan.view_of_id[head.view_id]]
    return view_horizon(view, type_nows[view.event])


# -- apply and read ------------------------------------------------------------------------------------------

cdef inline void _ask_clock(const Clocks* clocks, uint16_t event, ReadAt* when) noexcept nogil:
    """Fills in what the clock of an event type says."""
    cdef bint is_own = event == clocks.own_type
    when.first_now_ms = clocks.own_first_now_ms if is_own else clocks.first_nows[event]
    when.now_ms = when.seen_ms = clocks.own_now_ms if is_own or clocks.is_one else clocks.nows[event]
    if when.now_ms != UNSET_MS:
        when.seen_ms += clocks.ahead_ms


cdef inline bint _is_spent(const Arena* arena, const PlanC* plan, const Row* row,
                           const Clocks* clocks) noexcept nogil:
    """Whether nothing in it can be read any more: the next sweep frees it."""
    cdef const LogHead* heads = _heads(<Row*>row)
    cdef const ViewC* view
    cdef ReadAt when
    cdef uint8_t i
    for i in range(row.n_heads):
        if is_note(heads[i].kind) or plan.view_of_id[heads[i].view_id] < 0:
            continue
        view = &plan.views[plan.view_of_id[heads[i].view_id]]
        _ask_clock(clocks, view.event, &when)
        if not kept_expired(arena, &heads[i], view, when.now_ms):
            return False
    return True


cdef inline bint _came_later(Row* row) noexcept nogil:
    """Whether it was made after events of its entity had found no room."""
    return row.n_heads and _heads(row).kind == LOG_BORN


cdef inline Row* _row_at(const Shard* shard, const PlanC* plan, const uint32_t* place,
                         const Clocks* clocks) noexcept nogil:
    """The row to be read; NULL: there is none. Where events were shed an answer says whether there was a row,
    so that one which the sweep has not come to must be as one that it has."""
    cdef Row* row = NULL
    if place != NULL:
        row = <Row*>arena_at(&shard.arena, place[0])
        if (shard.holes.n or _came_later(row)) and _is_spent(&shard.arena, plan, row, clocks):
            row = NULL
    return row


cdef inline void _ask_birth(const Arena* arena, Row* row, ReadAt* when) noexcept nogil:
    """Fills in what the row says of the time before it: its first head, where there is such a one."""
    when.holes = NULL
    when.came_later = row != NULL and _came_later(row)
    when.born = 0 if row != NULL else ~<uint64_t>0
    if when.came_later:
        memcpy(&when.born, arena_at(arena, _heads(row).block) + sizeof(uint32_t), sizeof(uint64_t))


cdef inline void _ask_holes(const Holes* holes, const PlanC* plan, const ViewC* view,
                            ReadAt* when) noexcept nogil:
    if holes.n and when.born:
        when.holes = holes_find(holes, plan.entities[view.entity].entity_id,
                                plan.events[view.event].event_id)


cdef inline void _ask_own(const Job* job, const Part* part, const GroupC* group, ReadAt* when) noexcept nogil:
    """Fills in what the event that reads has given to a view that is no log."""
    cdef const TouchC* touch = &job.event.touches[part.touch]
    cdef const ViewC* view = &job.plan.views[group.view]
    cdef Given given
    cdef uint16_t i
    memset(&given, 0, sizeof(given))
    for i in range(touch.n_views):
        if touch.views[i] == group.view:
            if view.where >= 0 and not job.masks[<size_t>view.where * job.batch.n_events + part.event]:
                return
            if job.batch.times[part.event] < view_horizon(view, job.nows[part.event]):
                return
            when.own = _give(job, view, part.event, &given)
            when.own_hash = given.hash
            when.own_value = given.value
            return


cdef inline void _read_groups(const Shard* shard, const PlanC* plan, const SlotC* slot, Row* row, bint before,
                              int64_t at_ms, int64_t last_ms, const Clocks* clocks, const Job* job,
                              const Part* part, const Outputs* out) noexcept nogil:
    """Values of one row at at_ms, of what is no later than last_ms; `part` of a job, or NULL, has just been
    applied to it."""
    cdef const Arena* arena = &shard.arena
    cdef const GroupC* group
    cdef const ViewC* view
    cdef const LogHead* log
    cdef const LogHead* lifetime
    cdef const LogHead* counts
    cdef const ViewC* counting
    cdef const ItemC* items
    cdef ReadAt when
    cdef uint16_t i
    cdef uint32_t n
    when.at_ms = at_ms
    when.last_ms = last_ms
    when.own = False
    when.own_hash = 0
    _ask_birth(arena, row, &when)
    for i in range(slot.n_groups):
        group = &slot.groups[i]
        n = group.n_before if before else group.n_after
        if n == 0:
            continue
        view = &plan.views[group.view]
        log = lifetime = NULL
        if row != NULL:
            log = _find_head(row, view.view_id, False)
            if view.has_lifetime:
                lifetime = _find_head(row, view.view_id, True)
        _ask_clock(clocks, view.event, &when)
        _ask_holes(&shard.holes, plan, view, &when)
        items = group.before if before else group.after
        if view.structure == STRUCTURE_LOG:
            view_read(arena, log, lifetime, view, &when, items, n, out)
        else:
            if part != NULL:
                when.own = False
                when.own_hash = 0
                _ask_own(job, part, group, &when)
            counts = NULL
            counting = NULL
            if row != NULL and view.structure == STRUCTURE_DISTINCT and view.counted_by >= 0:
                counting = &plan.views[view.counted_by]
                counts = _find_head(row, counting.view_id, False)
            sketch_read(arena, log, counts, counting, view, &when, items, n, out)


cdef inline bint _is_counted(const Job* job, const ViewC* view, uint32_t event,
                             Counted* counted) noexcept nogil:
    """Whether the view's sketch counts the event, and as how much: a value below 0 adds nothing to a sum."""
    if view.where >= 0 and not job.masks[<size_t>view.where * job.batch.n_events + event]:
        return False
    counted.time_ms = job.batch.times[event]
    counted.weight = job.batch.columns[view.values[0]].numbers[event] if view.n_values else 1.0
    return counted.weight > 0.0 and counted.time_ms >= view_horizon(view, job.nows[event])


cdef inline int _count(Shard* shard, const Job* job, const Part* part, const TouchC* touch) noexcept nogil:
    """Adds the event to every sketch of its entity that takes it."""
    cdef const ViewC* view
    cdef Counted counted
    cdef uint16_t i
    for i in range(touch.n_views, touch.n_all):
        view = &job.plan.views[touch.views[i]]
        if _is_counted(job, view, part.event, &counted):
            if frequency_add(shard.frequencies.sketches[view.sketch], part.fp0, part.fp1, &counted) < 0:
                return -1
    return 0


cdef void _read_sketches(const Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0, uint64_t fp1,
                         int64_t at_ms, const Clocks* clocks, const Job* peeked, uint32_t event,
                         const Outputs* out) noexcept nogil:
    """As _read_groups, what sketches answer. `peeked`: as if that event of its batch had been applied; NULL:
    none."""
    cdef const GroupC* group
    cdef const ViewC* view
    cdef const Counted* added
    cdef Counted counted
    cdef ReadAt when
    cdef uint16_t i
    memset(&when, 0, sizeof(when))       # no event is shed from a sketch
    when.at_ms = when.last_ms = at_ms
    for i in range(slot.n_groups, slot.n_all):
        group = &slot.groups[i]
        view = &plan.views[group.view]
        _ask_clock(clocks, view.event, &when)
        added = NULL
        if peeked != NULL and view.event == clocks.own_type and _is_counted(peeked, view, event, &counted):
            added = &counted
        frequency_read(shard.frequencies.sketches[view.sketch], view, fp0, fp1, &when, group.after,
                       group.n_after, added, out)


cdef int _remember_key(Arena* arena, uint32_t* place, const Job* job, const TouchC* touch,
                       uint32_t event) noexcept nogil:
    """keep_keys: the key as it is hashed, part by part: u16 length, bytes."""
    cdef LogHead* head = _add_head(arena, place, job.plan.entities[touch.entity].key_epoch, LOG_KEY)
    cdef const Column* column
    cdef uint32_t n_bytes = 0, block
    cdef uint16_t i, n
    cdef char* to
    if head == NULL:
        return -1
    for i in range(touch.n_fields):
        column = &job.batch.columns[touch.fields[i]]
        n_bytes += 2 + column.offsets[event + 1] - column.offsets[event]
    block = arena_alloc(arena, sizeof(uint32_t) + n_bytes)
    if block == 0:
        (<Row*>arena_at(arena, place[0])).n_heads -= 1
        return -1
    head.block = block
    to = <char*>arena_at(arena, block)
    memcpy(to, &n_bytes, sizeof(uint32_t))
    to += sizeof(uint32_t)
    for i in range(touch.n_fields):
        column = &job.batch.columns[touch.fields[i]]
        n = <uint16_t>(column.offsets[event + 1] - column.offsets[event])
        memcpy(to, &n, 2)
        memcpy(to + 2, column.bytes + column.offsets[event], n)
        to += 2 + n
    return 0


cdef void _reach(const PlanC* plan, uint16_t entity_id, uint16_t event_id, const Clocks* clocks,
                 int64_t* from_ms, int64_t* fed_ms) noexcept nogil:
    """From which event time on a row of that entity can be asked for what that type brings, and since when it
    must have come to be in a lifetime."""
    cdef const TouchC* touch
    cdef const ViewC* view
    cdef ReadAt when
    cdef uint16_t i, j, k
    from_ms[0] = fed_ms[0] = FAR_MS
    for i in range(plan.n_events):
        if plan.events[i].event_id != event_id:
            continue
        _ask_clock(clocks, i, &when)
        for j in range(plan.events[i].n_touches):
            touch = &plan.events[i].touches[j]
            if touch.entity_id != entity_id:
                continue
            for k in range(touch.n_views):
                view = &plan.views[touch.views[k]]
                from_ms[0] = min(from_ms[0], when.now_ms - view.keep_ms)
                if view.has_lifetime:
                    fed_ms[0] = min(fed_ms[0], when.now_ms - view.lifetime_idle_ms)


cdef bint _is_born_late(Shard* shard, const PlanC* plan, uint16_t entity_id, const Clocks* clocks,
                        bint prunes) noexcept nogil:
    """Whether a row of that entity that is made now may have lost events. `prunes`: forgets holes that
    nothing can be asked about any more."""
    cdef Hole* hole
    cdef uint32_t i = shard.holes.n, k
    cdef uint16_t event_id
    cdef int64_t from_ms, fed_ms
    cdef bint found = False
    while i:
        i -= 1
        if shard.holes.of[i].entity_id != entity_id:
            continue
        event_id = shard.holes.of[i].event_id
        _reach(plan, entity_id, event_id, clocks, &from_ms, &fed_ms)
        for k in range(shard.holes.of[i].n):
            hole = &shard.holes.of[i].at[k]
            found |= hole.last_ms >= from_ms or hole.now_ms >= fed_ms
        if prunes:
            holes_prune(&shard.holes, entity_id, event_id, from_ms, fed_ms)
    return found


cdef int _note_birth(Arena* arena, uint32_t* place, uint64_t position) noexcept nogil:
    """As the first head of a new row, which may have lost events before that position."""
    cdef LogHead* head = _add_head(arena, place, 0, LOG_BORN)
    cdef uint32_t n_bytes = sizeof(uint64_t)
    if head == NULL:
        return -1
    head.block = arena_alloc(arena, sizeof(uint32_t) + sizeof(uint64_t))
    if head.block == 0:
        (<Row*>arena_at(arena, place[0])).n_heads -= 1
        return -1
    memcpy(arena_at(arena, head.block), &n_bytes, sizeof(uint32_t))
    memcpy(arena_at(arena, head.block) + sizeof(uint32_t), &position, sizeof(uint64_t))
    return 0


cdef bint _has_key(const PlanC* plan, Row* row) noexcept nogil:
    cdef uint8_t i
    for i in range(row.n_heads):
        if _heads(row)[i].kind == LOG_KEY and not _key_expired(plan, row.entity_id, &_heads(row)[i]):
            return True
    return False


cdef void _prune(Arena* arena, const PlanC* plan, Row* row) noexcept nogil:
    """Frees the logs of views that are gone, and raw keys kept no more: a row has room for a plan's own."""
    cdef LogHead* heads = _heads(row)
    cdef uint8_t i, kept = 0
    for i in range(row.n_heads):
        if (_key_expired(plan, row.entity_id, &heads[i]) if heads[i].kind == LOG_KEY
                else heads[i].kind != LOG_BORN and plan.view_of_id[heads[i].view_id] < 0):
            kept_free(arena, &heads[i], _layout(plan, heads[i].view_id))
        else:
            heads[kept] = heads[i]
            kept += 1
    row.n_heads = kept


cdef inline void _raw_entry(const Job* job, const ViewC* view, uint32_t event, Word* raw) noexcept nogil:
    cdef uint64_t bits = 0
    cdef double x
    cdef uint16_t i
    raw[0].i = job.batch.times[event]
    for i in range(view.n_values):
        x = job.batch.columns[view.values[i]].numbers[event]
        raw[1 + i].f = x if x == x else NAN      # absent has one bit pattern, or equal states would differ in
                                                 # bytes
    if view.n_filters:
        for i in range(view.n_filters):
            if job.masks[<size_t>view.filters[i] * job.batch.n_events + event]:
                bits |= <uint64_t>1 << i
        raw[1 + view.n_values].u = bits


cdef inline uint64_t _hash_of(const Job* job, const ViewC* view, uint32_t event) noexcept nogil:
    """Of the value that the view tells apart; 0: the event brings none."""
    return job.hashes[<size_t>view.hashed * job.batch.n_events + event]


cdef inline uint64_t _hour_of_day(int64_t time_ms) noexcept nogil:
    """UTC; for times before 1970 too."""
    cdef int64_t ms = time_ms % DAY_MS
    return <uint64_t>((ms + DAY_MS if ms < 0 else ms) // HOUR_MS)


cdef inline bint _give(const Job* job, const ViewC* view, uint32_t event, Given* given) noexcept nogil:
    """What the event gives to a structure that is not the window log. False: it brings no value for it."""
    cdef const Column* column
    given.time_ms = job.batch.times[event]
    if view.structure == STRUCTURE_DECAYED:
        given.value = job.batch.columns[view.values[0]].numbers[event] if view.n_values else 0.0
        return given.value == given.value
    if view.n_values == 0:
        given.hash = _hour_of_day(given.time_ms) + 1
        given.n_text = 0
        return True
    given.hash = _hash_of(job, view, event)
    if view.structure == STRUCTURE_TOP and given.hash:
        column = &job.batch.columns[view.values[0]]
        if column.kind == COLUMN_NUMBER:
            given.value = column.numbers[event] + 0.0      # -0 is 0
            given.text = <const char*>&given.value
            given.n_text = sizeof(double)
        else:
            given.text = column.bytes + column.offsets[event]
            given.n_text = column.offsets[event + 1] - column.offsets[event]
    return given.hash != 0


cdef inline bint _due(const Shard* shard, const Row* row) noexcept nogil:
    """Whether the checkpoint under way must have this row as it is now."""
    return shard.copying and shard.written <= row.mark < shard.cut


cdef inline bint _is_taken(const Job* job, const ViewC* view, uint32_t event, Given* given,
                           bint* in_log) noexcept nogil:
    """Whether the view keeps something of the event in its row: in its log, or else in its lifetimes only."""
    cdef int64_t now = job.nows[event]
    if view.where >= 0 and not job.masks[<size_t>view.where * job.batch.n_events + event]:
        return False
    given.horizon_ms = view_horizon(view, now)
    in_log[0] = job.batch.times[event] >= given.horizon_ms
    if not in_log[0] and not lifetime_takes(view, job.batch.times[event], now):
        return False
    return view.structure == STRUCTURE_LOG or _give(job, view, event, given)


cdef bint shard_makes_row(const Job* job, const Part* part) noexcept nogil:
    cdef const TouchC* touch = &job.event.touches[part.touch]
    cdef Given given
    cdef uint16_t i
    cdef bint in_log
    for i in range(touch.n_views):
        if _is_taken(job, &job.plan.views[touch.views[i]], part.event, &given, &in_log):
            return True
    return False


cdef int _apply_views(Shard* shard, const Job* job, const Part* part, const TouchC* touch,
                      const Clocks* clocks, uint32_t** place) noexcept nogil:
    """Adds the event to every log of its row that takes it; makes the row when *place is NULL."""
    cdef Word raw[MAX_RAW_WORDS]
    cdef Arena* arena = &shard.arena
    cdef const ViewC* view
    cdef LogHead* head
    cdef Row* row
    cdef uint32_t handle
    cdef int64_t now = job.nows[part.event]
    cdef Given given
    cdef uint16_t i
    cdef bint touched = False, in_log
    for i in range(touch.n_views):
        view = &job.plan.views[touch.views[i]]
        if not _is_taken(job, view, part.event, &given, &in_log):
            continue
        if place[0] == NULL:
            handle = _new_row(arena, part.fp0, part.fp1, touch.entity_id, 1)
            if handle == 0:
                return -1
            if table_insert(&shard.table, arena, handle) < 0:
                arena_free(arena, handle, _row_bytes(1))
                return -1
            place[0] = table_find(&shard.table, arena, part.fp0, part.fp1)
            if shard.holes.n and _is_born_late(shard, job.plan, touch.entity_id, clocks, True):
                if _note_birth(arena, place[0], job.first_position + part.event) < 0:
                    return -1
        if not touched:
            touched = True
            row = <Row*>arena_at(arena, place[0][0])
            if not job.peek:
                if _due(shard, row) and _copy_row(shard, job.plan, row) < 0:
                    return -1
                row.mark = shard.cut
            if <uint32_t>row.n_heads + 2 * touch.n_views + 2 > MOST_HEADS:
                _prune(arena, job.plan, row)
            if touch.keep_keys and not _has_key(job.plan, row):
                if _remember_key(arena, place[0], job, touch, part.event) < 0:
                    return -1
        if view.structure != STRUCTURE_LOG:
            head = _find_head(<Row*>arena_at(arena, place[0][0]), view.view_id, False)
            if head == NULL:
                head = _add_head(arena, place[0], view.view_id, sketch_kind(view))
            if head == NULL or sketch_add(arena, head, view, &given) < 0:
                return -1
            continue
        _raw_entry(job, view, part.event, raw)
        if in_log:
            head = _find_head(<Row*>arena_at(arena, place[0][0]), view.view_id, False)
            if head == NULL:
                head = _add_head(arena, place[0], view.view_id, 0)
            if head == NULL or log_append(arena, head, view, raw, now) < 0:
                return -1
        if lifetime_takes(view, job.batch.times[part.event], now):
            head = _find_head(<Row*>arena_at(arena, place[0][0]), view.view_id, True)
            if head == NULL:
                head = _add_head(arena, place[0], view.view_id, LOG_LIFETIME)
            if head == NULL or lifetime_append(arena, head, view, raw, now) < 0:
                return -1
    return 0


cdef int _clear_row(Shard* shard, const PlanC* plan, uint32_t** place) noexcept nogil:
    """Frees a row that is spent, as a sweep may have. Places of others are not good any more."""
    if place[0] != NULL:
        if _drop_row(shard, plan, place[0]) < 0:
            return -1
        place[0] = NULL
        shard.table.n_moves += 1
    return 0


cdef int _shed(Shard* shard, const Job* job, const Part* part, const TouchC* touch,
               const Clocks* clocks) noexcept nogil:
    """The event found no room for a row."""
    cdef int64_t from_ms, fed_ms
    _reach(job.plan, touch.entity_id, job.event.event_id, clocks, &from_ms, &fed_ms)
    holes_prune(&shard.holes, touch.entity_id, job.event.event_id, from_ms, fed_ms)
    return holes_add(&shard.holes, touch.entity_id, job.event.event_id, job.batch.times[part.event],
                     job.first_position + part.event, job.nows[part.event])


cdef int _apply_and_read(Shard* shard, const Job* job, const Part* part, uint32_t* place,
                         uint64_t applied) noexcept nogil:
    """As _apply_part, whatever the job asks for and however short memory is."""
    cdef const TouchC* touch = &job.event.touches[part.touch]
    cdef const SlotC* slot = NULL
    cdef Arena* arena = &shard.arena
    cdef uint32_t trial = 0
    cdef Clocks clocks
    cdef Holes untouched
    cdef int64_t at_ms = 0, last_ms
    cdef uint64_t offset
    cdef Outputs out
    cdef int status = 0
    cdef bint apply = job.batch.outcomes[part.event] == OUTCOME_ACCEPTED, shed, pressed
    if apply and not job.peek and job.first_position + part.event <= applied:
        apply = False                    # a checkpoint already holds it
    shed = apply and job.shed != NULL and (job.shed[part.event] >> part.touch) & 1
    if job.service != NULL and job.service.slot_of_entity[touch.entity] >= 0:
        slot = &job.service.slots[job.service.slot_of_entity[touch.entity]]
    # Memory is short, or was: it matters whether there is a row.
    pressed = shed or shard.holes.n or (place != NULL and _came_later(<Row*>arena_at(arena, place[0])))
    if slot != NULL or pressed:
        clocks = job.clocks
        clocks.own_now_ms = job.nows[part.event]
        if part.event < job.first_accepted:
            clocks.own_first_now_ms = UNSET_MS
    if slot != NULL:
        offset = <uint64_t>part.event * job.service.read_width
        out = job.outputs
        out.values += offset
        if out.lower != NULL:
            out.lower += offset
            out.upper += offset
        out.statuses += offset
        out.coverage += offset
        at_ms = job.reads_at[part.event]
        # What leaves the event itself out must not find it where it has been applied before.
        last_ms = at_ms - 1 if job.batch.outcomes[part.event] == OUTCOME_DUPLICATE else at_ms
        _read_groups(shard, job.plan, slot, _row_at(shard, job.plan, place, &clocks), True, at_ms, last_ms,
                     &clocks, NULL, NULL, &out)
    if apply and pressed and not shed and _row_at(shard, job.plan, place, &clocks) == NULL:
        if job.peek:
            place = NULL
        elif _clear_row(shard, job.plan, &place) < 0:
            return -1
    if shed and job.peek:
        if holes_copy(&shard.holes, &untouched) < 0:
            return -1
    if shed:
        # There was no row when it was decided; what there is now has expired before, and a sweep had come to
        # it then.
        if not job.peek:
            status = _clear_row(shard, job.plan, &place)
        if status == 0:
            status = _shed(shard, job, part, touch, &clocks)
    elif apply and job.peek:
        # The event goes into a copy of the row, which is read and thrown away.
        if place != NULL:
            trial = _clone_row(arena, job.plan, <Row*>arena_at(arena, place[0]))
        else:
            trial = _new_row(arena, part.fp0, part.fp1, touch.entity_id, 1)
            if trial and shard.holes.n and _is_born_late(shard, job.plan, touch.entity_id, &clocks, False):
                status = _note_birth(arena, &trial, job.first_position + part.event)
        if trial == 0:
            return -1
        place = &trial
    if apply and not shed and status == 0:
        status = _apply_views(shard, job, part, touch, &clocks, &place)
    if apply and not job.peek and touch.n_all > touch.n_views and status == 0:
        status = _count(shard, job, part, touch)
    if slot != NULL and status == 0:
        _read_groups(shard, job.plan, slot, _row_at(shard, job.plan, place, &clocks), False, at_ms, at_ms,
                     &clocks, job, part if apply and not shed else NULL, &out)
        if slot.n_all > slot.n_groups:
            _read_sketches(shard, job.plan, slot, part.fp0, part.fp1, at_ms, &clocks,
                           job if apply and job.peek else NULL, part.event, &out)
    if trial:
        _free_row(arena, job.plan, trial)
    if shed and job.peek:
        holes_clear(&shard.holes)
        shard.holes = untouched
    return status


cdef inline int _apply_part(Shard* shard, const Job* job, const Part* part, uint32_t* place,
                            uint64_t applied) noexcept nogil:
    """`place`: of the row's handle in the table, NULL if there is no such row."""
    cdef const TouchC* touch
    cdef int status
    if (job.service != NULL or job.peek or job.shed != NULL or shard.holes.n
            or (place != NULL and _came_later(<Row*>arena_at(&shard.arena, place[0])))):
        return _apply_and_read(shard, job, part, place, applied)
    # Where nothing is read, and nothing was shed, an event is counted with no more than that takes.
    if job.batch.outcomes[part.event] != OUTCOME_ACCEPTED or job.first_position + part.event <= applied:
        return 0                         # refused, or a checkpoint already holds it
    touch = &job.event.touches[part.touch]
    status = _apply_views(shard, job, part, touch, NULL, &place)
    if status == 0 and touch.n_all > touch.n_views:
        status = _count(shard, job, part, touch)
    return status


# Fetched ahead of the part that is applied: its bucket; the rows there that may be its own; that row's
# blocks; the ends of the logs in them. Each step needs what the one before it asked for. Its cells in
# sketches. Parts are sorted by shard, so they jump about in the batch's columns too.

cdef inline void _fetch_index(const Shard* shard, const Part* parts, int64_t i, int64_t n) noexcept nogil:
    if 0 <= i < n:
        table_prefetch(&shard.table, parts[i].fp0)


cdef inline void _fetch_row(const Shard* shard, const Job* job, const Part* parts, int64_t i,
                            int64_t n) noexcept nogil:
    cdef uint32_t event
    cdef uint16_t j
    if i < 0 or i >= n:
        return
    table_prefetch_rows(&shard.table, &shard.arena, parts[i].fp0, parts[i].fp1,
                        _row_bytes(job.event.touches[parts[i].touch].n_views))
    event = parts[i].event
    fs_prefetch(&job.batch.times[event])
    fs_prefetch(&job.nows[event])
    for j in range(job.batch.n_columns):
        if job.batch.columns[j].kind == COLUMN_NUMBER:
            fs_prefetch(&job.batch.columns[j].numbers[event])
    for j in range(job.event.n_hashed):
        fs_prefetch(&job.hashes[<size_t>j * job.batch.n_events + event])


cdef inline void _fetch_blocks(const Shard* shard, const Part* parts, int64_t i, int64_t n,
                               uint32_t** places) noexcept nogil:
    """Remembers where the row's handle is: NULL where there is none yet."""
    cdef uint32_t* place
    cdef Row* row
    cdef uint8_t j
    if i < 0 or i >= n:
        return
    place = table_find(&shard.table, &shard.arena, parts[i].fp0, parts[i].fp1)
    places[i & (AHEAD_BLOCK - 1)] = place
    if place != NULL:
        row = <Row*>arena_at(&shard.arena, place[0])
        for j in range(row.n_heads):
            if _heads(row)[j].block:
                fs_prefetch(arena_at(&shard.arena, _heads(row)[j].block))


cdef inline void _fetch_logs(const Shard* shard, const Job* job, const Part* parts, int64_t i, int64_t n,
                             uint32_t** places, bint of_value) noexcept nogil:
    """of_value: the second step, once the first has brought what says where the value is."""
    cdef const ViewC* view
    cdef const LogHead* head
    cdef Row* row
    cdef uint64_t hash
    cdef uint8_t j
    if i < 0 or i >= n or places[i & (AHEAD_BLOCK - 1)] == NULL:
        return
    row = <Row*>arena_at(&shard.arena, places[i & (AHEAD_BLOCK - 1)][0])
    for j in range(row.n_heads):
        head = &_heads(row)[j]
        if is_note(head.kind):
            continue
        view = _layout(job.plan, head.view_id)
        hash = 0
        # A view that is gone has hashes of its own plan, not of this job's.
        if (view.structure != STRUCTURE_LOG and view.structure != STRUCTURE_DECAYED and view.n_values
                and job.plan.view_of_id[view.view_id] >= 0 and view.event == job.batch.event):
            hash = _hash_of(job, view, parts[i].event)
        if not of_value:
            kept_prefetch(&shard.arena, head, view, hash)
        elif hash:
            kept_prefetch_value(&shard.arena, head, view, hash)


cdef inline void _fetch_cells(const Shard* shard, const Job* job, const Part* parts, int64_t i,
                              int64_t n) noexcept nogil:
    cdef const TouchC* touch
    cdef const ViewC* view
    cdef uint16_t j
    if i < 0 or i >= n:
        return
    touch = &job.event.touches[parts[i].touch]
    for j in range(touch.n_views, touch.n_all):
        view = &job.plan.views[touch.views[j]]
        if view.where < 0 or job.masks[<size_t>view.where * job.batch.n_events + parts[i].event]:
            frequency_fetch(shard.frequencies.sketches[view.sketch], parts[i].fp0, parts[i].fp1)


cdef int shard_apply(Shard* shard, const Job* job, const Part* parts, uint32_t n_parts) noexcept nogil:
    cdef uint32_t* places[AHEAD_BLOCK]
    cdef uint32_t* place = NULL
    cdef uint64_t applied, position, n_moves
    cdef int64_t i, n = n_parts
    cdef bint counting = job.plan.n_sketched > 0
    cdef int status = 0
    if n == 0:
        return 0
    _lock(shard, True)
    applied = shard.position
    n_moves = shard.table.n_moves
    for i in range(-<int64_t>AHEAD_INDEX, n):
        if i > 0 and i % LOCKED_PARTS == 0:
            pthread_mutex_unlock(&shard.lock)
            _lock_again(shard)
        if shard.table.n_moves != n_moves:
            # By a part before this one, or while others had the lock: handles are elsewhere.
            n_moves = shard.table.n_moves
            memset(places, 0, sizeof(places))
        _fetch_index(shard, parts, i + AHEAD_INDEX, n)
        _fetch_row(shard, job, parts, i + AHEAD_ROW, n)
        if counting:
            _fetch_cells(shard, job, parts, i + AHEAD_CELLS, n)
        if i >= 0:
            place = places[i & (AHEAD_BLOCK - 1)]
            if place == NULL:
                # A row that was absent may have come since.
                place = table_find(&shard.table, &shard.arena, parts[i].fp0, parts[i].fp1)
        _fetch_blocks(shard, parts, i + AHEAD_BLOCK, n, places)
        _fetch_logs(shard, job, parts, i + AHEAD_LOG, n, places, False)
        if job.event.n_hashed:
            _fetch_logs(shard, job, parts, i + AHEAD_VALUE, n, places, True)
        if i < 0:
            continue
        status = _apply_part(shard, job, &parts[i], place, applied)
        if status < 0:
            break
    if status == 0 and not job.peek:
        position = job.first_position + parts[n_parts - 1].event
        if position > shard.position:
            shard.position = position
    pthread_mutex_unlock(&shard.lock)
    return status


cdef bint shard_read(Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0, uint64_t fp1,
                     int64_t at_ms, const Clocks* clocks, bint waits, const Outputs* out) noexcept nogil:
    cdef Row* row
    if not _lock(shard, waits):
        return False
    row = _row_at(shard, plan, table_find(&shard.table, &shard.arena, fp0, fp1), clocks)
    _read_groups(shard, plan, slot, row, True, at_ms, at_ms, clocks, NULL, NULL, out)
    _read_groups(shard, plan, slot, row, False, at_ms, at_ms, clocks, NULL, NULL, out)
    if slot.n_all > slot.n_groups:
        _read_sketches(shard, plan, slot, fp0, fp1, at_ms, clocks, NULL, 0, out)
    pthread_mutex_unlock(&shard.lock)
    return True


cdef void shard_fetch_row(Shard* shard, uint64_t fp0, uint64_t fp1) noexcept nogil:
    if pthread_mutex_trylock(&shard.lock) == 0:
        table_prefetch_rows(&shard.table, &shard.arena, fp0, fp1, _row_bytes(1))
        pthread_mutex_unlock(&shard.lock)


cdef void shard_fetch_logs(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef const uint32_t* place
    cdef const LogHead* head
    cdef const char* block
    cdef Row* row
    cdef size_t n_bytes, at
    cdef uint8_t i
    if pthread_mutex_trylock(&shard.lock) != 0:
        return
    place = table_find(&shard.table, &shard.arena, fp0, fp1)
    if place != NULL:
        row = <Row*>arena_at(&shard.arena, place[0])
        for i in range(row.n_heads):
            head = &_heads(row)[i]
            if head.block == 0 or is_note(head.kind):
                continue
            block = <const char*>arena_at(&shard.arena, head.block)
            n_bytes = <size_t>READ_BYTES
            if head.kind == LOG_SMALL:
                n_bytes = min(
                    n_bytes, <size_t>head.n_small * _layout(plan, head.view_id).raw_words * sizeof(Word))
            at = 0
            while at < n_bytes:
                fs_prefetch(block + at)
                at += 64
            fs_prefetch(block + n_bytes - 1)
    pthread_mutex_unlock(&shard.lock)


cdef void shard_fetch_cells(const Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0,
                            uint64_t fp1) noexcept nogil:
    cdef uint16_t i
    for i in range(slot.n_groups, slot.n_all):
        frequency_fetch(shard.frequencies.sketches[plan.views[slot.groups[i].view].sketch], fp0, fp1)


cdef int shard_list(Shard* shard, const PlanC* plan, const SlotC* slot, uint64_t fp0, uint64_t fp1,
                    int64_t at_ms, const Clocks* clocks, Bytes* out) noexcept nogil:
    cdef Row* row
    cdef const GroupC* group
    cdef const ViewC* view
    cdef const LogHead* head = NULL
    cdef ReadAt when
    cdef uint16_t i
    cdef int status = 0
    memset(&when, 0, sizeof(when))
    when.at_ms = when.last_ms = at_ms
    _lock(shard, True)
    row = _row_at(shard, plan, table_find(&shard.table, &shard.arena, fp0, fp1), clocks)
    _ask_birth(&shard.arena, row, &when)
    for i in range(slot.n_groups):
        group = &slot.groups[i]
        view = &plan.views[group.view]
        if view.structure != STRUCTURE_TOP:
            continue
        if row != NULL:
            head = _find_head(row, view.view_id, False)
        _ask_clock(clocks, view.event, &when)
        _ask_holes(&shard.holes, plan, view, &when)
        status |= sketch_list(&shard.arena, head, view, &when, group.before, group.n_before, out)
        status |= sketch_list(&shard.arena, head, view, &when, group.after, group.n_after, out)
    pthread_mutex_unlock(&shard.lock)
    return status


cdef bint shard_in_use(Shard* shard) noexcept nogil:
    if pthread_mutex_trylock(&shard.lock) != 0:
        return True
    pthread_mutex_unlock(&shard.lock)
    return False


cdef bint shard_holds(Shard* shard, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef bint found
    _lock(shard, True)
    found = table_find(&shard.table, &shard.arena, fp0, fp1) != NULL
    pthread_mutex_unlock(&shard.lock)
    return found


# -- freeing -------------------------------------------------------------------------------------------------

cdef int _note_freed(Shard* shard, uint64_t fp0, uint64_t fp1) noexcept nogil:
    """The next checkpoint deletes its record. 0, or -1 when out of memory."""
    cdef uint64_t fp[2]
    fp[0] = fp0
    fp[1] = fp1
    return bytes_append(&shard.freed, fp, 16)


cdef int _copy_bucket(Shard* shard, const PlanC* plan, uint64_t at, uint32_t* looked,
                      uint32_t* copied) noexcept nogil:
    """Copies the rows of a bucket that are due; counts its rows, and those. 0, or -1 when out of memory."""
    cdef const Bucket* bucket = &shard.table.now.at[at]
    cdef const Row* row
    cdef int slot
    for slot in range(SLOTS):
        if bucket.tags[slot]:
            looked[0] += 1
            row = <const Row*>arena_at(&shard.arena, bucket.rows[slot])
            if _due(shard, row):
                copied[0] += 1
                if _copy_row(shard, plan, row) < 0:
                    return -1
    return 0


cdef int _copy_reach(Shard* shard, const PlanC* plan, const uint32_t* place) noexcept nogil:
    """Before that place is removed: rows that may move from where the copier has not been to where it has are
    copied first. 0, or -1 when out of memory."""
    cdef uint64_t last, at
    cdef uint32_t looked = 0, copied = 0
    cdef bint been = False
    if shard.table.old.n or shard.copy_resized != shard.table.n_resized:
        return 0                                 # it begins anew
    at = table_reach(&shard.table, place, &last)
    while at != last:
        been = been or at < shard.copy_bucket
        at = (at + 1) & (shard.table.now.n - 1)
        if been and at >= shard.copy_bucket and _copy_bucket(shard, plan, at, &looked, &copied) < 0:
            return -1
    return 0


cdef int _drop_row(Shard* shard, const PlanC* plan, uint32_t* place) noexcept nogil:
    """Frees the row and remembers, for the next checkpoint, that it is gone. 0, or -1 when out of memory.
    Another row may be in its place then."""
    cdef uint32_t handle = place[0]
    cdef Row* row = <Row*>arena_at(&shard.arena, handle)
    if _due(shard, row) and _copy_row(shard, plan, row) < 0:
        return -1
    if shard.copying and _copy_reach(shard, plan, place) < 0:
        return -1
    if _note_freed(shard, row.fp0, row.fp1) < 0:
        return -1
    table_remove(&shard.table, &shard.arena, place)
    _free_row(&shard.arena, plan, handle)
    return 0


cdef int shard_forget(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef uint32_t* place
    cdef int found = 0
    pthread_mutex_lock(&shard.lock)
    place = table_find(&shard.table, &shard.arena, fp0, fp1)
    if place != NULL:
        found = -1 if _drop_row(shard, plan, place) < 0 else 1
    pthread_mutex_unlock(&shard.lock)
    return found


cdef int64_t _sweep_bucket(Shard* shard, const PlanC* plan, Bucket* bucket,
                           const int64_t* type_nows) noexcept nogil:
    cdef Row* row
    cdef LogHead* heads
    cdef int64_t freed = 0
    cdef uint8_t i, kept, notes
    cdef int slot = 0
    cdef bint expired
    while slot < SLOTS:
        if bucket.tags[slot] == 0:
            slot += 1
            continue
        row = <Row*>arena_at(&shard.arena, bucket.rows[slot])
        heads = _heads(row)
        kept = notes = 0
        for i in range(row.n_heads):
            expired = _head_expired(&shard.arena, plan, row, &heads[i], type_nows)
            notes += is_note(heads[i].kind) and not expired
            kept += not expired
        if kept == row.n_heads and kept > notes:
            slot += 1
            continue
        if kept == notes:
            if _drop_row(shard, plan, &bucket.rows[slot]) < 0:
                return -1
            freed += 1                   # a row from further on may be in its place
            continue
        if _due(shard, row) and _copy_row(shard, plan, row) < 0:
            return -1
        kept = 0
        for i in range(row.n_heads):
            if _head_expired(&shard.arena, plan, row, &heads[i], type_nows):
                kept_free(&shard.arena, &heads[i], _layout(plan, heads[i].view_id))
            else:
                heads[kept] = heads[i]
                kept += 1
        row.n_heads = kept
        row.mark = shard.cut
        slot += 1
    return freed


cdef int64_t shard_sweep(Shard* shard, const PlanC* plan, const int64_t* type_nows,
                         uint64_t* bucket) noexcept nogil:
    cdef int64_t freed = 0, some = 0
    cdef uint32_t looked = 0
    pthread_mutex_lock(&shard.lock)
    while bucket[0] < shard.table.now.n and looked < LOCKED_PARTS and some >= 0:
        some = _sweep_bucket(shard, plan, &shard.table.now.at[bucket[0]], type_nows)
        freed += some
        bucket[0] += 1
        looked += SLOTS
    if bucket[0] >= shard.table.now.n:
        bucket[0] = 0
    arena_settle(&shard.arena)
    pthread_mutex_unlock(&shard.lock)
    return freed if some >= 0 else -1


cdef bint shard_settle(Shard* shard, bint shrinks) noexcept nogil:
    cdef bint more
    _lock_again(shard)
    more = table_move(&shard.table, &shard.arena, MOVED_BUCKETS)
    if not more and shrinks:
        more = table_shrink(&shard.table)
    pthread_mutex_unlock(&shard.lock)
    return more


# -- checkpoint ----------------------------------------------------------------------------------------------

cdef struct Export:
    uint8_t n_logs
    size_t n_bytes
    uint8_t order[255]           # heads that are exported, by (view_id, kind)


cdef void _export_plan(const Arena* arena, const PlanC* plan, const Row* row, const int64_t* nows,
                       Export* export) noexcept nogil:
    cdef const LogHead* heads = _heads(<Row*>row)
    cdef uint8_t i, j, notes = 0
    export.n_logs = 0
    export.n_bytes = ROW_EXPORT_BYTES
    for i in range(row.n_heads):
        if _head_expired(arena, plan, row, &heads[i], nows):
            continue
        notes += is_note(heads[i].kind)
        export.n_bytes += kept_export_bytes(arena, &heads[i], _layout(plan, heads[i].view_id),
                                            _horizon(plan, &heads[i], nows))
        j = export.n_logs
        while j and (heads[export.order[j - 1]].view_id > heads[i].view_id
                     or (heads[export.order[j - 1]].view_id == heads[i].view_id
                         and heads[export.order[j - 1]].kind > heads[i].kind)):
            export.order[j] = export.order[j - 1]
            j -= 1
        export.order[j] = i
        export.n_logs += 1
    if export.n_logs == notes:
        export.n_logs = 0                # no view has anything in it: the row is as good as gone


cdef int _put_record(Bytes* out, const Arena* arena, const PlanC* plan, const Row* row, const int64_t* nows,
                     bint gone_too) noexcept nogil:
    """Appends the row's record. A row with nothing left is recorded as freed if `gone_too`, else left out."""
    cdef Export export
    cdef const LogHead* head
    cdef const ViewC* layout
    cdef int64_t horizon
    cdef uint64_t fp
    cdef uint32_t n_bytes
    cdef uint16_t n_logs
    cdef uint8_t* at
    cdef uint8_t i
    _export_plan(arena, plan, row, nows, &export)
    if export.n_logs == 0 and not gone_too:
        return 0
    if export.n_bytes >= FREED or bytes_reserve(out, RECORD_HEAD_BYTES + export.n_bytes) < 0:
        return -1
    at = out.data + out.n_bytes
    fp = fs_bswap64(row.fp0)
    memcpy(at, &fp, 8)
    fp = fs_bswap64(row.fp1)
    memcpy(at + 8, &fp, 8)
    n_bytes = <uint32_t>export.n_bytes if export.n_logs else FREED
    memcpy(at + 16, &n_bytes, 4)
    out.n_bytes += RECORD_HEAD_BYTES
    if export.n_logs == 0:
        return 0
    at += RECORD_HEAD_BYTES
    n_logs = export.n_logs
    memset(at, 0, ROW_EXPORT_BYTES)
    memcpy(at, &row.entity_id, 2)
    memcpy(at + 2, &n_logs, 2)
    at += ROW_EXPORT_BYTES
    for i in range(export.n_logs):
        head = &_heads(<Row*>row)[export.order[i]]
        layout = _layout(plan, head.view_id)
        horizon = _horizon(plan, head, nows)
        kept_export(arena, head, layout, horizon, at)
        at += kept_export_bytes(arena, head, layout, horizon)
    out.n_bytes += export.n_bytes
    return 0


cdef int _copy_row(Shard* shard, const PlanC* plan, const Row* row) noexcept nogil:
    return _put_record(&shard.copied, &shard.arena, plan, row, shard.cut_nows, True)


cdef int shard_cut(Shard* shard, const int64_t* nows) noexcept nogil:
    cdef int status
    pthread_mutex_lock(&shard.lock)
    status = frequencies_cut(&shard.frequencies)
    if status == 0:
        holes_clear(&shard.holes_at_cut)
        status = holes_copy(&shard.holes, &shard.holes_at_cut)
    shard.cut += 1
    shard.copying = 1
    shard.cut_nows = nows
    shard.copy_bucket = 0
    shard.copy_resized = shard.table.n_resized
    shard.copied.n_bytes = 0
    shard.freed_before = shard.freed
    memset(&shard.freed, 0, sizeof(Bytes))
    pthread_mutex_unlock(&shard.lock)
    return status


cdef int shard_copy_slice(Shard* shard, const PlanC* plan) noexcept nogil:
    cdef uint32_t copied = 0, looked = 0
    cdef size_t began
    cdef int status = 0
    _lock_again(shard)
    began = shard.copied.n_bytes
    if table_move(&shard.table, &shard.arena, MOVED_BUCKETS):
        pthread_mutex_unlock(&shard.lock)
        return 1
    if shard.copy_resized != shard.table.n_resized:
        # The rows moved. What was copied is copied again: equal records, one is kept.
        shard.copy_resized = shard.table.n_resized
        shard.copy_bucket = 0
    while (copied < LOCKED_PARTS and looked < 4 * LOCKED_PARTS and shard.copy_bucket < shard.table.now.n
           and shard.copied.n_bytes < began + COPIED_BYTES and status == 0):
        status = _copy_bucket(shard, plan, shard.copy_bucket, &looked, &copied)
        shard.copy_bucket += 1
    if status == 0 and shard.copy_bucket < shard.table.now.n:
        status = 1
    if status == 0:
        status = frequencies_copy_slice(&shard.frequencies)
    pthread_mutex_unlock(&shard.lock)
    return status


cdef int _by_fingerprint(const void* a, const void* b) noexcept nogil:
    """Orders pointers to records; of one fingerprint, rows come before the mark that it was freed."""
    cdef const uint8_t* x = (<const uint8_t**>a)[0]
    cdef const uint8_t* y = (<const uint8_t**>b)[0]
    cdef int order = memcmp(x, y, 16)
    if order == 0:
        order = memcmp(x + 16, y + 16, 4)
        if order:
            return 1 if (<const uint32_t*>(x + 16))[0] > (<const uint32_t*>(y + 16))[0] else -1
    return order


cdef int sorted_records(const Bytes* records, Bytes* out) noexcept nogil:
    cdef const uint8_t** places
    cdef size_t at = 0, n = 0, i, size
    cdef uint32_t n_bytes
    while at < records.n_bytes:
        memcpy(&n_bytes, records.data + at + 16, 4)
        at += RECORD_HEAD_BYTES + (0 if n_bytes == FREED else n_bytes)
        n += 1
    if n == 0:
        return 0
    places = <const uint8_t**>malloc(n * sizeof(void*))
    if places == NULL:
        return -1
    if bytes_reserve(out, records.n_bytes) < 0:
        free(places)
        return -1
    at = n = 0
    while at < records.n_bytes:
        places[n] = records.data + at
        memcpy(&n_bytes, records.data + at + 16, 4)
        at += RECORD_HEAD_BYTES + (0 if n_bytes == FREED else n_bytes)
        n += 1
    qsort(places, n, sizeof(void*), _by_fingerprint)
    for i in range(n):
        if i and memcmp(places[i - 1], places[i], 16) == 0:
            continue
        memcpy(&n_bytes, places[i] + 16, 4)
        size = RECORD_HEAD_BYTES + (0 if n_bytes == FREED else n_bytes)
        memcpy(out.data + out.n_bytes, places[i], size)
        out.n_bytes += size
    free(places)
    return 0


cdef int shard_copy_records(Shard* shard, Bytes* out) noexcept nogil:
    cdef size_t i
    cdef uint64_t fp[2]
    cdef uint8_t* at
    cdef uint32_t freed = FREED
    cdef int status = 0
    pthread_mutex_lock(&shard.lock)
    shard.copying = 0                    # from here on nobody else looks at what was copied
    pthread_mutex_unlock(&shard.lock)
    if bytes_reserve(&shard.copied, shard.freed_before.n_bytes // 16 * RECORD_HEAD_BYTES) < 0:
        status = -1
    if status == 0:
        for i in range(shard.freed_before.n_bytes // 16):
            memcpy(fp, shard.freed_before.data + i * 16, 16)
            fp[0] = fs_bswap64(fp[0])
            fp[1] = fs_bswap64(fp[1])
            at = shard.copied.data + shard.copied.n_bytes
            memcpy(at, fp, 16)
            memcpy(at + 16, &freed, 4)
            shard.copied.n_bytes += RECORD_HEAD_BYTES
    if status == 0:
        status = sorted_records(&shard.copied, out)
    bytes_clear(&shard.copied)
    return status


cdef void shard_copy_end(Shard* shard, bint written) noexcept nogil:
    cdef Bytes copied, freed_before
    pthread_mutex_lock(&shard.lock)
    shard.copying = 0
    shard.cut_nows = NULL
    holes_clear(&shard.holes_at_cut)
    frequencies_copy_end(&shard.frequencies, written)
    copied = shard.copied
    memset(&shard.copied, 0, sizeof(Bytes))
    if written:
        shard.written = shard.cut
    elif shard.freed_before.n_bytes and bytes_reserve(&shard.freed, shard.freed_before.n_bytes) == 0:
        memcpy(shard.freed.data + shard.freed.n_bytes, shard.freed_before.data, shard.freed_before.n_bytes)
        shard.freed.n_bytes += shard.freed_before.n_bytes
    freed_before = shard.freed_before
    memset(&shard.freed_before, 0, sizeof(Bytes))
    pthread_mutex_unlock(&shard.lock)
    bytes_clear(&copied)                 # large blocks go back to the system, which takes its time
    bytes_clear(&freed_before)


cdef int shard_keys(Shard* shard, const PlanC* plan, uint16_t entity, const int64_t* type_nows,
                    uint64_t* bucket, Bytes* out) noexcept nogil:
    cdef Export export
    cdef const Row* row
    cdef const LogHead* head
    cdef uint32_t looked = 0
    cdef int slot, status = 0
    cdef uint8_t i
    _lock(shard, True)
    while table_move(&shard.table, &shard.arena, MOVED_BUCKETS):
        pthread_mutex_unlock(&shard.lock)
        _lock_again(shard)
    while bucket[0] < shard.table.now.n and looked < LOCKED_PARTS and status == 0:
        for slot in range(SLOTS):
            if shard.table.now.at[bucket[0]].tags[slot] == 0 or status < 0:
                continue
            row = <const Row*>arena_at(&shard.arena, shard.table.now.at[bucket[0]].rows[slot])
            if row.entity_id != plan.entities[entity].entity_id:
                continue
            _export_plan(&shard.arena, plan, row, type_nows, &export)
            for i in range(export.n_logs):
                head = &_heads(<Row*>row)[export.order[i]]
                if head.kind == LOG_KEY and status == 0:
                    status = bytes_append(out, arena_at(&shard.arena, head.block), sizeof(uint32_t) + (
                        <const uint32_t*>arena_at(&shard.arena, head.block))[0])
        bucket[0] += 1
        looked += SLOTS
    if bucket[0] >= shard.table.now.n:
        bucket[0] = 0
    pthread_mutex_unlock(&shard.lock)
    return status


cdef int shard_export(Shard* shard, const PlanC* plan, const int64_t* type_nows, Bytes* out) noexcept nogil:
    cdef Bytes records
    cdef uint64_t at
    cdef int slot, status = 0
    memset(&records, 0, sizeof(records))
    pthread_mutex_lock(&shard.lock)
    while table_move(&shard.table, &shard.arena, MOVED_BUCKETS):
        pass
    for at in range(shard.table.now.n):
        for slot in range(SLOTS):
            if status == 0 and shard.table.now.at[at].tags[slot]:
                status = _put_record(&records, &shard.arena, plan,
                                     <const Row*>arena_at(&shard.arena, shard.table.now.at[at].rows[slot]),
                                     type_nows, False)
    pthread_mutex_unlock(&shard.lock)
    if status == 0:
        status = sorted_records(&records, out)
    bytes_clear(&records)
    return status


cdef int shard_import(Shard* shard, const PlanC* plan, uint64_t fp0, uint64_t fp1, const uint8_t* payload,
                      size_t n_bytes) noexcept nogil:
    cdef Arena* arena = &shard.arena
    cdef LogHead head
    cdef LogHead* added
    cdef uint16_t entity_id, n_logs, view_id, _log
    cdef uint32_t handle, reserved
    cdef size_t at = ROW_EXPORT_BYTES
    cdef int64_t used
    cdef int order, before = -1          # of logs: by view id, then what kind of log it is for its view
    cdef const ViewC* view
    if n_bytes < ROW_EXPORT_BYTES or table_find(&shard.table, arena, fp0, fp1) != NULL:
        return 1
    memcpy(&entity_id, payload, 2)
    memcpy(&n_logs, payload + 2, 2)
    memcpy(&reserved, payload + 4, 4)
    if n_logs == 0 or n_logs > 255 or reserved:
        return 1
    handle = _new_row(arena, fp0, fp1, entity_id, 1)
    if handle == 0:
        return -1
    for _log in range(n_logs):
        if n_bytes - at < 16:
            _free_row(arena, plan, handle)
            return 1
        memcpy(&view_id, payload + at, 2)
        order = <int>view_id << 8 | max(<int>payload[at + 2], <int>LOG_LARGE)
        if order <= before:
            _free_row(arena, plan, handle)
            return 1
        before = order
        view = NULL
        if not is_note(payload[at + 2]) and view_id <= plan.max_view_id and plan.view_of_id[view_id] >= 0:
            view = &plan.views[plan.view_of_id[view_id]]
            if plan.entities[view.entity].entity_id != entity_id:
                _free_row(arena, plan, handle)
                return 1
        if view == NULL and not is_note(payload[at + 2]):
            at += kept_skip_bytes(payload + at, n_bytes - at)      # of a view that the schema no longer has
            continue
        used = kept_import(arena, &head, view, payload + at, n_bytes - at)
        if used > 0:
            added = _add_head(arena, &handle, head.view_id, head.kind)
            if added == NULL:
                kept_free(arena, &head, view)
                used = -1
            else:
                added[0] = head
                if head.kind == LOG_BORN:           # the first head, whatever the bytes' order
                    added[0] = _heads(<Row*>arena_at(arena, handle))[0]
                    _heads(<Row*>arena_at(arena, handle))[0] = head
        if used <= 0:
            _free_row(arena, plan, handle)
            return 1 if used == 0 else -1
        at += <size_t>used
    if at != n_bytes or (<Row*>arena_at(arena, handle)).n_heads == 0:
        _free_row(arena, plan, handle)
        return 1 if at != n_bytes else _note_freed(shard, fp0, fp1)      # no view has it: its record goes too
    if table_insert(&shard.table, arena, handle) < 0:
        _free_row(arena, plan, handle)
        return -1
    return 0
