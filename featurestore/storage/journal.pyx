"""The journal: append-only segment files, many appends to one fdatasync, and recovery after a power cut.

    position       1 ... 3   4     5 ... 9        10 ... 12
    journal-…001   ▐ header │ BATCH │ SCHEMA │ BATCH │ 0 0 0 ▌   sealed: has a successor, so it is durable
    journal-…010   ▐ header │ BATCH │ BATCH │ BA░░░ 0 0 0 0 ▌    active: zeros beyond the last frame
                                    ▲       ▲
                              durable       written

Promises (design §2.10):
  - `append` returns after write(): what it wrote survives kill -9.
  - what `durable_position` covers survives a power cut, and only that is acknowledged in mode `group`. In
    mode `process` a frame is synced at most a second after its write. Either way a power cut leaves a prefix.
  - the first failed sync or write is the last: nothing more is acknowledged, and every later call says why. A
    sync must not be tried again, because Linux marks the pages clean that it could not write.
  - a shortage is not a failure: while the disk is full, or no descriptor or kernel memory is left, an append
    is refused whole, and a later one succeeds when there is what it needs.
  - a new segment takes at most a quarter of the space that is left, down to SMALL_SEGMENT_BYTES: what the
    checkpoint needs, which frees the segments before, is not taken by one that is mostly empty.
  - nothing that was recorded as durable disappears silently: opening refuses instead.

Logical offset. Segments are numbered through: a segment's base offset is its predecessor's base plus the
bytes used there, so a frame's logical offset is base + offset in its file. Each frame records the logical
offset before which everything was durable when it was written.

Recovery. Frames are read until the first bad one, X. Behind X in the same file a valid frame may follow,
because unsynced blocks reach the disk in any order; if one recorded a durable offset beyond X, X was durable
once and has been damaged: CorruptRecordError. A successor file proves the same, since it is created only when
all before it is durable. Otherwise X and what follows were never acknowledged: they are cut off and zeroed.
Two frames cannot be confused with what happened to lie there: the checksum is salted per segment and the
header holds its own offset. A damaged *last* durable frame cannot be told from a torn one here; the store
passes its checkpoint's position to notice a journal that ends before it.

Syncing. One thread per journal syncs whatever has been written, over and over, without a lock that an append
needs; appends that arrive meanwhile share the next sync. What nobody waits for is synced half a second later
(all of mode `process`; in mode `group` what its sender wants only applied), or with what somebody waits for:
a sync takes a core that readers have a use for. A leader among the waiters would save the hand-over
(measured: 12 µs beside a sync of 190 µs), but the front end parks replies and has no thread to lead with, and
mode `process` needs a timer anyway.

Locks, in the order in which they are taken: truncate_lock, append_lock, sync_lock. hook_lock is taken alone.
Only sync_lock is taken by those who look: an appender that never pauses would starve them of append_lock.
"""
import fcntl
import os
import re
from typing import NamedTuple

cimport cython
from libc.errno cimport (
    EAGAIN, EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, ETIMEDOUT, errno as c_errno,
)
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from posix.time cimport CLOCK_MONOTONIC

from featurestore.clock cimport clock_monotonic_ns
from featurestore.core.hashing cimport crc32c, hashing_structs
from featurestore.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal,
    pthread_cond_timedwait, pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_create, pthread_join, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, timespec,
)
from featurestore.storage.failpoint cimport (
    JOURNAL_AFTER_SYNC, JOURNAL_ALLOCATE, JOURNAL_BEFORE_SYNC, JOURNAL_MID_FRAME, JOURNAL_ROLL,
    JOURNAL_ROLLED, JOURNAL_TRUNCATE, failpoint, failpoints_armed,
)
from featurestore.storage.frame cimport (
    MAX_BODY_BYTES, Cursor, align8, buffer_free, buffer_reserve, load_u64, take,
)

from featurestore.core.structs import same_structs
from featurestore.errors import (
    ConfigError, CorruptRecordError, IncompatibleVersionError, LimitError, StorageError, StoreLockedError,
)
from featurestore.stdio import fill_standard_descriptors
from featurestore.storage import failpoint as failpoints

same_structs(__name__, journal_structs(), hashing_structs())

cdef extern from "<fcntl.h>" nogil:
    const int O_RDWR
    const int O_CREAT
    const int O_EXCL
    const int O_NOFOLLOW
    const int O_CLOEXEC
    const int F_DUPFD_CLOEXEC
    int c_fcntl "fcntl"(int, int, ...)
    int openat(int, const char*, int, int)
    int posix_fallocate(int, int64_t, int64_t)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char*, size_t, const char*, ...)
    int renameat(int, const char*, int, const char*)

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t pread(int, void*, size_t, int64_t)
    Py_ssize_t pwrite(int, const void*, size_t, int64_t)
    Py_ssize_t write(int, const void*, size_t)
    int fdatasync(int)
    int fsync(int)
    int close(int)
    int unlinkat(int, const char*, int)

cdef extern from "<sys/statvfs.h>" nogil:
    ctypedef struct Space "struct statvfs":
        unsigned long f_frsize
        uint64_t f_bavail
    int fstatvfs(int, Space*)

cdef extern from "<sys/uio.h>" nogil:
    Py_ssize_t pwritev(int, const iovec*, int, int64_t)

cdef extern from "<sys/random.h>" nogil:
    Py_ssize_t getrandom(void*, size_t, unsigned int)

cdef extern from * nogil:
    const int __ATOMIC_ACQUIRE
    const int __ATOMIC_RELEASE
    uint64_t load_atomic_u64 "__atomic_load_n"(const uint64_t*, int)
    int load_atomic_int "__atomic_load_n"(const int*, int)
    void store_atomic_u64 "__atomic_store_n"(uint64_t*, uint64_t, int)
    void store_atomic_int "__atomic_store_n"(int*, int, int)

cdef enum:
    SEGMENT_MAGIC = 0x534A5346    # "FSJS" in the file
    FRAME_MAGIC = 0x464A5346      # "FSJF"
    SEGMENT_VERSION = 1
    FRAME_VERSION = 1
    NAME_BYTES = 40
    READ_BYTES = 1 << 20
    MIN_SEGMENT_BYTES = 4096
    SECOND_NS = 1_000_000_000
    SMALL_SEGMENT_BYTES = 1 << 20  # what a new segment takes of a disk that is nearly full
    LAST_STANDARD_FD = 2
    RETRY_NS = 100_000_000        # between attempts to get what there was a shortage of

cdef const uint8_t[4096] ZEROS

assert sizeof(SegmentHeader) == SEGMENT_HEADER_BYTES
assert sizeof(FrameHeader) == FRAME_HEADER_BYTES

BATCH = FRAME_BATCH
SCHEMA = FRAME_SCHEMA
FORGET = FRAME_FORGET
PRODUCER = FRAME_PRODUCER
SHED = FRAME_SHED
CLOCK = FRAME_CLOCK
KINDS = {
    BATCH: "BATCH", SCHEMA: "SCHEMA", FORGET: "FORGET", PRODUCER: "PRODUCER", SHED: "SHED", CLOCK: "CLOCK",
}
MODES = {"group": MODE_GROUP, "process": MODE_PROCESS}
DEFAULT_SEGMENT_BYTES = 64 << 20
MAX_SEGMENT_BYTES = 1 << 40


# ---- time and checksums

