"""Which batches each producer has sent; see producers.pxd.

The table is keyed by SipHash with the store's secret: whoever chooses producer names cannot make them
collide. A name is kept beside for operators, who know nothing of hashes. What is remembered of a producer
grows with what it sent, up to 1,025 fingerprints. Names that clients make up for a session and names that
somebody gave have half of the memory each, because whoever reaches the port may invent names: a batch that
would need more than there is is turned away until somebody has been silent for long enough.

Why 15 minutes are enough for a made-up name: the client that made it up tries a call again only within the
call's own time, or an ingest's 60 seconds of patience. What it left open, whoever has its ticket may finish,
from another process too, and that within these 15 minutes: later it counts again, as the client says.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memcpy, memmove, memset

from featurestore.core.bytes cimport Bytes, bytes_append, bytes_clear
from featurestore.core.change cimport CHANGE_DROP
from featurestore.core.plan cimport UNSET_MS, plan_structs
from featurestore.core.stored cimport by_words, is_clock

from featurestore.core.structs import same_structs

same_structs(__name__, producers_structs(), plan_structs())

cdef enum:
    NAMED_IDLE_MS = 604_800_000         # 7 days
    MADE_UP_IDLE_MS = 900_000           # 15 minutes
    FEWEST = 4                          # fingerprints that there is room for at first
    FREED_AT_ONCE = 8
    RECORD_BYTES = 112 + 4 * 8          # with what the allocator adds, and its share of the buckets
    DAY_MS = 86_400_000
    NAME_PREFIX = 7                     # of "client-"
    NAME_DIGITS = 16
    SECOND_RECORD_BYTES = 48            # of version 2
    FREED_BYTES = 16                    # of one that is gone, until no checkpoint has it
    RECORD_HEAD_BYTES = 20              # in a checkpoint
    NO_RECORD = 0xFFFFFFFFu             # as its length: it is gone

cdef extern from * nogil:
    """
    #define FS_FARTHEST_JUMP (1ULL << 40)
    #define FS_LATEST_MS (1LL << 42)
    """
    const int64_t LATEST_MS "FS_LATEST_MS"             # so that its nanoseconds are a number of 64 bits
    const uint64_t FARTHEST_JUMP "FS_FARTHEST_JUMP"
    uint64_t fs_bswap64 "__builtin_bswap64"(uint64_t n)


cdef int producers_init(ProducerTable* table, uint64_t max_bytes) noexcept nogil:
    memset(table, 0, sizeof(ProducerTable))
    table.max_bytes = max_bytes
    table.now_ms = UNSET_MS
    table.round = 1
    table.segments = <Producer***>calloc(MAX_SEGMENTS, sizeof(void*))
    if table.segments == NULL:
        return -1
    table.segments[0] = <Producer**>calloc(SEGMENT, sizeof(void*))
    if table.segments[0] == NULL:
        producers_clear(table)
        return -1
    table.n_buckets = table.level = SEGMENT
    return 0


cdef void producers_clear(ProducerTable* table) noexcept nogil:
    cdef Producer* gone
    cdef uint64_t i
    cdef int class_
    for class_ in range(N_CLASSES):
        while table.classes[class_].oldest != NULL:
            gone = table.classes[class_].oldest
            table.classes[class_].oldest = gone.newer
            free(gone.content)
            free(gone)
        bytes_clear(&table.classes[class_].freed)
    if table.segments != NULL:
        for i in range(MAX_SEGMENTS):
            if table.segments[i] == NULL:
                break
            free(table.segments[i])
    free(table.segments)
    memset(table, 0, sizeof(ProducerTable))


cdef inline bint _is_digit(uint8_t byte, bint hexadecimal) noexcept nogil:
    return c"0" <= byte <= c"9" or (hexadecimal and c"a" <= byte <= c"f")


cdef uint8_t producer_class(const uint8_t* name, size_t n_bytes) noexcept nogil:
    cdef size_t i
    if n_bytes < NAME_PREFIX + NAME_DIGITS or memcmp(name, b"client-", NAME_PREFIX) != 0:
        return NAMED
    for i in range(NAME_PREFIX, NAME_PREFIX + NAME_DIGITS):
        if not _is_digit(name[i], True):
            return NAMED
    i = NAME_PREFIX + NAME_DIGITS
    if i == n_bytes:
        return MADE_UP
    if name[i] != c"/" or i + 1 == n_bytes:
        return NAMED
    for i in range(NAME_PREFIX + NAME_DIGITS + 1, n_bytes):
        if not _is_digit(name[i], False):
            return NAMED
    return MADE_UP


# -- the table -----------------------------------------------------------------------------------------------

cdef inline Producer** _bucket_at(const ProducerTable* table, uint64_t i) noexcept nogil:
    return &table.segments[i // SEGMENT][i % SEGMENT]


cdef inline Producer** _bucket_of(const ProducerTable* table, uint64_t fp0) noexcept nogil:
    cdef uint64_t i = fp0 & (table.level - 1)
    if i < table.n_buckets - table.level:
        i = fp0 & (2 * table.level - 1)
    return _bucket_at(table, i)


cdef Producer* _find(const ProducerTable* table, uint64_t fp0, uint64_t fp1) noexcept nogil:
    cdef Producer* producer = _bucket_of(table, fp0)[0]
    while producer != NULL and (producer.fp0 != fp0 or producer.fp1 != fp1):
        producer = producer.next
    return producer


cdef void _split_one(ProducerTable* table) noexcept nogil:
    """One bucket more. Without memory for it chains get longer, and nothing else happens."""
    cdef uint64_t new = table.n_buckets
    cdef Producer** at
    cdef Producer** to
    cdef Producer* moved
    if new // SEGMENT >= MAX_SEGMENTS:
        return
    if new % SEGMENT == 0 and table.segments[new // SEGMENT] == NULL:
        table.segments[new // SEGMENT] = <Producer**>calloc(SEGMENT, sizeof(void*))
        if table.segments[new // SEGMENT] == NULL:
            return
    at = _bucket_at(table, new - table.level)
    to = _bucket_at(table, new)
    while at[0] != NULL:
        moved = at[0]
        if moved.fp0 & (2 * table.level - 1) == new:
            at[0] = moved.next
            moved.next = to[0]
            to[0] = moved
        else:
            at = &moved.next
    table.n_buckets += 1
    if table.n_buckets == 2 * table.level:
        table.level *= 2


cdef inline void _unlink_age(ProducerTable* table, Producer* producer) noexcept nogil:
    cdef ProducerClass* class_ = &table.classes[producer.class_]
    if producer.older != NULL:
        producer.older.newer = producer.newer
    else:
        class_.oldest = producer.newer
    if producer.newer != NULL:
        producer.newer.older = producer.older
    else:
        class_.newest = producer.older


cdef inline void _link_newest(ProducerTable* table, Producer* producer) noexcept nogil:
    cdef ProducerClass* class_ = &table.classes[producer.class_]
    producer.newer = NULL
    producer.older = class_.newest
    if class_.newest != NULL:
        class_.newest.newer = producer
    else:
        class_.oldest = producer
    class_.newest = producer


cdef inline uint64_t _bytes_of(uint16_t capacity, uint8_t name_bytes) noexcept nogil:
    return RECORD_BYTES + <uint64_t>capacity * sizeof(uint64_t) + name_bytes


cdef inline uint8_t* _name_of(const Producer* producer) noexcept nogil:
    return <uint8_t*>(producer.content + producer.capacity)


cdef int _free(ProducerTable* table, Producer* gone) noexcept nogil:
    """0, or -1 when out of memory: then it is still there."""
    cdef Producer** at = _bucket_of(table, gone.fp0)
    if gone.is_stored and bytes_append(&table.classes[gone.class_].freed, &gone.fp0, FREED_BYTES) < 0:
        return -1
    while at[0] != gone:
        at = &at[0].next
    at[0] = gone.next
    _unlink_age(table, gone)
    table.classes[gone.class_].n -= 1
    table.classes[gone.class_].n_bytes -= _bytes_of(gone.capacity, gone.name_bytes)
    free(gone.content)
    free(gone)
    return 0


cdef inline bint _is_forgotten(const Producer* producer, int64_t now_ms) noexcept nogil:
    cdef int64_t idle_ms = MADE_UP_IDLE_MS if producer.class_ == MADE_UP else NAMED_IDLE_MS
    return producer.last_ms != UNSET_MS and now_ms != UNSET_MS and producer.last_ms < now_ms - idle_ms


cdef void _free_forgotten(ProducerTable* table, int64_t now_ms) noexcept nogil:
    """Of each class some: more than can have come since."""
    cdef ProducerClass* class_
    cdef int i, _
    for i in range(N_CLASSES):
        class_ = &table.classes[i]
        for _ in range(FREED_AT_ONCE):
            if class_.oldest == NULL or not _is_forgotten(class_.oldest, now_ms):
                break
            if _free(table, class_.oldest) < 0:
                return
            class_.forgotten += 1


cdef uint64_t* _content(uint16_t capacity, const uint8_t* name, uint8_t name_bytes) noexcept nogil:
    """Nothing seen, and a name; NULL when out of memory."""
    cdef uint64_t* content = <uint64_t*>calloc(capacity * sizeof(uint64_t) + name_bytes, 1)
    if content != NULL and name_bytes:
        memcpy(content + capacity, name, name_bytes)
    return content


cdef Producer* _make(ProducerTable* table, uint64_t fp0, uint64_t fp1, uint8_t class_, uint16_t capacity,
                     const uint8_t* name, uint8_t name_bytes) noexcept nogil:
    cdef Producer* producer = <Producer*>calloc(1, sizeof(Producer))
    cdef Producer** bucket
    if producer == NULL:
        return NULL
    producer.content = _content(capacity, name, name_bytes)
    if producer.content == NULL:
        free(producer)
        return NULL
    producer.fp0 = fp0
    producer.fp1 = fp1
    producer.class_ = class_
    producer.capacity = capacity
    producer.name_bytes = name_bytes
    producer.last_ms = UNSET_MS
    producer.mark = table.round
    bucket = _bucket_of(table, fp0)
    producer.next = bucket[0]
    bucket[0] = producer
    _link_newest(table, producer)
    table.classes[class_].n += 1
    table.classes[class_].n_bytes += _bytes_of(capacity, name_bytes)
    if table.classes[NAMED].n + table.classes[MADE_UP].n > table.n_buckets:
        _split_one(table)
    return producer


cdef inline uint64_t _class_bytes(const ProducerClass* class_) noexcept nogil:
    return class_.n_bytes + class_.freed.n_bytes


cdef uint64_t producers_bytes(const ProducerTable* table) noexcept nogil:
    return _class_bytes(&table.classes[NAMED]) + _class_bytes(&table.classes[MADE_UP])


# -- what one has sent ---------------------------------------------------------------------------------------

cdef uint16_t _capacity_for(uint64_t n) noexcept nogil:
    cdef uint16_t capacity = FEWEST
    if n > 1024:
        return SEQUENCES
    while capacity < n:
        capacity *= 2
    return capacity


cdef uint16_t _needed(const Producer* producer, uint64_t epoch, uint64_t sequence) noexcept nogil:
    """The capacity that holds what was seen and this sequence, which can be judged."""
    cdef uint64_t lowest, highest = producer.highest
    cdef uint16_t needed
    if producer.capacity == SEQUENCES or epoch > producer.epoch:
        return producer.capacity
    if sequence <= highest:
        needed = _capacity_for(highest - sequence + 1)
    else:
        lowest = highest - producer.capacity + 1 if highest >= producer.capacity - 1 else 0
        if sequence - lowest >= SEQUENCES:
            lowest = sequence - SEQUENCES + 1
        while lowest <= highest and producer.content[lowest % producer.capacity] == 0:
            lowest += 1
        needed = FEWEST if lowest > highest else _capacity_for(sequence - lowest + 1)
    return needed if needed > producer.capacity else producer.capacity


cdef int _grow(ProducerTable* table, Producer* producer, uint16_t capacity,
               const Origin* origin) noexcept nogil:
    """To that capacity, and to the origin's name where it was not known."""
    cdef uint64_t* content
    cdef uint64_t sequence
    cdef uint16_t i
    if capacity == producer.capacity and producer.name_bytes == origin.name_bytes:
        return 0
    content = _content(capacity, origin.name, origin.name_bytes)
    if content == NULL:
        return -1
    for i in range(producer.capacity):
        if producer.highest < i:
            break
        sequence = producer.highest - i
        content[sequence % capacity] = producer.content[sequence % producer.capacity]
    free(producer.content)
    producer.content = content
    table.classes[producer.class_].n_bytes += _bytes_of(capacity, origin.name_bytes) - _bytes_of(
        producer.capacity, producer.name_bytes)
    producer.capacity = capacity
    producer.name_bytes = origin.name_bytes
    return 0


