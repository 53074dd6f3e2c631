"""Ids of accepted events; see ids.pxd for who calls what and when.

Keyed by SipHash with the store's secret: whoever chooses event ids cannot make them collide, nor fill one
bucket. There is a cap, because whoever reaches the port may invent ids: at it a new id refuses its event
(REFUSED_MEMORY) until older ones expire.

An entry of the index whose segment was dropped is an empty one: nobody takes it out, and the next id of its
bucket takes its place. Numbers of segments come round after 2^18: one that was dropped so long ago that its
number is in use again makes an entry lead to some other id, whose fingerprint then says that it is another.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
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
    #define fs_clz64(n) __builtin_clzll(n)
    #define fs_bswap64(n) __builtin_bswap64(n)
    """
    int fs_clz64(uint64_t n) noexcept
    uint64_t fs_bswap64(uint64_t n) noexcept

cdef enum:
    IDS_A_BUCKET = 7             # more, and the index grows
    FEW_A_BUCKET = 2             # fewer, and it shrinks
    FIRST_BUCKETS = 64
    SEGMENT_NUMBERS = 1 << (32 - SEGMENT_BITS)
    MANY_SEGMENTS = SEGMENT_NUMBERS - 1
    SEGMENT_BYTES = SEGMENT_IDS * 24         # of an Id
    PIECE_BYTES = PIECE_BUCKETS * 64         # of an IdBucket


cdef int ids_init(Ids* ids, const PlanC* plan, uint64_t max_bytes) noexcept nogil:
    cdef uint16_t i
    memset(ids, 0, sizeof(Ids))
    ids.tables = <IdTable*>calloc(plan.n_events + 1, sizeof(IdTable))
    if ids.tables == NULL:
        return -1
    ids.n_types = plan.n_events
    # So many segments have numbers; those that are not full leave room for some more.
    ids.max_bytes = min(max_bytes, (MANY_SEGMENTS - 4096) * <uint64_t>SEGMENT_IDS * ID_BYTES)
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
    pages_unmap(segment.ids, SEGMENT_BYTES)
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


cdef uint64_t ids_live(const IdTable* table, int64_t oldest_ms) noexcept nogil:
    cdef uint64_t n = table.n_ids
    cdef uint32_t i
    for i in range(table.n_segments):
        if _segment(table, table.first + i).newest_ms >= oldest_ms:
            break
        n -= _segment(table, table.first + i).n
    return n


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


cdef inline uint8_t _tag(uint64_t fp1) noexcept nogil:
    return <uint8_t>(fp1 >> 56) if fp1 >> 56 else 1


cdef uint32_t* _find(const IdTable* table, const uint64_t* fp) noexcept nogil:
    """The entry that leads to the id, NULL where there is none."""
    cdef uint8_t tag = _tag(fp[1])
    cdef IdBucket* bucket
    cdef const Id* id_
    cdef int i
    if table.index.n == 0:
        return NULL
    bucket = _bucket(&table.index, _home(table, fp[0]))
    while True:
        for i in range(BUCKET_IDS):
            if bucket.tags[i] == tag and _is_there(table, bucket.numbers[i]):
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


cdef int _put(IdTable* table, IdBucket* bucket, uint8_t tag, uint32_t number) noexcept nogil:
    """Into the chain that begins with `bucket`."""
    cdef int i
    while True:
        for i in range(BUCKET_IDS):
            if bucket.tags[i] == 0 or not _is_there(table, bucket.numbers[i]):
                bucket.tags[i] = tag
                bucket.numbers[i] = number
                return 0
        if bucket.next_ == 0:
            bucket.next_ = _take_further(table)
            if bucket.next_ == 0:
                return -1
        bucket = _bucket(&table.further, bucket.next_ - 1)


