"""Event ids that memory has given up, read one record at a time out of the last checkpoint.

Any thread reads, without the GIL and without the state's order lock (ids.pxd says when). Each reading is a
transaction of its own: it sees the last commit, pins no page for longer than it takes, and one that was
begun before a commit ends before its pages are used again. The RowStore detaches the reader before it closes
or moves its map, which waits for readings under way, and attaches it again; in between whoever reads waits.
After a disk failed, until the store is opened again, nothing can be read, and the events in question are
refused rather than called new.

What a disk that fails does: a checksum that is wrong is a record that cannot be read. A page that cannot be
read at all is a SIGBUS and ends the process, here as wherever LMDB reads its map: nothing is done about it.
What was acknowledged is in the journal.
"""
cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from featurestore.core.ids cimport RECORD_IDS, Id, ids_structs
from featurestore.core.pthread cimport (
    fs_fair_rwlock, pthread_rwlock_destroy, pthread_rwlock_rdlock, pthread_rwlock_unlock,
    pthread_rwlock_wrlock,
)
from featurestore.core.state cimport State, state_structs
from featurestore.storage.blocks cimport (
    BLOCK_HEAD_BYTES, FAULT_NONE, FINGERPRINT_BYTES, RECORD_HEAD_BYTES, Fault, Job, blocks_structs,
    check_block, load_u32, seek_block, start_job,
)
from featurestore.storage.lmdb_api cimport (
    MDB_RDONLY, MDB_READERS_FULL, MDB_dbi, MDB_env, MDB_txn, MDB_val, lmdb,
)

from featurestore.core.structs import same_structs

same_structs(__name__, blocks_structs(), id_reader_structs(), ids_structs(), state_structs())

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    uint64_t fs_bswap64 "__builtin_bswap64"(uint64_t x) noexcept

cdef enum:
    IDS_SHARD = 0xFFFF           # of rows: see checkpoint.py


cdef int _in_block(const uint8_t* key, const uint8_t* block, size_t n_bytes, Id* ids) noexcept nogil:
    """The ids of the record with this key in a sound block, as ReadIds."""
    cdef size_t at = BLOCK_HEAD_BYTES, length
    while at < n_bytes:
        length = load_u32(block + at + FINGERPRINT_BYTES)
        if memcmp(block + at, key, FINGERPRINT_BYTES) == 0:
            if length > RECORD_IDS * sizeof(Id) or length % sizeof(Id):
                return -1
            memcpy(ids, block + at + RECORD_HEAD_BYTES, length)
            return <int>(length // sizeof(Id))
        at += RECORD_HEAD_BYTES + length
    return 0


cdef int _read_in(const IdReaderC* reader, MDB_txn* txn, const uint8_t* key, Id* ids) noexcept nogil:
    """In a transaction, as ReadIds."""
    cdef MDB_val found_key, value
    cdef Fault fault
    cdef Job job
    cdef uint64_t n_records
    cdef bint found = False
    cdef int rc, n = 0
    start_job(&job, reader.api, txn, reader.dbi, IDS_SHARD)
    if reader.api.cursor_open(txn, reader.dbi, &job.cursor) != 0:
        return -1
    rc = seek_block(&job, key, &found_key, &value, &found)
    if rc != 0 or (found and check_block(<const uint8_t*>found_key.mv_data, found_key.mv_size,
                                         <const uint8_t*>value.mv_data, value.mv_size, &n_records,
                                         &fault) != FAULT_NONE):
        n = -1
    elif found:
        n = _in_block(key, <const uint8_t*>value.mv_data, value.mv_size, ids)
    reader.api.cursor_close(job.cursor)
    return n


cdef int _read(void* source, uint64_t key0, uint64_t key1, Id* ids) noexcept nogil:
    """ReadIds."""
    cdef IdReaderC* reader = <IdReaderC*>source
    cdef MDB_txn* txn = NULL
    cdef uint64_t[2] key
    cdef int n = -1, rc = 0
    key[0] = fs_bswap64(key0)
    key[1] = fs_bswap64(key1)
    pthread_rwlock_rdlock(&reader.lock)
    if reader.env != NULL:
        rc = reader.api.txn_begin(reader.env, NULL, MDB_RDONLY, &txn)
        while rc == MDB_READERS_FULL:            # more threads than LMDB has places: others end at once
            sched_yield()
            rc = reader.api.txn_begin(reader.env, NULL, MDB_RDONLY, &txn)
        if rc == 0:
            n = _read_in(reader, txn, <const uint8_t*>key, ids)
            reader.api.txn_abort(txn)
    pthread_rwlock_unlock(&reader.lock)
    return n


@cython.final
cdef class IdReader:
    """Of one RowStore, which says where it reads."""

    def __cinit__(self):
        if fs_fair_rwlock(&self.c.lock):
            raise MemoryError
        self.made = True

    def __dealloc__(self):
        if self.made:
            pthread_rwlock_destroy(&self.c.lock)

    cdef int attach(self, MDB_env* env, MDB_dbi dbi) except -1:
        cdef bint was_held = self.held
        self.hold()
        self.c.api, self.c.env, self.c.dbi = lmdb(), env, dbi
        return 0 if was_held else self.let_go()

    cdef int detach(self) except -1:
        cdef bint was_held = self.held
        self.hold()
        self.c.env = NULL
        return 0 if was_held else self.let_go()

    cdef int hold(self) except -1:
        if not self.held:
            with nogil:
                pthread_rwlock_wrlock(&self.c.lock)
            self.held = True
        return 0

    cdef int let_go(self) except -1:
        self.held = False
        pthread_rwlock_unlock(&self.c.lock)
        return 0

    def serve(self, State state not None):
        """Lets a state read here what it gives up, from before it has any ids, for as long as it lives."""
        state.id_owner = self
        state.c.id_source.source = &self.c
        state.c.id_source.read = _read
