# The row store's bytes: what a record, a block and a key are, and the functions that check and move them. See
# blocks.pyx.
#
# Every pointer is borrowed for the call only. A function that takes a Fault returns 0 or a FaultCode, and
# then says in `fault` what it found. Nothing allocates, except through a Buffer that its caller owns.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from featurestore.storage.lmdb_api cimport (
    LmdbApi, MDB_cursor, MDB_dbi, MDB_txn, MDB_val, lmdb_api_structs,
)

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the formats on disk are little-endian, and so are LMDB's pages in them"
    #endif
    static inline uint32_t load_u32(const uint8_t* from) { uint32_t n; memcpy(&n, from, 4); return n; }
    static inline uint64_t load_u64(const uint8_t* from) { uint64_t n; memcpy(&n, from, 8); return n; }
    static inline void store_u32(uint8_t* to, uint32_t n) { memcpy(to, &n, 4); }
    static inline void store_u64(uint8_t* to, uint64_t n) { memcpy(to, &n, 8); }
    """
    uint32_t load_u32(const uint8_t* source)
    uint64_t load_u64(const uint8_t* source)
    void store_u32(uint8_t* target, uint32_t n)
    void store_u64(uint8_t* target, uint64_t n)

cdef enum:
    FORMAT_VERSION = 1
    FINGERPRINT_BYTES = 16
    RECORD_HEAD_BYTES = 20        # fingerprint, u32 payload length
    BLOCK_KEY_BYTES = 19          # kind, u16 shard, fingerprint of the first record
    BLOCK_HEAD_BYTES = 8          # u32 CRC32C, u32 number of records
    SHARD_KEY_BYTES = 3           # kind, u16 shard
    SHARD_VALUE_BYTES = 40        # u32 CRC32C, u32 zero, the four numbers of ShardHead
    META_VALUE_BYTES = 16         # u32 CRC32C, u32 CRC32C of the whole, u64 size of the whole
    CHUNK_HEAD_BYTES = 4          # u32 CRC32C
    MAX_NAME_BYTES = 48           # of a meta
    MAX_ROW_BYTES = 1 << 30
    # What LMDB keeps in exactly one overflow page of 4096 bytes. One page is always to be had from the free
    # list, where two in a row need a search.
    VALUE_BYTES = 4080
    CHUNK_BYTES = 4076            # of a meta in one chunk: VALUE_BYTES less its head

cdef enum:
    FREED = 0xFFFFFFFFu           # as a payload length: the row was freed, delete it

# First byte of every key: what the entry is.
cdef enum Kind:
    KIND_IDENTITY = 0
    KIND_SHARD = 1                # u16 shard, big-endian
    KIND_BLOCK = 2                # u16 shard, big-endian; fingerprint of the block's first record
    KIND_META = 3                 # name
    KIND_CHUNK = 4                # name, a zero byte, u32 index, big-endian

cdef enum FaultCode:
    FAULT_NONE = 0
    FAULT_LMDB = 1                # LMDB or the system failed: `error`
    FAULT_MEMORY = 2
    FAULT_SHORT = 3               # `found` bytes, `expected` or more needed
    FAULT_CHECKSUM = 4
    FAULT_LENGTH = 5              # a record at offset `found` runs past the end, or is longer than any row
    FAULT_ORDER = 6               # the fingerprint at offset `found` does not ascend
    FAULT_COUNT = 7               # `found` records, `expected` announced
    FAULT_FIRST = 8               # the first record is not the one the key names
    FAULT_KEY = 9                 # a key of `found` bytes
    FAULT_TOTALS = 10             # more records than the shard's head says

ctypedef struct Fault:
    int code                      # FaultCode
    int error                     # LMDB's code or errno; FAULT_LMDB only
    uint64_t expected
    uint64_t found
    size_t key_bytes              # of key
    uint8_t[64] key               # of the entry at fault; not set for records that a caller handed over

# Position of a shard, and what its blocks must add up to.
ctypedef struct ShardHead:
    uint64_t position             # of the last event applied to the rows below
    uint64_t n_rows
    uint64_t n_bytes              # of all records: 20 bytes and the payload each
    uint64_t crc_sum              # sum of the blocks' checksums, modulo 2^64: an older block is noticed

# Growing bytes, owned by a RowStore.
ctypedef struct Buffer:
    uint8_t* data                 # malloc; NULL while capacity is 0
    size_t size
    size_t capacity

# Work on one shard in one transaction.
ctypedef struct Job:
    const LmdbApi* api
    MDB_txn* txn                  # of the caller
    MDB_dbi dbi
    MDB_cursor* cursor            # NULL, or opened and closed by the caller
    uint32_t shard
    size_t block_bytes            # writing: a block with more than one record is no longer than this
    Buffer* merged                # writing: records of the blocks being rewritten
    Buffer* stale                 # writing: keys of those blocks
    uint64_t changed_bytes        # writing: of the pages of blocks that were written
    ShardHead head                # writing: follows what is written; walking: adds up what is found

# A walk over a shard's blocks. Begins all zero, but for `out`.
ctypedef struct Walk:
    bint begun
    uint8_t* out                  # where the records go; NULL: they are only checked
    size_t capacity               # of out
    size_t taken                  # of that; whoever takes it out of there sets it back
    size_t enough                 # stops where as much is taken; 0: at the shard's end only
    bint ended                    # it was at the shard's end
    uint8_t[16] last              # fingerprint of the last record passed

cdef void start_job(Job* job, const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, uint32_t shard) noexcept nogil

cdef int fail_lmdb(Fault* fault, int error) noexcept nogil

# Are these whole records in strictly ascending order? `may_free`: FREED is a length. n_rows counts all of
# them.
cdef int check_records(const uint8_t* data, size_t size, bint may_free, uint64_t* n_rows,
                       Fault* fault) noexcept nogil

# Is this value of `least_bytes` or more what was stored under this key?
cdef int check_entry(const uint8_t* key, size_t key_bytes, const uint8_t* value, size_t value_bytes,
                     size_t least_bytes, Fault* fault) noexcept nogil

# Is this value what write_records stored under this key? n_rows counts its records.
cdef int check_block(const uint8_t* key, size_t key_bytes, const uint8_t* value, size_t value_bytes,
                     uint64_t* n_rows, Fault* fault) noexcept nogil

# Moves to the block that covers `fingerprint`: the last that begins at or before it, else the shard's first.
# found[0] = 0: the shard has no blocks. Returns LMDB's code.
cdef int seek_block(Job* job, const uint8_t* fingerprint, MDB_val* key, MDB_val* value,
                    bint* found) noexcept nogil

# Gives `data` its checksum, in its first four bytes, and stores it.
cdef int put_entry(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, const uint8_t* key_bytes, size_t key_size,
                   uint8_t* data, size_t size, Fault* fault) noexcept nogil

# found[0] = 0: the shard was never written, and head is all zero.
cdef int get_head(const Job* job, ShardHead* head, bint* found, Fault* fault) noexcept nogil
cdef int put_head(const Job* job, Fault* fault) noexcept nogil

# Brings checked records into the shard's blocks; job.head follows, except for its position.
cdef int write_records(Job* job, const uint8_t* records, size_t size, Fault* fault) noexcept nogil

# 0 at the end of the shard, or where there is enough. After any fault but FAULT_LMDB the walk may go on: it
# has passed the block at fault.
cdef int walk_blocks(Job* job, Walk* walk, Fault* fault) noexcept nogil

# A meta's bytes, cut into chunks of one page each; put takes the place of what was there.
cdef int put_chunks(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, MDB_cursor* cursor, const char* name,
                    size_t name_bytes, const uint8_t* data, size_t size, Fault* fault) noexcept nogil
cdef int get_chunks(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, const char* name, size_t name_bytes,
                    uint8_t* out, size_t size, uint32_t whole_crc, Fault* fault) noexcept nogil

# Words and exceptions for the above.
cdef str key_in_words(const uint8_t* key, size_t size)
cdef str fault_in_words(const Fault* fault)
cdef object corrupt(str path, const Fault* fault)
cdef object lmdb_error(int code, str doing, str path)

# Compared at import: see core/structs.py.
cdef inline dict blocks_structs():
    return lmdb_api_structs() | {"storage/blocks.pxd": (
        sizeof(Fault), sizeof(ShardHead), sizeof(Buffer), sizeof(Job), sizeof(Walk),
    )}
