"""The window log; window.pxd has the picture, the guarantee and the paper.

Three kinds of function below, in this order: partials (what an entry knows of its events), the log (append,
expire, merge), and the read (one backward scan that ends once per window).

Of the partials, counts, sums (total.pxd), extremes and moments combine associatively and commutatively
(moments up to rounding); first and last combine in time order only. None is inverted: a window is always
built up from its newest end, so no error accumulates from subtracting. What is subtracted from a lifetime
that is read before its newest event is not kept, and has bounds.
"""

from libc.math cimport INFINITY, NAN, fabs, sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from featurestore.core.arena cimport Arena, arena_alloc, arena_at, arena_free, fs_prefetch
from featurestore.core.head cimport LOG_BORN, LOG_LARGE, LOG_LIFETIME, LOG_SMALL, LogHead, is_note
from featurestore.core.holes cimport holes_lost_ms, holes_since
from featurestore.core.plan cimport (
    AGG_COUNT, AGG_DECAYED_COUNT, AGG_DECAYED_SUM, AGG_DISTINCT, AGG_FIRST, AGG_INTERVAL_CV,
    AGG_INTERVAL_MEAN, AGG_LAST, AGG_MAX, AGG_MEAN, AGG_MIN, AGG_SINCE_FIRST, AGG_STDDEV, AGG_SUM,
    FAR_MS, MANY_EVENTS, MAX_WIDE_WORDS, NO_COLUMN, UNSET_MS, WIDE_COUNT, WIDE_FIRST, WIDE_LAST, ColumnC,
    ItemC, ViewC, Word,
)
from featurestore.core.stored cimport all_zero
from featurestore.core.total cimport (
    ROUNDED_UP, Sum, Total, signs_most, sum_add, sum_add_some, sum_close, sum_join, sum_join_some,
    sum_open, sum_up, total_add_times, total_least, total_less, total_most, total_of, total_share,
    total_structs, total_value,
)

from featurestore.core.structs import same_structs

same_structs(__name__, window_structs(), total_structs())

cdef enum:
    COMPACT_SLACK = 64           # entries a log may grow by, besides half of itself, before it compacts again
    CAP_SLACK = 8                # at least so many entries over max_entries before the cheapest pairs merge
    COST_BUCKETS = 4096          # of the logarithmic histogram that finds the cheapest pairs
    SHRINK_ENTRIES = 128         # a block of at least this capacity, three quarters empty, is given back
    EXPORT_HEAD_BYTES = 16
    EXPORT_RAW = 0
    EXPORT_WIDE = 1
    EXPORT_LIFETIME = 2
    # Of merged entries, bits; where a bit is 0 it is an older layout, or there is no such thing:
    LAYOUT_SPREAD = 1            # what they keep of moments and gaps is as today
    LAYOUT_FED = 2               # of lifetimes: behind the entry is the clock when it was last fed
    LAYOUT_LOST = 4              # sums have a third word, what they have lost (total.pxd)

ctypedef struct Entries:         # a log's entries, wherever they are kept
    Word* words
    uint32_t n
    uint32_t stride              # words per entry
    uint32_t wide

ctypedef struct Edges:           # one window, and the merged entries across its edges
    int64_t lo                   # the window is lo < time <= hi
    int64_t hi
    int64_t at                   # since_first and since_last count from here: hi, unless it leaves out more
    const Word* left             # or NULL
    const Word* right            # or NULL; may be the same entry as left


# -- partials ------------------------------------------------------------------------------------------------

cdef inline void _wide_clear(const ViewC* view, Word* entry) noexcept nogil:
    memset(entry, 0, view.wide_words * sizeof(Word))


cdef extern from * nogil:
    """
    #define FS_NARROW 0x1p-400
    #define FS_FAR_APART 0x1p400
    #define FS_SCALE_UP 0x1p600
    #define FS_SCALE_DOWN 0x1p-600
    #define FS_ULP 0x1p-51
    #define FS_MADE_OUT 0x1p-960
    #define FS_ALL_BUT_LITTLE 0x1.fffffep-1f
    """
    const double NARROW "FS_NARROW"
    const double FAR_APART "FS_FAR_APART"
    const double SCALE_UP "FS_SCALE_UP"
    const double SCALE_DOWN "FS_SCALE_DOWN"
    const double ULP "FS_ULP"
    const double MADE_OUT "FS_MADE_OUT"           # a square below lost digits
    const float ALL_BUT_LITTLE "FS_ALL_BUT_LITTLE"     # the greatest float below 1


cdef inline double _scale(double least, double most) noexcept nogil:
    """What values from `least` to `most` are multiplied by, so that squares of their distances are doubles: a
    power of two, 1 but for values that hardly differ or differ vastly."""
    cdef double apart = most - least     # infinite: so will be the squares, and there is no answer
    if FAR_APART < apart < INFINITY:
        return SCALE_DOWN
    return SCALE_UP if 0.0 < apart < NARROW else 1.0


cdef inline double _inverse(double scale) noexcept nogil:
    return SCALE_DOWN if scale > 1.0 else SCALE_UP if scale < 1.0 else 1.0


cdef inline double _scaled(double m2, double was, double scale) noexcept nogil:
    """A sum of squares at another scale, that of a wider range."""
    cdef double by = scale * _inverse(was)
    return m2 * by * by


cdef inline double _squared(int64_t gap_ms) noexcept nogil:
    return <double>gap_ms * <double>gap_ms


cdef inline double _about(double mean, int64_t n, double other) noexcept nogil:
    """What n gaps of this mean add to the sum of squares about another mean, besides what they have about
    their own."""
    return <double>n * (mean - other) * (mean - other)


cdef inline double _mean_gap(int64_t first, int64_t last, int64_t n) noexcept nogil:
    return <double>(last - first) / <double>n if n > 0 else 0.0


cdef inline void _add_gap(const ColumnC* column, Word* entry, int64_t t, int64_t n) noexcept nogil:
    """Adds the gap that one more event makes to the n - 1 there are; before its time is taken over."""
    cdef Word* gaps = &entry[column.gaps_at]
    cdef int64_t first = entry[column.first_at + 1].i, last = entry[column.last_at + 1].i
    cdef double apart
    if n <= 1:
        gaps[0].f = gaps[1].f = 0.0
    elif t <= first or t >= last:
        apart = <double>(first - t if t <= first else t - last) - _mean_gap(first, last, n - 1)
        apart = apart * apart * (<double>(n - 1) / <double>n)
        gaps[0].f += apart
        gaps[1].f += apart
    else:
        # It splits one of the gaps, which one is not known: their squares sum to less. About their new mean
        # that is at most so much more, and nothing if they are now equal.
        gaps[0].f = 0.0
        gaps[1].f += _squared(last - first) / (<double>n * <double>(n - 1))


cdef inline void _merge_gaps(const ColumnC* column, Word* into, int64_t n, const Word* older,
                             int64_t m) noexcept nogil:
    """Both have events, n and m; before the first of `into` is replaced."""
    cdef int64_t first = older[column.first_at + 1].i, last = older[column.last_at + 1].i
    cdef int64_t next_first = into[column.first_at + 1].i, next_last = into[column.last_at + 1].i
    cdef double mean = _mean_gap(first, next_last, n + m - 1)
    cdef double apart = (_about(_mean_gap(next_first, next_last, n - 1), n - 1, mean)
                         + _about(_mean_gap(first, last, m - 1), m - 1, mean)
                         + _about(<double>(next_first - last), 1, mean))
    into[column.gaps_at].f += older[column.gaps_at].f + apart
    into[column.gaps_at + 1].f += older[column.gaps_at + 1].f + apart


cdef inline void _column_add(const ColumnC* column, Word* entry, const Word* raw, uint64_t bits,
                             bint older) noexcept nogil:
    """Adds one event to one column; `older` as in _wide_add."""
    cdef int64_t t = raw[0].i, n
    cdef double x = 0.0, delta, scale, was = 1.0
    cdef Word* at
    cdef Sum sum
    if column.filter >= 0 and not (bits >> column.filter) & 1:
        return
    if column.value >= 0:
        x = raw[1 + column.value].f
        if x != x:
            return
    n = entry[column.n_at].i
    entry[column.n_at].i = n + 1
    if column.sum_at:
        sum = sum_open(&entry[column.sum_at])
        sum_add(&sum, x)
        sum_close(&sum, &entry[column.sum_at])
    if column.extremes_at:
        at = &entry[column.extremes_at]
        if column.moments_at and n:
            was = _scale(at[0].f, at[1].f)
        if n == 0 or x < at[0].f:
            at[0].f = x
        if n == 0 or x > at[1].f:
            at[1].f = x
    if column.moments_at:
        # Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
        scale = _scale(entry[column.extremes_at].f, entry[column.extremes_at + 1].f)
        at = &entry[column.moments_at]
        delta = x * scale - at[0].f * scale
        at[0].f += delta / <double>(n + 1) * _inverse(scale)
        at[1].f = _scaled(at[1].f, was, scale) + delta * (x * scale - at[0].f * scale)
    if column.gaps_at:
        _add_gap(column, entry, t, n)
    if column.first_at:
        at = &entry[column.first_at]
        if n == 0 or (t <= at[1].i if older else t < at[1].i):
            at[0].f = x
            at[1].i = t
    if column.last_at:
        at = &entry[column.last_at]
        if n == 0 or (t > at[1].i if older else t >= at[1].i):
            at[0].f = x
            at[1].i = t


cdef inline void _wide_add(const ViewC* view, Word* entry, const Word* raw, bint older) noexcept nogil:
    """Adds one event. `older`: it comes before all that the entry holds (by time, then position); else its
    position is the greatest so far, whatever its time."""
    cdef int64_t t = raw[0].i
    cdef uint64_t bits = raw[1 + view.n_values].u if view.n_filters else 0
    cdef uint16_t i
    if entry[WIDE_COUNT].i == 0:
        entry[WIDE_FIRST].i = entry[WIDE_LAST].i = t
    elif t < entry[WIDE_FIRST].i:
        entry[WIDE_FIRST].i = t
    elif t > entry[WIDE_LAST].i:
        entry[WIDE_LAST].i = t
    entry[WIDE_COUNT].i += 1
    for i in range(view.n_columns):
        _column_add(&view.columns[i], entry, raw, bits, older)


