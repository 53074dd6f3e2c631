"""Checkpoints of rows in LMDB: what a restart begins from, instead of the journal's first event.

A checkpoint hands over, per shard, the records of its dirty rows, sorted by fingerprint, and the position
they reflect. All that is written between `begin` and `commit` becomes durable together or not at all. A
restart reads back, per shard, every record as one buffer, and the position. What a payload holds is not known
here.

Promises:

- After `commit` returned, the transaction survives kill -9 and a power cut: LMDB is always synced, and never
  maps for writing. Before, none of it is visible, to a reader or after a crash.
- What is read back is what was written, or a CorruptRecordError names the shard, the key and what was found:
  every value carries a CRC32C over key and value, every record is checked, and a shard's head says how many
  rows, bytes and which sum of checksums its blocks must add up to, so that a block of an older state is
  noticed too.
- One call per shard, and none of them holds the GIL while it works.
- What `hold` was asked for can be written on a disk that is full to the last byte: its blocks belong to the
  file already, behind the pages in use. And a store that held enough can be opened on one.
- A failed commit closes the environment for good: after an fsync that failed nobody knows what is on the
  disk, and LMDB would go on. `reopen` starts from the file again.

Records are packed into blocks, of which `blocks` knows the bytes and why.

One process, one writer thread. The file is flock'ed, and a registry refuses to open it twice in one process
(closing the second LMDB environment would drop the locks of the first). LMDB's own lock file is used all the
same (no MDB_NOLOCK): its table of readers is what keeps the pages of a snapshot while `copy_to` reads it and
checkpoints go on, and it makes outside tools such as mdb_stat safe. MDB_NOTLS ties a read transaction to its
handle instead of to its thread, so any number of threads may load shards side by side. The writer's lock
belongs to the thread that took it: `begin` to `commit` is one thread.

Cost: a transaction's changed pages are in memory until it commits (`changed_bytes`), and pages that it
replaced are used again by the next but one. Writing much in several transactions, some shards in each, bounds
both. Nothing else of it is kept: records are written as they are handed over, the map has been made large
enough before, and what of it was read goes out of the process again. The formats are in FORMAT.md.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import errno
import fcntl
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from featurestore.storage.blocks cimport (
    FAULT_LMDB, FAULT_MEMORY, FAULT_NONE, FORMAT_VERSION, KIND_BLOCK, KIND_CHUNK, KIND_IDENTITY, KIND_META,
    KIND_SHARD, MAX_NAME_BYTES, META_VALUE_BYTES, SHARD_KEY_BYTES, SHARD_VALUE_BYTES, VALUE_BYTES, Buffer,
    Fault, Job, ShardHead, Walk, blocks_structs, check_entry, check_records, corrupt, fail_lmdb,
    fault_in_words, get_chunks, get_head, key_in_words, lmdb_error, load_u32, load_u64, put_chunks,
    put_entry, put_head, start_job, store_u32, store_u64, walk_blocks, write_records,
)
from featurestore.storage.id_reader cimport IdReader, id_reader_structs
from featurestore.storage.lmdb_api cimport (
    MDB_APPEND, MDB_FIRST, MDB_FREE_DBI, MDB_MAP_FULL, MDB_NEXT, MDB_NOLOCK, MDB_NOSUBDIR, MDB_NOSYNC,
    MDB_NOTFOUND, MDB_NOTLS, MDB_RDONLY, MDB_SET_RANGE, LmdbApi, MDB_cursor, MDB_dbi, MDB_env, MDB_envinfo,
    MDB_stat, MDB_txn, MDB_val, lmdb,
)

from featurestore.core.structs import same_structs
from featurestore.errors import (
    ConfigError,
    CorruptRecordError,
    IncompatibleVersionError,
    LimitError,
    StorageError,
    StoreLockedError,
)
from featurestore.stdio import fill_standard_descriptors
from featurestore.storage import lmdb_file
from featurestore.storage.failpoint import reach

same_structs(__name__, blocks_structs(), id_reader_structs())

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <linux/falloc.h>
    #include <sys/mman.h>
    /* Blocks for [0, end) of a file whose size stays. 0 or errno. */
    static int fs_allocate(int fd, int64_t end) {
        int failed;
        do {
            failed = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, end);
        } while (failed && errno == EINTR);
        return failed ? errno : 0;
    }
    /* Takes a file's mapped pages out of the process; the system may keep them, and gives them again. */
    static void fs_unmap_pages(void *map, size_t n_bytes) { (void)madvise(map, n_bytes, MADV_DONTNEED); }
    """
    int fs_allocate(int fd, int64_t end) noexcept nogil
    void fs_unmap_pages(void* map, size_t n_bytes) noexcept nogil

cdef enum:
    IDENTITY_BYTES = 40           # u32 crc, u32 version, 8 bytes magic, 16 bytes store id, u64 openings
    PROBE_BYTES = 64 << 10
    PART_BYTES = 4 << 20          # that read_in_parts hands over
    COPY_BYTES = 64 << 20         # of a transaction that writes a copy: its changed pages are in memory
    READERS_BYTES = 8192          # of LMDB's table of readers, at its default of 126
    LEFT_BYTES = 4 << 20          # that `hold` leaves free, for the journal to begin a segment
    FEW_PAGES = 64                # more than a transaction of next to nothing frees
    BLOCK_BYTES = 512             # the unit of st_blocks
    SLACK_BYTES = 64 << 10        # of st_blocks that may be the file system's own, not the file's

cdef bytes MAGIC = b"fsrows\r\n"  # the line end shows a copy that was translated as text
cdef bytes IDENTITY_KEY = bytes([KIND_IDENTITY])

DATA_NAME = "data.mdb"
READERS_NAME = "lock.mdb"
CREATING_NAME = "creating"
COMPACTING_NAME = "compacting"
PROBE_NAME = "probe"
META_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,%d}" % (MAX_NAME_BYTES - 1))

cdef set open_files = set()       # (device, inode) of every data file that this process has open
cdef object open_files_lock = threading.Lock()


class MapGrownError(LimitError):
    """The map was full and is larger now. The transaction is aborted: begin it again."""


@dataclass(frozen=True)
class RowStoreStat:
    """Sizes of a store as of its last commit. `free_pages` will be used again before the file grows."""

    transaction: int
    n_entries: int
    page_bytes: int
    used_pages: int
    free_pages: int
    file_bytes: int
    map_size_bytes: int


cdef struct Pages:                # of the last commit
    uint64_t transaction
    uint64_t page_bytes
    uint64_t last                 # number of the last one; what is behind it is new
    uint64_t n_free
    uint64_t n_recent             # of those, that the last transaction freed
    uint64_t n_usable             # of all, that are sure to be found one by one


