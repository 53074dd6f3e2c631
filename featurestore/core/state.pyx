"""The state machine over all shards; state.pxd says which step runs under which lock.

The same journal gives the same state and the same answers bit for bit (design §2.11): decisions depend on the
sequencer's state and the batch, a row depends on its own events in position order, and neither on how events
were batched or how many threads ran.
"""

import hashlib
from typing import NamedTuple

import numpy as np

cimport cython
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from featurestore.core.batch cimport (
    COLUMN_NUMBER, MAX_PRODUCER_BYTES, MAX_TEXT_BYTES, OUTCOME_ACCEPTED, OUTCOME_DUPLICATE,
    REFUSED_BEYOND_DEDUPE, REFUSED_FUTURE,
    REFUSED_MEMORY, REFUSED_KEY, REFUSED_KEY_TOO_LONG, REFUSED_NO_ID, REFUSED_NO_TIME,
    REFUSED_NOT_FINITE, REFUSED_TIME_RANGE, REFUSED_TYPE, Batch, Column, EventBatch, address,
    batch_part, checked_array,
)
from featurestore.core.bytes cimport Bytes, block_of, bytes_append, bytes_clear, bytes_reserve
from featurestore.core.derived cimport derive
from featurestore.core.change cimport CHANGE_DROP, CHANGE_RESET, LAST_NUMBER
from featurestore.core.frequency cimport (
    Frequencies, frequencies_adopt, frequencies_bytes, frequencies_clear, frequencies_copy_records,
    frequencies_export, frequencies_import, frequencies_init,
)
from featurestore.core.hashing cimport (
    SipState, hashing_structs, key_fingerprints, sip128_final, sip128_init, sip128_update, siphash128,
    value_hashes,
)
from featurestore.core.ids cimport (
    RECORD_BYTES, RECORD_IDS, SEGMENT_IDS, Id, IdTable, ids_are_many, ids_bytes, ids_cool, ids_copy_records,
    ids_drop, ids_export, ids_fetch, ids_free_records, ids_give, ids_import, ids_import_records,
    ids_of_segment, ids_oldest, ids_set_stored,
)
from featurestore.core.holes cimport holes_export, holes_import
from featurestore.core.kept cimport Listed, ListedValue, kept_structs
from featurestore.core.pages cimport CHUNK_BYTES, pool_clear, pool_idle_bytes, pool_init
from featurestore.core.plan cimport (
    MAX_KEY_PARTS, UNSET_MS, CompiledPlan, EventC, PlanC, ServiceC, SlotC, TouchC,
)
from featurestore.core.program cimport program_run
from featurestore.core.pthread cimport (
    fs_fair_rwlock, pthread_create, pthread_join, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock, pthread_rwlock_destroy, pthread_rwlock_rdlock,
    pthread_rwlock_unlock, pthread_rwlock_wrlock, pthread_t,
)
from featurestore.core.producers cimport (
    MADE_UP, N_CLASSES, NAMED, SEQUENCES, VERDICT_CONFLICT, VERDICT_DUPLICATE, VERDICT_FENCED, VERDICT_JUMP,
    VERDICT_TOO_OLD, Origin, ProducerRecord, ProducerTable, is_unknown, producer_class, producers_bytes,
    producers_change, producers_clear, producers_copy, producers_copy_end, producers_copy_gone, producers_cut,
    producers_export, producers_get, producers_import, producers_import_records, producers_judge,
    producers_know, producers_list,
)
from featurestore.core.sequencer cimport (
    CLOCK_EVENT, CLOCK_WALL, Sequencer, sequencer_adopt, sequencer_clear, sequencer_commit, sequencer_decide,
    sequencer_export_head, sequencer_import_head, sequencer_init, sequencer_set_clock,
)
from featurestore.core.shard cimport (
    Clocks, Job, Part, Shard, shard_apply, shard_clear, shard_copy_end, shard_copy_records, shard_copy_slice,
    shard_cut, shard_export, shard_fetch_cells, shard_fetch_logs, shard_fetch_row, shard_forget,
    shard_has_room, shard_held_bytes, shard_holds, shard_import, shard_in_use, shard_init, shard_keys,
    shard_list, shard_makes_row, shard_read, shard_settle, shard_sweep, shard_used_bytes, sorted_records,
)
from featurestore.core.table cimport table_prefetch
from featurestore.core.turns cimport turn_give, turn_take, turns_destroy, turns_init
from featurestore.core.window cimport Outputs, read_unavailable

from featurestore.columns import TextColumn
from featurestore.core.structs import same_structs
from featurestore.errors import (
    CorruptRecordError, InvalidEventError, LimitError, SequenceError, StorageError, UnknownNameError,
)
from featurestore.plan import CLOCKS, MAX_FUTURE_MS, EventPlan, FieldPlan, Kind, TimePlan

same_structs(__name__, state_structs(), hashing_structs(), kept_structs())

cdef enum:
    MAX_SHARDS = 4096
    MAX_THREADS = 64
    PARTS_PER_THREAD = 2048      # below that, starting a thread costs more than it saves
    AHEAD_BUCKET = 12            # keys ahead of the one read whose bucket, row and logs are being fetched
    AHEAD_ROW = 8
    AHEAD_LOGS = 4
    AHEAD_CELLS = 8              # key sets ahead whose cells in sketches are
    SLICES_A_TURN = 32           # of rows copied: a millisecond or two
    KEYS_AT_ONCE = 1024          # key sets whose fingerprints are made before they are read
    DEDUPE_MEMORY_BYTES = 360_000_000
    RECORDS_AT_ONCE = 24         # of ids copied: 97 KB
    FREED_A_SLICE = 512          # of producers that are gone
    DERIVED_AT_ONCE = 65536      # values read with what derived features need, before those are computed
    SNAPSHOT_VERSION = 2         # 1 where no shard has holes, and the sections for them are left out
    VALUE_DOMAIN = 0xFFFF        # in the place of an entity id: hashes of values, not of keys
    NAME_DOMAIN = 0xFFFE         # and what they are called where only a hash is left
    MAX_FIELDS = 256             # of an event type, as schemas have them

SNAPSHOT_MAGIC = b"FSSNAP\r\n"
FREED = b"\xff\xff\xff\xff"            # a record's length: what it is of is gone
EARLIEST_MS = -62_135_596_800_000      # 0001-01-01
LATEST_MS = 253_402_300_799_999        # 9999-12-31


cdef extern from * nogil:
    """
    #define fs_bswap64(x) __builtin_bswap64(x)
    #define fs_add(counter, n) __atomic_fetch_add((counter), (n), __ATOMIC_RELAXED)
    """
    uint64_t fs_add(uint64_t* counter, uint64_t n) noexcept
    uint64_t fs_bswap64(uint64_t x) noexcept


cdef inline uint32_t _shard_of(const StateC* state, uint64_t fp1) noexcept nogil:
    """The top bits of the fingerprint's second half."""
    return <uint32_t>((fp1 >> 32) >> (32 - state.shard_bits))


# -- work ----------------------------------------------------------------------------------------------------

cdef inline size_t _aligned(size_t n_bytes) noexcept nogil:
    return (n_bytes + 15) & ~<size_t>15


