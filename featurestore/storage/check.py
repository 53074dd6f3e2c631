"""Looking at a store that is not open: what is in it, whether all of it can be read, and making one of a
backup.

Nothing is written to the store that is looked at, not even LMDB's table of readers, so it may lie on a medium
that cannot be written. A store that another process has open is a StoreLockedError. The formats are in
FORMAT.md.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurestore.core.frequency import summaries
from featurestore.core.state import State
from featurestore.errors import CorruptRecordError, FeatureStoreError, StorageError
from featurestore.plan import CLOCKS, Plan, Structure
from featurestore.stdio import fill_standard_descriptors
from featurestore.storage.checkpoint import (
    HEAD,
    HOLES,
    SKETCHES,
    load_rows,
    parse_plan,
    stored_ids,
    stored_plan,
)
from featurestore.storage.directory import (
    NEW_FILE,
    STORE_JSON,
    DataDirectory,
    entries,
    refuse_within,
    sync_directory,
    write_synced,
)
from featurestore.storage.frame import (
    parse_batch_body,
    parse_clock_body,
    parse_forget_body,
    parse_producer_body,
)
from featurestore.storage.journal import (
    BATCH,
    CLOCK,
    FORGET,
    PRODUCER,
    SCHEMA,
    SHED,
    JournalFrame,
    JournalReader,
)
from featurestore.storage.rows import RowStore

KIND_NAMES = {
    BATCH: "batches",
    SCHEMA: "schemas",
    FORGET: "forgets",
    PRODUCER: "producer_changes",
    SHED: "batches_shed",
    CLOCK: "clocks",
}


def inspect(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What the store in `directory` is and holds, as plain data (JSON can take it).

    Raises StorageError and its kinds where something cannot be read; `verify` says all that is wrong.
    """
    with DataDirectory.open(Path(directory), read_only=True) as store, _open_rows(store) as rows:
        identity, plan, stat = store.identity, stored_plan(rows), rows.stat()
        positions = {shard: at for shard, at in rows.shards().items() if shard < HOLES}
        sizes = {shard: size for shard, size in rows.sizes().items() if shard < HOLES}
        journal, last_schema = _journal_summary(store)
        served = last_schema or plan
        return {
            "directory": str(store.path),
            "version": identity.version,
            "store_id": identity.store_id,
            "clock": _last_clock(store, rows),
            "schema": None if served is None else {"name": served.name, "version": served.version},
            "rows": {
                "position": min(positions.values(), default=0),
                "rows": sum(n_rows for n_rows, _ in sizes.values()),
                "record_bytes": sum(n_bytes for _, n_bytes in sizes.values()),
                "file_bytes": stat.file_bytes,
                "free_bytes": stat.free_pages * stat.page_bytes,
                "shards": [
                    {
                        "shard": shard,
                        "position": positions.get(shard, 0),
                        "rows": sizes.get(shard, (0, 0))[0],
                        "record_bytes": sizes.get(shard, (0, 0))[1],
                    }
                    for shard in range(identity.n_shards)
                ],
            },
            "ids": stored_ids(rows),
            "sketches": _sketches(rows, plan, identity.n_shards),
            "journal": journal,
        }


def _last_clock(store: DataDirectory, rows: RowStore) -> str:
    """The clock that a store has by now: that which it was made with, unless the journal gave it another, or
    did before the last checkpoint."""
    head = rows.get_meta(HEAD)
    clock = store.identity.clock if head is None else CLOCKS[head[4]]
    for frame in JournalReader(store.journal, 0, store.identity.id_bytes):
        if frame.kind == CLOCK:
            clock = parse_clock_body(frame.body)[0]
    return clock


