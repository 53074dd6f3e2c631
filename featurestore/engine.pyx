"""The store: one data directory, one journal, one state. Read this file for the story.

    write       decide (sequencer) → journal → apply (shards) → acknowledge when durable
    read        rows as they are, each under its shard's lock
    checkpoint  cut → of each shard: copy dirty rows in slices → LMDB → its head → drop old segments
    recover     rows of the last checkpoint, then the journal from its position on

What the order is for. The journal is written before anything is applied, so whatever a reader saw is found
again after a crash of the process. It is applied before it is synced, so a sync delays acknowledgements only,
never the next batch. A checkpoint never holds what the journal might still lose.

Shortages. What the next checkpoint may write is set aside on the disk ahead of it (`RowStore.hold`), so that
whoever fills the disk, the checkpoint that frees the journal's segments can be written. Where there is not as
much, writes go on as far as what is set aside reaches, and then wait for a checkpoint: `_make_room`.

This module knows the wall clock; `core` below it does not, and gets it as an argument.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import logging
import math
import os
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from featurestore.clock cimport clock_boot_ms, clock_wall_ms
from featurestore.core.batch cimport (
    MAX_PRODUCER_BYTES, OUTCOME_ACCEPTED, OUTCOME_DUPLICATE, OUTCOME_LATE, REFUSED_FUTURE, Batch, Column,
    EventBatch, batch_holds,
)
from featurestore.core.bytes cimport Block
from featurestore.core.plan cimport CompiledPlan, EventC, ServiceC
from featurestore.core.pthread cimport (
    pthread_mutex_lock, pthread_mutex_unlock, pthread_rwlock_rdlock, pthread_rwlock_unlock,
    pthread_rwlock_wrlock,
)
from featurestore.core.change cimport CHANGE_DROP, CHANGE_RESET, LAST_NUMBER
from featurestore.core.producers cimport VERDICT_DUPLICATE, Origin, producers_know
from featurestore.core.sequencer cimport CLOCK_WALL
from featurestore.core.shard cimport lock_taken
from featurestore.core.state cimport (
    READ_BUSY, Reserved, State, StateC, Work, batch_fits, state_apply, state_change_producer, state_commit,
    state_content, state_cool, state_count_shed, state_count_untouched, state_decide, state_fetch,
    state_forget, state_judge, state_origin, state_read, state_repeat, vectors_for, verdict_error, work_clear,
    work_prepare, work_would_wait,
)
from featurestore.core.window cimport Outputs
from featurestore.storage.failpoint cimport (
    CHECKPOINT_COMMITTED, CHECKPOINT_MID, CHECKPOINT_PART, CLOCK_JOURNALED, IDS_UNREAD, PRODUCER_JOURNALED,
    SCHEMA_JOURNALED, failpoint,
)
from featurestore.storage.frame cimport (
    BODY_OK, BODY_TOO_LARGE, FORGET_BODY_BYTES, MAX_PRODUCER_BODY_BYTES, BatchFrame, BatchHead, ByteBuffer,
    ProducerBody, batch_frame_free, body_error, buffer_free, decode_batch, decode_forget, decode_producer,
    encode_batch, encode_forget, encode_producer,
)
from featurestore.storage.journal cimport (
    FRAME_BATCH, FRAME_CLOCK, FRAME_FORGET, FRAME_PRODUCER, FRAME_SCHEMA, FRAME_SHED, JOURNAL_FULL,
    JOURNAL_NO_MEMORY, JOURNAL_OK,
    Frame, Journal, iovec, journal_append, journal_would_wait,
)

from featurestore.core.structs import same_structs
from featurestore.errors import (
    ConfigError, ConsentError, CorruptRecordError, InvalidEventError, LimitError, StaleVersionError,
    StorageError, UnavailableError, UnknownNameError,
)
from featurestore.niceness import UPKEEP, give_way
from featurestore.plan import CLOCKS, MAX_FUTURE_MS, MAX_GRACE_MS, Plan
from featurestore.schema import compile_schema
from featurestore.schema.changes import ChangeKind, changes_of, kinds_of, require_consent
from featurestore.schema.evolution import as_of_wall, set_back
from featurestore.schema.retired import without_the_past
from featurestore.storage.checkpoint import (
    HEAD, HOLES, IDS, IDS_SHARD, PLAN, PRODUCERS, PRODUCERS_SHARD, SKETCHES, holes_record, load_rows,
    mark_behind, mark_other_clock, mark_shed, parse_plan, stored_plan,
)
from featurestore.storage.directory import (
    DataDirectory, is_shortage, refuse_within, sync_directory, write_synced,
)
from featurestore.storage.failpoint import reach
from featurestore.storage.frame import clock_body, parse_clock_body
from featurestore.storage.rows import MapGrownError, RowStore

same_structs(__name__, engine_structs())


cdef extern from * nogil:
    """
    #define fs_add(counter, n) __atomic_fetch_add((counter), (n), __ATOMIC_RELAXED)
    #define fs_load_ms(ms) __atomic_load_n((ms), __ATOMIC_RELAXED)
    #define fs_store_ms(ms, value) __atomic_store_n((ms), (value), __ATOMIC_RELAXED)
    """
    uint64_t fs_add(uint64_t* counter, uint64_t n) noexcept
    int64_t fs_load_ms(const int64_t* ms) noexcept
    void fs_store_ms(int64_t* ms, int64_t value) noexcept

cdef enum:
    DEDUPE_MEMORY_BYTES = 360_000_000        # unless told otherwise: 10 million ids
    SHORT_FRAME_BYTES = 64 << 10  # what a batch that must not wait takes in the journal, at most
    SPARE_DESCRIPTORS = 4        # that removing a directory takes
    ID_BYTES = 25                # an event id, in a checkpoint, with its part of a record and of a page
    CHECKPOINT_BYTES = 1 << 20   # of a checkpoint, however little is in it
    PAGE_BYTES = 4096            # of LMDB
    PAGES_PER_ROW = 3            # that a row may change beside its own bytes: a block, its neighbour, a leaf
    BACKUP_SEGMENT_BYTES = 4096  # of a journal without frames; whoever opens it begins one of its own size
    TRIM_BYTES = 8 << 20         # of a checkpoint: from so much on, what it took goes back to the system
    PART_BYTES = 16 << 20        # of changed pages: from so much on, shards that are written are committed
    MIN_MEMORY_BYTES = 16 << 20  # of rows: less holds nothing useful, and is a number without its unit
    QUIET_S = 60                 # for so long nothing is shed, or short, before that is said to be over
    MOST_LEAP_MS = 60_000        # that a wall clock may gain on the machine's uptime, and be believed
    MOST_AHEAD_MS = 600_000      # that a wall-clock store may be ahead of the machine's clock, to be opened
    MAKING_MS = 1000             # what there is on the wall clock between making a plan and serving it

cdef extern from * nogil:
    """
    #ifdef __GLIBC__
    #include <malloc.h>
    static void fs_trim(void) { malloc_trim(0); }
    #else
    static void fs_trim(void) {}
    #endif
    """
    void fs_trim() noexcept

cdef uint64_t NO_LIMIT = 0xFFFFFFFFFFFFFFFF

_log = logging.getLogger("featurestore.engine")

#: The plan of a store before its first schema.
EMPTY_PLAN = Plan(0, "", "", (), (), (), (), (), (), 1, 1, 1)


@dataclass(frozen=True)
class Recovered:
    """What opening a store found."""

    rows: int  # of the checkpoint
    checkpoint_position: int
    frames: int  # replayed from the journal
    events: int  # in those
    torn: str | None  # what was cut off the journal's end
    seconds: float


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint that was written."""

    position: int
    rows: int
    n_bytes: int
    seconds: float


# -- the hot path --------------------------------------------------------------------------------------------

cdef inline int64_t _latest_ms(const EngineC* engine) noexcept nogil:
    """What the machine's wall clock may say by now."""
    return clock_boot_ms() + fs_load_ms(&engine.lead_ms)


cdef inline int64_t _server_ms(const EngineC* engine) noexcept nogil:
    """The server's clock. One that is set ahead is followed no further than time has passed: all that is kept
    would expire at once, and what comes by honest clocks be late."""
    return min(clock_wall_ms(), _latest_ms(engine))


cdef inline int64_t _leap_ms(const EngineC* engine) noexcept nogil:
    """How much further the wall clock has gone; 0 where it is believed."""
    return max(<int64_t>0, clock_wall_ms() - _latest_ms(engine))


cdef int64_t _stamp(const EngineC* engine) noexcept nogil:
    """The server's clock for a frame; on a wall clock it never goes back. Order lock held."""
    cdef const StateC* state = engine.state
    cdef int64_t now = _server_ms(engine)
    if state.sequencer.clock == CLOCK_WALL and state.sequencer.now_ms > now:
        now = state.sequencer.now_ms
    return now