cdef timespec as_timespec(uint64_t ns) noexcept nogil:
    return timespec(tv_sec=<int64_t> (ns // SECOND_NS), tv_nsec=<int64_t> (ns % SECOND_NS))


cdef uint32_t frame_checksum(uint32_t body_crc, uint64_t salt, const FrameHeader* header) noexcept nogil:
    """Over the padded body, the segment's salt, the header after its checksum: so the body needs no lock."""
    cdef uint32_t crc = crc32c(body_crc, &salt, sizeof(salt))
    return crc32c(crc, &header.version, FRAME_HEADER_BYTES - 8)


# ---- segment files

cdef void segment_name(char* out, uint64_t first_position, const char* suffix) noexcept nogil:
    snprintf(out, NAME_BYTES, "journal-%020llu.seg%s", <unsigned long long> first_position, suffix)


cdef inline bint is_full(int error) noexcept nogil:
    return error == ENOSPC or error == EDQUOT


cdef inline bint is_shortage(int error) noexcept nogil:
    """What passes by itself: see SHORTAGES in directory.py."""
    return (is_full(error) or error == EMFILE or error == ENFILE or error == ENOMEM or error == EAGAIN
            or error == EINTR)


cdef uint64_t next_segment_bytes(int directory_fd, uint64_t segment_bytes,
                                 uint64_t frame_bytes) noexcept nogil:
    """Size of a new segment that has room for the frame: a quarter of what is free, within the two limits."""
    cdef Space space
    if fstatvfs(directory_fd, &space) == 0:
        segment_bytes = min(
            segment_bytes,
            max(space.f_bavail * space.f_frsize // 4 & ~<uint64_t> 4095, <uint64_t> SMALL_SEGMENT_BYTES),
        )
    return max(segment_bytes, SEGMENT_HEADER_BYTES + frame_bytes)


cdef int write_all(int fd, iovec* pieces, int n_pieces, uint64_t offset) noexcept nogil:
    """0 when everything is written, else errno. Consumes `pieces`."""
    cdef Py_ssize_t n
    cdef size_t step
    while n_pieces:
        if pieces.iov_len == 0:
            pieces += 1
            n_pieces -= 1
            continue
        n = pwritev(fd, pieces, n_pieces, <int64_t> offset)
        if n < 0:
            if c_errno == EINTR:
                continue
            return c_errno
        if n == 0:
            return EIO
        offset += <size_t> n
        while n:
            step = min(<size_t> n, pieces.iov_len)
            pieces.iov_base = <char*> pieces.iov_base + step
            pieces.iov_len -= step
            n -= <Py_ssize_t> step
            if pieces.iov_len == 0:
                pieces += 1
                n_pieces -= 1
    return 0


cdef int write_zeros(int fd, uint64_t offset, uint64_t n) noexcept nogil:
    cdef iovec piece
    cdef int error = 0
    while n and not error:
        piece = iovec(iov_base=<void*> &ZEROS[0], iov_len=min(n, sizeof(ZEROS)))
        n -= piece.iov_len
        offset += piece.iov_len
        error = write_all(fd, &piece, 1, offset - piece.iov_len)
    return error


cdef int open_new(int directory_fd, const char* name) noexcept nogil:
    """A new file's descriptor, or minus errno. Never 0, 1 or 2, where others write what is meant for people:
    the program may have closed those since it opened the store (stdio.py)."""
    cdef int fd = openat(directory_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    cdef int higher
    if fd < 0:
        return -c_errno
    if fd > LAST_STANDARD_FD:
        return fd
    higher = c_fcntl(fd, F_DUPFD_CLOEXEC, LAST_STANDARD_FD + 1)
    if higher < 0:
        higher = -c_errno
        unlinkat(directory_fd, name, 0)
    close(fd)
    return higher


cdef int fill_segment(int fd, SegmentHeader* header) noexcept nogil:
    """Allocates, salts, writes and syncs a new segment file; 0 or errno."""
    cdef iovec piece = iovec(iov_base=header, iov_len=SEGMENT_HEADER_BYTES)
    cdef int error = failpoint(JOURNAL_ALLOCATE)
    if error == 0:
        error = posix_fallocate(fd, 0, <int64_t> header.file_bytes)
    if error:
        return error
    if getrandom(&header.salt, sizeof(header.salt), 0) != sizeof(header.salt):
        return c_errno
    header.checksum = crc32c(0, header, SEGMENT_HEADER_BYTES - 4)
    error = write_all(fd, &piece, 1, 0)
    if error == 0 and fsync(fd) != 0:
        error = c_errno
    return error


cdef int create_segment(int directory_fd, SegmentHeader* header, int* out_fd, bint* renamed) noexcept nogil:
    """A synced segment under its name, in a synced directory; 0 or errno.

    It takes its name only when it is whole, so a file of that name with a bad header is damage and not a
    crash. Once it has the name (`renamed`), an error is for good: which file a power cut would leave is
    unknown.
    """
    cdef char name[NAME_BYTES]
    cdef char temporary[NAME_BYTES]
    cdef int fd, error
    renamed[0] = False
    segment_name(name, header.first_position, "")
    segment_name(temporary, header.first_position, ".tmp")
    unlinkat(directory_fd, temporary, 0)     # of an attempt whose file could not be removed
    fd = open_new(directory_fd, temporary)
    if fd < 0:
        return -fd
    error = fill_segment(fd, header)
    if error == 0:
        error = failpoint(JOURNAL_ROLL)
    if error == 0 and renameat(directory_fd, temporary, directory_fd, name) != 0:
        error = c_errno
    if error:
        unlinkat(directory_fd, temporary, 0)
        close(fd)
        return error
    renamed[0] = True
    error = failpoint(JOURNAL_ROLLED)
    if error == 0 and fsync(directory_fd) != 0:
        error = c_errno
    if error:
        close(fd)
        return error
    out_fd[0] = fd
    return 0


cdef SegmentHeader new_header(
    const uint8_t* store_id, uint64_t first_position, uint64_t previous_position, uint64_t base_offset,
    uint64_t file_bytes,
) noexcept nogil:
    cdef SegmentHeader header
    memset(&header, 0, sizeof(header))
    header.magic = SEGMENT_MAGIC
    header.version = SEGMENT_VERSION
    header.header_bytes = SEGMENT_HEADER_BYTES
    memcpy(header.store_id, store_id, 16)
    header.first_position = first_position
    header.previous_position = previous_position
    header.base_offset = base_offset
    header.file_bytes = file_bytes
    return header


# ---- syncing

cdef int sync_file(int fd) noexcept nogil:
    cdef int error = failpoint(JOURNAL_BEFORE_SYNC)
    if error:
        return error
    if fdatasync(fd) != 0:
        return c_errno
    return failpoint(JOURNAL_AFTER_SYNC)


cdef void fail(JournalState* j, int error) noexcept nogil:
    """Remembers the first error and wakes everyone. The hooks hear of it from the sync thread."""
    pthread_mutex_lock(&j.sync_lock)
    if j.error == 0:
        store_atomic_int(&j.error, error, __ATOMIC_RELEASE)
    pthread_cond_broadcast(&j.done)
    pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.sync_lock)


cdef void run_hooks(JournalState* j, uint64_t durable_position, int error) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&j.hook_lock)
    for i in range(j.n_hooks):
        j.hooks[i].call(j.hooks[i].context, durable_position, error)
    pthread_mutex_unlock(&j.hook_lock)


cdef bint await_work(JournalState* j) noexcept nogil:
    """Under sync_lock: True when there is something to sync now, False when the thread should end."""
    cdef uint64_t due_ns
    cdef timespec due
    while j.error == 0:
        if j.written_offset == j.durable_offset:
            if j.stopping:
                return False
            j.idle = True
            pthread_cond_wait(&j.work, &j.sync_lock)
            j.idle = False
            continue
        if j.hurry or j.stopping:
            return True
        due_ns = j.dirty_since_ns + j.sync_delay_ns
        if clock_monotonic_ns() >= due_ns:
            return True
        due = as_timespec(due_ns)
        pthread_cond_timedwait(&j.work, &j.sync_lock, &due)
    return False


cdef void* sync_loop(void* argument) noexcept nogil:
    """The sync thread. It ends when the journal is closed or has failed, and never syncs after a failure."""
    cdef JournalState* j = <JournalState*> argument
    cdef uint64_t offset, position
    cdef int fd, error
    pthread_mutex_lock(&j.sync_lock)
    while await_work(j):
        # `fd` stays open while it is synced: a roll waits until nothing is left to sync before it closes it.
        fd = j.fd
        offset = j.written_offset
        position = j.written_position
        j.hurry = False
        j.dirty_since_ns = clock_monotonic_ns()
        pthread_mutex_unlock(&j.sync_lock)
        error = sync_file(fd)
        pthread_mutex_lock(&j.sync_lock)
        if error:
            if j.error == 0:
                store_atomic_int(&j.error, error, __ATOMIC_RELEASE)
            break
        j.n_syncs += 1
        store_atomic_u64(&j.durable_offset, offset, __ATOMIC_RELEASE)
        store_atomic_u64(&j.durable_position, position, __ATOMIC_RELEASE)
        if j.written_offset == offset:
            j.hurry = False  # whoever came meanwhile waited for this sync
        pthread_cond_broadcast(&j.done)
        pthread_mutex_unlock(&j.sync_lock)
        run_hooks(j, position, 0)
        pthread_mutex_lock(&j.sync_lock)
    error = j.error
    position = j.durable_position
    pthread_cond_broadcast(&j.done)
    pthread_mutex_unlock(&j.sync_lock)
    if error:
        run_hooks(j, position, error)
    return NULL


cdef int await_durable(
    JournalState* j, uint64_t position, uint64_t offset, int64_t timeout_ns,
) noexcept nogil:
    """Until both are durable. Under no lock but, in a roll, append_lock."""
    cdef int status = JOURNAL_OK
    cdef timespec due
    if timeout_ns >= 0:
        due = as_timespec(clock_monotonic_ns() + <uint64_t> timeout_ns)
    pthread_mutex_lock(&j.sync_lock)
    if position > j.written_position:
        status = JOURNAL_INVALID
    while status == JOURNAL_OK and (j.durable_position < position or j.durable_offset < offset):
        if j.error:
            status = JOURNAL_FAILED
            break
        if not j.hurry and j.written_offset != j.durable_offset:
            j.hurry = True
            pthread_cond_signal(&j.work)
        if timeout_ns < 0:
            pthread_cond_wait(&j.done, &j.sync_lock)
        elif pthread_cond_timedwait(&j.done, &j.sync_lock, &due) == ETIMEDOUT:
            if j.durable_position < position or j.durable_offset < offset:
                status = JOURNAL_FAILED if j.error else JOURNAL_TIMEOUT
            break
    pthread_mutex_unlock(&j.sync_lock)
    return status


cdef int journal_wait(JournalState* j, uint64_t position, int64_t timeout_ns) noexcept nogil:
    if load_atomic_u64(&j.durable_position, __ATOMIC_ACQUIRE) >= position:
        return JOURNAL_OK
    return await_durable(j, position, 0, timeout_ns)


cdef void journal_hurry(JournalState* j) noexcept nogil:
    pthread_mutex_lock(&j.sync_lock)
    if not j.hurry and j.written_offset != j.durable_offset:
        j.hurry = True
        pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.sync_lock)


cdef uint64_t journal_durable(const JournalState* j) noexcept nogil:
    return load_atomic_u64(&j.durable_position, __ATOMIC_ACQUIRE)


cdef uint64_t journal_acknowledged(JournalState* j) noexcept nogil:
    cdef uint64_t position
    if j.mode == MODE_GROUP:
        return journal_durable(j)
    pthread_mutex_lock(&j.sync_lock)
    position = j.durable_position if j.error else j.written_position
    pthread_mutex_unlock(&j.sync_lock)
    return position


cdef int journal_add_hook(JournalState* j, DurableHook call, void* context) noexcept nogil:
    cdef int status = JOURNAL_INVALID
    pthread_mutex_lock(&j.hook_lock)
    if j.n_hooks < MAX_HOOKS:
        j.hooks[j.n_hooks] = Hook(call=call, context=context)
        j.n_hooks += 1
        status = JOURNAL_OK
    pthread_mutex_unlock(&j.hook_lock)
    return status


cdef void journal_remove_hook(JournalState* j, DurableHook call, void* context) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&j.hook_lock)
    for i in range(j.n_hooks):
        if j.hooks[i].call == call and j.hooks[i].context == context:
            j.n_hooks -= 1
            j.hooks[i] = j.hooks[j.n_hooks]
            break
    pthread_mutex_unlock(&j.hook_lock)


