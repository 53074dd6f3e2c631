"""What a checkpoint in the row store is made of, and how a State is made from one again.

    rows                     per shard, with the position they reflect
    sketches                 per shard, as rows of shard SKETCHES + its number, if there are any
    holes                    per shard, as the one row of shard HOLES + its number, from the first on
    event ids                as rows of shard IDS_SHARD; a checkpoint adds those that came since the one
                             before, and takes out those that were dropped
    meta plan                the plan being served, as JSON (Plan.to_json)
    meta head                clocks and position of the sequencer, at the cut
    producers                as rows of PRODUCERS_SHARD, likewise; copied after the cut, as the ids are: they
                             may know of later batches
    meta producers           what is of all of them; all of them, before its version 4
    meta ids                 all event ids, before head version 3; empty since

A checkpoint of much is written in parts: shards with their sketches, a few in each transaction, as of one
cut, and with the last of them everything else. Between the parts, and after a crash there, the head is the
one of the checkpoint before, marked as being behind (`mark_behind`), and of each shard the frames up to its
own position are not applied again. So the plan must be the same in both.

FORMAT.md has the bytes. The engine writes checkpoints in slices, while batches are applied; they are read
back here, in one go.
"""

from __future__ import annotations

from featurestore.core.plan import CompiledPlan
from featurestore.core.state import State
from featurestore.errors import CorruptRecordError
from featurestore.plan import Plan, Structure
from featurestore.storage.rows import RowStore

SKETCHES = 0x8000  # number of the shard of rows that holds the sketches of shard 0
HOLES = 0x4000  # and of the one that holds its holes
IDS_SHARD = 0xFFFF  # and of the one that holds event ids
PRODUCERS_SHARD = 0xFFFE  # and of the one that holds producers
RECORDS_OF_IDS = 3  # version of the head from which on there is that shard
RECORD_HEAD_BYTES = 20  # its fingerprint, and how many bytes follow
BEHIND = 4  # version of a head that shards may be ahead of; else as 3
SHED, BEHIND_AND_SHED = 5, 6  # of those where there are, or were, holes: older programs know of none
PLAN, HEAD, IDS, PRODUCERS = "plan", "head", "ids", "producers"
# JSON of another shape makes objects of the wrong types, and what those do not have is asked of them.
NOT_A_PLAN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def stored_plan(rows: RowStore) -> Plan | None:
    """The plan of the last checkpoint; None before the first."""
    text = rows.get_meta(PLAN)
    return None if text is None else parse_plan(text, f"{rows.path}: meta {PLAN}")


def parse_plan(text: bytes, where: str) -> Plan:
    """A plan as it is stored, which the engine can run; CorruptRecordError names `where`."""
    try:
        plan = Plan.from_json(text.decode())
        CompiledPlan(plan)
    except NOT_A_PLAN as error:
        raise CorruptRecordError(
            f"{where}: is no plan that this version runs ({error!r}); if another version wrote it, open it "
            "with that and apply a schema without what is named, else restore it from a backup"
        ) from error
    return plan


def stored_ids(rows: RowStore) -> int:
    """How many event ids the last checkpoint has; some may have expired."""
    n_records, n_bytes = rows.sizes().get(IDS_SHARD, (0, 0))
    return (n_bytes - n_records * 20) // 24 + len(rows.get_meta(IDS) or b"") // 32


def mark_behind(head: bytes | None, *, sheds: bool) -> bytes | None:
    """The head as stored, as one that shards may be ahead of, and have shed keys; None where it cannot be
    that."""
    if head is None or int.from_bytes(head[:4], "little") < RECORDS_OF_IDS:
        return None
    return (BEHIND_AND_SHED if sheds else BEHIND).to_bytes(4, "little") + head[4:]


def mark_shed(head: bytes) -> bytes:
    """A head as one of a store with holes."""
    return SHED.to_bytes(4, "little") + head[4:]


def mark_other_clock(head: bytes) -> bytes:
    """A head as one of a store that was made with another clock than it has: programs that go by what it was
    made with refuse it."""
    return head[:5] + b"\1" + head[6:]


def load_rows(rows: RowStore, state: State, n_shards: int) -> tuple[int, int]:
    """Puts the last checkpoint into a new State; returns its position, and the latest of a shard of it: as
    far, at least, the journal must go.

    Raises CorruptRecordError where a part is missing or cannot be read, or where a shard is not at the
    position of the sequencer's head, or of a head that is marked so not ahead of it.
    """
    head = rows.get_meta(HEAD)
    if head is None:
        raise CorruptRecordError(f"{rows.path}: meta {HEAD} is missing; restore it from a backup")
    state.import_head(head)
    version = int.from_bytes(head[:4], "little")
    positions = rows.shards()
    at = state.position
    if version < RECORDS_OF_IDS:
        state.import_ids(rows.get_meta(IDS) or b"")
    else:
        _check_position(rows, IDS_SHARD, "the event ids", positions, at)
        rows.read_in_parts(IDS_SHARD, state.import_id_records)
    if state.import_producers(rows.get_meta(PRODUCERS) or b""):
        state.import_producer_records(_records(rows, PRODUCERS_SHARD, "the producers", positions, at))
    sketched = any(view.structure is Structure.COUNTMIN for view in state.plan.views)
    furthest = at
    for shard in range(n_shards):
        ahead = max(at, positions.get(shard, 0)) if version in (BEHIND, BEHIND_AND_SHED) else at
        furthest = max(furthest, ahead)
        state.import_shard(shard, _records(rows, shard, f"shard {shard}", positions, ahead), ahead)
        if sketched:  # they are written with every checkpoint of such a plan
            what = f"the sketches of shard {shard}"
            state.import_sketches(shard, _records(rows, SKETCHES + shard, what, positions, ahead))
        if HOLES + shard in positions:
            what = f"the holes of shard {shard}"
            record = _records(rows, HOLES + shard, what, positions, ahead)
            if record != holes_record(record[RECORD_HEAD_BYTES:]):
                raise CorruptRecordError(f"{rows.path}: {what} are not one record; restore it from a backup")
            state.import_holes(shard, record[RECORD_HEAD_BYTES:])
    return at, furthest


def holes_record(holes: bytes) -> bytes:
    """The one row of a shard of holes."""
    return bytes(16) + len(holes).to_bytes(4, "little") + holes


def _records(rows: RowStore, shard: int, what: str, positions: dict[int, int], expected: int) -> bytes:
    """Of a shard of rows, which is as of the position that is expected of it."""
    _check_position(rows, shard, what, positions, expected)
    return rows.read_shard(shard)[0]


def _check_position(rows: RowStore, shard: int, what: str, positions: dict[int, int], expected: int) -> None:
    position = positions.get(shard)
    if position != expected:
        raise CorruptRecordError(
            f"{rows.path}: {what}: position {position}, and not {expected} as the others of the checkpoint; "
            "restore it from a backup"
        )