cdef inline void _column_merge(const ColumnC* column, Word* into, const Word* older) noexcept nogil:
    """Adds one column of an entry that lies wholly before `into`."""
    cdef int64_t n = into[column.n_at].i, m = older[column.n_at].i
    cdef double delta, m2, scale, was = 1.0
    cdef uint16_t at
    cdef Sum sum, other
    if m == 0:
        return
    into[column.n_at].i = n + m
    if column.sum_at:
        sum = sum_open(&into[column.sum_at])
        other = sum_open(&older[column.sum_at])
        sum_join(&sum, &other)
        sum_close(&sum, &into[column.sum_at])
    if column.extremes_at:
        at = column.extremes_at
        if column.moments_at and n:
            was = _scale(into[at].f, into[at + 1].f)
        if n == 0 or older[at].f < into[at].f:
            into[at].f = older[at].f
        if n == 0 or older[at + 1].f > into[at + 1].f:
            into[at + 1].f = older[at + 1].f
    if column.moments_at:
        # Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        # 1979.
        at = column.extremes_at
        scale = _scale(into[at].f, into[at + 1].f)
        m2 = _scaled(older[column.moments_at + 1].f, _scale(older[at].f, older[at + 1].f), scale)
        at = column.moments_at
        delta = older[at].f * scale - into[at].f * scale
        m2 += delta * delta * (<double>n * <double>m / <double>(n + m))
        into[at + 1].f = _scaled(into[at + 1].f, was, scale) + m2
        into[at].f += delta * (<double>m / <double>(n + m)) * _inverse(scale)
    if column.gaps_at:
        if n:
            _merge_gaps(column, into, n, older, m)
        else:
            into[column.gaps_at] = older[column.gaps_at]
            into[column.gaps_at + 1] = older[column.gaps_at + 1]
    if column.first_at:
        into[column.first_at] = older[column.first_at]
        into[column.first_at + 1] = older[column.first_at + 1]
    if column.last_at and n == 0:
        into[column.last_at] = older[column.last_at]
        into[column.last_at + 1] = older[column.last_at + 1]


cdef inline void _wide_merge(const ViewC* view, Word* into, const Word* older) noexcept nogil:
    """Adds the events of an entry that lies wholly before `into`."""
    cdef uint16_t i
    if into[WIDE_COUNT].i == 0:
        memcpy(into, older, view.wide_words * sizeof(Word))
        return
    into[WIDE_FIRST].i = older[WIDE_FIRST].i
    into[WIDE_COUNT].i += older[WIDE_COUNT].i
    for i in range(view.n_columns):
        _column_merge(&view.columns[i], into, older)


# -- the log -------------------------------------------------------------------------------------------------

cdef int64_t view_horizon(const ViewC* view, int64_t now_ms) noexcept nogil:
    cdef int64_t horizon = UNSET_MS
    if now_ms != UNSET_MS:
        horizon = now_ms - view.keep_ms
    return horizon if horizon > view.floor_ms else view.floor_ms


cdef inline size_t _lifetime_bytes(const ViewC* view) noexcept nogil:
    """Its entry, and i: the clock when it was last fed."""
    return (<size_t>view.wide_words + 1) * sizeof(Word)


cdef inline int64_t _lifetime_horizon(const ViewC* view, int64_t now_ms) noexcept nogil:
    """A lifetime that was last fed before has ended."""
    cdef int64_t horizon = UNSET_MS
    if now_ms != UNSET_MS:
        horizon = now_ms - view.lifetime_idle_ms
    return horizon if horizon > view.lifetime_floor_ms else view.lifetime_floor_ms


cdef inline uint32_t _small_capacity(uint32_t n) noexcept nogil:
    return 3 if n <= 3 else 6 if n <= 6 else 12 if n <= 12 else SMALL_ENTRIES


cdef inline size_t _small_bytes(const ViewC* view, uint32_t n) noexcept nogil:
    return <size_t>_small_capacity(n) * view.raw_words * sizeof(Word)


cdef inline size_t _stride(const ViewC* view, uint32_t wide) noexcept nogil:
    return view.wide_words if wide else view.raw_words


cdef inline size_t _large_bytes(const ViewC* view, const LargeLog* large) noexcept nogil:
    return sizeof(LargeLog) + <size_t>large.capacity * _stride(view, large.wide) * sizeof(Word)


cdef inline Word* _large_words(LargeLog* large, const ViewC* view) noexcept nogil:
    return <Word*>(large + 1) + <size_t>large.start * _stride(view, large.wide)