# ---- appending

cdef int give_up(JournalState* j, int error) noexcept nogil:
    """The status of a failed system call: a shortage may be tried again, anything else is the end."""
    if is_shortage(error):
        j.full = True
        j.shortage = error
        j.retry_at_ns = clock_monotonic_ns() + RETRY_NS
        return JOURNAL_FULL
    fail(j, error)
    return JOURNAL_FAILED


cdef int reserve_segment(JournalState* j) noexcept nogil:
    """Under sync_lock: room for one more segment in the list, so that adding it cannot fail."""
    cdef SegmentEntry* segments
    cdef size_t capacity
    if j.n_segments < j.segments_capacity:
        return JOURNAL_OK
    capacity = 2 * j.segments_capacity + 8
    segments = <SegmentEntry*> realloc(j.segments, capacity * sizeof(SegmentEntry))
    if segments == NULL:
        return JOURNAL_NO_MEMORY
    j.segments = segments
    j.segments_capacity = capacity
    return JOURNAL_OK


cdef int replace_active(JournalState* j, uint64_t frame_bytes) noexcept nogil:
    """Under append_lock: the next frame goes to a new segment that has room for it.

    Everything before is made durable first. So a segment with a successor is durable in full, and only one
    file ever has unsynced frames. An active segment that is still empty is replaced by the new one under its
    name.
    """
    cdef SegmentHeader header
    cdef uint64_t file_bytes
    cdef uint64_t previous_position = 0
    cdef bint is_empty = j.at == SEGMENT_HEADER_BYTES
    cdef bint renamed
    cdef int fd = -1, error
    cdef int status = await_durable(j, 0, j.base_offset + j.at, -1)
    if status:
        return status
    pthread_mutex_lock(&j.sync_lock)
    status = reserve_segment(j)
    if j.n_segments > <uint64_t> is_empty:
        previous_position = j.segments[j.n_segments - 1 - is_empty].first_position
    pthread_mutex_unlock(&j.sync_lock)
    if status:
        return status
    file_bytes = next_segment_bytes(j.directory_fd, j.segment_bytes, frame_bytes)
    header = new_header(
        j.store_id, j.next_position, previous_position, j.base_offset + (0 if is_empty else j.at), file_bytes,
    )
    error = create_segment(j.directory_fd, &header, &fd, &renamed)
    if error and renamed:
        fail(j, error)
        return JOURNAL_FAILED
    if error:
        return give_up(j, error)
    pthread_mutex_lock(&j.sync_lock)
    close(j.fd)
    j.fd = fd
    j.n_segments += not is_empty
    j.segments[j.n_segments - 1] = SegmentEntry(first_position=header.first_position, file_bytes=file_bytes)
    j.written_offset = header.base_offset + SEGMENT_HEADER_BYTES
    store_atomic_u64(&j.durable_offset, j.written_offset, __ATOMIC_RELEASE)
    pthread_mutex_unlock(&j.sync_lock)
    j.salt = header.salt
    j.base_offset = header.base_offset
    j.file_bytes = file_bytes
    j.at = SEGMENT_HEADER_BYTES
    return JOURNAL_OK