def _sketches(rows: RowStore, plan: Plan | None, n_shards: int) -> list[dict[str, Any]]:
    """Of each view kept in sketches, what those of all shards are and hold together."""
    sketched = [view for view in plan.views if view.structure is Structure.COUNTMIN] if plan else []
    if not sketched:
        return []
    of_shards = [summaries(rows.read_shard(SKETCHES + shard)[0]) for shard in range(n_shards)]
    if not all(view.view_id in of_shard for view in sketched for of_shard in of_shards):
        raise CorruptRecordError(f"{rows.path}: a sketch is missing; restore it from a backup")
    found = []
    for view in sketched:
        each = [of_shard[view.view_id] for of_shard in of_shards]
        found.append(
            {
                "view": view.name,
                "epsilon": view.epsilon,
                "delta": view.delta,
                "width": each[0].width,
                "depth": each[0].depth,
                "memory_bytes": sum(sketch.n_bytes for sketch in each),
                "weight": sum(sketch.weight for sketch in each),
                "greatest_weight": max(sketch.weight for sketch in each),
                "filled_share": sum(sketch.n_cells for sketch in each)
                / sum(sketch.width * sketch.depth for sketch in each),
                "saturated_counters": sum(sketch.n_saturated for sketch in each),
            }
        )
    return found


def _open_rows(store: DataDirectory) -> RowStore:
    return RowStore.open(store.rows, store_id=store.identity.id_bytes, create=False, read_only=True)


def _journal_summary(store: DataDirectory) -> tuple[dict[str, Any], Plan | None]:
    """The journal as plain data, and the last plan in it."""
    reader = JournalReader(store.journal, 0, store.identity.id_bytes)
    segments: list[dict[str, Any]] = [
        {
            "name": segment.name,
            "first_position": segment.first_position,
            "file_bytes": segment.file_bytes,
            "frames": 0,
        }
        for segment in reader.segments
    ]
    firsts = [segment.first_position for segment in reader.segments]
    counts, plan = dict.fromkeys(KIND_NAMES.values(), 0), None
    n_events = 0
    for frame in reader:
        segments[bisect_right(firsts, frame.first_position) - 1]["frames"] += 1
        counts[KIND_NAMES[frame.kind]] += 1
        if frame.kind in (BATCH, SHED):
            n_events += frame.n_positions
        elif frame.kind in (SCHEMA, CLOCK):
            body = frame.body if frame.kind == SCHEMA else parse_clock_body(frame.body)[2]
            plan = parse_plan(body, f"schema of the frame at position {frame.first_position}")
    return {
        "first_position": firsts[0],
        "last_position": reader.next_position - 1,
        **counts,
        "events": n_events,
        "torn": reader.torn,
        "segments": segments,
    }, plan


def verify(directory: str | os.PathLike[str]) -> Iterator[str]:
    """Reads everything in the store; one sentence for each problem, none if it is sound.

    All checksums, every frame's body, every row, and that journal and rows belong together. A torn tail of
    the journal is no problem: a crash leaves one, and the next opening cuts it off. Needs memory for the
    rows.
    """
    try:
        store = DataDirectory.open(Path(directory), read_only=True)
    except FeatureStoreError as error:
        yield str(error)
        return
    with store:
        plan, position, furthest = None, None, 0
        try:
            with _open_rows(store) as rows:
                problems = rows.verify()
                yield from problems
                plan = stored_plan(rows)
                if not problems:
                    position, furthest = _checkpoint_position(store, rows, plan)
        except FeatureStoreError as error:
            yield str(error)
        try:
            yield from _verify_journal(store, plan, position, furthest)
        except FeatureStoreError as error:
            yield str(error)


def _checkpoint_position(store: DataDirectory, rows: RowStore, plan: Plan | None) -> tuple[int, int]:
    """Makes the state that opening would make of the rows."""
    if plan is None:
        return 0, 0
    identity = store.identity
    state = State(plan, clock=identity.clock, secret=store.secret, n_shards=identity.n_shards)
    rows.ids.serve(state)  # or all event ids would have to be in memory
    return load_rows(rows, state, identity.n_shards)