cdef int _journal_batch(EngineC* engine, const Batch* batch, const Sender* sender, const Origin* origin,
                        const uint64_t* shed, int64_t wall_ms, ByteBuffer* body) noexcept nogil:
    """Writes the decided batch as one frame; an EngineStatus."""
    cdef BatchHead head
    cdef Frame frame
    cdef iovec piece
    cdef int status
    memset(&head, 0, sizeof(head))
    memset(&frame, 0, sizeof(frame))
    head.producer = <const char*>sender.name
    head.producer_bytes = <uint8_t>sender.name_bytes
    head.event_id = engine.state.plan.events[batch.event].event_id
    head.epoch = sender.epoch
    head.sequence = sender.sequence
    head.fingerprint = origin.content
    head.shed = shed
    status = encode_batch(batch, &head, body)
    if status != BODY_OK:
        return ENGINE_TOO_LARGE if status == BODY_TOO_LARGE else ENGINE_NO_MEMORY
    frame.kind = FRAME_BATCH if shed == NULL else FRAME_SHED
    frame.n_positions = batch.n_events
    frame.schema_version = engine.schema_version
    frame.now_ms = wall_ms
    frame.unawaited = sender.unawaited
    piece.iov_base = body.data
    piece.iov_len = body.size
    return _appended(engine, &frame, &piece)


cdef int _appended(EngineC* engine, Frame* frame, const iovec* body) noexcept nogil:
    """Writes one frame; an EngineStatus."""
    cdef int status = journal_append(engine.journal, frame, body, 1)
    if status == JOURNAL_OK:
        return ENGINE_OK
    if status == JOURNAL_FULL:
        return ENGINE_FULL
    return ENGINE_NO_MEMORY if status == JOURNAL_NO_MEMORY else ENGINE_FAILED


cdef int _may_write(const EngineC* engine) noexcept nogil:
    """ENGINE_OK, or why not. Order lock held."""
    if engine.failed or engine.state.broken:
        return ENGINE_FAILED
    if engine.blocked or engine.state.sequencer.position >= engine.last_position:
        return ENGINE_FULL
    return ENGINE_OK


cdef int _change_in_order(EngineC* engine, int change, const Origin* origin, Frame* frame, const iovec* body,
                          bint* known) noexcept nogil:
    """What an operator changes of a producer, if it is known; an EngineStatus. Order lock held."""
    cdef int status
    if engine.journal == NULL:
        return ENGINE_CLOSED
    frame.now_ms = _stamp(engine)
    known[0] = producers_know(&engine.state.sequencer.producers, origin, frame.now_ms)
    if not known[0]:
        return ENGINE_OK
    status = _may_write(engine)
    if status != ENGINE_OK:
        return status
    frame.schema_version = engine.schema_version
    status = _appended(engine, frame, body)
    if status == ENGINE_OK and failpoint(PRODUCER_JOURNALED):
        status = ENGINE_FAILED
    if status == ENGINE_OK:
        state_change_producer(engine.state, change, origin, frame.now_ms)
        if engine.state.broken:
            status = ENGINE_FAILED
    engine.failed |= status == ENGINE_FAILED
    return status


cdef void _count(Counters* counters, const Batch* batch) noexcept nogil:
    cdef uint64_t accepted = 0, late = 0, duplicate = 0
    cdef uint32_t i
    for i in range(batch.n_events):
        accepted += batch.outcomes[i] == OUTCOME_ACCEPTED
        late += batch.outcomes[i] == OUTCOME_LATE
        duplicate += batch.outcomes[i] == OUTCOME_DUPLICATE
    fs_add(&counters.accepted, accepted)
    fs_add(&counters.late, late)
    fs_add(&counters.duplicate, duplicate)
    fs_add(&counters.refused, batch.n_events - accepted - late - duplicate)


cdef bint _sheds_keys(const EventC* event, const BatchFrame* frame) noexcept nogil:
    """Whether what a frame says was shed are keys of its event type."""
    cdef uint64_t others = 0
    cdef uint32_t i
    if frame.head.shed != NULL and event.n_touches < 64:
        for i in range(frame.batch.n_events):
            others |= frame.head.shed[i] >> event.n_touches
    return others == 0


cdef bint _any(const Batch* batch, int outcome) noexcept nogil:
    cdef uint32_t i
    for i in range(batch.n_events):
        if batch.outcomes[i] == outcome:
            return True
    return False


cdef int _write_in_order(EngineC* engine, const Batch* batch, const Sender* sender, const Origin* origin,
                         Work* work, ByteBuffer* body, const ServiceC* service, const Outputs* outputs,
                         bint peek, WriteResult* result) noexcept nogil:
    """With the order lock held."""
    cdef StateC* state = engine.state
    cdef int64_t wall_ms = _stamp(engine)
    cdef uint64_t first = state.sequencer.position + 1
    cdef int status
    if engine.journal == NULL:
        return ENGINE_CLOSED
    result.verdict = state_judge(state, batch, origin, wall_ms)
    if result.verdict > VERDICT_DUPLICATE:
        return ENGINE_VERDICT
    if result.verdict == VERDICT_DUPLICATE:
        state_repeat(state, batch, work, wall_ms)
    else:
        if not peek and state.sequencer.clock == CLOCK_WALL and _leap_ms(engine):
            return ENGINE_LEAPT          # what comes by such a clock is not in the future, nor the rest late
        status = state_decide(state, batch, work, wall_ms)
        if status != 0:
            return ENGINE_NO_MEMORY if status < 0 else ENGINE_UNREAD
        if not peek and _any(batch, REFUSED_FUTURE) and _leap_ms(engine):
            return ENGINE_LEAPT          # it may be the present, by a clock that is right
        if not peek and (origin.given or _any(batch, OUTCOME_ACCEPTED)):
            status = _may_write(engine)
            if status != ENGINE_OK:
                return status
            status = _journal_batch(engine, batch, sender, origin, work.shed, wall_ms, body)
            if status != ENGINE_OK:
                engine.failed |= status == ENGINE_FAILED
                return status
            result.written = True
            if state_commit(state, batch, work, origin, wall_ms) < 0:
                # The journal has it and the state has not: only a restart brings them together.
                state.broken = True
                return ENGINE_FAILED
    result.position = state.sequencer.position
    # What was not written is only read: at no position, and nothing of it is applied.
    if state_apply(state, batch, work, first, service, outputs, peek or not result.written) < 0:
        return ENGINE_NO_MEMORY if peek else ENGINE_FAILED
    return ENGINE_OK


cdef inline bint _would_wait(EngineC* engine, const Work* work) noexcept nogil:
    """With the order lock held: whether a short batch would wait for the disk, or for a shard."""
    return engine.journal != NULL and (
        journal_would_wait(engine.journal, SHORT_FRAME_BYTES) or work_would_wait(engine.state, work))


cdef int engine_write(EngineC* engine, const Batch* batch, const Sender* sender, Work* work, ByteBuffer* body,
                      const ServiceC* service, const Outputs* outputs, bint peek, bint waits,
                      WriteResult* result) noexcept nogil:
    cdef Origin origin
    cdef uint32_t i
    cdef int status
    memset(result, 0, sizeof(WriteResult))
    if batch.n_events == 0:
        result.position = engine.state.sequencer.position
        return ENGINE_OK
    state_origin(engine.state, sender.name, sender.name_bytes, sender.epoch, sender.sequence,
                 state_content(engine.state, batch) if sender.name_bytes else 0, &origin)
    if work_prepare(engine.state, batch, service, work) < 0:
        return ENGINE_NO_MEMORY
    while True:
        if not lock_taken(&engine.state.order, waits):
            return ENGINE_BUSY
        if not waits and _would_wait(engine, work):
            status = ENGINE_BUSY
        else:
            status = _write_in_order(engine, batch, sender, &origin, work, body, service, outputs, peek,
                                     result)
        pthread_mutex_unlock(&engine.state.order)
        if status != ENGINE_UNREAD:
            break
        if not waits:
            return ENGINE_BUSY
        if failpoint(IDS_UNREAD):
            state_cool(engine.state, True)
        if state_fetch(engine.state, batch, work) < 0:
            return ENGINE_NO_MEMORY
    if status == ENGINE_OK:
        for i in range(batch.n_events):
            result.partly_late += work.partly[i]
        if work.shed != NULL:
            result.first_shed = work.shed[0]
            for i in range(batch.n_events):
                result.shed += work.shed[i] != 0
    if status == ENGINE_OK and not peek:
        if result.verdict == VERDICT_DUPLICATE:
            fs_add(&engine.counters.batches_duplicate, 1)
        else:
            _count(&engine.counters, batch)
            fs_add(&engine.state.sequencer.partly_late[batch.event], result.partly_late)
            fs_add(&engine.counters.shed, state_count_shed(engine.state, batch, work))
            state_count_untouched(engine.state, batch, work)
    if status == ENGINE_OK and service != NULL:
        fs_add(&engine.counters.vectors, batch.n_events)
    return status


cdef int engine_read(EngineC* engine, const ServiceC* service, const Column* const* parts, uint32_t n,
                     const int64_t* as_of, bint waits, Work* work, const Outputs* outputs,
                     int64_t* read_at) noexcept nogil:
    cdef int status = state_read(engine.state, service, parts, n, as_of, _server_ms(engine), waits, work,
                                 outputs, read_at)
    if status < 0:
        return ENGINE_NO_MEMORY
    if status == READ_BUSY:
        return ENGINE_BUSY
    fs_add(&engine.counters.vectors, n)
    return ENGINE_OK