@cython.final
@cython.no_gc_clear              # of what it holds, its end needs `ids`, which a collector may clear before
cdef class RowStore:
    """One store of rows in a directory of its own (data.mdb and LMDB's lock.mdb). Made by `open`.

    begin, write_shard, put_meta, commit and abort belong to one thread at a time; everything that reads may
    be called from any thread, and sees the last commit. Using it wrongly (no transaction, another thread) is
    a RuntimeError, bad arguments are a ValueError; what files, disks and their contents do is told in
    featurestore.errors.
    """
    cdef const LmdbApi* api
    cdef MDB_env* env             # NULL: closed, or given up after a failure
    cdef MDB_txn* txn             # the write transaction under way, else NULL
    cdef MDB_dbi dbi
    cdef int fd                   # of data.mdb, flock'ed for as long as the store is not closed; else -1
    cdef Buffer merged
    cdef Buffer stale
    cdef size_t block_bytes
    cdef size_t map_size_bytes
    cdef size_t max_map_size_bytes
    cdef void* map                # where the file is mapped; NULL: not known
    cdef size_t map_bytes
    cdef uint64_t held_bytes      # of data.mdb, from its start, that have their blocks
    cdef bint cannot_hold         # the file system does not give blocks before they are written
    cdef Pages pages              # as of pages.transaction
    cdef uint64_t openings
    cdef unsigned long writer     # thread of the write transaction
    cdef int n_readers            # under `turn`, as is the next
    cdef int n_movers             # that wait until nobody reads; whoever wants to read then waits for them
    cdef object turn              # Condition: whoever closes or moves the map waits here until nobody reads
    cdef uint64_t room            # of the transaction: how many bytes there is room for
    cdef uint64_t taken           # and how many it was given
    cdef readonly uint64_t changed_bytes  # of pages of values that it has changed
    cdef tuple file_id            # (device, inode) in open_files, or None
    cdef bytes store_id
    cdef bint read_only
    cdef str failure              # why the environment was given up, or None
    cdef readonly IdReader ids    # reads records of event ids, whatever happens here
    cdef readonly str path

    def __cinit__(self):
        self.fd = -1
        self.turn = threading.Condition()
        self.ids = IdReader()

    def __init__(self):
        raise TypeError("RowStore.open(path, ...) opens a store")

    def __dealloc__(self):
        self.ids.detach()             # it may live on
        if self.txn != NULL:
            self.api.txn_abort(self.txn)
        if self.env != NULL:
            self.api.env_close(self.env)
        if self.file_id is not None:
            open_files.discard(self.file_id)
        if self.fd >= 0:
            os.close(self.fd)
        free(self.merged.data)
        free(self.stale.data)

    @staticmethod
    def open(path, *, bytes store_id not None, bint create, size_t map_size_bytes=1 << 30,
             size_t max_map_size_bytes=1 << 40, size_t block_bytes=VALUE_BYTES, bint read_only=False):
        """Opens the store in the directory `path`; `create` makes a new one, and refuses if there is one.

        read_only: nothing is written, not even that it was opened, and `begin` refuses; for looking at a
        store that is not open elsewhere, perhaps on a medium that cannot be written.

        map_size_bytes is address space, not disk; it grows as is needed, up to max_map_size_bytes.
        block_bytes is for measuring: any store can be read.

        Raises ConfigError (arguments, or no usable lmdb), StoreLockedError (open already, here or elsewhere),
        IncompatibleVersionError (not a row store, another store's, a newer version), CorruptRecordError
        (truncated or damaged), StorageError (missing, or the system failed).
        """
        cdef RowStore store = RowStore.__new__(RowStore)
        if len(store_id) != 16:
            raise ConfigError(f"a store id has 16 bytes, not {len(store_id)}")
        if not 1 << 20 <= map_size_bytes <= max_map_size_bytes <= 1 << 46:
            raise ConfigError(
                f"map_size_bytes {map_size_bytes} and max_map_size_bytes {max_map_size_bytes}: give 1 MiB or "
                f"more, the first not above the second, and the second not above 64 TiB"
            )
        if not 64 <= block_bytes <= 1 << 20:
            raise ConfigError(f"block_bytes {block_bytes} is not from 64 to 1 MiB")
        store.api = lmdb()
        store.path = os.fspath(path)
        store.store_id = store_id
        store.map_size_bytes = map_size_bytes
        store.max_map_size_bytes = max_map_size_bytes
        store.block_bytes = block_bytes
        store.read_only = read_only
        try:
            if create:
                store.make_file()
            store.take_file()
            store.open_env(Path(store.path))
            store.read_identity()
            if not read_only:
                store.remove_leftovers()
                store.sign_in()
        except BaseException:
            store.close()
            raise
        return store

    # A store appears whole or not at all: it is made in a directory inside its own, and moved into place.
    cdef int make_file(self) except -1:
        target = Path(self.path, DATA_NAME)
        creating = Path(self.path, CREATING_NAME)
        if target.exists():
            raise StorageError(f"{target}: exists already; open it without create, or give a new directory")
        try:
            Path(self.path).mkdir(mode=0o700, parents=True, exist_ok=True)
            creating.mkdir(mode=0o700, exist_ok=True)
            for name in (DATA_NAME, READERS_NAME):
                (creating / name).unlink(missing_ok=True)
            self.open_env(creating)
            self.sign_in()
            self.close_env()
            (creating / DATA_NAME).rename(target)
            (creating / READERS_NAME).unlink()
            creating.rmdir()
            sync_directory(self.path)
            sync_directory(Path(self.path).absolute().parent)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot make a row store here: {error}") from error
        return 0

    # Takes the lock, and refuses what LMDB would stumble over: before anything is mapped.
    cdef int take_file(self) except -1:
        target = os.path.join(self.path, DATA_NAME)
        fill_standard_descriptors()
        try:
            self.fd = os.open(target, (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_NOFOLLOW
                              | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be opened: {error}; is this the directory of a store?"
            ) from error
        status = os.fstat(self.fd)
        file_id = (status.st_dev, status.st_ino)
        with open_files_lock:
            if file_id in open_files:
                raise StoreLockedError(f"{target}: is open in this process already; use that RowStore")
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreLockedError(
                    f"{target}: another process has it open; stop that one first"
                ) from error
            open_files.add(file_id)
            self.file_id = file_id
        return 0

    cdef int open_env(self, directory) except -1:
        cdef int rc, n_dead = 0
        # Alone on the file by its flock, a reader needs no table of readers, which it would have to write.
        cdef unsigned int flags = MDB_NOTLS | MDB_RDONLY | MDB_NOLOCK if self.read_only else MDB_NOTLS
        cdef MDB_txn* txn = NULL
        cdef bytes encoded = os.fsencode(directory)
        cdef const char* c_path = encoded
        where = os.fspath(directory)
        fill_standard_descriptors()
        self.map = NULL
        if self.fd >= 0:
            file = lmdb_file.inspect(self.fd, os.path.join(where, DATA_NAME))
            # Only ever larger: the file may have grown past what is configured.
            self.map_size_bytes = max(self.map_size_bytes, file.map_size_bytes)
            if not self.read_only:
                self.settle_metas(file.page_bytes)
        if not self.read_only:
            self.allocate_readers(where)
        rc = self.api.env_create(&self.env)
        if rc != 0:
            self.env = NULL
            raise lmdb_error(rc, "opening", where)
        self.map_size_bytes = (self.map_size_bytes + 0xFFFF) & ~<size_t> 0xFFFF     # whole pages of any size
        rc = self.api.env_set_mapsize(self.env, self.map_size_bytes)
        if rc == 0:
            with nogil:
                rc = self.api.env_open(self.env, c_path, flags, 0o600)
        if rc == 0 and not self.read_only:       # slots of readers that were killed would keep their pages
            rc = self.api.reader_check(self.env, &n_dead)
        if rc == 0:
            rc = self.api.txn_begin(self.env, NULL, MDB_RDONLY, &txn)
        if rc == 0:
            rc = self.api.dbi_open(txn, NULL, 0, &self.dbi)
            self.api.txn_abort(txn)
        if rc != 0:
            self.close_env()
            raise lmdb_error(rc, "opening", where)
        self.find_map(os.path.join(where, DATA_NAME))
        self.ids.attach(self.env, self.dbi)
        return 0

    # LMDB does not tell where the map is, and what was read of it counts as this process's memory.
    cdef int find_map(self, str path) except -1:
        self.map = NULL
        ending = " " + os.path.realpath(path)
        try:
            with open("/proc/self/maps") as maps:
                for line in maps:
                    if line.rstrip("\n").endswith(ending) and " r--s 00000000 " in line:
                        begin, _, end = line.partition(" ")[0].partition("-")
                        self.map = <void*> <size_t> int(begin, 16)
                        self.map_bytes = int(end, 16) - int(begin, 16)
        except (OSError, UnicodeDecodeError):
            pass                                 # then the system takes it back when it needs it
        return 0

    # LMDB maps its table of readers and writes to it: where the disk is full and a page of it has no block
    # yet, that is a SIGBUS. Only while no environment is open: closing the file drops this process's locks.
    cdef int allocate_readers(self, str directory) except -1:
        path = os.path.join(directory, READERS_NAME)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_blocks * BLOCK_BYTES < READERS_BYTES:
                    os.posix_fallocate(fd, 0, READERS_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(f"{path}: cannot be made: {error}; the store is as it was") from error
        return 0

    # Makes the disk say which transaction is the newest: the one that is read from the file now.
    #
    # When LMDB's write of a meta page fails, it puts the old page back, into the page cache only. The disk
    # may have the new one all the same. The next transaction would then use pages that are free according to
    # the old meta, and that the new one reaches: after a power cut the new one counts, and its pages are
    # another's. So both metas are written as they are read, and synced, before anything else is written. A
    # cut in between leaves either meta with all of its pages.
    cdef int settle_metas(self, size_t page_bytes) except -1:
        try:
            for offset in (0, page_bytes):
                page = os.pread(self.fd, page_bytes, offset)
                if os.pwrite(self.fd, page, offset) != len(page):
                    raise OSError(errno.EIO, "short write")
            os.fdatasync(self.fd)
        except OSError as error:
            raise StorageError(
                f"{self.path}: its meta pages cannot be written: {error}; see to the disk, then try again"
            ) from error
        return 0

    cdef int close_env(self) except -1:
        self.held_bytes = self.pages.transaction = 0     # another file may be next
        with self.turn:
            self.let_readers_out()
            self.ids.detach()
            if self.txn != NULL:
                self.api.txn_abort(self.txn)
                self.txn = NULL
            self.map = NULL
            if self.env != NULL:
                self.api.env_close(self.env)
                self.env = NULL
        return 0

    cdef int read_identity(self) except -1:
        value = self.read_value(IDENTITY_KEY)
        if value is None:
            raise IncompatibleVersionError(
                f"{self.path}: an LMDB file, but not a row store; give another directory"
            )
        # Magic and version before the checksum: another version may check itself in another way.
        if value[8:16] != MAGIC:
            raise IncompatibleVersionError(f"{self.path}: not a row store, or its first record is damaged")
        version = int.from_bytes(value[4:8], "little")
        if version != FORMAT_VERSION:
            raise IncompatibleVersionError(
                f"{self.path}: written in format version {version}, this program knows {FORMAT_VERSION}; "
                f"use a newer program"
            )
        check_value(self.path, IDENTITY_KEY, value, IDENTITY_BYTES)
        if value[16:32] != self.store_id:
            raise IncompatibleVersionError(
                f"{self.path}: belongs to store {value[16:32].hex()}, not to {self.store_id.hex()}; "
                f"its journal and its rows must come from the same backup"
            )
        self.openings = int.from_bytes(value[32:40], "little")
        return 0

    # Commits something at every opening. What is reported from then on has been through a sync that
    # succeeded, even if the last one before it failed, and a disk that cannot be written is found now.
    cdef int sign_in(self) except -1:
        self.openings += 1
        return self.sign()

    cdef int sign(self) except -1:
        cdef Fault fault
        while True:
            self.begin_txn()
            try:
                self.judge(self.do_identity(&fault), &fault, "signing in")
                self.finish()
                return 0
            except MapGrownError:
                pass

    cdef MDB_txn* enter(self) except NULL:
        cdef MDB_txn* txn = NULL
        cdef int rc
        with self.turn:
            while self.n_movers > 0:
                self.turn.wait()
            self.check_open()
            rc = self.api.txn_begin(self.env, NULL, MDB_RDONLY, &txn)
            if rc != 0:
                raise lmdb_error(rc, "reading", self.path)
            self.n_readers += 1
        return txn

    cdef int leave(self, MDB_txn* txn) except -1:
        self.api.txn_abort(txn)
        with self.turn:
            self.n_readers -= 1
            self.turn.notify_all()
        return 0

    # Under `turn`, which is let go meanwhile; nobody reads until the caller lets go of it.
    cdef int let_readers_out(self) except -1:
        self.n_movers += 1
        try:
            while self.n_readers > 0:
                self.turn.wait()
        finally:
            self.n_movers -= 1
            self.turn.notify_all()
        return 0

    cdef int check_open(self) except -1:
        if self.env == NULL:
            if self.failure is not None:
                raise StorageError(f"{self.path}: was given up after a failure ({self.failure}); reopen() it")
            raise StorageError(f"{self.path}: is closed; open it again")
        return 0

    cdef object error_of(self, const Fault* fault, str doing):
        if fault.code == FAULT_MEMORY:
            return MemoryError(f"{self.path}: no memory for {doing}")
        if fault.code == FAULT_LMDB:
            return lmdb_error(fault.error, doing, self.path)
        return corrupt(self.path, fault)

    # The bytes under `key`, unchecked; None if there are none.
    cdef object read_value(self, bytes key):
        cdef MDB_val c_key, value
        cdef MDB_txn* txn = self.enter()
        cdef int rc
        try:
            c_key.mv_size, c_key.mv_data = len(key), <char*> key
            rc = self.api.get(txn, self.dbi, &c_key, &value)
            if rc == MDB_NOTFOUND:
                return None
            if rc != 0:
                raise lmdb_error(rc, "reading", self.path)
            return PyBytes_FromStringAndSize(<char*> value.mv_data, value.mv_size)
        finally:
            self.leave(txn)

    def read_shard(self, int shard):
        """(records, position): every record of the shard, sorted by fingerprint; (b"", 0) if never written.

        The records are laid out as write_shard takes them, and all of them were checked: CorruptRecordError
        if not.
        """
        cdef MDB_txn* txn
        cdef Fault fault
        cdef Job job
        cdef Walk walk
        cdef ShardHead head
        cdef bint found = False
        cdef int rc
        check_shard(shard)
        txn = self.enter()
        try:
            start_job(&job, self.api, txn, self.dbi, shard)
            rc = get_head(&job, &head, &found, &fault)
            if rc != FAULT_NONE:
                raise self.error_of(&fault, f"reading shard {shard}")
            self.check_size(head.n_bytes, f"shard {shard}, head")
            records = PyBytes_FromStringAndSize(NULL, head.n_bytes)
            memset(&walk, 0, sizeof(Walk))
            walk.out, walk.capacity = <uint8_t*> PyBytes_AS_STRING(records), head.n_bytes
            with nogil:
                rc = self.api.cursor_open(txn, self.dbi, &job.cursor)
                if rc != 0:
                    rc = fail_lmdb(&fault, rc)
                else:
                    rc = walk_blocks(&job, &walk, &fault)
                    self.api.cursor_close(job.cursor)
            if rc != FAULT_NONE:
                raise self.error_of(&fault, f"reading shard {shard}")
            self.check_totals(shard, &head, &job.head)
            self.unmap_pages()
            return records, head.position
        finally:
            self.leave(txn)

    # What was read of the file is in the system's memory, not in this process's. Any thread may: whoever
    # reads gets them again.
    cdef int unmap_pages(self) except -1:
        if self.map != NULL:
            with nogil:
                fs_unmap_pages(self.map, self.map_bytes)
        return 0

    def read_in_parts(self, int shard, take, size_t part_bytes=PART_BYTES):
        """Hands every record of the shard to `take`, sorted, in parts of whole records, of part_bytes and a
        block at most; returns the position. For a shard whose records are short; as read_shard, but that
        it says only at the end that something is missing."""
        cdef MDB_txn* txn
        cdef Fault fault
        cdef Job job
        cdef Walk walk
        cdef ShardHead head
        cdef bint found = False
        cdef int rc
        cdef bytearray part = bytearray(part_bytes + VALUE_BYTES)
        check_shard(shard)
        txn = self.enter()
        try:
            start_job(&job, self.api, txn, self.dbi, shard)
            rc = get_head(&job, &head, &found, &fault)
            if rc == FAULT_NONE:
                rc = self.api.cursor_open(txn, self.dbi, &job.cursor)
                rc = fail_lmdb(&fault, rc) if rc != 0 else FAULT_NONE
            memset(&walk, 0, sizeof(Walk))
            walk.out = <uint8_t*> <char*> part
            walk.capacity, walk.enough = part_bytes + VALUE_BYTES, part_bytes
            while rc == FAULT_NONE and not walk.ended:
                walk.taken = 0
                with nogil:
                    rc = walk_blocks(&job, &walk, &fault)
                if rc == FAULT_NONE and walk.taken:
                    take(PyBytes_FromStringAndSize(<char*> walk.out, walk.taken))
                    self.unmap_pages()
            if rc != FAULT_NONE:
                raise self.error_of(&fault, f"reading shard {shard}")
            self.check_totals(shard, &head, &job.head)
            return head.position
        finally:
            if job.cursor != NULL:
                self.api.cursor_close(job.cursor)
            self.leave(txn)

    # A size read from the file is believed only as far as the file could hold it.
    cdef int check_size(self, uint64_t n_bytes, str what) except -1:
        if n_bytes > self.map_size_bytes:
            raise CorruptRecordError(
                f"{self.path}: {what}: announces {n_bytes} bytes, and the whole map has {self.map_size_bytes}"
            )
        return 0

    cdef int check_totals(self, int shard, const ShardHead* head, const ShardHead* blocks) except -1:
        if (head.n_rows, head.n_bytes, head.crc_sum) != (blocks.n_rows, blocks.n_bytes, blocks.crc_sum):
            raise CorruptRecordError(
                f"{self.path}: shard {shard}: its blocks hold {blocks.n_rows} rows, {blocks.n_bytes} bytes "
                f"and checksum sum {blocks.crc_sum:x}; its head says {head.n_rows}, {head.n_bytes} and "
                f"{head.crc_sum:x}; "
                f"restore the store from a backup, or rebuild it from the journal"
            )
        return 0

    def shards(self):
        """Position of every shard that was ever written, by shard number."""
        positions = {}
        for key, value in self.entries(KIND_SHARD):
            check_value(self.path, key, value, SHARD_VALUE_BYTES)
            positions[int.from_bytes(key[1:], "big")] = int.from_bytes(value[8:16], "little")
        return positions

    def sizes(self):
        """(rows, bytes of their records) of every shard that was ever written, by shard number, as their
        heads say."""
        sizes = {}
        for key, value in self.entries(KIND_SHARD):
            check_value(self.path, key, value, SHARD_VALUE_BYTES)
            sizes[int.from_bytes(key[1:], "big")] = (
                int.from_bytes(value[16:24], "little"), int.from_bytes(value[24:32], "little"))
        return sizes

    def metas(self):
        """Names of all metas, sorted."""
        return [key[1:].decode("ascii", "backslashreplace") for key, _ in self.entries(KIND_META)]

    # Small kinds of entries, as (key, value), unchecked.
    cdef list entries(self, int kind):
        cdef MDB_txn* txn = self.enter()
        cdef MDB_cursor* cursor = NULL
        cdef MDB_val key, value
        cdef uint8_t sought = <uint8_t> kind
        cdef list found = []
        cdef int rc
        try:
            rc = self.api.cursor_open(txn, self.dbi, &cursor)
            key.mv_size, key.mv_data = 1, &sought
            if rc == 0:
                rc = self.api.cursor_get(cursor, &key, &value, MDB_SET_RANGE)
            while rc == 0 and (<const uint8_t*> key.mv_data)[0] == kind:
                found.append((PyBytes_FromStringAndSize(<char*> key.mv_data, key.mv_size),
                              PyBytes_FromStringAndSize(<char*> value.mv_data, value.mv_size)))
                rc = self.api.cursor_get(cursor, &key, &value, MDB_NEXT)
            if rc != 0 and rc != MDB_NOTFOUND:
                raise lmdb_error(rc, "reading", self.path)
            return found
        finally:
            if cursor != NULL:
                self.api.cursor_close(cursor)
            self.leave(txn)

    def get_meta(self, str name not None):
        """The bytes last put under `name`; None if there are none. CorruptRecordError if they are damaged."""
        cdef bytes encoded = check_name(name)
        cdef const char* c_name = encoded
        cdef size_t name_bytes = len(encoded)
        cdef bytes key_bytes = bytes([KIND_META]) + encoded
        cdef MDB_val key, value
        cdef MDB_txn* txn = self.enter()
        cdef Fault fault
        cdef uint32_t whole_crc
        cdef uint64_t size
        cdef uint8_t* out
        cdef int rc
        try:
            key.mv_size, key.mv_data = len(key_bytes), <char*> key_bytes
            rc = self.api.get(txn, self.dbi, &key, &value)
            if rc == MDB_NOTFOUND:
                return None
            if rc != 0:
                raise lmdb_error(rc, f"reading meta {name}", self.path)
            if check_entry(<const uint8_t*> key.mv_data, key.mv_size, <const uint8_t*> value.mv_data,
                           value.mv_size, META_VALUE_BYTES, &fault) != FAULT_NONE:
                raise self.error_of(&fault, f"reading meta {name}")
            whole_crc = load_u32(<const uint8_t*> value.mv_data + 4)
            size = load_u64(<const uint8_t*> value.mv_data + 8)
            self.check_size(size, f"meta {name!r}")
            data = PyBytes_FromStringAndSize(NULL, size)
            out = <uint8_t*> PyBytes_AS_STRING(data)
            with nogil:
                rc = get_chunks(self.api, txn, self.dbi, c_name, name_bytes, out, size, whole_crc, &fault)
            if rc != FAULT_NONE:
                raise self.error_of(&fault, f"reading meta {name}")
            return data
        finally:
            self.leave(txn)

    def stat(self):
        """A RowStoreStat of the last commit."""
        cdef MDB_txn* txn = self.enter()
        cdef MDB_envinfo info
        cdef MDB_stat stat
        cdef Pages pages
        try:
            self.api.env_info(self.env, &info)
            self.api.env_stat(self.env, &stat)
            self.count_pages(txn, &info, &stat, &pages)
            return RowStoreStat(
                transaction=info.me_last_txnid, n_entries=stat.ms_entries, page_bytes=stat.ms_psize,
                used_pages=pages.last + 1 - pages.n_free, free_pages=pages.n_free,
                file_bytes=os.fstat(self.fd).st_size, map_size_bytes=info.me_mapsize,
            )
        finally:
            self.leave(txn)

    cdef int count_pages(self, MDB_txn* txn, const MDB_envinfo* info, const MDB_stat* stat,
                         Pages* pages) except -1:
        cdef MDB_cursor* cursor = NULL
        cdef MDB_val key, value
        cdef uint64_t n, in_rows = 0
        cdef int rc, operation = MDB_FIRST
        memset(pages, 0, sizeof(Pages))
        pages.transaction, pages.page_bytes, pages.last = info.me_last_txnid, stat.ms_psize, info.me_last_pgno
        with nogil:
            rc = self.api.cursor_open(txn, MDB_FREE_DBI, &cursor)
            while rc == 0:
                rc = self.api.cursor_get(cursor, &key, &value, operation)
                if rc == 0 and value.mv_size >= 8 and key.mv_size >= 8:
                    n = load_u64(<const uint8_t*> value.mv_data)
                    pages.n_free += n
                    if load_u64(<const uint8_t*> key.mv_data) == info.me_last_txnid:
                        pages.n_recent += n
                operation = MDB_NEXT
            if cursor != NULL:
                self.api.cursor_close(cursor)
        if rc != MDB_NOTFOUND:
            raise lmdb_error(rc, "reading the free pages", self.path)
        # A value of several pages wants them side by side, which free pages need not be. Those beyond the
        # first of each value are at least half of all there are in such values.
        if stat.ms_overflow_pages > stat.ms_entries:
            in_rows = 2 * (stat.ms_overflow_pages - stat.ms_entries)
        pages.n_usable = pages.n_free - min(pages.n_free, in_rows)
        return 0

    # Counts them anew when there was a commit.
    cdef int look(self) except -1:
        cdef MDB_txn* txn = self.enter()
        cdef MDB_envinfo info
        cdef MDB_stat stat
        try:
            self.api.env_info(self.env, &info)
            if info.me_last_txnid != self.pages.transaction:
                self.api.env_stat(self.env, &stat)
                self.count_pages(txn, &info, &stat, &self.pages)
        finally:
            self.leave(txn)
        return 0

    def hold(self, uint64_t more_bytes, uint64_t settled_bytes=0):
        """Has the file system set blocks aside for a transaction that writes all that is stored anew, but for
        records of settled_bytes that it leaves as they are, and `more_bytes` with it: whoever fills the disk
        then, this transaction can be written.

        They stay set aside, over a restart too, until a transaction or a compaction takes them. LimitError:
        there are not as many; what was held before still is. Where a file system cannot set blocks aside, as
        many must be free.
        """
        cdef uint64_t end = self.end_with(more_bytes, settled_bytes)
        cdef int error
        if end <= self.held_bytes:
            return
        if self.has_space(end + (end >> 4)):     # or it would be asked for a page more after each transaction
            end += end >> 4
        elif not self.has_space(end):
            raise LimitError(
                f"{self.path}: the next checkpoint may need a file of {end} bytes, and "
                f"{free_bytes(self.path)} are free on its file system; free some, writes go on by themselves"
            )
        if self.cannot_hold:
            return
        with nogil:
            error = fs_allocate(self.fd, <int64_t> end)
        if error in (errno.EOPNOTSUPP, errno.ENOSYS):
            self.cannot_hold = True
        elif error:
            raise LimitError(f"{self.path}: no space can be set aside for checkpoints: {os.strerror(error)}")
        else:
            self.held_bytes = end

    # Where the file ends at most, once such a transaction is written.
    cdef uint64_t end_with(self, uint64_t more_bytes, uint64_t settled_bytes) except? 0:
        cdef Pages* pages = &self.pages
        cdef uint64_t n
        self.look()
        # Merged blocks are fuller or emptier than those before, and a tree that changes everywhere splits.
        n = pages.last + 1 - pages.n_free
        n -= min(n, settled_bytes // pages.page_bytes)   # in as many pages at least
        n += n // 4 + more_bytes // pages.page_bytes + 1
        n -= min(n, pages.n_usable)
        return (pages.last + 1 + n + self.for_free_list()) * pages.page_bytes

    cdef bint has_space(self, uint64_t end) except -1:
        wanted = end - os.fstat(self.fd).st_blocks * BLOCK_BYTES
        return wanted <= 0 or wanted + LEFT_BYTES <= free_bytes(self.path)

    # A list of free pages is one value, of as many pages side by side as it needs.
    cdef uint64_t for_free_list(self) noexcept:
        return self.pages.last // 128 + 32

    @property
    def room_bytes(self):
        """What a transaction can write for certain: to free pages, and to what is held."""
        self.look()
        held = max(self.held_bytes, os.fstat(self.fd).st_blocks * BLOCK_BYTES - SLACK_BYTES)
        n = self.pages.n_usable + max(0, held // self.pages.page_bytes - self.pages.last - 1)
        room = max(0, n - self.for_free_list()) * self.pages.page_bytes
        return room + free_bytes(self.path) if self.cannot_hold else room

    def verify(self):
        """Reads everything; one sentence for each problem found, none if the store is sound.

        All of it is as of one commit per shard; run it while nothing is written to have it of one commit.
        """
        cdef list problems = []
        cdef set seen = set()
        try:
            for key, value in self.entries(KIND_IDENTITY):
                self.verify_value(problems, key, value, 1, IDENTITY_BYTES)
            for key, value in self.entries(KIND_SHARD):
                if self.verify_value(problems, key, value, SHARD_KEY_BYTES, SHARD_VALUE_BYTES):
                    shard = key[1] << 8 | key[2]
                    seen.add(shard)
                    self.verify_shard(problems, shard)
            for shard in self.shards_with_blocks():
                if shard not in seen:
                    problems.append(f"{self.path}: shard {shard}: has blocks but no sound head")
                    self.verify_shard(problems, shard)
            self.verify_metas(problems)
        except CorruptRecordError as error:     # LMDB's own pages: no way on from here
            problems.append(str(error))
        return problems

    cdef bint verify_value(self, list problems, bytes key, bytes value, Py_ssize_t key_bytes,
                           size_t least_bytes) except -1:
        if len(key) != key_bytes:
            problems.append(f"{self.path}: {key_in_words(key, len(key))}: a key of {len(key)} bytes, "
                            f"{key_bytes} expected")
            return False
        try:
            check_value(self.path, key, value, least_bytes)
        except CorruptRecordError as error:
            problems.append(str(error))
            return False
        return True

    cdef int verify_shard(self, list problems, int shard) except -1:
        cdef MDB_txn* txn = self.enter()
        cdef Fault fault
        cdef Job job
        cdef Walk walk
        cdef ShardHead head
        cdef bint found = False, sound = True
        cdef int rc
        start_job(&job, self.api, txn, self.dbi, shard)
        memset(&walk, 0, sizeof(Walk))
        try:
            rc = get_head(&job, &head, &found, &fault)
            sound = found and rc == FAULT_NONE
            rc = self.api.cursor_open(txn, self.dbi, &job.cursor)
            if rc != 0:
                raise lmdb_error(rc, f"reading shard {shard}", self.path)
            while True:
                with nogil:
                    rc = walk_blocks(&job, &walk, &fault)
                if rc == FAULT_NONE:
                    break
                if rc == FAULT_LMDB:
                    raise self.error_of(&fault, f"reading shard {shard}")
                problems.append(str(self.error_of(&fault, f"reading shard {shard}")))
                sound = False
            if sound:             # with a block at fault they cannot add up
                try:
                    self.check_totals(shard, &head, &job.head)
                except CorruptRecordError as error:
                    problems.append(str(error))
        finally:
            if job.cursor != NULL:
                self.api.cursor_close(job.cursor)
            self.leave(txn)
        return 0

    cdef list shards_with_blocks(self):
        cdef list found = []
        key = bytes([KIND_BLOCK])
        while (key := self.first_key(key)) is not None and key[0] == KIND_BLOCK:
            shard = int.from_bytes(key[1:SHARD_KEY_BYTES].ljust(2, b"\0"), "big")
            found.append(shard)
            if shard == 0xFFFF:
                break
            key = bytes([KIND_BLOCK]) + (shard + 1).to_bytes(2, "big")
        return found

    cdef int verify_metas(self, list problems) except -1:
        names = []
        for key, _ in self.entries(KIND_META):
            if META_NAME.fullmatch(key[1:].decode("latin-1")) is None:
                problems.append(f"{self.path}: {key_in_words(key, len(key))}: not the name of a meta")
                continue
            names.append(key[1:])
            try:
                self.get_meta(key[1:].decode())
            except CorruptRecordError as error:
                problems.append(str(error))
        key = bytes([KIND_CHUNK])
        while (key := self.first_key(key)) is not None:
            name, _, index = key[1:].partition(b"\0")
            if key[0] != KIND_CHUNK or len(index) != 4 or name not in names:
                problems.append(f"{self.path}: {key_in_words(key, len(key))}: belongs to nothing")
                key = key + b"\0"
            else:
                key = key[:1] + name + b"\1"     # past all chunks of this name
        return 0

    # The first key at or after `key`, or None.
    cdef object first_key(self, bytes key):
        cdef MDB_txn* txn = self.enter()
        cdef MDB_cursor* cursor = NULL
        cdef MDB_val found, value
        cdef int rc
        try:
            rc = self.api.cursor_open(txn, self.dbi, &cursor)
            found.mv_size, found.mv_data = len(key), <char*> key
            if rc == 0:
                rc = self.api.cursor_get(cursor, &found, &value, MDB_SET_RANGE)
            if rc == MDB_NOTFOUND:
                return None
            if rc != 0:
                raise lmdb_error(rc, "reading", self.path)
            return PyBytes_FromStringAndSize(<char*> found.mv_data, found.mv_size)
        finally:
            if cursor != NULL:
                self.api.cursor_close(cursor)
            self.leave(txn)

    def copy_to(self, path):
        """Writes the last commit to the new directory `path`, and nothing of the past; the store goes on.

        The copy is complete and synced when this returns, and is not there under its name before. A map that
        fills meanwhile grows only after the copy. Raises StorageError if `path` exists or cannot be written.
        """
        directory = Path(path)
        target, partial = directory / DATA_NAME, directory / (DATA_NAME + ".partial")
        with self.turn:
            self.check_open()
        try:
            directory.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written: {error}; give a directory that does not exist"
            ) from error
        try:
            self.copy_entries_to(partial)
            try:
                sync(partial, os.O_RDWR)
                partial.rename(target)
                sync_directory(directory)
                sync_directory(directory.absolute().parent)
            except OSError as error:
                raise StorageError(f"{path}: cannot be written: {error}") from error
        except BaseException:
            for name in (partial, target):       # the directory is ours: nothing else is in it
                name.unlink(missing_ok=True)
            directory.rmdir()
            raise

    # Makes a new data file of every entry. Its pages are not copied, not even those in use: a key that was
    # deleted lives on in a branch of the tree, where it parts two leaves, and behind values and between nodes
    # is what a page held before.
    cdef int copy_entries_to(self, path) except -1:
        cdef bytes encoded = os.fsencode(path)
        cdef const char* c_path = encoded
        cdef MDB_txn* txn = self.enter()
        cdef MDB_env* env = NULL
        cdef MDB_envinfo info
        cdef MDB_stat stat
        cdef size_t used_bytes, map_size_bytes
        cdef int rc
        fill_standard_descriptors()
        try:
            self.api.env_info(self.env, &info)
            self.api.env_stat(self.env, &stat)
            # It is no larger than this one, but for the pages that its own transactions replace.
            used_bytes = (info.me_last_pgno + 1) * stat.ms_psize
            map_size_bytes = max(self.map_size_bytes, used_bytes + (used_bytes >> 6) + (1 << 20))
            with nogil:
                rc = self.api.env_create(&env)
                if rc == 0:
                    rc = self.api.env_set_mapsize(env, map_size_bytes)
                    if rc == 0:
                        rc = self.api.env_open(env, c_path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOSYNC, 0o600)
                    if rc == 0:
                        rc = copy_entries(self.api, txn, self.dbi, env)
                    self.api.env_close(env)
        finally:
            self.leave(txn)
        if rc != 0:
            raise lmdb_error(self.told(rc), f"copying to {path}", self.path)
        return 0

    def compact(self):
        """Rewrites the file without its free pages: what was deleted is in it no more, and the file is as
        small as it can be.

        Needs as much free space as there are rows; whoever reads waits while the files change places. Raises
        StorageError: either the copy cannot be written and the store goes on as it was, or it is given up and
        `reopen` finds one file or the other, which hold the same rows.
        """
        copy = Path(self.path, COMPACTING_NAME)
        if self.txn != NULL or self.read_only:
            raise RuntimeError("compact: a transaction is under way, or the store is open to be read only")
        self.check_open()
        self.remove_leftovers()
        self.copy_to(copy)
        with self.turn:
            self.ids.hold()
            try:
                self.close_env()
                try:
                    reach("compact.copied")
                    (copy / DATA_NAME).replace(Path(self.path, DATA_NAME))
                    reach("compact.swapped")
                    copy.rmdir()
                    sync_directory(self.path)
                finally:
                    self.give_file()
                    self.take_file()
                self.open_env(Path(self.path))
                self.read_identity()
                self.sign_in()
            except (OSError, StorageError) as error:
                self.failure = f"compacting: {error}"
                self.close_env()
                raise StorageError(
                    f"{self.path}: cannot be replaced by its compacted copy: {error}; reopen() it"
                ) from error
            finally:
                self.ids.let_go()
        return 0

    # What was interrupted while it was made. It may hold what the next compaction is to be rid of.
    cdef int remove_leftovers(self) except -1:
        for name in (CREATING_NAME, COMPACTING_NAME, PROBE_NAME):
            leftover = Path(self.path, name)
            try:
                if not leftover.exists():
                    continue
                if name == PROBE_NAME:
                    leftover.unlink()
                else:
                    for entry in leftover.iterdir():
                        entry.unlink()
                    leftover.rmdir()
                sync_directory(self.path)
            except OSError as error:
                raise StorageError(
                    f"{leftover}: cannot be removed: {error}; remove it, it is unfinished"
                ) from error
        return 0

    cdef int give_file(self) except -1:
        if self.file_id is not None:
            with open_files_lock:
                open_files.discard(self.file_id)
            self.file_id = None
        if self.fd >= 0:
            os.close(self.fd)                    # and the flock with it
            self.fd = -1
        return 0

    @property
    def given_up(self):
        """A failure closed the environment: `reopen` it, or be content with what is in memory."""
        return self.failure is not None

    def begin(self, uint64_t n_bytes=0, *, bint goes_on=False):
        """Starts the transaction that write_shard and put_meta fill and commit makes durable.

        n_bytes: of records and metas, at most; the map is made large enough for them, and for all that is
        stored to be written anew. goes_on: what the transaction before this one replaced is little, and may
        lie beside what this one replaces.
        """
        self.check_open()
        if self.txn != NULL:
            raise RuntimeError("begin: the transaction before this one was neither committed nor aborted")
        if self.read_only:
            raise RuntimeError("begin: the store was opened to be read only")
        self.room = self.room_bytes + (0 if self.cannot_hold else free_bytes(self.path))
        self.grow(min(self.end_with(n_bytes, 0), self.max_map_size_bytes))
        if self.pages.n_recent > FEW_PAGES and not goes_on:
            # What the last transaction freed, a crash may still need, and the next one lets it be. One of
            # next to nothing in between, and the file holds its pages twice at most, not three times.
            self.sign()
        self.begin_txn()

    cdef int begin_txn(self) except -1:
        cdef int rc
        with nogil:
            rc = self.api.txn_begin(self.env, NULL, 0, &self.txn)
        if rc != 0:
            self.txn = NULL
            self.give_up(rc, "beginning a transaction")
        self.writer = threading.get_ident()
        self.taken = self.changed_bytes = 0
        return 0

    # Refuses what the disk has no room for: one that is full in the middle of a commit costs the environment.
    cdef int take(self, uint64_t n_bytes) except -1:
        if self.room - self.taken < n_bytes:
            self.drop()
            raise LimitError(
                f"{self.path}: there is room for {self.room} bytes on its file system, and at least "
                f"{self.taken + n_bytes} are to be written; free some, the next checkpoint goes on by itself"
            )
        self.taken += n_bytes
        return 0

    cdef int check_writing(self, str call) except -1:
        self.check_open()
        if self.txn == NULL:
            raise RuntimeError(f"{call}: there is no transaction; call begin first")
        if self.writer != threading.get_ident():
            raise RuntimeError(f"{call}: the transaction belongs to the thread that began it")
        return 0

    def write_shard(self, int shard, records not None, uint64_t position):
        """Brings the records of one shard in, as of `position`, which never goes back.

        records: any contiguous bytes: 16 bytes fingerprint, u32 payload length, payload, and again; the
        fingerprints strictly ascending; length 0xFFFFFFFF and no payload deletes the row. They are borrowed
        for the call.

        Raises ValueError for records that are not as above, before anything is written; CorruptRecordError if
        a block to be merged is damaged, LimitError if the disk has no room for it or the map cannot grow,
        MapGrownError if it had to, StorageError: each ends the transaction.
        """
        cdef const uint8_t[::1] view = records
        cdef Fault fault
        cdef uint64_t n_rows = 0
        cdef int rc
        self.check_writing("write_shard")
        check_shard(shard)
        with nogil:
            rc = check_records(&view[0] if view.shape[0] else NULL, view.shape[0], True, &n_rows, &fault)
        if rc != FAULT_NONE:
            raise ValueError(f"write_shard: shard {shard}: {fault_in_words(&fault)}")
        self.take(view.shape[0])
        try:
            self.judge(self.do_shard(shard, view, position, &fault), &fault, f"writing shard {shard}")
        except BaseException:
            self.drop()
            raise
        self.unmap_pages()

    def put_meta(self, str name not None, data not None):
        """Stores `data` (any contiguous bytes, up to 4 GiB) under `name`, in place of what was there.

        A name is 1 to 48 of a-z 0-9 _ . -, not beginning with a sign. Borrowed and raising as in write_shard.
        """
        cdef const uint8_t[::1] view = data
        cdef Fault fault
        self.check_writing("put_meta")
        encoded = check_name(name)
        if view.shape[0] >> 32:
            raise ValueError(f"put_meta: {name}: {view.shape[0]} bytes are more than 4 GiB")
        self.take(view.shape[0])
        try:
            self.judge(self.do_meta(encoded, view, &fault), &fault, f"writing meta {name}")
        except BaseException:
            self.drop()
            raise
        self.changed_bytes += view.shape[0]

    def commit(self):
        """Makes the transaction durable. Any failure but a full map gives the environment up; see reopen.

        Raises StorageError (given up: nothing of it may be trusted until reopen), LimitError (the map cannot
        grow) and MapGrownError (it had to): the transaction is aborted, the store goes on.
        """
        self.check_writing("commit")
        self.finish()

    def abort(self):
        """Drops the transaction; does nothing if there is none."""
        if self.txn != NULL:
            self.check_writing("abort")
            self.drop()

    cdef int drop(self) except -1:
        if self.txn != NULL:
            self.api.txn_abort(self.txn)
            self.txn = NULL
        return 0

    # Raises what a FaultCode means. A full map is larger then: that is rare, since `begin` has seen to it,
    # but pages that lie side by side may run out while there are others.
    cdef int judge(self, int rc, const Fault* fault, str doing) except -1:
        if rc == FAULT_NONE:
            return 0
        if rc == FAULT_LMDB and fault.error == MDB_MAP_FULL:
            self.drop()
            self.grow(2 * self.map_size_bytes)
            raise MapGrownError(f"{self.path}: {doing}: the map was full; it has grown, begin again")
        if rc == FAULT_LMDB:
            self.give_up(fault.error, doing)
        raise self.error_of(fault, doing)

    cdef int do_shard(self, uint32_t shard, const uint8_t[::1] records, uint64_t position,
                      Fault* fault) except -1:
        cdef Job job
        cdef const uint8_t* data = &records[0] if records.shape[0] else NULL
        cdef size_t size = records.shape[0]
        cdef bint found = False
        cdef int rc
        start_job(&job, self.api, self.txn, self.dbi, shard)
        job.block_bytes, job.merged, job.stale = self.block_bytes, &self.merged, &self.stale
        rc = get_head(&job, &job.head, &found, fault)
        if rc != FAULT_NONE:
            return rc
        if position < job.head.position:
            raise ValueError(
                f"write_shard: shard {shard} is at position {job.head.position}, {position} is behind it"
            )
        job.head.position = position
        with nogil:
            rc = self.api.cursor_open(self.txn, self.dbi, &job.cursor)
            if rc != 0:
                rc = fail_lmdb(fault, rc)
            else:
                rc = write_records(&job, data, size, fault)
                self.api.cursor_close(job.cursor)
            if rc == FAULT_NONE:
                rc = put_head(&job, fault)
        self.changed_bytes += job.changed_bytes
        return rc

    cdef int do_meta(self, bytes name, const uint8_t[::1] data, Fault* fault) except -1:
        cdef const char* c_name = name
        cdef size_t name_bytes = len(name), size = data.shape[0]
        cdef const uint8_t* c_data = &data[0] if size else NULL
        cdef MDB_cursor* cursor = NULL
        cdef int rc
        with nogil:
            rc = self.api.cursor_open(self.txn, self.dbi, &cursor)
            if rc != 0:
                rc = fail_lmdb(fault, rc)
            else:
                rc = put_chunks(self.api, self.txn, self.dbi, cursor, c_name, name_bytes, c_data, size, fault)
                self.api.cursor_close(cursor)
        return rc

    cdef int do_identity(self, Fault* fault) except -1:
        cdef uint8_t[IDENTITY_BYTES] data
        cdef bytes magic = MAGIC, store_id = self.store_id, key = IDENTITY_KEY
        store_u32(data + 4, FORMAT_VERSION)
        memcpy(data + 8, <char*> magic, 8)
        memcpy(data + 16, <char*> store_id, 16)
        store_u64(data + 32, self.openings)
        return put_entry(self.api, self.txn, self.dbi, <const uint8_t*> <char*> key, len(key), data,
                         IDENTITY_BYTES, fault)

    cdef int finish(self) except -1:
        cdef MDB_txn* txn
        cdef Fault fault
        cdef int rc
        txn, self.txn = self.txn, NULL           # gone, whatever commit says
        with nogil:
            rc = self.api.txn_commit(txn)
        if rc != 0:
            self.judge(fail_lmdb(&fault, rc), &fault, "committing")
        return 0

    # Makes the map as large as `needed`, or as it may be: by doubling, since whoever reads waits meanwhile.
    cdef int grow(self, uint64_t needed) except -1:
        cdef size_t larger = self.map_size_bytes
        cdef int rc = 0
        if needed <= self.map_size_bytes:
            return 0
        while larger < needed and larger < self.max_map_size_bytes:
            larger = min(2 * larger, self.max_map_size_bytes)
        if larger <= self.map_size_bytes:
            raise LimitError(
                f"{self.path}: the map of {self.map_size_bytes} bytes is full and may not grow; the "
                f"transaction is aborted, give a larger max_map_size_bytes"
            )
        with self.turn:
            self.let_readers_out()               # the map moves
            self.map = NULL
            self.ids.hold()
            rc = self.api.env_set_mapsize(self.env, larger)
            self.ids.attach(self.env, self.dbi)
            self.ids.let_go()
        if rc != 0:
            self.give_up(rc, f"growing the map to {larger} bytes")
        self.map_size_bytes = larger
        self.find_map(os.path.join(self.path, DATA_NAME))
        return 0

    # Always raises. After a failed write or sync nobody knows what the disk holds, and LMDB would go on.
    cdef int give_up(self, int code, str doing) except -1:
        self.close_env()
        error = lmdb_error(self.told(code), doing, self.path)
        self.failure = str(error)
        if type(error) is not StorageError:
            raise error
        raise StorageError(
            f"{error}; the environment is closed, the last commit before is intact: free space and call "
            f"reopen(), or end the process"
        ) from error.__cause__

    # What a code of LMDB's means. When the system takes a part of what it wants to write, it says EIO: what
    # takes less than PROBE_BYTES now is a disk that is full.
    cdef int told(self, int code) except? -1:
        if code != errno.EIO:
            return code
        probe = Path(self.path, PROBE_NAME)
        try:
            probe.unlink(missing_ok=True)        # of a process that was killed here
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                probe.unlink()
                if os.write(fd, bytes(PROBE_BYTES)) < PROBE_BYTES:
                    return errno.ENOSPC
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            return error.errno if error.errno in (errno.ENOSPC, errno.EDQUOT) else code
        return code

    def reopen(self):
        """Opens the environment again from the file, after a failure gave it up; the lock was kept.

        Raises as open does. What it finds is the last commit, never the one that failed: shards() gives the
        positions.
        """
        if self.fd < 0 and self.failure is None:
            raise StorageError(f"{self.path}: is closed; open it again")
        if self.env != NULL:
            raise RuntimeError("reopen: the store is open")
        try:
            if self.file_id is None:             # lost between the two files of a compaction
                self.give_file()
                self.take_file()
            self.open_env(Path(self.path))
            self.read_identity()
            self.sign_in()
        except BaseException:
            self.close_env()
            raise
        self.failure = None

    def renew(self):
        """Closes the environment and opens it again: LMDB gives back no page that it ever copied for a
        transaction, nor its part of the map, until then. Does nothing while somebody reads.

        Raises as open does, and is given up then: `reopen` is what remains to be done.
        """
        if self.txn != NULL or self.read_only:
            raise RuntimeError("renew: a transaction is under way, or the store is open to be read only")
        self.check_open()
        with self.turn:
            if self.n_readers:
                return
            self.ids.hold()
            try:
                self.close_env()
                self.open_env(Path(self.path))
            except (OSError, StorageError) as error:
                self.failure = f"opening it again: {error}"
                self.close_env()
                raise
            finally:
                self.ids.let_go()

    def close(self):
        """Aborts a transaction under way, waits for readers and lets the file go. May be called again."""
        self.close_env()
        self.give_file()
        self.failure = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


cdef int check_shard(int shard) except -1:
    if not 0 <= shard <= 0xFFFF:
        raise ValueError(f"shard {shard} is not from 0 to 65535")
    return 0


cdef bytes check_name(str name):
    if META_NAME.fullmatch(name) is None:
        raise ValueError(f"meta name {name!r} is not 1 to {MAX_NAME_BYTES} of a-z 0-9 _ . -, first a-z 0-9")
    return name.encode()


cdef bytes check_value(str path, bytes key, bytes value, size_t least_bytes):
    cdef Fault fault
    cdef const char* c_key = key
    cdef const char* c_value = value
    if check_entry(<const uint8_t*> c_key, len(key), <const uint8_t*> c_value, len(value), least_bytes,
                   &fault) != FAULT_NONE:
        raise corrupt(path, &fault)
    return value


# Puts all entries of `dbi` into the empty `to`, in order, so that its pages are full.
cdef int copy_entries(const LmdbApi* api, MDB_txn* txn, MDB_dbi dbi, MDB_env* to) noexcept nogil:
    cdef MDB_cursor* cursor = NULL
    cdef MDB_cursor* to_cursor = NULL
    cdef MDB_txn* to_txn = NULL
    cdef MDB_dbi to_dbi
    cdef MDB_val key, value
    cdef size_t n_bytes = 0
    cdef int to_rc, rc = api.cursor_open(txn, dbi, &cursor)
    if rc != 0:
        return rc
    rc = api.cursor_get(cursor, &key, &value, MDB_FIRST)
    while rc == 0:
        if to_txn == NULL:
            n_bytes = 0
            rc = api.txn_begin(to, NULL, 0, &to_txn)
            if rc == 0:
                rc = api.dbi_open(to_txn, NULL, 0, &to_dbi)
            if rc == 0:
                rc = api.cursor_open(to_txn, to_dbi, &to_cursor)
            if rc != 0:
                break
        rc = api.cursor_put(to_cursor, &key, &value, MDB_APPEND)
        if rc != 0:
            break
        n_bytes += key.mv_size + value.mv_size
        rc = api.cursor_get(cursor, &key, &value, MDB_NEXT)
        if n_bytes >= COPY_BYTES or rc != 0:
            api.cursor_close(to_cursor)
            to_cursor = NULL
            to_rc = api.txn_commit(to_txn)       # and frees it, whatever comes of it
            to_txn = NULL
            if to_rc != 0:
                rc = to_rc
    if to_cursor != NULL:
        api.cursor_close(to_cursor)
    if to_txn != NULL:
        api.txn_abort(to_txn)
    api.cursor_close(cursor)
    return 0 if rc == MDB_NOTFOUND else rc


cdef object free_bytes(path):
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


# Makes a rename or a new file in it survive a power cut.
cdef int sync_directory(path) except -1:
    return sync(path, os.O_RDONLY | os.O_DIRECTORY)


cdef int sync(path, int flags) except -1:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return 0