cdef int _put_all(IdTable* table, IdBucket* chain) noexcept nogil:
    """Takes all of a chain whose first bucket was copied out to where they belong now, and frees the rest of
    the chain. No more buckets are needed than are given back before, so it does not fail where the chains
    they go to begin empty."""
    cdef IdBucket bucket = chain[0]
    cdef uint32_t at
    cdef int i
    while True:
        for i in range(BUCKET_IDS):
            if bucket.tags[i] and _is_there(table, bucket.numbers[i]) and _put(
                    table, _bucket(&table.index, _home(table, _id(table, bucket.numbers[i]).fp0)),
                    bucket.tags[i], bucket.numbers[i]) < 0:
                return -1
        at = bucket.next_
        if at == 0:
            return 0
        bucket = _bucket(&table.further, at - 1)[0]
        _bucket(&table.further, at - 1).next_ = table.free_
        table.free_ = at


cdef int _grow(IdTable* table) noexcept nogil:
    """One bucket more: half of an older one."""
    cdef IdBucket chain
    cdef IdBucket* half
    cdef uint64_t n = table.index.n
    if _add_bucket(&table.index) < 0:
        return -1
    memset(_bucket(&table.index, n), 0, sizeof(IdBucket))
    half = _bucket(&table.index, n - (<uint64_t>1 << (63 - fs_clz64(n))))
    chain = half[0]
    memset(half, 0, sizeof(IdBucket))
    return _put_all(table, &chain)


cdef int _shrink(IdTable* table) noexcept nogil:
    """One bucket less: it goes back to where it was split from."""
    cdef IdBucket chain = _bucket(&table.index, table.index.n - 1)[0]
    _remove_bucket(&table.index)
    return _put_all(table, &chain)


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


cdef bint ids_seen_since(const IdTable* table, const uint64_t* fp, int64_t oldest_ms) noexcept nogil:
    cdef const uint32_t* number = _find(table, fp)
    return number != NULL and _id(table, number[0]).seen_at_ms >= oldest_ms


cdef void ids_prefetch(const IdTable* table, const uint64_t* fp) noexcept nogil:
    if table.index.n:
        fs_prefetch(_bucket(&table.index, _home(table, fp[0])))


cdef int _append(Ids* ids, IdTable* table, IdSegment* segment, uint32_t* known, const uint64_t* fp,
                 int64_t seen_at_ms) noexcept nogil:
    """To the newest segment, and where it is to the index. known: the entry of the index for it, if any."""
    cdef uint32_t number = <uint32_t>((table.first + table.n_segments - 1) << SEGMENT_BITS) | segment.n
    cdef Id* id_ = &segment.ids[segment.n]
    id_.fp0 = fp[0]
    id_.fp1 = fp[1]
    id_.seen_at_ms = seen_at_ms
    if known == NULL:
        if _put(table, _bucket(&table.index, _home(table, fp[0])), _tag(fp[1]), number) < 0:
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
    old.n_ids -= table.n_ids
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
    NUMBER_BITS = 48


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


cdef int ids_export(const Ids* ids, const PlanC* plan, const int64_t* type_nows, Bytes* out) noexcept nogil:
    cdef const IdTable* table
    cdef const IdSegment* segment
    cdef IdRecord record
    cdef int64_t oldest_ms
    cdef uint32_t i, k
    cdef uint16_t type_
    memset(&record, 0, sizeof(record))
    for type_ in range(ids.n_types):
        table = &ids.tables[type_]
        oldest_ms = ids_oldest(table, type_nows[type_])
        record.event_id = plan.events[type_].event_id
        for i in range(table.n_segments):
            segment = _segment(table, table.first + i)
            for k in range(segment.n):
                record.id_ = segment.ids[k]
                if record.id_.seen_at_ms >= oldest_ms and bytes_append(out, &record, sizeof(record)) < 0:
                    return -1
    if out.n_bytes:
        qsort(out.data, out.n_bytes // sizeof(IdRecord), sizeof(IdRecord), _by_id)
    return 0


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
