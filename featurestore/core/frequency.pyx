"""The sketches of one shard, and how a feature is read from them; see frequency.pxd.

What a value says. The estimate is never below the truth, whatever keys share its cells, so it is the value
and the upper bound; the lower bound holds at 1 - delta. An estimate of 0 is certain: NOT_FOUND. A saturated
counter (countmin.pxd) makes the value N, which is certain, too; one that knows no finite N is UNAVAILABLE.
"""

import struct
from typing import NamedTuple

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy, memset

from featurestore.core.bytes cimport Bytes, bytes_clear, bytes_reserve
from featurestore.core.countmin cimport (
    MAX_DEPTH, REPLY_UNAVAILABLE, Countmin, Frame, Reply, countmin_add_one, countmin_clear, countmin_copy_end,
    countmin_copy_slice, countmin_cut, countmin_export, countmin_frame, countmin_import, countmin_init,
    countmin_peek_one, countmin_place, countmin_prefetch, countmin_read_one,
)
from featurestore.core.plan cimport STRUCTURE_COUNTMIN, UNSET_MS, ItemC, PlanC, ViewC
from featurestore.core.window cimport (
    STATUS_UNAVAILABLE, Outputs, ReadAt, judge, put_nothing, put_unavailable, put_value,
)

from featurestore.core.structs import same_structs
from featurestore.errors import CorruptRecordError

same_structs(__name__, frequency_structs())

cdef enum:
    RECORD_HEAD_BYTES = 20       # of a row's record
    SKETCH_HEAD_BYTES = 8        # of a record of countmin.pxd
    FREED = 0xFFFFFFFF
    N_AT_ONCE = 32               # windows read together: MAX_WINDOWS of countmin.pxd

cdef extern from * nogil:
    """
    #define fs_bswap64(x) __builtin_bswap64(x)
    """
    uint64_t fs_bswap64(uint64_t x) noexcept


# -- making and freeing --------------------------------------------------------------------------------------

cdef inline int64_t _place_in(const PlanC* plan, uint16_t view_id) noexcept nogil:
    """Index among the plan's sketches, -1: it has none of that view."""
    cdef const ViewC* view
    if plan == NULL or view_id > plan.max_view_id or plan.view_of_id[view_id] < 0:
        return -1
    view = &plan.views[plan.view_of_id[view_id]]
    return view.sketch if view.structure == STRUCTURE_COUNTMIN else -1


cdef int frequencies_init(Frequencies* frequencies, const PlanC* plan, const PlanC* before) noexcept nogil:
    cdef const ViewC* view
    cdef uint32_t i
    memset(frequencies, 0, sizeof(Frequencies))
    if plan.n_sketched == 0:
        return 0
    frequencies.sketches = <Countmin**>calloc(plan.n_sketched, sizeof(void*))
    if frequencies.sketches == NULL:
        return -1
    frequencies.n = plan.n_sketched
    for i in range(frequencies.n):
        view = &plan.views[plan.sketched[i]]
        frequencies.n_bytes += view.countmin.n_bytes
        if _place_in(before, view.view_id) >= 0:
            continue
        frequencies.sketches[i] = <Countmin*>calloc(1, sizeof(Countmin))
        if frequencies.sketches[i] == NULL or countmin_init(frequencies.sketches[i], view.countmin) < 0:
            return -1
    return 0


cdef void frequencies_clear(Frequencies* frequencies) noexcept nogil:
    cdef uint32_t i
    for i in range(frequencies.n):
        if frequencies.sketches[i] != NULL:
            countmin_clear(frequencies.sketches[i])
            free(frequencies.sketches[i])
    free(frequencies.sketches)
    memset(frequencies, 0, sizeof(Frequencies))


cdef void frequencies_adopt(Frequencies* held, Frequencies* made, const PlanC* plan,
                            const PlanC* before) noexcept nogil:
    cdef Frequencies gone = held[0]
    cdef int64_t place
    cdef uint32_t i
    for i in range(made.n):
        if made.sketches[i] == NULL:
            place = _place_in(before, plan.views[plan.sketched[i]].view_id)
            made.sketches[i] = gone.sketches[place]
            gone.sketches[place] = NULL
    held[0] = made[0]
    memset(made, 0, sizeof(Frequencies))
    frequencies_clear(&gone)