cdef int write_halves(int fd, iovec* pieces, int n_pieces, uint64_t offset, size_t n) noexcept nogil:
    """As write_all, with the failpoint in the middle of the frame's n bytes."""
    cdef iovec first[MAX_PIECES + 2]
    cdef size_t left = n // 2, step
    cdef int i, error
    for i in range(n_pieces):
        step = min(left, pieces[i].iov_len)
        first[i] = iovec(iov_base=pieces[i].iov_base, iov_len=step)
        pieces[i] = iovec(iov_base=<char*> pieces[i].iov_base + step, iov_len=pieces[i].iov_len - step)
        left -= step
    error = write_all(fd, first, n_pieces, offset)
    if error == 0:
        error = failpoint(JOURNAL_MID_FRAME)
    return error or write_all(fd, pieces, n_pieces, offset + n // 2)


cdef int write_frame(
    JournalState* j, Frame* frame, uint32_t body_crc, iovec* pieces, int n_pieces, size_t frame_bytes,
) noexcept nogil:
    """Under append_lock, with room for the frame: `pieces[0]` becomes its header."""
    cdef FrameHeader header
    cdef int error, zero_error
    frame.first_position = j.next_position
    frame.offset = j.base_offset + j.at
    frame.durable_offset = load_atomic_u64(&j.durable_offset, __ATOMIC_ACQUIRE)
    header = FrameHeader(
        magic=FRAME_MAGIC, checksum=0, version=FRAME_VERSION, kind=frame.kind,
        header_bytes=FRAME_HEADER_BYTES, body_bytes=frame.body_bytes, first_position=frame.first_position,
        n_positions=frame.n_positions, schema_version=frame.schema_version, now_ms=frame.now_ms,
        durable_offset=frame.durable_offset, offset=frame.offset,
    )
    header.checksum = frame_checksum(body_crc, j.salt, &header)
    pieces[0] = iovec(iov_base=&header, iov_len=FRAME_HEADER_BYTES)
    if failpoints_armed:
        error = write_halves(j.fd, pieces, n_pieces, j.at, frame_bytes)
    else:
        error = write_all(j.fd, pieces, n_pieces, j.at)
    if error == 0:
        return JOURNAL_OK
    if is_shortage(error):
        # What was written has no valid checksum and the next frame overwrites it; zeros keep the file tidy,
        # and a disk too full even for them harms nothing.
        zero_error = write_zeros(j.fd, j.at, frame_bytes)
        if zero_error and not is_shortage(zero_error):
            error = zero_error
    return give_up(j, error)


cdef int publish(JournalState* j, bint unawaited) noexcept nogil:
    """Under append_lock: tells the sync thread about the frame that ends at j.at."""
    cdef int status = JOURNAL_OK
    cdef bint is_news
    pthread_mutex_lock(&j.sync_lock)
    if j.written_offset == j.durable_offset:
        j.dirty_since_ns = clock_monotonic_ns()
    j.written_offset = j.base_offset + j.at
    j.written_position = j.next_position - 1
    j.n_appends += 1
    # An idle thread has to know that there is something, and one that takes its time that somebody waits now.
    is_news = j.idle
    if j.mode == MODE_GROUP and not unawaited and not j.hurry:
        j.hurry = is_news = True
    if j.error:
        status = JOURNAL_FAILED
    elif is_news:
        pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.sync_lock)
    return status


cdef int append_locked(
    JournalState* j, Frame* frame, uint32_t body_crc, iovec* pieces, int n_pieces, size_t frame_bytes,
) noexcept nogil:
    cdef int status
    if j.closed:
        return JOURNAL_CLOSED
    if load_atomic_int(&j.error, __ATOMIC_ACQUIRE):
        return JOURNAL_FAILED
    if j.full and clock_monotonic_ns() < j.retry_at_ns:
        return JOURNAL_FULL
    if frame_bytes > j.file_bytes - j.at:
        status = replace_active(j, frame_bytes)
        if status:
            return status
    status = write_frame(j, frame, body_crc, pieces, n_pieces, frame_bytes)
    if status:
        return status
    j.full = False
    j.at += frame_bytes
    j.next_position += frame.n_positions
    return publish(j, frame.unawaited)


cdef int journal_append(JournalState* j, Frame* frame, const iovec* pieces, int n_pieces) noexcept nogil:
    cdef iovec parts[MAX_PIECES + 2]   # header, pieces, padding
    cdef uint64_t body_bytes = 0
    cdef uint32_t body_crc = 0
    cdef size_t padding
    cdef int i, status
    if n_pieces < 0 or n_pieces > MAX_PIECES or frame.n_positions == 0:
        return JOURNAL_INVALID
    if frame.kind < FRAME_BATCH or frame.kind > LAST_KIND:
        return JOURNAL_INVALID
    for i in range(n_pieces):
        if pieces[i].iov_len > MAX_BODY_BYTES - body_bytes:
            return JOURNAL_TOO_LARGE
        body_bytes += pieces[i].iov_len
        body_crc = crc32c(body_crc, pieces[i].iov_base, pieces[i].iov_len)
        parts[i + 1] = pieces[i]
    padding = align8(body_bytes) - body_bytes
    body_crc = crc32c(body_crc, ZEROS, padding)
    parts[n_pieces + 1] = iovec(iov_base=<void*> &ZEROS[0], iov_len=padding)
    frame.body_bytes = <uint32_t> body_bytes
    pthread_mutex_lock(&j.append_lock)
    status = append_locked(j, frame, body_crc, parts, n_pieces + 2, FRAME_HEADER_BYTES + body_bytes + padding)
    pthread_mutex_unlock(&j.append_lock)
    return status


cdef bint journal_would_wait(const JournalState* j, size_t n_bytes) noexcept nogil:
    return n_bytes > j.file_bytes - j.at


cdef int journal_roll(JournalState* j) noexcept nogil:
    cdef int status = JOURNAL_OK
    pthread_mutex_lock(&j.append_lock)
    if j.closed:
        status = JOURNAL_CLOSED
    elif load_atomic_int(&j.error, __ATOMIC_ACQUIRE):
        status = JOURNAL_FAILED
    elif j.at != SEGMENT_HEADER_BYTES:
        status = replace_active(j, 0)
    pthread_mutex_unlock(&j.append_lock)
    return status


cdef int delete_before(JournalState* j, uint64_t position, size_t* n_deleted) noexcept nogil:
    """Deletes whole sealed segments from the oldest on while they end before `position`.

    The directory is synced after each: a power cut between two must not leave a hole.
    """
    cdef char name[NAME_BYTES]
    cdef int status = JOURNAL_OK, error
    cdef bint removable
    n_deleted[0] = 0
    pthread_mutex_lock(&j.truncate_lock)
    while status == JOURNAL_OK and not j.closed:
        pthread_mutex_lock(&j.sync_lock)
        removable = j.n_segments > 1 and j.segments[1].first_position <= position
        if removable:
            segment_name(name, j.segments[0].first_position, "")
        pthread_mutex_unlock(&j.sync_lock)
        if not removable:
            break
        error = 0
        if unlinkat(j.directory_fd, name, 0) != 0:
            if is_shortage(c_errno):
                break                        # the next truncation has it too
            error = c_errno
        elif fsync(j.directory_fd) != 0:
            error = c_errno
        if error == 0:
            error = failpoint(JOURNAL_TRUNCATE)
        if error:
            fail(j, error)
            status = JOURNAL_FAILED
            break
        pthread_mutex_lock(&j.sync_lock)
        j.n_segments -= 1
        memmove(j.segments, j.segments + 1, j.n_segments * sizeof(SegmentEntry))
        pthread_mutex_unlock(&j.sync_lock)
        n_deleted[0] += 1
    pthread_mutex_unlock(&j.truncate_lock)
    return status


# ---- scanning

cdef enum FrameVerdict:
    FRAME_GOOD = 0
    FRAME_END = 1                 # at the limit
    # not a frame of this place
    FRAME_NO_MAGIC = 2
    FRAME_BAD_LENGTH = 3          # does not fit before the limit
    FRAME_MISPLACED = 4           # holds another offset than its own
    FRAME_BAD_CHECKSUM = 5
    # intact, and yet not acceptable: never the result of a crash
    FRAME_NEWER = 6
    FRAME_GAP = 7                 # not the position that follows
    FRAME_IMPOSSIBLE = 8          # no positions, or durable beyond itself
    # not the file's fault
    FRAME_IO = 9
    FRAME_NO_MEMORY = 10

