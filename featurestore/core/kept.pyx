"""Chooses the structure behind a head; see kept.pxd. What each structure is, its own module says."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from featurestore.core.bytes cimport bytes_append
from featurestore.core.decayed cimport (
    DECAYED_DEEP, EXPORT_DECAYED, EXPORT_DECAYED_AHEAD, DecayedPast, DecayedValue, decayed_add, decayed_clone,
    decayed_export, decayed_export_bytes, decayed_free, decayed_import, decayed_newest_ms, decayed_read,
    decayed_read_past,
)
from featurestore.core.distinct cimport (
    EXPORT_MATRIX, EXPORT_SET, MAX_LOG2_REGISTERS, DistinctValue, distinct_add, distinct_clone,
    distinct_expired, distinct_export, distinct_export_bytes, distinct_free, distinct_import,
    distinct_prefetch, distinct_prefetch_value, distinct_read,
)
from featurestore.core.head cimport (
    LOG_DECAYED, LOG_DISTINCT, LOG_KEY, LOG_LARGE, LOG_SMALL, TOP_LARGE, TOP_SMALL, LogHead,
)
from featurestore.core.plan cimport (
    AGG_COUNT, AGG_DECAYED_COUNT, AGG_DECAYED_SUM, AGG_TOP_SHARE, MAX_WIDE_WORDS, STRUCTURE_DECAYED,
    STRUCTURE_DISTINCT, STRUCTURE_LOG, STRUCTURE_TOP,
)
from featurestore.core.top cimport (
    TOP_MAX_K, TopValue, TopWindow, top_add, top_clone, top_expired, top_export, top_export_bytes, top_free,
    top_import, top_prefetch, top_read, top_text,
)
from featurestore.core.window cimport (
    STATUS_NOT_FOUND, STATUS_PRESENT, STATUS_UNAVAILABLE, judge, judge_fading, log_clone, log_expired,
    log_export, log_export_bytes, log_fetch_ends, log_free, log_import, put_nothing, put_summed,
    put_unavailable, put_value, view_horizon, view_read,
)

from featurestore.core.structs import same_structs

same_structs(__name__, kept_structs())

cdef enum:
    N_AT_ONCE = 32               # windows read together: as many as a view may have
    LISTED_AT_ONCE = 8 * TOP_MAX_K       # of heaviest values, fewer where they need more room


cdef extern from * nogil:
    """
    #define FS_ROUNDED 0x1p-40
    #define FS_FAR 0x1p500
    """
    const double ROUNDED "FS_ROUNDED"    # more than what some thousand roundings are off
    const double FAR "FS_FAR"            # so many times as much weighs what comes 500 half-lives later


cdef uint8_t sketch_kind(const ViewC* view) noexcept nogil:
    if view.structure == STRUCTURE_TOP:
        return TOP_SMALL
    return LOG_DISTINCT if view.structure == STRUCTURE_DISTINCT else LOG_DECAYED


cdef inline bint _is_top(const LogHead* head) noexcept nogil:
    return head.kind == TOP_SMALL or head.kind == TOP_LARGE


cdef int sketch_add(Arena* arena, LogHead* head, const ViewC* view, const Given* given) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        return distinct_add(arena, head, &view.distinct, given.hash, given.time_ms, given.horizon_ms)
    if _is_top(head):
        # 1 is an event that a full entry could not count, which its bounds say.
        return -1 if top_add(arena, head, &view.top, given.hash, given.text, given.n_text, given.time_ms,
                             given.horizon_ms) < 0 else 0
    return decayed_add(arena, head, &view.decayed, given.time_ms, given.value, given.horizon_ms)


cdef void _put_past(const ViewC* view, const DecayedPast* past, const ReadAt* when, const ItemC* item,
                    const Outputs* out) noexcept nogil:
    """Before the newest event: at least what the event that reads has given, and at most everything else but
    the newest. The value is what is left at the newest event, as if as much came at any time. A row that may
    hold events so far apart that the older ones left no trace (half-lives far shorter than lateness) says how
    many there were, near the newest, and not what they sum to."""
    cdef double own = 1.0 if when.own else 0.0
    cdef double most = past.weight - past.newest + past.weight * ROUNDED, lower, upper
    cdef bint is_deep = view.keep_ms // view.decayed.half_life_ms >= DECAYED_DEEP
    if past.is_only and not is_deep and not when.own:
        put_nothing(out, item)
        return
    if not (past.weight < INFINITY and past.above < INFINITY and past.below < INFINITY) or is_deep and (
            past.newest > FAR or item.aggregate != AGG_DECAYED_COUNT):
        put_unavailable(out, item)
        return
    if most < own:
        most = own
    if item.aggregate == AGG_DECAYED_COUNT:
        put_value(out, item, past.weight / past.newest, own, most)
        return
    lower = -(past.below * (1.0 + ROUNDED) + past.lost)
    upper = past.above * (1.0 + ROUNDED) + past.lost
    if when.own and when.own_value >= 0.0:
        lower += when.own_value
    elif when.own:
        upper += when.own_value
    if upper < lower:                        # nothing but the event's own, twice rounded
        upper = lower
    if item.aggregate == AGG_DECAYED_SUM:
        put_value(out, item, (past.above - past.below) / past.newest, lower, upper)
    elif not when.own:
        put_unavailable(out, item)           # perhaps there is a number, perhaps there is none
    else:                                    # over a weight between 1 and the most
        put_value(out, item, (past.above - past.below) / past.weight, lower / most if lower > 0.0 else lower,
                  upper / most if upper < 0.0 else upper)


cdef inline void _read_decayed(const Arena* arena, const LogHead* head, const ViewC* view, const ReadAt* when,
                               const ItemC* item, const Outputs* out) noexcept nogil:
    cdef DecayedValue left
    cdef DecayedPast past
    cdef double value
    judge_fading(view, when, item, out)
    if out.statuses[item.out] == STATUS_UNAVAILABLE:
        put_unavailable(out, item)
        return
    if head == NULL or kept_expired(arena, head, view, when.now_ms):
        put_nothing(out, item)
        return
    if when.last_ms < decayed_newest_ms(arena, head):
        past = decayed_read_past(arena, head, &view.decayed, when.at_ms)
        _put_past(view, &past, when, item, out)
        return
    left = decayed_read(arena, head, &view.decayed, when.at_ms)
    if item.aggregate == AGG_DECAYED_COUNT:
        value = left.weight
    elif item.aggregate == AGG_DECAYED_SUM:
        value = left.total
    else:
        value = left.mean
    put_summed(out, item, value, value, value)


cdef void _read_top(const Arena* arena, const LogHead* head, const ViewC* view, const ReadAt* when,
                    const ItemC* items, uint32_t n_items, const Outputs* out) noexcept nogil:
    """Items are by window, and share and entropy of one window are read once."""
    cdef TopValue listed[LISTED_AT_ONCE]
    cdef TopWindow windows[N_AT_ONCE]
    cdef int64_t windows_ms[N_AT_ONCE]
    cdef int64_t ending_ms[N_AT_ONCE]    # as long as there are events in them: up to last_ms
    cdef const ItemC* item
    cdef const TopWindow* window
    cdef uint32_t lo = 0, hi, n, most = LISTED_AT_ONCE // view.top.k, at, i
    cdef bint known = True
    if most > N_AT_ONCE:
        most = N_AT_ONCE
    while lo < n_items:
        n = 0
        hi = lo
        while hi < n_items and (n < most or items[hi].window_ms == windows_ms[n - 1]):
            if n == 0 or items[hi].window_ms != windows_ms[n - 1]:
                windows_ms[n] = items[hi].window_ms
                ending_ms[n] = windows_ms[n] - (when.at_ms - when.last_ms)
                n += 1
            hi += 1
        if head != NULL:
            known = top_read(arena, head, &view.top, when.last_ms, view_horizon(view, when.now_ms), ending_ms,
                             n, listed, windows) == 0
        at = 0
        for i in range(lo, hi):
            item = &items[i]
            while windows_ms[at] != item.window_ms:
                at += 1
            window = &windows[at]
            judge(view, when, item, when.at_ms - item.window_ms, when.at_ms, out)
            if not known or out.statuses[item.out] == STATUS_UNAVAILABLE:
                put_unavailable(out, item)   # `known` fails where there is no memory to read with
            elif head == NULL or window.total_upper == 0:
                put_nothing(out, item)
            elif window.total_lower == 0:
                put_unavailable(out, item)   # perhaps there is a number, perhaps there is none
            elif item.aggregate == AGG_TOP_SHARE:
                put_value(out, item, window.share, window.share_lower, window.share_upper)
            else:
                put_value(out, item, window.entropy, window.entropy_lower, window.entropy_upper)
        lo = hi


cdef void _hold_to_counts(const Arena* arena, const LogHead* log, const ViewC* logged, const ViewC* view,
                          const ReadAt* when, const ItemC* items, uint32_t n,
                          DistinctValue* values) noexcept nogil:
    """Before the newest value: there are no more values than events, as their log counts them, and where
    there surely is an event there is a value, unless events come without."""
    cdef ItemC counts[N_AT_ONCE]
    cdef double counted[N_AT_ONCE]
    cdef double least[N_AT_ONCE]
    cdef double most[N_AT_ONCE]
    cdef uint8_t statuses[N_AT_ONCE]
    cdef float coverage[N_AT_ONCE]
    cdef Outputs out
    cdef uint32_t i
    out.values = counted
    out.lower = least
    out.upper = most
    out.statuses = statuses
    out.coverage = coverage
    for i in range(n):
        counts[i].window_ms = items[i].window_ms
        counts[i].out = i
        counts[i].column = view.counted_column
        counts[i].aggregate = AGG_COUNT
    view_read(arena, log, NULL, logged, when, counts, n, &out)
    for i in range(n):
        if not values[i].past:
            continue
        if values[i].upper > most[i]:        # NaN where the count cannot be told
            values[i].upper = most[i]
        if least[i] >= 1.0 and values[i].upper >= 1.0:
            if values[i].estimate < 1.0:
                values[i].estimate = 1.0
            if values[i].lower < 1.0 and view.needs_value:
                values[i].lower = 1.0
        if values[i].lower > values[i].upper:        # it was an estimate
            values[i].lower = values[i].upper


cdef void sketch_read(const Arena* arena, const LogHead* head, const LogHead* log, const ViewC* logged,
                      const ViewC* view, const ReadAt* when, const ItemC* items, uint32_t n_items,
                      const Outputs* out) noexcept nogil:
    cdef DistinctValue values[N_AT_ONCE]
    cdef int64_t windows_ms[N_AT_ONCE]   # up to last_ms
    cdef uint32_t lo = 0, n, i, n_past
    if view.structure == STRUCTURE_DECAYED:
        for i in range(n_items):
            _read_decayed(arena, head, view, when, &items[i], out)
        return
    if view.structure == STRUCTURE_TOP:
        _read_top(arena, head, view, when, items, n_items, out)
        return
    while lo < n_items:
        n = n_items - lo if n_items - lo < N_AT_ONCE else N_AT_ONCE
        for i in range(n):
            windows_ms[i] = items[lo + i].window_ms - (when.at_ms - when.last_ms)
        if head != NULL:
            distinct_read(arena, head, &view.distinct, when.last_ms, view_horizon(view, when.now_ms),
                          when.own_hash if when.own else 0, windows_ms, n, values)
            n_past = 0
            for i in range(n):
                n_past += values[i].past
            if n_past and log != NULL:
                _hold_to_counts(arena, log, logged, view, when, items + lo, n, values)
        for i in range(n):
            judge(view, when, &items[lo + i], when.last_ms - windows_ms[i], when.at_ms, out)
            if out.statuses[items[lo + i].out] == STATUS_UNAVAILABLE:
                put_unavailable(out, &items[lo + i])
            elif head == NULL or values[i].upper == 0.0:
                put_nothing(out, &items[lo + i])
            else:
                put_value(out, &items[lo + i], values[i].estimate, values[i].lower, values[i].upper)
        lo += n


cdef int sketch_list(const Arena* arena, const LogHead* head, const ViewC* view, const ReadAt* when,
                     const ItemC* items, uint32_t n_items, Bytes* out) noexcept nogil:
    cdef TopValue values[TOP_MAX_K]
    cdef TopWindow window
    cdef Listed listed
    cdef ListedValue value
    cdef Outputs judged
    cdef ItemC item
    cdef const char* text
    cdef uint32_t i, j
    cdef int status
    memset(&judged, 0, sizeof(Outputs))
    judged.statuses = &listed.status
    judged.coverage = &listed.coverage
    for i in range(n_items):
        item = items[i]
        item.out = 0
        memset(&listed, 0, sizeof(Listed))
        memset(&window, 0, sizeof(TopWindow))
        listed.place = items[i].out
        judge(view, when, &item, when.at_ms - item.window_ms, when.at_ms, &judged)
        if listed.status != STATUS_UNAVAILABLE and head != NULL:
            if top_read(arena, head, &view.top, when.at_ms, view_horizon(view, when.now_ms), &item.window_ms,
                        1, values, &window) < 0:
                return -1
            listed.n_values = window.n_listed
            listed.total = window.total
            listed.total_lower = window.total_lower
            listed.total_upper = window.total_upper
            listed.rest_upper = window.rest_upper
        if listed.status == STATUS_PRESENT and window.total_upper == 0:
            listed.status = STATUS_NOT_FOUND
        status = bytes_append(out, &listed, sizeof(Listed))
        for j in range(listed.n_values):
            value.hash = values[j].hash
            value.estimate = values[j].estimate
            value.lower = values[j].lower
            value.upper = values[j].upper
            value.has_text = top_text(arena, head, values[j].slot, &text, &value.n_text)
            status |= bytes_append(out, &value, sizeof(ListedValue))
            if value.n_text:
                status |= bytes_append(out, text, value.n_text)
        if status < 0:
            return -1
    return 0


cdef void kept_prefetch(const Arena* arena, const LogHead* head, const ViewC* view,
                        uint64_t hash) noexcept nogil:
    if head.kind == LOG_SMALL or head.kind == LOG_LARGE:
        log_fetch_ends(arena, head, view)
    elif head.kind == LOG_DISTINCT:
        distinct_prefetch(arena, head, &view.distinct, hash)
    elif _is_top(head):
        top_prefetch(arena, head, hash)


cdef void kept_prefetch_value(const Arena* arena, const LogHead* head, const ViewC* view,
                              uint64_t hash) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        distinct_prefetch_value(arena, head, &view.distinct, hash)


cdef bint kept_expired(const Arena* arena, const LogHead* head, const ViewC* view,
                       int64_t now_ms) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        return distinct_expired(arena, head, view_horizon(view, now_ms))
    if head.kind == LOG_DECAYED:
        return head.block == 0 or decayed_newest_ms(arena, head) < view_horizon(view, now_ms)
    if _is_top(head):
        return top_expired(arena, head, view_horizon(view, now_ms))
    return log_expired(arena, head, view, now_ms)


cdef void kept_free(Arena* arena, LogHead* head, const ViewC* view) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        distinct_free(arena, head, &view.distinct)
    elif head.kind == LOG_DECAYED:
        decayed_free(arena, head, &view.decayed)
    elif _is_top(head):
        top_free(arena, head)
    else:
        log_free(arena, head, view)


cdef int kept_clone(Arena* arena, const LogHead* head, const ViewC* view, LogHead* copy) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        return distinct_clone(arena, head, &view.distinct, copy)
    if head.kind == LOG_DECAYED:
        return decayed_clone(arena, head, &view.decayed, copy)
    if _is_top(head):
        return top_clone(arena, head, copy)
    return log_clone(arena, head, view, copy)


cdef size_t kept_export_bytes(const Arena* arena, const LogHead* head, const ViewC* view,
                              int64_t horizon_ms) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        return distinct_export_bytes(arena, head, &view.distinct, horizon_ms)
    if head.kind == LOG_DECAYED:
        return decayed_export_bytes(&view.decayed)
    if _is_top(head):
        return top_export_bytes(arena, head)
    return log_export_bytes(arena, head, view)


cdef void kept_export(const Arena* arena, const LogHead* head, const ViewC* view, int64_t horizon_ms,
                      uint8_t* out) noexcept nogil:
    if head.kind == LOG_DISTINCT:
        distinct_export(arena, head, &view.distinct, horizon_ms, out)
    elif head.kind == LOG_DECAYED:
        decayed_export(arena, head, &view.decayed, out)
    elif _is_top(head):
        top_export(arena, head, out)
    else:
        log_export(arena, head, view, out)


cdef int64_t kept_import(Arena* arena, LogHead* head, const ViewC* view, const uint8_t* data,
                         size_t n) noexcept nogil:
    if view == NULL or view.structure == STRUCTURE_LOG:
        return log_import(arena, head, view, data, n)
    if view.structure == STRUCTURE_DECAYED:
        return decayed_import(arena, head, &view.decayed, data, n)
    if view.structure == STRUCTURE_TOP:
        return top_import(arena, head, &view.top, data, n)
    return distinct_import(arena, head, &view.distinct, data, n)


cdef size_t kept_skip_bytes(const uint8_t* data, size_t n) noexcept nogil:
    cdef uint32_t count, words
    cdef size_t size
    memcpy(&count, data + 4, 4)
    memcpy(&words, data + 12, 4)
    if data[2] == EXPORT_SET:
        size = 16 + ((10 * <size_t>count + 7) & ~<size_t>7)
    elif data[2] == EXPORT_MATRIX:
        # 32-bit cells, m of them for each dense rank, then 64-bit ones
        memcpy(&count, data + 8, 4)
        if data[3] > MAX_LOG2_REGISTERS:
            return n
        size = 24 + ((4 * (<size_t>data[5] << data[3]) + 7) & ~<size_t>7) + 8 * <size_t>count
    elif data[2] == EXPORT_DECAYED or data[2] == EXPORT_DECAYED_AHEAD:
        size = 16 + 8 * <size_t>count
    elif data[2] == TOP_SMALL or data[2] == TOP_LARGE:
        size = 8 + ((<size_t>count + 7) & ~<size_t>7)      # its `entries` are bytes
    elif data[2] < LOG_KEY and 0 < words <= MAX_WIDE_WORDS + 1:
        size = 16 + 8 * <size_t>words * count
    else:
        return n
    return size if size <= n else n
