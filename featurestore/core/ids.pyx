"""Ids of accepted events; see ids.pxd for who calls what and when.

Keyed by SipHash with the store's secret: whoever chooses event ids cannot make them collide, nor fill one
bucket. There is a cap, because whoever reaches the port may invent ids: at it a new id refuses its event
(REFUSED_MEMORY) until older ones expire, or become cold.

An entry of the index whose segment was dropped is an empty one: nobody takes it out, and the next id of its
bucket takes its place. Numbers of segments come round after 2^18 (4.3 billion ids of one type at once, where
an hour at 200,000 a second is 0.72): one that was dropped so long ago that its number is in use again makes
an entry lead to some other id, whose fingerprint then says that it is another.

An id may have several entries: where an older one is cold, remembering it does not read whether it is the
same. So whoever asks looks at all that its bucket has, and the latest counts.

Cost: of a new id the index leads to another one in 10^-5 of all look-ups while it grows from nothing, and in
10^-6 once it stays as large (7 entries of 23 bits). Another design, whole 32-bit fingerprints whose low bits
name the bucket, has 2^-4 of that left at 700 million ids, and 8 bytes an entry where this has 7.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport bsearch, calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset

from featurestore.core.arena cimport fs_prefetch
from featurestore.core.bytes cimport Bytes, bytes_append
from featurestore.core.pages cimport pages_map, pages_unmap
from featurestore.core.plan cimport UNSET_MS, PlanC
from featurestore.core.stored cimport by_words, is_clock

from featurestore.core.structs import same_structs

same_structs(__name__, ids_structs())

cdef extern from * nogil:
    """
    #define fs_clz32(n) __builtin_clz(n)
    #define fs_clz64(n) __builtin_clzll(n)
    #define fs_bswap64(n) __builtin_bswap64(n)
    """
    int fs_clz32(uint32_t n) noexcept
    int fs_clz64(uint64_t n) noexcept
    uint64_t fs_bswap64(uint64_t n) noexcept

cdef enum:
    IDS_A_BUCKET = 7             # more, and the index grows
    FEW_A_BUCKET = 2             # fewer, and it shrinks
    FIRST_BUCKETS = 128          # 7 bits, and 23 of a tag: enough for as many ids as there are numbers
    TAG_BITS = 23                # of a fingerprint
    NO_TAG_YET = 1 << TAG_BITS   # a tag's first bit, in the tag of an id that comes
    SEGMENT_NUMBERS = 1 << (32 - SEGMENT_BITS)
    MANY_SEGMENTS = SEGMENT_NUMBERS - 1
    SEGMENT_BYTES = SEGMENT_IDS * 24         # of an Id
    PIECE_BYTES = PIECE_BUCKETS * 64         # of an IdBucket
    NUMBER_BITS = 48             # of a segment, in the key of a record


cdef int ids_init(Ids* ids, const PlanC* plan, uint64_t max_bytes) noexcept nogil:
    cdef uint16_t i
    memset(ids, 0, sizeof(Ids))
    ids.tables = <IdTable*>calloc(plan.n_events + 1, sizeof(IdTable))
    if ids.tables == NULL:
        return -1
    ids.n_types = plan.n_events
    # So many segments have numbers; those that are not full leave room for some more.
    ids.max_bytes = min(max_bytes, (MANY_SEGMENTS - 4096) * <uint64_t>SEGMENT_IDS * INDEX_ID_BYTES)
    for i in range(plan.n_events):
        ids.tables[i].dedupe_ms = plan.events[i].dedupe_ms
        ids.tables[i].floor_ms = UNSET_MS
    return 0


cdef void ids_clear(Ids* ids) noexcept nogil:
    cdef IdTable* table
    cdef uint16_t i
    for i in range(ids.n_types):
        table = &ids.tables[i]
        while table.n_segments:
            _drop_first(ids, table)
        free(table.segments)
        _clear_buckets(&table.index)
        _clear_buckets(&table.further)
    free(ids.tables)
    memset(ids, 0, sizeof(Ids))


# -- ids of one batch ----------------------------------------------------------------------------------------

cdef int id_set_init(IdSet* known, uint32_t n) noexcept nogil:
    known.n_places = 16
    while known.n_places < <uint64_t>n * 2:
        known.n_places *= 2
    known.places = <Id*>calloc(known.n_places, sizeof(Id))
    return 0 if known.places != NULL else -1


cdef Id* id_set_place(const IdSet* known, const uint64_t* fp) noexcept nogil:
    cdef uint64_t at = fp[0] & (known.n_places - 1)
    while (known.places[at].fp0 | known.places[at].fp1) and (
            known.places[at].fp0 != fp[0] or known.places[at].fp1 != fp[1]):
        at = (at + 1) & (known.n_places - 1)
    return &known.places[at]


# -- log -----------------------------------------------------------------------------------------------------

cdef inline IdSegment* _segment(const IdTable* table, uint64_t number) noexcept nogil:
    return &table.segments[number & (table.capacity - 1)]


cdef inline bint _is_there(const IdTable* table, uint32_t number) noexcept nogil:
    """Whether the log still has what an entry of the index leads to."""
    return (((number >> SEGMENT_BITS) - <uint32_t>table.first) & (SEGMENT_NUMBERS - 1)) < table.n_segments


cdef inline const Id* _id(const IdTable* table, uint32_t number) noexcept nogil:
    return &_segment(table, number >> SEGMENT_BITS).ids[number & (SEGMENT_IDS - 1)]


cdef void _drop_first(Ids* ids, IdTable* table) noexcept nogil:
    cdef IdSegment* segment = _segment(table, table.first)
    if segment.ids != NULL:
        pages_unmap(segment.ids, SEGMENT_BYTES)
    else:
        table.n_cold -= segment.n
        ids.n_cold -= segment.n
    table.n_ids -= segment.n
    ids.n_ids -= segment.n
    table.first += 1
    table.n_segments -= 1


cdef uint32_t ids_drop(Ids* ids, IdTable* table, int64_t oldest_ms, uint32_t most) noexcept nogil:
    cdef uint32_t n = 0
    while n < most and table.n_segments and _segment(table, table.first).newest_ms < oldest_ms:
        _drop_first(ids, table)
        n += 1
    return n


cdef uint64_t ids_live_bytes(const IdTable* table, int64_t oldest_ms) noexcept nogil:
    cdef uint64_t n = table.n_ids, n_cold = table.n_cold
    cdef const IdSegment* segment
    cdef uint32_t i
    for i in range(table.n_segments):
        segment = _segment(table, table.first + i)
        if segment.newest_ms >= oldest_ms:
            break
        n -= segment.n
        n_cold -= segment.n if segment.ids == NULL else 0
    return n * ID_BYTES - n_cold * (ID_BYTES - INDEX_ID_BYTES)


cdef inline uint64_t _to_cool(const IdTable* table) noexcept nogil:
    """Number of the next segment that may become cold."""
    return table.cold_end if table.cold_end > table.first else table.first


cdef Id* ids_cool(Ids* ids) noexcept nogil:
    cdef IdTable* table
    cdef IdTable* most = NULL
    cdef IdSegment* segment
    cdef Id* given_up
    cdef uint64_t n, n_most = 0
    cdef uint16_t i
    for i in range(ids.n_types):
        table = &ids.tables[i]
        n = table.stored_end - _to_cool(table) if table.stored_end > _to_cool(table) else 0
        if n > n_most:
            most, n_most = table, n
    if most == NULL:
        return NULL
    n = _to_cool(most)
    segment = _segment(most, n)
    given_up = segment.ids
    segment.ids = NULL
    most.cold_end = n + 1
    most.n_cold += segment.n
    ids.n_cold += segment.n
    return given_up


cdef void ids_give(Id* given_up) noexcept nogil:
    pages_unmap(given_up, SEGMENT_BYTES)


cdef void ids_set_stored(IdTable* table, uint64_t last, uint32_t n) noexcept nogil:
    cdef uint64_t end = last
    if last >= table.first and last + 1 < table.first + table.n_segments and _segment(table, last).n == n:
        end += 1                 # nor will it be added to
    if end > table.first + table.n_segments:
        end = table.first + table.n_segments
    if end > table.stored_end:
        table.stored_end = end


cdef int _widen(IdTable* table) noexcept nogil:
    """A ring of twice as many segments."""
    cdef uint32_t capacity = table.capacity * 2 if table.capacity else 32, i
    cdef IdSegment* segments = <IdSegment*>malloc(capacity * sizeof(IdSegment))
    if segments == NULL:
        return -1
    for i in range(table.n_segments):
        segments[(table.first + i) & (capacity - 1)] = _segment(table, table.first + i)[0]
    free(table.segments)
    table.segments = segments
    table.capacity = capacity
    return 0


cdef IdSegment* _add_segment(IdTable* table) noexcept nogil:
    cdef IdSegment* segment
    if table.n_segments == MANY_SEGMENTS or (table.n_segments == table.capacity and _widen(table) < 0):
        return NULL
    segment = _segment(table, table.first + table.n_segments)
    segment.ids = <Id*>pages_map(SEGMENT_BYTES, False)
    if segment.ids == NULL:
        return NULL
    segment.n = 0
    segment.newest_ms = UNSET_MS
    table.n_segments += 1
    return segment


cdef IdSegment* _open_segment(IdTable* table, int64_t now) noexcept nogil:
    """The one that takes the next id. NULL: out of memory."""
    cdef IdSegment* segment
    if table.n_segments and now < table.open_until_ms:
        segment = _segment(table, table.first + table.n_segments - 1)
        if segment.n < SEGMENT_IDS:
            return segment
    table.open_until_ms = now + table.dedupe_ms // SLICES + 1
    return _add_segment(table)


# -- index ---------------------------------------------------------------------------------------------------

cdef inline IdBucket* _bucket(const IdBuckets* buckets, uint64_t at) noexcept nogil:
    return &buckets.pieces[at // PIECE_BUCKETS][at % PIECE_BUCKETS]


cdef int _add_bucket(IdBuckets* buckets) noexcept nogil:
    cdef uint32_t capacity
    cdef void* pieces
    if buckets.n == <uint64_t>buckets.n_pieces * PIECE_BUCKETS:
        if buckets.n_pieces == buckets.capacity:
            capacity = buckets.capacity * 2 if buckets.capacity else 16
            pieces = realloc(buckets.pieces, capacity * sizeof(void*))
            if pieces == NULL:
                return -1
            buckets.pieces = <IdBucket**>pieces
            buckets.capacity = capacity
        pieces = pages_map(PIECE_BYTES, False)
        if pieces == NULL:
            return -1
        buckets.pieces[buckets.n_pieces] = <IdBucket*>pieces
        buckets.n_pieces += 1
    buckets.n += 1
    return 0


cdef void _remove_bucket(IdBuckets* buckets) noexcept nogil:
    """The last; it must be empty. A piece goes when the one before it is half empty."""
    buckets.n -= 1
    if buckets.n_pieces > 1 and buckets.n + PIECE_BUCKETS // 2 < <uint64_t>(
            buckets.n_pieces - 1) * PIECE_BUCKETS:
        buckets.n_pieces -= 1
        pages_unmap(buckets.pieces[buckets.n_pieces], PIECE_BYTES)


cdef void _clear_buckets(IdBuckets* buckets) noexcept nogil:
    cdef uint32_t i
    for i in range(buckets.n_pieces):
        pages_unmap(buckets.pieces[i], PIECE_BYTES)
    free(buckets.pieces)
    memset(buckets, 0, sizeof(IdBuckets))


cdef inline uint64_t _home(const IdTable* table, uint64_t fp0) noexcept nogil:
    """Which bucket an id begins in. The buckets beyond the last power of two are halves of as many before."""
    cdef uint64_t all_ = (<uint64_t>1 << (63 - fs_clz64(table.index.n))), at = fp0 & (2 * all_ - 1)
    return at if at < table.index.n else at & (all_ - 1)


cdef inline uint32_t _tag(const IdTable* table, uint64_t fp0, uint64_t home) noexcept nogil:
    """That of an id that comes into its home."""
    cdef uint32_t bits = 63 - fs_clz64(table.index.n)
    if (home & ((<uint64_t>1 << bits) - 1)) + (<uint64_t>1 << bits) < table.index.n:
        bits += 1                # it was split, or is the half of one that was
    return <uint32_t>(fp0 >> bits) & (NO_TAG_YET - 1) | NO_TAG_YET


cdef inline uint32_t _get_tag(const IdBucket* bucket, int i) noexcept nogil:
    return bucket.tags_low[i] | <uint32_t>bucket.tags_high[i] << 16


cdef inline void _set_tag(IdBucket* bucket, int i, uint32_t tag) noexcept nogil:
    bucket.tags_low[i] = <uint16_t>tag
    bucket.tags_high[i] = <uint8_t>(tag >> 16)


cdef inline bint _leads_to(const IdBucket* bucket, int i, uint32_t tag) noexcept nogil:
    """Whether an entry says as much of a fingerprint as it knows. tag: _tag of that."""
    cdef uint32_t known
    if bucket.tags_low[i] != <uint16_t>tag and bucket.tags_high[i]:      # nearly always
        return False
    known = _get_tag(bucket, i)
    return known and (known ^ tag) & ((<uint32_t>1 << (31 - fs_clz32(known))) - 1) == 0


cdef uint32_t* _find(const IdTable* table, const uint64_t* fp) noexcept nogil:
    """The entry that leads to the id in a segment that is not cold, NULL where there is none."""
    cdef IdBucket* bucket
    cdef const Id* id_
    cdef uint64_t home
    cdef uint32_t tag
    cdef int i
    if table.index.n == 0:
        return NULL
    home = _home(table, fp[0])
    tag = _tag(table, fp[0], home)
    bucket = _bucket(&table.index, home)
    while True:
        for i in range(BUCKET_IDS):
            if _leads_to(bucket, i, tag) and _is_there(table, bucket.numbers[i]) and (
                    _segment(table, bucket.numbers[i] >> SEGMENT_BITS).ids != NULL):
                id_ = _id(table, bucket.numbers[i])
                if id_.fp0 == fp[0] and id_.fp1 == fp[1]:
                    return &bucket.numbers[i]
        if bucket.next_ == 0:
            return NULL
        bucket = _bucket(&table.further, bucket.next_ - 1)


cdef uint32_t _take_further(IdTable* table) noexcept nogil:
    """1 + place of an empty bucket to go on in; 0: out of memory."""
    cdef uint32_t at = table.free_
    if at:
        table.free_ = _bucket(&table.further, at - 1).next_
    elif table.further.n == 0x7FFFFFFF or _add_bucket(&table.further) < 0:
        return 0
    else:
        at = <uint32_t>table.further.n
    memset(_bucket(&table.further, at - 1), 0, sizeof(IdBucket))
    return at


cdef int _put(IdTable* table, IdBucket* bucket, uint32_t tag, uint32_t number) noexcept nogil:
    """Into the chain that begins with `bucket`."""
    cdef int i
    while True:
        for i in range(BUCKET_IDS):
            if (bucket.tags_low[i] == 0 and bucket.tags_high[i] == 0) or not _is_there(
                    table, bucket.numbers[i]):
                _set_tag(bucket, i, tag)
                bucket.numbers[i] = number
                return 0
        if bucket.next_ == 0:
            bucket.next_ = _take_further(table)
            if bucket.next_ == 0:
                return -1
        bucket = _bucket(&table.further, bucket.next_ - 1)


cdef inline uint32_t _widened(uint32_t tag, uint32_t bit) noexcept nogil:
    """A tag in a bucket whose name has a bit less, which it had."""
    tag = tag << 1 | bit
    return tag if tag < 2 * NO_TAG_YET else tag & (NO_TAG_YET - 1) | NO_TAG_YET


cdef uint32_t _free_further(IdTable* table, uint32_t at, IdBucket* out) noexcept nogil:
    """Copies a bucket that a chain goes on in out of it, and frees it."""
    out[0] = _bucket(&table.further, at - 1)[0]
    _bucket(&table.further, at - 1).next_ = table.free_
    table.free_ = at
    return out.next_


cdef int _grow(IdTable* table) noexcept nogil:
    """One bucket more: half of an older one. No more further buckets are needed than are given back before,
    so only the first step can fail."""
    cdef IdBucket chain
    cdef IdBucket* halves[2]
    cdef uint64_t n = table.index.n
    cdef uint32_t tag, next_
    cdef int i
    if _add_bucket(&table.index) < 0:
        return -1
    halves[1] = _bucket(&table.index, n)
    halves[0] = _bucket(&table.index, n - (<uint64_t>1 << (63 - fs_clz64(n))))
    chain = halves[0][0]
    memset(halves[0], 0, sizeof(IdBucket))
    memset(halves[1], 0, sizeof(IdBucket))
    while True:
        next_ = chain.next_
        for i in range(BUCKET_IDS):
            tag = _get_tag(&chain, i)
            if tag and _is_there(table, chain.numbers[i]) and _put(
                    table, halves[tag & 1], tag >> 1, chain.numbers[i]) < 0:
                return -1
        if next_ == 0:
            return 0
        _free_further(table, next_, &chain)


cdef int _shrink(IdTable* table) noexcept nogil:
    """One bucket less: it goes back to where it was split from."""
    cdef uint64_t n = table.index.n - 1
    cdef IdBucket chain = _bucket(&table.index, n)[0]
    cdef IdBucket* home = _bucket(&table.index, n - (<uint64_t>1 << (63 - fs_clz64(n))))
    cdef IdBucket* bucket = home
    cdef uint32_t tag, next_
    cdef int i
    _remove_bucket(&table.index)
    while True:
        for i in range(BUCKET_IDS):
            tag = _get_tag(bucket, i)
            if tag:
                _set_tag(bucket, i, _widened(tag, 0))
        if bucket.next_ == 0:
            break
        bucket = _bucket(&table.further, bucket.next_ - 1)
    while True:
        next_ = chain.next_
        for i in range(BUCKET_IDS):
            tag = _get_tag(&chain, i)
            if tag and _is_there(table, chain.numbers[i]) and _put(
                    table, home, _widened(tag, 1), chain.numbers[i]) < 0:
                return -1
        if next_ == 0:
            return 0
        _free_further(table, next_, &chain)


cdef int _fit(IdTable* table) noexcept nogil:
    """A step towards as many buckets as the ids need."""
    if table.index.n == 0:
        while table.index.n < FIRST_BUCKETS:
            if _add_bucket(&table.index) < 0:
                return -1
        return 0
    if table.n_ids >= table.index.n * IDS_A_BUCKET:
        return _grow(table)
    if table.index.n > FIRST_BUCKETS and table.n_ids < table.index.n * FEW_A_BUCKET:
        return _shrink(table)
    return 0


# -- cold ids ------------------------------------------------------------------------------------------------

cdef int _by_event(const void* a, const void* b) noexcept nogil:
    cdef const ColdId* x = <const ColdId*>a
    cdef const ColdId* y = <const ColdId*>b
    if x.event != y.event:
        return 1 if x.event > y.event else -1
    return (x.at > y.at) - (x.at < y.at)


cdef int _by_place(const void* a, const void* b) noexcept nogil:
    cdef const ColdId* x = <const ColdId*>a
    cdef const ColdId* y = <const ColdId*>b
    return (x.at > y.at) - (x.at < y.at)


cdef ColdId* _add_cold(ColdIds* cold) noexcept nogil:
    cdef uint32_t capacity = cold.capacity * 2 if cold.capacity else 64
    cdef void* all_
    if cold.n == cold.capacity:
        if capacity < cold.capacity:
            return NULL
        all_ = realloc(cold.all_, <size_t>capacity * sizeof(ColdId))
        if all_ == NULL:
            return NULL
        cold.all_ = <ColdId*>all_
        cold.capacity = capacity
    cold.n += 1
    return &cold.all_[cold.n - 1]


cdef int _judge_cold(const IdTable* table, uint32_t number, const uint64_t* fp, int64_t oldest_ms,
                     uint32_t event, ColdIds* cold) noexcept nogil:
    """As ids_judge, of one that the index leads to."""
    cdef ColdId sought
    cdef ColdId* found = NULL
    cdef uint64_t behind = ((number >> SEGMENT_BITS) - <uint32_t>table.first) & (SEGMENT_NUMBERS - 1)
    memset(&sought, 0, sizeof(sought))
    sought.event = event
    sought.at = (table.first + behind) << SEGMENT_BITS | (number & (SEGMENT_IDS - 1))
    if cold.n_known:
        found = <ColdId*>bsearch(&sought, cold.all_, cold.n_known, sizeof(ColdId), _by_event)
    if found == NULL:
        found = _add_cold(cold)
        if found == NULL:
            return -1
        found[0] = sought
        found.fp[0] = fp[0]
        found.fp[1] = fp[1]
        return ID_WANTED
    if found.status == COLD_UNREADABLE:
        return ID_UNKNOWN
    return ID_SEEN if found.status == COLD_SAME and found.seen_at_ms >= oldest_ms else ID_NEW


cdef int ids_judge(const IdTable* table, const uint64_t* fp, int64_t oldest_ms, uint32_t event,
                   ColdIds* cold) noexcept nogil:
    cdef const IdBucket* bucket
    cdef const IdSegment* segment
    cdef const Id* id_
    cdef uint64_t home
    cdef uint32_t tag, n_before = cold.n
    cdef int i, verdict = ID_NEW, of_this
    if table.index.n == 0:
        return ID_NEW
    home = _home(table, fp[0])
    tag = _tag(table, fp[0], home)
    bucket = _bucket(&table.index, home)
    while True:
        for i in range(BUCKET_IDS):
            if not _leads_to(bucket, i, tag) or not _is_there(table, bucket.numbers[i]):
                continue
            segment = _segment(table, bucket.numbers[i] >> SEGMENT_BITS)
            if segment.newest_ms < oldest_ms:
                continue
            if segment.ids != NULL:
                id_ = &segment.ids[bucket.numbers[i] & (SEGMENT_IDS - 1)]
                of_this = ID_SEEN if (id_.fp0 == fp[0] and id_.fp1 == fp[1]
                                      and id_.seen_at_ms >= oldest_ms) else ID_NEW
            else:
                of_this = _judge_cold(table, bucket.numbers[i], fp, oldest_ms, event, cold)
                if of_this < 0:
                    return -1
            if of_this == ID_SEEN:
                cold.n = n_before                # no need to read what else there is
                return ID_SEEN
            if of_this == ID_WANTED or verdict == ID_NEW:
                verdict = of_this
        if bucket.next_ == 0:
            return verdict
        bucket = _bucket(&table.further, bucket.next_ - 1)


cdef int ids_fetch(ColdIds* cold, const IdSource* source, uint16_t event_id, uint64_t* in_vain,
                   uint64_t* unread) noexcept nogil:
    cdef Id* ids = <Id*>malloc(RECORD_IDS * sizeof(Id))
    cdef ColdId* wanted
    cdef uint64_t key0, key1, before0 = 0, before1 = 0
    cdef uint32_t k, place
    cdef int n = -1
    in_vain[0] = unread[0] = 0
    if ids == NULL:
        return -1
    # In the order of their places: of a record that several are in, one reading serves them all.
    qsort(cold.all_ + cold.n_known, cold.n - cold.n_known, sizeof(ColdId), _by_place)
    for k in range(cold.n_known, cold.n):
        wanted = &cold.all_[k]
        place = wanted.at & (SEGMENT_IDS - 1)
        key0 = <uint64_t>event_id << NUMBER_BITS | wanted.at >> SEGMENT_BITS
        key1 = place // RECORD_IDS
        if k == cold.n_known or key0 != before0 or key1 != before1:
            before0, before1 = key0, key1
            n = source.read(source.source, key0, key1, ids) if source.read != NULL else -1
        place %= RECORD_IDS
        if n < 0 or place >= <uint32_t>n:
            wanted.status = COLD_UNREADABLE
            unread[0] += 1
        elif ids[place].fp0 == wanted.fp[0] and ids[place].fp1 == wanted.fp[1]:
            wanted.status = COLD_SAME
            wanted.seen_at_ms = ids[place].seen_at_ms
        else:
            wanted.status = COLD_OTHER
            in_vain[0] += 1
    qsort(cold.all_, cold.n, sizeof(ColdId), _by_event)
    cold.n_known = cold.n
    free(ids)
    return 0


# -- look up and remember ------------------------------------------------------------------------------------

cdef void ids_prefetch(const IdTable* table, const uint64_t* fp) noexcept nogil:
    if table.index.n:
        fs_prefetch(_bucket(&table.index, _home(table, fp[0])))


cdef int _append(Ids* ids, IdTable* table, IdSegment* segment, uint32_t* known, const uint64_t* fp,
                 int64_t seen_at_ms) noexcept nogil:
    """To the newest segment, and where it is to the index. known: the entry of the index for it, if any."""
    cdef uint32_t number = <uint32_t>((table.first + table.n_segments - 1) << SEGMENT_BITS) | segment.n
    cdef Id* id_ = &segment.ids[segment.n]
    cdef uint64_t home
    id_.fp0 = fp[0]
    id_.fp1 = fp[1]
    id_.seen_at_ms = seen_at_ms
    if known == NULL:
        home = _home(table, fp[0])
        if _put(table, _bucket(&table.index, home), _tag(table, fp[0], home), number) < 0:
            return -1
    elif _id(table, known[0]).seen_at_ms < seen_at_ms:
        known[0] = number
    segment.n += 1
    table.n_ids += 1
    ids.n_ids += 1
    ids.n_ever += 1
    if seen_at_ms > segment.newest_ms:
        segment.newest_ms = seen_at_ms
    return 0


cdef int ids_remember(Ids* ids, IdTable* table, const uint64_t* fp, int64_t seen_at_ms,
                      int64_t now) noexcept nogil:
    cdef IdSegment* segment
    cdef uint32_t* known
    if _fit(table) < 0:
        return -1
    known = _find(table, fp)
    if known != NULL and _id(table, known[0]).seen_at_ms >= seen_at_ms:
        return 0                 # of a batch that is replayed, and the checkpoint knew of it
    segment = _open_segment(table, now)
    return _append(ids, table, segment, known, fp, seen_at_ms) if segment != NULL else -1


cdef void ids_adopt(Ids* ids, IdTable* table, Ids* old, IdTable* before, int64_t now) noexcept nogil:
    cdef int64_t dedupe_ms = table.dedupe_ms, floor_ms = ids_oldest(before, now)
    table[0] = before[0]
    table.dedupe_ms = dedupe_ms
    if dedupe_ms > before.dedupe_ms and now != UNSET_MS:
        table.floor_ms = floor_ms
    ids.n_ids += table.n_ids
    ids.n_cold += table.n_cold
    old.n_ids -= table.n_ids
    old.n_cold -= table.n_cold
    memset(before, 0, sizeof(IdTable))


# -- records of a checkpoint ---------------------------------------------------------------------------------
#
# A key of 16 bytes, big-endian: u16 event_id, u48 number of the segment, u64 number of the record in it. Then
# little-endian: u32 bytes that follow, and per id u64[2] fingerprint, i64 seen_at: RECORD_IDS of them, fewer
# in the last of a segment.

cdef enum:
    KEY_BYTES = 16
    RECORD_HEAD_BYTES = RECORD_BYTES - RECORD_IDS * 24
    ID_RECORD_BYTES = 24         # of an Id


cdef int64_t ids_copy_records(const IdTable* table, uint16_t event_id, uint64_t segment, uint32_t from_,
                              uint32_t most, Bytes* out) noexcept nogil:
    cdef const IdSegment* found
    cdef uint64_t key[2]
    cdef uint32_t at, n, n_bytes
    if segment < table.first or segment >= table.first + table.n_segments:
        return 0
    found = _segment(table, segment)
    while most and from_ < found.n:
        at = from_ // RECORD_IDS
        n = min(found.n - at * RECORD_IDS, <uint32_t>RECORD_IDS)
        n_bytes = n * ID_RECORD_BYTES
        key[0] = fs_bswap64(<uint64_t>event_id << NUMBER_BITS | segment)
        key[1] = fs_bswap64(at)
        if (bytes_append(out, key, KEY_BYTES) < 0 or bytes_append(out, &n_bytes, 4) < 0
                or bytes_append(out, &found.ids[at * RECORD_IDS], n_bytes) < 0):
            return -1
        from_ = at * RECORD_IDS + n
        most -= 1
    return from_


cdef int ids_free_records(uint16_t event_id, uint64_t segment, uint32_t n, Bytes* out) noexcept nogil:
    cdef uint64_t key[2]
    cdef uint32_t at, freed = 0xFFFFFFFF
    key[0] = fs_bswap64(<uint64_t>event_id << NUMBER_BITS | segment)
    for at in range((n + RECORD_IDS - 1) // RECORD_IDS):
        key[1] = fs_bswap64(at)
        if bytes_append(out, key, KEY_BYTES) < 0 or bytes_append(out, &freed, 4) < 0:
            return -1
    return 0


cdef uint32_t ids_of_segment(const IdTable* table, uint32_t k) noexcept nogil:
    return _segment(table, table.first + k).n if k < table.n_segments else 0


cdef int _load_record(Ids* ids, IdTable* table, uint64_t number, uint64_t at, const uint8_t* data,
                      uint32_t n) noexcept nogil:
    """0, 1 not readable, -1 out of memory. Segments come in their order, without a gap, and so do the records
    of each; only the last of a segment is not full."""
    cdef IdSegment* segment
    cdef Id id_
    cdef uint32_t k
    if number >> (NUMBER_BITS - 1):              # it would count into the event ids
        return 1
    if at == 0:
        if table.n_segments == 0:
            table.first = number
        if number != table.first + table.n_segments:
            return 1
        segment = _add_segment(table)
        if segment == NULL:
            return -1
        table.open_until_ms = UNSET_MS           # what comes next goes into one of its own
    elif table.n_segments == 0 or number != table.first + table.n_segments - 1:
        return 1
    else:
        segment = _segment(table, number)
    if at > SEGMENT_IDS // RECORD_IDS or segment.n != at * RECORD_IDS or segment.n + n > SEGMENT_IDS:
        return 1
    for k in range(n):
        memcpy(&id_, data + k * ID_RECORD_BYTES, ID_RECORD_BYTES)
        if (id_.fp0 | id_.fp1) == 0 or not is_clock(id_.seen_at_ms):
            return 1
        if _fit(table) < 0 or _append(ids, table, segment, _find(table, &id_.fp0), &id_.fp0,
                                      id_.seen_at_ms) < 0:
            return -1
    return 0


cdef int ids_import_records(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil:
    cdef uint64_t key[2]
    cdef uint32_t size
    cdef size_t at = 0
    cdef int status
    cdef uint16_t i
    while at < n_bytes:
        if n_bytes - at < RECORD_HEAD_BYTES:
            return 1
        memcpy(key, data + at, KEY_BYTES)
        memcpy(&size, data + at + KEY_BYTES, 4)
        at += RECORD_HEAD_BYTES
        if (size > n_bytes - at or size % ID_RECORD_BYTES or size == 0
                or size > RECORD_IDS * ID_RECORD_BYTES):
            return 1
        key[0] = fs_bswap64(key[0])
        status = 1                               # of an event type that the plan does not have
        for i in range(ids.n_types):
            if plan.events[i].event_id == key[0] >> NUMBER_BITS:
                status = _load_record(ids, &ids.tables[i], key[0] & ((<uint64_t>1 << NUMBER_BITS) - 1),
                                      fs_bswap64(key[1]), data + at, size // ID_RECORD_BYTES)
                break
        if status:
            return status
        at += size
    return 0


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian, per id: u16 event_id, u8[6] 0, u64[2] fingerprint, i64 seen_at.

ctypedef struct IdRecord:
    uint16_t event_id
    uint16_t zero[3]
    Id id_


cdef int _by_id(const void* a, const void* b) noexcept nogil:
    cdef const IdRecord* x = <const IdRecord*>a
    cdef const IdRecord* y = <const IdRecord*>b
    if x.event_id != y.event_id:
        return 1 if x.event_id > y.event_id else -1
    return by_words(&x.id_.fp0, &y.id_.fp0)


cdef int _by_age(const void* a, const void* b) noexcept nogil:
    cdef const IdRecord* x = <const IdRecord*>a
    cdef const IdRecord* y = <const IdRecord*>b
    if x.id_.seen_at_ms != y.id_.seen_at_ms:
        return 1 if x.id_.seen_at_ms > y.id_.seen_at_ms else -1
    return _by_id(a, b)


cdef size_t _latest_of_each(IdRecord* records, size_t n) noexcept nogil:
    """Of each id the latest, sorted; how many."""
    cdef size_t i, k = 0
    if n:
        qsort(records, n, sizeof(IdRecord), _by_id)
    for i in range(n):
        if k and _by_id(&records[k - 1], &records[i]) == 0:
            records[k - 1].id_.seen_at_ms = max(records[k - 1].id_.seen_at_ms, records[i].id_.seen_at_ms)
        else:
            records[k] = records[i]
            k += 1
    return k


cdef int ids_export(const Ids* ids, const PlanC* plan, const int64_t* type_nows, const IdSource* source,
                    Bytes* out) noexcept nogil:
    cdef const IdTable* table
    cdef const IdSegment* segment
    cdef const Id* found
    cdef Id* read_ = <Id*>malloc(RECORD_IDS * sizeof(Id))
    cdef IdRecord record
    cdef int64_t oldest_ms
    cdef uint32_t i, k
    cdef uint16_t type_
    cdef int status = 0
    if read_ == NULL:
        return -1
    memset(&record, 0, sizeof(record))
    for type_ in range(ids.n_types):
        table = &ids.tables[type_]
        oldest_ms = ids_oldest(table, type_nows[type_])
        record.event_id = plan.events[type_].event_id
        for i in range(table.n_segments):
            segment = _segment(table, table.first + i)
            if segment.newest_ms < oldest_ms:
                continue
            for k in range(segment.n):
                if status == 0 and segment.ids == NULL and k % RECORD_IDS == 0 and (
                        source.read == NULL or source.read(
                            source.source, <uint64_t>record.event_id << NUMBER_BITS | (table.first + i),
                            k // RECORD_IDS, read_) < min(<int>(segment.n - k), <int>RECORD_IDS)):
                    status = 1
                if status:
                    break
                found = &segment.ids[k] if segment.ids != NULL else &read_[k % RECORD_IDS]
                record.id_ = found[0]
                if record.id_.seen_at_ms >= oldest_ms and bytes_append(out, &record, sizeof(record)) < 0:
                    status = -1
    free(read_)
    if status == 0:
        out.n_bytes = sizeof(IdRecord) * _latest_of_each(<IdRecord*>out.data,
                                                         out.n_bytes // sizeof(IdRecord))
    return status


cdef int ids_import(Ids* ids, const PlanC* plan, const uint8_t* data, size_t n_bytes) noexcept nogil:
    """By age, so that they expire in whole segments."""
    cdef IdRecord* records
    cdef size_t n = n_bytes // sizeof(IdRecord), k
    cdef int status = 0
    cdef uint16_t i
    if n_bytes % sizeof(IdRecord):
        return 1
    records = <IdRecord*>malloc(n_bytes + 1)
    if records == NULL:
        return -1
    memcpy(records, data, n_bytes)
    if n:
        qsort(records, n, sizeof(IdRecord), _by_age)
    for k in range(n):
        if ((records[k].id_.fp0 | records[k].id_.fp1) == 0 or not is_clock(records[k].id_.seen_at_ms)
                or records[k].zero[0] or records[k].zero[1] or records[k].zero[2]):
            status = 1
            break
        for i in range(ids.n_types):
            if plan.events[i].event_id == records[k].event_id:
                status = ids_remember(ids, &ids.tables[i], &records[k].id_.fp0, records[k].id_.seen_at_ms,
                                      records[k].id_.seen_at_ms)
                break
        if status < 0:
            break
    free(records)
    return status