VERDICTS = {
    FRAME_END: "nothing",
    FRAME_NO_MAGIC: "no frame begins here",
    FRAME_BAD_LENGTH: "its length passes the end of the data",
    FRAME_MISPLACED: "it holds the offset of another place",
    FRAME_BAD_CHECKSUM: "its checksum does not match",
    FRAME_NEWER: "its version or kind is newer than this program",
    FRAME_GAP: "it does not begin at the position that follows the frame before",
    FRAME_IMPOSSIBLE: "its header contradicts itself",
}


cdef uint8_t* scan_bytes(SegmentScan* scan, uint64_t offset, size_t n) noexcept nogil:
    """File bytes [offset, offset + n), which the caller checked against the limit. NULL: see scan.error."""
    cdef size_t wanted
    cdef Py_ssize_t got
    if offset >= scan.buffered_from and offset + n <= scan.buffered_from + scan.buffer.size:
        return scan.buffer.data + (offset - scan.buffered_from)
    wanted = max(n, <size_t> min(<uint64_t> READ_BYTES, scan.limit - offset))
    scan.buffer.size = 0
    scan.buffered_from = offset
    if buffer_reserve(&scan.buffer, wanted):
        scan.error = ENOMEM
        return NULL
    while scan.buffer.size < wanted:
        got = pread(
            scan.fd, scan.buffer.data + scan.buffer.size, wanted - scan.buffer.size,
            <int64_t> (offset + scan.buffer.size),
        )
        if got < 0 and c_errno == EINTR:
            continue
        if got <= 0:
            scan.error = EIO if got == 0 else c_errno
            scan.buffer.size = 0
            return NULL
        scan.buffer.size += <size_t> got
    return scan.buffer.data


cdef inline int read_failed(const SegmentScan* scan) noexcept nogil:
    return FRAME_NO_MEMORY if scan.error == ENOMEM else FRAME_IO


cdef int read_frame(SegmentScan* scan, uint64_t at, uint64_t min_durable, Frame* out) noexcept nogil:
    """Judges the bytes at file offset `at` as a frame of this place, whatever its position.

    `min_durable` other than 0 asks only for a frame that recorded at least that, and saves the others'
    checksum.
    """
    cdef FrameHeader header
    cdef Cursor cursor
    cdef size_t body_bytes
    cdef const uint8_t* bytes
    if scan.limit - at < FRAME_HEADER_BYTES:
        return FRAME_BAD_LENGTH
    bytes = scan_bytes(scan, at, FRAME_HEADER_BYTES)
    if bytes == NULL:
        return read_failed(scan)
    memcpy(&header, bytes, FRAME_HEADER_BYTES)
    if header.magic != FRAME_MAGIC:
        return FRAME_NO_MAGIC
    body_bytes = align8(header.body_bytes)
    if body_bytes > scan.limit - at - FRAME_HEADER_BYTES:
        return FRAME_BAD_LENGTH
    if header.offset != scan.base_offset + at or header.durable_offset < min_durable:
        return FRAME_MISPLACED
    bytes = scan_bytes(scan, at, FRAME_HEADER_BYTES + body_bytes)
    if bytes == NULL:
        return read_failed(scan)
    cursor = Cursor(at=bytes, left=FRAME_HEADER_BYTES + body_bytes)
    take(&cursor, FRAME_HEADER_BYTES)
    if frame_checksum(crc32c(0, cursor.at, cursor.left), scan.salt, &header) != header.checksum:
        return FRAME_BAD_CHECKSUM
    if header.version != FRAME_VERSION or header.header_bytes != FRAME_HEADER_BYTES:
        return FRAME_NEWER
    if header.kind < FRAME_BATCH or header.kind > LAST_KIND:
        return FRAME_NEWER
    if header.n_positions == 0 or header.durable_offset > header.offset or header.body_bytes > MAX_BODY_BYTES:
        return FRAME_IMPOSSIBLE
    out.kind = header.kind
    out.n_positions = header.n_positions
    out.schema_version = header.schema_version
    out.now_ms = header.now_ms
    out.first_position = header.first_position
    out.offset = header.offset
    out.durable_offset = header.durable_offset
    out.body_bytes = header.body_bytes
    out.body = <uint8_t*> cursor.at
    return FRAME_GOOD


cdef int next_frame(SegmentScan* scan, Frame* out) noexcept nogil:
    cdef int verdict
    if scan.at == scan.limit:
        return FRAME_END
    verdict = read_frame(scan, scan.at, 0, out)
    if verdict:
        return verdict
    if out.first_position != scan.next_position:
        return FRAME_GAP
    scan.at += FRAME_HEADER_BYTES + align8(out.body_bytes)
    scan.next_position += out.n_positions
    scan.durable_offset = max(scan.durable_offset, out.durable_offset)
    return FRAME_GOOD


cdef int look_beyond(SegmentScan* scan, uint64_t* proof, bint* all_zero) noexcept nogil:
    """After a bad frame at scan.at: searches the rest of the segment for a frame to which that one was
    durable.

    `proof` gets its file offset, or 0. The header tests come before the checksum, and one of them is the
    frame's own offset, so bodies made of lookalikes cannot make this quadratic.
    """
    cdef Frame frame
    cdef uint64_t at = scan.at, end, word
    cdef const uint8_t* bytes
    cdef int verdict
    proof[0] = 0
    all_zero[0] = True
    while at < scan.limit:
        bytes = scan_bytes(scan, at, 8)
        if bytes == NULL:
            return read_failed(scan)
        end = min(scan.limit, scan.buffered_from + scan.buffer.size)
        while at + 8 <= end:
            word = load_u64(bytes)
            if word:
                all_zero[0] = False
                if <uint32_t> word == FRAME_MAGIC and at != scan.at:
                    break
            at += 8
            bytes += 8
        if at + 8 > end:
            continue
        verdict = read_frame(scan, at, scan.base_offset + scan.at + 1, &frame)
        if verdict == FRAME_GOOD or verdict == FRAME_NEWER or verdict == FRAME_IMPOSSIBLE:
            proof[0] = at
            return FRAME_GOOD
        if verdict == FRAME_IO or verdict == FRAME_NO_MEMORY:
            return verdict
        at += 8
    return FRAME_GOOD


# ---- the Python classes

class Segment(NamedTuple):
    """One segment file, from its header."""

    name: str
    first_position: int
    previous_position: int
    base_offset: int
    file_bytes: int
    salt: int


class JournalFrame(NamedTuple):
    """One frame as Python sees it; offsets are logical, over all segments."""

    kind: int
    first_position: int
    n_positions: int
    now_ms: int
    schema_version: int
    offset: int
    durable_offset: int
    body: bytes


cdef object os_error(int error):
    return OSError(error, os.strerror(error))


cdef object read_segment(int directory_fd, str directory, str name, bytes store_id):
    """The Segment that a file of that name holds, or the reason why it is none of ours."""
    cdef SegmentHeader header
    cdef bytes data
    path = f"{directory}/{name}"
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            data = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    match = re.fullmatch(r"journal-(\d{20})\.seg", name)
    if len(data) >= 8:
        memcpy(&header, PyBytes_AS_STRING(data), 8)
    if match is None or len(data) < 8 or header.magic != SEGMENT_MAGIC:
        raise IncompatibleVersionError(f"{path} is not a journal segment: move it out of the directory")
    if header.version != SEGMENT_VERSION:
        raise IncompatibleVersionError(
            f"{path} has format version {header.version}, this program reads {SEGMENT_VERSION}: "
            "use a newer one"
        )
    if len(data) < SEGMENT_HEADER_BYTES:
        raise CorruptRecordError(f"{path} was cut to {size} bytes: restore it from a backup")
    memcpy(&header, PyBytes_AS_STRING(data), SEGMENT_HEADER_BYTES)
    expected = crc32c(0, &header, SEGMENT_HEADER_BYTES - 4)
    if header.checksum != expected:
        raise CorruptRecordError(
            f"{path}: the header's checksum is {header.checksum:#010x}, its bytes give {expected:#010x}: "
            "restore it from a backup"
        )
    if store_id is not None and memcmp(header.store_id, PyBytes_AS_STRING(store_id), 16):
        raise IncompatibleVersionError(
            f"{path} belongs to store {header.store_id[:16].hex()}, not to {store_id.hex()}"
        )
    if header.first_position != int(match[1]) or header.header_bytes != SEGMENT_HEADER_BYTES:
        raise CorruptRecordError(
            f"{path} begins at position {header.first_position}: it was renamed or damaged"
        )
    if header.file_bytes != size:
        raise CorruptRecordError(
            f"{path} has {size} bytes, its header says {header.file_bytes}: restore it from a backup"
        )
    return Segment(
        name, header.first_position, header.previous_position, header.base_offset, header.file_bytes,
        header.salt,
    )