cdef uint64_t frequencies_bytes(const PlanC* plan, const PlanC* before) noexcept nogil:
    cdef uint64_t n_bytes = 0
    cdef uint32_t i
    for i in range(plan.n_sketched):
        if _place_in(before, plan.views[plan.sketched[i]].view_id) < 0:
            n_bytes += plan.views[plan.sketched[i]].countmin.n_bytes
    return n_bytes


# -- adding and reading --------------------------------------------------------------------------------------

cdef void frequency_fetch(const Countmin* sketch, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef uint64_t places[MAX_DEPTH]
    countmin_place(sketch, fp0, fp1, places)
    countmin_prefetch(sketch, places)


cdef int frequency_add(Countmin* sketch, uint64_t fp0, uint64_t fp1, const Counted* counted) noexcept nogil:
    cdef uint64_t places[MAX_DEPTH]
    countmin_place(sketch, fp0, fp1, places)
    # It says late of nothing that the view's horizon lets in; and if it did, whatever reaches back to that
    # event would be UNAVAILABLE.
    return -1 if countmin_add_one(sketch, places, counted.time_ms, counted.weight) < 0 else 0


cdef inline void _put(const ViewC* view, const ReadAt* when, const ItemC* item, const Reply* reply,
                      const Outputs* out) noexcept nogil:
    judge(view, when, item, when.at_ms - item.window_ms, when.at_ms, out)
    if (out.statuses[item.out] == STATUS_UNAVAILABLE or reply.status == REPLY_UNAVAILABLE
            or not reply.estimate < INFINITY):
        put_unavailable(out, item)
    elif reply.estimate == 0.0:
        put_nothing(out, item)
    else:
        put_value(out, item, reply.estimate, reply.lower, reply.estimate)


cdef void frequency_read(const Countmin* sketch, const ViewC* view, uint64_t fp0, uint64_t fp1,
                         const ReadAt* when, const ItemC* items, uint32_t n_items, const Counted* peeked,
                         const Outputs* out) noexcept nogil:
    cdef uint64_t places[MAX_DEPTH]
    cdef int64_t windows_ms[N_AT_ONCE]
    cdef Reply replies[N_AT_ONCE]
    cdef Frame frame
    cdef uint32_t lo = 0, n, i
    countmin_place(sketch, fp0, fp1, places)
    while lo < n_items:
        n = n_items - lo if n_items - lo < N_AT_ONCE else N_AT_ONCE
        for i in range(n):
            windows_ms[i] = items[lo + i].window_ms
        if peeked != NULL:
            countmin_peek_one(sketch, places, peeked.time_ms, peeked.weight, when.at_ms, windows_ms, n,
                              replies)
        else:
            countmin_frame(sketch, when.at_ms, windows_ms, n, &frame)
            countmin_read_one(sketch, places, &frame, replies)
        for i in range(n):
            _put(view, when, &items[lo + i], &replies[i], out)
        lo += n


# -- checkpoint ----------------------------------------------------------------------------------------------

cdef int frequencies_cut(Frequencies* frequencies) noexcept nogil:
    cdef uint32_t i
    for i in range(frequencies.n):
        if countmin_cut(frequencies.sketches[i]) < 0:
            return -1
    return 0


cdef int frequencies_copy_slice(Frequencies* frequencies) noexcept nogil:
    cdef uint32_t i
    for i in range(frequencies.n):
        if frequencies.sketches[i].copy_piece < frequencies.sketches[i].n_pieces:
            return -1 if countmin_copy_slice(frequencies.sketches[i]) < 0 else 1
    return 0


cdef int _by_number(const void* a, const void* b) noexcept nogil:
    """Orders pointers to records of countmin.pxd: the head, whose number is the largest, first."""
    cdef uint32_t x = (<const uint32_t**>a)[0][0] + 1, y = (<const uint32_t**>b)[0][0] + 1
    return (x > y) - (x < y)


cdef int _put_records(uint16_t view_id, const Bytes* records, Bytes* out) noexcept nogil:
    """Appends records of countmin.pxd as rows', in order; a piece with nothing in it any more as freed."""
    cdef const uint8_t** places
    cdef uint64_t words[2]
    cdef size_t at = 0, n = 0, i
    cdef uint32_t head[2]
    cdef uint32_t n_bytes
    cdef uint8_t* to
    while at < records.n_bytes:
        memcpy(head, records.data + at, SKETCH_HEAD_BYTES)
        at += SKETCH_HEAD_BYTES + head[1]
        n += 1
    places = <const uint8_t**>malloc((n + 1) * sizeof(void*))
    if places == NULL:
        return -1
    if bytes_reserve(out, records.n_bytes + n * RECORD_HEAD_BYTES) < 0:
        free(places)
        return -1
    at = n = 0
    while at < records.n_bytes:
        places[n] = records.data + at
        memcpy(head, records.data + at, SKETCH_HEAD_BYTES)
        at += SKETCH_HEAD_BYTES + head[1]
        n += 1
    qsort(places, n, sizeof(void*), _by_number)
    for i in range(n):
        memcpy(head, places[i], SKETCH_HEAD_BYTES)
        n_bytes = SKETCH_HEAD_BYTES + head[1] if head[1] else FREED
        words[0] = fs_bswap64(<uint64_t>view_id << 48)
        words[1] = fs_bswap64(<uint64_t><uint32_t>(head[0] + 1))
        to = out.data + out.n_bytes
        memcpy(to, words, 16)
        memcpy(to + 16, &n_bytes, 4)
        out.n_bytes += RECORD_HEAD_BYTES
        if head[1]:
            memcpy(to + RECORD_HEAD_BYTES, places[i], n_bytes)
            out.n_bytes += n_bytes
    free(places)
    return 0


cdef int frequencies_copy_records(const Frequencies* frequencies, const PlanC* plan,
                                  Bytes* out) noexcept nogil:
    cdef uint32_t i
    for i in range(frequencies.n):
        if _put_records(plan.views[plan.sketched[i]].view_id, &frequencies.sketches[i].copied, out) < 0:
            return -1
    return 0


cdef void frequencies_copy_end(Frequencies* frequencies, bint written) noexcept nogil:
    cdef uint32_t i
    for i in range(frequencies.n):
        countmin_copy_end(frequencies.sketches[i], written)


cdef int frequencies_export(const Frequencies* frequencies, const PlanC* plan, Bytes* out) noexcept nogil:
    cdef Bytes records
    cdef uint32_t i
    cdef int status = 0
    memset(&records, 0, sizeof(records))
    for i in range(frequencies.n):
        records.n_bytes = 0
        if status == 0:
            status = countmin_export(frequencies.sketches[i], &records)
        if status == 0:
            status = _put_records(plan.views[plan.sketched[i]].view_id, &records, out)
    bytes_clear(&records)
    return status


cdef int frequencies_import(Frequencies* frequencies, const PlanC* plan, const uint8_t* data,
                            size_t n_bytes) noexcept nogil:
    cdef uint64_t words[2]
    cdef uint64_t before[2]
    cdef size_t at = 0
    cdef uint32_t size, number, heads = 0
    cdef int64_t place, used
    memset(before, 0, sizeof(before))
    while at < n_bytes:
        if n_bytes - at < RECORD_HEAD_BYTES + SKETCH_HEAD_BYTES:
            return 1
        memcpy(words, data + at, 16)
        memcpy(&size, data + at + 16, 4)
        words[0] = fs_bswap64(words[0])
        words[1] = fs_bswap64(words[1])
        at += RECORD_HEAD_BYTES
        place = _place_in(plan, <uint16_t>(words[0] >> 48))
        if (place < 0 or <uint64_t>(words[0] << 16) or size > n_bytes - at or size < SKETCH_HEAD_BYTES
                or words[0] < before[0] or (words[0] == before[0] and words[1] <= before[1] and heads)):
            return 1
        memcpy(&number, data + at, 4)
        if <uint32_t>(number + 1) != words[1]:
            return 1
        used = countmin_import(frequencies.sketches[place], data + at, size)
        if used < 0:
            return -1
        if <uint64_t>used != size:
            return 1
        heads += words[1] == 0
        memcpy(before, words, sizeof(before))
        at += size
    return heads != frequencies.n


# -- for looking at a store ----------------------------------------------------------------------------------

class SketchSummary(NamedTuple):
    """What the sketch of one view and shard is and holds."""

    width: int
    depth: int
    is_sum: bool                 # of a field; else it counts
    n_bytes: int                 # of its cells in memory
    newest_ms: int | None
    weight: float                # N: of all events kept
    n_cells: int                 # that hold something, of width * depth
    n_saturated: int             # counters


def summaries(bytes records not None):
    """Of the sketches whose records (frequency.pxd) these are, by view id. Raises CorruptRecordError."""
    cdef const uint8_t* data = records
    cdef size_t n = len(records), at = 0, n_bytes, cell
    cdef uint64_t mask, word
    cdef uint32_t size, number, slot, word_bytes = 0
    found = {}
    while at < n:
        if n - at < RECORD_HEAD_BYTES + SKETCH_HEAD_BYTES:
            raise CorruptRecordError(f"no record of a sketch at byte {at} of {n}")
        view_id = data[at] << 8 | data[at + 1]
        memcpy(&size, data + at + 16, 4)
        at += RECORD_HEAD_BYTES
        memcpy(&number, data + at, 4)
        if size > n - at or size < SKETCH_HEAD_BYTES:
            raise CorruptRecordError(f"the record of a sketch at byte {at} of {n} does not end there")
        if number == FREED:
            found[view_id] = summary_of_head(records[at + SKETCH_HEAD_BYTES:at + size])
        elif view_id not in found:
            raise CorruptRecordError(f"the record at byte {at} of {n} is of a sketch without a head")
        else:
            word_bytes = 8 if found[view_id].is_sum else 4
            cells = saturated = 0
            cell = at + SKETCH_HEAD_BYTES
            while cell + 16 <= at + size:
                memcpy(&mask, data + cell + 8, 8)
                cell += 16
                cells += 1
                n_bytes = 0
                for slot in range(64):
                    if mask >> slot & 1 and cell + n_bytes + word_bytes <= at + size:
                        word = 0
                        memcpy(&word, data + cell + n_bytes, word_bytes)
                        saturated += word == (0x7FF0000000000000 if word_bytes == 8 else 0x7FFFFFFF)
                        n_bytes += word_bytes
                cell += (n_bytes + 7) & ~<size_t>7
            before = found[view_id]
            found[view_id] = before._replace(n_cells=before.n_cells + cells,
                                             n_saturated=before.n_saturated + saturated)
        at += size
    return found


def summary_of_head(bytes payload not None):
    """A head's payload: see countmin.pxd."""
    try:
        _, kind, width, depth, levels, _, _, newest_ms = struct.unpack_from("<IIQIIqqq", payload)
        totals = struct.unpack_from(f"<{(len(payload) - 48 - 16 * levels) // 8}d", payload, 48 + 16 * levels)
        slice_ms, reach_ms = struct.unpack_from("<qq", payload, 48 + 16 * (levels - 1))
    except struct.error as error:
        raise CorruptRecordError(f"the head of a sketch cannot be read: {error}") from error
    n_words, word_bytes = 1 + len(totals), 8 if kind else 4
    cell_bytes = 8 * word_bytes if n_words <= 8 else -(-n_words * word_bytes // 64) * 64
    weight = sum(totals[-((reach_ms - 1) // slice_ms + 2):])         # the last level reaches back farthest
    return SketchSummary(width, depth, bool(kind), width * depth * cell_bytes,
                         None if newest_ms == UNSET_MS else newest_ms, weight, 0, 0)