cdef inline bint _is_ignored(const Producer* producer, const Origin* origin) noexcept nogil:
    """Never live, where such batches are turned away. A replay begins with tables that may be ahead of its
    first batches."""
    return origin.epoch < producer.epoch or (
        origin.epoch == producer.epoch and (origin.sequence < producer.lowest or (
            producer.highest > origin.sequence and producer.highest - origin.sequence >= SEQUENCES)))


cdef inline bint _is_reached(uint64_t last, uint64_t next, int64_t wall_ms) noexcept nogil:
    """Whether a number may follow another: so that nobody uses all of them up for a name, which might not be
    his. It may also be a time, up to nanoseconds."""
    if next <= last or next - last <= FARTHEST_JUMP:
        return True
    return wall_ms > 0 and wall_ms < LATEST_MS and next <= <uint64_t>(wall_ms + DAY_MS) * 1_000_000


cdef bint _has_room(ProducerTable* table, uint8_t class_, uint64_t more) noexcept nogil:
    if more == 0 or _class_bytes(&table.classes[class_]) + more <= table.max_bytes // N_CLASSES:
        return True
    table.classes[class_].refused += 1
    return False


cdef inline int64_t _now(const ProducerTable* table, int64_t wall_ms) noexcept nogil:
    return wall_ms if wall_ms > table.now_ms else table.now_ms


