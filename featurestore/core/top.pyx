"""Heaviest values per row and window; top.pxd has the picture, the guarantee and the papers.

Five kinds of function below, in this order: summaries (what a merged entry knows of its values), the small
form, the large form (values, events, merging), the read, and bytes. At the end, Tops: many of them from
Python.

Why missed <= 2 n / c, for an entry of n events and c = n_counters. Write U for `missed`, u(v) for a counter's
n + missed, P for the sum of u(v) - U over the counters. Two things always hold: a counter's missed is at most
U, so P is at most the known events, at most n; and P + c U <= 2 n, from which the claim follows. One event
more adds 1 to n and at most 1 to P. Joining a and b adds both sides: (u_a + U_b) - (U_a + U_b) = u_a - U_a.
Then counters are dropped, in two ways (_shorten):
  light   those with u <= max(n / c, U), which raises U to at most n / c, if at all: P <= n and c U <= n;
  spare   where more than c are left, those with the least u, which raises U to the greatest of theirs: P
          loses what U gains for each of the c that stay, and c U gains c times that.
Last, U is cut to the events that no counter accounts for: c U falls by c times the cut, and P rises by at
most the cut for each of at most c counters. (A counter's missed is stored rounded up to 12 bits, but read as
at most U.)

Why this and not another structure. Measured on prototypes, on one honeypot host's 44,333 attacks (10,114
addresses), 11,549 edits of English Wikipedia by page (9,696) and by user (4,343): mean width of the bounds of
the true ten heaviest, in percent of the window's events, over windows of 2, 10, 33 and 100 % of the events
(each read three times), and the bytes without texts:

                                                              addresses      pages        users
  counters kept whatever they hold: c = 16, edges 5 %        3.3   36 KB   3.2  36 KB   2.6  28 KB
  the same: c = 32, edges 10 %                               1.4   36 KB   1.6  36 KB   1.0  27 KB
  light ones dropped: c = 64, edges 10 % (this file)         1.1   45 KB   0.8  23 KB   0.7  25 KB
  light ones dropped: c = 128, edges 10 %                    0.6   74 KB   0.4  33 KB   0.3  36 KB
  light ones dropped: c = 256, edges 5 %                     0.19 156 KB   0.09 89 KB   0.11 70 KB
  one Space-Saving table of 150 values, each with an
  exponential histogram and, as a step function of time,
  what it may have had before it came in                     0.15 151 KB   0.41 103 KB  0.09 97 KB

Dropping what is certainly light costs nothing where values are spread, as such counters say no more than U
does, so c may be larger for the same bytes. The single table is about as near for the same bytes, and has no
bound for a window shorter than n / (its values): whom it evicts is decided by the longest. Nine tenths of its
bytes are those step functions; left uncounted, 400 values would come to 0.06, 0.09 and 0.03 in 52, 21 and 37
KB, so a coarser way to carry that error, if one is found, would make it the better one. Coarse edges do not
hurt: in the entry at the edge only a value's own count is in doubt. A counter with its own missed, not only
the entry's, keeps a value exact that no part ever lost. A sketch of the whole stream, which answers one
window only, is nearer for fewer bytes: see benches/bench_accuracy.py, beside Apache DataSketches.

The estimate is lower + half of what the edges may add + an eighth of what summaries may have missed. Mean
error of the ten listed on the three streams above and on Zipf 0.99 and 1.3 whose popular values change, in
percent of the events, had it been none: 0.13, 0.03, 0.10, 0.36, 0.38; a tenth: 0.13, 0.07, 0.10, 0.28, 0.33;
a quarter: 0.21, 0.18, 0.14, 0.19, 0.27; half: 0.43, 0.38, 0.28, 0.19, 0.26.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport NAN, frexp
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from featurestore.core.arena cimport (
    Arena, arena_alloc, arena_at, arena_clear, arena_free, arena_init, arena_rounded, fs_prefetch,
)
from featurestore.core.head cimport TOP_LARGE, TOP_SMALL, LogHead
from featurestore.core.pages cimport Pool, pool_clear, pool_init

from featurestore.core.structs import same_structs

same_structs(__name__, top_structs())

from typing import NamedTuple

cdef enum:
    KEPT_COUNTERS = 8            # an entry of at most so many values drops none of them for being light
    SMALL_AGAIN = 8              # a large form of at most so many events, all RAW, becomes small again
    MAX_HEAVY = 2 * TOP_MAX_COUNTERS
    NO_TEXT = 0xFFFF
    NO_SLOT = 0xFFFF             # in an index; also one more than the greatest slot
    FIRST_COMPACT_AT = 8
    FIRST_COLLECT_AT = 48
    STACK_TALLIES = 512
    MAX_TEXTS_BYTES = 1 << 28
    AHEAD = 8                    # adds to fetch memory for

cdef extern from * nogil:
    """
    #define FS_TOP_FULL 4294967294u
    """
    const uint32_t FULL_EVENTS "FS_TOP_FULL"       # no entry counts more


# -- summaries -----------------------------------------------------------------------------------------------

ctypedef struct Heavy:           # a counter, unpacked
    uint32_t n
    uint32_t missed
    uint32_t slot

ctypedef struct Summary:         # a merged entry being made
    int64_t first_ms
    int64_t last_ms
    uint32_t n_events
    uint32_t missed
    uint32_t n_heavy
    Heavy heavy[MAX_HEAVY]       # by slot


cdef inline uint16_t _packed(uint32_t x) noexcept nogil:
    """The least code whose number is at least x: below 4,096 the number itself, then 12 bits and a shift."""
    cdef uint32_t shift = 0
    cdef uint64_t top = x
    if x < 4096:
        return <uint16_t>x
    while top > 4095:
        shift += 1
        top = (<uint64_t>x + ((<uint64_t>1 << shift) - 1)) >> shift
    return <uint16_t>((shift + 1) << 11 | (top & 2047))


cdef inline uint32_t _unpacked(uint16_t code) noexcept nogil:
    cdef uint32_t shift = code >> 11
    cdef uint64_t x = code
    if shift > 1:
        x = (<uint64_t>2048 + (code & 2047)) << (shift - 1)
    return <uint32_t>x if x >> 32 == 0 else <uint32_t>-1


cdef inline uint32_t _missed(const TopEntry* entry, const TopCounter* counter) noexcept nogil:
    cdef uint32_t missed = _unpacked(counter.missed)
    return missed if missed < entry.missed else entry.missed


cdef inline uint64_t _rank(const Heavy* heavy) noexcept nogil:
    """What counters are dropped by, no two alike: the upper count, then the older slot."""
    return (<uint64_t>heavy.n + heavy.missed) << 16 | (NO_SLOT - heavy.slot)


cdef uint64_t _nth_greatest(uint64_t* ranks, uint32_t n, uint32_t nth) noexcept nogil:
    """The nth greatest of n different numbers, nth from 1 (Hoare's selection; it reorders them)."""
    cdef int64_t lo = 0, hi = <int64_t>n - 1, i, j, k = <int64_t>nth - 1
    cdef uint64_t pivot
    while lo < hi:
        pivot = ranks[lo + (hi - lo) // 2]
        i = lo
        j = hi
        while i <= j:
            while ranks[i] > pivot:
                i += 1
            while ranks[j] < pivot:
                j -= 1
            if i <= j:
                ranks[i], ranks[j] = ranks[j], ranks[i]
                i += 1
                j -= 1
        if k <= j:
            hi = j
        elif k >= i:
            lo = i
        else:
            break
    return ranks[k]


cdef void _drop_below(Summary* s, uint64_t rank) noexcept nogil:
    cdef uint32_t i, kept = 0
    cdef uint64_t upper
    for i in range(s.n_heavy):
        if _rank(&s.heavy[i]) >= rank:
            s.heavy[kept] = s.heavy[i]
            kept += 1
        else:
            upper = <uint64_t>s.heavy[i].n + s.heavy[i].missed
            if upper > s.missed:
                s.missed = <uint32_t>upper
    s.n_heavy = kept


cdef void _shorten(Summary* s, const TopC* top) noexcept nogil:
    """Leaves at most n_counters; see the proof above."""
    cdef uint64_t ranks[MAX_HEAVY]
    cdef uint32_t i, light = s.n_events // top.n_counters, known = 0
    # Where every counter may be listed, none is light: of so few different values none is lost.
    if s.n_heavy > KEPT_COUNTERS and top.k < top.n_counters:
        if light < s.missed:
            light = s.missed
        _drop_below(s, (<uint64_t>light + 1) << 16)
    if s.n_heavy > top.n_counters:
        for i in range(s.n_heavy):
            ranks[i] = _rank(&s.heavy[i])
        _drop_below(s, _nth_greatest(ranks, s.n_heavy, top.n_counters))
    for i in range(s.n_heavy):
        known += s.heavy[i].n
    if s.missed > s.n_events - known:
        s.missed = s.n_events - known
    for i in range(s.n_heavy):
        if s.heavy[i].missed > s.missed:
            s.heavy[i].missed = s.missed


cdef inline uint32_t _heavy_place(const Summary* s, uint32_t slot) noexcept nogil:
    """Counters before this slot."""
    cdef uint32_t lo = 0, hi = s.n_heavy, mid
    while lo < hi:
        mid = lo + (hi - lo) // 2
        if s.heavy[mid].slot < slot:
            lo = mid + 1
        else:
            hi = mid
    return lo


cdef void _count(Summary* s, uint32_t slot, const TopC* top) noexcept nogil:
    """Adds one event; the caller sees to n_events and the times, and shortens at the end."""
    cdef uint32_t place = _heavy_place(s, slot)
    if place < s.n_heavy and s.heavy[place].slot == slot:
        s.heavy[place].n += 1
        return
    if s.n_heavy == MAX_HEAVY:
        _shorten(s, top)
        place = _heavy_place(s, slot)
    memmove(&s.heavy[place + 1], &s.heavy[place], (s.n_heavy - place) * sizeof(Heavy))
    s.heavy[place].n = 1
    s.heavy[place].missed = s.missed
    s.heavy[place].slot = slot
    s.n_heavy += 1


cdef void _unpack(Summary* s, const TopEntry* entry, const TopCounter* counters) noexcept nogil:
    cdef uint32_t i
    s.first_ms = entry.first_ms
    s.last_ms = entry.last_ms
    s.n_events = entry.n_events
    s.missed = entry.missed
    s.n_heavy = entry.n_counters
    for i in range(entry.n_counters):
        s.heavy[i].n = counters[i].n
        s.heavy[i].missed = _missed(entry, &counters[i])
        s.heavy[i].slot = counters[i].slot


cdef void _pack(const Summary* s, TopEntry* entry, TopCounter* counters) noexcept nogil:
    """All but entry.at."""
    cdef uint32_t i
    entry.first_ms = s.first_ms
    entry.last_ms = s.last_ms
    entry.n_events = s.n_events
    entry.missed = s.missed
    entry.n_counters = s.n_heavy
    for i in range(s.n_heavy):
        counters[i].n = s.heavy[i].n
        counters[i].slot = <uint16_t>s.heavy[i].slot
        counters[i].missed = _packed(s.heavy[i].missed)


cdef void _join(const Summary* newer, const TopEntry* entry, const TopCounter* counters, const TopC* top,
                Summary* out) noexcept nogil:
    """The summary of both, of an entry that lies before `newer`."""
    cdef uint32_t i = 0, j = 0
    cdef Heavy* heavy
    out.first_ms = entry.first_ms
    out.last_ms = newer.last_ms
    out.n_events = newer.n_events + entry.n_events
    out.missed = newer.missed + entry.missed
    out.n_heavy = 0
    while i < newer.n_heavy or j < entry.n_counters:
        heavy = &out.heavy[out.n_heavy]
        if j == entry.n_counters or (i < newer.n_heavy and newer.heavy[i].slot < counters[j].slot):
            heavy[0] = newer.heavy[i]
            heavy.missed += entry.missed
            i += 1
        elif i == newer.n_heavy or counters[j].slot < newer.heavy[i].slot:
            heavy.n = counters[j].n
            heavy.missed = _missed(entry, &counters[j]) + newer.missed
            heavy.slot = counters[j].slot
            j += 1
        else:
            heavy[0] = newer.heavy[i]
            heavy.n += counters[j].n
            heavy.missed += _missed(entry, &counters[j])
            i += 1
            j += 1
        out.n_heavy += 1
    _shorten(out, top)


# -- the small form ------------------------------------------------------------------------------------------
#
# One block of bytes, because a cold key has a few events and most keys are cold:
#   u8 values; per event, in time order, i64 time and u8 value; per value u64 hash, then the text's length + 1
#   (0: not kept) in one byte below 128, else low 7 bits + 128 and the rest in a second, then the text

ctypedef struct Small:           # unpacked, with room for one more
    uint32_t n_events
    uint32_t n_values
    uint32_t n_texts             # bytes
    int64_t times[TOP_SMALL_EVENTS + 1]
    uint16_t slots[TOP_SMALL_EVENTS + 1]
    uint64_t hashes[TOP_SMALL_EVENTS + 1]
    const char* texts[TOP_SMALL_EVENTS + 1]        # borrowed
    uint16_t n_text[TOP_SMALL_EVENTS + 1]


cdef size_t _small_unpack(const uint8_t* data, uint32_t n_events, Small* small) noexcept nogil:
    """Returns how many bytes it has. The bytes were checked or are our own."""
    cdef const uint8_t* at = data
    cdef uint32_t i, length
    small.n_events = n_events
    small.n_values = at[0]
    small.n_texts = 0
    at += 1
    for i in range(n_events):
        memcpy(&small.times[i], at, 8)
        small.slots[i] = at[8]
        at += 9
    for i in range(small.n_values):
        memcpy(&small.hashes[i], at, 8)
        at += 8
        length = at[0]
        at += 1
        if length >= 128:
            length = (length & 127) | <uint32_t>at[0] << 7
            at += 1
        small.n_text[i] = <uint16_t>(length - 1) if length else NO_TEXT
        small.texts[i] = <const char*>at
        if length:
            at += length - 1
            small.n_texts += length - 1
    return <size_t>(at - data)


cdef size_t _small_bytes(const Small* small) noexcept nogil:
    cdef size_t n_bytes = 1 + <size_t>9 * small.n_events + <size_t>9 * small.n_values + small.n_texts
    cdef uint32_t i
    for i in range(small.n_values):
        if small.n_text[i] != NO_TEXT and small.n_text[i] >= 127:
            n_bytes += 1
    return n_bytes


cdef void _small_pack(const Small* small, uint8_t* out) noexcept nogil:
    cdef uint32_t i, length
    out[0] = <uint8_t>small.n_values
    out += 1
    for i in range(small.n_events):
        memcpy(out, &small.times[i], 8)
        out[8] = <uint8_t>small.slots[i]
        out += 9
    for i in range(small.n_values):
        memcpy(out, &small.hashes[i], 8)
        out += 8
        length = 0 if small.n_text[i] == NO_TEXT else <uint32_t>small.n_text[i] + 1
        if length >= 128:
            out[0] = <uint8_t>(length | 128)
            out[1] = <uint8_t>(length >> 7)
            out += 2
        else:
            out[0] = <uint8_t>length
            out += 1
        if length > 1:
            memcpy(out, small.texts[i], length - 1)
            out += length - 1


cdef void _small_expire(Small* small, int64_t horizon_ms) noexcept nogil:
    """Drops old events and the values that no event has any more."""
    cdef uint16_t moved[TOP_SMALL_EVENTS + 1]
    cdef uint32_t gone = 0, i, kept = 0
    while gone < small.n_events and small.times[gone] < horizon_ms:
        gone += 1
    if gone == 0:
        return
    small.n_events -= gone
    memmove(small.times, &small.times[gone], small.n_events * sizeof(int64_t))
    memmove(small.slots, &small.slots[gone], small.n_events * sizeof(uint16_t))
    memset(moved, 0, sizeof(moved))
    for i in range(small.n_events):
        moved[small.slots[i]] = 1
    small.n_texts = 0
    for i in range(small.n_values):
        if moved[i]:
            moved[i] = <uint16_t>kept
            small.hashes[kept] = small.hashes[i]
            small.texts[kept] = small.texts[i]
            small.n_text[kept] = small.n_text[i]
            if small.n_text[i] != NO_TEXT:
                small.n_texts += small.n_text[i]
            kept += 1
    small.n_values = kept
    for i in range(small.n_events):
        small.slots[i] = moved[small.slots[i]]


cdef inline bint _text_fits(const TopC* top, uint64_t n_texts, uint32_t n_text) noexcept nogil:
    return n_text <= TOP_MAX_TEXT and n_texts + n_text <= top.max_text_bytes


cdef uint32_t _small_slot(Small* small, const TopC* top, uint64_t value_hash, const char* text,
                          uint32_t n_text) noexcept nogil:
    cdef uint32_t slot = 0
    while slot < small.n_values and small.hashes[slot] != value_hash:
        slot += 1
    if slot == small.n_values:
        small.n_values += 1
        small.hashes[slot] = value_hash
        small.n_text[slot] = NO_TEXT
        small.texts[slot] = NULL
    if small.n_text[slot] == NO_TEXT and _text_fits(top, small.n_texts, n_text):
        small.n_text[slot] = <uint16_t>n_text
        small.texts[slot] = text
        small.n_texts += n_text
    return slot


cdef int _small_store(Arena* arena, LogHead* head, const Small* small) noexcept nogil:
    """Writes it to a block of its own and puts that into the head; the head's old block is the caller's."""
    cdef uint32_t block = arena_alloc(arena, _small_bytes(small))
    if block == 0:
        return -1
    _small_pack(small, <uint8_t*>arena_at(arena, block))
    head.block = block
    head.kind = TOP_SMALL
    head.n_small = <uint8_t>small.n_events
    return 0


# -- the large form: its parts -------------------------------------------------------------------------------

cdef inline TopLarge* _large(const Arena* arena, const LogHead* head) noexcept nogil:
    return <TopLarge*>arena_at(arena, head.block)


cdef inline size_t _raw_bytes(uint32_t capacity) noexcept nogil:
    return <size_t>capacity * (sizeof(int64_t) + sizeof(uint16_t))


cdef inline uint32_t _index_size(uint32_t capacity) noexcept nogil:
    cdef uint32_t n = 16
    while n * 2 < capacity * 3:
        n *= 2
    return n


cdef inline size_t _slots_bytes(uint32_t capacity) noexcept nogil:
    return <size_t>capacity * sizeof(TopSlot) + <size_t>_index_size(capacity) * sizeof(uint16_t)


cdef inline int64_t* _times(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <int64_t*>arena_at(arena, large.raw) + large.start_raw


cdef inline uint16_t* _raw_slots(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <uint16_t*>(<int64_t*>arena_at(arena, large.raw) + large.cap_raw) + large.start_raw


cdef inline TopSlot* _slots(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <TopSlot*>arena_at(arena, large.slots)


cdef inline uint16_t* _index(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <uint16_t*>(_slots(arena, large) + large.cap_slots)


cdef inline TopEntry* _entries(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <TopEntry*>arena_at(arena, large.entries)


cdef inline TopCounter* _counters(const Arena* arena, const TopLarge* large) noexcept nogil:
    return <TopCounter*>arena_at(arena, large.counters)


cdef inline uint32_t _roomy(uint32_t n) noexcept nogil:
    return n + n // 4 + 4


cdef int _resize(Arena* arena, uint32_t* block, uint32_t* capacity, uint32_t n_used, uint32_t wanted,
                 size_t item_bytes) noexcept nogil:
    """Moves a block's first n_used items to a block for `wanted`; wanted = 0 frees it."""
    cdef uint32_t new = 0
    if wanted:
        new = arena_alloc(arena, <size_t>wanted * item_bytes)
        if new == 0:
            return -1
        if n_used:
            memcpy(arena_at(arena, new), arena_at(arena, block[0]), <size_t>n_used * item_bytes)
    if block[0]:
        arena_free(arena, block[0], <size_t>capacity[0] * item_bytes)
    block[0] = new
    capacity[0] = wanted
    return 0


cdef int _resize_raw(Arena* arena, TopLarge* large, uint32_t capacity) noexcept nogil:
    cdef uint32_t block = arena_alloc(arena, _raw_bytes(capacity))
    cdef int64_t* times
    if block == 0:
        return -1
    times = <int64_t*>arena_at(arena, block)
    if large.n_raw:
        memcpy(times, _times(arena, large), large.n_raw * sizeof(int64_t))
        memcpy(times + capacity, _raw_slots(arena, large), large.n_raw * sizeof(uint16_t))
    if large.raw:
        arena_free(arena, large.raw, _raw_bytes(large.cap_raw))
    large.raw = block
    large.cap_raw = capacity
    large.start_raw = 0
    return 0


cdef inline uint32_t _index_place(const TopSlot* slots, const uint16_t* index, uint32_t mask,
                                  uint64_t value_hash) noexcept nogil:
    """Where this hash is in the index, or the free place where it belongs."""
    cdef uint32_t i = <uint32_t>value_hash & mask
    while index[i] != NO_SLOT and slots[index[i]].hash != value_hash:
        i = (i + 1) & mask
    return i


cdef int _index_all(Arena* arena, TopLarge* large) noexcept nogil:
    """Makes the index anew. 0, or 1 when two slots have one hash."""
    cdef uint32_t n = _index_size(large.cap_slots), i, place
    cdef TopSlot* slots = _slots(arena, large)
    cdef uint16_t* index = _index(arena, large)
    memset(index, 0xFF, n * sizeof(uint16_t))
    for i in range(large.n_slots):
        place = _index_place(slots, index, n - 1, slots[i].hash)
        if index[place] != NO_SLOT:
            return 1
        index[place] = <uint16_t>i
    return 0


cdef int _resize_slots(Arena* arena, TopLarge* large, uint32_t capacity) noexcept nogil:
    cdef uint32_t block
    if capacity > TOP_MAX_SLOTS:
        capacity = TOP_MAX_SLOTS
    block = arena_alloc(arena, _slots_bytes(capacity))
    if block == 0:
        return -1
    if large.slots:
        memcpy(arena_at(arena, block), _slots(arena, large), <size_t>large.n_slots * sizeof(TopSlot))
        arena_free(arena, large.slots, _slots_bytes(large.cap_slots))
    large.slots = block
    large.cap_slots = capacity
    _index_all(arena, large)
    return 0


cdef int _collect(Arena* arena, TopLarge* large) noexcept nogil:
    """Frees the slots that no event and no counter has, and their texts. The others keep their order."""
    cdef TopSlot* slots = _slots(arena, large)
    cdef uint16_t* raw = _raw_slots(arena, large)
    cdef TopCounter* counters = _counters(arena, large) if large.n_counters else NULL
    cdef uint32_t i, kept = 0, at = 0, texts, cap_texts
    for i in range(large.n_slots):
        slots[i].scratch = 0
    for i in range(large.n_raw):
        slots[raw[i]].scratch = 1
    for i in range(large.n_counters):
        slots[counters[i].slot].scratch = 1
    for i in range(large.n_slots):
        if slots[i].scratch:
            kept += 1
            slots[i].scratch = <uint16_t>kept          # its new place + 1
            if slots[i].n_text != NO_TEXT:
                at += slots[i].n_text
    large.collect_at = kept + kept // 4 + 16
    if kept == large.n_slots:
        return 0
    cap_texts = _roomy(at)
    texts = arena_alloc(arena, cap_texts)
    if texts == 0:
        return -1
    for i in range(large.n_raw):
        raw[i] = slots[raw[i]].scratch - 1
    for i in range(large.n_counters):
        counters[i].slot = slots[counters[i].slot].scratch - 1
    at = 0
    for i in range(large.n_slots):
        if slots[i].scratch == 0:
            continue
        if slots[i].n_text != NO_TEXT and slots[i].n_text:
            memcpy(<char*>arena_at(arena, texts) + at, <char*>arena_at(arena, large.texts) + slots[i].text_at,
                   slots[i].n_text)
            slots[i].text_at = at
            at += slots[i].n_text
        slots[slots[i].scratch - 1] = slots[i]
    large.n_slots = kept
    if large.texts:
        arena_free(arena, large.texts, large.cap_texts)
    large.texts = texts
    large.cap_texts = cap_texts
    large.n_texts = at
    if large.cap_slots > large.collect_at + large.collect_at // 4:
        return _resize_slots(arena, large, large.collect_at)
    _index_all(arena, large)
    return 0


cdef int _keep_text(Arena* arena, TopLarge* large, const TopC* top, TopSlot* slot, const char* text,
                    uint32_t n_text) noexcept nogil:
    if not _text_fits(top, large.n_texts, n_text):
        return 0
    if n_text:
        if large.cap_texts - large.n_texts < n_text:
            if _resize(arena, &large.texts, &large.cap_texts, large.n_texts, _roomy(large.n_texts + n_text),
                       1) < 0:
                return -1
        memcpy(<char*>arena_at(arena, large.texts) + large.n_texts, text, n_text)
    slot.text_at = large.n_texts
    slot.n_text = <uint16_t>n_text
    large.n_texts += n_text
    return 0


cdef int64_t _slot_of(Arena* arena, TopLarge* large, const TopC* top, uint64_t value_hash, const char* text,
                      uint32_t n_text) noexcept nogil:
    """The value's slot, new if need be. -1: out of memory."""
    cdef TopSlot* slots = _slots(arena, large)
    cdef uint16_t* index = _index(arena, large)
    cdef uint32_t place = _index_place(slots, index, _index_size(large.cap_slots) - 1, value_hash), slot
    if index[place] != NO_SLOT:
        slot = index[place]
        if slots[slot].n_text == NO_TEXT and _keep_text(arena, large, top, &slots[slot], text, n_text) < 0:
            return -1
        return slot
    if large.n_slots >= large.collect_at or large.n_slots == TOP_MAX_SLOTS:
        if _collect(arena, large) < 0 or large.n_slots == TOP_MAX_SLOTS:
            return -1                    # the latter cannot be: see top_plan_ok
    if large.n_slots == large.cap_slots:
        if _resize_slots(arena, large, _roomy(large.n_slots)) < 0:
            return -1
    slots = _slots(arena, large)
    index = _index(arena, large)
    slot = large.n_slots
    slots[slot].hash = value_hash
    slots[slot].text_at = 0
    slots[slot].n_text = NO_TEXT
    slots[slot].scratch = 0
    if _keep_text(arena, large, top, &slots[slot], text, n_text) < 0:
        return -1
    index[_index_place(slots, index, _index_size(large.cap_slots) - 1, value_hash)] = <uint16_t>slot
    large.n_slots += 1
    return slot


# -- the large form: its events ------------------------------------------------------------------------------

cdef inline uint32_t _most_entries(const TopC* top) noexcept nogil:
    """At so many entries a compaction runs at the latest."""
    return top.max_entries + top.max_entries // 4 + 8


cdef bint top_plan_ok(const TopC* top) noexcept nogil:
    cdef uint64_t values
    if not 0.0 <= top.max_error <= 0.5 or not 1 <= top.exact_events < TOP_MAX_SLOTS:
        return False
    if not 1 <= top.k <= TOP_MAX_K or top.k > top.n_counters:
        return False
    if not TOP_MIN_COUNTERS <= top.n_counters <= TOP_MAX_COUNTERS:
        return False
    if not 16 <= top.max_entries <= TOP_MAX_SLOTS or top.max_text_bytes > MAX_TEXTS_BYTES:
        return False
    # RAW events, one to come, and the counters of all entries may have a value each.
    values = <uint64_t>(_most_entries(top) + 1) * top.n_counters + top.exact_events + 2
    return values <= TOP_MAX_SLOTS


cdef int _room(Arena* arena, TopLarge* large, uint32_t n_entries, uint32_t n_counters) noexcept nogil:
    """Makes room for so many more of each."""
    n_entries += large.n_entries
    n_counters += large.n_counters
    if n_entries > large.cap_entries and _resize(arena, &large.entries, &large.cap_entries, large.n_entries,
                                                 _roomy(n_entries), sizeof(TopEntry)) < 0:
        return -1
    if n_counters > large.cap_counters and _resize(arena, &large.counters, &large.cap_counters,
                                                   large.n_counters, _roomy(n_counters),
                                                   sizeof(TopCounter)) < 0:
        return -1
    return 0


cdef int _give_back(Arena* arena, TopLarge* large) noexcept nogil:
    """Room that is more than half of what is used, and some, is given back."""
    if large.cap_entries > large.n_entries + large.n_entries // 2 + 16:
        if _resize(arena, &large.entries, &large.cap_entries, large.n_entries,
                   _roomy(large.n_entries) if large.n_entries else 0, sizeof(TopEntry)) < 0:
            return -1
    if large.cap_counters > large.n_counters + large.n_counters // 2 + 16:
        if _resize(arena, &large.counters, &large.cap_counters, large.n_counters,
                   _roomy(large.n_counters) if large.n_counters else 0, sizeof(TopCounter)) < 0:
            return -1
    return 0


cdef void _merge_pass(Arena* arena, TopLarge* large, const TopC* top, double limit) noexcept nogil:
    """One pass from the newest entry to the oldest that merges neighbours, greedily, while together they
    weigh at most limit * what is newer (the exponential histogram's invariant), or are one moment."""
    cdef TopEntry* entries = _entries(arena, large)
    cdef TopCounter* counters = _counters(arena, large)
    cdef uint32_t entry_to = large.n_entries, counter_to = large.n_counters
    cdef uint64_t newer = large.n_raw, n
    cdef int64_t i                       # signed: it counts down past 0
    cdef bint merged = False             # the group is in group[0], and not where it was
    cdef Summary two[2]
    cdef Summary* group = &two[0]
    cdef Summary* other = &two[1]
    cdef Summary* swap
    cdef TopEntry* entry
    # What is packed goes to the end of both arrays; nothing there is still to be read, as a group never has
    # more entries or counters than what it was made of.
    _unpack(group, &entries[large.n_entries - 1], counters + entries[large.n_entries - 1].at)
    for i in range(<int64_t>large.n_entries - 2, -2, -1):
        if i >= 0:
            entry = &entries[i]
            n = <uint64_t>group.n_events + entry.n_events
            if n <= FULL_EVENTS and (<double>n <= limit * <double>newer or entry.first_ms == group.last_ms):
                _join(group, entry, counters + entry.at, top, other)
                swap = group
                group = other
                other = swap
                merged = True
                continue
        entry_to -= 1
        counter_to -= group.n_heavy
        if merged or entry_to != <uint32_t>(i + 1):
            _pack(group, &entries[entry_to], counters + counter_to)
        entries[entry_to].at = counter_to
        newer += group.n_events
        merged = False
        if i >= 0:
            _unpack(group, &entries[i], counters + entries[i].at)
    large.n_entries -= entry_to
    large.n_counters -= counter_to
    memmove(entries, entries + entry_to, <size_t>large.n_entries * sizeof(TopEntry))
    memmove(counters, counters + counter_to, <size_t>large.n_counters * sizeof(TopCounter))
    for i in range(large.n_entries):
        entries[i].at -= counter_to


cdef int _compact(Arena* arena, TopLarge* large, const TopC* top) noexcept nogil:
    cdef double limit = 2.0 * top.max_error
    cdef uint32_t most = _most_entries(top)
    _merge_pass(arena, large, top, limit)
    # At the cap neighbours that weigh little merge though they weigh more than they should.
    while large.n_entries > top.max_entries and limit < 1e15:
        limit = (limit if limit > 1e-4 else 1e-4) * 1.25
        _merge_pass(arena, large, top, limit)
    large.compact_at = large.n_entries + large.n_entries // 4 + FIRST_COMPACT_AT
    if large.compact_at > most:
        large.compact_at = most
    if _collect(arena, large) < 0:
        return -1
    return _give_back(arena, large)


cdef int _fold(Arena* arena, TopLarge* large, const TopC* top) noexcept nogil:
    """Turns the older RAW events into entries as large as the invariant allows."""
    cdef uint32_t n_fold = large.n_raw - top.exact_events // 2, i = 0
    cdef int64_t* times = _times(arena, large)
    cdef uint16_t* slots = _raw_slots(arena, large)
    cdef double limit = 2.0 * top.max_error
    cdef TopEntry* entry
    cdef Summary group
    if _room(arena, large, n_fold, n_fold) < 0:
        return -1
    while i < n_fold:
        group.first_ms = times[i]
        group.n_events = 0
        group.missed = 0
        group.n_heavy = 0
        while True:
            group.n_events += 1
            group.last_ms = times[i]
            _count(&group, slots[i], top)
            i += 1
            if i == n_fold:
                break
            if (<double>(group.n_events + 1) > limit * <double>(large.n_raw - i - 1)
                    and times[i] != group.first_ms):
                break
        _shorten(&group, top)
        entry = _entries(arena, large) + large.n_entries
        entry.at = large.n_counters
        _pack(&group, entry, _counters(arena, large) + large.n_counters)
        large.n_entries += 1
        large.n_counters += group.n_heavy
    large.start_raw += n_fold
    large.n_raw -= n_fold
    if large.n_entries >= large.compact_at:
        return _compact(arena, large, top)
    return _give_back(arena, large)


cdef void _splice(Arena* arena, TopLarge* large, uint32_t after, uint32_t at, int64_t more) noexcept nogil:
    """Moves the counters from `at` on by `more` places, and what the entries from `after` on say of theirs.
    There is room."""
    cdef TopEntry* entries = _entries(arena, large)
    cdef TopCounter* counters = _counters(arena, large)
    cdef uint32_t i
    memmove(counters + at + more, counters + at, <size_t>(large.n_counters - at) * sizeof(TopCounter))
    large.n_counters = <uint32_t>(large.n_counters + more)
    for i in range(after, large.n_entries):
        entries[i].at = <uint32_t>(entries[i].at + more)


cdef void _lose(TopLarge* large, int64_t time_ms) noexcept nogil:
    if large.lost.n == 0 or time_ms < large.lost.first_ms:
        large.lost.first_ms = time_ms
    if large.lost.n == 0 or time_ms > large.lost.last_ms:
        large.lost.last_ms = time_ms
    large.lost.n += 1


cdef int _add_inside(Arena* arena, TopLarge* large, const TopC* top, uint32_t i,
                     uint32_t slot) noexcept nogil:
    """A late event within entry i, which is not full."""
    cdef TopEntry* entry
    cdef TopCounter* counters
    cdef uint32_t lo = 0, hi, mid
    cdef Summary s
    if _room(arena, large, 0, 1) < 0:
        return -1
    entry = _entries(arena, large) + i
    counters = _counters(arena, large) + entry.at
    hi = entry.n_counters
    while lo < hi:
        mid = lo + (hi - lo) // 2
        if counters[mid].slot < slot:
            lo = mid + 1
        else:
            hi = mid
    if lo < entry.n_counters and counters[lo].slot == slot:
        entry.n_events += 1
        counters[lo].n += 1
    elif entry.n_counters < top.n_counters:
        entry.n_events += 1
        entry.n_counters += 1
        _splice(arena, large, i + 1, entry.at + lo, 1)
        counters[lo].n = 1
        counters[lo].slot = <uint16_t>slot
        counters[lo].missed = _packed(entry.missed)
    else:
        _unpack(&s, entry, counters)
        s.n_events += 1
        _count(&s, slot, top)
        _shorten(&s, top)
        _splice(arena, large, i + 1, entry.at + entry.n_counters,
                <int64_t>s.n_heavy - <int64_t>entry.n_counters)
        _pack(&s, entry, counters)
    return 0


cdef int _add_merged(Arena* arena, TopLarge* large, const TopC* top, uint32_t slot,
                     int64_t time_ms) noexcept nogil:
    """A late event, before the last merged one."""
    cdef TopEntry* entries = _entries(arena, large)
    cdef TopCounter* counters
    cdef uint32_t lo = 0, hi = large.n_entries, mid, at
    while lo < hi:
        mid = lo + (hi - lo) // 2
        if entries[mid].first_ms <= time_ms:
            lo = mid + 1
        else:
            hi = mid
    if lo and time_ms <= entries[lo - 1].last_ms:
        if entries[lo - 1].n_events >= FULL_EVENTS:
            _lose(large, time_ms)
            return 1
        return _add_inside(arena, large, top, lo - 1, slot)
    # Between two entries, or before all: one of its own.
    if _room(arena, large, 1, 1) < 0:
        return -1
    entries = _entries(arena, large)
    at = entries[lo].at
    _splice(arena, large, lo, at, 1)
    memmove(entries + lo + 1, entries + lo, <size_t>(large.n_entries - lo) * sizeof(TopEntry))
    large.n_entries += 1
    memset(&entries[lo], 0, sizeof(TopEntry))
    entries[lo].first_ms = entries[lo].last_ms = time_ms
    entries[lo].n_events = 1
    entries[lo].at = at
    entries[lo].n_counters = 1
    counters = _counters(arena, large) + at
    counters.n = 1
    counters.slot = <uint16_t>slot
    counters.missed = 0
    if large.n_entries >= large.compact_at:
        return _compact(arena, large, top)
    return 0


cdef int _add_raw(Arena* arena, TopLarge* large, const TopC* top, uint32_t slot,
                  int64_t time_ms) noexcept nogil:
    cdef uint32_t lo = 0, hi = large.n_raw, mid, capacity
    cdef int64_t* times
    cdef uint16_t* slots
    if large.start_raw + large.n_raw == large.cap_raw:
        if large.start_raw > large.cap_raw // 4 or large.n_raw == top.exact_events:
            times = _times(arena, large)
            slots = _raw_slots(arena, large)
            memmove(times - large.start_raw, times, large.n_raw * sizeof(int64_t))
            memmove(slots - large.start_raw, slots, large.n_raw * sizeof(uint16_t))
            large.start_raw = 0
        if large.n_raw == large.cap_raw or large.start_raw:
            capacity = large.n_raw + large.n_raw // 2 + 8
            if capacity > top.exact_events + 1:
                capacity = top.exact_events + 1        # then they fold
            if _resize_raw(arena, large, capacity) < 0:
                return -1
    times = _times(arena, large)
    slots = _raw_slots(arena, large)
    if hi and times[hi - 1] <= time_ms:
        lo = hi                          # nearly every event is the newest
    while lo < hi:
        mid = lo + (hi - lo) // 2
        if times[mid] <= time_ms:
            lo = mid + 1
        else:
            hi = mid
    memmove(times + lo + 1, times + lo, (large.n_raw - lo) * sizeof(int64_t))
    memmove(slots + lo + 1, slots + lo, (large.n_raw - lo) * sizeof(uint16_t))
    times[lo] = time_ms
    slots[lo] = <uint16_t>slot
    large.n_raw += 1
    if large.n_raw > top.exact_events:
        return _fold(arena, large, top)
    return 0


cdef int _large_add(Arena* arena, LogHead* head, const TopC* top, uint64_t value_hash, const char* text,
                    uint32_t n_text, int64_t time_ms) noexcept nogil:
    cdef TopLarge* large = _large(arena, head)
    cdef int64_t slot = _slot_of(arena, large, top, value_hash, text, n_text)
    if slot < 0:
        return -1
    if large.n_entries and time_ms < _entries(arena, large)[large.n_entries - 1].last_ms:
        return _add_merged(arena, large, top, <uint32_t>slot, time_ms)
    return _add_raw(arena, large, top, <uint32_t>slot, time_ms)


cdef void _large_free(Arena* arena, TopLarge* large) noexcept nogil:
    """The blocks that it owns."""
    if large.raw:
        arena_free(arena, large.raw, _raw_bytes(large.cap_raw))
    if large.slots:
        arena_free(arena, large.slots, _slots_bytes(large.cap_slots))
    if large.texts:
        arena_free(arena, large.texts, large.cap_texts)
    if large.entries:
        arena_free(arena, large.entries, <size_t>large.cap_entries * sizeof(TopEntry))
    if large.counters:
        arena_free(arena, large.counters, <size_t>large.cap_counters * sizeof(TopCounter))


cdef int _large_new(Arena* arena, LogHead* head, uint32_t cap_raw, uint32_t cap_slots) noexcept nogil:
    """An empty one in the head, whose old block is the caller's."""
    cdef TopLarge* large
    cdef uint32_t block = arena_alloc(arena, sizeof(TopLarge))
    if block == 0:
        return -1
    large = <TopLarge*>arena_at(arena, block)
    memset(large, 0, sizeof(TopLarge))
    large.collect_at = FIRST_COLLECT_AT
    large.compact_at = FIRST_COMPACT_AT
    if _resize_raw(arena, large, cap_raw) < 0 or _resize_slots(arena, large, cap_slots) < 0:
        _large_free(arena, large)
        arena_free(arena, block, sizeof(TopLarge))
        return -1
    head.block = block
    head.kind = TOP_LARGE
    head.n_small = 0
    return 0


cdef int _grow_large(Arena* arena, LogHead* head, const TopC* top, const Small* small) noexcept nogil:
    """Puts what a small form held into a large one. The head's old block is the caller's."""
    cdef uint32_t i
    cdef TopLarge* large
    cdef int64_t slot
    if _large_new(arena, head, small.n_events + 1, small.n_values + 1) < 0:
        return -1
    large = _large(arena, head)
    for i in range(small.n_values):
        # A text that was not kept is given as one that is never kept.
        slot = _slot_of(arena, large, top, small.hashes[i], small.texts[i],
                        TOP_MAX_TEXT + 1 if small.n_text[i] == NO_TEXT else small.n_text[i])
        if slot < 0:
            return -1
    for i in range(small.n_events):
        _times(arena, large)[i] = small.times[i]
        _raw_slots(arena, large)[i] = small.slots[i]
    large.n_raw = small.n_events
    return 0


cdef int _large_expire(Arena* arena, LogHead* head, const TopC* top, int64_t horizon_ms) noexcept nogil:
    """Drops what is older; a large form with little left becomes small, or nothing."""
    cdef TopLarge* large = _large(arena, head)
    cdef TopEntry* entries
    cdef TopSlot* slots
    cdef LogHead old = head[0]
    cdef Small small
    cdef uint32_t gone = 0, i, at
    if large.lost.n and large.lost.last_ms < horizon_ms:
        memset(&large.lost, 0, sizeof(TopLost))
    if large.n_entries:
        entries = _entries(arena, large)
        while gone < large.n_entries and entries[gone].last_ms < horizon_ms:
            gone += 1
        if gone:
            at = entries[gone].at if gone < large.n_entries else large.n_counters
            large.n_entries -= gone
            memmove(entries, entries + gone, <size_t>large.n_entries * sizeof(TopEntry))
            _splice(arena, large, 0, at, -<int64_t>at)
            if _give_back(arena, large) < 0:
                return -1
    if large.n_entries == 0:
        gone = 0
        while gone < large.n_raw and _times(arena, large)[gone] < horizon_ms:
            gone += 1
        large.start_raw += gone
        large.n_raw -= gone
        if gone == 0 or large.lost.n:
            return 0
        if large.n_raw == 0:
            top_free(arena, head)
        elif large.n_raw <= SMALL_AGAIN and large.n_raw <= top.exact_events // 2:
            if _collect(arena, large) < 0:
                return -1
            memset(&small, 0, sizeof(Small))
            small.n_events = large.n_raw
            small.n_values = large.n_slots
            small.n_texts = large.n_texts
            memcpy(small.times, _times(arena, large), large.n_raw * sizeof(int64_t))
            memcpy(small.slots, _raw_slots(arena, large), large.n_raw * sizeof(uint16_t))
            slots = _slots(arena, large)
            for i in range(large.n_slots):
                small.hashes[i] = slots[i].hash
                small.n_text[i] = slots[i].n_text
                if slots[i].n_text != NO_TEXT and slots[i].n_text:
                    small.texts[i] = <char*>arena_at(arena, large.texts) + slots[i].text_at
            if _small_store(arena, head, &small) < 0:
                return -1
            top_free(arena, &old)
    return 0


cdef int top_add(Arena* arena, LogHead* head, const TopC* top, uint64_t value_hash, const char* text,
                 uint32_t n_text, int64_t time_ms, int64_t horizon_ms) noexcept nogil:
    cdef LogHead old
    cdef Small small
    cdef uint32_t place, slot
    cdef int status
    if time_ms < horizon_ms:
        return 0
    if head.block and top_expired(arena, head, horizon_ms):
        top_free(arena, head)            # as if it had been swept: nothing of it is to show
    if head.block and head.kind == TOP_LARGE:
        if _large_expire(arena, head, top, horizon_ms) < 0:
            return -1
        if head.kind == TOP_LARGE and head.block:
            return _large_add(arena, head, top, value_hash, text, n_text, time_ms)
    old = head[0]
    small.n_events = small.n_values = small.n_texts = 0
    if old.block:
        _small_unpack(<uint8_t*>arena_at(arena, old.block), old.n_small, &small)
        _small_expire(&small, horizon_ms)
    if small.n_events == TOP_SMALL_EVENTS or small.n_events == top.exact_events:
        status = _grow_large(arena, head, top, &small)
        if status == 0:
            status = _large_add(arena, head, top, value_hash, text, n_text, time_ms)
    else:
        slot = _small_slot(&small, top, value_hash, text, n_text)
        place = small.n_events
        while place and small.times[place - 1] > time_ms:
            place -= 1
        memmove(&small.times[place + 1], &small.times[place], (small.n_events - place) * sizeof(int64_t))
        memmove(&small.slots[place + 1], &small.slots[place], (small.n_events - place) * sizeof(uint16_t))
        small.times[place] = time_ms
        small.slots[place] = <uint16_t>slot
        small.n_events += 1
        status = _small_store(arena, head, &small)
    if old.block and head.block != old.block:
        top_free(arena, &old)
    return status


cdef void top_prefetch(const Arena* arena, const LogHead* head, uint64_t value_hash) noexcept nogil:
    cdef const TopLarge* large
    cdef const uint16_t* index
    if head.block == 0:
        return
    if head.kind == TOP_SMALL:
        fs_prefetch(<const char*>arena_at(arena, head.block) + 64)
        return
    large = _large(arena, head)
    index = _index(arena, large)
    fs_prefetch(&index[value_hash & (_index_size(large.cap_slots) - 1)])
    fs_prefetch(_times(arena, large) + large.n_raw)
    fs_prefetch(_raw_slots(arena, large) + large.n_raw)


cdef bint top_expired(const Arena* arena, const LogHead* head, int64_t horizon_ms) noexcept nogil:
    cdef const uint8_t* data
    cdef const TopLarge* large
    cdef int64_t last_ms
    if head.block == 0:
        return True
    if head.kind == TOP_SMALL:
        data = <const uint8_t*>arena_at(arena, head.block)
        memcpy(&last_ms, data + 1 + 9 * (head.n_small - 1), 8)
        return last_ms < horizon_ms
    large = _large(arena, head)
    if large.lost.n and large.lost.last_ms >= horizon_ms:
        return False
    if large.n_raw:
        return _times(arena, large)[large.n_raw - 1] < horizon_ms
    return large.n_entries == 0 or _entries(arena, large)[large.n_entries - 1].last_ms < horizon_ms


cdef void top_free(Arena* arena, LogHead* head) noexcept nogil:
    cdef Small small
    if head.block and head.kind == TOP_LARGE:
        _large_free(arena, _large(arena, head))
        arena_free(arena, head.block, sizeof(TopLarge))
    elif head.block:
        arena_free(arena, head.block,
                   _small_unpack(<uint8_t*>arena_at(arena, head.block), head.n_small, &small))
    head.block = 0
    head.kind = TOP_SMALL
    head.n_small = 0


cdef int _clone_block(Arena* arena, uint32_t* block, size_t n_bytes) noexcept nogil:
    """Puts a copy in the block's place. The original stays where it was."""
    cdef uint32_t copy
    if block[0] == 0:
        return 0
    copy = arena_alloc(arena, n_bytes)
    if copy:
        memcpy(arena_at(arena, copy), arena_at(arena, block[0]), n_bytes)
    block[0] = copy
    return 0 if copy else -1


cdef int top_clone(Arena* arena, const LogHead* head, LogHead* copy) noexcept nogil:
    cdef Small small
    cdef TopLarge* large
    cdef TopLarge blocks
    cdef int status = 0
    copy[0] = head[0]
    if head.block == 0:
        return 0
    if head.kind == TOP_SMALL:
        return _clone_block(arena, &copy.block,
                            _small_unpack(<uint8_t*>arena_at(arena, head.block), head.n_small, &small))
    if _clone_block(arena, &copy.block, sizeof(TopLarge)) < 0:
        return -1
    large = _large(arena, copy)
    blocks = large[0]
    status |= _clone_block(arena, &blocks.raw, _raw_bytes(blocks.cap_raw))
    status |= _clone_block(arena, &blocks.slots, _slots_bytes(blocks.cap_slots))
    status |= _clone_block(arena, &blocks.texts, blocks.cap_texts)
    status |= _clone_block(arena, &blocks.entries, <size_t>blocks.cap_entries * sizeof(TopEntry))
    status |= _clone_block(arena, &blocks.counters, <size_t>blocks.cap_counters * sizeof(TopCounter))
    large[0] = blocks
    if status < 0:
        top_free(arena, copy)            # blocks that were not made are 0 there
    return status


# -- the read ------------------------------------------------------------------------------------------------

ctypedef struct View:            # what is read, wherever it is kept
    const int64_t* times
    const uint16_t* slots
    uint32_t n_raw
    uint32_t n_values
    const TopEntry* entries
    const TopCounter* counters
    uint32_t n_entries
    const uint64_t* hashes       # every hash_words-th word
    uint32_t hash_words
    TopLost lost

ctypedef struct Tally:           # of one value, over the window so far
    uint64_t lower
    int64_t missed               # what whole summaries may have missed, less the sum of their `missed`
    int64_t doubt                # likewise what the entries at the edges may add

ctypedef struct Sums:            # of one window
    uint64_t n_sure              # events surely inside, of entries that are wholly inside, and RAW
    uint64_t missed              # sum of those entries' `missed`
    uint64_t known               # sum of all values' lower
    uint64_t lower               # events, at least and at most
    uint64_t upper
    uint64_t doubt               # what the entries at the edges may add to a value without a counter there


cdef void _view(const Arena* arena, const LogHead* head, Small* small, View* view) noexcept nogil:
    cdef const TopLarge* large
    memset(view, 0, sizeof(View))
    if head.block == 0:
        return
    if head.kind == TOP_SMALL:
        _small_unpack(<const uint8_t*>arena_at(arena, head.block), head.n_small, small)
        view.times = small.times
        view.slots = small.slots
        view.n_raw = small.n_events
        view.n_values = small.n_values
        view.hashes = small.hashes
        view.hash_words = 1
        return
    large = _large(arena, head)
    view.times = _times(arena, large)
    view.slots = _raw_slots(arena, large)
    view.n_raw = large.n_raw
    view.n_values = large.n_slots
    view.hashes = &_slots(arena, large).hash
    view.hash_words = sizeof(TopSlot) // sizeof(uint64_t)
    view.n_entries = large.n_entries
    if large.n_entries:
        view.entries = _entries(arena, large)
        view.counters = _counters(arena, large)
    view.lost = large.lost


cdef inline void _add_whole(Tally* tallies, Sums* sums, const TopEntry* entry,
                            const TopCounter* counters) noexcept nogil:
    cdef uint32_t i
    sums.n_sure += entry.n_events
    sums.missed += entry.missed
    for i in range(entry.n_counters):
        tallies[counters[i].slot].lower += counters[i].n
        tallies[counters[i].slot].missed -= entry.missed - _missed(entry, &counters[i])
        sums.known += counters[i].n


cdef inline void _add_edge(Tally* tallies, Sums* sums, const TopEntry* entry, const TopCounter* counters,
                           uint32_t outside, int64_t sign) noexcept nogil:
    """Adds (sign 1) or takes away (-1) an entry of which `outside` events, of unknown value, are outside."""
    cdef int64_t most = <int64_t>entry.n_events - outside, missed = entry.missed, n
    cdef uint32_t i
    if missed > most:
        missed = most
    sums.doubt = <uint64_t>(<int64_t>sums.doubt + sign * missed)
    sums.upper = <uint64_t>(<int64_t>sums.upper + sign * most)
    for i in range(entry.n_counters):
        n = <int64_t>counters[i].n + _missed(entry, &counters[i])
        if n > most:
            n = most
        tallies[counters[i].slot].doubt += sign * (n - missed)


cdef inline bint _before(const TopValue* a, const TopValue* b) noexcept nogil:
    """Order of the list."""
    if a.estimate != b.estimate:
        return a.estimate > b.estimate
    if a.lower != b.lower:
        return a.lower > b.lower
    return a.hash < b.hash


cdef inline void _into_greatest(uint64_t* greatest, uint32_t k, uint64_t x) noexcept nogil:
    """Keeps the k greatest, descending."""
    cdef uint32_t at = k
    if x <= greatest[k - 1]:
        return
    at -= 1
    while at and greatest[at - 1] < x:
        greatest[at] = greatest[at - 1]
        at -= 1
    greatest[at] = x


cdef double _log2(double x) noexcept nogil:
    """log2(x) for x > 0 to 5e-16 of itself, by IEEE additions, multiplications and a division, never libm's
    log2, whose last bit differs between machines.

    x is m 2^e with m near 1, and log2(m) = 2 / ln 2 (s + s^3 / 3 + s^5 / 5 ...) with s = (m - 1) / (m + 1),
    whose magnitude is below 0.172: what is left out is below 1e-18 of it.
    """
    cdef int e = 0
    cdef double m = frexp(x, &e), s, z, y
    if m < 0.7071067811865476:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    y = z * (1 / 3.0 + z * (1 / 5.0 + z * (1 / 7.0 + z * (1 / 9.0 + z * (1 / 11.0 + z * (1 / 13.0 + z * (
        1 / 15.0 + z * (1 / 17.0 + z * (1 / 19.0 + z * (1 / 21.0))))))))))
    return <double>e + (s + s * y) * 2.8853900817779268


cdef inline double _x_log_x(double x) noexcept nogil:
    return x * _log2(x) if x > 0.0 else 0.0


cdef inline double _bits(double total, double weighted) noexcept nogil:
    """Entropy of counts with this sum, and this sum of n log2(n)."""
    cdef double bits
    if total <= 0.0:
        return 0.0
    bits = _log2(total) - weighted / total
    return bits if bits > 0.0 else 0.0


cdef double _entropy_lower(const uint64_t* lower, const uint64_t* upper, uint32_t k) noexcept nogil:
    """The least entropy of n[0..k-1] with lower[i] <= n[i] <= upper[i], both descending.

    At the least, the first few are at their upper ends and the others at their lower ones. (Let h be the
    least. S (H - h) = S log S - h S - sum n log n is strictly concave in each n[i], so it is least at a
    corner; were i < j with n[i] at its lower and n[j] at its upper end, then n[i] <= S 2^-h <= n[j],
    exchanging their values stays within the bounds and changes nothing, and by strictness n[i] now is at its
    upper end and n[j] at its lower.)
    """
    cdef double total = 0.0, weighted = 0.0, least, bits
    cdef uint32_t i
    for i in range(k):
        total += <double>lower[i]
        weighted += _x_log_x(<double>lower[i])
    least = _bits(total, weighted) if total > 0.0 else _log2(<double>k)
    for i in range(k):
        total += <double>upper[i] - <double>lower[i]
        weighted += _x_log_x(<double>upper[i]) - _x_log_x(<double>lower[i])
        bits = _bits(total, weighted)
        if total > 0.0 and bits < least:
            least = bits
    return least


ctypedef struct Ends:            # of a count: where it may be, and n log2(n) there
    double lower
    double upper
    double lower_weighted
    double upper_weighted


cdef double _entropy_at(const Ends* ends, uint32_t k, double level, bint* rising) noexcept nogil:
    """Entropy where every count is as near to `level` as it may be, and whether a higher level has more.

    Of the counts at their ends, with sum F and W = sum n log2(n), the entropy rises with the level while
    F log2(level) < W.
    """
    cdef double fixed = 0.0, fixed_weighted = 0.0, log_level = _log2(level), n_free = 0.0
    cdef uint32_t i
    for i in range(k):
        if level <= ends[i].lower:
            fixed += ends[i].lower
            fixed_weighted += ends[i].lower_weighted
        elif level >= ends[i].upper:
            fixed += ends[i].upper
            fixed_weighted += ends[i].upper_weighted
        else:
            n_free += 1.0
    rising[0] = fixed * log_level < fixed_weighted
    return _bits(fixed + n_free * level, fixed_weighted + n_free * level * log_level)


cdef double _entropy_upper(const uint64_t* lower, const uint64_t* upper, uint32_t k) noexcept nogil:
    """The greatest entropy of such n: all as near to one level as they may be. Along the level the entropy
    has one peak (the sets where it is at least h are convex), which halving finds."""
    cdef double lo = <double>upper[k - 1], hi = <double>lower[0], level, most, bits
    cdef Ends ends[TOP_MAX_K]
    cdef bint rising = False
    cdef uint32_t i
    if hi <= lo:
        return _log2(<double>k)          # they may all be equal
    for i in range(k):
        ends[i].lower = <double>lower[i]
        ends[i].upper = <double>upper[i]
        ends[i].lower_weighted = _x_log_x(ends[i].lower)
        ends[i].upper_weighted = _x_log_x(ends[i].upper)
    # Below the least upper end the entropy rises with the level, above the greatest lower end it falls.
    most = _entropy_at(ends, k, hi, &rising)
    if lo > 0.0:
        bits = _entropy_at(ends, k, lo, &rising)
        if bits > most:
            most = bits
    # Once the level is known to a millionth, what the peak is higher is far below a billionth.
    while hi - lo > 1e-6 * hi:
        level = lo + (hi - lo) / 2.0
        bits = _entropy_at(ends, k, level, &rising)
        if bits > most:
            most = bits
        if rising:
            lo = level
        else:
            hi = level
    return most


cdef double _share_upper(uint64_t sure, uint64_t doubt, uint64_t upper, const Sums* sums) noexcept nogil:
    """The greatest share of a value with at most `sure` of the n_sure events, `doubt` at the edges, and
    `upper` in all: what it has at the edges is also in the total."""
    cdef uint64_t least = sums.lower if sums.lower > upper else upper
    cdef double share, other
    if upper == 0:
        return 0.0
    if sure > sums.n_sure:
        sure = sums.n_sure
    share = <double>(sure + doubt) / <double>(sums.n_sure + doubt)
    other = <double>upper / <double>least
    return share if share < other else other


cdef void _read_window(const View* view, const TopC* top, const Tally* tallies, const Sums* sums,
                       TopValue* listed, TopWindow* out) noexcept nogil:
    cdef uint64_t lowers[TOP_MAX_K]
    cdef uint64_t uppers[TOP_MAX_K]
    cdef uint64_t unknown = sums.upper - sums.known, missed, doubt, rest
    cdef uint32_t slot, i, at, k = top.k
    cdef const Tally* tally
    cdef TopValue value
    cdef double share, light, total = 0.0, weighted = 0.0
    memset(out, 0, sizeof(TopWindow))
    out.exact = unknown == 0
    out.total_lower = sums.lower
    out.total_upper = sums.upper
    out.total = <double>sums.lower + <double>(sums.upper - sums.lower) / 2.0
    rest = sums.missed + sums.doubt
    if rest > unknown:
        rest = unknown
    out.rest_upper = rest
    out.share_upper = _share_upper(sums.missed, sums.doubt, rest, sums)
    # A value with at most so many events has no greater share.
    light = out.share_upper * <double>sums.lower * (1.0 - 1e-12)
    for i in range(k):
        lowers[i] = 0
        uppers[i] = rest
    for slot in range(view.n_values):
        tally = &tallies[slot]
        if tally.lower == 0 and tally.missed == 0 and tally.doubt == 0:
            continue                     # as any value that has no slot
        missed = <uint64_t>(<int64_t>sums.missed + tally.missed)
        doubt = <uint64_t>(<int64_t>sums.doubt + tally.doubt)
        value.lower = tally.lower
        value.upper = tally.lower + (missed + doubt if missed + doubt < unknown else unknown)
        if value.upper == 0:
            continue
        value.estimate = <double>value.lower + <double>doubt / 2.0 + <double>missed / 8.0
        if value.estimate > <double>value.upper:
            value.estimate = <double>value.upper
        value.hash = view.hashes[<size_t>slot * view.hash_words]
        value.slot = slot
        if not out.exact:
            _into_greatest(lowers, k, value.lower)
            _into_greatest(uppers, k, value.upper)
            if <double>value.upper > light:
                share = _share_upper(value.lower + missed, doubt, value.upper, sums)
                if share > out.share_upper:
                    out.share_upper = share
                    light = share * <double>sums.lower * (1.0 - 1e-12)
        if out.n_listed == k:
            if not _before(&value, &listed[k - 1]):
                if value.upper > out.rest_upper:
                    out.rest_upper = value.upper
                continue
            if listed[k - 1].upper > out.rest_upper:
                out.rest_upper = listed[k - 1].upper
            out.n_listed -= 1
        at = out.n_listed
        while at and _before(&value, &listed[at - 1]):
            listed[at] = listed[at - 1]
            at -= 1
        listed[at] = value
        out.n_listed += 1
    if sums.upper == 0:
        out.share = out.share_lower = out.share_upper = NAN
        out.entropy = out.entropy_lower = out.entropy_upper = NAN
        return
    for i in range(out.n_listed):
        total += listed[i].estimate
        weighted += _x_log_x(listed[i].estimate)
    out.entropy = _bits(total, weighted)
    if out.n_listed and out.entropy > _log2(<double>out.n_listed):
        out.entropy = _log2(<double>out.n_listed)            # they are even, and rounding said more
    out.share = listed[0].estimate / out.total if out.n_listed and out.total > 0.0 else 0.0
    if out.exact:
        out.share_lower = out.share_upper = out.share
        out.entropy_lower = out.entropy_upper = out.entropy
        return
    if lowers[0] == 0 and sums.lower:
        lowers[0] = 1                    # whatever the heaviest value is, it has an event
    out.share_lower = <double>lowers[0] / <double>sums.upper
    if out.share < out.share_lower:
        out.share = out.share_lower
    if out.share > out.share_upper:
        out.share = out.share_upper
    # Outwards by more than the logarithms round, or the halving stops short of the peak.
    out.entropy_lower = _entropy_lower(lowers, uppers, k) - 1e-9
    out.entropy_upper = _entropy_upper(lowers, uppers, k) + 1e-9
    if sums.upper < k and out.entropy_upper > _log2(<double>sums.upper):
        out.entropy_upper = _log2(<double>sums.upper)        # there are no more values than events
    if out.entropy_lower < 0.0:
        out.entropy_lower = 0.0
    if out.entropy < out.entropy_lower:
        out.entropy = out.entropy_lower
    if out.entropy > out.entropy_upper:
        out.entropy = out.entropy_upper


cdef void _read_view(const View* view, const TopC* top, Tally* tallies, int64_t at_ms, int64_t horizon_ms,
                     const int64_t* windows_ms, uint32_t n_windows, TopValue* listed,
                     TopWindow* out) noexcept nogil:
    cdef uint32_t raw_left = view.n_raw, left = view.n_entries, i, outside
    cdef int64_t lo
    cdef const TopEntry* entry
    cdef const TopEntry* right = NULL    # across the window's newer edge
    cdef const TopEntry* edge            # across its older edge
    cdef Sums sums, window
    memset(tallies, 0, <size_t>view.n_values * sizeof(Tally))
    memset(&sums, 0, sizeof(Sums))
    while raw_left and view.times[raw_left - 1] > at_ms:
        raw_left -= 1
    while left and view.entries[left - 1].first_ms > at_ms:
        left -= 1
    if left and view.entries[left - 1].last_ms > at_ms:
        left -= 1
        right = &view.entries[left]
    for i in range(n_windows):
        lo = at_ms - windows_ms[i]
        if lo < horizon_ms - 1:
            lo = horizon_ms - 1          # what is older is absent, whether or not it was freed
        if lo > at_ms:
            lo = at_ms
        outside = 1
        edge = NULL
        while raw_left and view.times[raw_left - 1] > lo:
            raw_left -= 1
            tallies[view.slots[raw_left]].lower += 1
            sums.known += 1
            sums.n_sure += 1
        if right != NULL and right.first_ms <= lo:
            outside = 2                  # its first and its last event
        while left and outside == 1:
            entry = &view.entries[left - 1]
            if entry.first_ms <= lo:
                if entry.last_ms > lo:
                    edge = entry
                break
            _add_whole(tallies, &sums, entry, view.counters + entry.at)
            left -= 1
        window = sums
        window.lower = window.upper = sums.n_sure
        if lo < at_ms:
            if right != NULL:
                _add_edge(tallies, &window, right, view.counters + right.at, outside, 1)
                window.lower += outside & 1          # the one next to the inside, if there is one
            if edge != NULL:
                _add_edge(tallies, &window, edge, view.counters + edge.at, 1, 1)
                window.lower += 1
            if view.lost.n and view.lost.first_ms <= at_ms and view.lost.last_ms > lo:
                window.upper += view.lost.n
                window.doubt += view.lost.n
        _read_window(view, top, tallies, &window, listed + <size_t>i * top.k, &out[i])
        if lo < at_ms:
            if right != NULL:
                _add_edge(tallies, &window, right, view.counters + right.at, outside, -1)
            if edge != NULL:
                _add_edge(tallies, &window, edge, view.counters + edge.at, 1, -1)


cdef int top_read(const Arena* arena, const LogHead* head, const TopC* top, int64_t at_ms, int64_t horizon_ms,
                  const int64_t* windows_ms, uint32_t n_windows, TopValue* listed,
                  TopWindow* out) noexcept nogil:
    cdef Tally few[STACK_TALLIES]
    cdef Tally* tallies = few
    cdef Small small
    cdef View view
    _view(arena, head, &small, &view)
    if view.n_values > STACK_TALLIES:
        tallies = <Tally*>malloc(<size_t>view.n_values * sizeof(Tally))
        if tallies == NULL:
            return -1
    _read_view(&view, top, tallies, at_ms, horizon_ms, windows_ms, n_windows, listed, out)
    if tallies != few:
        free(tallies)
    return 0


cdef bint top_text(const Arena* arena, const LogHead* head, uint32_t slot, const char** text,
                   uint32_t* n_text) noexcept nogil:
    cdef Small small
    cdef const TopLarge* large
    cdef const TopSlot* value
    text[0] = NULL
    n_text[0] = 0
    if head.block == 0:
        return False
    if head.kind == TOP_SMALL:
        _small_unpack(<const uint8_t*>arena_at(arena, head.block), head.n_small, &small)
        if slot >= small.n_values or small.n_text[slot] == NO_TEXT:
            return False
        text[0] = small.texts[slot]
        n_text[0] = small.n_text[slot]
        return True
    large = _large(arena, head)
    value = _slots(arena, large) + slot
    if slot >= large.n_slots or value.n_text == NO_TEXT:
        return False
    n_text[0] = value.n_text
    if value.n_text:
        text[0] = <const char*>arena_at(arena, large.texts) + value.text_at
    return True


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian, all sizes multiples of 8, padding zero:
#   u16 view_id, u8 kind (TopKind), u8 events (small) or 0, u32 bytes that follow, padding not counted; then
#   small  the block as in memory
#   large  u32 events RAW, u32 slots, u32 entries, u32 counters, u32 collect_at, u32 compact_at,
#          i64 first, i64 last, u64 n of the lost events;
#          i64 time per event RAW;
#          per entry i64 first, i64 last, u32 events, u32 missed, u32 counters, u32 0;
#          per counter, entry by entry, u32 n, u16 slot, u16 missed;
#          per slot u64 hash, u32 bytes of its text (0xFFFF: not kept), u32 0;
#          u16 slot per event RAW; then the texts in the order of slots
# Where a text lies in memory, how much room there is, and the index are not part of it.

cdef enum:
    EXPORT_HEAD_BYTES = 8
    EXPORT_LARGE_BYTES = 48      # the numbers before the arrays
    EXPORT_ENTRY_BYTES = 32
    EXPORT_SLOT_BYTES = 16


cdef inline size_t _padded(size_t n) noexcept nogil:
    return (n + 7) & ~<size_t>7


cdef size_t _export_payload(const Arena* arena, const LogHead* head) noexcept nogil:
    cdef Small small
    cdef const TopLarge* large
    if head.kind == TOP_SMALL:
        return _small_unpack(<const uint8_t*>arena_at(arena, head.block), head.n_small, &small)
    large = _large(arena, head)
    return (EXPORT_LARGE_BYTES + <size_t>large.n_raw * (sizeof(int64_t) + sizeof(uint16_t))
            + <size_t>large.n_entries * EXPORT_ENTRY_BYTES + <size_t>large.n_counters * sizeof(TopCounter)
            + <size_t>large.n_slots * EXPORT_SLOT_BYTES + large.n_texts)


cdef size_t top_export_bytes(const Arena* arena, const LogHead* head) noexcept nogil:
    return EXPORT_HEAD_BYTES + _padded(_export_payload(arena, head))


cdef void top_export(const Arena* arena, const LogHead* head, uint8_t* out) noexcept nogil:
    cdef size_t n_payload = _export_payload(arena, head)
    cdef uint32_t n_bytes = <uint32_t>n_payload, i, number
    cdef const TopLarge* large
    cdef const TopEntry* entries
    cdef const TopSlot* slots
    memset(out, 0, EXPORT_HEAD_BYTES + _padded(n_payload))
    memcpy(out, &head.view_id, 2)
    out[2] = head.kind
    memcpy(out + 4, &n_bytes, 4)
    if head.kind == TOP_SMALL:
        out[3] = head.n_small
        memcpy(out + EXPORT_HEAD_BYTES, arena_at(arena, head.block), n_payload)
        return
    large = _large(arena, head)
    out += EXPORT_HEAD_BYTES
    memcpy(out, &large.n_raw, 4)
    memcpy(out + 4, &large.n_slots, 4)
    memcpy(out + 8, &large.n_entries, 4)
    memcpy(out + 12, &large.n_counters, 4)
    memcpy(out + 16, &large.collect_at, 4)
    memcpy(out + 20, &large.compact_at, 4)
    memcpy(out + 24, &large.lost, sizeof(TopLost))
    out += EXPORT_LARGE_BYTES
    memcpy(out, _times(arena, large), <size_t>large.n_raw * sizeof(int64_t))
    out += <size_t>large.n_raw * sizeof(int64_t)
    if large.n_entries:
        entries = _entries(arena, large)
        for i in range(large.n_entries):
            memcpy(out, &entries[i].first_ms, 8)
            memcpy(out + 8, &entries[i].last_ms, 8)
            memcpy(out + 16, &entries[i].n_events, 4)
            memcpy(out + 20, &entries[i].missed, 4)
            memcpy(out + 24, &entries[i].n_counters, 4)
            out += EXPORT_ENTRY_BYTES
        memcpy(out, _counters(arena, large), <size_t>large.n_counters * sizeof(TopCounter))
        out += <size_t>large.n_counters * sizeof(TopCounter)
    slots = _slots(arena, large)
    for i in range(large.n_slots):
        number = slots[i].n_text
        memcpy(out, &slots[i].hash, 8)
        memcpy(out + 8, &number, 4)
        out += EXPORT_SLOT_BYTES
    memcpy(out, _raw_slots(arena, large), <size_t>large.n_raw * sizeof(uint16_t))
    out += <size_t>large.n_raw * sizeof(uint16_t)
    for i in range(large.n_slots):
        if slots[i].n_text != NO_TEXT and slots[i].n_text:
            memcpy(out, <const char*>arena_at(arena, large.texts) + slots[i].text_at, slots[i].n_text)
            out += slots[i].n_text


cdef bint _small_ok(const uint8_t* data, size_t n, uint32_t n_events, const TopC* top) noexcept nogil:
    """True if these n bytes are a small form of so many events, to the last one."""
    cdef uint64_t hashes[TOP_SMALL_EVENTS]
    cdef uint8_t used[TOP_SMALL_EVENTS]
    cdef size_t at
    cdef uint64_t n_texts = 0
    cdef int64_t t, before = 0
    cdef uint32_t i, j, length, n_values
    if not 1 <= n_events <= TOP_SMALL_EVENTS or n_events > top.exact_events or n < 1 + 9 * <size_t>n_events:
        return False
    n_values = data[0]
    if not 1 <= n_values <= n_events:
        return False
    memset(used, 0, sizeof(used))
    at = 1
    for i in range(n_events):
        memcpy(&t, data + at, 8)
        if (i and t < before) or data[at + 8] >= n_values:
            return False
        used[data[at + 8]] = 1
        before = t
        at += 9
    for i in range(n_values):
        if n - at < 9 or not used[i]:
            return False
        memcpy(&hashes[i], data + at, 8)
        for j in range(i):
            if hashes[j] == hashes[i]:
                return False
        length = data[at + 8]
        at += 9
        if length >= 128:
            if at == n:
                return False
            length = (length & 127) | <uint32_t>data[at] << 7
            at += 1
            if length < 128:
                return False             # it has a shorter way to be written
        if length:
            length -= 1
            n_texts += length
            if length > TOP_MAX_TEXT or length > n - at:
                return False
            at += length
    return at == n and n_texts <= top.max_text_bytes


cdef int _import_entries(const TopC* top, TopLarge* large, TopEntry* entries, TopCounter* counters,
                         const uint8_t* data) noexcept nogil:
    """Copies entries and their counters, whose sizes were checked. 0, or 1 when they cannot be."""
    cdef const uint8_t* at = data
    cdef uint32_t i, j, n_counters = 0, padding
    cdef uint64_t known
    memcpy(counters, data + <size_t>large.n_entries * EXPORT_ENTRY_BYTES,
           <size_t>large.n_counters * sizeof(TopCounter))
    for i in range(large.n_entries):
        memcpy(&entries[i].first_ms, at, 8)
        memcpy(&entries[i].last_ms, at + 8, 8)
        memcpy(&entries[i].n_events, at + 16, 4)
        memcpy(&entries[i].missed, at + 20, 4)
        memcpy(&entries[i].n_counters, at + 24, 4)
        memcpy(&padding, at + 28, 4)
        at += EXPORT_ENTRY_BYTES
        entries[i].at = n_counters
        if padding or not 1 <= entries[i].n_events <= FULL_EVENTS or entries[i].first_ms > entries[i].last_ms:
            return 1
        if entries[i].first_ms < entries[i].last_ms and entries[i].n_events < 2:
            return 1
        if i and entries[i].first_ms < entries[i - 1].last_ms:
            return 1
        if entries[i].n_counters > top.n_counters or entries[i].n_counters > large.n_counters - n_counters:
            return 1
        known = 0
        for j in range(n_counters, n_counters + entries[i].n_counters):
            known += counters[j].n
            if counters[j].n == 0 or counters[j].slot >= large.n_slots:
                return 1
            if j > n_counters and counters[j].slot <= counters[j - 1].slot:
                return 1
        if known > entries[i].n_events or entries[i].missed > entries[i].n_events - known:
            return 1
        n_counters += entries[i].n_counters
    return n_counters != large.n_counters


cdef int _import_large(Arena* arena, LogHead* head, const TopC* top, const uint8_t* data,
                       size_t n) noexcept nogil:
    """n bytes, at least EXPORT_LARGE_BYTES. 0; 1 when they are not a large form; -1 when out of memory. What
    it allocates it leaves in the head."""
    cdef TopLarge* large
    cdef TopLarge read
    cdef TopSlot* slots
    cdef int64_t* times
    cdef uint16_t* raw
    cdef uint64_t wanted, n_texts = 0
    cdef uint32_t i, n_text, padding
    memset(&read, 0, sizeof(TopLarge))
    memcpy(&read.n_raw, data, 4)
    memcpy(&read.n_slots, data + 4, 4)
    memcpy(&read.n_entries, data + 8, 4)
    memcpy(&read.n_counters, data + 12, 4)
    memcpy(&read.collect_at, data + 16, 4)
    memcpy(&read.compact_at, data + 20, 4)
    memcpy(&read.lost, data + 24, sizeof(TopLost))
    data += EXPORT_LARGE_BYTES
    n -= EXPORT_LARGE_BYTES
    if read.n_raw > top.exact_events or read.n_slots > TOP_MAX_SLOTS:
        return 1
    if read.n_entries > _most_entries(top) or read.compact_at > _most_entries(top):
        return 1
    if read.n_counters > read.n_entries * top.n_counters or read.n_slots == 0:
        return 1                         # the product is below 2**32: top_plan_ok
    if read.lost.first_ms > read.lost.last_ms:
        return 1
    if read.lost.n == 0 and (read.lost.first_ms or read.lost.last_ms
                             or (read.n_raw == 0 and read.n_entries == 0)):
        return 1
    # More cannot have been lost: sums of it are not to overflow.
    if read.lost.n >> 56:
        return 1
    wanted = (<uint64_t>read.n_raw * (sizeof(int64_t) + sizeof(uint16_t))
              + <uint64_t>read.n_entries * EXPORT_ENTRY_BYTES + <uint64_t>read.n_counters * sizeof(TopCounter)
              + <uint64_t>read.n_slots * EXPORT_SLOT_BYTES)
    if wanted > n:
        return 1
    if _large_new(arena, head, read.n_raw + 1, read.n_slots) < 0:
        return -1
    large = _large(arena, head)
    if _room(arena, large, read.n_entries, read.n_counters) < 0:
        return -1
    if n > wanted and _resize(arena, &large.texts, &large.cap_texts, 0, <uint32_t>(n - wanted), 1) < 0:
        return -1
    large.n_raw = read.n_raw
    large.n_slots = read.n_slots
    large.n_entries = read.n_entries
    large.n_counters = read.n_counters
    large.collect_at = read.collect_at
    large.compact_at = read.compact_at
    large.lost = read.lost
    times = _times(arena, large)
    raw = _raw_slots(arena, large)
    memcpy(times, data, <size_t>read.n_raw * sizeof(int64_t))
    data += <size_t>read.n_raw * sizeof(int64_t)
    if read.n_entries:
        if _import_entries(top, large, _entries(arena, large), _counters(arena, large), data):
            return 1
        data += <size_t>read.n_entries * EXPORT_ENTRY_BYTES + <size_t>read.n_counters * sizeof(TopCounter)
        if read.n_raw and times[0] < _entries(arena, large)[read.n_entries - 1].last_ms:
            return 1
    slots = _slots(arena, large)
    for i in range(read.n_slots):
        memcpy(&slots[i].hash, data, 8)
        memcpy(&n_text, data + 8, 4)
        memcpy(&padding, data + 12, 4)
        data += EXPORT_SLOT_BYTES
        if padding or (n_text > TOP_MAX_TEXT and n_text != NO_TEXT):
            return 1
        slots[i].text_at = <uint32_t>n_texts
        slots[i].n_text = <uint16_t>n_text
        slots[i].scratch = 0
        if n_text != NO_TEXT:
            n_texts += n_text
    if n_texts != n - wanted or n_texts > top.max_text_bytes or _index_all(arena, large):
        return 1
    memcpy(raw, data, <size_t>read.n_raw * sizeof(uint16_t))
    data += <size_t>read.n_raw * sizeof(uint16_t)
    for i in range(read.n_raw):
        if raw[i] >= read.n_slots or (i and times[i] < times[i - 1]):
            return 1
    large.n_texts = <uint32_t>n_texts
    if n_texts:
        memcpy(arena_at(arena, large.texts), data, n_texts)
    return 0


cdef int64_t top_import(Arena* arena, LogHead* head, const TopC* top, const uint8_t* data,
                        size_t n) noexcept nogil:
    cdef uint32_t n_bytes, i
    cdef uint8_t n_events, kind
    cdef int status = 1
    memset(head, 0, sizeof(LogHead))
    head.kind = TOP_SMALL
    if n < EXPORT_HEAD_BYTES:
        return 0
    memcpy(&head.view_id, data, 2)
    kind = data[2]
    n_events = data[3]
    memcpy(&n_bytes, data + 4, 4)
    if _padded(n_bytes) > n - EXPORT_HEAD_BYTES:
        return 0
    data += EXPORT_HEAD_BYTES
    for i in range(n_bytes, <uint32_t>_padded(n_bytes)):
        if data[i]:
            return 0
    if kind == TOP_SMALL and _small_ok(data, n_bytes, n_events, top):
        head.block = arena_alloc(arena, n_bytes)
        if head.block == 0:
            return -1
        memcpy(arena_at(arena, head.block), data, n_bytes)
        head.n_small = n_events
        status = 0
    elif kind == TOP_LARGE and n_events == 0 and n_bytes >= EXPORT_LARGE_BYTES:
        status = _import_large(arena, head, top, data, n_bytes)
        if status:
            top_free(arena, head)
    if status < 0:
        return -1
    return 0 if status else <int64_t>(EXPORT_HEAD_BYTES + _padded(n_bytes))


# -- many of them --------------------------------------------------------------------------------------------

class Value(NamedTuple):
    """One value of a list; `text` is None where it was not kept."""

    text: bytes | None
    hash: int
    estimate: float
    lower: int
    upper: int


class Window(NamedTuple):
    """One window, as TopWindow; triples are (estimate, lower, upper)."""

    listed: list[Value]
    total: tuple[float, int, int]
    rest_upper: int
    share: tuple[float, float, float]
    entropy: tuple[float, float, float]
    exact: bool


@cython.final
cdef class Tops:
    """Structures 0..n - 1 in one arena, as a shard has them: the kernel by itself, for tests and benches."""
    cdef Pool pool
    cdef Arena arena
    cdef LogHead* heads              # [n], owned
    cdef readonly uint32_t n
    cdef TopC top

    def __cinit__(self, uint32_t n, *, uint16_t k=10, uint16_t n_counters=64, uint32_t exact_events=256,
                  double max_error=0.1, uint32_t max_entries=512, uint32_t max_text_bytes=65536):
        self.top = TopC(max_error, exact_events, max_entries, max_text_bytes, k, n_counters)
        if not top_plan_ok(&self.top):
            raise ValueError("these settings cannot be served: see TopC and top_plan_ok")
        if pool_init(&self.pool) < 0:
            raise MemoryError
        arena_init(&self.arena, &self.pool)
        self.heads = <LogHead*>calloc(n if n else 1, sizeof(LogHead))
        if self.heads == NULL:
            raise MemoryError
        self.n = n

    def __dealloc__(self):
        free(self.heads)
        arena_clear(&self.arena)
        pool_clear(&self.pool)

    cdef LogHead* _head(self, uint32_t which) except NULL:
        if which >= self.n:
            raise IndexError(f"structure {which} of {self.n}")
        return &self.heads[which]

    def add(self, const uint32_t[::1] which not None, const uint64_t[::1] hashes not None,
            const uint32_t[::1] offsets not None, const uint8_t[::1] texts not None,
            const int64_t[::1] times_ms not None, const int64_t[::1] horizons_ms not None):
        """Adds events in order. The i-th text is texts[offsets[i]:offsets[i + 1]]. Returns how many a full
        entry could not count."""
        cdef uint32_t n = <uint32_t>which.shape[0], i, n_lost = 0
        cdef int status = 0
        cdef const char* bytes = <const char*>&texts[0] if texts.shape[0] else NULL
        cdef LogHead* head
        if not (hashes.shape[0] == n == times_ms.shape[0] == horizons_ms.shape[0] == offsets.shape[0] - 1):
            raise ValueError("arrays of different lengths")
        for i in range(n):
            if which[i] >= self.n or not offsets[i] <= offsets[i + 1] <= <size_t>texts.shape[0]:
                raise ValueError(f"event {i} is out of range")
        with nogil:
            for i in range(n):
                if i + 2 * AHEAD < n:
                    fs_prefetch(&self.heads[which[i + 2 * AHEAD]])
                if i + AHEAD < n:
                    head = &self.heads[which[i + AHEAD]]
                    if head.block:
                        fs_prefetch(arena_at(&self.arena, head.block))
                        fs_prefetch(<char*>arena_at(&self.arena, head.block) + 64)
                status = top_add(&self.arena, &self.heads[which[i]], &self.top, hashes[i],
                                 bytes + offsets[i], offsets[i + 1] - offsets[i], times_ms[i], horizons_ms[i])
                if status < 0:
                    break
                n_lost += status
        if status < 0:
            raise MemoryError
        return n_lost

    def read(self, uint32_t which, int64_t at_ms, int64_t horizon_ms, const int64_t[::1] windows_ms not None):
        """One Window per window; they ascend."""
        cdef LogHead* head = self._head(which)
        cdef uint32_t n = <uint32_t>windows_ms.shape[0], i, j, n_text
        cdef TopValue* listed = <TopValue*>malloc((<size_t>n * self.top.k + 1) * sizeof(TopValue))
        cdef TopWindow* out = <TopWindow*>malloc((<size_t>n + 1) * sizeof(TopWindow))
        cdef int status
        cdef const char* text
        cdef TopValue* value
        windows = []
        try:
            if listed == NULL or out == NULL:
                raise MemoryError
            if n:
                with nogil:
                    status = top_read(&self.arena, head, &self.top, at_ms, horizon_ms, &windows_ms[0], n,
                                      listed, out)
                if status < 0:
                    raise MemoryError
            for i in range(n):
                values = []
                for j in range(out[i].n_listed):
                    value = &listed[<size_t>i * self.top.k + j]
                    kept = top_text(&self.arena, head, value.slot, &text, &n_text)
                    values.append(Value(text[:n_text] if n_text else b"" if kept else None, value.hash,
                                        value.estimate, value.lower, value.upper))
                windows.append(Window(
                    values, (out[i].total, out[i].total_lower, out[i].total_upper), out[i].rest_upper,
                    (out[i].share, out[i].share_lower, out[i].share_upper),
                    (out[i].entropy, out[i].entropy_lower, out[i].entropy_upper), bool(out[i].exact)))
        finally:
            free(listed)
            free(out)
        return windows

    def time_reads(self, uint32_t which, int64_t at_ms, int64_t horizon_ms,
                   const int64_t[::1] windows_ms not None, uint32_t times):
        """Reads so often without making anything of it; returns the sum of the totals, for a checksum."""
        cdef LogHead* head = self._head(which)
        cdef uint32_t n = <uint32_t>windows_ms.shape[0]
        cdef TopValue listed[8 * TOP_MAX_K]
        cdef TopWindow out[8]
        cdef double total = 0.0
        if not 1 <= n <= 8:
            raise ValueError("1 to 8 windows")
        with nogil:
            while times:
                if top_read(&self.arena, head, &self.top, at_ms, horizon_ms, &windows_ms[0], n, listed,
                            out) < 0:
                    break
                total += out[n - 1].total
                times -= 1
        return total

    def export(self, uint32_t which):
        """Its bytes; b"" where it is empty."""
        cdef LogHead* head = self._head(which)
        if head.block == 0:
            return b""
        data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>top_export_bytes(&self.arena, head))
        top_export(&self.arena, head, <uint8_t*>PyBytes_AS_STRING(data))
        return data

    def restore(self, uint32_t which, const uint8_t[::1] data not None):
        """Puts it back from bytes, in the place of what is there. Bytes consumed; 0, and it is empty, where
        they are not of such a structure."""
        cdef LogHead* head = self._head(which)
        cdef size_t n = data.shape[0]
        cdef int64_t consumed
        top_free(&self.arena, head)
        consumed = top_import(&self.arena, head, &self.top, &data[0] if n else NULL, n)
        if consumed < 0:
            raise MemoryError
        return consumed

    def clone(self, uint32_t which, uint32_t into):
        """Copies one structure into an other's place."""
        cdef LogHead* target = self._head(into)
        if which == into:
            raise ValueError("a structure is not cloned into itself")
        top_free(&self.arena, target)
        if top_clone(&self.arena, self._head(which), target) < 0:
            raise MemoryError

    def free(self, uint32_t which):
        top_free(&self.arena, self._head(which))

    def expired(self, uint32_t which, int64_t horizon_ms):
        return bool(top_expired(&self.arena, self._head(which), horizon_ms))

    def counts(self, uint32_t which):
        """(events RAW, slots, entries, counters, bytes of texts); a small form has no entries."""
        cdef LogHead* head = self._head(which)
        cdef Small small
        cdef TopLarge* large
        if head.block == 0:
            return 0, 0, 0, 0, 0
        if head.kind == TOP_SMALL:
            _small_unpack(<uint8_t*>arena_at(&self.arena, head.block), head.n_small, &small)
            return small.n_events, small.n_values, 0, 0, small.n_texts
        large = _large(&self.arena, head)
        return large.n_raw, large.n_slots, large.n_entries, large.n_counters, large.n_texts

    def block_bytes(self, uint32_t which):
        """Bytes of all its blocks, as the arena rounds them."""
        cdef LogHead* head = self._head(which)
        cdef Small small
        cdef TopLarge* large
        cdef size_t n
        if head.block == 0:
            return 0
        if head.kind == TOP_SMALL:
            return arena_rounded(_small_unpack(<uint8_t*>arena_at(&self.arena, head.block), head.n_small,
                                               &small))
        large = _large(&self.arena, head)
        n = arena_rounded(sizeof(TopLarge)) + arena_rounded(_raw_bytes(large.cap_raw))
        n += arena_rounded(_slots_bytes(large.cap_slots))
        if large.cap_texts:
            n += arena_rounded(large.cap_texts)
        if large.cap_entries:
            n += arena_rounded(large.cap_entries * sizeof(TopEntry))
        if large.cap_counters:
            n += arena_rounded(large.cap_counters * sizeof(TopCounter))
        return n

    @property
    def used_bytes(self):
        """Bytes of all blocks that are in use."""
        return self.arena.used_bytes


def packed(uint32_t x):
    """(code, number) of what a counter stores for x missed events."""
    cdef uint16_t code = _packed(x)
    return code, _unpacked(code)


def logarithms(const double[::1] numbers not None):
    """Of numbers above 0, to the base 2, as entropies are made of them."""
    return [_log2(numbers[i]) for i in range(numbers.shape[0])]


def entropy_bounds(const uint64_t[::1] lower not None, const uint64_t[::1] upper not None):
    """Least and greatest entropy of counts within these bounds, both descending."""
    cdef uint32_t k = <uint32_t>lower.shape[0]
    if k == 0 or upper.shape[0] != k:
        raise ValueError("arrays of different or no length")
    return _entropy_lower(&lower[0], &upper[0], k), _entropy_upper(&lower[0], &upper[0], k)