# -- the store -----------------------------------------------------------------------------------------------

@cython.final
cdef class Engine:
    """An open store. Made by `open`; close it, or use it as a context manager.

    Any thread may call any method. Checkpoints, schema changes, Forget and backups take their turn; none of
    them stops reads or ingest for longer than the swap itself.
    """

    def __init__(self):
        raise TypeError("Engine.open(directory, ...) opens a store")

    @staticmethod
    def open(directory, *, schema=None, schema_path=None, clock=None, history=None, str durability="group",
             uint32_t threads=1, uint32_t n_shards=64, uint64_t max_memory_bytes=0,
             uint64_t dedupe_memory_bytes=DEDUPE_MEMORY_BYTES, uint64_t producer_memory_bytes=64 << 20,
             uint64_t segment_bytes=64 << 20, uint64_t checkpoint_part_bytes=PART_BYTES, bint create=True,
             allow=(), bint clock_back=False):
        """Opens the store in `directory`, creating it where there is none (and `create`).

        schema: text of the schema to serve, None for the one it has; allow: what it may take away, see
        apply_schema. clock: "wall" (default of a new store),
        "event" or "merged"; history: "none" states that no event of the schema's types existed before the
        store, "unknown" (default) that nobody knows; n_shards: a power of two. All three are fixed when a
        store is created, but for set_wall_clock. clock_back: sets a wall clock back that is ahead of the
        machine's, as set_clock_back does; without, more than ten minutes are refused. durability: "group" or
        "process" (design §2.10). threads: that apply one large batch together. max_memory_bytes: of rows, 0
        for no limit, else 16 MiB at least. dedupe_memory_bytes: of
        event ids within their horizons, 36 bytes each, and 12 once it is short and a checkpoint has them; at
        it events with new ids are refused. producer_memory_bytes: of what is remembered of producers, half
        for each kind of name; at it batches of new ones are refused. segment_bytes: size of a journal file.
        checkpoint_part_bytes: of changed pages, at which a checkpoint commits the shards that it has written.
        """
        cdef Engine self = Engine.__new__(Engine)
        path = Path(directory)
        if durability not in ("group", "process"):
            raise ConfigError(f"durability is {durability!r}; it is 'group' or 'process'")
        if clock is not None and clock not in CLOCKS:
            raise ConfigError(f"clock is {clock!r}; it is {' or '.join(CLOCKS)}")
        if history not in (None, "none", "unknown"):
            raise ConfigError(f"history is {history!r}; it is 'none' or 'unknown'")
        if 0 < max_memory_bytes < MIN_MEMORY_BYTES:
            raise ConfigError(
                f"max_memory_bytes is {max_memory_bytes}; it is 0 (no limit) or {MIN_MEMORY_BYTES} (16 MiB) "
                "at least: are they mebibytes or gibibytes, 4M or 4G?", setting="max_memory_bytes")
        self.lock = threading.RLock()
        self.listeners = []
        self.stop = threading.Event()
        self.segment_bytes = segment_bytes
        self.part_bytes = checkpoint_part_bytes
        is_new = create and not DataDirectory.exists(path)
        if is_new:
            if schema is None:
                raise ConfigError(f"{path} is not a store yet; give the schema to create one with")
            compile_schema(schema, path=schema_path)          # a wrong schema must leave no store behind
            self.directory = DataDirectory.create(path, clock=clock or "wall", n_shards=n_shards)
        else:
            self.directory = DataDirectory.open(path)
        try:
            self._recover(is_new, durability, threads, max_memory_bytes, dedupe_memory_bytes,
                          producer_memory_bytes)
            self._require_clock(clock)
            if not is_new:
                self._check_start(clock_back)
            if is_new:
                self._apply_schema(schema, schema_path, False, history == "none", frozenset(), None, 0)
                self.directory.publish()
            else:
                self._require_history(history)
                if schema is not None:
                    self.apply_schema(schema, path=schema_path, allow=allow)
        except BaseException:
            self.close()
            raise
        return self

    # -- recover

    def _recover(self, is_new, durability, threads, max_memory_bytes, dedupe_memory_bytes,
                 producer_memory_bytes):
        began = time.monotonic()
        identity = self.directory.identity
        if is_new:
            self.directory.journal.mkdir(mode=0o700)
        elif not (self.directory.journal.is_dir() and any(self.directory.journal.iterdir())):
            raise CorruptRecordError(
                f"{self.directory.journal} is gone, and with it what the rows do not hold: restore it from "
                "a backup")
        self.rows = RowStore.open(self.directory.rows, store_id=identity.id_bytes, create=is_new)
        plan = stored_plan(self.rows)
        self.state = State(plan or EMPTY_PLAN, clock=identity.clock, secret=self.directory.secret,
                           n_shards=identity.n_shards, threads=threads, cores=len(os.sched_getaffinity(0)),
                           max_memory_bytes=max_memory_bytes, dedupe_memory_bytes=dedupe_memory_bytes,
                           max_producer_bytes=producer_memory_bytes)
        furthest = 0
        self.rows.ids.serve(self.state)
        if plan is not None:
            _, furthest = load_rows(self.rows, self.state, identity.n_shards)
            self.stored_version = plan.version
            self.content_bytes = self._content_bytes()
            self.settled_bytes = self._settled_bytes()
        self.checkpoint_position = self.state.position
        n_rows = self.state.stats()["rows"]
        self.journal = Journal(self.directory.journal, identity.id_bytes, mode=durability,
                               from_position=self.checkpoint_position + 1, create=is_new,
                               segment_bytes=self.segment_bytes)
        frames = events = 0
        for frame in self.journal.read(self.checkpoint_position + 1):
            if frame.kind in (FRAME_SCHEMA, FRAME_CLOCK) and frame.first_position <= furthest:
                raise CorruptRecordError(
                    f"{self.rows.path}: shards are at position {furthest}, past the schema at "
                    f"{frame.first_position} that the plan does not have; restore it from a backup")
            self._replay(frame)
            self.state.cool_ids()
            frames += 1
            if frame.kind in (FRAME_BATCH, FRAME_SHED):          # the others have a position too
                events += frame.n_positions
        if self.journal.last_position < furthest:
            raise CorruptRecordError(
                f"the journal ends at position {self.journal.last_position} and the rows at {furthest}; "
                f"restore {self.directory.path} from a backup")
        if self.journal.last_position != self.state.position:
            raise CorruptRecordError(
                f"the journal ends at position {self.journal.last_position} and its frames lead to "
                f"{self.state.position}; restore {self.directory.path} from a backup")
        if not is_new and self.state.plan.version == 0:
            raise CorruptRecordError(
                f"{self.directory.path}: the journal ends before the store's first schema; restore it from "
                "a backup")
        self.c.state = &self.state.c
        self.c.journal = self.journal.state
        self.c.schema_version = self.state.plan.version
        self.accept_clock()
        self._make_room()
        self.recovered = Recovered(n_rows, self.checkpoint_position, frames, events, self.journal.torn,
                                   time.monotonic() - began)

    def _replay(self, frame):
        """One frame of the journal, as it was decided; nothing is decided again."""
        cdef uint16_t entity_id = 0
        cdef uint64_t fp[2]
        cdef bytes body = frame.body
        cdef Work work
        if frame.first_position != self.state.position + 1:
            raise CorruptRecordError(
                f"journal frame at position {frame.first_position} follows position {self.state.position}")
        if frame.kind in (FRAME_BATCH, FRAME_SHED):
            memset(&work, 0, sizeof(work))
            try:
                self._replay_batch(frame, &work)
            finally:
                work_clear(&work)
        elif frame.kind == FRAME_SCHEMA:
            plan = parse_plan(body, f"schema frame at position {frame.first_position}")
            self.state.apply_plan(plan)
        elif frame.kind == FRAME_CLOCK:
            clock, now_ms, text = parse_clock_body(body)
            plan = parse_plan(text, f"clock frame at position {frame.first_position}")
            self.state.apply_plan(plan, clock=clock, now_ms=now_ms)
        elif frame.kind == FRAME_FORGET:
            if decode_forget(body, len(body), &entity_id, <uint8_t*>fp) != BODY_OK:
                raise CorruptRecordError(f"Forget frame at position {frame.first_position} cannot be read")
            state_forget(&self.state.c, fp[0], fp[1])
            if self.state.c.broken:
                raise MemoryError(f"no memory to replay the Forget at position {frame.first_position}")
        elif frame.kind == FRAME_PRODUCER:
            self._replay_change(frame)
        else:
            raise CorruptRecordError(
                f"journal frame at position {frame.first_position} is of unknown kind {frame.kind}")

    cdef int _replay_change(self, object frame) except -1:
        cdef bytes body = frame.body
        cdef ProducerBody change
        cdef Origin origin
        cdef int status = decode_producer(body, len(body), &change)
        if status != BODY_OK:
            raise body_error(status, f"producer frame at position {frame.first_position}")
        state_origin(&self.state.c, change.name, change.name_bytes, change.epoch, change.sequence, 0, &origin)
        state_change_producer(&self.state.c, change.change, &origin, frame.now_ms)
        if self.state.c.broken:
            raise MemoryError(f"no memory to replay what was changed of a producer at {frame.first_position}")
        return 0

    cdef int _replay_batch(self, object frame, Work* work) except -1:
        # Outcomes point into it, and a bytearray is aligned and writable.
        cdef bytearray body = bytearray(frame.body)
        cdef uint8_t* data = body
        cdef size_t size = len(body)
        cdef BatchFrame decoded
        cdef Origin origin
        cdef StateC* state = &self.state.c
        cdef int64_t wall_ms = frame.now_ms
        cdef uint64_t first = frame.first_position
        cdef int status
        cdef uint16_t i
        memset(&decoded, 0, sizeof(decoded))
        try:
            status = decode_batch(data, size, frame.kind == FRAME_SHED, &decoded)
            if status != BODY_OK:
                raise body_error(status, f"batch frame at position {first}")
            for i in range(state.plan.n_events):
                if state.plan.events[i].event_id == decoded.head.event_id:
                    decoded.batch.event = i
                    break
            else:
                raise CorruptRecordError(
                    f"batch frame at position {first} is of event type id {decoded.head.event_id}, which "
                    "the schema before it does not declare")
            if not batch_fits(state.plan, &decoded.batch) or decoded.batch.n_events != frame.n_positions:
                raise CorruptRecordError(
                    f"batch frame at position {first} does not have the columns of its event type")
            if not batch_holds(&decoded.batch):
                raise CorruptRecordError(
                    f"batch frame at position {first} accepts an event with a time, a number or a text out "
                    "of range")
            if not _sheds_keys(&state.plan.events[decoded.batch.event], &decoded):
                raise CorruptRecordError(
                    f"batch frame at position {first} sheds keys that its event type does not have")
            with nogil:
                state_origin(state, <const uint8_t*>decoded.head.producer, decoded.head.producer_bytes,
                             decoded.head.epoch, decoded.head.sequence, decoded.head.fingerprint, &origin)
                status = work_prepare(state, &decoded.batch, NULL, work)
                work.shed = decoded.head.shed
                if status == 0:
                    status = state_commit(state, &decoded.batch, work, &origin, wall_ms)
                if status == 0:
                    status = state_apply(state, &decoded.batch, work, first, NULL, NULL, False)
            if status < 0:
                raise MemoryError(f"no memory to replay the batch at position {first}")
        finally:
            batch_frame_free(&decoded)
        return 0

    # -- write and read

    def observe(self, EventBatch batch not None, service=None, *, bint bounds=False, bint peek=False,
                bytes producer=b"", uint64_t epoch=0, uint64_t sequence=0, bint wait=True):
        """As State.observe, journaled. Returns (Vectors or None, position); with `wait`, when durable in the
        store's mode."""
        cdef Work work
        cdef ByteBuffer body
        cdef Outputs outputs
        cdef WriteResult result
        cdef Sender sender
        cdef const ServiceC* target
        cdef const uint8_t* name = producer
        cdef int status
        if len(producer) > MAX_PRODUCER_BYTES:
            raise ConfigError(f"producer has {len(producer)} bytes; it has at most {MAX_PRODUCER_BYTES}")
        memset(&work, 0, sizeof(work))
        memset(&body, 0, sizeof(body))
        memset(&outputs, 0, sizeof(outputs))
        sender.name = name
        sender.name_bytes = len(producer)
        sender.epoch = epoch
        sender.sequence = sequence
        sender.unawaited = False
        with nogil:
            pthread_rwlock_rdlock(&self.c.state.plan_lock)
        try:                          # what was looked up in the plan holds for as long as the lock does
            self._check_batch(batch)
            target = self.state._service(service)
            vectors = vectors_for(target, batch.batch.n_events, bounds, &outputs)
            with nogil:
                status = engine_write(&self.c, &batch.batch, &sender, &work, &body, target, &outputs, peek,
                                      True, &result)
            if status == ENGINE_OK and batch.batch.n_events:
                memcpy(batch.partly, work.partly, batch.batch.n_events)
                memset(batch.shed_bits, 0, batch.batch.n_events * sizeof(uint64_t))
                if work.shed != NULL:
                    memcpy(batch.shed_bits, work.shed, batch.batch.n_events * sizeof(uint64_t))
        finally:
            pthread_rwlock_unlock(&self.c.state.plan_lock)
            work_clear(&work)
            buffer_free(&body)
        if status != ENGINE_OK:
            raise self._write_error(status, &result, &sender)
        if wait and not peek:
            self.wait(result.position)
        return vectors, result.position

    cdef int _check_batch(self, EventBatch batch) except -1:
        """The batch was made for the event type as it is declared now."""
        events = self.state.plan.events
        made_for = batch.event
        declared = events[batch.event_index] if batch.event_index < len(events) else None
        if declared is not made_for and (declared is None or declared.event_id != made_for.event_id
                                         or declared.fields != made_for.fields):
            raise InvalidEventError(
                f"event type {made_for.name} is declared differently since this batch was made; make it "
                "again")
        return self.state._check_batch(batch)

    cdef object _write_error(self, int status, const WriteResult* result, Sender* sender):
        if status == ENGINE_VERDICT:
            return verdict_error(result.verdict, (<const char*>sender.name)[:sender.name_bytes], sender.epoch,
                                 sender.sequence)
        return write_error(status)

    def wait(self, uint64_t position, timeout_s=None):
        """Returns when `position` may be acknowledged in the store's durability mode."""
        if self.journal.acknowledged_position < position:
            self.journal.wait_durable(position, timeout_s)

    def read(self, service, parts, uint32_t n, *, as_of=None, bint bounds=False):
        """As State.read, at the store's now."""
        with nogil:
            pthread_rwlock_rdlock(&self.c.state.plan_lock)
        try:
            vectors = self.state._read(service, parts, n, as_of, _server_ms(&self.c), bounds)
        finally:
            pthread_rwlock_unlock(&self.c.state.plan_lock)
        fs_add(&self.c.counters.vectors, n)
        return vectors

    def lists(self, service, parts, *, as_of=None):
        """As State.lists, at the store's now."""
        return self.state.lists(service, parts, as_of=as_of, now_ms=_server_ms(&self.c))

    # -- change

    def add_plan_listener(self, listener):
        """listener.prepare(plan) makes what it needs of a coming plan (and may refuse it);
        listener.adopt(prepared) is called as it takes effect, while no request is between decoding and
        applying. Called once now with the plan being served."""
        with self.lock:
            listener.adopt(listener.prepare(self.state.plan))
            self.listeners.append(listener)

    def remove_plan_listener(self, listener):
        with self.lock:
            self.listeners.remove(listener)

    def apply_schema(self, str text, *, path=None, bint dry_run=False, allow=(), expect_version=None,
                     int64_t grace_ms=0):
        """Checks a schema against the one being served and serves it from now on. Returns the plan (with
        dry_run: the one it would be).

        allow: the kinds of change that may be made beside FREE, of "drop", "reset", "narrow", "order",
        "erase" and "clock" (schema/changes.py says what each is); ConsentError names those that are not
        allowed, and nothing is changed. dry_run needs none. expect_version: StaleVersionError where the store
        serves another version. grace_ms: for how long what is not declared any more is kept as it was, fed,
        and served to who asks for a vector by its fingerprint (at most 30 days); so long the schema before
        takes back everything. Upkeep lets it go then (`let_go`)."""
        if not 0 <= grace_ms <= MAX_GRACE_MS:
            raise ConfigError(f"grace is {grace_ms} ms; it is from 0 to 30 days", setting="grace")
        return self._apply_schema(text, path, dry_run, False, kinds_of(allow), expect_version, grace_ms)

    def let_go(self):
        """Lets what is retired go where its time has come. Returns whether there was any."""
        if self._kept_ms() > 0:              # mostly, and then whoever holds the lock holds nothing up
            return False
        with self.lock:
            if self._kept_ms() > 0:
                return False                 # taken back meanwhile
            previous = self.state.plan
            plan = self._apply_schema(None, None, False, False, (), None, 0)
        _log.info("schema version %d: %d features that were kept for their grace are gone", plan.version,
                  len(previous.all_features) - len(plan.all_features))
        return True

    def _kept_ms(self):
        """For how long all that is retired is still kept; without end where nothing is."""
        ends_ms = self.state.plan.retired_ms
        return math.inf if ends_ms is None else ends_ms - _server_ms(&self.c)

    def _made(self, str text, path, previous, nows, int64_t server_ms, int64_t grace_ms, bint from_beginning):
        """The plan of a schema; of None that which is left of the one before."""
        if text is None:
            return without_the_past(previous, server_ms)
        return compile_schema(
            text, path=path, previous=previous, now_ms=nows, ahead_ms=self.state.ahead_ms,
            server_ms=server_ms, until_ms=server_ms + grace_ms, from_beginning=from_beginning)

    def _apply_schema(self, str text, path, bint dry_run, bint from_beginning, allowed, expect_version,
                      int64_t grace_ms):
        cdef CompiledPlan compiled
        cdef Reserved reserved
        with self.lock:
            self._check_writable()
            previous = self.state.plan if self.state.plan.version else None
            if expect_version is not None and expect_version != self.state.plan.version:
                raise StaleVersionError(
                    f"the store serves version {self.state.plan.version} of its schema, not "
                    f"{expect_version}; nothing was changed: look at what it is now", path=path)
            nows = self._nows()
            server_ms = _server_ms(&self.c)
            plan = self._made(text, path, previous, nows, server_ms, grace_ms, from_beginning)
            if previous is not None and plan is previous:
                return plan
            if previous is not None and not dry_run:
                require_consent(changes_of(previous, plan), allowed, path)
            compiled = CompiledPlan(plan, self.state.compiled)
            self.state.check_memory(compiled)
            if dry_run:
                return plan
            reserved = self.state.reserve(compiled)
            prepared = [listener.prepare(plan) for listener in self.listeners]
            with nogil:
                pthread_rwlock_wrlock(&self.c.state.plan_lock)
                pthread_mutex_lock(&self.c.state.order)
            try:
                if self._is_past(nows):
                    # Batches were accepted meanwhile: what they made the views drop must not be promised, nor
                    # that a new view has seen them.
                    plan = self._made(text, path, previous, self._nows(), server_ms, grace_ms, from_beginning)
                    compiled = CompiledPlan(plan, self.state.compiled)
                    prepared = [listener.prepare(plan) for listener in self.listeners]
                self._swap(compiled, reserved, prepared, FRAME_SCHEMA, plan.to_json().encode(),
                           _stamp(&self.c), None)
            finally:
                pthread_mutex_unlock(&self.c.state.order)
                pthread_rwlock_unlock(&self.c.state.plan_lock)
            self.journal.wait_durable(self.schema_position)
            return plan

    cdef int _swap(self, CompiledPlan compiled, Reserved reserved, prepared, int kind, bytes body,
                   int64_t now_ms, clock) except -1:
        """Journals a plan, and a clock with it unless that is None, and serves it. Both locks are held."""
        cdef Frame frame
        cdef iovec piece
        cdef int status = -1                 # nothing is journaled yet
        cdef int point = SCHEMA_JOURNALED if clock is None else CLOCK_JOURNALED
        memset(&frame, 0, sizeof(frame))
        frame.kind = kind
        frame.n_positions = 1
        frame.schema_version = compiled.plan.version
        frame.now_ms = now_ms
        piece.iov_base = <void*><const char*>body
        piece.iov_len = len(body)
        try:
            with nogil:
                status = journal_append(self.c.journal, &frame, &piece, 1)
                if status == JOURNAL_OK and failpoint(point):
                    self.c.failed = 1
            if status != JOURNAL_OK:
                raise self.journal.problem(status)
            if self.c.failed:
                raise write_error(ENGINE_FAILED)
            self.state.swap_plan(compiled, reserved)
            if clock is not None:
                self.state.set_clock(CLOCKS.index(clock), now_ms)
            self.c.schema_version = compiled.plan.version
            for listener, ready in zip(self.listeners, prepared, strict=True):
                listener.adopt(ready)
            self.schema_position = self.state.position
        except BaseException:
            if status == JOURNAL_OK:
                self.c.failed = 1            # journaled and not served: only a restart brings them together
            raise
        return 0

    @property
    def clock(self):
        """The clock that the store has by now: "wall", "event" or "merged"."""
        return self.state.clock

    def set_wall_clock(self, *, allow=()):
        """Gives a store whose clock events moved the server's, once and for good: what it has seen stays so,
        and what is older than its windows by then expires. Returns the position of that, durable; None where
        it has that clock already, and nothing changes.

        allow: names "clock", or ConsentError. ConfigError: an event type's clock is more than max_future
        ahead of the server's. UnavailableError: the server's has leapt (`leap_ms`)."""
        allowed = kinds_of(allow)
        with self.lock:
            self._check_writable()
            if self._is_wall():
                return None
            self._require_clock_consent(
                allowed, f"the store's clock is {self.clock}, and will be the server's for good: now goes on "
                "without events, and what is older than its windows by then expires")
            return self._set_clock(as_of_wall(self.state.plan), None)

    def set_clock_back(self, *, allow=()):
        """Sets a wall clock back that was pulled ahead by a machine's wrong one, once that is right. Nothing
        counts as seen before then, so that windows are WARMING until they have passed and lifetimes for good;
        ids and what keeps no log begin anew: schema.evolution.set_back. Returns the position of that,
        durable; None where the clock is at most a minute ahead, and nothing changes.

        allow: names "clock", or ConsentError. ConfigError: the store has another clock than the server's.
        UnavailableError: that has leapt (`leap_ms`)."""
        allowed = kinds_of(allow)
        with self.lock:
            self._check_writable()
            if not self._is_wall():
                raise ConfigError(
                    f"the store's clock is {self.clock}, which events move; only the server's is set back")
            ahead_ms = self._ahead_ms()
            if ahead_ms <= MOST_LEAP_MS:
                return None
            self._require_clock_consent(
                allowed, f"the store's clock is {ahead_ms / 1000:,.1f} s ahead of the server's, and will be "
                "set back: windows are WARMING until they have passed, lifetimes for good, and event ids, "
                "sketches, distinct counts, lists and decayed sums begin anew")
            now_ms = _server_ms(&self.c)
            plan = set_back(self.state.plan, now_ms, from_ms=self.state.now_ms,
                            ahead_ms=self.state.ahead_ms + MAKING_MS)
            return self._set_clock(plan, now_ms)

    def _require_clock_consent(self, allowed, str what):
        if ChangeKind.CLOCK not in allowed:
            raise ConsentError(f"{what}; this needs consent: `--allow clock`; nothing was changed")

    def _set_clock(self, plan, now_ms):
        """A wall clock from here on, which says now_ms; None: what the server's says, but for what events had
        ahead of it."""
        cdef CompiledPlan compiled = CompiledPlan(plan, self.state.compiled)
        cdef Reserved reserved
        if _leap_ms(&self.c):
            raise write_error(ENGINE_LEAPT)
        self.state.check_memory(compiled)
        reserved = self.state.reserve(compiled)
        prepared = [listener.prepare(plan) for listener in self.listeners]
        text = plan.to_json().encode()
        with nogil:
            pthread_rwlock_wrlock(&self.c.state.plan_lock)
            pthread_mutex_lock(&self.c.state.order)
        try:
            if now_ms is None:
                server_ms = now_ms = _server_ms(&self.c)
                for event, type_ms in self.state.nows_ms.items():
                    if type_ms > server_ms + MAX_FUTURE_MS:
                        raise ConfigError(
                            f"the clock of event type {event} is {(type_ms - server_ms) / 1000:,.1f} s ahead "
                            "of the server's: what came since would be late; wait for that, or mend the "
                            "server's clock")
                    now_ms = max(now_ms, type_ms)
            self._swap(compiled, reserved, prepared, FRAME_CLOCK, clock_body("wall", now_ms, text), now_ms,
                       "wall")
        finally:
            pthread_mutex_unlock(&self.c.state.order)
            pthread_rwlock_unlock(&self.c.state.plan_lock)
        self.journal.wait_durable(self.schema_position)
        return self.schema_position

    def _ahead_ms(self):
        """How far a wall-clock store is ahead of the server's clock; 0 or less where it is not."""
        return 0 if self.state.now_ms is None else self.state.now_ms - _server_ms(&self.c)

    def _require_clock(self, wanted):
        if wanted is None or wanted == self.clock:
            return
        made = self.directory.identity.clock
        since = "" if made == self.clock else f" (it was created with the {made} clock)"
        raise ConfigError(
            f"this store has the {self.clock} clock{since}; it cannot be opened with the {wanted} clock"
            + (": give it that with `featurestore clock wall`" if wanted == "wall" else ""))

    def _check_start(self, bint clock_back):
        """A machine's clock that was ahead when the store was last open pulled the store's ahead for good."""
        if not self._is_wall():
            return
        ahead_ms = self._ahead_ms()
        if ahead_ms <= MOST_LEAP_MS:
            return
        words = (f"{self.directory.path}: the store's clock says {_time_text(self.state.now_ms)}, which is "
                 f"{ahead_ms / 1000:,.1f} s ahead of this machine's, {_time_text(_server_ms(&self.c))}")
        if clock_back:
            self.set_clock_back(allow=["clock"])
            _log.warning(
                "%s: it was set back; windows are WARMING until they have passed, lifetimes for good", words)
        elif ahead_ms > MOST_AHEAD_MS:
            raise StorageError(
                f"{words}: one of them is wrong. If it is the machine's, mend that. If that was, when the "
                "store was last open, set the store's back with `featurestore serve --clock-back`: nothing "
                "counts as seen before then")
        else:
            _log.warning("%s: it stands still until then, and events are late by it", words)

    def _now_ms(self):
        if self._is_wall():
            return max(_server_ms(&self.c), self.state.now_ms or 0)
        return self.state.now_ms

    def _nows(self):
        """When a plan that is made now will be served: the clock of each event type that has accepted an
        event. On a wall clock a little later, so that it has not passed by then."""
        nows = self.state.nows_ms
        return dict.fromkeys(nows, self._now_ms() + MAKING_MS) if self._is_wall() else nows

    def _is_past(self, nows):
        """Whether a plan that was made for these is served too late."""
        served = self.state.nows_ms
        if not self._is_wall():
            return nows != served
        return nows.keys() != served.keys() or any(self._now_ms() > now for now in nows.values())

    @property
    def leap_ms(self):
        """How much further the machine's wall clock has gone than time has passed since the store was opened,
        but for a minute. While it is not 0 a wall-clock store takes no writes, and its now goes on with time.
        """
        return _leap_ms(&self.c)

    def accept_clock(self):
        """Believes the server's wall clock from now on. Returns how far it had leapt, milliseconds."""
        cdef int64_t leap_ms = _leap_ms(&self.c)
        fs_store_ms(&self.c.lead_ms, clock_wall_ms() - clock_boot_ms() + MOST_LEAP_MS)
        return leap_ms

    def _is_wall(self):
        return self.state.c.sequencer.clock == CLOCK_WALL

    @property
    def history(self):
        """What was stated when the store was made: "none" or "unknown"; see open."""
        return "none" if any(event.from_beginning for event in self.state.plan.events) else "unknown"

    def _require_history(self, wanted):
        if wanted is not None and wanted != self.history:
            raise ConfigError(
                f"history is {wanted!r}, and this store's is {self.history!r}: what was before it is stated "
                f"once, when it is created, and no longer known where its clock was set back; leave that out")

    def keys(self, parts):
        """Iterates over the raw keys of the entity with these part names, which keeps them (`keep_keys`): a
        {part: text} for each, in no order; see State.keys."""
        entity = self.entity_of(parts)
        names = self.state.plan.entities[entity].parts
        for key in self.state.keys(entity):
            yield {name: part.decode(errors="replace") for name, part in zip(names, key, strict=True)}

    def entity_of(self, parts):
        """Index of the entity whose key has exactly these part names."""
        wanted = tuple(sorted(parts))
        for index, entity in enumerate(self.state.plan.entities):
            if entity.parts == wanted:
                return index
        known = ", ".join("(" + ", ".join(entity.parts) + ")" for entity in self.state.plan.entities)
        raise UnknownNameError(f"no entity has the key parts ({', '.join(wanted)}); there are {known}")

    def forget(self, parts):
        """Drops the row of one key ({part: text}) and returns (whether there was one, position) once no file
        holds it: a tombstone is journaled, a checkpoint written past it, older segments deleted, and the rows
        rewritten without the pages it was in. What rows of other keys hold of it stays."""
        cdef Frame frame
        cdef iovec piece
        cdef uint8_t body[FORGET_BODY_BYTES]
        cdef uint64_t fp[2]
        cdef bint found = False
        cdef int status
        with self.lock:
            self._check_writable()
            entity = self.entity_of(parts)
            names = self.state.plan.entities[entity].parts
            fingerprint = self.state.fingerprint(entity, [parts[name].encode() for name in names])
            if fingerprint is None:
                raise UnknownNameError(
                    f"key ({', '.join(names)}) has an empty part, and no such key is ever kept")
            memcpy(fp, <const char*>(<bytes>fingerprint), 16)
            encode_forget(self.state.plan.entities[entity].entity_id, <const uint8_t*>fp, body)
            memset(&frame, 0, sizeof(frame))
            frame.kind = FRAME_FORGET
            frame.n_positions = 1
            frame.schema_version = self.c.schema_version
            piece.iov_base = body
            piece.iov_len = FORGET_BODY_BYTES
            with nogil:
                pthread_mutex_lock(&self.c.state.order)
                frame.now_ms = _stamp(&self.c)
                status = journal_append(self.c.journal, &frame, &piece, 1)
                if status == JOURNAL_OK:
                    found = state_forget(self.c.state, fp[0], fp[1])
                pthread_mutex_unlock(&self.c.state.order)
            if status != JOURNAL_OK:
                raise self.journal.problem(status)
            reach("forget.journaled")
            self._roll()                      # or its segment would stay for what is written to it meanwhile
            self.checkpoint()
            reach("forget.checkpointed")
            try:
                self.rows.compact()
            except StorageError as error:
                if is_shortage(error):               # the rows are as the checkpoint left them
                    raise LimitError(f"forget: {error}; call it again when there is more: until then the key "
                                     "may be on the disk") from error
                self._judge(error, "rewriting the rows")
            return found, frame.first_position

    def producers(self, uint64_t after=0, *, uint32_t at_least=1000):
        """As State.list_producers, at the store's now."""
        return self.state.list_producers(after, at_least=at_least, now_ms=_server_ms(&self.c))

    def producer(self, str name not None):
        """As State.producer, at the store's now. What it says is durable: whoever goes on from there loses
        nothing in a power cut."""
        found = self.state.producer(name.encode(), now_ms=_server_ms(&self.c))
        self.journal.sync()
        return found

    def drop_producer(self, str name not None):
        """Remembers nothing of a producer any more, as if it had never written: what it sends again counts
        again. Returns the position of that, once it is durable."""
        return self._change_producer(CHANGE_DROP, name, 0, 0)

    def reset_producer(self, str name not None, uint64_t epoch, uint64_t sequence):
        """Lets a producer go on above this epoch and sequence, after somebody else has fenced it off. What it
        sends again from before cannot be judged and is refused. Returns the position of that, once it is
        durable."""
        if epoch > LAST_NUMBER or sequence > LAST_NUMBER:
            raise InvalidEventError(
                f"a producer is reset to an epoch and a sequence below 2**63, not to {epoch} and {sequence}")
        return self._change_producer(CHANGE_RESET, name, epoch, sequence)

    cdef object _change_producer(self, int change, str name, uint64_t epoch, uint64_t sequence):
        cdef uint8_t out[MAX_PRODUCER_BODY_BYTES]
        cdef bytes raw = name.encode()
        cdef ProducerBody body
        cdef Origin origin
        cdef Frame frame
        cdef iovec piece
        cdef bint known = False
        cdef int status
        if 0 < len(raw) <= MAX_PRODUCER_BYTES:
            body = ProducerBody(change=<uint8_t>change, name_bytes=<uint8_t>len(raw), epoch=epoch,
                                sequence=sequence, name=<const uint8_t*>raw)
            memset(&frame, 0, sizeof(frame))
            frame.kind = FRAME_PRODUCER
            frame.n_positions = 1
            piece.iov_base = out
            piece.iov_len = encode_producer(&body, out)
            state_origin(self.c.state, raw, len(raw), epoch, sequence, 0, &origin)
            with nogil:
                pthread_mutex_lock(&self.c.state.order)
                status = _change_in_order(&self.c, change, &origin, &frame, &piece, &known)
                pthread_mutex_unlock(&self.c.state.order)
            if status != ENGINE_OK:
                raise write_error(status)
        if not known:
            raise UnknownNameError(
                f"no producer {name!r} is remembered (after 15 minutes or 7 days of silence, by the kind of "
                "its name, none is); `featurestore producers list` shows those that are")
        self.journal.wait_durable(frame.first_position)
        return frame.first_position

    # -- checkpoint

    def _content_bytes(self):
        """What a checkpoint of everything but the event ids writes, by what it takes in memory."""
        stats = self.state.stats()
        return stats["used_bytes"] + _producer_bytes(stats)

    def _settled_bytes(self):
        """What a checkpoint does not write again once it is there: event ids."""
        return self.rows.sizes().get(IDS_SHARD, (0, 0))[1]

    def _more_bytes(self):
        """What the next checkpoint may write beside what is stored: twice what came since the last."""
        growth = max(0, self._content_bytes() - self.content_bytes) + ID_BYTES * self.state.ids_to_copy
        return 2 * growth + CHECKPOINT_BYTES

    def _make_room(self):
        """Sets aside what the next checkpoint may write: all there is that may change, and twice what came
        since the last. Where that cannot be had, writes may go on to the position to which what is set aside
        reaches."""
        if self.rows.given_up:
            return                        # the next checkpoint opens it again
        try:
            self.rows.hold(self._more_bytes(), self.settled_bytes)
            self.room_bytes = self.rows.room_bytes
            self.c.last_position = NO_LIMIT
            return
        except LimitError:
            stats = self.state.stats()
        always = (stats["sketch_bytes"] + _producer_bytes(stats) + ID_BYTES * self.state.ids_to_copy
                  + CHECKPOINT_BYTES)
        # Of each event a row of every entity, of four times the usual size.
        row_bytes = PAGES_PER_ROW * PAGE_BYTES + 4 * stats["used_bytes"] // max(1, stats["rows"])
        event_bytes = row_bytes * max(1, len(self.state.plan.entities))
        self.room_bytes = self.rows.room_bytes
        n_events = max(0, self.room_bytes - always) // event_bytes
        self.c.last_position = self.checkpoint_position + n_events

    def _is_short(self):
        """Whether a checkpoint is due for want of space: it frees the segments before it."""
        if self.journal.status == "full":
            return True
        if self.c.last_position != NO_LIMIT:
            # Half-way, so that nobody has to wait for it.
            return 2 * self.state.position >= self.checkpoint_position + self.c.last_position
        space = os.statvfs(self.directory.path)
        return self.journal.n_segments > 1 and space.f_bavail * space.f_frsize < 2 * self.segment_bytes

    def checkpoint(self):
        """Writes what changed since the last one; returns (position, bytes of records). Reads and ingest go
        on.

        LimitError: there is no space; what is in memory and in the journal goes on, and a later call may
        succeed. StorageError: the disk failed, and writes with it (ENGINE_FAILED).
        """
        with self.lock:
            self._check_writable()
            try:
                written = self._checkpoint_and_trim()
            except LimitError as error:
                self.checkpoints_failed += 1
                self.unwritten = str(error)
                raise
            if written[1] >= TRIM_BYTES:
                self._trim()
            self._make_room()
            self.c.blocked = 0
            self.unwritten = None
            return written

    def _checkpoint_and_trim(self):
        try:
            if self.rows.given_up:
                self.rows.reopen()
            try:
                # Before the cut: what is written meanwhile goes to a segment of its own, and all before it
                # can be deleted.
                self._roll()
            except LimitError:
                pass  # the segment in use stays; deleting older ones may be what makes space
            while True:
                try:
                    written = self._checkpoint()
                    break
                except MapGrownError:
                    pass                  # until it is as large as it may be
            self.journal.truncate_before(written[0] + 1)
        except LimitError:
            self.c.blocked = self.upkeep is not None          # which tries again, and lets go
            raise
        except MemoryError as error:
            raise LimitError("no memory for a checkpoint; it is tried again with the next") from error
        except StorageError as error:
            self._judge(error, "checkpoint")
        return written

    def _trim(self):
        """Gives back what writing a checkpoint took: as much again as what it wrote, and more in LMDB."""
        try:
            self.rows.renew()
        except (OSError, StorageError):
            pass                          # the checkpoint is written, and the next one opens it again
        with nogil:
            fs_trim()

    def _roll(self):
        """In order: whoever must not wait for the disk finds that there is a batch before."""
        with nogil:
            pthread_mutex_lock(&self.c.state.order)
        try:
            self.journal.roll()
        finally:
            pthread_mutex_unlock(&self.c.state.order)

    def _checkpoint(self):
        """Shard by shard: what is copied of one is written and let go before the next. Where the rows' file
        has the plan already, some shards at a time are committed (checkpoint.py), else all at once."""
        cdef Block records
        cdef uint64_t rows = 0, n_bytes = 0
        began = time.monotonic()
        position, head = self.state.cut()
        content_bytes = self._content_bytes()
        more_bytes = self._more_bytes()
        written = False
        try:
            n_shards = self.directory.identity.n_shards
            stored = self.rows.shards()
            sheds = {shard for shard in range(n_shards)
                     if HOLES + shard in stored or self.state.has_shed(shard)}
            if sheds:
                head = mark_shed(head)
            if self.clock != self.directory.identity.clock:
                head = mark_other_clock(head)
            behind = None
            if self._is_plan_stored():
                behind = mark_behind(self.rows.get_meta(HEAD), sheds=bool(sheds))
            self.rows.begin(more_bytes)
            try:
                for shard in range(n_shards):
                    if behind is not None and self.rows.changed_bytes >= self.part_bytes:
                        self._commit_part(behind, position)
                        self.state.copy_written(shard)
                        fail_at(CHECKPOINT_PART)
                        self.rows.begin(more_bytes, goes_on=True)
                    records = self.state.copy_shard(shard)
                    n_bytes += len(records)
                    with nogil:
                        rows += count_records(records.bytes.data, records.bytes.n_bytes)
                    self.rows.write_shard(shard, records, position)
                    records = None
                    of_sketches = self.state.copy_sketches(shard)
                    if len(of_sketches):
                        n_bytes += len(of_sketches)
                        self.rows.write_shard(SKETCHES + shard, of_sketches, position)
                    of_sketches = None
                    if shard in sheds:
                        of_holes = holes_record(self.state.copy_holes(shard))
                        self.rows.write_shard(HOLES + shard, of_holes, position)
                of_ids = self.state.copy_id_records()
                n_bytes += len(of_ids)
                self.rows.write_shard(IDS_SHARD, of_ids, position)
                of_ids = None
                of_all, of_producers = self.state.copy_producers()
                n_bytes += len(of_producers)
                self.rows.write_shard(PRODUCERS_SHARD, of_producers, position)
                of_producers = None
                self.rows.put_meta(PLAN, self.state.plan.to_json().encode())
                self.rows.put_meta(HEAD, head)
                self.rows.put_meta(IDS, b"")
                self.rows.put_meta(PRODUCERS, of_all)
                # Ids and producers were copied after the cut and may know of later batches: those must not be
                # lost.
                self.journal.wait_durable(self.state.position)
                fail_at(CHECKPOINT_MID)
                self.rows.commit()
            except BaseException:
                self.rows.abort()
                raise
            written = True
        finally:
            self.state.copy_end(written)
        self.state.cool_ids()
        self.checkpoint_position = position
        self.stored_version = self.state.plan.version
        self.content_bytes = content_bytes
        self.settled_bytes = self._settled_bytes()
        self.checkpointed_at = time.monotonic()
        self.last_checkpoint = Checkpointed(position, rows, n_bytes, self.checkpointed_at - began)
        failpoint(CHECKPOINT_COMMITTED)
        return position, n_bytes

    def _is_plan_stored(self):
        """Whether the last checkpoint has the plan that is served. Until one has, a crash replays how the
        schema changed, for rows as they were before."""
        return self.stored_version == self.state.plan.version

    def _commit_part(self, bytes behind, uint64_t position):
        """What is written so far, of shards that are ahead of everything else then."""
        self.rows.put_meta(HEAD, behind)
        self.journal.wait_durable(position)
        self.rows.commit()

    def _judge(self, error, str doing):
        """Always raises. A shortage is waited out; after any other failure of a disk nobody knows what it
        holds, and writes end."""
        if is_shortage(error):
            self.c.blocked = self.upkeep is not None
            raise LimitError(f"{doing}: {error}; it is tried again when there is more") from error
        self.c.failed = 1
        self.failure = error
        raise error

    def _check_writable(self):
        if self.c.journal == NULL:
            raise write_error(ENGINE_CLOSED)
        if self.failed:
            raise write_error(ENGINE_FAILED)

    def backup(self, target):
        """Copies the live store, consistent at one position, to the new directory `target`, which is a store
        as any other: rows, and the journal behind them up to that position. Returns the position.

        The journal is needed because a checkpoint's ids and producers may know of batches after its rows:
        without those, the copy would call them duplicates and never have counted them.
        """
        target = Path(target)
        with self.lock:
            if target.exists() or target.is_symlink():
                raise ConfigError(f"{target} exists; give a directory that does not")
            refuse_within(self.directory.path, target, "a backup")
            position, _ = self.checkpoint()
            with ExitStack() as spare:           # descriptors: removing what was begun takes some
                try:
                    for _ in range(SPARE_DESCRIPTORS):
                        spare.callback(os.close, os.open(self.directory.path, os.O_RDONLY | os.O_CLOEXEC))
                    target.mkdir(mode=0o700, parents=True)
                    try:
                        refuse_within(self.directory.path, target, "a backup")   # where it is by now
                        self.rows.copy_to(target / "rows")
                        (target / "journal").mkdir(mode=0o700)
                        position = self._copy_journal(target / "journal", position + 1)
                        write_synced(target / "secret", self.directory.secret)
                        write_synced(target / "store.json", self.directory.identity.to_json())
                        sync_directory(target.absolute().parent)
                    except BaseException:
                        spare.close()
                        shutil.rmtree(target, ignore_errors=True)
                        raise
                except (OSError, StorageError) as error:
                    if is_shortage(error):
                        raise LimitError(
                            f"no backup was made in {target}: {error}; nothing is left of it") from error
                    if isinstance(error, OSError):
                        raise StorageError(f"cannot write the backup {target}: {error.strerror}") from error
                    raise
            return position

    def _copy_journal(self, directory, uint64_t first):
        """A journal of the frames from position `first` on, as far as the last checkpoint may know of them.
        Returns its last position."""
        cdef uint64_t last = self.journal.durable_position
        with Journal(directory, self.directory.identity.id_bytes, from_position=first, create=True,
                     segment_bytes=BACKUP_SEGMENT_BYTES if last < first else self.segment_bytes) as journal:
            for frame in self.journal.read(first):
                if first <= frame.first_position <= last:
                    journal.append(frame.kind, frame.body, n_positions=frame.n_positions, now_ms=frame.now_ms,
                                   schema_version=frame.schema_version)
            journal.sync()
            return journal.last_position

    def start_upkeep(self, *, double checkpoint_every_s=60.0, uint64_t checkpoint_journal_bytes=1 << 30,
                     double sweep_every_s=300.0, on_failure=None, on_filling=None, on_shedding=None,
                     on_shortage=None, on_leap=None):
        """Starts the thread that writes checkpoints (by time, or when the journal has grown) and frees
        expired rows.

        Where space becomes scarce a checkpoint is due at once, since it frees segments. One that meets a
        shortage blocks writes (ENGINE_FULL) and is tried again each second; any other failure stops writes
        for good and calls on_failure(error): a restart then finds everything that was acknowledged in the
        journal.

        on_filling(what, used bytes, cap) is called when memory that refuses events or sheds keys at its cap
        is four fifths full, and again only after it was half empty. on_shedding(whether): events began to
        find no room at max_memory, or have all found some for a minute. on_shortage(why): there began to be
        one, in words, or with None there has been none for a minute. on_leap(ms): the wall clock has leapt so
        far ahead (leap_ms), or with 0 is believed again.
        """
        with self.lock:
            if self.upkeep is not None:
                raise RuntimeError("upkeep runs already")
            self.upkeep = threading.Thread(
                target=self._upkeep, name="featurestore-upkeep", daemon=True,
                args=(checkpoint_every_s, checkpoint_journal_bytes, sweep_every_s, on_failure, on_filling,
                      on_shedding, on_shortage, on_leap))
            self.upkeep.start()

    def _upkeep(self, checkpoint_every_s, checkpoint_journal_bytes, sweep_every_s, on_failure, on_filling,
                on_shedding, on_shortage, on_leap):
        give_way(UPKEEP)
        began = checked = swept = shed_at = short_at = time.monotonic()
        n_shed = self.c.counters.shed
        sheds = is_short = leapt = False
        sweep_took = 0.1
        # What a journal just truncated has, and what preallocation adds.
        most_bytes = checkpoint_journal_bytes + 2 * self.segment_bytes
        told = set()
        while not self.stop.wait(0.2):
            now = time.monotonic()
            why = self.shortage
            if why is not None:
                short_at = now
            if is_short != (short_at > began and now - short_at < QUIET_S):
                is_short = not is_short
                if on_shortage is not None:
                    on_shortage(why)
            try:
                if self.failed:
                    raise self.failure or write_error(ENGINE_FAILED)
                if self.lock.acquire(blocking=False):
                    try:
                        if not self.rows.given_up:       # until the next checkpoint opens them again
                            self._make_room()
                    finally:
                        self.lock.release()
                is_news = self.state.position > self.checkpoint_position
                # One that has no plan yet, or another, is written at once: there is little in it so far.
                due = (now - checked >= checkpoint_every_s or self.journal.total_bytes > most_bytes
                       or not self._is_plan_stored() or self.state.ids_are_due or self._is_short())
                if is_news and due or self.c.blocked:
                    checked = now
                    self.checkpoint()
                self.state.cool_ids()
                # Full, rows that have expired are in the way of new ones; a tenth of the time goes into it.
                sweep_after_s = min(sweep_every_s, 10 * sweep_took) if self.c.state.full else sweep_every_s
                if now - swept >= sweep_after_s:
                    self.state.sweep()
                    swept = time.monotonic()
                    sweep_took = swept - now
                if self.c.counters.shed != n_shed:
                    n_shed = self.c.counters.shed
                    shed_at = now
                if sheds != (shed_at > began and now - shed_at < QUIET_S):
                    sheds = not sheds
                    if on_shedding is not None:
                        on_shedding(sheds)
                if leapt != (_leap_ms(&self.c) > 0):
                    leapt = not leapt
                    if on_leap is not None:
                        on_leap(_leap_ms(&self.c))
                for what, (used, cap) in self.state.memories.items():
                    if used * 2 < cap:
                        told.discard(what)
                    elif used * 5 >= cap * 4 and what not in told and on_filling is not None:
                        told.add(what)
                        on_filling(what, used, cap)
                self.let_go()                    # last: while the journal is full it cannot
            except (LimitError, MemoryError):
                self.stop.wait(1.0)
            except Exception as error:
                self.c.failed = 1
                self.failure = error
                if on_failure is not None:
                    on_failure(error)
                return

    @property
    def refuses_writes(self):
        """Whether writes wait for a checkpoint, or the last one found no room in the journal: they resume by
        themselves."""
        return bool(self.c.blocked or self.state.position >= self.c.last_position
                    or self.journal.status == "full")

    @property
    def shortage(self):
        """Of space, descriptors or memory, in words: why writes are refused, or why the last checkpoint was
        not written. None: there is none."""
        if self.journal.status == "full":
            return str(self.journal.problem(JOURNAL_FULL))
        if self.unwritten is not None:
            return self.unwritten
        return str(_worded(ENGINE_FULL)) if self.refuses_writes else None

    @property
    def failed(self):
        """Writes are over until a restart: a disk failed, or memory ran out half-way. Reads go on."""
        return bool(self.c.failed or self.c.state.broken or self.journal.status == "failed")

    def stats(self):
        """Counts and sizes, by name; see StatsResponse in admin_service.proto for each."""
        counters = self.c.counters
        return {
            **self.state.stats(),
            "schema_version": self.state.plan.version,
            "events_accepted": counters.accepted,
            "events_late": counters.late,
            "events_partly_late": sum(self.state.partly_late.values()),
            "events_shed": counters.shed,
            "events_untouched": sum(self.state.untouched.values()),
            "events_duplicate": counters.duplicate,
            "events_refused": counters.refused,
            "batches_duplicate": counters.batches_duplicate,
            "vectors_read": counters.vectors,
            "durable_position": self.journal.durable_position,
            "checkpoint_position": self.checkpoint_position,
            "checkpoint_age_ms": -1 if self.checkpointed_at is None
            else int((time.monotonic() - self.checkpointed_at) * 1000),
            "checkpoint_room_bytes": self.room_bytes,
            "last_position": None if self.c.last_position == NO_LIMIT else self.c.last_position,
            "journal_bytes": self.journal.total_bytes, "now_ms": self._now_ms(),
            "server_ms": _server_ms(&self.c), "leap_ms": _leap_ms(&self.c),
        }

    def close(self, *, bint checkpoint=False):
        """Stops upkeep, writes a last checkpoint if asked, and lets the directory go. Whoever writes
        meanwhile gets its acknowledgement or StorageError; reads go on from memory for as long as somebody
        holds this object."""
        self.stop.set()
        if self.upkeep is not None and self.upkeep is not threading.current_thread():
            self.upkeep.join()
        with self.lock, ExitStack() as last:          # every step is taken, whatever the one before says
            for part in (self.directory, self.rows, self.journal):
                if part is not None:
                    last.callback(part.close)
            if self.c.journal == NULL:
                return
            try:
                if checkpoint and not self.failed:
                    self.checkpoint()
            finally:
                with nogil:
                    pthread_mutex_lock(&self.c.state.order)
                    self.c.journal = NULL             # no append is under way, and none begins
                    pthread_mutex_unlock(&self.c.state.order)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