cdef inline Entries _entries(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil:
    cdef Entries entries
    cdef LargeLog* large
    entries.words = NULL
    entries.n = entries.wide = 0
    entries.stride = view.raw_words
    if head == NULL or head.block == 0:
        return entries
    if head.kind == LOG_SMALL:
        entries.words = <Word*>arena_at(arena, head.block)
        entries.n = head.n_small
    elif head.kind == LOG_LARGE:
        large = <LargeLog*>arena_at(arena, head.block)
        entries.words = _large_words(large, view)
        entries.n = large.n_entries
        entries.wide = large.wide
        entries.stride = <uint32_t>_stride(view, large.wide)
    else:
        entries.words = <Word*>arena_at(arena, head.block)
        entries.n = 1
        entries.wide = 1
        entries.stride = view.wide_words
    return entries


cdef inline int64_t _last_of(const Entries* entries, uint32_t i) noexcept nogil:
    return entries.words[<size_t>i * entries.stride + (WIDE_LAST if entries.wide else 0)].i


cdef void log_fetch_ends(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil:
    cdef char* oldest
    cdef LargeLog* large
    cdef size_t n_bytes
    if head.block == 0:
        return
    oldest = <char*>arena_at(arena, head.block)
    if head.kind == LOG_SMALL:
        n_bytes = <size_t>head.n_small * view.raw_words * sizeof(Word)
    elif head.kind == LOG_LARGE:
        large = <LargeLog*>oldest
        oldest = <char*>_large_words(large, view)
        n_bytes = <size_t>large.n_entries * _stride(view, large.wide) * sizeof(Word)
        fs_prefetch(oldest)
    else:
        return
    fs_prefetch(oldest + n_bytes - 1)
    fs_prefetch(oldest + n_bytes + view.raw_words * sizeof(Word) - 1)


cdef size_t _block_bytes(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil:
    if head.kind == LOG_SMALL:
        return _small_bytes(view, head.n_small)
    if head.kind == LOG_LARGE:
        return _large_bytes(view, <LargeLog*>arena_at(arena, head.block))
    if head.kind == LOG_LIFETIME:
        return _lifetime_bytes(view)
    return sizeof(uint32_t) + (<uint32_t*>arena_at(arena, head.block))[0]


cdef void log_free(Arena* arena, LogHead* head, const ViewC* view) noexcept nogil:
    if head.block:
        arena_free(arena, head.block, _block_bytes(arena, head, view))
    head.block = 0
    head.n_small = 0
    if head.kind == LOG_LARGE:
        head.kind = LOG_SMALL


cdef int log_clone(Arena* arena, const LogHead* head, const ViewC* view, LogHead* copy) noexcept nogil:
    cdef size_t n_bytes
    copy[0] = head[0]
    if head.block == 0:
        return 0
    n_bytes = _block_bytes(arena, head, view)
    copy.block = arena_alloc(arena, n_bytes)
    if copy.block == 0:
        return -1
    memcpy(arena_at(arena, copy.block), arena_at(arena, head.block), n_bytes)
    return 0


cdef int _small_resize(Arena* arena, LogHead* head, const ViewC* view, uint32_t n) noexcept nogil:
    """Moves the first min(n, n_small) entries to a block for n, if it is of another size. Sets n_small to
    n."""
    cdef uint32_t block = head.block, kept = head.n_small if head.n_small < n else n
    if n == 0:
        if head.block:
            arena_free(arena, head.block, _small_bytes(view, head.n_small))
        head.block = 0
    elif head.block == 0 or _small_capacity(n) != _small_capacity(head.n_small):
        block = arena_alloc(arena, _small_bytes(view, n))
        if block == 0:
            return -1
        if head.block:
            memcpy(arena_at(arena, block), arena_at(arena, head.block),
                   <size_t>kept * view.raw_words * sizeof(Word))
            arena_free(arena, head.block, _small_bytes(view, head.n_small))
        head.block = block
    head.n_small = <uint8_t>n
    return 0


cdef int _small_expire(Arena* arena, LogHead* head, const ViewC* view, int64_t horizon) noexcept nogil:
    cdef Word* words
    cdef uint32_t gone = 0, kept
    if head.n_small == 0:
        return 0
    words = <Word*>arena_at(arena, head.block)
    while gone < head.n_small and words[<size_t>gone * view.raw_words].i < horizon:
        gone += 1
    if gone == 0:
        return 0
    kept = head.n_small - gone
    memmove(words, words + <size_t>gone * view.raw_words, <size_t>kept * view.raw_words * sizeof(Word))
    return _small_resize(arena, head, view, kept)


cdef int _large_resize(Arena* arena, LogHead* head, const ViewC* view, uint32_t capacity) noexcept nogil:
    cdef LargeLog* old = <LargeLog*>arena_at(arena, head.block)
    cdef LargeLog* new
    cdef size_t stride = _stride(view, old.wide)
    cdef uint32_t block = arena_alloc(arena, sizeof(LargeLog) + <size_t>capacity * stride * sizeof(Word))
    if block == 0:
        return -1
    new = <LargeLog*>arena_at(arena, block)
    new[0] = old[0]
    new.capacity = capacity
    new.start = 0
    memcpy(new + 1, _large_words(old, view), <size_t>old.n_entries * stride * sizeof(Word))
    arena_free(arena, head.block, _large_bytes(view, old))
    head.block = block
    return 0


cdef int _large_from(Arena* arena, LogHead* head, const ViewC* view, uint32_t wide) noexcept nogil:
    """Rebuilds a RAW log, small or large, as a large one with room to grow; wide joins equal times."""
    cdef Entries old = _entries(arena, head, view)
    cdef uint32_t capacity = old.n + old.n // 2 + 8, block, i
    cdef LargeLog* large
    cdef Word* entry = NULL
    cdef const Word* raw
    block = arena_alloc(arena, sizeof(LargeLog) + <size_t>capacity * _stride(view, wide) * sizeof(Word))
    if block == 0:
        return -1
    large = <LargeLog*>arena_at(arena, block)
    memset(large, 0, sizeof(LargeLog))
    large.capacity = capacity
    large.wide = wide
    large.n_events = old.n
    if not wide:
        large.n_entries = old.n
        memcpy(large + 1, old.words, <size_t>old.n * view.raw_words * sizeof(Word))
    else:
        for i in range(old.n):
            raw = old.words + <size_t>i * view.raw_words
            if entry == NULL or entry[WIDE_LAST].i != raw[0].i:
                entry = <Word*>(large + 1) + <size_t>large.n_entries * view.wide_words
                _wide_clear(view, entry)
                large.n_entries += 1
            _wide_add(view, entry, raw, False)
    if head.block:
        arena_free(arena, head.block, _block_bytes(arena, head, view))
    head.block = block
    head.kind = LOG_LARGE
    head.n_small = 0
    return 0


cdef int _large_expire(Arena* arena, LogHead* head, const ViewC* view, int64_t horizon) noexcept nogil:
    cdef LargeLog* large = <LargeLog*>arena_at(arena, head.block)
    cdef Entries entries = _entries(arena, head, view)
    cdef uint32_t gone = 0
    while gone < entries.n and _last_of(&entries, gone) < horizon:
        large.n_events -= entries.words[<size_t>gone * entries.stride + WIDE_COUNT].i if entries.wide else 1
        gone += 1
    large.start += gone
    large.n_entries -= gone
    if large.n_entries == 0:
        log_free(arena, head, view)
    elif large.capacity >= SHRINK_ENTRIES and large.n_entries * 4 < large.capacity:
        return _large_resize(arena, head, view, large.n_entries * 2)
    return 0


cdef Word* _large_insert(Arena* arena, LogHead* head, const ViewC* view, uint32_t place) noexcept nogil:
    """Makes room for an entry before the `place`-th. Returns it, unset; NULL when out of memory."""
    cdef LargeLog* large = <LargeLog*>arena_at(arena, head.block)
    cdef size_t stride = _stride(view, large.wide)
    cdef Word* words
    if large.start + large.n_entries == large.capacity:
        if large.start > large.capacity // 4:
            words = _large_words(large, view)
            memmove(large + 1, words, <size_t>large.n_entries * stride * sizeof(Word))
            large.start = 0
        else:
            if _large_resize(arena, head, view, large.n_entries + large.n_entries // 2 + 8) < 0:
                return NULL
            large = <LargeLog*>arena_at(arena, head.block)
    words = _large_words(large, view) + <size_t>place * stride
    memmove(words + stride, words, <size_t>(large.n_entries - place) * stride * sizeof(Word))
    large.n_entries += 1
    return words


cdef inline uint32_t _count_until(const Entries* entries, int64_t t) noexcept nogil:
    """How many entries begin at or before t (RAW: are at or before t)."""
    cdef uint32_t lo = 0, hi = entries.n, mid
    # Nearly every event is the newest of its log.
    if hi and entries.words[<size_t>(hi - 1) * entries.stride].i <= t:
        return hi
    while lo < hi:
        mid = lo + (hi - lo) // 2
        if entries.words[<size_t>mid * entries.stride].i <= t:
            lo = mid + 1
        else:
            hi = mid
    return lo


cdef inline double _weight(const ViewC* view, const Word* entry, uint16_t k) noexcept nogil:
    cdef const Word* word = &entry[view.weights[k].at]
    return fabs(word.f) if view.weights[k].is_float else <double>word.i


cdef inline double _pair_cost(const ViewC* view, const Word* a, const Word* b,
                              const double* newer) noexcept nogil:
    """Largest ratio, over all weights, of the pair's weight to what is newer; infinity where nothing is
    newer."""
    cdef double cost = 0.0, together, ratio
    cdef uint16_t k
    for k in range(view.n_weights):
        together = _weight(view, a, k) + _weight(view, b, k)
        if together > 0.0:
            ratio = together / newer[k] if newer[k] > 0.0 else INFINITY
            if ratio > cost:
                cost = ratio
    return cost


cdef inline bint _light(const ViewC* view, const Word* a, const Word* b, const double* newer,
                        double max_cost) noexcept nogil:
    """Whether the pair's cost is at most max_cost, without a division."""
    cdef uint16_t k
    for k in range(view.n_weights):
        if _weight(view, a, k) + _weight(view, b, k) > max_cost * newer[k]:
            return False
    return True


cdef inline uint32_t _cost_bucket(double cost) noexcept nogil:
    """Order-preserving bucket of a non-negative cost: 16 buckets per doubling."""
    cdef Word word
    cdef int64_t bucket
    word.f = cost
    bucket = (word.i >> 48) - ((1023 - 64) << 4)
    return 0 if bucket < 0 else COST_BUCKETS - 1 if bucket >= COST_BUCKETS else <uint32_t>bucket


cdef void _merge_pairs(const ViewC* view, LargeLog* large, int64_t limit, double max_cost,
                       uint32_t max_bucket, uint32_t max_merges) noexcept nogil:
    """One pass from the newest entry to the oldest that merges neighbours, both at or before `limit`.

    With max_merges 0: greedily, while the pair's cost is at most max_cost (the exponential histogram's
    invariant).
    Else: at most max_merges pairs, none twice, whose cost falls in a bucket up to max_bucket.
    """
    cdef double newer[3 * 64 + 1]
    cdef Word* words = _large_words(large, view)
    cdef size_t stride = view.wide_words
    cdef uint32_t to = large.n_entries, merges = 0
    cdef int64_t i                       # signed: it counts down past 0
    cdef Word* group = NULL
    cdef Word* entry
    cdef bint fits, just_merged = False
    cdef uint16_t k
    memset(newer, 0, view.n_weights * sizeof(double))
    for i in range(<int64_t>large.n_entries - 1, -1, -1):
        entry = words + <size_t>i * stride
        fits = False
        if group != NULL and entry[WIDE_LAST].i <= limit:
            if max_merges == 0:
                fits = _light(view, group, entry, newer, max_cost)
            elif merges < max_merges and not just_merged:
                fits = _cost_bucket(_pair_cost(view, group, entry, newer)) <= max_bucket
        if fits:
            _wide_merge(view, group, entry)
            merges += 1
            just_merged = True
            continue
        just_merged = False
        if group != NULL:
            for k in range(view.n_weights):
                newer[k] += _weight(view, group, k)
        to -= 1
        if <int64_t>to != i:
            memcpy(words + to * stride, entry, stride * sizeof(Word))
        group = words + to * stride if entry[WIDE_LAST].i <= limit else NULL
    large.start += to
    large.n_entries -= to


cdef uint32_t _cheapest_bucket(const ViewC* view, LargeLog* large, int64_t limit,
                               uint32_t wanted) noexcept nogil:
    """The bucket up to which `wanted` neighbouring pairs cost; COST_BUCKETS when there are fewer pairs."""
    cdef uint32_t histogram[COST_BUCKETS]
    cdef double newer[3 * 64 + 1]
    cdef Word* words = _large_words(large, view)
    cdef size_t stride = view.wide_words
    cdef uint32_t bucket, seen = 0
    cdef int64_t i                       # signed: it counts down past 0
    cdef Word* entry
    cdef Word* group = NULL
    cdef uint16_t k
    memset(histogram, 0, sizeof(histogram))
    memset(newer, 0, sizeof(newer))
    for i in range(<int64_t>large.n_entries - 1, -1, -1):
        entry = words + <size_t>i * stride
        if entry[WIDE_LAST].i > limit:
            continue
        if group != NULL:
            histogram[_cost_bucket(_pair_cost(view, group, entry, newer))] += 1
            for k in range(view.n_weights):
                newer[k] += _weight(view, group, k)
        group = entry
    for bucket in range(<uint32_t>COST_BUCKETS):
        seen += histogram[bucket]
        if seen >= wanted:
            return bucket
    return COST_BUCKETS


cdef void _compact(const ViewC* view, LargeLog* large) noexcept nogil:
    cdef Word* words = _large_words(large, view)
    cdef int64_t newest = words[<size_t>(large.n_entries - 1) * view.wide_words + WIDE_LAST].i
    cdef int64_t limit = newest - view.offset_ms
    cdef uint32_t bucket
    if large.n_events > view.exact_events:
        _merge_pairs(view, large, limit, 2.0 * view.max_error, 0, 0)
        while large.n_entries > view.max_entries:
            bucket = _cheapest_bucket(view, large, limit, large.n_entries - view.max_entries)
            if bucket == COST_BUCKETS:
                if limit == newest:
                    bucket = COST_BUCKETS - 1          # fewer pairs than wanted: every second entry goes
                else:
                    limit = newest                     # all that is older than the offset is one entry
                                                       # already
                    continue
            _merge_pairs(view, large, limit, 0.0, bucket, large.n_entries - view.max_entries)
    large.compact_at = large.n_entries + large.n_entries // 2 + COMPACT_SLACK


cdef int _wide_append(Arena* arena, LogHead* head, const ViewC* view, const Word* raw) noexcept nogil:
    cdef Entries entries = _entries(arena, head, view)
    cdef uint32_t place = _count_until(&entries, raw[0].i)
    cdef LargeLog* large
    cdef Word* entry = NULL
    cdef uint32_t slack = view.max_entries // 16
    if place:
        entry = entries.words + <size_t>(place - 1) * entries.stride
        if raw[0].i > entry[WIDE_LAST].i:
            entry = NULL
    if entry == NULL:
        entry = _large_insert(arena, head, view, place)
        if entry == NULL:
            return -1
        _wide_clear(view, entry)
    _wide_add(view, entry, raw, False)
    large = <LargeLog*>arena_at(arena, head.block)
    large.n_events += 1
    if slack < CAP_SLACK:
        slack = CAP_SLACK
    if large.n_entries >= large.compact_at or large.n_entries >= view.max_entries + slack:
        _compact(view, large)
    return 0


cdef int log_append(Arena* arena, LogHead* head, const ViewC* view, const Word* raw,
                    int64_t now_ms) noexcept nogil:
    cdef int64_t horizon = view_horizon(view, now_ms)
    cdef Entries entries
    cdef LargeLog* large
    cdef Word* entry
    cdef uint32_t place
    if head.kind == LOG_LARGE:
        if _large_expire(arena, head, view, horizon) < 0:
            return -1
    elif _small_expire(arena, head, view, horizon) < 0:
        return -1
    if head.kind == LOG_SMALL and head.n_small < SMALL_ENTRIES and head.n_small < view.exact_events:
        place = head.n_small
        if _small_resize(arena, head, view, head.n_small + 1) < 0:
            return -1
        entry = <Word*>arena_at(arena, head.block)
        while place and entry[<size_t>(place - 1) * view.raw_words].i > raw[0].i:
            place -= 1
        entry += <size_t>place * view.raw_words
        memmove(entry + view.raw_words, entry,
                <size_t>(head.n_small - 1 - place) * view.raw_words * sizeof(Word))
        memcpy(entry, raw, view.raw_words * sizeof(Word))
        return 0
    if head.kind == LOG_SMALL:
        if _large_from(arena, head, view, head.n_small >= view.exact_events) < 0:
            return -1
    large = <LargeLog*>arena_at(arena, head.block)
    if not large.wide and large.n_events >= view.exact_events:
        if _large_from(arena, head, view, 1) < 0:
            return -1
        large = <LargeLog*>arena_at(arena, head.block)
    if large.wide:
        return _wide_append(arena, head, view, raw)
    entries = _entries(arena, head, view)
    entry = _large_insert(arena, head, view, _count_until(&entries, raw[0].i))
    if entry == NULL:
        return -1
    memcpy(entry, raw, view.raw_words * sizeof(Word))
    (<LargeLog*>arena_at(arena, head.block)).n_events += 1
    return 0


cdef int lifetime_append(Arena* arena, LogHead* head, const ViewC* view, const Word* raw,
                         int64_t now_ms) noexcept nogil:
    cdef Word* entry
    if head.block == 0:
        head.block = arena_alloc(arena, _lifetime_bytes(view))
        if head.block == 0:
            return -1
        _wide_clear(view, <Word*>arena_at(arena, head.block))
    entry = <Word*>arena_at(arena, head.block)
    if entry[WIDE_COUNT].i and entry[view.wide_words].i < _lifetime_horizon(view, now_ms):
        _wide_clear(view, entry)
    _wide_add(view, entry, raw, False)
    entry[view.wide_words].i = now_ms
    return 0


cdef bint lifetime_takes(const ViewC* view, int64_t time_ms, int64_t now_ms) noexcept nogil:
    return view.has_lifetime and time_ms >= now_ms - view.lifetime_idle_ms


cdef bint log_expired(const Arena* arena, const LogHead* head, const ViewC* view,
                      int64_t now_ms) noexcept nogil:
    cdef Entries entries
    if is_note(head.kind):
        return False
    entries = _entries(arena, head, view)
    if entries.n == 0:
        return True
    if head.kind == LOG_LIFETIME:
        return entries.words[view.wide_words].i < _lifetime_horizon(view, now_ms)
    return _last_of(&entries, entries.n - 1) < view_horizon(view, now_ms)


# -- the read ------------------------------------------------------------------------------------------------

cdef void put_value(const Outputs* out, const ItemC* item, double value, double lower,
                    double upper) noexcept nogil:
    if value < lower:
        value = lower
    if value > upper:
        value = upper
    if lower == upper:
        lower = upper = value            # of two zeros, what is exact has the sign of one
    out.values[item.out] = value
    if out.lower != NULL:
        out.lower[item.out] = lower
        out.upper[item.out] = upper


cdef void put_summed(const Outputs* out, const ItemC* item, double value, double lower,
                     double upper) noexcept nogil:
    """Values are finite and their sum need not be: then there is a number, and no double that says it."""
    put_value(out, item, value, lower, upper)
    value = out.values[item.out]
    if value - value != 0.0 or not lower < INFINITY or not upper > -INFINITY:
        put_unavailable(out, item)


cdef void put_nothing(const Outputs* out, const ItemC* item) noexcept nogil:
    cdef bint counts = (item.aggregate == AGG_COUNT or item.aggregate == AGG_SUM
                        or item.aggregate == AGG_DISTINCT or item.aggregate == AGG_DECAYED_COUNT
                        or item.aggregate == AGG_DECAYED_SUM)
    cdef double value = 0.0 if counts else NAN
    put_value(out, item, value, value, value)
    if out.statuses[item.out] == STATUS_PRESENT:
        out.statuses[item.out] = STATUS_NOT_FOUND


cdef void put_unavailable(const Outputs* out, const ItemC* item) noexcept nogil:
    put_value(out, item, NAN, NAN, NAN)
    out.statuses[item.out] = STATUS_UNAVAILABLE
    out.coverage[item.out] = 0.0


cdef void read_unavailable(const ItemC* items, uint32_t n_items, const Outputs* out) noexcept nogil:
    cdef uint32_t i
    for i in range(n_items):
        put_unavailable(out, &items[i])


ctypedef struct Part:            # what one entry across an edge may have inside, of one column
    const Word* entry
    int64_t least                # at least so many of its events
    int64_t most                 # at most; where none, what follows is unset
    int64_t first_from           # the first of them, if there are any, was between these times
    int64_t first_to
    int64_t last_from
    int64_t last_to
    bint own_first               # the first inside is the entry's own first
    bint own_last

ctypedef struct Uncertain:       # what the entries across a window's edges may add to a column
    Part left                    # in order of time: left, all that is sure, right; an entry across both edges
    Part right                   # is left
    int64_t n                    # at most so many events
    double above                 # to the sum: at most
    double below                 # to the sum: at least minus this
    double least                 # values lie between (n > 0)
    double most
    double m2                    # sum of squares about their own mean, at most; at the scale of these values


cdef inline void _part(Part* part, const ColumnC* column, const Word* entry,
                       const Edges* edges) noexcept nogil:
    """Of an entry across an edge is known when its first and its last event were; of a column, too, where it
    keeps those times or counts every event. Column NULL: of all events."""
    cdef int64_t n = entry[WIDE_COUNT].i, first = entry[WIDE_FIRST].i, last = entry[WIDE_LAST].i
    cdef bint first_known = True, last_known = True
    part.entry = entry
    if column != NULL and entry[column.n_at].i != n:
        n = entry[column.n_at].i
        if n == 0:
            return
        first_known = column.first_at != 0
        last_known = column.last_at != 0
        if first_known:
            first = entry[column.first_at + 1].i
        if last_known:
            last = entry[column.last_at + 1].i
        if n == 1 and first_known != last_known:
            first = last = first if first_known else last
            first_known = last_known = True
    if first > edges.hi or last <= edges.lo:
        return                               # each of them is outside
    part.own_first = first_known and first > edges.lo
    part.own_last = last_known and last <= edges.hi
    part.most = n
    if first > edges.lo and last <= edges.hi:
        part.least = n
    else:
        part.least = part.own_first or part.own_last
        part.most -= first_known and first <= edges.lo
        part.most -= last_known and last > edges.hi
    part.first_from = first if first > edges.lo else edges.lo + 1
    part.last_to = last if last <= edges.hi else edges.hi
    part.first_to = first if part.own_first else part.last_to
    part.last_from = last if part.own_last else part.first_from


cdef inline void _doubt(Uncertain* doubt, const ColumnC* column, const Part* part) noexcept nogil:
    cdef const Word* entry = part.entry
    cdef int64_t n
    cdef double gap, scale, above, below, was = 1.0
    if part.most == 0:
        return
    n = entry[column.n_at].i
    if column.sum_at:
        signs_most(&entry[column.sum_at], n, &above, &below)
        doubt.above = sum_up(doubt.above, above)
        doubt.below = sum_up(doubt.below, below)
    if column.extremes_at:
        if doubt.n:
            was = _scale(doubt.least, doubt.most)
        if doubt.n == 0 or entry[column.extremes_at].f < doubt.least:
            doubt.least = entry[column.extremes_at].f
        if doubt.n == 0 or entry[column.extremes_at + 1].f > doubt.most:
            doubt.most = entry[column.extremes_at + 1].f
    if column.moments_at:
        # Two entries together: both M2, and what their means may be apart, at most the range of their values.
        scale = _scale(doubt.least, doubt.most)
        gap = doubt.most * scale - doubt.least * scale
        doubt.m2 = _scaled(doubt.m2, was, scale) + _scaled(
            entry[column.moments_at + 1].f,
            _scale(entry[column.extremes_at].f, entry[column.extremes_at + 1].f), scale)
        if doubt.n:
            doubt.m2 += gap * gap * (<double>doubt.n * <double>n / <double>(doubt.n + n))
    doubt.n += n


cdef inline void _read_stddev(const Outputs* out, const ItemC* item, const ColumnC* column, const Word* sure,
                              const Uncertain* doubt) noexcept nogil:
    """Bounds of a population standard deviation over n sure events and 0..k doubtful ones.

    From below: the sum of squares only grows with events, so sure M2 / (n + k). From above: M2 of the sure,
    M2 of the doubtful, and n j / (n + j) times the squared distance of the two means, over n + j, at the
    worst j; never above a quarter of the squared range (Popoviciu).
    """
    cdef double n = <double>sure[column.n_at].i, k = <double>doubt.n
    cdef double least = doubt.least, most = doubt.most, mean, m2 = 0.0, doubt_m2, far, share, variance
    cdef double scale, was = 1.0
    if n > 0:
        was = _scale(sure[column.extremes_at].f, sure[column.extremes_at + 1].f)
        m2 = sure[column.moments_at + 1].f
    if doubt.n == 0:
        variance = sqrt(m2 / n) / was
        put_summed(out, item, variance, variance, variance)
        return
    if n > 0:
        if sure[column.extremes_at].f < least:
            least = sure[column.extremes_at].f
        if sure[column.extremes_at + 1].f > most:
            most = sure[column.extremes_at + 1].f
    scale = _scale(least, most)
    doubt_m2 = _scaled(doubt.m2, _scale(doubt.least, doubt.most), scale)
    variance = (most * scale - least * scale) * (most * scale - least * scale) / 4.0
    if n == 0:
        put_summed(out, item, sqrt(doubt_m2 / k) / scale, 0.0, sqrt(variance) / scale)
        return
    m2 = _scaled(m2, was, scale)
    mean = sure[column.moments_at].f * scale
    far = fabs(doubt.most * scale - mean)
    if fabs(mean - doubt.least * scale) > far:
        far = fabs(mean - doubt.least * scale)
    share = 0.25 if k >= n else n * k / ((n + k) * (n + k))
    if (m2 + doubt_m2) / n + far * far * share < variance:
        variance = (m2 + doubt_m2) / n + far * far * share
    put_summed(out, item, sqrt(m2 / n) / scale, sqrt(m2 / (n + k)) / scale, sqrt(variance) / scale)


cdef inline void _read_extreme(const Outputs* out, const ItemC* item, const ColumnC* column, const Word* sure,
                               const Uncertain* doubt) noexcept nogil:
    cdef bint some = sure[column.n_at].i > 0
    cdef double lower, upper
    if item.aggregate == AGG_MIN:
        lower = upper = sure[column.extremes_at].f if some else doubt.most
        if doubt.n and doubt.least < lower:
            lower = doubt.least
        put_value(out, item, lower, lower, upper)
    else:
        lower = upper = sure[column.extremes_at + 1].f if some else doubt.least
        if doubt.n and doubt.most > upper:
            upper = doubt.most
        put_value(out, item, upper, lower, upper)


cdef inline void _widen(double* least, double* most, double lower, double upper) noexcept nogil:
    if lower < least[0]:
        least[0] = lower
    if upper > most[0]:
        most[0] = upper


cdef inline void _read_end(const Outputs* out, const ItemC* item, const ColumnC* column, const Word* sure,
                           const Uncertain* doubt) noexcept nogil:
    """first and last, of at least one event: from that end all that may be it, up to what surely is
    inside."""
    cdef bint want_first = item.aggregate == AGG_FIRST
    cdef uint16_t at = column.first_at if want_first else column.last_at
    cdef const Part* part = &doubt.left if want_first else &doubt.right
    cdef const Part* far = &doubt.right if want_first else &doubt.left
    cdef double least = INFINITY, most = -INFINITY
    if part.least == 0 and sure[column.n_at].i:
        _widen(&least, &most, sure[at].f, sure[at].f)
        far = NULL
    while part != NULL:
        if part.most and (part.own_first if want_first else part.own_last):
            _widen(&least, &most, part.entry[at].f, part.entry[at].f)
        elif part.most:
            _widen(&least, &most, part.entry[column.extremes_at].f, part.entry[column.extremes_at + 1].f)
        if part == far or part.least:
            break
        part = far
    put_value(out, item, least + (most - least) / 2.0, least, most)


cdef inline void _first_inside(const ColumnC* column, const Word* sure, const Uncertain* doubt,
                               int64_t* earliest, int64_t* latest) noexcept nogil:
    """When the first of at least one event was. Column NULL: of any event."""
    cdef bint some = sure[WIDE_COUNT if column == NULL else column.n_at].i > 0
    latest[0] = doubt.right.first_to
    earliest[0] = doubt.right.first_from
    if some:
        earliest[0] = latest[0] = sure[WIDE_FIRST if column == NULL else column.first_at + 1].i
    if doubt.left.most:
        earliest[0] = doubt.left.first_from
        if doubt.left.least:
            latest[0] = doubt.left.first_to


cdef inline void _last_inside(const ColumnC* column, const Word* sure, const Uncertain* doubt,
                              int64_t* earliest, int64_t* latest) noexcept nogil:
    cdef bint some = sure[WIDE_COUNT if column == NULL else column.n_at].i > 0
    earliest[0] = doubt.left.last_from
    latest[0] = doubt.left.last_to
    if some:
        earliest[0] = latest[0] = sure[WIDE_LAST if column == NULL else column.last_at + 1].i
    if doubt.right.most:
        latest[0] = doubt.right.last_to
        if doubt.right.least:
            earliest[0] = doubt.right.last_from


cdef inline void _read_since(const Outputs* out, const ItemC* item, const ColumnC* column, const Word* sure,
                             const Edges* edges, const Uncertain* doubt) noexcept nogil:
    """since_first and since_last, of at least one event: `at` minus its time, in ms."""
    cdef int64_t earliest, latest
    if item.aggregate == AGG_SINCE_FIRST:
        _first_inside(column, sure, doubt, &earliest, &latest)
    else:
        _last_inside(column, sure, doubt, &earliest, &latest)
    put_value(out, item, <double>(edges.at - latest) + <double>(latest - earliest) / 2.0,
              <double>(edges.at - latest), <double>(edges.at - earliest))


cdef inline void _read_intervals(const Outputs* out, const ItemC* item, const ColumnC* column,
                                 const Word* sure, const Uncertain* doubt, int64_t n_lower,
                                 int64_t n_upper) noexcept nogil:
    """interval_mean and interval_cv, of at least two events: the mean of the times between neighbours, in ms,
    and their standard deviation over it.

    Over m gaps whose sum is the span S, the mean is S / m, and the square of the coefficient of variation is
    V m / S^2, where V is the sum of their squared distances from the mean: of their squares, less S^2 / m. V
    only grows with gaps. The ends of the span are somewhere between the window's edge and the sure events;
    squares of gaps there add at most the square of what they lie in.
    """
    cdef int64_t n = sure[column.n_at].i, m_least = n_lower - 1, m_most = n_upper - 1
    cdef int64_t first_least, first_most, last_least, last_most
    cdef double span_least, span_most, span, lower, upper, value
    _first_inside(column, sure, doubt, &first_least, &first_most)
    _last_inside(column, sure, doubt, &last_least, &last_most)
    span_least = <double>(last_least - first_most) if last_least > first_most else 0.0
    span_most = <double>(last_most - first_least)
    if item.aggregate == AGG_INTERVAL_MEAN:
        lower = span_least / <double>m_most
        upper = span_most / <double>m_least
        put_value(out, item, (span_least + (span_most - span_least) / 2.0)
                  / (<double>m_least + <double>(m_most - m_least) / 2.0), lower, upper)
        return
    lower = value = _variation(sure[column.gaps_at].f if n else 0.0, <double>m_least, span_most)
    upper = sure[column.gaps_at + 1].f if n else 0.0
    if n >= 2:
        span = <double>(sure[column.last_at + 1].i - sure[column.first_at + 1].i)
        value = _variation((sure[column.gaps_at].f + upper) / 2.0, <double>(n - 1), span)
        if n_upper > n:
            upper += span * span / <double>(n - 1)
    if n_upper > n:
        if n:
            upper += (_squared(sure[column.first_at + 1].i - first_least)
                      + _squared(last_most - sure[column.last_at + 1].i))
        else:
            upper = span_most * span_most
        upper = upper * ROUNDED_UP - span_least * span_least / <double>m_most
    put_value(out, item, value, lower, _variation(upper, <double>m_most, span_least))


cdef inline double _variation(double apart, double m, double span) noexcept nogil:
    """The coefficient of variation of m gaps of this sum of squares about their mean and of this sum: 0 where
    all are 0, and never more than that of one gap beside m - 1 of nothing."""
    cdef double square = m - 1.0 if apart > 0.0 else 0.0
    if span > 0.0 and apart * m / (span * span) < square:
        square = apart * m / (span * span)
    return sqrt(square)


cdef inline void _read_item(const ViewC* view, const ItemC* item, const Word* sure, const Edges* edges,
                            const Outputs* out) noexcept nogil:
    """One value from what is surely inside its window and the entries across the window's edges. Most are
    counts and sums, and of keys that are not hot: then nothing is across an edge, and they are exact."""
    cdef const ColumnC* column = NULL
    cdef Total total
    cdef int64_t n
    if item.aggregate > AGG_SUM or edges.left != NULL or edges.right != NULL:
        _read_any(view, item, sure, edges, out)
        return
    if item.column == NO_COLUMN:
        n = sure[WIDE_COUNT].i
    else:
        column = &view.columns[item.column]
        n = sure[column.n_at].i
    if n == 0:
        put_nothing(out, item)
    elif item.aggregate == AGG_SUM:
        total = total_of(&sure[column.sum_at], n)
        _put_total(out, item, &total)
    else:
        put_value(out, item, <double>n, <double>n, <double>n)


cdef inline void _put_total(const Outputs* out, const ItemC* item, const Total* total) noexcept nogil:
    cdef double lower, upper, value = total_value(total, &lower, &upper)
    put_summed(out, item, value, lower, upper)


cdef inline void _read_mean(const Outputs* out, const ItemC* item, const ColumnC* column, const Word* sure,
                            const Uncertain* doubt) noexcept nogil:
    """It lies between the extremes, and that of k doubtful values beside the sure is monotone in k: the ends
    are where all are at their least, or their greatest, or there are none."""
    cdef int64_t n = sure[column.n_at].i
    cdef double least = doubt.least, most = doubt.most, lower = doubt.least, upper = doubt.most, value, end
    cdef Total total = total_of(&sure[column.sum_at], n), share, joined
    value = ((total.high + (doubt.above - doubt.below) / 2.0) / (<double>n + <double>doubt.n / 2.0))
    if n > 0:
        share = total_share(&total, <double>n)
        if doubt.n == 0:
            least = sure[column.extremes_at].f
            most = sure[column.extremes_at + 1].f
            value = total_value(&share, &lower, &upper)
        else:
            _widen(&least, &most, sure[column.extremes_at].f, sure[column.extremes_at + 1].f)
            lower = total_least(&share, 0.0)
            upper = total_most(&share, 0.0)
            joined = _joined_mean(&total, n, doubt.n, doubt.least)
            end = total_least(&joined, 0.0)
            if not end >= lower:             # a sum on the way may be no double
                lower = end
            joined = _joined_mean(&total, n, doubt.n, doubt.most)
            end = total_most(&joined, 0.0)
            if not end <= upper:
                upper = end
    put_summed(out, item, value, lower if lower > least else least, upper if upper < most else most)


cdef inline Total _joined_mean(const Total* total, int64_t n, int64_t more, double each) noexcept nogil:
    """The mean of n values and of so many more."""
    cdef Total joined = total[0]
    total_add_times(&joined, <double>more, each)
    return total_share(&joined, <double>n + <double>more)


cdef void _read_any(const ViewC* view, const ItemC* item, const Word* sure, const Edges* edges,
                    const Outputs* out) noexcept nogil:
    cdef const ColumnC* column = NULL
    cdef Uncertain doubt
    cdef int64_t n_lower, n_upper, n
    cdef Total total
    doubt.left.least = doubt.left.most = doubt.right.least = doubt.right.most = doubt.n = 0
    doubt.above = doubt.below = doubt.least = doubt.most = doubt.m2 = 0.0
    if item.column != NO_COLUMN:
        column = &view.columns[item.column]
    if edges.left != NULL:
        _part(&doubt.left, column, edges.left, edges)
    if edges.right != NULL and edges.right != edges.left:
        _part(&doubt.right, column, edges.right, edges)
    n = sure[WIDE_COUNT if column == NULL else column.n_at].i
    n_lower = n + doubt.left.least + doubt.right.least
    n_upper = n + doubt.left.most + doubt.right.most
    if n_upper == 0:
        put_nothing(out, item)
        return
    if column != NULL:
        _doubt(&doubt, column, &doubt.left)
        _doubt(&doubt, column, &doubt.right)
    if item.aggregate == AGG_COUNT:
        put_value(out, item, (<double>n_lower + <double>n_upper) / 2.0, <double>n_lower, <double>n_upper)
    elif item.aggregate == AGG_SUM:
        total = total_of(&sure[column.sum_at], n)
        if doubt.above == 0.0 and doubt.below == 0.0:
            _put_total(out, item, &total)
        else:
            put_summed(out, item, total.high + (doubt.above - doubt.below) / 2.0,
                       total_least(&total, doubt.below), total_most(&total, doubt.above))
    elif n_lower == 0:
        put_unavailable(out, item)           # perhaps there is a number, perhaps there is none
    elif item.aggregate == AGG_MEAN:
        _read_mean(out, item, column, sure, &doubt)
    elif item.aggregate == AGG_MIN or item.aggregate == AGG_MAX:
        _read_extreme(out, item, column, sure, &doubt)
    elif item.aggregate == AGG_INTERVAL_MEAN or item.aggregate == AGG_INTERVAL_CV:
        if n_upper < 2:
            put_value(out, item, NAN, NAN, NAN)
        elif n_lower < 2:
            put_unavailable(out, item)
        else:
            _read_intervals(out, item, column, sure, &doubt, n_lower, n_upper)
    elif item.aggregate == AGG_STDDEV:
        _read_stddev(out, item, column, sure, &doubt)
    elif item.aggregate == AGG_FIRST or item.aggregate == AGG_LAST:
        _read_end(out, item, column, sure, &doubt)
    else:
        _read_since(out, item, column, sure, edges, &doubt)


ctypedef struct Past:            # of a lifetime's events what its log says, at a time before the newest
    Word before[MAX_WIDE_WORDS]  # entries that lie wholly before that time, as far back as they are sure
    Word after[MAX_WIDE_WORDS]   # entries behind it: all of them are kept
    Edges edges                  # right: the merged entry across it; left is none
    int64_t latest               # what is in none of these was at most so late
    bint made
    bint open                    # not all behind it is kept, or some may be of a lifetime that had ended


cdef void _look_back(const Arena* arena, const LogHead* log, const ViewC* view, const ReadAt* when,
                     int64_t sure_from, Past* past) noexcept nogil:
    cdef Entries entries = _entries(arena, log, view)
    cdef uint32_t first, until
    _wide_clear(view, past.before)
    _wide_clear(view, past.after)
    memset(&past.edges, 0, sizeof(Edges))
    past.edges.lo = -FAR_MS - 1
    past.edges.hi = when.last_ms
    past.edges.at = when.at_ms
    past.made = True
    past.open = when.last_ms + 1 < sure_from
    past.latest = when.last_ms if past.open else sure_from - 1
    first = _count_until(&entries, sure_from - 1)
    until = _count_until(&entries, when.last_ms)
    if until < entries.n:
        _add_entries(view, past.after, &entries, until, entries.n)
    if until and entries.wide and _last_of(&entries, until - 1) > when.last_ms:
        until -= 1
        past.edges.right = entries.words + <size_t>until * entries.stride
        past.open |= first > until
    if until > first:
        _add_entries(view, past.before, &entries, first, until)
    if first and entries.wide and first <= until and _last_of(&entries, first - 1) > past.latest:
        past.latest = _last_of(&entries, first - 1)


cdef inline void _add_entries(const ViewC* view, Word* into, const Entries* entries, uint32_t begin,
                              uint32_t end) noexcept nogil:
    """Of begin < end, into an entry that is empty."""
    if entries.wide:
        _add_wide(view, into, entries.words + <size_t>begin * entries.stride, end - begin)
    else:
        _add_raw(view, into, entries.words + <size_t>begin * entries.stride, end - begin)


ctypedef struct Rest:            # of one column of a lifetime, less what came later and the entry across
    int64_t n                    # so many events
    int64_t n_all                # of so many of the whole lifetime
    Total total                  # what they sum to


cdef inline void _rest(Rest* rest, const ColumnC* column, const Word* life, const Past* past) noexcept nogil:
    cdef const Word* across = past.edges.right
    cdef size_t at = WIDE_COUNT if column == NULL else column.n_at
    cdef Total later
    rest.n_all = life[at].i
    rest.n = life[at].i - past.after[at].i - (across[at].i if across != NULL else 0)
    rest.total.high = rest.total.low = rest.total.off = 0.0
    if column == NULL or column.sum_at == 0 or rest.n <= 0:
        return
    rest.total = total_of(&life[column.sum_at], life[at].i)
    later = total_of(&past.after[column.sum_at], past.after[at].i)
    total_less(&rest.total, &later)
    if across != NULL:
        later = total_of(&across[column.sum_at], across[at].i)
        total_less(&rest.total, &later)


cdef void _read_past(const ViewC* view, const ItemC* item, const Word* life, const Past* past,
                     const Outputs* out) noexcept nogil:
    """A lifetime as of a time before its newest event: all of it, less what the log says came later. Where
    the log has all that is left, that says it exactly. Else what is subtracted was rounded, and what is gone
    from the log may be anything that the lifetime has room for."""
    cdef const ColumnC* column = NULL
    cdef const Word* before = past.before
    cdef Part part
    cdef Rest rest
    cdef int64_t n_lower, n_upper
    cdef double lower, upper, least = 0.0, most = 0.0
    memset(&part, 0, sizeof(part))
    if item.column != NO_COLUMN:
        column = &view.columns[item.column]
    _rest(&rest, column, life, past)
    if past.open or rest.n < before[WIDE_COUNT if column == NULL else column.n_at].i:
        put_unavailable(out, item)
        return
    if rest.n == before[WIDE_COUNT if column == NULL else column.n_at].i:
        _read_item(view, item, before, &past.edges, out)
        return
    if past.edges.right != NULL:
        _part(&part, column, past.edges.right, &past.edges)
    n_lower = rest.n + part.least
    n_upper = rest.n + part.most
    if item.aggregate == AGG_COUNT:
        put_value(out, item, (<double>n_lower + <double>n_upper) / 2.0, <double>n_lower, <double>n_upper)
    elif item.aggregate == AGG_SUM or item.aggregate == AGG_MEAN:
        if part.most:
            signs_most(&past.edges.right[column.sum_at], past.edges.right[column.n_at].i, &most, &least)
        _read_past_sum(item, column, life, past, &rest, &part, least, most, out)
    elif item.aggregate == AGG_FIRST:
        put_value(out, item, life[column.first_at].f, life[column.first_at].f, life[column.first_at].f)
    elif item.aggregate == AGG_SINCE_FIRST:
        lower = <double>(past.edges.at - life[WIDE_FIRST if column == NULL else column.first_at + 1].i)
        put_value(out, item, lower, lower, lower)
    elif item.aggregate == AGG_STDDEV:
        _read_past_stddev(item, column, life, past, &rest, &part, out)
    elif item.aggregate == AGG_MIN or item.aggregate == AGG_MAX:
        _read_past_extreme(item, column, life, past, out)
    elif before[WIDE_COUNT if column == NULL else column.n_at].i or part.least:
        _read_item(view, item, before, &past.edges, out)         # the last one is in the log
    elif item.aggregate == AGG_LAST:
        lower = life[column.extremes_at].f
        upper = life[column.extremes_at + 1].f
        put_value(out, item, lower + (upper - lower) / 2.0, lower, upper)
    else:
        lower = <double>(past.edges.at - (part.last_to if part.most else past.latest))
        upper = <double>(past.edges.at - life[WIDE_FIRST].i)
        put_value(out, item, lower + (upper - lower) / 2.0, lower, upper)


cdef inline void _read_past_sum(const ItemC* item, const ColumnC* column, const Word* life, const Past* past,
                                const Rest* rest, const Part* part, double below, double above,
                                const Outputs* out) noexcept nogil:
    """below, above: what the entry across the time takes from the sum, and adds, at most."""
    cdef Total total = rest.total, joined
    cdef double value, lower, upper, end
    cdef double least = life[column.extremes_at].f, most = life[column.extremes_at + 1].f
    if item.aggregate == AGG_SUM:
        value = total_value(&total, &lower, &upper)
        if part.most:
            value += (above - below) / 2.0
            lower = total_least(&total, below)
            upper = total_most(&total, above)
        if life[column.sum_at + 1].f == 0.0 and lower < 0.0:
            lower = 0.0                      # of what is not below 0
        if life[column.sum_at].f == 0.0 and upper > 0.0:
            upper = 0.0
        put_summed(out, item, value, lower, upper)
        return
    total = total_share(&total, <double>rest.n)
    value = total_value(&total, &lower, &upper)
    if part.most:                            # as _read_mean
        joined = _joined_mean(&rest.total, rest.n, part.most, past.edges.right[column.extremes_at].f)
        end = total_least(&joined, 0.0)
        if not end >= lower:
            lower = end
        joined = _joined_mean(&rest.total, rest.n, part.most, past.edges.right[column.extremes_at + 1].f)
        end = total_most(&joined, 0.0)
        if not end <= upper:
            upper = end
    put_summed(out, item, value, lower if lower > least else least, upper if upper < most else most)


cdef inline void _read_past_extreme(const ItemC* item, const ColumnC* column, const Word* life,
                                    const Past* past, const Outputs* out) noexcept nogil:
    """It is the lifetime's own, unless what came later has it as well: then perhaps what the log has."""
    cdef size_t at = column.extremes_at + (item.aggregate == AGG_MAX)
    cdef const Word* across = past.edges.right
    cdef bint later = ((past.after[column.n_at].i > 0 and past.after[at].f == life[at].f)
                       or (across != NULL and across[column.n_at].i > 0 and across[at].f == life[at].f))
    cdef double own = life[at].f, other = life[column.extremes_at + (item.aggregate == AGG_MIN)].f, value
    value = own + (other - own) / 2.0
    if not later:
        other = value = own
    elif past.before[column.n_at].i:
        other = value = past.before[at].f
    if item.aggregate == AGG_MIN:
        put_value(out, item, value, own, other)
    else:
        put_value(out, item, value, other, own)


cdef inline void _read_past_stddev(const ItemC* item, const ColumnC* column, const Word* life,
                                   const Past* past, const Rest* rest, const Part* part,
                                   const Outputs* out) noexcept nogil:
    """The sum of squares that is left is what the lifetime has, less what came later has about its own mean
    and what the two means are apart. It is at least what the log has of it, and at most n quarters of the
    squared range (Popoviciu). Means are rounded by at most so many ulps of the greatest magnitude."""
    cdef double least = life[column.extremes_at].f, most = life[column.extremes_at + 1].f
    cdef double scale = _scale(least, most), range_ = most * scale - least * scale
    cdef double n_all = <double>rest.n_all, n = <double>rest.n, k = <double>past.after[column.n_at].i
    cdef double n_most = n + <double>part.most
    cdef double mean = life[column.moments_at].f * scale, m2 = life[column.moments_at + 1].f
    cdef double kept = 0.0, later = 0.0, apart = 0.0, off, lower, upper
    if past.before[column.n_at].i:
        kept = _scaled(past.before[column.moments_at + 1].f, _scale(
            past.before[column.extremes_at].f, past.before[column.extremes_at + 1].f), scale) / ROUNDED_UP
    upper = range_ * range_ / 4.0
    if past.edges.right != NULL and past.edges.right[column.n_at].i:
        put_summed(out, item, sqrt(m2 / n_all) / scale, sqrt(kept / n_most) / scale, sqrt(upper) / scale)
        return
    if k > 0:
        later = _scaled(past.after[column.moments_at + 1].f, _scale(
            past.after[column.extremes_at].f, past.after[column.extremes_at + 1].f), scale)
        apart = (past.after[column.moments_at].f * scale - mean) * (n_all / n)
    off = fabs(least * scale) if fabs(least) > fabs(most) else fabs(most * scale)
    off *= ULP * n_all * (n_all / n)
    off = ULP * n_all * (m2 + later) + 4.0 * (range_ + off) * off * k
    m2 -= later + apart * apart * (k * n / n_all)
    upper *= n * ROUNDED_UP
    if m2 + off < upper:
        upper = m2 + off
    lower = m2 - off if m2 - off > kept else kept
    if lower > upper:
        lower = upper
    put_summed(out, item, sqrt(m2 / n) / scale if m2 > 0.0 else 0.0, sqrt(lower / n) / scale,
               sqrt(upper / n) / scale)


cdef inline void _read_lifetime(const Arena* arena, const LogHead* head, const LogHead* log,
                                const ViewC* view, const ReadAt* when, const ItemC* item, Past* past,
                                const Outputs* out) noexcept nogil:
    cdef Entries entries = _entries(arena, head, view)
    cdef Edges edges
    out.statuses[item.out] = STATUS_PRESENT
    out.coverage[item.out] = 1.0
    if when.now_ms != UNSET_MS and when.at_ms < when.now_ms - view.lifetime_idle_ms:
        put_unavailable(out, item)          # what has ended since had not, then
        return
    if (view.since_ms != -FAR_MS or when.at_ms > when.seen_ms or when.came_later
            or (when.holes != NULL and holes_since(when.holes, _lifetime_horizon(view, when.now_ms)))):
        out.statuses[item.out] = STATUS_WARMING
        out.coverage[item.out] = 0.0
    if (entries.n == 0 or log_expired(arena, head, view, when.now_ms)
            or when.last_ms < entries.words[WIDE_FIRST].i):
        put_nothing(out, item)
    elif when.last_ms >= entries.words[WIDE_LAST].i:
        memset(&edges, 0, sizeof(edges))
        edges.hi = when.last_ms
        edges.at = when.at_ms
        _read_item(view, item, entries.words, &edges, out)
    else:
        if not past.made:
            _look_back(arena, log, view, when, _sure_from(view, when), past)
        _read_past(view, item, entries.words, past, out)


cdef inline int64_t _sure_from(const ViewC* view, const ReadAt* when) noexcept nogil:
    """From when on the log has every event, and none of a lifetime that had ended: such may be dated ahead of
    the clock at which that was last fed."""
    cdef int64_t horizon = view_horizon(view, when.now_ms)
    cdef int64_t ended = _lifetime_horizon(view, when.now_ms) + (when.seen_ms - when.now_ms)
    return ended if ended > horizon else horizon


cdef void judge(const ViewC* view, const ReadAt* when, const ItemC* item, int64_t lo, int64_t hi,
                const Outputs* out) noexcept nogil:
    """Status and coverage as far as they do not depend on what the log holds: of the milliseconds in (lo, hi]
    the share that the view has surely seen (2.14), and of it what found room for the key (2.19)."""
    cdef int64_t since = view.since_ms if view.since_ms != UNSET_MS else when.first_now_ms
    cdef int64_t first, last, seen
    cdef float share
    out.coverage[item.out] = 1.0
    out.statuses[item.out] = STATUS_PRESENT
    if when.now_ms != UNSET_MS and lo < when.now_ms - view.keep_ms:
        out.statuses[item.out] = STATUS_UNAVAILABLE
        out.coverage[item.out] = 0.0
        return
    if since < view.floor_ms and since != UNSET_MS:
        since = view.floor_ms                # what was older went before its windows were made longer
    first = lo + 1 if lo + 1 > since else since
    last = hi if hi < when.seen_ms else when.seen_ms
    if since == UNSET_MS or when.seen_ms == UNSET_MS or last < first:
        out.statuses[item.out] = STATUS_WARMING
        out.coverage[item.out] = 0.0
        return
    seen = last - first + 1
    if when.holes != NULL:
        seen -= holes_lost_ms(when.holes, when.born, first, last)
    if seen < hi - lo:
        share = <float>(<double>seen / <double>item.window_ms)
        out.statuses[item.out] = STATUS_WARMING
        out.coverage[item.out] = share if share < 1.0 else ALL_BUT_LITTLE


cdef void judge_fading(const ViewC* view, const ReadAt* when, const ItemC* item,
                       const Outputs* out) noexcept nogil:
    judge(view, when, item, when.at_ms - item.window_ms, when.at_ms, out)
    if (out.statuses[item.out] == STATUS_PRESENT and when.holes != NULL
            and holes_lost_ms(when.holes, when.born, when.at_ms - view.keep_ms, when.at_ms)):
        out.statuses[item.out] = STATUS_WARMING
        out.coverage[item.out] = ALL_BUT_LITTLE


cdef inline bint _sums_only(const ColumnC* column) noexcept nogil:
    return column.sum_at != 0 and not (column.extremes_at or column.moments_at or column.first_at
                                       or column.last_at or column.gaps_at)


cdef void _add_raw(const ViewC* view, Word* sure, const Word* raw, uint32_t n) noexcept nogil:
    """Adds n > 0 events that all lie before `sure`. Column after column, so that the common ones are a tight
    loop; the others each from their newest to their oldest."""
    cdef size_t stride = view.raw_words
    cdef const ColumnC* column
    cdef const Word* at
    cdef Sum sum
    cdef uint16_t j
    if sure[WIDE_COUNT].i == 0:
        sure[WIDE_LAST].i = raw[(n - 1) * stride].i
    sure[WIDE_FIRST].i = raw[0].i
    sure[WIDE_COUNT].i += n
    for j in range(view.n_columns):
        column = &view.columns[j]
        at = raw + n * stride
        if column.filter < 0 and column.value >= 0 and _sums_only(column):
            sum = sum_open(&sure[column.sum_at])
            sum_add_some(&sum, raw + 1 + column.value, stride, n, &sure[column.n_at].i)
            sum_close(&sum, &sure[column.sum_at])
            continue
        while at != raw:
            at -= stride
            _column_add(column, sure, at, at[1 + view.n_values].u if view.n_filters else 0, True)


cdef void _add_wide(const ViewC* view, Word* sure, const Word* wide, uint32_t n) noexcept nogil:
    """_add_raw of n > 0 merged entries: the same as _wide_merge, one after the other."""
    cdef size_t stride = view.wide_words
    cdef const ColumnC* column
    cdef const Word* at = wide + (n - 1) * stride
    cdef Sum sum
    cdef int64_t counted
    cdef uint16_t j
    if sure[WIDE_COUNT].i == 0:
        memcpy(sure, at, stride * sizeof(Word))
        n -= 1
        if n == 0:
            return
    sure[WIDE_FIRST].i = wide[WIDE_FIRST].i
    at = wide + n * stride
    counted = sure[WIDE_COUNT].i
    while at != wide:
        at -= stride
        counted += at[WIDE_COUNT].i
    sure[WIDE_COUNT].i = counted
    for j in range(view.n_columns):
        column = &view.columns[j]
        at = wide + n * stride
        if _sums_only(column):
            sum = sum_open(&sure[column.sum_at])
            sum_join_some(&sum, wide + column.sum_at, wide + column.n_at, stride, n, &sure[column.n_at].i)
            sum_close(&sum, &sure[column.sum_at])
            continue
        while at != wide:
            at -= stride
            _column_merge(column, sure, at)


cdef void view_read(const Arena* arena, const LogHead* log, const LogHead* lifetime, const ViewC* view,
                    const ReadAt* when, const ItemC* items, uint32_t n_items,
                    const Outputs* out) noexcept nogil:
    cdef Word sure[MAX_WIDE_WORDS]
    cdef Entries entries = _entries(arena, log, view)
    cdef int64_t horizon = view_horizon(view, when.now_ms), lo
    cdef uint32_t i, left                # entries left to scan: the next one is entries[left - 1]
    cdef uint32_t outside                # how many of those begin before the window
    cdef Edges edges
    cdef Past past
    cdef const Word* entry
    past.made = False
    memset(&edges, 0, sizeof(edges))
    edges.at = when.at_ms - view.offset_ms
    edges.hi = edges.at if edges.at < when.last_ms else when.last_ms
    left = _count_until(&entries, edges.hi)
    _wide_clear(view, sure)
    if left and entries.wide:
        entry = entries.words + <size_t>(left - 1) * entries.stride
        if entry[WIDE_LAST].i > edges.hi:
            edges.right = entry
            left -= 1
    for i in range(n_items):
        if items[i].window_ms == 0:
            _read_lifetime(arena, lifetime, log, view, when, &items[i], &past, out)
            continue
        lo = edges.at - items[i].window_ms
        judge(view, when, &items[i], lo, edges.at, out)
        if out.statuses[items[i].out] == STATUS_UNAVAILABLE:
            put_unavailable(out, &items[i])
            continue
        if lo < horizon - 1:
            lo = horizon - 1                 # what is older is absent, whether or not it was freed
        edges.lo = lo
        edges.left = NULL
        if edges.right != NULL and edges.right[WIDE_LAST].i <= lo:
            edges.right = NULL
        if edges.right != NULL and edges.right[WIDE_FIRST].i <= lo:
            edges.left = edges.right
        if left and edges.left == NULL:
            entries.n = left
            outside = _count_until(&entries, lo)
            if outside < left:
                entry = entries.words + <size_t>outside * entries.stride
                if entries.wide:
                    _add_wide(view, sure, entry, left - outside)
                else:
                    _add_raw(view, sure, entry, left - outside)
                left = outside
            if left and entries.wide:
                entry = entries.words + <size_t>(left - 1) * entries.stride
                if entry[WIDE_LAST].i > lo:
                    edges.left = entry
        _read_item(view, &items[i], sure, &edges, out)


# -- bytes ---------------------------------------------------------------------------------------------------

cdef uint8_t _layout(const ViewC* view) noexcept nogil:
    """Of merged entries, as they are written; of a lifetime's besides LAYOUT_FED."""
    cdef uint8_t layout = LAYOUT_LOST if view.n_sums else 0
    cdef uint16_t i
    for i in range(view.n_columns):
        if view.columns[i].moments_at or view.columns[i].gaps_at:
            layout |= LAYOUT_SPREAD
    return layout


cdef inline size_t _written_words(const ViewC* view, uint8_t kind, uint8_t layout) noexcept nogil:
    """Words per entry."""
    if kind == EXPORT_RAW:
        return view.raw_words
    return (view.wide_words - (0 if layout & LAYOUT_LOST else view.n_sums)
            + (1 if kind == EXPORT_LIFETIME and layout & LAYOUT_FED else 0))


cdef void _entry_in(const ViewC* view, Word* entry, const uint8_t* data, uint8_t layout) noexcept nogil:
    """A merged entry from its bytes. What a sum of several values had lost is not known where it was not
    kept."""
    cdef const ColumnC* column
    cdef size_t at = 0, until
    cdef uint16_t i
    if view.n_sums and not layout & LAYOUT_LOST:
        for i in range(view.n_columns):
            column = &view.columns[i]
            if column.sum_at:
                until = column.sum_at + 2
                memcpy(entry + at, data, (until - at) * sizeof(Word))
                data += (until - at) * sizeof(Word)
                entry[until].f = NAN if entry[column.n_at].i > 1 else 0.0
                at = until + 1
    memcpy(entry + at, data, (view.wide_words - at) * sizeof(Word))


cdef inline double _positive(double x) noexcept nogil:
    return x if x > 0.0 else 0.0


cdef void _from_layout_0(const ViewC* view, Word* entry) noexcept nogil:
    """Squares were not scaled: what left the doubles then is not known. Those of gaps were about 0: what is
    left about their mean is as uncertain as they were rounded."""
    cdef const ColumnC* column
    cdef double scale, m2, squares, rounded
    cdef int64_t n
    cdef uint16_t i
    for i in range(view.n_columns):
        column = &view.columns[i]
        n = entry[column.n_at].i
        if column.moments_at and n:
            scale = _scale(entry[column.extremes_at].f, entry[column.extremes_at + 1].f)
            m2 = entry[column.moments_at + 1].f
            if scale != 1.0:
                m2 = m2 * scale * scale if MADE_OUT < m2 < INFINITY else NAN
            entry[column.moments_at + 1].f = m2
        if column.gaps_at and n:
            squares = 0.0
            if n > 2:
                squares = _mean_gap(entry[column.first_at + 1].i, entry[column.last_at + 1].i, n - 1)
                squares *= squares * <double>(n - 1)
            rounded = ULP * <double>n * entry[column.gaps_at + 1].f
            entry[column.gaps_at].f = _positive(entry[column.gaps_at].f - squares - rounded) if n > 2 else 0.0
            entry[column.gaps_at + 1].f = (
                _positive(entry[column.gaps_at + 1].f - squares + rounded) if n > 2 else 0.0)


cdef size_t log_export_bytes(const Arena* arena, const LogHead* head, const ViewC* view) noexcept nogil:
    cdef Entries entries
    if is_note(head.kind):
        return EXPORT_HEAD_BYTES + ((<size_t>(<uint32_t*>arena_at(arena, head.block))[0] + 7) & ~<size_t>7)
    if head.kind == LOG_LIFETIME:
        return EXPORT_HEAD_BYTES + _lifetime_bytes(view)
    entries = _entries(arena, head, view)
    return EXPORT_HEAD_BYTES + <size_t>entries.n * entries.stride * sizeof(Word)


cdef inline void _export_head(uint8_t* out, uint16_t view_id, uint8_t kind, uint8_t layout, uint32_t n,
                              uint32_t compact_at, uint32_t stride) noexcept nogil:
    memset(out, 0, EXPORT_HEAD_BYTES)
    memcpy(out, &view_id, 2)
    out[2] = kind
    out[3] = layout
    memcpy(out + 4, &n, 4)
    memcpy(out + 8, &compact_at, 4)
    memcpy(out + 12, &stride, 4)


cdef void log_export(const Arena* arena, const LogHead* head, const ViewC* view, uint8_t* out) noexcept nogil:
    cdef Entries entries
    cdef uint32_t n, compact_at = 0
    cdef uint8_t kind = EXPORT_RAW
    if is_note(head.kind):
        n = (<uint32_t*>arena_at(arena, head.block))[0]
        memset(out, 0, log_export_bytes(arena, head, view))
        _export_head(out, head.view_id, head.kind, 0, n, 0, 1)
        memcpy(out + EXPORT_HEAD_BYTES, <char*>arena_at(arena, head.block) + sizeof(uint32_t), n)
        return
    entries = _entries(arena, head, view)
    if head.kind == LOG_LIFETIME:
        _export_head(out, head.view_id, EXPORT_LIFETIME, _layout(view) | LAYOUT_FED, 1, 0,
                     <uint32_t>view.wide_words + 1)
        memcpy(out + EXPORT_HEAD_BYTES, entries.words, _lifetime_bytes(view))
        return
    if entries.wide:
        kind = EXPORT_WIDE
        compact_at = (<LargeLog*>arena_at(arena, head.block)).compact_at
    _export_head(out, head.view_id, kind, _layout(view) if kind != EXPORT_RAW else 0, entries.n, compact_at,
                 entries.stride)
    memcpy(out + EXPORT_HEAD_BYTES, entries.words, <size_t>entries.n * entries.stride * sizeof(Word))


cdef bint _wide_holds(const ViewC* view, const Word* entry) noexcept nogil:
    """Could events have made this merged entry? What reads and merges rely on: counts and the order of
    times."""
    cdef int64_t n = entry[WIDE_COUNT].i, counted
    cdef const ColumnC* column
    cdef uint16_t i
    if n < 1 or n > MANY_EVENTS or not -FAR_MS <= entry[WIDE_FIRST].i <= entry[WIDE_LAST].i <= FAR_MS:
        return False
    for i in range(view.n_columns):
        column = &view.columns[i]
        counted = entry[column.n_at].i
        if counted < 0 or counted > n:
            return False
        if counted == 0:
            continue
        if column.first_at and not (
                entry[WIDE_FIRST].i <= entry[column.first_at + 1].i <= entry[WIDE_LAST].i):
            return False
        if column.last_at and not (
                entry[WIDE_FIRST].i <= entry[column.last_at + 1].i <= entry[WIDE_LAST].i):
            return False
    return True


cdef int _import_lifetime(Arena* arena, LogHead* head, const ViewC* view, uint8_t layout,
                          const uint8_t* data) noexcept nogil:
    cdef Word* entry
    head.kind = LOG_LIFETIME
    head.block = arena_alloc(arena, _lifetime_bytes(view))
    if head.block == 0:
        return -1
    entry = <Word*>arena_at(arena, head.block)
    _entry_in(view, entry, data, layout)
    entry[view.wide_words].i = entry[WIDE_LAST].i
    if layout & LAYOUT_FED:                  # else it was fed no earlier than its newest event
        data += (_written_words(view, EXPORT_LIFETIME, layout) - 1) * sizeof(Word)
        memcpy(&entry[view.wide_words], data, sizeof(Word))
    if not _wide_holds(view, entry) or not -FAR_MS <= entry[view.wide_words].i <= FAR_MS:
        return 1
    if not layout & LAYOUT_SPREAD:
        _from_layout_0(view, entry)
    return 0


cdef int _import_entries(Arena* arena, LogHead* head, const ViewC* view, uint8_t kind, uint8_t layout,
                         uint32_t n, uint32_t compact_at, const uint8_t* data) noexcept nogil:
    """Entries whose size was checked. 0, 1 when no events could have made them, -1 when out of memory."""
    cdef LargeLog* large
    cdef Entries entries
    cdef Word* entry
    cdef size_t n_bytes
    cdef uint32_t i
    if kind == EXPORT_RAW and n <= SMALL_ENTRIES:
        head.kind = LOG_SMALL
        if _small_resize(arena, head, view, n) < 0:
            return -1
        memcpy(arena_at(arena, head.block), data, <size_t>n * view.raw_words * sizeof(Word))
    else:
        n_bytes = <size_t>(n + n // 2 + 8) * _stride(view, kind == EXPORT_WIDE) * sizeof(Word)
        head.block = arena_alloc(arena, sizeof(LargeLog) + n_bytes)
        if head.block == 0:
            return -1
        head.kind = LOG_LARGE
        large = <LargeLog*>arena_at(arena, head.block)
        memset(large, 0, sizeof(LargeLog))
        large.capacity = n + n // 2 + 8
        large.n_entries = n
        large.n_events = n
        large.wide = kind == EXPORT_WIDE
        large.compact_at = compact_at
        if large.wide:
            large.n_events = 0
        else:
            memcpy(large + 1, data, <size_t>n * view.raw_words * sizeof(Word))
    entries = _entries(arena, head, view)
    for i in range(n):
        entry = entries.words + <size_t>i * entries.stride
        if entries.wide:
            _entry_in(view, entry, data, layout)
            data += _written_words(view, kind, layout) * sizeof(Word)
        if i and entry[0].i < _last_of(&entries, i - 1) + entries.wide:
            return 1
        if not entries.wide:
            if not -FAR_MS <= entry[0].i <= FAR_MS:
                return 1
            continue
        if not _wide_holds(view, entry):
            return 1
        if not layout & LAYOUT_SPREAD:
            _from_layout_0(view, entry)
        large.n_events += <uint64_t>entry[WIDE_COUNT].i
        if large.n_events > <uint64_t>MANY_EVENTS:
            return 1
    return 0


cdef int64_t log_import(Arena* arena, LogHead* head, const ViewC* view, const uint8_t* data,
                        size_t n) noexcept nogil:
    cdef uint32_t n_entries, compact_at, stride
    cdef size_t n_bytes, i
    cdef uint8_t kind, layout
    cdef int status
    memset(head, 0, sizeof(LogHead))
    if n < EXPORT_HEAD_BYTES:
        return 0
    memcpy(&head.view_id, data, 2)
    kind = data[2]
    layout = data[3]
    memcpy(&n_entries, data + 4, 4)
    memcpy(&compact_at, data + 8, 4)
    memcpy(&stride, data + 12, 4)
    if compact_at and kind != EXPORT_WIDE:
        return 0
    if layout and (view == NULL or kind == EXPORT_RAW or is_note(kind)
                   or layout & ~(_layout(view) | (LAYOUT_FED if kind == EXPORT_LIFETIME else 0))):
        return 0
    if is_note(kind):
        n_bytes = (<size_t>n_entries + 7) & ~<size_t>7
        if (stride != 1 or n_bytes > n - EXPORT_HEAD_BYTES
                or (kind == LOG_BORN and (head.view_id or n_entries != sizeof(uint64_t)
                                          or all_zero(data + EXPORT_HEAD_BYTES, sizeof(uint64_t))))):
            return 0
        for i in range(n_entries, n_bytes):
            if data[EXPORT_HEAD_BYTES + i]:
                return 0
        head.kind = kind
        head.block = arena_alloc(arena, sizeof(uint32_t) + n_entries)
        if head.block == 0:
            return -1
        memcpy(arena_at(arena, head.block), &n_entries, sizeof(uint32_t))
        memcpy(<char*>arena_at(arena, head.block) + sizeof(uint32_t), data + EXPORT_HEAD_BYTES, n_entries)
        return <int64_t>(EXPORT_HEAD_BYTES + n_bytes)
    if view == NULL or kind > EXPORT_LIFETIME or n_entries == 0:
        return 0
    if stride != _written_words(view, kind, layout):
        return 0
    if kind == EXPORT_LIFETIME and n_entries != 1:
        return 0
    if n_entries > (n - EXPORT_HEAD_BYTES) // (stride * sizeof(Word)):
        return 0
    n_bytes = <size_t>n_entries * stride * sizeof(Word)
    if kind == EXPORT_LIFETIME:
        status = _import_lifetime(arena, head, view, layout, data + EXPORT_HEAD_BYTES)
    else:
        status = _import_entries(arena, head, view, kind, layout, n_entries, compact_at,
                                 data + EXPORT_HEAD_BYTES)
    if status < 0:
        return -1
    if status > 0:
        log_free(arena, head, view)
        return 0
    return <int64_t>(EXPORT_HEAD_BYTES + n_bytes)