cdef list read_segments(int directory_fd, str directory, bytes store_id):
    """Every segment, oldest first, after checking that each follows the one before."""
    cdef list segments
    names = sorted(n for n in os.listdir(directory_fd) if n.startswith("journal-") and n.endswith(".seg"))
    segments = [read_segment(directory_fd, directory, name, store_id) for name in names]
    for before, after in zip(segments, segments[1:]):
        used = after.base_offset - before.base_offset
        fits = SEGMENT_HEADER_BYTES < used <= before.file_bytes
        if after.previous_position != before.first_position or not fits:
            raise CorruptRecordError(
                f"{directory}: {after.name} does not follow {before.name} but a segment that begins at "
                f"position {after.previous_position}: restore the missing segments from a backup"
            )
    return segments


@cython.final
cdef class JournalReader:
    """Iterates frames in the order of their positions, reading only: no lock, no repair.

    On the directory of a store that is not open, it ends where recovery would cut, and `torn` then says what
    is there; it raises CorruptRecordError where opening would refuse. Use it from one thread.
    """

    def __cinit__(self):
        self.scan.fd = -1

    def __init__(
        self, object directory, uint64_t from_position=0, bytes store_id=None, *, uint64_t _live_end=0,
    ):
        cdef list segments
        if self.scan.fd >= 0:
            raise TypeError("a JournalReader is initialised once")
        if store_id is not None and len(store_id) != 16:
            raise ConfigError(f"a store id has 16 bytes, not {len(store_id)}")
        self.directory = os.fspath(directory)
        self.from_position = from_position
        self.live_end = _live_end
        try:
            directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(
                f"cannot open the journal's directory {self.directory}: {error.strerror}"
            ) from error
        try:
            segments = read_segments(directory_fd, self.directory, store_id)
        finally:
            os.close(directory_fd)
        if _live_end:
            segments = [segment for segment in segments if segment.base_offset < _live_end]
        if not segments:
            raise StorageError(f"{self.directory} holds no journal")
        if from_position and segments[0].first_position > from_position:
            raise CorruptRecordError(
                f"{self.directory}: position {from_position} is needed, the oldest segment begins at "
                f"{segments[0].first_position}: restore the segments before it from a backup"
            )
        while len(segments) > 1 and segments[1].first_position <= from_position:
            del segments[0]
        self.segments = segments
        self.open_segment(0)

    def __dealloc__(self):
        if self.scan.fd >= 0:
            close(self.scan.fd)
        buffer_free(&self.scan.buffer)

    cdef int open_segment(self, Py_ssize_t index) except -1:
        segment = self.segments[index]
        try:
            fd = os.open(f"{self.directory}/{segment.name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"cannot open {self.directory}/{segment.name}: {error.strerror}") from error
        if self.scan.fd >= 0:
            close(self.scan.fd)
        self.index = index
        self.scan.fd = fd
        self.scan.salt = segment.salt
        self.scan.base_offset = segment.base_offset
        self.scan.limit = segment.file_bytes
        if index + 1 < len(self.segments):
            self.scan.limit = self.segments[index + 1].base_offset - segment.base_offset
        elif self.live_end:
            self.scan.limit = self.live_end - self.scan.base_offset
        self.scan.limit &= ~<uint64_t> 7
        if index and self.scan.next_position != segment.first_position:
            raise CorruptRecordError(
                f"{self.directory}/{segment.name} begins at position {segment.first_position}, the segment "
                f"before ends before {self.scan.next_position}: restore the journal from a backup"
            )
        self.scan.next_position = segment.first_position
        self.scan.at = SEGMENT_HEADER_BYTES
        self.scan.durable_offset = self.scan.base_offset + SEGMENT_HEADER_BYTES
        self.scan.buffer.size = 0
        return 0

    cdef int refuse(self, int verdict) except -1:
        """Raises for a frame at scan.at that cannot be the result of a crash."""
        where = f"{self.directory}/{self.segments[self.index].name}: the frame at offset {self.scan.at}"
        if verdict == FRAME_NO_MEMORY:
            raise MemoryError
        if verdict == FRAME_IO:
            raise StorageError(f"{where} cannot be read") from os_error(self.scan.error)
        if verdict == FRAME_NEWER:
            raise IncompatibleVersionError(f"{where}: {VERDICTS[verdict]}: use a newer program")
        raise CorruptRecordError(
            f"{where} was durable and is damaged: {VERDICTS[verdict]}: restore it from a backup"
        )

    cdef int end(self, int verdict) except -1:
        """At the last segment's first bad frame: the journal ends, unless something proves it was durable."""
        cdef uint64_t proof
        cdef bint all_zero
        cdef int status
        if verdict >= FRAME_NEWER or self.live_end:
            self.refuse(verdict)
        with nogil:
            status = look_beyond(&self.scan, &proof, &all_zero)
        if status:
            self.refuse(status)
        name = self.segments[self.index].name
        if proof:
            raise CorruptRecordError(
                f"{self.directory}/{name}: the frame at offset {self.scan.at} is damaged "
                f"({VERDICTS[verdict]}), and the frame at offset {proof} proves that it was durable: "
                "restore the journal from a backup"
            )
        if not all_zero:
            self.torn = f"{name} at offset {self.scan.at}: {VERDICTS[verdict]}"
        return 0

    cdef bint advance(self) except -1:
        cdef int verdict
        while not self.exhausted:
            with nogil:
                verdict = next_frame(&self.scan, &self.frame)
                while verdict == FRAME_GOOD and self.scan.next_position <= self.from_position:
                    verdict = next_frame(&self.scan, &self.frame)
            if verdict == FRAME_GOOD:
                return True
            if self.index + 1 < len(self.segments):
                if verdict != FRAME_END:
                    self.refuse(verdict)
                self.open_segment(self.index + 1)
                continue
            if verdict != FRAME_END:
                self.end(verdict)
            self.end_offset = self.scan.at
            self.exhausted = True
        return False

    def __iter__(self):
        return self

    def __next__(self):
        cdef Frame* frame = &self.frame
        if not self.advance():
            raise StopIteration
        return JournalFrame(
            frame.kind, frame.first_position, frame.n_positions, frame.now_ms, frame.schema_version,
            frame.offset, frame.durable_offset,
            PyBytes_FromStringAndSize(<char*> frame.body, frame.body_bytes),
        )

    @property
    def next_position(self):
        """The position that follows the frames read so far."""
        return self.scan.next_position


cdef void signal_eventfd(void* context, uint64_t durable_position, int error) noexcept nogil:
    cdef uint64_t one = 1
    # The only failure that can happen is a full counter, and then the reader is about to wake anyway.
    write(<int> <size_t> context, &one, sizeof(one))


@cython.final
cdef class Journal:
    """The journal of one store, open for appending; see the module's docstring for what it promises.

    Parameters
    ----------
    directory : str or path
        Exists already; holds the segments and is locked (flock) while the journal is open.
    store_id : bytes
        16 bytes; segments of another store are refused.
    mode : "group" or "process"
        What an acknowledgement means.
    from_position : int
        The first position the caller needs: one more than its checkpoint's. Segments wholly before it are
        only checked by their headers. The journal must not end before `from_position - 1`. 0: whatever there
        is.
    create : bool
        Begin a journal at `from_position` (0: at 1) if there is none.
    segment_bytes : int
        Size of new segments, preallocated; a larger frame gets a larger segment.
    sync_delay_ms : int
        From the first unsynced write to its sync, while nobody waits for it: in mode `process`, and for what
        was appended as unawaited. At most 1000.

    Raises StoreLockedError, ConfigError, CorruptRecordError, IncompatibleVersionError, StorageError,
    LimitError. Appending and waiting are safe from any number of threads.
    """

    def __cinit__(self):
        cdef pthread_condattr_t attributes
        self.state = <JournalState*> calloc(1, sizeof(JournalState))
        if self.state == NULL:
            raise MemoryError
        self.state.directory_fd = self.state.fd = -1
        self.state.closed = True
        pthread_mutex_init(&self.state.append_lock, NULL)
        pthread_mutex_init(&self.state.sync_lock, NULL)
        pthread_mutex_init(&self.state.hook_lock, NULL)
        pthread_mutex_init(&self.state.truncate_lock, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.state.work, &attributes)
        pthread_cond_init(&self.state.done, &attributes)
        pthread_condattr_destroy(&attributes)

    def __init__(
        self, object directory, bytes store_id not None, *, str mode not None="group",
        uint64_t from_position=0, bint create=False, uint64_t segment_bytes=DEFAULT_SEGMENT_BYTES,
        uint64_t sync_delay_ms=500,
    ):
        cdef JournalState* j = self.state
        if j.directory_fd >= 0:
            raise TypeError("a Journal is initialised once")
        if len(store_id) != 16:
            raise ConfigError(f"a store id has 16 bytes, not {len(store_id)}")
        if mode not in MODES:
            raise ConfigError(f"durability must be one of {', '.join(MODES)}, not {mode!r}")
        if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES or segment_bytes % 8:
            raise ConfigError(
                f"a segment has {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES} bytes, a multiple of 8, "
                f"not {segment_bytes}"
            )
        if sync_delay_ms > 1000:
            raise ConfigError(f"sync_delay_ms is at most 1000, not {sync_delay_ms}")
        self.directory = os.fspath(directory)
        memcpy(j.store_id, PyBytes_AS_STRING(store_id), 16)
        j.mode = MODES[mode]
        j.segment_bytes = segment_bytes
        j.sync_delay_ns = sync_delay_ms * 1_000_000
        try:
            self.lock_directory()
            self.remove_temporaries()
            if create and not any(n.startswith("journal-") for n in os.listdir(j.directory_fd)):
                self.begin(from_position or 1)
            self.recover(from_position, store_id)
            if pthread_create(&j.thread, NULL, sync_loop, j):
                raise StorageError(f"cannot start the sync thread of the journal in {self.directory}")
        except OSError as error:
            stop(j)
            raise StorageError(f"cannot open the journal in {self.directory}: {error.strerror}") from error
        except BaseException:
            stop(j)
            raise
        j.has_thread = True
        j.closed = False

    def __dealloc__(self):
        if self.state == NULL:
            return
        with nogil:
            stop(self.state)
        pthread_cond_destroy(&self.state.work)
        pthread_cond_destroy(&self.state.done)
        pthread_mutex_destroy(&self.state.append_lock)
        pthread_mutex_destroy(&self.state.sync_lock)
        pthread_mutex_destroy(&self.state.hook_lock)
        pthread_mutex_destroy(&self.state.truncate_lock)
        free(self.state.segments)
        free(self.state)

    # -- opening

    cdef int lock_directory(self) except -1:
        fill_standard_descriptors()
        self.state.directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.state.directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLockedError(f"another process has the journal in {self.directory} open") from error
        return 0

    cdef int remove_temporaries(self) except -1:
        """Segments that were being made when the process died; none of them was ever used."""
        for name in os.listdir(self.state.directory_fd):
            if name.startswith("journal-") and name.endswith(".seg.tmp"):
                os.unlink(name, dir_fd=self.state.directory_fd)
        return 0

    cdef int begin(self, uint64_t first_position) except -1:
        cdef JournalState* j = self.state
        cdef SegmentHeader header = new_header(
            j.store_id, first_position, 0, 0, next_segment_bytes(j.directory_fd, j.segment_bytes, 0))
        cdef bint renamed
        cdef int fd = -1
        cdef int error = create_segment(self.state.directory_fd, &header, &fd, &renamed)
        if is_full(error):
            raise LimitError(
                f"no space for a journal segment of {header.file_bytes} bytes in {self.directory}"
            ) from os_error(error)
        if error:
            raise os_error(error)
        close(fd)
        return 0

    cdef int recover(self, uint64_t from_position, bytes store_id) except -1:
        """Reads to the end, cuts what is torn there, makes durable what is not: after it all frames count."""
        cdef JournalState* j = self.state
        cdef JournalReader reader = JournalReader(self.directory, from_position, store_id)
        cdef list segments = read_segments(j.directory_fd, self.directory, store_id)
        while reader.advance():
            pass
        last = segments[len(segments) - 1]
        if reader.scan.next_position < from_position:
            raise CorruptRecordError(
                f"{self.directory}: the journal ends before position {reader.scan.next_position}, the "
                f"checkpoint is at {from_position - 1}: restore the journal from a backup"
            )
        self.torn = reader.torn
        j.fd = os.open(last.name, os.O_RDWR | os.O_CLOEXEC, dir_fd=j.directory_fd)
        if reader.torn is not None:
            self.zero(reader.scan.at, last.file_bytes)
        self.rewrite(reader.scan.durable_offset - last.base_offset, reader.scan.at)
        os.fdatasync(j.fd)
        os.fsync(j.directory_fd)
        for segment in segments:
            if reserve_segment(j):
                raise MemoryError
            j.segments[j.n_segments] = SegmentEntry(
                first_position=segment.first_position, file_bytes=segment.file_bytes,
            )
            j.n_segments += 1
        j.salt = last.salt
        j.base_offset = last.base_offset
        j.file_bytes = last.file_bytes
        j.at = reader.scan.at
        j.next_position = reader.scan.next_position
        j.written_offset = j.durable_offset = j.base_offset + j.at
        j.written_position = j.durable_position = j.next_position - 1
        return 0

    cdef int zero(self, uint64_t start, uint64_t end) except -1:
        """Zeros what is not zero: a later frame must never be followed by a stale one that happens to fit."""
        for at in range(start, end, READ_BYTES):
            data = os.pread(self.state.fd, min(READ_BYTES, end - at), at)
            if any(data):
                os.pwrite(self.state.fd, bytes(len(data)), at)
                failpoints.reach("recovery.mid")
        return 0

    cdef int rewrite(self, uint64_t start, uint64_t end) except -1:
        """Writes frames over themselves that may not be on disk.

        If the process before this one died after a failed sync, their pages are in memory but marked clean: a
        sync would report success without writing them.
        """
        for at in range(start, end, READ_BYTES):
            os.pwrite(self.state.fd, os.pread(self.state.fd, min(READ_BYTES, end - at), at), at)
        return 0

    # -- appending and waiting

    cdef object problem(self, int status):
        """The exception for a JournalStatus."""
        cdef int error = load_atomic_int(&self.state.error, __ATOMIC_ACQUIRE)
        if status == JOURNAL_FULL and not is_full(self.state.shortage):
            return LimitError(
                f"the journal in {self.directory} cannot have its next file: "
                f"{os.strerror(self.state.shortage)}: nothing was written, and a later write may succeed"
            )
        if status == JOURNAL_FULL:
            return LimitError(
                f"no space left for the journal in {self.directory}: nothing was written; free space"
            )
        if status == JOURNAL_FAILED:
            failure = StorageError(
                f"the journal in {self.directory} has failed: {os.strerror(error)}: nothing more is "
                "acknowledged; check the disk and restart"
            )
            failure.__cause__ = os_error(error)
            return failure
        if status == JOURNAL_CLOSED:
            return ValueError(f"the journal in {self.directory} is closed")
        if status == JOURNAL_TOO_LARGE:
            return LimitError(f"a frame's body has at most {MAX_BODY_BYTES} bytes: send smaller batches")
        if status == JOURNAL_NO_MEMORY:
            return MemoryError()
        return ValueError(
            f"not a frame (kinds {KINDS}, at least 1 position, at most {MAX_PIECES} pieces), "
            "or a position not written"
        )

    def append(
        self, uint8_t kind, *pieces, uint32_t n_positions=1, int64_t now_ms=0, uint32_t schema_version=0,
        bint unawaited=False,
    ):
        """Writes one frame whose body is the given bytes objects one after the other; returns its first
        position.

        When it returns, the frame survives the death of the process. unawaited: nobody waits for it to
        survive a power cut too, so that in either mode its sync may take `sync_delay_ms`. LimitError: a
        shortage of space or descriptors, nothing was written, try again later. StorageError: the journal has
        failed.
        """
        cdef iovec parts[MAX_PIECES]
        cdef Frame frame
        cdef int n_pieces = 0, status
        cdef bytes piece
        if len(pieces) > MAX_PIECES:
            raise ValueError(f"a frame has at most {MAX_PIECES} pieces")
        for piece in pieces:
            if piece is None:
                raise TypeError("a piece is bytes, not None")
            parts[n_pieces] = iovec(iov_base=PyBytes_AS_STRING(piece), iov_len=<size_t> len(piece))
            n_pieces += 1
        memset(&frame, 0, sizeof(frame))
        frame.kind = kind
        frame.n_positions = n_positions
        frame.now_ms = now_ms
        frame.schema_version = schema_version
        frame.unawaited = unawaited
        with nogil:
            status = journal_append(self.state, &frame, parts, n_pieces)
        if status:
            raise self.problem(status)
        return frame.first_position

    def wait_durable(self, uint64_t position, timeout_s=None):
        """Blocks until `position` survives a power cut: True; False when the time is up first."""
        cdef int64_t left_ns = -1 if timeout_s is None else max(0, int(timeout_s * SECOND_NS))
        cdef int64_t step_ns
        cdef int status
        while True:
            # In steps, so that Ctrl-C works.
            step_ns = 100_000_000 if left_ns < 0 else min(left_ns, 100_000_000)
            with nogil:
                status = journal_wait(self.state, position, step_ns)
            if status == JOURNAL_OK:
                return True
            if status != JOURNAL_TIMEOUT:
                raise self.problem(status)
            PyErr_CheckSignals()
            if left_ns >= 0:
                left_ns -= step_ns
                if left_ns == 0:
                    return False

    def sync(self):
        """Returns when everything written so far is durable."""
        self.wait_durable(self.last_position)

    def roll(self):
        """Begins a new segment, so that `truncate_before` can reach everything written so far."""
        cdef int status
        with nogil:
            status = journal_roll(self.state)
        if status:
            raise self.problem(status)

    def truncate_before(self, uint64_t position):
        """Deletes the segments all of whose positions are less than `position`; returns how many."""
        cdef size_t n_deleted
        cdef int status
        with nogil:
            status = delete_before(self.state, position, &n_deleted)
        if status:
            raise self.problem(status)
        return n_deleted

    def add_eventfd(self, int fd):
        """Adds 1 to this eventfd each time more is durable and when the journal fails, until removed."""
        if journal_add_hook(self.state, signal_eventfd, <void*> <size_t> fd):
            raise LimitError(f"a journal has at most {MAX_HOOKS} hooks")

    def remove_eventfd(self, int fd):
        with nogil:
            journal_remove_hook(self.state, signal_eventfd, <void*> <size_t> fd)

    # -- reading

    def read(self, uint64_t from_position=0):
        """A JournalReader over the frames from that position (0: the oldest) to the last one written by now.

        A frame that holds `from_position` in its middle is included. Segments deleted while it reads are a
        StorageError: truncate only below what is still to be read.
        """
        cdef uint64_t end
        with nogil:
            pthread_mutex_lock(&self.state.sync_lock)
            end = self.state.written_offset
            pthread_mutex_unlock(&self.state.sync_lock)
        return JournalReader(self.directory, from_position, self.state.store_id[:16], _live_end=end)

    def verify(self):
        """Reads every frame written so far, returns how many; CorruptRecordError names the first bad one."""
        cdef JournalReader reader = self.read()
        cdef uint64_t n_frames = 0
        while reader.advance():
            n_frames += 1
        return n_frames

    # -- state

    cdef uint64_t under_sync_lock(self, const uint64_t* field) noexcept:
        cdef uint64_t value
        with nogil:
            pthread_mutex_lock(&self.state.sync_lock)
            value = field[0]
            pthread_mutex_unlock(&self.state.sync_lock)
        return value

    @property
    def durable_position(self):
        """Every position up to this one survives a power cut."""
        return journal_durable(self.state)

    @property
    def acknowledged_position(self):
        """Every position up to this one may be acknowledged in the journal's mode."""
        cdef uint64_t position
        with nogil:
            position = journal_acknowledged(self.state)
        return position

    @property
    def last_position(self):
        """The last position written; 0 before the first."""
        return self.under_sync_lock(&self.state.written_position)

    @property
    def first_position(self):
        """The oldest position that can still be read, or will be when it is written."""
        cdef uint64_t position
        with nogil:
            pthread_mutex_lock(&self.state.sync_lock)
            position = self.state.segments[0].first_position
            pthread_mutex_unlock(&self.state.sync_lock)
        return position

    @property
    def total_bytes(self):
        """Size of all segment files, preallocated space included."""
        cdef uint64_t total = 0
        cdef size_t i
        with nogil:
            pthread_mutex_lock(&self.state.sync_lock)
            for i in range(self.state.n_segments):
                total += self.state.segments[i].file_bytes
            pthread_mutex_unlock(&self.state.sync_lock)
        return total

    @property
    def n_segments(self):
        return self.under_sync_lock(&self.state.n_segments)

    @property
    def n_appends(self):
        """Frames written since the journal was opened."""
        return self.under_sync_lock(&self.state.n_appends)

    @property
    def n_syncs(self):
        """Group syncs since the journal was opened."""
        return self.under_sync_lock(&self.state.n_syncs)

    @property
    def status(self):
        """"open", "full" (the last append found a shortage), "failed" or "closed"."""
        if self.state.closed:
            return "closed"
        if load_atomic_int(&self.state.error, __ATOMIC_ACQUIRE):
            return "failed"
        return "full" if self.state.full else "open"

    def close(self):
        """Syncs what is written, stops the sync thread, unlocks. StorageError: the last sync failed."""
        cdef int error
        is_news = self.status not in ("failed", "closed")
        with nogil:
            error = stop(self.state)
        if error and is_news:
            raise self.problem(JOURNAL_FAILED)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


cdef int stop(JournalState* j) noexcept nogil:
    """Ends appends, then the sync thread, then the files; 0, or the errno with which the journal failed."""
    cdef bint has_thread
    pthread_mutex_lock(&j.truncate_lock)
    pthread_mutex_lock(&j.append_lock)
    j.closed = True
    pthread_mutex_lock(&j.sync_lock)
    has_thread = j.has_thread
    j.has_thread = False
    j.stopping = True
    pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.sync_lock)
    pthread_mutex_unlock(&j.append_lock)
    if has_thread:
        pthread_join(j.thread, NULL)
    if j.fd >= 0:
        close(j.fd)
    if j.directory_fd >= 0:
        close(j.directory_fd)
    j.fd = j.directory_fd = -1
    pthread_mutex_unlock(&j.truncate_lock)
    return j.error