cdef uint64_t count_records(const uint8_t* data, size_t size) noexcept nogil:
    """How many records a shard's copy has: 16 bytes of key, u32 length (all ones: the row is gone), value."""
    cdef size_t at = 0
    cdef uint64_t n = 0
    cdef uint32_t n_bytes
    while at + 20 <= size:
        memcpy(&n_bytes, data + at + 16, 4)
        at += 20 + (<size_t>n_bytes if n_bytes != 0xFFFFFFFFu else 0)
        n += 1
    return n


cdef int fail_at(int point) except -1:
    error = failpoint(point)
    if error:
        raise StorageError(f"checkpoint: {os.strerror(error)}") from OSError(error, os.strerror(error))
    return 0


def _time_text(int64_t ms):
    """Of the years that a machine's clock says."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))


def _producer_bytes(stats):
    """What a checkpoint writes of all producers: two bytes more for each sequence of eight."""
    return stats["producer_bytes"] + stats["producer_bytes"] // 4


def write_error(int status):
    """The exception for an EngineStatus other than OK and VERDICT."""
    error = _worded(status)
    error.applied = None if status == ENGINE_FAILED else False           # the journal may have it
    return error


def _worded(int status):
    if status == ENGINE_NO_MEMORY:
        return LimitError(
            "no memory for this batch; nothing of it was applied; send it again later, or in smaller pieces")
    if status == ENGINE_FULL:
        return LimitError(
            "the disk is full, or no file descriptor is left: nothing was applied; writes resume by "
            "themselves when there is")
    if status == ENGINE_LEAPT:
        return UnavailableError(
            "the server's wall clock has leapt ahead of the time that has passed; nothing was applied; "
            "writes resume when it is set right, or after `featurestore clock accept`")
    if status == ENGINE_TOO_LARGE:
        return LimitError(
            "the batch is larger than a journal frame may be (1 GiB); send it in smaller pieces")
    if status == ENGINE_CLOSED:
        return StorageError("the store is closed")
    return StorageError(
        "the store has failed and takes no more writes; see its log and restart it: nothing acknowledged "
        "is lost")