cdef int producers_judge(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil:
    cdef const Producer* producer
    cdef int64_t now_ms = _now(table, wall_ms)
    cdef uint64_t seen = 0
    cdef uint16_t needed
    if not origin.given:
        return VERDICT_NEW
    _free_forgotten(table, now_ms)
    producer = _find(table, origin.fp0, origin.fp1)
    if producer == NULL or _is_forgotten(producer, now_ms):
        if not _is_reached(0, origin.epoch, wall_ms) or not _is_reached(0, origin.sequence, wall_ms):
            return VERDICT_JUMP
        if producer != NULL or _has_room(
                table, origin.class_, _bytes_of(FEWEST, origin.name_bytes)):
            return VERDICT_NEW
        return VERDICT_FULL
    if origin.epoch != producer.epoch:
        if origin.epoch < producer.epoch:
            return VERDICT_FENCED
        if not (_is_reached(producer.epoch, origin.epoch, wall_ms)
                and _is_reached(0, origin.sequence, wall_ms)):
            return VERDICT_JUMP
        return VERDICT_NEW
    if not _is_reached(producer.highest, origin.sequence, wall_ms):
        return VERDICT_JUMP
    if origin.sequence < producer.lowest:
        return VERDICT_TOO_OLD
    if origin.sequence <= producer.highest:
        if producer.highest - origin.sequence >= SEQUENCES:
            return VERDICT_TOO_OLD
        if producer.highest - origin.sequence < producer.capacity:
            seen = producer.content[origin.sequence % producer.capacity]
    if seen == 0:
        needed = _needed(producer, origin.epoch, origin.sequence)
        return VERDICT_NEW if _has_room(table, producer.class_, (
            needed - producer.capacity) * sizeof(uint64_t)) else VERDICT_FULL
    return VERDICT_DUPLICATE if seen == origin.content else VERDICT_CONFLICT


cdef void _begin(Producer* producer, const Origin* origin) noexcept nogil:
    memset(producer.content, 0, producer.capacity * sizeof(uint64_t))
    producer.epoch = origin.epoch
    producer.highest = origin.sequence
    producer.lowest = 0


cdef void _begin_silences(ProducerTable* table, int64_t now_ms) noexcept nogil:
    """Of producers of whom a store of before does not say when they wrote: from its first batch on."""
    cdef Producer* producer
    cdef int i
    for i in range(N_CLASSES):
        producer = table.classes[i].oldest
        while producer != NULL:
            if producer.last_ms == UNSET_MS:
                producer.last_ms = now_ms
                producer.mark = table.round
            producer = producer.newer


cdef Producer* producers_of(ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil:
    cdef int64_t now_ms = _now(table, wall_ms)
    cdef Producer* producer = _find(table, origin.fp0, origin.fp1)
    cdef uint16_t needed
    if table.now_ms == UNSET_MS:
        _begin_silences(table, now_ms)
    if producer == NULL:
        producer = _make(table, origin.fp0, origin.fp1, origin.class_, FEWEST, origin.name, origin.name_bytes)
        if producer == NULL:
            return NULL
        _begin(producer, origin)
    else:
        needed = producer.capacity
        if _is_forgotten(producer, now_ms):
            _begin(producer, origin)
        elif not _is_ignored(producer, origin):
            needed = _needed(producer, origin.epoch, origin.sequence)
        if _grow(table, producer, needed, origin) < 0:
            return NULL
    producer.mark = table.round
    table.now_ms = now_ms
    return producer


cdef inline void _heard(ProducerTable* table, Producer* producer, int64_t wall_ms) noexcept nogil:
    """Not at the table's now, which is ahead where a replay begins."""
    if wall_ms > producer.last_ms:
        producer.last_ms = wall_ms
    _unlink_age(table, producer)
    _link_newest(table, producer)


cdef void producer_remember(ProducerTable* table, Producer* producer, const Origin* origin,
                            int64_t wall_ms) noexcept nogil:
    cdef uint64_t gap, i
    if _is_ignored(producer, origin):
        return
    if origin.epoch > producer.epoch:
        _begin(producer, origin)
    elif origin.sequence > producer.highest:
        gap = origin.sequence - producer.highest
        if gap >= producer.capacity:
            memset(producer.content, 0, producer.capacity * sizeof(uint64_t))
        else:
            for i in range(1, gap):
                producer.content[(producer.highest + i) % producer.capacity] = 0
        producer.highest = origin.sequence
    producer.content[origin.sequence % producer.capacity] = origin.content
    _heard(table, producer, wall_ms)


cdef void producers_set_back(ProducerTable* table, int64_t now_ms) noexcept nogil:
    """Or all would be remembered until the clock has come to where it was, and fill the table. Those who were
    forgotten by then stay so: some are gone."""
    cdef Producer* producer
    cdef Producer* newer
    cdef int i
    for i in range(N_CLASSES):
        producer = table.classes[i].oldest
        while producer != NULL:
            newer = producer.newer
            if _is_forgotten(producer, table.now_ms):
                if _free(table, producer) < 0:
                    return
            elif producer.last_ms > now_ms:
                producer.last_ms = now_ms
                producer.mark = table.round
            producer = newer
    if table.now_ms > now_ms:
        table.now_ms = now_ms


cdef bint producers_know(const ProducerTable* table, const Origin* origin, int64_t wall_ms) noexcept nogil:
    cdef const Producer* producer = _find(table, origin.fp0, origin.fp1)
    return producer != NULL and not _is_forgotten(producer, _now(table, wall_ms))


cdef int producers_change(ProducerTable* table, int change, const Origin* origin,
                          int64_t wall_ms) noexcept nogil:
    cdef Producer* producer = _find(table, origin.fp0, origin.fp1)
    cdef int64_t now_ms = _now(table, wall_ms)
    if table.now_ms == UNSET_MS:
        _begin_silences(table, now_ms)
    table.now_ms = now_ms
    if producer == NULL:
        return 0
    if change == CHANGE_DROP:
        return _free(table, producer)
    _begin(producer, origin)
    producer.lowest = origin.sequence + 1
    producer.mark = table.round
    _heard(table, producer, wall_ms)
    return 0


# -- bytes ---------------------------------------------------------------------------------------------------
#
# Little-endian: u32 version (3), u32 0, i64 now, then per producer: u64[2] fingerprint, u64 epoch, u64
# highest, i64 last, u8 class, u8 bytes of the name, u16 n, u32 0, u64 lowest, the name and u16[n] how far
# below the highest each sequence is that was seen, ascending, each padded with zeros to a multiple of 8,
# u64[n] the fingerprints of their batches.
#
# In a checkpoint, version 4: the head alone, and of each producer a record: u64[2] its fingerprint,
# big-endian, u32 bytes that follow (all ones: it is gone, and nothing follows), and what version 3 has of it.
#
# Version 2 had neither `lowest` nor names.
#
# Version 1 had no head, and per producer 8240 bytes: u64[2] fingerprint, u64 epoch, u64 highest, i64 last on
# the store's clock, u64[1025] fingerprint of the batch of each sequence at place sequence % 1025.

ctypedef struct Head:
    uint32_t version
    uint32_t zero
    int64_t now_ms

ctypedef struct FirstRecord:
    uint64_t fp[2]
    uint64_t epoch
    uint64_t highest
    int64_t last_ms
    uint64_t content[SEQUENCES]


cdef int _put_head(const ProducerTable* table, uint32_t version, Bytes* out) noexcept nogil:
    cdef Head head
    memset(&head, 0, sizeof(head))
    head.version = version
    head.now_ms = table.now_ms
    return bytes_append(out, &head, sizeof(head))


cdef int _put(const Producer* producer, bint whole, Bytes* out) noexcept nogil:
    cdef uint16_t below[SEQUENCES + 3]
    cdef uint64_t content[SEQUENCES]
    cdef uint64_t zeros = 0, seen
    cdef ProducerRecord record
    cdef uint16_t i
    memset(&record, 0, sizeof(record))
    memset(below, 0, sizeof(below))
    record.fp[0] = producer.fp0
    record.fp[1] = producer.fp1
    record.epoch = producer.epoch
    record.highest = producer.highest
    record.last_ms = producer.last_ms
    record.class_ = producer.class_
    record.name_bytes = producer.name_bytes
    record.lowest = producer.lowest
    for i in range(producer.capacity if whole else 0):
        if producer.highest < i:
            break
        seen = producer.content[(producer.highest - i) % producer.capacity]
        if seen:
            below[record.n] = i
            content[record.n] = seen
            record.n += 1
    if (bytes_append(out, &record, sizeof(record)) < 0
            or bytes_append(out, _name_of(producer), producer.name_bytes) < 0
            or bytes_append(out, &zeros, -producer.name_bytes & 7) < 0
            or bytes_append(out, below, (record.n * 2 + 7) & ~7) < 0
            or bytes_append(out, content, record.n * sizeof(uint64_t)) < 0):
        return -1
    return 0


cdef int _put_record_head(const uint64_t* fp, uint32_t n_bytes, Bytes* out) noexcept nogil:
    cdef uint64_t key[2]
    key[0] = fs_bswap64(fp[0])
    key[1] = fs_bswap64(fp[1])
    if bytes_append(out, key, sizeof(key)) < 0:
        return -1
    return bytes_append(out, &n_bytes, sizeof(n_bytes))


cdef int _put_changed(const ProducerTable* table, Producer* producer, Bytes* out) noexcept nogil:
    cdef size_t at = out.n_bytes
    cdef uint32_t n_bytes
    if producer.mark <= table.stored:
        return 0
    if _put_record_head(&producer.fp0, 0, out) < 0 or _put(producer, True, out) < 0:
        return -1
    n_bytes = <uint32_t>(out.n_bytes - at - RECORD_HEAD_BYTES)
    memcpy(out.data + at + 16, &n_bytes, sizeof(n_bytes))
    producer.is_stored = True
    return 0


cdef int _walk(ProducerTable* table, uint64_t* bucket, uint32_t max_buckets, int64_t now_ms, bint changed,
               Bytes* out) noexcept nogil:
    """bucket[0]: the next one, and how many there were at the beginning (upper half). Whatever has been split
    since, what was in one of those is in buckets of the same remainder, and so is what would have been."""
    cdef Producer* producer
    cdef uint64_t at = bucket[0] & 0xFFFFFFFFu, n = bucket[0] >> 32, level = SEGMENT, step, i
    cdef uint32_t looked = 0
    cdef int status = 0
    if bucket[0] == 0:
        n = table.n_buckets
    if n < SEGMENT or n > table.n_buckets or at >= n:
        return -2
    while 2 * level <= n:
        level *= 2
    while at < n and looked < max_buckets:
        looked += 1
        step = level if n - level <= at < level else 2 * level
        i = at
        while i < table.n_buckets:
            producer = _bucket_at(table, i)[0]
            while producer != NULL:
                if changed:
                    status = _put_changed(table, producer, out)
                elif not _is_forgotten(producer, now_ms):
                    status = _put(producer, False, out)
                if status < 0:
                    return -1
                producer = producer.next
            i += step
        at += 1
    bucket[0] = n << 32 | at
    return 1 if at < n else 0


cdef int producers_cut(ProducerTable* table, Bytes* out) noexcept nogil:
    cdef int i
    if _put_head(table, 4, out) < 0:
        return -1
    for i in range(N_CLASSES):
        table.classes[i].n_freed_copied = table.classes[i].freed.n_bytes
    table.copied = table.round
    table.round += 1
    return 0


cdef int producers_copy_gone(const ProducerTable* table, uint64_t* at, uint32_t most,
                             Bytes* out) noexcept nogil:
    cdef const ProducerClass* class_
    cdef uint64_t before = 0, n, fp[2]
    cdef uint32_t copied = 0
    cdef int i
    for i in range(N_CLASSES):
        class_ = &table.classes[i]
        n = class_.n_freed_copied // FREED_BYTES
        while at[0] < before + n and copied < most:
            memcpy(fp, class_.freed.data + (at[0] - before) * FREED_BYTES, FREED_BYTES)
            if _put_record_head(fp, NO_RECORD, out) < 0:
                return -1
            at[0] += 1
            copied += 1
        before += n
    return 1 if at[0] < before else 0


cdef int producers_copy(ProducerTable* table, uint64_t* bucket, uint32_t max_buckets,
                        Bytes* out) noexcept nogil:
    return _walk(table, bucket, max_buckets, UNSET_MS, True, out)


cdef void producers_copy_end(ProducerTable* table, bint written, Bytes* freed) noexcept nogil:
    cdef ProducerClass* class_
    cdef size_t left
    cdef int i
    for i in range(N_CLASSES):
        class_ = &table.classes[i]
        if written and table.copied and class_.n_freed_copied:
            left = class_.freed.n_bytes - class_.n_freed_copied
            if left:                     # what came meanwhile is little
                memmove(class_.freed.data, class_.freed.data + class_.n_freed_copied, left)
                class_.freed.n_bytes = left
            else:
                freed[i] = class_.freed
                memset(&class_.freed, 0, sizeof(Bytes))
        class_.n_freed_copied = 0
    if written and table.copied:
        table.stored = table.copied
    table.copied = 0


cdef int producers_list(ProducerTable* table, uint64_t* bucket, uint32_t max_buckets, int64_t wall_ms,
                        Bytes* out) noexcept nogil:
    return _walk(table, bucket, max_buckets, _now(table, wall_ms), False, out)


cdef int producers_get(const ProducerTable* table, const Origin* origin, int64_t wall_ms,
                       Bytes* out) noexcept nogil:
    cdef const Producer* producer = _find(table, origin.fp0, origin.fp1)
    if producer == NULL or _is_forgotten(producer, _now(table, wall_ms)):
        return 1
    return _put(producer, True, out)


cdef int _by_fingerprint(const void* a, const void* b) noexcept nogil:
    return by_words(&(<Producer**>a)[0].fp0, &(<Producer**>b)[0].fp0)


cdef int _by_age(const void* a, const void* b) noexcept nogil:
    cdef const Producer* x = (<Producer**>a)[0]
    cdef const Producer* y = (<Producer**>b)[0]
    if x.last_ms != y.last_ms:
        return 1 if x.last_ms > y.last_ms else -1
    return by_words(&x.fp0, &y.fp0)


cdef Producer** _all(const ProducerTable* table, uint64_t* n) noexcept nogil:
    """The caller's to free."""
    cdef Producer** found
    cdef Producer* producer
    cdef int i
    n[0] = 0
    found = <Producer**>malloc((table.classes[NAMED].n + table.classes[MADE_UP].n + 1) * sizeof(void*))
    if found == NULL:
        return NULL
    for i in range(N_CLASSES):
        producer = table.classes[i].oldest
        while producer != NULL:
            found[n[0]] = producer
            n[0] += 1
            producer = producer.newer
    return found


cdef int producers_export(const ProducerTable* table, Bytes* out) noexcept nogil:
    cdef uint64_t n, i
    cdef Producer** found = _all(table, &n)
    cdef int status = 0 if found != NULL else -1
    if status == 0:
        qsort(found, n, sizeof(void*), _by_fingerprint)
        status = _put_head(table, 3, out)
    for i in range(n):
        if status == 0 and not _is_forgotten(found[i], table.now_ms):
            status = _put(found[i], True, out)
    free(found)
    return status


cdef int _order_by_age(ProducerTable* table) noexcept nogil:
    cdef uint64_t n, i
    cdef Producer** found = _all(table, &n)
    cdef int j
    if found == NULL:
        return -1
    qsort(found, n, sizeof(void*), _by_age)
    for j in range(N_CLASSES):
        table.classes[j].oldest = table.classes[j].newest = NULL
    for i in range(n):
        _link_newest(table, found[i])
    free(found)
    return 0


cdef Producer* _imported(ProducerTable* table, const uint64_t* fp, uint8_t class_, uint16_t capacity,
                         const uint8_t* name, uint8_t name_bytes) noexcept nogil:
    """A record without what it has seen; it replaces one that was copied before it moved."""
    cdef Producer* producer = _find(table, fp[0], fp[1])
    if producer != NULL and _free(table, producer) < 0:
        return NULL
    return _make(table, fp[0], fp[1], class_, capacity, name, name_bytes)


cdef int _import_first(ProducerTable* table, const uint8_t* data, size_t n_bytes, bint wall) noexcept nogil:
    cdef FirstRecord record
    cdef Producer* producer
    cdef size_t k
    cdef uint16_t i, n
    if n_bytes % sizeof(FirstRecord):
        return 1
    for k in range(n_bytes // sizeof(FirstRecord)):
        memcpy(&record, data + k * sizeof(FirstRecord), sizeof(FirstRecord))
        if not is_clock(record.last_ms):
            return 1
        n = 1
        for i in range(SEQUENCES):
            if record.highest >= i and record.content[(record.highest - i) % SEQUENCES]:
                n = i + 1
        producer = _imported(table, record.fp, NAMED, _capacity_for(n), NULL, 0)
        if producer == NULL:
            return -1
        producer.epoch = record.epoch
        producer.highest = record.highest
        # Where events brought the time, it says nothing of when the producer wrote.
        producer.last_ms = record.last_ms if wall else UNSET_MS
        for i in range(n):
            if record.highest >= i:
                producer.content[(record.highest - i) % producer.capacity] = record.content[
                    (record.highest - i) % SEQUENCES]
    return 0


cdef int _import_one(ProducerTable* table, uint32_t version, const uint8_t* data, size_t n_bytes,
                     size_t* taken) noexcept nogil:
    """The record that n_bytes begin with; how many it has. 0, 1 not readable, -1 memory."""
    cdef ProducerRecord record
    cdef Producer* producer
    cdef const uint8_t* at = data
    cdef size_t record_bytes = sizeof(record) if version > 2 else SECOND_RECORD_BYTES, n_below, n_name
    cdef uint64_t seen
    cdef uint16_t below, before = 0, i
    if n_bytes < record_bytes:
        return 1
    memset(&record, 0, sizeof(record))
    memcpy(&record, at, record_bytes)
    at += record_bytes
    n_name = (<size_t>record.name_bytes + 7) & ~<size_t>7
    n_below = (<size_t>record.n * 2 + 7) & ~<size_t>7
    taken[0] = record_bytes + n_name + n_below + <size_t>record.n * 8
    if (record.n > SEQUENCES or record.class_ >= N_CLASSES or record.zeros
            or (record.name_bytes and version == 2)
            or (record.lowest and record.lowest - 1 > record.highest)
            or not is_clock(record.last_ms) or n_bytes < taken[0]):
        return 1
    if record.n:
        memcpy(&before, at + n_name + (<size_t>record.n - 1) * 2, 2)     # the farthest below
    if before >= SEQUENCES:
        return 1
    producer = _imported(table, record.fp, record.class_, _capacity_for(<uint64_t>before + 1), at,
                         record.name_bytes)
    if producer == NULL:
        return -1
    at += n_name
    producer.epoch = record.epoch
    producer.highest = record.highest
    producer.lowest = record.lowest
    producer.last_ms = record.last_ms
    for i in range(record.n):
        memcpy(&below, at + <size_t>i * 2, 2)
        memcpy(&seen, at + n_below + <size_t>i * 8, 8)
        if (below > record.highest or below >= producer.capacity or (i and below <= before)
                or seen == 0 or record.highest - below < record.lowest):
            return 1
        before = below
        producer.content[(record.highest - below) % producer.capacity] = seen
    return 0


cdef int producers_import(ProducerTable* table, const uint8_t* data, size_t n_bytes,
                          bint wall) noexcept nogil:
    cdef Head head
    cdef size_t at = sizeof(head), taken = 0
    cdef int status
    if n_bytes >= sizeof(head):
        memcpy(&head, data, sizeof(head))
    if n_bytes < sizeof(head) or not 2 <= head.version <= 4 or head.zero:
        status = _import_first(table, data, n_bytes, wall)
        return _order_by_age(table) if status == 0 else status
    if not is_clock(head.now_ms):
        return 1
    table.now_ms = head.now_ms
    if head.version == 4:
        return 2 if n_bytes == sizeof(head) else 1
    while at < n_bytes:
        status = _import_one(table, head.version, data + at, n_bytes - at, &taken)
        if status != 0:
            return status
        at += taken
    return _order_by_age(table)


cdef int producers_import_records(ProducerTable* table, const uint8_t* data,
                                  size_t n_bytes) noexcept nogil:
    cdef Producer* producer
    cdef size_t at = 0, taken = 0
    cdef uint64_t key[2]
    cdef uint32_t size
    cdef int status
    while at < n_bytes:
        if n_bytes - at < RECORD_HEAD_BYTES:
            return 1
        memcpy(key, data + at, 16)
        memcpy(&size, data + at + 16, 4)
        at += RECORD_HEAD_BYTES
        key[0] = fs_bswap64(key[0])
        key[1] = fs_bswap64(key[1])
        if size > n_bytes - at or _find(table, key[0], key[1]) != NULL:
            return 1
        status = _import_one(table, 3, data + at, size, &taken)
        if status != 0:
            return status
        producer = _find(table, key[0], key[1])
        if taken != size or producer == NULL:
            return 1
        producer.is_stored = True
        producer.mark = 0
        at += size
    return _order_by_age(table)