cdef int _reserve(Work* work, size_t n_bytes) noexcept nogil:
    if n_bytes <= work.capacity:
        return 0
    free(work.memory)
    work.capacity = 0
    work.memory = <uint8_t*>malloc(n_bytes + n_bytes // 4)
    if work.memory == NULL:
        return -1
    work.capacity = n_bytes + n_bytes // 4
    return 0


cdef void work_clear(Work* work) noexcept nogil:
    free(work.memory)
    free(work.vectors)
    free(work.cold.all_)
    memset(work, 0, sizeof(Work))


cdef int _room_to_derive(const ServiceC* service, uint32_t n, Work* work) noexcept nogil:
    """Where n vectors are read with what their derived features need; bounds always, which say what a zero
    divisor means."""
    cdef size_t n_values = <size_t>n * service.read_width
    cdef size_t n_bytes = n_values * (3 * sizeof(double) + sizeof(float) + 1)
    if service.n_derived == 0:
        return 0
    if n_bytes > work.vectors_bytes:
        free(work.vectors)
        work.vectors_bytes = 0
        work.vectors = <uint8_t*>malloc(n_bytes)
        if work.vectors == NULL:
            return -1
        work.vectors_bytes = n_bytes
    work.read.values = <double*>work.vectors
    work.read.lower = work.read.values + n_values
    work.read.upper = work.read.lower + n_values
    work.read.coverage = <float*>(work.read.upper + n_values)
    work.read.statuses = <uint8_t*>(work.read.coverage + n_values)
    return 0


cdef int _lay_out(const StateC* state, const Batch* batch, Work* work) noexcept nogil:
    """Cuts the work's memory into arrays. Sizes cannot overflow: events are at most 2^20, the rest 16-bit
    counts."""
    cdef const EventC* event = &state.plan.events[batch.event]
    cdef size_t n = batch.n_events, at
    cdef size_t sizes[13]
    cdef size_t total = 0
    cdef uint8_t* places[13]
    cdef int i
    sizes[0] = n * event.n_programs
    sizes[1] = n * event.n_touches
    sizes[2] = n * sizeof(uint64_t)
    sizes[3] = n * 16 if event.id_field >= 0 else 0
    sizes[4] = n
    sizes[5] = n * sizeof(int64_t)
    sizes[6] = n * sizeof(int64_t)
    sizes[7] = state.plan.n_events * sizeof(int64_t)
    sizes[8] = state.plan.n_events * sizeof(int64_t)
    sizes[9] = n * event.n_touches * (sizeof(Part) + 16)
    sizes[10] = (state.n_shards + 1) * sizeof(uint32_t)
    sizes[11] = n * event.n_hashed * sizeof(uint64_t)
    sizes[12] = n
    for i in range(13):
        total += _aligned(sizes[i])
    if _reserve(work, total) < 0:
        return -1
    at = 0
    for i in range(13):
        places[i] = work.memory + at
        at += _aligned(sizes[i])
    work.facts.masks = places[0]
    work.facts.missing = places[1]
    work.masks = <uint64_t*>places[2]
    work.shed = NULL
    work.first_of_type = False
    work.facts.id_fps = <uint64_t*>places[3] if event.id_field >= 0 else NULL
    work.facts.id_missing = places[4]
    work.facts.cold = &work.cold
    work.cold.n = work.cold.n_known = 0
    work.nows = <int64_t*>places[5]
    work.reads_at = <int64_t*>places[6]
    work.type_nows = <int64_t*>places[7]
    work.first_nows = <int64_t*>places[8]
    work.parts = <Part*>places[9]
    work.starts = <uint32_t*>places[10]
    work.hashes = <uint64_t*>places[11]
    work.partly = places[12]
    memset(work.partly, 0, n)
    return 0


cdef bint batch_fits(const PlanC* plan, const Batch* batch) noexcept nogil:
    cdef const EventC* event
    cdef uint16_t i
    if batch.event >= plan.n_events or batch.n_columns != plan.events[batch.event].n_fields:
        return False
    event = &plan.events[batch.event]
    for i in range(event.n_fields):
        if batch.columns[i].kind != event.kinds[i]:
            return False
    return True


cdef int work_prepare(const StateC* state, const Batch* batch, const ServiceC* service,
                      Work* work) noexcept nogil:
    cdef const EventC* event = &state.plan.events[batch.event]
    cdef const Column* columns[MAX_KEY_PARTS]
    cdef const TouchC* touch
    cdef Part* part
    cdef uint64_t* fps
    cdef const uint64_t* fp
    cdef uint8_t* missing
    cdef uint32_t n = batch.n_events, i, shard, start = 0
    cdef uint16_t j, k
    if _lay_out(state, batch, work) < 0:
        return -1
    if service != NULL and _room_to_derive(service, n, work) < 0:
        return -1
    for j in range(event.n_programs):
        program_run(event.programs[j], batch, 0, n, <uint8_t*>work.facts.masks + <size_t>j * n)
    for j in range(event.n_hashed):
        value_hashes(state.secret, VALUE_DOMAIN, &batch.columns[event.hashed[j].field],
                     event.hashed[j].is_key, n, work.hashes + <size_t>j * n)
    if event.id_field >= 0:
        columns[0] = &batch.columns[event.id_field]
        key_fingerprints(state.secret, event.event_id, columns, 1, 0, n, <uint64_t*>work.facts.id_fps,
                         <uint8_t*>work.facts.id_missing)
    # Fingerprints, one touch after the other; then a counting sort of the parts by shard, which keeps them in
    # position order.
    fps = <uint64_t*>(work.parts + <size_t>n * event.n_touches)
    memset(work.starts, 0, (state.n_shards + 1) * sizeof(uint32_t))
    for j in range(event.n_touches):
        touch = &event.touches[j]
        for k in range(touch.n_fields):
            columns[k] = &batch.columns[touch.fields[k]]
        missing = <uint8_t*>work.facts.missing + <size_t>j * n
        if touch.n_all == 0 and service == NULL:
            memset(missing, 1, n)
            fps += 2 * <size_t>n
            continue
        key_fingerprints(state.secret, touch.entity_id, columns, touch.n_fields, 0, n, fps, missing)
        for i in range(n):
            if (fps[2 * i] | fps[2 * i + 1]) == 0:
                missing[i] = 1
            elif not missing[i]:
                work.starts[_shard_of(state, fps[2 * i + 1]) + 1] += 1
        fps += 2 * <size_t>n
    for shard in range(state.n_shards):
        work.starts[shard + 1] += work.starts[shard]
    work.n_parts = work.starts[state.n_shards]
    fps = <uint64_t*>(work.parts + <size_t>n * event.n_touches)
    for i in range(n):
        for j in range(event.n_touches):
            if not work.facts.missing[<size_t>j * n + i]:
                fp = fps + 2 * (<size_t>j * n + i)
                shard = _shard_of(state, fp[1])
                part = &work.parts[work.starts[shard]]
                work.starts[shard] += 1
                part.event = i
                part.touch = j
                part.fp0 = fp[0]
                part.fp1 = fp[1]
    # Each start has moved to its end, which is the next one's start.
    for shard in range(state.n_shards):
        i = work.starts[shard]
        work.starts[shard] = start
        start = i
    return 0


cdef inline int64_t _now(const StateC* state, uint16_t event, int64_t wall_ms) noexcept nogil:
    if state.sequencer.clock != CLOCK_WALL:
        return state.sequencer.type_nows[event]
    return wall_ms if wall_ms > state.sequencer.now_ms else state.sequencer.now_ms


# -- decide, commit, apply -----------------------------------------------------------------------------------

cdef uint64_t _used_bytes(const StateC* state) noexcept nogil:
    """What rows, their index and sketches take."""
    cdef uint64_t used = 0
    cdef uint32_t i
    for i in range(state.n_shards):
        used += shard_used_bytes(&state.shards[i])
    return used


cdef uint64_t _held_bytes(StateC* state) noexcept nogil:
    """What the process holds for them: also what is free between, and what is about to go to the system."""
    cdef uint64_t held = pool_idle_bytes(&state.pool)
    cdef uint32_t i
    for i in range(state.n_shards):
        held += shard_held_bytes(&state.shards[i])
    return held


cdef inline uint64_t _most_held_bytes(const StateC* state) noexcept nogil:
    """Rows that came and went leave pieces free between those that stay: an eighth of the limit for them, and
    for what a shard's newest chunk has not given yet."""
    return state.max_memory_bytes + max(state.max_memory_bytes // 8, state.n_shards * <uint64_t>CHUNK_BYTES)


cdef inline void _describe(const StateC* state, const Batch* batch, const Work* work,
                           Job* job) noexcept nogil:
    """What a decided batch brings to rows; nothing is read."""
    memset(job, 0, sizeof(Job))
    job.plan = state.plan
    job.event = &state.plan.events[batch.event]
    job.batch = batch
    job.masks = work.facts.masks
    job.hashes = work.hashes
    job.nows = work.nows
    job.shed = work.shed


cdef void _find_shed(StateC* state, const Batch* batch, Work* work, bint full) noexcept nogil:
    """Memory is at its cap: marks what would make a new row; where it is not `full`, if there is no room for
    it in what is held already."""
    cdef Job job
    cdef const Part* part
    cdef Shard* shard
    cdef uint32_t i, k
    _describe(state, batch, work, &job)
    memset(work.masks, 0, batch.n_events * sizeof(uint64_t))
    for k in range(state.n_shards):
        shard = &state.shards[k]
        for i in range(work.starts[k], work.starts[k + 1]):
            part = &work.parts[i]
            if (batch.outcomes[part.event] == OUTCOME_ACCEPTED and (full or not shard_has_room(shard))
                    and shard_makes_row(&job, part) and not shard_holds(shard, part.fp0, part.fp1)):
                work.masks[part.event] |= <uint64_t>1 << part.touch
                work.shed = work.masks


cdef int state_judge(StateC* state, const Batch* batch, const Origin* origin, int64_t wall_ms) noexcept nogil:
    cdef Origin other
    cdef int verdict = producers_judge(&state.sequencer.producers, origin, wall_ms)
    if verdict == VERDICT_CONFLICT:
        # Or it was remembered by the fingerprint of before.
        other = origin[0]
        other.content = _content_by_place(state, batch)
        if producers_judge(&state.sequencer.producers, &other, wall_ms) == VERDICT_DUPLICATE:
            return VERDICT_DUPLICATE
    return verdict


cdef inline bint _is_decided(uint8_t outcome) noexcept nogil:
    """By a sequencer; the others are the decoder's, of events that could not be read."""
    return (outcome <= OUTCOME_DUPLICATE or outcome == REFUSED_FUTURE or outcome == REFUSED_NO_ID
            or outcome == REFUSED_BEYOND_DEDUPE or outcome == REFUSED_MEMORY)


cdef void state_repeat(StateC* state, const Batch* batch, Work* work, int64_t wall_ms) noexcept nogil:
    cdef uint32_t i
    work.shed = NULL
    work.now_ms = state.sequencer.now_ms
    for i in range(batch.n_events):
        if _is_decided(batch.outcomes[i]):
            batch.outcomes[i] = OUTCOME_DUPLICATE
        work.nows[i] = _now(state, batch.event, wall_ms)


cdef int state_decide(StateC* state, const Batch* batch, Work* work, int64_t wall_ms) noexcept nogil:
    cdef uint32_t i
    cdef bint full
    cdef int status
    for i in range(batch.n_events):
        # What a sequencer said before (of a batch that was peeked at, or sent to another store) does not
        # count.
        if _is_decided(batch.outcomes[i]):
            batch.outcomes[i] = OUTCOME_ACCEPTED
    work.shed = NULL
    work.now_ms = state.sequencer.now_ms
    work.first_of_type = state.sequencer.first_nows[batch.event] == UNSET_MS
    status = sequencer_decide(&state.sequencer, state.plan, batch, &work.facts, wall_ms, work.nows,
                              work.partly)
    if state.max_memory_bytes and status == 0:
        full = _used_bytes(state) >= state.max_memory_bytes
        state.full = full or _held_bytes(state) >= _most_held_bytes(state)
        if state.full:
            _find_shed(state, batch, work, full)
    return status


cdef int state_fetch(StateC* state, const Batch* batch, Work* work) noexcept nogil:
    cdef uint64_t in_vain, failed, n = work.cold.n - work.cold.n_known
    if ids_fetch(&work.cold, &state.id_source, state.plan.events[batch.event].event_id, &in_vain,
                 &failed) < 0:
        return -1
    fs_add(&state.id_reads, n)
    fs_add(&state.id_reads_in_vain, in_vain)
    fs_add(&state.id_reads_failed, failed)
    return 0


cdef uint64_t state_cool(StateC* state, bint all_) noexcept nogil:
    cdef uint64_t n = 0
    cdef Id* given_up
    while state.id_source.read != NULL:
        # One after the other, and given back outside the lock: batches pass in between.
        pthread_mutex_lock(&state.order)
        given_up = NULL
        if all_ or ids_are_many(&state.sequencer.ids):
            given_up = ids_cool(&state.sequencer.ids)
        pthread_mutex_unlock(&state.order)
        if given_up == NULL:
            break
        ids_give(given_up)
        n += 1
    return n


cdef int state_commit(StateC* state, const Batch* batch, Work* work, const Origin* origin,
                      int64_t wall_ms) noexcept nogil:
    work.first_of_type = state.sequencer.first_nows[batch.event] == UNSET_MS
    return sequencer_commit(&state.sequencer, batch, &work.facts, origin, wall_ms, work.nows)


cdef uint32_t state_count_shed(StateC* state, const Batch* batch, const Work* work) noexcept nogil:
    cdef const EventC* event = &state.plan.events[batch.event]
    cdef uint32_t i, n = 0
    cdef uint16_t j
    if work.shed == NULL:
        return 0
    for i in range(batch.n_events):
        n += work.shed[i] != 0
        for j in range(event.n_touches):
            if (work.shed[i] >> j) & 1:
                fs_add(&state.sequencer.shed[event.touches[j].entity], 1)
    return n


cdef bint _is_taken_by_a_view(const PlanC* plan, const Batch* batch, const Facts* facts,
                              uint32_t i) noexcept nogil:
    """Some view of the event's keys has it pass its filter."""
    cdef const EventC* event = &plan.events[batch.event]
    cdef const TouchC* touch
    cdef int where
    cdef uint16_t j, k
    for j in range(event.n_touches):
        if facts.missing[<size_t>j * batch.n_events + i]:
            continue
        touch = &event.touches[j]
        for k in range(touch.n_all):
            where = plan.views[touch.views[k]].where
            if where < 0 or facts.masks[<size_t>where * batch.n_events + i]:
                return True
    return False


cdef uint32_t state_count_untouched(StateC* state, const Batch* batch, const Work* work) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED:
            n += not _is_taken_by_a_view(state.plan, batch, &work.facts, i)
    if n:
        fs_add(&state.sequencer.untouched[batch.event], n)
    return n


ctypedef struct Crew:            # one thread's share of a batch: the shards congruent to `first`
    StateC* state
    const Job* job
    const Work* work
    uint32_t first
    uint32_t step
    int status


cdef void* _apply_shards(void* argument) noexcept nogil:
    cdef Crew* crew = <Crew*>argument
    cdef const Work* work = crew.work
    cdef uint32_t shard = crew.first, n
    while shard < crew.state.n_shards and crew.status == 0:
        n = work.starts[shard + 1] - work.starts[shard]
        if n:
            crew.status = shard_apply(&crew.state.shards[shard], crew.job, work.parts + work.starts[shard], n)
        shard += crew.step
    return NULL


cdef int _apply_all(StateC* state, const Job* job, const Work* work) noexcept nogil:
    cdef Crew crews[MAX_THREADS]
    cdef pthread_t threads[MAX_THREADS]
    cdef bint started[MAX_THREADS]
    cdef uint32_t n = 1 + work.n_parts // PARTS_PER_THREAD, i
    cdef int status = 0
    if n > state.threads:
        n = state.threads
    for i in range(n):
        crews[i].state = state
        crews[i].job = job
        crews[i].work = work
        crews[i].first = i
        crews[i].step = n
        crews[i].status = 0
    for i in range(1, n):
        started[i] = pthread_create(&threads[i], NULL, _apply_shards, &crews[i]) == 0
    _apply_shards(&crews[0])
    for i in range(1, n):
        if started[i]:
            pthread_join(threads[i], NULL)
        else:
            _apply_shards(&crews[i])
    for i in range(n):
        if crews[i].status < 0:
            status = -1
    return status


cdef bint work_would_wait(StateC* state, const Work* work) noexcept nogil:
    cdef const Shard* last = NULL
    cdef Shard* shard
    cdef uint32_t i
    for i in range(work.n_parts):
        shard = &state.shards[_shard_of(state, work.parts[i].fp1)]
        if shard != last and shard_in_use(shard):
            return True
        last = shard
    return False


cdef inline void _at_event(const Outputs* outputs, uint64_t offset, Outputs* out) noexcept nogil:
    out[0] = outputs[0]
    out.values += offset
    if out.lower != NULL:
        out.lower += offset
        out.upper += offset
    out.statuses += offset
    out.coverage += offset


cdef void _slot_unavailable(const SlotC* slot, const Outputs* out) noexcept nogil:
    cdef uint16_t i
    for i in range(slot.n_all):
        read_unavailable(slot.groups[i].before, slot.groups[i].n_before, out)
        read_unavailable(slot.groups[i].after, slot.groups[i].n_after, out)


cdef void _unavailable_keys(const StateC* state, const Batch* batch, const Work* work,
                            const ServiceC* service, const Outputs* outputs) noexcept nogil:
    """Values of entities that an event gives no key for. The shards write all others."""
    cdef const EventC* event = &state.plan.events[batch.event]
    cdef Outputs out
    cdef const uint8_t* missing
    cdef uint32_t i
    cdef uint16_t j, k
    for j in range(service.n_slots):
        missing = NULL
        for k in range(event.n_touches):
            if event.touches[k].entity == service.slots[j].entity:
                missing = work.facts.missing + <size_t>k * batch.n_events
        for i in range(batch.n_events):
            if missing == NULL or missing[i]:
                _at_event(outputs, <uint64_t>i * service.read_width, &out)
                _slot_unavailable(&service.slots[j], &out)


cdef inline void _clocks(const Sequencer* s, const int64_t* nows, const int64_t* first_nows,
                         Clocks* clocks) noexcept nogil:
    """Of no event: nows are those of all types."""
    memset(clocks, 0, sizeof(Clocks))
    clocks.nows = nows
    clocks.first_nows = first_nows
    clocks.ahead_ms = s.max_future_ms if s.clock == CLOCK_WALL else 0
    clocks.is_one = s.clock != CLOCK_EVENT
    clocks.own_type = 0xFFFF
    clocks.own_now_ms = nows[0] if s.n_types else UNSET_MS


cdef int state_apply(StateC* state, const Batch* batch, Work* work, uint64_t first_position,
                     const ServiceC* service, const Outputs* outputs, bint peek) noexcept nogil:
    cdef Sequencer* s = &state.sequencer
    cdef Job job
    cdef const Outputs* read = outputs
    cdef uint32_t i
    cdef int status
    _describe(state, batch, work, &job)
    memcpy(work.type_nows, s.type_nows, s.n_types * sizeof(int64_t))
    memcpy(work.first_nows, s.first_nows, s.n_types * sizeof(int64_t))
    if s.clock == CLOCK_WALL and batch.n_events:
        for i in range(s.n_types):
            work.type_nows[i] = work.nows[0]
    _clocks(s, work.type_nows, work.first_nows, &job.clocks)
    job.clocks.own_type = batch.event
    # A view of this type has seen everything since its first accepted event: events before that one in this
    # batch do not know it yet.
    job.clocks.own_first_now_ms = work.first_nows[batch.event]
    if work.first_of_type:
        job.clocks.own_first_now_ms = UNSET_MS
        while job.first_accepted < batch.n_events and batch.outcomes[job.first_accepted] != OUTCOME_ACCEPTED:
            job.first_accepted += 1
        if job.first_accepted < batch.n_events:
            job.clocks.own_first_now_ms = work.nows[job.first_accepted]
    if service != NULL:
        for i in range(batch.n_events):
            work.reads_at[i] = batch.times[i]
            if batch.outcomes[i] == REFUSED_NO_TIME or batch.outcomes[i] == REFUSED_TIME_RANGE:
                work.reads_at[i] = work.nows[i] if work.nows[i] > work.now_ms else work.now_ms
                if work.reads_at[i] == UNSET_MS:
                    work.reads_at[i] = 0
        if service.n_derived:
            read = &work.read
        job.outputs = read[0]
        _unavailable_keys(state, batch, work, service, read)
    job.reads_at = work.reads_at
    job.first_position = first_position
    job.service = service
    job.peek = peek
    status = _apply_all(state, &job, work)
    if service != NULL and service.n_derived and status == 0:
        derive(service, read, batch.n_events, outputs)
    if status < 0 and not peek:
        state.broken = True
    return status


cdef int _observe(StateC* state, const Batch* batch, const Origin* origin, int64_t wall_ms, bint peek,
                  const ServiceC* service, Work* work, const Outputs* outputs, uint8_t* partly,
                  uint64_t* shed) noexcept nogil:
    """A batch from its columns to its vectors, with the plan lock held: a Verdict, or -1 when out of memory.
    partly, shed: [n_events] of EventBatch."""
    cdef uint64_t first
    cdef int status = work_prepare(state, batch, service, work), verdict
    while True:
        pthread_mutex_lock(&state.order)
        first = state.sequencer.position + 1
        verdict = state_judge(state, batch, origin, wall_ms)
        if status == 0 and verdict <= VERDICT_DUPLICATE:
            if verdict == VERDICT_DUPLICATE:
                state_repeat(state, batch, work, wall_ms)
            else:
                status = state_decide(state, batch, work, wall_ms)
                if status == 0 and not peek:
                    status = state_commit(state, batch, work, origin, wall_ms)
            if status == 0:      # of a duplicate, at no position, nothing is applied
                status = state_apply(state, batch, work, first, service, outputs,
                                     peek or verdict == VERDICT_DUPLICATE)
        pthread_mutex_unlock(&state.order)
        if status != 1:
            break
        status = state_fetch(state, batch, work)
    if status < 0:
        return -1
    memcpy(partly, work.partly, batch.n_events)
    memset(shed, 0, batch.n_events * sizeof(uint64_t))
    if work.shed != NULL:
        memcpy(shed, work.shed, batch.n_events * sizeof(uint64_t))
    return verdict


ctypedef struct Merged:          # a batch whose events come between those of others
    Batch* batch
    uint8_t* partly
    uint64_t* shed
    uint32_t next                # the first that has not come yet
    bint peek


cdef int _observe_merged(StateC* state, Merged* parts, const uint32_t* which, const uint8_t* wanted,
                         const int64_t* nows_ms, uint32_t n, const ServiceC* service, Work* work,
                         Column* columns, const Outputs* outputs) noexcept nogil:
    """Row i is the next event of parts[which[i]]: run by run, each as long as neither the batch, nor now, nor
    whether vectors are wanted changes. 0, or -1 when out of memory."""
    cdef Origin origin
    cdef Outputs out
    cdef Merged* part
    cdef Batch batch
    cdef uint32_t begin = 0, end
    cdef uint64_t n_read = 0
    memset(&origin, 0, sizeof(Origin))
    memset(&out, 0, sizeof(Outputs))
    while begin < n:
        end = begin + 1
        while (end < n and which[end] == which[begin] and wanted[end] == wanted[begin]
                and nows_ms[end] == nows_ms[begin]):
            end += 1
        part = &parts[which[begin]]
        batch_part(part.batch, part.next, part.next + end - begin, columns, &batch)
        if service != NULL:
            _at_event(outputs, n_read * service.width, &out)
        if _observe(state, &batch, &origin, nows_ms[begin], part.peek, service if wanted[begin] else NULL,
                    work, &out, part.partly + part.next, part.shed + part.next) < 0:
            return -1
        part.next += end - begin
        if wanted[begin]:
            n_read += end - begin
        begin = end
    return 0


# -- read ----------------------------------------------------------------------------------------------------

cdef void _find_keys(const StateC* state, const SlotC* slot, const Column* const* parts, uint32_t first,
                     uint32_t n, uint64_t* fps, uint8_t* missing) noexcept nogil:
    """Fingerprints of one entity's keys in key sets first..first + n - 1; 0 where there is none."""
    cdef const PlanC* plan = state.plan
    cdef const Column* columns[MAX_KEY_PARTS]
    cdef uint16_t k
    cdef uint32_t i
    for k in range(plan.entities[slot.entity].n_parts):
        columns[k] = parts[plan.entities[slot.entity].parts[k]]
        if columns[k] == NULL:
            memset(fps, 0, <size_t>n * 16)
            return
    key_fingerprints(state.secret, plan.entities[slot.entity].entity_id, columns,
                     plan.entities[slot.entity].n_parts, first, first + n, fps, missing)
    for i in range(n):
        if missing[i]:
            fps[2 * i] = fps[2 * i + 1] = 0


cdef inline void _fetch_keys(StateC* state, const uint64_t* fps, int64_t at, int64_t n) noexcept nogil:
    """Asks for what the reads after part `at` of n will need; see shard.pxd."""
    cdef const uint64_t* fp = fps + 2 * (at + AHEAD_BUCKET)
    if at + AHEAD_BUCKET < n and fp[0] | fp[1]:
        table_prefetch(&state.shards[_shard_of(state, fp[1])].table, fp[0])
    fp = fps + 2 * (at + AHEAD_ROW)
    if 0 <= at + AHEAD_ROW < n and fp[0] | fp[1]:
        shard_fetch_row(&state.shards[_shard_of(state, fp[1])], fp[0], fp[1])
    fp = fps + 2 * (at + AHEAD_LOGS)
    if 0 <= at + AHEAD_LOGS < n and fp[0] | fp[1]:
        shard_fetch_logs(&state.shards[_shard_of(state, fp[1])], state.plan, fp[0], fp[1])


cdef bint _read_keys(StateC* state, const ServiceC* service, const uint64_t* fps, uint32_t n,
                     const int64_t* as_of, int64_t read_at, const Clocks* clocks, bint waits,
                     const Outputs* outputs) noexcept nogil:
    """Vectors of n key sets with the fingerprints [n_slots][n]. False: a shard is in use."""
    cdef const PlanC* plan = state.plan
    cdef const SlotC* slot
    cdef const uint64_t* fp
    cdef Outputs out
    cdef int64_t at, n_parts = <int64_t>service.n_slots * n
    cdef uint16_t j
    cdef uint32_t i
    for at in range(-AHEAD_BUCKET, 0):
        _fetch_keys(state, fps, at, n_parts)
    at = 0
    for j in range(service.n_slots):
        slot = &service.slots[j]
        for i in range(n):
            _fetch_keys(state, fps, at, n_parts)
            fp = fps + 2 * at
            if slot.n_all > slot.n_groups and i + AHEAD_CELLS < n:
                shard_fetch_cells(&state.shards[_shard_of(state, fp[2 * AHEAD_CELLS + 1])], plan, slot,
                                  fp[2 * AHEAD_CELLS], fp[2 * AHEAD_CELLS + 1])
            _at_event(outputs, <uint64_t>i * service.read_width, &out)
            if (fp[0] | fp[1]) == 0:
                _slot_unavailable(slot, &out)
            elif not shard_read(&state.shards[_shard_of(state, fp[1])], plan, slot, fp[0], fp[1],
                                as_of[i] if as_of != NULL else read_at, clocks, waits, &out):
                return False
            at += 1
    return True


cdef int state_read(StateC* state, const ServiceC* service, const Column* const* parts, uint32_t n,
                    const int64_t* as_of, int64_t wall_ms, bint waits, Work* work, const Outputs* outputs,
                    int64_t* read_at) noexcept nogil:
    cdef const PlanC* plan = state.plan
    cdef Sequencer* s = &state.sequencer
    cdef const Outputs* read
    cdef Outputs out
    cdef Clocks clocks
    cdef int64_t* nows
    cdef int64_t now = s.now_ms
    cdef uint64_t* fps
    cdef uint8_t* missing
    cdef uint16_t j
    cdef uint32_t first = 0, some = n    # in pieces, for what is kept beside the outputs
    if service.n_derived and some > DERIVED_AT_ONCE // service.read_width:
        some = 1 + DERIVED_AT_ONCE // service.read_width
    if some > KEYS_AT_ONCE:
        some = KEYS_AT_ONCE
    if _reserve(work, _aligned(plan.n_events * 16) + <size_t>some * (<size_t>service.n_slots * 16 + 1)) < 0:
        return -1
    if _room_to_derive(service, some, work) < 0:
        return -1
    nows = <int64_t*>work.memory
    fps = <uint64_t*>(work.memory + _aligned(plan.n_events * 16))
    missing = <uint8_t*>(fps + 2 * <size_t>some * service.n_slots)
    if s.clock == CLOCK_WALL and wall_ms > now:
        now = wall_ms
    for j in range(plan.n_events):
        nows[j] = s.type_nows[j] if s.clock != CLOCK_WALL else now
        nows[plan.n_events + j] = s.first_nows[j]
    _clocks(s, nows, nows + plan.n_events, &clocks)
    read_at[0] = now if now != UNSET_MS else 0
    while first < n:
        if some > n - first:
            some = n - first
        _at_event(outputs, <uint64_t>first * service.width, &out)
        read = &work.read if service.n_derived else &out
        for j in range(service.n_slots):
            _find_keys(state, &service.slots[j], parts, first, some, fps + <size_t>j * some * 2, missing)
        if not _read_keys(state, service, fps, some, as_of + first if as_of != NULL else NULL, read_at[0],
                          &clocks, waits, read):
            return READ_BUSY
        if service.n_derived:
            derive(service, read, some, &out)
        first += some
    return 0


cdef void state_origin(const StateC* state, const uint8_t* producer, size_t n_bytes, uint64_t epoch,
                       uint64_t sequence, uint64_t content, Origin* origin) noexcept nogil:
    cdef uint64_t fp[2]
    memset(origin, 0, sizeof(Origin))
    if n_bytes == 0:
        return
    siphash128(state.secret, producer, n_bytes, fp)
    origin.name = producer
    origin.name_bytes = <uint8_t>n_bytes
    origin.fp0 = fp[0]
    origin.fp1 = fp[1]
    origin.epoch = epoch
    origin.sequence = sequence
    origin.content = content if content else 1
    origin.class_ = producer_class(producer, n_bytes)
    origin.given = True


cdef bint state_forget(StateC* state, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef Shard* shard = &state.shards[_shard_of(state, fp1)]
    cdef int found = 0
    state.sequencer.position += 1
    if state.sequencer.position > shard.position:    # else, in a replay, its rows were stored later
        found = shard_forget(shard, state.plan, fp0, fp1)
    if found < 0:
        state.broken = True
    return found > 0


cdef void state_change_producer(StateC* state, int change, const Origin* origin,
                                int64_t wall_ms) noexcept nogil:
    if producers_change(&state.sequencer.producers, change, origin, wall_ms) < 0:
        state.broken = True
    state.sequencer.position += 1


cdef inline bint _readable(uint8_t outcome) noexcept nogil:
    """Whether the decoder could read the event; the values of one that it refused mean nothing."""
    return not (outcome == REFUSED_NO_TIME or outcome == REFUSED_TIME_RANGE or outcome == REFUSED_NOT_FINITE
                or outcome == REFUSED_KEY or outcome == REFUSED_KEY_TOO_LONG or outcome == REFUSED_TYPE)


cdef bint _says_something(const Batch* batch, uint16_t j) noexcept nogil:
    """Whether any event that can be read has a value in column j."""
    cdef const Column* column = &batch.columns[j]
    cdef uint32_t i
    for i in range(batch.n_events):
        if column.kind == COLUMN_NUMBER:
            if column.numbers[i] == column.numbers[i] and _readable(batch.outcomes[i]):
                return True
        elif (column.present == NULL or column.present[i]) and _readable(batch.outcomes[i]):
            return True
    return False


cdef uint64_t _content(const StateC* state, const Batch* batch, SipState* sip, const uint16_t* order,
                       uint16_t n_columns) noexcept nogil:
    cdef const Column* column
    cdef uint64_t out[2]
    cdef uint32_t n = batch.n_events, i, length
    cdef uint8_t present, outcome
    cdef double number
    cdef uint16_t j
    sip128_update(sip, &state.plan.events[batch.event].event_id, sizeof(uint16_t))
    sip128_update(sip, &n, sizeof(n))
    for i in range(n):
        outcome = batch.outcomes[i]
        if not _readable(outcome):
            sip128_update(sip, &outcome, 1)
            continue
        sip128_update(sip, &batch.times[i], sizeof(int64_t))
        for j in range(n_columns):
            column = &batch.columns[order[j] if order != NULL else j]
            if column.kind == COLUMN_NUMBER:
                number = column.numbers[i] if column.numbers[i] == column.numbers[i] else NAN
                sip128_update(sip, &number, sizeof(double))
                continue
            present = column.present == NULL or column.present[i] != 0
            length = column.offsets[i + 1] - column.offsets[i] if present else 0
            sip128_update(sip, &present, 1)
            sip128_update(sip, &length, sizeof(length))
            if length:
                sip128_update(sip, column.bytes + column.offsets[i], length)
    sip128_final(sip, out)
    return out[0] if out[0] else 1


cdef uint64_t state_content(const StateC* state, const Batch* batch) noexcept nogil:
    # Columns by name, and none that is all absent: as the batch was sent, whatever else is declared by now.
    cdef const EventC* event = &state.plan.events[batch.event]
    cdef SipState sip
    cdef uint16_t order[MAX_FIELDS]
    cdef uint16_t j, n = 0
    if batch.n_columns > MAX_FIELDS:
        return _content_by_place(state, batch)
    sip128_init(&sip, state.secret)
    for j in range(batch.n_columns):
        if _says_something(batch, event.by_name[j]):
            order[n] = event.by_name[j]
            n += 1
            sip128_update(&sip, &event.name_words[event.by_name[j]], sizeof(uint64_t))
    return _content(state, batch, &sip, order, n)


cdef uint64_t _content_by_place(const StateC* state, const Batch* batch) noexcept nogil:
    """As state_content was in journals and checkpoints written before it went by names."""
    cdef SipState sip
    sip128_init(&sip, state.secret)
    return _content(state, batch, &sip, NULL, batch.n_columns)


# -- Python --------------------------------------------------------------------------------------------------

def split_records(records):
    """The records of a shard (shard.pxd), each as bytes."""
    records = bytes(records)
    at = 0
    while at < len(records):
        length = records[at + 16:at + 20]
        end = at + 20 + (0 if length == FREED else int.from_bytes(length, "little"))
        yield records[at:end]
        at = end


def _keys(names, columns, n):
    """Key texts as a batch, which checks them."""
    fields = tuple(FieldPlan(name, Kind.TEXT, True) for name in names)
    event = EventPlan(0, "keys", TimePlan("", "ms"), fields, 0, None, 0, ())
    return EventBatch(event, 0, np.zeros(n, np.int64), columns)


def _id_name(event):
    """The field that holds an event type's ids, None where it declares none."""
    return None if event.id_field is None else event.fields[event.id_field].name


class RememberedProducer(NamedTuple):
    """What is remembered of a producer, but for which batches it sent."""

    name: bytes | None  # None: of a store of before, and it has not written since
    epoch: int
    sequence: int  # the highest
    heard_ms: int | None  # the server's clock at its last batch or reset; None as above
    made_up: bool  # the name is one that a client made up for itself


class SeenProducer(NamedTuple):
    """What is remembered of a producer, in its newest epoch."""

    epoch: int
    sequence: int  # the highest
    lowest: int  # the first sequence of which can be told whether it was seen
    seen: tuple[int, ...]  # descending
    heard_ms: int | None  # the server's clock at its last batch or reset; None: not known


class Vectors:
    """Feature vectors, one row per event or key set, columns in the service's order.

    values, lower, upper: float64 (n, width), the last two None unless bounds were asked for. statuses: uint8
    (n, width), see `featurestore.Status`. coverage: float32 (n, width), the share of its window that a
    WARMING feature has been live for, else 1 (0 where UNAVAILABLE). read_at_ms: the time of a read that named
    none.
    """

    __slots__ = ("coverage", "lower", "read_at_ms", "statuses", "upper", "values")

    def __init__(self, n, width, bounds):
        shape = (n, width)
        self.values = np.empty(shape, np.float64)
        self.lower = np.empty(shape, np.float64) if bounds else None
        self.upper = np.empty(shape, np.float64) if bounds else None
        self.statuses = np.empty(shape, np.uint8)
        self.coverage = np.empty(shape, np.float32)
        self.read_at_ms = 0


cdef object vectors_for(const ServiceC* service, uint32_t n, bint bounds, Outputs* outputs):
    memset(outputs, 0, sizeof(Outputs))
    if service == NULL:
        return None
    vectors = Vectors(n, service.width, bounds)
    outputs.values = <double*><uintptr_t>vectors.values.ctypes.data
    if bounds:
        outputs.lower = <double*><uintptr_t>vectors.lower.ctypes.data
        outputs.upper = <double*><uintptr_t>vectors.upper.ctypes.data
    outputs.statuses = <uint8_t*><uintptr_t>vectors.statuses.ctypes.data
    outputs.coverage = <float*><uintptr_t>vectors.coverage.ctypes.data
    return vectors


cdef list _still_stored(uint16_t event_id, uint64_t stored_first, list stored, uint64_t first, Bytes* out):
    """How many ids a checkpoint has of each segment from `first` on; freed records of those before it."""
    cdef uint64_t k
    cdef uint64_t n_freed = min(<uint64_t>len(stored), max(first, stored_first) - stored_first)
    for k in range(n_freed):
        if ids_free_records(event_id, stored_first + k, stored[k], out) < 0:
            raise MemoryError
    return stored[n_freed:]


cdef int _set_floors(Sequencer* s, object plan) except -1:
    """From when on ids are known, as the plan has it of each event type."""
    cdef uint16_t i
    for i, event in enumerate(plan.events):
        s.dedupe_floors[i] = UNSET_MS if event.dedupe_floor_ms is None else event.dedupe_floor_ms
    return 0


cdef object verdict_error(int verdict, bytes producer, uint64_t epoch, uint64_t sequence):
    error = _verdict_error(verdict, producer, epoch, sequence)
    error.applied = None if is_unknown(verdict) else False
    return error


cdef object _verdict_error(int verdict, bytes producer, uint64_t epoch, uint64_t sequence):
    who = f"batch (producer {producer!r}, epoch {epoch}, sequence {sequence})"
    if verdict == VERDICT_TOO_OLD:
        return SequenceError(
            f"{who} is more than 1,024 below this producer's highest sequence, or from before an operator "
            "reset it: whether it was applied cannot be told; event ids would (`ids` of the event type); "
            "other events need a new sequence, or a new epoch")
    if verdict == VERDICT_FENCED:
        return SequenceError(
            f"{who} is from a fenced-off epoch: a newer instance of this producer has written; stop this "
            "one, or, if that was somebody else, have an operator reset the producer")
    if verdict == VERDICT_JUMP:
        return InvalidEventError(
            f"{who} is out of reach: an epoch or a sequence is at most 2**40 above the last one of this "
            "producer (0 where there is none), or a time in nanoseconds at most; number on from the last one")
    if verdict == VERDICT_CONFLICT:
        return InvalidEventError(
            f"{who} was seen before with other content; a retry must resend the same bytes under the same "
            "sequence, and other events need a sequence of their own")
    return LimitError(
        f"{who}: the memory for producers of its kind (names that clients make up; names that were given) is "
        "in use, and none has been silent for long enough (15 minutes; 7 days); reuse a producer name")


cdef uint64_t _name_of(const uint8_t* secret, uint64_t hash) noexcept:
    """What a value without its text is called outside. Not by its hash: whoever could ask for hashes could
    look for values that have theirs in common, and steer sketches with them."""
    cdef uint64_t message[2]
    cdef uint64_t name[2]
    message[0] = hash
    message[1] = NAME_DOMAIN
    siphash128(secret, <const uint8_t*>message, sizeof(message), name)
    return name[0]


cdef list _listed(const Bytes* records, const uint8_t* secret):
    """Lists as shard_list writes them, as Python has them: (place in the vector, ...)."""
    cdef Listed listed
    cdef ListedValue value
    cdef size_t at = 0
    cdef uint32_t _i
    found = []
    while at < records.n_bytes:
        memcpy(&listed, records.data + at, sizeof(Listed))
        at += sizeof(Listed)
        values = []
        for _i in range(listed.n_values):
            memcpy(&value, records.data + at, sizeof(ListedValue))
            at += sizeof(ListedValue)
            text = (<const char*>records.data + at)[:value.n_text] if value.has_text else None
            name = 0 if value.has_text else _name_of(secret, value.hash)
            values.append((text, name, value.estimate, value.lower, value.upper))
            at += value.n_text
        found.append((listed.place, listed.status, listed.coverage,
                      (listed.total, listed.total_lower, listed.total_upper), listed.rest_upper, values))
    return found


@cython.final
cdef class Reserved:
    """Sketches that a coming plan adds, made before it is journaled: it must not fail for memory after."""

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n_shards):
            frequencies_clear(&self.made[i])
        free(self.made)


@cython.final
cdef class State:
    """The whole engine in memory, without journal or files: what replay and tests use, and what the store
    persists.

    clock: one of CLOCKS (plan.py). secret: 16 bytes that key every fingerprint. n_shards: a power of two;
    with the secret part of the store's identity. threads: how many apply one large batch together.
    cores: how many may be at long work at once (turns.pxd), 1 at least. max_memory_bytes: at it no rows are
    made, and keys that have none are shed; 0 for no limit. max_future_ms: how far ahead of the server's
    clock an event may be, MAX_FUTURE_MS at most. dedupe_memory_bytes: of event ids within their horizons; at
    it events with new ids are refused.
    """

    def __init__(self, plan not None, *, str clock="event", bytes secret=bytes(16), uint32_t n_shards=64,
                 uint32_t threads=1, uint32_t cores=1, uint64_t max_memory_bytes=0,
                 int64_t max_future_ms=MAX_FUTURE_MS, uint64_t max_producer_bytes=64 << 20,
                 uint64_t dedupe_memory_bytes=DEDUPE_MEMORY_BYTES):
        cdef uint32_t i
        if self.made:
            raise ValueError("a State is made once")
        if clock not in CLOCKS:
            raise ValueError(f"clock is {clock!r}; it is {' or '.join(CLOCKS)}")
        if len(secret) != 16:
            raise ValueError(f"secret has {len(secret)} bytes; it has 16")
        if n_shards == 0 or n_shards > MAX_SHARDS or n_shards & (n_shards - 1):
            raise ValueError(f"n_shards is {n_shards}; it is a power of two up to {MAX_SHARDS}")
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads}; it is 1 to {MAX_THREADS}")
        # Further ahead, and what the clock lets in could be older than a sketch keeps: see frequency.pxd.
        if not 0 <= max_future_ms <= MAX_FUTURE_MS:
            raise ValueError(f"max_future_ms is {max_future_ms}; it is 0 to {MAX_FUTURE_MS}, since sketches "
                             f"keep so much more than their windows and lateness")
        self.compiled = CompiledPlan(plan)
        self.c.plan = self.compiled.c
        self.c.threads = threads
        self.c.max_memory_bytes = max_memory_bytes
        memcpy(self.c.secret, <const char*>secret, 16)
        if sequencer_init(&self.c.sequencer, self.c.plan, CLOCKS.index(clock), max_future_ms,
                          max_producer_bytes, dedupe_memory_bytes) < 0:
            raise MemoryError
        _set_floors(&self.c.sequencer, plan)
        if pool_init(&self.c.pool) < 0:
            raise MemoryError
        self.c.shards = <Shard*>calloc(n_shards, sizeof(Shard))
        if self.c.shards == NULL:
            raise MemoryError
        for i in range(n_shards):
            if shard_init(&self.c.shards[i], &self.c.pool) < 0:
                raise MemoryError
            self.c.n_shards += 1
            if frequencies_init(&self.c.shards[i].frequencies, self.c.plan, NULL) < 0:
                raise MemoryError
        self.gone = {}
        self.ids_stored = {}
        self.ids_copied = {}
        self.c.shard_bits = n_shards.bit_length() - 1
        if (fs_fair_rwlock(&self.c.plan_lock) or pthread_mutex_init(&self.c.order, NULL)
                or turns_init(&self.c.turns, max(1, cores))):
            raise MemoryError
        self.made = True

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.c.n_shards):
            shard_clear(&self.c.shards[i])
        free(self.c.shards)
        pool_clear(&self.c.pool)
        free(self.cut_nows)
        sequencer_clear(&self.c.sequencer)
        if self.made:
            pthread_rwlock_destroy(&self.c.plan_lock)
            pthread_mutex_destroy(&self.c.order)
            turns_destroy(&self.c.turns)

    @property
    def plan(self):
        """The plan that is being served."""
        return self.compiled.plan

    @property
    def position(self):
        """Position of the last event, schema change or Forget."""
        return self.c.sequencer.position

    @property
    def now_ms(self):
        """The latest clock of all event types, None before the first event."""
        return None if self.c.sequencer.now_ms == UNSET_MS else self.c.sequencer.now_ms

    @property
    def memories(self):
        """What refuses events at its cap: (bytes in use, cap) by name."""
        cdef const ProducerTable* producers = &self.c.sequencer.producers
        half = producers.max_bytes // N_CLASSES
        rows = (_used_bytes(&self.c), self.c.max_memory_bytes)
        return {
            **({"max_memory": rows} if self.c.max_memory_bytes else {}),
            "dedupe_memory": (ids_bytes(&self.c.sequencer.ids), self.c.sequencer.ids.max_bytes),
            "producer_memory of given names": (producers.classes[NAMED].n_bytes, half),
            "producer_memory of made-up names": (producers.classes[MADE_UP].n_bytes, half),
        }

    @property
    def nows_ms(self):
        """The clock of each event type that has accepted an event, by its name."""
        return {event.name: self.c.sequencer.type_nows[i] for i, event in enumerate(self.compiled.plan.events)
                if i < self.c.sequencer.n_types and self.c.sequencer.first_nows[i] != UNSET_MS}

    @property
    def partly_late(self):
        """Of each event type, how many that were accepted since this process began were partly late."""
        return {event.name: self.c.sequencer.partly_late[i]
                for i, event in enumerate(self.compiled.plan.events) if i < self.c.sequencer.n_types}

    @property
    def untouched(self):
        """Of each event type, how many that were accepted since this process began no view took: their keys
        were absent, or no filter let them pass."""
        return {event.name: self.c.sequencer.untouched[i]
                for i, event in enumerate(self.compiled.plan.events) if i < self.c.sequencer.n_types}

    @property
    def shed(self):
        """Of each entity, by its key parts joined with commas, how many accepted events since this process
        began found no room for a row of it."""
        return {",".join(entity.parts): self.c.sequencer.shed[i]
                for i, entity in enumerate(self.compiled.plan.entities) if i < self.c.sequencer.n_entities}

    @property
    def ahead_ms(self):
        """How far ahead of the clock an accepted event may be."""
        return self.c.sequencer.max_future_ms if self.c.sequencer.clock == CLOCK_WALL else 0

    cdef const ServiceC* _service(self, service) except? NULL:
        if service is None:
            return NULL
        if not 0 <= service < self.c.plan.n_services:
            raise UnknownNameError(f"service {service} of {self.c.plan.n_services}")
        return &self.c.plan.services[<size_t>service]

    cdef int _check_batch(self, EventBatch batch) except -1:
        if batch.batch.event >= self.c.plan.n_events:
            raise InvalidEventError(
                f"batch is of event type {batch.batch.event}; the plan has {self.c.plan.n_events}")
        if batch.batch.n_columns != self.c.plan.events[batch.batch.event].n_fields:
            raise InvalidEventError(f"batch has {batch.batch.n_columns} columns; event type "
                                    f"{self.plan.events[batch.batch.event].name} has "
                                    f"{self.c.plan.events[batch.batch.event].n_fields} fields")
        if not batch_fits(self.c.plan, &batch.batch):
            raise InvalidEventError(
                f"batch was made for another event type than {self.plan.events[batch.batch.event].name}: it "
                "has numbers where that one has texts")
        if self.c.broken:
            raise MemoryError("memory ran out while a batch was applied; restart from the last checkpoint")
        return 0

    def observe(self, EventBatch batch not None, service=None, *, int64_t now_ms=0, bint bounds=False,
                bint peek=False, bytes producer=b"", uint64_t epoch=0, uint64_t sequence=0):
        """Applies a batch and reads `service` (its index) at every event's position; see design §2.6.

        Returns Vectors with one row per event, or None without a service. What became of each event is in
        batch.outcomes, batch.partly_late and batch.shed. A duplicate batch is acknowledged: the outcome of
        every event that could be read is DUPLICATE, and its vector the first one again, unless other events
        came between; of lifetimes and decayed sums there may be bounds only.
        now_ms: the server's clock; 0: not known, which only the wall clock needs. Raises SequenceError,
        InvalidEventError or LimitError where (producer, epoch, sequence) is turned away.
        """
        cdef Batch* b = &batch.batch
        cdef Work work
        cdef Origin origin
        cdef Outputs outputs
        cdef CompiledPlan _read_with = self.compiled     # what `target` is of lives until this returns
        cdef const ServiceC* target = self._service(service)
        cdef uint64_t content = 0
        cdef int verdict
        self._check_batch(batch)
        memset(&work, 0, sizeof(work))
        vectors = vectors_for(target, b.n_events, bounds, &outputs)
        if producer:
            content = state_content(&self.c, b)
        state_origin(&self.c, producer, len(producer), epoch, sequence, content, &origin)
        with nogil:
            pthread_rwlock_rdlock(&self.c.plan_lock)
            verdict = _observe(&self.c, b, &origin, now_ms, peek, target, &work, &outputs, batch.partly,
                               batch.shed_bits)
            pthread_rwlock_unlock(&self.c.plan_lock)
            work_clear(&work)
        if verdict < 0:
            raise MemoryError
        if verdict > VERDICT_DUPLICATE:
            raise verdict_error(verdict, producer, epoch, sequence)
        return vectors

    def observe_merged(self, batches not None, which not None, service=None, *, wanted=None, nows_ms=None,
                       bint bounds=False):
        """Applies events of several batches in turn, as `observe` would one after the other, in one call.

        batches: (EventBatch, the first of its events that has not come yet, whether they are only looked
        through). which: uint32 (n), row by row the batch whose next event comes. wanted: uint8 (n), 1 where
        `service` is to be read; None: everywhere. nows_ms: int64 (n), the server's clock at each; None: not
        known. Returns Vectors with one row per event that is wanted, or None without a service; outcomes
        stand in their batches.
        """
        cdef CompiledPlan _read_with = self.compiled     # as above
        cdef const ServiceC* target = self._service(service)
        cdef const uint32_t* places
        cdef const uint8_t* reads
        cdef const int64_t* nows
        cdef Merged* parts = NULL
        cdef Column* columns = NULL
        cdef EventBatch batch
        cdef Outputs outputs
        cdef Work work
        cdef uint32_t n = len(which), n_batches = len(batches), i
        cdef uint16_t n_columns = 1
        cdef int status = 0
        # Each is kept by its name until this returns.
        which = checked_array(which, np.dtype(np.uint32), n, "which")
        wanted = np.ones(n, np.uint8) if wanted is None else wanted
        wanted = checked_array(wanted, np.dtype(np.uint8), n, "wanted")
        nows_ms = np.zeros(n, np.int64) if nows_ms is None else nows_ms
        nows_ms = checked_array(nows_ms, np.dtype(np.int64), n, "nows_ms")
        counts = np.bincount(which, minlength=n_batches)
        if len(counts) > n_batches:
            raise InvalidEventError(f"which names batch {len(counts) - 1}; there are {n_batches}")
        if wanted.max(initial=0) > 1:
            raise InvalidEventError("wanted has other numbers than 0 and 1")
        places = <const uint32_t*>address(which)
        reads = <const uint8_t*>address(wanted)
        nows = <const int64_t*>address(nows_ms)
        vectors = vectors_for(target, np.count_nonzero(wanted), bounds, &outputs)
        memset(&work, 0, sizeof(work))
        try:
            parts = <Merged*>calloc(max(n_batches, 1), sizeof(Merged))
            if parts == NULL:
                raise MemoryError
            for i in range(n_batches):
                batch, first, peek = batches[i]
                self._check_batch(batch)
                if not 0 <= first <= first + counts[i] <= batch.batch.n_events:
                    raise InvalidEventError(f"batch {i} has {batch.batch.n_events} events; {counts[i]} from "
                                            f"{first} on are to come")
                parts[i].batch = &batch.batch
                parts[i].partly = batch.partly
                parts[i].shed = batch.shed_bits
                parts[i].next = first
                parts[i].peek = peek
                n_columns = max(n_columns, batch.batch.n_columns)
            columns = <Column*>calloc(n_columns, sizeof(Column))
            if columns == NULL:
                raise MemoryError
            with nogil:
                pthread_rwlock_rdlock(&self.c.plan_lock)
                status = _observe_merged(&self.c, parts, places, reads, nows, n, target, &work, columns,
                                         &outputs)
                pthread_rwlock_unlock(&self.c.plan_lock)
                work_clear(&work)
        finally:
            free(parts)
            free(columns)
        if status < 0:
            raise MemoryError
        return vectors

    def read(self, service, parts not None, uint32_t n, *, as_of=None, int64_t now_ms=0, bint bounds=False):
        """Reads `service` (its index) for n key sets. parts: {part name: TextColumn of n keys}; a part that
        is not given, or a null or empty key, makes its entity's values UNAVAILABLE. as_of: int64 (n) ms, None
        for now. now_ms as in observe."""
        with nogil:
            pthread_rwlock_rdlock(&self.c.plan_lock)
        try:                          # what is looked up in the plan holds for as long as the lock does
            return self._read(service, parts, n, as_of, now_ms, bounds)
        finally:
            pthread_rwlock_unlock(&self.c.plan_lock)

    cdef object _read(self, service, parts, uint32_t n, as_of, int64_t now_ms, bint bounds):
        cdef const ServiceC* target = self._service(service)
        cdef const int64_t* times = NULL
        cdef Work work
        cdef Outputs outputs
        cdef EventBatch keys
        cdef const Column** columns
        cdef int status
        cdef int64_t read_at = 0
        if target == NULL:
            raise UnknownNameError("read needs a service")
        unknown = [name for name in parts if name not in self.compiled.part_names]
        if unknown:
            raise UnknownNameError(
                f"no entity has a key part {unknown[0]!r}; there are {', '.join(self.compiled.part_names)}")
        if as_of is not None:
            as_of = np.ascontiguousarray(as_of, np.int64)
            if as_of.shape != (n,):
                raise InvalidEventError(
                    f"as_of has shape {as_of.shape}; it has one time for each of the {n} key sets")
            if n and not (EARLIEST_MS <= as_of.min() and as_of.max() <= LATEST_MS):
                raise InvalidEventError("as_of is outside the years 1 to 9999")
            times = <const int64_t*><uintptr_t>as_of.ctypes.data
        keys = _keys(list(parts), list(parts.values()), n)
        vectors = vectors_for(target, n, bounds, &outputs)
        memset(&work, 0, sizeof(work))
        columns = <const Column**>calloc(len(self.compiled.part_names) + 1, sizeof(void*))
        if columns == NULL:
            raise MemoryError
        for i, name in enumerate(parts):
            columns[<size_t>self.compiled.part_names.index(name)] = &keys.batch.columns[<size_t>i]
        with nogil:
            status = state_read(&self.c, target, columns, n, times, now_ms, True, &work, &outputs,
                                &read_at)
            work_clear(&work)
            free(columns)
        if status < 0:
            raise MemoryError
        vectors.read_at_ms = read_at
        return vectors

    def lists(self, service, parts not None, *, as_of=None, int64_t now_ms=0):
        """The lists of heaviest values that a service's shares and entropies are of, for one key set.

        parts: {part name: bytes}; as_of: ms, None for now. Returns (the time read at, [(feature's index in
        the plan, status, coverage, (events, at least, at most), rest, [(text, name, events, at least, at
        most), ...]), ...]): no value that is not listed has more events than `rest`; a text is None where it
        was not kept, which `name`, else 0, tells from others, and of a number field it is the 8 bytes of a
        double. Lists of keys that are not given are
        absent. Not for the hot path.
        """
        with nogil:
            pthread_rwlock_rdlock(&self.c.plan_lock)
        try:
            return self._lists(service, parts, as_of, now_ms)
        finally:
            pthread_rwlock_unlock(&self.c.plan_lock)

    cdef object _lists(self, service, parts, as_of, int64_t now_ms):
        cdef const ServiceC* target = self._service(service)
        cdef const SlotC* slot
        cdef Sequencer* s = &self.c.sequencer
        cdef int64_t now = s.now_ms, at_ms
        cdef uint64_t fp[2]
        cdef Bytes out
        cdef uint16_t i, j
        cdef int status
        if target == NULL:
            raise UnknownNameError("lists needs a service")
        for name in parts:
            if name not in self.compiled.part_names:
                raise UnknownNameError(
                    f"no entity has a key part {name!r}; there are {', '.join(self.compiled.part_names)}")
        if s.clock == CLOCK_WALL and now_ms > now:
            now = now_ms
        at_ms = (now if now != UNSET_MS else 0) if as_of is None else as_of
        if not EARLIEST_MS <= at_ms <= LATEST_MS:
            raise InvalidEventError("as_of is outside the years 1 to 9999")
        nows = np.empty((2, self.c.plan.n_events), np.int64)
        for j in range(self.c.plan.n_events):
            nows[0, j] = s.type_nows[j] if s.clock != CLOCK_WALL else now
            nows[1, j] = s.first_nows[j]
        cdef const int64_t* first = <const int64_t*><uintptr_t>nows.ctypes.data
        cdef Clocks clocks
        _clocks(s, first, first + self.c.plan.n_events, &clocks)
        needed = self.plan.needed_for(self.plan.served[service].features)
        found = []
        memset(&out, 0, sizeof(out))
        try:
            for i in range(target.n_slots):
                slot = &target.slots[i]
                names = self.plan.entities[slot.entity].parts
                given = [parts.get(name) for name in names]
                stands_for = None if None in given else self.fingerprint(slot.entity, given)
                if stands_for is None:
                    continue
                memcpy(fp, <const char*>stands_for, 16)
                out.n_bytes = 0
                with nogil:
                    status = shard_list(&self.c.shards[_shard_of(&self.c, fp[1])], self.c.plan, slot, fp[0],
                                        fp[1], at_ms, &clocks, &out)
                if status < 0:
                    raise MemoryError
                found += [(needed[place], *rest) for place, *rest in _listed(&out, self.c.secret)]
        finally:
            bytes_clear(&out)
        return at_ms, sorted(found, key=lambda each: needed.index(each[0]))

    @property
    def clock(self):
        """Which clock it has now; one of plan.CLOCKS."""
        return CLOCKS[self.c.sequencer.clock]

    def apply_plan(self, plan not None, *, clock=None, now_ms=None):
        """Serves another plan from here on. Views that it keeps (by id) keep their state; it takes one
        position. With clock (one of plan.CLOCKS) and now_ms, its clock is that from here on, and says
        now_ms."""
        cdef CompiledPlan compiled = CompiledPlan(plan, self.compiled)
        cdef Reserved reserved = self.reserve(compiled)
        with nogil:
            pthread_rwlock_wrlock(&self.c.plan_lock)
            pthread_mutex_lock(&self.c.order)
        try:
            self.swap_plan(compiled, reserved)
            if clock is not None:
                self.set_clock(CLOCKS.index(clock), now_ms)
        finally:
            pthread_mutex_unlock(&self.c.order)
            pthread_rwlock_unlock(&self.c.plan_lock)

    cdef Reserved reserve(self, CompiledPlan compiled):
        """The sketches that `compiled`, made with the current plan as previous, adds to it."""
        cdef Reserved reserved = Reserved.__new__(Reserved)
        cdef uint32_t i
        reserved.made = <Frequencies*>calloc(self.c.n_shards, sizeof(Frequencies))
        if reserved.made == NULL:
            raise MemoryError
        reserved.n_shards = self.c.n_shards
        for i in range(self.c.n_shards):
            if frequencies_init(&reserved.made[i], compiled.c, self.c.plan) < 0:
                raise MemoryError("no memory for the sketches of this schema")
        return reserved

    def check_memory(self, CompiledPlan compiled not None):
        """LimitError where the sketches that a coming plan adds do not fit below max_memory_bytes."""
        cdef uint64_t more = self.c.n_shards * frequencies_bytes(compiled.c, self.c.plan)
        cdef uint64_t used = _used_bytes(&self.c)
        if self.c.max_memory_bytes and more and used + more > self.c.max_memory_bytes:
            raise LimitError(
                f"the sketches that this schema adds take {more} bytes in {self.c.n_shards} shards, {used} "
                f"are in use, and max_memory is {self.c.max_memory_bytes}; declare a larger epsilon or allow "
                "more memory")

    cdef int swap_plan(self, CompiledPlan compiled, Reserved reserved) except -1:
        """apply_plan with the plan lock (exclusive) and the order lock held. `compiled` was made with the
        current one as previous, `reserved` for it."""
        cdef Sequencer s
        cdef Sequencer* old = &self.c.sequencer
        cdef uint32_t shard
        cdef uint16_t i, j
        before = {event.event_id: (j, _id_name(event)) for j, event in enumerate(self.compiled.plan.events)}
        if sequencer_init(&s, compiled.c, old.clock, old.max_future_ms, 0, old.ids.max_bytes) < 0:
            raise MemoryError
        for i, event in enumerate(compiled.plan.events):
            if s.clock != CLOCK_EVENT:
                s.type_nows[i] = old.now_ms
            if event.event_id in before:
                j, id_name = before[event.event_id]
                sequencer_adopt(&s, i, old, j, id_name is not None and id_name == _id_name(event))
        entities_before = {entity.entity_id: j for j, entity in enumerate(self.compiled.plan.entities)}
        for i, entity in enumerate(compiled.plan.entities):
            if entity.entity_id in entities_before:
                s.shed[i] = old.shed[<uint16_t>entities_before[entity.entity_id]]
        _set_floors(&s, compiled.plan)
        s.ids.n_ever = old.ids.n_ever
        producers_clear(&s.producers)
        s.producers = old.producers
        memset(&old.producers, 0, sizeof(old.producers))
        s.now_ms = old.now_ms
        s.position = old.position + 1
        sequencer_clear(old)
        self.c.sequencer = s
        kept = {view.view_id for view in compiled.plan.views}
        for i in range(self.c.plan.n_sketched):
            view_id = self.c.plan.views[self.c.plan.sketched[i]].view_id
            if view_id not in kept:
                self.gone[view_id] = self.c.shards[0].frequencies.sketches[i].n_pieces
        for shard in range(self.c.n_shards):
            frequencies_adopt(&self.c.shards[shard].frequencies, &reserved.made[shard], compiled.c,
                              self.c.plan)
        self.c.plan = compiled.c
        self.compiled = compiled
        return 0

    cdef void set_clock(self, int clock, int64_t now_ms) noexcept:
        """After swap_plan, with its locks held: see sequencer_set_clock."""
        sequencer_set_clock(&self.c.sequencer, <uint8_t>clock, now_ms)

    def fingerprint(self, size_t entity, parts not None):
        """The 16 bytes that stand for one key (bytes per part, in the entity's order), None where a part is
        empty."""
        cdef EventBatch keys
        cdef const Column* columns[MAX_KEY_PARTS]
        cdef uint64_t fp[2]
        cdef uint8_t missing = 0
        cdef size_t i
        if entity >= self.c.plan.n_entities or len(parts) != self.c.plan.entities[entity].n_parts:
            raise UnknownNameError(f"entity {entity} with {len(parts)} key parts")
        texts = [
            TextColumn(np.array([0, len(part)], np.uint32), np.frombuffer(part, np.uint8), None)
            for part in parts
        ]
        keys = _keys([str(i) for i in range(len(parts))], texts, 1)
        if len(parts) and keys.outcomes[0]:
            raise InvalidEventError(f"a key part is longer than {MAX_TEXT_BYTES} bytes")
        for i in range(<size_t>len(parts)):
            columns[i] = &keys.batch.columns[i]
        key_fingerprints(self.c.secret, self.c.plan.entities[entity].entity_id, columns, <uint32_t>len(parts),
                         0, 1, fp, &missing)
        return None if missing else (<char*>fp)[:16]

    def forget(self, size_t entity, parts not None):
        """Drops the row of one key (bytes per part); it takes one position. True if there was a row."""
        cdef uint64_t fp[2]
        cdef bint found = False
        fingerprint = self.fingerprint(entity, parts)
        if fingerprint is not None:
            memcpy(fp, <const char*>(<bytes>fingerprint), 16)
            with nogil:
                pthread_rwlock_rdlock(&self.c.plan_lock)
                pthread_mutex_lock(&self.c.order)
                found = state_forget(&self.c, fp[0], fp[1])
                pthread_mutex_unlock(&self.c.order)
                pthread_rwlock_unlock(&self.c.plan_lock)
        return found

    cdef int _change_producer(self, int change, bytes name, uint64_t epoch, uint64_t sequence,
                              int64_t now_ms) except -1:
        cdef Origin origin
        cdef bint known
        state_origin(&self.c, name, len(name), epoch, sequence, 0, &origin)
        with nogil:
            pthread_mutex_lock(&self.c.order)
            known = producers_know(&self.c.sequencer.producers, &origin, now_ms)
            if known:
                state_change_producer(&self.c, change, &origin, now_ms)
            pthread_mutex_unlock(&self.c.order)
        return known

    def drop_producer(self, bytes name not None, *, int64_t now_ms=0):
        """Remembers nothing of a producer any more: what it sends again counts again. False, and nothing is
        done, where it is not known; else it takes one position."""
        return self._change_producer(CHANGE_DROP, name, 0, 0, now_ms) > 0

    def reset_producer(self, bytes name not None, uint64_t epoch, uint64_t sequence, *, int64_t now_ms=0):
        """Remembers of a producer that it has come to this epoch and sequence: it goes on above them, and of
        what is not above them nobody can tell whether it was applied. As drop_producer."""
        if epoch > LAST_NUMBER or sequence > LAST_NUMBER:
            raise InvalidEventError(
                f"a producer is reset to an epoch and a sequence below 2**63, not {epoch} and {sequence}")
        return self._change_producer(CHANGE_RESET, name, epoch, sequence, now_ms) > 0

    def producer(self, bytes name not None, *, int64_t now_ms=0):
        """What is remembered of a producer, with the batches that it sent: a SeenProducer, or None."""
        cdef Bytes out
        cdef ProducerRecord record
        cdef Origin origin
        cdef size_t at
        cdef uint16_t below, i
        cdef int status
        if not 0 < len(name) <= MAX_PRODUCER_BYTES:
            return None
        memset(&out, 0, sizeof(out))
        state_origin(&self.c, name, len(name), 0, 0, 0, &origin)
        try:
            with nogil:
                pthread_mutex_lock(&self.c.order)
                status = producers_get(&self.c.sequencer.producers, &origin, now_ms, &out)
                pthread_mutex_unlock(&self.c.order)
            if status < 0:
                raise MemoryError
            if status == 1:
                return None
            memcpy(&record, out.data, sizeof(record))
            at = sizeof(record) + ((record.name_bytes + 7) & ~7)
            seen = []
            for i in range(record.n):
                memcpy(&below, out.data + at + 2 * <size_t>i, sizeof(below))
                seen.append(record.highest - below)
            lowest = max(record.lowest, record.highest - min(record.highest, <uint64_t>SEQUENCES - 1))
            heard_ms = None if record.last_ms == UNSET_MS else record.last_ms
            return SeenProducer(record.epoch, record.highest, lowest, tuple(seen), heard_ms)
        finally:
            bytes_clear(&out)

    def list_producers(self, uint64_t after=0, *, size_t at_least=1000, int64_t now_ms=0,
                       uint32_t max_places=64):
        """(producers, where to go on from; None: these were the last), in no order: `at_least` of them where
        there are so many. after: 0, or where to go on from. Of producers that come or go meanwhile one may be
        missing, none is there twice."""
        cdef Bytes out
        cdef size_t at = 0
        cdef uint64_t bucket = after
        cdef int status = 1
        cdef ProducerRecord record
        memset(&out, 0, sizeof(out))
        found = []
        try:
            while status == 1 and <size_t>len(found) < at_least:
                with nogil:
                    pthread_mutex_lock(&self.c.order)
                    status = producers_list(&self.c.sequencer.producers, &bucket, max_places, now_ms, &out)
                    pthread_mutex_unlock(&self.c.order)
                if status == -2:
                    raise InvalidEventError(
                        f"{after} is no place to go on from in the list of producers: this store gave out "
                        "another, or was restarted since; begin again with 0")
                if status < 0:
                    raise MemoryError
                at = 0
                while at < out.n_bytes:
                    memcpy(&record, out.data + at, sizeof(record))
                    at += sizeof(record)
                    name = (<const char*>out.data + at)[:record.name_bytes] if record.name_bytes else None
                    at += (record.name_bytes + 7) & ~7
                    heard_ms = None if record.last_ms == UNSET_MS else record.last_ms
                    found.append(RememberedProducer(name, record.epoch, record.highest, heard_ms,
                                                    record.class_ == MADE_UP))
                out.n_bytes = 0
            return found, bucket if status == 1 else None
        finally:
            bytes_clear(&out)

    cdef bint _drop_ids(self, uint32_t* type_) noexcept nogil:
        """A segment of ids that have expired, of an event type that may have been silent since. Whether to go
        on."""
        cdef Sequencer* s = &self.c.sequencer
        cdef bint more
        pthread_rwlock_rdlock(&self.c.plan_lock)
        pthread_mutex_lock(&self.c.order)
        more = type_[0] < s.n_types
        if more and ids_drop(&s.ids, &s.ids.tables[type_[0]],
                             ids_oldest(&s.ids.tables[type_[0]], s.type_nows[type_[0]]), 1) == 0:
            type_[0] += 1
        pthread_mutex_unlock(&self.c.order)
        pthread_rwlock_unlock(&self.c.plan_lock)
        return more

    def sweep(self):
        """Frees rows, logs and ids that hold nothing any more; says how many rows. Never changes an
        answer."""
        cdef int64_t freed = 0, some = 0
        cdef uint64_t bucket
        cdef uint32_t i
        with nogil:
            i = 0
            while self._drop_ids(&i):
                pass
            for i in range(self.c.n_shards):
                self._settle(i, False)
                bucket = 0
                while True:
                    turn_take(&self.c.turns)
                    pthread_rwlock_rdlock(&self.c.plan_lock)
                    pthread_mutex_lock(&self.c.order)
                    some = shard_sweep(&self.c.shards[i], self.c.plan, self.c.sequencer.type_nows, &bucket)
                    pthread_mutex_unlock(&self.c.order)
                    pthread_rwlock_unlock(&self.c.plan_lock)
                    turn_give(&self.c.turns)
                    if some < 0 or bucket == 0:
                        break
                    freed += some
                if some < 0:
                    break
                freed += some
                self._settle(i, True)
        if some < 0:
            raise MemoryError
        return freed

    cdef void _settle(self, uint32_t shard, bint shrinks) noexcept nogil:
        cdef bint more = True
        while more:
            turn_take(&self.c.turns)
            pthread_rwlock_rdlock(&self.c.plan_lock)
            more = shard_settle(&self.c.shards[shard], shrinks)
            pthread_rwlock_unlock(&self.c.plan_lock)
            turn_give(&self.c.turns)

    def keys(self, size_t entity):
        """Iterates over the raw keys of an entity that keeps them: a tuple of bytes per row, in no order.

        Only keys of rows that hold something, and that were fed since keeping them was asked for. Of rows
        that come, go or move meanwhile a key may be missing, or be there twice. It ends when the schema
        changes.
        """
        entities = self.plan.entities
        if entity >= <size_t>len(entities) or not entities[entity].keep_keys:
            raise UnknownNameError(f"entity {entity} keeps no keys; name it in the schema's keep_keys")
        for shard in range(self.c.n_shards):
            bucket = 0
            while bucket is not None:
                found, bucket = self._some_keys(shard, bucket, entity, entities[entity].entity_id)
                yield from found

    cdef tuple _some_keys(self, uint32_t shard, uint64_t bucket, size_t entity, uint16_t entity_id):
        """(keys, the bucket to go on from; None: this was the last)."""
        cdef Bytes out
        cdef uint32_t n_bytes
        cdef uint16_t length
        cdef size_t at = 0, end
        cdef int status = 0
        memset(&out, 0, sizeof(out))
        try:
            with nogil:
                pthread_rwlock_rdlock(&self.c.plan_lock)
                if entity < self.c.plan.n_entities and self.c.plan.entities[entity].entity_id == entity_id:
                    status = shard_keys(&self.c.shards[shard], self.c.plan, <uint16_t>entity,
                                        self.c.sequencer.type_nows, &bucket, &out)
                else:
                    bucket = 0                           # the schema has changed
                pthread_rwlock_unlock(&self.c.plan_lock)
            if status < 0:
                raise MemoryError
            keys = []
            while at < out.n_bytes:
                memcpy(&n_bytes, out.data + at, sizeof(uint32_t))
                at += sizeof(uint32_t)
                end = at + n_bytes
                key = []
                while at < end:
                    memcpy(&length, out.data + at, sizeof(uint16_t))
                    key.append((<char*>out.data)[at + 2:at + 2 + length])
                    at += 2 + length
                keys.append(tuple(key))
            return keys, bucket or None
        finally:
            bytes_clear(&out)

    def stats(self):
        """Counts: rows, used_bytes (rows, logs, index and sketches), held_bytes (what the process holds for
        them: also what is free between), sketches (tables), sketch_bytes, ids, id_bytes (of
        dedupe_memory_bytes), ids_on_disk (of ids), id_reads (there, of other ids, failed), producers (of
        names made up by clients, their bytes, those of made-up names, at most, batches refused for want of
        memory, and forgotten), position."""
        cdef const ProducerTable* producers = &self.c.sequencer.producers
        cdef uint64_t rows = 0, sketches = 0, sketch_bytes = 0
        cdef uint32_t i
        for i in range(self.c.n_shards):
            rows += self.c.shards[i].table.n_rows
            sketches += self.c.shards[i].frequencies.n
            sketch_bytes += self.c.shards[i].frequencies.n_bytes
        return {
            "rows": rows,
            "used_bytes": _used_bytes(&self.c),
            "held_bytes": _held_bytes(&self.c),
            "max_memory_bytes": self.c.max_memory_bytes,
            "sketches": sketches,
            "sketch_bytes": sketch_bytes,
            "ids": self.c.sequencer.ids.n_ids,
            "id_bytes": ids_bytes(&self.c.sequencer.ids),
            "dedupe_memory_bytes": self.c.sequencer.ids.max_bytes,
            "ids_on_disk": self.c.sequencer.ids.n_cold,
            "id_reads": self.c.id_reads,
            "id_reads_in_vain": self.c.id_reads_in_vain,
            "id_reads_failed": self.c.id_reads_failed,
            "producers": producers.classes[NAMED].n + producers.classes[MADE_UP].n,
            "producers_made_up": producers.classes[MADE_UP].n,
            "producer_bytes": producers_bytes(producers),
            "producer_bytes_made_up": producers.classes[MADE_UP].n_bytes,
            "max_producer_bytes": producers.max_bytes,
            "producers_refused": producers.classes[NAMED].refused + producers.classes[MADE_UP].refused,
            "producers_forgotten": producers.classes[NAMED].forgotten + producers.classes[MADE_UP].forgotten,
            "position": self.c.sequencer.position,
        }

    def cut(self):
        """Begins a checkpoint: (position, head of the sequencer) as they are now. Then copy_shard for each
        shard, copy_id_records, copy_producers, and copy_end; the plan must not change in between."""
        cdef Bytes head
        cdef uint32_t i
        cdef uint64_t position
        cdef int status
        cdef int64_t* nows = <int64_t*>malloc((self.c.plan.n_events + 1) * sizeof(int64_t))
        if nows == NULL:
            raise MemoryError
        memset(&head, 0, sizeof(head))
        with nogil:
            pthread_mutex_lock(&self.c.order)
            memcpy(nows, self.c.sequencer.type_nows, self.c.plan.n_events * sizeof(int64_t))
            position = self.c.sequencer.position
            status = sequencer_export_head(&self.c.sequencer, self.c.plan, &head)
            for i in range(self.c.n_shards):
                if status == 0:
                    status = shard_cut(&self.c.shards[i], nows)
            pthread_mutex_unlock(&self.c.order)
        free(self.cut_nows)
        self.cut_nows = nows
        self.n_ended = 0
        self.gone_at_cut = dict(self.gone)
        try:
            if status < 0:
                self.copy_end(False)
                raise MemoryError
            return position, (<char*>head.data)[:head.n_bytes]
        finally:
            bytes_clear(&head)

    @property
    def ids_to_copy(self):
        """How many ids came since those that the last checkpoint written has."""
        return self.c.sequencer.ids.n_ever - self.n_ids_stored

    @property
    def ids_are_due(self):
        """Whether a checkpoint is due so that ids can become cold: there are many, and of those that are not
        in one yet a sixteenth of the cap, and more than the segment that is being filled."""
        cdef uint64_t n = self.c.sequencer.ids.n_ever - self.n_ids_stored
        return (self.c.id_source.read != NULL and ids_are_many(&self.c.sequencer.ids)
                and n >= max(<uint64_t>SEGMENT_IDS, self.c.sequencer.ids.max_bytes // 16 // sizeof(Id)))

    def cool_ids(self):
        """Gives up the memory of ids that the last checkpoint has, the oldest first, until there are not many
        any more: see ids.pxd. How many segments."""
        cdef uint64_t n
        with nogil:
            n = state_cool(&self.c, False)
        return n

    @property
    def turns(self):
        """At long work, since it was made: (asked for, ended)."""
        return self.c.turns.n_asked, self.c.turns.n_ended

    def copy_shard(self, uint32_t shard, meanwhile=None):
        """Records (format: shard.pxd) of what changed in one shard between the last checkpoint written and
        the cut, sorted. `meanwhile` is called between slices."""
        cdef Bytes out
        cdef int status = 1, _slice
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        memset(&out, 0, sizeof(out))
        try:
            while status == 1:
                with nogil:
                    turn_take(&self.c.turns)
                    for _slice in range(SLICES_A_TURN):
                        if status == 1:
                            status = shard_copy_slice(&self.c.shards[shard], self.c.plan)
                    turn_give(&self.c.turns)
                if meanwhile is not None and status == 1:
                    meanwhile()
            with nogil:
                if status == 0:
                    status = shard_copy_records(&self.c.shards[shard], &out)
            if status < 0:
                raise MemoryError
            return block_of(&out)
        finally:
            bytes_clear(&out)

    def copy_sketches(self, uint32_t shard):
        """After copy_shard: records (format: frequency.pxd) of what changed in its sketches, and of all that
        is in those that are gone, sorted."""
        cdef Bytes out
        cdef int status
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        memset(&out, 0, sizeof(out))
        with nogil:
            status = frequencies_copy_records(&self.c.shards[shard].frequencies, self.c.plan, &out)
        try:
            if status < 0:
                raise MemoryError
            records = block_of(&out)
        finally:
            bytes_clear(&out)
        if not self.gone_at_cut:
            return records
        return b"".join(sorted([*split_records(bytes(records)), *(
            view_id.to_bytes(2, "big") + bytes(6) + number.to_bytes(8, "big") + FREED
            for view_id, n_pieces in self.gone_at_cut.items() for number in range(n_pieces + 1))]))

    def has_shed(self, uint32_t shard):
        """Whether it had holes since this process began, or has some from before."""
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        return self.c.shards[shard].holes.capacity > 0

    def copy_holes(self, uint32_t shard):
        """After copy_shard: its holes (format: holes.pxd) as they were at the cut."""
        cdef Bytes out
        cdef int status
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        memset(&out, 0, sizeof(out))
        try:
            status = holes_export(&self.c.shards[shard].holes_at_cut, &out)
            if status < 0:
                raise MemoryError
            return (<char*>out.data)[:out.n_bytes]
        finally:
            bytes_clear(&out)

    def import_holes(self, uint32_t shard, bytes data not None):
        """Puts the holes of one shard back, after its rows."""
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        cdef Shard* to = &self.c.shards[shard]
        self._imported(holes_import(&to.holes, to.position, data, len(data)), f"holes of shard {shard}")

    def copy_id_records(self, meanwhile=None):
        """Records (format: ids.pyx) of the ids that came since the last checkpoint written, and freed ones of
        those that it has and that were dropped since, sorted. Batches may be applied between two slices, as
        `meanwhile`, called there, may."""
        cdef Sequencer* s = &self.c.sequencer
        cdef const IdTable* table
        cdef Bytes out
        memset(&out, 0, sizeof(out))
        self.ids_copied = {}
        self.n_ids_copied = s.ids.n_ever
        types = {event.event_id: i for i, event in enumerate(self.compiled.plan.events)}
        try:
            for event_id in sorted(types.keys() | self.ids_stored.keys()):
                table = NULL
                if event_id in types:
                    table = &s.ids.tables[<uint16_t>types[event_id]]
                copied = self._copy_ids(table, event_id, &out, meanwhile)
                if copied[1]:
                    self.ids_copied[event_id] = copied
            return block_of(&out)
        finally:
            bytes_clear(&out)

    cdef tuple _copy_ids(self, const IdTable* table, uint16_t event_id, Bytes* out, object meanwhile):
        """Those of one event type, NULL where the plan has it no more; what the checkpoint has of it then, as
        in ids_stored. It goes from the oldest segment to the newest there was at first, so it ends, whatever
        comes and is dropped meanwhile."""
        cdef uint64_t first = 0, oldest = 0, end = 0, number
        cdef size_t begun = out.n_bytes
        cdef uint32_t from_
        cdef int64_t n
        stored_first, stored = self.ids_stored.get(event_id, (0, []))
        if table != NULL:
            with nogil:
                pthread_mutex_lock(&self.c.order)
                first = table.first
                end = table.first + table.n_segments
                pthread_mutex_unlock(&self.c.order)
        else:
            first = end = stored_first + len(stored)
        counts = _still_stored(event_id, stored_first, stored, first, out)
        number = first + max(0, len(counts) - 1)         # those before have not changed
        while number < end:
            from_ = counts.pop() if number < first + <uint64_t>len(counts) else 0
            while True:
                if bytes_reserve(out, RECORDS_AT_ONCE * RECORD_BYTES) < 0:
                    raise MemoryError
                with nogil:
                    pthread_mutex_lock(&self.c.order)
                    n = ids_copy_records(table, event_id, number, from_, RECORDS_AT_ONCE, out)
                    oldest = table.first
                    pthread_mutex_unlock(&self.c.order)
                if n < 0:
                    raise MemoryError
                if meanwhile is not None:
                    meanwhile()
                if n <= from_:
                    break
                from_ = <uint32_t>n
                if from_ % RECORD_IDS:   # its end; what comes meanwhile is for the next checkpoint
                    break
            if number >= oldest:
                counts.append(from_)
                number += 1
            else:                    # dropped meanwhile, and all before it
                out.n_bytes = begun
                first = number = oldest
                counts = _still_stored(event_id, stored_first, stored, first, out)
        return first, counts

    def import_id_records(self, bytes data not None):
        """What copy_id_records gave for all checkpoints together, into a new State; in one piece, or in
        several of whole records in their order. Of what comes in pieces, memory has only as much at once as
        there may be."""
        cdef Sequencer* s = &self.c.sequencer
        cdef IdTable* table
        cdef uint32_t k
        cdef uint16_t i
        cdef int status
        cdef const uint8_t* raw = <const uint8_t*><const char*>data
        cdef size_t n_bytes = len(data)
        with nogil:
            status = ids_import_records(&s.ids, self.c.plan, raw, n_bytes)
        self._imported(status, "event ids")
        for i, event in enumerate(self.compiled.plan.events):
            table = &s.ids.tables[i]
            if table.n_segments:
                counts = self.ids_stored.setdefault(event.event_id, (table.first, []))[1]
                if counts:
                    counts.pop()             # it may have become longer
                for k in range(<uint32_t>len(counts), table.n_segments):
                    counts.append(ids_of_segment(table, k))
        self.n_ids_stored = s.ids.n_ever
        self._set_stored()
        self.cool_ids()

    cdef int _set_stored(self) except -1:
        """Tells each table what the last checkpoint has of it."""
        cdef IdTable* table
        cdef uint64_t last
        cdef uint32_t n
        cdef uint16_t i
        for i, event in enumerate(self.compiled.plan.events):
            table = &self.c.sequencer.ids.tables[i]
            first, counts = self.ids_stored.get(event.event_id, (0, []))
            if counts:
                last = first + len(counts) - 1
                n = counts[len(counts) - 1]
                with nogil:
                    pthread_mutex_lock(&self.c.order)
                    ids_set_stored(table, last, n)
                    pthread_mutex_unlock(&self.c.order)
        return 0

    def copy_producers(self, uint32_t max_places=64, meanwhile=None):
        """(head, records), for import_producers and import_producer_records: of producers that have changed
        since the last checkpoint written, and freed ones of those that were forgotten or dropped since,
        sorted. Batches may be applied between two slices of max_places, as `meanwhile`, called there, may."""
        cdef ProducerTable* table = &self.c.sequencer.producers
        cdef uint64_t bucket = 0, number = 0
        cdef Bytes head, found, out
        cdef bint gone = True
        cdef int status
        memset(&head, 0, sizeof(head))
        memset(&found, 0, sizeof(found))
        memset(&out, 0, sizeof(out))
        try:
            with nogil:
                pthread_mutex_lock(&self.c.order)
                status = producers_cut(table, &head)
                pthread_mutex_unlock(&self.c.order)
            while status == 1 or (status == 0 and gone):
                with nogil:
                    pthread_mutex_lock(&self.c.order)
                    if gone:
                        status = producers_copy_gone(table, &number, FREED_A_SLICE, &found)
                        gone = status != 0
                        status = 1 if status == 0 else status
                    else:
                        status = producers_copy(table, &bucket, max_places, &found)
                    pthread_mutex_unlock(&self.c.order)
                if meanwhile is not None and status == 1:
                    meanwhile()
            with nogil:
                if status == 0:
                    status = sorted_records(&found, &out)
            if status < 0:
                raise MemoryError
            return (<char*>head.data)[:head.n_bytes], block_of(&out)
        finally:
            bytes_clear(&head)
            bytes_clear(&found)
            bytes_clear(&out)

    def copy_written(self, uint32_t n_shards):
        """Ends the checkpoint for the first n_shards: what was copied of them was kept, whatever comes of the
        others."""
        while self.n_ended < min(n_shards, self.c.n_shards):
            with nogil:
                shard_copy_end(&self.c.shards[self.n_ended], True)
            self.n_ended += 1

    def copy_end(self, bint written):
        """Ends the checkpoint; `written` says whether it was kept. If not, the next one has everything
        again, but for shards that copy_written has ended."""
        cdef Bytes freed[N_CLASSES]
        cdef int i
        while self.n_ended < self.c.n_shards:
            with nogil:
                shard_copy_end(&self.c.shards[self.n_ended], written)
            self.n_ended += 1
        memset(freed, 0, sizeof(freed))
        with nogil:
            pthread_mutex_lock(&self.c.order)
            producers_copy_end(&self.c.sequencer.producers, written, freed)
            pthread_mutex_unlock(&self.c.order)
            for i in range(N_CLASSES):
                bytes_clear(&freed[i])
        free(self.cut_nows)
        self.cut_nows = NULL
        if written:
            self.ids_stored = self.ids_copied
            self.n_ids_stored = self.n_ids_copied
            self._set_stored()
            self.gone = {view_id: n for view_id, n in self.gone.items() if view_id not in self.gone_at_cut}

    def snapshot(self):
        """All state as bytes, canonical: equal states give equal bytes. Between batches, which wait; cold ids
        are read for it."""
        cdef Bytes sections[3]
        cdef Bytes out
        cdef Sequencer* s = &self.c.sequencer
        cdef uint64_t n_bytes
        cdef uint32_t head[2]
        cdef uint32_t i
        cdef int status = 0
        cdef bint any_shed = False
        memset(&out, 0, sizeof(out))
        memset(sections, 0, sizeof(sections))
        head[1] = self.c.n_shards
        with nogil:
            pthread_rwlock_rdlock(&self.c.plan_lock)
            pthread_mutex_lock(&self.c.order)
            for i in range(self.c.n_shards):
                any_shed |= self.c.shards[i].holes.n > 0
            head[0] = SNAPSHOT_VERSION if any_shed else 1
            status = sequencer_export_head(s, self.c.plan, &sections[0])
            if status == 0:
                status = ids_export(&s.ids, self.c.plan, s.type_nows, &self.c.id_source, &sections[1])
            if status == 0:
                status = producers_export(&s.producers, &sections[2])
            if status == 0:
                status = bytes_append(&out, head, 8)
            for i in range(3):
                n_bytes = sections[i].n_bytes
                if status == 0:
                    status = bytes_append(&out, &n_bytes, 8)
                if status == 0:
                    status = bytes_append(&out, sections[i].data, sections[i].n_bytes)
                bytes_clear(&sections[i])
            for i in range(self.c.n_shards):
                if status == 0:
                    status = shard_export(&self.c.shards[i], self.c.plan, self.c.sequencer.type_nows,
                                          &sections[0])
                n_bytes = sections[0].n_bytes
                if status == 0:
                    status = bytes_append(&out, &n_bytes, 8)
                if status == 0:
                    status = bytes_append(&out, sections[0].data, sections[0].n_bytes)
                sections[0].n_bytes = 0
            for i in range(self.c.n_shards if self.c.plan.n_sketched else 0):
                if status == 0:
                    status = frequencies_export(&self.c.shards[i].frequencies, self.c.plan, &sections[0])
                n_bytes = sections[0].n_bytes
                if status == 0:
                    status = bytes_append(&out, &n_bytes, 8)
                if status == 0:
                    status = bytes_append(&out, sections[0].data, sections[0].n_bytes)
                sections[0].n_bytes = 0
            for i in range(self.c.n_shards if any_shed else 0):
                if status == 0:
                    status = holes_export(&self.c.shards[i].holes, &sections[0])
                n_bytes = sections[0].n_bytes
                if status == 0:
                    status = bytes_append(&out, &n_bytes, 8)
                if status == 0:
                    status = bytes_append(&out, sections[0].data, sections[0].n_bytes)
                sections[0].n_bytes = 0
            bytes_clear(&sections[0])
            pthread_mutex_unlock(&self.c.order)
            pthread_rwlock_unlock(&self.c.plan_lock)
        try:
            if status < 0:
                raise MemoryError
            if status > 0:
                raise StorageError("event ids that are on the disk only cannot be read")
            return SNAPSHOT_MAGIC + (<char*>self.c.secret)[:16] + (<char*>out.data)[:out.n_bytes]
        finally:
            bytes_clear(&out)

    def digest(self):
        """16 bytes that stand for all state: equal states (and secrets) give equal digests."""
        return hashlib.blake2b(self.snapshot(), digest_size=16).digest()

    @classmethod
    def restore(cls, plan not None, bytes data not None, *, uint32_t threads=1, uint64_t max_memory_bytes=0):
        """The state that `snapshot` wrote. Raises CorruptRecordError where the bytes are not one."""
        cdef State state
        cdef uint32_t head[2]
        cdef uint64_t n_bytes
        cdef size_t at = 32
        cdef const uint8_t* raw = <const uint8_t*><const char*>data
        if len(data) < 32 or data[:8] != SNAPSHOT_MAGIC:
            raise CorruptRecordError("not a snapshot: it does not begin with its magic")
        memcpy(head, raw + 24, 8)
        if not 1 <= head[0] <= SNAPSHOT_VERSION:
            raise CorruptRecordError(
                f"snapshot version {head[0]}; this program reads versions 1 and {SNAPSHOT_VERSION}")
        if head[1] == 0 or head[1] > MAX_SHARDS or head[1] & (head[1] - 1):
            raise CorruptRecordError(f"snapshot of {head[1]} shards; it is a power of two up to {MAX_SHARDS}")
        state = cls(plan, secret=data[8:24], n_shards=head[1], threads=threads,
                    max_memory_bytes=max_memory_bytes)
        takes = [(state.import_head, ()), (state.import_ids, ()), (state.import_producers, ())]
        takes += [(state.import_shard, (shard,)) for shard in range(state.c.n_shards)]
        if state.c.plan.n_sketched:
            takes += [(state.import_sketches, (shard,)) for shard in range(state.c.n_shards)]
        if head[0] > 1:
            takes += [(state.import_holes, (shard,)) for shard in range(state.c.n_shards)]
        for i, (take, of_shard) in enumerate(takes):
            if len(data) - at < 8:
                raise CorruptRecordError(f"snapshot ends at byte {len(data)}, inside a section's length")
            memcpy(&n_bytes, raw + at, 8)
            at += 8
            if n_bytes > len(data) - at:
                raise CorruptRecordError(
                    f"snapshot section {i} at byte {at} wants {n_bytes} bytes, {len(data) - at} are left")
            take(*of_shard, data[at:at + n_bytes])
            at += n_bytes
        if at != <size_t>len(data):
            raise CorruptRecordError(f"snapshot has {len(data) - at} bytes after its end")
        return state

    cdef int _imported(self, int status, str what) except -1:
        if status < 0:
            raise MemoryError
        if status > 0:
            raise CorruptRecordError(
                f"stored {what} cannot be read: lengths do not add up, or a newer version wrote it")
        return 0

    def import_head(self, bytes data not None):
        """Clocks and position, into a new State, before everything else that is imported."""
        self._imported(sequencer_import_head(&self.c.sequencer, self.c.plan, data, len(data)), "clocks")

    def import_ids(self, bytes data not None):
        """The ids of a snapshot, or of a checkpoint before there were records of them."""
        self._imported(ids_import(&self.c.sequencer.ids, self.c.plan, data, len(data)), "event ids")

    def import_producers(self, bytes data not None):
        """The producers of a snapshot, or a checkpoint's head of them: whether records of them follow it."""
        cdef int status = producers_import(&self.c.sequencer.producers, data, len(data),
                                           self.c.sequencer.clock == CLOCK_WALL)
        if status != 2:
            self._imported(status, "producers")
        return status == 2

    def import_producer_records(self, bytes data not None):
        """What copy_producers gave for all checkpoints together, after its last head, into a new State."""
        cdef const uint8_t* raw = data
        cdef size_t n_bytes = len(data)
        cdef int status
        with nogil:
            status = producers_import_records(&self.c.sequencer.producers, raw, n_bytes)
        self._imported(status, "producers")

    def import_shard(self, uint32_t shard, data not None, uint64_t position=0):
        """Puts the records of one shard back, as of `position` or, if that is greater, of the sequencer's."""
        cdef const uint8_t[::1] view = data
        cdef const uint8_t* raw = NULL
        cdef size_t n = <size_t>view.shape[0]
        cdef size_t at = 0
        cdef const uint8_t* before = NULL
        cdef uint64_t fp0, fp1
        cdef uint32_t n_bytes
        cdef int status = 0
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        if n:
            raw = &view[0]
        with nogil:
            while at < n and status == 0:
                status = 1
                if n - at < 20 or (before != NULL and memcmp(before, raw + at, 16) >= 0):
                    break
                before = raw + at
                memcpy(&fp0, raw + at, 8)
                memcpy(&fp1, raw + at + 8, 8)
                memcpy(&n_bytes, raw + at + 16, 4)
                fp0 = fs_bswap64(fp0)
                fp1 = fs_bswap64(fp1)
                if n_bytes > n - at - 20 or _shard_of(&self.c, fp1) != shard:
                    break
                status = shard_import(&self.c.shards[shard], self.c.plan, fp0, fp1, raw + at + 20, n_bytes)
                if status == 0:
                    at += 20 + <size_t>n_bytes
        if status < 0:
            raise MemoryError
        if status > 0:
            raise CorruptRecordError(f"record at byte {at} of shard {shard} is not a row of this schema")
        self.c.shards[shard].position = max(self.c.sequencer.position, position)

    def import_sketches(self, uint32_t shard, data not None):
        """Puts the records of all sketches of one shard back."""
        cdef const uint8_t[::1] view = data
        cdef size_t n = <size_t>view.shape[0]
        cdef const uint8_t* raw = &view[0] if n else NULL
        cdef int status
        if shard >= self.c.n_shards:
            raise IndexError(f"shard {shard} of {self.c.n_shards}")
        with nogil:
            status = frequencies_import(&self.c.shards[shard].frequencies, self.c.plan, raw, n)
        self._imported(status, f"sketches of shard {shard}")
