"""The row store's entries in LMDB: records in blocks, heads of shards, metas in chunks; without the GIL.

Layout: packed blocks, not a key per row. A block is one value of up to 4080 bytes with the records of a range
of fingerprints, as in the leaves of a B+-tree. Writing merges the dirty records into the blocks that cover
them (read, merge, write), splits what became too large and merges what became too small:

    key   02 | shard u16 BE | fingerprint of the first record
    value crc32c u32 | n_records u32 | fingerprint, u32 length, payload | fingerprint, ...

Why, measured with benches/rows_layout.py (5 M rows of 100 bytes in 64 shards, one synced commit each):

    of a key per row, through py-lmdb's putmulti: writing all 0.28 of the time, a random tenth 0.84 of it,
    loading 0.16 of it; 0.91 of the file
    of a row per block, in the same C code: writing all 0.7, a random tenth 1.2 (1 M rows: 0.34), loading 0.36

A random tenth touches nearly every page in any layout, so each wrote 10 to 11 times the changed bytes, and
the file then holds its pages twice. Larger blocks load little faster, and with 1 % of the rows changed those
of 16 KiB wrote 2.5 times what those of 4 KiB wrote. Values of half a page are the worst: two share a leaf,
and an inner split leaves it half empty.

Promise: no function here trusts a byte it read. What is not what was written, under this key, comes back as a
FaultCode and is never merged, copied out or given a new checksum. All formats are in FORMAT.md.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy, memset

import os

from featurestore.core.hashing cimport crc32c, hashing_structs
from featurestore.storage.lmdb_api cimport (
    MDB_CORRUPTED, MDB_INCOMPATIBLE, MDB_INVALID, MDB_LAST, MDB_MAP_FULL, MDB_NEXT, MDB_NOTFOUND,
    MDB_PAGE_NOTFOUND, MDB_PREV, MDB_READERS_FULL, MDB_RESERVE, MDB_SET_RANGE, MDB_VERSION_MISMATCH, LmdbApi,
    MDB_cursor, MDB_dbi, MDB_txn, MDB_val, lmdb,
)

from featurestore.core.structs import same_structs
from featurestore.errors import CorruptRecordError, IncompatibleVersionError, LimitError, StorageError

same_structs(__name__, blocks_structs(), hashing_structs())

cdef enum:
    PAGE_BYTES = 4096             # of LMDB, where the system has such
    PAGE_HEAD_BYTES = 16


cdef int fail(Fault* fault, int code, uint64_t expected, uint64_t found) noexcept nogil:
    fault.code, fault.expected, fault.found = code, expected, found
    return code


cdef int fail_lmdb(Fault* fault, int error) noexcept nogil:
    fault.error = error
    return fail(fault, FAULT_LMDB, 0, 0)


cdef void name_key(Fault* fault, const void* key, size_t key_bytes) noexcept nogil:
    fault.key_bytes = min(key_bytes, sizeof(fault.key))
    if fault.key_bytes > 0:       # memcpy must not be given a null key, even of no bytes
        memcpy(fault.key, key, fault.key_bytes)


# Of its key, then of its value behind the checksum itself: a value moved to another key is noticed.
cdef uint32_t entry_crc(const uint8_t* key, size_t key_bytes, const uint8_t* value,
                        size_t value_bytes) noexcept nogil:
    return crc32c(crc32c(0, key, key_bytes), value + 4, value_bytes - 4)


cdef int check_entry(const uint8_t* key, size_t key_bytes, const uint8_t* value, size_t value_bytes,
                     size_t least_bytes, Fault* fault) noexcept nogil:
    cdef uint32_t crc
    name_key(fault, key, key_bytes)
    if value_bytes < least_bytes:
        return fail(fault, FAULT_SHORT, least_bytes, value_bytes)
    crc = entry_crc(key, key_bytes, value, value_bytes)
    if crc != load_u32(value):
        return fail(fault, FAULT_CHECKSUM, load_u32(value), crc)
    return FAULT_NONE


cdef int check_records(const uint8_t* data, size_t size, bint may_free, uint64_t* n_rows,
                       Fault* fault) noexcept nogil:
    cdef size_t at = 0, length
    cdef const uint8_t* before = NULL
    n_rows[0] = 0
    while at < size:
        if size - at < RECORD_HEAD_BYTES:
            return fail(fault, FAULT_LENGTH, 0, at)
        length = load_u32(data + at + FINGERPRINT_BYTES)
        if may_free and length == FREED:
            length = 0
        if length > MAX_ROW_BYTES or length > size - at - RECORD_HEAD_BYTES:
            return fail(fault, FAULT_LENGTH, 0, at)
        if before != NULL and memcmp(before, data + at, FINGERPRINT_BYTES) >= 0:
            return fail(fault, FAULT_ORDER, 0, at)
        before = data + at
        at += RECORD_HEAD_BYTES + length
        n_rows[0] += 1
    return FAULT_NONE


cdef int check_block(const uint8_t* key, size_t key_bytes, const uint8_t* value, size_t value_bytes,
                     uint64_t* n_rows, Fault* fault) noexcept nogil:
    cdef int code
    n_rows[0] = 0
    name_key(fault, key, key_bytes)
    if key_bytes != BLOCK_KEY_BYTES:
        return fail(fault, FAULT_KEY, BLOCK_KEY_BYTES, key_bytes)
    code = check_entry(key, key_bytes, value, value_bytes, BLOCK_HEAD_BYTES + RECORD_HEAD_BYTES, fault)
    if code == FAULT_NONE:
        code = check_records(value + BLOCK_HEAD_BYTES, value_bytes - BLOCK_HEAD_BYTES, False, n_rows, fault)
    if code != FAULT_NONE:
        return code
    if n_rows[0] != load_u32(value + 4):
        return fail(fault, FAULT_COUNT, load_u32(value + 4), n_rows[0])
    if memcmp(key + 3, value + BLOCK_HEAD_BYTES, FINGERPRINT_BYTES) != 0:
        return fail(fault, FAULT_FIRST, 0, 0)
    return FAULT_NONE


cdef int append(Buffer* buffer, const void* data, size_t size) noexcept nogil:
    cdef size_t capacity = buffer.capacity
    cdef uint8_t* grown
    if size > capacity - buffer.size:
        if size > (<size_t> -1) // 4 - buffer.size:
            return FAULT_MEMORY
        capacity = max(2 * capacity, buffer.size + size, <size_t> 4 * VALUE_BYTES)
        grown = <uint8_t*> realloc(buffer.data, capacity)
        if grown == NULL:
            return FAULT_MEMORY
        buffer.data, buffer.capacity = grown, capacity
    memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size
    return FAULT_NONE


cdef void shard_key(uint8_t* key, int kind, uint32_t shard) noexcept nogil:
    key[0], key[1], key[2] = <uint8_t> kind, <uint8_t> (shard >> 8), <uint8_t> shard


# Appends old and new records below `upper` (NULL: all) in one order; a new record replaces an old one of the
# same fingerprint, and a freed one leaves nothing. Returns a FaultCode; at[0] is moved past the new records
# taken.
cdef int merge_records(Buffer* into, const uint8_t* old, size_t old_size, const uint8_t* new, size_t new_size,
                       size_t* at, const uint8_t* upper) noexcept nogil:
    cdef size_t i = 0, length
    cdef int order
    cdef bint has_old, has_new
    while True:
        has_old = i < old_size
        has_new = at[0] < new_size and (upper == NULL or memcmp(new + at[0], upper, FINGERPRINT_BYTES) < 0)
        if has_old and has_new:
            order = memcmp(old + i, new + at[0], FINGERPRINT_BYTES)
        elif has_old:
            order = -1
        elif has_new:
            order = 1
        else:
            return FAULT_NONE
        if order <= 0:
            length = RECORD_HEAD_BYTES + <size_t> load_u32(old + i + FINGERPRINT_BYTES)
            if order < 0 and append(into, old + i, length) != FAULT_NONE:
                return FAULT_MEMORY
            i += length
        if order >= 0:
            length = load_u32(new + at[0] + FINGERPRINT_BYTES)
            if length == FREED:
                length = 0
            elif append(into, new + at[0], RECORD_HEAD_BYTES + length) != FAULT_NONE:
                return FAULT_MEMORY
            at[0] += RECORD_HEAD_BYTES + length


cdef void start_job(Job* job, const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, uint32_t shard) noexcept nogil:
    memset(job, 0, sizeof(Job))
    job.api, job.txn, job.dbi, job.shard = api, txn, dbi, shard


cdef bint is_block_of(const Job* job, const MDB_val* key) noexcept nogil:
    cdef const uint8_t* bytes_ = <const uint8_t*> key.mv_data
    return (key.mv_size == BLOCK_KEY_BYTES and bytes_[0] == KIND_BLOCK
            and bytes_[1] == job.shard >> 8 and bytes_[2] == (job.shard & 0xFF))


cdef int seek_block(Job* job, const uint8_t* fingerprint, MDB_val* key, MDB_val* value,
                    bint* found) noexcept nogil:
    cdef uint8_t[BLOCK_KEY_BYTES] sought
    cdef int rc
    shard_key(sought, KIND_BLOCK, job.shard)
    memcpy(sought + 3, fingerprint, FINGERPRINT_BYTES)
    key.mv_size, key.mv_data = BLOCK_KEY_BYTES, sought
    rc = job.api.cursor_get(job.cursor, key, value, MDB_SET_RANGE)
    if rc == 0 and is_block_of(job, key) and memcmp(key.mv_data, sought, BLOCK_KEY_BYTES) == 0:
        found[0] = True
        return 0
    if rc != 0 and rc != MDB_NOTFOUND:
        return rc
    rc = job.api.cursor_get(job.cursor, key, value, MDB_LAST if rc == MDB_NOTFOUND else MDB_PREV)
    found[0] = rc == 0 and is_block_of(job, key)
    if found[0] or (rc != 0 and rc != MDB_NOTFOUND):
        return rc
    key.mv_size, key.mv_data = BLOCK_KEY_BYTES, sought
    rc = job.api.cursor_get(job.cursor, key, value, MDB_SET_RANGE)
    found[0] = rc == 0 and is_block_of(job, key)
    return 0 if rc == MDB_NOTFOUND else rc


cdef int put_block(Job* job, const uint8_t* records, size_t size, uint32_t n_records,
                   Fault* fault) noexcept nogil:
    cdef uint8_t[BLOCK_KEY_BYTES] key_bytes
    cdef MDB_val key, value
    cdef uint8_t* to
    cdef int rc
    shard_key(key_bytes, KIND_BLOCK, job.shard)
    memcpy(key_bytes + 3, records, FINGERPRINT_BYTES)
    key.mv_size, key.mv_data = BLOCK_KEY_BYTES, key_bytes
    value.mv_size, value.mv_data = BLOCK_HEAD_BYTES + size, NULL
    rc = job.api.cursor_put(job.cursor, &key, &value, MDB_RESERVE)
    if rc != 0:
        return fail_lmdb(fault, rc)
    to = <uint8_t*> value.mv_data
    store_u32(to + 4, n_records)
    memcpy(to + BLOCK_HEAD_BYTES, records, size)
    store_u32(to, entry_crc(key_bytes, BLOCK_KEY_BYTES, to, BLOCK_HEAD_BYTES + size))
    job.changed_bytes += PAGE_BYTES * (1 + (PAGE_HEAD_BYTES + BLOCK_HEAD_BYTES + size - 1) // PAGE_BYTES)
    job.head.n_rows += n_records
    job.head.n_bytes += size
    job.head.crc_sum += load_u32(to)
    return FAULT_NONE


# Writes the merged records as blocks of about equal size, and deletes the blocks they came from.
cdef int put_merged(Job* job, Fault* fault) noexcept nogil:
    cdef const uint8_t* data = job.merged.data
    cdef size_t size = job.merged.size, limit = job.block_bytes - BLOCK_HEAD_BYTES
    cdef size_t n_blocks = (size + limit - 1) // limit, begin = 0, end, share, length, i = 0
    cdef uint32_t n_records
    cdef MDB_val key, value
    cdef int rc
    # The first block mostly keeps its key, and is then overwritten.
    if job.stale.size > 0 and size > 0 and memcmp(job.stale.data + 3, data, FINGERPRINT_BYTES) == 0:
        i = BLOCK_KEY_BYTES
    while i < job.stale.size:
        key.mv_size, key.mv_data = BLOCK_KEY_BYTES, job.stale.data + i
        rc = job.api.cursor_get(job.cursor, &key, &value, MDB_SET_RANGE)
        if rc == 0:
            rc = job.api.cursor_del(job.cursor, 0)
        if rc != 0:
            return fail_lmdb(fault, rc)
        i += BLOCK_KEY_BYTES
    while begin < size:
        share = (size - begin) // max(n_blocks, <size_t> 1)
        end, n_records = begin, 0
        while end < size:
            length = RECORD_HEAD_BYTES + <size_t> load_u32(data + end + FINGERPRINT_BYTES)
            if n_records > 0 and (end - begin + length > limit or end - begin + length // 2 > share):
                break
            end += length
            n_records += 1
        rc = put_block(job, data + begin, end - begin, n_records, fault)
        if rc != FAULT_NONE:
            return rc
        begin = end
        n_blocks -= n_blocks > 1
    return FAULT_NONE


cdef int write_records(Job* job, const uint8_t* records, size_t size, Fault* fault) noexcept nogil:
    cdef size_t at = 0
    cdef MDB_val key, value, old
    cdef uint8_t[FINGERPRINT_BYTES] upper
    cdef bint found = False, has_next
    cdef uint64_t n_rows
    cdef int rc
    while at < size:
        job.merged.size = job.stale.size = 0
        rc = seek_block(job, records + at, &key, &value, &found)
        if rc != 0:
            return fail_lmdb(fault, rc)
        while True:
            has_next = False
            old.mv_size, old.mv_data = 0, NULL
            if found:
                # Checked before it is merged: bytes gone bad must not get a new checksum.
                rc = check_block(<const uint8_t*> key.mv_data, key.mv_size, <const uint8_t*> value.mv_data,
                                 value.mv_size, &n_rows, fault)
                if rc != FAULT_NONE:
                    return rc
                old.mv_size = value.mv_size - BLOCK_HEAD_BYTES
                old.mv_data = <uint8_t*> value.mv_data + BLOCK_HEAD_BYTES
                job.head.n_rows -= n_rows
                job.head.n_bytes -= old.mv_size
                job.head.crc_sum -= load_u32(<const uint8_t*> value.mv_data)
                if append(job.stale, key.mv_data, BLOCK_KEY_BYTES) != FAULT_NONE:
                    return fail(fault, FAULT_MEMORY, 0, 0)
                rc = job.api.cursor_get(job.cursor, &key, &value, MDB_NEXT)
                if rc != 0 and rc != MDB_NOTFOUND:
                    return fail_lmdb(fault, rc)
                has_next = rc == 0 and is_block_of(job, &key)
                if has_next:
                    memcpy(upper, <const uint8_t*> key.mv_data + 3, FINGERPRINT_BYTES)
            if merge_records(job.merged, <const uint8_t*> old.mv_data, old.mv_size, records, size, &at,
                             upper if has_next else NULL) != FAULT_NONE:
                return fail(fault, FAULT_MEMORY, 0, 0)
            # What is left under a quarter takes its neighbour in, so freed rows give their space back.
            if not has_next or job.merged.size == 0 or job.merged.size >= job.block_bytes // 4:
                break
        rc = put_merged(job, fault)
        if rc != FAULT_NONE:
            return rc
    return FAULT_NONE


cdef int walk_blocks(Job* job, Walk* walk, Fault* fault) noexcept nogil:
    cdef uint8_t[BLOCK_KEY_BYTES] sought
    cdef MDB_val key, value
    cdef const uint8_t* records
    cdef uint64_t n_rows
    cdef size_t size, at, length
    cdef int rc
    shard_key(sought, KIND_BLOCK, job.shard)
    while True:
        key.mv_size, key.mv_data = SHARD_KEY_BYTES, sought
        rc = job.api.cursor_get(job.cursor, &key, &value, MDB_NEXT if walk.begun else MDB_SET_RANGE)
        if rc == MDB_NOTFOUND or (rc == 0 and (key.mv_size < SHARD_KEY_BYTES
                                               or memcmp(key.mv_data, sought, SHARD_KEY_BYTES) != 0)):
            walk.ended = True
            return FAULT_NONE
        if rc != 0:
            return fail_lmdb(fault, rc)
        rc = check_block(<const uint8_t*> key.mv_data, key.mv_size, <const uint8_t*> value.mv_data,
                         value.mv_size, &n_rows, fault)
        records, size = <const uint8_t*> value.mv_data + BLOCK_HEAD_BYTES, value.mv_size - BLOCK_HEAD_BYTES
        if rc == FAULT_NONE and walk.begun and memcmp(walk.last, records, FINGERPRINT_BYTES) >= 0:
            rc = fail(fault, FAULT_ORDER, 0, 0)
        walk.begun = True
        if rc != FAULT_NONE:
            return rc
        at = 0
        while at < size:
            length = RECORD_HEAD_BYTES + <size_t> load_u32(records + at + FINGERPRINT_BYTES)
            if length == size - at:
                memcpy(walk.last, records + at, FINGERPRINT_BYTES)
            at += length
        if walk.out != NULL:
            if size > walk.capacity - walk.taken:
                return fail(fault, FAULT_TOTALS, walk.capacity, walk.taken + size)
            memcpy(walk.out + walk.taken, records, size)
            walk.taken += size
        job.head.n_rows += n_rows
        job.head.n_bytes += size
        job.head.crc_sum += load_u32(<const uint8_t*> value.mv_data)
        if walk.enough and walk.taken >= walk.enough:
            return FAULT_NONE


cdef int get_head(const Job* job, ShardHead* head, bint* found, Fault* fault) noexcept nogil:
    cdef uint8_t[SHARD_KEY_BYTES] key_bytes
    cdef MDB_val key, value
    cdef const uint8_t* data
    cdef int rc
    memset(head, 0, sizeof(ShardHead))
    shard_key(key_bytes, KIND_SHARD, job.shard)
    key.mv_size, key.mv_data = SHARD_KEY_BYTES, key_bytes
    rc = job.api.get(job.txn, job.dbi, &key, &value)
    found[0] = rc == 0
    if rc != 0:
        return FAULT_NONE if rc == MDB_NOTFOUND else fail_lmdb(fault, rc)
    data = <const uint8_t*> value.mv_data
    rc = check_entry(key_bytes, SHARD_KEY_BYTES, data, value.mv_size, SHARD_VALUE_BYTES, fault)
    if rc == FAULT_NONE:
        head.position, head.n_rows = load_u64(data + 8), load_u64(data + 16)
        head.n_bytes, head.crc_sum = load_u64(data + 24), load_u64(data + 32)
    return rc


cdef int put_head(const Job* job, Fault* fault) noexcept nogil:
    cdef uint8_t[SHARD_KEY_BYTES] key
    cdef uint8_t[SHARD_VALUE_BYTES] data
    shard_key(key, KIND_SHARD, job.shard)
    store_u32(data + 4, 0)
    store_u64(data + 8, job.head.position)
    store_u64(data + 16, job.head.n_rows)
    store_u64(data + 24, job.head.n_bytes)
    store_u64(data + 32, job.head.crc_sum)
    return put_entry(job.api, job.txn, job.dbi, key, SHARD_KEY_BYTES, data, SHARD_VALUE_BYTES, fault)


cdef int put_entry(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, const uint8_t* key_bytes, size_t key_size,
                   uint8_t* data, size_t size, Fault* fault) noexcept nogil:
    cdef MDB_val key, value
    cdef int rc
    store_u32(data, entry_crc(key_bytes, key_size, data, size))
    key.mv_size, key.mv_data = key_size, <void*> key_bytes
    value.mv_size, value.mv_data = size, data
    rc = api.put(txn, dbi, &key, &value, 0)
    return FAULT_NONE if rc == 0 else fail_lmdb(fault, rc)


cdef size_t chunk_key(uint8_t* key, const char* name, size_t name_bytes, uint32_t index) noexcept nogil:
    key[0] = KIND_CHUNK
    memcpy(key + 1, name, name_bytes)
    key += 1 + name_bytes
    key[0], key[1], key[2] = 0, <uint8_t> (index >> 24), <uint8_t> (index >> 16)
    key[3], key[4] = <uint8_t> (index >> 8), <uint8_t> index
    return name_bytes + 6


cdef int put_chunks(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, MDB_cursor* cursor, const char* name,
                    size_t name_bytes, const uint8_t* data, size_t size, Fault* fault) noexcept nogil:
    cdef uint8_t[MAX_NAME_BYTES + 6] key_bytes
    cdef uint8_t[VALUE_BYTES] chunk
    cdef MDB_val key, value
    cdef uint32_t index = 0
    cdef size_t at = 0, part, key_size
    cdef int rc
    while at < size:
        part = min(size - at, <size_t> CHUNK_BYTES)
        memcpy(chunk + CHUNK_HEAD_BYTES, data + at, part)
        key_size = chunk_key(key_bytes, name, name_bytes, index)
        rc = put_entry(api, txn, dbi, key_bytes, key_size, chunk, CHUNK_HEAD_BYTES + part, fault)
        if rc != FAULT_NONE:
            return rc
        at += part
        index += 1
    while True:                   # chunks of a longer value before this one
        key.mv_size, key.mv_data = chunk_key(key_bytes, name, name_bytes, index), key_bytes
        rc = api.cursor_get(cursor, &key, &value, MDB_SET_RANGE)
        if rc == 0 and (key.mv_size != name_bytes + 6 or memcmp(key.mv_data, key_bytes, name_bytes + 2) != 0):
            rc = MDB_NOTFOUND
        if rc == MDB_NOTFOUND:
            break
        if rc == 0:
            rc = api.cursor_del(cursor, 0)
        if rc != 0:
            return fail_lmdb(fault, rc)
    key_bytes[0] = KIND_META
    store_u32(chunk + 4, crc32c(0, data, size))
    store_u64(chunk + 8, size)
    return put_entry(api, txn, dbi, key_bytes, 1 + name_bytes, chunk, META_VALUE_BYTES, fault)


cdef int get_chunks(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, const char* name, size_t name_bytes,
                    uint8_t* out, size_t size, uint32_t whole_crc, Fault* fault) noexcept nogil:
    cdef uint8_t[MAX_NAME_BYTES + 6] key_bytes
    cdef MDB_val key, value
    cdef uint32_t index = 0
    cdef size_t at = 0, part
    cdef int rc
    while at < size:
        part = min(size - at, <size_t> CHUNK_BYTES)
        key.mv_size, key.mv_data = chunk_key(key_bytes, name, name_bytes, index), key_bytes
        rc = api.get(txn, dbi, &key, &value)
        if rc == MDB_NOTFOUND:
            name_key(fault, key.mv_data, key.mv_size)
            return fail(fault, FAULT_SHORT, size, at)
        if rc != 0:
            return fail_lmdb(fault, rc)
        rc = check_entry(<const uint8_t*> key.mv_data, key.mv_size, <const uint8_t*> value.mv_data,
                         value.mv_size, CHUNK_HEAD_BYTES + part, fault)
        if rc != FAULT_NONE:
            return rc
        memcpy(out + at, <const uint8_t*> value.mv_data + CHUNK_HEAD_BYTES, part)
        at += part
        index += 1
    if crc32c(0, out, size) != whole_crc:
        return fail(fault, FAULT_CHECKSUM, whole_crc, crc32c(0, out, size))
    return FAULT_NONE


cdef str key_in_words(const uint8_t* key, size_t size):
    if size >= SHARD_KEY_BYTES and key[0] == KIND_BLOCK:
        return f"shard {key[1] << 8 | key[2]}, block {key[3:size].hex()}"
    if size >= SHARD_KEY_BYTES and key[0] == KIND_SHARD:
        return f"shard {key[1] << 8 | key[2]}, head"
    if size > 1 and key[0] == KIND_META:
        return f"meta {key[1:size]!r}"
    if size > 6 and key[0] == KIND_CHUNK:
        return f"meta {key[1:size - 5]!r}, chunk {int.from_bytes(key[size - 4:size], 'big')}"
    if size == 1 and key[0] == KIND_IDENTITY:
        return "identity"
    return f"key {key[:size].hex() or 'of no bytes'}"


cdef str fault_in_words(const Fault* fault):
    if fault.code == FAULT_SHORT:
        return f"{fault.found} bytes, at least {fault.expected} expected"
    if fault.code == FAULT_CHECKSUM:
        return f"checksum {fault.found:08x}, {fault.expected:08x} expected"
    if fault.code == FAULT_LENGTH:
        return f"the record at offset {fault.found} does not fit"
    if fault.code == FAULT_ORDER:
        return f"the fingerprint at offset {fault.found} does not ascend"
    if fault.code == FAULT_COUNT:
        return f"{fault.found} records, {fault.expected} expected"
    if fault.code == FAULT_FIRST:
        return "the first record is not the one that the key names"
    if fault.code == FAULT_KEY:
        return f"a key of {fault.found} bytes, {fault.expected} expected"
    return f"{fault.found} bytes of records, {fault.expected} expected"


cdef object corrupt(str path, const Fault* fault):
    return CorruptRecordError(
        f"{path}: {key_in_words(fault.key, fault.key_bytes)}: {fault_in_words(fault)}; "
        f"restore the store from a backup, or rebuild it from the journal"
    )


# LMDB → ours, the one table. Positive codes are errno.
cdef object lmdb_error(int code, str doing, str path):
    cause = OSError(code, os.strerror(code), path) if code > 0 else None
    what = os.strerror(code) if code > 0 else (<bytes> lmdb().strerror(code)).decode()
    message = f"{path}: {doing} failed: {what}"
    if code == MDB_CORRUPTED or code == MDB_PAGE_NOTFOUND:
        error = CorruptRecordError(f"{message}; restore the store from a backup")
    elif code == MDB_INVALID or code == MDB_VERSION_MISMATCH:
        error = IncompatibleVersionError(f"{message}; it is not a data file that this program can read")
    elif code == MDB_INCOMPATIBLE:
        error = StorageError(f"{message}: LMDB lost track of some pages; run verify, and rebuild the store")
    elif code == MDB_READERS_FULL or code == MDB_MAP_FULL:
        error = LimitError(f"{message}; try again with less at a time")
    else:
        error = StorageError(message)
    error.__cause__ = cause
    return error


def count_records(const uint8_t[::1] key not None, const uint8_t[::1] value not None):
    """Number of records in a stored block; CorruptRecordError if these bytes are not one. For tools."""
    cdef Fault fault
    cdef uint64_t n_rows = 0
    cdef int rc
    with nogil:
        rc = check_block(&key[0] if key.shape[0] else NULL, key.shape[0],
                         &value[0] if value.shape[0] else NULL, value.shape[0], &n_rows, &fault)
    if rc != FAULT_NONE:
        raise corrupt("block", &fault)
    return n_rows