def _verify_journal(
    store: DataDirectory, plan: Plan | None, position: int | None, furthest: int
) -> Iterator[str]:
    reader = JournalReader(store.journal, 0, store.identity.id_bytes)
    first = reader.segments[0].first_position
    if position is not None and first > position + 1:
        yield (
            f"{store.journal}: begins at position {first}, the rows end at {position}: "
            "what is between is lost"
        )
    for frame in reader:
        try:
            # What is older than the rows was written under a plan that is gone.
            if frame.kind in (SCHEMA, CLOCK):
                body = frame.body if frame.kind == SCHEMA else parse_clock_body(frame.body)[2]
                newer = parse_plan(body, "schema")
                plan = newer if position is None or frame.first_position > position else plan
            else:
                _check_body(frame, plan if position is not None and frame.first_position > position else None)
        except FeatureStoreError as error:
            yield f"{store.journal}: the frame at position {frame.first_position}: {error}"
    last = reader.next_position - 1
    if last < furthest:
        yield f"{store.journal}: ends at position {last}, the rows at {furthest}: it is cut short, or older"


def _check_body(frame: JournalFrame, plan: Plan | None) -> None:
    if frame.kind == FORGET:
        parse_forget_body(frame.body)
        return
    if frame.kind == PRODUCER:
        parse_producer_body(frame.body)
        return
    batch = parse_batch_body(frame.body, has_shed=frame.kind == SHED)
    if len(batch.times) != frame.n_positions:
        raise CorruptRecordError(f"{frame.n_positions} positions for a batch of {len(batch.times)} events")
    if plan is not None:
        events = {event.event_id: event for event in plan.events}
        event = events.get(batch.event_id)
        if event is None or len(event.fields) != len(batch.columns):
            raise CorruptRecordError(
                f"a batch of event type id {batch.event_id} with {len(batch.columns)} columns; "
                f"the schema before it declares no such type"
            )
        if batch.shed is not None and any(int(bits) >> len(event.touches) for bits in batch.shed):
            raise CorruptRecordError(f"it sheds keys that event type {event.name} does not have")


def restore(backup: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Makes a store in the new or empty directory `target` of a backup, after reading all of it.

    Returns the position it reaches. Any store that is not open may stand for a backup. Raises
    CorruptRecordError if the backup has problems, StorageError if `target` is in use or cannot be written;
    then nothing is left there.
    """
    source, path = Path(backup), Path(target)
    if source.is_dir():
        refuse_within(source, path, "the restored store")
    problems = list(verify(source))
    if problems:
        raise CorruptRecordError(
            f"{source} is not sound ({len(problems)} problems, the first: {problems[0]}); "
            "nothing was restored"
        )
    if path.exists() and (not path.is_dir() or entries(path)):
        raise StorageError(f"{path} exists and is not empty; give a new directory")
    was_there = path.exists()
    try:
        with DataDirectory.open(source, read_only=True) as store:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                refuse_within(source, path, "the restored store")  # where it is, whatever the path was
                for name in ("journal", "rows"):
                    (path / name).mkdir(mode=0o700)
                for segment in sorted(store.journal.glob("journal-*.seg")):
                    _copy_synced(segment, path / "journal" / segment.name)
                _copy_synced(store.rows / "data.mdb", path / "rows" / "data.mdb")
                for name in ("journal", "rows"):
                    sync_directory(path / name)
                write_synced(path / "secret", store.secret)
                write_synced(path / STORE_JSON, store.identity.to_json())
                sync_directory(path.absolute().parent)
            except BaseException:
                for entry in entries(path):
                    if entry.is_dir():
                        shutil.rmtree(entry, ignore_errors=True)
                    else:
                        entry.unlink()
                if not was_there:
                    path.rmdir()
                raise
            return _last_position(store)
    except OSError as error:
        raise StorageError(f"cannot restore to {path}: {error.strerror}") from error


def _last_position(store: DataDirectory) -> int:
    reader = JournalReader(store.journal, 0, store.identity.id_bytes)
    for _ in reader:
        pass
    return reader.next_position - 1


def _copy_synced(source: Path, target: Path) -> None:
    fill_standard_descriptors()
    fd = os.open(target, NEW_FILE, 0o600)
    with os.fdopen(fd, "wb") as copy, source.open("rb") as data:
        shutil.copyfileobj(data, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
